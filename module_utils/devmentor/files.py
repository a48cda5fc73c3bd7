"""What is on disk: the pure part of `config_files` (current, desired, diff)."""

from __future__ import annotations

import dataclasses
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Mapping
from typing import Any


class FilesError(Exception):
    """A desired file, directory, link or user that cannot be had; the message says what, where and the remedy."""


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Owner, group (names) and mode (permission bits) of a path."""

    owner: str
    group: str
    mode: int

    def text(self) -> str:
        return f"{self.owner}:{self.group} {self.mode:04o}"


@dataclasses.dataclass(frozen=True)
class Current:
    """A path as it is. `kind` is absent, file, directory, link or other."""

    kind: str
    attributes: Attributes | None = None
    content: bytes | None = None
    target: str | None = None


def parse_mode(mode: str, path: str) -> int:
    """Octal permission bits of a quoted mode such as '0640'. Raises FilesError on anything else."""
    try:
        value = int(mode, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise FilesError(f"{path}: mode {mode!r} is not octal. Write it quoted, such as '0640'.")
    return value


def _name(lookup: object, number: int) -> str:
    try:
        return lookup(number)[0]  # type: ignore[operator,no-any-return]
    except KeyError:
        return str(number)


def read_current(path: str, with_content: bool = True) -> Current:
    """The state of `path` without following a final link."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Current("absent")
    owner, group = _name(pwd.getpwuid, info.st_uid), _name(grp.getgrgid, info.st_gid)
    attributes = Attributes(owner, group, stat.S_IMODE(info.st_mode))
    if stat.S_ISLNK(info.st_mode):
        return Current("link", attributes, target=os.readlink(path))
    if stat.S_ISDIR(info.st_mode):
        return Current("directory", attributes)
    if stat.S_ISREG(info.st_mode):
        content = None
        if with_content:
            with open(path, "rb") as handle:
                content = handle.read()
        return Current("file", attributes, content)
    return Current("other", attributes)


def file_reasons(current: Current, content: bytes, want: Attributes) -> list[str]:
    """Why a regular file differs from what is wanted; empty when it does not."""
    if current.kind == "absent":
        return ["missing"]
    if current.kind != "file":
        return [f"is a {current.kind}"]
    reasons = []
    if current.content != content:
        reasons.append("content")
    reasons += attribute_reasons(current, want)
    return reasons


def attribute_reasons(current: Current, want: Attributes) -> list[str]:
    """Why owner, group or mode differ; empty when they do not."""
    if current.attributes is None or current.attributes == want:
        return []
    return [f"{current.attributes.text()} -> {want.text()}"]


def digest(content: bytes) -> str:
    """Short sha256 of a content, for diffs that must not show it."""
    return hashlib.sha256(content).hexdigest()[:12]


def account_gaps(want: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an entry of `users` lacks, in the order to make it: ("group", name), ("user", name), ("member", group)."""
    primary = want["group"] or want["name"]
    groups = {group.gr_name: group for group in grp.getgrall()}
    gaps = [("group", name) for name in dict.fromkeys([primary, *want["groups"]]) if name not in groups]
    try:
        gid = pwd.getpwnam(want["name"]).pw_gid
        own = {name for name, group in groups.items() if group.gr_gid == gid or want["name"] in group.gr_mem}
    except KeyError:
        gaps.append(("user", want["name"]))
        own = {primary}
    return gaps + [("member", group) for group in want["groups"] if group not in own]


def missing_parents(path: str) -> list[str]:
    """The parent directories of `path` that do not exist, outermost first."""
    missing: list[str] = []
    parent = os.path.dirname(path)
    while parent and not os.path.isdir(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    return missing[::-1]


def with_block(text: str, name: str, content: str, path: str) -> str:
    """`text` with `content` between the lines `# BEGIN name` and `# END name`, as ansible.builtin.blockinfile marks it.

    A block that is there is replaced where it stands, a new one comes first. Raises FilesError where only one of the
    two lines is there, or either twice: what lies between is not known to be ours.
    """
    begin, end = f"# BEGIN {name}", f"# END {name}"
    block = [begin, *content.splitlines(), end]
    lines = text.splitlines()
    counts = lines.count(begin), lines.count(end)
    if counts == (0, 0):
        return "\n".join([*block, *lines]) + "\n"
    if counts != (1, 1) or lines.index(begin) > lines.index(end):
        raise FilesError(
            f"{path}: the lines {begin!r} and {end!r} must stand there once each, in this order. Mend or remove "
            "them and run again."
        )
    return "\n".join([*lines[: lines.index(begin)], *block, *lines[lines.index(end) + 1 :]]) + "\n"
