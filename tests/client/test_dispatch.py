"""Which path each command takes, in any letter case, before and after Redis told what it knows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.client.dispatch import LOCAL, LOCAL_IN_NAMESPACE, Dispatcher, Route, link_protocol
from proxy.client.local import _ANSWERS
from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.downgrade import Shape
from proxy.tier.rules import Rules, Touch, marks
from proxy.upstream.pinned import Expect

TABLE = CommandTable.load()
DISPATCHER = Dispatcher(TABLE)
_ARGUMENT = st.lists(
    st.sampled_from([b"*3\r\n$3\r\nSET\r\n", b"*3\r\n", b"$3\r\nSET", b"\r\n", b"$1\r\n", b"$60\r\n", b"*", b"x", b"*2\r\n$3\r\ndel"])
).map(b"".join)
"""Arguments that look like requests, or parts of some."""
ENTRY_70 = [b"wait", 3, [b"noscript"], 0, 0, 0, [b"@slow"], [], [], []]
"""WAIT as Redis 7.0 describes it: not flagged as blocking."""


def spellings(text: str) -> list[list[bytes]]:
    mixed = "".join(letter.upper() if place % 2 else letter for place, letter in enumerate(text.lower()))
    return [spelled.encode().split() for spelled in (text.lower(), text.upper(), mixed)]


ROUTES = {
    Route.SHARED: [
        "GET k", "SET k v", "PING", "ECHO a", "EVAL s 0", "SCAN 0", "EXEC", "DISCARD", "UNWATCH", "PUBLISH c m", "XADD k * f v",
        "XREAD STREAMS k 0", "XREAD COUNT 5 STREAMS k 0", "XREADGROUP GROUP g c STREAMS k >", "CONFIG GET x", "CONFIG NOSUCH",
        "CLIENT", "SCRIPT LOAD s", "DBSIZE", "COMMAND", "CLIENT PAUSE 1", "PUBSUB CHANNELS", "LMOVE a b LEFT LEFT",
    ],
    Route.LOCAL: [
        "AUTH p", "AUTH u p", "CLIENT GETNAME", "CLIENT ID", "CLIENT INFO", "CLIENT KILL ID 1", "CLIENT LIST", "CLIENT SETINFO LIB-NAME x",
        "CLIENT SETNAME x", "CLIENT UNBLOCK 1", "HELLO", "HELLO 3", "INFO", "INFO all", "QUIT", "QUIT x", "RESET", "SELECT 1",
    ],
    Route.ONCE: [
        "BLPOP k 0", "BRPOP k 0", "BLMOVE a b LEFT LEFT 0", "BRPOPLPUSH a b 0", "BZPOPMIN k 0", "BLMPOP 0 1 k LEFT", "BZMPOP 0 1 k MIN",
        "XREAD BLOCK 0 STREAMS k 0", "XREAD COUNT 1 block 0 STREAMS k 0", "XREADGROUP GROUP g c BLOCK 0 STREAMS k >", "WAIT 1 0",
        "WAITAOF 1 0 0", "DEBUG SLEEP 1", "SHUTDOWN", "FAILOVER", "CLIENT TRACKINGINFO", "CLIENT GETREDIR", "AUTH", "SELECT", "SELECT 1 2",
        "CLIENT UNPAUSE", "SCRIPT KILL", "FUNCTION KILL", "CLIENT ID x", "CLIENT GETNAME x", "CLIENT SETNAME", "RESET x",
    ],
    Route.TRANSACTION: ["MULTI", "MULTI x", "WATCH k"],
    Route.STATE: [
        "SUBSCRIBE c", "PSUBSCRIBE c", "SSUBSCRIBE c", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "MONITOR", "READONLY", "READWRITE",
        "ASKING", "CLIENT TRACKING ON", "CLIENT CACHING YES", "CLIENT REPLY OFF", "CLIENT NO-EVICT ON", "CLIENT NO-TOUCH ON", "SCRIPT DEBUG YES",
    ],
    Route.PROBE: ["CLIENT NOSUCH", "CLIENT NOSUCH x", "NOSUCH", "NOSUCH a b", "FT.SEARCH i q", "POST /"],
    Route.TUNNEL: ["SYNC", "PSYNC ? -1", "REPLCONF ACK 1"],
}  # fmt: skip


class TestRoutes:
    @pytest.mark.parametrize(("route", "text"), [(route, text) for route, texts in ROUTES.items() for text in texts])
    def test_in_any_letter_case(self, route: Route, text: str) -> None:
        for arguments in spellings(text):
            assert DISPATCHER.route(arguments) is route

    def test_every_route_is_here(self) -> None:
        assert set(ROUTES) == set(Route)

    def test_block_as_a_key_costs_a_link_but_no_more(self) -> None:
        """XREAD's options are not parsed: a stream called BLOCK is read over a link of its own."""
        assert DISPATCHER.route([b"XREAD", b"STREAMS", b"BLOCK", b"0"]) is Route.ONCE

    def test_every_blocking_command_of_the_table_has_its_own_link(self) -> None:
        blocking = [command for command in TABLE if "blocking" in command.flags]
        assert len(blocking) >= 10
        for command in blocking:
            arguments = [word.encode() for word in command.name.split("|")] + [b"BLOCK"] * 3
            assert DISPATCHER.route(arguments) is not Route.SHARED

    def test_every_local_command_has_an_answer(self) -> None:
        assert set(LOCAL) | set(LOCAL_IN_NAMESPACE) == set(_ANSWERS)

    def test_a_sub_command_is_no_command(self) -> None:
        assert DISPATCHER.route([b"CLIENT|ID"]) is Route.PROBE

    def test_replies_of_known_shape_come_over_the_tracked_link(self) -> None:
        assert [link_protocol(Shape.PLAIN, protocol, True) for protocol in (2, 3)] == [3, 3]

    def test_others_come_over_a_link_of_the_clients_protocol(self) -> None:
        assert [link_protocol(None, protocol, True) for protocol in (2, 3)] == [2, 3]
        assert [link_protocol(Shape.PLAIN, protocol, False) for protocol in (2, 3)] == [2, 3]

