"""What is kept and what each command does to it: by the table, command by command."""

from __future__ import annotations

import pytest

from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.tracking import Mode
from proxy.tier.rules import CACHEABLE, MOST_KEYS, Rules, Touch, key_frame, lifetimes, marks
from tests.tier.shelves import TABLE, part

MANY = {
    "exists": ["k", "l"], "lcs": ["k", "l"], "sinter": ["k", "l"], "sunion": ["k", "l"], "sdiff": ["k", "l"],
    "sintercard": ["2", "k", "l"], "zdiff": ["2", "k", "l"], "zinter": ["2", "k", "l"], "zunion": ["2", "k", "l", "WITHSCORES"],
    "zintercard": ["2", "k", "l", "LIMIT", "3"], "json.mget": ["k", "l", "$"],
}  # fmt: skip
OVERLAID = CommandTable.load()
OVERLAID.overlay(
    [
        [name, arity, flags, first, last, 1, [], [], [], []]
        for name, arity, flags, first, last in (
            (b"json.get", -2, [b"readonly", b"module"], 1, 1), (b"json.mget", -3, [b"readonly", b"module"], 1, -2),
            (b"json.type", -2, [b"readonly", b"module"], 1, 1), (b"json.strlen", -2, [b"readonly", b"module"], 1, 1),
            (b"json.arrlen", -2, [b"readonly", b"module"], 1, 1), (b"json.objlen", -2, [b"readonly", b"module"], 1, 1),
            (b"json.objkeys", -2, [b"readonly", b"module"], 1, 1), (b"json.set", -4, [b"write", b"module"], 1, 1),
            (b"ft.search", -3, [b"readonly", b"module"], 0, 0), (b"ft.add", -3, [b"write", b"module"], 0, 0),
            (b"mod.admin", -1, [b"module"], 0, 0), (b"graph.ro", -2, [b"readonly", b"module", b"movablekeys"], 1, 1),
        )
    ]
)  # fmt: skip
RULES = Rules(OVERLAID)


@pytest.mark.parametrize("name", sorted(CACHEABLE))
def test_what_may_be_kept_names_its_keys(name: str) -> None:
    command = OVERLAID.find(name.encode())
    if command is None:
        pytest.fail(f"{name} is in no table")
    arguments = MANY.get(name) or ["k", *["1"] * (abs(command.arity) - 2)]
    keys = [word for word in arguments if word in ("k", "l")]
    for spelling in (name.upper(), name, name.title()):
        read = RULES.read(part(spelling, *arguments))
        assert read is not None
        assert read.keys == tuple(key_frame(key.encode()) for key in keys)
        assert read.part == part(spelling, *arguments)
        assert RULES.part_marks(read.part) == marks(read.keys)


@pytest.mark.parametrize("name", sorted(CACHEABLE))
def test_what_may_be_kept_depends_on_its_keys_alone(name: str) -> None:
    command = OVERLAID.find(name.encode())
    assert command is not None
    assert "readonly" in command.flags
    assert command.flags.isdisjoint({"write", "blocking", "random", "may_replicate", "pubsub", "noscript", "admin", "no_multi"})
    assert all("not_key" not in spec.flags and "incomplete" not in spec.flags for spec in command.key_specs)


@pytest.mark.parametrize(
    "name",
    ["srandmember", "hrandfield", "zrandmember", "randomkey", "ttl", "pttl", "time", "object|idletime", "object|freq", "touch", "scan", "sscan", "hscan", "zscan", "pfcount", "sort_ro", "sort", "keys", "dbsize", "xpending", "xinfo|stream", "xread", "xreadgroup", "dump", "eval_ro", "evalsha_ro", "fcall_ro", "memory|usage", "getex", "getdel", "blpop", "brpop", "xautoclaim", "mget", "spop", "lastsave", "wait", "info"],
)  # fmt: skip
def test_what_may_not_be_kept(name: str) -> None:
    assert name not in CACHEABLE
    assert RULES.read(part(*name.split("|"), "k", "k", "k")) is None


def test_tips_of_the_table_agree() -> None:
    """Redis itself says which replies are not deterministic (docs: command tips)."""
    import json
    from importlib.resources import files

    entries = json.loads(files("proxy.resp").joinpath("commands.json").read_text("utf-8"))["commands"]
    for name in CACHEABLE & set(entries):
        assert "nondeterministic_output" not in entries[name]["tips"], name


@pytest.mark.parametrize("request_", [("GET",), ("GET", "a", "b", "c", "d"), ("ZINTER", "x", "a"), ("ZINTER", "9", "a"), ("EXISTS",), ("NOSUCH", "a"), ("ZUNION", "0")])
def test_what_is_malformed_is_not_kept_or_harmless(request_: tuple[str, ...]) -> None:
    read = RULES.read(part(*request_))
    assert read is None or read.keys


def test_of_many_keys() -> None:
    keys = [f"k{n}" for n in range(MOST_KEYS + 1)]
    assert RULES.read(part("EXISTS", *keys[:MOST_KEYS])) is not None
    assert RULES.read(part("EXISTS", *keys)) is None


@pytest.mark.parametrize("key", [b"", b"\r\n", b"*", b"$1\r\nx\r\n", b"x" * 300, bytes(range(256))])
def test_keys_of_any_bytes(key: bytes) -> None:
    for request in (("GET", key), ("HGET", key, "f"), ("EXISTS", key, b"x"), ("GETRANGE", key, 0, -1)):
        read = RULES.read(part(*request))
        assert read is not None and read.keys[0] == encode.bulk(key) == key_frame(key)


