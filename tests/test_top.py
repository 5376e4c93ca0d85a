"""`pannier top`: pages that fit any terminal, and a terminal that is as it was, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from proxy import top
from proxy.top import Look, cut, number, per_second, screen, size
from tests.harness import ROOT, Process, pannier, redis_server

STATS = {"tier_hits": 900, "tier_misses": 100, "tier_bytes": 3 << 20, "tier_max_memory": 4 << 20, "tier_entries": 1234, "tier_fills": 2000, "tracking": "default", "total_commands_processed": 1500}
HEALTH = {"upstream": "up", "breaker": "closed", "serving": "fresh", "why": ""}
KEY = {"key": "user:1", "class": "user", "reads": 100, "hits": 99, "reads_per_second": "12.5", "size": 2048, "bytes_per_second": 25600}


def at(seconds: float, *keys: dict[str, Any], **stats: Any) -> Look:
    return Look(seconds, STATS | stats, HEALTH, list(keys))


def texts(now: Look, before: Look | None = None, width: int = 80, height: int = 24, trouble: str = "") -> list[str]:
    return [text.rstrip() for text, _ in screen(now, before, "here", width, height, trouble)]


class TestThePage:
    def test_rates_are_of_the_time_between_two_answers(self) -> None:
        now = at(12.0, tier_hits=1900, tier_misses=200, tier_evictions=50, tier_overwritten=6, total_commands_processed=2700)
        found = per_second(now, at(10.0))
        assert found == {"hits": 500, "misses": 50, "evicted": 25, "changed": 3, "other": 50}
        page = "\n".join(texts(now, at(10.0)))
        assert "hit rate 90.9% in the last 2.0 s; 90.5% since the start" in page

    def test_what_is_told_of_writes_is_shown(self) -> None:
        assert per_second(at(1, sets=12, deletes=3), at(0, sets=2, deletes=3))["writes"] == 10

    def test_a_pannier_that_was_started_anew_has_no_rates_below_zero(self) -> None:
        assert set(per_second(at(1, tier_hits=0, total_commands_processed=0), at(0)).values()) == {0}

    def test_memory_and_what_is_hot(self) -> None:
        page = texts(at(0, KEY))
        assert "memory   [##################      ] 3.0MB of 4.0MB (75%)" in page
        assert re.fullmatch(r"user:1 +12 +99% +2.0KB +25.0KB", page[-1])

    def test_keys_whose_names_are_not_shown(self) -> None:
        page = texts(at(0, {**KEY, "key": ""}, {"reads": 0}))
        assert page[-2].startswith("(a key of class user)") and page[-1].startswith("(a key)")

    def test_colours_say_how_it_is(self) -> None:
        def colour(**health: str) -> str:
            return screen(Look(0, STATS, HEALTH | health), None, "", 80, 24)[1][1]

        assert [colour(), colour(upstream="down", why="it is gone"), colour(serving="stale")] == [top.GREEN, top.RED, top.YELLOW]

    def test_why_it_is_not_well(self) -> None:
        assert "         it is gone" in texts(Look(0, STATS, HEALTH | {"upstream": "down", "why": "it is gone"}))

    def test_trouble(self) -> None:
        assert texts(at(0), trouble="no answer")[1] == "no answer"

    def test_nothing_is_known(self) -> None:
        assert texts(Look(0, {}, {}))[1].startswith("redis    ?")

    def test_names_do_nothing_to_a_terminal(self) -> None:
        page = texts(at(0, {**KEY, "key": "\x1b[2J\r\n\x07evil\u202e"}))
        assert all(each.isprintable() for line in page for each in line)


@given(st.integers(1, 200), st.integers(1, 60), st.text(max_size=60), st.integers(0, 80))
def test_a_page_fits(width: int, height: int, name: str, keys: int) -> None:
    lines = texts(at(1, *[{**KEY, "key": name}] * keys), at(0), width, height)
    assert 1 <= len(lines) <= height
    assert all(len(line) <= width for line in lines)


@given(st.text(), st.integers(8, 100))
def test_a_name_takes_its_columns(name: str, room: int) -> None:
    assert 0 < len(cut(name, room)) <= room


def test_of_long_names_the_ends_are_shown() -> None:
    assert cut("tenant:acme:" + "x" * 100 + ":profile", 20) == "tenant:acme:x…rofile"
    assert len(cut("漢字", 10)) == 8, "each is as wide as two"


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (999, "999"), (1000, "1.0k"), (99_400, "99.4k"), (100_000, "100k"), (12_345_678, "12.3M"), (5e9, "5G")])
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0, "0B"), (999, "999B"), (1023, "1.0KB"), (80_000, "78.1KB"), (64 << 20, "64.0MB"), (3 << 30, "3.0GB")])
def test_sizes(value: int, shown: str) -> None:
    assert size(value) == shown


# --- the whole


@pytest.fixture(scope="module")
def redis(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("top")) as process:
        yield process


@pytest.fixture(scope="module")
def proxy(redis: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with pannier(f"redis://127.0.0.1:{redis.port}", tmp_path_factory.mktemp("top")) as process:
        yield process


def command(proxy: Process, *options: str) -> list[str]:
    return [sys.executable, "-m", "proxy", "top", "--to", f"redis://127.0.0.1:{proxy.port}", *options]


class Screen:
    """A terminal in which `pannier top` runs."""

    def __init__(self, proxy: Process, *options: str, **env: str) -> None:
        self.parent, self.child = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.child)
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | env
        self.process = subprocess.Popen(command(proxy, *options), stdin=self.child, stdout=self.child, stderr=self.child, cwd=ROOT, env=environment, start_new_session=True)
        self.said = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def read_until(self, wanted: str) -> None:
        deadline = time.monotonic() + 20
        while not re.search(wanted, self.said):
            assert time.monotonic() < deadline, self.said
            self.read()

    def read(self) -> None:
        """Take what has come, if anything does soon."""
        if select.select([self.parent], [], [], 0.1)[0]:
            self.said += os.read(self.parent, 1 << 16).decode("utf-8", "replace")

    def press(self, keys: bytes) -> None:
        os.write(self.parent, keys)

    def end(self) -> int:
        status = self.process.wait(20)
        while select.select([self.parent], [], [], 0)[0]:
            self.said += os.read(self.parent, 1 << 16).decode("utf-8", "replace")
        return status


@contextlib.contextmanager
def showing(proxy: Process, *options: str, **env: str) -> Iterator[Screen]:
    screen = Screen(proxy, *options, **env)
    try:
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.parent)
        os.close(screen.child)


class TestInATerminal:
    @pytest.mark.parametrize("how", ["q", "Q", "SIGINT", "SIGTERM"])
    def test_it_ends_and_the_terminal_is_as_it_was(self, proxy: Process, how: str) -> None:
        with showing(proxy, "--interval", "0.2") as screen:
            screen.read_until("in the last")
            if how.startswith("SIG"):
                screen.process.send_signal(signal.Signals[how])
            else:
                screen.press(how.encode())
            assert screen.end() == 0
            assert termios.tcgetattr(screen.child) == screen.before
            assert screen.said.startswith("\x1b[?1049h\x1b[?25l") and "\x1b[?25h\x1b[?1049l" in screen.said[-20:]

    def test_it_follows_the_terminals_size(self, proxy: Process) -> None:
        with showing(proxy, "--interval", "60") as screen:
            screen.read_until("HOT KEYS")
            screen.said = ""
            screen.resize(30, 4)
            screen.process.send_signal(signal.SIGWINCH)
            # The rest of the first page may still be on its way; the last line of a page has no end.
            small = r"pannier top[^\r]{0,19}\r\n(?:[^\r]{0,30}\r\n){2}[^\r]{0,30}$"
            deadline = time.monotonic() + 20
            while not re.search(small, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.said)):
                assert time.monotonic() < deadline, screen.said
                screen.read()
            screen.press(b"q")
            assert screen.end() == 0

    @pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
    def test_colours(self, proxy: Process, env: dict[str, str], coloured: bool) -> None:
        with showing(proxy, **env) as screen:
            screen.read_until("HOT KEYS")
            screen.press(b"q")
            screen.end()
            assert bool(re.search(r"\x1b\[\d+m[^\x1b]", screen.said)) == coloured


class TestInAPipe:
    def test_one_plain_page(self, proxy: Process) -> None:
        with Redis(port=proxy.port) as client:
            client.set("user:1", "v")
            for _ in range(500):
                client.get("user:1")
        done = subprocess.run(command(proxy, "--interval", "0.1"), capture_output=True, text=True, cwd=ROOT, timeout=60, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout and "user:1" in done.stdout and "redis    up" in done.stdout

    def test_who_reads_it_may_have_seen_enough(self, proxy: Process) -> None:
        with subprocess.Popen(command(proxy, "--once", "--interval", "0.1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as running:
            assert running.stdout is not None and running.stderr is not None
            running.stdout.close()
            assert (running.stderr.read(), running.wait(20)) == (b"", 0)

    @pytest.mark.parametrize(("options", "complaint"), [(["--interval", "0"], "no number of seconds from 0.1 to 3600"), (["--interval", "x"], "no number of seconds"), (["user:*"], "unrecognized arguments: user:")])
    def test_wrong_options(self, proxy: Process, options: list[str], complaint: str) -> None:
        done = subprocess.run(command(proxy, *options), capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 2 and complaint in done.stderr

    def test_what_is_no_pannier(self, redis: Process) -> None:
        done = subprocess.run(command(redis, "--once"), capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 1 and "this is no Pannier" in done.stderr
