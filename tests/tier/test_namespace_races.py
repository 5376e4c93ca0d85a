"""The coherence rules in a namespace: what is kept, joined, dropped and fenced goes by the keys that Redis knows.

The rules themselves are raced in test_races.py; here each is broken by a key that is prefixed in one place only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.resp import encode
from tests.client.linked import Client, turn
from tests.tier.racing import Race, push

R = encode.request
OLD, NEW = b"$3\r\nold\r\n", b"$3\r\nnew\r\n"
GET = R("GET", "k")
REFUSED: dict[str, set[str]] = {"optin": set(), "default": {"optin"}, "bcast": {"optin", "default"}}


@pytest.fixture(params=list(REFUSED))
async def race(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """In each mode of tracking; both spaces have a key of the same name."""
    race = Race(monkeypatch, namespace="ns")
    race.redis.refused = REFUSED[request.param]
    race.redis.direct("SET", "ns:k", "old")
    race.redis.direct("SET", "k", "bare")
    yield race
    await race.close()


async def warm(race: Race, client: Client, *requests: bytes) -> None:
    """Have replies kept, and make sure that they are."""
    await race.settle()
    for request in requests or (GET,):
        race.vouch(client)
        client.feed(request)
        await race.settle()
        client.take()
        client.feed(request)
        assert client.take(), request


class TestAFetch:
    async def test_asks_for_the_real_key_and_answers_the_clients_own(self, race: Race) -> None:
        client = await race.ready()
        assert await race.ask(client, "GET", "k") == OLD
        assert race.hit(client, "GET", "k") == OLD
        asked = race.home(client).requests
        assert [b"PTTL", b"ns:k"] in asked and asked[-1] == [b"GET", b"ns:k"]
        assert not [request for request in asked if b"k" in request]

    async def test_written_between_its_ttl_and_its_reply_is_not_kept(self, race: Race) -> None:
        client = await race.ready()
        client.feed(GET)
        await turn()
        home = race.home(client)
        while race.redis.waiting(home) > len(R("GET", "ns:k")):
            await race.run(home, 1)
        race.redis.direct("SET", "ns:k", "new")
        await race.settle()
        assert client.take() == NEW
        assert race.hit(client, "GET", "k") == b""

    async def test_is_dropped_by_a_push_for_the_prefixed_key_behind_its_reply(self, race: Race) -> None:
        client = await race.ready()
        client.feed(GET)
        home = race.home(client)
        await race.run(home)
        race.redis.direct("SET", "ns:k", "new")
        await race.deliver(home, len(home.owed) - 1)
        assert client.take() == OLD
        await race.deliver(home)
        assert race.hit(client, "GET", "k") == b""
        await race.settle()
        assert client.take() == NEW

    async def test_is_not_dropped_by_a_push_for_the_bare_key(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        race.home(client).reply(push(b"k") + push(b"other:k", b"ns"))
        race.redis.direct("SET", "k", "bare")
        await race.settle()
        assert race.hit(client, "GET", "k") == OLD

    async def test_tainted_answers_who_waits_and_is_joined_by_nobody(self, race: Race) -> None:
        one, two = await race.ready(), await race.ready()
        home = race.home(one)
        one.feed(GET)
        await race.run(home)
        race.redis.direct("SET", "ns:k", "new")
        home.owed.insert(0, home.owed.pop())
        await race.deliver(home, 1)
        two.feed(GET)
        await race.run(home)
        assert home.requests.count([b"GET", b"ns:k"]) == 2
        await race.settle()
        assert (one.take(), two.take()) == (OLD, NEW)

    async def test_with_a_star_in_its_key(self, race: Race) -> None:
        """Not recognised by its head alone."""
        client = await race.ready()
        for key in ("a*", "*1\r\n$4\r\nPING\r\n", "x" * 253, "x" * 300):
            race.redis.direct("SET", "ns:" + key, "old")
            await warm(race, client, R("GET", key))
            race.redis.direct("SET", "ns:" + key, "new")
            await race.settle()
            assert race.hit(client, "GET", key) == b""
            await race.settle()
            assert client.take() == NEW


WRITES = {
    "upper": R("SET", "k", "new"),
    "odd": R("sEt", "k", "new"),
    "inline": b"SET k new\r\n",
    "options": R("SET", "k", "new", "PX", 100000),
    "rename": R("RENAME", "src", "k"),
    "pipeline": R("SET", "k", "new") + R("INCR", "n"),
    "stars": R("SET", "k", "new") + R("SET", "*", R("GET", "k")),
    "long": R("SET", "k", "new") + R("SET", "x" * 255, "1"),
}


class TestOwnWrites:
    @pytest.mark.parametrize("write", list(WRITES.values()), ids=list(WRITES))
    async def test_drop_when_sent_and_before_their_reply(self, race: Race, write: bytes) -> None:
        race.redis.direct("SET", "ns:src", "new")
        writer, reader = await race.ready(), await race.ready(user="other")
        await warm(race, reader)
        writer.feed(write)
        assert race.hit(reader, "GET", "k") == b"", "gone when it is sent"
        theirs = race.home(reader)
        await race.run(theirs)
        await race.deliver(theirs)
        assert reader.take() == OLD, "fetched again meanwhile"
        home = race.home(writer)
        race.redis.work(home, end=False)
        while not writer.got:
            await race.deliver(home, 1)
        assert race.hit(reader, "GET", "k") == b"", "and gone when the reply is here"
        await race.settle()
        assert reader.take() == NEW

    async def test_of_a_run_go_each_before_its_own_reply(self, race: Race) -> None:
        writer, reader = await race.ready(), await race.ready(user="other")
        for value in ("2", "*"):
            race.redis.direct("SET", "ns:k", "old")
            await race.settle()
            writer.take(), reader.take()
            await warm(race, reader)
            home, theirs = race.home(writer), race.home(reader)
            writer.feed(R("SET", "a", "1") + R("SET", "k", "new") + R("SET", "b", value))
            await turn()
            race.vouch(reader)
            reader.feed(GET)
            await race.run(theirs)
            await race.deliver(theirs)
            race.redis.work(home, end=False)
            while writer.got != b"+OK\r\n" * 2:
                await race.deliver(home, 1)
            reader.take()
            assert race.hit(reader, "GET", "k") == b""
            await race.settle()

    async def test_in_a_transaction(self, race: Race) -> None:
        writer, reader = await race.ready(), await race.ready()
        writer.feed(R("MULTI"))
        await race.settle()
        own = race.pinned(writer)
        writer.feed(R("SET", "k", "new"))
        await race.settle()
        await warm(race, reader)
        writer.feed(R("EXEC"))
        await turn()
        race.redis.work(own, end=False)
        await race.deliver(own)
        assert writer.take() == b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n"
        assert race.hit(reader, "GET", "k") == b""

    async def test_by_a_blocking_command(self, race: Race) -> None:
        writer, reader = await race.ready(), await race.ready()
        await warm(race, reader, R("EXISTS", "k"))
        writer.feed(R("BLPOP", "k", 0))
        await turn()
        own = race.pinned(writer)
        race.redis.work(own, end=False)
        await race.deliver(own)
        assert writer.take() == b"*2\r\n$1\r\nk\r\n$1\r\nx\r\n"
        assert race.hit(reader, "EXISTS", "k") == b""

    async def test_are_of_the_namespace_only(self, race: Race) -> None:
        """A write of `k` here is none of `k` there."""
        writer, bare = await race.ready(), await race.ready(namespace="")
        await warm(race, bare)
        assert await race.ask(writer, "SET", "k", "new") == b"+OK\r\n"
        assert race.hit(bare, "GET", "k") == b"$4\r\nbare\r\n"


class TestBesideABareListener:
    """Both see one Redis: what is `k` in the namespace is `ns:k` to the other."""

    @pytest.mark.parametrize("write", [R("SET", "ns:k", "new"), R("sEt", "ns:k", "new"), R("SET", "ns:k", "new") + R("INCR", "n"), R("RENAME", "src", "ns:k")], ids=["run", "parsed", "pipeline", "rename"])
    async def test_its_writes_drop_entries_of_the_namespace(self, race: Race, write: bytes) -> None:
        race.redis.direct("SET", "src", "new")
        writer, reader = await race.ready(namespace=""), await race.ready()
        await warm(race, reader)
        home, theirs = race.home(writer), race.home(reader)
        assert home is not theirs
        writer.feed(write)
        assert race.hit(reader, "GET", "k") == b"", "gone when it is sent"
        await race.run(theirs)
        await race.deliver(theirs)
        assert reader.take() == OLD
        race.redis.work(home, end=False)
        while not writer.got:
            await race.deliver(home, 1)
        assert race.hit(reader, "GET", "k") == b"", "and gone when the reply is here"
        await race.settle()
        assert reader.take() == NEW

    async def test_writes_in_the_namespace_drop_its_entries(self, race: Race) -> None:
        writer, reader = await race.ready(), await race.ready(namespace="")
        await warm(race, reader, R("GET", "ns:k"))
        writer.feed(R("SET", "k", "new"))
        assert race.hit(reader, "GET", "ns:k") == b""
        home, theirs = race.home(writer), race.home(reader)
        await race.run(theirs)
        await race.deliver(theirs)
        assert reader.take() == OLD
        race.redis.work(home, end=False)
        while not writer.got:
            await race.deliver(home, 1)
        assert race.hit(reader, "GET", "ns:k") == b""

    async def test_scripts_of_either_are_told_to_both(self, race: Race) -> None:
        for script, writers, readers in (("SET ns:k new", "", None), ("SET ns:k new", None, "")):
            race.redis.direct("SET", "ns:k", "old")
            writer, reader = await race.ready(namespace=writers), await race.ready(namespace=readers)
            key = "ns:k" if readers == "" else "k"
            await warm(race, reader, R("GET", key))
            writer.feed(R("EVAL", script, 0))
            await turn()
            race.redis.work(race.home(writer))
            await race.deliver(race.home(writer))
            if writer.take():  # a reply that waits for the other link's pushes would do as well
                assert race.hit(reader, "GET", key) == b""
            await race.settle()
            reader.take()
            assert await race.ask(reader, "GET", key) == NEW

    async def test_two_namespaces_share_nothing(self, race: Race) -> None:
        race.redis.direct("SET", "b:k", "b's")
        one, two = await race.ready(), await race.ready(namespace="b")
        assert race.home(one) is not race.home(two) and race.shelf(one) is not race.shelf(two)
        await warm(race, one)
        await warm(race, two)
        assert (race.hit(one, "GET", "k"), race.hit(two, "GET", "k")) == (OLD, b"$3\r\nb's\r\n")
        assert await race.ask(one, "DEL", "k") == b":1\r\n"
        assert race.hit(two, "GET", "k") == b"$3\r\nb's\r\n"


class TestFlushes:
    @pytest.mark.parametrize("command", [R("FLUSHDB"), R("FLUSHDB", "SYNC"), R("flushdb", "ASYNC")])
    async def test_empty_what_they_delete(self, race: Race, command: bytes) -> None:
        for n in range(5):
            race.redis.direct("SET", f"ns:{n}", "old")
        reader, other, bare = await race.ready(), await race.ready(user="other"), await race.ready(namespace="")
        writer = await race.ready()
        await warm(race, reader, GET, R("GET", "3"))
        await warm(race, other, GET)
        await warm(race, bare, GET, R("GET", "ns:k"))
        writer.feed(command)
        await race.settle()
        assert writer.take() == b"+OK\r\n"
        assert race.redis.data[0] == {b"k": b"bare"}
        assert [race.hit(reader, "GET", "k"), race.hit(reader, "GET", "3"), race.hit(other, "GET", "k"), race.hit(bare, "GET", "ns:k")] == [b""] * 4
        await race.settle()
        assert (reader.take(), other.take(), bare.take()) == (b"$-1\r\n" * 2, b"$-1\r\n", b"$-1\r\n")
        assert not any(request[:1] in ([b"FLUSHDB"], [b"FLUSHALL"]) for wire in race.redis.connections for request in wire.requests)

    async def test_leave_the_entries_of_others(self, race: Race) -> None:
        writer, bare = await race.ready(), await race.ready(namespace="")
        await warm(race, bare)
        assert await race.ask(writer, "FLUSHDB") == b"+OK\r\n"
        assert race.hit(bare, "GET", "k") == b"$4\r\nbare\r\n"

    async def test_taint_a_fetch_that_redis_answered_before_them(self, race: Race) -> None:
        """On the link of another user: its reply comes when the flush is over."""
        writer, reader = await race.ready(), await race.ready(user="other")
        theirs, home = race.home(reader), race.home(writer)
        reader.feed(GET)
        await race.run(theirs)
        writer.feed(R("FLUSHDB"))
        while not writer.got:
            await turn()
            race.redis.work(home, end=False)
            await race.deliver(home)
        assert writer.take() == b"+OK\r\n"
        while not reader.got:
            await race.deliver(theirs, 1)
        assert reader.take() == OLD
        assert race.hit(reader, "GET", "k") == b""

    async def test_drop_when_sent_and_before_their_reply(self, race: Race) -> None:
        writer, reader = await race.ready(), await race.ready(user="other")
        await warm(race, reader)
        home, theirs = race.home(writer), race.home(reader)
        writer.feed(R("FLUSHDB"))
        while not home.requests or home.requests[-1][0] != b"UNLINK":
            await turn()
            race.redis.work(home)
            await race.deliver(home)
        assert race.hit(reader, "GET", "k") == b"", "gone when it is sent"
        await race.run(theirs)
        await race.deliver(theirs)
        assert reader.take() == OLD, "fetched again meanwhile"
        while not writer.got:
            race.redis.work(home, end=False)
            await race.deliver(home)
        assert race.hit(reader, "GET", "k") == b"", "and gone when the reply is here"
        await race.settle()
        assert reader.take() == b"$-1\r\n"

    async def test_dbsize_counts_the_namespace(self, race: Race) -> None:
        for n in range(5):
            race.redis.direct("SET", f"ns:{n}", "old")
        client = await race.ready()
        assert await race.ask(client, "DBSIZE") == b":6\r\n"


class TestPipelines:
    async def test_partly_in_memory(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client, GET, R("GET", "a"))
        before = len(race.home(client).requests)
        client.feed(GET + R("GET", "a") + GET + R("GET", "miss"))
        await race.settle(piece=1)
        assert client.take() == OLD + b"$-1\r\n" + OLD + b"$-1\r\n"
        sent = race.home(client).requests[before:]
        assert [b"GET", b"ns:miss"] in sent and [b"GET", b"ns:k"] not in sent

    async def test_are_read_again_after_an_invalidation(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client, GET, R("GET", "a"))
        race.redis.direct("SET", "ns:k", "new")
        client.feed(GET + R("GET", "a") + GET + R("GET", "miss"), GET)
        await race.settle(piece=1)
        replies = client.take()
        assert replies in (NEW + b"$-1\r\n" + NEW + b"$-1\r\n" + NEW, OLD + b"$-1\r\n" + OLD + b"$-1\r\n" + NEW)
        assert await race.ask(client, "GET", "k") == NEW

    async def test_mget(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client, GET)
        assert await race.ask(client, "MGET", "k", "a", "k") == b"*3\r\n" + OLD + b"$-1\r\n" + OLD
        asked = [request for wire in race.redis.connections for request in wire.requests if request[0] == b"MGET"]
        assert all(key.startswith(b"ns:") for request in asked for key in request[1:])
        race.redis.direct("SET", "ns:k", "new")
        await race.settle()
        assert await race.ask(client, "MGET", "k", "a", "k") == b"*3\r\n" + NEW + b"$-1\r\n" + NEW

    async def test_replies_of_a_transaction_are_stripped_each_by_its_own(self, race: Race) -> None:
        client = await race.ready()
        client.feed(R("MULTI"), R("SET", "v", "ns:k"), R("GET", "v"), R("BLPOP", "l", 0), R("GET", "v"), R("EXEC"))
        await race.settle()
        value = b"$4\r\nns:k\r\n"
        assert client.take() == b"+OK\r\n" + b"+QUEUED\r\n" * 4 + b"*4\r\n+OK\r\n" + value + b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n" + value
