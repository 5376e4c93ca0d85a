"""Frames the sidecar writes: each as Redis would, read back by hiredis."""

from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.requests import RequestParser


def read(frame: bytes, **options: Any) -> Any:
    reader = hiredis.Reader(**options)
    reader.feed(frame)
    value = reader.gets()
    assert reader.gets() is False
    return value


class TestRequests:
    def test_words_numbers_and_bytes(self) -> None:
        assert encode.request("SET", b"k\r\n", 12, "é") == b"*4\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$2\r\n12\r\n$2\r\n\xc3\xa9\r\n"

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=6))
    def test_are_the_canonical_spelling(self, arguments: list[bytes]) -> None:
        data = encode.request(*arguments)
        request = RequestParser(2**31).parse(data, 0)
        assert request is not None
        assert (request.arguments, request.end, request.canonical) == (arguments, len(data), True)


class TestReplies:
    @pytest.mark.parametrize(
        ("frame", "wire"),
        [
            (encode.OK, b"+OK\r\n"),
            (encode.bulk(b""), b"$0\r\n\r\n"),
            (encode.bulk("é"), b"$2\r\n\xc3\xa9\r\n"),
            (encode.integer(-5), b":-5\r\n"),
            (encode.null(2), b"$-1\r\n"),
            (encode.null(3), b"_\r\n"),
            (encode.text("é", 2), b"$2\r\n\xc3\xa9\r\n"),
            (encode.text("é", 3), b"=6\r\ntxt:\xc3\xa9\r\n"),
            (encode.array([]), b"*0\r\n"),
            (encode.array(iter([b":1\r\n", b"_\r\n"])), b"*2\r\n:1\r\n_\r\n"),
            (encode.error("ERR a\r\nb\nc"), b"-ERR a  b c\r\n"),
            (encode.error("ERR " + b"\xff\xc3\xa9".decode("utf-8", "surrogateescape")), b"-ERR \xff\xc3\xa9\r\n"),
            (encode.value({b"a": [1, None]}, 2), b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n"),
            (encode.value({b"a": [1, None]}, 3), b"%1\r\n$1\r\na\r\n*2\r\n:1\r\n_\r\n"),
        ],
    )
    def test_wire_bytes(self, frame: bytes, wire: bytes) -> None:
        assert frame == wire

    @settings(max_examples=100, deadline=None)
    @given(
        st.recursive(
            st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=20)),
            lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.binary(max_size=4), inner, max_size=4)),
            max_leaves=10,
        )
    )
    def test_values_come_back(self, value: object) -> None:
        assert read(encode.value(value, 3)) == value

    def test_no_frame_for_what_hiredis_never_returns(self) -> None:
        with pytest.raises(TypeError, match="no RESP frame for float"):
            encode.value([1.5], 3)
