"""What comes over a connection that subscribes or is told of changes, without the namespace.

On such a connection frames come that nobody asked for, between replies: messages and invalidations. In RESP3
they are pushes. In RESP2 they are arrays like any other, but while a RESP2 connection subscribes to anything,
Redis lets it do nothing else; so what an array is follows from what has been confirmed before it.

`Translator` is told of each request that goes up, with what has to be stripped from its reply, and takes
every frame that comes down. Confirmations of subscriptions are counted, one for each channel.

Redis docs: "Redis Pub/Sub", "Client-side caching reference", "CLIENT REPLY".
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Final

from proxy.resp import encode
from proxy.resp.errors import UpstreamDesync
from proxy.resp.namespace import Namespace, Strip, elements, text
from proxy.resp.replies import split_frames

_SUBSCRIBES: Final = {
    b"subscribe": b"c", b"unsubscribe": b"c", b"psubscribe": b"p", b"punsubscribe": b"p",
    b"ssubscribe": b"s", b"sunsubscribe": b"s",
}  # fmt: skip
"""What each counts: channels, patterns or shard channels."""
SUBSCRIPTIONS: Final = frozenset(kind.decode() for kind in _SUBSCRIBES)
"""The commands that change what a connection is subscribed to."""
_MESSAGES: Final = {b"message": 3, b"smessage": 3, b"pmessage": 4}
"""How many elements each has."""
_PLUS: Final = 0x2B
_QUEUED: Final = b"+QUEUED\r\n"
_INVALIDATIONS: Final = b"__redis__:invalidate"


class _Confirmations:
    """A request for subscriptions: `left` confirmations are to come; None: not known before the first."""

    __slots__ = ("kind", "left")

    def __init__(self, kind: bytes, channels: int) -> None:
        self.kind = kind
        self.left = channels or None


Awaited = Strip | _Confirmations | None


class _Nothing(Namespace):
    """Stands for no namespace: nothing is changed."""

    def __init__(self) -> None:
        super().__init__("")
        self.prefix = self.pattern = b""

    def own_channel(self, name: bytes) -> bytes | None:
        return name

    def holds(self, frame: bytes) -> bool:
        return True

    def stripped(self, frame: bytes) -> bytes:
        return frame


_NONE: Final = _Nothing()


class Translator:
    """Takes the frames of one connection, in order."""

    def __init__(self, namespace: Namespace | None, protocol: int) -> None:
        self.protocol = protocol
        self._namespace = namespace or _NONE
        self._awaited: deque[Awaited] = deque()
        self.unheard = False
        """Whether it may be subscribed without our having counted on it."""
        self._queued: list[Strip | None] = []
        """What has to be stripped from the replies that EXEC will give."""
        self._subscribed: dict[bytes, set[bytes]] = {b"c": set(), b"p": set(), b"s": set()}

    def sent_silently(self, arguments: list[bytes]) -> None:
        """Note a request that is not answered (CLIENT REPLY); subscriptions are confirmed all the same."""
        self.unheard = self.unheard or arguments[0].lower() in _SUBSCRIBES

    def sent(self, arguments: list[bytes], strip: Strip | None) -> None:
        """Note a request that will be answered."""
        kind = arguments[0].lower()
        if kind in _SUBSCRIBES:
            self._awaited.append(_Confirmations(kind, len(arguments) - 1))
        elif kind in (b"multi", b"discard"):
            self._awaited.append(self._emptied)
        elif kind == b"exec":
            self._awaited.append(self._executed)
        elif kind == b"hello" and len(arguments) > 1:
            self._awaited.append(functools.partial(self._greeted, arguments[1], strip))
        else:
            self._awaited.append(strip)

    def alters(self, first: int) -> bool:
        """Whether the next reply, which begins with that byte, may have to be changed or taken note of.

        Of a connection that is not subscribed.
        """
        awaited = self._awaited[0] if self._awaited else None
        if awaited == self._executed:
            return any(strip is not None for strip in self._queued)
        return awaited is not None or first == _PLUS

    def passed(self) -> None:
        """Hear that a reply was passed on as it came, since it need not be altered."""
        if self._awaited and self._awaited.popleft() == self._executed:
            self._queued.clear()

    def take(self, frame: bytes) -> bytes:
        """A whole frame as the client is to see it; empty: not at all."""
        if frame[:1] == b">" or (self.protocol == 2 and frame[:1] == b"*" and self._listens()):
            told = self._told(frame)
            if told is not None:
                return told
        if not self._awaited:
            return frame
        awaited = self._awaited.popleft()
        if isinstance(awaited, _Confirmations):
            return frame  # refused
        if frame == _QUEUED:
            self._queued.append(awaited)
            return frame
        return frame if awaited is None else awaited(frame)

    def _greeted(self, protocol: bytes, strip: Strip | None, reply: bytes) -> bytes:
        if reply[:1] != b"-":
            self.protocol = int(protocol)
        return reply if strip is None else strip(reply)

    def _emptied(self, reply: bytes) -> bytes:
        if reply == encode.OK:
            self._queued.clear()
        return reply

    def _executed(self, reply: bytes) -> bytes:
        """EXEC's reply: one for each command that was queued, and pushes that these caused between them."""
        queued, self._queued = deque(self._queued), []
        at = reply.index(b"\r\n")
        if reply[:1] != b"*" or reply == b"*-1\r\n":
            return reply
        if reply[1:at] != b"%d" % len(queued):
            if self._namespace is _NONE:
                return reply
            raise UpstreamDesync("ERR pannier: upstream answered EXEC with other replies than were expected")
        taken = [reply[: at + 2]]
        for frame in split_frames(reply, at + 2):
            if frame[:1] == b">":
                taken.append(self._told(frame) or b"")
            else:
                strip = queued.popleft() if queued else None
                taken.append(frame if strip is None else strip(frame))
        return b"".join(taken)

    def _listens(self) -> bool:
        """Whether the connection is subscribed, or is about to be told so."""
        if self.unheard or any(self._subscribed.values()):
            return True
        return bool(self._awaited) and isinstance(self._awaited[0], _Confirmations)

    def _told(self, frame: bytes) -> bytes | None:
        """A frame that is no reply; None if it is one after all."""
        at = frame.index(b"\r\n")
        items = elements(frame)
        kind = text(items[0]) if items else b""
        if _MESSAGES.get(kind) == len(items):
            return self._message(frame[: at + 2], items)
        if kind in _SUBSCRIBES and len(items) == 3:
            return self._confirmed(kind, frame[: at + 2], items)
        if kind == b"invalidate" and len(items) == 2:
            keys = self._keys(items[1])
            return frame[: at + 2] + items[0] + keys if keys else b""
        return None if frame[:1] == b"*" else frame

    def _message(self, head: bytes, items: list[bytes]) -> bytes:
        """A message, unless it is about what is not in the namespace."""
        namespace = self._namespace
        channel, payload = text(items[-2]), items[-1]
        if channel == _INVALIDATIONS:
            payload = self._keys(payload)
            return head + b"".join([*items[:-1], payload]) if payload else b""
        own = namespace.own_channel(channel)
        if own is None:
            return b""
        if namespace.tells_of_keys(channel):
            if not namespace.holds(payload):
                return b""
            payload = namespace.stripped(payload)
        if len(items) == 4:
            items[1] = encode.bulk(namespace.own_pattern(text(items[1])))
        return head + b"".join([*items[:-2], encode.bulk(own), payload])

    def _confirmed(self, kind: bytes, head: bytes, items: list[bytes]) -> bytes:
        """The confirmation of a subscription, or of its end."""
        what = _SUBSCRIBES[kind]
        subscribed = self._subscribed[what]
        self._count(kind, subscribed)
        if items[1][:1] != b"$" or items[1] == b"$-1\r\n":
            return head + b"".join(items)
        name = text(items[1])
        if kind.endswith(b"unsubscribe"):
            subscribed.discard(name)
        else:
            subscribed.add(name)
        own = self._namespace.own_pattern(name) if what == b"p" else self._namespace.own_channel(name)
        return head + items[0] + encode.bulk(name if own is None else own) + items[2]

    def _count(self, kind: bytes, subscribed: set[bytes]) -> None:
        """Count a confirmation for the request that it answers."""
        awaited = self._awaited[0] if self._awaited else None
        if not isinstance(awaited, _Confirmations) or awaited.kind != kind:
            return
        if awaited.left is None:
            awaited.left = max(1, len(subscribed))  # UNSUBSCRIBE from all
        awaited.left -= 1
        if not awaited.left:
            self._awaited.popleft()

    def _keys(self, keys: bytes) -> bytes:
        """The keys of an invalidation that are in the namespace, or the null that stands for all; empty:
        none."""
        if keys[:1] != b"*" or keys == b"*-1\r\n":
            return keys
        own = [self._namespace.stripped(frame) for frame in elements(keys) if self._namespace.holds(frame)]
        return encode.array(own) if own else b""
