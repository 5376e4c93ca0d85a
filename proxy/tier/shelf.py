"""A shelf: the replies kept for one identity and database, and what keeps them true.

A shelf has a *table* (table.py) for each protocol in use, from parts (requests without their star, see
`rules`) to the replies a client of that protocol gets. One index leads from keys to the parts that show the
key, in tables and in flights alike, so that an invalidation is one look-up.

Nothing in a shelf outlives `until` unasked: that is the earlier of the next deadline of an entry and the end
of the time for which the link's last sign of life vouches (the coherence gate); or of the time for which
entries may be served stale (see `tier.stale`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from proxy.events import fields, without_arguments
from proxy.resp.downgrade import Shape, downgrade
from proxy.resp.tracking import INVALIDATE, Mode
from proxy.tier.classes import UNNAMED
from proxy.tier.deadlines import Deadlines, deadline
from proxy.tier.flights import Flight
from proxy.tier.ghost import Ghost
from proxy.tier.governor import AT_ONCE
from proxy.tier.policy import NULLS, Ruling, Serve
from proxy.tier.reuse import Reuse
from proxy.tier.rules import Read, key_name, marks
from proxy.tier.stale import Staleness
from proxy.tier.table import Table
from proxy.tier.tending import UNAVAILABLE, Tending
from proxy.tier.traffic import Traffic, overstated

if TYPE_CHECKING:
    from proxy.tier.tier import Account, Tier

log = logging.getLogger("pannier.tier")

ENTRY_COST = 225
"""Bytes an entry takes beside its part (twice: its key is in the index), its reply and its place among the
deadlines: the headers of three objects, rounding, and slots in two dicts. Measured:
tests/tier/test_memory.py."""
_MOST_PARTS = 4096
"""Parts kept for one key: an invalidation drops them all at once."""
_STAR = 0x2A
_NULL_SIZE = 5
"""Bytes of RESP2's nulls."""
_WEIGHED = 1024
"""Fills between two looks at whether entries last long enough to pay."""
_UNASKED = 300.0
"""Seconds after which a table counts as one that nobody reads from."""
_NOTED = 64
"""Misses that are noted before those who count parts hear of them."""
_MOST_LET_GO = 512
"""Entries dropped at once then: a millisecond or two."""


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
        self.spoken = 3
        """The protocol in which replies come; if it is 2, only clients of RESP2 can be answered."""
        self.trouble = ""
        """Why nothing is kept although Redis tells of changes; empty if something is."""
        self.until = 0.0
        """Monotonic seconds up to which every entry may be served without asking `vouch`."""
        self.waiting = False
        """Whether Redis owes the answer to a heartbeat; set by the link."""
        self.stale = Staleness(account)
        self._heard = 0.0
        self.epoch = 0
        """Counts the connections; what was fetched over one is kept only while that one lasts."""
        self.bytes = 0
        self.entries = 0
        """Replies kept."""
        self.drops = 0
        """Entries dropped so far for whatever reason: while it stands still, every entry has kept its
        value."""
        self.reads_dropped = 0
        """Reads of which something was dropped, in whatever protocols, because their keys were named."""
        self.tending = Tending(self)
        self.traffic = Traffic(tier.clock, lambda: account.hits)
        """Which parts are read most, and which change."""
        self.hot = self.traffic.hits
        self.reuse = Reuse(self)
        """When what is read is read again."""
        self._noted: list[bytes] = []
        """Misses that those who count parts have not heard of yet."""
        self._enough = 1
        """How many of these there are to be."""
        self._changed: list[bytes] = []
        """Likewise, parts of entries that were dropped because their keys changed."""
        self.ghost: Ghost | None = Ghost() if tier.policy.observes else None
        """What memory would have done, where reads are only observed."""
        self.watched: dict[int, Callable[[bool], object]] = {}
        """By the marks of keys: what is to hear that they may have changed, whatever is kept of them.

        True: Redis names the key. False: everything was dropped, or the link is lost.
        """
        self._lost = 0
        """Entries dropped when the link was lost, up to the next one."""
        self._several: dict[bytes, list[int]] = {}
        """The keys of the parts in the index that show more than one."""
        self.deadlines = Deadlines(self.keeps, tier.waste)
        self.renewed: dict[bytes, float] = {}
        """The deadlines of parts that were fetched again while they were kept: earlier notes do not count."""

    def imagine(self, wanted: bool) -> None:
        """Work out what memory would do, or no longer; nothing is kept when this is called."""
        if not wanted:
            self.ghost = None
        elif self.ghost is None:
            self.ghost = Ghost()

    def table(self, protocol: int) -> Table:
        """The table for clients of a protocol; made when the first one comes."""
        found = self.tables.get(protocol)
        if found is None:
            found = self.tables[protocol] = Table(self.tier.stride, self.tier.eager)
            found.hot, found.reuse, found.classes = self.hot, self.reuse, self.account.classes
        return found

    @property
    def filled(self) -> list[tuple[int, Table]]:
        """The tables that replies are put into, by protocol: those that are of use to clients, if any is."""
        wanted = [(protocol, table) for protocol, table in self.tables.items() if table.wanted]
        return wanted or list(self.tables.items())

    def let_go(self, now: float) -> None:
        """Drop, bit by bit, what is kept for a protocol that nobody speaks any more, if others are spoken."""
        if len(self.tables) < 2:
            return
        for table in self.tables.values():
            if now - table.asked >= _UNASKED:
                table.asked = 0.0
        if not any(table.wanted for table in self.tables.values()):
            return
        for table in self.tables.values():
            if not table.wanted:
                for part in list(islice(chain(table.replies, table.held), _MOST_LET_GO)):
                    self._count_out(1, _size(part, table.pop(part) or b""))
                    if part not in self.flights and not self.keeps(part):
                        self._delist(part, self._several.get(part) or self.rules.part_marks(part))

    @property
    def heard(self) -> float:
        """When Redis was last asked what it has answered since (monotonic seconds); set by the link."""
        return self._heard

    @heard.setter
    def heard(self, asked: float) -> None:
        self._heard = asked
        if self.stale.since is not None:
            self.vouch(self.tier.clock())

    def vouch(self, now: float) -> bool:
        """Whether entries may be served now; drops those whose time is over."""
        if self.mode is Mode.OFF and not self.stale.broken:
            return False
        if self.tier.policy.limits.ceiling is Serve.OFF:
            return False
        due = self.deadlines.over(now)
        if self.tending.known:
            due = [part for part in due if not self.tending.outlives(part, now)]
        if self.renewed:
            due = [part for part in due if not self._outlives(part, now)]
        if due and self.reuse.open:
            for part in due:
                self.reuse.expired(part)
        self.account.expired += sum([self._forget(part) for part in due])
        gate = self._gate(now)
        self.until = min(gate, self.deadlines.first(gate))
        return now < self.until

    def _gate(self, now: float) -> float:
        """Up to when entries may be served as far as their link goes."""
        gate = self._heard + self.tier.limits.coherence_timeout
        stale = self.stale
        if now < gate and not stale.broken:
            stale.end()
            return gate
        if self.waiting and stale.since is None and self.stale_time():
            self._go_stale(gate)
        if stale.since is None:
            return min(gate, now)  # of a broken promise, the gate says nothing
        gate = stale.since + self.stale_time()
        if now >= gate and stale.broken:
            self.clear()
        return gate

    def _go_stale(self, since: float) -> None:
        """Let nobody vouch for what is kept, from `since` on; what may not be served so, drop here."""
        self._close_flights()
        self.reuse.clear()
        self.stale.begin(since)
        if self.tier.policy.stale_differs:
            self._limit_stale(since)
        for told in self.watched.values():
            told(False)

    def stale_time(self) -> float:
        """Seconds for which entries may be served after their link broke or fell silent; 0: not at all.

        The one place that says so. It bounds the whole shelf; an entry ends earlier by its own deadline.
        """
        return self.tier.policy.stale

    def _limit_stale(self, since: float) -> None:
        """Have entries end as early as their rules want while Redis cannot be reached."""
        for part in {part for table in self.tables.values() for part in chain(table.replies, table.held)}:
            read = self.rules.read(part)
            seconds = self.judge(read).stale_if_error if read is not None else 0.0
            if not seconds:
                self._forget(part)
            elif seconds < self.stale_time():
                self.tending.shorten(part, since + seconds)
                self.renewed.pop(part, None)
                self.schedule(part, since + seconds)

    def _outlives(self, part: bytes, now: float) -> bool:
        """Whether a part of which a deadline is over is to stay, as it has been fetched again since."""
        until = self.renewed.get(part, now)
        if until > now:
            self.schedule(part, until)  # its note may have been swept out for the earlier one
        return until > now

    # --- what the link tells (upstream.shared.Keeper)

    def link_up(self, mode: Mode, protocol: int = 3) -> None:
        """Begin an epoch: Redis tracks from now on what the link reads, or the bus tells of changes."""
        if self.stale.since is not None:
            self.forget()
        self.mode, self.spoken = mode, protocol
        self.trouble = ""
        self.tier.loose = any(shelf.mode.late for shelf in self.tier.shelves.values())
        if self.tier.loose:
            self.tier.on_loose()
        self.epoch += 1
        self.until = 0.0
        if self._lost:  # it is now that all of it is asked for again
            self.account.governor.dropped(self._lost, self.tier.clock)
            self._lost = 0

    def link_lost(self) -> None:
        """Empty the shelf, or let it be stale: nobody vouches for it any more."""
        now = self.tier.clock()
        serves = self.mode is not Mode.OFF and self.stale_time() > 0
        self.mode = Mode.OFF
        self.epoch += 1
        self.until = 0.0
        if not serves:
            self._lost += self.entries
            self.forget()
            return
        self._go_stale(min(now, self._heard + self.tier.limits.coherence_timeout))
        self.stale.broken = True

    def bus_lost(self) -> None:
        """Hear that the bus, which alone keeps the shelf true, tells of nothing any more.

        Redis itself may well be there, so nothing is served, but what there is stays, to be served stale
        should the link be lost or fall silent as well. When the bus is heard again, the shelf is emptied.
        """
        self.until = 0.0
        if not self.stale_time():
            self._heard = 0.0
            self.clear()
            return
        self._heard = min(self._heard, self.tier.clock() - self.tier.limits.coherence_timeout)
        self._close_flights()
        self.stale.broken = True

    def forget(self) -> None:
        """Drop everything that an earlier connection has told of: there is another, or none to come."""
        self.stale.end()
        self.until = 0.0
        self.account.lost += self.clear()

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
        found = marks(keys)
        self.drop(found)
        self.account.invalidated += self.drops - before
        if self.reuse.unkept:
            self.reuse.marks_changed(found)
        for key in self.watched.keys() & found if self.watched else ():
            self.watched[key](True)

    def give_in(self, refusal: bytes) -> None:
        """Keep nothing over this connection: Redis does not tell how long keys live."""
        self.trouble = f"PTTL refused: {without_arguments(refusal.decode('utf-8', 'replace'))}"
        about = fields("nothing_kept", reason=self.trouble)
        log.warning("nothing is kept in memory: %s", self.trouble, extra=about)
        self.mode = Mode.OFF
        self.until = 0.0
        self.clear()

    # --- dropping

    def drop(self, keys: Iterable[int], own: bool = False) -> int:
        """Drop what shows any of the keys (their marks), and taint the flights under way to them; how many
        entries that were.

        `own`: a write through here. Clients overwrite what they read all day long, each in its own time: the
        refill governor hears only of writes that drop many at once.
        """
        before = self.drops
        self._drop_all(keys)
        dropped = self.drops - before
        if dropped and (not own or dropped >= AT_ONCE):
            self.account.governor.dropped(dropped, self.tier.clock)
        return dropped

    def _drop_all(self, keys: Iterable[int]) -> None:
        index = self.index
        for key in keys:
            found = index.pop(key, None)
            if found is not None:
                self._drop(key, found)

    def clear(self) -> int:
        """Drop everything; how many entries that were."""
        count, waste = self.entries, self.tier.waste
        self.stale.broken = False
        self.reuse.clear()
        for table in self.tables.values():
            waste.take(table.clear())
        for flight in self.flights.values():
            flight.tainted = True
        self.flights.clear()
        waste.take(self.index, self._several, self.renewed)
        self.index, self._several, self.renewed = {}, {}, {}
        self.deadlines.clear()
        self.tending.clear()
        if self.ghost is not None:
            self.ghost.clear()
        self.budget.used -= self.bytes
        self.budget.entries -= count
        self.bytes = self.entries = 0
        self.drops += count
        if count:
            self.account.governor.dropped(count, self.tier.clock)
        for told in self.watched.values():
            told(False)
        return count

    def _close_flights(self) -> None:
        """Keep nothing of what is being fetched, and let nobody wait for it who does not yet."""
        flights, self.flights = self.flights, {}
        for flight in flights.values():
            flight.tainted = True
            self._give_up(flight.read)

    def _drop(self, key: int, found: bytes | set[bytes]) -> None:
        door, reuse, changed = self.budget.door, self.reuse.open, self._changed
        for part in (found,) if isinstance(found, bytes) else found:
            if self.flights and (flight := self.flights.pop(part, None)) is not None:
                flight.tainted = True
            if part in reuse:
                self.reuse.changed(part)
            lapses = self.tending.known and self.tending.lapses(part, self.tier.clock())
            if not lapses and self._remove(part):
                self.reads_dropped += 1
                changed.append(part)
            if door.price:
                door.charge(part)
            if self.ghost is not None:
                self.ghost.forget(part)
            if self._several and part in self._several:
                for other in self._several.pop(part):
                    if other != key:
                        self._unlist(other, part)
        if len(changed) >= _NOTED:
            self.digest()

    def _remove(self, part: bytes) -> int:
        """Take a part's replies out of the tables, and what is aside of it; how many there were."""
        if self.renewed:
            self.renewed.pop(part, None)
        if self.tending.known:
            aside = len(self.tending.aside.get(part, ()))
            count = len(self.take_out(part))
            self.tending.forget(part)
            self.drops += aside
            return count + aside
        count = size = 0
        for table in self.tables.values():
            reply = table.pop(part)
            if reply is not None:
                size += _size(part, reply)
                count += 1
        if count:
            self._count_out(count, size)
        return count

    def _count_out(self, count: int, size: int) -> None:
        budget = self.budget
        self.bytes -= size
        budget.used -= size
        self.drops += count
        self.entries -= count
        budget.entries -= count

    def take_out(self, part: bytes) -> dict[int, bytes]:
        """Take a part's replies out of the tables, and return them by protocol."""
        self.renewed.pop(part, None)
        found = {}
        for protocol, table in self.tables.items():
            reply = table.pop(part)
            if reply is not None:
                found[protocol] = reply
        self._count_out(len(found), sum([_size(part, reply) for reply in found.values()]))
        return found

    def put_back(self, part: bytes, replies: dict[int, bytes], until: float) -> None:
        """Put replies that were taken out back into the tables."""
        for protocol, reply in replies.items():
            self._keep(self.table(protocol), part, reply)
        self.schedule(part, until)

    def _forget(self, part: bytes) -> int:
        """Drop one part; how many replies that were."""
        count = self._remove(part)
        imagined = self.ghost is not None and self.ghost.forget(part)
        if (count or imagined) and part not in self.flights:
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

    def last(self, part: bytes) -> bytes | None:
        """The last value kept of a read although its time is over, if a rule wants that; of a GET, as clients
        of either protocol get it."""
        found = (self.tending.last(part, protocol) for protocol in self.tables)
        return next((reply for reply in found if reply is not None), None)

    def open(self, read: Read) -> Flight | None:
        """Begin to fetch a read; None if it cannot be kept, or is being fetched already."""
        index = self.index
        if read.part in self.flights or self.stale.since is not None:
            return None
        policy = self.tier.policy
        ruling = self.judge(read) if policy.rulings else policy.default
        if ruling.serve is Serve.OFF:
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
        flight = self.flights[read.part] = Flight(self, read, self.epoch, self.tier.clock(), ruling)
        return flight

    def judge(self, read: Read) -> Ruling:
        """What the rules say of a read."""
        size = len(self.rules.prefix)
        return self.tier.policy.judge([key_name(key)[size:] for key in read.keys])

    def admits(self, part: bytes) -> bool:
        """Note that a part has been asked for and is not there; whether it may come in."""
        noted = self._noted
        noted.append(part)
        if len(noted) >= self._enough:
            self.digest()
        if self.ghost is None and not self.tending.aside:
            return self.budget.door.admits(part)
        return self._admits(part)

    def _admits(self, part: bytes) -> bool:
        if self.ghost is not None and (wanted := self._observe(self.ghost, part)) is not None:
            return wanted
        return part in self.tending.aside or self.budget.door.admits(part)

    def admitted(self, parts: Sequence[bytes]) -> Sequence[bytes]:
        """The same for several of a pipeline; those that may come in."""
        self._noted += parts
        if len(self._noted) >= self._enough:
            self.digest()
        if self.ghost is not None or self.tending.aside:
            return [part for part in parts if self._admits(part)]
        return self.budget.door.admitted(parts, piped=True)

    def digest(self) -> None:
        """Tell those who count parts what was noted: so much at a time, and at once of a miss that is to be
        watched; and whenever somebody asks them."""
        if self._changed:
            self.traffic.changed(self._changed)
            self._changed.clear()
        noted, self._noted = self._noted, []
        if noted:
            self.account.classes.missed(noted)
            self.traffic.missed(noted)
            self.reuse.missed(noted)
        self.reuse.tend()
        self._enough = min(self.reuse.due, _NOTED)

    def _observe(self, ghost: Ghost, part: bytes) -> bool | None:
        """Whether a read that is only observed has to be fetched to be known; None: it is no such read."""
        if self.tier.policy.limits.ceiling < Serve.OBSERVE:
            read = self.rules.read(part)
            if read is None or self.judge(read).serve is not Serve.OBSERVE:
                return None
        if not ghost.wants(part):
            ghost.passed(1)
            return False
        return not ghost.read(part) and self.budget.door.admits(part)

    def _imagine(self, flight: Flight, reply: bytes, until: float) -> None:
        """Take note of what would have been kept."""
        part = flight.read.part
        if self.ghost is None or until <= self.tier.clock():
            self._give_up(flight.read)
            return
        for gone in self.ghost.keep(part, _size(part, reply) * len(self.filled)):
            self._delist(gone, self._several.get(gone) or self.rules.part_marks(gone))
        self.schedule(part, until)

    def land(self, flight: Flight, reply: bytes, lifetime: float, absent: bool = False) -> None:
        """Keep what a flight has fetched, unless it was tainted; `lifetime` in seconds from its opening.

        `absent`: none of its keys is there.
        """
        if flight.tainted or flight.epoch != self.epoch:
            if self.mode.late:
                self.drop(marks(flight.read.keys))
            return
        del self.flights[flight.read.part]
        failed = reply.startswith(UNAVAILABLE)
        again = self.keeps(flight.read.part)
        if self.mode.late and not failed:
            # The push for a change that this very reply shows may be still to come.
            self._drop_others(flight.read)
        until = self._until(flight, reply, lifetime, absent)
        if flight.ruling.serve is not Serve.CACHE:
            self._imagine(flight, reply, until)
            return
        now = self.tier.clock()
        if flight.ruling.keeps and not failed:
            self.tending.heard(flight.read.part, absent or reply in NULLS, now)
        kept = self._store(flight.read, reply) if until > now else 0
        if not kept:
            ends = flight.began + lifetime
            if not failed and not (ends <= now and self.tending.ended(flight.read, reply, ends)):
                self._remove(flight.read.part)  # what a rule kept of it
            self._give_up(flight.read)
            return
        if flight.read.part in self.reuse.open:
            self.reuse.landed(flight.read.part)
        self.account.fills += 1
        if not self.account.fills % _WEIGHED:
            self.budget.weigh()
        flight.ruling.fills += 1
        if flight.ruling.tended:
            self.tending.landed(flight.read.part, flight.ruling, flight.began + lifetime, until)
        elif again:
            self.renewed[flight.read.part] = until
        self.schedule(flight.read.part, until)
        if self.budget.full:
            self.budget.make_room()

    def _until(self, flight: Flight, reply: bytes, lifetime: float, absent: bool) -> float:
        """Until when a reply may be kept; 0: not at all."""
        ruling, limits = flight.ruling, self.tier.limits
        if lifetime <= 0 or ruling.refuses(reply, absent):
            return 0.0
        longest = min(ruling.l1_ttl, limits.l1_ttl_untracked) if self.mode is Mode.BUS else ruling.l1_ttl
        self.account.capped += lifetime > longest
        return deadline(flight.began, min(lifetime, self.tier.shortened(longest, ruling.jitter)))

    def lowered(self, read: Read, reply: bytes) -> bytes:
        """A reply as it came over the link, in RESP2."""
        return reply if self.spoken == 2 else downgrade(reply, read.shape or Shape.TYPED)

    def _store(self, read: Read, reply: bytes) -> int:
        """Put a reply into the tables; into how many."""
        kept, filled = 0, self.filled
        if len(filled) < len(self.tables):
            self._drop_unread(read.part)
        for protocol, table in filled:
            if protocol == 3:
                kept += self._keep(table, read.part, reply) if self.spoken == 3 else 0
            elif read.shape is not None:
                lowered = self.lowered(read, reply)
                if len(lowered) == _NULL_SIZE:
                    lowered = b"%b" % lowered  # all nulls are one object: this fill is to be told from others
                kept += self._keep(table, read.part, lowered)
        return kept

    def _drop_unread(self, part: bytes) -> None:
        """Have no table that nobody reads from keep an older reply of what is fetched anew."""
        for table in self.tables.values():
            if not table.wanted and (reply := table.pop(part)) is not None:
                self._count_out(1, _size(part, reply))

    def replay(self) -> None:
        """Bring the order of eviction and the counts of hits and misses up to date."""
        self.digest()
        for table in self.tables.values():
            table.replay()

    def hits_lately(self, part: bytes) -> int:
        """About how often a part was hit in the window."""
        return round(self.hot.count(part) / self.overstated)

    @property
    def overstated(self) -> float:
        """By which factor hits seem to be more than they are (see `tier.traffic`)."""
        return overstated([shelf.traffic for shelf in self.account.shelves])

    def size_of(self, part: bytes) -> int:
        """Bytes of the replies kept of a part; 0: none is."""
        return sum([len(table.get(part) or b"") for table in self.tables.values()])

    def taken_by(self, part: bytes) -> int:
        """Bytes of the budget that a part takes; 0: it is not in the tables."""
        replies = [reply for table in self.tables.values() if (reply := table.get(part)) is not None]
        return sum([_size(part, reply) for reply in replies])

    def longest(self, part: bytes) -> float:
        """Seconds for which a read may be kept at most."""
        read = self.rules.read(part)
        ruling = self.judge(read) if read is not None else self.tier.policy.default
        return 0.0 if ruling.serve is Serve.OFF else ruling.l1_ttl

    def label(self, part: bytes) -> str:
        """The class of a read: its first key's. All that no rule names and has no first part is of one."""
        return self.tier.label(self.rules, part) or UNNAMED

    def ends(self, part: bytes) -> float | None:
        """When a part's time is over (monotonic seconds); None: it is not kept. Looks at all there is."""
        if not any(part in table for table in self.tables.values()):
            return None
        tended = self.tending.known.get(part)
        if tended is not None:
            return tended.until
        return self.deadlines.of(part)

    def schedule(self, part: bytes, until: float) -> None:
        """Have a part dropped when its time is over."""
        self.deadlines.add(until, part, self.entries)
        self.until = min(self.until, until)

    def _keep(self, table: Table, part: bytes, reply: bytes) -> int:
        old = table.pop(part)
        table.replies[part] = reply
        size = _size(part, reply)
        if old is None:
            self.entries += 1
            self.budget.entries += 1
        else:
            size -= _size(part, old)
            self.drops += old != reply
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
        if not self.keeps(read.part):
            self._delist(read.part, marks(read.keys))

    def keeps(self, part: bytes) -> bool:
        """Whether some table has a part, or it is aside, or imagined."""
        for table in self.tables.values():  # asked at every fill: half the cost of `any` with a generator
            if part in table:
                return True
        if part in self.tending.aside:
            return True
        return self.ghost is not None and part in self.ghost

    def _drop_others(self, read: Read) -> None:
        keys = marks(read.keys)
        self._drop_all(keys)
        for key in keys:
            self.index[key] = read.part
        if len(keys) > 1:
            self._several[read.part] = keys

    def evict(self, count: int) -> int:
        """Drop the `count` least recently used replies of the fullest table."""
        if lapsed := self.tending.yield_room(count):
            return lapsed
        aside = [part for part, _ in zip(self.tending.aside, range(count), strict=False)]
        if aside:
            return sum([self._forget(part) for part in aside])
        table = max(self.tables.values(), key=len, default=None)
        if table is None or not len(table):
            return 0
        return sum([self._evict(part) for part in table.victims(count)])

    def _evict(self, part: bytes) -> int:
        if part in self.reuse.open:
            self.reuse.evicted(part)
        return self._forget(part)


class EmptyShelf(Shelf):
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
