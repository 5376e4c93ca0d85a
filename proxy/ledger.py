"""Whether anything was published while nobody listened: Redis counts every PUBLISH (INFO commandstats).

What has been heard is counted here. On one connection nothing gets lost in between, however long Redis is
silent; so between two moments at which both counts are known exactly, what Redis has counted more was missed,
or was on channels of others. If it has counted no more, nothing was missed, whoever might have published: a
peer that has started or ended meanwhile, an application. In doubt, something was.

To know both counts exactly, Redis is asked for its own, and then for a sign of life on the connection that
listens. If not a single message came from before the one until after the other, they are of one moment.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from proxy.client.keyspace import ask
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.upstream.shared import SharedLink

_CALLS = re.compile(rb"^cmdstat_publish:calls=(\d+)", re.M)
_STATS = encode.request("INFO", "commandstats")
_RUN = re.compile(rb"^run_id:(\w+)", re.M)
_COMMANDS = re.compile(rb"^total_commands_processed:(\d+)", re.M)


class Published(NamedTuple):
    """What a server has counted."""

    server: bytes
    """Its run id, anew with each start."""
    calls: int
    """Of PUBLISH."""
    commands: int
    """Of all commands: fewer than before if somebody has reset the statistics."""


Count = Callable[[], Awaitable[Published | None]]
"""Asks Redis; None: it does not tell."""


class Counting:
    """Asks Redis over the shared link that serves; `channel`: one that nobody hears."""

    def __init__(self, link: Callable[[], SharedLink | None], channel: str) -> None:
        self._link = link
        self._channel = channel

    async def count(self) -> Published | None:
        """Redis' counts; None if it does not tell."""
        replies = await self._ask(_STATS, encode.request("INFO", "server"), encode.request("INFO", "stats"))
        if not replies:
            return None
        stats, server, commands = replies
        run, total = _RUN.search(server), _COMMANDS.search(commands)
        if run is None or total is None or b"cmdstat_" not in stats:
            return None
        return Published(run[1], _calls(stats), int(total[1]))

    async def works(self) -> bool:
        """Whether Redis counts a PUBLISH at all, tried with one that nobody hears."""
        replies = await self._ask(_STATS, encode.request("PUBLISH", self._channel, "{}"), _STATS)
        return bool(replies) and _calls(replies[2]) > _calls(replies[0])

    async def _ask(self, *requests: bytes) -> list[bytes]:
        link = self._link()
        if link is None:
            return []
        try:
            return [reply if isinstance(reply, bytes) else b"" for reply in await ask(link, *requests)]
        except UpstreamError:
            return []


def _calls(stats: bytes) -> int:
    found = _CALLS.search(stats)
    return int(found[1]) if found is not None else 0


class Ledger:
    """Compares what was heard with what was published. Its owner asks for the sign of life: see `due`."""

    def __init__(self, count: Count) -> None:
        self.heard = 0
        """Messages on all channels since the start, over all connections."""
        self._count = count
        self._known: tuple[Published, int] | None = None
        """What was published and heard at the latest moment at which both were known."""
        self._asking: asyncio.Future[Published | None] | None = None
        self._answer: Published | None = None
        self._heard_before = 0

    def ask(self) -> None:
        """Begin to find out how matters stand; the connection must be listening."""
        self.drop()
        self._heard_before = self.heard
        self._asking = asyncio.ensure_future(self._count())

    def drop(self) -> None:
        """Forget what is being found out: the connection is lost."""
        if self._asking is not None:
            self._asking.cancel()
        self._asking = self._answer = None

    @property
    def waits(self) -> bool:
        """Whether Redis has been asked and has not answered."""
        return self._asking is not None and not self._asking.done()

    @property
    def due(self) -> bool:
        """Whether to ask for the sign of life now; True once for each `ask` that Redis has answered."""
        if self._asking is None or not self._asking.done():
            return False
        self._answer = self._asking.result()
        self._asking = None
        return True

    def settled(self) -> bool | None:
        """Take the sign of life: whether nothing was missed since it was last known; None: not known now."""
        answer, self._answer = self._answer, None
        if answer is None or self.heard != self._heard_before:
            return None
        before, self._known = self._known, (answer, self.heard)
        if before is None:
            return False
        then, heard = before
        same = then.server == answer.server and answer.commands >= then.commands
        return same and answer.calls - then.calls == self.heard - heard
