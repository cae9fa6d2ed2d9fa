"""Accuracy under compressed KV caches, and agreement with what f16 answers:
`python -m zipcache_rt.eval TASK [MODEL] --policies POLICY... --out results.jsonl`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import cli
from .._core import FileError
from ..options import KvOptions
from .case import Task
from .counting import CommonWords, FrequentWords
from .gsm8k import Gsm8k
from .humaneval import HumanEval
from .lines import Lines
from .niah import MultiKeyNiah, Niah
from .perplexity import Perplexity
from .run import run
from .run_code import Limits
from .run_options import RunOptions
from .summary import Summary, summarize
from .tracking import VariableTracking

ALL = 2**31  # cases


@dataclass(frozen=True)
class Tool:
    """A task on the command line."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace], Task]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def add_cases(parser: argparse.ArgumentParser, n: int = ALL, each: str = "") -> None:
    shown = "all" if n == ALL else str(n)
    parser.add_argument("--cases", type=int, default=n, metavar="N", help=f"how many{each} (default: {shown})")


def add_lines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="JSON lines of prompt, expected_number (default: made up)")
    parser.add_argument("--lines", type=numbers, default=(20, 40, 80), metavar="N,N...", help="(default: 20,40,80)")
    add_cases(parser, 50, " of each number of lines")
    parser.add_argument("--seed", type=int, default=0, help="of what is made up (default: %(default)s)")


def add_gsm8k(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of question, answer")
    parser.add_argument("--shots", type=Path, help="such a file, for the solved examples (default: none)")
    parser.add_argument("--n-shots", type=int, default=8, help="how many of them (default: %(default)s)")
    parser.add_argument("--share-shots", action="store_true", help=SHARE)
    parser.add_argument("--max-tokens", type=int, default=320, help="of a reply (default: %(default)s)")
    add_cases(parser)


SHARE = "prefill and compress them once a policy, not with each question: faster, and not the same measurement"
RUN_CODE = (
    "run what the model wrote, to score it. It runs in a process with limits of time and memory and is NOT isolated: "
    "it can read and write your files and reach the network. Use a container or a virtual machine"
)


def add_humaneval(parser: argparse.ArgumentParser) -> None:
    limits = Limits()
    parser.add_argument("--data", type=Path, required=True, help="HumanEval.jsonl or .jsonl.gz")
    parser.add_argument("--run-code", action="store_true", help=RUN_CODE)
    parser.add_argument("--code-seconds", type=int, default=limits.seconds, help="(default: %(default)s)")
    parser.add_argument("--code-megabytes", type=int, default=limits.megabytes, help="(default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a reply (default: %(default)s)")
    add_cases(parser)


def add_perplexity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="texts: plain, .jsonl or .jsonl.gz files")
    parser.add_argument("--context", type=int, default=2000, help="tokens to prefill (default: %(default)s)")
    parser.add_argument(
        "--continue", dest="n_continue", type=int, default=200, help="tokens to predict then (default: %(default)s)"
    )
    parser.add_argument("--chunks", type=int, default=10, help="most such stretches of a text (default: %(default)s)")


def add_synthetic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens",
        type=numbers,
        default=(1000, 2000, 4000),
        metavar="N,N...",
        help="lengths of prompts (default: 1000,2000,4000)",
    )
    add_cases(parser, 20, " of each length")
    parser.add_argument("--seed", type=int, default=0, help="of what is made up (default: %(default)s)")


def add_multikey(parser: argparse.ArgumentParser) -> None:
    add_synthetic(parser)
    parser.add_argument("--keys", type=int, default=4, help="needles, of which one is asked for (default: %(default)s)")


def add_tracking(parser: argparse.ArgumentParser) -> None:
    add_synthetic(parser)
    parser.add_argument("--chains", type=int, default=2, help="of which one is asked for (default: %(default)s)")
    parser.add_argument("--hops", type=int, default=4, help="assignments along each (default: %(default)s)")


