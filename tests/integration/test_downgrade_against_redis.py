"""A downgraded RESP3 reply is, byte for byte, what the same server says in RESP2.

Every script runs twice on one server, on a RESP2 and on a RESP3 connection, each time from an emptied state:
those of `families`, and the edge cases below, written and marked as there. Random commands are asked about
data of one element.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import hiredis
import pytest

from proxy.client.dispatch import Dispatcher, Route
from proxy.resp.commands import Command, CommandTable
from proxy.resp.downgrade import _SHAPES, PLAIN, Shape, downgrade, lower_nulls, shape_of
from tests.harness import Process
from tests.integration.families import ALL_BYTES, FAMILIES, RESP_LIKE, Line
from tests.integration.test_families import comparable, run, split
from tests.integration.wire import Wire, bulk, words

NO_SHAPE = {
    "exec": "its reply is those of other commands; it is stateless only outside of a transaction, an error",
    "lpop": "with a count: Redis 6.2.0 to 6.2.6 wrote another null",
    "rpop": "with a count: Redis 6.2.0 to 6.2.6 wrote another null",
    "zrank": "WITHSCORE: Redis 7.2",
    "module|list": "no module at hand",
    "script|show": "Valkey",
    **dict.fromkeys(
        ("hexpire", "hexpireat", "hexpiretime", "hpersist", "hpexpire", "hpexpireat", "hpexpiretime", "hpttl", "httl"), "Redis 7.4"
    ),
    **dict.fromkeys(("acl", "client", "cluster", "config", "function", "latency", "memory", "module", "object", "pubsub", "script", "slowlog", "xgroup", "xinfo"), "without a sub-command: an error"),
    **{
        f"cluster|{sub}": "no cluster at hand"
        for sub in words(
            "addslots addslotsrange bumpepoch count-failure-reports countkeysinslot delslots delslotsrange failover flushslots forget getkeysinslot help info keyslot links meet myid"
            " myshardid nodes replicas replicate reset saveconfig set-config-epoch setslot shards slaves slot-stats slots"
        )
        for sub in (sub.decode(),)
    },
}  # fmt: skip
"""Stateless commands in the scripts that have no shape, or not with the arguments there, and why."""

ONLY_ERRORS = {
    "acl|load": "no file for it", "acl|save": "no file for it", "config|rewrite": "no file for it",
    "module|load": "no module", "module|loadex": "no module", "module|unload": "no module",
    "bgsave": "a status; it forks", "bgrewriteaof": "a status; it forks", "restore-asking": "a status, as RESTORE", "discard": "an error, or the transaction's",
    "stralgo": "Redis 6 only",
}  # fmt: skip
"""Commands with a shape of which the newest server at hand was not seen to give a reply, and why."""

SCORES = "-0 0 0.1 3.0000000000000004 1e300 -1e300 1e17 123456789012345680 9007199254740993 12345678901234567890 1e-5 5e-324 inf -inf 1.7976931348623157e308 1e21 -1.5"
VALUES = (
    "false", "true", "nil", "1", "-1.9", "'x'", "{}", "{1,2,nil,4}", "{1,false,true,{false,{true}}}", "{ok='FINE'}", "{err='MY error'}", "{1,{err='E x'},{ok='S'}}", "{double=0/0}", "{double=1/0}", "{double=-1/0}",
    "{double=-0.0}", "{double=3.0000000000000004}", "{double=1e300}", "{map={a=1}}", "{map={a={map={b=false}}}}", "{set={a=true}}", "{set={}}", "{map={}}", "{1,{set={x=true}},{map={y={double=1.5}}},false}",
    "{big_number='123456789012345678901234567890'}", "{big_number='1\\r\\n2'}", "{verbatim_string={format='txt',string='hello'}}", "{verbatim_string={format='mkd',string=''}}", "{verbatim_string={format='x',string='_\\r\\n'}}",
    "redis.call('LPOP','none','2')", "redis.call('HGETALL','h')", "redis.call('ZRANGE','z','0','-1','WITHSCORES')", "redis.call('ZSCORE','z','a')", "redis.call('SMEMBERS','s')", "redis.call('GET','none')",
    "redis.call('GEOPOS','none','a','b')", "redis.call('XREAD','STREAMS','none','0')", "{redis.call('ZSCORE','z','none'),redis.call('SISMEMBER','s','a'),redis.pcall('GET','h')}", "redis.call('HMGET','h','a','x')",
    "redis.call('CONFIG','GET','maxmemory')", "redis.call('ZMSCORE','z','a','x','b')", "redis.call('XRANGE','none','-','+')", "redis.call('INFO','nosuch')", "redis.call('MEMORY','DOCTOR')",
)  # fmt: skip
SETUP: list[Line] = ["HSET h a 1", "ZADD z 1.5 a inf b", "SADD s a"]


def scripts(call: str) -> list[Line]:
    """Every value, returned by a script (or function body) in either of the protocols a script can choose."""
    return [(*words(call), f"{choice} return {value}", "0") for choice in ("", "redis.setresp(3)") for value in VALUES]


def functions() -> list[Line]:
    """The same as functions of a library."""
    names = {f"f{n}": body for n, body in enumerate(line[-2] for line in scripts("EVAL"))}
    code = "#!lua name=lib\n" + "\n".join(f"redis.register_function{{function_name='{name}',flags={{'no-writes'}},callback=function() {body} end}}" for name, body in names.items() if "LPOP" not in str(body))
    return [("FUNCTION", "LOAD", code), *(f"{call} {name} 0" for name in names for call in ("FCALL", "FCALL_RO"))]


EDGES: dict[str, list[Line]] = {
    "strings": [
        "GETEX none", "GETDEL none", "GETSET new x", "SET a 1 GET", "SET a 2 GET", "SET a 3 XX GET", "SET nx 1 NX GET", "SET a 4 NX", "SUBSTR none 0 1", "MGET none", "MGET none none a none", "SET null '_'", ("SET", "rn", "_\r\n"), "MGET null rn none",
        "INCRBYFLOAT f 1e17", "INCRBYFLOAT f 0.1", "LCS none none", "LCS none none LEN", "LCS none none IDX", "MSET k1 ohmytext k2 mynewtext", "LCS k1 k2 IDX", "LCS k1 k2 IDX WITHMATCHLEN", "STRALGO LCS KEYS k1 k2", "STRALGO LCS KEYS k1 k2 IDX WITHMATCHLEN", "STRALGO LCS STRINGS a b LEN", "DUMP none", "STRLEN none",
    ],
    "hashes": [
        "HGETALL none", "HMGET none a b", "HRANDFIELD none", "HRANDFIELD none 2", "HRANDFIELD none 2 WITHVALUES", "HSET h a 1", "HRANDFIELD h", "HRANDFIELD h 0", "HRANDFIELD h 5", "HRANDFIELD h -3", "HRANDFIELD h 5 WITHVALUES", "HRANDFIELD h -3 WITHVALUES", "HRANDFIELD h 0 WITHVALUES",
        "HKEYS none", "HVALS none", "HSCAN none 0", "HINCRBYFLOAT h a 0.1", "HINCRBYFLOAT h a 1e17", ("HSET", "b", "*2\r\n", "x" * 300), "HRANDFIELD b 1 WITHVALUES", ("HSET", "c", "y" * 300, ",1\r\n"), "HRANDFIELD c -2 WITHVALUES", "HGETALL b", "HSET h a", "SET s x", "HGETALL s", "HRANDFIELD s 1 WITHVALUES",
    ],
    "lists": [
        "LPOP none", "RPOP none", "RPUSH l a b c", "LPOP l", "RPOP l", "LINDEX none 0", "LMOVE none none LEFT LEFT", "RPOPLPUSH none none", "LPOS none a", "LPOS l none", "LPOS l none COUNT 1", "LPOS none a COUNT 1", "LRANGE none 0 -1", "LMPOP 1 none LEFT", "LMPOP 2 none l LEFT COUNT 5", "LMPOP 1 l LEFT",
        "RPUSH n 1 2 3", "SORT n GET none*", "SORT n BY w* GET # GET none*", "SORT n GET h*->f", "SORT_RO n GET none*", "SORT none", "LINSERT none BEFORE a b", "SET s x", "LPOP s", "LMPOP 1 s LEFT",
    ],
    "sets": [
        "SPOP none", "SPOP none 1", "SPOP none 0", "SRANDMEMBER none", "SRANDMEMBER none 1", "SRANDMEMBER none -1", "SADD s a", "SRANDMEMBER s 0", "SRANDMEMBER s 3", "SRANDMEMBER s -3", "SPOP s 0", "SINTER none s", "SUNION none none", "SDIFF none", "SDIFF s", "SMISMEMBER none a b", "SSCAN none 0",
        "SADD i 1 2", "SMEMBERS i", "SUNION i s", "SINTER i i", "SPOP i 5", "SPOP s", "SET str x", "SMEMBERS str", "SUNION str", "SINTERCARD 1 none",
    ],
    "sorted sets": [
        ("ZADD", "z", *(part for n, score in enumerate(SCORES.split()) for part in (score, f"m{n}"))), "ZRANGE z 0 -1 WITHSCORES", "ZRANGE z 0 -1", "ZRANGE z 0 -1 REV", "ZRANGEBYSCORE z -inf +inf WITHSCORES", "ZRANGEBYSCORE z -inf +inf", "ZREVRANGEBYSCORE z +inf -inf WITHSCORES", "ZREVRANGEBYSCORE z +inf -inf",
        "ZREVRANGE z 0 -1 WITHSCORES", "ZREVRANGE z 0 -1", "ZRANGE z -inf +inf BYSCORE WITHSCORES", "ZRANGE z 5 1 WITHSCORES", "ZRANGE none 0 -1 WITHSCORES", "ZRANGE none 0 -1", *(f"ZSCORE z m{n}" for n in range(17)), "ZMSCORE z " + " ".join(f"m{n} x" for n in range(17)), "ZMSCORE none a b", "ZSCORE none a",
        "ZINCRBY z 0.1 m3", "ZINCRBY z inf m13", "ZINCRBY none -0 a", "ZADD z INCR 1 m2", "ZADD z XX INCR 1 none", "ZADD z NX INCR 1 m2", "ZADD z GT INCR -1 m2", "ZADD z GT CH 99 m2", "ZDIFF 2 z none WITHSCORES", "ZDIFF 2 z none", "ZDIFF 1 none WITHSCORES", "ZUNION 2 z z WITHSCORES", "ZUNION 1 z", "ZUNION 1 none WITHSCORES",
        "ZINTER 2 z z WITHSCORES AGGREGATE MAX", "ZINTER 2 z z", "ZINTER 2 z none WITHSCORES", "ZRANGEBYLEX none - +", "ZSCAN z 0", "ZPOPMIN none", "ZPOPMIN none 2", "ZPOPMAX none", "ZPOPMIN z 0", "ZPOPMIN z", "ZPOPMAX z", "ZPOPMIN z 1", "ZPOPMAX z 3", "ZPOPMIN z 99", "ZADD one 2.5 m", "ZRANDMEMBER none", "ZRANDMEMBER none 2",
        "ZRANDMEMBER none 2 WITHSCORES", "ZRANDMEMBER one", "ZRANDMEMBER one 0", "ZRANDMEMBER one 3", "ZRANDMEMBER one -3", "ZRANDMEMBER one 3 WITHSCORES", "ZRANDMEMBER one -3 WITHSCORES", "ZRANK none m", "ZRANK one x", "ZREVRANK one x", "ZMPOP 1 none MIN", "ZMPOP 2 none one MAX COUNT 3", "ZADD a 1 x 2 y", "ZMPOP 1 a MIN",
        ("ZADD", "odd", "1", "", "2", "*2\r\n", "3", "x" * 255, "4", "y" * 256, "5", RESP_LIKE, "6", "z" * 1000, "7", ALL_BYTES), "ZRANGE odd 0 -1 WITHSCORES", "ZRANGE odd 0 -1", "ZPOPMIN odd 3", "ZPOPMAX odd", "ZDIFF 1 odd WITHSCORES", "SET s x", "ZRANGE s 0 -1 WITHSCORES", "ZMPOP 1 s MIN", "ZADD s INCR 1 a",
    ],
    "streams": [
        *(f"XADD {key} {n}-1 f {n} g {'v' * 10 * n}" for key in "st" for n in range(1, 6)), "XREAD STREAMS s t 0 0", "XREAD COUNT 1 STREAMS t s none 0 2 0", "XREAD STREAMS none 0", "XREAD BLOCK 1 STREAMS none 0", "XREAD STREAMS s t 9 2", ("XADD", "b", "1-1", "*2\r\n", "_\r\n", "x" * 300, RESP_LIKE), "XREAD STREAMS b s 0 0",
        "XRANGE none - +", "XRANGE s - + COUNT 0", "XRANGE s - + COUNT 1", "XREVRANGE s + - COUNT 0", "XREVRANGE s + -", "XGROUP CREATE s g 0", "XGROUP CREATE t g 0", "XPENDING s g", "XPENDING s g - + 10", "XREADGROUP GROUP g c STREAMS s t > >", "XREADGROUP GROUP g c STREAMS s t > >", "XPENDING s g", "~ XPENDING s g - + 10", "~ XPENDING s g - + 10 c",
        "~ XPENDING s g IDLE 0 - + 10", "XPENDING s g - + 10 nobody", "XDEL s 1-1 2-1 3-1", "XREADGROUP GROUP g c STREAMS s 0", "XREADGROUP GROUP g c COUNT 2 STREAMS s t 0 0", "XREADGROUP GROUP g c STREAMS s 9", "XCLAIM s g d 0 1-1 4-1", "XCLAIM s g d 0 2-1 FORCE JUSTID", "XCLAIM s g d 0 2-1 5-1", "XAUTOCLAIM s g e 0 0", "XAUTOCLAIM s g e 0 0 JUSTID", "XAUTOCLAIM t g e 0 0 COUNT 2",
        "XINFO STREAM s", "~ XINFO STREAM s FULL", "XINFO GROUPS s", "~ XINFO CONSUMERS s g", "XTRIM t MAXLEN 0", "XINFO STREAM t", "~ XINFO STREAM t FULL", "XINFO GROUPS t", "XGROUP CREATE t h 9-9", "XINFO GROUPS t", "XGROUP CREATE m g $ MKSTREAM", "XINFO STREAM m", "XINFO GROUPS m", "XINFO CONSUMERS m g", "XAUTOCLAIM m g c 0 0", "XPENDING m g", "XPENDING none g", "XADD none NOMKSTREAM * a b", "XREAD STREAMS s", "SET str x", "XREAD STREAMS str 0", "XRANGE str - +",
    ],
    "bits and cardinalities": ["BITFIELD f OVERFLOW FAIL INCRBY u2 0 9 GET u2 0 INCRBY u2 0 9", "BITFIELD none GET u8 0", "BITFIELD_RO none GET u8 0", "BITFIELD f", "BITPOS none 1", "BITCOUNT none", "PFADD p a", "PFDEBUG ENCODING p", "PFDEBUG DECODE p", "PFDEBUG TODENSE p", "PFDEBUG GETREG p", "PFDEBUG GETREG none", "PFCOUNT none"],
    "geo": [
        "GEOADD g 13.361389 38.115556 a 15.087269 37.502669 b 0 0 c", "GEOPOS none", "GEOPOS none a b", "GEOPOS g", "GEOPOS g a none b none", "GEOPOS g c", "GEOHASH none a", "GEOHASH g none a", "GEODIST none a b", "GEODIST g a none", "GEODIST g a b", "GEORADIUS none 15 37 200 km", "GEORADIUS none 15 37 200 km WITHCOORD", "GEORADIUS g 50 50 1 m WITHDIST",
        *(f"GEOSEARCH g FROMLONLAT 15 37 BYRADIUS 9000 km ASC {options}" for options in ("", "WITHDIST", "WITHHASH", "WITHCOORD", "WITHDIST WITHHASH WITHCOORD", "COUNT 1", "COUNT 1 ANY WITHCOORD")), "GEOSEARCH none FROMLONLAT 0 0 BYRADIUS 1 m", "GEOSEARCH g FROMMEMBER none BYRADIUS 1 m", "GEOSEARCH none FROMMEMBER a BYRADIUS 1 m",
        "GEORADIUSBYMEMBER g a 200 km WITHCOORD WITHHASH WITHDIST DESC", "GEORADIUSBYMEMBER_RO g a 200 km WITHDIST", "GEORADIUS_RO g 15 37 200 km WITHCOORD", "GEORADIUS g 15 37 200 km STOREDIST d", "ZRANGE d 0 -1 WITHSCORES", "ZRANGE g 0 -1 WITHSCORES",
    ],
    "keys": ["RANDOMKEY", "SET k v", "RANDOMKEY", "OBJECT ENCODING none", "OBJECT REFCOUNT none", "OBJECT IDLETIME none", "OBJECT FREQ none", "CONFIG SET maxmemory-policy allkeys-lfu", "~ OBJECT FREQ k", "CONFIG SET maxmemory-policy noeviction", "MEMORY USAGE none", "MEMORY USAGE k SAMPLES 0", "TYPE none", "TTL none", "KEYS none*", "SCAN 0 MATCH none*", "MIGRATE 127.0.0.1 1 none 0 10", "SWAPDB 0 1", "SWAPDB 0 1", "TOUCH none", "BGSAVE x"],
    "scripts": [*SETUP, *scripts("EVAL"), *scripts("EVAL_RO"), "EVAL 'return {KEYS,ARGV}' 1 k v", "EVAL 'local t={} for i=1,100 do t={t} end return t' 0", "EVAL 'return redis.call(\"NOSUCH\")' 0", "SCRIPT EXISTS x"],
    "functions": [*SETUP, *functions(), "FUNCTION LIST", "FUNCTION LIST WITHCODE", "FUNCTION LIST LIBRARYNAME none", "FUNCTION STATS", "FUNCTION FLUSH", "FUNCTION LIST", "FUNCTION STATS", "FUNCTION DELETE none"],
    "server": [
        "COMMAND", "COMMAND DOCS", "COMMAND DOCS nosuch", "COMMAND DOCS set xadd nosuch", "COMMAND LIST", "COMMAND LIST FILTERBY ACLCAT geo", "COMMAND LIST FILTERBY MODULE none", "COMMAND COUNT", "COMMAND GETKEYS XREAD STREAMS a b 0 0", "COMMAND GETKEYSANDFLAGS XREAD STREAMS a b 0 0", "COMMAND GETKEYSANDFLAGS GET a", "CONFIG GET *", "CONFIG GET none none2",
        "ACL SETUSER x on nopass ~* &c* -@all +get (+set ~k*)", "ACL GETUSER x", "ACL SETUSER x on nopass ~a ~b -@all +get", "ACL GETUSER x", "ACL GETUSER none", "ACL LIST", "ACL USERS", "ACL DRYRUN x SET a b", "ACL DRYRUN x GET none", "ACL DELUSER x", "AUTH nobody wrong", "? ACL LOG", "? ACL LOG 1", "ACL LOG RESET", "ACL LOG", "ACL CAT",
        "CONFIG SET latency-monitor-threshold 1", "DEBUG SLEEP 0.003", "? LATENCY LATEST", "? LATENCY HISTORY command", "? LATENCY GRAPH command", "? LATENCY DOCTOR", "LATENCY RESET", "LATENCY LATEST", "LATENCY HISTORY none", "LATENCY GRAPH none", "CONFIG SET latency-monitor-threshold 0", "? LATENCY HISTOGRAM config|get",
        "CONFIG SET slowlog-log-slower-than 0", "? SLOWLOG GET", "? SLOWLOG GET 1", "CONFIG SET slowlog-log-slower-than 10000", "SLOWLOG RESET", "SLOWLOG GET", "? MEMORY STATS", "SELECT 1", "SET a b", "? MEMORY STATS", "SELECT 0", "? MEMORY DOCTOR", "? MEMORY MALLOC-STATS", "MEMORY PURGE", "~ ROLE", "? LOLWUT", "? LOLWUT VERSION 6", "LOLWUT VERSION 5 1 1 1", "? LOLWUT VERSION 5",
        "CLIENT GETNAME", "CLIENT SETNAME x", "CLIENT GETNAME", "~ CLIENT ID", "? CLIENT INFO", "? CLIENT LIST", "CLIENT LIST TYPE replica", "? CLIENT LIST TYPE pubsub", "CLIENT PAUSE 0", "CLIENT KILL ID 999999999", "CLIENT UNBLOCK 999999999", "CLIENT HELP", "? INFO", "INFO nosuch", "MODULE HELP", "MODULE LIST", "PING x", "EXEC", "DISCARD", "UNWATCH",
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def dispatcher() -> Dispatcher:
    return Dispatcher(CommandTable.load())


def shape_for(dispatcher: Dispatcher, arguments: list[bytes]) -> tuple[str, Shape | None]:
    """The command's name and shape; commands of no table (Redis 6's STRALGO) by the name as it is."""
    command = dispatcher.find(arguments)
    if command is None:
        name = arguments[0].decode("latin-1").lower()
        command = Command(name, -1, frozenset(), (), False, True, True)
    return command.name, shape_of(command, arguments)


def structure(value: object) -> object:
    """What a decoded reply is made of, for content that differs each time."""
    return [structure(item) for item in value] if isinstance(value, list) else type(value)


def decoded(reply: bytes) -> object:
    reader = hiredis.Reader()
    reader.feed(reply)
    return reader.gets()


def same(mark: str, ours: bytes, theirs: bytes) -> bool:
    """Whether two RESP2 replies are the same, as far as the mark says that they can be."""
    if mark == "?" and theirs[:1] != b"-":
        return structure(decoded(ours)) == structure(decoded(theirs))
    return comparable(mark, ours) == comparable(mark, theirs)


ALL_FAMILIES = (*FAMILIES, *(f"{name}, edges" for name in EDGES))
ANSWERED: dict[str, dict[str, set[str]]] = defaultdict(dict)
"""By the server's binary and family: the commands seen to answer something else than an error."""


