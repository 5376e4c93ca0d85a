"""Whether anything was published while nobody listened, by Redis' counts and one's own."""

from __future__ import annotations

import asyncio

import pytest

from proxy.ledger import Ledger, Published

RUN = b"run"


class Redis:
    """What it would say it has counted."""

    def __init__(self) -> None:
        self.calls = 0
        self.commands = 1000
        self.run = RUN
        self.tells = True
        self.ledger = Ledger(self.count)

    async def count(self) -> Published | None:
        return Published(self.run, self.calls, self.commands) if self.tells else None

    def publish(self, heard: bool = True) -> None:
        self.calls += 1
        self.ledger.heard += heard

    async def ask(self) -> None:
        self.ledger.ask()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert self.ledger.due and not self.ledger.due

    async def settle(self) -> bool | None:
        await self.ask()
        return self.ledger.settled()


@pytest.fixture
async def redis() -> Redis:
    found = Redis()
    found.calls = 7
    assert await found.settle() is False, "nothing is known of what was before"
    found.publish()
    return found


class TestNothingWasMissed:
    async def test_if_both_have_counted_the_same(self, redis: Redis) -> None:
        assert await redis.settle() is True
        assert await redis.settle() is True
        for _ in range(3):
            redis.publish()
        assert await redis.settle() is True

    async def test_since_the_last_time_that_is_known(self, redis: Redis) -> None:
        redis.publish(heard=False)
        assert await redis.settle() is False
        redis.publish()
        assert await redis.settle() is True


class TestSomethingMayHaveBeen:
    async def test_that_redis_has_counted_more(self, redis: Redis) -> None:
        redis.publish(heard=False)
        assert await redis.settle() is False

    async def test_that_it_has_started_anew(self, redis: Redis) -> None:
        redis.run = b"another"
        assert await redis.settle() is False

    async def test_that_its_statistics_were_reset(self, redis: Redis) -> None:
        redis.commands = 5
        assert await redis.settle() is False

    async def test_that_it_has_counted_less(self, redis: Redis) -> None:
        redis.calls = 0
        assert await redis.settle() is False


class TestItIsNotKnown:
    async def test_if_redis_does_not_tell(self, redis: Redis) -> None:
        redis.tells = False
        assert await redis.settle() is None
        redis.tells = True
        assert await redis.settle() is True

    async def test_if_something_is_heard_between_the_count_and_the_sign_of_life(self, redis: Redis) -> None:
        """It may have been published before the count or behind it."""
        await redis.ask()
        redis.publish()
        assert redis.ledger.settled() is None
        assert await redis.settle() is True

    async def test_if_what_was_counted_was_on_its_way(self, redis: Redis) -> None:
        redis.calls += 1
        await redis.ask()
        redis.ledger.heard += 1
        redis.calls += 1
        assert redis.ledger.settled() is None, "two published, one heard: it would look like one that is missing"

    async def test_if_the_connection_was_lost_meanwhile(self, redis: Redis) -> None:
        await redis.ask()
        redis.ledger.drop()
        assert redis.ledger.settled() is None
