"""Cases answered by several processes at once."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from .._core import CancelledError, ModelError
from ..work import Work
from .case import Task
from .record import Record
from .run_options import RunOptions
from .worker import Prepared, Worker


@dataclass(frozen=True)
class Setup:
    """What each process needs to begin. options: threads are those of one process."""

    path: str
    task: Task
    options: RunOptions
    n_ctx: int


def answers(setup: Setup, pending: Sequence[tuple[Prepared, Record]]) -> Iterator[tuple[Prepared, Record]]:
    """The pending cases with their records filled, in the order in which they are done.

    Raises what the first failing case raises; the others are stopped. ModelError where a process dies.
    """
    context = multiprocessing.get_context("spawn")  # threads of ggml do not survive a fork
    stop = context.Event()
    with ProcessPoolExecutor(setup.options.jobs, context, _set_up, (setup, stop)) as executor:
        try:
            futures = {executor.submit(_answer, case, blank): case for case, blank in pending}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ModelError("a process that answers cases died; fewer jobs take less memory") from error
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Process:
    """This process' part: set once, the model opened with the first case so that its errors reach the caller."""

    setup: Setup
    stop: Any  # multiprocessing's Event
    worker: Worker | None = None

    def tell(self, _: float) -> None:
        if self.stop.is_set():
            raise CancelledError("the run was stopped")


_process: _Process


def _set_up(setup: Setup, stop: Any) -> None:
    global _process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and says what to do
    _process = _Process(setup, stop)


def _answer(case: Prepared, blank: Record) -> Record:
    setup = _process.setup
    if _process.worker is None:
        _process.worker = Worker(setup.options.open(setup.path, _process.tell), setup.task, setup.n_ctx)
    return _process.worker.answer(case, blank, Work(case.work, _process.tell))
