"""A session on a link of its own: transactions, blocking and large commands, lasting state, losses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.client.states import State
from proxy.resp import encode
from tests.client.linked import Client, Linked, turn

MULTI, EXEC, DISCARD = encode.request("MULTI"), encode.request("EXEC"), encode.request("DISCARD")
WATCH, UNWATCH, RESET = encode.request("WATCH", "k"), encode.request("UNWATCH"), encode.request("RESET")
GET, SET = encode.request("GET", "k"), encode.request("SET", "k", "v")
BLPOP = encode.request("BLPOP", "k", 0)
SUBSCRIBE = encode.request("SUBSCRIBE", "c")


@pytest.fixture
async def linked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Linked]:
    linked = Linked(monkeypatch)
    yield linked
    await linked.close()


async def talk(linked: Linked, client: Client, *steps: tuple[bytes, bytes, bytes]) -> None:
    """Feed a command, check what Redis gets of it on the newest link, reply, check what the client gets."""
    for command, reply, got in steps:
        linked.wire.written.clear()
        client.feed(command)
        await turn()
        linked.wire.reply(reply, piece=3)
        await turn()
        assert client.take() == got, command


class TestTransactions:
    async def test_go_over_one_link_that_is_lent_again_afterwards(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (SET, b"+QUEUED\r\n", b"+QUEUED\r\n"))
        assert client.session.state is State.PINNED
        assert linked.wire.requests == [[b"SET", b"k", b"v"]]
        await talk(linked, client, (EXEC, b"*1\r\n+OK\r\n", b"*1\r\n+OK\r\n"))
        assert client.session.state is State.RELAY and client.session.pin is None
        client.feed(MULTI)
        await turn()
        assert len(linked.redis.connections) == 2

    @pytest.mark.parametrize("reply", [b"*-1\r\n", b"_\r\n", b"-EXECABORT Transaction discarded\r\n", b"*0\r\n"])
    async def test_any_answer_to_exec_ends_one(self, linked: Linked, reply: bytes) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (EXEC, reply, reply))
        assert client.session.state is State.RELAY

    async def test_a_discard_that_redis_refuses_does_not(self, linked: Linked) -> None:
        """DISCARD with an argument: Redis goes on queueing, and nobody else may be given that link."""
        client, other = await linked.ready(), await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (encode.request("DISCARD", "x"), b"-ERR wrong\r\n", b"-ERR wrong\r\n"))
        assert client.session.state is State.PINNED
        other.feed(BLPOP)
        await turn()
        assert linked.redis.connections[1].requests == [[b"DISCARD", b"x"]] and len(linked.redis.connections) == 3
        client.feed(DISCARD)
        linked.redis.connections[1].reply(b"+OK\r\n")
        assert client.session.state is State.RELAY

    async def test_a_multi_that_redis_refuses_begins_none(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (encode.request("MULTI", "x"), b"-ERR wrong\r\n", b"-ERR wrong\r\n"))
        assert client.session.state is State.RELAY

    async def test_nested_multi_and_watch_inside_change_nothing(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (MULTI, b"-ERR a\r\n", b"-ERR a\r\n"), (WATCH, b"-ERR b\r\n", b"-ERR b\r\n"))
        assert client.session.pin is not None and client.session.pin.multi and not client.session.pin.watching
        await talk(linked, client, (UNWATCH, b"+QUEUED\r\n", b"+QUEUED\r\n"), (EXEC, b"*1\r\n+OK\r\n", b"*1\r\n+OK\r\n"))
        assert client.session.state is State.RELAY

    async def test_watch_keeps_the_link_until_exec_or_unwatch(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (WATCH, b"+OK\r\n", b"+OK\r\n"), (GET, b"$-1\r\n", b"$-1\r\n"))
        assert client.session.state is State.PINNED
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (EXEC, b"*-1\r\n", b"*-1\r\n"))
        assert client.session.state is State.RELAY
        await turn()
        client.feed(WATCH + UNWATCH)
        await turn()
        linked.redis.connections[1].reply(b"+OK\r\n")
        assert client.session.state is State.PINNED
        linked.redis.connections[1].reply(b"+OK\r\n")
        assert client.session.state is State.RELAY

    async def test_pipelined_ones_are_sent_at_once_and_what_follows_in_order(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(MULTI + SET + EXEC + MULTI + EXEC + GET)
        await turn()
        assert linked.wire.sent == MULTI + SET + EXEC + MULTI + EXEC + GET
        linked.wire.reply(b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n+OK\r\n*0\r\n$-1\r\n", piece=2)
        assert client.got == b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n+OK\r\n*0\r\n$-1\r\n"
        assert client.session.state is State.RELAY

    async def test_what_the_sidecar_answers_waits_for_exec(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(MULTI + EXEC + encode.request("CLIENT", "ID"))
        await turn()
        linked.wire.reply(b"+OK\r\n*0\r\n")
        await turn()
        assert client.got == b"+OK\r\n*0\r\n:%d\r\n" % client.session.id
        assert linked.wire.sent == MULTI + EXEC

    async def test_reset_within_one(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.session.name = b"me"
        await talk(linked, client, (encode.request("RESET", "x"), b"-ERR wrong\r\n", b"-ERR wrong\r\n"))
        assert client.session.state is State.PINNED and client.session.name == b"me"
        await talk(linked, client, (RESET, b"+RESET\r\n", b"+RESET\r\n"))
        assert client.session.state is State.RELAY and client.session.name == b""
        assert linked.wire.closing

    async def test_reset_and_the_end_of_the_clients_bytes(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(MULTI)
        await turn()
        linked.wire.reply(b"+OK\r\n")
        client.feed(RESET)
        assert client.session.eof_received()
        linked.wire.reply(b"+RESET\r\n")
        await turn()
        assert client.got == b"+OK\r\n+RESET\r\n" and client.transport.closing

    async def test_quit_within_one(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (encode.request("QUIT"), b"+OK\r\n", b"+OK\r\n"))
        assert client.transport.closing and linked.wire.closing

    async def test_select_within_one_makes_the_link_the_clients_for_good(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (encode.request("SELECT", 1), b"+QUEUED\r\n", b"+QUEUED\r\n"))
        assert client.session.state is State.STREAM
        await talk(linked, client, (EXEC, b"*1\r\n+OK\r\n", b"*1\r\n+OK\r\n"), (GET, b"$-1\r\n", b"$-1\r\n"))
        assert client.session.state is State.STREAM


class TestALostTransaction:
    async def test_is_refused_until_the_client_ends_it(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.feed(SET)
        await turn()
        linked.wire.lose()
        assert client.take().endswith(b"outcome unknown: the command may or may not have been carried out\r\n")
        assert client.session.state is State.BROKEN
        client.feed(SET, b"\r\n")
        assert client.take() == b"-ERR pannier: the connection to upstream was lost in this transaction\r\n"
        client.feed(EXEC)
        assert client.take() == b"-EXECABORT Transaction discarded: the connection to upstream was lost\r\n"
        assert client.session.state is State.RELAY
        client.feed(GET)
        await turn()
        linked.redis.connections[0].reply(b"$-1\r\n")
        assert client.take() == b"$-1\r\n"

    @pytest.mark.parametrize(("command", "reply"), [(DISCARD, b"+OK\r\n"), (UNWATCH, b"+OK\r\n"), (RESET, b"+RESET\r\n"), (encode.request("QUIT"), b"+OK\r\n")])
    async def test_other_ways_to_end_it(self, linked: Linked, command: bytes, reply: bytes) -> None:
        client = await linked.ready()
        await talk(linked, client, (WATCH, b"+OK\r\n", b"+OK\r\n"))
        linked.wire.lose()
        client.feed(command)
        assert client.take() == reply
        assert client.session.state in (State.RELAY, State.CLOSING)

    @pytest.mark.parametrize("end", [EXEC, DISCARD])
    async def test_with_its_end_under_way_is_over(self, linked: Linked, end: bytes) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.feed(end)
        linked.wire.lose()
        assert client.take().count(b"outcome unknown") == 1
        assert client.session.state is State.RELAY

    async def test_with_reset_under_way_does_not_hang(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.feed(RESET)
        linked.wire.lose()
        client.take()
        client.feed(RESET + encode.request("CLIENT", "ID"))
        await turn()
        assert client.take() == b"+RESET\r\n:%d\r\n" % client.session.id

    @pytest.mark.parametrize("state", [SUBSCRIBE, MULTI])
    async def test_with_reset_answered_while_it_closes(self, linked: Linked, state: bytes) -> None:
        """The client has closed its side, and what it has been sent is not read yet."""
        client = await linked.ready()
        client.feed(state)
        await turn()
        linked.wire.reply(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n" if state is SUBSCRIBE else b"+OK\r\n")
        await turn()
        client.feed(RESET)
        client.session.finish()
        assert client.session.state is State.CLOSING
        linked.wire.reply(b"+RESET\r\n")
        assert client.session.state is State.CLOSING and client.session.pin is None
        client.leave()
        await turn()

    async def test_with_quit_under_way_is_closed(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.feed(encode.request("QUIT"))
        linked.wire.lose()
        assert client.transport.closing

    async def test_lets_a_paused_client_go_on(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        linked.wire.protocol.pause_writing()
        assert not client.transport.reading
        linked.wire.lose()
        assert client.transport.reading
        client.feed(EXEC)
        assert client.take().endswith(b"-EXECABORT Transaction discarded: the connection to upstream was lost\r\n")

    async def test_and_the_end_of_the_clients_bytes(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.feed(SET)
        assert client.session.eof_received()
        linked.wire.lose()
        await turn()
        assert client.transport.closing

    async def test_half_a_reply_closes_the_client(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"))
        client.feed(EXEC)
        linked.wire.reply(b"*2\r\n+OK\r\n")
        linked.wire.lose()
        assert client.transport.closing and client.got == b"*2\r\n+OK\r\n"


class TestBlockingCommands:
    async def test_a_lost_one_is_unknown_and_the_client_stays(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(BLPOP + GET)
        await turn()
        linked.wire.lose()
        assert client.got.count(b"outcome unknown") == 1
        await turn()
        linked.redis.connections[0].reply(b"$-1\r\n")
        assert client.got.endswith(b"$-1\r\n")

    async def test_wait_is_preceded_by_a_command_of_the_same_connection(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("WAIT", 0, 0))
        await turn()
        assert linked.wire.requests == [[b"PING"], [b"WAIT", b"0", b"0"]]
        linked.wire.reply(b"+PONG\r\n:1\r\n", piece=1)
        assert client.got == b":1\r\n" and client.session.state is State.RELAY

    async def test_a_malformed_local_command_spoils_its_link(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("SELECT"))
        await turn()
        linked.wire.reply(b"-ERR wrong number\r\n")
        assert client.got == b"-ERR wrong number\r\n" and linked.wire.closing

    async def test_no_link_to_be_had(self, linked: Linked) -> None:
        client = await linked.ready()
        linked.redis.failure = OSError(111, "refused")
        client.feed(BLPOP + encode.request("CLIENT", "ID"))
        await turn()
        assert client.got.startswith(b"-ERR pannier: upstream redis://localhost:6379/0 is unreachable: refused\r\n:")


class TestLastingState:
    async def test_a_subscriber_until_reset(self, linked: Linked) -> None:
        client = await linked.ready()
        message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$306\r\n" + b"x" * 300 + b"+RESET\r\n"
        await talk(linked, client, (SUBSCRIBE, b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"))
        assert client.session.state is State.STREAM
        await talk(linked, client, (b"", message, message))
        client.feed(RESET + encode.request("CLIENT", "ID"))
        assert client.session.state is State.WAITING
        linked.wire.reply(message[:-8])
        linked.wire.reply(message[-8:])
        assert client.take() == message
        linked.wire.reply(b"+RESET\r\n", piece=1)
        await turn()
        assert client.take() == b"+RESET\r\n:%d\r\n" % client.session.id
        assert linked.wire.closing and client.session.state is State.RELAY

    async def test_reset_with_an_argument_is_no_reset(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (SUBSCRIBE, b":1\r\n", b":1\r\n"), (encode.request("RESET", "x"), b"-ERR wrong\r\n", b"-ERR wrong\r\n"), (GET, b"$-1\r\n", b"$-1\r\n"))
        assert client.session.state is State.STREAM

    async def test_a_lost_one_closes_the_client(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (SUBSCRIBE, b":1\r\n", b":1\r\n"))
        linked.wire.lose()
        assert client.transport.closing and client.got == b""

    async def test_replication_is_a_tunnel(self, linked: Linked) -> None:
        client = await linked.ready()
        await talk(linked, client, (encode.request("PSYNC", "?", "-1"), b"+FULLRESYNC\r\n$9\r\n\x00\xff", b"+FULLRESYNC\r\n$9\r\n\x00\xff"))
        assert client.session.state is State.TUNNEL
        linked.wire.written.clear()
        client.feed(b"\x00 raw")
        assert linked.wire.sent == b"\x00 raw"

    async def test_an_unknown_command_keeps_its_link_unless_it_is_refused(self, linked: Linked) -> None:
        client = await linked.ready()
        probe = encode.request("CLIENT", "NOSUCH")
        await talk(linked, client, (probe, b"-ERR unknown subcommand\r\n", b"-ERR unknown subcommand\r\n"))
        assert client.session.state is State.RELAY
        client.feed(probe)
        await turn()
        linked.wire.reply(b"+OK\r\n")
        assert client.session.state is State.STREAM

    async def test_redirect_names_the_link_of_the_other_session(self, linked: Linked) -> None:
        listener, tracker = await linked.ready(), await linked.ready()
        listener.feed(SUBSCRIBE)
        await turn()
        tracker.feed(encode.request("CLIENT", "TRACKING", "ON", "REDIRECT", listener.session.id))
        await turn()
        assert listener.session.upstream_id == 8
        assert linked.wire.requests == [[b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", b"8"]]

    async def test_a_redirect_target_without_a_link_gets_one(self, linked: Linked) -> None:
        listener, tracker = await linked.ready(), await linked.ready()
        tracker.feed(encode.request("CLIENT", "TRACKING", "ON", "REDIRECT", listener.session.id))
        await turn()
        assert linked.wire.requests[0][-1] == b"%d" % (listener.session.upstream_id or 0)
        reserved = linked.redis.connections[1]
        listener.feed(SUBSCRIBE)
        await turn()
        assert reserved.requests == [[b"SUBSCRIBE", b"c"]]


class TestLargeCommands:
    @pytest.mark.parametrize("step", [70_000, 65_536, 300_000])
    async def test_are_relayed_while_they_arrive(self, linked: Linked, step: int) -> None:
        client = await linked.ready()
        data = encode.request("SET", "k", b"\r\n" * 300_000) + GET
        client.feed(GET)
        await turn()
        linked.redis.connections[0].reply(b"$-1\r\n")
        for start in range(0, len(data), step):
            client.feed(data[start : start + step])
            await turn(2)
            assert len(client.session.buffer) <= 262_144 + step
        await turn()
        assert linked.wire.sent == data[: -len(GET)]
        linked.wire.reply(b"+OK\r\n")
        await turn()
        linked.redis.connections[0].reply(b"$-1\r\n")
        assert client.got == b"$-1\r\n+OK\r\n$-1\r\n"
        assert client.session.state is State.RELAY

    async def test_within_a_transaction(self, linked: Linked) -> None:
        client = await linked.ready()
        data = encode.request("SET", "k", b"x" * 600_000)
        await talk(linked, client, (MULTI, b"+OK\r\n", b"+OK\r\n"), (data[:400_000], b"", b""), (data[400_000:], b"+QUEUED\r\n", b"+QUEUED\r\n"))
        await talk(linked, client, (EXEC, b"*1\r\n+OK\r\n", b"*1\r\n+OK\r\n"))
        assert client.session.state is State.RELAY

    async def test_a_lost_link_in_the_middle_closes_the_client(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("SET", "k", b"x" * 600_000)[:400_000])
        await turn()
        linked.wire.lose()
        assert client.transport.closing

    async def test_too_large_for_the_sidecar_to_answer(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("CLIENT", "SETNAME", b"x" * 2_000_000)[:-5])
        assert client.got == b"-ERR Protocol error: too big a request for a command that pannier answers\r\n"
        assert client.transport.closing

    async def test_large_enough_to_be_relayed_but_answered_here(self, linked: Linked) -> None:
        """The arity is judged when all arguments are known: nothing of a password may reach a lent link."""
        client = await linked.ready()
        data = encode.request("CLIENT", "SETNAME", b"x" * 300_000)
        client.feed(data[:290_000])
        await turn()
        client.feed(data[290_000:])
        assert client.got == b"+OK\r\n" and len(linked.redis.connections) == 1

    async def test_a_wrong_one_is_refused_in_the_middle(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(b"*3\r\n$3\r\nSET\r\n$300000\r\n" + b"x" * 300_000)
        await turn()
        client.feed(b"\r\n#5\r\n")
        await turn()
        assert client.got == b"-ERR Protocol error: expected '$', got '#'\r\n"
        assert client.transport.closing and linked.wire.closing
