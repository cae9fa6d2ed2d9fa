"""How faithful compressed KV caches are to f16, while decoding given text:
`python -m zipcache_rt.fidelity [MODEL] --policies auto auto:2.8 q4_0 --data FILE... --context N --continue M`."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import checks, cli, fidelity_plot, plotting
from ._core import ArgumentError, FileError
from .fidelity_data import Text, read
from .fidelity_report import CONTROL, Figures, Report, Result, Run, TextFacts
from .hashes import ids_sha256
from .model import Model
from .options import KvOptions
from .session import KvStats
from .teacher_forced import Given, log_probs
from .work import Work

__all__ = ["Figures", "Report", "Result", "Run", "Text", "compare", "measure", "read"]

F16 = KvOptions(policy="f16")
IN_MEMORY = 2**30  # bytes of reference log-probabilities; more go to a temporary file
CONTROL_DECODED = 33  # tokens of the context that the control decodes; 1 or 33 make the same floor


@dataclass(frozen=True)
class _Side:
    """One way to keep the cache."""

    name: str
    options: KvOptions
    decoded: int = 0  # of the context: its last tokens, decoded instead of prefilled


@dataclass(frozen=True)
class _Job:
    """What every side does with one text."""

    given: Given
    n_ctx: int
    told: Work


def measure(
    model: Model,
    policies: Sequence[str | KvOptions],
    texts: Sequence[Text],
    context: int,
    n_continue: int,
    *,
    n_ctx: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Compares each policy's next-token distributions with those of the f16 cache of the same engine.

    Of each text the first `context` tokens are prefilled and the next `n_continue` decoded, whatever the model would
    have said; the distribution before each of these is scored. n_ctx: what the sessions may hold; None for just that.
    progress: called with 0..1. Raises ArgumentError before any work; ModelError where logits are not finite.
    """
    n_ctx = _check(model, texts, context, n_continue, n_ctx)
    sides = _sides(policies, context)
    for side in sides:
        model.session(n_ctx=n_ctx, kv=side.options).close()  # refuses what cannot run here
    needed = context + n_continue
    all_given = [Given(text.name, text.tokens[:needed], context) for text in texts]
    told = Work(len(sides) * sum(given.work for given in all_given), progress or (lambda done: None))
    jobs = [_Job(given, n_ctx, told) for given in all_given]
    runs = list(zip(*(_runs(model, sides, job) for job in jobs), strict=True))  # [n_sides][n_texts]
    results = [Result.of(side.name, str(side.options), made, runs[0]) for side, made in zip(sides, runs, strict=True)]
    facts = tuple(_facts(text, needed) for text in texts)
    return Report(model.info, context, n_continue, n_ctx, facts, results[0], results[1], tuple(results[2:]))


def _sides(policies: Sequence[str | KvOptions], context: int) -> list[_Side]:
    """The reference, the control, and the policies."""
    if isinstance(policies, (str, KvOptions)):
        raise ArgumentError(f"policies is {type(policies).__name__}; accepted: several of them")
    named = [(str(word), word if isinstance(word, KvOptions) else KvOptions.parse(word)) for word in policies]
    # Prefill in two long pieces gives the same bits as in one, so the control decodes the context's end: the same
    # products by other kernels. Where those round activations to 8 bits that alone is far from nothing.
    control = _Side(CONTROL, F16, min(CONTROL_DECODED, context - 1))
    return [_Side("f16", F16), control, *(_Side(name, options) for name, options in named)]


def _runs(model: Model, sides: Sequence[_Side], job: _Job) -> list[Run]:
    """[n_sides]; the first side is the reference of the others."""
    with _table(len(job.given.tokens) - job.given.context, model.info.n_vocab) as expected:
        runs: list[Run] = []
        for side in sides:
            with model.session(n_ctx=job.n_ctx, kv=side.options) as session:
                rows = log_probs(session, job.given, job.told, policy=side.name, decoded=side.decoded)
                if not runs:
                    for i, row in enumerate(rows):
                        expected[i] = row
                    rows = iter(expected)
                runs.append(compare(rows, expected, job.given, session.kv_stats))
        return runs


