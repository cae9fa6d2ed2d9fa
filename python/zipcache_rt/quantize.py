"""A GGUF file in a smaller type: `python -m zipcache_rt.quantize IN.gguf OUT.gguf --type q4_k_m`."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import _core, checks, cli
from ._core import ArgumentError, FileError, ModelError
from .options import KvOptions
from .quantize_plan import ALIASES, MIXES, Facts, Tensor, file_type, find_mix, plan
from .whole_file import replacing

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, ReaderTensor

__all__ = ["Facts", "Plan", "Tensor", "file_type", "plan", "quantize_file", "quantize_tensor"]

SLICE = 2**24  # elements that are floats at one time: bounds memory, and the wait for Ctrl-C
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")  # true of a part, not of what it becomes
Progress = Callable[[float], None]


def need_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ArgumentError("writing GGUF files needs the package gguf: pip install 'zipcache-rt[convert]'")


def quantize_tensor(
    values: NDArray[np.float32],
    kind: GGMLQuantizationType,
    threads: int | None = None,
    name: str = "the tensor",
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """float32 [..., n_columns] -> uint8 [..., bytes of a row], as GGUFWriter.add_tensor(raw_dtype=kind) takes it.

    The same bytes on any number of threads (None: one a core). progress: called with 0..1. Raises ArgumentError for a
    shape or a type that cannot be, ModelError for a value that the type cannot hold; both say `name`.
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim < 1 or not values.size:
        raise ArgumentError(f"{name} is no array of float32 with elements")
    number = checks.integer(kind, "kind", 0, 2**31 - 1, "a GGMLQuantizationType")
    return _pack(values, lambda rows: rows, number, _threads(threads), name, progress or (lambda done: None))


def _threads(threads: int | None) -> int:
    return 0 if threads is None else checks.integer(threads, "threads", 1, 512, "1 to 512, or None for one a core")


