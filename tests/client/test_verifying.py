"""Verifying: what is stale is found, named and dropped; what is merely on its way raises no alarm."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.client import verifying
from proxy.client.verifying import Verifier
from proxy.resp import encode
from proxy.tier.policy import CacheRule, Defaults, Policy, Serve
from tests.client.linked import Client
from tests.tier.racing import Race
from tests.tier.shelves import TABLE, make, part, read

R = encode.request
OLD, NEW = encode.bulk(b"old"), encode.bulk(b"new")


class Later:
    """What the loop has been asked to do when the time is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []
        loop = SimpleNamespace(call_later=lambda seconds, call, *rest: self.calls.append((seconds, call, rest)))
        monkeypatch.setattr(verifying, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))

    def comes(self) -> int:
        """The time is over; how many have waited for it."""
        calls, self.calls = self.calls, []
        for seconds, call, rest in calls:
            assert seconds == 3.0
            call(*rest)
        return len(calls)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(monkeypatch)


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch, later: Later) -> AsyncIterator[Race]:
    race = Race(monkeypatch, verify=1.0, coherence_timeout=3.0)
    race.redis.direct("SET", "k", "old")
    yield race
    await race.close()


@pytest.fixture
async def loose(monkeypatch: pytest.MonkeyPatch, later: Later) -> AsyncIterator[Race]:
    race = Race(monkeypatch, verify=1.0, coherence_timeout=3.0, tracking="bcast")
    race.redis.direct("SET", "k", "old")
    yield race
    await race.close()


def verifier(race: Race) -> Verifier:
    found = race.clients.verifier
    assert found is not None
    return found


async def warm(race: Race, protocol: int = 2, *arguments: str) -> Client:
    """A client that has just been answered from memory; the question to Redis is not on its way yet."""
    client = await race.ready(protocol=protocol)
    await race.ask(client, *(arguments or ("GET", "k")))
    assert race.hit(client, *(arguments or ("GET", "k")))
    return client


def stale(race: Race) -> None:
    """Change the key in a way that Redis does not tell of."""
    race.redis.data[0][b"k"] = b"new"


class TestWhatIsTrue:
    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_is_counted(self, race: Race, later: Later, protocol: int) -> None:
        await warm(race, protocol)
        await race.settle()
        assert (verifier(race).verified, verifier(race).mismatches, later.calls) == (1, 0, [])

    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("request_", [("GET", "none"), ("HGETALL", "h"), ("HMGET", "h", "a", "x"), ("ZMSCORE", "z", "0", "7")])
    async def test_in_any_shape(self, race: Race, later: Later, protocol: int, request_: tuple[str, ...]) -> None:
        race.redis.direct("HSET", "h", "a", "b")
        race.redis.direct("ZADD", "z", "1.5", "m")
        await warm(race, protocol, *request_)
        await race.settle()
        assert (verifier(race).verified, later.calls) == (1, [])

    async def test_of_an_mget_by_its_members(self, race: Race, later: Later) -> None:
        await warm(race, 2, "MGET", "k", "none")
        await race.settle()
        assert (verifier(race).verified, later.calls) == (2, [])

    async def test_in_a_namespace(self, race: Race, later: Later) -> None:
        race.redis.direct("SET", "ns:k", "old")
        client = await race.ready(namespace="ns")
        await race.ask(client, "GET", "k")
        assert race.hit(client, "GET", "k") == OLD
        await race.settle()
        assert (verifier(race).verified, later.calls) == (1, [])

    async def test_answers_nobody_but_who_asked(self, race: Race) -> None:
        client = await warm(race)
        client.feed(R("INCR", "n"), R("GET", "k"))
        await race.settle()
        assert client.take() == b":1\r\n" + OLD


