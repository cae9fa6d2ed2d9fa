"""Rotary positions: from a configuration's parameters to GGUF's keys and tensors.

Two spellings are read: rope_theta beside rope_scaling, and rope_parameters, which may be nested by the kind of layer.
The formulas are those of transformers' modeling_rope_utils, of which GGUF's readers compute a part by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .._core import ModelError
from .architectures.family import Family, Metadata, Shape
from .checkpoint import F32
from .config import Config, shown
from .recipe import Recipe

OLD_NAMES = {"su": "longrope"}


@dataclass(frozen=True)
class Rope:
    metadata: Metadata
    tensors: list[Recipe] = field(default_factory=list)


def read_rope(config: Config, family: Family, shape: Shape) -> Rope:
    key = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    given = config.child(key)
    if "full_attention" in given.keys():  # noqa: SIM118 (no mapping)
        given = given.child("full_attention")
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if kind == "yarn" and family.name == "phi3":  # what its first files called it
        kind = "longrope"
    if kind not in family.rope_types:
        raise ModelError(
            f"the RoPE type in {given.name('rope_type')} is {shown(kind)}; accepted: {', '.join(family.rope_types)}"
        )
    outer = config.with_defaults({"rope_theta": 10000.0} | family.defaults)
    theta = (given if given.get("rope_theta") is not None else outer).number("rope_theta", 1)
    n_dims = _n_dims(config, given, family, shape)
    made = {"default": _plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}[kind](
        config, given, shape, theta, n_dims
    )
    plain: Metadata = {"rope.dimension_count": n_dims, "rope.freq_base": theta}
    return Rope(plain | made.metadata, made.tensors)


def _n_dims(config: Config, given: Config, family: Family, shape: Shape) -> int:
    """Rotated channels of a head."""
    source = given if given.get("partial_rotary_factor") is not None else config
    if source.get("partial_rotary_factor") is None:
        return shape.head_dim
    n_dims = int(shape.head_dim * source.number("partial_rotary_factor", 0, 1))
    if n_dims < 2 or n_dims % 2 or (n_dims != shape.head_dim and family.name != "phi3"):
        source.refuse("partial_rotary_factor", "1, or for phi3 a share that makes an even number of channels")
    return n_dims


def _plain(config: Config, given: Config, shape: Shape, theta: float, n_dims: int) -> Rope:
    return Rope({})


def _linear(config: Config, given: Config, shape: Shape, theta: float, n_dims: int) -> Rope:
    return Rope({"rope.scaling.type": "linear", "rope.scaling.factor": given.number("factor", 1e-3, 1e6)})


def _original_context(config: Config, given: Config, shape: Shape) -> int:
    key = "original_max_position_embeddings"
    outer = config.get(key) is not None  # transformers gives it priority
    if not outer and given.get(key) is None:
        return shape.n_ctx
    return (config if outer else given).integer(key, 1, 1 << 30)


def _llama3(config: Config, given: Config, shape: Shape, theta: float, n_dims: int) -> Rope:
    """Llama 3.1: long wavelengths are slowed down by `factor`, short ones are not, those between by a mix."""
    factor = given.number("factor", 1, 1e6)
    low, high = given.number("low_freq_factor", 1e-3, 1e6), given.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        given.refuse("high_freq_factor", f"more than low_freq_factor, {low:g}")
    frequency = theta ** (-np.arange(0, n_dims, 2) / n_dims)
    turns = _original_context(config, given, shape) * frequency / (2 * math.pi)
    mix = np.clip((turns - low) / (high - low), 0, 1)
    factors = 1 / ((1 - mix) / factor + mix)
    return Rope({}, [_factors("rope_freqs", factors)])


def _yarn(config: Config, given: Config, shape: Shape, theta: float, n_dims: int) -> Rope:
    original = _original_context(config, given, shape)
    factor = given.number("factor", 1, 1e6) if given.get("factor") is not None else shape.n_ctx / original
    if factor < 1:
        given.refuse("factor", "a number of 1 or more")
    given.only("truncate", lambda x: x in (None, True), "true: GGUF's YaRN rounds the range that it mixes in")
    metadata: Metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
    }
    for key in ("beta_fast", "beta_slow"):
        if given.get(key):
            metadata[f"rope.scaling.yarn_{key}"] = given.number(key, 1e-3, 1e6)
    attention = _yarn_attention(given, factor)
    if attention is not None:  # readers multiply by 1 + 0.1 ln(factor) themselves
        metadata["rope.scaling.attn_factor"] = attention / _mscale(factor, 1)
    return Rope(metadata)


def _yarn_attention(given: Config, factor: float) -> float | None:
    """The scale of cos and sin where it is not the usual one."""
    if given.get("attention_factor") is not None:
        return given.number("attention_factor", 1e-3, 1e3)
    if given.get("mscale") and given.get("mscale_all_dim"):
        return _mscale(factor, given.number("mscale")) / _mscale(factor, given.number("mscale_all_dim"))
    return None


def _mscale(factor: float, scale: float) -> float:
    return 1 + 0.1 * scale * math.log(factor) if factor > 1 else 1


def _longrope(config: Config, given: Config, shape: Shape, theta: float, n_dims: int) -> Rope:
    """Phi-3: one factor for each pair of channels, one set for short contexts and one for long ones."""
    original = _original_context(config, given, shape)
    factor = given.number("factor", 1e-3, 1e6) if given.get("factor") is not None else shape.n_ctx / original
    if given.get("attention_factor") is not None:
        attention = given.number("attention_factor", 1e-3, 1e3)
    else:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    tensors = [
        _factors(f"rope_factors_{length}", np.array(given.numbers(f"{length}_factor", n_dims // 2)))
        for length in ("long", "short")
    ]
    return Rope(
        {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": attention,
        },
        tensors,
    )


def _factors(name: str, values: F32 | np.ndarray) -> Recipe:
    return Recipe(f"{name}.weight", (len(values),), values=np.asarray(values, np.float32))
