"""The doorkeeper: only what is read again soon is worth a place.

It remembers parts that were read and not found: a byte of each part's hash, in one of two slots that the rest
of the hash names. What is found there when it comes again may come in; newer parts in the same slots make it
forgotten. So it takes a fixed amount of memory, remembers about as many parts as it has slots, and lets one
in 128 in too soon. (After the doorkeeper of Einziger, Friedman, Manes: TinyLFU, 2017, section 3.4.2, which is
a Bloom filter.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_LEAST, _MOST = 1 << 16, 1 << 22
_ENTRY = 512
"""Bytes of the tier for each slot."""
_THRASH_AFTER = 1024
"""Fills between two judgements of `paid`."""
_PAYS = 16.0
"""Hits for each fill above which all that is read twice may come in. A fill costs what six hits save."""
_RAREST = 64


class Door:
    """Decides what comes in. `admit_after`: 1 lets everything in at once, 2 what is read twice."""

    def __init__(self, admit_after: int, max_memory: int) -> None:
        self.open = admit_after <= 1
        slots = _LEAST
        while slots < _MOST and slots * _ENTRY < max_memory:
            slots *= 2
        self._mask = slots - 1
        self._slots = bytearray(slots)
        self._every = 1
        """One in so many of those who may come in does."""
        self._due = self._turn = 0
        self._judged = (0, 0)

    @property
    def throttled(self) -> bool:
        """Whether some stay out that might have come in, because too many come and go."""
        return self._every > 1

    def admits(self, part: bytes) -> bool:
        """Note a part; whether it may come in."""
        return bool(self.admitted((part,)))

    def admitted(self, parts: Sequence[bytes]) -> Sequence[bytes]:
        """Note parts; those that may come in."""
        if self.open:
            return parts
        slots, mask = self._slots, self._mask
        known = []
        for part in parts:
            mark = hash(part)
            one, other = mark & mask, mark >> 22 & mask
            mark = mark >> 44 & 0xFF or 1
            if slots[one] == mark or slots[other] == mark:
                known.append(part)
            else:
                self._turn += 1
                slots[one if self._turn & 1 else other] = mark
        if self._every == 1 or not known:
            return known
        self._due = (self._due + 1) % self._every
        return () if self._due else known

    def paid(self, fills: int, count_hits: Callable[[], int]) -> None:
        """Hear, while the tier evicts, how many fills and hits there have been: what does not pay comes in
        less.

        A stream of reads over far more keys than fit would otherwise cost a fill each, for nothing.
        """
        since, at = self._judged
        if fills - since < _THRASH_AFTER // self._every:
            return
        hits = count_hits()
        worth = (hits - at) / (fills - since)
        self._judged = (fills, hits)
        self._every = min(self._every * 2, _RAREST) if worth < _PAYS else max(self._every // 2, 1)
