"""LongEval's line retrieval: one number out of many lines (github.com/DachengLi1/LongChat)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .. import checks
from .._core import ArgumentError
from . import data_files
from .case import Case, Json, Metric
from .prompter import Prompter
from .scorers import last_number
from .words import ADJECTIVES, NOUNS

INTRODUCTION = (
    "Remember the following record of lines. Each line starts with 'line <name>' and ends with its "
    "<REGISTER_CONTENT>, a number. Afterwards I will ask you for the <REGISTER_CONTENT> of one of these lines.\n\n"
)
QUESTION = "\nWhat is the <REGISTER_CONTENT> in line {name}? Answer with the number only."
LEAD = "The <REGISTER_CONTENT> in line {name} is"
MOST_LINES = len(ADJECTIVES) * len(NOUNS)


@dataclass(frozen=True)
class Lines:
    """From a file of prompts (data), or generated: n_cases of each number of lines."""

    data: Path | None = None  # JSON lines with prompt, expected_number, num_lines
    lines: tuple[int, ...] = (20, 40, 80)
    n_cases: int = 50  # of the file: its first ones
    seed: int = 0
    name: ClassVar[str] = "lines"
    metric: ClassVar[Metric] = "accuracy"

    @property
    def options(self) -> Mapping[str, Json]:
        return {"data": self.data.name} if self.data else {"seed": self.seed}

    def cases(self, prompter: Prompter) -> list[Case]:
        n_cases = checks.integer(self.n_cases, "cases", 1, 2**31, "1 or more")
        if self.data:
            return [_read(item) for item in data_files.objects(self.data, n_cases)]
        if not self.lines:
            raise ArgumentError("lines is empty; accepted: numbers of lines")
        for n in self.lines:
            checks.integer(n, "lines", 2, MOST_LINES, f"2 to {MOST_LINES}")
        return [_generate(n, self.seed, i) for n in self.lines for i in range(n_cases)]

    def score(self, case: Case, reply: str) -> float:
        return float(last_number(reply) == case.expected)


def _generate(n_lines: int, seed: int, number: int) -> Case:
    rng = random.Random(f"lines {n_lines} {seed} {number}")
    pairs = rng.sample(range(MOST_LINES), n_lines)
    names = [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]
    values = rng.sample(range(1, max(50_000, 2 * n_lines)), n_lines)
    asked = rng.randrange(n_lines)
    return Case(
        id=f"{n_lines}-{number}",
        prompt=INTRODUCTION + _record(names, values) + QUESTION.format(name=names[asked]),
        group=f"{n_lines} lines",
        lead=LEAD.format(name=names[asked]),
        stop=("\n",),
        expected=values[asked],
    )


def _record(names: Sequence[str], values: Sequence[int]) -> str:
    return "".join(f"line {name}: REGISTER_CONTENT is <{value}>\n" for name, value in zip(names, values, strict=True))


def _read(item: data_files.Item) -> Case:
    n_lines = item.get("num_lines", int, 0)
    return Case(
        id=str(item.number),
        prompt=item.get("prompt", str).rstrip(),
        group=f"{n_lines} lines" if n_lines else "",
        lead="The <REGISTER_CONTENT> is",
        stop=("\n",),
        expected=item.get("expected_number", int),
    )
