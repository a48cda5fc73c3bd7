"""How vLLM runs a model on a host's GPUs: what fits is promised, what does not is refused with a remedy."""

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from module_utils.devmentor.gpu import parse_list, parse_smi, with_mig_uuids
from module_utils.devmentor.vllm_model import read_shape, weight_bytes
from module_utils.devmentor.vllm_sizing import (
    BLOCK,
    GIB,
    RUNTIME,
    Plan,
    SizingError,
    Wanted,
    activations,
    devices,
    plan,
    plan_cpu,
    utilisation,
)
from tests.unit.gpu.hosts import A100, A100_MIG, H100, H200, L40S, sample, smi
from tests.unit.gpu.models import (
    LLAMA3_8B,
    PUBLISHED,
    QWEN3_8B,
    QWEN3_30B_A3B,
    QWEN3_32B,
    QWEN25_7B,
    QWEN25_72B,
)

WANTED = Wanted()


def gpus(*names: str, nodes: tuple[int | None, ...] = (), **change: Any) -> list[dict[str, Any]]:
    found = parse_smi(smi(*names)).as_dict()["gpus"]
    for gpu, node in zip(found, nodes, strict=False):
        gpu["numa_node"] = node
    return [{**gpu, **change} for gpu in found]


def partitioned() -> list[dict[str, Any]]:
    facts = parse_smi(sample(A100_MIG))
    lines = "".join(f"  MIG 2g.20gb     Device  {n}: (UUID: MIG-{n})\n" for n in range(4))
    listed = parse_list(f"GPU 0: A100 (UUID: {facts.gpus[0].uuid})\n{lines}")
    found: list[dict[str, Any]] = with_mig_uuids(facts, listed).as_dict()["gpus"]
    return found


@pytest.mark.parametrize(("config", "published"), PUBLISHED)
def test_parameters_are_those_of_the_published_weights(config: dict[str, Any], published: int) -> None:
    assert weight_bytes(read_shape(config)) == published


