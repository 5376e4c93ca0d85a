"""What a user may do at Redis, found out by doing it to keys that nobody has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from proxy.preflight.steps import Steps, refusal
from proxy.preflight.talk import Talk
from proxy.settings import Settings


@dataclass(frozen=True, slots=True)
class Seat:
    """Whose keys are looked at: those of everybody, of a listener's namespace, of a tenant."""

    title: str
    """What its steps begin with; empty, or as in `acme: `."""
    name: str
    """Of the namespace; empty: none."""
    prefix: bytes
    pattern: bytes
    """What matches the keys of the seat."""
    space: str
    """What `client.spaces` calls it."""
    walled: bool = False
    """Whether it has a user at Redis to itself, who is to see nothing but what begins with the prefix."""

    def key(self) -> bytes:
        """One that nobody has, in its namespace."""
        return self.prefix + _unused()


@dataclass(frozen=True, slots=True)
class _Right:
    name: str
    request: tuple[bytes | str | int, ...]
    why: str
    """What does not work without it."""
    needed: bool = False
    """Whether Pannier is of no use without it."""


async def try_rights(steps: Steps, talk: Talk, seat: Seat, settings: Settings) -> None:
    """Try what Pannier says by itself for the clients of a seat. Raises UpstreamLost."""
    granted, barred = [], ""
    for right in _rights(seat, settings):
        why = refusal(await talk.ask(*right.request))
        if _about_keys(why):  # Redis looks at the command first
            why, barred = "", why
        if not why or why.startswith("READONLY"):  # a replica, which has been said
            granted.append(right.name)
            continue
        say = steps.fails if right.needed else steps.warns
        cure = remedy(why, talk.user, right.name, seat.prefix)
        say(f"{seat.title}{right.name}", f"{why}; {right.why}", cure)
    if granted:
        steps.passes(f"{seat.title}rights", ", ".join(granted))
    if barred:
        cure = remedy(barred, talk.user, "", seat.prefix)
        if seat.name:
            steps.fails(f"{seat.title}keys", f"{barred}; so nobody may use keys of the namespace", cure)
        else:
            steps.warns("keys", f"{barred}: those for trying things, and for measuring the lag", cure)
    if seat.walled and "GET" in granted:
        await _try_wall(steps, talk, seat)


def _rights(seat: Seat, settings: Settings) -> list[_Right]:
    key = seat.key()
    keeps = settings.mode != "off" and (settings.tracking != "off" or settings.broadcast == "writes")
    warms = bool(settings.warm or settings.warm_file)
    rights = [
        _Right("GET", ("GET", key), "so no string can be read"),
        _Right("PTTL", ("PTTL", key), "so nothing is kept in memory", keeps),
        _Right(
            "SCAN", ("SCAN", 0, "MATCH", seat.pattern, "COUNT", 1),
            "so SIDECAR DELETE MATCH, warming by patterns, and a namespace's FLUSHDB and DBSIZE are refused",
            warms,
        ),
        _Right("UNLINK", ("UNLINK", key), "so SIDECAR DELETE, and FLUSHDB in a namespace, are refused"),
        _Right("WATCH", ("WATCH", key), "so SIDECAR UNLEASE, and optimistic transactions, are refused"),
        _Right("UNWATCH", ("UNWATCH",), "so connections after WATCH are not used again"),
    ]  # fmt: skip
    if warms:
        rights.append(_Right("TYPE", ("TYPE", key), "so no keys and patterns of warm are fetched", True))
    return rights


def remedy(why: str, user: str, command: str, prefix: bytes = b"", channel: str = "") -> str:
    """What to do about a refusal."""
    if why.startswith("NOPERM"):
        text = why.lower()
        if "channel" in text:
            return f"ACL SETUSER {user} '&{channel}*'"
        if _about_keys(why):
            return f"ACL SETUSER {user} '~{(prefix or b'pannier:').decode('utf-8', 'replace')}*'"
        return f"ACL SETUSER {user} +{command.lower()}"
    if why.startswith("READONLY"):
        return "give the master's address in upstream"
    if "unknown" in why.lower():
        return f"have the server know {command} (redis.conf: rename-command), or use a newer one"
    return f"this is Redis' own answer to {command}: mend what it says"


def _about_keys(why: str) -> bool:
    """Whether a command is granted, but not for this key."""
    return why.startswith("NOPERM") and "access" in why and "key" in why


async def _try_wall(steps: Steps, talk: Talk, seat: Seat) -> None:
    """Find out whether the user sees keys of others."""
    wanted = seat.prefix.decode("utf-8", "replace")
    if refusal(await talk.ask("GET", _unused())).startswith("NOPERM"):
        steps.passes(f"{seat.title}wall", f"Redis lets user {talk.user} read nothing outside {wanted}*")
    else:
        steps.warns(
            f"{seat.title}wall", f"user {talk.user} may read keys outside {wanted}*, as a script could",
            f"ACL SETUSER {talk.user} resetkeys '~{wanted}*'",
        )  # fmt: skip


def _unused() -> bytes:
    return b"pannier:preflight:" + os.urandom(8).hex().encode()
