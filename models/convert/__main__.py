"""`python -m zipcache_rt.convert HF_DIR OUT.gguf`: a checkpoint as transformers saves it, to a GGUF file."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import checks, cli
from ..quantize_plan import ALIASES, MIXES
from . import extra

if TYPE_CHECKING:
    from .plan import Plan, Step


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="HF_DIR", help="config.json, safetensors or .bin, a tokenizer")
    parser.add_argument("target", type=Path, metavar="OUT.gguf")
    parser.add_argument(
        "--type", default="f16", metavar="TYPE", help=f"{', '.join([*MIXES, *ALIASES])} (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads to quantize with (default: one a core)")
    parser.add_argument("--no-verify", action="store_true", help="do not reopen the file and run a few tokens")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be written")
    return parser.parse_args(arguments)


def plan_table(plan: Plan) -> Table:
    title = f"{plan.architecture}: {len(plan.steps)} tensors, {plan.n_bytes:,} bytes"
    table = Table("tensor", "shape", "to", "bytes", "from", "type", title=title)
    for step in plan.steps:
        shape = " x ".join(str(n) for n in step.recipe.shape)
        kinds = ", ".join(sorted({tensor.kind for tensor in step.sources}))
        table.add_row(step.recipe.name, shape, step.kind.name, f"{step.n_bytes:,}", Text(_origin(step)), kinds)
    return table


def _origin(step: Step) -> str:
    names = [cli.harmless(tensor.name) for tensor in step.sources]
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "(computed)"


def main() -> int:
    args = parse()
    if args.threads is not None:
        checks.integer(args.threads, "--threads", 1, 512, "1 to 512")
    extra.require()
    from .conversion import execute
    from .plan import make_plan

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half-made is taken away
    began = time.perf_counter()
    plan = make_plan(args.source, args.type)
    console = Console()
    if args.dry_run:
        if not console.is_terminal:
            console.width = 200
        console.print(plan_table(plan))
    else:
        with cli.progress_bar(f"Writing {args.target.name}", eta=True, n_bytes=plan.n_bytes) as progress:
            execute(plan, args.target, threads=args.threads, verify=not args.no_verify, progress=progress)
        seconds = time.perf_counter() - began
        print(
            f"{args.target}: {plan.architecture}, {len(plan.steps)} tensors, {plan.n_bytes:,} bytes in {seconds:.1f} s"
        )
    for notice in plan.notices:
        print(f"note: {cli.harmless(notice)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
