"""One GGUF file becomes one folder of float32 safetensors, so that later loads take seconds and any engine can read it.

Quantised blocks are unpacked to float32 without loss: the values are those the quantised file stands for. What this module
does not know: where the file came from.
"""

import io
import json
import logging
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from crystallized_safety.errors import ModelError

__all__ = ["FACTS", "convert", "quiet", "require_room"]

FACTS = "source.json"
"""Name of the file that says which source served a converted folder; written last, so its presence means complete."""

_TOOLS = ("gguf", "safetensors", "tokenizers", "torch", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and log lines of transformers and the hub client, and restore both afterwards."""
    levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    hub_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def require_room(folder: Path, megabytes: float, purpose: str) -> None:
    """Raise ModelError where the disk that holds `folder` has less than `megabytes` MB free."""
    free = shutil.disk_usage(folder).free / 1e6
    if free < megabytes:
        raise ModelError(
            f"The disk of {folder} must have {megabytes:.0f} MB free for {purpose}, but it has {free:.0f} MB. "
            "Free some room, or set CRYSTALLIZED_CACHE to a folder on another disk."
        )


def convert(gguf: Path, folder: Path, *, facts: Mapping[str, str]) -> None:
    """Write weights, config and tokenizer of `gguf` to `folder`, all or nothing, with `facts` and tool versions beside them.

    The caller holds the lock of `folder`. Raises ModelError where transformers cannot read the file or the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with quiet():
            _write(gguf, partial)
        tools = {name: version(name) for name in _TOOLS} | {"python": platform.python_version()}
        (partial / FACTS).write_text(
            json.dumps({**facts, "dtype": "float32", "tools": tools}, indent=2) + "\n", "utf-8"
        )
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(gguf: Path, folder: Path) -> None:
    # Newer transformers keep GGUF blocks packed, and a packed model cannot be saved; older ones always unpack.
    packed = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packed(dequantize=True)} if packed else {}
    where = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        # The GGUF reader draws its progress bar whatever is set; what it has to say comes as an exception.
        with redirect_stderr(io.StringIO()):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=torch.float32, **where, **options
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"The file {gguf} must be a GGUF file of an architecture that transformers {transformers.__version__} reads, "
            f"but: {error}. Pass a folder of safetensors instead."
        ) from error
    require_room(folder, sum(weight.numel() for weight in model.parameters()) * 4 / 1e6, "the converted weights")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
