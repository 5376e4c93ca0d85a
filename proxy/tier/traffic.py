"""What is read and what changes, by part: a shelf's hits, misses and dropped entries, in a window that fades.

Hits are counted from the table's log, which is a sample of them; of misses one in some is counted, each for
so many; changes are counted one by one. Nothing is done here on a hit. All of it takes some thousand names,
however many there are (see `tier.hot`).

The window fades by half at each `fade`. What was counted in it was counted in `seconds`, of which the past
has faded alike: so a count divided by them is a rate.

The log has a client's first chunk of hits always, and takes it for many: clients that stay for a few hits
would count for too much. Hits are counted exactly by who answers them, so it is known by how much
(`overstated`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nlargest
from math import fsum
from operator import itemgetter
from random import randrange

from proxy.tier.hot import Hot

_HITS, _MISSES, _CHANGES = 5000, 1000, 1000
"""Parts that are counted for long."""
_EVERY = 16
"""Of so many misses one is counted, on average: which one is left to chance, as clients read in loops."""
_LONGEST = 1024
"""Bytes of a part that is counted: longer ones would take more memory than all others."""
_EXACT = 4096
"""Changes between two fadings of which each is counted. A stream of writes to ever other keys would otherwise
cost a write two microseconds for its part in this."""
_SOME = 8
"""Of the changes beyond, one in so many stands for its neighbours."""
_FADES = 0.5


class Traffic:
    """See the module's docstring."""

    def __init__(self, clock: Callable[[], float], count_hits: Callable[[], int]) -> None:
        self.hits = Hot(_HITS)
        self.misses = Hot(_MISSES)
        self.changes = Hot(_CHANGES)
        """Entries that were dropped because their keys changed."""
        self._exact = _EXACT
        self._due_change = _SOME - 1
        """Changes beyond to be passed over before one is counted."""
        self._clock = clock
        self._due = randrange(_EVERY)
        """Misses to be passed over before one is counted."""
        self._began = clock()
        self._faded = 0.0
        """Seconds before that, faded as what was counted in them."""
        self._count_hits = count_hits
        self._hits_before = count_hits()
        self._hits_faded = 0.0

    @property
    def seconds(self) -> float:
        """The length of the window, as its counts have faded."""
        return max(self._faded + self._clock() - self._began, 1.0)

    @property
    def exact_hits(self) -> float:
        """Hits in the window as `count_hits` has them: of all shelves for which it counts."""
        return self._hits_faded + self._count_hits() - self._hits_before

    def missed(self, parts: Sequence[bytes]) -> None:
        """Hear of reads that were not in memory."""
        due, size = self._due, len(parts)
        while due < size:
            if len(parts[due]) <= _LONGEST:
                self.misses.add((parts[due],), _EVERY)
            due += 1 + randrange(2 * _EVERY - 1)
        self._due = due - size

    def changed(self, parts: Sequence[bytes]) -> None:
        """Hear that entries were dropped because their keys changed."""
        exact = parts[: self._exact]
        self._exact -= len(exact)
        self.changes.add([part for part in exact if len(part) <= _LONGEST], 1)
        if len(exact) < len(parts):
            some = parts[len(exact) + self._due_change :: _SOME]
            self._due_change = (self._due_change - (len(parts) - len(exact))) % _SOME
            self.changes.add([part for part in some if len(part) <= _LONGEST], _SOME)

    def fade(self) -> None:
        """Let what was counted so far count for half."""
        self._exact = _EXACT
        self._faded = (self._faded + self._clock() - self._began) * _FADES
        self._began = self._clock()
        self._hits_faded, self._hits_before = self.exact_hits * _FADES, self._count_hits()
        for counts in (self.hits, self.misses, self.changes):
            counts.age(_FADES)

    def busiest(
        self, n: int, overstated: float = 1.0, worth: Callable[[bytes], int] | None = None
    ) -> list[tuple[bytes, int]]:
        """The parts read most, `n` at most, and how often in the window; or those for which reads times what
        each is `worth` are most."""
        reads = {part: round(count / overstated) for part, count in self.hits.items()}
        for part, count in self.misses.items():
            reads[part] = reads.get(part, 0) + count
        if worth is None:
            return nlargest(n, reads.items(), key=itemgetter(1))
        return nlargest(n, reads.items(), key=lambda found: found[1] * worth(found[0]))


def overstated(traffics: Sequence[Traffic]) -> float:
    """By which factor the hits of all shelves of one account seem to be more than they are; 1 at least."""
    logged = fsum([traffic.hits.total for traffic in traffics])
    exact = max([traffic.exact_hits for traffic in traffics], default=0.0)
    return max(1.0, logged / exact) if exact > 0 else 1.0
