"""What the administration answers: /healthz, /readyz, /stats, /hotkeys, /config, /invalidate, /drain."""

from __future__ import annotations

import asyncio
import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

from proxy.client import health
from proxy.client.hotkeys import FEW, MOST
from proxy.client.invalidating import drop_many, drop_patterns, too_long
from proxy.client.spaces import Space
from proxy.observe import popular
from proxy.observe.admin import Admin
from proxy.observe.answers import Answer, Refused, report
from proxy.observe.http import Request
from proxy.observe.sources import Sources
from proxy.observe.stats import stats
from proxy.resp.eviction import BadMessage, read_names
from proxy.resp.globs import LONGEST_PATTERNS
from proxy.showing import as_fields

if TYPE_CHECKING:
    from proxy.observe.metrics import Collector


class Routes:
    """Answers requests about a running sidecar, and of its operators."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._collector: Collector | None = None
        """What answers /metrics, from the first scrape on."""

    def add_to(self, admin: Admin) -> None:
        """Have them served."""
        admin.add("GET", "/healthz", self._healthz)
        admin.add("GET", "/readyz", self._readyz)
        admin.add("GET", "/metrics", self._metrics)
        admin.add("GET", "/stats", self._stats)
        admin.add("GET", "/hotkeys", self._hotkeys)
        admin.add("GET", "/config", self._config)
        admin.add("POST", "/invalidate", self._invalidate)
        admin.add("POST", "/drain", self.drain)

    def _healthz(self, request: Request) -> Answer:
        """Alive: the loop turns, or nobody would answer."""
        return report({"alive": True})

    def _readyz(self, request: Request) -> Answer:
        """Ready, as SIDECAR HEALTH judges."""
        found = health.judge(self._sources.clients)
        fields: dict[str, Any] = {"ready": found.ready, "reasons": list(found.reasons)}
        fields |= {name: getattr(found, name) for name in health.SHOWN}
        return report(fields, 200 if found.ready else 503)

    async def _metrics(self, request: Request) -> Answer:
        if self._collector is None:
            # With prometheus-client: 4 MB and a twentieth of a second that clients need not wait for.
            metrics = await asyncio.to_thread(import_module, "proxy.observe.metrics")
            self._collector = metrics.Collector(self._sources)
        return await self._collector.answer(request)

    async def _stats(self, request: Request) -> Answer:
        name = parameters(request, "namespace").get("namespace")
        only = None if name is None else space_of(self._sources, name)
        clients = self._sources.clients
        await clients.volume.look_at(clients.sessions.values())
        found = await popular.advice(popular.view(clients, only))
        return report(stats(self._sources, only) | found)

    async def _hotkeys(self, request: Request) -> Answer:
        """What SIDECAR HOTKEYS, BIGKEYS and CHURN say."""
        given = parameters(request, "n", "namespace")
        n = given.get("n", str(FEW))
        if not (n.isascii() and n.isdigit() and len(n) <= len(str(MOST)) and 0 < int(n) <= MOST):
            raise Refused(400, f"n is not a whole number of 1 to {MOST}")
        only = space_of(self._sources, given["namespace"]) if "namespace" in given else None
        return report(await popular.lists(popular.view(self._sources.clients, only), int(n)))

    def _config(self, request: Request) -> Answer:
        parameters(request)
        settings = self._sources.settings
        return report(as_fields(settings, settings.origins))

    def drain(self, request: Request) -> Answer:
        """Have whoever balances send clients elsewhere, or here again. Clients are served all the same."""
        parameters(request)
        wanted = body(request, "draining") if request.body else {}
        draining = wanted.get("draining", True)
        if not isinstance(draining, bool):
            raise Refused(400, "draining is neither true nor false")
        clients = self._sources.clients
        clients.draining = draining
        return report({"draining": draining, "connected_clients": len(clients.sessions)})

    async def _invalidate(self, request: Request) -> Answer:
        return await self.invalidate(request)

    async def invalidate(self, request: Request, quiet: bool = False) -> Answer:
        """The work of SIDECAR INVALIDATE. `quiet`: somebody else tells other Panniers."""
        parameters(request)
        wanted = body(request, "keys", "patterns", "namespace")
        try:
            keys, patterns = read_names(wanted, "keys"), read_names(wanted, "patterns")
        except BadMessage as error:
            raise Refused(400, f"the body {error}") from None
        if not keys and not patterns:
            raise Refused(400, 'nothing to invalidate; give {"keys": [...]} or {"patterns": [...]}')
        if too_long(patterns):
            raise Refused(400, f"the patterns have more than {LONGEST_PATTERNS} bytes together")
        space = space_of(self._sources, wanted.get("namespace"))
        link = self._sources.link(space)
        if link is None:
            raise Refused(503, "pannier is stopping")
        told = link if not quiet else None
        clients = self._sources.clients
        shelves = list(clients.tier.shelves.values()) if clients.tier is not None else []
        dropped = await drop_many(clients, space, told, list(keys), shelves)
        if patterns:
            dropped += await drop_patterns(clients, space, told, list(patterns), shelves)
        asked = {"keys": len(keys), "patterns": len(patterns)}
        up = clients.bus is not None and clients.bus.up
        return report({"invalidated": dropped, **asked, "told_others": up})


def parameters(request: Request, *known: str) -> dict[str, str]:
    """What stands behind the `?`. Raises Refused if anything else does than these."""
    found: dict[str, str] = {}
    for name, value in request.query:
        if name not in known:
            there = f"known: {', '.join(known)}" if known else "there are none"
            raise Refused(400, f"unknown parameter {name!r}; {there}")
        if name in found:
            raise Refused(400, f"the parameter {name} is given twice")
        found[name] = value
    return found


def body(request: Request, *known: str) -> dict[str, Any]:
    """The JSON object of a request's body. Raises Refused if it is none, or has other fields than these."""
    kind = request.fields.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "the body has to be JSON (Content-Type: application/json)")
    try:
        found = json.loads(request.body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is no JSON object")
    for name in found:
        if name not in known:
            raise Refused(400, f"unknown field {name!r} in the body; known: {', '.join(known)}")
    return found


def space_of(sources: Sources, name: object) -> Space:
    """The space of a namespace or tenant; None: the one in which clients begin. Raises Refused."""
    spaces = sources.clients.spaces
    if name is None or name == "":
        return spaces.start
    for space in spaces:
        if space.namespace is not None and name in (space.namespace.name, space.name):
            return space
    there = ", ".join(sorted({space.namespace.name for space in spaces if space.namespace is not None}))
    raise Refused(400, f"there is no namespace {str(name)[:80]!r}; there are: {there or 'none'}")
