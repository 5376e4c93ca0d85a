"""The way to Redis: its name, a connection, TLS, logging in, the database."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from proxy.preflight.steps import Steps, refusal
from proxy.preflight.talk import Talk, begin
from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.upstream.address import Upstream
from proxy.upstream.link import Connector, LinkKey
from proxy.upstream.tls import tls_context

T = TypeVar("T")
_SOON = 14
"""Days before a certificate's end from which that is remarkable."""


async def reach(steps: Steps, connector: Connector) -> None:
    """Find out whether there is a connection to be had, and what TLS says. Raises Stuck."""
    upstream = connector.upstream
    if upstream.path is None and not _is_address(upstream.host):
        await _resolve(steps, connector)
    loop = asyncio.get_running_loop()
    make: Callable[[], Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]
    if (path := upstream.path) is not None:
        where = f"unix socket {path}"
        make = lambda: loop.create_unix_connection(asyncio.Protocol, path)  # noqa: E731
    else:
        where = f"{upstream.host}:{upstream.port}"
        make = lambda: loop.create_connection(asyncio.Protocol, upstream.host, upstream.port)  # noqa: E731
    try:
        (transport, _), seconds = await _timed(connector, make())
    except TimeoutError:
        raise steps.stuck(
            "connection", f"{where} did not answer within {connector.timeout:g} s",
            "see whether the address is right and no firewall drops what is sent there",
        ) from None  # fmt: skip
    except OSError as error:
        raise steps.stuck("connection", f"{where}: {_reason(error)}", _advice(error, upstream)) from None
    transport.abort()
    steps.passes("connection", f"{where} in {_shown(seconds)}")
    if upstream.tls:
        await _try_tls(steps, connector)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _timed(connector: Connector, work: Awaitable[T]) -> tuple[T, float]:
    began = time.monotonic()
    async with asyncio.timeout(connector.timeout):
        result = await work
    return result, time.monotonic() - began


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


async def _resolve(steps: Steps, connector: Connector) -> None:
    host = connector.upstream.host
    loop = asyncio.get_running_loop()
    advice = "see whether the name is right, and whether this machine asks the name server that knows it"
    try:
        found, seconds = await _timed(connector, loop.getaddrinfo(host, connector.upstream.port, type=1))
    except TimeoutError:
        why = f"{host} is not resolved within {connector.timeout:g} s"
        raise steps.stuck("name", why, advice) from None
    except OSError as error:
        raise steps.stuck("name", f"{host} is not known: {_reason(error)}", advice) from None
    addresses = ", ".join(dict.fromkeys(str(each[4][0]) for each in found))
    steps.passes("name", f"{host} is {addresses}, in {_shown(seconds)}")


def _advice(error: OSError, upstream: Upstream) -> str:
    if upstream.path is not None:
        if error.errno == errno.ENOENT:
            return f"nobody has made it; start Redis with unixsocket {upstream.path}, or mount its directory"
        if error.errno in (errno.EACCES, errno.EPERM):
            return "run Pannier as a user or group that may use it (redis.conf: unixsocketperm 770)"
        return "see that Redis listens on it (redis.conf: unixsocket)"
    if error.errno == errno.ECONNREFUSED:
        return "nobody listens there; start Redis, or correct host and port of upstream (and Redis' bind)"
    return "see whether the address is right and can be reached from here"


# --- TLS


