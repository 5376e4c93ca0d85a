"""Samples come neither too fast nor too seldom, and those that are kept weigh about the same."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from proxy.tier import sampling
from proxy.tier.sampling import GAP, RATE, Pace, Quota, Turn, Window
from tests.tier.shelves import Clock


@pytest.fixture(autouse=True)
def _dice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "randrange", random.Random(1).randrange)


@dataclass
class Sample:
    number: int
    weight: int
    hit: bool = True


def effective(weights: list[int]) -> float:
    return sum(weights) ** 2 / sum([weight**2 for weight in weights])


class Stream:
    """Reads at some rate, and what is sampled of them."""

    def __init__(self, clock: Clock | None = None, quota: Quota | None = None) -> None:
        self.clock = clock or Clock()
        self.pace = Pace(self.clock, quota or Quota())
        self.turn = Turn(self.pace)
        self.window: Window[Sample] = Window(self.pace)
        self.reads = self.taken = 0

    def read(self, n: int, per_second: float, at_once: int = 1) -> None:
        for _ in range(n // at_once):
            self.clock.now += at_once / per_second
            self.reads += at_once
            if weight := self.turn.pass_over(at_once):
                self.taken += 1
                self.pace.took()
                self.window.append(Sample(self.reads, weight))

    @property
    def weights(self) -> list[int]:
        return [each.weight for each in self.window]


class TestTheWindow:
    def test_is_bounded_and_of_equal_weight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At any time, and not only when it has just been thinned."""
        monkeypatch.setattr(sampling, "MOST", 1000)
        stream = Stream()
        for n in range(40):
            stream.read(5000, 500)
            assert len(stream.window) <= 1000
            assert effective(stream.weights) >= 0.85 * len(stream.window)
            assert n < 2 or len(stream.window) == 1000

    def test_stands_for_all_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "MOST", 1000)
        stream = Stream()
        stream.read(100_000, 500)
        assert sum(stream.weights) == pytest.approx(100_000, rel=0.03)

    def test_is_in_the_order_of_time_and_of_all_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "MOST", 1000)
        stream = Stream()
        stream.read(100_000, 500)
        numbers = [each.number for each in stream.window]
        assert numbers == sorted(numbers)
        halves = [sum([each.weight for each in stream.window if (each.number > 50_000) is later]) for later in (False, True)]
        assert halves[0] == pytest.approx(halves[1], rel=0.05)

    def test_thins_each_kind_for_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "MOST", 100)
        window: Window[Sample] = Window(Pace(Clock(), Quota()))
        for n in range(100):
            window.append(Sample(n, 1, hit=n % 2 == 0))
        for n in range(50):
            window.append(Sample(n, 2, hit=n % 2 == 0))
        of = {hit: [each.weight for each in window if each.hit is hit] for hit in (True, False)}
        assert len(window) == 100 and of[True] == of[False]
        assert of[True].count(2) == 49, "the last one is still to be gone through"

    def test_says_what_had_to_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "MOST", 3)
        window: Window[Sample] = Window(Pace(Clock(), Quota()))
        gone = [window.append(Sample(n, 1)) for n in range(6)]
        assert [each and each.number for each in gone] == [None, None, None, 0, 2, 1]

    def test_may_be_forgotten_from_its_beginning(self) -> None:
        stream = Stream()
        stream.read(1000, 500)
        first = stream.window.first()
        stream.window.drop_first()
        assert first is not None and first not in list(stream.window)
        for _ in range(len(stream.window)):
            stream.window.drop_first()
        assert stream.window.first() is None


class TestThePace:
    def test_is_quick_where_reads_are_few(self) -> None:
        stream = Stream()
        stream.read(2000, 50)
        assert len(stream.window) == pytest.approx(2000 / GAP, rel=0.1)

    @pytest.mark.parametrize("rate", [5000, 50_000, 500_000])
    def test_costs_no_more_at_any_rate(self, rate: int) -> None:
        """A sample costs some microseconds: so many of them take less than a hundredth of each second."""
        stream = Stream()
        for second in range(4):
            before = stream.taken
            stream.read(rate, rate, at_once=17)
            assert stream.taken - before <= RATE * (1.5 if second == 0 else 1.1)
        assert stream.taken >= 0.7 * 4 * min(RATE, rate / 17)

    def test_many_windows_cost_no_more_than_one(self) -> None:
        clock, quota = Clock(), Quota()
        streams = [Stream(clock, quota) for _ in range(50)]
        for second in range(4):
            before = quota.taken
            for _ in range(1000):
                for stream in streams:
                    stream.read(10, 500_000)
            assert quota.taken - before <= RATE * (3 if second == 0 else 1.2)
        assert quota.taken >= RATE

    def test_is_slower_when_the_window_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "MOST", 1000)
        stream = Stream()
        stream.read(5000, 500)
        gap = stream.pace.gap
        stream.read(20_000, 500)
        assert stream.pace.gap >= 4 * gap


class TestATurn:
    @pytest.mark.parametrize("at_once", [1, 7, 100])
    def test_what_each_stands_for_adds_up(self, at_once: int) -> None:
        turn = Turn(Pace(Clock(), Quota()))
        turn._pace.gap = 20
        stands_for = [turn.pass_over(at_once) for _ in range(140_000 // at_once)]
        assert sum(stands_for) == pytest.approx(140_000, rel=0.05)

    def test_of_very_many_at_once_one_stands_for_all(self) -> None:
        turn = Turn(Pace(Clock(), Quota()))
        assert turn.pass_over(1_000_000) == 1_000_000 and turn.due > 0
