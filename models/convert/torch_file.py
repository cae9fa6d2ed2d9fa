"""pytorch_model.bin: pickled tensors, which torch loads in its weights-only mode (no code of the file runs)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .._core import ArgumentError, FileError
from .checkpoint import F32, ITEM_BYTES, Stored, widen

KINDS = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
REOPEN_AFTER = 128 << 20  # bytes: pages of a mapping stay resident until it is let go


class TorchShard:
    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("torch") is None:
            raise ArgumentError(f"{path.name} needs PyTorch to be read: pip install torch, or use safetensors")
        self._path, self._mapped = path, True
        self._state = self._load()
        self._bytes_read = 0
        kinds = {name: KINDS.get(str(tensor.dtype), str(tensor.dtype)) for name, tensor in self._state.items()}
        self._tensors = [Stored(n, kinds[n], tuple(tensor.shape), path) for n, tensor in self._state.items()]
        self.release()

    def tensors(self) -> list[Stored]:
        return self._tensors

    def rows(self, tensor: Stored, begin: int, end: int) -> F32:
        import torch

        if self._mapped and self._bytes_read > REOPEN_AFTER:
            self.release()
        if not self._state:
            self._state = self._load()
        self._bytes_read += (end - begin) * tensor.n_columns * ITEM_BYTES[tensor.kind]
        part = self._state[tensor.name].detach().reshape(-1, tensor.n_columns)[begin:end]
        values: NDArray[Any] = (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()
        return widen(values).copy()

    def release(self) -> None:
        self._state, self._bytes_read = {}, 0

    def _load(self) -> dict[str, Any]:
        import torch

        try:
            try:
                state = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format of old versions cannot be mapped
                self._mapped = False
                state = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch documents no exceptions
            raise FileError(f"{self._path} is no file of weights alone: {str(error)[:200]}") from error
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise FileError(f"{self._path} holds {type(state).__name__}; accepted: tensors by name")
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                raise FileError(f"{name} in {self._path} is {type(value).__name__}; accepted: dense tensors")
        return state
