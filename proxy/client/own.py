"""SIDECAR: the sidecar's own command, over any Redis client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, cast

from proxy.client import explaining, health, homes, keyspace, leases, warm, work
from proxy.resp import encode
from proxy.resp.globs import LONGEST_PATTERNS, compile_globs
from proxy.tier.matching import SLICE, drop_matching
from proxy.tier.rules import key_frame, marks
from proxy.upstream.link import LinkKey

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.client.spaces import Space
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Tier

_HELP = """\
SIDECAR <subcommand> [<arg> ...]. Subcommands are:
BYPASS (ON|OFF)
    Have Redis answer all reads of this connection, or let memory answer them again.
FLUSH
    Drop everything kept in memory, in a namespace what is kept of it. Redis is not touched.
INVALIDATE <key> [<key> ...]
    Drop what is kept in memory of these keys; replies with the number of entries dropped.
INVALIDATE MATCH <pattern> [<pattern> ...]
    The same for all keys that match one of these patterns.
DELETE MATCH <pattern> [<pattern> ...] [COUNT <n>]
    Delete the keys of this database that match, found with SCAN, n of them looked at a time (1000);
    replies with the number of keys deleted. Ends when the client leaves, or sends no more.
RULES
    Show the cache rules in force, in their order, and what was counted under each.
EXPLAIN <key>
    Show which rule holds for a key, what memory has of it and for how long, and its time to live in Redis.
LEASE <key> <ttl-ms> [WAIT <ms>] [STALE]
    Read a key; of all clients that miss it one is told to compute it, the others wait for the value.
    Replies with HIT and the value, LEASE and a token, STALE and an old value, or WAIT and nil.
UNLEASE <key> <token>
    Give a lease back; replies with 1, or 0 if it was not in force any more.
STATS
    Show what the memory tier holds and does.
HEALTH
    Show whether commands can be answered, what of Redis, and why not.
WARM MATCH <pattern> [<pattern> ...] [LIMIT <n>]
    Fetch the keys that match into memory; tells how many of how many are there now, and why others are not.
WARM KEYS <key> [<key> ...]
    The same for these keys.
WARM LINES <line> [<line> ...] [LIMIT <n>]
    The same for lines as in warm_file: "HGETALL user:*".
HELP
    Print this help.
