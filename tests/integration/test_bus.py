"""The eviction bus: what one sidecar, or an application, says is forgotten by all the others."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests import harness
from tests.harness import Process, free_port, redis_server, wait_until
from tests.integration.test_tier_reads import Command, arguments, ask_all, encoded, hits, reply
from tests.integration.wire import Wire, request, text

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])

pannier = functools.partial(harness.pannier, bus=True)

OK = b"+OK\r\n"
BARE = "pannier:evict:"
"""The channel of what lives in no namespace."""
QUIET = "quiet:"
"""What the channels begin with of a sidecar to which nobody speaks."""
FIRST, SECOND = free_port(), free_port()
"""Where the sidecars of `spaced` serve the namespace `one`."""
FIRST_TWO, SECOND_TWO = free_port(), free_port()
"""Where they serve the namespace `two`."""
TENANTS = """
[tenants.acme]
password = "acme-pw"

[tenants.globex]
password = "globex-pw"
namespace = "customers:globex"

[tenants.operator]
password = "operator-pw"
namespace = ""
"""
NO_MESSAGES: dict[str, bytes] = {
    "no JSON": b"user:42", "half": b'{"v":1,"keys":["k"', "an array": b'["k"]', "binary": b"\xff\x00\xfe" * 100, "empty": b"",
    "keys no list": b'{"v":1,"keys":"k"}', "keys of numbers": b'{"v":1,"keys":[1]}', "invalid b64": b'{"v":1,"keys":[{"b64":"!"}]}',
    "match null": b'{"v":1,"match":null}', "all no truth": b'{"v":1,"all":1}', "from a number": b'{"v":1,"from":1,"n":1,"all":true}',
    "n a text": b'{"v":1,"from":"a","n":"1","all":true}', "deep": b"[" * 200_000, "deep keys": b'{"v":1,"keys":' + b"[" * 9000 + b"]" * 9000 + b"}",
    "huge": b'{"v":1,"all":true,"why":"' + b"x" * (1 << 20) + b'"}',
}  # fmt: skip
UNKNOWN: dict[str, bytes] = {
    "a newer one": b'{"v":2,"all":true}', "none": b'{"all":true}', "a text": b'{"v":"1","all":true}', "null": b'{"v":null,"keys":["k"]}', "a long one": b'{"v":"%b","all":true}' % (b"9" * 5000),
}  # fmt: skip


# --- what all tests use


def facts(port: int, *login: str) -> dict[str, str]:
    """INFO's section `# Sidecar`, without the `pannier_` of each name."""
    with Wire(port) as wire:
        if login:
            assert wire.ask("AUTH", *login) == OK
        lines = text(wire.ask("INFO", "sidecar")).splitlines()[1:]
    return {
        name.removeprefix("pannier_"): value for name, _, value in (line.partition(":") for line in lines)
    }


def fact(proxy: Process, name: str) -> int:
    return int(facts(proxy.port)[name])


FORMS: dict[int, int] = {}
"""In how many protocols the memory behind a port keeps each reply: 1 until a RESP3 client has come."""


def both_forms(stack: contextlib.ExitStack, *ports: int) -> None:
    """Have each reply kept for clients of both protocols, so that it is known how many entries that is."""
    for port in ports:
        stack.enter_context(Wire(port, 3)).ask("SIDECAR", "FLUSH")
        stack.enter_context(Wire(port, 2))
        FORMS[port] = 2
        stack.callback(FORMS.pop, port)  # another may come to listen there


def entries(port: int, *login: str) -> int:
    """How many replies memory keeps."""
    return int(facts(port, *login)["tier_entries"]) // FORMS.get(port, 1)


def ready(*proxies: Process) -> None:
    """Wait until sidecars hear each other."""
    for proxy in proxies:
        wait_until(lambda proxy=proxy: facts(proxy.port)["bus_status"] == "up")  # type: ignore[misc]


def hot(port: int, keys: Iterable[str | bytes], *login: str) -> None:
    """Read keys until memory answers for them."""
    commands: list[Command] = [("GET", key) for key in keys]
    with Wire(port) as wire:
        if login:
            assert wire.ask("AUTH", *login) == OK
        for start in range(0, len(commands), 100):
            for _ in range(3):
                ask_all(wire, commands[start : start + 100])


def kept(port: int, key: str | bytes, *login: str) -> bool:
    """Whether memory answers a read of a key."""
    with Wire(port) as wire:
        if login:
            assert wire.ask("AUTH", *login) == OK
        before = hits(wire)
        wire.ask("GET", key)
        return hits(wire) > before


def remembered(port: int, key: str, *login: str) -> bool:
    """Whether a key is in memory, without reading it."""
    with Wire(port) as wire:
        if login:
            assert wire.ask("AUTH", *login) == OK
        return b"cached\r\n$3\r\nyes" in wire.ask("SIDECAR", "EXPLAIN", key)


def fill(redis: Process, *proxies: Process, keys: Iterable[str | bytes]) -> None:
    """Have only these keys in Redis, and in the memory of the sidecars."""
    keys = list(keys)
    with Redis(port=redis.port) as direct:
        direct.flushall()
        direct.mset(dict.fromkeys(keys, "value"))
    for proxy in proxies:
        with Wire(proxy.port) as wire:
            wait_until(lambda wire=wire: wire.ask("GET", keys[0]) == b"$5\r\nvalue\r\n")  # type: ignore[misc]
            wire.ask("SIDECAR", "FLUSH")
    for proxy in proxies:
        wait_until(lambda proxy=proxy: hot(proxy.port, keys) or settled(proxy, len(keys)))  # type: ignore[func-returns-value, misc]


def settled(proxy: Process, count: int) -> bool:
    return entries(proxy.port) == count


def empties(proxy: Process) -> None:
    wait_until(lambda: entries(proxy.port) == 0)


def publish(redis: Process, message: object, channel: str = BARE) -> int:
    """Publish as an application does; how many heard it."""
    data = message if isinstance(message, bytes) else json.dumps(message)
    with Redis(port=redis.port) as direct:
        return int(direct.publish(channel, data))  # type: ignore[arg-type]


class Ear:
    """Hears what is said on a channel, as an application would."""

    def __init__(self, redis: Process, channel: str = BARE) -> None:
        self._client = Redis(port=redis.port, socket_timeout=10)
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(channel)
        self._pubsub.get_message(timeout=5)
        self._fences = itertools.count()

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._pubsub.close()
        self._client.close()

    def next(self, seconds: float = 10.0) -> dict[str, Any]:
        """The next message."""
        deadline = time.monotonic() + seconds
        while (message := self._pubsub.get_message(timeout=0.5)) is None:
            assert time.monotonic() < deadline, "no message has come"
        found: dict[str, Any] = json.loads(message["data"])
        return found

    def until_fence(self, proxy: int | Wire) -> list[dict[str, Any]]:
        """All messages that a sidecar has sent up to now."""
        with contextlib.ExitStack() as stack:
            wire = proxy if isinstance(proxy, Wire) else stack.enter_context(Wire(proxy))
            fence, messages = self._fence(wire), []
            while True:
                message = self.next()
                if ends := fence in message.get("keys", []):
                    message["keys"].remove(fence)
                if message.keys() & {"match", "all"} or message.get("keys"):
                    messages.append(message)
                if ends:
                    return messages
                if message.get("all"):
                    fence = self._fence(wire)  # all keys: it may have been one of them

    def _fence(self, wire: Wire) -> str:
        fence = f"fence:{next(self._fences)}"
        wire.send("SIDECAR", "INVALIDATE", fence)
        assert reply(wire)[:1] == b":"
        return fence

    def keys(self, proxy: int | Wire) -> list[bytes]:
        """The keys that a sidecar has told of up to now."""
        return [name(key) for message in self.until_fence(proxy) for key in message.get("keys", [])]


def name(written: object) -> bytes:
    return base64.b64decode(written["b64"]) if isinstance(written, dict) else str(written).encode()


def bus_connections(redis: Process) -> list[dict[str, str]]:
    """The sidecars' subscriptions, as Redis lists them."""
    with Redis(port=redis.port) as direct:
        return [client for client in direct.client_list() if client["name"] == "pannier-bus"]


# --- servers


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def url(redis: Process, login: str = "") -> str:
    return f"redis://{login}127.0.0.1:{redis.port}"


@contextlib.contextmanager
def several(redis: Process, directory: Path, *options: list[str]) -> Iterator[list[Process]]:
    """A pannier with each of these options; none may have an internal error."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(pannier(url(redis), directory, *some)) for some in options]
        ready(*started)
        both_forms(stack, *[process.port for process in started])
        yield started
        for process in started:
            assert "Traceback" not in process.output and "internal error" not in process.output, (
                process.output
            )


@pytest.fixture(scope="module")
def quiet(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A sidecar that nobody says anything to, from the module's first test on."""
    with several(upstream, tmp_path_factory.mktemp("quiet"), ["--evict-channel", QUIET]) as (process,):
        yield process


@pytest.fixture(scope="module")
def three(
    upstream: Process, quiet: Process, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Process]]:
    """Three sidecars that say what Redis cannot tell; the last one says so."""
    more = ["--max-entries", "400000", "--max-memory", "256mb", "--admit-after", "1"]
    with several(
        upstream, tmp_path_factory.mktemp("three"), more, more, ["--broadcast", "explicit"]
    ) as started:
        yield started


