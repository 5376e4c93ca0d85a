"""Commands that took long, as the sidecar saw it: SIDECAR SLOWLOG, like Redis' SLOWLOG.

The time runs from taking a command to its last reply, Redis and the way there included. What memory answers
is not timed: it takes microseconds. On a shared link, each entry of the FIFO has the moment of its turn of
the loop, which is compared at the last reply (`upstream.watch`); a closer look is had only at what was slow.
On a link of the client's own, each command is timed that neither may block nor stands in a stream of replies
that nobody counts. What is answered here is timed, but for SIDECAR LEASE, which waits on purpose.

An entry has the command's name and its keys, shown as `key_privacy` says; never values.

Where Redis or the machine is overloaded, everything is slow, and looking closer at all of it would make that
worse. So only the first few in each round of the register's clock are listed; until the next one nothing is
compared.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from proxy.client.dispatch import path_of
from proxy.client.whole import ForClient
from proxy.resp import encode
from proxy.resp.commands import Command
from proxy.tier.flights import Flight
from proxy.tier.rules import key_name
from proxy.upstream.caller import Caller, itself
from proxy.upstream.link import Identity

if TYPE_CHECKING:
    from proxy.client.dispatch import Dispatcher
    from proxy.client.session import Session
    from proxy.client.spaces import Space
    from proxy.privacy import Privacy
    from proxy.upstream.watch import Watch

FEW = 10
"""Entries that are listed unless told."""
_MOST_KEYS = 8
_LONGEST_KEY = 512
"""Bytes of a key that are remembered."""
MOST_A_ROUND = 16
"""Commands that are listed in each quarter of a second."""
_UNKNOWN = "(unknown)"
"""What is shown of a command that is none: its name might be anything."""


@dataclass(frozen=True, slots=True)
class Slow:
    """A command, or a pipeline by its first one, that took long."""

    number: int
    at: float
    """When it was answered (Unix seconds)."""
    seconds: float
    path: str
    """How it was answered: miss, write, other, pinned, local."""
    command: str
    keys: tuple[bytes, ...]
    """As the client knows them; the first few."""
    commands: int
    """How many were answered together."""
    address: str
    name: bytes
    """What the client calls itself."""
    space: Space
    identity: Identity
    database: int


class SlowLog:
    """The last few slow commands. `after`: seconds from which one is slow; 0: none is. `clock`: Unix time."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        watch: Watch,
        after: float,
        most: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.after = after or math.inf
        self._watch = watch
        watch.slow = self.shared
        self._left = 0
        """How many may still be listed in this round."""
        self.refill()
        self.entries: deque[Slow] = deque(maxlen=most)
        """The latest last."""
        self._dispatcher = dispatcher
        self._clock = clock
        self._next = 0

    def refill(self) -> None:
        """Begin a new round."""
        self._left = MOST_A_ROUND
        self._watch.after = self.after

    # --- who hears of slow commands

    def shared(self, caller: Caller, requests: bytes, came: float) -> None:
        """Hear of requests on a shared link that took long (`upstream.watch.Watch.slow`)."""
        asks = itself(caller)
        session = _session_of(asks)
        if session is None:
            return  # a question of the sidecar's own
        real = True
        if isinstance(asks, Flight):
            requests, real = b"*" + asks.read.part, False
        elif isinstance(asks, ForClient):
            requests, real = asks.asked(requests)
        dispatcher = self._dispatcher
        first = dispatcher.parse(requests)
        if first:
            path = path_of(dispatcher.find(first), isinstance(asks, Flight))
            n = dispatcher.patterns.count(requests) or len(dispatcher.repeatable(requests))
            self._note(session, path, first, real, came, n)

    def pinned(self, session: Session, arguments: list[bytes], came: float) -> None:
        """Hear of a command just answered on a link of the client's own; `arguments` as Redis got them."""
        if monotonic() - came >= self.after and self._left:
            self._note(session, "pinned", arguments, True, came)

    def local(self, session: Session, arguments: list[bytes], came: float) -> None:
        """Hear of a command just answered here."""
        if monotonic() - came >= self.after and self._left and not _waits(arguments):
            self._note(session, "local", arguments, False, came)

    def _note(
        self, session: Session, path: str, arguments: list[bytes], real: bool, came: float, commands: int = 1
    ) -> None:
        command = self._dispatcher.find(arguments)
        own = arguments[0].lower() == b"sidecar"
        name = command.name if command is not None else "sidecar" if own else ""
        if own and len(arguments) > 1 and arguments[1].isalpha():
            name += "|" + arguments[1].decode().lower()
        self.entries.append(
            Slow(
                self._next, self._clock(), monotonic() - came, path,
                name.replace("|", " ").upper() or _UNKNOWN,
                self._keys(session, command, arguments, real), commands,
                session.address, session.name, session.space, session.identity, session.database,
            )
        )  # fmt: skip
        self._next += 1
        self._left -= 1
        if not self._left:
            self._watch.after = math.inf

    def _keys(
        self, session: Session, command: Command | None, arguments: list[bytes], real: bool
    ) -> tuple[bytes, ...]:
        """The keys that a command names; `real`: they are as Redis knows them."""
        frames = session.space.rules.keys(command, arguments) if command is not None else None
        names = [key_name(frame) for frame in (frames or ())[:_MOST_KEYS]]
        prefix = session.space.prefix if real else b""
        return tuple([name.removeprefix(prefix)[:_LONGEST_KEY] for name in names])

    # --- who asks for them

    def seen(self, session: Session) -> list[Slow]:
        """What a session may know of, the latest first: what its own user of Redis did, in its namespace if
        it is in one."""
        space = session.space
        bare = space.namespace is not None
        return [
            each
            for each in reversed(self.entries)
            if each.identity == session.identity and (not bare or each.space is space)
        ]

    def reset(self, session: Session) -> None:
        """Forget that."""
        gone = {each.number for each in self.seen(session)}
        kept = [each for each in self.entries if each.number not in gone]
        self.entries.clear()
        self.entries.extend(kept)


