"""How sure a mean of paired differences is, and how sure a share of votes is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

CONFIDENCE = 0.95
RESAMPLES = 4000
MIN_CAPTIONS = 6  # an interval of fewer holds the truth too rarely


class Estimate(NamedTuple):
    """A figure with its interval; None where there are too few captions for a bound."""

    value: float
    low: float | None = None
    high: float | None = None


def difference(captions: Sequence[str], first: Sequence[float], other: Sequence[float]) -> Estimate:
    """The mean of other - first, of pairs [P]; captions are drawn with all their seeds, which are no own samples.

    Percentiles of a seeded bootstrap, further out for few captions by Student's t (Hesterberg 2015).
    """
    changes: npt.NDArray[np.float64] = np.asarray(other, np.float64) - np.asarray(first, np.float64)
    _, place = np.unique(np.array(captions), return_inverse=True)
    sums, counts = np.bincount(place, changes), np.bincount(place)
    count, value = len(sums), float(changes.mean())
    if count < MIN_CAPTIONS:
        return Estimate(value)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    tail = norm.cdf(math.sqrt(count / (count - 1)) * t.ppf((1 - CONFIDENCE) / 2, count - 1))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def wilson(wins: float, n: int) -> Estimate:
    """A share of n votes, 1 or more, with Wilson's score interval; a tie is half a win."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = wins / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, middle - half, middle + half)
