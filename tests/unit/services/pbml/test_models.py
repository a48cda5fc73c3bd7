"""What the API takes and what it refuses."""

import pytest
from pydantic import ValidationError

from devmentor.pbml.models import ContextRequest, DocumentRequest, TurnRequest, watermark, watermark_seq


def test_a_document():
    body = DocumentRequest.model_validate_json('{"id": "docs/a:1@x", "text": "t"}')
    assert (body.id, body.title, body.metadata) == ("docs/a:1@x", None, {})


@pytest.mark.parametrize(
    "body",
    [
        '{"id": "a"}',
        '{"id": "", "text": "t"}',
        '{"id": "~turn/c/1", "text": "t"}',
        '{"id": "a b", "text": "t"}',
        '{"id": "a\\n", "text": "t"}',
        '{"id": "%s", "text": "t"}' % ("a" * 256),
        '{"id": "a", "text": ""}',
        '{"id": "a", "text": 1}',
        '{"id": "a", "text": "a\\u0000b"}',
        '{"id": "a", "text": "\\ud800"}',
        '{"id": "a", "text": "t", "tenant": "other"}',
        '{"id": "a", "text": "t", "metadata": {"k": {"deep": 1}}}',
        '{"id": "a", "text": "t", "title": "\\u0000"}',
        '{"id": "a", "text": "t", "metadata": {"k": NaN}}',
        '{"id": "a", "text": "t", "metadata": {"k": -Infinity}}',
        '{"id": "a", "text": "t", "metadata": {"k": 1e999}}',
    ],
)
def test_bad_documents_are_refused(body):
    with pytest.raises(ValidationError):
        DocumentRequest.model_validate_json(body)


@pytest.mark.parametrize("role", ["robot", "", None])
def test_unknown_roles_are_refused(role):
    with pytest.raises(ValidationError):
        TurnRequest.model_validate({"conversation_id": "c", "role": role, "content": "x"})


@pytest.mark.parametrize(
    "change",
    [
        {"token_budget": -1},
        {"token_budget": 1.5},
        {"token_budget": "5"},
        {"watermark": "12"},
        {"watermark": "pg:x"},
        {"filters": {"tenant": "other"}},
        {"filters": {"document_ids": []}},
        {"query": ""},
    ],
)
def test_bad_context_requests_are_refused(change):
    with pytest.raises(ValidationError):
        ContextRequest.model_validate({"query": "q", "token_budget": 10, **change})


def test_watermarks():
    assert watermark_seq(watermark(17)) == 17