class TestDowngradedIsWhatRedisSaysInRESP2:
    @pytest.mark.parametrize("family", ALL_FAMILIES)
    def test_byte_for_byte(self, redis: Process, redis_binary: str, dispatcher: Dispatcher, family: str) -> None:
        lines = FAMILIES[family] if family in FAMILIES else EDGES[family.removesuffix(", edges")]
        marks, script = zip(*(split(line) for line in lines), strict=True)
        resp2 = run(redis, redis.port, 2, list(script))
        resp3 = run(redis, redis.port, 3, list(script))
        answered: set[str] = set()
        for mark, arguments, theirs, reply in zip(marks, script, resp2, resp3, strict=True):
            name, shape = shape_for(dispatcher, arguments)
            if shape is None:
                stateless = dispatcher.find(arguments) is not None and dispatcher.route(arguments) is Route.SHARED
                assert not stateless or name in NO_SHAPE, f"{name} has no shape"
                continue
            ours = downgrade(reply, shape)
            if name.startswith("command"):
                mark = "&"  # looking a sub-command up rehashes the table of sub-commands, and so changes their order
            assert same(mark, ours, theirs), (arguments, shape, reply, ours, theirs)
            if name in PLAIN:
                assert shape is Shape.PLAIN
                assert lower_nulls(reply, 0) == ours
            if reply[:1] != b"-":
                answered.add(name)
        ANSWERED[redis_binary][family] = answered

    def test_every_command_with_a_shape_was_seen_to_answer(self, redis: Process, redis_binary: str) -> None:
        """Only after all of the above have passed, and not on Redis 6, which lacks many commands."""
        with Wire(redis.port) as wire:
            if ANSWERED[redis_binary].keys() != set(ALL_FAMILIES) or wire.line("FUNCTION STATS")[:1] == b"-":
                pytest.skip("Redis 6, or not all families were run")
        by_hand = {"restore", "function|restore"}
        assert set(_SHAPES) - set().union(*ANSWERED[redis_binary].values()) - by_hand == set(ONLY_ERRORS)


