"""Rows and figures about the tier: hit rates, what makes them invalid, memory an entry, data loading."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.data import Store, batched, check_reads, hit_rate, parse_tier, read_through, tier_info
from bench.figures import Cell, Figure, Measurement, Result
from bench.load import BUILTIN, Generator, generator_for
from bench.memory import Growth, figures, name, value
from bench.report import markdown, to_json
from bench.servers import HOST, BenchError, Binary, ProxyCommand, Stable
from bench.traffic import COMMANDS, Part
from bench.workloads import COUNTED, DIRECT, OVERHEAD, PROXY, WORKLOADS, Workload

INFO = b"# Sidecar\r\npannier_tier_hits:95\r\npannier_tier_misses:5\r\npannier_tier_lag:0.5\r\nx:1\r\n"


def row(group: str, test: str = "get", depth: int = 1) -> Workload:
    """A row as it is measured."""
    found = (w for w in WORKLOADS if (w.group, w.test, w.depth) == (group, test, depth))
    return next(found)


def cell(workload: Workload, *rates: float | None, missing: str = "") -> Cell:
    """Rounds with these hit rates, each at half of Redis' cost."""
    direct = [Measurement(2.0, 0.0, 1000.0, 0.5) for _ in rates]
    proxy = [Measurement(1.0, 0.0, 1000.0, 0.5, hit_rate=rate) for rate in rates]
    return Cell(workload, {DIRECT.name: direct, PROXY.name: proxy}, missing)


@contextmanager
def scripted(replies: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """A server that takes one request, of any kind, per reply; its port and what it was sent."""
    got: list[bytes] = []
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        link, _ = listener.accept()
        with link:
            for reply in replies:
                got.append(link.recv(1 << 20))
                link.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], got
    finally:
        thread.join(5.0)
        listener.close()


class TestValidity:
    """A row that did not measure what it says is not judged."""

    @pytest.mark.parametrize(
        ("workload", "rates", "missing", "reason"),
        [
            (row("hits"), (0.5, 0.95, 0.99), "", ""),
            (row("hits"), (0.5, 0.6, 0.99), "", "hit rate 60.0%, should be 90% or more"),
            (row("hits"), (None, None), "", "no reads were counted"),
            (row("hits"), (None,), "INFO lacks it", "INFO lacks it"),
            (row("hits", "get-misses"), (0.85,), "", ""),
            (row("hits", "get-misses"), (0.7,), "", "hit rate 70.0%, should be 80% or more"),
            (row("hits", "mixed", 16), (0.3,), "", ""),
            (row("pass-through"), (None,), "", ""),
            (row("pass-through"), (0.9,), "", "hit rate 90.0%, should be none"),
            (row("misses"), (0.2,), "", ""),
            (row("misses", "set"), (None,), "", ""),
        ],
    )
    def test_reason(self, workload: Workload, rates: tuple[float], missing: str, reason: str) -> None:
        assert cell(workload, *rates, missing=missing).invalid() == reason

    def test_the_report_marks_it(self) -> None:
        result = Result({}, {}, [cell(row("hits"), 0.25)], notes={"hits": "started late"})
        text = markdown(result)
        assert "(**invalid**: hit rate 25.0%, should be 90% or more)" in text
        assert "≤ 1.05 not judged" in text
        assert "Note: started late." in text
        (found,) = to_json(result)["groups"]["hits"]["rows"]
        assert found["invalid"]
        assert found["hit_rate"]["median"] == 0.25
        assert found["ratio_own"]["holds"] is None

    def test_a_valid_row_is_judged_by_its_own_cost_alone(self) -> None:
        result = Result({}, {}, [cell(row("hits"), 1.0), cell(row("hits", "get", 64), 1.0)])
        rows = to_json(result)["groups"]["hits"]["rows"]
        assert [one["ratio_own"]["holds"] for one in rows] == [True, False]
        assert [one["ratio_total"]["holds"] for one in rows] == [None, None]

    def test_one_table_a_group(self) -> None:
        result = Result({}, {}, [cell(row(group), 0.0) for group in ("pass-through", "hits", "misses")])
        text = markdown(result)
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Pass-through",
            "## Hits",
            "## Misses and writes",
        ]
        assert text.count("| what is measured") == 3


class TestInfo:
    """What the proxy says about its tier."""

    def test_fields(self) -> None:
        assert parse_tier(INFO) == {"hits": 95, "misses": 5}

    def test_hit_rate_needs_both_counters_and_some_reads(self) -> None:
        before = {"hits": 10, "misses": 10}
        assert hit_rate(before, {"hits": 40, "misses": 20}) == 0.75
        assert hit_rate(before, before) is None
        assert hit_rate({}, before) is None

    @pytest.mark.parametrize(
        ("reply", "fields"),
        [
            (b"$%d\r\n%s\r\n" % (len(INFO), INFO), {"hits": 95, "misses": 5}),
            (b"$0\r\n\r\n", {}),
            (b"-ERR unknown\r\n", {}),
            (b"", {}),
        ],
    )
    def test_asked_for(self, reply: bytes, fields: dict[str, int]) -> None:
        with scripted([reply]) as (port, got):
            assert tier_info(port) == fields
        assert got == [b"*2\r\n$4\r\nINFO\r\n$7\r\nsidecar\r\n"]

    def test_nobody_there(self) -> None:
        with socket.create_server((HOST, 0)) as listener:
            port = listener.getsockname()[1]
        assert tier_info(port) == {}


