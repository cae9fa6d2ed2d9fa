"""Prefill and decode speed at depth, ours and llama.cpp's in turn.

python bench/decode.py MODEL... [--vs llama.cpp] [--depth 0,2000] [--prefill 512] [--decode 128] [--repeat 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zipcache_rt import Model, Session, _core, cli


class Ours:
    """This runtime, f16 cache."""

    def __init__(self, path: Path, threads: int, n_ctx: int) -> None:
        self.session: Session = Model(path, threads=threads).session(n_ctx=n_ctx)

    def measure(self, depth: int, prefill: int, decode: int) -> dict[str, float]:
        session = self.session
        session.truncate(min(depth, session.n_past))
        if depth > session.n_past:
            session.prefill([100 + i % 1000 for i in range(depth - session.n_past)])
        began = time.perf_counter()
        session.prefill([100 + i % 1000 for i in range(prefill)])
        prefilled = time.perf_counter() - began
        session.truncate(depth)
        began = time.perf_counter()
        for i in range(decode):
            session.decode(100 + i % 1000)
        decoded = time.perf_counter() - began
        session.truncate(depth)
        return {"prefill": prefilled, "decode": decoded}


class LlamaCpp:
    """llama.cpp with an f16 cache and flash attention, in a process of its own."""

    def __init__(self, path: Path, threads: int, n_ctx: int) -> None:
        script = Path(__file__).with_name("llama_cpp_worker.py")
        command = [sys.executable, str(script), str(path), str(threads), str(n_ctx)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.build = self._read()["build"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the llama.cpp worker ended; is llama-cpp-python installed? (pip install '.[bench]')")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, depth: int, prefill: int, decode: int) -> dict[str, float]:
        assert self.process.stdin
        print(json.dumps({"depth": depth, "prefill": prefill, "decode": decode}), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    n_ctx = max(args.depth) + max(args.prefill, args.decode) + 8
    sides: dict[str, Any] = {"ours": Ours(path, args.threads, n_ctx)}
    if args.vs:
        sides["llama.cpp"] = LlamaCpp(path, args.threads, n_ctx)
    rows = []
    for depth in args.depth:
        times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for side in sides.values():
            side.measure(depth, 16, 2)  # fills the cache up to depth, warms up
        for _ in range(args.repeat):
            for name, side in sides.items():
                times[name].append(side.measure(depth, args.prefill, args.decode))
        for phase, n in (("prefill", args.prefill), ("decode", args.decode)):
            rate = {name: n / statistics.median(t[phase] for t in made) for name, made in times.items()}
            rows.append({"model": path.name, "phase": phase, "depth": depth, "rate": rate})
    if args.vs:
        rows[0]["llama_cpp_build"] = sides["llama.cpp"].build
        sides["llama.cpp"].close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--vs", choices=["llama.cpp"])
    parser.add_argument("--depth", type=lambda text: [int(n) for n in text.split(",")], default=[0, 2000])
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [row for path in args.models for row in compare(path, args)]
    build = _core.ggml_build()
    facts = {"machine": cli.machine(), "threads": args.threads, "repeat": args.repeat, "ours": build}
    if args.json:
        print(json.dumps({**facts, "rows": rows}))
        return
    table = Table("model", "phase", "depth", "ours", "llama.cpp", "ratio", title="tokens/s, median")
    for row in rows:
        rate = row["rate"]
        other = rate.get("llama.cpp")
        ratio = f"{rate['ours'] / other:.2f}" if other else "-"
        table.add_row(
            row["model"],
            row["phase"],
            str(row["depth"]),
            f"{rate['ours']:.1f}",
            f"{other:.1f}" if other else "-",
            ratio,
        )
    console = Console(width=120)
    console.print(f"{facts['machine']}; {args.threads} threads; {args.repeat} runs in turn")
    console.print(f"ours: ggml {build['version']} ({build['source']}), {build['features']}, kernels {build['kernels']}")
    for row in rows:
        if "llama_cpp_build" in row:
            console.print(f"llama.cpp: {row['llama_cpp_build']}", markup=False)
            break
    console.print(table)


if __name__ == "__main__":
    main()
