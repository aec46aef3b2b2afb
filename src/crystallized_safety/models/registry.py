"""Which models have a name, and what a name means: an alias, a hub id, a local folder or a GGUF file.

Reads `configs/models.yaml`, whose first lines explain the fields. What this module does not know: torch, transformers,
the network, whether weights are present.
"""

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from crystallized_safety.config import resource
from crystallized_safety.errors import ModelError

__all__ = [
    "FileSource",
    "FolderSource",
    "HubSource",
    "ModelEntry",
    "PackageSource",
    "Source",
    "read_registry",
    "registry",
    "resolve",
]

_STRICT = ConfigDict(extra="forbid")
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=_STRICT)
class HubSource:
    """A repository on the Hugging Face hub: safetensors weights, or one GGUF `file`. No `revision` means the newest."""

    hub: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"hub {self.hub}@{self.revision or 'main'}"


@dataclass(frozen=True, config=_STRICT)
class PackageSource:
    """Packages of a registry that carry one GGUF file as data, in `parts` that are joined in this order."""

    packages: Literal["pypi", "npm"]
    parts: tuple[str, ...]
    member: str

    def __str__(self) -> str:
        others = f" … {self.parts[-1]}" if len(self.parts) > 1 else ""
        return f"packages {self.packages} {self.parts[0]}{others}"


@dataclass(frozen=True)
class FolderSource:
    """A local folder that `save_pretrained` or a hub download wrote."""

    folder: Path

    def __str__(self) -> str:
        return f"folder {self.folder}"


@dataclass(frozen=True)
class FileSource:
    """A local GGUF file."""

    path: Path

    def __str__(self) -> str:
        return f"file {self.path}"


Source = HubSource | PackageSource | FolderSource | FileSource


@dataclass(frozen=True, config=_STRICT)
class ModelEntry:
    """What a name means. `n_layers` and `d_model` are None for a model that the registry does not list.

    `sha256` is that of the one GGUF file which every source serves, None where the sources hold safetensors. `disk_mb` is
    the room in MB that fetching and converting need.
    """

    alias: str
    family: str
    title: str
    sources: tuple[Source, ...]
    n_layers: int | None = None
    d_model: int | None = None
    known_as: tuple[str, ...] = ()
    sha256: Sha256 | None = None
    disk_mb: int = 0

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Every hub id that means this entry."""
        return tuple(source.hub for source in self.sources if isinstance(source, HubSource)) + self.known_as


@dataclass(frozen=True, config=_STRICT)
class _Listed:
    """One entry of models.yaml; stricter than ModelEntry, because a registry must pin what it lists."""

    family: str
    title: str
    n_layers: Annotated[int, Field(gt=0)]
    d_model: Annotated[int, Field(gt=0)]
    sources: Annotated[tuple[HubSource | PackageSource, ...], Field(min_length=1)]
    known_as: tuple[str, ...] = ()
    sha256: Sha256 | None = None
    disk_mb: int = 0

    @model_validator(mode="after")
    def _pinned(self) -> "_Listed":
        for source in self.sources:
            if isinstance(source, HubSource) and not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
                raise ValueError(f"revision of {source.hub} must be a commit of 40 hexadecimal digits")
            gguf = isinstance(source, PackageSource) or source.file is not None
            if gguf != (self.sha256 is not None):
                raise ValueError("an entry has a sha256 if and only if its sources serve one GGUF file")
        return self


def read_registry(path: Path) -> Mapping[str, ModelEntry]:
    """Read the entries of a registry file by alias, in the order of the file. Raises ModelError where the file breaks a rule."""
    try:
        listed = TypeAdapter(dict[str, _Listed]).validate_python(yaml.safe_load(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"The registry {path} must be valid, but {where}: {first['msg']}. Mend the file.") from error
    entries = {alias: ModelEntry(alias=alias, **vars(fields)) for alias, fields in listed.items()}
    claimed = [hub for entry in entries.values() for hub in entry.hub_ids]
    twice = sorted({hub for hub in claimed if claimed.count(hub) > 1})
    if twice:
        raise ModelError(f"A hub id must mean one entry of {path}, but {twice[0]} is in two. Remove one of them.")
    return entries


@lru_cache(maxsize=1)
def registry() -> Mapping[str, ModelEntry]:
    """Return the entries of the packaged configs/models.yaml by alias, in the order of the file."""
    return read_registry(resource("configs", "models.yaml"))


def resolve(name: str) -> ModelEntry:
    """Return the entry that `name` means: an alias, a hub id with or without @REVISION, a local folder or a .gguf file.

    Registered names come first, so that `Meta-Llama-3.1-8B-Instruct` under its old hub id gets the pinned revision; write
    ./NAME for a folder that is called like one. Raises ModelError with the nearest aliases where nothing fits.
    """
    entries = registry()
    by_hub_id = {hub: entry for entry in entries.values() for hub in entry.hub_ids}
    if name in entries or name in by_hub_id:
        return entries.get(name) or by_hub_id[name]
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _local(name, FileSource(path.resolve()), found=path.is_file())
    if path.is_dir():
        return _local(name, FolderSource(path.resolve()), found=(path / "config.json").is_file())
    match = _HUB_ID.fullmatch(name)
    if match and not name.startswith("."):
        source = HubSource(hub=match["repo"], revision=match["revision"])
        return ModelEntry(alias=match["repo"].replace("/", "--"), family="other", title=name, sources=(source,))
    near = difflib.get_close_matches(name.lower(), entries, n=3, cutoff=0.4) or list(entries)
    raise ModelError(
        f"A model must be an alias, a hub id (owner/name), a folder or a .gguf file, but '{name}' is none of them. "
        f"Nearest aliases: {', '.join(near)}."
    )


def _local(name: str, source: FolderSource | FileSource, *, found: bool) -> ModelEntry:
    if not found:
        wanted = "hold config.json" if isinstance(source, FolderSource) else "exist"
        raise ModelError(f"The model {source} must {wanted}, but it does not. Check the path '{name}'.")
    stem = source.path.stem if isinstance(source, FileSource) else source.folder.name
    return ModelEntry(alias=stem, family="other", title=name, sources=(source,))
