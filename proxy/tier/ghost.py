"""A ghost: what memories of several sizes would have saved, found without keeping a value.

It runs a least-recently-used cache for each size over a sample of the parts (requests without their star, see
`rules`), and keeps of an entry only how many bytes it would take. A part is in the sample if its hash falls
below a threshold: then all of its reads are, so the sample fares in small caches, with budgets smaller by the
same rate, as all parts do in large ones. When more parts are tracked than may be, the threshold is lowered; a
read counts for as many as the rate of its time makes it stand for. (SHARDS with a fixed size: Waldspurger,
Park, Garthwaite, Ahmad: Efficient MRC Construction with SHARDS, FAST 2015, sections 3.2 and 3.3.)

What a cache holds, every larger one holds too: an eviction takes what is less recent than all that stays.
So the entries lie in one row by recency, cut at the end of each cache. A read moves its entry to the front
and each cut before the old place by a few entries; a read that hits in the smallest cache moves no cut.

The sample is off mostly because of a few parts that are read all the time: in the sample they count for too
much, outside for nothing. How far it is off is known, for all reads are counted, and the difference is made
up for by reads that fare as those parts do (`Ghost.report`). The paper's SHARDS-adj takes them all for hits.
So they are, unless parts are invalidated: what is read most then misses as well, and no memory helps it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import fsum

SIZES = (16 << 20, 32 << 20, 64 << 20, 128 << 20)
"""Bytes of the memories that are imagined unless told."""
_PRIME = (1 << 24) - 3
"""Hashes are taken modulo this, so that the sample depends on all of their bits: the doorkeeper and the dicts
use some of the same."""
_LOWERED = 7 / 8
"""What is left of the threshold when it is lowered: finding who goes takes a look at every part tracked."""
_LATELY = 1024
"""Parts remembered that were forgotten while even the smallest cache held them."""


class Ghost:
    """See the module's docstring. It tracks at most `most` parts; `hash` maps a part to a uniform integer.

    A read goes so: if the part is not wanted, it counts as `passed`. Otherwise it is given to `read`; if that
    does not know it, its reply and lifetime are fetched and it is given to `keep`.
    """

    def __init__(
        self,
        sizes: Iterable[int] = SIZES,
        most: int = 16384,
        hash: Callable[[bytes], int] = hash,
    ) -> None:
        self.sizes = sorted(set(sizes))
        """Bytes, the smallest first."""
        self._most = most
        self._hash = hash
        self._threshold = _PRIME
        self._weight = 1.0
        """Reads for which one of the sample stands."""
        # For each size:
        self._rows: list[OrderedDict[bytes, int]] = [OrderedDict() for _ in self.sizes]
        """What this cache holds and no smaller one: parts and their bytes, the least recent first."""
        self._used = [0] * len(self.sizes)
        """Bytes of all that this cache holds: of its own row and of those before it."""
        self._budgets = [float(size) for size in self.sizes]
        """Bytes it may hold of the sample."""
        self._hits = [0.0] * len(self.sizes)
        """Reads, weighted, that hit in this cache and in no smaller one."""
        # Over all:
        self._misses = 0.0
        """Reads, weighted, that hit in none."""
        self._stale: dict[bytes, None] = {}
        """Parts forgotten of late and not kept again: every cache would hold them, had they not changed."""
        self._changed = 0.0
        """The misses of those."""
        self._reads = 0
        """Reads in the sample or not."""

    def __len__(self) -> int:
        return sum([len(row) for row in self._rows])

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._rows)

    def __contains__(self, part: bytes) -> bool:
        return any(part in row for row in self._rows)

    @property
    def reads(self) -> int:
        """Reads so far, in the sample or not."""
        return self._reads

    @property
    def rate(self) -> float:
        """The share of all parts that is in the sample."""
        return self._threshold / _PRIME

    def wants(self, part: bytes) -> bool:
        """Whether a part is in the sample."""
        return self._hash(part) % _PRIME < self._threshold

    def passed(self, n: int) -> None:
        """Count reads of parts that are not in the sample."""
        self._reads += n

    def read(self, part: bytes) -> bool:
        """Count a read of a part that is in the sample; whether the largest cache holds it."""
        self._reads += 1
        for level, row in enumerate(self._rows):
            if part in row:
                self._hits[level] += self._weight
                if level:
                    self._enter(part, row.pop(part), level)
                else:
                    row.move_to_end(part)
                return True
        self._misses += self._weight
        if part in self._stale:
            self._changed += self._weight
        return False

    def keep(self, part: bytes, size: int) -> list[bytes]:
        """Enter what was fetched and would take so many bytes.

        Returns the parts that are not tracked any more, or not tracked after all: the part itself may be one.
        """
        self._drop(part)
        self._stale.pop(part, None)
        if not self.wants(part):
            return [part]
        gone = self._enter(part, size, len(self._rows))
        while len(self) > self._most:
            gone += self._lower()
        return gone

    def forget(self, part: bytes) -> bool:
        """Drop a part that was invalidated or whose time is over; whether it was tracked."""
        level = self._drop(part)
        if level == 0:
            self._stale[part] = None
            if len(self._stale) > _LATELY:
                del self._stale[next(iter(self._stale))]
        return level is not None

    def clear(self) -> None:
        """Drop all parts. What was counted stays, and so does the rate: as many may come again."""
        for row in self._rows:
            row.clear()
        self._stale.clear()
        self._used = [0] * len(self._used)

    def report(self) -> list[tuple[int, float, int]]:
        """For each size: bytes, the share of all reads so far that would have hit, and how many those are.

        An estimate, except while all parts are in the sample.
        """
        most_read = self._hits[0] + self._changed
        missing = self._reads - fsum(self._hits) - self._misses
        hits = missing * self._hits[0] / most_read if most_read else 0.0
        lines = []
        for size, more in zip(self.sizes, self._hits, strict=True):
            hits += more
            saved = min(max(hits, 0.0), self._reads)
            lines.append((size, saved / max(self._reads, 1), round(saved)))
        return lines

    def _enter(self, part: bytes, size: int, level: int) -> list[bytes]:
        """Put a part to the front that only the caches from `level` on hold; what then leaves the largest."""
        self._rows[0][part] = size
        for smaller in range(level):
            self._used[smaller] += size
        return self._settle(level)

    def _drop(self, part: bytes) -> int | None:
        """Take a part out of all caches; which was the smallest that held it."""
        for level, row in enumerate(self._rows):
            if part in row:
                size = row.pop(part)
                for larger in range(level, len(self._used)):
                    self._used[larger] -= size
                return level
        return None

    def _settle(self, levels: int) -> list[bytes]:
        """Evict from the first so many caches what is beyond their budgets; what leaves the largest."""
        rows, used = self._rows, self._used
        gone = []
        for level in range(levels):
            budget = self._budgets[level]
            while used[level] > budget:
                part, size = rows[level].popitem(last=False)
                used[level] -= size
                if level + 1 < len(rows):
                    rows[level + 1][part] = size
                else:
                    gone.append(part)
        return gone

    def _lower(self) -> list[bytes]:
        """Lower the threshold; the parts that are gone by that."""
        self._threshold = int(self._threshold * _LOWERED)
        self._weight = _PRIME / max(self._threshold, 1)
        self._budgets = [size * self.rate for size in self.sizes]
        gone = [part for row in self._rows for part in row if not self.wants(part)]
        for part in gone:
            self._drop(part)
        return gone + self._settle(len(self._rows))
