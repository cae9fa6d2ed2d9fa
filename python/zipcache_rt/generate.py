"""Generate from a prompt, for scripts: `python -m zipcache_rt.generate MODEL --prompt TEXT`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from . import Piece, cli
from ._core import FileError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.generate", description=__doc__)
    cli.add_model_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt (default: standard input)")
    source.add_argument("--file", type=Path, help="a file that holds the prompt")
    parser.add_argument("--json", action="store_true", help="one JSON object a piece, the last with figures")
    cli.add_sampling_options(parser)
    return parser.parse_args(arguments)


def read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return str(args.prompt)
    try:
        return args.file.read_text("utf-8") if args.file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the prompt: {error}") from error


def main() -> int:
    args = parse()
    prompt = read_prompt(args)
    session = cli.open_session(args)
    with cli.progress_bar("Reading the prompt", shown=len(prompt) > 4 * cli.LONG_PREFILL) as progress:
        reply = session.generate(
            prompt, max_tokens=args.max_tokens, sampler=cli.sampler_options(args), stop=args.stop, progress=progress
        )
        first = next(reply, None)
    for piece in chain([first] if first else [], reply):
        show(piece, args.json)
    if args.json:
        figures = {"stats": asdict(session.stats), "kv": asdict(session.kv_stats())}
        print(json.dumps({"finish_reason": reply.finish_reason, **figures}))
    else:
        print()
    return 0


def show(piece: Piece, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(piece)), flush=True)
    else:
        print(cli.harmless(piece.text) if sys.stdout.isatty() else piece.text, end="", flush=True)


if __name__ == "__main__":
    cli.run(main)
