"""Entries that need to be known one by one: rules serve them beyond their time, or refresh them before.

The time of an entry has up to three parts. While it is *fresh* it is in the table like any other. Then, as
far as its rule allows and never longer than Redis keeps the key, it stays *aside*: `stale_while_revalidate`
lets the next read bring it back into the table for as long as it takes to fetch it anew, `stale_if_error`
lets it stand in for an error. What Redis itself has let expire is shown by no read any more; for
`stale_while_revalidate` longer it is what was `last` there, for who waits while another computes it.

An invalidation ends all of that, unless the key has expired by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from math import frexp, ldexp
from typing import TYPE_CHECKING, NamedTuple

from proxy.tier.policy import Ruling

if TYPE_CHECKING:
    from proxy.tier.rules import Read
    from proxy.tier.shelf import Shelf

_SPARE = 4096
"""Notes of entries that are gone, beside twice as many as there are entries, before they are swept out."""
COST = 400
"""Bytes that tending an entry takes: three slots in dicts, a tuple, three floats."""
_MOST_LAPSED = 1024
_MOMENT = 1.0
"""Seconds for which an entry is back in the table; more, and a fetch that failed would not be repeated."""
UNAVAILABLE = (b"-LOADING ", b"-BUSY ", b"-MASTERDOWN ", b"-CLUSTERDOWN ", b"-TRYAGAIN ", b"-ERR pannier: ")
"""Errors that say nothing about the key (Redis docs: error codes in its source, `shared` objects)."""


class Tended(NamedTuple):
    """What is known of an entry. Monotonic seconds."""

    ruling: Ruling
    ends: float
    """When Redis lets the key expire."""
    fresh: float
    """When its lifetime is over."""
    again: float
    """When it is to be fetched anew, if it is read often."""
    until: float
    """The deadline at which it leaves the table (later than `fresh` if it has been brought back) or, aside,
    is forgotten; earlier ones are of earlier fetches."""

    @property
    def last(self) -> float:
        """When nothing of it is of use any more."""
        ruling = self.ruling
        longest = max(ruling.stale_while_revalidate, ruling.stale_if_error if ruling.keeps else 0.0)
        lapsed = self.ends + ruling.stale_while_revalidate if ruling.stale_while_revalidate else 0.0
        beyond = min(self.ends, self.fresh + longest)
        return max(beyond, lapsed) if lapsed < float("inf") else beyond


class Tending:
    """The entries of one shelf that are tended, and those of them that are aside."""

    def __init__(self, shelf: Shelf) -> None:
        self.known: dict[bytes, Tended] = {}
        """By part: in the table or aside."""
        self.aside: dict[bytes, dict[int, bytes]] = {}
        """Their replies by protocol."""
        self._lapsed: dict[bytes, tuple[dict[int, bytes], float]] = {}
        """What has expired at Redis, which has said meanwhile that nothing is there: replies, and until when
        they are what was `last` there."""
        self._ahead: dict[float, dict[bytes, None]] = {}
        """Parts by when they are to be fetched anew; what was dropped since is swept out later."""
        self._notes = 0
        """How many they are."""
        self._shelf = shelf

    def heard(self, part: bytes, nothing: bool, now: float) -> None:
        """Take in what Redis has: if nothing, what it has let expire is still what was there last."""
        if not nothing:
            self._found(part)
            return
        tended, replies = self.known.get(part), self.aside.get(part)
        if tended is None or replies is None or not tended.ends <= now < tended.last:
            return
        self.forget(part)
        for old in list(islice(self._lapsed, 2)):
            if self._lapsed[old][1] <= now or len(self._lapsed) >= _MOST_LAPSED:
                self._found(old)
        self._lapsed[part] = (replies, tended.last)
        self._charge(_size(part, replies))

    def yield_room(self, most: int) -> int:
        """Forget some of what was there last and is no more; of how many parts that was."""
        parts = list(islice(self._lapsed, most))
        for part in parts:
            self._found(part)
        return len(parts)

    def _found(self, part: bytes) -> None:
        """Forget what was there last."""
        replies, _ = self._lapsed.pop(part, ({}, 0.0))
        self._charge(-_size(part, replies))

    def landed(self, part: bytes, ruling: Ruling, ends: float, until: float) -> None:
        """Take note of what has been fetched."""
        self.forget(part)
        # What ends with its key cannot be kept for longer by asking again; and what ends sooner than that was
        # asked for just now.
        ahead, again = ruling.refresh_ahead, float("inf")
        if ahead and until + ahead <= ends and until - ahead > self._shelf.tier.clock():
            again = until - ahead
        self.known[part] = Tended(ruling, ends, until, again, until)
        self._charge(COST)
        if again < until:
            self._note(part, again)

    def outlives(self, part: bytes, now: float) -> bool:
        """Whether a part of which a deadline is over is to stay: it has been fetched anew, or goes aside."""
        tended = self.known.get(part)
        if tended is None:
            return False
        ends = tended.last if part in self.aside else tended.until
        if ends > now:
            self._shelf.schedule(part, ends)  # its note may have been swept out for the earlier one
            return True
        return part not in self.aside and self._retire(part, tended, now)

    def _retire(self, part: bytes, tended: Tended, now: float) -> bool:
        if tended.last <= now:
            return False
        replies = self._shelf.take_out(part)
        if not replies:
            return False
        self.aside[part] = replies
        self._charge(_size(part, replies))
        step = _step(tended.last - now)
        until = (tended.last // step + 1) * step
        self.known[part] = tended._replace(until=until)
        self._shelf.schedule(part, until)
        return True

    def lapses(self, part: bytes, now: float) -> bool:
        """Whether an invalidation only says that the key has expired, and its last value is of use."""
        tended = self.known.get(part)
        if tended is None or now < tended.ends or not tended.ruling.stale_while_revalidate:
            return False
        return part in self.aside or self._retire(part, tended, now)

    def ended(self, read: Read, reply: bytes, ends: float) -> bool:
        """Hear that what is kept was still there, but that its key has ended just now; whether that is so and
        it is of use."""
        tended = self.known.get(read.part)
        if tended is None or not tended.ruling.stale_while_revalidate:
            return False
        there: dict[int, bytes | None] = {p: table.get(read.part) for p, table in self._shelf.tables.items()}
        there |= self.aside.get(read.part, {})
        if there.get(2) != self._shelf.lowered(read, reply) and there.get(3) != reply:
            return False
        self.known[read.part] = tended = tended._replace(ends=min(tended.ends, ends))
        return read.part in self.aside or self._retire(read.part, tended, self._shelf.tier.clock())

    def revive(self, parts: Iterable[bytes], now: float) -> list[bytes]:
        """Bring back into the table what may be served while it is fetched anew; the parts to fetch.

        For a moment: if nothing has come of the fetch by then, the next read has it tried again.
        """
        found: list[bytes] = []
        for part in dict.fromkeys(parts):
            if part in self.aside:
                tended = self.known[part]
                until = min(tended.ends, tended.fresh + self._longest(tended), now + _MOMENT)
                step = _step(until - now)
                until = until // step * step
                if now < until:
                    replies = self.aside.pop(part)
                    self._charge(-_size(part, replies))
                    self.known[part] = tended._replace(until=until)
                    self._shelf.put_back(part, replies, until)
                    found.append(part)
        if found and self._shelf.budget.full:
            self._shelf.budget.make_room()
        return found

    def _longest(self, tended: Tended) -> float:
        """How long beyond its time an entry may come back, as things are."""
        if self._shelf.stale.since is not None:
            return tended.ruling.stale_if_error
        return tended.ruling.stale_while_revalidate

    def shorten(self, part: bytes, until: float) -> None:
        """Have an entry end earlier."""
        tended = self.known.get(part)
        if tended is not None and part not in self.aside:
            self.known[part] = tended._replace(until=min(tended.until, until), fresh=min(tended.fresh, until))

    def instead(self, part: bytes, error: bytes, protocol: int) -> bytes | None:
        """What to answer in place of an error of Redis' or of the link's; None: the error."""
        tended = self.known.get(part)
        if tended is None or not error.startswith(UNAVAILABLE):
            return None
        now = self._shelf.tier.clock()
        if now >= min(tended.ends, tended.fresh + tended.ruling.stale_if_error):
            return None
        return self._reply(part, protocol)

    def last(self, part: bytes, protocol: int) -> bytes | None:
        """What was kept last of a part, if a rule wants it to be known though its time is over."""
        now = self._shelf.tier.clock()
        replies, until = self._lapsed.get(part, ({}, 0.0))
        if now < until:
            return replies.get(protocol)
        tended = self.known.get(part)
        if tended is None or now >= tended.last:
            return None
        return self._reply(part, protocol)

    def _reply(self, part: bytes, protocol: int) -> bytes | None:
        aside = self.aside.get(part)
        return aside.get(protocol) if aside is not None else self._shelf.table(protocol).get(part)

    def due(self, now: float, most: int) -> Iterator[bytes]:
        """Parts whose rule has them fetched anew about now, each once and `most` at a time."""
        for at in [at for at in self._ahead if at <= now]:
            parts = self._ahead[at]
            while parts and most:
                part, _ = parts.popitem()
                self._notes -= 1
                tended = self.known.get(part)
                if tended is None or part in self.aside:
                    continue  # too late: the next read has it fetched
                if tended.again == at and now < tended.until:
                    most -= 1
                    yield part
            if not parts:
                del self._ahead[at]

    def forget(self, part: bytes) -> None:
        """Forget a part that is no longer kept."""
        if self.known.pop(part, None) is not None:
            self._charge(-COST)
        replies = self.aside.pop(part, None)
        if replies is not None:
            self._charge(-_size(part, replies))

    def clear(self) -> None:
        """Forget everything; the shelf has given back what it was charged."""
        self._shelf.tier.waste.take(self.known, self.aside, *self._ahead.values())
        self.known, self.aside, self._lapsed, self._ahead = {}, {}, {}, {}
        self._notes = 0

    def _note(self, part: bytes, again: float) -> None:
        """Have a part fetched anew."""
        parts = self._ahead.setdefault(again, {})
        self._notes += part not in parts
        parts[part] = None
        if self._notes > 2 * len(self.known) + _SPARE:
            self._sweep()

    def _sweep(self) -> None:
        """Forget when to fetch anew what is not kept any more, or has been fetched since."""
        kept: dict[float, dict[bytes, None]] = {}
        for part, tended in self.known.items():
            if part in self._ahead.get(tended.again, ()):
                kept.setdefault(tended.again, {})[part] = None
        self._ahead, self._notes = kept, sum(map(len, kept.values()))

    def _charge(self, size: int) -> None:
        self._shelf.bytes += size
        self._shelf.budget.used += size


def _step(seconds: float) -> float:
    """What deadlines so far ahead are rounded to, so that entries share them: less than a sixteenth."""
    return ldexp(1.0, max(-10, frexp(max(seconds, 0.0))[1] - 5))


def _size(part: bytes, replies: dict[int, bytes]) -> int:
    return sum([len(part) + len(reply) for reply in replies.values()])
