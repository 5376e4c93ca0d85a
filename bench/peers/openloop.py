"""Open-loop load: requests leave by the clock, whether or not earlier ones have been answered.

A closed loop asks nothing while it waits: a server that stalls for 200 ms delays one request of each client,
and those that users would have sent meanwhile are never counted (Gil Tene calls it coordinated omission).
Here request i is due at start + i/rate and goes to connection i mod N, and its latency runs from the moment
it was due, so that a stall, be it the server's or this program's, is charged to all that were due meanwhile.

Requests are encoded before the clock starts. Replies come in the order of the requests of their connection,
so the next one's number is known without a queue: N more than that of the last. While it runs, only moments
are noted; latencies are reckoned, and put into an HdrHistogram, when all is over.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import random
import select
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from bench.load import SATURATED, run_accounted
from bench.servers import HOST, BenchError
from bench.traffic import COMMANDS
from bench.workloads import CLIENTS

RECEIVE = 1 << 16
PATIENCE = 10.0
"""Seconds without any reply after the last request until the run is given up."""
KEPT_UP = 0.97
"""The least share of the rate asked for that counts as reached."""
WARM_UP = 0.25
"""Of the measured seconds: how long it runs beforehand, not counted."""
WAKE = 15e-6
"""Seconds the kernel takes to wake a process: so much earlier it is woken, and then looks at the clock."""
LOOK = 5e-6
"""Seconds: one look at the clock in vain takes less. What is above is time another process had."""
STUCK = 0.001
"""Seconds until another try, when a connection takes no more for now."""
LONGEST_US = 600_000_000
DIGITS = 3

clock = time.perf_counter


# --- Percentiles


def histogram() -> Any:
    """An empty HdrHistogram for microseconds; raises BenchError when the package is not installed."""
    try:
        module = importlib.import_module("hdrh.histogram")
    except ImportError as error:
        raise BenchError("the package hdrhistogram (module hdrh) is not installed") from error
    return module.HdrHistogram(1, LONGEST_US, DIGITS)


@dataclass(frozen=True)
class Latency:
    """What requests took, in microseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    most: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency:
        """Summarise; there must be one at least."""
        counts = Counter(min(LONGEST_US, max(1, round(value * 1e6))) for value in seconds)
        recorded = histogram()
        for value, count in counts.items():
            recorded.record_value(value, count)
        found = (float(recorded.get_value_at_percentile(share)) for share in (50, 90, 99, 99.9))
        p50, p90, p99, p999 = found
        return cls(p50, p90, p99, p999, float(max(counts)))


def wake_exactly() -> None:
    """Ask the kernel not to put off this process' wake-ups by the usual 50 µs; without Linux it does."""
    with suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")


# --- What is sent


@cache
def _weights(keys: int, exponent: float) -> list[float]:
    """Cumulative weights of ranks 1 to `keys` under Zipf's law."""
    return list(accumulate(rank**-exponent for rank in range(1, keys + 1)))


@cache
def _encoded(command: str, keys: int) -> list[bytes]:
    """The request for every key."""
    return list(map(COMMANDS[command].request, range(keys)))


@dataclass(frozen=True)
class Blend:
    """GETs with SETs of the same value between, on keys drawn uniformly or by Zipf's law."""

    keys: int
    write_share: float = 0.0
    exponent: float = 0.0
    """Of Zipf's law; 0 is uniform."""

    def draw(self, count: int) -> tuple[list[bytes], list[bytes]]:
        """That many requests, and the one right reply to each."""
        reads, writes = _encoded("get", self.keys), _encoded("set", self.keys)
        weights = _weights(self.keys, self.exponent) if self.exponent else None
        numbers = random.choices(range(self.keys), cum_weights=weights, k=count)
        if not self.write_share:
            return [reads[number] for number in numbers], [COMMANDS["get"].reply] * count
        kinds = [random.random() < self.write_share for _ in numbers]
        pairs = list(zip(kinds, numbers, strict=True))
        replies = (COMMANDS["get"].reply, COMMANDS["set"].reply)
        requests = [writes[number] if write else reads[number] for write, number in pairs]
        return requests, [replies[write] for write in kinds]


