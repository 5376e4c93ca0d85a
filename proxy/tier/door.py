"""The doorkeeper: only what is read again soon is worth a place.

It remembers parts that were read and not found: a byte of each part's hash, in one of two slots that the rest
of the hash names. What is found there when it comes again may come in; newer parts in the same slots make it
forgotten. So it takes a fixed amount of memory, remembers about as many parts as it has slots, and lets one
in 128 in too soon. (After the doorkeeper of Einziger, Friedman, Manes: TinyLFU, 2017, section 3.4.2, which is
a Bloom filter.)

What a pipeline reads and does not find is fetched beside it: nobody waits for that, and it pays only if
later pipelines are answered without Redis. Where keys are written about as often as pipelines hit, it never
does. So while hits are few for each entry that was dropped because its key changed, such a part is in *debt*:
pipelines have to read it that many times more before it is fetched again.
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
_WORTH = 4.0
"""Hits for each entry dropped because its key changed, below which such parts fall into debt."""
_FEW_DROPS = 256
"""Drops between two judgements of `churned` below which nothing is wrong."""
_DEAREST = 15
"""The largest debt, in reads. Where one command in twenty is a write, keys are read as often before they
change again: should they pay after all, that comes to light."""
_STEP, _TURNS, _UPPER = 0x9E3779B9, 0xFFFFFFFF, 0x80000000
"""Which of its two slots a part takes goes by the fractions of multiples of the golden ratio: about every
other time this one, but never in turn: two parts that share a slot would make each other forgotten for
ever."""
_LEDGER = 1 << 16
"""Places for debts, by hash: parts that share one help each other to pay."""


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
        self.price = 0
        """The debt, in reads, of a part that is dropped now because its key changed."""
        self._debts = bytearray(_LEDGER)
        """What parts owe."""
        self._churned = (0, 0)

    @property
    def throttled(self) -> bool:
        """Whether some stay out that might have come in, because too many come and go."""
        return self._every > 1

    def admits(self, part: bytes) -> bool:
        """Note a part; whether it may come in."""
        if self.open:
            return True
        slots, mask = self._slots, self._mask
        mark = hash(part)
        one, other = mark & mask, mark >> 22 & mask
        mark = mark >> 44 & 0xFF or 1
        if slots[one] != mark and slots[other] != mark:
            self._turn = self._turn + _STEP & _TURNS
            slots[one if self._turn & _UPPER else other] = mark
            return False
        if self._every == 1:
            return True
        self._due = (self._due + 1) % self._every
        return not self._due

    def admitted(self, parts: Sequence[bytes], piped: bool = False) -> Sequence[bytes]:
        """Note parts; those that may come in. `piped`: read in a pipeline, so debts are to be paid first."""
        if self.open:
            return parts
        slots, mask, debts, turn = self._slots, self._mask, self._debts, self._turn
        known = []
        for part in parts:
            mark = hash(part)
            one, other = mark & mask, mark >> 22 & mask
            mark = mark >> 44 & 0xFF or 1
            if slots[one] == mark or slots[other] == mark:
                if piped and debts[one & _LEDGER - 1]:
                    debts[one & _LEDGER - 1] -= 1
                else:
                    known.append(part)
            else:
                turn += _STEP
                slots[one if turn & _UPPER else other] = mark
        self._turn = turn & _TURNS
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

    def charge(self, part: bytes) -> None:
        """Have a part owe the price."""
        self._debts[hash(part) & _LEDGER - 1] = self.price

    def churned(self, drops: int, hits: int) -> None:
        """Hear, now and then, how many entries have been dropped because their keys changed, and how many
        reads were answered without Redis."""
        before, at = self._churned
        self._churned = (drops, hits)
        drops -= before
        if drops >= _FEW_DROPS and hits - at < drops * _WORTH:
            self.price = min(self.price * 2 + 1, _DEAREST)
        else:
            self.price //= 2
