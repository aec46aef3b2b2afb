"""Read and edit the residual stream at the output of decoder blocks, by forward hooks that live inside a `with`.

Capture site and steering site are the same point: what block ℓ returns, before any final norm. What this module does not
know: prompts, generation, what a direction means.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crystallized_safety.interventions import Coefficients, Edit, edit_stream
from crystallized_safety.records import Positions

__all__ = ["BatchEdits", "batch_edits", "captured", "edited", "mask_by_kind", "recorded", "resumed", "with_idle_edits"]


@dataclass(frozen=True, eq=False)
class _Stage:
    """At most one edit per row at one layer. `rows` indexes the batch, `kinds` the masks by positions."""

    rows: Int[Tensor, " edited"]
    kinds: Int[Tensor, " edited"]
    direction: Float[Tensor, "edited d_model"]
    a: Float[Tensor, " edited"]
    b: Float[Tensor, " edited"]


BatchEdits = Mapping[int, tuple[_Stage, ...]]
"""Layer → stages; the second edit of a row at the same layer is in the second stage, so that edits compose in order."""

_KINDS: tuple[Positions, ...] = get_args(Positions)


def batch_edits(rows: Sequence[Sequence[Edit]], *, dtype: torch.dtype, device: torch.device | str) -> BatchEdits:
    """Stack the edits of a batch, so that one hook per layer serves every row."""
    staged: dict[int, list[list[tuple[int, Edit]]]] = {}
    for row, edits in enumerate(rows):
        seen: dict[int, int] = {}
        for one in edits:
            stage = seen.get(one.layer, 0)
            seen[one.layer] = stage + 1
            stages = staged.setdefault(one.layer, [])
            if stage == len(stages):
                stages.append([])
            stages[stage].append((row, one))
    wide = torch.promote_types(dtype, torch.float32)
    return {layer: tuple(_stack(stage, wide, device) for stage in stages) for layer, stages in staged.items()}


def with_idle_edits(rows: Sequence[Sequence[Edit]], most: Mapping[int, int], d_model: int) -> list[tuple[Edit, ...]]:
    """Every row with edits that do nothing, up to `most` a layer, so that all batches have edits of one shape."""
    nothing = {layer: Edit(layer, torch.zeros(d_model), Coefficients(0.0, 0.0), "all") for layer in most}
    return [
        (
            *edits,
            *(nothing[layer] for layer, n in most.items() for _ in range(n - sum(one.layer == layer for one in edits))),
        )
        for edits in rows
    ]


def _stack(stage: Sequence[tuple[int, Edit]], dtype: torch.dtype, device: torch.device | str) -> _Stage:
    return _Stage(
        rows=torch.tensor([row for row, _ in stage], device=device),
        kinds=torch.tensor([_KINDS.index(one.positions) for _, one in stage], device=device),
        direction=torch.stack([one.direction for _, one in stage]).to(device=device, dtype=dtype),
        a=torch.tensor([one.coefficients.a for _, one in stage], dtype=dtype, device=device),
        b=torch.tensor([one.coefficients.b for _, one in stage], dtype=dtype, device=device),
    )


def mask_by_kind(
    *, every: Bool[Tensor, "row position"], answering: Bool[Tensor, "row position"], new: Bool[Tensor, "row position"]
) -> Bool[Tensor, "kind row position"]:
    """Where edits of each kind of positions apply: `all`, `last-prompt-token-on`, `generated`."""
    masks = {"all": every, "last-prompt-token-on": answering, "generated": new}
    return torch.stack([masks[kind] for kind in _KINDS])


@contextmanager
def edited(blocks: nn.ModuleList, edits: BatchEdits, applies: Bool[Tensor, "kind row position"]) -> Iterator[None]:
    """While open, every forward pass through `blocks` carries the edits, each where the mask of its kind `applies`."""
    with _hooked(blocks, {layer: partial(_edit_rows, stages, applies) for layer, stages in edits.items()}):
        yield


def _edit_rows(
    stages: Sequence[_Stage], applies: Bool[Tensor, "kind row position"], stream: Float[Tensor, "row position d_model"]
) -> Float[Tensor, "row position d_model"]:
    for stage in stages:
        place = stream.device
        rows = stage.rows.to(place)
        moved = edit_stream(
            stream[rows],
            direction=stage.direction.to(place),
            a=stage.a.to(place),
            b=stage.b.to(place),
            applies=applies.to(place)[stage.kinds.to(place), rows],
        )
        stream = stream.index_copy(0, rows, moved)
    return stream


@contextmanager
def captured(
    blocks: nn.ModuleList, layers: Iterable[int]
) -> Iterator[dict[int, Float[Tensor, "row position d_model"]]]:
    """While open, the last forward pass leaves the whole stream of `layers` in the yielded mapping, on its device."""
    seen: dict[int, Float[Tensor, "row position d_model"]] = {}
    with _hooked(blocks, {layer: partial(seen.__setitem__, layer) for layer in layers}):
        yield seen


@contextmanager
def resumed(blocks: nn.ModuleList, layer: int, stream: Float[Tensor, "row position d_model"]) -> Iterator[None]:
    """While open, a forward pass computes no block up to `layer`: that block returns `stream`, which hooks then edit.

    The blocks are those of transformers 5, which return the stream itself; their caches are not written.
    """
    skipped = [(block, block.__dict__.get("forward")) for block in list(blocks)[: layer + 1]]
    try:
        for block, _ in skipped:
            block.forward = lambda *_args, **_kwargs: stream
        yield
    finally:
        for block, own in skipped:
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own


@contextmanager
def recorded(
    blocks: nn.ModuleList, *, layers: Sequence[int], positions: Sequence[int]
) -> Iterator[dict[int, Float[Tensor, "row n_positions d_model"]]]:
    """While open, the last forward pass leaves the stream of `layers` at `positions` in the yielded mapping.

    Positions count from the end of the (left-padded) rows: −1 is the last token. Only these positions are kept.
    """
    seen: dict[int, Float[Tensor, "row n_positions d_model"]] = {}
    index = list(positions)

    def keep(layer: int, stream: Float[Tensor, "row position d_model"]) -> None:
        seen[layer] = stream.detach()[:, index].cpu()

    with _hooked(blocks, {layer: partial(keep, layer) for layer in layers}):
        yield seen


@contextmanager
def _hooked(blocks: nn.ModuleList, functions: Mapping[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for layer, function in functions.items():
            handles.append(blocks[layer].register_forward_hook(partial(_on_output, function)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_output(function: Callable[[Tensor], Tensor | None], _block: nn.Module, _inputs: Any, output: Any) -> Any:
    """Decoder blocks return a tensor in newer transformers and a tuple in older ones; both are served."""
    stream = output[0] if isinstance(output, tuple) else output
    changed = function(stream)
    if changed is None:
        return output
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
