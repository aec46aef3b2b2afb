"""Generate with transformers: one running batch in which every row has its own condition.

Three savings that a loop over conditions does not have: rows of all conditions share the batch; a prompt whose prefill no
condition touches is prefilled once for all its conditions that enter together; finished rows leave and waiting rows enter, so
that no row waits for the longest. Greedy decoding. What this module does not know: text, templates, labels.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from crystallized_safety.engines.batch import Batch
from crystallized_safety.engines.rows import Generated, Row
from crystallized_safety.models import LanguageModel

__all__ = ["TransformersEngine"]

_REFILL = 0.75
"""Rows enter once the running batch has fallen to this share of its size: entering copies the cache of the others."""


@dataclass(frozen=True)
class TransformersEngine:
    """The default engine, on CPU and GPU. `batch_size` is the largest number of rows decoded together."""

    lm: LanguageModel
    batch_size: int = 128

    @torch.inference_mode()
    def generate(self, rows: Iterable[Row]) -> Iterator[Generated]:
        """Yield every row once, in the order in which they finish.

        In exact arithmetic the company of a row does not change its tokens; in float32 or less a tie may fall otherwise.
        """
        waiting = deque(sorted(rows, key=lambda row: (-len(row.tokens), row.tokens, row.key)))
        running: Batch | None = None
        while waiting or running:
            if waiting and (running is None or len(running) <= _REFILL * self.batch_size):
                room = self.batch_size - (len(running) if running else 0)
                entering = Batch.prefilled(self.lm, [waiting.popleft() for _ in range(min(room, len(waiting)))])
                yield from entering.advance()
                running = running.joined(entering) if running and entering else running or entering
            else:
                assert running is not None  # noqa: S101 - the loop's condition, for the type checker
                yield from running.advance()
            running = running or None
