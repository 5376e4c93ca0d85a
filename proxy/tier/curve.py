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
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import exp, fsum, sqrt
from operator import itemgetter
from statistics import NormalDist, fmean
from typing import NamedTuple, TypeVar, cast

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that is cut into steps of a millisecond at most, so that others need not wait for all of it."""

_STEP = 1024
"""Samples gone through in a step."""


_TIMES = 1.96
"""Standard errors on either side within which 95 % of the estimates are."""
_OFF = [NormalDist().inv_cdf((n + 0.5) / 8) for n in range(8)]
"""Standard errors by which an estimate may be off, each as likely as the others."""

_MOST_OFF = 20.0
"""Errors from which nothing is known; larger ones would leave what a float can say."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Sizes in bytes and the hit rates that go with them, both growing."""

    effective: float
    """How many samples of equal weight would tell as much."""
    reads: float
    """For how many of each read that came they stand: 1, if they are of all."""
    sizes: tuple[float, ...]
    rates: tuple[float, ...]
    ages: tuple[float, ...]
    """How many reads come until what is not read again leaves a memory of that size."""
    errors: tuple[float, ...]
    """The standard error of each size, as a part of it."""

    @property
    def most(self) -> float:
        """The hit rate that no memory exceeds."""
        return self.rates[-1] if self.rates else 0.0

    def at(self, size: float) -> float:
        """The hit rate of so many bytes."""
        place = self._place(size)
        return self.rates[place - 1] if place else 0.0

    def estimate(self, size: float) -> Estimate:
        """The same, as it is best guessed where neither sizes nor rates are known exactly.

        Where the curve is steep, a little more or less memory makes a great difference: then it is the mean
        of what may be, and wide. A size is off by a factor, as it cannot be less than nothing: where few
        samples take nearly all the room, its error is as large as itself.
        """
        if not self.rates:
            return Estimate(0.0, 0.0)
        error = min(self.errors[min(self._place(size), len(self.errors) - 1)], _MOST_OFF)
        rate = fmean([self.at(size * exp(off * error)) for off in _OFF])
        least, most = (self.at(size * exp(times * error)) for times in (-_TIMES, _TIMES))
        # As if four more had been seen, half of them hits: else none of few would tell for certain of none.
        share = (rate * self.effective + 2) / (self.effective + 4)
        sampling = _TIMES * sqrt(share * (1.0 - share) / (self.effective + 4))
        # The two go together: where what is read often is over-represented, rates seem higher and sizes less.
        return Estimate(rate, sampling + max(most - rate, rate - least))

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


class Estimate(NamedTuple):
    """A hit rate, and how far it may be off: no further in 95 % of all cases."""

    rate: float
    plus_minus: float


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
    return finish(steps(found))


def finish(work: Steps[T]) -> T:
    """Do work that is cut into steps in one go."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return cast(T, done.value)


def steps(found: Iterable[Watched]) -> Steps[Curve]:
    """The curve of some samples, a millisecond's work at a time."""
    watched = sorted([each for each in found if each.weight > 0], key=itemgetter(0))
    yield
    reads = fsum([each.weight for each in watched])
    kept = [each for each in watched if each.size]
    if not kept:
        return Curve(0.0, reads, (), (), (), ())
    effective = reads**2 / fsum([each.weight**2 for each in watched])
    yield
    # For each sample: what is left of all with it and those that became older.
    weights = _left([each.weight for each in kept])
    volumes = _left([each.weight * each.size for each in kept])
    squares = _left([each.weight * each.size**2 for each in kept])
    share, flow = weights[0] / reads, volumes[0]
    points: list[tuple[float, float, float, float]] = []
    alive = alive_bytes = 1.0
    size = rate = before = taken = taken_squared = 0.0
    for n, (age, ended, again, weight, its_size) in enumerate(kept):
        if n % _STEP == 0:
            yield
        size += alive_bytes * (age - before)
        before = age
        if ended:
            rate += alive * weight / weights[n] * again
            alive *= 1.0 - weight / weights[n]
            alive_bytes *= 1.0 - weight * its_size / volumes[n]
        # By how much the samples differ in the room they have taken until then, their bytes times their age:
        # those that ended before, and those that are as old as this one, or became older.
        mean = taken + age * volumes[n]
        spread = reads * (taken_squared + age**2 * squares[n]) / mean**2 - 1.0 if mean else 0.0
        room = its_size * age
        taken += weight * room
        taken_squared += weight * room**2
        points.append((flow * size, share * rate, age, sqrt(max(spread, 0.0) / effective)))
    sizes, rates, ages, errors = zip(*points, strict=True)
    return Curve(effective, reads, sizes, rates, ages, errors)


def _left(amounts: list[float]) -> list[float]:
    """For each, the sum of it and of all behind it."""
    return list(accumulate(reversed(amounts)))[::-1]
