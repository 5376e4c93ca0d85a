"""When the eviction bus gives a subscription up, and how long it waits before the next; no Redis, no time passes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import bus
from proxy.upstream.address import Upstream


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Pubsub:
    """A subscription that answers questions, or does not, as redis-py's would; its reader may be held up."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.coming: list[dict[str, Any]] = [{"type": "subscribe"}]
        self.held_up = 0.0
        """Seconds that pass before the next message is handed over: the process gets no time."""
        self.silent = False
        self.asked: list[float] = []

    async def __aenter__(self) -> Pubsub:
        return self

    async def __aexit__(self, *ignored: object) -> None:
        pass

    async def subscribe(self, *names: str) -> None:
        pass

    async def ping(self, message: str) -> None:
        self.asked.append(self.clock.now)
        if not self.silent:
            self.coming.append({"type": "pong", "data": message.encode()})

    async def get_message(self, timeout: float) -> dict[str, Any] | None:
        self.clock.now, self.held_up = self.clock.now + self.held_up, 0.0
        if self.coming:
            return self.coming.pop(0)
        self.clock.now += timeout
        if len(self.asked) > 20:
            raise ConnectionError("long enough")
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bus, "time", clock)
    return clock


@pytest.fixture
def listener(clock: Clock) -> bus.Bus:
    async def nothing() -> None:
        pass

    tier = SimpleNamespace(shelves={}, clear=lambda prefix=b"", source=None: 0)
    counting = SimpleNamespace(works=nothing, count=nothing)
    return bus.Bus(Upstream.parse("redis://127.0.0.1:1"), tier, [], "pannier:evict:", counting, 1.0, 3.0)  # type: ignore[arg-type]


@pytest.fixture
def pubsub(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Pubsub:
    async def aclose() -> None:
        pass

    pubsub = Pubsub(clock)
    monkeypatch.setattr(bus, "_client", lambda upstream: SimpleNamespace(pubsub=lambda: pubsub, aclose=aclose))
    return pubsub


class TestASubscriptionIsGivenUp:
    async def test_after_three_questions_without_an_answer(self, listener: bus.Bus, pubsub: Pubsub, clock: Clock) -> None:
        pubsub.silent = True
        with pytest.raises(TimeoutError, match="no answer for 3 s"):
            await listener._listen()
        assert clock.now == 1003.0

    async def test_not_while_they_are_answered(self, listener: bus.Bus, pubsub: Pubsub) -> None:
        with pytest.raises(ConnectionError, match="long enough"):
            await listener._listen()
        assert listener.subscriptions == 1

    async def test_not_because_nobody_asked_for_long(self, listener: bus.Bus, pubsub: Pubsub, clock: Clock) -> None:
        """A process that had no time, or much to drop, asks late: Redis is to blame for nothing."""
        pubsub.held_up = 30.0
        with pytest.raises(ConnectionError, match="long enough"):
            await listener._listen()
        assert clock.now > 1030.0


class TestThePause:
    async def paused(self, listener: bus.Bus, monkeypatch: pytest.MonkeyPatch, heard: list[bool]) -> list[float]:
        """How long it waits after each attempt; `heard`: which of them begins to hear."""
        pauses: list[float] = []
        attempts = iter(heard)

        async def listen() -> None:
            listener.subscriptions += next(attempts)
            raise ConnectionError("gone")

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == len(heard):
                raise asyncio.CancelledError

        monkeypatch.setattr(listener, "_listen", listen)
        monkeypatch.setattr(bus, "asyncio", SimpleNamespace(sleep=sleep))
        with pytest.raises(asyncio.CancelledError):
            await listener.run()
        return pauses

    async def test_grows_with_each_failure_in_a_row(self, listener: bus.Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        assert await self.paused(listener, monkeypatch, [False] * 8) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]

    async def test_is_short_again_once_it_was_heard(self, listener: bus.Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        assert await self.paused(listener, monkeypatch, [True, True, False, False, True]) == [0.05, 0.05, 0.1, 0.2, 0.05]
