"""How vLLM runs a model on a host's GPUs: which, how many, how much of their memory, how long and how many requests.

    usable      = memory - the driver's share                    what torch calls total_memory
    utilisation = min(ceiling, (usable - context) / usable)      vLLM refuses to start unless so much is free
    cache       = usable x utilisation - weights / tensor parallel size - activations - runtime
    tokens      = cache / bytes of cache for a token             vllm_model.py

vLLM itself measures activations and runtime when it starts (v1/worker/gpu_worker.py) and gives all that is left to the
cache; the estimates here err to more, so that what is promised to clients (length, concurrency) is there then. Nothing
is computed from memory that is free at the moment: a second run, with the engine loaded, must come to the same.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
from typing import Any

from .vllm_model import DTYPE_BYTES, KV_BYTES, ModelError, Shape, read_shape, weight_bytes

MIB, GIB = 1024**2, 1024**3
BLOCK = 16  # tokens of a cache block, vLLM's default on GPUs
# An estimate of the driver's share where it does not say; the A100's published 869 MiB are the most seen.
RESERVED = 1 * GIB
# The server's CUDA context is made before vLLM looks at what is free (v1/worker/utils.py, request_memory).
CONTEXT = 1 * GIB
# CUDA graphs, NCCL's buffers, kernels' workspaces: what vLLM's own profile counts beside weights and activations.
RUNTIME = 2 * GIB


class SizingError(Exception):
    """A model that does not go onto a host's GPUs: `variable` to change, `problem`, `remedy`."""

    def __init__(self, variable: str, problem: str, remedy: str) -> None:
        super().__init__(f"{variable}: {problem}. Remedy: {remedy}.")
        self.variable, self.problem, self.remedy = variable, problem, remedy


@dataclasses.dataclass(frozen=True)
class Device:
    """What an engine may use: a GPU, or an instance of one (MIG). `usable` in bytes."""

    id: str
    index: int
    name: str
    usable: int
    node: int | None = None
    capability: str | None = None
    instance: bool = False


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The operator's side. 0 lets `context` (tokens), `tensor_parallel` and `batched_tokens` be computed.

    `concurrency`: requests at a time, if memory allows; `request_tokens`: tokens that one is expected to have on
    average; `context_minimum`: a model that could hold only less is refused. `ceiling`: the share of a GPU's memory, at
    most.
    """

    context: int = 0
    context_minimum: int = 4096
    concurrency: int = 100
    request_tokens: int = 4096
    tensor_parallel: int = 0
    batched_tokens: int = 0
    ceiling: float = 0.92
    dtype: str = "auto"
    kv_dtype: str = "auto"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the engine is started. `devices` for CUDA_VISIBLE_DEVICES, `node` the NUMA node that all of them are on;
    `left` names GPUs that stay unused; `kv_tokens` is how many tokens the cache holds, all requests together."""

    devices: tuple[str, ...]
    names: tuple[str, ...]
    tensor_parallel: int
    utilisation: float
    context: int
    sequences: int
    batched_tokens: int
    kv_tokens: int
    weights: int
    dtype: str
    kv_dtype: str
    node: int | None = None
    left: tuple[str, ...] = ()


def devices(gpus: c.Iterable[c.Mapping[str, Any]]) -> list[Device]:
    """What of gpu_facts' GPUs an engine may use: GPUs that are not partitioned, and the instances of those that are."""
    found = []
    for gpu in gpus:
        name, uuid, total = gpu.get("name"), gpu.get("uuid"), gpu.get("memory_total")
        if name is None or uuid is None or total is None:
            continue
        node, capability = gpu.get("numa_node"), gpu.get("compute_capability")
        if not gpu.get("mig"):
            reserved = gpu.get("memory_reserved")
            usable = total - (RESERVED if reserved is None else reserved)
            found.append(Device(uuid, gpu["index"], name, usable, node, capability))
            continue
        found += [
            Device(part["uuid"], gpu["index"], f"{name} MIG", part["memory_total"], node, capability, True)
            for part in gpu.get("mig_instances") or ()
            if part.get("uuid") and part.get("memory_total")
        ]
    return found


def utilisation(usable: int, ceiling: float) -> float:
    """The share of a device's memory for vLLM, in whole percent, rounded down."""
    room = (usable - CONTEXT) / usable if usable > 0 else 0.0
    return max(0, int(min(ceiling, room) * 100 + 1e-9)) / 100


def default_batched_tokens(device: Device) -> int:
    """vLLM's own default for an API server (engine/arg_utils.py, _set_default_max_num_seqs_and_batched_tokens_args)."""
    if device.usable + RESERVED >= 160 * GIB:
        return 16384
    return 8192 if device.usable >= 70 * GIB and "a100" not in device.name.lower() else 2048


