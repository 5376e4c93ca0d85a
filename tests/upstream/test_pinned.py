"""Pinned links: counted, stream and tunnel modes; RESET recognised where it is one, and only there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upstream.address import Upstream
from proxy.upstream.link import Connector, Identity, LinkKey
from proxy.upstream.pinned import Expect, Mode, PinnedLink
from tests.client.linked import FakeTransport

KEY = LinkKey(Identity(), 0, 3)


class Owner:
    """Notes everything it hears, in order."""

    def __init__(self, link: PinnedLink) -> None:
        self.link = link
        self.heard: list[tuple[object, ...]] = []
        self.out = b""
        self.let_go_at = -1
        self.answers = 0
        link.owner = self

    def relay(self, data: bytes) -> None:
        self.out += data

    def answered(self, what: Expect, first: int) -> None:
        self.heard.append((what, chr(first), self.out))
        self.answers += 1
        if self.answers == self.let_go_at:
            self.link.owner = None

    def streams_reset(self) -> None:
        self.heard.append(("reset", self.out))
        self.link.owner = None

    def mark(self, mark: bytes) -> None:
        self.heard.append(("mark", mark, self.out))

    def pin_lost(self, why: str) -> None:
        self.heard.append(("lost", why))

    def pin_full(self, full: bool) -> None:
        self.heard.append(("full", full))


class Quiet(FakeTransport):
    """A transport whose end the test announces itself."""

    def end(self, exc: Exception | None) -> None:
        self.closing = True


def linked(mode: Mode = Mode.COUNTED, *expected: Expect) -> tuple[PinnedLink, Owner]:
    link = PinnedLink(Connector(Upstream(), 30.0, 0.0), KEY)
    link.connection_made(Quiet(link))
    link._reader = None
    link.mode = mode
    for what in expected:
        link.expect(what)
    return link, Owner(link)


def feed(link: PinnedLink, data: bytes, steps: list[int]) -> None:
    at, turns = 0, 0
    while at < len(data):
        step = steps[turns % len(steps)]
        link.data_received(data[at : at + step])
        at, turns = at + step, turns + 1


steps = st.lists(st.integers(1, 60), min_size=1, max_size=6)
bodies = st.sampled_from([b"+OK\r\n", b"-ERR a\r\n", b":1\r\n", b"_\r\n", b"$7\r\n+RESET\n\r\n", b"*2\r\n+RESET\r\n$3\r\nabc\r\n", b"*-1\r\n", b"$300\r\n" + b"x" * 293 + b"+RESET\r" + b"\r\n", b"%1\r\n+a\r\n*0\r\n"])
pushes = st.sampled_from([b">2\r\n+invalidate\r\n*1\r\n+k\r\n", b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$6\r\n+RESET\r\n"])


class TestCounted:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(bodies, st.sampled_from([Expect.NOTHING, Expect.MULTI, Expect.END, Expect.DISCARDED, Expect.WATCH])), max_size=6), st.lists(pushes, max_size=2), steps)
    def test_each_reply_answers_its_request(self, replies: list[tuple[bytes, Expect]], extra: list[bytes], steps: list[int]) -> None:
        link, owner = linked(Mode.COUNTED, *[what for _, what in replies])
        stream, relayed, heard = b"", b"", []
        for place, (body, what) in enumerate(replies):
            push = extra[place] if place < len(extra) else b""
            stream += push + body
            relayed += push + (b"" if what is Expect.DISCARDED else body)
            heard.append((what, chr(body[0]), relayed))
        feed(link, stream, steps)
        assert owner.out == relayed
        assert owner.heard == heard
        assert link.idle

    def test_idle_only_between_replies(self) -> None:
        link, _ = linked(Mode.COUNTED, Expect.NOTHING)
        assert not link.idle
        for part in (b"*2\r", b"\n:1", b"\r\n", b"$300\r\n" + b"x" * 300, b"\r"):
            link.data_received(part)
            assert not link.idle
        link.data_received(b"\n")
        assert link.idle
        link.data_received(b">1\r")
        assert not link.idle

    def test_reset_is_answered_by_the_owner(self) -> None:
        link, owner = linked(Mode.COUNTED, Expect.MULTI, Expect.RESET)
        feed(link, b"+OK\r\n+RESET\r\n", [3])
        assert owner.heard == [(Expect.MULTI, "+", b"+OK\r\n"), (Expect.RESET, "+", b"+OK\r\n")]
        assert owner.out == b"+OK\r\n"

    def test_after_the_owner_let_go_nothing_is_relayed(self) -> None:
        link, owner = linked(Mode.COUNTED, Expect.END)
        owner.let_go_at = 1
        link.data_received(b"*0\r\n")
        link.data_received(b">1\r\n+late\r\n")
        assert owner.out == b"*0\r\n"
        assert link.ended.is_set()
        assert link.transport is not None and link.transport.is_closing()


class TestStream:
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(bodies, pushes), max_size=6), steps)
    def test_relays_all_and_ends_at_reset_only(self, frames: list[bytes], steps: list[int]) -> None:
        """Pieces may end anywhere: right before the `+RESET` within a payload, say."""
        link, owner = linked(Mode.STREAM, Expect.RESET)
        feed(link, b"".join(frames), steps)
        assert owner.heard == []
        assert owner.out == b"".join(frames)
        feed(link, b"+RESET\r\n", steps)
        assert owner.heard == [("reset", b"".join(frames))]
        assert owner.out == b"".join(frames)

    @pytest.mark.parametrize(
        "frame",
        [b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$306\r\n" + b"x" * 300 + b"+RESET\r\n", b"*2\r\n:1\r\n+RESET\r\n", b">2\r\n:1\r\n+RESET\r\n", b"$306\r\n" + b"x" * 300 + b"+RESET\r\n"],
    )
    def test_is_not_fooled_by_a_last_piece(self, frame: bytes) -> None:
        link, owner = linked(Mode.STREAM, Expect.RESET)
        link.data_received(frame[:-8])
        link.data_received(frame[-8:])
        assert (owner.heard, owner.out) == ([], frame)

    def test_without_a_request_to_reset_it_is_a_reply_like_any(self) -> None:
        link, owner = linked(Mode.STREAM)
        link.data_received(b"+RESET\r\n")
        assert (owner.heard, owner.out) == ([], b"+RESET\r\n")


class TestMarks:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.one_of(bodies, pushes), max_size=4), st.lists(st.one_of(bodies, pushes), max_size=4), st.sampled_from(["bulk", "array", "error"]), steps)
    def test_are_found_behind_what_came_before(self, before: list[bytes], behind: list[bytes], form: str, steps: list[int]) -> None:
        """However the bytes are cut, and though replies are not counted."""
        link, owner = linked(Mode.STREAM)
        link.mark(owner.mark)
        sent = b"".join(link.transport.written)  # type: ignore[union-attr]
        text = sent.removeprefix(b"*2\r\n$4\r\nPING\r\n")
        assert text.startswith(b"$40\r\npannier:") and text not in b"".join(before)
        mark = {"bulk": text, "array": b"*2\r\n$4\r\npong\r\n" + text, "error": b"-NOPERM User x has no permissions to run the 'ping' command\r\n"}[form]
        others = [b"-NOPERM no 'get'\r\n", b"-N\r\n", text[:-4] + b"!!\r\n" if form == "bulk" else b"$0\r\n\r\n", *before]
        feed(link, b"".join([*others, mark, *behind]), steps)
        assert owner.out == b"".join([*others, *behind])
        assert owner.heard == [("mark", mark, b"".join(others))]

    def test_are_told_once(self) -> None:
        link, owner = linked(Mode.STREAM)
        link.mark(owner.mark)
        text = b"".join(link.transport.written).removeprefix(b"*2\r\n$4\r\nPING\r\n")  # type: ignore[union-attr]
        link.data_received(text + text)
        assert len(owner.heard) == 1 and owner.out == text


class TestTunnel:
    def test_bytes_pass_as_they_are(self) -> None:
        link, owner = linked(Mode.TUNNEL)
        feed(link, b"+FULLRESYNC\r\n$EOF:\x00\xff*1\r", [5])
        assert owner.out == b"+FULLRESYNC\r\n$EOF:\x00\xff*1\r"

    def test_nothing_is_lost_when_a_stream_becomes_one(self) -> None:
        link, owner = linked(Mode.STREAM)
        link.data_received(b"+a\r\n$3")
        link.mode = Mode.TUNNEL
        link.data_received(b"\r\nabc")
        assert owner.out == b"+a\r\n$3\r\nabc"

    def test_a_mode_changed_by_a_reply_counts_from_the_next_byte(self) -> None:
        link, owner = linked(Mode.COUNTED, Expect.NOTHING)

        def answered(what: Expect, first: int) -> None:
            link.mode = Mode.TUNNEL

        owner.answered = answered  # type: ignore[method-assign]
        link.data_received(b"+OK\r\n\x00\x01 raw")
        assert owner.out == b"+OK\r\n\x00\x01 raw"


class TestTheEnd:
    def test_is_told_once(self) -> None:
        link, owner = linked()
        link.fail("was slow")
        link.connection_lost(None)
        assert owner.heard == [("lost", "was slow")]
        assert link.ended.is_set()

    @pytest.mark.parametrize(("exc", "why"), [(None, "closed the connection"), (OSError("reset"), "broke: reset")])
    def test_says_why(self, exc: Exception | None, why: str) -> None:
        link, owner = linked()
        link.connection_lost(exc)
        assert owner.heard == [("lost", why)]

    def test_bytes_that_are_no_resp_end_it(self) -> None:
        link, owner = linked(Mode.COUNTED, Expect.NOTHING)
        link.data_received(b"+OK\r\nHTTP/1.1\r\n")
        assert owner.heard[-1] == ("lost", "sent what is no RESP reply: b'H' and so on")
        assert link.transport is not None and link.transport.is_closing()


class TestASilentLink:
    def test_that_owes_a_reply_is_given_up(self) -> None:
        link, owner = linked(Mode.COUNTED, Expect.NOTHING)
        link.tick(1000.0, 30.0)
        link.data_received(b"*2\r\n")
        link.tick(1030.0, 30.0)
        link.tick(1060.0, 30.0)
        assert owner.heard == []
        link.tick(1060.1, 30.0)
        assert owner.heard == [("lost", "did not answer within 30 s")]

    @pytest.mark.parametrize("mode", [Mode.STREAM, Mode.TUNNEL])
    def test_that_is_not_counted_may_be_silent(self, mode: Mode) -> None:
        link, owner = linked(mode)
        link.tick(0.0, 30.0)
        link.tick(99.0, 30.0)
        assert owner.heard == []

    def test_a_mark_is_waited_for_as_long_as_the_client_may_send_more(self) -> None:
        link, owner = linked(Mode.STREAM)
        link.mark(owner.heard.append)  # type: ignore[arg-type]
        link.tick(0.0, 30.0)
        link.tick(99.0, 30.0)
        assert owner.heard == []
        link.hurried = True
        link.tick(100.0, 30.0)
        link.tick(131.0, 30.0)
        assert owner.heard == [("lost", "did not answer within 30 s")]


class TestPressure:
    def test_redis_that_does_not_keep_up(self) -> None:
        link, owner = linked()
        link.watch_buffer()
        assert isinstance(link.transport, Quiet) and link.transport.high == 1024 * 1024
        link.pause_writing()
        link.resume_writing()
        assert owner.heard == [("full", True), ("full", False)]
        link.owner = None
        link.pause_writing()
        link.resume_writing()

    def test_a_client_that_does_not_keep_up(self) -> None:
        link, _ = linked()
        assert isinstance(link.transport, Quiet)
        link.pause(True)
        assert not link.transport.reading
        link.pause(False)
        assert link.transport.reading
        link.close()
        link.pause(True)
        assert link.transport.reading

    def test_its_id(self) -> None:
        link, _ = linked()
        assert link.client_id is None
        link.hello = {b"id": 12}
        assert link.client_id == 12
