"""What clients saw before a host's turn of a rolling update and what they see after it, by Prometheus' counters.

A *measure* is a place where requests are counted: {requests, errors, p95}, three PromQL expressions of one sample
each, in which $window is the range. Counters go through increase() and rate(), which know that a restart sets them
back to 0. A tier without requests of its own is judged by what uses it. Runs on the hosts, on the standard library.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import json
import math
import re
import urllib.parse
from typing import Any

from .checks_base import FAIL, PASS, UNKNOWN, Unanswered, poll
from .checks_client import fetch

TOO_LITTLE_TRAFFIC = "too_little_traffic"
# Worst first: the verdict of a tier is the worst of its measures', but one with traffic speaks for one without.
_ORDER = (FAIL, UNKNOWN, PASS, TOO_LITTLE_TRAFFIC)

FEWEST_SCRAPES = 3  # increase() needs two samples; with three it makes at most 1.5 of one, which rounds down to one
RETRY_S = 5.0

Queries = c.Mapping[str, c.Mapping[str, str]]
Get = c.Callable[[str], Any]

_OWN_ROUTES = 'route!~"/health|/ready|/metrics"'


def _zero(job: str) -> str:
    """0 where a target of the job is up; no sample, which is unknown, where none is."""
    return f'0 * sum(up{{job="{job}"}} == 1)'


def _born(series: str) -> str:
    """The increase of labelled series: one that appears in the window began at 0, which increase() does not know."""
    return f"sum(({series} unless last_over_time({series}[10m] offset $window)) or increase({series}[$window]))"


def _gateway(series: str) -> str:
    return f"sum(increase({series}[$window])) or {_zero('gateway')}"


def _service(component: str, code: str = "") -> str:
    series = f'devmentor_http_requests_total{{component="{component}",{_OWN_ROUTES}{code}}}'
    return f"{_born(series)} or {_zero(component)}"


def _first_byte(component: str) -> str:
    buckets = f'devmentor_http_request_duration_seconds_bucket{{component="{component}",{_OWN_ROUTES}}}'
    return f"histogram_quantile(0.95, sum by (le) (rate({buckets}[$window])))"


_ENGINE_ERRORS = _born("devmentor_qwen_engine_errors_total")
_ENGINE_ANSWERS = (
    "sum(increase(devmentor_qwen_engine_seconds_count[$window]))"
    " + sum(increase(devmentor_qwen_time_to_first_token_seconds_count[$window]))"
)

MEASURES: dict[str, dict[str, str]] = {
    # All errors that the gateways answered, their own 503 included, of the requests that were for a tier: the count of
    # the frontend's would hold the health checks too. HAProxy has no histogram.
    "clients": {
        "requests": _gateway('haproxy_backend_http_responses_total{proxy=~"qwen|pbml"}'),
        "errors": _gateway('haproxy_frontend_http_responses_total{proxy="clients",code="5xx"}'),
    },
    # Counted at the gateways, which see the requests that an instance did not live to count.
    "qwen": {
        "requests": _gateway('haproxy_backend_http_responses_total{proxy="qwen"}'),
        "errors": _gateway('haproxy_backend_http_responses_total{proxy="qwen",code="5xx"}'),
        "p95": _first_byte("qwen"),
    },
    # Counted by PBML itself: QWEN, which asks most, need not come by the gateways.
    "pbml": {
        "requests": _service("pbml"),
        "errors": _service("pbml", ',code=~"5.."'),
        "p95": _first_byte("pbml"),
    },
    # As QWEN sees the engines: whole answers and streams that began; time to the former, or to a stream's first token.
    "engines": {
        "requests": f"({_ENGINE_ANSWERS} + ({_ENGINE_ERRORS} or {_zero('qwen')})) or {_zero('qwen')}",
        "errors": f"{_ENGINE_ERRORS} or {_zero('qwen')}",
        "p95": (
            "histogram_quantile(0.95, sum by (le) (rate(devmentor_qwen_engine_seconds_bucket[$window]))"
            " + sum by (le) (rate(devmentor_qwen_time_to_first_token_seconds_bucket[$window])))"
        ),
    },
}

# Whose requests go wrong when the tier does.
TIERS: dict[str, tuple[str, ...]] = {
    "postgres": ("clients", "pbml"),
    "pgbouncer": ("clients", "pbml"),
    "cache": ("clients", "qwen"),
    "qdrant": ("clients", "pbml"),
    "llamacpp": ("clients", "engines", "pbml"),  # its embeddings are PBML's
    "vllm": ("clients", "engines"),
    "pbml": ("clients", "pbml"),
    "qwen": ("clients", "qwen"),
    "gateway": ("clients", "qwen"),
    "prometheus": ("clients",),
    "exporters": ("clients",),
}


class BaselineError(Exception):
    """An option or a baseline that cannot be used. The message says which, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measure over the window: counts, their ratio (0..1), seconds. None is not known or does not apply.

    `unknown` says why requests or errors could not be read.
    """

    requests: float | None = None
    errors: float | None = None
    error_ratio: float | None = None
    p95_seconds: float | None = None
    unknown: str = ""

    def text(self) -> str:
        if self.unknown:
            return f"unknown ({self.unknown})"
        p95 = "" if self.p95_seconds is None else f", p95 {self.p95_seconds:.3f} s"
        return f"{self.errors:.0f} errors of {self.requests:.0f} requests ({self.error_ratio:.3%}){p95}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What counts as worse. See the options of the module rollout_baseline."""

    min_requests: float = 20
    min_errors: float = 2
    max_error_ratio_increase: float = 0.001
    max_p95_factor: float = 2
    p95_floor_seconds: float = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`result` is pass, fail, unknown or too_little_traffic; `evidence` has the numbers."""

    result: str
    evidence: str


def merged(queries: Queries) -> dict[str, dict[str, str]]:
    """The measures, with an inventory's own in front. Raises BaselineError for one that cannot be asked."""
    found = {name: dict(MEASURES.get(name, {}), **queries.get(name, {})) for name in {*MEASURES, *queries}}
    for name, measure in found.items():
        if not measure.get("requests") or not measure.get("errors") or set(measure) - {"requests", "errors", "p95"}:
            raise BaselineError(
                f"queries.{name} has {sorted(measure)}. Give it requests, errors and at will p95, each a PromQL "
                "expression of one sample."
            )
    return found


