"""A needle in a haystack: one sentence with a number in much text without."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from .. import checks
from .case import Case, Json
from .prompter import Prompter
from .scorers import numbers
from .synthetic import Synthetic, hidden
from .words import ADJECTIVES, NOUNS

PROMPT = (
    "Somewhere in the following text it says what the pass number of the {name} is. Remember it.\n\n{text}\n\n"
    "What is the pass number of the {name}? Tell me the number."
)
NEEDLE = "The pass number of the {name} is {value}."
LEAD = "The pass number of the {name} is"
GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, cover 0..1 evenly however many there are


@dataclass(frozen=True)
class Niah(Synthetic):
    """Right if the first number of the reply is the needle's. Case by case the needle lies at another depth."""

    n_keys: int = 1  # needles, of which one is asked for
    name: ClassVar[str] = "niah"

    @property
    def options(self) -> Mapping[str, Json]:
        return {"seed": self.seed, "n_keys": self.n_keys}

    def cases(self, prompter: Prompter) -> list[Case]:
        checks.integer(self.n_keys, "keys", 1, len(NOUNS), f"1 to {len(NOUNS)}")
        return super().cases(prompter)

    def draft(self, rng: random.Random, number: int, n_units: int) -> Case:
        names = [f"{rng.choice(ADJECTIVES)} {noun}" for noun in rng.sample(NOUNS, self.n_keys)]
        values = rng.sample(range(10**6, 10**7), self.n_keys)
        depths = [GOLDEN * (number + 1) % 1, *(rng.random() for _ in names[1:])]
        needles = [NEEDLE.format(name=name, value=value) for name, value in zip(names, values, strict=True)]
        places = [round(depth * n_units) for depth in depths]
        return Case(
            id="",
            prompt=PROMPT.format(name=names[0], text=hidden(rng, sorted(zip(places, needles, strict=True)), n_units)),
            lead=LEAD.format(name=names[0]),
            stop=("\n",),
            max_tokens=32,
            expected=values[0],
        )

    def score(self, case: Case, reply: str) -> float:
        return float(numbers(reply)[:1] == [case.expected])


@dataclass(frozen=True)
class MultiKeyNiah(Niah):
    """With needles that answer other questions."""

    n_keys: int = 4
    name: ClassVar[str] = "niah-multikey"
