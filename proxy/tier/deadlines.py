"""When the time of each entry of a shelf is over, in few lists: entries of like lifetime share deadlines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import frexp, ldexp

from proxy.tier.waste import Waste

_SPARE = 16384
"""Notes of entries that are gone, beside twice as many as there are entries, before they are swept out."""
_SLICE = 32
"""Notes looked at with each fill while they are swept: a fill takes twice as long then, and no hit waits."""
_FRACTION = 16
"""A deadline is rounded down by less than this fraction of the lifetime, so that entries share deadlines."""


def deadline(began: float, lifetime: float) -> float:
    """When an entry's time is over, rounded down so that entries of like lifetime share deadlines."""
    step = ldexp(0.001, max(0, frexp(lifetime / (0.001 * _FRACTION))[1] - 1))
    return (began + lifetime) // step * step


class Deadlines:
    """The parts that go at each deadline. What was dropped earlier leaves a note, until that is swept."""

    def __init__(self, kept: Callable[[bytes], bool], waste: Waste) -> None:
        self.notes = 0
        """How many there are."""
        self._kept = kept
        self._waste = waste
        self._parts: dict[float, list[bytes]] = {}
        self._sweep: Iterator[None] | None = None

    def add(self, deadline: float, part: bytes, entries: int) -> None:
        """Note a part that is kept now; `entries` are kept altogether."""
        self._parts.setdefault(deadline, []).append(part)
        self.notes += 1
        if self._sweep is None and self.notes > 2 * entries + _SPARE:
            self._sweep = self.sweep()
        if self._sweep is not None and next(self._sweep, self) is self:
            self._sweep = None

    def over(self, now: float) -> list[bytes]:
        """Take out the parts whose time is over."""
        lists = [self._parts.pop(deadline) for deadline in [each for each in self._parts if each <= now]]
        self.notes -= sum(map(len, lists))
        return [part for parts in lists for part in parts]

    def first(self, otherwise: float) -> float:
        """The next deadline."""
        return min(self._parts, default=otherwise)

    def of(self, part: bytes) -> float | None:
        """A part's deadline; None: it has none. Looks at all there are."""
        return min((each for each, parts in self._parts.items() if part in parts), default=None)

    def clear(self) -> None:
        """Forget all."""
        parts, self._parts = self._parts, {}
        self.notes, self._sweep = 0, None
        self._waste.take(*parts.values())

    def sweep(self) -> Iterator[None]:
        """Forget the notes of what is gone, a slice at a time.

        A part keeps its earliest note. Only notes that are there when it begins are taken out: what is kept
        anew meanwhile may have lost the earlier one that it was seen with.
        """
        seen: set[bytes] = set()
        for deadline, parts, size in sorted((each, parts, len(parts)) for each, parts in self._parts.items()):
            alive: list[bytes] = []
            for start in range(0, size, _SLICE):
                for part in parts[start : min(start + _SLICE, size)]:
                    if part not in seen and self._kept(part):
                        seen.add(part)
                        alive.append(part)
                yield
            if self._parts.get(deadline) is parts:
                self._replace(deadline, alive + parts[size:])
                self._waste.take(parts)
        self._waste.take(seen)

    def _replace(self, deadline: float, parts: list[bytes]) -> None:
        self.notes -= len(self._parts[deadline]) - len(parts)
        if parts:
            self._parts[deadline] = parts
        else:
            del self._parts[deadline]
