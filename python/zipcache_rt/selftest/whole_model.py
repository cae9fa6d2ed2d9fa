"""A model on a device beside the same one on the CPU: portable kernels, weights as the file lays them out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from .. import cli, fidelity
from ..fidelity_report import Figures, Run, small
from ..model import Model
from ..options import KvOptions
from ..report.texts import reference_ids
from ..session import KvStats
from ..teacher_forced import Given, log_probs, log_softmax
from ..work import Work
from .part import Check, Part
from .reference import plain_model, portable_process

# The bound of the mean KL(cpu || device). Other kernels round activations to 8 bits, and queries and probabilities too,
# where they fall otherwise: so many times what the control's order of sums does, and what the policy's codes cost. A
# wrong row or code costs 1 and more.
LEAST, OF_CONTROL, OF_POLICY = 1e-3, 10.0, 1.0


@dataclass(frozen=True)
class Size:
    policies: tuple[str, ...]  # f16 first
    context: int  # tokens of text
    n_continue: int  # tokens that the CPU says after them

    def fitted(self, n_ctx: int) -> Size:
        return replace(self, context=min(self.context, n_ctx - self.n_continue))


@dataclass(frozen=True)
class Scored:
    """What a model expects of a text while it is decoded."""

    log_probs: NDArray[np.float32]  # [n_continue, n_vocab]
    kv: KvStats

    @property
    def best(self) -> NDArray[np.int64]:
        """[n_continue]"""
        best: NDArray[np.int64] = self.log_probs.argmax(-1)
        return best

    def gap(self, i: int) -> float:
        """Between the two best logits."""
        second, best = np.sort(np.partition(self.log_probs[i], -2)[-2:])
        return float(best - second)


def score(model: Model, policy: str, given: Given, decoded: int = 0) -> Scored:
    """decoded: of the context, its last tokens, decoded instead of prefilled."""
    with model.session(n_ctx=len(given.tokens), kv=KvOptions.parse(policy)) as session:
        told = Work(given.work, lambda done: None)
        rows = log_probs(session, given, told, policy=f"{policy} on {model.info.runs_on}", decoded=decoded)
        return Scored(np.stack(list(rows)), session.kv_stats())


def say(model: Model, ids: Sequence[int], n: int) -> Scored:
    """What f16 expects while the best tokens are decoded."""
    with model.session(n_ctx=len(ids) + n, kv=KvOptions("f16")) as session:
        session.prefill(ids)
        rows = [log_softmax(session.logits)]
        while len(rows) < n:
            session.decode(int(rows[-1].argmax()))
            rows.append(log_softmax(session.logits))
        return Scored(np.stack(rows), session.kv_stats())


def _score_plainly(path: Path, threads: int, policy: str, given: Given, decoded: int = 0) -> Scored:
    return score(plain_model(path, threads), policy, given, decoded)


def _say_plainly(path: Path, threads: int, ids: Sequence[int], n: int) -> Scored:
    return say(plain_model(path, threads), ids, n)


def test(path: Path, device: Model, size: Size, progress: Callable[[float], None]) -> Part:
    """device: the model of that file. Raises ZipCacheError for what cannot be computed at all."""
    size = size.fitted(device.info.n_ctx_train)
    ids, threads = reference_ids(device, size.context), device.info.threads
    steps = itertools.count(1)

    def done(made: Scored) -> Scored:
        progress(next(steps) / (2 * len(size.policies) + 1))
        return made

    with portable_process() as executor:
        said = done(executor.submit(_say_plainly, path, threads, ids, size.n_continue).result())
        given = Given("the text", [*ids, *said.best.tolist()], size.context)

        def plainly(policy: str, decoded: int = 0) -> Scored:
            return done(executor.submit(_score_plainly, path, threads, policy, given, decoded).result())

        cpu = {policy: said if policy == "f16" else plainly(policy) for policy in size.policies}
        control = plainly("f16", min(fidelity.CONTROL_DECODED, size.context - 1))
    noise = _figures(control, said, given).kl_mean
    checks, rows = [], []
    for policy in size.policies:
        made = done(score(device, policy, given))
        figures, cost = _figures(made, cpu[policy], given), _figures(cpu[policy], said, given).kl_mean
        bound, kl = LEAST + OF_CONTROL * noise + OF_POLICY * cost, figures.kl_mean
        checks.append(Check(f"{policy}: mean KL", kl <= bound, f"{kl:.3g} nats; bound {bound:.3g}"))
        best = _parting(cpu[policy], made)
        rows.append({"policy": policy, "kl_bound": bound, "kl_policy": cost, **best, **asdict(figures)})
    facts = {"model": _model_facts(device), **asdict(size), "kl_control": noise, "rows": rows}
    return Part("whole model", checks, facts, [_table(rows, device.info.runs_on)], _notes(facts))


def _figures(made: Scored, beside: Scored, given: Given) -> Figures:
    def run(one: Scored) -> Run:
        return fidelity.compare(one.log_probs, beside.log_probs, given, lambda: one.kv)

    return Figures.of([run(made)], [run(beside)])


def _parting(cpu: Scored, device: Scored) -> dict[str, Any]:
    """How many best tokens are equal until one is not, and how near the CPU's two best were there (None: all are)."""
    differ = np.flatnonzero(cpu.best != device.best)
    first = int(differ[0]) if len(differ) else len(cpu.best)
    return {"equal_tokens": first, "gap": cpu.gap(first) if len(differ) else None}


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


def _notes(facts: dict[str, Any]) -> list[str]:
    model = facts["model"]
    noise = small(facts["kl_control"])
    return [
        f"{model['name'] or model['architecture']} ({model['quantization']}): {facts['context']:,} tokens of text and "
        f"{facts['n_continue']} that the CPU says after them with f16",
        f"KL(cpu || device) of the next token's distribution, nats; bound: {LEAST:g} + {OF_CONTROL:g} x that of f16, "
        f"its sums in another order ({noise}) + {OF_POLICY:g} x that of the policy to f16, both on the CPU",
        "equal: best tokens until the first that is another; gap: between the CPU's two best logits there",
    ]


def _table(rows: list[dict[str, Any]], device: str) -> Table:
    heads = ("mean KL / bound", "largest KL", "same top", "equal", "gap")
    table = cli.policy_table(f"A whole model on {device} beside portable kernels on the CPU", heads)
    for row in rows:
        table.add_row(
            row["policy"],
            f"{small(row['kl_mean'])} / {small(row['kl_bound'])}",
            small(row["kl_max"]),
            f"{row['same_top']:.1%}",
            f"{row['equal_tokens']} of {row['n_positions']}",
            "-" if row["gap"] is None else f"{row['gap']:.3g}",
            style="" if row["kl_mean"] <= row["kl_bound"] else "red",
        )
    return table
