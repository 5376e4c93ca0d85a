"""A line on a terminal that shows how far something is."""

from __future__ import annotations

import sys
import time

_EVERY = 0.1
"""Seconds between two looks of the line."""
_WIDTH = 30


class Line:
    """A line of the standard error output that is written over; nothing where that is no terminal."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self._next = 0.0

    def show(self, text: str, at_once: bool = False) -> None:
        """Show how far it is; `at_once`: however little time has gone by."""
        now = time.monotonic()
        if self.shown and (at_once or now >= self._next):
            self._next = now + _EVERY
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def bar(share: float) -> str:
    """A bar and a percentage for a share of 0 to 1."""
    share = min(1.0, max(0.0, share))
    return f"[{'#' * round(_WIDTH * share):<{_WIDTH}}] {share:4.0%}"