RULES = Rules(TABLE)


class TestUnknownCommands:
    def test_may_do_anything_until_redis_has_reported_and_are_refused_by_it_afterwards(self) -> None:
        table = CommandTable.load()
        dispatcher = Dispatcher(table)
        assert dispatcher.route([b"NOSUCH"]) is Route.PROBE
        assert table.overlay([[b"mod.cmd", 2, [b"readonly"], 1, 1, 1, [], [], [], []]]) == 1
        assert dispatcher.route([b"NOSUCH"]) is Route.SHARED
        assert dispatcher.route([b"mod.CMD", b"k"]) is Route.SHARED
        assert dispatcher.route([b"CLIENT", b"NOSUCH"]) is Route.PROBE
        assert dispatcher.route([b"CONFIG", b"NOSUCH"]) is Route.SHARED

    def test_a_module_command_that_blocks(self) -> None:
        table = CommandTable.load()
        table.overlay([[b"mod.wait", 2, [b"blocking"], 1, 1, 1, [], [], [], []], [b"old.cmd", 2, [b"readonly"], 1, 1, 1]])
        assert Dispatcher(table).route([b"MOD.WAIT", b"k"]) is Route.ONCE
        assert Dispatcher(table).route([b"OLD.CMD", b"k"]) is Route.ONCE  # nobody said whether it blocks

    def test_wait_blocks_whatever_redis_reports(self) -> None:
        table = CommandTable.load()
        table.overlay([ENTRY_70])
        command = table.find(b"WAIT")
        assert command is not None and "blocking" not in command.flags
        assert Dispatcher(table).route([b"WAIT", b"1", b"0"]) is Route.ONCE
        assert Dispatcher(table).patterns.count(encode.request("WAIT", 1, 0)) == 0

    def test_names(self) -> None:
        assert DISPATCHER.name([b"CLIENT", b"SetName", b"x"]) == "client|setname"
        assert DISPATCHER.name([b"GeT"]) == "get"
        assert DISPATCHER.name([b"NoSuch\xff"]) == "nosuch\xff"


