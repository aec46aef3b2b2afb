"""What the repository shows of its own runs: figures and the README's table, from results/published/*/summary.json.

What this module does not know: completions, or how a run is made. Summaries hold labels and rates only.
"""

from collections.abc import Sequence
from pathlib import Path

from crystallized_safety.errors import InputError
from crystallized_safety.figures import svg
from crystallized_safety.records import Effect, Side, Summary
from crystallized_safety.report.folder import FIGURES
from crystallized_safety.store import RunFolder, write_whole
from crystallized_safety.verdict import best

__all__ = ["reproduce"]

_BEGIN, _END = "<!-- results: written by make reproduce -->\n", "<!-- end of results -->\n"
_HEAD = (
    "| Model | Readable | Steerable | AUROC, held-out pairs | Suppress: compliance with harmful prompts | "
    "Enhance: refusal of harmless prompts |\n|---|---|---|---|---|---|\n"
)


def reproduce(root: Path) -> tuple[Path, ...]:
    """Rebuild figures/RUN/*.svg and the table in README.md of a clone; returns what was written.

    Raises RunError for a damaged summary, InputError where the README has lost the marks of the table.
    """
    runs = {
        path.parent.name: RunFolder(path.parent).summary()
        for path in sorted((root / "results" / "published").glob("*/summary.json"))
    }
    written = []
    for name, summary in runs.items():
        for figure, draw in FIGURES.items():
            written.append(root / "figures" / name / f"{figure}.svg")
            write_whole(written[-1], svg(draw(summary), name=figure, standalone=True))
    readme = root / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise InputError(f"'{readme}' must hold the line {_BEGIN.strip()} and the line {_END.strip()}. Put them back.")
    write_whole(readme, before + begin + _table(tuple(runs.values())) + end + after)
    return (*written, readme)


def _table(summaries: Sequence[Summary]) -> str:
    """One line a run, every rate with n and interval, as Markdown."""
    return _HEAD + "".join(_line(summary) for summary in summaries)


def _line(summary: Summary) -> str:
    reading, verdict = best(summary.readability), summary.verdict
    sides = [_cell(side, summary.effects.get(side), verdict.sides[side]) for side in verdict.sides]
    area = f"{reading.auroc:.2f} [{reading.low:.2f}, {reading.high:.2f}], {summary.readability.n_pairs} pairs, layer {reading.layer}"
    name = f"{summary.run['model']} ({summary.run['preset']})"
    return f"| {name} | {verdict.readable} | {verdict.steerable} | {area} | {' | '.join(sides)} |\n"


def _cell(side: Side, effect: Effect | None, word: str) -> str:
    if effect is None:
        return f"{word}: no coherent dose ({side})"
    before, after = effect.baseline, effect.steered
    return (
        f"{word}: {before.value:.0%} → {after.value:.0%}, {100 * effect.value:+.0f} pp [{100 * effect.low:+.0f}, "
        f"{100 * effect.high:+.0f}], n = {after.n}, layer {effect.layer}, κ {effect.kappa:+g}, "
        f"p = {'not drawn' if effect.p_null is None else f'{effect.p_null:.3f}'} ({len(effect.null_effects)} nulls)"
    )
