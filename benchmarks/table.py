"""What the contestants wrote, as figures and as an aligned text table.

What this module does not know: how to run anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.limit import Parameters, least_seconds, least_tokens
from benchmarks.roster import BASE, OURS, ROSTER
from benchmarks.work import Work

__all__ = ["Figures", "aligned", "figures", "table"]

Told = Mapping[str, Any]
"""The result file of one contestant."""


@dataclass(frozen=True)
class Figures:
    """One contestant's measurement. `seconds` and `tokens` are scaled from the `ran` share of the conditions to all of them.

    `speed` is a multiple of the well-made batch's, `equal` the share of tokens equal to ours, `of_limit` the least time that
    the work can take on this machine over the time it took; None where there is nothing to compare with.
    """

    ran: float
    batch_size: int | None
    seconds: float
    rows_per_second: float
    tokens: float
    tokens_per_second: float
    peak_bytes: int
    speed: float | None
    equal: float | None
    of_limit: float
    flops_per_second: float
    versions: Mapping[str, str]


def figures(name: str, told: Mapping[str, Told | str], work: Work, parameters: Parameters) -> Figures:
    """The figures of the contestant `name`, which did not fail."""
    mine = told[name]
    if isinstance(mine, str):
        raise TypeError(f"'{name}' must have a result, but it failed: {mine}")
    ran, seconds = _ran(mine, work), _scaled(mine, work)
    tokens = sum(len(row["tokens"]) + row["finished"] for row in mine["answers"].values()) / ran
    least = least_seconds(least_tokens(work, tokens), parameters, mine["flops_per_second"])
    base, ours = told.get(BASE), told.get(OURS)
    return Figures(
        ran=ran,
        batch_size=mine["batch_size"],
        seconds=seconds,
        rows_per_second=len(work) / seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        peak_bytes=mine["peak_bytes"],
        speed=None if base is None or isinstance(base, str) else _scaled(base, work) / seconds,
        equal=None if ours is None or isinstance(ours, str) else _equal(mine, ours, prefix=ROSTER[name].prefix),
        of_limit=least / seconds,
        flops_per_second=mine["flops_per_second"],
        versions=mine["versions"],
    )


def table(told: Mapping[str, Told | str], work: Work, parameters: Parameters) -> str:
    """One line per contestant; who failed is shown with the reason."""
    head = ["contestant", "ran", "batch", "seconds", "rows/s", "tokens/s", "peak GB", "speed", "= ours", "of limit"]
    lines = [
        _line(name, figures(name, told, work, parameters)) for name, one in told.items() if not isinstance(one, str)
    ]
    failed = [f"{ROSTER[name].title}: {one}" for name, one in told.items() if isinstance(one, str)]
    title = (
        f"{work.model}, {work.positions}: {len(work.prompts)} prompts × {len(work.conditions)} conditions × "
        f"{work.new_tokens} new tokens, {work.threads} threads"
    )
    rates = [one["flops_per_second"] for one in told.values() if not isinstance(one, str)]
    rate = f"matrix products: {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s" if rates else ""
    return "\n".join(filter(None, [title, aligned([head, *lines]) if lines else "", *failed, rate]))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _line(name: str, one: Figures) -> list[str]:
    package = ROSTER[name].package
    made_with = one.versions[name] if package == name else f"transformers {one.versions['transformers']}"
    return [
        f"{ROSTER[name].title} ({made_with})" if package else ROSTER[name].title,
        f"{one.ran:.0%}",
        "own" if one.batch_size is None else str(one.batch_size),
        f"{one.seconds:.1f}",
        f"{one.rows_per_second:.2f}",
        f"{one.tokens_per_second:.1f}",
        f"{one.peak_bytes / 1e9:.2f}",
        "–" if one.speed is None else f"{one.speed:.2f}×",
        "–" if one.equal is None else f"{one.equal:.1%}",
        f"{one.of_limit:.0%}",
    ]


def _ran(told: Told, work: Work) -> float:
    return float(told["n_conditions"] / len(work.conditions))


def _scaled(told: Told, work: Work) -> float:
    return float(told["seconds"]) / _ran(told, work)


def _equal(told: Told, ours: Told, *, prefix: bool) -> float | None:
    """The share of positions, of the longer row unless `prefix`, where both rows have the same token; a stop counts as one."""
    same = places = 0
    for row, answer in told["answers"].items():
        if (other := ours["answers"].get(row)) is None:
            continue
        left, right = _with_stop(answer), _with_stop(other)
        same += sum(one == another for one, another in zip(left, right, strict=False))
        places += len(left) if prefix else max(len(left), len(right))
    return same / places if places else None


def _with_stop(answer: Mapping[str, Any]) -> list[int]:
    return [*answer["tokens"], *([-1] if answer["finished"] else [])]
