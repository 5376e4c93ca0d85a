"""What the settings and files say is to be warmed: `warm`, `warm_file`, `warm_state`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator

from proxy.client.wanted import Wish, wish
from proxy.events import fields
from proxy.resp.errors import SettingsError
from proxy.resp.hotlist import MOST_COMPLAINTS, Section, lines_of, load
from proxy.settings import Settings
from proxy.tier.rules import CACHEABLE, Rules
from proxy.upstream.address import shown

log = logging.getLogger("pannier.warming")

_LARGEST_FILE = 64 << 20
"""Bytes of warm_file at most."""


def wishes(settings: Settings, rules: Rules) -> list[tuple[str, Wish]]:
    """All that `warm` and `warm_file` want, and what to call each. Raises SettingsError."""
    found = [*_patterns(settings, rules), *_listed(settings, rules)]
    if found and settings.auth_mode == "tenants":
        raise SettingsError(
            "warm, warm_file: wrong beside tenants, as the keys would be nobody's; leave them out "
            "(warm_state covers the tenants' hot reads, and a tenant may say SIDECAR WARM)"
        )
    return found


def _patterns(settings: Settings, rules: Rules) -> Iterator[tuple[str, Wish]]:
    """What the setting `warm` wants, and what to call it: a pattern may name a key. Raises SettingsError."""
    plain = settings.key_privacy == "plain"
    for number, text in enumerate(settings.warm, 1):
        title = text if plain else f"no. {number} of warm"
        try:
            yield title, wish(text.encode(), rules)
        except ValueError as error:
            raise SettingsError(f"warm: {shown(text) if plain else title} {error}") from None


def _listed(settings: Settings, rules: Rules) -> Iterator[tuple[str, Wish]]:
    """What the lines of `warm_file` want. Raises SettingsError."""
    path = settings.warm_file
    if not path:
        return
    try:
        data = read_file(path, _LARGEST_FILE + 1)
    except OSError as error:
        raise SettingsError(
            f"warm_file: {path!r} cannot be read ({error.strerror}); give a file with a key or pattern a line"
        ) from None
    if len(data) > _LARGEST_FILE:
        raise SettingsError(f"warm_file: {path!r} is longer than {_LARGEST_FILE >> 20}mb; give a shorter one")
    for number, line in lines_of(data):
        try:
            yield f"warm_file {path}", wish(line, rules)
        except ValueError as error:
            plain = settings.key_privacy == "plain"
            text = shown(line.decode("utf-8", "backslashreplace")) if plain else "this"
            raise SettingsError(f"warm_file: {path}:{number}: {text} {error}") from None


def remembered(settings: Settings) -> list[Section]:
    """What `warm_state` holds; what is wrong with it is said in the log."""
    path, limit = settings.warm_state, settings.warm_state_size
    try:
        data = read_file(path, limit + 1)
    except OSError as error:
        about = fields("warm_state_unread", path=path, reason=error.strerror)
        log.warning("warm_state: %r cannot be read (%s); it is left out", path, error.strerror, extra=about)
        return []
    if len(data) > limit:
        data = data[: data.rfind(b"\n", 0, limit) + 1]
        about = fields("warm_state_cut", path=path, limit=limit)
        log.warning(
            "warm_state: %s: only the first %d bytes count (warm_state_size)", path, limit, extra=about
        )
    sections, wrong = load(data, lambda words: words[0].lower().decode("latin-1") in CACHEABLE)
    for number, what in wrong[:MOST_COMPLAINTS]:
        about = fields("warm_state_wrong", path=path, line=number, reason=what)
        log.warning("warm_state: %s:%d %s; left out", path, number, what, extra=about)
    if len(wrong) > MOST_COMPLAINTS:
        more = len(wrong) - MOST_COMPLAINTS
        about = fields("warm_state_wrong", path=path, more=more)
        log.warning("warm_state: %s: %d more lines are wrong", path, more, extra=about)
    return sections


def read_file(path: str, limit: int) -> bytes:
    """The first bytes of a plain file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        return file.read(limit)


def replace_file(path: str, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all. Raises OSError."""
    new = f"{path}.new-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
