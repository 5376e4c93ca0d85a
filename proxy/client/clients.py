"""All client sessions of this sidecar, and what they share."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from proxy.client import journal, refilling, telling
from proxy.client.dispatch import Dispatcher
from proxy.client.latency import Latency
from proxy.client.leases import Leases
from proxy.client.local import FIRST_ID
from proxy.client.session import Session
from proxy.client.siblings import Crew
from proxy.client.slowlog import SlowLog
from proxy.client.spaces import Space, Spaces
from proxy.client.states import State
from proxy.client.verifying import Verifier
from proxy.client.volume import Volume
from proxy.events import fields
from proxy.handshakes import Handshakes
from proxy.privacy import KeyPrivacy, Privacy
from proxy.resp import encode
from proxy.resp.namespace import Namespace
from proxy.settings import Settings
from proxy.tenants import Tenant
from proxy.tier.policy import Defaults, Policy
from proxy.tier.rules import marks
from proxy.tier.tier import Tier
from proxy.upstream.link import Identity
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import LinkState, SharedLink

log = logging.getLogger("pannier.tenants")

TICK = 0.25
"""Seconds between two rounds of `Clients.tick`."""
_IDLE_TICKS = 4
"""Rounds between two looks at what may be looked at once a second."""
_FADE_TICKS = 240
"""What was read a minute ago counts for half."""
_TELL_EVERY = 60.0
_IDS = 1 << 44
"""Ids of sessions that each worker has; with 256 workers they still are whole numbers in JavaScript."""
_GIVE_BACK = 0.001
"""Seconds between two slices of memory that are freed: 100,000 entries take a third of a second."""


class Bus(Protocol):
    """What sessions need of the eviction bus."""

    @property
    def up(self) -> bool:
        """Whether others are heard, and hear what is said."""

    def add(self, namespace: Namespace | None) -> None:
        """Speak and hear on a namespace's channel as well."""

    def tell(
        self,
        namespace: Namespace | None,
        link: SharedLink,
        why: str,
        keys: Iterable[bytes] = (),
        patterns: Iterable[bytes] = (),
        everything: bool = False,
    ) -> None:
        """Have other sidecars forget keys, named as Redis knows them, patterns as clients write them, or all.

        They are told over `link`, behind what has been sent over it.
        """


