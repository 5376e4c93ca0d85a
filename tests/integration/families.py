"""Scripts of commands, by family, whose replies the sidecar must hand on byte for byte.

A line is a command as in redis-cli, a tuple one with arbitrary bytes. A mark before a line says how replies are
compared: none, byte for byte; `~`, numbers blanked (times, ids); `&`, lines in any order (hash tables, of the
keyspace and of commands, are rehashed meanwhile); `?`, only the type (random or measured content).
"""

from __future__ import annotations

import hashlib

Line = str | tuple[bytes | str, ...]

ALL_BYTES = bytes(range(256))
RESP_LIKE = b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n+OK\r\n-ERR no\r\n:1\r\n$-1\r\n>2\r\n_\r\n"


def sha1(script: str) -> str:
    return hashlib.sha1(script.encode()).hexdigest()


SCRIPT = "return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}"
LIBRARY = (
    "#!lua name=lib\n"
    "redis.register_function('double', function(keys, args) return args[1] * 2 end)\n"
    "redis.register_function{function_name='first', callback=function(keys) return redis.call('GET', keys[1]) end, flags={'no-writes'}}"
)

FAMILIES: dict[str, list[Line]] = {
    "strings": [
        "SET a 1", "GET a", "SET a 2 NX", "SET a 2 XX GET", "SET a 3 EX 100", "TTL a", "SET a 4 KEEPTTL", "TTL a",
        "SET a 5 PX 100000 XX", "SET n 5 GET", "SET a 6 EXAT 99999999999", "SET a 7 PXAT 99999999999000", "SETNX a 1",
        "SETNX new 1", "SETEX e 100 v", "PSETEX p 100000 v", "GETSET a old", "GETDEL a", "GETDEL a", "SET a hello",
        "GETEX a", "GETEX a EX 100", "GETEX a PERSIST", "APPEND a ' world'", "STRLEN a", "GETRANGE a 0 4", "SUBSTR a -5 -1",
        "SETRANGE a 6 redis", "SETRANGE pad 5 x", "GET pad", "MSET m1 1 m2 2", "MGET m1 m2 none", "MSETNX m1 0 m3 0",
        "MSETNX m4 4 m5 5", "INCR c", "INCRBY c 41", "DECR c", "DECRBY c 10", "INCRBYFLOAT c 0.5", "INCRBYFLOAT c -1e2",
        "INCR a", "SET big 9223372036854775807", "INCR big", "SET l1 ohmytext", "SET l2 mynewtext", "LCS l1 l2",
        "LCS l1 l2 LEN", "LCS l1 l2 IDX MINMATCHLEN 4 WITHMATCHLEN", "GET none", "set lower 1", "Get lower", "gEt lower",
    ],
    "hashes": [
        "HSET h a 1 b 2 c 3", "HSET h a 9", "HMSET h d 4", "HGET h a", "HGET h none", "HMGET h a none b", "HGETALL h", "HKEYS h",
        "HVALS h", "HLEN h", "HSTRLEN h a", "HEXISTS h a", "HEXISTS h none", "HSETNX h a 1", "HSETNX h e 5", "HINCRBY h a 5",
        "HINCRBYFLOAT h a 1.25", "HINCRBY h f 1", "HDEL h a none", "HSCAN h 0", "HSCAN h 0 MATCH b* COUNT 100", "HGETALL none",
        "HSET one f v", "HRANDFIELD one", "HRANDFIELD one 1 WITHVALUES", "HRANDFIELD one -2", "HRANDFIELD none",
        "HSET h a", "HINCRBY h b x",
    ],
    "lists": [
        "RPUSH l a b c d e", "LPUSH l z", "LPUSHX none a", "RPUSHX l f", "LLEN l", "LRANGE l 0 -1", "LINDEX l 0", "LINDEX l 99",
        "LINSERT l BEFORE c bb", "LINSERT l AFTER none x", "LSET l 0 y", "LSET l 99 y", "LREM l 1 bb", "LTRIM l 0 4", "LPOS l c",
        "LPOS l c COUNT 0", "LPOP l", "RPOP l", "LPOP l 2", "RPOP none", "LPOP none 2", "RPUSH l 1 2 3 4", "RPOPLPUSH l m",
        "LMOVE l m RIGHT LEFT", "LMOVE none m LEFT LEFT", "BLPOP l 0", "BRPOP l 0", "RPUSH l 5 6 7", "BLMOVE l m LEFT RIGHT 0",
        "BRPOPLPUSH l m 0", "LMPOP 2 none m LEFT COUNT 2", "BLMPOP 0 1 m RIGHT", "BLPOP none 0.01", "BRPOP none 0.01",
        "BLMOVE none m LEFT RIGHT 0.01", "BRPOPLPUSH none m 0.01", "BLMPOP 0.01 1 none LEFT", "BLPOP l -1", "BLPOP l x",
        "RPUSH s 3 1 2", "SORT s", "SORT s DESC LIMIT 0 2", "SORT s BY nosort", "SORT s STORE sorted", "LRANGE sorted 0 -1",
        "SORT_RO s ALPHA", "RPUSH words b a", "SORT words",
    ],
    "sets": [
        "SADD s a b c", "SADD s a", "SCARD s", "SISMEMBER s a", "SMISMEMBER s a x", "SMEMBERS s", "SREM s a x", "SADD t b c d",
        "SINTER s t", "SINTERCARD 2 s t LIMIT 1", "SINTERSTORE i s t", "SUNION s t", "SUNIONSTORE u s t", "SDIFF t s",
        "SDIFFSTORE d t s", "SMOVE s t b", "SMOVE s t none", "SADD one x", "SRANDMEMBER one", "SRANDMEMBER one 5",
        "SRANDMEMBER one -2", "SPOP one", "SPOP none", "SPOP none 3", "SADD i 1 2 3", "SSCAN i 0", "SMEMBERS none", "SADD n 3 1 2",
        "SMEMBERS n", "SPOP n 10",
    ],
    "sorted sets": [
        "ZADD z 1 a 2 b 3 c 4.5 d", "ZADD z XX CH 9 a 1 q", "ZADD z GT CH 3 b", "ZADD z INCR 1.5 b", "ZADD z NX INCR 1 b",
        "ZADD z inf x -inf y", "ZADD z nan x", "ZSCORE z x", "ZSCORE z none", "ZMSCORE z a none", "ZCARD z", "ZCOUNT z -inf (5",
        "ZRANGE z 0 -1", "ZRANGE z 0 -1 WITHSCORES", "ZRANGE z (1 +inf BYSCORE LIMIT 0 2", "ZRANGE z 0 1 REV WITHSCORES",
        "ZRANGEBYSCORE z 1 9 WITHSCORES LIMIT 0 2", "ZREVRANGE z 0 1 WITHSCORES", "ZREVRANGEBYSCORE z +inf -inf", "ZRANK z b",
        "ZREVRANK z b", "ZRANK z none", "ZRANK z b WITHSCORE", "ZINCRBY z 2 a", "ZREM z y none", "ZADD lex 0 a 0 b 0 c 0 d",
        "ZRANGEBYLEX lex [a (c", "ZREVRANGEBYLEX lex + -", "ZLEXCOUNT lex - +", "ZREMRANGEBYLEX lex [a [a", "ZRANGE lex [b + BYLEX",
        "ZRANGESTORE st z 0 1", "ZADD w 1 a 5 c", "ZUNION 2 z w WITHSCORES", "ZUNION 2 z w WEIGHTS 2 3 AGGREGATE MAX",
        "ZUNIONSTORE u 2 z w", "ZINTER 2 z w WITHSCORES", "ZINTERCARD 2 z w", "ZINTERSTORE i 2 z w AGGREGATE MIN",
        "ZDIFF 2 z w WITHSCORES", "ZDIFFSTORE df 2 z w", "ZPOPMIN z", "ZPOPMAX z 2", "ZPOPMIN none", "ZADD bz 1 a 2 b 3 c 4 d",
        "BZPOPMIN none bz 0", "BZPOPMAX bz 0", "BZPOPMIN none 0.01", "BZPOPMAX none 0.01", "ZMPOP 1 bz MIN", "BZMPOP 0 1 bz MAX",
        "BZMPOP 0.01 1 none MIN", "ZADD one 1 m", "ZRANDMEMBER one", "ZRANDMEMBER one -2 WITHSCORES", "ZSCAN w 0",
        "ZREMRANGEBYRANK w 0 0", "ZREMRANGEBYSCORE w -inf +inf", "ZADD z x y", "ZADD prec 0.1 a 3.0000000000000004 b 1e300 c",
        "ZRANGE prec 0 -1 WITHSCORES",
    ],
    "streams": [
        "XADD s 1-1 a 1", "XADD s 2-1 a 2 b 3", "XADD s 2-1 a 2", "~ XADD auto * f v", "XADD none NOMKSTREAM 1-1 a b",
        "XADD s MAXLEN ~ 100 3-1 c 4", "XLEN s", "XRANGE s - +", "XRANGE s (1-1 + COUNT 1", "XREVRANGE s + - COUNT 1",
        "XREAD COUNT 2 STREAMS s 0", "XREAD STREAMS s none 0 0", "XREAD STREAMS s $", "XREAD BLOCK 10 STREAMS s $",
        "XREAD BLOCK 0 STREAMS s 0", "XGROUP CREATE s g 0", "XGROUP CREATE s g 0", "XGROUP CREATE m g $ MKSTREAM",
        "XGROUP CREATECONSUMER s g idle", "XREADGROUP GROUP g c1 COUNT 1 STREAMS s >", "XREADGROUP GROUP g c2 STREAMS s >",
        "XREADGROUP GROUP g c1 STREAMS s 0", "XREADGROUP GROUP g c1 STREAMS s >", "XREADGROUP GROUP g c1 BLOCK 10 STREAMS s >",
        "XREADGROUP GROUP none c STREAMS s >", "XPENDING s g", "~ XPENDING s g - + 10", "~ XPENDING s g - + 10 c1", "XACK s g 1-1 9-9",
        "XCLAIM s g c3 0 2-1 JUSTID", "XCLAIM s g c3 0 3-1", "XAUTOCLAIM s g c4 0 0 COUNT 1", "XAUTOCLAIM s g c4 0 0 JUSTID",
        "XINFO STREAM s", "~ XINFO STREAM s FULL", "XINFO GROUPS s", "~ XINFO CONSUMERS s g", "XINFO STREAM none", "XINFO HELP",
        "XGROUP SETID s g 0", "XGROUP DELCONSUMER s g c3", "XGROUP DESTROY s g", "XGROUP HELP", "XDEL s 1-1 9-9", "XSETID s 9-9",
        "XTRIM s MAXLEN 1", "XTRIM s MINID 9", "XLEN s", "XADD s 0-0 a b", "XADD s 1-1 a", "XREAD STREAMS s",
        "XRANGE s - + COUNT -5", "XREAD COUNT 1 BLOCK x STREAMS s 0",
    ],
    "bitmaps": [
        "SETBIT b 7 1", "SETBIT b 100 1", "GETBIT b 7", "GETBIT b 8", "BITCOUNT b", "BITCOUNT b 0 0", "BITCOUNT b 0 5 BIT",
        "BITPOS b 1", "BITPOS b 0 0 -1", "BITOP NOT n b", "BITOP AND a b n", "BITOP OR o b n", "BITOP XOR x b n", "GET n",
        "BITFIELD f INCRBY i5 100 1 GET u4 0", "BITFIELD f OVERFLOW FAIL INCRBY u2 102 9", "BITFIELD_RO f GET u8 0",
        "BITFIELD_RO f SET u8 0 1", "SETBIT b -1 1", "SETBIT b 0 2", "BITOP NOT n b b",
    ],
    "hyperloglog": [
        "PFADD p a b c", "PFADD p a", "PFCOUNT p", "PFADD q c d", "PFCOUNT p q", "PFMERGE r p q", "PFCOUNT r", "GET p",
        "PFDEBUG ENCODING p", "PFDEBUG GETREG q", "SET s x", "PFADD s a", "PFCOUNT none",
    ],
    "geo": [
        "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania", "GEOADD g NX CH 13 38 Palermo", "GEODIST g Palermo Catania",
        "GEODIST g Palermo Catania km", "GEODIST g Palermo none", "GEOHASH g Palermo none", "GEOPOS g Palermo none",
        "GEORADIUS g 15 37 200 km WITHDIST WITHCOORD ASC", "GEORADIUS g 15 37 200 km STORE st", "GEORADIUS_RO g 15 37 200 km WITHHASH",
        "GEORADIUSBYMEMBER g Palermo 200 km", "GEORADIUSBYMEMBER_RO g Palermo 200 km COUNT 1",
        "GEOSEARCH g FROMLONLAT 15 37 BYBOX 400 400 km ASC WITHCOORD WITHDIST WITHHASH", "GEOSEARCH g FROMMEMBER Palermo BYRADIUS 1 m",
        "GEOSEARCHSTORE d g FROMLONLAT 15 37 BYRADIUS 200 km STOREDIST", "ZRANGE d 0 -1 WITHSCORES", "GEOADD g 999 0 x",
    ],
    "keys": [
        "SET a 1", "SET b 2", "EXISTS a b none a", "TYPE a", "TYPE none", "RENAME a c", "RENAME none x", "RENAMENX c b", "RENAMENX c a",
        "COPY a d", "COPY a d", "COPY a d REPLACE", "COPY a a", "TOUCH a none", "UNLINK d", "DEL b none", "RANDOMKEY", "DBSIZE",
        "EXPIRE a 100", "TTL a", "~ PTTL a", "EXPIRE a 200 NX", "EXPIRE a 200 XX", "PEXPIRE a 100000", "EXPIREAT a 99999999999", "EXPIRETIME a",
        "PEXPIREAT a 99999999999123", "PEXPIRETIME a", "PERSIST a", "PERSIST a", "TTL a", "TTL none", "EXPIRE none 1", "EXPIRE a x",
        "SET gone v PXAT 1", "GET gone", "EXPIRE a -1", "GET a", "MSET k1 1 k2 2 k3 3 x1 4", "& KEYS *", "& KEYS k?", "& SCAN 0 COUNT 1000",
        "& SCAN 0 MATCH k* COUNT 1000 TYPE string", "SCAN x", "SCAN 0 COUNT 0", "OBJECT ENCODING k1", "OBJECT REFCOUNT x1",
        "~ OBJECT IDLETIME k1", "OBJECT FREQ k1", "OBJECT ENCODING none", "OBJECT HELP", "MEMORY USAGE k1", "MEMORY USAGE none",
        "FLUSHDB", "DBSIZE", "FLUSHDB ASYNC", "FLUSHALL SYNC", "FLUSHALL x", "RANDOMKEY", "EXPIRE a 10 GT LT",
    ],
    "databases": [
        "SET a 0", "SELECT 1", "GET a", "SET a 1", "SELECT 2", "SET b 2", "MOVE b 1", "MOVE b 1", "SWAPDB 0 1", "SELECT 0", "GET a",
        "GET b", "SELECT 1", "GET a", "DBSIZE", "COPY a z DB 5", "SELECT 5", "& KEYS *", "SELECT 99", "SELECT -1", "SELECT x", "SELECT 1x",
        "SELECT 01", "SELECT 99999999999999999999", "SELECT", "SELECT 1 2", "SELECT ''", "SELECT ' 1'", "GET z", "MOVE z 99", "MOVE z 5", "SWAPDB 0 99",
        "SWAPDB 0 x", "FLUSHDB", "DBSIZE", "SELECT 0", "& KEYS *", "FLUSHALL",
    ],
    "scripts": [
        "EVAL 'return 1' 0", "EVAL 'return {1,2,{3,\"x\"},false,\"y\"}' 0", f'EVAL "{SCRIPT}" 1 k v', f"EVALSHA {sha1(SCRIPT)} 1 k v",
        "EVALSHA ffffffffffffffffffffffffffffffffffffffff 0", "SCRIPT LOAD 'return 7'", f"SCRIPT EXISTS {sha1('return 7')} ff",
        f"EVALSHA {sha1('return 7')} 0", f"EVALSHA_RO {sha1('return 7')} 0", "EVAL_RO 'return redis.call(\"GET\", KEYS[1])' 1 k",
        "EVAL_RO 'return redis.call(\"SET\", KEYS[1], 1)' 1 k", "EVAL 'return redis.call(\"NOSUCH\")' 0", "EVAL 'syntax error' 0",
        "EVAL 'return redis.error_reply(\"MY error\")' 0", "EVAL 'return redis.status_reply(\"FINE\")' 0", "EVAL 'return redis.pcall(\"INCR\", \"k\", 1)' 0",
        "EVAL 'redis.setresp(3); return redis.call(\"HGETALL\", \"none\")' 0", "EVAL 'return 3.99' 0", "EVAL 'return nil' 0",
        "EVAL 'return {double=3.5}' 0", "EVAL 'return {map={a=1}}' 0", "EVAL 'return true' 0", "EVAL 'return cjson.encode({1,2})' 0",
        "EVAL 'return string.rep(\"x\", 300)' 0", "EVAL 'return 1' -1", "EVAL 'return 1' x", "EVAL 'return 1' 5 a", "SCRIPT KILL", "SCRIPT HELP",
        "SCRIPT NOSUCH", "SCRIPT FLUSH SYNC", f"EVALSHA {sha1('return 7')} 0", "SCRIPT FLUSH", "SCRIPT FLUSH x", "SCRIPT EXISTS",
        "EVAL 'return redis.call(\"SELECT\", 3)' 0", "EVAL 'redis.call(\"SELECT\", 3) return redis.call(\"SET\", \"a\", 1)' 0", "DBSIZE",
        "EVAL 'return redis.call(\"BLPOP\", \"none\", 0)' 0",
    ],
    "functions": [
        ("FUNCTION", "LOAD", LIBRARY), ("FUNCTION", "LOAD", LIBRARY), ("FUNCTION", "LOAD", "REPLACE", LIBRARY), "FCALL double 0 21", "SET k v",
        "FCALL first 1 k", "FCALL_RO first 1 k", "FCALL_RO double 0 1", "FCALL none 0", "FUNCTION LIST", "FUNCTION LIST LIBRARYNAME lib WITHCODE",
        "FUNCTION STATS", "FUNCTION DUMP", "FUNCTION KILL", "FUNCTION HELP", "FUNCTION DELETE lib", "FUNCTION DELETE lib", "FUNCTION FLUSH",
        "FUNCTION RESTORE x", "FUNCTION LOAD x", "FUNCTION NOSUCH",
    ],
    "publishing": [
        "PUBLISH c m", "PUBSUB CHANNELS", "PUBSUB NUMSUB c", "PUBSUB NUMPAT", "SPUBLISH c m", "PUBSUB SHARDCHANNELS", "PUBSUB SHARDNUMSUB c", "PUBSUB HELP",
        "PUBLISH c", "PUBSUB NOSUCH",
    ],
    "command table": [
        "& COMMAND", "COMMAND COUNT", "COMMAND INFO get set nosuch", "COMMAND GETKEYS MSET a b c d", "COMMAND GETKEYS GET", "COMMAND GETKEYS PING",
        "COMMAND GETKEYS EVAL 'return 1' 2 a b c", "COMMAND GETKEYSANDFLAGS SET a b", "COMMAND DOCS get", "& COMMAND LIST FILTERBY PATTERN xinfo*", "COMMAND HELP",
        "COMMAND NOSUCH", "& COMMAND INFO",
    ],
    "configuration": [
        "CONFIG GET maxmemory*", "CONFIG SET maxmemory-policy allkeys-lfu", "CONFIG GET maxmemory-policy", "SET f 1", "~ OBJECT FREQ f", "OBJECT IDLETIME f",
        "CONFIG SET maxmemory-policy noeviction", "CONFIG GET hash-* set-*", "CONFIG GET nosuch", "CONFIG SET nosuch 1", "CONFIG SET hz x", "CONFIG SET port",
        "CONFIG RESETSTAT", "CONFIG REWRITE", "CONFIG HELP", "CONFIG NOSUCH", "CONFIG SET maxmemory 1", "SET oom 1", "CONFIG SET maxmemory 0",
    ],
    "access control": [
        "ACL WHOAMI", "ACL CAT", "ACL CAT geo", "ACL CAT nosuch", "ACL LIST", "ACL USERS", "ACL GETUSER default", "ACL GETUSER none", "ACL SETUSER u on >pw ~k* +get",
        "ACL GETUSER u", "ACL SETUSER u +nosuch", "ACL DRYRUN u GET k1", "ACL DRYRUN u SET k1 v", "ACL DELUSER u none", "? ACL GENPASS", "? ACL GENPASS 5", "ACL GENPASS x",
        "ACL LOG", "ACL LOG RESET", "ACL LOAD", "ACL SAVE", "ACL HELP", "ACL NOSUCH",
    ],
    "server": [
        "PING", "PING hi", "ECHO hi", "~ TIME", "~ LASTSAVE", "DBSIZE", "~ ROLE", "? LOLWUT", "? LOLWUT VERSION 5 1 1 1", "REPLICAOF NO ONE", "SLAVEOF NO ONE", "REPLICAOF x",
        "FAILOVER", "FAILOVER ABORT", "SAVE", "DEBUG SLEEP 0", "DEBUG NOSUCH", "DEBUG SET-ACTIVE-EXPIRE 1", "SET d 1", "? DEBUG OBJECT d", "DEBUG OBJECT none",
        "DEBUG DIGEST-VALUE d", "DEBUG PROTOCOL string", "DEBUG PROTOCOL integer", "DEBUG PROTOCOL double", "DEBUG PROTOCOL null", "DEBUG PROTOCOL array",
        "DEBUG PROTOCOL set", "DEBUG PROTOCOL map", "DEBUG PROTOCOL verbatim", "DEBUG PROTOCOL true", "DEBUG PROTOCOL false", "DEBUG PROTOCOL bignum",
        "LATENCY LATEST", "LATENCY HISTORY command", "LATENCY RESET", "? LATENCY DOCTOR", "LATENCY GRAPH command", "LATENCY HELP", "? LATENCY HISTOGRAM set",
        "LATENCY HISTOGRAM none", "? MEMORY DOCTOR", "MEMORY HELP", "? MEMORY MALLOC-STATS", "MEMORY PURGE", "? MEMORY STATS", "MEMORY NOSUCH", "MODULE LIST", "MODULE LOAD /nosuch",
        "MODULE LOADEX /nosuch", "MODULE UNLOAD nosuch", "MODULE HELP", "SLOWLOG RESET", "CONFIG SET slowlog-log-slower-than 0", "SLOWLOG LEN", "SET a b", "SLOWLOG LEN",
        "? SLOWLOG GET", "CONFIG SET slowlog-log-slower-than 10000", "SLOWLOG HELP", "SLOWLOG GET x", "SWAPDB 0 0", "WAIT 0 10", "WAIT x 10", "WAITAOF 0 0 10", "MIGRATE 127.0.0.1 1 k 0",
        "INFO nosuch", "? INFO commandstats", "? INFO server clients", "CLIENT HELP", "CLIENT NOSUCH", "CLIENT NO-EVICT x", "CLIENT GETREDIR", "CLIENT TRACKINGINFO", "CLIENT",
    ],
    "cluster": [
        f"CLUSTER {sub}"
        for sub in (
            "ADDSLOTS 1", "ADDSLOTSRANGE 1 2", "BUMPEPOCH", "COUNT-FAILURE-REPORTS x", "COUNTKEYSINSLOT 1", "DELSLOTS 1", "DELSLOTSRANGE 1 2", "FAILOVER", "FLUSHSLOTS", "FORGET x",
            "GETKEYSINSLOT 1 1", "HELP", "INFO", "KEYSLOT k", "LINKS", "MEET 127.0.0.1 1", "MYID", "MYSHARDID", "NODES", "REPLICAS x", "REPLICATE x", "RESET", "SAVECONFIG",
            "SET-CONFIG-EPOCH 1", "SETSLOT 1 STABLE", "SHARDS", "SLAVES x", "SLOT-STATS SLOTSRANGE 0 1", "SLOTS", "NOSUCH",
        )
    ] + ["CLUSTER"],
    "newer than the servers here": [
        "HSET h f v", "HEXPIRE h 1 FIELDS 1 f", "HEXPIREAT h 1 FIELDS 1 f", "HEXPIRETIME h FIELDS 1 f", "HPERSIST h FIELDS 1 f", "HPEXPIRE h 1 FIELDS 1 f",
        "HPEXPIREAT h 1 FIELDS 1 f", "HPEXPIRETIME h FIELDS 1 f", "HPTTL h FIELDS 1 f", "HTTL h FIELDS 1 f", "SCRIPT SHOW x", "CLIENT NO-TOUCH x", "CLIENT CAPA redirect",
    ],
    "errors": [
        "NOSUCH", "NOSUCH a b c", "nosuch 'a b'", ("NOSUCH", ALL_BYTES), ("NO\r\nSUCH",), ("",), ("", ""), "GET", "GET a b", "SET a", "SET a b c d", "SET a b EX", "SET a b EX x", "SET a b EX 0",
        "SET a b NX XX", "LPUSH l x", "GET l", "INCR l", "HGET l f", "SADD l m", "ZADD l 1 m", "XADD l * f v", "PFADD l x", "LPUSH", "SET s x", "LPUSH s x", "GETBIT l 0", "SETRANGE s -1 x",
        "SETRANGE s 9999999999 x", "INCRBY s 1", "INCRBYFLOAT s x", "LRANGE l a b", "SUBSCRIBE", "EXEC", "DISCARD", "UNWATCH", "WATCH", "MULTI x", "OBJECT", "OBJECT NOSUCH a", "XINFO", "XGROUP",
        "CONFIG", "ACL", "SCRIPT", "FUNCTION", "MEMORY", "LATENCY", "SLOWLOG", "PUBSUB", "MODULE", "DEBUG", "INFO a b c", "AUTH", "AUTH a b c", "HELLO x", "HELLO 4", "HELLO 1",
        "HELLO 2 X", "HELLO 2 AUTH a", "HELLO 2 SETNAME", "HELLO 99999999999999999999", "ECHO", "PING a b", "CLIENT ID x", "CLIENT SETNAME", "CLIENT SETNAME a b", "CLIENT SETNAME 'a b'",
        "CLIENT KILL", "CLIENT KILL 1.2.3.4:5", "CLIENT KILL ID x", "CLIENT KILL TYPE x", "CLIENT KILL NOSUCH y", "CLIENT KILL ID 1 ADDR", "CLIENT LIST TYPE x",
        "CLIENT LIST NOSUCH", "CLIENT LIST ID x", "CLIENT LIST ID", "CLIENT LIST TYPE", "CLIENT UNBLOCK", "CLIENT UNBLOCK x", "CLIENT UNBLOCK 99999999", "CLIENT UNBLOCK 1 x", "CLIENT REPLY x", "CLIENT PAUSE x", "CLIENT CACHING yes",
        "CLIENT TRACKING x", "CLIENT GETNAME x", "CLIENT INFO x", "CLIENT KILL ID 1 SKIPME x", "CLIENT KILL USER none", "CLIENT UNBLOCK 0", "CLIENT UNBLOCK -1 ERROR",
        "CLIENT SETINFO lib-name", "CLIENT TRACKING on REDIRECT 999999999", "RESET x", "READONLY", "READWRITE", "ASKING", "SORT", "EVAL", "BLPOP", "BLPOP a",
    ],
    "binary": [
        ("SET", ALL_BYTES, ALL_BYTES), ("GET", ALL_BYTES), ("STRLEN", ALL_BYTES), ("SET", "\r\n", "a\r\nb"), ("GET", "\r\n"), ("SET", "resp", RESP_LIKE), ("GET", "resp"), ("MGET", ALL_BYTES, "resp", "\r\n"),
        ("SET", "", ""), ("GET", ""), ("STRLEN", ""), ("RPUSH", "l", "", RESP_LIKE, ALL_BYTES), ("LRANGE", "l", "0", "-1"), ("HSET", "h", ALL_BYTES, RESP_LIKE, "", ""), ("HGETALL", "h"),
        ("ECHO", RESP_LIKE), ("ECHO", ""), ("ECHO", ALL_BYTES * 2), ("PING", RESP_LIKE), ("SADD", "s", ALL_BYTES), ("SMEMBERS", "s"), ("ZADD", "z", "1", RESP_LIKE), ("ZRANGE", "z", "0", "-1", "WITHSCORES"),
        ("XADD", "x", "1-1", ALL_BYTES, RESP_LIKE), ("XRANGE", "x", "-", "+"), ("EVAL", "return ARGV[1]", "0", ALL_BYTES), ("EVAL", "return {err=ARGV[1]}", "0", "E \x01\xff"),
        ("BLPOP", "l", "0"), ("BLPOP", "l", "0"), ("GETSET", ALL_BYTES, RESP_LIKE), ("APPEND", ALL_BYTES, "\0"), ("PUBLISH", ALL_BYTES, RESP_LIKE), ("CLIENT", "SETNAME", "\xff"), ("CLIENT", "GETNAME"),
        ("CLIENT", "SETNAME", "a\nb"), ("CLIENT", "SETNAME", ""), ("CLIENT", "GETNAME"), ("SELECT", "\0"), ("SELECT", "0\0"), ("AUTH", ALL_BYTES), ("HELLO", "3\0"), ("SET", "0-byte", b""), ("GET", "0-byte"),
        ("SCAN", "0", "MATCH", "\0*", "COUNT", "1000"),
    ],
    "sizes": [
        (command, *arguments)
        for size in (1, 9, 10, 99, 100, 254, 255, 256, 999, 1000, 16383, 16384, 65535, 65536, 262143, 262144, 300000)
        for command, *arguments in (("SET", f"k{size}", "x" * size), ("GET", f"k{size}"), ("ECHO", "y" * size), ("BLPOP", f"k{size}", "0"), ("RPUSH", f"l{size}", "z" * size), ("BLPOP", f"l{size}", "0"))
    ],
}  # fmt: skip
"""By family. Every script begins with an empty server and ends with its configuration as before."""

ELSEWHERE: dict[str, str] = {
    "auth": "test_state.py", "hello": "test_state.py", "multi": "test_state.py", "monitor": "test_state.py", "psubscribe": "test_state.py", "punsubscribe": "test_state.py",
    "ssubscribe": "test_state.py", "sunsubscribe": "test_state.py", "unsubscribe": "test_state.py", "quit": "test_state.py", "client|tracking": "test_state.py", "client|pause": "test_state.py",
    "client|unpause": "test_state.py", "sync": "test_state.py", "psync": "test_state.py", "replconf": "test_state.py", "script|debug": "test_state.py", "shutdown": "test_state.py",
    "dump": "test_families.py", "restore": "test_families.py", "restore-asking": "test_families.py", "bgsave": "test_families.py", "bgrewriteaof": "test_families.py",
}  # fmt: skip
"""Commands exercised by tests of their own, and where; the file must name them."""

NOT_EXERCISED: dict[str, str] = {
    "pfselftest": "takes no keys and computes for seconds, in which the server answers nobody",
}
"""Commands no test sends, and why."""
