"""Speed of reading a prompt behind a context, of our KV policies and llama.cpp's cache types, all in turn; and what
share of our time goes to the cache.

python bench/prefill.py MODEL... [--kv f16 zipcache auto] [--prompt 512] [--depth 0,2000] [--vs llama.cpp] [--vs-kv f16]
"""

import argparse
from typing import Any

from rich.table import Table

from common import numbers_table
from engines import Engine, Ours, Shares, Work
from turns import Rates, Report, add_options, in_turn, parse, rates_of, ratios
from zipcache_rt import cli


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, vs_kv=["f16"], repeat=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens to read (default: 512)")
    args = parse(parser)
    if args.prompt < 1:
        parser.error("--prompt takes 1 token or more")
    return args


def add_rows(table: Table, depth: int, rates: Rates, shares: dict[str, Shares], sides: list[Engine]) -> None:
    beside = ratios(rates, {})
    for side in sides:
        name, share = side.name, shares.get(side.name)
        cells = [f"{rates[name]:,.1f}" if name in rates else "-"]
        cells += [f"{part:.1%}" for part in (share.compress, share.dequantize)] if share else ["-", "-"]
        for title in ("of best llama.cpp", "of ours f16"):
            ratio = beside.get(title, {}).get(name)
            cells.append(f"{ratio:.2f}" if ratio else "-")
        table.add_row(name, f"{depth:,}", *cells)
    table.add_section()


def main() -> None:
    args = options()
    report = Report(args)

    def ours(work: Work) -> list[Engine]:
        return [Ours(work, kv) for kv in args.kv]

    for path in args.models:
        title = f"{path.name}: {args.prompt:,} tokens behind others"
        numbers = ("depth", "tokens/s", "compressing", "unpacking", "of best llama.cpp", "of ours f16")
        table = numbers_table(title, ("side",), numbers)
        late = False
        with report.sides(path, max(args.depth) + 1 + args.prompt, ours) as sides:
            for depth in args.depth:
                times = in_turn(sides, "prefill", depth, args.prompt, args.prompt, args.repeat)
                rates = rates_of(sides, times, args.prompt)
                told = {s.name: s.shares(args.prompt) for s in sides if isinstance(s, Ours) and s.name in rates}
                shares = {name: share for name, share in told.items() if share}
                add_rows(table, depth, rates, shares, sides)
                late |= len(rates) < len(sides)
                row: dict[str, Any] = {"model": path.name, "depth": depth, "prompt": args.prompt, "seconds": times}
                row |= {"rate": rates, "ratios": ratios(rates, {})}
                report.rows.append({**row, "shares": {name: vars(share) for name, share in shares.items()}})
        report.console.print(table)
        if late:
            report.say(f"speeds that are -: filling the cache would have taken more than {args.limit:g} s (--limit)")
    report.say(
        "compressing: probes chosen and scored, tokens given their bits, codes written; unpacking: the rows of the"
    )
    report.say(
        "tokens before brought back, with the memory they take. Shares of one more run, whose clock waits for each"
    )
    report.end()


if __name__ == "__main__":
    cli.run(main)
