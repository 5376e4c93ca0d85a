"""When what was read is read again: from this follows what memory of any size would answer.

Of the reads a sample is taken, and each is watched until the same is read again, or changes, or its time is
over. `tier.curve` makes a curve of hit rates by size of it.

Why not a sample of the keys, as `tier.ghost` has it: each of their reads would have to be seen, and a hit is
not seen. It is one look-up in a dict among many; only a sample of the chunks is logged, and to look at every
part of a pipeline would cost more than the look-up. Nor does the log alone tell when a key is read next:
what is read five times in a second and never again is in it once. So a read that was logged is watched like
this: its reply leaves the dict and is *held*. The next read of it finds nothing, takes the path of misses,
and is answered there by what is put back. That costs some microseconds once a sample. Misses are seen one by
one, so those are watched where they are seen, and held when their reply has come.

A sample stands for the reads since the one before it, hits and misses apart: hits by the log's measure,
which is corrected later (see `traffic.overstated`), misses exactly. So it does not matter that samples are
taken evenly in time, and fewer the more there is to do.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import randrange
from typing import TYPE_CHECKING, NamedTuple

from proxy.tier.curve import Watched

if TYPE_CHECKING:
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Account

MOST = 4096
"""Samples in the window. They take half a megabyte."""
_RATE = 2.0
"""Samples a second, of hits and of misses each, so that the window is a quarter of an hour and more."""
_AT_ONCE = 512
"""Samples of each that are taken as fast as reads come, to begin with."""
_GAP = 4
"""Reads logged, or misses, between two samples even then, on average."""
_STEP = 32
"""Samples after which the pace is adapted."""
_FIRST = 32
"""The same before the first."""
_TICK = 0.01
_LONGEST = 1024
"""Bytes of a part that is watched."""


class Outcome(enum.Enum):
    """What has become of a read that was watched."""

    OPEN = enum.auto()
    """Nothing until now, or until it was given up."""
    AGAIN = enum.auto()
    """It was read again."""
    CHANGED = enum.auto()
    """Its key changed before that."""
    EXPIRED = enum.auto()
    """Its time was over before that."""


class Counts(NamedTuple):
    """What had been counted at some moment."""

    reads: int
    """Of the budget: the time of its `ReadClock`."""
    hits: int
    misses: int
    """Of the account, exactly."""
    account_logged: int
    """The same as the logs have them."""
    logged: int
    """Of the shelf, as the logs have them."""
    missed: int
    """Of the shelf."""


@dataclass(slots=True)
class Sample:
    """A read that is, or was, watched."""

    part: bytes
    label: str
    """The class of its first key."""
    began: Counts
    weight: int
    """Reads it stands for, about."""
    hit: bool
    kept: bool = False
    """Whether its reply was kept, or would have been with more memory."""
    size: int = 0
    """Bytes that takes, in all protocols; 0 where it was not kept for want of room."""
    ended: int | None = None
    """Reads of the budget then. None: it is still watched."""
    outcome: Outcome = Outcome.OPEN
    until: float = float("inf")
    """Of what is not kept for want of room: when its time would be over at the latest (monotonic seconds)."""
    missed: bool = False
    """Of what expired: whether it was then read again, and might have been answered had it had more time."""


class Reuse:
    """The samples of one shelf. Told by the shelf and its tables what happens."""

    def __init__(self, shelf: Shelf) -> None:
        self.samples: deque[Sample] = deque()
        """The window: in the order in which they began."""
        self.open: dict[bytes, Sample] = {}
        """By part: those still watched, or expired and not read since."""
        self.unkept: dict[int, Sample] = {}
        """By the marks of their keys: those whose replies are not kept for want of room, so that no index has
        them."""
        self._shelf = shelf
        self._logged = self._missed = 0
        self._since = self._counts()
        """When the window begins."""
        self._hits = _Pace(shelf.tier.clock)
        self._misses = _Pace(shelf.tier.clock)

    # --- sampling

    def hit(self, parts: Sequence[bytes], weight: int) -> None:
        """Hear of hits that were logged, each for `weight`; there may be other parts among them."""
        logged = len(parts) * weight
        self._logged += logged
        self._shelf.account.logged += logged
        if self._hits.pass_over(len(parts)):
            stands_for = self._hits.take() * weight
            part = parts[randrange(len(parts))]
            if self._shelf.taken_by(part):
                self._watch(part, stands_for, True)

    def missed(self, parts: Sequence[bytes]) -> None:
        """Hear of reads that were looked up and not found; the last one may have been a moment ago."""
        self._missed += len(parts)
        last = self._misses.due - 1
        if self._misses.pass_over(len(parts)):
            self._watch(parts[last], self._misses.take(), False)

    @property
    def due(self) -> int:
        """Which of the misses to come is watched: the first is 1."""
        return self._misses.due

    def _watch(self, part: bytes, weight: int, hit: bool) -> None:
        shelf = self._shelf
        if shelf.stale.since is not None or shelf.mode.late or part in self.open or len(part) > _LONGEST:
            return
        sample = Sample(part, shelf.label(part), self._counts(), weight, hit)
        self.samples.append(sample)
        self.open[part] = sample
        if size := shelf.taken_by(part):
            self._keep(sample, size)
        elif shelf.budget.door.throttled and (longest := shelf.longest(part)):
            sample.kept = True
            sample.until = shelf.tier.clock() + longest
            self._find_by_key(sample)
        while len(self.samples) > MOST:
            self._give_up(self.samples.popleft())

    def _keep(self, sample: Sample, size: int) -> None:
        sample.kept, sample.size = True, size
        for table in self._shelf.tables.values():
            table.hold(sample.part)

    def _give_up(self, sample: Sample) -> None:
        """Watch a sample no longer that leaves the window."""
        self._since = sample.began
        if self.open.get(sample.part) is sample:
            self._end(sample, Outcome.OPEN)

    # --- what becomes of it

    def release(self, parts: Iterable[bytes]) -> None:
        """Hear that parts are read: put back what is held of them."""
        if self.open.keys().isdisjoint(parts):
            return
        for part in parts:
            sample = self.open.get(part)
            if sample is not None:
                if sample.until < self._shelf.tier.clock():
                    self.expired(part)
                sample.missed = sample.outcome is Outcome.EXPIRED
                self._end(sample, Outcome.AGAIN)

    def landed(self, part: bytes) -> None:
        """Hear that a reply is kept."""
        sample = self.open.get(part)
        if sample is not None and sample.outcome is not Outcome.EXPIRED:
            self._keep(sample, self._shelf.taken_by(part))

    def changed(self, part: bytes) -> None:
        """Hear that the key of a part has changed."""
        sample = self.open.get(part)
        if sample is not None and sample.kept:
            self._end(sample, Outcome.CHANGED)

    def marks_changed(self, keys: Iterable[int]) -> None:
        """Hear that keys, given by their marks, have changed: from Redis, or as they are written here."""
        for key in self.unkept.keys() & keys:
            self._end(self.unkept[key], Outcome.CHANGED)

    def expired(self, part: bytes) -> None:
        """Hear that a part's time is over. It is watched on, to see if more time had helped."""
        sample = self.open.get(part)
        if sample is not None and sample.kept and sample.ended is None:
            sample.ended, sample.outcome = self._shelf.budget.reads.now(), Outcome.EXPIRED

    def evicted(self, part: bytes) -> None:
        """Hear that a part was evicted: it is watched on, to see if more room had helped."""
        sample = self.open.get(part)
        if sample is not None:
            self._find_by_key(sample)

    def _find_by_key(self, sample: Sample) -> None:
        for key in self._shelf.rules.part_marks(sample.part)[:1]:
            self.unkept[key] = sample

    def clear(self) -> None:
        """Give up all that is watched: everything was dropped, or nobody vouches for it."""
        for sample in list(self.open.values()):
            self._end(sample, Outcome.OPEN)
        self.unkept.clear()

    def watched(self) -> list[tuple[Sample, Watched]]:
        """The samples of the window, as a curve needs them. Weights are reads for each read of the budget."""
        now = self._counts()
        reads = max(now.reads - self._since.reads, 1)
        hit, missed = self._corrections(now)
        sizes = _mean_sizes(self.samples)
        return [
            (
                sample,
                Watched(
                    age=(now.reads if sample.ended is None else sample.ended) - sample.began.reads,
                    ended=sample.outcome is not Outcome.OPEN,
                    again=sample.outcome is Outcome.AGAIN,
                    weight=sample.weight * (hit if sample.hit else missed) / reads,
                    size=(sample.size or sizes.get(sample.label) or sizes[ANY]) if sample.kept else 0.0,
                ),
            )
            for sample in self.samples
        ]

    def rate(self) -> tuple[int, int]:
        """The account's hits and misses in the window."""
        now, since = self._counts(), self._since
        return now.hits - since.hits, now.misses - since.misses

    def _corrections(self, now: Counts) -> tuple[float, float]:
        """What to multiply weights of hits and of misses with, so that their sums are what was counted.

        Of the account's hits, the shelf has the share that it has of those logged.
        """
        since = self._since
        logged = max(now.account_logged - since.account_logged, 1)
        hits = (now.hits - since.hits) * (now.logged - since.logged) / logged
        weights = [sum([each.weight for each in self.samples if each.hit is hit]) for hit in (True, False)]
        return hits / max(weights[0], 1), (now.missed - since.missed) / max(weights[1], 1)

    def _counts(self) -> Counts:
        account, reads = self._shelf.account, self._shelf.budget.reads.now()
        return Counts(reads, account.hits_counted, account.misses, account.logged, self._logged, self._missed)

    def _end(self, sample: Sample, outcome: Outcome) -> None:
        del self.open[sample.part]
        for table in self._shelf.tables.values():
            table.release(sample.part)
        if self.unkept:
            for key in self._shelf.rules.part_marks(sample.part)[:1]:
                if self.unkept.get(key) is sample:
                    del self.unkept[key]
        if sample.ended is None:
            sample.ended, sample.outcome = self._shelf.budget.reads.now(), outcome
        sample.part = b""


