"""The naive way to do what the engine does: one row at a time, the whole text anew for each token, one plain hook an edit.

It shares no code with the engine; an edit is said as a person would say it.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from crystallized_safety.engines import Row, ScoreRow
from crystallized_safety.interventions import edit
from crystallized_safety.models import LanguageModel

HEAD = (11, 12, 13, 14)
"""What drawn prompts begin with, as a chat template would have it."""


@dataclass(frozen=True)
class Push:
    """One intervention."""

    layer: int
    vector: torch.Tensor
    operator: str
    dose: float
    positions: str


@dataclass(frozen=True)
class Asked:
    """A prompt and what is done to it."""

    tokens: tuple[int, ...]
    pushes: tuple[Push, ...]

    def row(self, key: str, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0) -> Row:
        return Row(key, self.tokens, self._edits(), max_new_tokens, temperature, seed)

    def score_row(self, key: str, continuations: Sequence[tuple[int, ...]]) -> ScoreRow:
        return ScoreRow(key, self.tokens, self._edits(), tuple(continuations))

    def _edits(self):
        made = [
            edit(one.vector, layer=one.layer, operator=one.operator, dose=one.dose, positions=one.positions)
            for one in self.pushes
        ]
        return tuple(one for one in made if one.acts)


@contextmanager
def pushed(lm: LanguageModel, asked: Asked) -> Iterator[None]:
    """One hook an intervention, in the order given."""

    def hook_of(push: Push):
        unit, length = push.vector / push.vector.norm(), push.vector.norm()
        first = {"all": 0, "last-prompt-token-on": len(asked.tokens) - 1, "generated": len(asked.tokens)}[
            push.positions
        ]

        def hook(_block: object, _inputs: object, output: object) -> object:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            for position in range(first, stream.shape[1]):
                along = stream[0, position] @ unit
                if push.operator == "add":
                    stream[0, position] += push.dose * push.vector
                elif push.operator == "ablate":
                    stream[0, position] -= push.dose * along * unit
                else:
                    stream[0, position] += (push.dose * length - along) * unit
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    handles = [lm.blocks[one.layer].register_forward_hook(hook_of(one)) for one in asked.pushes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def naive_logits(lm: LanguageModel, asked: Asked, new: Sequence[int]) -> torch.Tensor:
    """Logits of the token after the prompt and `new`."""
    with torch.inference_mode(), pushed(lm, asked):
        return lm.model(input_ids=torch.tensor([[*asked.tokens, *new]]), use_cache=False).logits[0, -1]


def naive(
    lm: LanguageModel, asked: Asked, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0
) -> tuple[int, ...]:
    """New tokens, greedy, or drawn by the inverse of the cumulated probabilities from one uniform number a token."""
    draws = torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    new: list[int] = []
    while len(new) < max_new_tokens:
        logits = naive_logits(lm, asked, new)
        if temperature:
            shares = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
            token = int((shares <= draws[len(new)] * shares[-1]).sum())
        else:
            token = int(logits.argmax())
        if token in lm.stop_ids:
            break
        new.append(token)
    return tuple(new)


def naive_logprobs(lm: LanguageModel, asked: Asked, continuation: Sequence[int]) -> list[float]:
    """Log-probability of each token of a continuation, each step anew."""
    return [
        float(torch.log_softmax(naive_logits(lm, asked, continuation[:index]), dim=-1)[token])
        for index, token in enumerate(continuation)
    ]


def draw(lm: LanguageModel, n: int, seed: int, *, head: Sequence[int] = HEAD) -> list[Asked]:
    """Rows of every operator and positions in turn, prompts of lengths near and far, layers and doses at random."""
    generator = random.Random(seed)
    prompts = [(*head, *(generator.randrange(3, 40000) for _ in range(length))) for length in (2, 3, 9, 10, 11, 14)]
    vectors = [
        torch.randn(lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
        for index in range(3)
    ]
    kinds = [
        (operator, positions)
        for operator in ("add", "ablate", "clamp")
        for positions in ("all", "last-prompt-token-on", "generated")
    ]

    def push(index: int) -> Push:
        operator, positions = kinds[index % len(kinds)]
        dose = generator.choice([-4.0, -1.0, 0.0, 1.0, 4.0])
        return Push(generator.randrange(lm.n_layers), generator.choice(vectors), operator, dose, positions)

    def pushes(index: int) -> tuple[Push, ...]:
        more = [push(generator.randrange(len(kinds))) for _ in range(index % 4 == 3)]
        return (push(index), *more)

    return [Asked(generator.choice(prompts), pushes(index)) for index in range(n)]
