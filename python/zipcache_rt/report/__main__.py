"""The ZipCache paper's tables and figures on your own model, as pictures, CSV files and one page:
`python -m zipcache_rt.report MODEL --out DIR [--quick] [--only table1,figure5]`. What DIR holds is not made again."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from .. import cli
from .build import build
from .plan import ARTEFACTS, FULL, QUICK, chosen


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.report", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; left out: the demo package's model")
    parser.add_argument("--model2", nargs="+", type=Path, default=[], metavar="MODEL", help="further models")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    parser.add_argument("--quick", action="store_true", help="short contexts, few prompts, one run: a sketch")
    names = ", ".join(artefact.name for artefact in ARTEFACTS)
    parser.add_argument("--only", metavar="NAMES", help=f"measure for these alone, separated by commas: {names}")
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="texts to measure fidelity on: plain, .jsonl or .jsonl.gz (default: Python's reference and a module)",
    )
    cli.add_device_options(parser)
    parser.add_argument("--threads", type=int, help="threads to compute with (default: one a core)")
    return parser.parse_args(arguments)


def command(args: argparse.Namespace, models: list[Path]) -> str:
    """How to make the report again, but for --only."""
    words = ["python", "-m", "zipcache_rt.report", str(models[0]), "--out", str(args.out)]
    words += ["--quick"] if args.quick else []
    words += ["--device", args.device] if args.device != "auto" else []
    words += ["--gpu-layers", str(args.gpu_layers)] if args.gpu_layers is not None else []
    words += ["--threads", str(args.threads)] if args.threads else []
    for option, paths in (("--model2", models[1:]), ("--data", args.data)):
        words += [option, *map(str, paths)] if paths else []
    return shlex.join(words)


def main() -> int:
    args = parse()
    artefacts = chosen(args.only)
    models = [args.model or cli.demo_model(), *args.model2]
    made = build(
        models,
        args.out,
        QUICK if args.quick else FULL,
        artefacts=artefacts,
        data=args.data,
        device=args.device,
        gpu_layers=args.gpu_layers,
        threads=args.threads,
        command=command(args, models),
    )
    print(made)
    return 0


if __name__ == "__main__":
    cli.run(main)
