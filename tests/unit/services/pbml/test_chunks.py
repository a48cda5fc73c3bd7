"""The words that a fetch by full text asks for."""

import pytest

from devmentor.pbml.store.chunks import full_text


class Connection:
    def __init__(self) -> None:
        self.words: list[str] | None = None

    async def execute(self, _statement, values):
        self.words = values["words"]
        return self

    async def fetchall(self):
        return []


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["a" * 2047, "b" * 2046], ["b" * 2046]),
        (["ü" * 1024, "ü" * 1023], ["ü" * 1023]),
        (["a" * 3000], None),
        ([], None),
        (["a" * 3000] * 32 + ["b"] * 40, ["b"] * 32),
    ],
)
async def test_words_that_postgresql_would_refuse_are_not_asked_for(words, asked):
    connection = Connection()
    assert await full_text(connection, "t", words, None, None, 10) == []
    assert connection.words == asked
