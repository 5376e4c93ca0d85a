"""What is measured and what it should reach, as data.

A new workload is a row here; a new kind of workload also needs a generator that understands it (load.py).
"""

from __future__ import annotations

from dataclasses import dataclass

KEYSPACE = 10_000
CLIENTS = 50
VALUE = b"VXK"  # what redis-benchmark writes when it is told nothing else


@dataclass(frozen=True)
class Target:
    """CPU ratios to Redis direct: the proxy alone, and the proxy with the Redis behind it."""

    own: float
    total: float


@dataclass(frozen=True)
class Workload:
    """One row of the table: a command at a pipeline depth."""

    test: str
    depth: int
    target: Target | None = None
    clients: int = CLIENTS
    keyspace: int = KEYSPACE
    warmup_requests: int = 20_000

    @property
    def name(self) -> str:
        """How progress lines and failures call it."""
        return f"{self.test.upper()} P={self.depth}"

    def requests_for(self, rate: float, seconds: float) -> int:
        """How many requests last about ``seconds``, in whole pipelines of every client."""
        step = self.depth * self.clients
        return max(1, round(rate * seconds / step)) * step


PASS_THROUGH = {1: Target(1.1, 1.40), 16: Target(0.9, 1.9), 64: Target(0.9, 1.9)}
TESTS = ("get", "set")

WORKLOADS = tuple(
    Workload(test, depth, PASS_THROUGH[depth], warmup_requests=20_000 if depth == 1 else 160_000)
    for test in TESTS
    for depth in PASS_THROUGH
)


@dataclass(frozen=True)
class IdleFigure:
    """One figure of a proxy that has nothing to do, with the limit it should stay under."""

    key: str
    title: str
    unit: str
    limit: float


IDLE_CONNECTIONS = 5_000
READY_STARTS = 3

READY_UPSTREAM = IdleFigure("ready_upstream", "exec to first PONG, with an upstream", "s", 0.6)
READY_EMBEDDED = IdleFigure("ready_embedded", "exec to first PONG, with the embedded server", "s", 0.6)
RSS_IDLE = IdleFigure("rss_idle", "resident memory, idle", "MB", 45.0)
PER_CONNECTION = IdleFigure("per_connection", "memory per idle connection", "KB", 10.0)


def key(number: int) -> bytes:
    """The name redis-benchmark gives a key of its key space."""
    return b"key:%012d" % number


def frame(*arguments: bytes) -> bytes:
    """A command as clients send it."""
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in arguments)


def request(test: str, number: int) -> bytes:
    """The request of a test for one key."""
    if test == "get":
        return frame(b"GET", key(number))
    if test == "set":
        return frame(b"SET", key(number), VALUE)
    raise ValueError(f"no request known for test {test!r}; known are {', '.join(TESTS)}")


def reply(test: str) -> bytes:
    """The one reply every request of a test gets when the key set is filled."""
    return b"+OK\r\n" if test == "set" else b"$%d\r\n%s\r\n" % (len(VALUE), VALUE)
