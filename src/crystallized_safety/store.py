"""A run on disk: run.json first, one JSONL file a cell, judgements in a parallel tree; everything else is derived.

    RUN/run.json                          what was asked, of which model, with which versions
    RUN/recording.safetensors             what the recording pass left: directions, projections
    RUN/cells/ID.jsonl                    completions of one cell; ID.partial.jsonl while rows still come
    RUN/judgements/JUDGE/ID.jsonl         labels, line by line as in the cell
    RUN/scores.jsonl                      log-probabilities of a screen, in the order in which they came
    RUN/summary.json, table.csv, figures/, report.html

A finished file appears by rename. Rows of an unfinished cell are appended and flushed one by one, so that a killed process
loses only the rows that were being generated. What this module does not know: models, tensors, what a label means.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psutil import pid_exists
from pydantic import TypeAdapter, ValidationError

from crystallized_safety.errors import RunError
from crystallized_safety.records import Completion, Judgement, OpenerScores, Summary

__all__ = ["RunFolder", "open_run", "read_run", "write_whole"]

_COMPLETION = TypeAdapter(Completion)
_JUDGEMENT = TypeAdapter(Judgement)
_SCORES = TypeAdapter(OpenerScores)
_SUMMARY = TypeAdapter(Summary)
_CHANGES_FREELY = frozenset({"started"})


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) that appears whole or not at all. Raises RunError where the disk does not take it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"'{path}' must be written, but {error.strerror or error}. Make room or choose another folder."
        ) from error
    finally:
        with suppress(OSError):  # where the folder could not be made, there is nothing to remove
            partial.unlink()


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. Cells are named by the caller."""

    path: Path

    def finished(self, cell: str) -> bool:
        """Whether the cell is complete."""
        return self._cell(cell).exists()

    def cells(self) -> tuple[str, ...]:
        """Names of the finished cells, in alphabetical order."""
        names = (path.name.removesuffix(".jsonl") for path in (self.path / "cells").glob("*.jsonl"))
        return tuple(sorted(name for name in names if not name.endswith(".partial")))

    def completions(self, cell: str) -> tuple[Completion, ...]:
        """Completions of a finished cell."""
        return tuple(_lines(self._cell(cell), _COMPLETION))

    def recover(self, cell: str) -> tuple[Completion, ...]:
        """Rows that an unfinished cell already has; a line cut by a crash is dropped, from the file too."""
        return _recovered(self._partial(cell), _COMPLETION)

    def append(self, cell: str, completion: Completion) -> None:
        """Add one row to an unfinished cell; a killed process does not lose it, a power cut may."""
        _append(self._partial(cell), completion)

    def finish(self, cell: str, completions: Sequence[Completion]) -> None:
        """Write a complete cell, in the order given, and drop its partial file."""
        write_whole(self._cell(cell), "".join(map(_line, completions)))
        self._partial(cell).unlink(missing_ok=True)

    def judgements(self, cell: str, judge: str) -> tuple[Judgement, ...] | None:
        """Judgements of a cell by one judge, line by line as its completions, or None."""
        path = self._judgements(cell, judge)
        return tuple(_lines(path, _JUDGEMENT)) if path.exists() else None

    def judge(self, cell: str, judge: str, judgements: Iterable[Judgement]) -> None:
        """Write the judgements of a cell."""
        write_whole(self._judgements(cell, judge), "".join(map(_line, judgements)))

    def scores(self) -> tuple[OpenerScores, ...]:
        """Rows that a screen already has; a line cut by a crash is dropped, from the file too."""
        return _recovered(self.path / "scores.jsonl", _SCORES)

    def score(self, scores: OpenerScores) -> None:
        """Add one row of a screen; a killed process does not lose it, a power cut may."""
        _append(self.path / "scores.jsonl", scores)

    def write_summary(self, summary: Summary) -> None:
        """Write summary.json."""
        write_whole(self.path / "summary.json", json.dumps(asdict(summary), indent=1, ensure_ascii=False) + "\n")

    def summary(self) -> Summary:
        """Read summary.json. Raises RunError where the run has not reached its verdict or the file is damaged."""
        path = self.path / "summary.json"
        if not path.is_file():
            raise RunError(
                f"'{self.path}' must hold a finished run, but has no summary.json. Finish it: crystallized run MODEL --output …"
            )
        try:
            return _SUMMARY.validate_json(path.read_bytes())
        except ValidationError as error:
            raise RunError(
                f"'{path}' must be a summary of this version, but: {error.errors()[0]['msg']}. Run again to rebuild it."
            ) from error

    def _cell(self, cell: str) -> Path:
        return self.path / "cells" / f"{cell}.jsonl"

    def _partial(self, cell: str) -> Path:
        return self.path / "cells" / f"{cell}.partial.jsonl"

    def _judgements(self, cell: str, judge: str) -> Path:
        return self.path / "judgements" / judge / f"{cell}.jsonl"


