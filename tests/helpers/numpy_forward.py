"""The forward passes in plain NumPy, float64: what the architectures are, for the native ones to be compared with.

Written from the model papers and transformers' documentation; knows nothing of ggml.
"""

import numpy as np
from numpy.typing import NDArray

from helpers.tiny_models import Shape, Weights

Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def rope(x: Array, shape: Shape, base: float, factors: Array | None, scale: float) -> Array:
    """x [n_tokens, n_heads, head_dim]. llama files hold adjacent pairs, the others halves."""
    half = shape.head_dim // 2
    frequency = base ** (-np.arange(half) * 2.0 / shape.head_dim) * scale
    if factors is not None:
        frequency = frequency / factors
    angle = np.arange(len(x))[:, None] * frequency
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    out = np.empty_like(x)
    if shape.architecture == "llama":
        a, b = x[..., 0::2], x[..., 1::2]
        out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    else:
        a, b = x[..., :half], x[..., half:]
        out[..., :half], out[..., half:] = a * cos - b * sin, a * sin + b * cos
    return out


def probabilities(q: Array, k: Array, window: int) -> Array:
    """q [n, n_heads, d], k [n, n_kv_heads, d] -> [n_heads, n, n]; causal, newest `window` keys (0: all)."""
    n, n_heads, head_dim = q.shape
    k = np.repeat(k, n_heads // k.shape[1], 1)
    logits = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(head_dim)
    i, j = np.mgrid[:n, :n]
    seen = (j <= i) & ((i - j < window) if window else True)
    logits = np.where(seen, logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def attention(p: Array, v: Array) -> Array:
    """p [n_heads, n, n], v [n, n_kv_heads, d] -> [n, n_heads * d]."""
    v = np.repeat(v, len(p) // v.shape[1], 1)
    result: Array = np.einsum("hij,jhd->ihd", p, v).reshape(len(v), -1)
    return result


def experts(shape: Shape, w: dict[str, Array], x: Array) -> Array:
    """x [n, n_embd] -> [n, n_embd]; each token through its most probable experts, weighted by their probabilities."""
    logits = x @ w["ffn_gate_inp.weight"].T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for i, row in enumerate(x):
        chosen = np.argsort(-p[i])[: shape.n_experts_used]
        share = p[i, chosen] / (p[i, chosen].sum() if shape.extra.get("expert_weights_norm", True) else 1)
        for k, weight in zip(chosen, share, strict=True):
            gate, up = w["ffn_gate_exps.weight"][k] @ row, w["ffn_up_exps.weight"][k] @ row
            out[i] += weight * (w["ffn_down_exps.weight"][k] @ (silu(gate) * up))
    return out


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def logits(shape: Shape, weights: Weights, tokens: NDArray[np.int32], attended: list[Array] | None = None) -> Array:
    """float64 [n_tokens, n_vocab]. attended: takes the attention probabilities of each layer, [n_heads, n, n]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    gemma = shape.architecture == "gemma3"
    x = w["token_embd.weight"][tokens] * (np.sqrt(shape.n_embd) if gemma else 1)
    for i in range(shape.n_layers):
        x = layer(shape, {k.removeprefix(f"blk.{i}."): v for k, v in w.items()}, i, x, attended)
    x = rms_norm(x, w["output_norm.weight"])
    return x @ w["token_embd.weight" if shape.tied else "output.weight"].T


def layer(shape: Shape, w: dict[str, Array], index: int, x: Array, attended: list[Array] | None = None) -> Array:
    gemma = shape.architecture == "gemma3"
    sliding = shape.sliding_window if not gemma or (index + 1) % 6 else 0
    base = 10000.0 if gemma and sliding else shape.rope_base
    scale = 1 / shape.extra.get("rope.scaling.factor", 1.0)
    h = rms_norm(x, w["attn_norm.weight"])
    if shape.fused:
        sizes = np.cumsum([shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim])
        q, k, v = np.split(h @ w["attn_qkv.weight"].T, sizes, axis=1)
    else:
        q, k, v = (h @ w[f"attn_{n}.weight"].T + w.get(f"attn_{n}.bias", np.zeros(1)) for n in "qkv")
    q, k, v = (t.reshape(len(x), -1, shape.head_dim) for t in (q, k, v))
    if shape.qk_norms:
        q, k = rms_norm(q, w["attn_q_norm.weight"]), rms_norm(k, w["attn_k_norm.weight"])
    factors = w.get("rope_freqs.weight")
    q, k = (rope(t, shape, base, factors, scale) for t in (q, k))
    p = probabilities(q, k, sliding)
    if attended is not None:
        attended.append(p)
    out = attention(p, v) @ w["attn_output.weight"].T
    x = x + (rms_norm(out, w["post_attention_norm.weight"]) if shape.post_norms else out)
    h = rms_norm(x, w["ffn_norm.weight"])
    if shape.n_experts:
        return x + experts(shape, w, h)
    if shape.fused:
        gate, up = np.split(h @ w["ffn_up.weight"].T, 2, axis=1)
    else:
        gate, up = h @ w["ffn_gate.weight"].T, h @ w["ffn_up.weight"].T
    out = ((gelu if gemma else silu)(gate) * up) @ w["ffn_down.weight"].T
    return x + (rms_norm(out, w["post_ffw_norm.weight"]) if shape.post_norms else out)
