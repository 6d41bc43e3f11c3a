"""By how much tuned clips are further from real ones than the base's: KID's difference, with interval and margin.

KID is no figure of a clip, so pairs have to be kept in another way: whole captions are drawn anew, or change sides,
with all of their clips of both models. What real clips say among themselves is in both KIDs and cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvideo.evaluation.paired import MIN_CAPTIONS, RESAMPLES, Estimate, Floats, interval


class Distances:
    """Kernels between clips of two models and of real ones, as means over each caption's seeds.

    The kernel is that of `metrics.kid`, (x·y / D + 1)³.

    Args:
        captions: Of each pair, [P].
        first: Features [P, D] of one model's clips.
        second: The same of another's, by the same captions.
        real: Features [M, D] of real clips.
    """

    def __init__(self, captions: Sequence[str], first: Floats, second: Floats, real: Floats) -> None:
        names, place = np.unique(np.array(captions), return_inverse=True)
        self._count = len(names)
        mean = np.zeros((self._count, len(captions)))
        mean[place, np.arange(len(captions))] = 1 / np.bincount(place)[place]
        sides = [first, second]
        self._between = np.block([[mean @ _kernel(a, b) @ mean.T for b in sides] for a in sides])
        # Clips of one caption are no independent samples: an unbiased estimate leaves them out.
        same = np.tile(np.eye(self._count, dtype=bool), (2, 2))
        self._between[same] = 0
        self._real = np.concatenate([mean @ _kernel(side, real).mean(1) for side in sides])

    def difference(self, seed: int = 0) -> Estimate:
        """KID of the second less that of the first; needs two captions."""
        drawn = np.random.default_rng(seed).integers(0, self._count, (RESAMPLES, self._count))
        counts = np.stack([np.bincount(row, minlength=self._count) for row in drawn]).astype(np.float64)
        nobody = np.zeros_like(counts)
        value = float(self._gap(np.ones((1, self._count)), np.zeros((1, self._count)))[0])
        if self._count < MIN_CAPTIONS:
            return Estimate(value)
        return Estimate(value, *interval(self._gap(counts, nobody), self._count))

    def margin(self, share: float, seed: int = 0) -> float | None:
        """What the difference of `share` of all comparisons exceeds, either way, if sides are arbitrary."""
        if self._count < MIN_CAPTIONS:
            return None
        swapped = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, self._count)).astype(np.float64)
        return float(np.quantile(np.abs(self._gap(1 - swapped, swapped)), 1 - share))

    def _gap(self, kept: Floats, swapped: Floats) -> Any:
        """KID of the one side less that of the other, [R], where captions count `kept` [R, C] times as they are, and
        `swapped` times with their sides changed."""
        return self._kid(np.hstack([swapped, kept])) - self._kid(np.hstack([kept, swapped]))

    def _kid(self, weights: Floats) -> Any:
        """Squared MMD to the real clips, without what these say among themselves, for weights [R, 2C]."""
        halves = weights[:, : self._count] + weights[:, self._count :]
        total = halves.sum(1)
        others = total**2 - (halves**2).sum(1)
        return ((weights @ self._between) * weights).sum(1) / others - 2 * weights @ self._real / total


def _kernel(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Floats:
    kernel: Floats = (first.astype(np.float64) @ second.astype(np.float64).T / first.shape[1] + 1) ** 3
    return kernel
