"""A sweep is one queue of rows: plan the cells, fill the batches with rows of any cell, store what comes, resume.

What this module does not know: which cells a study needs, what their labels mean together. It never loops over conditions
with a generation inside; the engine gets every missing row of every cell at once.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from crystallized_safety.engines import Engine, Generated, Row, Settled
from crystallized_safety.evaluation import judge_by_matcher, settled_for_matcher
from crystallized_safety.interventions import Edit, edit
from crystallized_safety.models import LanguageModel, chat_tokens, decode
from crystallized_safety.records import BASELINE, Completion, Condition, Judgement, Prompt
from crystallized_safety.store import RunFolder
from crystallized_safety.vectors import SteeringVector

__all__ = ["Cell", "FinishedCell", "cell", "edits_under", "missing_rows", "run", "settled_by_matcher"]

JUDGE = "matcher"


@dataclass(frozen=True)
class Cell:
    """All rows of one condition: one prompt set, one token limit. `name` is its file name and says what it is."""

    name: str
    condition: Condition
    prompts: tuple[Prompt, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class FinishedCell:
    """A cell with its completions and their judgements, in the order of its prompts."""

    cell: Cell
    completions: tuple[Completion, ...]
    judgements: tuple[Judgement, ...]


def cell(condition: Condition, prompts: Sequence[Prompt], max_new_tokens: int) -> Cell:
    """Plan one cell. A condition whose dose is zero is the baseline, under one name."""
    condition = BASELINE if condition.dose == 0 and condition.operator != "clamp" else condition
    first = prompts[0]
    what = "baseline" if condition == BASELINE else f"{condition.vector}-{condition.operator}{condition.dose:+g}"
    content = repr((condition, tuple((prompt.id, prompt.text) for prompt in prompts), max_new_tokens))
    name = f"{first.split}-{first.label}-{what}-{sha256(content.encode()).hexdigest()[:8]}"
    return Cell(re.sub(r"[^A-Za-z0-9.+_-]", "_", name), condition, tuple(prompts), max_new_tokens)


def missing_rows(folder: RunFolder, cells: Iterable[Cell]) -> int:
    """How many rows still have to be generated; an unfinished cell counts whole."""
    return sum(len(one.prompts) for one in cells if not folder.finished(one.name))


def run(
    lm: LanguageModel,
    engine: Engine,
    cells: Sequence[Cell],
    *,
    vectors: Mapping[str, SteeringVector],
    folder: RunFolder,
    on_row: Callable[[], None] = lambda: None,
    decide_early: bool = False,
) -> Iterator[FinishedCell]:
    """Finished cells, each once: those on disk first, the others as their last row comes. Labels are made anew, never text.

    Rows are stored as they come, so that a killed process loses only the rows in flight. `on_row` is called for each row
    generated now. With `decide_early` a row stops where the matcher's label can no longer change, and its completion says so;
    a judge that wants the whole text must not be given such rows.
    """
    waiting: dict[str, _Waiting] = {}
    for one in {one.name: one for one in cells}.values():
        if folder.finished(one.name):
            yield _judged(folder, one)
        else:
            waiting[one.name] = _Waiting(one, {row.prompt_id: row for row in folder.recover(one.name)})
    yield from (
        _finish(folder, waiting.pop(name)) for name in [name for name, cell in waiting.items() if cell.complete]
    )
    rows = [row for cell in waiting.values() for row in _rows(lm, cell, vectors)]
    for generated in engine.generate(rows, settled_by_matcher(lm) if decide_early else None):
        assert isinstance(generated, Generated)  # noqa: S101 - no row asked for scores
        name, _, prompt_id = generated.key.partition("\n")
        on_row()
        cell = waiting[name]
        completion = _completion(lm, cell.cell, prompt_id, generated)
        folder.append(name, completion)
        cell.rows[prompt_id] = completion
        if cell.complete:
            yield _finish(folder, waiting.pop(name))


def edits_under(condition: Condition, vectors: Mapping[str, SteeringVector]) -> tuple[Edit, ...]:
    """What the engine does to the stream under a condition; nothing for the baseline."""
    if condition == BASELINE:
        return ()
    return (
        edit(
            vectors[condition.vector].tensor,
            layer=condition.layer,
            operator=condition.operator,
            dose=condition.dose,
            positions=condition.positions,
        ),
    )


@dataclass(frozen=True)
class _Waiting:
    cell: Cell
    rows: dict[str, Completion]

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.cell.prompts)


def _rows(lm: LanguageModel, waiting: _Waiting, vectors: Mapping[str, SteeringVector]) -> Iterator[Row]:
    edits = edits_under(waiting.cell.condition, vectors)
    for prompt in waiting.cell.prompts:
        if prompt.id not in waiting.rows:
            key = f"{waiting.cell.name}\n{prompt.id}"
            yield Row(key, chat_tokens(lm, prompt.text), edits, waiting.cell.max_new_tokens)


def settled_by_matcher(lm: LanguageModel) -> Settled:
    """The matcher's rule on tokens, asked every eighth token: few answers settle, and text takes time to decode."""
    return lambda _key, new: len(new) % 8 == 0 and settled_for_matcher(decode(lm, new))


def _completion(lm: LanguageModel, cell: Cell, prompt_id: str, generated: Generated) -> Completion:
    return Completion(
        prompt_id=prompt_id,
        prompt=next(prompt.text for prompt in cell.prompts if prompt.id == prompt_id),
        condition=cell.condition,
        completion=decode(lm, generated.tokens),
        n_tokens=len(generated.tokens),
        finished=generated.finished,
        settled=generated.settled,
    )


def _finish(folder: RunFolder, waiting: _Waiting) -> FinishedCell:
    folder.finish(waiting.cell.name, [waiting.rows[prompt.id] for prompt in waiting.cell.prompts])
    return _judged(folder, waiting.cell)


def _judged(folder: RunFolder, cell: Cell) -> FinishedCell:
    """The matcher is cheap and may have changed since, so that labels are always made from the text on disk."""
    completions = folder.completions(cell.name)
    judgements = tuple(judge_by_matcher(one.prompt, one.completion) for one in completions)
    if folder.judgements(cell.name, JUDGE) != judgements:
        folder.judge(cell.name, JUDGE, judgements)
    return FinishedCell(cell, completions, judgements)
