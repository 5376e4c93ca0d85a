"""Reads that wait for their turn: never more of a class at Redis than may be, and everybody answered in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import hiredis
import pytest

from proxy.client.refilling import refresh
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.tier.governor import MANY, Governor
from proxy.tier.policy import CacheRule, Defaults, Policy, Serve
from tests.client.linked import Client, Connection, turn
from tests.tier.racing import Race, push

R = encode.request
LIMIT = 2


def bulk(value: str) -> bytes:
    return encode.bulk(value.encode())


async def made(monkeypatch: pytest.MonkeyPatch, limit: int = LIMIT, spread: bool = False, **options: object) -> Race:
    if not spread:
        monkeypatch.setattr(Governor, "spread", lambda governor, now: 0.0)
    race = Race(monkeypatch, refill_limit=limit, **options)
    for n in range(100):
        race.redis.direct("SET", f"k:{n}", f"v{n}")
    return race


def govern(race: Race) -> None:
    for account in race.tier.accounts:
        account.governor.dropped(MANY, race.clock)


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    race = await made(monkeypatch)
    yield race
    await race.close()


def asked(connection: Connection) -> list[bytes]:
    """The keys of the GETs that Redis has been sent."""
    return [words[1] for words in connection.requests if words[0].upper() == b"GET"]


async def all_at_once(race: Race, n: int, **options: int) -> list[Client]:
    """Clients, each having read a key of its own while the governor governs."""
    clients = [await race.ready(**options) for _ in range(n)]
    govern(race)
    for number, client in enumerate(clients):
        client.feed(R("GET", f"k:{number}"))
    await turn()
    return clients


def idle(race: Race) -> None:
    """Nobody waits, and every place has been given back."""
    governor = race.tier.governor
    assert (governor._under_way, governor._waiting, list(governor._left)) == ({}, {}, [])
    for shelf in race.tier.shelves.values():
        assert not shelf.flights


class TestAClass:
    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_has_so_many_fetches_under_way_and_no_more(self, race: Race, protocol: int) -> None:
        clients = await all_at_once(race, 7, protocol=protocol)
        home = race.home(clients[0])
        for done in range(0, 7, LIMIT):
            assert len(asked(home)) == min(done + LIMIT, 7)
            await race.run(home)
            await race.deliver(home)
        assert [client.take() for client in clients] == [bulk(f"v{n}") for n in range(7)]
        assert race.tier.governor.delayed == 5
        idle(race)

    async def test_passes_a_place_on_as_soon_as_it_is_free(self, race: Race) -> None:
        clients = await all_at_once(race, 4)
        home = race.home(clients[0])
        await race.run(home)
        await race.deliver(home, len(home.owed) // 2)
        assert asked(home) == [b"k:0", b"k:1", b"k:2"]

    async def test_does_not_hold_up_another(self, race: Race) -> None:
        clients = await all_at_once(race, 4)
        other = await race.ready_now()
        other.feed(R("GET", "other:1"))
        await turn()
        assert asked(race.home(clients[0])) == [b"k:0", b"k:1", b"other:1"]

    async def test_is_one_for_all_keys_without_one(self, race: Race) -> None:
        clients = [await race.ready() for _ in range(5)]
        govern(race)
        for number, client in enumerate(clients):
            client.feed(R("GET", f"plain{number}"))
        await turn()
        assert len(asked(race.home(clients[0]))) == LIMIT

    async def test_in_a_namespace_goes_by_the_clients_names(self, race: Race) -> None:
        clients = [await race.ready(namespace="ns") for _ in range(4)]
        govern(race)
        for client, name in zip(clients, ("a:1", "a:2", "a:3", "b:1"), strict=True):
            client.feed(R("GET", name))
        await turn()
        assert asked(race.home(clients[0])) == [b"ns:a:1", b"ns:a:2", b"ns:b:1"]

    @pytest.mark.parametrize("tracking", ["default", "bcast"])
    async def test_in_a_namespace_asks_for_the_real_keys(self, monkeypatch: pytest.MonkeyPatch, tracking: str) -> None:
        """Not kept at their first read, and not all of them such as are recognised unparsed."""
        race = await made(monkeypatch, limit=1, admit_after=2, tracking=tracking)
        clients = [await race.ready(namespace="ns", protocol=2 + n % 2) for n in range(4)]
        race.redis.direct("SET", "ns:k:1", "own")
        race.redis.direct("HSET", "ns:k:2", "f", "v")
        govern(race)
        for client, words in zip(clients, (("GET", "k:1"), ("HGET", "k:2", "f"), ("EXISTS", "k:1", "k:2", "k:3"), ("HGETALL", "k:2")), strict=True):
            client.feed(R(*words))
        await race.settle()
        assert [client.take() for client in clients] == [bulk("own"), bulk("v"), b":2\r\n", b"%1\r\n" + bulk("f") + bulk("v")]
        idle(race)
        await race.close()

    async def test_by_its_rules_limit(self, race: Race) -> None:
        race.tier.obey(Policy((CacheRule((b"k:*",), max_fetches=1),), Defaults(300.0, 1 << 20)))
        clients = await all_at_once(race, 3)
        assert asked(race.home(clients[0])) == [b"k:0"]

    async def test_is_free_again_when_the_time_is_over(self, race: Race) -> None:
        clients = await all_at_once(race, 4)
        race.clock.now += 30.0
        late = await race.ready_now()
        race.shelf(late).heard = race.clock()
        race.vouch(late)
        late.feed(R("GET", "k:50"))
        await turn()
        assert b"k:50" in asked(race.home(clients[0]))
        await race.settle()
        assert [client.take() for client in [*clients, late]] == [bulk(f"v{n}") for n in (0, 1, 2, 3, 50)]
        idle(race)

    async def test_is_not_counted_before_much_is_dropped(self, race: Race) -> None:
        clients = [await race.ready() for _ in range(5)]
        for number, client in enumerate(clients):
            client.feed(R("GET", f"k:{number}"))
        await turn()
        assert len(asked(race.home(clients[0]))) == 5

    @pytest.mark.parametrize("mode", ["default", "bcast"])
    async def test_in_every_mode_of_tracking(self, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
        race = await made(monkeypatch, tracking=mode)
        clients = await all_at_once(race, 5)
        assert len(asked(race.home(clients[0]))) == LIMIT
        await race.settle()
        assert [client.take() for client in clients] == [bulk(f"v{n}") for n in range(5)]
        idle(race)
        await race.close()

    async def test_counts_what_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, admit_after=2)
        clients = await all_at_once(race, 5)
        assert len(asked(race.home(clients[0]))) == LIMIT
        await race.settle()
        assert [client.take() for client in clients] == [bulk(f"v{n}") for n in range(5)]
        assert not race.tier.entries
        idle(race)
        await race.close()


class TestWhoWaits:
    async def test_is_answered_by_what_another_has_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, limit=1)
        one, *others = [await race.ready() for _ in range(50)]
        govern(race)
        one.feed(R("GET", "k:1"))
        for other in others:
            other.feed(R("GET", "k:2"))
        await turn()
        await race.settle()
        assert asked(race.home(one)) == [b"k:1", b"k:2"]
        assert {other.take() for other in others} == {bulk("v2")}
        idle(race)
        await race.close()

    async def test_joins_what_is_being_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, limit=2)
        clients = [await race.ready() for _ in range(4)]
        govern(race)
        for client, key in zip(clients, ("k:1", "k:2", "k:3", "k:3"), strict=True):
            client.feed(R("GET", key))
        await race.run(race.home(clients[0]))
        await race.deliver(race.home(clients[0]))
        assert race.shelf(clients[0]).flights[R("GET", "k:3")[1:]].waiters == [clients[2].session, clients[3].session]
        await race.settle()
        assert [client.take() for client in clients] == [bulk("v1"), bulk("v2"), bulk("v3"), bulk("v3")]
        idle(race)
        await race.close()

    async def test_is_not_answered_by_what_nobody_vouches_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Redis has been silent for too long when its turn comes."""
        race = await made(monkeypatch, limit=1)
        clients = [await race.ready() for _ in range(4)]
        home = race.home(clients[0])
        govern(race)
        for client, words in zip(clients, (("GET", "k:1"), ("GET", "k:5"), ("GET", "k:2"), ("MGET", "k:2")), strict=True):
            client.feed(R(*words))
        await race.run(home)
        await race.deliver(home)
        assert race.shelf(clients[0]).table(2).find(R("GET", "k:2")[1:]) == bulk("v2")
        await race.run(home)
        race.clock.now += 10.0
        race.redis.data[0][b"k:2"] = b"new"
        await race.deliver(home)
        assert not clients[2].take()
        await race.settle()
        assert clients[2].take() == bulk("new")
        idle(race)
        await race.close()

    async def test_and_leaves_is_passed_by(self, race: Race) -> None:
        clients = await all_at_once(race, 6)
        for gone in clients[2:5]:
            gone.leave()
        await race.settle()
        assert asked(race.home(clients[0])) == [b"k:0", b"k:1", b"k:5"]
        assert clients[5].take() == bulk("v5")
        idle(race)

    async def test_leaving_with_a_place_gives_it_back(self, race: Race) -> None:
        clients = await all_at_once(race, 4)
        clients[0].leave()
        clients[1].leave()
        last = race.home(clients[3])
        await race.settle()
        assert [client.take() for client in clients[2:]] == [bulk("v2"), bulk("v3")]
        assert len(asked(last)) == 4
        idle(race)

    async def test_and_closes_its_side_is_answered(self, race: Race) -> None:
        clients = await all_at_once(race, 4)
        assert clients[3].session.eof_received()
        await race.settle()
        assert clients[3].take() == bulk("v3") and clients[3].transport.closing
        idle(race)

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_gets_its_replies_in_order(self, race: Race, protocol: int) -> None:
        clients = await all_at_once(race, 3, protocol=protocol)
        waiting = clients[2]
        waiting.feed(R("SET", "k:2", "new"), R("GET", "k:2"), R("GET", "k:1"), R("INCR", "n"), R("PING"), R("MULTI") + R("GET", "k:2") + R("EXEC"))
        assert not waiting.take()
        assert race.home(waiting).requests[-1][0] != b"SET"
        await race.settle()
        expected = [bulk("v2"), encode.OK, bulk("new"), bulk("v1"), b":1\r\n", b"+PONG\r\n", encode.OK, b"+QUEUED\r\n", b"*1\r\n" + bulk("new")]
        assert waiting.take() == b"".join(expected)
        idle(race)

    async def test_one_read_after_the_other(self, race: Race) -> None:
        """Each of a client's reads has to wait again, for it has no place of its own."""
        clients = await all_at_once(race, 2)
        slow = await race.ready_now()
        slow.feed(*[R("GET", f"k:{n}") for n in range(10, 30)])
        await race.settle()
        assert slow.take() == b"".join(bulk(f"v{n}") for n in range(10, 30))
        assert len(clients) == LIMIT
        idle(race)

    async def test_for_what_is_dropped_again_before_its_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, limit=1)
        clients = [await race.ready() for _ in range(3)]
        home = race.home(clients[0])
        govern(race)
        for client, key in zip(clients, ("k:1", "k:2", "k:2"), strict=True):
            client.feed(R("GET", key))
        await race.run(home)
        await race.deliver(home)
        await race.run(home)  # the fetch of k:2 by the second
        race.redis.direct("SET", "k:2", "new")
        home.owed.insert(0, home.owed.pop())  # its push comes first
        race.tier.clear()
        await race.settle()
        assert [client.take() for client in clients] == [bulk("v1"), bulk("v2"), bulk("new")]
        idle(race)
        await race.close()

    async def test_sees_a_write_of_others_it_may_have_heard_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, limit=1)
        clients = [await race.ready() for _ in range(3)]
        govern(race)
        clients[0].feed(R("GET", "k:1"))
        clients[1].feed(R("GET", "k:2"))
        clients[2].feed(R("SET", "k:2", "new"))
        await race.settle()
        assert clients[1].take() in (bulk("v2"), bulk("new"))
        clients[1].feed(R("GET", "k:2"))
        await race.settle()
        assert clients[1].take() == bulk("new")
        idle(race)
        await race.close()

    async def test_for_a_reply_too_long_to_keep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, limit=1, max_value_size=16)
        for n in range(3):
            race.redis.direct("SET", f"k:{n}", "x" * 5000)
        clients = await all_at_once(race, 3)
        for _ in range(6):
            await turn()
            race.redis.work_all()
            race.redis.deliver(100)
        assert [client.take() for client in clients] == [bulk("x" * 5000)] * 3
        idle(race)
        await race.close()

    async def test_for_an_error(self, race: Race) -> None:
        for n in range(5):
            race.redis.direct("DEL", f"k:{n}")
            race.redis.direct("HSET", f"k:{n}", "f", "v")
        clients = await all_at_once(race, 5)
        await race.settle()
        assert all(client.take().startswith(b"-WRONGTYPE") for client in clients)
        idle(race)


