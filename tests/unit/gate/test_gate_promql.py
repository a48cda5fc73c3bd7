"""promql against a real Prometheus on loopback (Debian's package) that scrapes nothing: queries make their samples."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from gate_doubles import free_port, serving, told

TWO = 'label_replace(vector(1), "a", "x", "", "") or label_replace(vector(5), "a", "y", "", "")'


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def query(url: str, text: str, op: str, value: float | None = None, **more: Any) -> tuple[str, str]:
    return told(
        {"type": "promql", "url": url, "query": text, "op": op, **({} if value is None else {"value": value})}, **more
    )


@pytest.mark.parametrize(
    ("op", "passing", "failing"),
    [("lt", 6, 5), ("le", 5, 4), ("gt", 0, 1), ("ge", 1, 2), ("ne", 7, 5)],
)
def test_every_sample_must_satisfy_it(prometheus: str, op: str, passing: float, failing: float) -> None:
    assert query(prometheus, TWO, op, passing) == ("pass", f"2 samples {op} {passing:g}: 1 to 5")
    result, evidence = query(prometheus, TWO, op, failing)
    assert result == "fail"
    assert f"1 of 2 samples are not {op} {failing:g}: {{" in evidence


def test_equal_and_scalars(prometheus: str) -> None:
    assert query(prometheus, "vector(5)", "eq", 5)[0] == "pass"
    assert query(prometheus, TWO, "eq", 5)[0] == "fail"
    assert query(prometheus, "scalar(vector(5))", "eq", 5)[0] == "pass"


def test_no_sample_is_unknown_unless_that_is_asked(prometheus: str) -> None:
    assert query(prometheus, "up", "lt", 6) == ("unknown", "the query has no samples")
    assert query(prometheus, "up", "empty") == ("pass", "0 samples")
    assert query(prometheus, "up", "not_empty") == ("fail", "no samples")
    assert query(prometheus, TWO, "not_empty")[0] == "pass"
    assert query(prometheus, TWO, "empty")[0] == "fail"


def test_what_is_not_a_number_is_unknown(prometheus: str) -> None:
    result, evidence = query(prometheus, f"{TWO} or label_replace(vector(0) / 0, 'a', 'z', '', '')", "lt", 6)
    assert (result, evidence) == ("unknown", '1 of 3 samples are not a number: {a="z"}')
    assert query(prometheus, "vector(0) / 0", "ne", 6)[0] == "unknown"
    assert query(prometheus, "vector(1) / 0", "lt", 6)[0] == "fail"  # infinity is a number


def test_what_cannot_be_evaluated_is_unknown(prometheus: str) -> None:
    result, evidence = query(prometheus, "rate(", "lt", 6)
    assert result == "unknown"
    assert "HTTP 400" in evidence
    assert query(prometheus, '"text"', "lt", 6)[0] == "unknown"


@pytest.mark.parametrize(
    "body", [b"{}", b'{"status": "error"}', b'{"status":"success","data":{"resultType":"vector","result":[{}]}}']
)
def test_an_unreadable_answer_of_a_pretended_prometheus_is_unknown(body: bytes) -> None:
    with serving(lambda request, sent: (200, body)) as url:
        assert query(url, "up", "lt", 1)[0] == "unknown"
