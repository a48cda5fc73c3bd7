"""Knocks at real ports from the other host, from an address that is in no group, and from the host itself."""

import subprocess
import sys
from pathlib import Path

import pytest
from scenario import members

testinfra_hosts = ["gateway"]
STRANGER = "ip netns exec stranger"


@pytest.fixture(scope="module")
def variables(host):
    return host.ansible.get_variables()


@pytest.fixture(scope="module")
def peer(host, variables):
    return next(each for other, each in members(host, "gateway").items() if other != variables["inventory_hostname"])


def address(host):
    return host.run("hostname --all-ip-addresses").stdout.split()[0]


def knock(host, target, port, prefix=""):
    """open, dropped (no answer within 2 s) or refused."""
    code = host.run(f"{prefix} timeout 2 bash -c '</dev/tcp/{target}/{port}'").rc
    return {0: "open", 124: "dropped"}.get(code, "refused")


@pytest.fixture(scope="module")
def stranger(host):
    """An address that is in no group of the inventory: a network namespace on the host, routed to its own addresses."""
    script = (
        "ip netns add stranger; ip link add st0 type veth peer name st1; ip link set st1 netns stranger; "
        "ip address add 198.51.100.1/24 dev st0; ip link set st0 up; "
        "ip -netns stranger address add 198.51.100.2/24 dev st1; ip -netns stranger link set st1 up; "
        "ip -netns stranger link set lo up; ip -netns stranger route add default via 198.51.100.1"
    )
    result = host.run(script)
    yield result
    host.run("ip netns delete stranger; ip link delete st0")


def test_a_member_of_the_group_gets_in(host, peer):
    assert knock(peer, address(host), 6333) == "open"


def test_what_the_matrix_does_not_name_is_dropped_even_between_members(host, peer):
    assert knock(peer, address(host), 7777) == "dropped"
    assert knock(host, "127.0.0.1", 7777) == "open"


def test_a_stranger_reaches_the_gateways_port_and_no_other(host, stranger):
    if host.run("ip netns list").stdout.strip() == "":
        pytest.fail(f"the host cannot make a network namespace: {stranger.stderr}")
    own = address(host)
    assert knock(host, own, 443, STRANGER) == "open"
    assert knock(host, own, 6333, STRANGER) == "dropped"
    assert knock(host, own, 7777, STRANGER) == "dropped"
    assert knock(host, own, 22, STRANGER) == "dropped"


def test_a_sites_own_table_is_left_alone(host):
    assert "table inet site" in host.run("nft list tables").stdout


def test_the_rules_come_back_with_the_host_and_leave_with_the_unit(host):
    assert host.service("nftables").is_enabled
    assert host.run("systemctl restart nftables").rc == 0
    tables = host.run("nft list tables").stdout
    assert "table inet devmentor" in tables
    assert "table inet site" in tables


def test_a_second_load_is_one_transaction_with_the_same_result(host):
    before = host.check_output("nft --stateless list table inet devmentor")
    assert host.run("systemctl reload nftables").rc == 0
    assert host.check_output("nft --stateless list table inet devmentor") == before


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ('["203.0.113.0/24"]', "which is not in devmentor_control_addresses"),
        ("[]", "devmentor_control_addresses is empty"),
        ('["bastion.example.com"]', "neither an address nor a network"),
    ],
)
def test_a_run_that_would_lock_itself_out_is_refused_and_changes_nothing(host, variables, control, message):
    state = "nft --stateless list ruleset && cat /etc/nftables.d/devmentor.nft"
    before = host.check_output(state)
    play = Path(__file__).resolve().parents[1] / "converge.yml"
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        f"--inventory={host.backend.ansible_inventory}",
        f"--limit={variables['inventory_hostname']}",
        "--extra-vars",
        f'{{"devmentor_control_addresses": {control}}}',
        str(play),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).split())
    assert "changed=0" in result.stdout
    assert host.check_output(state) == before
