"""Key positions without a server: traps, unknowable keys, specifications of modules, any arguments."""

import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.commands import Command, CommandTable
from proxy.resp.keys import key_positions, pattern_positions

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


class TestTraps:
    """Arguments that look like options, options that overrule each other, what the command does to each key.

    The other test file of this name holds these and many more against real servers.
    """

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            ("GET k", "k:RO,access"),
            ("MSET a 1 b 2", "a:OW,update b:OW,update"),
            ("BITOP AND d a b", "d:OW,update a:RO,access b:RO,access"),
            ("XGROUP CREATE k g $", "k:RW,insert"),
            ("PING k", ""),
            ("SSUBSCRIBE channel", ""),
            ("SORT k GET STORE BY LIMIT STORE a STORE b", "k:RO,access b:OW,update"),
            ('MIGRATE h 1 "" 0 9 AUTH KEYS KEYS a', "a:RW,access,delete"),
            ('MIGRATE h 1 "" 0 9 AUTH2 KEYS KEYS', ":RW,access,delete"),
            ("XREADGROUP COUNT 1 GROUP STREAMS STREAMS CLAIM 5 STREAMS a b > >", "a:RO,access b:RO,access"),
            ("GEORADIUS k 1 2 3 m STOREDIST STORE STORE b", "k:RO,access b:OW,update"),
            ("GEORADIUSBYMEMBER k STORE 3 m ASC", "k:RO,access"),
            ("EVAL s 1 k a", "k:RW,access,update"),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d:OW,update a:RO,access b:RO,access"),
            ("SET GET GET", "GET:OW,update"),
            ("SET k v GET", "k:RW,access,update"),
            ("BITFIELD k OVERFLOW SAT GET u8 0", "k:RO,access"),
            ("BITFIELD k GET u8 SET u8 0 1", "k:RW,access,update"),
        ],
    )
    def test_keys_and_accesses(self, call: str, expected: str) -> None:
        assert " ".join(accesses(call)) == expected

    def test_beyond_the_remembered_counts(self) -> None:
        members = " ".join(f"k{at}" for at in range(200))
        assert keys(f"DEL {members}") == words(members)

    def test_the_answer_belongs_to_the_caller(self) -> None:
        command = command_of([b"GET"])
        (key_positions(command, [b"GET", b"k"]) or []).clear()
        assert len(key_positions(command, [b"GET", b"k"]) or []) == 1


class TestPatterns:
    """SORT's BY and GET name no keys, but in a namespace they need the prefix as well."""

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            ("SORT k BY w_* GET # GET v_*->f GET plain STORE d_*", [b"w_*", b"v_*->f"]),
            ("SORT_RO k GET BY* BY GET*", [b"BY*", b"GET*"]),
            ("SORT k BY nosort", []),
            ("SORT k LIMIT GET *", []),
            ("SORT k GET", []),
            ("SORT k NEW *", None),
            ("GET *", []),
        ],
    )
    def test_places(self, call: str, expected: list[bytes] | None) -> None:
        args = words(call)
        found = pattern_positions(command_of(args), args)
        assert (None if found is None else [args[at] for at in found]) == expected


class TestCannotBeKnown:
    """None where a key might be missed; the caller then assumes that anything is touched."""

    @pytest.mark.parametrize(
        "call",
        [
            "SORT k FROBNICATE STORE d",
            "SORT_RO k STORE d",
            "MIGRATE h 1 k 0 100 FROBNICATE KEYS a",
            "XREAD FROBNICATE 5 STREAMS k 0",
            "XREAD COUNT STREAMS k 0",
            "GEORADIUS k 1 2 3 m FROBNICATE STORE d",
        ],
    )
    def test_unheard_of_options(self, call: str) -> None:
        assert keys(call) is None

    def test_modules(self) -> None:
        table = CommandTable.load()
        table.overlay([module("m.none", []), module("m.callback", ["variable_flags"], "movablekeys")])
        table.overlay([module("m.part", ["incomplete"]), module("m.channel", ["not_key", "incomplete"])])
        assert keys("M.NONE k", table) is None
        assert keys("M.CALLBACK k", table) is None
        assert keys("M.PART k", table) is None
        assert keys("M.CHANNEL k", table) == []

    def test_rules_nobody_has_heard_of(self) -> None:
        table = CommandTable.load()
        table.overlay([module("m.find", ["RO"], find={b"type": b"oracle", b"spec": {}})])
        table.overlay([module("m.begin", ["RO"], begin={b"type": b"unknown", b"spec": {}})])
        assert keys("M.FIND k", table) is None
        assert keys("M.BEGIN k", table) is None

    def test_a_module_may_read_numbers_its_own_way(self) -> None:
        table = CommandTable.load()
        find = {b"type": b"keynum", b"spec": {b"keynumidx": 0, b"firstkey": 1, b"keystep": 2}}
        table.overlay([module("m.count", ["RO"], find=find)])
        assert keys("M.COUNT 2 a 1 b 2", table) == [b"a", b"b"]
        assert keys("M.COUNT 0 a", table) == []
        assert keys("M.COUNT +1 a", table) is None
        assert keys("M.COUNT 3 a 1 b 2", table) is None


