"""Normalising and chunking: nothing of a text may get lost, no chunk may be too long."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmentor.pbml.preprocess import chunk, embedding_input, normalise, words

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


def test_a_paragraph_that_fits_is_kept_whole():
    text = "\n\n".join(f"Paragraph {n} " + "x" * 60 for n in range(10))
    for piece in chunk(text, 200):
        assert piece.text.startswith("Paragraph")
        assert len(piece.text) <= 200


def test_long_paragraphs_are_cut_at_sentences():
    text = " ".join(f"Sentence number {n} ends here." for n in range(40))
    pieces = chunk(text, 200)
    assert len(pieces) > 1
    assert all(piece.text.endswith(".") for piece in pieces)


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


@given(text=st.one_of(MIXED, st.text(max_size=300)), size=st.integers(100, 400))
def test_chunks_cover_the_text_in_order(text, size):
    clean = normalise(text)
    pieces = chunk(clean, size)
    position = 0
    for number, piece in enumerate(pieces):
        assert piece.number == number
        assert piece.text == clean[piece.start : piece.end]
        assert 0 < len(piece.text) <= size
        assert clean[position : piece.start].strip() == "", "text between two chunks was lost"
        assert piece.start >= position
        position = piece.end
    assert clean[position:].strip() == ""


@given(st.text(max_size=200))
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


def test_words_and_embedding_input():
    assert words("The Light, the LIGHT!") == {"the", "light"}
    assert embedding_input("Guide", "A > B", "text") == "Guide > A > B\ntext"
    assert embedding_input(None, "", "text") == "text"
