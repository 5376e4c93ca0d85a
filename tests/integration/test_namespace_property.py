"""Whatever clients in a namespace send: nothing goes up that names a key outside, no reply names the prefix.

Commands are random: any of the table or none, keys that look like options, patterns or frames, arguments too
few or too many, in any casing, in pieces of any size, in both protocols, in and out of transactions. First
in memory, where every byte sent upstream is seen and judged by the command table; then on real servers,
whose replies must not hold the prefix.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.keys import key_positions, pattern_positions
from proxy.resp.namespace import _HARMLESS, SCRIPTS, WHOLE, Namespace
from tests.client.linked import Client, Connection
from tests.harness import Process, pannier
from tests.integration.namespace_samples import LIBRARY, LINES, split
from tests.integration.wire import Wire, request
from tests.tier.racing import PARSER, ModelRedis, Race, Raw, Wrong

TABLE = CommandTable.load()
Call = list[bytes]

FRAMES = b"*2\r\n$3\r\nGET\r\n$1\r\n"
KEYS = (
    b"k", b"other:k", b"ns:k", b"", b"*", b"?", b"[a]", b"\\*", b"k*", FRAMES, b"\r\n", b"$1\r\nx\r\n", b"*", b"*1\r\n",
    b"GET", b"STORE", b"STREAMS", b"KEYS", b"BY", b"MATCH", b"0", b"1", b"2", b"x" * 200, b"y" * 255, b"z" * 300, bytes(range(256)),
    b"__keyspace@0__:k", b"__keyevent@0__:del", b"__key*", b"\0pannier:outside:k",
)  # fmt: skip
WORDS = (
    b"STORE", b"storedist", b"BY", b"get", b"GET", b"LIMIT", b"ALPHA", b"STREAMS", b"GROUP", b"COUNT", b"BLOCK", b"NOACK", b"KEYS", b"AUTH", b"AUTH2",
    b"COPY", b"REPLACE", b"MATCH", b"TYPE", b"DB", b"WEIGHTS", b"AGGREGATE", b"WITHSCORES", b"LEFT", b"RIGHT", b"MIN", b"EX", b"NX", b"IDX", b"nosort", b"other:*",
    b"other:*->f", b"#", b"ON", b"BCAST", b"PREFIX", b"REDIRECT", b"-1", b"0", b"1", b"2", b"3", b"00", b"10", b"0.01", b"-", b"+", b">", b"$", b"return 1", b"u8", b"by\0x",
)  # fmt: skip
NAMES = [name.encode() for name in sorted({command.name for command in TABLE})]
UNKNOWN = [b"nosuch", b"host:x", b"json.get", b"ft.search", b"object|encoding", b"client|id", b"config|get", b"\0", b"get\0"]


# --- random commands


@st.composite
def spelled(draw: st.DrawFn, name: bytes) -> bytes:
    how = draw(st.sampled_from(["lower", "upper", "mixed"]))
    if how == "mixed":
        return bytes(byte ^ 0x20 if chr(byte).isalpha() and draw(st.booleans()) else byte for byte in name)
    return name.upper() if how == "upper" else name


@st.composite
def free_calls(draw: st.DrawFn) -> Call:
    """Any command with any arguments."""
    name = draw(st.sampled_from(NAMES) if draw(st.integers(0, 9)) else st.sampled_from(UNKNOWN))
    parts = name.split(b"|") if name not in UNKNOWN else [name]
    head = [draw(spelled(part)) for part in parts]
    argument = st.one_of(st.sampled_from(KEYS), st.sampled_from(WORDS))
    return head + draw(st.lists(argument, max_size=7))


KEYLESS_LINES = (
    "SCAN 0", "SCAN 0 MATCH other:* COUNT 10", "SCAN 0 COUNT 10 TYPE string", "KEYS *", "KEYS other:*", "RANDOMKEY", "DBSIZE", "FLUSHDB", "FLUSHALL ASYNC", "CLIENT TRACKING ON BCAST",
    "CLIENT TRACKING ON BCAST PREFIX other: PREFIX k", "CLIENT TRACKING ON", "SUBSCRIBE __keyspace@0__:k", "PSUBSCRIBE __keyspace@*__:*", "PUBLISH __keyspace@0__:k set", "CONFIG GET *", "INFO keyspace",
    "MOVE k 1", "SWAPDB 0 1", "DEBUG OBJECT k", "MEMORY USAGE k", "CLIENT LIST", "SCRIPT FLUSH", "MONITOR", "OBJECT HELP", "PUBSUB CHANNELS *",
)  # fmt: skip
KNOWN_LINES = [split(line) for line in (*LINES, *KEYLESS_LINES * 3)]
OPTIONS = frozenset(word.upper() for word in WORDS) | {b"NUMKEYS"}


@st.composite
def likely_calls(draw: st.DrawFn) -> Call:
    """A command as it may be meant, with keys exchanged, and perhaps an argument lost, doubled or put in."""
    line = draw(st.sampled_from(KNOWN_LINES))
    command = TABLE.find(*line[:2])
    uses = (key_positions(command, line) or []) if command is not None else []
    call = list(line)
    for use in uses:
        if draw(st.integers(0, 3)):
            call[use.index] = draw(st.sampled_from(KEYS))
    fault = draw(st.sampled_from(["none", "none", "none", "lost", "doubled", "put in"]))
    at = draw(st.integers(1, max(1, len(call) - 1)))
    if fault == "lost":
        del call[at:][:1]
        del call[at : at + 1]
    elif fault == "doubled":
        call[at:at] = call[at : at + 1]
    elif fault == "put in":
        call.insert(at, draw(st.one_of(st.sampled_from(KEYS), st.sampled_from(WORDS))))
    call[0] = draw(spelled(call[0]))
    return call


PLAIN_NAMES = (b"GET", b"SET", b"INCR", b"DEL", b"get", b"EXISTS", b"HGETALL", b"MGET", b"LPUSH", b"STRLEN")


@st.composite
def plain_runs(draw: st.DrawFn) -> list[Call]:
    """What the fast path is made for: many common commands of one argument, or of two."""
    names, keys = draw(st.lists(st.sampled_from(PLAIN_NAMES), min_size=1, max_size=2)), st.sampled_from(KEYS)
    calls = []
    for _ in range(draw(st.integers(1, 20))):
        name = draw(st.sampled_from(names))
        calls.append([name, draw(keys), *([b"v"] if name in (b"SET", b"LPUSH") else [])])
    return calls


def one_of(calls: st.SearchStrategy[Call]) -> st.SearchStrategy[list[Call]]:
    return calls.map(lambda call: [call])


any_call = st.one_of(free_calls(), likely_calls())
transactions = st.lists(any_call, max_size=4).map(lambda calls: [[b"MULTI"], *calls, [b"EXEC"]])
watches = st.lists(any_call, max_size=3).map(lambda calls: [[b"WATCH", b"k"], *calls, [b"UNWATCH"]])
blocks = st.one_of(one_of(any_call), one_of(any_call), one_of(any_call), plain_runs(), transactions, watches)
conversations = st.lists(blocks, min_size=1, max_size=8).map(lambda groups: [call for group in groups for call in group])


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The data cut into pieces of these sizes, over and over."""
    at, n = 0, 0
    while at < len(data):
        size = sizes[n % len(sizes)]
        yield data[at : at + size]
        at, n = at + size, n + 1