class Clients:
    """The register of sessions: admits, lists, times out, counts."""

    def __init__(
        self,
        settings: Settings,
        links: LinkPool,
        dispatcher: Dispatcher,
        identity: Identity,
        database: int,
        info: Callable[[Space], str],
        tier: Tier | None = None,
        stats: Callable[[Space], dict[str, object]] = lambda space: {},
    ) -> None:
        # What sessions share.
        self.settings = settings
        self.links = links
        self.dispatcher = dispatcher
        self.identity = identity
        """Whom a session is before it authenticates."""
        self.database = database
        self.info = info
        """Makes INFO's section about the sidecar, for who is in a space."""
        self.stats = stats
        """What the memory tier holds and does for a space, by name."""
        self.tier = tier
        """What answers reads from memory; None: everything goes to Redis."""
        self.verifier: Verifier | None = None
        """What compares answers from memory with Redis'; None: nothing does."""
        if tier is not None and settings.verify:
            lag = settings.coherence_timeout
            self.verifier = Verifier(tier, settings.verify, settings.verify_demote, lag)
        self.warm: Callable[[], bool] = lambda: True
        """Whether memory has been warmed as far as one wants to wait for it."""
        self.listening = True
        """Whether new clients are served."""
        self.retiring = False
        """Whether clients are closed as soon as they are idle: Pannier is to stop."""
        self.draining = False
        """Whether who looks for a place to serve clients is told to look elsewhere."""
        self.bus: Bus | None = None
        """Over which other sidecars are told what to forget; None: they are not."""
        self.tells_writes = False
        """Whether they are told of every write; with `broadcast = auto`, see `weigh`."""
        self.policy = Policy((), Defaults(settings.l1_ttl, settings.max_value_size))
        """The cache rules in force."""
        self.crew: Crew | None = None
        """The other workers; None: there are none."""
        self.privacy = Privacy(KeyPrivacy(settings.key_privacy))
        """What may be shown of keys' names."""
        if self.verifier is not None:
            self.verifier.privacy = self.privacy
        watch = links.connector.watch
        self.slowlog = SlowLog(dispatcher, watch, settings.slowlog_slower_than, settings.slowlog_max_len)
        """Commands that took long."""
        self.expires = False
        """Whether rules give SETs a time to live."""
        self.spaces = Spaces(settings, dispatcher, tier)
        self.leases = Leases(self)
        # Who is here.
        self.sessions: dict[int, Session] = {}
        self.handshakes = Handshakes(lambda: settings.max_clients - len(self.sessions))
        """Who is about to come in over TLS: each takes a place already."""
        self.arriving = 0
        """Bytes of large commands of which all is waited for."""
        self.stalled: dict[Session, float] = {}
        """Sessions that do not read their replies, and since when (monotonic seconds)."""
        self.works: set[asyncio.Task[bytes]] = set()
        """What goes on though its client leaves."""
        # What is counted.
        self.received = 0
        """Connections admitted since the start."""
        self.rejected = 0
        self.killed = 0
        """Connections closed because of a limit."""
        self.volume = Volume()
        self.latency = Latency(dispatcher.table)
        self.make: Callable[[Clients, int, Space], Session] = Session
        """Makes a session; another kind of it where commands are traced."""
        self._ids = itertools.count(FIRST_ID + 1)
        if tier is not None:
            tier.on_loose = self._refresh_all
            tier.waste.on_more = self._give_back
        self._ticks = 0

    def join(self, crew: Crew, secret: bytes) -> None:
        """Be one of several workers, before there are any clients.

        `secret`: what hashes of keys' names are made with, the same in all.
        """
        self.crew = crew
        self._ids = itertools.count(FIRST_ID + 1 + (crew.number - 1) * _IDS)
        self.privacy = Privacy(self.privacy.how, secret)
        if self.verifier is not None:
            self.verifier.privacy = self.privacy

    def session(self, space: Space | None = None) -> Session:
        """A session for a connection that is being accepted, beginning in `space`."""
        return self.make(self, next(self._ids), space or self.spaces.start)

    @property
    def commands(self) -> int:
        """Commands received since the start."""
        return sum([space.commands for space in self.spaces])

    @property
    def hits(self) -> int:
        """Reads answered from memory since the start."""
        return sum([space.hits for space in self.spaces])

    def tell(
        self,
        session: Session,
        why: str,
        keys: Iterable[bytes] = (),
        patterns: Iterable[bytes] = (),
        everything: bool = False,
    ) -> None:
        """Have other sidecars forget what a session's command was about (see `Bus.tell`)."""
        if self.bus is not None:
            self.bus.tell(session.space.namespace, session.link, why, keys, patterns, everything)

    def weigh(self) -> None:
        """Find out whether other sidecars are to be told of every write, a link having come or settled."""
        if self.bus is not None and self.settings.broadcast == "auto" and self.tier is not None:
            self.tells_writes = telling.needed(self.links.shared.values())

    def _give_back(self) -> None:
        """Free what the tier has dropped all at once, a slice now and then: nobody waits for it."""
        if self.tier is not None and self.tier.waste.give_back():
            asyncio.get_running_loop().call_later(_GIVE_BACK, self._give_back)

    def settle_run(self, requests: bytes, prefix: bytes = b"") -> None:
        """Have no shelf show what was before a run whose replies have come.

        With one shelf there is nothing to do: what it has fetched since, over the same link, came later.
        """
        if self.tier is not None and len(self.tier.views(prefix)) > 1:
            self.tier.drop(marks(self.dispatcher.written(requests)), prefix)

    def obey(self, policy: Policy) -> None:
        """Put cache rules in force: what is in memory by other rules is dropped."""
        self.policy = policy
        if self.tier is not None:
            self.tier.obey(policy)
        if policy.expires != self.expires:
            self.expires = policy.expires
            self.dispatcher.look_at_sets(policy.expires)
            for session in self.sessions.values():
                session.use_patterns()
        self.spaces.obey(policy if policy.expires else None)

    def take_tenants(self, tenants: Sequence[Tenant]) -> tuple[list[Space], list[Space]]:
        """Serve these tenants from now on; the spaces that are no more and the new ones.

        Who is logged in stays, unless the tenant is gone or has other keys, memory or credentials at Redis.
        """
        gone = self.spaces.part(tenants)
        for space in gone:
            for session in list(space.sessions):
                self.kill(session, f"tenant {space.name} is gone, or another one now", logging.INFO)
            self.links.close_space(space.name)
            if self.tier is not None and space.account is not None:
                self.tier.close_account(space.account)
        new = self.spaces.welcome(tenants)
        if self.bus is not None:
            for space in new:
                self.bus.add(space.namespace)
        return gone, new

    def admit(self, session: Session) -> bytes:
        """Register a session; the error to refuse it with if there are too many, else nothing."""
        self.handshakes.under_way.discard(session)
        if len(self.sessions) + len(self.handshakes.under_way) >= self.settings.max_clients:
            self.rejected += 1
            why = f"max_clients is {self.settings.max_clients}"
            journal.say(session, logging.WARNING, "client_rejected", "rejected", why)
            return encode.error("ERR max number of clients reached")
        self.received += 1
        self.sessions[session.id] = session
        session.space.enter(session)
        return b""

    def learn(self) -> None:
        """Take in that the command table has changed."""
        changed = any(space.namespace is not None for space in self.spaces) and self.dispatcher.learn()
        for space in self.spaces:
            space.forget()
            if changed:
                for session in space.sessions:
                    session.use_patterns()
        if self.tier is not None:
            self.tier.rules.forget()

    def _refresh_all(self) -> None:
        for session in self.sessions.values():
            session.refresh()

    def leave(self, session: Session) -> None:
        """Forget a session that has ended."""
        if self.sessions.pop(session.id, None) is not None:
            self.volume.leave(session)
            session.space.leave(session)
        self.stalled.pop(session, None)
        self.leases.leave(session)

    def tick(self) -> None:
        """Enforce the limits that need a clock."""
        now = time.monotonic()
        self.links.tick(now)
        self.slowlog.refill()
        for link in self.links.shared.values():
            self.latency.listen(link)
        self._refresh(now)
        for session, since in list(self.stalled.items()):
            self._check_output(session, now - since)
        self._ticks += 1
        if self._ticks % _IDLE_TICKS == 0:
            self._find_idle(now)
            for account in self.tier.accounts if self.tier is not None else ():
                account.settle()
            for space in self.spaces:
                space.writes.settle()
            for space in self.spaces:
                _tell_refused(space, now)

    def _refresh(self, now: float) -> None:
        """Fetch anew what rules want fresh; let counts of hits fade, and what nobody reads any more go."""
        fades = self._ticks % _FADE_TICKS == _FADE_TICKS - 1
        for key, shelf in self.tier.shelves.items() if self.tier is not None else ():
            shelf.let_go(now)
            if fades:
                shelf.replay()
                shelf.traffic.fade()
            link = self.links.shared.get(key)  # type: ignore[call-overload]
            if link is not None and link.state is LinkState.READY and shelf.tending.known:
                refilling.refresh(shelf, link)

    def kill(self, session: Session, why: str, level: int = logging.WARNING) -> None:
        """Close a connection because of a limit."""
        self.killed += 1
        session.abort(why, level, "client_killed")

    def _check_output(self, session: Session, stalled: float) -> None:
        settings = self.settings
        size = session.transport.get_write_buffer_size()
        hard = size > settings.output_buffer_limit
        soft = size > settings.output_buffer_soft_limit and stalled > settings.output_buffer_soft_seconds
        if hard or soft:
            since = "" if hard else f" for {stalled:.0f} s"
            self.kill(session, f"{size} bytes of replies not read{since}")

    def _find_idle(self, now: float) -> None:
        """Note who has been idle since when; close who has been so for too long (Redis' `timeout`)."""
        timeout = self.settings.client_timeout
        for session in list(self.sessions.values()):
            if session.served != session.idle_mark or session.pending or not _may_be_idle(session):
                session.idle_mark = session.served
                session.idle_since = now
            elif timeout and now - session.idle_since > timeout:
                self.kill(session, f"idle for more than {timeout:g} s", logging.INFO)

    @staticmethod
    def address(transport: asyncio.BaseTransport, which: str) -> str:
        """A transport's `peername` or `sockname`, as Redis writes addresses."""
        name = transport.get_extra_info(which)
        if isinstance(name, tuple):
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            return f"{host}:{name[1]}"
        sock = transport.get_extra_info("socket")
        path = sock.getsockname() if sock is not None and sock.family == socket.AF_UNIX else name
        return f"{path or '?'}:0"

    async def close(self) -> None:
        """Close every session, replies in flight first, within a second."""
        for session in list(self.sessions.values()):
            session.depart()
        deadline = time.monotonic() + 1
        while (self.sessions or self.leases.returns) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for session in list(self.sessions.values()):
            session.abort("pannier stops", logging.DEBUG)


def _tell_refused(space: Space, now: float) -> None:
    """Tell the log of a tenant whose commands were refused, once a minute at most."""
    refused = space.refused - space.told[0]
    if refused and now - space.told[1] >= _TELL_EVERY and space.tenant is not None:
        space.told = (space.refused, now)
        name, limit = space.tenant.name, space.tenant.max_ops_per_second
        log.warning(
            "tenant %s is over its max_ops_per_second of %s: %d commands refused", name, limit, refused,
            extra=fields("tenant_limited", user=name, limit=limit, refused=refused),
        )  # fmt: skip


def _may_be_idle(session: Session) -> bool:
    """Whether a silent client is idle: not if it blocks, listens, computes or has a link of its own."""
    pin = session.pin
    if session in session.clients.leases.held:
        return False
    if session.state is State.PINNED and pin is not None:
        return pin.transaction and pin.link.idle
    return session.state in (State.RELAY, State.BROKEN)
