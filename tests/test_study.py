"""The real study on real weights: from a chat model to a verdict, twice, and once through a kill."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crystallized_safety.cli import main
from crystallized_safety.config import load_preset
from crystallized_safety.extraction import record
from crystallized_safety.models import LanguageModel, chat_tokens
from crystallized_safety.prompts import load_prompts
from crystallized_safety.records import Summary
from crystallized_safety.report import write_run_report
from crystallized_safety.store import RunFolder
from crystallized_safety.study import Progress, StudyConfig, run_study
from crystallized_safety.study.plan import splits

MODEL = "smollm2-135m"
PRESET = """\
extract_pairs: 12
select_pairs: 6
calibrate_pairs: 4
test_pairs: 8
null_pairs: 4
n_nulls: 2
layer_shares: [0.5]
kappas: [2.0]
curve_kappas: []
positions: last-prompt-token-on
operator: add
max_new_tokens: 8
"""
N_ROWS = 4 * 2 + 4 * 2 * 2 + 8 * 2 + 8 * 2 + 4 * 2 * 2
"""Calibrate: both baselines, one layer at two positions on two sides. Test: baselines, chosen doses, two nulls a side."""
READABLE = {"✓", "Partial", "✗", "Underpowered"}
STEERABLE = {"✓", "Partial", "✗", "Masked", "Underpowered"}
SIDE = STEERABLE | {"Non-specific", "Collapse-only"}


@dataclass(frozen=True)
class Ran:
    """A finished run, what its progress said, and its configuration."""

    config: StudyConfig
    summary: Summary
    heard: list[Progress]

    @property
    def folder(self) -> Path:
        return self.config.output


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One real run with its report; tests read it and leave it as it is."""
    home = tmp_path_factory.mktemp("study")
    (home / "tiny.yaml").write_text(PRESET)
    config = StudyConfig(MODEL, str(home / "tiny.yaml"), home / "run")
    heard: list[Progress] = []
    summary = run_study(config, progress=heard.append)
    write_run_report(config.output)
    return Ran(config, summary, heard)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in (folder / "cells").glob("*.jsonl")
        for line in path.read_text("utf-8").split("\n")[:-1]
    ]


def test_it_ends_in_a_verdict_whose_words_are_legal(ran: Ran):
    verdict = ran.summary.verdict
    assert verdict.readable in READABLE
    assert verdict.steerable in STEERABLE
    assert set(verdict.sides) == {"suppress", "enhance"}
    assert set(verdict.sides.values()) <= SIDE
    assert MODEL in verdict.sentence
    assert "[" in verdict.sentence, "no number without its interval"


def test_a_model_that_never_refuses_cannot_be_seen_to_refuse_less(ran: Ran):
    """SmolLM2 answers every harmful prompt, so that there is no refusal to suppress: masked, not inert."""
    assert ran.summary.effects["suppress"].headroom == 0
    assert ran.summary.verdict.sides["suppress"] == "Masked"


def test_every_result_of_a_run_is_there(ran: Ran):
    there = set(files(ran.folder))
    assert {"run.json", "summary.json", "report.html", "table.csv", "recording.safetensors"} <= there
    figures = {name for name in there if name.startswith("figures/")}
    assert len(figures) >= 4
    assert all((ran.folder / name).read_text("utf-8").lstrip().startswith("<") for name in figures)
    assert any(name.startswith("vectors/") for name in there)
    assert not [name for name in there if "partial" in name]
    assert {name.split("/")[-1] for name in there if name.startswith("cells/")} == {
        name.split("/")[-1] for name in there if name.startswith("judgements/matcher/")
    }
    assert len(rows(ran.folder)) == N_ROWS


def test_what_the_summary_counts_is_what_the_cells_hold(ran: Ran):
    """The rates are recounted from the judgements on disk."""
    folder = RunFolder(ran.folder)
    for side, outcome in (("suppress", "comply"), ("enhance", "refuse")):
        effect = ran.summary.effects[side]
        counted = {}
        for name in folder.cells():
            first = folder.completions(name)[0].condition
            labels = [one.label for one in folder.judgements(name, "matcher")]
            if name.startswith(f"test-{effect.prompt_label}-") and "null" not in first.vector:
                counted["steered" if first.vector else "baseline"] = (labels.count(outcome), len(labels))
        assert counted == {
            "baseline": (effect.baseline.count, effect.baseline.n),
            "steered": (effect.steered.count, effect.steered.n),
        }
        assert effect.value == pytest.approx((counted["steered"][0] - counted["baseline"][0]) / 8)
        assert len(effect.null_effects) == 2
    assert sum(point.rate.n for point in ran.summary.doses) == 4 * 2 + 4 * 2 * 2
    assert ran.summary.readability.n_pairs == 8
    assert json.loads((ran.folder / "summary.json").read_text())["run"] == json.loads(
        (ran.folder / "run.json").read_text()
    )


