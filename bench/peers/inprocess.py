"""The sidecar beside a cache inside the application: redis-py's own client-side cache.

Each contender has a Redis of its own, and its application (`bench.peers.inprocess_client`) lives through all
rounds, so that what is cached and the invalidations on their way are its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import IO, Any

from bench import cpu
from bench.data import bulk_reads, connect, set_many, tier_info
from bench.figures import Spread
from bench.peers.inprocess_client import TRACKS_SINCE, VALUE
from bench.peers.sections import Column, Row, Section, prose
from bench.peers.setting import Bench
from bench.servers import PING, ROOT, BenchError, Server, receive
from bench.traffic import frame, key

NAME = "in-process"
PATIENCE = 30.0
"""Seconds an application may take beyond those it was told to work."""
SETTLE = 0.05
"""Seconds until servers have put down what a round left them to do."""
STUCK = 2.0
"""Seconds an application has for its end before it is killed."""
PASSES = 4
"""Reads of all keys through Pannier at most, until its tier has them; it keeps what is read twice."""
CLIENT_NEEDS = (7, 4)
"""The oldest Redis for which redis-py's cache lets itself be turned on."""


@dataclass(frozen=True)
class Side:
    """A way to reach the data."""

    name: str
    mode: str = "plain"
    """Of the application: whether it caches by itself."""
    sidecar: bool = False
    entries: int | None = None
    """That the application's cache may hold; None: all keys."""


@dataclass(frozen=True)
class Work:
    """What the applications do, and who is compared at it."""

    name: str
    keys: int
    write_share: float
    sides: Sequence[Side]
    applications: int = 1


PLAIN, CACHED, SIDECAR = Side("plain"), Side("cached", "cached"), Side("pannier", sidecar=True)


def works(hot: int = 10_000, many: int = 100_000) -> tuple[Work, ...]:
    """All that is measured; `hot` is also how many entries redis-py's cache holds when it is told nothing."""
    default = Side("cached-default", "cached", entries=hot)
    return (
        Work("hits", hot, 0.0, (PLAIN, CACHED, SIDECAR)),
        Work("mix-95-5", many, 0.05, (PLAIN, CACHED, default, SIDECAR)),
        Work("two-processes", hot, 0.05, (PLAIN, CACHED, SIDECAR), applications=2),
    )


STEPS = sum(len(work.sides) for work in works())

COLUMNS = (
    Column("what", "what is measured"),
    Column("application_us", "application, CPU µs/op"),
    Column("pannier_us", "Pannier, CPU µs/op"),
    Column("redis_us", "Redis, CPU µs/op"),
    Column("total_us", "all, CPU µs/op", 1),
    Column("per_second", "ops/s", 0),
    Column("p50_us", "p50 µs", 0),
    Column("p99_us", "p99 µs", 0),
    Column("redis_commands", "Redis commands per 1,000 ops", 0),
    Column("cached_mb", "memory for cached data, MB", 1),
    Column("tracking_mb", "Redis' memory for tracking it, MB", 1),
)

WHAT = prose("""
    An application in Python (redis-py {client}, one thread, one command at a time, RESP3) reads keys by
    how popular they are (Zipf 0.99, values of {size} bytes). *plain* asks Redis; *cached* has redis-py's
    own client-side cache (`CacheConfig`), big enough for all keys; *cached-default* has one for {hot:,},
    which is what the library takes when told nothing; *pannier* is the plain client with Pannier between.
    *hits*: {hot:,} keys, all cached before. *mix-95-5*: {many:,} keys, 5 % of the operations are SETs.
    *two-processes*: two such applications share {hot:,} keys, 5 % SETs, each with its own cache or both
    behind one Pannier; ops/s of both added up, p50 the mean of both, p99 the worse. Memory for cached
    data: by how much the resident memory of those who cache grew while they filled. Commands at Redis
    are all it ran: a read through Pannier that is to be kept is up to three of them (CLIENT CACHING,
    PTTL, GET), sent in one packet.
""")
GOOD_FOR = prose("""
    What each is good for: a hit in the application's own cache sends nothing, waits for nobody and needs
    no second process (though redis-py looks on its socket for invalidations each time). But each process
    has its own copy, its own misses and its own invalidations from Redis, and only client libraries with
    such a cache have it. A hit in Pannier costs the way to another process, and that one's CPU. But all
    processes beside it share one copy and one subscription, in whatever language, and all they need is
    another address. redis-py looks through all that it has cached for each key that is invalidated, so a
    write costs it more the more it holds; that is this library, not caching in the process as such.
""")


# --- The applications


