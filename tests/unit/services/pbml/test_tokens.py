"""What counts must never be below the truth."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from devmentor.pbml.tokens import ByteTokenCounter, TokenizerCounter, TokenizerFileError, counter


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE like Qwen's, made of a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the primary acknowledges a write once two standbys have it"] * 20, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def real(tokenizer_file):
    return TokenizerCounter(tokenizer_file)


@settings(deadline=None)
@given(st.text(max_size=200), st.floats(1, 8), st.integers(0, 100))
def test_a_cut_fits_and_is_a_beginning(text, ratio, tokens):
    counter = ByteTokenCounter(ratio)
    beginning = counter.cut(text, tokens)
    assert text.startswith(beginning)
    assert counter.count(beginning) <= tokens
    if beginning != text:
        longer = text[: len(beginning) + 1]
        assert counter.count(longer) > tokens or len(longer.encode()) > tokens * ratio - 1


@settings(deadline=None)
@given(st.text(max_size=200))
def test_at_ratio_one_every_byte_counts(text):
    assert ByteTokenCounter().count(text) == len(text.encode())


def test_the_file_s_cutting_and_filling_do_not_count(real):
    assert 0 < real.count("the primary") < 8
    assert real.count("the primary acknowledges a write " * 10) > 8
    assert real.count("") == 0


@settings(deadline=None)
@given(text=st.text(st.sampled_from("the primary é。字🙂a\n"), max_size=120), tokens=st.integers(0, 60))
def test_a_cut_by_the_tokenizer_fits_and_is_a_beginning(real, text, tokens):
    beginning = real.cut(text, tokens)
    assert text.startswith(beginning)
    assert real.count(beginning) <= tokens
    assert real.count(text) <= ByteTokenCounter().count(text)
    assert beginning == text or real.count(text) > tokens


def test_a_text_of_which_much_fits_is_not_cut_short(real):
    text = "the primary acknowledges a write " * 50
    assert real.count(real.cut(text, 100)) == 100


def test_short_texts_are_counted_once(real):
    before = real._remembered.cache_info()
    for _ in range(3):
        real.count("a text that no other test counts")
    after = real._remembered.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_what_counts_is_named(tokenizer_file):
    assert counter(None, 3.0).name == "bytes/3"
    assert counter(tokenizer_file, 3.0).name.startswith("tokenizer ")


@pytest.mark.parametrize("content", [None, b"{}", b"not json"])
def test_a_file_that_can_not_be_used_is_named(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TokenizerFileError, match=f"PBML_TOKENIZER_FILE: {file}"):
        counter(file, 1.0)
