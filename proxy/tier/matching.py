"""Dropping what shows keys that match a pattern, a slice at a time, so that hits go on in between."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from proxy.tier.rules import key_frame, key_name, marks

if TYPE_CHECKING:
    from proxy.tier.shelf import Shelf
    from proxy.tier.table import Table
    from proxy.tier.tier import Source, Tier

SLICE = 128
"""Entries looked at without a pause: a quarter of a millisecond."""
_COST = 1_000_000
"""Bytes of parts, times bytes of patterns, that are looked at without a pause: a millisecond at worst."""
_LONG = 4096
"""Bytes of a name from which it counts as matching: to drop too much is harmless, to look may take long."""


def drop_matching(
    tier: Tier,
    pattern: re.Pattern[bytes],
    prefix: bytes,
    source: Source | None = None,
    looked_at: Callable[[int], object] = int,
) -> Iterator[int]:
    """Drop the entries of keys that match, as Redis knows them; how many, after each slice.

    What is fetched while this goes on is newer than the invalidation; what was under way when it began is
    tainted at once. `prefix`: what the pattern begins with (see `Tier.views`); `source`: as what they are
    counted, if at all; `looked_at`: hears of how many entries each slice was.
    """
    for shelf in list(tier.views(prefix)):
        _taint(shelf, pattern)
        for parts in _slices(shelf, len(pattern.pattern)):
            looked_at(len(parts))
            count = _drop(shelf, pattern, parts)
            if source is not None:
                shelf.account.count(count, source)
            yield count


def drop_keys(tier: Tier, keys: Sequence[bytes], prefix: bytes, source: Source) -> Iterator[int]:
    """The same for keys, as clients of a namespace know them; how many entries went, after each slice."""
    for start in range(0, len(keys), SLICE):
        some = marks([key_frame(prefix + key) for key in keys[start : start + SLICE]])
        yield tier.drop(some, prefix, source)


def _cheap(parts: list[bytes], weight: int) -> list[bytes]:
    """So many parts from the end as can be looked at without a pause; one at least."""
    some = parts[-SLICE:]
    most = _COST // weight
    if sum(map(len, some)) <= most:
        return some
    while len(some) > 1 and sum(map(len, some)) > most:
        some = some[len(some) // 2 :]
    return some


def _slices(shelf: Shelf, weight: int) -> Iterator[list[bytes]]:
    """What is aside now, what every table keeps, and what the ghost tracks, by and by; what an earlier table
    keeps as well has been looked at, or is newer. What changes places meanwhile is dropped by its keys,
    wherever it is.

    Parts are let go as they are handed out: all at the end would take long to free.
    """
    earlier: list[Table] = []
    places = [list(shelf.tending.aside), *[[*table.replies, *table.held] for table in shelf.tables.values()]]
    for parts, table in zip(places, (None, *shelf.tables.values()), strict=False):
        while parts:
            some = _cheap(parts, weight)
            del parts[-len(some) :]
            left = [part for part in some if not any(part in other for other in earlier)]
            yield [part for part in left if shelf.keeps(part)]
        if table is not None:
            earlier.append(table)
    if shelf.ghost is not None:
        tracked = list(shelf.ghost)
        while tracked:
            yield tracked[-SLICE:]
            del tracked[-SLICE:]


def _taint(shelf: Shelf, pattern: re.Pattern[bytes]) -> None:
    for flight in list(shelf.flights.values()):
        shelf.drop(marks([key for key in flight.read.keys if _matches(pattern, key)]))


def _drop(shelf: Shelf, pattern: re.Pattern[bytes], parts: list[bytes]) -> int:
    before, keys_of = shelf.drops, shelf.rules.part_keys
    found = [key for part in parts for key in keys_of(part)]
    shelf.drop(marks([key for key in found if _matches(pattern, key)]))
    return shelf.drops - before


def _matches(pattern: re.Pattern[bytes], key: bytes) -> bool:
    return len(key) > _LONG or pattern.fullmatch(key_name(key)) is not None
