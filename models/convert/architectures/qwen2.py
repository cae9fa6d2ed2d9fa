"""Qwen2 and Qwen2.5: biases on q, k and v."""

from .family import ATTENTION, FFN, NORMS, QKV_BIASES, Family

QWEN_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Family(name="qwen2", defaults=QWEN_DEFAULTS, rules=lambda config: (*NORMS, *ATTENTION, *QKV_BIASES, *FFN))
