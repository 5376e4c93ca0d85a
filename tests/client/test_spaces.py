"""The spaces sessions live in: who gets where by AUTH, what each is counted for, what a tenant may do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.client import spaces as spaces_module
from proxy.client.flow import Reason
from proxy.client.meter import Meter
from proxy.client.spaces import WRONG_PASSWORD, Bucket, Spaces
from proxy.resp import encode
from proxy.resp.errors import UpstreamRefused
from proxy.resp.namespace import RefusedHere
from proxy.settings import Settings
from proxy.tenants import Tenant
from proxy.tier.rules import key_frame, marks
from proxy.upstream.address import Listen
from proxy.upstream.link import Identity
from tests.client.linked import DISPATCHER, Client, Connection, Linked, turn
from tests.tier.racing import Race

R = encode.request
GET = R("GET", "k")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spaces_module, "time", SimpleNamespace(monotonic=clock))
    return clock


def tenant(name: str, namespace: str | None = None, password: str = "pw", **limits: Any) -> Tenant:
    return Tenant(name, (hashlib.sha256(password.encode()).digest(),), name if namespace is None else namespace, **limits)


def answer(connection: Connection, arguments: list[bytes]) -> bytes:
    """A Redis that has nothing."""
    state, name = connection.state, arguments[0].upper()
    if "queued" in state and name not in (b"EXEC", b"MULTI"):
        state["queued"] += 1
        return b"+QUEUED\r\n"
    if name == b"MULTI":
        state["queued"] = 0
    if name == b"EXEC":
        return b"*%d\r\n" % state["queued"] + b"$-1\r\n" * state.pop("queued")
    return b"$-1\r\n" if name == b"GET" else b"+PONG\r\n" if name == b"PING" else encode.OK


Make = Callable[..., Linked]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes a linked sidecar of settings."""
    made: list[Linked] = []

    def factory(**options: Any) -> Linked:
        linked = Linked(monkeypatch, **options)
        linked.redis.answer = answer
        made.append(linked)
        return linked

    yield factory
    for linked in made:
        await linked.close()


async def arrive(linked: Linked, *login: str, namespace: str | None = None) -> Client:
    """A client whose link is up and who has authenticated, if `login` says so."""
    client = linked.client(namespace=namespace)
    await linked.redis.settle()
    if login:
        client.feed(R("AUTH", *login))
        await linked.redis.settle()
        assert client.take() == encode.OK
    return client


class TestABucket:
    def test_holds_what_may_be_done_in_a_second(self, clock: Clock) -> None:
        bucket = Bucket(10)
        assert bucket.left
        bucket.take(9)
        assert bucket.left
        bucket.take(1)
        assert not bucket.left

    def test_fills_at_its_rate_and_not_beyond(self, clock: Clock) -> None:
        bucket = Bucket(10)
        bucket.take(10)
        clock.now += 0.05
        assert not bucket.left
        clock.now += 0.0501
        assert bucket.left
        bucket.take(1)
        assert not bucket.left
        clock.now += 1000
        bucket.take(9)
        assert bucket.left
        bucket.take(1)
        assert not bucket.left, "a second's worth, however long it was left alone"

    def test_pays_back_what_was_taken_beyond(self, clock: Clock) -> None:
        bucket = Bucket(10)
        bucket.take(35)
        assert bucket.left < 1 and bucket.wait() == pytest.approx(2.6)
        clock.now += 2.5
        assert bucket.left < 1 and bucket.wait() == pytest.approx(0.1)
        clock.now += 0.11
        assert bucket.left and bucket.wait() == 0.0
        assert bucket.wait(3) == pytest.approx(0.19)

    def test_of_one_a_second(self, clock: Clock) -> None:
        bucket = Bucket(1)
        for _ in range(5):
            assert bucket.left
            bucket.take(1)
            assert not bucket.left
            clock.now += 1.0

    @given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3000)), max_size=30))
    def test_never_lets_more_through_than_its_rate(self, rate: int, script: list[tuple[int, int]]) -> None:
        """Who takes one by one, as long as it is not empty, gets a second's worth and the rate from then on."""
        clock = Clock()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spaces_module, "time", SimpleNamespace(monotonic=clock))
            bucket, taken = Bucket(rate), 0
            for wanted, milliseconds in script:
                clock.now += milliseconds / 1000
                for _ in range(wanted):
                    if bucket.left < 1:
                        break
                    bucket.take(1)
                    taken += 1
                assert taken <= rate + (clock.now - 1000.0) * rate + 0.001
                if bucket.left < 1:
                    wait = bucket.wait()
                    assert 0 < wait <= 1 / rate + 0.001


def refused(spaces: Spaces, *credentials: bytes) -> str:
    with pytest.raises(UpstreamRefused) as caught:
        spaces.judge(list(credentials))
    return str(caught.value)


