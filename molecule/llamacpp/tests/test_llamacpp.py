"""Real engines: on loopback alone, they finish what they began before they stop, and are restarted when stuck."""

import json

import pytest
from scenario import until

testinfra_hosts = ["qwen"]

CHAT, EMBED = "http://127.0.0.1:8081", "http://127.0.0.1:8082"


def post(host, url, body):
    result = host.run("curl --silent --max-time 60 --data %s %s", json.dumps(body), url)
    assert result.rc == 0, result.stderr
    return json.loads(result.stdout)


def main_pid(host, unit):
    return host.check_output("systemctl show --property MainPID --value %s", unit)


@pytest.mark.parametrize("unit", ["llamacpp@chat", "llamacpp@embed"])
def test_units_run_in_the_slice_as_their_user(host, unit):
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled
    shown = host.check_output("systemctl show --property Slice,User,NRestarts %s", unit)
    assert "Slice=devmentor-qwen.slice" in shown
    assert "User=llamacpp" in shown
    assert "NRestarts=0" in shown


def test_they_listen_on_loopback_alone(host):
    listening = host.check_output("ss --no-header --listening --tcp --numeric 'sport = :8081 or sport = :8082'")
    addresses = {line.split()[3] for line in listening.splitlines()}
    assert addresses == {"127.0.0.1:8081", "127.0.0.1:8082"}


def test_a_token_is_generated_and_the_context_is_long(host):
    # The random model may end its answer after any token.
    ask = {"messages": [{"role": "user", "content": "x" * 9000}], "max_tokens": 4, "ignore_eos": True}
    answer = post(host, f"{CHAT}/v1/chat/completions", ask)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] > 9000
    assert json.loads(host.check_output(f"curl --silent {CHAT}/v1/models"))["data"][0]["meta"]["n_ctx"] == 16384


def test_embeddings_have_a_meaning(host):
    answer = post(host, f"{EMBED}/v1/embeddings", {"input": ["a cat sleeps", "a kitten naps", "quarterly tax return"]})
    vectors = [entry["embedding"] for entry in answer["data"]]
    assert [len(vector) for vector in vectors] == [384] * 3

    def near(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(vectors[0], vectors[1]) > near(vectors[0], vectors[2]) + 0.3


def test_a_stream_in_progress_is_finished_before_the_stop(host):
    body = {"messages": [{"role": "user", "content": "Talk."}], "max_tokens": 500, "ignore_eos": True, "stream": True}
    host.check_output("systemctl reset-failed llamacpp@chat")
    host.run("rm -f /tmp/drain.out")
    stream = f"curl --silent --no-buffer --max-time 60 --data '{json.dumps(body)}' {CHAT}/v1/chat/completions"
    start = f"({stream} >/tmp/drain.out &)"
    host.check_output("bash -c %s", start)
    until(lambda: host.file("/tmp/drain.out").exists and host.file("/tmp/drain.out").size > 0, 20)
    host.check_output("systemctl stop llamacpp@chat")
    assert host.file("/tmp/drain.out").content_string.rstrip().endswith("data: [DONE]")
    assert host.check_output("systemctl show --property Result --value llamacpp@chat") == "success"
    host.check_output("systemctl start llamacpp@chat")


def test_a_frozen_engine_is_restarted(host):
    before = main_pid(host, "llamacpp@embed")
    host.check_output("kill -STOP %s", before)
    until(lambda: main_pid(host, "llamacpp@embed") not in (before, "0"), 60)
    until(lambda: host.service("llamacpp@embed").is_running, 30)
    assert len(post(host, f"{EMBED}/v1/embeddings", {"input": "again"})["data"][0]["embedding"]) == 384
