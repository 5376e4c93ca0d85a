"""What the tier may keep, and what each command does to what it keeps.

A *part* is a request frame without its leading star: what `chunk.split(b"*")` makes of a chunk of requests. A
*key frame* is a key as the bulk string it is in requests and in invalidation pushes (`$5\\r\\nhello\\r\\n`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.resp import encode
from proxy.resp.commands import Command, CommandTable
from proxy.resp.downgrade import PLAIN, Shape, shape_of
from proxy.resp.keys import key_positions, pattern_positions
from proxy.resp.namespace import Namespace, RefusedHere
from proxy.resp.requests import RequestParser
from proxy.resp.tracking import Mode

# fmt: off
CACHEABLE = frozenset({
    "get", "strlen", "getrange", "substr", "lcs", "exists", "type", "expiretime", "pexpiretime",
    "getbit", "bitcount", "bitpos", "bitfield_ro",
    "hget", "hmget", "hgetall", "hkeys", "hvals", "hlen", "hexists", "hstrlen",
    "lrange", "lindex", "llen", "lpos",
    "smembers", "scard", "sismember", "smismember", "sinter", "sintercard", "sunion", "sdiff",
    "zscore", "zmscore", "zcard", "zcount", "zlexcount", "zrank", "zrevrank", "zrange", "zrangebyscore",
    "zrangebylex", "zrevrange", "zrevrangebyscore", "zrevrangebylex", "zdiff", "zinter", "zintercard",
    "zunion", "geodist", "geohash", "geopos", "geosearch", "georadius_ro", "georadiusbymember_ro",
    "xlen", "xrange", "xrevrange",
    "json.get", "json.mget", "json.type", "json.strlen", "json.arrlen", "json.objlen", "json.objkeys",
})
# fmt: on
"""Commands whose reply depends on nothing but the values of their keys, and which leave no trace in them.

Not here though read-only: what is random (SRANDMEMBER …), tells time (TTL, XPENDING, XINFO, OBJECT …), walks
(SCAN …), rewrites its key (PFCOUNT) or reads keys that no argument names (SORT_RO … BY). MGET is served by
its members.
"""

REWRITES = frozenset({"pfcount"})
"""Commands that Redis calls read-only and that may change their keys (a cached count) all the same."""
_SCRIPTS = frozenset({"eval", "evalsha", "fcall"})
_READING_SCRIPTS = frozenset({"eval_ro", "evalsha_ro", "fcall_ro"})
OVERTURNS = frozenset({
    "flushall", "flushdb", "swapdb", "debug", "replicaof", "slaveof", "failover",
    "acl|setuser", "acl|deluser", "acl|load",
})  # fmt: skip
"""Commands that change what any key shows, or who may see it, and of which Redis need not tell the link."""
GET = b"2\r\n$3\r\nGET\r\n"
"""How the part of a GET begins; its key follows."""
MOST_KEYS = 64
"""Keys of one command above which it is not kept: each costs a PTTL with the fetch."""
_MOST_KINDS = 4096


class Touch(enum.Enum):
    """What a command does to the keys it names."""

    NOTHING = enum.auto()
    READS = enum.auto()
    READS_UNKNOWN = enum.auto()
    """It reads keys that nobody can name."""
    WRITES = enum.auto()
    UNKNOWN = enum.auto()
    """It may write keys that nobody can name: scripts, modules that declare nothing."""
    EVERYTHING = enum.auto()
    """FLUSHALL, SWAPDB and the like: `OVERTURNS`."""


_MARK = (1 << 30) - 1
"""Marks are Python's smallest integers: 32 bytes each, where a key frame takes 50 and more."""


def marks(frames: Iterable[bytes]) -> list[int]:
    """What stands for keys, given as key frames, in the index of a shelf.

    Two keys may have the same mark, one in a thousand million pairs: each then drops the other's entries as
    well.
    """
    return [hash(frame) & _MARK for frame in frames]


def key_frame(key: bytes) -> bytes:
    """The bulk string of a key."""
    return b"$%d\r\n%b\r\n" % (len(key), key)


def key_name(frame: bytes) -> bytes:
    """The key of a key frame."""
    return frame[frame.index(b"\n") + 1 : -2]


@dataclass(slots=True)
class Read:
    """A read that may be kept: its frame, its keys, and how its RESP3 reply looks in RESP2."""

    part: bytes
    """As the client sends it."""
    keys: tuple[bytes, ...]
    """Key frames, as Redis knows them."""
    shape: Shape | None
    """None: not known for RESP2."""
    request: bytes
    """What Redis is asked."""


