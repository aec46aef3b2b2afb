"""Errors a user can cause, each one sentence: what must hold, what came, what to do.

    CrystallizedError               exit code 2 on the command line
    ├── InputError                  a file, flag, prompt set or judge reply that cannot be used
    ├── ModelError                  a model that cannot be found, fetched, verified or steered
    ├── VectorError                 a steering vector that does not fit or cannot be read
    └── RunError                    a run folder that belongs to another configuration

What this module does not know: how an error is shown; `cli` prints the sentence and sets the exit code.
"""

__all__ = ["CrystallizedError", "InputError", "ModelError", "RunError", "VectorError"]


class CrystallizedError(Exception):
    """Base of every error that a user can cause and mend."""


class InputError(CrystallizedError):
    """A file, flag, prompt set or judge reply that cannot be used."""


class ModelError(CrystallizedError):
    """A model that cannot be found, fetched, verified or steered."""


class VectorError(CrystallizedError):
    """A steering vector that does not fit the model or cannot be read safely."""


class RunError(CrystallizedError):
    """A run folder that holds another configuration, or that is damaged."""
