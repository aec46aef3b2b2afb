"""Chat models: which exist, where their weights come from, how a prompt becomes tokens.

    registry         names, hub ids and pinned revisions (imports neither torch nor transformers)
    sources          fetch the weights from the first source that serves them, into a cache
    hub              the Hugging Face hub: its local cache, one short probe, the download
    packages         weights that travel in package registries, joined and verified
    conversion       one GGUF file becomes one folder of float32 safetensors
    language_model   a loaded model with its decoder blocks, stop tokens and tokenizer
    cache            key-value caches of rows prefilled apart, joined into one batch
    chat             chat template, prompt tokens, decoding, fingerprints

The public names are imported on first use, so that the list of models, `registry.registry()`, costs no import of torch. What
this package does not know: prompts' meaning, directions, interventions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystallized_safety.models.cache import empty_cache, joined_cache
    from crystallized_safety.models.chat import (
        chat_tokens,
        decode,
        n_post_instruction,
        template_sha256,
        tokenizer_sha256,
        weights_fingerprint,
    )
    from crystallized_safety.models.language_model import LanguageModel, find_blocks, from_parts, load
    from crystallized_safety.models.registry import ModelEntry, resolve
    from crystallized_safety.models.sources import Served, cache_folder, serve, silent

__all__ = [
    "LanguageModel",
    "ModelEntry",
    "Served",
    "cache_folder",
    "chat_tokens",
    "decode",
    "empty_cache",
    "find_blocks",
    "from_parts",
    "joined_cache",
    "load",
    "n_post_instruction",
    "resolve",
    "serve",
    "silent",
    "template_sha256",
    "tokenizer_sha256",
    "weights_fingerprint",
]

_HOME = {
    "empty_cache": "cache",
    "joined_cache": "cache",
    "ModelEntry": "registry",
    "resolve": "registry",
    "Served": "sources",
    "cache_folder": "sources",
    "serve": "sources",
    "silent": "sources",
    "LanguageModel": "language_model",
    "find_blocks": "language_model",
    "from_parts": "language_model",
    "load": "language_model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'chat')}"), name)
