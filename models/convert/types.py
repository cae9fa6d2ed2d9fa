"""Which GGML type each tensor gets, and how rows become bytes of it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from .._core import ArgumentError, ModelError
from .checkpoint import F32
from .recipe import Recipe

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
}


def plan_types(recipes: Iterable[Recipe], type_name: str) -> dict[str, GGMLQuantizationType]:
    """By tensor name. Vectors and the small matrix that routes tokens to experts stay f32."""
    if type_name not in FILE_TYPES:
        raise ArgumentError(f"the type is {type_name!r}; accepted: {', '.join(FILE_TYPES)}")
    kind = GGMLQuantizationType[type_name.upper()]
    f32 = GGMLQuantizationType.F32
    return {
        recipe.name: f32 if len(recipe.shape) == 1 or "ffn_gate_inp" in recipe.name else kind for recipe in recipes
    }


def n_bytes(recipe: Recipe, kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return recipe.n_elements // block * size


def encode(rows: F32, kind: GGMLQuantizationType, name: str) -> NDArray[np.uint8]:
    """[n_rows, n_columns] -> [n_rows, bytes of a row]. Raises ModelError for what the type cannot hold."""
    if not np.isfinite(rows).all():
        raise ModelError(f"tensor {name} holds a value that is not finite; accepted: numbers")
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(rows).view(np.uint8)
    if kind == GGMLQuantizationType.BF16:
        return _to_bf16(rows, name).view(np.uint8)
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"tensor {name} holds {np.abs(rows).max():g}, beyond f16's 65504; accepted: bf16 or f32 for it")
    return half.view(np.uint8)


def _to_bf16(rows: F32, name: str) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise ModelError(f"tensor {name} holds {np.abs(rows).max():g}, beyond bf16; accepted: f32 for it")
    return rounded