def test_completions_stay_in_the_cells_unless_asked_for(ran: Ran, tmp_path: Path):
    """Texts of twenty characters and more, as the model wrote them; shorter ones may stand in any page."""
    texts = {row["completion"].strip() for row in rows(ran.folder)}
    texts = {text for text in texts if len(text) >= 20 and text.isascii() and text.replace(" ", "").isalnum()}
    assert len(texts) >= 8, "there must be texts to look for"
    for path in ("summary.json", "report.html", "table.csv", "run.json"):
        assert not [text for text in texts if text in (ran.folder / path).read_text("utf-8")], path
    copy = shutil.copytree(ran.folder, tmp_path / "copy")
    main(["report", str(copy), "--completions"])
    page = (copy / "report.html").read_text("utf-8")
    assert [text for text in texts if text not in page] == []
    main(["report", str(copy)])
    assert files(copy) == files(ran.folder)


def test_a_second_run_does_no_work_and_changes_no_byte(ran: Ran, tmp_path: Path):
    copy = shutil.copytree(ran.folder, tmp_path / "copy")
    before = files(copy)
    worked = {
        path: path.stat().st_mtime_ns for name in ("cells", "judgements") for path in (copy / name).rglob("*.jsonl")
    }
    recorded = (copy / "recording.safetensors").stat().st_mtime_ns
    heard: list[Progress] = []
    config = StudyConfig(MODEL, ran.config.preset, copy)
    again = run_study(config, progress=heard.append)
    write_run_report(copy)
    assert {one.done for one in heard} == {0.0}
    assert {path: path.stat().st_mtime_ns for path in worked} == worked
    assert (copy / "recording.safetensors").stat().st_mtime_ns == recorded
    assert again.verdict == ran.summary.verdict
    assert files(copy) == before


def test_progress_never_falls_and_ends_at_its_total(ran: Ran):
    done = [one.done for one in ran.heard]
    assert done == sorted(done)
    shares = [one.done / one.total for one in ran.heard]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (pytest.approx(0, abs=0.1), 1.0)
    recorded = 2 * (12 + 6 + 8)
    assert len([step for step in pairwise(done) if step[1] - step[0] == 1.0]) == N_ROWS
    assert done[-1] == pytest.approx(N_ROWS + 0.8 * recorded)
    assert ran.heard[0].total == pytest.approx(done[-1]), "nothing was there before, so that the plan was right at once"
    stages = [one.stage for one in ran.heard]
    assert stages == sorted(stages, key=("record", "calibrate", "test").index)


@pytest.mark.parametrize("layers", [[15], None])
def test_extraction_costs_one_forward_pass_a_prompt_whatever_the_layers(
    smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch, layers: list[int] | None
):
    prompts = [chat_tokens(smollm2, one.text) for one in load_prompts()[:12]]
    passed, forward = [], smollm2.model.forward
    monkeypatch.setattr(
        smollm2.model, "forward", lambda **rest: passed.append(rest["input_ids"].shape) or forward(**rest)
    )
    stream = record(smollm2, prompts, layers=layers, positions=(-1, -5)).stream
    assert sum(shape[0] for shape in passed) == 12
    assert sum(shape[0] * shape[1] for shape in passed) == sum(len(one) for one in prompts), "no padding is computed"
    assert stream.shape == (12, 1 if layers else 30, 2, 576)


