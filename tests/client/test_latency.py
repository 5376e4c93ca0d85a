"""Latencies: what is timed, as what; and that nobody notices."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.client.latency import PATHS
from proxy.resp import encode
from proxy.resp.commands import FAMILIES
from tests.client.linked import Client, Linked
from tests.client.test_session import redis_answer
from tests.tier.racing import Race

GET, SET = encode.request("GET", "k"), encode.request("SET", "k", "v")


@pytest.fixture
async def linked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Linked]:
    linked = Linked(monkeypatch)
    linked.redis.answer = redis_answer
    yield linked
    await linked.close()


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    race = Race(monkeypatch)
    yield race
    await race.close()


def found(linked: Linked) -> tuple[dict[str, int], dict[str, int]]:
    """How many were timed, by path and by family, but for those of which none was."""
    latency = linked.clients.latency
    paths, families = (
        {name: histogram.count for name, histogram in histograms.items() if histogram.count}
        for histograms in (latency.by_path, latency.by_family)
    )
    return paths, families


def tap(client: Client) -> None:
    client.linked.clients.latency.listen(client.session.link)


async def test_all_there_is_to_time_is_named(linked: Linked) -> None:
    assert list(linked.clients.latency.by_path) == list(PATHS)
    assert list(linked.clients.latency.by_family) == list(FAMILIES)


@pytest.mark.parametrize(
    ("requests", "paths", "families"),
    [
        ([GET], {"miss": 1}, {"string": 1}),
        ([SET], {"write": 1}, {"string": 1}),
        ([encode.request("set", "k", "v")], {"write": 1}, {"string": 1}),
        ([encode.request("HGETALL", "h")], {"miss": 1}, {"hash": 1}),
        ([encode.request("ZADD", "z", "1", "a", "2", "b")], {"write": 1}, {"sortedset": 1}),
        ([encode.request("PUBLISH", "c", "m")], {"other": 1}, {"pubsub": 1}),
        ([encode.request("EVAL", "return 1", "0")], {"other": 1}, {"scripting": 1}),
        ([encode.request("NOSUCH", "k")], {"pinned": 1}, {"other": 1}),
        ([SET + GET * 9], {"write": 1}, {"string": 1}),  # a pipeline counts once, as its first command
        ([GET, SET], {"miss": 1, "write": 1}, {"string": 2}),
        ([encode.request("MULTI")], {"pinned": 1}, {"transaction": 1}),
        ([encode.request("BLPOP", "l", "0")], {}, {}),
        ([encode.request("CLIENT", "ID")], {}, {}),
    ],
)
async def test_each_path(
    linked: Linked, requests: list[bytes], paths: dict[str, int], families: dict[str, int]
) -> None:
    client = await linked.ready()
    await linked.redis.settle()
    tap(client)
    for request in requests:
        client.feed(request)
        await linked.redis.settle()
    assert found(linked) == (paths, families)


async def test_an_mget_of_which_some_are_fetched_to_be_kept_is_one(race: Race) -> None:
    """Not what asks how long they live, in front of it."""
    client = await race.ready()
    await race.ask(client, "GET", "k")
    race.clients.latency.listen(client.session.link)
    await race.ask(client, "MGET", "k", "other")
    latency = race.clients.latency
    assert (latency.by_path["miss"].count, latency.by_family["string"].count) == (1, 1)
    assert not latency.by_path["other"].count


async def test_replies_are_as_without(linked: Linked) -> None:
    """In pieces of every size, in order, and what comes behind waits for them as ever."""
    client = await linked.ready()
    sent = GET + SET * 3 + encode.request("ECHO", "x" * 300) + encode.request("MULTI") + SET + encode.request("EXEC") + GET
    client.feed(sent)
    await linked.redis.settle()
    without = client.take()
    for piece in (0, 1, 7):
        tap(client)
        client.feed(sent)
        await linked.redis.settle(piece)
        assert client.take() == without
        assert client.session.pending == 0


async def test_so_many_are_timed_and_then_no_more(linked: Linked) -> None:
    client = await linked.ready()
    plain = client.session.link.submit
    tap(client)
    tap(client)
    for _ in range(20):
        client.feed(GET)
        await linked.redis.settle()
    assert found(linked)[0] == {"miss": 16}
    assert client.session.link.submit == plain, "the others take the way they took before"


async def test_who_leaves_meanwhile(linked: Linked) -> None:
    client = await linked.ready()
    tap(client)
    linked.redis.answer = None
    client.feed(GET)
    await linked.redis.settle()
    client.leave()
    linked.wire.reply(b"$1\r\nv\r\n")
    other = await linked.ready()
    other.feed(GET)
    await linked.redis.settle()
    linked.wire.reply(b"$1\r\nw\r\n")
    assert (client.got, other.got) == (b"", b"$1\r\nw\r\n")


async def test_a_reply_that_breaks_off_ends_its_client_alone(linked: Linked) -> None:
    one, other = await linked.ready(), await linked.ready()
    linked.redis.answer = None
    tap(one)
    one.feed(SET)
    other.feed(GET)
    one.feed(GET)
    await linked.redis.settle()
    linked.wire.reply(b"$100\r\nhalf")
    linked.redis.answer = redis_answer
    linked.wire.lose()
    await linked.redis.settle()
    assert one.transport.aborted and one.got == b"$100\r\nhalf", "and nothing more"
    assert not other.transport.aborted and other.got == redis_answer(linked.wire, [b"GET", b"k"])


async def test_a_link_that_is_lost_is_as_one_that_was_never_tapped(linked: Linked) -> None:
    client = await linked.ready()
    tap(client)
    client.feed(SET)
    await linked.redis.settle()
    tapped = client.session.link.submit
    linked.wire.lose()
    await linked.redis.settle()
    assert client.session.link.submit != tapped
    client.take()
    client.feed(GET)
    await linked.redis.settle()
    assert client.got == redis_answer(linked.wire, [b"GET", b"k"])
