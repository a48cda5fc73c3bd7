"""What lives through a reload: what was ordered of servers, and streams. And where conversations go meanwhile."""

from __future__ import annotations

import re

import pytest
from gateway_pair import running, until


def state_of(gateway, server):
    """(admin state, weight) as `show servers state` has it."""
    for line in gateway.admin("show servers state qwen").splitlines():
        fields = line.split()
        if len(fields) > 7 and fields[3] == server:
            return fields[6], fields[7]
    raise AssertionError(f"no server {server}")


def where(gateway, count=20):
    """Conversation -> (host, port) that it is dealt to."""
    return {f"c{number}": gateway.deals(f"c{number}") for number in range(count)}


def test_drain_maintenance_weight_and_a_stand_in_are_kept(platform, gateway):
    platform.instances["qwen_surge", "h1"].start()
    gateway.admin("set server qwen/h1 state drain; set server qwen/h1-last state drain; set server pbml/h1 weight 50")
    gateway.admin("set server pbml/h2 state maint; set server qwen/h1-surge state ready")
    until(lambda: gateway.status("h1-surge") == "UP")
    before = {server: state_of(gateway, server) for server in ("h1", "h2", "h3", "h1-surge", "h2-surge", "h1-last")}
    gateway.reload()
    assert {server: state_of(gateway, server) for server in before} == before
    assert (gateway.status("h1"), gateway.status("h2", "pbml"), gateway.stat("h1", "weight", "pbml")) == (
        "DRAIN",
        "MAINT",
        "50",
    )
    assert gateway.status("h1-surge").startswith("UP")
    assert set(where(gateway).values()) == {("h1", platform.ports["qwen_surge"]), ("h2", platform.ports["qwen"])}


def test_they_are_kept_where_the_reload_brings_a_host_that_sorts_before_others(platform, gateway):
    gateway.admin("set server qwen/h2 state drain; set server qwen/h2-last state drain")
    platform.addresses["h15"] = "127.0.2.15"
    platform.groups["qwen"] = ["h1", "h15", "h2"]
    try:
        platform.configure("gw1")
        gateway.reload()
        assert gateway.status("h2") == "DRAIN"
        assert state_of(gateway, "h2-last")[0] == "8"
        assert gateway.status("h1") == "UP"
        assert state_of(gateway, "h15")[0] == "0"
        assert gateway.status("h15-surge") == "MAINT"
    finally:
        platform.groups["qwen"] = ["h1", "h2"]
        platform.configure("gw1")
        gateway.reload()
    assert gateway.status("h2") == "DRAIN"


def test_a_stream_ends_in_the_old_worker_and_new_requests_go_to_the_new_one(platform, gateway):
    stream = gateway.begin("/v1/stream/60x0.1")
    before = gateway.worker()
    gateway.reload()
    assert gateway.worker() != before
    assert "# old workers" in gateway.master("show proc")
    assert gateway.ask("/v1/models").status == 200
    assert not stream.done()
    assert stream.result(40).body.count(b"data:") == 60
    until(lambda: " worker " not in gateway.master("show proc").partition("# old workers")[2])


def test_no_request_is_lost_over_reloads(platform, gateway):
    begun = [gateway.begin("/v1/stream/8x0.1") for _ in range(4)]
    statuses = []
    for _ in range(3):
        statuses += [gateway.ask("/v1/models").status for _ in range(5)]
        gateway.reload()
    statuses += [gateway.ask("/v1/models").status for _ in range(5)]
    assert statuses == [200] * 20
    assert [each.result(40).body.count(b"data:") for each in begun] == [8] * 4


def test_a_drained_instances_conversations_go_to_the_stand_in_of_its_host_and_no_other_moves(platform, gateway):
    before = where(gateway)
    assert {host for host, _ in before.values()} == {"h1", "h2"}
    platform.instances["qwen_surge", "h1"].start()
    gateway.admin("set server qwen/h1-surge state ready")
    until(lambda: gateway.status("h1-surge") == "UP")
    gateway.admin("set server qwen/h1 state drain; set server qwen/h1-last state drain")
    during = where(gateway)
    assert {name: host for name, (host, _) in during.items()} == {name: host for name, (host, _) in before.items()}
    assert {port for host, port in during.values() if host == "h1"} == {platform.ports["qwen_surge"]}
    gateway.admin("set server qwen/h1 state ready; set server qwen/h1-surge state maint")
    until(lambda: gateway.status("h1") == "UP")
    assert where(gateway) == before


@pytest.fixture
def pair(tmp_path):
    # So long that nothing falls out of the window while a busy machine asks.
    with running(tmp_path, ("gw1", "gw2"), gateway_rate_requests=100, gateway_rate_window=3000) as platform:
        yield platform


def counted(gateway):
    """Requests within the window that the gateway knows of, of the one key that was used."""
    found = re.search(r"http_req_rate\(3000000\)=(\d+)", gateway.admin("show table gateways/keys"))
    return int(found.group(1)) if found else 0


def settled(gateway):
    """Whether its connection to the other one has stood for two heartbeats. When both call each other at once, one is
    dropped and made again, and what was counted until then may be the other's count afterwards."""
    return re.search(r"\(remote,active\).*app_state=RUNNING.*\n.* tx_hbt=([2-9]|\d\d)", gateway.admin("show peers"))


def test_the_rate_of_a_key_is_counted_over_both_gateways(pair):
    """Requests come to one gateway at a time, as with a virtual address; the other knows of them when it takes over."""
    gw1, gw2 = pair.gateways.values()
    until(lambda: settled(gw1) and settled(gw2))
    assert {gw1.ask("/v1/models", key="key-of-limited").status for _ in range(95)} == {200}
    until(lambda: counted(gw2) >= 90)
    statuses = [gw2.ask("/v1/models", key="key-of-limited").status for _ in range(15)]
    assert statuses == sorted(statuses)
    assert 1 <= statuses.count(200) <= 10, "without the other's count all of them would pass"
    until(lambda: gw1.ask("/v1/models", key="key-of-limited").status == 429)
    limited = gw2.ask("/v1/models", key="key-of-limited")
    assert (limited.json["error"]["code"], int(limited.headers["retry-after"]) > 0) == ("rate_limit_exceeded", True)
    assert gw1.ask("/v1/models").status == 200, "another key is not concerned"
    gw1.reload()
    # The old worker teaches the new one, which takes a moment; asking would add to the count.
    until(lambda: counted(gw1) > 100)
    assert gw1.ask("/v1/models", key="key-of-limited").status == 429, "nor does a reload forget"
    gw1.stop()
    gw1.start()
    until(lambda: gw1.ask("/v1/models", key="key-of-limited").status == 429)


def test_both_gateways_deal_a_conversation_to_the_same_instance(pair):
    gw1, gw2 = pair.gateways.values()
    dealt = where(gw1, 12)
    assert where(gw2, 12) == dealt
    assert {host for host, _ in dealt.values()} == {"h1", "h2"}
