"""The prompt set: read it from JSONL, check it, take balanced parts of it, name it by a fingerprint.

A prompt set is a file with one `records.Prompt` a line. `pair` joins a harmful prompt with its harmless twin, and
`cluster` is the unit of independence: it is never split, so that what was extracted from is never tested on.

What this module does not know: models, tokens, what a model answers, and whether a label is just. It checks form and
splits; that length and vocabulary do not give the label away is checked by the tests of the packaged set.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from crystallized_safety.config import resource
from crystallized_safety.errors import InputError
from crystallized_safety.records import Prompt, PromptLabel, Split

__all__ = ["fingerprint", "load_prompts", "select"]

_PACKAGED = ("pairs.jsonl", "borderline.jsonl", "neutral.jsonl")
_FILLED = ("id", "text", "category", "cluster")


@dataclass(frozen=True)
class _Line(Prompt):
    """A prompt as it stands in a file, where a field nobody knows is an error."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_LINE = TypeAdapter(_Line)


@dataclass(frozen=True)
class _Placed:
    """A prompt and where it was read, for the error that two lines cause together."""

    prompt: Prompt
    where: str


def load_prompts(path: Path | None = None) -> tuple[Prompt, ...]:
    """Read and check one JSONL file of prompts, or the packaged prompt set, in file order.

    Raises InputError, with file and line, if the file cannot be read, a line is no prompt, or lines contradict each other.
    """
    paths = [resource("data", "prompts", name) for name in _PACKAGED] if path is None else [path]
    placed = [item for file in paths for item in _read(file)]
    if not placed:
        raise InputError(f"{paths[0]} must hold at least one prompt, but it is empty. Write one JSON object a line.")
    _check_ids(placed)
    _check_clusters(placed)
    _check_pairs(placed)
    return tuple(item.prompt for item in placed)


def select(
    prompts: Iterable[Prompt],
    *,
    label: PromptLabel | None = None,
    split: Split | None = None,
    limit: int | None = None,
) -> tuple[Prompt, ...]:
    """Take at most `limit` prompts of one label and split, spread over the categories, whatever the order of `prompts`.

    Categories take turns in alphabetical order, and each gives its pairs in order. Harmful and harmless selections with the
    same split and limit therefore hold the twins of the same pairs at the same places.
    Raises InputError if `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(
            f"The limit of a selection must be 1 or more, but it is {limit}. Leave it out to take all prompts."
        )
    categories: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if label in (None, prompt.label) and split in (None, prompt.split):
            categories[prompt.category].append(prompt)
    queues = [sorted(categories[name], key=lambda prompt: (prompt.pair, prompt.id)) for name in sorted(categories)]
    rounds = chain.from_iterable(zip_longest(*queues))
    return tuple(prompt for prompt in rounds if prompt is not None)[:limit]


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """Hash (SHA-256) what a measurement depends on, which is all but source and licence, whatever the order of the prompts."""
    lines = sorted([one.id, one.text, one.label, one.category, one.cluster, one.pair, one.split] for one in prompts)
    canonical = json.dumps(lines, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read(path: Path) -> list[_Placed]:
    """Read the prompts of one file and check every line for itself."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} must be a JSONL file of prompts, but it cannot be read ({error.strerror}). Check the path."
        ) from error
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> _Placed:
    """Read one line as a prompt."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        came = f"byte 0x{line[error.start]:02x} stands at position {error.start}"
        raise InputError(f"{where}: must be UTF-8, but {came}. Save the file as UTF-8.") from error
    try:
        prompt = Prompt(**asdict(_LINE.validate_json(text)))
    except ValidationError as error:
        raise InputError(f"{where}: must be a prompt, but {_came(error)}. Mend the line.") from error
    for name in _FILLED:
        if not getattr(prompt, name).strip():
            raise InputError(f"{where}: '{name}' must not be empty, but it is {getattr(prompt, name)!r}. Fill it in.")
    return _Placed(prompt, where)


def _came(error: ValidationError) -> str:
    """Say what came instead of a prompt, from the first complaint of pydantic."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "missing" | "missing_argument":
            return f"the field '{field}' is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"the field '{field}' is not known"
        case "literal_error":
            return f"'{field}' is {first['input']!r}, not {first['ctx']['expected']}"
        case "json_invalid":
            return f"it is not valid JSON ({first['ctx']['error']})"
        case _:
            return f"{field or 'the line'} is {first['input']!r} ({first['msg']})"


def _check_ids(placed: Sequence[_Placed]) -> None:
    """Refuse an id that stands twice."""
    seen: dict[str, str] = {}
    for item in placed:
        first = seen.setdefault(item.prompt.id, item.where)
        if first != item.where:
            raise InputError(
                f"{item.where}: each id must stand once, but {item.prompt.id!r} came before ({first}). Rename one of them."
            )


def _check_clusters(placed: Sequence[_Placed]) -> None:
    """Refuse a cluster in two splits."""
    seen: dict[str, _Placed] = {}
    for item in placed:
        first = seen.setdefault(item.prompt.cluster, item)
        if first.prompt.split != item.prompt.split:
            raise InputError(
                f"{item.where}: a cluster must lie in one split, but {item.prompt.cluster!r} is in {item.prompt.split!r} here "
                f"and in {first.prompt.split!r} before ({first.where}). Move one of them, or give it its own cluster."
            )


def _check_pairs(placed: Sequence[_Placed]) -> None:
    """Refuse a pair that is not one harmful and one harmless prompt of one category and cluster."""
    pairs: defaultdict[str, list[_Placed]] = defaultdict(list)
    for item in placed:
        if item.prompt.pair:
            pairs[item.prompt.pair].append(item)
    for name, items in pairs.items():
        labels = sorted(item.prompt.label for item in items)
        homes = {(item.prompt.category, item.prompt.cluster) for item in items}
        if labels != ["harmful", "harmless"] or len(homes) != 1:
            raise InputError(
                f"{items[-1].where}: a pair must be one harmful and one harmless prompt of one category and cluster, but pair "
                f"{name!r} has {', '.join(labels)} in {len(homes)} of them. Mend the pair, or leave 'pair' empty."
            )
