"""The circuit breaker: a Redis that is dead or silent must not cost every command a time-out.

There is one for each Redis, fed by all links to it::

    CLOSED ──failures in a row──▶ OPEN ◀──probe fails── HALF-OPEN
       ▲                            └──────probe───────▶   │
       └────────────────── Redis answers ──────────────────┘

A failure is an attempt to connect that Redis did not answer, or a connection given up because it owed replies
for `upstream_timeout`. While a connection is silent for longer than `coherence_timeout`, attempts are made
one after the other, so that it need not take that long. While the breaker is not closed, no command waits:
links that are not connected refuse at once, and no client is given a new link. The probes are the shared
links' own attempts to reconnect, and a PING over one that is connected. Any answer of Redis' to a handshake
closes the breaker, a refusal too: that Redis is there, and says no at once.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable

from proxy.events import fields
from proxy.resp.errors import UpstreamError, UpstreamLost

log = logging.getLogger("pannier.upstream")


class BreakerState(enum.Enum):
    """See the picture in the module's docstring."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts failures in a row; `limit` of them open it, 0: none do. Times are in monotonic seconds."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = BreakerState.CLOSED
        self.failures = 0
        """In a row, up to now."""
        self.since = 0.0
        """When it was opened, if it is not closed."""
        self.error: UpstreamError | None = None
        """What the last failure was."""
        self.opened: Callable[[], object] = lambda: None
        """Called when it opens."""
        self._limit = limit
        self._clock = clock
        self._silences = 0
        """Failures of connections whose handshake had been answered: another handshake is no proof then."""
        self._next = 0.0

    @property
    def open(self) -> bool:
        """Whether commands are refused at once unless they have a connection already."""
        return self.state is not BreakerState.CLOSED

    @property
    def lasts(self) -> float:
        """For how many seconds it has not been closed; 0 if it is."""
        return self._clock() - self.since if self.open else 0.0

    def failed(self, error: UpstreamError, silent: bool = False) -> None:
        """Count a failure; `silent`: a connection fell silent that Redis had answered before."""
        self.failures += 1
        self._silences += silent
        self.error = error
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
        elif self.state is BreakerState.CLOSED and self._limit and self.failures >= self._limit:
            self.state = BreakerState.OPEN
            self.since = self._clock()
            why = str(error).removeprefix("ERR pannier: ")
            log.warning(
                "circuit breaker open after %d failures in a row: %s", self.failures, why,
                extra=fields("breaker_opened", failures=self.failures, reason=why),
            )  # fmt: skip
            self.opened()

    def answered(self, steady: bool = False) -> None:
        """Hear that Redis has answered a handshake or a probe.

        `steady`: a connection has gone on answering for longer than the silence that ended another.
        """
        if self.open:
            after = fields("breaker_closed", seconds=round(self.lasts, 3))
            log.info("circuit breaker closed after %.1f s: Redis answers", self.lasts, extra=after)
            self.state = BreakerState.CLOSED
            self._silences = 0
        if steady:
            self._silences = 0
        self.failures = self._silences

    def probes(self) -> None:
        """Hear that a probe is under way."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
            log.debug(
                "circuit breaker half-open: trying whether Redis answers", extra=fields("breaker_half_open")
            )

    def pauses(self, seconds: float) -> None:
        """Hear when the next probe is due."""
        self._next = self._clock() + seconds

    def explain(self, error: UpstreamError) -> UpstreamError:
        """An error as a client is to get it: with since when, and how long still, if the breaker is open."""
        if not self.open:
            return error
        ahead = max(0.0, self._next - self._clock())
        when = "now" if self.state is BreakerState.HALF_OPEN else f"in {ahead:.1f} s"
        return UpstreamLost(f"{error} (circuit breaker open for {self.lasts:.1f} s, next probe {when})")
