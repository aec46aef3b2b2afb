"""The work that every contestant gets: prompts × conditions, as token ids and numbers in one task folder.

    TASK/model/                 config, tokenizer and weights, readable by old and new transformers
    TASK/parameters.json        how many parameters the model has
    TASK/vectors.safetensors    one steering vector per layer, named by the layer
    TASK/POSITIONS.json         one `Work`

What this module does not know: torch, transformers, who runs the work. It imports the standard library alone, so that every
interpreter can read it.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

__all__ = ["Answer", "Answers", "Condition", "Plan", "Positions", "Prompt", "Work", "answer", "key"]


Positions = Literal["last-prompt-token-on", "all", "generated"]


@dataclass(frozen=True)
class Plan:
    """What the user asked for; `prepare` makes a task folder of it."""

    model: str
    n_prompts: int
    n_layers: int
    doses: tuple[float, ...]
    positions: tuple[Positions, ...]
    new_tokens: int
    threads: int


@dataclass(frozen=True)
class Prompt:
    """One prompt in its chat template, as token ids."""

    name: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Condition:
    """The vector of `layer`, times `dose`, added at the output of that block; `layer` is None for the baseline."""

    name: str
    layer: int | None
    dose: float


@dataclass(frozen=True)
class Work:
    """Every prompt under every condition, `new_tokens` greedy tokens each, ended early by any of `stop_ids`."""

    model: str
    n_layers: int
    positions: Positions
    prompts: tuple[Prompt, ...]
    conditions: tuple[Condition, ...]
    new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    threads: int

    def __len__(self) -> int:
        return len(self.prompts) * len(self.conditions)

    @classmethod
    def read(cls, path: Path) -> "Work":
        """The work that `write` wrote."""
        told = json.loads(path.read_text("utf-8"))
        prompts = tuple(Prompt(one["name"], tuple(one["tokens"])) for one in told.pop("prompts"))
        conditions = tuple(Condition(**one) for one in told.pop("conditions"))
        return cls(prompts=prompts, conditions=conditions, stop_ids=tuple(told.pop("stop_ids")), **told)

    def write(self, path: Path) -> None:
        """One JSON file."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    def part(self, share: float) -> "Work":
        """The work with a share of its conditions, at least one: the same ones for everybody, drawn by a fixed seed.

        A smaller share is a subset of a larger one.
        """
        if share >= 1:
            return self
        drawn = random.Random(0).sample(range(len(self.conditions)), len(self.conditions))  # not for secrets
        kept = sorted(drawn[: max(1, round(share * len(drawn)))])
        return replace(self, conditions=tuple(self.conditions[index] for index in kept))

    def steered(self, n_conditions: int) -> "Work":
        """The work with the first so many conditions that steer, repeated if there are too few."""
        steering = [one for one in self.conditions if one.layer is not None]
        return replace(self, conditions=tuple(steering[index % len(steering)] for index in range(n_conditions)))


@dataclass(frozen=True)
class Answer:
    """The new tokens of one row without the stop token; `finished` says whether one came."""

    tokens: tuple[int, ...]
    finished: bool


Answers = Mapping[str, Answer]
"""Row key → answer."""


def key(condition: Condition, prompt: Prompt) -> str:
    """The name of one row."""
    return f"{condition.name} | {prompt.name}"


def answer(tokens: Sequence[int], stop_ids: Sequence[int]) -> Answer:
    """What stands before the first stop token."""
    ends = [index for index, token in enumerate(tokens) if token in stop_ids]
    return Answer(tuple(tokens[: ends[0]] if ends else tokens), bool(ends))
