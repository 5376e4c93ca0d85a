"""Runs the groups: contenders take turns within each round, warm-up and calibration come first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench import cpu
from bench.data import Store, check_reads, hit_rate, read_through, tier_info
from bench.figures import Cell, Measurement, Result
from bench.load import Generator, LoadResult, generator_for
from bench.progress import Progress
from bench.scrape import Scraper
from bench.servers import HOST, BenchError, Server, Stable, free_port
from bench.traffic import MANY_KEYS, parts
from bench.workloads import DIRECT, GROUPS, Group, Side, Workload

SETTLE = 0.02  # lets the scheduler's account of the last requests reach the kernel's files
MIN_WARMUP = 0.25
FILL_SLICE = (
    250_000  # requests in one run of the generator, so that a slow proxy is not taken for a stuck one
)


@dataclass(frozen=True)
class Contender:
    """A side of a group at work: the server that faces the load, its data, the Redis behind it, if any."""

    name: str
    own: Server
    store: Store
    behind: Server | None = None
    ends: bool = False
    """Whether it is of its group only; the Redis of a side serves all."""
    scraper: Scraper | None = None


@dataclass
class Runner:
    """One run's servers, generator and limits."""

    stable: Stable
    generator: Generator
    rounds: int
    seconds: float
    deadline: float
    progress: Progress
    data: dict[str, tuple[Server, Store]] = field(default_factory=dict)
    """The Redis of each side that has had a row so far, and what is in it."""

    def load(self, contender: Contender, workload: Workload, requests: int) -> LoadResult:
        """One run of the generator, never beyond the time limit of the whole."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise BenchError("the time limit is reached")
        timeout = min(left, 15 + 10 * self.seconds)
        try:
            generator = generator_for(workload, self.generator)
            return generator.run(contender.own.port, workload, requests, timeout)
        except BenchError:
            contender.own.require_alive()
            raise

    def prepare(self, contender: Contender, workload: Workload) -> None:
        """Load what the row reads, and have the tier take it where the row is about hits."""
        contender.own.require_alive()
        sent = parts(workload.test, workload.keyspace)
        contender.store.provide(sent)
        if contender.behind and workload.least_hits is not None:
            read_through(contender.own.port, sent)
        check_reads(contender.own.port, sent)

    def calibrate(self, contender: Contender, workload: Workload) -> int:
        """Warm the contender up, unmeasured; returns how many requests make a measurement long enough."""
        self.prepare(contender, workload)
        requests = workload.warmup_requests
        warm = self.load(contender, workload, requests)
        if requests / warm.per_second < MIN_WARMUP:
            warm = self.load(contender, workload, workload.requests_for(warm.per_second, 2 * MIN_WARMUP))
        return workload.requests_for(warm.per_second, self.seconds)

    def measure(self, contender: Contender, workload: Workload, requests: int) -> Measurement:
        """One measured run."""
        servers = [contender.own, *([contender.behind] if contender.behind else [])]
        told = tier_info(contender.own.port) if contender.behind else {}
        before = [cpu.sample(server.pid) for server in servers]
        result = self.load(contender, workload, requests)
        time.sleep(SETTLE)
        after = [cpu.sample(server.pid) for server in servers]
        for server in servers:
            server.require_alive()
        spent = [cpu.between(*pair) / 1000 / requests for pair in zip(before, after, strict=True)]
        return Measurement(
            own_us=spent[0],
            behind_us=sum(spent[1:]),
            per_second=result.per_second,
            load_cpu=result.cpu_share,
            saturated=result.saturated,
            p50_ms=result.p50_ms,
            hit_rate=hit_rate(told, tier_info(contender.own.port)) if told else None,
        )

    def run_cell(self, workload: Workload, contenders: Sequence[Contender], cell: Cell) -> None:
        """All rounds of one workload; who begins alternates."""
        stage = f"{workload.group}: {workload.name}"
        requests = {}
        for contender in contenders:
            self.progress.begin(stage, f"warm-up, {contender.name}")
            requests[contender.name] = self.calibrate(contender, workload)
            self.progress.step()
        for number in range(self.rounds):
            found = {}
            for contender in contenders[:: -1 if number % 2 else 1]:
                self.progress.begin(stage, f"round {number + 1} of {self.rounds}, {contender.name}")
                found[contender.name] = self.measure(contender, workload, requests[contender.name])
                self.progress.step()
            for name, measurement in found.items():
                cell.rounds.setdefault(name, []).append(measurement)
        for contender in contenders:
            check_reads(contender.own.port, parts(workload.test, workload.keyspace))

    def fill(self, group: Group, contenders: Sequence[Contender]) -> None:
        """Uniform reads of all keys, so that every row from here on meets tiers that are full."""
        self.progress.begin(f"{group.name}: filling the tier")
        workload = Workload("get", 64, keyspace=MANY_KEYS)
        for proxy in contenders:
            if proxy.behind:
                proxy.store.provide(parts(workload.test, workload.keyspace))
                for _ in range(group.fill_requests // FILL_SLICE):
                    self.load(proxy, workload, FILL_SLICE)

    def redis_of(self, side: Side) -> tuple[Server, Store]:
        """The side's Redis, started when a group first needs it, and what is in it."""
        if side.name not in self.data:
            server = self.stable.start_redis(f"Redis behind {side.title}" if side.proxied else side.title)
            self.data[side.name] = server, Store(server.port, side.prefix)
        return self.data[side.name]

    def enter(self, side: Side, options: Sequence[str]) -> Contender:
        """A side ready to be measured: its Redis, with a fresh proxy in front where it has one.

        Raises BenchError when the proxy does not know the option that makes the side: both would be the same.
        """
        if side.options and not self.stable.proxy.knows(side.options[0]):
            raise BenchError(f"{side.title} needs {side.options[0]}, which is no option that is known")
        if side.program:
            server = self.stable.start_program(side.program, side.title)
            return Contender(side.name, server, self.redis_of(DIRECT)[1], ends=True)
        redis, store = self.redis_of(side)
        if not side.proxied:
            return Contender(side.name, redis, store)
        title = side.title.removeprefix("the ")
        words = [*options, *side.options]
        if not side.scraped:
            return Contender(side.name, self.stable.start_proxy(redis, words, title), store, redis, ends=True)
        admin = f"{HOST}:{free_port()}"
        proxy = self.stable.start_proxy(redis, [*words, "--admin-listen", admin], title)
        scraper = Scraper(f"http://{admin}/metrics")
        return Contender(side.name, proxy, store, redis, ends=True, scraper=scraper)

    def run_group(self, group: Group, rows: Sequence[Workload], result: Result) -> None:
        """The rows of one group, against proxies of its own; a failure ends its row, not the run."""
        options, note = self.stable.options_for(group.options)
        if note:
            result.notes[group.name] = note
        contenders: list[Contender] = []
        try:
            for side in group.sides:
                contenders.append(self.enter(side, options))
            missing = (note or self.tierless(contenders)) if group.tier else ""
            filled = not group.fill_requests
            for workload in rows:
                if not filled and workload.keyspace == MANY_KEYS:
                    self.fill(group, contenders)
                    filled = True
                cell = Cell(workload, missing=missing)
                result.cells.append(cell)
                try:
                    self.run_cell(workload, contenders, cell)
                except (BenchError, OSError) as error:
                    result.failures.append(f"{group.name}: {workload.name}: {error}")
        finally:
            for contender in contenders:
                if contender.scraper is not None:
                    contender.scraper.stop()
            self.stable.stop([contender.own for contender in contenders if contender.ends])

    @staticmethod
    def tierless(contenders: Sequence[Contender]) -> str:
        """What to say of a proxy that does not count hits, if there is one."""
        proxies = [contender for contender in contenders if contender.behind]
        if all("hits" in tier_info(proxy.own.port) for proxy in proxies):
            return ""
        return "INFO sidecar has no pannier_tier_hits"

    def run(self, workloads: Sequence[Workload], result: Result) -> None:
        """Every workload, in the order of the groups; ``result`` gets what is found and what failed."""
        try:
            for group in GROUPS:
                if mine := [workload for workload in workloads if workload.group == group.name]:
                    try:
                        self.run_group(group, mine, result)
                    except (BenchError, OSError) as error:
                        result.failures.append(f"{group.name}: {error}")
        finally:
            self.stable.stop(list(self.stable.servers))
