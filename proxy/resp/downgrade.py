"""RESP3 replies turned into the very bytes Redis would have sent on a RESP2 connection.

One RESP3 link then serves the clients of both protocols. Redis looks at the protocol where it writes a value
(`addReplyDouble`, `addReplyNull`, …), so most of the RESP2 reply follows from the types received: a double
becomes a bulk string, a map an array twice as long. Two things do not: RESP2 has two nulls, `$-1` and `*-1`,
where RESP3 has one, and some commands nest their pairs in RESP3 only. `shape_of` tells what to expect of a
command, `downgrade` does it.

Where an answer can be read off the types received, it is, rather than off the arguments: a new option of a
newer server then needs no change here. What was not compared with a real server has no shape: such a command
has to travel on a RESP2 link. `tests/integration/test_downgrade_against_redis.py` makes the comparison for
every command that has one.

The work is a walk over tokens (a header line with the payload of its string), because in all shapes but one a
token is rewritten without regard to what surrounds it: no nesting has to be followed, however deep, and
stretches that stay as they are cost one match of a regular expression. Attributes and the values of XREAD's
map have to be stepped over whole, which `ReplyScanner` does.

Streamed strings and aggregates (`$?`, `*?`) are no part of this: Redis does not send them, and its links are
ended at the first one.

Redis docs: "Redis serialization protocol specification", the pages of the commands.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from proxy.resp.commands import Command
from proxy.resp.patterns import _BULK
from proxy.resp.replies import ReplyScanner


class Shape(enum.Enum):
    """How the RESP3 reply of a command differs from its RESP2 reply.

    Bulk strings, integers, statuses and errors are the same in every shape.
    """

    PLAIN = enum.auto()
    """In nothing but the spelling of nulls: each is `$-1`, nested ones too."""
    TYPED = enum.auto()
    """As each value's type says; nulls are `$-1`. Holds for what is PLAIN or MAP too, only slower."""
    NULL_ARRAY = enum.auto()
    """As TYPED, but nulls are `*-1`."""
    MAP = enum.auto()
    """In the first line only: a map or set of bulk strings becomes an array; a null is `$-1`."""
    PAIRS = enum.auto()
    """An array of pairs becomes a flat one, if that is what came; all else as TYPED."""
    STREAMS = enum.auto()
    """A map becomes an array of [key, value] pairs; all else as NULL_ARRAY."""
    PENDING = enum.auto()
    """As TYPED, but in the summary of a group without pending entries the last null is `*-1`."""