cuts = st.one_of(st.just([1 << 20]), st.lists(st.sampled_from([1, 2, 7, 30, 100, 400, 5000]), min_size=1, max_size=6))


# --- what may go up


class Judge:
    """Says what is wrong with a request that went up for a namespace's client."""

    def __init__(self, name: str) -> None:
        self.prefix = name.encode() + b":"
        self.pattern = Namespace(name).pattern

    def fault(self, arguments: Call) -> str:
        """Empty if there is none."""
        command = TABLE.find(arguments[0], arguments[1] if len(arguments) > 1 else None)
        if command is None:
            return "it is not known where its keys are"
        name = command.name
        if name == "exists" and len(arguments) == 2 and arguments[1].startswith(b"\0pannier:outside:"):
            return ""  # the sidecar's own: whether a script could read it
        if name in ("keys", "scan"):
            return self._scan(arguments)
        if name == "client|tracking":
            return self._tracking(arguments)
        if name in ("subscribe", "psubscribe", "publish"):
            return self._channels(arguments)
        if name in _HARMLESS or name in ("acl|whoami", "randomkey") or name.endswith("|help"):
            return ""
        if command.container and len(arguments) == 1:
            return ""
        if name in WHOLE and 0 < command.arity != len(arguments):
            return ""  # Redis refuses it
        if "admin" in command.flags or all("not_key" in spec.flags for spec in command.key_specs):
            return "it concerns the whole server"
        uses, patterns = key_positions(command, arguments), pattern_positions(command, arguments)
        if uses is None or patterns is None:
            return "its keys are unknown"
        bare = [arguments[at] for at in [*(use.index for use in uses), *patterns] if not arguments[at].startswith(self.prefix)]
        return f"bare keys: {bare}" if bare else ""

    def _scan(self, arguments: Call) -> str:
        if arguments[0].lower() == b"keys":
            right = len(arguments) != 2 or arguments[1].startswith(self.pattern)
            return "" if right else "a pattern without the prefix"
        pattern, rest = b"", arguments[2:]
        while len(rest) > 1:
            if rest[0].upper() == b"MATCH":
                pattern = rest[1]
            elif rest[0].upper() not in (b"COUNT", b"TYPE"):
                return ""  # refused
            rest = rest[2:]
        right = rest or len(arguments) < 2 or pattern.startswith(self.pattern)
        return "" if right else "it scans beyond the namespace"

    def _tracking(self, arguments: Call) -> str:
        words = [argument.upper() for argument in arguments]
        prefixes, rest = [], arguments[3:]
        while rest:
            if rest[0].upper() == b"PREFIX":
                prefixes += rest[1:2]
            rest = rest[2 if rest[0].upper() in (b"PREFIX", b"REDIRECT") else 1 :]
        outside = [prefix for prefix in prefixes if not prefix.startswith(self.prefix)]
        if outside or (b"BCAST" in words[3:] and words[2:3] == [b"ON"] and not prefixes and b"REDIRECT" not in words):
            return "it hears of other keys"
        return ""

    def _channels(self, arguments: Call) -> str:
        if arguments[0].lower() == b"publish" and len(arguments) != 3:
            return ""  # refused
        outside = [
            name
            for name in (arguments[1:2] if arguments[0].lower() == b"publish" else arguments[1:])
            if (found := re.match(rb"__keyspace@[^:]*__:", name)) and not name.startswith((self.prefix, self.pattern), found.end())
        ]
        return f"keys of others: {outside}" if outside else ""


