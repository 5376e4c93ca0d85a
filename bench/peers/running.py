"""Contenders at work: each with its data, taking turns within a round, and what each spends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench import cpu
from bench.data import Store, check_reads, connect, hit_rate, read_through, tier_info
from bench.figures import Spread
from bench.load import LoadResult, generator_for
from bench.peers.contenders import Contender
from bench.peers.sections import Value
from bench.peers.setting import Bench
from bench.runner import FILL_SLICE, MIN_WARMUP, SETTLE
from bench.servers import BenchError, Server, receive
from bench.traffic import frame, parts
from bench.workloads import Workload

_STATS = frame(b"INFO", b"stats")
_EACH = 40
"""Pipelines that each client sends at least."""
_COMMANDS = re.compile(rb"^total_commands_processed:(\d+)", re.MULTILINE)


@dataclass
class Entrant:
    """A contender started, with its Redis and what is in it."""

    contender: Contender
    server: Server
    redis: Server
    store: Store
    prepare: Callable[[Bench, Workload], None] | None = None
    """What loads and warms in place of the usual, where clients are not alike."""

    @property
    def name(self) -> str:
        """The contender's."""
        return self.contender.name

    @property
    def behind(self) -> Server | None:
        """The Redis behind a proxy; None where that is the server itself."""
        return None if self.server is self.redis else self.redis


@dataclass(frozen=True)
class Measured:
    """One measurement; CPU in µs per operation."""

    own_us: float
    behind_us: float
    per_second: float
    load_cpu: float
    saturated: bool
    redis_per_1000: float
    """Commands at Redis per 1,000 requests."""
    hit_rate: float | None
    p50_ms: float | None

    @property
    def total_us(self) -> float:
        """The contender and its Redis."""
        return self.own_us + self.behind_us


def commands_run(port: int) -> int:
    """How many commands a Redis has run since it was started."""
    with connect(port) as link:
        link.sendall(_STATS)
        head = bytearray()
        while not head.endswith(b"\r\n") and (part := link.recv(1)):
            head += part
        found = _COMMANDS.search(receive(link, int(head[1:])))
    if found is None:
        raise BenchError("Redis does not tell how many commands it has run")
    return int(found.group(1))


@contextmanager
def entered(
    bench: Bench, contenders: Sequence[Contender], redis_options: Sequence[str] = ()
) -> Iterator[list[Entrant]]:
    """All of them started, each before a Redis of its own; who does not start is left out, and it is said."""
    with bench.servers() as stable:
        found: list[Entrant] = []
        for contender in contenders:
            try:
                redis = stable.start_redis(f"Redis of {contender.name}", redis_options)
                server = contender.start(stable, redis)
                found.append(Entrant(contender, server, redis, Store(redis.port)))
            except (BenchError, OSError) as error:
                bench.failures.append(f"{contender.name} does not start: {error}")
        yield found


def load(bench: Bench, entrant: Entrant, workload: Workload, requests: int) -> LoadResult:
    """One run of the generator."""
    bench.require_time()
    try:
        generator = generator_for(workload, bench.generator)
        return generator.run(entrant.server.port, workload, requests, 30 + 20 * bench.seconds)
    except BenchError:
        entrant.server.require_alive()
        raise