@pytest.fixture(scope="module")
def writer(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A sidecar that tells of every write, in no namespace."""
    options = ["--broadcast", "writes", "--canary-interval", "100ms"]
    with several(upstream, tmp_path_factory.mktemp("writer"), options) as (process,):
        yield process


@pytest.fixture(scope="module")
def spaced(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """Two sidecars that tell of writes, each with listeners of no namespace, of `one` and of `two`."""

    def options(one: int, two: int) -> list[str]:
        bare = ["--listen", "127.0.0.1:0", "--auth", "none", "--broadcast", "writes"]
        return [
            *bare,
            "--listen",
            f"127.0.0.1:{one}?namespace=one",
            "--listen",
            f"127.0.0.1:{two}?namespace=two",
        ]

    directory = tmp_path_factory.mktemp("spaced")
    with (
        several(upstream, directory, options(FIRST, FIRST_TWO), options(SECOND, SECOND_TWO)) as started,
        contextlib.ExitStack() as stack,
    ):
        both_forms(stack, FIRST, FIRST_TWO, SECOND, SECOND_TWO)
        yield started


class TestCommands:
    @both_protocols
    def test_invalidate_drops_at_every_peer(
        self, upstream: Process, three: list[Process], protocol: int
    ) -> None:
        odd = [b"\xff\xfe", b"", b"a\r\nb", b"\0", "grün".encode(), b'"\\', b"x" * 300]
        fill(upstream, *three, keys=[*odd, "other", "fence"])
        with Wire(three[0].port, protocol) as wire:
            assert wire.ask("SIDECAR", "INVALIDATE", "fence", *odd) == b":%d\r\n" % (1 + len(odd))
        for peer in three[1:]:
            wait_until(lambda peer=peer: settled(peer, 1))  # type: ignore[misc]
            assert kept(peer.port, "other")
            assert not kept(peer.port, odd[0])
        assert entries(three[0].port) == 1

    @both_protocols
    def test_invalidate_match_drops_at_every_peer(
        self, upstream: Process, three: list[Process], protocol: int
    ) -> None:
        names = (
            [f"user:{n}".encode() for n in range(600)]
            + [b"\xff:%d" % n for n in range(5)]
            + [b"a]b", b"a[b", b"agent:1", b"other"]
        )
        fill(upstream, *three, keys=names)
        with Wire(three[1].port, protocol) as wire:
            assert (
                wire.ask("SIDECAR", "INVALIDATE", "MATCH", "user:*", b"\xff:[0-2]", "a\\]b", "a\\[?")
                == b":605\r\n"
            )
        for peer in (three[0], three[2]):
            wait_until(lambda peer=peer: settled(peer, 4))  # type: ignore[misc]
            assert kept(peer.port, b"\xff:3") and kept(peer.port, "agent:1") and kept(peer.port, "other")

    def test_delete_match_drops_at_every_peer(self, upstream: Process, three: list[Process]) -> None:
        names = [f"api:{n}" for n in range(1500)]
        fill(upstream, *three[:2], keys=[*names, "other"])
        with Wire(three[0].port) as wire, Ear(upstream) as ear:
            assert wire.ask("SIDECAR", "DELETE", "MATCH", "api:*", "COUNT", "100") == b":1500\r\n"
            wait_until(lambda: settled(three[1], 1))
            assert [message["match"] for message in ear.until_fence(wire)] == [["api:*"]]
            assert wire.ask("EXISTS", "api:7") == b":0\r\n"

    def test_swapdb_empties_every_peer(self, upstream: Process, three: list[Process]) -> None:
        for word in (["SWAPDB 0 1"], ["MULTI", "SWAPDB 1 0", "EXEC"]):
            fill(upstream, *three, keys=["a", "b"])
            with Wire(three[0].port) as wire:
                assert ask_all(wire, [*word])[0] == OK
            for proxy in three:
                empties(proxy)
                with Wire(proxy.port) as wire:
                    assert wire.line("GET a") == b"$-1\r\n"

    def test_a_reader_sees_the_new_database_at_once_after_the_message(
        self, upstream: Process, three: list[Process]
    ) -> None:
        with (
            Wire(three[0].port) as wire,
            Wire(three[1].port) as peer,
            Ear(upstream) as ear,
            Redis(port=upstream.port, db=1) as other,
        ):
            fill(upstream, *three[:2], keys=["a"])
            other.set("a", "swapped")
            for turn in range(10):
                expected = b"swapped" if turn % 2 == 0 else b"value"
                wire.line("SWAPDB 0 1")
                assert any(message.get("all") for message in ear.until_fence(wire))
                empties(three[1]) if turn == 0 else wait_until(lambda: expected in peer.line("GET a"))  # noqa: B023
                for _ in range(4):
                    assert expected in peer.line("GET a")

    def test_the_message_says_what_the_design_says(self, upstream: Process, three: list[Process]) -> None:
        with Wire(three[0].port) as wire, Wire(three[1].port) as other, Ear(upstream) as ear:
            ear.until_fence(wire)
            ear.until_fence(other)
            wire.ask("SIDECAR", "INVALIDATE", "user:1", b"\xff")
            message = ear.next()
            assert message == {
                "v": 1,
                "from": message["from"],
                "n": message["n"],
                "why": "command",
                "keys": ["user:1", {"b64": "/w=="}],
            }
            assert type(message["n"]) is int
            wire.ask("SIDECAR", "INVALIDATE", "MATCH", "x:*")
            assert ear.next() == {
                "v": 1,
                "from": message["from"],
                "n": message["n"] + 1,
                "why": "command",
                "match": ["x:*"],
            }
            other.ask("SIDECAR", "INVALIDATE", "user:1")
            assert ear.next()["from"] != message["from"]

    def test_what_comes_within_milliseconds_is_one_message(
        self, upstream: Process, three: list[Process]
    ) -> None:
        with Wire(three[0].port) as wire, Ear(upstream) as ear:
            names = [f"k{n}" for n in range(400)]
            before = fact(three[0], "bus_published")
            ask_all(wire, [("SIDECAR", "INVALIDATE", key) for key in names] * 2)
            assert set(ear.keys(wire)) == {key.encode() for key in names}
            assert fact(three[0], "bus_published") - before <= 100

    @pytest.mark.parametrize(
        ("count", "filler"),
        [(400, b"\xff" * 2400), (6, b"\xff" * 150_000), (400, b"\0" * 2400), (800, b"x" * 1200)],
    )
    def test_many_keys_of_any_length_all_arrive(
        self, upstream: Process, three: list[Process], count: int, filler: bytes
    ) -> None:
        """However long the names are: a message too long to be read would leave the peers with old data."""
        names = ["first", *[b"%d:%b" % (n, filler) for n in range(count)], "last"]
        fill(upstream, three[1], keys=["first", "last", "other"])
        bad = fact(three[1], "bus_malformed")
        with Wire(three[0].port) as wire:
            wire.ask("SIDECAR", "INVALIDATE", *names)
        wait_until(lambda: entries(three[1].port) <= 1, 5)
        assert fact(three[1], "bus_malformed") == bad

    def test_many_patterns_all_arrive(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, three[1], keys=["first:1", "last:1", "other"])
        patterns = ["first:*", *[b"%d" % n + b"\xff" * 30 for n in range(100)], "last:*"]
        with Wire(three[0].port) as wire:
            assert wire.ask("SIDECAR", "INVALIDATE", "MATCH", *patterns)[:1] == b":"
            refused = wire.ask("SIDECAR", "INVALIDATE", "MATCH", *patterns, *patterns)
            assert refused == b"-ERR SIDECAR INVALIDATE MATCH takes patterns of 4096 bytes together\r\n"
        wait_until(lambda: entries(three[1].port) <= 1, 5)

    def test_a_pattern_that_was_forgotten_is_no_key(self, three: list[Process]) -> None:
        with Wire(three[0].port) as wire:
            assert wire.ask("SIDECAR", "INVALIDATE", "match") == b"-ERR wrong number of arguments for 'sidecar|invalidate' command\r\n"
            assert wire.ask("SIDECAR", "INVALIDATE", "MATCH", "MATCH") == wire.ask("SIDECAR", "INVALIDATE", "a", "MATCH") == b":0\r\n"

    def test_own_messages_do_not_hurt_and_tell_the_lag(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, *three[:2], keys=["a", "b"])
        before = facts(three[0].port)
        with Wire(three[0].port) as wire:
            for _ in range(20):
                wire.ask("SIDECAR", "INVALIDATE", "fence")
            wait_until(lambda: fact(three[0], "bus_own") > int(before["bus_own"]))
            after = facts(three[0].port)
        assert settled(three[0], 2)
        assert (after["bus_received"], after["bus_gaps"]) == (before["bus_received"], before["bus_gaps"])
        lags = [int(after[f"bus_lag_{which}_us"]) for which in ("p50", "p99", "max")]
        assert 0 < lags[0] <= lags[1] <= lags[2] < 5_000_000
        missing = int(before["bus_published"]) - int(before["bus_own"])
        wait_until(lambda: fact(three[0], "bus_published") - fact(three[0], "bus_own") <= missing)

    def test_what_is_no_invalidation_says_nothing(self, upstream: Process, three: list[Process]) -> None:
        """Redis tells of writes; and who empties his own memory does not empty that of others."""
        lines = [
            "SET a 1",
            "GET a",
            "DEL a b",
            "MSET a 1 b 2",
            "SIDECAR FLUSH",
            "SIDECAR STATS",
            "MULTI",
            "SET a 1",
            "EXEC",
            "LPUSH l 1",
            "BLPOP l 0",
        ]
        for proxy in (three[0], three[2]):
            with Wire(proxy.port) as wire, Ear(upstream) as ear:
                ask_all(wire, list(lines))
                assert ear.until_fence(wire) == []


class TestApplications:
    def test_keys(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, *three, keys=["user:1", b"\xff", "other"])
        publish(upstream, {"v": 1, "keys": ["user:1", {"b64": "/w=="}, "nosuch"]})
        for proxy in three:
            wait_until(lambda proxy=proxy: settled(proxy, 1))  # type: ignore[misc]
            assert kept(proxy.port, "other")

    def test_match(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, *three, keys=["user:42:a", "user:42:b", "user:421", b"\xff:x"])
        publish(
            upstream,
            {
                "v": 1,
                "match": ["user:42:*", {"b64": base64.b64encode(b"\xff*").decode()}],
                "source": "billing",
            },
        )
        for proxy in three:
            wait_until(lambda proxy=proxy: settled(proxy, 1))  # type: ignore[misc]
            assert kept(proxy.port, "user:421")

    def test_all(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, *three, keys=["a", "b", "c"])
        publish(upstream, {"v": 1, "all": True})
        for proxy in three:
            empties(proxy)

    @both_protocols
    def test_through_a_sidecar(self, upstream: Process, three: list[Process], protocol: int) -> None:
        fill(upstream, *three, keys=["a", "b"])
        with Wire(three[0].port, protocol) as wire:
            assert int(wire.ask("PUBLISH", BARE, '{"v": 1, "keys": ["a"]}')[1:-2]) >= 3
        for proxy in three:
            wait_until(lambda proxy=proxy: settled(proxy, 1))  # type: ignore[misc]

    def test_numbers_without_a_sender_mean_nothing(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, three[0], keys=["a", "b", "c"])
        gaps = fact(three[0], "bus_gaps")
        for number, key in ((5, "a"), (1, "b")):
            publish(upstream, {"v": 1, "n": number, "keys": [key]})
        wait_until(lambda: settled(three[0], 1))
        assert fact(three[0], "bus_gaps") == gaps

    @pytest.mark.parametrize("kind", NO_MESSAGES)
    def test_malformed_messages_are_counted_and_change_nothing(
        self, upstream: Process, three: list[Process], kind: str
    ) -> None:
        self.changes_nothing(upstream, three[0], NO_MESSAGES[kind], "bus_malformed")

    @pytest.mark.parametrize("kind", UNKNOWN)
    def test_unknown_versions_are_counted_and_change_nothing(
        self, upstream: Process, three: list[Process], kind: str
    ) -> None:
        self.changes_nothing(upstream, three[0], UNKNOWN[kind], "bus_unknown_version")

    @staticmethod
    def changes_nothing(redis: Process, proxy: Process, message: bytes, counter: str) -> None:
        fill(redis, proxy, keys=["k", "after"])
        before = facts(proxy.port)
        publish(redis, message)
        publish(redis, {"v": 1, "keys": ["after"]})
        wait_until(lambda: settled(proxy, 1))
        after = facts(proxy.port)
        assert kept(proxy.port, "k")
        changed = {
            field
            for field in ("bus_malformed", "bus_unknown_version", "bus_gaps", "bus_subscriptions")
            if after[field] != before[field]
        }
        assert changed == {counter}
        assert int(after[counter]) == int(before[counter]) + 1
        assert (after["bus_status"], int(after["bus_received"])) == ("up", int(before["bus_received"]) + 1)


class TestSequence:
    sender = staticmethod(lambda: os.urandom(8).hex())

    def test_a_gap_empties_the_namespace_and_counts(self, upstream: Process, three: list[Process]) -> None:
        fill(upstream, three[0], keys=["a", "b", "c"])
        gaps, sender = fact(three[0], "bus_gaps"), self.sender()
        for number in (7, 8, 9):
            publish(upstream, {"v": 1, "from": sender, "n": number, "keys": ["a"]})
        wait_until(lambda: settled(three[0], 2))
        publish(upstream, {"v": 1, "from": sender, "n": 11, "keys": ["nosuch"]})
        empties(three[0])
        assert fact(three[0], "bus_gaps") == gaps + 1
        hot(three[0].port, ["a", "b"])
        publish(upstream, {"v": 1, "from": sender, "n": 12, "keys": ["a"]})
        wait_until(lambda: settled(three[0], 1))
        assert fact(three[0], "bus_gaps") == gaps + 1, "from there on the numbers go on"

    @pytest.mark.parametrize("number", [3, 2, 0, -1])
    def test_a_number_that_goes_back_is_a_gap_too(
        self, upstream: Process, three: list[Process], number: int
    ) -> None:
        fill(upstream, three[0], keys=["a", "b"])
        gaps, sender = fact(three[0], "bus_gaps"), self.sender()
        publish(upstream, {"v": 1, "from": sender, "n": 3})
        publish(upstream, {"v": 1, "from": sender, "n": number})
        empties(three[0])
        assert fact(three[0], "bus_gaps") == gaps + 1

    def test_senders_and_channels_are_counted_each_by_itself(
        self, upstream: Process, spaced: list[Process]
    ) -> None:
        fill(upstream, spaced[0], keys=["a", "b"])
        gaps, first, second = fact(spaced[0], "bus_gaps"), self.sender(), self.sender()
        for sender, number, channel in (
            (first, 1, BARE),
            (second, 50, BARE),
            (first, 9, BARE + "one"),
            (first, 2, BARE),
            (first, 10, BARE + "one"),
            (second, 51, BARE),
            (first, 1, BARE + "two"),
        ):
            publish(upstream, {"v": 1, "from": sender, "n": number}, channel)
        publish(upstream, {"v": 1, "keys": ["a"]})
        wait_until(lambda: settled(spaced[0], 1))
        assert fact(spaced[0], "bus_gaps") == gaps

    def test_a_gap_in_one_namespace_leaves_the_others(self, upstream: Process, spaced: list[Process]) -> None:
        with Redis(port=upstream.port) as direct:
            fill(upstream, spaced[0], keys=["a"])
            direct.mset({"one:a": 1, "two:a": 2})
        hot(FIRST, ["a"])
        hot(FIRST_TWO, ["a"])
        gaps, sender = fact(spaced[0], "bus_gaps"), self.sender()
        for number in (1, 3):
            publish(upstream, {"v": 1, "from": sender, "n": number}, BARE + "one")
        wait_until(lambda: entries(FIRST) == 0)
        assert fact(spaced[0], "bus_gaps") == gaps + 1
        assert kept(FIRST_TWO, "a")

    def test_messages_of_an_unknown_version_leave_a_gap(
        self, upstream: Process, three: list[Process]
    ) -> None:
        """What they named is not known: what came next tells that they were there."""
        fill(upstream, three[0], keys=["a", "b"])
        sender = self.sender()
        for version, number in ((1, 1), (2, 2), (1, 3)):
            publish(upstream, {"v": version, "from": sender, "n": number})
        empties(three[0])

    def test_a_peer_that_starts_anew_has_a_new_name(
        self, upstream: Process, three: list[Process], directory: Path
    ) -> None:
        fill(upstream, three[0], keys=["a", "b", "c"])
        gaps, senders = fact(three[0], "bus_gaps"), set()
        for turn, key in enumerate("ab"):
            with several(upstream, directory, []) as (peer,), Wire(peer.port) as wire, Ear(upstream) as ear:
                for _ in range(2):
                    wire.ask("SIDECAR", "INVALIDATE", key)
                    message = ear.next()
                    senders.add(message["from"])
            wait_until(lambda turn=turn: settled(three[0], 2 - turn))  # type: ignore[misc]
        assert len(senders) == 2
        assert fact(three[0], "bus_gaps") == gaps

    def test_clients_in_several_databases_make_no_gaps(self, upstream: Process, three: list[Process]) -> None:
        """Their messages take different connections to Redis, and arrive in order all the same."""
        ready(*three)
        gaps = fact(three[1], "bus_gaps")
        done = threading.Event()

        def invalidate(database: int) -> None:
            with Wire(three[0].port) as wire:
                wire.ask("SELECT", database)
                while not done.is_set():
                    ask_all(wire, [("SIDECAR", "INVALIDATE", f"k{n}") for n in range(20)])

        threads = [threading.Thread(target=invalidate, args=(database,)) for database in range(4)]
        for thread in threads:
            thread.start()
        try:
            began, before = time.monotonic(), fact(three[1], "bus_received")
            wait_until(lambda: fact(three[1], "bus_received") > before + 1500 or time.monotonic() > began + 2)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert fact(three[1], "bus_gaps") == gaps


class TestNamespaces:
    def test_names_are_relative_to_the_namespace(self, upstream: Process, spaced: list[Process]) -> None:
        with Wire(FIRST) as wire, Ear(upstream, BARE + "one") as ear:
            wire.ask("SIDECAR", "INVALIDATE", "user:1", b"\xff")
            wire.ask("SIDECAR", "INVALIDATE", "MATCH", "user:*")
            wire.ask("SIDECAR", "DELETE", "MATCH", "api:*")
            found = ear.until_fence(wire)
        assert [key for message in found for key in message.get("keys", [])] == ["user:1", {"b64": "/w=="}]
        assert [pattern for message in found for pattern in message.get("match", [])] == ["user:*", "api:*"]

    def filled(self, redis: Process) -> None:
        """The same three keys in two namespaces and in none, in the memory of both sidecars."""
        names = ["user:1", "user:2", "other"]
        with Redis(port=redis.port) as direct:
            direct.flushall()
            direct.mset({prefix + key: "v" for prefix in ("", "one:", "two:") for key in names})
        for port in (FIRST, SECOND, FIRST_TWO, SECOND_TWO):
            wait_until(lambda port=port: self.warmed(port, names) == 3)  # type: ignore[misc]

    @staticmethod
    def warmed(port: int, names: list[str]) -> int:
        hot(port, names)
        return entries(port)

    @pytest.mark.parametrize(
        ("words", "left"),
        [
            (["user:1"], 2),
            (["one:user:1"], 3),
            (["MATCH", "user:*"], 1),
            (["MATCH", "*"], 0),
            (["MATCH", "one:*"], 3),
            (["MATCH", "[!-~]*"], 0),
        ],
        ids=["key", "prefixed key", "match", "everything", "prefixed pattern", "class"],
    )
    def test_messages_of_one_do_not_touch_the_other(
        self, upstream: Process, spaced: list[Process], words: list[str], left: int
    ) -> None:
        self.filled(upstream)
        with Wire(FIRST) as wire:
            wire.ask("SIDECAR", "INVALIDATE", *words)
            wire.ask("SIDECAR", "INVALIDATE", "fence")
            before = int(facts(spaced[1].port)["bus_received"])
        wait_until(lambda: entries(SECOND) == left)
        wait_until(lambda: fact(spaced[1], "bus_received") >= before)
        assert [entries(port) for port in (FIRST, FIRST_TWO, SECOND_TWO)] == [left, 3, 3]

    @pytest.mark.parametrize(
        "message",
        [{"keys": ["user:1", "user:2", "other"]}, {"match": ["*"]}, {"all": True}],
        ids=["keys", "match", "all"],
    )
    def test_an_applications_message_holds_for_its_channels_namespace(
        self, upstream: Process, spaced: list[Process], message: dict[str, object]
    ) -> None:
        self.filled(upstream)
        publish(upstream, {"v": 1} | message, BARE + "two")
        for port in (FIRST_TWO, SECOND_TWO):
            wait_until(lambda port=port: entries(port) == 0)  # type: ignore[misc]
        assert [entries(port) for port in (FIRST, SECOND)] == [3, 3]

    def test_the_channel_without_a_namespace_names_keys_as_redis_does(
        self, upstream: Process, spaced: list[Process]
    ) -> None:
        self.filled(upstream)
        publish(upstream, {"v": 1, "keys": ["one:user:1"], "match": ["two:user:*"]})
        for one, two in ((FIRST, FIRST_TWO), (SECOND, SECOND_TWO)):
            wait_until(lambda one=one, two=two: [entries(port) for port in (one, two)] == [2, 1])  # type: ignore[misc]

    def test_a_namespace_whose_name_has_signs_of_patterns(self, upstream: Process, directory: Path) -> None:
        options = [["--listen", "127.0.0.1:0", "--auth", "none", "--namespace", "a[b]*"]] * 2
        with Redis(port=upstream.port) as direct:
            direct.flushall()
            direct.mset({"a[b]*:x": "v", "a[b]*:y": "v"})
        with contextlib.ExitStack() as stack:
            left, right = [stack.enter_context(pannier(url(upstream), directory, *some)) for some in options]
            before = hearers(upstream, BARE + "a[b]*x")
            with Ear(upstream, BARE + "a[b]*") as ear, Wire(left.port) as wire:
                ear.until_fence(wire)
                wait_until(lambda: hearers(upstream, BARE + "a[b]*") == before + 3)
                hot(right.port, ["x", "y"])
                wait_until(lambda: entries(right.port) == 2)
                wire.ask("SIDECAR", "INVALIDATE", "MATCH", "x")
                wait_until(lambda: entries(right.port) == 1)
                assert kept(right.port, "y")

    def test_tenants(self, upstream: Process, directory: Path) -> None:
        config = directory / "pannier.toml"
        config.write_text(TENANTS)
        acme, globex, operator = ("acme", "acme-pw"), ("globex", "globex-pw"), ("operator", "operator-pw")

        def both(port: int) -> list[int]:
            return [entries(port, *who) for who in (acme, globex)]

        with contextlib.ExitStack() as stack:
            left, right = [
                stack.enter_context(pannier(url(upstream), directory, "--config", str(config)))
                for _ in range(2)
            ]
            for proxy in (left, right):
                wait_until(lambda proxy=proxy: facts(proxy.port, *operator)["bus_status"] == "up")  # type: ignore[misc]
            with Redis(port=upstream.port) as direct:
                direct.flushall()
                direct.mset({prefix + key: "v" for prefix in ("acme:", "customers:globex:") for key in "abc"})
            for proxy in (left, right):
                hot(proxy.port, "abc", *acme)
                hot(proxy.port, "abc", *globex)
                wait_until(lambda proxy=proxy: both(proxy.port) == [3, 3])  # type: ignore[misc]
            with Wire(left.port) as wire:
                assert wire.ask("AUTH", *acme) == OK
                assert wire.ask("SIDECAR", "INVALIDATE", "a") == b":1\r\n"
                wait_until(lambda: both(right.port) == [2, 3])
                assert wire.ask("SIDECAR", "INVALIDATE", "MATCH", "*") == b":2\r\n"
                wait_until(lambda: both(right.port) == [0, 3])
                assert wire.ask("SIDECAR", "INVALIDATE", "customers:globex:a") == b":0\r\n"
                publish(upstream, {"v": 1, "keys": ["b"]}, BARE + "customers:globex")
                wait_until(lambda: both(right.port) == [0, 2])
                assert wire.ask("AUTH", *operator) == OK
                wire.ask("SIDECAR", "INVALIDATE", "customers:globex:a")
                wait_until(lambda: both(right.port) == [0, 1])
            assert "bus_published" not in facts(left.port, *acme), "a tenant is not shown what others do"


# What each write changes, by the command; the data come first.
DATA: list[Command] = [
    "FLUSHALL", "MSET a hello n 5 o 7", "HSET h f v n 1", "RPUSH l a b c d", "RPUSH m x y", "SADD s x y z w", "SADD i 1 2 3", "SADD j 2 3 4",
    "ZADD z 1 a 2 b 3 c 4 d", "ZADD y 1 a", "GEOADD g 13.361389 38.115556 Palermo", "XADD x 1-1 f v", "XADD x 2-1 f v", "XGROUP CREATE x grp 0", "PFADD p a", "PFADD q b",
]  # fmt: skip
WRITES: dict[str, str] = {
    "SET a 1": "a", "INCR n": "n", "APPEND a x": "a", "GETSET a 2": "a", "GETDEL a": "a", "GETEX a EX 100": "a", "SETRANGE a 1 x": "a", "SETEX a 100 1": "a",
    "SET a 3 XX GET": "a", "MSET a 1 n 2 fresh 3": "a n fresh", "MSETNX u 1 w 2": "u w", "DEL a": "a", "DEL a n o nosuch": "a n o", "UNLINK a n": "a n", "EXPIRE a 100": "a", "PEXPIREAT a 1": "a",
    "RENAME a b": "a b", "RENAMENX a b": "a b", "COPY a b": "b", "MOVE a 1": "a", "SETBIT a 7 1": "a", "BITOP AND b a n": "b", "BITFIELD a SET u8 0 1": "a",
    "HSET h f w": "h", "HDEL h f": "h", "HINCRBY h n 2": "h", "HINCRBYFLOAT h n 0.5": "h", "LPUSH l a": "l", "LPOP l": "l", "LPOP l 2": "l", "RPOPLPUSH l m": "l m", "LMOVE l m LEFT LEFT": "l m",
    "LTRIM l 1 2": "l", "LINSERT l BEFORE b x": "l", "LREM l 1 a": "l", "SADD s q": "s", "SREM s x": "s", "SMOVE s i x": "s i", "SPOP s": "s", "SPOP s 2": "s",
    "SINTERSTORE d i j": "d", "SUNIONSTORE d i j": "d", "SORT i STORE d": "d", "ZADD z 9 a": "z", "ZINCRBY z 2 a": "z", "ZPOPMIN z": "z", "ZPOPMAX z 2": "z", "ZREM z a": "z", "ZREMRANGEBYRANK z 0 0": "z",
    "ZUNIONSTORE d 2 z y": "d", "ZRANGESTORE d z 0 1": "d", "GEOADD g 15 37 Catania": "g", "GEOSEARCHSTORE d g FROMLONLAT 13 38 BYRADIUS 900 km": "d", "XADD x * f v": "x", "XDEL x 1-1": "x", "XTRIM x MAXLEN 1": "x",
    "XGROUP CREATE x more $": "x", "XREADGROUP GROUP grp c STREAMS x >": "x", "XSETID x 9-9": "x", "PFADD p b": "p", "PFMERGE p q": "p", "BLPOP l 0": "l", "BRPOP nosuch l 0": "l", "BLMOVE l m LEFT RIGHT 0": "l m",
    "BRPOPLPUSH l m 0": "l m", "BZPOPMIN z 0": "z", "XREADGROUP GROUP grp c BLOCK 0 STREAMS x >": "x",
}  # fmt: skip
NAMELESS = {b"STORE", b"STREAMS", b"GROUP", b"CREATE"}


def in_one(wire: Wire, lines: list[str]) -> list[bytes]:
    return ask_all(wire, list(lines))


def one_by_one(wire: Wire, lines: list[str]) -> list[bytes]:
    return [wire.line(line) for line in lines]


def in_transaction(wire: Wire, lines: list[str]) -> list[bytes]:
    found = ask_all(wire, ["MULTI", *lines, "EXEC"])
    assert found[-1].startswith(b"*"), found
    return found


WAYS: dict[str, Callable[[Wire, list[str]], list[bytes]]] = {
    "alone": one_by_one,
    "pipeline": in_one,
    "transaction": in_transaction,
}


class TestWrites:
    @both_protocols
    @pytest.mark.parametrize("way", WAYS)
    def test_each_kind_of_write_is_told_by_its_names(
        self, upstream: Process, writer: Process, way: str, protocol: int
    ) -> None:
        self.each_is_told(upstream, BARE, writer.port, way, protocol)

    @pytest.mark.parametrize("way", WAYS)
    def test_in_a_namespace_too(self, upstream: Process, spaced: list[Process], way: str) -> None:
        self.each_is_told(upstream, BARE + "one", FIRST, way, 2, {"MOVE a 1"})

    @staticmethod
    def each_is_told(
        redis: Process, channel: str, port: int, way: str, protocol: int, without: Iterable[str] = ()
    ) -> None:
        wrong = []
        with Wire(port, protocol) as wire, Wire(port) as setting, Ear(redis, channel) as ear:
            for line, changed in WRITES.items():
                if line in without:
                    continue
                ask_all(setting, DATA)
                ear.until_fence(setting)
                replies = WAYS[way](wire, [line])
                told = ear.keys(wire)
                named = set(arguments(line)[1:]) - NAMELESS
                expected = {key.encode() for key in changed.split()}
                if len(told) != len(set(told)) or not expected <= set(told) <= named:
                    wrong.append((line, told, replies))
        assert wrong == []

    def test_each_of_a_pipeline_once_and_in_order(self, upstream: Process, writer: Process) -> None:
        with Wire(writer.port) as wire, Ear(upstream) as ear:
            ear.until_fence(wire)
            commands: list[Command] = [
                ("SET", f"k{n}", n) if n % 3 else ("LPUSH", f"k{n}", n, n) for n in range(2000)
            ]
            ask_all(wire, commands)
            messages = ear.until_fence(wire)
            told = [key for message in messages for key in message["keys"]]
        assert told == [f"k{n}" for n in range(2000)]
        numbers = [message["n"] for message in messages]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len(messages) < 500, "not one each"
        assert {message["why"] for message in messages} <= {"write", "command"}, (
            "the fence's reason is that of its batch"
        )

    @pytest.mark.parametrize("count", [2, 499, 500, 501, 5000])
    def test_all_keys_of_one_command(self, upstream: Process, writer: Process, count: int) -> None:
        names = [b"many:%d" % n for n in range(count)]
        with Wire(writer.port) as wire, Ear(upstream) as ear:
            ear.until_fence(wire)
            for command in (
                ("MSET", *[word for name in names for word in (name, "v")]),
                ("DEL", *names),
                ("UNLINK", *names),
            ):
                wire.ask(*command)
                assert ear.keys(wire) == names

    @pytest.mark.parametrize("size", [250, 254, 255, 256, 257, 1000, 70_000])
    def test_long_and_binary_names(
        self, upstream: Process, writer: Process, spaced: list[Process], size: int
    ) -> None:
        wrong = []
        for port, channel in ((writer.port, BARE), (FIRST, BARE + "one")):
            with Wire(port) as wire, Ear(upstream, channel) as ear:
                ear.until_fence(wire)
                for turn, key in enumerate(
                    (b"k" * size, b"\xff" * size, b"*" * size, b"\r\n$1" * (size // 4))
                ):
                    for command in (("SET", key, "v"), ("INCRBY", key + b"n", "1"), ("DEL", key)):
                        wire.ask(*command)
                        if (told := ear.keys(wire)) != [command[1]]:
                            wrong.append((channel, turn, command[0], "alone", [len(name) for name in told]))
                    ask_all(wire, [("SET", key, "v"), ("SET", "short", "v"), ("DEL", key)])
                    if set(told := ear.keys(wire)) != {key, b"short"}:
                        wrong.append((channel, turn, "SET, DEL", "pipeline", [len(name) for name in told]))
        assert wrong == []

    @pytest.mark.parametrize("size", [10_000, 300_000, 3_000_000])
    def test_large_values(self, upstream: Process, writer: Process, spaced: list[Process], size: int) -> None:
        wrong = []
        for port, channel in ((writer.port, BARE), (FIRST, BARE + "one")):
            with Wire(port) as wire, Ear(upstream, channel) as ear:
                ear.until_fence(wire)
                for command, names in (
                    (("SET", "large", b"x" * size), {b"large"}), (("RPUSH", "list", b"x" * size, "y"), {b"list"}),
                    (("MSET", "large", b"x" * size, "second", b"y" * size), {b"large", b"second"}),
                ):  # fmt: skip
                    wire.ask(*command)
                    messages = ear.until_fence(wire)
                    told = {name(key) for message in messages for key in message.get("keys", [])}
                    if told != names and not any(message.get("all") for message in messages):
                        wrong.append((channel, command[0], told))
                ask_all(wire, ["MULTI", ("SET", "large", b"x" * size), "EXEC"])
                if (told := ear.keys(wire)) != [b"large"]:
                    wrong.append((channel, "in a transaction", told))
        assert wrong == []

    @pytest.mark.parametrize("state", ["SUBSCRIBE some", "CLIENT TRACKING ON", "CLIENT REPLY ON", "MONITOR"])
    def test_on_a_connection_that_holds_state(self, upstream: Process, writer: Process, state: str) -> None:
        with Wire(writer.port, 3) as wire, Ear(upstream) as ear:
            ear.until_fence(writer.port)
            wire.line(state)
            for command in (("SET", "held", "1"), ("DEL", "held", "other")):
                wire.raw(encoded(command))
                while (found := reply(wire)).startswith(b"+") and found != OK:
                    pass  # what MONITOR shows
            told: list[bytes] = []
            while told.count(b"held") < 2 or told.count(b"other") < 2:  # once done, and once more
                told += [name(key) for key in ear.next().get("keys", [])]
        assert set(told) == {b"held", b"other"}

    @pytest.mark.parametrize("word", ["OFF", "SKIP"])
    def test_without_replies(self, upstream: Process, writer: Process, word: str) -> None:
        with Wire(writer.port) as wire, Ear(upstream) as ear, Redis(port=upstream.port) as direct:
            direct.delete("silent")
            ear.until_fence(writer.port)
            wire.send("CLIENT", "REPLY", word)
            wire.send("SET", "silent", "1")
            wait_until(lambda: direct.exists("silent"))
            if word == "OFF":
                wire.send("CLIENT", "REPLY", "ON")
                wire.read()
            assert wire.ask("PING") == b"+PONG\r\n"
            told: list[bytes] = []
            while told.count(b"silent") < 2:  # once done, and once more
                told += [name(key) for key in ear.next().get("keys", [])]
            assert set(told) == {b"silent"}

    def test_pops_that_wait(self, upstream: Process, writer: Process) -> None:
        with (
            Wire(writer.port) as popper,
            Wire(writer.port) as pusher,
            Ear(upstream) as ear,
            Redis(port=upstream.port) as direct,
        ):
            direct.delete("q", "r")
            ear.until_fence(pusher)
            popper.send("BLMOVE", "q", "r", "LEFT", "LEFT", "0")
            wait_until(lambda: direct.info("clients")["blocked_clients"] == 1)
            assert ear.keys(pusher) == [], "nothing has changed yet"
            direct.rpush("q", "x")
            assert popper.read() == b"$1\r\nx\r\n"
            assert set(ear.keys(pusher)) == {b"q", b"r"}

    def test_a_transaction_is_told_of_when_it_is_carried_out(
        self, upstream: Process, writer: Process
    ) -> None:
        with Wire(writer.port) as wire, Ear(upstream) as ear:
            ear.until_fence(writer.port)
            ask_all(wire, ["MULTI", "SET a 1", "INCR n", "DEL b c"])
            assert ear.keys(writer.port) == []
            wire.line("EXEC")
            assert sorted(ear.keys(writer.port)) == [b"a", b"b", b"c", b"n"]
            ask_all(wire, ["WATCH a", "SET w 1", "MULTI", "SET a 2", "EXEC"])
            assert {b"w", b"a"} == set(ear.keys(writer.port))
            ask_all(wire, ["MULTI", "SET other 1", "DISCARD"])
            ask_all(wire, ["MULTI", "SET a 3", "EXEC"])
            assert set(ear.keys(writer.port)) == {b"a"}, "what was discarded has not happened"

    @pytest.mark.parametrize("line", ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1"])
    @pytest.mark.parametrize("way", WAYS)
    def test_what_changes_everything(self, upstream: Process, writer: Process, line: str, way: str) -> None:
        with Wire(writer.port) as wire, Ear(upstream) as ear:
            ear.until_fence(wire)
            WAYS[way](wire, ["SET a 1", line])
            found = ear.until_fence(wire)
            assert any(message.get("all") for message in found), found

    @pytest.mark.parametrize("line", ["FLUSHDB", "FLUSHALL", "FLUSHALL SYNC"])
    def test_a_namespaces_flush(self, upstream: Process, spaced: list[Process], line: str) -> None:
        with Wire(FIRST) as wire, Ear(upstream, BARE + "one") as ear:
            wire.line("MSET a 1 b 2")
            ear.until_fence(wire)
            assert wire.line(line) == OK
            found = ear.until_fence(wire)
        told = {key for message in found for key in message.get("keys", [])}
        assert any(message.get("all") or "*" in message.get("match", []) for message in found) or told >= {
            "a",
            "b",
        }, found

    def test_who_hears_it_reads_the_new_value(
        self, upstream: Process, writer: Process, spaced: list[Process]
    ) -> None:
        """The message is behind the write, whichever way that takes."""
        kinds: list[Callable[[Wire, str, bytes], list[bytes]]] = [
            lambda wire, key, value: [wire.ask("SET", key, value)],
            lambda wire, key, value: ask_all(wire, [("SET", "x", "1"), ("SET", key, value), ("GET", "x")]),
            lambda wire, key, value: [wire.ask("MSET", key, value, "other", "1")],
            lambda wire, key, value: ask_all(wire, ["MULTI", ("SET", key, value), "EXEC"]),
        ]
        for port, channel, prefix in ((writer.port, BARE, ""), (FIRST, BARE + "one", "one:")):
            with Wire(port) as wire, Ear(upstream, channel) as ear, Redis(port=upstream.port) as direct:
                ear.until_fence(wire)
                for turn in range(80):
                    key, value = f"turn:{turn}", b"%d" % turn * (1 if turn % 5 else 60_000)
                    with_reply = threading.Thread(target=kinds[turn % 4], args=(wire, key, value))
                    with_reply.start()
                    while key not in ear.next().get("keys", []):
                        pass
                    assert direct.get(prefix + key) == value, (turn, channel)
                    with_reply.join()

    @pytest.mark.parametrize("line", ["LPOP big 1", "RPOP big 1", "GEORADIUS g 13 38 900 km STORE big"])
    def test_a_write_over_a_link_of_the_clients_protocol_too(
        self, upstream: Process, writer: Process, line: str
    ) -> None:
        """These do not take the tracked link for a RESP2 client: the message must not overtake them."""
        with Wire(writer.port) as wire, Ear(upstream) as ear, Redis(port=upstream.port) as direct:
            for turn in range(20):
                direct.delete("big")
                direct.rpush("big", *range(10))
                direct.geoadd("g", (13.36, 38.11, "Palermo"))
                before = direct.dump("big")
                ear.until_fence(wire)
                # A long command before it, on the same link, takes Redis longer than a message is waited for.
                wire.raw(b"".join([request("LPOP", f"none:{n}", "1") for n in range(3000)]) + encoded(line))
                while "big" not in ear.next().get("keys", []):
                    pass
                assert direct.dump("big") != before, turn
                for _ in range(3001):
                    wire.read()

    def test_the_canary_and_reads_are_not_told(self, upstream: Process, writer: Process) -> None:
        with Wire(writer.port) as wire, Ear(upstream) as ear:
            ask_all(wire, ["MSET a 1 b 2", "LPUSH l 1"])
            ear.until_fence(wire)
            samples = fact(writer, "invalidation_lag_samples")
            ask_all(
                wire,
                [
                    "GET a",
                    "MGET a b",
                    "LRANGE l 0 -1",
                    "EXISTS a b",
                    "MULTI",
                    "GET a",
                    "EXEC",
                    "SCAN 0",
                    "PING",
                    "PUBLISH c m",
                    "TTL a",
                ],
            )
            wait_until(lambda: fact(writer, "invalidation_lag_samples") > samples + 2)
            assert ear.until_fence(wire) == []

    def test_a_peer_forgets_what_was_written(self, upstream: Process, spaced: list[Process]) -> None:
        with Redis(port=upstream.port) as direct:
            direct.flushall()
            direct.mset({"one:a": "old", "one:b": "old"})
        hot(SECOND, "ab")
        with Wire(FIRST) as wire, Wire(SECOND) as peer:
            received = fact(spaced[1], "bus_received")
            assert wire.line("SET a new") == OK
            wait_until(lambda: fact(spaced[1], "bus_received") > received)
            assert peer.line("GET a") == b"$3\r\nnew\r\n"

    def test_one_swapdb_is_told_once_however_long_the_connection_lives(
        self, upstream: Process, writer: Process
    ) -> None:
        """Also if the connection goes on to listen, on the very channel."""
        with Wire(writer.port, 3) as wire, Wire(upstream.port) as direct:
            wire.ask("SUBSCRIBE", "news", BARE)
            earlier = fact(writer, "bus_published")
            wire.raw(encoded("SWAPDB 0 1"))
            assert reply(wire) == OK
            # When it has most likely been done, and once more: replies on this connection are not counted.
            wait_until(lambda: fact(writer, "bus_published") == earlier + 2)
            wait_until(lambda: fact(writer, "bus_own") == fact(writer, "bus_published"))
            hot(writer.port, ["x"])
            before = fact(writer, "bus_published")
            for turn in range(20):
                direct.ask("PUBLISH", "news", turn)
                direct.ask("PUBLISH", BARE, '{"v":1}')
            with Wire(writer.port) as other:
                for _ in range(20):
                    other.line("PING")
            wait_until(lambda: fact(writer, "bus_own") == fact(writer, "bus_published"))
            assert fact(writer, "bus_published") == before


class TestModes:
    def test_off_neither_sends_nor_hears(
        self, upstream: Process, three: list[Process], directory: Path
    ) -> None:
        before = len(bus_connections(upstream))
        with (
            pannier(url(upstream), directory, "--broadcast", "off") as off,
            Wire(off.port) as wire,
            Ear(upstream) as ear,
        ):
            with Redis(port=upstream.port) as direct:
                direct.flushall()
                direct.mset({"a": "value", "b": "value"})
            hot(off.port, "ab")
            wait_until(lambda: settled(off, 2))
            assert len(bus_connections(upstream)) <= before
            assert not [field for field in facts(off.port) if field.startswith("bus_")]
            for words in (["SIDECAR", "INVALIDATE", "nosuch"], ["SIDECAR", "INVALIDATE", "MATCH", "nosuch*"]):
                assert wire.ask(*words) == b":0\r\n"
            assert wire.line("SIDECAR DELETE MATCH nosuch*") == b":0\r\n"
            publish(upstream, {"v": 1, "all": True})
            with Wire(three[0].port) as other:
                other.line("SIDECAR INVALIDATE a")
                other.line("SIDECAR INVALIDATE MATCH *")
                found = ear.until_fence(other)
            assert {message.get("from", "app") for message in found} == {"app", found[-1]["from"]}
            assert kept(off.port, "a") and kept(off.port, "b")
            assert wire.line("SWAPDB 0 1") == OK

    def test_another_channel_is_another_bus(
        self, upstream: Process, three: list[Process], directory: Path
    ) -> None:
        with several(upstream, directory, ["--evict-channel", "grün/evict#"]) as (apart,):
            fill(upstream, apart, three[0], keys=["a", "b"])
            publish(upstream, {"v": 1, "all": True})
            empties(three[0])
            assert kept(apart.port, "a")
            publish(upstream, {"v": 1, "keys": ["a"]}, "grün/evict#")
            wait_until(lambda: settled(apart, 1))


def hearers(redis: Process, channel: str = BARE) -> int:
    """How many hear what is said on a channel, tried with a message that nobody understands."""
    return publish(redis, {"v": 99}, channel)


class TestReconnecting:
    def test_what_was_said_meanwhile_is_made_good_by_forgetting_all(
        self, upstream: Process, three: list[Process]
    ) -> None:
        fill(upstream, *three, keys=["a", "b", "c"])
        before = [fact(proxy, "bus_subscriptions") for proxy in three]
        with Redis(port=upstream.port) as direct:
            killing = direct.pipeline()
            for client in bus_connections(upstream):
                killing.execute_command("CLIENT", "KILL", "ID", client["id"])
            killing.publish(BARE, '{"v": 1, "keys": ["a"]}')
            assert killing.execute()[-1] == 0, "nobody hears it"
        for proxy, subscriptions in zip(three, before, strict=True):
            wait_until(lambda proxy=proxy: entries(proxy.port) == 0)  # type: ignore[misc]
            wait_until(lambda proxy=proxy, least=subscriptions: fact(proxy, "bus_subscriptions") > least)  # type: ignore[misc]
            assert facts(proxy.port)["bus_status"] == "up"
        fill(upstream, *three, keys=["a", "b"])
        received = [fact(proxy, "bus_received") for proxy in three]
        publish(upstream, {"v": 1, "keys": ["a"]})
        for proxy, earlier in zip(three, received, strict=True):
            wait_until(lambda proxy=proxy, earlier=earlier: fact(proxy, "bus_received") > earlier)  # type: ignore[misc]
            assert settled(proxy, 1), "it has begun once, so that only what was named is gone"

    def test_namespaces_are_emptied_and_heard_again_as_well(
        self, upstream: Process, spaced: list[Process]
    ) -> None:
        with Redis(port=upstream.port) as direct:
            direct.mset({"one:a": 1, "two:a": 1})
            for port in (FIRST, FIRST_TWO):
                hot(port, ["a"])
                wait_until(lambda port=port: entries(port) >= 1)  # type: ignore[misc]
            before = hearers(upstream, BARE + "two")
            killing = direct.pipeline()
            for client in bus_connections(upstream):
                killing.execute_command("CLIENT", "KILL", "ID", client["id"])
            killing.publish(BARE + "one", '{"v": 1, "keys": ["a"]}')
            assert killing.execute()[-1] == 0
            for port in (FIRST, FIRST_TWO):
                wait_until(lambda port=port: entries(port) == 0)  # type: ignore[misc]
            wait_until(lambda: hearers(upstream, BARE + "two") == before)
        hot(SECOND_TWO, ["a"])
        publish(upstream, {"v": 1, "all": True}, BARE + "two")
        wait_until(lambda: entries(SECOND_TWO) == 0)

    def test_own_messages_and_numbers_go_on(self, upstream: Process, three: list[Process]) -> None:
        """Who speaks while the others do not hear is not taken for another, nor for one with a gap."""
        ready(*three)
        with Wire(three[0].port) as wire:
            wire.ask("SIDECAR", "INVALIDATE", "x")
            gaps, own = fact(three[1], "bus_gaps"), fact(three[0], "bus_own")
            with Redis(port=upstream.port) as direct:
                for client in bus_connections(upstream):
                    direct.client_kill_filter(_id=client["id"])
            for _ in range(10):
                wire.ask("SIDECAR", "INVALIDATE", "x")
            wait_until(lambda: len(bus_connections(upstream)) >= 3)
            ready(*three)
            wait_until(lambda: wire.ask("SIDECAR", "INVALIDATE", "x") and fact(three[0], "bus_own") > own)
            assert fact(three[1], "bus_gaps") == gaps

    def test_killed_again_and_again(self, upstream: Process, three: list[Process]) -> None:
        before = fact(three[0], "bus_subscriptions")
        with Redis(port=upstream.port) as direct, Wire(three[0].port) as wire:
            direct.set("a", 1)
            while fact(three[0], "bus_subscriptions") < before + 5:
                for client in bus_connections(upstream):
                    with contextlib.suppress(Exception):
                        direct.client_kill_filter(_id=client["id"])
                assert wire.line("GET a") == b"$1\r\n1\r\n"
                old = fact(three[0], "bus_subscriptions")
                wait_until(lambda old=old: fact(three[0], "bus_subscriptions") > old, 5)  # type: ignore[misc]
        ready(*three)
        wait_until(
            lambda: len([client for client in bus_connections(upstream) if int(client["psub"]) == 1]) >= 4
        )


class TestWhatWasMissed:
    """With tracking, losing the bus costs what is kept only if something was said meanwhile."""

    @pytest.fixture
    def pair(self, redis_binary: str, directory: Path) -> Iterator[tuple[Process, list[Process]]]:
        """A Redis of their own, on which nobody else publishes, and two sidecars that know its counts."""
        with (
            redis_server(redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory, "--coherence-timeout", "1") as one,
            pannier(f"redis://127.0.0.1:{redis.port}", directory, "--coherence-timeout", "1") as other,
        ):
            ready(one, other)
            wait_until(lambda: all(fact(proxy, "bus_accounted") for proxy in (one, other)), 30)
            time.sleep(4)  # and have counted once more: each tries at its start whether Redis counts, by a PUBLISH
            wait_until(lambda: all(fact(proxy, "bus_accounted") for proxy in (one, other)), 30)
            yield redis, [one, other]

    @staticmethod
    def deafen(redis: Process, *meanwhile: tuple[str, ...]) -> None:
        """Break the bus' connections, and say something before there are others."""
        with Redis(port=redis.port) as direct:
            killing = direct.pipeline()
            for client in bus_connections(redis):
                killing.execute_command("CLIENT", "KILL", "ID", client["id"])
            for words in meanwhile:
                killing.execute_command(*words)
            killing.execute()

    def test_nothing_so_all_stays(self, pair: tuple[Process, list[Process]]) -> None:
        redis, proxies = pair
        fill(redis, *proxies, keys=["a", "b"])
        self.deafen(redis)
        for proxy in proxies:
            wait_until(lambda proxy=proxy: "nothing was missed" in proxy.output)  # type: ignore[misc]
            assert entries(proxy.port) == 2 and fact(proxy, "bus_missed") == 0
        publish(redis, {"v": 1, "keys": ["a"]})
        for proxy in proxies:
            wait_until(lambda proxy=proxy: entries(proxy.port) == 1)  # type: ignore[misc]

    @pytest.mark.parametrize(
        "words",
        [
            ("PUBLISH", BARE, '{"v": 1, "keys": ["nosuch"]}'),
            ("PUBLISH", BARE, '{"v": 1, "from": "a peer that came and went", "n": 1, "keys": ["nosuch"]}'),
            ("EVAL", f"return redis.call('PUBLISH', '{BARE}', '{{}}')", "0"),
            ("CONFIG", "RESETSTAT"),
        ],
        ids=["an application", "an unknown peer", "a script", "nobody can tell"],
    )
    def test_something_so_all_goes(self, pair: tuple[Process, list[Process]], words: tuple[str, ...]) -> None:
        redis, proxies = pair
        fill(redis, *proxies, keys=["a", "b"])
        self.deafen(redis, words)
        for proxy in proxies:
            wait_until(lambda proxy=proxy: entries(proxy.port) == 0)  # type: ignore[misc]
            wait_until(lambda proxy=proxy: fact(proxy, "bus_missed") >= 1)  # type: ignore[misc]

    def test_a_peer_that_was_started_anew(self, redis_binary: str, directory: Path) -> None:
        """It is unknown, and what it has said under its new name counts like anything else."""
        with (
            redis_server(redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory) as keeps,
        ):
            ready(keeps)
            with pannier(f"redis://127.0.0.1:{redis.port}", directory) as peer:
                ready(peer)
                fill(redis, keeps, keys=["a"])
                self.deafen(redis)
                wait_until(lambda: "the eviction bus is heard again" in keeps.output)
                with Wire(peer.port) as wire:
                    wire.ask("SIDECAR", "INVALIDATE", "a")
                wait_until(lambda: entries(keeps.port) == 0)

    def test_redis_that_stands_still_for_a_while(self, pair: tuple[Process, list[Process]]) -> None:
        redis, proxies = pair
        fill(redis, *proxies, keys=["a", "b"])
        before = fact(proxies[0], "bus_subscriptions")
        redis.signal(signal.SIGSTOP)
        time.sleep(4.5)
        assert facts(proxies[0].port)["bus_status"].startswith("not heard for ")
        redis.signal(signal.SIGCONT)
        for proxy in proxies:
            wait_until(lambda proxy=proxy: facts(proxy.port)["bus_status"] == "up")  # type: ignore[misc]
            wait_until(lambda proxy=proxy: kept(proxy.port, "a"))  # type: ignore[misc]
            assert entries(proxy.port) == 2
        assert fact(proxies[0], "bus_subscriptions") == before, "on one connection nothing gets lost"

    def test_what_is_said_while_it_stands_still_is_heard(self, pair: tuple[Process, list[Process]]) -> None:
        redis, proxies = pair
        fill(redis, *proxies, keys=["a", "b"])
        with redis.connect() as direct:
            redis.signal(signal.SIGSTOP)
            direct.sendall(request("PUBLISH", BARE, '{"v": 1, "keys": ["a"]}'))
            time.sleep(4)
            redis.signal(signal.SIGCONT)
            for proxy in proxies:
                wait_until(lambda proxy=proxy: entries(proxy.port) == 1)  # type: ignore[misc]

    def test_without_the_right_to_ask_all_goes(self, redis_binary: str, directory: Path) -> None:
        with redis_server(redis_binary, directory) as redis:
            with Wire(redis.port) as direct:
                direct.ask("ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all", "-info")
            with pannier(f"redis://u:pw@127.0.0.1:{redis.port}", directory) as proxy:
                ready(proxy)
                time.sleep(2.5)
                fill(redis, proxy, keys=["a"])
                self.deafen(redis)
                wait_until(lambda: entries(proxy.port) == 0)


class TestRights:
    @pytest.fixture
    def refused(self, upstream: Process) -> Iterator[str]:
        """A user who may do all, but not on the channel."""
        with Wire(upstream.port) as wire:
            assert wire.line("ACL SETUSER deaf on >pw ~* +@all resetchannels &x") == OK
            yield "deaf:pw@"
            wire.line("ACL DELUSER deaf")

    def test_without_them_it_says_so_and_serves(
        self, upstream: Process, refused: str, directory: Path
    ) -> None:
        with pannier(url(upstream, refused), directory) as proxy, Wire(proxy.port) as wire:
            wait_until(
                lambda: (
                    "NOPERM" in facts(proxy.port)["bus_status"]
                    or "permission" in facts(proxy.port)["bus_status"]
                )
            )
            assert "eviction bus is not heard" in proxy.output
            assert wire.line("SET a 1") == OK
            hot(proxy.port, ["a"])
            assert kept(proxy.port, "a")
            assert wire.line("SIDECAR INVALIDATE a") == b":1\r\n", "its own memory it rules all the same"
            wait_until(lambda: "could not be published" in proxy.output)
            assert wire.line("GET a") == b"$1\r\n1\r\n"
            for _ in range(10):
                wire.line("SIDECAR INVALIDATE a")
            assert facts(proxy.port)["bus_status"] not in ("up", "connecting")
            assert "Traceback" not in proxy.output and "internal error" not in proxy.output

    def test_once_granted_it_hears_and_forgets_what_it_kept(
        self, upstream: Process, refused: str, directory: Path
    ) -> None:
        """What was said while it was not let in has been missed, the first time as later."""
        with pannier(url(upstream, refused), directory) as proxy, Wire(upstream.port) as direct:
            direct.line("MSET a 1 b 2")
            wait_until(lambda: facts(proxy.port)["bus_status"] not in ("up", "connecting"))
            hot(proxy.port, "ab")
            wait_until(lambda: settled(proxy, 2))
            publish(upstream, {"v": 1, "keys": ["a"]})
            assert direct.line(f"ACL SETUSER deaf &{BARE}*") == OK
            wait_until(lambda: facts(proxy.port)["bus_status"] == "up")
            assert not kept(proxy.port, "a")

    def test_status_is_up_again_once_it_may_publish_again(self, upstream: Process, directory: Path) -> None:
        with Wire(upstream.port) as direct:
            direct.line("ACL SETUSER mute on >pw ~* &* +@all -publish")
            try:
                with (
                    pannier(url(upstream, "mute:pw@"), directory) as proxy,
                    Wire(proxy.port) as wire,
                    Ear(upstream) as ear,
                ):
                    wait_until(lambda: facts(proxy.port)["bus_status"] == "up")
                    wire.line("SIDECAR INVALIDATE a")
                    wait_until(lambda: "NOPERM" in facts(proxy.port)["bus_status"])
                    assert proxy.output.count("could not be published") == 1
                    direct.line("ACL SETUSER mute +publish")
                    assert ear.keys(wire) == []
                    wait_until(lambda: facts(proxy.port)["bus_status"] == "up", 5)
            finally:
                direct.line("ACL DELUSER mute")


class TestUsersWithoutChannels:
    """Redis 7 gives a new user no channel: Pannier's own user says what such a one has to say."""

    @pytest.fixture
    def login(self, upstream: Process) -> Iterator[tuple[str, str]]:
        with Wire(upstream.port) as wire:
            assert wire.line("ACL SETUSER app on >pw ~* +@all resetchannels") == OK
            yield ("app", "pw")
            wire.line("ACL DELUSER app")

    @pytest.fixture
    def pair(self, upstream: Process, directory: Path, login: tuple[str, str]) -> Iterator[list[Process]]:
        options = ["--auth", "passthrough"]
        with several(upstream, directory, options, options) as started:
            yield started

    def test_others_hear_what_they_invalidate(
        self, upstream: Process, pair: list[Process], login: tuple[str, str]
    ) -> None:
        one, other = pair
        with Redis(port=upstream.port) as direct, Wire(one.port) as wire:
            direct.mset(dict.fromkeys("abc", "v"))
            assert wire.ask("AUTH", *login) == OK
            for words in (["a"], ["MATCH", "[b]"], ["c"]):
                hot(other.port, "abc", *login)
                wait_until(lambda: all(kept(other.port, key, *login) for key in "abc"))
                wire.ask("SIDECAR", "INVALIDATE", *words)
                key = words[-1].strip("[]")
                wait_until(lambda key=key: not remembered(other.port, key, *login))  # type: ignore[misc]
        assert facts(one.port)["bus_status"] == facts(other.port)["bus_status"] == "up"
        assert fact(other, "bus_gaps") == 0
        assert "could not be published" not in one.output

    def test_the_bus_alone_keeps_memory_true(
        self, upstream: Process, directory: Path, login: tuple[str, str]
    ) -> None:
        options = ["--auth", "passthrough", "--tracking", "off", "--broadcast", "writes"]
        with (
            several(upstream, directory, options, options) as (one, other),
            Wire(one.port) as writes,
            Wire(other.port) as reads,
        ):
            assert writes.ask("AUTH", *login) == reads.ask("AUTH", *login) == OK
            for n in range(5):
                assert writes.line(f"SET q {n}") == OK
                wait_until(lambda n=n: reads.line("GET q") == b"$1\r\n%d\r\n" % n, 2)  # type: ignore[misc]
                wait_until(lambda: reads.line("GET q") and remembered(other.port, "q", *login))


class TestNamespacesSeenFromOutside:
    """Who has no namespace calls the keys of any by their whole names, and hears of what becomes of them."""

    @staticmethod
    @contextlib.contextmanager
    def both(upstream: Process, directory: Path, namespace: str, *options: str) -> Iterator[list[Process]]:
        """A Pannier of no namespace, and one of a namespace, whose INFO says nothing of the bus."""
        with (
            several(upstream, directory, [*options]) as (bare,),
            pannier(url(upstream), directory, *options, "--namespace", namespace) as spaced,
        ):
            wait_until(lambda: any(int(each["sub"]) == 2 for each in bus_connections(upstream)))
            yield [bare, spaced]

    @pytest.fixture
    def pair(self, upstream: Process, directory: Path) -> Iterator[list[Process]]:
        with self.both(upstream, directory, "s[v]c") as started:
            yield started

    @pytest.mark.parametrize("words", [["a"], ["MATCH", "a*"], ["MATCH", "*"]], ids=["key", "match", "everything"])
    def test_invalidations(self, upstream: Process, pair: list[Process], words: list[str]) -> None:
        bare, spaced = pair
        fill(upstream, bare, keys=["s[v]c:a", "a", "svc:a"])
        with Wire(spaced.port) as wire:
            wire.ask("SIDECAR", "INVALIDATE", *words)
        wait_until(lambda: not remembered(bare.port, "s[v]c:a"))
        assert remembered(bare.port, "a") and remembered(bare.port, "svc:a")

    def test_an_applications_message_for_all_of_a_namespace(self, upstream: Process, pair: list[Process]) -> None:
        bare, _ = pair
        fill(upstream, bare, keys=["elsewhere:a", "a"])
        publish(upstream, {"v": 1, "all": True}, BARE + "elsewhere")
        wait_until(lambda: not remembered(bare.port, "elsewhere:a"))
        assert remembered(bare.port, "a")

    def test_writes_where_redis_does_not_tell(self, upstream: Process, directory: Path) -> None:
        options = ["--tracking", "off", "--broadcast", "writes"]
        with (
            self.both(upstream, directory, "svc", *options) as (bare, spaced),
            Wire(bare.port) as outside,
            Wire(spaced.port) as inside,
        ):
            for n in range(5):
                assert inside.line(f"SET c {n}") == OK
                wait_until(lambda n=n: outside.line("GET svc:c") == b"$1\r\n%d\r\n" % n, 2)  # type: ignore[misc]
                wait_until(lambda: kept(bare.port, "svc:c"))
            assert inside.line("FLUSHDB") == OK
            wait_until(lambda: outside.line("GET svc:c") == b"$-1\r\n", 2)

    def test_who_may_not_hear_all_hears_its_own(self, upstream: Process, directory: Path) -> None:
        with Wire(upstream.port) as wire:
            assert wire.line(f"ACL SETUSER narrow on >pw ~* +@all resetchannels &{BARE}") == OK
        with pannier(url(upstream, "narrow:pw@"), directory) as proxy:
            wait_until(lambda: facts(proxy.port)["bus_status"] == "up")
            assert "only the eviction bus of the namespaces served here is heard" in proxy.output
            fill(upstream, proxy, keys=["a"])
            publish(upstream, {"v": 1, "keys": ["a"]})
            wait_until(lambda: settled(proxy, 0))
        with Wire(upstream.port) as wire:
            wire.line("ACL DELUSER narrow")


class TestManyEntries:
    @pytest.mark.parametrize(
        ("how", "total"),
        [("pattern", 100_000), ("keys that are published", 30_000), ("keys of a command", 30_000)],
    )
    def test_hits_go_on_while_many_are_dropped(
        self, upstream: Process, three: list[Process], how: str, total: int
    ) -> None:
        peer = three[1]
        keys = [f"user:{n}" for n in range(total)]
        with Redis(port=upstream.port) as direct, Wire(peer.port, timeout=30) as wire:
            direct.flushall()
            for start in range(0, total, 10_000):
                direct.mset({f"user:{n}": n for n in range(start, start + 10_000)})
            direct.set("hot", "still here")
            wire.line("SIDECAR FLUSH")
            for _ in range(3):  # the refill governor lets in so many at a time once much has been dropped
                for start in range(0, total, 50):
                    wire.raw(b"".join([request("GET", f"user:{n}") for n in range(start, start + 50)]))
                    wire.reads(50)
                if entries(peer.port) > 0.9 * total:
                    break
            hot(peer.port, ["hot"])
            wait_until(lambda: entries(peer.port) > 0.9 * total, 20)
            longest, reads, went_on = 0.0, 0, False
            before = fact(peer, "tier_hits")
            with Wire(three[0].port) as other:
                if how == "pattern":
                    assert other.ask("SIDECAR", "INVALIDATE", "MATCH", "user:*", "nosuch:*:x")[:1] == b":"
            if how == "keys that are published":
                publish(upstream, {"v": 1, "keys": keys})
            with Wire(peer.port) as looking, Wire(peer.port) as commands:
                if how == "keys of a command":
                    commands.raw(request("SIDECAR", "INVALIDATE", *keys))
                deadline, left = time.monotonic() + 20, total
                while left > 1:
                    for _ in range(5):  # few: all of it may be over within a time slice or two of a busy machine
                        began = time.monotonic()
                        assert wire.ask("GET", "hot") == b"$10\r\nstill here\r\n"
                        longest = max(longest, time.monotonic() - began)
                        reads += 1
                    left = (
                        int(text(looking.ask("INFO", "sidecar")).partition("tier_entries:")[2].split()[0])
                        // FORMS[peer.port]
                    )
                    went_on = went_on or 1 < left < total - 1000
                    assert time.monotonic() < deadline
            assert fact(peer, "tier_hits") - before == reads
            assert went_on, "reads were answered in the middle of it"
            assert longest < 2.0

    def test_a_flood_of_messages_leaves_time_for_clients(
        self, upstream: Process, three: list[Process]
    ) -> None:
        fill(upstream, three[0], keys=["hot", "last"])
        with Redis(port=upstream.port) as direct, Wire(three[0].port) as wire:
            flood = direct.pipeline(transaction=False)
            for n in range(5000):
                flood.publish(BARE, json.dumps({"v": 1, "keys": [f"k{n}:{m}" for m in range(10)]}))
            flood.publish(BARE, '{"v":1,"keys":["last"]}')
            flood.execute()
            longest, deadline = 0.0, time.monotonic() + 20
            while entries(three[0].port) > 1:
                began = time.monotonic()
                assert wire.line("GET hot") == b"$5\r\nvalue\r\n"
                longest = max(longest, time.monotonic() - began)
                assert time.monotonic() < deadline
            assert longest < 2.0


class TestQuietAndEnding:
    def test_shut_down_while_it_hears_and_speaks(self, upstream: Process, directory: Path) -> None:
        with (
            several(upstream, directory, [], ["--broadcast", "writes"]) as started,
            contextlib.ExitStack() as stack,
        ):
            for proxy in started:
                wire = stack.enter_context(Wire(proxy.port))
                wire.raw(
                    b"".join(
                        [
                            request("SIDECAR", "INVALIDATE", "MATCH", f"k{n}*") + request("SET", f"k{n}", n)
                            for n in range(200)
                        ]
                    )
                )
                publish(upstream, {"v": 1, "match": ["*"]})
            for proxy in started:
                self.ends_cleanly(proxy)
        ours = [client for client in bus_connections(upstream) if client["name"] == "pannier-bus"]
        wait_until(lambda: len(bus_connections(upstream)) <= len(ours))

    @pytest.mark.parametrize("trouble", ["away", "frozen", "refusing"])
    def test_shut_down_while_redis_is_in_trouble(
        self, any_redis_binary: str, directory: Path, trouble: str
    ) -> None:
        with redis_server(any_redis_binary, directory) as redis, several(redis, directory, []) as (proxy,):
            if trouble == "away":
                redis.kill()
                wait_until(lambda: facts_or_none(proxy) != "up")
            elif trouble == "frozen":
                redis.signal(19)  # SIGSTOP
            else:
                with Wire(redis.port) as wire:
                    wire.line("CONFIG SET requirepass other")
                    for client in bus_connections_of(wire):
                        wire.ask("CLIENT", "KILL", "ID", client)
                wait_until(lambda: "not heard" in proxy.output)
            self.ends_cleanly(proxy)

    @staticmethod
    def ends_cleanly(proxy: Process) -> None:
        assert proxy.stop() == 0
        for word in (
            "Traceback",
            "Task was destroyed",
            "never retrieved",
            "never awaited",
            "internal error",
            "Unclosed",
        ):
            assert word not in proxy.output, proxy.output
        with pytest.raises(ProcessLookupError):
            os.killpg(proxy.pid, 0)

    def test_a_silent_bus_stays_connected(self, upstream: Process, quiet: Process) -> None:
        wait_until(lambda: any(int(client["age"]) >= 5 for client in bus_connections(upstream)), 12)
        found = facts(quiet.port)
        assert (found["bus_status"], found["bus_received"]) == ("up", "0")
        subscriptions = int(found["bus_subscriptions"])
        fill(upstream, quiet, keys=["a", "b"])
        age = max(int(client["age"]) for client in bus_connections(upstream))
        wait_until(lambda: max(int(client["age"]) for client in bus_connections(upstream)) >= age + 4, 12)
        publish(upstream, {"v": 1, "keys": ["a"]}, QUIET)
        wait_until(lambda: settled(quiet, 1))
        assert int(facts(quiet.port)["bus_subscriptions"]) == subscriptions


def facts_or_none(proxy: Process) -> str:
    """The bus's status, as far as it can be asked while Redis is away."""
    with Wire(proxy.port) as wire:
        found = wire.line("SIDECAR STATS")
    return "up" if b"bus_status\r\n$2\r\nup" in found else "trouble"


def bus_connections_of(wire: Wire) -> list[str]:
    """The ids of the sidecars' subscriptions, asked over a connection that is let in."""
    lines = text(wire.line("CLIENT LIST")).splitlines()
    return [line.split()[0].removeprefix("id=") for line in lines if " name=pannier-bus " in line]
