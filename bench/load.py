"""Load generators. Both run as a process of their own, whose CPU is known exactly when it has ended.

``redis-benchmark`` is used when it is on PATH. Where it is not, ``python -m bench.load`` sends the same
requests from pre-encoded batches over plain sockets and epoll, and compares every batch of replies.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from bench.servers import HOST, ROOT, BenchError
from bench.workloads import CLIENTS, KEYSPACE, TESTS, Workload, reply, request

SATURATED = 0.95
POOL = 20_000  # requests encoded ahead, at least


@dataclass(frozen=True)
class LoadResult:
    """What one run of a generator brought."""

    requests: int
    per_second: float
    cpu_share: float
    p50_ms: float | None = None

    @property
    def saturated(self) -> bool:
        """Whether the generator, not the server, set the pace."""
        return self.cpu_share > SATURATED


@dataclass(frozen=True)
class Generator:
    """A program that produces load."""

    name: str
    version: str
    program: tuple[str, ...]

    @property
    def builtin(self) -> bool:
        """Whether it is the stand-in of this package."""
        return self.name == "built-in"

    def command(self, port: int, workload: Workload, requests: int) -> list[str]:
        """The command line of one run; both programs take the same options."""
        options = {
            "-h": HOST,
            "-p": port,
            "-t": workload.test,
            "-n": requests,
            "-c": workload.clients,
            "-P": workload.depth,
            "-r": workload.keyspace,
        }
        return [*self.program, "--csv", *(str(word) for pair in options.items() for word in pair)]

    def run(self, port: int, workload: Workload, requests: int, timeout: float) -> LoadResult:
        """Send ``requests`` requests; raises BenchError when that fails or takes longer than ``timeout``."""
        output, status, cpu_seconds = run_accounted(self.command(port, workload, requests), timeout)
        if status:
            raise BenchError(f"{self.name}: status {status}: {output.strip()[-300:]}")
        figures = parse_csv(output)
        per_second, p50 = figures["rps"], figures.get("p50_latency_ms")
        busy = figures.get("cpu_seconds", cpu_seconds)
        return LoadResult(requests, per_second, busy * per_second / requests, p50)


def find_generator(force_builtin: bool = False) -> Generator:
    """redis-benchmark, or the stand-in."""
    path = None if force_builtin else shutil.which("redis-benchmark")
    if not path:
        return Generator("built-in", "1", (sys.executable, "-m", "bench.load"))
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return Generator("redis-benchmark", found.group() if found else "?", (path,))


def run_accounted(command: Sequence[str], timeout: float) -> tuple[str, int, float]:
    """Run a command to its end: its output, its status and the CPU seconds it used."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        ended = os.pidfd_open(process.pid)
        try:
            in_time = bool(select.select([ended], [], [], timeout)[0])
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            os.close(ended)
        if not in_time:
            process.kill()
            process.wait()
            raise BenchError(f"{Path(command[0]).name} did not finish within {timeout:.0f} s")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return text, process.returncode, usage.ru_utime + usage.ru_stime


def parse_csv(output: str) -> dict[str, float]:
    """The figures of ``--csv`` output by name: ``rps`` always, more where there is a header line."""
    header = ["test", "rps"]
    for row in csv.reader(io.StringIO(output)):
        if row[:2] == ["test", "rps"]:
            header = row
        elif len(row) >= 2 and re.fullmatch(r"\d+(\.\d+)?", row[1]) and float(row[1]):
            return {name: float(value) for name, value in zip(header[1:], row[1:], strict=False)}
    raise BenchError(f"no figures in the load generator's output: {output.strip()[-300:]!r}")


class Connection:
    """One client of the built-in generator: a batch out, its replies in, the next batch out."""

    __slots__ = ("expected", "pending", "socket")

    def __init__(self, port: int, expected: bytes) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=10.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expected = expected
        self.pending = b""

    def take(self) -> bool:
        """Read what is there; True when the batch is answered in full, and rightly."""
        data = self.socket.recv(1 << 16)
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


def batches(workload: Workload) -> Iterator[bytes]:
    """Endless batches of requests, encoded beforehand, keys at random."""
    count = max(POOL // workload.depth, 200)
    draw = random.Random(1).randrange
    one = [request(workload.test, number) for number in range(workload.keyspace)]
    pool = [b"".join(one[draw(workload.keyspace)] for _ in range(workload.depth)) for _ in range(count)]
    return cycle(pool)


def drive(port: int, workload: Workload, requests: int) -> tuple[float, float]:
    """Send about ``requests`` requests over all clients; the seconds it took, and its own CPU seconds."""
    source = batches(workload)
    expected = reply(workload.test) * workload.depth
    clients = [Connection(port, expected) for _ in range(workload.clients)]
    to_send = to_answer = max(1, requests // workload.depth)
    poll = select.epoll()
    by_number = {client.socket.fileno(): client for client in clients}
    started, cpu_before = time.perf_counter(), time.process_time()
    for number, client in by_number.items():
        poll.register(number, select.EPOLLIN)
        if to_send:
            to_send -= 1
            client.socket.sendall(next(source))
    while to_answer:
        ready = poll.poll(10.0)
        if not ready:
            raise BenchError("no reply for 10 s")
        for number, _ in ready:
            client = by_number[number]
            if client.take():
                to_answer -= 1
                if to_send:
                    to_send -= 1
                    client.socket.sendall(next(source))
    seconds, busy = time.perf_counter() - started, time.process_time() - cpu_before
    for client in clients:
        client.socket.close()
    poll.close()
    return seconds, busy


def main(arguments: Sequence[str] | None = None) -> int:
    """The built-in generator as a program: the options of redis-benchmark that the bench uses."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=main.__doc__, add_help=False)
    parser.add_argument("--help", action="help", help="show this help and exit")
    parser.add_argument("-h", dest="host", default=HOST, choices=[HOST], help="loopback only")
    parser.add_argument("-p", dest="port", type=int, required=True, help="port")
    parser.add_argument("-t", dest="test", choices=TESTS, default="get", help="command")
    parser.add_argument("-n", dest="requests", type=int, default=100_000, help="number of requests")
    parser.add_argument("-c", dest="clients", type=int, default=CLIENTS, help="connections")
    parser.add_argument("-P", dest="depth", type=int, default=1, help="pipeline depth")
    parser.add_argument("-r", dest="keyspace", type=int, default=KEYSPACE, help="number of keys")
    parser.add_argument("--csv", action="store_true", help="accepted; the output is CSV anyway")
    options = parser.parse_args(arguments)
    workload = Workload(options.test, options.depth, clients=options.clients, keyspace=options.keyspace)
    requests = max(1, options.requests // options.depth) * options.depth
    try:
        seconds, busy = drive(options.port, workload, requests)
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print('"test","rps","cpu_seconds"')
    print(f'"{options.test.upper()}",{requests / seconds:.2f},{busy:.4f}')
    return 0


if __name__ == "__main__":
    sys.exit(main())
