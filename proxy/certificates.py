"""Certificates that Pannier shows: read at the start, and again when their files change.

`Certificates` holds what one TLS server shows and asks for. It makes a context of its files, and another one
when they are others; `context` is always the one for the next handshake. Connections that are there keep the
one they have begun with, and an authority that is gone from its file is gone from the next handshake on:
nothing is ever taken back from a context. Files that are wrong end the start; later they leave the old
certificate in force.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from proxy.events import fields
from proxy.resp.errors import SettingsError

log = logging.getLogger("pannier.certificates")

SOON = 7 * 86400.0
"""Seconds before a certificate's end from which the log warns, or a third of its life if that is less."""
_DAY = 86400.0
"""Seconds between two such warnings."""
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one TLS server, as the settings name them."""

    prefix: str
    """What the names of these settings begin with: `tls` or `admin_tls`."""
    cert: str
    key: str = ""
    """Empty: it is in the file of the certificate."""
    client_ca: str = ""
    """Who signs the clients' certificates; empty: clients need none."""
    min_version: str = "1.2"

    @property
    def paths(self) -> list[str]:
        """Those there are."""
        return [path for path in (self.cert, self.key, self.client_ca) if path]


class Certificates:
    """What one TLS server shows and asks for. Making one reads the files; raises SettingsError."""

    def __init__(self, files: Files) -> None:
        seen = stamps(files.paths)  # before they are read: a change meanwhile is one
        self.context: ssl.SSLContext = make_context(files)
        """For the next handshake."""
        self.trouble = ""
        """Why the files as they are now are not in force; empty if they are."""
        self.reloads = 0
        """How often other files have come into force."""
        self.begins, self.expires = validity(files.cert)
        """From when to when the certificate in force is valid (Unix time)."""
        self._files = files
        self._seen = self._last = seen
        self._warned = 0.0

    @property
    def status(self) -> str:
        """`in force`, or what is wrong with the files."""
        return self.trouble or "in force"

    def tend(self, asked: bool) -> None:
        """Look whether the files are others; read them in any case if somebody has `asked` by SIGHUP."""
        if asked:
            self.renew("SIGHUP")
        self.look(time.time())

    def look(self, now: float) -> None:
        """Take other files than before once they no longer change; warn of the certificate's end.

        Called every second or so. A certificate and its key are two files: between the two they do not fit.
        """
        seen = stamps(self._files.paths)
        if seen != self._seen and seen == self._last:
            self.renew("a file has changed")
        self._last = seen
        self.warn(now)

    def renew(self, why: str) -> None:
        """Read the files again."""
        self._seen = self._last = stamps(self._files.paths)
        try:
            context, span = make_context(self._files), validity(self._files.cert)
        except SettingsError as error:
            self.trouble = str(error)
            about = fields("certificate_broken", why=why, reason=self.trouble)
            log.error("%s, but the old certificate stays in force: %s", why, self.trouble, extra=about)
            return
        self.context, (self.begins, self.expires) = context, span
        self.trouble = ""
        self.reloads += 1
        self._warned = 0.0
        until = moment(self.expires)
        about = fields("certificate_renewed", why=why, path=self._files.cert, expires=until)
        log.info(
            "%s: %s is read again, valid until %s; new connections get it", why, self._files.cert, until,
            extra=about,
        )  # fmt: skip

    def warn(self, now: float) -> None:
        """Tell the log of a certificate that is no longer or not yet valid, or not for long; once a day."""
        path, name = self._files.cert, f"{self._files.prefix}_cert"
        trouble = out_of_time(name, path, (self.begins, self.expires), now)
        if not trouble or now - self._warned < _DAY:
            return
        self._warned = now
        about = fields("certificate_expires", path=path, expires=moment(self.expires), setting=name)
        log.warning("%s", trouble, extra=about)


class _Side(ssl.SSLObject):
    """Our side of a connection. Neither asyncio nor uvloop sends what it has to say when a handshake fails,
    the alert that tells the client why: the error takes it along.
    """

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            error.alert = self.outgoing.read()  # type: ignore[attr-defined]
            raise


class _Context(ssl.SSLContext):
    """Makes such sides."""

    sslobject_class = _Side

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *others: Any, **named: Any) -> _Side:
        """Make one."""
        made = super().wrap_bio(incoming, outgoing, *others, **named)
        assert isinstance(made, _Side)
        made.outgoing = outgoing
        return made


