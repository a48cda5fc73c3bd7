"""Artefacts that are not Debian packages: declared once, fetched and verified on the control node.

An artefact is one file. It has a version, the sha256 of that file, and sources in order of preference; each source has
the sha256 of what is downloaded and, where that is an archive, the member to take from it:

    qdrant:
      version: 1.16.3
      file: qdrant
      mode: "0755"
      sha256: <of the file>
      sources:
        - {from: "https://vendor/qdrant.tar.gz", sha256: <of the archive>, member: qdrant}
        - {from: "npm:@scope/name@1.16.3", sha256: <of the tarball>, member: package/bin/qdrant}

A source is an https URL, `npm:NAME@VERSION`, `pypi:NAME==VERSION` or `file:PATH`. Registries are named by package only
and asked through their own clients, so the control node's settings decide which host that is.

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
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20
CLIENT_TIMEOUT_S = 900
URL_TIMEOUT_S = 60
URL_ATTEMPTS = 3

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MODE = re.compile(r"0[0-7]{3}\Z")
_NPM = re.compile(r"(?P<name>(?:@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*)@(?P<version>[0-9][\w.+-]*)\Z")
_PYPI = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[0-9][\w.+!-]*)\Z")
_KEYS = {"version", "file", "mode", "sha256", "sources"}
_SOURCE_KEYS = {"from", "sha256", "member"}

Progress = Callable[[str, int, int], None]
"""Called with a label, the bytes so far and the bytes expected (0 where the server does not say)."""


class ArtifactError(Exception):
    """An artefact that cannot be had; the message names artefact, source, what is wrong and the remedy."""


class ChecksumError(ArtifactError):
    """What was downloaded or extracted is not what the checksum says. Nothing of it is kept."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a declaration. `code` is stable; tests and preflight refer to it."""

    artifact: str
    code: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"artefact {self.artifact}: {self.message} {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an artefact comes from. kind is https, npm, pypi or file; location is the part after it."""

    kind: str
    location: str
    sha256: str
    member: str | None = None

    def __str__(self) -> str:
        return self.location if self.kind == "https" else f"{self.kind}:{self.location}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One file with its checksum and sources, in order of preference."""

    name: str
    version: str
    file: str
    mode: str
    sha256: str
    sources: tuple[Source, ...]

    @property
    def release(self) -> str:
        """Name of this exact content, fit for a directory: version and the start of its checksum."""
        return f"{self.version}-{self.sha256[:12]}"


@dataclasses.dataclass(frozen=True)
class Fetched:
    """An artefact in the cache. `source` is the one it came from in this call, empty where it was there already."""

    artifact: Artifact
    path: Path
    source: str

    @property
    def changed(self) -> bool:
        return bool(self.source)


def parse_source(text: str) -> tuple[str, str]:
    """Kind and location of a source. Raises ValueError with the accepted forms."""
    kind, separator, rest = text.partition(":")
    if separator and rest:
        if kind == "https" and urllib.parse.urlsplit(text).hostname:
            return "https", text
        if kind == "npm" and _NPM.match(rest):
            return "npm", rest
        if kind == "pypi" and _PYPI.match(rest):
            return "pypi", rest
        if kind == "file":
            return "file", rest
    raise ValueError(f"{text!r} is not a source; use https://..., npm:NAME@VERSION, pypi:NAME==VERSION or file:PATH.")


def _checksum_problem(name: str, value: object, where: str, what: str) -> Problem | None:
    if value in (None, ""):
        return Problem(
            name,
            "checksum-missing",
            f"{where} has no sha256.",
            f"Add the sha256 of {what}; without it nothing is fetched.",
        )
    if not isinstance(value, str) or not _SHA256.match(value):
        return Problem(
            name,
            "checksum-malformed",
            f"{where} has the sha256 {value!r}.",
            "A sha256 is 64 lower-case hexadecimal digits, quoted.",
        )
    return None