class TestPipelinesAndMget:
    """They are not held up; what they would have fetched besides waits for a time when there is room."""

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_pass(self, race: Race, protocol: int) -> None:
        clients = await all_at_once(race, 3, protocol=protocol)
        other = await race.ready_now()
        if protocol == 3:
            other.feed(R("HELLO", 3))
            await turn()
        other.take()
        other.feed(b"".join(R("GET", f"k:{n}") for n in range(10, 20)) + R("MGET", "k:1", "k:30", "none"))
        await race.settle()
        null = b"_\r\n" if protocol == 3 else b"$-1\r\n"
        got = other.take()
        assert got.endswith(b"".join(bulk(f"v{n}") for n in range(10, 20)) + b"*3\r\n" + bulk("v1") + bulk("v30") + null)
        assert [client.take() for client in clients] == [bulk(f"v{n}") for n in range(3)]
        idle(race)

    async def test_fetch_no_more_than_there_is_room_for(self, race: Race) -> None:
        clients = await all_at_once(race, 1)
        other = await race.ready_now()
        other.feed(b"".join(R("GET", f"k:{n}") for n in range(10, 20)))
        await turn()
        assert len(race.shelf(other).flights) == LIMIT
        await race.settle()
        assert race.tier.entries == LIMIT and clients[0].take() == bulk("v0")
        idle(race)


    async def test_take_no_place_for_what_is_not_kept_at_all(self, race: Race) -> None:
        race.tier.obey(Policy((CacheRule((b"k:*",), Serve.OFF),), Defaults(300.0, 1 << 20)))
        client = await race.ready()
        govern(race)
        for _ in range(3):
            client.feed(b"".join(R("GET", f"k:{n}") for n in range(10, 20)))
            await race.settle()
        assert client.take() == b"".join(bulk(f"v{n}") for n in range(10, 20)) * 3
        idle(race)


