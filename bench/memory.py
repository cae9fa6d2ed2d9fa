"""Memory of a long context under each KV policy, every run in a fresh process, and how well kv_stats() tells it.

python bench/memory.py MODEL [--context 8000] [--kv f16 auto] [--repeat 3] [--threads N]
"""

import argparse
import os
import statistics
from pathlib import Path

from rich.console import Console

from common import numbers_table
from zipcache_rt import KvOptions, cli
from zipcache_rt.report.worker import Spec, Speed, in_fresh_process

N_DECODE = 16


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Policy -> medians of Speed's fields."""
    runs: dict[str, list[Speed]] = {kv: [] for kv in args.kv}
    for _ in range(args.repeat):
        for kv, made in runs.items():
            made.append(in_fresh_process(Spec(str(args.model), args.device, args.threads, kv, args.context, N_DECODE)))
    return {
        kv: {key: statistics.median(vars(run)[key] for run in made) for key in vars(made[0])}
        for kv, made in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--kv", nargs="+", default=["f16", "auto"], metavar="POLICY", help="the first is compared with")
    parser.add_argument("--repeat", type=int, default=3)
    cli.add_device_option(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.kv = [str(KvOptions.parse(kv)) for kv in args.kv]
    found = measure(args)
    first, base = next(iter(found.items()))
    title = f"{args.model.name}: prefill of {args.context} tokens, {N_DECODE} decoded; MB = 1e6 bytes"
    saved = ("peak", "end", "KV MB", "end / KV")
    table = numbers_table(title, ("KV",), ("peak MB", "end MB", "KV MB", "bits", *(f"saved: {name}" for name in saved)))
    for kv, run in found.items():
        less = {key: base[key] - run[key] for key in ("peak", "end", "kv_bytes")}
        share = f"{less['end'] / less['kv_bytes']:.2f}" if less["kv_bytes"] else "-"
        sizes = (f"{n / 1e6:.1f}" for n in (run["peak"], run["end"], run["kv_bytes"]))
        table.add_row(kv, *sizes, f"{run['kv_bits']:.2f}", *(f"{n / 1e6:.1f}" for n in less.values()), share)
    console = Console(width=120)
    console.print(
        f"{cli.machine()}; {args.threads} threads; medians of {args.repeat}; resident memory of the whole process"
    )
    console.print(table)
    console.print(f"saved: what {first} takes more; end: after the work, its scratch freed; KV MB, bits: kv_stats()")


if __name__ == "__main__":
    cli.run(main)