# --- Sending it


class Connection:
    """One client. Its requests have the numbers `first`, `first + step` and so on."""

    __slots__ = ("next", "pending", "socket", "step", "unsent")

    def __init__(self, port: int, first: int, step: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=10.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.next = first
        """The number of the request whose reply comes next."""
        self.step = step
        self.pending = b""
        self.unsent = b""

    def send(self, request: bytes) -> bool:
        """Send a request, or keep what the socket does not take; whether it is stuck."""
        if self.unsent:
            self.unsent += request
            return True
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        self.unsent = request[sent:]
        return bool(self.unsent)

    def retry(self) -> bool:
        """Try again what was kept; whether it is stuck still."""
        kept, self.unsent = self.unsent, b""
        return self.send(kept)

    def take(self, replies: Sequence[bytes], done: array[float]) -> int:
        """Read what is there and note when it came; how many replies were complete."""
        data = self.socket.recv(RECEIVE)
        now = clock()
        number = self.next
        if number < len(replies) and data == replies[number] and not self.pending:
            done[number] = now
            self.next = number + self.step
            return 1
        return self._take_pieces(data, now, replies, done)

    def _take_pieces(self, data: bytes, now: float, replies: Sequence[bytes], done: array[float]) -> int:
        """The same for several replies at once, parts of them, and what should not be."""
        if not data:
            raise BenchError("the server closed a connection")
        data, count = self.pending + data, 0
        while data:
            wanted = replies[self.next] if self.next < len(replies) else b""
            if not wanted or not data.startswith(wanted[: len(data)]):
                raise BenchError(f"unexpected reply: {data[:80]!r}")
            if len(data) < len(wanted):
                break
            data = data[len(wanted) :]
            done[self.next] = now
            self.next += self.step
            count += 1
        self.pending = data
        return count


class Load:
    """One run: what is sent, when each request left and when it was answered."""

    def __init__(self, port: int, rate: float, blend: Blend, count: int, connections: int) -> None:
        self.gap = 1 / rate
        self.requests, self.replies = blend.draw(count)
        self.left = array("d", bytes(8 * count))
        self.done = array("d", bytes(8 * count))
        self.sent = self.answered = 0
        self.idle = 0.0
        """Seconds spent looking at the clock with nothing to do."""
        self.connections: list[Connection] = []
        self._stuck: set[Connection] = set()
        self._poll = select.epoll()
        for number in range(connections):
            self.connections.append(Connection(port, number, connections))
            self._poll.register(self.connections[-1].socket, select.EPOLLIN)
        self._by_number = {connection.socket.fileno(): connection for connection in self.connections}
        self.start = 0.0
        """When the first request is due."""

    def close(self) -> None:
        """Close all connections."""
        self._poll.close()
        for connection in self.connections:
            connection.socket.close()

    def due(self, number: int) -> float:
        """When a request should leave."""
        return self.start + number * self.gap

    def run(self) -> None:
        """Send everything by the clock, and wait for what is not answered yet."""
        count = len(self.requests)
        self.start = clock() + 0.005
        while self.answered < count:
            began, busy = clock(), self._send_due()
            wait = self.due(self.sent) - clock() - WAKE if self.sent < count else PATIENCE
            if self._stuck:
                wait = min(wait, STUCK)
            if wait > 0 and not select.select([self._poll], [], [], wait)[0] and wait == PATIENCE:
                raise BenchError(f"no reply for {PATIENCE:g} s")
            ready = self._poll.poll(0, len(self.connections))
            for number, _ in ready:
                self.answered += self._by_number[number].take(self.replies, self.done)
            if wait <= 0 and not ready and not busy:
                self.idle += min(LOOK, clock() - began)

    def _send_due(self) -> bool:
        """Send what should have left by now; whether there was any."""
        if self._stuck:
            self._stuck = {connection for connection in self._stuck if connection.retry()}
        first = number = self.sent
        now, start, gap, count, clients = clock(), self.start, self.gap, len(self.requests), self.connections
        while number < count and start + number * gap <= now:
            connection = clients[number % len(clients)]
            if connection.send(self.requests[number]):
                self._stuck.add(connection)
            self.left[number] = clock()
            number += 1
        self.sent = number
        return number > first

    def latencies(self, first: int) -> list[float]:
        """Seconds from when each request was due to its reply, from number `first` on."""
        found = [self.done[number] - self.due(number) for number in range(first, self.answered)]
        if min(found) < 0:
            raise BenchError("replies came to requests that had not been sent yet")
        return found

    def lateness(self, first: int) -> list[float]:
        """Seconds from when each request was due to when it had been sent."""
        return [self.left[number] - self.due(number) for number in range(first, self.sent)]


@dataclass(frozen=True)
class Outcome:
    """What one run brought: rates a second, times in microseconds from the moment a request was due."""

    rate: float
    """What was asked for."""
    achieved: float
    """Replies a second."""
    sent: int
    answered: int
    """Both with those of the warm-up, which nothing else counts."""
    p50: float
    p90: float
    p99: float
    p999: float
    most: float
    late_p99: float
    """How late requests were sent: 1 % later than that."""
    cpu_share: float
    """Of a core, the generator's own, without looking at the clock in vain."""

    @property
    def behind(self) -> bool:
        """Whether the figures are those of a lower rate, or may be the generator's own."""
        return self.cpu_share > SATURATED or self.achieved < KEPT_UP * self.rate

    def to_json(self) -> dict[str, float]:
        """As the program prints it."""
        found = {name: round(value, 4) for name, value in asdict(self).items()}
        found["p99.9"], found["max"] = found.pop("p999"), found.pop("most")
        return found | {"behind": self.behind}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Outcome:
        """From what the program printed."""
        values = {name: value for name, value in found.items() if name not in ("behind", "p99.9", "max")}
        return cls(**values, p999=found["p99.9"], most=found["max"])


def drive(port: int, rate: float, seconds: float, blend: Blend, connections: int) -> Outcome:
    """One run in this process."""
    warm, measured = round(rate * seconds * WARM_UP), max(2, round(rate * seconds))
    load = Load(port, rate, blend, warm + measured, connections)
    try:
        began, busy = clock(), time.process_time()
        load.run()
        spent, took = time.process_time() - busy - load.idle, clock() - began
    finally:
        load.close()
    found, late = Latency.of(load.latencies(warm)), Latency.of(load.lateness(warm))
    first, last = min(load.done[warm:]), max(load.done[warm:])
    achieved = (measured - 1) / (last - first) if last > first else rate
    return Outcome(
        rate, achieved, load.sent, load.answered, found.p50, found.p90, found.p99, found.p999, found.most,
        late.p99, max(0.0, spent) / took,
    )  # fmt: skip


def run(port: int, rate: float, seconds: float, blend: Blend, connections: int = CLIENTS) -> Outcome:
    """One run as a process of its own, for the sections; raises BenchError with its last words."""
    options = {
        "--connections": connections,
        "--keys": blend.keys,
        "--write-share": blend.write_share,
        "--zipf": blend.exponent,
    }
    words = [str(word) for word in (port, f"{rate:.1f}", seconds)]
    words += [str(word) for pair in options.items() for word in pair]
    output, status, _ = run_accounted([sys.executable, "-m", __name__, *words], 30 + 10 * seconds)
    if status:
        raise BenchError(f"open loop: {output.strip()[-300:]}")
    return Outcome.from_json(json.loads(output))


def main(arguments: Sequence[str] | None = None) -> int:
    """Open-loop load at a constant rate; prints what it found as JSON, times in µs."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.openloop", description=main.__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float, help="requests a second")
    parser.add_argument("seconds", type=float, help="to be measured, after a quarter of that unmeasured")
    parser.add_argument("--connections", type=int, default=CLIENTS)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--write-share", type=float, default=0.0, help="share of SETs")
    parser.add_argument("--zipf", type=float, default=0.0, help="exponent of Zipf's law; 0 is uniform")
    options = parser.parse_args(arguments)
    blend = Blend(options.keys, options.write_share, options.zipf)
    gc.disable()
    wake_exactly()
    try:
        outcome = drive(options.port, options.rate, options.seconds, blend, options.connections)
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(outcome.to_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
