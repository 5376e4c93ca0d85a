"""Cache rules end to end: each field, each way in, and rules read again under clients that stay."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.harness import Process, free_port, pannier, redis_server
from tests.integration.test_tier_reads import Monitor, ask_all, info
from tests.integration.wire import Wire, in_background, request, until

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])

OK = b"+OK\r\n"
NULL = {2: b"$-1\r\n", 3: b"_\r\n"}
RULES = """
[[rules]]
match = "off:*"
cache = false

[[rules]]
match = "seen:*"
mode = "observe"

[[rules]]
match = "short:*"
l1_ttl = "100ms"
jitter = 0

[[rules]]
match = "small:*"
max_value_size = 64

[[rules]]
match = "there:*"
negative = false

[[rules]]
match = ["exp:*", "*:expiring"]
expire = "1h"
class = "ends"

[[rules]]
match = "swr:*"
l1_ttl = "100ms"
jitter = 0
stale_while_revalidate = "60s"

[[rules]]
match = "err:*"
l1_ttl = "100ms"
jitter = 0
stale_if_error = "60s"

[[rules]]
match = "ahead:*"
l1_ttl = "3s"
jitter = 0
refresh_ahead = "2s"
"""
HOUR = range(3_590_000, 3_600_001)
"""Milliseconds that are an hour on a busy machine."""
LARGE = 300_000
"""Bytes of a value that is relayed while it arrives."""


@dataclass
class Door:
    """A way in."""

    port: int
    redis: int
    login: tuple[str, ...] = ()
    prefix: str = ""
    password: str = ""

    def open(self, protocol: int = 2) -> Wire:
        wire = Wire(self.port)
        if self.login:
            assert wire.ask("AUTH", *self.login) == OK
        if protocol == 3:
            wire.ask("HELLO", 3)
        return wire

    def direct(self) -> Redis:
        """Redis without a Pannier."""
        return Redis(port=self.redis, password=self.password or None)

    def ttl(self, key: str) -> int:
        with self.direct() as redis:
            return int(redis.pttl(self.prefix + key))


@pytest.fixture(scope="module")
def doors(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Door]]:
    """Sidecars in front of one Redis, by what they have that may come between a SET and its rule."""
    directory = tmp_path_factory.mktemp("doors")
    rules = directory / "rules.toml"
    rules.write_text(RULES)
    tenants = directory / "tenants.toml"
    tenants.write_text('[tenants.acme]\npassword = "acme-pw"\n[tenants.operator]\npassword = "op-pw"\nnamespace = ""\n')
    listener = free_port()
    common = ("--rules-file", str(rules), "--admit-after", "1", "--coherence-timeout", "60s", "--canary-interval", "0")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server(redis_binary, directory, "--lua-time-limit", "50"))
        walled = stack.enter_context(redis_server(redis_binary, directory, "--requirepass", "pw"))

        def behind(*options: str, server: Process = redis) -> int:
            return stack.enter_context(pannier(f"redis://127.0.0.1:{server.port}", directory, *common, *options)).port

        tenant = behind("--config", str(tenants))
        yield {
            "plain": Door(behind("--listen", f"127.0.0.1:{listener}?namespace=side"), redis.port),
            "listener": Door(listener, redis.port, prefix="side:"),
            "namespace": Door(behind("--namespace", "app"), redis.port, prefix="app:"),
            "tenant": Door(tenant, redis.port, ("acme", "acme-pw"), "acme:"),
            "tenant without namespace": Door(tenant, redis.port, ("operator", "op-pw")),
            "passthrough": Door(behind(server=walled), walled.port, ("default", "pw"), password="pw"),
            "tracking off": Door(behind("--tracking", "off"), redis.port),
            "bcast": Door(behind("--tracking", "bcast"), redis.port),
        }


every_door = pytest.mark.parametrize("door", ["plain", "listener", "namespace", "tenant", "tenant without namespace", "passthrough", "tracking off", "bcast"], indirect=True)


@pytest.fixture
def door(request: pytest.FixtureRequest, doors: dict[str, Door]) -> Door:
    """The way in, the plain one unless told; Redis is empty."""
    found = doors[getattr(request, "param", "plain")]
    with found.direct() as redis:
        redis.flushall()
    return found


@pytest.fixture
def monitor(door: Door) -> Iterator[Callable[[str], int]]:
    """Tells how often Redis has been asked for a key's value since it was last asked."""
    server = Process(None, door.redis, Path())  # type: ignore[arg-type]
    with Monitor(server) as watched:

        def asked(key: str) -> int:
            return len([words for words in watched.seen((door.prefix + key).encode()) if words[0] in (b"GET", b"HGET", b"EXISTS", b"MGET")])

        yield asked


