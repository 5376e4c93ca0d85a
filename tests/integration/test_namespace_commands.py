"""Every command of the table in two namespaces and bare, beside a Redis without a sidecar.

One redis-server holds the same data under `a:`, under `b:` and bare, behind one pannier with a listener for
each; the reference holds them once. A command runs in each space and on the reference: the replies are the
same byte for byte, its own space's data then are the reference's, and all other data are what they were.

The cases come from the command table. `namespace_samples` says how each command is called; what cannot be
tested, or not byte for byte, is listed by name below.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import hiredis
import pytest

from proxy.resp.commands import UNKNOWN_KEYS, Command, CommandTable
from proxy.resp.namespace import _HARMLESS, _OWN, WHOLE
from proxy.tier.rules import CACHEABLE
from tests.harness import Process, free_port, pannier, redis_server, wait_until
from tests.integration.families import FAMILIES
from tests.integration.namespace_samples import (
    DATA,
    LIBRARY,
    LINES,
    READING,
    SCRIPT,
    WHOLE_LINES,
    Line,
    needed,
    split,
)  # fmt: skip
from tests.integration.test_families import comparable
from tests.integration.test_families import split as split_marked
from tests.integration.wire import Wire, bulk, request

TABLE = CommandTable.load()
SPACES = {"a": b"a:", "b": b"b:", "bare": b""}

UNTESTABLE = {
    **dict.fromkeys(
        ("hexpire", "hexpireat", "hexpiretime", "hpersist", "hpexpire", "hpexpireat", "hpexpiretime", "hpttl", "httl"),
        "Redis 7.4 has them, the servers here do not: only that error is compared",
    ),
    "stralgo": "Redis 6 only: on Redis 7 a namespace refuses it, as all that is unknown",
    "object|freq": "counts only under an LFU policy: only the error is compared, and the null",
}  # fmt: skip
"""Commands with keys of which no real answer can be had here, on some server, and why."""

REFUSED = {"pfdebug": "a command of the administrator's, by its flags"}
"""Commands with keys that a namespace refuses, and why."""

NORMALISED = {
    "ttl": (":", "time has passed"),
    "pttl": (":", "time has passed"),
    "object|idletime": (":", "time has passed"),
    "xpending": (":", "milliseconds idle"),
    "xinfo|consumers": (":", "milliseconds idle"),
    "xinfo|stream": ("T", "FULL: times of deliveries"),
    "xadd": ("T", "*: an id made of the time"),
    "memory|usage": (":", "the key's name takes part, and is longer in a namespace"),
    **dict.fromkeys(("smembers", "sort", "sort_ro"), ("&", "hash tables of two servers have two orders")),
}
"""Commands whose replies differ by nature: how they are compared, and why.

`:` integers blanked; `T` numbers of ten digits and more blanked; `&` lines in any order.
"""

KEYLESS: dict[str, str] = {
    "auth": "AUTH default x", "client|caching": "CLIENT CACHING x", "client|capa": "CLIENT CAPA redirect", "client|id": "CLIENT ID",
    "client|kill": "CLIENT KILL ID 999999999", "client|no-evict": "CLIENT NO-EVICT x", "client|no-touch": "CLIENT NO-TOUCH x", "client|reply": "CLIENT REPLY ON",
    "client|setinfo": "CLIENT SETINFO lib-name x", "client|setname": "CLIENT SETNAME me", "client|tracking": "CLIENT TRACKING off", "client|unblock": "CLIENT UNBLOCK 999999999",
    "command|getkeys": "COMMAND GETKEYS GET k", "command|getkeysandflags": "COMMAND GETKEYSANDFLAGS GET k", "command|info": "COMMAND INFO get", "command|docs": "COMMAND DOCS get",
    "echo": "ECHO hi", "hello": "HELLO", "keys": "KEYS *", "lolwut": "LOLWUT", "psubscribe": "PSUBSCRIBE p*", "publish": "PUBLISH c m", "pubsub|channels": "PUBSUB CHANNELS",
    "pubsub|numsub": "PUBSUB NUMSUB c", "pubsub|shardchannels": "PUBSUB SHARDCHANNELS", "pubsub|shardnumsub": "PUBSUB SHARDNUMSUB c", "punsubscribe": "PUNSUBSCRIBE p", "scan": "SCAN 0",
    "script|exists": "SCRIPT EXISTS x", "script|load": "SCRIPT LOAD 'return 1'", "select": "SELECT 0", "spublish": "SPUBLISH c m", "ssubscribe": "SSUBSCRIBE c", "subscribe": "SUBSCRIBE c",
    "sunsubscribe": "SUNSUBSCRIBE c", "unsubscribe": "UNSUBSCRIBE c", "wait": "WAIT 0 1", "waitaof": "WAITAOF 0 0 1", "flushall": "FLUSHALL", "flushdb": "FLUSHDB",
}  # fmt: skip
"""How commands are called that are allowed, have no keys and want arguments."""

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])


def has_keys(command: Command) -> bool:
    return any("not_key" not in spec.flags for spec in command.key_specs)


def name_of(arguments: list[bytes]) -> str:
    """The command's name in the table; what no table here knows, by the name as it is."""
    command = TABLE.find(*arguments[:2])
    return command.name if command is not None else arguments[0].decode().lower()


