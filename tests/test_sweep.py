"""A sweep generates every row once, whatever interrupts it, and what it leaves does not depend on the interruptions."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crystallized_safety.engines import Generated, Row, Settled, TransformersEngine
from crystallized_safety.evaluation import judge_by_matcher
from crystallized_safety.models import LanguageModel, chat_tokens
from crystallized_safety.records import BASELINE, Condition, Judgement, Prompt
from crystallized_safety.store import RunFolder
from crystallized_safety.sweep import Cell, cell, missing_rows, run
from crystallized_safety.vectors import SteeringVector

Tiny = Callable[[str], LanguageModel]

TEXTS = ("Name a colour.", "How far is the moon?", "Hello", "List three rivers of Europe, please.")


def prompt(index: int, text: str) -> Prompt:
    return Prompt(
        id=f"p{index}",
        text=text,
        label="harmful",
        category="c",
        cluster=f"k{index}",
        pair="",
        split="calibrate",
        source="test",
        licence="CC0",
    )


PROMPTS = tuple(prompt(index, text) for index, text in enumerate(TEXTS))


def condition(dose: float, layer: int = 2, operator: str = "add", positions: str = "last-prompt-token-on") -> Condition:
    return Condition(f"L{layer}", layer, operator, dose, positions)


def planned() -> list[Cell]:
    """A baseline and five other conditions that share batches."""
    return [
        cell(BASELINE, PROMPTS, 5),
        cell(condition(2.0), PROMPTS, 5),
        cell(condition(-2.0), PROMPTS, 5),
        cell(condition(1.0, layer=1, positions="all"), PROMPTS[:3], 5),
        cell(condition(1.0, layer=1, operator="ablate"), PROMPTS, 5),
        cell(condition(3.0, layer=1, operator="clamp", positions="generated"), PROMPTS, 5),
    ]


def vectors(lm: LanguageModel) -> dict[str, SteeringVector]:
    def vector(layer: int) -> SteeringVector:
        tensor = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(layer)) * 3
        return SteeringVector(tensor, layer, -1, float(tensor.norm()), 10.0, "random", lm.name)

    return {f"L{layer}": vector(layer) for layer in (1, 2)}


class Watched:
    """The real engine, which notes what it was asked and may die after some rows."""

    def __init__(self, lm: LanguageModel, *, batch_size: int = 64, dies_after: int | None = None) -> None:
        self._engine = TransformersEngine(lm, batch_size)
        self._dies_after = dies_after
        self.asked: list[Row] = []
        self.calls = 0

    def generate(self, rows: Iterable[Row], settled: Settled | None = None) -> Iterator[Generated]:
        self.calls += 1
        rows = list(rows)
        self.asked += rows
        for count, one in enumerate(self._engine.generate(rows, settled)):
            if count == self._dies_after:
                raise RuntimeError("out of memory")
            yield one


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def walk(lm: LanguageModel, cells: Sequence[Cell], folder: Path, engine: Watched | None = None) -> tuple[list, int]:
    """Run to the end: the finished cells, and how many rows were generated for it."""
    rows: list[None] = []
    engine = engine or Watched(lm)
    done = list(run(lm, engine, cells, vectors=vectors(lm), folder=RunFolder(folder), on_row=lambda: rows.append(None)))
    return done, len(rows)


def on_disk(folder: Path) -> int:
    """Complete lines of completions, finished or not."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / "cells").glob("*.jsonl"))


def test_every_row_of_every_cell_comes_once(tiny: Tiny, tmp_path: Path):
    lm, cells = tiny("llama"), planned()
    engine = Watched(lm)
    done, n_rows = walk(lm, cells, tmp_path, engine)
    assert n_rows == len(engine.asked) == 23
    assert engine.calls == 1, "all cells are one queue"
    assert Counter(one.cell.name for one in done) == Counter(one.name for one in cells)
    assert len({one.name for one in cells}) == 6
    for one in done:
        assert [row.prompt_id for row in one.completions] == [prompt.id for prompt in one.cell.prompts]
        assert [row.prompt for row in one.completions] == [prompt.text for prompt in one.cell.prompts]
        assert {row.condition for row in one.completions} == {one.cell.condition}
        assert [row.label for row in one.judgements] == [
            judge_by_matcher(row.prompt, row.completion).label for row in one.completions
        ]
    texts = {tuple(row.completion for row in one.completions) for one in done}
    assert len(texts) == 6, "the conditions must differ in text, or this says nothing"
    assert sorted(files(tmp_path)) == sorted(
        [f"cells/{one.name}.jsonl" for one in cells] + [f"judgements/matcher/{one.name}.jsonl" for one in cells]
    )


