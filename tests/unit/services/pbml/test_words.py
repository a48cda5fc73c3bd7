"""Which words a search by words asks for, and that no name or word can break out of its quotes."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devmentor.pbml.store.words import Frequencies, plan

COMMON = 1000
KNOWN = Frequencies(1_000_000, {"the": 900_000.0, "of": 800_000.0, "quorum": 500.0}, 400.0)


def planned(words, frequencies=KNOWN, conversation=None, ids=None):
    return plan(words, frequencies, tenant="t", conversation_id=conversation, document_ids=ids, common=COMMON)


def test_a_common_word_only_narrows_what_rarer_ones_find():
    found = planned(["the", "quorum", "epoch"])
    assert found.tiers == [
        "(' t t') & ('epoch' & 'quorum' & 'the')",
        "(' t t') & ('epoch' & 'quorum') & !('epoch' & 'quorum' & 'the')",
        "(' t t') & ('epoch' | 'quorum') & !('epoch' & 'quorum')",
    ]
    assert found.weights["epoch"] > found.weights["quorum"] > found.weights["the"] > 0


@pytest.mark.parametrize("words", [[], ["the"], ["the", "of"], ["a" * 2047], ["ü" * 1024]])
def test_nothing_is_asked_where_no_word_would_find_a_bounded_number(words):
    assert planned(words).tiers == []


def test_the_longest_word_that_postgresql_takes():
    assert planned(["ü" * 1023]).tiers == [f"(' t t') & ('{'ü' * 1023}')"]


def test_of_many_words_the_rarest_then_the_longest():
    words = [f"word{'x' * n}" for n in range(40)] + ["quorum", "the"]
    assert sorted(planned(words).weights) == sorted(f"word{'x' * n}" for n in range(32, 40))


def test_scope_is_part_of_every_query():
    found = planned(["epoch"], conversation="c1", ids=["a", "b"])
    assert found.tiers == ["(' d t a' | ' d t b' | ' c t c1') & ('epoch')"]


def test_without_statistics_every_word_counts_as_rare():
    assert planned(["the"], Frequencies()).tiers == ["(' t t') & ('the')"]


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("'\\ &|!()aé"), min_size=1, max_size=12), min_size=1, max_size=12))
def test_a_word_stays_within_its_quotes(words):
    for tier in planned(words).tiers:
        outside = re.sub(r"'(?:[^'\\]|''|\\.)*'", "", tier, flags=re.DOTALL)
        assert set(outside) <= set(" &|!()")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["the", "of", "quorum", "epoch", "fence", "lease", "vote"]), max_size=12))
def test_no_tier_can_read_more_than_rare_words_have(words):
    for tier in planned(words).tiers:
        wanted = tier.split(" & !")[0].split(") & (", 1)[1].rstrip(")")
        rows = [KNOWN.of(word.strip("'")) for word in re.split(r" [&|] ", wanted)]
        # GIN reads the shortest list of an AND, and every list of an OR.
        assert (min(rows) if " & " in wanted else max(rows)) <= COMMON
