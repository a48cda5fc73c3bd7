"""Real instances before real engines and real Valkey nodes, in good days and bad."""

import json
import time
import uuid

import pytest
from scenario import CLIENT, TLS, members, until

testinfra_hosts = ["qwen"]

MODEL = "tiny-qwen3"


class Answer:
    def __init__(self, text):
        head, _, self.body = text.replace("\r", "").partition("\n\n")
        first, *lines = head.splitlines()
        self.status = int(first.split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def served_by(self):
        return self.headers.get("x-devmentor-served-by")


def ask(host, path, body=None, *options, key="key-of-lab"):
    name = host.check_output("hostname")
    data = f"--data '{json.dumps(body)}'" if body is not None else ""
    command = (
        f"curl --silent --include --max-time 60 {CLIENT} --header 'Authorization: Bearer {key}' "
        f"{data} {' '.join(options)} https://{name}:8080{path}"
    )
    result = host.run(command)
    assert result.rc == 0, (command, result.stderr)
    return Answer(result.stdout)


def question(text=None, **more):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text or uuid.uuid4().hex}],
        "max_tokens": 12,
        **more,
    }


def chat(host, body, *options, **more):
    return ask(host, "/v1/chat/completions", body, *options, **more)


def ready(host):
    return ask(host, "/ready").status == 200


@pytest.fixture
def peers(host):
    return list(members(host, "qwen").values())


@pytest.fixture
def engine(host):
    """The chat engine's unit, running and seen to be at the end whatever a test did to it."""
    yield "llamacpp@chat"
    host.run("systemctl kill --signal CONT llamacpp@chat")
    host.check_output("systemctl start llamacpp@chat")
    until(lambda: ready(host), 90)


def test_the_unit_runs_in_the_slice_and_no_key_is_on_the_host(host):
    assert host.service("qwen").is_running
    assert host.service("qwen").is_enabled
    assert "devmentor-qwen.slice" in host.check_output("systemctl show --property Slice qwen")
    assert host.run("grep --recursive --quiet -e key-of-lab -e key-of-admin /etc/devmentor/qwen").rc == 1
    assert host.file("/etc/devmentor/qwen/environment").mode == 0o640


def test_only_the_platforms_certificates_get_in(host):
    name = host.check_output("hostname")
    assert host.run(f"curl --silent {TLS} https://{name}:8080/health").rc != 0
    assert ask(host, "/health").status == 200


def test_an_unknown_key_is_refused_in_openais_form(host):
    answer = chat(host, question(), key="wrong")
    assert answer.status == 401
    assert set(answer.json["error"]) == {"message", "type", "code", "param"}


def test_one_instances_answer_serves_the_other_from_valkey(peers):
    body = question()
    first = chat(peers[0], body)
    assert (first.status, first.served_by) == (200, "engine")

    def of_the_other():
        # A new question each time: what the other made itself is in its own L1, which would answer the next.
        asked = question()
        chat(peers[0], asked)
        time.sleep(0.5)
        return chat(peers[1], asked).served_by

    until(lambda: of_the_other() == "cache-l2", 30)
    assert chat(peers[0], body).served_by == "cache-l1"
    other = chat(peers[1], body, key="key-of-other")
    assert other.served_by == "engine", "tenants share nothing"


def test_a_stream_has_a_form_and_an_end(host):
    answer = chat(host, question(stream=True), "--no-buffer")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.rstrip().endswith("data: [DONE]")


def test_embeddings(host):
    answer = ask(host, "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "a sentence"})
    assert len(answer.json["data"][0]["embedding"]) == 384


def test_metrics_tell_what_happened(host):
    chat(host, question())
    page = ask(host, "/metrics").body
    for name in ("pool_in_use", "breaker_state", "cache_lookups_total", "engine_moving", "answers_total"):
        assert f"devmentor_qwen_{name}" in page


def test_the_trace_shows_the_engines_body_to_the_administrator(host):
    body = question()
    request_id = chat(host, body).headers["x-request-id"]
    trace = ask(host, f"/v1/traces/{request_id}", key="key-of-admin").json
    assert trace["engine_body"]["messages"] == body["messages"]
    assert ask(host, f"/v1/traces/{request_id}").status == 403


def test_with_the_engine_gone_what_is_cached_serves_and_the_instance_is_not_ready(host, engine):
    known = question()
    chat(host, known)
    host.check_output(f"systemctl stop {engine}")
    assert chat(host, known).served_by.startswith("cache")
    unknown = chat(host, question())
    assert (unknown.status, unknown.json["error"]["code"]) == (503, "engine_unavailable")
    until(lambda: not ready(host), 15)


def test_a_frozen_engine_is_not_ready_though_its_port_is_open(host, engine):
    host.check_output(f"systemctl kill --signal STOP {engine}")
    until(lambda: not ready(host), 40)


def test_without_valkey_it_answers_as_before(peers, host):
    for peer in peers:
        peer.check_output("systemctl stop valkey-server")
    try:
        assert chat(host, question()).served_by == "engine"
    finally:
        for peer in peers:
            peer.check_output("systemctl start valkey-server")


def test_a_stop_finishes_the_streams_and_refuses_nobody_before_it_is_known(host):
    name = host.check_output("hostname")
    body = json.dumps(question(max_tokens=400, ignore_eos=True, stream=True))
    host.run("rm -f /tmp/stop.out")
    start = (
        f"(curl --silent --no-buffer --max-time 60 {CLIENT} --header 'Authorization: Bearer key-of-lab' "
        f"--data '{body}' https://{name}:8080/v1/chat/completions >/tmp/stop.out &)"
    )
    host.check_output("bash -c %s", start)
    until(lambda: host.file("/tmp/stop.out").exists and host.file("/tmp/stop.out").size > 0, 20)
    host.check_output("systemctl stop --no-block qwen")
    until(lambda: not ready(host), 3)
    assert chat(host, question()).status == 200, "the gateway has not noticed yet: what it sends is served"
    until(lambda: host.check_output("systemctl show --property ActiveState --value qwen") == "inactive", 60)
    assert host.file("/tmp/stop.out").content_string.rstrip().endswith("data: [DONE]")
    assert host.check_output("systemctl show --property Result --value qwen") == "success"
    host.check_output("systemctl start qwen")
    until(lambda: ready(host), 60)