_NAMES: Final[Mapping[Shape, str]] = {
    Shape.PLAIN: """
        append bgrewriteaof bgsave bitcount bitfield bitfield_ro bitop bitpos copy dbsize decr decrby del
        discard dump echo exists expire expireat expiretime flushall flushdb geoadd geodist geohash
        geosearchstore get getbit getdel getex getrange getset hdel hexists hget hincrby hincrbyfloat hkeys
        hlen hmget hmset hscan hset hsetnx hstrlen hvals incr incrby incrbyfloat keys lastsave lindex linsert
        llen lmove lpos lpush lpushx lrange lrem lset ltrim mget migrate move mset msetnx persist pexpire
        pexpireat pexpiretime pfadd pfcount pfmerge ping psetex pttl publish randomkey rename renamenx
        replicaof restore restore-asking rpoplpush rpush rpushx sadd save scan scard sdiffstore set setbit
        setex setnx setrange sintercard sinterstore sismember slaveof smismember smove sort sort_ro spublish
        srem sscan strlen substr sunionstore swapdb time touch ttl type unlink unwatch xack xadd xautoclaim
        xclaim xdel xlen xsetid xtrim zcard zcount zdiffstore zintercard zinterstore zlexcount zrangebylex
        zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zrevrangebylex zunionstore
    """,
    Shape.TYPED: """
        acl|cat acl|deluser acl|dryrun acl|genpass acl|getuser acl|help acl|list acl|load acl|log acl|save
        acl|setuser acl|users acl|whoami client|getname client|help client|id client|info client|kill
        client|list client|pause client|setname client|unblock command command|count command|docs
        command|getkeys command|getkeysandflags command|help command|info command|list config|help
        config|resetstat
        config|rewrite config|set eval eval_ro evalsha evalsha_ro fcall fcall_ro function|delete
        function|dump function|flush function|help function|list function|load function|restore
        function|stats georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch info
        latency|doctor latency|graph latency|help latency|histogram latency|history latency|latest
        latency|reset lcs lolwut memory|doctor memory|help memory|malloc-stats memory|purge memory|stats
        memory|usage module|help module|load module|loadex module|unload object|encoding object|freq
        object|help object|idletime object|refcount pfdebug pubsub|channels pubsub|help pubsub|numpat
        pubsub|numsub pubsub|shardchannels pubsub|shardnumsub role script|exists script|flush script|help
        script|load slowlog|get slowlog|help slowlog|len slowlog|reset stralgo xgroup|create
        xgroup|createconsumer xgroup|delconsumer xgroup|destroy xgroup|help xgroup|setid xinfo|consumers
        xinfo|groups xinfo|help xinfo|stream zadd zincrby zmscore zscan zscore
    """,
    Shape.NULL_ARRAY: "geopos lmpop xrange xrevrange zmpop",
    Shape.MAP: "config|get hgetall sdiff sinter smembers spop srandmember sunion",
    Shape.PAIRS: """
        hrandfield zdiff zinter zpopmax zpopmin zrandmember zrange zrangebyscore zrevrange zrevrangebyscore
        zunion
    """,
    Shape.PENDING: "xpending",
    Shape.STREAMS: "xread xreadgroup",
}
_SHAPES: Final[Mapping[str, Shape]] = {name: shape for shape in _NAMES for name in _NAMES[shape].split()}

PLAIN: Final = frozenset(_NAMES[Shape.PLAIN].split())
"""Names of commands, in lower case, that are PLAIN whatever their arguments."""


def shape_of(command: Command, arguments: Sequence[bytes]) -> Shape | None:
    """Say how the reply to `arguments` (the name included) is to be downgraded.

    `command` is what the table finds for them. None: nobody knows, send it on a RESP2 link.
    """
    rule = _RULES.get(command.name)
    return _SHAPES.get(command.name) if rule is None else rule(arguments)


def _pop(arguments: Sequence[bytes]) -> Shape | None:
    """LPOP and RPOP. With a count the null is `*-1`, but Redis 6.2.0 to 6.2.6 wrote `$-1` (issue #10089)."""
    return Shape.PLAIN if len(arguments) < 3 else None


def _rank(arguments: Sequence[bytes]) -> Shape | None:
    """ZRANK and ZREVRANK. WITHSCORE (Redis 7.2) makes the null `*-1`; never compared with a server."""
    return Shape.PLAIN if len(arguments) < 4 else None


def _json_get(arguments: Sequence[bytes]) -> Shape | None:
    """JSON.GET, on the word of its documentation and source: a bulk string or null (no module was at hand).

    Not so with FORMAT, which yields RESP3 types and is refused on RESP2 (RedisJSON, `json_get`).
    """
    return None if any(argument.lower() == b"format" for argument in arguments[2:]) else Shape.PLAIN


_RULES: Final[Mapping[str, Callable[[Sequence[bytes]], Shape | None]]] = {
    "lpop": _pop,
    "rpop": _pop,
    "zrank": _rank,
    "zrevrank": _rank,
    "json.get": _json_get,
}


# Rewriting

_RESP3_NULL: Final = b"_\r\n"
_NULL: Final = b"$-1\r\n"
_NULL_ARRAY: Final = b"*-1\r\n"

