"""The whole tier: all shelves of one sidecar, their common budget, and what is counted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from proxy.tier.door import Door
from proxy.tier.rules import Rules
from proxy.tier.shelf import Shelf

_BATCH = 256
"""Replies evicted at once: finding the least recently used one means stepping over what was dropped
before."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    max_memory: int
    max_entries: int
    max_value_size: int
    l1_ttl: float
    coherence_timeout: float
    admit_after: int


class Tier:
    """Makes shelves, keeps them within the limits, drops in all of them what a write names."""

    def __init__(
        self,
        limits: Limits,
        rules: Rules,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.limits = limits
        self.rules = rules
        self.clock = clock
        self.shelves: dict[Hashable, Shelf] = {}
        self.door = Door(limits.admit_after, limits.max_memory)
        self.used = 0
        """Bytes taken by all entries."""
        self.entries = 0
        """Replies kept."""
        self.loose = False
        """Whether some shelf learns of changes later than replies may show them (BCAST)."""
        self._rng = rng
        # What is counted, since the start.
        self.misses = 0
        """Reads that were looked up and not there."""
        self.passed = 0
        """Commands of pipelines that went to Redis with their neighbours, looked up or not."""
        self.coalesced = 0
        """Of these, reads that joined another's flight."""
        self.fills = 0
        self.evicted = 0
        self.expired = 0
        self.invalidated = 0
        """Entries dropped because Redis said so."""
        self.overwritten = 0
        """Entries dropped because of a write that passed through here."""
        self.pushes = 0
        """Invalidation messages from Redis."""
        self.on_loose: Callable[[], object] = int
        """Called when `loose` has become True."""
        self.count_hits: Callable[[], int] = int
        """Adds up the reads answered from memory; they are counted by who answers them."""

    @property
    def hits(self) -> int:
        """Reads answered from memory."""
        return self.count_hits()

    @property
    def shows(self) -> bool:
        """Whether a write could matter to anything that is kept or under way."""
        shelves = self.shelves
        if len(shelves) != 1:
            return bool(shelves)
        (shelf,) = shelves.values()
        return bool(shelf.index)

    @property
    def full(self) -> bool:
        """Whether the limits are exceeded."""
        return self.used > self.limits.max_memory or self.entries > self.limits.max_entries

    def jitter(self) -> float:
        """A factor for lifetimes, so that what was filled at once does not expire at once."""
        return 0.9 + 0.1 * self._rng()

    def shelf(self, key: Hashable) -> Shelf:
        """The shelf for a link."""
        found = self.shelves.get(key)
        if found is None:
            found = self.shelves[key] = Shelf(self)
        return found

    def discard(self, key: Hashable) -> None:
        """Give up a shelf whose link is no longer used."""
        shelf = self.shelves.pop(key, None)
        if shelf is not None:
            shelf.link_lost()

    def drop(self, keys: Iterable[int]) -> int:
        """Drop what shows any of the keys (their marks), in every shelf: they are views of one Redis.

        Returns how many entries that were.
        """
        count = 0
        for shelf in self.shelves.values():
            if not shelf.index.keys().isdisjoint(keys):
                before = shelf.drops
                shelf.drop(keys)
                count += shelf.drops - before
        self.overwritten += count
        return count

    def clear(self) -> int:
        """Empty every shelf; how many entries that were."""
        return sum([shelf.clear() for shelf in self.shelves.values()])

    def make_room(self) -> None:
        """Evict until the limits hold."""
        self.door.paid(self.fills, self.count_hits)
        while self.full:
            shelf = max(self.shelves.values(), key=lambda shelf: shelf.bytes)
            evicted = shelf.evict(min(_BATCH, 1 + shelf.entries // 16))
            self.evicted += evicted
            if not evicted:
                return
