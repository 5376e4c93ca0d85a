"""When the eviction bus gives a subscription up, and how long it waits before the next; no Redis, no time passes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import bus
from proxy.resp.errors import UpstreamLost


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Link:
    """A subscription that answers questions, or does not; its reader may be held up."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.coming: list[list[Any]] = [[b"subscribe", b"", 1]]
        self.held_up = 0.0
        """Seconds that pass before the next message is handed over: the process gets no time."""
        self.silent = False
        self.asked: list[float] = []

    def say(self, command: str, message: str) -> None:
        if command != "PING":
            return
        self.asked.append(self.clock.now)
        if not self.silent:
            self.coming.append([b"pong", message.encode()])

    async def hear(self, seconds: float) -> list[Any] | None:
        self.clock.now, self.held_up = self.clock.now + self.held_up, 0.0
        if self.coming:
            return self.coming.pop(0)
        self.clock.now += seconds
        if len(self.asked) > 20:
            raise UpstreamLost("long enough")
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bus, "time", clock)
    return clock


@pytest.fixture
def link(clock: Clock) -> Link:
    return Link(clock)


@pytest.fixture
def listener(clock: Clock, link: Link) -> bus.Bus:
    async def nothing() -> None:
        pass

    async def connect() -> Link:
        return link

    tier = SimpleNamespace(shelves={}, clear=lambda prefix=b"", source=None: 0)
    counting = SimpleNamespace(works=nothing, count=nothing)
    return bus.Bus(connect, tier, [], "pannier:evict:", counting, 1.0, 3.0)  # type: ignore[arg-type]


class TestASubscriptionIsGivenUp:
    async def test_after_three_questions_without_an_answer(
        self, listener: bus.Bus, link: Link, clock: Clock
    ) -> None:
        link.silent = True
        with pytest.raises(UpstreamLost, match="no answer for 3 s"):
            await listener._listen()
        assert clock.now == 1003.0

    async def test_not_while_they_are_answered(self, listener: bus.Bus, link: Link) -> None:
        with pytest.raises(UpstreamLost, match="long enough"):
            await listener._listen()
        assert listener.subscriptions == 1

    async def test_not_because_nobody_asked_for_long(
        self, listener: bus.Bus, link: Link, clock: Clock
    ) -> None:
        """A process that had no time, or much to drop, asks late: Redis is to blame for nothing."""
        link.held_up = 30.0
        with pytest.raises(UpstreamLost, match="long enough"):
            await listener._listen()
        assert clock.now > 1030.0


async def test_what_nobody_expected_does_not_end_it(
    listener: bus.Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = iter([ValueError("what?"), asyncio.CancelledError()])

    async def connect() -> None:
        raise next(attempts)

    async def sleep(seconds: float) -> None:
        assert listener.status == "what?"

    monkeypatch.setattr(listener, "_connect", connect)
    monkeypatch.setattr("asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await listener.run()
    assert caplog.messages == [
        "internal error on the eviction bus",
        "the eviction bus is not heard: what?; trying again",
    ]


class TestThePause:
    async def paused(
        self, listener: bus.Bus, monkeypatch: pytest.MonkeyPatch, heard: list[bool]
    ) -> list[float]:
        """How long it waits after each attempt; `heard`: which of them begins to hear."""
        pauses: list[float] = []
        attempts = iter(heard)

        async def listen() -> None:
            listener.subscriptions += next(attempts)
            raise UpstreamLost("gone")

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == len(heard):
                raise asyncio.CancelledError

        monkeypatch.setattr(listener, "_listen", listen)
        monkeypatch.setattr(bus, "asyncio", SimpleNamespace(sleep=sleep))
        with pytest.raises(asyncio.CancelledError):
            await listener.run()
        return pauses

    async def test_grows_with_each_failure_in_a_row(
        self, listener: bus.Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert await self.paused(listener, monkeypatch, [False] * 8) == [
            0.05,
            0.1,
            0.2,
            0.4,
            0.8,
            1.6,
            2.0,
            2.0,
        ]

    async def test_is_short_again_once_it_was_heard(
        self, listener: bus.Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert await self.paused(listener, monkeypatch, [True, True, False, False, True]) == [
            0.05,
            0.05,
            0.1,
            0.2,
            0.05,
        ]
