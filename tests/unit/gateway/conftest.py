"""Gateways for a module's tests, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_pair import Gateway, Platform, running, until


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One gateway whose waits are short; what a test orders is taken back after it (see `platform`)."""
    variables = {"gateway_ejection_seconds": 2, "gateway_response_timeout": 8, "gateway_request_timeout": 2}
    with running(tmp_path_factory.mktemp("gateway"), **variables) as platform:
        yield platform


@pytest.fixture
def platform(started: Platform) -> Iterator[Platform]:
    """The same with everything in service and nobody misbehaving, before and after the test."""
    yield started
    for instance in started.instances.values():
        instance.orders.clear()
    for gateway in started.gateways.values():
        for tier in ("qwen", "pbml"):
            for host in ("h1", "h2"):
                gateway.admin(f"set server {tier}/{host} state ready; set server {tier}/{host}-last state ready")
                gateway.admin(f"set server {tier}/{host} weight 1; set server {tier}/{host}-surge state maint")
        for tier, instances in (("qwen", started.qwen), ("pbml", started.pbml)):
            for host, instance in instances.items():
                if instance.server is None:
                    instance.start()
                until(lambda g=gateway, h=host, t=tier: g.status(h, t) == "UP")
    for instance in started.instances.values():
        instance.seen.clear()
    for host in ("h1", "h2", "h3"):
        for tier in ("qwen_surge", "pbml_surge"):
            started.instances[tier, host].stop()


@pytest.fixture
def gateway(platform: Platform) -> Gateway:
    return platform.gateways["gw1"]
