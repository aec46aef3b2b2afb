"""Generate with transformers: batches in which every row has its own condition.

Three savings that a loop over conditions does not have: rows of all conditions share a batch; a prompt whose prefill no
condition touches is prefilled once and its cache is shared by all its conditions in the batch; finished rows leave.
Greedy decoding. What this module does not know: text, templates, labels. Rows do not yet enter a running batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystallized_safety.engines.rows import Generated, Row
from crystallized_safety.models import LanguageModel, empty_cache, joined_cache
from crystallized_safety.residual import batch_edits, edited

__all__ = ["TransformersEngine"]


@dataclass(frozen=True)
class TransformersEngine:
    """The default engine, on CPU and GPU. `batch_size` is the largest number of rows decoded together."""

    lm: LanguageModel
    batch_size: int = 64

    def generate(self, rows: Iterable[Row]) -> Iterator[Generated]:
        """Yield every row once, in the order in which they finish. Order and company of rows do not change their tokens."""
        for batch in _batches(rows, self.batch_size):
            yield from _Batch(self.lm, batch).generate()


def _batches(rows: Iterable[Row], size: int) -> Iterator[tuple[Row, ...]]:
    """Rows of like length together, rows of one prompt beside each other so that they share its prefill."""
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.tokens, row.key))
    for start in range(0, len(ordered), size):
        yield tuple(ordered[start : start + size])


def _prefill_key(row: Row) -> object:
    """Rows with equal keys have the same prefill: those whose edits begin at the last prompt token or later."""
    return (row.tokens, row.key) if any(edit.positions == "all" for edit in row.edits) else row.tokens


class _Batch:
    """The rows of one batch while they are decoded: their cache, mask and new tokens."""

    def __init__(self, lm: LanguageModel, rows: Sequence[Row]) -> None:
        self._lm = lm
        self._rows = list(rows)
        self._new: list[list[int]] = [[] for _ in rows]
        self._mask: Bool[Tensor, "row position"] = torch.ones(len(rows), 0, dtype=torch.bool, device=lm.device)

    @torch.inference_mode()
    def generate(self) -> Iterator[Generated]:
        cache = self._prefill()
        tokens = torch.tensor([row.tokens[-1] for row in self._rows], device=self._lm.device)
        logits = self._step(tokens, cache, generated=False)
        while True:
            tokens = logits.argmax(dim=-1)
            ended = [self._take(row, token) for row, token in enumerate(tokens.tolist())]
            yield from (end for end in ended if end)
            stays = [row for row, end in enumerate(ended) if end is None]
            if not stays:
                return
            if len(stays) < len(ended):
                tokens = self._leave(stays, tokens, cache)
            logits = self._step(tokens, cache, generated=True)

    def _take(self, row: int, token: int) -> Generated | None:
        """Append a token to a row; the completion, once the row needs no further step."""
        new, asked = self._new[row], self._rows[row]
        finished = token in self._lm.stop_ids
        if not finished:
            new.append(token)
        if finished or len(new) == asked.max_new_tokens:
            return Generated(asked.key, tuple(new), finished)
        return None

    def _leave(self, stays: Sequence[int], tokens: Int[Tensor, " row"], cache: Any) -> Int[Tensor, " stay"]:
        """Finished rows leave the batch, so that no row is computed after its end."""
        index = torch.tensor(stays, device=self._lm.device)
        cache.batch_select_indices(index)
        self._mask = self._mask[index]
        self._rows = [self._rows[row] for row in stays]
        self._new = [self._new[row] for row in stays]
        return tokens[index]

    def _prefill(self) -> Any:
        """All prompt tokens but the last, each distinct prefill once, those of equal length together; one cache row per row."""
        distinct: dict[object, Row] = {}
        for row in self._rows:
            distinct.setdefault(_prefill_key(row), row)
        groups = [tuple(group) for _, group in groupby(distinct.values(), key=lambda row: len(row.tokens))]
        place = {_prefill_key(row): index for index, row in enumerate(row for group in groups for row in group)}
        index = torch.tensor([place[_prefill_key(row)] for row in self._rows], device=self._lm.device)
        width = max(len(row.tokens) for row in self._rows) - 1
        pads = torch.tensor([width + 1 - len(row.tokens) for row in self._rows], device=self._lm.device)
        self._mask = torch.arange(width, device=self._lm.device)[None, :] >= pads[:, None]
        return joined_cache([self._prefill_group(group) for group in groups], index)

    def _prefill_group(self, rows: Sequence[Row]) -> Any:
        ids = torch.tensor([row.tokens[:-1] for row in rows], device=self._lm.device)
        edits = self._edits([[one for one in row.edits if one.positions == "all"] for row in rows])
        with edited(self._lm.blocks, edits, torch.ones_like(ids, dtype=torch.bool)):
            cache = empty_cache()
            self._lm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _step(self, tokens: Int[Tensor, " row"], cache: Any, *, generated: bool) -> Float[Tensor, "row vocabulary"]:
        """One token further. The first step reads the last prompt token, which `generated` conditions leave alone."""
        ones = torch.ones(len(self._rows), 1, dtype=torch.bool, device=self._lm.device)
        self._mask = torch.cat([self._mask, ones], dim=-1)
        skipped = () if generated else ("generated",)
        edits = self._edits([[one for one in row.edits if one.positions not in skipped] for row in self._rows])
        with edited(self._lm.blocks, edits, ones):
            output = self._lm.model(
                input_ids=tokens[:, None],
                attention_mask=self._mask.long(),
                position_ids=self._mask.long().sum(dim=-1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _edits(self, rows: Sequence[Sequence[Any]]) -> Any:
        return batch_edits(rows, dtype=self._lm.dtype, device=self._lm.device)
