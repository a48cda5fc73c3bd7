"""The real vLLM: on loopback alone, ready with a token, ends what it began before it stops, restarted when stuck."""

import json

from scenario import until

testinfra_hosts = ["vllm"]

URL = "http://127.0.0.1:8083"
JSON = "Content-Type: application/json"
START_S = 600
UNIT = "vllm@chat"


def post(host, path, body):
    result = host.run(f"curl --silent --max-time 120 --header '{JSON}' --data %s %s", json.dumps(body), f"{URL}{path}")
    assert result.rc == 0, result.stderr
    return json.loads(result.stdout)


def main_pid(host):
    return host.check_output("systemctl show --property MainPID --value %s", UNIT)


def test_the_unit_runs_in_its_slice_as_its_user(host):
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled
    shown = host.check_output("systemctl show --property Slice,User,NRestarts,TimeoutStopUSec,MemoryMax %s", UNIT)
    assert "Slice=devmentor-vllm.slice" in shown
    assert "User=vllm" in shown
    assert "NRestarts=0" in shown
    assert "TimeoutStopUSec=35s" in shown
    assert "MemoryMax=infinity" not in shown


def test_it_listens_on_loopback_alone(host):
    listening = host.check_output("ss --no-header --listening --tcp --numeric 'sport = :8083'")
    assert {line.split()[3] for line in listening.splitlines()} == {"127.0.0.1:8083"}


def test_a_token_is_generated_and_the_length_is_the_planned_one(host):
    question = {"role": "user", "content": "x" * 500}
    ask = {"model": "tiny-qwen3", "messages": [question], "max_tokens": 4, "ignore_eos": True}
    answer = post(host, "/v1/chat/completions", ask)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] > 500
    assert json.loads(host.check_output(f"curl --silent {URL}/v1/models"))["data"][0]["max_model_len"] == 2048


def test_the_model_is_what_was_declared_and_nobody_else_may_change_it(host):
    found = host.check_output("find /var/lib/devmentor/models/tiny-qwen3 -name '*.safetensors' -user root ! -perm /022")
    assert found.endswith("/model.safetensors")


def test_a_stream_in_progress_is_finished_before_the_stop(host):
    body = {"model": "tiny-qwen3", "prompt": "Talk.", "max_tokens": 200, "ignore_eos": True, "stream": True}
    host.run("rm -f /tmp/drain.out")
    curl = f"curl --silent --no-buffer --max-time 120 --header '{JSON}'"
    stream = f"{curl} --data '{json.dumps(body)}' {URL}/v1/completions"
    start = f"({stream} >/tmp/drain.out &)"
    host.check_output("bash -c %s", start)
    until(lambda: host.file("/tmp/drain.out").exists and host.file("/tmp/drain.out").size > 0, 60)
    host.check_output("systemctl stop %s", UNIT)
    assert host.file("/tmp/drain.out").content_string.rstrip().endswith("data: [DONE]")
    assert host.check_output("systemctl show --property Result --value %s", UNIT) == "success"
    host.check_output(f"timeout {START_S} systemctl start %s", UNIT)


def test_a_frozen_engine_is_restarted(host):
    before = main_pid(host)
    # The engine's core, a child of the server: the server goes on answering /health.
    core = host.check_output("pgrep --full --newest 'VLLM::[E]ngineCore'")
    host.check_output("kill -STOP %s", core)
    until(lambda: main_pid(host) not in (before, "0"), 180)
    until(lambda: host.service(UNIT).is_running, START_S)
    assert post(host, "/v1/completions", {"model": "tiny-qwen3", "prompt": "x", "max_tokens": 1})["choices"]
