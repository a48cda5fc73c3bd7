"""The short form of `make fuzz-pbml`: PBML's processes over a private PostgreSQL and the pinned Qdrant.

Bounded by examples: a bound of time would leave endpoints out on a busy machine.
"""

import json

import pytest

from tests.fuzz.pbml import DOCUMENT, ask, serving

PHASES = ("coverage", "stateful")


@pytest.fixture(scope="module")
def url():
    with serving() as served:
        yield served


def test_every_endpoint_answers_as_the_document_says(url):
    done = ask(url, None, 4, 1, PHASES)
    assert done.returncode == 0, done.stdout
    assert "Tested: 20" in done.stdout, done.stdout


def test_what_the_document_does_not_say_is_found(url, tmp_path):
    """The control: a document that forgets an answer and asks for a field that none has."""
    said = json.loads(DOCUMENT.read_text())
    del said["paths"]["/v1/documents"]["post"]["responses"]["400"]
    said["components"]["schemas"]["Usage"]["required"].append("price")
    wrong = tmp_path / "openapi.json"
    wrong.write_text(json.dumps(said))
    done = ask(url, None, 4, 1, ("coverage",), wrong)
    assert done.returncode == 1, done.stdout
    assert "Undocumented status code" in done.stdout, done.stdout
    assert "Response violates schema" in done.stdout, done.stdout
