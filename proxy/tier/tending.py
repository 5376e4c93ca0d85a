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
from typing import TYPE_CHECKING, NamedTuple

from proxy.tier.policy import Ruling

if TYPE_CHECKING:
    from proxy.tier.shelf import Shelf

_STEP = 0.125
"""To this many seconds the time is rounded down at which an entry is fetched anew."""
_ROUNDING = 1 / 8
"""A deadline may come sooner by somewhat less than this part of the time there is."""
_SPARE = 4096
"""Notes of entries that are gone, beside twice as many as there are entries, before they are swept out."""
COST = 400
"""Bytes that tending an entry takes: three slots in dicts, a tuple, three floats."""
_UNAVAILABLE = (b"-LOADING ", b"-BUSY ", b"-MASTERDOWN ", b"-CLUSTERDOWN ", b"-TRYAGAIN ", b"-ERR pannier: ")
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
    """When it leaves the table; later than `fresh` if it has been brought back."""

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
        self._ahead: dict[float, dict[bytes, None]] = {}
        """Parts by when they are to be fetched anew; what was dropped since is swept out later."""
        self._notes = 0
        """How many they are."""
        self._shelf = shelf

    def landed(self, part: bytes, ruling: Ruling, ends: float, until: float) -> None:
        """Take note of what has been fetched."""
        self.forget(part)
        # What ends with its key, but for rounding, cannot be kept for longer by asking again. Where more is
        # to be ahead than is left, half of it is: or it would be fetched all the time.
        again, left = float("inf"), until - self._shelf.tier.clock()
        if ruling.refresh_ahead and ends - until > left * _ROUNDING:
            again = (until - min(ruling.refresh_ahead, left / 2)) // _STEP * _STEP
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
        self._shelf.schedule(part, tended.last)
        return True

    def lapses(self, part: bytes, now: float) -> bool:
        """Whether an invalidation only says that the key has expired, and its last value is of use."""
        tended = self.known.get(part)
        if tended is None or now < tended.ends or not tended.ruling.stale_while_revalidate:
            return False
        return part in self.aside or self._retire(part, tended, now)

    def revive(self, parts: Iterable[bytes], now: float) -> list[bytes]:
        """Bring back into the table what may be served while it is fetched anew; the parts to fetch."""
        found = []
        for part in dict.fromkeys(parts):
            if part in self.aside:
                tended = self.known[part]
                until = min(tended.ends, tended.fresh + tended.ruling.stale_while_revalidate)
                if now < until:
                    replies = self.aside.pop(part)
                    self._charge(-_size(part, replies))
                    self.known[part] = tended._replace(until=until)
                    self._shelf.put_back(part, replies, until)
                    found.append(part)
        return found

    def instead(self, part: bytes, error: bytes, protocol: int) -> bytes | None:
        """What to answer in place of an error of Redis' or of the link's; None: the error."""
        tended = self.known.get(part)
        if tended is None or not error.startswith(_UNAVAILABLE):
            return None
        now = self._shelf.tier.clock()
        if now >= min(tended.ends, tended.fresh + tended.ruling.stale_if_error):
            return None
        return self._reply(part, protocol)

    def last(self, part: bytes, protocol: int) -> bytes | None:
        """What was kept last of a part, if a rule wants it to be known though its time is over."""
        tended = self.known.get(part)
        if tended is None or self._shelf.tier.clock() >= tended.last:
            return None
        return self._reply(part, protocol)

    def _reply(self, part: bytes, protocol: int) -> bytes | None:
        aside = self.aside.get(part)
        return aside.get(protocol) if aside is not None else self._shelf.table(protocol).find(part)

    def due(self, now: float, most: int) -> Iterator[bytes]:
        """Parts whose rule has them fetched anew about now, each once and `most` at a time."""
        for at in [at for at in self._ahead if at <= now]:
            parts = self._ahead[at]
            while parts and most:
                part, _ = parts.popitem()
                self._notes -= 1
                tended = self.known.get(part)
                if tended is not None and tended.again == at and now < tended.until:
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
        self.known, self.aside, self._ahead = {}, {}, {}
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


def _size(part: bytes, replies: dict[int, bytes]) -> int:
    return sum([len(part) + len(reply) for reply in replies.values()])
