"""Figures over the dose κ: the outcome each side steers towards, and the shares of all labels.

What this module does not know: which dose is good; `Summary.effects` holds that choice.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crystallized_safety.figures.rendering import (
    BLUE,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    house_style,
    new_figure,
    note,
)
from crystallized_safety.figures.selection import SIDES, Panel, at_site, by_kappa, panel, widest_split
from crystallized_safety.records import DosePoint, Label, PromptLabel, Rate, Summary

__all__ = ["dose_response_figure", "label_shares_figure"]

_COLOUR: dict[str, str] = {"suppress": VERMILLION, "enhance": BLUE}
_WORDS: dict[str, str] = {"suppress": "coherent compliance", "enhance": "coherent refusal"}
_LABELS: dict[Label, tuple[str, float]] = {
    "refuse": (BLUE, 1.0),
    "comply": (ORANGE, 1.0),
    "evade": (SKY, 1.0),
    "degenerate": (INK, 0.5),
    "unscored": ("none", 1.0),
}
_CLASSES: tuple[PromptLabel, ...] = ("harmful", "harmless", "borderline", "neutral")


def dose_response_figure(summary: Summary) -> Figure:
    """Coherent compliance for κ ≤ 0 and coherent refusal for κ ≥ 0 at the chosen layers, with intervals and n."""
    panels = [panel(summary, side) for side in SIDES]
    with house_style():
        figure = new_figure(height=5.8, alternative=" ".join(_describe(p) for p in panels))
        for axes, shown in zip(figure.subplots(2, 1), panels, strict=True):
            _draw_panel(axes, shown)
        axes.set_xlabel("κ, the dose in gap units")
    return figure


def _draw_panel(axes: Axes, shown: Panel) -> None:
    colour = _COLOUR[shown.side]
    axes.set_title(f"{shown.side}: {shown.prompt_label} prompts, layer {shown.layer}, token −{-shown.position}", pad=44)
    axes.set_ylabel(_WORDS[shown.side])
    axes.set_ylim(-0.03, 1.03)
    kappas = [0.0, *(p.kappa for p in shown.sweep)]
    margin = 0.05 * (max(kappas) - min(kappas) or 1.0)
    axes.set_xlim(min(kappas) - margin, max(kappas) + margin)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}".replace("%", " %"))
    if not shown.sweep:
        axes.set_xticks([])
        note(axes, "no dose was measured on this side")
        return
    _draw_window(axes, shown)
    for index, points in enumerate(shown.others):
        label = f"other layers or tokens ({len(shown.others)})" if index == 0 else None
        scored = [(p.kappa, p.rate.value) for p in points if p.rate.n]
        axes.plot(*_columns(scored), color=INK, alpha=0.35, lw=0.8, label=label, zorder=1)
    _draw_points(axes, shown.sweep, colour=colour, marker="o")
    _draw_points(axes, shown.test, colour=INK, marker="D")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3, columnspacing=1.2, handlelength=1.6
    )


def _draw_window(axes: Axes, shown: Panel) -> None:
    """Shade the doses at which the text stays coherent."""
    end = shown.coherent_end
    if end is None:
        axes.plot([], [], " ", label="no coherent dose")
    else:
        axes.axvspan(min(0.0, end), max(0.0, end), color=INK, alpha=0.07, lw=0, label="coherent window", zorder=0)


def _draw_points(axes: Axes, points: Sequence[DosePoint], *, colour: str, marker: str) -> None:
    """Points with Wilson intervals; hollow outside the coherent window. The sweep (circles) is joined by a line."""
    scored = [p for p in points if p.rate.n]
    for p in points:
        if not p.rate.n:
            axes.text(p.kappa, 0.02, "n = 0", ha="center", fontsize=7.5)
    if not scored:
        return
    kappas, values = _columns([(p.kappa, p.rate.value) for p in scored])
    nudge = 0.0 if marker == "o" else (axes.get_xlim()[1] - axes.get_xlim()[0]) * 0.012
    shifted = [kappa + nudge for kappa in kappas]
    axes.vlines(shifted, [p.rate.low for p in scored], [p.rate.high for p in scored], color=colour, lw=1.1, zorder=3)
    if marker == "o":
        axes.plot(kappas, values, color=colour, lw=1.4, zorder=2)
    label = f"{scored[0].split}, {_n_range([p.rate for p in scored])}"
    for coherent in (True, False):
        some = [(k, v) for k, v, p in zip(shifted, values, scored, strict=True) if p.coherent is coherent]
        face, text = (colour, label) if coherent else ("none", "hollow: not coherent")
        if some:
            axes.plot(*_columns(some), marker, color=colour, mfc=face, label=text, ms=5, mew=1.2, ls="none", zorder=4)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _n_range(rates: Sequence[Rate]) -> str:
    low, high = min(rate.n for rate in rates), max(rate.n for rate in rates)
    return f"n = {low}" if low == high else f"n = {low}–{high}"


def _describe(shown: Panel) -> str:
    words = f"{_WORDS[shown.side].capitalize()} of {shown.prompt_label} prompts at layer {shown.layer} by dose"
    rates = [(p.kappa, p.rate) for p in shown.sweep]
    said = [f"{r.value:.0%} at κ {kappa:g} (n = {r.n})" for kappa, r in rates if r.n]
    end = shown.coherent_end
    window = "No dose is coherent." if end is None else f"Coherent up to κ {end:g}."
    return f"{words}: {', '.join(said) or 'not measured'}. {window}"


def label_shares_figure(summary: Summary) -> Figure:
    """Stacked shares of the five labels by κ, one panel a prompt class, with n over each bar."""
    classes = _classes(summary)
    with house_style():
        figure = new_figure(height=0.7 + 2.1 * len(classes), alternative=_describe_shares(classes))
        grid = figure.subplots(len(classes), 1, squeeze=False)[:, 0]
        for axes, (prompt_label, points) in zip(grid, classes.items(), strict=True):
            _draw_shares(axes, points)
            layer = f", layer {max(points, key=lambda p: abs(p.kappa)).layer}" if points else ""
            axes.set_title(f"{prompt_label} prompts{layer} (n over each bar)", pad=14)
        axes.set_xlabel("κ, the dose in gap units")
        handles, names = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, names, loc="outside upper left", ncols=5, columnspacing=0.9, handlelength=1, handletextpad=0.5
            )
    return figure


def _classes(summary: Summary) -> dict[PromptLabel, tuple[DosePoint, ...]]:
    """Collect for each prompt class the points of both half-axes at its chosen layer and position."""
    panels = [panel(summary, side) for side in SIDES]
    sites = {shown.prompt_label: (shown.layer, shown.position) for shown in reversed(panels)}
    present = [name for name in _CLASSES if any(p.prompt_label == name for p in summary.doses)]
    classes: dict[PromptLabel, tuple[DosePoint, ...]] = {}
    for name in present or ["harmful"]:
        site = sites.get(name, (panels[0].layer, panels[0].position))
        here = at_site([p for p in summary.doses if p.prompt_label == name], site)
        classes[name] = by_kappa(p for p in here if p.split == widest_split(here))
    return classes


def _draw_shares(axes: Axes, points: Sequence[DosePoint]) -> None:
    """One bar a dose, its labels stacked in a fixed order."""
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}".replace("%", " %"))
    axes.set_ylabel("share of prompts")
    if not points:
        axes.set_xticks([])
        note(axes, "no dose was measured")
        return
    totals = [sum(p.labels.values()) for p in points]
    bottom = [0.0] * len(points)
    for label, (colour, alpha) in _LABELS.items():
        shares = [p.labels.get(label, 0) / total if total else 0.0 for p, total in zip(points, totals, strict=True)]
        bars = axes.bar(range(len(points)), shares, 0.78, bottom=bottom, label=label, alpha=alpha, color=colour)
        for bar in bars:
            bar.set(edgecolor=INK, linewidth=0.5)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    for index, total in enumerate(totals):
        axes.text(index, 1.015, str(total), ha="center", va="bottom", fontsize=7.5)
    axes.set_xticks(range(len(points)), [f"{p.kappa:g}".replace("-", "−") for p in points])


def _describe_shares(classes: dict[PromptLabel, tuple[DosePoint, ...]]) -> str:
    sentences = []
    for prompt_label, points in classes.items():
        doses = f"{len(points)} doses" if len(points) != 1 else "one dose"
        sentences.append(f"Stacked shares of labels for {prompt_label} prompts at {doses}.")
    return " ".join(sentences) + " The table of all doses holds the counts."
