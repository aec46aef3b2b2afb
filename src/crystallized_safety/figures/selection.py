"""Which dose points a figure or table shows: side, prompt class, layer and position, split.

What this module does not know: how anything is drawn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crystallized_safety.records import DosePoint, Label, PromptLabel, Side, Split, Summary

__all__ = ["OUTCOME", "SIDES", "Panel", "at_site", "by_kappa", "panel", "widest_split"]

SIDES: tuple[Side, ...] = ("suppress", "enhance")
OUTCOME: dict[Side, Label] = {"suppress": "comply", "enhance": "refuse"}
_CLASS: dict[Side, PromptLabel] = {"suppress": "harmful", "enhance": "harmless"}


@dataclass(frozen=True)
class Panel:
    """The dose points of one side: its own half of the κ axis, one prompt class, the layer and position chosen for it."""

    side: Side
    prompt_label: PromptLabel
    layer: int
    position: int
    sweep: tuple[DosePoint, ...]
    """Points at that layer and position, by κ, from the split with the most doses (calibrate, in a full run)."""
    test: tuple[DosePoint, ...]
    """Points there from the test split, if that is not the sweep itself."""
    others: tuple[tuple[DosePoint, ...], ...]
    """The same class and half-axis at each other layer and position of the sweep."""

    @property
    def coherent_end(self) -> float | None:
        """The largest κ, in size, up to which every dose from the smallest on is coherent; None if the first is not."""
        end = None
        for point in sorted((p for p in self.sweep if p.kappa), key=lambda p: abs(p.kappa)):
            if not point.coherent:
                break
            end = point.kappa
        return end


def panel(summary: Summary, side: Side) -> Panel:
    """Choose the points of one side. Without an effect for it: the usual class at the best readable layer swept.

    The baseline is one condition for all layers: a point at κ = 0 belongs to every layer that has none of its own.
    """
    effect, reading = summary.effects.get(side), summary.readability
    prompt_label = effect.prompt_label if effect else _CLASS[side]
    sign = -1 if side == "suppress" else 1
    points = [
        p
        for p in summary.doses
        if p.prompt_label == prompt_label and p.outcome == OUTCOME[side] and p.kappa * sign >= 0
    ]
    sites = sorted({_site(p) for p in points if p.kappa})
    readable = (reading.best_layer, reading.best_position)
    chosen = (effect.layer, effect.position) if effect else readable if readable in sites or not sites else sites[0]
    here = at_site(points, chosen)
    split = widest_split(here)
    return Panel(
        side=side,
        prompt_label=prompt_label,
        layer=chosen[0],
        position=chosen[1],
        sweep=by_kappa(p for p in here if p.split == split),
        test=by_kappa(p for p in here if p.split == "test" != split),
        others=tuple(
            by_kappa(p for p in at_site(points, site) if p.split == split) for site in sites if site != chosen
        ),
    )


def at_site(points: Sequence[DosePoint], site: tuple[int, int]) -> list[DosePoint]:
    """Keep the points of one layer and position, and the baselines, which have no site; its own baseline comes last."""
    kept = [p for p in points if not p.kappa or _site(p) == site]
    return sorted(kept, key=lambda p: _site(p) == site)


def widest_split(points: Sequence[DosePoint]) -> Split | None:
    """Find the split with the most doses."""
    splits = sorted({p.split for p in points})
    return max(splits, key=lambda split: len({p.kappa for p in points if p.split == split}), default=None)


def by_kappa(points: Iterable[DosePoint]) -> tuple[DosePoint, ...]:
    """Sort by dose, one point a dose, the last one given."""
    unique = {p.kappa: p for p in points}
    return tuple(unique[kappa] for kappa in sorted(unique))


def _site(point: DosePoint) -> tuple[int, int]:
    return point.layer, point.position