def test_judgements_are_bounded_and_forgotten() -> None:
    rules = Rules(CommandTable.load())
    assert rules.read(part("FT.GET", "a")) is None
    for n in range(9000):
        rules.read(part(f"NOSUCH{n}", "k"))
    assert len(rules._kinds) <= 4096
    rules.forget()
    assert not rules._kinds


def test_lifetimes_are_asked_for_each_key() -> None:
    n, request = lifetimes([b"$1\r\na\r\n", b"$1\r\nb\r\n"], Mode.DEFAULT)
    assert (n, request.count(b"PTTL")) == (2, 2)
    n, request = lifetimes([b"$1\r\na\r\n"], Mode.OPTIN)
    assert n == 2 and request.index(b"CACHING") < request.index(b"PTTL")


A, AB = ("a",), ("a", "b")


@pytest.mark.parametrize(
    ("request_", "touch", "keys"),
    [
        ("PING", Touch.NOTHING, ()), ("ECHO a", Touch.NOTHING, ()), ("PUBLISH a b", Touch.NOTHING, ()), ("TIME", Touch.NOTHING, ()),
        ("CONFIG GET a", Touch.NOTHING, ()), ("DBSIZE", Touch.NOTHING, ()), ("SCRIPT LOAD x", Touch.NOTHING, ()),
        ("GET a", Touch.READS, A), ("MGET a b", Touch.READS, AB), ("EXISTS a b a", Touch.READS, AB), ("TTL a", Touch.READS, A),
        ("ZINTER 2 a b", Touch.READS, AB), ("XREAD STREAMS a b 0 0", Touch.READS, AB), ("OBJECT ENCODING a", Touch.READS, A),
        ("BITFIELD_RO a GET u8 0", Touch.READS, A), ("MEMORY USAGE a", Touch.READS, A), ("DUMP a", Touch.READS, A),
        ("SET a 1", Touch.WRITES, A), ("set a 1 EX 9", Touch.WRITES, A), ("MSET a 1 b 2", Touch.WRITES, AB), ("DEL a b", Touch.WRITES, AB),
        ("RENAME a b", Touch.WRITES, AB), ("COPY a b", Touch.WRITES, AB), ("EXPIRE a 1", Touch.WRITES, A), ("GETEX a EX 1", Touch.WRITES, A),
        ("GETDEL a", Touch.WRITES, A), ("MOVE a 1", Touch.WRITES, A), ("RESTORE a 0 x", Touch.WRITES, A), ("LMOVE a b LEFT LEFT", Touch.WRITES, AB),
        ("BLPOP a b 0", Touch.WRITES, AB), ("SMOVE a b m", Touch.WRITES, AB), ("ZRANGESTORE a b 0 1", Touch.WRITES, AB),
        ("ZUNIONSTORE a 1 b", Touch.WRITES, AB), ("XADD a * f v", Touch.WRITES, A), ("BITFIELD a SET u8 0 1", Touch.WRITES, A),
        ("PFCOUNT a b", Touch.WRITES, AB), ("PFMERGE a b", Touch.WRITES, AB), ("XREADGROUP GROUP g c STREAMS a b > >", Touch.WRITES, AB),
        ("MIGRATE h 1 a 0 9", Touch.WRITES, A), ("MIGRATE h 1  0 9 KEYS a b", Touch.WRITES, None), ("GEORADIUS a 1 1 1 m STORE b", Touch.WRITES, AB),
        ("FLUSHALL", Touch.EVERYTHING, ()), ("FLUSHDB ASYNC", Touch.EVERYTHING, ()), ("SWAPDB 0 1", Touch.EVERYTHING, ()),
        ("EVAL x 1 a", Touch.UNKNOWN, ()), ("EVALSHA x 0", Touch.UNKNOWN, ()), ("FCALL f 1 a", Touch.UNKNOWN, ()),
        ("SORT a BY w* STORE b", Touch.UNKNOWN, ()), ("SORT_RO a BY w* GET x*", Touch.READS_UNKNOWN, ()),
        ("NOSUCH a", Touch.UNKNOWN, ()), ("JSON.GET a", Touch.READS, A), ("JSON.SET a $ 1", Touch.WRITES, A), ("JSON.MGET a b $", Touch.READS, AB),
        ("FT.SEARCH i q", Touch.READS_UNKNOWN, ()), ("FT.ADD i q", Touch.UNKNOWN, ()), ("MOD.ADMIN x", Touch.UNKNOWN, ()), ("GRAPH.RO a", Touch.READS_UNKNOWN, ()),
    ],
)  # fmt: skip
def test_touch(request_: str, touch: Touch, keys: tuple[str, ...] | None) -> None:
    arguments = [word.encode() for word in request_.split(" ")]
    command = OVERLAID.find(arguments[0], arguments[1] if len(arguments) > 1 else None)
    found, named = RULES.touch(command, arguments)
    assert found is touch
    if keys is not None:
        assert set(named) == set(marks(key_frame(key.encode()) for key in keys))


def test_every_write_of_the_table_is_one() -> None:
    """No command with the flag `write` and keys goes for a read, or for nothing."""
    harmless = {"function|delete", "function|flush", "function|load", "function|restore"}
    rules = Rules(TABLE)
    for command in TABLE:
        if "write" not in command.flags or command.name in harmless:
            continue
        arguments = [*command.name.encode().split(b"|"), *[b"1"] * 8]
        assert rules.touch(command, arguments)[0] in (Touch.WRITES, Touch.UNKNOWN, Touch.EVERYTHING), command.name
