"""steering-vectors: `SteeringVector.apply` around `model.generate`, one condition per batch.

`last-prompt-token-on` is `token_indices=[-1]`, counted anew in every forward pass; `apply` then needs `min_token_index=None`,
because its own default of 0 collides with `token_indices`. `min_token_index` cannot say "new tokens only": with a cache it
counts within one pass and steers nothing, so `generated` is said by `operator`, which sees the stream. What this module does
not know: how the vector was made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from steering_vectors import SteeringVector
from torch import Tensor

from benchmarks.contestants.plain import by_condition, read_model, read_vectors
from benchmarks.work import Answers, Condition, Work

__all__ = ["load"]


def load(folder: Path, work: Work) -> Callable[[Work, int | None], Answers]:
    """A function that does work through steering-vectors."""
    model, vectors = read_model(folder), read_vectors(folder)
    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "last-prompt-token-on": {"min_token_index": None, "token_indices": [-1]},
        "generated": {"operator": _new_tokens_only},
    }
    how = ways[work.positions]

    @contextmanager
    def steered(condition: Condition) -> Iterator[Any]:
        if condition.layer is None:
            yield model
            return
        vector = SteeringVector({condition.layer: vectors[condition.layer]})
        with vector.apply(model, multiplier=condition.dose, **how):
            yield model

    return lambda part, size: by_condition(part, size, steered=steered)


def _new_tokens_only(stream: Tensor, push: Tensor) -> Tensor:
    return push if stream.shape[1] == 1 else torch.zeros_like(push)
