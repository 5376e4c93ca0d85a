"""While Redis is away: what a client gets whose commands the shared link refuses.

Reads that memory holds are answered before this is asked. Commands are taken one by one then, so that a
pipeline loses no more of its replies than it must; and as none of them is sent, none drops what memory holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.resp import encode

if TYPE_CHECKING:
    from proxy.client.session import Session

_PONG = b"+PONG\r\n"
_OWN_AFFAIRS = frozenset({"client|getname", "client|id", "client|setinfo", "client|setname"})


def refuse(session: Session, arguments: list[bytes], frame: bytes) -> None:
    """Answer a stateless command that is not sent; nothing of the client's is pending."""
    pings = arguments[0].lower() == b"ping" and len(arguments) <= 2
    if pings and session.home.serves_stale and not session.bypass:
        # As a replica does that serves stale data: PING asks whether there is any use in asking.
        session.commands += 1
        session.write(encode.bulk(arguments[1]) if len(arguments) == 2 else _PONG)
    else:
        session.submit(1, frame)


def excuses(session: Session, name: str) -> bool:
    """Whether a CLIENT command needs no leave from Redis, which cannot be asked: what concerns this client
    alone, such as what its library says on connecting."""
    return name in _OWN_AFFAIRS and session.home.serves_stale