def measures_of(tier: str, tiers: c.Mapping[str, c.Sequence[str]], queries: Queries) -> list[str]:
    """The names of the measures that judge the tier. Raises BaselineError for a tier or measure that there is not."""
    table: dict[str, c.Sequence[str]] = {**TIERS, **tiers}
    if tier not in table:
        raise BaselineError(f"tier {tier!r} is none of {', '.join(sorted(table))}. Name one, or add it to tiers.")
    lacking = [name for name in table[tier] if name not in queries]
    if lacking or not table[tier]:
        known = ", ".join(sorted(queries))
        raise BaselineError(f"tiers.{tier} must name measures of {known}: {', '.join(lacking) or 'it is empty'}.")
    return list(table[tier])


def prometheus(url: str, tls: c.Mapping[str, str], timeout: float) -> Get:
    """Asks Prometheus for the `data` of an API path. Raises Unanswered once it has not answered for RETRY_S."""

    def once(path: str) -> Any:
        answer = fetch(tls, "GET", f"{url.rstrip('/')}/api/v1/{path}", timeout=timeout)
        try:
            body = json.loads(answer.body)
            if body["status"] != "success":
                raise Unanswered(f"HTTP {answer.status}: {body.get('error', body['status'])}")
            return body["data"]
        except (ValueError, KeyError, TypeError):
            raise Unanswered(f"HTTP {answer.status}, and no answer of Prometheus: {answer.body[:80]!r}") from None

    def get(path: str) -> Any:
        try:
            return poll(lambda: once(path), RETRY_S)
        except OSError as error:
            raise Unanswered(f"Prometheus at {url} does not answer: {error}") from error

    return get


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def scrape_seconds(get: Get) -> float:
    """The server's scrape interval, by its own word. Raises Unanswered."""
    data = get("status/config")
    found = re.search(r"^ +scrape_interval: ((?:\d+(?:ms|s|m|h))+)$", str(data.get("yaml", "")), re.MULTILINE)
    if found is None:
        raise Unanswered("Prometheus' configuration does not say its scrape_interval")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|s|m|h)", found[1]))


