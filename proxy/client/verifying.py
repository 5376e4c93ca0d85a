"""Verifying: a share of the reads answered from memory is read from Redis as well, and compared.

What differs is looked at once more when the time is over within which Redis' word of a change may be late: if
it still stands in memory then, it is stale. That is logged with its rule, and dropped.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from proxy.events import fields
from proxy.privacy import Privacy
from proxy.resp.replies import split_replies
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
        self._tier = tier
        self._share = share
        self._demote = demote
        self._lag = lag
        self.privacy = Privacy()
        """What may be shown of keys' names."""

    @property
    def verified(self) -> int:
        """Hits compared."""
        return sum([account.verified for account in self._tier.accounts])

    @property
    def mismatches(self) -> int:
        """Of these, what was stale."""
        return sum([account.mismatches for account in self._tier.accounts])

    def sample(self, session: Session, parts: list[bytes]) -> None:
        """Verify some of the hits that have just been logged."""
        wanted = self._share * session.table.stands_for * len(parts)
        n = min(int(wanted) + (random.random() < wanted % 1), len(parts), _MOST)
        for part in random.sample(parts, n) if n else ():
            reply = session.table.get(part)
            read = session.shelf.rules.read(part) if reply is not None else None
            if reply is not None and read is not None:
                check = _Check(self, session.shelf, read, session.protocol, reply)
                session.home.submit(check, 1, read.request)

    def compare(self, check: _Check, answer: bytes) -> None:
        """Take Redis' answer."""
        ruling = check.shelf.judge(check.read)
        check.shelf.account.verified += 1
        for each in ruling.sources:
            each.verified += 1
        if check.protocol != 3:
            answer = check.shelf.lowered(check.read, answer)
        if not _same(check.read, check.reply, answer):
            asyncio.get_running_loop().call_later(self._lag, self._convict, check, ruling)

    def _convict(self, check: _Check, ruling: Ruling) -> None:
        shelf, read = check.shelf, check.read
        if not check.stands:
            return  # word of the change has come, or its time was over
        shelf.account.mismatches += 1
        shelf.drop(marks(read.keys))
        name = self._class(key_name(read.keys[0])[len(shelf.rules.prefix) :], ruling)
        rules = ", ".join(map(_shown, ruling.sources))
        log.error(
            "a stale entry of class %s was in memory for more than %g s (%s, tracking %s): dropped",
            name, self._lag, rules, shelf.mode.label,
            extra=fields("stale_entry", key_class=name, seconds=self._lag, rule=rules, mode=shelf.mode.label),
        )  # fmt: skip
        for each in ruling.sources:  # which of them is at fault, nobody can tell
            each.mismatches += 1
            if self._demote and each.mismatches >= self._demote and each.serve is Serve.CACHE:
                self._tier.demote(each)
                found = each.mismatches
                log.error(
                    "%s: only observed from now on, after %d stale entries", _shown(each), found,
                    extra=fields("rule_demoted", rule=_shown(each), stale_entries=found),
                )  # fmt: skip

    def _class(self, key: bytes, ruling: Ruling) -> str:
        """What a key's rule calls its class, else the first part of its name, if that may be seen."""
        return self._tier.policy.label(key) if self.privacy.plain else ruling.rule.label or "(not shown)"


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
        """Whether memory still holds what it held, by the same fill, and would answer with it."""
        shelf = self.shelf
        return (
            shelf.vouch(shelf.tier.clock()) and shelf.table(self.protocol).get(self.read.part) is self.reply
        )

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
    return name in _WITHOUT_ORDER and _elements(one, name) == _elements(other, name)


def _elements(reply: bytes, name: bytes) -> list[tuple[bytes, ...]]:
    """What an array, a set or a map holds, sorted: fields with their values."""
    end = reply.index(b"\n") + 1
    n = int(reply[1 : end - 2]) * (2 if reply.startswith(b"%") else 1)
    found = split_replies(reply, end, n)
    step = 2 if name == b"HGETALL" else 1
    return sorted([tuple(found[at : at + step]) for at in range(0, n, step)])


def _shown(ruling: Ruling) -> str:
    return f"rule {ruling.number} ({ruling.rule.shown})" if ruling.number else "no rule"
