"""Words to count: the most common ones of a list, and of a text in a made-up language."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import cycle, islice
from typing import ClassVar

from .case import Case
from .scorers import share_named
from .synthetic import Synthetic
from .words import NOUNS, made_up

N_COMMON = 10
COMMON_SHARE = 0.4  # of the list's entries
COMMON_PROMPT = (
    "In the following numbered list some words stand more often than others. Remember the most common ones.\n\n{text}"
    "\n\nWhat are the {n} most common words of the list? Name them."
)
COMMON_LEAD = "The {n} most common words of the list are:"
N_FREQUENT = 3
FREQUENT_PROMPT = (
    "The following text is in a coded language. Remember which of its words occur most often.\n\n{text}\n\n"
    "What are the {n} most frequent words of the text? Name them."
)
FREQUENT_LEAD = "The {n} most frequent words of the text are:"


@dataclass(frozen=True)
class CommonWords(Synthetic):
    """Ten words that are several times as common as all others. A unit is an entry of the list."""

    name: ClassVar[str] = "common-words"
    least: ClassVar[int] = 50

    def draft(self, rng: random.Random, number: int, n_units: int) -> Case:
        words = rng.sample(NOUNS, len(NOUNS))
        common, rare = words[:N_COMMON], words[N_COMMON:]
        often = max(2, int(n_units * COMMON_SHARE / N_COMMON))
        entries = [*common * often, *islice(cycle(rare), n_units - N_COMMON * often)]
        rng.shuffle(entries)
        text = "\n".join(f"{i}. {word}" for i, word in enumerate(entries, 1))
        return Case(
            id="",
            prompt=COMMON_PROMPT.format(text=text, n=N_COMMON),
            lead=COMMON_LEAD.format(n=N_COMMON),
            stop=("\n\n",),
            max_tokens=100,
            expected=sorted(common),
        )

    def score(self, case: Case, reply: str) -> float:
        return share_named(reply, case.expected)


@dataclass(frozen=True)
class FrequentWords(Synthetic):
    """The three most frequent words where the k-th is 1 / k**2 as frequent as the first. A unit is a word."""

    name: ClassVar[str] = "frequent-words"
    least: ClassVar[int] = 60

    def draft(self, rng: random.Random, number: int, n_units: int) -> Case:
        counts = _zeta_counts(n_units)
        words = made_up(rng, len(counts), string.ascii_lowercase, 6)
        text = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
        rng.shuffle(text)
        return Case(
            id="",
            prompt=FREQUENT_PROMPT.format(text=" ".join(text), n=N_FREQUENT),
            lead=FREQUENT_LEAD.format(n=N_FREQUENT),
            stop=("\n\n",),
            max_tokens=48,
            expected=words[:N_FREQUENT],
        )

    def score(self, case: Case, reply: str) -> float:
        return share_named(reply, case.expected)


def _zeta_counts(n: int) -> list[int]:
    """Of n words by rank, their sum n: proportional to 1 / rank**2, then once each. The first four differ."""
    first = int(n * 6 / 3.141592653589793**2)
    counts = [count for rank in range(1, n + 1) if (count := first // rank**2)]
    return counts + [1] * (n - sum(counts))
