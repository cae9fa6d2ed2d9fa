"""Who is salient: how much attention each token of a prompt gets, in colours, as a picture or as JSON:
`python -m zipcache_rt.saliency [MODEL] --prompt FILE | --text TEXT [--layer N] [--plot OUT.png] [--json OUT.json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from . import checks, cli, plotting, saliency_view
from ._core import ArgumentError, FileError
from .fidelity_data import read
from .model import Model
from .options import PROBES, KvOptions

METRICS = ("normalized", "accumulated")
Layer = int | None  # None: the mean over layers


@dataclass(frozen=True)
class Saliency:
    """How much attention the probe tokens of a prompt pay to each of its tokens."""

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]  # [n_tokens] their texts; "" from a model without a tokenizer
    probes: NDArray[np.int64]  # [n_probes] rising: the tokens whose attention was scored
    score: NDArray[np.float64]  # [n_layers, n_kv_heads, n_tokens]: sum over probes and the heads of a KV head's group
    seen: NDArray[np.float64]  # [n_layers, n_tokens]: probes that see the token
    n_heads: int  # query heads

    @property
    def n_layers(self) -> int:
        return len(self.score)

    def by_layer(self, metric: str) -> NDArray[np.float64]:
        """[n_layers, n_tokens], mean over query heads.

        accumulated: sum over the probes of the probability that they give the token (H2O, MiKV). normalized: that sum
        over the number of probes that see the token (ZipCache, paper section 4.2).
        """
        if metric not in METRICS:
            raise ArgumentError(f"the metric is {metric!r}; accepted: {', '.join(METRICS)}")
        total: NDArray[np.float64] = self.score.sum(1) / self.n_heads
        return total / np.maximum(self.seen, 1) if metric == "normalized" else total

    def of(self, metric: str, layer: Layer = None) -> NDArray[np.float64]:
        """[n_tokens] of one layer, or the mean over all."""
        rows = self.by_layer(metric)
        if layer is None:
            mean: NDArray[np.float64] = rows.mean(0)
            return mean
        one: NDArray[np.float64] = rows[checks.integer(layer, "layer", 0, self.n_layers - 1, _layers(self.n_layers))]
        return one

    def salient_share(self, metric: str, ratio: float) -> NDArray[np.float64]:
        """[n_tokens]: the share of layers in which the token is among the `ratio` most salient ones."""
        if not 0 <= ratio <= 1:
            raise ArgumentError(f"ratio is {ratio}; accepted: 0 to 1")
        n_salient = round(ratio * len(self.tokens))
        order = np.argsort(-self.by_layer(metric), axis=1, kind="stable")[:, :n_salient]  # the older first among equals
        share: NDArray[np.float64] = np.bincount(order.ravel(), minlength=len(self.tokens)) / self.n_layers
        return share

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "tokens": list(self.tokens),
            "pieces": list(self.pieces),
            "probes": self.probes.tolist(),
            "seen": self.seen.astype(int).tolist(),
            **{metric: np.round(self.by_layer(metric), 9).tolist() for metric in METRICS},
        }


def _layers(n_layers: int) -> str:
    return f"0 to {n_layers - 1}, or None for the mean over layers"


def measure(
    model: Model,
    tokens: Iterable[int],
    *,
    kv: KvOptions = KvOptions(policy="f16", probes="all"),  # noqa: B008 (frozen)
    progress: Callable[[float], None] | None = None,
) -> Saliency:
    """Runs a prompt through the model and scores its tokens in every layer.

    kv: whose probes to take (probes, random_probes, recent_probes, seed); all tokens by default. Raises ArgumentError.
    """
    ids = checks.token_ids(tokens, "tokens")
    made = model.score_prompt(ids, kv=kv, progress=progress)
    texts = [model.piece(token) for token in ids] if model.info.has_tokenizer else [""] * len(ids)
    return Saliency(
        tokens=tuple(ids),
        pieces=tuple(texts),
        probes=made["probes"],
        score=made["score"].astype(np.float64),
        seen=made["seen"].astype(np.float64),
        n_heads=model.info.n_heads,
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zipcache_rt.saliency", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; left out: the demo package's model")
    cli.add_device_options(parser)
    parser.add_argument("--threads", type=int, help="threads to compute with (default: one a core)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", type=Path, metavar="FILE", help="plain text, .jsonl or .jsonl.gz; - for stdin")
    source.add_argument("--text", help="the prompt itself")
    parser.add_argument("--chat", action="store_true", help="the prompt as a user's turn of the model's chat template")
    parser.add_argument("--most", type=int, default=1000, help="tokens of a longer prompt to keep (default: 1000)")
    parser.add_argument("--layer", type=int, help="one layer, from 0 (default: the mean over layers)")
    parser.add_argument("--metric", choices=[*METRICS, "both"], default="both", help="(default: both, side by side)")
    parser.add_argument("--probes", choices=PROBES, default="all", help="whose attention is scored (default: all)")
    parser.add_argument("--top", type=int, default=10, help="salient tokens to list (default: 10)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw saliency over position: .png, .svg or .pdf")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every layer's figures there")
    return parser.parse_args(arguments)


def prompt_ids(model: Model, args: argparse.Namespace) -> list[int]:
    text = args.text if args.text is not None else sys.stdin.read() if str(args.prompt) == "-" else read(args.prompt)
    ids = model.tokenize_chat([{"role": "user", "content": text}]) if args.chat else model.tokenize(text)
    if not ids:
        raise ArgumentError("the prompt is empty; accepted: at least one token")
    return ids[: args.most]


def check(args: argparse.Namespace) -> None:
    """Finds before the work what would fail after it."""
    for name in ("top", "most"):
        checks.integer(getattr(args, name), f"--{name}", 1, 2**31, "1 or more")
    plotting.check_outputs(args.json, args.plot)


def main() -> int:
    args = parse()
    check(args)
    path = args.model or cli.demo_model()
    with cli.progress_bar("Loading") as progress:
        model = Model(path, device=args.device, gpu_layers=args.gpu_layers, threads=args.threads, progress=progress)
    if args.layer is not None:
        checks.integer(args.layer, "--layer", 0, model.info.n_layers - 1, f"0 to {model.info.n_layers - 1}")
    ids = prompt_ids(model, args)
    with cli.progress_bar("Scoring") as progress:
        found = measure(model, ids, kv=KvOptions(policy="f16", probes=args.probes), progress=progress)
    metrics = METRICS if args.metric == "both" else (args.metric,)
    view = saliency_view.View({metric: found.of(metric, args.layer) for metric in metrics}, found, args.layer)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    view.show(console, args.top)
    if args.json:
        try:
            args.json.write_text(json.dumps(found.as_dict()) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"cannot write the figures: {error}") from error
    if args.plot:
        plotting.write(view.draw(args.top), args.plot)
    return 0


if __name__ == "__main__":
    cli.run(main)
