"""CLIENT LIST and the filters of CLIENT KILL, over the sessions of this sidecar (Redis docs: CLIENT LIST)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from proxy.client.states import State
from proxy.listening import peer
from proxy.upstream.pinned import Mode

if TYPE_CHECKING:
    from proxy.client.session import Session


_MOST_OPTIONS = 64


def line(session: Session) -> str:
    """One session in the format of CLIENT LIST."""
    now = time.monotonic()
    pin = session.pin
    user = _text(_user(session))
    info = session.info or {}
    fields: dict[str, object] = {
        "id": session.id,
        "addr": session.address,
        "laddr": session.clients.address(session.transport, "sockname"),
        "fd": _fd(session),
        "name": _text(session.name),
        "age": int(now - session.created),
        "idle": int(now - session.idle_since) if session.served == session.idle_mark else 0,
        "flags": flags(session),
        "db": session.database,
        "sub": 0,
        "psub": 0,
        "multi": 0 if pin is not None and pin.multi else -1,
        "watch": 1 if pin is not None and pin.watching else 0,
        "qbuf": len(session.buffer),
        "obl": session.transport.get_write_buffer_size(),
        "events": "r",
        "cmd": session.work.name if session.work is not None else "NULL",
        "user": user,
        "redir": -1,
        "resp": session.protocol,
        "lib-name": _text(info.get("lib-name", b"")),
        "lib-ver": _text(info.get("lib-ver", b"")),
        "tot-cmds": session.served,
    }
    if found := peer(session.transport.get_extra_info("socket")):
        fields |= dict(zip(("pid", "uid", "gid"), found, strict=True))
    return " ".join(f"{name}={value}" for name, value in fields.items())


def flags(session: Session) -> str:
    """The letters of CLIENT LIST's flags that apply: x in MULTI, b blocked, P subscribed or the like."""
    pin = session.pin
    letters = ""
    if pin is not None:
        letters += "x" if pin.multi else ""
        letters += "b" if pin.blocking and not pin.link.idle else ""
        letters += "P" if pin.link.mode is Mode.STREAM else ""
        letters += "S" if pin.link.mode is Mode.TUNNEL else ""
    if session.unix:
        letters += "U"
    return letters or "N"


def sees(session: Session, other: Session) -> bool:
    """Whether a session may know of another one: in a namespace, of those in the same space only."""
    return session.space.namespace is None or other.space is session.space


def seen(session: Session) -> list[Session]:
    """The sessions that one may know of."""
    return [other for other in session.clients.sessions.values() if sees(session, other)]


def _user(session: Session) -> bytes:
    tenant = session.space.tenant
    return tenant.name.encode() if tenant is not None else session.identity.user or b"default"


def chosen(session: Session, options: list[bytes]) -> list[Session]:
    """The sessions that CLIENT LIST's options ask for. Raises ValueError with Redis' error text."""
    sessions = seen(session)
    if not options:
        return sessions
    option = options[0].upper()
    if option == b"TYPE" and len(options) == 2:
        kind = _kind(options[1])
        return [session for session in sessions if _is(session, kind)]
    if option == b"ID" and len(options) > 1:
        numbers = {_id(number) for number in options[1:]}
        return [session for session in sessions if session.id in numbers]
    raise ValueError("ERR syntax error")


def victims(session: Session, options: list[bytes]) -> list[Session]:
    """The sessions that CLIENT KILL's filters match. Raises ValueError with Redis' error text."""
    if len(options) % 2 or len(options) > _MOST_OPTIONS:
        raise ValueError("ERR syntax error")
    found = seen(session)
    skip_me = True
    for name, value in zip(options[::2], options[1::2], strict=True):
        option = name.upper()
        text = _text(value)
        if option == b"ID":
            number = _id(value)
            found = [other for other in found if other.id == number]
        elif option == b"TYPE":
            kind = _kind(value)
            found = [other for other in found if _is(other, kind)]
        elif option == b"ADDR":
            found = [other for other in found if other.address == text]
        elif option == b"LADDR":
            local = session.clients.address
            found = [other for other in found if local(other.transport, "sockname") == text]
        elif option == b"USER":
            found = [other for other in found if _text(_user(other)) == text]
        elif option == b"MAXAGE" and value.isdigit():
            oldest = time.monotonic() - int(value)
            found = [other for other in found if other.created <= oldest]
        elif option == b"SKIPME" and text.lower() in ("yes", "no"):
            skip_me = text.lower() == "yes"
        else:
            raise ValueError("ERR syntax error")
    return [other for other in found if not (skip_me and other is session)]


def _id(value: bytes) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ValueError("ERR client-id should be greater than 0")
    return int(value)


def _kind(value: bytes) -> str:
    kind = _text(value).lower()
    if kind not in ("normal", "master", "replica", "slave", "pubsub"):
        raise ValueError(f"ERR Unknown client type '{_text(value)}'")
    return kind


def _is(session: Session, kind: str) -> bool:
    if session.state is State.STREAM:
        return kind == "pubsub"
    if session.state is State.TUNNEL:
        return kind in ("replica", "slave")
    return kind == "normal"


def _fd(session: Session) -> int:
    sock = session.transport.get_extra_info("socket")
    return sock.fileno() if sock is not None else -1


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
