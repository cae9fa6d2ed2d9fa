"""LongEval's line retrieval: one number out of many lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .case import Case, Json, Metric
from .prompter import Prompter


@dataclass(frozen=True)
class Lines:
    """From a file of prompts (data), or generated: `n_cases` of each number of lines."""

    data: Path | None = None
    lines: tuple[int, ...] = (20, 40, 80)
    n_cases: int = 50
    seed: int = 0
    name: ClassVar[str] = "lines"
    metric: ClassVar[Metric] = "accuracy"

    @property
    def options(self) -> Mapping[str, Json]:
        raise NotImplementedError

    def cases(self, prompter: Prompter) -> list[Case]:
        raise NotImplementedError

    def score(self, case: Case, reply: str) -> float | None:
        raise NotImplementedError
