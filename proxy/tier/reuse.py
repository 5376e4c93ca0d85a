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
which is corrected later (see `traffic.overstated`), misses exactly. How many there are, and which ones stay:
`tier.sampling`. What is older than a quarter of an hour is forgotten, or an hour
where reads are few.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from random import randrange
from sys import intern
from typing import TYPE_CHECKING, NamedTuple

from proxy.tier.curve import Steps, Watched, finish
from proxy.tier.sampling import GAP, MOST, RATE, Pace, Turn, Window

if TYPE_CHECKING:
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Account

_WINDOW = ((900.0, 1 << 18), (3600.0, MOST * GAP))
"""Seconds after which a sample is forgotten, if there were so many reads since. Of what comes again only
after more reads than the window has, nothing is known."""
_MARKED = 15.0
"""Seconds between two marks at which the window may begin; fewer to begin with."""
_COLD = 4
"""One in so many of the reads since the start is forgotten: what memory of any size had not seen yet."""
_SCARCE = MOST // 4, RATE // 8
"""Samples in the window, and in a second lately, below which the gap between them has become too large."""
_FORGOTTEN = 512
"""Samples forgotten at once at most: not a millisecond."""
_OF_A_CHUNK = 8
"""Samples of one chunk at most."""
_STEP = 512
"""Samples gone through in a step of work."""
_TICK = 0.01
_SHARE = 200
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
    seconds: float
    """When that was (monotonic)."""

    @property
    def sampled(self) -> int:
        """Reads among which samples were taken."""
        return self.logged + self.missed