def fill(bench: Bench, entrant: Entrant, workload: Workload, requests: int) -> None:
    """Reads of all keys, for tiers that are meant to be full."""
    entrant.store.provide(parts(workload.test, workload.keyspace))
    if entrant.contender.caches:
        for _ in range(requests // FILL_SLICE):
            load(bench, entrant, replace(workload, test="get", depth=64), FILL_SLICE)


def calibrate(bench: Bench, entrant: Entrant, workload: Workload) -> int:
    """Load the data and warm up, unmeasured; how many requests last as long as a measurement should."""
    if entrant.prepare:
        entrant.prepare(bench, workload)
    else:
        sent = parts(workload.test, workload.keyspace)
        entrant.store.provide(sent)
        if entrant.contender.caches and workload.least_hits is not None:
            read_through(entrant.server.port, sent)
        check_reads(entrant.server.port, sent)
    warm = load(bench, entrant, workload, workload.warmup_requests)
    if workload.warmup_requests / warm.per_second < MIN_WARMUP:
        warm = load(bench, entrant, workload, workload.requests_for(warm.per_second, 2 * MIN_WARMUP))
    fewest = _EACH * workload.clients  # or connecting would be most of what is measured
    return max(workload.requests_for(warm.per_second, bench.seconds), fewest * workload.depth)


def measure(bench: Bench, entrant: Entrant, workload: Workload, requests: int) -> Measured:
    """One measured run."""
    caches = entrant.contender.caches
    servers = [entrant.server, *filter(None, [entrant.behind])]
    told = tier_info(entrant.server.port) if caches else {}
    ran = commands_run(entrant.redis.port)
    before = [cpu.sample(server.pid) for server in servers]
    result = load(bench, entrant, workload, requests)
    time.sleep(SETTLE)
    after = [cpu.sample(server.pid) for server in servers]
    ran = commands_run(entrant.redis.port) - ran - 1  # the INFO that asked
    for server in servers:
        server.require_alive()
    spent = [cpu.between(*pair) / 1000 / requests for pair in zip(before, after, strict=True)]
    return Measured(
        own_us=spent[0],
        behind_us=sum(spent[1:]),
        per_second=result.per_second,
        load_cpu=result.cpu_share,
        saturated=result.saturated,
        redis_per_1000=1000 * ran / requests,
        hit_rate=hit_rate(told, tier_info(entrant.server.port)) if told else None,
        p50_ms=result.p50_ms,
    )


Rounds = dict[str, list[Measured]]
"""By the contenders' names; entry n of each list is from round n."""


def take_turns(bench: Bench, entrants: Sequence[Entrant], workload: Workload, stage: str) -> Rounds:
    """All rounds of one workload; who begins alternates. Who fails is left out from then on, and said so."""
    found: Rounds = {}
    requests: dict[str, int] = {}
    failed: set[str] = set()
    for number in range(-1, bench.rounds):
        for entrant in entrants[:: -1 if number % 2 else 1]:
            if entrant.name in failed:
                continue
            what = f"round {number + 1} of {bench.rounds}" if number >= 0 else "warm-up"
            bench.progress.begin(stage, f"{what}, {entrant.name}")
            bench.progress.step()
            try:
                if number < 0:
                    requests[entrant.name] = calibrate(bench, entrant, workload)
                    continue
                got = measure(bench, entrant, workload, requests[entrant.name])
                found.setdefault(entrant.name, []).append(got)
                if not entrant.prepare:
                    check_reads(entrant.server.port, parts(workload.test, workload.keyspace))
            except (BenchError, OSError) as error:
                bench.failures.append(f"{stage}: {entrant.name}: {error}")
                failed.add(entrant.name)
    return {name: rounds for name, rounds in found.items() if name not in failed}


def figures(rounds: Rounds, name: str, base: str = "redis") -> dict[str, Value]:
    """The medians of a contender, and its ratios to the base in the same round, where there is one."""
    mine, theirs = rounds[name], rounds.get(base, [])
    found: dict[str, Value] = {
        attribute: Spread.of(getattr(one, attribute) for one in mine)
        for attribute in ("own_us", "behind_us", "total_us", "per_second", "load_cpu", "redis_per_1000")
    }
    for part in ("own", "total") if theirs else ():
        pairs = zip(mine, theirs, strict=True)
        found[f"{part}_ratio"] = Spread.of(getattr(one, f"{part}_us") / two.total_us for one, two in pairs)
    if rates := [one.hit_rate for one in mine if one.hit_rate is not None]:
        found["hit_percent"] = Spread.of(100 * rate for rate in rates)
    return found
