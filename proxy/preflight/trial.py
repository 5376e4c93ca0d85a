"""The order in which things are tried, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from proxy.client.dispatch import link_protocol
from proxy.client.spaces import Space
from proxy.preflight.reaching import log_in, reach
from proxy.preflight.rights import Seat, try_rights
from proxy.preflight.server import look_at_server
from proxy.preflight.steps import Step, Steps, Stuck
from proxy.preflight.talk import Talk, begin
from proxy.preflight.telling import Listener, try_bus, try_tracking
from proxy.resp.downgrade import Shape
from proxy.resp.errors import UpstreamError
from proxy.resp.tracking import Mode
from proxy.settings import Settings
from proxy.sidecar import Sidecar
from proxy.upstream.address import Upstream
from proxy.upstream.embedded import EmbeddedRedis
from proxy.upstream.link import Identity, LinkKey
from proxy.upstream.tls import tls_context

_PAUSE = 1.0
"""Seconds between two attempts."""


async def run(settings: Settings, wait: float, as_json: bool) -> int:
    """Try until all passes or `wait` seconds are over, and print; the exit status. Raises SettingsError."""
    if settings.upstream is not None and settings.upstream.tls:
        tls_context(settings.upstream)
    deadline, attempts = time.monotonic() + wait, 0
    at_once = not wait and not as_json
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_quiet())
        upstream = settings.upstream
        if upstream is None:
            upstream = (await stack.enter_async_context(EmbeddedRedis())).upstream
        while True:
            steps = Steps(_print if at_once else id)
            attempts += 1
            if settings.upstream is None:
                remedy = "give --upstream redis://… for a real one"
                steps.warns("upstream", "none is given: a bundled redis-server, which keeps nothing", remedy)
            await _Trial(steps, settings, upstream).run()
            if not steps.failed or time.monotonic() + _PAUSE > deadline:
                break
            left = deadline - time.monotonic()
            failed = steps.failed[0]
            why = f"{failed.name}: {failed.found}"
            print(f"pannier: not yet, trying for {left:.0f} s more: {why}", file=sys.stderr, flush=True)
            await asyncio.sleep(_PAUSE)
    if as_json:
        print(steps.as_json(attempts))
    else:
        for step in steps.all if not at_once else ():
            _print(step)
        print(steps.summary())
    return 1 if steps.failed else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print no log: what the links have to say, the steps say."""
    log = logging.getLogger("pannier")
    handler, propagates = logging.NullHandler(), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = propagates
        log.removeHandler(handler)


def _print(step: Step) -> None:
    print(step.as_text(), flush=True)


class _Trial:
    """One attempt."""

    def __init__(self, steps: Steps, settings: Settings, upstream: Upstream) -> None:
        self._steps = steps
        self._settings = settings
        self._sidecar = Sidecar(settings, upstream)
        """One that serves nobody: it makes links as one that does."""
        self._links = self._sidecar.links
        self._connector = self._links.connector
        self._main = LinkKey(self._sidecar.clients.identity, upstream.db, 3)
        self._talks: list[Talk] = []

    async def run(self) -> None:
        """Try everything that can be tried."""
        try:
            await reach(self._steps, self._connector)
            main = await self._log_in(self._main, "", "upstream")
            if main is not None:
                await look_at_server(self._steps, main, self._settings)
            listener = await self._listen()
            for seat, identity in self._seats():
                with contextlib.suppress(Stuck):
                    await self._try_seat(seat, identity, main, listener)
        except Stuck:
            pass
        except UpstreamError as error:
            self._steps.fails("connection", str(error), "see whether Redis hangs or restarts, and Redis' log")
        finally:
            for talk in self._talks:
                talk.close()
            if self._sidecar.tier is not None:
                self._sidecar.tier.close()
            await self._links.close()
            await asyncio.sleep(0)  # so that what was aborted is closed

    def _seats(self) -> Iterator[tuple[Seat, Identity | None]]:
        """Whose keys there are: with the user at Redis that is theirs alone, if there is one."""
        spaces = self._sidecar.clients.spaces
        found = dict.fromkeys(spaces.of(listen) for listen in self._settings.listen)
        for space in spaces if spaces.mode == "tenants" else found:
            if not space.locked:
                yield _seat(space), space.identity

    async def _log_in(self, key: LinkKey, title: str, option: str) -> Talk | None:
        """Log in; None if Redis wants credentials and there are none, and clients may bring theirs."""
        talk = await log_in(self._steps, self._connector, key, title, option)
        self._talks.append(talk)
        if not talk.refusal:
            return talk
        own = all(tenant.upstream_password is not None for tenant in self._settings.tenants)
        if self._settings.auth == "passthrough" or (self._settings.tenants and own):
            whose = "tenants" if self._settings.tenants else "clients"
            self._steps.warns(
                f"{title}login", f"Redis wants a password and upstream gives none: all depends on what "
                f"{whose} bring; the server, and the eviction bus, cannot be tried",
                "give user and password in upstream as well, so that Pannier itself may ask",
            )  # fmt: skip
            return None
        raise self._steps.stuck(
            f"{title}login", f"Redis wants a password, and {option} has none (NOAUTH)",
            f"give it in {option}: redis://user:password@host; if each client is to give its own, say "
            "auth = passthrough",
        )  # fmt: skip

    async def _listen(self) -> Listener | None:
        """Listen to the eviction bus; None: nobody would."""
        settings = self._settings
        if settings.broadcast == "off":
            self._steps.passes("bus", "switched off by the settings")
            return None
        try:
            talk = await begin(self._connector, self._main._replace(protocol=2))
        except UpstreamError as error:
            self._steps.warns("bus", f"no second connection: {error}", "raise maxclients at Redis")
            return None
        self._talks.append(talk)
        if talk.refusal:
            return None
        listener = Listener(talk, settings.evict_channel)
        names = dict.fromkeys(seat.name for seat, _ in self._seats())
        everything = "" in names or settings.auth_mode == "tenants"
        await listener.subscribe(["", *filter(None, names)], everything)
        return listener

    async def _try_seat(
        self, seat: Seat, identity: Identity | None, main: Talk | None, listener: Listener | None
    ) -> None:
        key = self._main._replace(space=seat.space)
        talk = main
        if identity is not None:
            key = key._replace(identity=identity)
            tenant = f"tenants.{seat.space}.upstream_password"
            talk = await self._log_in(key, seat.title, tenant)
        if talk is None:
            return
        await try_rights(self._steps, talk, seat, self._settings)
        mode = Mode.OFF
        if self._sidecar.tier is None:
            self._steps.passes(f"{seat.title}tracking", "switched off by the settings: nothing is kept")
        else:
            key = key._replace(protocol=link_protocol(Shape.PLAIN, 2, True))
            mode = await try_tracking(self._steps, self._links, key, seat, self._settings, talk.user)
        if listener is not None:
            await try_bus(self._steps, talk, listener, seat, self._settings, mode)


def _seat(space: Space) -> Seat:
    namespace = space.namespace
    name = namespace.name if namespace is not None else ""
    pattern = (namespace.pattern if namespace is not None else b"") + b"*"
    title = f"{space.name}: " if space.tenant is not None or namespace is not None else ""
    walled = space.identity is not None and namespace is not None
    return Seat(title, name, space.prefix, pattern, space.name, walled)