@dataclass(slots=True)
class Sample:
    """A read that is, or was, watched."""

    part: bytes
    label: str
    """The class of its first key."""
    began: int
    """Reads of the budget then."""
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
        self._pace = Pace(shelf.tier.clock, shelf.tier.quota)
        self._hits, self._misses = Turn(self._pace), Turn(self._pace)
        self.samples: Window[Sample] = Window(self._pace)
        self.open: dict[bytes, Sample] = {}
        """By part: those still watched, or expired and not read since."""
        self.unkept: dict[int, Sample] = {}
        """By the marks of their keys: those whose replies are not kept for want of room, so that no index has
        them."""
        self._shelf = shelf
        self._logged = self._missed = 0
        self._began = shelf.tier.clock()
        self._marks = deque([self._counts()])
        """When the window begins, or will: the earliest first."""

    # --- sampling

    def hit(self, parts: Sequence[bytes], weight: int) -> None:
        """Hear of hits that were logged, each for `weight`; there may be other parts among them."""
        logged = len(parts) * weight
        self._logged += logged
        self._shelf.account.logged += logged
        if stands_for := self._hits.pass_over(logged):
            # A chunk stands for many that were not logged: of a long one, several.
            size = len(parts)
            count = min(size, max(1, stands_for // self._pace.gap), _OF_A_CHUNK)
            first = randrange(size)
            for n in range(count):
                part = parts[(first + n * size // count) % size]
                if self._shelf.taken_by(part):
                    self._watch(part, max(1, stands_for // count), True)

    def missed(self, parts: Sequence[bytes]) -> None:
        """Hear of reads that were looked up and not found; the last one may have been a moment ago."""
        self._missed += len(parts)
        first = self._misses.due - 1
        if stands_for := self._misses.pass_over(len(parts)):
            self._watch(parts[first], stands_for, False)

    @property
    def due(self) -> int:
        """Which of the misses to come is watched: the first is 1."""
        return self._misses.due

    def _watch(self, part: bytes, weight: int, hit: bool) -> None:
        shelf = self._shelf
        if shelf.stale.since is not None or shelf.mode.late or part in self.open or len(part) > _LONGEST:
            return
        sample = Sample(part, intern(shelf.label(part)), shelf.budget.reads.now(), weight, hit)
        self._pace.took()
        if (gone := self.samples.append(sample)) is not None:
            self._give_up(gone)
        self.open[part] = sample
        if size := shelf.taken_by(part):
            self._keep(sample, size)
        elif shelf.budget.door.throttled and (longest := shelf.longest(part)):
            sample.kept = True
            sample.until = shelf.tier.clock() + longest
            self._find_by_key(sample)

    def _keep(self, sample: Sample, size: int) -> None:
        sample.kept, sample.size = True, size
        for table in self._shelf.tables.values():
            table.hold(sample.part)

    def _give_up(self, sample: Sample) -> None:
        """Watch a sample no longer that leaves the window."""
        if self.open.get(sample.part) is sample:
            self._end(sample, Outcome.OPEN)

    def tend(self) -> None:
        """Forget what is too old; called once a second or more often."""
        now = self._shelf.tier.clock()
        marks = self._marks
        if now - marks[-1].seconds >= min(max((now - self._began) / 16, 1.0), _MARKED):
            marks.append(self._counts())
            while len(marks) > 2 and self._may_begin(marks[1], marks[-1]):
                marks.popleft()
            if self._pace.gap > GAP and self._scarce():
                self._pace.gap = GAP
                self._hits.draw()
                self._misses.draw()
        for _ in range(_FORGOTTEN):
            first = self.samples.first()
            if first is None or first.began >= marks[0].reads:
                return
            self.samples.drop_first()
            self._give_up(first)

    def _scarce(self) -> bool:
        """Whether samples are to come faster again: reads have become few."""
        first, (before, last), gap = self._marks[0], list(self._marks)[-2:], self._pace.gap
        lately = (last.sampled - before.sampled) / (last.seconds - before.seconds)
        return last.sampled - first.sampled < _SCARCE[0] * gap and lately < _SCARCE[1] * gap

    def _may_begin(self, mark: Counts, now: Counts) -> bool:
        """Whether the window may begin at a mark: nothing before it tells more than what came since."""
        if mark.sampled * _COLD <= now.sampled:
            return True
        age, reads = now.seconds - mark.seconds, now.sampled - mark.sampled
        return any(age > seconds and reads >= enough for seconds, enough in _WINDOW)

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
        return finish(self.steps())

    def steps(self) -> Steps[list[tuple[Sample, Watched]]]:
        """The same, a millisecond's work at a time."""
        now, since = self._counts(), self._marks[0]
        reads = max(now.reads - since.reads, 1)
        samples = [sample for sample in self.samples if sample.began >= since.reads]
        yield
        hit, missed = self._corrections(samples, now)
        sizes = _mean_sizes(samples)
        found: list[tuple[Sample, Watched]] = []
        for sample in samples:
            if len(found) % _STEP == 0:
                yield
            age = (now.reads if sample.ended is None else sample.ended) - sample.began
            outcome = sample.outcome
            ended, again = outcome is not Outcome.OPEN, outcome is Outcome.AGAIN
            weight = sample.weight * (hit if sample.hit else missed) / reads
            size = (sample.size or sizes.get(sample.label) or sizes[ANY]) if sample.kept else 0.0
            found.append((sample, Watched(age, ended, again, weight, size)))
        return found

    def rate(self) -> tuple[int, int]:
        """The account's hits and misses in the window."""
        now, since = self._counts(), self._marks[0]
        return now.hits - since.hits, now.misses - since.misses

    def _corrections(self, samples: list[Sample], now: Counts) -> tuple[float, float]:
        """What to multiply weights of hits and of misses with, so that their sums are what was counted.

        Of the account's hits, the shelf has the share that it has of those logged.
        """
        since = self._marks[0]
        logged = max(now.account_logged - since.account_logged, 1)
        hits = (now.hits - since.hits) * (now.logged - since.logged) / logged
        weights = [fsum([each.weight for each in samples if each.hit is hit]) for hit in (True, False)]
        return hits / max(weights[0], 1), (now.missed - since.missed) / max(weights[1], 1)

    def _counts(self) -> Counts:
        account, reads = self._shelf.account, self._shelf.budget.reads.now()
        return Counts(
            reads,
            account.hits_counted,
            account.misses,
            account.logged,
            self._logged,
            self._missed,
            self._shelf.tier.clock(),
        )

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

    That is what those take that had not been in memory either; if there are none, what others take.
    """
    sums: dict[bool, dict[str, tuple[int, int]]] = {True: {ANY: (0, 0)}, False: {}}
    for sample in samples:
        if sample.size:
            for label in (sample.label, ANY):
                size, weight = sums[sample.hit].get(label, (0, 0))
                sums[sample.hit][label] = size + sample.size * sample.weight, weight + sample.weight
    found = sums[True] | sums[False]
    return {label: size / max(weight, 1) for label, (size, weight) in found.items()}


class ReadClock:
    """All reads that are looked up by the accounts of one budget: the time that `Reuse` goes by.

    To count them takes a look at every client, so it is done for a two-hundredth of the time, and a hundred
    times a second if that takes more.
    """

    def __init__(self, clock: Callable[[], float], accounts: Sequence[Account]) -> None:
        self._clock = clock
        self._accounts = accounts
        self._due = float("-inf")
        self._reads = 0

    def now(self) -> int:
        """Reads since the start."""
        began = self._clock()
        if began >= self._due:
            for account in self._accounts:
                account.hits_counted = account.hits
            self._reads = sum([account.hits_counted + account.misses for account in self._accounts])
            took = self._clock() - began
            self._due = began + min(took * _SHARE, _TICK)
        return self._reads
