"""Made-up cases of any length in tokens, in the manner of RULER (arXiv 2404.06654)."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

from .. import checks
from .._core import ArgumentError
from .case import Case, Json, Metric
from .prompter import Prompter
from .words import ADJECTIVES, NOUNS

VERBS = ("waited", "rested", "slept", "sang", "danced", "worked", "played", "walked", "talked", "dreamt", "smiled")
PLACES = ("near", "behind", "above", "below", "beside", "opposite", "inside", "around", "outside", "past")
TIMES = ("", "at noon", "all day", "in the morning", "before the rain", "after dinner", "every week", "for a while")


@dataclass(frozen=True)
class Synthetic(ABC):
    """n_cases prompts of each length: as many units of text as fit, chat template and question included."""

    tokens: tuple[int, ...] = (1000, 2000, 4000)
    n_cases: int = 20
    seed: int = 0
    name: ClassVar[str]
    metric: ClassVar[Metric] = "accuracy"
    least: ClassVar[int] = 1  # units that a prompt cannot do without

    @property
    def options(self) -> Mapping[str, Json]:
        return {"seed": self.seed}

    def cases(self, prompter: Prompter) -> list[Case]:
        n_cases = checks.integer(self.n_cases, "cases", 1, 2**31, "1 or more")
        if not self.tokens:
            raise ArgumentError("tokens is empty; accepted: lengths of prompts")
        for length in self.tokens:
            checks.integer(length, "tokens", 1, 2**31, "1 or more")
        return [self._fitted(prompter, length, i) for length in self.tokens for i in range(n_cases)]

    def _fitted(self, prompter: Prompter, length: int, number: int) -> Case:
        def draft(n_units: int) -> Case:
            return self.draft(random.Random(f"{self.name} {length} {self.seed} {number}"), number, n_units)

        n_units = most_units(lambda n: len(prompter.tokens(draft(n))) <= length, self.least)
        if n_units < self.least:
            needed = len(prompter.tokens(draft(self.least)))
            raise ArgumentError(f"tokens is {length}; accepted for {self.name}: {needed} or more")
        return replace(draft(n_units), id=f"{length}-{number}", group=f"{length} tokens")

    @abstractmethod
    def draft(self, rng: random.Random, number: int, n_units: int) -> Case:
        """The case of that number with n_units units of text, without id and group."""

    @abstractmethod
    def score(self, case: Case, reply: str) -> float: ...


def most_units(fits: Callable[[int], bool], least: int) -> int:
    """The most units that fit, least - 1 if not even these do."""
    low, step = least - 1, 1
    while fits(low + step):
        low, step = low + step, 2 * step
    while step > 1:
        step //= 2
        if fits(low + step):
            low += step
    return low


def filler(rng: random.Random) -> Iterator[str]:
    """Sentences without numbers, all of the same few forms."""
    while True:
        who, where = rng.sample(NOUNS, 2)
        time = rng.choice(TIMES)
        begin = f"The {rng.choice(ADJECTIVES)} {who} {rng.choice(VERBS)} {rng.choice(PLACES)} the {where}"
        yield f"{begin} {time}." if time else f"{begin}."


def hidden(rng: random.Random, needles: Sequence[tuple[int, str]], n_units: int) -> str:
    """n_units sentences of filler with needles among them: (how many go before it, sentence), in that order."""
    hay = list(islice(filler(rng), n_units))
    for place, needle in reversed(needles):
        hay.insert(place, needle)
    return " ".join(hay)