class TestWhatIsStale:
    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_is_named_and_dropped(self, race: Race, later: Later, protocol: int, caplog: pytest.LogCaptureFixture) -> None:
        race.tier.obey(Policy((CacheRule((b"x:*",)), CacheRule((b"k", b"l*"))), Defaults(300.0, 1 << 20)))
        stale(race)
        race.redis.data[0][b"k"] = b"old"
        client = await warm(race, protocol)
        stale(race)
        await race.settle()
        assert race.hit(client, "GET", "k") == OLD, "not before it is certain"
        await race.settle()
        with caplog.at_level(logging.ERROR, "pannier.verify"):
            assert later.comes() == 2
        (record,) = caplog.records
        assert record.getMessage() == "a stale entry of class k was in memory for more than 3 s (rule 2 (k l*), tracking default): dropped"
        assert await race.ask(client, "GET", "k") == NEW
        assert verifier(race).mismatches == 1
        assert [ruling.mismatches for ruling in race.tier.policy.rulings] == [0, 1]
        assert [ruling.verified for ruling in race.tier.policy.rulings] == [0, 2]

    @pytest.mark.parametrize("label", ["", "carts"])
    async def test_shows_no_part_of_a_key_that_is_hidden(
        self, monkeypatch: pytest.MonkeyPatch, later: Later, caplog: pytest.LogCaptureFixture, label: str
    ) -> None:
        race = Race(monkeypatch, verify=1.0, coherence_timeout=3.0, key_privacy="hashed")
        race.tier.obey(Policy((CacheRule((b"*",), label=label),), Defaults(300.0, 1 << 20)))
        race.redis.direct("SET", "s3cr3t:1", "old")
        client = await race.ready()
        await race.ask(client, "GET", "s3cr3t:1")
        race.hit(client, "GET", "s3cr3t:1")
        race.redis.data[0][b"s3cr3t:1"] = b"new"
        await race.settle()
        with caplog.at_level(logging.ERROR, "pannier.verify"):
            assert later.comes() == 1
        assert f"class {label or '(not shown)'} was" in caplog.text and "s3cr3t" not in caplog.text
        await race.close()

    async def test_demotes_its_rule(self, race: Race, later: Later, caplog: pytest.LogCaptureFixture) -> None:
        policy = Policy((CacheRule((b"k*",)),), Defaults(300.0, 1 << 20))
        race.tier.obey(policy)
        verifier(race)._demote = 2
        for n, key in enumerate("kl"):
            race.redis.direct("SET", key, "old")
            client = await warm(race, 2, "GET", key)
            race.redis.data[0][key.encode()] = b"new"
            await race.settle()
            later.comes()
            assert policy.rulings[0].serve is Serve.CACHE, n
        race.redis.direct("SET", "k2", "old")
        client = await warm(race, 2, "GET", "k2")
        race.redis.data[0][b"k2"] = b"new"
        await race.settle()
        with caplog.at_level(logging.ERROR, "pannier.verify"):
            later.comes()
        assert caplog.records[-1].getMessage() == "rule 1 (k*): only observed from now on, after 2 stale entries"
        assert policy.rulings[0].serve is Serve.OBSERVE and policy.default.serve is Serve.CACHE
        await race.ask(client, "GET", "k")
        assert not race.hit(client, "GET", "k")
        await race.settle()
        await race.ask(client, "GET", "l")
        assert race.hit(client, "GET", "l")

    async def test_without_a_rule_demotes_the_default(self, race: Race, later: Later) -> None:
        verifier(race)._demote = 1
        client = await warm(race)
        stale(race)
        await race.settle()
        later.comes()
        assert await race.ask(client, "GET", "k") == NEW
        assert not race.hit(client, "GET", "k")

    async def test_by_several_rules_demotes_each(self, race: Race, later: Later) -> None:
        policy = Policy((CacheRule((b"k*",)), CacheRule((b"l*",)), CacheRule((b"m*",))), Defaults(300.0, 1 << 20))
        race.tier.obey(policy)
        verifier(race)._demote = 1
        await warm(race, 2, "EXISTS", "k", "l")
        race.redis.data[0][b"l"] = b"new"
        await race.settle()
        later.comes()
        assert [ruling.serve for ruling in policy.rulings] == [Serve.OBSERVE, Serve.OBSERVE, Serve.CACHE]
        assert policy.judge([b"k", b"l"]).serve is Serve.OBSERVE


