"""What a worker answers to its parent and its siblings only, over its private socket.

That socket is in a directory which nobody else may enter, so there is no token. Beside the usual routes are
`POST /sibling`, a client's command on behalf of another worker; `GET /families`, all metrics as data, with
how those of several workers become one; and what changes something without telling other Panniers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from proxy.client import local
from proxy.kinds import Secret
from proxy.observe.admin import Admin
from proxy.observe.answers import Answer, Refused, report
from proxy.observe.asking import Absent, Silent, ask
from proxy.observe.http import Request
from proxy.observe.routes import Routes, parameters, space_of
from proxy.observe.sources import Sources
from proxy.observe.stats import situation
from proxy.places import Place
from proxy.settings import Settings
from proxy.upstream.address import Listen

_RAW = "application/octet-stream"


def private_settings(settings: Settings, place: Place) -> Settings:
    """Settings of an administration that is there for the parent and the siblings."""
    origins = {**settings.origins, "admin_listen": "worker"}
    listen = Listen(path=place.private)
    return dataclasses.replace(
        settings, admin_listen=listen, admin_tls_cert="", admin_tls_key="", admin_changes="on",
        admin_protect="changes", token=Secret(), origins=origins,
    )  # fmt: skip


class Siblings:
    """The other workers. Implements `client.siblings.Crew`."""

    def __init__(self, place: Place) -> None:
        self.number = place.number
        self.of = place.of
        self._paths = place.siblings

    async def ask(self, about: Mapping[str, Any], request: bytes, patience: float) -> dict[int, bytes | None]:
        """What those that run reply to a request, by their number; None: nothing in time."""
        body = json.dumps(about).encode() + b"\n" + request
        asked = [self._one(path, body, patience) for path in self._paths.values()]
        found = zip(self._paths, await asyncio.gather(*asked), strict=True)
        return {number: reply for number, reply in found if reply != b""}

    async def _one(self, path: str, body: bytes, patience: float) -> bytes | None:
        try:
            answer = await ask(path, "POST", "/sibling", body, {"Content-Type": _RAW}, patience)
        except Silent:
            return None
        except Absent:
            return b""
        return answer.body if answer.status == 200 else None


class Private:
    """The routes beside the usual ones."""

    def __init__(self, sources: Sources, routes: Routes) -> None:
        self._sources = sources
        self._routes = routes

    def add_to(self, admin: Admin) -> None:
        """Have them served."""
        admin.add("POST", "/sibling", self._sibling)
        admin.add("GET", "/families", self._families)
        admin.add("GET", "/situation", self._situation)
        admin.add("POST", "/quiet/invalidate", lambda request: self._routes.invalidate(request, quiet=True))
        admin.add("POST", "/quiet/drain", self._routes.drain)

    async def _sibling(self, request: Request) -> Answer:
        """The reply to a client's command; in the body, who it is and what it says."""
        about, _, data = request.body.partition(b"\n")
        try:
            reply = await local.answer_sibling(self._sources.clients, json.loads(about), data)
        except KeyError:
            raise Refused(400, "there is no such space here") from None
        return Answer(reply, kind=_RAW)

    async def _families(self, request: Request) -> Answer:
        metrics = await asyncio.to_thread(import_module, "proxy.observe.metrics")
        clients = self._sources.clients
        await clients.volume.look_at(clients.sessions.values())
        return report(metrics.as_data(self._sources))

    def _situation(self, request: Request) -> Answer:
        """What the recommendation of /stats goes by."""
        name = parameters(request, "namespace").get("namespace")
        only = None if name is None else space_of(self._sources, name)
        return report(dataclasses.asdict(situation(self._sources, only)))
