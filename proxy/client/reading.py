"""Reads that the tier may answer: what to do where its table does not hold all that a client asks for.

A client is answered from memory only while nothing of its own is pending: what memory holds is the state at
this place in the stream of the tracked link, and what is pending belongs to a later one. So a pipeline of
which a part has to be fetched (`Mosaic`) is put together when the fetch is done, from entries that have kept
their value all the while; if one has not, all of it is read from Redis instead. Nothing the client sends
behind it is taken before that, so reading twice is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from random import randrange
from time import monotonic
from typing import TYPE_CHECKING

from proxy.client import refilling
from proxy.client.whole import ForClient, Whole
from proxy.resp.commands import Command
from proxy.resp.downgrade import Shape, downgrade, lower_nulls
from proxy.resp.encode import OK
from proxy.resp.patterns import find_bulks, match_mget
from proxy.resp.replies import split_replies
from proxy.tier.flights import MISSING, Flight, lifetime
from proxy.tier.rules import CACHEABLE, GET, Read, Touch, lifetimes

if TYPE_CHECKING:
    from proxy.client.session import Session

_MANY_KEYS = 6
"""Keys of an MGET that the patterns of runs do not take: it is dealt with by itself."""
_MOST_FILLS = 256
"""Fetches begun for one chunk."""
_CUT = b"\r\n*" + GET + b"$"
_FEW_HITS = 4
"""A pipeline of which less than one in so many was found has been looked up in vain, if memory is full."""
_STRIKES = 6
_SKIPPED, _MOST_SKIPPED = 3, 63
"""See `_strike`."""
_WINDOW = 16384
"""Bytes of a buffer that are looked up at once: where other commands stand between, it is done again for
each."""
_STAR = 0x2A
_AT_ONCE = 128
"""Keys of several MGETs that are looked up at once: more leave the CPU's caches."""


def ask(session: Session, data: bytes, parts: list[bytes]) -> int:
    """Deal with a chunk of which the table does not hold all; how many of its bytes have been dealt with.

    `parts` is the chunk split at its stars.
    """
    if len(parts) == 1:
        return ask_one(session, data, parts[0])
    if _may_be_mget(parts[0]) and _answer_mgets(session, data, parts[0]):
        return len(data)
    shelf = session.shelf
    if shelf.tending.aside or not shelf.reuse.open.keys().isdisjoint(parts):
        _revive(session, parts)
    replies = list(map(session.find, parts))
    if replies[0] is None and not _is_read(session, parts[0]):
        return _starred(session, data)  # or no read: then neither may be what comes behind
    if replies[-1] is None and not _is_read(session, parts[-1]):
        # Cut off by the chunk's end, most likely, or a write.
        left = len(data) - len(parts.pop()) - 1
        replies.pop()
        if None not in replies:
            answer(session, parts, replies)
            return left
        if len(parts) == 1:
            return _one(session, data[:left], parts[0])
        data = data[:left]
    missing = [part for part, reply in zip(parts, replies, strict=True) if reply is None]
    whole = b"*" + b"*".join(missing)
    if mixed := b"\nMG" in whole or b"\nmg" in whole:
        _find_members(session, parts, replies)
        if replies[0] is None and (keys := _mget_keys(parts[0])) is not None and len(keys) >= _MANY_KEYS:
            return len(parts[0]) + 1 if _mget(session, b"*" + parts[0], keys) else 0
        missing = [part for part, reply in zip(parts, replies, strict=True) if reply is None]
        whole = b"*" + b"*".join(missing)
    if not missing:
        answer(session, parts, replies, mixed)
        return len(data)
    if session.clients.dispatcher.reads.count(whole) == len(missing):
        _several(session, data, parts, replies, missing, whole, mixed)
        return len(data)
    first = replies.index(None)
    requests = session.clients.dispatcher.patterns.count(data)
    if not first or requests:
        # With a write in it, a pipeline waits for Redis anyway: what memory holds would save it nothing.
        _strike(session, requests)
        return 0
    answer(session, parts[:first], replies[:first], mixed)
    return sum(map(len, parts[:first])) + first


