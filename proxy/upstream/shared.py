"""The shared link: one pipelined connection to Redis that carries the stateless commands of many clients.

Requests go out in one FIFO and replies come back in it, so a reply's place tells whom it belongs to; nothing
is tagged and nothing parsed into objects. An entry of the FIFO is a *run*: `n` requests of one caller, sent
as the one slice of bytes that came from it, answered with `n` replies in few slices, as they arrive.

A `SharedLink` outlives its connections. What `submit` does follows its state, with no test on the way::

    CONNECTING ──up──▶ READY ◀──writable── FULL        submit: hold / send / refuse / send and pause
        │  ▲             │  └──── full ────▶ │
      failed └── lost ───┴───────────────────┘          (the first attempt after a loss holds what comes)
        ▼
      DOWN ──up──▶ READY                                 (later attempts refuse it at once)

While the circuit breaker is open there is no CONNECTING: nothing is held. A link on which Redis owes an
answer for too long is SILENT, up to that answer: where stale entries may be served, as soon as it owes that
to a heartbeat for so long, else once the breaker is open. It refuses what comes, but from those who wait for
replies already, whose order must hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from proxy.events import fields
from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.resp.tracking import Mode
from proxy.upstream.breaker import Breaker
from proxy.upstream.caller import PING, RUN, Caller, Collector, Keys, answer, itself, tapped
from proxy.upstream.givingup import Classifier, Entry, Run, doomed
from proxy.upstream.link import Connector, LinkKey, open_link
from proxy.upstream.pacing import Pacer
from proxy.upstream.tracking import Keeper, Settle, Tracking
from proxy.upstream.wire import Wire

log = logging.getLogger("pannier.upstream")

_HOLD_LIMIT = 16 * 1024 * 1024
"""Bytes of requests held while connecting above which callers are paused."""
_WRITE_HIGH = 4 * 1024 * 1024
"""Bytes waiting to be sent to Redis above which callers are paused."""
_NOT_STALLED = (-1, 0.0)
"""Chunks a connection has received, and since when it has been no more: not looked at yet."""
_PATIENCE = 0.1
"""Seconds for which commands are held at most after a loss, where stale entries may be served."""
_FOR_NOW = ("LOADING", "MASTERDOWN", "BUSY", "ERR max number of clients")
"""How refusals begin that say nothing about who may read."""
_STEADY = 1.0
"""Seconds a connection must last for the next back-off to start afresh."""


class LinkState(enum.Enum):
    """See the picture in the module's docstring."""

    CONNECTING = enum.auto()
    READY = enum.auto()
    FULL = enum.auto()
    SILENT = enum.auto()
    DOWN = enum.auto()
    CLOSED = enum.auto()


Submit = Callable[..., None]


@dataclasses.dataclass(frozen=True, slots=True)
class Care:
    """How a link's shelf, if it has one, is kept true. `heartbeat` is in seconds."""

    keeper: Keeper | None = None
    ladder: tuple[Mode, ...] = ()
    heartbeat: float = 1.0
    settle: Settle = list
    """Takes the keys of a command whose reply has come, before that goes downstream."""
    settle_run: Callable[[bytes], object] = len
    """Takes the requests of a run of which it was not known at sending that its keys might matter."""
    prefix: bytes = b""
    """What all keys begin with that the link reads."""
    away_after: float = 0.0
    """Seconds without an answer after which Redis counts as away, and stale entries are served; 0: never."""
    on_settled: Callable[[], object] = list
    """Called when it is known for a connection how Redis tells of changes."""


