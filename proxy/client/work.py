"""Commands of the sidecar's own that may take long: one sees how far they are, and ends them by leaving.

To close one's sending side counts as leaving, as with commands that block: nobody can tell it from a client
that is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING

from proxy.resp import encode
from proxy.resp.errors import UpstreamError

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.client.spaces import Space

Answer = Callable[["Session", list[bytes]], Coroutine[None, None, bytes]]


class Work:
    """What a session waits for. `name`: as CLIENT LIST has it. `ends`: whether it does with the client."""

    __slots__ = ("_began", "ends", "figures", "name")

    def __init__(self, name: str, ends: bool = True) -> None:
        self.name = name
        self.ends = ends
        self.figures: Callable[[], dict[str, int]] = dict
        """How far it is, in numbers by name."""
        self._began = time.monotonic()

    def line(self) -> str:
        """How far it is, in the style of INFO's `# Keyspace`."""
        fields = {"cmd": self.name, **self.figures(), "seconds": f"{time.monotonic() - self._began:.1f}"}
        return ",".join(f"{name}={value}" for name, value in fields.items())

    def stopped(self) -> bytes:
        """The reply to who sends no more."""
        return encode.error(f"ERR pannier: stopped before the end: {self._done()}")

    async def answered(self, answer: Answer, session: Session, arguments: list[bytes]) -> bytes:
        """An answer; where it fails, the error says how far it was. Raises UpstreamError."""
        try:
            return await answer(session, arguments)
        except UpstreamError as error:
            raise error.midway(self._done()) from None

    def _done(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.figures().items()) or "nothing done"


def lasting(name: str, answer: Answer) -> Answer:
    """What answers a command that may take long, given what makes its answer (which finds `session.work`)."""

    def begin(session: Session, arguments: list[bytes]) -> Coroutine[None, None, bytes]:
        session.work = work = Work(name)
        return work.answered(answer, session, arguments)

    return begin


async def going_on(session: Session, work: Coroutine[None, None, bytes]) -> bytes:
    """The reply of work that goes on though the client leaves."""
    task = asyncio.get_running_loop().create_task(work)
    session.clients.works.add(task)
    task.add_done_callback(session.clients.works.discard)
    return await asyncio.shield(task)


def under_way(sessions: Iterable[Session], space: Space) -> dict[str, object]:
    """For INFO and SIDECAR STATS: what is under way, in a namespace only of those who are in it."""
    found = {
        f"long_command_{session.id}": session.work.line()
        for session in sessions
        if session.work is not None and (space.namespace is None or session.space is space)
    }
    return {"long_commands": len(found), **found}
