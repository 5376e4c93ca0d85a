"""A shelf: the replies kept for one identity and database, and what keeps them true.

A shelf has a *table* for each protocol in use, from parts (requests without their star, see `rules`) to the
replies a client of that protocol gets. One index leads from keys to the parts that show the key, in
tables and in flights alike, so that an invalidation is one look-up. The order of a table's dict is the order
of eviction; hits are logged chunk by chunk, only a sample of them while nothing has to be evicted, and
replayed into that order when room is needed: counting is exact, recency is not.

Nothing in a shelf outlives `until` unasked: that is the earlier of the next deadline of an entry and the end
of the time for which the link's last sign of life vouches (the coherence gate).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import frexp, ldexp
from typing import TYPE_CHECKING

from proxy.resp.downgrade import downgrade
from proxy.resp.tracking import INVALIDATE, Mode
from proxy.tier.flights import Flight
from proxy.tier.rules import Read, marks

if TYPE_CHECKING:
    from proxy.tier.tier import Account, Tier

log = logging.getLogger("pannier.tier")

ENTRY_COST = 225
"""Bytes an entry takes beside its part (twice: its key is in the index), its reply and its place among the
deadlines: the headers of three objects, rounding, and slots in two dicts. Measured:
tests/tier/test_memory.py."""
_MOST_PARTS = 4096
"""Parts kept for one key: an invalidation drops them all at once."""
_LOGGED = 2048
"""Parts in a log at most; it is then replayed."""
_STRIDE = 16
"""One in so many hits is logged while nothing has to be evicted."""
_SPARE = 16384
"""Deadlines of entries that are gone, beside as many as there are entries, before they are swept out."""
_STAR = 0x2A
_FRACTION = 16
"""A deadline is rounded down by less than this fraction of the lifetime, so that entries share deadlines."""


class Table:
    """The replies of one shelf for one protocol, the least recently used first."""

    __slots__ = ("_log", "_logged", "_stride", "find", "replies")

    def __init__(self) -> None:
        self.replies: dict[bytes, bytes] = {}
        self.find = self.replies.get
        """Bound once: the hot path's look-up."""
        self._log: list[list[bytes]] = []
        """Parts that were answered, of a sample of chunks since the last replay."""
        self._logged = 0
        self._stride = _STRIDE

    def log(self, parts: list[bytes]) -> int:
        """Take note of parts that were answered (there may be others among them).

        Returns after how many hits the same client's hits are to be logged again.
        """
        self._log.append(parts)
        self._logged += len(parts)
        if self._logged > _LOGGED:
            self.replay(_STRIDE)
        return len(parts) * self._stride

    def replay(self, stride: int) -> None:
        """Bring the order of eviction up to date with the log; log one in `stride` hits from now on."""
        log, self._log, self._logged = self._log, [], 0
        self._stride = stride
        replies = self.replies
        for part in dict.fromkeys([part for parts in log for part in parts]):
            reply = replies.pop(part, None)
            if reply is not None:
                replies[part] = reply

    def clear(self) -> None:
        """Forget everything."""
        self.replies.clear()
        self._log.clear()
        self._logged = 0


