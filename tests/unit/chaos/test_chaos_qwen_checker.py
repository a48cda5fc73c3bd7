"""The judge of `make chaos-qwen`: bad timelines are found, good ones are not accused."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.qwen import checker, expect
from tests.chaos.qwen.checker import Moments, judge
from tests.chaos.qwen.expect import BEGAN, EXPECTED, FALLBACK, NORMAL
from tests.chaos.qwen.faults import FAULTS
from tests.chaos.qwen.seen import CUT, CUT_STREAM, HUNG, SILENCE, STREAM, UNFINISHED, WHOLE, Seen, read, write

# A fault at 100 s that is undone at 120 s, seen until 160 s.
MOMENTS = Moments(100.0, 120.0, 160.0)


def request(number: int, start: float, **more: object) -> Seen:
    plain = {"served_by": "engine", "cache": "miss", "context": "ok", "instance": "lab1", "status": 200}
    return Seen(
        number, **{"kind": WHOLE, "start": start, "total_s": 0.2, "limit_s": 60.0, "outcome": "ok", **plain, **more}
    )


def failed(number: int, start: float, outcome: str, **more: object) -> Seen:
    told = {"served_by": "", "cache": "", "context": "", "instance": "", "status": 503, "detail": "why"}
    return request(number, start, **{"outcome": outcome, **told, **more})


def well() -> list[Seen]:
    """Two requests a second from 85 s to 160 s, all of them answered."""
    return [request(n, 85.0 + n / 2) for n in range(150)]


def with_(*others: Seen) -> list[Seen]:
    """The same with some requests replaced by others, by their numbers."""
    instead = {each.number: each for each in others}
    return [instead.get(each.number, each) for each in well()]


def during(outcome: str, **more: object) -> Seen:
    """One that fails two seconds after the fault."""
    return failed(34, 102.0, outcome, **more)


def test_a_platform_that_is_well_has_no_findings() -> None:
    verdict = judge(EXPECTED["none"], well(), MOMENTS)
    assert verdict.violations == []
    assert (verdict.requests, verdict.ok, verdict.recovery_s) == (150, 150, 0.0)
    assert verdict.worst_gap_s == pytest.approx(0.8, abs=0.4)


@pytest.mark.parametrize(
    "outcome", ["500 internal_error", "502 bad_gateway", "event engine_stream_broken", "503 ?", CUT]
)
@pytest.mark.parametrize("fault", ["none", "valkey_all", "qdrant_all", "pbml_all", "postgres"])
def test_an_error_that_the_table_does_not_have_is_found(fault: str, outcome: str) -> None:
    found = judge(EXPECTED[fault], with_(during(outcome)), MOMENTS).violations
    assert any(line.startswith("unexplained: request 34") and "why" in line for line in found), found


@pytest.mark.parametrize("fault", [name for name, each in EXPECTED.items() if each.errors])
def test_an_error_of_the_table_is_no_finding_in_its_time_only(fault: str) -> None:
    expected = replace(EXPECTED[fault], must_see=frozenset())
    outcome = next(iter(expected.errors))
    advice = {"retry_after": True, "status": int(outcome[:3]) if outcome[0] in "45" else 200}
    reference = MOMENTS.began if expected.since == BEGAN else MOMENTS.undone
    in_time = judge(expected, with_(failed(34, 100.2, outcome, **advice)), MOMENTS)
    assert in_time.violations == []
    late = failed(149, reference + expected.error_s + 0.5, outcome, **advice)
    found = judge(expected, [*well()[:-1], late], replace(MOMENTS, until=late.start + 1)).violations
    assert any(line.startswith("too late: request 149") for line in found), found


def test_an_error_of_the_table_before_the_fault_is_found() -> None:
    found = judge(EXPECTED["engines_dead"], with_(failed(4, 87.0, "503 engine_unavailable")), MOMENTS).violations
    assert any(line.startswith("before the fault: request 4") for line in found)


def test_a_request_that_was_under_way_when_the_fault_came_may_fail() -> None:
    stream = failed(28, 99.0, CUT_STREAM, kind=STREAM, total_s=1.1, status=200)
    assert judge(EXPECTED["qwen_killed"], with_(stream), MOMENTS).violations == []
    whole = failed(28, 99.0, CUT, total_s=1.1)
    found = judge(EXPECTED["qwen_killed"], with_(whole), MOMENTS).violations
    assert any("unexplained" in line for line in found), "the gateway asks another instance for a whole answer"


@pytest.mark.parametrize("fault", list(EXPECTED))
def test_a_stream_that_just_ends_is_never_explained(fault: str) -> None:
    found = judge(EXPECTED[fault], with_(during(UNFINISHED, kind=STREAM, status=200)), MOMENTS).violations
    assert any(line.startswith("unexplained: request 34 (stream)") for line in found)


@pytest.mark.parametrize("fault", list(EXPECTED))
def test_what_hangs_is_never_explained(fault: str) -> None:
    hung = during(HUNG, total_s=70.0)
    found = judge(EXPECTED[fault], with_(hung), MOMENTS).violations
    assert any(line.startswith("hung: request 34") for line in found)
    slow = request(34, 102.0, total_s=19.0, limit_s=18.0)
    found = judge(EXPECTED[fault], with_(slow), MOMENTS).violations
    assert any(line.startswith("hung: request 34") for line in found), "an answer past its deadline is one too late"


def test_the_clients_own_timeout_is_allowed_where_a_host_lost_power_only() -> None:
    silent = during(SILENCE, total_s=25.2, limit_s=18.0, status=0)
    assert judge(EXPECTED["gateway_host"], with_(silent), MOMENTS).violations == []
    assert len(judge(EXPECTED["gateway_killed"], with_(silent), MOMENTS).violations) >= 2


@pytest.mark.parametrize("served_by", ["", "pending", "a stranger"])
def test_an_answer_that_does_not_say_what_served_it_is_found(served_by: str) -> None:
    found = judge(EXPECTED["engines_dead"], with_(request(34, 102.0, served_by=served_by)), MOMENTS).violations
    assert any("does not say what served it" in line for line in found)


@pytest.mark.parametrize("served_by", sorted(FALLBACK))
def test_a_fallback_with_no_engine_gone_is_found(served_by: str) -> None:
    found = judge(EXPECTED["pbml_all"], with_(request(34, 102.0, served_by=served_by)), MOMENTS).violations
    assert f"request 34 (whole) served by {served_by}" in found


@pytest.mark.parametrize("missing", ["cache", "context", "instance"])
def test_an_answer_without_a_header_is_found(missing: str) -> None:
    found = judge(EXPECTED["none"], with_(request(34, 102.0, **{missing: ""})), MOMENTS).violations
    assert any(line.startswith("request 34 (whole) has cache") for line in found)


def test_a_refusal_without_retry_after_is_found() -> None:
    expected = EXPECTED["engine_frozen"]
    refusal = during("429 engine_busy", status=429)
    assert any(line.startswith("no Retry-After") for line in judge(expected, with_(refusal), MOMENTS).violations)
    assert judge(expected, with_(replace(refusal, retry_after=True)), MOMENTS).violations == []


def test_a_fault_that_nobody_noticed_proves_nothing() -> None:
    found = judge(EXPECTED["pbml_all"], well(), MOMENTS).violations
    assert found == ["the fault was not noticed: none of context degraded was seen"]
    # Neither does one that was noticed when it was over.
    late = with_(request(90, 130.0, context="degraded"))
    assert judge(EXPECTED["pbml_all"], late, MOMENTS).violations == found
    noticed = with_(request(34, 102.0, context="degraded"))
    assert judge(EXPECTED["pbml_all"], noticed, MOMENTS).violations == []


def test_recovery_is_when_calm_begins() -> None:
    fallbacks = [request(n, 85.0 + n / 2, served_by="degraded") for n in range(32, 90)]
    verdict = judge(EXPECTED["engines_dead"], with_(*fallbacks), MOMENTS)
    assert verdict.recovery_s == pytest.approx(85 + 89 / 2 - 120)
    assert verdict.violations == []


def test_never_recovered_and_recovered_late_are_found() -> None:
    expected = replace(EXPECTED["engines_dead"], recover_s=5.0)
    late = [request(n, 85.0 + n / 2, served_by="degraded") for n in range(32, 90)]
    assert "recovered after 9.5 s, 5 s are allowed" in judge(expected, with_(*late), MOMENTS).violations
    # One fallback every five seconds is no calm of ten.
    ever = [request(n, 85.0 + n / 2, served_by="degraded") for n in range(32, 150, 10)]
    verdict = judge(expected, with_(*ever), MOMENTS)
    assert verdict.recovery_s is None
    assert "recovered not seen, 5 s are allowed" in verdict.violations


def test_a_platform_that_answers_nothing_any_more_has_not_recovered() -> None:
    silent = [each for each in well() if each.start < MOMENTS.began]
    verdict = judge(EXPECTED["none"], silent, MOMENTS)
    assert verdict.recovery_s is None
    assert verdict.worst_gap_s > 59


def test_a_round_without_an_answer_before_the_fault_is_found() -> None:
    assert any("nothing to compare" in line for line in judge(EXPECTED["none"], well()[40:], MOMENTS).violations)
    assert judge(EXPECTED["none"], [], MOMENTS).violations


def test_answers_without_context_are_found_beyond_noise() -> None:
    few = [request(n, 85.0 + n / 2, context="degraded") for n in range(40, 45)]
    assert judge(EXPECTED["valkey_all"], with_(*few), MOMENTS).violations == []
    many = [request(n, 85.0 + n / 2, context="degraded") for n in range(40, 60)]
    assert judge(EXPECTED["valkey_all"], with_(*many), MOMENTS).violations == [
        "20 of 150 answers without PBML's context"
    ]


def test_one_error_in_500_may_not_become_many() -> None:
    errors = [failed(n, 85.0 + n / 2, "503 engine_unavailable") for n in range(32, 40)]
    assert judge(EXPECTED["engine_erring"], with_(*errors[:2]), MOMENTS).violations == []
    found = judge(EXPECTED["engine_erring"], with_(*errors), MOMENTS).violations
    assert found == ["8 of 150 requests failed, 2.0% are allowed"]


def test_the_worst_gap_is_between_right_answers_ends() -> None:
    gone = [each for each in well() if not 101.0 < each.start < 108.0]
    assert judge(EXPECTED["none"], gone, MOMENTS).worst_gap_s == pytest.approx(7.0, abs=0.1)


def test_every_fault_has_an_expectation_and_only_these() -> None:
    assert list(FAULTS) == list(EXPECTED)
    words = {each for expected in EXPECTED.values() for each in expected.served_by}
    assert words == NORMAL | FALLBACK
    # Parts that answers do not need cost no client an error.
    for name in ("valkey_one", "valkey_all", "qdrant_one", "qdrant_all", "pbml_one", "pbml_all", "postgres"):
        assert not EXPECTED[name].errors
    assert all(expect.EXPECTED[name].error_s for name in EXPECTED if EXPECTED[name].errors)


def test_the_timeline_is_by_second_of_the_fault() -> None:
    rows = checker.timeline([request(0, 99.9), during("503 engine_unavailable"), request(35, 102.5)], 100.0)
    assert [row["second"] for row in rows] == [-1, 2]
    assert rows[1]["errors"] == {"503 engine_unavailable": 1}
    assert rows[1]["served_by"] == {"engine": 1}


def test_what_was_seen_is_written_and_read_again(tmp_path: Path) -> None:
    write(tmp_path / "requests.jsonl", well())
    assert read(tmp_path / "requests.jsonl") == well()
