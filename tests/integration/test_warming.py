"""Memory that is warm from the start, against real servers: what is there, for whom, and that it stays true."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import Redis

from tests.harness import ROOT, Process, free_port, pannier, redis_server
from tests.integration.wire import Wire, until

protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])
HEADER = 'pannier warm_state 1\n[space "" protocols 2 3]\n'


# --- for all tests of warming


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


def stats(proxy: Process, *login: str) -> dict[str, Any]:
    """SIDECAR STATS, as a client of RESP2 that asks Redis nothing."""
    with Wire(proxy.port) as wire:
        if login:
            assert wire.ask("AUTH", *login) == b"+OK\r\n"
        reader = hiredis.Reader(encoding="utf-8")
        reader.feed(wire.ask("SIDECAR", "STATS"))
    flat = reader.gets()
    return dict(zip(flat[::2], flat[1::2], strict=True))


def warm(proxy: Process, *login: str) -> dict[str, Any]:
    """The figures once warming has ended."""
    until(lambda: stats(proxy, *login)["warm_status"] in ("done", "failed"), "warming ends", 30)
    return stats(proxy, *login)


def settled(proxy: Process) -> Process:
    """Once everything is connected: what is kept from now on is not dropped again."""
    until(lambda: stats(proxy).get("bus_status", "up") == "up", "the eviction bus is heard")
    return proxy


@contextlib.contextmanager
def from_memory(proxy: Process, *login: str) -> Iterator[None]:
    """All that is read in the context comes from memory."""
    before = stats(proxy, *login)
    yield
    after = stats(proxy, *login)
    assert (after["tier_misses"], after["tier_passed"]) == (before["tier_misses"], before["tier_passed"])
    assert after["tier_hits"] > before["tier_hits"]


def failing(*options: str) -> str:
    """What a Pannier says that does not start."""
    command = [sys.executable, "-m", "proxy", "run", "--upstream", f"redis://127.0.0.1:{free_port()}", "--listen", "127.0.0.1:0", "--admin-listen", "off", *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    return run.stderr


def test_a_wrong_file_ends_the_start_with_one_line_beside_a_bundled_server_too() -> None:
    command = [sys.executable, "-m", "proxy", "run", "--listen", "127.0.0.1:0", "--warm-file", "/nosuch/keys"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "/nosuch/keys" in run.stderr, run.stderr


class TestPatterns:
    def test_of_every_type(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"org:{n}": n for n in range(300)} | {"other": 1})
        raw.hset("org:h", mapping={"a": 1})
        raw.sadd("org:s", "x")
        raw.rpush("org:l", 1, 2)
        raw.zadd("org:z", {"a": 1.5})
        raw.xadd("org:x", {"a": 1})
        options = ["--warm", "org:*,HLEN org:h*"]
        with pannier(url(redis), directory, *options) as proxy:
            found = warm(proxy)
            assert (found["warm_keys"], found["warm_of"], found["warm_status"]) == (305, 306, "done")
            assert "(no request is known for the type stream)" not in proxy.output
            assert "warmed org:*: 304 of 305 keys in " in proxy.output
            assert "; 1 not kept: no request is known for the type stream" in proxy.output
            assert "warmed HLEN org:h*: 1 of 1 keys in " in proxy.output
            client = Redis(port=proxy.port, protocol=2)
            with from_memory(proxy):
                assert [client.get(f"org:{n}") for n in range(300)] == [b"%d" % n for n in range(300)]
                assert client.hgetall("org:h") == {b"a": b"1"} and client.hlen("org:h") == 1
                assert client.smembers("org:s") in ({b"x"}, [b"x"])
                assert client.lrange("org:l", 0, -1) == [b"1", b"2"]
                assert client.zrange("org:z", 0, -1, withscores=True)[0][0] == b"a"

    def test_it_is_not_ready_before(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(60_000)})
        with pannier(url(redis), directory, "--warm", "org:*") as proxy, Wire(proxy.port, 3) as wire:
            assert b"$5\r\nready\r\n$2\r\nno\r\n" in (said := wire.line("SIDECAR HEALTH"))
            assert b"memory is still being warmed" in said
            assert wire.ask("GET", "org:1") == b"$1\r\n1\r\n", "clients are served meanwhile"
            until(lambda: b"$5\r\nready\r\n$3\r\nyes\r\n" in wire.line("SIDECAR HEALTH"), "it is ready", 60.0)
            assert stats(proxy)["warm_status"] == "done"

    def test_no_more_than_the_limit(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(3000)})
        # With the eviction bus: when it begins to be heard, all is dropped. So that must not come after.
        options = ["--warm-limit", "1234", "--broadcast", "auto"]
        with pannier(url(redis), directory, "--warm", "org:*", *options) as proxy:
            assert (found := warm(proxy))["warm_keys"] == found["warm_of"] == found["tier_entries"] == 1234

    def test_no_more_than_there_is_memory(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"org:{n}": "x" * 1000 for n in range(3000)})
        with pannier(url(redis), directory, "--warm", "org:*", "--max-memory", "1mb") as proxy:
            found = warm(proxy)
            assert found["tier_evictions"] == 0 and 500 < found["warm_keys"] == found["tier_entries"] < 1000
            assert "not kept: memory is full" in proxy.output

    def test_for_clients_of_the_other_protocol_too_as_soon_as_one_comes(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(500)})
        with pannier(url(redis), directory, "--warm", "org:*") as proxy, Wire(proxy.port, 3) as late:
            warm(proxy)
            late.line("GET nosuch")
            until(lambda: "memory for RESP3 clients" in proxy.output or stats(proxy)["tier_entries"] == 1000, "RESP3 is warm")
            with from_memory(proxy):
                assert late.ask("GET", "org:7") == b"$1\r\n7\r\n"

    def test_what_is_written_wrong_is_refused_with_its_place(self, directory: Path) -> None:
        assert failing("--warm", "org:*,SET a b") == (
            "pannier: warm: 'SET a b' asks for 'SET', which is no read whose reply is kept; give one such as GET\n"
        )
        path = directory / "keys.txt"
        path.write_text("org:1\n\n# these:\nSINTER a* b\n")
        assert failing("--warm-file", str(path)) == (
            f"pannier: warm_file: {path}:4: 'SINTER a* b' has a pattern among the several keys of SINTER; give the keys\n"
        )
        path.write_text("org:1\nGET a b c\n")
        assert failing("--warm-file", str(path)) == f"pannier: warm_file: {path}:2: 'GET a b c' gives GET 3 arguments; it takes 1\n"
        assert "cannot be read (No such file or directory)" in failing("--warm-file", str(directory / "nosuch"))
        assert "cannot be read (Is a directory)" in failing("--warm-file", str(directory))

    def test_a_terminal_shows_how_far_it_is(self, redis: Process) -> None:
        """And once it is done, the line is gone, though there was more than the limit allowed."""
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(50_000)})
        options = ["--listen", "127.0.0.1:0", "--admin-listen", "off", "--warm", "org:*", "--warm-limit", "40000"]
        command = [sys.executable, "-m", "proxy", "run", "--upstream", url(redis), *options]
        parent, child = pty.openpty()
        said = b""
        with subprocess.Popen(command, stdout=child, stderr=child, cwd=ROOT) as work:
            try:
                while b"warmed 40,000 of" not in said:
                    assert select.select([parent], [], [], 30)[0], said
                    said += os.read(parent, 1 << 16)
                while select.select([parent], [], [], 0.5)[0]:  # five times as long as until it was drawn again
                    said += os.read(parent, 1 << 16)
            finally:
                work.terminate()
        os.close(parent)
        os.close(child)
        assert b"%" not in said.rpartition(b"warmed 40,000 of 40,000 keys")[2]
        assert re.search(rb"\r\x1b\[K\[#* *\] +\d+%  warming org:\*: [\d,]+ of [\d,]+ keys in \d+\.\d seconds", said)

    def test_what_several_sources_name_counts_once_in_all(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"org:{n}": n for n in range(300)})
        raw.xadd("org:x", {"a": 1})
        state = directory / "hot"
        state.write_text(HEADER + "".join(f"GET org:{n}\n" for n in range(100)))
        options = ["--warm-state", str(state), "--warm", "org:*,org:[x1]*"]
        with pannier(url(redis), directory, *options) as proxy:
            found = warm(proxy)
            assert (found["warm_keys"], found["warm_of"]) == (300, 301)
            for said in (f"{state}: 100 of 100", "org:*: 300 of 301", "org:[x1]*: 111 of 112", "300 of 301"):
                assert f"warmed {said} keys in " in proxy.output

    def test_off_nothing_is_said_of_it(self, redis: Process, directory: Path) -> None:
        with pannier(url(redis), directory) as proxy:
            found = stats(proxy)
            assert (found["warm_status"], found["warm_ready"], found["warm_of"]) == ("off", 1, 0)
            assert "warm" not in proxy.output


class TestAFile:
    def test_of_keys_patterns_and_reads(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"a b": 1, b"\xff\r\n": 2, "c*": 3, "c1": 4, "list:1": 5, "list:2": 6})
        raw.zadd("board", {"x": 1, "y": 2})
        path = directory / "keys.txt"
        path.write_bytes(b'# hot\n"a b"\n"\\xff\\x0d\\x0a"\r\nc\\*\nlist:*\nZRANGE board 0 0\nget c1\nnosuch\n')
        with pannier(url(redis), directory, "--warm-file", str(path)) as proxy, Wire(proxy.port) as wire:
            found = warm(proxy)
            assert (found["warm_keys"], found["warm_of"]) == (7, 8)
            assert f"warmed warm_file {path}: 7 of 8 keys in " in proxy.output and "no such key" in proxy.output
            with from_memory(proxy):
                assert wire.ask("GET", b"\xff\r\n") == b"$1\r\n2\r\n"
                assert wire.ask("GET", "a b") == b"$1\r\n1\r\n"
                assert wire.ask("GET", "c*") == b"$1\r\n3\r\n"
                assert wire.ask("GET", "list:2") == b"$1\r\n6\r\n"
                assert wire.ask("get", "c1") == b"$1\r\n4\r\n"
                assert wire.ask("ZRANGE", "board", 0, 0) == b"*1\r\n$1\r\nx\r\n"


@pytest.fixture
def own_redis(redis_binary: str, directory: Path) -> Iterator[Process]:
    """A Redis for tests that count commands: at `redis`, the canary of its pannier sets a key now and then."""
    with redis_server(redis_binary, directory) as process:
        yield process


class TestTheStateFile:
    @protocols
    def test_what_was_hot_is_warm_after_a_restart(self, redis: Process, directory: Path, protocol: int) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"a": 1, b"\x00 \xff": 2})
        raw.hset("h", "f", "v")
        path = directory / "state"
        options = ["--warm-state", str(path), "--admit-after", "1"]
        with pannier(url(redis), directory, *options) as proxy, Wire(settled(proxy).port, protocol) as wire:
            for command in (("GET", "a"), ("GET", b"\x00 \xff"), ("HGET", "h", "f"), ("GET", "nosuch")):
                wire.ask(*command)
            until(lambda: stats(proxy)["tier_entries"] >= 4, "all are kept")
            assert proxy.stop() == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text()
        assert text.startswith("pannier warm_state 1\n[space ") and "HGET h f\n" in text and 'GET "\\x00 \\xff"\n' in text
        assert sorted(directory.glob("state*")) == [path], "nothing else is left behind"
        raw.set("a", "newer")
        with pannier(url(redis), directory, *options) as proxy, Wire(proxy.port, protocol) as wire:
            assert warm(proxy)["warm_keys"] == 4
            assert f"warmed {path}: 4 of 4 keys in " in proxy.output
            with from_memory(proxy):
                assert wire.ask("GET", "a") == b"$5\r\nnewer\r\n"
                assert wire.ask("GET", b"\x00 \xff") == b"$1\r\n2\r\n"
                assert wire.ask("HGET", "h", "f") == b"$1\r\nv\r\n"

    def test_nothing_but_reads_is_ever_sent(self, own_redis: Process, directory: Path) -> None:
        raw = Redis(port=own_redis.port)
        raw.mset({"a": 1, "b": 2})
        path = directory / "state"
        lines = ["GET a", "SET a evil", "FLUSHALL", "flushall", "EVAL \"redis.call('flushall')\" 0", "GETDEL b", '"GET', "GET b"]
        lines += ["MULTI", "GETEX b EX 1", "CONFIG SET maxmemory 1", 'GET "b\\r\\nFLUSHALL"', "GET", "SORT a STORE b", "GET a b"]
        path.write_text(HEADER + "\n".join(lines) + "\n")
        raw.config_resetstat()
        with pannier(url(own_redis), directory, "--warm-state", str(path), "--canary-interval", "0") as proxy:
            assert warm(proxy)["warm_status"] == "done"
            for number in (4, 5, 6, 7, 8):
                assert f"warm_state: {path}:{number} is no read that is kept; left out" in proxy.output
            assert f"warm_state: {path}: 5 more lines are wrong" in proxy.output
        assert raw.mget("a", "b") == [b"1", b"2"] and raw.dbsize() == 2
        asked = {name.removeprefix("cmdstat_") for name in raw.info("commandstats")}
        assert not asked & {"set", "flushall", "eval", "getdel", "getex", "config|set", "sort", "multi"}
        assert raw.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"] >= 2

    def test_a_broken_one_is_told_and_left_alone(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).set("a", 1)
        for content, said in ((b"\x00\xff", ":1 is not 'pannier warm_state 1'"), (b"", ":1 is not 'pannier warm_state 1'")):
            path = directory / "state"
            path.write_bytes(content)
            with pannier(url(redis), directory, "--warm-state", str(path)) as proxy:
                assert warm(proxy)["warm_status"] == "done"
                assert f"warm_state: {path}{said}" in proxy.output
                proxy.stop()
            assert path.read_bytes() == content, "nothing was hot: the file stays as it was"

    def test_one_that_cannot_be_read_or_written_stops_nobody(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).set("a", 1)
        path = directory / "nosuch" / "state"
        options = ["--warm-state", str(path), "--admit-after", "1"]
        with pannier(url(redis), directory, *options) as proxy, Wire(settled(proxy).port) as wire:
            wire.ask("GET", "a")
            assert proxy.stop() == 0
            assert f"warm_state: '{path}' cannot be written (No such file or directory)" in proxy.output
        with pannier(url(redis), directory, "--warm-state", str(directory)) as proxy:
            warm(proxy)
            assert "cannot be read (Is a directory)" in proxy.output

    def test_it_is_bounded(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"key:{n:05}": n for n in range(2000)})
        path = directory / "state"
        options = ["--warm-state", str(path), "--warm-state-size", "4kb"]
        with pannier(url(redis), directory, "--warm", "key:*", *options) as proxy, Wire(proxy.port) as wire:
            warm(proxy)
            for n in range(20):
                wire.ask("GET", f"key:{n:05}")
            proxy.stop()
        assert 3000 < path.stat().st_size <= 4096
        path.write_text(path.read_text() + "GET x\n" * 5000)
        with pannier(url(redis), directory, *options) as proxy:
            assert 0 < warm(proxy)["warm_of"] < 1000
            assert "only the first 4096 bytes count (warm_state_size)" in proxy.output

    def test_stopped_while_it_warms_it_keeps_what_it_had(self, redis: Process, directory: Path) -> None:
        path = directory / "state"
        path.write_text(HEADER + "".join(f"GET key:{n}\n" for n in range(60_000)))
        before = path.read_bytes()
        with pannier(url(redis), directory, "--warm-state", str(path)) as proxy:
            until(lambda: stats(proxy)["warm_keys"], "it is under way")
            assert stats(proxy)["warm_status"] == "running"
            proxy.stop()
        assert path.read_bytes() == before

    def test_killed_it_leaves_what_was_there(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).set("a", 1)
        path = directory / "state"
        path.write_text(HEADER + "GET a\n")
        with pannier(url(redis), directory, "--warm-state", str(path)) as proxy:
            warm(proxy)
            proxy.kill()
        assert path.read_text() == HEADER + "GET a\n"


class TestRedisAway:
    def test_readiness_waits_no_longer_than_the_timeout(self, any_redis_binary: str, directory: Path) -> None:
        options = ["--warm", "org:*", "--warm-timeout", "2s", "--connect-timeout", "300ms", "--reconnect-max", "100ms"]
        with redis_server(any_redis_binary, directory) as redis:
            Redis(port=redis.port).mset({f"org:{n}": n for n in range(100)})
            redis.signal(signal.SIGSTOP)
            with pannier(url(redis), directory, *options) as proxy, Wire(proxy.port) as wire:
                found = stats(proxy)
                assert found["warm_status"] == "waiting"
                assert found["warm_ready"] == 0 or float(found["warm_seconds"]) >= 2
                assert wire.ask("GET", "org:1").startswith(b"-ERR pannier: upstream"), "clients are answered"
                until(lambda: stats(proxy)["warm_ready"], "readiness gives up")
                assert float(stats(proxy)["warm_seconds"]) >= 2
                until(lambda: "ready before memory is warm: 0 of 0 keys in" in proxy.output, "it is said")
                redis.signal(signal.SIGCONT)
                assert warm(proxy)["warm_keys"] == 100, "it goes on, however late"
                with from_memory(proxy):
                    assert wire.ask("GET", "org:1") == b"$1\r\n1\r\n"

    def test_a_connection_lost_meanwhile_everything_is_fetched_again(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"org:{n}": n for n in range(20_000)})
        with pannier(url(redis), directory, "--warm", "org:*", "--reconnect-max", "50ms") as proxy:
            until(lambda: stats(proxy)["warm_of"] > 1000, "it is under way")
            raw.client_kill_filter(_type="normal", skipme=True)
            found = warm(proxy)
            assert found["warm_keys"] == found["tier_entries"] == 20_000

    def test_without_tracking_nothing_is_waited_for(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--rename-command", "CLIENT", "") as redis:
            with pannier(url(redis), directory, "--warm", "org:*") as proxy:
                assert (found := warm(proxy))["warm_status"] == "failed" and found["warm_ready"] == 1
                assert "nothing is kept in memory" in proxy.output
            with pannier(url(redis), directory, "--warm", "org:*", "--tracking", "off") as proxy:
                assert "nothing is warmed: nothing is kept in memory, as tracking is off" in proxy.output

    def test_where_redis_wants_a_password_that_only_clients_have(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--requirepass", "pw") as redis:
            Redis(port=redis.port, password="pw").set("org:1", 1)
            with pannier(url(redis), directory, "--warm", "org:*") as proxy:
                found = warm(proxy, "pw")
                assert (found["warm_status"], found["tier_entries"]) == ("failed", 0)


class TestItStaysTrue:
    @pytest.mark.parametrize("tracking", ["default", "bcast"])
    def test_what_is_written_meanwhile_is_never_stale_afterwards(self, redis: Process, directory: Path, tracking: str) -> None:
        keys = [f"k:{n}" for n in range(6000)]
        raw = Redis(port=redis.port, decode_responses=True)
        raw.mset(dict.fromkeys(keys, 0))
        stop = threading.Event()

        def write(port: int) -> None:
            with contextlib.closing(Redis(port=port)) as client:
                while not stop.is_set():
                    pipeline = client.pipeline(transaction=False)
                    for key in random.sample(keys, 50):
                        pipeline.incr(key)
                    pipeline.execute()

        with pannier(url(redis), directory) as other:
            threads = [threading.Thread(target=write, args=(port,)) for port in (other.port, redis.port)]
            for thread in threads:
                thread.start()
            try:
                with pannier(url(redis), directory, "--warm", "k:*", "--tracking", tracking) as proxy:
                    warm(proxy)
                    stop.set()
                    for thread in threads:
                        thread.join()
                    client = Redis(port=proxy.port, decode_responses=True, protocol=2)
                    before = stats(proxy)["tier_hits"]
                    until(lambda: [client.get(key) for key in keys] == raw.mget(keys), "every change is seen", 10)
                    assert stats(proxy)["tier_hits"] > before, "not because all was gone"
            finally:
                stop.set()

    def test_own_writes_too(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"k:{n}": 0 for n in range(20_000)})
        with pannier(url(redis), directory, "--warm", "k:*") as proxy, Wire(proxy.port) as wire:
            n = 0
            while stats(proxy)["warm_status"] in ("waiting", "running"):
                for _ in range(100):
                    key = f"k:{random.randrange(20_000)}"
                    n += 1
                    assert wire.ask("SET", key, n) == b"+OK\r\n"
                    assert wire.ask("GET", key) == b"$%d\r\n%d\r\n" % (len(str(n)), n)


class TestForWhom:
    def test_the_namespace_of_the_first_listener(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"a:org:1": "a", "b:org:1": "b", "org:1": "c", "a:org:2": "d"})
        port = free_port()
        with pannier(url(redis), directory, "--warm", "org:*", "--listen", f"127.0.0.1:{port}", "--namespace", "a") as proxy:
            assert warm(proxy)["warm_keys"] == 2
            with Wire(proxy.port) as wire, from_memory(proxy):
                assert [wire.ask("GET", f"org:{n}") for n in (1, 2)] == [b"$1\r\na\r\n", b"$1\r\nd\r\n"]

    def test_reads_of_every_namespace_are_kept_over_a_restart(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"a:x": "a", "x": "plain"})
        path, port = directory / "state", free_port()
        options = ["--listen", f"127.0.0.1:{port}?namespace=a", "--warm-state", str(path), "--admit-after", "1"]
        with pannier(url(redis), directory, *options) as proxy, Wire(settled(proxy).port) as plain, Wire(port) as named:
            until(lambda: named.ask("GET", "x") and plain.ask("GET", "x") and stats(proxy)["tier_entries"] == 2, "both are kept")
            assert (plain.ask("GET", "x"), named.ask("GET", "x")) == (b"$5\r\nplain\r\n", b"$1\r\na\r\n")
            proxy.stop()
        assert '[space "" protocols 2]\nGET x\n' in path.read_text() and '[space "a" protocols 2]\nGET x\n' in path.read_text()
        with pannier(url(redis), directory, *options) as proxy:
            assert warm(proxy)["warm_keys"] == 2
            with Wire(proxy.port) as plain, Wire(port) as named, from_memory(proxy):
                assert (plain.ask("GET", "x"), named.ask("GET", "x")) == (b"$5\r\nplain\r\n", b"$1\r\na\r\n")
        with pannier(url(redis), directory, "--warm-state", str(path)) as proxy:
            assert warm(proxy)["warm_keys"] == 1
            assert "there is no space 'a' any more" in proxy.output

    def test_tenants_have_theirs_and_nobody_else_s(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"acme:x": "acme's", "globex:x": "globex's"})
        config, path = directory / "p.toml", directory / "state"
        config.write_text('[tenants.acme]\npassword = "one"\n[tenants.globex]\npassword = "two"\n')
        options = ["--config", str(config), "--warm-state", str(path), "--admit-after", "1"]
        with pannier(url(redis), directory, *options) as proxy:
            client = Redis(port=proxy.port, username="acme", password="one", protocol=2)
            until(lambda: client.get("x") and stats(proxy, "acme", "one")["tier_hits"] > 2, "it is kept")
            assert client.get("x") == b"acme's"
            client.close()
            proxy.stop()
        assert 'space "acme"' in path.read_text() and "globex" not in path.read_text()
        with pannier(url(redis), directory, *options) as proxy:
            until(lambda: f"warmed {path} of acme: 1 of 1 keys" in proxy.output, "acme's is warm")
            with from_memory(proxy, "acme", "one"):
                assert Redis(port=proxy.port, username="acme", password="one", protocol=2).get("x") == b"acme's"
            assert stats(proxy, "globex", "two")["tier_entries"] == 0
            other = Redis(port=proxy.port, username="globex", password="two")
            assert other.get("x") == b"globex's"
        assert "warm, warm_file: wrong beside tenants" in failing("--config", str(config), "--warm", "x")

    def test_what_another_user_read_is_not_written_down(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"secret": "s", "open": "o"})
        raw.acl_setuser("alice", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"])
        path = directory / "state"
        try:
            with pannier(url(redis), directory, "--warm-state", str(path), "--admit-after", "1") as proxy:
                settled(proxy)
                alice, anyone = Redis(port=proxy.port, username="alice", password="pw"), Redis(port=proxy.port)
                until(lambda: alice.get("secret") and anyone.get("open") and stats(proxy)["tier_entries"] >= 2, "both are kept")
                proxy.stop()
        finally:
            raw.acl_deluser("alice")
        assert "GET open" in path.read_text() and "secret" not in path.read_text()


class TestRefreshing:
    def test_the_hottest_are_fetched_again_though_nobody_asks(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(100)})
        options = ["--refresh-hottest", "10", "--refresh-interval", "100ms", "--l1-ttl", "60s", "--warm", "org:*"]
        with pannier(url(redis), directory, *options) as proxy, Wire(proxy.port) as wire:
            warm(proxy)
            for n in range(10):
                wire.ask("GET", f"org:{n}")
            before = stats(proxy)
            until(lambda: stats(proxy)["tier_fills"] >= before["tier_fills"] + 50, "five rounds")
            after = stats(proxy)
            assert after["tier_misses"] == before["tier_misses"] and after["tier_entries"] == before["tier_entries"]
            with from_memory(proxy):
                assert wire.ask("GET", "org:3") == b"$1\r\n3\r\n"

    def test_they_outlive_l1_ttl(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(10)})
        options = ["--refresh-hottest", "10", "--refresh-interval", "100ms", "--l1-ttl", "3s", "--warm", "org:*"]
        with pannier(url(redis), directory, *options) as proxy:
            warm(proxy)
            before = stats(proxy)["tier_fills"]
            until(lambda: stats(proxy)["tier_fills"] >= before + 10 * 40, "more than l1_ttl has passed", 60)
            assert stats(proxy)["tier_entries"] >= 10

    def test_too_rare_to_help_is_said(self, redis: Process, directory: Path) -> None:
        with pannier(url(redis), directory, "--refresh-hottest", "10") as proxy:
            until(lambda: "refresh_interval is not shorter than l1_ttl" in proxy.output, "it is said")


ERRORS = {
    ("SIDECAR", "WARM"): b"-ERR wrong number of arguments for 'sidecar|warm' command\r\n",
    ("SIDECAR", "WARM", "MATCH"): b"-ERR wrong number of arguments for 'sidecar|warm' command\r\n",
    ("SIDECAR", "WARM", "ALL", "x"): "-ERR SIDECAR WARM takes MATCH <pattern> …, KEYS <key> … or LINES <line> …\r\n".encode(),
    ("SIDECAR", "WARM", "MATCH", "a", "LIMIT", "0"): b"-ERR SIDECAR WARM takes LIMIT <n> of 1 to 10000000\r\n",
    ("SIDECAR", "WARM", "MATCH", "a", "LIMIT", "x"): b"-ERR SIDECAR WARM takes LIMIT <n> of 1 to 10000000\r\n",
    ("SIDECAR", "WARM", "MATCH", "a" * 4097): b"-ERR SIDECAR WARM MATCH takes patterns of 4096 bytes together\r\n",
    ("SIDECAR", "WARM", "LINES", "DEL a"): b"-ERR SIDECAR WARM LINES: 'DEL a' asks for 'DEL', which is no read whose reply is kept; give one such as GET\r\n",
}


class TestSidecarWarm:
    @protocols
    def test_errors(self, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as wire:
            for command, expected in ERRORS.items():
                assert wire.ask(*command) == expected

    @protocols
    def test_match_keys_and_lines(self, proxy: Process, redis: Process, protocol: int) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"org:{n}": n for n in range(50)} | {"a*": 1, "ab": 2, "big": "x" * (2 << 20)})
        raw.hset("h", "f", "v")
        client = Redis(port=proxy.port, protocol=protocol, decode_responses=True)

        def ask(*arguments: str | int) -> tuple[int, int, int, int, dict[str, int]]:
            found = client.execute_command("SIDECAR", "WARM", *arguments)
            if isinstance(found, list):
                found = dict(zip(found[::2], found[1::2], strict=True))
            reasons = found["reasons"]
            if isinstance(reasons, list):
                reasons = dict(zip(reasons[::2], reasons[1::2], strict=True))
            assert float(found["seconds"]) >= 0
            return found["warmed"], found["of"], found["not_kept"], found["failed"], reasons

        client.execute_command("SIDECAR", "FLUSH")
        assert ask("MATCH", "org:*", "LIMIT", 20) == (20, 20, 0, 0, {})
        assert ask("MATCH", "org:*", "a[*]", "h") == (52, 52, 0, 0, {})
        assert ask("KEYS", "a*", "nosuch", "big") == (1, 3, 2, 0, {"no such key": 1, "too long": 1})
        assert ask("LINES", "HGET h f", "GET h", "LRANGE org:[12] 0 -1") == (
            1, 4, 0, 3, {"WRONGTYPE Operation against a key holding the wrong kind of value": 3},
        )  # fmt: skip
        with from_memory(proxy):
            assert client.get("org:49") == "49" and client.hget("h", "f") == "v" and client.get("a*") == "1"

    def test_in_a_client_s_own_database_and_user(self, proxy: Process, redis: Process) -> None:
        raw = Redis(port=redis.port, db=1)
        raw.set("x", "in 1")
        with Wire(proxy.port) as wire:
            wire.ask("SELECT", 1)
            assert b"$6\r\nwarmed\r\n:1\r\n" in wire.ask("SIDECAR", "WARM", "KEYS", "x")
            with from_memory(proxy):
                assert wire.ask("GET", "x") == b"$4\r\nin 1\r\n"
        with Wire(proxy.port) as wire:
            assert wire.ask("GET", "x") == b"$-1\r\n"

    def test_before_a_client_has_authenticated(self, any_redis_binary: str, directory: Path) -> None:
        config = directory / "p.toml"
        config.write_text('[tenants.acme]\npassword = "one"\n')
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(url(redis), directory, "--config", str(config)) as proxy,
            Wire(proxy.port) as wire,
        ):
            assert wire.ask("SIDECAR", "WARM", "KEYS", "x").startswith(b"-NOAUTH")

    def test_while_redis_is_away(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis, pannier(url(redis), directory) as proxy, Wire(proxy.port) as wire:
            redis.kill()
            until(lambda: wire.ask("GET", "x").startswith(b"-"), "the loss is noticed")
            assert wire.ask("SIDECAR", "WARM", "KEYS", "x").startswith(b"-ERR pannier: upstream")

    def test_without_a_tier(self, redis: Process, directory: Path) -> None:
        with pannier(url(redis), directory, "--tracking", "off") as proxy, Wire(proxy.port) as wire:
            assert wire.ask("SIDECAR", "WARM", "KEYS", "x") == b"-ERR pannier: nothing is kept in memory: tracking is off\r\n"

    def test_a_client_that_leaves_ends_it_and_harms_nobody(self, proxy: Process, redis: Process) -> None:
        Redis(port=redis.port).mset({f"k:{n}": n for n in range(20_000)})
        with Wire(proxy.port) as leaving:
            leaving.send("SIDECAR", "WARM", "MATCH", "k:*")
            until(lambda: stats(proxy)["tier_entries"] > 500, "it is under way")
        with Wire(proxy.port) as wire:
            assert wire.ask("GET", "k:7") == b"$1\r\n7\r\n"
