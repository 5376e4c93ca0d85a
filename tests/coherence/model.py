"""What Redis holds and what each read of it must answer: enough of Redis to judge any reply by itself.

A value is `bytes`, `None` (absent) or one of the five types below; values never change, a write makes new
ones. A `Read` knows its command, its keys, how to bring a RESP2 or RESP3 reply into one form, and what that
form must be for given values. Wrong types are answered too: a cached WRONGTYPE has to go away like any value.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis


class Hash(dict[bytes, bytes]):
    pass


class List(tuple[bytes, ...]):
    pass


class Set(frozenset[bytes]):
    pass


class ZSet(dict[bytes, float]):
    def ranked(self) -> list[tuple[bytes, float]]:
        return sorted(self.items(), key=lambda item: (item[1], item[0]))


class Stream(tuple[tuple[bytes, bytes], ...]):
    """Entries (id, value of their one field)."""


Value = bytes | Hash | List | Set | ZSet | Stream | None
TYPES: dict[type, bytes] = {
    bytes: b"string", Hash: b"hash", List: b"list", Set: b"set", ZSet: b"zset", Stream: b"stream", type(None): b"none",
}  # fmt: skip
WRONG = "WRONGTYPE"


class Either:
    """An expectation that several replies meet: where versions of Redis differ."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        return other in self.parts

    __hash__ = None  # type: ignore[assignment]


class Read(NamedTuple):
    """One read command."""

    command: tuple[bytes, ...]
    keys: tuple[bytes, ...]
    evaluate: Callable[..., Any]
    """From the keys' values to the reply's form."""
    form: Callable[[Any], Any]

    def parse(self, reply: Any) -> Any:
        """The form of a reply as hiredis gave it, RESP2 or RESP3."""
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            return WRONG if WRONG in text else text  # a script wraps it
        try:
            return self.form(reply)
        except (TypeError, ValueError):
            return f"unreadable: {reply!r}"


def _same(reply: Any) -> Any:
    return reply


def _number(reply: Any) -> Any:
    return None if reply is None else float(reply)


def _pairs(reply: Any) -> Any:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _scores(reply: Any) -> Any:
    flat = reply if not reply or not isinstance(reply[0], list) else [part for pair in reply for part in pair]
    return [(member, float(score)) for member, score in zip(flat[::2], flat[1::2], strict=True)]


def _entries(reply: Any) -> Any:
    return [(identity, fields[1]) for identity, fields in reply]


GET_SCRIPT = b"return redis.call('get', KEYS[1])"
# Verb and arguments after the key; reply for an absent key; reply for a present one; form of the reply.
_Row = tuple[tuple[bytes, ...], Any, Callable[[Any], Any], Callable[[Any], Any]]
OF_TYPE: dict[type, list[_Row]] = {
    bytes: [
        ((b"GET",), None, _same, _same),
        ((b"GET",), None, _same, _same),
        ((b"STRLEN",), 0, len, _same),
        ((b"GETRANGE", b"0", b"5"), b"", lambda s: s[:6], _same),
        ((b"GETRANGE", b"-3", b"-1"), b"", lambda s: s[-3:], _same),
        ((b"BITCOUNT",), 0, lambda s: sum(byte.bit_count() for byte in s), _same),
        ((b"GETBIT", b"15"), 0, lambda s: s[1] & 1 if len(s) > 1 else 0, _same),
    ],
    Hash: [
        ((b"HGET", b"f0"), None, lambda h: h.get(b"f0"), _same),
        ((b"HGET", b"n"), None, lambda h: h.get(b"n"), _same),
        ((b"HGETALL",), {}, dict, _pairs),
        ((b"HMGET", b"f0", b"f1", b"n"), [None] * 3, lambda h: [h.get(b"f0"), h.get(b"f1"), h.get(b"n")], _same),
        ((b"HLEN",), 0, len, _same),
        ((b"HEXISTS", b"f1"), 0, lambda h: int(b"f1" in h), _same),
        ((b"HKEYS",), set(), set, set),
        ((b"HVALS",), [], lambda h: sorted(h.values()), sorted),
        ((b"HSTRLEN", b"f0"), 0, lambda h: len(h.get(b"f0", b"")), _same),
    ],
    List: [
        ((b"LRANGE", b"0", b"-1"), [], list, _same),
        ((b"LRANGE", b"0", b"1"), [], lambda items: list(items[:2]), _same),
        ((b"LLEN",), 0, len, _same),
        ((b"LINDEX", b"0"), None, lambda items: items[0], _same),
        ((b"LINDEX", b"-1"), None, lambda items: items[-1], _same),
    ],
    Set: [
        ((b"SMEMBERS",), set(), set, set),
        ((b"SCARD",), 0, len, _same),
        ((b"SISMEMBER", b"m0"), 0, lambda s: int(b"m0" in s), _same),
        ((b"SMISMEMBER", b"m0", b"m1"), [0, 0], lambda s: [int(b"m0" in s), int(b"m1" in s)], _same),
    ],
    ZSet: [
        ((b"ZRANGE", b"0", b"-1"), [], lambda z: [member for member, _ in z.ranked()], _same),
        ((b"ZRANGE", b"0", b"-1", b"WITHSCORES"), [], ZSet.ranked, _scores),
        ((b"ZRANGEBYSCORE", b"-inf", b"+inf", b"WITHSCORES"), [], ZSet.ranked, _scores),
        ((b"ZREVRANGE", b"0", b"0"), [], lambda z: [z.ranked()[-1][0]], _same),
        ((b"ZSCORE", b"m0"), None, lambda z: z.get(b"m0"), _number),
        ((b"ZMSCORE", b"m0", b"m1"), [None, None], lambda z: [z.get(b"m0"), z.get(b"m1")], lambda r: [_number(s) for s in r]),
        ((b"ZCARD",), 0, len, _same),
        ((b"ZRANK", b"m0"), None, lambda z: [m for m, _ in z.ranked()].index(b"m0") if b"m0" in z else None, _same),
    ],
    Stream: [
        ((b"XRANGE", b"-", b"+"), [], list, _entries),
        ((b"XREVRANGE", b"+", b"-", b"COUNT", b"1"), [], lambda s: [s[-1]] if s else [], _entries),
        ((b"XLEN",), 0, len, _same),
    ],
}  # fmt: skip
OF_ANY: list[_Row] = [
    ((b"TYPE",), b"none", lambda value: TYPES[type(value)], _same),
    ((b"EXISTS",), 0, lambda value: 1, _same),
]


