"""A session's promises: bytes relayed as they came, replies in order, whatever the path and the pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.client import session as session_module
from proxy.client.flow import Reason
from proxy.client.states import State
from proxy.resp import encode
from tests.client.linked import Connection, FakeTransport, Linked, turn

GET = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"
CLIENT_ID = encode.request("CLIENT", "ID")


def redis_answer(connection: Connection, arguments: list[bytes]) -> bytes:
    """Echoes the arguments, and knows transactions and RESET."""
    name = arguments[0].upper()
    state = connection.state
    if name == b"RESET":
        state.clear()
        return b"+RESET\r\n"
    if name == b"MULTI":
        state["queue"] = []
        return b"+OK\r\n"
    if name == b"EXEC" and "queue" in state:
        return encode.array(state.pop("queue"))
    reply = encode.array(map(encode.bulk, [name, *arguments[1:]]))
    if "queue" in state:
        state["queue"].append(reply)
        return b"+QUEUED\r\n"
    return reply


def echoed(*arguments: bytes) -> bytes:
    return redis_answer(Connection(None, None, 0), list(arguments))  # type: ignore[arg-type]


@pytest.fixture
async def linked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Linked]:
    linked = Linked(monkeypatch)
    yield linked
    await linked.close()


# --- pipelines of everything

key = st.one_of(st.binary(max_size=6), st.sampled_from([b"", b"\r\n", PING, b"+RESET\r\n", b"x" * 300]))
word = st.sampled_from([b"a", b"key", b"7"])


def one(data: bytes, reply: bytes) -> tuple[bytes, bytes, str]:
    return data, reply, "shared"


def lax(arguments: list[bytes]) -> bytes:
    return b"*%d\r?" % len(arguments) + b"".join(b"$%d\r?%b!!" % (len(item), item) for item in arguments)


gets = key.map(lambda k: one(encode.request("GET", k), echoed(b"GET", k)))
sets = st.builds(lambda k, v: one(encode.request("set", k, v), echoed(b"SET", k, v)), key, key)
odd_case = key.map(lambda k: one(encode.request("gEt", k), echoed(b"GET", k)))
lenient = key.map(lambda k: one(lax([b"GET", k]), echoed(b"GET", k)))
inline = word.map(lambda k: one(b"get " + k + b"\r\n", echoed(b"GET", k)))
empty = st.sampled_from([b"\r\n", b"*0\r\n", b"*-1\r\n"]).map(lambda data: (data, b"", "none"))
local = st.sampled_from(
    [(encode.request("CLIENT", "SETNAME", "me"), b"+OK\r\n", "local"), (encode.request("client", "getname"), b"NAME", "local"), (b"CLIENT ID\r\n", b"ID", "local")]
)
select = st.just((encode.request("SELECT", 0), b"+OK\r\n", "local"))
blocking = word.map(lambda k: (encode.request("BLPOP", k, 0), echoed(b"BLPOP", k, b"0"), "pinned"))
fenced = st.just((encode.request("WAIT", 0, 0), echoed(b"WAIT", b"0", b"0"), "pinned"))


def transaction(inner: list[tuple[bytes, bytes, str]]) -> tuple[bytes, bytes, str]:
    data = b"".join(data for data, _, _ in inner)
    queued = b"+QUEUED\r\n" * len(inner)
    replies = encode.array(reply for _, reply, _ in inner)
    return b"*1\r\n$5\r\nMULTI\r\n" + data + b"EXEC\r\n", b"+OK\r\n" + queued + replies, "pinned"


transactions = st.lists(st.one_of(gets, sets, inline), max_size=3).map(transaction)
shared_only = st.lists(st.one_of(gets, sets, odd_case, lenient, inline, empty), max_size=12)
everything = st.lists(st.one_of(gets, gets, sets, odd_case, lenient, inline, empty, local, select, blocking, fenced, transactions), max_size=12)
cutting = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def chunks(data: bytes, steps: list[int]) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        found.append(data[at : at + steps[len(found) % len(steps)]])
        at += len(found[-1])
    return found


def expected_replies(commands: list[tuple[bytes, bytes, str]], session_id: int) -> bytes:
    """With the replies filled in that depend on the session: its id, the name it has by then."""
    name, out = b"$-1\r\n", b""
    for data, reply, _ in commands:
        if b"SETNAME" in data:
            name = b"$2\r\nme\r\n"
        out += {b"NAME": name, b"ID": b":%d\r\n" % session_id}.get(reply, reply)
    return out


def run_scenarios(monkeypatch: pytest.MonkeyPatch, commands: Any, examples: int, check_wire: bool) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(commands, cutting, st.integers(0, 9), st.integers(0, 4))
    def check(commands: list[tuple[bytes, bytes, str]], steps: list[int], piece: int, patience: int) -> None:
        runner.run(scenario(commands, steps, piece, patience))

    async def scenario(commands: list[tuple[bytes, bytes, str]], steps: list[int], piece: int, patience: int) -> None:
        linked = Linked(monkeypatch)
        linked.redis.answer = redis_answer
        client = await linked.ready()
        for place, chunk in enumerate(chunks(b"".join(data for data, _, _ in commands), steps)):
            client.feed(chunk)
            if patience and place % patience == 0:
                await turn(2)
                linked.redis.deliver(piece)
        await linked.redis.settle(piece)
        assert client.got == expected_replies(commands, client.session.id)
        assert client.session.state is State.RELAY
        assert (client.session.pending, client.session.buffer) == (0, b"")
        if check_wire:
            sent = b"".join(
                encode.request(*request) if data[:1] != b"*" or b"\r?" in data else data
                for data, request in ((data, linked_arguments(data)) for data, _, kind in commands if kind == "shared")
            )
            assert linked.redis.connections[0].sent == sent
        await linked.close()

    with asyncio.Runner() as runner:
        check()


def linked_arguments(data: bytes) -> list[bytes]:
    from tests.client.linked import DISPATCHER

    request = DISPATCHER._parser.parse(data, 0)
    assert request is not None
    return request.arguments


class TestAnySplitOfAnyPipeline:
    def test_the_same_bytes_reach_redis_and_the_same_replies_the_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Canonical bytes as they came, other spellings made canonical."""
        run_scenarios(monkeypatch, shared_only, 120, True)

    def test_replies_in_order_when_paths_mix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run_scenarios(monkeypatch, everything, 150, False)

    async def test_a_deep_pipeline_in_one_chunk_is_one_write(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET * 100)
        await turn()
        assert linked.wire.written == [GET * 100]
        linked.wire.reply(b"+1\r\n" * 100)
        assert client.got == b"+1\r\n" * 100

    async def test_half_a_command_waits_and_whole_ones_before_it_do_not(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET * 2 + GET[:9])
        await turn()
        assert linked.wire.sent == GET * 2
        client.feed(GET[9:])
        await turn()
        assert linked.wire.sent == GET * 3
        assert client.session.commands == 3


