"""What a worker hears from its parent, and tells it: lines of JSON over a connection of their own.

The parent says `stop`, `reload`, and `drain` or not to; the worker tells when it serves, and what has come of
reloading. The end of the connection is the end of the parent: a worker does not go on without.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from proxy.places import Place
from proxy.reload import Reloader


class Stop(asyncio.Event):
    """That Pannier is to stop; `signal` names why."""

    signal = ""


Do = Callable[[Mapping[str, Any]], Awaitable[None] | None]


class Leash:
    """One end of that connection. `gone` is called when the other one has ended."""

    def __init__(self, sock: socket.socket, do: Do, gone: Callable[[], None]) -> None:
        self._sock = sock
        self._do = do
        self._gone = gone
        self._writer: asyncio.StreamWriter | None = None
        self._unsaid: list[bytes] = []

    async def run(self) -> None:
        """Do what is said, until the other end has gone."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
            self._writer.writelines(self._unsaid)
            while line := await reader.readline():
                done = self._do(json.loads(line))
                if done is not None:
                    await done
        except (OSError, ValueError):
            pass  # the end came in the middle of a line, or took what we said with it
        self._gone()

    def say(self, what: str, **more: object) -> None:
        """Tell the other end something; nothing happens if it has gone."""
        line = json.dumps({"what": what, **more}).encode() + b"\n"
        if self._writer is None:
            self._unsaid.append(line)
        elif not self._writer.is_closing():
            self._writer.write(line)

    def close(self) -> None:
        """End the connection."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._sock.close()


class Worker:
    """The end of a worker: what it is told is done to `stop` and to the reloader."""

    def __init__(self, place: Place, stop: Stop) -> None:
        self.reloader: Reloader | None = None
        """What reads the settings again."""
        self.drain: Callable[[bool], object] = bool
        """Says whether clients are to go elsewhere."""
        self.orphaned = False
        """Whether the parent has ended."""
        self._stop = stop
        sock = socket.socket(fileno=place.control)
        sock.set_inheritable(False)
        self._leash = Leash(sock, self._obey, self._lost)

    def begin(self) -> asyncio.Task[None]:
        """Hear what is said from now on."""
        return asyncio.get_running_loop().create_task(self._leash.run())

    def ready(self, addresses: list[str], banner: str) -> None:
        """Say that clients are served."""
        self._leash.say("ready", addresses=addresses, banner=banner)

    async def _obey(self, order: Mapping[str, Any]) -> None:
        if order["what"] == "stop":
            self._end(order["signal"])
        elif order["what"] == "drain":
            self.drain(order["draining"])
        elif order["what"] == "reload":
            reloader = self.reloader
            trouble = await reloader.obey(order["why"]) if reloader is not None else ""
            self._leash.say("reloaded", trouble=trouble)

    def _lost(self) -> None:
        self.orphaned = not self._stop.is_set()
        self._end("the end of the parent")

    def _end(self, why: str) -> None:
        if not self._stop.is_set():
            self._stop.signal = why
            self._stop.set()
