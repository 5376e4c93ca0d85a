"""Redis away, race by race: what may be served stale, and that nothing stale survives (see `test_races`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.resp.errors import UpstreamLost, UpstreamRefused
from proxy.upstream.shared import LinkState
from tests.client.linked import Client, turn
from tests.tier.racing import Race
from tests.tier.test_races import GET, NEW, OLD, R, warm

REFUSED = UpstreamLost("ERR pannier: upstream redis://h is unreachable: Connection refused")
PONG = b"+PONG\r\n"


@pytest.fixture(params=["optin", "default", "bcast"])
async def race(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """In each mode of tracking."""
    race = Race(monkeypatch, on_upstream_down="stale", stale_max=60.0, breaker_failures=0)
    race.redis.refused = {"optin", "default"} if request.param == "bcast" else {"optin"} if request.param == "default" else set()
    race.redis.direct("SET", "k", "old")
    yield race
    race.redis.failure = None
    await race.close()


async def lose(race: Race, client: Client) -> None:
    """Have Redis die: connections break and none can be made."""
    race.redis.failure = REFUSED
    race.home(client).lose()
    await turn()
    assert client.session.home.state is LinkState.DOWN


async def silence(race: Race, client: Client) -> None:
    """Have Redis owe the answer to a heartbeat until the gate is closed."""
    race.clock.now += 1.1
    race.links.tick(race.clock())
    await turn()
    race.clock.now += 2.0
    client.session.home.fall_silent()
    assert client.session.home.state is LinkState.SILENT


class TestALostLink:
    async def test_what_is_kept_is_served_everything_else_refused_at_once(self, race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
        client = await race.ready()
        await warm(race, client)
        await lose(race, client)
        for _ in range(3):
            assert race.hit(client, "GET", "k") == OLD
        for command in ("GET other", "SET k new", "MGET k other", "EVAL x 0", "FLUSHALL", "SWAPDB 0 1", "DEL k", "HGETALL h"):
            assert race.hit(client, *command.split()) == REFUSED.reply, command
        monkeypatch.setattr("proxy.upstream.pool.open_link", None)
        for command in ("NOSUCH", "MULTI", "BLPOP l 0", "SUBSCRIBE c"):
            client.feed(R(*command.split()))
            await turn(3)
            assert client.take() == REFUSED.reply, command
        assert race.hit(client, "MGET", "k", "k") == b"*2\r\n" + OLD * 2
        assert race.hit(client, "GET", "k") == OLD, "what was refused has changed nothing"
        assert race.hit(client, "PING") == PONG
        assert race.hit(client, "PING", "x") == b"$1\r\nx\r\n"

    async def test_a_pipeline_gets_what_is_there_and_errors_for_the_rest_in_order(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await lose(race, client)
        error = REFUSED.reply
        client.feed(GET + R("SET", "k", 1) + GET + R("GET", "x") + R("PING") + R("INCR", "k") + GET)
        assert client.take() == OLD + error + OLD + error + PONG + error + OLD
        client.feed(R("GET", "a") + R("GET", "b") + R("GET", "c") + GET)
        assert client.take() == error * 3 + OLD

    @pytest.mark.parametrize("chunks", [1, 2, 3])
    async def test_a_session_that_was_not_to_look_up_its_pipelines_does(self, race: Race, chunks: int) -> None:
        client = await race.ready()
        await warm(race, client)
        client.session.skip(chunks)
        await lose(race, client)
        client.feed(GET * 20)
        assert client.take() == OLD * 20

    async def test_a_client_that_wants_redis_gets_redis(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        assert race.hit(client, "SIDECAR", "BYPASS", "ON") == b"+OK\r\n"
        await lose(race, client)
        assert race.hit(client, "GET", "k") == race.hit(client, "PING") == REFUSED.reply

    async def test_for_stale_max(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await lose(race, client)
        race.clock.now += 59.9
        assert race.hit(client, "GET", "k") == OLD
        race.clock.now += 0.2
        assert race.hit(client, "GET", "k") == REFUSED.reply
        assert race.hit(client, "PING") == REFUSED.reply

    async def test_a_newcomer_is_served_too(self, race: Race) -> None:
        client = await race.ready()
        three = await race.ready(protocol=3)
        await warm(race, three)
        race.clock.now += 0.1
        assert race.hit(client, "GET", "k") == OLD
        await lose(race, client)
        new = race.client()
        for words, reply in (("CLIENT SETINFO LIB-NAME x", b"+OK\r\n"), ("CLIENT SETNAME me", b"+OK\r\n"), ("SELECT 0", b"+OK\r\n"), ("PING", PONG), ("GET k", OLD)):
            assert await race.ask(new, *words.split()) == reply, words
        hello = await race.ask(new, "HELLO", 3)
        assert hello.startswith(b"%") and b"$7\r\nversion\r\n$5\r\n7.0.0" in hello
        assert race.hit(new, "GET", "k") == OLD
        assert (await race.ask(new, "SELECT", 7)).startswith(b"-ERR pannier: ")
        assert (await race.ask(new, "AUTH", "somebody", "secret")).startswith(b"-ERR pannier: ")
        assert race.hit(new, "GET", "k") == OLD

    async def test_the_shelf_of_another_database_outlives_its_last_client(self, race: Race) -> None:
        client = await race.ready()
        other = await race.ready(db=1)
        race.redis.data[1][b"k"] = b"one"
        await warm(race, other)
        await lose(race, client)
        race.home(other).lose()
        await turn()
        other.leave()
        new = race.client()
        assert await race.ask(new, "SELECT", 1) == b"+OK\r\n"
        assert race.hit(new, "GET", "k") == b"$3\r\none\r\n"

    async def test_nothing_stale_survives_the_reconnection(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await lose(race, client)
        assert race.hit(client, "GET", "k") == OLD
        race.redis.direct("SET", "k", "new")
        race.redis.failure = None
        while client.session.home.wire is None:
            await turn(1)
        assert not race.tier.entries, "before Redis has answered anything"
        assert race.hit(client, "GET", "k") == b""
        await race.settle()
        assert client.take() == NEW

    async def test_nothing_is_kept_before_the_new_connection_is_tracked(self, race: Race) -> None:
        client, other = await race.ready(), await race.ready()
        await warm(race, client)
        await lose(race, client)
        assert race.hit(client, "GET", "k") == OLD
        race.redis.failure = None
        while client.session.home.wire is None:
            await turn(1)
        client.feed(R("GET", "x"))
        await race.settle()
        client.take()
        assert not race.tier.entries
        race.redis.direct("SET", "x", "1")
        assert await race.ask(other, "GET", "x") == b"$1\r\n1\r\n"

    async def test_a_write_of_unknown_outcome_drops_its_key(self, race: Race) -> None:
        client, writer = await race.ready(), await race.ready()
        await warm(race, client)
        await warm(race, client, R("GET", "other"))
        writer.feed(R("SET", "k", "new"))
        await turn()
        await lose(race, client)
        assert b"outcome unknown" in writer.take()
        assert race.hit(client, "GET", "k") == REFUSED.reply
        assert race.hit(client, "GET", "other") == b"$-1\r\n"

    async def test_an_own_write_before_it_is_not_unseen(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        assert await race.ask(client, "SET", "k", "new") == b"+OK\r\n"
        await lose(race, client)
        assert race.hit(client, "GET", "k") == REFUSED.reply

    async def test_a_link_that_still_lives_drops_what_it_shows(self, race: Race) -> None:
        client, pinned = await race.ready(), await race.ready()
        await warm(race, client)
        await warm(race, client, R("GET", "other"))
        pinned.feed(R("MULTI"))
        await race.settle()
        await lose(race, client)
        pinned.feed(R("SET", "k", "new") + R("EXEC"))
        await race.settle()
        assert pinned.take().endswith(b"*1\r\n+OK\r\n")
        assert race.hit(client, "GET", "k") == REFUSED.reply
        assert race.hit(client, "GET", "other") == b"$-1\r\n"

    async def test_and_everything_if_nobody_can_tell_what(self, race: Race) -> None:
        client, pinned = await race.ready(), await race.ready()
        await warm(race, client)
        pinned.feed(R("MULTI"))
        await race.settle()
        await lose(race, client)
        pinned.feed(R("EVAL", "SET k new", 0) + R("EXEC"))
        await race.settle()
        assert pinned.take().endswith(b"*1\r\n+OK\r\n")
        assert race.hit(client, "GET", "k") == REFUSED.reply

    async def test_an_identity_that_redis_refuses_reads_no_more(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await lose(race, client)
        race.redis.failure = UpstreamRefused("LOADING Redis is loading the dataset in memory")
        await turn(50)
        assert race.hit(client, "GET", "k") == OLD
        race.redis.failure = UpstreamRefused("WRONGPASS invalid username-password pair or user is disabled.")
        await turn(50)
        assert race.hit(client, "GET", "k").startswith(b"-WRONGPASS")

    async def test_commands_are_held_for_a_moment_only(self, race: Race) -> None:
        client, writer = await race.ready(), await race.ready()
        await warm(race, client)
        race.redis.open.clear()
        race.home(client).lose()
        await turn()
        link = client.session.home
        assert link.state is LinkState.CONNECTING
        writer.feed(R("SET", "x", 1))
        assert race.hit(client, "GET", "k") == OLD
        link._lose_patience(link.reconnects - 1)
        assert link.state is LinkState.CONNECTING, "of an earlier loss"
        link._lose_patience(link.reconnects)
        assert writer.take() == b"-ERR pannier: upstream redis://localhost:6379/0 closed the connection\r\n"
        assert race.hit(client, "GET", "k") == OLD
        race.redis.open.set()


class TestASilentLink:
    async def test_serves_refuses_and_is_fresh_again_less_what_changed(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await warm(race, client, R("GET", "other"))
        await silence(race, client)
        assert race.hit(client, "GET", "k") == OLD
        assert b"has not answered for 3 s" in race.hit(client, "SET", "k", "x")
        assert b"has not answered for 3 s" in race.hit(client, "GET", "none")
        assert race.hit(client, "PING") == PONG
        race.redis.direct("SET", "k", "new")
        await race.settle()
        assert client.session.home.state is LinkState.READY
        assert race.shelf(client).stale.since is None
        assert race.hit(client, "GET", "k") == b""
        await race.settle()
        assert client.take() == NEW
        assert race.hit(client, "GET", "other") == b"$-1\r\n"

    async def test_is_not_fresh_on_a_late_answer_alone(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await silence(race, client)
        race.clock.now += 5.0
        home = race.home(client)
        await race.run(home)
        await race.deliver(home)
        assert client.session.home.state is LinkState.SILENT, "that was asked too long ago"
        assert race.hit(client, "GET", "k") == OLD and race.shelf(client).stale.since is not None
        await race.settle()
        assert client.session.home.state is LinkState.READY and race.shelf(client).stale.since is None

    async def test_the_order_of_replies_holds(self, race: Race) -> None:
        client, other = await race.ready(), await race.ready()
        await warm(race, client)
        client.feed(R("HGETALL", "h"), R("INCR", "n"))
        await turn()
        await silence(race, other)
        client.feed(GET, R("INCR", "n"))
        assert client.take() == b"", "they wait behind the first"
        assert race.hit(other, "GET", "k") == OLD
        assert b"has not answered" in race.hit(other, "INCR", "n")
        await race.settle()
        assert client.take() == b"*0\r\n:1\r\n" + OLD + b":2\r\n"
        assert await race.ask(other, "INCR", "n") == b":3\r\n"

    async def test_what_was_under_way_is_not_joined_nor_kept(self, race: Race) -> None:
        client, other = await race.ready(), await race.ready()
        await warm(race, client)
        client.feed(R("GET", "x"))
        await turn()
        await silence(race, other)
        race.vouch(other)
        assert b"has not answered" in race.hit(other, "GET", "x")
        await race.settle()
        assert client.take() == b"$-1\r\n"
        assert race.tier.entries == 1

    async def test_then_lost_is_emptied_on_reconnecting(self, race: Race) -> None:
        client = await race.ready()
        await warm(race, client)
        await silence(race, client)
        assert race.hit(client, "GET", "k") == OLD
        race.home(client).closing = False
        await lose(race, client)
        assert race.hit(client, "GET", "k") == OLD
        race.redis.direct("SET", "k", "new")
        race.redis.failure = None
        await race.settle()
        assert await race.ask(client, "GET", "k") == NEW

    async def test_no_link_is_pinned_meanwhile(self, race: Race) -> None:
        client, other = await race.ready(), await race.ready()
        await warm(race, client)
        assert b"OK" in await race.ask(other, "WATCH", "k") and await race.ask(other, "UNWATCH") == b"+OK\r\n"
        await silence(race, client)
        client.feed(R("BLPOP", "l", 0))
        await turn()
        assert b"has not answered" in client.take()

    async def test_a_fence_that_nobody_answers_empties_the_shelf(self, race: Race) -> None:
        client, pinned = await race.ready(), await race.ready()
        await warm(race, client)
        pinned.feed(R("MULTI"))
        await race.settle()
        await silence(race, client)
        assert race.hit(client, "GET", "k") == OLD
        pinned.feed(R("EVAL", "SET k new", 0) + R("EXEC"))
        await turn()
        race.redis.work(race.pinned(pinned))
        await race.deliver(race.pinned(pinned))
        assert pinned.take().endswith(b"*1\r\n+OK\r\n")
        assert b"has not answered" in race.hit(client, "GET", "k")


async def test_error_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(monkeypatch)
    race.redis.direct("SET", "k", "old")
    client = await race.ready()
    await warm(race, client)
    race.redis.failure = REFUSED
    race.home(client).lose()
    assert not race.tier.entries
    await turn()
    assert race.hit(client, "GET", "k").startswith(REFUSED.reply[:-2])
    assert race.hit(client, "PING").startswith(REFUSED.reply[:-2])
    race.redis.failure = None
    await race.close()


@pytest.mark.parametrize("mode", ["error", "stale"])
async def test_an_mget_that_is_given_up_gets_one_error(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """It asks several things of Redis, and each of them is answered with the error."""
    race = Race(monkeypatch, on_upstream_down=mode, breaker_failures=0)
    race.redis.direct("SET", "k", "old")
    client = await race.ready()
    await warm(race, client)
    client.feed(R("MGET", "k", "a", "b"))
    await turn()
    race.redis.failure = REFUSED
    race.home(client).lose()
    await turn()
    assert client.take() == REFUSED.reply
    race.redis.failure = None
    await race.settle()
    assert await race.ask(client, "GET", "k") == OLD
    await race.close()


class TestTheBreaker:
    async def test_refuses_new_links_at_once_and_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, breaker_failures=3)
        client = await race.ready()
        race.redis.failure = REFUSED
        race.home(client).lose()
        while not race.links.breaker.open:
            await turn(1)
        attempts = race.redis.attempts
        race.links.breaker.pauses(0.0)
        monkeypatch.setattr(client.session.home.breaker, "probes", lambda: None)
        client.feed(R("MULTI"))
        await turn(2)
        assert b"Connection refused (circuit breaker open for " in client.take()
        assert race.redis.attempts - attempts <= 2, "those are the shared link's own"
        other = race.client()
        assert (await race.ask(other, "SELECT", 3)).startswith(REFUSED.reply[:20])
        race.redis.failure = None
        await race.settle()
        assert not race.links.breaker.open
        assert await race.ask(client, "INCR", "n") == b":1\r\n"
        await race.close()

    async def test_a_link_that_answers_closes_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, breaker_failures=1)
        client = await race.ready()
        race.redis.failure = REFUSED
        assert (await race.ask(client, "MULTI")).startswith(REFUSED.reply[:-2])
        assert race.links.breaker.open
        race.redis.failure = None
        assert await race.ask(client, "INCR", "n") == b":1\r\n", "a connected link is not refused"
        race.links.tick(race.clock())
        await race.settle()
        assert not race.links.breaker.open
        assert await race.ask(client, "MULTI") == b"+OK\r\n"
        await race.close()

    async def test_a_silent_connection_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, breaker_failures=1)
        client = await race.ready()
        race.redis.failure = REFUSED
        client.feed(R("HGETALL", "h"))
        await turn()
        for _ in range(3):
            race.links.tick(race.clock())
            race.clock.now += 20
        assert b"did not answer within 30 s" in client.take()
        assert race.links.breaker.open and client.session.home.state is LinkState.DOWN
        race.redis.failure = None
        await race.close()
