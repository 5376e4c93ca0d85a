"""CLIENT LIST, CLIENT INFO and CLIENT KILL over the sessions of this sidecar."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.client import listing
from proxy.client.local import FIRST_ID
from proxy.resp import encode
from proxy.upstream.link import Identity
from tests.client.linked import Client, Linked, turn


@pytest.fixture
async def linked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Linked]:
    linked = Linked(monkeypatch)
    yield linked
    await linked.close()


def fields(line: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in line.split(" "))


async def say(client: Client, *arguments: bytes | str | int) -> bytes:
    client.feed(encode.request(*arguments))
    await turn()
    return client.take()


async def listed(client: Client, *options: bytes | str | int) -> list[int]:
    reply = await say(client, "CLIENT", "LIST", *options)
    assert reply[:1] == b"$", reply
    lines = reply.split(b"\r\n", 1)[1].decode().strip().splitlines()
    return [int(fields(line)["id"]) for line in lines]


class TestLines:
    async def test_what_a_session_has_said(self, linked: Linked) -> None:
        client = await linked.ready()
        await say(client, "CLIENT", "SETNAME", "me")
        await say(client, "CLIENT", "SETINFO", "LIB-NAME", "lib")
        await say(client, "CLIENT", "SETINFO", "lib-ver", "1.2")
        found = fields(listing.line(client.session))
        expected = {
            "id": str(client.session.id), "addr": "127.0.0.1:50001", "laddr": "127.0.0.1:6380", "name": "me", "lib-name": "lib", "lib-ver": "1.2",
            "db": "0", "user": "default", "resp": "2", "flags": "N", "multi": "-1", "watch": "0", "tot-cmds": "3", "age": "0", "idle": "0", "fd": "-1",
        }  # fmt: skip
        assert {name: found[name] for name in expected} == expected
        assert client.session.id > FIRST_ID
        reply = await say(client, "CLIENT", "INFO")
        told = fields(reply.split(b"\r\n")[1].decode().removesuffix("\n"))
        assert told | {"qbuf": "0"} == fields(listing.line(client.session)) | {"qbuf": "0"}

    async def test_addresses(self, linked: Linked) -> None:
        six = await linked.ready(("::1", 5, 0, 0))
        assert fields(listing.line(six.session))["addr"] == "[::1]:5"
        unix = await linked.ready("/run/x.sock")
        assert fields(listing.line(unix.session))["addr"] == "/run/x.sock:0"
        assert listing.flags(unix.session) == "U"

    @pytest.mark.parametrize(
        ("command", "reply", "flags"),
        [("MULTI", b"+OK\r\n", "x"), ("BLPOP k 0", b"", "b"), ("SUBSCRIBE c", b"", "P"), ("PSYNC ? -1", b"", "S"), ("WATCH k", b"+OK\r\n", "N")],
    )
    async def test_flags(self, linked: Linked, command: str, reply: bytes, flags: str) -> None:
        client = await linked.ready()
        client.feed(encode.request(*command.split()))
        await turn()
        linked.wire.reply(reply)
        assert listing.flags(client.session) == flags
        assert fields(listing.line(client.session))["watch"] == str(int(command == "WATCH k"))


class TestList:
    async def test_all_by_id_and_by_type(self, linked: Linked) -> None:
        one, two, three = await linked.ready(), await linked.ready(), await linked.ready()
        two.feed(encode.request("SUBSCRIBE", "c"))
        three.feed(encode.request("PSYNC", "?", "-1"))
        await turn()
        ids = [client.session.id for client in (one, two, three)]
        assert await listed(one) == ids
        assert await listed(one, "ID", ids[2], ids[0], 99) == [ids[0], ids[2]]
        assert await listed(one, "type", "normal") == [ids[0]]
        assert await listed(one, "TYPE", "PUBSUB") == [ids[1]]
        assert await listed(one, "TYPE", "replica") == await listed(one, "TYPE", "slave") == [ids[2]]
        assert await listed(one, "TYPE", "master") == []

    @pytest.mark.parametrize(
        ("options", "error"),
        [("TYPE", "ERR syntax error"), ("TYPE x", "ERR Unknown client type 'x'"), ("ID", "ERR syntax error"), ("ID 0", "ERR client-id should be greater than 0"), ("ID x", "ERR client-id should be greater than 0"), ("FOO 1", "ERR syntax error")],
    )
    async def test_errors(self, linked: Linked, options: str, error: str) -> None:
        client = await linked.ready()
        assert await say(client, "CLIENT", "LIST", *options.split()) == encode.error(error)


class TestKill:
    async def test_by_address(self, linked: Linked) -> None:
        one, two = await linked.ready(), await linked.ready()
        assert await say(one, "CLIENT", "KILL", "127.0.0.1:1") == b"-ERR No such client\r\n"
        assert await say(one, "CLIENT", "KILL", "127.0.0.1:50002") == b"+OK\r\n"
        assert two.transport.aborted and not one.transport.closing

    async def test_oneself_hears_the_answer_first(self, linked: Linked) -> None:
        one = await linked.ready()
        assert await say(one, "CLIENT", "KILL", "127.0.0.1:50001") == b"+OK\r\n"
        assert one.transport.closing and not one.transport.aborted

    async def test_filters(self, linked: Linked) -> None:
        one, two, three = await linked.ready(), await linked.ready(), await linked.ready()
        two.session.identity = Identity(b"bob", b"p")
        three.session.created -= 100
        victims = [
            ("ID {two}", [two]), ("TYPE normal", [two, three]), ("SKIPME no TYPE normal", [one, two, three]), ("ADDR 127.0.0.1:50003", [three]),
            ("LADDR 127.0.0.1:6380", [two, three]), ("USER bob", [two]), ("user default", [three]), ("MAXAGE 50", [three]),
            ("USER bob MAXAGE 50", []), ("SKIPME yes ID {one}", []), ("TYPE pubsub", []),
        ]  # fmt: skip
        for text, expected in victims:
            options = text.format(one=one.session.id, two=two.session.id).encode().split()
            assert listing.victims(one.session, options) == [client.session for client in expected], text

    @pytest.mark.parametrize("options", ["ID", "FOO 1", "SKIPME maybe", "MAXAGE x", "ID 1 TYPE"])
    async def test_syntax_errors(self, linked: Linked, options: str) -> None:
        client = await linked.ready()
        with pytest.raises(ValueError, match="ERR syntax error"):
            listing.victims(client.session, options.encode().split())

    async def test_filters_kill_and_count(self, linked: Linked) -> None:
        one, two, three = await linked.ready(), await linked.ready(), await linked.ready()
        assert await say(one, "CLIENT", "KILL", "TYPE", "normal") == b":2\r\n"
        assert [client.transport.aborted for client in (one, two, three)] == [False, True, True]
        await turn()
        assert await listed(one) == [one.session.id]

    async def test_an_id_of_redis_own_is_passed_on(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("CLIENT", "KILL", "ID", 12))
        await turn()
        assert linked.wire.requests == [[b"CLIENT", b"KILL", b"ID", b"12"]]
        linked.wire.reply(b":0\r\n")
        await turn()
        assert client.got == b":0\r\n"


class TestUnblock:
    async def test_a_session_is_unblocked_on_its_own_link(self, linked: Linked) -> None:
        one, two = await linked.ready(), await linked.ready()
        assert await say(one, "CLIENT", "UNBLOCK", two.session.id) == b":0\r\n"
        two.feed(encode.request("BLPOP", "k", 0))
        await turn()
        one.feed(encode.request("CLIENT", "UNBLOCK", two.session.id, "ERROR"))
        await turn()
        assert linked.redis.connections[0].requests == [[b"CLIENT", b"UNBLOCK", b"%d" % (two.session.upstream_id or 0), b"ERROR"]]
        linked.redis.connections[0].reply(b":1\r\n")
        await turn()
        assert one.got == b":1\r\n"
