"""What is measured and what it should reach, as data.

A new workload is a row here; a new kind of request also needs an entry in traffic.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.traffic import HOT_KEYS, MANY_KEYS

CLIENTS = 50
DEPTHS = (1, 16, 64)


@dataclass(frozen=True)
class Target:
    """CPU ratios to the group's baseline: the proxy alone, and the proxy with the Redis behind it."""

    own: float
    total: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the two that the rows of a group compare. Each has a Redis of its own, for the whole run."""

    name: str
    """In JSON and progress lines."""
    label: str
    """In column heads."""
    title: str
    """In failures."""
    proxied: bool = True
    """Whether the load meets a proxy in front of the Redis, or that itself."""
    options: tuple[str, ...] = ()
    """What its proxy is started with, beside the group's options; it is not itself without them."""
    scraped: bool = False
    """Whether its /metrics are scraped once a second meanwhile."""
    program: str = ""
    """The module of this package that faces the load instead of a proxy and its Redis."""
    prefix: bytes = b""
    """What stands in Redis before the key names that the load sends."""


NAMESPACE = "agent_service"
PASSWORD = "open sesame"


def tenant(number: int) -> str:
    """A tenant's name, which is its namespace as well; the password is `PASSWORD`."""
    return f"tenant{number}"


DIRECT = Side("redis", "Redis", "Redis direct", proxied=False)
PROXY = Side("proxy", "proxy", "the proxy")
PLAIN = Side("plain", "plain", "the plain proxy")
ECHO = Side("echo", "echo", "a bare echo server", proxied=False, program="bench.echo")
_ALONE = ("--admin-listen", "off", "--canary-interval", "0")
UNSEEN = Side("unseen", "unseen", "the proxy without metrics", options=_ALONE)
SEEN = Side("seen", "seen", "the proxy with metrics", options=("--canary-interval", "1s"), scraped=True)
NAMESPACED = Side(
    "namespaced",
    "namespaced",
    "the namespaced proxy",
    options=("--namespace", NAMESPACE),
    prefix=NAMESPACE.encode() + b":",
)