def _session_of(caller: Caller) -> Session | None:
    """Whose requests they are; None: no client's."""
    from proxy.client.session import Session  # it needs SIDECAR, which needs this

    if isinstance(caller, ForClient):
        return caller.session
    asks = caller.waiters if isinstance(caller, Flight) else [caller]
    return next((each for each in asks if isinstance(each, Session)), None)


def _waits(arguments: list[bytes]) -> bool:
    """Whether a command of the sidecar's own waits on purpose."""
    return [word.lower() for word in arguments[:2]] == [b"sidecar", b"lease"]


# --- the command


def answer(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR SLOWLOG GET [n], LEN, RESET."""
    slowlog, word = session.clients.slowlog, arguments[0].upper()
    if word == b"GET":
        n = _number(arguments[1:])
        if n is not None:
            privacy, bare = session.clients.privacy, session.space.namespace is not None
            lines = [_fields(each, privacy, bare) for each in slowlog.seen(session)[:n]]
            return encode.array([encode.value(line, session.protocol) for line in lines])
    elif len(arguments) == 1 and word == b"LEN":
        return encode.integer(len(slowlog.seen(session)))
    elif len(arguments) == 1 and word == b"RESET":
        slowlog.reset(session)
        return encode.OK
    return encode.error("ERR SIDECAR SLOWLOG takes GET [<n>], n from 1 or -1 for all, LEN or RESET")


def _number(arguments: list[bytes]) -> int | None:
    """How many entries are asked for; None: that is no number."""
    if not arguments:
        return FEW
    given = arguments[0]
    if given == b"-1":
        return 1 << 31
    return int(given) if given.isdigit() and len(given) < 10 and int(given) else None


def _fields(slow: Slow, privacy: Privacy, bare: bool) -> dict[str, object]:
    shown = [text for key in slow.keys if (text := privacy.shown(key))]
    fields: dict[str, object] = {
        "id": slow.number,
        "time": int(slow.at),
        "duration_us": round(slow.seconds * 1e6),
        "path": slow.path,
        "command": slow.command,
        "keys": shown,
        "commands": slow.commands,
        "address": slow.address,
        "name": slow.name,
        "db": slow.database,
    }
    if not bare:
        fields["namespace"] = slow.space.name
    return fields