class TestJudging:
    def test_where_nobody_has_a_password(self) -> None:
        spaces = Spaces(Settings(auth="none"), DISPATCHER, None)
        assert spaces.judge([b"default", b"anything"]) is None, "as Redis with nopass; the client stays where it is"
        assert refused(spaces, b"pw").startswith("ERR AUTH <password> called without any password configured")
        assert refused(spaces, b"acme", b"pw") == WRONG_PASSWORD

    def test_by_the_tenants_passwords(self) -> None:
        spaces = Spaces(Settings(tenants=(tenant("acme"), tenant("b", password="other"), tenant("default", "d"))), DISPATCHER, None)
        assert spaces.mode == "tenants"
        assert spaces.judge([b"acme", b"pw"]).name == "acme"
        assert spaces.judge([b"b", b"other"]).name == "b"
        assert spaces.judge([b"pw"]).name == "default", "AUTH with a password only means that user"
        for credentials in ([b"acme", b"other"], [b"acme", b""], [b"nobody", b"pw"], [b"", b"pw"], [b"\xff", b"pw"], [b"ACME", b"pw"], [b"other"]):
            assert refused(spaces, *credentials) == WRONG_PASSWORD

    def test_by_several_passwords(self) -> None:
        digests = tuple(hashlib.sha256(word).digest() for word in (b"old", b"new"))
        spaces = Spaces(Settings(tenants=(Tenant("acme", digests, "acme"),)), DISPATCHER, None)
        assert spaces.judge([b"acme", b"old"]) is spaces.judge([b"acme", b"new"])

    def test_nobody_is_in_before(self) -> None:
        spaces = Spaces(Settings(tenants=(tenant("acme"),)), DISPATCHER, None)
        assert spaces.start.locked and spaces.start.refuses_auth and spaces.start.guarded
        assert spaces.of(Listen(port=1)) is spaces.start
        acme = spaces.judge([b"acme", b"pw"])
        assert not acme.locked and acme.guarded and acme.prefix == b"acme:"

    def test_passthrough_leaves_auth_to_redis(self) -> None:
        spaces = Spaces(Settings(auth="passthrough", namespace="ns"), DISPATCHER, None)
        assert not spaces.start.refuses_auth and spaces.start.guarded
        assert not Spaces(Settings(), DISPATCHER, None).start.guarded
        assert Spaces(Settings(auth="none"), DISPATCHER, None).start.guarded

    def test_upstream_credentials(self) -> None:
        given_ = (tenant("a", upstream_username="u", upstream_password="p"), tenant("b", upstream_password="p"), tenant("c"))
        spaces = Spaces(Settings(tenants=given_), DISPATCHER, None)
        assert [spaces.find(name).identity for name in "abc"] == [Identity(b"u", b"p"), Identity(None, b"p"), None]


class TestListeners:
    def test_of_one_namespace_share_a_space(self) -> None:
        spaces = Spaces(Settings(), DISPATCHER, None)
        one, again, other = (spaces.of(Listen(port=port, namespace=name)) for port, name in ((1, "a"), (2, "a"), (3, "b")))
        assert one is again is spaces.find("a") and other is not one
        assert [space.name for space in spaces] == ["", "a", "b"]
        assert spaces.of(Listen(port=4)) is spaces.of(Listen(port=5, namespace="")) is spaces.start

    def test_without_one_beside_the_setting(self) -> None:
        spaces = Spaces(Settings(namespace="ns"), DISPATCHER, None)
        assert spaces.start.prefix == b"ns:"
        bare = spaces.of(Listen(port=1, namespace=""))
        assert bare.namespace is None and not bare.prefix
        assert spaces.of(Listen(port=1, namespace="ns")) is spaces.start

    @pytest.mark.parametrize("login", [["AUTH", "default", "x"], ["HELLO", "2", "AUTH", "default", "x"], ["HELLO", "3", "AUTH", "default", "x"]])
    async def test_keep_their_clients_whatever_they_say(self, make: Make, login: list[str]) -> None:
        """Where nobody has a password, AUTH as the default user succeeds; it does not lead out of the namespace."""
        linked = make(auth="none")
        space = linked.clients.spaces.of(Listen(port=1, namespace="a"))
        client = await arrive(linked, namespace="a")
        client.feed(R(*login))
        await linked.redis.settle()
        assert not client.take().startswith(b"-")
        assert client.session.space is space
        client.feed(GET)
        await linked.redis.settle()
        assert [b"GET", b"a:k"] in [request for wire in linked.redis.connections for request in wire.requests]


