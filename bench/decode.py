"""Decode speed at depth, of our KV policies and llama.cpp's cache types, all in turn.

python bench/decode.py MODEL... [--kv f16 zipcache auto] [--vs llama.cpp] [--vs-kv f16 q8_0 q4_0] [--depth 0,2000]
Sessions that decode in one pass, tokens/s of all: python bench/decode.py MODEL --batch 1 8
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace

from rich.table import Table

from common import numbers_table
from engines import Engine, Ours, Together, Work
from turns import Rates, Report, add_options, in_turn, parse, rates_of, ratios
from zipcache_rt import KvOptions, cli

WARM_UP = 2  # tokens


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, vs_kv=["f16", "q8_0", "q4_0"], repeat=5)
    parser.add_argument(
        "--decode",
        type=int,
        default=32,
        help="tokens at every depth (default: 32; as many as a policy's window count one compression)",
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1], metavar="N", help="sessions of ours in one pass (default: 1)"
    )
    args = parse(parser)
    args.batch = list(dict.fromkeys(args.batch))
    if min(args.batch) < 1 or args.decode < 1:
        parser.error("--batch takes numbers of sessions, 1 or more, --decode 1 token or more")
    return args


def our_sides(work: Work, kv: KvOptions, widths: list[int]) -> list[Engine]:
    """A side for each width of --batch."""

    def part(i: int, width: int) -> Ours:
        start = work.n_ctx * i // width
        return Ours(replace(work, ids=work.ids[start:] + work.ids[:start]), kv)

    return [part(0, 1) if width == 1 else Together([part(i, width) for i in range(width)]) for width in widths]


def compare(sides: list[Engine], report: Report, model: str) -> dict[int, Rates]:
    """By depth."""
    n = report.args.decode
    found: dict[int, Rates] = {}
    for depth in report.args.depth:
        times = in_turn(sides, "decode", depth, n, WARM_UP, report.args.repeat)
        found[depth] = rates_of(sides, times, n)
        row = {"model": model, "depth": depth, "decode": n, "seconds": times, "rate": found[depth]}
        report.rows.append({**row, "ratios": beside(depth, found)})
    return found


def beside(depth: int, rates: dict[int, Rates]) -> dict[str, Rates]:
    start = rates.get(0, {}) if depth > 0 else {}
    return ratios(rates[depth], {"of its own at depth 0": start.get})


def speed_table(model: str, n: int, names: Iterable[str], rates: dict[int, Rates]) -> Table:
    columns = tuple(names)
    table = numbers_table(f"{model}: tokens/s of {n} tokens", ("depth",), columns)
    for depth, own in rates.items():
        table.add_row(f"{depth:,}", *(f"{own[name]:.1f}" if name in own else "-" for name in columns))
        for title, made in beside(depth, rates).items():
            shares = (f"{made[name]:.2f}" if name in made else "-" for name in columns)
            table.add_row(f"  {title}", *shares, style="dim")
        table.add_section()
    return table


def main() -> None:
    args = options()
    report = Report(args)

    def ours(work: Work) -> list[Engine]:
        return [side for kv in args.kv for side in our_sides(work, kv, args.batch)]

    for path in args.models:
        with report.sides(path, max(args.depth) + 1 + max(args.decode, WARM_UP), ours) as sides:
            rates = compare(sides, report, path.name)
            report.console.print(speed_table(path.name, args.decode, (side.name for side in sides), rates))
            if any(len(own) < len(sides) for own in rates.values()):
                report.say(f"-: filling the cache would have taken more than {args.limit:g} s (--limit)")
    report.end()


if __name__ == "__main__":
    cli.run(main)
