"""The cache's operators on a device: score_probes, quantize_kv, dequantize_kv, append_kv, attend_kv.

A case is a random layer: prompts, decoding, windows that fill, tokens that are forgotten, odd lengths. What the cache
holds is read back as rows: attention is compared with plain float64 over those, the rows with what the portable kernels
made of the same tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import numpy as np
from rich.table import Table

from .. import _core, cli
from .._core import ArgumentError, ZipCacheError
from ..options import KvOptions
from . import trial
from .part import Check, Part
from .reference import portable_process
from .trial import Case, Outcome

NEEDED = ("f16", "auto", "zipcache")  # every device has them
POLICIES = (
    *NEEDED,
    *("auto:2.8", "auto:2.4", "auto:5", "auto,window=33,recent=7"),
    *("zipcache,per_head=true", "zipcache,rotate=true", "zipcache,saliency=accumulated", "zipcache,high_bits=8"),
    *("zipcache,saliency=random", "zipcache,keys=tokenwise,values=tokenwise", "zipcache,high_bits=3,low_bits=1"),
    *("uniform:1", "uniform:2", "uniform:3", "uniform:8", "uniform:4,values=channelwise", "uniform:4,rotate=true"),
    *("kivi:2", "kivi:4", "q8_0", "q4_0", "q4_0,rotate=true", "mikv", "gear"),
)
NOTES = (
    "attention: its largest difference from plain attention over the rows that the cache holds, by its largest number",
    "rows that differ: the share of their elements that are not those of the portable kernels",
    "error, bytes: by how much the rows' error exceeds that of the portable kernels', by how much the bytes differ",
)
SAME = 2e-3  # relative: two f16 of one number, an ulp apart
WRONG = 1e9  # in the place of what is no number: JSON has no infinity


@dataclass(frozen=True)
class Bounds:
    """What is right."""

    attend: float  # largest difference from plain attention, over its largest number
    differ: float  # share of the rows' elements that are others than the reference's
    error: float  # by how much the rows' error may be larger than the reference's
    bits: float  # by how much the bytes may differ


def bounds_of(policy: str, device: str, n_rows: int) -> Bounds:
    """n_rows: tokens that are compared, the fewest of all looks."""
    # the CPU's vector kernels round queries and probabilities that meet codes to 8 bits, GPUs to 11 and more
    attend = 0.05 if device == "cpu" else 0.01
    # a GPU's order fills each tier of a segment up to 16 tokens: short ones, as here, may take twice the bytes
    bits = 0.1 if device == "cpu" else 1.0
    # scores are rounded otherwise, and a token that changes its tier may change the parameters of those in both
    ranked = policy.startswith(("auto", "zipcache", "mikv"))
    if device == "cpu" or not ranked:
        return Bounds(attend, differ=0.1 if ranked else 0.01, error=0.05, bits=bits)
    few = 16 / n_rows
    # auto has one price of a bit for all tokens: where many are alike, rounding moves them all, to no worse an error
    differ = 1.0 if policy.startswith("auto") else 0.1 + few
    return Bounds(attend, differ=differ, error=0.05 + few, bits=bits)


@dataclass(frozen=True)
class Found:
    """The worst of a case, as Bounds has it."""

    attend: float
    differ: float
    error: float
    bits: float

    def shares(self, bounds: Bounds) -> dict[str, float]:
        """Of the bounds."""
        limits = asdict(bounds)
        return {name: value / limits[name] for name, value in asdict(self).items()}

    def within(self, bounds: Bounds) -> bool:
        return all(share <= 1 for share in self.shares(bounds).values())


def rows_compared(outcome: Outcome) -> int:
    return min((look.k.shape[1] for look in outcome.looks), default=1)


def compare(case: Case, got: Outcome, reference: Outcome) -> Found:
    rows = trial.rows_of(case, 1 + max(int(look.tokens.max()) for look in reference.looks))
    attend, differ, error = [0.0], [0.0], [0.0]
    for mine, theirs in zip(got.looks, reference.looks, strict=True):
        expected = trial.attention(mine, case.sliding_window)
        attend.append(np.abs(mine.out - expected).max() / np.abs(expected).max())
        for own, other, exact in ((mine.k, theirs.k, rows.k), (mine.v, theirs.v, rows.v)):
            if own.shape != other.shape:
                return Found(WRONG, 1.0, WRONG, WRONG)
            given = exact[:, theirs.tokens[-own.shape[1] :]].astype(np.float64)
            differ.append(1 - np.isclose(own, other, rtol=SAME, atol=SAME / 10).mean())
            rounding = 1e-3 * np.sqrt(np.mean(given**2))
            a, b = (np.sqrt(np.mean((side - given) ** 2)) + rounding for side in (own, other))
            error.append(a / b - 1)
    bits = [abs(a / b - 1) for a, b in zip(got.bits, reference.bits, strict=True) if b]
    return Found(*(_worst(values) for values in (attend, differ, error, [0.0, *bits])))


def _worst(values: list[float]) -> float:
    worst = float(np.max(values))
    return worst if np.isfinite(worst) else WRONG


def refused(device: str) -> dict[str, str]:
    """Policies that the device does not have, and why."""
    why = {}
    for policy in POLICIES:
        kv = KvOptions.parse(policy).to_core()
        try:
            _core.KvTrial(kv=kv, device=device, norms=np.ones((1, 128), np.float32), n_kv_heads=1, sliding_window=0)
        except ArgumentError as error:
            why[policy] = str(error)
    return why


@dataclass(frozen=True)
class Size:
    n_cases: int  # of all policies together, but at least one of each
    longest: int  # tokens of a prompt


def test(device: str, size: Size, seed: int, progress: Callable[[float], None]) -> Part:
    without = refused(device)
    policies = [policy for policy in POLICIES if policy not in without]
    random = Random(seed)
    drawn = itertools.cycle(policies)
    n_cases = max(size.n_cases, len(policies))
    cases = [Case.draw(policy, random, size.longest) for policy in itertools.islice(drawn, n_cases)]
    checks = [Check(f"{policy} runs there", policy not in without, without.get(policy, "")) for policy in NEEDED]
    found: dict[str, list[tuple[Found, Bounds]]] = {}
    with portable_process() as executor:
        for i, case in enumerate(cases):
            expected = executor.submit(trial.run, case, "cpu")
            try:
                got = trial.run(case, device)  # beside the reference, which another process makes
                reference = expected.result()
                made = compare(case, got, reference)
            except ZipCacheError as error:
                checks.append(Check(f"case {i}", False, f"{type(error).__name__}: {error}; {case}"))
            else:
                bounds = bounds_of(case.policy, device, rows_compared(reference))
                found.setdefault(case.policy, []).append((made, bounds))
                checks.append(Check(f"case {i}", made.within(bounds), f"{made}; {bounds}; {case}"))
            progress((i + 1) / len(cases))
    rows = [{"policy": policy, "cases": len(made), **_worst_of(made)} for policy, made in found.items()]
    notes = [*NOTES, *(f"{policy} is not there: {why}" for policy, why in without.items())]
    table = _table(rows, f"Operators on {device}: worst / bound (seed {seed})")
    return Part("operators", checks, {"seed": seed, "policies": rows, "refused": without}, [table], notes)


def _worst_of(found: list[tuple[Found, Bounds]]) -> dict[str, dict[str, float]]:
    """What comes nearest to its bound, or is furthest beyond, and that bound."""
    worst, bounds = {}, {}
    for name in asdict(found[0][0]):
        made, limits = max(found, key=lambda pair: pair[0].shares(pair[1])[name])
        worst[name], bounds[name] = asdict(made)[name], asdict(limits)[name]
    return {"worst": worst, "bounds": bounds}


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    table = cli.policy_table(title, ("cases", "attention", "rows that differ", "error", "bytes"))
    for row in rows:
        bounds = row["bounds"]
        right = Found(**row["worst"]).within(Bounds(**bounds))
        pairs = (f"{value:.2g} / {bounds[name]:.2g}" for name, value in row["worst"].items())
        table.add_row(row["policy"], str(row["cases"]), *pairs, style="" if right else "red")
    return table
