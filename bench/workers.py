"""One worker and two: what two load generators get out of them, at what cost in CPU and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bench import cpu
from bench.data import Store, connect, read_through
from bench.figures import Spread
from bench.load import Generator, LoadResult, parse_csv, run_accounted
from bench.progress import Progress
from bench.servers import HOST, BenchError, Server, Stable, receive
from bench.traffic import HOT_KEYS, bulk, frame, parts
from bench.workloads import CLIENTS, Workload

COUNTS = (1, 2)
"""Workers of each side."""
GENERATORS = 2
SETTLE = 0.05
READY = 30.0
OPTION = "--workers"
_ALONE = ("--admin-listen", "off", "--canary-interval", "0")


@dataclass(frozen=True)
class Traffic:
    """What is sent: reads of hot keys, at a depth, and how the proxies are started for it."""

    title: str
    depth: int
    options: tuple[str, ...]
    hits: bool
    words: tuple[str, ...] = ()
    """The command that is sent; none: GET of hot keys."""


ROWS = tuple(
    Traffic(title, depth, options, hits, words)
    for title, options, hits, words in (
        ("GET, all hits", (), True, ()),
        ("GET, passed on to Redis", ("--tracking", "off"), False, ()),
        ("CLIENT ID, answered by Pannier", (), False, ("CLIENT", "ID")),
    )
    for depth in (1, 16)
)


@dataclass(frozen=True)
class Run:
    """One run of all generators; CPU in µs per operation."""

    per_second: float
    own_us: float
    behind_us: float
    load_cpu: float


@dataclass
class Scaling:
    """All rounds of one row, by the number of workers."""

    traffic: Traffic
    runs: dict[int, list[Run]] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    """Bytes of the process tree that are resident after the last round, by the number of workers."""

    def spread(self, count: int, attribute: str) -> Spread:
        """Summarise one attribute of a side over the rounds."""
        return Spread.of(getattr(run, attribute) for run in self.runs[count])

    def ratio(self) -> Spread:
        """The throughput of the most workers over that of the fewest, in the same round."""
        pairs = zip(self.runs[COUNTS[-1]], self.runs[COUNTS[0]], strict=True)
        return Spread.of(more.per_second / fewer.per_second for more, fewer in pairs)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "title": self.traffic.title,
            "depth": self.traffic.depth,
            "ratio": self.ratio().to_json(),
            "workers": {
                str(count): {name: self.spread(count, name).to_json() for name in Run.__annotations__}
                | {"rss_bytes": self.memory[count]}
                for count in self.runs
            },
        }


def measure(
    stable: Stable, generator: Generator, rounds: int, seconds: float, deadline: float, progress: Progress
) -> tuple[list[Scaling], list[str]]:
    """Every row, and what failed."""
    found: list[Scaling] = []
    failures: list[str] = []
    if not stable.proxy.knows(OPTION):
        return [], [f"workers: nothing is known about the option {OPTION}"]
    try:
        redis = stable.start_redis("Redis behind the workers")
        Store(redis.port, b"").provide(parts("get", HOT_KEYS))
        for traffic in ROWS:
            if traffic.words and generator.builtin:
                continue  # it sends only what it knows
            progress.begin(f"workers: {traffic.title} P={traffic.depth}")
            try:
                found.append(_row(stable, redis, traffic, generator, rounds, seconds, deadline))
            except (BenchError, OSError) as error:
                failures.append(f"workers: {traffic.title} P={traffic.depth}: {error}")
            progress.step()
    finally:
        stable.stop(list(stable.servers))
    return found, failures


def _row(
    stable: Stable, redis: Server, traffic: Traffic, generator: Generator, rounds: int, seconds: float,
    deadline: float,
) -> Scaling:  # fmt: skip
    row = Scaling(traffic)
    proxies = {}
    for count in COUNTS:
        options = [*_ALONE, *traffic.options, OPTION, str(count)]
        proxies[count] = stable.start_proxy(redis, options, f"proxy with {count} workers")
    try:
        requests = {}
        for count, proxy in proxies.items():
            _until_all_serve(proxy, count)
            if traffic.hits:
                _until_all_keep(proxy, count)
            workload = _workload(traffic)
            rate, _ = _load(proxy, generator, traffic, workload.warmup_requests, deadline)
            requests[count] = workload.requests_for(rate / GENERATORS, seconds)
        for number in range(rounds):
            for count in COUNTS[:: -1 if number % 2 else 1]:
                run = _run(proxies[count], redis, generator, traffic, requests[count], deadline)
                row.runs.setdefault(count, []).append(run)
        row.memory = {count: _rss(proxy) for count, proxy in proxies.items()}
    finally:
        stable.stop(list(proxies.values()))
    return row


def _workload(traffic: Traffic) -> Workload:
    return Workload("get", traffic.depth, clients=CLIENTS // GENERATORS)


def _send(generator: Generator, port: int, traffic: Traffic, requests: int, timeout: float) -> LoadResult:
    """One run of one generator."""
    workload = _workload(traffic)
    if not traffic.words:
        return generator.run(port, workload, requests, timeout)
    options = {"-h": HOST, "-p": port, "-n": requests, "-c": workload.clients, "-P": workload.depth}
    words = [str(word) for pair in options.items() for word in pair]
    output, status, busy = run_accounted([*generator.program, "--csv", *words, *traffic.words], timeout)
    if status:
        raise BenchError(f"{generator.name}: status {status}: {output.strip()[-300:]}")
    per_second = parse_csv(output)["rps"]
    return LoadResult(requests, per_second, busy * per_second / requests)


def _load(
    proxy: Server, generator: Generator, traffic: Traffic, requests: int, deadline: float
) -> tuple[float, float]:
    """Have all generators send so many requests each; requests a second of all, and CPU of the busiest."""
    timeout = max(deadline - time.monotonic(), 1.0)
    with ThreadPoolExecutor(GENERATORS) as pool:
        runs = [
            pool.submit(_send, generator, proxy.port, traffic, requests, timeout) for _ in range(GENERATORS)
        ]
        results = [run.result() for run in runs]
    return sum(each.per_second for each in results), max(each.cpu_share for each in results)


def _run(
    proxy: Server, redis: Server, generator: Generator, traffic: Traffic, requests: int, deadline: float
) -> Run:
    before = [cpu.sample(server.pid) for server in (proxy, redis)]
    per_second, load_cpu = _load(proxy, generator, traffic, requests, deadline)
    time.sleep(SETTLE)
    after = [cpu.sample(server.pid) for server in (proxy, redis)]
    proxy.require_alive()
    own, behind = (
        cpu.between(*pair) / 1000 / (GENERATORS * requests) for pair in zip(before, after, strict=True)
    )
    return Run(per_second, own, behind, load_cpu)


def _rss(proxy: Server) -> int:
    return sum(cpu.rss_bytes(pid) for pid in cpu.tree(proxy.pid))


def _until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY
    while not holds():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {READY:g} s")
        time.sleep(0.02)


def _until_all_serve(proxy: Server, count: int) -> None:
    """Wait until each worker has been met."""
    met = set()

    def holds() -> bool:
        proxy.require_alive()
        with connect(proxy.port) as link:
            met.add(_asked(link, b"INFO", b"sidecar").partition(b"pannier_worker:")[2][:2])
        return len(met) == count

    _until(f"{count} workers", holds)


def _until_all_keep(proxy: Server, count: int) -> None:
    """Read all that is sent through each worker until it keeps it."""

    def holds() -> bool:
        read_through(proxy.port, parts("get", HOT_KEYS))
        with connect(proxy.port) as link:
            told = _asked(link, b"SIDECAR", b"STATS").partition(bulk(b"tier_entries"))[2]
        return int(told[1:].partition(b"\r\n")[0]) >= count * HOT_KEYS

    _until(f"the tiers of {count} workers", holds)


def _asked(link: Any, *words: bytes) -> bytes:
    """The reply to a request, up to a moment's silence: for what is looked at, not measured."""
    link.settimeout(0.3)
    link.sendall(frame(*words))
    with suppress(TimeoutError):
        return receive(link, 1 << 20)
    return b""


