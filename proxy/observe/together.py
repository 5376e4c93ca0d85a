"""The administration of all workers: what their parent answers, having asked each of them.

`?worker=2` has one answer alone. One that is not running, or does not answer in time, is named and not waited
for: /readyz is not ready then, /metrics has `pannier_worker_up`, and in JSON it stands in `silent_workers`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from proxy.observe import merging
from proxy.observe.admin import Admin
from proxy.observe.answers import Answer, Refused, report
from proxy.observe.asking import Absent, Silent, ask
from proxy.observe.http import Request
from proxy.settings import Settings
from proxy.showing import as_fields

PATIENCE = 5.0
"""Seconds that a worker may take to answer."""
_GLANCE = 0.8
"""Seconds that it may take where an orchestrator asks, who waits for a second by default."""
_LONG = 600.0
"""Seconds that it may take to drop entries: it looks at each."""
_FEW, _MOST = 10, 1000
"""Keys that /hotkeys lists, unless told and at most."""


class Worker(Protocol):
    """A worker as its parent sees it."""

    number: int
    restarts: int
    running: bool
    path: str
    """Its private socket."""

    def say(self, what: str, **more: object) -> None:
        """Tell it something, if it is there."""


@dataclass(slots=True)
class Crew:
    """All workers, and what is said of them together."""

    settings: Settings
    workers: Mapping[int, Worker] = field(default_factory=dict)
    stopping: bool = False
    draining: bool = False
    """Whether somebody has said so."""

    def tell(self, worker: Worker) -> None:
        """Tell a worker whether it is draining: who is being started has not been there to be asked."""
        worker.say("drain", draining=self.draining)


class Together:
    """Answers requests about all workers."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def add_to(self, admin: Admin) -> None:
        """Have them served."""
        admin.add("GET", "/healthz", self._healthz)
        admin.add("GET", "/readyz", self._readyz)
        admin.add("GET", "/metrics", self._metrics)
        admin.add("GET", "/stats", self._stats)
        admin.add("GET", "/hotkeys", self._hotkeys)
        admin.add("GET", "/config", self._config)
        admin.add("POST", "/invalidate", self._invalidate)
        admin.add("POST", "/drain", self._drain)

    # --- asking

    async def _ask(
        self, method: str, target: str, body: bytes = b"", patience: float = PATIENCE,
        numbers: list[int] | None = None,
    ) -> tuple[dict[int, Answer], dict[int, str]]:  # fmt: skip
        """The answers of the workers, and why others have given none. Raises Refused if one refuses."""
        fields = {"Content-Type": "application/json"} if body else {}
        wanted = list(self._crew.workers) if numbers is None else numbers

        async def one(number: int) -> Answer | str:
            worker = self._crew.workers[number]
            if not worker.running:
                return "is being started"
            try:
                return await ask(worker.path, method, target, body, fields, patience)
            except Silent:
                return "does not answer"
            except Absent:
                return "is being started"

        found = dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))
        answers = {number: each for number, each in found.items() if isinstance(each, Answer)}
        for answer in answers.values():
            if 400 <= answer.status < 500:
                raise Refused(answer.status, json.loads(answer.body)["reason"])
        return answers, {number: each for number, each in found.items() if isinstance(each, str)}

    async def _parts(
        self, method: str, target: str, body: bytes = b"", patience: float = PATIENCE
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """The same, read as JSON. Raises Refused if nobody answers."""
        answers, missing = await self._ask(method, target, body, patience)
        if not answers:
            raise Refused(503, "; ".join(_said(missing)))
        return {number: json.loads(answer.body) for number, answer in answers.items()}, missing

    async def _of_one(self, request: Request) -> Answer | None:
        """The answer of the one worker that is asked for; None: all are. Raises Refused."""
        given = [value for name, value in request.query if name == "worker"]
        if not given:
            return None
        number = int(given[0]) if given[0].isdigit() and len(given[0]) < 5 else 0
        if len(given) > 1 or number not in self._crew.workers:
            raise Refused(400, f"there is no such worker; there are 1 to {len(self._crew.workers)}")
        worker = self._crew.workers[number]
        query = urlencode([(name, value) for name, value in request.query if name != "worker"])
        accept = {"Accept": request.fields["accept"]} if "accept" in request.fields else {}
        try:
            if worker.running:
                return await ask(worker.path, "GET", _target(request.path, query), b"", accept, PATIENCE)
        except Silent:
            raise Refused(503, f"worker {number} does not answer") from None
        except Absent:
            pass
        raise Refused(503, f"worker {number} is being started")

    # --- the routes

    async def _healthz(self, request: Request) -> Answer:
        """Alive: each worker that runs answers; one that has ended is started again without any help."""
        _, missing = await self._ask("GET", "/healthz", patience=_GLANCE)
        stuck = [number for number, why in missing.items() if "answer" in why]
        fields: dict[str, Any] = {"alive": not stuck}
        if stuck:
            fields["reasons"] = _said(missing)
        return report(fields, 503 if stuck else 200)

    async def _readyz(self, request: Request) -> Answer:
        if (found := await self._of_one(request)) is not None:
            return found
        answers, missing = await self._ask("GET", "/readyz", patience=_GLANCE)
        parts = {number: json.loads(answer.body) for number, answer in answers.items()}
        fields: dict[str, Any] = merging.readiness(parts) if parts else {"alive": True}
        why = [*fields.get("reasons", ()), *_said(missing)]
        if self._crew.stopping:
            why.insert(0, "stopping: clients are to go elsewhere")
        ready = bool(fields.get("ready")) and not missing and not self._crew.stopping
        draining = bool(fields.get("draining")) or self._crew.stopping
        fields |= {"ready": ready, "draining": draining, "reasons": why, "why": "; ".join(why)}
        return report(fields | {"workers": len(self._crew.workers)}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Answer:
        if (found := await self._of_one(request)) is not None:
            return found
        answers, _ = await self._ask("GET", "/families")
        parts = [json.loads(answer.body) for answer in answers.values()]
        exposing = await asyncio.to_thread(import_module, "proxy.observe.exposing")
        families = [*merging.families(parts), *self._own(answers)]
        made: Answer = await exposing.exposed([exposing.made(family) for family in families], request)
        return made

    def _own(self, answers: Mapping[int, Answer]) -> list[dict[str, Any]]:
        """The parent's own metrics."""
        up: list[merging.Sample] = []
        restarts: list[merging.Sample] = []
        for number, worker in self._crew.workers.items():
            labels = {"worker": str(number)}
            up.append(("pannier_worker_up", labels, float(number in answers)))
            restarts.append(("pannier_worker_restarts_total", labels, float(worker.restarts)))
        whole: list[merging.Sample] = [("pannier_workers", {}, float(len(self._crew.workers)))]
        samples = {"pannier_workers": whole, "pannier_worker_up": up, "pannier_worker_restarts": restarts}
        return [
            {"name": name, "kind": kind, "help": help, "samples": samples[name]}
            for name, (kind, help, _) in PARENT.items()
        ]

    async def _stats(self, request: Request) -> Answer:
        if (found := await self._of_one(request)) is not None:
            return found
        parts, missing = await self._parts("GET", _target("/stats", urlencode(request.query)))
        situations, _ = await self._parts("GET", _target("/situation", urlencode(request.query)))
        fields = merging.stats(parts, situations)
        fields["workers"] = {
            str(number): {"running": number in parts, "restarts": worker.restarts}
            for number, worker in self._crew.workers.items()
        }
        return report(self._named(fields, missing))

    async def _hotkeys(self, request: Request) -> Answer:
        if (found := await self._of_one(request)) is not None:
            return found
        query = dict(request.query)
        n = query.get("n", str(_FEW))
        if n.isascii() and n.isdigit() and len(n) <= len(str(_MOST)) and 0 < int(n) <= _MOST:
            # What is first of all need not be among the first of each.
            query["n"] = str(min(_MOST, 4 * int(n) + 50))
        parts, missing = await self._parts("GET", _target("/hotkeys", urlencode(query)))
        return report(self._named(merging.hotkeys(parts, int(n)), missing))

    async def _config(self, request: Request) -> Answer:
        if (found := await self._of_one(request)) is not None:
            return found
        if request.query:
            raise Refused(400, f"unknown parameter {request.query[0][0]!r}; known: worker")
        return report(as_fields(self._crew.settings, self._crew.settings.origins))

    async def _invalidate(self, request: Request) -> Answer:
        self._judge(request)
        return report(self._named(*await self._change(request, "/invalidate", _LONG)))

    async def _drain(self, request: Request) -> Answer:
        self._judge(request)
        found, missing = await self._change(request, "/drain", PATIENCE)
        self._crew.draining = found["draining"]
        for worker in self._crew.workers.values():
            self._crew.tell(worker)
        return report(self._named(found, missing))

    def _judge(self, request: Request) -> None:
        """Raise Refused if a request to change something asks for what there is not."""
        if request.query:
            raise Refused(400, f"unknown parameter {request.query[0][0]!r}; there are none")
        kind = request.fields.get("content-type", "").partition(";")[0].strip().lower()
        if request.body and kind != "application/json":
            raise Refused(415, "the body has to be JSON (Content-Type: application/json)")

    async def _change(
        self, request: Request, path: str, patience: float
    ) -> tuple[dict[str, Any], dict[int, str]]:
        """Have all do something; the last one tells other Panniers, when the others have counted."""
        numbers = [number for number, worker in self._crew.workers.items() if worker.running]
        if not numbers:
            raise Refused(503, "no worker is running; they are being started")
        quiet, last = numbers[1:], numbers[:1]
        answers, missing = await self._ask("POST", "/quiet" + path, request.body, patience, quiet)
        more, others = await self._ask("POST", path, request.body, patience, last)
        answers, missing = more | answers, missing | others
        broken = [answer for answer in answers.values() if answer.status != 200]
        if broken or not answers:
            why = json.loads(broken[0].body)["reason"] if broken else "; ".join(_said(missing))
            raise Refused(503, why)
        parts = {number: json.loads(answer.body) for number, answer in sorted(answers.items())}
        return merging.changed(parts), missing

    def _named(self, fields: dict[str, Any], missing: Mapping[int, str]) -> dict[str, Any]:
        return fields | {"silent_workers": _said(missing)} if missing else fields


def _said(missing: Mapping[int, str]) -> list[str]:
    return [f"worker {number} {why}" for number, why in sorted(missing.items())]


def _target(path: str, query: str) -> str:
    return quote(path) + (f"?{query}" if query else "")


PARENT: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "pannier_workers": ("gauge", "How many workers there are to be.", ()),
    "pannier_worker_up": ("gauge", "1 if a worker has answered this scrape.", ("worker",)),
    "pannier_worker_restarts": ("counter", "How often it was started again.", ("worker",)),
}
"""The parent's own metrics: kind, meaning, labels."""
