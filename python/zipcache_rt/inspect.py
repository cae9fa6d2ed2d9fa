"""What is in a GGUF file, and what running it takes: `python -m zipcache_rt.inspect model.gguf`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import _core, cli
from .options import KvOptions

LONGEST_VALUE = 120  # characters


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.inspect", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", type=int, default=0, help="tokens of context to plan for (default: the model's own)")
    cli.add_kv_option(parser)
    parser.add_argument("--no-repack", action="store_true", help="plan without ggml's repacked weight layouts")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{value[0]} x {value[1]}]"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return cli.harmless(text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…")


def mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"


def tables(report: dict[str, Any], kv: KvOptions) -> list[Table]:
    metadata = Table("key", "value", title=f"GGUF version {report['version']}, {mib(report['file_bytes'])}")
    for key, value in report["metadata"].items():
        metadata.add_row(Text(cli.harmless(key)), Text(shown(value)))
    tensors = Table("tensor", "type", "shape", "bytes", title=f"{len(report['tensors'])} tensors")
    for name, kind, shape, n_bytes in report["tensors"]:
        dimensions = " x ".join(str(n) for n in shape if n != 1) or "1"
        tensors.add_row(Text(cli.harmless(name)), kind, dimensions, f"{n_bytes:,}")
    plan = report["plan"]
    memory = Table("memory", "", title=f"Plan for {plan['n_ctx']:,} tokens of context")
    memory.add_row("weights, used in place", mib(plan["weights_mapped"]))
    memory.add_row("weights, repacked", mib(plan["weights_repacked"]))
    memory.add_row(f"KV cache ({kv})", mib(plan["kv_bytes"]))
    memory.add_row("prefill, at most", mib(plan["scratch_bytes"]))
    memory.add_row("total", mib(sum(value for key, value in plan.items() if key != "n_ctx")))
    return [metadata, tensors, memory]


def main() -> int:
    args = parse()
    if args.ctx < 0:
        raise _core.ArgumentError(f"--ctx is {args.ctx}; accepted: 1 or more")
    kv = KvOptions.parse(args.kv)
    report = _core.inspect(str(args.model), args.ctx, not args.no_repack, kv.to_core())
    if args.json:
        print(json.dumps(report))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = 200
    for table in tables(report, kv):
        console.print(table)
    return 0


if __name__ == "__main__":
    cli.run(main)
