"""A part of the self-test: what it checked and what it measured."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Check:
    """Something that is right or wrong."""

    name: str
    passed: bool
    detail: str = ""  # what was found, where it is wrong


@dataclass(frozen=True)
class Part:
    name: str
    checks: list[Check]
    facts: dict[str, Any] = field(default_factory=dict)  # ready for JSON
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # lines below the tables
    seconds: float = 0.0

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def as_dict(self) -> dict[str, Any]:
        failed = [{"name": check.name, "detail": check.detail} for check in self.failures]
        return {"seconds": round(self.seconds, 1), "checks": len(self.checks), "failed": failed, **self.facts}


def guarded(name: str, work: Callable[[], Part]) -> Part:
    """The part, or one failed check that says what ended it: the other parts are of use all the same."""
    began = time.perf_counter()
    try:
        part = work()
    except Exception as error:
        told = traceback.format_exc()
        part = Part(name, [Check(name, False, f"{type(error).__name__}: {error}")], {"traceback": told.splitlines()})
    return replace(part, seconds=time.perf_counter() - began)
