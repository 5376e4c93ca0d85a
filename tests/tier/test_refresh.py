"""When entries are to be fetched anew: once each, before their time is over, and remembered no longer than they are kept."""

from __future__ import annotations

import pytest

from proxy.tier.policy import CacheRule, Defaults, Policy
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Tier
from tests.tier.shelves import Clock, fill, make, part

MOST = 1000


def ahead(refresh_ahead: float = 2.0, l1_ttl: float = 10.0) -> tuple[Tier, Shelf, Clock]:
    tier, shelf, clock = make()
    tier.obey(Policy((CacheRule((b"k*",), refresh_ahead=refresh_ahead, l1_ttl=l1_ttl, jitter=0.0),), Defaults(300.0, 1 << 20)))
    return tier, shelf, clock


def due(shelf: Shelf, clock: Clock, most: int = MOST) -> list[bytes]:
    return list(shelf.tending.due(clock.now, most))


K = part("GET", "k")


class TestAnEntry:
    def test_is_due_once_before_its_time_is_over(self) -> None:
        _, shelf, clock = ahead()
        fill(shelf, "GET", "k")
        clock.now += 7.0
        assert not due(shelf, clock)
        clock.now += 1.0
        assert due(shelf, clock) == [K]
        assert not due(shelf, clock)

    @pytest.mark.parametrize("refresh_ahead", [10.0, 3600.0])
    def test_that_lives_no_longer_than_that_is_never_due(self, refresh_ahead: float) -> None:
        """Or it would be fetched all the time."""
        _, shelf, clock = ahead(refresh_ahead)
        fill(shelf, "GET", "k")
        for _ in range(99):
            clock.now += 0.1
            assert not due(shelf, clock)

    def test_fetched_anew_is_due_by_its_new_time(self) -> None:
        _, shelf, clock = ahead()
        fill(shelf, "GET", "k")
        clock.now += 4.0
        fill(shelf, "GET", "k")
        clock.now += 4.0
        assert not due(shelf, clock)
        clock.now += 4.0
        assert due(shelf, clock) == [K]

    def test_that_is_dropped_is_not(self) -> None:
        _, shelf, clock = ahead()
        fill(shelf, "GET", "k")
        shelf.drop(marks([key_frame(b"k")]))
        clock.now += 8.0
        assert not due(shelf, clock)

    def test_whose_time_is_over_is_not(self) -> None:
        _, shelf, clock = ahead()
        fill(shelf, "GET", "k")
        clock.now += 10.0
        assert not due(shelf, clock)

    def test_that_ends_with_its_key_is_not(self) -> None:
        for lifetime in (0.7, 1.0, 3.3, 8.0, 9.0, 9.9, 10.0):
            _, shelf, clock = ahead()
            clock.now += lifetime  # its end is rounded down, each time differently
            fill(shelf, "GET", "k", lifetime=lifetime)
            for _ in range(99):
                clock.now += lifetime / 100
                assert not due(shelf, clock)

    def test_whose_key_lives_on_is(self) -> None:
        _, shelf, clock = ahead()
        fill(shelf, "GET", "k", lifetime=15.0)
        clock.now += 8.0
        assert due(shelf, clock) == [K]

    def test_beyond_what_may_be_fetched_at_once_is_due_the_next_time(self) -> None:
        _, shelf, clock = ahead()
        for n in range(25):
            fill(shelf, "GET", f"k{n}")
        clock.now += 8.0
        found = [due(shelf, clock, 10) for _ in range(4)]
        assert [len(parts) for parts in found] == [10, 10, 5, 0]
        assert len({each for parts in found for each in parts}) == 25


class TestWhatIsGone:
    def test_is_remembered_no_longer(self) -> None:
        _, shelf, clock = ahead(1.0, 365 * 86400.0)
        for n in range(20_000):
            fill(shelf, "GET", f"k{n}")
            shelf.drop(marks([key_frame(b"k%d" % n)]))
            clock.now += 0.01
        tending = shelf.tending
        assert tending._notes == sum(map(len, tending._ahead.values())) <= 4098

    def test_is_swept_out_and_nothing_else(self) -> None:
        _, shelf, clock = ahead(1.0, 1000.0)
        for n in range(100):
            fill(shelf, "GET", f"k:kept{n}")
        for n in range(10_000):
            fill(shelf, "GET", f"k{n}")
            shelf.drop(marks([key_frame(b"k%d" % n)]))
        clock.now = (shelf.ends(part("GET", "k:kept0")) or 0.0) - 0.5
        assert set(due(shelf, clock)) == {part("GET", f"k:kept{n}") for n in range(100)}

    def test_by_a_flush(self) -> None:
        _, shelf, clock = ahead()
        fill(shelf, "GET", "k")
        shelf.clear()
        clock.now += 8.0
        assert not due(shelf, clock) and shelf.tending._notes == 0
