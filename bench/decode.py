"""Prefill and decode speed at depth, of our KV policies and llama.cpp's cache types, all in turn.

python bench/decode.py MODEL... [--kv f16 zipcache auto] [--vs llama.cpp] [--vs-kv f16 q8_0 q4_0] [--depth 0,2000]
Sessions that decode in one pass, tokens/s of all: python bench/decode.py MODEL --batch 1 8 --prefill 0
Whole prompts instead: python bench/decode.py MODEL --prompt 4000 --depth 4000 --decode 0 --vs llama.cpp --vs-kv f16
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common import numbers_table
from engines import Engine, LlamaCpp, Ours, Together
from zipcache_rt import KvOptions, Model, _core, cli
from zipcache_rt.report.texts import reference_ids

Times = dict[str, list[float]]  # side -> seconds of each run
Rates = dict[str, float]  # side -> tokens/s, or a ratio of two


@dataclass(frozen=True)
class Cell:
    phase: str  # prefill or decode
    depth: int  # tokens in the cache before
    n: int  # tokens, of each session


def cells(args: argparse.Namespace) -> list[Cell]:
    wanted = [Cell("prefill", 0, args.prompt)]
    for depth in sorted(set(args.depth)):
        wanted += [Cell("prefill", depth, args.prefill), Cell("decode", depth, args.decode)]
    return [cell for cell in dict.fromkeys(wanted) if cell.n > 0]


def measure(sides: list[Engine], wanted: list[Cell], repeat: int) -> dict[Cell, Times]:
    """A side is missing where it would take longer than the limit."""
    times: dict[Cell, Times] = {cell: {} for cell in wanted}
    for depth in sorted({cell.depth for cell in wanted}):
        group = [cell for cell in wanted if cell.depth == depth]
        ready = [(side, cell) for side in sides if side.prepare(depth) for cell in group]
        for _ in range(repeat):
            for side, cell in list(ready):
                seconds = side.run(cell.phase, cell.n)
                if seconds is None:
                    ready.remove((side, cell))
                    times[cell].pop(side.name, None)
                else:
                    times[cell].setdefault(side.name, []).append(seconds)
    return times


def our_sides(model: Model, ids: list[int], n_ctx: int, kv: KvOptions, args: argparse.Namespace) -> list[Engine]:
    """A side for each width of --batch."""

    def part(i: int, width: int) -> Ours:
        start = n_ctx * i // width
        return Ours(model, ids[start:] + ids[:start], n_ctx, kv, args.limit)

    return [part(0, 1) if width == 1 else Together([part(i, width) for i in range(width)]) for width in args.batch]


def compare(path: Path, args: argparse.Namespace) -> tuple[list[Engine], dict[Cell, Times]]:
    model = Model(path, device=args.device, threads=args.threads)
    wanted = cells(args)
    n_ctx = max(cell.depth + 1 + max(cell.n, 16) for cell in wanted)
    ids = reference_ids(model, n_ctx)
    with ExitStack() as stack:
        sides = [side for kv in args.kv for side in our_sides(model, ids, n_ctx, kv, args)]
        if args.vs:
            sides += [LlamaCpp(path, args.threads, ids, n_ctx, kv, args.limit) for kv in args.vs_kv]
        for side in sides:
            stack.callback(side.close)
        return sides, measure(sides, wanted, args.repeat)


def ratios(cell: Cell, rates: dict[Cell, Rates]) -> dict[str, Rates]:
    """What a cell's speeds are set beside: name -> side -> ratio."""
    own = rates[cell]
    found: dict[str, Callable[[str], float | None]] = {}
    theirs = [rate for name, rate in own.items() if name.startswith("llama.cpp")]
    if theirs:
        found["of best llama.cpp"] = lambda _: max(theirs)
    if sum(name.startswith("ours") for name in own) > 1:
        found["of ours f16"] = lambda _: own.get("ours f16")
    if cell.phase == "decode" and cell.depth > 0:
        start = next((r for c, r in rates.items() if c.phase == "decode" and c.depth == 0), {})
        found["of its own at depth 0"] = start.get
    return {
        title: made
        for title, base in found.items()
        if (made := {name: rate / other for name, rate in own.items() if (other := base(name))})
    }