def ask_one(session: Session, data: bytes, part: bytes) -> int:
    """The same with a chunk in which there is no star but the first; `part` is what stands behind it."""
    shelf = session.shelf
    if part in shelf.reuse.open or shelf.tending.aside:
        _revive(session, [part])
        if _found(session, part):
            return len(data)
    return _one(session, data, part)


def ask_buffer(session: Session, buf: bytes, pos: int) -> int:
    """Deal with the reads at `pos` of what is buffered; how many bytes have been dealt with."""
    tier = session.clients.tier
    if session.pending or buf[pos] != _STAR or tier is None or tier.loose or not _vouched(session):
        return 0
    end = buf.find(b"*", pos + 1)
    first = session.find(buf[pos + 1 : end if end > 0 else len(buf)])
    if first is None:
        head = match_mget(buf[pos + 1 : pos + 32])
        if head is None and session.clients.dispatcher.reads.runs[-1][1](buf, pos) is None:
            return 0
    data = buf[pos : pos + _WINDOW]
    parts = data.split(b"*")
    del parts[0]
    replies = list(map(session.find, parts))
    if None in replies:
        return ask(session, data, parts)
    answer(session, parts, replies)
    return len(data)


def read(session: Session, command: Command, frame: bytes) -> bool:
    """Deal with one parsed read; False if it is to be sent like any other command."""
    quiet = not session.pending and session.link is session.home
    part = frame[1:]
    if command.name == "mget" and quiet:
        return _vouched(session) and _take_mget(session, frame, part)
    if command.name not in CACHEABLE:
        return False
    if not _vouched(session):
        return False
    session.table.asked = monotonic()
    if not quiet:
        session.shelf.reuse.release([part])
    elif session.shelf.tending.aside or part in session.shelf.reuse.open:
        _revive(session, [part])
    if quiet:
        if _found(session, part) or _join(session, part):
            return True
        if session.shelf.account.governor.until and refilling.take_turn(session, part):
            return True
    if session.clients.tier is None or session.link is not session.home:
        return False
    shelf = session.shelf
    shelf.account.misses += 1
    wanted = shelf.rules.read(part) if shelf.admits(part) else None
    if wanted is None or (wanted.shape is None and session.protocol == 2):
        return False
    return _fetch(session, wanted)


def _starred(session: Session, data: bytes) -> int:
    """Deal with a single read that has stars in its arguments."""
    if session.clients.dispatcher.reads.wholes[-1][1](data) is None:
        _strike(session, session.clients.dispatcher.patterns.count(data))
        return 0
    part = data[1:]
    session.shelf.reuse.release([part])
    reply = session.find(part)
    if reply is None:
        return _one(session, data, part)
    answer(session, [part], [reply])
    return len(data)


def answer(
    session: Session, parts: list[bytes], replies: list[bytes | None], mixed: bool = False
) -> None:
    """Answer from memory, all of it; `mixed`: there are MGETs among it."""
    session.write(b"".join(replies))  # type: ignore[arg-type]
    if mixed:
        _count_members(session, parts, replies)
    else:
        count(session, parts, len(parts))


def count(
    session: Session,
    parts: list[bytes],
    hits: int,
    began: float = 0.0,
    replies: Sequence[bytes | None] | None = None,
) -> None:
    """Count reads answered from memory; now and then, log them, and time them if it is known when they
    `began`.

    `replies`: where these are None, a part was not found.
    """
    session.hits += hits
    if session.hits > session.log_at:
        if replies is not None:
            parts = [part for part, reply in zip(parts, replies, strict=True) if reply is not None]
        session.table.asked = monotonic()
        if began:
            session.clients.latency.hit(parts[0], began)
        session.log_at = session.hits + session.table.log(parts)
        if session.clients.verifier is not None:
            session.clients.verifier.sample(session, parts)


def _is_read(session: Session, part: bytes) -> bool:
    """Whether a piece between two stars is one plain read, and not a part of something longer."""
    plain = session.clients.dispatcher.reads.wholes[-1][1](b"*" + part) is not None
    return plain or _mget_keys(part) is not None