HANDSHAKE = {b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"READONLY", b"PING"}
BY_MODEL = {b"PING", b"SELECT", b"RESET", b"CLIENT", b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"UNWATCH", b"GET", b"SET", b"MGET", b"DEL", b"INCR", b"EXISTS", b"HSET", b"HGET", b"HGETALL", b"STRLEN", b"PTTL"}  # fmt: skip
SUBSCRIBES = {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"}


def answering(model: ModelRedis, prefix: bytes) -> Any:
    """Some answer to anything, as Redis could give it."""

    def answer(connection: Any, name: bytes, arguments: Call) -> bytes:
        protocol = connection.state["protocol"]
        if name in SUBSCRIBES:
            kind = b">3\r\n" if protocol == 3 else b"*3\r\n"
            if len(arguments) == 1 and not name.endswith(b"UNSUBSCRIBE"):
                return b"-ERR wrong number of arguments\r\n"
            told = arguments[1:] or [b""]
            return b"".join(kind + encode.bulk(name.lower()) + encode.bulk(channel) + b":1\r\n" for channel in told)
        if name == b"SCAN":
            return encode.array([encode.bulk(b"0"), encode.array([encode.bulk(prefix + b"k")])])
        if name == b"KEYS":
            return encode.array([encode.bulk(prefix + b"k")])
        if name == b"INFO":
            return encode.bulk(b"# Keyspace\r\ndb0:keys=1,expires=0\r\n")
        method = getattr(model, "_do_" + name.decode("latin-1").lower(), None)
        if name not in BY_MODEL or method is None:
            return b"-ERR this model does not know it\r\n"
        try:
            reply = method(connection, *arguments[1:])
        except (Wrong, TypeError, ValueError, IndexError, AttributeError):
            return b"-ERR wrong for this model\r\n"
        return reply.raw if isinstance(reply, Raw) else encode.value(reply, protocol)

    return answer


def gone_up(connection: Connection) -> Iterator[Call]:
    """The requests that reached Redis whole, and the beginning of one that did not."""
    sent, at = connection.sent, 0
    while at < len(sent):
        found = PARSER.parse(sent, at)
        if found is None:
            break
        yield found.arguments
        at = found.end


def rest_of(connection: Connection) -> bytes:
    """What went up of a large request that has no end."""
    sent, at = connection.sent, 0
    while at < len(sent) and (found := PARSER.parse(sent, at)) is not None:
        at = found.end
    return sent[at:]


async def converse(race: Race, clients: list[tuple[Client, bytes, list[int]]]) -> None:
    streams = [(client, pieces(data, sizes)) for client, data, sizes in clients]
    while streams:
        for client, stream in list(streams):
            piece = next(stream, None)
            if piece is None:
                streams.remove((client, stream))
            else:
                client.feed(piece)
        if len(race.redis.connections) > 12:
            break
        await race.settle()
    await race.settle()


async def scenario(monkeypatch: pytest.MonkeyPatch, name: str, talks: list[tuple[int, list[Call], list[int]]]) -> list[Call]:
    """What goes up while clients say what they say."""
    race = Race(monkeypatch, namespace=name)
    monkeypatch.setattr(race.redis, "_reply", answering(race.redis, name.encode() + b":"))
    clients = []
    for protocol, calls, sizes in talks:
        client = await race.ready(protocol=protocol)
        clients.append((client, b"".join(request(*call) for call in calls), sizes))
    try:
        await converse(race, clients)
        for connection in race.redis.connections:
            hello = connection.handshake
            assert all(part in HANDSHAKE for part in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n", hello)), hello
            assert not rest_of(connection)
        return [call for connection in race.redis.connections for call in gone_up(connection)]
    finally:
        await race.close()


def talk(limit: int = 1) -> st.SearchStrategy[list[tuple[int, list[Call], list[int]]]]:
    return st.lists(st.tuples(st.sampled_from([2, 3]), conversations, cuts), min_size=1, max_size=limit)


class TestNothingOutsideIsNamed:
    @pytest.mark.parametrize("name", ["ns", "n?[s]", "a*b", "ns:inner"])
    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(talks=talk(2))
    @example(talks=[(2, [[b"GET", FRAMES], [b"GET", b"k"]], [1 << 20])])
    @example(talks=[(3, [[b"SORT", b"k", b"BY", b"other:*", b"GET", b"other:*->f", b"STORE", b"STORE"]], [1])])
    @example(talks=[(2, [[b"MULTI"], [b"CONFIG", b"GET", b"x"], [b"GET", b"k"], [b"EXEC"]], [7])])
    def test_upstream(self, name: str, talks: list[tuple[int, list[Call], list[int]]]) -> None:
        judge = Judge(name)
        with pytest.MonkeyPatch.context() as monkeypatch, asyncio.Runner() as runner:
            for arguments in runner.run(scenario(monkeypatch, name, talks)):
                assert not judge.fault(arguments), (arguments, judge.fault(arguments))

    @pytest.mark.parametrize("protocol", [2, 3])
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(call=any_call, at=st.integers(1, 8), cut=st.sampled_from([1000, 65536, 300_000]), inside=st.booleans())
    def test_large_commands(self, protocol: int, call: Call, at: int, cut: int, inside: bool) -> None:
        """One argument is too large to be waited for, so that the request is relayed while it arrives."""
        call = [*call[:at], b"v" * 300_000, *call[at:]]
        calls = [[b"MULTI"], call, [b"EXEC"]] if inside else [call, [b"GET", b"k"]]
        judge = Judge("ns")
        with pytest.MonkeyPatch.context() as monkeypatch, asyncio.Runner() as runner:
            for arguments in runner.run(scenario(monkeypatch, "ns", [(protocol, calls, [cut])])):
                fault = judge.fault(arguments)
                assert not fault, ([argument[:60] for argument in arguments], fault[:200])

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(calls=st.lists(any_call, min_size=1, max_size=5))
    def test_inline_commands(self, calls: list[Call]) -> None:
        lines = [b" ".join(b'"%b"' % b"".join(b"\\x%02x" % byte for byte in part) for part in call) for call in calls]
        judge = Judge("ns")

        async def talk_inline(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
            race = Race(monkeypatch, namespace="ns")
            monkeypatch.setattr(race.redis, "_reply", answering(race.redis, b"ns:"))
            try:
                await converse(race, [(await race.ready(), b"\r\n".join(lines) + b"\r\n", [1 << 20])])
                return [call for connection in race.redis.connections for call in gone_up(connection)]
            finally:
                await race.close()

        with pytest.MonkeyPatch.context() as monkeypatch, asyncio.Runner() as runner:
            for arguments in runner.run(talk_inline(monkeypatch)):
                assert not judge.fault(arguments), (arguments, judge.fault(arguments))


# --- what comes back


PREFIX = b"Zq9ns"
LEFT_OUT = frozenset({
    "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "client|reply", "quit", "client|kill",
    "reset", "client|tracking", "auth",
})  # fmt: skip
"""Not answered one by one, or the connection's end."""
SOON = b"0.01"
"""Redis 6.2 takes 0.001 for no timeout at all."""
TIMEOUT_LAST = frozenset({"blpop", "brpop", "blmove", "brpoplpush", "bzpopmin", "bzpopmax", "wait", "waitaof"})
TIMEOUT_FIRST = frozenset({"blmpop", "bzmpop"})


def patient(call: Call) -> Call | None:
    """The call so that it is answered soon, and reaches nobody else; None if it cannot be said here."""
    command = TABLE.find(*call[:2])
    name = command.name if command is not None else ""
    if name in LEFT_OUT or name == "migrate" or call[0][:5].lower() in (b"host:", b"post"):
        return None
    if name in TIMEOUT_LAST and len(call) > 1:
        return [*call[:-1], b"1" if name.startswith("wait") else SOON]
    if name in TIMEOUT_FIRST and len(call) > 1:
        return [call[0], SOON, *call[2:]]
    if name in ("xread", "xreadgroup"):
        return [b"1" if at and call[at - 1].upper() == b"BLOCK" else part for at, part in enumerate(call)]
    return call


@pytest.fixture(scope="module")
def namespaced(shared_redis: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    url = f"redis://127.0.0.1:{shared_redis.port}"
    with pannier(url, tmp_path_factory.mktemp("pannier"), "--namespace", PREFIX.decode(), "--canary-interval", "0") as process:
        yield process


class TestNoReplyNamesThePrefix:
    """On real servers, for as long as the data last that random commands make."""

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(protocol=st.sampled_from([2, 3]), talk=conversations, at_once=st.booleans())
    def test_downstream(
        self, shared_redis: Process, namespaced: Process, protocol: int, talk: list[Call], at_once: bool
    ) -> None:
        calls = [call for call in map(patient, talk) if call is not None]
        with ExitStack() as stack:
            wire = stack.enter_context(Wire(namespaced.port, protocol))
            if at_once:
                replies = wire.pipeline([request(*call) for call in calls], len(calls))
            else:
                replies = [wire.ask(*call) for call in calls]
            script = False
            for call, reply in zip(calls, replies, strict=True):
                command = TABLE.find(*call[:2])
                script = script or (command is not None and command.name in SCRIPTS)
                if not script or call[0].upper() not in (b"EXEC", *(name.upper().encode() for name in SCRIPTS)):
                    assert PREFIX not in reply, (call, reply)

    def test_every_sample(self, redis: Process, namespaced: Process) -> None:
        """The samples of all commands on all their data, one after another, then scans of what is left."""
        with Wire(redis.port) as direct:
            direct.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY)
        for protocol in (2, 3):
            with Wire(namespaced.port, protocol) as wire:
                for line in (*LINES, "SCAN 0 COUNT 1000", "KEYS *", "RANDOMKEY", "CLIENT LIST", "CLIENT INFO", "INFO everything", "SIDECAR STATS"):
                    call = patient(split(line))
                    if call is None or call[0].upper() == b"WATCH":
                        continue
                    assert PREFIX not in wire.ask(*call), line