class TestScripts:
    def test_are_refused_by_the_setting(self) -> None:
        for setting, refuses in (("refuse", True), ("allow", False), ("warn", False)):
            space = Spaces(Settings(namespace="ns", namespace_scripts=setting), DISPATCHER, None).start
            for call in (["EVAL", "s", "1", "k"], ["fcall", "f", "0"], ["SCRIPT", "LOAD", "s"]):
                arguments = [word.encode() for word in call]
                command = DISPATCHER.find(arguments)
                if refuses:
                    with pytest.raises(RefusedHere):
                        space.translate(command, arguments)
                    with pytest.raises(RefusedHere):
                        space.leading(command, arguments, 9)
                else:
                    space.translate(command, arguments)

    def examined(self, *replies: bytes, channels: bool = False, users: tuple[bytes | None, ...] = (None,)) -> list[bytes]:
        """What is asked at the scripts of these users, two of each, if these are Redis' answers to each question in turn."""
        space = Spaces(Settings(namespace="ns", namespace_channels=channels), DISPATCHER, None).start
        asked: list[bytes] = []

        def submit(caller: Any, n: int, request: bytes) -> None:
            asked.append(request)
            if len(asked) <= len(replies):
                caller.finish(replies[len(asked) - 1])
            else:
                caller.cut()

        for user in users:
            link: Any = SimpleNamespace(submit=submit, key=SimpleNamespace(identity=Identity(user, b"pw")))
            for call in ([b"GET"], [b"NOSUCH"], [b"EVAL"], [b"SCRIPT", b"LOAD"], [b"FCALL"]):
                space.examine(DISPATCHER.find(call), link)
        return asked

    def test_are_asked_about_once_for_each_user(self, caplog: pytest.LogCaptureFixture) -> None:
        asked = self.examined(encode.array([]), encode.array([b"$4\r\nkeys\r\n"]), encode.array([b"$3\r\nall\r\n"]), users=(b"walled", b"open", None))
        assert len(asked) == 3 and all(b"EVAL" in request for request in asked)
        assert [record.getMessage().partition(", and ")[0] for record in caplog.records] == ["a script runs in namespace ns as Redis' user open", "a script runs in namespace ns as Redis' user default"]
        first, second = caplog.messages
        assert "would let it reach keys of others: restrict" in first and "~ns:*" in first
        assert "would let it empty or exchange whole databases (FLUSHALL" in second

    def test_all_they_may_do_is_said_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        answer = encode.array([b"$4\r\nkeys\r\n"] * 2 + [b"$3\r\nall\r\n", b"$8\r\nchannels\r\n"])
        self.examined(answer)
        assert "reach keys of others, and empty" in caplog.text and "publish" not in caplog.text, "channels are everybody's"
        self.examined(answer, channels=True)
        assert "SWAPDB), and publish to channels of others" in caplog.text

    @pytest.mark.parametrize(("about_keys", "warns"), [(b":0\r\n", True), (b"-NOPERM no key\r\n", False)])
    def test_of_who_may_not_eval_are_asked_about_by_a_key(self, caplog: pytest.LogCaptureFixture, about_keys: bytes, warns: bool) -> None:
        asked = self.examined(b"-NOPERM no EVAL\r\n", about_keys)
        assert len(asked) == 2 and b"EXISTS" in asked[1]
        assert bool(caplog.records) is warns

    @pytest.mark.parametrize("reply", [[], [b"-LOADING wait\r\n"] * 3])
    def test_of_which_redis_says_nothing_are_asked_about_again(self, caplog: pytest.LogCaptureFixture, reply: list[bytes]) -> None:
        assert len(self.examined(*reply)) == 3
        assert not caplog.records

    def test_without_a_namespace_are_nobodys_business(self) -> None:
        space = Spaces(Settings(namespace_scripts="refuse"), DISPATCHER, None).start
        arguments = [b"EVAL", b"s", b"0"]
        assert space.translate(DISPATCHER.find(arguments), arguments) == (arguments, None)
        assert space.leading(DISPATCHER.find(arguments), arguments, 9) == (arguments, None)


class TestRuns:
    def test_that_cannot_be_searched_bring_their_marks(self) -> None:
        space = Spaces(Settings(namespace="ns"), DISPATCHER, None).start
        assert space.real_run(2, R("SET", "a", "1") + R("SET", "b", "2")) == (R("SET", "ns:a", "1") + R("SET", "ns:b", "2"), None)
        data = R("SET", "a*", "1") + R("SET", "k", R("GET", "x"))
        real = R("SET", "ns:a*", "1") + R("SET", "ns:k", R("GET", "x"))
        assert space.real_run(2, data) == (real, marks([key_frame(b"ns:a*"), key_frame(b"ns:k")]))
        assert space.real(2, data) == real
        long = "x" * 255
        assert space.real_run(1, R("SET", long, "v")) == (R("SET", "ns:" + long, "v"), marks([key_frame(b"ns:" + long.encode())]))

    def test_without_a_namespace_stay(self) -> None:
        space = Spaces(Settings(), DISPATCHER, None).start
        assert space.real_run(1, GET) == (GET, None) and space.real(1, GET) == GET

    async def test_reach_redis_with_the_prefix(self, make: Make) -> None:
        linked = make(namespace="ns")
        client = await arrive(linked)
        client.feed(GET, GET + R("SET", "a*", "v"), R("gEt", "k"), R("MGET", "a", "b"), R("PING"), R("DEL", "a", "b"))
        await linked.redis.settle()
        assert linked.wire.requests == [[b"GET", b"ns:k"]] * 2 + [[b"SET", b"ns:a*", b"v"], [b"gEt", b"ns:k"], [b"MGET", b"ns:a", b"ns:b"], [b"PING"], [b"DEL", b"ns:a", b"ns:b"]]

    async def test_after_auth_take_the_new_spaces_prefix(self, make: Make) -> None:
        """What is recognised unparsed changes with the space, too: PING has no key, and would get none."""
        linked = make(tenants=(tenant("a"), tenant("b"), tenant("all", "")))
        client = await arrive(linked, "a", "pw")
        for name, key in (("a", b"a:k"), ("b", b"b:k"), ("all", b"k"), ("a", b"a:k")):
            client.feed(R("AUTH", name, "pw") + GET + R("PING") + GET)
            await linked.redis.settle()
            assert client.take() == b"+OK\r\n$-1\r\n+PONG\r\n$-1\r\n"
            wire = client.session.home.wire
            assert wire is not None
            assert wire.transport.requests[-3:] == [[b"GET", key], [b"PING"], [b"GET", key]]  # type: ignore[attr-defined]


