"""Addresses as people write them: where Redis is (`Upstream`) and where Pannier listens (`Listen`).

Nothing here does I/O. Both classes are parsed once, when the settings are read, and are plain values from
then on. Passwords are taken in but never shown: `repr`, `str`, `redacted` and every error text are safe to
log, also for a text that does not parse (`mask`).
"""

from __future__ import annotations

import difflib
import errno
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from proxy.resp.errors import StartupError

REDIS_PORT = 6379
SOCKET_MODE = 0o600
"""Who may connect to a unix socket unless `?mode=` says otherwise: only the user Pannier runs as."""
LONGEST_SOCKET_PATH = 107
"""Bytes; `sun_path` of unix(7) less its final zero."""
LONGEST_NAMESPACE = 64
"""Bytes of UTF-8: it stands before every key, so a long one costs with each command."""


class AddressError(ValueError):
    """A text is no address; the error quotes it (masked) and says what would be right."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where Redis is, and how to get in.

    The `ssl_*` fields have redis-py's names and meaning and matter only if `tls`.
    """

    host: str = "localhost"
    """Name or address; without meaning if `path` is set."""
    port: int = REDIS_PORT
    path: str | None = None
    """A unix socket's path; None: TCP."""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    """None: Redis' default user."""
    password: str | None = field(default=None, repr=False)
    """None: do not authenticate."""
    tls: bool = False
    ssl_cert_reqs: str = "required"
    """`required`, or `none`: take whatever certificate the server shows."""
    ssl_ca_certs: str | None = None
    """File with the authorities to trust; None: the system's."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    ssl_sni: str | None = None
    """The name to ask for and to find in the certificate; None: the host's. redis-cli calls it --sni."""
    ssl_min_version: str = "1.2"

    @classmethod
    def parse(cls, text: str) -> Upstream:
        """Read a `redis://`, `rediss://` or `unix://` URL. Raises AddressError."""
        try:
            return cls(**_upstream_fields(text.strip()))
        except _Fault as fault:
            raise AddressError(f"{shown(text)} {fault}") from None

    @property
    def redacted(self) -> str:
        """The URL with its password masked, for logs."""
        login = ""
        if self.username or self.password:
            user = quote(self.username or "", safe="")
            login = f"{user}:***@" if self.password else "***@"
        query = [f"{name}={value}" for name, value in self._tls_options()]
        if self.path is not None:
            query = [f"db={self.db}"] if self.db else []
            url = f"unix://{login}{quote(self.path)}"
        else:
            url = f"{'rediss' if self.tls else 'redis'}://{login}{_join(self.host, self.port)}/{self.db}"
        return url + ("?" + "&".join(query) if query else "")

    @property
    def tls_name(self) -> str:
        """The name that the server is asked for in TLS, and that its certificate has to have."""
        return self.ssl_sni or self.host

    def __str__(self) -> str:
        return self.redacted

    def _tls_options(self) -> Iterable[tuple[str, str]]:
        """The `ssl_*` fields that differ from their defaults, as query parameters."""
        for name in _TLS_PARAMETERS:
            value = getattr(self, name)
            if value != Upstream.__dataclass_fields__[name].default:
                yield name, quote(str(value).lower() if isinstance(value, bool) else value, safe="/")


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to serve clients on; `str` gives it back in the form it was written in."""

    host: str | None = "127.0.0.1"
    """None: every interface, IPv4 and IPv6."""
    port: int = 6380
    """0: the system chooses; Pannier prints its choice at start."""
    path: str | None = None
    """A unix socket's path; None: TCP."""
    mode: int = SOCKET_MODE
    """Permission bits of the unix socket."""
    namespace: str | None = None
    """Of the clients that come in here. None: the setting `namespace` holds. Empty: none."""
    tls: bool = False
    """Whether TLS is spoken here; never on a unix socket."""
    group: str | None = None
    """Name or number of the group that the unix socket is to have. None: as the system gives it."""

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read `host:port`, `[::1]:port`, `:port` or `*:port` (every interface), `port` (127.0.0.1),
        any of these after `tcp://`, `?tls=true` after each; or `unix:///path?mode=660&group=app`;
        `?namespace=x` may stand after all. Raises AddressError.
        """
        try:
            # The query first, so that no :// in it is taken for the end of a scheme.
            address, _, query = text.strip().partition("?")
            scheme, separator, rest = address.partition("://")
            if not separator:
                return _listen_tcp(scheme, query)
            if scheme.lower() == "tcp":
                return _listen_tcp(rest.rstrip("/"), query)
            if scheme.lower() == "unix":
                return _listen_unix(rest, query)
            raise _Fault(
                "is no address to listen on; give one such as 127.0.0.1:6380 or unix:///run/pannier.sock"
            )
        except _Fault as fault:
            raise AddressError(f"{shown(text)} {fault}") from None

    @property
    def place(self) -> tuple[str | None, int, str | None]:
        """What is bound: two listeners at the same place are the same address given twice."""
        return self.host, self.port, self.path

    def __str__(self) -> str:
        query = ["tls=true"] if self.tls else []
        if self.path is not None and self.mode != SOCKET_MODE:
            query.append(f"mode={self.mode:o}")
        if self.group is not None:
            query.append(f"group={quote(self.group)}")
        if self.namespace is not None:
            query.append(f"namespace={quote(self.namespace, safe=':')}")
        unix = self.path is not None and f"unix://{quote(self.path)}"
        return (unix or _join(self.host or "*", self.port)) + ("?" + "&".join(query) if query else "")


def check_namespace(text: str) -> str:
    """Give the namespace back if it is one; called for every spelling of it: the option's, a listener's and
    a tenant's. Raises ValueError with the predicate of a sentence, to which the caller puts the subject.
    """
    if not text.isprintable() or re.search(r"\s", text):
        raise ValueError("has white space or a control character; give a prefix such as agent_service")
    if len(text.encode()) > LONGEST_NAMESPACE:
        raise ValueError(f"is too long; a namespace has at most {LONGEST_NAMESPACE} bytes")
    if text.startswith(":") or text.endswith(":"):
        raise ValueError("begins or ends with a colon; leave it out, Pannier puts one after the namespace")
    if "://" in text:
        # A Redis URL that strayed here would stand, password and all, before every key.
        raise ValueError("is a URL; give a prefix such as agent_service")
    return text


def cannot_listen(listen: Listen, error: OSError, option: str = "--listen") -> StartupError:
    """Put into words why `listen` could not be bound; called by whoever opens the listening sockets.

    `option`: which one gives the address.
    """
    if error.errno == errno.EADDRINUSE:
        advice = f"it is in use already; stop the program that has it or choose another with {option}"
    elif error.errno == errno.EACCES and listen.path is None and 0 < listen.port < 1024:
        advice = f"ports below 1024 need privileges; choose a higher one with {option}"
    elif error.errno == errno.EADDRNOTAVAIL:
        advice = "no interface of this machine has that address"
    elif error.errno == errno.ENOENT and listen.path is not None:
        advice = f"there is no directory {os.path.dirname(listen.path)}"
    else:
        advice = error.strerror or str(error)
    return StartupError(f"cannot listen on {listen}: {advice}")


def shown(text: str) -> str:
    """`text` for an error message: masked, quoted, not too long."""
    masked = mask(text.strip())
    return repr(masked if len(masked) <= 120 else masked[:117] + "…")


def mask(text: str) -> str:
    """`text` with whatever might be a password in it replaced by `***`, even if it is no valid URL.

    A user name that stands alone before the `@` goes as well: redis-cli takes that for a password.
    """
    text = re.sub(r"(password=).*", r"\1***", text, flags=re.IGNORECASE | re.DOTALL)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    login, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = login.partition(":")
        rest = f"{user}:***@{place}" if colon else f"***@{place}"
    elif scheme.lower().startswith("redis") and "[" not in rest:
        # redis://:secret, the host forgotten: what stands where the port should be is not shown.
        host, colon, port = rest.partition(":")
        if colon and not re.match(r"\d+($|[/?#])", port):
            rest = f"{host}:***"
    return scheme + separator + rest


class _Fault(Exception):
    """What is wrong with an address, as the predicate of a sentence; `parse` puts the address before it.

    It never quotes a part that may hold a password.
    """


_EXAMPLE = (
    "give a URL such as redis://host:6379/0, rediss://user:password@host:6379/0 or unix:///run/redis.sock"
)
_TLS_PARAMETERS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname",
                   "ssl_sni", "ssl_min_version")  # fmt: skip
_TLS_VERSIONS = {"1.2": "1.2", "1.3": "1.3", "771": "1.2", "772": "1.3"}
"""As in the settings; and as redis-py has them in a URL, which are the protocol's own numbers."""
_PARAMETERS = ("db", "username", "password", *_TLS_PARAMETERS)
_CLIENT_PARAMETERS = re.compile(
    "client_name|decode_responses|encoding(_errors)?|health_check_interval|max_connections|protocol"
    "|retry_on_(error|timeout)|socket_(connect_timeout|keepalive|timeout)|timeout"
)
"""redis-py's own options that stand in many a REDIS_URL; they concern the application and are passed over."""
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _upstream_fields(text: str) -> dict[str, Any]:
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("redis", "rediss", "unix"):
        raise _Fault(f"is not a Redis URL; {_EXAMPLE}")
    rest, _, query = rest.partition("?")
    authority, slash, tail = rest.partition("/")
    login, _, place = authority.rpartition("@")
    astray = "@" in tail and (scheme != "unix" or place)
    if "#" in text or astray or "@" in re.sub("=[^&]*", "", query):
        raise _Fault("has one of / ? # @ in its user name or password; percent-encode it: %2F %3F %23 %40")
    parameters = _parameters(query, tls=scheme == "rediss")
    if "ssl_keyfile" in parameters and "ssl_certfile" not in parameters:
        raise _Fault("has ssl_keyfile, which is of no use without ssl_certfile; give the latter, too")
    fields = _login(login) | parameters
    path = unquote(slash + tail)
    if scheme == "unix":
        if place or len(path) < 2:
            raise _Fault("names no absolute socket path; give one such as unix:///run/redis.sock")
        return fields | {"path": _socket_path(path)}
    if path.strip("/"):
        fields.setdefault("db", _database(path.strip("/")))
    host, port = _split(place or "localhost")
    host = host or "localhost"
    number = REDIS_PORT if port is None else _port(port, lowest=1)
    return fields | {"host": host, "port": number, "tls": scheme == "rediss"}


