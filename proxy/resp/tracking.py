"""CLIENT TRACKING as the sidecar uses it (Redis docs: "Client-side caching reference").

Always on a RESP3 connection, where invalidations come in the stream of replies; never with REDIRECT, whose
pushes are not ordered against the replies of another connection; never with NOLOOP, which spends the
registration of a key on one's own write without a word; and with one prefix at most, since overlapping ones
are answered with an error *and* +OK.
"""

from __future__ import annotations

import enum

from proxy.resp import encode


class Mode(enum.Enum):
    """How Redis tells a link of changes."""

    OFF = "off"
    DEFAULT = "default"
    """For each key that was read over the link, once, in order with the replies."""
    BCAST = "bcast"
    """For every key, at the end of Redis' loop turn: a reply may show a change before the push does."""

    @property
    def request(self) -> bytes:
        """What turns it on."""
        words = ["CLIENT", "TRACKING", "ON"]
        return encode.request(*words, "BCAST") if self is Mode.BCAST else encode.request(*words)


LADDERS = {
    "auto": (Mode.DEFAULT, Mode.BCAST),
    "default": (Mode.DEFAULT,),
    "bcast": (Mode.BCAST,),
    "off": (),
}
"""What the setting `tracking` means: the modes to try, best first."""

INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n"
"""How an invalidation push begins; an array of keys follows, or null: everything."""
