"""Memory of a long context under each KV policy, every run in a fresh process, and how well kv_stats() tells it.

python bench/memory.py MODEL [--context 8000] [--kv f16 auto] [--repeat 3] [--threads N]
"""

import argparse
import json
import os
import statistics
from pathlib import Path

from rich.console import Console

from common import in_fresh_process, numbers_table, peak_bytes, resident_bytes
from engines import text_ids
from zipcache_rt import KvOptions, Model, cli

N_DECODE = 16


def child(path: Path, device: str, kv: str, context: int, threads: int) -> dict[str, float]:
    """Bytes: most resident ones, those left at the end, and what the cache says of itself."""
    model = Model(path, device=device, threads=threads)
    ids = text_ids(model, context + N_DECODE)
    session = model.session(n_ctx=len(ids), kv=KvOptions.parse(kv))
    session.prefill(ids[:context])
    for token in ids[context:]:
        session.decode(token)
    stats = session.kv_stats()
    return {"peak": peak_bytes(), "end": resident_bytes(), "kv": stats.bytes, "bits": stats.bits}


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Policy -> medians."""
    runs: dict[str, list[dict[str, float]]] = {kv: [] for kv in args.kv}
    for _ in range(args.repeat):
        for kv, made in runs.items():
            options = ("--child", "--kv", kv, "--context", args.context, "--threads", args.threads)
            options += ("--device", args.device)
            made.append(in_fresh_process(__file__, args.model, *options))
    return {kv: {key: statistics.median(run[key] for run in made) for key in made[0]} for kv, made in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--kv", nargs="+", default=["f16", "auto"], metavar="POLICY", help="the first is compared with")
    parser.add_argument("--repeat", type=int, default=3)
    cli.add_device_option(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.model, args.device, args.kv[0], args.context, args.threads)))
        return
    args.kv = [str(KvOptions.parse(kv)) for kv in args.kv]
    found = measure(args)
    first, base = next(iter(found.items()))
    title = f"{args.model.name}: prefill of {args.context} tokens, {N_DECODE} decoded; MB = 1e6 bytes"
    saved = ("peak", "end", "KV MB", "end / KV")
    table = numbers_table(title, ("KV",), ("peak MB", "end MB", "KV MB", "bits", *(f"saved: {name}" for name in saved)))
    for kv, run in found.items():
        less = {key: base[key] - run[key] for key in ("peak", "end", "kv")}
        share = f"{less['end'] / less['kv']:.2f}" if less["kv"] else "-"
        sizes = (f"{n / 1e6:.1f}" for n in (run["peak"], run["end"], run["kv"]))
        table.add_row(kv, *sizes, f"{run['bits']:.2f}", *(f"{n / 1e6:.1f}" for n in less.values()), share)
    console = Console(width=120)
    console.print(
        f"{cli.machine()}; {args.threads} threads; medians of {args.repeat}; resident memory of the whole process"
    )
    console.print(table)
    console.print(f"saved: what {first} takes more; end: after the work, its scratch freed; KV MB, bits: kv_stats()")


if __name__ == "__main__":
    cli.run(main)