class Application:
    """A running application, which measures when it is given a cue."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        assert process.stdin and process.stdout
        self._input, self._output, self._errors = process.stdin, process.stdout, errors

    def cue(self) -> None:
        """Have it measure once."""
        self._input.write(b"\n")
        self._input.flush()

    def told(self, timeout: float) -> dict[str, Any]:
        """The next line it prints; raises BenchError when none comes within so many seconds."""
        output, line, end = self._output.fileno(), b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            if not select.select([output], [], [], max(end - time.monotonic(), 0.0))[0]:
                raise BenchError(f"the application said nothing for {timeout:.0f} s")
            if not (part := os.read(output, 1 << 16)):
                raise BenchError(f"the application ended: {self._last_words()}")
            line += part
        return dict(json.loads(line))

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "(printed nothing)"


@contextmanager
def application(options: Sequence[str]) -> Iterator[Application]:
    """Start one; it ends with the block, by the end of its input unless it is stuck."""
    command = [sys.executable, "-m", "bench.peers.inprocess_client", *options, "--on-cue"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True
        ) as process,
    ):  # fmt: skip
        try:
            yield Application(process, errors)
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Close its input and give it a moment, then none."""
    assert process.stdin
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STUCK)
    except subprocess.TimeoutExpired:
        process.kill()


# --- One contender at one kind of work


@dataclass(frozen=True)
class Round:
    """One measurement; CPU and latencies in µs."""

    application_us: float
    pannier_us: float
    redis_us: float
    per_second: float
    p50_us: float
    p99_us: float
    redis_commands: float
    """Per 1,000 operations."""

    @property
    def total_us(self) -> float:
        """All processes' CPU."""
        return self.application_us + self.pannier_us + self.redis_us


MEASURED = ("application_us", "redis_us", "total_us", "per_second", "p50_us", "p99_us", "redis_commands")


@dataclass
class Setup:
    """A contender's servers and applications, and what they have measured."""

    work: Work
    side: Side
    redis: Server
    proxy: Server | None
    applications: list[Application] = field(default_factory=list)
    entries: int | None = None
    """Values that are cached when the first round begins, by all together; None where nobody caches."""
    cached_bytes: int = 0
    tracking_bytes: int = 0
    rounds: list[Round] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.work.name}/{self.side.name}"

    @property
    def caches(self) -> bool:
        """Whether anybody but Redis keeps values."""
        return bool(self.proxy) or self.side.mode == "cached"

    def fill(self, stack: ExitStack, seconds: float) -> None:
        """Load Redis, start the applications, let who caches have the values."""
        with connect(self.redis.port) as link:
            set_many(link, range(self.work.keys), key, lambda _: VALUE)
        before = told(self.redis.port, "memory", "used_memory")
        if self.proxy:
            self.entries, self.cached_bytes = read_into_tier(self.proxy, self.work.keys)
        port = (self.proxy or self.redis).port
        for seed in range(self.work.applications):
            self.applications.append(stack.enter_context(application(self.options(port, seconds, seed))))
        warm = [each.told(PATIENCE) for each in self.applications]
        if self.side.mode == "cached":
            self.entries = sum(each["entries"] for each in warm)
            self.cached_bytes = sum(each["rss_growth_bytes"] for each in warm)
        self.tracking_bytes = told(self.redis.port, "memory", "used_memory") - before

    def options(self, port: int, seconds: float, seed: int) -> list[str]:
        """The application's command line."""
        words = {
            "--mode": self.side.mode, "--keys": self.work.keys, "--write-share": self.work.write_share,
            "--entries": self.side.entries or self.work.keys, "--seconds": seconds, "--seed": seed,
        }  # fmt: skip
        return [str(port), *(str(word) for pair in words.items() for word in pair)]

    def measure(self, seconds: float) -> None:
        """One round of all its applications at once."""
        servers = [self.redis, *([self.proxy] if self.proxy else [])]
        commands = told(self.redis.port, "stats", "total_commands_processed")
        before = [cpu.sample(server.pid) for server in servers]
        for each in self.applications:
            each.cue()
        figures = [each.told(seconds + PATIENCE) for each in self.applications]
        time.sleep(SETTLE)
        for server in servers:
            server.require_alive()
        after = [cpu.sample(server.pid) for server in servers]
        commands = told(self.redis.port, "stats", "total_commands_processed") - commands - 1  # this asking
        operations = sum(each["operations"] for each in figures)
        used = [cpu.between(*pair) / 1e3 / operations for pair in zip(before, after, strict=True)]
        self.rounds.append(
            Round(
                application_us=sum(each["cpu_us"] * each["operations"] for each in figures) / operations,
                pannier_us=sum(used[1:]),
                redis_us=used[0],
                per_second=sum(each["operations"] / each["seconds"] for each in figures),
                p50_us=sum(each["p50_us"] for each in figures) / len(figures),
                p99_us=max(each["p99_us"] for each in figures),
                redis_commands=commands * 1e3 / operations,
            )
        )

    def shortfall(self) -> str:
        """What is missing in the caches, if filling them took too long."""
        copies = 1 if self.side.sidecar else self.work.applications
        full = copies * (self.side.entries or self.work.keys)
        if self.entries is None or self.entries >= full:
            return ""
        return f"{self.name} began with {self.entries:,} of {full:,} values cached."

    def row(self) -> Row:
        """What all rounds found."""
        spreads = {name: Spread.of(getattr(each, name) for each in self.rounds) for name in MEASURED}
        pannier = Spread.of(each.pannier_us for each in self.rounds) if self.proxy else None
        memory = {
            "cached_mb": self.cached_bytes / 1e6 if self.caches else None,
            "tracking_mb": self.tracking_bytes / 1e6 if self.caches else None,
        }
        return Row(self.name, {"what": self.name, **spreads, "pannier_us": pannier, **memory})