def _pack(
    stored: NDArray[Any],
    to_float: Callable[[NDArray[Any]], NDArray[np.float32]],
    kind: int,
    threads: int,
    name: str,
    progress: Progress,
) -> NDArray[np.uint8]:
    """Rows of what is stored, a slice at a time through floats to packed bytes."""
    rows = stored.reshape(-1, stored.shape[-1])
    step = max(1, SLICE // rows.shape[1])
    packed: NDArray[np.uint8] | None = None
    for first in range(0, len(rows), step):
        part = np.ascontiguousarray(to_float(rows[first : first + step]), np.float32)
        made = _core.quantize(part, kind, threads, name)
        if packed is None:
            packed = np.empty((len(rows), made.shape[1]), np.uint8)
        packed[first : first + step] = made
        progress(min(1.0, (first + step) / len(rows)))
    assert packed is not None
    return packed.reshape(*stored.shape[:-1], packed.shape[1])


@dataclass(frozen=True)
class Step:
    """One tensor on its way. Shapes are NumPy's."""

    source: ReaderTensor
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    n_bytes: int

    @property
    def is_copy(self) -> bool:
        return self.source.tensor_type == self.kind


@dataclass(frozen=True)
class Plan:
    """What quantizing a file will do, tensor by tensor in the order they are written."""

    source: Path
    type_name: str
    reader: GGUFReader
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, source: Path, type_name: str, *, allow_requantize: bool = False) -> Plan:
        """Raises FileError and ModelError for what cannot be read or would not run here, ArgumentError for the type."""
        find_mix(type_name)
        need_gguf()
        from gguf import GGML_QUANT_SIZES

        # checks all that the plain reader trusts
        report = _core.inspect(checks.path(source, "the source"), 1, True, KvOptions("f16").to_core())
        reader = _reader(source)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
        given = [Tensor(name, shapes[name], tensor.tensor_type) for name, tensor in tensors.items()]
        steps = []
        for name, kind in plan(given, type_name, Facts.of(report["metadata"])).items():
            block, size = GGML_QUANT_SIZES[kind]
            steps.append(Step(tensors[name], shapes[name], kind, prod(shapes[name]) // block * size))
            _check_source(steps[-1], allow_requantize)
        return cls(source, type_name, reader, tuple(steps))

    @property
    def bytes_before(self) -> int:
        return sum(int(step.source.n_bytes) for step in self.steps)

    @property
    def bytes_after(self) -> int:
        return sum(step.n_bytes for step in self.steps)

    @property
    def summary(self) -> str:
        bits = 8 * self.bytes_after / sum(prod(step.shape) for step in self.steps)
        mib = f"{self.bytes_before / 2**20:,.1f} -> {self.bytes_after / 2**20:,.1f} MiB"
        return f"{self.type_name}: {mib}, {bits:.2f} bits a weight"

    def table(self) -> Table:
        table = Table("tensor", "shape", "from", "to", "bytes", title=self.summary)
        for step in self.steps:
            before, after = step.source.tensor_type.name.lower(), step.kind.name.lower()
            name = Text(cli.harmless(step.source.name))
            shape = " x ".join(map(str, step.shape))
            table.add_row(name, shape, before, "" if step.is_copy else after, f"{step.n_bytes:,}")
        return table


def _reader(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}") from error
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} holds what the package gguf does not read: {error}") from error


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """As ggml counts dimensions: without ones in front."""
    shape = [int(n) for n in reversed(tensor.shape)]
    while len(shape) > 1 and shape[0] == 1:
        del shape[0]
    return tuple(shape)


def _check_source(step: Step, allow_requantize: bool) -> None:
    from gguf import GGMLQuantizationType as Kind

    kind = step.source.tensor_type
    if step.is_copy or kind in (Kind.F32, Kind.F16, Kind.BF16):
        return
    if kind in (Kind.F64, Kind.I8, Kind.I16, Kind.I32, Kind.I64):
        raise ModelError(f"tensor {step.source.name} is {kind.name.lower()}; accepted: f32, f16, bf16, quantized types")
    if not allow_requantize:
        raise ModelError(
            f"tensor {step.source.name} is {kind.name.lower()} already, and would lose more than from f16; "
            "accepted with --allow-requantize"
        )


def quantize_file(made: Plan, target: Path, *, threads: int | None = None, progress: Progress | None = None) -> None:
    """Writes what the plan says. The target appears whole or not at all.

    progress: called with 0..1, in bytes of the source. Raises FileError, ModelError and ArgumentError.
    """
    target = Path(checks.path(target, "the target"))
    if not target.name or (target.exists() and target.samefile(made.source)):
        raise ArgumentError(f"the target is {target}, a folder or the source; accepted: another file")
    with replacing(target) as part:
        _write(part, made, _threads(threads), progress or (lambda done: None))


def _write(path: Path, made: Plan, threads: int, progress: Progress) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "")  # the architecture comes with the source's metadata
    try:
        _add_metadata(writer, made)
        for step in made.steps:
            writer.add_tensor_info(step.source.name, step.shape, np.dtype(np.float32), step.n_bytes, step.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0.0, made.bytes_before
        for step in made.steps:
            share = int(step.source.n_bytes) / total
            writer.write_tensor_data(_data(step, threads, _part(progress, done, share)))
            done += share
            progress(min(1.0, done))
    finally:
        writer.close()


def _part(progress: Progress, begin: float, share: float) -> Progress:
    return lambda done: progress(min(1.0, begin + share * done))


def _data(step: Step, threads: int, progress: Progress) -> NDArray[Any]:
    from gguf.quants import dequantize

    stored, kind = step.source.data, step.source.tensor_type
    if step.is_copy:
        return stored
    try:
        return _pack(
            stored, lambda rows: dequantize(rows, kind), step.kind, threads, f"tensor {step.source.name}", progress
        )
    except NotImplementedError as error:  # the package gguf's word for a type that it does not know
        raise ModelError(f"tensor {step.source.name} is {kind.name.lower()}, which cannot be made floats") from error


def _add_metadata(writer: GGUFWriter, made: Plan) -> None:
    """The source's, in its order; what this file is comes last, as llama.cpp writes it."""
    from gguf import GGML_QUANT_VERSION, GGUFValueType, Keys

    writer.data_alignment = int(made.reader.alignment)
    replaced = (Keys.General.QUANTIZATION_VERSION, Keys.General.FILE_TYPE, *SPLIT_KEYS)
    for key, field in made.reader.fields.items():
        if key.startswith("GGUF.") or key in replaced:
            continue
        is_array = field.types[0] == GGUFValueType.ARRAY
        value = field.contents()
        if is_array and not value:
            continue  # the writer has no form for it; it says the same as no key
        writer.add_key_value(key, value, field.types[0], field.types[-1] if is_array else None)
    writer.add_uint32(Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION)
    writer.add_uint32(Keys.General.FILE_TYPE, file_type(made.type_name))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.quantize", description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="a GGUF file, best in f16, bf16 or f32")
    parser.add_argument("target", type=Path, metavar="OUT", help="the file to write")
    parser.add_argument("--type", required=True, metavar="TYPE", help=", ".join([*MIXES, *ALIASES]))
    parser.add_argument("--threads", type=int, help="threads to compute with (default: one a core)")
    parser.add_argument("--allow-requantize", action="store_true", help="also from a type that is quantized already")
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")
    return parser.parse_args(arguments)


def main() -> int:
    args = parse()
    made = Plan.of(args.source, args.type, allow_requantize=args.allow_requantize)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    if args.dry_run:
        console.print(made.table())
        return 0
    with cli.progress_bar("Quantizing", eta=True, n_bytes=made.bytes_before) as progress:
        quantize_file(made, args.target, threads=args.threads, progress=progress)
    console.print(made.summary, highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