def activations(shape: Shape, tensor_parallel: int, batched_tokens: int, sequences: int) -> int:
    """An estimate of the most that a step needs at a time, in bytes: the residual twice and the wider of attention and
    feed-forward for each token of the batch, and the logits of each sequence as two tables of 32 bits."""
    size = DTYPE_BYTES[shape.dtype]
    attention = (shape.heads + 2 * max(shape.kv_heads, tensor_parallel)) * shape.head_dim // tensor_parallel
    feed_forward = 3 * shape.ffn * shape.active_experts // tensor_parallel
    return batched_tokens * (2 * shape.hidden + max(attention, feed_forward)) * size + sequences * shape.vocabulary * 8


def plan(
    gpus: c.Iterable[c.Mapping[str, Any]], config: c.Mapping[str, Any], wanted: Wanted, files: int | None = None
) -> Plan:
    """How vLLM runs the model of `config` (its config.json) on these GPUs (gpu_facts'). `files`: bytes of its weights.

    The smallest number of GPUs that holds the weights and what is wanted at a time; where none does, the one whose
    cache is the largest. Raises SizingError.
    """
    shape, weights = _model(config, wanted, files)
    usable = devices(gpus)
    if not usable:
        raise SizingError(
            "vllm_device",
            "no GPU can be used: none is there, or all are partitioned (MIG) and have no instance",
            "make instances (nvidia-smi mig -cgi), switch MIG off, or take the host out of group vllm",
        )
    candidates = [
        _fit(shape, weights, group, size, wanted) for group in _groups(usable) for size in _sizes(shape, group, wanted)
    ]
    if not candidates:
        raise SizingError("vllm_tensor_parallel", *_why_not_split(shape, usable, wanted))
    needed = max(wanted.context or shape.context, wanted.concurrency * wanted.request_tokens)
    candidates.sort(key=lambda fit: (fit.size, -fit.usable))
    enough = [fit for fit in candidates if fit.tokens >= needed]
    best = enough[0] if enough else max(candidates, key=lambda fit: fit.tokens)
    _refuse_too_small(shape, weights, best, wanted)
    chosen = _choose(best)
    ids = {device.id for device in chosen}
    nodes = {device.node for device in chosen}
    return Plan(
        devices=tuple(device.id for device in chosen),
        names=tuple(device.name for device in chosen),
        tensor_parallel=best.size,
        utilisation=best.utilisation,
        context=_context(shape, best.tokens, wanted),
        sequences=max(1, min(wanted.concurrency, best.tokens // wanted.request_tokens)),
        batched_tokens=best.batched_tokens,
        kv_tokens=best.tokens,
        weights=weights,
        dtype=wanted.dtype,
        kv_dtype=wanted.kv_dtype,
        node=nodes.pop() if len(nodes) == 1 else None,
        left=tuple(f"{device.name} ({device.id})" for device in usable if device.id not in ids),
    )


def plan_cpu(config: c.Mapping[str, Any], wanted: Wanted, kv_gib: int, files: int | None = None) -> Plan:
    """The same for vLLM's CPU build, whose cache is `kv_gib` (VLLM_CPU_KVCACHE_SPACE) of the host's memory."""
    shape, weights = _model(config, wanted, files)
    tokens = kv_gib * GIB // shape.kv_bytes_per_token(1, wanted.kv_dtype)
    fit = _Fit((), 1, 0, 0.0, wanted.batched_tokens or 2048, tokens)
    _refuse_too_small(shape, weights, fit, wanted, "vllm_cpu_kv_gib", f"raise vllm_cpu_kv_gib ({kv_gib})")
    sequences = max(1, min(wanted.concurrency, tokens // wanted.request_tokens))
    context = _context(shape, tokens, wanted)
    return Plan((), (), 1, 0.0, context, sequences, fit.batched_tokens, tokens, weights, wanted.dtype, wanted.kv_dtype)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A group of like devices and how many of them, with what that leaves for the cache (tokens; below 0: nothing)."""

    group: tuple[Device, ...]
    size: int
    usable: int
    utilisation: float
    batched_tokens: int
    tokens: int


def _model(config: c.Mapping[str, Any], wanted: Wanted, files: int | None, lenient: bool = False) -> tuple[Shape, int]:
    try:
        shape = read_shape(config)
        weights = weight_bytes(shape, files)
    except ModelError as error:
        raise SizingError(
            "vllm_artifacts",
            f"config.json: {error}",
            "take a model that vLLM and this role know, or name its size in vllm_weight_bytes",
        ) from error
    if wanted.kv_dtype not in KV_BYTES:
        raise SizingError("vllm_kv_dtype", f"{wanted.kv_dtype!r} is not known", f"give one of {', '.join(KV_BYTES)}")
    if wanted.context > shape.context:
        raise SizingError(
            "vllm_context",
            f"{wanted.context} tokens are more than the model's {shape.context} (max_position_embeddings)",
            f"lower it to {shape.context} or less, or 0 for what fits",
        )
    return shape, weights


def _groups(usable: c.Iterable[Device]) -> list[tuple[Device, ...]]:
    """Like devices together. An instance is alone: between instances of MIG is no peer-to-peer (NVIDIA's MIG guide),
    and so no tensor parallelism."""
    groups: dict[tuple[str, int, str], list[Device]] = {}
    for device in usable:
        key = (device.name, device.usable, device.id if device.instance else "")
        groups.setdefault(key, []).append(device)
    return [tuple(group) for group in groups.values()]


def _sizes(shape: Shape, group: c.Sequence[Device], wanted: Wanted) -> list[int]:
    if "bfloat16" in (wanted.dtype, shape.dtype if wanted.dtype == "auto" else "") and any(
        device.capability and float(device.capability) < 8.0 for device in group
    ):
        return []  # vLLM: bfloat16 needs compute capability 8.0 (platforms/cuda.py)
    powers = [1 << power for power in range(len(group).bit_length()) if 1 << power <= len(group)]
    return [size for size in powers if not shape.split(size) and wanted.tensor_parallel in (0, size)]


def _why_not_split(shape: Shape, usable: c.Sequence[Device], wanted: Wanted) -> tuple[str, str]:
    """Problem and remedy where no number of GPUs can be taken at all."""
    if wanted.tensor_parallel:
        most = max(len(group) for group in _groups(usable))
        why = shape.split(wanted.tensor_parallel) or f"the host has {most} like GPU(s) that can work together"
        return f"{wanted.tensor_parallel} GPUs cannot be taken: {why}", "set it to 0, then the number is computed"
    return (
        "the model is in bfloat16, which the host's GPUs do not compute (capability below 8.0)",
        "vllm_dtype: half, or other GPUs",
    )


def _fit(shape: Shape, weights: int, group: tuple[Device, ...], size: int, wanted: Wanted) -> _Fit:
    device = group[0]
    share = utilisation(device.usable, wanted.ceiling)
    batched = wanted.batched_tokens or default_batched_tokens(device)
    batched = max(batched, wanted.concurrency)
    left = (
        int(device.usable * share)
        - -(-weights // size)
        - activations(shape, size, batched, wanted.concurrency)
        - RUNTIME
    )
    # One block is vLLM's own (the null block).
    tokens = (left // shape.kv_bytes_per_token(size, wanted.kv_dtype) // BLOCK - 1) * BLOCK
    return _Fit(group, size, device.usable, share, batched, tokens)


def _context(shape: Shape, tokens: int, wanted: Wanted) -> int:
    """What was set, or all that the model and the cache have, in whole thousands where the cache is the bound."""
    if wanted.context or tokens >= shape.context:
        return wanted.context or shape.context
    return max(tokens - tokens % 1024, min(wanted.context_minimum, tokens))


def _refuse_too_small(
    shape: Shape, weights: int, fit: _Fit, wanted: Wanted, variable: str = "vllm_artifacts", more: str = ""
) -> None:
    need = wanted.context or min(wanted.context_minimum, shape.context)
    if fit.tokens >= need:
        return
    where = f"{fit.size} x {fit.group[0].name}" if fit.group else "the host"
    share = f" ({fit.usable / GIB:.1f} GiB each, {fit.utilisation:.0%} of it for vLLM)" if fit.group else ""
    more = more or "take more GPUs of one model, larger ones, or a smaller or quantised model"
    if fit.tokens <= 0:
        raise SizingError(
            variable, f"{weights / GIB:.1f} GiB of weights leave no room for a cache on {where}{share}", more
        )
    raise SizingError(
        "vllm_context" if wanted.context else variable,
        f"beside {weights / GIB:.1f} GiB of weights the cache on {where}{share} holds {fit.tokens} tokens, "
        f"{need} are needed",
        f"lower vllm_context{'' if wanted.context else '_minimum'}, set vllm_kv_dtype: fp8, or {more}",
    )


def _choose(fit: _Fit) -> tuple[Device, ...]:
    """Which of the like devices: all on one NUMA node where a node has enough, else in the driver's order."""
    for node in sorted({device.node for device in fit.group if device.node is not None}):
        there = [device for device in fit.group if device.node == node]
        if len(there) >= fit.size:
            return tuple(there[: fit.size])
    return tuple(fit.group[: fit.size])
