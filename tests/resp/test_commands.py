"""The command table: finding commands, and taking what a live server reports."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.commands import (
    MAX_SPELLINGS,
    UNKNOWN_KEYS,
    BeginIndex,
    Command,
    CommandTable,
    FindKeynum,
    FindRange,
    KeySpec,
    describe,
)

RO = frozenset({"RO", "access"})


def found(table: CommandTable, name: bytes, sub: bytes | None = None) -> Command:
    command = table.find(name, sub)
    assert command is not None
    return command


def entry6(name: bytes, *flags: bytes, arity: int = 2, keys: tuple[int, int, int] = (1, 1, 1)) -> list[Any]:
    """An entry of Redis 6.2's COMMAND."""
    return [name, arity, list(flags), *keys, [b"@read"]]


SPEC_RESP2: list[Any] = [
    b"notes", b"why", b"flags", [b"RO", b"access"],
    b"begin_search", [b"type", b"index", b"spec", [b"index", 3]],
    b"find_keys", [b"type", b"keynum", b"spec", [b"keynumidx", 0, b"firstkey", 1, b"keystep", 1]],
]  # fmt: skip
SPEC_RESP3: dict[bytes, Any] = {
    b"flags": {b"RO", b"access"},
    b"begin_search": {b"type": b"index", b"spec": {b"index": 3}},
    b"find_keys": {b"type": b"keynum", b"spec": {b"keynumidx": 0, b"firstkey": 1, b"keystep": 1}},
}
SPEC = KeySpec(RO, BeginIndex(3), FindKeynum(0, 1, 1))


def entry7(name: bytes, *flags: bytes, specs: object = (), subs: object = (), arity: int = -2) -> list[Any]:
    """An entry of Redis 7's COMMAND."""
    listed = [*specs] if isinstance(specs, tuple) else specs
    below = [*subs] if isinstance(subs, tuple) else subs
    return [name, arity, set(flags), 0, 0, 0, {b"@slow"}, [b"request_policy:all_shards"], listed, below]


class TestVendored:
    def test_commands(self) -> None:
        table = CommandTable.load()
        assert len(table) == len(list(table)) > 350
        assert not table.server_reported
        get = found(table, b"get")
        assert (get.name, get.arity, sorted(get.flags)) == ("get", 2, ["fast", "readonly"])
        assert get.key_specs == (KeySpec(RO, BeginIndex(1), FindRange(0, 1, 0)),)
        assert get.blocking_known
        assert "blocking" in found(table, b"blpop").flags

    def test_every_container_is_marked(self) -> None:
        table = CommandTable.load()
        parents = {command.name.partition("|")[0] for command in table if "|" in command.name}
        assert {command.name for command in table if command.container} == parents
        assert {"client", "config", "xgroup"} <= parents


class TestFind:
    def test_in_any_case(self) -> None:
        table = CommandTable.load()
        assert found(table, b"GET") is found(table, b"get") is found(table, b"gEt") is found(table, b"gEt")
        assert (
            found(table, b"cLient", b"iD") is found(table, b"CLIENT", b"ID") is found(table, b"client", b"id")
        )

    @pytest.mark.parametrize("name", [b"", b"nosuch", b"get ", b"get\0", b"\xff\xfe", b"client|id", b"|"])
    def test_unknown(self, name: bytes) -> None:
        assert CommandTable.load().find(name) is None
        assert CommandTable.load().find(name, b"id") is None

    def test_containers(self) -> None:
        table = CommandTable.load()
        assert found(table, b"CLIENT").name == "client"
        assert found(table, b"CLIENT", b"SetName").name == "client|setname"
        assert table.find(b"CLIENT", b"nosuch") is None
        assert table.find(b"CLIENT", b"id|x") is None
        assert table.find(b"CLIENT", b"") is None

    def test_an_argument_is_no_sub_command(self) -> None:
        assert found(CommandTable.load(), b"GET", b"id").name == "get"

    def test_odd_spellings_do_not_grow_the_table_without_bound(self) -> None:
        table = CommandTable.load()
        sizes = {key: len(value) for key, value in vars(table).items() if isinstance(value, dict)}
        letters = [(letter.lower(), letter.upper()) for letter in "zremrangebyscore"]
        spellings = [
            "".join(choice).encode() for choice in itertools.islice(itertools.product(*letters), 9000)
        ]
        assert {found(table, spelling).name for spelling in spellings} == {"zremrangebyscore"}
        for sub in itertools.islice(itertools.product(*((c, c.upper()) for c in "trackinginfo")), 4000):
            assert found(table, b"client", "".join(sub).encode()).name == "client|trackinginfo"
        assert table.find(b"nosuch" * 1000) is None
        grown = {key: len(value) - sizes[key] for key, value in vars(table).items() if key in sizes}
        assert max(grown.values()) == MAX_SPELLINGS


