"""Tenants: who may come in when Pannier checks passwords itself, and what each of them gets.

A tenant is a name, a password and a namespace, with shares and limits of its own; it stands as a table
`[tenants.acme]` in the TOML file and nowhere else, for a flag would show its password to whoever lists the
processes. `read_tenants` makes `Tenant` objects of the tables; `proxy.settings.load` calls it and checks the
result against the other options (`check_shares`, `check_nesting`).

Passwords are hashed as they are read. Neither `repr` nor any error text shows one, nor a value that may
be one by mistake, such as the name of a file that does not exist.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from proxy.kinds import (
    MASKED,
    NAMESPACE,
    Kind,
    Wrong,
    count,
    did_you_mean,
    misfit,
    noting,
    show_size,
    size,
    toml_key,
    toml_text,
)
from proxy.resp.errors import SettingsError
from proxy.upstream.address import shown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant, as the session that logs in as it is given it. Made by `read_tenants`, or in tests."""

    name: str
    """What its clients give AUTH as the user's name."""
    passwords: tuple[bytes, ...] = field(repr=False)
    """SHA-256 digests, 32 bytes each; several while a password is being replaced."""
    namespace: str
    """Without its colon. Empty: none, the tenant sees every key."""
    max_memory: int | None = None
    """Bytes of the memory tier that are this tenant's own. None: it shares what nobody has reserved."""
    max_clients: int | None = None
    """Connections logged in at once. None: no limit but that of all."""
    max_ops_per_second: int | None = None
    """Commands per second, of all its connections together. None: no limit."""
    upstream_username: str | None = None
    """With `upstream_password`, whom Pannier logs in as at Redis for it. None: Redis' default user."""
    upstream_password: str | None = field(default=None, repr=False)
    """None: the credentials of the setting `upstream`."""

    def accepts(self, password: bytes) -> bool:
        """Whether this is one of its passwords; takes the same time whichever it is, and if it is none."""
        digest = hashlib.sha256(password).digest()
        # Not any(), which would stop at the first.
        return sum(hmac.compare_digest(digest, known) for known in self.passwords) > 0


LIMITS: Mapping[str, Kind[int]] = {
    "max_memory": size(64 << 10, 1 << 40),
    "max_clients": count(1, 1_000_000, "clients"),
    "max_ops_per_second": count(1, 1_000_000_000, "commands"),
}

KEYS: Mapping[str, tuple[str, str]] = {
    "password": (
        "a text, `#` and the 64 hexadecimal digits of its SHA-256, or a list of these",
        "What the tenant's clients give to AUTH. All of a list count, so that a password can be replaced "
        "without a break.",
    ),
    "password_file": ("a path", "File whose first line is the password."),
    "password_env": ("the name of a variable", "Environment variable that holds the password."),
    "namespace": (
        NAMESPACE.accepts,
        "Prefix, without its colon, under which the tenant's keys live in Redis. Default: the tenant's name. "
        "Empty: none, for an operator who is to see every key.",
    ),
    "max_memory": (
        LIMITS["max_memory"].accepts,
        "What is the tenant's own of the setting max_memory. Without it the tenant shares what nobody has "
        "reserved.",
    ),
    "max_clients": (LIMITS["max_clients"].accepts, "Connections the tenant may have at once."),
    "max_ops_per_second": (
        LIMITS["max_ops_per_second"].accepts,
        "Commands per second, of all its connections together.",
    ),
    "upstream_username": (
        "a text",
        "User that Pannier logs in as at Redis for this tenant, instead of the one in the setting upstream.",
    ),
    "upstream_password": ("a text", "That user's password; alone, the password of Redis' default user."),
    "upstream_password_file": ("a path", "File whose first line is that password."),
    "upstream_password_env": ("the name of a variable", "Environment variable that holds that password."),
}
"""The keys of a table, each with what it accepts and what it is for; docs/settings.md is made from them."""


