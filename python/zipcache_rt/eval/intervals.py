"""Confidence intervals, all of 95 %."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile
RESAMPLES = 10_000
AT_ONCE = 2**22  # resampled values: bounds memory
Statistic = Callable[..., NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval of 95 % confidence."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: int) -> Estimate:
    """A share (Wilson, 1927), n >= 1. Partly right answers count as their share of a success, which makes it wide."""
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def mean_interval(values: ArrayLike) -> Estimate:
    """wilson() of values of 0..1 [n]."""
    given = np.asarray(values, np.float64)
    return wilson(float(given.sum()), given.size)


def bootstrap(statistic: Statistic, *samples: ArrayLike, seed: int = 0) -> Estimate:
    """A percentile interval from 10,000 resamples of the cases.

    samples: [n] each, resampled together: paired. statistic: of arrays [..., n], gives [...].
    """
    given = np.stack([np.asarray(sample, np.float64) for sample in samples])  # [n_samples, n]
    n = given.shape[1]
    random = np.random.default_rng(seed)
    made: list[Any] = []
    for first in range(0, RESAMPLES, step := max(1, AT_ONCE // n)):
        drawn = given[:, random.integers(n, size=(min(step, RESAMPLES - first), n))]  # [n_samples, step, n]
        made.append(statistic(*drawn))
    low, high = np.quantile(np.concatenate(made), (0.025, 0.975))
    return Estimate(float(statistic(*given)), float(low), float(high))


def paired_difference(values: ArrayLike, reference: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of values - reference, of the same cases [n] in the same order."""
    return bootstrap(lambda given, base: (given - base).mean(-1), values, reference, seed=seed)
