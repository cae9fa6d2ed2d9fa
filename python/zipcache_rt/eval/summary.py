"""Records summed up by policy: accuracy, agreement with f16, and cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from .. import cli
from .case import Json, Metric
from .intervals import Estimate, bootstrap, mean_interval, paired_difference
from .record import REFERENCE, Record

HEADS: Mapping[Metric, tuple[str, ...]] = {"accuracy": ("same reply", "same score"), "perplexity": ("same top",)}
COSTS = ("ratio", "bits", "prefill s", "decode s", "ms/token")
CAPTIONS: Mapping[Metric, str] = {
    "accuracy": "[95 % confidence]: of shares by Wilson, of differences by paired bootstrap over cases",
    "perplexity": "[95 % confidence]: by bootstrap over chunks, of differences paired",
}


@dataclass(frozen=True)
class Row:
    """One policy. Agreement and difference are over the cases that f16 answered too; None where there are none."""

    policy: str
    n: int  # cases
    score: Estimate | None  # mean score (Wilson), or perplexity (bootstrap over cases); None: not scored
    difference: Estimate | None  # score - that of f16, paired bootstrap
    same_reply: Estimate | None  # share of replies equal to f16's; of continuations: of its most probable tokens
    same_score: Estimate | None  # share of scores equal to f16's; None for continuations
    prompt_tokens: float  # mean, as all below
    prefill_seconds: float  # of a case
    decode_seconds: float  # of a case
    seconds_per_token: float  # of decoding: all seconds / all tokens
    kv_bytes: float
    kv_bits: float
    kv_ratio: float
    compressed_bits: float

    @property
    def seconds(self) -> float:
        """Prefill and decode of a case: latency to the end of a reply."""
        return self.prefill_seconds + self.decode_seconds


@dataclass(frozen=True)
class Summary:
    """All policies on the same cases."""

    task: str
    metric: Metric
    model: str
    model_sha256: str
    device: str
    options: Mapping[str, Json]  # Record.options
    group: str  # "" : all groups together
    rows: tuple[Row, ...]  # f16 first, then as the records come

    def as_dict(self) -> dict[str, Json]:
        """Ready for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal."""
        title = f"{self.task}, {self.group or 'all'}: {self.model} on {self.device}"
        heads = ("cases", self.metric, "- f16", *HEADS[self.metric], *COSTS)
        table = cli.policy_table(Text(cli.harmless(title)), heads, Text(CAPTIONS[self.metric]))
        for row in self.rows:
            table.add_row(Text(cli.harmless(row.policy)), *map(Text, _cells(row, self.metric)))
        return table


def summarize(records: Iterable[Record], *, seed: int = 0) -> list[Summary]:
    """One Summary for each group of each task, model, device and set of options; where these have several groups, one
    of all of them after them. seed: of the bootstrap.
    """
    parts = []
    for alike in _parted(records, lambda record: (record.task, record.model_sha256, record.device, _text(record))):
        groups = _parted(alike, lambda record: record.group)
        parts += [*groups, alike] if len(groups) > 1 else groups
    return [_summary(part, seed) for part in parts]


def _parted(records: Iterable[Record], key: Callable[[Record], Hashable]) -> list[list[Record]]:
    """Records of equal keys together, in the order in which they come."""
    parts: dict[Hashable, list[Record]] = {}
    for record in records:
        parts.setdefault(key(record), []).append(record)
    return list(parts.values())


def _text(record: Record) -> str:
    return json.dumps(record.options, sort_keys=True)


def _summary(records: Sequence[Record], seed: int) -> Summary:
    first = records[0]
    groups = {record.group for record in records}
    by_policy = {made[0].policy: made for made in _parted(records, lambda record: record.policy)}
    reference = {_case(record): record for record in by_policy.get(REFERENCE, [])}
    policies = sorted(by_policy, key=lambda policy: policy != REFERENCE)
    rows = tuple(_row(by_policy[policy], reference, seed) for policy in policies)
    return Summary(
        task=first.task,
        metric=first.metric,
        model=first.model,
        model_sha256=first.model_sha256,
        device=first.device,
        options=first.options,
        group=first.group if len(groups) == 1 else "",
        rows=rows,
    )


def _case(record: Record) -> tuple[str, str]:
    return record.case, record.prompt_sha256


def _row(records: Sequence[Record], reference: Mapping[tuple[str, str], Record], seed: int) -> Row:
    first, n = records[0], len(records)
    perplexity, is_reference = first.metric == "perplexity", first.policy == REFERENCE
    paired = [(record, reference[_case(record)]) for record in records if _case(record) in reference]
    pairs = [] if is_reference else paired
    scores = [record.score for record in records if record.score is not None]
    scored = [(made.score, base.score) for made, base in pairs if made.score is not None and base.score is not None]
    alike = [_agreement(record, base) for record, base in pairs]
    decoded = sum(record.decode_tokens for record in records)
    return Row(
        policy=first.policy,
        n=n,
        score=(_perplexity(scores, seed) if perplexity else mean_interval(scores)) if scores else None,
        difference=_difference(scored, perplexity, seed) if scored else None,
        same_reply=(bootstrap(_mean, alike, seed=seed) if perplexity else mean_interval(alike)) if alike else None,
        same_score=mean_interval([made == base for made, base in scored]) if scored and not perplexity else None,
        prompt_tokens=sum(record.prompt_tokens for record in records) / n,
        prefill_seconds=sum(record.prefill_seconds for record in records) / n,
        decode_seconds=sum(record.decode_seconds for record in records) / n,
        seconds_per_token=sum(record.decode_seconds for record in records) / decoded if decoded else 0.0,
        kv_bytes=sum(record.kv_bytes for record in records) / n,
        kv_bits=sum(record.kv_bits for record in records) / n,
        kv_ratio=sum(record.kv_ratio for record in records) / n,
        compressed_bits=sum(record.compressed_bits for record in records) / n,
    )


def _agreement(record: Record, base: Record) -> float:
    if not base.tops:
        return float(record.reply == base.reply)
    return sum(a == b for a, b in zip(record.tops, base.tops, strict=True)) / len(base.tops)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.mean(-1))


def _perplexity(scores: Sequence[float], seed: int) -> Estimate:
    return bootstrap(lambda logs: np.exp(-_mean(logs)), scores, seed=seed)


def _difference(scored: Sequence[tuple[float, float]], perplexity: bool, seed: int) -> Estimate:
    made, base = zip(*scored, strict=True)
    if not perplexity:
        return paired_difference(made, base, seed=seed)
    return bootstrap(lambda logs, others: np.exp(-_mean(logs)) - np.exp(-_mean(others)), made, base, seed=seed)


def _cells(row: Row, metric: Metric) -> list[str]:
    form, change = ("{:.1%}", "{:+.1%}") if metric == "accuracy" else ("{:.4g}", "{:+.3g}")
    agreement = [f"{part.value:.1%}" if part else "-" for part in (row.same_reply, row.same_score)]
    costs = [f"{row.kv_ratio:.2f}", f"{row.kv_bits:.2f}", f"{row.prefill_seconds:.2f}", f"{row.decode_seconds:.2f}"]
    return [
        str(row.n),
        _shown(row.score, form),
        _shown(row.difference, change),
        *agreement[: len(HEADS[metric])],
        *costs,
        f"{1000 * row.seconds_per_token:.2f}",
    ]


def _shown(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "-"
    value, low, high = (form.format(figure) for figure in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low.removesuffix('%')}, {high.removesuffix('%')}]"
