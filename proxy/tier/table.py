"""A table: the replies of one shelf for one protocol, in the order in which they would be evicted.

That is the order of its dict. Hits are logged chunk by chunk, only a sample of them while nothing has to be
evicted, and replayed into it when room is needed: counting is exact, recency is not.
"""

from __future__ import annotations

from random import randrange

from proxy.tier.hot import Hot

_LOGGED = 2048
"""Parts in a log at most; it is then replayed."""
_SOME = 4
"""One in so many parts of a full log is counted."""
STRIDE = 16
"""One in so many hits is logged while nothing has to be evicted."""


class Table:
    """The replies of one shelf for one protocol, the least recently used first.

    `stride`: how many hits at most may go unlogged behind one that is logged.
    """

    __slots__ = ("_log", "_logged", "_longest", "_stride", "asked", "find", "hot", "replies", "users")

    def __init__(self, stride: int = STRIDE) -> None:
        self.replies: dict[bytes, bytes] = {}
        self.find = self.replies.get
        """Bound once: the hot path's look-up."""
        self.asked = 0.0
        """When clients last missed something in it, or were seen to find something (monotonic seconds; set by
        them); 0: that is long ago."""
        self.users = 0
        """Clients that read from it, or could; kept by them."""
        self.hot: Hot | None = None
        """Who counts the hits by part, if anybody; hears of them at each replay."""
        self._log: list[list[bytes]] = []
        """Parts that were answered, of a sample of chunks since the last replay."""
        self._logged = 0
        self._longest = self._stride = stride

    @property
    def stands_for(self) -> int:
        """For how many hits one stands that is logged."""
        return 1 + self._stride

    @property
    def wanted(self) -> bool:
        """Whether it is of use to anybody."""
        return self.users > 0 or self.asked > 0

    def log(self, parts: list[bytes]) -> int:
        """Take note of parts that were answered (there may be others among them).

        Returns after how many hits the same client's hits are to be logged again.
        """
        self._log.append(parts)
        self._logged += len(parts)
        if self._logged > _LOGGED:
            self.replay(self._longest)
        return len(parts) * self._stride

    def replay(self, stride: int | None = None) -> None:
        """Bring the order of eviction up to date with the log; let `stride` hits go unlogged for each from
        now on (None: as many as before)."""
        logged = [part for parts in self._log for part in parts]
        self._log, self._logged = [], 0
        replies = self.replies
        if self.hot is not None:
            # A chunk stands for itself, and for those of its client that were not logged after it. Of a full
            # log some will do: counting by part would cost more than all else that is done for a hit here.
            step = _SOME if len(logged) > _LOGGED else 1
            some = logged[randrange(step) :: step]
            self.hot.add([part for part in some if part in replies], self.stands_for * step)
        if stride is not None:
            self._stride = min(stride, self._longest)
        for part in dict.fromkeys(logged):
            reply = replies.pop(part, None)
            if reply is not None:
                replies[part] = reply

    def clear(self) -> dict[bytes, bytes]:
        """Forget everything. Returns it: freeing is slow, and whoever has it may take his time."""
        gone = self.replies.copy()
        self.replies.clear()
        self._log.clear()
        self._logged = 0
        return gone
