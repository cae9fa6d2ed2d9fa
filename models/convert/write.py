"""A plan to a file, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .plan import Plan, Step
from .types import encode

_TYPES = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
_IN_ARRAYS = {int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}


def write(plan: Plan, path: Path, threads: int | None, progress: Callable[[float], None]) -> None:
    """progress: called with 0..1 of the plan's bytes."""
    writer = GGUFWriter(path, plan.architecture)
    try:
        for key, value in plan.metadata.items():
            _add(writer, key, value)
        for step in plan.steps:
            writer.add_tensor_info(step.recipe.name, step.recipe.shape, np.dtype(np.float32), step.n_bytes, step.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        for step in plan.steps:
            writer.write_tensor_data(_data(step, plan.checkpoint, threads, _Share(progress, done, plan.n_bytes)))
            done += step.n_bytes
    finally:
        writer.close()


@dataclass(frozen=True)
class _Share:
    """Progress of one tensor within that of the whole."""

    report: Callable[[float], None]
    before: int  # bytes
    total: int

    def __call__(self, done: int) -> None:
        self.report((self.before + done) / self.total)


def _data(
    step: Step, checkpoint: Checkpoint, threads: int | None, progress: Callable[[int], None]
) -> NDArray[np.uint8]:
    """A tensor as the file holds it. progress: called with the bytes that are made."""
    out = np.empty(step.n_bytes, np.uint8)
    at = 0
    for rows in step.recipe.chunks(checkpoint):
        made = encode(rows, step.kind, threads, step.recipe.name).reshape(-1)
        out[at : at + made.size] = made
        at += made.size
        progress(at)
    assert at == out.size
    return out


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if not isinstance(value, list):
        writer.add_key_value(key, value, _TYPES[type(value)])
    elif value:  # the format has no empty arrays: they say the same as no key
        writer.add_key_value(key, value, GGUFValueType.ARRAY, _IN_ARRAYS[type(value[0])])
