"""Preprocessor: normalise a text and cut it into chunks along its own structure. Pure functions."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*")
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a normalised text: `text == normalised[start:end]`."""

    number: int
    section: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph, a fenced block or a heading, as a span of the text."""

    start: int
    end: int
    section: str


def normalise(text: str) -> str:
    """NFC, LF line ends, no control characters but tab and newline, no trailing blanks."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _CONTROL.sub("", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def words(text: str) -> set[str]:
    """The words of a text, for lexical comparison."""
    return {word.casefold() for word in _WORD.findall(text)}


def chunk(text: str, max_chars: int) -> list[Chunk]:
    """Chunks of at most `max_chars` in the order of the text.

    Sections (Markdown headings) are never mixed in one chunk; paragraphs and fenced blocks are kept
    whole where they fit; what does not fit is cut at sentences, then at blanks, then anywhere.
    """
    spans: list[tuple[int, int, str]] = []
    for block in _blocks(text):
        joins = spans and spans[-1][2] == block.section and block.end - spans[-1][0] <= max_chars
        if joins:
            spans[-1] = (spans[-1][0], block.end, block.section)
        else:
            spans.extend((start, end, block.section) for start, end in _cut(text, block.start, block.end, max_chars))
    return [Chunk(number, section, start, end, text[start:end]) for number, (start, end, section) in enumerate(spans)]


def _blocks(text: str) -> Iterator[_Block]:
    headings: list[tuple[int, str]] = []
    section, fence, start, offset = "", None, None, 0
    for line in text.split("\n"):
        end = offset + len(line)
        mark = _FENCE.match(line)
        if fence is not None:
            if mark and mark[1].startswith(fence):
                fence = None
        elif mark:
            fence = mark[1]
            start = offset if start is None else start
        elif (heading := _HEADING.fullmatch(line)) is not None:
            if start is not None:
                yield _Block(start, offset - 1, section)
            headings = [kept for kept in headings if kept[0] < len(heading[1])]
            headings.append((len(heading[1]), heading[2]))
            section = " > ".join(title for _, title in headings if title)[:300]
            start = offset
        elif not line.strip():
            if start is not None:
                yield _Block(start, offset - 1, section)
            start = None
        elif start is None:
            start = offset
        offset = end + 1
    if start is not None:
        yield _Block(start, len(text), section)


def _cut(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `max_chars` that cover text[start:end], blanks at the cuts left out."""
    while end - start > max_chars:
        window = text[start : start + max_chars + 1]
        cuts = [match.start() for match in _SENTENCE_END.finditer(window) if 0 < match.start() <= max_chars]
        # A cut in the first half would make crumbs: then a blank, then anywhere.
        stop = cuts[-1] if cuts and cuts[-1] >= max_chars // 2 else window.rfind(" ", max_chars // 2, max_chars + 1)
        stop = start + (stop if stop > 0 else max_chars)
        yield start, stop
        start = stop
        while start < end and text[start].isspace():
            start += 1
    if start < end:
        yield start, end


def embedding_input(title: str | None, section: str, text: str) -> str:
    """What is embedded for a chunk: where it stands in its document, then its text."""
    where = " > ".join(part for part in ((title or "").strip()[:200], section[:200]) if part)
    return f"{where}\n{text}" if where else text
