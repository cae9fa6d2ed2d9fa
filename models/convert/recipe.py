"""How a GGUF tensor is made of a checkpoint's: which rows, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .checkpoint import F32, Checkpoint

CHUNK = 4 << 20  # elements that are converted at a time


@dataclass(frozen=True)
class Part:
    """Rows [first, first + count) of a checkpoint's tensor, seen as [n_rows, n_columns].

    head_dim: rows come head by head, each with the first and the second half of its RoPE channels; they become
    neighbours, as llama's GGUF files want them. 0: the order stays. plus: added to every element.
    """

    source: str
    first: int
    count: int
    head_dim: int = 0
    plus: float = 0

    def chunks(self, checkpoint: Checkpoint, n_columns: int) -> Iterator[F32]:
        """The rows in order, [some, n_columns] at a time."""
        step = self.whole(max(1, CHUNK // n_columns))
        for begin in range(0, self.count, step):
            yield self.rows(checkpoint, begin, min(begin + step, self.count))

    def whole(self, n_rows: int) -> int:
        """About so many rows, a whole number of heads: what may be asked for at a time."""
        unit = self.head_dim or 1
        return min(self.count, max(1, n_rows // unit) * unit)

    def rows(self, checkpoint: Checkpoint, begin: int, end: int) -> F32:
        """[end - begin, n_columns]"""
        rows = checkpoint.rows(self.source, self.first + begin, self.first + end)
        if self.head_dim:
            halves = rows.reshape(-1, 2, self.head_dim // 2, rows.shape[1])
            rows = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
        return rows + np.float32(self.plus) if self.plus else rows


@dataclass(frozen=True)
class Recipe:
    """A tensor of the GGUF file: the rows of its parts, one part after the other; or values of its own."""

    name: str
    shape: tuple[int, ...]  # as NumPy has it: rows of shape[-1] elements
    parts: tuple[Part, ...] = ()
    values: F32 | None = None

    @property
    def n_elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def chunks(self, checkpoint: Checkpoint) -> Iterator[F32]:
        """All elements in order, [some, n_columns] at a time; vectors as [some, 1]."""
        if self.values is not None:
            yield self.values.reshape(-1, 1)
        n_columns = self.shape[-1] if len(self.shape) > 1 else 1
        for part in self.parts:
            yield from part.chunks(checkpoint, n_columns)

    def samples(self, checkpoint: Checkpoint, n_rows: int) -> Iterator[tuple[int, F32]]:
        """Some of what chunks() gives, each with the number of its first row: both ends of the first and last part."""
        if self.values is not None:
            yield 0, self.values.reshape(-1, 1)
        at = 0
        for i, part in enumerate(self.parts):
            if i in (0, len(self.parts) - 1):
                some = part.whole(n_rows)
                yield at, part.rows(checkpoint, 0, some)
                yield at + part.count - some, part.rows(checkpoint, part.count - some, part.count)
            at += part.count
