"""Which tables are filled: those of the protocols that clients speak."""

from __future__ import annotations

from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import _MOST_LET_GO, _UNASKED, Shelf
from proxy.tier.tier import Tier
from tests.tier.shelves import Clock, consistent, fill, make


def asked(shelf: Shelf, clock: Clock, *protocols: int) -> None:
    for protocol in protocols:
        shelf.table(protocol).asked = clock.now


def sizes(shelf: Shelf) -> dict[int, int]:
    return {protocol: len(table.replies) for protocol, table in shelf.tables.items()}


def both(count: int = 10) -> tuple[Tier, Shelf, Clock]:
    tier, shelf, clock = make()
    asked(shelf, clock, 2, 3)
    for n in range(count):
        fill(shelf, "GET", f"k:{n}")
    assert sizes(shelf) == {2: count, 3: count}
    return tier, shelf, clock


def test_one_that_nobody_reads_from_is_not_filled() -> None:
    """Every connection begins in RESP2, whatever it speaks in the end."""
    _, shelf, clock = make()
    shelf.table(2)
    asked(shelf, clock, 3)
    fill(shelf, "GET", "k")
    assert sizes(shelf) == {2: 0, 3: 1}
    asked(shelf, clock, 2)
    fill(shelf, "GET", "other")
    assert sizes(shelf) == {2: 1, 3: 2}
    consistent(shelf)


def test_one_that_nobody_reads_from_any_more_is_emptied_bit_by_bit() -> None:
    tier, shelf, clock = both(_MOST_LET_GO + 10)
    clock.now += _UNASKED
    asked(shelf, clock, 2)
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: _MOST_LET_GO + 10, 3: 10}
    consistent(shelf)
    fill(shelf, "GET", "new")
    assert sizes(shelf)[3] == 10, "nothing comes in"
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: _MOST_LET_GO + 11, 3: 0}
    consistent(shelf)
    assert tier.governor.engaged == 0


def test_one_whose_clients_are_there_is_filled_and_stays() -> None:
    _, shelf, clock = make()
    asked(shelf, clock, 3)
    shelf.table(2).users = 1
    fill(shelf, "GET", "k")
    assert sizes(shelf) == {2: 1, 3: 1}
    clock.now += _UNASKED
    asked(shelf, clock, 3)
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: 1, 3: 1}
    shelf.table(2).users = 0
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: 0, 3: 1}
    consistent(shelf)


def test_but_not_while_nobody_reads_at_all() -> None:
    _, shelf, clock = both()
    clock.now += 10 * _UNASKED
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: 10, 3: 10}


def test_nor_while_both_are_read() -> None:
    _, shelf, clock = both()
    clock.now += _UNASKED / 2
    asked(shelf, clock, 2)
    clock.now += _UNASKED / 2 - 1
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: 10, 3: 10}


def test_what_only_it_has_leaves_the_index() -> None:
    _, shelf, clock = make()
    shelf.table(2)
    asked(shelf, clock, 3)
    fill(shelf, "GET", "k")
    clock.now += _UNASKED
    asked(shelf, clock, 2)
    shelf.let_go(clock.now)
    assert sizes(shelf) == {2: 0, 3: 0} and not shelf.index
    consistent(shelf)


def test_a_read_that_is_dropped_counts_once() -> None:
    tier, shelf, _ = both()
    before = shelf.drops
    tier.clear()
    assert shelf.drops - before == 20
    fill(shelf, "GET", "k:1")
    tier.drop(marks([key_frame(b"k:1")]))
    assert shelf.reads_dropped == 1


def test_an_older_reply_does_not_outlive_a_newer_one() -> None:
    _, shelf, _ = both(1)
    shelf.table(3).asked = 0.0
    fill(shelf, "GET", "k:0", reply=b"$1\r\nw\r\n")
    assert sizes(shelf) == {2: 1, 3: 0}
    consistent(shelf)
