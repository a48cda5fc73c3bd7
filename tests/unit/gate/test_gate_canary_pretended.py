"""Canaries: verify's own functions decide. The services are pretended, over real mutual TLS; a lab has real ones."""

from __future__ import annotations

import time
from typing import Any

import pytest
from gate_doubles import asked, told

from module_utils.devmentor import gate_canary
from module_utils.devmentor.checks import COMPONENTS
from module_utils.devmentor.checks_base import Failed, Plan, Recorder
from module_utils.devmentor.gate_canary import PORTS, plan_of_canary
from module_utils.devmentor.gate_options import CANARIES
from tests.unit.verify import verify_doubles
from tests.unit.verify.verify_doubles import raising, service

SECRETS = {"api_key": "sk-very-secret", "qdrant_api_key": "qk"}


def planned(tls: dict[str, str], **changes: Any) -> dict[str, Any]:
    plan = {"host": "h1", "address": "127.0.0.1", "groups": [], "peers": {}, "ports": {}, "tls": tls, "run": "gate"}
    return {**plan, **changes}


def engine(text: str = "word") -> dict[tuple[str, str], tuple[int, Any]]:
    answer = {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": 4 if text else 0}}
    return {
        ("GET", "/ready"): (200, {}),
        ("GET", "/v1/models"): (200, {"data": [{"id": "small"}]}),
        ("POST", "/v1/chat/completions"): (200, answer),
    }


def canary(of: str, tls: dict[str, str], base: str = "", limit: float = 20.0, **changes: Any) -> tuple[str, str]:
    check = {"type": "canary", "of": of, **({"base": base} if base else {})}
    return told(check, plan=planned(tls, **changes), secrets=SECRETS, limit=limit)


def test_a_pretended_qwen_gives_a_token_on_its_own_port_and_a_stand_in_on_another(tls: dict[str, str]) -> None:
    with service(tls, engine()) as (main, _), service(tls, engine("")) as (other, handler):
        result, evidence = canary("qwen", tls, ports={"qwen": main})
        assert result == "pass"
        assert evidence.startswith("ready: ready; token through it: 4 tokens")
        result, evidence = canary("qwen", tls, f"https://127.0.0.1:{other}", ports={"qwen": main})
        assert (result, evidence) == ("fail", "token through it fail: the completion is empty")
        assert handler.asked[0][1] == "/ready"


def test_a_pretended_engine_is_asked_under_its_own_url_or_the_base(tls: dict[str, str]) -> None:
    with service(tls, engine()) as (port, _):
        assert canary("engine", tls, engine_url=f"https://127.0.0.1:{port}")[0] == "pass"
        assert canary("engine", tls, f"https://127.0.0.1:{port}", engine_url="https://127.0.0.1:1")[0] == "pass"
        assert canary("engine", tls, engine_url="https://127.0.0.1:1")[0] == "fail"


def test_a_document_goes_through_a_pretended_pbml_with_a_run_of_its_own(tls: dict[str, str]) -> None:
    seen: list[str] = []

    class AnyDocument(dict[tuple[str, str], tuple[int, Any]]):
        """The document that was ingested last, whatever its name; deleted once that was asked."""

        def get(self, key: Any, default: Any = None) -> Any:
            method, path = key
            if path == "/v1/documents":
                return 202, lambda body: seen.append(body["id"]) or {"version": 1, "durability": "quorum"}
            if path == "/v1/context":
                chunk = {"text": "...", "scores": {"index": 0.9}, "document_id": seen[-1]}
                return 200, {"chunks": [chunk], "degraded": False}
            if path.startswith("/v1/documents/"):
                if method == "DELETE":
                    seen.append("deleted")
                return 200, {"status": "deleted" if seen[-1] == "deleted" else "live"}
            return super().get(key, default)

    with service(tls, AnyDocument({("GET", "/ready"): (200, {})})) as (port, _):
        for _ in range(2):
            result, evidence = canary("pbml", tls, ports={"pbml": port})
            assert result == "pass", evidence
    documents = [name for name in seen if name != "deleted"]
    assert len(set(documents)) == 2
    assert all(name.startswith("verify-") and name.endswith("-h1") for name in documents)


def test_a_pretended_pbml_that_acknowledges_alone_fails(tls: dict[str, str]) -> None:
    table: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", "/ready"): (200, {}),
        ("POST", "/v1/documents"): (202, {"version": 1, "durability": "local"}),
    }
    with service(tls, table) as (port, _):
        result, evidence = canary("pbml", tls, ports={"pbml": port})
    assert (result, evidence) == (
        "fail",
        "document ingested fail: acknowledged with durability local, not quorum",
    )


def test_a_canary_that_hangs_is_unknown_and_tells_how_far_it_came(tls: dict[str, str]) -> None:
    table = {**engine(), ("POST", "/v1/chat/completions"): (200, lambda body: time.sleep(6))}
    with service(tls, table) as (port, _):
        result, evidence = canary("qwen", tls, limit=2.0, ports={"qwen": port})
    assert (result, evidence) == ("unknown", "no answer within 2 s; until then: ready: ready")


def test_what_is_missing_in_the_plan_is_unknown_and_secrets_are_masked(tls: dict[str, str]) -> None:
    result, evidence = canary("qwen", tls)
    assert result == "unknown"
    assert "KeyError" in evidence
    wrong = {**engine(), ("GET", "/v1/models"): (401, {"error": "no sk-very-secret"})}
    with service(tls, wrong) as (port, _):
        result, evidence = canary("qwen", tls, ports={"qwen": port})
    assert "sk-very-secret" not in evidence
    assert "no ***" in evidence


@pytest.mark.parametrize("results", [["pass", "unknown", "fail"], ["unknown", "pass"], []])
def test_one_step_that_does_not_pass_is_the_result(monkeypatch: pytest.MonkeyPatch, results: list[str]) -> None:
    functions = {"pass": lambda: "fine", "fail": raising(Failed("wrong")), "unknown": raising(ValueError("none"))}

    def steps(plan: Plan, record: Recorder) -> None:
        for result in results:
            record.check(result, functions[result])

    monkeypatch.setattr(gate_canary, "functions", lambda component: [steps])
    answer = asked({"type": "canary", "of": "qwen"}, plan=planned({}), secrets=SECRETS)
    assert answer.result == ("fail" if "fail" in results else "unknown")


def test_every_canary_has_its_component_and_its_port() -> None:
    assert set(CANARIES) == set(COMPONENTS) - {"host"}
    assert set(PORTS) == set(CANARIES) - {"engine", "postgres", "exporters"}


def test_the_canarys_plan_has_no_row_of_others_and_not_more_patience_than_time() -> None:
    plan = plan_of_canary(verify_doubles.plan(patience=99.0), {"of": "postgres", "base": ""}, 30.0)
    assert (plan.replicated_row, plan.patience, plan.slowest_scrape) == (False, 10.0, 0.0)
    assert plan.run != verify_doubles.plan().run
