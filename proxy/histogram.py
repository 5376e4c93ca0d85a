"""Histograms: how often something took how long, in bounded memory, exactly counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
"""Bounds for what takes from a twentieth of a millisecond to ten seconds."""


class Histogram:
    """Counts observations by the least of the `bounds` that is not below them."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """For each bound what lies below it and above the one before; the last: what lies above all."""
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count an observation, or several alike."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)

    def quantile(self, fraction: float) -> float:
        """About the value that so large a part of the observations does not exceed; 0 if there is none.

        Within the bounds it is taken to lie evenly; of what exceeds all bounds, the last bound is given.
        """
        wanted = self.count * fraction
        below, low = 0, 0.0
        for count, high in zip(self.counts, self.bounds, strict=False):
            if count and below + count >= wanted:
                return low + (high - low) * max(0.0, wanted - below) / count
            below, low = below + count, high
        return low if below < self.count else 0.0

    def cumulated(self) -> list[tuple[float, int]]:
        """Each bound with how many observations do not exceed it, as Prometheus has it; the last one is
        infinite."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found