class TestDrainingBeforeAChangeOfPath:
    async def test_a_local_answer_waits_for_pending_replies(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET, CLIENT_ID + GET)
        await turn()
        assert client.session.state is State.WAITING
        assert (client.got, linked.wire.sent) == (b"", GET)
        linked.wire.reply(b"+1\r\n")
        assert client.got == b"+1\r\n:%d\r\n" % client.session.id
        await turn()
        assert linked.wire.sent == GET * 2
        linked.wire.reply(b"+2\r\n")
        assert client.take().endswith(b"\r\n+2\r\n")

    async def test_a_blocking_command_is_sent_once_nothing_is_pending(self, linked: Linked) -> None:
        client = await linked.ready()
        blpop = encode.request("BLPOP", "k", 0)
        client.feed(GET + blpop + GET)
        await turn()
        assert len(linked.redis.connections) == 1
        linked.wire.reply(b"+1\r\n")
        await turn()
        shared, own = linked.redis.connections
        assert (shared.sent, own.sent) == (GET, blpop)
        own.reply(b"*-1\r\n")
        await turn()
        assert shared.sent == GET * 2
        shared.reply(b"+2\r\n")
        assert client.got == b"+1\r\n*-1\r\n+2\r\n"

    async def test_a_blocked_client_holds_up_nobody(self, linked: Linked) -> None:
        blocked, other = await linked.ready(), await linked.ready()
        blocked.feed(encode.request("BLPOP", "k", 0))
        await turn()
        other.feed(GET)
        await turn()
        linked.redis.connections[0].reply(b"+1\r\n")
        assert (blocked.got, other.got) == (b"", b"+1\r\n")

    async def test_what_waits_behind_a_command_is_bounded(self, linked: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
        client = await linked.ready()
        monkeypatch.setattr(session_module, "_WAITING_HIGH", 1000)
        client.feed(GET + CLIENT_ID + GET * 100)
        assert not client.transport.reading
        linked.wire.reply(b"+1\r\n")
        await turn()
        assert client.transport.reading
        assert linked.wire.sent == GET * 101


class TestThePendingLimit:
    @pytest.fixture(autouse=True)
    def low(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_module, "_PENDING_HIGH", 10)

    async def test_holds_the_client_until_its_replies_came(self, linked: Linked) -> None:
        client = await linked.ready()
        odd = encode.request("gEt", "k")
        client.feed(odd * 30)
        await turn()
        assert client.session.pending == 11
        assert not client.transport.reading
        sent = 11
        while sent < 30:
            linked.wire.reply(b"+1\r\n" * (len(linked.wire.requests) - len(client.got) // 4))
            await turn()
            sent = len(linked.wire.requests)
        linked.wire.reply(b"+1\r\n" * (30 - len(client.got) // 4))
        assert client.got == b"+1\r\n" * 30
        assert client.transport.reading
        assert client.session.relaying

    async def test_holds_whoever_sends_what_the_patterns_know(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET * 10)
        assert client.transport.reading
        client.feed(GET)
        assert not client.transport.reading
        await turn()
        linked.wire.reply(b"+1\r\n" * 10)
        assert not client.transport.reading
        linked.wire.reply(b"+1\r\n")
        assert client.transport.reading and client.session.relaying

    async def test_and_the_end_of_its_bytes_after_that(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("gEt", "k") * 12)
        assert client.session.eof_received()
        for _ in range(2):
            await turn()
            linked.wire.reply(b"+1\r\n" * client.session.pending)
        await turn()
        assert client.got == b"+1\r\n" * 12
        assert client.transport.closing and not client.transport.aborted


class TestTheEndOfAClientsBytes:
    async def test_with_nothing_owed_closes(self, linked: Linked) -> None:
        client = await linked.ready()
        assert not client.session.eof_received()

    async def test_pending_replies_still_come(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET + GET + CLIENT_ID + encode.request("MULTI") + b"EXEC\r\n" + GET)
        assert client.session.eof_received()
        await turn()
        assert not client.transport.closing
        linked.redis.answer = redis_answer
        linked.wire.reply(b"+1\r\n+2\r\n")
        await linked.redis.settle()
        assert client.got.endswith(b"+OK\r\n*0\r\n" + echoed(b"GET", b"k"))
        assert client.transport.closing and not client.transport.aborted

    async def test_a_client_that_reads_late_is_closed_as_well(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET)
        assert client.session.eof_received()
        client.session.pause_writing()
        linked.wire.reply(b"+1\r\n")
        assert not client.transport.closing
        client.session.resume_writing()
        assert client.transport.closing and client.got == b"+1\r\n"

    async def test_a_blocked_client_is_dropped(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("BLPOP", "k", 0))
        await turn()
        assert not client.session.eof_received()

    async def test_a_departing_sidecar_lets_replies_through(self, linked: Linked) -> None:
        client, idle = await linked.ready(), await linked.ready()
        client.feed(GET)
        client.session.depart()
        idle.session.depart()
        assert (client.transport.closing, idle.transport.closing) == (False, True)
        linked.wire.reply(b"+1\r\n")
        await turn()
        assert client.transport.closing and client.got == b"+1\r\n"


class TestADisconnectInMidFlight:
    async def test_drops_its_replies_and_nobody_elses(self, linked: Linked) -> None:
        leaver, other = await linked.ready(), await linked.ready()
        leaver.feed(GET * 3)
        other.feed(GET)
        await turn()
        linked.wire.reply(b"+1\r\n*2\r\n:1\r\n")
        leaver.leave()
        assert leaver.session.state is State.CLOSED
        linked.wire.reply(b":2\r\n$300\r\n" + b"x" * 300 + b"\r\n+mine\r\n", piece=11)
        assert other.got == b"+mine\r\n"
        assert leaver.got == b"+1\r\n*2\r\n:1\r\n"
        late = await linked.ready()
        late.feed(GET)
        linked.wire.reply(b"+late\r\n")
        assert late.got == b"+late\r\n"
        assert leaver.session.id not in linked.clients.sessions
        assert linked.clients.commands == 5

    async def test_while_a_link_is_being_made_for_it(self, linked: Linked) -> None:
        client = await linked.ready()
        linked.redis.open.clear()
        client.feed(encode.request("BLPOP", "k", 0))
        await turn()
        client.leave()
        linked.redis.open.set()
        await turn()
        assert not any(connection.sent for connection in linked.redis.connections)
        assert all(connection.closing for connection in linked.redis.connections[1:])

    async def test_while_it_blocks_takes_its_link_along(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("BLPOP", "k", 0))
        await turn()
        client.leave()
        assert linked.wire.closing and len(linked.redis.connections) == 2

    async def test_a_write_that_fails_leaves_the_link_alone(self, linked: Linked) -> None:
        """uvloop's transport raises between an error and `connection_lost`."""
        gone, other = await linked.ready(), await linked.ready()
        gone.feed(GET + b"*x\r\n")
        other.feed(GET)
        gone.transport.gone = True
        linked.wire.reply(b"+1\r\n+2\r\n")
        assert other.got == b"+2\r\n"
        assert not linked.wire.closing

    async def test_any_leaver_at_any_time(self, linked: Linked) -> None:
        """Values name their key: no reply may reach another client."""
        linked.redis.answer = redis_answer
        clients = [await linked.ready() for _ in range(12)]
        for number, client in enumerate(clients):
            key = b"key:%d" % number
            client.feed(encode.request("GET", key) * 3, encode.request("BLPOP" if number % 4 == 0 else "GET", key, *(["0"] if number % 4 == 0 else [])))
            await turn(number % 3)
            linked.redis.deliver(number + 1)
            if number % 3 == 1:
                client.leave()
        await linked.redis.settle(5)
        for number, client in enumerate(clients):
            key = b"key:%d" % number
            whole = echoed(b"GET", key) * 3 + (echoed(b"BLPOP", key, b"0") if number % 4 == 0 else echoed(b"GET", key))
            assert whole.startswith(client.got)
            assert client.got == whole or client.session.state is State.CLOSED


class TestProtocolErrors:
    async def test_come_after_pending_replies(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(GET + GET + b"*x\r\n" + GET)
        await turn()
        assert (client.got, linked.wire.sent) == (b"", GET * 2)
        client.feed(GET)
        linked.wire.reply(b"+1\r\n")
        assert not client.transport.closing
        linked.wire.reply(b"+2\r\n")
        assert client.got == b"+1\r\n+2\r\n-ERR Protocol error: invalid multibulk length\r\n"
        assert client.transport.closing and not client.transport.aborted
        await turn()
        assert linked.wire.sent == GET * 2

    async def test_come_at_once_if_nothing_is_pending(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(b'GET "a\r\n')
        assert client.got == b"-ERR Protocol error: unbalanced quotes in request\r\n"
        assert client.session.state is State.CLOSING

    async def test_in_a_transaction_they_come_after_its_replies(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("MULTI") + b"*x\r\n")
        await turn()
        assert client.got == b""
        linked.wire.reply(b"+OK\r\n")
        assert client.got == b"+OK\r\n-ERR Protocol error: invalid multibulk length\r\n"
        assert client.transport.closing

    @pytest.mark.parametrize("attack", [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"Host: localhost\r\n", encode.request("post", "x")])
    @pytest.mark.parametrize("reported", [False, True])
    async def test_http_is_cut_off_and_nothing_of_it_reaches_redis(self, linked: Linked, attack: bytes, reported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linked.clients.dispatcher.table, "server_reported", reported)
        client = await linked.ready()
        client.feed(attack)
        await turn()
        assert client.transport.aborted and client.got == b""
        assert [connection.sent for connection in linked.redis.connections] == [b""]


class TestFlow:
    async def test_a_client_that_does_not_read_is_paused(self, linked: Linked) -> None:
        client = await linked.ready()
        assert client.transport.high == 1024 * 1024
        client.session.pause_writing()
        assert not client.transport.reading and client.session in linked.clients.stalled
        client.feed(GET)
        await turn()
        assert linked.wire.sent == b""
        client.session.resume_writing()
        await turn()
        assert linked.wire.sent == GET
        assert client.transport.reading and client.session not in linked.clients.stalled
        assert client.session.relaying

    async def test_its_own_link_is_paused_with_it(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("SUBSCRIBE", "c"))
        await turn()
        client.session.pause_writing()
        assert not linked.wire.reading
        client.session.resume_writing()
        assert linked.wire.reading

    async def test_two_reasons_both_have_to_go(self, linked: Linked) -> None:
        client = await linked.ready()
        client.session.pause_writing()
        client.session.hold_back(client.session.link)
        client.session.resume_writing()
        assert not client.transport.reading and client.session.flow.reasons == Reason.LINK
        client.session.go_on()
        assert client.transport.reading

    async def test_redis_that_does_not_keep_up_holds_who_sends(self, linked: Linked) -> None:
        busy, idle = await linked.ready(), await linked.ready()
        linked.wire.protocol.pause_writing()
        busy.feed(GET)
        assert (busy.transport.reading, idle.transport.reading) == (False, True)
        busy.feed(GET)
        linked.wire.protocol.resume_writing()
        await turn()
        assert busy.transport.reading and linked.wire.sent == GET * 2

    async def test_a_client_that_never_reads_is_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linked = Linked(monkeypatch, output_buffer_limit=100_000, output_buffer_soft_limit=20_000, output_buffer_soft_seconds=0.0)
        hard, soft, fine = await linked.ready(), await linked.ready(), await linked.ready()
        for client, unsent in ((hard, 100_001), (soft, 20_001), (fine, 10_000)):
            client.session.pause_writing()
            client.transport.unsent = unsent
        linked.clients.tick()
        assert [client.transport.aborted for client in (hard, soft, fine)] == [True, True, False]
        assert linked.clients.killed == 2
        await linked.close()

    async def test_the_query_buffer_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linked = Linked(monkeypatch, query_buffer_limit=1000)
        client = await linked.ready()
        client.feed(b"*2\r\n$3\r\nGET\r\n$5000\r\n" + b"x" * 900)
        assert not client.transport.aborted
        client.feed(b"x" * 200)
        assert client.transport.aborted
        await linked.close()

    async def test_one_client_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linked = Linked(monkeypatch, max_clients=1)
        await linked.ready()
        refused = linked.client()
        assert refused.got == b"-ERR max number of clients reached\r\n"
        assert refused.transport.closing
        refused.session.data_received(GET)
        await turn()
        assert linked.clients.rejected == 1 and len(linked.clients.sessions) == 1
        await linked.close()

    async def test_idle_clients_are_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linked = Linked(monkeypatch, client_timeout=10.0)
        idle, busy, blocked = await linked.ready(), await linked.ready(), await linked.ready()
        blocked.feed(encode.request("BLPOP", "k", 0))
        await turn()
        busy.feed(PING)
        for client in (idle, busy, blocked):
            client.session.idle_since -= 11
        linked.clients._find_idle(asyncio.get_running_loop().time())
        assert [client.transport.aborted for client in (idle, busy, blocked)] == [True, False, False]
        await linked.close()


class TestALostUpstream:
    async def test_clients_stay_and_hear_an_error(self, linked: Linked) -> None:
        client = await linked.ready()
        client.feed(encode.request("SET", "k", "v") + GET)
        await turn()
        linked.wire.lose()
        assert client.got.count(b"-ERR pannier") == 2 and b"outcome unknown" in client.take()
        await turn()
        client.feed(GET)
        await turn()
        linked.wire.reply(b"+1\r\n")
        assert client.got == b"+1\r\n" and not client.transport.closing

    async def test_half_a_reply_closes_its_client_only(self, linked: Linked) -> None:
        client, other = await linked.ready(), await linked.ready()
        client.feed(GET)
        other.feed(GET)
        await turn()
        linked.wire.reply(b"$300\r\nabc")
        linked.wire.lose()
        assert client.transport.aborted and client.got == b"$300\r\nabc"
        await turn()
        linked.wire.reply(b"+1\r\n")
        assert other.got == b"+1\r\n"

    async def test_a_local_answer_that_needs_redis_is_an_error(self, linked: Linked) -> None:
        client = await linked.ready()
        linked.redis.failure = OSError(111, "refused")
        client.feed(encode.request("SELECT", 5) + CLIENT_ID)
        await turn(20)
        assert client.got.startswith(b"-ERR pannier: upstream redis://localhost:6379/0 is unreachable: refused\r\n:")
        assert client.session.database == 0


def test_the_transport_reports_what_the_session_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake transport keeps the rules a real one enforces: no reading changes once it closes."""
    transport = FakeTransport(None)
    transport.closing = True
    with pytest.raises(AssertionError):
        transport.pause_reading()
