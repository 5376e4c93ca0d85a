"""`pannier health`: whether a running Pannier is well, as its administration says; for HEALTHCHECK.

It finds the address as the server did: --admin-listen, PANNIER_ADMIN_LISTEN, the file of the settings. It
reads no more of these than it needs: a file that was broken after the start does not make a sidecar look ill
that serves well. It takes 60 ms of processor time, nearly all of it the start of Python.

Exit status: 0 if it is well, 1 if not or if nobody answers. (Docker keeps 2 for itself.)
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from proxy.kinds import duration
from proxy.resp.errors import SettingsError
from proxy.settings import read_option
from proxy.upstream.address import Listen

_LONGEST_ANSWER = 1 << 16
_EVERYWHERE = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to ask who listens on every interface."""


def main(argv: Sequence[str]) -> int:
    """Ask once, say in one line what was answered; the exit status."""
    arguments = _parser().parse_args(argv[1:])
    try:
        listen, tls = _place(arguments)
        well, said = ask(listen, "/readyz" if arguments.ready else "/healthz", tls, arguments.timeout)
    except (SettingsError, OSError) as error:
        well, said = False, str(error)
    print(f"pannier: {said}", file=sys.stdout if well else sys.stderr)
    return 0 if well else 1


def ask(listen: Listen, path: str, tls: bool, timeout: float) -> tuple[bool, str]:
    """Whether the answer is 200, and what it says. Raises OSError if none comes; `timeout` is in seconds."""
    where = f"{listen} {path}"
    try:
        with closing(_connected(listen, tls, timeout)) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while len(answer) < _LONGEST_ANSWER and (data := sock.recv(_LONGEST_ANSWER)):
                answer += data
    except OSError as error:
        raise OSError(f"{where}: {error.strerror or error}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[:12].partition(b" ")[2]
    if not head.startswith(b"HTTP/1.") or not status.isdigit():
        raise OSError(f"{where}: who answers there does not speak HTTP")
    return status == b"200", f"{where}: {int(status)} {_reasons(body)}".rstrip()


def _place(arguments: argparse.Namespace) -> tuple[Listen, bool]:
    """The administration's address, and whether it takes TLS. Raises SettingsError."""
    flags = {} if arguments.admin_listen is None else {"admin_listen": arguments.admin_listen}
    listen: Listen | None = read_option("admin_listen", flags, os.environ, arguments.config)
    if listen is None:
        raise SettingsError("admin_listen is off, so there is nobody to ask; give it an address")
    if listen.path is None and listen.port == 0:
        raise SettingsError("admin_listen has port 0, which the system chose; give it a port")
    try:
        return listen, bool(read_option("admin_tls_cert", {}, os.environ, arguments.config))
    except SettingsError:  # about the file, which was a good one when the server read it
        return listen, False


def _connected(listen: Listen, tls: bool, timeout: float) -> socket.socket:
    if listen.path is not None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(listen.path)
    else:
        sock = socket.create_connection((_EVERYWHERE.get(listen.host, listen.host), listen.port), timeout)
    if not tls:
        return sock
    import ssl

    # Its certificate is for the names others know it by, and this is not to depend on who vouches for it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)


def _reasons(body: bytes) -> str:
    """Why it is not ready, if the answer says so."""
    try:
        told: Any = json.loads(body)
        return "; ".join(map(str, told.get("reasons", ()))) if isinstance(told, dict) else ""
    except ValueError:
        return ""


def _seconds(text: str) -> float:
    try:
        return duration(0.1, 60).parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pannier health",
        description="Ask the administration of a running Pannier whether it is well. Exit status: 0 if it "
        "is, 1 if not or if nobody answers.",
        allow_abbrev=False,
    )
    parser.add_argument("--ready", action="store_true", help="ask /readyz: whether commands can be answered")
    parser.add_argument("--admin-listen", metavar="ADDRESS", help="where; otherwise as the setting says")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    parser.add_argument(
        "--timeout", type=_seconds, default="2s", metavar="TIME", help="how long to wait (default: 2s)"
    )
    return parser
