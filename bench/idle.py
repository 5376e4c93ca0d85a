"""What the proxy takes while it has nothing to do: start-up time, resident memory, memory per connection."""

from __future__ import annotations

import resource
import socket
import time
from dataclasses import dataclass

from bench import cpu
from bench.figures import Figure
from bench.servers import HOST, PING, BenchError, Server, Stable, receive
from bench.workloads import (
    IDLE_CONNECTIONS,
    PER_CONNECTION,
    READY_EMBEDDED,
    READY_STARTS,
    READY_UPSTREAM,
    RSS_IDLE,
    Quantity,
)

SETTLE = 1.0
SPARE_DESCRIPTORS = 200


@dataclass(frozen=True)
class Room:
    """How many idle connections fit into the limits of this machine."""

    connections: int
    note: str


def make_room(wanted: int = IDLE_CONNECTIONS) -> Room:
    """Raise the limit of open files, for this process and the servers it will start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    fits = min(wanted, limit - SPARE_DESCRIPTORS)
    return Room(fits, "" if fits == wanted else f"only {fits} connections: the open files limit is {hard}")


def start_times(stable: Stable, upstream: Server | None, starts: int) -> list[float]:
    """Start the proxy several times; the first start, which may compile and cache, is not counted."""
    times = []
    for _ in range(starts + 1):
        server = stable.start_proxy(upstream)
        times.append(server.ready_seconds)
        stable.stop([server])
    return times[1:]


def connect_idle(port: int, count: int) -> list[socket.socket]:
    """Open connections that say PING once and then nothing."""
    links: list[socket.socket] = []
    try:
        for _ in range(count):
            link = socket.create_connection((HOST, port), timeout=10.0)
            links.append(link)
            link.sendall(PING)
            if (got := receive(link, 7)) != b"+PONG\r\n":
                raise BenchError(f"idle connection {len(links)}: PING answered {got!r}")
    except OSError as error:
        close_all(links)
        raise BenchError(f"idle connection {len(links)}: {error}") from error
    except BaseException:
        close_all(links)
        raise
    return links


def close_all(links: list[socket.socket]) -> None:
    """Close every socket."""
    for link in links:
        link.close()


def measure_memory(stable: Stable, upstream: Server, room: Room) -> list[Figure]:
    """Resident memory of a fresh proxy, and how it grows with idle connections.

    The first connections fit into memory that start-up has freed and would look cheap, so growth is taken
    over the second half of them.
    """
    proxy = stable.start_proxy(upstream)
    time.sleep(SETTLE)
    empty = cpu.rss_bytes(proxy.pid)
    half = room.connections // 2
    if half < 1:
        raise BenchError(room.note)
    links = connect_idle(proxy.port, half)
    try:
        time.sleep(SETTLE)
        before = cpu.rss_bytes(proxy.pid)
        links += connect_idle(proxy.port, half)
        time.sleep(SETTLE)
        after = cpu.rss_bytes(proxy.pid)
    finally:
        close_all(links)
    proxy.require_alive()
    stable.stop([proxy])
    note = room.note or f"{2 * half} connections, the second half counted"
    return [
        Figure(RSS_IDLE, [empty / 1e6]),
        Figure(PER_CONNECTION, [(after - before) / half / 1024], note),
    ]


def measure_ready(stable: Stable, what: Quantity, upstream: Server | None, starts: int) -> Figure:
    """Start-up time as a figure of the report."""
    return Figure(what, start_times(stable, upstream, starts))


def measure(stable: Stable, starts: int = READY_STARTS) -> tuple[list[Figure], list[str]]:
    """All idle figures, and what failed."""
    figures: list[Figure] = []
    failures: list[str] = []
    upstream = stable.start_redis("Redis behind the proxy")
    ready = [(READY_UPSTREAM, upstream, True), (READY_EMBEDDED, None, stable.proxy.embedded is not None)]
    for what, behind, possible in ready:
        try:
            if possible:
                figures.append(measure_ready(stable, what, behind, starts))
        except (BenchError, OSError) as error:
            failures.append(f"{what.title}: {error}")
    try:
        figures += measure_memory(stable, upstream, make_room())
    except (BenchError, OSError) as error:
        failures.append(f"idle memory: {error}")
    stable.stop(list(stable.servers))
    return figures, failures
