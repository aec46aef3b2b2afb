"""Log-odds of refusal at many layers and doses on the calibrate split, before a token is generated.

Every prompt under every condition is one row that asks how likely the openers of configs/openers.yaml are. What this module
does not know: whether the log-odds of this model tell what it will write (the full protocol asks for that first), how the
table is shown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
import torch
from numpy.typing import NDArray

from crystallized_safety.config import Openers, load_openers
from crystallized_safety.engines import Scored, ScoreRow, TransformersEngine
from crystallized_safety.errors import InputError
from crystallized_safety.log_odds import next_token_log_odds, prefix_contrast
from crystallized_safety.models import LanguageModel, chat_tokens, silent
from crystallized_safety.models.chat import PLAIN_TEMPLATE
from crystallized_safety.records import (
    BASELINE,
    Condition,
    Interval,
    OpenerScores,
    Prompt,
    PromptLabel,
    ScreenPoint,
)
from crystallized_safety.statistics import mean_intervals
from crystallized_safety.study.grid import Bench, Grid, SweepConfig, grid_of
from crystallized_safety.study.progress import Progress, unheard
from crystallized_safety.sweep import edits_under
from crystallized_safety.vectors import SteeringVector

__all__ = ["run_screen"]

_CLASSES: tuple[PromptLabel, ...] = ("harmful", "harmless")
_Held = dict[tuple[Condition, str], OpenerScores]


def run_screen(
    config: SweepConfig,
    *,
    report: Callable[[str], None] = silent,
    progress: Callable[[Progress], None] = unheard,
) -> tuple[ScreenPoint, ...]:
    """Both prompt classes without steering and at every layer × signed dose, in one queue of rows; nothing is generated.

    A point has Λ₁, the log-odds that the first token is in T_ref, and Λ₂, refusal openers against compliance openers per token
    (PROTOCOL §1.1), as means with 95 % intervals of a bootstrap over clusters, and how far each moved from κ = 0 on the
    same prompts, in nats. T_ref is here every token that begins a refusal opener and no compliance opener; choosing it by
    the first tokens of refusals that were observed belongs to the full protocol. With the positions `generated` of a
    preset Λ₁ cannot move, since no edit acts before the first token is chosen.

    Rows on disk are read, not computed again. Raises, before anything is written, InputError where no dose or no token of
    T_ref is left, ModelError for a layer or position that the model does not have; RunError for a folder of another run.
    """
    openers = load_openers()
    grid = grid_of(config, report)
    asked = _asked(grid.lm, openers)
    about = {
        "openers_sha256": openers.sha256(),
        "refusal_tokens": [asked.openers[index][0] for index in asked.starts],
        "decoding": "teacher-forced",
        "judge": "log-odds",
    }
    bench = grid.open("screen", classes_a_dose=len(_CLASSES), asked=about, progress=progress)
    vectors = {f"L{layer}": bench.recorded.vector(grid.lm, layer, config.position) for layer in grid.layers}
    conditions = _conditions(grid)
    held = _score(grid, bench, asked, conditions, vectors=vectors, report=report)
    bench.meter.finish()
    return tuple(
        point
        for label in _CLASSES
        for point in _points(grid, label, conditions, vectors=vectors, log_odds=_log_odds_of(held, asked))
    )


def _conditions(grid: Grid) -> tuple[Condition, ...]:
    """No steering, then every layer × dose."""
    steered = (
        Condition(f"L{layer}", layer, grid.preset.operator, kappa, grid.preset.positions)
        for layer in grid.layers
        for kappa in grid.doses
    )
    return BASELINE, *steered


@dataclass(frozen=True)
class _Asked:
    """What every row is asked: the openers as tokens, refusal first, and the rounding of the answer near probability 1."""

    openers: tuple[tuple[int, ...], ...]
    n_refusal: int
    starts: tuple[int, ...]
    """For each token of T_ref, one opener that begins with it."""
    resolution: float


def _asked(lm: LanguageModel, openers: Openers) -> _Asked:
    refusal, compliance = (
        [_answer_tokens(lm, text) for text in side] for side in (openers.refusal, openers.compliance)
    )
    shared = {tokens[0] for tokens in compliance}
    starts = {tokens[0]: index for index, tokens in reversed([*enumerate(refusal)]) if tokens[0] not in shared}
    if not starts:
        raise InputError(
            f"A refusal opener must begin with a token that no compliance opener begins with, but for the tokenizer of "
            f"'{lm.name}' none of {len(refusal)} does. Change configs/openers.yaml."
        )
    wide = torch.promote_types(lm.dtype, torch.float32)
    return _Asked((*refusal, *compliance), len(refusal), tuple(sorted(starts.values())), torch.finfo(wide).eps)


def _answer_tokens(lm: LanguageModel, text: str) -> tuple[int, ...]:
    """Tokens of an answer that begins with `text`, without special tokens; after the plain template's colon comes a space."""
    head = "" if lm.has_chat_template else PLAIN_TEMPLATE.format(prompt="")
    before, whole = (
        lm.tokenizer(one, add_special_tokens=False)["input_ids"] for one in (head, f"{head} {text}" if head else text)
    )
    return tuple(whole[len(before) :])