def explain(door: Door, key: str | bytes) -> dict[str, Any]:
    """What SIDECAR EXPLAIN says of a key."""
    user, password = door.login or (None, None)
    with Redis(port=door.port, protocol=3, username=user, password=password) as client:
        fields = client.execute_command("SIDECAR", "EXPLAIN", key)
    reads = [{name.decode(): value for name, value in read.items()} for read in fields.pop(b"reads")]
    return {name.decode(): value.decode() if isinstance(value, bytes) else value for name, value in fields.items()} | {"reads": reads}


def over(door: Door, key: str) -> None:
    """Wait until what is kept of a key is beyond its time."""
    until(lambda: not any(read["l1_ttl_ms"] for read in explain(door, key)["reads"]), f"{key} ends")


def three(wire: Wire, *command: str) -> list[bytes]:
    return [wire.ask(*command) for _ in range(3)]


class TestWhatIsKept:
    @both_protocols
    def test_by_rule(self, door: Door, monitor: Callable[[str], int], protocol: int) -> None:
        with door.direct() as redis, door.open(protocol) as wire:
            for key in ("off:1", "seen:1", "other", "small:1", "there:1"):
                redis.set(key, "v")
            redis.set("small:2", "x" * 60)
            for key, asked in {"off:1": 3, "seen:1": 3, "other": 1, "small:1": 1, "small:2": 3, "there:1": 1, "there:2": 3, "none": 1}.items():
                expected = redis.get(key)
                reply = NULL[protocol] if expected is None else b"$%d\r\n%b\r\n" % (len(expected), expected)
                monitor(key)
                assert three(wire, "GET", key) == [reply] * 3
                assert monitor(key) == asked, key

    @both_protocols
    def test_of_a_missing_field(self, door: Door, monitor: Callable[[str], int], protocol: int) -> None:
        with door.open(protocol) as wire:
            for key, asked in (("there:h", 3), ("other:h", 1)):
                wire.ask("HSET", key, "f", "v")
                monitor(key)
                assert three(wire, "HGET", key, "none") == [NULL[protocol]] * 3
                assert monitor(key) == asked

    @both_protocols
    def test_of_several_keys_by_the_strictest(self, door: Door, monitor: Callable[[str], int], protocol: int) -> None:
        with door.open(protocol) as wire:
            wire.ask("MSET", "a", "1", "b", "1", "off:1", "1")
            for keys, asked in ((("a", "b"), 1), (("a", "off:1"), 3), (("a", "there:none"), 1)):
                monitor("a")
                three(wire, "EXISTS", *keys)
                assert monitor("a") == asked, keys
            monitor("off:1")
            assert three(wire, "MGET", "a", "off:1") == [b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n"] * 3
            assert monitor("off:1") == 3

    @both_protocols
    def test_no_longer_than_its_time(self, door: Door, monitor: Callable[[str], int], protocol: int) -> None:
        with door.open(protocol) as wire:
            wire.ask("SET", "short:1", "v")
            wire.ask("GET", "short:1")
            over(door, "short:1")
            monitor("short:1")
            wire.ask("GET", "short:1")
            assert monitor("short:1") == 1

    def test_pipelined_as_one_by_one(self, door: Door, monitor: Callable[[str], int]) -> None:
        with door.open() as wire:
            wire.ask("MSET", "off:1", "v", "other", "v")
            for _ in range(3):
                assert ask_all(wire, ["GET off:1", "GET other", "GET off:1"]) == [b"$1\r\nv\r\n"] * 3
            assert monitor("off:1") == 6
            for _ in range(3):
                assert ask_all(wire, ["GET other2", "GET other2", "GET off:1"])[:2] == [b"$-1\r\n"] * 2
            assert monitor("other2") <= 3, "twice by the pipeline that begins it, and by what fetches it"


class TestExpire:
    @every_door
    @both_protocols
    def test_gives_a_set_its_time(self, door: Door, protocol: int) -> None:
        with door.open(protocol) as wire:
            for n, words in enumerate(["SET exp:{} v", "set exp:{} v NX", "SET exp:{} v GET", "SET a{}:expiring v"]):
                key = words.split()[1].format(n)
                assert wire.line(words.format(n)) in (OK, NULL[protocol])
                assert door.ttl(key) in HOUR
            wire.raw(b"SET exp:inline v\r\n")
            assert wire.read() == OK and door.ttl("exp:inline") in HOUR

    @every_door
    def test_leaves_what_a_client_says(self, door: Door) -> None:
        with door.open() as wire:
            for words in ("SET exp:1 v EX 5", "SET exp:1 v px 5000", "SETEX exp:1 5 v", "PSETEX exp:1 5000 v"):
                assert wire.line(words) == OK
                assert 0 < door.ttl("exp:1") <= 5000
            assert wire.line("SET exp:1 v KEEPTTL") == OK and 0 < door.ttl("exp:1") <= 5000
            for words in ("SETNX exp:2 v", "MSET exp:2 v", "GETSET exp:2 v", "APPEND exp:3 v", "INCR exp:4", "HSET exp:5 f v", "SET other v"):
                assert not wire.line(words).startswith(b"-")
                assert door.ttl(words.split()[1]) == -1, words
            assert wire.line("SET exp:9 v bogus").startswith(b"-ERR syntax")
            assert wire.line("SET exp:9").startswith(b"-ERR wrong number")
            assert door.ttl("exp:9") == -2

    @every_door
    @both_protocols
    def test_of_a_pipeline(self, door: Door, protocol: int) -> None:
        with door.open(protocol) as wire:
            commands = [word for n in range(300) for word in (f"SET exp:{n} {n}", f"GET exp:{n}", f"SET other{n} {n}")]
            found = ask_all(wire, commands)
            assert found == [reply for n in range(300) for reply in (OK, b"$%d\r\n%d\r\n" % (len(str(n)), n), OK)]
            with door.direct() as redis:
                pipe = redis.pipeline(transaction=False)
                for n in range(300):
                    pipe.pttl(f"{door.prefix}exp:{n}")
                    pipe.pttl(f"{door.prefix}other{n}")
                ttls = pipe.execute()
            assert all(ttl in HOUR for ttl in ttls[::2]) and set(ttls[1::2]) == {-1}

    @every_door
    @both_protocols
    def test_within_a_transaction(self, door: Door, protocol: int) -> None:
        with door.open(protocol) as wire:
            found = ask_all(wire, ["WATCH exp:1", "MULTI", "SET exp:1 v", "SET other v", "GET exp:1", "EXEC", "GET exp:1"])
            assert found == [OK, OK, b"+QUEUED\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", b"*3\r\n+OK\r\n+OK\r\n$1\r\nv\r\n", b"$1\r\nv\r\n"]
            assert door.ttl("exp:1") in HOUR and door.ttl("other") == -1

    @every_door
    @both_protocols
    @pytest.mark.parametrize("queued", [False, True], ids=["alone", "in MULTI"])
    def test_of_a_large_value(self, door: Door, protocol: int, queued: bool) -> None:
        """It is relayed while it arrives, so its time has to be said in front of it."""
        value = os.urandom(LARGE // 2).hex().encode() * 3
        with door.open(protocol) as wire:
            wire.ask("SET", "exp:1", "before")
            wire.ask("GET", "exp:1")
            commands: list[Any] = [("SET", "exp:1", value), ("SET", "exp:2", value, "NX"), ("SET", "exp:3", value, "EX", "5"), ("SET", "other", value)]
            replies = [OK] * 4
            if queued:
                commands, replies = ["MULTI", *commands, "EXEC"], [OK, *[b"+QUEUED\r\n"] * 4, b"*4\r\n" + OK * 4]
            assert ask_all(wire, commands) == replies
            with door.direct() as redis:
                assert {redis.get(door.prefix + key) for key in ("exp:1", "exp:2", "exp:3", "other")} == {value}
            assert door.ttl("exp:1") in HOUR and door.ttl("exp:2") in HOUR
            assert 0 < door.ttl("exp:3") <= 5000 and door.ttl("other") == -1
            assert wire.ask("GET", "exp:1") == b"$%d\r\n%b\r\n" % (len(value), value), "memory has let go of what was before"

    @every_door
    def test_of_a_large_value_that_arrives_in_pieces(self, door: Door) -> None:
        value = b"x" * (2 * LARGE)
        for data in (request("SET", "exp:1", value), request("SET", "exp:1", value, "XX", "GET")):
            with door.open() as wire:
                for cut in range(0, len(data), 70_001):
                    wire.raw(data[cut : cut + 70_001])
                assert not wire.read().startswith(b"-")
                assert door.ttl("exp:1") in HOUR
                with door.direct() as redis:
                    redis.persist(door.prefix + "exp:1")

    @pytest.mark.parametrize("door", ["plain", "passthrough", "tracking off", "tenant without namespace"], indirect=True)
    def test_with_replies_off(self, door: Door) -> None:
        with door.open() as wire:
            wire.send("CLIENT", "REPLY", "OFF")
            wire.send("SET", "exp:1", "v")
            wire.send("SET", "exp:2", b"x" * LARGE)
            wire.send("CLIENT", "REPLY", "SKIP")
            wire.send("SET", "exp:3", "v")
            wire.send("CLIENT", "REPLY", "ON")
            assert wire.read() == OK
            assert all(door.ttl(f"exp:{n}") in HOUR for n in (1, 2, 3))

    @pytest.mark.parametrize("door", ["plain", "namespace"], indirect=True)
    def test_while_subscribed_over_resp3(self, door: Door) -> None:
        with door.open(3) as wire:
            assert wire.ask("SUBSCRIBE", "c").startswith(b">3")
            assert wire.ask("SET", "exp:1", "v") == OK and door.ttl("exp:1") in HOUR

    def test_a_large_one_with_options_that_cannot_be_waited_for_is_refused(self, door: Door) -> None:
        with door.open() as wire:
            head = b"*5\r\n$3\r\nSET\r\n$5\r\nexp:1\r\n$70000000\r\n"
            with contextlib.suppress(ConnectionError), in_background(lambda: _pour(wire, head + b"x" * 70_000_000)):
                assert wire.read().startswith(b"-ERR Protocol error: too big a request")
            assert door.ttl("exp:1") == -2

    def test_a_large_one_whose_key_has_no_such_rule_is_relayed_with_options(self, door: Door) -> None:
        value = b"x" * 70_000_000
        with door.open() as wire, in_background(lambda: wire.send("SET", "other", value, "EX", "100")):
            assert wire.read() == OK
        assert 0 < door.ttl("other") <= 100_000


def _pour(wire: Wire, data: bytes) -> None:
    with contextlib.suppress(OSError):
        wire.raw(data)


class TestBeyondItsTime:
    @contextlib.contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @pytest.mark.parametrize("door", ["plain", "namespace", "bcast"], indirect=True)
    @both_protocols
    def test_while_it_is_fetched_anew_it_answers_at_once(self, door: Door, protocol: int) -> None:
        with door.direct() as redis, door.open(protocol) as wire, door.open(protocol) as other, door.open() as pipelined:
            redis.set(door.prefix + "swr:1", "v")
            redis.set(door.prefix + "short:1", "v")
            assert (wire.ask("GET", "swr:1"), wire.ask("GET", "short:1")) == (b"$1\r\nv\r\n",) * 2
            over(door, "swr:1")
            over(door, "short:1")
            with self.stopped(int(redis.info("server")["process_id"])):
                for _ in range(3):
                    assert wire.ask("GET", "swr:1") == other.ask("GET", "swr:1") == b"$1\r\nv\r\n"
                if door.port and protocol == 2:
                    assert ask_all(pipelined, ["GET swr:1", "GET swr:1"]) == [b"$1\r\nv\r\n"] * 2
                other.sock.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    other.ask("GET", "short:1")
            redis.set(door.prefix + "swr:1", "new")
            until(lambda: wire.ask("GET", "swr:1") == b"$3\r\nnew\r\n", "it is fetched anew")

    @both_protocols
    def test_never_what_redis_has_said_was_changed(self, door: Door, protocol: int) -> None:
        with door.direct() as redis, door.open(protocol) as wire:
            for n in range(20):
                redis.set("swr:1", n)
                expected = b"$%d\r\n%d\r\n" % (len(str(n)), n)
                until(lambda expected=expected: wire.ask("GET", "swr:1") == expected, "the push arrives")  # type: ignore[misc]
                over(door, "swr:1")
                assert wire.ask("GET", "swr:1") == expected
            over(door, "swr:1")
            assert wire.ask("SET", "swr:1", "own") == OK
            assert wire.ask("GET", "swr:1") == b"$3\r\nown\r\n"
            over(door, "swr:1")
            assert wire.ask("SIDECAR", "INVALIDATE", "MATCH", "swr:*") != b":0\r\n"

    def test_never_beyond_the_keys_own_time(self, door: Door) -> None:
        with door.direct() as redis, door.open() as wire:
            redis.set("swr:1", "v", px=300)
            assert wire.ask("GET", "swr:1") == b"$1\r\nv\r\n"
            until(lambda: not redis.exists("swr:1"), "the key expires")
            assert three(wire, "GET", "swr:1") == [b"$-1\r\n"] * 3

    @pytest.mark.parametrize("door", ["plain", "namespace", "bcast"], indirect=True)
    @both_protocols
    def test_in_place_of_an_error(self, door: Door, protocol: int) -> None:
        with door.direct() as redis, door.direct() as busy, door.open(protocol) as wire:
            redis.set(door.prefix + "err:1", "v")
            redis.set(door.prefix + "short:1", "v")
            assert (wire.ask("GET", "err:1"), wire.ask("GET", "short:1")) == (b"$1\r\nv\r\n",) * 2
            over(door, "err:1")
            over(door, "short:1")

            def block() -> None:
                with contextlib.suppress(Exception):
                    busy.eval("while true do end", 0)

            thread = threading.Thread(target=block)
            thread.start()
            try:
                until(lambda: _busy(redis), "Redis is busy")
                assert three(wire, "GET", "err:1") == [b"$1\r\nv\r\n"] * 3
                assert wire.ask("GET", "short:1").startswith(b"-BUSY")
            finally:
                redis.script_kill()
                thread.join()
            redis.set(door.prefix + "err:1", "new")
            until(lambda: wire.ask("GET", "err:1") == b"$3\r\nnew\r\n", "it is fetched anew")

    def test_fetched_anew_before_its_time_is_over(self, door: Door, monitor: Callable[[str], int]) -> None:
        with door.open() as wire:
            wire.ask("MSET", "ahead:1", "v", "ahead:2", "v")
            wire.ask("GET", "ahead:2")
            assert set(ask_all(wire, ["GET ahead:1"] * 400)) == {b"$1\r\nv\r\n"}
            assert set(ask_all(wire, ["GET ahead:1"] * 400)) == {b"$1\r\nv\r\n"}
            monitor("ahead:1")
            until(lambda: monitor("ahead:1"), "Redis is asked for it though no client does")


def _busy(redis: Redis) -> bool:
    try:
        redis.ping()
    except Exception as error:
        return "BUSY" in str(error) or "busy" in str(error)
    return False


class TestExplain:
    @pytest.mark.parametrize("door", ["plain", "namespace", "listener", "tenant", "passthrough"], indirect=True)
    def test_says_which_rule_and_what_is_kept(self, door: Door) -> None:
        with door.open() as wire:
            wire.ask("SET", "exp:1", "v")
            found = explain(door, "exp:1")
            assert (found["rule"], found["match"], found["class"], found["mode"]) == (6, "exp:* *:expiring", "ends", "cache")
            assert found["redis_ttl_ms"] in HOUR and (found["cached"], found["reads"]) == ("no", [])
            three(wire, "GET", "exp:1")
            wire.ask("STRLEN", "exp:1")
            found = explain(door, "exp:1")
            assert found["cached"] == "yes" and {read["read"] for read in found["reads"]} == {b"GET exp:1", b"STRLEN exp:1"}
            assert all(0 < read["l1_ttl_ms"] <= 300_000 for read in found["reads"])
        assert explain(door, "nosuch") == {"rule": "default", "match": "*", "class": "nosuch", "mode": "cache", "cached": "no", "redis_ttl_ms": "no such key", "reads": []}
        assert explain(door, "off:1")["mode"] == "off"
        assert explain(door, b"\xff:\x00")["class"] == "\\xff"

    def test_with_bypass_on_says_what_is_there_for_others(self, door: Door) -> None:
        with door.open(3) as wire, door.open() as other:
            wire.ask("SET", "k", "v")
            other.ask("GET", "k")
            assert wire.ask("SIDECAR", "BYPASS", "ON") == OK
            assert b"GET k" in wire.ask("SIDECAR", "EXPLAIN", "k")
            assert wire.ask("PING") == b"+PONG\r\n"

    @pytest.mark.parametrize("door", ["tracking off"], indirect=True)
    def test_without_memory_too(self, door: Door) -> None:
        found = explain(door, "exp:1")
        assert (found["rule"], found["cached"]) == (6, "no")
        with door.open() as wire:
            assert wire.ask("SIDECAR", "RULES").startswith(b"*10\r\n")

    @both_protocols
    def test_of_all_rules(self, door: Door, protocol: int) -> None:
        with door.open(protocol) as wire:
            wire.ask("GET", "small:1")
            listed = wire.ask("SIDECAR", "RULES")
        assert listed.startswith(b"*10\r\n") and b"*:expiring" in listed and b"default" in listed
        with Redis(port=door.port, protocol=3) as client:
            rules = client.execute_command("SIDECAR", "RULES")
        assert [rule[b"mode"] for rule in rules] == [b"off", b"observe", *[b"cache"] * 8]
        assert rules[5][b"expire"] == b"1h" and rules[6][b"stale_while_revalidate"] == b"1m"
        assert rules[9][b"rule"] == b"default" and rules[9][b"l1_ttl"] == b"5m"

    def test_takes_one_key(self, door: Door) -> None:
        with door.open() as wire:
            assert wire.line("SIDECAR EXPLAIN") == b"-ERR wrong number of arguments for 'sidecar|explain' command\r\n"
            assert wire.line("SIDECAR EXPLAIN a b").startswith(b"-ERR wrong number")
            assert wire.line("SIDECAR RULES x").startswith(b"-ERR wrong number")


class TestMode:
    @pytest.mark.parametrize(("mode", "asked"), [("off", 3), ("observe", 3), ("cache", 1)])
    def test_is_a_ceiling_for_all_rules(self, any_redis_binary: str, directory: Path, mode: str, asked: int) -> None:
        config = directory / "pannier.toml"
        config.write_text(f'mode = "{mode}"\n[[rules]]\nmatch = "*"\nmode = "cache"\n')
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory, "--config", str(config), "--admit-after", "1") as proxy,
            Monitor(redis) as monitor,
            Wire(proxy.port) as wire,
        ):
            wire.ask("SET", "k", "v")
            assert three(wire, "GET", "k") == [b"$1\r\nv\r\n"] * 3
            assert len([words for words in monitor.seen(b"k") if words[0] == b"GET"]) == asked
            found = info(proxy)
            assert found["pannier_mode"] == mode
            assert int(found["pannier_tier_entries"]) == (mode == "cache")
            assert ("pannier_observe_reads" in found) is (mode == "observe")


