"""What a model expects at each place of a given text, while the cache decodes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._core import ModelError
from .session import Session
from .work import PREFILL_WEIGHT, Work

SLICE = 16  # tokens scored by one call: bounds memory, and the wait for Ctrl-C


@dataclass(frozen=True)
class Given:
    """A text and where in it scoring begins."""

    name: str  # for messages
    tokens: Sequence[int]  # [context + n_continue]
    context: int

    @property
    def work(self) -> float:
        """What log_probs() adds to its Work."""
        return PREFILL_WEIGHT * self.context + len(self.tokens) - self.context - 1


def log_probs(
    session: Session, given: Given, told: Work, *, policy: str, decoded: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Natural logs [n_vocab] of the next token's probabilities, before each token after the context.

    The context is prefilled but for its last `decoded` tokens, which are decoded as all after it are. Raises
    ModelError, which names the policy, where logits are not finite.
    """
    for i, logits in enumerate(_logits(session, given, told, decoded)):
        if not np.isfinite(logits).all():
            raise ModelError(f"{policy}: the logits before token {given.context + i} of {given.name} are not finite")
        yield log_softmax(logits)


def _logits(session: Session, given: Given, told: Work, decoded: int) -> Iterator[NDArray[np.float32]]:
    prefilled = given.context - decoded
    session.prefill(given.tokens[:prefilled], progress=told.part(PREFILL_WEIGHT * given.context))
    for token in given.tokens[prefilled : given.context]:
        session.decode(token)
    yield session.logits
    rest = given.tokens[given.context : -1]  # nothing is scored after the last one
    for first in range(0, len(rest), SLICE):
        part = rest[first : first + SLICE]
        yield from session.score(part)
        told.add(len(part))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logs of the probabilities, [n_vocab]."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted.astype(np.float32)
