"""What is read most, what is largest, and what changes more often than memory answers it.

SIDECAR HOTKEYS, BIGKEYS and CHURN say it to clients; `hot_keys`, `big_keys` and `churning_keys` to whoever
else wants to know. All figures are of the window of `tier.traffic`, estimated from samples.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nlargest
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from proxy.client import scope
from proxy.client.scope import Name, Scope, Seen
from proxy.resp import encode

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.shelf import Shelf
    from proxy.tier.table import Table

MOST = 1000
"""Keys that are listed at once."""
FEW = 10
"""Keys that are listed unless told."""
_SPARE = 256
"""Reads looked at beside those asked for, as several may be of one key."""
_SLICE = 4096
"""Entries looked at without a pause: a millisecond."""
_LEAST_CHANGES = 4
"""Changes in the window below which a key is not said to change much."""


@dataclass(frozen=True, slots=True)
class HotKey:
    """A key, and how it was read lately. Rates for each second."""

    name: Name
    command: str
    """The command it was read by most."""
    reads: int
    hits: int
    """Of these, what memory answered."""
    rate: float
    size: int
    """Bytes of the replies that are kept of it; 0: none is."""
    byte_rate: float
    """Reads times the size of what each got."""


@dataclass(frozen=True, slots=True)
class BigKey:
    """A reply that is kept, and the key it shows."""

    name: Name
    command: str
    size: int
    """Bytes, in all protocols it is kept for."""
    reads: int
    """How often memory answered with it lately."""


@dataclass(frozen=True, slots=True)
class ChurningKey:
    """A key that changes more often than memory answers it. Rates for each second."""

    name: Name
    changes: int
    """Entries dropped because it changed."""
    hits: int
    rate: float
    """Of changes."""


@dataclass(slots=True)
class _Tally:
    """What is added up for a key."""

    seen: Seen
    key: bytes
    commands: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    reads: int = 0
    hits: int = 0
    changes: int = 0
    rate: float = 0.0
    size: int = 0
    byte_rate: float = 0.0

    @property
    def command(self) -> str:
        """The command that reads it most."""
        return max(self.commands.items(), key=itemgetter(1))[0]


_Tallies = dict[tuple[int, bytes], _Tally]


def hot_keys(view: Scope, n: int, by_bytes: bool = False) -> list[HotKey]:
    """The `n` keys read most, or of which most bytes were read."""
    tallies: _Tallies = {}
    for seen in view.seen:
        shelf = seen.shelf
        shelf.replay()
        overstated, seconds = shelf.overstated, shelf.traffic.seconds
        worth = shelf.size_of if by_bytes else None
        for part, reads in shelf.traffic.busiest(n + _SPARE, overstated, worth):
            size, hits = shelf.size_of(part), round(shelf.hot.count(part) / overstated)
            for tally in _tallies_of(view, seen, part, tallies):
                tally.commands[_command(part)] += reads
                tally.reads += reads
                tally.hits += hits
                tally.rate += reads / seconds
                tally.size += size
                tally.byte_rate += reads * size / seconds
    found = nlargest(n, tallies.values(), key=attrgetter("byte_rate" if by_bytes else "rate"))
    return [
        HotKey(
            view.name(each.seen, each.key), each.command, each.reads, each.hits,
            each.rate, each.size, each.byte_rate,
        )
        for each in found
    ]  # fmt: skip


def churning_keys(view: Scope, n: int) -> list[ChurningKey]:
    """The `n` keys of which most changes were not worth what was read between them."""
    tallies: _Tallies = {}
    for seen in view.seen:
        shelf = seen.shelf
        shelf.replay()
        overstated = shelf.overstated
        for part, changes in shelf.traffic.changes.hottest(n + _SPARE):
            for tally in _tallies_of(view, seen, part, tallies):
                tally.changes += changes
                tally.hits += round(shelf.hot.count(part) / overstated)
                tally.rate += changes / shelf.traffic.seconds
    worse = [each for each in tallies.values() if each.changes > each.hits and each.changes >= _LEAST_CHANGES]
    found = nlargest(n, worse, key=lambda each: each.changes - each.hits)
    return [ChurningKey(view.name(each.seen, each.key), each.changes, each.hits, each.rate) for each in found]


async def big_keys(view: Scope, n: int) -> list[BigKey]:
    """The `n` largest replies that are kept. Looks at all there are, with pauses."""
    largest: list[tuple[int, int, bytes]] = []
    for place, seen in enumerate(view.seen):
        seen.shelf.replay()
        for sizes in _sizes(seen.shelf):
            largest = nlargest(n, [*largest, *((size, place, part) for part, size in sizes)])
            await asyncio.sleep(0)
    return [_big_key(view, view.seen[place], part, size) for size, place, part in largest]


def _big_key(view: Scope, seen: Seen, part: bytes, size: int) -> BigKey:
    key = view.keys(seen, part)[0]
    return BigKey(view.name(seen, key), _command(part), size, seen.shelf.hits_lately(part))


def _sizes(shelf: Shelf) -> Iterator[list[tuple[bytes, int]]]:
    """The parts of a shelf and their sizes, by and by: each once, though both protocols may have it."""
    earlier: list[Table] = []
    for table in list(shelf.tables.values()):
        parts = [*table.replies, *table.held]
        while parts:
            some = [part for part in parts[-_SLICE:] if not any(part in other for other in earlier)]
            yield [(part, size) for part in some if (size := shelf.size_of(part))]
            del parts[-_SLICE:]
        earlier.append(table)


def _tallies_of(view: Scope, seen: Seen, part: bytes, tallies: _Tallies) -> Iterable[_Tally]:
    """What is added up for each key of a read."""
    for key in view.keys(seen, part):
        found = tallies.get((seen.database, key))
        if found is None:
            found = tallies[seen.database, key] = _Tally(seen, key)
        yield found


def _command(part: bytes) -> str:
    """The name of the command of a read."""
    return part.split(b"\r\n", 3)[2].decode("ascii", "replace").upper()


# --- the commands


def answer_hot(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR HOTKEYS [n] [READS|BYTES]."""
    by = arguments[-1].upper() if arguments and not arguments[-1].isdigit() else b""
    n = _number(arguments[: len(arguments) - bool(by)])
    if n is None or by not in (b"", b"READS", b"BYTES"):
        return encode.error(f"ERR SIDECAR HOTKEYS takes [<n>] [READS|BYTES], n from 1 to {MOST}")
    view = scope.of_session(session)
    found = hot_keys(view, n, by == b"BYTES")
    lines = [
        _named(view, each.name)
        | {
            "command": each.command,
            "reads": each.reads,
            "hits": each.hits,
            "reads_per_second": f"{each.rate:.1f}",
            "size": each.size,
            "bytes_per_second": round(each.byte_rate),
        }
        for each in found
    ]
    return _encoded(session, lines)