class TestRedis6Reports:
    def test_only_add_names(self) -> None:
        table = CommandTable.load()
        before = found(table, b"GET")
        assert table.overlay([entry6(b"get", b"write", arity=9), entry6(b"m.get", b"readonly")]) == 1
        assert table.server_reported
        assert found(table, b"GET") is before
        added = found(table, b"M.Get")
        assert (added.name, added.arity, list(added.flags)) == ("m.get", 2, ["readonly"])
        assert not added.blocking_known
        assert not added.container

    @pytest.mark.parametrize(
        ("flags", "keys", "spec"),
        [
            ([b"readonly"], (1, 1, 1), KeySpec(RO, BeginIndex(1), FindRange(0, 1, 0))),
            ([b"readonly"], (1, -1, 2), KeySpec(RO, BeginIndex(1), FindRange(-1, 2, 0))),
            ([b"write"], (2, 4, 1), KeySpec(UNKNOWN_KEYS.flags, BeginIndex(2), FindRange(2, 1, 0))),
            ([b"write", b"movablekeys"], (1, 1, 1), UNKNOWN_KEYS),
            ([b"readonly"], (0, 0, 0), UNKNOWN_KEYS),
        ],
    )
    def test_turn_first_last_step_into_a_specification(
        self, flags: list[bytes], keys: tuple[int, int, int], spec: KeySpec
    ) -> None:
        table = CommandTable.load()
        assert table.overlay([entry6(b"m.x", *flags, keys=keys)]) == 1
        assert found(table, b"m.x").key_specs == (spec,)

    def test_may_lack_categories(self) -> None:
        assert CommandTable.load().overlay([entry6(b"m.x")[:6]]) == 1


class TestRedis7Reports:
    @pytest.mark.parametrize("spec", [SPEC_RESP2, SPEC_RESP3])
    def test_win(self, spec: object) -> None:
        table = CommandTable.load()
        assert table.overlay([entry7(b"GET", b"write", b"blocking", specs=(spec,), arity=-3)]) == 0
        get = found(table, b"get")
        assert (get.arity, sorted(get.flags), get.key_specs) == (-3, ["blocking", "write"], (SPEC,))
        assert get.blocking_known
        assert not get.keys_by_count

    def test_add_sub_commands(self) -> None:
        table = CommandTable.load()
        subs = (entry7(b"m.box|open"), entry7(b"SHUT"), [b"broken"], entry7(b"M.BOX|LOCK"))
        assert (
            table.overlay([entry7(b"m.box", subs=subs), entry7(b"client", subs=(entry7(b"client|new"),))])
            == 5
        )
        assert found(table, b"M.BOX").container
        assert [found(table, b"m.box", sub).name for sub in (b"open", b"shut", b"lock")] == [
            "m.box|open", "m.box|shut", "m.box|lock",
        ]  # fmt: skip
        assert found(table, b"client", b"new").name == "client|new"
        assert found(table, b"client", b"id").name == "client|id"

    def test_a_known_container_stays_one(self) -> None:
        table = CommandTable.load()
        table.overlay([entry7(b"client")])
        assert found(table, b"client", b"id").name == "client|id"

    def test_replace_what_redis_6_said(self) -> None:
        table = CommandTable.load()
        table.overlay([entry6(b"newer", keys=(0, 0, 0))])
        assert table.overlay([entry7(b"newer")]) == 0
        assert found(table, b"newer").key_specs == ()
        assert found(table, b"newer").blocking_known

    @pytest.mark.parametrize("name", [b"get", b"eval"])
    def test_silence_about_keys_is_not_believed(self, name: bytes) -> None:
        table = CommandTable.load()
        before = found(table, name)
        table.overlay([entry7(name, b"readonly", b"movablekeys", arity=7)])
        after = found(table, name)
        assert (after.arity, after.key_specs) == (7, before.key_specs)
        assert after.keys_by_count == before.keys_by_count

    def test_modules_without_specifications_have_unknown_keys(self) -> None:
        table = CommandTable.load()
        table.overlay([entry7(b"m.x", b"module"), entry7(b"builtin")])
        assert found(table, b"m.x").key_specs == (UNKNOWN_KEYS,)
        assert found(table, b"builtin").key_specs == ()

    def test_tables_are_independent(self) -> None:
        CommandTable.load().overlay([entry7(b"get", arity=99), entry7(b"m.x")])
        assert found(CommandTable.load(), b"get").arity == 2
        assert CommandTable.load().find(b"m.x") is None


