"""Rows that wait, in the order in which they enter, and what was read of their prompts.

Rows whose prompt no edit touches are sorted by prompt, so that few prompts are in memory at once; the others by the layer at
which they start, then by condition, so that they can be read together. What this module does not know: decoding.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from crystallized_safety.engines.batch import Arrival
from crystallized_safety.engines.flights import begin, n_paths
from crystallized_safety.engines.reading import Read, common_head, read_heads, read_prompts, read_tails, start_layer
from crystallized_safety.engines.rows import Row, ScoreRow
from crystallized_safety.interventions import Edit
from crystallized_safety.models import LanguageModel

__all__ = ["Queue", "Savings"]

_READ_AHEAD = 2048
"""Prompt tokens that are read together, and that rows entering together may bring."""
_KEPT = 65536
"""Prompt tokens whose keys and values are kept for rows that wait; beyond, the oldest are dropped and read again."""


@dataclass(frozen=True)
class Savings:
    """What the engine saves; every one can be turned off, which changes the cost and nothing else."""

    share_prompts: bool = True
    """Read a prompt once for all its conditions that leave it alone."""
    share_head: bool = True
    """Read what all prompts begin with once, for each condition that changes it."""
    resume: bool = True
    """Start conditions of all positions from the stream at their layer."""
    shared_attention: bool = True
    """Attend to a prefix once for all rows that share it."""
    refill: bool = True
    """Let waiting rows enter while others still run."""


class Queue:
    """Every row once: `take` some that fit, then read their prompts into `arrivals`."""

    def __init__(self, lm: LanguageModel, rows: Sequence[Row | ScoreRow], savings: Savings, *, resumes: bool) -> None:
        self._lm, self._savings, self._resume = lm, savings, savings.resume and resumes
        prompts = sorted({row.tokens for row in rows}, key=lambda tokens: (len(tokens), tokens))
        self._n_head = common_head(prompts) if savings.share_head and len(prompts) > 1 else 0
        self._length = {tokens: index for index, tokens in enumerate(prompts)}
        contents = {id(row.edits): row.edits for row in rows}
        numbers: dict[object, int] = {}
        number = {name: numbers.setdefault(_content(edits), len(numbers)) for name, edits in contents.items()}
        self._condition = {id(row): number[id(row.edits)] for row in rows}
        self._waiting = deque(sorted(rows, key=self._place))
        self._needed = Counter(map(self._name, rows))
        self._streams = (
            sorted({start for row in rows if (start := start_layer(row.edits)) is not None}) if self._resume else []
        )
        self._head: Read | None = None
        self._prompts: dict[object, Read] = {}
        self._heads: dict[object, Read] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def width(self) -> int:
        """Most own tokens that a waiting row needs room for."""
        return max(map(self._own_width, self._waiting))

    @property
    def peak_width(self) -> int:
        """The same for the moment in which a row enters: what was read of its prompt under its edits is there twice."""
        return max(self._own_width(row) + self._own_read(row) for row in self._waiting)

    @property
    def n_paths(self) -> int:
        """Slots that all waiting rows would take together."""
        return sum(map(n_paths, self._waiting))

    @property
    def most_paths(self) -> int:
        """Slots that the waiting row with most paths takes."""
        return max(map(n_paths, self._waiting))

    @property
    def next_paths(self) -> int:
        """Slots that the first waiting row takes."""
        return n_paths(self._waiting[0])

    @property
    def edited(self) -> dict[int, int]:
        """How many edits a row has at most, by layer."""
        counts = [Counter(one.layer for one in edits) for edits in {row.edits for row in self._waiting}]
        return {layer: max(count[layer] for count in counts) for layer in sorted({one for c in counts for one in c})}

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers; reads the first prompt."""
        self._read_prompts([self._waiting[0]])
        read = self._prompts[self._name(self._waiting[0])]
        return sum(one.numel() * one.element_size() for layer in read.layers for one in layer) // read.length

    def take(self, room: int) -> list[Row | ScoreRow]:
        """The next rows that fit into `room` slots; few enough that reading them stays small."""
        taken: list[Row | ScoreRow] = []
        n_tokens = 0
        while self._waiting and n_paths(self._waiting[0]) <= room and n_tokens < _READ_AHEAD:
            row = self._waiting.popleft()
            room -= n_paths(row)
            n_tokens += 0 if start_layer(row.edits) is None else len(row.tokens)
            self._needed[self._name(row)] -= 1
            taken.append(row)
        return taken

    def give_back(self, rows: Sequence[Row | ScoreRow]) -> None:
        """Rows that were taken and could not be finished wait again; what was read is forgotten."""
        self._needed.update(map(self._name, rows))
        self._waiting.extendleft(sorted(rows, key=self._place, reverse=True))
        self._head, self._prompts, self._heads = None, {}, {}

    def arrivals(self, rows: Sequence[Row | ScoreRow]) -> list[Arrival]:
        """Taken rows, ready to enter."""
        self._read_prompts(rows)
        plain = [self._plain(row) for row in rows if start_layer(row.edits) is None]
        moved = [row for row in rows if start_layer(row.edits) is not None]
        arrivals = [*plain, *(self._moved(moved) if moved else [])]
        self._forget()
        return arrivals

    def _plain(self, row: Row | ScoreRow) -> Arrival:
        """A row whose prompt no edit touches before its last token."""
        read = self._prompts[self._name(row)]
        waits = any(one.positions != "generated" for one in row.edits)
        flight = begin(row, prefix=self._name(row), n_prefix=len(row.tokens) - waits, column=0)
        parts = (self._head.layers, read.layers) if self._head else (read.layers,)
        return Arrival(flight, parts, None, None if waits else read.logits)

    def _moved(self, rows: Sequence[Row | ScoreRow]) -> list[Arrival]:
        """Rows whose whole prompt is read under their edits."""
        names = [("condition", self._condition[id(row)]) for row in rows]
        self._read_heads(dict(zip(names, rows, strict=True)))
        tails = read_tails(
            self._lm,
            rows,
            n_head=self._n_head,
            heads=[self._heads.get(name) for name in names],
            below=[self._prompts[self._name(row)] if self._resume else None for row in rows],
        )
        return [
            Arrival(
                begin(row, prefix=name, n_prefix=self._n_head, column=tail.length),
                (self._heads[name].layers,) if self._n_head else (),
                tail.layers,
                tail.logits,
            )
            for row, name, tail in zip(rows, names, tails, strict=True)
        ]

    def _read_heads(self, conditions: dict[tuple[str, int], Row | ScoreRow]) -> None:
        """The head of the template under each condition; those of conditions that are over are dropped."""
        if not self._n_head:
            return
        self._heads = {name: read for name, read in self._heads.items() if name in conditions}
        missing = {name: row.edits for name, row in conditions.items() if name not in self._heads}
        if missing:
            tokens = next(iter(conditions.values())).tokens[: self._n_head]
            below = self._head if self._resume else None
            self._heads.update(
                zip(missing, read_heads(self._lm, tokens, list(missing.values()), below=below), strict=True)
            )

    def _read_prompts(self, rows: Sequence[Row | ScoreRow]) -> None:
        """Read the prompts of some rows and, while at it, of those that enter next."""
        if self._n_head and self._head is None:
            (self._head,) = read_prompts(self._lm, [rows[0].tokens[: self._n_head]], head=None, streams=self._streams)
        missing = {self._name(row): row.tokens[self._n_head :] for row in rows if self._name(row) not in self._prompts}
        if not missing:
            return
        n_tokens = sum(map(len, missing.values()))
        for row in self._waiting if self._savings.share_prompts else ():
            if n_tokens > _READ_AHEAD:
                break
            if self._name(row) not in self._prompts and self._name(row) not in missing:
                missing[self._name(row)] = row.tokens[self._n_head :]
                n_tokens += len(row.tokens) - self._n_head
        read = read_prompts(self._lm, list(missing.values()), head=self._head, streams=self._streams)
        self._prompts.update(zip(missing, read, strict=True))

    def _forget(self) -> None:
        """Drop prompts that no waiting row has, and the oldest where too many are kept."""
        self._prompts = {name: read for name, read in self._prompts.items() if self._needed[name]}
        n_tokens = sum(read.length for read in self._prompts.values())
        while n_tokens > _KEPT:
            n_tokens -= self._prompts.pop(next(iter(self._prompts))).length

    def _own_width(self, row: Row | ScoreRow) -> int:
        new = max(map(len, row.continuations)) if isinstance(row, ScoreRow) else row.max_new_tokens
        return new + max(1, self._own_read(row))

    def _own_read(self, row: Row | ScoreRow) -> int:
        """Prompt tokens that are read for this row alone."""
        return 0 if start_layer(row.edits) is None else len(row.tokens) - self._n_head

    def _name(self, row: Row | ScoreRow) -> object:
        return row.tokens if self._savings.share_prompts else (row.tokens, id(row))

    def _place(self, row: Row | ScoreRow) -> tuple[int, ...]:
        start = start_layer(row.edits)
        return (
            (-1, self._length[row.tokens])
            if start is None
            else (start, self._condition[id(row)], self._length[row.tokens])
        )


def _content(edits: Sequence[Edit]) -> object:
    """Equal for edits that do the same."""
    return tuple(
        (
            one.layer,
            one.coefficients,
            one.positions,
            sha256(one.direction.contiguous().cpu().numpy().tobytes()).digest(),
        )
        for one in edits
    )
