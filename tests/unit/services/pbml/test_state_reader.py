"""Searches in the state's file: whose chunks they see, and how long they take."""

import time

import pytest
from state_world import vector_of

from devmentor.pbml.state import place
from devmentor.pbml.state.entry import Chunk, Entry, Live, chunks_sha256
from devmentor.pbml.state.file import StateFile
from devmentor.pbml.state.reader import Reader, Scope, StateAway
from devmentor.pbml.store.chunks import pack


def entry(tenant: str, name: str, body: str, conversation: str | None = None) -> Entry:
    chunks = [Chunk(0, "", 0, len(body), body, pack(vector_of(body)))]
    kind = "turn" if conversation else "document"
    return Entry(tenant, name, Live(1, 1, kind, conversation, None, chunks_sha256(chunks), chunks))


@pytest.fixture
def file(tmp_path):
    path = place.another(tmp_path)
    made = StateFile(path)
    made.open()
    place.use(tmp_path, path)
    with made.writing():
        made.note(loaded="1", at="0", snapshot="9:9:")
    yield made
    made.close()


def write(file: StateFile, *entries: Entry) -> None:
    with file.writing():
        file.apply(entries)


def found(directory, scope: Scope, *words: str) -> set[str]:
    with Reader(directory).reading() as view:
        return {chunk.document_id for chunk in view.by_words(scope, words, 10)}


def near(directory, scope: Scope, text: str, **how) -> list[str]:
    with Reader(directory).reading(5.0) as view:
        most = how.pop("most", 20_000)
        hits = view.nearest(scope, vector_of(text), [text], limit=3, min_score=-1, most=most)
        return [hit[0] for hit in hits]


def test_a_search_sees_what_the_request_may_see(file, tmp_path):
    write(
        file,
        entry("t", "a", "apples and pears"),
        entry("t", "b", "apples"),
        entry("t", "said", "apples", "c"),
        entry("t", "elsewhere", "apples", "d"),
        entry("u", "theirs", "apples"),
    )
    assert found(tmp_path, Scope("t", None, None), "apples") == {"a", "b"}
    assert found(tmp_path, Scope("t", "c", None), "apples") == {"a", "b", "said"}
    assert found(tmp_path, Scope("t", "c", ["a"]), "apples") == {"a", "said"}
    assert found(tmp_path, Scope("u", "c", None), "apples") == {"theirs"}
    assert set(near(tmp_path, Scope("t", None, ["a", "b"]), "apples")) == {"a", "b"}
    assert near(tmp_path, Scope("t", "d", None), "apples")[0] in ("b", "elsewhere")
    assert near(tmp_path, Scope("v", None, None), "apples") == []


def test_words_that_mean_something_to_fts5_are_words(file, tmp_path):
    write(file, entry("t", "a", "apples and pears"))
    scope = Scope("t", None, None)
    assert found(tmp_path, scope, "and", "pears") == {"a"}
    for odd in ('"', "NEAR(", "*", "body:", "a OR b", "'", "-"):
        assert found(tmp_path, scope, "pears", odd) == {"a"}
    assert found(tmp_path, scope, "scope") == set()
    assert found(tmp_path, scope) == set()


def test_a_search_of_many_chunks_takes_their_number_not_its_square(file, tmp_path):
    write(file, *(entry("t", f"d{number}", f"text {number}") for number in range(6000)))
    scope = Scope("t", None, None)
    began = time.monotonic()
    assert near(tmp_path, scope, "text 77")[0] == "d77"
    with Reader(tmp_path).reading(5.0) as view:
        assert len(view.live_chunks("t", [(f"d{number}", 1, 0, 0.5) for number in range(48)])) == 48
    assert found(tmp_path, scope, "text", "4321") >= {"d4321"}
    assert time.monotonic() - began < 10


def test_above_the_bound_only_chunks_with_the_words_are_compared(file, tmp_path):
    write(file, *(entry("t", f"d{number}", f"text {number}") for number in range(20)))
    assert near(tmp_path, Scope("t", None, None), "7", most=10) == ["d7"]


def test_a_search_ends_with_its_time(file, tmp_path):
    write(file, *(entry("t", f"d{number}", f"text {number}") for number in range(3000)))
    with pytest.raises(StateAway, match="interrupted"), Reader(tmp_path).reading(0.0) as view:
        view.by_words(Scope("t", None, None), ["text"], 10)


def test_a_file_that_is_being_loaded_does_not_answer(file, tmp_path):
    with file.writing():
        file.note(loaded=None)
    with pytest.raises(StateAway, match="being loaded"), Reader(tmp_path).reading():
        pass
    with pytest.raises(StateAway, match="no state"), Reader(tmp_path / "none").reading():
        pass
