"""Key positions, held against COMMAND GETKEYS of real servers and against what commands really do.

test_keys.py tests the same without servers, for what no server at hand reports.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.commands import Command, CommandTable
from proxy.resp.keys import key_positions
from tests.harness import TIED, reserved

TABLE = CommandTable.load()


def words(text: str) -> list[bytes]:
    """Split like a shell: "" is an empty argument, \\0 in quotes a zero byte."""
    return [word.replace("\\0", "\0").encode() for word in shlex.split(text)]


def command_of(args: list[bytes], table: CommandTable = TABLE) -> Command:
    command = table.find(args[0], args[1] if len(args) > 1 else None)
    assert command is not None, args
    return command


def keys(text: str, table: CommandTable = TABLE) -> list[bytes] | None:
    args = words(text)
    found = key_positions(command_of(args, table), args)
    return None if found is None else [args[use.index] for use in found]


def accesses(text: str) -> list[str]:
    """Each key with its access, as "key:RO,access"."""
    args = words(text)
    found = key_positions(command_of(args), args)
    assert found is not None
    return [f"{args[use.index].decode()}:{','.join(sorted(use.access))}" for use in found]


# Real servers


def executable(version: str) -> str:
    """Find a redis-server whose version starts with `version`; skip the test if there is none."""
    beside = Path(sys.executable).with_name("redis-server")
    for path in ("/usr/bin/redis-server", shutil.which("redis-server"), beside):
        if path is not None and Path(path).exists():
            banner = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            if f"v={version}" in banner:
                return str(path)
    pytest.skip(f"no redis-server {version} at /usr/bin, on PATH or beside the interpreter")


def started(path: str) -> Iterator[Any]:
    """Run a server on a free port; yield a client that returns replies undecoded and unparsed."""
    with reserved(None) as port, tempfile.TemporaryDirectory() as directory:
        arguments = ["--port", str(port), "--save", "", "--appendonly", "no", "--dir", directory]
        process = subprocess.Popen([*TIED, path, *arguments], stdout=subprocess.DEVNULL)
        try:
            client: Any = redis.Redis(port=port, protocol=2)
            client.response_callbacks.clear()
            wait_for(client)
            yield client
            client.close()
        finally:
            process.terminate()
            process.wait(10)


def wait_for(client: Any) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            client.execute_command("PING")
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
        else:
            return


@pytest.fixture(scope="module")
def redis7() -> Iterator[Any]:
    yield from started(executable("7."))


@pytest.fixture(scope="module")
def redis6() -> Iterator[Any]:
    yield from started(executable("6.2"))


def getkeys(server: Any, args: list[bytes]) -> list[bytes]:
    """What COMMAND GETKEYS answers; no keys if it says that there are none or that the call is malformed."""
    try:
        return list(server.execute_command("COMMAND", "GETKEYS", *args))
    except redis.ResponseError as error:
        if "key arguments" in str(error) or "Invalid" in str(error):
            return []
        raise


def arities(server: Any) -> dict[str, int]:
    return {entry[0].decode(): entry[1] for entry in server.execute_command("COMMAND")}


def generated(command: Command, arity: int) -> Iterator[list[bytes]]:
    """Argument lists of distinct words for a command whose key positions follow from their number."""
    head = [part.encode() for part in command.name.split("|")]
    least = max(abs(arity), len(head) + 1)
    for argc in range(least, least + 1 if arity > 0 else least + 5):
        yield head + [b"a%d" % at for at in range(len(head), argc)]


def with_fixed_places(server: Any) -> Iterator[list[bytes]]:
    """Argument lists for all commands this server knows that are not in EXAMPLES."""
    known = arities(server)
    for command in TABLE:
        if command.keys_by_count and command.key_specs and command.name.partition("|")[0] in known:
            yield from generated(command, known.get(command.name, command.arity))


# One valid command a line, for every command whose keys depend on more than the number of arguments.
EXAMPLES = """
SORT k
SORT k ASC ALPHA LIMIT 0 STORE
SORT k LIMIT 0 1 GET # GET STORE BY p_*->f DESC STORE d
SORT k BY STORE STORE d
SORT k STORE d1 STORE d2
sort k store LIMIT
SORT k "STORE\\0x" d
SORT_RO k BY p_* GET q_*
SORT_RO k GET STORE LIMIT 0 5
MIGRATE h 1 k 0 100
MIGRATE h 1 k 0 100 COPY REPLACE AUTH pw
MIGRATE h 1 k 0 100 AUTH KEYS
MIGRATE h 1 k 0 100 AUTH2 KEYS KEYS
MIGRATE h 1 "" 0 100
MIGRATE h 1 "" 0 100 KEYS a b c
MIGRATE h 1 "" 0 100 AUTH KEYS KEYS a b
MIGRATE h 1 "" 0 100 AUTH2 KEYS KEYS KEYS a b
MIGRATE h 1 "" 0 100 AUTH2 u KEYS COPY KEYS KEYS AUTH COPY
MIGRATE h 1 "" 0 100 keys KEYS
XREAD STREAMS k 0
XREAD COUNT 2 BLOCK 5 STREAMS a b 0 0
XREAD STREAMS STREAMS COUNT 0 0
XREADGROUP GROUP g c STREAMS k >
XREADGROUP GROUP g STREAMS STREAMS k >
XREADGROUP GROUP STREAMS c STREAMS k >
XREADGROUP GROUP STREAMS STREAMS STREAMS STREAMS >
XREADGROUP GROUP g c COUNT 1 BLOCK 5 NOACK STREAMS a b > >
XREADGROUP NOACK GROUP g c STREAMS a b > >
XREADGROUP NOACK GROUP STREAMS c STREAMS k >
GEORADIUS k 1 2 3 m
GEORADIUS k 1 2 3 m WITHDIST COUNT 1 ANY ASC
GEORADIUS k 1 2 3 m STORE d
GEORADIUS k 1 2 3 m DESC STOREDIST d
GEORADIUS k 1 2 3 m STORE STORE
GEORADIUSBYMEMBER k STORE 3 m
GEORADIUSBYMEMBER k mem 3 m STORE d
GEORADIUSBYMEMBER k mem 3 m STOREDIST STOREDIST
GEORADIUS_RO k 1 2 3 m ASC
GEORADIUSBYMEMBER_RO k mem 3 m ASC
EVAL s 0
EVAL s 0 a
EVAL s 1 k
EVAL s 2 k1 k2 a1
EVAL_RO s 1 k a
EVALSHA sha 2 k1 k2 a
EVALSHA_RO sha 1 k
FCALL f 2 k1 k2 a
FCALL_RO f 1 k a
LMPOP 2 a b LEFT COUNT 1
BLMPOP 0 2 a b LEFT
ZMPOP 1 a MIN
BZMPOP 0 2 a b MAX
SINTERCARD 2 a b LIMIT 3
ZINTERCARD 2 a b
ZDIFF 2 a b WITHSCORES
ZINTER 2 a b WEIGHTS 1 2
ZUNION 1 a
ZDIFFSTORE d 2 a b
ZINTERSTORE d 2 a b AGGREGATE MAX
ZUNIONSTORE d 3 a b c
SET k v
SET k v NX GET
SET GET GET
SET k v get EX 5
SET k GET EX 5
BITFIELD k GET u8 0
BITFIELD k GET u8 0 SET u8 0 1
BITFIELD k OVERFLOW FAIL INCRBY u8 0 1
BITFIELD k
BITFIELD_RO k GET u8 0
"""


def examples() -> list[str]:
    return EXAMPLES.strip().splitlines()


# Valid commands for which GETKEYS and we differ on purpose. TestWhatCommandsReallyDo has the proof.
DIFFERENT_IN_7 = {
    "PFMERGE d": "reports nothing when there is no source, though the command creates its destination",
    "XREADGROUP COUNT 1 GROUP STREAMS c STREAMS k >": "looks for STREAMS from argument 4: finds the group",
    "GEORADIUS k 1 2 3 m STORE a STORE b": "reports the first STORE, the command uses the last",
    "GEORADIUS k 1 2 3 m STORE a STOREDIST b": "reports both, the command uses the last",
    "GEORADIUSBYMEMBER k mem 3 m STOREDIST a STORE b": "reports both, the command uses the last",
}
DIFFERENT_IN_6 = {
    'MIGRATE h 1 "" 0 100 AUTH KEYS KEYS a b': "takes the password for the keyword",
    'MIGRATE h 1 "" 0 100 AUTH2 KEYS KEYS KEYS a b': "takes the user for the keyword",
    'MIGRATE h 1 "" 0 100 AUTH2 u KEYS COPY KEYS KEYS AUTH COPY': "takes the password for the keyword",
    "ZDIFFSTORE d 2 a b": "reports the destination last",
    "ZINTERSTORE d 2 a b AGGREGATE MAX": "reports the destination last",
    "ZUNIONSTORE d 3 a b c": "reports the destination last",
}

# Commands Redis refuses before it touches a key, on every version that has them.
REFUSED = """
GET
EVAL s
EVAL s x a
EVAL s -1 a
EVAL s +1 a
EVAL s 01 a
EVAL s " 1" a
EVAL s "" a
EVAL s 2 a
EVAL s 99999999999999999999 a
ZUNIONSTORE d 2 a
ZUNIONSTORE d x a
ZUNION -1 a
LMPOP 3 a LEFT
SORT k STORE
SORT k LIMIT 1
MIGRATE 127.0.0.1 1 k 0
MIGRATE 127.0.0.1 1 k 0 100 KEYS a
MIGRATE 127.0.0.1 1 k 0 100 AUTH
MIGRATE 127.0.0.1 1 k 0 100 AUTH2 u
GEORADIUS k 1 2 3 m STORE
XREAD STREAMS
XREAD STREAMS a
XREAD STREAMS a b 0
XREAD COUNT 1
XREADGROUP GROUP g c STREAMS a b >
STRALGO FOO KEYS a b
"""


class TestAgreesWithRedis:
    """The places are those COMMAND GETKEYS reports, byte for byte and in its order."""

    def test_fixed_places_7(self, redis7: Any) -> None:
        calls = [args for args in with_fixed_places(redis7) if args != [b"pfmerge", b"a1"]]
        ours = [[args[use.index] for use in key_positions(command_of(args), args) or ()] for args in calls]
        assert len(calls) > 400
        assert ours == [getkeys(redis7, args) for args in calls]

    def test_fixed_places_6(self, redis6: Any) -> None:
        calls = list(with_fixed_places(redis6))
        ours = [[args[use.index] for use in key_positions(command_of(args), args) or ()] for args in calls]
        assert len(calls) > 400
        assert ours == [getkeys(redis6, args) for args in calls]

    @pytest.mark.parametrize("example", examples())
    def test_examples_7(self, redis7: Any, example: str) -> None:
        assert keys(example) == getkeys(redis7, words(example))

    @pytest.mark.parametrize("example", examples())
    def test_examples_6(self, redis6: Any, example: str) -> None:
        name = example.partition(" ")[0].lower()
        if name in arities(redis6) and example not in DIFFERENT_IN_6:
            assert keys(example) == getkeys(redis6, words(example))

    @pytest.mark.parametrize("example", examples())
    def test_accesses(self, redis7: Any, example: str) -> None:
        reply = redis7.execute_command("COMMAND", "GETKEYSANDFLAGS", *words(example)) if keys(example) else []
        theirs = [f"{key.decode()}:{b','.join(sorted(flags)).decode()}" for key, flags in reply]
        assert accesses(example) == [use.replace("incomplete,", "") for use in theirs]

    def test_every_movable_command_has_an_example(self) -> None:
        movable = {command.name for command in TABLE if "movablekeys" in command.flags}
        assert movable <= {example.partition(" ")[0].lower() for example in examples()}

    @pytest.mark.parametrize("example", DIFFERENT_IN_7)
    def test_differences_7(self, redis7: Any, example: str) -> None:
        assert keys(example) != getkeys(redis7, words(example))

    @pytest.mark.parametrize("example", DIFFERENT_IN_6)
    def test_differences_6(self, redis6: Any, example: str) -> None:
        assert keys(example) != getkeys(redis6, words(example))

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(["ASC", "alpha", "LIMIT STORE BY", "by STORE", "GET LIMIT", "Store d"])))
    def test_any_sort(self, redis7: Any, options: list[str]) -> None:
        text = " ".join(["SORT k", *options])
        assert keys(text) == getkeys(redis7, words(text))

    @settings(deadline=None)
    @given(
        st.sampled_from(["", "k"]),
        st.lists(st.sampled_from(["COPY", "REPLACE", "AUTH KEYS", "auth2 KEYS AUTH", "AUTH COPY"])),
        st.sampled_from(["", "KEYS a", "KEYS KEYS b"]),
    )
    def test_any_migrate(self, redis7: Any, key: str, options: list[str], end: str) -> None:
        text = " ".join([f'MIGRATE h 1 "{key}" 0 100', *options, end])
        assert keys(text) == getkeys(redis7, words(text))


class TestWhatCommandsReallyDo:
    """Where GETKEYS is not to be relied upon, the command itself has the last word."""

    @pytest.fixture(params=["7.", "6.2"])
    def server(self, request: pytest.FixtureRequest) -> Any:
        client: Any = request.getfixturevalue("redis7" if request.param == "7." else "redis6")
        client.execute_command("FLUSHALL")
        return client

    @pytest.mark.parametrize("call", REFUSED.strip().splitlines())
    def test_no_keys_means_refused(self, server: Any, call: str) -> None:
        table = CommandTable.load()
        table.overlay(server.execute_command("COMMAND"))
        if command := table.find(words(call)[0]):
            assert key_positions(command, words(call)) == []
        with pytest.raises(redis.ResponseError):
            server.execute_command(*words(call))

    @pytest.mark.parametrize("stores", ["STORE a STORE b", "STORE a STOREDIST b", "STOREDIST a STORE b"])
    @pytest.mark.parametrize("query", ["GEORADIUS k 1 2 9999 km", "GEORADIUSBYMEMBER k m 9 km"])
    def test_last_store_wins(self, server: Any, query: str, stores: str) -> None:
        server.execute_command("GEOADD", "k", 1, 2, "m")
        assert server.execute_command(*words(f"{query} {stores}")) == 1
        assert set(server.execute_command("KEYS", "*")) == {b"k", b"b"}
        assert keys(f"{query} {stores}") == [b"k", b"b"]

    def test_last_sort_store_wins(self, server: Any) -> None:
        server.execute_command("RPUSH", "k", 1)
        server.execute_command(*words("SORT k STORE a STORE b"))
        assert set(server.execute_command("KEYS", "*")) == {b"k", b"b"}
        assert keys("SORT k STORE a STORE b") == [b"k", b"b"]

    def test_options_end_at_a_zero_byte(self, server: Any) -> None:
        call = r'SORT k "STORE\0x" d'
        server.execute_command("RPUSH", "k", 1)
        server.execute_command(*words(call))
        assert set(server.execute_command("KEYS", "*")) == {b"k", b"d"}
        assert keys(call) == [b"k", b"d"]

    def test_pfmerge_creates_its_destination(self, server: Any) -> None:
        server.execute_command("PFMERGE", "d")
        assert server.execute_command("EXISTS", "d") == 1
        assert keys("PFMERGE d") == [b"d"]

    @pytest.mark.parametrize("option", ["NOACK", "COUNT 1"])
    def test_a_group_named_streams(self, server: Any, option: str) -> None:
        call = f"XREADGROUP {option} GROUP STREAMS c STREAMS k >"
        server.execute_command("XADD", "k", "1-0", "f", "v")
        server.execute_command("XGROUP", "CREATE", "k", "STREAMS", "0")
        assert server.execute_command(*words(call)) == [[b"k", [[b"1-0", [b"f", b"v"]]]]]
        assert keys(call) == [b"k"]

    @pytest.mark.parametrize("auth", ["AUTH KEYS", "AUTH2 KEYS KEYS", "AUTH2 u KEYS COPY"])
    def test_a_password_named_keys(self, server: Any, auth: str) -> None:
        """MIGRATE answers NOKEY without connecting if none of its keys exists."""
        call = f'MIGRATE 127.0.0.1 1 "" 0 100 {auth} KEYS a b'
        assert keys(call) == [b"a", b"b"]
        server.execute_command("MSET", "KEYS", 1, "COPY", 1, "", 1)
        assert server.execute_command(*words(call)) == b"NOKEY"
        server.execute_command("SET", "b", 1)
        with pytest.raises(redis.ResponseError, match="IOERR"):
            server.execute_command(*words(call))

    def test_migrate_may_mean_the_empty_key(self, server: Any) -> None:
        call = 'MIGRATE 127.0.0.1 1 "" 0 100'
        assert keys(call) == [b""]
        assert server.execute_command(*words(call)) == b"NOKEY"
        server.execute_command("SET", "", 1)
        with pytest.raises(redis.ResponseError, match="IOERR"):
            server.execute_command(*words(call))


class TestLiveTable:
    """A table overlaid with what a server reports finds the same keys on that server."""

    def test_redis_7_in_both_protocols(self, redis7: Any) -> None:
        resp3: Any = redis.Redis(port=redis7.get_connection_kwargs()["port"], protocol=3)
        resp3.response_callbacks.clear()
        with resp3:
            replies = [client.execute_command("COMMAND") for client in (redis7, resp3)]
        tables = [CommandTable.load(), CommandTable.load()]
        assert [table.overlay(reply) for table, reply in zip(tables, replies, strict=True)] == [0, 0]
        for command in TABLE:
            name, _, sub = command.name.encode().partition(b"|")
            first, second = (table.find(name, sub or None) for table in tables)
            assert first is not None
            assert second is not None
            assert (first.arity, first.flags) == (second.arity, second.flags)
            assert first.key_specs == second.key_specs
            assert first.container == command.container

    def test_redis_7_finds_the_same_keys(self, redis7: Any) -> None:
        table = CommandTable.load()
        table.overlay(redis7.execute_command("COMMAND"))
        assert [keys(example, table) for example in examples()] == [keys(example) for example in examples()]

    def test_redis_6_adds_what_was_dropped_since(self, redis6: Any) -> None:
        table = CommandTable.load()
        assert table.overlay(redis6.execute_command("COMMAND")) == len(table) - len(TABLE) > 0
        call = "STRALGO LCS IDX MINMATCHLEN 2 KEYS a b"
        assert keys(call, table) == getkeys(redis6, words(call)) == [b"a", b"b"]
        assert keys("STRALGO LCS STRINGS KEYS b", table) == []
        assert {command.name for command in table if not command.blocking_known} >= {"stralgo"}
