"""Gathering writes under load: a microsecond timer between a request and its sending.

When many clients send one command at a time and Redis runs on another core, it answers each so quickly that
nothing gathers: every request costs a system call here, a wake-up and a context switch there, and three times
the CPU of the same load in batches (measured: 10.5 + 4.7 µs an operation instead of 7.2 + 1.3). Network cards
meet this with interrupt moderation; a `Pacer` is the same for a link: while requests come fast and leave in
ones and twos, they wait `DELAY` for company. At lower rates, as long as the sidecar has time to spare, and
where requests gather by themselves, nothing waits; and where waiting lowers the rate, it ends.

Event loops count in milliseconds, so the delay comes from a timerfd (Linux; man 2 timerfd_create). Without
one the link simply does not pace.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

DELAY = 200
"""Microseconds a request may wait for others."""
WINDOW = 512
"""Sends between two decisions."""
BEGIN_RATE = 40_000
"""Runs a second from which pacing begins, if they leave in batches below `SMALL`."""
BUSY = 0.75
"""Share of a core's time from which it begins at `BUSY_RATE` already: there is no more to be had without."""
BUSY_RATE = 10_000
END_RATE = 30_000
"""Runs a second below which pacing ends; sooner if it began at fewer than that, below `END_SHARE` of them."""
END_SHARE = 0.75
SMALL = 8.0
LOSS = 0.8
"""Share of the rate before pacing below which it did harm: too few clients to gather anything from."""
GAP = 0.005
"""Seconds without a send after which the load is over: pacing ends without having done harm."""
REST = 2.0
"""Seconds before pacing is tried again after it did harm."""

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Pacer:
    """Decides whether a link's sends are paced, and times them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._loop = loop
        self._send = send
        self._clock = clock
        self._cpu = cpu
        """Seconds that the loop's thread has been running."""
        self.active = False
        self._fd = -1
        self._libc: ctypes.CDLL | None = None
        self._spec = _Spec(0, 0, 0, DELAY * 1000)
        # The window under way.
        self._sends = 0
        self._runs = 0
        self._since = self._last = clock()
        self._ran = cpu()
        # When it began.
        self._rate_before = self._end_rate = 0.0
        self._not_before = 0.0
        self._harmed = 0
        """Windows in a row with less than before."""

    def sent(self, runs: int) -> None:
        """Take note of a send of so many runs; now and then decide anew."""
        self._sends += 1
        self._runs += runs
        if self.active:
            now = self._clock()
            self.active = now - self._last < GAP
            self._last = now
            if not self.active:
                self._look_anew(now)
        if self._sends == WINDOW:
            now = self._last = self._clock()
            self._decide(now, self._runs / max(now - self._since, 1e-6), self._runs / WINDOW)
            self._look_anew(now)

    def _look_anew(self, now: float) -> None:
        self._sends = self._runs = 0
        self._since, self._ran = now, self._cpu()

    def _decide(self, now: float, rate: float, batch: float) -> None:
        if self.active:
            # Twice in a row: the end of a load looks like harm, too, but only once.
            self._harmed = self._harmed + 1 if rate < LOSS * self._rate_before else 0
            self.active = self._harmed < 2 and (rate > self._end_rate or self._harmed > 0)
            if self._harmed == 2:
                self._not_before = now + REST
        elif batch < SMALL and now > self._not_before and self._presses(now, rate):
            self._rate_before = rate
            self._end_rate = min(END_RATE, END_SHARE * rate)
            self._harmed = 0
            self.active = self._fd >= 0 or self._open()

    def _presses(self, now: float, rate: float) -> bool:
        """Whether requests come faster than it is good to send them one by one."""
        busy = self._cpu() - self._ran > BUSY * (now - self._since)
        return rate > BEGIN_RATE or (busy and rate > BUSY_RATE)

    def arm(self) -> None:
        """Have `send` called in `DELAY` microseconds."""
        if self._libc is None or self._libc.timerfd_settime(self._fd, 0, ctypes.byref(self._spec), None):
            self._loop.call_soon(self._send)

    def close(self) -> None:
        """Give the timer back."""
        self.active = False
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._libc = None

    def _open(self) -> bool:
        if not sys.platform.startswith("linux"):
            return False
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if fd < 0:
            return False
        self._fd, self._libc = fd, libc
        self._loop.add_reader(fd, self._fired)
        return True

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._send()