def test_a_row_carries_its_own_condition(tiny: Tiny, tmp_path: Path):
    """Each cell alone gives the text that it gives in company, and the row's edit is the cell's."""
    lm, cells = tiny("qwen2"), planned()
    together, _ = walk(lm, cells, tmp_path / "together")
    for one in together:
        [alone], _ = walk(lm, [one.cell], tmp_path / one.cell.name)
        assert alone.completions == one.completions
    engine = Watched(lm)
    walk(lm, [cells[3]], tmp_path / "asked", engine)
    held = vectors(lm)["L1"].tensor.double()
    for row, asked in zip(engine.asked, PROMPTS, strict=False):
        [edit] = row.edits
        assert (edit.layer, edit.positions, row.max_new_tokens) == (1, "all", 5)
        assert edit.coefficients.a == pytest.approx(float(held.norm()))
        torch.testing.assert_close(edit.direction.double(), held / held.norm(), atol=1e-6, rtol=0)
        assert row.tokens == chat_tokens(lm, asked.text)


def test_a_cell_asked_twice_is_run_once(tiny: Tiny, tmp_path: Path):
    lm = tiny("llama")
    one = cell(condition(2.0), PROMPTS, 4)
    done, n_rows = walk(lm, [one, one, cell(condition(2.0), PROMPTS, 4)], tmp_path)
    assert n_rows == 4
    assert [finished.cell for finished in done] == [one]
    again, n_rows = walk(lm, [one, one], tmp_path)
    assert (again, n_rows) == (done, 0), "nor is it told twice when it is read from disk"


def test_a_dose_of_zero_is_the_one_baseline(tiny: Tiny, tmp_path: Path):
    lm = tiny("llama")
    zeros = [
        condition(0.0),
        condition(-0.0, layer=1),
        condition(0.0, operator="ablate"),
        condition(0.0, layer=3, positions="all"),
        BASELINE,
    ]
    cells = [cell(one, PROMPTS, 4) for one in zeros]
    assert {one.name for one in cells} == {cells[-1].name}
    assert {one.condition for one in cells} == {BASELINE}
    done, n_rows = walk(lm, cells, tmp_path)
    assert (len(done), n_rows) == (1, 4)
    clamped = cell(condition(0.0, operator="clamp"), PROMPTS, 4)
    assert clamped.name != cells[0].name, "a clamp to zero moves the stream"
    plain = TransformersEngine(lm).generate([Row(one.id, chat_tokens(lm, one.text), (), 4) for one in PROMPTS])
    assert {one.key: len(one.tokens) for one in plain} == {row.prompt_id: row.n_tokens for row in done[0].completions}


def test_a_name_says_what_the_cell_is_and_another_cell_has_another():
    one = cell(condition(2.0), PROMPTS, 5)
    assert one.name.startswith("calibrate-harmful-L2-add+2-")
    assert cell(BASELINE, PROMPTS, 5).name.startswith("calibrate-harmful-baseline-")
    assert cell(condition(2.0), list(PROMPTS), 5) == one
    others = [
        cell(condition(2.0), PROMPTS, 6),
        cell(condition(2.0), (replace(PROMPTS[0], text="Name a color."), *PROMPTS[1:]), 5),
        cell(condition(2.0), (replace(PROMPTS[0], id="q0"), *PROMPTS[1:]), 5),
        cell(condition(2.0), PROMPTS[:3], 5),
        cell(condition(2.0000001), PROMPTS, 5),
        cell(condition(2.0, layer=1), PROMPTS, 5),
        cell(condition(2.0, operator="clamp"), PROMPTS, 5),
        cell(condition(2.0, positions="all"), PROMPTS, 5),
        cell(replace(condition(2.0), vector="../../L2"), PROMPTS, 5),
    ]
    names = [one.name, *(other.name for other in others)]
    assert len(set(names)) == len(names)
    assert not any("/" in name or len(name) > 120 for name in names)