def named_variables(table: object) -> set[str]:
    """The environment variables that the tables name, so that a PANNIER_ one among them is not unknown.

    Overlooks whatever is wrong with the tables: `read_tenants` is to complain.
    """
    tables = table.values() if isinstance(table, Mapping) else ()
    keys = ("password_env", "upstream_password_env")
    found = [fields.get(key) for fields in tables if isinstance(fields, Mapping) for key in keys]
    return {name for name in found if isinstance(name, str)}


def read_tenants(table: Any, written: str, env: Mapping[str, str], wrong: Wrong = None) -> tuple[Tenant, ...]:
    """Read the tables below `[tenants]`, in their order in the file.

    `written` is where they stand, such as `pannier.toml:tenants`. Raises SettingsError for what is wrong,
    with the place and, unless it may be a password, the value; or puts one for each tenant into `wrong`.
    """
    found: list[Tenant] = []
    with noting(wrong):
        for name, fields in _tables(table, written).items():
            with noting(wrong):
                found.append(_read_tenant(name, fields, written, env))
    return tuple(found)


def _tables(table: Any, written: str) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise misfit(written, table, "a table per tenant, such as [tenants.acme]")
    if not table:
        # Without tenants no password is asked for: not what somebody means who has begun to write them.
        raise SettingsError(
            f"{written}: no tenant stands in it; add tables such as [tenants.acme], or take it out of the "
            "file: then Pannier asks for no passwords itself"
        )
    return table


def _read_tenant(name: str, table: Any, written: str, env: Mapping[str, str]) -> Tenant:
    if not re.fullmatch(r"[!-~]{1,64}", name):
        raise SettingsError(
            f"{written}: {shown(name)} is no name for a tenant; "
            "give 1 to 64 printable ASCII characters without white space"
        )
    written = f"{written}.{toml_key(name)}"
    if not isinstance(table, Mapping):
        raise misfit(written, table, f"a table, such as [tenants.{toml_key(name)}]")
    for key in table:
        if key not in KEYS:
            advice = did_you_mean(key, KEYS, otherwise=f"known are {', '.join(KEYS)}")
            raise SettingsError(f"{written}.{toml_key(key)}: no such key; {advice}")
    passwords = _passwords(table, written, env)
    namespace = _read(f"{written}.namespace", NAMESPACE, table.get("namespace", name))
    memory, clients, rate = (
        _read(f"{written}.{key}", kind, table[key]) if key in table else None for key, kind in LIMITS.items()
    )
    return Tenant(name, passwords, namespace, memory, clients, rate, *_credentials(table, written, env))


def _read(written: str, kind: Kind[T], value: object) -> T:
    text = toml_text(written, value)
    try:
        return kind.parse(text)
    except ValueError as error:
        raise SettingsError(f"{written}: {error}") from None


# --- passwords


def _passwords(table: Mapping[str, Any], written: str, env: Mapping[str, str]) -> tuple[bytes, ...]:
    key = _one_of(table, written, "password")
    if key is None:
        raise SettingsError(f"{written}: no password; {_exactly_one('password')}")
    written, value = f"{written}.{key}", table[key]
    if key == "password" and isinstance(value, list):
        if not value:
            raise SettingsError(f"{written}: the list is empty; give at least one password")
        places = [f"{written}[{index}]" for index in range(len(value))]
        return tuple(_digest(at, _secret(at, text)) for at, text in zip(places, value, strict=True))
    if key == "password" and not isinstance(value, str):
        raise misfit(written, value, "a text or a list of texts")
    return (_digest(written, _find_secret(key, value, written, env)),)


