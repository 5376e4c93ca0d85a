"""What hits take while much is dropped: which of them count, what is asked of them, the load that times them."""

from __future__ import annotations

import json
import socket
import threading
import time
from array import array
from contextlib import suppress

import pytest

from bench.figures import Result
from bench.report import markdown, to_json
from bench.servers import HOST, BenchError
from bench.stalls import MATCH, UPHEAVALS, Hits, Round, Stall, pacing
from bench.workloads import NAMESPACED, PLAIN


def hits(p99: float, most: float) -> Hits:
    return Hits(100, 0.05, p99, most)


def stall(rest: float, during: float, most: float) -> Stall:
    return Stall(PLAIN, MATCH, [Round(200.0, hits(rest, rest), hits(during, most))] * 3)


class TestWhichHitsCount:
    def test_those_on_their_way_in_the_time(self) -> None:
        early, late, before, after = (0.9, 1.01), (1.99, 2.5), (0.5, 0.99), (2.01, 2.02)
        found = Hits.between([moment for pair in (before, early, late, after) for moment in pair], 1.0, 2.0)
        assert found.count == 2
        assert (found.p50, found.most) == pytest.approx((510.0, 510.0))

    def test_quantiles(self) -> None:
        samples = [moment for n in range(1000) for moment in (1.0, 1.0 + n / 1000)]
        found = Hits.between(samples, 1.0, 2.0)
        assert (found.p50, found.p99, found.most) == pytest.approx((500.0, 990.0, 999.0))

    def test_none_is_a_failure(self) -> None:
        with pytest.raises(BenchError, match="no hit was answered"):
            Hits.between([0.1, 0.2], 1.0, 2.0)


class TestReport:
    @pytest.mark.parametrize(
        ("rest", "during", "most", "holds"),
        [
            (0.1, 2.0, 9.0, True),
            (0.1, 2.2, 9.0, False),
            (3.0, 5.9, 9.0, True),
            (3.0, 6.1, 9.0, False),
            (0.1, 0.2, 10.0, False),
        ],
    )
    def test_what_is_asked(self, rest: float, during: float, most: float, holds: bool) -> None:
        found = stall(rest, during, most)
        assert found.holds is holds
        text = markdown(Result({}, {}, stalls=[found]))
        assert ("| met " in text) is holds and ("**missed**" in text) is not holds

    def test_row(self) -> None:
        text = markdown(Result({}, {}, stalls=[stall(0.1, 2.0, 3.0)]))
        assert "| SIDECAR INVALIDATE MATCH | 200 (200–200) | 0.05 (0.05–0.05) |" in text
        assert "| 0.10 (0.10–0.10) | 2.00 (2.00–2.00) | 0.10 (0.10–0.10) | 3.00 (3.00–3.00)  | met" in text

    def test_json(self) -> None:
        (row,) = json.loads(json.dumps(to_json(Result({}, {}, stalls=[stall(0.1, 2.0, 3.0)]))))["invalidation"]
        assert row["title"] == "SIDECAR INVALIDATE MATCH" and row["holds"] is True
        assert (row["took"]["median"], row["rest"]["p99"]["median"], row["during"]["most"]["max"]) == (200.0, 0.1, 3.0)

    def test_titles_tell_all_apart(self) -> None:
        titles = [Stall(side, upheaval).title for side, some in UPHEAVALS.items() for upheaval in some]
        assert len(titles) == len(set(titles)) == 9
        assert Stall(NAMESPACED, MATCH).title == "SIDECAR INVALIDATE MATCH, in a namespace"


class TestLoad:
    """The load, against a server that answers every read with what it is told."""

    @staticmethod
    def serve(listener: socket.socket, reply: bytes, asked: threading.Event) -> None:
        def answer(link: socket.socket) -> None:
            with link, suppress(OSError):
                while data := link.recv(1 << 16):
                    link.sendall(reply * data.count(b"*2\r\n"))
                    asked.set()

        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(link,), daemon=True).start()

    @pytest.mark.parametrize("reply", [b"$3\r\nxxx\r\n", b"$-1\r\n"])
    def test_goes_on_until_it_is_told_to_end(self, reply: bytes) -> None:
        samples, asked = array("d"), threading.Event()
        with socket.create_server((HOST, 0)) as listener:
            threading.Thread(target=self.serve, args=(listener, reply, asked), daemon=True).start()
            began = time.monotonic()
            with pacing(listener.getsockname()[1], samples):
                assert asked.wait(20)
            listener.shutdown(socket.SHUT_RDWR)
        sent, answered = samples[::2], samples[1::2]
        assert len(sent) == len(answered) > 0
        assert all(began < one < other < time.monotonic() for one, other in zip(sent, answered, strict=True))

    def test_an_error_ends_it(self) -> None:
        asked = threading.Event()
        with socket.create_server((HOST, 0)) as listener:
            threading.Thread(target=self.serve, args=(listener, b"-ERR no\r\n", asked), daemon=True).start()
            with pytest.raises(BenchError, match="GET answered ERR no"), pacing(listener.getsockname()[1], array("d")):
                assert asked.wait(20)
            listener.shutdown(socket.SHUT_RDWR)