@pytest.mark.parametrize("dies_after", [0, 1, 7, 15, 22])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_after_a_crash_only_the_missing_rows_are_generated(
    tiny: Tiny, tmp_path: Path, dies_after: int, batch_size: int
):
    lm, cells = tiny("llama"), planned()
    walk(lm, cells, tmp_path / "whole")
    torn = tmp_path / "torn"
    with pytest.raises(RuntimeError, match="out of memory"):
        walk(lm, cells, torn, Watched(lm, batch_size=batch_size, dies_after=dies_after))
    assert on_disk(torn) == dies_after
    before = {(row["condition"]["vector"], row["condition"]["dose"], row["prompt_id"]) for row in lines(torn)}
    engine = Watched(lm, batch_size=batch_size)
    done, n_rows = walk(lm, cells, torn, engine)
    assert n_rows == len(engine.asked) == 23 - dies_after
    assert len(done) == 6
    assert len(before) == len(set(before))
    assert files(torn) == files(tmp_path / "whole")
    assert walk(lm, cells, torn)[1] == 0
    assert missing_rows(RunFolder(torn), cells) == 0


def lines(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted((folder / "cells").glob("*.jsonl"))
        for line in path.read_bytes().split(b"\n")[:-1]
    ]


def test_a_reader_who_stops_in_the_middle_loses_nothing(tiny: Tiny, tmp_path: Path):
    lm, cells = tiny("llama"), planned()
    walk(lm, cells, tmp_path / "whole")
    rows: list[None] = []
    half = tmp_path / "half"
    finished = run(
        lm,
        TransformersEngine(lm, 6),
        cells,
        vectors=vectors(lm),
        folder=RunFolder(half),
        on_row=lambda: rows.append(None),
    )
    first = next(finished)
    finished.close()
    assert 0 < len(rows) < 23
    assert on_disk(half) == len(rows)
    assert RunFolder(half).finished(first.cell.name)
    assert missing_rows(RunFolder(half), cells) == 23 - len(first.cell.prompts)
    done, n_rows = walk(lm, cells, half)
    assert n_rows == 23 - len(rows)
    assert done[0] == first, "what is on disk comes first"
    assert files(half) == files(tmp_path / "whole")


def test_a_crash_between_the_last_row_and_the_rename(tiny: Tiny, tmp_path: Path):
    lm, cells = tiny("llama"), planned()[:2]
    walk(lm, cells, tmp_path / "whole")
    walk(lm, cells, tmp_path / "torn")
    path = tmp_path / "torn" / "cells" / f"{cells[0].name}.jsonl"
    path.rename(path.with_name(f"{cells[0].name}.partial.jsonl"))
    done, n_rows = walk(lm, cells, tmp_path / "torn")
    assert (len(done), n_rows) == (2, 0)
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_labels_are_made_anew_and_text_is_not(tiny: Tiny, tmp_path: Path):
    lm, cells = tiny("llama"), planned()[:2]
    walk(lm, cells, tmp_path)
    truth = files(tmp_path)
    folder = RunFolder(tmp_path)
    (tmp_path / "judgements" / "matcher" / f"{cells[0].name}.jsonl").unlink()
    folder.judge(cells[1].name, "matcher", [Judgement("refuse", "matcher", "an older rule")] * 4)
    cells_before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    done, n_rows = walk(lm, cells, tmp_path)
    assert n_rows == 0
    assert files(tmp_path) == truth
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == cells_before
    assert not any(row.reason == "an older rule" for one in done for row in one.judgements)


def test_labels_that_are_right_are_not_written_again(tiny: Tiny, tmp_path: Path):
    lm, cells = tiny("llama"), planned()[:2]
    walk(lm, cells, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
    walk(lm, cells, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")} == before


def test_deciding_early_saves_tokens_and_changes_no_label(tiny: Tiny, tmp_path: Path):
    lm = tiny("llama")
    lm = replace(lm, stop_ids=frozenset())
    cells = [cell(condition(60.0, positions="all"), PROMPTS[:2], 420)]

    def done(folder: str, *, decide_early: bool):
        out = RunFolder(tmp_path / folder)
        [one] = run(lm, TransformersEngine(lm), cells, vectors=vectors(lm), folder=out, decide_early=decide_early)
        return one

    early, whole = done("early", decide_early=True), done("whole", decide_early=False)
    assert [one.label for one in early.judgements] == [one.label for one in whole.judgements] == ["degenerate"] * 2
    for short, long in zip(early.completions, whole.completions, strict=True):
        assert (short.settled, short.finished, long.settled) == (True, False, False)
        assert short.n_tokens < long.n_tokens == 420
        assert long.completion.startswith(short.completion)