class House:
    """A Redis, a Pannier that follows a file of rules, and clients that stay while it changes."""

    def __init__(self, redis: Process, proxy: Process, path: Path) -> None:
        self.redis, self.proxy, self.path = redis, proxy, path

    def replace(self, rules: str) -> None:
        other = self.path.with_suffix(".new")
        other.write_text(rules)
        os.replace(other, self.path)

    def shown(self) -> list[bytes]:
        """The patterns in force, the default's last."""
        with Redis(port=self.proxy.port, protocol=3) as client:
            return [rule[b"match"] for rule in client.execute_command("SIDECAR", "RULES")]

    def until(self, *patterns: bytes) -> None:
        until(lambda: self.shown() == [*patterns, b"*"], f"rules {patterns} are in force")


@pytest.fixture
def house(any_redis_binary: str, directory: Path) -> Iterator[House]:
    path = directory / "rules.toml"
    path.write_text('[[rules]]\nmatch = "first"\n')
    with (
        redis_server(any_redis_binary, directory) as redis,
        pannier(f"redis://127.0.0.1:{redis.port}", directory, "--rules-file", str(path), "--admit-after", "1") as proxy,
    ):
        yield House(redis, proxy, path)


class TestReadAgain:
    @pytest.mark.parametrize("how", ["file", "SIGHUP"])
    def test_while_clients_are_connected_and_pipelining(self, house: House, how: str) -> None:
        stop, wrong, rounds = threading.Event(), [], [0] * 4
        texts = ['[[rules]]\nmatch = "k*"\nexpire = "1h"\n', '[[rules]]\nmatch = "k*"\ncache = false\n', "", '[[rules]]\nmatch = "*"\nstale_while_revalidate = "1m"\nl1_ttl = "50ms"\n']

        def hammer(n: int) -> None:
            with Wire(house.proxy.port, 2 + n % 2, timeout=20.0) as wire:
                while not stop.is_set():
                    rounds[n] += 1
                    value = b"%d" % rounds[n]
                    bulk = b"$%d\r\n%b\r\n" % (len(value), value)
                    found = ask_all(wire, [("SET", f"k{n}", value), *[("GET", f"k{n}")] * 5, "MULTI", ("SET", f"m{n}", value), ("GET", f"m{n}"), "EXEC", ("GET", f"m{n}")])
                    if found != [OK, *[bulk] * 5, OK, b"+QUEUED\r\n", b"+QUEUED\r\n", b"*2\r\n+OK\r\n" + bulk, bulk]:
                        wrong.append((n, rounds[n], found))

        threads = [threading.Thread(target=hammer, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for text_ in texts:
                house.replace(text_)
                if how == "SIGHUP":
                    house.proxy.signal(signal.SIGHUP)
                patterns = [line.partition('"')[2][:-1].encode() for line in text_.splitlines() if line.startswith("match")]
                house.until(*patterns)
                before = list(rounds)
                until(lambda before=before: all(now > then + 1 for now, then in zip(rounds, before, strict=True)), "all clients go on")  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not wrong, wrong[:3]
        assert not any(thread.is_alive() for thread in threads)

    def test_takes_effect_on_connections_that_are_there(self, house: House) -> None:
        with Wire(house.proxy.port) as wire, Redis(port=house.redis.port) as direct:
            assert ask_all(wire, ["SET k v", "SET k v"]) == [OK, OK]
            assert direct.pttl("k") == -1
            house.replace('[[rules]]\nmatch = "k"\nexpire = "1h"\n')
            house.until(b"k")
            assert ask_all(wire, ["SET k v", "SET k v"]) == [OK, OK]
            assert direct.pttl("k") in HOUR
            house.replace('[[rules]]\nmatch = "k"\ncache = false\n')
            house.proxy.signal(signal.SIGHUP)
            until(lambda: explain(Door(house.proxy.port, house.redis.port), "k")["mode"] == "off", "the other rule holds")
            assert ask_all(wire, ["SET k v", "SET k v"]) == [OK, OK]
            assert direct.pttl("k") == -1

    def test_drops_what_was_kept_by_other_rules(self, house: House) -> None:
        with Wire(house.proxy.port) as wire:
            wire.ask("SET", "k", "v")
            wire.ask("GET", "k")
            assert int(info(house.proxy)["pannier_tier_entries"]) > 0
            house.replace('[[rules]]\nmatch = "k"\ncache = false\n')
            house.until(b"k")
            assert int(info(house.proxy)["pannier_tier_entries"]) == 0

    @pytest.mark.parametrize("how", ["file", "SIGHUP"])
    def test_a_broken_file_keeps_the_old_rules_and_says_why(self, house: House, how: str) -> None:
        with Wire(house.proxy.port) as wire:
            house.replace('[[rules]]\nmatch = "k"\nl1_ttl = "soon"\n')
            if how == "SIGHUP":
                house.proxy.signal(signal.SIGHUP)
            until(lambda: "the old settings stay in force" in house.proxy.output, "it is said")
            assert "rules #1.l1_ttl: 'soon' is not a duration; give one such as 500ms" in house.proxy.output
            assert b"pannier_rules_status:" in (said := wire.ask("INFO", "sidecar")) and b"'soon' is not a duration" in said
            assert house.shown() == [b"first", b"*"]
            assert wire.ask("PING") == b"+PONG\r\n"
            house.replace('[[rules]]\nmatch = "mended"\n')
            house.until(b"mended")
            said = wire.ask("INFO", "sidecar")
            assert b"pannier_rules_status:in force\r\n" in said and b"pannier_rules_reloads:1\r\n" in said

    def test_a_config_map_is_followed(self, any_redis_binary: str, directory: Path) -> None:
        """Kubernetes swaps the link `..data`; the file itself stays the link it is."""
        mount = directory / "mount"
        for version in ("one", "two"):
            (mount / version).mkdir(parents=True)
            (mount / version / "rules.toml").write_text(f'[[rules]]\nmatch = "{version}"\n')
        (mount / "..data").symlink_to("one")
        (mount / "rules.toml").symlink_to("..data/rules.toml")
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory, "--rules-file", str(mount / "rules.toml")) as proxy,
        ):
            house = House(redis, proxy, mount / "rules.toml")
            assert house.shown() == [b"one", b"*"]
            (mount / "..tmp").symlink_to("two")
            os.replace(mount / "..tmp", mount / "..data")
            house.until(b"two")

    def test_sighup_without_any_file_changes_nothing(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            wire.ask("SET", "k", "v")
            proxy.signal(signal.SIGHUP)
            until(lambda: "rules and mode are as they were" in proxy.output, "it is said")
            assert wire.ask("GET", "k") == b"$1\r\nv\r\n"

    def test_a_start_with_a_broken_file_fails_and_says_why(self, directory: Path) -> None:
        path = directory / "rules.toml"
        path.write_text("[[rules]]\nmtach = 'k'\n")
        with pytest.raises(RuntimeError, match="did you mean match"), pannier("redis://127.0.0.1:1", directory, "--rules-file", str(path)):
            pass
