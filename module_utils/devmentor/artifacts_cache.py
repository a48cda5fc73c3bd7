"""The control node's cache of artefacts: downloads, verifies and keeps what is declared (artifacts.py).

Nothing enters the cache unverified: downloads and extracted members are hashed in a staging folder of the same file
system and renamed into `<cache>/artifacts/<name>/<sha256>/<file>`. A file found there was therefore correct when it was
put there; its size and time of change are recorded, and it is hashed again when they differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .artifacts import Artifact, ArtifactError, Source

CHUNK = 1 << 20
CLIENT_TIMEOUT_S = 900
URL_TIMEOUT_S = 60
URL_ATTEMPTS = 3

Progress = Callable[[str, int, int], None]
"""Called with a label, the bytes so far and the bytes expected (0 where the server does not say)."""


class ChecksumError(ArtifactError):
    """What was downloaded or extracted is not what the checksum says. Nothing of it is kept."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """An artefact in the cache. `source` is the one it came from in this call, empty where it was there already."""

    artifact: Artifact
    path: Path
    source: str

    @property
    def changed(self) -> bool:
        return bool(self.source)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; a second holder waits. The kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def no_progress(label: str, done: int, total: int) -> None:
    """Says nothing."""


class Fetcher:
    """Puts artefacts into the cache below `cache_dir`; relative `file:` sources are relative to it."""

    def __init__(self, cache_dir: Path, progress: Progress = no_progress, python: str = sys.executable) -> None:
        self._cache = cache_dir.resolve()
        self._root = self._cache / "artifacts"
        self._progress = progress
        self._python = python

    def path(self, artifact: Artifact) -> Path:
        """Where the artefact is, once it is fetched."""
        return self._root / artifact.name / artifact.sha256 / artifact.file

    def cached(self, artifact: Artifact) -> bool:
        """Whether the verified file is there. One that was changed since it was verified is hashed again."""
        path = self.path(artifact)
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if self._read_stamp(path) == [status.st_size, status.st_mtime_ns]:
            return True
        if sha256_of(path) != artifact.sha256:
            return False
        self._write_stamp(path)
        return True

    def fetch(self, artifact: Artifact) -> Fetched:
        """Have the artefact in the cache, from the first source that works.

        Raises ChecksumError at once on a wrong checksum (another source would hide a tampered one) and ArtifactError
        where no source can be reached.
        """
        with locked(self._root / artifact.name / ".lock"):
            if self.cached(artifact):
                return Fetched(artifact, self.path(artifact), "")
            failures = []
            for source in artifact.sources:
                try:
                    self._fetch_from(artifact, source)
                except ChecksumError:
                    raise
                except ArtifactError as error:
                    failures.append(f"{source}: {error}")
                else:
                    return Fetched(artifact, self.path(artifact), str(source))
        raise ArtifactError(
            f"artefact {artifact.name} {artifact.version} could not be fetched from any of its sources. "
            + " | ".join(failures)
            + " Remedy: make one of them reachable from the control node, or add a file: source (docs/artifacts.md)."
        )

    def _fetch_from(self, artifact: Artifact, source: Source) -> None:
        target = self.path(artifact)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=self._root / artifact.name) as folder:
            staging = Path(folder)
            download = self._download(artifact, source, staging)
            self._verify(artifact, source, download, source.sha256, f"what {source} delivers")
            final = staging / "final" / artifact.file
            final.parent.mkdir()
            if source.member is None:
                shutil.copyfile(download, final)
            else:
                extract_member(download, source.member, final)
            self._verify(artifact, source, final, artifact.sha256, f"the file {artifact.file} from {source}")
            final.chmod(int(artifact.mode, 8))
            with final.open("rb") as stream:
                os.fsync(stream.fileno())
            final.replace(target)
        self._write_stamp(target)
        self._partial(source).unlink(missing_ok=True)

    def _verify(self, artifact: Artifact, source: Source, path: Path, expected: str, what: str) -> None:
        got = sha256_of(path)
        if got == expected:
            return
        self._partial(source).unlink(missing_ok=True)
        raise ChecksumError(
            f"artefact {artifact.name} {artifact.version}: wrong checksum of {what}: expected sha256 {expected}, "
            f"got {got}. Nothing of it was kept. Remedy: compare with the vendor's published checksum; if the "
            "declaration is wrong correct it in group_vars/all/artifacts.yml, if it is right the source delivers "
            "something else: do not use it."
        )

    def _download(self, artifact: Artifact, source: Source, staging: Path) -> Path:
        label = f"{artifact.name} {artifact.version} from {source}"
        if source.kind == "file":
            path = self._cache / Path(source.location).expanduser()
            if not path.is_file():
                raise ArtifactError(f"{path} does not exist on the control node.")
            return path
        if source.kind == "https":
            return self._download_url(source, label)
        self._progress(label, 0, 0)
        folder = staging / "download"
        folder.mkdir()
        if source.kind == "npm":
            run_client(
                ["npm", "pack", "--silent", "--ignore-scripts", f"--pack-destination={folder}", source.location],
                staging,
            )
        else:
            run_client(
                [
                    self._python,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--only-binary=:all:",
                    "-d",
                    str(folder),
                    source.location,
                ],
                staging,
            )
        files = list(folder.iterdir())
        if len(files) != 1:
            raise ArtifactError(f"the client left {len(files)} files instead of one.")
        return files[0]

    def _partial(self, source: Source) -> Path:
        """A download in progress, named by the checksum it must have: a later call goes on with the same content."""
        return self._root / ".partial" / source.sha256

    def _download_url(self, source: Source, label: str) -> Path:
        partial = self._partial(source)
        partial.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, URL_ATTEMPTS + 1):
            try:
                self._read_url(source.location, partial, label)
                return partial
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # nothing is left to ask for: the checksum decides
                    return partial
                if error.code < 500 or attempt == URL_ATTEMPTS:
                    raise ArtifactError(f"the server answered {error.code} {error.reason}.") from error
            except OSError as error:
                if attempt == URL_ATTEMPTS:
                    raise ArtifactError(f"{error}.") from error
            time.sleep(attempt)
        raise AssertionError("unreachable")

    def _read_url(self, url: str, partial: Path, label: str) -> None:
        have = partial.stat().st_size if partial.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_S) as response:
            resumed = response.status == 206
            total = int(response.headers.get("Content-Length") or 0) + (have if resumed else 0)
            done = have if resumed else 0
            with partial.open("ab" if resumed else "wb") as out:
                while chunk := response.read(CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    self._progress(label, done, total)
        if total and done < total:
            raise OSError(f"the connection ended after {done} of {total} bytes")

    @staticmethod
    def _stamp(path: Path) -> Path:
        return path.with_name(f".{path.name}.verified")

    def _read_stamp(self, path: Path) -> object:
        try:
            return json.loads(self._stamp(path).read_text())
        except (OSError, ValueError):
            return None

    def _write_stamp(self, path: Path) -> None:
        status = path.stat()
        self._stamp(path).write_text(json.dumps([status.st_size, status.st_mtime_ns]))


def run_client(command: list[str], folder: Path) -> None:
    """Run a registry's client in `folder`. Raises ArtifactError with the end of what it said."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError as error:
        raise ArtifactError(f"{command[0]} is not installed on the control node.") from error
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"{Path(command[0]).name} did not finish in {CLIENT_TIMEOUT_S} s.") from error
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip() and "WARNING" not in line]
        raise ArtifactError(f"{' '.join(command[:4])} ended with {done.returncode}: {' '.join(said[-6:])}")


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Write one member of a zip (wheel) or tar archive to `target`. Raises ArtifactError where it is not there."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                _copy_member(member, bundle.namelist(), bundle.open, target)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as bundle:
                _copy_member(member, bundle.getnames(), bundle.extractfile, target)
        else:
            raise ArtifactError(f"member {member!r} is wanted, but the download is neither a zip nor a tar archive.")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(f"the archive cannot be read: {error}.") from error


def _copy_member(member: str, names: list[str], open_member: Callable[[str], IO[bytes] | None], target: Path) -> None:
    stream = open_member(member) if member in names else None
    if stream is None:
        close = difflib.get_close_matches(member, names, 3)
        raise ArtifactError(f"there is no file {member!r} in the archive; close are: {', '.join(close) or 'none'}.")
    with stream, target.open("wb") as out:
        shutil.copyfileobj(stream, out, CHUNK)
