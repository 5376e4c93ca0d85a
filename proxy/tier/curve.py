"""A curve of hit rates by size of memory, from reads that were watched until they were read again (`reuse`).

A least-recently-used memory evicts what was not read for some time, its *age*. What is kept at that age is
what was read and has neither been read again, nor changed, nor expired within it: so each age tells a size,
and the share of reads that were read again within it is the hit rate of that size. (Hu and others: Kinetic
Modeling of Data Eviction in Cache, USENIX ATC 2016.) No order of the keys is needed for that, nor any
assumption about who reads what; only that the reads of the window are like those to come.

Many samples are still open: nothing is known of them but that nothing happened yet. They count as long as
they were watched, and not for longer (Kaplan, Meier: Nonparametric Estimation from Incomplete Observations,
1958).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Curve:
    """Sizes in bytes and the hit rates that go with them, both growing."""

    samples: int
    reads: float
    """For how many of each read that came they stand: 1, if they are of all."""
    sizes: tuple[float, ...]
    rates: tuple[float, ...]
    ages: tuple[float, ...]
    """How many reads come until what is not read again leaves a memory of that size."""

    @property
    def most(self) -> float:
        """The hit rate that no memory exceeds."""
        return self.rates[-1] if self.rates else 0.0

    def at(self, size: float) -> float:
        """The hit rate of so many bytes."""
        place = self._place(size)
        return self.rates[place - 1] if place else 0.0

    def age(self, size: float) -> float | None:
        """How many reads what is not read again stays in so many bytes; None: more than were watched."""
        place = self._place(size)
        return self.ages[place] if place < len(self.ages) else None

    def enough(self, rate: float) -> float:
        """The fewest bytes that reach a hit rate, if any do; else the most that make a difference."""
        if not self.sizes:
            return 0.0
        return self.sizes[min(bisect_left(self.rates, rate), len(self.sizes) - 1)]

    def _place(self, size: float) -> int:
        """How many points of the curve lie within a size."""
        return bisect_left(self.sizes, size)


class Watched(NamedTuple):
    """A sample as the curve needs it."""

    age: float
    """How many reads came while it was watched."""
    ended: bool
    """Whether something happened then: it was read again, or memory could not have kept it for longer."""
    again: bool
    """Whether it was read again then."""
    weight: float
    """For how many it stands of each read that came."""
    size: float
    """Bytes it takes; 0: it was not to be kept."""


def curve(found: Iterable[Watched]) -> Curve:
    """The curve of some samples."""
    watched = sorted(found, key=attrgetter("age"))
    reads = sum([each.weight for each in watched])
    kept = [each for each in watched if each.size]
    if not kept:
        return Curve(len(watched), reads, (), (), ())
    weights = _left([each.weight for each in kept])
    volumes = _left([each.weight * each.size for each in kept])
    share, flow = weights[0] / reads, volumes[0]
    points = [(flow * size, share * rate, age) for size, rate, age in _points(kept, weights, volumes)]
    sizes, rates, ages = zip(*points, strict=True)
    return Curve(len(watched), reads, sizes, rates, ages)


def _points(
    kept: list[Watched], weights: list[float], volumes: list[float]
) -> Iterator[tuple[float, float, float]]:
    """At each age: the mean age that bytes have reached by then, the share read again, and the age."""
    alive = alive_bytes = 1.0
    size = rate = age = 0.0
    for each, weight, volume in zip(kept, weights, volumes, strict=True):
        size += alive_bytes * (each.age - age)
        age = each.age
        if each.ended:
            rate += alive * each.weight / weight * each.again
            alive *= 1.0 - each.weight / weight
            alive_bytes *= 1.0 - each.weight * each.size / volume
        yield size, rate, age


def _left(amounts: list[float]) -> list[float]:
    """For each, the sum of it and of all behind it."""
    return list(accumulate(reversed(amounts)))[::-1]
