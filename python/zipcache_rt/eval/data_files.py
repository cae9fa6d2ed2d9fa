"""Cases from files of JSON lines, plain or gzipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from .. import json_lines
from .._core import ArgumentError
from .case import Json

T = TypeVar("T", str, int)


@dataclass(frozen=True)
class Item:
    """One line's object."""

    place: str  # file and line, for messages
    number: int  # 0 for the first
    values: Mapping[str, Json]

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """A text or an integer of the object. Raises ArgumentError."""
        value = self.values.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            shown = "missing" if value is None else repr(value)[:80]
            raise ArgumentError(f"{self.place}: {name!r} is {shown}; accepted: {kind.__name__}")
        return value


def objects(path: Path, most: int) -> list[Item]:
    """The first objects of a file. Raises FileError, and ArgumentError for lines that are no objects."""
    items = []
    for number, (line, found) in enumerate(islice(json_lines.parse(path.name, json_lines.read_text(path)), most)):
        place = f"{path.name}, line {line}"
        if not isinstance(found, dict):
            raise ArgumentError(f"{place}, is {str(found)[:80]!r}; accepted: an object")
        items.append(Item(place, number, found))
    return items
