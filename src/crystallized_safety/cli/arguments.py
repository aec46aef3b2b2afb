"""What commands have in common: how a model and a precision are given, and the default name of what is written.

What this module does not know: any command.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["Dtype", "Model", "slug"]

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Model = Annotated[str, tyro.conf.Positional]


def slug(name: str) -> str:
    """The part of a model's or preset's name that a folder can be named after."""
    return (
        Path(name).stem
        if Path(name).suffix in {".yaml", ".yml", ".gguf"}
        else name.rstrip("/").rsplit("/", maxsplit=1)[-1]
    )