def speed_table(model: str, names: Iterable[str], rates: dict[Cell, Rates]) -> Table:
    columns = tuple(names)
    table = numbers_table(f"{model}: tokens/s, median", ("phase",), ("depth", *columns))
    for cell, own in rates.items():
        speeds = (f"{own[name]:.1f}" if name in own else "-" for name in columns)
        table.add_row(f"{cell.phase} {cell.n}", str(cell.depth), *speeds)
        for title, made in ratios(cell, rates).items():
            shares = (f"{made[name]:.2f}" if name in made else "-" for name in columns)
            table.add_row(f"  {title}", "", *shares, style="dim")
        table.add_section()
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--kv", nargs="+", default=["f16", "zipcache", "auto"], metavar="POLICY", help="ours")
    parser.add_argument("--vs", choices=["llama.cpp"])
    parser.add_argument("--vs-kv", nargs="+", choices=["f16", "q8_0", "q4_0"], default=["f16", "q8_0", "q4_0"])
    parser.add_argument("--depth", type=lambda text: [int(n) for n in text.split(",")], default=[0, 2000])
    parser.add_argument("--prefill", type=int, default=512, help="tokens at every depth; 0: none (default: 512)")
    parser.add_argument(
        "--decode",
        type=int,
        default=32,
        help="tokens at every depth; 0: none (default: 32; as many as a policy's window count one compression)",
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1], metavar="N", help="sessions of ours in one pass (default: 1)"
    )
    parser.add_argument("--prompt", type=int, default=0, help="also time a prefill of so many tokens from empty")
    cli.add_device_option(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", type=float, default=240, help="most seconds to fill a cache (default: 240)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything there")
    args = parser.parse_args()
    args.batch = list(dict.fromkeys(args.batch))
    args.kv = list(dict.fromkeys(KvOptions.parse(text) for text in args.kv))
    if min(args.batch) < 1:
        parser.error("--batch takes numbers of sessions, 1 or more")
    if args.repeat < 1 or not cells(args):
        parser.error("nothing to measure: --repeat and one of --prefill, --decode, --prompt have to be above 0")
    return args


def main() -> None:
    args = parse()
    console = Console(width=140)
    ours = _core.ggml_build()
    facts: dict[str, Any] = {"machine": cli.machine(), "threads": args.threads, "repeat": args.repeat, "ours": ours}
    facts |= {"device": args.device, "cuda": _core.cuda_devices()["descriptions"]}
    console.print(f"{facts['machine']}; {args.threads} threads; {args.repeat} runs in turn", markup=False)
    console.print(f"ours on {args.device}, where there is {facts['cuda'] or 'no GPU'}", markup=False)
    console.print(f"ours: ggml {ours['version']} ({ours['source']}), {ours['features']}, kernels {ours['kernels']}")
    rows: list[dict[str, Any]] = []
    for path in args.models:
        sides, times = compare(path, args)
        width = {side.name: side.width for side in sides}
        rates = {
            cell: {name: width[name] * cell.n / statistics.median(made) for name, made in own.items()}
            for cell, own in times.items()
        }
        build = next((side.build for side in sides if isinstance(side, LlamaCpp)), None)
        if build and facts.setdefault("llama.cpp", build) and not rows:
            console.print(f"llama.cpp: {build}", markup=False)
        console.print(speed_table(path.name, (side.name for side in sides), rates))
        if any(len(own) < len(sides) for own in rates.values()):
            console.print(f"-: filling the cache would have taken more than {args.limit:g} s (--limit)")
        for cell, own in rates.items():
            row = {"model": path.name, **vars(cell), "seconds": times[cell], "rate": own}
            rows.append({**row, "ratios": ratios(cell, rates)})
    if args.json:
        args.json.write_text(json.dumps({**facts, "limit": args.limit, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
