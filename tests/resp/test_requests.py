"""Requests: any split gives the same commands; Redis' leniency and its errors; nothing allocated on a claim."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.errors import ProtocolError
from proxy.resp.requests import LINE_LIMIT, LargeFrame, RequestParser, split_inline

LIMIT = 512 * 1024 * 1024
PARSER = RequestParser(LIMIT)
argument = st.one_of(
    st.binary(max_size=10),
    st.sampled_from([b"", b"\r\n", b"*1\r\n$4\r\nPING\r\n", b"$3\r\n", b"x" * 255, b"x" * 256, b"\r\n" * 2000]),
)


def lax(arguments: list[bytes]) -> bytes:
    """A spelling Redis takes as well: it looks at the carriage returns of headers only."""
    return b"*%d\r?" % len(arguments) + b"".join(b"$%d\r?%b!!" % (len(item), item) for item in arguments)


inline_word = st.text("abcXYZ019*$.", min_size=1, max_size=6).map(str.encode).filter(lambda word: word[:1] != b"*")
requests = st.one_of(
    st.lists(argument, min_size=1, max_size=5).map(lambda args: (encode.request(*args), args, True)),
    st.lists(argument, min_size=1, max_size=5).map(lambda args: (lax(args), args, False)),
    st.lists(inline_word, min_size=1, max_size=4).map(lambda args: (b" ".join(args) + b"\r\n", args, False)),
    st.lists(inline_word, max_size=4).map(lambda args: (b"  ".join(args) + b"\n", args, False)),
    st.sampled_from([b"*0\r\n", b"*-1\r\n", b"*-10\r\n"]).map(lambda frame: (frame, [], True)),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def parse_all(chunks: list[bytes], parser: RequestParser = PARSER) -> tuple[list[tuple[bytes, list[bytes], bool]], bytes]:
    """Every request with its bytes, and what is left over."""
    found, buf = [], b""
    for chunk in chunks:
        buf, pos = buf + chunk, 0
        while pos < len(buf) and (request := parser.parse(buf, pos)) is not None:
            assert request.start == pos
            found.append((buf[pos : request.end], request.arguments, request.canonical))
            pos = request.end
        buf = buf[pos:]
    return found, buf


class TestAnySplitGivesTheSameCommands:
    @settings(max_examples=250, deadline=None)
    @given(st.lists(requests, max_size=6), st.lists(st.integers(0, 10**6), max_size=10))
    def test_streams(self, expected: list[tuple[bytes, list[bytes], bool]], cuts: list[int]) -> None:
        stream = b"".join(data for data, _, _ in expected)
        found, left = parse_all(pieces(stream, cuts))
        assert found == expected
        assert left == b""

    @settings(max_examples=100, deadline=None)
    @given(requests)
    def test_every_truncation_waits(self, expected: tuple[bytes, list[bytes], bool]) -> None:
        data = expected[0]
        for end in range(1, min(len(data), 300)):
            assert PARSER.parse(data[:end], 0) is None

    @settings(max_examples=400, deadline=None)
    @given(st.lists(st.one_of(st.binary(max_size=12), requests.map(lambda request: request[0])), max_size=4), st.booleans())
    def test_bytes_of_any_kind_raise_protocol_errors_only(self, parts: list[bytes], unauthenticated: bool) -> None:
        parser = RequestParser(1000)
        parser.unauthenticated = unauthenticated
        stream = b"".join(parts)
        try:
            found, left = parse_all([stream], parser)
        except ProtocolError:
            return
        assert b"".join(data for data, _, _ in found) + left == stream


class TestCanonical:
    @pytest.mark.parametrize("data", [b"*2\r\n$3\r\nGET\r\n$1\r\nkxx", b"*2\r\n$3\r\nGETxx$1\r\nk\r\n", b"*2\rx$3\r\nGET\r\n$1\r\nk\r\n", b"*2\r\n$3\rxGET\r\n$1\r\nk\r\n"])
    def test_only_the_one_strict_spelling_is(self, data: bytes) -> None:
        """Redis looks at few line ends; a spelling it merely tolerates must be written anew."""
        request = PARSER.parse(data, 0)
        assert request is not None
        assert (request.arguments, request.end, request.canonical) == ([b"GET", b"k"], len(data), False)

    def test_a_nul_in_a_header_waits_as_strchr_does(self) -> None:
        for data in (b"*\0x\r\n", b"*1\r\n$\0\r\n", b"*1\r\n#\0\r\n"):
            assert PARSER.parse(data, 0) is None
        with pytest.raises(ProtocolError, match="too big bulk count string"):
            PARSER.parse(b"*1\r\n$\0" + b"1" * LINE_LIMIT + b"\r\n", 0)
        with pytest.raises(ProtocolError, match="too big mbulk count string"):
            PARSER.parse(b"*\0" + b"1" * LINE_LIMIT + b"\r\n", 0)


class TestErrorsAreRedis:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"*2147483648\r\n", "invalid multibulk length"),
            (b"*99999999999999999999\r\n", "invalid multibulk length"),
            (b"*\r\n", "invalid multibulk length"),
            (b"*x\r\n", "invalid multibulk length"),
            (b"*+1\r\n", "invalid multibulk length"),
            (b"*01\r\n", "invalid multibulk length"),
            (b"* 1\r\n", "invalid multibulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"*1\r\n$x\r\n", "invalid bulk length"),
            (b"*1\r\n$\r\n", "invalid bulk length"),
            (b"*1\r\n$01\r\na\r\n", "invalid bulk length"),
            (b"*1\r\n:1\r\n", "expected '$', got ':'"),
            (b"*2\r\n$4\r\nPINGfoo\r\n", "expected '$', got 'o'"),
            (b"*" + b"1" * (LINE_LIMIT + 1), "too big mbulk count string"),
            (b"*1\r\n$" + b"1" * (LINE_LIMIT + 1), "too big bulk count string"),
            (b"a" * (LINE_LIMIT + 1), "too big inline request"),
            (b'GET "a\r\n', "unbalanced quotes in request"),
            (b"GET 'a'b\r\n", "unbalanced quotes in request"),
        ],
    )
    def test_texts(self, data: bytes, text: str) -> None:
        with pytest.raises(ProtocolError) as caught:
            PARSER.parse(data, 0)
        assert str(caught.value) == text
        assert caught.value.reply() == b"-ERR Protocol error: " + text.encode() + b"\r\n"

    def test_before_authentication_the_limits_are_tighter(self) -> None:
        parser = RequestParser(LIMIT)
        parser.unauthenticated = True
        assert parser.parse(b"*10\r\n", 0) is None
        assert parser.parse(b"*1\r\n$16384\r\n", 0) is None
        with pytest.raises(ProtocolError, match="unauthenticated multibulk length"):
            parser.parse(b"*11\r\n", 0)
        with pytest.raises(ProtocolError, match="unauthenticated bulk length"):
            parser.parse(b"*1\r\n$16385\r\n", 0)

    def test_a_line_at_its_limit_is_waited_for(self) -> None:
        assert PARSER.parse(b"a" * LINE_LIMIT, 0) is None
        assert PARSER.parse(b"*" + b"1" * (LINE_LIMIT - 1), 0) is None


def sdssplitargs(line: bytes) -> list[bytes] | None:
    """Redis' own loop (sds.c), transcribed; None where it fails."""
    p, out, n = 0, [], len(line)
    at = lambda i: line[i : i + 1]  # noqa: E731
    space = b" \t\n\v\f\r"
    hexa = b"0123456789abcdefABCDEF"
    while True:
        while p < n and at(p) in [bytes([c]) for c in space]:
            p += 1
        if p >= n:
            return out
        quote, current, done = b"", b"", False
        while not done:
            c = at(p)
            if quote == b'"':
                if c == b"\\" and at(p + 1) == b"x" and len(line[p + 2 : p + 4]) == 2 and all(d in hexa for d in line[p + 2 : p + 4]):
                    current += bytes([int(line[p + 2 : p + 4], 16)])
                    p += 3
                elif c == b"\\" and at(p + 1):
                    p += 1
                    current += {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}.get(at(p), at(p))
                elif c == b'"':
                    if at(p + 1) and line[p + 1] not in space:
                        return None
                    done = True
                elif not c:
                    return None
                else:
                    current += c
            elif quote == b"'":
                if c == b"\\" and at(p + 1) == b"'":
                    p += 1
                    current += b"'"
                elif c == b"'":
                    if at(p + 1) and line[p + 1] not in space:
                        return None
                    done = True
                elif not c:
                    return None
                else:
                    current += c
            elif c in (b" ", b"\n", b"\r", b"\t", b""):
                done = True
            elif c in (b'"', b"'"):
                quote = c
            else:
                current += c
            if at(p):
                p += 1
        out.append(current)


