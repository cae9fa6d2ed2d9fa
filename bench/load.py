"""Load time (warm page cache) and peak memory while chatting, ours and llama.cpp's, each run in a fresh process.

python bench/load.py MODEL... [--kv auto] [--vs llama.cpp] [--repeat 5] [--threads N]
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from rich.console import Console

from common import in_fresh_process, numbers_table, peak_bytes

PROMPT = "Tell me about Paris. " * 20
N_TOKENS = 64


def ours(path: Path, threads: int, kv: str) -> tuple[float, int]:
    """Seconds to load, bytes of KV cache after a reply."""
    from zipcache_rt import KvOptions, Model

    began = time.perf_counter()
    model = Model(path, threads=threads)
    loaded = time.perf_counter() - began
    session = model.session(kv=KvOptions.parse(kv))
    for _ in session.generate(PROMPT, max_tokens=N_TOKENS):
        pass
    return loaded, session.kv_stats().bytes


def llama_cpp(path: Path, threads: int, _kv: str) -> tuple[float, int]:
    from llama_cpp import Llama

    began = time.perf_counter()
    llm = Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False)
    loaded = time.perf_counter() - began
    llm(PROMPT, max_tokens=N_TOKENS)
    return loaded, 0


ENGINES = {"ours": ours, "llama.cpp": llama_cpp}


def child(engine: str, path: Path, threads: int, kv: str) -> None:
    loaded, cache = ENGINES[engine](path, threads, kv)
    print(json.dumps({"load": loaded, "kv": cache, "peak": peak_bytes()}))


def measure(engine: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    return in_fresh_process(__file__, path, "--child", engine, "--threads", args.threads, "--kv", args.kv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--kv", default="auto", metavar="POLICY", help="ours; llama.cpp's is f16")
    parser.add_argument("--vs", choices=["llama.cpp"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.models[0], args.threads, args.kv)
        return
    title = f"medians of {args.repeat}; peak: resident memory of the whole process, MB = 1e6 bytes"
    table = numbers_table(title, ("model", "engine"), ("load s", "file MB", "KV MB", "peak MB", "peak - file - KV MB"))
    for path in args.models:
        path.read_bytes()  # into the page cache
        size = path.stat().st_size
        engines = ["ours", args.vs] if args.vs else ["ours"]
        runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for _ in range(args.repeat):
            for engine in engines:
                runs[engine].append(measure(engine, path, args))
        for engine, found in runs.items():
            load, kv, peak = (statistics.median(run[key] for run in found) for key in ("load", "kv", "peak"))
            known = f"{kv / 1e6:.1f}" if engine == "ours" else "-"
            rest = f"{(peak - size - kv) / 1e6:.0f}" if engine == "ours" else "-"
            table.add_row(path.name, engine, f"{load:.3f}", f"{size / 1e6:.1f}", known, f"{peak / 1e6:.0f}", rest)
    from zipcache_rt import cli  # not at the top: a llama.cpp child must not load our ggml

    console = Console(width=110)
    console.print(f"{cli.machine()}; {args.threads} threads; ours with a {args.kv} cache", markup=False)
    console.print(table)


if __name__ == "__main__":
    main()
