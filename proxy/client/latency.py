"""How long clients wait, of a sample: by the path their commands take, and by what these are about.

- *hit*: from taking a chunk to handing its replies to the kernel's queue, of the chunks whose hits are logged
  anyway (all of them while they are few, see `tier.table`).
- *miss*, *write*, *other*: from submitting to the last reply, of the first few runs on each shared link after
  each round of the register's clock (`SharedLink.tap`). A pipeline counts once, as its first command.
- *pinned*: from sending to the reply, where nothing else was owed; without those that may block.

Nothing is added to what is not in the sample.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from proxy.client.dispatch import path_of
from proxy.client.session import Session
from proxy.client.whole import ForClient
from proxy.histogram import SECONDS, Histogram
from proxy.resp.commands import FAMILIES, Command, CommandTable
from proxy.tier.flights import Flight
from proxy.upstream.caller import Caller, StandIn

if TYPE_CHECKING:
    from proxy.upstream.shared import SharedLink

_BOUNDS = (0.000001, 0.0000025, 0.000005, 0.00001, 0.000025, *SECONDS)
"""From a microsecond on: that is what a hit takes."""
_RUNS = 16
"""Runs on each link that are timed in each round."""
PATHS = ("hit", "miss", "write", "other", "pinned")


class Latency:
    """Histograms, since the start."""

    def __init__(self, table: CommandTable) -> None:
        self.by_path = {path: Histogram(_BOUNDS) for path in PATHS}
        self.by_family = {family: Histogram(_BOUNDS) for family in FAMILIES}
        self._table = table

    def hit(self, part: bytes, began: float) -> None:
        """Hear of a chunk answered from memory just now; `part` is its first request."""
        self._note("hit", self._command(b"*" + part), monotonic() - began)

    def pinned(self, command: Command | None, began: float) -> None:
        """Hear of a command answered just now on a link of the client's own."""
        self._note("pinned", command, monotonic() - began)

    def shared(self, requests: bytes, flight: bool, began: float) -> None:
        """Hear of requests answered just now on a shared link; `flight`: fetched, to be kept."""
        command = self._command(requests)
        self._note(path_of(command, flight), command, monotonic() - began)

    def listen(self, link: SharedLink) -> None:
        """Time the next few runs of clients on a link."""
        link.tap(self._stand_in, _RUNS)

    def _stand_in(self, caller: Caller, requests: bytes) -> Caller:
        if isinstance(caller, Flight):
            return _Timed(self, caller, b"*" + caller.read.part, True)
        if isinstance(caller, ForClient):
            return _Timed(self, caller, caller.asked(requests)[0], False)
        if isinstance(caller, Session):
            return _Timed(self, caller, requests, False)
        return caller  # a question of the sidecar's own

    def _note(self, path: str, command: Command | None, seconds: float) -> None:
        self.by_path[path].observe(seconds)
        self.by_family[command.family if command is not None else "other"].observe(seconds)

    def _command(self, requests: bytes) -> Command | None:
        """The command of the first of some canonical requests."""
        words = requests.split(b"\r\n", 5)
        if len(words) < 3:
            return None
        return self._table.find(words[2], words[4] if len(words) > 5 else None)


class _Timed(StandIn):
    """Stands in for a caller, and takes the time until it is answered."""

    __slots__ = ("_began", "_flight", "_latency", "_requests")

    def __init__(self, latency: Latency, caller: Caller, requests: bytes, flight: bool) -> None:
        super().__init__(caller)
        self._latency = latency
        self._requests = requests
        self._flight = flight
        self._began = monotonic()

    def ended(self) -> None:
        """Note how long it took."""
        self._latency.shared(self._requests, self._flight, self._began)