class TestData:
    """Loading and reading before the rounds."""

    def test_loaded_once_and_only_what_is_missing(self) -> None:
        with scripted([b"+OK\r\n"]) as (port, got):
            store = Store(port)
            store.provide([Part(1.0, "get", end=2)])
        assert got[0].startswith(b"*5\r\n$4\r\nMSET\r\n$16\r\nkey:000000000000\r\n$3\r\nVXK\r\n")
        with scripted([b"+OK\r\n"]) as (store.port, got):
            store.provide([Part(0.5, "set", end=2), Part(0.5, "get", end=3, first=2)])
        assert got[0].startswith(b"*3\r\n$4\r\nMSET\r\n$16\r\nkey:000000000002\r\n")

    def test_collections(self) -> None:
        with scripted([b":1\r\n:1\r\n", b":10\r\n"]) as (port, got):
            Store(port).provide([Part(0.5, "hget", end=2), Part(0.5, "lrange-10", end=1)])
        assert got[0].count(b"HSET") == 2
        assert got[1].startswith(b"*12\r\n$5\r\nRPUSH\r\n$16\r\nlist0010:0000000\r\n$12\r\nelement:0000\r\n")

    def test_hot_keys_are_read_often_and_the_cold_left_alone(self) -> None:
        reply = COMMANDS["get"].reply * 3
        with scripted([reply] * 4) as (port, got):
            read_through(port, [Part(1, "set"), Part(1, "get", end=3), Part(1, "get", end=9, first=3)])
        assert got == [b"".join(map(COMMANDS["get"].request, range(3)))] * 4

    def test_a_wrong_reply_is_shown(self) -> None:
        with scripted([b"-ERR no\r\n"]) as (port, _), pytest.raises(BenchError, match="GET answered b'-ERR"):
            check_reads(port, [Part(1.0, "set", end=1)])

    def test_batches(self) -> None:
        assert list(batched([b"a", b"b", b"c"], 2)) == [[b"a", b"b"], [b"c"]]


class TestMemory:
    """Bytes an entry."""

    def test_names_and_values_have_the_size_they_are_counted_with(self) -> None:
        assert {len(name(number)) for number in (0, 99_999)} == {16}
        assert {len(value(number)) for number in (0, 99_999)} == {100}

    def test_overhead_is_growth_less_key_and_value(self) -> None:
        found = figures(Growth(30_000_000, 71_600_000, 100_000, 40_000_000), 100_000)
        by_key = {figure.what.key: figure for figure in found}
        overhead = by_key[OVERHEAD.key]
        assert overhead.values == [300.0]
        assert overhead.holds is True
        assert by_key[COUNTED.key].values == [400.0]
        text = markdown(Result({}, {}, memory=found))
        assert "≤ 300 met" in text
        assert "pannier_tier_entries 100,000" in text

    @pytest.mark.parametrize(
        ("entries", "reason"),
        [(None, "no pannier_tier_entries"), (98_999, "only 98,999 of 100,000")],
    )
    def test_without_the_entries_it_is_invalid(self, entries: int | None, reason: str) -> None:
        overhead = figures(Growth(0, 20_000_000, entries, None), 100_000)[0]
        assert reason in overhead.invalid
        assert overhead.holds is None
        assert "**invalid**: " in markdown(Result({}, {}, memory=[overhead]))

    def test_limits_that_may_be_reached(self) -> None:
        assert Figure(OVERHEAD, [300.1]).holds is False
        assert Figure(COUNTED, [300.1]).holds is None


class TestProxyOptions:
    """An option the proxy does not know is left out, and named."""

    @staticmethod
    def stable(usage: str | None) -> Stable:
        command = (sys.executable, "-c", usage) if usage is not None else None
        return Stable(Binary("redis-server", (7, 0, 0)), ProxyCommand(("x",), None, command))

    def test_known(self) -> None:
        options = ("--tracking", "off")
        assert self.stable("print('  --tracking WORD')").options_for(options) == (options, "")

    def test_nothing_wanted(self) -> None:
        assert self.stable("raise SystemExit(1)").options_for(()) == ((), "")

    def test_unknown(self) -> None:
        options, note = self.stable("print('  --tracking-table N')").options_for(("--tracking", "off"))
        assert options == ()
        assert "no option --tracking: it ran without" in note

    def test_a_stand_in(self) -> None:
        assert "nothing is known" in self.stable(None).options_for(("--tracking", "off"))[1]

    def test_a_proxy_that_does_not_start(self) -> None:
        with pytest.raises(BenchError, match="oh dear"):
            self.stable("import sys; sys.exit('oh dear')").options_for(("--tracking", "off"))


@pytest.mark.parametrize(("test", "blend"), [("get", False), ("set", False), ("mixed", True)])
def test_blends_are_for_the_built_in_generator(test: str, blend: bool) -> None:
    other = Generator("other", "1", ("other",))
    assert generator_for(Workload(test, 1), other) is (BUILTIN if blend else other)
