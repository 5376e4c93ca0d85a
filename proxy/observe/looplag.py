"""How late the event loop is: the time for which everybody waited who was due."""

from __future__ import annotations

import asyncio
import time

from proxy.histogram import SECONDS, Histogram

_EVERY = 0.2
"""Seconds between two measurements."""
_BOUNDS = SECONDS[4:-1]
"""From a millisecond on: timers are no finer."""


class LoopLag:
    """Measures by how much a timer is late, for ever."""

    def __init__(self) -> None:
        self.lags = Histogram(_BOUNDS)
        """Seconds."""

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            due = time.monotonic() + _EVERY
            await asyncio.sleep(_EVERY)
            self.lags.observe(max(0.0, time.monotonic() - due))
