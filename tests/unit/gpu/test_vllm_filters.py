"""Files, arguments and environment of the role vllm, and its templates rendered for a GPU host and a CPU host."""

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.errors import AnsibleFilterError

from module_utils.devmentor.gpu import MIB, parse_smi
from tests.unit.gpu.hosts import H100, smi
from tests.unit.gpu.models import QWEN3_8B

ROOT = Path(__file__).resolve().parents[3]
_spec = importlib.util.spec_from_file_location("vllm_filters", ROOT / "filter_plugins/vllm.py")
assert _spec is not None
assert _spec.loader is not None
vllm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(vllm)

UNIT = "vllm@chat.service"


def facts(count: int = 2) -> dict[str, Any]:
    return parse_smi(smi(*[H100] * count)).as_dict()


def made(**wanted: Any) -> dict[str, Any]:
    plan: dict[str, Any] = vllm.vllm_plan(facts(), QWEN3_8B, wanted, "llm1")
    return plan


def test_a_plan_from_strings_as_extra_variables_come() -> None:
    assert made(context="8192", concurrency="10", ceiling="0.5") == made(context=8192, concurrency=10, ceiling=0.5)
    assert made(context="8192")["context"] == 8192


def test_what_does_not_fit_names_host_variable_and_remedy() -> None:
    with pytest.raises(AnsibleFilterError, match=r"llm1: vllm_context: 99999 tokens .* Remedy: lower it to 40960"):
        made(context=99999)


def test_a_driver_that_does_not_answer_is_the_reason() -> None:
    broken = {**facts(0), "error": "Driver/library version mismatch"}
    with pytest.raises(AnsibleFilterError, match="llm1: vllm_device: the GPUs cannot be read: Driver/library"):
        vllm.vllm_plan(broken, QWEN3_8B, {}, "llm1")


def test_the_hosts_memory_grows_with_the_gpus() -> None:
    one, two = made(tensor_parallel=1)["memory_max"], made(tensor_parallel=2)["memory_max"]
    assert two - one == vllm.WORKER_MEMORY
    cpu = vllm.vllm_plan({"gpus": []}, QWEN3_8B, {"concurrency": 1}, "h", "cpu", 2)
    assert cpu["memory_max"] == vllm.SERVER_MEMORY + vllm.WORKER_MEMORY + cpu["weights"] + 2 * 1024 * MIB
    assert cpu["devices"] == ()


def test_the_arguments() -> None:
    plan = made(tensor_parallel=2, concurrency=50, kv_dtype="fp8")
    words = vllm.vllm_arguments(plan, "/models/m", "m", 8083, 20, ["--enforce-eager"])
    named = dict(word.removeprefix("--").split("=", 1) for word in words[:-1])
    assert words[-1] == "--enforce-eager"
    assert named["host"] == "127.0.0.1"
    assert named["shutdown-timeout"] == "20"
    assert (named["tensor-parallel-size"], named["gpu-memory-utilization"]) == ("2", "0.92")
    assert (named["max-num-seqs"], named["kv-cache-dtype"], named["served-model-name"]) == ("50", "fp8", "m")
    cpu = vllm.vllm_plan({"gpus": []}, QWEN3_8B, {"concurrency": 1}, "h", "cpu", 2)
    assert not [word for word in vllm.vllm_arguments(cpu, "/m", "m", 1, 1) if "tensor" in word or "gpu" in word]


def test_the_environment_survives_systemd() -> None:
    words = ["--a=b c", "--d"]
    text = vllm.vllm_environment({"KEEPER_ARGUMENTS": words, "HF_HUB_OFFLINE": 1})
    (line, plain) = text.splitlines()[1:]
    assert json.loads(shlex.split(line)[0].partition("=")[2]) == words
    assert plain == "HF_HUB_OFFLINE=1"
    for bad in ("it's", "two\nlines"):
        with pytest.raises(AnsibleFilterError, match="KEEPER_X"):
            vllm.vllm_environment({"KEEPER_X": [bad] if "'" in bad else bad})


def fetched(**change: str) -> dict[str, dict[str, str]]:
    files = {"m-config": "config.json", "m-tokenizer": "tokenizer.json", "m-1": "model.safetensors", **change}
    return {name: {"file": file, "path": f"/cache/{name}", "sha256": f"{n:064x}"} for n, (name, file) in
            enumerate(files.items())}  # fmt: skip


