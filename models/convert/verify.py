"""A written file against its plan, and a few tokens through the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from .. import KvOptions, Model
from .._core import ModelError
from .plan import Plan, Step

N_TOKENS = 8
N_ROWS = 16  # that are compared in each of a few places of a tensor
# largest error of a few rows beside their norm; quantized types: tells a wrong row, not a bad rounding
TOLERANCES = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8}
QUANTIZED = 0.6
SUBNORMAL = 2**-25  # f16's own error at zero


def verify(plan: Plan, path: Path) -> None:
    """Raises ModelError for the first difference."""
    _compare_all(plan, path)
    _run(path)


def _compare_all(plan: Plan, path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if tensors.keys() != {step.recipe.name for step in plan.steps}:
        raise ModelError(f"{path} holds other tensors than were written")
    for step in plan.steps:
        _compare(plan, step, tensors[step.recipe.name])


def _compare(plan: Plan, step: Step, tensor: ReaderTensor) -> None:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    if shape != step.recipe.shape or tensor.tensor_type != step.kind:
        raise ModelError(
            f"tensor {tensor.name} was written as {step.kind.name} {step.recipe.shape}, and read back as"
            f" {tensor.tensor_type.name} {shape}"
        )
    stored = tensor.data.reshape(-1, tensor.data.shape[-1] if len(shape) > 1 else 1)
    tolerance = TOLERANCES.get(step.kind.name, QUANTIZED)
    for first, wanted in step.recipe.samples(plan.checkpoint, N_ROWS):
        got = dequantize(stored[first : first + len(wanted)], step.kind)
        allowed = tolerance * np.linalg.norm(wanted) + (SUBNORMAL * wanted.size**0.5 if tolerance else 0)
        if not np.linalg.norm(got - wanted) <= allowed:
            last = first + len(wanted) - 1
            raise ModelError(f"rows {first} to {last} of tensor {tensor.name} differ from the checkpoint's")


def _run(path: Path) -> None:
    with Model(path, repack=False) as model:
        n_tokens = min(N_TOKENS, model.info.n_ctx_train)
        tokens = [i % model.info.n_vocab for i in range(n_tokens)]
        logits = model.session(n_ctx=n_tokens, kv=KvOptions("f16")).score(tokens)
        if not np.isfinite(logits).all():
            raise ModelError("the converted model computes logits that are not finite")
        model.tokenize("a")
