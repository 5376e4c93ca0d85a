"""Replies: any stream, in any pieces, gives the same replies and the same bytes."""

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.errors import UpstreamDesync
from proxy.resp.replies import ReplyScanner

line = st.text("abc +-$*>:\r\n", max_size=10).filter(lambda text: "\r\n" not in text and text[-1:] != "\r").map(str.encode)
awkward = st.sampled_from([b"\r\n", b"+OK\r\n", b"$5\r\nhello\r\n", b">1\r\n+x\r\n", b"*3\r\n", b"+RESET\r\n", b"\r", b"\n"])
payload = st.one_of(st.binary(max_size=8), awkward, st.sampled_from([254, 255, 256, 257, 5000]).map(lambda n: b"\r\n" * (n // 2) + b"z" * (n % 2)))


def bulk(kind: bytes, data: bytes) -> bytes:
    return kind + b"%d\r\n%b\r\n" % (len(data), data)


scalars = st.one_of(
    st.builds(lambda kind, rest: kind + rest + b"\r\n", st.sampled_from([b"+", b"-", b":", b",", b"("]), line),
    st.sampled_from([b"_\r\n", b"#t\r\n", b"#f\r\n", b"$-1\r\n", b"*-1\r\n", b"+\r\n", b"$0\r\n\r\n", b",inf\r\n"]),
    st.builds(bulk, st.sampled_from([b"$", b"=", b"!"]), payload),
)


def aggregate(children: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def wrap(kind: bytes, items: list[bytes]) -> bytes:
        if kind == b"%" and len(items) % 2:
            items = items[1:]
        return kind + b"%d\r\n" % (len(items) // (2 if kind == b"%" else 1)) + b"".join(items)

    def with_attribute(pair: tuple[bytes, bytes], value: bytes) -> bytes:
        return b"|1\r\n" + b"".join(pair) + value

    return st.one_of(
        st.builds(wrap, st.sampled_from([b"*", b"~", b"%"]), st.lists(children, max_size=6)),
        st.builds(with_attribute, st.tuples(children, children), children),
    )


replies = st.recursive(scalars, aggregate, max_leaves=12)
pushes = st.lists(replies, max_size=3).map(lambda items: b">%d\r\n" % len(items) + b"".join(items))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


class Reader:
    """Steps over a stream as a link does: what a call leaves is offered again with more."""

    def __init__(self, at_once: int) -> None:
        self.scanner = ReplyScanner()
        self.at_once = at_once
        self.pushing = False
        self.tail = b""
        self.out: list[bytes] = []
        self.ends: list[int] = []
        """Where replies ended, one by one if `at_once` is 1."""
        self.push_ends: list[int] = []
        self.done = 0
        self.total = 0

    def feed(self, chunk: bytes) -> None:
        data, pos = self.tail + chunk, 0
        while pos < len(data):
            start = pos
            if self.pushing or (data[pos] == 0x3E and not self.scanner.open):
                self.pushing = True
                pos = self.scanner.push(data, pos)
                if pos > start and not self.scanner.open:
                    self.pushing = False
                    self.push_ends.append(self.total + pos - start)
            else:
                pos, done = self.scanner.advance(data, pos, self.at_once)
                assert 0 <= done <= self.at_once
                self.done += done
                if done:
                    self.ends.append(self.total + pos - start)
            if pos == start:
                break
            self.out.append(data[start:pos])
            self.total += pos - start
        self.tail = data[pos:]


class TestAnySplitGivesTheSameReplies:
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(replies, replies, pushes), max_size=6), st.lists(st.integers(0, 10**6), max_size=12), st.sampled_from([1, 2, 5, 1000]))
    def test_streams(self, frames: list[bytes], cuts: list[int], at_once: int) -> None:
        stream = b"".join(frames)
        reader = Reader(at_once)
        for piece in pieces(stream, cuts):
            reader.feed(piece)
        self.check(reader, frames)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.one_of(replies, pushes), max_size=4))
    def test_byte_by_byte(self, frames: list[bytes]) -> None:
        stream = b"".join(frames)[:3000]
        reader = Reader(1)
        for place in range(len(stream)):
            reader.feed(stream[place : place + 1])
        if len(stream) == sum(map(len, frames)):
            self.check(reader, frames)

    @staticmethod
    def check(reader: Reader, frames: list[bytes]) -> None:
        assert b"".join(reader.out) == b"".join(frames)
        assert reader.tail == b""
        assert not reader.scanner.open
        assert (reader.scanner.need, reader.scanner.skip) == (0, 0)
        assert reader.done == sum(frame[:1] != b">" for frame in frames)
        ends, push_ends, at = [], [], 0
        for frame in frames:
            at += len(frame)
            (push_ends if frame[:1] == b">" else ends).append(at)
        assert reader.push_ends == push_ends
        if reader.at_once == 1:
            assert reader.ends == ends

    def test_every_cut_of_every_kind(self) -> None:
        frames = [
            b"+OK\r\n", b"-ERR a\r\n", b":1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b"(99\r\n", b"$-1\r\n", b"*-1\r\n",
            b"$3\r\nabc\r\n", b"=7\r\ntxt:abc\r\n", b"!3\r\nERR\r\n", b"*0\r\n", b"~1\r\n:1\r\n", b"%1\r\n+a\r\n*1\r\n$1\r\nb\r\n",
            b"|1\r\n+ttl\r\n:9\r\n*2\r\n:1\r\n|1\r\n+a\r\n+b\r\n:2\r\n", b">2\r\n+message\r\n$2\r\n\r\n\r\n", b">0\r\n",
            b"$300\r\n" + b"\r\n" * 150 + b"\r\n", b"*2\r\n$300\r\n" + b"+" * 300 + b"\r\n*0\r\n",
        ]  # fmt: skip
        for frame in frames:
            for cut in range(len(frame) + 1):
                reader = Reader(1)
                for piece in (b"+first\r\n" + frame[:cut], frame[cut:] + b"+last\r\n"):
                    reader.feed(piece)
                self.check(reader, [b"+first\r\n", frame, b"+last\r\n"])


class TestStopsWhereItShould:
    def test_after_the_number_asked_for(self) -> None:
        for one in (b"+OK\r\n", b"*1\r\n*1\r\n:1\r\n", b"$256\r\n" + b"x" * 256 + b"\r\n"):
            for asked in (1, 3, 64, 81):
                assert ReplyScanner().advance(one * 100, 0, asked) == (len(one) * asked, asked)

    def test_before_a_push_between_replies(self) -> None:
        assert ReplyScanner().advance(b"+a\r\n>1\r\n+p\r\n+b\r\n", 0, 5) == (4, 1)

    def test_before_a_header_cut_in_two(self) -> None:
        scanner = ReplyScanner()
        assert scanner.advance(b"*2\r\n:1\r\n$1", 0, 1) == (8, 0)
        assert scanner.open
        assert scanner.advance(b"$10\r\nabc", 0, 1) == (8, 0)
        assert scanner.advance(b"defghij\r", 0, 1) == (8, 0)
        assert scanner.advance(b"\n:5\r\n", 0, 1) == (1, 1)
        assert not scanner.open

    def test_after_lines_with_half_a_line_end_inside(self) -> None:
        """Module and script replies may hold one: only CRLF ends a line."""
        for line in (b"+a\rb\r\n", b"-a\nb\r\n", b"+\r\r\n"):
            assert ReplyScanner().advance(line * 3, 0, 2) == (2 * len(line), 2)
            assert ReplyScanner().advance(b"*2\r\n" + line * 3, 0, 1) == (4 + 2 * len(line), 1)

    def test_nothing_has_begun_before_the_first_header_is_whole(self) -> None:
        scanner = ReplyScanner()
        assert scanner.advance(b"*2\r", 0, 1) == (0, 0)
        assert not scanner.open
        assert scanner.push(b">2\r", 0) == 0
        assert not scanner.open


class TestWhatIsNoResp:
    @pytest.mark.parametrize(
        "junk",
        [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"$\r\n", b"$x\r\n", b"$-2\r\n", b"*-2\r\n", b"$?\r\n", b"*?\r\n", b"$1.5\r\n", b"*1\r\n?\r\n", b"\x15\x03\x01\r\n", b"%" + b"9" * 5000 + b"\r\n"],
    )
    def test_is_refused(self, junk: bytes) -> None:
        with pytest.raises(UpstreamDesync, match="no RESP"):
            ReplyScanner().advance(junk, 0, 1)

    def test_a_line_without_an_end_is_refused_at_a_megabyte(self) -> None:
        assert ReplyScanner().advance(b"+" + b"x" * ((1 << 20) - 1), 0, 1) == (0, 0)
        with pytest.raises(UpstreamDesync, match="without an end"):
            ReplyScanner().advance(b"+" + b"x" * (1 << 20), 0, 1)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(st.binary(max_size=20), replies, pushes), max_size=5), st.lists(st.integers(0, 1000), max_size=5))
    def test_nothing_else_is_ever_raised(self, parts: list[bytes], cuts: list[int]) -> None:
        stream = b"".join(parts)
        reader = Reader(3)
        try:
            for piece in pieces(stream, cuts):
                reader.feed(piece)
        except UpstreamDesync:
            return
        assert b"".join(reader.out) + reader.tail == stream

    def test_the_error_shows_how_the_line_begins_and_no_value(self) -> None:
        with pytest.raises(UpstreamDesync) as caught:
            ReplyScanner().advance(b"XYZ\r\n", 0, 1)
        assert str(caught.value) == "ERR pannier: upstream sent what is no RESP reply: b'X' and so on"


def test_a_claimed_length_costs_nothing() -> None:
    scanner = ReplyScanner()
    tracemalloc.start()
    try:
        scanner.advance(b"*2147483647\r\n$536870912\r\nabc", 0, 1)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert (scanner.need, scanner.skip) == (2147483646, 536870911)


def test_a_large_string_passes_in_pieces() -> None:
    scanner = ReplyScanner()
    assert scanner.advance(b"$536870912\r\n", 0, 1) == (12, 0)
    chunk = bytes(1 << 20)
    for _ in range(512):
        assert scanner.advance(chunk, 0, 1) == (1 << 20, 0)
    assert scanner.advance(b"\r\n+OK\r\n", 0, 1) == (2, 1)
