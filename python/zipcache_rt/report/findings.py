"""What the store holds for one model, ready to be shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import eval as tasks
from ..fidelity_report import CONTROL, Result, Run
from ..session import KvStats
from . import keys
from .measure import SALIENT
from .plan import ARTEFACTS, F16, policies
from .store import Store
from .subject import Subject
from .worker import Speed


@dataclass(frozen=True)
class Findings:
    """All that was measured."""

    subject: Subject
    fidelity: Mapping[str, Result]  # by policy; f16 and the control too
    lines: Mapping[int, Mapping[str, tasks.Row]]  # number of lines -> policy; 0: of all together
    speed: Mapping[tuple[str, int], Speed]  # by policy and context: medians
    saliency: Mapping[str, Any] | None
    failures: Mapping[str, str]  # policy -> why it has no figures

    @classmethod
    def of(cls, subject: Subject, store: Store, lines: Path, failures: Mapping[str, str]) -> Findings:
        return cls(
            subject,
            _fidelity(subject, store),
            _lines(subject, lines),
            _speed(subject, store),
            store.find(keys.saliency(subject, SALIENT)),
            failures,
        )


def _fidelity(subject: Subject, store: Store) -> dict[str, Result]:
    found: dict[str, tuple[str, list[Run]]] = {}
    for policy in [*policies(ARTEFACTS, "fidelity"), CONTROL]:
        values = [store.find(keys.fidelity(subject, policy, text)) for text in subject.texts]
        if all(value is not None for value in values):
            found[policy] = values[0]["options"], [_run(value) for value in values]
    if F16 not in found:
        return {}
    reference = found[F16][1]
    return {policy: Result.of(policy, options, runs, reference) for policy, (options, runs) in found.items()}


def _run(value: Mapping[str, Any]) -> Run:
    return Run(
        np.asarray(value["kl"], np.float64),
        np.asarray(value["same_top"], np.bool_),
        np.asarray(value["logprobs"], np.float64),
        KvStats(**value["kv"]),
    )


def _lines(subject: Subject, path: Path) -> dict[int, dict[str, tasks.Row]]:
    if not path.exists():
        return {}
    wanted = set(subject.cases)
    of_model = [
        record
        for record in tasks.load(path)
        if record.model_sha256 == subject.sha256 and record.device == subject.info.runs_on and record.case in wanted
    ]
    found: dict[int, dict[str, tasks.Row]] = {}
    for summary in tasks.summarize(of_model):
        n_lines = int(summary.group.split()[0]) if summary.group else 0
        found[n_lines] = {row.policy: row for row in summary.rows}  # policies in their shortest form, as ours are
    if len(found) == 1:
        found[0] = next(iter(found.values()))
    return found


def _speed(subject: Subject, store: Store) -> dict[tuple[str, int], Speed]:
    found: dict[tuple[str, int], Speed] = {}
    for policy in policies(ARTEFACTS, "speed"):
        for context in subject.size.contexts:
            made = (store.find(keys.speed(subject, policy, context, run)) for run in range(subject.size.repeat))
            if runs := [Speed(**value) for value in made if value is not None]:
                names = Speed.__dataclass_fields__
                found[policy, context] = Speed(**{n: statistics.median(getattr(r, n) for r in runs) for n in names})
    return found