class TestALostLink:
    async def test_with_thousands_who_wait(self, race: Race) -> None:
        """Each is answered as soon as it begins: one after the other, not one within the other."""
        first = await race.ready()
        clients = [race.client() for _ in range(5000)]
        await turn()
        for client in clients:
            client.session.refresh()
        govern(race)
        for number, client in enumerate(clients):
            client.feed(R("GET", f"k:{number}"))
        await turn()
        assert race.tier.governor.delayed == 5000 - LIMIT
        race.redis.failure = UpstreamError("ERR pannier: upstream is gone")
        race.home(first).lose()
        await turn(40)
        assert {client.take()[:13] for client in clients} == {b"-ERR pannier:"}
        idle(race)

    async def test_that_stays_down_with_thousands_who_ask_again(self, race: Race) -> None:
        clients = await all_at_once(race, 50)
        for client in clients:
            client.feed(*[R("GET", f"k:{n}") for n in range(20)])
        race.redis.failure = UpstreamError("ERR pannier: upstream is gone")
        race.home(clients[0]).lose()
        await turn(40)
        assert all(client.take().count(b"-ERR pannier:") == 21 for client in clients)
        idle(race)

    async def test_that_comes_back(self, race: Race) -> None:
        clients = await all_at_once(race, 20)
        race.home(clients[0]).lose()
        await race.settle()
        assert [client.take() for client in clients] == [bulk(f"v{n}") for n in range(20)]
        idle(race)

    async def test_leaves_no_fetch_behind_that_others_would_wait_for(self, race: Race) -> None:
        """What begins while there is no link is of no epoch: kept by nobody, it must be joined by nobody."""
        race.redis.direct("SET", "k:0", "x" * 5000)
        clients = await all_at_once(race, 20)
        home = race.home(clients[0])
        await race.run(home)
        home.reply(b"".join(home.owed)[:3000])  # the first place is given back by a reply that breaks off
        home.lose()
        await race.settle()
        assert b"broke" in clients[0].take()
        assert [client.take() for client in clients[1:]] == [bulk(f"v{n}") for n in range(1, 20)]
        idle(race)
        for n in range(1, 20):
            assert await race.ask(clients[n], "GET", f"k:{n}") == bulk(f"v{n}")
        idle(race)

    async def test_in_the_middle_of_a_reply_that_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = await made(monkeypatch, limit=1, admit_after=2)
        race.redis.direct("SET", "k:0", "x" * 5000)
        clients = await all_at_once(race, 3)
        home = race.home(clients[0])
        await race.run(home)
        home.reply(home.owed[0][:3000])
        home.lose()
        await race.settle()
        assert b"broke" in clients[0].take()
        assert [client.take() for client in clients[1:]] == [bulk("v1"), bulk("v2")]
        idle(race)
        await race.close()


