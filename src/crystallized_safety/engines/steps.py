"""One decode step as a function of tensors alone, run as it is or captured once and replayed.

A captured step (a CUDA graph) costs one launch in place of some thousand, but its shapes may not change. So rows, chunks and
widths are padded to a few sizes, and every layer that any row edits is edited for all rows, most of them by nothing. What this
module does not know: rows, which token comes next.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from math import ceil
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystallized_safety.engines.memory import is_out_of_memory
from crystallized_safety.errors import ModelError
from crystallized_safety.models import (
    LanguageModel,
    RowCache,
    StepPlan,
    attending,
    logits_into,
    masks_in_full,
)
from crystallized_safety.residual import BatchEdits, edited

__all__ = ["Capture", "Captured", "Step", "StepInputs", "cuda_graphs", "padded_rows", "run_step"]


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Everything that one step depends on besides the weights and the cache."""

    ids: Int[Tensor, "row 1"]
    positions: Int[Tensor, "row 1"]
    plan: StepPlan
    edits: BatchEdits
    applies: Bool[Tensor, "kind row 1"]


Step = Callable[[StepInputs], Tensor]
"""Logits [row, vocabulary] of the next tokens; the next step may overwrite them."""


def run_step(
    lm: LanguageModel, cache: RowCache, logits: Float[Tensor, "slot vocabulary"], inputs: StepInputs
) -> Float[Tensor, "row vocabulary"]:
    """Read one token of every row; its logits are written into `logits`."""
    cache.plan = inputs.plan
    with (
        edited(lm.blocks, inputs.edits, inputs.applies),
        nullcontext() if cache.whole else attending(lm.model, cache),
        logits_into(lm, logits),
    ):
        output = lm.model(
            input_ids=inputs.ids,
            position_ids=inputs.positions,
            attention_mask=masks_in_full(lm.model, inputs.plan) if cache.whole else None,
            past_key_values=cache,
            use_cache=True,
        )
    found: Tensor = output.logits[:, -1]
    return found


def padded_rows(n_rows: int, n_slots: int) -> int:
    """How many rows a captured step has for `n_rows`: the least of a few shares of the slots that holds them."""
    return min(size for share in _SHARES if (size := ceil(share * n_slots)) >= n_rows)


_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 1 / 16)

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Given a function that reads and writes fixed tensors, something that does the same to the same tensors again."""


class Captured:
    """Steps that are captured once for each shape and replayed; the inputs are copied to where the capture reads them."""

    def __init__(self, step: Step, cache: RowCache, capture: Capture) -> None:
        self._step, self._cache, self._capture = step, cache, capture
        self._held: dict[object, tuple[StepInputs, Callable[[], Tensor]]] = {}
        self._version = cache.version

    def __call__(self, inputs: StepInputs) -> Float[Tensor, "row vocabulary"]:
        """Read one token of every row."""
        if self._version != self._cache.version:  # memory has moved; what was captured reads where it was
            self._held, self._version = {}, self._cache.version
        came = _tensors(inputs)
        key = (
            *(tuple(one.shape) for one in came),
            inputs.plan.own_width,
            inputs.plan.prefix_width,
            tuple(inputs.edits),
        )
        if key not in self._held:
            self._step(inputs)  # allocates what a first run allocates; the same places are written again
            if self._version != self._cache.version:
                return self(inputs)
            fixed = replace(inputs, plan=inputs.plan.afresh())
            self._held[key] = (fixed, self._capture(lambda: self._step(fixed)))
        held, replay = self._held[key]
        for place, new in zip(_tensors(held), came, strict=True):
            if place is not new:
                place.copy_(new)
        return replay()


def cuda_graphs() -> Capture:
    """Capture with CUDA graphs that share their memory, since one step ends before the next begins.

    Capturing raises ModelError where the model waits for the device in the middle of a step.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                result = step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"A decode step must run the same kernels each time, but: {str(error).splitlines()[0]}. Leave graphs off."
            ) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return capture


def _tensors(one: Any) -> list[Tensor]:
    """All tensors of nested dataclasses, mappings and sequences, in a fixed order; private fields are derived, and left out."""
    if isinstance(one, Tensor):
        return [one]
    parts: Sequence[Any] = ()
    if is_dataclass(one):
        parts = [getattr(one, field.name) for field in fields(one) if not field.name.startswith("_")]
    elif isinstance(one, dict):
        parts = list(one.values())
    elif isinstance(one, (tuple, list)):
        parts = one
    return [tensor for part in parts for tensor in _tensors(part)]
