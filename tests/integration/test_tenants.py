"""Tenants: who comes in, what each of them sees, and that no limit or name of one reaches another."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import AuthenticationError, Redis, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness import Process, free_port, pannier, redis_server, wait_until
from tests.integration.test_tier_reads import Monitor, ask_all, reply
from tests.integration.wire import Wire, in_background, request, text

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])

NOAUTH = b"-NOAUTH Authentication required.\r\n"
WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NULL = {2: b"$-1\r\n", 3: b"_\r\n"}
OK = b"+OK\r\n"
SHARE = 96 << 10
NEVER = Retry(NoBackoff(), 0)
RATE = 40
SECOND = free_port()
"""Where a second listener serves another namespace."""

TENANTS = f"""
max_memory = "16mb"
canary_interval = "100ms"

[tenants.acme]
password = "acme-pw"

[tenants.globex]
password = ["#{hashlib.sha256(b"globex-old").hexdigest()}", "globex-new"]
namespace = "customers:globex"

[tenants.filed]
password_file = "DIRECTORY/password"

[tenants.envied]
password_env = "PANNIER_TEST_PASSWORD"

[tenants.hashed]
password = "#{hashlib.sha256(b"hashed-pw").hexdigest().upper()}"

[tenants.operator]
password = "operator-pw"
namespace = ""

[tenants.few]
password = "few-pw"
max_clients = 2

[tenants.slow]
password = "slow-pw"
max_ops_per_second = {RATE}

[tenants.swift]
password = "swift-pw"
max_ops_per_second = 300

[tenants.small]
password = "small-pw"
max_memory = {SHARE}

[tenants.walled]
password = "walled-pw"
upstream_username = "walled"
upstream_password = "walled-up"

[tenants.nobody]
password = "nobody-pw"
upstream_username = "nobody"
upstream_password = "wrong"
"""
PASSWORDS = {
    "acme": ["acme-pw"], "globex": ["globex-old", "globex-new"], "filed": ["filed pw"], "envied": ["env-pw"],
    "hashed": ["hashed-pw"], "operator": ["operator-pw"], "few": ["few-pw"], "slow": ["slow-pw"],
    "swift": ["swift-pw"], "small": ["small-pw"], "walled": ["walled-pw"],
}  # fmt: skip


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A redis-server with ACL users: one walled in a namespace, one who may do all."""
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process, Wire(process.port) as wire:
        assert wire.line("ACL SETUSER walled on >walled-up ~walled:* &* +@all") == OK
        assert wire.line("ACL SETUSER other on >other-up ~* &* +@all") == OK
        yield process


