"""What the log is told of clients: each line with who it is and where it is."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from proxy.events import fields
from proxy.listening import peer

if TYPE_CHECKING:
    from proxy.client.session import Session

log = logging.getLogger("pannier.client")


def say(session: Session, level: int, event: str, what: str, reason: str = "") -> None:
    """Tell the log of something about a client, and why it is so."""
    if log.isEnabledFor(level):
        why = {"reason": reason} if reason else {}
        text = f"{what}: {reason}" if reason else what
        log.log(level, "client %s %s", session.address, text, extra=fields(event, **who(session), **why))


def connected(session: Session) -> None:
    """Tell the log of a client that has come: from which process over a unix socket; with TLS, as whom."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    transport, text = session.transport, ""
    more: dict[str, object] = {}
    if found := peer(transport.get_extra_info("socket")):
        more = dict(zip(("pid", "uid", "gid"), found, strict=True))
        text = " from process {}, user {}, group {}".format(*found)
    elif session.tls:
        cipher = transport.get_extra_info("cipher") or ("", "")
        more = {"tls": cipher[1], "cipher": cipher[0], "subject": subject(transport)}
        text = f" with {cipher[1]}" + (f" as {more['subject']}" if more["subject"] else "")
    about = fields("client_connected", **who(session), **more)
    log.debug("client %s connected%s", session.address, text, extra=about)


def subject(transport: asyncio.BaseTransport) -> str:
    """Whom a client's certificate is for, as `CN=…`; empty if it showed none."""
    shown = transport.get_extra_info("peercert") or {}
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}
    pairs = [pair for group in shown.get("subject", ()) for pair in group if pair[0] in short]
    return ",".join([f"{short[name]}={value}" for name, value in pairs])


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
