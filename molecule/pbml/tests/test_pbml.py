"""PBML on real hosts, over PostgreSQL, PgBouncer, Qdrant and llama.cpp: nothing is stood in for."""

import json
import uuid

from scenario import CLIENT, TLS, address, until

testinfra_hosts = ["pbml"]

API, WORKER = 8090, 8091


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
        assert {"postgres", "qdrant", "embedder"} <= set(answer.json["checks"])
        assert all(check["ok"] for check in answer.json["checks"].values()), answer.text
    assert "devmentor_http_requests_total" in ask("GET", "/metrics").text
    assert "pbml_queue_jobs" in ask("GET", "/metrics", port=WORKER).text


def test_a_client_without_our_certificate_is_refused(host):
    assert host.run(f"curl --silent --max-time 10 {TLS} https://{address(host)}:{API}/health").rc == 56


def test_without_a_key_nothing_is_told(ask):
    for authorization in (None, "Authorization: Bearer wrong"):
        answer = ask("POST", "/v1/context", {"query": "q", "token_budget": 1}, authorization=authorization)
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

    until(lambda: ask("GET", f"/v1/documents/{name}").json["status"] == "live", 60)
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
    result = host.run(
        f"curl --silent --max-time 30 {CLIENT} --header 'Expect:' --data-binary @/var/tmp/pbml-large "
        f"--write-out '\\n%{{http_code}}' https://{address(host)}:{API}/v1/documents; rm /var/tmp/pbml-large"
    )
    assert result.stdout.endswith("413"), result.stdout[-200:]


def test_prepare_run_again_finds_nothing_to_do(host):
    said = host.check_output(
        "setpriv --reset-env --reuid=pbml --regid=pbml --init-groups"
        " /opt/devmentor/pbml/current/bin/devmentor-pbml --env-file /etc/devmentor/pbml/pbml.env prepare"
    )
    assert json.loads(said)["changed"] is False
