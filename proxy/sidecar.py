"""Assembly and lifecycle: what is made in which order, and taken down in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, cast

import hiredis

from proxy import __version__, announcing, hangup, logs, systemd
from proxy.bus import NOBODY, Bus
from proxy.certificates import moment, of_settings
from proxy.client import retiring
from proxy.client.clients import TICK, Clients
from proxy.client.dispatch import Dispatcher, link_protocol
from proxy.client.explaining import rule_fields
from proxy.client.health import outage_fields, status
from proxy.client.spaces import Space
from proxy.client.work import under_way
from proxy.events import fields, without_arguments
from proxy.kinds import show_duration, show_size
from proxy.leash import Stop, Worker
from proxy.ledger import Counting
from proxy.listening import NONE_PASSED, Passed, Server, Tls, addresses, clear_away, serve, with_passed
from proxy.observe.admin import Admin
from proxy.observe.http import ROOMY
from proxy.observe.page import add_page
from proxy.observe.private import Private, Siblings, private_settings
from proxy.observe.routes import Routes
from proxy.observe.sources import Sources
from proxy.places import Place, share
from proxy.reload import Load, Reloader
from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.downgrade import Shape
from proxy.resp.errors import StartupError, UpstreamError, UpstreamRefused
from proxy.resp.tracking import LADDERS, Mode
from proxy.settings import Settings
from proxy.tier.policy import CacheRule, Defaults, Policy, Serve
from proxy.tier.rules import Rules
from proxy.tier.shelf import Shelf
from proxy.tier.table import STRIDE
from proxy.tier.tier import Account, Limits, Tier
from proxy.upstream.address import Upstream
from proxy.upstream.caller import Question
from proxy.upstream.canary import Canary
from proxy.upstream.embedded import EmbeddedRedis
from proxy.upstream.link import Connector, Identity, LinkKey
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import Care, LinkState, SharedLink
from proxy.upstream.subscriber import subscriber
from proxy.upstream.tls import tls_context
from proxy.warming import Warming

log = logging.getLogger("pannier")

_FIRST_WORD = 1.0
"""Seconds the banner waits to learn whether Redis tells of changes."""
_FILES_BESIDE_CLIENTS = 128
"""File descriptors needed beside two for each client."""


async def run(
    settings: Settings, again: Load | None = None, config: str | None = None, place: Place | None = None
) -> int:
    """Serve until SIGINT or SIGTERM; the exit status. Raises StartupError.

    `again` reads the settings once more, at SIGHUP or when their file, `config`, changes. `place`: the one of
    this worker, if there are several; then its parent says when to stop and to read them.
    """
    number = place.number if place is not None else 0
    output = logs.configure(settings.log_format, settings.log_level, worker=number)
    logs.mind_loop(asyncio.get_running_loop())
    stop = Stop()
    at_once: list[Callable[[], None]] = []
    """What is left to do when a second signal ends everything."""
    if place is None:
        _on_signals(stop, at_once)
        if (status := hangup.stopped()) is not None:
            return status
        announcing.starting(settings, config)
        settings, passed = with_passed(settings)
    else:
        settings, passed = _in_place(settings, place)
    _raise_file_limit(settings.max_clients)
    if settings.upstream is not None and settings.upstream.tls:
        tls_context(settings.upstream)  # a wrong file ends the start, not every attempt to connect
    async with contextlib.AsyncExitStack() as stack:
        summaries = asyncio.create_task(output.run())
        stack.callback(summaries.cancel)
        upstream = settings.upstream
        bundled = ""
        endings: list[asyncio.Future[bool | StartupError]] = [asyncio.ensure_future(stop.wait())]
        if place is not None and place.upstream:
            upstream, bundled = Upstream.parse(place.upstream), place.bundled
        if upstream is None:
            embedded = EmbeddedRedis()
            at_once.append(embedded.kill)
            await stack.enter_async_context(embedded)
            upstream, bundled = embedded.upstream, embedded.version
            endings.append(asyncio.ensure_future(embedded.ended()))
            stack.callback(endings[-1].cancel)  # should the start fail, before the server is stopped
        sidecar = Sidecar(settings, upstream, bundled, place)
        sidecar.passed = passed
        worker = Worker(place, stop) if place is not None else None
        if settings.trace_sample:
            from proxy.client import tracing  # with OpenTelemetry

            spans = tracing.provider()
            stack.push_async_callback(tracing.shut_down, spans)
            sidecar.clients.make = tracing.Tracing(spans, settings.trace_sample, upstream).session
        if again is not None:
            load = again if place is None else functools.partial(_load_share, again, place)
            reloader = Reloader(
                settings, lambda: sidecar.prepared(load()), config, sidecar.obey, watches=worker is None
            )
            sidecar.reloader = sidecar.sources.reloader = reloader
            reloader.take_tenants = sidecar.take_tenants
            reloader.certificates += sidecar.sources.certificates.values()
            if worker is None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
                if hangup.came():
                    reloader.ask()
            else:
                worker.reloader = reloader
            watch = asyncio.create_task(reloader.run())
            stack.callback(watch.cancel)
        if worker is not None:
            worker.drain = sidecar.drain
            stack.callback(worker.begin().cancel)
        await stack.enter_async_context(sidecar.serving())
        await _first(sidecar.first_contact(), endings)
        if worker is not None:
            worker.ready(sidecar.addresses, sidecar.banner())
        elif not logs.is_json(settings.log_format):
            print(sidecar.banner(), flush=True)
        announcing.listening(settings, sidecar.addresses, sidecar.choices())
        _settle_garbage_collector()
        if worker is None:
            systemd.notify("READY=1", f"STATUS=serving {', '.join(sidecar.addresses)}")
        ended, others = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        for ending in ended:
            if isinstance(error := ending.result(), StartupError):
                raise error
        log.info("stopping", extra=fields("stopping", signal=stop.signal))
        if worker is None:
            systemd.notify("STOPPING=1")
        if stop.is_set():
            await sidecar.wind_down(orphaned=worker is not None and worker.orphaned)
    if place is not None and worker is not None and worker.orphaned:
        with contextlib.suppress(OSError):
            os.rmdir(place.directory)  # nobody else does if the parent was killed; the last one can
    return 0


class Sidecar:
    """One running Pannier: listeners, clients, links."""

    def __init__(
        self, settings: Settings, upstream: Upstream, bundled: str = "", place: Place | None = None
    ) -> None:
        self.settings = settings
        self.place = place
        """Which one of several workers it is; None: there is one process only."""
        self.upstream = upstream
        self.bundled = bundled
        """Version of the bundled redis-server, if that is the upstream."""
        self.table = CommandTable.load()
        dispatcher = Dispatcher(self.table)
        patience = min(settings.connect_timeout, settings.upstream_timeout)
        connector = Connector(upstream, patience, settings.tcp_keepalive)
        backoff = (settings.reconnect_min, settings.reconnect_max)
        self.tier = _tier(settings, self.table)
        self.links = LinkPool(
            connector,
            dispatcher,
            settings.upstream_timeout,
            backoff,
            self._care,
            self._closed,
            settings.breaker_failures,
            settings.coherence_timeout,
        )
        identity = Identity(_bytes(upstream.username), _bytes(upstream.password))
        self.clients = Clients(
            settings, self.links, dispatcher, identity, upstream.db, self.info, self.tier, self.stats
        )
        self._started = time.monotonic()
        protocol = link_protocol(Shape.PLAIN, 2, self.tier is not None)
        self._main = LinkKey(identity, upstream.db, protocol, self.clients.spaces.start.name)
        self.sources = Sources(settings, self.clients, self.links, self._main, self._started, self.stats)
        self.admin = self._administration()
        self._tls = self._prepare_tls()
        self._prepared: tuple[tuple[Sequence[CacheRule], Defaults], Policy] | None = None
        """Rules that have been read and made ready to be put in force."""
        self.obey(settings)
        self.warming = Warming(settings, self.clients)
        self.sources.warming = self.warming
        self.warming.writes = place is None or place.number == 1
        self.clients.warm = lambda: self.warming.ready
        self.clients.listening = False
        self.reloader: Reloader | None = None
        """What reads the rules again."""
        self.bus: Bus | None = None
        """Made when it is known which namespaces there are."""
        self.addresses: list[str] = []
        """Where clients are served, with the ports the system chose."""
        self.passed = NONE_PASSED
        """Sockets to serve with, where they are at the addresses of the settings."""
        self._servers: list[Server] = []
        """What listens, in the order of the setting."""
        self._canary: Canary | None = None
        self._learning: asyncio.Task[None] | None = None
        self._learnt: tuple[LinkKey, int] | None = None
        """Over which link, and which connection of it, the command table was last overlaid."""

    def drain(self, draining: bool) -> None:
        """Have clients go elsewhere, or no longer, as a worker's parent says."""
        self.clients.draining = draining

    def _administration(self) -> Admin:
        """What is served over HTTP: to operators, or of several workers to the parent and the others."""
        routes = Routes(self.sources)
        if self.place is None:
            admin = Admin(self.settings)
            add_page(admin)
        else:
            self.clients.join(Siblings(self.place), bytes.fromhex(self.place.secret))
            self.clients.draining = self.place.draining
            admin = Admin(private_settings(self.settings, self.place), ROOMY)
            Private(self.sources, routes).add_to(admin)
        routes.add_to(admin)
        return admin

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen and serve while the context lasts. Raises StartupError if an address cannot be had."""
        loop = asyncio.get_running_loop()
        main = self.links.attach(self._main)
        servers = self._servers
        ticker: asyncio.Task[None] | None = None
        lag: asyncio.Task[None] | None = None
        canary: asyncio.Task[None] | None = None
        listener: asyncio.Task[None] | None = None
        try:
            await self.admin.start(self.passed)
            spaces = [self.clients.spaces.of(listen) for listen in self.settings.listen]
            if any(space.namespace is not None or space.locked for space in spaces):
                await self._learn_first(main)
            for listen in self.settings.listen:
                session = functools.partial(self.clients.session, self.clients.spaces.of(listen))
                make = cast(Callable[[], asyncio.Protocol], session)
                tls = self._tls if listen.tls else None
                servers.append(await serve(make, listen, tls, passed=self.passed))
                self.addresses += addresses(servers[-1], listen)
            self.clients.listening = True
            ticker = loop.create_task(self._tick(main))
            lag = loop.create_task(self.sources.lag.run())
            listener = self._join_bus(loop)
            if self.tier is not None and self.settings.canary_interval:
                timeout = self.settings.coherence_timeout
                prefix = self.clients.spaces.start.prefix
                self._canary = Canary(self.links, main, self.settings.canary_interval, timeout, prefix)
                self.sources.canary = self._canary
                canary = loop.create_task(self._canary.run())
            self.warming.start(self.bus)
            yield
        finally:
            self._stop_listening()
            for task in (ticker, lag, canary, listener, self._learning):
                if task is not None:
                    task.cancel()
            if listener is not None:
                await asyncio.wait([listener])
            await self.warming.close()
            await self.clients.close()
            if self.tier is not None:
                self.tier.close()
            await self.links.close()
            self.admin.close()

    async def wind_down(self, orphaned: bool = False) -> None:
        """Say that clients are to go elsewhere, accept none after `drain_delay`, and see off who is here.

        `orphaned`: nobody hears that, as the parent has ended.
        """
        clients, settings = self.clients, self.settings
        clients.draining = True
        if settings.drain_delay and not orphaned:
            log.info(
                "not ready any more; listening for %s still", show_duration(settings.drain_delay),
                extra=fields("draining", seconds=settings.drain_delay),
            )  # fmt: skip
            await asyncio.sleep(settings.drain_delay)
        self._stop_listening()
        if clients.sessions and (cut := await retiring.drain(clients, settings.drain_timeout)):
            log.warning(
                "%d clients are cut off: they were not done within a drain_timeout of %s",
                cut, show_duration(settings.drain_timeout),
                extra=fields("clients_cut_off", clients=cut, seconds=settings.drain_timeout),
            )  # fmt: skip

    def _stop_listening(self) -> None:
        """Accept no more clients."""
        self.clients.listening = False
        for server, listen in zip(self._servers, self.settings.listen, strict=False):
            server.close()
            clear_away(listen, self.passed)
        self._servers.clear()

    def obey(self, settings: Settings) -> None:
        """Put the cache rules and the mode of some settings in force."""
        limits = _limits(settings)
        self.sources.settings = settings
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] == (settings.rules, limits):
            self.clients.obey(prepared[1])
        else:
            self.clients.obey(Policy(settings.rules, limits))

    def take_tenants(self, settings: Settings) -> None:
        """Serve the tenants of some settings from now on."""
        self.sources.settings = settings
        gone, new = self.clients.take_tenants(settings.tenants)
        names = {
            "gone": [space.name for space in gone if space.name not in {each.name for each in new}],
            "new": [space.name for space in new],
        }
        log.info(
            "%d tenants in force; new or another one now: %s; gone: %s", len(settings.tenants),
            ", ".join(names["new"]) or "none", ", ".join(names["gone"]) or "none",
            extra=fields("tenants_reloaded", tenants=len(settings.tenants), **names),
        )  # fmt: skip

    def prepared(self, settings: Settings) -> Settings:
        """Do what takes long about putting rules in force, on a thread of its own."""
        limits = _limits(settings)
        self._prepared = (settings.rules, limits), Policy(settings.rules, limits)
        return settings

    async def first_contact(self) -> None:
        """Wait until it is known whether Redis can be reached."""
        link = self.links.shared.get(self._main)
        if link is not None:
            await link.settled()
            if link.tracking is not None and link.state is LinkState.READY:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FIRST_WORD):
                        await link.tracking.settled.wait()

    def banner(self) -> str:
        """What listens where and what is behind it, for a person."""
        link = self.links.shared.get(self._main)
        listening = ", ".join(self.addresses)
        lines = [f"pannier {__version__} serves {listening}", f"  upstream   {self._behind(link)}"]
        lines += [f"  {line}" for line in self._key_spaces()]
        lines.append(f"  memory     {self._memory(link)}")
        if warming := self.warming.banner():
            lines.append(f"  warming    {warming}")
        if self.bundled:
            lines.append(
                "  note       the bundled redis-server keeps nothing: give --upstream for a real one"
            )
        if self.place is None and (self.admin.addresses or self.admin.trouble):
            lines.append(f"  admin      {self.admin.url or 'not served: its address is taken'}")
        lines.append("  stop       Ctrl-C")
        return "\n".join(lines)

    def choices(self) -> dict[str, object]:
        """What the banner says, for programs."""
        link = self.links.shared.get(self._main)
        tracking = link.tracking if link is not None else None
        return {
            "upstream": self.upstream.redacted,
            "upstream_status": status(link),
            "upstream_version": self._version(link),
            "bundled": bool(self.bundled),
            "tracking": tracking.mode.label if tracking is not None else "off",
            "tenants": len(self.settings.tenants),
        }

    def info(self, space: Space) -> str:
        """The section `# Sidecar` of INFO, for who is in a space: in a namespace, nothing about the
        others."""
        if space.namespace is not None:
            fields = {"pannier_version": __version__} | _named(self.stats(space))
            return "# Sidecar\r\n" + "".join(f"{name}:{value}\r\n" for name, value in fields.items())
        link = self.links.shared.get(self._main)
        clients, links = self.clients, self.links
        fields = {
            "pannier_version": __version__,
            "pannier_pid": os.getpid(),
            "pannier_worker": self.place.number if self.place is not None else 1,
            "pannier_workers": self.place.of if self.place is not None else 1,
            "pannier_uptime_in_seconds": int(time.monotonic() - self._started),
            "pannier_listening": ",".join(self.addresses),
            "pannier_upstream": self.upstream.redacted,
            "pannier_upstream_version": self._version(link),
            "pannier_upstream_status": status(link),
            "pannier_upstream_reconnects": links.connector.tally.reconnects,
            "pannier_connected_clients": len(clients.sessions),
            "pannier_max_clients": self.settings.max_clients,
            "pannier_total_connections_received": clients.received,
            "pannier_rejected_connections": clients.rejected,
            "pannier_killed_connections": clients.killed,
            "pannier_total_commands_processed": clients.commands,
            "pannier_shared_links": len(links.shared),
            "pannier_pinned_links": len(links.pinned),
            "pannier_commands_in_flight": sum(len(shared.fifo) for shared in links.shared.values()),
        }
        if self.reloader is not None:
            fields["pannier_rules_status"] = self.reloader.trouble or "in force"
            fields["pannier_rules_reloads"] = self.reloader.reloads
        fields |= self._tls_fields()
        fields |= _named(self.stats(space))
        for other in clients.spaces:
            if other.namespace is not None or other.tenant is not None:
                fields[f"pannier_space_{other.name}"] = _in_short(other)
        return "# Sidecar\r\n" + "".join(f"{name}:{value}\r\n" for name, value in fields.items())

    def _prepare_tls(self) -> Tls | None:
        """What listeners with TLS need; None: there are none. Raises SettingsError."""
        settings, shown = self.settings, self.sources.certificates
        if self.admin.certificates is not None:
            shown["admin_tls_cert"] = self.admin.certificates
        if not settings.tls_cert:
            return None
        shown["tls_cert"] = of_settings(
            "tls", settings.tls_cert, settings.tls_key, settings.tls_client_ca, settings.tls_min_version
        )
        return Tls(shown["tls_cert"], self.clients.handshakes)

    def _tls_fields(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, each in self.sources.certificates.items():
            name = name.removesuffix("_cert")
            found[f"pannier_{name}_status"] = each.status
            found[f"pannier_{name}_expires"] = moment(each.expires)
            found[f"pannier_{name}_reloads"] = each.reloads
        if self._tls is not None:
            found["pannier_tls_handshakes"] = self.clients.handshakes.done
            found["pannier_tls_handshakes_failed"] = sum(self.clients.handshakes.failed.values())
        return found

    def _care(self, key: LinkKey) -> Care | None:
        """How the shelf of a shared link is kept true."""
        if self.tier is None:
            return None
        if key.protocol != 3:
            return Care(settle=self.tier.drop, settle_run=self.clients.settle_run)
        space = self.clients.spaces.find(key.space)
        heartbeat = self.settings.coherence_timeout / 3
        # Nobody reads over the link of those who have not authenticated, so its shelf is none of the tier's.
        shelf = Shelf(self.tier, self.tier.main) if space.locked else self.tier.shelf(key, space.account)
        drop, prefix = self.tier.drop, space.prefix

        def settle(keys: Iterable[int]) -> None:
            drop(keys, prefix)

        settle_run = functools.partial(self.clients.settle_run, prefix=space.prefix)
        ladder = LADDERS[self.settings.tracking]
        if self.settings.broadcast == "writes" or (self.settings.broadcast == "auto" and ladder):
            ladder = (*ladder, Mode.BUS)
            asyncio.get_running_loop().call_soon(self.clients.weigh)  # when the pool has the link
        away_after = self.settings.coherence_timeout if self.settings.on_upstream_down == "stale" else 0.0
        weigh = self.clients.weigh
        return Care(shelf, ladder, heartbeat, settle, settle_run, prefix, away_after, weigh)

    def _closed(self, key: LinkKey) -> None:
        if self.tier is not None:
            self.tier.discard(key)

    def _bus_fields(self, space: Space) -> dict[str, object]:
        """What the eviction bus does; in a namespace, nothing about the others."""
        if self.bus is None or space.namespace is not None:
            return {}
        told = "writes" if self.clients.tells_writes else "explicit"
        return {"bus_tells": told, **self.bus.fields()}

    def stats(self, space: Space) -> dict[str, object]:
        """What the memory tier holds and does, by name: all of it, or for a namespace."""
        fields: dict[str, object]
        tier, links = self.tier, self.links.shared
        leases = self.clients.leases.figures(space)
        link = links.get(self._main)
        if space.namespace is not None:
            link = next(
                (link for key, link in links.items() if key.space == space.name and link.tracking), None
            )
        if tier is None or link is None or link.tracking is None:
            fields = {"tracking": "off", "tracking_reason": "switched off", **leases} | _counted(space)
            fields |= under_way(self.clients.sessions.values(), space)
            return fields | self._bus_fields(space)
        shelf = tier.shelves.get(link.key)
        trouble = shelf.trouble if shelf is not None else ""
        accounts = (
            [space.account] if space.namespace is not None and space.account is not None else tier.accounts
        )
        fields = {
            "tracking": "off" if trouble else link.tracking.mode.label,
            "tracking_reason": trouble or link.tracking.reason,
            **outage_fields(self.clients, space),
            **_tier_fields(accounts),
            **rule_fields(tier, accounts, self.clients.verifier is not None),
            **leases,
            **under_way(self.clients.sessions.values(), space),
            **_counted(space),
        }
        if space.namespace is None:
            fields["connected_clients"] = len(self.clients.sessions)
            fields["total_commands_processed"] = self.clients.commands
        if space.namespace is None or space is self.warming.space:
            fields |= self.warming.fields()
        fields |= self._bus_fields(space)
        if self._canary is not None:
            canary = self._canary
            fields |= {
                "invalidation_lag_p50_us": round(canary.lag(0.5) * 1e6),
                "invalidation_lag_p99_us": round(canary.lag(0.99) * 1e6),
                "invalidation_lag_max_us": round(canary.lag(1.0) * 1e6),
                "invalidation_lag_samples": len(canary.lags),
                "invalidation_lag_lost": canary.lost,
            }
        return fields

    # --- what goes on beside the clients

    async def _tick(self, main: SharedLink) -> None:
        while True:
            teacher = self._teacher(main)
            if teacher is not None and (teacher.key, teacher.reconnects) != self._learnt:
                self._learnt = (teacher.key, teacher.reconnects)
                self._learning = asyncio.get_running_loop().create_task(self._learn_commands(teacher))
            await asyncio.sleep(TICK)
            try:
                self.clients.tick()
            except Exception:
                log.exception("internal error in the periodic round", extra=fields("internal_error"))

    def _teacher(self, main: SharedLink) -> SharedLink | None:
        """The link over which the server may be asked for its commands: the main one if it may ask."""
        for link in (main, *self.links.shared.values()):
            if link.state is LinkState.READY and not link.auth_required:
                return link
        return None

    def _join_bus(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
        """Listen to other sidecars, and have them listen.

        Without a tier there is nothing to forget here, but clients may have the others forget.
        """
        settings = self.settings
        if settings.broadcast == "off":
            return None
        namespaces = [space.namespace for space in self.clients.spaces if space.namespace is not None]
        heartbeat = settings.coherence_timeout / 3
        channel = settings.evict_channel
        unheard = f"{channel}{NOBODY}{os.urandom(8).hex()}"

        def own_link() -> SharedLink | None:
            return self.links.shared.get(self._main)

        # Tenants may come and go: then others are heard as well, so that no channel has to be added.
        whole_names = self.clients.spaces.mode == "tenants" or any(
            space.namespace is None and not space.locked for space in self.clients.spaces
        )
        connect = functools.partial(subscriber, self.links.connector, self.clients.identity, b"pannier-bus")
        self.bus = Bus(
            connect, self.tier, namespaces, channel, Counting(own_link, unheard), heartbeat,
            settings.upstream_timeout, whole_names, own_link,
        )  # fmt: skip
        self.clients.bus, self.clients.tells_writes = self.bus, settings.broadcast == "writes"
        self.clients.weigh()
        self.sources.bus = self.bus
        return loop.create_task(self.bus.run()) if self.tier is not None else None

    async def _learn_first(self, main: SharedLink) -> None:
        """Learn what the server has before anybody is served, if it can be reached.

        In a namespace, Redis' error about a command that it does not have would show the prefix.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_WORD):
                await main.settled()
                if self._teacher(main) is main:
                    self._learnt = (main.key, main.reconnects)
                    await self._learn_commands(main)

    async def _learn_commands(self, link: SharedLink) -> None:
        """Overlay the command table with what this very server reports."""
        reader = hiredis.Reader()
        try:
            reader.feed(await Question().ask(link, encode.request("COMMAND")))
            commands = reader.gets()
            if isinstance(commands, hiredis.ReplyError):
                why = without_arguments(str(commands))
                about = fields("commands_unknown", reason=why)
                log.warning("the server does not tell its commands: %s", why, extra=about)
                return
            added = self.table.overlay(commands)
            self.clients.learn()
        except (UpstreamError, hiredis.ProtocolError) as error:
            about = fields("commands_unknown", reason=str(error))
            log.warning("the server's own command table could not be had: %s", error, extra=about)
            return
        about = fields("commands_learnt", added=added)
        log.debug("command table: %d commands more from the server", added, extra=about)

    def _behind(self, link: SharedLink | None) -> str:
        if link is not None and isinstance(link.error, UpstreamRefused) and link.state is LinkState.DOWN:
            return f"{self.upstream.redacted} refuses us ({link.error}), trying again"
        if link is None or link.state is not LinkState.READY:
            return f"{self.upstream.redacted}: not reachable yet, trying again"
        what = "bundled redis-server" if self.bundled else "redis-server"
        needs = " (clients have to authenticate)" if link.auth_required else ""
        return f"{what} {self._version(link)} at {self.upstream.redacted}{needs}"

    def _key_spaces(self) -> list[str]:
        """Who sees which keys, if not everybody all of them."""
        spaces = self.clients.spaces
        tenants = [space for space in spaces if space.tenant is not None]
        if tenants:
            return [f"tenants    {len(tenants)}; clients have to authenticate as one of them"]
        return [
            f"namespace  {space.name}: keys live under {space.name}:"
            for space in spaces
            if space.namespace is not None
        ]

    def _memory(self, link: SharedLink | None) -> str:
        if self.tier is None:
            return "nothing is kept: tracking is off"
        size = show_size(self.settings.max_memory)
        origin = self.settings.origins.get("max_memory", "")
        if origin.startswith("default,"):
            size += f" ({origin})"
        if self.place is not None:
            size += f" in each of {self.place.of} workers"
        tracking = link.tracking if link is not None else None
        if tracking is None or link is None or link.state is not LinkState.READY:
            return f"reads will be kept in up to {size}"
        if tracking.mode is Mode.OFF:
            return f"nothing is kept: {tracking.reason}"
        if tracking.mode is Mode.BUS:
            return f"reads are kept in up to {size}; other Panniers tell of changes (tracking bus)"
        return f"reads are kept in up to {size}; Redis tells of changes (tracking {tracking.mode.label})"

    def _version(self, link: SharedLink | None) -> str:
        version = link.wire.hello.get(b"version", b"") if link is not None and link.wire is not None else b""
        return str(version.decode("ascii", "replace")) or self.bundled or "unknown"


