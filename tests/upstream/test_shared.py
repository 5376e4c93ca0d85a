"""The shared link over a scripted wire: every reply to its caller, and what a loss means for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.upstream import shared
from proxy.upstream.address import Upstream
from proxy.upstream.caller import Question
from proxy.upstream.link import Connector, Identity, LinkKey
from proxy.upstream.shared import LinkState, SharedLink
from tests.client.linked import DISPATCHER, Connection, ScriptedRedis, turn

GET = encode.request("GET", "k")
SET = encode.request("SET", "k", "v")
LOST = b"-ERR pannier: upstream redis://localhost:6379/0 closed the connection\r\n"
UNKNOWN = LOST[:-2] + b"; outcome unknown: the command may or may not have been carried out\r\n"
KEY = LinkKey(Identity(), 0, 3)


class Caller:
    """A client as a link sees it. `gone`: writing raises, as uvloop's transport does for a moment."""

    def __init__(self, link: SharedLink) -> None:
        self.link = link
        self.got = b""
        self.pending = 0
        self.draining = False
        self.was_cut = 0
        self.held: list[bool] = []
        self.drains = 0
        self.gone = False
        self.on_drained: Callable[[], None] = lambda: None

    def owners(self) -> list[object]:
        return [self]

    def relay(self, data: bytes) -> None:
        if self.gone:
            raise RuntimeError("the handler is closed")
        self.got += data

    def ask(self, *requests: bytes) -> None:
        self.pending += len(requests)
        self.link.submit(self, len(requests), b"".join(requests))

    def drained(self) -> None:
        assert self.pending == 0
        self.drains += 1
        self.on_drained()

    def cut(self) -> None:
        self.was_cut += 1

    def hold_back(self, link: SharedLink) -> None:
        assert link is self.link
        self.held.append(True)

    def go_on(self) -> None:
        self.held.append(False)


@pytest.fixture
async def redis(monkeypatch: pytest.MonkeyPatch) -> ScriptedRedis:
    return ScriptedRedis(monkeypatch)


@pytest.fixture
async def link(redis: ScriptedRedis) -> AsyncIterator[SharedLink]:
    link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY, DISPATCHER, (0.0, 0.0))
    await link.settled()
    yield link
    redis.open.set()
    await link.close()
    await turn()


def wire(redis: ScriptedRedis) -> Connection:
    return redis.connections[-1]


