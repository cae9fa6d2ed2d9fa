"""Mixtral: Mistral with experts; GGUF calls it llama."""

from __future__ import annotations

from .family import ATTENTION, NORMS, Experts, Family
from .llama import MISTRAL, paired

EXPERT = "block_sparse_moe.experts.{}."

MIXTRAL = Family(
    name="llama",
    defaults=MISTRAL.defaults
    | {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    rules=lambda config: (*NORMS, *paired(ATTENTION)),
    experts=Experts(EXPERT + "w1.weight", EXPERT + "w3.weight", EXPERT + "w2.weight", "block_sparse_moe.gate.weight"),
)
