"""The key spaces that sessions live in: the whole database, a namespace, a tenant's.

A space is what a listener or an AUTH gives a session: the namespace between its keys and Redis', who it is at
Redis, its share of memory, its limits, and what is counted for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from proxy.client import journal
from proxy.client.expiry import expiring, expiring_large
from proxy.client.meter import limit
from proxy.client.scripts import Examiner
from proxy.client.writes import Writes
from proxy.resp import encode
from proxy.resp.commands import Command
from proxy.resp.errors import UpstreamRefused
from proxy.resp.namespace import SCRIPTS, Namespace, RefusedHere, Strip, spoken
from proxy.resp.patterns import RequestPatterns
from proxy.resp.prefixes import Prefixer
from proxy.settings import Settings
from proxy.tenants import Tenant
from proxy.tier.policy import Policy
from proxy.tier.rules import Rules, bulk_at, key_name, marks
from proxy.tier.tier import Account, Tier
from proxy.upstream.address import Listen
from proxy.upstream.link import Identity

if TYPE_CHECKING:
    from proxy.client.dispatch import Dispatcher
    from proxy.client.session import Session
    from proxy.upstream.shared import SharedLink

WRONG_PASSWORD = "WRONGPASS invalid username-password pair or user is disabled."
_NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your "
    "configuration is correct?"
)


class Bucket:
    """Operations that may be done now: `rate` more each second, a second's worth at most."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate
        self._at = time.monotonic()

    def take(self, n: int) -> None:
        """Take `n`, be there as many or not."""
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate) - n
        self._at = now

    @property
    def left(self) -> int:
        """How many may be done now; below 0, how many more have been done than could be."""
        self.take(0)
        return math.floor(self._left)

    def wait(self, n: int = 1) -> float:
        """Seconds until `n` may be done."""
        return max(0.0, (n - self._left) / self._rate)


