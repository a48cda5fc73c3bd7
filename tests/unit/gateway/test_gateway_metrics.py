"""The counters that rollout_baseline reads exist at a real HAProxy, from its start, and count what a client gets."""

from __future__ import annotations

import re
import ssl
from http.client import HTTPSConnection

from module_utils.devmentor.baseline import MEASURES


def scraped(platform, gateway):
    """Sample -> value, as Prometheus would have it."""
    context = ssl.create_default_context(cafile=str(gateway.ca))
    context.check_hostname = False
    context.load_cert_chain(str(platform.tls[gateway.name] / "host.pem"))
    connection = HTTPSConnection(gateway.address, platform.ports["gateway_metrics"], timeout=10, context=context)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def count(samples, scope, proxy, code):
    return samples[f'haproxy_{scope}_http_responses_total{{proxy="{proxy}",code="{code}"}}']


def test_the_metrics_of_the_baseline_are_the_exporters(platform, gateway):
    samples = scraped(platform, gateway)
    names = {name.split("{")[0] for name in samples}
    asked = set(re.findall(r"haproxy_\w+", str(MEASURES)))
    assert asked <= names
    for proxy in ("qwen", "pbml"):
        assert {code for code in ("2xx", "4xx", "5xx") if count(samples, "backend", proxy, code) >= 0}


def test_a_request_that_no_instance_answered_is_an_error_of_its_tier(platform, gateway):
    before = scraped(platform, gateway)
    assert gateway.ask("/v1/models").status == 200
    for host in ("h1", "h2"):
        for server in (host, f"{host}-last"):
            gateway.admin(f"set server qwen/{server} state maint")
    assert gateway.ask("/v1/models").status == 503
    now = scraped(platform, gateway)

    def grew(*where):
        return count(now, *where) - count(before, *where)

    assert (grew("backend", "qwen", "2xx"), grew("backend", "qwen", "5xx")) == (1, 1)
    assert grew("frontend", "clients", "5xx") == 1


def test_a_refusal_by_the_gateway_is_no_request_of_a_tier(platform, gateway):
    before = scraped(platform, gateway)
    assert gateway.ask("/v1/models", key="wrong").status == 401
    now = scraped(platform, gateway)
    changed = {name for name in now if name.startswith("haproxy_backend_http_responses") and now[name] != before[name]}
    assert changed == set()
