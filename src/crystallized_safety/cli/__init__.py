"""The command line: `commands` parses, calls one function and prints; `showing` is the progress bar. No import of torch."""

from crystallized_safety.cli.commands import app, main

__all__ = ["app", "main"]
