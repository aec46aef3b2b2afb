"""The Hugging Face hub as a source: its local cache first, then one short probe, then the download.

The hub's own progress bars stay as the user set them, because a download can last an hour. What this module does not know:
other sources, the registry's aliases.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: httpx or httpx2, as the hub client has it
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from crystallized_safety.errors import ModelError
from crystallized_safety.models.packages import file_sha256
from crystallized_safety.models.registry import HubSource

__all__ = ["PROBE_SECONDS", "hub_file", "hub_folder", "probe"]

PROBE_SECONDS = 3.0
"""Wall time after which a silent hub counts as unreachable."""

_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_UNWANTED = ["*/*", "consolidated*"]


def hub_folder(source: HubSource, *, known_as: tuple[str, ...], report: Callable[[str], None]) -> Path:
    """Fetch the snapshot of a safetensors repository, a folder named by its commit.

    A complete snapshot in the hub's local cache, under this or an older name of the repository, needs no network. Raises
    ModelError where the snapshot cannot be had.
    """
    for repo in (source.hub, *known_as):
        try:
            folder = Path(_snapshot(repo, source.revision, local=True))
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        if _complete(folder):
            return folder
    _require_hub(source)
    report(f"downloading {source} into the hub's cache")
    with _sentences(source):
        folder = Path(_snapshot(source.hub, source.revision, local=False))
    if not _complete(folder):
        raise ModelError(f"{source} must hold a config and safetensors weights, but it does not. Choose another model.")
    return folder


def hub_file(source: HubSource, *, sha256: str, report: Callable[[str], None]) -> Path:
    """Fetch one GGUF file of a repository, verified, into the hub's cache. Raises ModelError, and deletes a file of another hash."""
    name = source.file or ""
    cached = try_to_load_from_cache(source.hub, name, revision=source.revision)
    if isinstance(cached, str):
        path = Path(cached)
    else:
        _require_hub(source)
        report(f"downloading {name} from {source}")
        with _sentences(source):
            path = Path(hf_hub_download(source.hub, name, revision=source.revision))
    came = file_sha256(path)
    if came != sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ModelError(
            f"{name} of {source} must have SHA-256 {sha256}, but it has {came}. It was deleted; run again."
        )
    return path


def _snapshot(repo: str, revision: str | None, *, local: bool) -> str:
    return snapshot_download(
        repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=local
    )


def _complete(folder: Path) -> bool:
    """Say whether a snapshot holds a config and every safetensors shard it names; older hub clients return partial ones."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
    return all((folder / shard).is_file() for shard in set(shards))


def _require_hub(source: HubSource) -> None:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} or constants.HF_HUB_OFFLINE
    failure = "HF_HUB_OFFLINE is set" if offline else probe(constants.ENDPOINT)
    if failure:
        raise ModelError(
            f"{source} must be in the local hub cache or the hub reachable, but it is not cached and {failure}."
        )


@lru_cache(maxsize=8)
def probe(endpoint: str) -> str:
    """Say why `endpoint` cannot be reached, or nothing if any HTTP answer comes within PROBE_SECONDS; asked once a process.

    The request runs in a thread of its own, because a hanging name lookup heeds no timeout.
    """
    answer: Future[int] = Future()

    def ask() -> None:
        try:
            answer.set_result(get_session().head(endpoint, timeout=PROBE_SECONDS).status_code)
        except (HTTPError, OSError, ValueError) as error:
            answer.set_exception(error)

    started = time.monotonic()
    threading.Thread(target=ask, name="hub-probe", daemon=True).start()
    try:
        answer.result(timeout=PROBE_SECONDS)
    except (HTTPError, OSError, ValueError, NoAnswer) as error:
        seconds = time.monotonic() - started
        return f"{endpoint} is unreachable ({seconds:.1f} s probe: {str(error) or type(error).__name__})"
    return ""


@contextmanager
def _sentences(source: HubSource) -> Iterator[None]:
    """Turn the hub client's exceptions into one sentence each."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{source} must be downloadable, but it is not: {_first(error)}. Run again.") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{source} is gated: your account must have access, but it has none. "
            f"Accept the licence at {constants.ENDPOINT}/{source.hub}, then run 'hf auth login' or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{source} must exist and be readable by you, but the hub finds no such repository. Check the name, or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{source} must exist, but the repository has no such revision. Check the revision."
        ) from error
    except (EntryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{source} must serve {source.file or 'the model'}, but it does not: {_first(error)}"
        ) from error
    except (HfHubHTTPError, HTTPError) as error:
        raise ModelError(f"{source} must be downloadable, but it is not: {_first(error)}. Run again.") from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
