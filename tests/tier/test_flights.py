"""A flight answers all who wait for it, each in their protocol, and is kept if nothing came in between."""

from __future__ import annotations

import gc

import pytest

from proxy.resp.tracking import CACHING, Mode
from proxy.tier.flights import FOREVER, MISSING, Flight, lifetime, split_lifetime
from tests.tier.shelves import consistent, make, part, read


class Waiter:
    def __init__(self, protocol: int) -> None:
        self.protocol = protocol
        self.got: list[bytes] = []
        self.skips: list[int] = []

    def take(self, reply: bytes) -> None:
        self.got.append(reply)

    def take_piece(self, piece: bytes, skip: int) -> None:
        self.got.append(piece)
        self.skips.append(skip)

    def take_end(self) -> None:
        self.got.append(b"<end>")

    def cut(self) -> None:
        self.got.append(b"<cut>")

    def hold_back(self, link: object) -> None:
        self.skips.append(-1)

    def go_on(self) -> None:
        self.skips.append(-2)


def launch(*arguments: str, mode: Mode = Mode.DEFAULT, protocols: tuple[int, ...] = (2, 3), **limits: int) -> Flight:
    tier, shelf, _ = make(mode=mode, protocols=protocols, **limits)
    flight = shelf.open(read(tier, *arguments))
    assert flight is not None
    flight.waiters = [Waiter(protocol) for protocol in protocols]
    return flight


def got(flight: Flight) -> list[list[bytes]]:
    return [waiter.got for waiter in flight.waiters]  # type: ignore[attr-defined]


class TestItsRequest:
    PTTL = b"*2\r\n$4\r\nPTTL\r\n$1\r\n%b\r\n"

    @pytest.mark.parametrize("mode", [Mode.DEFAULT, Mode.BCAST])
    def test_asks_for_every_lifetime_first(self, mode: Mode) -> None:
        flight = launch("SINTER", "a", "b", "a", mode=mode)
        assert flight.request == self.PTTL % b"a" + self.PTTL % b"b" + b"*" + part("SINTER", "a", "b", "a")
        assert flight.replies == flight.pending == 3

    def test_has_each_key_tracked_before_anything_of_it_is_read(self) -> None:
        flight = launch("SINTER", "a", "b", mode=Mode.OPTIN)
        assert flight.request == CACHING + self.PTTL % b"a" + CACHING + self.PTTL % b"b" + b"*" + part("SINTER", "a", "b")
        assert flight.replies == 5


class TestItsLifetime:
    @pytest.mark.parametrize(
        ("data", "lines", "least"),
        [(b":-1\r\n", 1, FOREVER), (b":-2\r\n", 1, FOREVER), (b":5\r\n:-1\r\n", 2, 5), (b":-1\r\n:7\r\n:5\r\n", 3, 5), (b"-NOPERM\r\n:5\r\n", 2, None), (b":5\r\n-NOPERM\r\n", 2, None), (b"+OK\r\n:0\r\n", 2, 0), (b"-ERR\r\n:5\r\n", 2, None)],
    )
    def test_is_the_least(self, data: bytes, lines: int, least: int | None) -> None:
        assert split_lifetime(data + b"$1\r\nv\r\n", lines) == (least, b"$1\r\nv\r\n")
        assert MISSING < FOREVER < 0

    def test_is_in_seconds(self) -> None:
        assert (lifetime(None), lifetime(0), lifetime(1500), lifetime(FOREVER)) == (0.0, 0.0, 1.5, float("inf"))