TOOLS: Mapping[str, Tool] = {
    "lines": Tool(
        "one number out of many lines (LongEval)",
        add_lines,
        lambda args: Lines(args.data, args.lines, args.cases, args.seed),
    ),
    "gsm8k": Tool(
        "school mathematics by chain of thought",
        add_gsm8k,
        lambda args: Gsm8k(args.data, args.shots, args.n_shots, args.cases, args.max_tokens),
    ),
    "humaneval": Tool(
        "Python functions from their docstrings",
        add_humaneval,
        lambda args: HumanEval(
            args.data, args.run_code, Limits(args.code_seconds, args.code_megabytes), args.cases, args.max_tokens
        ),
    ),
    "perplexity": Tool(
        "of texts, decoded after a compressed beginning",
        add_perplexity,
        lambda args: Perplexity(tuple(args.data), args.context, args.n_continue, args.chunks),
    ),
    "niah": Tool("a needle in a haystack", add_synthetic, lambda args: Niah(args.tokens, args.cases, args.seed)),
    "niah-multikey": Tool(
        "a needle among others",
        add_multikey,
        lambda args: MultiKeyNiah(args.tokens, args.cases, args.seed, args.keys),
    ),
    "variable-tracking": Tool(
        "variables through chains of assignments",
        add_tracking,
        lambda args: VariableTracking(args.tokens, args.cases, args.seed, args.chains, args.hops),
    ),
    "common-words": Tool(
        "the most common words of a list", add_synthetic, lambda args: CommonWords(args.tokens, args.cases, args.seed)
    ),
    "frequent-words": Tool(
        "the most frequent words of a made-up language",
        add_synthetic,
        lambda args: FrequentWords(args.tokens, args.cases, args.seed),
    ),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.eval", description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, tool in TOOLS.items():
        task = tasks.add_parser(name, help=tool.help, description=f"{name}: {tool.help}")
        add_run_options(task)
        tool.add_options(task)
    return parser.parse_args(arguments)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    cli.add_model_options(parser, kv=False)
    parser.add_argument(
        "--policies",
        nargs="+",
        default=["auto"],
        metavar="POLICY",
        help=f"what to compare with f16: {cli.KV_FORM} each (default: auto)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="keep each result there as a line of JSON; what it holds is not run again",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="cases answered at once, by as many processes that share the threads (default: 1)",
    )
    parser.add_argument(
        "--template",
        action=argparse.BooleanOptionalAction,
        help="ask through the model's chat template (default: where it has one)",
    )
    parser.add_argument("--bootstrap-seed", type=int, default=0, help="of the confidence intervals (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there")


def run_options(args: argparse.Namespace) -> RunOptions:
    return RunOptions(
        device=args.device,
        gpu_layers=args.gpu_layers,
        threads=args.threads,
        jobs=args.jobs,
        template=args.template,
        share_shots=getattr(args, "share_shots", False),
        n_ctx=args.ctx,
        repack=not args.no_repack,
    )


def write(path: Path, summaries: list[Summary]) -> None:
    try:
        path.write_text(json.dumps([summary.as_dict() for summary in summaries], indent=1) + "\n", "utf-8")
    except OSError as error:
        raise FileError(f"cannot write the summary: {error}") from error


def main() -> int:
    args = parse()
    for word in args.policies:
        KvOptions.parse(word)  # told before a model is loaded
    cli.check_folder(args.json)
    task = TOOLS[args.task].make(args)
    with cli.progress_bar(f"Running {task.name}", eta=True) as progress:
        records = run(
            args.model or cli.demo_model(),
            task,
            args.policies,
            out=args.out,
            options=run_options(args),
            progress=progress,
        )
    summaries = summarize(records, seed=args.bootstrap_seed)
    for summary in summaries:
        cli.console().print(summary.table())
    if args.json:
        write(args.json, summaries)
    return 0


if __name__ == "__main__":
    cli.run(main)
