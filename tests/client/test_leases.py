"""Leases: of all clients that miss a key one computes it, and nothing is left behind when all is done.

Redis is in memory and does what it is told step by step (`tests.tier.racing`). The clock stands still, so that no
lease lapses, and contests do not ask again by themselves: what is seen here is what pushes and replies do.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.client import clients as clients_module
from proxy.client import contest, leases
from proxy.client.states import State
from proxy.client.wishes import lease_key
from proxy.resp import encode
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.upstream.deleting import delete_if
from proxy.upstream.link import Identity, LinkKey
from tests.client.linked import Client, turn
from tests.tier import racing, shelves
from tests.tier.racing import ModelRedis, Race, Raw

R = encode.request
LEASE = R("SIDECAR", "LEASE", "k", 60000)
NAME = b"pannier:lease:{k}"
PATIENT = 1e6
"""Seconds between two rounds, where nothing but events is to begin one."""


class LeaseRedis(ModelRedis):
    """With SET … NX PX, and WATCH that works."""

    fills = 0
    """How often k has been set."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.granted: dict[bytes, int] = {}
        """For each token, `fills` when it became a lease."""

    def _put(self, connection: Any, key: bytes, value: Any) -> None:
        super()._put(connection, key, value)
        self.fills += key == b"k" and value is not None
        for other in [*self.connections, connection]:
            if key in other.state.get("watched", ()):
                other.state["dirty"] = True

    def _do_set(self, c: Any, key: bytes, value: bytes, *options: bytes) -> Any:
        if b"NX" in options and self._get(c, key, object) is not None:
            return None
        self._put(c, key, value)
        if key == NAME:
            self.granted[value] = self.fills
        if b"PX" in options:
            milliseconds = int(options[options.index(b"PX") + 1])
            self.expiry[c.state["db"]][key] = self.clock.now + milliseconds / 1000
        return Raw(encode.OK)

    def _do_watch(self, c: Any, *keys: bytes) -> Any:
        c.state.setdefault("watched", set()).update(keys)
        return Raw(encode.OK)

    def _do_unwatch(self, c: Any) -> Any:
        c.state.pop("watched", None)
        c.state.pop("dirty", None)
        return Raw(encode.OK)

    def _do_exec(self, c: Any) -> Any:
        dirty = c.state.get("dirty")
        self._do_unwatch(c)
        if dirty:
            c.state.pop("queue", None)
            return Raw(b"_\r\n" if c.state["protocol"] == 3 else b"*-1\r\n")
        return super()._do_exec(c)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(racing, "ModelRedis", LeaseRedis)
    monkeypatch.setattr(contest, "POLL", (PATIENT, PATIENT))
    monkeypatch.setattr(contest, "SAFETY", (PATIENT, PATIENT))
    return monkeypatch


def made(patched: pytest.MonkeyPatch, **options: Any) -> Race:
    race = Race(patched, **options)
    patched.setattr(contest, "monotonic", race.clock)
    patched.setattr(leases, "monotonic", race.clock)
    return race


