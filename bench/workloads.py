"""What is measured and what it should reach, as data.

A new workload is a row here; a new kind of request also needs an entry in traffic.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.traffic import HOT_KEYS, MANY_KEYS

CLIENTS = 50
DEPTHS = (1, 16, 64)


@dataclass(frozen=True)
class Target:
    """CPU ratios to Redis direct: the proxy alone, and the proxy with the Redis behind it."""

    own: float
    total: float | None = None


@dataclass(frozen=True)
class Group:
    """Rows measured against one proxy process."""

    name: str
    title: str
    about: str
    options: tuple[str, ...] = ()
    """What the proxy is started with."""
    tier: bool = False
    """Whether its rows say nothing about a proxy without a tier."""
    fill_requests: int = 0
    """Unmeasured uniform reads of all keys before the first row."""


@dataclass(frozen=True)
class Workload:
    """One row of a table: a kind of traffic at a pipeline depth."""

    test: str
    depth: int
    target: Target | None = None
    title: str = ""
    group: str = "pass-through"
    clients: int = CLIENTS
    keyspace: int = HOT_KEYS
    warmup_requests: int = 20_000
    least_hits: float | None = None
    """Share of reads the tier must have answered, or the row is invalid."""
    most_hits: float | None = None
    """The same, upwards."""

    @property
    def name(self) -> str:
        """How progress lines and failures call it."""
        return f"{self.test.upper()} P={self.depth}"

    def requests_for(self, rate: float, seconds: float) -> int:
        """How many requests last about ``seconds``, in whole pipelines of every client."""
        step = self.depth * self.clients
        return max(1, round(rate * seconds / step)) * step


GROUPS = (
    Group(
        "pass-through",
        "Pass-through",
        "The tier is off: every command goes to Redis.",
        ("--tracking", "off"),
    ),
    Group(
        "hits",
        "Hits",
        "Default settings; every hot key was read four times through the proxy before each row. Kinds of "
        "requests are drawn at random; the SETs go to the keys of the GETs, which costs hits.",
        tier=True,
    ),
    Group(
        "misses",
        "Misses and writes",
        "A tier far too small for the keys, filled by uniform reads before the first row.",
        ("--max-memory", "64mb"),
        tier=True,
        fill_requests=4_000_000,
    ),
)
MEMORY_GROUP = "memory"
IDLE_GROUP = "idle"
GROUP_NAMES = (*(group.name for group in GROUPS), MEMORY_GROUP, IDLE_GROUP)

HITS_WANTED = 0.9
PASS_THROUGH = {1: Target(1.1, 1.40), 16: Target(0.9, 1.9), 64: Target(0.9, 1.9)}
HITS = {1: Target(1.05), 16: Target(0.70), 64: Target(0.45)}
MISSES = {1: Target(1.32, 1.68), 16: Target(1.08, 2.28), 64: Target(1.08, 2.28)}


def warmup(depth: int) -> int:
    """Requests that last a good part of a second at that depth."""
    return 20_000 if depth == 1 else 160_000


def pass_through_rows() -> list[Workload]:
    """The proxy as a relay."""
    return [
        Workload(
            test,
            depth,
            PASS_THROUGH[depth],
            f"{test.upper()}, {HOT_KEYS:,} keys",
            warmup_requests=warmup(depth),
            most_hits=0.01,
        )
        for test in ("get", "set")
        for depth in DEPTHS
    ]


def hit_rows() -> list[Workload]:
    """The tier at its work, first undisturbed, then not."""

    def row(test: str, depth: int, title: str, least: float = HITS_WANTED, warm: int = 0) -> Workload:
        target = HITS[depth] if test == "get" else None
        requests = warm or warmup(depth)
        return Workload(test, depth, target, title, "hits", warmup_requests=requests, least_hits=least)

    # A pipeline with a SET in it goes to Redis whole, so the mixed rows have few hits or, at depth 64, hardly
    # any; the rows with cold keys are meant to miss one read in ten.
    mixed = f"GET with 25 % HGET and 5 % SET between, {HOT_KEYS:,} hot keys"
    cold = f"GET with 10 % misses: {HOT_KEYS:,} hot keys, {MANY_KEYS - HOT_KEYS:,} cold ones"
    return [
        *(row("get", depth, f"GET, {HOT_KEYS:,} hot keys") for depth in DEPTHS),
        *(row("mixed", depth, mixed, 0.0) for depth in DEPTHS[1:]),
        row("lrange-10", 1, "LRANGE 0 -1, lists of 10 elements"),
        row("lrange-1000", 1, "LRANGE 0 -1, lists of 1,000 elements", warm=4_000),
        *(row("get-misses", depth, cold, 0.8) for depth in DEPTHS),
    ]


def miss_rows() -> list[Workload]:
    """What the tier costs where it cannot help."""
    return [
        Workload(
            test,
            depth,
            MISSES[depth],
            f"{test.upper()}, {MANY_KEYS:,} keys, uniform",
            "misses",
            keyspace=MANY_KEYS,
            warmup_requests=warmup(depth),
        )
        for test in ("get", "set")
        for depth in DEPTHS
    ]


WORKLOADS = (*pass_through_rows(), *hit_rows(), *miss_rows())


@dataclass(frozen=True)
class Quantity:
    """One figure beside the rows, with the limit it should keep to, if it has one."""

    key: str
    title: str
    unit: str
    limit: float | None = None
    sign: str = "<"


IDLE_CONNECTIONS = 5_000
READY_STARTS = 3

READY_UPSTREAM = Quantity("ready_upstream", "exec to first PONG, with an upstream", "s", 0.6)
READY_EMBEDDED = Quantity("ready_embedded", "exec to first PONG, with the embedded server", "s", 0.6)
RSS_IDLE = Quantity("rss_idle", "resident memory, idle", "MB", 45.0)
PER_CONNECTION = Quantity("per_connection", "memory per idle connection", "KB", 10.0)

MEMORY_ENTRIES = 100_000
MEMORY_VALUE = 100
MEMORY_OPTIONS = ("--max-memory", "256mb")

OVERHEAD = Quantity("tier_overhead", "overhead an entry: growth less key and value", "bytes", 300.0, "≤")
GROWTH = Quantity("tier_growth", "growth of resident memory an entry", "bytes")
COUNTED = Quantity("tier_counted", "what the proxy itself counts an entry", "bytes")
