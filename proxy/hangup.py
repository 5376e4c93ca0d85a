"""SIGHUP that comes before there is anybody to heed it.

By itself it ends a process. Whoever has the settings read again that way, just after the start, means no such
thing; so it is remembered from the first moment on until the sidecar hears it by itself.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_before: Callable[[int, FrameType | None], Any] | int | None = None
"""What it would have done; None: it is not minded."""
_came = False


def remember() -> None:
    """Remember it from now on; to be called before anything is imported that takes long."""
    global _before
    _before = signal.getsignal(signal.SIGHUP) or signal.SIG_DFL
    signal.signal(signal.SIGHUP, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True


def came() -> bool:
    """Whether it has come meanwhile."""
    return _came


def forget() -> None:
    """Have it do what it would have done, also if it has come already: nothing is going to be read again."""
    global _before
    if _before is None:
        return
    signal.signal(signal.SIGHUP, _before)
    _before = None
    if _came:
        signal.raise_signal(signal.SIGHUP)
