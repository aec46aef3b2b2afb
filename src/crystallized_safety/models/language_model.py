"""A loaded chat model: weights that never change, decoder blocks, stop tokens, tokenizer, and what served them.

What this module does not know: hooks, directions, generation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crystallized_safety.errors import ModelError
from crystallized_safety.models.conversion import quiet
from crystallized_safety.models.registry import ModelEntry, resolve
from crystallized_safety.models.sources import Served, serve, silent

__all__ = ["DtypeName", "LanguageModel", "find_blocks", "from_parts", "load", "logits_into", "n_logits"]

DtypeName = Literal["auto", "float32", "bfloat16", "float16", "float64"]

_END_OF_TURN = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """One model, ready to read and to steer; made by `load` or `from_parts`.

    `blocks[i]` is decoder block i, whose output is the residual stream at layer i, of width `d_model`. Generation ends at any
    of `stop_ids`. `name` is what the user typed, `source` what served the weights, `sha256` that of their GGUF file where
    they came from one. Without a chat template of its own (`has_chat_template` false) a plain template is used.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    sha256: str | None
    blocks: nn.ModuleList
    n_layers: int
    d_model: int
    dtype: torch.dtype
    device: torch.device
    stop_ids: frozenset[int]
    pad_id: int
    has_chat_template: bool


def load(
    name: str,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    cache: Path | None = None,
    report: Callable[[str], None] = silent,
) -> LanguageModel:
    """Load the model that `name` means: an alias, a hub id, a folder or a .gguf file.

    `device` "auto" is the GPU where there is one (all of them where there are several), else the CPU; `dtype` "auto" is
    bfloat16 on a GPU and float32 on the CPU. `report` gets a line for each step that takes long. Raises ModelError where
    the name, the weights or the device cannot be used.
    """
    entry = resolve(name)
    place = _device(device)
    served = serve(entry, cache=cache, report=report)
    chosen = getattr(torch, dtype) if dtype != "auto" else torch.float32 if place.type == "cpu" else torch.bfloat16
    spread = device == "auto" and torch.cuda.device_count() > 1
    with quiet():
        model, tokenizer = _read(served.folder, chosen, device_map="auto" if spread else None)
    if not spread:
        nn.Module.to(model, place)
    loaded = _assemble(model, tokenizer, name=name, served=served)
    _check(loaded, entry)
    return loaded


def from_parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, source: str = "memory"
) -> LanguageModel:
    """Make a LanguageModel of a model in memory, which is put into eval mode and frozen. Raises ModelError without blocks."""
    return _assemble(model, tokenizer, name=name, served=Served(Path(), source, None))


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Find the decoder blocks: the outermost module list as long as the text config says, in the decoder where it is known.

    Of several at the same depth, the one with most parameters. Raises ModelError where there is none.
    """
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    for root in (model.get_decoder(), model):  # type: ignore[no-untyped-call]
        found = [
            (name.count("."), -sum(weight.numel() for weight in module.parameters()), name, module)
            for name, module in (root.named_modules() if root is not None else ())
            if isinstance(module, nn.ModuleList) and len(module) == n_layers
        ]
        if found:
            return min(found, key=lambda candidate: candidate[:3])[3]
    raise ModelError(
        f"A model must hold its {n_layers} decoder blocks in one module list, but {type(model).__name__} does not. "
        "This architecture cannot be steered."
    )


def _assemble(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, served: Served
) -> LanguageModel:
    model.train(mode=False).requires_grad_(requires_grad=False)
    blocks = find_blocks(model)
    stop_ids = _stop_ids(model, tokenizer)
    spare = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(stop_ids, default=0)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        source=served.source,
        sha256=served.sha256,
        blocks=blocks,
        n_layers=len(blocks),
        d_model=model.config.get_text_config(decoder=True).hidden_size,
        dtype=model.dtype,
        device=model.device,
        stop_ids=stop_ids,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else spare,
        has_chat_template=bool(tokenizer.chat_template),
    )


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Collect every token that ends a turn: those the model's files name, and the known markers that its vocabulary holds."""
    generation = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = (generation, model.config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id)
    ids = {token for value in named for token in (value if isinstance(value, list) else [value]) if token is not None}
    vocabulary = tokenizer.get_vocab()
    return frozenset(ids | {vocabulary[marker] for marker in _END_OF_TURN if marker in vocabulary})


def _read(
    folder: Path, dtype: torch.dtype, *, device_map: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The folder {folder} must hold a causal language model with its tokenizer, but transformers says: {first}"
        ) from error


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device '{device}' must be one that torch can use here, but it is not. Try --device cpu."
        ) from error


def _check(loaded: LanguageModel, entry: ModelEntry) -> None:
    expected = (entry.n_layers, entry.d_model)
    if entry.n_layers is not None and expected != (loaded.n_layers, loaded.d_model):
        raise ModelError(
            f"'{entry.alias}' must have {entry.n_layers} layers of width {entry.d_model}, but {loaded.source} has "
            f"{loaded.n_layers} of width {loaded.d_model}. Mend configs/models.yaml."
        )


def n_logits(lm: LanguageModel) -> int:
    """How many tokens the model tells the probability of; embeddings may be padded, so that the tokenizer knows fewer."""
    layer: Any = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return int(layer.weight.shape[0])


@contextmanager
def logits_into(lm: LanguageModel, buffer: Tensor) -> Iterator[None]:
    """While open, logits of up to len(`buffer`) positions are written there, [position, vocabulary], and nowhere else.

    A fresh tensor of this size costs the operating system thousands of page faults a step. Output layers that are more than a
    matrix are left alone.
    """
    layer: Any = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(layer) is not nn.Linear or layer.bias is not None or "forward" in layer.__dict__:
        yield
        return

    def forward(stream: Tensor) -> Tensor:
        flat = stream.flatten(0, -2)
        return torch.mm(flat, layer.weight.t(), out=buffer[: len(flat)]).unflatten(0, stream.shape[:-1])

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