@pytest.fixture(scope="module")
def house(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A pannier with all the tenants."""
    directory = tmp_path_factory.mktemp("pannier")
    (directory / "password").write_text("filed pw\r\nnot this\n")
    config = directory / "pannier.toml"
    config.write_text(TENANTS.replace("DIRECTORY", str(directory)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PANNIER_TEST_PASSWORD", "env-pw")
        started = pannier(url(upstream), directory, "--config", str(config))
        process = started.__enter__()
    try:
        yield process
        assert "Traceback" not in process.output and "internal error" not in process.output
    finally:
        started.__exit__(None, None, None)


@pytest.fixture(scope="module")
def open_house(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A pannier that checks no passwords, with three listeners: of `first`, of `second`, and bare."""
    directory = tmp_path_factory.mktemp("pannier")
    second = ["--listen", f"127.0.0.1:{SECOND}?namespace=second", "--listen", f"127.0.0.1:{free_port()}?namespace="]
    with pannier(url(upstream), directory, "--auth", "none", "--namespace", "first", *second) as process:
        yield process
        assert "Traceback" not in process.output and "internal error" not in process.output


@pytest.fixture(scope="module")
def passing(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A pannier in a namespace that has Redis check passwords."""
    with Wire(upstream.port) as wire:
        assert wire.line("ACL SETUSER one on >one-pw ~ns:* &* +@all") == OK
        assert wire.line("ACL SETUSER two on >two-pw ~ns:public:* &* +@all -@dangerous") == OK
    with pannier(url(upstream), tmp_path_factory.mktemp("pannier"), "--auth", "passthrough", "--namespace", "ns") as process:
        yield process
        assert "Traceback" not in process.output and "internal error" not in process.output


@pytest.fixture
def redis(upstream: Process) -> Process:
    """`upstream`, emptied."""
    with Wire(upstream.port) as wire:
        assert wire.line("FLUSHALL") == OK
    return upstream


@pytest.fixture
def proxy(redis: Process, house: Process) -> Process:
    """`house`, with nothing in Redis nor in memory."""
    with tenant(house, "operator") as wire:
        assert wire.line("SIDECAR FLUSH") == OK
    return house


def url(redis: Process, user: str = "") -> str:
    return f"redis://{user}127.0.0.1:{redis.port}"


def tenant(proxy: Process, name: str, protocol: int = 2) -> Wire:
    """A connection that has logged in."""
    wire = Wire(proxy.port, timeout=4)
    words = ("AUTH", name, PASSWORDS[name][0])
    found = wire.ask(*words) if protocol == 2 else wire.ask("HELLO", 3, *words)
    assert found[:1] in (b"+", b"%"), found
    return wire


def stats(wire: Wire) -> dict[str, str]:
    """INFO's section about the sidecar, as who asks is shown it, without the `pannier_` of each name."""
    lines = text(wire.ask("INFO", "sidecar")).splitlines()[1:]
    return {name.removeprefix("pannier_"): value for name, _, value in (line.partition(":") for line in lines)}


def hits(wire: Wire) -> int:
    return int(stats(wire)["tier_hits"])


def hot(wire: Wire, *keys: str) -> None:
    """Read until memory answers."""
    for key in keys:
        for _ in range(3):
            wire.ask("GET", key)


def user(wire: Wire) -> str:
    """Whom CLIENT INFO says one is."""
    return fields(text(wire.ask("CLIENT", "INFO")))["user"]


def fields(line: str) -> dict[str, str]:
    """A line of CLIENT LIST."""
    return dict(pair.split("=", 1) for pair in line.split())


def listed(wire: Wire) -> list[dict[str, str]]:
    return [fields(line) for line in text(wire.ask("CLIENT", "LIST")).splitlines()]


def alone(proxy: Process, *names: str) -> None:
    """Wait until the clients of earlier tests have left: those of these tenants are all there are."""
    with tenant(proxy, "operator") as operator:
        wait_until(lambda: sorted(client["user"] for client in listed(operator)) == sorted([*names, "operator"]))


def number(wire: Wire) -> int:
    return int(wire.ask("CLIENT", "ID")[1:-2])


def authenticated(redis: Process) -> set[str]:
    """The users that Redis' connections are authenticated as."""
    with Wire(redis.port) as wire:
        return {client["user"] for client in listed(wire)}


# --- coming in


UNASKED = [
    "GET k", "SET k v", "PING", "ECHO x", "MULTI", "EXEC", "DISCARD", "WATCH k", "SUBSCRIBE c", "PSUBSCRIBE *", "UNSUBSCRIBE",
    "BLPOP k 0", "XREAD BLOCK 0 STREAMS k $", "CLIENT REPLY OFF", "CLIENT REPLY SKIP", "CLIENT ID", "CLIENT LIST", "CLIENT INFO",
    "CLIENT KILL TYPE normal", "CLIENT TRACKING ON", "CLIENT SETNAME x", "CLIENT NO-EVICT ON", "SELECT 1", "INFO", "INFO sidecar", "SIDECAR STATS",
    "SIDECAR FLUSH", "SIDECAR HELP", "MONITOR", "SYNC", "PSYNC ? -1", "REPLCONF ack 0", "CONFIG GET *", "COMMAND", "EVAL 'return 1' 0",
    "SCRIPT LOAD 'return 1'", "DEBUG JMAP", "SHUTDOWN NOSAVE", "FLUSHALL", "FLUSHDB", "DBSIZE", "RANDOMKEY", "KEYS *", "SCAN 0",
    "ACL WHOAMI", "ACL SETUSER x on nopass +@all", "NOSUCH", "nosuch x", "READONLY", "WAIT 0 0", "get k", "Set k v", "MGET a b", "PUBLISH c m",
]  # fmt: skip


class TestWithoutAuth:
    def test_every_command_is_refused_and_none_reaches_redis(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as wire, Monitor(redis) as monitor:
            monitor.seen()
            for line in UNASKED:
                assert wire.line(line) == NOAUTH, line
            assert ask_all(wire, list(UNASKED)) == [NOAUTH] * len(UNASKED), "in one piece"
            names = {words[0] for words in monitor.seen()} & {line.split()[0].upper().encode() for line in UNASKED}
            assert names <= {b"PING", b"CLIENT", b"EXEC", b"MULTI", b"SET"}, "what the sidecar asks by itself"

    def test_inline_commands_are_as_well(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as wire, Monitor(redis) as monitor:
            wire.raw(b"GET k\r\nset k evil\n\r\n\"CONFIG\" GET 'dir'\r\n")
            assert wire.reads(3) == [NOAUTH] * 3
            wire.raw(b"AUTH acme acme-pw\r\nSET k v\r\nGET k\r\n")
            assert wire.reads(3) == [OK, OK, b"$1\r\nv\r\n"]
            assert not monitor.seen(b"evil")

    @pytest.mark.parametrize("pieces", [1, 7, 10_000], ids=["one chunk", "chunks of 7", "one chunk, twice"])
    def test_a_pipeline_with_auth_in_the_middle(self, redis: Process, proxy: Process, pieces: int) -> None:
        data = b"".join(
            [request("SET", "k", "evil"), request("GET", "k"), request("AUTH", "acme", "acme-pw"), request("SET", "k", "v"), request("GET", "k"),
             request("AUTH", "globex", "wrong"), request("GET", "k"), request("AUTH", "globex", "globex-new"), request("GET", "k"), request("ECHO", "end")]
        )  # fmt: skip
        replies = [NOAUTH, NOAUTH, OK, OK, b"$1\r\nv\r\n", WRONGPASS, b"$1\r\nv\r\n", OK, b"$-1\r\n", b"$3\r\nend\r\n"]
        with Wire(proxy.port) as wire, Monitor(redis) as monitor:
            size = 7 if pieces == 7 else len(data)
            with in_background(lambda: [wire.raw(data[at : at + size]) for at in range(0, len(data), size)]):
                assert wire.reads(len(replies)) == replies
            assert not monitor.seen(b"evil") and not monitor.seen(b"k")

    def test_hello_needs_credentials(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            for words in (["HELLO"], ["HELLO", "3"], ["HELLO", "2", "SETNAME", "x"]):
                assert wire.ask(*words).startswith(b"-NOAUTH HELLO must be called with the client already authenticated")
            assert wire.line("HELLO 4 AUTH acme acme-pw").startswith(b"-NOPROTO")
            assert wire.line("HELLO 3 AUTH acme wrong") == WRONGPASS
            assert wire.line("HELLO 3 AUTH acme") == b"-ERR Syntax error in HELLO option 'AUTH'\r\n"
            assert wire.line("GET k") == NOAUTH
            assert wire.line("HELLO 3 AUTH acme acme-pw SETNAME me")[:1] == b"%"
            assert (wire.line("GET k"), text(wire.line("CLIENT GETNAME"))) == (b"_\r\n", "me")

    @pytest.mark.parametrize("line", ["AUTH", "AUTH a b c", "RESET x", "QUIT x"])
    def test_malformed_ones_are_answered_as_by_redis(self, redis: Process, proxy: Process, line: str) -> None:
        with Wire(proxy.port) as wire, Wire(redis.port) as direct:
            assert wire.line(line) == direct.line(line)

    @pytest.mark.parametrize(
        ("data", "error"),
        [(request("SET", "k", "x" * 16385), b"unauthenticated bulk length"), (request("DEL", *"abcdefghijk"), b"unauthenticated multibulk length")],
        ids=["argument", "arguments"],
    )
    def test_large_requests_are_refused_before_they_arrive(self, proxy: Process, data: bytes, error: bytes) -> None:
        with Wire(proxy.port) as wire:
            wire.raw(data)
            assert wire.rest() == b"-ERR Protocol error: %b\r\n" % error

    def test_quit_and_reset_need_none(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            assert wire.line("RESET") == b"+RESET\r\n"
            wire.send("QUIT")
            assert wire.rest() == OK

    def test_a_browsers_request_closes_the_connection(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            wire.raw(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nAUTH acme acme-pw\r\nSET k evil\r\n")
            with contextlib.suppress(ConnectionError):
                assert OK not in wire.rest()
        with Wire(redis.port) as direct:
            assert direct.line("DBSIZE") == b":0\r\n"


class TestPasswords:
    @pytest.mark.parametrize(("name", "password"), [(name, word) for name, given in PASSWORDS.items() for word in given])
    def test_each_of_a_tenants_lets_it_in(self, proxy: Process, name: str, password: str) -> None:
        with Wire(proxy.port) as wire:
            assert wire.ask("AUTH", name, password) == OK
            assert user(wire) == name
            assert text(wire.line("ACL WHOAMI")) == name
            assert wire.line("GET k") == b"$-1\r\n"

    def test_nothing_else_does(self, proxy: Process) -> None:
        digest = hashlib.sha256(b"hashed-pw").hexdigest()
        tried: list[tuple[str | bytes, str | bytes]] = [
            ("acme", ""), ("acme", "globex-new"), ("acme", "acme-p"), ("acme", "acme-pw "), ("acme", "ACME-PW"), ("acme", b"acme-pw\0"), ("ACME", "acme-pw"),
            ("", "acme-pw"), ("acme:", "acme-pw"), (b"acme\0", "acme-pw"), (b"\xff\xfe", "acme-pw"), ("default", ""), ("default", "acme-pw"), ("walled", "walled-up"),
            ("other", "other-up"), ("unknown", "x"), ("hashed", digest), ("hashed", "#" + digest), ("filed", "filed pw\r"), ("filed", "not this"), ("***", "***"), ("acme", "***"),
        ]  # fmt: skip
        with Wire(proxy.port) as wire:
            for name, password in tried:
                assert wire.ask("AUTH", name, password) == WRONGPASS, (name, password)
                assert wire.ask("HELLO", 3, "AUTH", name, password) == WRONGPASS, (name, password)
            assert wire.line("GET k") == NOAUTH

    def test_a_password_alone_is_the_default_users_which_there_is_not(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            assert wire.line("AUTH acme-pw") == WRONGPASS
            assert wire.line("GET k") == NOAUTH
        with tenant(proxy, "acme") as wire:
            assert wire.line("AUTH acme-pw") == WRONGPASS
            assert user(wire) == "acme"

    def test_none_of_them_is_ever_logged_nor_sent_to_redis(self, redis: Process, proxy: Process) -> None:
        with Monitor(redis) as monitor, tenant(proxy, "acme") as wire:
            wire.line("AUTH acme very-secret")
            wire.line("SET k v")
            seen = monitor.seen()
        assert not [words for words in seen if any(word in part for part in words for word in (b"acme-pw", b"very-secret"))]
        for word in [word for given in PASSWORDS.values() for word in given] + ["very-secret", "walled-up"]:
            assert word not in proxy.output

    def test_redis_py(self, proxy: Process) -> None:
        for protocol in (2, 3):
            with Redis(port=proxy.port, username="acme", password="acme-pw", protocol=protocol, retry=NEVER, decode_responses=True) as client:
                assert client.set("a", "1") and client.get("a") == "1"
                assert client.keys("*") == ["a"]
                assert list(client.scan_iter("*")) == ["a"]
                assert client.acl_whoami() == "acme"
            with Redis(port=proxy.port, username="acme", password="no", protocol=protocol, retry=NEVER) as client, pytest.raises(AuthenticationError):
                client.ping()
            with Redis(port=proxy.port, protocol=protocol, retry=NEVER) as client, pytest.raises((AuthenticationError, ResponseError)):
                client.ping()

    def test_upstream_credentials_that_redis_refuses(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            found = wire.line("AUTH nobody nobody-pw")
            assert found.startswith(b"-"), "it must not be let in as somebody else"
            assert wire.line("GET k") == NOAUTH
            assert wire.line("AUTH acme acme-pw") == OK


# --- going from one tenant to another


class TestAnotherTenantOnTheSameConnection:
    @both_protocols
    def test_everything_changes(self, redis: Process, proxy: Process, protocol: int) -> None:
        with tenant(proxy, "acme", protocol) as wire, tenant(proxy, "operator") as operator, Wire(redis.port) as direct:
            wait_until(lambda: len(listed(operator)) == 2)
            wire.line("SET k of-acme")
            before = int(stats(wire)["connected_clients"])
            assert wire.line("AUTH globex globex-old") == OK
            assert wire.line("GET k") == NULL[protocol]
            wire.line("SET k of-globex")
            assert direct.line("KEYS *") in (
                b"*2\r\n" + b"".join(pair) for keys in [(b"$6\r\nacme:k\r\n", b"$18\r\ncustomers:globex:k\r\n")] for pair in (keys, keys[::-1])
            )
            assert user(wire) == "globex"
            assert {client["user"] for client in listed(operator)} >= {"globex", "operator"}
            assert [client["user"] for client in listed(wire)] == ["globex"]
            with tenant(proxy, "acme") as other:
                assert int(stats(other)["connected_clients"]) == before

    @both_protocols
    @pytest.mark.parametrize("piece", [True, False], ids=["pipelined", "one by one"])
    def test_what_memory_keeps_for_one_never_answers_the_other(self, proxy: Process, protocol: int, piece: bool) -> None:
        reads = ["GET k", "MGET k j", "HGETALL h", "EXISTS k", "TYPE k", "STRLEN k", "HGET h f"]
        with tenant(proxy, "acme") as a, tenant(proxy, "globex") as b, tenant(proxy, "acme", protocol) as wire:
            for other, mark in ((a, "A"), (b, "B" * 3)):
                for line in (f"SET k {mark}", f"SET j {mark}{mark}", f"HSET h f {mark}"):
                    assert other.line(line)[:1] in b"+:"
            theirs: dict[str, list[bytes]] = {}
            for name, password in (("acme", "acme-pw"), ("globex", "globex-old")):
                assert wire.ask("AUTH", name, password) == OK
                before = hits(wire)
                while hits(wire) < before + len(reads):
                    theirs[name] = ask_all(wire, list(reads)) if piece else [wire.line(line) for line in reads]
            assert all(mine != other for mine, other in zip(theirs["acme"], theirs["globex"], strict=True) if mine[:1] not in b":+")
            switch = []
            for turn in range(20):
                name = ("acme", "globex")[turn % 2]
                switch += [request("AUTH", name, PASSWORDS[name][0]), *[request(*line.split()) for line in reads]]
            found = wire.pipeline(switch, len(switch)) if piece else [step for data in switch for step in wire.pipeline([data], 1)]
            each = len(reads) + 1
            for turn in range(20):
                assert found[turn * each : turn * each + each] == [OK, *theirs[("acme", "globex")[turn % 2]]], turn

    def test_a_write_is_dropped_from_the_memory_of_its_tenant_only(self, proxy: Process) -> None:
        with tenant(proxy, "acme") as a, tenant(proxy, "globex") as b:
            for wire, value in ((a, "1"), (b, "2")):
                wire.ask("SET", "k", value)
                hot(wire, "k")
            before = hits(b)
            assert a.line("SET k 3") == OK
            assert (a.line("GET k"), b.line("GET k")) == (b"$1\r\n3\r\n", b"$1\r\n2\r\n")
            assert hits(b) == before + 1

    def test_the_database_stays(self, proxy: Process) -> None:
        with tenant(proxy, "acme") as wire:
            wire.line("SELECT 3")
            wire.line("SET k 3")
            assert wire.line("AUTH globex globex-new") == OK
            assert (wire.line("GET k"), fields(text(wire.line("CLIENT INFO")))["db"]) == (b"$-1\r\n", "3")
            wire.line("AUTH acme acme-pw")
            assert wire.line("GET k") == b"$1\r\n3\r\n"

    @both_protocols
    def test_a_failed_auth_keeps_the_earlier_one(self, proxy: Process, protocol: int) -> None:
        with tenant(proxy, "acme", protocol) as wire:
            wire.line("SET k v")
            for words in (["AUTH", "globex", "x"], ["AUTH", "x"], ["HELLO", "2", "AUTH", "globex", "x"], ["AUTH", "nobody", "nobody-pw"]):
                assert wire.ask(*words).startswith(b"-")
                assert (wire.line("GET k"), user(wire)) == (b"$1\r\nv\r\n", "acme")
                assert wire.line("GET none") == NULL[protocol]

    @both_protocols
    @pytest.mark.parametrize("state", ["PING", "MULTI", "WATCH k", "SUBSCRIBE c", "CLIENT TRACKING ON", "CLIENT TRACKING OFF", "SELECT 2"])
    def test_reset_ends_it(self, redis: Process, proxy: Process, state: str, protocol: int) -> None:
        with tenant(proxy, "acme", protocol) as wire, Monitor(redis) as monitor:
            wire.line("SET k v")
            hot(wire, "k")
            if not (state.startswith("CLIENT TRACKING") and protocol == 2):
                wire.line(state)
            assert wire.line("RESET") == b"+RESET\r\n"
            assert ask_all(wire, ["GET k", "SET evil x", "CLIENT LIST", "MULTI"]) == [NOAUTH] * 4
            assert not monitor.seen(b"acme:evil") and not monitor.seen(b"evil")
            assert wire.line("AUTH globex globex-new") == OK
            assert wire.line("GET k") == b"$-1\r\n"
            assert fields(text(wire.line("CLIENT INFO")))["db"] == "0"


AUTHENTICATIONS = [
    ("AUTH", "other", "other-up"),
    ("AUTH", "other-up"),
    ("HELLO", "3", "AUTH", "other", "other-up"),
    ("HELLO", "2", "SETNAME", "x", "AUTH", "other", "other-up"),
    ("hello", "3", "auth", "other", "other-up"),
    ("AUTH", "globex", "globex-new"),
    ("HELLO", "3", "SETNAME", "x" * 900_000, "AUTH", "other", "other-up"),
    ("AUTH", "other", "x" * 900_000),
]
STATES = ["MULTI", "WATCH k", "CLIENT TRACKING OFF", "CLIENT REPLY OFF", "CLIENT REPLY SKIP", "SUBSCRIBE c", "READONLY"]


def attempt(wire: Wire, state: str, words: tuple[str, ...]) -> None:
    """Say it in that state, and come back from it."""
    wire.line(state) if "REPLY" not in state else wire.raw(request(*state.split()))
    wire.send(*words)
    if "REPLY" not in state:
        assert reply(wire).startswith(b"-"), words
    wire.raw(request("PING") * 2)


class TestNoAuthenticationPassesThrough:
    @both_protocols
    @pytest.mark.parametrize("words", AUTHENTICATIONS, ids=[f"{words[0]}-{len(words)}-{len(str(words))}" for words in AUTHENTICATIONS])
    @pytest.mark.parametrize("name", ["acme", "operator"])
    def test_in_any_state(self, redis: Process, proxy: Process, name: str, words: tuple[str, ...], protocol: int) -> None:
        for state in STATES:
            with tenant(proxy, name, protocol) as wire:
                attempt(wire, state, words)
                with Wire(redis.port) as direct:
                    direct.line("PING")
                for _ in range(3):
                    assert "other" not in authenticated(redis), state

    def test_a_transaction_fails_with_it(self, redis: Process, proxy: Process) -> None:
        for name in ("acme", "operator"):
            with tenant(proxy, name) as wire:
                found = ask_all(wire, ["MULTI", "SET k v", "AUTH other other-up", "EXEC", "GET k"])
                assert found[:2] == [OK, b"+QUEUED\r\n"] and found[2].startswith(b"-ERR pannier: ")
                assert found[3].startswith(b"-EXECABORT") and found[4] == b"$-1\r\n"

    def test_names_that_only_redis_takes_for_one(self, redis: Process, proxy: Process) -> None:
        """Redis compares names up to a zero byte, if they happen to fall into the same slot of its table."""
        for name in ("operator", "acme"):
            with tenant(proxy, name) as wire:
                tried = [request(b"AUTH\0%d" % n, "other", "other-up") for n in range(3000)]
                assert OK not in wire.pipeline(tried, len(tried)), name
                assert "other" not in authenticated(redis), name


class TestAuthNone:
    def test_auth_is_answered_as_by_a_redis_without_passwords(self, redis: Process, open_house: Process) -> None:
        with Wire(open_house.port) as wire, Wire(redis.port) as direct:
            for line in ("AUTH x", "AUTH default x", "AUTH nobody x", "AUTH", "AUTH a b c", "HELLO 3 AUTH nobody x"):
                assert wire.line(line) == direct.line(line), line
            assert wire.line("HELLO 3 AUTH default x")[:1] == b"%"
            assert (wire.line("SET k v"), wire.line("GET k")) == (OK, b"$1\r\nv\r\n")
            assert direct.line("KEYS *") == b"*1\r\n$7\r\nfirst:k\r\n"
            assert "default" in authenticated(redis)

    def test_redis_users_cannot_be_had(self, redis: Process, open_house: Process) -> None:
        with Wire(open_house.port, timeout=4) as wire:
            assert wire.line("AUTH other other-up") == WRONGPASS
            assert wire.line("HELLO 3 AUTH other other-up") == WRONGPASS
        for words in AUTHENTICATIONS:
            for state in STATES:
                with Wire(open_house.port, timeout=4) as wire:
                    attempt(wire, state, words)
                    assert "other" not in authenticated(redis), (words, state)

    @pytest.mark.parametrize("words", [("AUTH", "default", "x"), ("HELLO", "3", "AUTH", "default", "")])
    def test_auth_leads_to_no_other_listeners_namespace(self, redis: Process, open_house: Process, words: tuple[str, ...]) -> None:
        with Wire(open_house.port, timeout=4) as wire:
            wire.line("SET k of-first")
        with Wire(SECOND) as wire:
            assert wire.ask(*words)[:1] in (b"+", b"%")
            assert wire.line("GET k") in NULL.values()
            wire.line("SET k of-second")
        with Wire(redis.port) as direct:
            assert direct.line("GET first:k") == b"$8\r\nof-first\r\n"
            assert direct.line("GET second:k") == b"$9\r\nof-second\r\n"


# --- limits


class TestMaxClients:
    def test_of_a_tenant(self, proxy: Process) -> None:
        error = b"-ERR max number of clients reached: tenant 'few' has its max_clients of 2\r\n"
        with tenant(proxy, "acme") as third, tenant(proxy, "few") as first:
            with tenant(proxy, "few") as second:
                assert second.line("AUTH few few-pw") == OK, "again is not one more"
                third.line("SET k v")
                assert third.line("AUTH few few-pw") == error
                assert third.line("HELLO 3 AUTH few few-pw") == error
                assert (third.line("GET k"), user(third)) == (b"$1\r\nv\r\n", "acme")
                with Wire(proxy.port) as fourth:
                    assert fourth.line("AUTH few few-pw") == error
                    assert fourth.line("GET k") == NOAUTH
                assert stats(first)["connected_clients"] == "2"
                assert second.line("AUTH acme acme-pw") == OK
                assert third.line("AUTH few few-pw") == OK, "one has gone over"
                assert second.line("AUTH few few-pw") == error
                assert third.line("RESET") == b"+RESET\r\n"
                assert second.line("AUTH few few-pw") == OK, "one was reset"
            wait_until(lambda: third.line("AUTH few few-pw") == OK)
        with tenant(proxy, "operator") as operator:
            wait_until(lambda: stats(operator)["space_few"].startswith("clients=0,"))


_over = re.compile(rb"-ERR pannier: tenant '(?:slow|swift)' is over its max_ops_per_second of \d+; try again in about \d+ m?s\r\n").fullmatch


def over(reply: bytes) -> bool:
    """Whether a reply says that the tenant has done more than it may."""
    return _over(reply) is not None


def rested(proxy: Process) -> Wire:
    """A connection of the tenant with a limit, which has been left alone for more than a second."""
    wire = tenant(proxy, "slow")
    wait_until(lambda: wire.line("PING") == b"+PONG\r\n", 20)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 1.1)
    return wire


class TestMaxOpsPerSecond:
    @pytest.mark.parametrize("line", ["PING", "SET k v", "GET k", "CLIENT ID", "SIDECAR HELP", "DBSIZE"])
    def test_what_is_beyond_gets_an_error(self, redis: Process, proxy: Process, line: str) -> None:
        """In one piece, of which nobody can send the end so late that the beginning is paid back."""
        with rested(proxy) as wire, tenant(proxy, "slow") as another, tenant(proxy, "acme") as other:
            found = ask_all(wire, [line] * 10 * RATE)
            done = [reply for reply in found if not over(reply)]
            assert RATE // 2 <= len(done) < 10 * RATE and not [reply for reply in done if reply.startswith(b"-")]
            assert ask_all(other, ["PING"] * 5 * RATE) == [b"+PONG\r\n"] * 5 * RATE, "the others are not affected"
            assert any(map(over, ask_all(another, ["GET k"] * 3 * RATE))), "all its connections together"
            wait_until(lambda: wire.line("PING") == b"+PONG\r\n", 5)

    def test_hits_count_as_well(self, proxy: Process) -> None:
        with rested(proxy) as wire:
            wire.line("SET k v")
            found = ask_all(wire, ["GET k"] * 20 * RATE)
            assert found[0] == b"$1\r\nv\r\n" and any(map(over, found))

    def test_no_pipeline_is_done_beyond(self, redis: Process, proxy: Process) -> None:
        """However long it is and whoever answers it; so nobody has to wait for long after it."""
        with rested(proxy) as wire:
            wire.line("SET k v")
            for data in (request("GET", "k"), request("INCR", "n"), b"GET k\r\n"):
                began = time.monotonic()
                found = wire.pipeline([data * 20_000], 20_000)
                done = 20_000 - sum(map(over, found))
                assert 1 <= done <= RATE * (1 + time.monotonic() - began) + 1
                assert {reply.rpartition(b" ")[2] for reply in found if over(reply)} == {b"ms\r\n"}
                wait_until(lambda: not over(wire.line("PING")), 5)

    def test_pipelines(self, redis: Process, proxy: Process) -> None:
        with rested(proxy) as wire, Wire(redis.port) as direct:
            replies = wire.pipeline([request("INCR", "n") * (10 * RATE)], 10 * RATE)
            done = [found for found in replies if not over(found)]
            assert 1 <= len(done) < len(replies)
            assert done == [b":%d\r\n" % n for n in range(1, len(done) + 1)], "each one was done or refused, in order"
            assert direct.line("GET slow:n") == b"$%d\r\n%d\r\n" % (len(str(len(done))), len(done))

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_transactions_are_done_whole(self, redis: Process, proxy: Process, protocol: int) -> None:
        """Beside others that take all there is: MULTI waits for its turn, and what is behind it, too."""
        stop = threading.Event()

        def take_all() -> None:
            with tenant(proxy, "swift") as wire:
                while not stop.is_set():
                    wire.pipeline([request("PING") * 200], 200)

        with Redis(port=proxy.port, username="swift", password="swift-pw", protocol=protocol, retry=NEVER) as client, in_background(take_all):
            try:
                deadline = time.monotonic() + 2
                while time.monotonic() < deadline:
                    pipeline = client.pipeline(transaction=True)
                    for _ in range(20):
                        pipeline.incr("a")
                    a, *_, b = pipeline.incr("b").execute()
                    assert a == 20 * b - 19
            finally:
                stop.set()
        with Wire(redis.port) as direct:
            a, b = (int(text(direct.line(f"GET swift:{key}"))) for key in "ab")
        assert a == 20 * b > 0

    def test_connections_that_come_and_go_are_held_to_it_too(self, redis: Process, proxy: Process) -> None:
        rested(proxy).close()
        began = time.monotonic()
        for _ in range(15):
            with Wire(proxy.port) as wire:
                wire.pipeline([request("AUTH", "slow", "slow-pw"), request("INCR", "n") * RATE], RATE + 1)
        allowed = RATE * (3 + time.monotonic() - began)
        with Wire(redis.port) as direct:
            assert int(text(direct.line("GET slow:n"))) <= allowed

    @pytest.mark.parametrize("state", ["MULTI", "CLIENT TRACKING OFF"])
    def test_in_a_transaction_or_with_lasting_state_the_client_waits(self, proxy: Process, state: str) -> None:
        with rested(proxy) as wire:
            began = time.monotonic()
            found = [wire.line(state)] + [wire.line("INCR n") for _ in range(2 * RATE)]
            assert not [error for error in found if error.startswith(b"-")]
            if state == "MULTI":
                assert wire.line("EXEC").startswith(b"*%d\r\n" % (2 * RATE))
            assert 0.5 < time.monotonic() - began < 8
            assert wire.line("RESET") == b"+RESET\r\n" if state != "MULTI" else True

    def test_leaving_while_one_waits(self, proxy: Process) -> None:
        with rested(proxy) as wire:
            wire.line("CLIENT TRACKING OFF")
            wire.pipeline([request("PING") * (2 * RATE)], 2 * RATE)
            wire.raw(request("PING") * 3)
        with tenant(proxy, "operator") as operator:
            wait_until(lambda: stats(operator)["space_slow"].startswith("clients=0,"))

    def test_refusals_are_counted(self, proxy: Process) -> None:
        with rested(proxy) as wire, tenant(proxy, "operator") as operator:
            before = int(dict(pair.split("=") for pair in stats(operator)["space_slow"].split(","))["refused"])
            refused = sum(map(over, ask_all(wire, ["PING"] * 5 * RATE)))
            assert refused
            after = int(dict(pair.split("=") for pair in stats(operator)["space_slow"].split(","))["refused"])
            assert after - before == refused
            wait_until(lambda: (found := wire.line("SIDECAR STATS"))[:1] == b"*" and b"refused_commands" in found)


class TestMaxMemory:
    def test_a_scan_of_one_evicts_nothing_of_another(self, redis: Process, proxy: Process) -> None:
        with tenant(proxy, "acme") as acme, tenant(proxy, "small") as small:
            keys = [f"k{n}" for n in range(200)]
            acme.pipeline([request("SET", key, "x" * 100) for key in keys], len(keys))
            for _ in range(3):
                acme.pipeline([request("GET", key) for key in keys], len(keys))
            before, kept = hits(acme), int(stats(acme)["tier_entries"])
            assert kept >= 200
            many = [f"k{n}" for n in range(2000)]
            small.pipeline([request("SET", key, "y" * 400) for key in many], len(many))
            for _ in range(4):
                for at in range(0, len(many), 100):
                    small.pipeline([request("GET", key) for key in many[at : at + 100]], 100)
            mine = stats(small)
            assert int(mine["tier_max_memory"]) == SHARE
            assert 0 < int(mine["tier_bytes"]) <= SHARE
            assert int(mine["tier_evictions"]) > 0
            assert int(stats(acme)["tier_entries"]) == kept
            assert acme.pipeline([request("GET", key) for key in keys], len(keys)) == [b"$100\r\n" + b"x" * 100 + b"\r\n"] * 200
            assert hits(acme) >= before + 150, "pipelines are answered as a whole or not"
            assert int(stats(acme)["tier_max_memory"]) == (16 << 20) - SHARE


# --- what is shown


class TestStatistics:
    def test_a_tenant_sees_its_own_figures_and_no_name_of_another(self, proxy: Process) -> None:
        with tenant(proxy, "acme") as acme, tenant(proxy, "globex") as globex:
            alone(proxy, "acme", "globex")
            globex.line("SET a-key-of-globex v")
            hot(globex, "a-key-of-globex")
            before = stats(acme)
            globex.pipeline([request("GET", "a-key-of-globex") * 100], 100)
            after = stats(acme)
            for name in ("tier_hits", "tier_misses", "tier_entries", "tier_bytes", "tier_fills", "tier_pushes", "connected_clients"):
                assert after[name] == before[name], name
            assert int(after["total_commands_processed"]) - int(before["total_commands_processed"]) == 1
            shown = [acme.line(line) for line in ("INFO", "INFO everything", "INFO sidecar", "SIDECAR STATS", "CLIENT LIST", "CLIENT INFO", "SIDECAR HELP")]
            for name in (set(PASSWORDS) | {"nobody", "customers"}) - {"acme", "small", "slow", "few"}:
                assert not [found for found in shown if name.encode() in found], name
            assert not [found for found in shown if b"pannier_space_" in found or b"acme:" in found]

    @both_protocols
    def test_sidecar_stats_says_the_same(self, proxy: Process, protocol: int) -> None:
        with tenant(proxy, "acme", protocol) as wire:
            wire.line("SET k v")
            hot(wire, "k")
            found = wire.line("SIDECAR STATS")
            assert b"tier_hits" in found and b"connected_clients" in found and b"globex" not in found
            assert b"tracking\r\n$7\r\ndefault" in found or b"tracking\r\n$5\r\noptin" in found

    def test_an_operator_sees_all(self, redis: Process, proxy: Process) -> None:
        with tenant(proxy, "acme") as acme, tenant(proxy, "operator") as operator:
            wait_until(lambda: len(listed(operator)) == 2)
            acme.line("SET k v")
            hot(acme, "k")
            assert operator.line("KEYS *") == b"*1\r\n$6\r\nacme:k\r\n"
            assert operator.line("GET acme:k") == b"$1\r\nv\r\n"
            assert operator.line("DBSIZE") == b":1\r\n"
            assert operator.line("CONFIG GET port").startswith(b"*2\r\n")
            shown = stats(operator)
            lines = {name.removeprefix("space_") for name in shown if name.startswith("space_")}
            assert lines == set(PASSWORDS) | {"nobody"}
            line = dict(pair.split("=") for pair in shown["space_acme"].split(","))
            assert set(line) == {"clients", "commands", "hits", "misses", "entries", "bytes", "evictions"}
            assert (line["clients"], line["hits"]) == (stats(acme)["connected_clients"], str(hits(acme)))
            assert {client["user"] for client in listed(operator)} == {"acme", "operator"}
            assert user(operator) == "operator"

    def test_the_operators_writes_reach_the_tenants_memory(self, proxy: Process) -> None:
        with tenant(proxy, "acme") as acme, tenant(proxy, "operator") as operator:
            for n in range(50):
                assert operator.ask("SET", "acme:k", n) == OK
                for _ in range(3):
                    assert acme.line("GET k") == b"$%d\r\n%d\r\n" % (len(str(n)), n)
                assert acme.ask("SET", "k", n + 1000) == OK
                for _ in range(3):
                    assert operator.line("GET acme:k") == b"$4\r\n%d\r\n" % (n + 1000)

    def test_sidecar_flush_and_invalidate_are_of_ones_own(self, proxy: Process) -> None:
        with tenant(proxy, "acme") as acme, tenant(proxy, "globex") as globex, tenant(proxy, "operator") as operator:
            for wire in (acme, globex):
                wire.line("SET k v")
                hot(wire, "k")
            kept = stats(globex)["tier_entries"]
            assert acme.line("SIDECAR INVALIDATE customers:globex:k globex:k acme:k") == b":0\r\n"
            assert acme.line("SIDECAR INVALIDATE k") != b":0\r\n"
            hot(acme, "k")
            assert acme.line("SIDECAR FLUSH") == OK
            assert (stats(acme)["tier_entries"], stats(acme)["tier_bytes"]) == ("0", "0")
            assert stats(globex)["tier_entries"] == kept
            before = hits(globex)
            globex.line("GET k")
            assert hits(globex) == before + 1
            assert operator.line("SIDECAR FLUSH") == OK
            assert stats(globex)["tier_entries"] == "0"


class TestOtherClients:
    def test_are_seen_killed_and_unblocked_within_the_own_space(self, proxy: Process) -> None:
        with tenant(proxy, "acme") as mine, tenant(proxy, "acme") as sister, tenant(proxy, "globex") as foreign, tenant(proxy, "operator") as operator:
            wait_until(lambda: len(listed(operator)) == 4)
            foreign.line("CLIENT SETNAME the-foreign-one")
            numbers = {name: number(wire) for name, wire in (("mine", mine), ("sister", sister), ("foreign", foreign))}
            assert {int(client["id"]) for client in listed(mine)} == {numbers["mine"], numbers["sister"]}
            assert mine.ask("CLIENT", "LIST", "ID", numbers["foreign"], numbers["sister"]).count(b"id=") == 1
            address = next(client["addr"] for client in listed(operator) if int(client["id"]) == numbers["foreign"])
            assert mine.ask("CLIENT", "KILL", address) == b"-ERR No such client\r\n"
            for words in (["ID", numbers["foreign"]], ["ADDR", address], ["USER", "globex"], ["USER", "default"]):
                assert mine.ask("CLIENT", "KILL", *words) == b":0\r\n", words
            for redis_id in range(1, 60):
                assert mine.ask("CLIENT", "KILL", "ID", redis_id) == b":0\r\n"
                assert mine.ask("CLIENT", "UNBLOCK", redis_id) == b":0\r\n"
            foreign.send("BLPOP", "none", 0)
            wait_until(lambda: "b" in next(client["flags"] for client in listed(operator) if int(client["id"]) == numbers["foreign"]))
            assert mine.ask("CLIENT", "UNBLOCK", numbers["foreign"]) == b":0\r\n"
            assert mine.ask("CLIENT", "KILL", "TYPE", "normal") == b":1\r\n", "the sister"
            with pytest.raises((EOFError, ConnectionError)):
                sister.read()
            assert operator.ask("CLIENT", "UNBLOCK", numbers["foreign"], "ERROR") == b":1\r\n"
            assert foreign.read().startswith(b"-UNBLOCKED")
            assert foreign.line("PING") == b"+PONG\r\n"

    @both_protocols
    @pytest.mark.parametrize("state", ["MULTI", "WATCH k", "CLIENT TRACKING OFF", "SUBSCRIBE c"])
    def test_also_in_a_transaction_or_with_lasting_state(self, redis: Process, proxy: Process, state: str, protocol: int) -> None:
        """There Redis would answer, which knows of all connections."""
        if state.startswith("SUBSCRIBE") and protocol == 2:
            return
        with tenant(proxy, "globex") as foreign, tenant(proxy, "acme", protocol) as mine, Wire(redis.port) as direct:
            foreign.line("CLIENT SETNAME the-foreign-one")
            foreign.send("BLPOP", "none", 0)
            wait_until(lambda: any("b" in client["flags"] for client in listed(direct)))
            blocked = next(client for client in listed(direct) if "b" in client["flags"])
            others = {client["id"] for client in listed(direct)}
            mine.line(state)
            found = b""
            for words in (["LIST"], ["LIST", "ID", blocked["id"]], ["UNBLOCK", blocked["id"]], ["KILL", "ID", blocked["id"]], ["KILL", "ADDR", blocked["addr"]], ["KILL", "TYPE", "normal"]):
                mine.send("CLIENT", *words)
                with contextlib.suppress(EOFError, ConnectionError):
                    found += reply(mine)
            if state == "MULTI":
                with contextlib.suppress(EOFError, ConnectionError):
                    found += mine.line("EXEC")
            assert b"the-foreign-one" not in found and b"user=default" not in found
            assert others <= {client["id"] for client in listed(direct)}, "no connection of Redis' was killed"
            assert "b" in next(client["flags"] for client in listed(direct) if client["id"] == blocked["id"]), "still blocked"

    @both_protocols
    def test_tracking_is_redirected_within_the_own_space_only(self, redis: Process, proxy: Process, protocol: int) -> None:
        with tenant(proxy, "acme", protocol) as mine, tenant(proxy, "globex") as foreign, tenant(proxy, "acme") as sister, Wire(redis.port) as direct:
            foreign.line("SUBSCRIBE __redis__:invalidate")
            theirs = [int(client["id"]) for client in listed(direct)]
            for target in (*theirs, "0", "-1", "x", str(2**62)):
                for option in ("REDIRECT", "redirect", b"REDIRECT\0"):
                    found = mine.ask("CLIENT", "TRACKING", "ON", option, target)
                    assert found.startswith(b"-"), (option, target, found)
            assert {client["redir"] for client in listed(direct)} <= {"-1", "0"}, "none, or tracking without"
            sister.line("SUBSCRIBE __redis__:invalidate")
            with tenant(proxy, "operator") as operator:
                ids = {client["user"]: int(client["id"]) for client in listed(operator) if "P" in client["flags"]}
            assert mine.ask("CLIENT", "TRACKING", "ON", "REDIRECT", ids["globex"]).startswith(b"-")
            assert mine.ask("CLIENT", "TRACKING", "ON", "REDIRECT", ids["acme"]) == OK
            mine.line("GET k")
            direct.line("SET acme:k 1")
            assert sister.read() == b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$1\r\nk\r\n"


# --- Redis' own users


class TestUpstreamCredentials:
    @both_protocols
    def test_a_tenant_walled_in_by_redis(self, redis: Process, proxy: Process, protocol: int) -> None:
        with tenant(proxy, "walled", protocol) as wire, Wire(redis.port) as direct:
            direct.line("SET acme:k theirs")
            assert wire.line("SET k v PX 100000") == OK
            assert direct.line("KEYS walled:*") == b"*1\r\n$8\r\nwalled:k\r\n"
            hot(wire, "k")
            assert hits(wire) > 0 and stats(wire)["tracking"] == "default"
            assert direct.line("SET walled:k changed") == OK
            wait_until(lambda: wire.line("GET k") == b"$7\r\nchanged\r\n")
            assert wire.line("EVAL \"return redis.call('GET', 'acme:k')\" 0").startswith(b"-")
            assert b"theirs" not in wire.line("EVAL \"return redis.pcall('GET', 'acme:k')\" 0")
            assert wire.line("EVAL \"return redis.call('GET', KEYS[1])\" 1 k") == b"$7\r\nchanged\r\n"
            assert wire.line("MULTI") == OK and wire.line("GET k") == b"+QUEUED\r\n"
            assert wire.line("EXEC") == b"*1\r\n$7\r\nchanged\r\n"
            assert (user(wire), text(wire.line("ACL WHOAMI"))) == ("walled", "walled")
            assert "walled" in authenticated(redis)
            assert wire.line("CLIENT SETNAME x") == OK and wire.line("CLIENT LIST").count(b"id=") == 1

    def test_a_keys_life_counts(self, proxy: Process) -> None:
        with tenant(proxy, "walled") as wire:
            assert wire.line("SET k v PX 300") == OK
            hot(wire, "k")
            assert wire.line("GET k") == b"$1\r\nv\r\n"
            wait_until(lambda: wire.line("GET k") == b"$-1\r\n", 2)

    @pytest.mark.parametrize("name", ["--namespace", "tenant"])
    def test_a_pannier_whose_only_user_is_walled(self, redis: Process, directory: Path, name: str) -> None:
        options = ["--namespace", "walled", "--canary-interval", "100ms"]
        with pannier(url(redis, "walled:walled-up@"), directory, *options) as proxy, Wire(proxy.port) as wire:
            assert wire.line("SET k v PX 100000") == OK
            hot(wire, "k")
            assert hits(wire) > 0
            wait_until(lambda: int(stats(wire)["invalidation_lag_samples"]) > 0, 5)
            assert stats(wire)["tracking"] == "default"
            assert "cannot be measured" not in proxy.output
            assert wire.line("KEYS *") == b"*1\r\n$1\r\nk\r\n"


LOCAL_LINES = [
    *(f"SIDECAR {line}" for line in ("STATS", "FLUSH", "RULES", "HEALTH", "HELP", "EXPLAIN k", "BYPASS ON", "INVALIDATE k", "INVALIDATE MATCH *", "DELETE MATCH *", "LEASE k 1000", "UNLEASE k t", "WARM KEYS k", "NOSUCH", "STATS x")), "SIDECAR", "sidecar stats",
    "DBSIZE", "FLUSHALL", "FLUSHDB", "FLUSHDB SYNC", "RANDOMKEY", "ACL WHOAMI", "INFO", "INFO sidecar", "SELECT 1", "CLIENT LIST", "CLIENT INFO", "CLIENT ID", "CLIENT GETNAME", "CLIENT SETNAME x",
    "CLIENT KILL TYPE normal", "CLIENT KILL 127.0.0.1:1", "CLIENT UNBLOCK 1099511627777", "CLIENT TRACKING ON", "MULTI", "WATCH other", "SUBSCRIBE c", "GET k", "BLPOP other 0", "PING",
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process, Process]]:
    """A Redis with a password; listeners of a pannier in front of it, one in a namespace."""
    directory, port = tmp_path_factory.mktemp("guarded"), free_port()
    with redis_server(redis_binary, directory, "--requirepass", "pw") as redis, pannier(url(redis), directory, "--listen", f"127.0.0.1:{port}?namespace=a") as proxy:
        yield redis, proxy, Process(proxy.popen, port, proxy.log)


class TestPassthroughBeforeAuth:
    """Redis wants a password, the sidecar has none of its own: who has not given it, is told nothing and does nothing."""

    @both_protocols
    @pytest.mark.parametrize("place", [1, 2], ids=["everything", "namespace"])
    def test_everything_of_the_sidecars_is_refused(self, guarded: tuple[Process, Process, Process], place: int, protocol: int) -> None:
        with Wire(guarded[place].port) as wire, Wire(guarded[place].port) as known:
            assert known.ask("HELLO", protocol, "AUTH", "default", "pw")[:1] in (b"*", b"%")
            known.line("SET k v")
            hot(known, "k")
            before = hits(known)
            for line in LOCAL_LINES:
                found = wire.line(line)
                assert found.startswith(b"-NOAUTH ") or (place == 2 and found.startswith(b"-ERR pannier: CLIENT ")), (line, found)
            found = ask_all(wire, list(LOCAL_LINES))
            assert not [reply for reply in found if not reply.startswith(b"-")], "in one piece"
            assert known.line("GET k") == b"$1\r\nv\r\n" and hits(known) == before + 1, "nothing was dropped"
            assert wire.line("AUTH pw") == OK
            assert wire.line("SIDECAR STATS").startswith(b"*") and wire.line("SIDECAR FLUSH") == OK and wire.line("DBSIZE") == b":1\r\n"

    def test_a_redis_that_is_down_lets_nobody_in(self, redis_binary: str, directory: Path) -> None:
        with redis_server(redis_binary, directory, "--requirepass", "pw") as redis, pannier(url(redis), directory, "--namespace", "a") as proxy, Wire(proxy.port) as wire, Wire(proxy.port) as known:
            assert wire.line("SIDECAR STATS") == NOAUTH and known.line("AUTH pw") == OK
            redis.kill()
            wait_until(lambda: known.line("GET k").startswith(b"-"))
            assert wire.line("SIDECAR STATS").startswith(b"-") and known.line("SIDECAR STATS").startswith(b"*")

    def test_a_redis_that_wants_no_password_any_more_lets_everybody_in(self, redis_binary: str, directory: Path) -> None:
        with redis_server(redis_binary, directory, "--requirepass", "pw") as redis, pannier(url(redis), directory, "--namespace", "a") as proxy, Wire(proxy.port) as wire, Wire(redis.port) as direct:
            assert wire.line("SIDECAR STATS") == NOAUTH
            direct.line("AUTH pw")
            assert direct.line("CONFIG SET requirepass ''") == OK
            assert wire.line("SIDECAR STATS").startswith(b"*") and wire.line("DBSIZE") == b":0\r\n"


class TestPassthrough:
    @both_protocols
    def test_users_are_redis_own(self, redis: Process, passing: Process, protocol: int) -> None:
        with Wire(passing.port, protocol) as wire, Wire(redis.port, protocol) as direct:
            for line in ("AUTH one wrong", "AUTH nobody x", "AUTH x"):
                assert wire.line(line) == direct.line(line)
            assert wire.line("AUTH one one-pw") == OK
            assert wire.line("SET k secret") == OK
            assert wire.line("SET public:k open") == OK
            hot(wire, "k", "public:k")
            assert hits(wire) > 0
            assert (text(wire.line("ACL WHOAMI")), user(wire)) == ("one", "one")
            assert wire.line("AUTH two two-pw") == OK and direct.line("AUTH two two-pw") == OK
            for _ in range(3):
                assert wire.line("GET k") == direct.line("GET ns:k")
                assert wire.line("GET k").startswith(b"-NOPERM")
                assert wire.line("MGET public:k k").startswith(b"-NOPERM")
                assert wire.line("GET public:k") == b"$4\r\nopen\r\n"
            assert wire.line("SET k evil") == direct.line("SET ns:k evil")
            found = ask_all(wire, ["AUTH one one-pw", "GET k", "AUTH two two-pw", "GET k", "AUTH one one-pw", "GET k"])
            assert found[1::2] == [b"$6\r\nsecret\r\n", direct.line("GET ns:k"), b"$6\r\nsecret\r\n"]
            assert wire.line("RESET") == b"+RESET\r\n"
            assert wire.line("GET k") == b"$6\r\nsecret\r\n", "the default user again, in the same namespace"

    @pytest.mark.parametrize("state", ["MULTI", "CLIENT TRACKING OFF"])
    def test_auth_with_state_is_redis_business_and_the_namespace_stays(self, redis: Process, passing: Process, state: str) -> None:
        with Wire(passing.port) as wire:
            wire.line("SET k v")
            wire.line(state)
            wire.line("AUTH one one-pw")
            wire.line("GET k")
            wire.line("SET j v")
            if state == "MULTI":
                assert wire.line("EXEC").endswith(b"$1\r\nv\r\n+OK\r\n")
        with Wire(redis.port) as direct:
            assert direct.line("EXISTS ns:j j") == b":1\r\n"


class TestListeners:
    def test_each_with_its_namespace(self, redis: Process, directory: Path) -> None:
        ports = [free_port(), free_port()]
        path = directory / "pannier.sock"
        options = ["--namespace", "main", "--listen", f"127.0.0.1:{ports[0]}?namespace=a*b", "--listen", f"127.0.0.1:{ports[1]}?namespace=", "--listen", f"unix://{path}?namespace=sock"]
        with pannier(url(redis), directory, *options) as proxy:
            main, star, bare = (Wire(port) for port in (proxy.port, *ports))
            over_socket = Wire(proxy.port)
            over_socket.close()
            over_socket.sock = socket.socket(socket.AF_UNIX)
            over_socket.sock.settimeout(10)
            over_socket.sock.connect(str(path))
            over_socket._file = over_socket.sock.makefile("rb", 1 << 18)
            with main, star, bare, over_socket, Wire(redis.port) as direct:
                wires = {"main:": main, "a*b:": star, "": bare, "sock:": over_socket}
                for prefix, wire in wires.items():
                    assert wire.ask("SET", "k", prefix or "bare") == OK
                    hot(wire, "k")
                for prefix, wire in wires.items():
                    value = (prefix or "bare").encode()
                    assert wire.line("GET k") == direct.ask("GET", prefix + "k") == b"$%d\r\n%b\r\n" % (len(value), value)
                    assert len(listed(wire)) == (1 if prefix else 4)
                    assert wire.line("DBSIZE") == (b":1\r\n" if prefix else b":4\r\n")
                for prefix in ("main:", "a*b:", "sock:"):
                    wire = wires[prefix]
                    assert wire.line("RESET") == b"+RESET\r\n"
                    assert wire.line("KEYS *") == b"*1\r\n$1\r\nk\r\n", "RESET leads back to the listener's"
                    assert b"pannier_space_" not in wire.line("INFO sidecar")
                names = {name for name in stats(bare) if name.startswith("space_")}
                assert names == {"space_main", "space_a*b", "space_sock"}
                assert main.line("FLUSHALL") == OK
                assert sorted(direct.line("KEYS *").split(b"\r\n")[2::2]) == [b"a*b:k", b"k", b"sock:k"]
            assert "Traceback" not in proxy.output and "internal error" not in proxy.output
