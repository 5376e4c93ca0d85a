"""Socket options and TLS contexts shared by both sides."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl

from proxy.resp.errors import SettingsError
from proxy.upstream.address import Upstream


def set_keepalive(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Send TCP keep-alives after `seconds` of silence, then every third of it; 0 turns them off.

    Redis does the same with its tcp-keepalive (redis.conf), so a vanished peer is noticed after about twice
    that time. Does nothing on a unix socket.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or seconds <= 0:
        return
    idle = max(1, int(seconds))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 3))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


@functools.cache
def tls_context(upstream: Upstream) -> ssl.SSLContext:
    """The context for a `rediss://` upstream: certificates are verified unless the URL says otherwise.

    Made once: reading the system's authorities takes milliseconds, and every connection needs it.
    Raises SettingsError if a file cannot be used.
    """
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = getattr(upstream, option)
        if path is not None and not os.access(path, os.R_OK):
            problem = f"{option}: {path!r} cannot be read; name a PEM file"
            raise SettingsError(f"upstream {upstream.redacted}: {problem}")
    try:
        return _tls_context(upstream)
    except (ssl.SSLError, OSError) as error:
        problem = f"ssl_ca_certs, ssl_certfile or ssl_keyfile is no usable PEM file ({error})"
        raise SettingsError(f"upstream {upstream.redacted}: {problem}") from None


def _tls_context(upstream: Upstream) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=upstream.ssl_ca_certs)
    context.check_hostname = upstream.ssl_check_hostname and upstream.ssl_cert_reqs != "none"
    if upstream.ssl_cert_reqs == "none":
        context.verify_mode = ssl.CERT_NONE
    if upstream.ssl_certfile:
        context.load_cert_chain(upstream.ssl_certfile, upstream.ssl_keyfile)
    return context
