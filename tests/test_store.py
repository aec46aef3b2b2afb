"""A run folder survives what happens to folders: kills, cut lines, full disks, strangers' files, another configuration."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from crystallized_safety.errors import RunError
from crystallized_safety.records import (
    BASELINE,
    Completion,
    Condition,
    DosePoint,
    Effect,
    Judgement,
    LayerAuroc,
    OpenerScores,
    Rate,
    Readability,
    Summary,
    Verdict,
)
from crystallized_safety.store import RunFolder, open_run, read_run, write_whole

NAN = float("nan")
STEERED = Condition(vector="L3p-1", layer=3, operator="add", dose=-2.0, positions="last-prompt-token-on")
TEXTS = [
    "two\nlines\r\nand\x0bmore\x0c",
    "a\u2028b\u2029c\x85d",
    "🦜 naïve 日本語 \U0001f469\u200d\U0001f680",
    'says "no" \\ {"a": 1}',
    "",
    "\x00\x1b[0m",
]
ABOUT = {
    "model": "m",
    "seed": 0,
    "settings": {"kappas": [1.0, 2.0], "n": 3},
    "versions": {"torch": "2"},
    "started": "monday",
}


def completion(prompt_id: str, text: str = "ok", condition: Condition = STEERED) -> Completion:
    return Completion(
        prompt_id=prompt_id, prompt=f"ask {text}", condition=condition, completion=text, n_tokens=2, finished=True
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_file_is_never_seen_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the moment of the rename the new content is whole and flushed under another name, and the old one still there."""
    path, seen, synced = tmp_path / "deep" / "file.txt", [], []
    write_whole(path, "old")
    rename, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size) or fsync(handle))
    monkeypatch.setattr(
        Path,
        "replace",
        lambda self, target: (
            seen.append((self.parent, self.name, self.read_text(), path.read_text())) or rename(self, target)
        ),
    )
    write_whole(path, "new content")
    [(home, name, there, before)] = seen
    assert (home, there, before) == (path.parent, "new content", "old")
    assert name != "file.txt"
    assert synced == [len("new content")]
    assert files(tmp_path) == {"deep/file.txt": b"new content"}


def test_cells_are_finished_when_their_file_is_there(tmp_path: Path):
    folder = RunFolder(tmp_path)
    rows = [completion("a"), completion("b", condition=BASELINE)]
    folder.append("later", rows[0])
    assert not folder.finished("later")
    assert folder.cells() == ()
    folder.append("later", rows[1])
    folder.finish("later", rows[::-1])
    assert folder.finished("later")
    assert folder.cells() == ("later",)
    assert folder.completions("later") == tuple(rows[::-1])
    assert list(files(tmp_path)) == ["cells/later.jsonl"]
    assert folder.recover("later") == ()
    with pytest.raises(AttributeError):
        folder.path = tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_one_line_and_comes_back(tmp_path: Path, text: str):
    folder = RunFolder(tmp_path)
    rows = (completion("a", text), completion("b", "plain"))
    for row in rows:
        folder.append("cell", row)
    assert (tmp_path / "cells/cell.partial.jsonl").read_bytes().count(b"\n") == 2
    assert folder.recover("cell") == rows
    folder.finish("cell", rows)
    assert folder.completions("cell") == rows
    judged = (Judgement("refuse", "matcher", text), Judgement("unscored", "matcher", ""))
    folder.judge("cell", "matcher", judged)
    assert folder.judgements("cell", "matcher") == judged
    assert folder.judgements("cell", "another") is None
    held = [json.loads(line) for line in (tmp_path / "cells/cell.jsonl").read_bytes().split(b"\n")[:-1]]
    assert held == [asdict(row) for row in rows]


def test_a_line_cut_anywhere_is_dropped_and_never_glued(tmp_path: Path):
    """Every byte offset of the last line, those inside the four bytes of an emoji among them."""
    whole, torn, next_row = completion("a", "first é"), completion("b", "🦜 日本"), completion("c", "after")
    folder = RunFolder(tmp_path)
    folder.append("cell", whole)
    partial = tmp_path / "cells/cell.partial.jsonl"
    head = partial.read_bytes()
    folder.append("cell", torn)
    line = partial.read_bytes()[len(head) :]
    assert sum(byte >= 0x80 for byte in line) >= 10, "some cuts must fall inside a character"
    for cut in range(len(line)):
        partial.write_bytes(head + line[:cut])
        kept = (whole, torn) if cut == len(line) - 1 else (whole,)
        assert folder.recover("cell") == kept, f"cut after {cut} bytes"
        folder.append("cell", next_row)
        assert folder.recover("cell") == (*kept, next_row), f"cut after {cut} bytes"
    assert list(files(tmp_path)) == ["cells/cell.partial.jsonl"]


