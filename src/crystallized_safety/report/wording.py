"""Numbers and values as words: percent, points, intervals, p values, times, settings.

What this module does not know: HTML, and what a number stands for.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

from crystallized_safety.records import Rate

__all__ = [
    "auroc",
    "duration",
    "megabytes",
    "number",
    "p_value",
    "plain",
    "points",
    "points_interval",
    "rate",
    "settings",
    "signed_interval",
]

_NONE = "—"
_GLUE = "\u00a0"
"""A space at which no line breaks, so that a number keeps its unit and an interval its two ends."""


def number(value: float) -> str:
    """Write a short number with a true minus sign, for example a κ."""
    return f"{value:g}".replace("-", "−") if isfinite(value) else _NONE


def points(value: float) -> str:
    """Write a fraction as signed percentage points."""
    return f"{100 * value:+.1f}{_GLUE}pp".replace("-", "−") if isfinite(value) else _NONE


def points_interval(value: float, low: float, high: float) -> str:
    """Write an effect with its 95 % interval, in percentage points."""
    if not (isfinite(low) and isfinite(high)):
        return f"{points(value)} [no interval]"
    return f"{points(value)} [{100 * low:+.1f},{_GLUE}{100 * high:+.1f}]".replace("-", "−")


def rate(value: Rate) -> str:
    """Write a rate with count, n, 95 % interval, and unscored rows if there are any."""
    unscored = f"; {value.unscored} unscored" if value.unscored else ""
    if not value.n:
        return f"{_NONE} (n = 0{unscored})"
    interval = f"{100 * value.low:.1f},{_GLUE}{100 * value.high:.1f}" if isfinite(value.low) else "no interval"
    return f"{100 * value.value:.1f}{_GLUE}% [{interval}] ({value.count}/{value.n}{unscored})"


def auroc(value: float, low: float, high: float) -> str:
    """Write an AUROC with its 95 % interval."""
    if not isfinite(value):
        return _NONE
    interval = f"{low:.3f},{_GLUE}{high:.3f}" if isfinite(low) and isfinite(high) else "no interval"
    return f"{value:.3f} [{interval}]"


def signed_interval(value: float, low: float, high: float) -> str:
    """Write a difference of two AUROCs with its 95 % interval."""
    if not isfinite(value):
        return _NONE
    interval = f"{low:+.3f},{_GLUE}{high:+.3f}" if isfinite(low) and isfinite(high) else "no interval"
    return f"{value:+.3f} [{interval}]".replace("-", "−")


def plain(value: float) -> str:
    """Write an AUROC that has no interval."""
    return f"{value:.3f}" if isfinite(value) else _NONE


def p_value(value: float | None) -> str:
    """Write a p value, never as zero."""
    if value is None or not isfinite(value):
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    if not isfinite(seconds):
        return _NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        " ".join(f"{amount} {unit}" for amount, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if amount)
        or "0 s"
    )


def megabytes(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def settings(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and texts, in their own order."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from settings(value, f"{name}.")
        else:
            yield name, _setting(value)


def _setting(value: object) -> str:
    if value is None:
        return _NONE
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(_setting(item) for item in value) or _NONE
    return str(value)