SAMPLES: dict[str, list[list[bytes]]] = defaultdict(list)
for _line in LINES:
    SAMPLES[name_of(split(_line))].append(split(_line))
KEYED = sorted({command.name for command in TABLE if has_keys(command)} | {"stralgo"})
"""Redis 6 has STRALGO, and tells of it."""


# --- the servers


@dataclass
class Rig:
    redis: Process
    reference: Process
    elsewhere: Process
    """Where MIGRATE goes."""
    ports: dict[str, int]
    """Of the listeners, by space."""
    dump: bytes
    """A payload of DUMP."""

    def filled_in(self, arguments: list[bytes]) -> list[bytes]:
        known = {b"{dump}": self.dump, b"{port}": b"%d" % self.elsewhere.port}
        return [known.get(argument, argument) for argument in arguments]


@pytest.fixture(scope="module")
def rig(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("namespaces")
    with ExitStack() as stack:
        redis, reference, elsewhere = [stack.enter_context(redis_server(redis_binary, directory, "--hz", "100")) for _ in range(3)]
        ports = {"a": free_port(), "b": free_port()}
        listens = [word for name, port in ports.items() for word in ("--listen", f"127.0.0.1:{port}?namespace={name}")]
        url = f"redis://127.0.0.1:{redis.port}"
        proxy = stack.enter_context(pannier(url, directory, *listens, "--canary-interval", "0"))
        for server in (redis, reference):
            with Wire(server.port) as wire:
                for script in (SCRIPT, READING):
                    wire.ask("SCRIPT", "LOAD", script)
                wire.ask("FUNCTION", "LOAD", LIBRARY)
        with Wire(reference.port) as wire, Wire(ports["a"]) as through:
            wire.line("SET k dumped")
            dump = bulk(wire.line("DUMP k"))
            if wire.line("STRALGO LCS STRINGS a b")[:1] != b"-":
                wait_until(lambda: through.line("STRALGO LCS STRINGS a b")[:1] != b"-")  # it has learnt of it
        yield Rig(redis, reference, elsewhere, ports | {"bare": proxy.port}, dump)


def at_once(wire: Wire, requests: list[bytes]) -> list[bytes]:
    """The replies to a few requests sent in one piece."""
    wire.raw(b"".join(requests))
    return wire.reads(len(requests))


# --- data


def creation(names: list[str], prefix: bytes) -> list[bytes]:
    """The requests that make keys of `DATA` under a prefix."""
    return [
        request(*(prefix + part if part == name.encode() else part for part in split(line)))
        for name in names
        for line in DATA[name]
    ]


def load(rig: Rig, bare: Wire, reference: Wire, names: list[str]) -> None:
    """Empty both servers, and make the same keys in every space and on the reference."""
    requests = [request("FLUSHALL"), *(one for prefix in SPACES.values() for one in creation(names, prefix))]
    assert b"-" not in {reply[:1] for reply in at_once(bare, requests)}
    requests = [request("FLUSHALL"), *creation(names, b"")]
    assert b"-" not in {reply[:1] for reply in at_once(reference, requests)}


STATE = """
local found, read = {}, {
  string = function(k) return redis.call('GET', k) end,
  list = function(k) return redis.call('LRANGE', k, 0, -1) end,
  set = function(k) return redis.call('SMEMBERS', k) end,
  hash = function(k) return redis.call('HGETALL', k) end,
  zset = function(k) return redis.call('ZRANGE', k, 0, -1, 'WITHSCORES') end,
  stream = function(k) return {redis.call('XINFO', 'STREAM', k, 'FULL'), redis.call('XRANGE', k, '-', '+')} end,
}
for _, db in ipairs(ARGV) do
  redis.call('SELECT', db)
  for _, k in ipairs(redis.call('KEYS', '*')) do
    local type = redis.call('TYPE', k).ok
    table.insert(found, {db, k, type, redis.call('OBJECT', 'ENCODING', k), redis.call('PTTL', k), read[type](k)})
  end
end
return found
"""
State = dict[tuple[bytes, bytes], tuple[Any, ...]]


def state(wire: Wire) -> State:
    """All data of a server's databases 0 and 1, by database and key. Times are left out, or in minutes."""
    reader = hiredis.Reader()
    reader.feed(wire.ask("EVAL", STATE, 0, 0, 1))
    found: State = {}
    for database, key, kind, encoding, ttl, value in reader.gets():
        if kind == b"set":
            value = sorted(value)
        elif kind == b"hash":
            value = sorted(zip(value[::2], value[1::2], strict=True))
        elif kind == b"stream":
            value = timeless(value)
        found[database, key] = (kind, encoding, min(ttl // 60000, 10**6), value)
    return found


def timeless(value: object) -> object:
    """A stream's description without times of day and the ids made of them."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if isinstance(value, int):
        return "time" if value > 10**12 else value
    return re.sub(rb"\d{13}(-\d+)?", b"time", value) if isinstance(value, bytes) else value


def part(whole: State, space: str) -> State:
    """What of all data is in a space, by the names it uses."""
    prefix, others = SPACES[space], tuple(filter(None, SPACES.values()))
    if not prefix:
        return {(db, key): value for (db, key), value in whole.items() if not key.startswith(others)}
    return {(db, key[len(prefix) :]): value for (db, key), value in whole.items() if key.startswith(prefix)}


def blanked(name: str, reply: bytes) -> object:
    """What of a reply must be the same on two servers."""
    mark = NORMALISED[name][0] if name in NORMALISED else ""
    if mark == "&":
        return sorted(reply.split(b"\r\n"))
    pattern = {":": rb"(?<=:)\d+(?=\r\n)", "T": rb"\d{10,}(-\d+)?"}.get(mark)
    return re.sub(pattern, b"#", reply) if pattern else reply


# --- running


def alone(arguments: list[bytes]) -> list[list[bytes]]:
    return [arguments]


def pipelined(arguments: list[bytes]) -> list[list[bytes]]:
    return [[b"SET", b"beside", b"1"], arguments, [b"GET", b"beside"], arguments, [b"INCR", b"beside"]]


def in_transaction(arguments: list[bytes]) -> list[list[bytes]]:
    return [[b"MULTI"], [b"SET", b"beside", b"1"], arguments, [b"GET", b"beside"], arguments, [b"EXEC"]]


PATHS = (alone, pipelined, in_transaction)


@dataclass
class Connections:
    """One to each space, and to both servers past the sidecar."""

    rig: Rig
    spaces: dict[str, Wire]
    reference: Wire
    redis: Wire
    """RESP2, to look at the data."""
    judge: Wire
    """The same for the reference."""
    elsewhere: Wire

    def run(self, wire: Wire, name: str, calls: list[list[bytes]]) -> list[object]:
        """The replies to calls sent at once, as far as they must be the same everywhere."""
        if name == "watch":
            calls = [*calls, [b"UNWATCH"]]
        if name == "migrate":
            self.elsewhere.line("FLUSHALL")
        return [blanked(name, reply) for reply in at_once(wire, [request(*call) for call in calls])]

    def compare(self, calls: list[list[bytes]], name: str, names: list[str], spaces: tuple[str, ...]) -> list[object]:
        """Run calls in the spaces and on the reference, and compare all there is; the reference's replies."""
        load(self.rig, self.spaces["bare"], self.reference, names)
        theirs = self.run(self.reference, name, calls)
        expected = state(self.judge)
        landed = part(state(self.elsewhere), "bare") if name == "migrate" else {}
        before = state(self.redis)
        for space in spaces:
            assert self.run(self.spaces[space], name, calls) == theirs, (space, calls)
            after = state(self.redis)
            assert part(after, space) == expected, (space, calls)
            for other in SPACES.keys() - {space}:
                assert part(after, other) == part(before, other), (space, "changed", other, calls)
            if name == "migrate":
                assert part(state(self.elsewhere), space) == landed, (space, calls)
            before = after
        return theirs


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def connections(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Connections]:
    protocol = request.param
    with ExitStack() as stack:
        def connect(port: int, protocol: int = protocol) -> Wire:
            return stack.enter_context(Wire(port, protocol))

        spaces = {space: connect(port) for space, port in rig.ports.items()}
        yield Connections(
            rig, spaces, connect(rig.reference.port), connect(rig.redis.port, 2), connect(rig.reference.port, 2),
            connect(rig.elsewhere.port, 2),
        )  # fmt: skip


class TestEveryCommandWithKeys:
    @pytest.mark.parametrize("path", PATHS, ids=[path.__name__ for path in PATHS])
    @pytest.mark.parametrize("name", [name for name in KEYED if name not in REFUSED])
    def test_as_without_a_namespace(self, connections: Connections, name: str, path: Any) -> None:
        if name == "stralgo" and connections.reference.line("STRALGO LCS STRINGS a b")[:1] == b"-":
            pytest.skip(UNTESTABLE[name])
        bare_name = [word.encode() for word in name.split("|")]
        for sample in (*SAMPLES[name], bare_name):
            arguments = connections.rig.filled_in(sample)
            connections.compare(path(arguments), name, needed(sample), tuple(SPACES))

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, connections: Connections, name: str) -> None:
        arguments = [b"PFDEBUG", b"ENCODING", b"hll"]
        load(connections.rig, connections.spaces["bare"], connections.reference, ["hll"])
        for space in ("a", "b"):
            reply = connections.spaces[space].ask(*arguments)
            assert re.fullmatch(rb"-ERR pannier: PFDEBUG is refused in a namespace: [^\r\n]*\r\n", reply)
        assert connections.spaces["bare"].ask(*arguments) == connections.reference.ask(*arguments)

    def test_every_command_has_samples_that_work(self, connections: Connections, rig: Rig) -> None:
        """A command that the server has is called at least once in a way that is no error."""
        theirs = CommandTable.load()
        reader = hiredis.Reader()
        reader.feed(connections.judge.line("COMMAND"))
        entries = reader.gets()
        theirs.overlay(entries)
        present = {entry[0].decode() for entry in entries}
        for command in theirs:
            if not has_keys(command) or command.name in REFUSED or UNKNOWN_KEYS in command.key_specs:
                continue  # where its keys are unknown (Redis 6's HOST: and POST), it is refused
            name = command.name
            assert SAMPLES.get(name), f"{name} has keys and no sample"
            if name.partition("|")[0] not in present:
                continue
            replies: list[object] = []
            for sample in SAMPLES[name]:
                load(rig, connections.spaces["bare"], connections.reference, needed(sample))
                replies += connections.run(connections.reference, name, [rig.filled_in(sample)])
            assert any(map(succeeded, replies)) or name in UNTESTABLE, name

    def test_what_is_listed_is_there(self) -> None:
        names = set(KEYED)
        assert UNTESTABLE.keys() | REFUSED.keys() <= names
        assert SAMPLES.keys() <= names
        assert {name for name in NORMALISED if name not in names} == set()


def succeeded(reply: object) -> bool:
    """Whether what `blanked` made of a reply is no error."""
    lines = reply if isinstance(reply, list) else [reply]
    return not any(line.startswith(b"-") for line in lines)


class TestCommandsOnAllKeys:
    """SCAN, KEYS, DBSIZE, RANDOMKEY and flushes see a namespace as Redis would show a database of its own."""

    @pytest.mark.parametrize("line", WHOLE_LINES, ids=map(str, WHOLE_LINES))
    def test_as_without_a_namespace(self, connections: Connections, line: Line) -> None:
        arguments = split(line)
        ours = {}
        load(connections.rig, connections.spaces["bare"], connections.reference, list(DATA))
        theirs = connections.reference.ask(*arguments)
        expected, before = state(connections.judge), state(connections.redis)
        for space in ("a", "b"):
            ours[space] = connections.spaces[space].ask(*arguments)
            after = state(connections.redis)
            assert part(after, space) == expected
            for other in SPACES.keys() - {space}:
                assert part(after, other) == part(before, other)
            before = after
        for space, reply in ours.items():
            if line == "RANDOMKEY":
                assert bulk(reply).decode() in DATA, space
            else:
                assert sorted(reply.split(b"\r\n")) == sorted(theirs.split(b"\r\n")), space


class TestKeylessCommands:
    """Each is allowed in a namespace and answered, or refused by name."""

    NAMES = sorted(command.name for command in TABLE if not has_keys(command))
    ALLOWED = _HARMLESS | WHOLE | _OWN

    def call(self, name: str) -> list[bytes]:
        """An invocation of the arity in the table."""
        if name in KEYLESS:
            return split(KEYLESS[name])
        command = TABLE.find(*(word.encode() for word in name.split("|")))
        assert command is not None
        head = [word.encode() for word in name.split("|")]
        if command.container:
            return head
        return head + [b"1"] * (abs(command.arity) - len(head))

    def allowed(self, name: str) -> bool:
        command = TABLE.find(name.encode())
        container = command is not None and command.container  # without a sub-command: Redis refuses it
        return name in self.ALLOWED or name.endswith("|help") or container

    @both_protocols
    @pytest.mark.parametrize("name", [*NAMES, "sidecar"])
    def test_allowed_or_refused(self, rig: Rig, name: str, protocol: int) -> None:
        arguments = [b"SIDECAR", b"HELP"] if name == "sidecar" else self.call(name)
        with Wire(rig.ports["a"], protocol) as wire, Wire(rig.reference.port, protocol) as reference:
            reply = wire.ask(*arguments)
            if not self.allowed(name):
                spoken = re.escape(name.replace("|", " ").upper().encode())
                if reply.startswith(b"-ERR unknown command"):  # the server does not have it
                    assert reply == reference.ask(*arguments)
                    return
                assert re.fullmatch(rb"-ERR pannier: %b is refused in a namespace: [^\r\n]*\r\n" % spoken, reply)
                assert wire.ask("PING") == b"+PONG\r\n"
                return
            assert not reply.startswith(b"-ERR pannier")
            if name not in ("auth", "client|no-evict", "client|setinfo", "client|unblock", "sidecar"):
                assert reply[:1] == reference.ask(*arguments)[:1]

    @both_protocols
    @pytest.mark.parametrize("name", [name for name in NAMES if name not in _HARMLESS])
    def test_in_a_transaction(self, rig: Rig, name: str, protocol: int) -> None:
        """What is refused, and what takes several steps, fails the transaction."""
        with Wire(rig.ports["a"], protocol) as wire:
            replies = [wire.line("MULTI"), wire.ask(*self.call(name)), wire.line("EXEC")]
        assert replies[0] == b"+OK\r\n"
        if name in WHOLE or not self.allowed(name):
            assert replies[1].startswith((b"-ERR pannier: ", b"-ERR unknown command"))
            assert replies[2].startswith(b"-EXECABORT ")
        else:
            assert not replies[1].startswith(b"-ERR pannier: ")

    def test_unknown_commands_are_refused(self, rig: Rig) -> None:
        with Wire(rig.ports["a"]) as wire, Wire(rig.reference.port) as reference:
            for line in ("NOSUCH a b", "nosuch", "NOSUCH " + " ".join("argument" * 5 for _ in range(9))):
                assert wire.line(line) == reference.line(line)
            tells = not reference.line("COMMAND INFO config|get").startswith((b"*1\r\n*-1", b"*1\r\n$-1"))  # its sub-commands, from 7 on
            for line in ("CONFIG NOSUCH", "OBJECT NOSUCH k", "XINFO nosuch k", "CLIENT NOSUCH", "CLIENT NOSUCH x"):
                for state in ("", "CLIENT NO-EVICT x"):
                    assert not state or wire.line(state).startswith(b"-")
                    reply = wire.line(line)
                    assert reply == reference.line(line) if tells else reply.startswith(b"-ERR pannier: ") and b"is refused in a namespace" in reply
            for line in ("SORT l alpha foo", "SORT l STORE d foo", "XREAD foo", "XREADGROUP foo bar baz a b c d", "GEORADIUS none 1 2 3 m foo", "MIGRATE h 1 k 0 1 foo"):
                assert wire.line(line) == reference.line(line)


READS = sorted(
    command.name for command in TABLE if "readonly" in command.flags and has_keys(command) and command.name in SAMPLES
)


class TestTheTierMakesNoDifference:
    """Reads come from Redis, then from memory, then again from Redis once they have changed."""

    @pytest.mark.parametrize("name", READS)
    def test_read_again_and_changed_by_the_bare_listener(self, connections: Connections, name: str) -> None:
        a, bare, reference = connections.spaces["a"], connections.spaces["bare"], connections.reference
        for sample in SAMPLES[name]:
            arguments, names = connections.rig.filled_in(sample), needed(sample)
            if arguments[1:3] == [b"BLOCK", b"0"]:
                continue  # it would wait for the keys deleted
            load(connections.rig, bare, reference, names)
            theirs = connections.run(reference, name, [arguments])
            for _ in range(3):
                assert connections.run(a, name, [arguments]) == theirs, arguments
            if not names:
                continue
            for key in names:
                assert bare.ask("DEL", b"a:" + key.encode()) == reference.ask("DEL", key) == b":1\r\n"
            theirs = connections.run(reference, name, [arguments])
            for _ in range(3):
                assert connections.run(a, name, [arguments]) == theirs, arguments
            at_once(bare, creation(names, b"a:"))
            at_once(reference, creation(names, b""))
            assert connections.run(a, name, [arguments]) == connections.run(reference, name, [arguments]), arguments

    @pytest.mark.parametrize("name", sorted(CACHEABLE.intersection(READS) | {"mget"}))
    def test_memory_answers(self, connections: Connections, name: str) -> None:
        """In `a`, and after that from no entry of `a`'s in `b` or bare."""
        sample = next(sample for sample in SAMPLES[name] if needed(sample))
        names = needed(sample)
        load(connections.rig, connections.spaces["bare"], connections.reference, names)
        theirs = connections.run(connections.reference, name, [sample])
        if not succeeded(theirs[0]):
            pytest.skip("not on this server")
        a = connections.spaces["a"]

        def hit() -> bool:
            before = hits(a)
            assert connections.run(a, name, [sample]) == theirs
            return hits(a) > before

        wait_until(hit)
        for key in names:
            for prefix in (b"b:", b""):
                connections.spaces["bare"].ask("DEL", prefix + key.encode())
            connections.reference.ask("DEL", key)
        gone = connections.run(connections.reference, name, [sample])
        for space, expected in (("b", gone), ("bare", gone), ("a", theirs)):
            for _ in range(3):
                assert connections.run(connections.spaces[space], name, [sample]) == expected, space


def hits(wire: Wire) -> int:
    """Reads answered from memory so far in the connection's space."""
    reader = hiredis.Reader()
    reader.feed(wire.line("SIDECAR STATS"))
    stats = reader.gets()
    fields = stats if isinstance(stats, dict) else dict(zip(stats[::2], stats[1::2], strict=True))
    return int(fields[b"tier_hits"])


LEFT_OUT = ("server", "cluster", "configuration", "access control", "command table", "functions", "publishing", "databases")
"""Families about the server, not about keys."""


class TestEveryFamily:
    """The scripts of `families`, whole, on one server: first past the sidecar, then in a namespace."""

    @both_protocols
    @pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LEFT_OUT])
    def test_byte_for_byte(self, rig: Rig, family: str, protocol: int) -> None:
        script = [split_marked(line) for line in FAMILIES[family]]
        script = [(mark, arguments) for mark, arguments in script if in_namespaces(arguments)]
        requests = [request(*arguments) for _, arguments in script]
        with Wire(rig.redis.port) as look, Wire(rig.ports["bare"]) as bare:
            at_once(bare, [request("FLUSHALL"), request("SCRIPT", "FLUSH")])
            with Wire(rig.redis.port, protocol) as wire:
                theirs = [wire.ask(*arguments) for _, arguments in script]
            expected = state(look)
            for way in ("one by one", "at once"):
                made = [request("FLUSHALL"), request("SCRIPT", "FLUSH"), *creation(list(DATA), b"b:"), *creation(list(DATA), b"")]
                at_once(bare, made)
                before = state(look)
                with Wire(rig.ports["a"], protocol) as wire:
                    ours = [wire.ask(*arguments) for _, arguments in script] if way == "one by one" else wire.pipeline(requests, len(requests))
                for (mark, arguments), one, other in zip(script, theirs, ours, strict=True):
                    assert comparable(mark, other) == comparable(mark, one), (way, arguments)
                after = state(look)
                assert part(after, "a") == expected, way
                assert {space: part(after, space) for space in ("b", "bare")} == {space: part(before, space) for space in ("b", "bare")}


def in_namespaces(arguments: list[bytes]) -> bool:
    """Whether a line of `families` has the same reply in a namespace as without."""
    command = TABLE.find(*arguments[:2])
    if command is None or command.name in REFUSED or command.name == "memory|usage":
        return False
    if command.name in ("client|kill", "client|list", "client|unblock"):
        return False  # refused if an earlier line has left state in the connection
    if command.name in _HARMLESS | WHOLE:
        return True
    return has_keys(command) and not (command.name.startswith("eval") and any(b"{KEYS[1]" in argument for argument in arguments))
