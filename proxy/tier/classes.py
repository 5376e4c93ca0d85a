"""Hits and misses by class of keys: what a rule calls them, else the first part of their names.

How many there are is counted exactly by others. Here is only seen, of a sample, which classes they were of,
and the exact number is shared out accordingly, once a second and whenever somebody asks. While there are few,
all are seen and the shares are exact as well: up to about 1,000 hits (see `Table.settle`) and 256 misses a
second.

The number of classes is bounded: half of them go to who comes first, the other half to who is seen often.
All else is of the class `OTHER`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

MOST = 32
"""Classes that are told apart."""
_AT_ONCE = MOST // 2
"""Of these, how many are as soon as there is one read of them. Where it is the first part that tells keys
apart, the others are left for what comes later and counts for more."""
_OFTEN, _SHARE = 8, 64
"""The others have to be seen so often between two settlements, and be one in so many of all seen."""
OTHER = "other"
UNNAMED = "*"
"""The class of keys without a first part: each by itself would be none, and would name a key."""
_LONGEST = 64
"""Characters of the name of a class: a first part that is longer is no class."""
_REMEMBERED = 4096
"""Reads whose classes are remembered."""
_HITS, _MISSES = 1024, 256
"""Hits and misses looked at between two settlements: each may take three microseconds."""


class Share:
    """A total that is shared out among classes. `total` counts it exactly."""

    def __init__(self, total: Callable[[], int]) -> None:
        self.by_class: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        """Of those since the last settlement, what was seen of each class."""
        self._total = total
        self._settled = total()

    def settle(self) -> None:
        """Share out what has come since the last time; if nothing was seen of it, next time."""
        total, seen = self._total(), self.seen.total()
        if seen and total > self._settled:
            left, more = total - self._settled, seen
            for label, count in self.seen.items():
                # Of what is left, its part of those that are left: the parts add up to the whole.
                part = round(left * count / more)
                self.by_class[label] += part
                left, more = left - part, more - count
            self._settled = total
            self.seen.clear()


class Classes:
    """See the module's docstring. `label` tells the class of a read; empty: it has none of its own."""

    def __init__(
        self, label: Callable[[bytes], str], hits: Callable[[], int], misses: Callable[[], int]
    ) -> None:
        self.hits = Share(hits)
        self.misses = Share(misses)
        self._label = label
        self._labels: dict[bytes, str] = {}
        self._names: set[str] = set()
        self._others: Counter[str] = Counter()
        """Of those that are not told apart, how often each was seen since the last settlement."""
        self._looked_at = 0
        """All that were seen since then."""
        self._left = _HITS
        """Hits that are still looked at before the next settlement."""
        self._missed: list[bytes] = []

    def hit(self, parts: Sequence[bytes], weight: int) -> None:
        """Hear of hits, each standing for so many; of which some are looked at."""
        if not self._left or not parts:
            return
        step = -(-len(parts) // self._left)
        some = parts[::step]
        self._left -= len(some)
        self._see(self.hits, some, weight * step)

    def missed(self, parts: Iterable[bytes]) -> None:
        """Hear of misses; all of them, of which some are looked at."""
        if len(self._missed) < _MISSES:
            self._missed += parts

    def settle(self) -> None:
        """Bring `by_class` up to date."""
        missed, self._missed, self._left = self._missed[:_MISSES], [], _HITS
        self._see(self.misses, missed, 1)
        self.hits.settle()
        self.misses.settle()
        self._tell_apart()

    def _tell_apart(self) -> None:
        """Tell those apart from now on that were seen often."""
        enough = max(_OFTEN, self._looked_at / _SHARE)
        for name, count in self._others.most_common(MOST - len(self._names)):
            if count >= enough:
                self._names.add(name)
        self._others.clear()
        self._looked_at = 0

    def forget(self) -> None:
        """Ask anew which class a read is of: other rules are in force."""
        self._labels.clear()

    def _see(self, share: Share, parts: Sequence[bytes], weight: int) -> None:
        self._looked_at += len(parts)
        for part, count in Counter(parts).items():
            label = self.of(part)
            share.seen[label] += count * weight
            if label == OTHER and len(name := self._labels[part]) <= _LONGEST:
                self._others[name] += count

    def of(self, part: bytes) -> str:
        """The class of a read."""
        found = self._labels.get(part)
        if found is None:
            if len(self._labels) >= _REMEMBERED:
                self._labels.clear()
            found = self._labels[part] = self._label(part) or UNNAMED
        return self._bounded(found)

    def _bounded(self, name: str) -> str:
        if name in self._names:
            return name
        if len(self._names) >= _AT_ONCE or len(name) > _LONGEST:
            return OTHER
        self._names.add(name)
        return name