def _vouched(session: Session) -> bool:
    return monotonic() < session.shelf.until or session.shelf.vouch(monotonic())


def _one(session: Session, data: bytes, part: bytes) -> int:
    """Deal with a single request that the table does not hold."""
    shelf = session.shelf
    if _may_be_mget(part):
        return len(data) if _take_mget(session, data, part) else 0
    if session.clients.dispatcher.reads.wholes[-1][1](data) is None:
        return 0
    session.table.asked = monotonic()
    if part in shelf.flights and (_found(session, part) or _join(session, part)):
        return len(data)
    if shelf.account.governor.until and refilling.take_turn(session, part):
        return len(data)
    shelf.account.misses += 1
    if shelf.admits(part):
        wanted = shelf.rules.read(part)
        if wanted is not None and _fetch(session, wanted):
            return len(data)
    session.commands += 1
    session.pending += 1
    session.home.submit(session, 1, session.real(1, data))
    return len(data)


def _found(session: Session, part: bytes) -> bool:
    """Answer a read that is in the table after all: it has been brought back while it is fetched anew."""
    reply = session.find(part)
    if reply is None:
        return False
    answer(session, [part], [reply])
    return True


def _revive(session: Session, parts: list[bytes]) -> None:
    """Bring back what is held, and what may be served while it is fetched anew; fetch that."""
    shelf = session.shelf
    shelf.reuse.release(parts)
    if shelf.tending.aside:
        _fill(session, shelf.tending.revive(parts, monotonic()))


def _join(session: Session, part: bytes) -> bool:
    """Wait for a flight under way, if there is one: its reply comes before anything still to be sent."""
    shelf = session.shelf
    flight = shelf.flights.get(part)
    if flight is None or not flight.joinable:
        return False
    if flight.read.shape is None and session.protocol == 2:
        return False
    shelf.account.misses += 1
    shelf.account.coalesced += 1
    flight.waiters.append(session)
    session.commands += 1
    session.expect(1)
    return True


def _fetch(session: Session, wanted: Read) -> bool:
    """Begin a flight and wait for it."""
    shelf = session.shelf
    flight = shelf.open(wanted)
    if flight is None:
        return False
    flight.waiters.append(session)
    session.commands += 1
    session.expect(1)
    refilling.launch(flight, session.home)
    return True


def _fill(session: Session, parts: list[bytes]) -> None:
    """Fetch what has been read often enough; nobody waits for it."""
    shelf = session.shelf
    for part in parts[:_MOST_FILLS]:
        if part in shelf.flights:
            continue
        wanted = shelf.rules.read(part)
        if wanted is None:
            continue
        place = refilling.admit(shelf, wanted) if shelf.account.governor.until else ""
        if place is None:
            continue
        flight = shelf.open(wanted)
        if flight is not None:
            flight.place = place
            refilling.launch(flight, session.home)
        elif place:
            shelf.account.governor.leave(place)


# --- pipelines


def _strike(session: Session, n: int) -> None:
    """Note that a pipeline of `n` goes to Redis whole although it was looked up.

    If fewer than one in three were answered from memory since, the next ones are not looked up, as most of
    them would only cost: the more of them, the longer that has been so.
    """
    if n < 2:
        return
    answered, rest = divmod(session.hits - session.hits_before, n)
    session.hits_before = session.hits - rest
    session.strikes = min(max(session.strikes - 2 * answered, 0) + 1, _STRIKES)
    if session.strikes < _STRIKES:
        session.skip_next = _SKIPPED
    elif not session.home.refusing:
        # Not always as many: of a client that sends two kinds by turns it would always be the same kind.
        session.skip(session.skip_next - randrange(2))
        session.skip_next = min(2 * session.skip_next + 1, _MOST_SKIPPED)


