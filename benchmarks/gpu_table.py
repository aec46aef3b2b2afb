"""What the contestants on a GPU did, as figures and as an aligned text table.

What this module does not know: how to run anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.roofline import Least, Rates
from benchmarks.table import aligned

__all__ = ["Failed", "Result", "table"]


@dataclass(frozen=True)
class Result:
    """One contestant at one batch size. `tokens_per_second` is of decoding, `whole_per_second` with prompts and set-up.

    `equal` is the share of tokens equal to plain generate's, None for who does not steer. `step_seconds` is the time of decoding
    over as many steps as batches of this size need, `least` the roofline's. `notes` is what the contestant had to say.
    """

    contestant: str
    batch: int
    rows: int
    tokens_per_second: float
    whole_per_second: float
    step_seconds: float
    least: Least
    peak_bytes: int
    equal: float | None
    notes: tuple[str, ...]

    @property
    def of_roofline(self) -> float:
        """The least time of a step over the time it took."""
        return self.least.seconds / self.step_seconds


@dataclass(frozen=True)
class Failed:
    """One contestant at one batch size without a measurement, and why."""

    contestant: str
    batch: int
    why: str


def table(results: Sequence[Result | Failed], titles: Mapping[str, str], rates: Rates) -> str:
    """One line per contestant and batch; who has no figures is shown with the reason, notes below.

    Speeds are multiples of plain generate at the smallest batch.
    """
    head = [
        "contestant",
        "batch",
        "tokens/s",
        "speed",
        "with prompts",
        "ms/step",
        "least",
        "bound by",
        "of roofline",
        "= plain",
        "peak GB",
    ]
    done = [one for one in results if isinstance(one, Result)]
    plain = [one for one in done if one.contestant == "plain" and one.batch == min(any_.batch for any_ in results)]
    lines = [_line(one, titles[one.contestant], plain[0] if plain else None) for one in done]
    failed = [f"{titles[one.contestant]}, batch {one.batch}: {one.why}" for one in results if isinstance(one, Failed)]
    notes = {f"{titles[one.contestant]}, batch {one.batch}: {note}": None for one in done for note in one.notes}
    rate = f"matrix products: {rates.flops / 1e12:.3g} TFLOP/s, copies: {rates.bytes / 1e9:.4g} GB/s read and written"
    return "\n".join([aligned([head, *lines]), *failed, *notes, rate])


def _line(one: Result, title: str, base: Result | None) -> list[str]:
    return [
        title,
        str(one.batch),
        f"{one.tokens_per_second:.0f}",
        "–" if base is None else f"{one.tokens_per_second / base.tokens_per_second:.2f}×",
        f"{one.whole_per_second:.0f}",
        f"{1000 * one.step_seconds:.2f}",
        f"{1000 * one.least.seconds:.3g}",
        one.least.bound,
        f"{one.of_roofline:.0%}",
        "–" if one.equal is None else f"{one.equal:.1%}",
        f"{one.peak_bytes / 1e9:.2f}",
    ]
