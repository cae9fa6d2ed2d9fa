"""The attention kernel alone: on the CPU over packed caches of every number of bits, on one thread; on a GPU over those
of zipcache, auto and f16, on an 8B model's KV shape, beside a copy of as many bytes.

python bench/attend_kv.py [--head-dim 64 128] [--tokens 4096] [--megabytes 200] [--json OUT]
python bench/attend_kv.py --device cuda [--tokens 32768 --batch 8] [--program PATH]

On the CPU: cold, a pass goes over equal caches that together take --megabytes, more than the processor's caches hold;
hot, over the same few tokens again and again. Medians of the passes. The floor is a memcpy of the same bytes, in the
same pass.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console

from common import numbers_table
from zipcache_rt import ArgumentError, FileError, ModelError, _core, cli

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "cuda" / "bench" / "cuda" / "zipcache-cuda-bench"
TIERS = [
    ("f16", 16),
    *(("auto", bits) for bits in (1, 2, 3, 4, 8)),
    *(("zipcache", bits) for bits in (1, 2, 3, 4, 8)),
    *(("blocks", bits) for bits in (4, 8)),
]


def measure(
    layout: str, bits: int, head_dim: int, tokens: int, copies: int, args: argparse.Namespace
) -> dict[str, Any]:
    found = _core.bench_attend_kv(
        layout=layout,
        head_dim=head_dim,
        n_kv_heads=args.kv_heads,
        n_heads=args.kv_heads * args.group,
        n_tokens=tokens,
        k_bits=bits,
        v_bits=bits,
        n_copies=copies,
        n_passes=args.passes,
    )
    codes = 2 * tokens * args.kv_heads * head_dim
    attend, copy, read = (statistics.median(found[name]) for name in ("attend", "copy", "read"))
    return {
        "layout": layout,
        "bits": bits,
        "head_dim": head_dim,
        "tokens": tokens,
        "copies": copies,
        "bytes": found["bytes"],
        "all-in bits": 8 * found["bytes"] / codes,
        "us": 1e6 * attend,
        "GB/s": found["bytes"] / attend / 1e9,
        "Gcodes/s": codes / attend / 1e9,
        "copy GB/s": found["bytes"] / copy / 1e9,
        "read GB/s": found["bytes"] / read / 1e9,
        "of copy": copy / attend,
        "rounding": found["rounding"],
        "quantization": found["quantization"],
    }


def sweep(head_dim: int, hot: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    tokens = args.hot_tokens if hot else args.tokens
    rows = []
    for layout, bits in TIERS:
        packed = 2 * tokens * args.kv_heads * head_dim * bits / 8
        # hot: so many passes over one cache that the clock sees them
        copies = 1 if hot else max(2, round(args.megabytes * 1e6 / packed))
        runs = argparse.Namespace(**{**vars(args), "passes": 400 * args.passes if hot else args.passes})
        rows.append({"hot": hot, **measure(layout, bits, head_dim, tokens, copies, runs)})
    for row in rows:
        row["x f16"] = rows[0]["us"] / row["us"]
    return rows


def table_of(rows: list[dict[str, Any]]) -> Any:
    first = rows[0]
    where = "hot, one cache" if first["hot"] else "cold"
    title = f"{where}: head_dim {first['head_dim']}, {first['tokens']} tokens; errors are relative rms"
    numbers = (
        "bits",
        "all-in",
        "us",
        "x f16",
        "Gcodes/s",
        "GB/s",
        "copy GB/s",
        "read GB/s",
        "of copy",
        "rounding",
        "quant.",
    )
    table = numbers_table(title, ("layout",), numbers)
    for row in rows:
        table.add_row(
            row["layout"],
            str(row["bits"]),
            f"{row['all-in bits']:.2f}",
            f"{row['us']:.1f}",
            f"{row['x f16']:.2f}",
            *(f"{row[name]:.2f}" for name in ("Gcodes/s", "GB/s", "copy GB/s", "read GB/s")),
            f"{row['of copy']:.0%}",
            f"{row['rounding']:.4f}",
            f"{row['quantization']:.4f}",
        )
    return table


def run_on_gpu(args: argparse.Namespace) -> None:
    """A program of its own, without Python: it prints its table, and without --tokens also what compressing takes."""
    if not args.program.exists():
        raise FileError(
            f"there is no {args.program}; with a CUDA toolkit, in {ROOT}: cmake --preset cuda && "
            "cmake --build --preset cuda --target zipcache-cuda-bench"
        )
    command = [str(args.program)]
    if args.tokens:
        command += [str(args.tokens), str(args.batch)]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise ModelError(f"{args.program.name} ended with {code}")


def run_on_cpu(args: argparse.Namespace) -> None:
    args.tokens = args.tokens or 4096
    tables = [sweep(head_dim, hot, args) for head_dim in args.head_dim for hot in (False, True)]
    build = _core.ggml_build()
    facts = {"machine": cli.machine(), "kernels": build["kernels"], "threads": 1, "passes": args.passes}
    console = Console(width=130)
    console.print(f"{facts['machine']}; kernels {facts['kernels']}; 1 thread; {args.kv_heads} KV heads x {args.group}")
    for rows in tables:
        console.print(table_of(rows))
    if args.json:
        args.json.write_text(json.dumps({**facts, "rows": [row for rows in tables for row in rows]}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--group", type=int, default=3, help="query heads of a KV head")
    parser.add_argument("--tokens", type=int, help="of a cold cache (default: 4096, on a GPU several lengths)")
    parser.add_argument("--hot-tokens", type=int, default=256)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="sequences, on a GPU, with --tokens")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="the GPU's (default: where the preset puts it)")
    args = parser.parse_args()
    if (args.tokens is not None and args.tokens < 1) or args.batch < 1:
        raise ArgumentError(f"got {args.tokens} tokens and a batch of {args.batch}; accepted: 1 or more")
    run_on_gpu(args) if args.device == "cuda" else run_on_cpu(args)


if __name__ == "__main__":
    cli.run(main)
