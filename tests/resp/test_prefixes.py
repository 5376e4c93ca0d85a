"""Pipelines get the prefix without being parsed, and come out as if they had been."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.client.dispatch import Dispatcher
from proxy.resp import encode
from proxy.resp import prefixes as prefixes_module
from proxy.resp.commands import CommandTable
from proxy.resp.keys import key_positions
from proxy.resp.namespace import NAMING_ERRORS, Namespace, RefusedHere
from proxy.resp.patterns import SHORT
from proxy.resp.prefixes import Prefixer
from proxy.resp.requests import RequestParser

TABLE = CommandTable.load()
DISPATCHER = Dispatcher(TABLE)
PARSER = RequestParser(2**31)
R = encode.request
NAMES = ["n", "ns", "a*b", "agent_service", "x" * 9, "y" * 99, "z*" * 60]
PREFIXERS = {name: Prefixer(Namespace(name), TABLE) for name in NAMES}
HEAD = b"*2\r\n$3\r\nGET\r\n$1\r\n"


def parsed(data: bytes) -> list[list[bytes]]:
    """A chunk's requests, by the parser."""
    found, pos = [], 0
    while pos < len(data):
        request = PARSER.parse(data, pos)
        assert request is not None
        found.append(request.arguments)
        pos = request.end
    return found


def wanted(name: str, data: bytes) -> list[bytes]:
    """The requests with the first argument prefixed, parsed and encoded again."""
    prefix = name.encode() + b":"
    return [R(first, prefix + key, *rest) for first, key, *rest in parsed(data)]


def check(name: str, requests: list[bytes], prefixer: Prefixer | None = None) -> bytes | None:
    """Have a pipeline prefixed in every way; what `run` says."""
    data = b"".join(requests)
    assert DISPATCHER.first_keyed.count(data) in (0, len(requests))
    prefixer = prefixer or PREFIXERS[name]
    expected = wanted(name, data)
    assert prefixer.each(data) == expected
    real = prefixer.run(len(requests), data)
    assert real is None or real == b"".join(expected)
    return real


lengths = st.one_of(
    st.integers(0, 12),
    st.sampled_from([len(name) + 1 for name in NAMES]),
    st.sampled_from([SHORT - len(name) - 1 + more for name in NAMES for more in (-1, 0, 1) if len(name) < SHORT - 2]),
)
plain_keys = lengths.map(lambda n: b"k" * max(0, min(n, SHORT)))
traps = st.sampled_from(
    [
        b"", b"*", b"a*b:", b"*2\r\n", b"$1\r\n", b"\r\n", b"\r", b"$3\r\nGET\r\n$1\r\n", HEAD, HEAD + b"x\r\n", b"\r\n" + HEAD, b"ns:",
        R("GET", "k"), R("SET", "k", "v"), b"2\r\n$3\r\nGET\r\n$1\r\n", b"GET\r\n$1\r\n", b"*1\r\n$4\r\nPING\r\n",
    ]
)  # fmt: skip
keys = plain_keys | traps | st.binary(max_size=8)
COMMANDS = {1: ["GET", "get", "INCR", "STRLEN", "HGETALL", "DEL", "exists"], 2: ["SET", "set", "HGET", "EXPIRE", "SADD", "LPUSH"], 3: ["HSET", "SETEX", "LRANGE"], 5: ["HMGET", "SADD"]}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One canonical request with its one key in the first argument."""
    count = draw(st.sampled_from(sorted(COMMANDS)))
    return R(draw(st.sampled_from(COMMANDS[count])), draw(keys), *[draw(keys) for _ in range(count - 1)])


class TestRandomPipelines:
    @settings(max_examples=500, deadline=None)
    @given(st.sampled_from(NAMES), st.lists(requests(), min_size=1, max_size=12))
    def test_come_out_as_parsed_or_not_at_all(self, name: str, pipeline: list[bytes]) -> None:
        check(name, pipeline)

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(NAMES), st.lists(st.tuples(st.sampled_from(["GET", "STRLEN", "get"]), lengths), min_size=2, max_size=20))
    def test_of_keys_without_stars_come_out(self, name: str, pipeline: list[tuple[str, int]]) -> None:
        """Whatever their lengths: those too long with the prefix are the only ones to be parsed."""
        limit = SHORT - len(name) - 1
        pipeline = [(command, min(max(n, 0), SHORT)) for command, n in pipeline]
        real = check(name, [R(command, b"k" * n) for command, n in pipeline])
        assert (real is not None) == all(n <= limit for _, n in pipeline)

    @settings(max_examples=300, deadline=None)
    @given(st.integers(1, 40), st.lists(st.integers(0, 6), min_size=2, max_size=16))
    @example(1, [0, 1, 2, 3])
    @example(4, [1, 0])
    def test_whose_heads_are_each_others_successors(self, width: int, steps: list[int]) -> None:
        """Keys whose lengths differ by the prefix's length: a new head is the old one of others."""
        name = "p" * width
        pipeline = [R("GET", b"k" * (step * (width + 1))) for step in steps if (step + 1) * (width + 1) <= SHORT]
        if pipeline:
            assert check(name, pipeline, Prefixer(Namespace(name), TABLE)) is not None

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(NAMES), st.lists(st.tuples(keys, keys), min_size=1, max_size=6))
    def test_with_values_that_hold_whole_requests(self, name: str, pairs: list[tuple[bytes, bytes]]) -> None:
        pipeline = []
        for key, value in pairs:
            pipeline += [R("SET", key, R("GET", value)), R("GET", key), R("HSET", key, HEAD, value), R("SET", value, HEAD)]
        check(name, [request for request in pipeline if len(request) < 900])


