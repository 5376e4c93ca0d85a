"""SIDECAR: the sidecar's own command, over any Redis client."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, cast

from proxy.client import (
    advising,
    explaining,
    health,
    homes,
    hotkeys,
    journal,
    keyspace,
    leases,
    siblings,
    slowlog,
    warm,
    work,
)
from proxy.client.invalidating import Progress, drop_keys, drop_many, drop_patterns, real_patterns, too_long
from proxy.resp import encode
from proxy.resp.globs import LONGEST_PATTERNS
from proxy.tier.matching import SLICE
from proxy.tier.tier import Source
from proxy.upstream.link import LinkKey

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Tier

_HELP = """\
SIDECAR <subcommand> [<arg> ...]. Subcommands are:
BYPASS (ON|OFF)
    Have Redis answer all reads of this connection, or let memory answer them again.
FLUSH
    Drop everything kept in memory: in a namespace what is kept of it, as a user of Redis what is kept for
    that user. Redis is not touched.
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
SLOWLOG (GET [<n>]|LEN|RESET)
    Show the last <n> commands (10; -1: all) that took longer than slowlog_slower_than, how many are known, or
    forget them.
STATS
    Show what the memory tier holds and does.
HOTKEYS [<n>] [READS|BYTES]
    Show the keys read most lately (n of them, 10), or those of which most bytes are read.
BIGKEYS [<n>]
    Show the largest replies in memory.
ADVISE
    Show what memory of other sizes would answer, and what should be set otherwise, and why.
CHURN [<n>]
    Show keys that change more often than memory answers them.
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
    try:
        if siblings.alone(session):
            return answer(session, given)
        return siblings.spread(session, arguments[1:], lambda session, words: answer(session, words[1:]))
    except Exception:
        return failed(session)


def failed(session: Session) -> bytes:
    """The reply where the error that is being handled is one that nobody expected; it is logged.

    These commands only tell, drop or fetch: the connection is as it was.
    """
    journal.failed(session)
    return encode.error("ERR pannier: internal error; its log says more")


def _bypass(session: Session, arguments: list[bytes]) -> bytes:
    word = arguments[0].lower()
    if word not in (b"on", b"off"):
        return encode.error("ERR SIDECAR BYPASS takes ON or OFF")
    homes.set_bypass(session, word == b"on")
    return encode.OK


def _flush(session: Session, arguments: list[bytes]) -> bytes:
    tier, space = session.clients.tier, session.space
    if tier is None or space.locked:
        return encode.OK
    if session.identity != (space.identity or session.clients.identity):  # somebody whom Redis has let in
        for shelf in _of_identity(session, tier):
            if space.namespace is None or shelf.account is space.account:
                shelf.account.commanded += shelf.clear()
    elif space.namespace is not None and space.account is not None:
        space.account.commanded += space.account.clear()
    else:
        tier.clear(source=Source.COMMAND)
    return encode.OK


def _of_identity(session: Session, tier: Tier) -> list[Shelf]:
    """The shelves of the user that a session is at Redis: who may not read a key is not to learn from how
    many entries go that others read it."""
    return [shelf for key, shelf in tier.shelves.items() if cast(LinkKey, key).identity == session.identity]


def _invalidate(session: Session, arguments: list[bytes]) -> Answer:
    if arguments[0].upper() == b"MATCH":
        if len(arguments) == 1:  # hardly the key of this name; that one is had by MATCH MATCH
            return encode.error("ERR wrong number of arguments for 'sidecar|invalidate' command")
        session.work = work.Work("sidecar|invalidate", ends=False)
        return work.going_on(session, _invalidate_matching(session, session.work, arguments[1:]))
    clients, counted = session.clients, _counted(session)
    if len(arguments) > SLICE:
        return work.going_on(session, _invalidate_many(session, arguments))
    return encode.integer(drop_keys(clients, session.space, siblings.own_link(session), arguments, counted))


async def _invalidate_many(session: Session, keys: list[bytes]) -> bytes:
    """The same, a slice at a time, so that hits go on in between."""
    link = siblings.own_link(session)
    dropped = drop_many(session.clients, session.space, link, keys, _counted(session))
    return encode.integer(await dropped)


async def _invalidate_matching(session: Session, shown: work.Work, patterns: list[bytes]) -> bytes:
    if too_long(patterns):
        return encode.error(
            f"ERR SIDECAR INVALIDATE MATCH takes patterns of {LONGEST_PATTERNS} bytes together"
        )
    clients, counted, progress = session.clients, _counted(session), Progress()
    shown.figures = progress.figures
    link = siblings.own_link(session)
    done = drop_patterns(clients, session.space, link, patterns, counted, progress)
    return encode.integer(await done)


def _counted(session: Session) -> list[Shelf]:
    """The shelves of which a session may know how many entries go."""
    tier = session.clients.tier
    return _of_identity(session, tier) if tier is not None else []


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
    if too_long(patterns):
        return encode.error(f"ERR SIDECAR DELETE MATCH takes patterns of {LONGEST_PATTERNS} bytes together")
    deletion = keyspace.Deletion(session.home, int(page))
    if session.work is not None:
        session.work.figures = deletion.figures
    try:
        await deletion.measure(len(patterns))
        for pattern in real_patterns(session.space, patterns):
            await deletion.sweep(session, pattern)
        return encode.integer(deletion.deleted)
    finally:
        session.clients.tell(session, "command", patterns=patterns)


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
    "advise": (0, 0, advising.answer),
    "bigkeys": (0, 1, hotkeys.answer_big),
    "bypass": (1, 1, _bypass),
    "churn": (0, 1, hotkeys.answer_churn),
    "delete": (2, _MANY, work.lasting("sidecar|delete", _delete)),
    "explain": (1, 1, explaining.explain),
    "flush": (0, 0, _flush),
    "health": (0, 0, _health),
    "help": (0, 0, _help),
    "hotkeys": (0, 2, hotkeys.answer_hot),
    "invalidate": (1, _MANY, _invalidate),
    "rules": (0, 0, explaining.rules),
    "lease": (2, 5, leases.lease),
    "slowlog": (1, 2, slowlog.answer),
    "stats": (0, 0, _stats),
    "unlease": (2, 2, leases.unlease),
    "warm": (2, _MANY, work.lasting("sidecar|warm", warm.answer)),
}
"""The least and the greatest number of arguments, and what answers."""
