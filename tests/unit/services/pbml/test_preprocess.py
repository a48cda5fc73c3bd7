"""Normalising and chunking: nothing of a text may get lost, no chunk may be too long."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devmentor.pbml import syntax
from devmentor.pbml.preprocess import _BY_SUFFIX, chunk, detect, embedding_input, normalise, prepare, words

MARKDOWN = """# Guide

Intro paragraph.

## Failover

First sentence. Second sentence.

```python
# not a heading

x = 1
```

### Steps

- one
- two

## Colours

Purple.
"""


def test_sections_follow_headings_and_are_not_mixed():
    found = [(c.section, c.text) for c in chunk(normalise(MARKDOWN), 1000)]
    assert [section for section, _ in found] == [
        "Guide",
        "Guide > Failover",
        "Guide > Failover > Steps",
        "Guide > Colours",
    ]
    assert "# not a heading" in found[1][1]
    assert found[3][1] == "## Colours\n\nPurple."
    assert found[0][1] == "# Guide\n\nIntro paragraph.\n\n"


def test_a_paragraph_that_fits_is_kept_whole():
    text = "\n\n".join(f"Paragraph {n} " + "x" * 60 for n in range(10))
    for piece in chunk(text, 200):
        assert piece.text.startswith("Paragraph")
        assert len(piece.text.rstrip()) <= 200


def test_long_paragraphs_are_cut_at_sentences():
    text = " ".join(f"Sentence number {n} ends here." for n in range(40))
    pieces = chunk(text, 200)
    assert len(pieces) > 1
    assert all(piece.text.rstrip().endswith(".") for piece in pieces)


def test_text_without_blanks_is_cut_anyway():
    assert [len(piece.text) for piece in chunk("x" * 450, 200)] == [200, 200, 50]


def test_an_unclosed_fence_ends_with_the_text():
    assert chunk("```\ncode\n\nmore", 100)[0].text == "```\ncode\n\nmore"


@pytest.mark.parametrize("text", ["", "\n\n", "   \n \t\n"])
def test_nothing_makes_no_chunks(text):
    assert chunk(normalise(text), 100) == []


def test_normalise():
    assert normalise("e\u0301\r\nb\x07\ufeff  \rc\tq\n\n") == unicodedata.normalize("NFC", "é\nb\nc\tq")


MIXED = st.text(st.sampled_from("ab .\n#`é。字-"), max_size=600)


NAMES = st.sampled_from(["notes", "a.md", "a.log", "~turn/c.py/0af", *(f"src/a{suffix}" for suffix in _BY_SUFFIX)])
CODE = st.text(st.sampled_from("ab {}()[]<>=;:,.'\"\\/*#!\n\t é字🙂") | st.sampled_from("defclass"), max_size=600)


@settings(deadline=None)
@given(name=NAMES, text=st.one_of(MIXED, CODE, st.text(max_size=300)), size=st.integers(100, 400))
def test_chunks_cover_the_text_and_nothing_is_in_two(name, text, size):
    clean = normalise(text)
    pieces = prepare(name, None, text, size).chunks
    assert "".join(piece.text for piece in pieces) == (clean if clean.strip() else "")
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])][: len(pieces)]
    for number, piece in enumerate(pieces):
        assert piece.number == number
        assert piece.text == clean[piece.start : piece.end]
        assert 0 < len(piece.text.strip()) <= size


@settings(deadline=None)
@given(st.text(max_size=200) | MIXED)
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


def test_long_runs_of_blanks_and_empty_lines_are_shortened():
    assert normalise("a" + " " * 1000 + "b\n\n\n\n\n\nc") == "a" + " " * 256 + "b\n\n\nc"


@pytest.mark.parametrize(
    ("name", "title", "text", "found"),
    [
        ("src/a.py", None, "x", ("code", "python")),
        ("a", "Main.JAVA", "x", ("code", "java")),
        ("a.hpp", "a.py", "x", ("code", "cpp")),
        ("run", None, "#!/usr/bin/env python3\nx", ("code", "python")),
        ("run", None, "#!/bin/sh -e\nx", ("code", "bash")),
        ("run", None, "#!/usr/bin/perl\nx", ("prose", None)),
        ("syslog.log", None, "# no heading", ("plain", None)),
        ("a", None, "text\n\n## Heading\n", ("markdown", None)),
        ("a", None, "text\n\n```\ncode\n```", ("markdown", None)),
        ("a.txt", None, "def f():\n    return {};\n", ("prose", None)),
        ("~turn/c.py/0af3", None, "text", ("prose", None)),
    ],
)
def test_what_a_text_is(name, title, text, found):
    assert detect(name, title, text) == found


def test_what_cut_a_text_is_told():
    assert prepare("a", None, "text", 500).chunker == "2 prose 500"
    assert prepare("a.py", None, "x = 1", 500).chunker == f"2 code {syntax.grammar('python')} 500"


def test_plain_text_is_cut_at_ends_of_lines():
    text = "\n".join(f"2026-11-25 line {n} of the log. More of it" for n in range(40))
    pieces = prepare("a.log", None, text, 200).chunks
    assert len(pieces) > 8
    assert all(piece.text.endswith("it\n") for piece in pieces[:-1])
    assert all(150 < len(piece.text) <= 200 for piece in pieces[:-1])


def test_blanks_before_the_first_word_are_the_first_chunk_s():
    pieces = prepare("a.log", None, " " * 200 + "x" * 150, 100).chunks
    assert "".join(piece.text for piece in pieces) == " " * 200 + "x" * 150
    assert len(pieces) == 2


def test_words_and_embedding_input():
    assert words("The Light, the LIGHT!") == {"the", "light"}
    assert embedding_input("Guide", "A > B", "text") == "Guide > A > B\ntext"
    assert embedding_input(None, "", "text") == "text"