"""


Answer = bytes | Coroutine[None, None, bytes]


def sidecar(session: Session, arguments: list[bytes]) -> Answer:
    """Answer SIDECAR."""
    if len(arguments) < 2:
        return encode.error("ERR wrong number of arguments for 'sidecar' command")
    word = arguments[1].decode("utf-8", "surrogateescape")
    found = _SUBCOMMANDS.get(word.lower())
    if found is None:
        return encode.error(f"ERR unknown subcommand '{word}'. Try SIDECAR HELP.")
    least, most, answer = found
    given = arguments[2:]
    if not least <= len(given) <= most:
        return encode.error(f"ERR wrong number of arguments for 'sidecar|{word.lower()}' command")
    return answer(session, given)


def _bypass(session: Session, arguments: list[bytes]) -> bytes:
    word = arguments[0].lower()
    if word not in (b"on", b"off"):
        return encode.error("ERR SIDECAR BYPASS takes ON or OFF")
    homes.set_bypass(session, word == b"on")
    return encode.OK


def _flush(session: Session, arguments: list[bytes]) -> bytes:
    tier, space = session.clients.tier, session.space
    if space.namespace is not None and space.account is not None:
        space.account.clear()
    elif tier is not None and not space.locked:
        if session.identity == session.clients.identity:
            tier.clear()
        else:
            for shelf in _of_identity(session, tier):
                shelf.clear()
    return encode.OK


def _of_identity(session: Session, tier: Tier) -> list[Shelf]:
    """The shelves of the user that a session is at Redis: who may not read a key is not to learn from how
    many entries go that others read it."""
    return [shelf for key, shelf in tier.shelves.items() if cast(LinkKey, key).identity == session.identity]


def _dropped(shelves: list[Shelf]) -> int:
    return sum([shelf.reads_dropped for shelf in shelves])


def _invalidate(session: Session, arguments: list[bytes]) -> Answer:
    if len(arguments) > 1 and arguments[0].upper() == b"MATCH":
        session.work = work.Work("sidecar|invalidate", ends=False)
        return work.going_on(session, _invalidate_matching(session, session.work, arguments[1:]))
    namespace = session.space.namespace
    keys = arguments if namespace is None else [namespace.prefix + key for key in arguments]
    if len(keys) > SLICE:
        return work.going_on(session, _invalidate_many(session, keys))
    return encode.integer(_invalidate_some(session, keys))


def _invalidate_some(session: Session, keys: list[bytes]) -> int:
    """Drop what is kept of some keys, here and at the peers; how much that was here."""
    tier = session.clients.tier
    session.clients.tell(session, "command", keys)
    if tier is None:
        return 0
    shelves = _of_identity(session, tier)
    before = _dropped(shelves)
    tier.drop(marks(map(key_frame, keys)), session.space.prefix)
    return _dropped(shelves) - before


async def _invalidate_many(session: Session, keys: list[bytes]) -> bytes:
    """The same, a slice at a time, so that hits go on in between."""
    dropped = 0
    for start in range(0, len(keys), SLICE):
        dropped += _invalidate_some(session, keys[start : start + SLICE])
        await asyncio.sleep(0)
    return encode.integer(dropped)


async def _invalidate_matching(session: Session, shown: work.Work, patterns: list[bytes]) -> bytes:
    tier, space = session.clients.tier, session.space
    if sum(map(len, patterns)) > LONGEST_PATTERNS:
        return encode.error(
            f"ERR SIDECAR INVALIDATE MATCH takes patterns of {LONGEST_PATTERNS} bytes together"
        )
    session.clients.tell(session, "command", patterns=patterns)
    dropped = looked_at = 0
    if tier is None:
        return encode.integer(dropped)
    shelves = _of_identity(session, tier)
    size = sum([shelf.entries for shelf in shelves])
    shown.figures = lambda: {"dropped": dropped, "looked_at": min(looked_at, size), "of": size}
    slices = drop_matching(tier, compile_globs(_real(space, patterns)), space.prefix)
    while True:
        before = _dropped(shelves)
        if next(slices, None) is None:
            return encode.integer(dropped)
        dropped += _dropped(shelves) - before
        looked_at += SLICE
        await asyncio.sleep(0)


async def _delete(session: Session, arguments: list[bytes]) -> bytes:
    how, *patterns = arguments
    page = b"1000"
    if len(patterns) > 2 and patterns[-2].upper() == b"COUNT":
        *patterns, _, page = patterns
    if how.upper() != b"MATCH" or patterns[-1].upper() == b"COUNT" or b"LIMIT" in patterns[1:]:
        # Nobody wants keys of these names deleted who has mistaken the options.
        return encode.error("ERR SIDECAR DELETE takes MATCH <pattern> [<pattern> ...] [COUNT <n>]")
    if not page.isdigit() or not 0 < int(page[:10]) <= _MOST_LOOKED_AT:
        return encode.error(f"ERR SIDECAR DELETE takes COUNT <n> of 1 to {_MOST_LOOKED_AT}")
    if sum(map(len, patterns)) > LONGEST_PATTERNS:
        return encode.error(f"ERR SIDECAR DELETE MATCH takes patterns of {LONGEST_PATTERNS} bytes together")
    deletion = keyspace.Deletion(session.home, int(page))
    if session.work is not None:
        session.work.figures = deletion.figures
    try:
        await deletion.measure(len(patterns))
        for pattern in _real(session.space, patterns):
            await deletion.sweep(session, pattern)
        return encode.integer(deletion.deleted)
    finally:
        session.clients.tell(session, "command", patterns=patterns)


def _real(space: Space, patterns: list[bytes]) -> list[bytes]:
    """Patterns of keys as Redis knows them."""
    namespace = space.namespace
    return patterns if namespace is None else [namespace.pattern + pattern for pattern in patterns]


def _stats(session: Session, arguments: list[bytes]) -> bytes:
    return encode.value(session.clients.stats(session.space), session.protocol)


def _health(session: Session, arguments: list[bytes]) -> bytes:
    return encode.value(health.judge(session.clients, session.space).fields(), session.protocol)


def _help(session: Session, arguments: list[bytes]) -> bytes:
    return encode.array(b"+%b\r\n" % line.encode() for line in _HELP.splitlines())


_MANY = 1 << 31
_MOST_LOOKED_AT = 10_000
"""Keys that Redis may look at without a pause: some milliseconds."""
_SUBCOMMANDS: dict[str, tuple[int, int, Callable[[Session, list[bytes]], Answer]]] = {
    "bypass": (1, 1, _bypass),
    "delete": (2, _MANY, work.lasting("sidecar|delete", _delete)),
    "explain": (1, 1, explaining.explain),
    "flush": (0, 0, _flush),
    "health": (0, 0, _health),
    "help": (0, 0, _help),
    "invalidate": (1, _MANY, _invalidate),
    "rules": (0, 0, explaining.rules),
    "lease": (2, 5, leases.lease),
    "stats": (0, 0, _stats),
    "unlease": (2, 2, leases.unlease),
    "warm": (2, _MANY, work.lasting("sidecar|warm", warm.answer)),
}
"""The least and the greatest number of arguments, and what answers."""
