"""The stages that generate: calibrate (screen positions and layers, choose dose), test (effect), nulls.

Each stage plans cells, hands them to the sweep at once and turns what comes back into points and effects. What this module
does not know: files, progress, the verdict.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from crystallized_safety.config import Preset, Protocol
from crystallized_safety.controllability import (
    PROMPT_LABEL,
    SIGN,
    Dosed,
    Labelled,
    choose,
    dose_point,
    effect,
)
from crystallized_safety.records import BASELINE, Condition, DosePoint, Effect, Side
from crystallized_safety.study.plan import Pairs
from crystallized_safety.sweep import Cell, FinishedCell, cell
from crystallized_safety.vectors import SteeringVector

__all__ = [
    "Baseline",
    "Calibration",
    "Lab",
    "Site",
    "baselines_of",
    "calibrate",
    "dose_points",
    "effects_on_test",
    "null_vectors",
]

RunCells = Callable[[Sequence[Cell], Mapping[str, SteeringVector]], Iterable[FinishedCell]]
VectorAt = Callable[[int, int], SteeringVector]


@dataclass(frozen=True)
class Lab:
    """What every stage needs: the constants, how to make a vector, how to run cells."""

    preset: Preset
    protocol: Protocol
    seed: int
    vector_at: VectorAt
    run_cells: RunCells


@dataclass(frozen=True)
class Calibration:
    """Dose points of the calibrate split, the chosen one per side (None where no dose is coherent), its effect there."""

    points: tuple[DosePoint, ...]
    chosen: Mapping[Side, DosePoint | None]
    values: Mapping[Side, float]


def calibrate(lab: Lab, pairs: Pairs, *, layers: Sequence[int], positions: Sequence[int]) -> Calibration:
    """Screen layers × positions at the middle dose, keep the position that moves most, try every dose there, choose."""
    baselines = baselines_of(lab, pairs)
    doses = sorted(lab.preset.kappas)
    middle = doses[len(doses) // 2]
    screen = dose_points(
        lab, pairs, baselines, [Site(side, layer, at, middle) for side in SIGN for layer in layers for at in positions]
    )
    position = max(positions, key=lambda at: _promise(screen, baselines, at))
    rest = [Site(side, layer, position, dose) for side in SIGN for layer in layers for dose in doses if dose != middle]
    swept = dose_points(lab, pairs, baselines, rest)
    found = {side: [one for one in screen[side] if one.position == position] + swept[side] for side in SIGN}
    chosen = {side: choose(found[side], baselines[side].point, lab.protocol) for side in SIGN}
    asked = [
        Site(side, best.layer, position, dose)
        for side, best in chosen.items()
        if best is not None
        for dose in lab.preset.curve_kappas
        if dose not in doses
    ]
    curve = dose_points(lab, pairs, baselines, asked)
    return Calibration(
        points=tuple(
            point for side in SIGN for point in (baselines[side].point, *screen[side], *swept[side], *curve[side])
        ),
        chosen=chosen,
        values={
            side: best.rate.value - baselines[side].point.rate.value
            for side, best in chosen.items()
            if best is not None
        },
    )


def effects_on_test(lab: Lab, pairs: Pairs, calibration: Calibration) -> dict[Side, Effect]:
    """The effect of the chosen dose of each side, once on the test split, next to random directions of the same size."""
    baselines = baselines_of(lab, pairs)
    trials = {side: _trial(lab, pairs, side, point) for side, point in calibration.chosen.items() if point is not None}
    cells = [one for trial in trials.values() for one in (trial.steered, *trial.nulls)]
    vectors = {name: vector for trial in trials.values() for name, vector in trial.vectors.items()}
    done = {one.cell.name: _labelled(one) for one in lab.run_cells(cells, vectors)}
    return {
        side: effect(
            side,
            Dosed(done[trial.steered.name], trial.position, trial.steered.condition.dose, trial.delta),
            baselines[side].cell,
            nulls=[done[one.name] for one in trial.nulls],
            calibrate_value=calibration.values[side],
            protocol=lab.protocol,
            seed=lab.seed,
        )
        for side, trial in trials.items()
    }


@dataclass(frozen=True)
class _Trial:
    """The cells of one side on the test split: the chosen condition, and the same with random directions."""

    steered: Cell
    nulls: tuple[Cell, ...]
    vectors: Mapping[str, SteeringVector]
    position: int
    delta: float


def _trial(lab: Lab, pairs: Pairs, side: Side, point: DosePoint) -> _Trial:
    prompts, kappa = pairs.of(PROMPT_LABEL[side]), point.kappa
    vector, name = lab.vector_at(point.layer, point.position), _name(point.layer, point.position)
    nulls = null_vectors(vector, lab.preset.n_nulls, seed=lab.seed)
    return _Trial(
        steered=cell(_condition(lab, name, point.layer, kappa), prompts, lab.preset.max_new_tokens),
        nulls=tuple(
            cell(_condition(lab, null, point.layer, kappa), prompts[: lab.preset.null_pairs], lab.preset.max_new_tokens)
            for null in nulls
        ),
        vectors={name: vector, **nulls},
        position=point.position,
        delta=point.delta,
    )


def null_vectors(vector: SteeringVector, n: int, *, seed: int) -> dict[str, SteeringVector]:
    """`n` random directions orthogonal to the vector and as long as it (PROTOCOL §1.6, N1), by name."""
    generator = torch.Generator().manual_seed(seed * 1000 + vector.layer)
    direction = torch.nn.functional.normalize(vector.tensor.double(), dim=0)
    vectors = {}
    for index in range(n):
        draw = torch.randn(len(vector), generator=generator, dtype=torch.float64)
        draw -= (draw @ direction) * direction
        tensor = (draw * (vector.gap_norm / draw.norm())).float()
        vectors[f"null{index}-L{vector.layer}p{vector.position}"] = SteeringVector(
            tensor=tensor,
            layer=vector.layer,
            position=vector.position,
            gap_norm=vector.gap_norm,
            residual_norm=vector.residual_norm,
            method="random-orthogonal",
            model=vector.model,
        )
    return vectors


@dataclass(frozen=True)
class Baseline:
    """The unsteered cell of one class."""

    cell: Labelled
    point: DosePoint


def baselines_of(lab: Lab, pairs: Pairs) -> dict[Side, Baseline]:
    """Both classes without intervention."""
    asked = {side: cell(BASELINE, pairs.of(label), lab.preset.max_new_tokens) for side, label in PROMPT_LABEL.items()}
    done = {one.cell.name: _labelled(one) for one in lab.run_cells(list(asked.values()), {})}
    return {
        side: Baseline(found, dose_point(side, Dosed(found, 0, 0.0, 0.0), found, lab.protocol))
        for side, found in ((side, done[one.name]) for side, one in asked.items())
    }


@dataclass(frozen=True)
class Site:
    """Where and how hard to push, for one side; `dose` is |κ|."""

    side: Side
    layer: int
    position: int
    dose: float

    @property
    def kappa(self) -> float:
        """The signed dose."""
        return SIGN[self.side] * self.dose


def dose_points(
    lab: Lab, pairs: Pairs, baselines: Mapping[Side, Baseline], sites: Sequence[Site]
) -> dict[Side, list[DosePoint]]:
    """Dose points of many sites, both sides in one queue of rows."""
    vectors = {_name(one.layer, one.position): lab.vector_at(one.layer, one.position) for one in sites}
    cells = [
        cell(
            _condition(lab, _name(one.layer, one.position), one.layer, one.kappa),
            pairs.of(PROMPT_LABEL[one.side]),
            lab.preset.max_new_tokens,
        )
        for one in sites
    ]
    done = {one.cell.name: _labelled(one) for one in lab.run_cells(cells, vectors)}
    points: dict[Side, list[DosePoint]] = {side: [] for side in SIGN}
    for site, asked in zip(sites, cells, strict=True):
        delta = vectors[_name(site.layer, site.position)].delta(site.kappa)
        dosed = Dosed(done[asked.name], site.position, site.kappa, delta)
        points[site.side].append(dose_point(site.side, dosed, baselines[site.side].cell, lab.protocol))
    return points


def _name(layer: int, position: int) -> str:
    return f"L{layer}p{position}"


def _condition(lab: Lab, vector: str, layer: int, kappa: float) -> Condition:
    return Condition(vector, layer, lab.preset.operator, kappa, lab.preset.positions)


def _labelled(done: FinishedCell) -> Labelled:
    return Labelled(done.cell.condition, done.cell.prompts, tuple(one.label for one in done.judgements))


def _promise(
    screen: Mapping[Side, Sequence[DosePoint]], baselines: Mapping[Side, Baseline], position: int
) -> tuple[float, int]:
    """What a position moves coherently at the middle dose, both sides together; then how many of its doses are coherent."""
    reach, n_coherent = 0.0, 0
    for side, points in screen.items():
        usable = [one for one in points if one.position == position and one.coherent and one.rate.n]
        reach += max([0.0, *(one.rate.value - baselines[side].point.rate.value for one in usable)])
        n_coherent += len(usable)
    return reach, n_coherent
