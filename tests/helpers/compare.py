"""Distances between two sets of logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def mean_kl(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Mean over rows of KL(expected || got), nats."""
    p, q = log_softmax(expected), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def top1_agreement(expected: NDArray[Any], got: NDArray[Any]) -> float:
    return float((expected.argmax(-1) == got.argmax(-1)).mean())
