"""Rows on their way: which token each one reads next, when it ends, and what it then gives back.

A row that generates goes on with one token. A row that scores follows all its continuations at once: those that share their
first tokens are one path until they part. What this module does not know: models, caches, slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from crystallized_safety.engines.rows import Generated, Row, Scored, ScoreRow, Settled

__all__ = ["Ended", "Flight", "begin", "follow", "n_paths"]

Ended = Generated | Scored


@dataclass(frozen=True, eq=False)
class Flight:
    """One path of one row.

    The next step reads `pending` and keeps it at `column` of the row's own tokens, after `n_prefix` positions of the prefix
    that `prefix` names. `new` are the tokens after the prompt so far, `pending` the last of them once there is one.
    """

    row: Row | ScoreRow
    prefix: object
    n_prefix: int
    column: int
    pending: int
    new: tuple[int, ...] = ()
    draws: Float[Tensor, " token"] | None = None
    """Uniform numbers that a sampled row will use, one a token."""
    open: tuple[int, ...] = ()
    """The continuations that this path still follows."""
    logprobs: list[list[float]] = field(default_factory=list)
    """By continuation; shared by all paths of a row."""

    @property
    def position(self) -> int:
        """Place in the text of the token that is read next."""
        return self.n_prefix + self.column


def begin(row: Row | ScoreRow, *, prefix: object, n_prefix: int, column: int) -> Flight:
    """A row about to read its last prompt token, or, with logits at hand, about to choose its first new token."""
    start = Flight(row, prefix, n_prefix, column, row.tokens[-1])
    if isinstance(row, ScoreRow):
        n = len(row.continuations)
        return replace(start, open=tuple(range(n)), logprobs=[[] for _ in range(n)])
    if row.temperature:
        generator = torch.Generator().manual_seed(row.seed)
        return replace(start, draws=torch.rand(row.max_new_tokens, generator=generator, dtype=torch.float64))
    return start


def n_paths(row: Row | ScoreRow) -> int:
    """How many slots the row may come to need."""
    return len(set(row.continuations)) if isinstance(row, ScoreRow) else 1


def follow(
    flights: Sequence[Flight],
    logits: Float[Tensor, "flight vocabulary"],
    *,
    stop_ids: frozenset[int],
    settled: Settled | None,
) -> list[tuple[list[Flight], Ended | None]]:
    """What becomes of each flight once the logits of its next token are known: the paths that go on, and what has ended."""
    chosen = _chosen(flights, logits)
    scored = _scored(flights, logits)
    return [
        _score(flight, scored[index])
        if isinstance(flight.row, ScoreRow)
        else _generate(flight, flight.row, chosen[index], stop_ids, settled)
        for index, flight in enumerate(flights)
    ]


def _chosen(flights: Sequence[Flight], logits: Float[Tensor, "flight vocabulary"]) -> list[int]:
    """The next token of each row that generates: the likeliest one, or the one its own draw falls on."""
    tokens = logits.max(dim=-1).indices  # the first of equals, as argmax, at half the cost on a CPU
    sampled = [index for index, flight in enumerate(flights) if flight.draws is not None]
    if sampled:
        rows: list[Row] = [flight.row for flight in flights if isinstance(flight.row, Row) and flight.draws is not None]
        draws = torch.stack([one.draws[len(one.new)] for one in flights if one.draws is not None]).to(logits.device)
        heat = torch.tensor([row.temperature for row in rows], dtype=torch.float64, device=logits.device)
        shares = torch.softmax(logits[sampled].double() / heat[:, None], dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(shares, draws[:, None] * shares[:, -1:], right=True).squeeze(-1)
        tokens[sampled] = drawn.clamp(max=logits.shape[-1] - 1)
    return tokens.tolist()


def _scored(flights: Sequence[Flight], logits: Float[Tensor, "flight vocabulary"]) -> dict[int, dict[int, float]]:
    """For each flight that scores, the log-probability of every token that one of its continuations has next."""
    found: dict[int, dict[int, float]] = {}
    asked = {
        index: sorted({flight.row.continuations[one][len(flight.new)] for one in flight.open})
        for index, flight in enumerate(flights)
        if isinstance(flight.row, ScoreRow)
    }
    if asked:
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs = torch.log_softmax(logits[list(asked)].to(wide), dim=-1)
        for row, (index, tokens) in enumerate(asked.items()):
            found[index] = dict(zip(tokens, logprobs[row, tokens].tolist(), strict=True))
    return found


def _generate(
    flight: Flight, row: Row, token: int, stop_ids: frozenset[int], settled: Settled | None
) -> tuple[list[Flight], Ended | None]:
    if token in stop_ids:
        return [], Generated(row.key, flight.new, finished=True)
    new = (*flight.new, token)
    if len(new) == row.max_new_tokens:
        return [], Generated(row.key, new, finished=False)
    if settled is not None and settled(row.key, new):
        return [], Generated(row.key, new, finished=False, settled=True)
    return [replace(flight, pending=token, new=new)], None


def _score(flight: Flight, found: dict[int, float]) -> tuple[list[Flight], Ended | None]:
    row = flight.row
    assert isinstance(row, ScoreRow)  # noqa: S101 - asked for by `follow`
    depth = len(flight.new)
    parting: dict[int, list[int]] = {}
    for one in flight.open:
        token = row.continuations[one][depth]
        flight.logprobs[one].append(found[token])
        if depth + 1 < len(row.continuations[one]):
            parting.setdefault(token, []).append(one)
    paths = [
        replace(flight, pending=token, new=(*flight.new, token), open=tuple(some)) for token, some in parting.items()
    ]
    done = all(len(given) == len(asked) for given, asked in zip(flight.logprobs, row.continuations, strict=True))
    return paths, Scored(row.key, tuple(map(tuple, flight.logprobs))) if done else None
