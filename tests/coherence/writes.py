"""Every kind of write, each as one atomic step from a known state to the next.

A `Step` is the commands to send together, what they change and what they must answer. Keys of a group have
one writer, so the writer knows the state it starts from and every reply can be foretold; ANY stands where the
reply's shape depends on the protocol. Values carry the step's version, so that each is told from all others.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.coherence.model import Hash, List, Set, Stream, Value, ZSet

Place = tuple[int, bytes]
"""A database and a key in it."""
Command = tuple[bytes, ...]
OK = b"OK"


class _Any:
    def __eq__(self, other: object) -> bool:
        return not isinstance(other, Exception)

    __hash__ = None  # type: ignore[assignment]


ANY: Any = _Any()
LONG = b"1000"
"""Seconds to live that no test lives to see."""
CALL_SCRIPT = b"return redis.call(unpack(ARGV))"
SHA_OF_CALL = hashlib.sha1(CALL_SCRIPT).hexdigest().encode()


@dataclass
class Step:
    """One atomic change."""

    commands: list[Command]
    changes: dict[Place, Value]
    replies: list[Any]
    dump: Command | None = None
    """Asked just before; its reply is the serialized value that stands empty in RESTORE."""
    sidecar_only: bool = False
    """True for what Redis tells nobody about: SWAPDB."""

    @property
    def sweeping(self) -> bool:
        """It says not which keys it changes, so that a sidecar may well drop all it has."""
        verbs = {b"FLUSHDB", b"FLUSHALL", b"SWAPDB"}
        return any(c[0] in verbs or (c[0].startswith(b"EVAL") and c[2] == b"0") for c in self.commands)


@dataclass
class View:
    """What a writer knows when it chooses its next step."""

    db: int
    version: int
    keys: list[bytes]
    """Those to choose from."""
    every: list[bytes]
    """All of the group."""
    value: Callable[[Place], Value]
    chance: random.Random

    def get(self, key: bytes) -> Value:
        return self.value((self.db, key))

    def pick(self, kind: type | None = None) -> bytes | None:
        """A key, of this type if one is given, the first of the list more often; None if there is none."""
        fitting = [key for key in self.keys if kind is None or type(self.get(key)) is kind]
        return fitting[int(len(fitting) * self.chance.random() ** 2)] if fitting else None


Simple = tuple[Command, Value, Any]
"""A command on one key, the key's value after it and its reply."""


def on_string(key: bytes, old: bytes | None, n: int, chance: random.Random) -> Iterator[Simple]:
    new = b"%d.%s" % (n, b"x" * chance.randrange(12))
    exists = old is not None
    yield (b"SET", key, new), new, OK
    yield (b"SET", key, new, b"EX", LONG), new, OK
    yield (b"SET", key, new, b"PX", b"900000"), new, OK
    yield (b"SET", key, new, b"NX"), old if exists else new, None if exists else OK
    yield (b"SET", key, new, b"XX"), new if exists else None, OK if exists else None
    yield (b"SET", key, new, b"KEEPTTL"), new, OK
    yield (b"SET", key, new, b"GET"), new, old
    yield (b"GETSET", key, new), new, old
    yield (b"SETNX", key, new), old if exists else new, int(not exists)
    yield (b"SETEX", key, LONG, new), new, OK
    yield (b"PSETEX", key, b"900000", new), new, OK
    yield (b"APPEND", key, b"+%d" % n), (old or b"") + b"+%d" % n, ANY
    long = (old or b"").ljust(8, b"\0")
    yield (b"SETRANGE", key, b"0", b"%08d" % n), b"%08d" % n + long[8:], len(long)
    yield (b"SETBIT", key, b"0", b"0"), bytes([(old or b"\0")[0] & 0x7F]) + (old or b"\0")[1:], ANY
    yield (b"GETDEL", key), None, old
    yield (b"GETEX", key, b"EX", LONG), old, old
    yield (b"GETEX", key, b"PERSIST"), old, old
    if old is None or (old.isdigit() and old[:1] != b"0"):
        count = int(old or 0)
        yield (b"INCR", key), b"%d" % (count + 1), count + 1
        yield (b"INCRBY", key, b"%d" % n), b"%d" % (count + n), count + n
        yield (b"DECR", key), b"%d" % (count - 1), count - 1
    else:
        yield (b"SET", key, b"%d" % n), b"%d" % n, OK


