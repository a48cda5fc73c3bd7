"""Code is cut along its syntax: tree-sitter parses it, with one wheel a grammar. Pure functions.

A declaration that fits stays whole; one that does not is cut between its parts; small ones that follow each other share
a chunk (the split-then-merge of cAST: Zhang et al., Enhancing Code Retrieval-Augmented Generation with Structural
Chunking via Abstract Syntax Tree, 2025). A text that is not quite its language is cut too: the parser marks what it
does not know and goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from itertools import takewhile

from tree_sitter import Language, Node, Parser

_GRAMMARS = {
    "bash": ("tree_sitter_bash", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "python": ("tree_sitter_python", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}
LANGUAGES = tuple(_GRAMMARS)

_LEADS = ("comment", "line_comment", "block_comment", "attribute_item", "decorator")
"""Nodes that belong to what follows them."""

_SECTION_CHARS = 300
_PIECE = 32 * 1024


@dataclass(frozen=True, slots=True)
class _Part:
    """A span of the bytes that is not cut further by syntax, and the declarations around it."""

    start: int
    end: int
    path: tuple[str, ...]
    opens: bool = False
    """Whether it begins a declaration that had to be cut: its head stays with its body, not with what is before it."""


@cache
def _language(name: str) -> Language:
    module, function = _GRAMMARS[name]
    return Language(getattr(import_module(module), function)())


@cache
def grammar(name: str) -> str:
    """The grammar with its version: another one may cut elsewhere."""
    return f"{name}/{version(_GRAMMARS[name][0].replace('_', '-'))}"


def spans(text: str, language: str, max_chars: int) -> list[tuple[int, int, str]]:
    """Start, end and section of chunks that follow each other and cover the text."""
    if not text:
        return []
    data = text.encode()
    # Read in pieces, between which other threads run: the parser holds the interpreter's lock.
    root = Parser(_language(language)).parse(lambda offset, _point: data[offset : offset + _PIECE]).root_node
    starts: list[tuple[int, tuple[str, ...]]] = []
    first = end = 0
    path: tuple[str, ...] = ()
    for part in _parts(root, data, max_chars):
        if not starts or part.opens or part.end - first > max_chars:
            # Beginning of the text, or full: the next chunk starts with the part's own line.
            first = _line_start(data, end, part.start) if starts else 0
            path = part.path
            starts.append((first, path))
        else:
            path = _common(path, part.path)
            starts[-1] = (starts[-1][0], path)
        end = part.end
    starts = starts or [(0, ())]
    characters = _characters(data, [start for start, _ in starts])
    ends = [*characters[1:], len(text)]
    return [
        (start, stop, " > ".join(path)[:_SECTION_CHARS])
        for start, stop, (_, path) in zip(characters, ends, starts, strict=True)
        if stop > start
    ]


def _parts(root: Node, data: bytes, size: int) -> Iterator[_Part]:
    """Nodes of at most `size` bytes, in the order of the text; larger ones only where they have no parts."""
    stack: list[tuple[Node, tuple[str, ...], bool]] = [(root, (), False)]
    lead: int | None = None
    while stack:
        node, path, opens = stack.pop()
        named = _named(node, path, data)
        large = node.end_byte - node.start_byte > size
        if large and node.child_count:
            opens = opens or named != path
            inside = named if _declaration(node) is node else path  # what is wrapped adds its name itself
            children = node.children
            stack.extend((child, inside, False) for child in reversed(children[1:]))
            stack.append((children[0], inside, opens))
            continue
        start = node.start_byte
        if lead is not None and node.end_byte - lead <= size:
            start = lead
        elif lead is not None:
            yield _Part(lead, start, path)
        # What leads is held back: it goes with what follows, where both fit.
        lead = start if node.type in _LEADS and not large else None
        if lead is None and node.end_byte > start:
            yield _Part(start, node.end_byte, named, opens)
    if lead is not None:
        yield _Part(lead, root.end_byte, ())


def _named(node: Node, path: tuple[str, ...], data: bytes) -> tuple[str, ...]:
    """The path, with the node's name where it declares something that has parts of its own."""
    node = _declaration(node)
    if node.child_by_field_name("body") is None:
        return path
    name = node.child_by_field_name("name") or node.child_by_field_name("type")
    if name is None:
        return path
    return (*path, data[name.start_byte : name.end_byte][:100].decode(errors="ignore"))


def _declaration(node: Node) -> Node:
    """What is decorated or exported."""
    return node.child_by_field_name("definition") or node.child_by_field_name("declaration") or node


def _line_start(data: bytes, after: int, start: int) -> int:
    """The beginning of the line, where nothing but blanks stands before `start`."""
    line = max(data.rfind(b"\n", after, start) + 1, after)
    return line if not data[line:start].strip(b" \t") else start


def _common(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
    """What both paths begin with."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    return tuple(name for name, _ in same)


def _characters(data: bytes, offsets: list[int]) -> list[int]:
    """Byte offsets, ascending, as offsets of characters."""
    found: list[int] = []
    before = characters = 0
    for offset in offsets:
        characters += len(data[before:offset].decode(errors="ignore"))
        found.append(characters)
        before = offset
    return found