ANY = ""


def _mean_sizes(samples: Iterable[Sample]) -> dict[str, float]:
    """By class, and for `ANY`: what a reply takes of which it is not known, as there was no room for it.

    That is what those take that had not been in memory either.
    """
    sums: dict[str, tuple[int, int]] = {ANY: (0, 1)}
    for sample in samples:
        if sample.size and not sample.hit:
            for label in (sample.label, ANY):
                size, weight = sums.get(label, (0, 0))
                sums[label] = (size + sample.size * sample.weight, weight + sample.weight)
    return {label: size / weight for label, (size, weight) in sums.items()}


class _Pace:
    """Which reads are watched, and what each stands for: one of a number that follows the traffic slowly.

    So reads that come close together have the same chance as others.
    """

    __slots__ = ("_at", "_clock", "_gap", "_taken", "due")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._gap = _GAP
        self.due = _FIRST
        """Which of the reads to come is watched: the first is 1."""
        self._taken = 0

    def pass_over(self, n: int) -> bool:
        """Hear of `n` reads; whether one of them is to be watched."""
        self.due -= n
        return self.due <= 0

    def take(self) -> int:
        """Watch one; for how many reads it stands. Which one is next is left to chance: reads may come in a
        rhythm."""
        gap = self._gap
        self.due = randrange(2 * gap) + 1
        self._taken += 1
        if self._taken % _STEP == 0:
            self._adapt()
        return gap

    def _adapt(self) -> None:
        """Bring the pace nearer to what it should be."""
        seconds, self._at = self._clock() - self._at, self._clock()
        if self._taken > _AT_ONCE:
            factor = _STEP / max(_RATE * seconds, _STEP / 2)
            self._gap = max(_GAP, round(self._gap * max(factor, 0.5)))


class ReadClock:
    """All reads that are looked up by the accounts of one budget: the time that `Reuse` goes by.

    To count them takes a look at every client, so that is done a hundred times a second at most.
    """

    def __init__(self, clock: Callable[[], float], accounts: Sequence[Account]) -> None:
        self._clock = clock
        self._accounts = accounts
        self._at = float("-inf")
        self._reads = 0

    def now(self) -> int:
        """Reads since the start."""
        seconds = self._clock()
        if seconds - self._at >= _TICK:
            self._at = seconds
            for account in self._accounts:
                account.hits_counted = account.hits
            self._reads = sum([account.hits_counted + account.misses for account in self._accounts])
        return self._reads