class TestSpecifications:
    """Forms of key specifications no built-in command has today."""

    @pytest.mark.parametrize(
        ("start", "call", "expected"),
        [
            (1, "M.X a KEYS b c", [b"b", b"c"]),
            (1, "M.X keys b", [b"b"]),
            (1, "M.X a b", []),
            (1, "M.X a KEYS", []),
            (3, "M.X KEYS b KEYS c", [b"c"]),
            (-1, "M.X a KEYS", []),
            (-2, "M.X KEYS b KEYS c d", [b"c", b"d"]),
            (-2, "M.X KEYS b", []),
            (-9, "M.X a KEYS b", []),
            (0, "M.X KEYS b", [b"b"]),
        ],
    )
    def test_keyword(self, start: int, call: str, expected: list[bytes]) -> None:
        begin = {b"type": b"keyword", b"spec": {b"keyword": b"KEYS", b"startfrom": start}}
        find = {b"type": b"range", b"spec": {b"lastkey": -1, b"keystep": 1, b"limit": 0}}
        table = CommandTable.load()
        table.overlay([module("m.x", ["RO"], begin=begin, find=find)])
        assert keys(call, table) == expected

    @pytest.mark.parametrize(
        ("last", "step", "limit", "expected"),
        [
            (-1, 1, 0, [b"a", b"b", b"c", b"d", b"e"]),
            (-1, 1, 1, [b"a", b"b", b"c", b"d", b"e"]),
            (-1, 1, 2, [b"a", b"b"]),
            (-1, 1, 3, [b"a"]),
            (-1, 2, 0, [b"a", b"c", b"e"]),
            (-2, 2, 0, [b"a", b"c"]),
            (-9, 1, 0, []),
            (2, 1, 0, [b"a", b"b", b"c"]),
            (9, 3, 0, [b"a", b"d"]),
        ],
    )
    def test_range(self, last: int, step: int, limit: int, expected: list[bytes]) -> None:
        find = {b"type": b"range", b"spec": {b"lastkey": last, b"keystep": step, b"limit": limit}}
        table = CommandTable.load()
        table.overlay([module("m.x", ["RO"], find=find)])
        assert keys("M.X a b c d e", table) == expected

    def test_count_after_a_keyword(self) -> None:
        begin = {b"type": b"keyword", b"spec": {b"keyword": b"KEYS", b"startfrom": 1}}
        find = {b"type": b"keynum", b"spec": {b"keynumidx": 0, b"firstkey": 1, b"keystep": 1}}
        table = CommandTable.load()
        table.overlay([module("m.x", ["RO"], begin=begin, find=find)])
        assert keys("M.X a KEYS 2 b c d", table) == [b"b", b"c"]
        assert keys("M.X a 2 b c d", table) == []

    def test_a_place_found_twice_is_reported_once(self) -> None:
        entry = module("m.x", ["RO", "access"])
        entry[8].append({**entry[8][0], b"flags": [b"OW", b"update"]})
        table = CommandTable.load()
        table.overlay([entry])
        command = table.find(b"m.x")
        assert command is not None
        uses = key_positions(command, [b"m.x", b"k"]) or []
        assert [(use.index, sorted(use.access)) for use in uses] == [(1, ["OW", "RO", "access", "update"])]


def module(name: str, flags: list[str], *extra: str, **parts: object) -> list[Any]:
    """A module command as Redis 7 reports it, with one key specification if it has `flags`."""
    begin = parts.get("begin", {b"type": b"index", b"spec": {b"index": 1}})
    find = parts.get("find", {b"type": b"range", b"spec": {b"lastkey": 0, b"keystep": 1, b"limit": 0}})
    spec = {b"flags": [flag.encode() for flag in flags], b"begin_search": begin, b"find_keys": find}
    command_flags = [b"write", b"module", *(flag.encode() for flag in extra)]
    return [name.encode(), -1, command_flags, 0, 0, 0, [], [], [spec] if flags else [], []]


VOCABULARY = [
    *(b"SORT STORE by get # limit ASC p_* KEYS auth AUTH2 copy streams STREAMS group count CLAIM".split()),
    *(b"noack STOREDIST withdist any set INCRBY overflow LCS idx strings set\0x k 0 1 2 3 -1 +1 01".split()),
    b"", b" 1", b"\xff", b"9" * 5000,
]  # fmt: skip


@settings(deadline=None)
@given(
    st.sampled_from(list(TABLE)), st.lists(st.sampled_from(VOCABULARY) | st.binary(max_size=4), max_size=40)
)
def test_any_arguments(command: Command, rest: list[bytes]) -> None:
    """Nothing is raised, and what is found lies among the arguments, each place once."""
    head = [part.encode() for part in command.name.split("|")]
    for args in (rest, head + rest):
        found = key_positions(command, args)
        places = [use.index for use in found or ()]
        assert all(1 <= place < len(args) for place in places)
        assert len(set(places)) == len(places)
        patterns = pattern_positions(command, args) or []
        assert all(2 <= place < len(args) for place in patterns)
