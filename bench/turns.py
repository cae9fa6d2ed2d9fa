"""What speed comparisons share: their options, sides that run in turn, and what is said of them."""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from engines import Engine, LlamaCpp, Work
from zipcache_rt import KvOptions, Model, ModelInfo, _core, cli
from zipcache_rt.report.texts import reference_ids

Times = dict[str, list[float]]  # side -> seconds of each run
Rates = dict[str, float]  # side -> tokens/s, or a ratio of two


def add_options(parser: argparse.ArgumentParser, *, vs_kv: list[str], repeat: int) -> None:
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--kv", nargs="+", default=["f16", "zipcache", "auto"], metavar="POLICY", help="ours")
    parser.add_argument("--vs", choices=["llama.cpp"], help="where ours runs; for a GPU it has to be built for it")
    parser.add_argument("--vs-kv", nargs="+", choices=["f16", "q8_0", "q4_0"], default=vs_kv)
    parser.add_argument("--depth", type=lambda text: sorted({int(n) for n in text.split(",")}), default=[0, 2000])
    cli.add_device_options(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=repeat, help="(default: %(default)s)")
    parser.add_argument("--limit", type=float, default=240, help="most seconds to fill a cache (default: 240)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything there")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    args.kv = list(dict.fromkeys(KvOptions.parse(text) for text in args.kv))
    if args.repeat < 1 or args.depth[0] < 0:
        parser.error("--repeat takes 1 or more, --depth 0 or more")
    cli.check_folder(args.json)
    return args


def in_turn(sides: list[Engine], phase: str, depth: int, n: int, warm_up: int, repeat: int) -> Times:
    """A side is missing where it would take longer than the limit. A run of `warm_up` tokens goes ahead of each: the
    first one gets memory, and loads what it runs."""
    ready = [side for side in sides if side.prepare(depth) and side.run(phase, warm_up) is not None]
    times: Times = {side.name: [] for side in ready}
    for _ in range(repeat):
        for side in list(ready):
            seconds = side.run(phase, n)
            if seconds is None:
                ready.remove(side)
                del times[side.name]
            else:
                times[side.name].append(seconds)
    return times


def rates_of(sides: list[Engine], times: Times, n: int) -> Rates:
    """Medians, in the order of the sides."""
    return {s.name: s.width * n / statistics.median(times[s.name]) for s in sides if s.name in times}


def ratios(rates: Rates, of: dict[str, Callable[[str], float | None]]) -> dict[str, Rates]:
    """Name of a base -> side -> its speed over that base's. Beside what a caller wants: llama.cpp's best, our f16."""
    theirs = [rate for name, rate in rates.items() if name.startswith("llama.cpp")]
    found: dict[str, Callable[[str], float | None]] = {}
    if theirs:
        found["of best llama.cpp"] = lambda _: max(theirs)
    if sum(name.startswith("ours") for name in rates) > 1:
        found["of ours f16"] = lambda _: rates.get("ours f16")
    return {
        title: made
        for title, base in (found | of).items()
        if (made := {name: rate / other for name, rate in rates.items() if (other := base(name))})
    }


class Report:
    """What was compared, and where; tables; and all of it as JSON."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.console = Console(width=140)
        self.rows: list[dict[str, Any]] = []
        build = _core.ggml_build()
        self.facts: dict[str, Any] = {"machine": cli.machine(), "threads": args.threads, "repeat": args.repeat}
        self.facts |= {"ours": build, "cuda": _core.cuda_devices()["descriptions"], "runs_on": {}}
        self.say(f"{self.facts['machine']}; {args.threads} threads; medians of {args.repeat} runs in turn")
        self.say(f"ours: ggml {build['version']} ({build['source']}), {build['features']}, kernels {build['kernels']}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def sides(self, path: Path, n_ctx: int, ours: Callable[[Work], list[Engine]]) -> Iterator[list[Engine]]:
        """Ours of one model, then llama.cpp's."""
        args = self.args
        model = Model(path, device=args.device, gpu_layers=args.gpu_layers, threads=args.threads)
        work = Work(model, reference_ids(model, n_ctx), n_ctx, args.limit)
        sides: list[Engine] = []
        try:
            sides += ours(work)
            for kv in args.vs_kv if args.vs else []:
                sides.append(LlamaCpp(work, kv))
            self._say_where(path.name, model.info, sides)
            yield sides
        finally:
            for side in sides:
                side.close()

    def _say_where(self, model: str, info: ModelInfo, sides: list[Engine]) -> None:
        said: dict[str, str] = self.facts["runs_on"]
        if info.runs_on != next(reversed(said.values()), None):  # as the model before it
            cuda, index = self.facts["cuda"], info.device.partition(":")[2]
            self.say(f"on {info.runs_on}" + (f": {cuda[int(index)]}" if info.device.startswith("cuda") else ""))
        said[model] = info.runs_on
        build = next((side.build for side in sides if isinstance(side, LlamaCpp)), None)
        if build and "llama.cpp" not in self.facts:  # the same for all models
            self.facts["llama.cpp"] = build
            self.say(f"llama.cpp: {build}")

    def end(self) -> None:
        if self.args.json:
            kept = {**self.facts, "limit": self.args.limit, "rows": self.rows}
            self.args.json.write_text(json.dumps(kept, indent=1) + "\n")