def _source_problems(name: str, index: int, source: object, final: object) -> Iterator[Problem]:
    where = f"sources[{index}]"
    if not isinstance(source, Mapping):
        yield Problem(
            name, "source-malformed", f"{where} is not a mapping.", "Write {from: ..., sha256: ..., member: ...}."
        )
        return
    for key in sorted(set(source) - _SOURCE_KEYS):
        close = difflib.get_close_matches(str(key), _SOURCE_KEYS, 1)
        yield Problem(
            name,
            "key-unknown",
            f"{where} has the unknown key {key!r}.",
            f"Did you mean {close[0]!r}?" if close else "Remove it.",
        )
    try:
        parse_source(str(source.get("from", "")))
    except ValueError as error:
        yield Problem(name, "source-malformed", f"{where}: {error}", "Correct it.")
    where = f"{where} ({source.get('from')})"
    problem = _checksum_problem(name, source.get("sha256"), where, "what is downloaded from it")
    if problem:
        yield problem
    elif not source.get("member") and isinstance(final, str) and _SHA256.match(final) and source["sha256"] != final:
        yield Problem(
            name,
            "checksum-contradiction",
            f"{where} is used as it is, but its sha256 differs from the artefact's.",
            "Name the member to extract, or make both checksums the same.",
        )
    member = source.get("member")
    if member and (str(member).startswith("/") or ".." in str(member).split("/")):
        yield Problem(
            name, "member-malformed", f"{where} names the member {member!r}.", "Give a path inside the archive."
        )


def _artifact_problems(name: str, entry: object) -> Iterator[Problem]:
    if not _NAME.match(name):
        yield Problem(
            name,
            "name-malformed",
            "the name is not usable as a folder.",
            "Use lower-case letters, digits, '.', '_' and '-'.",
        )
    if not isinstance(entry, Mapping):
        yield Problem(name, "entry-malformed", "the entry is not a mapping.", "Give version, file, sha256 and sources.")
        return
    for key in sorted(set(entry) - _KEYS):
        close = difflib.get_close_matches(str(key), _KEYS, 1)
        yield Problem(
            name, "key-unknown", f"unknown key {key!r}.", f"Did you mean {close[0]!r}?" if close else "Remove it."
        )
    if not isinstance(entry.get("version"), str) or not entry["version"]:
        yield Problem(
            name,
            "version-missing",
            "no version, or one that YAML read as a number.",
            "Give the version as a quoted string.",
        )
    file = entry.get("file", name)
    if not isinstance(file, str) or Path(file).name != file or not file.strip("."):
        yield Problem(name, "file-malformed", f"{file!r} is not a file name.", "Give a name without folders.")
    if not isinstance(entry.get("mode", "0644"), str) or not _MODE.match(entry.get("mode", "0644")):
        yield Problem(
            name, "mode-malformed", f"mode {entry.get('mode')!r}.", "Quote it and begin with 0, such as '0755'."
        )
    problem = _checksum_problem(name, entry.get("sha256"), "the entry", "the final file")
    if problem:
        yield problem
    sources = entry.get("sources")
    if not isinstance(sources, list) or not sources:
        yield Problem(name, "sources-missing", "no sources.", "List at least one, in order of preference.")
        return
    for index, source in enumerate(sources):
        yield from _source_problems(name, index, source, entry.get("sha256"))


def validate_artifacts(declared: Mapping[str, object]) -> list[Problem]:
    """Everything that is wrong with a `devmentor_artifacts` dictionary; touches neither disk nor network."""
    if not isinstance(declared, Mapping):
        return [
            Problem(
                "*",
                "entry-malformed",
                "devmentor_artifacts is not a mapping.",
                "Give name: {version, sha256, sources}.",
            )
        ]
    return [problem for name, entry in declared.items() for problem in _artifact_problems(str(name), entry)]


def parse_artifact(name: str, entry: Mapping[str, Any]) -> Artifact:
    """The artefact of a declaration. Raises ArtifactError with every problem it has."""
    problems = list(_artifact_problems(name, entry))
    if problems:
        raise ArtifactError(" ".join(str(problem) for problem in problems))
    sources = tuple(
        Source(*parse_source(source["from"]), sha256=source["sha256"], member=source.get("member"))
        for source in entry["sources"]
    )
    return Artifact(
        name, entry["version"], entry.get("file", name), entry.get("mode", "0644"), entry["sha256"], sources
    )


def select_artifacts(declared: Mapping[str, Any], names: list[str] | None = None) -> list[Artifact]:
    """The named artefacts, all by default. Raises ArtifactError, with the close match, for a name not declared."""
    chosen = sorted(declared) if names is None else names
    for name in chosen:
        if name not in declared:
            close = difflib.get_close_matches(name, list(declared), 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Declared are: {', '.join(sorted(declared)) or 'none'}."
            raise ArtifactError(f"artefact {name} is not in devmentor_artifacts. {hint} See docs/artifacts.md.")
    return [parse_artifact(name, declared[name]) for name in chosen]


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
