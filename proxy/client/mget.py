"""MGET: served by its members, which are kept as if GET had asked for them."""

from __future__ import annotations

from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING

from proxy.client import hits
from proxy.client.whole import ForClient
from proxy.resp.downgrade import Shape, downgrade
from proxy.resp.encode import OK
from proxy.resp.patterns import find_bulks, match_mget
from proxy.resp.replies import split_replies
from proxy.tier.flights import MISSING, Flight, lifetime
from proxy.tier.rules import GET, lifetimes

if TYPE_CHECKING:
    from proxy.client.session import Session

_NEXT = b"\r\n*" + GET + b"$"
_AT_ONCE = 128
"""Keys of several MGETs that are looked up at once: more leave the CPU's caches."""
_STAR = 0x2A


def may_be(part: bytes) -> bool:
    """Whether a name stands where MGET's would."""
    name = part[5:16]
    return b"\nMG" in name or b"\nmg" in name


def keys_of(part: bytes) -> list[bytes] | None:
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

    A piece that is in the table is one whole key, as it begins with its length; if all are, and are as many
    as there should be, the cuts were right. That is a third of what stepping over the keys costs.
    """
    head = match_mget(part)
    if head is None:
        return None
    members = _cut(part[head.end() :])
    n = len(members)
    if n != int(head[1]) - 1:
        return None
    replies = _look_up(session, members)
    return None if replies is None else (members, b"*%d\r\n%b" % (n, b"".join(replies)))


def _cut(keys: bytes) -> list[bytes]:
    """Cut the keys of MGETs where a key's length may begin, and at stars: members, unless a key has these."""
    return (GET + keys.replace(b"\r\n$", _NEXT)).split(b"*")


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


def answer_all(session: Session, data: bytes, part: bytes) -> bool:
    """Answer a chunk of nothing but MGETs of as many keys as the first, `part`, if all are in memory.

    They are cut where they begin, and as one MGET is then, some at once: all together leave the CPU's caches.
    """
    head = match_mget(part)
    if head is None:
        return False
    n = int(head[1]) - 1
    if not n:
        return False
    bodies = data.split(b"*" + head[0])
    del bodies[0]
    begin = b"*%d\r\n" % n
    alike = {(b"$", n - 1)}
    # The first by itself: if it is not there, it is fetched, and then all behind it are looked up again.
    first, size = 0, 1
    members: list[bytes] = []
    answers: list[bytes] = []
    while first < len(bodies):
        some = bodies[first : first + size]
        first += size
        size = max(1, _AT_ONCE // n)
        keys = _cut(b"".join(some))
        total = len(keys)
        if total != n * len(some) or {(body[:1], body.count(b"\r\n$")) for body in some} != alike:
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


def find_members(session: Session, parts: list[bytes], replies: list[bytes | None]) -> None:
    """Fill in the replies to those MGETs of a pipeline whose members are all in memory."""
    for place, part in enumerate(parts):
        if replies[place] is None and (found := _hits_of(session, part)) is not None:
            replies[place] = found[1]


def count_members(session: Session, parts: list[bytes], replies: list[bytes | None]) -> None:
    """Count reads that were found, MGETs by their members."""
    found: list[bytes] = []
    n = 0
    for part, reply in zip(parts, replies, strict=True):
        if reply is not None:
            n += 1
            keys = keys_of(part)
            found += [part] if keys is None else [GET + key for key in keys]
    hits.count(session, found, len(found))
    session.commands += n - len(found)


def take(session: Session, data: bytes, part: bytes) -> bool:
    """Deal with an MGET; False: it is to be sent like any other command."""
    found = _hits_of(session, part)
    if found is None:
        keys = keys_of(part)
        return keys is not None and take_keys(session, data, keys)
    session.table.asked = monotonic()
    _answer_members(session, *found)
    return True


def _answer_members(session: Session, members: list[bytes], whole: bytes, n: int = 1) -> None:
    """Answer `n` MGETs."""
    hits.count(session, members, len(members))
    session.write(whole)
    session.commands += n - len(members)


def take_keys(session: Session, data: bytes, keys: list[bytes]) -> bool:
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
        hits.count(session, members, found, 0.0, replies)
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
        kept = hits.kept(session, self._drops, self._members, self._replies)
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
