"""repeng: `ControlModel.set_control` and `ControlModel.generate`, one condition per batch.

A control acts at every position of every wrapped layer, so the model is wrapped at the condition's layer and unwrapped again;
narrower positions are said by `operator`, which sees the stream. What this module does not know: how the vector was made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from repeng import ControlModel, ControlVector
from torch import Tensor

from benchmarks.contestants.plain import by_condition, read_model, read_vectors
from benchmarks.work import Answers, Condition, Work

__all__ = ["load"]


def load(folder: Path, work: Work) -> Callable[[Work, int | None], Answers]:
    """A function that does work through repeng."""
    model = read_model(folder)
    directions = {layer: vector.numpy() for layer, vector in read_vectors(folder).items()}
    vector = ControlVector(model_type=model.config.model_type, directions=directions)
    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "last-prompt-token-on": {"operator": _last_position},
        "generated": {"operator": _new_tokens_only},
    }
    how = ways[work.positions]

    @contextmanager
    def steered(condition: Condition) -> Iterator[Any]:
        if condition.layer is None:
            yield model
            return
        wrapped = ControlModel(model, [condition.layer])
        try:
            wrapped.set_control(vector, condition.dose, **how)
            yield wrapped
        finally:
            wrapped.unwrap()

    return lambda part, size: by_condition(part, size, steered=steered)


def _last_position(stream: Tensor, push: Tensor) -> Tensor:
    return torch.cat([stream[:, :-1], stream[:, -1:] + push[:, -1:]], dim=1)


def _new_tokens_only(stream: Tensor, push: Tensor) -> Tensor:
    return stream + push if stream.shape[1] == 1 else stream
