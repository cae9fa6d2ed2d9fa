"""A model on a device beside the same one on the CPU, with the weights as the file lays them out and ggml's products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from .. import fidelity
from ..fidelity_report import Figures, Run, small
from ..model import Model
from ..options import KvOptions
from ..report.texts import reference_ids
from ..session import Session
from ..teacher_forced import Given, log_probs
from ..work import PREFILL_WEIGHT, Work
from .part import Check, Part

POLICIES = ("f16", "zipcache", "auto")
# The bound of the mean KL(cpu || device): the same sums in another order, as the control measures it, may cost so many
# times the control; codes that differ may cost so much of what the policy's codes cost.
LEAST, OF_CONTROL, OF_POLICY = 1e-3, 4.0, 0.5


@dataclass(frozen=True)
class Size:
    context: int  # tokens of text
    n_continue: int  # tokens that the model says after them

    def fitted(self, n_ctx: int) -> Size:
        return Size(min(self.context, n_ctx - self.n_continue), self.n_continue)


@dataclass(frozen=True)
class Greedy:
    tokens: list[int]  # [n]
    gaps: list[float]  # [n] between the two best logits


def greedy(session: Session, ids: Sequence[int], n: int) -> Greedy:
    session.prefill(ids)
    made = Greedy([], [])
    for i in range(n):
        logits = session.logits
        second, best = np.argpartition(logits, -2)[-2:]
        best, second = (best, second) if logits[best] >= logits[second] else (second, best)
        made.tokens.append(int(best))
        made.gaps.append(float(logits[best] - logits[second]))
        if i + 1 < n:
            session.decode(made.tokens[-1])
    return made


def test(cpu: Model, device: Model, size: Size, progress: Callable[[float], None]) -> Part:
    """Raises ZipCacheError for what cannot be computed at all."""
    size = size.fitted(cpu.info.n_ctx_train)
    ids = reference_ids(cpu, size.context)
    n, n_ctx = size.n_continue, size.context + size.n_continue
    told = Work((4 * len(POLICIES) + 1) * (PREFILL_WEIGHT * size.context + n - 1), progress)

    def say(model: Model, policy: str) -> Greedy:
        with model.session(n_ctx=n_ctx, kv=KvOptions.parse(policy)) as session:
            made = greedy(session, ids, n)
        told.add(PREFILL_WEIGHT * size.context + n - 1)
        return made

    said = {policy: (say(cpu, policy), say(device, policy)) for policy in POLICIES}
    given = Given("the text", ids + said[POLICIES[0]][0].tokens, size.context)
    expected: dict[str, Any] = {}  # [n, n_vocab] log-probabilities on the CPU

    def run(model: Model, policy: str, beside: str, decoded: int = 0) -> Run:
        with model.session(n_ctx=n_ctx, kv=KvOptions.parse(policy)) as session:
            rows = log_probs(session, given, told, policy=f"{policy} on {model.info.device}", decoded=decoded)
            if model is cpu and not decoded:
                expected[policy] = np.stack(list(rows))
                rows = iter(expected[policy])
            return fidelity.compare(rows, expected[beside], given, session)

    base = run(cpu, "f16", "f16")
    control = run(cpu, "f16", "f16", min(fidelity.CONTROL_DECODED, size.context - 1))
    noise = Figures.of([control], [base]).kl_mean
    checks, found = [], {}
    for policy in POLICIES:
        own = base if policy == "f16" else run(cpu, policy, "f16")
        made = Figures.of([run(device, policy, policy)], [own])
        cost = Figures.of([own], [base]).kl_mean
        bound = LEAST + OF_CONTROL * noise + OF_POLICY * cost
        checks.append(Check(f"{policy}: mean KL", made.kl_mean <= bound, f"{made.kl_mean:.3g} nats; bound {bound:.3g}"))
        found[policy] = {"kl_bound": bound, "kl_policy": cost, **asdict(made), "greedy": _parting(*said[policy])}
    facts = {"model": _model_facts(cpu), **asdict(size), "kl_control": noise, "policies": found}
    return Part("whole model", checks, facts, [_table(facts, device.info.device)])


def _parting(cpu: Greedy, device: Greedy) -> dict[str, Any]:
    """How many greedy tokens are equal, and how near the CPU's two best were where they part (None: nowhere)."""
    pairs = zip(cpu.tokens, device.tokens, strict=True)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(cpu.tokens))
    return {"equal": equal, "of": len(cpu.tokens), "cpu_gap": cpu.gaps[equal] if equal < len(cpu.tokens) else None}


def _model_facts(model: Model) -> dict[str, Any]:
    info = asdict(model.info)
    shown = (
        "name",
        "architecture",
        "quantization",
        "n_params",
        "n_vocab",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "head_dim",
    )
    return {key: info[key] for key in (*shown, "file_bytes", "threads")}


def _table(facts: dict[str, Any], device: str) -> Table:
    model = facts["model"]
    table = Table(
        title=f"{model['name'] or model['architecture']} ({model['quantization']}) on {device} beside the CPU: "
        f"{facts['context']:,} tokens of text, {facts['n_continue']} after them",
        caption=f"mean KL(cpu || {device}) of the next token's distribution in nats over a given text; its bound: {LEAST:g} + "
        f"{OF_CONTROL:g} x {small(facts['kl_control'])}\n(f16 beside itself, sums in another order) + {OF_POLICY:g} x the "
        "policy's KL to f16, both on the CPU.\ngap: of the CPU's two best logits where the greedy replies part",
    )
    table.add_column("policy", no_wrap=True)
    for head in ("mean KL / bound", "largest KL", "same top", "greedy: equal", "gap"):
        table.add_column(head, justify="right", no_wrap=True)
    for policy, made in facts["policies"].items():
        gap = made["greedy"]["cpu_gap"]
        table.add_row(
            policy,
            f"{small(made['kl_mean'])} / {small(made['kl_bound'])}",
            small(made["kl_max"]),
            f"{made['same_top']:.1%}",
            f"{made['greedy']['equal']} of {made['greedy']['of']}",
            "-" if gap is None else f"{gap:.3g}",
            style="" if made["kl_mean"] <= made["kl_bound"] else "red",
        )
    return table
