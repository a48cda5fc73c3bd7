"""What clients call: a document's way through PBML."""

from __future__ import annotations

from typing import Any

import pytest
from verify_doubles import plan, service

from module_utils.devmentor.checks_base import Recorder, Row
from module_utils.devmentor.checks_services import check_pbml


def document_table(**changes: Any) -> dict[tuple[str, str], tuple[int, Any]]:
    path = "/v1/documents/verify-abc123-h1"
    chunk = {"text": "...", "scores": {"index": 0.9}, "document_id": "verify-abc123-h1"}
    return {
        ("GET", "/ready"): (200, {}),
        ("POST", "/v1/documents"): (202, {"version": 1, "durability": "quorum"}),
        ("GET", path): (200, lambda body: {"status": "live"}),
        ("POST", "/v1/context"): (200, {"chunks": [chunk], "degraded": False}),
        ("DELETE", path): (200, {}),
        **changes.get("table", {}),
    }


def test_a_document_is_ingested_found_and_deleted(tls: dict[str, str]) -> None:
    table = document_table()
    # Not ready for a moment, as under load; indexed a moment after it was acknowledged; a source too slow once.
    found = document_table()["POST", "/v1/context"]
    moments = {
        ("POST", "/v1/context"): iter([(200, {"chunks": [], "degraded": True, "degraded_parts": ["index"]}), found]),
        ("GET", "/ready"): iter([(503, {}), (200, {})]),
        ("GET", "/v1/documents/verify-abc123-h1"): iter(
            [(200, {"status": "embedded"}), (200, {"status": "live"}), (404, {})]
        ),
    }

    class Lively(dict[tuple[str, str], tuple[int, Any]]):
        def get(self, key: Any, default: Any = None) -> Any:
            return next(moments[key]) if key in moments else super().get(key, default)

    with service(tls, Lively(table)) as (port, handler):
        recorder = Recorder(plan(tls, ports={"pbml": port}, patience=5.0), "pbml")
        check_pbml(recorder.plan, recorder)
    assert [(row.check, row.result) for row in recorder.rows] == [
        ("ready", "pass"),
        ("document ingested", "pass"),
        ("document live", "pass"),
        ("document found", "pass"),
        ("document deleted", "pass"),
    ], recorder.rows
    keys = {headers.get("Authorization") for _, path, headers, _ in handler.asked if path != "/ready"}
    assert keys == {"Bearer sk-very-secret"}


@pytest.mark.parametrize(
    ("table", "check", "evidence"),
    [
        ({("POST", "/v1/documents"): (202, {"version": 1, "durability": "local"})}, "document ingested", "local"),
        ({("POST", "/v1/documents"): (503, {"error": {}})}, "document ingested", "HTTP 503"),
        ({("GET", "/v1/documents/verify-abc123-h1"): (200, {"status": "received"})}, "document live", "is received"),
        ({("POST", "/v1/context"): (200, {"chunks": [], "degraded": False})}, "document found", "not among 0 chunks"),
        (
            {("POST", "/v1/context"): (200, {"chunks": [], "degraded": True, "degraded_parts": ["index", "words"]})},
            "document found",
            "degraded, without index, words",
        ),
        ({("GET", "/ready"): (503, {})}, "ready", "HTTP 503"),
    ],
)
def test_a_wrong_answer_of_pbml_fails(
    tls: dict[str, str], table: dict[tuple[str, str], tuple[int, Any]], check: str, evidence: str
) -> None:
    with service(tls, document_table(table=table)) as (port, _):
        recorder = Recorder(plan(tls, ports={"pbml": port}), "pbml")
        check_pbml(recorder.plan, recorder)
    row = next(row for row in recorder.rows if row.check == check)
    assert row.result == "fail"
    assert evidence in row.evidence


def test_a_deleted_document_that_stays_fails(tls: dict[str, str]) -> None:
    with service(tls, document_table()) as (port, _):
        recorder = Recorder(plan(tls, ports={"pbml": port}), "pbml")
        check_pbml(recorder.plan, recorder)
    assert recorder.rows[-1] == Row("pbml", "h1", "document deleted", "fail", "still there: live")
