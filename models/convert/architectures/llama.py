"""Llama 2 and 3, SmolLM2, TinyLlama, Mistral: the plain pre-norm transformer. GGUF files hold the rows of q and k so
that RoPE pairs are neighbours."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from .family import ATTENTION, FFN, NORMS, QKV_BIASES, Family, Metadata, Rule, Shape

OUTPUT_BIAS = Rule("attn_output", "self_attn.o_proj", ("embd",), "bias")


def paired(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules with q and k reordered."""
    return tuple(replace(rule, rope_pairs=rule.target in ("attn_q", "attn_k")) for rule in rules)


def _rules(config: Config) -> tuple[Rule, ...]:
    biases = (*QKV_BIASES, OUTPUT_BIAS) if config.flag("attention_bias") else ()
    return (*NORMS, *paired((*ATTENTION, *biases)), *FFN)


def _metadata(config: Config, shape: Shape) -> Metadata:
    config.only("mlp_bias", lambda x: not x, "false: biases of the FFN have no place in GGUF's llama")
    return {}


LLAMA = Family(
    name="llama",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    rules=_rules,
    metadata=_metadata,
)

MISTRAL = Family(
    name="llama",
    defaults=LLAMA.defaults
    | {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    rules=lambda config: (*NORMS, *paired(ATTENTION), *FFN),
)
