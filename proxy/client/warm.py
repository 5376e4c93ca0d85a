"""Warming: fetching into memory what nobody has asked for yet.

A `Wish` says what to fetch: a key, a pattern of keys, or a read with either in the place of its key. A
`Warmer` makes requests of wishes and fetches them into one shelf over that shelf's link. Each fetch is an
ordinary flight, so it stands in the link's FIFO among the clients' commands, and is kept under the same rules
as what they read. So many are under way at a time that a client's command waits for a millisecond at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from proxy.client.keyspace import ask
from proxy.client.refilling import launch
from proxy.client.wanted import BY_TYPE, Wish, as_pattern, wish
from proxy.events import without_arguments
from proxy.resp import encode
from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.resp.globs import LONGEST_PATTERNS, literal
from proxy.tier.rules import Rules
from proxy.tier.shelf import Shelf
from proxy.upstream.shared import LinkState, SharedLink

if TYPE_CHECKING:
    from proxy.client.session import Session

_WINDOW = 32
"""Fetches under way at a time: what a client's command waits for, at 15 µs each."""
_PAGE = 250
"""Keys that are looked for, and whose types are asked for, at once."""
_FULL = 0.95
"""Part of the memory above which nothing is fetched any more: it would put out what is hot."""
_LOOK = 0.02
"""Seconds between two looks whether anything may be kept."""
_MOST_REASONS = 20
_LONGEST_REASON = 120
MOST_KEYS = 10_000_000
"""The greatest limit that may be given."""


class Whole:
    """What several warmings of one shelf come to together: what more than one of them finds counts once."""

    def __init__(self) -> None:
        self.of = self.kept = 0
        """As in `Tally`."""
        self._found: set[bytes] | None = set()
        self._kept: set[bytes] = set()

    def find(self, names: Iterable[bytes]) -> None:
        """Hear of what is to be fetched."""
        if self._found is not None:
            self._found.update(names)
            self.of = len(self._found)

    def keep(self, part: bytes) -> None:
        """Hear of what is in memory."""
        if self._found is not None:
            self._kept.add(part)
            self.kept = len(self._kept)

    def end(self) -> None:
        """Let the figures be as they are, and forget which they were."""
        self._found = None
        self._kept.clear()


class Tally:
    """What has come of a warming so far. `whole`: together with others."""

    def __init__(self, title: str = "", whole: Whole | None = None) -> None:
        self.title = title
        self.whole = whole
        self.of = 0
        """Keys, or requests, found so far that are to be fetched."""
        self.kept = 0
        """Of these, in memory now."""
        self.not_kept: Counter[str] = Counter()
        """Why others are not kept, and how many each."""
        self.failed: Counter[str] = Counter()
        """Why others could not be fetched."""
        self.scope = self.seen = 0
        """Keys that have to be looked at for patterns, and those that have been."""
        self.limit = 0
        """How many are to be fetched at most; 0: all that are found."""
        self._began = monotonic()
        self._seconds: float | None = None

    @property
    def share(self) -> float:
        """How far it is, from 0 to 1."""
        done = self.seen / self.scope if self.scope else self.kept / max(1, self.of)
        if self.limit:
            done = max(done, self.of / self.limit)
        return min(1.0, done)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return monotonic() - self._began if self._seconds is None else self._seconds

    def end(self) -> None:
        """Stop the clock."""
        self._seconds = self.seconds

    def find(self, names: Collection[bytes]) -> None:
        """Count what is to be fetched: requests, or keys for which none is known."""
        self.of += len(names)
        if self.whole is not None:
            self.whole.find(names)

    def keep(self, part: bytes) -> None:
        """Count what is in memory."""
        self.kept += 1
        if self.whole is not None:
            self.whole.keep(part)

    def leave(self, why: str, n: int = 1) -> None:
        """Count what is not kept."""
        _count(self.not_kept, why, n)

    def fail(self, why: str, n: int = 1) -> None:
        """Count what could not be fetched."""
        _count(self.failed, without_arguments(why), n)

    def report(self) -> dict[str, object]:
        """It all, for SIDECAR WARM."""
        return {
            "warmed": self.kept,
            "of": self.of,
            "seconds": f"{self.seconds:.3f}",
            "not_kept": self.not_kept.total(),
            "failed": self.failed.total(),
            "reasons": dict(self.not_kept + self.failed),
        }

    def __str__(self) -> str:
        parts = [f"{self.kept:,} of {self.of:,} keys in {self.seconds:.1f} seconds"]
        for what, reasons in (("not kept", self.not_kept), ("failed", self.failed)):
            if reasons:
                parts.append(f"{reasons.total():,} {what}: " + ", ".join(_reasons(reasons)))
        return "; ".join(parts)


