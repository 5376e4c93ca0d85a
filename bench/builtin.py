"""The built-in load generator: requests encoded beforehand, plain sockets and epoll, every reply compared.

It costs about as much CPU as redis-benchmark at depth 1, less at depth 64. Requests are drawn before the
clock starts, enough for the whole run up to ``POOL``, so that keys meant to be cold do not come round again.
"""

from __future__ import annotations

import argparse
import gc
import select
import socket
import sys
import time
from collections.abc import Sequence
from itertools import cycle

from bench.servers import HOST, BenchError
from bench.traffic import HOT_KEYS, TESTS, batches, frame
from bench.workloads import CLIENTS, PASSWORD, tenant

POOL = 1_500_000  # requests encoded ahead, at most
RECEIVE = 1 << 17


class Connection:
    """One client: a batch out, its replies in, the next batch out."""

    __slots__ = ("expected", "pending", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=10.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expected = b""
        self.pending = b""

    def send(self, batch: tuple[bytes, bytes]) -> None:
        """Send a batch; what it must be answered with comes along."""
        requests, self.expected = batch
        self.socket.sendall(requests)

    def take(self) -> bool:
        """Read what is there; True when the batch is answered in full, and rightly."""
        data = self.socket.recv(RECEIVE)
        if not data:
            raise BenchError("the server closed a connection")
        data = self.pending + data if self.pending else data
        if data == self.expected:
            self.pending = b""
            return True
        if not self.expected.startswith(data):
            raise BenchError(f"unexpected reply: {data[-100:]!r}")
        self.pending = data
        return False


def login(connection: Connection, name: str) -> None:
    """Have a connection be a tenant's."""
    connection.socket.sendall(frame(b"AUTH", name.encode(), PASSWORD.encode()))
    if (said := connection.socket.recv(RECEIVE)) != b"+OK\r\n":
        raise BenchError(f"AUTH {name} answered {said!r}")


def drive(
    port: int, pool: Sequence[tuple[bytes, bytes]], count: int, clients: int, tenants: int = 0
) -> tuple[float, float]:
    """Send ``count`` batches over all clients; the seconds it took, and its own CPU seconds."""
    source = cycle(pool)
    connections = [Connection(port) for _ in range(clients)]
    for number, connection in enumerate(connections if tenants else ()):
        login(connection, tenant(number % tenants))
    to_send = to_answer = count
    poll = select.epoll()
    by_number = {connection.socket.fileno(): connection for connection in connections}
    started, cpu_before = time.perf_counter(), time.process_time()
    for number, connection in by_number.items():
        poll.register(number, select.EPOLLIN)
        if to_send:
            to_send -= 1
            connection.send(next(source))
    while to_answer:
        ready = poll.poll(10.0)
        if not ready:
            raise BenchError("no reply for 10 s")
        for number, _ in ready:
            connection = by_number[number]
            if connection.take():
                to_answer -= 1
                if to_send:
                    to_send -= 1
                    connection.send(next(source))
    seconds, busy = time.perf_counter() - started, time.process_time() - cpu_before
    for connection in connections:
        connection.socket.close()
    poll.close()
    return seconds, busy


def main(arguments: Sequence[str] | None = None) -> int:
    """The generator as a program: the options of redis-benchmark that the bench uses."""
    parser = argparse.ArgumentParser(prog="python -m bench.builtin", description=main.__doc__, add_help=False)
    parser.add_argument("--help", action="help", help="show this help and exit")
    parser.add_argument("-h", dest="host", default=HOST, choices=[HOST], help="loopback only")
    parser.add_argument("-p", dest="port", type=int, required=True, help="port")
    parser.add_argument("-t", dest="test", choices=TESTS, default="get", help="what to send")
    parser.add_argument("-n", dest="requests", type=int, default=100_000, help="number of requests")
    parser.add_argument("-c", dest="clients", type=int, default=CLIENTS, help="connections")
    parser.add_argument("-P", dest="depth", type=int, default=1, help="pipeline depth")
    parser.add_argument("-r", dest="keyspace", type=int, default=HOT_KEYS, help="keys of get and set")
    parser.add_argument("--tenants", type=int, default=0, help="of how many tenants connections are, in turn")
    parser.add_argument("--csv", action="store_true", help="accepted; the output is CSV anyway")
    options = parser.parse_args(arguments)
    count = max(1, options.requests // options.depth)
    gc.disable()
    pool = batches(options.test, options.keyspace, options.depth, min(count, max(1, POOL // options.depth)))
    try:
        seconds, busy = drive(options.port, pool, count, options.clients, options.tenants)
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print('"test","rps","cpu_seconds"')
    print(f'"{options.test.upper()}",{count * options.depth / seconds:.2f},{busy:.4f}')
    return 0


if __name__ == "__main__":
    sys.exit(main())