def compare(
    rows: Iterable[NDArray[np.float32]], expected: NDArray[np.float32], given: Given, kv: Callable[[], KvStats]
) -> Run:
    """What log_probs() tells of a text beside what was expected, [n_continue, n_vocab]. kv: called after the last."""
    n = len(expected)
    kl, same_top, logprobs = np.empty(n), np.empty(n, np.bool_), np.empty(n)
    for i, row in enumerate(rows):
        kl[i] = _divergence(expected[i], row)
        same_top[i] = row.argmax() == expected[i].argmax()
        logprobs[i] = row[given.tokens[given.context + i]]
    return Run(kl, same_top, logprobs, kv())


def _check(model: Model, texts: Sequence[Text], context: int, n_continue: int, n_ctx: int | None) -> int:
    """The n_ctx to use, or ArgumentError."""
    context = checks.integer(context, "context", 2, 2**31, "2 or more tokens")
    n_continue = checks.integer(n_continue, "continue", 3, 2**31, "3 or more tokens")
    needed, most = context + n_continue, model.info.n_ctx_train
    if needed > most:
        raise ArgumentError(f"context and continue are {needed} tokens; accepted: up to the model's {most}")
    if not texts:
        raise ArgumentError("there are no texts; accepted: one or more")
    for text in texts:
        if len(text.tokens) < needed:
            skipped = f" after the {text.skipped} skipped" if text.skipped else ""
            raise ArgumentError(f"{text.name} has {len(text.tokens)} tokens{skipped}; needed: {needed}")
    return checks.integer(needed if n_ctx is None else n_ctx, "n_ctx", needed, most, f"{needed} to {most}, or None")


def _facts(text: Text, n_tokens: int) -> TextFacts:
    return TextFacts(text.name, len(text.tokens) + text.skipped, text.skipped, ids_sha256(text.tokens[:n_tokens]))


@contextmanager
def _table(n_rows: int, n_columns: int) -> Iterator[NDArray[np.float32]]:
    """float32 [n_rows, n_columns], in a temporary file when it is large."""
    shape = (n_rows, n_columns)
    if n_rows * n_columns * 4 <= IN_MEMORY:
        yield np.empty(shape, np.float32)
        return
    with tempfile.TemporaryDirectory(prefix="zipcache-", ignore_cleanup_errors=True) as folder:
        try:
            path = Path(folder, "log_probs.npy")
            table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a signal later
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise FileError(f"cannot keep the reference in a temporary file: {error}") from error
        yield table


def _divergence(expected: NDArray[np.float32], given: NDArray[np.float32]) -> float:
    """KL(expected || given), nats, of log-probabilities [n_vocab].

    sum(p log(p / q) - p + q): the sums of p and q are 1 but for the rounding of their logarithms, whose first order
    so falls out.
    """
    log_p, log_q = expected.astype(np.float64), given.astype(np.float64)
    p, q = np.exp(log_p), np.exp(log_q)
    return max(0.0, float((p * (log_p - log_q) - p + q).sum()))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.fidelity", description=__doc__)
    cli.add_model_options(parser, kv=False)
    parser.add_argument(
        "--policies", nargs="+", default=["auto"], metavar="POLICY", help=f"what to measure: {cli.KV_FORM} each"
    )
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="texts: plain, .jsonl or .jsonl.gz files")
    parser.add_argument(
        "--context", type=int, default=3000, help="tokens to prefill of each text (default: %(default)s)"
    )
    parser.add_argument(
        "--continue",
        dest="n_continue",
        type=int,
        default=300,
        help="tokens to decode and score after them (default: %(default)s)",
    )
    parser.add_argument("--skip", type=int, default=0, help="leave out so many tokens of each text's beginning")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw KL over bits there: .png, .svg or .pdf")
    return parser.parse_args(arguments)


def main() -> int:
    args = parse()
    plotting.check_outputs(args.json, args.plot)
    for word in args.policies:
        KvOptions.parse(word)  # told before a model is loaded
    contents = [read(path) for path in args.data]
    model = cli.open_model(args)
    texts = [Text.of(model, path.name, text, args.skip) for path, text in zip(args.data, contents, strict=True)]
    with cli.progress_bar("Measuring", eta=True) as progress:
        report = measure(model, args.policies, texts, args.context, args.n_continue, n_ctx=args.ctx, progress=progress)
    cli.console().print(report.table())
    if args.json:
        try:
            args.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"cannot write the figures: {error}") from error
    if args.plot:
        fidelity_plot.save(report, args.plot)
    return 0


if __name__ == "__main__":
    cli.run(main)