async def answer_big(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR BIGKEYS [n]."""
    n = _number(arguments)
    if n is None:
        return encode.error(f"ERR SIDECAR BIGKEYS takes [<n>], from 1 to {MOST}")
    view = scope.of_session(session)
    lines = [
        _named(view, each.name) | {"command": each.command, "size": each.size, "hits": each.reads}
        for each in await big_keys(view, n)
    ]
    return _encoded(session, lines)


def answer_churn(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR CHURN [n]."""
    n = _number(arguments)
    if n is None:
        return encode.error(f"ERR SIDECAR CHURN takes [<n>], from 1 to {MOST}")
    view = scope.of_session(session)
    lines = [
        _named(view, each.name)
        | {"changes": each.changes, "hits": each.hits, "changes_per_second": f"{each.rate:.2f}"}
        for each in churning_keys(view, n)
    ]
    return _encoded(session, lines)


def _number(arguments: list[bytes]) -> int | None:
    """How many keys are asked for; None: that is no number, or too large a one."""
    if not arguments:
        return FEW
    given = arguments[0]
    good = len(arguments) == 1 and given.isdigit() and len(given) < 10 and 1 <= int(given) <= MOST
    return int(given) if good else None


def _named(view: Scope, name: Name) -> dict[str, object]:
    """The fields that tell which key it is."""
    fields: dict[str, object] = {"key": name.key} if name.key else {}
    if name.label:
        fields["class"] = name.label
    if not view.bare and name.namespace:
        fields["namespace"] = name.namespace
    if name.database:
        fields["db"] = name.database
    return fields


def _encoded(session: Session, lines: list[dict[str, object]]) -> bytes:
    return encode.array([encode.value(line, session.protocol) for line in lines])
