"""Authorities and certificates for the tests, as files: made with trustme, valid or not."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, each in a file of its own."""

    cert: Path
    key: Path


class Authority:
    """An authority, its certificate in `file`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.name = name
        self._ca = trustme.CA()
        self.file = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))
        self._count = 0

    def issue(
        self, *names: str, begins: timedelta | None = None, ends: timedelta | None = None, to: Issued | None = None
    ) -> Issued:
        """A certificate for some names, by default for 127.0.0.1 and localhost; `begins` and `ends`: from now."""
        now = datetime.now(UTC)
        made = self._ca.issue_cert(
            *(names or ("127.0.0.1", "localhost")),
            not_before=now + begins if begins is not None else None,
            not_after=now + ends if ends is not None else None,
        )
        if to is None:
            self._count += 1
            stem = self.directory / f"{self.name}-{self._count}"
            to = Issued(stem.with_suffix(".crt"), stem.with_suffix(".key"))
        for path, text in (
            (to.cert, b"".join(blob.bytes() for blob in made.cert_chain_pems)),
            (to.key, made.private_key_pem.bytes()),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(text)
            new.replace(path)
        return to

    def trusting(self, own: Issued | None = None) -> ssl.SSLContext:
        """What a client uses that trusts this authority, and shows a certificate of its own if it has one."""
        context = ssl.create_default_context(cafile=str(self.file))
        if own is not None:
            context.load_cert_chain(own.cert, own.key)
        return context