def make_context(files: Files) -> ssl.SSLContext:
    """The context to serve with. Raises SettingsError with what is wrong with which file."""
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[files.min_version]
    load_own(context, f"{files.prefix}_cert", files.cert, f"{files.prefix}_key", files.key)
    if files.client_ca:
        load_authorities(context, f"{files.prefix}_client_ca", files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_own(context: ssl.SSLContext, cert_name: str, cert: str, key_name: str, key: str) -> None:
    """Have a context show a certificate. Raises SettingsError: `cert_name` and `key_name` are how the
    settings call the files; an empty `key` means that it is in the file of the certificate.
    """
    if "-----BEGIN CERTIFICATE-----" not in _read(cert_name, cert):
        raise SettingsError(f"{cert_name}: {cert!r} holds no certificate; name a PEM file")
    key_text = _read(key_name, key) if key else _read(cert_name, cert)
    if "PRIVATE KEY-----" not in key_text:
        advice = "name a PEM file" if key else f"name the file of the key with {key_name}"
        raise SettingsError(f"{key_name if key else cert_name}: {key or cert!r} holds no key; {advice}")
    try:
        context.load_cert_chain(cert, key or None, password=_no_password)
    except _Encrypted:
        raise SettingsError(
            f"{key_name}: {key or cert!r} holds a key that is encrypted, and there is nobody to ask for its "
            "password; give one that is not (openssl pkey -in … -out …)"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(
                f"{key_name}: the key in {key or cert!r} is not that of the certificate in {cert!r}; "
                "give the two that belong together"
            ) from None
        raise SettingsError(
            f"{cert_name}: {cert!r} and its key are no usable PEM files ({reason_of(error)})"
        ) from None


def load_authorities(context: ssl.SSLContext, name: str, path: str) -> None:
    """Have a context trust the authorities of a file. Raises SettingsError; `name` is the setting's."""
    text = _read(name, path)
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        problem = f"holds no certificate of an authority ({reason_of(error)})"
        raise SettingsError(f"{name}: {path!r} {problem}; name a PEM file") from None


def reason_of(error: Exception) -> str:
    """What OpenSSL says, without the numbers of lines in its source."""
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error).partition(" (_ssl.c")[0]


def moment(seconds: float) -> str:
    """A moment as the log writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def stamps(paths: Iterable[str | None]) -> list[Stamp]:
    """What tells whether files are others than before; None or nothing among the paths: no file."""
    return [_stamp(path) for path in paths if path]


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _Encrypted(Exception):
    """A key wants a password."""


def _no_password() -> str:
    raise _Encrypted


def _read(name: str, path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise SettingsError(f"{name}: {path!r} cannot be read ({error.strerror}); name a PEM file") from None


# --- from when to when a certificate is valid: the ssl module tells it of certificates of others only


def validity(path: str) -> tuple[float, float]:
    """From when to when the first certificate of a PEM file is valid (Unix time). Raises SettingsError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = _read("certificate", path)
    try:
        first = text[text.index(begin) : text.index(end)] + end
        certificate = next(_parts(ssl.PEM_cert_to_DER_cert(first)))[1]
        # RFC 5280, 4.1: [version], serial number, algorithm, issuer, validity
        content = [part for part in _parts(next(_parts(certificate))[1]) if part[0] != _VERSION]
        start, stop = [_time(*part) for part in _parts(content[3][1])]
    except (ValueError, IndexError, StopIteration):
        raise SettingsError(f"certificate: {path!r} holds none that can be read; name a PEM file") from None
    return start, stop


def out_of_time(name: str, path: str, span: tuple[float, float], now: float) -> str:
    """That the certificate in a file is no longer or not yet valid, or not for long; else nothing.

    `name`: of the setting that names the file. `span`: from when to when it is valid.
    """
    begins, expires = span
    if now >= expires:
        state = f"has expired on {moment(expires)}"
    elif now < begins:
        state = f"is not valid before {moment(begins)}"
    elif now >= expires - min(SOON, (expires - begins) / 3):
        state = f"expires on {moment(expires)}"
    else:
        return ""
    return f"{name}: the certificate in {path} {state}; renew it"


_VERSION, _UTC_TIME = 0xA0, 0x17


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of a sequence in DER: tag and content."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size >= 0x80:
            digits = size & 0x7F
            size, at = int.from_bytes(der[at : at + digits], "big"), at + digits
        yield tag, der[at : at + size]
        at += size


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def of_settings(prefix: str, cert: str, key: str, client_ca: str = "", version: str = "1.2") -> Certificates:
    """Those that some settings name, with a warning if the certificate is not valid for long. Raises
    SettingsError."""
    made = Certificates(Files(prefix, cert, key, client_ca, version))
    made.warn(time.time())
    return made
