"""A model's shape, from its config.json, and what it needs of memory: bytes of weights, bytes of cache for a token.

Where the rules come from is said at each; `vLLM` is version 0.32.0.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
from typing import Any

# Bytes of a value. vLLM takes float32 checkpoints as 16 bits (config/model.py, _get_and_verify_dtype).
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 2}
KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
# Model types whose parameters are counted below; of another one the size of its files must be known.
COUNTED = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe"})


class ModelError(Exception):
    """A config.json that does not say what is needed; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes in values, `context` in tokens. `experts` is 0 for a dense model, then `ffn` is its feed-forward width;
    else `ffn` is one expert's and `active_experts` are computed for a token."""

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int
    dtype: str
    tied: bool
    quantised: bool
    experts: int = 0
    active_experts: int = 1

    @property
    def parameters(self) -> int | None:
        """All parameters, by the modules that transformers builds for these model types (modeling_qwen2.py, _qwen3.py,
        _llama.py, _qwen3_moe.py): embeddings, attention, feed-forward, norms. None for another type."""
        if self.kind not in COUNTED:
            return None
        queries, pairs = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (queries + 2 * pairs) + queries * self.hidden
        if self.kind == "qwen2":  # a bias on queries, keys and values
            attention += queries + 2 * pairs
        if self.kind.startswith("qwen3"):  # a norm on queries and on keys
            attention += 2 * self.head_dim
        feed_forward = 3 * self.hidden * self.ffn * max(1, self.experts) + self.hidden * self.experts
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * (attention + feed_forward + 2 * self.hidden) + self.hidden

    def kv_bytes_per_token(self, tensor_parallel: int, kv_dtype: str) -> int:
        """Bytes of a GPU's cache for a token: 2 (keys and values) x layers x heads x head size x bytes of a value.

        vLLM: FullAttentionSpec (v1/kv_cache_interface.py); a GPU has max(1, heads / tensor parallel size) of the
        key/value heads (config/model.py, get_num_kv_heads). A layer with a sliding window takes less: this is a bound.
        """
        heads = max(1, self.kv_heads // tensor_parallel)
        return 2 * self.layers * heads * self.head_dim * KV_BYTES[kv_dtype]

    def split(self, tensor_parallel: int) -> str:
        """Why the model cannot be split over so many GPUs; "" where it can.

        vLLM: attention heads divide (config/model.py, verify_with_parallel_config); key/value heads divide, or are
        replicated a whole number of times (layers/linear.py, QKVParallelLinear); the feed-forward's columns divide
        (ColumnParallelLinear). Vocabularies are padded. A power of two, because heads and NVLink's topologies are.
        """
        if tensor_parallel < 1 or tensor_parallel & (tensor_parallel - 1):
            return f"{tensor_parallel} is no power of two"
        for what, size in (("attention heads", self.heads), ("feed-forward columns", self.ffn)):
            if size % tensor_parallel:
                return f"{size} {what} do not divide by {tensor_parallel}"
        if self.kv_heads % tensor_parallel and tensor_parallel % self.kv_heads:
            return f"{self.kv_heads} key/value heads neither divide by {tensor_parallel} nor into it"
        return ""


def read_shape(config: c.Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes. Raises ModelError."""
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), c.Mapping) else config
    if text.get("kv_lora_rank"):
        raise ModelError("kv_lora_rank: latent attention (MLA) has another cache, which is not computed here")

    def number(key: str, default: int | None = None) -> int:
        value = text.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{key}: {value!r} is not a number above 0")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    experts = number("num_experts") if text.get("num_experts") else 0
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"torch_dtype: {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    return Shape(
        kind=str(text.get("model_type", "")),
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads) if text.get("head_dim") else hidden // heads,
        ffn=number("moe_intermediate_size") if experts else number("intermediate_size"),
        vocabulary=number("vocab_size"),
        context=number("max_position_embeddings"),
        dtype=dtype,
        tied=bool(text.get("tie_word_embeddings", False)),
        quantised=bool(config.get("quantization_config")),
        experts=experts,
        active_experts=number("num_experts_per_tok") if experts else 1,
    )


def weight_bytes(shape: Shape, size_of_files: int | None = None) -> int:
    """Bytes of the weights: what the files have, else parameters x bytes of a value. Raises ModelError where neither is
    known."""
    if size_of_files:
        return size_of_files // 2 if shape.dtype == "float32" else size_of_files
    if shape.quantised or shape.parameters is None:
        kind = "quantised" if shape.quantised else f"of type {shape.kind!r}"
        raise ModelError(f"the model is {kind}, its size is not computed from its shape")
    return shape.parameters * DTYPE_BYTES[shape.dtype]
