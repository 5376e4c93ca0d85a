"""The administration: which paths there are, who may ask for them, and where they are served.

A route is a method, a path and what answers it; `Admin.add` is all it takes to have one more. GET answers
HEAD as well. What is asked for with POST changes something: it wants the token if there is one, is not served
at all where anybody could ask (`admin_changes`), and never to a web page of somebody else's: browsers send
what such pages make them send, to 127.0.0.1 too, and say so in `Origin`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from proxy.certificates import Certificates, of_settings
from proxy.events import fields
from proxy.handshakes import Handshakes
from proxy.listening import NONE_PASSED, Passed, Tls
from proxy.observe.answers import Answer, Refused
from proxy.observe.http import USUAL, Limits, Request, Server
from proxy.resp.errors import StartupError
from proxy.settings import Settings
from proxy.upstream.address import Listen

log = logging.getLogger("pannier.admin")

Respond = Callable[[Request], Answer | Awaitable[Answer]]
OPEN = frozenset({"/", "/healthz", "/readyz"})
"""What is served without a token always: whoever restarts or balances does not have it, and the page holds no
figures but asks for them, with the token that its reader has given it."""
_OPTION = "--admin-listen"


class Admin:
    """Serves the routes that are added to it. Making one reads the certificate; raises SettingsError."""

    def __init__(self, settings: Settings, limits: Limits = USUAL) -> None:
        self._limits = limits
        self.addresses: list[str] = []
        """Where it is served, with the port the system chose."""
        self.trouble = ""
        """Why it is not served although it was to be; empty if it is."""
        self._settings = settings
        self._routes: dict[str, dict[str, Respond]] = {}
        self.certificates = _certificates(settings)
        """What HTTPS is served with; None: HTTP is."""
        self._token = hashlib.sha256(settings.token.encode()).digest() if settings.token else b""
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where to look, for a person; empty while it is not served."""
        scheme = "https" if self.certificates is not None else "http"
        found = [place if "://" in place else f"{scheme}://{place}/" for place in self.addresses]
        return ", ".join(found)

    def add(self, method: str, path: str, respond: Respond) -> None:
        """Have requests of a method for a path answered by a function."""
        self._routes.setdefault(path, {})[method] = respond

    async def start(self, passed: Passed = NONE_PASSED) -> None:
        """Serve, with one of the sockets passed if it is at the address.

        Raises StartupError if the address cannot be had, unless it is only the default one.
        """
        settings = self._settings
        listen = settings.admin_listen
        if listen is None:
            return
        tls = None
        if self.certificates is not None:
            tls = Tls(self.certificates, Handshakes(lambda: self._limits.connections))
        server = Server(self.answer, listen, tls, _OPTION, passed, self._limits)
        try:
            self.addresses = await server.start()
        except StartupError as error:
            if settings.origins.get("admin_listen", "default") != "default":
                raise
            self.trouble = str(error).replace("; stop", ", so metrics and health are not served; stop")
            log.warning("%s", self.trouble, extra=fields("admin_unserved", reason=self.trouble))
            return
        self._server = server

    def close(self) -> None:
        """Serve nothing more."""
        if self._server is not None:
            self._server.close()

    async def answer(self, request: Request) -> Answer:
        """Answer one request. Raises Refused."""
        methods = self._routes.get(request.path)
        if methods is None:
            raise Refused(404, f"there is no such path; there are {', '.join(sorted(self._routes))}")
        respond = methods.get("GET" if request.method == "HEAD" else request.method)
        if respond is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise Refused(405, f"this path takes {allowed}", ("Allow", allowed))
        self._admit(request)
        answer = respond(request)
        return answer if isinstance(answer, Answer) else await answer

    # --- who may ask

    def _admit(self, request: Request) -> None:
        """Raise Refused if the request is not to be answered."""
        changes = request.method not in ("GET", "HEAD")
        if changes:
            self._judge_changes()
        _judge_origin(request, self._guards_host)
        everything = self._settings.admin_protect == "all" and request.path not in OPEN
        if self._token and (changes or everything) and not self._shows_token(request):
            raise Refused(
                401, "this takes the token (Authorization: Bearer …)", ("WWW-Authenticate", "Bearer")
            )

    def _judge_changes(self) -> None:
        allowed = self._settings.admin_changes
        if allowed == "off":
            raise Refused(403, "changes are switched off (admin_changes = off)")
        if allowed == "auto" and not self._token and not self._local:
            raise Refused(
                403,
                "changes are switched off, as others than this machine may reach this address and there is "
                "no token; set admin_token, or admin_changes = on",
            )

    @property
    def _local(self) -> bool:
        listen = self._settings.admin_listen
        return listen is not None and only_here(listen)

    @property
    def _guards_host(self) -> bool:
        """Whether the name in the address bar has to be one of this machine: where nothing else keeps a page
        out whose own name has come to mean 127.0.0.1 (DNS rebinding)."""
        listen = self._settings.admin_listen
        return not self._token and self._local and listen is not None and listen.path is None

    def _shows_token(self, request: Request) -> bool:
        scheme, _, token = request.fields.get("authorization", "").partition(" ")
        shown = hashlib.sha256(token.strip().encode("latin-1")).digest()
        return hmac.compare_digest(shown, self._token) and scheme.lower() == "bearer"


def only_here(listen: Listen) -> bool:
    """Whether only programs of this machine reach an address."""
    return listen.path is not None or (listen.host is not None and _is_loopback(listen.host))


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _judge_origin(request: Request, guards_host: bool) -> None:
    """Refuse what a browser sends on behalf of a page that is not from here."""
    host, origin = request.fields.get("host", ""), request.fields.get("origin")
    try:
        elsewhere = origin is not None and urlsplit(origin).netloc != host
        named = not _is_address(host)
    except ValueError:
        raise Refused(400, "the field Host or Origin is none") from None
    if elsewhere and request.method != "GET":
        raise Refused(403, "a page of another site asks for this")
    if guards_host and named:
        raise Refused(403, "the host of the URL is neither an address nor localhost; use one of these")


def _is_address(host: str) -> bool:
    """Whether the field Host names no name but localhost; it is missing in HTTP/1.0. Raises ValueError."""
    name = urlsplit(f"//{host}").hostname or "localhost"
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _certificates(settings: Settings) -> Certificates | None:
    """What HTTPS is served with; None: HTTP is. Raises SettingsError if a file cannot be used."""
    if not settings.admin_tls_cert or settings.admin_listen is None:
        return None
    return of_settings("admin_tls", settings.admin_tls_cert, settings.admin_tls_key)
