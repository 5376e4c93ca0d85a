"""The pool: links shared by key, clean connections kept, others closed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from proxy.resp.errors import UpstreamError, UpstreamLost, UpstreamRefused
from proxy.upstream import pool
from proxy.upstream.address import Upstream
from proxy.upstream.link import Connector, Identity, LinkKey
from proxy.upstream.pinned import Expect, Mode
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import LinkState
from tests.client.linked import DISPATCHER, ScriptedRedis, turn

KEY = LinkKey(Identity(), 0, 2)


@pytest.fixture
async def redis(monkeypatch: pytest.MonkeyPatch) -> ScriptedRedis:
    return ScriptedRedis(monkeypatch)


@pytest.fixture
async def links(redis: ScriptedRedis) -> AsyncIterator[LinkPool]:
    links = LinkPool(Connector(Upstream(), 30.0, 0.0), DISPATCHER, 30.0, (0.0, 0.0))
    yield links
    await links.close()
    await turn()


class TestShared:
    async def test_one_link_for_a_key(self, links: LinkPool, redis: ScriptedRedis) -> None:
        one = links.attach(KEY)
        assert links.attach(KEY) is one
        assert one.users == 2
        assert links.attach(KEY._replace(database=1)) is not one
        assert links.attach(KEY._replace(protocol=3)) is not one
        assert links.attach(KEY._replace(identity=Identity(b"u", b"p"))) is not one
        await turn()
        assert len(redis.connections) == 4
        assert sorted(b"SELECT" in connection.handshake for connection in redis.connections) == [False] * 3 + [True]

    async def test_an_unused_one_is_closed_after_a_minute(self, links: LinkPool, redis: ScriptedRedis) -> None:
        link = links.attach(KEY)
        await link.settled()
        links.tick(0.0)
        links.tick(100.0)
        assert KEY in links.shared
        links.detach(link)
        links.tick(200.0)
        links.tick(259.0)
        assert KEY in links.shared
        assert links.attach(KEY) is link
        links.tick(300.0)
        links.detach(link)
        links.tick(301.0)
        links.tick(362.0)
        assert KEY not in links.shared
        await turn()
        assert link.state is LinkState.CLOSED and redis.connections[0].closing
        assert links.attach(KEY) is not link

    async def test_one_that_does_not_work_is_closed_at_once(self, links: LinkPool, redis: ScriptedRedis) -> None:
        redis.failure = OSError(111, "refused")
        link = links.attach(KEY)
        await link.settled()
        links.detach(link)
        assert KEY not in links.shared

    async def test_tick_breaks_a_silent_one(self, links: LinkPool, redis: ScriptedRedis) -> None:
        from tests.upstream.test_shared import GET, Caller

        link = links.attach(KEY)
        await link.settled()
        Caller(link).ask(GET)
        links.tick(0.0)
        links.tick(30.0)
        assert not redis.connections[0].closing
        links.tick(30.1)
        assert redis.connections[0].closing

    async def test_an_unanswered_one_refuses_as_soon_as_the_breaker_opens(self, redis: ScriptedRedis) -> None:
        """Not only at the next tick: what is sent in between would wait for as long as Redis hangs."""
        from tests.upstream.test_shared import GET, Caller

        connector = Connector(Upstream(), 30.0, 0.0)
        links = LinkPool(connector, DISPATCHER, 30.0, (0.0, 0.0), breaker_failures=3, silent_after=0.5)
        one, other = links.attach(KEY), links.attach(KEY._replace(database=1))
        await one.settled()
        await other.settled()
        Caller(one).ask(GET)
        links.tick(time.monotonic() - 1.0)
        for _ in range(3):
            assert one.state is LinkState.READY
            links.breaker.failed(UpstreamLost("ERR pannier: upstream redis://h:1/0 is unreachable: silent"))
        assert one.state is LinkState.SILENT, one.state
        assert other.state is LinkState.READY, "which owes nothing"
        await links.close()
        await turn()


class TestPinned:
    async def test_a_clean_one_is_lent_again(self, links: LinkPool, redis: ScriptedRedis) -> None:
        assert links.idle(KEY) is None
        link = await links.pin(KEY)
        link.pause(True)
        links.unpin(link, True)
        assert redis.connections[0].reading
        assert links.idle(KEY._replace(database=1)) is None
        assert links.idle(KEY) is link
        assert links.idle(KEY) is None
        assert link.client_id == 7

    async def test_others_are_closed(self, links: LinkPool, redis: ScriptedRedis) -> None:
        unclean, stream, owing, half = [await links.pin(KEY) for _ in range(4)]
        stream.mode = Mode.STREAM
        owing.expect(Expect.NOTHING)
        half._tail = b"+"
        for link in (stream, owing, half):
            links.unpin(link, True)
        links.unpin(unclean, False)
        assert links.idle(KEY) is None
        assert all(connection.closing for connection in redis.connections)
        assert not links.pinned

    async def test_sixteen_are_kept(self, links: LinkPool, redis: ScriptedRedis) -> None:
        for link in [await links.pin(KEY) for _ in range(pool._IDLE_PINNED + 1)]:
            links.unpin(link, True)
        assert [connection.closing for connection in redis.connections] == [False] * pool._IDLE_PINNED + [True]

    async def test_an_ended_one_is_not_lent(self, links: LinkPool, redis: ScriptedRedis) -> None:
        one, two, three = [await links.pin(KEY) for _ in range(3)]
        for link in (one, two, three):
            links.unpin(link, True)
        redis.connections[2].lose()
        redis.connections[1].reply(b"+unasked\r\n")
        assert links.idle(KEY) is one
        assert links.idle(KEY) is None
        links.tick(0.0)
        assert links.pinned == {one}

    async def test_one_that_ended_before_it_came_back(self, links: LinkPool, redis: ScriptedRedis) -> None:
        link = await links.pin(KEY)
        redis.connections[0].lose()
        links.unpin(link, True)
        assert links.idle(KEY) is None

    async def test_redis_that_cannot_be_reached(self, links: LinkPool, redis: ScriptedRedis) -> None:
        redis.failure = OSError(111, "refused")
        with pytest.raises(UpstreamError, match="is unreachable: refused"):
            await links.pin(KEY)
        assert not links.pinned

    async def test_redis_that_refuses(self, links: LinkPool, redis: ScriptedRedis) -> None:
        redis.hello_error = b"-ERR max number of clients reached\r\n"
        with pytest.raises(UpstreamRefused, match="max number of clients reached"):
            await links.pin(KEY)
        assert redis.connections[0].closing


class TestLogin:
    async def test_redis_judges_and_the_connection_is_kept(self, links: LinkPool, redis: ScriptedRedis) -> None:
        identity = await links.login([b"u", b"p"], 3)
        assert identity == Identity(b"u", b"p")
        handshake = redis.connections[0].handshake
        assert handshake.startswith(b"*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n")
        assert handshake.count(b"AUTH") == 1
        assert links.idle(LinkKey(identity, 0, 3)) is not None

    async def test_a_password_alone(self, links: LinkPool, redis: ScriptedRedis) -> None:
        assert await links.login([b"p"], 2) == Identity(None, b"p")
        assert redis.connections[0].handshake.startswith(b"*2\r\n$4\r\nAUTH\r\n$1\r\np\r\n")

    async def test_a_wrong_one(self, links: LinkPool, redis: ScriptedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis, "greet", lambda connection, arguments: b"-WRONGPASS no\r\n")
        with pytest.raises(UpstreamRefused, match="WRONGPASS no"):
            await links.login([b"u", b"p"], 2)
        assert redis.connections[0].closing


async def test_close_closes_everything(redis: ScriptedRedis) -> None:
    links = LinkPool(Connector(Upstream(), 30.0, 0.0), DISPATCHER, 30.0, (0.0, 0.0))
    link = links.attach(KEY)
    await link.settled()
    links.unpin(await links.pin(KEY), True)
    await links.pin(KEY)
    await links.close()
    await turn()
    assert len(redis.connections) == 3
    assert all(connection.closing for connection in redis.connections)
