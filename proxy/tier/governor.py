"""The refill governor: after much has been dropped at once, only so many fetches of a class go at a time.

Everybody's reads miss then. What waits for its turn looks into the table again first: most of it has been
fetched by others meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MANY = 1000
"""Entries dropped within `_WINDOW` seconds from which there is a governor."""
_WINDOW = 1.0
_LASTS = 30.0
"""Seconds for which it governs."""


class Governor:
    """Counts fetches under way by class. `limit`: how many of one there may be; 0: it never governs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.until = 0.0
        """Monotonic seconds up to which it governs."""
        self.engaged = 0
        """How often it has begun to."""
        self.delayed = 0
        """Reads that had to wait."""
        self._dropped = 0
        self._since = 0.0
        self._under_way: dict[str, int] = {}
        self._waiting: dict[str, deque[Callable[[], bool]]] = {}
        self._left: deque[str] = deque()
        """Places given back and not passed on yet."""
        self._passing_on = False

    def dropped(self, count: int, now: float) -> None:
        """Hear that so many entries have been dropped at once."""
        if now - self._since > _WINDOW:
            self._since, self._dropped = now, 0
        self._dropped += count
        if self._dropped >= MANY and self.limit:
            self.engaged += now >= self.until
            self.until = now + _LASTS
            self._dropped = 0

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
