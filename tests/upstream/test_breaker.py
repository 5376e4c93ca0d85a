"""The circuit breaker: what opens it, what closes it, and that it speaks of each once."""

from __future__ import annotations

import logging

import pytest

from proxy.resp.errors import UpstreamLost
from proxy.upstream.breaker import Breaker, BreakerState

LOST = UpstreamLost("ERR pannier: upstream redis://h:6379/0 is unreachable: Connection refused")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(limit: int = 3) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(limit, clock), clock


class TestOpening:
    def test_by_so_many_failures_in_a_row(self) -> None:
        breaker, _ = make()
        for n in range(3):
            assert (breaker.open, breaker.failures) == (False, n)
            breaker.failed(LOST)
        assert breaker.state is BreakerState.OPEN

    def test_not_by_failures_with_an_answer_between(self) -> None:
        breaker, _ = make()
        for _ in range(5):
            breaker.failed(LOST)
            breaker.failed(LOST)
            breaker.answered()
        assert (breaker.open, breaker.failures) == (False, 0)

    def test_by_silences_though_each_new_handshake_is_answered(self) -> None:
        breaker, _ = make()
        for _ in range(3):
            assert not breaker.open
            breaker.answered()
            breaker.failed(LOST, silent=True)
        assert breaker.open

    def test_not_by_silences_with_a_steady_connection_between(self) -> None:
        breaker, _ = make()
        for _ in range(5):
            breaker.failed(LOST, silent=True)
            breaker.failed(LOST, silent=True)
            breaker.answered(steady=True)
        assert (breaker.open, breaker.failures) == (False, 0)

    def test_never_if_switched_off(self) -> None:
        breaker, _ = make(0)
        for _ in range(100):
            breaker.failed(LOST)
            breaker.probes()
        assert breaker.state is BreakerState.CLOSED and breaker.explain(LOST) is LOST


class TestClosing:
    def test_by_a_probe_that_is_answered(self) -> None:
        breaker, clock = make(1)
        breaker.failed(LOST)
        clock.now += 5
        breaker.probes()
        assert breaker.state is BreakerState.HALF_OPEN and breaker.lasts == 5
        breaker.answered()
        assert (breaker.state, breaker.failures, breaker.lasts) == (BreakerState.CLOSED, 0, 0.0)

    def test_not_by_a_probe_that_fails(self) -> None:
        breaker, clock = make(1)
        breaker.failed(LOST)
        clock.now += 5
        breaker.probes()
        breaker.failed(LOST)
        assert breaker.state is BreakerState.OPEN
        assert breaker.lasts == 5, "since it was first opened"

    def test_a_probe_of_a_closed_one_changes_nothing(self) -> None:
        breaker, _ = make()
        breaker.probes()
        assert breaker.state is BreakerState.CLOSED


class TestWhatClientsAreTold:
    def test_since_when_and_when_the_next_probe_is_due(self) -> None:
        breaker, clock = make(1)
        assert breaker.explain(LOST) is LOST
        breaker.failed(LOST)
        clock.now += 2
        breaker.pauses(1.5)
        assert breaker.explain(LOST).reply == LOST.reply[:-2] + b" (circuit breaker open for 2.0 s, next probe in 1.5 s)\r\n"
        breaker.probes()
        assert breaker.explain(LOST).reply.endswith(b"next probe now)\r\n")

    def test_the_log_speaks_of_each_transition_once(self, caplog: pytest.LogCaptureFixture) -> None:
        breaker, _ = make(2)
        caplog.set_level(logging.INFO)
        for _ in range(5):
            breaker.probes()
            breaker.failed(LOST)
        for _ in range(5):
            breaker.answered()
        assert [record.message.partition(" after")[0] for record in caplog.records] == ["circuit breaker open", "circuit breaker closed"]
