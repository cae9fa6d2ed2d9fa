"""Tests a device and writes one report to send back: its operators and a whole model beside portable CPU kernels, then
its speed. `python -m zipcache_rt.selftest [MODEL] --device cpu|cuda|cuda:N|metal|auto [--quick]`

The last line says PASSED or FAILED, and the exit code says the same. Nothing is sent anywhere."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from .. import _core, checks, cli, random_gguf
from .._core import ArgumentError, FileError
from ..eval import RunOptions
from ..fidelity_report import versions
from ..model import Model
from ..options import KvOptions
from ..whole_file import replacing
from . import ops, speed, whole_model
from .part import Part, guarded

FORMAT = 1  # of the report


@dataclass(frozen=True)
class Size:
    """How much is done of each part."""

    ops: ops.Size
    model: whole_model.Size
    speed: speed.Size


QUICK = Size(ops.Size(0, 320), whole_model.Size(("f16", "auto"), 170, 12), speed.Size(("f16", "auto"), [100], 8))
EACH = ("f16", "zipcache", "auto")
FULL = Size(ops.Size(300, 640), whole_model.Size(EACH, 1000, 100), speed.Size(EACH, [100, 1000, 4000], 100))
RANDOM = random_gguf.Shape(layers=4, embd=512, heads=8, kv_heads=4, head_dim=64, ff=1024, vocab=4096, ctx=8192)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.selftest", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        help="a GGUF file; left out: the demo package's model, or else a small random one",
    )
    cli.add_device_options(parser)
    parser.add_argument("--threads", type=int, help="threads to compute with (default: one a core)")
    parser.add_argument("--cases", type=int, help="random layers for the operators (default: 300)")
    parser.add_argument("--seed", type=int, help="of the random layers, to repeat a run (default: a new one)")
    parser.add_argument("--depths", help="tokens before the decoding that is timed (default: 100,1000,4000)")
    parser.add_argument("--quick", action="store_true", help="few cases, short texts, one depth: seconds, not minutes")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the report (default: selftest-DEVICE-DATE.json in this folder)"
    )
    args = parser.parse_args(arguments)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    args.seed = checks.integer(seed, "--seed", 0, 2**64, "0 or more")
    if args.threads is not None:
        checks.integer(args.threads, "--threads", 1, 512, "1 to 512")
    args.size = _size(args)
    return args


def _size(args: argparse.Namespace) -> Size:
    own = QUICK if args.quick else FULL
    n_cases = own.ops.n_cases if args.cases is None else checks.integer(args.cases, "--cases", 0, 10**6, "0 or more")
    depths = own.speed.depths if args.depths is None else _depths(args.depths)
    return Size(replace(own.ops, n_cases=n_cases), own.model, replace(own.speed, depths=depths))


def _depths(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and 0 < int(word) < 2**31 for word in words):
        raise ArgumentError(f"--depths is {text!r}; accepted: numbers of tokens above 0, separated by commas")
    return [int(word) for word in words]


def find_model(given: Path | None, folder: Path) -> Path:
    """The model to test with; a random one is written into the folder. Raises FileError that says how to get one."""
    if given:
        return given
    try:
        return cli.demo_model()
    except FileError as none:
        path = folder / "random.gguf"
        try:
            random_gguf.write(path, RANDOM)
        except ArgumentError as error:
            raise FileError(f"{none}; a random one could stand in, but {error}") from None
        return path


def with_model(args: argparse.Namespace, path: Path, device: str) -> Part:
    with (
        Model(path, device=device, gpu_layers=args.gpu_layers, threads=args.threads) as model,
        cli.progress_bar("A whole model", eta=True) as progress,
    ):
        return whole_model.test(path, model, args.size.model, progress)


def at_speed(args: argparse.Namespace, path: Path, device: str, n_ctx: int) -> Part:
    options = RunOptions(device=device, gpu_layers=args.gpu_layers, threads=args.threads)
    with cli.progress_bar("Speed", eta=True) as progress:
        return speed.test(path, options, args.size.speed.fitted(n_ctx), progress)


def operators(args: argparse.Namespace, device: str) -> Part:
    with cli.progress_bar("Operators", eta=True) as progress:
        return ops.test(device, args.size.ops, args.seed, progress)


def show(console: Console, part: Part) -> None:
    for table in part.tables:
        console.print(table)
    for line in part.notes:
        console.print(Text(line, style="dim"))
    for failure in part.failures:
        console.print(Text(cli.harmless(f"FAILED: {part.name}: {failure.name}: {failure.detail}"), style="red"))


def test(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The report, but for its text. Raises ArgumentError for a device that is not there, FileError and ModelError for a
    model that cannot be read."""
    began = time.time()
    device = _core.find_device(args.device)
    name, build = device["name"], _core.ggml_build()
    memory = f"{device['free'] / 2**30:.1f} of {device['total'] / 2**30:.1f} GiB free"
    console.print(Text(f"{cli.machine()}; kernels {build['kernels']}; ggml {build['version']} ({build['source']})"))
    console.print(Text(f"{name}: {device['description']}, {memory}"))
    with tempfile.TemporaryDirectory(prefix="zipcache-", ignore_cleanup_errors=True) as folder:
        path = find_model(args.model, Path(folder))
        n_ctx = _core.inspect(str(path), 0, True, KvOptions("f16").to_core())["plan"]["n_ctx"]
        works: dict[str, Callable[[], Part]] = {
            "operators": lambda: operators(args, name),
            "whole model": lambda: with_model(args, path, name),
            "speed": lambda: at_speed(args, path, name, n_ctx),
        }
        parts = []
        for title, work in works.items():
            parts.append(guarded(title, work))
            show(console, parts[-1])
    return {
        "format": FORMAT,
        "date": datetime.fromtimestamp(began, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 1),
        "arguments": sys.argv[1:],
        "machine": cli.machine(),
        "device": device,
        "versions": versions(),
        "n_checks": sum(len(part.checks) for part in parts),
        "n_failed": sum(len(part.failures) for part in parts),
        "parts": {part.name: part.as_dict() for part in parts},
    }


def write(path: Path, report: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def main() -> int:
    args = parse()
    cli.check_folder(args.out)
    console = cli.console()
    console.record, console.width = True, max(console.width, 120)  # tables are to be whole in the report
    report = test(args, console)
    out = args.out or Path(f"selftest-{report['device']['name'].replace(':', '')}-{report['date'][:10]}.json")
    passed = report["n_failed"] == 0
    verdict = f"PASSED: {report['n_checks']} checks"
    if not passed:
        verdict = f"FAILED: {report['n_failed']} of {report['n_checks']} checks"
    write(out, report | {"passed": passed, "text": [*console.export_text().splitlines(), verdict]})
    console.print(Text(f"The report is {out}: please attach it to an issue of the project, passed or failed."))
    console.print(verdict)
    return 0 if passed else 1


if __name__ == "__main__":
    cli.run(main)
