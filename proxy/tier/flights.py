"""Flights: reads on their way to Redis, whose replies are to be kept.

A flight belongs to the shelf, not to the client that caused it. Later identical reads join it. It is one
entry in the shared link's FIFO (`upstream.shared.Caller`), so its reply comes at a place in the order of
everything else on that link, and a client may wait for it whose own replies are all due before that place.

A *tainted* flight (a write, an invalidation or the loss of the link came in between) answers those who wait,
is not kept, and cannot be joined any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol

from proxy.resp.downgrade import Shape
from proxy.tier.policy import Ruling
from proxy.tier.rules import Read, lifetimes

if TYPE_CHECKING:
    from proxy.tier.shelf import Shelf

_SPARE = 512
_LINE = 256
"""Bytes allowed for each of the lines in front of a reply before it counts as long."""
MISSING = -2
"""PTTL's answer for a key that is not there."""
_ABSENT = b":%d\r\n" % MISSING
FOREVER = -1
"""PTTL's answer for a key that does not expire."""


class Waiter(Protocol):
    """A client that waits for a flight."""

    protocol: int

    def take(self, reply: bytes) -> None:
        """Take the whole reply, in the client's protocol."""

    def take_piece(self, piece: bytes, skip: int) -> None:
        """Take a piece of a long RESP3 reply, of which `skip` bytes belong to a string begun before."""

    def take_end(self) -> None:
        """Hear that the reply which came in pieces is complete."""

    def cut(self) -> None:
        """Hear that the reply which came in pieces broke off."""

    def hold_back(self, link: Any) -> None:
        """Hear that Redis does not keep up with the link."""

    def go_on(self) -> None:
        """Hear that Redis keeps up again."""


class Flight:
    """One fetch: PTTL for each key, then the read itself."""

    __slots__ = (
        "_parts", "_size", "_spilling", "began", "draining", "epoch", "joinable", "pending", "place", "read",
        "relay", "replies", "request", "ruling", "shelf", "skipped", "tainted", "waiters",
    )  # fmt: skip

    def __init__(self, shelf: Shelf, read: Read, epoch: int, began: float, ruling: Ruling) -> None:
        self.shelf = shelf
        self.read = read
        self.epoch = epoch
        self.began = began
        """Monotonic seconds before sending: lifetimes count from here."""
        self.ruling = ruling
        self.tainted = False
        self.place = ""
        """Which class it takes a place of while the refill governor governs."""
        self.joinable = True
        """Whether identical reads may wait for it."""
        self.waiters: list[Waiter] = []
        questions, request = lifetimes(read.keys, shelf.mode)
        self.request = request + read.request
        """What it sends: PTTL for each key, then the read."""
        self.replies = questions + 1
        """How many replies that has."""
        self.pending = self.replies
        self.draining = True
        self.relay: Callable[[bytes], object] = self._collect
        self.skipped: Callable[[], int] = _nothing_skipped
        """How many bytes of the piece being relayed belong to a string begun before; set by who submits."""
        self._parts: list[bytes] = []
        self._size = 0
        self._spilling = False

    def _collect(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self.ruling.max_value_size + _SPARE + _LINE * self.replies:
            self._spill()

    def _spill(self) -> None:
        """The reply is too long to keep: hand it on as it arrives, if all who wait can take it so."""
        if any(waiter.protocol != 3 for waiter in self.waiters) and self.read.shape is not Shape.PLAIN:
            return
        data = b"".join(self._parts)
        if data.count(b"\r\n") < self.replies:
            return  # refusals, longer than expected
        self.shelf.give_up(self)
        self._spilling = True
        _, reply = split_lifetime(data, self.replies - 1)
        self._parts = []
        for waiter in self.waiters:
            waiter.take_piece(reply, 0)
        self.relay = self._pass_on

    def _pass_on(self, data: bytes) -> None:
        skip = self.skipped()
        for waiter in self.waiters:
            waiter.take_piece(data, skip)

    def drained(self) -> None:
        """Take the end of the reply: keep it, and answer all who wait."""
        self._land()
        self._end()

    def _land(self) -> None:
        if self._spilling:
            for waiter in self.waiters:
                waiter.take_end()
            return
        data = b"".join(self._parts)
        milliseconds, reply = split_lifetime(data, self.replies - 1)
        if milliseconds is None and not self.tainted and not reply.startswith(b"-"):
            refusal = next(line for line in data.split(b"\r\n") if line.startswith(b"-"))
            self.shelf.give_in(refusal[1:])
        absent = data.count(_ABSENT, 0, len(data) - len(reply)) == len(self.read.keys)
        self.shelf.land(self, reply, lifetime(milliseconds), absent)
        self.answer(reply)

    def answer(self, reply: bytes) -> None:
        """Give those who wait their reply."""
        lowered = b""
        if reply.startswith(b"-") and self.shelf.tending.known and self._stand_in(reply):
            return
        for waiter in self.waiters:
            if waiter.protocol == 3:
                waiter.take(reply)
            else:
                lowered = lowered or self.shelf.lowered(self.read, reply)
                waiter.take(lowered)

    def _stand_in(self, error: bytes) -> bool:
        """Answer with what was kept before, if a rule prefers that to an error."""
        instead = self.shelf.tending.instead
        found = [instead(self.read.part, error, waiter.protocol) for waiter in self.waiters]
        if None in found:
            return False
        for waiter, reply in zip(self.waiters, found, strict=True):
            waiter.take(reply or b"")
        return bool(found)

    def cut(self) -> None:
        """Take the loss of the connection in the middle of the reply."""
        self.tainted = True
        if self._spilling:
            for waiter in self.waiters:
                waiter.cut()
        else:
            self.answer(b"-ERR pannier: upstream connection broke in the middle of a reply\r\n")
        self._end()

    def _end(self) -> None:
        """Leave nothing behind."""
        self.relay = self.skipped = _over  # its own methods would keep it until the next garbage collection
        if self.place:
            self.shelf.account.governor.leave(self.place)

    def owners(self) -> Collection[object]:
        """Who waits."""
        return self.waiters

    def hold_back(self, link: Any) -> None:
        """Have who caused it wait."""
        for waiter in self.waiters[:1]:
            waiter.hold_back(link)

    def go_on(self) -> None:
        """Let who caused it go on."""
        for waiter in self.waiters[:1]:
            waiter.go_on()


def split_lifetime(data: bytes, lines: int) -> tuple[int | None, bytes]:
    """Split a fetch's replies: the least PTTL in milliseconds, and the read's own reply, behind so many
    `lines`.

    None for the former if Redis did not tell it: then nothing may be kept.
    """
    least: int | None = FOREVER
    pos = 0
    for _ in range(lines):
        end = data.index(b"\r\n", pos)
        line = data[pos:end]
        pos = end + 2
        if line == b"+OK":
            continue
        if not line.startswith(b":"):
            least = None
        elif least is not None and (left := int(line[1:])) >= 0:
            least = left if least < 0 else min(least, left)
    return least, data[pos:]


def lifetime(milliseconds: int | None) -> float:
    """Seconds for which a reply may be kept as far as Redis' own expiry goes."""
    if milliseconds is None:
        return 0.0
    return milliseconds / 1000 if milliseconds >= 0 else float("inf")


def _nothing_skipped() -> int:
    return 0


def _over(data: bytes = b"") -> int:
    """Stands for what a flight that is over does with more bytes."""
    return 0