_SAME: Final = re.compile(rf"(?:{_BULK}|\*\d++\r\n|[:+-][^\r\n]*+\r\n|[$*]-1\r\n)*+".encode(), re.S).match
"""Tokens that both protocols spell alike, as many as follow; strings too long for it are left to `_walk`."""

_NULLS: Final = re.compile(rb"(?:_\r\n)++").match

_ENTRY: Final = rf"(?:{_BULK}){{1,2}}+"
_SCORE: Final = r"[^\r\n]*+"
_PAIR_RUN: Final = re.compile(rf"(?:\*2\r\n{_ENTRY}(?:,{_SCORE}\r\n)?+){{1,1000}}+".encode(), re.S).match
_PAIRS: Final = re.compile(rf"\*2\r\n({_ENTRY})(?:,({_SCORE})\r\n)?+".encode(), re.S).findall
"""Pairs of short strings, or of a short string and a double: some that follow, and the parts of each."""

_EMPTY_PENDING: Final = b"*4\r\n:0\r\n_\r\n_\r\n_\r\n"


def downgrade(reply: bytes, shape: Shape) -> bytes:
    """Turn one complete RESP3 reply into the RESP2 reply; the same object if nothing changes."""
    if reply.startswith(_UNCHANGED):
        return reply
    while reply.startswith(b"|"):
        reply = reply[_attribute_end(reply, 0) :]
    if reply == _RESP3_NULL:
        return _NULL_ARRAY if shape in _NULL_ARRAYS else _NULL
    return _DOWNGRADES[shape](reply)


def lower_nulls(data: bytes, skip: int) -> bytes:
    """Replace `_` by `$-1` in a stretch of a stream of PLAIN replies, and nothing inside strings.

    `data` may begin and end anywhere but inside a header line. Its first `skip` bytes belong to a string
    that began before (line end included). Worth calling only if `_` and a line end occur in it.
    """
    return _walk(data, skip, _NULL)


