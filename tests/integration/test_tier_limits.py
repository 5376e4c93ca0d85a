"""What memory holds stays within its limits, and nothing is served for longer than it lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, pannier, redis_server
from tests.integration.test_tier_reads import info, number, set_up
from tests.integration.wire import Wire, request, until


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


def read_each(wire: Wire, keys: list[str]) -> None:
    wire.pipeline([request("GET", key) for key in keys], len(keys))


class TestRoom:
    def test_memory(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--max-memory", "1mb", "--admit-after", "1") as proxy, Wire(proxy.port) as wire:
            keys = [f"key:{n}" for n in range(12000)]
            set_up(proxy, [("MSET", *(part for key in keys for part in (key, "v" * 100)))])
            for start in range(0, len(keys), 50):
                read_each(wire, keys[start : start + 50])
                if start % 1000 == 0:
                    assert number(proxy, "tier_bytes") <= 1 << 20
            until(lambda: number(proxy, "commands_in_flight") == 0, "all fetched")
            fields = info(proxy)
            bytes_, entries, fills, evicted = (int(fields[f"pannier_tier_{name}"]) for name in ("bytes", "entries", "fills", "evictions"))
            assert (1 << 20) * 0.8 < bytes_ <= 1 << 20
            assert entries > 1000
            assert evicted == fills - entries > 1000
            assert int(fields["pannier_tier_max_memory"]) == 1 << 20
            assert wire.line("SIDECAR FLUSH") == b"+OK\r\n"
            assert (number(proxy, "tier_bytes"), number(proxy, "tier_entries")) == (0, 0)

    def test_one_large_value_puts_out_several_small_ones(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--max-memory", "1mb", "--max-value-size", "4mb", "--admit-after", "1") as proxy, Wire(proxy.port) as wire:
            keys = [f"key:{n}" for n in range(10)]
            set_up(proxy, [("SET", key, "v" * 90_000) for key in keys] + [("SET", "large", "v" * 800_000), ("SET", "huge", "v" * 3_000_000)])
            for key in keys:
                wire.ask("GET", key)
            wire.line("GET large")
            assert 800_000 < number(proxy, "tier_bytes") <= 1 << 20
            assert number(proxy, "tier_evictions") >= 7
            for _ in range(3):
                assert len(wire.line("GET huge")) > 3_000_000
                assert number(proxy, "tier_bytes") <= 1 << 20

    def test_entries_and_values(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--max-entries", "100", "--max-value-size", "1kb", "--admit-after", "1") as proxy, Wire(proxy.port) as wire:
            keys = [f"key:{n}" for n in range(1000)]
            set_up(proxy, [("MSET", *(part for key in keys for part in (key, key)))])
            for key in keys:
                wire.ask("GET", key)
            fields = info(proxy)
            assert 50 <= int(fields["pannier_tier_entries"]) <= 100
            assert int(fields["pannier_tier_evictions"]) == int(fields["pannier_tier_fills"]) - int(fields["pannier_tier_entries"]) >= 900
            assert keys[-1].encode() in wire.ask("GET", keys[-1])
            assert number(proxy, "tier_hits") == 1, "the latest is still there"
            set_up(proxy, [("SET", "long", "v" * 1100), ("SET", "short", "v" * 900), ("HSET", "h", "f", "v" * 2000, "g", "1")])
            for read, kept in (("GET long", False), ("GET short", True), ("HGETALL h", False), ("HGET h f", False), ("HGET h g", True), ("STRLEN long", True)):
                wire.line(read)
                before = number(proxy, "tier_hits")
                wire.line(read)
                assert (number(proxy, "tier_hits") > before) is kept, read

    def test_the_hot_stay_while_others_pass(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--max-entries", "500", "--admit-after", "1") as proxy, Wire(proxy.port) as wire:
            hot = [f"hot:{n}" for n in range(50)]
            set_up(proxy, [("MSET", *(part for key in hot for part in (key, "v")))])
            for turn in range(60):
                for key in hot:
                    wire.ask("GET", key)
                for n in range(40):
                    wire.ask("GET", f"cold:{turn}:{n}")
            before = number(proxy, "tier_hits")
            for key in hot:
                wire.ask("GET", key)
            assert number(proxy, "tier_hits") - before == len(hot)


class TestAdmission:
    def test_the_second_read_is_kept_by_default(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory) as proxy, Wire(proxy.port) as wire:
            set_up(proxy, [])
            for n in range(300):
                wire.ask("GET", f"once:{n}")
            assert number(proxy, "tier_fills") <= 15  # the doorkeeper takes some for known
            for n in range(300):
                wire.ask("GET", f"once:{n}")
            assert number(proxy, "tier_fills") >= 285
            before = number(proxy, "tier_hits")
            for n in range(300):
                wire.ask("GET", f"once:{n}")
            assert number(proxy, "tier_hits") - before >= 285

    def test_the_first_one_if_so_configured(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--admit-after", "1") as proxy, Wire(proxy.port, 3) as wire:
            set_up(proxy, ["SET a 1", "HSET h f 1 g 2"])
            for line in ("GET a", "HGET h f", "HGET h g", "HGETALL h", "MGET a none"):
                wire.line(line)
                before = number(proxy, "tier_hits")
                wire.line(line)
                assert number(proxy, "tier_hits") > before, line
            assert wire.line("HSET h f 9") == b":0\r\n"
            assert (wire.line("HGET h f"), wire.line("HGET h g")) == (b"$1\r\n9\r\n", b"$1\r\n2\r\n")
            assert b"$1\r\n9\r\n" in wire.line("HGETALL h")


GRACE = 0.003
"""Seconds by which Redis itself may serve a key beyond its TTL: its clock ticks in milliseconds, and stands
still while it handles what it has read at once."""


class TestTimeToLive:
    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("who", ["through", "around"])
    def test_nothing_is_served_beyond_it(self, redis: Process, proxy: Process, protocol: int, who: str) -> None:
        with Wire(proxy.port, protocol) as wire, Wire((proxy if who == "through" else redis).port) as writer:
            hits = number(proxy, "tier_hits")
            for turn in range(3):
                deadlines = {}
                for n in range(20):
                    key = f"{protocol}{who}{turn}:{n}"
                    writer.ask("SET", key, "v", "PX", 200)
                    deadlines[key] = time.monotonic() + 0.2 + GRACE
                while time.monotonic() < max(deadlines.values()) + 0.02:
                    for key, deadline in deadlines.items():
                        asked = time.monotonic()
                        served = not wire.ask("GET", key).startswith((b"$-1", b"_"))
                        assert not (served and asked > deadline), f"{asked - deadline + GRACE:.4f} s too late"
            assert number(proxy, "tier_hits") - hits > 100

    @pytest.mark.parametrize("port", ["through", "around"])
    def test_commands_that_change_it(self, redis: Process, proxy: Process, port: str) -> None:
        with Wire(proxy.port) as wire, Wire((proxy if port == "through" else redis).port) as writer:
            seen_at_once = port == "through"
            for shorten in (("PEXPIRE", "k", 150), ("SET", "k", "v", "PX", 150), ("PEXPIREAT", "k", 0), ("GETEX", "k", "PX", 150), ("PSETEX", "k", 150, "v")):
                set_up(proxy, ["SET k v"])
                for _ in range(3):
                    wire.line("GET k")
                arguments = (*shorten[:2], int(time.time() * 1000) + 150) if shorten[0] == "PEXPIREAT" else shorten
                writer.ask(*arguments)
                deadline = time.monotonic() + 0.15 + GRACE
                until(lambda deadline=deadline: time.monotonic() > deadline or wire.line("GET k") == b"$-1\r\n", "over")
                until(lambda: wire.line("GET k") == b"$-1\r\n", "gone", limit=0.001 if seen_at_once else 1.0)
            for lengthen in (("PERSIST", "k"), ("PEXPIRE", "k", 100_000), ("SET", "k", "v", "KEEPTTL"), ("SET", "k", "v"), ("GETEX", "k", "PERSIST")):
                set_up(proxy, ["SET k v PX 150"])
                began = time.monotonic()
                for _ in range(3):
                    wire.line("GET k")
                writer.ask(*lengthen)
                until(lambda began=began: time.monotonic() > began + 0.16, "the first TTL is over")
                assert wire.line("GET k") == (b"$-1\r\n" if "KEEPTTL" in lengthen else b"$1\r\nv\r\n"), lengthen

    def test_of_the_first_of_several_keys(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            set_up(proxy, ["SADD s a", "SADD t b"])
            wire.line("PEXPIRE t 150")
            deadline = time.monotonic() + 0.15 + GRACE
            assert [len(wire.line("SUNION s t")) for _ in range(4)] == [18] * 4
            until(lambda: time.monotonic() > deadline, "over")
            assert wire.line("SUNION s t") == b"*1\r\n$1\r\na\r\n"
            assert wire.line("EXISTS s t") == b":1\r\n"

    def test_the_local_limit_bounds_what_nobody_tells(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--l1-ttl", "100ms", "--admit-after", "1") as proxy, Wire(proxy.port) as wire, Wire(upstream.port) as direct:
            set_up(proxy, ["SELECT 1", "SET a new", "SELECT 0", "SET a old"])
            for _ in range(10):
                found = [wire.line("GET a") for _ in range(2)]
                direct.line("SWAPDB 0 1")
                swapped = time.monotonic()
                stale = found[1]
                until(lambda swapped=swapped: time.monotonic() > swapped + 0.1, "the limit is over")
                assert wire.line("GET a") != stale
            assert number(proxy, "tier_expirations") > 0
            assert number(proxy, "tier_hits") >= 10