class Shelf:
    """See the module's docstring. Implements `upstream.shared.Keeper`."""

    def __init__(self, tier: Tier, account: Account) -> None:
        self.tier = tier
        self.account = account
        account.shelves.append(self)
        self.rules = account.rules
        self.budget = account.budget
        self.tables: dict[int, Table] = {}
        self.flights: dict[bytes, Flight] = {}
        """By part: those that may still be joined."""
        self.index: dict[int, bytes | set[bytes]] = {}
        """From the marks of keys to the part, or parts, that show the key."""
        self.mode = Mode.OFF
        self.trouble = ""
        """Why nothing is kept although Redis tells of changes; empty if something is."""
        self.until = 0.0
        """Monotonic seconds up to which every entry may be served without asking `vouch`."""
        self.heard = 0.0
        """When Redis was last asked what it has answered since (monotonic seconds)."""
        self.epoch = 0
        """Counts the connections; what was fetched over one is kept only while that one lasts."""
        self.bytes = 0
        self.entries = 0
        """Replies kept."""
        self.drops = 0
        """Entries dropped so far for whatever reason: while it stands still, every entry has kept its
        value."""
        self._several: dict[bytes, list[int]] = {}
        """The keys of the parts in the index that show more than one."""
        self._deadlines: dict[float, list[bytes]] = {}
        self._renewed: dict[bytes, float] = {}
        """The last deadlines of parts that were fetched again while they were kept: their earlier ones, still
        among `_deadlines`, count no more."""
        self._due = 0

    def table(self, protocol: int) -> Table:
        """The table for clients of a protocol; made when the first one comes."""
        found = self.tables.get(protocol)
        if found is None:
            found = self.tables[protocol] = Table()
        return found

    def vouch(self, now: float) -> bool:
        """Whether entries may be served now; drops those whose time is over."""
        if self.mode is Mode.OFF:
            return False
        for deadline in [deadline for deadline in self._deadlines if deadline <= now]:
            parts = self._deadlines.pop(deadline)
            self._due -= len(parts)
            if self._renewed:
                parts = self._over(parts, deadline)
            self.account.expired += sum([self._forget(part) for part in parts])
        gate = self.heard + self.tier.limits.coherence_timeout
        self.until = min(gate, min(self._deadlines, default=gate))
        return now < self.until

    def _over(self, parts: list[bytes], deadline: float) -> list[bytes]:
        """Those of the parts due at a deadline that have not been fetched anew since."""
        renewed = self._renewed
        over = [part for part in parts if renewed.get(part, deadline) <= deadline]
        for part in over:
            renewed.pop(part, None)
        return over

    # --- what the link tells (upstream.shared.Keeper)

    def link_up(self, mode: Mode) -> None:
        """Begin an epoch: Redis tracks from now on what the link reads."""
        self.mode = mode
        self.trouble = ""
        self.tier.loose = any(shelf.mode.late for shelf in self.tier.shelves.values())
        if self.tier.loose:
            self.tier.on_loose()
        self.epoch += 1
        self.until = 0.0

    def link_lost(self) -> None:
        """Empty the shelf: nobody vouches for it any more."""
        self.mode = Mode.OFF
        self.epoch += 1
        self.until = 0.0
        self.clear()

    def pushed(self, frame: bytes) -> None:
        """Take a push from Redis: drop what an invalidation names."""
        if not frame.startswith(INVALIDATE):
            return
        keys: list[bytes] = []
        if frame[len(INVALIDATE)] != _STAR:
            self.account.invalidated += self.clear()  # FLUSHALL or FLUSHDB
        pos = frame.index(b"\r\n", len(INVALIDATE)) + 2
        while pos < len(frame):
            end = frame.index(b"\r\n", pos)
            after = end + 4 + int(frame[pos + 1 : end])
            keys.append(frame[pos:after])
            pos = after
        self.invalidate(keys)

    def invalidate(self, keys: list[bytes]) -> None:
        """Take an invalidation of some keys (key frames) from Redis."""
        self.account.pushes += 1
        before = self.drops
        self.drop(marks(keys))
        self.account.invalidated += self.drops - before

    def give_in(self, refusal: bytes) -> None:
        """Keep nothing over this connection: Redis does not tell how long keys live."""
        self.trouble = f"PTTL refused: {refusal.decode('utf-8', 'replace')}"
        log.warning("nothing is kept in memory: %s", self.trouble)
        self.mode = Mode.OFF
        self.until = 0.0
        self.clear()

    # --- dropping

    def drop(self, keys: Iterable[int]) -> None:
        """Drop what shows any of the keys (their marks), and taint the flights under way to them."""
        index = self.index
        for key in keys:
            found = index.pop(key, None)
            if found is not None:
                self._drop(key, found)

    def clear(self) -> int:
        """Drop everything; how many entries that were."""
        count = self.entries
        for table in self.tables.values():
            table.clear()
        for flight in self.flights.values():
            flight.tainted = True
        self.flights.clear()
        self.index.clear()
        self._several.clear()
        self._deadlines.clear()
        self._renewed.clear()
        self._due = 0
        self.budget.used -= self.bytes
        self.budget.entries -= count
        self.bytes = self.entries = 0
        self.drops += count
        return count

    def _drop(self, key: int, found: bytes | set[bytes]) -> None:
        for part in (found,) if isinstance(found, bytes) else found:
            flight = self.flights.pop(part, None)
            if flight is not None:
                flight.tainted = True
            self._remove(part)
            for other in self._several.pop(part, ()):
                if other != key:
                    self._unlist(other, part)

    def _remove(self, part: bytes) -> int:
        """Take a part's replies out of the tables; how many there were."""
        count = 0
        for table in self.tables.values():
            reply = table.replies.pop(part, None)
            if reply is not None:
                size = _size(part, reply)
                self.bytes -= size
                self.budget.used -= size
                count += 1
        self.drops += count
        self.entries -= count
        self.budget.entries -= count
        return count

    def _forget(self, part: bytes) -> int:
        """Drop one part; how many replies that were."""
        count = self._remove(part)
        if count and part not in self.flights:
            self._delist(part, self._several.get(part) or self.rules.part_marks(part))
        return count

    def _delist(self, part: bytes, keys: list[int]) -> None:
        """Take a part that is not kept out of the index."""
        self._several.pop(part, None)
        for key in keys:
            self._unlist(key, part)

    def _unlist(self, key: int, part: bytes) -> None:
        """Take a part out of the index."""
        found = self.index.get(key)
        if isinstance(found, set):
            found.discard(part)
            if not found:
                del self.index[key]
        elif found == part:
            del self.index[key]

    # --- keeping

    def open(self, read: Read) -> Flight | None:
        """Begin to fetch a read; None if it cannot be kept, or is being fetched already."""
        index = self.index
        if read.part in self.flights:
            return None
        keys = marks(read.keys)
        for key in keys:
            found = index.get(key)
            if isinstance(found, set) and len(found) >= _MOST_PARTS:
                return None
        if len(keys) > 1:
            self._several[read.part] = keys
        for key in keys:
            found = index.get(key)
            if found is None:
                index[key] = read.part
            elif isinstance(found, set):
                found.add(read.part)
            elif found != read.part:
                index[key] = {found, read.part}
        flight = self.flights[read.part] = Flight(self, read, self.epoch, self.tier.clock())
        return flight

    def land(self, flight: Flight, reply: bytes, lifetime: float) -> None:
        """Keep what a flight has fetched, unless it was tainted; `lifetime` in seconds from its opening."""
        if flight.tainted or flight.epoch != self.epoch:
            if self.mode.late:
                self.drop(marks(flight.read.keys))
            return
        del self.flights[flight.read.part]
        part, limits = flight.read.part, self.tier.limits
        if self.mode.late:
            # The push for a change that this very reply shows may be still to come.
            self._drop_others(flight.read)
        if lifetime <= 0 or len(reply) > limits.max_value_size or reply.startswith(b"-"):
            self._give_up(flight.read)
            return
        longest = limits.l1_ttl_untracked if self.mode is Mode.BUS else limits.l1_ttl
        deadline = _deadline(flight.began, min(lifetime, longest * self.tier.jitter()))
        if deadline <= self.tier.clock():
            self._give_up(flight.read)
            return
        kept, entries = 0, self.entries
        for protocol, table in self.tables.items():
            if protocol == 3:
                kept += self._keep(table, part, reply)
            elif flight.read.shape is not None:
                kept += self._keep(table, part, downgrade(reply, flight.read.shape))
        if not kept:
            self._give_up(flight.read)
            return
        self.account.fills += 1
        if self.entries < entries + kept or part in self._renewed:
            self._renewed[part] = deadline
        self._deadlines.setdefault(deadline, []).append(part)
        self.until = min(self.until, deadline)
        self._due += 1
        if self._due > 2 * self.entries + _SPARE:
            self._sweep()
        if self.budget.full:
            self.budget.make_room()

    def _keep(self, table: Table, part: bytes, reply: bytes) -> int:
        old = table.replies.pop(part, None)
        table.replies[part] = reply
        size = _size(part, reply)
        if old is None:
            self.entries += 1
            self.budget.entries += 1
        else:
            size -= _size(part, old)
        self.bytes += size
        self.budget.used += size
        return 1

    def give_up(self, flight: Flight) -> None:
        """Keep nothing of a flight: its reply is too long."""
        if not flight.tainted:
            del self.flights[flight.read.part]
            flight.tainted = True
            self._give_up(flight.read)
        if self.mode.late:
            self.drop(marks(flight.read.keys))

    def _give_up(self, read: Read) -> None:
        """Take out of the index what is not kept after all."""
        if not any(read.part in table.replies for table in self.tables.values()):
            self._delist(read.part, marks(read.keys))

    def _drop_others(self, read: Read) -> None:
        keys = marks(read.keys)
        self.drop(keys)
        for key in keys:
            self.index[key] = read.part
        if len(keys) > 1:
            self._several[read.part] = keys

    def _sweep(self) -> None:
        """Forget the deadlines of what is gone."""
        alive = {part for table in self.tables.values() for part in table.replies}
        self._renewed = {part: due for part, due in self._renewed.items() if part in alive}
        self._due = 0
        for deadline in sorted(self._deadlines):
            parts = [part for part in dict.fromkeys(self._deadlines[deadline]) if part in alive]
            parts = [part for part in parts if self._renewed.get(part, deadline) <= deadline]
            alive.difference_update(parts)
            if parts:
                self._deadlines[deadline] = parts
            else:
                del self._deadlines[deadline]
            self._due += len(parts)

    def evict(self, count: int) -> int:
        """Drop the `count` least recently used replies of the fullest table."""
        table = max(self.tables.values(), key=lambda table: len(table.replies), default=None)
        if table is None or not table.replies:
            return 0
        table.replay(1)
        victims = [part for part, _ in zip(table.replies, range(count), strict=False)]
        return sum([self._forget(part) for part in victims])


class EmptyShelf:
    """A shelf that nobody fills and that vouches for nothing."""

    def __init__(self) -> None:
        self.mode = Mode.OFF
        self.until = 0.0
        self.drops = 0
        self._table = Table()

    def table(self, protocol: int) -> Table:
        """An empty table."""
        return self._table

    def vouch(self, now: float) -> bool:
        """Never."""
        return False


def _size(part: bytes, reply: bytes) -> int:
    return ENTRY_COST + 2 * len(part) + len(reply)


def _deadline(began: float, lifetime: float) -> float:
    """When an entry's time is over, rounded down so that entries of like lifetime share deadlines."""
    step = ldexp(0.001, max(0, frexp(lifetime / (0.001 * _FRACTION))[1] - 1))
    return (began + lifetime) // step * step