class TestRepliesReachTheirCallers:
    async def test_runs_of_several_callers_interleaved(self, redis: ScriptedRedis, link: SharedLink) -> None:
        one, two = Caller(link), Caller(link)
        one.ask(GET)
        two.ask(GET, SET, GET)
        one.ask(SET, SET)
        await turn()
        assert wire(redis).sent == GET + GET + SET + GET + SET + SET
        wire(redis).reply(b"$1\r\n1\r\n$1\r\n2\r\n+OK2\r\n$1\r\n2\r\n+OK1\r\n+OK1\r\n")
        assert (one.got, one.pending) == (b"$1\r\n1\r\n+OK1\r\n+OK1\r\n", 0)
        assert (two.got, two.pending) == (b"$1\r\n2\r\n+OK2\r\n$1\r\n2\r\n", 0)
        assert not link.fifo

    async def test_one_turn_is_one_write(self, redis: ScriptedRedis, link: SharedLink) -> None:
        for _ in range(5):
            Caller(link).ask(GET)
        await turn()
        assert wire(redis).written == [GET * 5]

    def test_any_replies_in_any_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = st.sampled_from([1, 1, 2, 3, 4, 5, 16, 17, 64, 70])
        bodies = st.sampled_from([b"+%d\r\n", b"$1\r\n%d\r\n", b"*2\r\n:1\r\n*1\r\n+%d\r\n", b"%%1\r\n+a\r\n+%d\r\n", b"|1\r\n+a\r\n+b\r\n:%d\r\n", b"$300\r\n%0300d\r\n", b"=7\r\ntxt:00%d\r\n"])
        pushes = st.sampled_from([b"", b"", b"", b">1\r\n+push\r\n", b">2\r\n$3\r\na\r\n\r\n*0\r\n", b">0\r\n", b">1\r\n$300\r\n" + b"+" * 300 + b"\r\n"])
        runs = st.lists(st.tuples(st.integers(0, 3), sizes, bodies, pushes), max_size=8)

        @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(runs, st.lists(st.integers(1, 400), min_size=1, max_size=8), st.booleans())
        def check(runs: list[tuple[int, int, bytes, bytes]], steps: list[int], tiny: bool) -> None:
            runner.run(scenario(runs, [1] if tiny and len(runs) < 4 else steps))

        async def scenario(runs: list[tuple[int, int, bytes, bytes]], steps: list[int]) -> None:
            redis = ScriptedRedis(monkeypatch)
            link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY, DISPATCHER, (0.0, 0.0))
            await link.settled()
            callers = [Caller(link) for _ in range(4)]
            expected, stream = [b""] * 4, b""
            for who, n, body, push in runs:
                callers[who].ask(*[GET] * n)
                reply = (body % who if b"%0300d" in body or b"%d" in body else body) * n
                expected[who] += reply
                stream += push + reply
            stream += b">1\r\n+end\r\n"
            at, turns = 0, 0
            while at < len(stream):
                step = steps[turns % len(steps)]
                wire(redis).reply(stream[at : at + step])
                at, turns = at + step, turns + 1
            assert [caller.got for caller in callers] == expected
            assert not any(caller.pending for caller in callers)
            assert not link.fifo and not wire(redis).closing
            await link.close()

        with asyncio.Runner() as runner:
            check()

    async def test_a_caller_that_is_gone_does_not_shift_the_others(self, redis: ScriptedRedis, link: SharedLink) -> None:
        gone, other = Caller(link), Caller(link)
        gone.gone = True
        gone.ask(GET, GET)
        other.ask(GET)
        wire(redis).reply(b"+1\r\n+2\r\n+3\r\n", piece=1)
        assert (gone.pending, other.got) == (0, b"+3\r\n")

    async def test_drained_once_nothing_is_pending_and_may_ask_again(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(GET, GET)
        caller.draining = True
        caller.on_drained = lambda: caller.ask(SET) if caller.drains == 1 else None
        wire(redis).reply(b"+1\r\n")
        assert caller.drains == 0
        wire(redis).reply(b"+2\r\n")
        assert (caller.drains, caller.pending) == (1, 1)
        await turn()
        assert wire(redis).sent == GET + GET + SET
        wire(redis).reply(b"+3\r\n")
        assert caller.got == b"+1\r\n+2\r\n+3\r\n"


class TestALostConnection:
    async def test_reads_are_sent_again(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(GET, GET)
        caller.ask(GET)
        await turn()
        wire(redis).reply(b"+1\r\n")
        wire(redis).lose()
        await turn()
        assert len(redis.connections) == 2
        assert wire(redis).sent == GET + GET
        wire(redis).reply(b"+2\r\n+3\r\n")
        assert caller.got == b"+1\r\n+2\r\n+3\r\n"
        assert link.reconnects == 1

    async def test_only_those_not_answered_yet(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(*[encode.request("GET", key) for key in "abc"])
        caller.ask(*[encode.request("GET", key) for key in "de"])
        await turn()
        wire(redis).reply(b"+a\r\n+b\r\n")
        wire(redis).lose()
        await turn()
        assert wire(redis).requests == [[b"GET", key] for key in (b"c", b"d", b"e")]
        wire(redis).reply(b"+c\r\n+d\r\n+e\r\n")
        assert caller.got == b"+a\r\n+b\r\n+c\r\n+d\r\n+e\r\n"

    async def test_once_only(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller, late = Caller(link), Caller(link)
        caller.ask(GET)
        await turn()
        wire(redis).lose()
        await turn()
        late.ask(GET)
        await turn()
        wire(redis).lose()
        assert (caller.got, late.got) == (LOST, b"")
        await turn()
        assert wire(redis).sent == GET
        assert [connection.sent for connection in redis.connections] == [GET, GET + GET, GET]

    async def test_what_waits_behind_a_deadly_read_is_not_given_up(self, redis: ScriptedRedis, link: SharedLink) -> None:
        deadly, other = Caller(link), Caller(link)
        deadly.ask(encode.request("GET", "deadly"))
        other.ask(GET)
        for _ in range(2):
            await turn()
            wire(redis).lose()
        assert (deadly.got, other.got) == (LOST, b"")
        await turn()
        assert wire(redis).sent == GET
        wire(redis).reply(b"+1\r\n")
        assert other.got == b"+1\r\n"

    async def test_writes_are_answered_with_outcome_unknown(self, redis: ScriptedRedis, link: SharedLink) -> None:
        writer, reader = Caller(link), Caller(link)
        writer.ask(GET, SET)
        reader.ask(GET)
        writer.ask(GET)
        await turn()
        wire(redis).lose()
        assert (writer.got, writer.pending) == (LOST + UNKNOWN + LOST, 0)
        assert (reader.got, reader.pending) == (b"", 1)
        await turn()
        assert wire(redis).sent == GET
        wire(redis).reply(b"+1\r\n")
        assert reader.got == b"+1\r\n"

    @pytest.mark.parametrize("partial", [b"*2\r\n:1\r\n", b"$300\r\nabc", b"*1\r\n"])
    async def test_half_a_reply_cuts_its_caller_only(self, redis: ScriptedRedis, link: SharedLink, partial: bytes) -> None:
        one, two = Caller(link), Caller(link)
        one.ask(GET)
        two.ask(GET)
        one.ask(GET)
        await turn()
        wire(redis).reply(partial)
        wire(redis).lose()
        assert (one.was_cut, two.was_cut) == (1, 0)
        await turn()
        assert wire(redis).sent == GET
        wire(redis).reply(b"+2\r\n")
        assert two.got == b"+2\r\n"
        assert one.got == partial

    @pytest.mark.parametrize("partial", [b"*2\r", b"$", b"+O", b">2\r\n+a\r\n", b">1\r\n$300\r\n", b">"])
    async def test_half_a_header_or_a_push_cuts_nobody(self, redis: ScriptedRedis, link: SharedLink, partial: bytes) -> None:
        caller = Caller(link)
        caller.ask(GET)
        await turn()
        wire(redis).reply(partial)
        wire(redis).lose()
        await turn()
        wire(redis).reply(b"+1\r\n")
        assert (caller.was_cut, caller.got) == (0, b"+1\r\n")

    async def test_a_caller_that_is_gone_costs_the_others_nothing(self, redis: ScriptedRedis, link: SharedLink) -> None:
        gone, other = Caller(link), Caller(link)
        gone.gone = True
        gone.ask(SET)
        other.ask(SET)
        await turn()
        wire(redis).lose()
        assert other.got == UNKNOWN
        await turn()
        assert link.state is LinkState.READY
        redis.open.clear()
        wire(redis).lose()
        gone.ask(GET)
        other.ask(GET)
        redis.failure = OSError(111, "refused")
        redis.open.set()
        await turn()
        assert link.state is LinkState.DOWN
        assert other.got.endswith(b"is unreachable: refused\r\n")
        gone.ask(GET)
        redis.failure = None
        await turn()
        assert link.state is LinkState.READY

    async def test_those_held_back_are_let_go(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        link.wire_full()
        caller.ask(GET)
        wire(redis).lose()
        assert caller.held == [True, False]

    async def test_what_an_old_connection_says_later_is_ignored(self, redis: ScriptedRedis, link: SharedLink) -> None:
        old = link.wire
        assert old is not None
        old.drop("test")
        await turn()
        assert link.state is LinkState.READY
        assert link.reconnects == 1
        old.lost(None)
        assert link.state is LinkState.READY


class TestStates:
    async def test_held_while_connecting(self, redis: ScriptedRedis) -> None:
        redis.open.clear()
        link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY, DISPATCHER, (0.0, 0.0))
        caller = Caller(link)
        caller.ask(SET, GET)
        caller.ask(SET)
        await turn()
        assert (caller.got, link.state) == (b"", LinkState.CONNECTING)
        redis.open.set()
        await link.settled()
        assert wire(redis).sent == SET + GET + SET
        wire(redis).reply(b"+1\r\n+2\r\n+3\r\n")
        assert caller.got == b"+1\r\n+2\r\n+3\r\n"
        await link.close()

    async def test_held_within_a_limit(self, redis: ScriptedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared, "_HOLD_LIMIT", 2 * len(GET))
        redis.open.clear()
        link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY, DISPATCHER, (0.0, 0.0))
        few, many = Caller(link), Caller(link)
        few.ask(GET)
        many.ask(GET)
        assert not few.held and not many.held
        many.ask(GET)
        assert many.held == [True] and not few.held
        redis.open.set()
        await link.settled()
        assert many.held == [True, False]
        assert wire(redis).sent == GET * 3
        await link.close()

    async def test_refused_while_down_and_served_when_back(self, redis: ScriptedRedis) -> None:
        redis.failure = OSError(111, "Connection refused")
        link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY, DISPATCHER, (0.0, 0.0))
        caller = Caller(link)
        caller.ask(SET)
        await link.settled()
        refusal = b"-ERR pannier: upstream redis://localhost:6379/0 is unreachable: Connection refused\r\n"
        assert (caller.got, caller.pending, link.state) == (refusal, 0, LinkState.DOWN)
        caller.ask(GET, GET)
        assert caller.got == refusal * 3 and link.connector.tally.unserved == 3
        assert await Question().ask(link, GET) == refusal
        assert link.connector.tally.unserved == 3, "that was nobody's command"
        redis.failure = None
        await turn()
        assert link.state is LinkState.READY
        caller.ask(GET)
        wire(redis).reply(b"+1\r\n")
        assert caller.got == refusal * 3 + b"+1\r\n"
        await link.close()

    async def test_the_first_attempt_after_a_loss_holds_the_later_ones_refuse(self, redis: ScriptedRedis, link: SharedLink) -> None:
        redis.open.clear()
        redis.failure = OSError(111, "refused")
        wire(redis).lose()
        caller = Caller(link)
        caller.ask(GET)
        await turn()
        assert caller.got == b""
        redis.open.set()
        await turn()
        caller.ask(GET)
        assert caller.got.count(b"unreachable") == 2

    async def test_closed_refuses(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(GET)
        await link.close()
        assert caller.got.endswith(b"was closed by the sidecar\r\n")
        caller.ask(GET)
        assert caller.got.count(b"-ERR") == 2
        assert link.state is LinkState.CLOSED

    async def test_full_holds_callers_back_and_lets_them_go(self, redis: ScriptedRedis, link: SharedLink) -> None:
        one, two = Caller(link), Caller(link)
        assert wire(redis).high == 4 * 1024 * 1024
        wire(redis).protocol.pause_writing()
        assert link.state is LinkState.FULL
        one.ask(GET)
        assert (one.held, two.held) == ([True], [])
        await turn()
        assert wire(redis).sent == GET
        wire(redis).protocol.resume_writing()
        assert one.held == [True, False]
        one.ask(GET)
        two.ask(GET)
        assert (one.held, two.held, link.state) == ([True, False], [], LinkState.READY)

    async def test_a_refused_password_does_not_hang(self, redis: ScriptedRedis) -> None:
        redis.hello_error = b"-WRONGPASS invalid\r\n"
        link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY._replace(identity=Identity(b"u", b"p")), DISPATCHER, (0.0, 0.0))
        caller = Caller(link)
        caller.ask(GET)
        await link.settled()
        assert caller.got == b"-WRONGPASS invalid\r\n"
        assert b"AUTH\r\n$1\r\nu\r\n$1\r\np\r\n" in redis.connections[0].handshake
        await link.close()

    async def test_redis_that_wants_a_password_answers_by_itself(self, redis: ScriptedRedis) -> None:
        redis.hello_error = b"-NOAUTH HELLO must be called with\r\n"
        link = SharedLink(Connector(Upstream(), 30.0, 0.0), KEY._replace(protocol=2), DISPATCHER, (0.0, 0.0))
        await link.settled()
        assert link.auth_required and link.state is LinkState.READY
        await link.close()


class TestASilentLink:
    async def test_times_out(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        link.tick(1000.0, 30.0)
        caller.ask(SET)
        await turn()
        link.tick(1030.0, 30.0)
        assert caller.got == b""
        link.tick(1030.5, 30.0)
        assert caller.got.startswith(b"-ERR pannier: upstream redis://localhost:6379/0 did not answer within 30 s; outcome unknown")

    async def test_counts_from_the_first_look(self, redis: ScriptedRedis, link: SharedLink) -> None:
        """The first request on a fresh link has as long as any other."""
        caller = Caller(link)
        caller.ask(SET)
        await turn()
        link.tick(1000.0, 30.0)
        assert (caller.got, wire(redis).closing) == (b"", False)
        link.tick(1031.0, 30.0)
        assert wire(redis).closing

    async def test_any_reply_gives_time(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(GET, GET)
        for now in range(0, 200, 20):
            wire(redis).reply(b">1\r\n+alive\r\n")
            link.tick(float(now), 30.0)
        assert not wire(redis).closing

    async def test_owing_nothing_it_may_be_silent(self, redis: ScriptedRedis, link: SharedLink) -> None:
        link.tick(0.0, 30.0)
        link.tick(1000.0, 30.0)
        assert not wire(redis).closing

    async def test_the_next_connection_has_its_own_time(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(GET)
        await turn()
        link.tick(0.0, 30.0)
        link.tick(29.0, 30.0)
        wire(redis).lose()
        await turn()
        link.tick(31.0, 30.0)
        assert not wire(redis).closing
        wire(redis).reply(b"+1\r\n")
        assert caller.got == b"+1\r\n"

    async def test_without_a_connection_nothing_is_timed(self, redis: ScriptedRedis, link: SharedLink) -> None:
        redis.open.clear()
        wire(redis).lose()
        link.tick(0.0, 30.0)
        link.tick(99.0, 30.0)
        assert link.state is LinkState.CONNECTING


class TestDesync:
    @pytest.mark.parametrize("junk", [b"+OK\r\n", b"$3\r\nabc\r\n", b"*1", b"+"])
    async def test_a_reply_nobody_asked_for_kills_the_link(self, redis: ScriptedRedis, link: SharedLink, junk: bytes) -> None:
        first = wire(redis)
        first.reply(junk)
        assert first.closing
        await turn()
        assert link.state is LinkState.READY and wire(redis) is not first

    async def test_it_is_not_shown_as_it_may_be_a_value(
        self, redis: ScriptedRedis, link: SharedLink, caplog: pytest.LogCaptureFixture
    ) -> None:
        wire(redis).reply(b"$6\r\ns3cr3t\r\n")
        assert "sent a reply that nobody asked for: b'$'" in caplog.text and "s3cr3t" not in caplog.text + str(link.error)

    async def test_so_does_one_too_many(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller, other = Caller(link), Caller(link)
        caller.ask(GET)
        first = wire(redis)
        first.reply(b"+1\r\n+2\r\n")
        assert (caller.got, first.closing) == (b"+1\r\n", True)
        other.ask(GET)
        await turn()
        wire(redis).reply(b"+3\r\n")
        assert other.got == b"+3\r\n"

    async def test_so_do_bytes_that_are_no_resp(self, redis: ScriptedRedis, link: SharedLink) -> None:
        caller = Caller(link)
        caller.ask(SET)
        wire(redis).reply(b"HTTP/1.1 400 Bad Request\r\n")
        assert wire(redis).closing
        assert b"sent what is no RESP reply: b'H' and so on; outcome unknown" in caller.got


class TestQuestions:
    async def test_answer_in_pieces(self, redis: ScriptedRedis, link: SharedLink) -> None:
        task = asyncio.create_task(Question().ask(link, GET))
        await turn()
        wire(redis).reply(b"*2\r\n$300\r\n" + b"x" * 300 + b"\r\n:1\r\n", piece=7)
        assert await task == b"*2\r\n$300\r\n" + b"x" * 300 + b"\r\n:1\r\n"

    async def test_cut(self, redis: ScriptedRedis, link: SharedLink) -> None:
        task = asyncio.create_task(Question().ask(link, GET))
        await turn()
        wire(redis).reply(b"*2\r\n")
        wire(redis).lose()
        with pytest.raises(UpstreamError, match="broke off"):
            await task

    async def test_given_up_in_the_middle(self, redis: ScriptedRedis, link: SharedLink) -> None:
        task = asyncio.create_task(Question().ask(link, GET))
        other = Caller(link)
        await turn()
        task.cancel()
        await turn()
        other.ask(GET)
        wire(redis).reply(b"+1\r\n+2\r\n")
        assert other.got == b"+2\r\n"

    async def test_a_full_link_does_not_matter(self, redis: ScriptedRedis, link: SharedLink) -> None:
        link.wire_full()
        task = asyncio.create_task(Question().ask(link, GET))
        await turn()
        link.wire_writable()
        wire(redis).reply(b"+1\r\n")
        assert await task == b"+1\r\n"
