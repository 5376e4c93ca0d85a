"""The whole tier: all shelves of one sidecar, their common budget, and what is counted."""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial

from proxy.tier.classes import Classes
from proxy.tier.door import Door
from proxy.tier.governor import Governor
from proxy.tier.policy import Defaults, Policy, Ruling, Serve
from proxy.tier.reuse import ReadClock
from proxy.tier.rules import Rules, key_name
from proxy.tier.sampling import Quota
from proxy.tier.shelf import Shelf
from proxy.tier.table import STRIDE
from proxy.tier.waste import Waste

_BATCH = 256
"""Replies evicted at once: finding the least recently used one means stepping over what was dropped
before."""

_TIGHT = 0.9
"""The part of memory above which there is hardly any room."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    max_memory: int
    max_entries: int
    max_value_size: int
    l1_ttl: float
    l1_ttl_untracked: float
    coherence_timeout: float
    admit_after: int
    refill_limit: int = 0
    """Fetches of a class under way at once after much has been dropped; 0: any number."""
    stale_max: float = 0.0
    """How long entries may be served after their link broke where no rule says so; 0: not at all."""


class Source(enum.Enum):
    """On whose word entries are dropped, Redis' own aside."""

    WRITE = "write"
    """Of a client here."""
    BUS = "bus"
    COMMAND = "command"
    """SIDECAR INVALIDATE or FLUSH, or the administration."""


_WRITE = Source.WRITE