def told(port: int, part: str, name: str) -> int:
    """A number in a Redis' INFO."""
    with connect(port) as link:
        link.sendall(frame(b"INFO", part.encode()))
        head = b""
        while not head.endswith(b"\r\n") and (byte := link.recv(1)):
            head += byte
        text = receive(link, int(head[1:])).decode()
    found = re.search(rf"^{name}:(\d+)", text, re.MULTILINE)
    if not found:
        raise BenchError(f"INFO {part} has no {name}")
    return int(found.group(1))


def read_into_tier(proxy: Server, keys: int) -> tuple[int, int]:
    """Read all keys until Pannier keeps them, in the application's protocol; how many, and its growth."""
    entries = 0
    with connect(proxy.port) as link:
        speak_resp3(link)
        bulk_reads(link, min(keys, 100), key, lambda _: VALUE)
        before = rss_bytes(proxy)
        for _ in range(PASSES):
            bulk_reads(link, keys, key, lambda _: VALUE)
            entries = tier_info(proxy.port).get("entries", 0)
            if entries >= keys:
                break
    return entries, rss_bytes(proxy) - before


def speak_resp3(link: socket.socket) -> None:
    """Change a connection's protocol; replies are kept for each apart."""
    link.sendall(frame(b"HELLO", b"3") + PING)
    said = b""
    while not said.endswith(b"+PONG\r\n"):
        if not (part := link.recv(1 << 16)):
            raise BenchError(f"HELLO 3 answered {said[:80]!r}")
        said += part


def rss_bytes(server: Server) -> int:
    """Resident memory of all its processes."""
    return sum(cpu.rss_bytes(pid) for pid in cpu.tree(server.pid))


# --- The section


def measure(bench: Bench, works: Sequence[Work] = works()) -> Section:
    """Every row; what fails is told in `bench.failures`."""
    hot, many = (pick(work.keys for work in works) for pick in (min, max))
    about = WHAT.format(client=version("redis"), size=len(VALUE), hot=hot, many=many)
    section = Section(
        NAME,
        "A cache in the application's own process",
        f"{about}\n\n{GOOD_FOR}",
        COLUMNS,
        notes=notes(bench),
    )
    for work in works:
        with bench.servers(), ExitStack() as stack:
            setups = set_up(bench, work, stack)
            take_turns(bench, setups)
            section.rows += [setup.row() for setup in setups if setup.rounds]
            section.notes += filter(None, (setup.shortfall() for setup in setups))
        bench.progress.step(len(work.sides))
    return section


def notes(bench: Bench) -> list[str]:
    """What must be known of this run."""
    found = []
    if bench.stable.redis.version < CLIENT_NEEDS:
        wanted = ".".join(map(str, CLIENT_NEEDS))
        found.append(
            f"redis-py turns its cache on for Redis {wanted} and later only; the one here is "
            f"{bench.stable.redis.label}. Its check was set to {TRACKS_SINCE}, the first that can track."
        )
    if not importlib.util.find_spec("hiredis"):
        found.append("redis-py ran without hiredis, its faster parser.")
    return found


def set_up(bench: Bench, work: Work, stack: ExitStack) -> list[Setup]:
    """Those of the contenders that could be started and filled."""
    found = []
    for side in work.sides:
        bench.progress.begin(f"{NAME}: {work.name}", f"{side.name}, filling")
        with failing(bench, f"{work.name}/{side.name}"):
            bench.require_time()
            redis = bench.stable.start_redis(f"Redis of {side.name}")
            proxy = bench.stable.start_proxy(redis, (), side.name) if side.sidecar else None
            setup = Setup(work, side, redis, proxy)
            setup.fill(stack, bench.seconds)
            found.append(setup)
    return found


def take_turns(bench: Bench, setups: Sequence[Setup]) -> None:
    """All rounds, every other one backwards; who fails once is left out from then on."""
    going = list(setups)
    for number in range(bench.rounds):
        for setup in list(going)[:: -1 if number % 2 else 1]:
            bench.progress.begin(f"{NAME}: {setup.work.name}", f"{setup.side.name}, round {number + 1}")
            going.remove(setup)
            with failing(bench, setup.name):
                bench.require_time()
                setup.measure(bench.seconds)
                going.append(setup)
        going.sort(key=setups.index)


@contextmanager
def failing(bench: Bench, name: str) -> Iterator[None]:
    """Note what goes wrong in a row, and let the rest go on."""
    try:
        yield
    except (BenchError, OSError) as error:
        bench.failures.append(f"{NAME}/{name}: {error}")
