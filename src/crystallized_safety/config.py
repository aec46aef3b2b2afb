"""Where the packaged data lies and what a study is asked to do.

The registry of models, the presets and the prompts have one source each, in the clone; the wheel carries copies under
`resources/`. What this module does not know: models, prompts' meaning, statistics.
"""

from pathlib import Path

from crystallized_safety.errors import InputError

__all__ = ["resource"]

_PACKAGE = Path(__file__).parent


def resource(*parts: str) -> Path:
    """Path of a packaged data file or folder, for example `resource("configs", "models.yaml")`.

    Looks in the wheel first, then in the clone that an editable install points to. Raises InputError if neither has it.
    """
    for root in (_PACKAGE / "resources", _PACKAGE.parent.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    name = "/".join(parts)
    raise InputError(f"The packaged file '{name}' must exist, but it is missing. Install crystallized-safety again.")
