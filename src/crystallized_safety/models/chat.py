"""From a prompt to the tokens of one turn, from tokens back to text, and the fingerprints of what did it.

Positions are negative and counted from the end of the prompt: -1 is the last prompt token, and -(n_post_instruction + 1) is
the last token of the instruction itself. What this module does not know: padding, generation, prompt sets.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from typing import cast

import torch
from jinja2.exceptions import TemplateError

from crystallized_safety.models.language_model import LanguageModel

__all__ = [
    "PLAIN_TEMPLATE",
    "chat_tokens",
    "decode",
    "n_post_instruction",
    "template_sha256",
    "tokenizer_sha256",
    "weights_fingerprint",
]

PLAIN_TEMPLATE = "User: {prompt}\n\nAssistant:"
"""Used where the tokenizer has no chat template; callers say so aloud."""

_PROBES = ("Why is the sky blue?", "Name three rivers of Europe.", "List the planets", "Sum 12 and 30", "Stop!")
_SAMPLED = 64


def chat_tokens(lm: LanguageModel, prompt: str, system: str | None = None) -> tuple[int, ...]:
    """Token ids of one user turn up to where the answer begins, with exactly one BOS where the model has one.

    Without `system` the template's own default applies. A template that refuses or drops a system message gets its text at
    the head of the user turn.
    """
    if not lm.has_chat_template:
        text = PLAIN_TEMPLATE.format(prompt=_joined(system, prompt))
        return _one_bos(lm, lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    turns = _messages(lm, prompt, system)
    ids = lm.tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    return _one_bos(lm, cast("list[int]", ids))


def decode(lm: LanguageModel, ids: Sequence[int]) -> str:
    """Return the text of generated tokens, without special tokens and with spaces as they are."""
    text = lm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def n_post_instruction(lm: LanguageModel) -> int:
    """How many template tokens follow the instruction: the longest suffix that prompts with different ends share."""
    prompts = [chat_tokens(lm, probe) for probe in _PROBES]
    return min(_shared_suffix(left, right) for left, right in combinations(prompts, 2))


def template_sha256(lm: LanguageModel) -> str:
    """SHA-256 of the chat template's text, or of the plain template where the tokenizer has none."""
    template = lm.tokenizer.chat_template or PLAIN_TEMPLATE
    return _sha256(template if isinstance(template, str) else json.dumps(template, sort_keys=True))


def tokenizer_sha256(lm: LanguageModel) -> str:
    """SHA-256 of everything that turns text into ids: vocabulary, merges, normalisers, added tokens; not padding state."""
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sha256(
            json.dumps([lm.tokenizer.get_vocab(), lm.tokenizer.special_tokens_map], sort_keys=True, default=str)
        )
    rules = json.loads(backend.to_str())
    return _sha256(json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True))


def weights_fingerprint(lm: LanguageModel) -> str:
    """Name the weights, as `kind:value`.

    `gguf-sha256:` the hash of the file they were unpacked from; `hub:` repository and commit; else `sample-sha256:` over the
    config and, for each parameter, its name, shape and first 64 values as float32. The sample tells models apart that differ
    in config or training; it does not prove that two models agree in the values it leaves out.
    """
    if lm.sha256 is not None:
        return f"gguf-sha256:{lm.sha256}"
    if lm.source.startswith("hub "):
        return f"hub:{lm.source.removeprefix('hub ')}"
    config = lm.model.config.to_dict()
    told = {
        key: value for key, value in config.items() if key not in {"transformers_version", "_name_or_path", "dtype"}
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, weight in sorted(lm.model.named_parameters()):
        first = weight.detach().flatten()[:_SAMPLED].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(weight.shape)}".encode() + first.numpy().tobytes())
    return f"sample-sha256:{digest.hexdigest()}"


def _messages(lm: LanguageModel, prompt: str, system: str | None) -> list[dict[str, str]]:
    if system is None:
        return [{"role": "user", "content": prompt}]
    turns = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    try:
        if system.strip() in lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True):
            return turns
    except TemplateError:
        pass
    return [{"role": "user", "content": _joined(system, prompt)}]


def _joined(system: str | None, prompt: str) -> str:
    return prompt if system is None else f"{system}\n\n{prompt}"


def _one_bos(lm: LanguageModel, ids: Sequence[int]) -> tuple[int, ...]:
    """Exactly one BOS in front, if the template wrote any or the tokenizer would add one itself."""
    bos = lm.tokenizer.bos_token_id
    start = 0
    while bos is not None and start < len(ids) and ids[start] == bos:
        start += 1
    adds = bos is not None and lm.tokenizer("x")["input_ids"][0] == bos
    return ((bos,) if start or adds else ()) + tuple(ids[start:])


def _shared_suffix(left: Sequence[int], right: Sequence[int]) -> int:
    shared = 0
    while shared < min(len(left), len(right)) and left[-1 - shared] == right[-1 - shared]:
        shared += 1
    return shared


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