class TestInline:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (b"", []),
            (b"   \t ", []),
            (b"SET key value", [b"SET", b"key", b"value"]),
            (b"  GET\t k  ", [b"GET", b"k"]),
            (b'SET "a b" \'c d\'', [b"SET", b"a b", b"c d"]),
            (b'""', [b""]),
            (b"''", [b""]),
            (rb'"\x41\x0a\xfF"', [b"A\n\xff"]),
            (rb'"\xg1\x4"', [b"xg1x4"]),
            (rb'"\n\r\t\b\a\\\"\q"', [b'\n\r\t\b\a\\"q']),
            (rb"'\n\'\x41\\ '", [rb"\n'\x41\\ "]),
            (b'foo"bar"', [b"foobar"]),
            (b'foo"a b" c', [b"fooa b", b"c"]),
            (b"a\vb\fc", [b"a\vb\fc"]),
            (b"\v\fa", [b"a"]),
            (b'"a"\vb', [b"a", b"b"]),
            (b"\xc3\xa9 \xff", [b"\xc3\xa9", b"\xff"]),
        ],
    )
    def test_splits_like_sdssplitargs(self, line: bytes, expected: list[bytes]) -> None:
        assert split_inline(line) == expected
        assert sdssplitargs(line) == expected

    @pytest.mark.parametrize("line", [b'"', b"'", b'"a', b"'a", b'"a"b', b"'a'b", b'a"b"c', b'"a\\"', b"'a\\'", b'"a""b"', b'""\'\''])
    def test_unbalanced_quotes(self, line: bytes) -> None:
        assert sdssplitargs(line) is None
        with pytest.raises(ProtocolError, match="unbalanced quotes in request"):
            split_inline(line)

    @settings(max_examples=600, deadline=None)
    @given(st.lists(st.sampled_from([b'"', b"'", b"\\", b"x", b"4", b"1", b"n", b" ", b"\t", b"\v", b"\f", b"\r", b"g", b"\xff"]), max_size=14))
    def test_any_line(self, parts: list[bytes]) -> None:
        line = b"".join(parts)
        try:
            found = split_inline(line)
        except ProtocolError:
            found = None
        assert found == sdssplitargs(line)

    def test_a_nul_hides_the_line_end_as_strchr_does(self) -> None:
        assert PARSER.parse(b"GET\0 a\r\n", 0) is None
        with pytest.raises(ProtocolError, match="too big inline request"):
            PARSER.parse(b"GET\0 a\r\n" + b"x" * LINE_LIMIT, 0)

    def test_line_ends(self) -> None:
        assert parse_all([b"PING\nPING\r\n\r\n\nECHO a\r\n"])[0] == [
            (b"PING\n", [b"PING"], False),
            (b"PING\r\n", [b"PING"], False),
            (b"\r\n", [], False),
            (b"\n", [], False),
            (b"ECHO a\r\n", [b"ECHO", b"a"], False),
        ]


