"""The refill governor: after much has been dropped at once, only so many fetches of a class go at a time.

Whatever the cause: it hears of every drop, but of what goes for age or for room, and of what clients of this
sidecar overwrite a few at a time. The first fetches do not
begin all in one moment, here and at every other sidecar that has heard the same.

Everybody's reads miss then. What waits for its turn looks into the table again first: most of it has been
fetched by others meanwhile.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

MANY = 1000
"""Entries dropped within `_WINDOW` seconds from which there is a governor."""
_WINDOW = 1.0
_SOME = 10
"""Entries dropped between two looks at the clock: so it may notice that there are many as many later."""
AT_ONCE = 16
"""Entries that a client's own write must drop at once to be heard of here."""
_LASTS = 30.0
"""Seconds for which it governs."""
_SPREAD, _LATEST = 1.0, 0.1
"""Seconds from its beginning for which fetches are put off by chance, and for how long at most."""


class Governor:
    """Counts fetches under way by class. `limit`: how many of one there may be; 0: it never governs."""

    def __init__(self, limit: int, rng: Callable[[], float] = random.random) -> None:
        self.limit = limit
        self._rng = rng
        self.until = 0.0
        """Monotonic seconds up to which it governs."""
        self.engaged = 0
        """How often it has begun to."""
        self.delayed = 0
        """Reads that had to wait."""
        self._began = -_SPREAD
        """When it last began to."""
        self._dropped = self._before = 0
        """Entries dropped since `_since`, and in the window before."""
        self._unseen = 0
        """Of those dropped, how many it has not looked at yet."""
        self._since = 0.0
        self._under_way: dict[str, int] = {}
        self._waiting: dict[str, deque[Callable[[], bool]]] = {}
        self._left: deque[str] = deque()
        """Places given back and not passed on yet."""
        self._passing_on = False

    def dropped(self, count: int, clock: Callable[[], float]) -> None:
        """Hear that so many entries have been dropped. The clock is looked at for some of them together."""
        self._unseen += count
        if self._unseen < _SOME:
            return
        count, self._unseen = self._unseen, 0
        now = clock()
        gone = now - self._since
        if gone >= _WINDOW:
            recent = gone < 2 * _WINDOW
            self._before = self._dropped if recent else 0
            self._since, self._dropped = (self._since + _WINDOW if recent else now), 0
            gone = now - self._since
        self._dropped += count
        if self._dropped + self._before * (1 - gone / _WINDOW) >= MANY and self.limit:
            if now >= self.until:
                self.engaged += 1
                self._began = now
            self.until = now + _LASTS
            self._dropped = self._before = 0

    def spread(self, now: float) -> float:
        """Seconds by which a fetch that may begin is to be put off."""
        return self._rng() * _LATEST if now - self._began < _SPREAD else 0.0

    def enter(self, label: str, limit: int | None = None) -> bool:
        """Begin a fetch of a class, if it may begin now."""
        count = self._under_way.get(label, 0)
        if count >= (limit or self.limit):
            return False
        self._under_way[label] = count + 1
        return True

    def wait(self, label: str, turn: Callable[[], bool]) -> None:
        """Call `turn` once when the next fetch of a class may begin; it tells whether it has begun one."""
        self.delayed += 1
        self._waiting.setdefault(label, deque()).append(turn)

    def leave(self, label: str) -> None:
        """End a fetch of a class: the next one that waits takes its place."""
        self._left.append(label)
        if self._passing_on:
            return  # called by a turn that ended at once: one after the other, not one within the other
        self._passing_on = True
        try:
            while self._left:
                self._pass_on(self._left.popleft())
        finally:
            self._passing_on = False

    def _pass_on(self, label: str) -> None:
        waiting = self._waiting.get(label)
        while waiting:
            turn = waiting.popleft()
            if not waiting:
                self._waiting.pop(label, None)
            if turn():
                return
        count = self._under_way.get(label, 1) - 1
        if count:
            self._under_way[label] = count
        else:
            self._under_way.pop(label, None)
