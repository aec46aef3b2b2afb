"""Generate with transformers: one running batch in which every row has its own condition.

What no loop over conditions has: rows of all conditions share the batch; a prompt is read once for all conditions that begin at
its last token or later, and those of all positions begin at their layer; the head of the template is read once; finished
rows leave and waiting rows enter, so that no row waits for the longest. What this module does not know: text, templates,
labels.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from crystallized_safety.engines.batch import Batch, BatchPlan
from crystallized_safety.engines.flights import Ended
from crystallized_safety.engines.memory import is_out_of_memory, rows_that_fit
from crystallized_safety.engines.queue import Queue, Savings
from crystallized_safety.engines.rows import Row, ScoreRow, Settled
from crystallized_safety.engines.steps import cuda_graphs
from crystallized_safety.errors import ModelError
from crystallized_safety.models import LanguageModel, knows_shared_attention, n_logits, silent

__all__ = ["TransformersEngine"]

_REFILL = 1 / 8
"""Rows enter once this share of the slots is free: where few enter at once, little of their reading is shared."""


@dataclass(frozen=True)
class TransformersEngine:
    """The default engine, on CPU and GPU.

    `batch_size` is the largest number of rows decoded together, None as many as fit into memory. Where memory runs out it is
    halved, which `report` is told, and the rows in flight start again.
    """

    lm: LanguageModel
    batch_size: int | None = None
    report: Callable[[str], None] = silent
    graphs: bool = False
    """Replay decode steps as CUDA graphs: few kernel launches instead of some thousand a step."""
    savings: Savings = field(default_factory=Savings)

    def generate(self, rows: Iterable[Row | ScoreRow], settled: Settled | None = None) -> Iterator[Ended]:
        """Yield every row once, in the order in which they finish.

        In exact arithmetic the company of a row does not change its tokens; in float32 or less a tie may fall otherwise. Raises
        ModelError where not even one row fits into memory.
        """
        if self.graphs and not _can_capture(self.lm.device):
            raise ModelError(
                f"CUDA graphs need a model on a CUDA device, but '{self.lm.name}' is on {self.lm.device}. Leave graphs off."
            )
        queue = Queue(self.lm, list(rows), self.savings, resumes=knows_shared_attention(self.lm.model))
        most = self.batch_size
        while queue:
            batch: Batch | None = None
            taken: list[Row | ScoreRow] = []
            try:
                with torch.inference_mode():
                    batch = self._batch(queue, most, settled)
                while queue or batch:
                    with torch.inference_mode():
                        taken = queue.take(batch.room) if self._enters(batch, queue) else []
                        ended = batch.enter(queue.arrivals(taken)) if taken else batch.advance()
                    yield from ended
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                n_slots = batch.plan.n_slots if batch else most or queue.n_paths
                queue.give_back(list({id(row): row for row in [*taken, *(batch.rows if batch else ())]}.values()))
                most = self._fewer(n_slots, queue.most_paths, error)
            else:
                return
            del batch
            _release(self.lm.device)

    def _batch(self, queue: Queue, most: int | None, settled: Settled | None) -> Batch:
        """An empty batch with room for as many rows as there are, as fit, or as `most` says; for the widest one at least."""
        fits = rows_that_fit(self.lm, width=queue.peak_width, token_bytes=queue.token_bytes, n_tokens=n_logits(self.lm))
        n_slots = min(fits if most is None else most, queue.n_paths)
        plan = BatchPlan(
            n_slots=max(n_slots, queue.most_paths),
            width=queue.width,
            shared_attention=self.savings.shared_attention,
            capture=cuda_graphs() if self.graphs else None,
            edited=queue.edited,
        )
        return Batch(self.lm, plan, settled=settled)

    def _enters(self, batch: Batch, queue: Queue) -> bool:
        """Whether it is time for waiting rows to enter."""
        if not queue or queue.next_paths > batch.room:
            return False
        return not batch or (self.savings.refill and batch.room >= _REFILL * batch.plan.n_slots)

    def _fewer(self, n_slots: int, needed: int, error: BaseException) -> int:
        if n_slots <= needed:
            raise ModelError(
                f"'{self.lm.name}' must have memory for one row, but it ran out. Free some, or load the model in bfloat16."
            ) from error
        self.report(
            f"memory ran out with {n_slots} rows together; those in flight start again, {n_slots // 2} together"
        )
        return n_slots // 2


def _can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
