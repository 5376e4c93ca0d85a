"""Commands on a link of the client's own, as Redis is to get them where not everything may pass: in a
namespace, or where Redis is not to judge who the client is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.client import local
from proxy.resp import encode
from proxy.resp.keys import word
from proxy.resp.messages import SUBSCRIPTIONS
from proxy.resp.namespace import RefusedAsRedis, RefusedHere, Strip, spoken
from proxy.resp.requests import LargeFrame
from proxy.upstream.link import Identity

if TYPE_CHECKING:
    from proxy.client.pin import Pin
    from proxy.client.session import Session

INVALID = [b"GET"]
"""A command that Redis refuses, in whatever state a connection is."""
_OF_OTHERS = {"client|list": 2, "client|kill": 3, "client|unblock": 3}
"""Commands that Redis would answer from, or carry out on, the connections of all, if they have so many
words."""


def translated(pin: Pin, arguments: list[bytes], data: bytes) -> tuple[list[bytes], bytes, Strip | None]:
    """A command, or its first part, as Redis is to get it, and what its reply needs.

    What is refused becomes a command that Redis refuses, too, so that a transaction fails with it.
    """
    session, large = pin.session, pin.large
    if pin.translator is None:
        return arguments, data, None
    command = session.clients.dispatcher.find(arguments)
    session.space.examine(command, session.home)
    try:
        _allow(pin, arguments)
        if large is None:
            real, strip = session.space.translate(command, arguments)
            return real, data if real is arguments else encode.request(*real), strip
        leading = session.space.leading(command, arguments, large.count)
        if leading is None:
            raise RefusedHere("which arguments of so large a command are keys is not known")
        count = large.count - len(arguments) + len(leading[0])
        head = b"*%d\r\n%b" % (count, b"".join(map(encode.bulk, leading[0])))
        return leading[0], head + data[large.body :], leading[1]
    except RefusedHere as refusal:
        reply = refusal.reply
        pin.skipping = large is not None
        return INVALID, encode.request(*INVALID), lambda _: reply


def _allow(pin: Pin, arguments: list[bytes]) -> None:
    """Raises RefusedHere for what must not be said on a link of the client's own."""
    space, name = pin.session.space, pin.session.clients.dispatcher.name(arguments)
    words = [word(argument) for argument in arguments]
    if pin.session.clients.dispatcher.disguised(arguments):
        raise RefusedHere("unknown command: its name holds a zero byte")
    authenticates = name == "auth" and len(arguments) > 1
    if space.refuses_auth and (authenticates or (name == "hello" and b"auth" in words[2:])):
        raise RefusedHere("a connection that holds state cannot authenticate: send RESET first")
    if pin.multi and name in SUBSCRIPTIONS:
        raise RefusedHere(f"{spoken(name)} cannot be part of a transaction here")
    if space.namespace is None:
        return
    if name in _OF_OTHERS and len(arguments) >= _OF_OTHERS[name]:
        raise RefusedHere(f"{spoken(name)} is refused on a connection that holds state, in a namespace")
    if name == "client|reply" and word(arguments[-1]) in (b"off", b"skip"):
        raise RefusedHere(
            "CLIENT REPLY OFF and SKIP are refused in a namespace: replies are translated one by one"
        )
    redirects = name == "client|tracking" and b"redirect" in words[3:]
    if redirects and local.redirect_target(pin.session, arguments) is None:
        raise RefusedAsRedis("The client ID you want redirect to does not exist")


def subscribed(session: Session, name: str) -> bytes:
    """Redis' error for what cannot be said on a RESP2 connection that subscribes."""
    kinds = "P|S" if session.clients.dispatcher.table.full_form else "P"
    return encode.error(
        f"ERR Can't execute '{name}': only ({kinds})SUBSCRIBE / ({kinds})UNSUBSCRIBE / PING / QUIT / RESET "
        "are allowed in this context"
    )


def strayed(name: str) -> bytes:
    """The error for a command of the sidecar's own where it is not known for whom it would be answered."""
    return encode.error(
        f"ERR pannier: {spoken(name)} is refused after SELECT, AUTH or HELLO on a connection that holds "
        "state: send RESET first"
    )


def moved(name: str, arguments: list[bytes]) -> dict[str, Any]:
    """What a SELECT, AUTH or HELLO that succeeds changes about a connection."""
    change: dict[str, Any] = {}
    if name == "select" and len(arguments) > 1 and arguments[1].isdigit():
        change["database"] = int(arguments[1])
    elif name == "hello" and len(arguments) > 1 and arguments[1] in (b"2", b"3"):
        change["protocol"] = int(arguments[1])
        words = [argument.lower() for argument in arguments]
        if b"auth" in words[2:-2]:
            at_user = words.index(b"auth", 2) + 1
            change["identity"] = Identity(arguments[at_user], arguments[at_user + 1])
    elif name == "auth" and len(arguments) in (2, 3):
        change["identity"] = Identity(arguments[1] if len(arguments) == 3 else None, arguments[-1])
    return change


def waits_for_all(pin: Pin, arguments: list[bytes], frame: LargeFrame) -> bool:
    """Whether a large command's keys can be told only once all of it is here."""
    command = pin.session.clients.dispatcher.find(arguments)
    try:
        return pin.session.space.leading(command, arguments, frame.count) is None
    except RefusedHere:
        return False  # said when it is sent
