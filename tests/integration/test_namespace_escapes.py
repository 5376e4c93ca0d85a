"""Attempts to get out of a namespace: nobody else's data is shown or changed, whatever is said and how."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, Process, free_port, pannier, redis_server, wait_until
from tests.integration.families import RESP_LIKE
from tests.integration.test_tier_reads import Monitor, ask_all, reply
from tests.integration.wire import Argument, Wire, in_background, request, text, words

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])

OK, QUEUED, NIL, NO_LIST = b"+OK\r\n", b"+QUEUED\r\n", b"$-1\r\n", b"*0\r\n"
SECRET = b"for nobody else"
REFUSALS = (b"-ERR pannier: ", b"-ERR unknown command")
FOREIGN = ["acme", "acm", "acme2", "aXb", "ab", "a", "x", "[x", "a*", "other", "b\\"]
"""Namespaces of others: textually near those tested, and what these would be as glob patterns."""
ODD = ["ac", "a*b", "a?", "[x]", "b\\c", "a^[-]", "über", "x->y", "#"]
"""Namespaces tested."""


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis"), "--notify-keyspace-events", "KEA") as process, Wire(process.port) as wire:
        assert wire.line("ACL SETUSER walled on >pw ~acme:* &* +@all") == OK
        yield process


@pytest.fixture(scope="module")
def houses(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """One pannier that has a listener for each odd namespace, and three that differ in their options."""
    directory = tmp_path_factory.mktemp("pannier")
    url = f"redis://127.0.0.1:{upstream.port}"
    ports = {name: free_port() for name in ["acme", *ODD]}
    listeners = [word for name, port in ports.items() for word in ("--listen", f"127.0.0.1:{port}?namespace={quoted(name)}")]
    with contextlib.ExitStack() as stack:
        many = stack.enter_context(pannier(url, directory, "--auth", "none", "--canary-interval", "0", *listeners))
        found = {name: Process(many.popen, port, many.log) for name, port in ports.items()}
        found[""] = many
        walled = url.replace("127", "walled:pw@127")
        for key, where, options in (
            ("channels", url, ["--namespace", "acme", "--namespace-channels", "true"]),
            ("walled", walled, ["--namespace", "acme"]),
            ("refuse", url, ["--namespace", "acme", "--namespace-scripts", "refuse"]),
            ("allow", url, ["--namespace", "acme", "--namespace-scripts", "allow"]),
        ):
            found[key] = stack.enter_context(pannier(where, directory, "--auth", "none", "--canary-interval", "0", *options))
        yield found
        for process in found.values():
            assert "Traceback" not in process.output and "internal error" not in process.output


def quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


class Foreign:
    """What belongs to others, in two databases; `unchanged` compares all of it."""

    def __init__(self, port: int, names: list[str]) -> None:
        self.wire = Wire(port)
        assert self.wire.line("FLUSHALL") == OK
        for database in (0, 1):
            self.wire.ask("SELECT", database)
            for prefix in [name + ":" for name in names] + [""]:
                for command in (
                    ["SET", "k", SECRET], ["SET", "secret", SECRET], ["SET", "w_1", SECRET], ["RPUSH", "l", SECRET, "2", "1"], ["HSET", "h", "f", SECRET],
                    ["SADD", "s", SECRET], ["ZADD", "z", 1, SECRET], ["XADD", "x", "1-1", "f", SECRET], ["PFADD", "p", SECRET],
                ):  # fmt: skip
                    assert self.wire.ask(command[0], prefix + str(command[1]), *command[2:])[:1] in b"+:$"
        self.before = self.dump()

    def dump(self) -> dict[tuple[int, bytes], tuple[bytes, bytes]]:
        found = {}
        for database in (0, 1):
            self.wire.ask("SELECT", database)
            for key in strings(self.wire.ask("KEYS", "*")):
                if not self.mine or not key.startswith(self.mine):
                    found[database, key] = (self.wire.ask("DUMP", key), self.wire.ask("PTTL", key)[:3])
        return found

    mine = b""
    """Prefix of keys that are not looked at."""

    def unchanged(self) -> None:
        after = self.dump()
        assert after.keys() == self.before.keys()
        assert after == self.before


def strings(reply: bytes) -> list[bytes]:
    """The bulk strings in a reply, at any depth, in order."""
    found, pos = [], 0
    while pos < len(reply):
        end = reply.index(b"\r\n", pos)
        kind, size = reply[pos : pos + 1], reply[pos + 1 : end]
        pos = end + 2
        if kind in b"$=" and size != b"-1":
            found.append(reply[pos : pos + int(size)])
            pos += int(size) + 2
    return found


def scan(wire: Wire, *options: Argument) -> list[bytes]:
    """All that SCAN returns, each once."""
    found: set[bytes] = set()
    cursor = b"0"
    while True:
        cursor, *keys = strings(sent(wire, "SCAN", cursor, *options))
        found.update(keys)
        if cursor == b"0":
            return sorted(found)


@pytest.fixture
def foreign(upstream: Process) -> Iterator[Foreign]:
    """The data of others; checked at the end of the test. `acme:` is the test's own."""
    others = Foreign(upstream.port, [name for name in FOREIGN if name != "acme"])
    others.mine = b"acme:"
    with others.wire:
        yield others
        others.unchanged()


@pytest.fixture
def house(houses: dict[str, Process], foreign: Foreign) -> Process:
    """A pannier with the namespace acme, in front of data of others."""
    return houses["acme"]


def sent(wire: Wire, *arguments: Argument) -> bytes:
    """A reply, pushes left out; whoever asks must not see what is not theirs."""
    wire.send(*arguments)
    found = reply(wire)
    assert SECRET not in found, arguments
    return found


# --- patterns, cursors, keys


PATTERNS = ["*", "?*", r"\*", "[a-z]*", "../*", "[^x]*", "*:k", "*k", "acme:*", "other:*", "*other*", "", "k*", r"\k", "[", "[k", "**", "?", "[]k]", "*\\"]