BIG = b"v" * 300_000


async def test_what_is_recognised_unparsed_changes_with_the_space(make: Make) -> None:
    """XACK passes unparsed where there is no namespace; in one, its error may name a key."""
    linked = make(tenants=(tenant("a"), tenant("all", "")))
    linked.redis.answer = lambda connection, arguments: b"-NOGROUP No such key '%b'\r\n" % arguments[1]
    client = await arrive(linked)
    for name in ("all", "a", "all", "a"):
        client.feed(R("AUTH", name, "pw"))
        await linked.redis.settle()
        client.take()
        client.feed(R("XACK", "k", "g", "1-1"))
        await linked.redis.settle()
        assert client.take() == b"-NOGROUP No such key 'k'\r\n"
        wire = client.session.home.wire
        assert wire is not None
        assert wire.transport.requests[-1][1] == (b"k" if name == "all" else b"a:k")  # type: ignore[attr-defined]


class TestLargeCommands:
    """They come in pieces, and are relayed so once it is known which of their arguments are keys."""

    async def send(self, linked: Linked, data: bytes, piece: int = 65_536) -> bytes:
        client = await arrive(linked)
        for start in range(0, len(data), piece):
            client.feed(data[start : start + piece])
            await linked.redis.settle()
        client.feed(GET)
        await linked.redis.settle()
        return client.take()

    def asked(self, linked: Linked) -> list[list[bytes]]:
        return [request for wire in linked.redis.connections for request in wire.requests if request[0] != b"PING"]

    @pytest.mark.parametrize("piece", [65_536, 9_999, 299_999])
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([b"SET", b"k", BIG], [b"SET", b"ns:k", BIG]),
            ([b"MSET", b"a", BIG, b"b", b"1"], [b"MSET", b"ns:a", BIG, b"ns:b", b"1"]),
            ([b"DEL", *[b"%d" % n * 50 for n in range(4000)]], [b"DEL", *[b"ns:" + b"%d" % n * 50 for n in range(4000)]]),
            ([b"EVAL", BIG, b"1", b"k", b"v"], [b"EVAL", BIG, b"1", b"ns:k", b"v"]),
            ([b"EVAL", b"s", b"1", b"k", BIG], [b"EVAL", b"s", b"1", b"ns:k", BIG]),
            ([b"SADD", b"k", *[BIG[:5000]] * 80], [b"SADD", b"ns:k", *[BIG[:5000]] * 80]),
            ([b"GET", BIG], [b"GET", b"ns:" + BIG]),
            ([b"PUBLISH", b"c", BIG], [b"PUBLISH", b"c", BIG]),
            ([b"SORT", b"k", b"BY", b"w_*->" + BIG], [b"SORT", b"ns:k", b"BY", b"ns:w_*->" + BIG]),
            ([b"SORT", b"k", b"BY", b"nosort", b"GET", b"other:*->" + BIG], [b"SORT", b"ns:k", b"BY", b"nosort", b"GET", b"ns:other:*->" + BIG]),
        ],
        ids=["SET", "MSET", "DEL", "script", "EVAL", "SADD", "GET", "PUBLISH", "SORT BY", "SORT GET"],
    )  # fmt: skip
    async def test_bear_the_prefix(self, make: Make, words: list[bytes], expected: list[bytes], piece: int) -> None:
        linked = make(namespace="ns", namespace_scripts="allow")
        await self.send(linked, R(*words), piece)
        asked = self.asked(linked)
        assert [request == expected for request in asked if request != [b"GET", b"ns:k"]] == [True], [[word[:20] for word in request] for request in asked]
        assert [b"GET", b"ns:k"] in asked

    @pytest.mark.parametrize("words", [[b"CONFIG", b"SET", b"x", BIG], [b"NOSUCH", BIG], [b"DEBUG", BIG], [b"FUNCTION", b"LOAD", BIG]])
    async def test_refused_are_stepped_over(self, make: Make, words: list[bytes]) -> None:
        linked = make(namespace="ns")
        reply = await self.send(linked, R(*words))
        assert reply.startswith(b"-ERR pannier: ") and reply.endswith(b"\r\n$-1\r\n") and reply.count(b"\r\n") == 2
        assert self.asked(linked) == [[b"GET", b"ns:k"]]

    async def test_of_a_tenant_that_has_done_all_it_may(self, make: Make, clock: Clock) -> None:
        linked = make(tenants=(tenant("a", max_ops_per_second=5),))
        client = await arrive(linked, "a", "pw")
        client.feed(GET * 6)
        await linked.redis.settle()
        client.take()
        data = R("SET", "k", BIG)
        for start in range(0, len(data), 65_536):
            client.feed(data[start : start + 65_536])
        assert client.take() == over("200 ms")
        clock.now += 5
        client.feed(GET)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n"

    async def test_inside_a_transaction(self, make: Make) -> None:
        linked = make(namespace="ns")
        client = await arrive(linked)
        for data in (R("MULTI"), R("SET", "k", BIG), R("MSET", "a", BIG), R("CONFIG", "SET", "x", BIG), R("EXEC")):
            for start in range(0, len(data), 65_536):
                client.feed(data[start : start + 65_536])
                await linked.redis.settle()
        asked = [request for request in self.asked(linked) if request[0] != b"CLIENT"]
        assert [request[:2] for request in asked] == [[b"MULTI"], [b"SET", b"ns:k"], [b"MSET", b"ns:a"], [b"GET"], [b"EXEC"]]
        assert b"-ERR pannier: CONFIG SET is refused in a namespace" in client.take()