def on_hash(key: bytes, old: Hash | None, n: int, chance: random.Random) -> Iterator[Simple]:
    h, v = old or Hash(), b"%d" % n
    count = int(h.get(b"n", b"0"))
    yield (b"HSET", key, b"f0", v), Hash(h | {b"f0": v}), int(b"f0" not in h)
    yield (b"HSET", key, b"f0", v, b"f1", v), Hash(h | {b"f0": v, b"f1": v}), ANY
    yield (b"HMSET", key, b"f1", v), Hash(h | {b"f1": v}), OK
    yield (b"HSETNX", key, b"f1", v), Hash({b"f1": v} | h), int(b"f1" not in h)
    yield (b"HINCRBY", key, b"n", v), Hash(h | {b"n": b"%d" % (count + n)}), count + n
    rest = Hash((f, x) for f, x in h.items() if f != b"f0")
    yield (b"HDEL", key, b"f0"), rest or None, int(b"f0" in h)


def on_list(key: bytes, old: List | None, n: int, chance: random.Random) -> Iterator[Simple]:
    items, v = old or List(), b"%d" % n
    yield (b"LPUSH", key, v), List((v, *items)), len(items) + 1
    yield (b"RPUSH", key, v), List((*items, v)), len(items) + 1
    yield (b"RPUSHX", key, v), List((*items, v)) if items else None, len(items) + 1 if items else 0
    yield (b"LTRIM", key, b"0", b"3"), List(items[:4]) or None, OK
    yield (b"LPOP", key), List(items[1:]) or None, items[0] if items else None
    yield (b"RPOP", key), List(items[:-1]) or None, items[-1] if items else None
    if items:
        yield (b"LSET", key, b"0", v), List((v, *items[1:])), OK
        yield (b"LREM", key, b"1", items[-1]), _without(items, items[-1]), 1
        yield (b"LINSERT", key, b"BEFORE", items[0], v), List((v, *items)), len(items) + 1


def _without(items: List, item: bytes) -> List | None:
    place = items.index(item)
    return List((*items[:place], *items[place + 1 :])) or None


def on_set(key: bytes, old: Set | None, n: int, chance: random.Random) -> Iterator[Simple]:
    members, v, fixed = old or Set(), b"%d" % n, b"m%d" % chance.randrange(2)
    yield (b"SADD", key, v), Set(members | {v}), 1
    yield (b"SADD", key, fixed, v), Set(members | {fixed, v}), ANY
    yield (b"SREM", key, fixed), Set(members - {fixed}) or None, int(fixed in members)
    kept = Set(sorted(members)[-3:])
    gone = sorted(members - kept)
    if gone:
        yield (b"SREM", key, *gone), kept, len(gone)


def on_zset(key: bytes, old: ZSet | None, n: int, chance: random.Random) -> Iterator[Simple]:
    z, v, fixed = old or ZSet(), b"%d" % n, b"m%d" % chance.randrange(2)
    yield (b"ZADD", key, v, fixed), ZSet(z | {fixed: float(n)}), ANY
    yield (b"ZADD", key, v, v), ZSet(z | {v: float(n)}), 1
    yield (b"ZADD", key, b"XX", v, fixed), ZSet(z | {fixed: float(n)}) if fixed in z else old, 0
    yield (b"ZINCRBY", key, b"1", fixed), ZSet(z | {fixed: z.get(fixed, 0.0) + 1}), ANY
    yield (b"ZREM", key, fixed), ZSet((m, s) for m, s in z.items() if m != fixed) or None, int(fixed in z)
    yield (b"ZREMRANGEBYRANK", key, b"0", b"-5"), ZSet(z.ranked()[-4:]) or None, max(0, len(z) - 4)
    yield (b"ZPOPMAX", key), ZSet(z.ranked()[:-1]) or None, ANY


def on_stream(key: bytes, old: Stream | None, n: int, chance: random.Random) -> Iterator[Simple]:
    entries, v, name = old or Stream(), b"%d" % n, b"%d-1" % n
    longer = Stream((*entries, (name, v)))
    yield (b"XADD", key, name, b"v", v), longer, name
    yield (b"XADD", key, b"MAXLEN", b"3", name, b"v", v), Stream(longer[-3:]), name
    if old is not None:
        yield (b"XTRIM", key, b"MAXLEN", b"2"), Stream(entries[-2:]), max(0, len(entries) - 2)
    if entries:
        yield (b"XDEL", key, entries[-1][0]), Stream(entries[:-1]), 1


BY_TYPE: dict[type, Callable[..., Iterator[Simple]]] = {
    bytes: on_string, Hash: on_hash, List: on_list, Set: on_set, ZSet: on_zset, Stream: on_stream,
}  # fmt: skip


