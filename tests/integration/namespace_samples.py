"""Invocations of every command that has keys, with the data that they are about.

A line is a command as in redis-cli, a tuple one with arbitrary bytes. Before a line is run, the keys of `DATA`
that it mentions, or that one of its patterns matches, are made; nothing else exists. Of `PLACEHOLDERS` the
test puts in what is known at run time only.
"""

from __future__ import annotations

import fnmatch
import hashlib

from tests.integration.wire import words

Line = str | tuple[bytes | str, ...]

RESP_LIKE = "*2\r\n$3\r\nGET\r\n$1\r\nx\r\n"
STAR = "*\r\n"
LONG = "k" * 300

DATA: dict[str, tuple[Line, ...]] = {
    "str": ("SET str hello",),
    "num": ("SET num 10",),
    "bits": ("SETBIT bits 7 1", "SETBIT bits 20 1"),
    "l1": ("SET l1 ohmytext",),
    "l2": ("SET l2 mynewtext",),
    "temp": ("SET temp v EX 100",),
    "dated": ("SET dated v PXAT 99999999999000",),
    "list": ("RPUSH list 3 1 2 5 4 6",),
    "list2": ("RPUSH list2 x y",),
    "set": ("SADD set 1 2 3",),
    "set2": ("SADD set2 2 3 4",),
    "one": ("SADD one x",),
    "words": ("SADD words red green blue",),
    "hash": ("HSET hash f 1 g two",),
    "hone": ("HSET hone f v",),
    "zset": ("ZADD zset 1 a 2 b 3 c 4.5 d",),
    "zset2": ("ZADD zset2 1 a 5 c",),
    "zone": ("ZADD zone 1 m",),
    "lex": ("ZADD lex 0 a 0 b 0 c 0 d",),
    "stream": (
        "XADD stream 1-1 a 1", "XADD stream 2-1 a 2 b 3", "XADD stream 3-1 c 4", "XGROUP CREATE stream g 0",
        "XREADGROUP GROUP g c1 COUNT 1 STREAMS stream >",
    ),
    "stream2": ("XADD stream2 5-1 a 1", "XGROUP CREATE stream2 g 0"),
    "hll": ("PFADD hll a b c",),
    "hll2": ("PFADD hll2 c d",),
    "geo": ("GEOADD geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",),
    **{f"w_{n}": (f"SET w_{n} {9 - n}",) for n in range(1, 7)},
    **{f"h_{n}": (f"HSET h_{n} f name{n}",) for n in range(1, 5)},
    "k*[x]?": (("SET", "k*[x]?", "glob"),),
    "": (("SET", "", "nameless"),),
    "GET": ("SET GET word",),
    RESP_LIKE: (("SET", RESP_LIKE, "frames"),),
    STAR: (("SET", STAR, "star"),),
    LONG: (("SET", LONG, "long"),),
}  # fmt: skip
"""What makes each key. Its name appears in its lines as a whole argument, and nothing else is called so."""

PLACEHOLDERS = ("{dump}", "{port}")
"""A payload of DUMP, and the port of another server."""

SCRIPT = "redis.call('INCR', KEYS[1]) return {redis.call('GET', KEYS[1]), ARGV[1], #KEYS}"
READING = "return redis.call('STRLEN', KEYS[1])"
LIBRARY = (
    "#!lua name=lib\n"
    "redis.register_function('bump', function(keys, args) return redis.call('INCRBY', keys[1], args[1]) end)\n"
    "redis.register_function{function_name='first', flags={'no-writes'},"
    " callback=function(keys) return redis.call('GET', keys[1]) end}"
)


def sha1(script: str) -> str:
    return hashlib.sha1(script.encode()).hexdigest()


