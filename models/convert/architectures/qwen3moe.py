"""Qwen3 with experts in every layer."""

from __future__ import annotations

from ..config import Config
from .family import ATTENTION, HEAD_NORMS, NORMS, Experts, Family, Metadata, Shape
from .qwen2 import QWEN_DEFAULTS
from .qwen3 import no_biases

EXPERT = "mlp.experts.{}."


def _metadata(config: Config, shape: Shape) -> Metadata:
    no_biases(config, shape)
    config.only("decoder_sparse_step", lambda x: x == 1, "1: every layer has experts")
    config.only("mlp_only_layers", lambda x: not x, "an empty list: every layer has experts")
    config.only("norm_topk_prob", lambda x: x is True, "true: GGUF's qwen3moe normalizes the experts' weights")
    return {"expert_feed_forward_length": shape.n_expert_ff}


QWEN3MOE = Family(
    name="qwen3moe",
    defaults=QWEN_DEFAULTS
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "max_window_layers": 0,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
    },
    rules=lambda config: (*NORMS, *ATTENTION, *HEAD_NORMS),
    metadata=_metadata,
    experts=Experts(
        EXPERT + "gate_proj.weight", EXPERT + "up_proj.weight", EXPERT + "down_proj.weight", "mlp.gate.weight"
    ),
    expert_ff="moe_intermediate_size",
    n_experts=("num_local_experts", "num_experts"),
)
