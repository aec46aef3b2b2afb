"""The tables of the report as plain text cells. What this module does not know: HTML."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan

from crystallized_safety.figures.readability import position_name
from crystallized_safety.figures.selection import SIDES
from crystallized_safety.records import DosePoint, Effect, LayerAuroc, Summary
from crystallized_safety.report import wording

__all__ = ["Table", "confounds", "doses", "effects", "readability"]

_EFFECT_ROWS: tuple[tuple[str, Callable[[Effect], str]], ...] = (
    ("prompt class", lambda e: e.prompt_label),
    ("counted outcome", lambda e: "coherent compliance" if e.side == "suppress" else "coherent refusal"),
    ("layer, template position", lambda e: f"{e.layer}, −{-e.position}"),
    ("dose κ (δ)", lambda e: f"{wording.number(e.kappa)} ({wording.number(round(e.delta, 3))})"),
    ("baseline rate [95 % CI]", lambda e: wording.rate(e.baseline)),
    ("steered rate [95 % CI]", lambda e: wording.rate(e.steered)),
    ("effect [95 % CI]", lambda e: wording.points_interval(e.value, e.low, e.high)),
    ("prompts gained / lost", lambda e: f"{e.gained} / {e.lost}"),
    ("McNemar p (exact)", lambda e: wording.p_value(e.p_mcnemar)),
    ("p against random directions", lambda e: _null(e)),
    ("effect on the prompts of the nulls", lambda e: wording.points(e.null_value)),
    ("strongest random direction", lambda e: wording.points(max(e.null_effects, default=nan))),
    ("minimum detectable effect", lambda e: wording.points(e.mde).lstrip("+")),
    ("headroom at baseline", lambda e: wording.points(e.headroom).lstrip("+")),
    ("calibrate minus test", lambda e: wording.points(e.calibrate_value - e.value)),
    ("inside the coherent window", lambda e: "yes" if e.coherent else "no"),
)


@dataclass(frozen=True)
class Table:
    """A caption, the column heads, and rows whose first cell is the row's head."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def effects(summary: Summary) -> Table:
    """One column a side, one row a quantity: it stays readable on a phone."""
    shown = [summary.effects[side] for side in SIDES if side in summary.effects]
    rows = tuple((name, *(cell(effect) for effect in shown)) for name, cell in _EFFECT_ROWS)
    head = ("", *(f"{e.side} ({'−' if e.side == 'suppress' else '+'}κ)" for e in shown))
    return Table("Effects on the test split", head, rows if shown else ())


def _null(effect: Effect) -> str:
    if effect.p_null is None:
        return "no null was drawn"
    return f"{wording.p_value(effect.p_null)} (K = {len(effect.null_effects)})"


def readability(summary: Summary) -> Table:
    """Give the best layer of each template position by the select split, with its AUROC on the test split."""
    reading = summary.readability
    rows = []
    for position in sorted({p.position for p in reading.layers}, reverse=True):
        points = [p for p in reading.layers if p.position == position]
        best = max(points, key=lambda p: _selection_rank(p, chosen=(reading.best_layer, reading.best_position)))
        mark = "yes" if (best.layer, position) == (reading.best_layer, reading.best_position) else "no"
        test = wording.auroc(best.auroc, best.low, best.high)
        select = wording.plain(best.selection_auroc)
        rows.append((position_name(position, reading), str(best.layer), test, select, mark))
    head = ("template position", "best layer", "test AUROC [95 % CI]", "select AUROC", "chosen")
    return Table(f"Readability, n = {reading.n_pairs} matched test pairs", head, tuple(rows))


def _selection_rank(point: LayerAuroc, *, chosen: tuple[int, int]) -> tuple[bool, float, int]:
    """Rank the run's own choice first; elsewhere the best AUROC on the select split, never on test; ties to the early layer."""
    value = point.selection_auroc
    return ((point.layer, point.position) == chosen, value if isfinite(value) else -1.0, -point.layer)


def confounds(summary: Summary) -> Table:
    """Tell what the text alone gives away on the same pairs."""
    reading = summary.readability
    rows = tuple((name, wording.plain(value)) for name, value in reading.confounds.items())
    gain = wording.signed_interval(reading.gain, reading.gain_low, reading.gain_high)
    rows += (("direction minus best baseline", gain),)
    return Table(f"Text-only baselines, n = {reading.n_pairs} pairs", ("baseline", "AUROC [95 % CI]"), rows)


def doses(summary: Summary) -> Table:
    """Every dose point that was measured."""
    head = (
        "prompts",
        "split",
        "layer",
        "position",
        "κ",
        "δ",
        "outcome",
        "rate [95 % CI] (count/n)",
        "refuse",
        "comply",
        "evade",
        "degenerate",
        "unscored",
        "coherent",
    )
    return Table("All dose points", head, tuple(_dose_row(point) for point in summary.doses))


def _dose_row(point: DosePoint) -> tuple[str, ...]:
    labels = ("refuse", "comply", "evade", "degenerate", "unscored")
    counts = {str(label): count for label, count in point.labels.items()}
    return (
        point.prompt_label,
        point.split,
        str(point.layer),
        wording.number(point.position),
        wording.number(point.kappa),
        wording.number(round(point.delta, 3)),
        point.outcome,
        wording.rate(point.rate),
        *(str(counts.get(label, 0)) for label in labels),
        "yes" if point.coherent else "no",
    )