def _several(
    session: Session,
    data: bytes,
    parts: list[bytes],
    replies: list[bytes | None],
    missing: list[bytes],
    request: bytes,
    mixed: bool,
) -> None:
    """Deal with a pipeline of reads and nothing else; `request`: those that are missing."""
    account = session.shelf.account
    session.table.asked = monotonic()
    n, hits = len(parts), len(parts) - len(missing)
    admitted = session.shelf.admitted(missing)
    account.misses += len(missing)
    if hits * 2 >= n or (hits and session.home.refusing):
        if mixed:
            _count_members(session, parts, replies)
        else:
            count(session, parts, hits, 0.0, replies)
        account.pieced += hits
        session.hits_before += hits // 2
        session.commands -= hits
        Mosaic(session, data, parts, replies, len(missing), request)
    else:
        account.passed += hits
        session.commands += n
        session.expect(n)
        _send(session, parts, data)
    if admitted:
        _fill(session, list(admitted))
    if hits * _FEW_HITS < n and session.shelf.budget.tight:
        _strike(session, n)


def _send(session: Session, parts: list[bytes], data: bytes) -> None:
    """Have Redis answer a pipeline of reads; its replies are expected already."""
    reads, home = session.clients.dispatcher.reads, session.home
    if session.protocol == home.key.protocol or reads.count(data) == len(parts):
        home.submit(session, len(parts), session.real(len(parts), data))
        return
    for part in parts:
        frame = session.real(1, b"*" + part)
        if _is_read(session, part):
            home.submit(session, 1, frame)
            continue
        read = session.space.rules.read(part)
        shape = read.shape if read is not None else None
        home.submit(Whole(session, 1, shape or Shape.TYPED, Touch.NOTHING), 1, frame)


class Mosaic(ForClient):
    """A pipeline of reads of which most are in memory: the others are fetched, all are answered together."""

    __slots__ = ("_data", "_drops", "_missing", "_parts", "_replies")

    def __init__(
        self,
        session: Session,
        data: bytes,
        parts: list[bytes],
        replies: list[bytes | None],
        missing: int,
        request: bytes,
    ) -> None:
        super().__init__(session, missing)
        self._data = data
        self._parts = parts
        self._replies = replies
        self._missing = missing
        self._drops = session.shelf.drops
        session.commands += len(parts)
        session.expect(len(parts))
        session.home.submit(self, missing, session.real(missing, request))
        session.ready()

    def finish(self, replies: bytes) -> None:
        """Put the pipeline's replies together."""
        session = self._session
        if not _kept(session, self._drops, self._parts, self._replies):
            _send(session, self._parts, self._data)
            return
        if session.protocol != 3 and b"_\r\n" in replies:
            replies = lower_nulls(replies, 0)
        fetched = iter(split_replies(replies, 0, self._missing))
        whole = b"".join([next(fetched) if reply is None else reply for reply in self._replies])
        session.take_all(len(self._parts), whole)

    def cut(self) -> None:
        """Ask again: nothing has been passed on."""
        _send(self._session, self._parts, self._data)


def _kept(session: Session, drops: int, parts: list[bytes], replies: list[bytes | None]) -> bool:
    """Whether what was taken from the table is what it has held ever since."""
    if not _vouched(session):
        return False
    if session.shelf.drops == drops:
        return True
    for reply, now in zip(replies, map(session.find, parts), strict=True):
        if reply is not None and reply is not now:
            return False
    return True


# --- MGET: served by its members, which are kept as if GET had asked for them


def _may_be_mget(part: bytes) -> bool:
    """Whether a name stands where MGET's would."""
    name = part[5:16]
    return b"\nMG" in name or b"\nmg" in name


def _mget_keys(part: bytes) -> list[bytes] | None:
    """The keys of an MGET of any length, as the bulk strings they are.

    None: this is none, or not all of one, or has keys that are too long for the patterns.
    """
    head = match_mget(part)
    if head is None:
        return None
    keys = find_bulks(part, head.end())
    whole = len(keys) == int(head[1]) - 1 and sum(map(len, keys)) == len(part) - head.end()
    return keys if whole and keys else None


