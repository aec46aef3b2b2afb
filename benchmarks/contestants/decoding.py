"""Three ways to decode the same rows with a model that is on the device: plain, transformers' continuous batching, ours.

Each opens as a context manager on a model, a `Case` and somewhere to report what is worth a note, and gives a function of the
number of new tokens, so that what is set up once can be left out of a timing. What this module does not know: time, rooflines,
tables.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.contestants.plain import by_condition
from benchmarks.prepare import conditions, layers
from benchmarks.work import Answer, Answers, Condition, Prompt, Work, key
from crystallized_safety.engines import Generated, Row, TransformersEngine
from crystallized_safety.interventions import edit
from crystallized_safety.models import LanguageModel

__all__ = ["HEAD", "Case", "Report", "Run", "captured_graphs", "cases", "continuous", "ours", "plain"]

Run = Callable[[int], Answers]
"""Number of new tokens → the answers of all rows."""

Report = Callable[[str], None]

_PAGE = 256
"""Tokens in one page of transformers' paged cache, its own default; a row takes whole pages."""
_MOST_BATCH_TOKENS = 8192
"""Tokens in one pass of transformers' continuous batching, its own default."""
HEAD = 24
"""Tokens that all prompts begin with, as a chat template does."""


@dataclass(frozen=True, eq=False)
class Case:
    """Rows to decode, `batch` together: the same number of rows cut in two ways.

    `whole` has few conditions of `batch` prompts each, one batch per condition; `mixed` has many conditions of fewer prompts,
    whose rows must be mixed to fill a batch. The first conditions of the first prompts are in both. `vectors` are [d_model] by
    layer.
    """

    batch: int
    whole: Work
    mixed: Work
    vectors: Mapping[int, Tensor]


def cases(
    lm: LanguageModel,
    batches: Sequence[int],
    *,
    rounds: int,
    prompt_tokens: int,
    new_tokens: int,
    n_layers: int,
) -> Iterator[Case]:
    """For each batch size `rounds` × batch rows; a condition has as many prompts as the smallest batch has rows."""
    drawn, n_prompts, vocabulary = random.Random(0), min(batches), lm.model.config.vocab_size
    head, *tails = (
        tuple(drawn.randrange(2, vocabulary) for _ in range(length))
        for length in (HEAD, *[prompt_tokens - HEAD] * max(batches))
    )
    prompts = tuple(Prompt(f"prompt {index}", (*head, *tail)) for index, tail in enumerate(tails))
    chosen = sorted(set(layers(lm.n_layers, n_layers)))
    generator = torch.Generator().manual_seed(0)
    vectors = {one: torch.randn(lm.d_model, generator=generator) / math.sqrt(lm.d_model) for one in chosen}
    for batch in batches:
        n_conditions = rounds * batch // n_prompts
        doses = [0.5 * (1 + index) for index in range(-(-n_conditions // len(chosen)))]
        _, *steered = conditions(chosen, doses)
        whole = Work(
            model=lm.name,
            n_layers=lm.n_layers,
            positions="last-prompt-token-on",
            prompts=prompts[:batch],
            conditions=tuple(steered[:rounds]),
            new_tokens=new_tokens,
            stop_ids=(),
            pad_id=lm.pad_id,
            threads=torch.get_num_threads(),
        )
        mixed = replace(whole, prompts=prompts[:n_prompts], conditions=tuple(steered[:n_conditions]))
        yield Case(batch, whole, mixed, vectors)


@contextmanager
def plain(lm: LanguageModel, case: Case, _report: Report) -> Iterator[Run]:
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
def continuous(lm: LanguageModel, case: Case, report: Report) -> Iterator[Run]:
    """Continuous batching by transformers, of the same prompts but unsteered: it has no place for a condition of a row.

    One manager serves all runs; its cache holds a quarter more than the batch needs, because it stops taking in at 85 %. It
    turns to flash attention where that is installed, which `report` is told. RuntimeError with its own words where a row fails.
    """
    longest = len(case.mixed.prompts[0].tokens) + case.mixed.new_tokens
    settings = ContinuousBatchingConfig(
        num_blocks=math.ceil(1.25 * case.batch * math.ceil(longest / _PAGE)) + 1,
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
            report(f"attention: {lm.model.config._attn_implementation}")
            yield run
    finally:  # its own restoring does not happen where it fails while it is being made
        if lm.model.config._attn_implementation != attention:
            lm.model.set_attn_implementation(attention)


@contextmanager
def ours(lm: LanguageModel, case: Case, report: Report) -> Iterator[Run]:
    """One queue of all rows of all conditions."""
    yield _engine_run(case, TransformersEngine(lm, batch_size=case.batch, report=report))


@contextmanager
def captured_graphs(lm: LanguageModel, case: Case, report: Report) -> Iterator[Run]:
    """As `ours`, with decode steps that are captured as CUDA graphs."""
    yield _engine_run(case, TransformersEngine(lm, batch_size=case.batch, report=report, graphs=True))


def _engine_run(case: Case, engine: TransformersEngine) -> Run:
    edits = {
        one.name: (
            edit(
                case.vectors[one.layer], layer=one.layer, operator="add", dose=one.dose, positions=case.mixed.positions
            ),
        )
        for one in case.mixed.conditions
    }

    def run(new_tokens: int) -> Answers:
        rows = [
            Row(key(condition, prompt), prompt.tokens, edits[condition.name], new_tokens)
            for condition in case.mixed.conditions
            for prompt in case.mixed.prompts
        ]
        return {
            one.key: Answer(one.tokens, one.finished) for one in engine.generate(rows) if isinstance(one, Generated)
        }

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
