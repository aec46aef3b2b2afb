"""Label a JSONL file of prompts and completions, line by line, into another file that appears whole or not at all.

What this module does not know: how a label is decided; `matcher` does.
"""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, get_args

from crystallized_safety.errors import InputError
from crystallized_safety.evaluation.matcher import JUDGE, judge_by_matcher
from crystallized_safety.records import Judgement, Label

__all__ = ["label_file"]

_ADDED = ("label", "judge", "reason")


def label_file(source: Path, target: Path) -> dict[Label, int]:
    """Write every line of `source` to `target` with its label, judge and reason, and return the count of each label.

    A line of `source` is a JSON object in UTF-8 with "prompt" (text) and "completion" (text, or null where the model gave
    none, which is labelled unscored); other fields are kept as they are. Lines are streamed, so memory does not grow with
    the file. `target` is written under a temporary name in its own folder, fsynced and renamed; an older file of that name
    is replaced.

    Raises InputError, naming file and line, for a line that is not such an object, a source that is missing or empty, and
    a target that is the source or cannot be written. Then nothing is left behind.
    """
    _check_paths(source, target)
    counts: dict[Label, int] = dict.fromkeys(get_args(Label), 0)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with source.open("rb") as lines, temporary.open("x", encoding="utf-8", newline="\n") as labelled:
            for row in _rows(lines, source):
                judgement = _judge(row)
                counts[judgement.label] += 1
                added = {"label": judgement.label, "judge": judgement.judge, "reason": judgement.reason}
                labelled.write(json.dumps({**row, **added}) + "\n")
            if not sum(counts.values()):
                raise InputError(
                    f"'{source}' must hold at least one completion, but it is empty. Write one JSON object a line."
                )
            labelled.flush()
            os.fsync(labelled.fileno())
        temporary.replace(target)
    except OSError as error:
        raise InputError(
            f"'{source}' must be readable and '{target}' writable, but the system said: {error}. Choose other paths."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return counts


def _check_paths(source: Path, target: Path) -> None:
    """Refuse paths that cannot work before anything is opened."""
    if not source.is_file():
        raise InputError(f"The source must be a JSONL file, but '{source}' is no file. Check the path.")
    if target.resolve() == source.resolve() or (target.exists() and target.samefile(source)):
        raise InputError(
            f"The target must be another file than the source, but both are '{source}'. Name another target."
        )
    if target.is_dir():
        raise InputError(f"The target must be a file, but '{target}' is a folder. Name a file in it.")
    if not target.parent.is_dir():
        raise InputError(f"The target's folder must exist, but '{target.parent}' does not. Make it first.")


def _rows(lines: Iterator[bytes], source: Path) -> Iterator[dict[str, object]]:
    """Yield the object of each line; the first line that is unusable raises InputError."""
    for number, line in enumerate(lines, start=1):
        yield _row(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"'{source}', line {number},")


def _row(line: bytes, where: str) -> dict[str, object]:
    """Read one line."""
    wanted = 'must be a JSON object with "prompt" and "completion"'
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} must be UTF-8, but byte {error.start + 1} is not. Save the file as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        came = "is blank" if not line.strip() else f"is not JSON: {error}"
        raise InputError(f"{where} {wanted}, but it {came}. Mend or remove the line.") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} {wanted}, but it is a JSON {type(row).__name__}. Write one object a line.")
    for key, kinds, words in (("prompt", (str,), "text"), ("completion", (str, type(None)), "text or null")):
        if key not in row:
            raise InputError(f'{where} {wanted}, but "{key}" is missing. Add it.')
        if not isinstance(row[key], kinds):
            raise InputError(
                f'{where} must have {words} as "{key}", but it is {type(row[key]).__name__}. Mend the line.'
            )
    for key in _ADDED:
        if key in row:
            raise InputError(
                f'{where} must not have a field "{key}" yet, but it has one. Rename it, for example "old_{key}".'
            )
    return row


def _refuse_constant(name: str) -> NoReturn:
    """Reject NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is not a JSON value")


def _judge(row: dict[str, object]) -> Judgement:
    """Judge one row whose types have been checked."""
    completion = row["completion"]
    if completion is None:
        return Judgement(label="unscored", judge=JUDGE, reason="no completion was given")
    return judge_by_matcher(str(row["prompt"]), str(completion))
