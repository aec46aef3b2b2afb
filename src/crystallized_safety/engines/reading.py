"""Read prompts before anything is generated, each part of them as seldom as can be.

The head that all prompts share is read once, each prompt's tail once. Edits that begin at the last prompt token or later leave
that alone. An edit of all positions at layer ℓ changes nothing below ℓ, so its rows start from the stream that block ℓ gave
without it; and its head is read once for all prompts. Tails are padded on the right, where a causal model never looks back from.
What this module does not know: decoding, slots, which rows wait.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from crystallized_safety.engines.rows import Row, ScoreRow
from crystallized_safety.interventions import Edit
from crystallized_safety.models import KeysValues, LanguageModel, keys_values, past
from crystallized_safety.residual import batch_edits, captured, edited, mask_by_kind, resumed

__all__ = ["Read", "common_head", "logits_at", "read_heads", "read_prompts", "read_tails", "start_layer"]

_TOKENS_AT_ONCE = 2048
"""Prompt tokens in one forward pass: enough to keep the processor busy, few enough to keep activations small."""


@dataclass(frozen=True, eq=False)
class Read:
    """Some tokens, read under some edits or none.

    `layers` are their keys and values [head, position, d_head]; `streams` what some blocks returned, [position, d_model], before
    any edit; `logits` those after the last token, [vocabulary].
    """

    layers: tuple[KeysValues, ...]
    streams: Mapping[int, Float[Tensor, "position d_model"]]
    logits: Float[Tensor, " vocabulary"]

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return int(self.layers[0][0].shape[1])


def common_head(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with, leaving at least two of each."""
    first, last = min(prompts), max(prompts)
    longest = min(map(len, prompts)) - 2
    shared = next((index for index in range(longest) if first[index] != last[index]), longest)
    return max(shared, 0)


def start_layer(edits: Sequence[Edit]) -> int | None:
    """The lowest layer at which a prompt is read differently from the start; None where it is read as without edits."""
    if all(one.positions != "all" for one in edits):
        return None
    return min(one.layer for one in edits if one.positions != "generated")


@dataclass(frozen=True, eq=False)
class _Asked:
    """Tokens to be read after a head, with the edits they are read under and where the pass may start."""

    tokens: tuple[int, ...]
    edits: tuple[Edit, ...]
    head: Read | None
    below: Read | None
    start: int | None


def read_prompts(
    lm: LanguageModel, tails: Sequence[tuple[int, ...]], *, head: Read | None, streams: Sequence[int]
) -> list[Read]:
    """Read tails (or heads) without edits; keep what the blocks `streams` returned."""
    return _read(lm, [_Asked(tokens, (), head, None, None) for tokens in tails], streams=streams, ends=True)


def read_heads(
    lm: LanguageModel, tokens: tuple[int, ...], edits: Sequence[tuple[Edit, ...]], *, below: Read | None
) -> list[Read]:
    """Read one head under the edits of several conditions; `below` is the same head read without, None to start from scratch."""
    asked = [_Asked(tokens, one, None, below, start_layer(one) if below else None) for one in edits]
    return _read(lm, asked, streams=(), ends=False)


def read_tails(
    lm: LanguageModel,
    rows: Sequence[Row | ScoreRow],
    *,
    n_head: int,
    heads: Sequence[Read | None],
    below: Sequence[Read | None],
) -> list[Read]:
    """Read what follows the head of each row under its edits, after `heads` read under the same edits.

    `below` are the same tails read without edits; None to start from scratch.
    """
    asked = [
        _Asked(row.tokens[n_head:], row.edits, head, plain, start_layer(row.edits) if plain else None)
        for row, head, plain in zip(rows, heads, below, strict=True)
    ]
    return _read(lm, asked, streams=(), ends=True)


def _read(lm: LanguageModel, asked: Sequence[_Asked], *, streams: Sequence[int], ends: bool) -> list[Read]:
    """Read everything asked, in forward passes of one starting layer and about equal lengths."""
    done: dict[int, Read] = {}
    for group in _groups(asked):
        some = [asked[index] for index in group]
        done.update(zip(group, _read_group(lm, some, streams=streams, ends=ends), strict=True))
    return [done[index] for index in range(len(asked))]


def _groups(asked: Sequence[_Asked]) -> Iterator[list[int]]:
    """Indices of what is read in one pass: one starting layer, and padding is at most a quarter."""

    def order(index: int) -> tuple[int, int]:
        start = asked[index].start
        return (-1 if start is None else start, len(asked[index].tokens))

    group: list[int] = []
    for index in sorted(range(len(asked)), key=order):
        length = len(asked[index].tokens)
        if group and (
            asked[group[0]].start != asked[index].start
            or (len(group) + 1) * length > _TOKENS_AT_ONCE
            or length > 1.25 * len(asked[group[0]].tokens) + 1
        ):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _read_group(lm: LanguageModel, asked: Sequence[_Asked], *, streams: Sequence[int], ends: bool) -> list[Read]:
    lengths = torch.tensor([len(one.tokens) for one in asked], device=lm.device)
    width = int(lengths.max())
    ids = torch.tensor([[*one.tokens, *[lm.pad_id] * (width - len(one.tokens))] for one in asked], device=lm.device)
    n_head = asked[0].head.length if asked[0].head else 0
    cache = past(_stacked([one.head.layers for one in asked if one.head])) if n_head else past([])
    start = asked[0].start
    with ExitStack() as stack:
        seen = stack.enter_context(captured(lm.blocks, streams))
        if start is not None:
            stream = torch.stack([_padded(one.below.streams[start], width) for one in asked if one.below])
            stack.enter_context(resumed(lm.blocks, start, stream))
        edits = batch_edits([one.edits for one in asked], dtype=lm.dtype, device=lm.device)
        stack.enter_context(edited(lm.blocks, edits, _applies(lengths, width, ends=ends)))
        stack.enter_context(logits_at(lm, lengths - 1))
        output = lm.model(
            input_ids=ids,
            position_ids=torch.arange(n_head, n_head + width, device=lm.device).expand(len(asked), -1),
            past_key_values=cache,
            use_cache=True,
        )
    fresh = keys_values(cache, lm.n_layers)
    return [
        Read(
            layers=tuple(_layers(one, index, fresh, n_head)),
            streams={layer: stream[index, : len(one.tokens)].clone() for layer, stream in seen.items()},
            logits=output.logits[index, -1].clone(),
        )
        for index, one in enumerate(asked)
    ]


def _layers(one: _Asked, index: int, fresh: Sequence[KeysValues | None], n_head: int) -> Iterator[KeysValues]:
    """Keys and values of one row's own tokens: from this pass above the starting layer, as without edits below."""
    end = n_head + len(one.tokens)
    for layer, held in enumerate(fresh):
        if one.start is not None and one.below is not None and layer <= one.start:
            yield one.below.layers[layer]
        else:
            assert held is not None  # noqa: S101 - every block above the start was computed
            yield held[0][index, :, n_head:end].clone(), held[1][index, :, n_head:end].clone()


def _applies(lengths: Int[Tensor, " row"], width: int, *, ends: bool) -> Bool[Tensor, "kind row position"]:
    """Edits of all positions everywhere; those from the last prompt token there, where the tokens end with it."""
    places = torch.arange(width, device=lengths.device)[None]
    every = torch.ones(len(lengths), width, dtype=torch.bool, device=lengths.device)
    last = (places == lengths[:, None] - 1) & ends
    return mask_by_kind(every=every, answering=last, new=torch.zeros_like(every))


def _stacked(rows: Sequence[Sequence[KeysValues]]) -> list[KeysValues]:
    return [
        (torch.stack([one[0] for one in layer]), torch.stack([one[1] for one in layer]))
        for layer in zip(*rows, strict=True)
    ]


def _padded(stream: Float[Tensor, "position d_model"], width: int) -> Float[Tensor, "width d_model"]:
    return pad(stream, (0, 0, 0, width - len(stream)))


@contextmanager
def logits_at(lm: LanguageModel, positions: Int[Tensor, " row"]) -> Iterator[None]:
    """While open, the model computes logits at one position of each row only, [row, 1, vocabulary]."""
    output_layer: Any = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def chosen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        (stream,) = inputs
        rows = torch.arange(len(stream), device=stream.device)
        return (stream[rows, positions.to(stream.device)][:, None],)

    handle = output_layer.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
