"""Progress of work whose parts cost differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PREFILL_WEIGHT = 0.1  # of a prefilled token, a decoded one being 1


@dataclass
class Work:
    """Work done, told as 0..1."""

    total: float
    tell: Callable[[float], None]
    done: float = 0.0

    def part(self, work: float) -> Callable[[float], None]:
        """Tells of a part that makes its own 0..1."""
        begin = self.done
        return lambda share: self.reach(begin + share * work)

    def reach(self, done: float) -> None:
        self.done = done
        self.tell(min(done / self.total, 1.0))

    def add(self, work: float) -> None:
        self.reach(self.done + work)
