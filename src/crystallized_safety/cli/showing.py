"""What the terminal shows while a command works: one line of progress, one line a step.

What this module does not know: what is being done.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

if TYPE_CHECKING:
    from crystallized_safety.study import Progress

__all__ = ["progress_bar", "say"]


def say(line: str) -> None:
    """One line on stderr that leaves the progress bar whole."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def progress_bar() -> Iterator["_Tell"]:
    """A bar that is told of progress, and tells the time left."""
    with tqdm(
        total=1,
        desc="load",
        smoothing=0.05,
        delay=0.001,  # nothing is shown before the first progress, so that an error of the user stands alone
        bar_format="{desc}: {percentage:3.0f}% |{bar:24}| {n:.0f}/{total:.0f} rows, {remaining} left",
    ) as bar:
        yield _Tell(bar)


class _Tell:
    """Shows progress; the time left is the work left over the rate so far."""

    def __init__(self, bar: "tqdm[NoReturn]") -> None:
        self._bar = bar

    def __call__(self, at: "Progress") -> None:
        self._bar.total = at.total
        self._bar.set_description_str(at.stage, refresh=False)
        self._bar.update(at.done - self._bar.n)
