"""Filters of the role vllm: how the engine runs a model on a host, and its files, arguments and units."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# Filters run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from module_utils.devmentor.gpu import Gpu, GpuProcess
from module_utils.devmentor.gpu_health import held_by_others
from module_utils.devmentor.vllm_sizing import GIB, Plan, SizingError, Wanted, plan, plan_cpu

# Memory of the host (bytes) that an engine takes beside its model's files, which the kernel may drop: the API server,
# and each GPU's worker with torch and pinned buffers.
SERVER_MEMORY = 8 * GIB
WORKER_MEMORY = 8 * GIB


def vllm_plan(
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    wanted: Mapping[str, Any],
    host: str,
    device: str = "cuda",
    cpu_kv_gib: int = 1,
    weight_bytes: int = 0,
) -> dict[str, Any]:
    """How vLLM runs the model of `config` (its config.json) on `facts` (gpu_facts' `gpu`). `wanted`: fields of
    vllm_sizing.Wanted. Raises AnsibleFilterError with the host, the variable and the remedy."""
    kinds: dict[str, Any] = {name: type(value) for name, value in dataclasses.asdict(Wanted()).items()}
    try:
        asked = Wanted(**{name: kinds[name](value) for name, value in wanted.items()})
        if device != "cpu" and facts.get("error"):
            remedy = "docs/vllm.md has the driver's setup; make preflight says more"
            raise SizingError("vllm_device", f"the GPUs cannot be read: {facts['error']}", remedy)
        if device == "cpu":
            made = plan_cpu(config, asked, int(cpu_kv_gib), int(weight_bytes) or None)
        else:
            made = plan(facts["gpus"], config, asked, int(weight_bytes) or None)
    except SizingError as error:
        raise AnsibleFilterError(f"{host}: {error}") from error
    return {**dataclasses.asdict(made), "memory_max": _memory_max(made, int(cpu_kv_gib) if device == "cpu" else 0)}


def _memory_max(made: Plan, cpu_kv_gib: int) -> int:
    """Bytes of the host's memory that the engine may take: its processes; on a CPU weights and cache as well."""
    on_cpu = made.weights + cpu_kv_gib * GIB if not made.devices else 0
    return SERVER_MEMORY + made.tensor_parallel * WORKER_MEMORY + on_cpu


def vllm_held(facts: Mapping[str, Any], made: Mapping[str, Any], units: Sequence[str]) -> list[str]:
    """Why the engine would not find the memory it was promised: GPUs of the plan that somebody else uses. vLLM refuses
    to start unless utilisation x memory is free (v1/worker/utils.py, request_memory)."""
    lines = []
    for entry in facts.get("gpus", ()):
        parts = {part.get("uuid"): part for part in entry.get("mig_instances") or ()}
        if entry["uuid"] not in made["devices"]:
            lines += [
                f"MIG instance {uuid}: its free memory cannot be read"
                for uuid, part in parts.items()
                if uuid in made["devices"] and part.get("memory_free") is None
            ]
            continue
        processes = tuple(GpuProcess(p["pid"], p["memory"], p["unit"]) for p in entry.get("processes", ()))
        known = {name: entry.get(name) for name in ("memory_total", "memory_reserved", "memory_free")}
        gpu = Gpu(entry["index"], processes=processes, **known)
        others = held_by_others(gpu, units)
        usable = (gpu.memory_total or 0) - (gpu.memory_reserved or 0)
        who = ", ".join(f"pid {p.pid}{f' ({p.unit})' if p.unit else ''}" for p in processes if p.unit not in units)
        if others is None:
            lines.append(f"GPU {gpu.index}: how much of its memory is free cannot be read")
        elif others > usable * (1 - made["utilisation"]):
            lines.append(
                f"GPU {gpu.index}: {others / GIB:.1f} of {usable / GIB:.1f} GiB are held by {who or 'somebody else'}, "
                f"and the engine wants {made['utilisation']:.0%}"
            )
    return lines


def vllm_config_artifact(names: Iterable[str], artifacts: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of a model's artefacts is its config.json. Raises AnsibleFilterError where none is."""
    for name in names:
        if artifacts[name].get("file", name) == "config.json":
            return name
    raise AnsibleFilterError(
        "vllm_artifacts: no artefact's `file` is config.json, by which the engine is sized. Declare it with the others."
    )


def vllm_config(fetched: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config.json, as artifact_fetch has it; empty where check mode left it unfetched."""
    path = Path(fetched["path"])
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise AnsibleFilterError(f"{path}: is no JSON ({error}). Check the artefact's source.") from error
    return dict(config)


def vllm_model_dir(names: Iterable[str], fetched: Mapping[str, Mapping[str, Any]], models_dir: str, model: str) -> str:
    """Where a model's files are: below its name and a digest of all of their checksums, so that a model that changes in
    any file has a place of its own. `fetched` is what artifact_fetch returned."""
    text = "".join(f"{fetched[name]['file']}\0{fetched[name]['sha256']}\0" for name in sorted(names))
    return f"{models_dir}/{model}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def vllm_model_files(
    names: Iterable[str], fetched: Mapping[str, Mapping[str, Any]], directory: str
) -> list[dict[str, str]]:
    """The `artifacts` of artifact_install for a model whose files lie together in `directory`.

    Raises AnsibleFilterError where two of them have one name, or a file that every model has is missing.
    """
    files: dict[str, dict[str, str]] = {}
    for name in names:
        entry = fetched[name]
        if entry["file"] in files:
            raise AnsibleFilterError(f"vllm_artifacts: {name} and another artefact have the file name {entry['file']}.")
        files[entry["file"]] = {
            "src": entry["path"],
            "path": f"{directory}/{entry['file']}",
            "sha256": entry["sha256"],
        }
    for wanted in ("config.json", "tokenizer.json"):
        if wanted not in files:
            raise AnsibleFilterError(
                f"vllm_artifacts: no artefact's `file` is {wanted}, which vLLM needs. Declare it with the others."
            )
    if not any(name.endswith(".safetensors") for name in files):
        raise AnsibleFilterError("vllm_artifacts: no artefact is a .safetensors file. Declare all of the model's.")
    return list(files.values())


def vllm_arguments(
    made: Mapping[str, Any], directory: str, model: str, port: int, drain: int, extra: Iterable[str] = ()
) -> list[str]:
    """The engine's arguments. `drain`: seconds that requests in flight may take after a stop was asked for."""
    arguments = {
        "model": directory,
        "served-model-name": model,
        "host": "127.0.0.1",
        "port": port,
        "dtype": made["dtype"],
        "max-model-len": made["context"],
        "max-num-seqs": made["sequences"],
        "max-num-batched-tokens": max(made["batched_tokens"], made["sequences"]),
        "shutdown-timeout": int(drain),
    }
    if made["kv_dtype"] != "auto":
        arguments["kv-cache-dtype"] = made["kv_dtype"]
    if made["devices"]:
        arguments["tensor-parallel-size"] = made["tensor_parallel"]
        arguments["gpu-memory-utilization"] = made["utilisation"]
    return [*(f"--{name}={value}" for name, value in arguments.items()), *(str(word) for word in extra)]


def vllm_environment(settings: Mapping[str, Any]) -> str:
    """An environment file. systemd takes quotes and backslashes out of a value: those that have any are quoted once."""
    lines = []
    for name, value in settings.items():
        text = json.dumps(value) if isinstance(value, list) else str(value)
        if "'" in text or "\n" in text:
            raise AnsibleFilterError(
                f"{name}: a value with a quote (') or a line break cannot go into an environment file."
            )
        lines.append(f"{name}='{text}'\n" if set(text) & set(' "\\#;') else f"{name}={text}\n")
    return "# Managed by Ansible (role vllm).\n" + "".join(lines)


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "vllm_arguments": vllm_arguments,
            "vllm_config": vllm_config,
            "vllm_config_artifact": vllm_config_artifact,
            "vllm_environment": vllm_environment,
            "vllm_held": vllm_held,
            "vllm_model_dir": vllm_model_dir,
            "vllm_model_files": vllm_model_files,
            "vllm_plan": vllm_plan,
        }