ABOUT = (
    f"{GENERATORS} load generators with {CLIENTS // GENERATORS} clients each, against Panniers with "
    f"{COUNTS[0]} and {COUNTS[-1]} workers in the same rounds, in front of one Redis. k/s: thousands of "
    "operations a second of all generators. CLIENT ID costs the generators and Redis next to nothing, so "
    "that the workers have the cores nearly to themselves. CPU is that of the whole process tree, the parent "
    "included. "
    "Memory: resident, all processes added up (pages that they share count once for each), after the last "
    "round. Generators, workers and Redis share the machine's cores: where these are fewer than busy "
    "processes, more workers cannot get more of them."
)


def table_rows(found: Sequence[Scaling]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table."""
    heads = ["what is measured", "P"]
    heads += [f"k/s with {count}" for count in COUNTS]
    heads.append(f"{COUNTS[-1]} ÷ {COUNTS[0]}")
    heads += [f"own µs/op with {count}" for count in COUNTS]
    heads += [f"Redis µs/op with {count}" for count in COUNTS]
    heads += [f"MB with {count}" for count in COUNTS]
    heads.append("busiest generator's CPU")
    lines = []
    for row in found:
        line = [row.traffic.title, str(row.traffic.depth)]
        line += [row.spread(count, "per_second").show(0, 1e-3) for count in COUNTS]
        line.append(row.ratio().show(2))
        for name in ("own_us", "behind_us"):
            line += [f"{row.spread(count, name).median:.2f}" for count in COUNTS]
        line += [f"{row.memory[count] / 1e6:.0f}" for count in COUNTS]
        busiest = max(run.load_cpu for runs in row.runs.values() for run in runs)
        lines.append([*line, f"{busiest:.0%}"])
    return heads, lines