async def _try_tls(steps: Steps, connector: Connector) -> None:
    upstream = connector.upstream
    context = tls_context(upstream)
    loop = asyncio.get_running_loop()
    connect = loop.create_connection(
        asyncio.Protocol, upstream.host, upstream.port, ssl=context, server_hostname=upstream.tls_name
    )
    try:
        (transport, _), seconds = await _timed(connector, connect)
    except TimeoutError:
        raise steps.stuck(
            "TLS", f"no handshake within {connector.timeout:g} s",
            "see whether this port speaks TLS (redis.conf: tls-port); for a plain one write redis://",
        ) from None  # fmt: skip
    except OSError as error:
        raise steps.stuck("TLS", *_trouble(error, upstream)) from None
    about = transport.get_extra_info("ssl_object")
    version, certificate = about.version(), about.getpeercert()
    transport.abort()
    began = f"{version} in {_shown(seconds)}"
    if context.verify_mode is ssl.CERT_NONE:
        steps.warns(
            "TLS", f"{began}; the certificate is not looked at (ssl_cert_reqs=none)",
            "name the authority with ?ssl_ca_certs=FILE and leave ssl_cert_reqs out",
        )  # fmt: skip
        return
    names = [value for _, value in certificate.get("subjectAltName", ())]
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((ends - time.time()) // 86400)
    found = f"{began}; certificate for {', '.join(names) or 'no name'}, until {certificate['notAfter']}"
    if days < _SOON:
        steps.warns("TLS", f"{found}: {days} days", "have the server's certificate renewed")
    elif not context.check_hostname:
        steps.warns(
            "TLS", f"{found}; its names are not compared (ssl_check_hostname=false)",
            f"have {upstream.tls_name} put into the certificate, and leave ssl_check_hostname out",
        )  # fmt: skip
    else:
        steps.passes("TLS", f"{found} ({days} days)")


def _trouble(error: OSError, upstream: Upstream) -> tuple[str, str]:
    """What is wrong with TLS, and the remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        found = f"the certificate is refused: {error.verify_message}"
        code = error.verify_code
        if code in (62, 64):
            if upstream.ssl_sni:
                return found, f"write ssl_sni ({upstream.ssl_sni}) as the certificate has it, or leave it out"
            return found, (
                "write upstream's host as the certificate has it, have it put into that, or name what it has "
                "with ?ssl_sni=NAME"
            )
        if code in (9, 10):
            return found, "have the server's certificate renewed, and see that the clock here is right"
        authority = f"{upstream.ssl_ca_certs}'s" if upstream.ssl_ca_certs else "the system's"
        return found, f"trusted are {authority} authorities; name the right file with ?ssl_ca_certs=FILE"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"no handshake: {reason}", _NO_TLS
    return f"no handshake: {_reason(error)}", _NO_TLS


_NO_TLS = (
    "see whether this port speaks TLS (redis.conf: tls-port), for a plain one write redis://; if the server "
    "wants a certificate, name it with ?ssl_certfile=FILE&ssl_keyfile=FILE"
)


# --- logging in


async def log_in(steps: Steps, connector: Connector, key: LinkKey, title: str, option: str) -> Talk:
    """Log in as somebody; `option` gives the credentials. Raises Stuck."""
    try:
        talk = await begin(connector, key._replace(database=0, protocol=3))
    except UpstreamError as error:
        found = _without_place(connector, error)
        raise steps.stuck(f"{title}login", found, _cure(error, connector, option)) from None
    try:
        if not talk.refusal:
            who = await talk.ask("ACL", "WHOAMI")
            if isinstance(who, bytes):
                talk.user = who.decode("utf-8", "replace")
            steps.passes(f"{title}login", f"as user {talk.user}")
            await _select(steps, talk, key.database, title)
    except BaseException:
        talk.close()
        raise
    return talk


def _without_place(connector: Connector, error: UpstreamError) -> str:
    """An error without where it happened: that has been said."""
    return str(error).removeprefix(f"ERR pannier: upstream {connector.upstream.redacted} ")


def _cure(error: UpstreamError, connector: Connector, option: str) -> str:
    text = str(error)
    if not isinstance(error, UpstreamRefused):
        if "did not answer" in text:
            return "it takes connections but answers nothing: does it hang, or run a long script?"
        if "CERTIFICATE_REQUIRED" in text:
            return "name a certificate that it trusts with ?ssl_certfile=FILE&ssl_keyfile=FILE in upstream"
        if connector.upstream.tls:
            return f"read Redis' log; {_NO_TLS}"
        return "see whether this is Redis; if the port speaks TLS, write rediss://"
    for begins, cure in _CURES.items():
        if text.startswith(begins):
            return cure.format(option=option)
    return f"this is Redis' own answer; see {option}, and Redis' ACL LOG"


_CURES = {
    "WRONGPASS": "correct user and password in {option}; ACL LIST at Redis shows users, and which are off",
    "NOAUTH": "give user and password in {option}",
    "ERR AUTH <password> called without": "Redis has no password: leave it out of {option}, or set one there",
    "NOPERM": "have Redis let everybody say HELLO and AUTH: ACL SETUSER default +hello +auth",
    "LOADING": "Redis reads its data from disk: wait (--wait 60s)",
    "MASTERDOWN": "the replica has lost its master: mend that, or give the master in {option}",
    "ERR max number of clients": "raise maxclients at Redis, or have other clients leave",
    "DENIED": "Redis is in protected mode: set a password or bind there",
}


async def _select(steps: Steps, talk: Talk, database: int, title: str) -> None:
    reply = refusal(await talk.ask("SELECT", database))
    if not reply:
        if database:
            steps.passes(f"{title}database", f"{database}")
        return
    remedy = "give a database that Redis has (redis.conf: databases) in upstream; a cluster has 0 only"
    if reply.startswith("NOPERM"):
        if not database:
            return  # nobody has to select it
        remedy = f"ACL SETUSER {talk.user} +select"
    raise steps.stuck(f"{title}database", f"{database}: {reply}", remedy)
