"""Hits: how reads answered from memory are counted, and whether memory still holds what was taken from it."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.client.session import Session


def count(
    session: Session,
    parts: list[bytes],
    hits: int,
    began: float = 0.0,
    replies: Sequence[bytes | None] | None = None,
) -> None:
    """Count reads answered from memory; now and then, log them, and time them if it is known when they
    `began`.

    `replies`: where these are None, a part was not found.
    """
    session.hits += hits
    if session.hits > session.log_at:
        if replies is not None:
            parts = [part for part, reply in zip(parts, replies, strict=True) if reply is not None]
        session.table.asked = monotonic()
        if began:
            session.clients.latency.hit(parts[0], began)
        session.log_at = session.hits + session.table.log(parts)
        if session.clients.verifier is not None:
            session.clients.verifier.sample(session, parts)


def vouched(session: Session) -> bool:
    """Whether what memory holds may be served now."""
    return monotonic() < session.shelf.until or session.shelf.vouch(monotonic())


def kept(session: Session, drops: int, parts: list[bytes], replies: list[bytes | None]) -> bool:
    """Whether what was taken from the table is what it has held ever since."""
    if not vouched(session):
        return False
    if session.shelf.drops == drops:
        return True
    for reply, now in zip(replies, map(session.find, parts), strict=True):
        if reply is not None and reply is not now:
            return False
    return True