def _score(
    grid: Grid,
    bench: Bench,
    asked: _Asked,
    conditions: Sequence[Condition],
    *,
    vectors: Mapping[str, SteeringVector],
    report: Callable[[str], None],
) -> _Held:
    """Every prompt under every condition: what the folder holds, and the rest in one queue, stored as it comes."""
    held: _Held = {(row.condition, row.prompt_id): row for row in bench.folder.scores()}
    rows = [*_missing(grid, asked, conditions, vectors=vectors, held=held)]
    bench.meter.skip(len(conditions) * len(grid.parts.calibrate.both) - len(rows))
    for scored in TransformersEngine(grid.lm, grid.config.study.batch_size, report).generate(rows):
        assert isinstance(scored, Scored)  # noqa: S101 - no row asked for a text
        number, _, prompt_id = scored.key.partition("\n")
        row = OpenerScores(prompt_id, conditions[int(number)], tuple(map(_finite, scored.logprobs)))
        bench.folder.score(row)
        held[row.condition, prompt_id] = row
        bench.meter.row()
    return held


def _missing(
    grid: Grid,
    asked: _Asked,
    conditions: Sequence[Condition],
    *,
    vectors: Mapping[str, SteeringVector],
    held: _Held,
) -> Iterator[ScoreRow]:
    prompts = [(one.id, chat_tokens(grid.lm, one.text)) for one in grid.parts.calibrate.both]
    for number, condition in enumerate(conditions):
        edits = edits_under(condition, vectors)
        for prompt_id, tokens in prompts:
            if (condition, prompt_id) not in held:
                yield ScoreRow(f"{number}\n{prompt_id}", tokens, edits, asked.openers)


def _finite(logprobs: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(one if isfinite(one) else None for one in logprobs)


_LogOdds = Callable[[Condition, Sequence[Prompt]], NDArray[np.float64]]


def _log_odds_of(held: _Held, asked: _Asked) -> _LogOdds:
    """Λ₁ and Λ₂ [2, n_prompts] of some prompts under a condition, nan where the model gave no finite log-probability."""

    def one(row: OpenerScores) -> tuple[float, float]:
        openers = [[nan if token is None else token for token in opener] for opener in row.logprobs]
        if not np.isfinite([token for opener in openers for token in opener]).all():
            return nan, nan
        starts = [openers[index][0] for index in asked.starts]
        return (
            next_token_log_odds(starts, resolution=asked.resolution),
            prefix_contrast(openers[: asked.n_refusal], openers[asked.n_refusal :]),
        )

    return lambda condition, prompts: np.array([one(held[condition, prompt.id]) for prompt in prompts]).T


def _points(
    grid: Grid,
    label: PromptLabel,
    conditions: Sequence[Condition],
    *,
    vectors: Mapping[str, SteeringVector],
    log_odds: _LogOdds,
) -> Iterator[ScreenPoint]:
    """One class under every condition, next to its baseline."""
    prompts = grid.parts.calibrate.of(label)
    baseline = log_odds(BASELINE, prompts)
    for condition in conditions:
        steered = log_odds(condition, prompts)
        scored = np.isfinite(steered[0] - baseline[0])
        quantities = np.vstack([steered, steered - baseline])[:, scored]
        clusters = [prompt.cluster for prompt, kept in zip(prompts, scored, strict=True) if kept]
        intervals = (
            mean_intervals(quantities, clusters, seed=grid.config.study.seed)
            if clusters
            else (Interval(nan, nan, nan),) * len(quantities)
        )
        vector = vectors.get(condition.vector)
        yield ScreenPoint(
            layer=condition.layer,
            kappa=condition.dose,
            delta=vector.delta(condition.dose) if vector else 0.0,
            position=vector.position if vector else 0,
            prompt_label=label,
            n=len(clusters),
            unscored=len(prompts) - len(clusters),
            next_token=intervals[0],
            prefix=intervals[1],
            next_token_shift=intervals[2],
            prefix_shift=intervals[3],
        )