class TestLargeFrame:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(argument, min_size=1, max_size=8), st.booleans(), st.lists(st.integers(0, 10**6), max_size=8), st.integers(0, 10**6))
    def test_any_pieces(self, arguments: list[bytes], canonical: bool, cuts: list[int], first: int) -> None:
        """From the moment `large` knows the name, the frame ends where it ends, and what follows is left."""
        data = encode.request(*arguments) if canonical else lax(arguments)
        stream = data + b"*1\r\n$4\r\nPING\r\n"
        known = None
        for begin in range(first % len(data), len(data) + 1):
            known = PARSER.large(b"??" + data[:begin], 2) if begin else None
            if known is not None:
                break
        assert known is not None
        leading, frame, end = known
        assert leading and leading == arguments[: len(leading)]
        taken, buf = data[: end - 2], data[end - 2 : begin]
        for piece in pieces(stream[begin:], cuts):
            buf += piece
            after = frame.advance(buf, 0)
            taken, buf = taken + buf[:after], buf[after:]
        assert frame.done
        assert taken == data
        assert buf == stream[len(data) :]

    def test_nothing_is_known_before_the_name_is_complete(self) -> None:
        for data in (b"*", b"*3\r", b"*3\r\n", b"*3\r\n$3", b"*3\r\n$3\r\nSET", b"*3\r\n$3\r\nSET\r", b"SET a", b"*0\r\n"):
            assert PARSER.large(data, 0) is None

    def test_the_name_and_complete_arguments_are_known(self) -> None:
        known = PARSER.large(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$9999999\r\nabc", 0)
        assert known is not None
        arguments, frame, end = known
        assert (arguments, frame.missing, frame.skip, end) == ([b"SET", b"k"], 0, 9999998, 33)
        assert not frame.done

    def test_errors_in_the_middle(self) -> None:
        frame = LargeFrame(2, 3, LIMIT)
        with pytest.raises(ProtocolError, match="expected '\\$', got '#'"):
            frame.advance(b"a\r\n#1\r\n", 0)
        with pytest.raises(ProtocolError, match="invalid bulk length"):
            LargeFrame(1, 0, 10).advance(b"$11\r\n", 0)

    def test_half_a_gigabyte_in_pieces(self) -> None:
        known = PARSER.large(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n", 0)
        assert known is not None
        frame, chunk = known[1], bytes(1 << 20)
        for _ in range(512):
            assert frame.advance(chunk, 0) == len(chunk)
        assert not frame.done
        assert frame.advance(b"\r\nPING", 0) == 2
        assert frame.done


@pytest.mark.parametrize(
    "claim",
    [b"*2147483647\r\n", b"*1\r\n$536870912\r\n", b"*1000000\r\n$3\r\nSET\r\n$536870912\r\nab", b"*2147483647\r\n$4\r\nMGET\r\n$1\r\na\r\n"],
)
def test_a_claimed_length_costs_nothing(claim: bytes) -> None:
    PARSER.parse(b"*1\r\n", 0)
    tracemalloc.start()
    try:
        assert PARSER.parse(claim, 0) is None
        PARSER.large(claim, 0)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