def simple(view: View, key: bytes | None = None) -> tuple[bytes, Simple]:
    """A write to one key, the expiry commands among them."""
    key = key or view.pick()
    assert key is not None
    old = view.get(key)
    present = old is not None
    if view.chance.random() < 0.15:
        common: list[Simple] = [
            ((b"DEL", key), None, int(present)),
            ((b"UNLINK", key), None, int(present)),
            ((b"EXPIRE", key, LONG), old, int(present)),
            ((b"PEXPIRE", key, b"900000"), old, int(present)),
            ((b"PERSIST", key), old, ANY),
            ((b"SET", key, b"%d" % view.version), b"%d" % view.version, OK),
            ((b"TOUCH", key), old, int(present)),
        ]
        return key, view.chance.choice(common)
    kind = type(old) if present else view.chance.choice(list(BY_TYPE))
    return key, view.chance.choice(list(BY_TYPE[kind](key, old, view.version, view.chance)))


def bare(view: View) -> Step:
    key, (command, value, reply) = simple(view)
    return Step([command], {(view.db, key): value}, [reply])


def transaction(view: View) -> Step:
    """MULTI with one to three writes to different keys."""
    parts = [simple(view, key) for key in view.chance.sample(view.keys, view.chance.randint(1, min(3, len(view.keys))))]
    commands: list[Command] = [(b"MULTI",), *(part[0] for _, part in parts), (b"EXEC",)]
    changes = {(view.db, key): value for key, (_, value, _) in parts}
    return Step(commands, changes, [OK, *[b"QUEUED"] * len(parts), [reply for _, (_, _, reply) in parts]])


def watched(view: View) -> Step:
    """WATCH, reads that must show the present, MULTI … EXEC. Nobody else writes, so it succeeds."""
    step = transaction(view)
    keys = [key for _, key in step.changes]
    lengths: list[Any] = [int(view.get(key) is not None) for key in keys]
    reads: list[Command] = [(b"EXISTS", key) for key in keys]
    strings = [key for key in keys if isinstance(view.get(key), bytes)]
    reads += [(b"GET", key) for key in strings]
    return Step([(b"WATCH", *keys), *reads, *step.commands], step.changes,
                [OK, *lengths, *(view.get(key) for key in strings), *step.replies])  # fmt: skip


def script(view: View) -> Step:
    """EVAL or EVALSHA of a write whose key is declared, or is not."""
    key, (command, value, reply) = simple(view)
    verb = (b"EVAL", CALL_SCRIPT) if view.chance.random() < 0.5 else (b"EVALSHA", SHA_OF_CALL)
    declared = (b"1", key) if view.chance.random() < 0.5 else (b"0",)
    return Step([(*verb, *declared, *command)], {(view.db, key): value}, [_in_script(command, reply)])


def scripted_transaction(view: View) -> Step:
    """MULTI with a script in it."""
    step = script(view)
    return Step([(b"MULTI",), *step.commands, (b"EXEC",)], step.changes, [OK, b"QUEUED", step.replies])


def _in_script(command: Command, reply: Any) -> Any:
    return ANY if command[0] in {b"ZINCRBY", b"ZPOPMAX"} else reply


def mset(view: View) -> Step:
    keys = view.chance.sample(view.keys, min(3, len(view.keys)))
    value = b"%d.m" % view.version
    if view.chance.random() < 0.3:
        fresh = all(view.get(key) is None for key in keys)
        changes: dict[Place, Value] = {(view.db, key): value for key in keys} if fresh else {}
        return Step([(b"MSETNX", *(part for key in keys for part in (key, value)))], changes, [int(fresh)])
    return Step([(b"MSET", *(part for key in keys for part in (key, value)))], {(view.db, key): value for key in keys}, [OK])


def rename(view: View) -> Step | None:
    source, target = view.pick(), view.chance.choice(view.keys)
    assert source is not None
    value = view.get(source)
    if value is None or source == target:
        return None
    changes: dict[Place, Value] = {(view.db, source): None, (view.db, target): value}
    if view.chance.random() < 0.3:
        free = view.get(target) is None
        return Step([(b"RENAMENX", source, target)], changes if free else {}, [int(free)])
    return Step([(b"RENAME", source, target)], changes, [OK])


def copy(view: View) -> Step | None:
    source, target = view.pick(), view.chance.choice(view.keys)
    assert source is not None
    value, db = view.get(source), view.chance.choice([0, 1])
    if source == target and db == view.db:
        return None
    replace = view.chance.random() < 0.7
    done = value is not None and (replace or view.value((db, target)) is None)
    command = (b"COPY", source, target, b"DB", b"%d" % db, *([b"REPLACE"] if replace else []))
    return Step([command], {(db, target): value} if done else {}, [int(done)])


