"""PBML on real hosts, over PostgreSQL, PgBouncer, Qdrant and llama.cpp: nothing is stood in for."""

import json
import shlex
import time
import uuid
from dataclasses import dataclass

import pytest

testinfra_hosts = ["pbml"]

TLS = "--cacert /etc/devmentor/tls/ca.crt"
CLIENT = f"{TLS} --cert /etc/devmentor/tls/host.crt --key /etc/devmentor/tls/host.key"
API, WORKER = 8090, 8091


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)


def evaluated(host, expression):
    return host.ansible("debug", "msg={{ " + expression + " }}")["msg"]


@pytest.fixture
def ask(host):
    """Calls PBML of any host from this one, as the first tenant unless told otherwise."""
    addresses = evaluated(host, "dict(groups['pbml'] | zip(groups['pbml'] | host_addresses(hostvars)))")
    own = host.ansible.get_variables()["inventory_hostname"]
    first_key = next(iter(host.ansible.get_variables()["vault_api_keys"].values()))

    def call(method, path, body=None, *, to=own, port=API, key=first_key, options=CLIENT, headers=()):
        words = ["--header", f"Authorization: Bearer {key}"] if key else []
        for header in headers:
            words += ["--header", header]
        if body is not None:
            words += ["--data-binary", json.dumps(body)]
        url = f"https://{addresses[to]}:{port}{path}"
        result = host.run(
            f"curl --silent --show-error --max-time 30 {options} --request {method} "
            f"{shlex.join(words)} --write-out '\\n%{{http_code}}' {url}"
        )
        assert result.rc == 0, result.stderr
        text, _, status = result.stdout.rpartition("\n")
        return Answer(int(status), text)

    call.hosts = sorted(addresses)
    call.own = own
    return call


def eventually(check, seconds=60):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.5)


def test_units_run_sandboxed_in_their_slice(host):
    for name in ("pbml", "pbml-worker"):
        assert host.service(f"{name}.service").is_running
        assert host.service(f"{name}.service").is_enabled
        shown = host.check_output(
            f"systemctl show {name}.service --property=Slice,NoNewPrivileges,ProtectSystem,User,WatchdogUSec,Type"
        )
        assert "Slice=devmentor-pbml.slice" in shown
        assert "NoNewPrivileges=yes" in shown
        assert "ProtectSystem=strict" in shown
        assert "User=pbml" in shown
        assert "WatchdogUSec=1min" in shown
        assert "Type=notify" in shown


def test_secrets_are_readable_by_the_service_only(host):
    for name in ("pbml.env", "tenants.json"):
        file = host.file(f"/etc/devmentor/pbml/{name}")
        assert (file.user, file.group, file.mode) == ("root", "pbml", 0o640)
    tenants = host.file("/etc/devmentor/pbml/tenants.json").content_string
    for key in host.ansible.get_variables()["vault_api_keys"].values():
        assert key not in tenants


def test_ready_reports_every_dependency(ask):
    for port in (API, WORKER):
        answer = ask("GET", "/ready", port=port)
        assert answer.status == 200, answer.text
        assert all(check["ok"] for check in answer.json["checks"].values()), answer.text
    assert "devmentor_http_requests_total" in ask("GET", "/metrics").text
    assert "pbml_queue_jobs" in ask("GET", "/metrics", port=WORKER).text


def test_a_client_without_our_certificate_is_refused(host):
    address = evaluated(host, "devmentor_address")
    assert host.run(f"curl --silent --max-time 10 {TLS} https://{address}:{API}/health").rc == 56


def test_without_a_key_nothing_is_told(ask):
    for key in (None, "wrong"):
        answer = ask("POST", "/v1/context", {"query": "q", "token_budget": 1}, key=key)
        assert answer.status == 401
        assert answer.json["error"]["type"] == "authentication_error"