def _walk(data: bytes, pos: int, null: bytes) -> bytes:
    """Rewrite `data` by the type of each token from `pos` on; the last string may be cut short."""
    parts: list[bytes] = []
    kept = 0
    size = len(data)
    while pos < size:
        if found := _SAME(data, pos):
            pos = found.end()
        end = data.find(b"\r\n", pos)
        if end < 0:
            break
        kind = data[pos]
        if kind == _BULK_STRING:
            pos = end + 4 + int(data[pos + 1 : end])
        elif nulls := _NULLS(data, pos):
            parts += data[kept:pos], null * ((nulls.end() - pos) // 3)
            pos = kept = nulls.end()
        elif rewrite := _TOKENS.get(kind):
            parts.append(data[kept:pos])
            text, pos = rewrite(data, pos, end)
            parts.append(text)
            kept = pos
        else:
            pos = end + 2
    parts.append(data[kept:])
    return b"".join(parts)


# Tokens: each function takes the data, where the token begins and where its first line ends; it returns the
# new text and where the next token begins.


def _number(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Double and big number; inf, -inf and nan are spelled alike."""
    return b"$%d\r\n%b\r\n" % (end - pos - 1, data[pos + 1 : end]), end + 2


def _boolean(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    return b":%d\r\n" % (data[pos + 1 : end] == b"t"), end + 2


def _set(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    return b"*" + data[pos + 1 : end + 2], end + 2


def _map(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    return b"*%d\r\n" % (2 * int(data[pos + 1 : end])), end + 2


def _verbatim(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Leave out the format, which is three letters and a colon."""
    after = end + 4 + int(data[pos + 1 : end])
    return b"$%d\r\n%b" % (after - end - 8, data[end + 6 : after]), after


def _blob_error(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Redis never sends one; RESP2's errors are one line."""
    after = end + 2 + int(data[pos + 1 : end])
    return b"-%b\r\n" % data[end + 2 : after].replace(b"\r", b" ").replace(b"\n", b" "), after + 2


def _attribute(data: bytes, pos: int, _: int) -> tuple[bytes, int]:
    return b"", _attribute_end(data, pos)


def _attribute_end(data: bytes, pos: int) -> int:
    """The position after the attribute at `pos`, which is where the value it belongs to begins."""
    end = data.index(b"\r\n", pos)
    return _values_end(data, end + 2, 2 * int(data[pos + 1 : end]))


_TOKENS: Final[Mapping[int, Callable[[bytes, int, int], tuple[bytes, int]]]] = {
    ord(kind): rewrite
    for kind, rewrite in {
        ",": _number, "(": _number, "#": _boolean, "~": _set, "%": _map, "=": _verbatim,
        "!": _blob_error, "|": _attribute,
    }.items()
}  # fmt: skip
_BULK_STRING: Final = ord("$")
_UNCHANGED: Final = (b"$", b":", b"+", b"-")
_NULL_ARRAYS: Final = (Shape.NULL_ARRAY, Shape.STREAMS)


# Shapes: what of a whole reply cannot be told token by token


def _plain(reply: bytes) -> bytes:
    return _walk(reply, 0, _NULL) if b"_\r\n" in reply else reply


def _typed(reply: bytes) -> bytes:
    return _walk(reply, 0, _NULL)


def _null_array(reply: bytes) -> bytes:
    return _walk(reply, 0, _NULL_ARRAY)


def _header(reply: bytes) -> bytes:
    """MAP: only the first token, the contents are strings."""
    rewrite = _TOKENS.get(reply[0])
    if rewrite is None:
        return reply
    text, rest = rewrite(reply, 0, reply.index(b"\r\n"))
    return text + reply[rest:]


def _pairs(reply: bytes) -> bytes:
    """PAIRS: `*n` of `*2` becomes `*2n` of their contents. If the first is no `*2`, there are no pairs."""
    pos = reply.index(b"\r\n") + 2
    if not (reply.startswith(b"*") and reply.startswith(b"*2\r\n", pos)):
        return _typed(reply)
    parts = [b"*%d\r\n" % (2 * int(reply[1 : pos - 2]))]
    while pos < len(reply):
        if run := _PAIR_RUN(reply, pos):
            found = _PAIRS(reply, pos, run.end())
            parts += [b"%b$%d\r\n%b\r\n" % (item, len(s), s) if s else item for item, s in found]
            pos = run.end()
        else:
            end = _values_end(reply, pos, 1)
            parts.append(_typed(reply[pos:end].removeprefix(b"*2\r\n")))
            pos = end
    return b"".join(parts)


def _streams(reply: bytes) -> bytes:
    """STREAMS: `%n` becomes `*n` of `*2`. Usually n is 1, and the rest of the reply stays in one piece."""
    if not reply.startswith(b"%"):
        return _null_array(reply)
    pos = reply.index(b"\r\n") + 2
    count = int(reply[1 : pos - 2])
    parts = [b"*%d\r\n" % count]
    for left in reversed(range(count)):
        end = _values_end(reply, pos, 2) if left else len(reply)
        parts += b"*2\r\n", _null_array(reply[pos:end])
        pos = end
    return b"".join(parts)


def _pending(reply: bytes) -> bytes:
    """PENDING: lowest and highest ID, then the consumers, an array and hence its null ("XPENDING")."""
    return _typed(reply[:-3]) + _NULL_ARRAY if reply == _EMPTY_PENDING else _typed(reply)


def _values_end(reply: bytes, pos: int, values: int) -> int:
    return ReplyScanner().advance(reply, pos, values)[0]


_DOWNGRADES: Final[Mapping[Shape, Callable[[bytes], bytes]]] = {
    Shape.PLAIN: _plain,
    Shape.TYPED: _typed,
    Shape.NULL_ARRAY: _null_array,
    Shape.MAP: _header,
    Shape.PAIRS: _pairs,
    Shape.STREAMS: _streams,
    Shape.PENDING: _pending,
}
