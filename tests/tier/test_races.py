"""Coherence, race by race: bytes between the sidecar and Redis are held back until the worst moment.

What is promised is in docs/memory.md. tests/tier/MUTATIONS.md lists for each rule what was broken
in a copy and which of these tests saw it. `test_any_order` beside them tries orders nobody has thought of.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.client.states import State
from proxy.resp import encode
from tests.client.linked import Client, Connection, turn
from tests.tier.racing import FLUSHED, Race, push

R = encode.request
OLD, NEW = b"$3\r\nold\r\n", b"$3\r\nnew\r\n"
GET = R("GET", "k")


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    race = Race(monkeypatch)
    race.redis.direct("SET", "k", "old")
    yield race
    await race.close()


@pytest.fixture(params=["optin", "default", "bcast"])
async def each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """In each mode of tracking."""
    race = Race(monkeypatch)
    race.redis.refused = {"optin", "default"} if request.param == "bcast" else {"optin"} if request.param == "default" else set()
    race.redis.direct("SET", "k", "old")
    yield race
    await race.close()


@pytest.fixture(params=["optin", "default"])
async def in_band(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """Where pushes come in order with the replies: only there are pipelines put together."""
    race = Race(monkeypatch)
    race.redis.refused = {"optin"} if request.param == "default" else set()
    race.redis.direct("SET", "k", "old")
    yield race
    await race.close()


@pytest.fixture
async def loose(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """BCAST: a reply may show a change before the push tells of it."""
    race = Race(monkeypatch, tracking="bcast")
    race.redis.direct("SET", "k", "old")
    yield race
    await race.close()


async def warm(race: Race, client: Client, *requests: bytes) -> None:
    """Have replies kept, and make sure that they are."""
    await race.settle()
    for request in requests or (GET,):
        client.session.shelf.vouch(client.session.shelf.tier.clock())
        client.feed(request)
        await race.settle()
        client.take()
        client.feed(request)
        assert client.take(), request


# --- fetches and invalidations


class TestAFetch:
    async def test_is_kept_and_answers_the_next_read_from_memory(self, each: Race) -> None:
        client = await each.ready()
        assert await each.ask(client, "GET", "k") == OLD
        assert each.hit(client, "GET", "k") == OLD

    async def test_written_between_its_ttl_and_its_reply_is_not_kept(self, each: Race) -> None:
        client = await each.ready()
        client.feed(GET)
        await turn()
        home = each.home(client)
        while each.redis.waiting(home) > len(GET):
            await each.run(home, 1)
        each.redis.direct("SET", "k", "new", "PX", 10)
        await each.settle()
        assert client.take() == NEW
        assert each.hit(client, "GET", "k") == b""

    async def test_is_not_kept_if_the_invalidation_follows_its_reply_in_the_stream(self, each: Race) -> None:
        client, home = await each.ready(), None
        client.feed(GET)
        home = each.home(client)
        await each.run(home)
        each.redis.direct("SET", "k", "new")
        await each.deliver(home, len(home.owed) - 1)
        assert client.take() == OLD
        await each.deliver(home)
        assert each.hit(client, "GET", "k") == b""
        await each.settle()
        assert client.take() == NEW

    async def test_every_split_of_the_bytes_has_the_same_outcome(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reply, push with several keys, null push, and a reply behind them, cut at every place."""

        async def outcome(at: int) -> tuple[int, bytes, list[bytes]]:
            race = Race(monkeypatch)
            for key, value in ((b"k", b"old"), (b"a\r\nb", b"1"), (b"\r\xff\x00", b"2")):
                race.redis.direct("SET", key, value)
            one, other = await race.ready(), await race.ready(protocol=3)
            await warm(race, one, R("GET", b"a\r\nb"), R("GET", b"\r\xff\x00"))
            home = race.home(one)
            one.feed(GET)
            await race.run(home)
            other.feed(R("GET", "absent"))
            race.redis.direct("SET", "k", "new")
            home.owed.append(push(b"a\r\nb", b"\r\xff\x00", b"unknown"))
            await race.run(home)
            data, home.owed = b"".join(home.owed), []
            home.reply(data[:at])
            home.reply(data[at:])
            await turn()
            shelf = race.shelf(one)
            state = (len(data), one.take() + other.take(), sorted(shelf.table(2).replies))
            await race.close()
            return state

        size, got, kept = await outcome(0)
        assert got == OLD + b"_\r\n"
        assert kept == [R("GET", "absent")[1:]]
        for at in range(1, size):
            assert await outcome(at) == (size, got, kept), at

    async def test_byte_by_byte(self, each: Race) -> None:
        client, home = await each.ready(), None
        await warm(each, client)
        home = each.home(client)
        each.redis.direct("SET", "k", "new")
        each.redis.direct("HSET", "h", "f", "v")
        client.feed(R("HGETALL", "h"))
        await each.run(home)
        await each.deliver(home, piece=1)
        await each.settle(piece=1)
        assert client.take() == b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
        assert each.hit(client, "GET", "k") == b""
        await each.settle(piece=1)
        assert client.take() == NEW

    async def test_pushes_before_a_reply_in_a_chunk_are_applied_before_it_is_passed_on(self, each: Race) -> None:
        """And pushes behind it before anything else is asked."""
        client, other = await each.ready(), await each.ready()
        await warm(each, client)
        each.redis.direct("SET", "k", "new")
        seen: list[bytes] = []
        write = other.transport.write
        other.session.write = other.session.relay = lambda data: (seen.append(bytes(each.shelf(other).table(2).replies.get(GET[1:], b"gone"))), write(data))
        other.feed(R("GET", "x"))
        await each.run(each.home(client))
        await each.deliver(each.home(client))
        assert seen == [b"gone"]

    async def test_of_what_is_missing_or_of_the_wrong_type(self, each: Race) -> None:
        client = await each.ready()
        each.redis.direct("HSET", "h", "f", "v")
        assert await each.ask(client, "GET", "absent") == b"$-1\r\n"
        assert each.hit(client, "GET", "absent") == b"$-1\r\n"
        assert (await each.ask(client, "GET", "h")).startswith(b"-WRONGTYPE")
        assert each.hit(client, "GET", "h") == b"", "an error is never kept"

    async def test_whose_ttl_is_refused_is_not_kept(self, each: Race) -> None:
        each.redis.denied = {b"PTTL"}
        client = await each.ready()
        assert await each.ask(client, "GET", "k") == OLD
        assert each.hit(client, "GET", "k") == b""


