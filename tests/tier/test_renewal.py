"""What is fetched again while it is kept lives as long as the newer fetch says, never longer or shorter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tier.shelves import consistent, fill, make, part

KEY = part("GET", "a")


def kept(shelf: Any, clock: Any) -> bool:
    """Whether a client would be answered now."""
    alive = clock() < shelf.until or shelf.vouch(clock())
    return alive and KEY in shelf.tables[2].replies


def sweep(shelf: Any) -> None:
    """Take out the notes of what is gone, all at once."""
    for _ in shelf.deadlines.sweep():
        pass


class TestAnEntryFetchedAgain:
    @pytest.mark.parametrize("protocols", [(2,), (2, 3)])
    def test_lives_on(self, protocols: tuple[int, ...]) -> None:
        tier, shelf, clock = make(protocols=protocols)
        fill(shelf, "GET", "a", lifetime=100.0)
        clock.now += 90
        fill(shelf, "GET", "a", lifetime=100.0)
        clock.now += 80
        assert kept(shelf, clock), "its first deadline is over, its second is not"
        clock.now += 21
        assert not kept(shelf, clock)
        assert tier.used == 0 and not shelf.renewed
        consistent(shelf)

    def test_whose_time_to_live_is_shorter_now_ends_then(self) -> None:
        _, shelf, clock = make()
        fill(shelf, "GET", "a", lifetime=200.0)
        fill(shelf, "GET", "a", lifetime=10.0)
        clock.now += 10
        assert not kept(shelf, clock)

    def test_also_when_old_deadlines_are_swept_out(self) -> None:
        _, shelf, clock = make()
        fill(shelf, "GET", "a", lifetime=100.0)
        clock.now += 50
        fill(shelf, "GET", "a", lifetime=100.0)
        sweep(shelf)
        clock.now += 60
        assert kept(shelf, clock)
        clock.now += 41
        assert not kept(shelf, clock)

    def test_forgotten_with_everything_is_forgotten(self) -> None:
        """Else the deadline of before could outlive, and keep, what is fetched next."""
        _, shelf, clock = make()
        for _ in range(2):
            fill(shelf, "GET", "a", lifetime=200.0)
        shelf.clear()
        assert not shelf.renewed
        fill(shelf, "GET", "a", lifetime=10.0)
        clock.now += 10
        assert not kept(shelf, clock)

    def test_dropped_and_fetched_again_with_less_time(self) -> None:
        """Its renewed deadline, later than its last one, must not keep it."""
        _, shelf, clock = make()
        fill(shelf, "GET", "a", lifetime=100.0)
        clock.now += 1
        fill(shelf, "GET", "a", lifetime=250.0)
        shelf.invalidate([b"$1\r\na\r\n"])
        fill(shelf, "GET", "a", lifetime=20.0)
        clock.now += 20
        assert not kept(shelf, clock)


STEPS = st.lists(
    st.tuples(st.just("fill"), st.sampled_from([0.01, 1.0, 7.0, 30.0, 200.0]))
    | st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 3.0, 20.0, 150.0]))
    | st.tuples(st.just("other"), st.sampled_from([1.0, 50.0]))
    | st.tuples(st.sampled_from(["drop", "clear", "evict", "sweep", "sweep", "sweep"]), st.just(0.0)),
    max_size=12,
)


class TestAnyOrder:
    @settings(max_examples=400)
    @given(STEPS, st.sampled_from([(2,), (3, 2)]))
    def test_nothing_is_served_beyond_its_last_fetch(self, steps: list[tuple[str, float]], protocols: tuple[int, ...]) -> None:
        _, shelf, clock = make(protocols=protocols)
        ends = 0.0
        for step, value in steps:
            if step == "fill":
                fill(shelf, "GET", "a", lifetime=value)
                ends = clock() + value
            elif step == "wait":
                clock.now += value
            elif step == "other":
                fill(shelf, "GET", "b", lifetime=value)
            elif step == "drop":
                shelf.invalidate([b"$1\r\na\r\n"])
            elif step == "clear":
                shelf.clear()
            elif step == "evict":
                shelf.evict(1)
            else:
                sweep(shelf)
            if kept(shelf, clock):
                assert clock() < ends
            if clock() >= max(ends, 0):
                assert not kept(shelf, clock)
            consistent(shelf)
