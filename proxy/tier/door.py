"""The doorkeeper: only what is read again soon is worth a place.

Two generations of parts that were read and not found. What is seen again while it is in either of them may come
in. The young generation becomes the old one when it is full, so a part is remembered for one to two
generations. (Einziger, Friedman, Manes: TinyLFU, 2017, section 3.4.2, where it is a Bloom filter.)
"""

from __future__ import annotations

from collections.abc import Collection

_MOST_PARTS = 32768
_MOST_BYTES = 4 << 20
"""Of one generation, frames without the objects' overhead."""


class Door:
    """Remembers what has been read. `admit_after`: 1 lets everything in at once, 2 what is read twice."""

    def __init__(self, admit_after: int) -> None:
        self.open = admit_after <= 1
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._bytes = 0

    def admits(self, part: bytes) -> bool:
        """Note a part; whether it may come in."""
        if self.open or part in self._young or part in self._old:
            return True
        self._young.add(part)
        self._count(len(part))
        return False

    def admitted(self, parts: Collection[bytes], size: int) -> Collection[bytes]:
        """Note parts of `size` bytes in all; those that may come in."""
        if self.open:
            return parts
        known = self._young.intersection(parts)
        if self._old:
            known |= self._old.intersection(parts)
        self._young.update(parts)
        self._count(size)
        return known

    def _count(self, size: int) -> None:
        self._bytes += size
        if len(self._young) > _MOST_PARTS or self._bytes > _MOST_BYTES:
            self._old, self._young = self._young, set()
            self._bytes = 0
