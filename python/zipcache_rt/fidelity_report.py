"""What a measurement of fidelity found: its figures, and how they are shown and kept."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text as Styled

from . import _core, cli
from .model import ModelInfo
from .session import KvStats

CONTROL = "f16 control"
INTERVAL = "normal approximation over all scored positions, taken as independent: 1.96 * deviation / root(n)"


@dataclass(frozen=True)
class Run:
    """One policy on one text, at each of its n_continue scored tokens."""

    kl: NDArray[np.float64]  # [n_continue] nats, KL(f16 || policy) of the distributions of the next token
    same_top: NDArray[np.bool_]  # [n_continue] the most probable token is that of f16
    logprobs: NDArray[np.float64]  # [n_continue] natural log, of the text's own token
    kv: KvStats  # after the last token


@dataclass(frozen=True)
class Figures:
    """The scored positions of one text or of several, summed up."""

    n_positions: int
    kl_mean: float  # nats, as all kl_
    kl_ci95: float  # half-width of the 95 % confidence interval of kl_mean; INTERVAL says how it is made
    kl_median: float
    kl_q999: float  # the 99.9 % quantile
    kl_max: float
    kl_thirds: tuple[float, ...]  # mean over the first, second and last third of each text's scored tokens
    same_top: float  # share of positions, 0..1
    perplexity: float  # of the texts' own tokens
    perplexity_ratio: float  # to that with the f16 cache

    @classmethod
    def of(cls, runs: Sequence[Run], reference: Sequence[Run]) -> Figures:
        """runs and reference: of the same texts, in the same order."""
        kl = np.concatenate([run.kl for run in runs])
        logprob, expected = (np.concatenate([run.logprobs for run in side]).mean() for side in (runs, reference))
        thirds = zip(*(np.array_split(run.kl, 3) for run in runs), strict=True)
        deviation = float(kl.std(ddof=1)) if kl.size > 1 else 0.0
        return cls(
            n_positions=kl.size,
            kl_mean=float(kl.mean()),
            kl_ci95=1.96 * deviation / kl.size**0.5,
            kl_median=float(np.median(kl)),
            kl_q999=float(np.quantile(kl, 0.999)),
            kl_max=float(kl.max()),
            kl_thirds=tuple(float(np.concatenate(third).mean()) for third in thirds),
            same_top=float(np.concatenate([run.same_top for run in runs]).mean()),
            perplexity=float(np.exp(-logprob)),
            perplexity_ratio=float(np.exp(expected - logprob)),
        )


@dataclass(frozen=True)
class Result:
    """One policy on all texts."""

    name: str  # as it was asked for
    options: str  # as KvOptions.parse() takes it
    figures: Figures
    kv: KvStats  # of the caches at the end of each text, together
    text_figures: tuple[Figures, ...]  # [n_texts]
    runs: tuple[Run, ...]  # [n_texts]

    @classmethod
    def of(cls, name: str, options: str, runs: Sequence[Run], reference: Sequence[Run]) -> Result:
        each = tuple(Figures.of([run], [base]) for run, base in zip(runs, reference, strict=True))
        kv = together([run.kv for run in runs])
        return cls(name, options, Figures.of(runs, reference), kv, each, tuple(runs))

    @property
    def bits(self) -> float:
        """All-in bits an element of compressed tokens; of all tokens where none is compressed."""
        return self.kv.compressed_bits or self.kv.bits

    def as_dict(self, texts: Sequence[TextFacts]) -> dict[str, Any]:
        rows = zip(texts, self.text_figures, self.runs, strict=True)
        return {
            "policy": self.name,
            "options": self.options,
            **asdict(self.figures),
            "kv": asdict(self.kv),
            "texts": [{"name": text.name, **asdict(one), "kv": asdict(run.kv)} for text, one, run in rows],
        }


def together(stats: Sequence[KvStats]) -> KvStats:
    """Several caches as if they were one."""
    counts = ("bytes", "elements", "n_tokens", "compressed_bytes", "compressed_elements")
    total: dict[str, int] = {name: sum(getattr(kv, name) for kv in stats) for name in counts}
    bits = total["bytes"] * 8 / total["elements"] if total["elements"] else 0.0
    compressed = total["compressed_bytes"] * 8 / total["compressed_elements"] if total["compressed_elements"] else 0.0
    return KvStats(**total, bits=bits, ratio=16 / bits if bits else 0.0, compressed_bits=compressed)


@dataclass(frozen=True)
class TextFacts:
    """Which tokens of which text were measured."""

    name: str
    n_tokens: int  # of the whole text
    skipped: int  # tokens left out at its beginning, a bos token apart
    sha256: str  # of the measured ids as little-endian int32


@dataclass(frozen=True)
class Report:
    """A whole measurement."""

    model: ModelInfo
    context: int  # tokens prefilled
    n_continue: int  # tokens scored after them
    n_ctx: int
    texts: tuple[TextFacts, ...]
    reference: Result  # the f16 cache itself: its KL is 0 by definition
    control: Result  # f16, sums made in another order: what rounding alone does
    results: tuple[Result, ...]

    def as_dict(self) -> dict[str, Any]:
        """All figures and what it takes to measure them again, ready for JSON."""
        info = asdict(self.model)
        shown = ("name", "architecture", "quantization", "n_params", "n_vocab", "head_dim", "n_heads", "n_kv_heads")
        model = {"file": Path(self.model.path).name, "file_bytes": info["file_bytes"]}
        return {
            "model": model | {key: info[key] for key in (*shown, "n_layers", "weights_repacked")},
            "machine": cli.machine(),
            "versions": versions(),
            "context": self.context,
            "continue": self.n_continue,
            "n_ctx": self.n_ctx,
            "threads": self.model.threads,
            "kl": "nats, KL(f16 || policy), teacher-forced while decoding",
            "ci95": INTERVAL,
            "texts": [asdict(text) for text in self.texts],
            "reference": self.reference.as_dict(self.texts),
            "control": self.control.as_dict(self.texts),
            "results": [result.as_dict(self.texts) for result in self.results],
        }

    @property
    def title(self) -> str:
        name = Path(self.model.path).name
        many = f"{len(self.texts)} texts" if len(self.texts) > 1 else "1 text"
        names = ", ".join(text.name for text in self.texts[:3]) + (", …" if len(self.texts) > 3 else "")
        return (
            f"{cli.harmless(name)}, {self.context:,} tokens of context, {self.n_continue:,} scored; "
            f"{many} ({cli.harmless(names)})"
        )

    def table(self) -> Table:
        caption = (
            "bits: all-in, of compressed tokens; all bits: with the uncompressed window.\n"
            f"KL(f16 || policy) in nats, its mean first. ±: 95 % confidence, {INTERVAL.partition(':')[0]}.\n"
            f"{cli.machine()}"
        )
        heads = ("bits", "all bits", "ratio", "KL", "±", "median", "99.9 %", "max", "same top", "ppl", "/ f16")
        table = cli.policy_table(Styled(self.title), heads, Styled(caption))
        for result in (self.reference, self.control, *self.results):
            table.add_row(Styled(cli.harmless(result.name)), *cells(result, result is self.reference))
        return table


def cells(result: Result, is_reference: bool) -> list[str]:
    made, kv = result.figures, result.kv
    cost = [f"{kv.compressed_bits:.2f}" if kv.compressed_elements else "-", f"{kv.bits:.2f}", f"{kv.ratio:.2f}"]
    if is_reference:
        return [*cost, *["-"] * 6, f"{made.perplexity:.4g}", "1"]
    divergences = (made.kl_mean, made.kl_ci95, made.kl_median, made.kl_q999, made.kl_max)
    rest = [f"{made.same_top:.2%}", f"{made.perplexity:.4g}", f"{made.perplexity_ratio:.4f}"]
    return [*cost, *(small(kl) for kl in divergences), *rest]


def small(value: float) -> str:
    if value == 0 or value >= 0.001:
        return f"{value:.4f}" if value else "0"
    return f"{value:.1e}".replace("e-0", "e-")


def versions() -> dict[str, Any]:
    return {
        "zipcache-rt": version("zipcache-rt"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ggml": _core.ggml_build(),
    }