def test_directions_come_from_the_extract_split_alone(ran: Ran, smollm2: LanguageModel):
    """The stored gaps are those of the twelve extract pairs, read prompt by prompt from transformers' own hidden states."""
    parts = splits(load_preset(ran.config.preset), None)

    def mean(prompts) -> torch.Tensor:
        states = [
            smollm2.model(
                input_ids=torch.tensor([chat_tokens(smollm2, one.text)]), output_hidden_states=True
            ).hidden_states
            for one in prompts
        ]
        return torch.stack([torch.stack([layer[0, -1] for layer in one[1:-1]]).double() for one in states]).mean(dim=0)

    with torch.inference_mode():
        expected = mean(parts.extract.harmful) - mean(parts.extract.harmless)
    held = load_file(ran.folder / "recording.safetensors")["gaps"]
    torch.testing.assert_close(held[:-1, 0].double(), expected, atol=2e-4, rtol=1e-3)
    vector = next((ran.folder / "vectors").glob("*.safetensors"))
    saved = load_file(vector)
    [(name, tensor)] = saved.items()
    torch.testing.assert_close(tensor.double(), expected[int(name.split(".")[1])], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("preset", ["tiny", "quick", "full"])
def test_no_test_prompt_is_used_before_the_test(ran: Ran, preset: str):
    parts = splits(load_preset(ran.config.preset if preset == "tiny" else preset), None)
    earlier = (*parts.extract.both, *parts.select.both, *parts.calibrate.both)
    for of in (lambda one: one.id, lambda one: one.text, lambda one: one.pair, lambda one: one.cluster):
        assert not set(map(of, earlier)) & set(map(of, parts.test.both))
        assert not set(map(of, parts.extract.both)) & set(map(of, (*parts.select.both, *parts.calibrate.both)))
    assert {one.split for one in parts.test.both} == {"test"}
    if preset == "tiny":
        test = {one.id for one in parts.test.both}
        by_stage = {True: set(), False: set()}
        for path in (ran.folder / "cells").glob("*.jsonl"):
            by_stage[path.name.startswith("test-")] |= {
                json.loads(line)["prompt_id"] for line in path.read_text("utf-8").split("\n")[:-1]
            }
        assert by_stage[True] == test
        assert by_stage[False] == {one.id for one in parts.calibrate.both}


def complete_lines(folder: Path) -> dict[str, list[bytes]]:
    """Complete lines on disk by cell, finished or not."""
    return {
        path.name.removesuffix(".jsonl").removesuffix(".partial"): path.read_bytes().split(b"\n")[:-1]
        for path in (folder / "cells").glob("*.jsonl")
    }


def test_a_killed_run_goes_on_with_every_row_that_was_on_disk(tmp_path: Path):
    """kill -9 after the first rows. What survived is then marked, so that a row generated again would lose its mark."""
    small = PRESET
    for before, after in (
        ("pairs: 12", "pairs: 4"),
        ("pairs: 6", "pairs: 4"),
        ("pairs: 8", "pairs: 4"),
        ("tokens: 8", "tokens: 4"),
    ):
        small = small.replace(before, after)
    (tmp_path / "tiny.yaml").write_text(small)
    folder = tmp_path / "run"
    program = "from crystallized_safety.cli import main; main()"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program, "run", MODEL]
    command += ["--preset", str(tmp_path / "tiny.yaml"), "--output", str(folder), "--batch-size", "3"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 150
        while sum(map(len, complete_lines(folder).values() if (folder / "cells").exists() else [])) < 4:
            assert process.poll() is None, "the run must still be at work"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    survived = complete_lines(folder)
    n_rows = 4 * 2 + 4 * 2 * 2 + 4 * 2 + 4 * 2 + 4 * 2 * 2
    assert 4 <= sum(map(len, survived.values())) < n_rows - 4, "the kill must fall in the middle"
    assert not (folder / "summary.json").exists()
    for name, lines in survived.items():
        held = [json.loads(line) for line in lines]
        assert all(row["prompt_id"] and "completion" in row for row in held)
        assert len(held) == 4 or (folder / "cells" / f"{name}.partial.jsonl").exists(), "a finished cell is whole"
    marked = {name: [mark(line) for line in lines] for name, lines in survived.items()}
    for name, lines in marked.items():
        path = next((folder / "cells").glob(f"{name}*.jsonl"))
        path.write_bytes(
            b"".join(line + b"\n" for line in lines) + (b'{"prompt_id": "cut' if "partial" in path.name else b"")
        )
    ended = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "verdict: readable=" in ended.stdout.splitlines()[-1]
    final = complete_lines(folder)
    assert sum(map(len, final.values())) == n_rows
    for name, lines in marked.items():
        assert set(lines) <= set(final[name]), "a row that was on disk was generated again"
    assert sum(b"marked" in line for lines in final.values() for line in lines) == sum(map(len, survived.values()))
    assert not list(folder.rglob("*.partial*"))


def mark(line: bytes) -> bytes:
    row = json.loads(line)
    return json.dumps({**row, "completion": f"marked {row['completion']}"}, ensure_ascii=False).encode()
