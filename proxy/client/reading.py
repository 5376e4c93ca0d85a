"""Reads that the tier may answer: what to do where its table does not hold all that a client asks for.

A client is answered from memory only while nothing of its own is pending: what memory holds is the state at
this place in the stream of the tracked link, and what is pending belongs to a later one. So a pipeline of
which a part has to be fetched (`Mosaic`) is put together when the fetch is done, from entries that have kept
their value all the while; if one has not, all of it is read from Redis instead. Nothing the client sends
behind it is taken before that, so reading twice is safe.
"""

from __future__ import annotations

from random import randrange
from time import monotonic
from typing import TYPE_CHECKING

from proxy.client import hits, mget, refilling
from proxy.client.whole import ForClient, Whole
from proxy.resp.commands import Command
from proxy.resp.downgrade import Shape, lower_nulls
from proxy.resp.patterns import match_mget
from proxy.resp.replies import split_replies
from proxy.tier.rules import CACHEABLE, Read, Touch

if TYPE_CHECKING:
    from proxy.client.session import Session

_MANY_KEYS = 6
"""Keys of an MGET that the patterns of runs do not take: it is dealt with by itself."""
_MOST_FILLS = 256
"""Fetches begun for one chunk."""
_FEW_HITS = 4
"""A pipeline of which less than one in so many was found has been looked up in vain, if memory is full."""
_STRIKES = 6
_SKIPPED, _MOST_SKIPPED = 3, 63
_MOST_READS_SKIPPED = 31
"""See `_strike`. Of reads fewer are skipped: if others are read from now on, that has to come to light."""
_WINDOW = 16384
"""Bytes of a buffer that are looked up at once: where other commands stand between, it is done again for
each."""
_STAR = 0x2A


def ask(session: Session, data: bytes, parts: list[bytes]) -> int:
    """Deal with a chunk of which the table does not hold all; how many of its bytes have been dealt with.

    `parts` is the chunk split at its stars.
    """
    if len(parts) == 1:
        return ask_one(session, data, parts[0])
    if mget.may_be(parts[0]) and mget.answer_all(session, data, parts[0]):
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
        mget.find_members(session, parts, replies)
        if replies[0] is None and (keys := mget.keys_of(parts[0])) is not None and len(keys) >= _MANY_KEYS:
            return len(parts[0]) + 1 if mget.take_keys(session, b"*" + parts[0], keys) else 0
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
    if session.pending or buf[pos] != _STAR or tier is None or tier.loose or not hits.vouched(session):
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
        return hits.vouched(session) and mget.take(session, frame, part)
    if command.name not in CACHEABLE:
        return False
    if not hits.vouched(session):
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
    _count(session, parts, replies, len(parts), mixed)


def _count(
    session: Session, parts: list[bytes], replies: list[bytes | None], found: int, mixed: bool
) -> None:
    """Count those of a pipeline that were found."""
    if mixed:
        mget.count_members(session, parts, replies)
    else:
        hits.count(session, parts, found, 0.0, replies)


def _is_read(session: Session, part: bytes) -> bool:
    """Whether a piece between two stars is one plain read, and not a part of something longer."""
    plain = session.clients.dispatcher.reads.wholes[-1][1](b"*" + part) is not None
    return plain or mget.keys_of(part) is not None


def _one(session: Session, data: bytes, part: bytes) -> int:
    """Deal with a single request that the table does not hold."""
    shelf = session.shelf
    if mget.may_be(part):
        return len(data) if mget.take(session, data, part) else 0
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


def _strike(session: Session, n: int, most: int = _MOST_SKIPPED) -> None:
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
        session.skip_next = min(2 * session.skip_next + 1, most)


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
    n, found = len(parts), len(parts) - len(missing)
    admitted = session.shelf.admitted(missing)
    account.misses += len(missing)
    if found * 2 >= n or (found and session.home.refusing):
        _count(session, parts, replies, found, mixed)
        account.pieced += found
        session.hits_before += found // 2
        session.commands -= found
        Mosaic(session, data, parts, replies, len(missing), request)
    else:
        account.passed += found
        session.commands += n
        session.expect(n)
        _send(session, parts, data)
    if admitted:
        _fill(session, list(admitted))
    if found * _FEW_HITS < n and len(admitted) * 2 < len(missing) and session.shelf.budget.tight:
        _strike(session, n, _MOST_READS_SKIPPED)


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
        if not hits.kept(session, self._drops, self._parts, self._replies):
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
