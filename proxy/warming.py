"""Memory that is warm from the start: what is fetched before anybody asks, and what is kept over a restart.

At the start come, in this order, the reads that were hot when the last process stopped (`warm_state`), the
patterns of `warm`, the lines of `warm_file`. Clients are served meanwhile; `ready` says when it is done, or
has taken too long. From then on the hottest reads are fetched again now and then (`refresh_hottest`), and
written down (`resp.hotlist`).

All fetching is `client.warm`'s: over the link that the clients of a space use, into the shelf of that link.
Only the sidecar's own identity is used, and those of tenants that the settings give: what a client may see
that authenticates at Redis by itself is neither written down nor fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, cast

from proxy.client.clients import Clients
from proxy.client.spaces import Space
from proxy.client.wanted import Wish
from proxy.client.warm import Tally, Warmer, Whole
from proxy.events import fields, without_arguments
from proxy.kinds import show_duration
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.resp.hotlist import LONGEST, Section, dump
from proxy.resp.requests import RequestParser
from proxy.settings import Settings
from proxy.terminal import Line, bar
from proxy.tier.shelf import Shelf
from proxy.upstream.link import LinkKey
from proxy.upstream.shared import SharedLink
from proxy.warmfiles import remembered, replace_file, wishes

if TYPE_CHECKING:
    from proxy.bus import Bus

log = logging.getLogger("pannier.warming")

_LOOK = 0.02
"""Seconds between two looks whether the eviction bus is heard."""
_TICK = 0.5
"""Seconds between two looks at what is due."""
_SAVE_EVERY = 300.0
_LATECOMERS = 600.0
"""Seconds after the start for which clients of another protocol than those expected have memory warmed for
them, too."""
_SLICE = 1000
"""Requests put into text without a pause."""
_ROUNDS = 3
"""How often everything is fetched again because the link was lost meanwhile."""


class Warming:
    """See the module's docstring. Making one reads the files; raises SettingsError."""

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._settings = settings
        self._clients = clients
        self.space = clients.spaces.of(settings.listen[0])
        """Where the keys of `warm` and `warm_file` are."""
        self.writes = True
        """Whether it writes `warm_state`: of several workers one does."""
        self.status = "off"
        """off, waiting (for Redis), running, done or failed."""
        self.tallies: list[Tally] = []
        """One for each source of what is fetched at the start."""
        self._wholes: dict[LinkKey, Whole] = {}
        """What they come to, for each shelf."""
        self._listed = wishes(settings, self.space.rules)
        self._resumes = bool(settings.warm_state) and os.path.exists(settings.warm_state)
        self._wanted = bool(self._listed or self._resumes)
        if self._wanted and clients.tier is None:
            log.warning(
                "nothing is warmed: nothing is kept in memory, as tracking is off", extra=fields("warm_off")
            )
            self._wanted = False
        self._bus: Bus | None = None
        self._began = 0.0
        self._seconds: float | None = None
        self._links: dict[LinkKey, SharedLink] = {}
        """Those held for what was warmed over them."""
        self._tables: dict[LinkKey, set[int]] = {}
        """The protocols for which each shelf has been warmed."""
        self._hot: dict[LinkKey, list[bytes]] = {}
        """What the last refresh fetched."""
        self._tasks: list[asyncio.Task[None]] = []
        self._line = Line()

    # --- for who asks how far it is

    @property
    def done(self) -> bool:
        """Whether nothing more is going to be fetched of what was to be at the start."""
        return self.status in ("off", "done", "failed")

    @property
    def ready(self) -> bool:
        """Whether clients had better come: it is done, or has taken `warm_timeout`."""
        return self.done or time.monotonic() - self._began >= self._settings.warm_timeout

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._began if self._seconds is None else self._seconds

    @property
    def kept(self) -> int:
        """Keys fetched and in memory, or so they were then."""
        return sum([whole.kept for whole in self._wholes.values()])

    @property
    def of(self) -> int:
        """Keys found so far."""
        return sum([whole.of for whole in self._wholes.values()])

    def fields(self) -> dict[str, object]:
        """For INFO and SIDECAR STATS."""
        taken = 0.0 if self.status == "off" else self.seconds
        return {
            "warm_status": self.status,
            "warm_ready": int(self.ready),
            "warm_keys": self.kept,
            "warm_of": self.of,
            "warm_seconds": f"{taken:.3f}",
        }

    def banner(self) -> str:
        """What is going to be warmed, for a person; empty: nothing."""
        if not self._wanted:
            return ""
        parts = [f"{len(self._listed):,} keys or patterns"] if self._listed else []
        if self._resumes:
            parts.append(f"the reads in {self._settings.warm_state}")
        return f"{' and '.join(parts)}; ready within {show_duration(self._settings.warm_timeout)}"

    # --- life

    def start(self, bus: Bus | None) -> None:
        """Begin; nothing waits for it. `bus`: where others tell what to forget."""
        self._bus = bus
        self._began = time.monotonic()
        loop = asyncio.get_running_loop()
        if self._wanted:
            self.status = "waiting"
            self._tasks.append(loop.create_task(self._watch()))
        if self._wanted or (self._clients.tier is not None and self._lasting):
            self._tasks.append(loop.create_task(self._run()))

    async def close(self) -> None:
        """Stop, and write down what is hot."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._line.clear()
        if self.done and self._clients.tier is not None:
            await self._save()
        for link in self._links.values():
            self._clients.links.detach(link)

    @property
    def _lasting(self) -> bool:
        return bool(self._settings.warm_state or self._settings.refresh_hottest)

    async def _run(self) -> None:
        try:
            if self._wanted:
                await self._first()
            await self._go_on()
        except Exception:
            log.exception("internal error while warming", extra=fields("internal_error"))
            if not self.done:
                self._end("failed")

    async def _watch(self) -> None:
        """Show how far it is; say so when readiness waits no more."""
        told = False
        while True:
            await asyncio.sleep(0.1)
            if self.done:
                return
            if self.tallies:
                tally = self.tallies[-1]
                self._line.show(f"{bar(tally.share)}  warming {tally.title}: {self._so_far()}")
            if not told and self._settings.warm_timeout and self.ready:
                told = True
                self._line.clear()
                about = fields("warm_late", **self._figures())
                log.warning("ready before memory is warm: %s so far; it goes on", self._so_far(), extra=about)

    def _so_far(self) -> str:
        return f"{self.kept:,} of {self.of:,} keys in {self.seconds:.1f} seconds"

    def _figures(self) -> dict[str, object]:
        return {"keys": self.kept, "of": self.of, "seconds": round(self.seconds, 3)}

    # --- at the start

    async def _first(self) -> None:
        """Fetch everything; again if the link was lost meanwhile, and all of it with the link."""
        try:
            saved = await asyncio.to_thread(remembered, self._settings) if self._resumes else []
            for _ in range(_ROUNDS):
                self.tallies, self._wholes = [], {}
                heard = await self._heard()
                warmers = [warmer for section in saved if (warmer := await self._warm_saved(section))]
                warmers += await self._warm_listed()
                if not any(warmer.lost for warmer in warmers) and heard == await self._heard():
                    break
                log.warning("warming begins anew: a connection to Redis was lost", extra=fields("warm_again"))
            self._end("done")
        except UpstreamError as error:
            self._end("failed")
            why = without_arguments(str(error).removeprefix("ERR pannier: "))
            about = fields("warm_failed", **self._figures(), reason=why)
            log.warning("warming ended after %s: %s", self._so_far(), why, extra=about)
        self._listed = []

    def _end(self, status: str) -> None:
        self._seconds = self.seconds
        self.status = status
        for whole in self._wholes.values():
            whole.end()
        self._line.clear()
        if status == "done":
            log.info("warmed %s", self._so_far(), extra=fields("warm_done", **self._figures()))

    async def _warm_listed(self) -> list[Warmer]:
        """Fetch what the settings name."""
        if not self._listed:
            return []
        link = self._link(self.space)
        self._prepare(link, set())
        sources: dict[str, list[Wish]] = {}
        for title, what in self._listed:
            sources.setdefault(title, []).append(what)
        warmers = []
        for title, wanted in sources.items():
            warmers.append(warmer := await self._warmer(link, title))
            await warmer.warm(wanted, self._settings.warm_limit)
            self._tell(warmer.tally)
        return warmers

    async def _warm_saved(self, section: Section) -> Warmer | None:
        """Fetch what was hot when the last process stopped."""
        space = {space.name: space for space in self._clients.spaces if not space.locked}.get(section.space)
        if space is None:
            about = fields("warm_state_space", space=section.space)
            text = "warm_state: there is no space %r any more; its reads are left out"
            log.warning(text, section.space, extra=about)
            return None
        link = self._link(space)
        self._prepare(link, set(section.protocols))
        parts = [encode.request(*words)[1:] for words in section.requests[: self._settings.warm_limit]]
        warmer = await self._warmer(link, f"{self._settings.warm_state}{_of(space)}")
        await warmer.warm_parts(parts)
        await _touch(_shelf(link), parts)
        self._tell(warmer.tally)
        return warmer

    async def _warmer(self, link: SharedLink, title: str) -> Warmer:
        """A warmer for one source, as soon as Redis is there."""
        tally = Tally(title, self._wholes.setdefault(link.key, Whole()))
        self.tallies.append(tally)
        warmer = Warmer(link, _shelf(link), tally, patient=True)
        await warmer.begin()
        self.status = "running"
        return warmer

    async def _heard(self) -> int:
        """How often something may have been missed of the eviction bus, once it is heard: all that is kept is
        dropped then."""
        bus = self._bus
        while bus is not None and not (bus.subscriptions or bus.refusal):
            await asyncio.sleep(_LOOK)
        return bus.missed if bus is not None else 0

    def _tell(self, tally: Tally) -> None:
        tally.end()
        self._line.clear()
        about = fields("warmed", source=tally.title, keys=tally.kept, of=tally.of)
        log.info("warmed %s: %s", tally.title, tally, extra=about)

    def _link(self, space: Space) -> SharedLink:
        """The link that the clients of a space use by themselves, kept from now on."""
        clients = self._clients
        key = LinkKey(space.identity or clients.identity, clients.database, 3, space.name)
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = clients.links.attach(key)
        return link

    def _prepare(self, link: SharedLink, protocols: set[int]) -> None:
        """Make the tables that are to be filled, if none is known to be of use: that of RESP2."""
        shelf = _shelf(link)
        for protocol in protocols or {protocol for protocol, _ in shelf.filled} or {2}:
            table = shelf.table(protocol)
            table.asked = table.asked or time.monotonic()
        self._tables[link.key] = _asked(shelf)

    # --- from then on

    async def _go_on(self) -> None:
        settings = self._settings
        saved = refreshed = time.monotonic()
        if settings.refresh_hottest and settings.refresh_interval >= settings.l1_ttl:
            log.warning(
                "refresh_interval is not shorter than l1_ttl: reads expire before they are fetched again",
                extra=fields("refresh_late"),
            )
        while True:
            await asyncio.sleep(min(_TICK, settings.refresh_interval / 4))
            now = time.monotonic()
            with contextlib.suppress(UpstreamError):
                if now - self._began < _LATECOMERS:
                    await self._welcome()
                if settings.refresh_hottest and now - refreshed >= settings.refresh_interval:
                    refreshed = now
                    await self._refresh()
            if now - saved >= _SAVE_EVERY:
                saved = now
                await self._save()

    async def _welcome(self) -> None:
        """Warm for clients of a protocol that was not expected: what is kept for the others."""
        for key, link in self._links.items():
            shelf = _shelf(link)
            new = _asked(shelf) - self._tables[key]
            if new:
                self._tables[key] |= new
                parts = [part for part in hottest(shelf, self._settings.warm_limit) if _lacks(shelf, part)]
                tally = Tally(f"memory for RESP{min(new)} clients{_of(self._clients.spaces.find(key.space))}")
                await Warmer(link, shelf, tally, patient=True).warm_parts(parts)
                self._tell(tally)

    async def _refresh(self) -> None:
        """Fetch the hottest reads of each shelf in use again, and those of last time."""
        for key, link in list(self._clients.links.shared.items()):
            if link.tracking is None or not link.users or not _shelf(link).vouch(time.monotonic()):
                continue
            shelf, n = _shelf(link), self._settings.refresh_hottest
            parts = list(dict.fromkeys([*hottest(shelf, n), *self._hot.get(key, ())]))[:n]
            self._hot[key] = parts
            tally = Tally()
            await Warmer(link, shelf, tally, anew=True).warm_parts(parts)
            log.debug("refreshed %s", tally, extra=fields("refreshed", keys=tally.kept, of=tally.of))
        self._hot = {key: parts for key, parts in self._hot.items() if key in self._clients.links.shared}

    async def _save(self) -> None:
        """Write down what is hot; what is kept in the file stays if nothing is."""
        path = self._settings.warm_state
        if not path or not self.writes:
            return
        sections = [section async for section in self._sections()]
        if not sections:
            return
        try:
            await asyncio.to_thread(_write, path, sections, self._settings.warm_state_size)
        except OSError as error:
            about = fields("warm_state_unwritten", path=path, reason=error.strerror)
            log.warning("warm_state: %r cannot be written (%s)", path, error.strerror, extra=about)

    async def _sections(self) -> AsyncIterator[Section]:
        """The hottest reads of the spaces that can be warmed at the next start."""
        clients = self._clients
        spaces = {space.name: space for space in clients.spaces if not space.locked}
        for key, link in list(clients.links.shared.items()):
            space = spaces.get(key.space)
            if space is None or link.tracking is None or key.database != clients.database:
                continue
            if key.identity != (space.identity or clients.identity):
                continue
            shelf, requests = _shelf(link), []
            parts = hottest(shelf, self._settings.warm_limit)
            for begin in range(0, len(parts), _SLICE):
                requests += [words for part in parts[begin : begin + _SLICE] if (words := _words(part))]
                await asyncio.sleep(0)
            if requests:
                yield Section(space.name, tuple(sorted([protocol for protocol, _ in shelf.filled])), requests)


def hottest(shelf: Shelf, n: int) -> list[bytes]:
    """The parts of a shelf that are read most, then those that were kept or asked for last; `n` at most."""
    shelf.replay()
    tables = list(shelf.tables.values())
    found = {part: None for part, _ in shelf.hot.hottest(n) if any(part in table for table in tables)}
    for part in chain.from_iterable(zip_longest(*[reversed(table.replies) for table in tables])):
        if len(found) == n:
            break
        if part is not None:
            found[part] = None
    return list(found)


async def _touch(shelf: Shelf, parts: Sequence[bytes]) -> None:
    """Have the first of some parts count as the last used, as they did when they were written down."""
    for begin in reversed(range(0, len(parts), _SLICE)):
        for replies in [table.replies for table in shelf.tables.values()]:
            for part in reversed(parts[begin : begin + _SLICE]):
                if part in replies:
                    replies[part] = replies.pop(part)
        await asyncio.sleep(0)


def _write(path: str, sections: Sequence[Section], limit: int) -> None:
    """Put reads into text, and that into a file. Raises OSError."""
    replace_file(path, dump(sections, limit))


def _lacks(shelf: Shelf, part: bytes) -> bool:
    return any(part not in table for _, table in shelf.filled)


def _shelf(link: SharedLink) -> Shelf:
    """The shelf of a tracked link."""
    return cast(Shelf, link.tracking.keeper if link.tracking is not None else None)


def _of(space: Space) -> str:
    return f" of {space.name}" if space.name else ""


def _words(part: bytes) -> list[bytes]:
    """The request that a part is; nothing if it is too long to be written down."""
    if len(part) > LONGEST:
        return []
    request = _PARSER.parse(b"*" + part, 0)
    return request.arguments if request is not None else []


_PARSER = RequestParser(LONGEST)


def _asked(shelf: Shelf) -> set[int]:
    """The protocols that clients speak, or may be expected to."""
    return {protocol for protocol, table in shelf.tables.items() if table.wanted}
