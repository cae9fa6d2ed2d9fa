"""GSM8K: school mathematics in words, by chain of thought (arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .. import checks
from .._core import ArgumentError
from . import data_files
from .case import Case, Json, Metric
from .prompter import Prompter
from .scorers import final_number, last_number

_ANNOTATION = re.compile(r"<<.*?>>")  # the calculator's, not meant to be read


@dataclass(frozen=True)
class Gsm8k:
    """Questions after solved examples; right if the final number is the answer's."""

    data: Path  # JSON lines with question and answer, which ends in #### NUMBER
    shots: Path | None = None  # a file of the same form; its first n_shots are the examples
    n_shots: int = 8
    n_cases: int = 2**31
    max_tokens: int = 320
    name: ClassVar[str] = "gsm8k"
    metric: ClassVar[Metric] = "accuracy"

    @property
    def options(self) -> Mapping[str, Json]:
        shots = self.n_shots if self.shots else 0
        return {"data": self.data.name, "n_shots": shots, "max_tokens": self.max_tokens}

    def cases(self, prompter: Prompter) -> list[Case]:
        checks.integer(self.max_tokens, "max_tokens", 1, 2**31, "1 or more")
        n_shots = checks.integer(self.n_shots, "n_shots", 1, 1000, "1 to 1000")
        examples = data_files.objects(self.shots, n_shots) if self.shots else []
        if self.shots and len(examples) < n_shots:
            raise ArgumentError(f"{self.shots.name} has {len(examples)} examples; needed: {n_shots}")
        shots = tuple((_question(item), _solution(item)) for item in examples)
        items = data_files.objects(self.data, checks.integer(self.n_cases, "cases", 1, 2**31, "1 or more"))
        return [self._case(item, shots) for item in items]

    def _case(self, item: data_files.Item, shots: tuple[tuple[str, str], ...]) -> Case:
        return Case(
            id=str(item.number),
            prompt=_question(item),
            shots=shots,
            lead="Answer:",
            stop=("\n\n", "Question:"),
            max_tokens=self.max_tokens,
            expected=_answer(item),
        )

    def score(self, case: Case, reply: str) -> float:
        number, expected = final_number(reply), last_number(case.expected)
        return float(number == expected)


def _question(item: data_files.Item) -> str:
    return f"Question: {item.get('question', str)}"


def _solution(item: data_files.Item) -> str:
    """The steps in words, then the sentence that final_number() looks for."""
    steps = _ANNOTATION.sub("", item.get("answer", str)).partition("####")[0].strip()
    return f"{steps}\nThe answer is {_answer(item)}."


def _answer(item: data_files.Item) -> str:
    """The number after ####, as text: it may be too long for JSON's numbers."""
    number = last_number(item.get("answer", str).rpartition("####")[2])
    if number is None:
        raise ArgumentError(f"{item.place}: 'answer' ends in no number; accepted: #### NUMBER")
    return str(number)