def _count(reasons: Counter[str], why: str, n: int) -> None:
    why = why[:_LONGEST_REASON]
    reasons[why if why in reasons or len(reasons) < _MOST_REASONS else "other reasons"] += n


def _reasons(reasons: Counter[str]) -> Iterable[str]:
    return (f"{why} ({n:,})" if len(reasons) > 1 else why for why, n in reasons.most_common())


class Warmer:
    """Fetches into one shelf, and counts in a tally.

    `patient`: wait for Redis while it is away. `anew`: fetch also what is kept, for a new lease of life.
    """

    def __init__(
        self, link: SharedLink, shelf: Shelf, tally: Tally, patient: bool = False, anew: bool = False
    ) -> None:
        self.tally = tally
        self._link = link
        self.shelf = shelf
        self._patient = patient
        self._anew = anew
        self._flying = 0
        self._blocked = False
        """Whether Redis does not keep up with the link."""
        self._low = _WINDOW // 2
        self._wake: asyncio.Future[None] | None = None
        self._epoch = -1

    @property
    def lost(self) -> bool:
        """Whether the link was lost since the beginning, and with it all that was fetched."""
        return self.shelf.epoch != self._epoch

    # --- what to fetch

    async def warm(self, wishes: Sequence[Wish], limit: int) -> None:
        """Fetch what wishes come to, `limit` requests at most. Raises UpstreamError."""
        self.tally.limit = limit
        await self.begin()
        await self._measure(wishes)
        async for parts in self._requests(wishes):
            if not await self.fetch(parts[: max(0, limit - self.tally.of)]):
                break
            if self.tally.of >= limit:
                break
        await self._until_flying(0)

    async def fetch(self, parts: Sequence[bytes]) -> bool:
        """Begin to fetch some requests, as fast as Redis answers; False if there is no more room for them."""
        self.tally.find(parts)
        for done, part in enumerate(parts):
            if not done % _WINDOW:
                await asyncio.sleep(0)
            if self._flying >= _WINDOW or self._blocked or self._link.state is not LinkState.READY:
                await self._until_flying(_WINDOW // 2)
                await self._until_kept()
            if not self._anew and self._is_full() and await self._stays_full():
                self.tally.leave("memory is full", len(parts) - done)
                return False
            self._begin(part)
        return True

    async def warm_parts(self, parts: Sequence[bytes]) -> None:
        """Fetch some requests, as the parts that are kept. Raises UpstreamError."""
        await self.begin()
        await self.fetch(parts)
        await self._until_flying(0)

    async def begin(self) -> None:
        """Wait until what is fetched may be kept. Raises UpstreamError."""
        if self._epoch < 0:
            await self._until_kept()
            self._epoch = self.shelf.epoch

    async def _requests(self, wishes: Iterable[Wish]) -> AsyncIterator[list[bytes]]:
        """The requests that wishes come to, each once, page by page."""
        seen: set[bytes] = set()
        async for keys, what in self._keys(wishes):
            if what.request:
                parts: Iterable[bytes] = map(what.part, keys)
            else:
                parts = await self._by_type(keys)
            found = [part for part in dict.fromkeys(parts) if part not in seen]
            seen.update(found)
            if found:
                yield found

    async def _keys(self, wishes: Iterable[Wish]) -> AsyncIterator[tuple[list[bytes], Wish]]:
        """The keys that wishes name, and what each page of them is wanted for."""
        single: list[bytes] = []
        for what in wishes:
            key = literal(what.name)
            if key is None:
                async for page in self._matching(what.name):
                    yield page, what
            elif what.request:
                yield [key], what
            else:
                single.append(key)
            if len(single) == _PAGE:
                yield single, what
                single = []
        if single:
            yield single, Wish(b"")

    async def _matching(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """The keys that match, as clients know them."""
        namespace = self.shelf.rules.namespace
        real = pattern if namespace is None else namespace.pattern + pattern
        cursor = b"0"
        while True:
            scan = encode.request("SCAN", cursor, "MATCH", real, "COUNT", _PAGE)
            ((cursor, page),) = await ask(self._link, scan)
            self.tally.seen += _PAGE
            if page:
                yield [key.removeprefix(self.shelf.rules.prefix) for key in page]
            if cursor == b"0":
                return

    async def _measure(self, wishes: Sequence[Wish]) -> None:
        """Find out how many keys have to be looked at."""
        patterns = sum([what.is_pattern for what in wishes])
        if patterns:
            with contextlib.suppress(UpstreamError):
                (size,) = await ask(self._link, encode.request("DBSIZE"))
                self.tally.scope = int(size) * patterns

    async def _by_type(self, keys: list[bytes]) -> list[bytes]:
        """The requests that fit the types of keys."""
        prefix = self.shelf.rules.prefix
        types = await ask(self._link, *[encode.request("TYPE", prefix + key) for key in keys])
        parts = []
        for key, kind in zip(keys, types, strict=True):
            request = BY_TYPE.get(kind)
            if request is not None:
                parts.append(encode.request(request[0], key, *request[1:])[1:])
                continue
            self.tally.find([b"key " + key])  # unlike any request
            name = kind.decode("utf-8", "replace") if isinstance(kind, bytes) else str(kind)
            self.tally.leave("no such key" if name == "none" else f"no request is known for the type {name}")
        return parts

    # --- fetching

    def _begin(self, part: bytes, again: bool = False) -> None:
        shelf, tally = self.shelf, self.tally
        read = shelf.rules.read(part)
        if read is None:
            tally.leave("not to be kept")
            return
        if not self._anew and all(part in table for _, table in shelf.filled):
            tally.keep(part)
            return
        flight = shelf.flights.get(part)
        if flight is not None and flight.joinable:
            self._flying += 1
            flight.waiters.append(_Landing(self, part, again))
            return
        flight = shelf.open(read)
        if flight is None:
            tally.leave("not to be kept, or being read by a client")
            return
        self._flying += 1
        flight.waiters.append(_Landing(self, part, again))
        launch(flight, self._link)

    def landed(self, landing: _Landing, reply: bytes | None) -> None:
        """Take the end of a fetch; None: its reply was too long, or broke off."""
        self._flying -= 1
        part = landing.part
        if any(part in table for table in self.shelf.tables.values()):
            self.tally.keep(part)
        elif reply is None or len(reply) > self.shelf.tier.limits.max_value_size:
            self.tally.leave("too long")
        elif reply.startswith(b"-"):
            self.tally.fail(reply[1:-2].decode("utf-8", "replace"))
        elif not landing.again:
            self._begin(part, again=True)  # a write came in between, most likely
        else:
            self.tally.leave("changed while it was fetched, or about to expire")
        self._stir()

    def block(self, blocked: bool) -> None:
        """Hear whether Redis keeps up."""
        self._blocked = blocked
        self._stir()

    # --- waiting

    def _stir(self) -> None:
        if (
            self._wake is not None
            and not self._wake.done()
            and self._flying <= self._low
            and not self._blocked
        ):
            self._wake.set_result(None)

    async def _until_flying(self, low: int) -> None:
        """Wait until no more than `low` fetches are under way, and Redis keeps up."""
        self._low = low
        while self._flying > low or self._blocked:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    async def _until_kept(self) -> None:
        """Wait until what is read may be kept. Raises UpstreamError if that is not to be expected."""
        link, shelf = self._link, self.shelf
        while not (monotonic() < shelf.until or shelf.vouch(monotonic())):
            if link.state is LinkState.DOWN and not self._patient:
                raise link.error
            if link.state is LinkState.READY and (why := _nothing_kept(link, shelf)):
                raise UpstreamRefused(f"ERR pannier: nothing is kept in memory: {why}")
            await asyncio.sleep(_LOOK)

    async def _stays_full(self) -> bool:
        """Whether memory is full once all that is under way has landed."""
        await self._until_flying(0)
        return self._is_full()

    def _is_full(self) -> bool:
        """Whether memory would be full if all that is under way were as large as what is there."""
        budget = self.shelf.budget
        coming = self._flying * len(self.shelf.filled)
        growth = 1 + coming / max(1, budget.entries)
        return (
            budget.used * growth > _FULL * budget.max_memory
            or budget.entries + coming > _FULL * budget.max_entries
        )


def _nothing_kept(link: SharedLink, shelf: Shelf) -> str:
    """Why a link that is up keeps nothing; empty if it does, or if that is not known yet."""
    tracking = link.tracking
    if tracking is None:
        return "switched off"
    if tracking.reason.startswith("not connected"):
        return ""
    return shelf.trouble or (tracking.reason if shelf.mode.value == "off" else "")


class _Landing:
    """Waits for one flight of a warmer's. Implements `tier.flights.Waiter`."""

    __slots__ = ("_warmer", "again", "part")
    protocol = 3

    def __init__(self, warmer: Warmer, part: bytes, again: bool) -> None:
        self._warmer = warmer
        self.part = part
        self.again = again

    def take(self, reply: bytes) -> None:
        """Take the reply, which is kept by now if it is to be."""
        self._warmer.landed(self, reply)

    def take_piece(self, piece: bytes, skip: int) -> None:
        """Nothing: it is too long to keep."""

    def take_end(self) -> None:
        """Take the end of a reply that is too long."""
        self._warmer.landed(self, None)

    def cut(self) -> None:
        """Take the loss of the connection in the middle of one."""
        self._warmer.landed(self, None)

    def hold_back(self, link: Any) -> None:
        """Hear that Redis does not keep up."""
        self._warmer.block(True)

    def go_on(self) -> None:
        """Hear that Redis keeps up again."""
        self._warmer.block(False)


# --- SIDECAR WARM


async def answer(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR WARM: MATCH <pattern> … [LIMIT <n>], KEYS <key> … or LINES <line> …. Raises
    UpstreamError."""
    tracking = session.home.tracking
    if session.clients.tier is None or tracking is None:
        return encode.error("ERR pannier: nothing is kept in memory: tracking is off")
    shelf = cast(Shelf, tracking.keeper)
    try:
        wishes, limit = _wanted(arguments, shelf.rules, session.clients.settings.warm_limit)
    except ValueError as error:
        return encode.error(f"ERR {error}")
    shelf.table(session.protocol).asked = monotonic()
    tally = Tally()
    if session.work is not None:
        session.work.figures = lambda: {"warmed": tally.kept, "wanted": tally.of}
    try:
        await Warmer(session.home, shelf, tally).warm(wishes, limit)
    finally:
        if session.space.bucket is not None:
            session.space.bucket.take(tally.of)
    return encode.value(tally.report(), session.protocol)


def _wanted(arguments: list[bytes], rules: Rules, limit: int) -> tuple[list[Wish], int]:
    """What is to be warmed, and how much of it at most. Raises ValueError."""
    how, *names = arguments
    how = how.upper()
    if how in (b"MATCH", b"LINES") and len(names) > 2 and names[-2].upper() == b"LIMIT":
        if not names[-1].isdigit() or not 0 < int(names[-1][:20]) <= MOST_KEYS:
            raise ValueError(f"SIDECAR WARM takes LIMIT <n> of 1 to {MOST_KEYS}")
        names, limit = names[:-2], int(names[-1])
    if how == b"MATCH":
        if sum(map(len, names)) > LONGEST_PATTERNS:
            raise ValueError(f"SIDECAR WARM MATCH takes patterns of {LONGEST_PATTERNS} bytes together")
        return [Wish(name) for name in names], limit
    if how == b"KEYS":
        return [Wish(as_pattern(name)) for name in names], len(names)
    if how == b"LINES":
        return [_line(line, rules) for line in names], limit
    raise ValueError("SIDECAR WARM takes MATCH <pattern> …, KEYS <key> … or LINES <line> …")


def _line(line: bytes, rules: Rules) -> Wish:
    try:
        return wish(line, rules)
    except ValueError as error:
        shown = line[:40].decode("utf-8", "backslashreplace")
        raise ValueError(f"SIDECAR WARM LINES: {shown!r} {error}") from None
