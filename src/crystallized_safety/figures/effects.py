"""The effects figure: what steering did on the test split, next to what random directions of the same size did.

What this module does not know: how null directions were drawn.
"""

from math import isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystallized_safety.figures.rendering import BLUE, INK, VERMILLION, house_style, new_figure, note
from crystallized_safety.figures.selection import OUTCOME, SIDES
from crystallized_safety.records import Effect, Summary

__all__ = ["effects_figure"]

_COLOUR = {"suppress": VERMILLION, "enhance": BLUE}


def effects_figure(summary: Summary) -> Figure:
    """Draw the effect of each side in percentage points with its 95 % interval, null effects as dots, n in the labels."""
    effects = [summary.effects[side] for side in SIDES if side in summary.effects]
    with house_style():
        figure = new_figure(height=1.4 + 0.85 * max(len(effects), 1), alternative=_describe(effects))
        axes = figure.add_subplot()
        if not effects:
            axes.set_axis_off()
            note(axes, "no effect was measured")
            return figure
        for row, effect in enumerate(effects):
            _draw_effect(axes, row, effect)
        axes.axvline(0, color=INK, lw=0.8)
        axes.axvline(10, color=INK, lw=0.8, ls=":", label="10 pp, smallest of interest")
        axes.set_ylim(len(effects) - 0.5, -0.5)
        axes.set_yticks(range(len(effects)), [_row_label(effect) for effect in effects])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("steered minus baseline, percentage points (test split)")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper left", ncols=2, labelspacing=0.3, columnspacing=1.0
        )
    return figure


def _draw_effect(axes: Axes, row: int, effect: Effect) -> None:
    """One row: nulls below, the effect with its interval above, the calibrate value as a hollow mark."""
    colour = _COLOUR[effect.side]
    nulls = [100 * value for value in effect.null_effects if isfinite(value)]
    if nulls:
        heights = [row + 0.2 + 0.2 * (index * 0.618034 % 1) for index in range(len(nulls))]
        axes.plot(nulls, heights, "o", color=INK, alpha=0.4, ms=2.8, mew=0, ls="none", label="random directions")
    if isfinite(effect.null_value):
        at = [100 * effect.null_value]
        axes.plot(
            at, [row + 0.3], "o", color=colour, mfc="none", ms=5, mew=1.2, ls="none", label="direction, same prompts"
        )
    if isfinite(effect.calibrate_value):
        at = [100 * effect.calibrate_value]
        axes.plot(at, [row], "D", mfc="none", mec=INK, alpha=0.7, ms=5, ls="none", label="calibrate split")
    if isfinite(effect.low) and isfinite(effect.high):
        axes.hlines([row], [100 * effect.low], [100 * effect.high], color=colour, lw=2)
    if isfinite(effect.value):
        face = colour if effect.coherent else "none"
        axes.plot([100 * effect.value], [row], "o", color=colour, mfc=face, ms=7, mew=1.4, ls="none")
    else:
        axes.text(0, row, " not measured", va="center")


def _row_label(effect: Effect) -> str:
    detail = f"layer {effect.layer}, κ {effect.kappa:g}".replace("-", "−")
    return f"{effect.side}: {OUTCOME[effect.side]}\n{effect.prompt_label}, n = {effect.steered.n}\n{detail}"


def _describe(effects: list[Effect]) -> str:
    measured = [e for e in effects if isfinite(e.value + e.low + e.high)]
    sentences = [
        f"The {e.side} side changes coherent {'compliance' if e.side == 'suppress' else 'refusal'} by"
        f" {100 * e.value:+.1f} percentage points, 95 % interval {100 * e.low:+.1f} to {100 * e.high:+.1f},"
        f" n = {e.steered.n}, {len(e.null_effects)} random directions."
        for e in measured
    ]
    return " ".join(sentences) or "No effect was measured."
