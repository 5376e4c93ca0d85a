"""Steady reads of hot keys, far fewer than a server can answer: when each was sent, and when it was answered.

A process of its own, so that neither the server nor the bench delays what it notes. It sends by the clock,
whether earlier reads have been answered or not: a server that stalls delays all that comes meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from itertools import cycle

import hiredis

from bench.servers import HOST, BenchError
from bench.traffic import COMMANDS

RECEIVE = 1 << 16
CONNECTIONS = 4


class Client:
    """One connection and the moments at which its unanswered reads were sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=10.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent: deque[float] = deque()
        self._reader = hiredis.Reader()

    def send(self, request: bytes) -> None:
        """Send a read, now."""
        self.sent.append(time.monotonic())
        self.socket.sendall(request)

    def take(self, samples: array[float]) -> None:
        """Take the answers that are there; the value may be gone."""
        data = self.socket.recv(RECEIVE)
        now = time.monotonic()
        if not data:
            raise BenchError("the server closed a connection")
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if isinstance(answer, hiredis.ReplyError):
                raise BenchError(f"GET answered {answer}")
            samples.extend((self.sent.popleft(), now))


def pace(port: int, rate: float, keys: int) -> array[float]:
    """Read until standard input ends, `rate` times a second; pairs of moments on the monotonic clock."""
    clients = {client.socket: client for client in (Client(port) for _ in range(CONNECTIONS))}
    requests = cycle([COMMANDS["get"].request(number) for number in range(keys)])
    turns = cycle(clients.values())
    samples = array("d")
    due = time.monotonic()
    while True:
        while due <= time.monotonic():
            next(turns).send(next(requests))
            due += 1 / rate
        ready, _, _ = select.select([*clients, sys.stdin], [], [], max(0.0, due - time.monotonic()))
        for source in ready:
            if source is sys.stdin:
                return samples
            clients[source].take(samples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read by the clock until standard input ends; write the moments to standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.pacer", description=main.__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float, help="reads a second")
    parser.add_argument("keys", type=int, help="hot keys")
    options = parser.parse_args(arguments)
    gc.disable()
    try:
        samples = pace(options.port, options.rate, options.keys)
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(samples.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
