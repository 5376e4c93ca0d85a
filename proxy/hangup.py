"""Signals that come before there is anybody to heed them: SIGHUP, SIGTERM and SIGINT.

By themselves the first two end a process, and the first process of a container does not even get them. But
whoever has the settings read again just after the start means no end, and whoever stops a Pannier that is
starting means one in good order. So they are remembered from the first moment on, until the sidecar hears
them by itself: it reads its settings again then, or ends. A second one of those that stop ends the process at
once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_STOP = {signal.SIGTERM: 0, signal.SIGINT: 130}
"""Those that stop, and with which exit status if nobody has been served yet."""
_before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int] = {}
"""What they would have done; empty: they are not minded."""
_came: list[signal.Signals] = []


def remember() -> None:
    """Remember them from now on; to be called before anything is imported that takes long."""
    for number in (signal.SIGHUP, *_STOP):
        _before[number] = signal.getsignal(number) or signal.SIG_DFL
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    if number in _STOP and stopped() is not None:
        os._exit(128 + number)
    _came.append(signal.Signals(number))


def came() -> bool:
    """Whether SIGHUP has come meanwhile."""
    return signal.SIGHUP in _came


def stopped() -> int | None:
    """The exit status if one that stops has come meanwhile; None: none has."""
    return next((_STOP[number] for number in _came if number in _STOP), None)


def forget() -> None:
    """Have them do what they would have done, also if they have come already: nobody is to be served."""
    for number, before in _before.items():
        signal.signal(number, before)
    _before.clear()
    for number in _came:
        signal.raise_signal(number)
