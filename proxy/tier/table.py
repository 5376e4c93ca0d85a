"""A table: the replies of one shelf for one protocol, in the order in which they would be evicted.

That is the order of its dict. Hits are logged chunk by chunk, only a sample of them while nothing has to be
evicted, and replayed into it when room is needed: counting is exact, recency is not.

Some replies are *held*: they are kept, but not in the dict, so that the next read of them is seen (`reuse`).
"""

from __future__ import annotations

from itertools import islice, takewhile
from random import randrange
from typing import TYPE_CHECKING

from proxy.tier.classes import Classes
from proxy.tier.hot import Hot

if TYPE_CHECKING:
    from proxy.tier.reuse import Reuse

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
        "_gone", "_held_at", "_log", "_logged", "_longest", "_seen", "_stride", "asked", "classes", "find",
        "held", "hot", "replies", "reuse", "users",
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
        self.reuse: Reuse | None = None
        """Who watches some of the hits, if anybody; hears of those that are logged."""
        self.held: dict[bytes, bytes] = {}
        """Replies that are kept and not in `replies`, the earliest held first."""
        self._held_at: dict[bytes, int] = {}
        """How many had been evicted when each of them was held."""
        self._gone = 0
        """How many have been evicted."""
        self._log: list[list[bytes]] = []
        """Parts that were answered, of a sample of chunks since the last replay."""
        self._logged = 0
        self._seen = 0
        """Parts logged since the last settlement, and replayed already."""
        self._longest = stride
        self._stride = 0 if eager else stride

    def __len__(self) -> int:
        return len(self.replies) + len(self.held)

    def __contains__(self, part: bytes) -> bool:
        return part in self.replies or part in self.held

    def get(self, part: bytes) -> bytes | None:
        """What is kept of a part, held or not."""
        return self.replies.get(part) or self.held.get(part)

    def pop(self, part: bytes) -> bytes | None:
        """Take out what is kept of a part, held or not."""
        reply = self.replies.pop(part, None)
        return self._take(part) if reply is None and self.held else reply

    def hold(self, part: bytes) -> None:
        """Have the next read of a part find nothing, so that it is seen."""
        reply = self.replies.pop(part, None)
        if reply is not None:
            self.held[part] = reply
            self._held_at[part] = self._gone

    def release(self, part: bytes) -> None:
        """Put back what is held of a part."""
        reply = self._take(part)
        if reply is not None:
            self.replies[part] = reply

    def _take(self, part: bytes) -> bytes | None:
        self._held_at.pop(part, None)
        return self.held.pop(part, None)

    def victims(self, count: int) -> list[bytes]:
        """The `count` parts to be evicted next, and of those that are held what would have gone by now."""
        self.replay(0)  # every hit is logged then: of a client's loop, one in two would be always the same
        if not self.replies:
            for part in list(self.held):
                self.release(part)
        found = list(islice(self.replies, count))
        self._gone += len(found)
        # What is not read goes when all that are older have gone, or were read: say, half of them each.
        before = self._gone - len(self.replies) // 2
        return found + list(takewhile(lambda part: self._held_at[part] < before, self.held))

    @property
    def stands_for(self) -> int:
        """For how many hits one stands that is logged."""
        return 1 + self._stride

    @property
    def wanted(self) -> bool:
        """Whether it is of use to anybody."""
        return self.users > 0 or self.asked > 0

    def log(self, parts: list[bytes]) -> int:
        """Take note of parts that were answered.

        Returns after how many hits the same client's hits are to be logged again.
        """
        self._log.append(parts)
        self._logged += len(parts)
        if self.reuse is not None:
            self.reuse.hit(parts, self.stands_for)
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
            self.hot.add(some, self.stands_for * step)
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
        gone = self.replies | self.held
        self.replies.clear()
        self.held.clear()
        self._held_at.clear()
        self._log.clear()
        self._logged = 0
        return gone