LINES: tuple[Line, ...] = (
    # strings
    "APPEND str x", "APPEND none x", "APPEND list x", "GET str", "GET none", "GET list", "GET ''", ("GET", "k*[x]?"), ("GET", RESP_LIKE),
    ("GET", STAR), ("GET", LONG), "get GET", "GET temp", "GETDEL str", "GETDEL none", "GETEX str EX 100", "GETEX temp PERSIST", "GETEX none",
    "GETRANGE str 1 3", "GETRANGE none 0 1", "GETSET str new", "GETSET none new", "INCR num", "INCR str", "INCR none", "DECR num",
    "DECRBY num 3", "INCRBY num 5", "INCRBYFLOAT num 0.5", "INCRBYFLOAT str 1", "LCS l1 l2", "LCS l1 l2 LEN", "LCS l1 l2 IDX WITHMATCHLEN",
    "STRALGO LCS KEYS l1 l2", "STRALGO LCS IDX KEYS l1 l2 WITHMATCHLEN", "STRALGO LCS STRINGS l1 l2", "MGET str none num list", "MGET str str",
    ("MGET", "", "k*[x]?", RESP_LIKE, STAR, LONG), "MGET str", "MSET str 1 new 2", ("MSET", STAR, "1", RESP_LIKE, "2"), "MSET str 1 new", "MSETNX new1 1 new2 2",
    "MSETNX str 1 new 2", "PSETEX new 100000 v", "PSETEX str x v", "SET new v", "SET str v GET", "SET str v NX", "SET str v EX 100 XX",
    "SET temp v KEEPTTL", "SET new GET GET", ("SET", RESP_LIKE, RESP_LIKE), ("SET", "k*[x]?", "*"), "SET str v EX", "SETEX new 100 v", "SETNX new v", "SETNX str v",
    "SETRANGE str 2 xx", "SETRANGE new 3 x", "STRLEN str", "STRLEN none", "STRLEN set", "SUBSTR str 0 1",
    # bitmaps
    "BITCOUNT bits", "BITCOUNT bits 0 0", "BITCOUNT none", "BITFIELD num GET u8 0 INCRBY u4 0 1", "BITFIELD bits GET u8 0", "BITFIELD none SET u8 0 7",
    "BITFIELD_RO bits GET u8 0", "BITFIELD_RO none GET u8 0", "BITOP AND new bits str", "BITOP NOT bits bits", "BITOP OR new none", "BITOP XOR new str num bits",
    "BITPOS bits 1", "BITPOS none 1", "GETBIT bits 7", "GETBIT none 7", "SETBIT bits 3 1", "SETBIT new 3 1",
    # keys of any kind
    "COPY str new", "COPY str num", "COPY str num REPLACE", "COPY str str DB 1", "COPY none new", "COPY stream new", "COPY words new", "COPY str str",
    "DEL str none list", "DEL none", "DUMP str", "DUMP none", "DUMP list", "DUMP zset", "EXISTS str none str", "EXPIRE str 100", "EXPIRE none 100", "EXPIRE str -1",
    "EXPIREAT str 99999999999", "EXPIRETIME dated", "EXPIRETIME none", "EXPIRETIME str", "MOVE str 1", "MOVE none 1", "MOVE str 99", "MOVE str 0",
    "OBJECT ENCODING str", "OBJECT ENCODING list", "OBJECT ENCODING none", "OBJECT FREQ str", "OBJECT FREQ none", "OBJECT IDLETIME str", "OBJECT IDLETIME none", "OBJECT REFCOUNT str",
    "OBJECT REFCOUNT none", "MEMORY USAGE str", "MEMORY USAGE list SAMPLES 0", "MEMORY USAGE none", "PERSIST temp", "PERSIST str", "PEXPIRE str 100000", "PEXPIREAT str 99999999999000",
    "PEXPIRETIME dated", "PEXPIRETIME none", "PTTL temp", "PTTL none", "PTTL str", "RENAME str new", "RENAME str num", "RENAME none new", "RENAME str str", "RENAMENX str new",
    "RENAMENX str num", "RENAMENX none new", ("RESTORE", "new", "0", "{dump}"), ("RESTORE", "str", "0", "{dump}"), ("RESTORE", "str", "100000", "{dump}", "REPLACE"),
    ("RESTORE", "new", "0", "bad"), ("RESTORE-ASKING", "new", "0", "{dump}"), ("RESTORE-ASKING", "str", "0", "{dump}"), "TOUCH str none num", "TTL temp", "TTL none", "TTL str",
    "TYPE list", "TYPE none", "UNLINK str none list",
    "MIGRATE 127.0.0.1 {port} str 1 5000", "MIGRATE 127.0.0.1 {port} none 1 5000", "MIGRATE 127.0.0.1 {port} '' 1 5000 COPY KEYS str list none", "MIGRATE 127.0.0.1 {port} '' 1 5000 REPLACE KEYS str",
    "MIGRATE 127.0.0.1 {port} stream 1 5000 COPY REPLACE", "MIGRATE 127.0.0.1 {port} '' 1 5000", "MIGRATE 127.0.0.1 1 str 0 100", "MIGRATE 127.0.0.1 {port} str 1 5000 KEYS num",
    # lists
    "BLMOVE list list2 LEFT RIGHT 0", "BLMOVE none list2 LEFT RIGHT 0.01", "BLMPOP 0 2 none list LEFT COUNT 2", "BLMPOP 0.01 1 none LEFT", "BLPOP none list 0", "BLPOP list 0",
    "BLPOP none 0.01", "BLPOP str 0", ("BLPOP", "none*", "list2", "list", "0"), "BRPOP none list 0", "BRPOP list list2 0", "BRPOP none 0.01", "BRPOPLPUSH list list2 0", "BRPOPLPUSH none list2 0.01",
    "LINDEX list 1", "LINDEX none 1", "LINSERT list BEFORE 2 new", "LLEN list", "LLEN none", "LMOVE list list2 LEFT RIGHT", "LMOVE none list2 LEFT RIGHT", "LMPOP 2 none list LEFT",
    "LMPOP 1 list RIGHT COUNT 2", "LMPOP 1 none LEFT", "LMPOP 2 str list LEFT", "LPOP list", "LPOP list 2", "LPOP none", "LPOP none 2", "LPOS list 5", "LPOS list 5 COUNT 0", "LPUSH list x y",
    "LPUSH new x", "LPUSH str x", "LPUSHX list x", "LPUSHX none x", "LRANGE list 0 -1", "LRANGE none 0 -1", "LREM list 1 5", "LSET list 0 x", "LSET none 0 x", "LTRIM list 1 2", "RPOP list",
    "RPOP list 2", "RPOP none", "RPOPLPUSH list list2", "RPOPLPUSH none list2", "RPOPLPUSH list list", "RPUSH list x", "RPUSH new x y", "RPUSHX list x", "RPUSHX none x",
    "SORT list", "SORT list DESC LIMIT 0 2", "SORT list BY w_*", "SORT list BY w_* GET w_* GET #", "SORT set BY h_*->f ALPHA GET h_*->f", "SORT list BY nosort GET w_* STORE new",
    "SORT list GET w_* STORE list2", "SORT list STORE list", "SORT words ALPHA", "SORT none STORE list2", "SORT list BY w_* STORE new STORE list2", "SORT str", "SORT_RO list",
    "SORT_RO list BY w_* GET # GET w_*", "SORT_RO set BY h_*->f ALPHA", "SORT_RO none",
    # sets
    "SADD set 9", "SADD new 1 2", "SADD str 1", "SCARD set", "SCARD none", "SDIFF set set2", "SDIFF none set", "SDIFFSTORE new set set2", "SDIFFSTORE set none set2", "SINTER set set2",
    "SINTER set none", "SINTERCARD 2 set set2", "SINTERCARD 2 set set2 LIMIT 1", "SINTERSTORE new set set2", "SINTERSTORE set set none", "SISMEMBER set 1", "SISMEMBER none 1", "SMEMBERS set",
    "SMEMBERS words", "SMEMBERS none", "SMISMEMBER set 1 9", "SMOVE set set2 1", "SMOVE none set 1", "SPOP one", "SPOP one 3", "SPOP none", "SPOP none 1", "SRANDMEMBER one", "SRANDMEMBER one -2",
    "SRANDMEMBER none", "SREM set 1 9", "SSCAN set 0", "SSCAN none 0", "SSCAN set 0 MATCH * COUNT 10", "SUNION set set2", "SUNION none", "SUNIONSTORE new set set2", "SUNIONSTORE set set2 none",
    # hashes
    "HDEL hash f none", "HEXISTS hash f", "HGET hash f", "HGET none f", "HGET str f", "HGETALL hash", "HGETALL none", "HINCRBY hash f 2", "HINCRBY hash g 2", "HINCRBYFLOAT hash f 1.5", "HKEYS hash",
    "HLEN hash", "HMGET hash f none g", "HMSET hash f 2", "HMSET new a b", "HRANDFIELD hone", "HRANDFIELD hone 1 WITHVALUES", "HRANDFIELD none", "HSCAN hash 0", "HSCAN none 0", "HSET hash f 2 i 3",
    "HSET new a b", "HSETNX hash f 2", "HSETNX hash i 2", "HSTRLEN hash g", "HVALS hash",
    "HEXPIRE hash 100 FIELDS 1 f", "HEXPIREAT hash 99999999999 FIELDS 1 f", "HEXPIRETIME hash FIELDS 1 f", "HPERSIST hash FIELDS 1 f", "HPEXPIRE hash 100000 FIELDS 1 f",
    "HPEXPIREAT hash 99999999999000 FIELDS 1 f", "HPEXPIRETIME hash FIELDS 1 f", "HPTTL hash FIELDS 1 f", "HTTL hash FIELDS 1 f",
    # sorted sets
    "BZMPOP 0 2 none zset MIN COUNT 1", "BZMPOP 0.01 1 none MAX", "BZPOPMAX none zset 0", "BZPOPMAX none 0.01", "BZPOPMIN zset none 0", "BZPOPMIN zset zset2 0", "BZPOPMIN none 0.01", "ZADD zset 9 e",
    "ZADD zset XX CH 9 a", "ZADD zset INCR 1 a", "ZADD new 1 a", "ZADD str 1 a", "ZCARD zset", "ZCOUNT zset 1 3", "ZDIFF 2 zset zset2", "ZDIFF 2 zset zset2 WITHSCORES", "ZDIFFSTORE new 2 zset zset2",
    "ZDIFFSTORE zset 1 none", "ZINCRBY zset 1 a", "ZINTER 2 zset zset2 WITHSCORES", "ZINTER 2 zset none", "ZINTERCARD 2 zset zset2", "ZINTERCARD 2 zset zset2 LIMIT 1", "ZINTERSTORE new 2 zset zset2 AGGREGATE MAX",
    "ZLEXCOUNT lex - +", "ZMPOP 2 none zset MIN", "ZMPOP 1 zset MAX COUNT 2", "ZMPOP 1 none MIN", "ZMSCORE zset a none", "ZPOPMAX zset", "ZPOPMAX zset 2", "ZPOPMIN zset", "ZPOPMIN none", "ZRANDMEMBER zone",
    "ZRANDMEMBER zone -2 WITHSCORES", "ZRANDMEMBER none", "ZRANGE zset 0 -1 WITHSCORES", "ZRANGE zset (1 +inf BYSCORE LIMIT 0 2", "ZRANGE none 0 -1", "ZRANGEBYLEX lex [a (c", "ZRANGEBYSCORE zset 1 3 WITHSCORES",
    "ZRANGESTORE new zset 0 1", "ZRANGESTORE zset2 none 0 1", "ZRANK zset b", "ZRANK none b", "ZREM zset a none", "ZREMRANGEBYLEX lex [a [b", "ZREMRANGEBYRANK zset 0 1", "ZREMRANGEBYSCORE zset 1 2",
    "ZREVRANGE zset 0 -1", "ZREVRANGE zset 0 1 WITHSCORES", "ZREVRANGEBYLEX lex + -", "ZREVRANGEBYSCORE zset +inf 2", "ZREVRANK zset b", "ZSCAN zset 0", "ZSCAN none 0", "ZSCORE zset d", "ZSCORE none a", "ZUNION 2 zset zset2",
    "ZUNION 2 zset zset2 WEIGHTS 2 3 WITHSCORES", "ZUNIONSTORE new 2 zset zset2 WEIGHTS 1 2", "ZUNIONSTORE zset 2 zset2 set", "ZUNIONSTORE new 2 zset", "ZUNIONSTORE new x zset",
    # streams
    "XACK stream g 1-1 9-9", "XACK none g 1-1", "XADD stream 9-1 a b", "XADD stream 1-1 a b", "XADD new NOMKSTREAM 1-1 a b", "XADD stream MAXLEN 1 9-1 a b", "XADD new * a b", "XAUTOCLAIM stream g c2 0 0",
    "XAUTOCLAIM stream g c2 0 0 COUNT 1 JUSTID", "XAUTOCLAIM stream none c2 0 0", "XCLAIM stream g c2 0 1-1", "XCLAIM stream g c2 0 1-1 JUSTID", "XCLAIM none g c2 0 1-1", "XDEL stream 1-1 9-9", "XGROUP CREATE stream h 0",
    "XGROUP CREATE stream g 0", "XGROUP CREATE none h 0", "XGROUP CREATE new h $ MKSTREAM", "XGROUP CREATECONSUMER stream g c9", "XGROUP CREATECONSUMER stream none c9", "XGROUP DELCONSUMER stream g c1",
    "XGROUP DELCONSUMER stream none c1", "XGROUP DESTROY stream g", "XGROUP DESTROY stream none", "XGROUP DESTROY none g", "XGROUP SETID stream g 2-1", "XGROUP SETID stream none 0", "XINFO CONSUMERS stream g",
    "XINFO CONSUMERS stream none", "XINFO GROUPS stream", "XINFO GROUPS none", "XINFO STREAM stream", "XINFO STREAM stream FULL", "XINFO STREAM none", "XLEN stream", "XLEN none", "XPENDING stream g",
    "XPENDING stream g - + 10", "XPENDING stream g - + 10 c1", "XPENDING stream none", "XPENDING none g", "XRANGE stream - +", "XRANGE stream (1-1 + COUNT 1", "XRANGE none - +", "XREAD STREAMS stream 0",
    "XREAD COUNT 1 STREAMS stream2 stream none 0 0 0", "XREAD STREAMS stream 9-9", "XREAD BLOCK 0 STREAMS none stream 0 0", "XREAD BLOCK 1 STREAMS stream $", "XREAD STREAMS str 0", "XREAD STREAMS stream",
    "XREADGROUP GROUP g c1 STREAMS stream >", "XREADGROUP GROUP g c1 STREAMS stream 0", "XREADGROUP GROUP g c2 COUNT 1 NOACK STREAMS stream stream2 > >", "XREADGROUP GROUP g c2 BLOCK 1 STREAMS stream stream2 > >",
    "XREADGROUP GROUP g c1 STREAMS none >", "XREADGROUP GROUP none c1 STREAMS stream >", "XREADGROUP GROUP STREAMS c1 STREAMS stream >", "XREADGROUP GROUP g c1 BLOCK 1 STREAMS none >", "XREVRANGE stream + -", "XSETID stream 9-9",
    "XSETID stream 1-1", "XSETID none 1-1", "XTRIM stream MAXLEN 1", "XTRIM stream MINID 2",
    # hyperloglogs, places
    "PFADD hll x", "PFADD new x", "PFADD str x", "PFCOUNT hll", "PFCOUNT hll hll2", "PFCOUNT none", "PFMERGE new hll hll2", "PFMERGE hll hll2", "PFMERGE new", "PFMERGE hll str",
    "GEOADD geo 10 40 Rome", "GEOADD new 10 40 Rome", "GEODIST geo Palermo Catania", "GEODIST none a b", "GEOHASH geo Palermo none", "GEOPOS geo Palermo none", "GEORADIUS geo 15 37 200 km WITHDIST WITHCOORD ASC",
    "GEORADIUS geo 15 37 200 km STORE new", "GEORADIUS geo 15 37 200 km STOREDIST zset", "GEORADIUS none 15 37 200 km STORE zset", "GEORADIUS geo 15 37 200 km STORE zset STOREDIST new", "GEORADIUS_RO geo 15 37 200 km ASC",
    "GEORADIUSBYMEMBER geo Palermo 200 km ASC", "GEORADIUSBYMEMBER geo Palermo 200 km STORE new", "GEORADIUSBYMEMBER geo Palermo 200 km STORE new STOREDIST zset", "GEORADIUSBYMEMBER_RO geo Palermo 200 km ASC",
    "GEOSEARCH geo FROMLONLAT 15 37 BYRADIUS 200 km ASC", "GEOSEARCH geo FROMMEMBER Palermo BYBOX 400 400 km ASC WITHDIST", "GEOSEARCH none FROMMEMBER Palermo BYRADIUS 1 m", "GEOSEARCHSTORE new geo FROMLONLAT 15 37 BYRADIUS 200 km",
    "GEOSEARCHSTORE zset geo FROMMEMBER Palermo BYRADIUS 200 km STOREDIST",
    # scripts and functions
    f'EVAL "{SCRIPT}" 1 num x', f'EVAL "{SCRIPT}" 1 str x', "EVAL 'return 7' 0", f'EVAL "{SCRIPT}" 2 num x', "EVAL 'redis.call(\"MSET\", KEYS[1], 1, KEYS[2], 2)' 2 str new", f'EVAL_RO "{READING}" 1 str', f'EVAL_RO "{SCRIPT}" 1 num x',
    f"EVALSHA {sha1(SCRIPT)} 1 num x", f"EVALSHA {sha1('none')} 1 num", f"EVALSHA_RO {sha1(READING)} 1 str", "FCALL bump 1 num 5", "FCALL bump 1 str 5", "FCALL none 1 str", "FCALL_RO first 1 str", "FCALL_RO bump 1 num 1",
    # others
    "WATCH str none", "WATCH str",
)  # fmt: skip
"""What is run. In a pipeline each comes twice, so blocking ones find enough data, or wait for a hundredth of a second."""

