"""Runs a task under several policies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from .. import checks
from .._core import ArgumentError, ContextError
from ..hashes import file_sha256, ids_sha256
from ..model import Model
from ..options import KvOptions
from ..work import Work
from . import pool
from .case import Case, Task
from .prompter import Prompter
from .record import REFERENCE, Record, Results
from .run_options import RunOptions
from .worker import Prepared, Worker

RESCORING = 1.0  # work of scoring a reply that is known


def run(
    model: str | os.PathLike[str],
    task: Task,
    policies: Sequence[str],
    *,
    out: str | os.PathLike[str] | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 (frozen)
    progress: Callable[[float], None] | None = None,
) -> list[Record]:
    """Every case of a task under f16 and every policy, greedily: the records by case, f16 first in each.

    out: a results file: what it holds is not run again, what is missing is appended as it is done; a score that was
    not known is filled in where it can be told now. With several jobs a script needs `if __name__ == "__main__":`.
    Raises ArgumentError and ContextError before any work, FileError, ModelError.
    """
    jobs = checks.integer(options.jobs, "jobs", 1, 256, "1 to 256 processes")
    results = Results(out)
    with options.open(model) as opened:
        plan = _plan(opened, task, _policies(policies), options)
        todo = [(case, blank) for case, blank in plan.asked if not results.find(blank.key)]
        known = [(case, record) for case, blank in plan.asked if (record := results.find(blank.key))]
        unscored = [(case.case, record) for case, record in known if record.score is None]
        work = RESCORING * len(unscored) + sum(case.work for case, _ in todo)
        told = Work(work or 1.0, progress or (lambda done: None))
        for case, record in unscored:
            _rescore(results, task, case, record)
            told.add(RESCORING)
        if jobs == 1:
            worker = Worker(opened, task, plan.n_ctx)
            for prepared, blank in todo:
                results.add(worker.answer(prepared, blank, told))
    if jobs > 1 and todo:
        threads = max(1, opened.info.threads // jobs)
        each = replace(options, threads=threads, gpu_layers=opened.info.gpu_layers)  # what the records say
        setup = pool.Setup(opened.info.path, task, each, plan.n_ctx)
        for prepared, record in pool.answers(setup, todo):
            results.add(record)
            told.add(prepared.work)
    return [record for _, blank in plan.asked if (record := results.find(blank.key))]


@dataclass(frozen=True)
class _Plan:
    """What is asked, answered before or not."""

    asked: list[tuple[Prepared, Record]]  # by case, then by policy; the records are blank
    n_ctx: int


def _plan(model: Model, task: Task, policies: Sequence[str], options: RunOptions) -> _Plan:
    prompter = Prompter(model, options.template)
    cases = [_prepare(case, prompter, options.share_shots) for case in task.cases(prompter)]
    _check_ids(task, [case.case.id for case in cases])
    n_ctx = _n_ctx(cases, model, options.n_ctx)
    for policy in policies:
        model.session(n_ctx=n_ctx, kv=KvOptions.parse(policy)).close()  # refuses what cannot run here
    blank = Record(
        task=task.name,
        metric=task.metric,
        model=Path(model.info.path).name,
        model_sha256=file_sha256(model.info.path),
        device=model.info.runs_on,
        options={
            **task.options,
            "template": prompter.template and any(isinstance(case.case.prompt, str) for case in cases),
            "share_shots": any(case.shared for case in cases),
        },
        version=version("zipcache-rt"),
        jobs=options.jobs,
        threads=model.info.threads,
    )
    return _Plan([(case, _asked(blank, case, policy)) for case in cases for policy in policies], n_ctx)


def _check_ids(task: Task, ids: Sequence[str]) -> None:
    if not ids:
        raise ArgumentError(f"{task.name} has no cases; accepted: one or more")
    name, n = Counter(ids).most_common(1)[0]
    if n > 1:
        raise ArgumentError(f"{n} cases of {task.name} are called {name!r}; accepted: each of its own name")


def _policies(policies: Sequence[str]) -> list[str]:
    """In their shortest form, each once, f16 first."""
    if isinstance(policies, str):
        raise ArgumentError("policies is str; accepted: several of them")
    return list(dict.fromkeys([REFERENCE, *(str(KvOptions.parse(policy)) for policy in policies)]))


def _prepare(case: Case, prompter: Prompter, share_shots: bool) -> Prepared:
    tokens = prompter.tokens(case)
    if not tokens:
        raise ArgumentError(f"the prompt of {case.id} has no tokens; accepted: one or more")
    shared = prompter.shared(case) if share_shots else 0
    return Prepared(case, tokens, shared, () if prompter.template else case.stop)


def _n_ctx(cases: Sequence[Prepared], model: Model, n_ctx: int | None) -> int:
    """What sessions must hold, or ContextError that names the longest case."""
    longest = max(cases, key=lambda case: case.needed)
    most = model.info.n_ctx_train if n_ctx is None else n_ctx
    if longest.needed > most:
        needed = f"{len(longest.tokens)} tokens and {longest.n_continue} more for what follows"
        raise ContextError(f"the prompt of {longest.case.id} takes {needed}; accepted: {most} together")
    return longest.needed if n_ctx is None else n_ctx


def _asked(blank: Record, prepared: Prepared, policy: str) -> Record:
    """A blank record with all that its key takes."""
    case = prepared.case
    return replace(
        blank,
        case=case.id,
        group=case.group,
        policy=policy,
        prompt_sha256=ids_sha256((*prepared.tokens, *case.continuation)),
        prompt_tokens=len(prepared.tokens),
        shared_tokens=prepared.shared,
        expected=case.expected,
    )


def _rescore(results: Results, task: Task, case: Case, known: Record) -> None:
    score = task.score(case, known.reply)
    if score is not None:
        results.add(replace(known, score=score))
