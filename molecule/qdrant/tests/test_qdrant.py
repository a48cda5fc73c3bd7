"""Two peers, one cluster: keys and TLS asked of all, a point written by one read from the other, no second cluster."""

import json
import time

import pytest

testinfra_hosts = ["qdrant"]

CA = "--cacert /etc/devmentor/tls/ca.crt"


def peers(host):
    groups = host.ansible.get_variables()["groups"]
    return [name for name in groups["qdrant"] if name not in groups.get("offline", [])]


@pytest.fixture
def api(host):
    variables = host.ansible.get_variables()

    def call(method, path, body=None, key="vault_qdrant_api_key", address=None, tls=CA):
        url = f"https://{address or variables['lab_addresses'][variables['inventory_hostname']]}:6333{path}"
        header = f"api-key: {variables[key]}" if key else "x-none: 1"
        # Header and body go by a configuration on standard input: no key in argv.
        config = json.dumps(header)
        data = f"data = {json.dumps(json.dumps(body))}\\n" if body is not None else ""
        script = f"printf '%b' 'header = {config}\\nheader = \"Content-Type: application/json\"\\n{data}'"
        answer = host.run(f"{script} | curl -sS -X {method} {tls} -w '\\n%{{http_code}}' -K - '{url}'")
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


def test_all_peers_are_one_cluster(host, api):
    cluster = result(api("GET", "/cluster"))
    assert len(cluster["peers"]) == len(peers(host))
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
    variables = host.ansible.get_variables()
    number = 1 + peers(host).index(variables["inventory_hostname"])
    vector = [float(number == place) for place in range(1, 5)]
    points = {"points": [{"id": number, "vector": vector, "payload": {"tenant": "t"}}]}
    result(api("PUT", "/collections/molecule/points?wait=true", points))
    for name in peers(host):
        query = {"query": vector, "limit": 1}
        found = result(
            api("POST", "/collections/molecule/points/query", query, address=variables["lab_addresses"][name])
        )
        assert found["points"][0]["id"] == number


def test_no_key_no_answer(api):
    assert api("GET", "/collections", key=None)[0] == 401


def test_the_read_only_key_cannot_write(api):
    key = "vault_qdrant_read_only_api_key"
    assert api("GET", "/collections/molecule", key=key)[0] == 200
    assert api("DELETE", "/collections/molecule", key=key)[0] == 403
    assert api("GET", "/collections/molecule")[0] == 200


def test_plain_text_is_not_spoken(host):
    variables = host.ansible.get_variables()
    address = variables["lab_addresses"][variables["inventory_hostname"]]
    assert host.run(f"curl -sS -m 5 http://{address}:6333/").rc != 0


def test_nobody_becomes_a_peer_without_a_certificate(host):
    variables = host.ansible.get_variables()
    address = variables["lab_addresses"][variables["inventory_hostname"]]
    tried = "openssl s_client -connect {}:6335 -CAfile /etc/devmentor/tls/ca.crt {} -alpn h2 -ign_eof"
    ask = "(printf 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'; sleep 2) | timeout 5 "
    without = host.run(ask + tried.format(address, "") + " 2>&1").stdout
    assert "alert" in without
    certificate = "-cert /etc/devmentor/tls/host.crt -key /etc/devmentor/tls/host.key"
    assert "alert" not in host.run(ask + tried.format(address, certificate) + " 2>&1").stdout


def test_keys_are_in_no_file_that_others_read_and_not_in_argv(host):
    secrets = host.file("/etc/qdrant/secrets.env")
    assert (secrets.user, secrets.mode) == ("root", 0o600)
    variables = host.ansible.get_variables()
    for name in ("vault_qdrant_api_key", "vault_qdrant_read_only_api_key"):
        assert variables[name] not in host.check_output("ps -eo args")
        assert host.run(f"grep -rqF '{variables[name]}' /etc/systemd /etc/qdrant/config.yaml /var/log").rc != 0


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
