"""Errors carry what the client is told, in one line whatever they quote."""

import inspect

import pytest

from proxy.resp import errors


class TestReplies:
    def test_protocol_errors_say_what_redis_says(self) -> None:
        assert errors.ProtocolError("expected '$', got ':'").reply() == b"-ERR Protocol error: expected '$', got ':'\r\n"

    @pytest.mark.parametrize("byte", range(256))
    def test_a_quoted_byte_never_breaks_the_frame(self, byte: int) -> None:
        reply = errors.ProtocolError(f"expected '$', got '{chr(byte)}'").reply()
        assert reply.endswith(b"'\r\n")
        assert reply.count(b"\r") == reply.count(b"\n") == 1

    @pytest.mark.parametrize("kind", [errors.UpstreamError, errors.UpstreamRefused, errors.UpstreamDesync, errors.UpstreamLost])
    def test_upstream_errors_are_relayed_in_one_line(self, kind: type[errors.UpstreamError]) -> None:
        assert kind("WRONGPASS a\r\nb").reply == b"-WRONGPASS a  b\r\n"
        assert kind("ERR \udcff é").reply == b"-ERR ? \xc3\xa9\r\n"
        assert str(kind("LOADING x")) == "LOADING x"


class TestTree:
    def test_the_picture_shows_every_error(self) -> None:
        tree = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
        assert len(tree) >= 8
        for kind in tree:
            assert issubclass(kind, errors.PannierError)
            assert f" {kind.__name__}" in f" {errors.__doc__}".replace("\n", " "), kind
