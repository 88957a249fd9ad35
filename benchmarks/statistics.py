"""Medians of within-round ratios with their intervals: what a noisy machine can still say for certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

# Below this many rounds the interval of a median is too wide to say anything.
LEAST_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of ratios and the interval that holds the true median with 95% confidence."""

    median: float
    low: float
    high: float


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Median ratio of pairs that were measured in the same round.

    The interval is that of order statistics: of n ratios, the k-th smallest and k-th largest, with the largest k
    for which fewer than k of n fair coins fall heads with a probability of at most 2.5%.
    """
    ratios = sorted(one / other for one, other in zip(numerators, denominators, strict=True))
    count = len(ratios)
    k = 0
    below = 0.0
    while below + comb(count, k) / 2**count <= 0.025:
        below += comb(count, k) / 2**count
        k += 1
    k = max(k, 1)
    return Ratio(median(ratios), ratios[k - 1], ratios[count - k])