async def _first(contact: Coroutine[None, None, None], endings: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for the first contact with Redis, unless that is to end before there is any."""
    task = asyncio.ensure_future(contact)
    try:
        await asyncio.wait([task, *endings], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()


def _limits(settings: Settings) -> Defaults:
    stale = settings.stale_max if settings.on_upstream_down == "stale" else 0.0
    return Defaults(settings.l1_ttl, settings.max_value_size, Serve[settings.mode.upper()], stale)


def _tier(settings: Settings, table: CommandTable) -> Tier | None:
    if settings.tracking == "off" and settings.broadcast != "writes":
        return None
    limits = Limits(
        max_memory=settings.max_memory,
        max_entries=settings.max_entries,
        max_value_size=settings.max_value_size,
        l1_ttl=settings.l1_ttl,
        l1_ttl_untracked=settings.l1_ttl_untracked,
        coherence_timeout=settings.coherence_timeout,
        admit_after=settings.admit_after,
        refill_limit=settings.refill_limit,
        stale_max=settings.stale_max if settings.on_upstream_down == "stale" else 0.0,
    )
    tier = Tier(limits, Rules(table))
    tier.shows_names = settings.key_privacy == "plain"
    tier.eager = True
    if settings.verify:
        tier.stride = max(0, min(STRIDE, round(1 / settings.verify) - 1))
    return tier


def _named(stats: dict[str, object]) -> dict[str, object]:
    """Statistics as INFO calls them."""
    return {f"pannier_{name}": value for name, value in stats.items()}


def _tier_fields(accounts: list[Account]) -> dict[str, object]:
    """What some accounts hold and do, added up."""

    def total(counter: str) -> int:
        return sum([getattr(account, counter) for account in accounts])

    hits, misses, fills = total("hits"), total("misses"), total("fills")
    budgets = {account.budget for account in accounts}
    return {
        "tier_hits": hits,
        "tier_misses": misses,
        "tier_stale_hits": total("stale_hits"),
        "tier_hit_rate": f"{hits / (hits + misses) if hits + misses else 0:.4f}",
        "tier_coalesced": total("coalesced"),
        "tier_passed": total("passed"),
        "tier_entries": total("entries"),
        "tier_bytes": total("used"),
        "tier_max_memory": sum([budget.max_memory for budget in budgets]),
        "tier_fills": fills,
        "tier_evictions": total("evicted"),
        "tier_expirations": total("expired"),
        "tier_invalidations": total("invalidated"),
        "tier_overwritten": total("overwritten"),
        "tier_pushes": total("pushes"),
        "tier_pushes_per_fill": f"{total('pushes') / fills if fills else 0:.3f}",
    }


def _counted(space: Space) -> dict[str, object]:
    """What is counted for a tenant or namespace beside the tier."""
    if space.namespace is None:
        return {}
    counted: dict[str, object] = {
        "connected_clients": len(space.sessions),
        "total_commands_processed": space.commands,
    }
    if space.bucket is not None:
        counted["refused_commands"] = space.refused
    return counted


def _in_short(space: Space) -> str:
    """One line about a space, in the style of INFO's `# Keyspace`."""
    account = space.account
    fields: dict[str, object] = {"clients": len(space.sessions), "commands": space.commands}
    if account is not None:
        fields |= {"hits": account.hits, "misses": account.misses, "entries": account.entries}
        fields |= {"bytes": account.used, "evictions": account.evicted}
    if space.bucket is not None:
        fields["refused"] = space.refused
    return ",".join(f"{name}={value}" for name, value in fields.items())


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _raise_file_limit(clients: int) -> None:
    """Ask for as many file descriptors as `clients` may need, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * clients + _FILES_BESIDE_CLIENTS
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    granted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted < clients + _FILES_BESIDE_CLIENTS:
        log.warning(
            "only %d file descriptors allowed: fewer clients than max_clients can be served", granted,
            extra=fields("few_files", allowed=granted, max_clients=clients),
        )  # fmt: skip


def _in_place(settings: Settings, place: Place) -> tuple[Settings, Passed]:
    """A worker's share of the settings, and the sockets it was started with."""
    return share(settings, place), Passed(by_address=place.sockets())


def _load_share(again: Load, place: Place) -> Settings:
    return share(again(), place)


def _on_signals(stop: Stop, at_once: Iterable[Callable[[], None]]) -> None:
    """Stop on the first signal; end at once on the second, having done what is in `at_once` by then."""
    loop = asyncio.get_running_loop()

    def handle(number: int) -> None:
        if stop.is_set():
            for do in at_once:
                do()
            os._exit(128 + number)
        stop.signal = signal.Signals(number).name
        stop.set()

    wanted: Iterable[int] = (signal.SIGINT, signal.SIGTERM)
    for number in wanted:
        loop.add_signal_handler(number, handle, number)


def _settle_garbage_collector() -> None:
    """Leave what start-up made out of all later collections, and collect the young ones less often.

    The hot path makes no cycles; a collection every 700 allocations would cost it for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
