"""Redis killed, stopped, cut off and started again, with `on_upstream_down = stale`: what memory holds is served,
everything else is told at once, and nothing stale survives."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_upstream import FakeUpstream, Hang
from tests.harness import Process, free_port, pannier, redis_server, wait_until
from tests.integration.test_tier_ladder import Shim
from tests.integration.test_tier_reads import hits, info, number
from tests.integration.wire import Wire, until

FAST = ["--upstream-timeout", "1s", "--connect-timeout", "500ms", "--reconnect-min", "10ms", "--reconnect-max", "50ms"]
STALE = [*FAST, "--on-upstream-down", "stale", "--coherence-timeout", "500ms", "--admit-after", "1"]
SLOW = ["--upstream-timeout", "60s", "--connect-timeout", "60s"]
"""Time-outs that no test waits for: what hangs shows."""
SOON = 5.0
"""Seconds within which an answer counts as immediate on a busy machine."""


class Redis:
    """A redis-server that dies and comes back on the same port."""

    def __init__(self, binary: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self._binary, self._directory, self._stack = binary, directory, stack
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = self._stack.enter_context(redis_server(self._binary, self._directory, port=self.port))

    def kill(self) -> None:
        self.process.kill()

    def ask(self, line: str) -> bytes:
        with Wire(self.port) as wire:
            return wire.line(line)


@pytest.fixture
def redis(redis_binary: str, directory: Path) -> Iterator[Redis]:
    with contextlib.ExitStack() as stack:
        yield Redis(redis_binary, directory, stack)


@pytest.fixture
def one(any_redis_binary: str, directory: Path) -> Iterator[Redis]:
    """A Redis of one version only."""
    with contextlib.ExitStack() as stack:
        yield Redis(any_redis_binary, directory, stack)


@contextlib.contextmanager
def sidecar(upstream: str, directory: Path, *options: str) -> Iterator[Process]:
    """A pannier that has come to rest."""
    with pannier(upstream, directory, *options, bus=True) as proxy:
        settled(proxy)
        yield proxy


def settled(proxy: Process) -> None:
    """Wait until the bus is heard: what was kept before is dropped then."""
    until(lambda: info(proxy).get("pannier_bus_status", "up") == "up", "the bus is heard", 10.0)


def health(proxy: Process, protocol: int = 2) -> dict[str, str]:
    """SIDECAR HEALTH as a dict of texts."""
    with Wire(proxy.port, protocol) as wire:
        reply = wire.line("SIDECAR HEALTH")
    assert reply[:1] == (b"%" if protocol == 3 else b"*"), reply
    items = re.findall(rb"(?:\$\d+\r\n|:)([^\r]*)\r\n", reply)
    return {name.decode(): value.decode() for name, value in zip(items[::2], items[1::2], strict=True)}


def keep(wire: Wire, *lines: str) -> list[bytes]:
    """Have reads kept, and see that they are: asked for until memory answers.

    A machine busy enough to close the coherence gate for a moment has a read go to Redis, and keeps nothing of it.
    """
    return [_kept(wire, line) for line in lines]


def _kept(wire: Wire, line: str) -> bytes:
    for _ in range(500):
        before = hits(wire)
        reply = wire.line(line)
        if hits(wire) > before:
            return reply
        time.sleep(0.005)
    raise AssertionError(f"never answered by memory: {line}")


def soon(wire: Wire, line: str) -> bytes:
    """The reply, which must not take time."""
    began = time.monotonic()
    reply = wire.line(line)
    assert time.monotonic() - began < SOON, line
    return reply


def refused(reply: bytes) -> bool:
    return reply.startswith(b"-ERR pannier: upstream ")


class TestKilled:
    @pytest.mark.parametrize("tracking", ["default", "bcast"])
    def test_reads_go_on_everything_else_fails_at_once_and_nothing_stale_survives(self, redis: Redis, directory: Path, tracking: str) -> None:
        with sidecar(redis.url, directory, *STALE, "--tracking", tracking) as proxy, Wire(proxy.port) as two, Wire(proxy.port, 3) as three:
            for turn in range(2):
                settled(proxy)
                for line in (f"SET k {turn}", "HSET h f v"):
                    two.line(line)
                kept = keep(two, "GET k", "HGETALL h"), keep(three, "GET k", "HGETALL h")
                hits = number(proxy, "tier_hits")
                assert (health(proxy)["serving"], number(proxy, "stale_since"), health(proxy)["why"]) == ("fresh", 0, "")
                redis.kill()
                until(lambda: health(proxy)["upstream"] != "up", "the loss is known", 5.0)
                before = number(proxy, "tier_stale_hits")
                for _ in range(20):
                    assert [two.line("GET k"), two.line("HGETALL h")] == kept[0]
                    assert [three.line("GET k"), three.line("HGETALL h")] == kept[1]
                until(lambda: refused(soon(two, "SET other 9")), "writes fail", 5.0)
                for line in ("SET k 9", "GET none", "INCR n", "MGET k none", "EVAL x 0", "MULTI", "BLPOP l 0", "SUBSCRIBE c", "FLUSHALL"):
                    assert refused(soon(two, line)), line
                assert two.line("PING") == b"+PONG\r\n"
                assert [two.line("GET k"), two.line("HGETALL h")] == kept[0], "a write that failed changes nothing"
                said = info(proxy)
                assert 82 <= int(said["pannier_tier_stale_hits"]) - before <= 83, "and perhaps a member of the MGET"
                assert int(said["pannier_tier_hits"]) >= hits + 82
                assert abs(int(said["pannier_stale_since"]) - time.time()) < 60 and said["pannier_serving"] == "stale"
                found = health(proxy, 3)
                may_move = ("breaker", "breaker_failures", "breaker_since", "why")  # the breaker may open in between
                assert found == health(proxy) | {name: found[name] for name in may_move}
                assert (found["alive"], found["ready"], found["serving"], found["upstream"]) == ("yes", "yes", "stale", "down")
                assert found["why"].startswith("upstream redis://")
                redis.start()
                redis.ask("SET k restarted")
                until(lambda: two.line("GET k") == b"$9\r\nrestarted\r\n", "the new server answers", 5.0)
                assert three.line("HGETALL h") == b"%0\r\n"
                until(lambda: health(proxy)["breaker"] == "closed" and health(proxy)["upstream"] == "up", "all is well", 5.0)
                after = number(proxy, "tier_stale_hits")
                keep(two, "GET k")
                assert number(proxy, "tier_stale_hits") == after and number(proxy, "stale_since") == 0

    def test_newcomers_read_as_well(self, one: Redis, directory: Path) -> None:
        import redis as client

        with sidecar(one.url, directory, *STALE) as proxy, Wire(proxy.port) as wire, Wire(proxy.port, 3) as three, Wire(proxy.port) as away:
            wire.line("SET k v")
            away.line("SELECT 1")
            away.line("SET k one")
            keep(wire, "GET k")
            keep(three, "GET k")
            keep(away, "GET k")
            one.kill()
            until(lambda: health(proxy)["serving"] == "stale", "stale", 5.0)
            away.close()
            for options in ({}, {"protocol": 2}, {"client_name": "me"}, {"health_check_interval": 1}):
                found = client.Redis(port=proxy.port, **options)
                assert found.ping() and found.get("k") == b"v"
                with pytest.raises(client.RedisError, match="upstream"):
                    found.set("k", "x")
                found.close()
            found = client.Redis(port=proxy.port, db=1, protocol=2)
            assert found.get("k") == b"one"
            found.close()

    def test_no_longer_than_stale_max(self, one: Redis, directory: Path) -> None:
        with sidecar(one.url, directory, *STALE, "--stale-max", "1s") as proxy, Wire(proxy.port) as wire:
            wire.line("SET k v")
            keep(wire, "GET k")
            one.kill()
            dead = time.monotonic()
            until(lambda: health(proxy)["serving"] == "stale", "stale", 5.0)
            last = dead
            while not refused(wire.line("GET k")):
                last = time.monotonic()
                assert last < dead + 10
                time.sleep(0.005)
            assert time.monotonic() - dead >= 0.9
            found = health(proxy)
            assert (found["serving"], found["ready"], number(proxy, "tier_entries")) == ("nothing", "no", 0)
            assert refused(wire.line("PING"))

    def test_no_longer_than_the_keys_own_time(self, one: Redis, directory: Path) -> None:
        with sidecar(one.url, directory, *STALE) as proxy, Wire(proxy.port) as wire:
            wire.line("SET stays v")
            began = time.monotonic()
            wire.line("SET k v PX 1500")
            keep(wire, "GET k", "GET stays")
            one.kill()
            until(lambda: refused(wire.line("GET k")), "over", 10.0)
            assert wire.line("GET stays") == b"$1\r\nv\r\n"
            assert time.monotonic() - began >= 1.2, "deadlines are rounded down, by less than a sixteenth"

    def test_error_serves_nothing(self, one: Redis, directory: Path) -> None:
        with sidecar(one.url, directory, *FAST, "--admit-after", "1") as proxy, Wire(proxy.port) as wire:
            wire.line("SET k v")
            keep(wire, "GET k")
            one.kill()
            until(lambda: refused(soon(wire, "GET k")), "refused", 5.0)
            found = health(proxy)
            assert (found["ready"], found["serving"], number(proxy, "tier_entries")) == ("no", "nothing", 0)
            assert refused(wire.line("PING"))


class TestNobodyReadsWhoHasNotAuthenticated:
    def test_passthrough(self, any_redis_binary: str, directory: Path) -> None:
        port = free_port()
        options = ["--requirepass", "secret"]
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(redis_server(any_redis_binary, directory, *options, port=port))
            proxy = stack.enter_context(pannier(f"redis://127.0.0.1:{port}", directory, *STALE, "--broadcast", "off"))
            known = stack.enter_context(Wire(proxy.port))
            assert known.line("AUTH secret") == b"+OK\r\n"
            known.line("SET k v")
            keep(known, "GET k")
            server.kill()
            until(lambda: refused(known.line("SET other x")), "away", 5.0)
            assert known.line("GET k") == b"$1\r\nv\r\n"
            for login in ("", "AUTH wrong", "AUTH secret", "HELLO 3 AUTH default secret"):
                with Wire(proxy.port) as stranger:
                    if login:
                        assert refused(soon(stranger, login)), login
                    assert not stranger.line("GET k").startswith(b"$"), login

    def test_tenants(self, one: Redis, directory: Path) -> None:
        path = directory / "p.toml"
        path.write_text('[tenants.a]\npassword = "pa"\nnamespace = "a"\n[tenants.b]\npassword = "pb"\nnamespace = "b"\n')
        with pannier(one.url, directory, *STALE, "--config", str(path), "--broadcast", "off") as proxy, Wire(proxy.port) as wire:
            assert wire.line("AUTH a pa") == b"+OK\r\n"
            wire.line("SET k of-a")
            keep(wire, "GET k")
            one.kill()
            until(lambda: refused(wire.line("SET other x")), "away", 5.0)
            with Wire(proxy.port) as new:
                assert new.line("GET k").startswith(b"-NOAUTH")
                assert new.line("AUTH a wrong").startswith(b"-WRONGPASS")
                assert soon(new, "AUTH a pa") == b"+OK\r\n", "Pannier itself knows"
                assert new.line("GET k") == b"$4\r\nof-a\r\n"
            with Wire(proxy.port) as other:
                assert refused(soon(other, "AUTH b pb")), "nothing of b's is kept"
                assert not other.line("GET k").startswith(b"$")


class TestStopped:
    """SIGSTOP: the connections stay, and nothing answers."""

    @pytest.mark.parametrize("tracking", ["default", "bcast"])
    def test_counts_as_away_once_the_gate_is_closed_and_is_fresh_when_it_speaks(self, redis: Redis, directory: Path, tracking: str) -> None:
        # Longer than a busy machine keeps the sidecar from asking for a sign of life: it knows of no silence before.
        patience = ("--coherence-timeout", "2s")
        options = (*STALE, *SLOW, *patience, "--tracking", tracking)
        with sidecar(redis.url, directory, *options) as proxy, contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(proxy.port, protocol)) for protocol in (2, 3)]
            writer = stack.enter_context(Wire(redis.port))
            for line in ("SET k old", "SET other o"):
                wires[0].line(line)
            for wire in wires:
                keep(wire, "GET k", "GET other")
            redis.process.signal(signal.SIGSTOP)
            try:
                writer.send("SET", "k", "new")
                until(lambda: [wire.line("GET k") for wire in wires] and health(proxy)["upstream"] == "silent", "noticed", 15.0)
                for wire in wires:
                    assert wire.line("GET k") == b"$3\r\nold\r\n"
                    for line in ("SET k x", "GET none", "MULTI", "BLPOP l 0", "SELECT 5"):
                        assert refused(soon(wire, line)), line
                    assert wire.line("PING") == b"+PONG\r\n"
                found = health(proxy)
                assert (found["serving"], found["ready"]) == ("stale", "yes") and "has not answered for 2 s" in found["why"]
            finally:
                redis.process.signal(signal.SIGCONT)
            writer.read()
            until(lambda: health(proxy)["upstream"] == "up" and health(proxy)["serving"] == "fresh", "it speaks", 5.0)
            for wire in wires:
                until(lambda wire=wire: wire.line("GET k") == b"$3\r\nnew\r\n", "no push was lost", 5.0)
                assert wire.line("GET other") == b"$1\r\no\r\n"
            assert number(proxy, "upstream_reconnects") == 0, "on the same connection"

    def test_for_longer_than_the_timeout(self, redis: Redis, directory: Path) -> None:
        with sidecar(redis.url, directory, *STALE) as proxy, Wire(proxy.port) as wire:
            wire.line("SET k old")
            keep(wire, "GET k")
            redis.process.signal(signal.SIGSTOP)
            try:
                until(lambda: wire.line("GET k") and health(proxy)["breaker"] != "closed", "the breaker opens", 15.0)
                assert wire.line("GET k") == b"$3\r\nold\r\n"
                for line in ("SET k x", "MULTI", "GET none"):
                    assert b"circuit breaker open for" in soon(wire, line), line
            finally:
                redis.process.signal(signal.SIGCONT)
            redis.ask("SET k new")
            until(lambda: wire.line("GET k") == b"$3\r\nnew\r\n", "connected anew", 10.0)
            until(lambda: health(proxy)["breaker"] == "closed", "closed", 5.0)
            assert proxy.output.count("circuit breaker open") == proxy.output.count("circuit breaker closed") == 1

    def test_a_partition(self, one: Redis, directory: Path) -> None:
        """The others write on; what is cut off serves stale entries, and forgets them when it is heard again."""
        with Shim(one.process) as shim, sidecar(shim.url, directory, *STALE) as proxy, Wire(proxy.port) as wire:
            wire.line("SET k old")
            keep(wire, "GET k")
            shim.flowing.clear()
            one.ask("SET k new")
            until(lambda: wire.line("GET k") == b"$3\r\nold\r\n" and health(proxy)["serving"] == "stale", "stale", 10.0)
            shim.flowing.set()
            until(lambda: wire.line("GET k") == b"$3\r\nnew\r\n", "healed", 10.0)


class TestTheBus:
    def test_where_it_alone_keeps_memory_true(self, one: Redis, directory: Path) -> None:
        options = [*STALE, "--tracking", "off", "--broadcast", "writes", "--l1-ttl-untracked", "60s"]
        with contextlib.ExitStack() as stack:
            here, there = (stack.enter_context(sidecar(one.url, directory, *options)) for _ in range(2))
            a, b = stack.enter_context(Wire(here.port)), stack.enter_context(Wire(there.port))
            until(lambda: number(here, "bus_subscriptions") == number(there, "bus_subscriptions") == 1, "both listen")
            a.line("SET k old")
            for wire, proxy in ((a, here), (b, there)):
                until(lambda wire=wire, proxy=proxy: wire.line("GET k") == b"$3\r\nold\r\n" and number(proxy, "tier_hits"), "kept")
            for away in ("killed", "stopped"):
                if away == "killed":
                    one.kill()
                else:
                    one.process.signal(signal.SIGSTOP)
                for wire, proxy in ((a, here), (b, there)):
                    until(lambda proxy=proxy: health(proxy)["serving"] == "stale", f"stale, {away}", 10.0)
                    assert soon(wire, "GET k").startswith(b"$3")
                    assert refused(soon(wire, "SET k x"))
                if away == "killed":
                    one.start()
                else:
                    one.process.signal(signal.SIGCONT)
                until(lambda: a.line("SET k new") == b"+OK\r\n", "back", 10.0)
                until(lambda: b.line("GET k") == b"$3\r\nnew\r\n", "told", 10.0)
                for wire, proxy in ((a, here), (b, there)):
                    until(lambda wire=wire, proxy=proxy: wire.line("GET k") == b"$3\r\nnew\r\n" and health(proxy)["serving"] == "fresh", "kept again")
                    hits = number(proxy, "tier_hits")
                    until(lambda wire=wire, proxy=proxy, hits=hits: wire.line("GET k") and number(proxy, "tier_hits") > hits, "in use", 10.0)

    def test_lost_alone_serves_nothing_stale(self, one: Redis, directory: Path) -> None:
        """Redis is there: it answers."""
        options = [*STALE, "--tracking", "off", "--broadcast", "writes", "--l1-ttl-untracked", "60s"]
        with sidecar(one.url, directory, *options) as proxy, Wire(proxy.port) as wire:
            until(lambda: number(proxy, "bus_subscriptions") == 1, "listens")
            wire.line("SET k old")
            until(lambda: wire.line("GET k") and number(proxy, "tier_hits"), "kept")
            for turn in range(5):
                one.ask(f"SET k {turn}")
                one.ask("CLIENT KILL TYPE pubsub")
                until(lambda turn=turn: wire.line("GET k") == b"$1\r\n%d\r\n" % turn, "read from Redis", 5.0)
            assert number(proxy, "tier_stale_hits") == 0


class TestTwoSidecars:
    def test_both_outlive_redis_and_agree_afterwards(self, redis: Redis, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            proxies = [stack.enter_context(sidecar(redis.url, directory, *STALE)) for _ in range(2)]
            wires = [stack.enter_context(Wire(proxy.port)) for proxy in proxies]
            for turn in range(3):
                for proxy in proxies:
                    settled(proxy)
                wires[turn % 2].line(f"SET k {turn}")
                expected = b"$1\r\n%d\r\n" % turn
                for wire in wires:
                    until(lambda wire=wire: wire.line("GET k") == expected, "seen")  # noqa: B023
                    keep(wire, "GET k")
                redis.kill()
                for wire, proxy in zip(wires, proxies, strict=True):
                    until(lambda proxy=proxy: health(proxy)["serving"] == "stale", "stale", 5.0)
                    assert [wire.line("GET k") for _ in range(5)] == [expected] * 5
                redis.start()
                for wire in wires:
                    until(lambda wire=wire: wire.line("GET k") == b"$-1\r\n", "the new server is empty", 5.0)
                wires[0].line("SET k after")
                until(lambda: wires[1].line("GET k") == b"$5\r\nafter\r\n", "and tells of writes", 5.0)


class TestTheBreaker:
    @pytest.mark.parametrize("mode", ["error", "stale"])
    def test_a_dead_upstream_takes_no_time(self, one: Redis, directory: Path, mode: str) -> None:
        options = [*FAST, "--on-upstream-down", mode]
        with sidecar(one.url, directory, *options) as proxy, Wire(proxy.port) as wire:
            one.kill()
            until(lambda: wire.line("GET k") and health(proxy)["breaker"] != "closed", "open", 5.0)
            for line in ("GET k", "SET k v", "MULTI", "BLPOP l 0", "SUBSCRIBE c", "SELECT 3", "AUTH x"):
                reply = soon(wire, line)
                assert re.search(rb"Connection refused \(circuit breaker open for [0-9.]+ s, next probe (now|in [0-9.]+ s)\)", reply), (line, reply)
            said = info(proxy)
            assert said["pannier_breaker"] in ("open", "half-open") and int(said["pannier_breaker_failures"]) >= 3
            assert abs(int(said["pannier_breaker_since"]) - time.time()) < 60
            one.start()
            until(lambda: wire.line("SET k v") == b"+OK\r\n", "closed by a probe", 5.0)
            until(lambda: info(proxy)["pannier_breaker"] == "closed", "closed", 5.0)
            assert number(proxy, "breaker_failures") == number(proxy, "breaker_since") == 0
            assert wire.line("MULTI") == b"+OK\r\n"
            assert proxy.output.count("circuit breaker open") == proxy.output.count("circuit breaker closed") == 1

    def test_a_slow_one_that_answers_handshakes_counts(self, directory: Path) -> None:
        def script(arguments: list[bytes]) -> bytes:
            if arguments[0] == b"GET":
                raise Hang
            return b"+OK\r\n"

        options = ["--upstream-timeout", "300ms", "--connect-timeout", "300ms", "--tracking", "off", "--reconnect-min", "3s", "--reconnect-max", "3s"]
        with FakeUpstream(script) as redis, pannier(redis.url, directory, *options) as proxy, Wire(proxy.port, timeout=30) as wire:
            replies = []
            until(lambda: replies.append(wire.line("GET k")) or proxy.output.count("circuit breaker open"), "open", 30.0)
            assert 3 <= len(replies) <= 6 and all(refused(reply) for reply in replies)

    def test_a_hung_one_is_noticed_and_commands_fail_long_before_the_timeout(self, redis: Redis, directory: Path) -> None:
        """With `on_upstream_down = error` too: HEALTH first, then the breaker."""
        options = [*SLOW, "--coherence-timeout", "500ms"]
        with sidecar(redis.url, directory, *options) as proxy, Wire(proxy.port, timeout=30) as waits, Wire(proxy.port) as wire:
            waits.line("SET k v")
            redis.process.signal(signal.SIGSTOP)
            try:
                waits.send("GET", "other")
                until(lambda: health(proxy)["upstream"] == "silent", "noticed", 5.0)
                found = health(proxy)
                assert found["ready"] == "no" and re.search(r"has not answered for \d+ s", found["why"])
                assert info(proxy)["pannier_upstream_status"] == "silent"
                until(lambda: health(proxy)["breaker"] != "closed", "open", 8.0)
                for line in ("GET k", "SET k x", "MULTI", "BLPOP l 0"):
                    assert re.search(rb"has not answered for \d+ s \(circuit breaker open for|did not answer within 0.5 s \(circuit breaker", soon(wire, line)), line
            finally:
                redis.process.signal(signal.SIGCONT)
            assert waits.read() == b"$-1\r\n", "who had asked before waits for it"
            until(lambda: health(proxy)["breaker"] == "closed" and health(proxy)["ready"] == "yes", "closed", 5.0)
            assert wire.line("GET k") == b"$1\r\nv\r\n"
            assert number(proxy, "upstream_reconnects") == 0
            assert proxy.output.count("circuit breaker open") == proxy.output.count("circuit breaker closed") == 1

    @pytest.mark.parametrize("way", ["shared", "transaction"])
    def test_who_waits_for_a_long_script_is_let_wait(self, redis: Redis, directory: Path, way: str) -> None:
        """Redis answers others with BUSY: it is not hung."""
        redis.ask("CONFIG SET lua-time-limit 100")
        script = "while redis.call('TIME')[1] - ARGV[1] < 5 do end return 'done'"
        with sidecar(redis.url, directory, *SLOW, "--coherence-timeout", "500ms") as proxy, Wire(proxy.port, timeout=30) as runs, Wire(proxy.port, timeout=30) as waits:
            start = str(int(time.time()))
            if way == "transaction":
                runs.line("MULTI")
                runs.ask("EVAL", script, "0", start)
                runs.send("EXEC")
            else:
                runs.send("EVAL", script, "0", start)
                until(lambda: health(proxy)["upstream"] == "silent", "noticed", 5.0)
                waits.send("GET", "k")
            reply = runs.read()
            assert b"done" in reply, reply
            if way == "shared":
                assert waits.read() == b"$-1\r\n"
            until(lambda: health(proxy)["upstream"] == "up", "all is well", 5.0)
            assert "circuit breaker" not in proxy.output

    def test_switched_off(self, one: Redis, directory: Path) -> None:
        with sidecar(one.url, directory, *FAST, "--breaker-failures", "0") as proxy, Wire(proxy.port) as wire:
            one.kill()
            until(lambda: number(proxy, "breaker_failures") > 5, "failures", 5.0)
            assert health(proxy)["breaker"] == "closed" and "circuit" not in proxy.output
            assert wire.line("GET k").endswith(b"Connection refused\r\n")


class TestHealth:
    def test_of_a_sidecar_that_never_saw_redis(self, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{free_port()}", directory, *STALE) as proxy:
            wait_until(lambda: health(proxy)["upstream"] == "down")
            found = health(proxy)
            assert (found["alive"], found["ready"], found["serving"], found["stale_since"]) == ("yes", "no", "nothing", "0")
            assert "Connection refused" in found["why"]

    def test_of_one_that_redis_refuses(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--requirepass", "secret") as server, pannier(f"redis://:wrong@127.0.0.1:{server.port}", directory, *FAST) as proxy:
            wait_until(lambda: health(proxy)["upstream"] == "refused")
            found = health(proxy)
            assert (found["ready"], found["breaker"]) == ("no", "closed") and "WRONGPASS" in found["why"]

    def test_takes_no_arguments(self, one: Redis, directory: Path) -> None:
        with sidecar(one.url, directory, *FAST) as proxy, Wire(proxy.port) as wire:
            assert wire.line("SIDECAR HEALTH x") == b"-ERR wrong number of arguments for 'sidecar|health' command\r\n"
            assert b"HEALTH" in wire.line("SIDECAR HELP")


def test_info_is_answered_while_redis_is_away(one: Redis, directory: Path) -> None:
    with sidecar(one.url, directory, *STALE) as proxy, Wire(proxy.port) as wire:
        assert b"# Server" in wire.line("INFO")
        one.kill()
        until(lambda: wire.line("GET k").startswith(b"-"), "away", 5.0)
        reply = soon(wire, "INFO")
        assert b"# Sidecar" in reply and b"# Server" not in reply
