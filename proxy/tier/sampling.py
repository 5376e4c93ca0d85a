"""Which reads are watched, and which of those that were are kept: as many as tell enough, of equal weight.

A sample stands for the reads since the one before it, about `gap` of them. While the window is not full, and
samples do not come too fast, the gap is small. Once it is full the gap doubles, and with each new sample the
window drops an old one, the oldest first: of two of the old, one stays and stands for both. When all of the
old ones have been gone through, the window is full again of samples that weigh the same. So it is never
thinned in one go, and no few samples ever carry most of the weight, whatever the rate of reads was or is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from math import ceil
from random import randrange
from typing import Generic, Protocol, TypeVar

MOST = 8192
"""Samples in a window. They take 1.6 MB."""
GAP = 2
"""Reads between two samples at least, on average."""
FIRST = 32
"""The same before the first."""
RATE = 512
"""Samples a second at most, about: one costs some microseconds, all of them half a percent of a second."""
STEP = 64
"""Samples after which it is seen how fast they come."""
_FASTER = 8.0
"""By how much the gap grows at once at most: a burst is soon over."""
_SOME = 16
"""Of a chunk of so many gaps, nothing is gained by going through all."""


class Weighed(Protocol):
    """A sample as the window knows it."""

    weight: int
    """Reads it stands for."""

    @property
    def hit(self) -> bool:
        """Of which kind it is: each is thinned for itself."""


S = TypeVar("S", bound=Weighed)


class Quota:
    """What all who take samples share, so that many windows cost no more than one."""

    def __init__(self) -> None:
        self.taken = 0
        """Samples since the start."""


class Pace:
    """How many reads there are from one sample of a window to the next."""

    def __init__(self, clock: Callable[[], float], quota: Quota) -> None:
        self.gap = GAP
        self._clock = clock
        self._quota = quota
        self._at, self._before = clock(), quota.taken
        """When it was last seen how fast samples come, and how many there were."""

    def took(self) -> None:
        """Hear that a sample was taken."""
        self._quota.taken += 1
        taken = self._quota.taken - self._before
        if taken >= STEP:
            now = self._clock()
            seconds, self._at, self._before = now - self._at, now, self._quota.taken
            faster = taken / (seconds * RATE) if seconds > 0 else _FASTER
            if faster > 1.0:
                self.gap = ceil(self.gap * min(faster, _FASTER))


class Turn:
    """Which read of one kind is watched next: that is left to chance, as reads may come in a rhythm."""

    __slots__ = ("_gap", "_pace", "due")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._gap = pace.gap
        self.due = FIRST
        """Which of the reads to come is watched: the first is 1."""

    def pass_over(self, n: int) -> int:
        """Hear of `n` reads; how many reads a sample of them stands for, 0: none is to be watched."""
        self.due -= n
        if self.due > 0:
            return 0
        if n > _SOME * self._gap:
            self.draw()
            return n
        stands_for = 0
        while self.due <= 0:
            stands_for += self._gap
            left = self.due
            self.draw()
            self.due += left
        return stands_for

    def draw(self) -> None:
        """Choose the next one."""
        self._gap = self._pace.gap
        self.due = 1 + randrange(2 * self._gap - 1)


class Window(Generic[S]):
    """The samples, in the order in which they began."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._thinned: deque[S] = deque()
        self._old: deque[S] = deque()
        """Behind these: those still to be thinned."""
        self._fresh: deque[S] = deque()
        """Behind these: those that came since that was begun."""
        self._spared = {True: False, False: False}
        """By kind: whether the last one of the old was dropped, so that the next one stands for it, too."""

    def __len__(self) -> int:
        return len(self._thinned) + len(self._old) + len(self._fresh)

    def __iter__(self) -> Iterator[S]:
        return chain(self._thinned, self._old, self._fresh)

    def append(self, sample: S) -> S | None:
        """Take a sample in; the one that has to go for it, if any."""
        self._fresh.append(sample)
        if len(self) <= MOST:
            return None
        while True:
            if not self._old:
                self._begin()
            old = self._old.popleft()
            self._spared[old.hit] = not self._spared[old.hit]
            if self._spared[old.hit]:
                return old
            old.weight *= 2
            self._thinned.append(old)

    def _begin(self) -> None:
        """Have all of them thinned, from now on."""
        self._thinned.extend(self._fresh)
        self._old, self._thinned, self._fresh = self._thinned, deque(), deque()
        self._pace.gap *= 2

    def first(self) -> S | None:
        """The oldest, if any."""
        return next(iter(self), None)

    def drop_first(self) -> None:
        """Drop the oldest."""
        (self._thinned or self._old or self._fresh).popleft()