class TestTheOrderOfReplacement:
    """Were shorter keys' heads replaced first, their new heads would be taken for the old ones of longer keys."""

    def test_longer_keys_first(self) -> None:
        prefixer = Prefixer(Namespace("ns"), TABLE)  # three bytes
        pipeline = [R("GET", "k" * n) for n in (1, 4, 7, 10, 13)]
        for rotation in range(5):
            turned = pipeline[rotation:] + pipeline[:rotation]
            assert check("ns", turned, prefixer) == b"".join(wanted("ns", b"".join(turned)))
        assert prefixer.run(5, b"".join(pipeline)) == b"".join(R("GET", "ns:" + "k" * n) for n in (1, 4, 7, 10, 13))

    def test_by_number_and_not_by_spelling(self) -> None:
        """9 + 3 is 12, 99 + 3 is 102: a head with more digits may sort before one with fewer."""
        pipeline = [R("GET", "k" * n) for n in (9, 12, 96, 99, 102, 6)]
        assert check("ns", pipeline, Prefixer(Namespace("ns"), TABLE)) is not None

    def test_of_several_commands(self) -> None:
        pipeline = [R(name, "k" * n, *["v"] * more) for n in (1, 4, 7) for name, more in (("GET", 0), ("get", 0), ("SET", 1), ("HSET", 2), ("SADD", 1), ("SADD", 3))]
        assert check("ns", pipeline, Prefixer(Namespace("ns"), TABLE)) is not None


class TestStars:
    """One star for each request, or nothing is replaced unparsed: a value might hold a head."""

    @pytest.mark.parametrize(
        "pipeline",
        [
            [R("GET", "*"), R("GET", "k")],
            [R("GET", "a"), R("GET", "b*")],
            [R("SET", "k", HEAD), R("GET", "x")],
            [R("GET", "x"), R("SET", "k", R("GET", "x"))],
            [R("GET", HEAD), R("GET", HEAD)],
            [R("GET", "k"), R("SET", "k", "*2\r\n$3\r\nGET\r\n$1\r\nx\r\n")],
        ],
    )
    def test_in_an_argument(self, pipeline: list[bytes]) -> None:
        for name in NAMES:
            assert check(name, pipeline) is None

    @pytest.mark.parametrize("request_", [R("GET", "*"), R("SET", "k", HEAD), R("GET", HEAD), R("SET", "k", R("SET", "k", "v")), R("SET", R("SET", "k", "v"), R("SET", "k", "v"))])
    def test_in_the_one_request_of_a_chunk_do_no_harm(self, request_: bytes) -> None:
        for name in NAMES:
            check(name, [request_])

    def test_in_the_namespace_do_no_harm(self) -> None:
        assert check("a*b", [R("GET", "k"), R("GET", "k" * 5), R("SET", "k", "v")]) is not None

    def test_half_a_head_is_none(self) -> None:
        for value in (b"2\r\n$3\r\nGET\r\n$1\r\n", b"$3\r\nGET\r\n$1\r\nx\r\n", b"\r\n$1\r\nk\r\n"):
            assert check("ns", [R("SET", value, value), R("SET", value[1:], value), R("GET", "k")]) is not None


