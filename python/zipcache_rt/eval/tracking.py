"""Variable tracking: which variables hold a value, through assignments scattered over much text."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from .. import checks
from .case import Case, Json
from .prompter import Prompter
from .scorers import share_named
from .synthetic import Synthetic, hidden
from .words import made_up

PROMPT = (
    "The following text has assignments of variables in it, such as VAR A = 1 or VAR B = VAR A. Remember them.\n\n"
    "{text}\n\nWhich {n} variables hold the value {value}, directly or through other variables? Name them all."
)
LEAD = "The {n} variables that hold the value {value} are"


@dataclass(frozen=True)
class VariableTracking(Synthetic):
    """The score is the share of the asked chain's variables that the reply names."""

    n_chains: int = 2  # of which one is asked for
    n_hops: int = 4  # assignments from variable to variable in each
    name: ClassVar[str] = "variable-tracking"

    @property
    def options(self) -> Mapping[str, Json]:
        return {"seed": self.seed, "n_chains": self.n_chains, "n_hops": self.n_hops}

    def cases(self, prompter: Prompter) -> list[Case]:
        checks.integer(self.n_chains, "chains", 1, 100, "1 to 100")
        checks.integer(self.n_hops, "hops", 1, 100, "1 to 100")
        return super().cases(prompter)

    def draft(self, rng: random.Random, number: int, n_units: int) -> Case:
        length = self.n_hops + 1
        names = made_up(rng, self.n_chains * length, string.ascii_uppercase, 5)
        values = rng.sample(range(10_000, 100_000), self.n_chains)
        needles = []
        for i, value in enumerate(values):
            chain = names[i * length : (i + 1) * length]
            sources = [str(value), *(f"VAR {name}" for name in chain[:-1])]
            places = sorted(rng.randrange(n_units + 1) for _ in chain)
            needles += [
                (place, f"VAR {name} = {source}.") for place, name, source in zip(places, chain, sources, strict=True)
            ]
        asked = {"n": length, "value": values[0]}
        return Case(
            id="",
            prompt=PROMPT.format(text=hidden(rng, sorted(needles, key=lambda needle: needle[0]), n_units), **asked),
            lead=LEAD.format(**asked),
            stop=("\n",),
            max_tokens=16 * length,
            expected=names[:length],
        )

    def score(self, case: Case, reply: str) -> float:
        return share_named(reply, case.expected)
