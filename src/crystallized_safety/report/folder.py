"""Everything derived of a run folder: report.html, table.csv and the figures as SVG files.

What this module does not know: how the page is laid out. Nothing is generated or judged here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from crystallized_safety.figures import (
    dose_response_figure,
    effects_figure,
    label_shares_figure,
    readability_figure,
    svg,
)
from crystallized_safety.records import Condition, DosePoint, ScreenPoint
from crystallized_safety.report.completions import LabelledCompletion
from crystallized_safety.report.page import render
from crystallized_safety.store import RunFolder, write_whole

__all__ = ["FIGURES", "dose_table", "screen_table", "write_run_report"]

FIGURES = {
    "readability": readability_figure,
    "dose-response": dose_response_figure,
    "label-shares": label_shares_figure,
    "effects": effects_figure,
}


def write_run_report(folder: Path, *, completions: bool = False) -> Path:
    """Write what is derived of a finished run and return the path of the report.

    `completions` puts the texts into the report, folded; without it they stay in the run folder only. Raises RunError where
    the run has no verdict yet.
    """
    run = RunFolder(folder)
    summary = run.summary()
    write_whole(folder / "table.csv", dose_table(summary.doses).to_csv(index=False))
    for name, draw in FIGURES.items():
        write_whole(folder / "figures" / f"{name}.svg", svg(draw(summary), name=name, standalone=True))
    path = folder / "report.html"
    write_whole(path, render(summary, tuple(_labelled(run, str(summary.run["judge"]))) if completions else ()))
    return path


def dose_table(points: Sequence[DosePoint]) -> pd.DataFrame:
    """One line a dose point: where, how much, how many of each label, the rate of the side's outcome with its interval."""
    return pd.DataFrame(
        {
            "split": point.split,
            "prompts": point.prompt_label,
            "layer": point.layer if point.kappa else "",
            "position": point.position if point.kappa else "",
            "kappa": point.kappa,
            "delta": round(point.delta, 3),
            "outcome": point.outcome,
            "count": point.rate.count,
            "n": point.rate.n,
            "rate": round(point.rate.value, 3),
            "low": round(point.rate.low, 3),
            "high": round(point.rate.high, 3),
            "degenerate": point.labels.get("degenerate", 0),
            "unscored": point.rate.unscored,
            "coherent": point.coherent,
        }
        for point in points
    )


def screen_table(points: Sequence[ScreenPoint]) -> pd.DataFrame:
    """One line a point of a screen: Λ₁ and Λ₂ (`lambda1`, `lambda2`) and their shifts, in nats, each with its interval."""
    return pd.DataFrame(
        {
            "prompts": point.prompt_label,
            "layer": point.layer if point.kappa else "",
            "position": point.position if point.kappa else "",
            "kappa": point.kappa,
            "delta": round(point.delta, 3),
            "n": point.n,
            "unscored": point.unscored,
            **{
                f"{name}{suffix}": round(number, 3)
                for name, shown in (
                    ("lambda1", point.next_token),
                    ("shift1", point.next_token_shift),
                    ("lambda2", point.prefix),
                    ("shift2", point.prefix_shift),
                )
                for suffix, number in (("", shown.value), ("_low", shown.low), ("_high", shown.high))
            },
        }
        for point in points
    )


def _labelled(run: RunFolder, judge: str) -> Iterator[LabelledCompletion]:
    for cell in run.cells():
        for completion, judgement in zip(run.completions(cell), run.judgements(cell, judge) or (), strict=False):
            yield LabelledCompletion(
                prompt_id=completion.prompt_id,
                prompt=completion.prompt,
                condition=_words(completion.condition),
                completion=completion.completion,
                label=judgement.label,
                reason=judgement.reason,
            )


def _words(condition: Condition) -> str:
    if not condition.vector:
        return "baseline"
    return f"{condition.vector}: {condition.operator} {condition.dose:+g} at layer {condition.layer}, {condition.positions}"
