"""A random tiny Qwen3 as Hugging Face lays one out, for vLLM: configuration, tokenizer and weights, each a file.

Its words are noise. Everything is made of numpy and JSON: PyTorch is not needed on the control node.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, HEAD, CONTEXT = 128, 256, 2, 4, 2, 32, 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config() -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "eos_token_id": VOCABULARY - 1,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
    }


def tokenizer(alphabet: list[str]) -> dict[str, Any]:
    """tokenizer.json: a token for each byte, as byte-level BPE without a merge, and three control tokens."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + n, "content": text, **plain} for n, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(alphabet)},
            "merges": [],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "additional_special_tokens": list(SPECIAL[1:]),
        "model_max_length": CONTEXT,
        "chat_template": TEMPLATE,
    }


def write_weights(target: Path, seed: int = 0) -> None:
    """model.safetensors."""
    random = np.random.default_rng(seed)

    def weights(rows: int, columns: int) -> Any:
        return (random.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": weights(VOCABULARY, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for norm, width in (
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", HEAD),
            ("self_attn.k_norm", HEAD),
        ):
            tensors[f"{name}.{norm}.weight"] = np.ones(width, np.float32)
        for matrix, rows, columns in (
            ("self_attn.q_proj", HEADS * HEAD, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD),
            ("mlp.gate_proj", FEED_FORWARD, HIDDEN),
            ("mlp.up_proj", FEED_FORWARD, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED_FORWARD),
        ):
            tensors[f"{name}.{matrix}.weight"] = weights(rows, columns)
    save_file(tensors, target, metadata={"format": "pt"})


def files(alphabet: list[str]) -> dict[str, Callable[[Path], None]]:
    """The model's files by name, and what writes each."""

    def text(value: dict[str, Any]) -> Callable[[Path], None]:
        def write(target: Path) -> None:
            target.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")

        return write

    return {
        "config.json": text(config()),
        "tokenizer.json": text(tokenizer(alphabet)),
        "tokenizer_config.json": text(tokenizer_config()),
        "model.safetensors": write_weights,
    }
