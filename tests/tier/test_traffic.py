"""What is read and what changes is counted by part, in bounded memory, in a window whose length is known."""

from __future__ import annotations

import random

import pytest

from proxy.tier import traffic as module
from proxy.tier.rules import key_frame, marks
from proxy.tier.traffic import Traffic, overstated
from tests.tier.shelves import Clock, fill, make, part


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _dice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "randrange", random.Random(1).randrange)


class TestMisses:
    @pytest.mark.parametrize("chunk", [1, 7, 64])
    def test_about_as_many_are_counted_as_there_were(self, clock: Clock, chunk: int) -> None:
        traffic = Traffic(clock, int)
        for _ in range(100_000 // chunk):
            traffic.missed([b"a"] * chunk)
        assert traffic.misses.count(b"a") == pytest.approx(100_000, rel=0.05)

    def test_a_client_that_reads_in_a_loop_is_no_exception(self, clock: Clock) -> None:
        """Every sixteenth of its misses is always the same key's."""
        traffic = Traffic(clock, int)
        loop = [b"%d" % n for n in range(16)]
        for _ in range(5000):
            traffic.missed(loop)
        assert all(traffic.misses.count(each) == pytest.approx(5000, rel=0.2) for each in loop)

    def test_long_ones_are_not_remembered(self, clock: Clock) -> None:
        traffic = Traffic(clock, int)
        for n in range(1000):
            traffic.missed([b"%d" % n * 2000])
            traffic.changed([b"%d" % n * 2000])
        assert len(traffic.misses) == len(traffic.changes) == 0


class TestTheWindow:
    def test_a_rate_is_what_it_was_however_often_it_has_faded(self, clock: Clock) -> None:
        traffic = Traffic(clock, int)
        for second in range(1, 600):
            traffic.hits.add([b"a"], 50)
            clock.now += 1
            if second % 60 == 0:
                traffic.fade()
            if second > 5:
                assert traffic.hits.count(b"a") / traffic.seconds == pytest.approx(50, rel=0.01)
        assert 60 <= traffic.seconds <= 120

    def test_what_was_hot_before_is_overtaken(self, clock: Clock) -> None:
        traffic = Traffic(clock, int)
        for name in (b"old", b"new"):
            for _ in range(300):
                traffic.hits.add([name], 50)
                clock.now += 1
                if clock.now % 60 == 0:
                    traffic.fade()
        found = dict(traffic.busiest(2))
        assert found[b"new"] > 20 * found[b"old"]

    def test_in_its_first_moment_no_rate_is_enormous(self, clock: Clock) -> None:
        assert Traffic(clock, int).seconds == 1.0


class TestBusiest:
    def test_hits_and_misses_are_reads(self, clock: Clock) -> None:
        traffic = Traffic(clock, int)
        traffic.hits.add([b"hit", b"both"], 17)
        traffic.misses.add([b"both", b"missed", b"missed"], 16)
        assert traffic.busiest(2) == [(b"both", 33), (b"missed", 32)]

    def test_or_bytes(self, clock: Clock) -> None:
        traffic = Traffic(clock, int)
        traffic.hits.add([b"small"] * 5 + [b"big"], 17)
        assert traffic.busiest(1, worth={b"small": 10, b"big": 100}.__getitem__) == [(b"big", 17)]


class TestClientsThatStayForAFewHits:
    def test_do_not_count_for_more_than_they_do(self, clock: Clock) -> None:
        exact = 0
        traffic = Traffic(clock, lambda: exact)
        for _ in range(300):
            exact += 2
            traffic.hits.add([b"a", b"b"], 17)
            clock.now += 1
            if clock.now % 60 == 0:
                traffic.fade()
        assert traffic.hits.count(b"a") / traffic.seconds > 16
        factor = overstated([traffic])
        assert factor == pytest.approx(17)
        assert dict(traffic.busiest(2, factor))[b"a"] / traffic.seconds == pytest.approx(1, rel=0.02)

    def test_shelves_of_one_account_are_counted_together(self, clock: Clock) -> None:
        one, other = (Traffic(clock, lambda: 0) for _ in range(2))
        one._hits_before = other._hits_before = -34
        one.hits.add([b"a"], 17)
        other.hits.add([b"a"] * 3, 17)
        assert overstated([one, other]) == 2.0

    def test_what_is_not_logged_yet_is_not_made_up(self, clock: Clock) -> None:
        traffic = Traffic(clock, int)
        traffic._hits_before = -100
        assert overstated([traffic]) == 1.0 == overstated([])
        traffic.hits.add([b"a"], 17)
        assert overstated([traffic]) == 1.0


class TestAShelf:
    def test_tells_of_misses(self) -> None:
        _, shelf, _ = make(admit_after=2)
        for _ in range(2000):
            shelf.admits(part("GET", "one"))
            shelf.admitted([part("GET", "one"), part("GET", "other")])
        assert shelf.traffic.misses.count(part("GET", "one")) == pytest.approx(4000, rel=0.2)
        assert shelf.traffic.misses.count(part("GET", "other")) == pytest.approx(2000, rel=0.3)

    def test_tells_of_changes_of_what_it_keeps(self) -> None:
        tier, shelf, _ = make()
        for _ in range(3):
            fill(shelf, "GET", "pushed")
            fill(shelf, "GET", "written")
            shelf.invalidate([key_frame(b"pushed"), key_frame(b"unknown")])
            tier.drop(marks([key_frame(b"written")]))
            shelf.invalidate([key_frame(b"written")])
        shelf.digest()
        assert sorted(shelf.traffic.changes.items()) == [(part("GET", "pushed"), 3), (part("GET", "written"), 3)]

    def test_not_of_what_is_evicted_or_expires(self) -> None:
        _, shelf, clock = make(max_entries=1)
        fill(shelf, "GET", "a")
        fill(shelf, "GET", "b", lifetime=1.0)
        clock.now += 10
        shelf.vouch(clock.now)
        shelf.clear()
        assert shelf.entries == 0 and len(shelf.traffic.changes) == 0


def test_of_changes_in_great_number_some_stand_for_all(clock: Clock) -> None:
    traffic = Traffic(clock, int)
    for _ in range(module._EXACT + 1):
        traffic.changed([b"a"])
    assert traffic.changes.count(b"a") == module._EXACT
    for _ in range(10 * module._SOME - 1):
        traffic.changed([b"a"])
    assert traffic.changes.count(b"a") == module._EXACT + 10 * module._SOME
    before = traffic.changes.count(b"a")
    traffic.changed([b"a"] * (10 * module._SOME))
    assert traffic.changes.count(b"a") == before + 10 * module._SOME, "also many at once"
    traffic.fade()
    traffic.changed([b"b"])
    assert traffic.changes.count(b"b") == 1, "exactly again"
