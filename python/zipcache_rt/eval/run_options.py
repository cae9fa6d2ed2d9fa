"""What a caller may choose of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..model import Model


@dataclass(frozen=True)
class RunOptions:
    """How cases are run. What may change a reply is kept in the records."""

    device: str = "auto"  # as Model() takes it
    gpu_layers: int | None = None  # as Model() takes it
    threads: int | None = None  # of all jobs together; None: one a core
    jobs: int = 1  # processes that answer cases at once, each with the model open; they share the mapped file
    template: bool | None = None  # use the chat template; None: where the model has one
    share_shots: bool = False  # prefill and compress a task's shots once a policy, not with each question
    n_ctx: int | None = None  # most tokens of a session; None: what the longest case takes
    repack: bool = True  # as Model() takes it

    def open(self, path: str | os.PathLike[str], progress: Callable[[float], None] | None = None) -> Model:
        return Model(
            path,
            device=self.device,
            gpu_layers=self.gpu_layers,
            threads=self.threads,
            progress=progress,
            repack=self.repack,
        )
