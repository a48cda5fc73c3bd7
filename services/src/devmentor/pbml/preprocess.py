"""Preprocessor: normalise a text, tell what it is, cut it into chunks along its own structure. Pure functions."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from devmentor.pbml import syntax

RULES = 2
"""Of this file and syntax.py; another number where the same text may be cut elsewhere. The first release's had none: it
left out the blanks between two chunks."""

_LANGUAGES = {
    "python": (".py", ".pyi"),
    "javascript": (".js", ".mjs", ".cjs", ".jsx"),
    "typescript": (".ts", ".mts", ".cts"),
    "tsx": (".tsx",),
    "go": (".go",),
    "rust": (".rs",),
    "java": (".java",),
    "c": (".c", ".h"),
    "cpp": (".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"),
    "bash": (".sh", ".bash"),
}
_BY_SUFFIX = {suffix: language for language, suffixes in _LANGUAGES.items() for suffix in suffixes}
_PLAIN = (
    *(".log", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf"),
    *(".xml", ".html", ".css", ".sql", ".diff", ".patch"),
)
_SHEBANG = re.compile(r"#!\s*\S*?(?:env\s+(?:-S\s+)?)?([a-z]+)[0-9.]*(?:\s|$)")
_INTERPRETERS = {"python": "python", "bash": "bash", "sh": "bash", "dash": "bash", "node": "javascript"}
_MARKUP = re.compile(r"^(#{1,6} \S|\s{0,3}(```|~~~))", re.MULTILINE)
_LOOKED_AT = 20_000

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*")
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n")
_WORD = re.compile(r"\w+")
_LONG_BLANK = re.compile(r"[^\S\n]{257,}")
_EMPTY_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a normalised text: `text == normalised[start:end]`. Chunks cover the text, none twice."""

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


@dataclass(frozen=True, slots=True)
class Prepared:
    """The chunks of a text, and what cut them: `chunker` is kept with the version."""

    chunks: list[Chunk]
    chunker: str


def prepare(name: str, title: str | None, content: str, max_chars: int) -> Prepared:
    """Normalise, detect and cut a document or a turn."""
    text = normalise(content)
    kind, language = detect(name, title, text)
    if language is not None:
        spans = [
            (start, end, section)
            for first, last, section in syntax.spans(text, language, max_chars)
            for start, end in _cut_lines(text, first, last, max_chars)
        ]
        said = f"{kind} {syntax.grammar(language)}"
    elif kind == "plain":
        spans, said = [(start, end, "") for start, end in _cut_lines(text, 0, len(text), max_chars)], kind
    else:
        return Prepared(chunk(text, max_chars), f"{RULES} {kind} {max_chars}")
    return Prepared(_covering(text, spans), f"{RULES} {said} {max_chars}")


def detect(name: str, title: str | None, text: str) -> tuple[str, str | None]:
    """code (and its language), plain, markdown or prose.

    Code by the suffix of the document's name or title, or by a shebang; never guessed from the text, where a wrong
    guess would cut a letter by the syntax of C. Plain is what has lines and no sentences, by its suffix.
    """
    for known in (name, title or ""):
        suffix = PurePosixPath(known.strip()).suffix.lower()
        if suffix in _BY_SUFFIX:
            return "code", _BY_SUFFIX[suffix]
        if suffix in _PLAIN:
            return "plain", None
    shebang = _SHEBANG.match(text)
    if shebang is not None and shebang[1] in _INTERPRETERS:
        return "code", _INTERPRETERS[shebang[1]]
    return ("markdown" if _MARKUP.search(text, 0, _LOOKED_AT) else "prose"), None


def normalise(text: str) -> str:
    """NFC, LF line ends, no control characters but tab and newline, no blanks at ends of lines; of blanks in a row at
    most 256 and of empty lines two."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _CONTROL.sub("", text)
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    return _EMPTY_LINES.sub("\n\n\n", _LONG_BLANK.sub(lambda blank: blank[0][:256], text))


def words(text: str) -> set[str]:
    """The words of a text, for lexical comparison."""
    return {word.casefold() for word in _WORD.findall(text)}


def chunk(text: str, max_chars: int) -> list[Chunk]:
    """Prose or Markdown in chunks of at most `max_chars`, blanks at their ends not counted, in the order of the text.

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
    return _covering(text, spans)


def _covering(text: str, spans: list[tuple[int, int, str]]) -> list[Chunk]:
    """Chunks of spans in order; the blanks between two spans go with the first of them."""
    spans = [span for span in spans if text[span[0] : span[1]].strip()]
    starts = [0, *(start for start, _, _ in spans[1:])]
    ends = [*starts[1:], len(text)]
    return [
        Chunk(number, section, start, end, text[start:end])
        for number, (start, end, (_, _, section)) in enumerate(zip(starts, ends, spans, strict=False))
    ]


def _cut_lines(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `max_chars`, blanks at their ends not counted, that cover text[start:end]: at empty lines, at
    ends of lines, at blanks, anywhere."""
    while len(text[start:end].rstrip()) > max_chars:
        limit = start + max_chars
        # A cut in the first half would make crumbs.
        half = start + max_chars // 2
        stop = next(
            (at + len(mark) for mark in ("\n\n", "\n", " ") if (at := text.rfind(mark, half, limit)) >= 0), limit
        )
        yield start, stop
        start = stop
    if start < end:
        yield start, end


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
    text = text.strip()
    where = " > ".join(part for part in ((title or "").strip()[:200], section[:200]) if part)
    return f"{where}\n{text}" if where else text