class SharedLink:
    """One identity's, database's and protocol's commands on one connection, over reconnections.

    `away`: why nothing is held for the first connection, if Redis is known to be away.
    """

    def __init__(
        self,
        connector: Connector,
        key: LinkKey,
        classifier: Classifier,
        backoff: tuple[float, float],
        care: Care | None = None,
        breaker: Breaker | None = None,
        away: UpstreamError | None = None,
        silent_after: float = math.inf,
    ) -> None:
        self.connector = connector
        self.key = key
        self.users = 0
        """Sessions attached; kept by them."""
        self.published: dict[str, int] = {}
        """Evictions published over it, by channel: each link is a sender of its own, as links are not
        ordered. The bus keeps this, and the next."""
        self.may_publish = True
        """Whether its user may publish, as far as is known."""
        self.reconnects = 0
        self.error: UpstreamError = connector.lost("is not connected yet")
        """Why the link is down, while it is."""
        self.submit: Submit = self._hold
        """Send `n` requests, given as one slice of bytes, for a caller; its replies come by `relay`.

        `keys`: settled at each reply, before it is relayed.
        """
        self.fifo: deque[Entry] = deque()
        care = care or Care()
        self.settle = care.settle
        self.settle_run = care.settle_run
        self.tracking: Tracking | None = None
        if care.keeper is not None:
            self.tracking = Tracking(
                self, care.keeper, care.ladder, care.heartbeat, care.prefix, care.away_after, care.on_settled
            )
        self.wire: Wire | None = None
        self.auth_required = False
        """Whether Redis wanted credentials this link does not have, when it was last connected."""
        self.hello: dict[bytes, Any] = {}
        """Redis' answer to HELLO on the latest connection."""
        self.breaker = breaker or Breaker(0)
        self.refusing = False
        """Whether what is submitted is refused (see SILENT for the exception)."""
        self._was_mute = False
        """Whether it was so at the last tick."""
        self._silent_after = silent_after
        """Seconds for which Redis may owe a reply before it is said not to answer."""
        self._away_after = care.away_after
        self._waiting: set[object] = set()
        """Who waited for replies when the link fell silent."""
        self._full = False
        """Whether Redis does not keep up."""
        self._up_since = 0.0
        self._proving = False
        """Whether a PING is under way that is to close the breaker."""
        self._out: list[bytes] = []
        """Requests of this turn of the loop."""
        self._turn = 0.0
        """When the first of them came (monotonic seconds)."""
        self._loop = asyncio.get_running_loop()
        self._pacer = Pacer(self._loop, self._flush)
        self._classifier = classifier
        self._backoff = backoff
        self._held = 0
        self._paused: set[Caller] = set()
        self._settled = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stalled_since = _NOT_STALLED
        self.state = LinkState.CONNECTING
        if away is not None:
            self.error = away
            self._enter(LinkState.DOWN)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def settled(self) -> None:
        """Wait until the link is ready or known to be down."""
        await self._settled.wait()

    def retry(self) -> None:
        """Connect now, if the link is down: there is reason to think that it may work."""
        if self.state is LinkState.DOWN:
            if not self.breaker.open and not self.serves_stale:
                self._enter(LinkState.CONNECTING)
            self._hurry.set()

    async def close(self) -> None:
        """Drop the connection, answer what is pending, stop reconnecting."""
        self._enter(LinkState.CLOSED)
        self.error = self.connector.lost("was closed by the sidecar")
        self._task.cancel()
        await asyncio.wait([self._task])
        self._pacer.close()
        if self.wire is not None:
            self.wire.drop("was closed by the sidecar")
        self._fail_all()

    def tick(self, now: float, timeout: float) -> None:
        """Break a connection that owes replies and has been silent for `timeout` seconds."""
        if self.wire is None:
            return
        if self.tracking is not None:
            self.tracking.tick(now)
        progress = self._stalled_since[0] != self.wire.chunks
        if self._was_mute and progress:
            self.breaker.answered()
        self._was_mute = self.mute > 0
        if progress and now - self._up_since > timeout:
            self.breaker.answered(steady=True)
        if not self.fifo or progress:
            self._stalled_since = (self.wire.chunks, now)
        elif now - self._stalled_since[1] > timeout:
            why = f"did not answer within {timeout:g} s"
            self.breaker.failed(self.connector.lost(why), silent=True)
            self.wire.drop(why, again=False)

    def prove(self) -> None:
        """Ask Redis something, if it is connected: an answer closes the breaker."""
        if self.wire is not None and self.state is not LinkState.CLOSED and not self._proving:
            self._proving = True
            self.ask(_Proof(self), 1, PING)

    def proved(self, reply: bytes) -> None:
        """Take the answer."""
        self._proving = False
        if self.wire is not None and not reply.startswith(b"-ERR pannier"):
            self.breaker.answered()
            if not self._away_after:
                self.speak()

    @property
    def mute(self) -> float:
        """For how many seconds Redis has owed a reply and sent nothing, if for longer than it may; else 0."""
        if self.wire is None or not self.fifo or self._stalled_since[0] != self.wire.chunks:
            return 0.0
        since = time.monotonic() - self._stalled_since[1]
        return since if since >= self._silent_after else 0.0

    @property
    def silent(self) -> bool:
        """Whether Redis owes the answer to a heartbeat for too long."""
        return self.state is LinkState.SILENT

    @property
    def serves_stale(self) -> bool:
        """Whether Redis is away and what was read over the link may be served all the same."""
        if not (self.refusing and self._away_after and self.tracking is not None):
            return False
        return self.tracking.keeper.vouch(time.monotonic())

    @property
    def refusal(self) -> UpstreamError:
        """What is answered while the link refuses."""
        return self.breaker.explain(self.error)

    def fall_silent(self) -> None:
        """Hear that Redis owes an answer for too long."""
        if self.state in (LinkState.READY, LinkState.FULL):
            seconds = round(self.mute) or self._away_after
            self.error = self.connector.lost(f"has not answered for {seconds:g} s")
            self._say(logging.WARNING, "upstream_silent", _plain(self.error))
            self._waiting = {owner for caller, *_ in self.fifo for owner in caller.owners()}
            self._enter(LinkState.SILENT)

    def speak(self) -> None:
        """Hear that Redis has answered a heartbeat in time, or a probe."""
        if self.state is LinkState.SILENT:
            self._say(logging.INFO, "upstream_answers", f"upstream {self._address} answers again")
            self._waiting = set()
            self._enter(LinkState.FULL if self._full else LinkState.READY)

    def ask(self, caller: Caller, n: int, requests: bytes) -> None:
        """Send requests of the sidecar's own, silent or not, while there is a connection."""
        self._send(caller, n, requests)

    def tap(self, stand_in: Callable[[Caller, bytes], Caller], times: int) -> None:
        """Have a function find those who stand in for who submits next, `times` at most.

        So a few can be timed and all others cost nothing. It ends when the link changes its state.
        """
        if self.state is LinkState.READY:
            self.submit = tapped(self, _SUBMIT[self.state].__get__(self), stand_in, times)

    def skipped(self) -> int:
        """How many bytes of the slice being relayed belong to a string that began in an earlier one."""
        return self.wire.skipped if self.wire is not None else 0

    # --- what submit does, by state

    def _flush(self) -> None:
        """Send what one turn of the loop has brought, in one system call."""
        out, self._out = self._out, []
        if self.wire is not None and out:
            self._pacer.sent(len(out))
            self.wire.send(b"".join(out))

    def _send(self, caller: Caller, n: int, requests: bytes, keys: Keys = None) -> None:
        out = self._out
        if not out:
            self._turn = monotonic()
        self.fifo.append((caller, n, requests, keys, self._turn))
        out.append(requests)
        if len(out) == 1:
            if self._pacer.active:
                self._pacer.arm()
            else:
                self._loop.call_soon(self._flush)

    def _send_full(self, caller: Caller, n: int, requests: bytes, keys: Keys = None) -> None:
        self._send(caller, n, requests, keys)
        self._paused.add(caller)
        caller.hold_back(self)

    def _hold(self, caller: Caller, n: int, requests: bytes, keys: Keys = None) -> None:
        self.fifo.append((caller, n, requests, keys, monotonic()))
        self._held += len(requests)
        if self._held > _HOLD_LIMIT:
            self._paused.add(caller)
            caller.hold_back(self)

    def _refuse(self, caller: Caller, n: int, requests: bytes, keys: Keys = None) -> None:
        self._count_unserved(caller, n)
        answer(caller, n, self.refusal.reply * n)

    def _count_unserved(self, caller: Caller, n: int) -> None:
        """Count commands that get an error; not questions of the sidecar's own."""
        if not isinstance(found := itself(caller), Collector) or found.for_client:
            self.connector.tally.unserved += n

    def _refuse_others(self, caller: Caller, n: int, requests: bytes, keys: Keys = None) -> None:
        if self._waiting.isdisjoint(caller.owners()):
            self._refuse(caller, n, requests)
        else:
            self._send(caller, n, requests, keys)

    def _enter(self, state: LinkState) -> None:
        if self.state is not LinkState.CLOSED:
            self.state = state
        self.submit = _SUBMIT[self.state].__get__(self)
        self.refusing = self.state in _REFUSING
        if self.state is LinkState.CONNECTING:
            self._settled.clear()
        else:
            self._settled.set()

    # --- the life of the connection

    async def _run(self) -> None:
        shortest, longest = self._backoff
        delay = shortest
        loop = asyncio.get_running_loop()
        while True:
            wire = await self._attempt()
            if wire is not None:
                began = loop.time()
                self._up(wire)
                await wire.ended.wait()
                if loop.time() - began > _STEADY:
                    delay = shortest
                    continue
                if delay == shortest:
                    delay *= 2
                    continue
            self._hurry.clear()
            pause = random.uniform(delay / 2, delay)
            self.breaker.pauses(pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
            delay = min(delay * 2, longest)

    async def _attempt(self) -> Wire | None:
        """Try to connect; None if that failed."""
        self.breaker.probes()
        try:
            wire = await open_link(lambda: Wire(self), self.connector)
        except UpstreamError as error:
            if isinstance(error, UpstreamRefused):
                self.breaker.answered()
            else:
                self.breaker.failed(error)
            self._down(error)
        except Exception:
            text = "internal error while connecting to %s"
            log.exception(text, self._address, extra=fields("internal_error", upstream=self._address))
            self._down(self.connector.lost("cannot be used: internal error, see the log"))
        else:
            self.breaker.answered()
            return wire
        return None

    def _up(self, wire: Wire) -> None:
        if wire.ended.is_set():
            return
        if self.state is LinkState.DOWN or self.reconnects:
            self._say(logging.INFO, "upstream_back", f"upstream {self._address} is back")
        else:
            self._say(logging.DEBUG, "upstream_up", f"upstream {self._address} is connected")
        self.wire = wire
        self.hello = wire.hello
        self._up_since = time.monotonic()
        self._full = self._proving = False
        self.auth_required = wire.refusal != ""
        self._stalled_since = _NOT_STALLED
        wire.limit(_WRITE_HIGH)
        self._enter(LinkState.READY)
        self._held = 0
        first = self.tracking.begin(wire) if self.tracking is not None else None
        if first is not None:
            self.fifo.appendleft((*first, None, monotonic()))
        self._turn = monotonic()
        self._out = [requests for _, _, requests, *_ in self.fifo]
        self._flush()
        self.release_paused()

    def _down(self, error: UpstreamError) -> None:
        if self.state is not LinkState.DOWN or str(error) != str(self.error):
            refused = isinstance(error, UpstreamRefused)
            who = f"upstream {self._address} refuses us: " if refused else ""
            event = "upstream_refuses" if refused else "upstream_down"
            self._say(logging.WARNING, event, f"{who}{_plain(error)}", "; trying again")
        for_good = isinstance(error, UpstreamRefused) and not str(error).startswith(_FOR_NOW)
        if for_good and self.tracking is not None:
            self.tracking.keeper.forget()  # Redis is there, and does not let this identity read
        self.error = error
        self._enter(LinkState.DOWN)
        self._fail_all()
        self.release_paused()

    def _lose_patience(self, reconnects: int) -> None:
        """Hold commands no longer: reads can be served stale, the others are to know."""
        if self.state is LinkState.CONNECTING and self.reconnects == reconnects:
            self._down(self.error)

    def wire_lost(self, wire: Wire, why: str, again: bool) -> None:
        """Take the end of a connection: answer what it owed or, if `again`, keep it to be sent once more."""
        if self.wire is not wire:
            return
        self.wire = None
        self._out = []
        if self.tracking is not None:
            self.tracking.lost()
        self.reconnects += 1
        self.connector.tally.reconnects += 1
        self.error = self.connector.lost(why)
        if self.state is not LinkState.CLOSED:
            self._say(logging.WARNING, "upstream_lost", _plain(self.error), "; reconnecting")
        again = self._wait_for_another(again)
        # What callers submit from here on has not been sent.
        entries, self.fifo = list(self.fifo), deque()
        if wire.scanner.open and not wire.pushing and entries:
            cut = itself(entries[0][0])
            entries = [entry for entry in entries if itself(entry[0]) is not cut]
            cut.cut()
        self._sort_out(entries, again)
        self.release_paused()

    def _wait_for_another(self, again: bool) -> bool:
        """After a loss, hold what comes if there is hope; whether what is owed may be sent once more."""
        if self.breaker.open or (self._away_after and not again):
            self._enter(LinkState.DOWN)
            return False
        self._enter(LinkState.CONNECTING)
        if self._away_after:
            self._loop.call_later(_PATIENCE, self._lose_patience, self.reconnects)
        return again

    def _sort_out(self, entries: list[Entry], again: bool) -> None:
        """Keep the runs of callers who only wait for reads, to be sent again in their order; answer the
        others."""
        parts = [self._classifier.repeatable(requests)[-n:] for _, n, requests, *_ in entries]
        given_up = doomed(entries, parts)
        lost, unknown = self.error.reply, self.error.of_unknown_outcome().reply
        for place, (caller, n, sent, keys, came) in enumerate(entries):
            owners = caller.owners()
            if again and owners and given_up.isdisjoint(owners):
                requests = b"".join([part for part, _ in parts[place]])
                self.fifo.append((caller, n, Run(requests) if place == 0 else requests, keys, came))
                continue
            self._settle_lost(sent, keys)
            self._look_back(caller, sent, came)
            self._count_unserved(caller, n)
            answer(caller, n, b"".join([lost if read else unknown for _, read in parts[place]]))

    def _fail_all(self) -> None:
        entries, self.fifo = self.fifo, deque()
        self._held = 0
        for caller, n, requests, keys, came in entries:
            self._settle_lost(requests, keys)
            self._look_back(caller, requests, came)
            self._count_unserved(caller, n)
            answer(caller, n, self.error.reply * n)

    def _look_back(self, caller: Caller, requests: bytes, came: float) -> None:
        """Tell of requests given up that have waited for long."""
        watch = self.connector.watch
        if came < monotonic() - watch.after:
            watch.slow(caller, requests, came)

    def _settle_lost(self, requests: bytes, keys: Keys) -> None:
        """Settle what may have been carried out, though its reply never came."""
        if keys is RUN:
            self.settle_run(requests)
        elif keys:
            self.settle(keys)

    @property
    def _address(self) -> str:
        return self.connector.upstream.redacted

    def _say(self, level: int, event: str, what: str, then: str = "") -> None:
        """Tell the log what has become of the link."""
        key = self.key
        user = (key.identity.user or b"").decode(errors="replace")
        about = fields(
            event, upstream=self._address, database=key.database, protocol=key.protocol, user=user,
            space=key.space, **({"reason": what} if level > logging.INFO else {}),
        )  # fmt: skip
        whose = f"{f'user {user}, ' if user else ''}database {key.database}, RESP{key.protocol}"
        log.log(level, "%s (%s)%s", what, whose, then, extra=about)

    # --- called by the connection

    def wire_full(self) -> None:
        """Hear that Redis does not keep up."""
        self._full = True
        if self.state is LinkState.READY:
            self._enter(LinkState.FULL)

    def wire_writable(self) -> None:
        """Hear that Redis has caught up."""
        self._full = False
        if self.state is LinkState.FULL:
            self._enter(LinkState.READY)
        self.release_paused()

    def release_paused(self) -> None:
        """Let callers that were held back go on."""
        paused, self._paused = self._paused, set()
        for caller in paused:
            caller.go_on()


_SUBMIT = {
    LinkState.CONNECTING: SharedLink._hold,
    LinkState.READY: SharedLink._send,
    LinkState.FULL: SharedLink._send_full,
    LinkState.SILENT: SharedLink._refuse_others,
    LinkState.DOWN: SharedLink._refuse,
    LinkState.CLOSED: SharedLink._refuse,
}
_REFUSING = frozenset({LinkState.SILENT, LinkState.DOWN, LinkState.CLOSED})


class _Proof(Collector):
    """A PING whose answer closes the circuit breaker."""

    __slots__ = ("_link",)

    def __init__(self, link: SharedLink) -> None:
        super().__init__(1)
        self._link = link

    def finish(self, replies: bytes) -> None:
        """Hand on the answer."""
        self._link.proved(replies)

    def cut(self) -> None:
        """Nothing: the next connection is proof itself."""


def _plain(error: UpstreamError) -> str:
    return str(error).removeprefix("ERR pannier: ")