class TestPatterns:
    @both_protocols
    @pytest.mark.parametrize("name", ODD)
    def test_in_any_namespace_they_match_what_they_would_without_one(self, upstream: Process, houses: dict[str, Process], name: str, protocol: int) -> None:
        own = ["k", "w_1", "*", "other:k", name + ":k", ":", "[", "\\k", RESP_LIKE]
        others = Foreign(upstream.port, FOREIGN)
        others.mine = (name + ":").encode()
        with others.wire as direct, Wire(houses[name].port, protocol) as wire:
            direct.line("SELECT 5")
            for key in own:
                direct.ask("SET", key, "mine")
                assert wire.ask("SET", key, "mine") == OK
            for pattern in PATTERNS:
                wanted = sorted(strings(direct.ask("KEYS", pattern)))
                assert sorted(strings(sent(wire, "KEYS", pattern))) == wanted, pattern
                for options in (["MATCH", pattern], ["MATCH", "*", "MATCH", pattern], ["COUNT", "5", "MATCH", pattern, "TYPE", "string"], ["match", pattern, "count", "1000"]):
                    assert sorted(scan(wire, *options)) == wanted, options
            assert sorted(scan(wire)) == sorted(strings(direct.ask("KEYS", "*")))
            assert sent(wire, "DBSIZE") == b":%d\r\n" % len(own)
            drawn = {bytes(strings(sent(wire, "RANDOMKEY"))[0]) for _ in range(60)}
            assert drawn <= {key if isinstance(key, bytes) else key.encode() for key in own} and len(drawn) > 1
            others.unchanged()
            assert sent(wire, "FLUSHDB") == OK
            assert sent(wire, "KEYS", "*") == NO_LIST
            others.unchanged()

    def test_scan_with_the_cursors_of_others(self, house: Process, foreign: Foreign) -> None:
        with Wire(house.port) as wire:
            foreign.wire.line("SELECT 0")
            wire.pipeline([request("SET", f"k{n}", "mine") for n in range(100)], 100)
            cursors = {b"0", b"1", b"18446744073709551615", b"123456789"}
            cursor = b"0"
            for _ in range(50):
                cursor = strings(foreign.wire.ask("SCAN", cursor, "COUNT", 7))[0]
                cursors.add(cursor)
            for cursor in cursors:
                for key in strings(sent(wire, "SCAN", cursor, "COUNT", 50))[1:]:
                    assert re.fullmatch(rb"k\d+", key)
            for bad in (b"x", b"-1", b"0 MATCH *", b"0\0"):
                assert sent(wire, "SCAN", bad).startswith((b"-", b"*2"))
            for options in (["MATCH"], ["COUNT"], ["TYPE"], ["NOSUCH", "x"], ["MATCH\0x", "*"], ["MATCH", "*", "TYPE"]):
                found = sent(wire, "SCAN", 0, *options)
                assert found.startswith(b"-") or all(re.fullmatch(rb"k\d+|\d+", key) for key in strings(found)), options

    def test_randomkey_and_dbsize_among_50000_keys_of_others(self, houses: dict[str, Process], upstream: Process) -> None:
        with Wire(upstream.port) as direct, Wire(houses["acme"].port) as wire:
            direct.line("FLUSHALL")
            direct.pipeline([request("MSET", *[word for n in range(at, at + 1000) for word in (f"other:{n}", "x")]) for at in range(0, 50_000, 1000)], 50)
            assert (wire.line("RANDOMKEY"), wire.line("DBSIZE"), wire.line("KEYS *")) == (NIL, b":0\r\n", NO_LIST)
            wire.line("SET only 1")
            assert {wire.line("RANDOMKEY") for _ in range(10)} == {b"$4\r\nonly\r\n"}
            assert wire.line("DBSIZE") == b":1\r\n"
            wire.line("SET second 1")
            wait_until(lambda: len({wire.line("RANDOMKEY") for _ in range(5)}) == 2)
            assert wire.line("FLUSHALL") == OK
            assert direct.line("DBSIZE") == b":50000\r\n"
            assert direct.line("FLUSHALL") == OK


class TestCommandsOnKeys:
    @both_protocols
    def test_no_name_leads_to_a_key_of_others(self, house: Process, foreign: Foreign, protocol: int) -> None:
        names = ["other:k", "k", "acme2:k", "../other:k", ":other:k", "\0other:k", "other:k\r\n$7\r\nother:k", "{other}:k", RESP_LIKE]
        with Wire(house.port, protocol) as wire:
            for key in names:
                for command in (["GET", key], ["MGET", key, key], ["DUMP", key], ["EXISTS", key], ["TYPE", key], ["OBJECT", "ENCODING", key], ["OBJECT", "FREQ", key],
                                ["MEMORY", "USAGE", key], ["TOUCH", key], ["TTL", key], ["STRLEN", key], ["GETRANGE", key, 0, -1], ["DEL", key], ["UNLINK", key], ["PERSIST", key],
                                ["EXPIRE", key, 1], ["GETDEL", key], ["LPOP", key], ["RENAME", key, "mine"], ["COPY", key, "mine"], ["COPY", key, "mine", "DB", 1], ["MOVE", key, 1],
                                ["SORT", key], ["HGETALL", key], ["XRANGE", key, "-", "+"], ["LCS", key, "k"], ["PFCOUNT", key, "p"], ["XINFO", "STREAM", key]):  # fmt: skip
                    found = sent(wire, *command)
                    assert found[:1] == b"-" or found in (b"$-1\r\n", b"_\r\n", b":0\r\n", b":-2\r\n", b"*0\r\n", b"%0\r\n", b"+none\r\n", b"$0\r\n\r\n", b"*2\r\n$-1\r\n$-1\r\n", b"*2\r\n_\r\n_\r\n"), (command, found)

    def test_rename_copy_move_and_store_across(self, house: Process, foreign: Foreign) -> None:
        with Wire(house.port) as wire:
            wire.line("SET mine 1")
            wire.line("SADD ms a")
            wire.line("ZADD mz 1 a")
            wire.line("RPUSH ml 3 1 2")
            wire.line("GEOADD mg 1 1 a")
            for line in ("RENAME mine other:k", "SET mine 1", "RENAMENX mine other:secret", "SET mine 1", "COPY mine other:k REPLACE", "COPY mine other:k DB 1 REPLACE", "MOVE mine 1",
                         "SUNIONSTORE other:s ms", "ZUNIONSTORE other:z 1 mz", "SORT ml STORE other:l", "SORT ml BY nosort GET # STORE other:l", "GEORADIUS mg 1 1 10 km STORE other:z", "GEOSEARCHSTORE other:z mg FROMLONLAT 1 1 BYRADIUS 1 km",
                         "BITOP NOT other:k mine", "PFMERGE other:p p", "LMOVE ml other:l LEFT LEFT", "RPOPLPUSH ml other:l", "SMOVE ms other:s a", "MSET x 1 other:k 2", "MSETNX y 1 other:nx 2", "RESTORE other:k 0 x REPLACE"):  # fmt: skip
                sent(wire, *words(line))
            dump = strings(sent(wire, "DUMP", "ml"))[0]
            for key in ("other:l", "l"):
                sent(wire, "RESTORE", key, 0, dump, "REPLACE")
            for key in strings(sent(wire, "KEYS", "*")):
                assert not key.startswith(b"acme:")

    def test_sort_by_and_get_reach_nobody_else(self, house: Process, foreign: Foreign) -> None:
        with Wire(house.port) as wire:
            wire.line("RPUSH ids 1 2 3")
            wire.line("MSET w_1 30 w_2 20 w_3 10 own_1 a own_2 b own_3 c")
            wire.line("HSET h_1 f x")
            assert wire.line("SORT ids BY w_* GET own_* GET #") == b"*6\r\n$1\r\nc\r\n$1\r\n3\r\n$1\r\nb\r\n$1\r\n2\r\n$1\r\na\r\n$1\r\n1\r\n"
            assert wire.line("SORT ids BY nosort GET h_*->f") == b"*3\r\n$1\r\nx\r\n$-1\r\n$-1\r\n"
            for pattern in ("other:w_*", "other:secret*", "*", "../other:w_*", "other:h->f", "other:h*->f", "acme:w_*", "\0other:w_*"):
                for line in ("SORT ids BY nosort GET", "SORT ids GET # GET", "SORT_RO ids BY nosort GET"):
                    found = sent(wire, *words(line), pattern)
                    assert found.startswith(b"-") or set(strings(found)) <= {b"1", b"2", b"3"}, (pattern, found)
                sent(wire, "SORT", "ids", "BY", pattern)
                sent(wire, "SORT", "ids", "BY", "nosort", "GET", pattern, "STORE", "stored")
                assert set(strings(sent(wire, "LRANGE", "stored", 0, -1))) <= {b""}
                sent(wire, "SORT", "ids", "BY", "nosort", "GET", pattern, "STORE", "other:l")
            wire.ask("RPUSH", "odd", ":k", "other:secret", "cret")
            for pattern in ("*", "other*", "se*", "other:se*"):
                sent(wire, "SORT", "odd", "BY", "nosort", "GET", pattern)

    @pytest.mark.parametrize("how", ["bare key", "KEYS", "COPY REPLACE", "AUTH"])
    def test_migrate_takes_only_ones_own(self, redis_binary: str, house: Process, foreign: Foreign, directory: Path, how: str) -> None:
        with redis_server(redis_binary, directory) as target, Wire(target.port) as there, Wire(house.port) as wire:
            wire.line("SET mine 1")
            place = ["127.0.0.1", target.port]
            keys = ["other:k", "k", "secret", "l"]
            if how == "KEYS":
                sent(wire, "MIGRATE", *place, "", 0, 1000, "KEYS", *keys, "mine")
            elif how == "AUTH":
                sent(wire, "MIGRATE", *place, "k", 0, 1000, "AUTH", "keys")
                sent(wire, "MIGRATE", *place, "", 0, 1000, "AUTH2", "keys", "other:k", "KEYS", "k")
            else:
                for key in keys:
                    sent(wire, "MIGRATE", *place, key, 0, 1000, *(["COPY", "REPLACE"] if how != "bare key" else []))
            assert set(strings(there.line("KEYS *"))) <= {b"acme:mine"}

    def test_other_databases(self, house: Process, foreign: Foreign) -> None:
        with Wire(house.port) as wire:
            for database in (1, 0, 15, 1):
                assert wire.ask("SELECT", database) == OK
                assert (sent(wire, "KEYS", "*"), sent(wire, "DBSIZE"), sent(wire, "GET", "k")) == (NO_LIST, b":0\r\n", NIL)
            for line in ("SWAPDB 0 1", "swapdb 1 0"):
                assert sent(wire, *words(line)).startswith(b"-ERR pannier: ")
            wire.line("SELECT 0")
            found = ask_all(wire, ["MULTI", "SELECT 1", "GET k", "SELECT 0", "KEYS *", "EXEC"])
            assert found[-1] == b"*4\r\n+OK\r\n$-1\r\n+OK\r\n*0\r\n"


