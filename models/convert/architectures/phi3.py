"""Phi-3 and Phi-3.5 mini, Phi-4 mini: one matrix for q, k and v and one for the FFN's gate and up."""

from __future__ import annotations

from ..config import Config
from .family import ATTENTION, FFN, NORMS, Family, Metadata, Rule, Shape

FUSED = (
    Rule("attn_qkv", "self_attn.qkv_proj", ("qkv", "embd")),
    ATTENTION[3],
    Rule("ffn_up", "mlp.gate_up_proj", ("2ff", "embd")),
    FFN[2],
)


def _metadata(config: Config, shape: Shape) -> Metadata:
    if config.get("sliding_window") is None:
        return {}
    return {"attention.sliding_window": config.integer("sliding_window", 1, 1 << 30)}


PHI3 = Family(
    name="phi3",
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    rules=lambda config: (*NORMS, *FUSED),
    metadata=_metadata,
    rope_types=("default", "longrope"),
    has_windows=True,
)