class TestPayloads:
    def test_restore(self, redis: Process) -> None:
        replies = []
        for protocol in (2, 3):
            with Wire(redis.port, protocol) as wire:
                wire.line("SET k v")
                dump = bulk(wire.line("DUMP k"))
                replies.append([wire.ask("RESTORE", "copy", 0, dump, "REPLACE"), wire.ask("RESTORE", "k", 0, dump), wire.ask("RESTORE", "x", 0, "bad")])
        assert [downgrade(reply, Shape.PLAIN) for reply in replies[1]] == replies[0]

    def test_function_restore(self, redis: Process) -> None:
        replies = []
        for protocol in (2, 3):
            with Wire(redis.port, protocol) as wire:
                dump = wire.line("FUNCTION DUMP")
                if dump[:1] == b"-":
                    pytest.skip("Redis 6 has no functions")
                replies.append([dump, wire.ask("FUNCTION", "RESTORE", bulk(dump), "FLUSH")])
        assert [downgrade(reply, Shape.TYPED) for reply in replies[1]] == replies[0]


@pytest.fixture
def pair(redis: Process) -> Iterator[tuple[Wire, Wire]]:
    with Wire(redis.port, 2) as two, Wire(redis.port, 3) as three:
        yield two, three


class TestLargeReplies:
    """Asked on both connections of one state, whose hash tables have one order."""

    @pytest.mark.parametrize("size", [3, 254, 255, 256, 5000])
    def test_many_members(self, pair: tuple[Wire, Wire], dispatcher: Dispatcher, size: int) -> None:
        two, three = pair
        members = [b"%d:" % n + (ALL_BYTES * 20)[: size if n % 3 else 5] for n in range(600)]
        two.ask("HSET", "h", *(part for member in members for part in (member, member)))
        two.ask("ZADD", "z", *(part for n, member in enumerate(members) for part in (n / 7, member)))
        two.ask("SADD", "s", *members)
        for n, member in enumerate(members[:200]):
            two.ask("XADD", f"x{n % 2}", f"{n + 1}-1", member, member)
        two.ask("GEOADD", "g", *(part for n in range(100) for part in (n, n / 2, n)))
        for line in (
            "HGETALL h", "HKEYS h", "HSCAN h 0 COUNT 1000", "ZRANGE z 0 -1 WITHSCORES", "ZRANGE z 0 -1", "ZDIFF 1 z WITHSCORES", "ZSCAN z 0 COUNT 1000", "SMEMBERS s", "SUNION s s", "XRANGE x0 - +", "XREAD STREAMS x0 0", "XREAD STREAMS x0 x1 0 0", "XINFO STREAM x0 FULL",
            "GEOSEARCH g FROMLONLAT 0 0 BYRADIUS 9000 km WITHCOORD WITHDIST", "GEOPOS g " + " ".join(str(n) for n in range(0, 200, 3)), "ZMSCORE z " + " ".join(str(n) for n in range(100)),
        ):  # fmt: skip
            _, shape = shape_for(dispatcher, words(line))
            assert shape is not None
            assert downgrade(three.line(line), shape) == two.line(line), line


class TestSubscribers:
    def test_pubsub(self, redis: Process, pair: tuple[Wire, Wire], dispatcher: Dispatcher) -> None:
        two, three = pair
        with Wire(redis.port) as subscriber:
            for line in ("SUBSCRIBE c", "PSUBSCRIBE p*", "SSUBSCRIBE s"):
                subscriber.line(line)
            for line in ("PUBSUB CHANNELS", "PUBSUB CHANNELS x*", "PUBSUB NUMSUB", "PUBSUB NUMSUB c none", "PUBSUB NUMPAT", "PUBSUB SHARDCHANNELS", "PUBSUB SHARDNUMSUB s none", "PUBLISH c m", "SPUBLISH s m", "CLIENT LIST TYPE pubsub"):
                _, shape = shape_for(dispatcher, words(line))
                assert shape is not None
                theirs, ours = two.line(line), downgrade(three.line(line), shape)
                assert same("~" if line.startswith("CLIENT") else "", ours, theirs), line