def _credentials(
    table: Mapping[str, Any], written: str, env: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The user's name and password for Redis; the name may be missing beside a password, not alone."""
    key = _one_of(table, written, "upstream_password")
    password = key and _find_secret(key, table[key], f"{written}.{key}", env)
    if "upstream_username" not in table:
        return None, password
    name, written = table["upstream_username"], f"{written}.upstream_username"
    if not isinstance(name, str):
        raise misfit(written, name, "a text")
    if not name or not name.isprintable() or re.search(r"\s", name):
        raise SettingsError(f"{written}: {shown(name)} is no user's name; give one without white space")
    if password is None:
        raise SettingsError(f"{written}: {shown(name)} has no password; {_exactly_one('upstream_password')}")
    return name, password


def _one_of(table: Mapping[str, Any], written: str, stem: str) -> str | None:
    """Which of a password's three keys is given; None: none of them."""
    given = [key for key in _spellings(stem) if key in table]
    if len(given) > 1:
        raise SettingsError(f"{written}: {' and '.join(given)} are given; {_exactly_one(stem)}")
    return given[0] if given else None


def _spellings(stem: str) -> tuple[str, ...]:
    return stem, f"{stem}_file", f"{stem}_env"


def _exactly_one(stem: str) -> str:
    return f"give exactly one of {', '.join(_spellings(stem))}"


def read_secret(key: str, value: str, written: str, env: Mapping[str, str]) -> str:
    """The secret that a setting gives: `key` ends in `_file`, `_env` or neither of them, as a tenant's
    password does. Raises SettingsError."""
    return _find_secret(key, value, written, env)


def _find_secret(key: str, value: object, written: str, env: Mapping[str, str]) -> str:
    """The password that a key gives or leads to. What leads nowhere is not quoted: it may be the password."""
    if not isinstance(value, str):
        raise misfit(written, value, "a text")
    if key.endswith("_env"):
        if value not in env:
            raise SettingsError(f"{written}: the variable is not set; give the name of one that is")
        return _secret(written, env[value])
    if key.endswith("_file"):
        return _secret(written, _first_line(written, value))
    return _secret(written, value)


def _first_line(written: str, path: str) -> str:
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise SettingsError(
            f"{written}: the file cannot be read ({error.strerror}); give one that can"
        ) from None
    except ValueError:
        # A file that is no UTF-8, or a path with a zero byte.
        raise SettingsError(f"{written}: the file holds no text; give one whose first line is it") from None
    return text.partition("\n")[0].removesuffix("\r")


def _secret(written: str, value: object) -> str:
    if not isinstance(value, str):
        raise misfit(written, value, "a text")
    if not value:
        raise SettingsError(f"{written}: the password is empty; give one that is not")
    if value == MASKED:
        # What `pannier config` prints can be read back; without this everybody would then know the password.
        raise SettingsError(f"{written}: {MASKED} stands for a password not shown; give the password itself")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise SettingsError(f"{written}: the password is not UTF-8; give one that is")
    return value


def _digest(written: str, password: str) -> bytes:
    if not password.startswith("#"):
        return hashlib.sha256(password.encode()).digest()
    if not re.fullmatch(r"#[0-9A-Fa-f]{64}", password):
        raise SettingsError(
            f"{written}: what begins with # is a SHA-256, but this has not 64 hexadecimal digits; "
            "give these, also for a password that begins with # itself"
        )
    return bytes.fromhex(password[1:])


# --- beside the other options


def check_shares(
    tenants: Iterable[Tenant], written: str, max_memory: int, least: int, why: str = ""
) -> None:
    """The tenants' own shares of the memory tier must leave `least` bytes to all others, or SettingsError.

    `why` is added to max_memory, if that is not what was asked for.
    """
    shares = sum(tenant.max_memory or 0 for tenant in tenants)
    if shares + least > max_memory:
        raise SettingsError(
            f"{written}: the tenants' max_memory comes to {show_size(shares)}; lower it or raise the setting "
            f"max_memory ({show_size(max_memory)}{why}), of which {show_size(least)} must be left for the "
            "others"
        )


def check_nesting(used: Sequence[tuple[str, str]]) -> None:
    """No namespace may lie within another, for its keys could be seen and written from there.

    `used` has pairs of where a namespace is given and the namespace. The same one twice is fine: that is how
    to share. Raises SettingsError.
    """
    for written, inner in used:
        for other, outer in used:
            if outer and inner.startswith(outer + ":"):
                raise SettingsError(
                    f"{written}: {shown(inner)} lies within {shown(outer)} ({other}), where its keys would "
                    "be visible; give namespaces none of which begins with another and a colon"
                )
