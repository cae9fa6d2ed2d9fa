"""How rows become bytes of a GGML type."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from .._core import ModelError
from ..quantize import quantize_tensor
from .checkpoint import F32


def n_bytes(n_elements: int, kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return n_elements // block * int(size)


def encode(rows: F32, kind: GGMLQuantizationType, threads: int | None, name: str) -> NDArray[np.uint8]:
    """[n_rows, n_columns] -> [n_rows, bytes of a row]. Raises ModelError for what the type cannot hold."""
    if not np.isfinite(rows).all():
        raise ModelError(f"tensor {name} holds a value that is not finite; accepted: numbers")
    rows = np.ascontiguousarray(rows)
    if kind == GGMLQuantizationType.F32:
        return rows.view(np.uint8)
    if kind == GGMLQuantizationType.F16:
        return _to_f16(rows, name).view(np.uint8)
    if kind == GGMLQuantizationType.BF16:
        return _to_bf16(rows, name).view(np.uint8)
    return quantize_tensor(rows, kind, threads, name)


def _to_f16(rows: F32, name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"tensor {name} holds {np.abs(rows).max():g}, beyond f16's 65504; accepted: bf16 or f32")
    return half


def _to_bf16(rows: F32, name: str) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even."""
    bits = rows.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise ModelError(f"tensor {name} holds {np.abs(rows).max():g}, beyond bf16; accepted: f32")
    return rounded