def test_scores_come_back_as_they_were_and_a_cut_row_is_dropped(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert folder.scores() == ()
    rows = [
        OpenerScores("a", BASELINE, ((-0.1, -1 / 3), (-1e-17,))),
        OpenerScores("a", completion("a").condition, ((None, -700.25), (-3.4028234663852886e38,))),
    ]
    for row in rows:
        folder.score(row)
    assert folder.scores() == tuple(rows), "every bit of every number"
    path = tmp_path / "scores.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, len(whole.split(b"\n")[1])):
        path.write_bytes(whole[:-cut])
        assert folder.scores() == (tuple(rows) if cut == 1 else (rows[0],))
        folder.score(rows[1])
        assert folder.scores()[-1] == rows[1], "and never glued"


def test_a_damaged_finished_cell_is_an_error_with_its_line(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.finish("cell", [completion("a"), completion("b")])
    path = tmp_path / "cells/cell.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"Line 2 of '.*cell\.jsonl'"):
        folder.completions("cell")


def test_a_new_folder_gets_its_configuration_first(tmp_path: Path):
    folder = open_run(tmp_path / "results" / "new", ABOUT)
    assert json.loads((folder.path / "run.json").read_text()) == ABOUT
    assert read_run(folder.path) == ABOUT
    assert list(files(tmp_path)) == ["results/new/run.json"]
    (tmp_path / "empty").mkdir()
    assert open_run(tmp_path / "empty", ABOUT).path == tmp_path / "empty"


def test_the_same_configuration_goes_on_whenever_it_started(tmp_path: Path):
    open_run(tmp_path / "run", ABOUT)
    before = files(tmp_path)
    assert open_run(tmp_path / "run", {**ABOUT, "started": "tuesday"}).path == tmp_path / "run"
    assert open_run(tmp_path / "run", {**ABOUT, "settings": {"n": 3, "kappas": (1.0, 2.0)}}).path == tmp_path / "run"
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "named", "unnamed"),
    [
        ({"seed": 1}, ["seed: 0 there, 1 now"], ["model", "settings", "started"]),
        ({"settings": {"kappas": [1.0, 3.0], "n": 3}}, ["settings.kappas"], ["settings.n", "seed"]),
        ({"versions": {"torch": "3"}, "model": "other"}, ["versions.torch", "model"], ["seed", "settings"]),
        ({"extra": True}, ["extra: None there, True now"], ["seed"]),
        ({"settings": {"kappas": [1.0, 2.0]}}, ["settings.n: 3 there, None now"], ["kappas"]),
    ],
)
def test_another_configuration_is_refused_by_the_keys_that_differ(
    tmp_path: Path, change: dict[str, object], named: list[str], unnamed: list[str]
):
    open_run(tmp_path / "run", ABOUT)
    before = files(tmp_path)
    with pytest.raises(RunError) as caught:
        open_run(tmp_path / "run", {**ABOUT, "started": "tuesday", **change})
    said = str(caught.value).replace(str(tmp_path), "")
    assert all(word in said for word in named)
    assert not any(word in said for word in unnamed)
    assert files(tmp_path) == before


def test_the_folder_of_a_stranger_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunError, match="holds other files"):
        open_run(tmp_path, ABOUT)
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "thesis.txt", ABOUT)
    with pytest.raises(RunError, match=r"thesis\.txt.*must be written"):
        open_run(tmp_path / "thesis.txt" / "inside", ABOUT)
    assert files(tmp_path) == {"thesis.txt": b"do not touch"}


@pytest.mark.parametrize("content", [b"", b'{"model": "m"', b"[1]", b"null", b"\xff\xfe"])
def test_a_damaged_run_json_is_said_and_kept(tmp_path: Path, content: bytes):
    (tmp_path / "run.json").write_bytes(content)
    for call in (lambda: open_run(tmp_path, ABOUT), lambda: read_run(tmp_path)):
        with pytest.raises(RunError, match=r"run\.json' must be"):
            call()
    assert files(tmp_path) == {"run.json": content}


def test_a_folder_without_run_json_is_no_run(tmp_path: Path):
    with pytest.raises(RunError, match=r"has no run\.json"):
        read_run(tmp_path / "nowhere")


