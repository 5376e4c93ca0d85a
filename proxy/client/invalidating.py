"""Dropping what memory keeps, because somebody asks for it: SIDECAR INVALIDATE, or the administration.

Other sidecars are told over the eviction bus. Names are those that clients of the space use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from proxy.resp.globs import LONGEST_PATTERNS, compile_globs
from proxy.tier.matching import SLICE, drop_matching
from proxy.tier.rules import key_frame, marks
from proxy.tier.tier import Source

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.spaces import Space
    from proxy.tier.shelf import Shelf
    from proxy.upstream.shared import SharedLink


def too_long(patterns: Iterable[bytes]) -> bool:
    """Whether patterns are more than may be looked for at once."""
    return sum(map(len, patterns)) > LONGEST_PATTERNS


def drop_keys(
    clients: Clients, space: Space, link: SharedLink | None, keys: Sequence[bytes], counted: Iterable[Shelf]
) -> int:
    """Drop what is kept of some keys, and have other sidecars do so; how many reads kept in `counted` that
    were.

    `link`: behind what has been sent over which the others hear of it; None: somebody else tells them.
    """
    tier, shelves = clients.tier, list(counted)
    real = keys if space.namespace is None else [space.prefix + key for key in keys]
    before = _dropped(shelves)
    if tier is not None:
        tier.drop(marks(map(key_frame, real)), space.prefix, Source.COMMAND)
    if clients.bus is not None and link is not None:
        clients.bus.tell(space.namespace, link, "command", real)
    return _dropped(shelves) - before


async def drop_many(
    clients: Clients, space: Space, link: SharedLink | None, keys: Sequence[bytes], counted: Iterable[Shelf]
) -> int:
    """The same for any number of keys, a slice at a time, so that hits go on in between."""
    shelves, dropped = list(counted), 0
    for start in range(0, len(keys), SLICE):
        dropped += drop_keys(clients, space, link, keys[start : start + SLICE], shelves)
        await asyncio.sleep(0)
    return dropped


class Progress:
    """How far dropping by pattern is."""

    __slots__ = ("dropped", "looked_at", "of")

    def __init__(self) -> None:
        self.dropped = self.looked_at = self.of = 0
        """Entries: that are gone, that have been looked at, and that there were when it began."""

    def look(self, entries: int) -> None:
        """Hear that so many more are being looked at."""
        self.looked_at += entries

    def figures(self) -> dict[str, int]:
        """In numbers, by name."""
        return {"dropped": self.dropped, "looked_at": min(self.looked_at, self.of), "of": self.of}


async def drop_patterns(
    clients: Clients,
    space: Space,
    link: SharedLink | None,
    patterns: list[bytes],
    counted: Iterable[Shelf],
    progress: Progress | None = None,
) -> int:
    """The same for all keys that match one of some patterns (none of them `too_long`), a slice at a time."""
    tier, shelves, progress = clients.tier, list(counted), progress or Progress()
    if clients.bus is not None and link is not None:
        clients.bus.tell(space.namespace, link, "command", patterns=patterns)
    if tier is None:
        return 0
    progress.of = sum([shelf.entries for shelf in shelves])
    pattern = compile_globs(real_patterns(space, patterns))
    slices = drop_matching(tier, pattern, space.prefix, Source.COMMAND, progress.look)
    while True:
        before = _dropped(shelves)
        if next(slices, None) is None:
            return progress.dropped
        progress.dropped += _dropped(shelves) - before
        await asyncio.sleep(0)


def real_patterns(space: Space, patterns: list[bytes]) -> list[bytes]:
    """Patterns of keys as Redis knows them."""
    namespace = space.namespace
    return patterns if namespace is None else [namespace.pattern + pattern for pattern in patterns]


def _dropped(shelves: list[Shelf]) -> int:
    return sum([shelf.reads_dropped for shelf in shelves])
