"""A table: the replies of one shelf for one protocol, in the order in which they would be evicted.

That is the order of its dict. Hits are logged chunk by chunk, only a sample of them while nothing has to be
evicted, and replayed into it when room is needed: counting is exact, recency is not.
"""

from __future__ import annotations

from random import randrange

from proxy.tier.classes import Classes
from proxy.tier.hot import Hot

_LOGGED = 2048
"""Parts in a log at most; it is then replayed."""
_FEW = 1024
"""Parts answered between two settlements up to which all are logged."""
_SOME = 4
"""One in so many parts of a full log is counted."""
STRIDE = 16
"""One in so many hits is logged while nothing has to be evicted."""


class Table:
    """The replies of one shelf for one protocol, the least recently used first.

    `stride`: how many hits at most may go unlogged behind one that is logged. `eager`: whether none do to
    begin with.
    """

    __slots__ = (
        "_log", "_logged", "_longest", "_seen", "_stride", "asked", "classes", "find", "hot", "replies",
        "users",
    )  # fmt: skip

    def __init__(self, stride: int = STRIDE, eager: bool = False) -> None:
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
        self.classes: Classes | None = None
        """Who counts them by class."""
        self._log: list[list[bytes]] = []
        """Parts that were answered, of a sample of chunks since the last replay."""
        self._logged = 0
        self._seen = 0
        """Parts logged since the last settlement, and replayed already."""
        self._longest = stride
        self._stride = 0 if eager else stride

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
        self._seen += len(logged)
        replies = self.replies
        # A chunk stands for itself, and for those of its client that were not logged after it. Of a full log
        # some will do: counting by part would cost more than all else that is done for a hit here.
        step = _SOME if len(logged) > _LOGGED else 1
        some = logged[randrange(step) :: step]
        if self.hot is not None:
            self.hot.add([part for part in some if part in replies], self.stands_for * step)
        if self.classes is not None:
            self.classes.hit(some, self.stands_for * step)
        if stride is not None:
            self._stride = min(stride, self._longest)
        for part in dict.fromkeys(logged):
            reply = replies.pop(part, None)
            if reply is not None:
                replies[part] = reply

    def settle(self) -> None:
        """Bring everything up to date, once a second or so; log every hit from now on if there were few."""
        few = (self._seen + self._logged) * self.stands_for <= _FEW
        self.replay(0 if few else None)
        self._seen = 0

    def clear(self) -> dict[bytes, bytes]:
        """Forget everything. Returns it: freeing is slow, and whoever has it may take his time."""
        gone = self.replies.copy()
        self.replies.clear()
        self._log.clear()
        self._logged = 0
        return gone