@dataclass(frozen=True)
class Group:
    """Rows measured against one process of each side."""

    name: str
    title: str
    about: str
    options: tuple[str, ...] = ()
    """What every proxy is started with."""
    tier: bool = False
    """Whether its rows say nothing about a proxy without a tier."""
    fill_requests: int = 0
    """Unmeasured uniform reads of all keys, through every proxy, before the first row over that many."""
    baseline: Side = DIRECT
    """What the ratios divide by."""
    contender: Side = PROXY
    """What is judged."""

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both, in the order of the first round."""
        return self.baseline, self.contender


@dataclass(frozen=True)
class Workload:
    """One row of a table: a kind of traffic at a pipeline depth."""

    test: str
    depth: int
    target: Target | None = None
    title: str = ""
    group: str = "pass-through"
    kind: str = ""
    """Tells it from a row of its group with the same test and depth."""
    clients: int = CLIENTS
    tenants: int = 0
    """Of how many tenants the clients are, in turn (see `tenant`); 0: of none."""
    keyspace: int = HOT_KEYS
    warmup_requests: int = 20_000
    least_hits: float | None = None
    """Share of reads the tier of every proxy must have answered, or the row is invalid."""
    most_hits: float | None = None
    """The same, upwards."""

    @property
    def name(self) -> str:
        """How progress lines and failures call it."""
        return " ".join(filter(None, (self.test.upper(), self.kind, f"P={self.depth}")))

    def requests_for(self, rate: float, seconds: float) -> int:
        """How many requests last about ``seconds``, in whole pipelines of every client."""
        step = self.depth * self.clients
        return max(1, round(rate * seconds / step)) * step


FILL_REQUESTS = 4_000_000

GROUPS = (
    Group(
        "floor",
        "Floor",
        "A server on the same event loop that does nothing but answer each chunk with so many copies of the "
        "one value: what receiving and sending alone cost here, whatever the program.",
        contender=ECHO,
    ),
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
        fill_requests=FILL_REQUESTS,
    ),
    Group(
        "metrics",
        "Metrics",
        "Hits as above, of two in the same rounds: one without the administration and the canary, one with "
        "both, whose /metrics is scraped once a second.",
        tier=True,
        baseline=UNSEEN,
        contender=SEEN,
    ),
    Group(
        "namespace",
        "Namespace",
        "Pannier in a namespace beside Pannier without (plain). Clients send both the same; each has a Redis "
        "of its own with the same data in it, under the prefix or without. Hits come first, every hot key "
        "having been read four times before each row; then uniform reads fill both tiers, far too small for "
        "the keys.",
        ("--max-memory", "64mb"),
        tier=True,
        fill_requests=FILL_REQUESTS,
        baseline=PLAIN,
        contender=NAMESPACED,
    ),
    Group(
        "namespace-pass-through",
        "Namespace, pass-through",
        "The same two without a tier: every command goes to Redis.",
        ("--tracking", "off"),
        baseline=PLAIN,
        contender=NAMESPACED,
    ),
)
GROUP_OF = {group.name: group for group in GROUPS}
MEMORY_GROUP = "memory"
IDLE_GROUP = "idle"
STALL_GROUP = "invalidation"
WORKERS_GROUP = "workers"
GROUP_NAMES = (*(group.name for group in GROUPS), WORKERS_GROUP, STALL_GROUP, MEMORY_GROUP, IDLE_GROUP)

HITS_WANTED = 0.9
PASS_THROUGH = {1: Target(1.1, 1.40), 16: Target(0.9, 1.9), 64: Target(0.9, 1.9)}
HITS = {1: Target(1.05), 16: Target(0.70), 64: Target(0.45)}
MISSES = {1: Target(1.32, 1.68), 16: Target(1.08, 2.28), 64: Target(1.08, 2.28)}
METRICS = Target(1.03)
NAMESPACE_HITS = Target(1.03)
NAMESPACE_REST = Target(1.15, 1.15)


def warmup(depth: int) -> int:
    """Requests that last a good part of a second at that depth."""
    return 20_000 if depth == 1 else 160_000


def floor_rows() -> list[Workload]:
    """What no server on this event loop can undercut."""
    return [
        Workload("get", depth, title="GET, any key", group="floor", warmup_requests=warmup(depth))
        for depth in DEPTHS
    ]


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


def metrics_rows() -> list[Workload]:
    """What being watched costs a hit."""
    plain = [workload for workload in hit_rows() if workload.test == "get"]
    return [replace(workload, target=METRICS, group="metrics") for workload in plain]


def namespace_rows() -> list[Workload]:
    """What a namespace adds to the three groups above: of their rows, those of plain GET and SET.

    The hits are first, because the tier that meets them must not be full of other keys yet.
    """
    plain = [workload for workload in hit_rows() if workload.test == "get"]
    hits = [replace(workload, kind="hits", target=NAMESPACE_HITS, group="namespace") for workload in plain]
    rest = [
        replace(workload, target=NAMESPACE_REST, group=group)
        for group, workloads in (
            ("namespace", miss_rows()),
            ("namespace-pass-through", pass_through_rows()),
        )
        for workload in workloads
    ]
    return [*hits, *rest]


WORKLOADS = (
    *pass_through_rows(), *hit_rows(), *miss_rows(), *metrics_rows(), *namespace_rows(), *floor_rows(),
)  # fmt: skip


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

STALL_ENTRIES = 100_000
STALL_HOT_KEYS = 100
STALL_RATE = 2_000
"""Hits a second while it is measured: a fiftieth of what a sidecar can do."""
STALL_OPTIONS = ("--admit-after", "1", "--max-memory", "256mb", "--refill-limit", "0")
"""The tier is filled again between rounds as fast as can be."""
STALL_TIMES, STALL_MORE, STALL_MOST = 2.0, 2.0, 10.0
"""What hits should keep to meanwhile: p99 twice that at rest or 2 ms more; the slowest, in milliseconds."""

OVERHEAD = Quantity("tier_overhead", "overhead an entry: growth less key and value", "bytes", 300.0, "≤")
GROWTH = Quantity("tier_growth", "growth of resident memory an entry", "bytes")
COUNTED = Quantity("tier_counted", "what the proxy itself counts an entry", "bytes")
WARM_SECONDS = Quantity("warm_seconds", "warming the tier at the start", "s", 10.0)
WARM_CPU = Quantity("warm_cpu", "the proxy's CPU for a key that is warmed", "µs")
WARM_REDIS_CPU = Quantity("warm_redis_cpu", "Redis' CPU for a key that is warmed", "µs")
