"""RESP3 replies become RESP2's bytes: by type, by shape, nested, and in slices of a stream."""

from __future__ import annotations

from collections.abc import Sequence

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.resp.commands import Command, CommandTable
from proxy.resp.downgrade import PLAIN, Shape, downgrade, lower_nulls, shape_of

TABLE = CommandTable.load()
BODIES = [b"", b"_\r\n", b"$3\r\n_\r\n", b"\r\n", b",1\r\n", b"*2\r\n", b"%1\r\n_", b"x" * 254, b"x" * 255, b"x" * 256, b"_\r\n" * 200]

Node = tuple[bytes, bytes]
"""A reply in RESP3, and in RESP2 by TYPED."""


def bulk(body: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(body), body)


def both(reply: bytes) -> Node:
    return reply, reply


BULK = st.one_of(st.binary(max_size=300), st.sampled_from(BODIES)).map(bulk).map(both)
TEXT = st.from_regex(rb"[ -~]{0,40}", fullmatch=True)
NULL = st.just((b"_\r\n", b"$-1\r\n"))
LINES = st.one_of(TEXT.map(lambda text: both(b"+" + text + b"\r\n")), TEXT.map(lambda text: both(b"-" + text + b"\r\n")), st.integers(-(2**63), 2**63 - 1).map(lambda n: both(b":%d\r\n" % n)))  # fmt: skip
PLAIN_SCALAR = st.one_of(BULK, LINES, NULL)
NUMBER = st.from_regex(rb"-?[0-9.e+]{1,30}|inf|-inf|nan|-nan", fullmatch=True)
SCALAR = st.one_of(
    PLAIN_SCALAR, NUMBER.map(lambda text: (b",%b\r\n" % text, bulk(text))), NUMBER.map(lambda text: (b"(%b\r\n" % text, bulk(text))), st.sampled_from([(b"#t\r\n", b":1\r\n"), (b"#f\r\n", b":0\r\n")]),
    st.sampled_from(BODIES).map(lambda body: (b"=%d\r\ntxt:%b\r\n" % (len(body) + 4, body), bulk(body))), st.just((b"!5\r\nE\r\nxy\r\n", b"-E  xy\r\n")), st.just(both(b"$-1\r\n")), st.just(both(b"*-1\r\n")),
)  # fmt: skip