class Space:
    """See the module's docstring."""

    def __init__(
        self,
        name: str,
        namespace: Namespace | None,
        dispatcher: Dispatcher,
        account: Account | None = None,
        tenant: Tenant | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.name = name
        """Tells it from the others; empty for the one without a namespace."""
        self.namespace = namespace
        self.prefix = namespace.prefix if namespace is not None else b""
        self.tenant = tenant
        self.identity = identity
        """Who its sessions are at Redis; None: whoever they were."""
        self.locked = False
        """Whether nothing may be done in it but to authenticate."""
        self._dispatcher = dispatcher
        self.rules = account.rules if account is not None else Rules(dispatcher.table, namespace)
        self.account = account
        """Its part of the memory tier, if there is one."""
        self.bucket: Bucket | None = None
        if tenant is not None and tenant.max_ops_per_second is not None:
            self.bucket = Bucket(tenant.max_ops_per_second)
        self.over = b""
        """The latest error for a command beyond `max_ops_per_second`."""
        self.refuses_auth = False
        """Whether AUTH is not for Redis to judge."""
        self.scripts = "allow"
        """The setting `namespace_scripts`, where there is a namespace."""
        self.policy: Policy | None = None
        """The cache rules, if they want SETs to be given a time to live."""
        self.examiner: Examiner | None = None
        """What asks Redis about scripts, if one is to be warned of them."""
        # Who is here and what has been counted.
        self.sessions: dict[Session, tuple[int, int]] = {}
        """With what each had taken, and been answered from memory, when it came."""
        self.works: set[asyncio.Task[bytes]] = set()
        """What goes on even if the client that asked for it leaves."""
        self.writes = Writes(lambda run: [request for request, _ in dispatcher.repeatable(run)])
        self.refused = 0
        """Commands refused because of `max_ops_per_second`."""
        self.told = (0, float("-inf"))
        """How many of them the log has been told of, and when (monotonic seconds)."""
        self._commands = self._hits = self._bypassed = 0
        """Of sessions that have left."""
        self._bypassing: dict[Session, int] = {}
        """With what each had taken when it began to bypass memory."""
        self._prefixer = Prefixer(namespace, dispatcher.table) if namespace is not None else None
        if account is not None:
            account.count_hits = lambda: self.hits

    def retune(self, tenant: Tenant) -> None:
        """Have other passwords and limits from now on."""
        before, self.tenant = self.tenant, tenant
        rate = tenant.max_ops_per_second
        if before is None or before.max_ops_per_second != rate:
            self.bucket = Bucket(rate) if rate is not None else None
            for session in self.sessions:
                limit(session)

    @property
    def guarded(self) -> bool:
        """Whether requests have to be looked at even on a link of the client's own."""
        return self.translates or self.refuses_auth

    @property
    def translates(self) -> bool:
        """Whether Redis may get other requests than the client sends."""
        return self.namespace is not None or self.policy is not None

    @property
    def commands(self) -> int:
        """Commands taken since the start."""
        return self._commands + sum([session.served - base for session, (base, _) in self.sessions.items()])

    @property
    def hits(self) -> int:
        """Reads answered from memory since the start."""
        return self._hits + sum([session.hits - base for session, (_, base) in self.sessions.items()])

    @property
    def bypassed(self) -> int:
        """Commands since the start of sessions that wanted all of them answered by Redis."""
        now = [session.commands - before for session, before in self._bypassing.items()]
        return self._bypassed + sum(now)

    def bypass(self, session: Session, bypass: bool) -> None:
        """Hear that a session bypasses memory, or does so no longer."""
        if bypass:
            self._bypassing.setdefault(session, session.commands)
        else:
            self._bypassed += session.commands - self._bypassing.pop(session, session.commands)

    def enter(self, session: Session) -> None:
        """Count a session in. Raises UpstreamRefused if the tenant has as many as it may."""
        tenant = self.tenant
        if tenant is not None and tenant.max_clients is not None and len(self.sessions) >= tenant.max_clients:
            why = f"tenant {tenant.name} has its max_clients of {tenant.max_clients}"
            journal.say(session, logging.WARNING, "client_rejected", "rejected", why)
            raise UpstreamRefused(
                f"ERR max number of clients reached: tenant '{tenant.name}' has its max_clients of "
                f"{tenant.max_clients}"
            )
        self.sessions[session] = (session.served, session.hits)
        self.bypass(session, session.bypass)

    def say_over(self) -> bytes:
        """The error for a command beyond `max_ops_per_second`, in a space that has it."""
        if self.tenant is not None and self.bucket is not None:
            self.over = encode.error(
                f"ERR pannier: tenant '{self.tenant.name}' is over its max_ops_per_second of "
                f"{self.tenant.max_ops_per_second}; try again in about {_rounded(self.bucket.wait())}"
            )
        return self.over

    def leave(self, session: Session) -> None:
        """Count a session out."""
        commands, hits = self.sessions.pop(session, (session.served, session.hits))
        self._commands += session.served - commands
        self._hits += session.hits - hits
        self.bypass(session, False)

    @property
    def patterns(self) -> RequestPatterns:
        """What goes up without being parsed."""
        return self._dispatcher.patterns if self.namespace is None else self._dispatcher.first_keyed

    def forget(self) -> None:
        """Judge commands anew: the table has changed."""
        self.rules.forget()
        if self._prefixer is not None:
            self._prefixer.forget()

    # --- requests

    def real(self, n: int, data: bytes) -> bytes:
        """A run of `n` reads, or of what `patterns` takes, as Redis is to get it."""
        if self._prefixer is None:
            return data
        return self._prefixer.run(n, data) or b"".join(self._prefixer.each(data))

    def real_run(self, n: int, data: bytes) -> tuple[bytes, list[int] | None]:
        """A run of what `patterns` takes as Redis is to get it.

        With the marks of the keys it may change where `Dispatcher.written` could not find them in it.
        """
        if self._prefixer is None:
            return data, None
        real = self._prefixer.run(n, data)
        if real is not None:
            return real, None
        frames = self._prefixer.each(data)
        return b"".join(frames), marks([bulk_at(frame, _second(frame)) for frame in frames])

    def keys_written(self, n: int, data: bytes) -> list[bytes]:
        """The keys that a run, as Redis gets it, writes; or, of one with long names, that it names."""
        frames = self._dispatcher.written(data)
        if len(frames) > n or not all(frames):
            parsed = [
                self._dispatcher.first_key(part)
                for part, reads in self._dispatcher.repeatable(data)
                if not reads
            ]
            return [key for key in parsed if key is not None]
        return [key_name(frame) for frame in frames]

    def translate(self, command: Command | None, arguments: list[bytes]) -> tuple[list[bytes], Strip | None]:
        """What to send instead of a request, and what its reply needs (see `Namespace.translate`).

        Raises RefusedHere.
        """
        if self.policy is not None and command is not None and command.name == "set":
            arguments = expiring(self.policy, arguments)
        if self.namespace is None:
            return arguments, None
        self._judge_script(command)
        return self.namespace.translate(command, arguments)

    def leading(
        self, command: Command | None, arguments: list[bytes], count: int
    ) -> tuple[list[bytes], Strip | None] | None:
        """The same for the first arguments of a large request (see `Namespace.leading`); they may have
        become more."""
        if self.refuses_auth and command is not None and command.name in ("auth", "hello"):
            return None  # whether it authenticates may be said at its end
        if self.policy is not None and command is not None and command.name == "set":
            known = expiring_large(self.policy, arguments, count)
            if known is None:
                return None
            arguments = known
        if self.namespace is None:
            return arguments, None
        self._judge_script(command)
        return self.namespace.leading(command, arguments, count)

    def _judge_script(self, command: Command | None) -> None:
        if self.scripts == "refuse" and command is not None and command.name in SCRIPTS:
            raise RefusedHere(f"{spoken(command.name)} is refused: namespace_scripts is refuse")

    def examine(self, command: Command | None, link: SharedLink) -> None:
        """At a script, find out what scripts may reach, unless that is known."""
        if self.examiner is not None:
            self.examiner.examine(command, link)


def _same_place(one: Tenant, other: Tenant) -> bool:
    """Whether what differs between two tenants of one name can change while their clients are here."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("namespace", "max_memory", "upstream_username", "upstream_password")
    )


def _rounded(seconds: float) -> str:
    """A time to wait, rounded up."""
    return f"{math.ceil(seconds)} s" if seconds > 1.0 else f"{max(1, math.ceil(seconds * 1000))} ms"


def _second(frame: bytes) -> int:
    """Where the first argument of a canonical request begins."""
    return frame.index(b"$", frame.index(b"$") + 1)


class Spaces:
    """All of them, by listener and by tenant."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, tier: Tier | None) -> None:
        self.mode = settings.auth_mode
        self._settings = settings
        self._dispatcher = dispatcher
        self._tier = tier
        self._policy: Policy | None = None
        self._named: dict[str, Space] = {}
        self._tenants: dict[str, Space] = {}
        self.start = self._make(settings.namespace)
        """Where sessions begin that no listener puts elsewhere."""
        for tenant in settings.tenants:
            self._tenants[tenant.name] = self._tenant(tenant)
        if self.mode == "tenants":
            self.start = Space("", None, dispatcher)
            self.start.locked = self.start.refuses_auth = True

    def __iter__(self) -> Iterator[Space]:
        yield from dict.fromkeys([self.start, *self._named.values(), *self._tenants.values()])

    def obey(self, policy: Policy | None) -> None:
        """Have SETs given a time to live as these rules want it; None: no rule does."""
        self._policy = policy
        for space in self:
            space.policy = policy

    def find(self, name: str) -> Space:
        """The space of that name."""
        return self._tenants.get(name) or self._named.get(name) or self.start

    def of(self, listen: Listen) -> Space:
        """Where the clients of a listener begin."""
        if listen.namespace is None or self.mode == "tenants":
            return self.start
        return self._named.get(listen.namespace) or self._make(listen.namespace)

    def judge(self, credentials: list[bytes]) -> Space | None:
        """The tenant's whose name and password these are; None: the client stays. Raises UpstreamRefused.

        `credentials` as AUTH has them: a password, or a user and a password.
        """
        user = credentials[0] if len(credentials) > 1 else b"default"
        if self.mode == "none":
            if len(credentials) > 1 and user == b"default":
                return None
            raise UpstreamRefused(_NO_PASSWORD if len(credentials) == 1 else WRONG_PASSWORD)
        space = self._tenants.get(user.decode("utf-8", "replace"))
        if space is None or space.tenant is None or not space.tenant.accepts(credentials[-1]):
            raise UpstreamRefused(WRONG_PASSWORD)
        return space

    def part(self, tenants: Iterable[Tenant]) -> list[Space]:
        """Part with the spaces of tenants that are none of these, or other ones: with other keys, memory or
        credentials."""
        wanted = {tenant.name: tenant for tenant in tenants}
        gone = [
            space for name, space in self._tenants.items()
            if space.tenant is None or name not in wanted or not _same_place(space.tenant, wanted[name])
        ]  # fmt: skip
        for space in gone:
            del self._tenants[space.name]
        return gone

    def welcome(self, tenants: Iterable[Tenant]) -> list[Space]:
        """Have spaces for just these tenants, after `part`; those that are new."""
        new = []
        for tenant in tenants:
            if (space := self._tenants.get(tenant.name)) is not None:
                space.retune(tenant)
            else:
                space = self._tenants[tenant.name] = self._tenant(tenant)
                new.append(space)
        return new

    def _namespace(self, name: str) -> Namespace | None:
        settings = self._settings
        if not name:
            return None
        return Namespace(name, settings.namespace_channels, self._dispatcher.table, settings.evict_channel)

    def _make(self, name: str) -> Space:
        namespace = self._namespace(name)
        account = None
        if self._tier is not None:
            account = (
                self._tier.account(Rules(self._dispatcher.table, namespace)) if name else self._tier.main
            )
        space = self._named[name] = Space(name, namespace, self._dispatcher, account)
        return self._equip(space)

    def _tenant(self, tenant: Tenant) -> Space:
        namespace = self._namespace(tenant.namespace)
        account = None
        if self._tier is not None:
            account = self._tier.account(Rules(self._dispatcher.table, namespace), tenant.max_memory)
        identity = None
        if tenant.upstream_password is not None:
            user = tenant.upstream_username
            identity = Identity(None if user is None else user.encode(), tenant.upstream_password.encode())
        return self._equip(Space(tenant.name, namespace, self._dispatcher, account, tenant, identity))

    def _equip(self, space: Space) -> Space:
        space.policy = self._policy
        space.refuses_auth = self.mode != "passthrough"
        if space.namespace is not None:
            space.scripts = self._settings.namespace_scripts
            if space.scripts == "warn":
                space.examiner = Examiner(space.namespace)
        return space
