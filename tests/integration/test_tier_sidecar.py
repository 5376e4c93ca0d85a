"""The sidecar's own command, its section in INFO, and the canary that nobody sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis, ResponseError

from tests.harness import Process, pannier, redis_server
from tests.integration.test_tier_reads import ask_all, info, number, set_up
from tests.integration.wire import Wire, request, text, until

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])

ERRORS = {
    "SIDECAR": b"-ERR wrong number of arguments for 'sidecar' command\r\n",
    "SIDECAR NOSUCH": b"-ERR unknown subcommand 'NOSUCH'. Try SIDECAR HELP.\r\n",
    "SIDECAR BYPASS": b"-ERR wrong number of arguments for 'sidecar|bypass' command\r\n",
    "SIDECAR BYPASS ON OFF": b"-ERR wrong number of arguments for 'sidecar|bypass' command\r\n",
    "SIDECAR BYPASS maybe": b"-ERR SIDECAR BYPASS takes ON or OFF\r\n",
    "SIDECAR INVALIDATE": b"-ERR wrong number of arguments for 'sidecar|invalidate' command\r\n",
    "SIDECAR DELETE": b"-ERR wrong number of arguments for 'sidecar|delete' command\r\n",
    "SIDECAR DELETE a b": b"-ERR SIDECAR DELETE takes MATCH <pattern> [<pattern> ...] [COUNT <n>]\r\n",
    "SIDECAR DELETE MATCH a COUNT": b"-ERR SIDECAR DELETE takes MATCH <pattern> [<pattern> ...] [COUNT <n>]\r\n",
    "SIDECAR DELETE MATCH a COUNT 0": b"-ERR SIDECAR DELETE takes COUNT <n> of 1 to 10000\r\n",
    "SIDECAR DELETE MATCH a LIMIT 5": b"-ERR SIDECAR DELETE takes MATCH <pattern> [<pattern> ...] [COUNT <n>]\r\n",
    "SIDECAR FLUSH all": b"-ERR wrong number of arguments for 'sidecar|flush' command\r\n",
    "sidecar stats x": b"-ERR wrong number of arguments for 'sidecar|stats' command\r\n",
    "SIDECAR HELP x": b"-ERR wrong number of arguments for 'sidecar|help' command\r\n",
}
INTEGERS = [
    "tier_hits", "tier_misses", "tier_coalesced", "tier_passed", "tier_entries", "tier_bytes", "tier_max_memory", "tier_fills", "tier_evictions", "tier_expirations", "tier_invalidations", "tier_overwritten", "tier_pushes",
    "invalidation_lag_p50_us", "invalidation_lag_p99_us", "invalidation_lag_max_us", "invalidation_lag_samples", "invalidation_lag_lost",
]  # fmt: skip
RATES = ["tier_hit_rate", "tier_pushes_per_fill"]


def hot(wire: Wire, key: str) -> None:
    for _ in range(3):
        wire.ask("GET", key)


class TestPatterns:
    @both_protocols
    def test_invalidate_match_drops_what_matches_and_nothing_else(self, proxy: Process, protocol: int) -> None:
        names = [f"user:{n}:name" for n in range(700)] + ["user:1:mail", "agent:1:name", "match"]
        set_up(proxy, [f"SET {name} 1" for name in names] + ["SADD user:s:name x"])
        with Wire(proxy.port, protocol) as wire:
            wire.line("SIDECAR FLUSH")
            for name in names:
                hot(wire, name)
            for _ in range(3):
                wire.ask("SINTER", "user:s:name", "agent:2:x")
            entries = number(proxy, "tier_entries")
            each = entries // 704  # one for each protocol that has been in use
            assert entries == 704 * each
            dropped = wire.ask("SIDECAR", "INVALIDATE", "MATCH", "user:*:name", "ag[a-f]nt:*")
            assert dropped == b":702\r\n", "reads, in however many protocols they are kept"
            assert number(proxy, "tier_entries") == 2 * each
            assert wire.ask("SIDECAR", "INVALIDATE", "match", "user:1:m?il") == b":1\r\n"
            assert wire.ask("SIDECAR", "INVALIDATE", "match").startswith(b"-ERR wrong number of arguments"), "not a key"
            assert wire.ask("GET", "user:5:name") == b"$1\r\n1\r\n"

    def test_what_is_under_way_is_not_kept(self, proxy: Process) -> None:
        """A read that Redis answers before the invalidation but whose reply comes after it: next time, anew."""
        set_up(proxy, ["SET user:1 old"])
        with Wire(proxy.port, 2) as wire:
            wire.ask("GET", "user:1")
            chunks = [("GET", "user:1"), ("SIDECAR", "INVALIDATE", "MATCH", "user:*"), ("GET", "user:1")]
            replies = wire.pipeline([request(*chunk) for chunk in chunks], 3)
            assert [replies[0], replies[2]] == [b"$3\r\nold\r\n"] * 2

    @both_protocols
    def test_delete_match_deletes_and_counts(self, proxy: Process, redis: Process, protocol: int) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"api:list:{n}": 1 for n in range(2500)} | {"api:item:1": 1, "other": 2})
        with Wire(proxy.port, protocol) as wire:
            hot(wire, "api:list:7")
            assert wire.ask("SIDECAR", "DELETE", "MATCH", "api:list:*", "COUNT", "100") == b":2500\r\n"
            assert wire.ask("EXISTS", "api:list:7") == b":0\r\n"
            assert wire.ask("SIDECAR", "DELETE", "MATCH", "api:list:*") == b":0\r\n"
        assert sorted(raw.keys("*")) == [b"api:item:1", b"other"]

    def test_other_clients_go_on_while_it_deletes(self, proxy: Process, redis: Process) -> None:
        Redis(port=redis.port).mset({f"x:{n}": 1 for n in range(20_000)})
        with Wire(proxy.port, 2) as deleting, Wire(proxy.port, 2) as other:
            deleting.send("SIDECAR", "DELETE", "MATCH", "x:*", "COUNT", "10")
            for n in range(50):
                assert other.ask("SET", f"y:{n}", "1") == b"+OK\r\n"
            left = Redis(port=redis.port).dbsize()
            assert left > 50, "the deletion was still under way"
            assert deleting.read() == b":20000\r\n"


class TestTheCommand:
    @both_protocols
    def test_errors_name_what_is_wrong_and_change_nothing(self, proxy: Process, protocol: int) -> None:
        set_up(proxy, ["SET a 1"])
        with Wire(proxy.port, protocol) as wire:
            hot(wire, "a")
            for line, expected in ERRORS.items():
                assert wire.line(line) == expected
            before = number(proxy, "tier_hits")
            wire.line("GET a")
            assert number(proxy, "tier_hits") == before + 1
            assert wire.ask("SIDECAR", b"\xff\r\n*").count(b"\r\n") == 1, "one line, whatever the word is"
            assert wire.line("PING") == b"+PONG\r\n"

    @both_protocols
    def test_help_tells_all(self, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as wire:
            found = wire.line("sidecar help")
            for word in (b"BYPASS", b"FLUSH", b"INVALIDATE", b"DELETE", b"STATS", b"HELP"):
                assert b"+" + word in found

    @both_protocols
    def test_bypass(self, redis: Process, proxy: Process, protocol: int) -> None:
        set_up(proxy, ["SET a 1"])
        with Wire(proxy.port, protocol) as wire, Wire(proxy.port) as other:
            hot(wire, "a")
            assert wire.line("SIDECAR BYPASS ON") == b"+OK\r\n"
            before = number(proxy, "tier_hits")
            assert [wire.line("GET a") for _ in range(3)] == [b"$1\r\n1\r\n"] * 3
            assert ask_all(wire, ["GET a", "MGET a a", "HGETALL none"])[0] == b"$1\r\n1\r\n"
            assert number(proxy, "tier_hits") == before
            hot(other, "a")
            assert number(proxy, "tier_hits") > before, "the others are served as before"
            assert wire.line("SET a 2") == b"+OK\r\n"
            assert other.line("GET a") == b"$1\r\n2\r\n"
            assert wire.line("sidecar bypass off") == b"+OK\r\n"
            hot(wire, "a")
            before = number(proxy, "tier_hits")
            assert wire.line("GET a") == b"$1\r\n2\r\n"
            assert number(proxy, "tier_hits") == before + 1

    def test_bypass_lasts_over_select_and_hello_and_ends_with_reset(self, proxy: Process) -> None:
        set_up(proxy, ["SET a 1"])
        with Wire(proxy.port) as wire:
            hot(wire, "a")
            wire.line("SIDECAR BYPASS ON")
            for change in ("SELECT 1", "SELECT 0", "HELLO 3", "HELLO 2"):
                wire.line(change)
                before = number(proxy, "tier_hits")
                hot(wire, "a")
                assert number(proxy, "tier_hits") == before, change
            assert wire.line("RESET") == b"+RESET\r\n"
            hot(wire, "a")
            before = number(proxy, "tier_hits")
            wire.line("GET a")
            assert number(proxy, "tier_hits") == before + 1

    def test_in_one_pipeline(self, proxy: Process) -> None:
        set_up(proxy, ["SET a 1"])
        with Wire(proxy.port) as wire:
            hot(wire, "a")
            before = number(proxy, "tier_hits")
            found = ask_all(wire, ["GET a", "SIDECAR BYPASS ON", "GET a", "SIDECAR BYPASS OFF", "GET a", "SIDECAR FLUSH", "GET a"])
            assert found == [b"$1\r\n1\r\n", b"+OK\r\n"] * 3 + [b"$1\r\n1\r\n"]
            assert number(proxy, "tier_hits") == before + 2

    @both_protocols
    def test_flush_and_invalidate(self, redis: Process, proxy: Process, protocol: int) -> None:
        set_up(proxy, ["SET a 1", "SET b 2", ("SET", "odd *\r\n", "3"), "HSET h f v"])
        with Wire(proxy.port) as wire, Wire(redis.port) as direct:
            hot(wire, "a")
            hot(wire, "b")
            for _ in range(3):
                wire.line("HGETALL h")
                wire.line("HGET h f")
            assert number(proxy, "tier_entries") >= 4
            dropped = int(wire.line("SIDECAR INVALIDATE h none a")[1:-2])
            assert dropped >= 3
            before = number(proxy, "tier_hits")
            wire.line("GET b")
            assert number(proxy, "tier_hits") == before + 1
            assert wire.line("SIDECAR INVALIDATE h none a") == b":0\r\n"
            assert wire.line("SIDECAR FLUSH") == b"+OK\r\n"
            assert (number(proxy, "tier_entries"), number(proxy, "tier_bytes")) == (0, 0)
            assert direct.line("DBSIZE") == b":4\r\n", "Redis is not touched"

    def test_from_redis_py(self, proxy: Process) -> None:
        for protocol in (2, 3):
            with Redis(port=proxy.port, protocol=protocol, decode_responses=True) as client:
                assert client.execute_command("SIDECAR BYPASS", "ON") in (True, "OK", b"OK")
                assert client.execute_command("SIDECAR", "INVALIDATE", "k") == 0
                stats = client.execute_command("SIDECAR STATS")
                if isinstance(stats, list):
                    stats = dict(zip(stats[::2], stats[1::2], strict=True))
                assert stats["tracking"] == "default"
                assert isinstance(stats["tier_hits"], int)
                assert {f"pannier_{name}" for name in stats} <= info(proxy).keys()
                with pytest.raises(ResponseError, match="unknown subcommand 'NOSUCH'"):
                    client.execute_command("SIDECAR", "NOSUCH")
                assert any("BYPASS" in line for line in client.execute_command("SIDECAR HELP"))

    def test_inside_a_transaction_it_does_no_harm(self, proxy: Process) -> None:
        with Wire(proxy.port) as wire:
            found = ask_all(wire, ["MULTI", "SET a 1", "SIDECAR FLUSH", "EXEC", "GET a"])
            assert found[0] == b"+OK\r\n"
            assert len(found) == 5
            wire.line("RESET")
            assert wire.line("PING") == b"+PONG\r\n"


class TestInfo:
    def test_fields_and_their_types(self, proxy: Process) -> None:
        fields = info(proxy)
        for name in INTEGERS:
            assert fields[f"pannier_{name}"].isdigit(), name
        for name in RATES:
            assert float(fields[f"pannier_{name}"]) >= 0
        assert 0 <= float(fields["pannier_tier_hit_rate"]) <= 1
        assert fields["pannier_tracking"] == "default"
        assert fields["pannier_tracking_reason"]

    def test_redis_py_parses_it(self, proxy: Process) -> None:
        with Redis(port=proxy.port, decode_responses=True) as client:
            for fields in (client.info("sidecar"), client.info()):
                assert isinstance(fields["pannier_tier_hits"], int)
                assert isinstance(fields["pannier_tier_hit_rate"], float)

    def test_counts(self, redis: Process, proxy: Process) -> None:
        set_up(proxy, ["SET a 1"])
        with Wire(proxy.port) as wire, Wire(redis.port) as direct:
            hot(wire, "a")
            before = info(proxy)

            def grown(name: str) -> int:
                return int(info(proxy)[f"pannier_tier_{name}"]) - int(before[f"pannier_tier_{name}"])

            direct.line("SET a 2")
            until(lambda: grown("invalidations") >= 1, "the push is counted")
            assert grown("pushes") >= 1
            wire.line("GET a")
            assert grown("misses") == 1 and grown("fills") == 1
            wire.line("SET a 3")
            assert grown("overwritten") >= 1


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


class TestCanary:
    def test_it_measures_and_nobody_sees_it(self, upstream: Process, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{upstream.port}", directory, "--canary-interval", "100ms") as proxy, Wire(upstream.port) as direct, Wire(proxy.port) as wire:
            direct.line("FLUSHALL")
            direct.line("SET mine 1")
            until(lambda: number(proxy, "invalidation_lag_samples") >= 1, "it has begun")
            looks, started = 0, number(proxy, "invalidation_lag_samples")
            began = time.monotonic()
            while number(proxy, "invalidation_lag_samples") < started + 4:
                assert ask_all(direct, ["DBSIZE", "KEYS *", "SCAN 0"]) == [b":1\r\n", b"*1\r\n$4\r\nmine\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$4\r\nmine\r\n"]
                assert wire.line("KEYS *") == b"*1\r\n$4\r\nmine\r\n"
                looks += 1
                assert time.monotonic() < began + 5
            assert looks > 20
            p50, p99, longest = (number(proxy, f"invalidation_lag_{name}_us") for name in ("p50", "p99", "max"))
            assert 0 < p50 <= p99 <= longest < 5_000_000
            assert number(proxy, "invalidation_lag_lost") == 0

    def test_a_user_who_may_not_write(self, upstream: Process, directory: Path) -> None:
        with Wire(upstream.port) as direct:
            direct.line("FLUSHALL")
            direct.line("SET a 1")
            assert direct.ask("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-@write") == b"+OK\r\n"
        with pannier(f"redis://reader:pw@127.0.0.1:{upstream.port}", directory, "--canary-interval", "100ms") as proxy:
            self.measures_nothing(proxy, "NOPERM")

    def test_a_read_only_replica(self, upstream: Process, redis_binary: str, directory: Path) -> None:
        with Wire(upstream.port) as direct:
            direct.line("SET a 1")
        with redis_server(redis_binary, directory, "--replicaof", "127.0.0.1", str(upstream.port)) as replica:
            with Wire(replica.port) as wire:
                until(lambda: wire.line("GET a") == b"$1\r\n1\r\n", "the replica is in step")
            with pannier(f"redis://127.0.0.1:{replica.port}", directory, "--canary-interval", "100ms") as proxy:
                self.measures_nothing(proxy, "READONLY")
                with Wire(proxy.port) as wire, Wire(upstream.port) as direct:
                    direct.line("SET a 2")
                    until(lambda: wire.line("GET a") == b"$1\r\n2\r\n", "a write of the master's is seen through the replica")

    @staticmethod
    def measures_nothing(proxy: Process, why: str) -> None:
        until(lambda: "the lag of invalidations cannot be measured" in proxy.output, "it says so", 5.0)
        assert why in proxy.output
        with Wire(proxy.port) as wire:
            began = time.monotonic()
            while time.monotonic() < began + 0.5:
                assert wire.line("GET a") == b"$1\r\n1\r\n"
                assert wire.line("SET other 9")[:1] == b"-"
            before = number(proxy, "tier_hits")
            wire.line("GET a")
            assert number(proxy, "tier_hits") >= before
        assert before > 0
        assert [number(proxy, f"invalidation_lag_{name}") for name in ("samples", "p50_us", "max_us", "lost")] == [0] * 4
        assert proxy.output.count("cannot be measured") == 1, "said once"

    def test_never(self, upstream: Process, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{upstream.port}", directory, "--canary-interval", "0") as proxy:
            assert int(info(proxy).get("pannier_invalidation_lag_samples", "0")) == 0
            with Wire(proxy.port) as wire:
                assert "tier_hits" in text(wire.line("INFO sidecar"))
