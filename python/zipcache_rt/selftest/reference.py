"""What devices are set beside: the portable CPU kernels, in a process of their own, as a process chooses only once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from .. import _core
from .._core import ModelError

PORTABLE = "ref"


@contextmanager
def portable_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _choose) as executor:
        chosen = executor.submit(_kernels).result()
        if chosen != PORTABLE:
            raise ModelError(f"the reference runs the kernels {chosen!r}; needed: {PORTABLE!r}")
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _choose() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C
    os.environ["ZIPCACHE_CPU"] = PORTABLE


def _kernels() -> str:
    return str(_core.ggml_build()["kernels"])
