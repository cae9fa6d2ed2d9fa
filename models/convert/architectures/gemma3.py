"""Gemma 3 (text, also as a part of the multimodal model): norms before and after each block and on heads, sliding
windows in five layers of six. GGUF files hold 1 + w of every norm's weight."""

from __future__ import annotations

from dataclasses import replace

from ..._core import ModelError
from ..config import Config, shown
from .family import ATTENTION, FFN, HEAD_NORMS, Family, Metadata, Rule, Shape

PATTERN = 6  # every sixth layer sees everything: not a key of the file, but known to those who run it
LAYERS_27B = 62  # the number of layers by which those tell the 27B model, whose attention scale differs

NORMS = (
    Rule("attn_norm", "input_layernorm", ("embd",)),
    Rule("post_attention_norm", "post_attention_layernorm", ("embd",)),
    Rule("ffn_norm", "pre_feedforward_layernorm", ("embd",)),
    Rule("post_ffw_norm", "post_feedforward_layernorm", ("embd",)),
)


def _rules(config: Config) -> tuple[Rule, ...]:
    return (*(replace(rule, plus=1) for rule in (*NORMS, *HEAD_NORMS)), *ATTENTION, *FFN)


def _check_layers(config: Config, shape: Shape) -> None:
    known = ["full_attention" if (i + 1) % PATTERN == 0 else "sliding_attention" for i in range(shape.n_layers)]
    config.only("layer_types", lambda x: x is None or x == known, f"full_attention in every layer {PATTERN}")
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        config.only(key, lambda x: x is None or x == PATTERN or config.get("layer_types") is not None, str(PATTERN))


def _metadata(config: Config, shape: Shape) -> Metadata:
    _check_layers(config, shape)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention_bias", "use_bidirectional_attention"):
        config.only(key, lambda x: not x, "null: GGUF's gemma3 has none")
    scale = shape.n_embd / shape.n_heads if shape.n_layers == LAYERS_27B else shape.head_dim
    config.only("query_pre_attn_scalar", lambda x: x == scale, f"{scale:g}, which GGUF's gemma3 implies")
    rope = config.child("rope_parameters").child("sliding_attention")
    if rope.get("rope_type") not in (None, "default"):
        raise ModelError(f"{rope.name('rope_type')} is {shown(rope.get('rope_type'))}; accepted: default")
    local = rope if rope.get("rope_theta") else config
    key = "rope_theta" if rope.get("rope_theta") else "rope_local_base_freq"
    return {
        "attention.sliding_window": config.integer("sliding_window", 1, 1 << 30),
        "rope.freq_base_swa": local.number(key, 1),
    }


GEMMA3 = Family(
    name="gemma3",
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    rules=_rules,
    metadata=_metadata,
    rope_types=("default", "linear"),
    activation="hidden_activation",
    activations=("gelu_pytorch_tanh",),
    has_windows=True,
    norm_plus=1,
)

GEMMA3_MULTIMODAL = replace(
    GEMMA3,
    text_config=True,
    roots=(("language_model.model.", "language_model.lm_head"), ("model.language_model.", "lm_head")),
    ignored=(*GEMMA3.ignored, "vision_tower.", "multi_modal_projector."),
)
