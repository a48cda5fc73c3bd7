import ipaddress
import json

import pytest

from lab import network
from lab.errors import NetworkError
from lab.names import Names, lab_identity


def nets(*words):
    return [ipaddress.IPv4Network(word) for word in words]


def test_the_first_free_range_is_chosen():
    assert network.choose_number(nets("192.0.2.0/24"), set()) == 0
    assert network.choose_number(nets("10.77.0.0/24"), {1}) == 2


def test_a_wider_or_narrower_neighbour_counts_as_taken():
    assert network.choose_number(nets("10.77.0.0/23", "10.77.2.128/25"), set()) == 3


def test_the_range_of_before_is_kept_while_it_is_free():
    assert network.choose_number([], {0}, preferred=7) == 7
    assert network.choose_number(nets("10.77.7.0/24"), set(), preferred=7) == 0


def test_no_range_left_is_an_error():
    with pytest.raises(NetworkError, match="no free /24"):
        network.choose_number(nets("10.0.0.0/8"), set())


def test_addresses_and_routes_of_the_machine_are_read_and_its_own_bridge_left_out():
    addresses = json.dumps(
        [
            {"ifname": "eth0", "addr_info": [{"family": "inet", "local": "192.0.2.2", "prefixlen": 24}]},
            {"ifname": "dmabc", "addr_info": [{"family": "inet", "local": "10.77.0.1", "prefixlen": 24}]},
            {"ifname": "br9", "addr_info": [{"family": "inet6", "local": "::1", "prefixlen": 128}]},
        ]
    )
    routes = json.dumps(
        [
            {"dst": "default", "dev": "eth0"},
            {"dst": "10.77.4.0/24", "dev": "tun0"},
            {"dst": "10.77.0.0/24", "dev": "dmabc"},
            {"dst": "10.77.5.9", "dev": "tun0"},
        ]
    )
    found = network.networks_in_use(addresses, routes, "dmabc")
    assert found == nets("192.0.2.0/24", "10.77.4.0/24", "10.77.5.9/32")


def test_addresses_never_meet_gateway_or_virtual_address():
    hosts = {network.address(3, index) for index in range(200)}
    assert len(hosts) == 200
    assert not hosts & {network.gateway(3), network.vip(3)}
    assert network.address(3, 0) == "10.77.3.10"


def test_names_fit_the_kernels_limit_and_differ_by_checkout_and_inventory(tmp_path):
    identities = {lab_identity(tmp_path / a, tmp_path / b) for a in ("x", "y") for b in ("i", "j")}
    assert len(identities) == 4
    names = Names(identities.pop())
    assert len(names.interface(199)) <= 15
    assert len(names.bridge) <= 15
    with pytest.raises(ValueError, match="longer than"):
        names.machine(10_000)


def test_the_ruleset_replaces_nat_but_keeps_the_cuts_that_are_in_force():
    rules = network._ruleset(Names("0123abcd"), 5)
    assert "delete table ip dmlab_0123abcd_nat" in rules
    assert "flush table bridge dmlab_0123abcd_cut" in rules
    assert "delete table bridge" not in rules
    assert "ip saddr 10.77.5.0/24 ip daddr != 10.77.5.0/24 masquerade" in rules
