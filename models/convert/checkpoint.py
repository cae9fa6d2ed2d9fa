"""The weights of a checkpoint: which file holds which tensor, and its rows as f32 on demand.

Nothing is trusted: the names in an index must be plain files of the folder, every header is checked by its own library,
and what the index promises must be there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .._core import FileError, ModelError
from .config import read_object, shown

F32 = NDArray[np.float32]

LONGEST_NAME = 200  # of a file, in characters

# what a checkpoint calls its types -> bytes of an element
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Stored:
    """A tensor as the checkpoint has it."""

    name: str
    kind: str  # "F32", "F16", "BF16", or what else the file says
    shape: tuple[int, ...]
    file: Path

    @property
    def n_columns(self) -> int:
        """Elements of a row. A vector is a column: one element a row, so that rows can be picked of it too."""
        return self.shape[-1] if len(self.shape) > 1 else 1


class Shard(Protocol):
    """A file of tensors."""

    def tensors(self) -> list[Stored]: ...
    def rows(self, tensor: Stored, begin: int, end: int) -> F32:
        """[end - begin, n_columns]: rows of the tensor seen as two-dimensional."""

    def release(self) -> None:
        """Lets go of memory until rows are asked for again."""


class SafetensorsShard:
    """Rows are read rather than mapped, so that what was read does not stay resident."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, framework="np") as file:  # checks sizes and offsets
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                self._tensors = [Stored(n, str(s.get_dtype()), tuple(s.get_shape()), path) for n, s in slices.items()]
            with path.open("rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
                header = json.loads(raw.read(length))
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise FileError(f"{path} is no safetensors file: {str(error)[:200]}") from error
        self._begin = {name: 8 + length + header[name]["data_offsets"][0] for name in slices}

    def tensors(self) -> list[Stored]:
        return self._tensors

    def rows(self, tensor: Stored, begin: int, end: int) -> F32:
        row_bytes = tensor.n_columns * ITEM_BYTES[tensor.kind]
        kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.kind]
        count = (end - begin) * tensor.n_columns
        try:
            values = np.fromfile(self._path, kind, count, offset=self._begin[tensor.name] + begin * row_bytes)
        except OSError as error:
            raise FileError(f"cannot read {self._path}: {error.strerror or error}") from error
        if values.size != count:
            raise FileError(f"{self._path} was shortened while it was read")
        return widen(values).reshape(end - begin, tensor.n_columns)

    def release(self) -> None:
        pass


def widen(values: NDArray[np.float32 | np.float16 | np.uint16]) -> F32:
    """f32 of what a checkpoint holds; bf16 comes as its bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


class Checkpoint:
    """All tensors of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        self._shards: dict[Path, Shard] = {}
        self._last: Path | None = None  # the file that rows were read of
        for path, promised in _files(folder).items():
            shard = _open(path)
            self._shards[path] = shard
            found = {tensor.name: tensor for tensor in shard.tensors()}
            if promised is not None and promised != found.keys():
                _disagree(path, promised, set(found))
            self.tensors |= found

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def rows(self, name: str, begin: int, end: int) -> F32:
        """Rows of a tensor as its shard gives them; one shard at a time holds memory."""
        tensor = self.tensors[name]
        if self._last is not None and self._last != tensor.file:
            self._shards[self._last].release()
        self._last = tensor.file
        return self._shards[tensor.file].rows(tensor, begin, end)


def _open(path: Path) -> Shard:
    if path.suffix == ".safetensors":
        return SafetensorsShard(path)
    from .torch_file import TorchShard

    return TorchShard(path)


def _disagree(path: Path, promised: set[str], found: set[str]) -> None:
    lacks, adds = sorted(promised - found), sorted(found - promised)
    if lacks:
        raise ModelError(f"{path} lacks {_some(lacks)}, which the index says it holds")
    raise ModelError(f"{path} holds {_some(adds)}, which the index does not name")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The files of weights, each with the names that an index promises of it (None: there is no index)."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).exists():
            return {member(folder, single): None}
        index = folder / f"{single}.index.json"
        if index.exists():
            return _indexed(folder, member(folder, index.name))
    raise FileError(
        f"{folder} has no weights; accepted: model.safetensors, pytorch_model.bin, or either's .index.json and shards"
    )


def _indexed(folder: Path, index: Path) -> dict[Path, set[str] | None]:
    table = read_object(index).child("weight_map")
    files: dict[Path, set[str] | None] = {}
    promised: dict[str, set[str]] = {}
    for name in table.keys():  # noqa: SIM118 (no mapping)
        promised.setdefault(table.text(name), set()).add(name)
    if not promised:
        raise FileError(f"{index} names no tensors in weight_map")
    for file, names in sorted(promised.items()):
        if not file.endswith((".safetensors", ".bin")):
            raise FileError(f"{index} names the shard {shown(file)}; accepted: *.safetensors and *.bin")
        files[member(folder, file)] = names
    return files


def member(folder: Path, name: str) -> Path:
    """A file of the folder by its plain name. Links may lead to the folder's own files, or from a Hugging Face cache's
    snapshot to its blobs; anything else would let a stranger's index read any file."""
    if name != Path(name).name or name in (".", "..") or "\\" in name or "\0" in name or ":" in name:
        raise FileError(f"{shown(name)} is no plain file name; accepted: a file of {folder}")
    path = folder / name
    if len(name) > LONGEST_NAME or not path.is_file():
        raise FileError(f"{folder / name[:LONGEST_NAME]} is missing or no file")
    home, target = folder.resolve(), path.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise FileError(f"{path} is a link to {target}; accepted: links inside {folder}")
    return path