WHOLE_LINES: tuple[Line, ...] = (
    "DBSIZE", "KEYS *", "KEYS k*", "KEYS k\\*\\[x\\]\\?", "KEYS [a-m]*", "KEYS none", "KEYS", "KEYS a b", "SCAN 0 COUNT 10000", "SCAN 0 MATCH s* COUNT 10000", "SCAN 0 COUNT 10000 TYPE list",
    "SCAN 0 MATCH x MATCH s* COUNT 10000", "SCAN x", "SCAN 0 MATCH", "SCAN 0 NOSUCH 1", "SCAN", "RANDOMKEY", "FLUSHDB", "FLUSHDB SYNC", "FLUSHALL", "FLUSHALL ASYNC", "FLUSHDB x", "FLUSHDB SYNC x", "DBSIZE x",
)  # fmt: skip
"""Commands on all keys, run with all of `DATA`."""


def split(line: Line) -> list[bytes]:
    """The arguments of a line."""
    if isinstance(line, str):
        return words(line)
    return [part if isinstance(part, bytes) else part.encode() for part in line]


def needed(arguments: list[bytes]) -> list[str]:
    """The keys of `DATA` that a command mentions, or that one of its patterns matches."""
    texts = {argument.decode("latin-1") for argument in arguments[1:]}
    patterns = [text.partition("->")[0] for text in texts if "*" in text and text not in DATA]
    return [name for name in DATA if name in texts or any(fnmatch.fnmatchcase(name, text) for text in patterns)]
