"""What replies say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

# A minus right after a word or a number is a dash. Commas part thousands only before three digits.
_NUMBER = re.compile(r"((?<![\w)\]}.])[-\u2212])?\$?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?")
_CONCLUSION = re.compile(r"####|answer is", re.IGNORECASE)


def numbers(text: str) -> list[Decimal]:
    """All numbers, in order: "from 16-3 to $-1,234.50" holds 16, 3 and -1234.50."""
    found = (match.groups("") for match in _NUMBER.finditer(text))
    return [Decimal(("-" if sign else "") + whole.replace(",", "") + rest) for sign, whole, rest in found]


def last_number(text: str) -> Decimal | None:
    found = numbers(text)
    return found[-1] if found else None


def final_number(text: str) -> Decimal | None:
    """The first number after the last "####" or "answer is", else the last of all."""
    *_, after = _CONCLUSION.split(text)
    concluded = numbers(after)
    return concluded[0] if concluded and after != text else last_number(text)


def share_named(text: str, words: Sequence[str]) -> float:
    """The share of the words that the text holds, in any case, each as a whole word."""
    said = set(re.findall(r"[\w-]+", text.casefold()))
    return sum(word.casefold() in said for word in words) / len(words)
