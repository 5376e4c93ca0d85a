"""A tier without links: its clock and its dice are the test's."""

from __future__ import annotations

from typing import Any

from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.tracking import Mode
from proxy.tier.flights import Flight
from proxy.tier.policy import CacheRule, Defaults, Policy, Serve
from proxy.tier.rules import Read, Rules
from proxy.tier.shelf import Shelf, _size
from proxy.tier.tending import COST
from proxy.tier.tier import Limits, Tier

TABLE = CommandTable.load()
DEFAULTS = {"max_memory": 1 << 26, "max_entries": 10**6, "max_value_size": 1 << 20, "l1_ttl": 300.0, "l1_ttl_untracked": 5.0, "coherence_timeout": 1e9, "admit_after": 1}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(mode: Mode = Mode.OPTIN, protocols: tuple[int, ...] = (2,), **limits: Any) -> tuple[Tier, Shelf, Clock]:
    clock = Clock()
    tier = Tier(Limits(**{**DEFAULTS, **limits}), Rules(TABLE), clock, lambda: 1.0)
    shelf = tier.shelf("home")
    for protocol in protocols:
        shelf.table(protocol)
    shelf.link_up(mode)
    shelf.heard = clock()
    return tier, shelf, clock


def obey(tier: Tier, *rules: CacheRule, ceiling: Serve = Serve.CACHE) -> Policy:
    """Put cache rules in force."""
    policy = Policy(rules, Defaults(tier.limits.l1_ttl, tier.limits.max_value_size, ceiling))
    tier.obey(policy)
    return policy


def part(*arguments: bytes | str | int) -> bytes:
    return encode.request(*arguments)[1:]


def read(tier: Tier, *arguments: bytes | str | int) -> Read:
    found = tier.rules.read(part(*arguments))
    assert found is not None, arguments
    return found


def fill(shelf: Shelf, *arguments: bytes | str | int, reply: bytes = b"$1\r\nv\r\n", lifetime: float = float("inf")) -> Flight | None:
    flight = shelf.open(read(shelf.tier, *arguments))
    if flight is not None:
        shelf.land(flight, reply, lifetime)
    return flight


def consistent(shelf: Shelf) -> None:
    """What must hold after every step."""
    tier = shelf.tier
    kept = {found for table in shelf.tables.values() for found in (*table.replies, *table.held)}
    known, aside = shelf.tending.known, shelf.tending.aside
    lapsed = {found for found in aside if tier.clock() >= known[found].ends}
    wanted = _by_mark(shelf, kept | set(shelf.flights) | (set(aside) - lapsed))
    index = {key: {value} if isinstance(value, bytes) else set(value) for key, value in shelf.index.items()}
    # What has lapsed is found by no key any more, once Redis has said so.
    may = _by_mark(shelf, lapsed)
    assert {key: found - may.get(key, set()) | wanted.get(key, set()) for key, found in index.items() if found - may.get(key, set()) or key in wanted} == wanted
    assert shelf.entries == sum(map(len, shelf.tables.values()))
    for table in shelf.tables.values():
        assert not table.replies.keys() & table.held.keys() and table.held.keys() <= shelf.reuse.open.keys()
    assert not kept & set(aside) and set(aside) <= set(known) <= kept | set(aside)
    size = sum(_size(found, reply) for table in shelf.tables.values() for found, reply in (table.replies | table.held).items())
    size += COST * len(known) + sum(len(found) + len(reply) for found, replies in aside.items() for reply in replies.values())
    size += sum(len(found) + len(reply) for found, (replies, _) in shelf.tending._lapsed.items() for reply in replies.values())
    assert shelf.bytes == size
    _looked_at_in_time(shelf, kept)
    assert tier.used == sum(each.bytes for each in tier.shelves.values())
    assert all(not flight.tainted for flight in shelf.flights.values())


def _by_mark(shelf: Shelf, parts: set[bytes]) -> dict[int, set[bytes]]:
    found: dict[int, set[bytes]] = {}
    for each in parts:
        for mark in shelf.rules.part_marks(each):
            found.setdefault(mark, set()).add(each)
    return found


def _looked_at_in_time(shelf: Shelf, kept: set[bytes]) -> None:
    """Everything has a deadline, and nobody is told to look after that."""
    due: dict[bytes, set[float]] = {}
    for deadline, parts in shelf.deadlines._parts.items():
        for each in parts:
            due.setdefault(each, set()).add(deadline)
    assert shelf.deadlines.notes == sum(len(parts) for parts in shelf.deadlines._parts.values())
    for each in kept | set(shelf.tending.aside):
        tended = shelf.tending.known.get(each)
        assert each in due and (tended is None or min(due[each]) <= tended.until), each
        if each in kept:
            assert shelf.until <= (tended.until if tended else max(due[each]))
