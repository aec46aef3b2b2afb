"""Can a safety direction that is readable in a chat model also be controlled? An instrument that answers with error bars."""

__version__ = "0.1.0"
