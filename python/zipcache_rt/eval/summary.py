"""Records summed up by policy: accuracy, agreement with f16, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from rich.table import Table

from .case import Json, Metric
from .intervals import Estimate
from .record import Record


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
        raise NotImplementedError


def summarize(records: Iterable[Record], *, seed: int = 0) -> list[Summary]:
    """One Summary for each group of each task, model, device and set of options; where these have several groups, one
    of all of them after them. seed: of the bootstrap.
    """
    raise NotImplementedError
