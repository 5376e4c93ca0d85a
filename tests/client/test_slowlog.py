"""SIDECAR SLOWLOG: what took long is listed by name and keys, for whom it concerns; nothing else is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest

from proxy.client import pin, session, slowlog
from proxy.client.slowlog import FEW, MOST_A_ROUND, Slow
from proxy.resp import encode
from proxy.upstream import shared, wire
from tests.client.linked import Client, turn
from tests.tier.racing import Race

R = encode.request


def slowly(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Race:
    """A race whose clock times commands, too."""
    race = Race(monkeypatch, **options)
    for module in (session, pin, slowlog, shared, wire):
        monkeypatch.setattr(module, "monotonic", race.clock)
    return race


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    race = slowly(monkeypatch)
    yield race
    await race.close()


async def ask(race: Race, client: Client, *requests: bytes, seconds: float = 0.02) -> bytes:
    """What a client gets if Redis takes so long."""
    client.feed(*requests)
    await turn()
    race.clock.now += seconds
    await race.settle()
    return client.take()


def listed(race: Race) -> list[Slow]:
    return list(race.clients.slowlog.entries)


async def told(race: Race, client: Client, *arguments: str | int) -> Any:
    """The reply to SIDECAR SLOWLOG."""
    reader = hiredis.Reader()
    reader.feed(await race.ask(client, "SIDECAR", "SLOWLOG", *arguments))
    reply = reader.gets()
    if isinstance(reply, list):
        return [dict(zip(each[::2], each[1::2], strict=True)) for each in reply]
    return reply


class TestWhatIsListed:
    async def test_has_all_that_is_known_of_it_but_values(self, race: Race) -> None:
        client = await race.ready("joe")
        await ask(race, client, R("SET", "k", "s3cr3t"))
        (entry,) = await told(race, client, "GET")
        assert entry.pop(b"time") > 1_600_000_000
        assert entry == {
            b"id": 0, b"duration_us": 20_000, b"path": b"write", b"command": b"SET", b"keys": [b"k"], b"commands": 1,
            b"address": client.session.address.encode(), b"name": b"", b"db": 0, b"namespace": b"",
        }  # fmt: skip
        assert "s3cr3t" not in repr(listed(race))

    @pytest.mark.parametrize(
        ("requests", "path", "command", "keys", "commands"),
        [
            ([R("GET", "k")], "miss", "GET", (b"k",), 1),
            ([R("get", "k*y")], "miss", "GET", (b"k*y",), 1),
            ([R("SET", "a", 1), R("SET", "b", 2), R("DEL", "c")], "write", "SET", (b"a",), 3),
            ([R("DEL", "a", "b")], "write", "DEL", (b"a", b"b"), 1),
            ([R("SET", "a", 1), R("GET", "a")], "write", "SET", (b"a",), 2),
            ([R("MGET", "a", "b")], "miss", "MGET", (b"a", b"b"), 1),
            ([R("HGETALL", "h")], "miss", "HGETALL", (b"h",), 1),
            ([R("EVAL", "s3cr3t", 1, "k", "s3cr3t")], "other", "EVAL", (b"k",), 1),
            ([R("PING")], "other", "PING", (), 1),
        ],
    )
    async def test_is_named(
        self, race: Race, requests: list[bytes], path: str, command: str, keys: tuple[bytes, ...], commands: int
    ) -> None:
        client = await race.ready()
        await ask(race, client, b"".join(requests))
        (entry,) = listed(race)
        assert (entry.path, entry.command, entry.keys, entry.commands) == (path, command, keys, commands)
        assert entry.seconds == pytest.approx(0.02) and "s3cr3t" not in repr(listed(race))

    async def test_of_an_mget_names_also_what_memory_had(self, race: Race) -> None:
        client = await race.ready()
        await race.ask(client, "MGET", "a", "b")
        await ask(race, client, R("MGET", "b", "c"))
        assert [(each.command, each.keys) for each in listed(race)] == [("MGET", (b"b", b"c"))]

    async def test_names_few_keys_and_not_all_of_a_long_one(self, race: Race) -> None:
        client = await race.ready()
        await ask(race, client, R("DEL", "x" * 5000, *range(50)))
        (entry,) = listed(race)
        assert len(entry.keys) == 8 and max(map(len, entry.keys)) == 512

    async def test_shows_no_name_of_what_is_no_command(self, race: Race) -> None:
        client = await race.ready()
        await ask(race, client, R("s3cr3t", "s3cr3t"))
        assert [(each.command, each.keys) for each in listed(race)] == [("(unknown)", ())]

    async def test_may_wait_for_the_connection(self, race: Race) -> None:
        client = await race.ready()
        race.home(client).lose()
        await ask(race, client, R("SET", "k", 1))
        assert [each.keys for each in listed(race)] == [(b"k",)]

    async def test_may_be_given_up(self, race: Race) -> None:
        client = await race.ready()
        client.feed(R("SET", "k", 1))
        await turn()
        race.clock.now += 1
        race.home(client).lose()
        assert [(each.command, each.seconds) for each in listed(race)] == [("SET", 1.0)]
        assert b"outcome unknown" in client.take()

    async def test_may_have_been_sent_twice(self, race: Race) -> None:
        client = await race.ready()
        client.feed(R("GET", "k"))
        await turn()
        race.clock.now += 1
        race.home(client).lose()
        await race.settle()
        assert [(each.command, each.seconds) for each in listed(race)] == [("GET", 1.0)] and client.take() == b"$-1\r\n"

    async def test_may_be_answered_by_and_by(self, race: Race) -> None:
        client = await race.ready()
        client.feed(R("SET", "a", 1) + R("SET", "b", 2) + R("SET", "c", 3))
        await race.run(race.home(client))
        race.clock.now += 0.008
        await race.deliver(race.home(client), 1)
        race.clock.now += 0.008
        await race.deliver(race.home(client))
        assert [(each.commands, each.seconds) for each in listed(race)] == [(3, pytest.approx(0.016))]

    async def test_is_seen_through_who_stands_in(self, race: Race) -> None:
        client = await race.ready()
        race.clients.latency.listen(client.session.home)
        await ask(race, client, R("SET", "k", 1))
        assert [each.command for each in listed(race)] == ["SET"]

    async def test_is_as_many_as_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = slowly(monkeypatch, slowlog_max_len=2)
        client = await race.ready()
        for key in "abc":
            await ask(race, client, R("SET", key, 1))
        assert [(each.number, each.keys) for each in listed(race)] == [(1, (b"b",)), (2, (b"c",))]
        await race.close()


class TestWhereEverythingIsSlow:
    async def test_a_few_are_listed_in_each_round(self, race: Race) -> None:
        client = await race.ready()
        for _ in range(MOST_A_ROUND + 4):
            await ask(race, client, R("SET", "k", 1))
        await ask(race, client, R("MULTI"), R("EXEC"))
        await ask(race, client, R("SIDECAR", "DELETE", "MATCH", "x*"))
        assert len(listed(race)) == MOST_A_ROUND and race.links.connector.watch.after == math.inf
        race.clients.tick()
        await ask(race, client, R("SET", "k", 1))
        assert len(listed(race)) == MOST_A_ROUND + 1


class TestOnALinkOfTheClientsOwn:
    async def test_each_command_is_timed_by_itself(self, race: Race) -> None:
        client = await race.ready()
        await ask(race, client, R("WATCH", "k"))
        await ask(race, client, R("MULTI"), R("SET", "k", "s3cr3t"), seconds=0.001)
        await ask(race, client, R("EXEC"))
        assert [(each.path, each.command, each.keys) for each in listed(race)] == [
            ("pinned", "WATCH", (b"k",)), ("pinned", "EXEC", ()),
        ]  # fmt: skip

    async def test_those_of_a_pipeline_are_too(self, race: Race) -> None:
        client = await race.ready()
        await ask(race, client, R("MULTI"), R("SET", "k", 1), R("EXEC"))
        await ask(race, client, R("MULTI"), R("EXEC"), seconds=0.001)
        assert [each.command for each in listed(race)] == ["MULTI", "SET", "EXEC"]

    async def test_what_the_sidecar_sends_before_is_not(self, race: Race) -> None:
        client = await race.ready()
        await race.ask(client, "CLIENT", "SETNAME", "joe")
        client.feed(R("WATCH", "k"))
        await race.settle()
        await race.ask(client, "UNWATCH")
        await race.ask(client, "CLIENT", "SETNAME", "jim")
        client.feed(R("WATCH", "k"))
        pinned = race.pinned(client)
        await race.run(pinned)
        await race.deliver(pinned, 1)
        race.clock.now += 1
        await race.deliver(pinned)
        assert [(each.command, each.name) for each in listed(race)] == [("WATCH", b"jim")]

    async def test_what_may_block_is_not(self, race: Race) -> None:
        client = await race.ready()
        race.redis.direct("SET", "k", "v")
        await ask(race, client, R("BLPOP", "k", 0))
        assert not listed(race)


class TestHere:
    async def test_long_work_is_listed(self, race: Race) -> None:
        race.redis.direct("SET", "k", "v")
        client = await race.ready()
        await ask(race, client, R("SIDECAR", "DELETE", "MATCH", "s3cr3t*"))
        assert [(each.path, each.command, each.keys) for each in listed(race)] == [("local", "SIDECAR DELETE", ())]

    async def test_what_waits_on_purpose_is_not(self, race: Race) -> None:
        client = await race.ready()
        came = race.clock.now - 1
        race.clients.slowlog.local(client.session, [b"Sidecar", b"LEASE", b"k", b"1000"], came)
        assert not listed(race)
        race.clients.slowlog.local(client.session, [b"CLIENT"], came)
        assert [each.command for each in listed(race)] == ["CLIENT"]


class TestWhatIsNotListed:
    async def test_is_fast(self, race: Race) -> None:
        client = await race.ready()
        await ask(race, client, R("SET", "k", 1), R("GET", "k"), R("MULTI"), R("EXEC"), seconds=0.0099)
        assert not listed(race)

    async def test_comes_later_on(self, race: Race) -> None:
        client = await race.ready()
        for _ in range(2):
            await ask(race, client, R("SET", "k", 1), seconds=0.001)
            race.clock.now += 1
        assert not listed(race)

    async def test_comes_from_memory(self, race: Race) -> None:
        client = await race.ready()
        await race.ask(client, "GET", "k")
        race.clock.now += 1
        race.vouch(client)
        assert race.hit(client, "GET", "k")
        assert not listed(race)

    async def test_is_asked_by_the_sidecar_itself(self, race: Race) -> None:
        client = await race.ready()
        client.session.home.prove()
        await turn()
        race.clock.now += 1
        await race.settle()
        assert not listed(race)

    async def test_is_anything_where_it_is_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = slowly(monkeypatch, slowlog_slower_than=0.0)
        client = await race.ready()
        await ask(race, client, R("SET", "k", 1), R("MULTI"), R("EXEC"), seconds=2.0)
        assert not listed(race)
        await race.close()


class TestWhoSeesIt:
    async def test_in_a_namespace_one_sees_ones_own_by_ones_own_names(self, race: Race) -> None:
        inside, outside = await race.ready(namespace="ns"), await race.ready()
        await ask(race, inside, R("SET", "k", 1))
        await ask(race, inside, R("GET", "ns:k"))
        await ask(race, outside, R("SET", "o", 1))
        assert [each[b"keys"] for each in await told(race, inside, "GET")] == [[b"ns:k"], [b"k"]]
        assert not any(b"namespace" in each for each in await told(race, inside, "GET"))
        seen = await told(race, outside, "GET")
        assert [(each[b"keys"], each[b"namespace"]) for each in seen] == [([b"o"], b""), ([b"ns:k"], b"ns"), ([b"k"], b"ns")]

    async def test_another_user_of_redis_does_not(self, race: Race) -> None:
        one, other = await race.ready(user="one"), await race.ready(user="other")
        await ask(race, one, R("SET", "k", 1))
        assert (await told(race, one, "LEN"), await told(race, other, "LEN")) == (1, 0)

    async def test_only_what_one_sees_is_forgotten(self, race: Race) -> None:
        inside, outside = await race.ready(namespace="ns"), await race.ready()
        for client in (inside, outside):
            await ask(race, client, R("SET", "k", 1))
        assert await told(race, inside, "RESET") == b"OK"
        assert (await told(race, inside, "LEN"), await told(race, outside, "LEN")) == (0, 1)

    @pytest.mark.parametrize(("how", "shown"), [("plain", 1), ("hashed", 12), ("off", None)])
    async def test_keys_are_shown_as_is_set(self, monkeypatch: pytest.MonkeyPatch, how: str, shown: int | None) -> None:
        race = slowly(monkeypatch, key_privacy=how)
        client = await race.ready()
        await ask(race, client, R("SET", "k", 1))
        (entry,) = await told(race, client, "GET")
        assert [len(key) for key in entry[b"keys"]] == ([] if shown is None else [shown])
        assert (entry[b"keys"] == [b"k"]) is (how == "plain")
        await race.close()


class TestTheCommand:
    async def test_lists_the_latest_first_and_a_few_unless_told(self, race: Race) -> None:
        client = await race.ready()
        for key in range(FEW + 2):
            await ask(race, client, R("SET", key, 1))
        assert [each[b"id"] for each in await told(race, client, "GET")] == list(range(FEW + 1, 1, -1))
        assert [each[b"id"] for each in await told(race, client, "GET", 1)] == [FEW + 1]
        assert len(await told(race, client, "GET", -1)) == await told(race, client, "LEN") == FEW + 2

    @pytest.mark.parametrize("wrong", [["GET", "x"], ["GET", "0"], ["GET", "-2"], ["LEN", "1"], ["RESET", "1"], ["STOP"]])
    async def test_says_what_it_takes(self, race: Race, wrong: list[str]) -> None:
        client = await race.ready()
        reply = await race.ask(client, "SIDECAR", "SLOWLOG", *wrong)
        assert reply == b"-ERR SIDECAR SLOWLOG takes GET [<n>], n from 1 or -1 for all, LEN or RESET\r\n"

    async def test_speaks_resp3(self, race: Race) -> None:
        client = await race.ready(protocol=3)
        await ask(race, client, R("SET", "k", 1))
        assert (await race.ask(client, "SIDECAR", "SLOWLOG", "GET")).startswith(b"*1\r\n%11\r\n$2\r\nid\r\n:0\r\n")