class TestWhatFits:
    def test_up_to_the_patterns_limit(self) -> None:
        for length, fits in ((SHORT - 3, True), (SHORT - 2, False), (SHORT, False)):
            assert (check("ns", [R("GET", "k" * length)]) is not None) is fits
            assert (check("ns", [R("GET", "k" * length), R("GET", "k")]) is not None) is fits

    def test_what_comes_out_is_found_by_the_patterns_again(self) -> None:
        """`Dispatcher.written` looks for the keys in it."""
        pipeline = [R("SET", "k" * n, "v") for n in (0, 1, 100, SHORT - 3)]
        real = check("ns", pipeline)
        assert real is not None and DISPATCHER.first_keyed.count(real) == len(pipeline)
        assert DISPATCHER.written(real) == [encode.bulk(b"ns:" + b"k" * n) for n in (0, 1, 100, SHORT - 3)]

    @pytest.mark.parametrize(
        ("name", "count", "fits"),
        [
            ("get", 2, True), ("GET", 2, True), ("set", 5, True), ("sadd", 100, True), ("del", 2, True), ("mget", 2, True),
            ("del", 3, False), ("mget", 3, False), ("ping", 2, False), ("echo", 2, False), ("nosuch", 2, False), ("object", 3, False),
            ("xack", 4, False), ("xpending", 3, False), ("eval", 4, False), ("sort", 2, False), ("blpop", 3, True), ("get", 1, False),
            ("rename", 3, False), ("publish", 3, False), ("subscribe", 2, False), ("keys", 2, False), ("scan", 2, False),
        ],
    )  # fmt: skip
    def test_commands_of_one_key_in_the_first_argument(self, name: str, count: int, fits: bool) -> None:
        assert PREFIXERS["ns"].fits(name, count) is fits

    def test_what_the_dispatcher_lets_through_unparsed_has_one_key_and_needs_no_strip(self) -> None:
        """Whatever is recognised in a namespace is translated as by the parser, and its reply is the client's."""
        namespace = Namespace("ns")
        for command in TABLE:
            for count in range(2, 7):
                request = R(command.name, *["x"] * (count - 1))
                if command.container or DISPATCHER.first_keyed.count(request) != 1:
                    continue
                arguments = parsed(request)[0]
                uses = key_positions(command, arguments)
                assert uses is not None and [use.index for use in uses] == [1]
                real, strip = namespace.translate(command, arguments)
                assert strip is None and command.name not in NAMING_ERRORS
                assert real == [arguments[0], b"ns:x", *arguments[2:]]

    def test_another_table_is_another_judgement(self) -> None:
        table = CommandTable.load()
        prefixer = Prefixer(Namespace("ns"), table)
        request = R("NEW.GET", "k")
        assert prefixer.run(1, request) is None
        with pytest.raises(RefusedHere):
            prefixer.each(request)
        spec = {b"flags": [b"RO"], b"begin_search": {b"type": b"index", b"spec": {b"index": 1}}, b"find_keys": {b"type": b"range", b"spec": {b"lastkey": 0, b"keystep": 1, b"limit": 0}}}
        table.overlay([[b"new.get", 2, [b"readonly", b"module"], 1, 1, 1, [], [], [spec], []]])
        assert prefixer.run(1, request) is None, "still as it was"
        prefixer.forget()
        assert prefixer.run(1, request) == R("NEW.GET", "ns:k")

    def test_heads_are_not_remembered_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefixes_module, "_MOST_HEADS", 5)
        prefixer = Prefixer(Namespace("ns"), TABLE)
        for _ in range(3):
            assert check("ns", [R("GET", "k" * n) for n in range(20)], prefixer) is not None
        assert len(prefixer._heads) <= 5


class TestEach:
    def test_splits_as_the_parser_does(self) -> None:
        pipeline = [R("GET", "*"), R("SET", "a", R("GET", "b")), R("MGET", "a", "b")]
        assert PREFIXERS["ns"].each(b"".join(pipeline)) == [R("GET", "ns:*"), R("SET", "ns:a", R("GET", "b")), R("MGET", "ns:a", "ns:b")]

    def test_refuses(self) -> None:
        with pytest.raises(RefusedHere):
            PREFIXERS["ns"].each(R("GET", "k") + R("CONFIG", "GET", "*"))

    def test_of_nothing(self) -> None:
        assert PREFIXERS["ns"].each(b"") == []
        assert PREFIXERS["ns"].run(0, b"") is None
