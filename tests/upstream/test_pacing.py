"""Pacing: when requests wait for company, and that they leave all the same."""

import asyncio
import os
import sys

import pytest

from proxy.upstream import pacing
from proxy.upstream.pacing import Pacer


class Clock:
    """As much of a loop as a decision needs."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ran = 0.0
        self.soon: list[object] = []

    def time(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.ran

    def call_soon(self, call: object) -> None:
        self.soon.append(call)


def window(pacer: Pacer, clock: Clock, rate: float, batch: int, busy: float = 0.5) -> None:
    """Let one window of sends pass in which `rate` runs a second leave in batches of `batch`."""
    for _ in range(pacing.WINDOW):
        clock.now += batch / rate
        clock.ran += busy * batch / rate
        pacer.sent(batch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pacer(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Pacer:
    monkeypatch.setattr(Pacer, "_open", lambda self: True)
    return Pacer(clock, lambda: None, clock.time, clock.cpu)  # type: ignore[arg-type]


class TestDecision:
    def test_fast_and_scattered_requests_are_paced(self, pacer: Pacer, clock: Clock) -> None:
        window(pacer, clock, pacing.BEGIN_RATE * 1.5, 1)
        assert pacer.active

    @pytest.mark.parametrize(("rate", "batch"), [(0.9 * pacing.BEGIN_RATE, 1), (2.0 * pacing.BEGIN_RATE, 8)])
    def test_slow_or_gathered_ones_are_not(self, pacer: Pacer, clock: Clock, rate: float, batch: int) -> None:
        window(pacer, clock, rate, batch)
        assert not pacer.active

    def test_slower_ones_are_when_there_is_no_time_to_spare(self, pacer: Pacer, clock: Clock) -> None:
        window(pacer, clock, pacing.BUSY_RATE * 1.5, 1, pacing.BUSY * 0.95)
        assert not pacer.active
        window(pacer, clock, pacing.BUSY_RATE * 0.9, 1, 1.0)
        assert not pacer.active
        window(pacer, clock, pacing.BUSY_RATE * 1.5, 1, pacing.BUSY * 1.05)
        assert pacer.active
        window(pacer, clock, pacing.BUSY_RATE * 1.5, 9, 0.3)
        assert pacer.active, "that there is time now is its doing"
        window(pacer, clock, pacing.BUSY_RATE * 1.5 * pacing.END_SHARE * 0.9, 9, 0.3)
        window(pacer, clock, pacing.BUSY_RATE * 1.5 * pacing.END_SHARE * 0.9, 9, 0.3)
        assert not pacer.active, "this is another load"

    def test_ends_when_the_rate_falls(self, pacer: Pacer, clock: Clock) -> None:
        window(pacer, clock, pacing.BEGIN_RATE * 1.1, 1)
        window(pacer, clock, pacing.BEGIN_RATE * 1.1, 9)
        assert pacer.active
        window(pacer, clock, pacing.BEGIN_RATE * 0.95, 9)
        assert pacer.active
        window(pacer, clock, pacing.END_RATE * 0.9, 9)
        window(pacer, clock, pacing.END_RATE * 0.9, 9)
        assert not pacer.active

    def test_ends_and_rests_where_it_does_harm(self, pacer: Pacer, clock: Clock) -> None:
        window(pacer, clock, pacing.BEGIN_RATE * 3, 1)
        window(pacer, clock, pacing.BEGIN_RATE * 3 * pacing.LOSS * 0.9, 3)
        assert pacer.active, "once may be the end of a load"
        window(pacer, clock, pacing.BEGIN_RATE * 3 * pacing.LOSS * 0.9, 3)
        assert not pacer.active
        window(pacer, clock, pacing.BEGIN_RATE * 3, 1)
        assert not pacer.active
        clock.now += pacing.REST
        window(pacer, clock, pacing.BEGIN_RATE * 3, 1)
        window(pacer, clock, pacing.BEGIN_RATE * 3, 1)
        assert pacer.active

    def test_ends_without_a_rest_when_the_load_is_over(self, pacer: Pacer, clock: Clock) -> None:
        window(pacer, clock, pacing.BEGIN_RATE * 3, 1)
        window(pacer, clock, pacing.BEGIN_RATE * 3, 9)
        clock.now += 1.0
        pacer.sent(1)
        assert not pacer.active
        window(pacer, clock, pacing.BEGIN_RATE * 3, 1)
        assert pacer.active

    def test_without_a_timer_it_sends_in_the_next_turn(self, clock: Clock) -> None:
        pacer = Pacer(clock, lambda: None)  # type: ignore[arg-type]
        pacer.arm()
        assert len(clock.soon) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux'")
class TestTimer:
    async def test_what_is_armed_is_sent_and_the_timer_given_back(self) -> None:
        loop = asyncio.get_running_loop()
        fired = asyncio.Event()
        pacer = Pacer(loop, fired.set)
        before = len(os.listdir("/proc/self/fd"))
        assert pacer._open()
        for _ in range(3):
            fired.clear()
            pacer.arm()
            await asyncio.wait_for(fired.wait(), 5)
        pacer.close()
        assert len(os.listdir("/proc/self/fd")) == before
