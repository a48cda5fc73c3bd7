"""A real mesh of two over mutual TLS: what one knows the other knows, and a notification goes out once."""

import json
import time
import uuid

import pytest
from scenario import CLIENT, address, eventually, members

PEER_TIMEOUT = 15  # Alertmanager's own: how long the second of the mesh waits for the first

testinfra_hosts = ["monitoring"]


def api(host, path, options=CLIENT, data=None):
    body = f"--header 'Content-Type: application/json' --data '{json.dumps(data)}'" if data else ""
    return host.run(f"curl --silent --show-error --max-time 10 {options} {body} https://{address(host)}:9093{path}")


def test_the_mesh_has_every_peer(host):
    def peers():
        cluster = json.loads(api(host, "/api/v2/status").stdout)["cluster"]
        return cluster["status"] == "ready" and len(cluster["peers"]) == len(members(host, "monitoring"))

    assert eventually(peers), api(host, "/api/v2/status").stdout


def test_a_silence_set_on_one_holds_on_the_other(host):
    one, other = members(host, "monitoring").values()
    comment = uuid.uuid4().hex
    now = time.time()
    silence = {
        "matchers": [{"name": "host", "value": comment, "isRegex": False, "isEqual": True}],
        "startsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "endsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 60)),
        "createdBy": "molecule",
        "comment": comment,
    }
    assert "silenceID" in api(one, "/api/v2/silences", data=silence).stdout
    assert eventually(lambda: comment in api(other, "/api/v2/silences").stdout)


def test_an_alert_that_both_receive_is_sent_once_with_the_token(host):
    hosts = list(members(host, "monitoring").values())
    name = f"Molecule{uuid.uuid4().hex[:8]}"
    alert = [{"labels": {"alertname": name, "severity": "critical", "component": "host", "host": "m1"}}]
    for peer in hosts:
        assert api(peer, "/api/v2/alerts", data=alert).rc == 0

    def notes():
        lines = hosts[0].run("cat /run/alert-receiver.jsonl").stdout.splitlines()
        return [note for note in map(json.loads, lines) if note["groupLabels"].get("alertname") == name]

    assert eventually(notes), "nothing was sent"
    time.sleep(PEER_TIMEOUT + 3)
    (note,) = notes()
    assert note["authorization"] == "Bearer molecule-token"


def test_the_worse_of_two_hides_the_other(host):
    name = f"Molecule{uuid.uuid4().hex[:8]}"
    labels = {"alertname": name, "component": "host", "host": "m1"}
    alerts = [{"labels": {**labels, "severity": severity}} for severity in ("warning", "critical")]
    assert api(host, "/api/v2/alerts", data=alerts).rc == 0

    def states():
        found = [a for a in json.loads(api(host, "/api/v2/alerts").stdout) if a["labels"]["alertname"] == name]
        return {alert["labels"]["severity"]: alert["status"]["state"] for alert in found}

    assert eventually(lambda: states() == {"warning": "suppressed", "critical": "active"}), states()


@pytest.mark.parametrize("port", [9093, 9094])
def test_page_and_mesh_refuse_whoever_has_no_certificate(host, port):
    command = f"openssl s_client -connect {address(host)}:{port} -CAfile /etc/devmentor/tls/ca.crt -verify_return_error"
    refused = host.run(f"(sleep 1; echo) | {command}")
    assert "Verify return code: 0 (ok)" in refused.stdout
    assert "certificate required" in refused.stderr


def test_no_plain_text(host):
    assert host.run(f"curl --silent --fail --max-time 5 http://{address(host)}:9093/-/healthy").rc != 0


def test_url_and_token_are_for_alertmanager_alone(host):
    for kind in ("url", "token"):
        file = host.file(f"/etc/prometheus/alertmanager-webhook-1.{kind}")
        assert (file.user, file.group, oct(file.mode)) == ("root", "prometheus", "0o640")
    config = host.file("/etc/prometheus/alertmanager.yml").content_string
    assert "molecule-token" not in config
    assert ":9999/" not in config
