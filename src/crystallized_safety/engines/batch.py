"""Rows that are decoded together, one token of each a step, in slots of a memory that is allocated once.

Rows may enter and leave at any step; nobody else is moved but the last rows, into the slots that became free. What this module
does not know: which rows wait, how prompts were read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from crystallized_safety.engines.flights import Ended, Flight, follow
from crystallized_safety.engines.rows import Row, ScoreRow, Settled
from crystallized_safety.engines.steps import Capture, Captured, Step, StepInputs, padded_rows, run_step
from crystallized_safety.models import (
    FixedShape,
    KeysValues,
    LanguageModel,
    RowCache,
    knows_shared_attention,
    n_logits,
    plan_step,
)
from crystallized_safety.residual import BatchEdits, batch_edits, mask_by_kind, with_idle_edits

__all__ = ["Arrival", "Batch", "BatchPlan"]


@dataclass(frozen=True, eq=False)
class Arrival:
    """A row about to enter: its flight, the prefix it sees, and its own tokens that were read with the prompt.

    `prefix` are parts of keys and values, one after the other. With `logits` the row's first new token can be chosen already.
    """

    flight: Flight
    prefix: tuple[Sequence[KeysValues], ...]
    own: Sequence[KeysValues] | None
    logits: Float[Tensor, " vocabulary"] | None


@dataclass(frozen=True)
class BatchPlan:
    """What a batch has room for: rows, and own tokens of each.

    With `capture`, steps have few shapes and are replayed; `edited` then says how many edits a row has at most, by layer.
    """

    n_slots: int
    width: int
    shared_attention: bool
    capture: Capture | None
    edited: Mapping[int, int]


class Batch:
    """A batch in flight. `advance` reads one token of every row; rows that end leave."""

    def __init__(self, lm: LanguageModel, plan: BatchPlan, *, settled: Settled | None) -> None:
        self._lm, self.plan, self._settled = lm, plan, settled
        whole = not (plan.shared_attention and knows_shared_attention(lm.model))
        self._cache = RowCache(n_layers=lm.n_layers, n_slots=plan.n_slots, width=plan.width, whole=whole)
        self._flights: list[Flight] = []
        self._prefixes: dict[object, int] = {}
        self._edits: BatchEdits | None = None
        logits = torch.empty(plan.n_slots, n_logits(lm), dtype=lm.dtype, device=lm.device)
        step: Step = partial(run_step, lm, self._cache, logits)
        self._step = step if plan.capture is None else Captured(step, self._cache, plan.capture)

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def rows(self) -> list[Row | ScoreRow]:
        """Rows that have not ended, once for each of their paths."""
        return [one.row for one in self._flights]

    @property
    def room(self) -> int:
        """Slots that are neither in use nor spoken for."""
        return self.plan.n_slots - sum(len(one.open) if isinstance(one.row, ScoreRow) else 1 for one in self._flights)

    def enter(self, arrivals: Sequence[Arrival]) -> list[Ended]:
        """Take rows in; those that end with their first token come back."""
        for one in arrivals:
            if one.flight.prefix not in self._prefixes and one.flight.n_prefix:
                self._prefixes[one.flight.prefix] = self._free_prefix()
                self._cache.store_prefix(self._prefixes[one.flight.prefix], one.prefix)
        before = len(self._flights)
        self._flights += [one.flight for one in arrivals]
        self._edits = None
        for slot, one in enumerate(arrivals, start=before):
            if one.own is not None:
                self._cache.store_row(slot, one.own)
        known = [before + index for index, one in enumerate(arrivals) if one.logits is not None]
        if not known:
            return []
        return self._go_on(known, torch.stack([one.logits for one in arrivals if one.logits is not None]))

    def advance(self) -> list[Ended]:
        """Read the pending token of every row and choose the next one; the rows that end with it come back."""
        logits = self._step(self._inputs())[: len(self._flights)]
        self._flights = [replace(one, column=one.column + 1) for one in self._flights]
        return self._go_on(range(len(self._flights)), logits)

    def _inputs(self) -> StepInputs:
        lm, flights, plan, device = self._lm, self._flights, self.plan, self._lm.device
        fixed = None
        if plan.capture is not None:
            fixed = FixedShape(padded_rows(len(flights), plan.n_slots), plan.width, self._cache.prefix_width)
        idle = fixed.n_rows - len(flights) if fixed else 0
        if self._edits is None or fixed:
            edits = [*(one.row.edits for one in flights), *[()] * idle]
            edits = with_idle_edits(edits, plan.edited, lm.d_model) if fixed else edits
            self._edits = batch_edits(edits, dtype=lm.dtype, device=device)
        every = torch.ones(len(flights) + idle, 1, dtype=torch.bool, device=device)
        new = torch.tensor([*([bool(one.new)] for one in flights), *[[False]] * idle], device=device)
        return StepInputs(
            ids=torch.tensor([*([one.pending] for one in flights), *[[0]] * idle], device=device),
            positions=torch.tensor([*([one.position] for one in flights), *[[0]] * idle], device=device),
            plan=plan_step(
                prefixes=[self._prefixes.get(one.prefix, 0) for one in flights],
                lengths=[one.n_prefix for one in flights],
                columns=[one.column for one in flights],
                device=device,
                fixed=fixed,
            ),
            edits=self._edits,
            applies=mask_by_kind(every=every, answering=every, new=new),
        )

    def _go_on(self, which: Sequence[int], logits: Float[Tensor, "row vocabulary"]) -> list[Ended]:
        """Choose the next tokens of some flights and give every path that goes on its slot."""
        outcomes = follow(
            [self._flights[index] for index in which], logits, stop_ids=self._lm.stop_ids, settled=self._settled
        )
        paths: list[list[Flight]] = [[one] for one in self._flights]
        for index, (goes_on, _) in zip(which, outcomes, strict=True):
            paths[index] = goes_on
        if any(len(one) != 1 for one in paths):
            self._settle(paths)
        else:
            self._flights = [one for (one,) in paths]
        return [ended for _, ended in outcomes if ended is not None]

    def _settle(self, paths: Sequence[Sequence[Flight]]) -> None:
        """The first path of a slot stays, further ones and those beyond the end move into free slots."""
        n_after = sum(map(len, paths))
        after: list[Flight | None] = [None] * n_after
        moving: list[tuple[int, Flight]] = []
        for slot, some in enumerate(paths):
            for place, one in enumerate(some):
                if place == 0 and slot < n_after:
                    after[slot] = one
                else:
                    moving.append((slot, one))
        free = [slot for slot, one in enumerate(after) if one is None]
        for (_, one), slot in zip(moving, free, strict=True):
            after[slot] = one
        if moving:
            self._cache.copy([slot for slot, _ in moving], free)
        self._flights = [one for one in after if one is not None]
        self._edits = None
        used = {one.prefix for one in self._flights}
        self._prefixes = {prefix: index for prefix, index in self._prefixes.items() if prefix in used}

    def _free_prefix(self) -> int:
        taken = set(self._prefixes.values())
        return next(index for index in range(len(taken) + 1) if index not in taken)
