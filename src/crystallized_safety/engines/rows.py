"""What an engine is given and what it gives back.

What this module does not know: models, text, labels. A row is prompt tokens with the edits that they are read and answered
under; the key is the caller's and comes back untouched.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from crystallized_safety.interventions import Edit

__all__ = ["Engine", "Generated", "Row", "ScoreRow", "Scored", "Settled"]


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt, at least two tokens, under one condition. `edits` is empty for the baseline.

    Greedy at temperature 0. Above, each token is drawn from softmax(logits / temperature) by the row's own `seed`, so that its
    text does not depend on the batch it was in.
    """

    key: str
    tokens: tuple[int, ...]
    edits: tuple[Edit, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ScoreRow:
    """One prompt under one condition, and continuations whose probability is asked; nothing is generated.

    Every continuation has at least one token; a continuation of one token asks for a next-token probability.
    """

    key: str
    tokens: tuple[int, ...]
    edits: tuple[Edit, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Generated:
    """The new tokens of a row, without the stop token. `finished` is false where the row was cut.

    It is cut by its token limit, or, with `settled`, because its label could no longer change.
    """

    key: str
    tokens: tuple[int, ...]
    finished: bool
    settled: bool = False


@dataclass(frozen=True)
class Scored:
    """Natural log-probability of each token of each continuation, teacher-forced under the row's condition."""

    key: str
    logprobs: tuple[tuple[float, ...], ...]


Settled = Callable[[str, tuple[int, ...]], bool]
"""Says of a row's key and its new tokens so far whether whatever could follow no longer matters."""


class Engine(Protocol):
    """Rows of different prompts, layers, doses, operators, vectors and positions go in together."""

    def generate(self, rows: Iterable[Row | ScoreRow], settled: Settled | None = None) -> Iterator[Generated | Scored]:
        """Yield every row once, in the order in which they finish. Rows that are `settled` stop there."""
        ...
