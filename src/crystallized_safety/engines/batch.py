"""Rows that are decoded together, one token of each a step, in slots of a memory that is allocated once.

Rows may enter and leave at any step; nobody else is moved but the last rows, into the slots that became free. What this module
does not know: which rows wait, how prompts were read.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from crystallized_safety.engines.flights import Ended, Flight, follow
from crystallized_safety.engines.rows import Row, ScoreRow, Settled
from crystallized_safety.models import (
    KeysValues,
    LanguageModel,
    RowCache,
    attending,
    knows_shared_attention,
    logits_into,
    masks_in_full,
    n_logits,
    plan_step,
)
from crystallized_safety.residual import BatchEdits, batch_edits, edited, mask_by_kind

__all__ = ["Arrival", "Batch"]


@dataclass(frozen=True, eq=False)
class Arrival:
    """A row about to enter: its flight, the prefix it sees, and its own tokens that were read with the prompt.

    `prefix` are parts of keys and values, one after the other. With `logits` the row's first new token can be chosen already.
    """

    flight: Flight
    prefix: tuple[Sequence[KeysValues], ...]
    own: Sequence[KeysValues] | None
    logits: Float[Tensor, " vocabulary"] | None


class Batch:
    """A batch in flight. `advance` reads one token of every row; rows that end leave."""

    def __init__(
        self, lm: LanguageModel, *, n_slots: int, width: int, shared_attention: bool, settled: Settled | None
    ) -> None:
        self._lm, self.n_slots = lm, n_slots
        self._shared = shared_attention and knows_shared_attention(lm.model)
        self._cache = RowCache(n_layers=lm.n_layers, n_slots=n_slots, width=width, whole=not self._shared)
        self._flights: list[Flight] = []
        self._prefixes: dict[object, int] = {}
        self._edits: BatchEdits | None = None
        self._settled = settled
        self._logits = torch.empty(n_slots, n_logits(lm), dtype=lm.dtype, device=lm.device)

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def rows(self) -> list[Row | ScoreRow]:
        """Rows that have not ended, once for each of their paths."""
        return [one.row for one in self._flights]

    @property
    def room(self) -> int:
        """Slots that are neither in use nor spoken for."""
        return self.n_slots - sum(len(one.open) if isinstance(one.row, ScoreRow) else 1 for one in self._flights)

    def enter(self, arrivals: Sequence[Arrival]) -> list[Ended]:
        """Take rows in; those that end with their first token come back."""
        for one in arrivals:
            if one.flight.prefix not in self._prefixes and one.flight.n_prefix:
                self._prefixes[one.flight.prefix] = self._free_prefix()
                self._cache.store_prefix(self._prefixes[one.flight.prefix], one.prefix)
        before = len(self._flights)
        self._flights += [one.flight for one in arrivals]
        self._edits = None
        self._store_own(before, arrivals)
        known = [before + index for index, one in enumerate(arrivals) if one.logits is not None]
        if not known:
            return []
        return self._go_on(known, torch.stack([one.logits for one in arrivals if one.logits is not None]))

    def advance(self) -> list[Ended]:
        """Read the pending token of every row and choose the next one; the rows that end with it come back."""
        logits = self._step()
        self._flights = [replace(one, column=one.column + 1) for one in self._flights]
        return self._go_on(range(len(self._flights)), logits)

    def _step(self) -> Float[Tensor, "row vocabulary"]:
        lm, flights = self._lm, self._flights
        self._cache.plan = plan_step(
            prefixes=[self._prefixes.get(one.prefix, 0) for one in flights],
            lengths=[one.n_prefix for one in flights],
            columns=[one.column for one in flights],
            device=lm.device,
        )
        if self._edits is None:
            self._edits = batch_edits([one.row.edits for one in flights], dtype=lm.dtype, device=lm.device)
        every = torch.ones(len(flights), 1, dtype=torch.bool, device=lm.device)
        new = torch.tensor([[bool(one.new)] for one in flights], device=lm.device)
        with (
            edited(lm.blocks, self._edits, mask_by_kind(every=every, answering=every, new=new)),
            attending(lm.model, self._cache) if self._shared else nullcontext(),
            logits_into(lm, self._logits),
        ):
            output = lm.model(
                input_ids=torch.tensor([[one.pending] for one in flights], device=lm.device),
                position_ids=torch.tensor([[one.position] for one in flights], device=lm.device),
                attention_mask=None if self._shared else masks_in_full(lm.model, self._cache.plan),
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

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

    def _store_own(self, before: int, arrivals: Sequence[Arrival]) -> None:
        read = [(before + index, one.own) for index, one in enumerate(arrivals) if one.own is not None]
        for slot, own in read:
            self._cache.store_row(slot, own)

    def _free_prefix(self) -> int:
        taken = set(self._prefixes.values())
        return next(index for index in range(len(taken) + 1) if index not in taken)