class TestAheadOfTime:
    async def test_an_invalidation_in_between_wins(self, race: Race) -> None:
        race.tier.obey(Policy((CacheRule((b"k:*",), refresh_ahead=2.0, l1_ttl=10.0, jitter=0.0),), Defaults(300.0, 1 << 20)))
        client = await race.ready()
        await race.ask(client, "GET", "k:1")
        assert race.hit(client, "GET", "k:1") == bulk("v1")
        home, shelf = race.home(client), race.shelf(client)
        race.clock.now += 8.0
        shelf.heard = race.clock()
        race.vouch(client)
        refresh(shelf, client.session.home)
        assert race.hit(client, "GET", "k:1") == bulk("v1")
        await race.run(home)
        race.redis.direct("SET", "k:1", "new")
        home.reply(push(b"k:1"))  # told before the reply to the fetch arrives
        assert not race.hit(client, "GET", "k:1")
        await race.settle()
        assert client.take() in (bulk("v1"), bulk("new"))
        assert await race.ask(client, "GET", "k:1") == bulk("new")
        idle(race)


@pytest.mark.parametrize("seed", range(40))
async def test_places_never_leak(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Reads, pipelines, writes, clients that leave, flushes and lost links in any order."""
    rng = random.Random(seed)
    race = await made(monkeypatch, limit=rng.choice([1, 2, 5]), admit_after=rng.choice([1, 2]), tracking=rng.choice(["default", "bcast"]))
    clients = [await race.ready(protocol=rng.choice([2, 3])) for _ in range(12)]
    readers = [hiredis.Reader() for _ in clients]
    owed: list[list[str]] = [[] for _ in clients]

    def judge() -> None:
        for reader, client, expected in zip(readers, clients, owed, strict=True):
            reader.feed(client.take())
            while (reply := reader.gets()) is not False:
                wanted = expected.pop(0)
                assert isinstance(reply, hiredis.ReplyError) or wanted in ("", reply.decode() if isinstance(reply, bytes) else ""), (wanted, reply)

    govern(race)
    for _ in range(150):
        at = rng.randrange(len(clients))
        n = rng.randrange(20)
        match rng.choices(["read", "pipeline", "mget", "write", "leave", "flush", "lose", "some", "all", "time"], [12, 3, 2, 3, 1, 1, 0.4, 6, 2, 0.3])[0]:
            case "read":
                clients[at].feed(R("GET", f"k:{n}"))
                owed[at].append(f"v{n}")
            case "pipeline":
                clients[at].feed(b"".join(R("GET", f"k:{m}") for m in range(n, n + 4)))
                owed[at] += [f"v{m}" for m in range(n, n + 4)]
            case "mget":
                clients[at].feed(R("MGET", f"k:{n}", "none"))
                owed[at].append("")
            case "write":
                clients[at].feed(R("SET", f"k:{n}", f"v{n}"))
                owed[at].append("")
            case "leave":
                clients[at].leave()
                judge()
                clients[at] = race.client()
                readers[at], owed[at] = hiredis.Reader(), []
                await turn()
                clients[at].session.consume()
            case "flush":
                race.tier.clear()
                govern(race)
            case "lose":
                connection = race.redis.connections[-1]
                if connection.owed and rng.random() < 0.5:
                    connection.reply(connection.owed[0][:2])
                connection.lose()
            case "some":
                for connection in race.redis.connections:
                    race.redis.work(connection, rng.randrange(4))
                    if connection.owed and not connection.closing:
                        await race.deliver(connection, rng.randrange(len(connection.owed)))
            case "all":
                await race.settle()
            case _:
                race.clock.now += 31.0
                for shelf in race.tier.shelves.values():
                    shelf.heard = race.clock()
        await turn(2)
        judge()
    await race.settle()
    judge()
    assert not any(owed)
    idle(race)
    await race.close()


async def test_the_first_fetches_do_not_all_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    race = await made(monkeypatch, limit=50, spread=True)
    clients = await all_at_once(race, 8)
    home = race.home(clients[0])
    begun = len(asked(home))
    assert begun < 8
    seen = {begun}
    for _ in range(200):
        await asyncio.sleep(0.002)
        seen.add(len(asked(home)))
    assert max(seen) == 8 and len(seen) > 2, "by and by"
    await race.settle()
    assert [client.take() for client in clients] == [bulk(f"v{n}") for n in range(8)]
    idle(race)
    await race.close()