def move(view: View) -> Step:
    key, other = view.chance.choice(view.keys), 1 - view.db
    value = view.get(key)
    done = value is not None and view.value((other, key)) is None
    changes: dict[Place, Value] = {(view.db, key): None, (other, key): value} if done else {}
    return Step([(b"MOVE", key, b"%d" % other)], changes, [int(done)])


def delete_many(view: View) -> Step:
    keys = view.chance.sample(view.keys, min(2, len(view.keys)))
    verb = view.chance.choice([b"DEL", b"UNLINK"])
    return Step([(verb, *keys)], {(view.db, key): None for key in keys}, [sum(view.get(key) is not None for key in keys)])


def of_two_sets(view: View) -> Step | None:
    one, target = view.pick(Set), view.chance.choice(view.keys)
    if one is None:
        return None
    members, held = view.get(one), view.get(target)
    assert isinstance(members, Set)
    if view.chance.random() < 0.5:
        return Step([(b"SUNIONSTORE", target, one)], {(view.db, target): members}, [len(members)])
    if target == one or (held is not None and not isinstance(held, Set)):
        return None
    member = min(members)
    changes: dict[Place, Value] = {
        (view.db, one): Set(members - {member}) or None,
        (view.db, target): Set((held or Set()) | {member}),
    }
    return Step([(b"SMOVE", one, target, member)], changes, [1])


def of_two_lists(view: View) -> Step | None:
    one, target = view.pick(List), view.chance.choice(view.keys)
    items, held = (view.get(one) if one else None), view.get(target)
    if one is None or one == target or not (held is None or isinstance(held, List)):
        return None
    assert isinstance(items, List)
    changes: dict[Place, Value] = {(view.db, one): List(items[1:]) or None, (view.db, target): List((*(held or ()), items[0]))}
    verb: Command = (b"LMOVE", one, target, b"LEFT", b"RIGHT")
    return Step([verb], changes, [items[0]])


def restore(view: View) -> Step | None:
    """DUMP one key, RESTORE it as another."""
    source, target = view.pick(), view.chance.choice(view.keys)
    assert source is not None
    value = view.get(source)
    if value is None:
        return None
    return Step([(b"RESTORE", target, b"0", b"", b"REPLACE")], {(view.db, target): value}, [OK], dump=(b"DUMP", source))


def flush(view: View) -> Step:
    verb: Command = view.chance.choice([(b"FLUSHDB",), (b"FLUSHALL",), (b"FLUSHDB", b"ASYNC")])
    databases = [0, 1] if verb[0] == b"FLUSHALL" else [view.db]
    return Step([verb], {(db, key): None for db in databases for key in view.every}, [OK])


def swap(view: View) -> Step:
    changes = {(db, key): view.value((1 - db, key)) for db in (0, 1) for key in view.every}
    return Step([(b"SWAPDB", b"0", b"1")], changes, [OK], sidecar_only=True)


def pair(view: View) -> Step:
    """A = i, then B = i; now and then both at once."""
    a, b = view.keys
    value = b"%d" % view.version
    dice = view.chance.random()
    if dice < 0.2:
        return Step([(b"MSET", a, value, b, value)], {(view.db, a): value, (view.db, b): value}, [OK])
    if dice < 0.3:
        commands: list[Command] = [(b"MULTI",), (b"SET", a, value), (b"SET", b, value), (b"EXEC",)]
        return Step(commands, {(view.db, a): value, (view.db, b): value}, [OK, b"QUEUED", b"QUEUED", [OK, OK]])
    key = a if view.get(a) == view.get(b) else b
    value = value if key == a else view.get(a)  # type: ignore[assignment]
    return Step([(b"SET", key, value)], {(view.db, key): value}, [OK])


Chooser = Callable[[View], Step | None]
ORDINARY: list[Chooser] = [
    *[bare] * 12, *[transaction] * 3, *[watched] * 2, *[script] * 4, scripted_transaction, *[mset] * 2, rename, rename,
    copy, copy, move, delete_many, of_two_sets, of_two_lists, restore,
]  # fmt: skip
WHOLE_DATABASES: list[Chooser] = [*ORDINARY, *[flush] * 2, *[swap] * 4]
"""For a run with one sidecar, and one group that owns every key: Redis tells nobody of SWAPDB."""