class Budget:
    """Memory that one or several accounts share, and who may take it."""

    def __init__(
        self, max_memory: int, max_entries: int, admit_after: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_memory = max_memory
        self.max_entries = max_entries
        self.door = Door(admit_after, max_memory)
        self.used = 0
        """Bytes taken by all entries."""
        self.entries = 0
        """Replies kept."""
        self.accounts: list[Account] = []
        self.reads = ReadClock(clock, self.accounts)

    def weigh(self) -> None:
        """Have the doorkeeper judge whether entries last long enough to pay; called now and then."""
        drops = sum([account.overwritten + account.invalidated for account in self.accounts])
        # In a pipeline that has to wait for Redis all the same, a hit is worth half.
        self.door.churned(drops, sum([account.hits - account.pieced // 2 for account in self.accounts]))

    @property
    def full(self) -> bool:
        """Whether the limits are exceeded."""
        return self.used > self.max_memory or self.entries > self.max_entries

    @property
    def tight(self) -> bool:
        """Whether what comes in pushes something out, or is about to."""
        return self.used > _TIGHT * self.max_memory or self.entries > _TIGHT * self.max_entries

    def make_room(self) -> None:
        """Evict until the limits hold."""
        fills = sum([account.fills for account in self.accounts])
        self.door.paid(fills, lambda: sum([account.hits for account in self.accounts]))
        while self.full:
            shelves = [shelf for account in self.accounts for shelf in account.shelves]
            shelf = max(shelves, key=lambda shelf: shelf.bytes)
            evicted = shelf.evict(min(_BATCH, 1 + shelf.entries // 16))
            shelf.account.evicted += evicted
            if not evicted:
                return


class Account:
    """The shelves of one key space: how its commands are judged, what it may take, and what is counted."""

    def __init__(
        self,
        rules: Rules,
        budget: Budget,
        refill_limit: int = 0,
        label: Callable[[Rules, bytes], str] = lambda rules, part: "",
    ) -> None:
        self.rules = rules
        self.governor = Governor(refill_limit)
        self.budget = budget
        budget.accounts.append(self)
        self.shelves: list[Shelf] = []
        self.count_hits: Callable[[], int] = int
        """Adds up the reads answered from memory; they are counted by who answers them."""
        # What is counted, since the start.
        self.logged = 0
        """Hits as the tables' logs have them; `hits` are exact."""
        self.hits_counted = 0
        """`hits` when the budget's `ReadClock` last looked."""
        self.misses = 0
        """Reads that were looked up and not there."""
        self.passed = 0
        """Commands of pipelines that went to Redis with their neighbours, looked up or not."""
        self.pieced = 0
        """Of the hits, those in pipelines that had to wait for Redis all the same."""
        self.coalesced = 0
        """Of these, reads that joined another's flight."""
        self.fills = 0
        self.capped = 0
        """Of these, those whose key lives longer than they may (`l1_ttl`)."""
        self.evicted = 0
        self.expired = 0
        self.invalidated = 0
        """Entries dropped because Redis said so."""
        self.overwritten = 0
        """Entries dropped because of a write that passed through here."""
        self.told = 0
        """Entries dropped because the eviction bus said so."""
        self.commanded = 0
        """Entries dropped because somebody asked for it."""
        self.lost = 0
        """Entries dropped because the link that kept them true was lost, or others' rules came into force."""
        self.pushes = 0
        """Invalidation messages from Redis."""
        self.verified = 0
        """Hits that were compared with what Redis has."""
        self.mismatches = 0
        """Of these, what was stale."""
        self.classes = Classes(partial(label, rules), lambda: self.hits, lambda: self.misses)
        """Hits and misses by class."""
        self._stale_shelves = 0
        self._stale_hits = self._hits_before = 0

    @property
    def stale_hits(self) -> int:
        """Of the hits, those while a shelf of it was stale: the difference between before and after."""
        return self._stale_hits + (self.hits - self._hits_before if self._stale_shelves else 0)

    def stale_begins(self) -> None:
        """Hear that one of its shelves is stale."""
        if not self._stale_shelves:
            self._hits_before = self.hits
        self._stale_shelves += 1

    def stale_ends(self) -> None:
        """Hear that one of its shelves is stale no longer."""
        self._stale_hits = self.stale_hits
        self._hits_before = self.hits
        self._stale_shelves -= 1

    @property
    def hits(self) -> int:
        """Reads answered from memory."""
        return self.count_hits()

    @property
    def entries(self) -> int:
        """Replies kept."""
        return sum([shelf.entries for shelf in self.shelves])

    @property
    def used(self) -> int:
        """Bytes taken by its entries."""
        return sum([shelf.bytes for shelf in self.shelves])

    def settle(self) -> None:
        """Bring hits and misses by class up to date; called once a second, and by who wants to see them."""
        for shelf in self.shelves:
            shelf.digest()
            for table in shelf.tables.values():
                table.settle()
        self.classes.settle()

    def clear(self) -> int:
        """Empty its shelves; how many entries that were."""
        return sum([shelf.clear() for shelf in self.shelves])

    def count(self, dropped: int, source: Source) -> None:
        """Count entries that were dropped."""
        if source is _WRITE:  # not by way of its class, which takes longer than all of this
            self.overwritten += dropped
        elif source is Source.BUS:
            self.told += dropped
        else:
            self.commanded += dropped


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
        self.clock = clock
        self.policy = Policy((), Defaults(limits.l1_ttl, limits.max_value_size, stale=limits.stale_max))
        """The cache rules in force."""
        self.stride = STRIDE
        """How many hits at most go unlogged behind one that is logged."""
        self.eager = False
        """Whether all are logged while they are few: then somebody calls `Account.settle` once a second."""
        self.shows_names = True
        """Whether names of keys, and what is a part of them, may be shown (`key_privacy`)."""
        self.shelves: dict[Hashable, Shelf] = {}
        self.quota = Quota()
        """Of reads that are watched."""
        self.waste = Waste()
        """What shelves have dropped all at once."""
        self.common = Budget(limits.max_memory, limits.max_entries, limits.admit_after, clock)
        """For all accounts that have no memory of their own."""
        self.accounts: list[Account] = []
        self._views: dict[bytes, list[Shelf]] = {}
        self.main = self.account(rules)
        """Of the key space without a namespace."""
        self.rules = rules
        self.loose = False
        """Whether some shelf learns of changes later than replies may show them (`Mode.late`)."""
        self.on_loose: Callable[[], object] = int
        """Called when `loose` has become True."""
        self._rng = rng

    @property
    def used(self) -> int:
        """Bytes taken by all entries."""
        return sum([budget.used for budget in self._budgets])

    @property
    def entries(self) -> int:
        """Replies kept."""
        return sum([budget.entries for budget in self._budgets])

    @property
    def governor(self) -> Governor:
        """That of the key space without a namespace."""
        return self.main.governor

    @property
    def _budgets(self) -> set[Budget]:
        return {account.budget for account in self.accounts}

    def views(self, prefix: bytes) -> list[Shelf]:
        """The shelves that may show a key that begins with a namespace's prefix (empty: any key).

        Namespaces do not lie within each other: these are the namespace's own, and those without one.
        """
        found = self._views.get(prefix)
        if found is None:
            found = self._views[prefix] = [
                shelf for shelf in self.shelves.values() if not prefix or shelf.rules.prefix in (b"", prefix)
            ]
        return found

    def shows(self, prefix: bytes) -> bool:
        """Whether a write in a namespace could matter to anything that is kept or under way."""
        shelves = self._views.get(prefix) or self.views(prefix)
        return bool(shelves[0].index) if len(shelves) == 1 else bool(shelves)

    def shortened(self, lifetime: float, jitter: float) -> float:
        """A lifetime less some of it, so that what was filled at once does not expire at once."""
        return lifetime * (1.0 - jitter * (1.0 - self._rng()))

    def obey(self, policy: Policy) -> None:
        """Put cache rules in force; what is kept by other rules is dropped."""
        self.policy = policy
        for account in self.accounts:
            account.classes.forget()
        for shelf in self.shelves.values():
            shelf.account.lost += shelf.clear()
            shelf.imagine(policy.observes)

    def close(self) -> None:
        """Serve nothing any more: that the links are lost now says nothing about Redis."""
        limits = self.policy.limits
        self.obey(Policy((), Defaults(limits.l1_ttl, limits.max_value_size, Serve.OFF)))

    def demote(self, ruling: Ruling) -> None:
        """Only observe from now on what a rule is about."""
        self.policy.demote(ruling)
        self.obey(self.policy)

    def account(self, rules: Rules, max_memory: int | None = None) -> Account:
        """A new account; with `max_memory` (bytes), so much of the whole is its own."""
        budget = self.common
        if max_memory is not None:
            budget = Budget(max_memory, self.limits.max_entries, self.limits.admit_after, self.clock)
            self.common.max_memory -= max_memory
        self.accounts.append(Account(rules, budget, self.limits.refill_limit, self.shown_label))
        return self.accounts[-1]

    def close_account(self, account: Account) -> None:
        """Give up an account that has no shelves any more; memory of its own is everybody's again."""
        self.accounts.remove(account)
        account.budget.accounts.remove(account)
        if account.budget is not self.common:
            self.common.max_memory += account.budget.max_memory

    def label(self, rules: Rules, part: bytes) -> str:
        """The class of a read: that of its first key; empty if it has none, or no key."""
        key = _first_key(rules, part)
        return self.policy.named(key) if key is not None else ""

    def shown_label(self, rules: Rules, part: bytes) -> str:
        """The same as everybody may see it."""
        if self.shows_names:
            return self.label(rules, part)
        key = _first_key(rules, part)
        return self.policy.ruling(key).rule.label if key is not None else ""

    def shelf(self, key: Hashable, account: Account | None = None) -> Shelf:
        """The shelf for a link."""
        found = self.shelves.get(key)
        if found is None:
            found = self.shelves[key] = Shelf(self, account or self.main)
            self._views.clear()
        return found

    def discard(self, key: Hashable) -> None:
        """Give up a shelf whose link is no longer used."""
        shelf = self.shelves.pop(key, None)
        if shelf is not None:
            self._views.clear()
            shelf.link_lost()
            shelf.forget()
            shelf.account.shelves.remove(shelf)

    def drop(self, keys: Iterable[int], prefix: bytes = b"", source: Source = Source.WRITE) -> int:
        """Drop what shows any of the keys (their marks), in every shelf: they are views of one Redis.

        `prefix`: what the keys begin with, where that is known. Returns how many entries that were.
        """
        count = 0
        for shelf in self._views.get(prefix) or self.views(prefix):
            if shelf.reuse.unkept:
                shelf.reuse.marks_changed(keys)
            if not shelf.index.keys().isdisjoint(keys):
                dropped = shelf.drop(keys, source is Source.WRITE)
                shelf.account.count(dropped, source)
                count += dropped
        return count

    def clear(self, prefix: bytes = b"", source: Source = Source.WRITE) -> int:
        """Empty every shelf that may show keys with that prefix; how many entries that were."""
        total = 0
        for shelf in self.views(prefix):
            dropped = shelf.clear()
            shelf.account.count(dropped, source)
            total += dropped
        return total


def _first_key(rules: Rules, part: bytes) -> bytes | None:
    """The first key of a read as clients name it; None if it has none."""
    try:
        keys = rules.part_keys(part)
    except ValueError:
        return None  # a piece of a chunk of which others were answered
    return key_name(keys[0])[len(rules.prefix) :] if keys else None
