"""What the gateway's files are made from."""

from __future__ import annotations

import hashlib

import pytest

from filter_plugins.gateway import interface_of, tenant_map

FACTS = {
    "interfaces": ["lo", "eth0", "br-lan"],
    "lo": {"device": "lo", "ipv4": {"address": "127.0.0.1"}},
    "eth0": {"device": "eth0", "ipv4": {"address": "10.0.0.1"}, "ipv4_secondaries": [{"address": "10.0.0.9"}]},
    "br_lan": {"device": "br-lan", "ipv6": [{"address": "fd00::1"}]},
}


def test_the_map_knows_digests_and_no_key():
    text = tenant_map({"lab": "secret-1", "acme": "secret-2"}, "secret-3")
    assert "secret" not in text
    assert dict(line.split() for line in text.splitlines()) == {
        hashlib.sha256(b"secret-1").hexdigest(): "lab",
        hashlib.sha256(b"secret-2").hexdigest(): "acme",
        hashlib.sha256(b"secret-3").hexdigest(): "admin",
    }


def test_the_map_does_not_depend_on_the_order_of_tenants():
    assert tenant_map({"a": "1", "b": "2"}, "3") == tenant_map({"b": "2", "a": "1"}, "3")


@pytest.mark.parametrize(("keys", "admin"), [({"lab": "x", "acme": "x"}, "y"), ({"lab": "x"}, "x")])
def test_two_tenants_with_one_key_are_refused(keys, admin):
    with pytest.raises(ValueError, match="have the same API key"):
        tenant_map(keys, admin)


@pytest.mark.parametrize(("address", "name"), [("10.0.0.1", "eth0"), ("10.0.0.9", "eth0"), ("fd00::1", "br-lan")])
def test_the_interface_that_holds_an_address(address, name):
    assert interface_of(FACTS, address) == name


def test_an_address_that_no_interface_holds_names_the_variable_to_set():
    with pytest.raises(ValueError, match="Set gateway_vip_interface"):
        interface_of(FACTS, "10.0.0.2")
