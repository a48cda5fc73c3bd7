"""Which engines a host runs, and whom an instance asks first."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

_spec = importlib.util.spec_from_file_location(
    "engines_filters", Path(__file__).resolve().parents[3] / "filter_plugins/engines.py"
)
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)


def entry(**change: Any) -> dict[str, Any]:
    return {
        "groups": ["qwen"],
        "artifact": "m",
        "alias": "M",
        "mode": "chat",
        "port": 8081,
        "context": 1024,
        "parallel": 2,
        **change,
    }


INSTANCES = {"chat": entry(), "embed": entry(groups=["qwen", "pbml"], mode="embed", port="8082")}


def test_a_host_runs_the_engines_of_its_groups() -> None:
    assert [e["name"] for e in engines.engines_of(INSTANCES, ["qwen", "pbml"])] == ["chat", "embed"]
    (embed,) = engines.engines_of(INSTANCES, ["pbml"])
    assert (embed["name"], embed["port"], embed["max_answer"]) == ("embed", 8082, -1)
    assert engines.engines_of(INSTANCES, ["cache"]) == []


@pytest.mark.parametrize(
    ("instances", "said"),
    [
        ({"chat": entry(paralel=1)}, "parallel"),
        ({"chat": entry(mode="talk")}, "mode"),
        ({"Chat2": entry()}, "lower-case"),
        ({"chat": {"groups": []}}, "missing"),
        ({"chat": entry(), "other": entry()}, "port 8081"),
        ({"chat": entry(), "other": entry(port=8082, surge_port=8081)}, "surge_port 8081"),
    ],
)
def test_a_wrong_entry_is_named(instances: dict[str, Any], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        engines.engines_of(instances, ["qwen"])


def test_the_environment_names_the_models_release() -> None:
    fetched = {"m": {"release": "1-abc", "file": "m.gguf"}}
    (file,) = engines.engine_files(
        engines.engines_of(INSTANCES, ["pbml"]), fetched, "/etc/x", "/models", {"THREADS": 1}
    )
    assert file["path"] == "/etc/x/embed.env"
    assert "LLAMACPP_MODEL=/models/m/1-abc/m.gguf\n" in file["content"]
    assert "LLAMACPP_THREADS=1\n" in file["content"]


def test_a_stand_in_differs_in_its_port_alone_and_is_no_unit_that_runs_by_itself() -> None:
    fetched = {"m": {"release": "1-abc", "file": "m.gguf"}}
    found = engines.engines_of({"embed": entry(mode="embed", surge_port="8084")}, ["qwen"])
    main, stand_in = engines.engine_files(found, fetched, "/etc/x", "/models", {})
    assert stand_in["path"] == "/etc/x/embed-surge.env"
    assert stand_in["content"] == main["content"].replace("PORT=8081", "PORT=8084") != main["content"]
    assert [unit["name"] for unit in engines.engine_units(found, "/etc/x", "/opt/m", 5)] == ["llamacpp@embed.service"]


def test_a_unit_restarts_on_its_environment_and_its_release() -> None:
    units = engines.engine_units(engines.engines_of(INSTANCES, ["qwen"]), "/etc/x", "/opt/release.json", 5)
    assert [unit["name"] for unit in units] == ["llamacpp@chat.service", "llamacpp@embed.service"]
    assert units[0]["restart_on"] == ["/etc/x/chat.env", "/opt/release.json"]
    assert units[1]["wait_for"]["url"] == "http://127.0.0.1:8082/health"


def test_an_instance_asks_itself_first_and_the_others_spread() -> None:
    hosts = ["p1", "p2", "p3"]
    assert engines.nearest_first(hosts, "p2", ["q1", "p2"]) == ["p2", "p3", "p1"]
    firsts = [engines.nearest_first(hosts, q, ["q1", "q2", "q3", "q4"])[0] for q in ("q1", "q2", "q3", "q4")]
    assert firsts == ["p1", "p2", "p3", "p1"]
    assert engines.nearest_first([], "q1", ["q1"]) == []


def test_tenants_are_digests() -> None:
    (tenant,) = engines.tenant_digests({"lab": "secret"})
    assert tenant == {"tenant": "lab", "key_sha256": hashlib.sha256(b"secret").hexdigest()}
    budgets = {"lab": {"tokens_per_minute": "600"}, "other": {"tokens_per_day": 5}}
    assert engines.tenant_digests({"lab": "secret"}, budgets) == [{**tenant, "tokens_per_minute": 600}]


def test_gpus_serve_the_chat_model_and_llama_cpp_stands_by() -> None:
    ports = {"llamacpp_chat": 8081, "llamacpp_embed": 8082, "vllm": 8083}
    embedding = {"e": {"url": "http://127.0.0.1:8082", "kind": "embedding"}}
    assert engines.qwen_models("m", "e", ports, ["qwen"]) == {"m": {"url": "http://127.0.0.1:8081"}, **embedding}
    assert engines.qwen_models("m", "e", ports, ["qwen", "vllm"]) == {
        "m": {"url": "http://127.0.0.1:8083", "secondary": "m-cpu"},
        "m-cpu": {"url": "http://127.0.0.1:8081"},
        **embedding,
    }
    assert engines.cpu_alias("m", ["qwen", "vllm"]) == "m-cpu"
    assert engines.cpu_alias("m", ["qwen"]) == "m"