def _hits_of(session: Session, part: bytes) -> tuple[list[bytes], bytes] | None:
    """The members of an MGET and the reply to it, if all of them are in memory.

    It is cut where a key's length may begin, and at stars. A piece that is in the table is one whole key, as
    it begins with its length; if all are, and are as many as there should be, the cuts were right. That is a
    third of what stepping over the keys costs.
    """
    head = match_mget(part)
    if head is None:
        return None
    members = (GET + part[head.end() :].replace(b"\r\n$", _CUT)).split(b"*")
    n = len(members)
    if n != int(head[1]) - 1:
        return None
    replies = _look_up(session, members)
    return None if replies is None else (members, b"*%d\r\n%b" % (n, b"".join(replies)))


def _look_up(session: Session, members: list[bytes]) -> tuple[bytes, ...] | None:
    """The replies to members of MGETs, if all are in memory."""
    table, reuse = session.table.replies, session.shelf.reuse
    while True:
        try:
            return itemgetter(*members)(table) if len(members) > 1 else (table[members[0]],)
        except KeyError:
            if reuse.open.keys().isdisjoint(members):
                return None
            reuse.release(members)  # what is watched is held, and so in no table


def _answer_mgets(session: Session, data: bytes, part: bytes) -> bool:
    """Answer a chunk of nothing but MGETs of as many keys as the first, `part`, if all are in memory.

    They are cut where they begin, and as one MGET is then, some at once: all together leave the CPU's caches.
    """
    head = match_mget(part)
    if head is None:
        return False
    n = int(head[1]) - 1
    bodies = data.split(b"*" + head[0])
    del bodies[0]
    step = max(1, _AT_ONCE // n)
    begin = b"*%d\r\n" % n
    members: list[bytes] = []
    answers: list[bytes] = []
    for first in range(0, len(bodies), step):
        some = bodies[first : first + step]
        keys = (GET + b"".join(some).replace(b"\r\n$", _CUT)).split(b"*")
        total = len(keys)
        if total != n * len(some) or {body.count(b"\r\n$") for body in some} != {n - 1}:
            return False
        replies = _look_up(session, keys)
        if replies is None:
            return False
        members += keys
        for at in range(0, total, n):
            answers.append(begin)
            answers += replies[at : at + n]
    session.table.asked = monotonic()
    _answer_members(session, members, b"".join(answers), len(bodies))
    return True


def _find_members(session: Session, parts: list[bytes], replies: list[bytes | None]) -> None:
    """Fill in the replies to those MGETs of a pipeline whose members are all in memory."""
    for place, part in enumerate(parts):
        if replies[place] is None and (hits := _hits_of(session, part)) is not None:
            replies[place] = hits[1]


def _count_members(session: Session, parts: list[bytes], replies: list[bytes | None]) -> None:
    """Count reads that were found, MGETs by their members."""
    found: list[bytes] = []
    n = 0
    for part, reply in zip(parts, replies, strict=True):
        if reply is not None:
            n += 1
            keys = _mget_keys(part)
            found += [part] if keys is None else [GET + key for key in keys]
    count(session, found, len(found))
    session.commands += n - len(found)


def _take_mget(session: Session, data: bytes, part: bytes) -> bool:
    """Deal with an MGET; False: it is to be sent like any other command."""
    hits = _hits_of(session, part)
    if hits is None:
        keys = _mget_keys(part)
        return keys is not None and _mget(session, data, keys)
    session.table.asked = monotonic()
    _answer_members(session, *hits)
    return True


def _answer_members(session: Session, members: list[bytes], whole: bytes, n: int = 1) -> None:
    """Answer `n` MGETs."""
    count(session, members, len(members))
    session.write(whole)
    session.commands += n - len(members)


def _mget(session: Session, data: bytes, keys: list[bytes]) -> bool:
    """Deal with an MGET of these keys; False: what memory holds is of no use for it."""
    members = [GET + key for key in keys]
    session.table.asked = monotonic()
    session.shelf.reuse.release(members)
    replies = list(map(session.find, members))
    found = len(replies) - replies.count(None)
    if found == len(members):  # with a star in a key, for instance
        _answer_members(session, members, b"*%d\r\n%b" % (found, b"".join(replies)))  # type: ignore[arg-type]
        return True
    if session.clients.tier is None or session.clients.tier.loose:
        return False  # replies may be newer than pushes: what is at hand and what is fetched need not fit
    if found:
        count(session, members, found, 0.0, replies)
    session.commands -= found
    PartialMget(session, data, keys, members, replies)
    return True


class PartialMget(ForClient):
    """An MGET of which some members have to be fetched: these, and only these, in one MGET."""

    __slots__ = ("_data", "_drops", "_flights", "_members", "_replies")

    def __init__(
        self,
        session: Session,
        data: bytes,
        keys: list[bytes],
        members: list[bytes],
        replies: list[bytes | None],
    ) -> None:
        missing = dict.fromkeys(key for key, reply in zip(keys, replies, strict=True) if reply is None)
        self._data = data
        self._members = members
        self._replies = replies
        self._flights: dict[bytes, Flight] = {}
        shelf = session.shelf
        shelf.account.misses += len(missing)
        self._drops = shelf.drops
        for key in missing:
            member = GET + key
            if member not in shelf.flights and shelf.admits(member):
                flight = shelf.open(shelf.rules.member(key))
                if flight is not None:
                    flight.joinable = False  # to a key that is no string, GET answers otherwise than MGET
                    self._flights[member] = flight
        asked = [flight.read.keys[0] for flight in self._flights.values()]
        lines, questions = lifetimes(asked, shelf.mode)
        super().__init__(session, lines + 1)
        namespace = session.space.namespace
        keys = list(missing if namespace is None else map(namespace.bulk, missing))
        mget = b"*%d\r\n$4\r\nMGET\r\n%b" % (len(keys) + 1, b"".join(keys))
        session.commands += 1
        session.expect(1)
        session.home.submit(self, lines + 1, questions + mget)
        session.ready()

    def asked(self, requests: bytes) -> tuple[bytes, bool]:
        """The MGET as it came."""
        return self._data, False

    def finish(self, replies: bytes) -> None:
        """Keep what was fetched, and answer."""
        session = self._session
        lives, pos = [], 0
        for _ in self._flights:
            if replies.startswith(OK, pos):
                pos += len(OK)
            end = replies.index(b"\r\n", pos)
            lives.append(replies[pos:end])
            pos = end + 2
        if replies[pos] != _STAR:
            error = replies.splitlines(True)[-1]
            for flight in self._flights.values():
                flight.shelf.land(flight, error, 0.0)
            session.take(error)  # without a link every line asked for gets one
            return
        missing = dict.fromkeys(
            member for member, reply in zip(self._members, self._replies, strict=True) if reply is None
        )
        fetched = dict(
            zip(missing, split_replies(replies, replies.index(b"\n", pos) + 1, len(missing)), strict=True)
        )
        kept = _kept(session, self._drops, self._members, self._replies)
        for (member, flight), line in zip(self._flights.items(), lives, strict=True):
            reply = fetched[member]
            milliseconds = int(line[1:]) if line.startswith(b":") else None
            if reply == b"_\r\n" and milliseconds != MISSING:
                milliseconds = None  # not a string: GET would say WRONGTYPE
            flight.shelf.land(flight, reply, lifetime(milliseconds))
        if not kept:
            session.home.submit(session, 1, session.real(1, self._data))
            return
        if session.protocol != 3:
            fetched = {member: downgrade(reply, Shape.PLAIN) for member, reply in fetched.items()}
        taken = zip(self._members, self._replies, strict=True)
        whole = b"".join([fetched[member] if reply is None else reply for member, reply in taken])
        session.take(b"*%d\r\n%b" % (len(self._members), whole))

    def cut(self) -> None:
        """Ask again: nothing has been passed on."""
        for flight in self._flights.values():
            flight.cut()
        session = self._session
        session.home.submit(session, 1, session.real(1, self._data))