class TestTracking:
    @pytest.mark.parametrize("option", ["REDIRECT", "redirect", "REDIRECT\0"])
    async def test_cannot_be_redirected_to_connections_of_others(self, make: Make, option: str) -> None:
        """Redis compares options as C strings, which end at a zero byte; 7 would be one of its own ids."""
        linked = make(namespace="ns")
        client = await arrive(linked)
        client.feed(R("CLIENT", "TRACKING", "ON", option, 7))
        await linked.redis.settle()
        assert client.take() == b"-ERR The client ID you want redirect to does not exist\r\n"
        assert not [request for wire in linked.redis.connections for request in wire.requests if b"7" in request]


class TestRefusals:
    async def test_come_in_their_order(self, make: Make) -> None:
        linked = make(namespace="ns")
        client = await arrive(linked)
        client.feed(GET + R("CONFIG", "GET", "*") + GET + R("nosuch", "k") + R("OBJECT", "HELP"))
        await linked.redis.settle()
        first, second, third, fourth, fifth = client.take().split(b"\r\n")[:-1]
        assert (first, third, fifth) == (b"$-1", b"$-1", b"+OK")
        assert second == b"-ERR pannier: CONFIG GET is refused in a namespace: it concerns the whole server"
        assert fourth.startswith(b"-ERR pannier: 'nosuch' is refused in a namespace")
        assert linked.clients.spaces.start.commands == 5

    async def test_of_who_has_not_authenticated(self, make: Make) -> None:
        linked = make(tenants=(tenant("a"),))
        client = await arrive(linked)
        noauth = b"-NOAUTH Authentication required.\r\n"
        for request in (GET, R("SIDECAR", "STATS"), R("DBSIZE"), R("NOSUCH"), R("MULTI"), R("SUBSCRIBE", "c"), R("CLIENT", "LIST"), R("INFO"), R("MONITOR")):
            client.feed(request)
            await linked.redis.settle()
            assert client.take() == noauth, request
        assert not [request for wire in linked.redis.connections for request in wire.requests]


