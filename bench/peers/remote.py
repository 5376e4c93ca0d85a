"""What an application sees of a Redis that is some way off, with the sidecar beside it and without."""

from __future__ import annotations

import itertools
import math
import socket
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.builtin import drive
from bench.data import Store, connect, hit_rate, tier_info
from bench.figures import Spread
from bench.peers import openloop
from bench.peers.openloop import Blend, Latency
from bench.peers.running import commands_run
from bench.peers.sections import Column, Section, prose
from bench.peers.setting import Bench
from bench.servers import PING, BenchError, Server, Stable, free_port, receive
from bench.traffic import COMMANDS, Part
from bench.workloads import CLIENTS

NAME = "remote"
DELAYS = (0.5, 2.0)
"""Milliseconds, each way."""
KEYS = 100_000
ZIPF = 0.99
RATE = 5_000
"""Requests a second of the open loop."""
PINGS = 200
OFF = 0.2
"""Milliseconds by which a round trip may differ from what the relay should make it without a note."""
WARM_CLIENTS = 60
"""No more than Pannier lets fetch at once after many writes (`--refill-limit`)."""
WARM_SLICE = 10_000
"""Requests between two looks at the clock while the tier is warmed."""
WARM_FIRST, WARM_NEXT = 9.0, 2.5
"""How many measurements long 95/5 is run beforehand, and 80/20 after it."""
DRAWN = 50_000
"""Requests drawn for a closed loop; it begins anew after the last."""
RECEIVE = 1 << 16
COLUMNS = (
    Column("delay", "delay each way, ms", 1),
    Column("load", "load"),
    Column("contender", "contender"),
    Column("per_second", "ops/s", 0),
    Column("times", "× direct", 1),
    Column("p50", "p50, µs", 0),
    Column("p99", "p99, µs", 0),
    Column("hit_percent", "hits, %", 1),
    Column("redis_per_1000", "commands at Redis per 1,000", 0),
)

clock = time.perf_counter


@dataclass(frozen=True)
class Load:
    """One kind of traffic."""

    name: str
    """In row names."""
    title: str
    blend: Blend | None = None
    """What is sent; None: reads of keys that have not been read before."""
    open_loop: bool = False


READS_95, READS_80 = Blend(KEYS, 0.05, ZIPF), Blend(KEYS, 0.20, ZIPF)
LOADS = (
    Load("95-5", "95/5, one connection", READS_95),
    Load("95-5-open", f"95/5, {CLIENTS} connections, {RATE:,}/s", READS_95, open_loop=True),
    Load("80-20", "80/20, one connection", READS_80),
    Load("80-20-open", f"80/20, {CLIENTS} connections, {RATE:,}/s", READS_80, open_loop=True),
    Load("cold", "keys never read before, one connection"),
)
STEPS = len(DELAYS) * (1 + len(LOADS))


@dataclass
class Side:
    """What the application connects to, and the Redis at the other end."""

    name: str
    title: str
    front: Server
    redis: Server
    caches: bool
    unread: Iterator[int] = field(default_factory=lambda: itertools.count(KEYS))
    """Numbers of keys nobody has read yet."""


@dataclass(frozen=True)
class Sample:
    """One measured run."""

    per_second: float
    p50: float
    p99: float
    redis_per_1000: float
    hit_rate: float | None
    behind: bool = False


Rounds = dict[str, list[Sample]]


def measure(bench: Bench) -> Section:
    """Every load at every delay."""
    openloop.histogram()  # or it would be missed only after the first closed loop
    section = Section(NAME, "Redis some way off", about(bench.seconds), COLUMNS)
    for delay in DELAYS:
        try:
            measure_delay(bench, section, delay)
        except (BenchError, OSError) as error:
            bench.failures.append(f"{NAME}: {delay:g} ms: {error}")
    return section


