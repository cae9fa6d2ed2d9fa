"""Tiny random-weight GGUF files of every architecture, f32, and their shapes as data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

N_VOCAB = 96
N_CTX = 256
Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """A tiny model. Weight matrices are [n_out, n_in], as NumPy multiplies and as GGUF stores them; experts in front."""

    architecture: str
    n_layers: int = 2
    n_embd: int = 32
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 8
    n_ff: int = 48  # of one expert, where there are experts
    n_experts: int = 0
    n_experts_used: int = 0
    rope_base: float = 10000.0
    tied: bool = False
    biases: bool = False
    qk_norms: bool = False
    fused: bool = False
    post_norms: bool = False
    sliding_window: int = 0
    rope_factors: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # further metadata, without the architecture's prefix


SHAPES = {
    "llama": Shape("llama"),
    "llama-tied": Shape("llama", tied=True, n_kv_heads=1),
    "llama-rope-factors": Shape("llama", rope_factors=True, rope_base=500000.0),
    "llama-linear": Shape("llama", extra={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "qwen2": Shape("qwen2", biases=True),
    "qwen3": Shape("qwen3", qk_norms=True, head_dim=16),
    "gemma3": Shape(
        "gemma3", n_layers=7, qk_norms=True, post_norms=True, tied=True, sliding_window=12, rope_base=1000000.0
    ),
    "mixtral": Shape("llama", n_experts=8, n_experts_used=2),
    "qwen3moe": Shape("qwen3moe", qk_norms=True, head_dim=16, n_experts=24, n_experts_used=5),
    "qwen3moe-one": Shape("qwen3moe", qk_norms=True, n_experts=4, n_experts_used=1),
    "qwen3moe-unnormalized": Shape(
        "qwen3moe", qk_norms=True, n_experts=8, n_experts_used=3, extra={"expert_weights_norm": False}
    ),
    "phi3": Shape("phi3", fused=True),
    "phi3-window": Shape("phi3", fused=True, sliding_window=12),
}


def random_weights(shape: Shape, seed: int = 0) -> Weights:
    """Large enough that logits are not flat, norms that are not all ones."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * 1.2 / np.sqrt(shape[-1])).astype(np.float32)

    def norm(n: int) -> NDArray[np.float32]:
        return (1 + 0.2 * random.standard_normal(n)).astype(np.float32)

    q_dim, kv_dim = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    weights = {"token_embd.weight": matrix(N_VOCAB, shape.n_embd) * 4, "output_norm.weight": norm(shape.n_embd)}
    if not shape.tied:
        weights["output.weight"] = matrix(N_VOCAB, shape.n_embd) * 2
    if shape.rope_factors:
        weights["rope_freqs.weight"] = np.linspace(1, 8, shape.head_dim // 2, dtype=np.float32)
    for i in range(shape.n_layers):
        p = f"blk.{i}."
        weights[p + "attn_norm.weight"] = norm(shape.n_embd)
        weights[p + "ffn_norm.weight"] = norm(shape.n_embd)
        weights[p + "attn_output.weight"] = matrix(shape.n_embd, q_dim)
        if shape.n_experts:
            weights[p + "ffn_gate_inp.weight"] = matrix(shape.n_experts, shape.n_embd)
            weights[p + "ffn_gate_exps.weight"] = matrix(shape.n_experts, shape.n_ff, shape.n_embd)
            weights[p + "ffn_up_exps.weight"] = matrix(shape.n_experts, shape.n_ff, shape.n_embd)
            weights[p + "ffn_down_exps.weight"] = matrix(shape.n_experts, shape.n_embd, shape.n_ff)
        else:
            weights[p + "ffn_down.weight"] = matrix(shape.n_embd, shape.n_ff)
        if shape.fused:
            weights[p + "attn_qkv.weight"] = matrix(q_dim + 2 * kv_dim, shape.n_embd)
            weights[p + "ffn_up.weight"] = matrix(2 * shape.n_ff, shape.n_embd)
        else:
            for name, n in (("q", q_dim), ("k", kv_dim), ("v", kv_dim)):
                weights[p + f"attn_{name}.weight"] = matrix(n, shape.n_embd)
                if shape.biases:
                    weights[p + f"attn_{name}.bias"] = 0.5 * random.standard_normal(n).astype(np.float32)
            if not shape.n_experts:
                weights[p + "ffn_gate.weight"] = matrix(shape.n_ff, shape.n_embd)
                weights[p + "ffn_up.weight"] = matrix(shape.n_ff, shape.n_embd)
        if shape.qk_norms:
            weights[p + "attn_q_norm.weight"] = norm(shape.head_dim)
            weights[p + "attn_k_norm.weight"] = norm(shape.head_dim)
        if shape.post_norms:
            weights[p + "post_attention_norm.weight"] = norm(shape.n_embd)
            weights[p + "post_ffw_norm.weight"] = norm(shape.n_embd)
    return weights


def metadata(shape: Shape) -> dict[str, Any]:
    values: dict[str, Any] = {
        "block_count": shape.n_layers,
        "context_length": N_CTX,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_base,
    }
    if shape.sliding_window:
        values["attention.sliding_window"] = shape.sliding_window
    if shape.n_experts:
        values["expert_count"] = shape.n_experts
        values["expert_used_count"] = shape.n_experts_used
    if shape.architecture == "qwen3moe":
        values["feed_forward_length"] = 3 * shape.n_ff  # of dense layers, which there are none of
        values["expert_feed_forward_length"] = shape.n_ff
    return {f"{shape.architecture}.{key}": value for key, value in (values | shape.extra).items()}


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def add_byte_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary of N_VOCAB tokens: printable ASCII, and an end token."""
    tokens = [chr(33 + i) for i in range(N_VOCAB - 2)] + ["\u0120", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (N_VOCAB - 1) + [3])
    writer.add_token_merges(["a b"] if "ab" in tokens else [])
    writer.add_eos_token_id(N_VOCAB - 1)


def write(path: Path, shape: Shape, weights: Weights, *, vocabulary: bool = False, **overrides: Any) -> Path:
    """overrides: metadata by its full key, dots written as __; None leaves a key out."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in (metadata(shape) | changes).items():
        if value is not None:
            add_value(writer, key, value)
    if vocabulary:
        add_byte_vocabulary(writer)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