def window_of(wanted: float, get: Get) -> int:
    """Seconds to look at: what is wanted, but enough for FEWEST_SCRAPES."""
    return math.ceil(max(wanted, FEWEST_SCRAPES * scrape_seconds(get)))


def number(get: Get, query: str) -> float | None:
    """The one sample of an expression; None is not-a-number. Raises Unanswered for no sample, several, or no number."""
    data = get("query?" + urllib.parse.urlencode({"query": query}))
    try:
        if data["resultType"] == "scalar":
            value = float(data["result"][1])
        elif data["resultType"] != "vector" or len(data["result"]) > 1:
            raise Unanswered(f"{query} gives a {data['resultType']} of {len(data['result'])}, not one sample")
        elif not data["result"]:
            raise Unanswered(f"no sample of {query}: a target is down, or a label is not as expected")
        else:
            value = float(data["result"][0]["value"][1])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Unanswered(f"the answer to {query} cannot be read ({error!r})") from error
    return value if math.isfinite(value) else None


def measure(get: Get, queries: c.Mapping[str, str], window: int) -> Measured:
    """One measure over the last `window` seconds."""
    try:
        asked = {name: query.replace("$window", f"{window}s") for name, query in queries.items()}
        requests, errors = number(get, asked["requests"]), number(get, asked["errors"])
        if requests is None or errors is None:
            raise Unanswered("requests or errors are not a number")
        p95 = number(get, asked["p95"]) if requests > 0 and "p95" in asked else None
    except Unanswered as error:
        return Measured(unknown=str(error))
    # Errors that were for no tier are of no counted request.
    requests = max(requests, errors)
    return Measured(requests, errors, errors / requests if requests > 0 else 0.0, p95)


def restored(document: Any, name: str) -> Measured:
    """A measure of a baseline that was taken before. Raises BaselineError for what is none."""
    try:
        return Measured(**document[name])
    except (KeyError, TypeError):
        raise BaselineError(
            f"the baseline has no measure {name!r}. Give back `measured` of action=take, taken with the same queries."
        ) from None


def judge(before: Measured, now: Measured, limits: Limits, timed: bool = True) -> Verdict:
    """The verdict on one measure. `timed`: it has a p95, so that none is unknown.

    Errors count however little traffic there is: a client that gets nothing but errors must not excuse itself.
    """
    for when, seen in (("before", before), ("now", now)):
        if seen.unknown or seen.requests is None or seen.errors is None or seen.error_ratio is None:
            return Verdict(UNKNOWN, f"{when}: {seen.unknown or 'incomplete'}")
    assert before.requests is not None
    assert before.error_ratio is not None
    assert now.requests is not None
    assert now.errors is not None
    assert now.error_ratio is not None
    said = f"{now.text()}; before: {before.text()}"
    growth = now.error_ratio - before.error_ratio
    if math.floor(now.errors) >= limits.min_errors and growth > limits.max_error_ratio_increase:
        return Verdict(FAIL, f"errors grew by {growth:.3%}, more than {limits.max_error_ratio_increase:.3%}: {said}")
    if now.requests < limits.min_requests:
        return Verdict(TOO_LITTLE_TRAFFIC, f"fewer than {limits.min_requests:g} requests: {said}")
    if not timed:
        return Verdict(PASS, said)
    if now.p95_seconds is None:
        return Verdict(UNKNOWN, f"there are requests, but no p95 of them: {said}")
    if before.requests < limits.min_requests:
        return Verdict(PASS, f"too few requests before to compare the p95 with: {said}")
    if before.p95_seconds is None:
        return Verdict(UNKNOWN, f"there were requests before, but no p95 of them: {said}")
    if now.p95_seconds > max(limits.p95_floor_seconds, limits.max_p95_factor * before.p95_seconds):
        return Verdict(FAIL, f"p95 is more than {limits.max_p95_factor:g} times what it was: {said}")
    return Verdict(PASS, said)


def overall(verdicts: c.Mapping[str, Verdict]) -> Verdict:
    """A tier's verdict: the worst of its measures', with what each of them says, the worst first."""
    ordered = sorted(verdicts.items(), key=lambda item: _ORDER.index(item[1].result))
    evidence = "; ".join(f"{name} {verdict.result}: {verdict.evidence}" for name, verdict in ordered)
    return Verdict(ordered[0][1].result, evidence)
