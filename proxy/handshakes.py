"""Listening with TLS: connections are accepted here, and become clients once they have shaken hands.

asyncio's own server with TLS tells nobody of a handshake that fails, and takes one context for ever. This one
asks for the context at each connection, so that a renewed certificate counts from the next one on; it counts
those that have not shaken hands yet, so that there cannot be more of them than clients; it bounds the time
they take; and it says why one failed, in plain words. What a failed one costs is a line of the log, of which
there are a few a minute at most (`logs.Repeats`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

from proxy.certificates import Certificates, reason_of
from proxy.events import fields

log = logging.getLogger("pannier.tls")

PATIENCE = 10.0
"""Seconds that a handshake may take."""
_REST = 0.5
"""Seconds for which nobody is accepted after the system had no place for a connection."""
REASONS = ("plain", "certificate", "version", "timeout", "gone", "full", "other")
"""Why handshakes fail, as the metric has it."""
_PLAIN = {
    "BAD_RECORD_TYPE",
    "HTTPS_PROXY_REQUEST",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_TOO_SMALL",
    "UNEXPECTED_MESSAGE",
    "UNKNOWN_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
"""What OpenSSL calls the first bytes if they are no handshake."""
_VERSION = {
    "INAPPROPRIATE_FALLBACK",
    "NO_PROTOCOLS_AVAILABLE",
    "NO_SHARED_CIPHER",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "VERSION_TOO_LOW",
}


class Handshakes:
    """Those who shake hands at the listeners of one kind, and how it went."""

    def __init__(self, most: Callable[[], int]) -> None:
        self.under_way: set[object] = set()
        """Who has not shaken hands yet. Whoever counts a protocol otherwise takes it out."""
        self.failed = dict.fromkeys(REASONS, 0)
        """How many have not, and why."""
        self.done = 0
        self._most = most
        """How many more connections there may be."""

    @property
    def full(self) -> bool:
        """Whether there is no place for one more connection."""
        return len(self.under_way) >= self._most()

    def refuse(self, address: str) -> None:
        """Tell of a connection for which there is no place."""
        self.failed["full"] += 1
        about = fields("tls_refused", address=address, cause="full", reason="too many connections")
        log.warning("client %s rejected before TLS began: too many connections", address, extra=about)

    def fail(self, address: str, error: Exception) -> None:
        """Tell of a handshake that failed.

        Whoever only looks whether the port is open is not worth a line; a certificate that does not do is
        worth a warning: somebody meant to come in.
        """
        cause, reason = judge(error)
        self.failed[cause] += 1
        if cause == "certificate":
            about = fields("tls_refused", address=address, cause=cause, reason=reason)
            log.warning("client %s refused: %s", address, reason, extra=about)
            return
        level = logging.DEBUG if cause == "gone" else logging.INFO
        about = fields("tls_failed", address=address, cause=cause, reason=reason)
        log.log(level, "client %s did not come to speak TLS: %s", address, reason, extra=about)


def judge(error: Exception) -> tuple[str, str]:
    """Which of `REASONS` a handshake failed for, and that in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate", f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or ""
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "certificate", "it shows no certificate, and this listener wants one (tls_client_ca)"
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return "certificate", f"it does not accept our certificate ({reason_of(error)})"
        if reason in _VERSION:
            return "version", f"it speaks no version or cipher of TLS that is allowed ({reason_of(error)})"
        if reason in _PLAIN:
            return "plain", "it speaks without TLS, or what is no TLS"
        if reason == "UNEXPECTED_EOF_WHILE_READING":
            return "gone", "it left"
        return "other", reason_of(error)
    if isinstance(error, ConnectionAbortedError):  # uvloop's and asyncio's word for it
        return "timeout", "it took too long to begin"
    if isinstance(error, ConnectionError):
        return "gone", "it left"
    return "other", str(error) or type(error).__name__


class TlsServer:
    """Accepts connections at some listening sockets, and makes clients of those that shake hands."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        sockets: Sequence[socket.socket],
        certificates: Certificates,
        handshakes: Handshakes,
        patience: float = PATIENCE,
    ) -> None:
        self.sockets = list(sockets)
        self._make = make
        self._certificates = certificates
        self._handshakes = handshakes
        self._patience = patience
        loop = asyncio.get_running_loop()
        self._tasks = {loop.create_task(self._accept(sock)) for sock in self.sockets}
        """Those that accept, and one for each handshake under way."""

    def close(self) -> None:
        """Accept nobody any more, and drop those who have not shaken hands."""
        for task in self._tasks:
            task.cancel()
        for sock in self.sockets:
            sock.close()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, name = await loop.sock_accept(sock)
            except ConnectionAbortedError:
                continue  # it has left already
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                about = fields("accept_failed", reason=error.strerror)
                log.error("no connection can be accepted for now: %s", error.strerror, extra=about)
                await asyncio.sleep(_REST)
                continue
            address = show(name)
            if self._handshakes.full:
                self._handshakes.refuse(address)
                connection.close()
                continue
            task = loop.create_task(self._shake(connection, address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake(self, connection: socket.socket, address: str) -> None:
        protocol = self._make()
        waiting = self._handshakes.under_way
        waiting.add(protocol)
        try:
            await self._welcome(connection, protocol)
        except Exception as error:
            self._handshakes.fail(address, error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            waiting.discard(protocol)

    async def _welcome(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        """Shake hands. Raises what is in the way."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A second descriptor, with which to say why it failed when the first is closed because it did.
        with connection.dup() as last:
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._certificates.context,
                    ssl_handshake_timeout=self._patience,
                )  # fmt: skip
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    last.send(getattr(error, "alert", b""))  # see `certificates`
                raise
        self._handshakes.done += 1


def show(name: tuple[str, int]) -> str:
    """An address as it is written."""
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
