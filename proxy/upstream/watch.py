"""Who hears of requests that Redis took long to answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.upstream.caller import Caller


class Watch:
    """One for all links to a Redis. Each entry of a link's FIFO has the moment of its turn of the loop; a
    comparison at its last reply is all that is done for what is not slow."""

    def __init__(self) -> None:
        self.after = math.inf
        """Seconds from which an answer was slow; infinite: nobody wants to know, for now or at all."""
        self.slow: Callable[[Caller, bytes, float], object] = _ignore
        """Hears of requests of a caller that are answered just now, and when (monotonic seconds) they
        came; before the caller hears of the end."""


def _ignore(caller: Caller, requests: bytes, came: float) -> None:
    """Nobody wants to know."""