def test_a_token_of_cache_by_hand() -> None:
    shape = read_shape(QWEN3_8B)
    assert shape.kv_bytes_per_token(1, "auto") == 2 * 36 * 8 * 128 * 2 == 147456
    assert shape.kv_bytes_per_token(8, "auto") == 147456 // 8
    assert shape.kv_bytes_per_token(16, "auto") == 147456 // 8, "a head is the least that a GPU has"
    assert shape.kv_bytes_per_token(1, "fp8") == 147456 // 2
    assert read_shape(QWEN25_7B).head_dim == 128


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (QWEN3_8B, [1, 2, 4, 8, 16, 32]),
        (QWEN25_7B, [1, 2, 4]),  # 28 heads
        (QWEN25_72B, [1, 2, 4, 8, 16, 32]),  # 64 heads, but 29568 columns end at 128
        ({**QWEN3_8B, "num_attention_heads": 48, "num_key_value_heads": 6}, [1, 2]),  # 6 and 4 do not divide
        (QWEN3_30B_A3B, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_the_numbers_of_gpus_that_a_model_divides_by(config: dict[str, Any], allowed: list[int]) -> None:
    shape = read_shape(config)
    assert [size for size in range(1, 64) if not shape.split(size)] == allowed


@pytest.mark.parametrize(
    ("names", "config", "least", "model"),
    [
        ((H100,) * 8, QWEN3_8B, 1, "H100"),
        ((H100,) * 8, QWEN25_72B, 4, "H100"),
        ((H100,) * 2, QWEN3_32B, 2, "H100"),
        ((H200,) * 4, QWEN25_72B, 2, "H200"),
        ((H200,) * 2, QWEN3_32B, 1, "H200"),
        ((L40S,) * 8, QWEN3_32B, 2, "L40S"),
        ((L40S,) * 4, QWEN3_30B_A3B, 2, "L40S"),
        ((A100,) * 2, QWEN3_32B, 1, "A100"),
        ((H100, L40S), QWEN3_8B, 1, "H100"),
        ((L40S, H200, L40S), QWEN3_8B, 1, "H200"),
    ],
)
def test_published_hosts_and_models(names: tuple[str, ...], config: dict[str, Any], least: int, model: str) -> None:
    """Never fewer GPUs than hold the weights, all of one model, and a whole request fits."""
    made = plan(gpus(*names), config, WANTED)
    assert made.tensor_parallel >= least
    assert len(set(made.devices)) == made.tensor_parallel
    assert all(model in name for name in made.names)
    assert made.utilisation == 0.92
    assert 4096 <= made.context <= min(config["max_position_embeddings"], made.kv_tokens)
    assert len(made.left) == len(names) - made.tensor_parallel


def test_the_smallest_number_that_holds_what_is_wanted_is_taken() -> None:
    host = gpus(*[H100] * 8)
    sizes = [plan(host, QWEN3_8B, dataclasses.replace(WANTED, concurrency=n)).tensor_parallel for n in (10, 100, 500)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] > 1


def test_by_hand() -> None:
    """Qwen3-8B on one H100 of 81559 MiB: every term of the module's head, in MiB."""
    made = plan(gpus(H100), QWEN3_8B, dataclasses.replace(WANTED, concurrency=10))
    shape = read_shape(QWEN3_8B)
    usable = (81559 - 480) * 1024**2
    left = int(usable * 0.92) - 16_381_470_720 - activations(shape, 1, 8192, 10) - 2 * GIB
    assert made.kv_tokens == (left // 147456 // 16 - 1) * 16
    assert 330_000 < made.kv_tokens < 400_000
    assert (made.context, made.sequences, made.batched_tokens) == (40960, 10, 8192)
    assert (made.dtype, made.weights) == ("auto", 16_381_470_720)


def test_a_partitioned_gpu_gives_one_instance() -> None:
    made = plan(partitioned(), QWEN3_8B, dataclasses.replace(WANTED, kv_dtype="fp8", context_minimum=512))
    assert made.devices == ("MIG-0",)
    assert made.tensor_parallel == 1
    assert len(made.left) == 3
    assert made.utilisation == 0.92
    with pytest.raises(SizingError, match=r"1 like GPU\(s\)"):
        plan(partitioned(), QWEN3_8B, dataclasses.replace(WANTED, tensor_parallel=2))
    bare = [{**gpu, "mig_instances": []} for gpu in partitioned()]
    with pytest.raises(SizingError, match="have no instance"):
        plan(bare, QWEN3_8B, WANTED)
    both = [*partitioned(), *gpus(H100)]
    assert "H100" in plan(both, QWEN3_8B, WANTED).names[0], "a whole GPU goes before a part of one"


def test_gpus_of_one_numa_node_are_taken_together() -> None:
    host = gpus(*[H100] * 4, nodes=(0, 1, 0, 1))
    made = plan(host, QWEN3_8B, dataclasses.replace(WANTED, tensor_parallel=2))
    assert (made.node, [host.index(g) for g in host if g["uuid"] in made.devices]) == (0, [0, 2])
    assert plan(host, QWEN3_8B, dataclasses.replace(WANTED, tensor_parallel=4)).node is None
    assert plan(gpus(H100), QWEN3_8B, WANTED).node is None, "not known"


@pytest.mark.parametrize(
    ("host", "config", "change", "variable", "said"),
    [
        (gpus(L40S), QWEN25_72B, {}, "vllm_artifacts", "135.4 GiB of weights leave no room .* on 1 x NVIDIA L40S"),
        (gpus(L40S), QWEN3_8B, {"context": 100_000}, "vllm_context", "more than the model's 40960"),
        (gpus(H100), QWEN3_32B, {"context": 40960}, "vllm_context", "40960 are needed"),
        (gpus(H100), QWEN3_8B, {"tensor_parallel": 2}, "vllm_tensor_parallel", r"1 like GPU\(s\)"),
        (gpus(*[H100] * 8), QWEN25_7B, {"tensor_parallel": 8}, "vllm_tensor_parallel", "28 attention heads"),
        (gpus(*[H100] * 8), QWEN3_8B, {"tensor_parallel": 3}, "vllm_tensor_parallel", "no power of two"),
        (gpus(H100, L40S), QWEN3_8B, {"tensor_parallel": 2}, "vllm_tensor_parallel", "1 like"),
        (gpus(H100), QWEN3_8B, {"kv_dtype": "fp4"}, "vllm_kv_dtype", "fp4"),
        (gpus(H100, compute_capability="7.5"), QWEN3_8B, {}, "vllm_tensor_parallel", "bfloat16"),
        (gpus(H100), {**QWEN3_8B, "num_hidden_layers": None}, {}, "vllm_artifacts", "num_hidden_layers"),
        (gpus(H100), {**QWEN3_8B, "quantization_config": {"bits": 4}}, {}, "vllm_artifacts", "quantised"),
        (gpus(H100), {**QWEN3_8B, "kv_lora_rank": 512}, {}, "vllm_artifacts", "MLA"),
        (gpus(H100), {**QWEN3_8B, "model_type": "new"}, {}, "vllm_artifacts", "'new'"),
        ([], QWEN3_8B, {}, "vllm_device", "no GPU"),
    ],
)
def test_what_does_not_fit_is_refused(
    host: list[dict[str, Any]], config: dict[str, Any], change: dict[str, Any], variable: str, said: str
) -> None:
    with pytest.raises(SizingError, match=said) as raised:
        plan(host, config, dataclasses.replace(WANTED, **change))
    assert raised.value.variable == variable
    assert raised.value.remedy


def test_a_gpu_that_computes_no_bfloat16_takes_half() -> None:
    host = gpus(H100, compute_capability="7.5")
    assert plan(host, QWEN3_8B, dataclasses.replace(WANTED, dtype="half")).dtype == "half"


def test_the_size_of_the_files_counts_where_it_is_known() -> None:
    quantised = {**QWEN25_72B, "quantization_config": {"bits": 4}}
    made = plan(gpus(H100), quantised, WANTED, 41 * GIB)
    assert (made.tensor_parallel, made.weights) == (1, 41 * GIB)
    wide = read_shape({**LLAMA3_8B, "torch_dtype": "float32"})
    assert weight_bytes(wide, 32_000_000_000) == 16_000_000_000, "vLLM loads them as 16 bits"


def test_the_cpu_build_has_what_its_cache_holds() -> None:
    small = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512}
    tiny = {**QWEN3_8B, **small}
    made = plan_cpu(tiny, dataclasses.replace(WANTED, concurrency=4), 1)
    assert (made.context, made.sequences, made.tensor_parallel, made.devices) == (512, 4, 1, ())
    assert made.kv_tokens == GIB // (2 * 2 * 2 * 32 * 2)
    with pytest.raises(SizingError, match="raise vllm_cpu_kv_gib") as raised:
        plan_cpu(QWEN3_8B, dataclasses.replace(WANTED, context=40960), 1)
    assert raised.value.variable == "vllm_context"


def test_memory_that_is_free_at_the_moment_decides_nothing() -> None:
    host = gpus(*[H100] * 2)
    loaded = [{**gpu, "memory_free": 0} for gpu in host]
    assert plan(host, QWEN3_8B, WANTED) == plan(loaded, QWEN3_8B, WANTED)


def test_small_devices_keep_room_for_the_servers_own_context() -> None:
    assert [utilisation(size * GIB, 0.92) for size in (80, 20, 10, 5, 1)] == [0.92, 0.92, 0.9, 0.8, 0.0]


def test_a_cache_that_bounds_the_length_gives_whole_thousands_but_never_less_than_the_least() -> None:
    config = {**QWEN3_32B, "max_position_embeddings": 131072}
    made = plan(gpus(H100), config, dataclasses.replace(WANTED, concurrency=1, context_minimum=1))
    assert made.context == made.kv_tokens - made.kv_tokens % 1024
    assert made.context < made.kv_tokens < 131072
    least = made.context + 1
    again = plan(gpus(H100), config, dataclasses.replace(WANTED, concurrency=1, context_minimum=least))
    assert again.context == least


# -- properties --

shapes = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["llama", "qwen2", "qwen3"]),
        "num_hidden_layers": st.integers(1, 100),
        "hidden_size": st.sampled_from([512, 1024, 3584, 4096, 8192]),
        "num_attention_heads": st.sampled_from([8, 12, 16, 28, 32, 40, 64]),
        "num_key_value_heads": st.sampled_from([1, 2, 4, 6, 8]),
        "head_dim": st.sampled_from([64, 128]),
        "intermediate_size": st.integers(64, 32768).map(lambda n: n * 2),
        "vocab_size": st.integers(1000, 256000),
        "max_position_embeddings": st.sampled_from([512, 8192, 32768, 131072]),
        "tie_word_embeddings": st.booleans(),
    }
)
hosts = st.lists(st.sampled_from([A100, H100, H200, L40S]), min_size=1, max_size=8)
wishes = st.builds(
    Wanted,
    concurrency=st.integers(1, 512),
    request_tokens=st.integers(1, 32768),
    context_minimum=st.integers(1, 32768),
    ceiling=st.sampled_from([0.5, 0.75, 0.92]),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
)