class TestFlush:
    @pytest.mark.parametrize("line", ["FLUSHDB", "FLUSHDB ASYNC", "flushdb sync", "FLUSHALL", "FLUSHALL SYNC", "FlushAll async"])
    def test_takes_the_namespaces_keys_and_disturbs_nobody(self, houses: dict[str, Process], house: Process, foreign: Foreign, line: str) -> None:
        everywhere = line.lower().startswith("flushall")
        with Wire(house.port) as wire, Wire(house.port, 3) as reader, Wire(houses["ac"].port) as other:
            for database in (2, 0):
                wire.ask("SELECT", database)
                wire.pipeline([request("SET", f"k{n}", "mine") for n in range(5000)], 5000)
            keys = [request("GET", f"k{n}") for n in range(0, 5000, 50)]
            for _ in range(3):
                reader.pipeline(keys, len(keys))
            other.line("SET n 0")
            wire.send(*words(line))
            for n in range(1, 200):
                assert other.ask("SET", "n", n) == OK
                assert text(other.ask("GET", "n")) == str(n)
            assert wire.read() == OK
            assert reader.pipeline(keys, len(keys)) == [b"_\r\n"] * len(keys), "memory has forgotten it as well"
            assert wire.line("DBSIZE") == b":0\r\n"
            wire.line("SELECT 2")
            assert wire.line("DBSIZE") == (b":0\r\n" if everywhere else b":5000\r\n")
            wire.line("FLUSHDB")
            assert other.line("FLUSHALL") == OK

    def test_bad_ones_are_refused(self, house: Process) -> None:
        with Wire(house.port) as wire:
            for line in ("FLUSHALL NOW", "FLUSHDB ASYNC SYNC", "DBSIZE x", "RANDOMKEY x"):
                assert wire.line(line).startswith(b"-ERR")


# --- the whole server


ADMINISTRATION = [
    "MONITOR", "DEBUG OBJECT other:k", "DEBUG SLEEP 0", "DEBUG JMAP", "CONFIG GET *", "CONFIG SET maxmemory 1", "CONFIG REWRITE", "CONFIG RESETSTAT", "ACL LIST", "ACL SETUSER x on", "ACL LOG", "ACL DELUSER walled", "ACL GENPASS",
    "CLUSTER INFO", "CLUSTER COUNTKEYSINSLOT 1", "CLUSTER GETKEYSINSLOT 1 10", "SLOWLOG GET", "SLOWLOG RESET", "LATENCY LATEST", "LATENCY RESET", "MODULE LIST", "MODULE LOAD /x", "SCRIPT FLUSH", "SCRIPT KILL", "SCRIPT DEBUG YES", "SHUTDOWN NOSAVE", "SHUTDOWN",
    "REPLICAOF NO ONE", "SLAVEOF no one", "PSYNC ? -1", "SYNC", "REPLCONF ack 0", "SAVE", "BGSAVE", "BGREWRITEAOF", "LASTSAVE", "ROLE", "SWAPDB 0 1", "CLIENT PAUSE 1", "CLIENT UNPAUSE", "MEMORY STATS", "MEMORY DOCTOR", "MEMORY PURGE", "MEMORY MALLOC-STATS",
    "PFDEBUG GETREG other:p", "PFSELFTEST", "RESTORE-ASKING other:k 0 x", "FAILOVER", "NOSUCH other:k", "FUNCTION LIST", "FUNCTION FLUSH", "FUNCTION DUMP", "CLIENT NOSUCH", "XGROUP NOSUCH other:x",
]  # fmt: skip
ALLOWED_OR_NOT = {"RESTORE-ASKING", "PFDEBUG"}
"""Which have a key that takes the prefix: allowed with it, or refused."""


def spellings(line: str) -> list[list[str]]:
    given = words(line)
    first = given[0].decode()
    rest = [word.decode() for word in given[1:]]
    return [[first, *rest], [first.lower(), *map(str.lower, rest)], [first.capitalize().swapcase(), *rest]]


def named(found: bytes, line: str) -> bool:
    return found.startswith(b"-") and words(line)[0].upper() in found.upper()