def aggregate(kind: bytes, items: Sequence[Node], width: int = 1) -> Node:
    three, two = (b"".join(part) for part in zip(*items, strict=True)) if items else (b"", b"")
    return b"%b%d\r\n%b" % (kind, len(items) // width, three), b"*%d\r\n%b" % (len(items), two)


def attributed(items: Sequence[Node]) -> Node:
    """An attribute of one pair, and the value it belongs to."""
    return b"|1\r\n" + b"".join(three for three, _ in items), items[2][1]


def aggregates(items: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    some = st.lists(items, max_size=6)
    return st.one_of(
        some.map(lambda nodes: aggregate(b"*", nodes)),
        some.map(lambda nodes: aggregate(b"~", nodes)),
        some.map(lambda nodes: aggregate(b"%", nodes[: len(nodes) // 2 * 2], 2)),
        st.lists(items, min_size=3, max_size=3).map(attributed),
    )


REPLY = st.recursive(SCALAR, aggregates, max_leaves=30)
PLAIN_REPLY = st.recursive(PLAIN_SCALAR, lambda items: st.lists(items, max_size=5).map(lambda nodes: aggregate(b"*", nodes)), max_leaves=15)


class TestByType:
    CASES = (
        (b"$1\r\na\r\n", b"$1\r\na\r\n"), (b"+OK\r\n", b"+OK\r\n"), (b"-ERR no\r\n", b"-ERR no\r\n"), (b":-7\r\n", b":-7\r\n"), (b"_\r\n", b"$-1\r\n"), (b"*-1\r\n", b"*-1\r\n"), (b",1.5\r\n", b"$3\r\n1.5\r\n"), (b",-inf\r\n", b"$4\r\n-inf\r\n"), (b",nan\r\n", b"$3\r\nnan\r\n"),
        (b"(123\r\n", b"$3\r\n123\r\n"), (b"#t\r\n", b":1\r\n"), (b"#f\r\n", b":0\r\n"), (b"=7\r\ntxt:a\r\n\r\n", b"$3\r\na\r\n\r\n"), (b"=4\r\ntxt:\r\n", b"$0\r\n\r\n"), (b"!7\r\nERR no!\r\n", b"-ERR no!\r\n"), (b"%0\r\n", b"*0\r\n"), (b"~0\r\n", b"*0\r\n"), (b"%1\r\n+a\r\n~1\r\n#f\r\n", b"*2\r\n+a\r\n*1\r\n:0\r\n"),
        (b"|1\r\n+a\r\n%1\r\n,1\r\n_\r\n:5\r\n", b":5\r\n"), (b"*2\r\n|1\r\n+k\r\n+v\r\n,1\r\n_\r\n", b"*2\r\n$1\r\n1\r\n$-1\r\n"), (b"|1\r\n+a\r\n+b\r\n|1\r\n+c\r\n+d\r\n_\r\n", b"$-1\r\n"),
        (b"*2\r\n+a\rb\r\n_\r\n", b"*2\r\n+a\rb\r\n$-1\r\n"), (b"*2\r\n=7\r\ntxt:_\r\n\r\n_\r\n", b"*2\r\n$3\r\n_\r\n\r\n$-1\r\n"), (b"*1\r\n$3\r\n_\r\n\r\n", b"*1\r\n$3\r\n_\r\n\r\n"),
    )  # fmt: skip

    @pytest.mark.parametrize(("reply", "expected"), CASES)
    def test_typed(self, reply: bytes, expected: bytes) -> None:
        assert downgrade(reply, Shape.TYPED) == expected

    @given(REPLY)
    def test_nested(self, node: Node) -> None:
        assert downgrade(node[0], Shape.TYPED) == node[1]

    def test_any_depth(self) -> None:
        depth = 100_000
        assert downgrade(b"~1\r\n" * depth + b"_\r\n", Shape.TYPED) == b"*1\r\n" * depth + b"$-1\r\n"

    @given(REPLY, st.sampled_from(list(Shape)))
    def test_never_raises(self, node: Node, shape: Shape) -> None:
        assert isinstance(downgrade(node[0], shape), bytes)

    @given(PLAIN_REPLY, st.sampled_from([Shape.PLAIN, Shape.TYPED, Shape.PENDING]))
    def test_plain_contents(self, node: Node, shape: Shape) -> None:
        assert downgrade(node[0], shape) == node[1]

    @pytest.mark.parametrize("shape", Shape)
    @pytest.mark.parametrize("reply", [b"-ERR _\r\n", b"+_\r\n", b":1\r\n", b"$3\r\n_\r\n\r\n", b"*2\r\n$3\r\n_\r\n\r\n:1\r\n", b"*0\r\n"])
    def test_what_is_alike_in_both_stays_the_same_object(self, reply: bytes, shape: Shape) -> None:
        assert downgrade(reply, shape) == reply
        if reply[:1] != b"*":
            assert downgrade(reply, shape) is reply


class TestNulls:
    @pytest.mark.parametrize("shape", Shape)
    def test_on_top(self, shape: Shape) -> None:
        array = shape in (Shape.NULL_ARRAY, Shape.STREAMS)
        assert downgrade(b"_\r\n", shape) == downgrade(b"|1\r\n+a\r\n+b\r\n_\r\n", shape) == (b"*-1\r\n" if array else b"$-1\r\n")

    def test_nested_null_arrays(self) -> None:
        assert downgrade(b"*3\r\n*2\r\n,1\r\n,2.5\r\n_\r\n_\r\n", Shape.NULL_ARRAY) == b"*3\r\n*2\r\n$1\r\n1\r\n$3\r\n2.5\r\n*-1\r\n*-1\r\n"

    def test_pending(self) -> None:
        assert downgrade(b"*4\r\n:0\r\n_\r\n_\r\n_\r\n", Shape.PENDING) == b"*4\r\n:0\r\n$-1\r\n$-1\r\n*-1\r\n"
        assert downgrade(b"*4\r\n:1\r\n_\r\n_\r\n_\r\n", Shape.PENDING) == b"*4\r\n:1\r\n$-1\r\n$-1\r\n$-1\r\n"


class TestMaps:
    @given(st.lists(BULK, max_size=20))
    def test_only_the_first_line_changes(self, nodes: list[Node]) -> None:
        three, two = aggregate(b"%", nodes[: len(nodes) // 2 * 2], 2)
        assert downgrade(three, Shape.MAP) == two
        three, two = aggregate(b"~", nodes)
        assert downgrade(three, Shape.MAP) == two
        assert downgrade(two, Shape.MAP) is two


class TestPairs:
    @given(st.lists(st.tuples(BULK, st.one_of(SCALAR, BULK, NUMBER.map(lambda text: (b",%b\r\n" % text, bulk(text))))), max_size=20))
    def test_nested_pairs_become_flat(self, pairs: list[tuple[Node, Node]]) -> None:
        three, _ = aggregate(b"*", [aggregate(b"*", pair) for pair in pairs])
        _, two = aggregate(b"*", [node for pair in pairs for node in pair])
        assert downgrade(three, Shape.PAIRS) == two

    @given(st.lists(SCALAR, max_size=20))
    def test_a_flat_array_stays_flat(self, nodes: list[Node]) -> None:
        three, two = aggregate(b"*", nodes)
        assert downgrade(three, Shape.PAIRS) == two

    def test_long_members_among_short_ones(self) -> None:
        members = [b"m" * (300 if n % 7 == 3 else n % 250) for n in range(1000)]
        three = b"*1000\r\n" + b"".join(b"*2\r\n" + bulk(member) + b",%d\r\n" % n for n, member in enumerate(members))
        two = b"*2000\r\n" + b"".join(bulk(member) + bulk(b"%d" % n) for n, member in enumerate(members))
        assert downgrade(three, Shape.PAIRS) == two


class TestStreams:
    @given(st.lists(st.tuples(BULK, REPLY), max_size=5))
    def test_a_map_becomes_pairs(self, pairs: list[tuple[Node, Node]]) -> None:
        three, _ = aggregate(b"%", [node for pair in pairs for node in pair], 2)
        expected = b"*%d\r\n" % len(pairs) + b"".join(b"*2\r\n" + key[0] + downgrade(value[0], Shape.NULL_ARRAY) for key, value in pairs)
        assert downgrade(three, Shape.STREAMS) == expected

    def test_a_deleted_entry(self) -> None:
        assert downgrade(b"%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n_\r\n", Shape.STREAMS) == b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*-1\r\n"

    def test_an_array(self) -> None:
        assert downgrade(b"*1\r\n_\r\n", Shape.STREAMS) == b"*1\r\n*-1\r\n"


def cuts(data: bytes) -> list[tuple[int, int]]:
    """Where a stream may be cut, and how many bytes of a string are missing there: not inside a header line."""
    places, pos = [(0, 0)], 0
    while pos < len(data):
        end = data.index(b"\r\n", pos) + 2
        size = int(data[pos + 1 : end - 2]) if data[pos : pos + 1] == b"$" else -1
        after = end + size + 2 if size >= 0 else end
        places += [(at, after - at) for at in range(end, after + 1)]
        pos = after
    return places


class TestLowerNulls:
    @given(st.lists(PLAIN_REPLY, max_size=10), st.data())
    def test_any_slices_make_the_whole(self, nodes: list[Node], data: st.DataObject) -> None:
        three, two = (b"".join(part) for part in zip(*nodes, strict=True)) if nodes else (b"", b"")
        chosen = [(0, 0), *sorted(data.draw(st.lists(st.sampled_from(cuts(three)), max_size=6)))]
        ends = [place for place, _ in chosen[1:]] + [len(three)]
        slices = [lower_nulls(three[place:end], skip) for (place, skip), end in zip(chosen, ends, strict=True)]
        assert b"".join(slices) == two

    def test_every_cut_of_a_stream(self) -> None:
        three = b"_\r\n$3\r\n_\r\n\r\n_\r\n*3\r\n_\r\n:1\r\n_\r\n$0\r\n\r\n" + bulk(b"_\r\n" * 99) + b"-ERR _\r\n_\r\n_\r\n$5\r\n\r\n_\r\n\r\n_\r\n"
        two = lower_nulls(three, 0)
        assert two.count(b"$-1") == 7
        for place, skip in cuts(three):
            assert lower_nulls(three[:place], 0) + lower_nulls(three[place:], skip) == two

    def test_a_slice_within_one_string(self) -> None:
        assert lower_nulls(b"_\r\n" * 5, 15) == lower_nulls(b"_\r\n" * 5, 100) == b"_\r\n" * 5
        assert lower_nulls(b"_\r\n_\r\n", 3) == b"_\r\n$-1\r\n"


def ask(line: str) -> Shape | None:
    arguments = line.encode().split()
    command = TABLE.find(arguments[0], arguments[1] if len(arguments) > 1 else None)
    return shape_of(command or Command(arguments[0].decode().lower(), -2, frozenset(), (), False, True, True), arguments)


class TestShapes:
    CASES = (
        ("get k", Shape.PLAIN), ("HGETALL k", Shape.MAP), ("LPOP k", Shape.PLAIN), ("LPOP k 1", None), ("RPOP k", Shape.PLAIN), ("RPOP k 1", None), ("ZRANK k m", Shape.PLAIN), ("ZREVRANK k m", Shape.PLAIN), ("ZRANK k m WITHSCORE", None), ("ZRANGE k 0 1", Shape.PAIRS), ("ZADD k INCR 1 m", Shape.TYPED),
        ("XREAD STREAMS s 0", Shape.STREAMS), ("XPENDING s g", Shape.PENDING), ("GEOPOS g m", Shape.NULL_ARRAY), ("EVAL x 0", Shape.TYPED), ("CONFIG GET x", Shape.MAP), ("CONFIG SET x y", Shape.TYPED), ("EXEC", None), ("SUBSCRIBE c", None), ("HTTL h FIELDS 1 f", None), ("NOSUCH x", None),
        ("JSON.GET k", Shape.PLAIN), ("JSON.GET k .a INDENT x", Shape.PLAIN), ("JSON.GET k Format EXPAND", None), ("JSON.GET format", Shape.PLAIN), ("JSON.MGET k .", None), ("CLUSTER INFO", None), ("DEBUG PROTOCOL map", None),
    )  # fmt: skip

    @pytest.mark.parametrize(("line", "shape"), CASES)
    def test_of(self, line: str, shape: Shape | None) -> None:
        assert ask(line) is shape

    def test_plain_names_are_plain_with_any_arguments(self) -> None:
        for name in PLAIN:
            command = TABLE.find(name.encode())
            assert command is not None, name
            assert "|" not in name
            for arguments in ([], [b"k"], [b"k", b"WITHSCORES", b"1", b"FORMAT", b"COUNT"]):
                assert shape_of(command, [name.encode(), *arguments]) is Shape.PLAIN

    @given(REPLY)
    def test_the_result_is_resp2(self, node: Node) -> None:
        reader = hiredis.Reader(notEnoughData=Ellipsis)
        reader.feed(downgrade(node[0], Shape.TYPED))
        assert reader.gets() is not Ellipsis
        assert reader.gets() is Ellipsis
