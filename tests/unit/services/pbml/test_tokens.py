"""The counter must never be below the truth."""

from hypothesis import given
from hypothesis import strategies as st

from devmentor.pbml.tokens import ByteTokenCounter


@given(st.text(max_size=200), st.floats(1, 8), st.integers(0, 100))
def test_a_cut_fits_and_is_a_beginning(text, ratio, tokens):
    counter = ByteTokenCounter(ratio)
    beginning = counter.cut(text, tokens)
    assert text.startswith(beginning)
    assert counter.count(beginning) <= tokens
    if beginning != text:
        longer = text[: len(beginning) + 1]
        assert counter.count(longer) > tokens or len(longer.encode()) > tokens * ratio - 1


@given(st.text(max_size=200))
def test_at_ratio_one_every_byte_counts(text):
    assert ByteTokenCounter().count(text) == len(text.encode())
