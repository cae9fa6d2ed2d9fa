"""What devices are set beside: the portable CPU kernels, in a process of their own, as a process chooses only once."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .. import _core
from .._core import ModelError
from ..model import Model

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


@functools.cache
def plain_model(path: Path, threads: int) -> Model:
    """On the CPU, with the weights as the file lays them out: for use in that process, which keeps it."""
    return Model(path, device="cpu", threads=threads, repack=False)


def _choose() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C
    os.environ["ZIPCACHE_CPU"] = PORTABLE


def _kernels() -> str:
    return str(_core.ggml_build()["kernels"])
