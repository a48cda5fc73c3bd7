"""config.json of published models, cut down to the keys that decide, and what their own weights' index says they have.

Values are those of the models' repositories. `bytes`: `metadata.total_size` of model.safetensors.index.json.
"""

from typing import Any


def _config(kind: str, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, context: int,
            **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        **more,
    }


QWEN3_8B = _config("qwen3", 36, 4096, 32, 8, 12288, 151936, 40960, head_dim=128)
QWEN3_32B = _config("qwen3", 64, 5120, 64, 8, 25600, 151936, 40960, head_dim=128)
QWEN25_7B = _config("qwen2", 28, 3584, 28, 4, 18944, 152064, 32768)
QWEN25_72B = _config("qwen2", 80, 8192, 64, 8, 29568, 152064, 32768)
LLAMA3_8B = _config("llama", 32, 4096, 32, 8, 14336, 128256, 8192)
QWEN3_30B_A3B = _config("qwen3_moe", 48, 2048, 32, 4, 6144, 151936, 40960, head_dim=128, num_experts=128,
                        num_experts_per_tok=8, moe_intermediate_size=768)  # fmt: skip

# Bytes of the weights, 2 a parameter.
PUBLISHED = [
    (QWEN3_8B, 16_381_470_720),
    (QWEN25_7B, 15_231_233_024),
    (LLAMA3_8B, 16_060_522_496),
    (QWEN3_30B_A3B, 61_064_245_248),
]