class TestAFlight:
    async def test_one_read_upstream_for_many_clients(self, each: Race) -> None:
        clients = [await each.ready(protocol=2 + n % 2) for n in range(4)]
        for client in clients:
            client.feed(R("GET", "absent"))
        await turn()
        assert each.home(clients[0]).requests.count([b"GET", b"absent"]) == 1
        await each.settle()
        assert [client.take() for client in clients] == [b"$-1\r\n", b"_\r\n"] * 2

    async def test_tainted_answers_who_waits_and_is_joined_by_nobody(self, each: Race) -> None:
        one, two = await each.ready(), await each.ready()
        home = each.home(one)
        one.feed(GET)
        await each.run(home)
        each.redis.direct("SET", "k", "new")
        home.owed.insert(0, home.owed.pop())  # some other write's push, before the reply
        await each.deliver(home, 1)
        two.feed(GET)
        await each.run(home)
        assert home.requests.count([b"GET", b"k"]) == 2
        await each.settle()
        assert (one.take(), two.take()) == (OLD, NEW)

    async def test_of_a_leader_who_left(self, each: Race) -> None:
        leader, other = await each.ready(), await each.ready()
        leader.feed(GET)
        other.feed(GET)
        leader.leave()
        await each.settle()
        assert other.take() == OLD
        assert each.hit(other, "GET", "k") == OLD

    async def test_nobody_waits_for_is_kept(self, each: Race) -> None:
        leader, other = await each.ready(), await each.ready()
        leader.feed(GET)
        leader.leave()
        await each.settle()
        assert each.hit(other, "GET", "k") == OLD

    async def test_of_a_client_that_takes_no_more_bytes(self, each: Race) -> None:
        leader, other = await each.ready(), await each.ready()
        leader.feed(GET)
        other.feed(GET)
        leader.transport.gone = True
        await each.settle()
        assert other.take() == OLD
        leader.transport.gone = False

    async def test_waiters_have_their_other_replies_in_order(self, each: Race) -> None:
        one, two = await each.ready(), await each.ready()
        one.feed(GET)
        two.feed(GET)
        two.feed(R("SET", "a", "1"), GET, R("INCR", "a"))
        one.feed(R("INCR", "a"))
        await each.settle(piece=3)
        assert two.take() == OLD + b"+OK\r\n" + OLD + b":2\r\n"
        assert one.take() == OLD + b":3\r\n"

    async def test_is_not_joined_by_who_has_replies_pending(self, each: Race) -> None:
        """Its place in the stream is before what that client has asked already."""
        one, two = await each.ready(), await each.ready()
        two.feed(R("SET", "k", "new"))
        one.feed(GET)
        two.feed(GET)
        await each.settle()
        assert two.take() == b"+OK\r\n" + NEW

    async def test_a_client_with_replies_pending_is_not_answered_from_memory(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        client.feed(R("INCR", "n"))
        each.redis.direct("SET", "k", "new")
        client.feed(GET)
        assert client.take() == b""
        await each.settle()
        assert client.take() == b":1\r\n" + NEW

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_too_long_to_keep_reaches_all_who_wait_in_pieces(self, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
        race = Race(monkeypatch, max_value_size=64)
        value = b"_\r\n" * 3000
        race.redis.direct("HSET", "h", "f", value)
        clients = [await race.ready(protocol=p) for p in (protocol, 2, 3)]
        for client in clients:
            client.feed(R("HMGET", "h", "f", "absent"))
        await turn()
        home = race.home(clients[0])
        race.redis.work(home)
        data, home.owed = b"".join(home.owed), []
        home.reply(data[:5000], piece=77)
        assert [len(client.got) > 4000 for client in clients] == [True] * 3, "passed on as it arrives"
        late = await race.ready()
        late.feed(R("HMGET", "h", "f", "absent"))
        home.reply(data[5000:], piece=77)
        await race.settle()
        bulk = encode.bulk(value)
        expected = {2: b"*2\r\n" + bulk + b"$-1\r\n", 3: b"*2\r\n" + bulk + b"_\r\n"}
        assert [client.take() for client in clients] == [expected[protocol], expected[2], expected[3]]
        assert late.take() == expected[2]
        assert not race.tier.entries and not race.tier.used and not race.shelf(late).index
        await race.close()

    async def test_too_long_and_of_another_shape_reaches_resp2_clients_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, max_value_size=64)
        race.redis.direct("ZADD", "z", *["1.5", "m"] * 300)
        two, three = await race.ready(), await race.ready(protocol=3)
        members = [b"%d" % n for n in range(300)] + [b"999"]
        for client in (two, three):
            client.feed(R("ZMSCORE", "z", *members))
        await race.settle(piece=100)
        assert two.take() == b"*301\r\n" + b"$3\r\n1.5\r\n" * 300 + b"$-1\r\n"
        assert three.take() == b"*301\r\n" + b",1.5\r\n" * 300 + b"_\r\n"
        assert not race.tier.entries
        await race.close()


# --- own writes


class TestOwnWrites:
    async def test_are_seen_from_the_reply_on_by_every_client(self, each: Race) -> None:
        """Whatever else is held back: the reply itself makes everybody read anew."""
        writer, reader = await each.ready(), await each.ready(protocol=3)
        await warm(each, reader)
        writer.feed(R("SET", "k", "new"))
        assert each.hit(reader, "GET", "k") == b"", "gone when it is sent"
        home = each.home(writer)
        await each.run(home)
        await each.settle()
        assert (writer.take(), reader.take()) == (b"+OK\r\n", NEW)

    async def test_taint_a_fetch_that_redis_answered_before_them(self, each: Race) -> None:
        """On the link of another database: its fetch was sent when the write was, and answered before."""
        writer, reader = await each.ready(), await each.ready(user="other")
        home, theirs = each.home(writer), each.home(reader)
        assert home is not theirs
        writer.feed(R("SET", "k", "new"))
        reader.feed(GET)
        await each.run(theirs)
        await each.run(home)
        await each.deliver(home)
        assert writer.take() == b"+OK\r\n"
        third = await each.ready(user="other")
        await each.deliver(theirs, 3 if theirs.state["tracks"] == "optin" else 2) if theirs.owed else None
        reader.take()
        assert each.hit(third, "GET", "k") in (b"", NEW)
        await each.settle()
        assert third.take() in (b"", NEW)

    async def test_between_a_fetch_and_its_reply_on_the_same_connection(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        client.feed(GET, R("SET", "k", "new"))
        await each.settle()
        assert client.take() == OLD + b"+OK\r\n"
        assert await each.ask(other, "GET", "k") == NEW

    @pytest.mark.parametrize(
        "write",
        [R("SET", "k", "new"), R("set", "k", "new"), R("sEt", "k", "new"), b"SET k new\r\n", R("SET", "k", "new", "PX", 100000), R("RENAME", "src", "k"), R("SET", "k", "new") + R("INCR", "n")],
        ids=["upper", "lower", "odd", "inline", "options", "rename", "pipeline"],
    )
    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_in_every_spelling(self, each: Race, write: bytes, protocol: int) -> None:
        each.redis.direct("SET", "src", "new")
        writer, reader = await each.ready(protocol=protocol), await each.ready()
        await warm(each, reader)
        theirs = await each.ready(user="other")
        await warm(each, theirs)
        writer.feed(write)
        home = each.home(writer)
        await each.run(home, end=False)
        await each.deliver(home, write.count(b"INCR") + 1)
        assert writer.take().startswith(b"+OK\r\n")
        for client in (reader, theirs):
            assert each.hit(client, "GET", "k") == b""
        await each.settle()
        assert (reader.take(), theirs.take()) == (NEW, NEW)

    async def test_each_of_a_run_before_its_own_reply(self, each: Race) -> None:
        """Entries made while a run is under way go with the reply of the write that changes them."""
        writer, reader = await each.ready(), await each.ready(user="other")
        await warm(each, reader)
        home, theirs = each.home(writer), each.home(reader)
        writer.feed(R("SET", "a", "1") + R("SET", "k", "new") + R("SET", "b", "2"))
        await turn()
        await warm(each_theirs(each, theirs), reader)
        each.redis.work(home, end=False)
        for _ in range(2):
            await each.deliver(home, 1)
        while writer.got != b"+OK\r\n" * 2:
            await each.deliver(home, 1)
        assert each.hit(reader, "GET", "k") == b""

    async def test_each_of_a_run_before_its_own_reply_behind_reads(self, each: Race) -> None:
        """The keys that a run writes are fewer than its replies; meanwhile others read again what it will change."""
        writer, reader = await each.ready(), await each.ready(user="other")
        await warm(each, reader)
        home, theirs = each.home(writer), each.home(reader)
        writer.feed(R("GET", "a") * 3 + R("SET", "k", "new") + R("SET", "b", "2"))
        await turn()
        for n in range(3):
            while writer.got.count(b"\r\n") == n:
                assert each.redis.work(home, 1, end=False)
                await each.deliver(home)
            await warm(each_theirs(each, theirs), reader)
        while not writer.got.endswith(b"+OK\r\n"):
            assert each.redis.work(home, 1, end=False)
            await each.deliver(home)
        assert each.hit(reader, "GET", "k") == b""

    async def test_over_a_pinned_link_before_the_push_over_the_shared_one(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        await warm(each, reader)
        writer.feed(R("MULTI"))
        await turn()
        own = each.pinned(writer)
        writer.feed(R("SET", "k", "new"), R("EXEC"))
        await warm(each_theirs(each, each.home(reader)), reader)
        each.redis.work(own)
        await each.deliver(own)
        assert writer.take() == b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n"
        assert each.hit(reader, "GET", "k") == b""
        await each.settle()
        assert reader.take() == NEW

    @pytest.mark.parametrize(
        ("write", "read"),
        [(R("sEt", "k", "new"), GET), (R("SET", "k", "new", "PX", 100000), GET), (R("RENAME", "src", "k"), GET), (R("ZADD", "z", "2", "m"), R("ZMSCORE", "z", "0"))],
        ids=["parsed", "options", "two keys", "reshaped"],
    )
    async def test_one_by_one_drop_what_was_filled_meanwhile(self, each: Race, write: bytes, read: bytes) -> None:
        each.redis.direct("SET", "src", "new")
        each.redis.direct("ZADD", "z", "1", "m")
        writer, reader = await each.ready(), await each.ready(user="other")
        home, theirs = each.home(writer), each.home(reader)
        await each.settle()
        writer.feed(write)
        await turn()
        await warm(each_theirs(each, theirs), reader, read)
        each.redis.work(home, end=False)
        while not writer.got:
            await each.deliver(home, 1)
        reader.feed(read)
        assert reader.take() == b""

    async def test_in_a_transaction_count_when_exec_is_answered(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        writer.feed(R("MULTI"))
        await each.settle()
        own = each.pinned(writer)
        writer.feed(R("SET", "k", "new"))
        await each.settle()
        assert writer.take() == b"+OK\r\n+QUEUED\r\n"
        await warm(each, reader)
        writer.feed(R("EXEC"))
        await turn()
        each.redis.work(own, end=False)
        await each.deliver(own)
        assert writer.take() == b"*1\r\n+OK\r\n"
        assert each.hit(reader, "GET", "k") == b""

    async def test_over_a_pinned_link_taint_a_fetch_under_way(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        writer.feed(R("MULTI"), R("SET", "k", "new"), R("EXEC"))
        await turn()
        reader.feed(GET)
        await each.run(each.home(reader))
        each.redis.work(each.pinned(writer))
        own = each.pinned(writer)
        await each.deliver(own)
        assert writer.take().endswith(b"*1\r\n+OK\r\n")
        third = await each.ready_now()
        assert each.hit(third, "GET", "k") == b"", "not joined"
        await each.settle()
        assert (reader.take(), third.take()) == (OLD, NEW)

    async def test_by_a_blocking_command(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        await warm(each, reader, R("EXISTS", "k"))
        writer.feed(R("BLPOP", "k", 0))
        await turn()
        own = each.pinned(writer)
        await warm(each_theirs(each, each.home(reader)), reader, R("EXISTS", "k"))
        each.redis.work(own)
        await each.deliver(own)
        assert writer.take()
        assert each.hit(reader, "EXISTS", "k") == b""


def each_theirs(race: Race, connection: Connection) -> Race:
    """The race with only one connection going on: the others' bytes stay where they are."""

    class Part:
        async def settle(self, piece: int = 0) -> None:
            for _ in range(3):
                await turn()
                race.redis.work(connection)
                connection.deliver(piece)
            await turn()

    return Part()  # type: ignore[return-value]


# --- what another link saw


class TestWhatAnotherLinkSaw:
    async def test_a_read_in_a_transaction_shows_a_new_value(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        client.feed(R("MULTI"))
        await turn()
        own = each.pinned(client)
        each.redis.direct("SET", "k", "new")
        client.feed(GET, R("EXEC"))
        await turn()
        each.redis.work(own)
        await each.deliver(own)
        assert client.take() == b"+OK\r\n+QUEUED\r\n*1\r\n" + NEW
        assert client.session.state is State.RELAY
        assert each.hit(client, "GET", "k") == b""
        await each.settle()
        assert client.take() == NEW

    async def test_reads_between_watch_and_exec_come_from_redis(self, each: Race) -> None:
        """A stale one would let an update be lost."""
        client = await each.ready()
        await warm(each, client)
        client.feed(R("WATCH", "other"))
        await each.settle()
        assert client.take() == b"+OK\r\n"
        own = each.pinned(client)
        each.redis.direct("SET", "k", "new")
        client.feed(GET)
        assert client.take() == b""
        await turn()
        each.redis.work(own)
        await each.deliver(own)
        assert client.take() == NEW
        client.feed(R("UNWATCH"))
        await turn()
        each.redis.work(own)
        await each.deliver(own)
        assert client.take() == b"+OK\r\n"
        assert each.hit(client, "GET", "k") == b""

    async def test_a_read_on_the_untracked_link(self, each: Race) -> None:
        """A command whose RESP2 reply cannot be told from its RESP3 one travels beside."""
        client = await each.ready()
        each.redis.direct("ZADD", "z", 1, "m")
        await warm(each, client, R("ZMSCORE", "z", "0"))
        home = each.home(client)
        client.feed(R("ZRANK", "z", "m", "WITHSCORE"))
        await turn()
        side = each.side(client)
        each.redis.direct("ZADD", "z", 2, "m")
        each.redis.work(side)
        await each.deliver(side)
        assert client.take() == b"*2\r\n:0\r\n$1\r\n2\r\n"
        assert home.owed, "the push is still to come"
        assert each.hit(client, "ZMSCORE", "z", "0") == b""

    async def test_a_client_that_comes_to_another_shelf_does_not_go_back_in_time(self, race: Race) -> None:
        client, other = await race.ready(), await race.ready(user="other")
        await warm(race, other)
        theirs = race.home(other)
        race.redis.direct("SET", "k", "new")
        client.feed(GET)
        await race.run(race.home(client))
        await race.deliver(race.home(client))
        assert client.take() == NEW
        client.feed(R("AUTH", "other", "secret"))
        for _ in range(4):
            await turn()
        if client.take():  # an answer that waits for the other link's pushes would do as well
            assert race.home(client) is theirs
            assert race.hit(client, "GET", "k") in (b"", NEW)


# --- what nobody can name


EVAL = R("EVAL", "SET k new", 0)


class TestUnknownKeys:
    async def test_of_a_script_on_the_shared_link(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        await warm(each, reader)
        writer.feed(EVAL)
        await each.settle(piece=1)
        assert writer.take() == b"+OK\r\n"
        assert each.hit(reader, "GET", "k") == b""

    async def test_its_reply_waits_for_the_invalidation(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        await warm(each, reader)
        home = each.home(writer)
        writer.feed(EVAL)
        await turn()
        each.redis.work(home, end=False)
        while not writer.got:
            if not home.owed:
                each.redis.end_turn()
                await each.run(home)
            await each.deliver(home, 1)
        assert each.hit(reader, "GET", "k") == b""
        await each.settle()
        assert reader.take() == NEW

    async def test_of_a_script_are_told_to_another_users_shelf_as_well(self, race: Race) -> None:
        writer, reader = await race.ready(), await race.ready(user="other")
        await warm(race, reader)
        writer.feed(EVAL)
        await race.run(race.home(writer))
        await race.deliver(race.home(writer))
        if writer.take():  # a reply that waits for the other link's pushes would do as well
            assert race.hit(reader, "GET", "k") == b""

    async def test_of_a_script_in_a_transaction(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        await warm(each, reader)
        writer.feed(R("MULTI"), EVAL, R("EXEC"))
        await turn()
        own, home = each.pinned(writer), each.home(reader)
        await warm(each_theirs(each, home), reader)
        each.redis.work(own, end=False)
        await each.deliver(own)
        assert b"*1\r\n" not in writer.got, "the reply to EXEC waits"
        while b"*1\r\n" not in writer.got:
            each.redis.end_turn()
            await each.run(home)
            assert home.owed
            while home.owed and b"*1\r\n" not in writer.got:
                await each.deliver(home, 1)
        assert each.hit(reader, "GET", "k") == b""
        await each.settle()
        assert reader.take() == NEW

    async def test_on_a_connection_that_subscribes(self, each: Race) -> None:
        """Whatever it asks: its replies are not counted, so each waits."""
        client, reader = await each.ready(protocol=3), await each.ready()
        await warm(each, reader)
        client.feed(R("SUBSCRIBE", "c"))
        await each.settle()
        assert client.take().startswith(b">3\r\n")
        own, home = each.pinned(client), each.home(reader)
        each.redis.direct("SET", "k", "new", end=False)
        client.feed(GET)
        await turn()
        each.redis.work(own, end=False)
        await each.deliver(own)
        assert client.take() == b"", "newer than the push that is under way"
        while not client.got:
            each.redis.end_turn()
            await each.run(home)
            await each.deliver(home, 1)
        assert client.take() == NEW
        assert each.hit(reader, "GET", "k") == b""

    async def test_on_the_untracked_link(self, each: Race) -> None:
        writer, reader = await each.ready(), await each.ready()
        each.sidecar.table.overlay([[b"mod.write", -1, [b"write", b"module"], 0, 0, 0, [], [], [], []]])
        await warm(each, reader)
        each.redis._do_mod = None  # type: ignore[attr-defined]
        setattr(each.redis, "_do_mod.write", lambda c: each.redis._do_set(c, b"k", b"new"))
        writer.feed(R("MOD.WRITE"))
        await turn()
        side, home = each.side(writer), each.home(reader)
        each.redis.work(side, end=False)
        await each.deliver(side)
        assert writer.take() == b""
        while not writer.got:
            each.redis.end_turn()
            await each.run(home)
            await each.deliver(home, 1)
        assert writer.take() == b"+OK\r\n"
        assert each.hit(reader, "GET", "k") == b""


class TestEverything:
    async def test_flushed_by_somebody_else(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client, GET, R("EXISTS", "x"))
        each.redis.direct("FLUSHALL")
        await each.settle()
        assert each.hit(client, "GET", "k") == each.hit(client, "EXISTS", "x") == b""
        await each.settle()
        assert client.take() == b"$-1\r\n:0\r\n"
        assert FLUSHED.startswith(b">2")

    async def test_flushed_while_a_fetch_is_under_way(self, each: Race) -> None:
        client = await each.ready()
        client.feed(GET)
        home = each.home(client)
        await each.run(home)
        each.redis.direct("FLUSHALL")
        home.owed.insert(0, home.owed.pop())
        await each.settle()
        assert client.take() == OLD
        assert each.hit(client, "GET", "k") == b""

    @pytest.mark.parametrize("command", [R("FLUSHALL"), R("SWAPDB", 0, 1)])
    @pytest.mark.parametrize("transaction", [False, True])
    async def test_by_a_client_of_ours(self, each: Race, command: bytes, transaction: bool) -> None:
        writer, reader = await each.ready(), await each.ready(user="other")
        await warm(each, reader)
        if transaction:
            writer.feed(R("MULTI"), command, R("EXEC"))
        else:
            writer.feed(command)
        await turn()
        assert each.hit(reader, "GET", "k") == b"", "gone when it is sent"
        await warm(each_theirs(each, each.home(reader)), reader)
        link = each.pinned(writer) if transaction else each.home(writer)
        each.redis.work(link)
        await each.deliver(link)
        if not transaction and not writer.got:  # it waits for the other links
            await each.run(each.home(reader))
            await each.deliver(each.home(reader))
            await each.settle()
        assert writer.take().endswith(b"+OK\r\n")
        assert each.hit(reader, "GET", "k") == b""
        await each.settle()
        assert reader.take() == b"$-1\r\n"

    async def test_swapped_on_a_connection_that_subscribes(self, each: Race) -> None:
        """SWAPDB is not pushed: no fence helps."""
        client, reader = await each.ready(protocol=3), await each.ready()
        client.feed(R("SUBSCRIBE", "c"))
        await each.settle()
        await warm(each, reader)
        client.take()
        client.feed(R("SWAPDB", 0, 1))
        await turn()
        await warm(each_theirs(each, each.home(reader)), reader)
        await each.settle()
        assert client.take() == b"+OK\r\n"
        assert each.hit(reader, "GET", "k") == b""


# --- the link


class TestALostLink:
    async def test_empties_the_shelf_before_anybody_hears_of_it(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        await warm(each, client)
        other.feed(R("SET", "x", "1"))
        await turn()
        seen: list[int] = []
        write = other.session.write
        other.session.write = other.session.relay = lambda data: (seen.append(each.tier.entries), write(data))
        each.redis.open.clear()
        each.home(client).lose()
        assert seen == [0]
        assert b"outcome unknown" in other.take()
        assert each.hit(client, "GET", "k") == b""
        each.redis.direct("SET", "k", "new")
        each.redis.open.set()
        await each.settle()
        assert client.take() == NEW

    async def test_nothing_of_the_old_connection_is_kept(self, each: Race) -> None:
        client = await each.ready()
        client.feed(GET)
        await each.run(each.home(client))
        await each.deliver(each.home(client), 1)  # its reply to PTTL, or to CLIENT CACHING
        each.home(client).lose()
        await each.settle()
        assert client.take() == OLD, "the rest is asked again"
        assert not each.tier.entries
        await warm(each, client)

    async def test_nothing_is_served_before_the_new_one_is_tracked(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        each.home(client).lose()
        await turn()
        each.vouch(client)
        client.feed(GET, GET)
        await turn()
        home = each.home(client)
        assert home.requests[1 if home.requests[0][2] == b"OFF" else 0][:3] == [b"CLIENT", b"TRACKING", b"ON"]
        await each.settle()
        assert client.take() == OLD + OLD

    async def test_a_push_cut_off_does_not_harm_the_reply_behind_it(self, each: Race) -> None:
        client = await each.ready()
        client.feed(R("HGETALL", "h"))
        await turn()
        each.home(client).reply(push(b"k")[:-3])
        each.home(client).lose()
        await each.settle()
        assert client.take() == b"*0\r\n"

    @pytest.mark.parametrize("cut", [False, True])
    async def test_reads_are_repeated_and_writes_answered(self, each: Race, cut: bool) -> None:
        reader, writer, both = await each.ready(), await each.ready(), await each.ready()
        reader.feed(R("INCR", "n"))
        await each.settle()
        reader.take()
        reader.feed(GET, R("HGETALL", "h"), R("STRLEN", "k"))
        writer.feed(R("SET", "k", "new"))
        both.feed(R("EXISTS", "x") + R("SET", "x", "1") + R("EXISTS", "x"), R("ZMSCORE", "z", "0"))
        await turn()
        if cut:
            each.home(reader).reply(b"+OK\r\n" * (each.home(reader).state["tracks"] == "optin") + b":-1\r\n$30\r\nhalf")
        each.home(reader).lose()
        lost = both.take()
        assert lost.count(b"\r\n") == 4 and lost.count(b"outcome unknown") == 1
        assert lost.split(b"\r\n")[1].find(b"outcome unknown") > 0
        assert b"outcome unknown" in writer.take()
        await each.settle()
        got = reader.take()
        assert got == (b"" if cut else OLD) + b"*0\r\n" + b":3\r\n" or (cut and b"in the middle of a reply" in got)
        for client in (reader, writer, both):
            assert await each.ask(client, "GET", "k") in (OLD, NEW)

    async def test_several_who_wait_for_one_fetch_keep_their_order(self, each: Race) -> None:
        """One of them has a write behind it: all of hers is answered, and so is all of those who wait with her."""
        one, two, three = [await each.ready() for _ in range(3)]
        one.feed(GET)
        two.feed(GET, R("SET", "x", "1"))
        one.feed(R("EXISTS", "x"))
        three.feed(R("EXISTS", "y"))
        await turn()
        each.home(one).lose()
        await each.settle()
        first, second = one.take(), two.take()
        assert first.count(b"\r\n") == 2 and first.startswith(b"-ERR pannier")
        assert second.count(b"\r\n") == 2 and b"outcome unknown" in second.split(b"\r\n")[1] and b"unknown" not in second.split(b"\r\n")[0]
        assert three.take() == b":0\r\n"
        assert await each.ask(one, "GET", "k") == await each.ask(two, "GET", "k") == OLD

    async def test_a_fetch_given_up_takes_what_its_waiters_asked_before_with_it(self, each: Race) -> None:
        one, two = await each.ready(), await each.ready()
        odd = R("gEt", "k")
        one.feed(R("EXISTS", "k"), odd)
        two.feed(odd, R("SET", "x", "1"))
        await turn()
        assert each.home(one).requests.count([b"gEt", b"k"]) == 1
        each.home(one).lose()
        await each.settle()
        got = one.take()
        assert got.count(b"\r\n") == got.count(b"-ERR") == 2, "in the order in which they were asked"
        assert b"outcome unknown" in two.take()

    async def test_who_waits_for_reads_only_gets_them_in_order(self, each: Race) -> None:
        one, two = await each.ready(), await each.ready(protocol=3)
        one.feed(GET)
        two.feed(GET, R("HGETALL", "h"), R("EXISTS", "k") + R("EXISTS", "x"))
        one.feed(R("ZMSCORE", "z", "0"), R("EXISTS", "k"))
        home = each.home(one)
        await each.run(home, 2)
        await each.deliver(home, 2)
        home.lose()
        await each.settle(piece=2)
        assert one.take() == OLD + b"*1\r\n$-1\r\n" + b":1\r\n"
        assert two.take() == OLD + b"%0\r\n" + b":1\r\n:0\r\n"

    async def test_a_script_answered_but_not_fenced(self, each: Race) -> None:
        client = await each.ready()
        client.feed(R("EVAL", "SET k new", 0))
        home = each.home(client)
        await each.run(home, 1)
        await each.deliver(home, 1)
        home.lose()
        await each.settle()
        assert client.take() == b"+OK\r\n"


class TestTheGate:
    async def test_a_silent_link_vouches_for_nothing(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        each.clock.now += 2.9
        assert each.hit(client, "GET", "k") == OLD
        each.redis.direct("SET", "k", "new")
        each.clock.now += 0.2
        assert each.hit(client, "GET", "k") == b""
        await each.settle()
        assert client.take() == NEW

    async def test_until_it_is_heard_from_again(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        await warm(each, client)
        each.clock.now += 10
        assert not each.vouch(client)
        each.links.tick(each.clock())
        await each.settle()
        assert each.home(client).requests[-1] == [b"PING"], "a sign of life is asked for"
        assert each.vouch(client)
        assert each.hit(client, "GET", "k") == OLD
        assert not other.got

    async def test_a_sign_of_life_is_asked_for_in_time(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        for _ in range(40):
            each.clock.now += 0.25
            each.links.tick(each.clock())
            await each.settle()
        assert each.vouch(client)
        assert each.home(client).requests.count([b"PING"]) <= 10


class TestTimeToLive:
    async def test_never_past_the_keys_own_counted_from_sending(self, each: Race) -> None:
        client = await each.ready()
        each.redis.direct("SET", "k", "old", "PX", 1000)
        await each.settle()
        client.feed(GET)
        await each.run(each.home(client))
        each.clock.now += 0.6  # the reply is slow, or the request was: nobody knows
        await each.settle()
        assert client.take() == OLD
        assert each.hit(client, "GET", "k") == OLD
        each.clock.now += 0.4
        assert each.hit(client, "GET", "k") == b""
        await each.settle()
        assert client.take() == b"$-1\r\n"

    async def test_gone_before_the_reply_came(self, each: Race) -> None:
        client = await each.ready()
        each.redis.direct("SET", "k", "old", "PX", 1000)
        client.feed(GET)
        await each.run(each.home(client))
        each.clock.now += 1.5
        await each.settle()
        assert client.take() == OLD
        assert not each.tier.entries and not each.shelf(client).index

    async def test_bounded_by_l1_ttl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, l1_ttl=1.0)
        race.redis.direct("SET", "k", "old")
        client = await race.ready()
        await warm(race, client)
        race.clock.now += 1.0
        assert race.hit(client, "GET", "k") == b""
        await race.close()


# --- pipelines partly in memory


class TestMosaic:
    PIPELINE = GET + R("GET", "a") + GET + R("GET", "miss")

    async def test_is_put_together(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client, GET, R("GET", "a"))
        before = len(each.home(client).requests)
        client.feed(self.PIPELINE)
        await each.settle(piece=1)
        assert client.take() == OLD + b"$-1\r\n" + OLD + b"$-1\r\n"
        assert [b"GET", b"k"] not in each.home(client).requests[before:]

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_all_is_read_again_after_an_invalidation(self, in_band: Race, protocol: int) -> None:
        client = await in_band.ready(protocol=protocol)
        await warm(in_band, client, GET, R("GET", "a"))
        client.feed(self.PIPELINE)
        in_band.redis.direct("SET", "k", "new")
        client.feed(R("GET", "k"))
        await in_band.settle(piece=1)
        null = b"$-1\r\n" if protocol == 2 else b"_\r\n"
        assert client.take() == NEW + null + NEW + null + NEW

    async def test_and_after_an_own_write_over_another_link(self, in_band: Race) -> None:
        client, writer = await in_band.ready(), await in_band.ready()
        writer.feed(R("MULTI"))
        await in_band.settle()
        await warm(in_band, client, GET, R("GET", "a"))
        client.feed(self.PIPELINE)
        writer.feed(R("SET", "k", "new"), R("EXEC"))
        await in_band.settle()
        assert client.take() == NEW + b"$-1\r\n" + NEW + b"$-1\r\n"

    async def test_refilled_meanwhile_is_not_what_it_was(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        await warm(each, client, GET, R("GET", "a"))
        other.feed(R("SET", "k", "new"), GET)
        await turn()
        await warm(each_theirs(each, each.home(client)), client)
        client.feed(self.PIPELINE)
        await each.settle()
        assert client.take() == NEW + b"$-1\r\n" + NEW + b"$-1\r\n"

    async def test_what_follows_waits(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client, GET, R("GET", "a"))
        client.feed(self.PIPELINE, R("SET", "k", "new"), GET)
        assert [b"SET", b"k", b"new"] not in each.home(client).requests
        await each.settle(piece=1)
        assert client.take() == OLD + b"$-1\r\n" + OLD + b"$-1\r\n" + b"+OK\r\n" + NEW

    @pytest.mark.parametrize("at", [0, 1])
    async def test_the_link_is_lost_meanwhile(self, in_band: Race, at: int) -> None:
        client = await in_band.ready()
        await warm(in_band, client, GET, R("GET", "a"))
        client.feed(self.PIPELINE)
        await turn()
        home = in_band.home(client)
        home.reply(b"$10\r\nha" * at)
        in_band.redis.direct("SET", "k", "new")
        home.lose()
        await in_band.settle()
        assert client.take() == NEW + b"$-1\r\n" + NEW + b"$-1\r\n"

    async def test_an_entrys_time_is_over_meanwhile(self, each: Race) -> None:
        """The reply behind it is of a time when the key was gone: so must be what stands before it."""
        client = await each.ready()
        each.redis.direct("SET", "k", "old", "PX", 1000)
        await warm(each, client, GET, R("GET", "a"))
        client.feed(R("GET", "miss") + GET + R("GET", "a"))
        await turn()
        each.clock.now += 1.5
        await each.settle()
        assert client.take() == b"$-1\r\n" * 3


class TestPartialMget:
    MGET = R("MGET", "k", "miss", "a")

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_fetches_only_what_is_missing(self, in_band: Race, protocol: int) -> None:
        client = await in_band.ready(protocol=protocol)
        await warm(in_band, client, GET, R("GET", "a"))
        client.feed(self.MGET)
        await in_band.settle(piece=1)
        null = b"$-1\r\n" if protocol == 2 else b"_\r\n"
        assert client.take() == b"*3\r\n" + OLD + null + null
        assert in_band.home(client).requests[-1] == [b"MGET", b"miss"]
        assert in_band.hit(client, "GET", "miss") == null
        assert in_band.hit(client, *[b"MGET", b"k", b"miss"]) == b"*2\r\n" + OLD + null

    async def test_all_is_read_again_after_an_invalidation(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client, GET, R("GET", "a"))
        client.feed(self.MGET, GET)
        each.redis.direct("SET", "k", "new")
        await each.settle(piece=1)
        assert client.take() == b"*3\r\n" + NEW + b"$-1\r\n" + b"$-1\r\n" + NEW

    async def test_a_member_written_meanwhile_is_not_kept(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        client.feed(R("MGET", "k", "m"))
        home = each.home(client)
        await each.run(home)
        each.redis.direct("SET", "m", "1")
        home.owed.insert(0, home.owed.pop())
        await each.settle()
        assert client.take() == b"*2\r\n" + OLD + b"$-1\r\n"
        assert each.hit(client, "GET", "m") == b""

    async def test_a_member_that_is_no_string_is_not_kept_as_get(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        each.redis.direct("HSET", "h", "f", "v")
        client.feed(R("MGET", "k", "h"))
        other.feed(R("GET", "h"))
        await each.settle()
        assert client.take() == b"*2\r\n" + OLD + b"$-1\r\n"
        assert other.take().startswith(b"-WRONGTYPE"), "not joined: GET answers otherwise"
        assert (await each.ask(client, "GET", "h")).startswith(b"-WRONGTYPE")

    async def test_an_entrys_time_is_over_meanwhile(self, each: Race) -> None:
        client = await each.ready()
        each.redis.direct("SET", "k", "old", "PX", 1000)
        await warm(each, client)
        client.feed(R("MGET", "miss", "k"))
        await turn()
        each.clock.now += 1.5
        await each.settle()
        assert client.take() == b"*2\r\n$-1\r\n$-1\r\n"

    @pytest.mark.parametrize("at", [0, 1])
    async def test_the_link_is_lost_meanwhile(self, in_band: Race, at: int) -> None:
        client = await in_band.ready()
        await warm(in_band, client, GET, R("GET", "a"))
        client.feed(self.MGET)
        await turn()
        home = in_band.home(client)
        in_band.redis.direct("SET", "k", "new")
        home.reply(b"*1\r\n" * at)
        home.lose()
        await in_band.settle()
        if at and client.got.startswith(b"-"):
            return
        assert client.take() == b"*3\r\n" + NEW + b"$-1\r\n" + b"$-1\r\n"

    async def test_refused(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        each.redis.denied = {b"MGET"}
        assert (await each.ask(client, "MGET", "k", "m")).startswith(b"-NOPERM")
        each.redis.denied = {b"PTTL"}
        assert await each.ask(client, "MGET", "k", "m") == b"*2\r\n" + OLD + b"$-1\r\n"
        assert each.hit(client, "GET", "m") == b""


# --- BCAST


class TestBroadcast:
    """A reply may show a change before its push: what it shows must drop what others show of the same keys."""

    async def seen_before_the_push(self, loose: Race, ask: bytes, then: bytes, client: Client | None = None) -> bytes:
        """What `then` gets from memory after the reply to `ask` has shown a change whose push is to come."""
        client = client or await loose.ready()
        home = loose.home(client)
        loose.redis.direct("SET", "k", "x" * 100, end=False)
        client.feed(ask)
        await turn()
        loose.redis.work(home, end=False)
        await loose.deliver(home)
        for _ in range(3):  # what is read again
            await turn()
            loose.redis.work(home, end=False)
            await loose.deliver(home)
        self.shown = client.take()
        assert self.shown
        client.feed(then)
        return client.take()

    async def test_a_fetch(self, loose: Race) -> None:
        client = await loose.ready()
        await warm(loose, client, R("STRLEN", "k"))
        assert await self.seen_before_the_push(loose, GET, R("STRLEN", "k"), client) == b""

    async def test_a_read_that_passes_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tracking="bcast", admit_after=2)
        race.redis.direct("SET", "k", "old")
        client = await race.ready()
        client.feed(R("STRLEN", "k"))
        await race.settle()
        client.feed(R("STRLEN", "k"))
        await race.settle()
        client.take()
        assert race.hit(client, "STRLEN", "k") == b":3\r\n"
        assert await self.seen_before_the_push(race, GET, R("STRLEN", "k"), client) == b""
        await race.close()

    async def test_a_parsed_read_that_passes_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tracking="bcast", admit_after=2)
        race.redis.direct("SET", "k", "old")
        client = await race.ready()
        for _ in range(2):
            await race.ask(client, "STRLEN", "k")
        assert race.hit(client, "STRLEN", "k") == b":3\r\n"
        assert await self.seen_before_the_push(race, R("INCR", "n") + GET, R("STRLEN", "k"), client) == b""
        await race.close()

    async def test_a_read_too_long_to_keep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tracking="bcast", max_value_size=16)
        race.redis.direct("SET", "k", "old")
        client = await race.ready()
        await warm(race, client, R("STRLEN", "k"))
        assert await self.seen_before_the_push(race, GET, R("STRLEN", "k"), client) == b""
        await race.close()

    @pytest.mark.parametrize(
        "ask",
        [R("GET", "k") + R("GET", "p") + R("GET", "q"), R("GET", "p") + R("INCR", "n") + R("GET", "k"), R("INCR", "n") + GET, R("MGET", "p", "k"), R("EXISTS", "p", "k", "q", "k"), R("INCR", "n") + b"GET k\r\n"],
        ids=["pipeline", "mixed", "behind a write", "mget", "many keys", "inline"],
    )
    async def test_a_command_that_shows_more(self, loose: Race, ask: bytes) -> None:
        client = await loose.ready()
        await warm(loose, client, R("STRLEN", "k"))
        assert await self.seen_before_the_push(loose, ask, R("STRLEN", "k"), client) == b""

    async def test_a_pipeline_read_again(self, loose: Race) -> None:
        client = await loose.ready()
        await warm(loose, client, GET, R("GET", "a"), R("GET", "b"))
        loose.redis.direct("SET", "a", "1")
        ask = GET + R("GET", "a") + R("GET", "b") + R("GET", "miss")
        then = await self.seen_before_the_push(loose, ask, GET, client)
        assert self.shown.startswith(then)  # nothing, or what was shown first

    async def test_an_mget_read_again(self, loose: Race) -> None:
        client = await loose.ready()
        await warm(loose, client, GET, R("GET", "a"), R("GET", "b"))
        loose.redis.direct("SET", "a", "1")
        ask = R("MGET", "k", "a", "b", "miss")
        assert await self.seen_before_the_push(loose, ask, GET, client) in (b"", b"$100\r\n" + b"x" * 100 + b"\r\n")

    async def test_a_reply_that_changes_its_shape(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tracking="bcast", admit_after=2)
        race.redis.direct("HSET", "h", "f", "old")
        client = await race.ready()
        for _ in range(2):
            await race.ask(client, "HGET", "h", "f")
        assert race.hit(client, "HGET", "h", "f") == OLD
        race.redis.direct("HSET", "h", "f", "new", end=False)
        client.feed(R("HGETALL", "h"))
        await turn()
        race.redis.work(race.home(client), end=False)
        await race.deliver(race.home(client))
        assert client.take() == b"*2\r\n$1\r\nf\r\n" + NEW
        assert race.hit(client, "HGET", "h", "f") == b""
        await race.close()

    async def test_a_session_that_came_before_tracking_was_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tracking="bcast")
        race.redis.direct("SET", "k", "old")
        client = race.client()
        await turn()
        assert await race.ask(client, "GET", "x")  # taken while CLIENT TRACKING is under way
        race.vouch(client)
        await warm(race, client)
        home = race.home(client)
        race.redis.direct("SET", "k", "new", end=False)
        client.feed(R("INCR", "n"), GET)
        await turn()
        race.redis.work(home, end=False)
        await race.deliver(home)
        assert client.take() == b":1\r\n" + NEW
        client.feed(GET)
        assert client.take() in (b"", NEW)
        await race.close()

    async def test_a_script(self, loose: Race) -> None:
        writer, reader = await loose.ready(), await loose.ready()
        await warm(loose, reader)
        writer.feed(EVAL)
        await turn()
        loose.redis.work(loose.home(writer), end=False)
        await loose.deliver(loose.home(writer))
        assert writer.take() == b"+OK\r\n"
        assert loose.hit(reader, "GET", "k") == b""


    async def test_a_fence_waits_for_the_end_of_redis_turn(self, loose: Race) -> None:
        """A PING of the same turn is answered before the broadcast."""
        client, reader = await loose.ready(protocol=3), await loose.ready()
        await warm(loose, reader)
        client.feed(R("SUBSCRIBE", "c"))
        await loose.settle()
        client.take()
        own, home = loose.pinned(client), loose.home(reader)
        loose.redis.direct("SET", "k", "new", end=False)
        client.feed(GET)
        await turn()
        loose.redis.work(own, end=False)
        await loose.deliver(own)
        await loose.run(home, end=False)
        await loose.deliver(home)
        assert client.take() == b""
        await loose.settle()
        assert client.take() == NEW
        assert loose.hit(reader, "GET", "k") == b""


# --- the user's own wish


class TestBypass:
    async def test_reads_go_to_redis(self, each: Race) -> None:
        client = await each.ready()
        await warm(each, client)
        assert each.hit(client, "SIDECAR", "BYPASS", "ON") == b"+OK\r\n"
        for _ in range(3):
            assert each.hit(client, "GET", "k") == b""
            await each.settle()
            assert client.take() == OLD
        client.feed(R("MGET", "k", "k"), GET + GET)
        assert client.take() == b""
        await each.settle()
        client.take()
        assert each.hit(client, "SIDECAR", "BYPASS", "OFF") == b"+OK\r\n"
        await warm(each, client)
        assert each.hit(client, "GET", "k") == OLD

    async def test_of_one_connection_only(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        await warm(each, other)
        each.hit(client, "SIDECAR", "BYPASS", "ON")
        assert each.hit(other, "GET", "k") == OLD

    async def test_its_writes_drop_all_the_same(self, each: Race) -> None:
        client, other = await each.ready(), await each.ready()
        await warm(each, other)
        each.hit(client, "SIDECAR", "BYPASS", "ON")
        client.feed(R("SET", "k", "new"))
        assert each.hit(other, "GET", "k") == b""


# --- pipelines that are looked up in vain


class TestStrikes:
    """After some pipelines with a write in them, of which memory could save nothing, the next are not looked up."""

    PIPELINE = R("SET", "other", "x") + R("GET", "k") * 16
    reads = 0
    """Keys that `never` has named."""

    async def pipeline(self, race: Race, client: Client, data: bytes) -> bool:
        """Send it and take its replies; whether Redis was asked."""
        client.feed(data)
        asked = client.take() == b""
        await race.settle()
        client.take()
        return asked

    @pytest.fixture
    def most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Always skip the greatest number there may be."""
        monkeypatch.setattr("proxy.client.reading.randrange", lambda n: 0)

    @pytest.mark.usefixtures("most")
    async def test_skip_the_next_ones(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        for _ in range(5):
            assert await self.pipeline(race, client, self.PIPELINE)
            assert not client.session.skip_chunks
        assert await self.pipeline(race, client, self.PIPELINE)
        for _ in range(3):
            assert await self.pipeline(race, client, R("GET", "k") * 16), "not looked up"
        assert not await self.pipeline(race, client, R("GET", "k") * 16), "looked up again"

    @pytest.mark.usefixtures("most")
    async def test_skip_more_each_time_it_was_in_vain_again(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        for _ in range(6):
            await self.pipeline(race, client, self.PIPELINE)
        skipped = []
        for _ in range(6):
            skipped.append(client.session.skip_chunks)
            for _ in range(client.session.skip_chunks + 1):
                assert await self.pipeline(race, client, self.PIPELINE)
        assert skipped == [3, 7, 15, 31, 63, 63]
        for _ in range(client.session.skip_chunks):
            assert await self.pipeline(race, client, R("GET", "k") * 16), "not looked up"
        for _ in range(6):
            assert not await self.pipeline(race, client, R("GET", "k") * 17)
        for _ in range(5):
            await self.pipeline(race, client, self.PIPELINE)
            assert not client.session.skip_chunks
        await self.pipeline(race, client, self.PIPELINE)
        assert client.session.skip_chunks == 3, "it has been of use in between"

    @pytest.mark.parametrize(("reads", "mixed"), [(2, 3), (2, 4), (3, 4), (4, 4), (8, 16)])
    async def test_none_while_half_of_them_as_long_hit(self, race: Race, reads: int, mixed: int) -> None:
        client = await race.ready()
        await warm(race, client)
        for _ in range(100):
            assert not await self.pipeline(race, client, R("GET", "k") * reads)
            assert await self.pipeline(race, client, R("SET", "other", "x") + R("GET", "k") * (mixed - 1))

    @pytest.mark.parametrize("others", [1, 2, 3])
    async def test_end_when_it_would_be_of_use_whatever_comes_by_turns(self, race: Race, others: int) -> None:
        """Counted from one look-up to the next, it is not always a pipeline of the same kind."""
        client = await race.ready()
        for _ in range(40):
            await self.pipeline(race, client, self.PIPELINE)
        assert client.session.skip_next > 3
        client.feed(R("GET", "k"))
        await race.settle()
        assert client.take() == OLD
        client.session.skip(63)
        for _ in range(10_000):
            if not await self.pipeline(race, client, R("GET", "k") * 16):
                return
            for _ in range(others):
                await self.pipeline(race, client, self.PIPELINE)
        pytest.fail("never looked up again")

    async def test_none_while_others_hit(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        for _ in range(20):
            assert await self.pipeline(race, client, self.PIPELINE)
            assert not await self.pipeline(race, client, R("GET", "k") * 17)
        assert not client.session.skip_chunks

    def never(self, n: int) -> bytes:
        """Reads of keys that nobody has read before."""
        self.reads += n
        return b"".join([R("GET", f"never{self.reads - each}") for each in range(n)])

    async def full(self, race: Race) -> Client:
        """A client of a memory in which there is room for `k` alone, and that lets in what is read twice."""
        client = await race.ready()
        await warm(race, client)
        budget = client.session.shelf.budget
        budget.max_entries, budget.door.open = 1, False
        return client

    @pytest.mark.usefixtures("most")
    @pytest.mark.parametrize("n", [2, 4, 16])
    async def test_are_reads_of_which_nothing_is_there_while_memory_is_full(self, race: Race, n: int) -> None:
        client = await self.full(race)
        for _ in range(6):
            assert not client.session.skip_chunks
            assert await self.pipeline(race, client, self.never(n))
        assert client.session.skip_chunks == 3

    async def test_are_none_where_others_are_read_than_before(self, race: Race) -> None:
        """Memory is full of what was read until now: what is read again and again from now on is to come in."""
        client = await self.full(race)
        reads = [self.never(4) for _ in range(3)]
        for again in range(12):
            for each in reads:
                await self.pipeline(race, client, each)
            if again:
                assert not client.session.skip_chunks

    @pytest.mark.usefixtures("most")
    async def test_of_reads_are_fewer(self, race: Race) -> None:
        client = await self.full(race)
        skipped = set()
        for _ in range(200):
            await self.pipeline(race, client, self.never(4))
            skipped.add(client.session.skip_chunks)
        assert max(skipped) == 31

    async def test_are_none_while_there_is_room_for_what_is_read(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        for _ in range(50):
            assert await self.pipeline(race, client, self.never(4))
        assert not client.session.skip_chunks

    async def test_are_none_where_some_of_all_pipelines_are_there(self, race: Race) -> None:
        """One read in two is, so that none is without Redis: what is there saves it half of the work."""
        client = await self.full(race)
        for _ in range(50):
            assert await self.pipeline(race, client, R("GET", "k") + self.never(1))
            assert await self.pipeline(race, client, self.never(2))
            assert await self.pipeline(race, client, R("GET", "k") + self.never(1))
        assert not client.session.skip_chunks

    @pytest.mark.parametrize("reads", [1, 16])
    async def test_single_reads_are_looked_up_all_the_same(self, race: Race, reads: int) -> None:
        client = await race.ready()
        await warm(race, client)
        for _ in range(20):
            await self.pipeline(race, client, R("SET", "other", "x") + R("GET", "k") * reads)
        assert client.session.skip_chunks
        assert race.hit(client, "GET", "k") == OLD


# --- frames


class TestFrames:
    async def test_a_value_that_looks_like_a_command_is_not_one(self, race: Race) -> None:
        """Nothing but what clients ask for and the sidecar's own questions may reach Redis."""
        client = await race.ready()
        for evil in (GET + b"FLUSHALL\r\n", GET, GET[:-2], b"x" + GET, b"*" + GET + b"*"):
            client.feed(R("GET", "x") + R("SET", "v", evil), R("GET", "y") + R("GET", evil), R("GET", evil) + R("GET", "x"))
            client.feed(R("SET", "v", evil) + R("GET", "z"))
            await turn()
            names = {request[0] for request in race.home(client).requests if request}
            assert [] not in race.home(client).requests and names <= {b"GET", b"SET", b"PTTL", b"CLIENT"}, evil
            await race.settle()
            assert client.take().count(b"+OK\r\n") == 2
            client.session.consume()

    @pytest.mark.parametrize("fields", [1, 2, 3, 4, 5])
    async def test_hmget_is_no_mget_and_is_kept(self, race: Race, fields: int) -> None:
        client = await race.ready()
        race.redis.direct("HSET", "h", "f", "v")
        request = R("HMGET", "h", *["f"] * fields)
        expected = b"*%d\r\n" % fields + b"$1\r\nv\r\n" * fields
        for _ in range(2):
            client.feed(request)
            await race.settle()
            assert client.take() == expected
        client.feed(request)
        assert client.take() == expected, "from memory"
