"""Verifying before a real Redis: SWAPDB, which it tells nobody of, is found out; writes it does tell of raise no alarm."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Process, pannier
from tests.integration.test_tier_reads import ask_all, info, number
from tests.integration.wire import Wire, in_background, request, text, until

FAST = ["--admit-after", "1", "--verify", "1", "--coherence-timeout", "500ms"]
SECONDS = 3.0


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


def swapped(redis: Process) -> None:
    with Wire(redis.port) as wire:
        assert wire.line("SWAPDB 0 1") == b"+OK\r\n"


class TestWhatRedisDoesNotTell:
    @pytest.mark.parametrize("protocol", [2, 3])
    def test_is_found_named_and_dropped(self, redis: Process, directory: Path, protocol: int) -> None:
        with pannier(url(redis), directory, *FAST) as proxy, Wire(proxy.port, protocol) as wire, Wire(redis.port) as other:
            other.line("SET user:1 old")
            assert [wire.line("GET user:1") for _ in range(3)] == [b"$3\r\nold\r\n"] * 3
            swapped(redis)
            until(lambda: wire.line("GET user:1") in (b"$-1\r\n", b"_\r\n"), "the stale entry is dropped")
            found = info(proxy)
            assert found["pannier_verify_mismatches"] == "1" and int(found["pannier_verify_checked"]) > 1
            assert "stale entry of class user" in proxy.output and "(no rule, tracking default)" in proxy.output
            assert found["pannier_mode"] == "cache"

    def test_demotes_the_rule(self, redis: Process, directory: Path) -> None:
        rules = directory / "rules.toml"
        rules.write_text('[[rules]]\nmatch = "never:*"\n[[rules]]\nmatch = "user:*"\n')
        options = [*FAST, "--verify-demote", "2", "--rules-file", str(rules)]
        with pannier(url(redis), directory, *options) as proxy, Wire(proxy.port) as wire, Wire(redis.port) as other:
            for n in range(3):
                other.ask("SET", f"user:{n}", "old")
            for _ in range(2):
                for n in range(3):
                    assert wire.ask("GET", f"user:{n}") == b"$3\r\nold\r\n"
            swapped(redis)

            def demoted() -> bool:
                for n in range(3):
                    wire.ask("GET", f"user:{n}")
                return b"observe" in wire.line("SIDECAR EXPLAIN user:1")

            until(demoted, "the rule is demoted")
            assert "rule 2 (user:*): only observed from now on, after 2 stale entries" in proxy.output
            assert b"observe" not in wire.line("SIDECAR EXPLAIN never:1")
            assert b"observe" not in wire.line("SIDECAR EXPLAIN other")
            hits = number(proxy, "tier_hits")
            assert [wire.line("GET user:1") for _ in range(3)] == [b"$-1\r\n"] * 3
            assert number(proxy, "tier_hits") == hits
            assert int(info(proxy)["pannier_observe_reads"]) >= 3

    def test_goes_on_unseen_without(self, redis: Process, directory: Path) -> None:
        with pannier(url(redis), directory, "--admit-after", "1") as proxy, Wire(proxy.port) as wire, Wire(redis.port) as other:
            other.line("SET user:1 old")
            wire.line("GET user:1")
            swapped(redis)
            assert wire.line("GET user:1") == b"$3\r\nold\r\n"
            assert "pannier_verify_checked" not in info(proxy)


@contextlib.contextmanager
def busy(*works: Callable[[threading.Event], None]) -> Iterator[threading.Event]:
    """Have threads at work while the context lasts."""
    end = threading.Event()
    with contextlib.ExitStack() as stack:
        for work in works:
            stack.enter_context(in_background(lambda work=work: work(end)))
        try:
            yield end
        finally:
            end.set()


def writer(port: int, seed: int) -> Callable[[threading.Event], None]:
    """Changes everything that is read, there and not there in turn, and what rehashes when it shrinks."""
    rng = random.Random(seed)

    def work(end: threading.Event) -> None:
        with Wire(port) as wire:
            while not end.is_set():
                n, value = rng.randrange(6), rng.randrange(10**6)
                member = rng.randrange(3000)
                lines = [
                    f"SET s:{n} {value}", f"DEL s:{n}", f"SET s:{n} {value} PX {rng.randrange(1, 300)}", f"INCR i:{n}",
                    f"HSET h:{n} f{member} {value}", f"HDEL h:{n} f{member}", f"SADD u:{n} {member}", f"SREM u:{n} {member}",
                    f"ZADD z:{n} {value} {member % 20}", f"RENAME s:{n} s:{(n + 1) % 6}", f"EXPIRE i:{n} 1",
                ]  # fmt: skip
                wire.pipeline([request(*rng.choice(lines).split()) for _ in range(10)], 10)
                end.wait(0.002)

    return work


READS = [f"{read}" for n in range(6) for read in (f"GET s:{n}", f"STRLEN s:{n}", f"EXISTS s:{n}", f"GET i:{n}", f"HGETALL h:{n}", f"HKEYS h:{n}", f"SMEMBERS u:{n}", f"SINTER u:{n} u:0", f"ZRANGE z:{n} 0 -1 WITHSCORES", f"MGET s:{n} i:{n} none")]


def reader(port: int, protocol: int, seed: int) -> Callable[[threading.Event], None]:
    rng = random.Random(seed)

    def work(end: threading.Event) -> None:
        with Wire(port, protocol) as wire:
            while not end.is_set():
                some = rng.sample(READS, rng.choice([1, 1, 1, 5]))
                for _ in range(3):
                    ask_all(wire, list(some))

    return work


@pytest.mark.parametrize("tracking", ["default", "bcast", "bus"])
def test_no_false_alarm_while_others_write(redis: Process, directory: Path, tracking: str) -> None:
    told = ["--tracking", "off", "--broadcast", "writes"] if tracking == "bus" else ["--tracking", tracking]
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(pannier(url(redis), directory, *FAST, *told))
        writing = redis.port
        if tracking == "bus":  # only what passes through a Pannier is told
            other = stack.enter_context(pannier(url(redis), directory, *told))
            for process in (proxy, other):
                until(lambda process=process: info(process)["pannier_bus_status"] == "up", "the bus is heard")
            writing = other.port
        assert info(proxy)["pannier_tracking"] == tracking
        with Wire(redis.port) as wire:
            for n in range(6):
                wire.pipeline([request("SADD", f"u:{n}", m) for m in range(3000)] + [request("HSET", f"h:{n}", f"f{m}", m) for m in range(600)], 3600)
        readers = [reader(proxy.port, 2 + n % 2, n) for n in range(2)]
        began = time.monotonic()
        with busy(writer(writing, 7), *readers):
            until(lambda: time.monotonic() - began > SECONDS and number(proxy, "verify_checked") > 200, "much has been verified", 60.0)
        checked = number(proxy, "verify_checked")
        with Wire(proxy.port) as wire:
            # What was suspected last is judged after half a second: a heartbeat's pushes have come by then.
            until(lambda: text(wire.ask("INFO", "sidecar")) and time.monotonic() - began > SECONDS + 1.5, "all suspects are judged")
        assert number(proxy, "verify_mismatches") == 0, (checked, proxy.output)


def test_sets_whose_order_changes_are_no_others(redis: Process, directory: Path) -> None:
    """A set that has shrunk is rehashed by and by, and comes in another order though nobody writes."""
    with pannier(url(redis), directory, *FAST) as proxy, Wire(redis.port) as other, Wire(proxy.port) as wire:
        for n in range(8):
            other.pipeline([request("SADD", f"u:{n}", m) for m in range(4000)] + [request("HSET", f"h:{n}", f"f{m}", m) for m in range(4000)], 8000)
            other.pipeline([request("SREM", f"u:{n}", m) for m in range(200, 4000)] + [request("HDEL", f"h:{n}", f"f{m}") for m in range(200, 4000)], 7600)

        def enough() -> bool:
            for n in range(8):
                wire.line(f"SMEMBERS u:{n}")
                wire.line(f"HGETALL h:{n}")
            return number(proxy, "verify_checked") > 400

        until(enough, "much has been verified", 30.0)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.7, "all suspects are judged")
        assert number(proxy, "verify_mismatches") == 0, proxy.output