class TestTheWholeServer:
    @both_protocols
    @pytest.mark.parametrize("state", ["", "MULTI", "WATCH k", "CLIENT TRACKING OFF", "SUBSCRIBE c"])
    def test_is_not_theirs(self, upstream: Process, house: Process, state: str, protocol: int) -> None:
        if state == "SUBSCRIBE c" and protocol == 2:
            return  # Redis then allows next to nothing
        with Monitor(upstream) as monitor, Wire(house.port, protocol) as wire:
            for line in ADMINISTRATION:
                name = line.split()[0]
                for given in spellings(line):
                    if state.startswith("SUBSCRIBE"):
                        wire.send(*words(state))
                    elif state:
                        assert sent(wire, *words(state))[:1] != b"-"
                    found = sent(wire, *given)
                    if name not in ALLOWED_OR_NOT:
                        assert named(found, line), (given, found)
                        assert found.startswith((b"-ERR pannier: ", b"-ERR unknown command", b"-ERR unknown subcommand")), (given, found)
                    if state == "MULTI":
                        assert sent(wire, "EXEC").startswith((b"-EXECABORT", b"*1\r\n-")), given
                    elif state == "WATCH k":
                        assert sent(wire, "UNWATCH") == OK
            assert sent(wire, "ECHO", "aligned") == b"$7\r\naligned\r\n"
            # Redis does not show MONITOR a command that it refuses.
            names = {seen[0] for seen in monitor.seen()}
            refused = {line.split()[0].encode() for line in ADMINISTRATION} - {b"CLIENT", b"DEBUG", b"PFDEBUG", b"RESTORE-ASKING", b"MONITOR"}
            assert not names & refused

    def test_inline(self, house: Process) -> None:
        with Wire(house.port) as wire:
            for line in ADMINISTRATION:
                if line.split()[0] not in ALLOWED_OR_NOT:
                    wire.raw(line.encode() + b"\r\n")
                    assert named(wire.read(), line), line
            wire.raw(b"GET other:k\nKEYS *\r\n  CONFIG   GET \"dir\"\r\n")
            assert wire.read() == NIL and wire.read() == NO_LIST and wire.read().startswith(b"-ERR pannier: CONFIG")

    def test_names_that_only_redis_takes_for_one(self, house: Process, foreign: Foreign) -> None:
        """Redis compares names up to a zero byte, if they happen to fall into the same slot of its table."""
        with Wire(house.port) as wire:
            for name, rest in (("CONFIG", ["GET", "port"]), ("FLUSHALL", []), ("GET", ["k"]), ("KEYS", ["*"]), ("MONITOR", [])):
                tried = [request(name.encode() + b"\0%d" % n, *rest) for n in range(1500)]
                assert all(found.startswith(b"-") for found in wire.pipeline(tried, len(tried))), name

    @pytest.mark.parametrize("line", ["CLIENT LIST", "CLIENT KILL TYPE normal", "CLIENT UNBLOCK 5", "INFO keyspace", "COMMAND COUNT"])
    def test_neither_connection_nor_redis_ends(self, house: Process, upstream: Process, line: str) -> None:
        with Wire(upstream.port) as direct:
            before = {word for word in text(direct.line("CLIENT LIST")).split() if word.startswith("id=")}
            for state in ("MULTI", "CLIENT TRACKING OFF"):
                with Wire(house.port) as wire:
                    wire.line(state)
                    assert b"name=pannier" not in sent(wire, *words(line))
                    if state == "MULTI":
                        assert b"name=pannier" not in sent(wire, "EXEC")
            after = {word for word in text(direct.line("CLIENT LIST")).split() if word.startswith("id=")}
            assert before <= after

    def test_a_browsers_request_closes_the_connection(self, house: Process, foreign: Foreign) -> None:
        with Wire(house.port) as wire:
            wire.raw(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nSET evil 1\r\n")
            with contextlib.suppress(ConnectionError):
                wire.rest()
        foreign.wire.line("SELECT 0")
        assert foreign.wire.line("EXISTS acme:evil") == b":0\r\n"


# --- scripts


READ = "return redis.call('GET', 'oth' .. 'er:k')"
WRITE = "return redis.call('SET', 'oth' .. 'er:k', 'evil')"


class TestScripts:
    WARNING = "a script runs in namespace acme"

    def test_the_wall_is_redis_acl(self, houses: dict[str, Process], house: Process, foreign: Foreign) -> None:
        walled = houses["walled"]
        with Wire(walled.port) as wire:
            assert wire.line("SET k mine") == OK
            for script in (READ, WRITE, READ.replace(".call", ".pcall"), "return redis.call('KEYS', '*')[1]"):
                found = sent(wire, "EVAL", script, 0)
                if "KEYS" not in script:
                    assert found.startswith(b"-"), script
            for script in (READ, WRITE):
                digest = text(wire.ask("SCRIPT", "LOAD", script))
                assert sent(wire, "EVALSHA", digest, 0).startswith(b"-")
                assert ask_all(wire, ["MULTI", ("EVAL", script, "0"), "EXEC"])[-1].startswith(b"*1\r\n-")
            assert wire.ask("EVAL", "return {KEYS[1], redis.call('GET', KEYS[1])}", 1, "k").endswith(b"$4\r\nmine\r\n")
            wait_until(lambda: self.WARNING in walled.output, 3)
            assert "reach keys of others" not in walled.output, "but FLUSHALL it may"
            assert "user walled, and Redis would let it empty or exchange whole databases" in walled.output

    def test_warned_of_once_if_nothing_holds_them(self, houses: dict[str, Process], house: Process) -> None:
        with Wire(house.port) as wire:
            for _ in range(3):
                assert wire.ask("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, "k", "v") == OK
            wait_until(lambda: self.WARNING in house.output, 3)
            assert house.output.count(self.WARNING) == 1
            assert wire.line("GET k") == b"$1\r\nv\r\n"

    def test_warned_of_for_each_user_and_what_it_may(self, redis_binary: str, directory: Path) -> None:
        """The documented wall is silent, whoever came before."""
        users = {
            "walled": ("~acme:* resetchannels &acme:* +@all -@admin -@dangerous +info +client +command", ""),
            "flushing": ("~acme:* &* +@all", "empty or exchange whole databases (FLUSHALL, FLUSHDB, SWAPDB): "),
            "without-acl": ("~acme:* &* +@all -@admin", "empty or exchange whole databases (FLUSHALL, FLUSHDB, SWAPDB): "),
            "reading": ("~* &* +@all -@dangerous -@admin", "reach keys of others: "),
            "by-digest": ("~* &* +@all -@dangerous -@admin -eval", "reach keys of others: "),
            "root": ("~* &* +@all", "reach keys of others, and empty or exchange whole databases (FLUSHALL, FLUSHDB, SWAPDB): "),
        }
        with redis_server(redis_binary, directory) as redis, Wire(redis.port) as direct:
            for name, (rules, _) in users.items():
                assert direct.line(f"ACL SETUSER {name} on >pw {rules}") == OK
            direct.line("SET other:k v")
            digest = text(direct.ask("SCRIPT", "LOAD", "return 1"))
            with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--namespace", "acme") as proxy, Wire(proxy.port) as wire:
                for name, (_, deeds) in users.items():
                    assert wire.line(f"AUTH {name} pw") == OK
                    for state in ("", "MULTI", "EXEC"):
                        assert not state or not wire.line(state).startswith(b"-")
                        assert not wire.line(f"EVALSHA {digest} 0").startswith(b"-")
                    said = f"{self.WARNING} as Redis' user {name}, and Redis would let it {deeds}"
                    if deeds:
                        wait_until(lambda said=said: said in proxy.output, 3)
                for name, (_, deeds) in users.items():
                    assert proxy.output.count(f"user {name},") == bool(deeds), name
            assert direct.line("GET other:k") == b"$1\r\nv\r\n"

    def test_allow_says_nothing(self, houses: dict[str, Process], house: Process) -> None:
        with Wire(houses["allow"].port) as wire:
            assert wire.ask("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, "k", "v") == OK
            assert wire.line("GET k") == b"$1\r\nv\r\n"
        assert self.WARNING not in houses["allow"].output

    @pytest.mark.parametrize("state", ["", "MULTI", "CLIENT TRACKING OFF"])
    def test_refuse(self, houses: dict[str, Process], house: Process, state: str) -> None:
        digest = "0" * 40
        with Wire(houses["refuse"].port) as wire:
            for line in (f"EVAL '{WRITE.replace(chr(39), chr(34))}' 0", f"eval_ro '{READ.replace(chr(39), chr(34))}' 0", f"EVALSHA {digest} 0", f"EVALSHA_RO {digest} 0", "FCALL f 0", "FCALL_RO f 0", "SCRIPT LOAD 'return 1'"):
                if state:
                    wire.line(state)
                found = sent(wire, *words(line))
                assert found.startswith(b"-ERR pannier: ") and line.split()[0].upper().encode() in found, (line, found)
                if state == "MULTI":
                    assert sent(wire, "EXEC").startswith(b"-EXECABORT")
            big = request("EVAL", WRITE + " --" + "x" * 400_000, 0) + request("PING")
            with in_background(lambda: wire.raw(big)):
                assert (wire.read().startswith(b"-ERR pannier: EVAL"), wire.read()) == (True, b"+PONG\r\n")

    def test_functions(self, houses: dict[str, Process], house: Process, foreign: Foreign) -> None:
        library = "#!lua name=lib\nredis.register_function('get', function(keys, args) return redis.call('GET', keys[1]) end)\nredis.register_function('steal', function(keys, args) return redis.call('GET', args[1]) end)"
        if foreign.wire.ask("FUNCTION", "LOAD", "REPLACE", library).startswith(b"-"):
            return  # before Redis 7
        with Wire(houses["walled"].port) as walled, Wire(house.port) as wire:
            wire.line("SET k mine")
            for one in (walled, wire):
                assert one.line("FCALL get 1 k") == b"$4\r\nmine\r\n"
                assert sent(one, "FUNCTION", "DELETE", "lib").startswith(b"-ERR pannier: FUNCTION")
                assert sent(one, "FUNCTION", "LOAD", library).startswith(b"-ERR pannier: FUNCTION")
            assert sent(walled, "FCALL", "steal", 0, "other:k").startswith(b"-")
        assert foreign.wire.ask("FUNCTION", "FLUSH") == OK


# --- channels


def message(protocol: int, *parts: Argument) -> bytes:
    return (b">" if protocol == 3 else b"*") + request(*parts)[1:]


def nothing_more(wire: Wire, protocol: int) -> None:
    """The next that comes is the answer to a PING."""
    wire.send("PING")
    assert wire.read() in (b"+PONG\r\n", b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")


class TestChannels:
    @both_protocols
    def test_are_everybodys_if_not_namespaced(self, house: Process, foreign: Foreign, protocol: int) -> None:
        with Wire(house.port, protocol) as listener, Wire(house.port) as other:
            for command, channel, kind in (("SUBSCRIBE", "c", "message"), ("PSUBSCRIBE", "[c]*", "pmessage")):
                assert listener.ask(command, channel) == message(protocol, command.lower(), channel, 0)[: -len(b"$1\r\n0\r\n")] + (b":1\r\n" if command == "SUBSCRIBE" else b":2\r\n")
                assert kind
            assert foreign.wire.ask("PUBLISH", "c", "m") == b":2\r\n"
            assert listener.reads(2) == [message(protocol, "message", "c", "m"), message(protocol, "pmessage", "[c]*", "c", "m")]
            assert other.line("PUBLISH c m") == b":2\r\n"
            assert listener.reads(2) == [message(protocol, "message", "c", "m"), message(protocol, "pmessage", "[c]*", "c", "m")]

    @both_protocols
    def test_stay_within_if_namespaced(self, houses: dict[str, Process], house: Process, foreign: Foreign, protocol: int) -> None:
        port = houses["channels"].port
        direct = foreign.wire
        with Wire(port, protocol) as listener, Wire(port, protocol) as other:
            names = [("SUBSCRIBE", "c"), ("SUBSCRIBE", "other:c"), ("SUBSCRIBE", "*"), ("PSUBSCRIBE", "*"), ("PSUBSCRIBE", "[a-c]"), ("PSUBSCRIBE", "acme:*"), ("PSUBSCRIBE", "\\c")]
            for n, (command, name) in enumerate(names, 1):
                assert strings(listener.ask(command, name)) == [command.lower().encode(), name.encode()], n
            theirs = [name for name in strings(direct.line("PUBSUB CHANNELS")) if not name.startswith(b"pannier:evict:")]
            assert set(theirs) == {b"acme:c", b"acme:other:c", b"acme:*"}
            for channel in ("c", "other:c", "*", "acme2:c", "xacme:c"):
                assert direct.ask("PUBLISH", channel, SECRET) == b":0\r\n", channel
            nothing_more(listener, protocol)
            assert direct.ask("PUBLISH", "acme:c", "m") == b":4\r\n"
            assert sorted(listener.reads(4)) == sorted([message(protocol, "message", "c", "m"), *[message(protocol, "pmessage", pattern, "c", "m") for pattern in ("*", "[a-c]", "\\c")]])
            assert other.ask("PUBLISH", "acme:c", "m") == b":2\r\n"
            assert sorted(listener.reads(2)) == sorted([message(protocol, "pmessage", pattern, "acme:c", "m") for pattern in ("*", "acme:*")])
            with Wire(direct.sock.getpeername()[1]) as outsider:
                outsider.line("SUBSCRIBE other:c")
                outsider.line("SUBSCRIBE secret")
                assert set(strings(other.line("PUBSUB CHANNELS"))) == {b"c", b"other:c", b"*"}
                assert set(strings(other.line("PUBSUB CHANNELS s*"))) == set()
                assert set(strings(other.line("PUBSUB CHANNELS *o*"))) == {b"other:c"}
                assert strings(other.line("PUBSUB NUMSUB c secret other:c")) == [b"c", b"secret", b"other:c"]
                assert other.line("PUBSUB NUMSUB secret").endswith(b":0\r\n")
                assert other.line("PUBSUB NUMPAT")[:1] == b":"
                assert other.ask("PUBLISH", "secret", "m") == b":1\r\n", "one's own pattern"
                assert listener.read() == message(protocol, "pmessage", "*", "secret", "m")
                nothing_more(outsider, 2)
            listener.send("UNSUBSCRIBE")
            assert {strings(found)[1] for found in listener.reads(3)} == {b"c", b"other:c", b"*"}
            listener.send("PUNSUBSCRIBE", "*", "nosuch")
            assert [strings(found)[1] for found in listener.reads(2)] == [b"*", b"nosuch"]
            listener.send("PUNSUBSCRIBE")
            assert {strings(found)[1] for found in listener.reads(3)} == {b"[a-c]", b"acme:*", b"\\c"}
            assert listener.ask("ECHO", "free") == b"$4\r\nfree\r\n"

    @both_protocols
    def test_shard_channels(self, houses: dict[str, Process], foreign: Foreign, protocol: int) -> None:
        with Wire(houses["channels"].port, protocol) as listener, Wire(houses["channels"].port, protocol) as other, Wire(houses["acme"].port) as without:
            found = listener.line("SSUBSCRIBE c")
            if found.startswith(b"-"):
                return  # before Redis 7
            assert strings(found) == [b"ssubscribe", b"c"]
            assert foreign.wire.ask("SPUBLISH", "c", SECRET) == b":0\r\n"
            assert without.ask("SPUBLISH", "c", SECRET) == b":0\r\n"
            assert other.ask("SPUBLISH", "c", "m") == b":1\r\n"
            assert listener.read() == message(protocol, "smessage", "c", "m")
            assert strings(other.line("PUBSUB SHARDCHANNELS")) == [b"c"]
            assert other.line("PUBSUB SHARDNUMSUB c none") == b"*4\r\n$1\r\nc\r\n:1\r\n$4\r\nnone\r\n:0\r\n"
            assert strings(listener.line("SUNSUBSCRIBE")) == [b"sunsubscribe", b"c"]


class TestListingChannels:
    @both_protocols
    @pytest.mark.parametrize("which", ["acme", "channels"])
    def test_shows_what_one_has_subscribed_to(self, houses: dict[str, Process], foreign: Foreign, which: str, protocol: int) -> None:
        """As an unprefixed Redis would: channels, notifications, by what they are called."""
        mine = [b"news", b"__keyspace@0__:k", b"__keyevent@0__:set"]
        with Wire(foreign.wire.sock.getpeername()[1]) as direct, Wire(houses[which].port, protocol) as listener, Wire(houses[which].port, protocol) as other:
            direct.line("SUBSCRIBE __keyspace@0__:other:k")
            for name in mine:
                listener.ask("SUBSCRIBE", name)
            for pattern, expected in (("", mine), ("*", mine), ("n*", mine[:1]), ("__key*", mine[1:]), ("*k", mine[1:2]), ("*e*:[ks]*", mine[1:]), ("__keyspace@0__:k", mine[1:2]), ("none", [])):
                wait_until(lambda pattern=pattern, expected=expected: sorted(strings(other.line(f"PUBSUB CHANNELS {pattern}"))) == sorted(expected), 2)

    def test_does_not_show_the_eviction_bus(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis, pannier(f"redis://127.0.0.1:{redis.port}", directory, "--namespace", "acme", bus=True) as proxy, Wire(proxy.port) as wire, Wire(redis.port) as direct:
            wait_until(lambda: b"pannier:evict:acme" in direct.line("PUBSUB CHANNELS"))
            assert wire.line("PUBSUB CHANNELS") == wire.line("PUBSUB CHANNELS *") == wire.line("PUBSUB CHANNELS pannier:*") == NO_LIST


class TestKeyspaceNotifications:
    @both_protocols
    @pytest.mark.parametrize("which", ["acme", "channels"])
    @pytest.mark.parametrize("pattern", ["__keyspace@0__:*", "__keyevent@0__:*", "__key*__:*", "*", "__keyspace@*__:k*", "__keyspace@0__:?", "__keyevent@0__:set", "__key*", "__keyspace@0*", "?_key*"])
    def test_by_pattern(self, houses: dict[str, Process], foreign: Foreign, which: str, pattern: str, protocol: int) -> None:
        others = [f"{name}:k" for name in FOREIGN if name != "acme"] + ["k"]
        with Wire(foreign.wire.sock.getpeername()[1]) as direct, Wire(houses[which].port, protocol) as listener, Wire(houses[which].port) as writer:
            def events() -> list[bytes]:
                foreign.wire.line("SELECT 0")
                for key in others:
                    assert direct.ask("APPEND", key, "") == b":%d\r\n" % len(SECRET)
                assert writer.line("SET k 1") == OK
                assert writer.line("DEL k") == b":1\r\n"
                found = []
                listener.send("PING")
                while (frame := listener.read()) not in (b"+PONG\r\n", b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"):
                    found.append(frame)
                return found

            assert strings(listener.ask("PSUBSCRIBE", pattern)) == [b"psubscribe", pattern.encode()]
            seen = [strings(frame) for frame in events()]
            wanted = set()
            for event in ("set", "del"):
                if pattern != "__keyevent@0__:*" and not pattern.startswith("__keyevent"):
                    wanted.add((b"__keyspace@0__:k", event.encode()))
                if not pattern.startswith("__keyspace") and not (pattern == "__keyevent@0__:set" and event == "del"):
                    wanted.add((f"__keyevent@0__:{event}".encode(), b"k"))
            if which == "channels" and pattern in ("*", "?_key*"):
                wanted = set()
            assert {(frame[2], frame[3]) for frame in seen} == wanted
            assert all(frame[:2] == [b"pmessage", pattern.encode()] for frame in seen)
            assert strings(listener.ask("PUNSUBSCRIBE")) == [b"punsubscribe", pattern.encode()]
            assert events() == []

    @both_protocols
    def test_by_channel(self, house: Process, foreign: Foreign, protocol: int) -> None:
        with Wire(foreign.wire.sock.getpeername()[1]) as direct, Wire(house.port, protocol) as listener, Wire(house.port) as writer:
            for channel in ("__keyspace@0__:k", "__keyevent@0__:set", "__keyspace@0__:other:k", "__keyevent@0__:append"):
                assert strings(listener.ask("SUBSCRIBE", channel)) == [b"subscribe", channel.encode()]
            direct.line("SETRANGE other:k 0 f")
            direct.line("APPEND other:k ''")
            direct.line("PUBLISH __keyevent@0__:set other:k")
            direct.line("PUBLISH __keyspace@0__:k evil")
            writer.line("SET k 1")
            writer.line("PUBLISH __keyspace@0__:other:k x")
            writer.line("PUBLISH __keyevent@0__:set mine")
            found = [strings(listener.read())[1:] for _ in range(4)]
            assert found == [[b"__keyspace@0__:k", b"set"], [b"__keyevent@0__:set", b"k"], [b"__keyspace@0__:other:k", b"x"], [b"__keyevent@0__:set", b"mine"]]
            nothing_more(listener, protocol)

    @pytest.mark.parametrize("how", ["CLIENT REPLY OFF", "CLIENT REPLY SKIP", "CLIENT REPLY OFF\0", "CLIENT REPLY SKIP\0"])
    @both_protocols
    def test_to_a_client_that_wants_no_replies(self, house: Process, foreign: Foreign, protocol: int, how: str) -> None:
        """Redis 7 pushes messages to it all the same."""
        with Wire(foreign.wire.sock.getpeername()[1]) as direct, Wire(house.port, protocol, timeout=2) as listener, Wire(house.port) as writer:
            listener.raw(request(*how.split(" ")) + request("PSUBSCRIBE", "*", "__key*__:*") + request("PSUBSCRIBE", "x*"))
            with contextlib.suppress(AssertionError):
                wait_until(lambda: int(direct.line("PUBSUB NUMPAT")[1:-2]) >= 3, 2)
            for _ in range(3):
                direct.line("APPEND other:k ''")
                writer.line("SET k 1")
            listener.raw(request("CLIENT", "REPLY", "ON") + request("PSUBSCRIBE", "end"))
            found = b""
            with contextlib.suppress(TimeoutError):
                while b"\r\nend\r\n" not in (frame := listener.read()):
                    found += frame
            assert b"other:" not in found and b"acme:" not in found and b"append" not in found


class TestPipelinesOfSubscribers:
    def test_messages_replies_and_confirmations_mixed(self, house: Process, foreign: Foreign) -> None:
        with Wire(house.port, 3) as wire:
            wire.line("RPUSH l message c x")
            lines = ["SUBSCRIBE a b", "KEYS *", "PSUBSCRIBE __keyspace@0__:*", "SET k 1", "LRANGE l 0 -1", "UNSUBSCRIBE a", "PUNSUBSCRIBE", "MULTI", "KEYS *", "SET k 2", "SCAN 0 COUNT 10000", "EXEC",
                     "MULTI", "KEYS *", "SCAN 0 COUNT 10000", "EXEC", "UNSUBSCRIBE", "PUNSUBSCRIBE", "UNSUBSCRIBE", "SET k 3", "KEYS *", "CONFIG GET x", "XREAD COUNT 1 STREAMS x 0", "PING"]  # fmt: skip
            wire.raw(b"".join(request(*words(line)) for line in lines))
            frames = []
            while not frames or frames[-1] != b"+PONG\r\n":
                frames.append(wire.read())
            whole = b"".join(frames)
            assert b"acme:" not in whole and b"other" not in whole and SECRET not in whole
            keys = [frame for frame in frames if frame[:1] == b"*" and set(strings(frame)) == {b"k", b"l"}]
            assert frames.count(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n") == 1
            assert len(keys) + len([frame for frame in frames if strings(frame) == [b"l"]]) >= 2
            events = [strings(frame) for frame in frames if frame[:1] == b">" and b"pmessage" in frame]
            assert events == [[b"pmessage", b"__keyspace@0__:*", b"__keyspace@0__:k", b"set"]] * len(events) and events
            executed = [frame for frame in frames if frame.startswith((b"*3\r\n*2\r\n", b"*2\r\n*2\r\n"))]
            assert [set(strings(frame)) for frame in executed] == [{b"k", b"l", b"0"}] * 2

    @pytest.mark.parametrize("options", [["--auth", "none"], ["--namespace", "acme"]], ids=["bare", "namespace"])
    def test_messages_within_the_reply_to_exec(self, upstream: Process, directory: Path, options: list[str]) -> None:
        """What a transaction makes Redis tell its own client stands among the elements of EXEC's reply."""
        url = f"redis://127.0.0.1:{upstream.port}"
        lines = ["PSUBSCRIBE __keyspace@0__:k", "SUBSCRIBE c", "MULTI", "SET k 1", "PUBLISH c m", "STRLEN k", "EXEC", "PING"]
        with pannier(url, directory, *options) as proxy:
            found = []
            for server in (upstream, proxy):
                with Wire(upstream.port) as other:
                    assert other.line("FLUSHALL") == OK
                with Wire(server.port, 3, timeout=3) as one:
                    one.raw(b"".join(request(*words(line)) for line in lines))
                    data = b""
                    while not data.endswith(b"+PONG\r\n"):
                        data += one.sock.recv(1 << 16)
                    one.line("RESET")  # nobody is subscribed any more
                found.append(data)
            assert found[1] == found[0]

    @both_protocols
    @pytest.mark.parametrize("state", ["", "MULTI", "CLIENT TRACKING OFF"])
    @pytest.mark.parametrize("how", ["OFF", "SKIP", "off", "OFF\0"])
    def test_silence_is_refused_and_replies_stay_aligned(
        self, house: Process, protocol: int, how: str, state: str
    ) -> None:
        """Translated one by one, replies must not be left out."""
        with Wire(house.port, protocol) as wire:
            wire.line("SET k 1")
            if state:
                wire.line(state)
            assert wire.ask("CLIENT", "REPLY", how).startswith(b"-ERR pannier: CLIENT REPLY OFF and SKIP are refused")
            if state == "MULTI":
                assert wire.line("EXEC").startswith(b"-EXECABORT")
            assert wire.line("CLIENT REPLY ON") == OK
            assert wire.line("KEYS *") == b"*1\r\n$1\r\nk\r\n"
            assert wire.line("ECHO x") == b"$1\r\nx\r\n"


# --- client tracking


class TestTracking:
    @pytest.mark.parametrize("options", ["", "OPTIN", "OPTOUT", "NOLOOP", "BCAST", "BCAST PREFIX k", "BCAST PREFIX k PREFIX j NOLOOP", "bcast prefix K", "BCAST\0", "BCAST PREFIX\0 other:"])
    def test_resp3_pushes_are_about_ones_own_keys(self, house: Process, foreign: Foreign, options: str) -> None:
        with Wire(foreign.wire.sock.getpeername()[1]) as direct, Wire(house.port, 3) as wire, Wire(house.port) as writer:
            found = wire.ask("CLIENT", "TRACKING", "ON", *options.split(" ") if options else [])
            if "\0" in options and found.startswith(b"-"):
                return
            assert found == OK
            if options == "OPTIN":
                assert wire.line("CLIENT CACHING YES") == OK
            wire.line("MGET k other:k K")
            for key in ("other:k", "k", "acm:k", "acme2:k"):
                direct.ask("APPEND", key, "")
                direct.ask("EXPIRE", key, "100")
                direct.ask("PERSIST", key)
            writer.line("SET k 1")
            writer.line("SET K 1")
            wire.send("PING")
            frames = []
            while (frame := wire.read()) != b"+PONG\r\n":
                frames.append(frame)
            wire.send("PING")
            while (frame := wire.read()) != b"+PONG\r\n":
                frames.append(frame)
            keys = [key for frame in frames for key in strings(frame)[1:]]
            if "\0" in options:
                assert set(keys) <= {b"k", b"K"}
            elif "prefix K" in options:
                assert keys == [b"K"]
            else:
                assert keys in ([b"k"], [b"k", b"K"]), frames
                assert ("PREFIX" in options) == (b"K" not in keys)
            told = wire.line("CLIENT TRACKINGINFO")
            assert b"acme" not in told, told
            wanted = [word.encode() for word in options.split()[2::2]] if "refix" in options.lower() and "\0" not in options else []
            if wanted:
                assert set(strings(told)[-len(wanted[:2]) :]) <= {b"k", b"j", b"K"}

    @pytest.mark.parametrize("options", ["", "BCAST", "BCAST PREFIX k", "OPTOUT"])
    def test_resp2_redirects(self, house: Process, foreign: Foreign, options: str) -> None:
        with Wire(foreign.wire.sock.getpeername()[1]) as direct, Wire(house.port) as listener, Wire(house.port) as wire, Wire(house.port) as writer:
            number = listener.ask("CLIENT", "ID")[1:-2]
            assert strings(listener.line("SUBSCRIBE __redis__:invalidate")) == [b"subscribe", b"__redis__:invalidate"]
            assert wire.ask("CLIENT", "TRACKING", "ON", "REDIRECT", number, *options.split()) == OK
            wire.line("MGET k other:k")
            for key in ("other:k", "k"):
                direct.ask("APPEND", key, "")
            writer.line("SET k 1")
            assert listener.read() == b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$1\r\nk\r\n"
            direct.line("PUBLISH __redis__:invalidate other")
            assert strings(listener.read()) == [b"message", b"__redis__:invalidate", b"other"], "by publishing: a text"
            nothing_more(listener, 2)

    def test_a_redirect_leads_to_nobody_else(self, houses: dict[str, Process], house: Process, upstream: Process) -> None:
        with Wire(house.port) as wire, Wire(houses["ac"].port) as other, Wire(upstream.port) as direct:
            other.line("SUBSCRIBE __redis__:invalidate")
            ids = re.findall(r"(?:^|\n)id=(\d+)", text(direct.line("CLIENT LIST")))
            number = other.ask("RESET") and other.ask("CLIENT", "ID")[1:-2]
            for target in [*ids, number]:
                for option in ("REDIRECT", "redirect", "REDIRECT\0"):
                    assert wire.ask("CLIENT", "TRACKING", "ON", option, target).startswith(b"-"), (option, target)
            found = re.findall(r"redir=(\S+)", text(direct.line("CLIENT LIST")))
            assert set(found) <= {"-1", "0"}, "none, or tracking without"


# --- large requests


BIG = 300_000


class TestLargeRequests:
    @both_protocols
    @pytest.mark.parametrize("state", ["", "MULTI", "CLIENT TRACKING OFF"])
    @pytest.mark.parametrize("case", ["SET 1 MB", "SET 20 MB", "MSET", "EVAL", "PUBLISH", "DEL", "CONFIG", "EVALKEYS", "NOSUCH", "SORT"])
    def test_keep_to_the_namespace(self, upstream: Process, house: Process, foreign: Foreign, case: str, state: str, protocol: int) -> None:
        foreign.wire.line("SELECT 0")
        mb = b"v" * (1 << 20)
        data, wanted = {
            "SET 1 MB": (request("SET", "k", mb), OK),
            "SET 20 MB": (request("SET", "k", mb * 20), OK),
            "MSET": (request("MSET", *[word for n in range(4) for word in (f"k{n}", b"v" * BIG)]), OK),
            "EVAL": (request("EVAL", "return #ARGV[1]", 1, "k", b"v" * 400_000), b":400000\r\n"),
            "EVALKEYS": (request("EVAL", "return redis.call('SET', KEYS[2], #ARGV[1])", 2, "k0", "k1", b"v" * 600_000), OK),
            "PUBLISH": (request("PUBLISH", "nobody", mb), b":0\r\n"),
            "DEL": (request("DEL", *[f"k{n}" for n in range(20_000)]), b":5\r\n"),
            "CONFIG": (request("CONFIG", "SET", "x", mb), b"-"),
            "NOSUCH": (request("NOSUCH", "x", mb), b"-"),
            "SORT": (request("SORT", "none", "BY", b"p*" + mb), b"*0\r\n"),
        }[case]
        with Wire(house.port, protocol, timeout=4) as wire:
            wire.pipeline([request("SET", f"k{n}", "x") for n in range(5)], 5)
            if state:
                wire.line(state)
            with in_background(lambda: wire.raw(data + request("ECHO", "aligned"))):
                found, echo = wire.reads(2)
            if state == "MULTI":
                assert echo == QUEUED
                assert (found == QUEUED) == (wanted != b"-"), found[:200]
                executed = wire.line("EXEC")
                if wanted == b"-":
                    assert executed.startswith(b"-EXECABORT") and found.startswith(REFUSALS)
                else:
                    assert executed == b"*2\r\n" + wanted + b"$7\r\naligned\r\n"
            else:
                assert found == wanted or (wanted == b"-" and found.startswith(REFUSALS)), found[:200]
                assert echo == b"$7\r\naligned\r\n"
            assert wire.line("KEYS none") == NO_LIST
            if case.startswith("SET"):
                size = int(case.split()[1]) << 20
                assert foreign.wire.line("STRLEN acme:k") == b":%d\r\n" % size
                assert wire.line("STRLEN k") == b":%d\r\n" % size
            assert wire.line("FLUSHDB") == OK
        foreign.wire.line("EVAL \"for _, k in ipairs(redis.call('KEYS', 'acme:*')) do redis.call('DEL', k) end\" 0")

    def test_refused_while_arriving_in_small_pieces(self, house: Process) -> None:
        data = request("CONFIG", "SET", "x", b"v" * (1 << 20)) + request("GET", "k")
        with Wire(house.port) as wire:
            def send() -> None:
                for at in range(0, len(data), 30_011):
                    wire.raw(data[at : at + 30_011])

            with in_background(send):
                found = wire.reads(2)
            assert found[0].startswith(b"-ERR pannier: CONFIG") and found[1] == NIL


# --- errors


class TestErrors:
    @both_protocols
    @pytest.mark.parametrize("state", ["", "MULTI", "CLIENT TRACKING OFF"])
    def test_show_the_bare_key(self, house: Process, foreign: Foreign, state: str, protocol: int) -> None:
        direct = foreign.wire
        direct.line("SELECT 3")
        lines = [
            "XREADGROUP GROUP g c STREAMS x >", "XREADGROUP GROUP g c STREAMS x none > >", "XREADGROUP GROUP g c BLOCK 1 STREAMS x >", "XGROUP SETID x g 0", "XGROUP CREATECONSUMER x g c", "XGROUP DELCONSUMER x g c",
            "XPENDING x g", "XPENDING x g - + 1", "XINFO CONSUMERS x g", "XCLAIM x g c 0 1-1", "XAUTOCLAIM x g c 0 0", "XINFO STREAM none", "XGROUP CREATE none g 0", "XINFO GROUPS none", "XACK none g 1-1",
        ]  # fmt: skip
        with Wire(house.port, protocol) as wire:
            for one in (direct, wire):
                one.line("XADD x 1-1 f v")
            named = [line.replace(" g", " acme:g") for line in lines if "GROUP CREATE " not in line]  # a name that looks like a key's
            scripts = ["""EVAL "return redis.error_reply(\\"ERR bad 'acme:thing'\\")" 0"""]
            for line in lines + named + scripts:
                theirs = direct.line(line)
                if state:
                    assert wire.line(state)[:1] == b"+"
                found = wire.line(line)
                if state == "MULTI":
                    assert found == QUEUED
                    found = wire.line("EXEC").removeprefix(b"*1\r\n")
                assert b"acme" not in found or line in named + scripts
                if theirs.startswith(b"-"):
                    assert found == theirs, line
        direct.line("FLUSHDB")


class TestTheDocumentedWall:
    """The ACL of docs/namespaces.md, word for word: what Pannier cannot stop, a script's own ideas, Redis does."""

    LINE = re.search(r"^redis> (ACL SETUSER acme .*)$", (ROOT / "docs" / "namespaces.md").read_text("utf-8"), re.M)

    @pytest.mark.parametrize("names", ["", " -scan -randomkey -dbsize"], ids=["as it stands", "without names"])
    def test_stops_scripts(self, redis_binary: str, directory: Path, names: str) -> None:
        assert self.LINE is not None
        config = directory / "pannier.toml"
        config.write_text('[tenants.acme]\npassword = "s"\nupstream_username = "acme"\nupstream_password = "secret"\n')
        with redis_server(redis_binary, directory) as redis:
            url = f"redis://127.0.0.1:{redis.port}"
            with Wire(redis.port) as direct:
                assert direct.line(self.LINE[1] + names) == OK
                direct.line("SET other:k hidden")
            with pannier(url, directory, "--config", str(config)) as proxy, Wire(proxy.port) as wire:
                assert wire.line("AUTH acme s") == OK
                for _ in range(3):
                    assert wire.line("SET k 1") == OK and wire.line("GET k") == b"$1\r\n1\r\n"
                calls = ["'FLUSHALL'", "'KEYS','*'", "'GET','other:k'", "'SET','other:k','evil'", "'PUBLISH','other:c','m'",
                         "'SORT','acme:l','BY','nosort','GET','other:*'", "'CONFIG','GET','*'", "'PUBLISH','pannier:evict:other','{}'"]  # fmt: skip
                if names:
                    calls += ["'SCAN','0'", "'RANDOMKEY'", "'DBSIZE'"]
                for call in calls:
                    found = wire.ask("EVAL", f"return redis.call({call})", "0")
                    assert found.startswith(b"-") and b"hidden" not in found and b"other:k" not in found, (call, found)
                assert "could reach" not in proxy.output and "would let it reach" not in proxy.output
            with Wire(redis.port) as direct:
                assert direct.line("GET other:k") == b"$6\r\nhidden\r\n"