class TestNoAlarm:
    async def test_for_what_redis_has_told_already(self, race: Race, later: Later) -> None:
        client = await warm(race)
        race.redis.direct("SET", "k", "new")
        await race.settle()
        assert (verifier(race).verified, later.calls) == (0, [])
        assert await race.ask(client, "GET", "k") == NEW

    async def test_for_what_it_tells_late(self, loose: Race, later: Later) -> None:
        client = await warm(loose)
        home = loose.home(client)
        loose.redis.direct("SET", "k", "new", end=False)
        await loose.run(home, end=False)
        await loose.deliver(home)
        assert len(later.calls) == 1
        loose.redis.end_turn()
        await loose.deliver(home)
        later.comes()
        assert (verifier(loose).verified, verifier(loose).mismatches) == (1, 0)

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_for_what_has_been_kept_anew_meanwhile(self, loose: Race, later: Later, protocol: int) -> None:
        """Null as before: an entry is known by more than what it says."""
        client = await warm(loose, protocol, "GET", "none")
        home = loose.home(client)
        loose.redis.direct("SET", "none", "new", end=False)
        await loose.run(home, end=False)
        await loose.deliver(home)
        assert len(later.calls) == 1
        loose.redis.direct("DEL", "none")
        await loose.settle()
        await loose.ask(client, "GET", "none")
        assert loose.hit(client, "GET", "none")
        later.comes()
        assert verifier(loose).mismatches == 0

    async def test_for_what_has_expired_and_nobody_has_asked_for_since(self, race: Race, later: Later) -> None:
        race.redis.direct("SET", "k", "old", "PX", "1000")
        client = await warm(race)
        race.clock.now += 1.0
        race.shelf(client).heard = race.clock()
        home = race.home(client)
        await race.run(home)
        home.reply(b"".join(frame for frame in home.owed if not frame.startswith(b">")))  # its expiry is told later
        assert not later.calls and verifier(race).mismatches == 0

    async def test_for_what_is_gone_when_the_time_is_over(self, race: Race, later: Later) -> None:
        race.redis.direct("SET", "k", "old", "PX", "2000")
        client = await warm(race)
        stale(race)
        await race.settle()
        race.clock.now += 3.0
        race.shelf(client).heard = race.clock()
        assert later.comes() == 1
        assert verifier(race).mismatches == 0

    async def test_for_what_would_not_be_served(self, race: Race, later: Later) -> None:
        """The gate is closed: Redis has not been heard from."""
        await warm(race)
        stale(race)
        await race.settle()
        race.clock.now += 3.0
        assert later.comes() == 1
        assert verifier(race).mismatches == 0

    async def test_for_an_error(self, race: Race, later: Later) -> None:
        await warm(race)
        race.redis.denied = {b"GET"}
        await race.settle()
        assert (verifier(race).verified, later.calls) == (0, [])

    @pytest.mark.parametrize("cut", [0, 6])
    async def test_for_a_lost_link(self, race: Race, later: Later, cut: int) -> None:
        client = await warm(race)
        home = race.home(client)
        await race.run(home)
        home.reply(b"".join(home.owed)[:cut])
        home.lose()
        await race.settle()
        assert later.calls == []
        assert await race.ask(client, "GET", "k") == OLD

    async def test_after_the_rules_are_others(self, race: Race, later: Later) -> None:
        await warm(race)
        stale(race)
        await race.settle()
        race.tier.obey(Policy((), Defaults(300.0, 1 << 20)))
        later.comes()
        assert verifier(race).mismatches == 0


class TestTheShare:
    @pytest.mark.parametrize("depth", [1, 16])
    @pytest.mark.parametrize("share", [0.3, 0.02])
    async def test_is_what_it_should_be(self, monkeypatch: pytest.MonkeyPatch, share: float, depth: int) -> None:
        monkeypatch.setattr(verifying, "random", random.Random(3))
        race = Race(monkeypatch, verify=share)
        race.redis.direct("SET", "k", "old")
        client = await warm(race)
        hits = 40_000
        for n in range(hits // depth):
            client.feed(R("GET", "k") * depth)
            if n % 500 == 0:
                await race.settle()
        await race.settle()
        assert abs(verifier(race).verified / hits - share) < share / 5
        assert len(client.take()) == len(OLD) * (hits + 1) - len(OLD)
        await race.close()

    async def test_of_nothing_is_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch)
        assert race.clients.verifier is None
        await race.close()


SET3, MAP3 = b"~3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n", b"%2\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n"


@pytest.mark.parametrize(
    ("words", "one", "other", "same"),
    [
        (("SMEMBERS", "k"), SET3, b"~3\r\n$1\r\nc\r\n$1\r\na\r\n$1\r\nb\r\n", True),
        (("smembers", "k"), SET3.replace(b"~", b"*"), b"*3\r\n$1\r\nc\r\n$1\r\na\r\n$1\r\nb\r\n", True),
        (("SMEMBERS", "k"), SET3, b"~3\r\n$1\r\nc\r\n$1\r\na\r\n$1\r\nx\r\n", False),
        (("SMEMBERS", "k"), SET3, b"~2\r\n$1\r\na\r\n$1\r\nb\r\n", False),
        (("SMEMBERS", "k"), SET3, b"~0\r\n", False),
        (("HGETALL", "k"), MAP3, b"%2\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\na\r\n$1\r\nb\r\n", True),
        (("HGETALL", "k"), b"*4" + MAP3[2:], b"*4\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\na\r\n$1\r\nb\r\n", True),
        (("HGETALL", "k"), MAP3, b"%2\r\n$1\r\na\r\n$1\r\nd\r\n$1\r\nc\r\n$1\r\nb\r\n", False),
        (("LRANGE", "k", 0, -1), b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\nb\r\n$1\r\na\r\n", False),
        (("HVALS", "k"), b"*2\r\n$4\r\na\r\nb\r\n$1\r\nc\r\n", b"*2\r\n$1\r\nc\r\n$4\r\na\r\nb\r\n", True),
    ],
)  # fmt: skip
def test_order_counts_where_there_is_one(words: tuple[str, ...], one: bytes, other: bytes, same: bool) -> None:
    tier, _, _ = make()
    assert verifying._same(read(tier, *words), one, other) is same


def test_whatever_has_no_order_is_kept_at_all() -> None:
    for name in verifying._WITHOUT_ORDER:
        assert TABLE.find(name) is not None
        tier, _, _ = make()
        assert tier.rules.read(part(name, "k")) is not None

