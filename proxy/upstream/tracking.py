"""Keeping a shelf true: the tracked side of a shared link.

The link asks Redis for CLIENT TRACKING as the first thing on each connection, down the ladder until a mode is
granted; tells the *keeper* of the shelf when tracking begins and ends, and hands it every push in its place
among the replies. A silent link is asked for a sign of life.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from proxy.resp.tracking import INVALIDATE, Mode
from proxy.upstream.caller import PING, Collector, Ping

if TYPE_CHECKING:
    from proxy.upstream.shared import SharedLink
    from proxy.upstream.wire import Wire

log = logging.getLogger("pannier.tracking")


class Keeper(Protocol):
    """Who keeps what was read over a link, for as long as Redis tells of changes."""

    heard: float
    """When Redis was last asked what it has answered since (monotonic seconds); set by the link.

    Whatever changed before that moment has been told.
    """

    def link_up(self, mode: Mode) -> None:
        """Hear that Redis tells of changes from now on."""

    def link_lost(self) -> None:
        """Hear that Redis tells of nothing any more. Called before anybody else hears of the loss."""

    def pushed(self, frame: bytes) -> None:
        """Take a push, in its place among the replies."""

    def invalidate(self, keys: list[bytes]) -> None:
        """Take an invalidation of some keys, given as the bulk strings of the push."""


class Tracking:
    """Has Redis track what a shared link reads."""

    def __init__(
        self, link: SharedLink, keeper: Keeper, ladder: tuple[Mode, ...], heartbeat: float, prefix: bytes
    ) -> None:
        self.keeper = keeper
        self.mode = Mode.OFF
        """What is in effect on the present connection."""
        self.reason = "not connected yet"
        """Why it is that mode and none higher on the ladder."""
        self.settled = asyncio.Event()
        """Set as soon as it is known for the first time what is in effect."""
        self._link = link
        self._ladder = ladder
        self._heartbeat = heartbeat
        self.prefix = prefix
        """What all keys begin with that are read over the link."""
        self._asking = False
        self._said = ""
        self._watched = b""
        self._seen: Callable[[], object] | None = None

    def begin(self, wire: Wire) -> tuple[Collector, int, bytes] | None:
        """What is to be sent first on a new connection; None if it cannot be tracked."""
        self.keeper.heard = time.monotonic()
        self._asking = False
        if wire.refusal:
            self._settle(Mode.OFF, "the link is not authenticated")
        elif wire.protocol != 3:
            self._settle(Mode.OFF, f"the server does not speak RESP3 ({wire.no_resp3})")
        else:
            return self._probe(wire, 0, [])
        return None

    def lost(self) -> None:
        """Empty the shelf."""
        self.mode = Mode.OFF
        self.reason = "not connected"
        self.keeper.link_lost()

    def pushed(self, frame: bytes) -> None:
        """Take a push, in its place among the replies."""
        self.keeper.pushed(frame)
        if self._seen is not None and self._watched in frame:
            self._seen()

    def invalidate(self, key: bytes) -> None:
        """Take an invalidation of one key, given as a bulk string."""
        self.keeper.invalidate([key])
        if self._seen is not None and self._watched in key:
            self._seen()

    def watch(self, key: bytes, seen: Callable[[], object] | None) -> None:
        """Have a function called when a push names `key`; None: no more."""
        self._watched, self._seen = key, seen

    def tick(self, now: float) -> None:
        """Ask for a sign of life now and then.

        Other replies do not count: they may have been long on their way, and what was told since with them.
        """
        if (
            self.mode not in (Mode.OFF, Mode.BUS)
            and not self._asking
            and now - self.keeper.heard >= self._heartbeat
        ):
            asked = time.monotonic()
            self._asking = True

            def answered() -> None:
                self._asking = False
                if self.mode is not Mode.OFF:
                    self.keeper.heard = asked

            self._link.submit(Ping(answered), 1, PING)

    def fence(self, then: Callable[[], None]) -> None:
        """Call a function once every invalidation has been seen of what Redis has done up to now."""
        if self.mode is Mode.OFF:
            then()
        elif self.mode is Mode.BUS:
            self.keeper.pushed(INVALIDATE + b"_\r\n")  # nobody tells: it may have been any key
            then()
        elif self.mode is not Mode.BCAST:
            self._link.submit(Ping(then), 1, PING)
        else:
            # Broadcasts leave at the end of Redis' loop turn, after a reply of that turn.
            self._link.submit(Ping(lambda: self._link.submit(Ping(then), 1, PING)), 1, PING)

    def _probe(self, wire: Wire, rung: int, refusals: list[str]) -> tuple[Collector, int, bytes] | None:
        if rung == len(self._ladder):
            self._settle(Mode.OFF, "; ".join(refusals) or "switched off")
            return None
        mode = self._ladder[rung]
        if mode is Mode.BUS:
            self._settle(mode, "; ".join(refusals) or "switched off")
            self.keeper.heard = 0.0  # it is the bus that is to be heard
            self.keeper.link_up(mode)
            return None

        def answered(replies: bytes) -> None:
            if self._link.wire is not wire:
                return
            verdicts = replies.split(b"\r\n")[1:-1]
            refused = next((line for line in verdicts if line != b"+OK"), None)
            if refused is None:
                self._settle(mode, "; ".join(refusals) or "granted by the server")
                self.keeper.link_up(mode)
                return
            text = refused[1:].decode("utf-8", "replace")
            following = self._probe(wire, rung + 1, [*refusals, f"{mode.value} refused: {text}"])
            if following is not None:
                caller, n, request = following
                self._link.submit(caller, n, request)

        requests = mode.requests(self.prefix)
        return _Probe(answered, len(requests)), len(requests), b"".join(requests)

    def _settle(self, mode: Mode, reason: str) -> None:
        self.mode, self.reason = mode, reason
        said = f"{mode.label} ({reason})"
        if said != self._said:
            level = logging.INFO if mode in (Mode.OPTIN, Mode.DEFAULT) else logging.WARNING
            if not self._said and mode is Mode.OPTIN:
                level = logging.DEBUG  # as expected, and the banner says it
            consequence = ": nothing is served from memory" if mode is Mode.OFF else ""
            if mode is Mode.BUS:
                consequence = ": writes that pass through no Pannier are not seen for up to l1_ttl_untracked"
            log.log(level, "tracking %s%s", said, consequence)
        self._said = said
        self.settled.set()


class _Probe(Collector):
    """A CLIENT TRACKING on its way."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[bytes], None], n: int) -> None:
        super().__init__(n)
        self._then = then

    def finish(self, replies: bytes) -> None:
        """Take Redis' verdict."""
        self._then(replies)

    def cut(self) -> None:
        """Nothing: the next connection is asked anew."""


Settle = Callable[[Sequence[int]], object]
"""Takes the keys of a command whose reply has come, before that reply goes downstream."""
