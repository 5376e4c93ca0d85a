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

from proxy.events import fields, without_arguments
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

    waiting: bool
    """Whether Redis owes the answer to a heartbeat; set by the link."""

    def vouch(self, now: float) -> bool:
        """Whether what is kept may be served now."""

    def forget(self) -> None:
        """Drop everything that an earlier connection has told of."""

    def clear(self) -> int:
        """Drop everything; how many entries that were."""

    def link_up(self, mode: Mode, protocol: int = 3) -> None:
        """Hear that Redis, or the bus, tells of changes from now on; replies come in a protocol."""

    def link_lost(self) -> None:
        """Hear that Redis tells of nothing any more. Called before anybody else hears of the loss."""

    def pushed(self, frame: bytes) -> None:
        """Take a push, in its place among the replies."""

    def invalidate(self, keys: list[bytes]) -> None:
        """Take an invalidation of some keys, given as the bulk strings of the push."""


class Tracking:
    """Has Redis track what a shared link reads."""

    def __init__(
        self,
        link: SharedLink,
        keeper: Keeper,
        ladder: tuple[Mode, ...],
        heartbeat: float,
        prefix: bytes,
        away_after: float = 0.0,
        on_settled: Callable[[], object] = list,
    ) -> None:
        self.keeper = keeper
        self.mode = Mode.OFF
        """What is in effect on the present connection."""
        self.reason = "not connected yet"
        """Why it is that mode and none higher on the ladder."""
        self.settled = asyncio.Event()
        """Set as soon as it is known for the first time what is in effect."""
        self.latest: Mode | None = None
        """What was in effect on the latest connection of which that is known; None: on none yet."""
        self._link = link
        self._ladder = ladder
        self._on_settled = on_settled
        self._heartbeat = heartbeat
        self._away_after = away_after
        self.prefix = prefix
        """What all keys begin with that are read over the link."""
        self._asking = False
        self._alive = 0.0
        """When Redis was last asked, over this link, what it has answered since (monotonic seconds)."""
        self._alarm: asyncio.TimerHandle | None = None
        self._said = ""
        self._watched = b""
        self._seen: Callable[[], object] | None = None

    def begin(self, wire: Wire) -> tuple[Collector, int, bytes] | None:
        """What is to be sent first on a new connection; None if it cannot be tracked."""
        self.keeper.forget()  # before anything is asked over it: a reply may be newer than what is kept
        self.keeper.heard = self._alive = time.monotonic()
        self._ask_no_more()
        if wire.refusal:
            self._settle(Mode.OFF, "the link is not authenticated")
        elif wire.protocol != 3:
            why = f"the server does not speak RESP3 ({wire.no_resp3})"
            if Mode.BUS in self._ladder:
                self._rely_on_bus(why, wire.protocol)
            else:
                self._settle(Mode.OFF, why)
        else:
            return self._probe(wire, 0, [])
        return None

    def lost(self) -> None:
        """Empty the shelf, or have it go stale."""
        self._ask_no_more()
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
        idle = self.mode is Mode.OFF or (self.mode is Mode.BUS and not self._away_after)
        if not idle and not self._asking and now - self._alive >= self._heartbeat:
            self._ask()

    def _ask(self) -> None:
        asked = time.monotonic()
        self._asking = self.keeper.waiting = True
        if self._away_after:
            ahead = max(0.0, self._alive + self._away_after - asked)
            self._alarm = asyncio.get_running_loop().call_later(ahead, self._link.fall_silent)

        def answered() -> None:
            if self.mode is Mode.OFF:
                return
            self._ask_no_more()
            self._alive = asked
            self._link.connector.tally.round_trips.observe(time.monotonic() - asked)
            if self.mode is not Mode.BUS:
                self.keeper.heard = asked
            if self._away_after and time.monotonic() - asked >= self._away_after:
                self._ask()  # too long ago to vouch for anything now
            else:
                self._link.speak()

        self._link.ask(Ping(answered), 1, PING)

    def _ask_no_more(self) -> None:
        self._asking = self.keeper.waiting = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def fence(self, then: Callable[[], None]) -> None:
        """Call a function once every invalidation has been seen of what Redis has done up to now."""
        if self.mode is Mode.OFF or self._link.silent:
            self.keeper.clear()  # it may be stale, and nobody tells what has changed
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
            self._rely_on_bus("; ".join(refusals) or "switched off", wire.protocol)
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
            text = _verdict(refused)
            following = self._probe(wire, rung + 1, [*refusals, f"{mode.value} refused: {text}"])
            if following is not None:
                caller, n, request = following
                self._link.submit(caller, n, request)

        requests = mode.requests(self.prefix)
        return _Probe(answered, len(requests)), len(requests), b"".join(requests)

    def _rely_on_bus(self, reason: str, protocol: int) -> None:
        self._settle(Mode.BUS, reason)
        self.keeper.heard = 0.0  # it is the bus that is to be heard
        self.keeper.link_up(Mode.BUS, protocol)

    def _settle(self, mode: Mode, reason: str) -> None:
        self.mode = self.latest = mode
        self.reason = reason
        said = f"{mode.label} ({reason})"
        if said != self._said:
            level = logging.INFO if mode in (Mode.OPTIN, Mode.DEFAULT) else logging.WARNING
            if not self._said and mode is Mode.OPTIN:
                level = logging.DEBUG  # as expected, and the banner says it
            consequence = ": nothing is served from memory" if mode is Mode.OFF else ""
            if mode is Mode.BUS:
                consequence = (
                    ": Panniers tell each other of writes; what is written past them is not seen for up to "
                    "l1_ttl_untracked"
                )
            key = self._link.key
            about = fields("tracking", mode=mode.label, reason=reason, database=key.database, space=key.space)
            log.log(level, "tracking %s%s", said, consequence, extra=about)
        self._said = said
        self.settled.set()
        self._on_settled()


def _verdict(line: bytes) -> str:
    """A refusal; what is no error is somebody else's reply, and not shown."""
    text = line[1:].decode("utf-8", "replace") if line.startswith(b"-") else "no answer to it"
    return without_arguments(text)


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