def test_a_document_goes_live_and_is_found_through_every_host(ask):
    name, colour = f"molecule-{uuid.uuid4().hex}", uuid.uuid4().hex[:8]
    text = f"# Lamps\n\nThe lamp in the pump room glows in shade {colour}.\n\n# Doors\n\nThe door is oak."
    body = {"id": name, "title": "Pump room", "text": text}
    query = {"query": "In which shade does the pump room's lamp glow?", "token_budget": 400}
    key = f"Idempotency-Key: {name}"

    first = ask("POST", "/v1/documents", body, headers=[key])
    assert first.status == 202, first.text
    assert first.json["version"] == 1

    # Read your writes: at once, through another host, whether it is indexed or not.
    for other in ask.hosts:
        own = ask("POST", "/v1/context", {**query, "watermark": first.json["watermark"]}, to=other)
        assert own.status == 200, own.text
        assert any(colour in chunk["text"] for chunk in own.json["chunks"]), own.text
        assert own.json["tokens"] <= 400

    # The same request again writes nothing.
    again = ask("POST", "/v1/documents", body, to=ask.hosts[-1], headers=[key])
    assert (again.status, again.json["version"], again.json["watermark"]) == (202, 1, first.json["watermark"])

    eventually(lambda: ask("GET", f"/v1/documents/{name}").json["status"] == "live")
    before = ask("GET", "/v1/context/version").json["context_version"]
    for other in ask.hosts:
        found = ask("POST", "/v1/context", query, to=other).json
        hits = [chunk for chunk in found["chunks"] if chunk["document_id"] == name]
        assert hits, found
        assert (hits[0]["source"], hits[0]["section"]) == ("index", "Lamps")
        assert not found["degraded"]

    deleted = ask("DELETE", f"/v1/documents/{name}")
    assert deleted.status == 202
    for other in ask.hosts:
        found = ask("POST", "/v1/context", query, to=other).json
        assert not [chunk for chunk in found["chunks"] if chunk["document_id"] == name]
    assert ask("GET", f"/v1/documents/{name}").status == 404
    assert ask("GET", "/v1/context/version").json["context_version"] != before


def test_a_turn_is_seen_by_the_next_fetch_of_its_conversation_only(ask):
    conversation = uuid.uuid4().hex
    said = {"conversation_id": conversation, "role": "user", "content": f"My word is {conversation}."}
    documents = ask("GET", "/v1/context/version").json["context_version"]
    assert ask("POST", "/v1/turns", said).status == 202
    query = {"query": "What is my word?", "token_budget": 400}
    mine = ask("POST", "/v1/context", {**query, "conversation_id": conversation}, to=ask.hosts[-1]).json
    assert mine["turns"] == [{"role": "user", "content": said["content"]}]
    other = ask("POST", "/v1/context", {**query, "conversation_id": "another"}).json
    assert conversation not in json.dumps(other)
    assert ask("GET", "/v1/context/version").json["context_version"] == documents


def test_the_largest_document_is_bounded(ask, host):
    host.run("head -c 22100000 /dev/zero | tr '\\0' x > /var/tmp/pbml-large")
    address = evaluated(host, "devmentor_address")
    result = host.run(
        f"curl --silent --max-time 30 {CLIENT} --header 'Expect:' --data-binary @/var/tmp/pbml-large "
        f"--write-out '\\n%{{http_code}}' https://{address}:{API}/v1/documents; rm /var/tmp/pbml-large"
    )
    assert result.stdout.endswith("413"), result.stdout[-200:]


def test_prepare_run_again_finds_nothing_to_do(host):
    said = host.check_output(
        "setpriv --reset-env --reuid=pbml --regid=pbml --init-groups"
        " /opt/devmentor/pbml/current/bin/devmentor-pbml --env-file /etc/devmentor/pbml/pbml.env prepare"
    )
    assert json.loads(said)["changed"] is False


def test_a_stop_drains_and_the_other_host_goes_on(host, ask):
    if ask.own != ask.hosts[0]:
        return  # one host at a time
    other = ask.hosts[-1]
    host.check_output("systemctl stop pbml.service pbml-worker.service")
    try:
        assert host.check_output("systemctl show pbml.service --property=Result") == "Result=success"
        name = f"molecule-{uuid.uuid4().hex}"
        assert ask("POST", "/v1/documents", {"id": name, "text": "Served by one."}, to=other).status == 202
        eventually(lambda: ask("GET", f"/v1/documents/{name}", to=other).json["status"] == "live")
        assert ask("DELETE", f"/v1/documents/{name}", to=other).status == 202
    finally:
        host.check_output("systemctl start pbml.service pbml-worker.service")