def about(seconds: float) -> str:
    """How it is measured."""
    first, each_next = f"{WARM_FIRST * seconds:.1f} s", f"{WARM_NEXT * seconds:.1f} s"
    return prose(f"""
        The Redis is behind a relay that delays each direction; a PING through it is timed before and shown.
        *Direct*, the application connects to the relay; with Pannier it connects to the sidecar, which has
        default settings and the relay as its upstream. Each has a Redis and a relay of its own, with the
        same data. Loads are reads and writes (SETs of the same value) in the proportion that is told, of
        {KEYS:,} keys by how popular they are (Zipf {ZIPF}): over one connection, each request when the last
        is answered, or over {CLIENTS} at a steady {RATE:,} requests a second (open loop, timed from when a
        request was due). Before the rounds the same load runs through the tier unmeasured over
        {WARM_CLIENTS} connections, {first} for the first load of a delay and {each_next} for 80/20 after it;
        a tier that has run for longer answers more. *Keys never read before* is what a sidecar costs where
        it cannot help. Commands at Redis are those it counts itself, with what the sidecar asks for its own
        sake: an entry that is stored costs three (CLIENT CACHING, GET, PTTL), in one packet. Median
        (least–greatest) of the rounds, in which both take turns; × direct is of the same round.
    """)


# --- One delay


def measure_delay(bench: Bench, section: Section, delay: float) -> None:
    """Start both sides, check the relay, measure every load; a failure ends its row."""
    with bench.servers() as stable:
        bench.progress.begin(f"{NAME}: {delay:g} ms", "loading")
        bench.require_time()
        sides = [start(bench, stable, name, delay) for name in ("redis", "pannier")]
        time_relay(section, sides[0], delay)
        bench.progress.step()
        warm_for = WARM_FIRST
        for load in LOADS:
            try:
                if load.blend and not load.open_loop:
                    warm(bench, sides, load.blend, warm_for * bench.seconds)
                    warm_for = WARM_NEXT
                rounds = take_turns(bench, sides, load, delay)
                for side in sides:
                    add_row(section, side, load, delay, rounds)
            except (BenchError, OSError) as error:
                bench.failures.append(f"{NAME}: {delay:g} ms, {load.name}: {error}")
            bench.progress.step()


def start(bench: Bench, stable: Stable, name: str, delay: float) -> Side:
    """A Redis with the data, the relay before it and, for Pannier, the sidecar before that."""
    redis = stable.start_redis("Redis behind the relay")
    end = KEYS + cold_reads(bench.seconds, delay) * bench.rounds
    Store(redis.port).provide([Part(1.0, "get", end=end)])
    port = free_port()
    command = [sys.executable, "-m", "bench.peers.relay", str(port), str(redis.port), str(delay)]
    front = stable.start("the relay", command, port)
    if name == "redis":
        return Side(name, "Redis direct", front, redis, caches=False)
    return Side(name, "Pannier", stable.start_proxy(front), redis, caches=True)


def cold_reads(seconds: float, delay: float) -> int:
    """The most reads that fit into a measurement when each waits for both ways."""
    return math.ceil(seconds / (2 * delay / 1000)) + 1


def time_relay(section: Section, direct: Side, delay: float) -> None:
    """Add what a PING takes through the relay: both delays and what loopback itself takes."""
    through, without = (
        Latency.of(closed_loop(port, itertools.repeat((PING, b"+PONG\r\n"), PINGS)))
        for port in (direct.front.port, direct.redis.port)
    )
    section.add(
        f"{delay:g}ms/ping/{direct.name}",
        delay=delay, load="PING, one connection", contender=direct.title, p50=through.p50, p99=through.p99,
    )  # fmt: skip
    more = (through.p50 - without.p50) / 1000
    section.notes.append(
        f"{delay:g}ms: a PING takes {through.p50:,.0f} µs through the relay and {without.p50:,.0f} µs "
        f"without: {more:.2f} ms more, should be {2 * delay:.2f}"
        + (f", which is off by more than {OFF:g} ms" if abs(more - 2 * delay) > OFF else "")
    )


