"""Dropping what shows keys that match a pattern, a slice at a time, so that hits go on in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy.tier.rules import key_name, marks

if TYPE_CHECKING:
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Tier

SLICE = 256
"""Entries looked at without a pause: less than a millisecond."""


def drop_matching(tier: Tier, pattern: re.Pattern[bytes], prefix: bytes) -> Iterator[int]:
    """Drop the entries of keys that match, as Redis knows them; how many, after each slice.

    What is fetched while this goes on is newer than the invalidation; what was under way when it began is
    tainted at once. `prefix`: what the pattern begins with (see `Tier.views`).
    """
    for shelf in list(tier.views(prefix)):
        _taint(shelf, pattern)
        for parts in _slices(shelf):
            yield _drop(shelf, pattern, parts)


def _slices(shelf: Shelf) -> Iterator[list[bytes]]:
    kept = dict.fromkeys([part for table in shelf.tables.values() for part in table.replies])
    parts = [*kept, *shelf.tending.aside]
    for start in range(0, len(parts), SLICE):
        yield parts[start : start + SLICE]


def _taint(shelf: Shelf, pattern: re.Pattern[bytes]) -> None:
    for flight in list(shelf.flights.values()):
        shelf.drop(marks([key for key in flight.read.keys if pattern.fullmatch(key_name(key))]))


def _drop(shelf: Shelf, pattern: re.Pattern[bytes], parts: list[bytes]) -> int:
    before, read, match = shelf.drops, shelf.rules.read, pattern.fullmatch
    found = [wanted.keys for part in parts if (wanted := read(part)) is not None]
    shelf.drop(marks([key for keys in found for key in keys if match(key_name(key))]))
    return shelf.drops - before
