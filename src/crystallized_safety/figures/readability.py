"""The readability figure: AUROC by layer, above what the text alone gives away.

What this module does not know: how a direction was estimated, or which layers were searched and not reported.
"""

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crystallized_safety.figures.rendering import BLUE, GREEN, INK, VERMILLION, house_style, new_figure, note
from crystallized_safety.records import LayerAuroc, Readability, Summary

__all__ = ["position_name", "readability_figure"]

_SERIES = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"))


class _Level(NamedTuple):
    """A horizontal line and the words beside it."""

    height: float
    text: str
    style: str


def position_name(position: int, reading: Readability) -> str:
    """Name a template position: −1 is the last prompt token, the earliest one measured the last instruction token."""
    if position == -1:
        return "last prompt token (−1)"
    earliest = min(point.position for point in reading.layers)
    return f"last instruction token (−{-position})" if position == earliest else f"template token (−{-position})"


def readability_figure(summary: Summary) -> Figure:
    """AUROC by layer and template position on held-out matched pairs, with 95 % intervals, chance and confounds."""
    reading = summary.readability
    with house_style():
        figure = new_figure(height=3.5, alternative=_alternative(reading))
        axes = figure.add_subplot()
        for position in sorted({point.position for point in reading.layers}, reverse=True):
            points = [point for point in reading.layers if point.position == position]
            _draw_position(axes, points, name=position_name(position, reading))
        _mark_chosen(axes, reading)
        _draw_levels(axes, reading)
        axes.set_xlabel("layer (block output, 0-based)")
        axes.set_ylabel("AUROC")
        axes.set_title(f"harmful against harmless twin, n = {reading.n_pairs} test pairs", pad=44)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, labelspacing=0.3)
        else:
            note(axes, "no AUROC was measured")
    return figure


def _draw_position(axes: Axes, points: Sequence[LayerAuroc], *, name: str) -> None:
    """One line with its interval band."""
    points = sorted((p for p in points if isfinite(p.auroc)), key=lambda p: p.layer)
    if not points:
        return
    colour, marker = _SERIES[len(axes.get_lines()) % len(_SERIES)]
    layers = [p.layer for p in points]
    if len(points) == 1:
        axes.vlines(layers, [points[0].low], [points[0].high], color=colour, linewidth=1.4)
    else:
        axes.fill_between(layers, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.2, lw=0)
    axes.plot(layers, [p.auroc for p in points], color=colour, marker=marker, ms=3.2, lw=1.4, label=name)


def _mark_chosen(axes: Axes, reading: Readability) -> None:
    """Ring the layer and position that the select split chose."""
    best = chosen(reading)
    if best is None or not isfinite(best.auroc):
        return
    interval = f"{best.low:.2f}, {best.high:.2f}" if isfinite(best.low) and isfinite(best.high) else "no interval"
    label = f"chosen: layer {best.layer}, {best.auroc:.2f} [{interval}]"
    axes.plot([best.layer], [best.auroc], "o", ms=10, mfc="none", mec=INK, mew=1.2, ls="none", label=label)


def chosen(reading: Readability) -> LayerAuroc | None:
    """Find the point at the chosen layer and position, None if it was not measured."""
    wanted = (reading.best_layer, reading.best_position)
    return next((p for p in reading.layers if (p.layer, p.position) == wanted), None)


def _draw_levels(axes: Axes, reading: Readability) -> None:
    """Chance, the threshold and each text-only baseline, with labels in the margin that do not touch."""
    levels = [_Level(0.5, "chance 0.50", ":"), _Level(0.8, "✓ needs 0.80", "-")]
    levels += [_Level(v, f"{_short(k)} {v:.2f}"[:30], "--") for k, v in reading.confounds.items() if isfinite(v)]
    levels.sort()
    drawn = [p.low for p in reading.layers if isfinite(p.low)] + [level.height for level in levels]
    bottom, top = min(0.45, *drawn) - 0.01, 1.01
    axes.set_ylim(bottom, top)
    heights = _spread([level.height for level in levels], gap=(top - bottom) * 0.068, top=top)
    for level, height in zip(levels, heights, strict=True):
        axes.axhline(level.height, color=INK, ls=level.style, lw=0.8, alpha=0.6, zorder=0)
        axes.annotate(
            level.text,
            xy=(1.0, level.height),
            xytext=(1.035, height),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def _short(name: str) -> str:
    """Cut a baseline's name where the margin ends."""
    return name if len(name) <= 18 else name[:17] + "…"


def _spread(heights: Sequence[float], *, gap: float, top: float) -> list[float]:
    """Sorted heights pushed apart to at least `gap`: upwards first, then down from `top`."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = top
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _alternative(reading: Readability) -> str:
    best = chosen(reading)
    text = f"Line chart of AUROC by layer on {reading.n_pairs} held-out matched pairs."
    if best is not None and isfinite(best.auroc + best.low + best.high):
        text += (
            f" At the chosen layer {best.layer}, {position_name(best.position, reading)}, it is {best.auroc:.3f},"
            f" 95 % interval {best.low:.3f} to {best.high:.3f}."
        )
    if reading.confounds:
        text += " Text-only baselines: " + ", ".join(f"{k} {v:.2f}" for k, v in reading.confounds.items()) + "."
    return text