def warm(bench: Bench, sides: Sequence[Side], blend: Blend, seconds: float) -> None:
    """Run the load through each tier, unmeasured."""
    for side in sides:
        bench.progress.begin(f"{NAME}: warming", side.name)
        end = clock() + seconds
        while side.caches and clock() < end:
            bench.require_time()
            pool = list(zip(*blend.draw(WARM_SLICE), strict=True))
            drive(side.front.port, pool, WARM_SLICE, WARM_CLIENTS)


def take_turns(bench: Bench, sides: Sequence[Side], load: Load, delay: float) -> Rounds:
    """All rounds of one load; who begins alternates."""
    found: Rounds = {side.name: [] for side in sides}
    for number in range(bench.rounds):
        for side in sides[:: -1 if number % 2 else 1]:
            detail = f"round {number + 1} of {bench.rounds}, {side.name}"
            bench.progress.begin(f"{NAME}: {delay:g} ms, {load.name}", detail)
            bench.require_time()
            found[side.name].append(run(bench, side, load, delay))
    return found


def add_row(section: Section, side: Side, load: Load, delay: float, rounds: Rounds) -> None:
    """The medians; × direct only where the pace was not given."""
    mine, direct = rounds[side.name], rounds["redis"]
    name = f"{delay:g}ms/{load.name}/{side.name}"
    times = [one.per_second / two.per_second for one, two in zip(mine, direct, strict=True)]
    rates = [100 * one.hit_rate for one in mine if one.hit_rate is not None]
    names = ("per_second", "p50", "p99", "redis_per_1000")
    spreads = {key: Spread.of(getattr(sample, key) for sample in mine) for key in names}
    section.add(
        name,
        delay=delay, load=load.title, contender=side.title,
        times=None if load.open_loop else Spread.of(times),
        hit_percent=Spread.of(rates) if rates else None,
        **spreads,
    )  # fmt: skip
    if behind := sum(sample.behind for sample in mine):
        section.notes.append(f"{name}: the rate was not reached in {behind} of {len(mine)} rounds")


# --- One run


def run(bench: Bench, side: Side, load: Load, delay: float) -> Sample:
    """One measured run, and what the tier and the Redis counted meanwhile."""
    told, ran = tier_info(side.front.port) if side.caches else {}, commands_run(side.redis.port)
    if load.blend and load.open_loop:
        outcome = openloop.run(side.front.port, RATE, bench.seconds, load.blend)
        found = outcome.achieved, outcome.p50, outcome.p99
        count, behind = outcome.answered, outcome.behind
    else:
        took = list(closed_loop(side.front.port, exchanges(bench, side, load, delay), bench.seconds))
        latency = Latency.of(took)
        found = len(took) / sum(took), latency.p50, latency.p99
        count, behind = len(took), False
    more = commands_run(side.redis.port) - ran - 1  # the INFO that asked
    hits = hit_rate(told, tier_info(side.front.port)) if told else None
    return Sample(*found, redis_per_1000=1000 * more / count, hit_rate=hits, behind=behind)


def exchanges(bench: Bench, side: Side, load: Load, delay: float) -> Iterable[tuple[bytes, bytes]]:
    """What a closed loop sends, and what it must be answered."""
    if load.blend:
        return itertools.cycle(list(zip(*load.blend.draw(DRAWN), strict=True)))
    get = COMMANDS["get"]
    numbers = itertools.islice(side.unread, cold_reads(bench.seconds, delay))
    return [(get.request(number), get.reply) for number in numbers]


def closed_loop(port: int, source: Iterable[tuple[bytes, bytes]], seconds: float = math.inf) -> array[float]:
    """One connection, each request when the last is answered: the seconds each took."""
    took = array("d")
    with connect(port) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = clock()
        end = before + seconds
        for request, reply in source:
            link.sendall(request)
            data = link.recv(RECEIVE)
            if data != reply:
                data += receive(link, len(reply) - len(data))
                if data != reply:
                    raise BenchError(f"unexpected reply: {data[:80]!r}")
            now = clock()
            took.append(now - before)
            before = now
            if now >= end:
                break
    return took
