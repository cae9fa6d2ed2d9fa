"""Runs a task under several policies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .case import Task
from .record import Record


@dataclass(frozen=True)
class RunOptions:
    """How cases are run. What may change a reply is kept in the records."""

    device: str = "auto"  # as Model() takes it
    threads: int | None = None  # of all jobs together; None: one a core
    jobs: int = 1  # processes that answer cases at once, each with the model open; they share the mapped file
    template: bool | None = None  # use the chat template; None: where the model has one
    share_shots: bool = False  # compressed caches too: prefill and compress the shots once, not with each question
    n_ctx: int | None = None  # most tokens of a session; None: what the longest case takes
    repack: bool = True  # as Model() takes it


def run(
    model: str | os.PathLike[str],
    task: Task,
    policies: Sequence[str],
    *,
    out: str | os.PathLike[str] | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 (frozen)
    progress: Callable[[float], None] | None = None,
) -> list[Record]:
    """Every case of a task under f16 and every policy, greedily: records of f16, then of the policies, by case.

    out: a results file: what it holds is not run again, what is missing is appended as it is done; a score that was
    not known is filled in where it can be told now. With several jobs a script needs `if __name__ == "__main__":`.
    Raises ArgumentError and ContextError before any work, FileError, ModelError.
    """
    raise NotImplementedError