class TestStatistics:
    async def test_of_a_session_that_changes_spaces_count_once(self, make: Make) -> None:
        linked = make(tenants=(tenant("a"), tenant("b")))
        spaces = linked.clients.spaces
        client = await arrive(linked, "a", "pw")
        for _ in range(3):
            client.feed(GET)
        await linked.redis.settle()
        a, b, start = spaces.find("a"), spaces.find("b"), spaces.start
        assert (start.commands, a.commands, b.commands) == (1, 3, 0)
        client.feed(R("AUTH", "b", "pw"))
        await linked.redis.settle()
        client.feed(GET + GET)
        await linked.redis.settle()
        assert (start.commands, a.commands, b.commands) == (1, 4, 2)
        client.feed(R("AUTH", "a", "pw"))
        await linked.redis.settle()
        client.feed(GET)
        assert (start.commands, a.commands, b.commands) == (1, 5, 3)
        assert linked.clients.commands == client.session.served == 9
        client.leave()
        assert (start.commands, a.commands, b.commands) == (1, 5, 3)
        assert linked.clients.commands == 9
        assert not any(space.sessions for space in spaces)

    async def test_of_an_auth_that_fails(self, make: Make) -> None:
        linked = make(tenants=(tenant("a"),))
        client = await arrive(linked, "a", "pw")
        client.feed(GET, R("AUTH", "a", "wrong"), GET)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n-" + WRONG_PASSWORD.encode() + b"\r\n$-1\r\n"
        assert linked.clients.spaces.find("a").commands == 3
        assert client.session.space.name == "a"

    async def test_of_the_same_tenant_again(self, make: Make) -> None:
        linked = make(tenants=(tenant("a", max_clients=1),))
        client = await arrive(linked, "a", "pw")
        client.feed(R("AUTH", "a", "pw"), GET)
        await linked.redis.settle()
        assert client.take() == b"+OK\r\n$-1\r\n"
        assert linked.clients.spaces.find("a").commands == 2
        assert len(linked.clients.spaces.find("a").sessions) == 1

    async def test_of_reset(self, make: Make) -> None:
        linked = make(tenants=(tenant("a"),))
        client = await arrive(linked, "a", "pw")
        client.feed(GET, R("RESET"), GET)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n+RESET\r\n-NOAUTH Authentication required.\r\n"
        start, a = linked.clients.spaces.start, linked.clients.spaces.find("a")
        assert client.session.space is start
        assert start.commands + a.commands == client.session.served
        assert list(start.sessions) == [client.session] and not a.sessions

    async def test_of_hits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tenants=(tenant("a"), tenant("b", "a")))
        race.redis.direct("SET", "a:k", "v")
        client = await race.ready()
        spaces = race.clients.spaces
        a, b = spaces.find("a"), spaces.find("b")
        for name in ("a", "b"):
            client.feed(R("AUTH", name, "pw"))
            await race.settle()
            client.take()
            race.vouch(client)
            assert await race.ask(client, "GET", "k") == b"$1\r\nv\r\n"
            for _ in range(3):
                race.vouch(client)
                assert race.hit(client, "GET", "k") == b"$1\r\nv\r\n"
        assert (a.hits, b.hits, race.clients.hits) == (3, 3, 6)
        assert a.account is not None and b.account is not None
        assert (a.account.hits, b.account.hits, a.account.fills, b.account.fills) == (3, 3, 1, 1)
        assert race.clients.commands == client.session.served
        client.leave()
        assert (a.hits, b.hits, race.clients.hits) == (3, 3, 6)
        await race.close()

    async def test_what_one_tenant_has_read_answers_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Race(monkeypatch, tenants=(tenant("a"), tenant("b")))
        race.redis.direct("SET", "a:k", "secret")
        client = await race.ready()
        for name, expected in (("a", b"$6\r\nsecret\r\n"), ("b", b"$-1\r\n"), ("a", b"$6\r\nsecret\r\n")):
            client.feed(R("AUTH", name, "pw"))
            await race.settle()
            client.take()
            race.vouch(client)
            assert await race.ask(client, "GET", "k") == expected
            race.vouch(client)
            assert race.hit(client, "GET", "k") == expected
        await race.close()


class TestMaxClients:
    async def test_of_a_tenant(self, make: Make) -> None:
        linked = make(tenants=(tenant("a", max_clients=2), tenant("b")))
        one, two = await arrive(linked, "a", "pw"), await arrive(linked, "a", "pw")
        three = await arrive(linked, "b", "pw")
        error = b"-ERR max number of clients reached: tenant 'a' has its max_clients of 2\r\n"
        three.feed(R("AUTH", "a", "pw"), GET)
        await linked.redis.settle()
        assert three.take() == error + b"$-1\r\n"
        assert three.session.space.name == "b", "it stays where it was"
        assert list(linked.clients.spaces.find("b").sessions) == [three.session]
        one.leave()
        three.feed(R("AUTH", "a", "pw"))
        await linked.redis.settle()
        assert three.take() == encode.OK
        two.feed(R("RESET"))
        await linked.redis.settle()
        spaces = linked.clients.spaces
        assert [len(space.sessions) for space in (spaces.start, spaces.find("a"), spaces.find("b"))] == [1, 1, 0]

    async def test_leaves_no_link_behind(self, make: Make) -> None:
        linked = make(tenants=(tenant("a", max_clients=1),))
        await arrive(linked, "a", "pw")
        other = await arrive(linked)
        users = {key: link.users for key, link in linked.links.shared.items()}
        other.feed(R("HELLO", 3, "AUTH", "a", "pw"))
        await linked.redis.settle()
        assert other.take().startswith(b"-ERR max number of clients reached")
        after = {key: link.users for key, link in linked.links.shared.items()}
        assert {key: count for key, count in after.items() if count} == {key: count for key, count in users.items() if count}
        assert other.session.protocol == 2


def over(wait: str) -> bytes:
    return b"-ERR pannier: tenant 'a' is over its max_ops_per_second of 5; try again in about %b\r\n" % wait.encode()


OVER = over("200 ms")


