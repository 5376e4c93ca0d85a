"""Which parts are read most, from a sample of the hits.

There is a count for each of a bounded number of parts. When there are more than twice as many as are to stay,
the count that comes next after the largest `most` is taken off all counts, and what is left without any goes.
Each such step takes that count off more than `most` parts, so all steps together take no more off a part than
(all hits) / (most + 1): a count is never too large, and too small by that at most. (Misra, Gries: Finding
Repeated Elements, Science of Computer Programming, 1982; in steps like these, Anderson and others: A
High-Performance Algorithm for Identifying Frequent Items in Data Streams, IMC 2017.)

Space-Saving has the same bound, but must find the least of all counts for each part that is new. Here a part
takes 0.12 to 0.15 µs, steps included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nlargest
from operator import itemgetter

_LEAST = 1.0
"""Hits in the window below which a part is not worth remembering."""


class Hot:
    """Counts hits in a window that fades. It remembers `most` parts for long, and as many more for a time."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._counts: dict[bytes, float] = {}
        self.error = 0.0
        """Hits by which a count may be too small: by what was taken off, and by what faded away."""
        self.total = 0.0
        """Hits in the window, of all parts."""

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, parts: Sequence[bytes], weight: int) -> None:
        """Count parts that were hit; each stands for `weight` hits."""
        self.total += len(parts) * weight
        counts = self._counts
        get = counts.get
        most = 2 * self._most
        for part in parts:
            counts[part] = get(part, 0.0) + weight
            if len(counts) > most:
                self._prune()
                counts = self._counts
                get = counts.get

    def age(self, factor: float = 0.5) -> None:
        """Let what was hit so far count for less, by a factor below 1."""
        counts, least = self._counts, _LEAST / factor
        self._counts = {part: count * factor for part, count in counts.items() if count >= least}
        self.total *= factor
        self.error *= factor
        if len(self._counts) < len(counts):
            self.error += _LEAST

    def count(self, part: bytes) -> int:
        """How often a part was hit in the window, at least."""
        return int(self._counts.get(part, 0))

    def items(self) -> Iterator[tuple[bytes, int]]:
        """All parts that are known, in no order, and how often each was hit at least."""
        return ((part, int(count)) for part, count in self._counts.items() if count >= _LEAST)

    def hottest(self, n: int) -> list[tuple[bytes, int]]:
        """The parts hit most, `n` at most, and how often at least."""
        found = nlargest(n, self._counts.items(), key=itemgetter(1))
        return [(part, int(count)) for part, count in found if count >= _LEAST]

    def forget(self, part: bytes) -> None:
        """Forget a part."""
        self._counts.pop(part, None)

    def clear(self) -> None:
        """Forget everything."""
        self._counts.clear()
        self.error = self.total = 0.0

    def _prune(self) -> None:
        """Leave at most `most` parts."""
        counts = self._counts
        off = sorted(counts.values(), reverse=True)[self._most]
        self._counts = {part: count - off for part, count in counts.items() if count > off}
        self.error += off
