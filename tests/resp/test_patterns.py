"""The patterns accept canonical frames only, and never see a boundary where the strict parser sees none."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.errors import ProtocolError
from proxy.resp.patterns import BULK_RUNS, RUN_SIZES, SCALAR_RUNS, SHORT, RequestPatterns
from proxy.resp.requests import RequestParser

NAMES = {1: ["ping", "echo"], 2: ["get", "getex", "incr", "echo"], 3: ["set", "get"], 4: ["lrange"], 6: ["mget"]}
PATTERNS = RequestPatterns(NAMES)
PARSER = RequestParser(2**31)


def strict(buf: bytes) -> list[tuple[list[bytes], int, bool]]:
    """What the parser makes of `buf`: arguments, end, canonical; up to the first request it cannot end."""
    found, pos = [], 0
    while pos < len(buf):
        try:
            request = PARSER.parse(buf, pos)
        except ProtocolError:
            break
        if request is None:
            break
        found.append((request.arguments, request.end, request.canonical))
        pos = request.end
    return found


def check_agreement(buf: bytes, start: int = 0) -> None:
    """Whatever the patterns take, the parser takes in the same way, and all of it is known and canonical."""
    requests = strict(buf[start:])
    end, n = PATTERNS.prefix(buf, start)
    assert n <= len(requests)
    assert end == start + (requests[n - 1][1] if n else 0)
    for arguments, _, canonical in requests[:n]:
        assert canonical
        assert arguments[0].decode("latin-1").lower() in NAMES.get(len(arguments), ())
    whole = PATTERNS.count(buf[start:])
    assert whole in (0, len(requests))
    assert not whole or requests[-1][1] == len(buf) - start
    assert bool(whole) == (end == len(buf) and n > 0)
    assert not whole or whole == n


sizes = st.one_of(st.integers(0, 12), st.sampled_from([SHORT - 1, SHORT, SHORT + 1, 99, 100, 101, 300]))
frames_in_a_key = st.sampled_from([b"*1\r\n$4\r\nPING\r\n", b"\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"$5\r\n", b"\r\n", b"\r", b"\n"])
payloads = st.one_of(st.binary(max_size=12), frames_in_a_key, sizes.map(lambda n: b"x" * n), sizes.map(lambda n: b"\r\n" * (n // 2)))


@st.composite
def known(draw: st.DrawFn) -> bytes:
    """A canonical request of a known command in one of the two spellings; arguments may be too long."""
    count = draw(st.sampled_from(sorted(NAMES)))
    name = draw(st.sampled_from(NAMES[count]))
    arguments = [draw(payloads) for _ in range(count - 1)]
    return encode.request(draw(st.sampled_from([name, name.upper()])), *arguments)


odd = st.sampled_from(
    [
        b"PING\r\n",
        b"\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*01\r\n$4\r\nPING\r\n",
        b"*+1\r\n$4\r\nPING\r\n",
        b"*1\r\n$04\r\nPING\r\n",
        b"*1\r\n$4\r\nPiNg\r\n",
        b"*1\r\n$4\r\nPINGxx",
        b"*1\rx$4\rxPINGxx",
        b"*1\n$4\nPING\n",
        b"*1\r\n$4\r\nPIN\r\n",
        b"*1\r\n$4\r\nPINGS\r\n",
        b"*1\r\n+PING\r\n",
        b"*1\r\n:4\r\nPING\r\n",
        b"*1\r\n$-1\r\n",
        b"*2\r\n$3\r\nGET\r\n$-1\r\n",
        b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n",
        b"*2\r\n$3\r\nSET\r\n$1\r\na\r\n",
        b"*2\r\n$5\r\nGET\r\n\r\n$1\r\na\r\n",
        b"$4\r\nPING\r\n",
        b"*1\r\n$4\r\nPING\r\n*",
        b"*2\r\n$3\r\nGET\r\n$536870912\r\n",
        b"*2\r\n$3\r\nGET\r\n$00\r\n\r\n",
        b"*2\r\n$3\r\nGET\r\n$256\r\n" + b"y" * 256 + b"\r\n",
        b"*2\r\n$3\r\nGET\r\n$255\r\n" + b"y" * 256 + b"\r\n",
    ]
)


class TestNeverAcceptsWhatTheParserSplitsOtherwise:
    @settings(max_examples=250, deadline=None)
    @given(st.lists(st.one_of(known(), odd), max_size=8), st.integers(0, 40))
    def test_concatenations(self, frames: list[bytes], cut: int) -> None:
        stream = b"".join(frames)
        check_agreement(stream)
        check_agreement(stream[: len(stream) - cut])

    @settings(max_examples=400, deadline=None)
    @given(st.lists(known(), min_size=1, max_size=5), st.data())
    def test_near_misses(self, frames: list[bytes], data: st.DataObject) -> None:
        """A valid stream with a byte or two replaced, inserted or removed."""
        stream = bytearray(b"".join(frames))
        for _ in range(data.draw(st.integers(1, 2))):
            place = data.draw(st.integers(0, len(stream) - 1))
            byte = data.draw(st.one_of(st.sampled_from(list(b"\r\n$*0123456789+-:")), st.integers(0, 255)))
            match data.draw(st.sampled_from("ri-")):
                case "r":
                    stream[place] = byte
                case "i":
                    stream.insert(place, byte)
                case _ if len(stream) > 1:
                    del stream[place]
        check_agreement(bytes(stream))

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=8), st.lists(known(), max_size=4))
    def test_from_the_middle_of_a_buffer(self, before: bytes, frames: list[bytes]) -> None:
        check_agreement(before + b"".join(frames), len(before))

    def test_every_one_byte_change_of_a_short_stream(self) -> None:
        stream = b"*2\r\n$3\r\nGET\r\n$2\r\nab\r\n*1\r\n$4\r\nping\r\n"
        for place in range(len(stream)):
            for byte in range(256):
                check_agreement(stream[:place] + bytes([byte]) + stream[place + 1 :])


class TestAcceptsWhatIsCommon:
    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 200), st.integers(0, SHORT), st.booleans())
    def test_uniform_pipelines(self, n: int, size: int, upper: bool) -> None:
        one = encode.request("SET" if upper else "set", "k", b"\r" * size)
        assert PATTERNS.count(one * n) == n
        assert PATTERNS.prefix(one * n, 0) == (len(one) * n, n)

    def test_mixed_pipelines(self) -> None:
        stream = (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n" + b"*1\r\n$4\r\nping\r\n" + b"*6\r\n$4\r\nMGET\r\n" + b"$1\r\nx\r\n" * 5) * 30
        assert PATTERNS.count(stream) == 90

    def test_a_short_first_request_and_long_ones_after_it(self) -> None:
        """The estimate from the first request is too high; from the last to the first too low."""
        short, long = b"*1\r\n$4\r\nPING\r\n", encode.request("SET", b"k" * 200, b"v" * 200)
        for stream in (short + long * 70, long + short * 70):
            assert PATTERNS.count(stream) == 71

    def test_prefix_stops_before_what_it_does_not_know(self) -> None:
        get = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"
        for rest in (b"*1\r\n$4\r\nQUIT\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\n", b"PING\r\n", b"*"):
            assert PATTERNS.prefix(b"??" + get * 5 + rest + get, 2) == (2 + len(get) * 5, 5)
            assert PATTERNS.count(get * 5 + rest) == 0

    def test_one_name_that_begins_another(self) -> None:
        assert PATTERNS.count(b"*2\r\n$5\r\nGETEX\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$2\r\nEX\r\n") == 2

    def test_names_are_not_patterns(self) -> None:
        dots = RequestPatterns({1: ["a.c", "x+"]})
        assert dots.count(b"*1\r\n$3\r\na.c\r\n*1\r\n$2\r\nX+\r\n") == 2
        assert dots.count(b"*1\r\n$3\r\nabc\r\n") == 0
        assert dots.count(b"*1\r\n$2\r\nxx\r\n") == 0


class TestBulkRuns:
    @pytest.mark.parametrize("size", RUN_SIZES)
    def test_lengths(self, size: int) -> None:
        match = dict(BULK_RUNS)[size]
        for length in range(SHORT + 3):
            run = (b"$%d\r\n%b\r\n" % (length, b"\n" * length)) * size
            found = match(run, 0)
            assert (found is not None and found.end() == len(run)) == (length <= SHORT)
            assert match(run[:-1], 0) is None

    def test_near_misses(self) -> None:
        match = dict(BULK_RUNS)[1]
        for wrong in (b"$-1\r\n", b"$1\r\nab\r\n", b"$2\r\na\r\n", b"$01\r\na\r\n", b"$1\r\na\r\r", b"$1\n\na\r\n", b"$\r\n\r\n", b"+a\r\n"):
            assert match(wrong, 0) is None, wrong


class TestScalarRuns:
    @pytest.mark.parametrize("size", RUN_SIZES)
    def test_runs(self, size: int) -> None:
        kinds = [b"+OK\r\n", b"-ERR no\r\n", b":-1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b"(123\r\n", b"$-1\r\n", b"$0\r\n\r\n", b"$2\r\n\r\n\r\n"]
        run = b"".join(kinds[place % len(kinds)] for place in range(size))
        found = dict(SCALAR_RUNS)[size](run + b"+more", 0)
        assert found is not None and found.end() == len(run)

    @pytest.mark.parametrize("wrong", [b"*0\r\n", b"*-1\r\n", b"%0\r\n", b">0\r\n", b"|0\r\n", b"~0\r\n", b"=4\r\ntxt:\r\n", b"!1\r\nE\r\n", b"+a\rb\r\n", b"+a\nb\r\n", b"+a\r", b"$256\r\n", b"$-2\r\n"])
    def test_what_is_left_to_the_scanner(self, wrong: bytes) -> None:
        assert dict(SCALAR_RUNS)[1](wrong, 0) is None


def test_a_claimed_length_costs_nothing() -> None:
    tracemalloc.start()
    try:
        assert PATTERNS.prefix(b"*2\r\n$3\r\nGET\r\n$536870912\r\n", 0) == (0, 0)
        assert PATTERNS.count(b"*2147483647\r\n$3\r\nGET\r\n") == 0
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
