"""The sidecar's own commands, and those on all keys of a namespace, on connections that hold state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import Process, free_port, pannier, redis_server
from tests.integration.test_tier_reads import ask_all
from tests.integration.wire import Wire, in_background, request, words

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])

OK = b"+OK\r\n"
STATES = [
    "WATCH w", "SUBSCRIBE c; UNSUBSCRIBE c", "SUBSCRIBE c d; PSUBSCRIBE *; UNSUBSCRIBE; PUNSUBSCRIBE", "UNSUBSCRIBE", "CLIENT TRACKING ON; CLIENT TRACKING OFF", "MULTI; SELECT 0; EXEC", "MULTI; SELECT 1; DISCARD",
    "CLIENT NO-EVICT x", "CLIENT NO-EVICT ON", "CLIENT TRACKING FOO", "READONLY", "CLIENT REPLY ON", "CLIENT REPLY ON; WATCH w", "CLIENT REPLY ON; MULTI; GET k; EXEC", "SCRIPT DEBUG NO",
]  # fmt: skip


@pytest.fixture(scope="module")
def house(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """A pannier of three listeners, two of them in namespaces."""
    directory = tmp_path_factory.mktemp("house")
    ports = {name: free_port() for name in "ab"}
    listeners = [word for name, port in ports.items() for word in ("--listen", f"127.0.0.1:{port}?namespace={name}")]
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(redis_binary, directory))
        direct = stack.enter_context(Wire(redis.port))
        assert direct.line("ACL SETUSER noping on >pw ~* &* +@all -ping") == OK
        bare = stack.enter_context(pannier(f"redis://127.0.0.1:{redis.port}", directory, *listeners))
        yield {"": bare, "redis": redis} | {name: Process(bare.popen, port, bare.log) for name, port in ports.items()}
        assert "Traceback" not in bare.output and "internal error" not in bare.output


@pytest.fixture
def direct(house: dict[str, Process]) -> Iterator[Wire]:
    with Wire(house["redis"].port) as wire:
        assert wire.line("FLUSHALL") == OK
        for key in ("a:k", "a:l", "b:k", "c"):
            assert wire.line(f"SET {key} v") == OK
        wire.line("SELECT 1")
        assert wire.line("SET a:other v") == OK
        wire.line("SELECT 0")
        yield wire


def enter(wire: Wire, state: str) -> None:
    """Say what leads to a state, and read what comes before the reply to a last PING."""
    lines = [line.strip() for line in state.split(";") if line.strip()]
    wire.raw(b"".join(request(*words(line)) for line in lines) + request("PING", "there"))
    while b"there" not in wire.read():
        pass


@both_protocols
@pytest.mark.parametrize("state", STATES)
class TestOutsideATransaction:
    def test_commands_on_all_keys_are_answered(self, house: dict[str, Process], direct: Wire, state: str, protocol: int) -> None:
        with Wire(house["a"].port, protocol) as wire:
            enter(wire, state)
            assert wire.line("DBSIZE") == b":2\r\n"
            assert wire.line("RANDOMKEY") in (b"$1\r\nk\r\n", b"$1\r\nl\r\n")
            assert wire.line("SIDECAR STATS")[:1] == (b"%" if protocol == 3 else b"*")
            assert wire.line("SIDECAR NOSUCH") == b"-ERR unknown subcommand 'NOSUCH'. Try SIDECAR HELP.\r\n"
            assert wire.line("DBSIZE x").startswith(b"-ERR wrong number of arguments"), "Redis' own"
            assert wire.line("FLUSHDB nosuch") == b"-ERR syntax error\r\n"
            assert wire.line("FLUSHDB") == OK and wire.line("DBSIZE") == b":0\r\n"
            assert wire.line("RANDOMKEY") == (b"_\r\n" if protocol == 3 else b"$-1\r\n")
            assert wire.line("RESET") == b"+RESET\r\n" and wire.line("DBSIZE") == b":0\r\n"
        assert direct.line("DBSIZE") == b":2\r\n", "the others'"

    def test_in_their_order(self, house: dict[str, Process], direct: Wire, state: str, protocol: int) -> None:
        with Wire(house["a"].port, protocol) as wire:
            enter(wire, state)
            lines = ["GET k", "DBSIZE", "SET m 1", "DBSIZE", "GET m", "SIDECAR BYPASS ON", "MGET k m", "DBSIZE", "DEL m", "DBSIZE", "SIDECAR NOSUCH", "ECHO x"] * 20
            expected = [b"$1\r\nv\r\n", b":2\r\n", OK, b":3\r\n", b"$1\r\n1\r\n", OK, b"*2\r\n$1\r\nv\r\n$1\r\n1\r\n", b":3\r\n", b":1\r\n", b":2\r\n", b"-ERR unknown subcommand 'NOSUCH'. Try SIDECAR HELP.\r\n", b"$1\r\nx\r\n"] * 20
            assert ask_all(wire, lines) == expected
            data = b"".join(request(*line.split()) for line in lines[:24])
            with in_background(lambda: [wire.raw(data[at : at + 5]) for at in range(0, len(data), 5)]):
                assert wire.reads(24) == expected[:24], "in small pieces"

    def test_the_sidecars_are_without_a_namespace_too(self, house: dict[str, Process], direct: Wire, state: str, protocol: int) -> None:
        with Wire(house[""].port, protocol) as wire:
            enter(wire, state)
            assert ask_all(wire, ["GET c", "SIDECAR NOSUCH", "GET c"] * 9) == [b"$1\r\nv\r\n", b"-ERR unknown subcommand 'NOSUCH'. Try SIDECAR HELP.\r\n" if "SELECT" not in state else STRAYED, b"$1\r\nv\r\n"] * 9
            assert wire.line("DBSIZE") == b":4\r\n"


STRAYED = b"-ERR pannier: SIDECAR is refused after SELECT, AUTH or HELLO on a connection that holds state: send RESET first\r\n"


@both_protocols
class TestWhereTheConnectionIs:
    def test_another_database(self, house: dict[str, Process], direct: Wire, protocol: int) -> None:
        with Wire(house["a"].port, protocol) as wire:
            found = ask_all(wire, ["MULTI", "SELECT 1", "EXEC", "DBSIZE", "RANDOMKEY", "SET new v", "DBSIZE", "FLUSHDB", "DBSIZE", "SELECT 0", "DBSIZE", "SELECT x", "DBSIZE", "SELECT 999", "DBSIZE"])
            assert found[3:9] == [b":1\r\n", b"$5\r\nother\r\n", OK, b":2\r\n", OK, b":0\r\n"]
            assert found[10::2] == [b":2\r\n"] * 3
            assert wire.line("RESET") == b"+RESET\r\n" and wire.line("DBSIZE") == b":2\r\n" and wire.line("GET k") == b"$1\r\nv\r\n"
        assert direct.line("DBSIZE") == b":4\r\n"

    def test_another_protocol(self, house: dict[str, Process], direct: Wire, protocol: int) -> None:
        with Wire(house["a"].port, protocol) as wire:
            enter(wire, "CLIENT NO-EVICT ON")
            assert wire.line(f"HELLO {5 - protocol}")[:1] == (b"%" if protocol == 2 else b"*")
            assert wire.line("SIDECAR STATS")[:1] == (b"%" if protocol == 2 else b"*")
            assert wire.line("FLUSHDB") == OK and wire.line("RANDOMKEY") == (b"_\r\n" if protocol == 2 else b"$-1\r\n")

    def test_another_user(self, house: dict[str, Process], direct: Wire, protocol: int) -> None:
        assert direct.line("ACL SETUSER few on >pw ~a:* +@all -scan") == OK
        with Wire(house["a"].port, protocol) as wire:
            enter(wire, "CLIENT NO-EVICT ON")
            assert wire.line("DBSIZE") == b":2\r\n"
            assert wire.line("AUTH few wrong").startswith(b"-WRONGPASS") and wire.line("DBSIZE") == b":2\r\n"
            assert wire.line("AUTH few pw") == OK
            assert wire.line("DBSIZE").startswith(b"-NOPERM")

    def test_one_who_may_not_ping(self, house: dict[str, Process], direct: Wire, protocol: int) -> None:
        with Wire(house["a"].port, protocol) as wire:
            assert wire.line("AUTH noping pw") == OK and wire.line("CLIENT NO-EVICT ON")
            assert ask_all(wire, ["GET k", "DBSIZE", "GET k"]) == [b"$1\r\nv\r\n", b":2\r\n", b"$1\r\nv\r\n"]


class TestSubscribers:
    def test_in_resp2_may_do_nothing_else(self, house: dict[str, Process], direct: Wire) -> None:
        """As Redis: not before they have unsubscribed."""
        with Wire(house["a"].port) as wire:
            wire.line("SUBSCRIBE c")
            for line in ("DBSIZE", "FLUSHDB", "RANDOMKEY"):
                expected = wire.line("GET k").replace(b"'get'", b"'%b'" % line.lower().encode())
                assert expected.startswith(b"-ERR Can't execute '")
                assert wire.line(line) == expected
            assert wire.line("SIDECAR STATS").startswith(b"-ERR Can't execute 'sidecar': only (P")
            wire.line("UNSUBSCRIBE c")
            assert wire.line("DBSIZE") == b":2\r\n"

    def test_in_resp3_get_messages_between(self, house: dict[str, Process], direct: Wire) -> None:
        with Wire(house["a"].port, 3) as wire:
            wire.line("SUBSCRIBE c")
            replies = 0
            wire.raw((request("DBSIZE") + request("GET", "k")) * 50)
            for _ in range(50):
                assert direct.line("PUBLISH c m") == b":1\r\n"
            frames = [wire.read() for _ in range(150)]
            replies = [frame for frame in frames if frame[:1] != b">"]
            assert replies == [b":2\r\n", b"$1\r\nv\r\n"] * 50


class TestWithinATransaction:
    @both_protocols
    @pytest.mark.parametrize("state", ["", "CLIENT NO-EVICT ON"])
    @pytest.mark.parametrize("line", ["DBSIZE", "RANDOMKEY", "FLUSHDB", "FLUSHALL", "SIDECAR STATS"])
    def test_they_break_it(self, house: dict[str, Process], direct: Wire, line: str, state: str, protocol: int) -> None:
        with Wire(house["a"].port, protocol) as wire:
            enter(wire, state)
            for once in (False, True):
                lines = ["MULTI", "SET k 2", line, "EXEC"]
                found = ask_all(wire, lines) if once else [wire.line(each) for each in lines]
                assert found[2].startswith(b"-ERR") and found[3].startswith(b"-EXECABORT")
            assert wire.line("DBSIZE") == b":2\r\n" and wire.line("GET k") == b"$1\r\nv\r\n"


def test_leaving_in_the_middle(house: dict[str, Process], direct: Wire) -> None:
    direct.raw(b"".join(request("SET", f"a:{n}", "v") for n in range(5000)))
    assert direct.reads(5000) == [OK] * 5000
    for how in ("CLIENT NO-EVICT ON", "WATCH k"):
        with Wire(house["a"].port) as wire:
            enter(wire, how)
            wire.raw(request("DBSIZE") * 20)
        with Wire(house["a"].port) as wire:
            enter(wire, how)
            wire.raw(request("DBSIZE") + request("SIDECAR", "STATS"))
            wire.sock.shutdown(1)
            assert wire.rest().startswith(b":5002\r\n*")


def test_a_tenants_limit_holds_there(any_redis_binary: str, directory: Path) -> None:
    config = directory / "pannier.toml"
    config.write_text('[tenants.t]\npassword = "p"\nmax_ops_per_second = 20\n')
    with redis_server(any_redis_binary, directory) as redis, pannier(f"redis://127.0.0.1:{redis.port}", directory, "--config", str(config)) as proxy, Wire(proxy.port) as wire:
        assert wire.line("AUTH t p") == OK and wire.line("CLIENT TRACKING OFF") == OK
        assert ask_all(wire, ["DBSIZE", "SIDECAR BYPASS OFF", "ACL WHOAMI"] * 10) == [b":0\r\n", OK, b"$1\r\nt\r\n"] * 10
