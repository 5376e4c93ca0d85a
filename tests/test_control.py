"""`pannier invalidate`, `delete`, `sweep`, `warm`: what they do, say, and how they end."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from proxy import cli, control
from tests.harness import ROOT, Process, free_port, pannier, redis_server, wait_until


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


def to(process: Process) -> list[str]:
    return ["--to", f"redis://127.0.0.1:{process.port}"]


def on_a_terminal(*arguments: str) -> bytes:
    """What a command shows on the terminal that is its standard error output."""
    parent, child = pty.openpty()
    try:
        command = [sys.executable, "-m", "proxy", *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=child, cwd=ROOT) as work:
            shown = b""
            while work.poll() is None or select.select([parent], [], [], 0)[0]:
                if select.select([parent], [], [], 0.05)[0]:
                    shown += os.read(parent, 1 << 16)
        assert work.returncode == 0
    finally:
        os.close(parent)
        os.close(child)
    return shown


class TestTheyDo:
    def test_invalidate(self, proxy: Process) -> None:
        client = Redis(port=proxy.port)
        client.mset({"user:42:a": 1, "user:42:b": 1, "user:43:a": 1})
        for key in ("user:42:a", "user:42:b", "user:43:a") * 3:
            client.get(key)
        before = client.info("sidecar")["pannier_tier_entries"]
        done = run("invalidate", "user:42:*", *to(proxy))
        after = client.info("sidecar")["pannier_tier_entries"]
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "2 entries dropped here, and what others keep of them\n", "reads, in however many protocols"
        assert before > after > 0

    @pytest.mark.parametrize("command", ["invalidate", "delete", "warm"])
    def test_patterns_are_bytes(self, proxy: Process, redis: Process, command: str) -> None:
        """A shell hands over what was typed, UTF-8 or not; Python has it with surrogates in it."""
        raw = Redis(port=redis.port)
        raw.mset({b"\xff:1": 1, b"\xfe:1": 1})
        client = Redis(port=proxy.port)
        for key in (b"\xff:1", b"\xfe:1") * 3:
            client.get(key)
        done = run(command, "\udcff*", *to(proxy))
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("1 ")

    def test_delete(self, proxy: Process, redis: Process) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"api:list:{n}": 1 for n in range(3000)} | {"api:item": 1, "x:1": 1})
        dry = run("delete", "api:list:*", "--dry-run", *to(proxy))
        assert dry.stdout.startswith("3000 keys would be deleted in ") and raw.dbsize() == 3002
        done = run("delete", "api:list:*", "x:*", "--page", "100", *to(proxy))
        assert done.returncode == 0 and done.stdout.startswith("3001 keys deleted in ")
        assert raw.keys() == [b"api:item"]

    def test_sweep_leaves_what_ends_by_itself(self, proxy: Process, redis: Process) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"exec:1": 1, "exec:2": 1, "other": 1})
        raw.set("exec:3", 1, ex=100)
        done = run("sweep", "--without-ttl", "exec:*", *to(proxy))
        assert done.returncode == 0 and done.stdout.startswith("2 keys deleted in ")
        assert sorted(raw.keys()) == [b"exec:3", b"other"]

    def test_warm(self, proxy: Process, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"org:{n}": n for n in range(2500)} | {"a b": 1, "big": "x" * (2 << 20)})
        raw.hset("user:1", "f", "v")
        raw.xadd("org:stream", {"a": 1})
        client = Redis(port=proxy.port)
        client.execute_command("SIDECAR", "FLUSH")
        done = run("warm", "org:*", *to(proxy))
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(
            r"2,500 of 2,501 keys in \d+\.\d seconds\n  1: no request is known for the type stream\n", done.stdout
        )
        before = client.info("sidecar")["pannier_tier_misses"]
        assert client.get("org:2499") == b"2499" and client.info("sidecar")["pannier_tier_misses"] == before
        limited = run("warm", "org:*", "--limit", "1200", *to(proxy)).stdout
        assert re.match(r"1,(200|199) of 1,200 keys in ", limited), "whether the stream was among them or not"
        path = directory / "keys"
        path.write_text('# some\n"a b"\nHGETALL user:*\norg:1?\nbig\nnosuch\n')
        done = run("warm", "org:7", "--file", str(path), *to(proxy))
        assert done.stdout.startswith("13 of 15 keys in ") and sorted(done.stdout.splitlines()[1:]) == ["  1: no such key", "  1: too long"]
        done = run("warm", "LRANGE user:1 0 -1", *to(proxy))
        assert done.returncode == 1 and "0 of 1 keys" in done.stdout and "  1: WRONGTYPE" in done.stdout

    def test_warm_shows_how_far_it_is_on_a_terminal(self, proxy: Process, redis: Process) -> None:
        Redis(port=redis.port).mset({f"org:{n}": n for n in range(5000)})
        said = on_a_terminal("warm", "org:*", *to(proxy))
        assert re.search(rb"\[#* *\] +\d+%  [\d,]+ of [\d,]+ keys", said)

    def test_invalidate_counts_reads_and_leaves_memory_as_it_was(self, redis: Process, directory: Path) -> None:
        """It speaks RESP2, so nothing is kept for clients of RESP3 because of it."""
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--admit-after", "1") as proxy:
            client = Redis(port=proxy.port, protocol=2)
            keys = [f"user:42:{n}" for n in range(50)]
            client.mset(dict.fromkeys(keys, 1))
            assert run("invalidate", "nosuch*", *to(proxy)).returncode == 0
            for key in keys * 2:
                client.get(key)
            assert client.info("sidecar")["pannier_tier_entries"] == 50

    def test_overlapping_patterns_count_once(self, proxy: Process, redis: Process) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"api:list:{n}": 1 for n in range(300)} | {"api:item": 1})
        patterns = ["api:list:*", "api:*", "api:list:1*"]
        assert run("delete", *patterns, "--dry-run", *to(proxy)).stdout.startswith("301 keys would be deleted")
        assert run("delete", *patterns, *to(proxy)).stdout.startswith("301 keys deleted")

    def test_two_at_once_report_what_each_has_deleted(self, proxy: Process, redis: Process) -> None:
        Redis(port=redis.port).mset({f"k:{n}": 1 for n in range(20_000)})
        command = [sys.executable, "-m", "proxy", "delete", "k:*", "--page", "20", *to(proxy)]
        works = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
        counts = [int(work.communicate(timeout=60)[0].split()[0]) for work in works]
        assert sum(counts) == 20_000

    def test_sweep_spares_what_gets_a_time_to_live_meanwhile(
        self, proxy: Process, redis: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"exec:{n}": 1 for n in range(10)})
        lasting = control._Sweeping._lasting
        given: list[bytes] = []

        def late(work: control._Sweeping, client: object, keys: list[bytes]) -> list[bytes]:
            found = lasting(work, client, keys)
            if not given:
                given.append(found[0])
                raw.expire(found[0], 100)
            return found

        monkeypatch.setattr(control._Sweeping, "_lasting", late)
        assert control.main(["sweep", "--without-ttl", "exec:*", *to(proxy)]) == 0
        assert raw.keys() == given
        assert capsys.readouterr().out.startswith("9 keys deleted in ")

    def test_sweep_needs_no_scripts(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"a:exec:1": 1, "b:exec:1": 1})
        raw.set("a:exec:2", 1, ex=100)
        options = ["--namespace", "a", "--namespace-scripts", "refuse"]
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, *options) as proxy:
            assert run("sweep", "--without-ttl", "*", *to(proxy)).stdout.startswith("1 keys deleted")
        assert sorted(raw.keys()) == [b"a:exec:2", b"b:exec:1"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["delete", "k:*", "--page", "10"], rb"[\d,]+ deleted"),
            (["delete", "k:*", "x:*", "--dry-run", "--page", "10"], rb"[\d,]+ would be deleted"),
            (["sweep", "--without-ttl", "k:*", "--page", "10"], rb"[\d,]+ deleted"),
            # With so many patterns it takes a second, not a tenth: it is looked at ten times a second.
            (["invalidate", *[f"{n}-nosuch:*" for n in range(250)], "k:*"], rb"[\d,]+ entries dropped"),
        ],
        ids=["delete", "dry run", "sweep", "invalidate"],
    )
    def test_a_bar_shows_how_far_it_is(
        self, proxy: Process, redis: Process, arguments: list[str], said: bytes
    ) -> None:
        count = 60_000 if arguments[0] == "invalidate" else 20_000
        raw = Redis(port=redis.port)
        raw.flushall()
        for start in range(0, count, 5000):
            raw.mset({f"k:{n}": 1 for n in range(start, start + 5000)})
        if arguments[0] == "invalidate":
            assert run("warm", "k:*", *to(proxy)).returncode == 0
        shown = on_a_terminal(*arguments, *to(proxy))
        shares = [int(share) for share in re.findall(rb"\[#* *\] +(\d+)%  " + said, shown)]
        assert shares == sorted(shares) and shares[-1] == 100
        assert len(set(shares)) > 2, "it moves"

    def test_in_a_namespace(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({"a:x": 1, "b:x": 1, "x": 1})
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--namespace", "a") as proxy:
            assert run("delete", "*", *to(proxy)).stdout.startswith("1 keys deleted")
        assert sorted(raw.keys()) == [b"b:x", b"x"]


class TestTheyEnd:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["delete"], "delete: the following arguments are required: PATTERN"),
            (["sweep", "a*"], "sweep: the following arguments are required: --without-ttl"),
            (["delete", "a*", "--page", "0"], "delete: --page: '0' is no number from 1 to 10000"),
            (["invalidate", "a*", "--to", "nowhere"], "--to: 'nowhere' is no address of a Pannier"),
            (["invalidate", "a*", "--dry-run"], "invalidate: unrecognized arguments: --dry-run"),
            (["warm"], "warm: nothing to fetch; give a PATTERN, or --file with some lines"),
            (["warm", "a*", "--limit", "0"], "warm: --limit: '0' is no number from 1 to 10000000"),
            (["warm", "a*", "--dry-run"], "warm: unrecognized arguments: --dry-run"),
            (["warm", '"a'], "warm: '\"a' unbalanced quotes"),
            (["warm", "--file", "/nosuch/keys"], "warm: --file: '/nosuch/keys' cannot be read (No such file"),
        ],
    )
    def test_a_wrong_command_line(
        self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"pannier: {said}")

    def test_nobody_there_and_no_pannier(self, redis: Process) -> None:
        nobody = run("delete", "x", "--to", f"redis://:secret@127.0.0.1:{free_port()}")
        assert nobody.returncode == 1 and "Connection refused" in nobody.stderr and "secret" not in nobody.stderr
        plain = run("delete", "x", *to(redis))
        assert plain.returncode == 1 and "this is no Pannier" in plain.stderr

    @pytest.mark.parametrize("arguments", [["delete", "*"], ["sweep", "--without-ttl", "*"]], ids=["delete", "sweep"])
    def test_a_refusal_midway_says_how_much_is_gone(self, redis: Process, directory: Path, arguments: list[str]) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"pub:{n}": 1 for n in range(20_000)} | {"priv:1": 1})
        raw.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw", "~pub:*", "+@all")
        try:
            with pannier(f"redis://some:pw@127.0.0.1:{redis.port}", directory) as proxy:
                done = run(*arguments, *to(proxy))
        finally:
            raw.execute_command("ACL", "DELUSER", "some")
        assert (done.returncode, done.stdout) == (1, "")
        error, said = done.stderr.splitlines()
        assert error.startswith("pannier: redis://127.0.0.1:") and "permissions to access" in error
        found = re.fullmatch(r"pannier: stopped before the end; (\d+) keys deleted in \d+\.\d s", said)
        assert found and int(found[1]) == 20_001 - raw.dbsize(), "what is really gone"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["delete", "k:*", "--page", "1"], r"[1-9]\d* keys deleted in "),
            (["sweep", "--without-ttl", "k:*", "--page", "1"], r"[1-9]\d* keys deleted in "),
            (["warm", "k:*"], r"[1-9][\d,]* of [\d,]+ keys in "),
        ],
        ids=["delete", "sweep", "warm"],
    )
    def test_redis_dies_in_between(
        self, any_redis_binary: str, directory: Path, arguments: list[str], said: str
    ) -> None:
        with redis_server(any_redis_binary, directory) as redis:
            raw = Redis(port=redis.port)
            raw.mset({f"k:{n}": 1 for n in range(100_000)})
            with pannier(f"redis://127.0.0.1:{redis.port}", directory) as proxy:
                client = Redis(port=proxy.port)
                command = [sys.executable, "-m", "proxy", *arguments, *to(proxy)]
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as work:
                    wait_until(lambda: raw.dbsize() < 99_900 or client.info("sidecar")["pannier_tier_entries"] > 5000)
                    redis.kill()
                    out, errors = work.communicate(timeout=30)
        assert (work.returncode, out) == (1, "")
        assert re.search(r"^pannier: redis://127\.0\.0\.1:\d+: pannier: upstream ", errors)
        assert re.search(rf"^pannier: stopped before the end; {said}", errors, re.M), errors

    def test_a_refusal_before_it_has_begun_says_only_why(self, proxy: Process) -> None:
        said = run("invalidate", "x" * 4097, *to(proxy)).stderr
        assert said.endswith("takes patterns of 4096 bytes together\n") and said.count("\n") == 1

    def test_a_line_that_is_refused(self, proxy: Process) -> None:
        done = run("warm", "SET a b", *to(proxy))
        assert done.returncode == 1 and "SIDECAR WARM LINES: 'SET a b' asks for 'SET'" in done.stderr

    def test_ctrl_c_ends_warming_and_says_how_far_it_is(self, proxy: Process, redis: Process) -> None:
        Redis(port=redis.port).mset({f"w:{n}": n for n in range(100_000)})
        client = Redis(port=proxy.port)
        client.execute_command("SIDECAR", "FLUSH")
        command = [sys.executable, "-m", "proxy", "warm", "w:*", *to(proxy)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as work:
            wait_until(lambda: client.info("sidecar")["pannier_tier_entries"] > 1000)
            work.send_signal(signal.SIGINT)
            _, said = work.communicate(timeout=10)
        assert work.returncode == 130 and "Traceback" not in said
        assert re.match(r"pannier: stopped; [\d,]+ of [\d,]+ keys in ", said)

    def test_ctrl_c_says_what_has_been_done(self, proxy: Process, redis: Process) -> None:
        Redis(port=redis.port).mset({f"k:{n}": 1 for n in range(50_000)})
        command = [sys.executable, "-m", "proxy", "delete", "k:*", "--page", "1", *to(proxy)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as work:
            wait_until(lambda: Redis(port=redis.port).dbsize() < 49_900)
            work.send_signal(signal.SIGINT)
            _, said = work.communicate(timeout=10)
        assert work.returncode == 130
        found = re.fullmatch(r"pannier: stopped; (\d+) keys deleted in \d+\.\d s\n", said)
        assert found and int(found[1]) == 50_000 - Redis(port=redis.port).dbsize(), "what is really gone"

    def test_ctrl_c_ends_invalidating(self, proxy: Process, redis: Process) -> None:
        proxy.signal(signal.SIGSTOP)  # or it would be over at once
        with subprocess.Popen(
            [sys.executable, "-m", "proxy", "invalidate", "*", *to(proxy)],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        ) as work:  # fmt: skip
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    work.wait(2)
                work.send_signal(signal.SIGINT)
                _, said = work.communicate(timeout=10)
            finally:
                proxy.signal(signal.SIGCONT)
        assert work.returncode == 130
        assert said.startswith("pannier: stopped; 0 entries dropped here so far")
