"""What the log is told of clients: each line with who it is and where it is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from proxy.events import fields

if TYPE_CHECKING:
    from proxy.client.session import Session

log = logging.getLogger("pannier.client")


def say(session: Session, level: int, event: str, what: str, reason: str = "") -> None:
    """Tell the log of something about a client, and why it is so."""
    if log.isEnabledFor(level):
        why = {"reason": reason} if reason else {}
        text = f"{what}: {reason}" if reason else what
        log.log(level, "client %s %s", session.address, text, extra=fields(event, **who(session), **why))


def who(session: Session) -> dict[str, object]:
    """The fields that tell which client it is."""
    namespace = session.space.namespace
    return {
        "address": session.address,
        "id": session.id,
        "user": user(session),
        "namespace": namespace.name if namespace is not None else "",
        "database": session.database,
    }


def user(session: Session) -> str:
    """Who the client is: its tenant, or whom Redis takes it for; empty: it has not said."""
    tenant = session.space.tenant
    return tenant.name if tenant is not None else (session.identity.user or b"").decode("utf-8", "replace")


def failed(session: Session) -> None:
    """Tell the log of the error that is being handled, which nobody expected."""
    log.exception(
        "client %s: internal error", session.address, extra=fields("internal_error", **who(session))
    )