class TestItsReply:
    def test_reaches_each_in_its_protocol(self) -> None:
        flight = launch("ZMSCORE", "z", "m", "n")
        for piece in (b":-1\r", b"\n*2\r\n,1", b".5\r\n_\r\n"):
            flight.relay(piece)
        flight.drained()
        assert got(flight) == [[b"*2\r\n$3\r\n1.5\r\n$-1\r\n"], [b"*2\r\n,1.5\r\n_\r\n"]]
        assert flight.shelf.entries == 2

    def test_of_a_tainted_one_too(self) -> None:
        flight = launch("GET", "k")
        flight.shelf.clear()
        flight.relay(b":-1\r\n$1\r\nv\r\n")
        flight.drained()
        assert got(flight) == [[b"$1\r\nv\r\n"]] * 2
        assert flight.shelf.entries == 0

    def test_too_long_is_handed_on_in_pieces(self) -> None:
        flight = launch("GET", "k", max_value_size=100)
        flight.skipped = lambda: 7
        flight.relay(b":-1\r\n$5000\r\n" + b"x" * 1000)
        assert got(flight) == [[], []]
        flight.relay(b"x" * 1000)
        assert got(flight) == [[b"$5000\r\n" + b"x" * 2000]] * 2
        assert not flight.shelf.flights and not flight.shelf.index
        flight.relay(b"x" * 3000 + b"\r\n")
        flight.drained()
        assert got(flight)[0][-2:] == [b"x" * 3000 + b"\r\n", b"<end>"]
        assert flight.waiters[0].skips == [0, 7]  # type: ignore[attr-defined]
        consistent(flight.shelf)

    def test_too_long_to_be_changed_on_the_way_is_handed_on_whole(self) -> None:
        flight = launch("HGETALL", "h", max_value_size=100)
        value = b"$3000\r\n" + b"x" * 3000 + b"\r\n"
        flight.relay(b":-1\r\n%1\r\n$1\r\nf\r\n")
        flight.relay(value)
        flight.drained()
        assert got(flight) == [[b"*2\r\n$1\r\nf\r\n" + value], [b"%1\r\n$1\r\nf\r\n" + value]]
        assert not flight.shelf.entries and not flight.shelf.index

    def test_too_long_for_resp3_alone_is_handed_on_in_pieces(self) -> None:
        flight = launch("HGETALL", "h", max_value_size=100, protocols=(3,))
        flight.relay(b":-1\r\n%1\r\n$1\r\nf\r\n$3000\r\n" + b"x" * 2000)
        assert len(got(flight)[0]) == 1

    def test_broken_off_is_an_error(self) -> None:
        flight = launch("GET", "k")
        flight.relay(b":-1\r\n$100\r\nhalf")
        flight.cut()
        assert all(len(replies) == 1 and replies[0].startswith(b"-ERR pannier") for replies in got(flight))

    def test_broken_off_in_pieces_is_cut(self) -> None:
        flight = launch("GET", "k", max_value_size=16)
        flight.relay(b":-1\r\n$5000\r\n" + b"x" * 2000)
        flight.cut()
        assert got(flight)[0][-1] == b"<cut>"

    def test_many_refusals_are_no_long_reply(self) -> None:
        """64 keys whose TTLs an ACL refuses, with the least `max_value_size`."""
        keys = [f"k{n}" for n in range(64)]
        flight = launch("EXISTS", *keys, max_value_size=16)
        refusal = b"-NOPERM User app has no permissions to run the 'pttl' command\r\n"
        for _ in keys:
            flight.relay(refusal)
        flight.relay(b":64\r\n")
        flight.drained()
        assert [b"".join(replies).removesuffix(b"<end>") for replies in got(flight)] == [b":64\r\n"] * 2

    def test_bears_a_link_that_is_full(self) -> None:
        flight = launch("GET", "k")
        flight.hold_back(object())  # type: ignore[arg-type]
        flight.go_on()
        assert flight.owners() == flight.waiters
        assert flight.skipped() == 0


class TestItsEnd:
    @pytest.mark.parametrize("cut", [False, True])
    def test_leaves_nothing_for_the_garbage_collection(self, cut: bool) -> None:
        """A hundred thousand fills would otherwise hold tens of megabytes until then."""
        tier, shelf, _ = make()
        gc.collect()
        gc.disable()
        try:
            for n in range(100):
                flight = shelf.open(read(tier, "GET", n))
                assert flight is not None
                if cut:
                    flight.cut()
                else:
                    flight.relay(b"+OK\r\n:-1\r\n$1\r\nv\r\n")
                    flight.drained()
            del flight
            shelf.clear()
            assert not any(isinstance(each, Flight) and each.shelf is shelf for each in gc.get_objects())
        finally:
            gc.enable()
