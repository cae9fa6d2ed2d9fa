"""Perplexity of texts under a compressed cache: chunks decoded, as they are given, after a prefilled beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .. import checks
from .._core import ArgumentError
from ..fidelity_data import Text, read
from .case import Case, Json, Metric
from .prompter import Prompter


@dataclass(frozen=True)
class Perplexity:
    """Of each text up to n_chunks stretches that do not overlap, in order: each of context + n_continue tokens."""

    data: tuple[Path, ...]  # texts, or .jsonl files of question and answer, prompt or text
    context: int = 2000  # tokens prefilled, a bos token among them
    n_continue: int = 200  # tokens predicted after them
    n_chunks: int = 10
    name: ClassVar[str] = "perplexity"
    metric: ClassVar[Metric] = "perplexity"

    @property
    def options(self) -> Mapping[str, Json]:
        return {"context": self.context, "n_continue": self.n_continue}

    def cases(self, prompter: Prompter) -> list[Case]:
        checks.integer(self.context, "context", 2, 2**31, "2 or more tokens")
        checks.integer(self.n_continue, "continue", 1, 2**31, "1 or more tokens")
        checks.integer(self.n_chunks, "chunks", 1, 2**31, "1 or more of each text")
        return [case for path in self.data for case in self._chunks(path, prompter)]

    def _chunks(self, path: Path, prompter: Prompter) -> list[Case]:
        tokens = Text.of(prompter.model, path.name, read(path)).tokens
        n_bos = 1 if prompter.model.info.add_bos else 0
        bos, rest = tokens[:n_bos], tokens[n_bos:]
        n = self.context - n_bos + self.n_continue
        if len(rest) < n:
            raise ArgumentError(f"{path.name} has {len(tokens)} tokens; needed: {n + n_bos}")
        chunks = [rest[first : first + n] for first in range(0, len(rest) - n + 1, n)][: self.n_chunks]
        return [
            Case(
                id=f"{path.name}-{i}",
                prompt=bos + chunk[: -self.n_continue],
                group=path.name,
                continuation=chunk[-self.n_continue :],
            )
            for i, chunk in enumerate(chunks)
        ]

    def score(self, case: Case, reply: str) -> float | None:
        return None  # a continuation's score comes from its probabilities
