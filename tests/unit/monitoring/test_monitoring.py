"""Targets, probes and units from the inventory's groups."""

from __future__ import annotations

import json

import pytest

from module_utils.devmentor import monitoring

PORTS = {"qwen": 8080, "node_exporter": 9100}
HOSTS = {
    "a": monitoring.Host("a", "10.0.0.1", "zone-a"),
    "b": monitoring.Host("b", "fd00::2", "zone-b"),
    "c": monitoring.Host("c", "c.example", "zone-c"),
}
GROUPS = {"all": ["c", "a", "b"], "qwen": ["b", "a"], "empty": [], "offline": ["c"]}
NODE = {"name": "node", "component": "host", "group": "all", "port": "node_exporter"}
QWEN = {"name": "qwen", "component": "qwen", "group": "qwen", "port": "qwen"}


def test_every_host_of_the_group_is_a_target_with_its_labels() -> None:
    targets = monitoring.scrape_targets([QWEN], GROUPS, HOSTS, PORTS)
    assert targets == {
        "qwen": [
            {"targets": ["10.0.0.1:8080"], "labels": {"component": "qwen", "host": "a", "zone": "zone-a"}},
            {"targets": ["[fd00::2]:8080"], "labels": {"component": "qwen", "host": "b", "zone": "zone-b"}},
        ]
    }


def test_a_host_that_is_down_on_purpose_is_no_target() -> None:
    hosts = [entry["labels"]["host"] for entry in monitoring.scrape_targets([NODE], GROUPS, HOSTS, PORTS)["node"]]
    assert hosts == ["a", "b"]


def test_a_job_of_two_groups_has_a_host_of_both_once() -> None:
    groups = {"postgres": ["a", "b"], "pgbouncer": ["b", "c"]}
    job = {**QWEN, "group": ["pgbouncer", "postgres", "not-in-the-inventory"]}
    targets = monitoring.scrape_targets([job], groups, HOSTS, PORTS)["qwen"]
    assert [entry["labels"]["host"] for entry in targets] == ["a", "b", "c"]


@pytest.mark.parametrize("group", ["empty", "not-in-the-inventory"])
def test_a_job_without_hosts_keeps_its_file(group: str) -> None:
    assert monitoring.scrape_targets([{**QWEN, "group": group}], GROUPS, HOSTS, PORTS) == {"qwen": []}


def test_an_unknown_port_is_named() -> None:
    with pytest.raises(monitoring.MonitoringError, match="'no_such' is not in devmentor_ports"):
        monitoring.scrape_targets([{**QWEN, "port": "no_such"}], GROUPS, HOSTS, PORTS)


def test_an_entry_without_a_group_is_named() -> None:
    with pytest.raises(monitoring.MonitoringError, match="has no group"):
        monitoring.scrape_targets([{"name": "x", "component": "x", "port": "qwen"}], GROUPS, HOSTS, PORTS)


def test_probes_carry_their_module_and_leave_out_an_empty_url() -> None:
    probes = [
        {"module": "gateway", "component": "gateway", "url": "https://10.0.0.9/"},
        {"module": "gateway", "component": "gateway", "url": ""},
        {"module": "tls", "component": "qwen", "group": "qwen", "port": "qwen"},
    ]
    entries = monitoring.probe_targets(probes, GROUPS, HOSTS, PORTS)
    assert [entry["targets"] for entry in entries] == [["https://10.0.0.9/"], ["10.0.0.1:8080"], ["[fd00::2]:8080"]]
    assert [entry["labels"]["__param_module"] for entry in entries] == ["gateway", "tls", "tls"]
    assert "host" not in entries[0]["labels"]


