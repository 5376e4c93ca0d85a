"""What a client asks for with SIDECAR LEASE, and its waiting for the answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.resp import encode

if TYPE_CHECKING:
    from proxy.client.contest import Contest
    from proxy.client.session import Session

LONGEST = 3_600_000
"""Milliseconds that a lease, or waiting for one, may last."""
_USAGE = "takes <key> <ttl-ms> [WAIT <ms>] [STALE]"


@dataclass(slots=True)
class Wish:
    """What a client has asked for; times in milliseconds."""

    ttl: int
    patience: int
    stale: bool = False


def parse(options: list[bytes]) -> Wish:
    """What LEASE's arguments behind the key mean. Raises ValueError."""
    wish = Wish(_number("a ttl-ms", options[0], 1), -1)
    at = 1
    while at < len(options):
        option = options[at].upper()
        if option == b"STALE":
            wish.stale = True
        elif option == b"WAIT" and at + 1 < len(options):
            at += 1
            wish.patience = _number("WAIT <ms>", options[at], 0)
        else:
            raise ValueError(_USAGE)
        at += 1
    if wish.patience < 0:
        wish.patience = wish.ttl
    return wish


def _number(what: str, word: bytes, least: int) -> int:
    if not word.isdigit() or len(word) > 10 or not least <= int(word) <= LONGEST:
        text = word.decode("utf-8", "replace")
        raise ValueError(f"takes {what} of {least} to {LONGEST} milliseconds, not '{text}'")
    return int(word)


class Waiter:
    """One client that waits, until its `reply` is there."""

    __slots__ = ("_timer", "contest", "reply", "session", "wish")

    def __init__(self, contest: Contest, session: Session, wish: Wish) -> None:
        loop = asyncio.get_running_loop()
        self.contest = contest
        self.session = session
        self.wish = wish
        if session.eof:
            wish.patience = 0
        self.reply: asyncio.Future[bytes] = loop.create_future()
        self._timer = loop.call_later(wish.patience / 1000, self.give_up) if wish.patience else None
        contest.waiters[self] = None
        contest.moved.set()

    def tell(self, reply: bytes) -> None:
        """Answer the client."""
        if not self.reply.done():
            self.reply.set_result(reply)
        self.end()

    def give_up(self) -> None:
        """Wait no more."""
        self.tell(answer(b"WAIT", encode.null(self.session.protocol)))

    def end(self) -> None:
        """Leave the contest."""
        if self._timer is not None:
            self._timer.cancel()
        self.contest.waiters.pop(self, None)
        self.contest.check()

    @property
    def able(self) -> bool:
        """Whether the client can be told to compute."""
        return not (self.reply.done() or self.session.eof)


def answer(word: bytes, item: bytes) -> bytes:
    """The reply to SIDECAR LEASE."""
    return encode.array((encode.bulk(word), item))


def lease_key(key: bytes) -> bytes:
    """The name of a key's lease, as the client would call it (Redis docs, "cluster specification")."""
    begin = key.find(b"{")
    tagged = begin >= 0 and key.find(b"}", begin + 1) > begin + 1
    return b"pannier:lease::" + key if tagged else b"pannier:lease:{%b}" % key
