"""Memory of a long context under each KV policy, every run in a fresh process: on the CPU that of the process, and how
well kv_stats() tells it; on a GPU that of the device, beside what was planned for the session.

python bench/memory.py MODEL [--context 8000] [--kv f16 auto] [--device cpu] [--repeat 3] [--threads N]
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

import common
from common import numbers_table
from zipcache_rt import KvOptions, _core, cli
from zipcache_rt.report.worker import Spec, in_fresh_process

N_DECODE = 16

Medians = dict[str, dict[str, float]]  # policy -> field -> median of the runs


def on_host(spec: Spec) -> dict[str, float]:
    return asdict(in_fresh_process(spec))


def on_device(spec: Spec) -> dict[str, float]:
    script = str(Path(__file__).with_name("device_memory.py"))
    return common.in_fresh_process(script, json.dumps(asdict(spec)))


def measure(args: argparse.Namespace, run: Callable[[Spec], dict[str, float]]) -> Medians:
    runs: dict[str, list[dict[str, float]]] = {kv: [] for kv in args.kv}
    for _ in range(args.repeat):
        for kv, made in runs.items():
            where = (str(args.model), args.device, args.threads)
            made.append(run(Spec(*where, kv, args.context, N_DECODE, args.gpu_layers)))
    return {kv: {key: statistics.median(run[key] for run in made) for key in made[0]} for kv, made in runs.items()}


def host_table(found: Medians, title: str) -> Table:
    base = next(iter(found.values()))
    saved = ("peak", "end", "KV MB", "end / KV")
    table = numbers_table(title, ("KV",), ("peak MB", "end MB", "KV MB", "bits", *(f"saved: {name}" for name in saved)))
    for kv, run in found.items():
        less = {key: base[key] - run[key] for key in ("peak", "end", "kv_bytes")}
        share = f"{less['end'] / less['kv_bytes']:.2f}" if less["kv_bytes"] else "-"
        sizes = (f"{n / 1e6:.1f}" for n in (run["peak"], run["end"], run["kv_bytes"]))
        table.add_row(kv, *sizes, f"{run['kv_bits']:.2f}", *(f"{n / 1e6:.1f}" for n in less.values()), share)
    return table


def device_table(found: Medians, title: str) -> Table:
    sizes = ("planned MB", "peak MB", "of planned", "KV MB", "bits", "rest MB", "weights MB", "loaded MB")
    table = numbers_table(title, ("KV",), sizes)
    for kv, run in found.items():
        planned, peak, cache, weights, loaded = (run[key] for key in ("planned", "peak", "kv", "weights", "loaded"))
        cells = [f"{planned / 1e6:,.1f}", f"{peak / 1e6:,.1f}", f"{peak / planned:.1%}", f"{cache / 1e6:,.1f}"]
        cells += [f"{run['kv_bits']:.2f}", "-" if run["is_split"] else f"{(peak - cache) / 1e6:,.1f}"]
        table.add_row(kv, *cells, f"{weights / 1e6:,.1f}", f"{loaded / 1e6:,.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--kv", nargs="+", default=["f16", "auto"], metavar="POLICY", help="the first is compared with")
    parser.add_argument("--repeat", type=int, default=3)
    cli.add_device_options(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.kv = [str(KvOptions.parse(kv)) for kv in args.kv]
    device = _core.find_device(args.device)
    title = f"{args.model.name}: prefill of {args.context:,} tokens, {N_DECODE} decoded; MB = 1e6 bytes"
    console = Console(width=120)
    said = f"{cli.machine()}; {args.threads} threads; medians of {args.repeat}; "
    if device["name"] == "cpu" or args.gpu_layers == 0:
        found = measure(args, on_host)
        console.print(f"{said}resident memory of the whole process", markup=False)
        console.print(host_table(found, title))
        first = next(iter(found))
        console.print(
            f"saved: what {first} takes more; end: after the work, its scratch freed; KV MB, bits: kv_stats()"
        )
        return
    found = measure(args, on_device)
    console.print(f"{said}memory of {device['name']} ({device['description']})", markup=False)
    console.print(device_table(found, title))
    samples = min(run["samples"] for run in found.values())
    gap = max(run["longest_gap"] for run in found.values())
    console.print(
        "planned, peak: of the session, beside the weights; KV MB, bits: kv_stats(); rest: peak less KV; loaded:"
    )
    console.print(f"all that loading took. Free memory was asked for {samples:,.0f} times or more, at most")
    console.print(f"{1e3 * gap:.1f} ms apart; what other processes take counts as the session's")
    if any(run["is_split"] for run in found.values()):
        layers = next(iter(found.values()))["gpu_layers"]
        console.print(f"The GPU has {layers:.0f} layers; KV MB and bits are of all layers, the CPU's too")


if __name__ == "__main__":
    cli.run(main)
