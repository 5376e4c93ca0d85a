"""Verifying: a share of the reads answered from memory is read from Redis as well, and compared.

What differs is looked at once more when the time is over within which Redis' word of a change may be late: if
it still stands in memory then, it is stale. That is logged with its rule, and dropped.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from proxy.resp.downgrade import downgrade
from proxy.tier.policy import Ruling, Serve
from proxy.tier.rules import Read, key_name, marks
from proxy.upstream.caller import Collector

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Tier

log = logging.getLogger("pannier.verify")

_MOST = 64
"""Hits of one chunk that are verified."""
_WITHOUT_ORDER = frozenset({b"SMEMBERS", b"HGETALL", b"HKEYS", b"HVALS", b"SINTER", b"SUNION", b"SDIFF"})
"""Reads whose reply Redis may give in another order at any time."""


class Verifier:
    """Verifies a `share` of the hits; demotes a rule to observe after `demote` mismatches (0: never).

    `lag`: seconds by which word of a change may be late.
    """

    def __init__(self, tier: Tier, share: float, demote: int, lag: float) -> None:
        self.verified = 0
        """Hits compared."""
        self.mismatches = 0
        """Of these, what was stale."""
        self._tier = tier
        self._share = share
        self._demote = demote
        self._lag = lag

    def sample(self, session: Session, parts: list[bytes]) -> None:
        """Verify some of the hits that have just been logged."""
        wanted = self._share * session.table.stands_for * len(parts)
        n = min(int(wanted) + (random.random() < wanted % 1), len(parts), _MOST)
        for part in random.sample(parts, n) if n else ():
            reply = session.find(part)
            read = session.shelf.rules.read(part) if reply is not None else None
            if reply is not None and read is not None:
                check = _Check(self, session.shelf, read, session.protocol, reply)
                session.home.submit(check, 1, read.request)

    def compare(self, check: _Check, answer: bytes) -> None:
        """Take Redis' answer."""
        ruling = check.shelf.judge(check.read)
        self.verified += 1
        ruling.verified += 1
        if check.protocol != 3 and check.read.shape is not None:
            answer = downgrade(answer, check.read.shape)
        if not _same(check.read, check.reply, answer):
            asyncio.get_running_loop().call_later(self._lag, self._convict, check, ruling)

    def _convict(self, check: _Check, ruling: Ruling) -> None:
        shelf, read = check.shelf, check.read
        if not check.stands:
            return  # word of the change has come, or its time was over
        self.mismatches += 1
        ruling.mismatches += 1
        shelf.drop(marks(read.keys))
        name = self._tier.policy.label(key_name(read.keys[0])[len(shelf.rules.prefix) :])
        rule = f"rule {ruling.number} ({ruling.rule.shown})" if ruling.number else "no rule"
        log.error(
            "a stale entry of class %s was in memory for more than %g s (%s, tracking %s): dropped",
            name, self._lag, rule, shelf.mode.label,
        )  # fmt: skip
        if self._demote and ruling.mismatches >= self._demote and ruling.serve is Serve.CACHE:
            self._tier.demote(ruling)
            log.error("%s: only observed from now on, after %d stale entries", rule, ruling.mismatches)


class _Check(Collector):
    """A read whose answer is compared with what memory holds."""

    __slots__ = ("_verifier", "protocol", "read", "reply", "shelf")

    def __init__(self, verifier: Verifier, shelf: Shelf, read: Read, protocol: int, reply: bytes) -> None:
        super().__init__(1)
        self._verifier = verifier
        self.shelf = shelf
        self.read = read
        self.protocol = protocol
        self.reply = reply

    @property
    def stands(self) -> bool:
        """Whether memory still holds what it held."""
        return self.shelf.table(self.protocol).find(self.read.part) is self.reply

    def finish(self, replies: bytes) -> None:
        """Compare, unless it has been dropped meanwhile or Redis could not answer."""
        if self.stands and not replies.startswith(b"-"):
            self._verifier.compare(self, replies)

    def cut(self) -> None:
        """Nothing: nobody waits for it."""


def _same(read: Read, one: bytes, other: bytes) -> bool:
    if one == other:
        return True
    name = read.part.split(b"\r\n", 3)[2].upper()
    return name in _WITHOUT_ORDER and sorted(one.split(b"\r\n")) == sorted(other.split(b"\r\n"))
