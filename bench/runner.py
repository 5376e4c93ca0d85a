"""Runs workloads: contenders take turns within each round, warm-up and calibration come first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import cpu
from bench.load import Generator, LoadResult
from bench.report import DIRECT, PROXY, Cell, Measurement, Progress
from bench.servers import BenchError, Server, Stable, check_reads, prefill
from bench.workloads import Workload

SETTLE = 0.02  # lets the scheduler's account of the last requests reach the kernel's files
MIN_WARMUP = 0.25


@dataclass(frozen=True)
class Contender:
    """What is measured: the server that faces the load, and the Redis behind it, if it has one."""

    name: str
    own: Server
    behind: Server | None = None


@dataclass
class Runner:
    """One run's servers, generator and limits."""

    stable: Stable
    generator: Generator
    rounds: int
    seconds: float
    deadline: float
    progress: Progress

    def contenders(self) -> list[Contender]:
        """Start all servers; the proxy has a Redis of its own."""
        direct = self.stable.start_redis("Redis direct")
        behind = self.stable.start_redis("Redis behind the proxy")
        proxy = self.stable.start_proxy(behind)
        prefill(direct.port)
        prefill(proxy.port)
        return [Contender(DIRECT, direct), Contender(PROXY, proxy, behind)]

    def load(self, contender: Contender, workload: Workload, requests: int) -> LoadResult:
        """One run of the generator, never beyond the time limit of the whole."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise BenchError("the time limit is reached")
        timeout = min(left, 15 + 10 * self.seconds)
        try:
            return self.generator.run(contender.own.port, workload, requests, timeout)
        except BenchError:
            contender.own.require_alive()
            raise

    def calibrate(self, contender: Contender, workload: Workload) -> int:
        """Warm the contender up, unmeasured; returns how many requests make a measurement long enough."""
        contender.own.require_alive()
        check_reads(contender.own.port)
        requests = workload.warmup_requests
        warm = self.load(contender, workload, requests)
        if requests / warm.per_second < MIN_WARMUP:
            warm = self.load(contender, workload, workload.requests_for(warm.per_second, 2 * MIN_WARMUP))
        return workload.requests_for(warm.per_second, self.seconds)

    def measure(self, contender: Contender, workload: Workload, requests: int) -> Measurement:
        """One measured run."""
        servers = [contender.own, *([contender.behind] if contender.behind else [])]
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
        )

    def run_cell(self, workload: Workload, contenders: Sequence[Contender], cell: Cell) -> None:
        """All rounds of one workload; who begins alternates."""
        requests = {}
        for contender in contenders:
            self.progress.begin(workload.name, f"warm-up, {contender.name}")
            requests[contender.name] = self.calibrate(contender, workload)
            self.progress.step()
        for number in range(self.rounds):
            found = {}
            for contender in contenders[:: -1 if number % 2 else 1]:
                self.progress.begin(workload.name, f"round {number + 1} of {self.rounds}, {contender.name}")
                found[contender.name] = self.measure(contender, workload, requests[contender.name])
                self.progress.step()
            for name, measurement in found.items():
                cell.rounds.setdefault(name, []).append(measurement)
        for contender in contenders:
            check_reads(contender.own.port)

    def run(self, workloads: Sequence[Workload]) -> tuple[list[Cell], list[str]]:
        """Every workload, and what failed; a failure ends its row, not the run."""
        cells: list[Cell] = []
        failures: list[str] = []
        try:
            contenders = self.contenders()
        except (BenchError, OSError) as error:
            self.stable.stop(list(self.stable.servers))
            return cells, [str(error)]
        for workload in workloads:
            cell = Cell(workload)
            cells.append(cell)
            try:
                self.run_cell(workload, contenders, cell)
            except (BenchError, OSError) as error:
                failures.append(f"{workload.name}: {error}")
        self.stable.stop(list(self.stable.servers))
        return cells, failures