def one_key(row: _Row, kind: type | None, key: bytes) -> Read:
    """A read of one key: `kind` is the type it wants, None where every type will do."""
    (verb, *rest), absent, present, form = row

    def evaluate(value: Value) -> Any:
        if value is None:
            return absent
        return WRONG if kind is not None and type(value) is not kind else present(value)

    return Read((verb, key, *rest), (key,), evaluate, form)


def script_get(key: bytes) -> Read:
    """GET by a script, which no cache answers: it shows the present, and what follows must not be older."""
    return Read((b"EVAL", GET_SCRIPT, b"1", key), (key,), lambda v: v if v is None or type(v) is bytes else WRONG, _same)


def mget(keys: Sequence[bytes]) -> Read:
    return Read((b"MGET", *keys), tuple(keys), lambda *values: [v if type(v) is bytes else None for v in values], _same)


def exists(keys: Sequence[bytes]) -> Read:
    return Read((b"EXISTS", *keys), tuple(keys), lambda *values: sum(v is not None for v in values), _same)


def _algebra(operation: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate(*values: Value) -> Any:
        wrong = any(value is not None and type(value) is not Set for value in values)
        if operation is frozenset.intersection and None in values:
            return Either(set(), WRONG) if wrong else set()  # 6.2 stops at the first key that is absent
        return WRONG if wrong else set(operation(*(frozenset(value or ()) for value in values)))

    return evaluate


SET_READS = {
    b"SINTER": frozenset.intersection, b"SUNION": frozenset.union, b"SDIFF": frozenset.difference,
}  # fmt: skip


def set_read(verb: bytes, keys: Sequence[bytes]) -> Read:
    return Read((verb, *keys), tuple(keys), _algebra(SET_READS[verb]), set)


def choose_read(keys: Sequence[bytes], value: Callable[[bytes], Value], chance: random.Random) -> Read:
    """A read of one or several of `keys`; mostly one that fits what `value` says a key holds now."""
    key = chance.choice(keys)
    kind: type = type(value(key))
    dice = chance.random()
    if dice < 0.12:
        return mget([key, *chance.sample(keys, min(len(keys), 2))])
    if dice < 0.15:
        return exists([key, chance.choice(keys)])
    if dice < 0.18 or (kind is Set and dice < 0.4):
        return set_read(chance.choice(list(SET_READS)), [key, chance.choice(keys)])
    if dice < 0.2:
        return script_get(key)
    if dice < 0.3 or kind is type(None):
        kind = chance.choice(list(OF_TYPE))
    if dice < 0.36:
        return one_key(chance.choice(OF_ANY), None, key)
    return one_key(chance.choice(OF_TYPE[kind]), kind, key)


def every_read(keys: Sequence[bytes]) -> list[Read]:
    """Every read command over each of `keys`: for the comparison at the end."""
    reads = [mget(keys), exists(keys)]
    for key, other in zip(keys, [*keys[1:], *keys[:1]], strict=True):
        reads += [set_read(verb, [key, other]) for verb in SET_READS]
        reads += [one_key(row, kind, key) for kind, rows in OF_TYPE.items() for row in rows]
        reads += [script_get(key), *(one_key(row, None, key) for row in OF_ANY)]
    return reads
