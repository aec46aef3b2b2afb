"""Ours: every row of every condition in one queue of `TransformersEngine`, at the engine's own batch size.

What this module does not know: how the engine arranges the rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from benchmarks.contestants.plain import read_vectors
from benchmarks.work import Answer, Answers, Work, key
from crystallized_safety.engines import Generated, Row, TransformersEngine
from crystallized_safety.interventions import Edit, edit
from crystallized_safety.models import load as load_model
from crystallized_safety.sweep import settled_by_matcher

__all__ = ["load", "load_deciding_early"]


def load(folder: Path, work: Work) -> Callable[[Work, int | None], Answers]:
    """A function that does work through the engine; the tokens are those of the full answers."""
    lm, vectors = load_model(work.model, dtype="float32", device="cpu"), read_vectors(folder)
    return lambda part, _size: _answers(TransformersEngine(lm).generate(_rows(part, vectors)))


def load_deciding_early(folder: Path, work: Work) -> Callable[[Work, int | None], Answers]:
    """As `load`, but a row ends where the matcher's label can no longer change."""
    lm, vectors = load_model(work.model, dtype="float32", device="cpu"), read_vectors(folder)
    settled = settled_by_matcher(lm)
    return lambda part, _size: _answers(TransformersEngine(lm).generate(_rows(part, vectors), settled))


def _rows(work: Work, vectors: Mapping[int, Tensor]) -> Iterator[Row]:
    for condition in work.conditions:
        edits: tuple[Edit, ...] = ()
        if condition.layer is not None:
            vector = vectors[condition.layer]
            layer, dose = condition.layer, condition.dose
            edits = (edit(vector, layer=layer, operator="add", dose=dose, positions=work.positions),)
        for prompt in work.prompts:
            yield Row(key(condition, prompt), prompt.tokens, edits, work.new_tokens)


def _answers(ended: Iterable[object]) -> Answers:
    return {one.key: Answer(one.tokens, one.finished) for one in ended if isinstance(one, Generated)}