def _recovered(path: Path, kind: TypeAdapter[Any]) -> tuple[Any, ...]:
    """Whole records of a file that rows were appended to; what else it holds is dropped."""
    if not path.exists():
        return ()
    rows = tuple(_lines(path, kind, torn=True))
    whole = "".join(map(_line, rows)).encode()
    if path.read_bytes() != whole:
        write_whole(path, whole)
    return rows


def _append(path: Path, one: Completion | OpenerScores) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(one))
    except OSError as error:
        raise RunError(f"'{path}' must be written, but {error.strerror or error}. Make room and run again.") from error


def _lines(path: Path, kind: TypeAdapter[Any], *, torn: bool = False) -> Iterator[Any]:
    """One record a line. With `torn`, a line that is not one was cut by a crash and is left out."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            yield kind.validate_json(line)
        except ValidationError as error:
            if not torn:
                raise RunError(
                    f"Line {number} of '{path}' must be one record, but: {error.errors()[0]['msg']}. Delete the file and run again."
                ) from error


def _line(one: Completion | Judgement | OpenerScores) -> str:
    return json.dumps(asdict(one), ensure_ascii=False) + "\n"


def open_run(path: Path, about: Mapping[str, Any]) -> RunFolder:
    """The folder of a run, made if it is new. Raises RunError where it holds a run of another configuration."""
    held = path / "run.json"
    if not held.exists():
        if path.exists() and (not path.is_dir() or any(not one.name.endswith(".partial") for one in path.iterdir())):
            came = "holds other files" if path.is_dir() else "is a file"
            raise RunError(
                f"The folder of a run must be new or a run's own, but '{path}' {came}. Choose another --output."
            )
        write_whole(held, json.dumps(about, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        _drop_orphans(path)
        return RunFolder(path)
    before, now = _flat(read_run(path)), _flat(json.loads(json.dumps(about)))
    differ = sorted(
        key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in _CHANGES_FREELY
    )
    if differ:
        shown = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in differ[:4])
        raise RunError(
            f"'{path}' must hold the same run, but these differ: {shown}. Choose another --output, or delete the folder."
        )
    _drop_orphans(path)
    return RunFolder(path)


def _drop_orphans(path: Path) -> None:
    """Delete what `write_whole` had not finished when its process was killed; a process that lives may still finish it."""
    for orphan in path.rglob(".*.partial"):
        owner = orphan.name.split(".")[-2]
        if owner.isdigit() and not pid_exists(int(owner)):
            orphan.unlink(missing_ok=True)


def read_run(path: Path) -> dict[str, Any]:
    """The content of run.json. Raises RunError where there is none or it is damaged."""
    held = path / "run.json"
    if not held.is_file():
        raise RunError(
            f"'{path}' must be the folder of a run, but has no run.json. Pass the --output of an earlier run."
        )
    try:
        about = json.loads(held.read_bytes())
    except ValueError as error:
        raise RunError(f"'{held}' must be JSON, but: {error}. Delete the folder and run again.") from error
    if not isinstance(about, dict):
        raise RunError(
            f"'{held}' must be a JSON object, but is a {type(about).__name__}. Delete the folder and run again."
        )
    return about


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat
