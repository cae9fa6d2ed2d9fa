"""The attention kernel alone, over packed caches of every number of bits, on one thread.

python bench/attend_kv.py [--head-dim 64 128] [--tokens 4096] [--megabytes 200] [--json OUT]

Cold: a pass goes over equal caches that together take --megabytes, more than the processor's caches hold. Hot: the same
few tokens again and again. Medians of the passes. The floor is a memcpy of the same bytes, in the same pass.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from common import numbers_table
from zipcache_rt import _core, cli

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--group", type=int, default=3, help="query heads of a KV head")
    parser.add_argument("--tokens", type=int, default=4096, help="of a cold cache")
    parser.add_argument("--hot-tokens", type=int, default=256)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    tables = [sweep(head_dim, hot, args) for head_dim in args.head_dim for hot in (False, True)]
    build = _core.ggml_build()
    facts = {"machine": cli.machine(), "kernels": build["kernels"], "threads": 1, "passes": args.passes}
    console = Console(width=130)
    console.print(f"{facts['machine']}; kernels {facts['kernels']}; 1 thread; {args.kv_heads} KV heads x {args.group}")
    for rows in tables:
        console.print(table_of(rows))
    if args.json:
        args.json.write_text(json.dumps({**facts, "rows": [row for rows in tables for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
