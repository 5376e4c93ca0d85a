"""A tier without links: its clock and its dice are the test's."""

from __future__ import annotations

from typing import Any

from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.tracking import Mode
from proxy.tier.flights import Flight
from proxy.tier.rules import Read, Rules
from proxy.tier.shelf import Shelf
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
    kept = {found for table in shelf.tables.values() for found in table.replies}
    wanted: dict[int, set[bytes]] = {}
    for found in kept | set(shelf.flights):
        for mark in tier.rules.part_marks(found):
            wanted.setdefault(mark, set()).add(found)
    index = {key: {value} if isinstance(value, bytes) else set(value) for key, value in shelf.index.items()}
    assert index == wanted
    assert shelf.entries == sum(len(table.replies) for table in shelf.tables.values())
    if not kept:
        assert shelf.bytes == 0
    assert tier.used == sum(each.bytes for each in tier.shelves.values())
    assert all(not flight.tainted for flight in shelf.flights.values())