class TestPatterns:
    ARGUMENTS = (b"", b"BLOCK", b"STREAMS", b"ON", b"STORE")

    def test_take_only_what_is_shared_under_every_argument_list(self) -> None:
        """The whole table, with every list of up to five of a few telling arguments."""
        taken = set()
        for command in TABLE:
            name = command.name.partition("|")[0]
            lists = itertools.chain.from_iterable(itertools.product(self.ARGUMENTS, repeat=n) for n in range(6))
            probes = [list(values) for values in lists if len(values) < 2 or len(set(values)) > 1 or values[0] == b""]
            counted = {n for n in range(6) if DISPATCHER.patterns.count(encode.request(name, *[b""] * n))}
            if not counted:
                continue
            taken.add(name)
            assert not command.container
            for values in probes:
                if len(values) in counted:
                    assert DISPATCHER.route([name.encode(), *values]) is Route.SHARED, (name, values)
        assert {"get", "set", "mget", "hset", "ping"} <= taken
        assert not taken & {"eval", "zadd", "hgetall", "rename", "flushall", "swapdb"}
        assert not taken & {"xread", "xreadgroup", "blpop", "multi", "watch", "subscribe", "select", "quit", "client", "wait", "info"}

    def test_a_sub_command_is_found_whatever_it_is_called(self) -> None:
        for command in TABLE:
            words = [word.encode() for word in command.name.split("|")]
            for n in range(6):
                for spelling in (words, [word.upper() for word in words]):
                    request = [*spelling, *[b"x"] * n]
                    if DISPATCHER.patterns.count(encode.request(*request)):
                        assert DISPATCHER.route(request) is Route.SHARED

    def test_keys_written(self) -> None:
        """What a run writes is the first argument of some of its requests; what only looks like one is listed, too."""
        requests = [["GET", "a"], ["set", "b", "*2\r\n$4\r\nINCR\r\n$1\r\nx\r\n"], ["PING"], ["DEL", "c"], ["LPUSH", "", "v", "w"], ["MGET", "d", "e"]]
        run = b"".join(encode.request(*words) for words in requests)
        assert DISPATCHER.patterns.count(run) == len(requests)
        assert DISPATCHER.written(run) == [b"$1\r\nb\r\n", b"$1\r\nx\r\n", b"$1\r\nc\r\n", b"$0\r\n\r\n"]

    def test_a_key_too_long_for_the_patterns_is_not_passed_over(self) -> None:
        run = encode.request("SET", "k" * 256, "v") + encode.request("SET", "k" * 255, "v")
        assert DISPATCHER.written(run) == [b"", encode.bulk("k" * 255)]

    @given(st.lists(st.tuples(st.sampled_from(["GET", "SET", "del", "LPUSH"]), _ARGUMENT, _ARGUMENT), min_size=1, max_size=6))
    def test_none_is_missed_whatever_arguments_look_like(self, commands: list[tuple[str, bytes, bytes]]) -> None:
        requests = [(name, key, value) if name in ("SET", "LPUSH") else (name, key) for name, key, value in commands]
        written = DISPATCHER.written(b"".join(encode.request(*words) for words in requests))
        assert {encode.bulk(words[1]) for words in requests if words[0] != "GET"} <= set(written)

    def test_no_run_writes_a_key_that_is_not_reported(self) -> None:
        """Every command that a run may hold: reading, keyless, or writing its first argument and no other."""
        for command in TABLE:
            for n in range(6):
                words = [command.name.encode(), *[b"%d" % i for i in range(1, n + 1)]]
                frame = encode.request(*words)
                if not DISPATCHER.patterns.count(frame):
                    continue
                touch, keys = RULES.touch(command, words)
                if touch is Touch.READS_UNKNOWN:
                    continue
                assert touch in (Touch.NOTHING, Touch.READS, Touch.WRITES), command.name
                assert len(keys) <= 1 or touch is Touch.READS
                written = [key for key in DISPATCHER.written(frame) if key]
                assert marks(written) == (list(keys) if touch is Touch.WRITES else []), command.name
                assert (touch is Touch.READS) >= (DISPATCHER.reads.count(frame) > 0)

    def test_wrong_arity_is_left_to_redis(self) -> None:
        assert DISPATCHER.patterns.count(b"*1\r\n$3\r\nGET\r\n") == 0
        assert DISPATCHER.patterns.count(b"*3\r\n$3\r\nGET\r\n$1\r\na\r\n$1\r\nb\r\n") == 0
        assert DISPATCHER.patterns.count(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n") == 1


class TestReads:
    def test_splits_a_run_and_tells_reads_from_writes(self) -> None:
        requests = [
            (encode.request("GET", "k"), True), (encode.request("set", "k", "v"), False), (encode.request("INCR", "k"), False),
            (encode.request("mget", "a", "b"), True), (encode.request("CONFIG", "GET", "x"), False), (encode.request("NOSUCH"), False),
            (encode.request("EVAL_RO", "s", 0), True), (encode.request("GETEX", "k"), False), (encode.request("GET", b"x" * 1000), True),
            (encode.request("XINFO", "STREAM", "k"), True), (encode.request("EVAL", "s", 0), False), (b"*0\r\n", False),
        ]  # fmt: skip
        assert DISPATCHER.repeatable(b"".join(data for data, _ in requests)) == requests
        assert DISPATCHER.repeatable(b"") == []


class TestWhatACommandMeans:
    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("MULTI", Expect.MULTI), ("EXEC", Expect.END), ("DISCARD", Expect.DISCARD), ("WATCH k", Expect.WATCH), ("UNWATCH", Expect.UNWATCH),
            ("QUIT", Expect.QUIT), ("QUIT x", Expect.QUIT), ("RESET", Expect.RESET), ("RESET x", Expect.NOTHING), ("GET k", Expect.NOTHING),
        ],
    )  # fmt: skip
    def test_for_its_link(self, text: str, what: Expect) -> None:
        for arguments in spellings(text):
            assert DISPATCHER.expect(arguments) is what

    def test_fences_and_changes(self) -> None:
        assert [name for name in ("wait", "waitaof", "get") if DISPATCHER.fenced(name)] == ["wait", "waitaof"]
        changing = ("select", "auth", "hello", "client|setname", "client|setinfo")
        assert all(map(DISPATCHER.changes_link, changing))
        assert not DISPATCHER.changes_link("client|id")
