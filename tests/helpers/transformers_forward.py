"""The same tiny weights in transformers' own models."""

from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from helpers.tiny_models import N_CTX, N_VOCAB, Shape, Weights

# GGUF tensor name -> name inside a layer of a checkpoint
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
FAMILY_NAMES = {
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}


def logits(shape: Shape, weights: Weights, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """float32 [n_tokens, n_vocab]: the logits after every token."""
    model = _model(shape).eval()
    found = model.load_state_dict(_checkpoint(shape, weights), strict=False)
    missing = [name for name in found.missing_keys if not (shape.tied and name == "lm_head.weight")]
    assert not missing and not found.unexpected_keys, found
    model.tie_weights()
    if "rope_freqs.weight" in weights:  # transformers derives these from its configuration
        model.model.rotary_emb.inv_freq /= torch.from_numpy(weights["rope_freqs.weight"])
    with torch.no_grad():
        result: NDArray[np.float32] = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    return result


def _model(shape: Shape) -> Any:
    common: dict[str, Any] = {
        "vocab_size": N_VOCAB,
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "max_position_embeddings": N_CTX,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": shape.tied,
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if shape.architecture == "llama" and shape.n_experts:
        config = transformers.MixtralConfig(
            **common,
            head_dim=shape.head_dim,
            num_local_experts=shape.n_experts,
            num_experts_per_tok=shape.n_experts_used,
        )
        return transformers.MixtralForCausalLM(config)
    if shape.architecture == "qwen3moe":
        config = transformers.Qwen3MoeConfig(
            **common,
            head_dim=shape.head_dim,
            moe_intermediate_size=shape.n_ff,
            num_experts=shape.n_experts,
            num_experts_per_tok=shape.n_experts_used,
            norm_topk_prob=shape.extra.get("expert_weights_norm", True),
        )
        return transformers.Qwen3MoeForCausalLM(config)
    if shape.architecture == "llama":
        factor = shape.extra.get("rope.scaling.factor")
        scaling = {"rope_type": "linear", "factor": factor, "rope_theta": shape.rope_base} if factor else None
        config = transformers.LlamaConfig(**common, head_dim=shape.head_dim, rope_scaling=scaling)
        return transformers.LlamaForCausalLM(config)
    if shape.architecture == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common))
    if shape.architecture == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common, head_dim=shape.head_dim))
    if shape.architecture == "gemma3":
        types = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(shape.n_layers)]
        config = transformers.Gemma3TextConfig(
            **common,
            head_dim=shape.head_dim,
            query_pre_attn_scalar=shape.head_dim,
            sliding_window=shape.sliding_window,
            rope_local_base_freq=10000.0,
            layer_types=types,
        )
        return transformers.Gemma3ForCausalLM(config)
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**common, sliding_window=shape.sliding_window or None))


def _checkpoint(shape: Shape, weights: Weights) -> dict[str, torch.Tensor]:
    names = LAYER_NAMES | FAMILY_NAMES.get(shape.architecture, {})
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    state = _experts(shape, weights)
    for name, values in weights.items():
        stem, kind = name.rsplit(".", 1)
        if stem == "rope_freqs" or stem.endswith("_exps"):
            continue
        if shape.architecture == "gemma3" and stem.endswith("norm"):
            values = values - 1  # GGUF files carry the sum that the model computes
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if shape.architecture == "llama" and part in ("attn_q", "attn_k"):
                values = _halves(shape, values)
            state[f"model.layers.{layer}.{names[part]}.{kind}"] = torch.from_numpy(values)
        else:
            state[f"{top[stem]}.{kind}"] = torch.from_numpy(values)
    return state


def _experts(shape: Shape, weights: Weights) -> dict[str, torch.Tensor]:
    """Gate and up of all experts are one tensor there."""
    state = {}
    for layer in range(shape.n_layers if shape.n_experts else 0):
        gate, up, down = (weights[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        prefix = f"model.layers.{layer}.mlp.experts."
        state[prefix + "gate_up_proj"] = torch.from_numpy(np.concatenate([gate, up], 1))
        state[prefix + "down_proj"] = torch.from_numpy(down)
    return state


def _halves(shape: Shape, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of every head from neighbouring pairs (llama's GGUF files) to first and second half (checkpoints)."""
    pairs = matrix.reshape(-1, shape.head_dim // 2, 2, matrix.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(matrix.shape))