def planned(names: list[str], config: dict[str, Any], wanted: Wanted) -> Plan | None:
    try:
        return plan(gpus(*names), config, wanted)
    except SizingError:
        return None


@given(hosts, shapes, wishes)
def test_what_is_promised_is_there(names: list[str], config: dict[str, Any], wanted: Wanted) -> None:
    made = planned(names, config, wanted)
    assume(made is not None)
    assert made
    host = {gpu["uuid"]: gpu for gpu in gpus(*names)}
    size = made.tensor_parallel
    assert size & (size - 1) == 0
    assert config["num_attention_heads"] % size == 0
    heads = config["num_key_value_heads"]
    assert heads % size == 0 or size % heads == 0
    taken = [host[uuid] for uuid in made.devices]
    assert len({gpu["uuid"] for gpu in taken}) == size
    assert len({(gpu["name"], gpu["memory_total"]) for gpu in taken}) == 1
    assert len(made.left) + size == len(names)
    shape = read_shape(config)
    need = (
        made.weights / size
        + made.kv_tokens * shape.kv_bytes_per_token(size, wanted.kv_dtype)
        + activations(shape, size, made.batched_tokens, made.sequences)
        + RUNTIME
    )
    (device, *_) = devices(taken)
    assert need <= device.usable * made.utilisation
    assert made.utilisation <= wanted.ceiling
    assert 1 <= made.context <= min(made.kv_tokens, config["max_position_embeddings"])
    assert made.context >= min(wanted.context_minimum, config["max_position_embeddings"])
    assert made.sequences == 1 or made.sequences * wanted.request_tokens <= made.kv_tokens
    assert made.sequences <= wanted.concurrency <= made.batched_tokens
    assert made.kv_tokens % BLOCK == 0


@given(hosts, shapes, wishes)
def test_a_host_with_more_gpus_holds_no_less(names: list[str], config: dict[str, Any], wanted: Wanted) -> None:
    before, after = planned(names, config, wanted), planned([*names, H200], config, wanted)
    if before:
        assert after
        assert after.context >= before.context or after.tensor_parallel <= before.tensor_parallel
