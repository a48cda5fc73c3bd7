"""The rule set follows from matrix, groups and addresses, and from nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
import yaml

from filter_plugins.firewall import FirewallError, control_problem, matrix_table, members, ruleset

PORTS = {"ssh": 22, "web": 443, "db": 5432, "pool": 6432, "mesh": 9094}
GROUPS = {
    "all": ["gw1", "gw2", "pg1", "pg2", "spare"],
    "gateway": ["gw1", "gw2"],
    "postgres": ["pg1", "pg2"],
    "pgbouncer": ["pg1"],
    "empty": [],
}
ADDRESSES = {"gw1": "10.0.0.1", "gw2": "10.0.0.2", "pg1": "10.0.0.3", "pg2": "fd00::4", "spare": "10.0.0.5"}
MATRIX = [
    {"to": "all", "ports": ["ssh"], "from": ["control"]},
    {"to": "gateway", "ports": ["web"], "from": ["any"]},
    {"to": "postgres", "ports": ["db"], "from": ["self", "pgbouncer"]},
    {"to": "pgbouncer", "ports": ["pool"], "from": ["gateway", "empty"]},
    {"to": "postgres", "ports": ["mesh"], "protocols": ["tcp", "udp"], "from": ["self"]},
]
CONTROL = ["192.0.2.0/24", "2001:db8::1"]


def rules(host, **changes):
    arguments = {"groups": GROUPS, "addresses": ADDRESSES, "matrix": MATRIX, "ports": PORTS, "control": CONTROL}
    return ruleset(host, **{**arguments, **changes})


def accepted(text):
    """(source set, protocol, ports) of every rule that a matrix row made."""
    pattern = r"^\t\t(?:ip6? saddr @(\S+) )?(tcp|udp) dport \{ ([\d, ]+) \} accept"
    return set(re.findall(pattern, text, flags=re.MULTILINE))


def elements(text, name):
    match = re.search(rf"set {name} \{{.*?elements = \{{ (.*?) \}}", text, flags=re.DOTALL)
    return match.group(1).split(", ") if match else []


def test_a_database_host_admits_its_peers_and_poolers_and_no_client():
    assert accepted(rules("pg1")) == {
        ("control_4", "tcp", "22"),
        ("control_6", "tcp", "22"),
        ("postgres_4", "tcp", "5432"),
        ("postgres_6", "tcp", "5432"),
        ("pgbouncer_4", "tcp", "5432"),
        ("gateway_4", "tcp", "6432"),
        ("postgres_4", "tcp", "9094"),
        ("postgres_6", "tcp", "9094"),
        ("postgres_4", "udp", "9094"),
        ("postgres_6", "udp", "9094"),
    }


def test_sets_hold_the_addresses_of_the_groups():
    text = rules("pg1")
    assert elements(text, "postgres_4") == ["10.0.0.3"]
    assert elements(text, "postgres_6") == ["fd00::4"]
    assert elements(text, "gateway_4") == ["10.0.0.1", "10.0.0.2"]
    assert elements(text, "control_4") == ["192.0.2.0/24"]


def test_everybody_reaches_the_gateway_and_nothing_else():
    assert ("", "tcp", "443") in accepted(rules("gw1"))
    assert not [rule for rule in accepted(rules("pg1")) if rule[0] == ""]


def test_a_host_of_no_role_admits_only_ssh():
    assert accepted(rules("spare")) == {("control_4", "tcp", "22"), ("control_6", "tcp", "22")}


def test_a_group_without_hosts_gives_no_rule_rather_than_one_for_everybody():
    assert "empty" not in rules("pg1")


def test_without_control_addresses_nobody_gets_ssh():
    assert not [rule for rule in accepted(rules("pg1", control=[])) if rule[2] == "22"]


def test_vrrp_only_between_gateways():
    assert "ip saddr @gateway_4 meta l4proto 112 accept" in rules("gw1")
    assert "112" not in rules("pg2")


def test_the_policy_is_drop_and_only_our_table_is_touched():
    text = rules("gw1")
    assert "policy drop;" in text
    assert "flush" not in text
    assert set(re.findall(r"table (\S+ \S+)", text)) == {"inet devmentor"}


def test_the_same_input_gives_the_same_text_in_any_order():
    shuffled = {name: list(reversed(hosts)) for name, hosts in GROUPS.items()}
    assert rules("pg1", groups=shuffled) == rules("pg1")


def test_a_standby_host_has_the_rights_of_what_it_stands_by_for():
    groups = {"all": ["q1", "q2"], "qwen": ["q1"], "qwen_standby": ["q2"]}
    assert members("qwen", groups) == ["q1", "q2"]
    matrix = [{"to": "qwen", "ports": ["web"], "from": ["self"]}]
    text = ruleset("q2", groups, {"q1": "10.0.0.1", "q2": "10.0.0.2"}, matrix, PORTS, CONTROL)
    assert accepted(text) == {("qwen_4", "tcp", "443")}
    assert elements(text, "qwen_4") == ["10.0.0.1", "10.0.0.2"]


def test_a_sites_own_opening():
    extra = [{"ports": [10050, 10051], "sources": ["198.51.100.7"], "comment": "backup agent"}]
    text = rules("spare", extra=extra)
    assert ("site_1_4", "tcp", "10050, 10051") in accepted(text)
    assert 'comment "backup agent"' in text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"to": "gateway", "ports": ["wbe"], "from": ["any"]},
            r"row 1: port 'wbe' is not in devmentor_ports\. Did you mean web",
        ),
        (
            {"to": "gateway", "ports": ["web"], "from": ["postgre"]},
            r"row 1: group 'postgre' is not known\. Did you mean postgres",
        ),
    ],
)
def test_a_word_that_does_not_exist_is_refused_with_the_close_match(row, message):
    with pytest.raises(FirewallError, match=message):
        rules("gw1", matrix=[row])


def test_a_name_where_an_address_is_needed_is_refused():
    with pytest.raises(FirewallError, match=r"host gw1, devmentor_address: 'gw1\.example\.com' is neither"):
        rules("pg1", addresses={**ADDRESSES, "gw1": "gw1.example.com"})


@pytest.mark.parametrize(
    ("control", "peer", "problem"),
    [
        (CONTROL, "192.0.2.7", ""),
        (CONTROL, "2001:db8::1", ""),
        (CONTROL, "::ffff:192.0.2.7", ""),
        (["fe80::/10"], "fe80::1%eth0", ""),
        (CONTROL, "", ""),
        (CONTROL, "198.51.100.1", "pg1: this run comes from 198.51.100.1, which is not in devmentor_control_addresses"),
        ([], "198.51.100.1", "pg1: devmentor_control_addresses is empty"),
        ([], "", "pg1: devmentor_control_addresses is empty"),
    ],
)
def test_the_control_node_cannot_lock_itself_out(control, peer, problem):
    assert control_problem(control, peer, "pg1").startswith(problem)
    assert bool(control_problem(control, peer, "pg1")) == bool(problem)


def test_the_table_of_the_documentation():
    lines = matrix_table(MATRIX, PORTS).splitlines()
    assert lines[4] == "| postgres | 5432/tcp | db | postgres, pgbouncer |"
    assert lines[6] == "| postgres | 9094/tcp/udp | mesh | postgres |"


def test_the_platforms_own_matrix_renders_for_a_colocated_host():
    folder = os.path.join(os.path.dirname(__file__), "../../../roles/platform/defaults/main")
    data = {}
    for name in ("network.yml", "ports.yml"):
        with open(os.path.join(folder, name)) as handle:
            data |= yaml.safe_load(handle)
    matrix, ports = data["devmentor_communication_matrix"], data["devmentor_ports"]
    groups = {"all": ["h1", "h2"], **{row["to"]: ["h1", "h2"] for row in matrix if row["to"] != "all"}}
    text = ruleset("h1", groups, {"h1": "10.0.0.1", "h2": "10.0.0.2"}, matrix, ports, CONTROL)
    # Only the gateway's own port is open to everybody.
    assert {rule[2] for rule in accepted(text) if rule[0] == ""} == {str(ports["gateway"])}
    # What listens on loopback is in no rule.
    loopback = {str(ports[name]) for name in ("llamacpp_chat", "llamacpp_embed", "vllm")}
    assert not loopback & {port for rule in accepted(text) for port in rule[2].split(", ")}


@pytest.mark.parametrize("host", GROUPS["all"])
def test_nft_takes_it(host, tmp_path):
    assert shutil.which("nft"), "nft is not installed: tools/bootstrap.sh installs it as root"
    assert os.geteuid() == 0, "nft -c asks the kernel: run this test as root"
    file = tmp_path / "devmentor.nft"
    extra = [{"ports": [53], "protocols": ["udp"], "sources": ["198.51.100.0/24", "fd00::/8"]}]
    file.write_text(rules(host, extra=extra))
    result = subprocess.run(["nft", "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