def _login(text: str) -> dict[str, Any]:
    """Read `user:password`; a name alone means an empty password, as in redis-py."""
    if text in ("", ":"):
        return {}
    user, _, password = text.partition(":")
    return {"username": unquote(user) or None, "password": unquote(password)}


def _parameters(query: str, *, tls: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if _CLIENT_PARAMETERS.fullmatch(name):
            continue
        if name not in _PARAMETERS:
            near = difflib.get_close_matches(name, _PARAMETERS, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(_PARAMETERS)}"
            raise _Fault(f"has an unknown parameter after the ?; {advice}")
        if name in _TLS_PARAMETERS and not tls:
            raise _Fault(f"has {name}, which needs TLS: write rediss:// instead")
        fields[name] = _parameter(name, value)
    return fields


def _parameter(name: str, value: str) -> Any:
    if name == "db":
        return _database(value)
    if name == "ssl_cert_reqs" and value not in ("none", "required"):
        raise _Fault("has an unknown ssl_cert_reqs; give none or required")
    if name == "ssl_min_version":
        if value not in _TLS_VERSIONS:
            raise _Fault("has an unknown ssl_min_version; give 1.2 or 1.3")
        return _TLS_VERSIONS[value]
    if name == "ssl_sni" and not re.fullmatch(r"[\w.-]{1,253}|[0-9a-fA-F:]+", value):
        raise _Fault("has an ssl_sni that is no name of a host; give one such as redis.example.com")
    if name == "ssl_check_hostname":
        if value.lower() not in _BOOLEANS:
            raise _Fault("has an unknown ssl_check_hostname; give true or false")
        return _BOOLEANS[value.lower()]
    return value


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _Fault("has a database that is no whole number; give it as in redis://host:6379/0")
    return int(text)


def _listen_tcp(text: str, query: str) -> Listen:
    parameters = _listen_parameters(query, "tls", "namespace")
    namespace, tls = parameters.get("namespace"), parameters.get("tls", "false").lower()
    if tls not in _BOOLEANS:
        raise _Fault("has an unknown tls; give true or false")
    if re.fullmatch(r"[0-9]+", text):
        return Listen(port=_port(text, lowest=0), namespace=namespace, tls=_BOOLEANS[tls])
    host, port = _split(text)
    if port is None:
        raise _Fault("has no port; give an address such as 127.0.0.1:6380")
    host_or_all = None if host in ("", "*") else host
    return Listen(host_or_all, _port(port, lowest=0), namespace=namespace, tls=_BOOLEANS[tls])


def _listen_unix(path: str, query: str) -> Listen:
    path = unquote(path)
    if not path.startswith("/") or len(path) < 2:
        raise _Fault("names no absolute socket path; give one such as unix:///run/pannier.sock")
    parameters = _listen_parameters(query, "mode", "group", "namespace")
    mode, group = parameters.get("mode", f"{SOCKET_MODE:o}"), parameters.get("group")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        raise _Fault("has a mode that is no octal permission; give one such as ?mode=660")
    if group is not None and not re.fullmatch(r"\d{1,9}|[A-Za-z_][\w.-]{0,31}\$?", group, re.ASCII):
        raise _Fault("has a group that is neither a name nor a number; give one such as ?group=app")
    path = _socket_path(path)
    return Listen(None, 0, path, int(mode, 8), parameters.get("namespace"), group=group)


def _listen_parameters(query: str, *known: str) -> dict[str, str]:
    """What stands after the `?`. Not by parse_qsl, for which a + in a namespace would be a space."""
    parameters: dict[str, str] = {}
    for name, _, value in (part.partition("=") for part in query.split("&") if part):
        if name == "tls" and name not in known:
            raise _Fault("has tls, but what goes over a unix socket never leaves the machine; leave it out")
        if name not in known:
            names = ", ".join(known[:-1]) + f" and {known[-1]}"
            example = "mode=660" if known[0] == "mode" else "namespace=agent_service"
            raise _Fault(f"has an unknown parameter after the ?; known are {names}, as in ?{example}")
        if name in parameters:
            raise _Fault(f"has two of {name}; give it once")
        parameters[name] = _namespace(value) if name == "namespace" else unquote(value)
    return parameters


def _namespace(value: str) -> str:
    try:
        text = unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise _Fault("has a namespace that is not UTF-8; percent-encode its UTF-8") from None
    try:
        return check_namespace(text)
    except ValueError as error:
        raise _Fault(f"has a namespace that {error}") from None


def _socket_path(path: str) -> str:
    if "\0" in path or len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise _Fault(f"is too long or no path; a unix socket's path has at most {LONGEST_SOCKET_PATH} bytes")
    return path


def _split(place: str) -> tuple[str, str | None]:
    """Take `host:port` apart; the port is None if there is none."""
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        try:
            ipaddress.IPv6Address(host := unquote(host))
        except ValueError:
            raise _Fault("has no IPv6 address between its brackets; write it as in [::1]:6380") from None
        if not bracket or (port and not port.startswith(":")):
            raise _Fault("has something else than a port after its IPv6 address; write it as in [::1]:6380")
        return host, port[1:] if port else None
    host, colon, port = place.partition(":")
    if ":" in port:
        raise _Fault("has several colons; write an IPv6 address in brackets, as in [::1]:6380")
    if host != "*" and re.search(r"[^\w.-]", host):
        raise _Fault("has a character that no host name has; give a name or an IP address")
    return host, port if colon else None


def _port(text: str, *, lowest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not lowest <= int(text) <= 65535:
        raise _Fault(f"has no valid port; give a number from {lowest} to 65535")
    return int(text)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
