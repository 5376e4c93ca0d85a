"""SIDECAR: the sidecar's own command, over any Redis client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.resp import encode
from proxy.tier.rules import key_frame, marks

if TYPE_CHECKING:
    from proxy.client.session import Session

_HELP = """\
SIDECAR <subcommand> [<arg> ...]. Subcommands are:
BYPASS (ON|OFF)
    Have Redis answer all reads of this connection, or let memory answer them again.
FLUSH
    Drop everything kept in memory, in a namespace what is kept of it. Redis is not touched.
INVALIDATE <key> [<key> ...]
    Drop what is kept in memory of these keys; replies with the number of entries dropped.
STATS
    Show what the memory tier holds and does.
HELP
    Print this help.
"""


def sidecar(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR."""
    if len(arguments) < 2:
        return encode.error("ERR wrong number of arguments for 'sidecar' command")
    word = arguments[1].decode("utf-8", "surrogateescape")
    found = _SUBCOMMANDS.get(word.lower())
    if found is None:
        return encode.error(f"ERR unknown subcommand '{word}'. Try SIDECAR HELP.")
    least, most, answer = found
    given = arguments[2:]
    if not least <= len(given) <= most:
        return encode.error(f"ERR wrong number of arguments for 'sidecar|{word.lower()}' command")
    return answer(session, given)


def _bypass(session: Session, arguments: list[bytes]) -> bytes:
    word = arguments[0].lower()
    if word not in (b"on", b"off"):
        return encode.error("ERR SIDECAR BYPASS takes ON or OFF")
    session.set_bypass(word == b"on")
    return encode.OK


def _flush(session: Session, arguments: list[bytes]) -> bytes:
    tier, space = session.clients.tier, session.space
    if space.namespace is not None and space.account is not None:
        space.account.clear()
    elif tier is not None and not space.locked:
        tier.clear()
    return encode.OK


def _invalidate(session: Session, arguments: list[bytes]) -> bytes:
    tier, namespace = session.clients.tier, session.space.namespace
    frames = map(key_frame, arguments)
    if namespace is not None:
        frames = map(namespace.bulk, frames)
    dropped = tier.drop(marks(frames), session.space.prefix) if tier is not None else 0
    return encode.integer(dropped)


def _stats(session: Session, arguments: list[bytes]) -> bytes:
    return encode.value(session.clients.stats(session.space), session.protocol)


def _help(session: Session, arguments: list[bytes]) -> bytes:
    return encode.array(b"+%b\r\n" % line.encode() for line in _HELP.splitlines())


_MANY = 1 << 31
_SUBCOMMANDS: dict[str, tuple[int, int, Callable[[Session, list[bytes]], bytes]]] = {
    "bypass": (1, 1, _bypass),
    "flush": (0, 0, _flush),
    "help": (0, 0, _help),
    "invalidate": (1, _MANY, _invalidate),
    "stats": (0, 0, _stats),
}
"""The least and the greatest number of arguments, and what answers."""