def full_summary() -> Summary:
    """Every field filled, with the values that JSON handles worst."""
    nothing = Rate(count=0, n=0, unscored=4, low=NAN, high=NAN)
    some = Rate(count=1, n=3, unscored=0, low=1 / 3, high=0.1 + 0.2)
    point = DosePoint(
        split="calibrate",
        prompt_label="harmful",
        layer=3,
        kappa=-2.0,
        delta=1e-17,
        position=-7,
        labels={"unscored": 4},
        outcome="comply",
        rate=nothing,
        coherent=True,
    )
    effect = Effect(
        side="suppress",
        prompt_label="harmful",
        layer=3,
        position=-7,
        kappa=-2.0,
        delta=0.1,
        value=NAN,
        low=float("-inf"),
        high=float("inf"),
        baseline=nothing,
        steered=some,
        gained=0,
        lost=0,
        p_mcnemar=1.0,
        mde=0.3,
        headroom=0.0,
        null_effects=(),
        null_value=NAN,
        p_null=None,
        calibrate_value=-0.0,
        coherent=False,
    )
    readability = Readability(
        layers=(LayerAuroc(0, -1, 0.5, 0.25, 0.75, NAN),),
        best_layer=0,
        best_position=-1,
        n_pairs=8,
        confounds={"length": 0.5},
        gain=0.0,
        gain_low=-0.1,
        gain_high=0.1,
    )
    return Summary(
        run={**ABOUT, "note": "κ 🦜\u2028"},
        readability=readability,
        doses=(point, replace(point, rate=some)),
        effects={"suppress": effect},
        verdict=Verdict("✓", "Masked", {"suppress": "Masked", "enhance": "Collapse-only"}, "It is “so”.", ("a\nb",)),
        seconds=1.5,
        peak_memory_bytes=2**40,
        unscored=4,
        warnings=("none",),
    )


def test_a_summary_with_nan_comes_back_as_it_was(tmp_path: Path):
    summary, folder = full_summary(), RunFolder(tmp_path)
    folder.write_summary(summary)
    back = folder.summary()
    assert json.dumps(asdict(back)) == json.dumps(asdict(summary))
    assert back.doses[0].rate.value != back.doses[0].rate.value, "nothing scored is no rate, not a rate of zero"
    assert isinstance(back.doses, tuple)
    assert isinstance(back.effects["suppress"], Effect)
    first = files(tmp_path)
    folder.write_summary(back)
    assert files(tmp_path) == first


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-20], lambda text: "{}", lambda text: text.replace('"doses"', '"dozes"')]
)
def test_a_damaged_or_missing_summary_is_said(tmp_path: Path, spoil):
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match=r"has no summary\.json"):
        folder.summary()
    folder.write_summary(full_summary())
    path = tmp_path / "summary.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(RunError, match=r"summary\.json' must be a summary"):
        folder.summary()


def out_of_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder(tmp_path)
    folder.finish("cell", [completion("a")])
    write_whole(tmp_path / "report.html", "old")
    before = files(tmp_path)
    monkeypatch.setattr(os, "fsync", out_of_room)
    for attempt in (
        lambda: write_whole(tmp_path / "report.html", "new"),
        lambda: folder.finish("cell", [completion("b")]),
        lambda: folder.judge("cell", "matcher", []),
        lambda: folder.write_summary(full_summary()),
        lambda: open_run(tmp_path / "new", ABOUT),
    ):
        with pytest.raises(RunError, match=r"must be written, but No space left on device"):
            attempt()
    assert files(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_row_that_finds_no_room_is_an_error(tmp_path: Path):
    """/dev/full is opened like a file and refuses every byte."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/cell.partial.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="must be written, but No space left on device"):
        RunFolder(tmp_path).append("cell", completion("a"))


def room(folder: RunFolder, row: Completion) -> bool:
    try:
        folder.append("cell", row)
    except RunError as error:
        assert "No space left on device" in str(error)  # noqa: PT017
        return False
    return True


def test_a_real_small_disk_fills_and_the_run_goes_on_with_room(tmp_path: Path):
    """On a file system of 64 KiB, where this user may mount one: the rows that fitted are there, none is half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        folder = open_run(disk / "run", ABOUT)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(40 * 1024))
        rows = [completion(f"p{index}", "é" * 700) for index in range(60)]
        kept = 0
        while room(folder, rows[kept]):
            kept += 1
        assert 2 < kept < 10
        torn = (disk / "run/cells/cell.partial.jsonl").read_bytes()
        with pytest.raises(RunError, match="No space left"):
            folder.recover("cell")
        assert sorted(files(disk)) == ["ballast", "run/cells/cell.partial.jsonl", "run/run.json"]
        assert (disk / "run/cells/cell.partial.jsonl").read_bytes() == torn
        ballast.unlink()
        assert folder.recover("cell") == tuple(rows[:kept])
        folder.append("cell", rows[kept])
        assert folder.recover("cell") == tuple(rows[: kept + 1])
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_a_killed_process_had_half_written_is_gone_when_its_run_goes_on(tmp_path: Path):
    folder = tmp_path / "run"
    open_run(folder, {"model": "m"})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / "judgements" / "matcher").mkdir(parents=True)
    orphan = folder / "judgements" / "matcher" / f".cell.jsonl.{gone.pid}.partial"
    living = folder / f".summary.json.{os.getpid()}.partial"
    rows = folder / "cells" / "cell.partial.jsonl"
    rows.parent.mkdir()
    for path in (orphan, living, rows):
        path.write_text("half")
    open_run(folder, {"model": "m"})
    assert [path.exists() for path in (orphan, living, rows)] == [False, True, True]