def test_target_files_do_not_depend_on_the_order_of_the_inventory() -> None:
    turned = {name: list(reversed(members)) for name, members in GROUPS.items()}
    one = monitoring.target_files(monitoring.scrape_targets([NODE, QWEN], GROUPS, HOSTS, PORTS), "/t")
    other = monitoring.target_files(monitoring.scrape_targets([QWEN, NODE], turned, HOSTS, PORTS), "/t")
    assert one == other
    assert [item["path"] for item in one] == ["/t/node.json", "/t/qwen.json"]
    assert json.loads(one[1]["content"])[0]["targets"] == ["10.0.0.1:8080"]


def test_rule_files_pair_paths_and_contents() -> None:
    assert monitoring.rule_files(["/r/a.yml"], ["groups: []\n"]) == [
        {"path": "/r/a.yml", "content": "groups: []\n", "validate": "promtool check rules %s"}
    ]
    with pytest.raises(ValueError, match="zip"):
        monitoring.rule_files(["/r/a.yml"], [])


def test_exporter_files_are_debians_default_file_and_a_dropin() -> None:
    exporter = {"name": "redis", "args": "-a=1 -b=2\n", "environment": ['X="1"']}
    with pytest.raises(monitoring.MonitoringError, match="prometheus-redis-exporter"):
        monitoring.exporter_files([exporter], "# h", "[Service]\n")
    default, dropin = monitoring.exporter_files([{**exporter, "args": "-a=1 -b=2"}], "# h", "[Service]\n")
    assert default == {
        "path": "/etc/default/prometheus-redis-exporter",
        "content": '# h\nX="1"\nARGS="-a=1 -b=2"\n',
    }
    assert dropin["path"] == "/etc/systemd/system/prometheus-redis-exporter.service.d/devmentor.conf"


@pytest.mark.parametrize("bad", ['"', "'", "\\."])
def test_arguments_that_systemd_would_change_are_refused(bad: str) -> None:
    with pytest.raises(monitoring.MonitoringError, match="prometheus-node-exporter"):
        monitoring.exporter_files([{"name": "node", "args": f"--x={bad}"}], "#", "")


def test_exporter_units_restart_on_their_files_and_answer_over_tls() -> None:
    exporter = {"name": "redis", "args": "", "port": "9121", "restart_on": ["/p"]}
    (unit,) = monitoring.exporter_units([exporter], "fd00::1", "/ca", "/cert", "/key")
    assert unit["restart_on"] == [
        "/etc/default/prometheus-redis-exporter",
        "/usr/bin/prometheus-redis-exporter",
        "/p",
    ]
    assert unit["wait_for"] == {"url": "https://[fd00::1]:9121/", "ca": "/ca", "cert": "/cert", "key": "/key"}


def test_secret_files_keep_the_webhooks_numbers() -> None:
    files = monitoring.webhook_secret_files([{"url": "u"}, {"url": "v", "token": "t"}], "/w-")
    assert [(item["path"], item["content"]) for item in files] == [
        ("/w-1.url", "u\n"),
        ("/w-2.url", "v\n"),
        ("/w-2.token", "t\n"),
    ]
    assert {item["mode"] for item in files} == {"0640"}


@pytest.mark.parametrize(
    ("address", "listen", "advertise"),
    [
        ("10.0.0.1", "0.0.0.0:9094", "--cluster.advertise-address=10.0.0.1:9094 "),
        ("fd00::1", "[::]:9094", "--cluster.advertise-address=[fd00::1]:9094 "),
        ("a.example", "0.0.0.0:9094", ""),
    ],
)
def test_mesh_arguments_advertise_an_ip_address(address: str, listen: str, advertise: str) -> None:
    assert monitoring.mesh_arguments(address, ["10.0.0.2"], 9094, "/m.yml") == (
        f"--cluster.listen-address={listen} {advertise}--cluster.peer=10.0.0.2:9094 --cluster.tls-config=/m.yml"
    )


def test_a_mesh_of_one_does_not_listen() -> None:
    assert monitoring.mesh_arguments("10.0.0.1", [], 9094, "/m.yml") == "--cluster.listen-address="
