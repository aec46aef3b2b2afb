"""What an engine is given and what it gives back.

What this module does not know: models, text, labels. A row is prompt tokens with the edits that they are read and answered
under; the key is the caller's and comes back untouched.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from crystallized_safety.interventions import Edit

__all__ = ["Engine", "Generated", "Row"]


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt, at least two tokens, under one condition. `edits` is empty for the baseline."""

    key: str
    tokens: tuple[int, ...]
    edits: tuple[Edit, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Generated:
    """The new tokens of a row, without the stop token. `finished` is false where the token limit cut it."""

    key: str
    tokens: tuple[int, ...]
    finished: bool


class Engine(Protocol):
    """Rows of different prompts, layers, doses, operators, vectors and positions go in together."""

    def generate(self, rows: Iterable[Row]) -> Iterator[Generated]:
        """Yield every row once, in the order in which they finish."""
        ...
