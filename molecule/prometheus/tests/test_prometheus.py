"""A real pair: both see every target that there is, with its labels, over mutual TLS only."""

import json
import shlex
import time

import pytest
from scenario import CLIENT, TLS, address, eventually, members

TARGETS = "/etc/prometheus/devmentor-targets"
DEPLOYED = {"node", "process", "blackbox", "prometheus", "alertmanager"}

testinfra_hosts = ["monitoring"]


def curl(host, path, *parameters, options=CLIENT):
    data = " ".join(f"--data-urlencode {shlex.quote(parameter)}" for parameter in parameters)
    return host.run(
        f"curl --silent --show-error --get --max-time 10 {options} {data} https://{address(host)}:9090{path}"
    )


def query(host, expression):
    answer = json.loads(curl(host, "/api/v1/query", f"query={expression}").stdout)
    assert answer["status"] == "success", answer
    return {
        (row["metric"].get("job"), row["metric"].get("host")): (row["metric"], float(row["value"][1]))
        for row in answer["data"]["result"]
    }


def test_every_deployed_target_of_both_hosts_is_scraped(host):
    wanted = {(job, name) for job in DEPLOYED for name in members(host, "monitoring")}

    def up():
        return wanted <= {key for key, (_, value) in query(host, "up").items() if value == 1}

    assert eventually(up, 40), query(host, "up")


def test_every_tier_of_the_inventory_is_a_target(host):
    tiers = {"gateway", "qwen", "pbml", "pbml_worker", "cache", "qdrant", "postgres", "pgbouncer", "pgagent", "probe"}

    def jobs():
        return {job for job, _ in query(host, "up")}

    # Probes come once a minute: a target is there from its first one on.
    assert eventually(lambda: jobs() == DEPLOYED | tiers, 90), jobs() ^ (DEPLOYED | tiers)


def test_targets_carry_host_zone_and_component(host):
    labels, _ = query(host, 'up{job="qdrant"}')["qdrant", "m2"]
    assert (labels["host"], labels["zone"], labels["component"]) == ("m2", "zone-b", "qdrant")
    assert labels["instance"].endswith(":6333")


def test_the_blackbox_exporter_sees_when_certificates_end(host):
    def days():
        return query(host, f'(probe_ssl_earliest_cert_expiry{{component="host"}} - {time.time()}) / 86400')

    # Probes come once a minute.
    found = eventually(days, 90)
    assert found
    assert all(value > 21 for _, value in found.values())


def test_rules_are_loaded_and_evaluate(host):
    groups = json.loads(curl(host, "/api/v1/rules").stdout)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, [r for r in rules if r["health"] == "err"]
    assert {"HostDown", "ErrorRateHigh", "PostgresReplicationLag"} <= {rule["name"] for rule in rules}


def test_a_new_targets_file_needs_no_reload(host):
    probe = json.dumps([{"targets": ["127.0.0.1:1"], "labels": {"host": "newcomer", "component": "qwen"}}])
    saved = host.check_output(f"cat {TARGETS}/qwen.json")
    try:
        host.check_output(f"echo {shlex.quote(probe)} >{TARGETS}/qwen.json")
        assert eventually(lambda: ("qwen", "newcomer") in query(host, "up"), 40)
    finally:
        host.check_output(f"printf '%s\\n' {shlex.quote(saved)} >{TARGETS}/qwen.json")


def test_a_target_that_stops_is_seen_and_its_alert_begins(host):
    name = host.check_output("hostname")
    host.check_output("systemctl stop prometheus-process-exporter")
    try:
        assert eventually(lambda: query(host, 'up{job="process"}').get(("process", name), ({}, 1))[1] == 0, 40)
        assert eventually(lambda: ("process", name) in query(host, 'ALERTS{alertname="TargetDown"}'), 40)
    finally:
        host.check_output("systemctl start prometheus-process-exporter")


def test_both_alertmanagers_are_known(host):
    active = json.loads(curl(host, "/api/v1/alertmanagers").stdout)["data"]["activeAlertmanagers"]
    assert len(active) == len(members(host, "monitoring"))


def test_samples_say_which_of_the_pair_they_are_from(host):
    config = json.loads(curl(host, "/api/v1/status/config").stdout)["data"]["yaml"]
    assert f"replica: {host.check_output('hostname')}" in config


@pytest.mark.parametrize("options", [TLS, "--insecure"])
def test_nobody_without_a_certificate_gets_in(host, options):
    refused = curl(host, "/api/v1/query", "query=up", options=options)
    assert refused.rc != 0
    assert not refused.stdout


def test_retention_is_as_configured(host):
    flags = json.loads(curl(host, "/api/v1/status/flags").stdout)["data"]
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("1d", "20GiB")


def test_the_key_to_qdrant_is_for_prometheus_alone(host):
    file = host.file("/etc/prometheus/qdrant.key")
    assert (file.user, file.group, oct(file.mode)) == ("root", "prometheus", "0o640")
