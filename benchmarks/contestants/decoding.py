"""Three ways to decode the same rows with a model that is already on the device: plain `generate`, transformers' continuous
batching, ours.

Each opens as a context manager on a model and a `Case` and gives a function of the number of new tokens, so that what is set up
once can be left out of a timing. What this module does not know: time, rooflines, tables.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.contestants.plain import by_condition
from benchmarks.work import Answer, Answers, Condition, Work, key
from crystallized_safety.engines import Generated, Row, TransformersEngine
from crystallized_safety.interventions import edit
from crystallized_safety.models import LanguageModel

__all__ = ["Case", "Run", "captured_graphs", "continuous", "ours", "plain"]

Run = Callable[[int], Answers]
"""Number of new tokens → the answers of all rows."""

_PAGE = 256
"""Tokens in one page of transformers' paged cache, its own default; a row takes whole pages."""
_MOST_BATCH_TOKENS = 8192
"""Tokens in one pass of transformers' continuous batching, its own default."""


@dataclass(frozen=True, eq=False)
class Case:
    """Rows to decode, `batch` together: the same number of rows cut in two ways, with the first conditions of the first prompts
    in both.

    `whole` has few conditions of `batch` prompts each, one batch per condition; `mixed` has many conditions of fewer prompts,
    whose rows must be mixed to fill a batch. `vectors` are [d_model] by layer, `notes` what a contestant has to say.
    """

    batch: int
    whole: Work
    mixed: Work
    vectors: Mapping[int, Tensor]
    notes: list[str] = field(default_factory=list)


@contextmanager
def plain(lm: LanguageModel, case: Case) -> Iterator[Run]:
    """One forward hook and one `model.generate` per condition."""

    @contextmanager
    def steered(condition: Condition) -> Iterator[Any]:
        push = (condition.dose * case.vectors[condition.layer]).to(lm.device, lm.dtype)
        handle = lm.blocks[condition.layer].register_forward_hook(_adding(push))
        try:
            yield _OnDevice(lm)
        finally:
            handle.remove()

    yield lambda new_tokens: by_condition(replace(case.whole, new_tokens=new_tokens), case.batch, steered=steered)


@contextmanager
def continuous(lm: LanguageModel, case: Case) -> Iterator[Run]:
    """transformers' continuous batching of the same prompts, unsteered: it has no place for a condition of a row.

    One manager serves all runs; its cache holds a quarter more than the batch needs, because it stops taking in at 85 %. It
    turns to flash attention where that is installed, which `notes` tells. RuntimeError with its own words where a row fails.
    """
    longest = len(case.mixed.prompts[0].tokens) + case.mixed.new_tokens
    settings = ContinuousBatchingConfig(
        num_blocks=-(-5 * case.batch * -(-longest // _PAGE) // 4) + 1,
        max_batch_tokens=min(_MOST_BATCH_TOKENS, case.batch * longest),
        max_requests_per_batch=case.batch,
    )
    how = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=lm.pad_id)
    names = [key(condition, prompt) for prompt in case.mixed.prompts for condition in case.mixed.conditions]
    asked = [list(prompt.tokens) for prompt in case.mixed.prompts for _ in case.mixed.conditions]
    attention = lm.model.config._attn_implementation

    def run(new_tokens: int) -> Answers:
        ids = manager.add_requests(asked, max_new_tokens=new_tokens)
        done = _collected(manager, len(ids))
        return {name: Answer(done[one], finished=False) for name, one in zip(names, ids, strict=True)}

    try:
        with lm.model.continuous_batching_context_manager(how, continuous_batching_config=settings) as manager:
            case.notes.append(f"attention: {lm.model.config._attn_implementation}")
            yield run
    finally:  # its own restoring does not happen where it fails while it is being made
        if lm.model.config._attn_implementation != attention:
            lm.model.set_attn_implementation(attention)


@contextmanager
def ours(lm: LanguageModel, case: Case) -> Iterator[Run]:
    """One queue of all rows of all conditions."""
    yield _engine_run(lm, case, TransformersEngine(lm, batch_size=case.batch, report=case.notes.append))


@contextmanager
def captured_graphs(lm: LanguageModel, case: Case) -> Iterator[Run]:
    """As `ours`, with decode steps that are captured as CUDA graphs."""
    yield _engine_run(lm, case, TransformersEngine(lm, batch_size=case.batch, report=case.notes.append, graphs=True))


def _engine_run(lm: LanguageModel, case: Case, engine: TransformersEngine) -> Run:
    edits = {
        one.name: (
            edit(case.vectors[one.layer], layer=one.layer, operator="add", dose=one.dose, positions=case.mixed.positions),
        )
        for one in case.mixed.conditions
    }

    def run(new_tokens: int) -> Answers:
        rows = [
            Row(key(condition, prompt), prompt.tokens, edits[condition.name], new_tokens)
            for condition in case.mixed.conditions
            for prompt in case.mixed.prompts
        ]
        return {one.key: Answer(one.tokens, one.finished) for one in engine.generate(rows) if isinstance(one, Generated)}

    return run


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """The model's `generate` for prompts that are not on its device yet."""

    lm: LanguageModel

    def generate(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor,
        max_new_tokens: int,
        do_sample: bool,
        pad_token_id: int,
        eos_token_id: list[int],
    ) -> Tensor:
        return self.lm.model.generate(
            ids.to(self.lm.device),
            attention_mask=attention_mask.to(self.lm.device),
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id or None,
        )


def _adding(push: Tensor) -> Callable[[Any, Any, Any], Any]:
    """A hook that adds to the last position: the last prompt token, then every new one."""

    def add(_block: Any, _inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        stream[:, -1] += push
        return output

    return add


def _collected(manager: Any, n_requests: int) -> dict[str, tuple[int, ...]]:
    """The new tokens of all requests, by the manager's name of each."""
    done: dict[str, tuple[int, ...]] = {}
    while len(done) < n_requests:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError(f"continuous batching stopped: {manager.background_thread_status.fatal_error}")
        elif result.error is not None:
            raise RuntimeError(result.error)
        elif result.is_finished():
            done[result.request_id] = tuple(result.generated_tokens)
    return done