def with_part(part: str, **rule: object) -> list[Any]:
    spec = dict(SPEC_RESP3)
    kind = rule.pop("type")
    spec[part.encode()] = {b"type": kind, b"spec": {key.encode(): value for key, value in rule.items()}}
    return entry7(b"m.x", specs=(spec,))


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.binary(max_size=4) | st.sampled_from([b"spec", b"type"])
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=10) | st.dictionaries(SCALARS, inner)


VALUES = st.recursive(SCALARS, nested)


class TestMalformedReports:
    @pytest.mark.parametrize("reply", [None, b"", 5, {}, {b"a": 1}, [], [None], [[]], [[b"x"]], "get"])
    def test_are_no_report(self, reply: object) -> None:
        table = CommandTable.load()
        assert table.overlay(reply) == 0
        assert not table.server_reported

    @pytest.mark.parametrize(
        "entry",
        [
            entry6(b"\xff"),
            [None, *entry6(b"m.x")[1:]],
            [b"m.x", b"2", [], 1, 1, 1, []],
            [b"m.x", True, [], 1, 1, 1, []],
            [b"m.x", 2, b"readonly", 1, 1, 1, []],
            [b"m.x", 2, [7], 1, 1, 1, []],
            [b"m.x", 2, [], None, 1, 1, []],
            [b"m.x", 2, [], 1, 1, 0, []],
            entry7(b"m.x", specs=None),
            entry7(b"m.x", specs=([b"flags"],)),
            entry7(b"m.x", specs=({b"flags": []},)),
            entry7(b"m.x", subs=5),
            with_part("begin_search", type=b"index", index=0),
            with_part("begin_search", type=b"index"),
            with_part("begin_search", type=b"keyword", keyword=5, startfrom=1),
            with_part("begin_search", type=b"keyword", keyword=b"K"),
            with_part("find_keys", type=b"range", lastkey=0, keystep=0, limit=0),
            with_part("find_keys", type=b"range", lastkey=0, keystep=1, limit=-1),
            with_part("find_keys", type=b"range", lastkey=None, keystep=1, limit=0),
            with_part("find_keys", type=b"keynum", keynumidx=-1, firstkey=1, keystep=1),
            with_part("find_keys", type=b"keynum", keynumidx=0, firstkey=-1, keystep=1),
        ],
    )
    def test_entries_are_skipped(self, entry: list[Any]) -> None:
        table = CommandTable.load()
        assert table.overlay([entry, entry7(b"m.good")]) == 1
        assert table.server_reported
        assert table.find(b"m.x") is None
        assert found(table, b"m.good").arity == -2

    def test_known_commands_keep_what_was_known(self) -> None:
        table = CommandTable.load()
        before = found(table, b"get")
        table.overlay([entry7(b"get", specs=({b"flags": []},))])
        assert found(table, b"get") is before

    def test_unheard_of_rules_are_unknown_ones(self) -> None:
        table = CommandTable.load()
        table.overlay([with_part("find_keys", type=b"oracle", depth=3)])
        assert found(table, b"m.x").key_specs == (KeySpec(RO, BeginIndex(3), None),)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(VALUES), st.lists(st.tuples(st.integers(0, 9), VALUES)))
    def test_nothing_is_raised(self, reply: list[object], changes: list[tuple[int, object]]) -> None:
        entry = entry7(b"m.x", specs=(SPEC_RESP2,))
        for at, value in changes:
            entry[at] = value
        CommandTable.load().overlay([*reply, entry])


def test_describe_gives_the_shape_of_the_file() -> None:
    name, facts = describe(entry7(b"GET", b"readonly", specs=(SPEC_RESP2,)))
    assert name == "get"
    assert facts == {
        "arity": -2,
        "flags": ["readonly"],
        "acl_categories": ["@slow"],
        "tips": ["request_policy:all_shards"],
        "first_key": 0,
        "last_key": 0,
        "step": 0,
        "key_specs": [
            {
                "flags": ["RO", "access"],
                "begin_search": {"type": "index", "index": 3},
                "find_keys": {"type": "keynum", "keynumidx": 0, "firstkey": 1, "keystep": 1},
                "notes": "why",
            }
        ],
        "subcommands": [],
        "full": True,
    }


def test_what_is_told_again_changes_nothing() -> None:
    """Each reconnection asks: what is remembered by command must not be so for each answer anew."""
    table = CommandTable.load()
    table.overlay([entry7(b"newer"), entry7(b"get", arity=2)])
    before = {command.name: command for command in table}
    table.overlay([entry7(b"newer"), entry7(b"get", arity=2)])
    assert all(before[command.name] is command for command in table)
    table.overlay([entry7(b"newer", arity=7)])
    assert table.find(b"newer") is not before["newer"]
