"""Texts that a Debian machine has: its manual pages and the documentation of its packages.

Always the same texts in the same order on the same machine: files are taken in the order of the SHA-256 of their paths,
a text that was there before is left out, and so is what is no English prose to speak of (changelogs repeat, copyright
files are each other's copies).
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOTS = (Path("/usr/share/man"), Path("/usr/share/doc"))
_PAGE = re.compile(r"/man/man[1-9][a-z]*/")  # not the translated ones
_DOCUMENT = re.compile(r"\.(txt|md|rst|html|TODO|FAQ|NEWS)(\.gz)?$|/(README|NEWS|FAQ|TODO|HACKING|INSTALL)[^/]*$")
_LEAST_CHARS, _MOST_CHARS = 200, 200_000
_MOST_ALIKE = 100
"""Texts of one family, by the first word of their names: one vendor's tool may have 17,000 pages that are all alike."""
_SHORT = (80, 400)  # characters of a paragraph that stands for a short memory
_FONT = re.compile(r"\\f(?:\[\w*\]|\(\w\w|\w)|\\[&|^]|\\s[+-]?\d+")
_SPECIAL = {r"\-": "-", r"\(aq": "'", r"\(dq": '"', r"\(bu": "*", r"\(en": "-", r"\(em": "-", r"\e": "\\"}
_LAYOUT = ("TH", "Dt", "Dd", "Os", "RS", "RE", "in", "sp", "ne", "ad", "ft", "ll", "ta", "ti")
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Text:
    """A document of the corpus."""

    id: str
    title: str
    body: str


class NoCorpus(Exception):
    """The machine has too few texts; the message says what to install."""


def texts(roots: Sequence[Path] = ROOTS) -> Iterator[Text]:
    """Every text once, in an order that does not depend on the file system."""
    seen: set[bytes] = set()
    families: Counter[str] = Counter()
    for path in sorted(_files(roots), key=lambda file: hashlib.sha256(str(file).encode()).digest()):
        family = re.split(r"[^A-Za-z0-9]", path.name, maxsplit=1)[0].lower()
        if families[family] >= _MOST_ALIKE and _PAGE.search(str(path)):
            continue
        body = read(path)
        digest = hashlib.sha256(re.sub(r"\s+", " ", body).encode()).digest()
        if len(body) < _LEAST_CHARS or digest in seen:
            continue
        seen.add(digest)
        families[family] += 1
        name = re.sub(r"[^A-Za-z0-9._/@+-]", "-", str(path).lstrip("/"))
        yield Text(name.removesuffix(".gz")[-200:], path.name.removesuffix(".gz"), body)


def paragraphs(documents: Iterable[Text]) -> Iterator[Text]:
    """Paragraphs of the length of what a person has remembered, each once, as documents of their own."""
    seen: set[str] = set()
    for document in documents:
        for number, part in enumerate(re.split(r"\n\s*\n", document.body)):
            body = re.sub(r"\s+", " ", part).strip()
            if _SHORT[0] <= len(body) <= _SHORT[1] and body not in seen and body.count(" ") > len(body) / 12:
                seen.add(body)
                yield Text(f"{document.id}/{number}", document.title, body)


def take(found: Iterator[Text], number: int, what: str) -> list[Text]:
    """So many of them. Raises NoCorpus where there are fewer."""
    taken = [text for text, _ in zip(found, range(number), strict=False)]
    if len(taken) < number:
        raise NoCorpus(
            f"{len(taken)} {what} in {', '.join(map(str, ROOTS))}, {number} are needed: install packages with"
            " documentation (man-db, manpages, manpages-dev, perl-doc), or ask for fewer"
        )
    return taken


def read(path: Path) -> str:
    """A file as plain text; empty where it is none."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        body = raw[: 4 * _MOST_CHARS].decode().replace("\x00", "")
    except (OSError, EOFError, ValueError):  # gzip's errors are OSErrors, a wrong encoding is a ValueError
        return ""
    if _PAGE.search(str(path)):
        body = from_roff(body)
    elif ".html" in path.name:
        body = re.sub(r"[ \t]+", " ", _TAG.sub(" ", body))
    return body[:_MOST_CHARS].strip()


def from_roff(source: str) -> str:
    """What a manual page says, sections as headings. It is not rendered: that takes a tenth of a second a page."""
    lines: list[str] = []
    for line in source.split("\n"):
        if line.startswith(('.\\"', "'\\\"", ".de", ".ds", ".if", ".ie", ".el", ".tr", ".nr", ".so")):
            continue
        if line.startswith((".", "'")):
            macro, _, argument = line[1:].strip().partition(" ")
            argument = argument.replace('"', "").strip()
            if macro in ("SH", "Sh", "SS", "Ss"):
                lines += ["", f"## {argument.title()}", ""]
            elif macro in ("PP", "P", "LP", "Pp", "TP", "IP", "It"):
                lines += ["", argument]
            elif len(macro) <= 2 and argument and macro not in _LAYOUT:
                lines.append(argument)
            continue
        lines.append(line)
    text = _FONT.sub("", "\n".join(lines))
    for mark, meant in _SPECIAL.items():
        text = text.replace(mark, meant)
    return re.sub(r"\n{3,}", "\n\n", text)


def _files(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        for path in root.rglob("*"):
            name = str(path)
            if (_PAGE.search(name) or _DOCUMENT.search(name)) and path.is_file() and not path.is_symlink():
                yield path