class Later:
    """Takes the place of the loop's `call_later`."""

    def __init__(self, linked: Linked) -> None:
        self._linked = linked
        self._calls: list[tuple[float, Callable[..., object], tuple[object, ...]]] = []

    def __call__(self, delay: float, call: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        self._calls.append((delay, call, arguments))
        return asyncio.TimerHandle(0.0, call, arguments, loop)

    async def pass_on(self, clock: Clock) -> None:
        """Let time pass up to the next one of them."""
        await self._linked.redis.settle()
        if self._calls:
            delay, call, arguments = min(self._calls, key=lambda item: item[0])
            self._calls.remove((delay, call, arguments))
            assert delay <= 1.0
            clock.now += delay
            call(*arguments)
        await self._linked.redis.settle()


class TestMaxOperations:
    @pytest.fixture
    def linked(self, make: Make, clock: Clock) -> Linked:
        return make(tenants=(tenant("a", max_ops_per_second=5), tenant("b")))

    async def test_put_a_meter_before_the_session(self, linked: Linked) -> None:
        client = linked.client()
        await linked.redis.settle()
        assert client.transport.get_protocol() is client.session
        for name, metered in (("a", True), ("b", False), ("a", True)):
            client.feed(R("AUTH", name, "pw"))
            await linked.redis.settle()
            assert isinstance(client.transport.get_protocol(), Meter) is metered
        client.feed(R("RESET"))
        await linked.redis.settle()
        assert client.transport.get_protocol() is client.session

    async def test_are_refused_beyond_one_by_one_and_in_order(self, linked: Linked, clock: Clock) -> None:
        client = await arrive(linked, "a", "pw")
        for _ in range(5):
            client.feed(GET)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n" * 5
        client.feed(GET + R("gEt", "k") + R("OBJECT", "HELP"))
        assert client.take() == OVER * 3
        space = linked.clients.spaces.find("a")
        assert (space.refused, space.commands) == (3, 5), "what is refused is not charged"
        clock.now += 0.25
        client.feed(GET)
        client.feed(GET)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n" + over("150 ms")
        assert len(linked.wire.requests) == 6

    async def test_are_refused_behind_what_is_pending(self, linked: Linked) -> None:
        client = await arrive(linked, "a", "pw")
        client.feed(GET * 5)
        client.feed(GET)
        assert client.take() == b""
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n" * 5 + OVER

    @pytest.mark.parametrize("data", [GET, R("gEt", "k"), R("GET", "*k*"), R("SET", "k", GET), b"GET k\r\n", R("EXISTS", "a", "b")], ids=["GET", "gEt", "stars", "a star in a value", "inline", "EXISTS"])
    async def test_of_one_chunk_are_done_as_far_as_they_may(self, linked: Linked, clock: Clock, data: bytes) -> None:
        linked.redis.answer = lambda connection, arguments: b"$-1\r\n"
        client = await arrive(linked, "b", "pw")
        client.feed(R("AUTH", "a", "pw"))
        await linked.redis.settle()
        client.take()
        client.feed(data * 25)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n" * 5 + OVER * 20
        clock.now += 0.5
        client.feed(data * 3)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n" * 2 + over("100 ms")

    async def test_say_how_long_it_will_take(self, linked: Linked) -> None:
        client = await arrive(linked, "a", "pw")
        bucket = linked.clients.spaces.find("a").bucket
        assert bucket is not None
        bucket.take(62)  # as SIDECAR WARM does
        client.feed(GET)
        assert client.take() == over("12 s")

    async def test_are_of_all_connections_together(self, linked: Linked) -> None:
        one, two = await arrive(linked, "a", "pw"), await arrive(linked, "a", "pw")
        other = await arrive(linked, "b", "pw")
        one.feed(GET * 5)
        two.feed(GET)
        other.feed(GET * 50)
        await linked.redis.settle()
        assert (two.take(), other.take()) == (OVER, b"$-1\r\n" * 50)

    async def test_sent_in_one_chunk_with_auth_are_charged(self, linked: Linked) -> None:
        """They are taken once AUTH is answered; whoever then leaves and comes again has not had them for free."""
        for _ in range(2):
            client = linked.client()
            await linked.redis.settle()
            client.feed(R("AUTH", "a", "pw") + GET * 25)
            await linked.redis.settle()
            client.take()
            client.leave()
            await turn()
        late = await arrive(linked, "a", "pw")
        late.feed(GET)
        assert late.take() == OVER

    async def test_taken_when_the_client_waits_are_charged(self, linked: Linked) -> None:
        """What stood in the buffer behind a command of several steps."""
        client = await arrive(linked, "a", "pw")
        client.feed(R("SELECT", 1) + GET * 25)
        await linked.redis.settle()
        assert client.take() == encode.OK + b"$-1\r\n" * 4 + OVER * 21
        client.leave()
        other = await arrive(linked, "a", "pw")
        other.feed(GET)
        assert other.take() == OVER

    @pytest.fixture
    async def later(self, linked: Linked, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Later]:
        """What has been put off."""
        later = Later(linked)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "call_later", later)
            yield later

    @pytest.mark.parametrize("piece", [1000, 7], ids=["one chunk", "small chunks"])
    @pytest.mark.parametrize(
        "begin", [R("MULTI"), b"multi\r\n", R("WATCH", "k") + R("MULTI"), R("HELLO", 3) + R("MULTI")], ids=["MULTI", "inline", "WATCH", "RESP3"]
    )
    async def test_of_a_transaction_are_done_together_or_wait(self, linked: Linked, clock: Clock, later: Later, begin: bytes, piece: int) -> None:
        """Refused one by one, those behind a refused MULTI would be carried out by themselves (Redis would)."""
        client = await arrive(linked, "a", "pw")
        client.feed(GET * 6)
        await linked.redis.settle()
        assert client.take() == b"$-1\r\n" * 5 + OVER
        pipeline = begin + R("INCR", "k") * 3 + R("EXEC") + GET
        for start in range(0, len(pipeline), piece):
            client.unheard += pipeline[start : start + piece]
            client.hear()
        for _ in range(12):
            await later.pass_on(clock)
            client.hear()
        asked = [request[0].lower() for wire in linked.redis.connections for request in wire.requests if request[0] not in (b"GET", b"CLIENT", b"PING")]
        assert asked[-5:] == [b"multi", b"incr", b"incr", b"incr", b"exec"]
        assert b"-" not in client.take().replace(b"$-1", b"").replace(OVER, b"")

    @pytest.mark.parametrize("words", [["SELECT", "1"], ["SUBSCRIBE", "c"], ["CLIENT", "TRACKING", "ON"], ["SIDECAR", "BYPASS", "ON"], ["WATCH", "k" * 300_000]])
    async def test_on_which_later_ones_depend_wait(self, linked: Linked, clock: Clock, later: Later, words: list[str]) -> None:
        client = await arrive(linked, "a", "pw")
        client.feed(GET * 5)
        await linked.redis.settle()
        client.take()
        client.feed(R(*words))
        await linked.redis.settle()
        assert client.take() == b"" and not client.transport.reading
        await later.pass_on(clock)
        assert client.take().startswith(b"+OK") and client.transport.reading

    async def test_that_wait_come_before_those_that_are_refused(self, linked: Linked, clock: Clock, later: Later) -> None:
        one, two, three = [await arrive(linked, "a", "pw") for _ in range(3)]
        one.feed(GET * 5)
        two.feed(R("MULTI"))
        three.feed(R("MULTI"))
        clock.now += 0.25
        one.feed(GET)
        await linked.redis.settle()
        assert one.take() == b"$-1\r\n" * 5 + over("350 ms"), "behind both"
        three.leave()
        one.feed(GET)
        assert one.take() == over("150 ms"), "who leaves gives back what it waited for"
        clock.now -= 0.25
        await later.pass_on(clock)
        assert two.take() == encode.OK

    async def test_inside_a_transaction_wait(self, linked: Linked, clock: Clock, later: Later) -> None:
        """An error would break it."""
        client = await arrive(linked, "a", "pw")
        client.feed(R("MULTI"))
        await linked.redis.settle()
        client.feed(GET * 6 + R("EXEC"))
        await linked.redis.settle()
        assert client.take() == encode.OK + b"+QUEUED\r\n" * 4
        assert client.session.flow.reasons & Reason.RATE and not client.transport.reading
        for replies in (b"+QUEUED\r\n", b"+QUEUED\r\n", b"*6\r\n" + b"$-1\r\n" * 6):
            await later.pass_on(clock)
            assert client.take() == replies
        assert client.transport.reading

    async def test_inside_a_transaction_wait_for_as_long_as_it_is_large(self, linked: Linked, clock: Clock, later: Later) -> None:
        client = await arrive(linked, "a", "pw")
        client.feed(R("MULTI") + R("SET", "k", "v") * 4 + R("SET", "k", "v" * 300_000)[:280_000])
        await linked.redis.settle()
        assert client.take() == encode.OK + b"+QUEUED\r\n" * 4 and not client.transport.reading
        await later.pass_on(clock)
        client.feed(R("SET", "k", "v" * 300_000)[280_000:])
        await linked.redis.settle()
        assert client.take() == b"+QUEUED\r\n"

    async def test_of_hits_are_charged(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        race = Race(monkeypatch, tenants=(tenant("a", max_ops_per_second=5),))
        client = race.client()
        await race.settle()
        client.feed(R("AUTH", "a", "pw"))
        await race.settle()
        race.vouch(client)
        client.feed(GET)
        await race.settle()
        client.take()
        for _ in range(4):
            race.vouch(client)
            client.feed(GET)
            assert client.take() == b"$-1\r\n"
        client.feed(GET)
        assert client.take() == OVER
        assert client.session.hits == 4
        await race.close()

    async def test_passes_the_rest_on(self, linked: Linked) -> None:
        client = await arrive(linked, "a", "pw")
        meter = client.transport.get_protocol()
        meter.pause_writing()
        assert client.session.flow.reasons & Reason.OUTPUT
        meter.resume_writing()
        assert not client.session.flow.reasons
        assert meter.eof_received() is False
        meter.connection_lost(None)
        assert not linked.clients.sessions
        client.transport.closing = True
