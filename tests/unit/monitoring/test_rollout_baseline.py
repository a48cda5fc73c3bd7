"""rollout_baseline against a real Prometheus, whose samples are imported with the times that a case needs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from module_utils.devmentor import baseline
from module_utils.devmentor.baseline import BaselineError, Limits, Measured, judge

SCRAPE = 15
RunModule = Callable[..., dict[str, Any]]
Series = dict[str, Callable[[int], float]]  # a series -> its value at a number of seconds from now

CONFIG = f"global: {{scrape_interval: {SCRAPE}s}}\n"


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: apt-get install prometheus"
    return found


@contextlib.contextmanager
def prometheus(home: Path, series: Series) -> Iterator[str]:
    """A Prometheus on loopback that has scraped `series` for ten minutes; its URL."""
    home.mkdir()
    now = int(time.time())
    lines = []
    for name, value in series.items():
        for at in range(-600, 120, SCRAPE):
            sample = value(at)
            if sample == sample:  # not-a-number stands for: was not there
                lines.append(f"{name} {sample} {now + at}")
    (home / "samples").write_text("\n".join([*lines, "# EOF", ""]))
    (home / "prometheus.yml").write_text(CONFIG)
    data = home / "data"
    importing = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(home / "samples"), str(data)]
    subprocess.run(importing, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program("prometheus"), f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={data}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        until_ready(f"http://{address}", home / "log")
        yield f"http://{address}"
    finally:
        server.kill()
        server.wait(20)


def until_ready(url: str, log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def rate(per_second: float) -> Callable[[int], float]:
    return lambda at: (600 + at) * per_second


def restarted(per_second: float, seconds_ago: int) -> Callable[[int], float]:
    """A counter that a restart set back to 0."""
    return lambda at: (600 + at) * per_second if at < -seconds_ago else (at + seconds_ago) * per_second


def burst(count: float, seconds_ago: int) -> Callable[[int], float]:
    """A counter that was 0 and grew at once."""
    return lambda at: count if at >= -seconds_ago else 0


def newborn(count: float, seconds_ago: int) -> Callable[[int], float]:
    """A series that did not exist, appeared with a value, and kept it."""
    return lambda at: count if at >= -seconds_ago else float("nan")


def gateway(proxy: str, code: str, kind: str = "backend") -> str:
    return f'haproxy_{kind}_http_responses_total{{job="gateway",component="gateway",proxy="{proxy}",code="{code}"}}'


def histogram(name: str, labels: str, per_second: float, seconds: float) -> Series:
    """A histogram of answers that all took `seconds`."""
    buckets = (0.01, 0.05, 0.1, 0.5, 1, 5)
    found = {f'{name}_bucket{{{labels},le="{le}"}}': rate(per_second if seconds <= le else 0) for le in buckets}
    return found | {
        f'{name}_bucket{{{labels},le="+Inf"}}': rate(per_second),
        f"{name}_count{{{labels}}}": rate(per_second),
    }


def platform(per_second: float = 10, seconds: float = 0.04, **changed: Any) -> Series:
    """What a platform with steady traffic and no errors shows."""
    up = {f'up{{job="{job}",host="h"}}': (lambda at: 1.0) for job in ("gateway", "qwen", "pbml")}
    http = 'component="{0}",service="{0}",route="/v1/x",method="POST"'
    shown: Series = {
        **up,
        gateway("clients", "5xx", "frontend"): rate(0),
        gateway("qwen", "2xx"): rate(per_second),
        gateway("qwen", "5xx"): rate(0),
        f'devmentor_http_requests_total{{{http.format("pbml")},code="200"}}': rate(per_second),
        **histogram("devmentor_qwen_engine_seconds", 'model="m"', per_second, seconds),
        **histogram("devmentor_qwen_time_to_first_token_seconds", 'model="m"', per_second, seconds),
    }
    for name in ("qwen", "pbml"):
        shown |= histogram("devmentor_http_request_duration_seconds", http.format(name), per_second, seconds)
    return shown


PBML_ERRORS = 'devmentor_http_requests_total{component="pbml",service="pbml",route="/v1/x",method="POST",code="500"}'


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("steady") / "home", platform()) as url:
        yield url


@pytest.fixture
def before(steady: str, run_module: RunModule) -> Any:
    """The baseline of a platform with steady traffic."""
    taken = run_module("rollout_baseline", action="take", url=steady)
    assert not taken["failed"], taken
    return taken["measured"]


@pytest.fixture
def compare(tmp_path: Path, run_module: RunModule, before: Any) -> Callable[..., dict[str, Any]]:
    def run(series: Series, tier: str, **options: Any) -> dict[str, Any]:
        with prometheus(tmp_path / "home", series) as url:
            given = {"baseline": before, "window_seconds": 60, "wait": False, **options}
            return run_module("rollout_baseline", action="compare", url=url, tier=tier, **given)

    return run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible.module_utils.devmentor.baseline.RETRY_S", 0.0)


def test_take_counts_what_there_is(before: Any) -> None:
    assert sorted(before) == ["clients", "engines", "pbml", "qwen"]
    assert before["qwen"]["requests"] == pytest.approx(1200, rel=0.15)
    assert before["qwen"]["error_ratio"] == 0
    assert 0.01 < before["qwen"]["p95_seconds"] <= 0.05
    assert before["clients"]["p95_seconds"] is None
    assert before["engines"]["requests"] == pytest.approx(2400, rel=0.15)


def test_the_same_traffic_passes_for_every_tier(steady: str, before: Any, run_module: RunModule) -> None:
    for tier in baseline.TIERS:
        found = run_module("rollout_baseline", action="compare", url=steady, tier=tier, baseline=before, wait=False)
        assert (found["failed"], found["result"]) == (False, "pass"), found
        assert "0 errors of" in found["evidence"]


def test_errors_at_the_gateway_fail(compare: Any) -> None:
    found = compare(platform() | {gateway("qwen", "5xx"): burst(30, 30)}, "qwen")
    assert (found["failed"], found["result"]) == (True, "fail")
    assert "errors grew by" in found["msg"]
    assert found["verdicts"]["clients"]["result"] == "pass"


def test_one_error_is_not_made_two_by_extrapolation(compare: Any) -> None:
    errors = {gateway("qwen", "5xx"): lambda at: 1001 if at >= -10 else 1000}
    found = compare(platform(1) | errors, "qwen", window_seconds=1)
    assert 1 < found["measured"]["qwen"]["errors"] < 2
    assert found["window_seconds"] == 3 * SCRAPE
    assert found["result"] == "pass", found["evidence"]


def test_errors_whose_series_is_born_with_them_count(compare: Any) -> None:
    found = compare(platform() | {PBML_ERRORS: newborn(30, 30)}, "postgres")
    assert found["result"] == "fail"
    assert found["measured"]["pbml"]["errors"] == 30


def test_old_errors_do_not_count(compare: Any) -> None:
    found = compare(platform() | {PBML_ERRORS: lambda at: 5000.0}, "postgres")
    assert (found["result"], found["measured"]["pbml"]["errors"]) == ("pass", 0)


def test_a_restart_is_neither_a_burst_nor_less_than_nothing(compare: Any) -> None:
    changed = {gateway("qwen", "2xx"): restarted(10, 30), gateway("qwen", "5xx"): restarted(0, 30)}
    found = compare(platform() | changed, "qwen")
    assert found["result"] == "pass"
    # What came between the last scrape before it and the restart is nowhere.
    assert 300 <= found["measured"]["qwen"]["requests"] <= 660


def test_slow_answers_fail(compare: Any) -> None:
    found = compare(platform(seconds=0.4), "pbml")
    assert found["result"] == "fail"
    assert "p95 is more than 2 times what it was" in found["evidence"]


def test_too_little_traffic_is_said_and_does_not_fail(compare: Any) -> None:
    found = compare(platform(0.1), "qwen")
    assert (found["failed"], found["result"]) == (False, "too_little_traffic")
    assert "fewer than 20 requests" in found["evidence"]


def test_nothing_but_errors_fails_however_few(compare: Any) -> None:
    found = compare(platform(0) | {gateway("qwen", "5xx"): burst(8, 30), gateway("qwen", "2xx"): rate(0)}, "qwen")
    assert found["result"] == "fail"


def test_errors_of_the_gateway_itself_fail_without_any_request_to_a_tier(compare: Any) -> None:
    series = platform(0) | {gateway("clients", "5xx", "frontend"): burst(8, 30)}
    found = compare(series, "exporters")
    assert (found["result"], found["measured"]["clients"]["error_ratio"]) == ("fail", 1)


def test_a_missing_series_is_unknown(compare: Any) -> None:
    series = {name: value for name, value in platform().items() if "haproxy_backend" not in name and "up{" not in name}
    found = compare(series, "qwen")
    assert (found["failed"], found["result"]) == (True, "unknown")
    assert "no sample of" in found["msg"]


def test_requests_without_their_times_are_unknown(compare: Any) -> None:
    found = compare({name: value for name, value in platform().items() if "duration_seconds" not in name}, "qwen")
    assert found["result"] == "unknown"


def test_a_percentile_that_is_not_a_number_is_unknown(compare: Any) -> None:
    series = platform() | {name: rate(0) for name in platform() if "duration_seconds" in name}
    found = compare(series, "qwen")
    assert found["result"] == "unknown"
    assert "no p95 of them" in found["evidence"]


def test_targets_that_are_down_are_unknown_at_once(compare: Any, run_module: RunModule, tmp_path: Path) -> None:
    series = platform() | {f'up{{job="{job}",host="h"}}': (lambda at: 0.0) for job in ("gateway", "qwen", "pbml")}
    series = {name: value for name, value in series.items() if not name.startswith(("haproxy", "devmentor_http"))}
    with prometheus(tmp_path / "down", series) as url:
        found = run_module("rollout_baseline", action="take", url=url)
    assert (found["failed"], found["result"]) == (True, "unknown")


@pytest.mark.usefixtures("impatient")
def test_prometheus_away_is_unknown(before: Any, run_module: RunModule) -> None:
    away = "http://127.0.0.1:9"
    found = run_module("rollout_baseline", action="compare", url=away, tier="qwen", baseline=before, wait=False)
    assert (found["failed"], found["result"]) == (True, "unknown")
    assert "does not answer" in found["msg"]
    said = run_module(
        "rollout_baseline", action="compare", url=away, tier="qwen", baseline=before, wait=False, report_only=True
    )
    assert (said["failed"], said["result"]) == (False, "unknown")


def test_own_queries_and_tiers(steady: str, run_module: RunModule) -> None:
    own = {"mine": {"requests": "vector(100)", "errors": "vector(0)"}}
    given = {"url": steady, "queries": own, "tiers": {"qwen": ["mine"]}}
    taken = run_module("rollout_baseline", action="take", **given)["measured"]
    found = run_module("rollout_baseline", action="compare", tier="qwen", baseline=taken, wait=False, **given)
    assert (found["result"], list(found["measured"])) == ("pass", ["mine"])


@pytest.mark.usefixtures("impatient")
def test_a_query_that_cannot_be_evaluated_is_unknown(steady: str, run_module: RunModule) -> None:
    found = run_module("rollout_baseline", action="take", url=steady, queries={"qwen": {"requests": "sum("}})
    assert found["result"] == "unknown"
    assert "parse error" in found["msg"]


def test_a_baseline_of_something_else_is_refused(steady: str, run_module: RunModule) -> None:
    found = run_module("rollout_baseline", action="compare", url=steady, tier="qwen", baseline={"x": 1}, wait=False)
    assert found["failed"]
    assert "has no measure 'clients'" in found["msg"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: baseline.merged({"x": {"requests": "1"}}), "Give it requests, errors"),
        (lambda: baseline.measures_of("y", {}, baseline.MEASURES), "tier 'y' is none of"),
        (lambda: baseline.measures_of("y", {"y": ["z"]}, baseline.MEASURES), "tiers.y must name measures"),
        (lambda: baseline.measures_of("y", {"y": []}, baseline.MEASURES), "it is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        call()


def test_every_tier_of_the_rollout_has_measures() -> None:
    role = Path(__file__).resolve().parents[3] / "roles/rollout/vars/main.yml"
    for tier in yaml.safe_load(role.read_text())["__rollout_tiers"]:
        assert baseline.measures_of(tier, {}, baseline.MEASURES)


GOOD = Measured(1000, 0, 0.0, 0.2)


@pytest.mark.parametrize(
    ("before", "now", "result"),
    [
        (GOOD, GOOD, "pass"),
        (GOOD, Measured(1000, 1, 0.001, 0.2), "pass"),
        (GOOD, Measured(1000, 2, 0.002, 0.2), "fail"),
        (GOOD, Measured(4000, 4, 0.001, 0.2), "pass"),  # not above the limit
        (Measured(1000, 20, 0.02, 0.2), Measured(1000, 20, 0.02, 0.2), "pass"),  # was so before
        (GOOD, Measured(1000, 0, 0.0, 0.401), "fail"),
        (Measured(1000, 0, 0.0, 0.01), Measured(1000, 0, 0.0, 0.05), "pass"),  # below the floor
        (Measured(1000, 0, 0.0, 0.01), Measured(1000, 0, 0.0, 0.051), "fail"),
        (GOOD, Measured(1000, 0, 0.0, None), "unknown"),
        (Measured(1000, 0, 0.0, None), GOOD, "unknown"),
        (Measured(0, 0, 0.0, None), GOOD, "pass"),  # nothing to compare with
        (Measured(unknown="away"), GOOD, "unknown"),
        (GOOD, Measured(unknown="away"), "unknown"),
        (Measured(1000, None, 0.0, 0.2), GOOD, "unknown"),
        (GOOD, Measured(19, 1, 1 / 19, 5.0), "too_little_traffic"),
    ],
)
def test_judge(before: Measured, now: Measured, result: str) -> None:
    assert judge(before, now, Limits()).result == result


def test_the_worst_measure_decides() -> None:
    results = ["too_little_traffic", "pass", "unknown", "fail"]
    for worst in range(len(results)):
        verdicts = {name: baseline.Verdict(name, "") for name in results[: worst + 1]}
        assert baseline.overall(verdicts).result == results[worst]


def test_a_baseline_survives_json() -> None:
    document = json.loads(json.dumps({"qwen": dataclasses.asdict(GOOD)}))
    assert baseline.restored(document, "qwen") == GOOD