def test_a_models_files_lie_together_and_another_file_is_another_place() -> None:
    first = vllm.vllm_model_dir(fetched(), fetched(), "/models", "m")
    entries = vllm.vllm_model_files(fetched(), fetched(), first)
    assert {entry["path"] for entry in entries} == {
        f"{first}/{name}" for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    changed = fetched()
    changed["m-config"]["sha256"] = "f" * 64
    assert vllm.vllm_model_dir(fetched(), changed, "/models", "m") != first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"m-2": "model.safetensors"}, "have the file name model.safetensors"),
        ({"m-config": "other.json"}, "config.json"),
        ({"m-tokenizer": "vocab.txt"}, "tokenizer.json"),
        ({"m-1": "model.bin"}, ".safetensors"),
    ],
)
def test_a_model_that_lacks_a_file_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        vllm.vllm_model_files(fetched(**change), fetched(**change), "/m")


def test_the_configuration_is_found_and_read(tmp_path: Path) -> None:
    declared = {"a": {"file": "model.safetensors"}, "b": {"file": "config.json"}}
    assert vllm.vllm_config_artifact(["a", "b"], declared) == "b"
    with pytest.raises(AnsibleFilterError, match=r"no artefact's `file` is config\.json"):
        vllm.vllm_config_artifact(["a"], declared)
    path = tmp_path / "config.json"
    assert vllm.vllm_config({"path": str(path)}) == {}
    path.write_text("{}x")
    with pytest.raises(AnsibleFilterError, match="is no JSON"):
        vllm.vllm_config({"path": str(path)})


def test_memory_that_somebody_else_holds_is_named() -> None:
    plan = made(tensor_parallel=1)
    host = facts()
    assert vllm.vllm_held(host, plan, [UNIT]) == []
    gpu = host["gpus"][0]
    gpu["memory_free"] = 1000 * MIB
    gpu["processes"] = [{"pid": 9, "memory": 80_000 * MIB, "unit": UNIT}]
    assert vllm.vllm_held(host, plan, [UNIT]) == [], "the engine's own"
    gpu["processes"] = [{"pid": 9, "memory": 80_000 * MIB, "unit": "other.service"}]
    (line,) = vllm.vllm_held(host, plan, [UNIT])
    assert "pid 9 (other.service)" in line
    gpu["memory_free"] = None
    assert "cannot be read" in vllm.vllm_held(host, plan, [UNIT])[0]


# -- the unit --


def unit(**values: Any) -> dict[str, list[str]]:
    defaults = yaml.safe_load((ROOT / "roles/vllm/defaults/main.yml").read_text())
    given = {
        **defaults,
        "__vllm_user": "vllm",
        "__vllm_config_dir": "/etc/devmentor/vllm",
        "__vllm_state_dir": "/var/lib/devmentor/vllm",
        "devmentor_release_dir": "/opt/devmentor",
        **values,
    }
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    text = environment.from_string((ROOT / "roles/vllm/templates/vllm@.service.j2").read_text()).render(given)
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            lines.setdefault(key, []).append(value)
    return lines


def test_the_unit_of_a_gpu_host() -> None:
    plan = {**made(), "node": 1}
    lines = unit(__vllm_on_gpu=True, __vllm_plan=plan)
    assert int(lines["TimeoutStopSec"][0]) > 20 + 10, "above the drain and the keeper's own patience"
    assert (lines["NUMAPolicy"], lines["NUMAMask"], lines["CPUAffinity"]) == (["preferred"], ["1"], ["numa"])
    assert lines["MemoryMax"] == [str(plan["memory_max"])]
    assert lines["DeviceAllow"] == ["char-nvidia* rw"]
    assert lines["Wants"] == ["nvidia-persistenced.service"]
    assert lines["IPAddressAllow"] == ["localhost"]
    assert "PrivateDevices" not in lines
    assert "NUMAMask" not in unit(__vllm_on_gpu=True, __vllm_plan={**plan, "node": None})


def test_the_unit_of_a_cpu_host_and_of_a_check_before_anything_is_known() -> None:
    for plan in ({}, {"node": None, "memory_max": 5}):
        lines = unit(__vllm_on_gpu=False, __vllm_plan=plan)
        assert lines["PrivateDevices"] == ["true"]
        assert "Wants" not in lines
    assert unit(__vllm_on_gpu=False, __vllm_plan={})["MemoryMax"] == ["infinity"]
