"""Two peers, one cluster: keys and TLS asked of all, a point written by one read from the other, no second cluster."""

import json
import shlex
import time

import pytest
from scenario import TLS, address, members, name

testinfra_hosts = ["qdrant"]


@pytest.fixture
def api(host, secret_file):
    def call(method, path, body=None, key="vault_qdrant_api_key", to=None):
        header = f"--header @{secret_file(key, f'api-key: {{{{ {key} }}}}')}" if key else ""
        data = f"--header 'Content-Type: application/json' --data {shlex.quote(json.dumps(body))}" if body else ""
        url = shlex.quote(f"https://{to or address(host)}:6333{path}")
        answer = host.run(f"curl -sS -X {method} {TLS} {header} {data} -w '\\n%{{http_code}}' {url}")
        text, _, status = answer.stdout.rpartition("\n")
        return int(status or 0), text

    return call


def result(answer):
    status, text = answer
    assert status == 200, text
    return json.loads(text)["result"]


def test_the_unit(host):
    unit = host.service("qdrant")
    assert unit.is_running
    assert unit.is_enabled
    shown = host.check_output(
        "systemctl show qdrant -p Slice -p ProtectSystem -p NoNewPrivileges -p User -p CapabilityBoundingSet"
    )
    for line in ("Slice=devmentor-qdrant.slice", "ProtectSystem=strict", "NoNewPrivileges=yes", "User=qdrant"):
        assert line in shown
    assert "CapabilityBoundingSet=\n" in shown + "\n"


def test_no_member_has_leave_to_begin_anew(host):
    assert not host.file("/run/devmentor/qdrant.start").exists


def test_all_peers_are_one_cluster(host, api):
    cluster = result(api("GET", "/cluster"))
    assert len(cluster["peers"]) == len(members(host, "qdrant"))
    assert cluster["consensus_thread_status"]["consensus_thread_status"] == "working"
    assert all(peer["uri"].startswith("https://") for peer in cluster["peers"].values())


def test_the_collection_is_as_declared(host, api):
    params = result(api("GET", "/collections/molecule"))["config"]["params"]
    assert (params["shard_number"], params["replication_factor"], params["write_consistency_factor"]) == (6, 2, 2)
    placement = result(api("GET", "/collections/molecule/cluster"))
    replicas = placement["local_shards"] + placement["remote_shards"]
    assert len(replicas) == 12
    assert {replica["state"] for replica in replicas} == {"Active"}


def test_a_point_written_here_is_found_on_the_other(host, api):
    peers = members(host, "qdrant")
    number = 1 + list(peers).index(name(host))
    vector = [float(number == place) for place in range(1, 5)]
    points = {"points": [{"id": number, "vector": vector, "payload": {"tenant": "t"}}]}
    result(api("PUT", "/collections/molecule/points?wait=true", points))
    for peer in peers.values():
        query = {"query": vector, "limit": 1}
        found = result(api("POST", "/collections/molecule/points/query", query, to=address(peer)))
        assert found["points"][0]["id"] == number


def test_no_key_no_answer(api):
    assert api("GET", "/collections", key=None)[0] == 401


def test_the_read_only_key_cannot_write(api):
    key = "vault_qdrant_read_only_api_key"
    assert api("GET", "/collections/molecule", key=key)[0] == 200
    assert api("DELETE", "/collections/molecule", key=key)[0] == 403
    assert api("GET", "/collections/molecule")[0] == 200


def test_plain_text_is_not_spoken(host):
    assert host.run(f"curl -sS -m 5 http://{address(host)}:6333/").rc != 0


def test_nobody_becomes_a_peer_without_a_certificate(host):
    tried = "openssl s_client -connect {}:6335 -CAfile /etc/devmentor/tls/ca.crt {} -alpn h2 -ign_eof"
    ask = "(printf 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'; sleep 2) | timeout 5 "
    without = host.run(ask + tried.format(address(host), "") + " 2>&1").stdout
    assert "alert" in without
    certificate = "-cert /etc/devmentor/tls/host.crt -key /etc/devmentor/tls/host.key"
    assert "alert" not in host.run(ask + tried.format(address(host), certificate) + " 2>&1").stdout


def test_keys_are_in_no_file_that_others_read_and_not_in_argv(host, secret_file):
    secrets = host.file("/etc/qdrant/secrets.env")
    assert (secrets.user, secrets.mode) == ("root", 0o600)
    variables = host.ansible.get_variables()
    for key in ("vault_qdrant_api_key", "vault_qdrant_read_only_api_key"):
        assert variables[key] not in host.check_output("ps -eo args")
        pattern = secret_file(f"{key}-alone", f"{{{{ {key} }}}}")
        assert host.run(f"grep -rqF --file {pattern} /etc/systemd /etc/qdrant/config.yaml /var/log").rc == 1


def test_a_peer_whose_disk_is_lost_does_not_found_a_cluster(host):
    host.check_output("systemctl stop qdrant && mv /var/lib/qdrant/storage /var/lib/qdrant/kept")
    try:
        host.run("systemctl start qdrant")
        deadline = time.monotonic() + 15
        while "no Raft state" not in host.run("journalctl -u qdrant -n 20 -o cat").stdout:
            assert time.monotonic() < deadline, "it was not refused"
            time.sleep(0.5)
        assert not host.file("/var/lib/qdrant/storage/raft_state.json").exists
    finally:
        host.check_output("systemctl stop qdrant && rm -rf /var/lib/qdrant/storage")
        host.check_output("mv /var/lib/qdrant/kept /var/lib/qdrant/storage && systemctl start qdrant")
