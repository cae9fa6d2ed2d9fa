"""A table or figure as it is shown: its rows, what became of the paper's claims, its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..fidelity_report import Result
from .findings import Findings
from .plan import Artefact, Claim, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDISTURBED = 0.7  # of the threads' time: what runs get at least on a machine that does nothing else
Cells = dict[str, Any]  # Column.key -> value; None: not measured


@dataclass(frozen=True)
class Column:
    key: str  # in the CSV file; with its unit
    head: str  # on the page
    form: str = ""  # of its values on the page, as format() takes it

    def shown(self, cells: Cells) -> str:
        value = cells.get(self.key)
        return "-" if value is None else format(value, self.form)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    holds: bool | None  # None: the difference is within its confidence interval
    difference: float  # mean KL of the worse - that of the better: above 0 where the claim holds
    half: float  # of its interval of 95 % confidence

    @property
    def text(self) -> str:
        word = {True: "holds", False: "does not hold", None: "cannot be told apart"}[self.holds]
        claim = self.claim
        side = "higher" if self.difference > 0 else "lower"
        return (
            f"{claim.better} above {claim.worse} ({claim.source}): {word} here; the KL of {claim.worse} is {side} "
            f"by {abs(self.difference):.3g} ± {self.half:.2g} nats"
        )


@dataclass(frozen=True)
class Shown:
    artefact: Artefact
    columns: tuple[Column, ...]
    rows: list[Cells]
    figure: Figure | None  # None: nothing was measured yet
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        for cells in self.rows:
            writer.writerow([_plain(cells.get(column.key)) for column in self.columns])
        return text.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None else float(f"{value:.6g}") if isinstance(value, float) else value


def status(row: Row, found: Findings, measured: bool) -> str:
    """Of a row: "measured", or why it is not."""
    if measured:
        return "measured"
    return f"failed: {found.failures[row.policy]}" if row.policy in found.failures else "not measured yet"


def failures(rows: Sequence[Row], found: Findings) -> list[str]:
    failed = [row for row in rows if row.policy in found.failures]
    return [f"{row.name} ({row.policy}) failed: {found.failures[row.policy]}" for row in failed]


def busy_note(found: Findings) -> list[str]:
    """Where other work took the processors from what was timed."""
    shares = [speed.cpu_share for speed in found.speed.values()]
    if found.subject.info.device != "cpu" or not shares or min(shares) >= UNDISTURBED:
        return []
    got = f"runs got {min(shares):.0%} to {max(shares):.0%} of their threads' time"
    return [f"The machine was busy with other work ({got}): times say little."]


def verdicts(artefact: Artefact, fidelity: Mapping[str, Result]) -> list[Verdict]:
    """Paired over the scored positions, which are taken as independent."""
    policy = {row.name: row.policy for row in artefact.rows}
    made = []
    for claim in artefact.claims:
        pair = [fidelity.get(policy.get(name, "")) for name in (claim.better, claim.worse)]
        if pair[0] and pair[1]:
            made.append(_verdict(claim, pair[0], pair[1]))
    return made


def _verdict(claim: Claim, better: Result, worse: Result) -> Verdict:
    difference = np.concatenate([b.kl - a.kl for a, b in zip(better.runs, worse.runs, strict=True)])
    mean = float(difference.mean())
    half = 1.96 * float(difference.std(ddof=1)) / difference.size**0.5
    return Verdict(claim, None if abs(mean) <= half else mean > 0, mean, half)
