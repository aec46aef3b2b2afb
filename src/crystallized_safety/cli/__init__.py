"""The command line. No import of torch.

commands   which commands there are, and how an error ends
studies    commands that measure a model into a run folder
steps      commands that do one thing each
arguments  what commands have in common
showing    the progress bar
"""

from crystallized_safety.cli.commands import app, main

__all__ = ["app", "main"]