@pytest.fixture
async def race(patched: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    race = made(patched)
    yield race
    await race.close()
    nothing_left(race)


@pytest.fixture(params=["optin", "default", "bcast"])
async def each(request: pytest.FixtureRequest, patched: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """In each mode of tracking."""
    race = made(patched)
    race.redis.refused = {"optin", "default"} if request.param == "bcast" else {"optin"} if request.param == "default" else set()
    yield race
    await race.close()
    nothing_left(race)


def made_two(patched: pytest.MonkeyPatch) -> list[Race]:
    """Two sidecars of one Redis."""
    first = made(patched)
    patched.setattr(racing, "ModelRedis", lambda monkeypatch, clock: first.redis)
    return [first, made(patched)]


def nothing_left(race: Race) -> None:
    """No lease is on anybody's books."""
    found = race.clients.leases
    assert not found.contests and not found.waiting and not found.held and not found.returns
    gc.collect()  # an error holds the frames it has passed
    assert not found._turns
    for shelf in race.tier.shelves.values():
        assert not shelf.watched
    for link in race.links.shared.values():
        assert link.users == sum(session.home is link for session in race.clients.sessions.values())


def hit(value: bytes) -> bytes:
    return encode.array((encode.bulk("HIT"), encode.bulk(value)))


WAIT = b"*2\r\n$4\r\nWAIT\r\n$-1\r\n"


def token(reply: bytes) -> bytes:
    head, found = b"*2\r\n$5\r\nLEASE\r\n$32\r\n", reply[-34:-2]
    assert reply == head + found + b"\r\n", reply
    return found


async def asks(race: Race, *clients: Client, request: bytes = LEASE) -> None:
    for client in clients:
        client.feed(request)
    await race.settle()


def leased(race: Race) -> bool:
    return NAME in race.redis.data[0]


class TestOneComputesAndTheOthersWait:
    async def test_the_next_set_answers_all(self, each: Race) -> None:
        race = each
        first, second, third = [await race.ready() for _ in range(3)]
        await asks(race, first, second, third)
        assert race.redis.data[0][NAME] == token(first.take())
        assert not second.take() and not third.take()
        assert second.session.state is State.WAITING
        assert await race.ask(first, "SET", "k", "v") == encode.OK
        assert second.take() == third.take() == hit(b"v")
        assert not leased(race)
        nothing_left(race)

    async def test_set_straight_in_redis(self, each: Race) -> None:
        first, second = await each.ready(), await each.ready()
        await asks(each, first, second)
        each.redis.direct("SET", "k", "v")
        await each.settle()
        assert second.take() == hit(b"v")
        assert not leased(each), "it does not hold up the next miss"
        nothing_left(each)

    async def test_even_if_nobody_waits_the_lease_ends_with_the_set(self, each: Race) -> None:
        client = await each.ready()
        await asks(each, client)
        token(client.take())
        each.redis.direct("SET", "k", "v")
        await each.settle()
        assert not leased(each)
        nothing_left(each)

    @pytest.mark.parametrize("waits", [True, False])
    async def test_a_key_that_is_deleted_at_once_holds_up_nobody(self, race: Race, waits: bool) -> None:
        """The sidecar does not see the value, but that there was one."""
        first, second = await race.ready(), await race.ready()
        await asks(race, first, *[second] * waits)
        old = token(first.take())
        first.feed(R("SET", "k", "v"))
        await turn()
        race.redis.work(race.home(first))
        race.redis.direct("DEL", "k")
        await race.settle()
        assert first.take() == encode.OK
        if not waits:
            assert not leased(race)
            second.feed(LEASE)
            await race.settle()
        assert token(second.take()) != old

    async def test_the_round_that_finds_the_value_ends_the_lease(self, race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        monkeypatch.setattr(contest.Contest, "_look", None)
        race.redis.direct("SET", "k", "v")
        await race.settle()
        assert second.take() == hit(b"v")
        assert not leased(race)

    async def test_a_push_that_comes_late_is_not_about_the_lease(self, patched: pytest.MonkeyPatch) -> None:
        """BCAST: it comes at the end of Redis' turn, in which the key was set, deleted and leased."""
        race = made(patched, tracking="bcast")
        client = await race.ready()
        client.feed(LEASE)
        home = race.home(client)
        await race.run(home)
        await race.deliver(home)
        await turn()
        race.redis.direct("SET", "k", "v", end=False)
        race.redis.direct("DEL", "k", end=False)
        await race.run(home, end=False)
        await race.deliver(home)
        old = token(client.take())
        client.feed(R("GET", "what it takes to compute"))
        race.redis.end_turn()
        await race.settle()
        await asks(race, await race.ready())
        assert race.redis.data[0][NAME] == old
        await race.close()

    async def test_a_key_of_that_name_in_another_database_is_another_key(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        old = token(first.take())
        race.redis.direct("SET", "k", "v", db=1)
        await race.settle()
        await race.ask(first, "GET", "what it takes to compute")
        third = await race.ready()
        await asks(race, third)
        assert race.redis.data[0][NAME] == old
        assert not second.take()

    async def test_with_resp3(self, race: Race) -> None:
        first, second = await race.ready(protocol=3), await race.ready()
        await asks(race, first, second)
        token(first.take())
        await asks(race, first, request=R("SIDECAR", "LEASE", "k", 9, "WAIT", 0))
        assert first.take() == b"*2\r\n$4\r\nWAIT\r\n_\r\n"
        race.redis.direct("SET", "k", "")
        await race.settle()
        assert second.take() == hit(b"")

    async def test_the_sidecar_of_another_pod_holds_the_lease(self, each: Race) -> None:
        each.redis.direct("SET", NAME, "theirs", "NX", "PX", 60000)
        client = await each.ready()
        await asks(each, client)
        assert not client.take()
        each.redis.direct("DEL", NAME)
        await each.settle()
        assert each.redis.data[0][NAME] == token(client.take())

    async def test_its_lease_lapses(self, race: Race) -> None:
        race.redis.direct("SET", NAME, "theirs", "NX", "PX", 1000)
        client = await race.ready()
        await asks(race, client)
        race.clock.now += 2
        race.redis.direct("GET", NAME)  # Redis finds that its time is over
        await race.settle()
        assert race.redis.data[0][NAME] == token(client.take())

    async def test_a_round_begins_by_the_clock_when_nobody_tells(self, race: Race) -> None:
        race.redis.direct("SET", NAME, "theirs")
        client = await race.ready()
        await asks(race, client)
        found = race.clients.leases.contests[client.session.home.key, b"k"]
        race.redis._readers.clear()  # as if tracking had lost them
        race.redis.direct("SET", "k", "v")
        await race.settle()
        assert not client.take()
        found.moved.set()  # as the clock does
        await race.settle()
        assert client.take() == hit(b"v")

    async def test_in_a_namespace(self, race: Race) -> None:
        first, second = await race.ready(namespace="acme"), await race.ready()
        await asks(race, first, second)
        assert race.redis.data[0].keys() == {b"acme:" + NAME, NAME}
        token(first.take())
        race.redis.direct("SET", "acme:k", "v")
        await race.settle()
        assert race.redis.data[0].keys() == {b"acme:k", NAME}
        assert await race.ask(first, "SIDECAR", "LEASE", "k", 60000) == hit(b"v")


class TestHits:
    async def test_from_memory(self, race: Race) -> None:
        race.redis.direct("SET", "k", "v")
        client = await race.ready()
        await race.ask(client, "GET", "k")
        sent, hits = race.home(client).sent, client.session.hits
        assert race.hit(client, "SIDECAR", "LEASE", "k", 60000) == hit(b"v")
        assert race.home(client).sent == sent
        assert client.session.hits == hits + 1

    async def test_a_nil_in_memory_is_a_miss(self, race: Race) -> None:
        client = await race.ready()
        await race.ask(client, "GET", "k")
        token(await race.ask(client, "SIDECAR", "LEASE", "k", 60000))

    async def test_fill_memory_and_write_nothing(self, race: Race) -> None:
        race.redis.direct("SET", "k", "v")
        client = await race.ready()
        assert await race.ask(client, "SIDECAR", "LEASE", "k", 60000) == hit(b"v")
        assert race.hit(client, "GET", "k") == b"$1\r\nv\r\n"
        assert not any(request[0] == b"SET" for request in race.home(client).requests)

    async def test_with_bypass_they_are_redis_own(self, race: Race) -> None:
        race.redis.direct("SET", "k", "v")
        client = await race.ready()
        await race.ask(client, "GET", "k")
        await race.ask(client, "SIDECAR", "BYPASS", "ON")
        sent = race.home(client).sent
        assert await race.ask(client, "SIDECAR", "LEASE", "k", 60000) == hit(b"v")
        assert race.home(client).sent != sent

    async def test_a_value_longer_than_is_kept(self, patched: pytest.MonkeyPatch) -> None:
        race = made(patched, max_value_size=1000)
        value = b"x" * 5000
        race.redis.direct("SET", "k", value)
        client = await race.ready()
        client.feed(LEASE)
        await race.settle(piece=700)
        assert client.take() == hit(value)
        await race.close()
        nothing_left(race)


class TestGivingBack:
    async def test_unlease(self, each: Race) -> None:
        first, second = await each.ready(), await each.ready()
        await asks(each, first, second)
        old = token(first.take())
        assert await each.ask(first, "SIDECAR", "UNLEASE", "k", old) == b":1\r\n"
        new = token(second.take())
        assert new != old
        assert await each.ask(first, "SIDECAR", "UNLEASE", "k", old) == b":0\r\n"
        assert each.redis.data[0][NAME] == new

    async def test_a_holder_that_leaves(self, each: Race) -> None:
        first, second = await each.ready(), await each.ready()
        await asks(each, first, second)
        old = token(first.take())
        first.leave()
        await each.settle()
        assert each.redis.data[0][NAME] == token(second.take()) != old
        second.leave()
        await each.settle()
        assert not leased(each)
        nothing_left(each)

    async def test_unlease_goes_on_if_the_client_leaves(self, race: Race) -> None:
        client = await race.ready()
        await asks(race, client)
        client.feed(R("SIDECAR", "UNLEASE", "k", token(client.take())))
        await turn()
        client.leave()
        await race.settle()
        assert not leased(race)
        nothing_left(race)

    async def test_a_lease_that_has_become_anothers_stays(self, race: Race) -> None:
        client = await race.ready()
        await asks(race, client)
        race.redis.direct("SET", NAME, "theirs")
        await race.settle()
        client.leave()
        await race.settle()
        assert race.redis.data[0][NAME] == b"theirs"

    async def test_and_so_does_one_that_becomes_so_meanwhile(self, race: Race) -> None:
        client = await race.ready()
        race.redis.direct("SET", NAME, "mine")
        key = LinkKey(Identity(), 0, 2)
        work = asyncio.ensure_future(delete_if(race.links, key, NAME, b"mine"))
        await turn()
        connection = race.redis.connections[-1]
        await race.run(connection, 2)
        await race.deliver(connection)
        race.redis.direct("SET", NAME, "theirs")
        await race.settle()
        assert await work == b":0\r\n"
        assert race.redis.data[0][NAME] == b"theirs"
        assert len(race.links._idle[key]) == 1, "the connection is anybody's"
        client.leave()

    @pytest.mark.parametrize("denied", [b"WATCH", b"GET", b"MULTI"])
    async def test_where_redis_refuses_the_refusal_is_the_reply(self, race: Race, denied: bytes) -> None:
        race.redis.direct("SET", NAME, "mine")
        race.redis.denied = {denied}
        client = await race.ready()
        reply = await race.ask(client, "SIDECAR", "UNLEASE", "k", "mine")
        assert reply.startswith(b"-NOPERM"), reply

    async def test_of_what_breaks_nothing_is_kept(self, race: Race) -> None:
        client = await race.ready()
        race.redis.direct("SET", NAME, "mine")
        client.feed(R("SIDECAR", "UNLEASE", "k", "mine"))
        await turn()
        race.redis.connections[-1].lose()
        await race.settle()
        assert client.take().startswith(b"-ERR pannier: upstream")
        nothing_left(race)


    async def test_there_is_an_end_to_what_one_client_may_hold(self, race: Race) -> None:
        client, other = await race.ready(), await race.ready()
        for number in range(leases.MOST_HELD):
            client.feed(R("SIDECAR", "LEASE", number, 60000))
        await race.settle()
        assert client.take().count(b"LEASE") == leases.MOST_HELD
        assert race.hit(client, "SIDECAR", "LEASE", "k", 60000).startswith(b"-ERR SIDECAR LEASE: this connection holds 1000")
        token(await race.ask(other, "SIDECAR", "LEASE", "k", 60000))
        client.leave()
        await race.settle()
        assert race.redis.data[0].keys() == {NAME}


class TestThoseWhoLeave:
    async def test_a_waiter_harms_nobody(self, race: Race) -> None:
        first, second, third = [await race.ready() for _ in range(3)]
        await asks(race, first, second, third)
        second.leave()
        await race.settle()
        race.redis.direct("SET", "k", "v")
        await race.settle()
        assert third.take() == hit(b"v")

    async def test_one_for_whom_a_lease_is_on_its_way(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        first.feed(LEASE)
        second.feed(LEASE)
        home = race.home(first)
        await race.run(home)
        await race.deliver(home)
        await race.run(home)
        assert leased(race)
        first.leave()
        await race.settle()
        assert race.redis.data[0][NAME] == token(second.take())

    async def test_one_that_is_gone_as_the_lease_comes(self, race: Race) -> None:
        """The reply is there, but the client's coroutine has not seen it."""
        client = await race.ready()
        client.feed(LEASE)
        home = race.home(client)
        await race.run(home)
        await race.deliver(home)
        await race.run(home)
        found = race.clients.leases
        home.reply(b"".join(home.owed))
        home.owed.clear()
        while not found.held:
            await asyncio.sleep(0)
        client.leave()
        await race.settle()
        assert not leased(race)
        nothing_left(race)

    async def test_one_that_sends_no_more_does_not_wait_and_does_not_compute(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        second.session.eof_received()
        await race.settle()
        assert second.take() == WAIT
        first.leave()
        await race.settle()
        assert not leased(race)
        third = await race.ready()
        third.feed(LEASE)
        third.session.eof_received()
        await race.settle()
        assert third.take() == WAIT
        nothing_left(race)

    async def test_at_the_end_of_the_sidecar_nobody_waits(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        second.session.depart()
        await race.settle()
        assert second.take() == WAIT
        assert second.transport.closing

    async def test_neither_who_waits_nor_who_computes_is_idle(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        assert clients_module._may_be_idle(first.session)
        await asks(race, first, second)
        assert not clients_module._may_be_idle(first.session)
        assert not clients_module._may_be_idle(second.session)
        await race.ask(first, "SET", "k", "v")
        assert clients_module._may_be_idle(first.session)


class TestTime:
    async def test_to_wait_is_over(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first)
        await asks(race, second, request=R("SIDECAR", "LEASE", "k", 60000, "WAIT", 1))
        while not second.got:
            await asyncio.sleep(0.001)
        assert second.take() == WAIT

    async def test_ttl_is_how_long_one_waits(self, race: Race) -> None:
        race.redis.direct("SET", NAME, "theirs")
        client = await race.ready()
        await asks(race, client, request=R("SIDECAR", "LEASE", "k", 1))
        while not client.got:
            await asyncio.sleep(0.001)
        assert client.take() == WAIT

    async def test_none(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first)
        await asks(race, second, request=R("SIDECAR", "LEASE", "k", 60000, "wait", 0))
        assert second.take() == WAIT
        token(first.take())
        race.redis.direct("SET", "k", "v")
        await race.settle()
        assert await race.ask(second, "SIDECAR", "LEASE", "k", 60000, "WAIT", 0) == hit(b"v")

    @pytest.mark.parametrize(
        "options",
        [("0",), ("-1",), ("x",), ("3600001",), ("1.5",), ("",), ("5", "WAIT"), ("5", "WAIT", "x"), ("5", "WAIT", "3600001"), ("5", "NX"), ("5", "STALE", "STALE", "WAIT")],
    )
    async def test_that_is_none(self, race: Race, options: tuple[str, ...]) -> None:
        client = await race.ready()
        reply = race.hit(client, "SIDECAR", "LEASE", "k", *options)
        assert reply.startswith(b"-ERR SIDECAR LEASE takes "), reply
        assert b"3600000" in reply or b"<ttl-ms> [WAIT <ms>] [STALE]" in reply

    async def test_too_few_words_or_too_many(self, race: Race) -> None:
        client = await race.ready()
        for words in (["LEASE", "k"], ["LEASE", "k", 1, 2, 3, 4, 5], ["UNLEASE", "k"], ["UNLEASE", "k", "t", "x"]):
            assert b"wrong number of arguments" in race.hit(client, "SIDECAR", *words)


class TestNobodyIsShownThePast:
    async def test_a_value_that_comes_between_reading_and_the_lease(self, each: Race) -> None:
        client = await each.ready()
        client.feed(LEASE)
        home = each.home(client)
        await each.run(home)
        each.redis.direct("SET", "k", "v")
        await each.settle()
        assert client.take() == hit(b"v")
        assert not leased(each)

    async def test_a_newcomer_is_not_answered_by_what_was_asked_before_it_came(self, race: Race) -> None:
        """It has seen the new value elsewhere: over a connection of its own, which is not ordered with the shared one."""
        race.redis.direct("SET", "k", "old")
        first, second = await race.ready(), await race.ready()
        await race.ask(first, "SIDECAR", "BYPASS", "ON")
        first.feed(LEASE)
        home = race.home(first)
        await race.run(home)
        race.redis.direct("SET", "k", "new")
        second.feed(LEASE)
        await turn()
        await race.settle()
        assert first.take() == hit(b"old")
        assert second.take() == hit(b"new")

    async def test_a_newcomer_is_not_told_to_compute_by_it_either(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        first.feed(LEASE)
        home = race.home(first)
        await race.run(home)
        await race.deliver(home)
        await race.run(home)
        first.leave()
        second.feed(LEASE)
        await turn()
        race.redis.direct("SET", "k", "new")
        await race.settle()
        assert second.take() == hit(b"new")
        assert not leased(race)

    async def test_replies_keep_their_order(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first)
        second.feed(R("GET", "a") + LEASE + R("GET", "b") + R("ECHO", "c"))
        await race.settle()
        assert second.take() == b"$-1\r\n"
        race.redis.direct("SET", "b", "2")
        race.redis.direct("SET", "k", "v")
        await race.settle()
        assert second.take() == hit(b"v") + b"$1\r\n2\r\n" + b"-ERR unknown command 'ECHO'\r\n"


class TestStale:
    async def test_whoever_does_not_compute_gets_the_old_value(self, race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
        part = R("GET", "k")[1:]
        monkeypatch.setattr(Shelf, "last", lambda shelf, asked: b"$3\r\nold\r\n" if asked == part else None)
        first, second, third = [await race.ready() for _ in range(3)]
        await asks(race, first, second, request=R("SIDECAR", "LEASE", "k", 60000, "STALE"))
        await asks(race, third)
        token(first.take())
        assert second.take() == b"*2\r\n$5\r\nSTALE\r\n$3\r\nold\r\n"
        assert not third.take(), "it has not asked for it"

    @pytest.mark.parametrize("last", [None, b"_\r\n", b"$-1\r\n"])
    async def test_where_there_is_none_it_waits(self, race: Race, monkeypatch: pytest.MonkeyPatch, last: bytes | None) -> None:
        monkeypatch.setattr(Shelf, "last", lambda shelf, asked: last)
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second, request=R("SIDECAR", "LEASE", "k", 60000, "STALE", "WAIT", 50000))
        assert not second.take()

    def test_a_shelf_keeps_none_unless_a_rule_wants_it(self) -> None:
        _, shelf, clock = shelves.make()
        shelves.fill(shelf, "GET", "k", lifetime=5.0)
        clock.now += 5.0
        shelf.vouch(clock.now)
        assert shelf.last(b"2\r\n$3\r\nGET\r\n$1\r\nk\r\n") is None


class TestErrors:
    async def test_a_key_of_another_type(self, race: Race) -> None:
        race.redis.direct("HSET", "k", "f", "v")
        client = await race.ready()
        assert await race.ask(client, "SIDECAR", "LEASE", "k", 60000) == racing.WRONGTYPE
        assert not leased(race)

    @pytest.mark.parametrize("denied", [b"GET", b"SET", b"PTTL"])
    async def test_are_redis_own_and_everybodys(self, race: Race, denied: bytes) -> None:
        race.redis.denied = {denied}
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        for client in (first, second):
            assert client.take() == b"-NOPERM this user has no permissions to run the '%b' command\r\n" % denied.lower()
        race.redis.denied = set()
        await race.settle()
        assert not leased(race)
        nothing_left(race)

    async def test_redis_is_away(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        token(first.take())
        race.redis.failure = ConnectionRefusedError(111, "refused")
        race.home(first).lose()
        await turn(50)
        assert second.take().startswith(b"-ERR pannier: upstream")
        await turn(50)
        first.feed(R("SIDECAR", "LEASE", "other", 60000))
        await turn(50)
        assert first.take().startswith(b"-ERR pannier: upstream")

    async def test_a_connection_that_breaks_while_a_lease_is_asked_for(self, race: Race) -> None:
        client = await race.ready()
        client.feed(LEASE)
        home = race.home(client)
        await race.run(home)
        await race.deliver(home)
        await race.run(home)
        home.owed.clear()
        home.lose()
        await race.settle()
        assert b"outcome unknown" in client.take()
        nothing_left(race)

    async def test_one_that_breaks_while_all_wait_disturbs_nobody(self, race: Race) -> None:
        first, second = await race.ready(), await race.ready()
        await asks(race, first, second)
        race.home(first).lose()
        await race.settle()
        race.redis.direct("SET", "k", "v")
        await race.settle()
        assert second.take() == hit(b"v")

    async def test_of_the_sidecars_own_release_all(
        self, race: Race, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(found: contest.Contest) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(contest.Contest, "_claim", broken)
        client = await race.ready()
        assert await race.ask(client, "SIDECAR", "LEASE", "k", 60000) == b"-ERR pannier: internal error\r\n"
        assert "internal error in the contest for a lease" in caplog.text


class TestTheKeyOfALease:
    def test_lies_in_the_same_slot(self) -> None:
        assert lease_key(b"user:1") == b"pannier:lease:{user:1}"
        assert lease_key(b"{user:1}:name") == b"pannier:lease::{user:1}:name"

    def test_is_nobody_elses(self) -> None:
        keys = [b"", b"a", b"{a}", b":a", b":{a}", b"{}a", b"{a", b"a}", b"{{a}}", b"{a}{b}", b"pannier:lease:{a}"]
        assert len({lease_key(key) for key in keys}) == len(keys)


class TestAShelfTellsWhoWatches:
    def test_of_drops_and_of_the_end_of_everything(self) -> None:
        _, shelf, _ = shelves.make()
        (mark,) = marks([key_frame(b"k")])
        told: list[bool] = []
        shelf.watched[mark] = told.append
        shelf.drop([mark])
        assert not told, "a write of one's own: Redis will tell"
        shelf.invalidate([key_frame(b"other")])
        assert not told
        shelf.invalidate([key_frame(b"other"), key_frame(b"k")])
        assert told == [True], "nothing was kept of it, and it is told"
        shelf.clear()
        shelf.link_lost()
        assert told == [True, False, False]


class TestTwoSidecars:
    async def test_of_the_clients_of_both_one_computes(self, patched: pytest.MonkeyPatch) -> None:
        both = made_two(patched)
        here, there = [await race.ready() for race in both], [await race.ready() for race in both]
        for client in (*here, *there):
            client.feed(LEASE)
        await both[0].settle()
        told = [client for client in (*here, *there) if b"LEASE" in client.got]
        assert len(told) == 1
        holder = told[0]
        old = token(holder.take())
        holder.feed(R("SET", "k", "v"))
        await both[0].settle()
        for client in (*here, *there):
            assert client.take() == (encode.OK if client is holder else hit(b"v"))
        assert not leased(both[0]) and both[0].redis.granted.keys() == {old}  # type: ignore[attr-defined]
        for race in both:
            await race.close()
            nothing_left(race)

    async def test_if_the_sidecar_of_the_holder_dies_the_lease_lapses(self, patched: pytest.MonkeyPatch) -> None:
        both = made_two(patched)
        holder, waiter = await both[0].ready(), await both[1].ready()
        await asks(both[0], holder, waiter)
        token(holder.take())
        for connection in list(both[0].redis.connections):
            if connection is not both[1].home(waiter):
                connection.state["at"] = len(connection.sent)  # what it says from now on never arrives
        both[0].clock.now += 61
        both[0].redis.direct("GET", NAME)
        await both[0].settle()
        token(waiter.take())
        for race in both:
            await race.close()


class TestWhateverHappens:
    @pytest.mark.parametrize("mode", ["optin", "default", "bcast"])
    @pytest.mark.parametrize("seed", range(30))
    async def test_one_computes_at_a_time_all_are_answered_and_nothing_is_left(
        self, patched: pytest.MonkeyPatch, seed: int, mode: str
    ) -> None:
        """At two sidecars, in any order of bytes."""
        dice = random.Random(seed)
        both = made_two(patched)
        race = both[0]
        race.redis.refused = {"optin", "default"} if mode == "bcast" else {"optin"} if mode == "default" else set()
        crowd = [await dice.choice(both).ready(protocol=dice.choice((2, 3))) for _ in range(6)]
        holders: dict[Client, bytes] = {}
        for step in range(40):
            client = dice.choice(crowd)
            self.look(crowd, holders, race)
            act = dice.choice(("ask", "ask", "ask", "fill", "fail", "direct", "delete", "leave", "step", "step", "settle"))
            if act == "ask" and client.session.state is State.RELAY and client not in holders:
                client.feed(LEASE)
            elif act == "fill" and client in holders:
                client.feed(R("SET", "k", f"v{step}"))
                del holders[client]
            elif act == "fail" and client in holders:
                client.feed(R("SIDECAR", "UNLEASE", "k", holders.pop(client)))
            elif act == "direct":
                race.redis.direct("SET", "k", f"d{step}")
            elif act == "delete":
                race.redis.direct("DEL", "k")
            elif act == "leave" and len(crowd) > 2:
                self.look(crowd, holders, race)
                client.leave()
                crowd.remove(client)
                holders.pop(client, None)
            elif act == "step":
                await turn()
                for connection in list(race.redis.connections):
                    if not connection.closing:
                        race.redis.work(connection, dice.randint(0, 3))
                        await race.deliver(connection, dice.randint(0, len(connection.owed)))
            else:
                await race.settle()
        await race.settle()
        self.look(crowd, holders, race)
        race.redis.direct("SET", "k", "end")
        await race.settle()
        assert not leased(race)
        for client in crowd:
            assert client.session.state is State.RELAY, "answered"
        for client in crowd:
            client.leave()
        await race.settle()
        assert not leased(race)
        for race in both:
            nothing_left(race)
            await race.close()

    @staticmethod
    def look(crowd: list[Client], holders: dict[Client, bytes], race: Race) -> None:
        """Take note of who was told to compute; in between, others who still do so must have been filled."""
        granted = race.redis.granted  # type: ignore[attr-defined]
        for client in crowd:
            reply = client.take()
            if b"LEASE" in reply:
                at = reply.index(b"$32\r\n") + 5
                lease = reply[at : at + 32]
                assert all(granted[other] != granted[lease] for other in holders.values())
                holders[client] = lease
