"""How far a study is, in rows, so that whoever watches can tell the time left from the rate so far.

What this module does not know: how progress is shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["RECORDED_UNITS", "Meter", "Progress", "unheard"]

RECORDED_UNITS = 0.8
"""Recording one prompt costs about this much of generating one row; used for the estimate of the time left only."""


@dataclass(frozen=True)
class Progress:
    """Work done and expected by this process, in rows. `total` falls where work is found done or turns out not needed."""

    stage: str
    done: float
    total: float


class Meter:
    """Counts work in rows and tells it on."""

    def __init__(self, tell: Callable[[Progress], None], units: Mapping[str, float]) -> None:
        self._tell = tell
        self._expected = sum(units.values())
        self._stage = "record"
        self._done = 0.0

    @property
    def worked(self) -> bool:
        """Whether this process recorded or generated anything."""
        return self._done > 0

    def prompts(self, n: int) -> None:
        """Some prompts were recorded."""
        self._add(n * RECORDED_UNITS)

    def row(self) -> None:
        """One row was generated."""
        self._add(1.0)

    def skip(self, units: float) -> None:
        """Some of the expected work was found done."""
        self._expected -= units
        self._add(0.0)

    def enter(self, stage: str) -> None:
        """Another stage begins."""
        self._stage = stage
        self._add(0.0)

    def finish(self) -> None:
        """Nothing is left to do, whatever was expected."""
        self._expected = self._done
        self._add(0.0)

    def _add(self, units: float) -> None:
        self._done += units
        self._tell(Progress(self._stage, self._done, max(self._done, self._expected)))


def unheard(at: Progress) -> None:
    """Progress that nobody watches."""
    del at