def lifetimes(keys: Sequence[bytes], mode: Mode) -> tuple[int, bytes]:
    """What asks PTTL for each key and has Redis track it: how many replies that has, and its bytes.

    It is what registers the key, so that a read behind it is covered whether itself is tracked or not.
    """
    question = mode.lead + b"*2\r\n$4\r\nPTTL\r\n"
    n = mode.lead_replies + 1
    if len(keys) == 1:
        return n, question + keys[0]
    return n * len(keys), b"".join([question + key for key in keys])


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the head of a part (argument count and command) tells already.

    `key_at`: where the one key begins, if that is the first argument; 0 if the arguments must be looked at.
    """

    command: Command
    key_at: int
    shape: Shape | None
    shape_known: bool


class Rules:
    """Judges commands by the table; remembers its judgement on heads of frames.

    Parts are what clients of one `namespace` send; all else is as Redis gets it.
    """

    def __init__(self, table: CommandTable, namespace: Namespace | None = None) -> None:
        self.table = table
        self.namespace = namespace
        self.prefix = namespace.prefix if namespace is not None else b""
        self._kinds: dict[bytes, _Kind | None] = {}
        self._parser = RequestParser(2**31)

    def forget(self) -> None:
        """Judge anew: the table has changed."""
        self._kinds.clear()

    def read(self, part: bytes) -> Read | None:
        """What it takes to keep the reply of a complete, canonical request; None: it is not kept."""
        kind = self._kind(part)
        if kind is None:
            return None
        if kind.key_at and kind.shape_known:
            key = bulk_at(part, kind.key_at)
            if self.namespace is None:
                return Read(part, (key,), kind.shape, b"*" + part)
            bare, key = key, self.namespace.bulk(key)
            rest = part[kind.key_at + len(bare) :]
            return Read(part, (key,), kind.shape, b"*%b%b%b" % (part[: kind.key_at], key, rest))
        return self._read_arguments(kind.command, part)

    def member(self, key: bytes) -> Read:
        """GET of a key, given as the key frame that the client sends."""
        real = self.namespace.bulk(key) if self.namespace is not None else key
        return Read(GET + key, (real,), Shape.PLAIN, b"*%b%b" % (GET, real))

    def _read_arguments(self, command: Command, part: bytes) -> Read | None:
        request = self._parser.parse(b"*" + part, 0)
        if request is None:
            return None
        arguments, frame = request.arguments, b"*" + part
        if self.namespace is not None:
            try:
                arguments, _ = self.namespace.translate(command, arguments)
            except RefusedHere:
                return None
            frame = encode.request(*arguments)
        keys = self.keys(command, arguments)
        if not keys or len(keys) > MOST_KEYS:
            return None
        return Read(part, keys, shape_of(command, arguments), frame)

    def _kind(self, part: bytes) -> _Kind | None:
        """What the head of a part tells."""
        at = part.index(b"\r\n", part.index(b"\r\n") + 2) + 2
        head = part[: part.index(b"\r\n", at) + 2]
        try:
            return self._kinds[head]
        except KeyError:
            return self._judge(head, part)

    def _judge(self, head: bytes, part: bytes) -> _Kind | None:
        request = self._parser.parse(b"*" + part, 0)
        kind = None
        if request is not None and len(request.arguments) > 1:
            command = self.table.find(request.arguments[0])
            if command is not None and command.name in CACHEABLE and "readonly" in command.flags:
                uses = key_positions(command, request.arguments) if command.keys_by_count else None
                single = uses is not None and [use.index for use in uses] == [1]
                # With options the shape may be another one.
                known = command.name in PLAIN or len(request.arguments) == command.arity
                shape = shape_of(command, request.arguments) if known else None
                kind = _Kind(command, len(head) if single else 0, shape, known)
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        self._kinds[head] = kind
        return kind

    def keys(self, command: Command, arguments: Sequence[bytes]) -> tuple[bytes, ...] | None:
        """The key frames a command names, each once; None if they cannot be known."""
        uses = key_positions(command, arguments)
        if uses is None:
            return None
        return tuple(dict.fromkeys([key_frame(arguments[use.index]) for use in uses]))

    def part_keys(self, part: bytes) -> tuple[bytes, ...]:
        """The key frames, as Redis knows them, of a part that is kept: those of `read`, for less."""
        kind = self._kind(part)
        if kind is None:
            return ()
        if kind.key_at and kind.shape_known:
            key = bulk_at(part, kind.key_at)
            return (key,) if self.namespace is None else (self.namespace.bulk(key),)
        read = self._read_arguments(kind.command, part)
        return read.keys if read is not None else ()

    def part_marks(self, part: bytes) -> list[int]:
        """The marks of the keys of a part that is kept."""
        return marks(self.part_keys(part))

    def touch(self, command: Command | None, arguments: Sequence[bytes]) -> tuple[Touch, Sequence[int]]:
        """What a command does, and to which keys (their marks; only for READS and WRITES)."""
        if command is None:  # whatever Redis CLIENT may yet learn, it touches no key
            return (Touch.NOTHING if arguments[0].lower() == b"client" else Touch.UNKNOWN), ()
        if command.name in OVERTURNS:
            return Touch.EVERYTHING, ()
        if command.name in _SCRIPTS:
            swaps = command.name == "eval" and b"swapdb" in b"".join(arguments[1:2]).lower()
            return (Touch.EVERYTHING if swaps else Touch.UNKNOWN), ()
        reads = "readonly" in command.flags
        if command.name in _READING_SCRIPTS or pattern_positions(command, arguments) != []:
            return (Touch.READS_UNKNOWN if reads else Touch.UNKNOWN), ()
        if (
            not reads
            and "write" not in command.flags
            and "module" not in command.flags
            and not command.key_specs
        ):
            return Touch.NOTHING, ()
        keys = self.keys(command, arguments)
        if keys is None or (not keys and "module" in command.flags):
            return (Touch.READS_UNKNOWN if reads else Touch.UNKNOWN), ()
        if not keys:
            return Touch.NOTHING, ()
        return (Touch.READS if reads and command.name not in REWRITES else Touch.WRITES), marks(keys)


def bulk_at(part: bytes, at: int) -> bytes:
    """The bulk string that begins at `at`."""
    end = part.index(b"\r\n", at)
    return part[at : end + 4 + int(part[at + 1 : end])]
