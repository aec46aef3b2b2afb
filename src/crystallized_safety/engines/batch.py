"""Rows that are decoded together: their cache, mask and tokens, one step at a time.

Rows of equal length are prefilled together without padding; afterwards shorter rows are padded on the left, where the mask
hides it. What this module does not know: which rows wait, when rows should enter.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from crystallized_safety.engines.rows import Generated, Row
from crystallized_safety.interventions import Edit
from crystallized_safety.models import LanguageModel, empty_cache, joined_cache
from crystallized_safety.residual import BatchEdits, batch_edits, edited

__all__ = ["Batch"]


class Batch:
    """A batch in flight. `advance` reads one token of every row and appends the next; rows that end leave."""

    def __init__(
        self, lm: LanguageModel, rows: Sequence[Row], *, cache: Any, mask: Bool[Tensor, "row position"]
    ) -> None:
        self._lm = lm
        self._rows = list(rows)
        self._new: list[list[int]] = [[] for _ in rows]
        self._cache = cache
        self._mask = mask

    def __len__(self) -> int:
        return len(self._rows)

    @classmethod
    def prefilled(cls, lm: LanguageModel, rows: Sequence[Row]) -> "Batch":
        """All prompt tokens but the last are read, each distinct prefill once, those of equal length together."""
        distinct: dict[object, Row] = {}
        for row in rows:
            distinct.setdefault(_prefill_key(row), row)
        by_length = sorted(distinct.items(), key=lambda item: len(item[1].tokens))
        groups = [[row for _, row in group] for _, group in groupby(by_length, key=lambda item: len(item[1].tokens))]
        place = {key: index for index, (key, _) in enumerate(by_length)}
        index = torch.tensor([place[_prefill_key(row)] for row in rows], device=lm.device)
        width = max(len(row.tokens) for row in rows) - 1
        pads = torch.tensor([width + 1 - len(row.tokens) for row in rows], device=lm.device)
        mask = torch.arange(width, device=lm.device)[None, :] >= pads[:, None]
        return cls(lm, rows, cache=joined_cache([_prefill(lm, group) for group in groups], index), mask=mask)

    def joined(self, entering: "Batch") -> "Batch":
        """Both batches as one, neither empty; columns that only ended rows used are dropped."""
        parts = (self, entering)
        starts = [int(part._mask.any(dim=0).int().argmax()) for part in parts]
        masks = [part._mask[:, start:] for part, start in zip(parts, starts, strict=True)]
        width = max(mask.shape[1] for mask in masks)
        batch = Batch(
            self._lm,
            [row for part in parts for row in part._rows],
            cache=joined_cache(
                [part._cache for part in parts], torch.arange(len(self) + len(entering), device=self._lm.device), starts
            ),
            mask=torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks]),
        )
        batch._new = [new for part in parts for new in part._new]
        return batch

    def advance(self) -> Iterator[Generated]:
        """Read the last token of every row, append the next one, and yield and drop the rows that end with it."""
        tokens = self._step().argmax(dim=-1).tolist()
        ended = [self._take(row, token) for row, token in enumerate(tokens)]
        stays = [row for row, end in enumerate(ended) if end is None]
        if len(stays) < len(ended):
            self._keep(stays)
        yield from (end for end in ended if end is not None)

    def _step(self) -> Float[Tensor, "row vocabulary"]:
        """One token further. A row's first step reads its last prompt token, which `generated` conditions leave alone."""
        last = [new[-1] if new else row.tokens[-1] for row, new in zip(self._rows, self._new, strict=True)]
        ones = torch.ones(len(self._rows), 1, dtype=torch.bool, device=self._lm.device)
        self._mask = torch.cat([self._mask, ones], dim=-1)
        rows = [
            [one for one in row.edits if new or one.positions != "generated"]
            for row, new in zip(self._rows, self._new, strict=True)
        ]
        with edited(self._lm.blocks, _edits(self._lm, rows), ones):
            output = self._lm.model(
                input_ids=torch.tensor(last, device=self._lm.device)[:, None],
                attention_mask=self._mask.long(),
                position_ids=self._mask.long().sum(dim=-1, keepdim=True) - 1,
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _take(self, row: int, token: int) -> Generated | None:
        """Append a token to a row; the completion, once the row needs no further step."""
        new, asked = self._new[row], self._rows[row]
        finished = token in self._lm.stop_ids
        if not finished:
            new.append(token)
        if finished or len(new) == asked.max_new_tokens:
            return Generated(asked.key, tuple(new), finished)
        return None

    def _keep(self, stays: Sequence[int]) -> None:
        index = torch.tensor(stays, device=self._lm.device, dtype=torch.long)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        self._rows = [self._rows[row] for row in stays]
        self._new = [self._new[row] for row in stays]


def _prefill_key(row: Row) -> object:
    """Rows with equal keys have the same prefill: those whose edits begin at the last prompt token or later."""
    return (row.tokens, row.key) if any(edit.positions == "all" for edit in row.edits) else row.tokens


def _prefill(lm: LanguageModel, rows: Sequence[Row]) -> Any:
    """The cache of rows of equal length after all prompt tokens but the last."""
    ids = torch.tensor([row.tokens[:-1] for row in rows], device=lm.device)
    edits = _edits(lm, [[one for one in row.edits if one.positions == "all"] for row in rows])
    cache = empty_cache()
    with edited(lm.blocks, edits, torch.ones_like(ids, dtype=torch.bool)):
        lm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _edits(lm: LanguageModel, rows: Sequence[Sequence[Edit]]) -> BatchEdits:
    return batch_edits(rows, dtype=lm.dtype, device=lm.device)
