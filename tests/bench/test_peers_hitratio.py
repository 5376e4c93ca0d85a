"""Hit ratios beside other policies: the streams, the simulations, what is made of them, one small run."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count
from types import ModuleType

import pytest

from bench.load import BUILTIN
from bench.peers import hitratio, streams
from bench.peers.hitratio import (
    COLUMNS,
    COUNTED,
    POLICIES,
    counted,
    gaps,
    next_reads,
    optimum,
    pipelines,
    said,
    simulated,
)
from bench.peers.sections import Row
from bench.peers.setting import Bench
from bench.progress import Progress
from bench.servers import BenchError, Binary, ProxyCommand, Stable, redis_binary

READS = 6_000


@pytest.fixture
def cachesim() -> ModuleType:
    return pytest.importorskip("libcachesim", reason="the Python package libcachesim is not installed")


def exact_lru(reads: Sequence[int], entries: int) -> Iterator[bool]:
    kept: OrderedDict[int, None] = OrderedDict()
    for number in reads:
        yield number in kept
        kept[number] = None
        kept.move_to_end(number)
        if len(kept) > entries:
            kept.popitem(last=False)


def most_hits(reads: tuple[int, ...], entries: int) -> int:
    """By trying everything: whatever is read may be kept or not, in the place of any other."""

    @cache
    def best(place: int, kept: frozenset[int]) -> int:
        if place == len(reads):
            return 0
        number = reads[place]
        if number in kept or len(kept) < entries:
            return (number in kept) + best(place + 1, kept | {number})
        swapped = (best(place + 1, kept - {goes} | {number}) for goes in kept)
        return max(best(place + 1, kept), *swapped)

    return best(0, frozenset())


class TestStreams:
    @pytest.mark.parametrize("name", streams.NAMES)
    def test_the_same_every_time(self, name: str) -> None:
        one, other = streams.stream(name, READS), streams.stream(name, READS)
        assert one == other and len(one.reads) == READS and one.warm == READS // 3
        assert one.entries(25) == len(set(one.reads)) // 4
        assert streams.LEAST <= one.entries(1) < one.entries(5) < one.entries(10)

    def test_another_python_draws_the_same(self) -> None:
        assert streams.zipf(0.9, 8) == streams.zipf(0.9, READS)[:8] == [3, 176, 4440, 856, 7331, 183, 12, 204]

    @pytest.mark.parametrize("exponent", [0.7, 0.9, 1.1])
    def test_zipf(self, exponent: float) -> None:
        drawn = Counter(streams.zipf(exponent, 100_000))
        weights = [rank**-exponent for rank in range(1, streams.KEYS + 1)]
        for first, last in ((0, 10), (10, 100), (100, 1000), (1000, streams.KEYS)):
            share = sum(drawn[number] for number in range(first, last)) / 100_000
            assert share == pytest.approx(sum(weights[first:last]) / sum(weights), abs=0.01)

    def test_a_third_of_scan_mixed_are_scans_of_keys_read_once(self) -> None:
        reads = streams.stream("scan-mixed", READS).reads
        scanned = [number for number in reads if number >= streams.KEYS]
        assert len(scanned) >= 0.3 * READS
        assert scanned == list(range(streams.KEYS, streams.KEYS + len(scanned)))
        for start in range(0, READS, streams.POPULAR + streams.SCANNED):
            assert all(number < streams.KEYS for number in reads[start : start + streams.POPULAR])

    def test_shifting_has_others_at_the_top(self) -> None:
        reads, every = streams.stream("shifting", 10 * READS).reads, 10 * READS // streams.TURNS
        before, after = Counter(reads[:every]), Counter(reads[every : 2 * every])
        assert before.most_common(1)[0][0] == 0 and after.most_common(1)[0][0] == streams.TURN
        hottest = range(streams.TURN)
        assert sum(after[number] for number in hottest) < 0.05 * sum(before[number] for number in hottest)

    def test_some_entries_at_least(self) -> None:
        assert streams.Stream("short", [1, 2, 3]).entries(1) == streams.LEAST


class TestOptimum:
    def test_next_reads(self) -> None:
        assert next_reads([7, 8, 7, 9, 8]) == [2, 4, 5, 5, 5]

    def test_by_hand(self) -> None:
        # One place: a is kept past b, which is never read again.
        assert list(optimum([1, 2, 1], 1)) == [False, False, True]
        # Two places: of 1, 2 and 3 at the third read, 2 is read last and goes; at the end it misses.
        assert list(optimum([1, 2, 3, 1, 3, 2], 2)) == [False, False, False, True, True, False]

    @pytest.mark.parametrize("entries", [1, 2, 3])
    def test_nothing_is_better(self, entries: int) -> None:
        for start in range(0, 400, 20):
            reads = tuple(number % 6 for number in streams.zipf(0.9, 400)[start : start + 20])
            assert sum(optimum(reads, entries)) == most_hits(reads, entries)

    @pytest.mark.parametrize("name", streams.NAMES)
    @pytest.mark.parametrize("percent", hitratio.PERCENTS)
    def test_no_policy_is_better(self, cachesim: ModuleType, name: str, percent: int) -> None:
        stream = streams.stream(name, READS)
        entries = stream.entries(percent)
        best = sum(optimum(stream.reads, entries))
        assert all(0 < sum(simulated(cachesim, policy, stream.reads, entries)) <= best for policy in POLICIES)

    def test_against_the_librarys_which_keeps_what_it_misses(self, cachesim: ModuleType) -> None:
        stream = streams.stream("zipf-0.9", READS)
        cache, request = cachesim.Belady(cache_size=100, hashpower=16), cachesim.Request(obj_size=1)
        hits = 0
        for request.obj_id, request.next_access_vtime in zip(
            stream.reads, next_reads(stream.reads), strict=True
        ):
            hits += cache.get(request)
        assert hits <= sum(optimum(stream.reads, 100)) <= hits + 0.01 * READS


class TestSimulations:
    @pytest.mark.parametrize("name", streams.NAMES)
    @pytest.mark.parametrize("entries", [1, 50, 700])
    def test_lru_is_exact(self, cachesim: ModuleType, name: str, entries: int) -> None:
        reads = streams.stream(name, READS).reads
        assert list(simulated(cachesim, "lru", reads, entries)) == list(exact_lru(reads, entries))

    @pytest.mark.parametrize("policy", POLICIES)
    def test_small_ones_keep_something(self, cachesim: ModuleType, policy: str) -> None:
        assert sum(simulated(cachesim, policy, [1, 1, 1, 2, 1, 1, 2] * 20, streams.LEAST)) > 100

    def test_unknown(self, cachesim: ModuleType) -> None:
        with pytest.raises(ValueError, match="no policy fifo"):
            list(simulated(cachesim, "fifo", [1], 1))

    def test_the_warm_up_does_not_count(self) -> None:
        stream = streams.Stream("six", [0] * 6)
        assert hitratio.percent_hit(iter([True, True, True, False, False, False]), stream) == 25.0

    def test_a_library_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hitratio, "PACKAGE", "no_such_package")
        with pytest.raises(BenchError, match="the Python package no_such_package is not installed"):
            hitratio.library()


class TestPannier:
    def test_what_is_sent(self) -> None:
        get = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:%012d\r\n"
        reply = b"$16\r\n%016d\r\n"
        assert pipelines([1, 2, 3], 2) == [(get % 1 + get % 2, reply % 1 + reply % 2), (get % 3, reply % 3)]

    def test_hits_are_a_share_of_what_was_sent(self) -> None:
        before, after = {"hits": 10, "misses": 10}, {"hits": 40, "misses": 60}
        assert counted(before, after, 80, COUNTED) == 37.5
        assert counted(before, after, 120, 0.0) == 25.0

    def test_what_was_not_looked_up(self) -> None:
        with pytest.raises(BenchError, match="only 80 of 1,000 reads were looked up"):
            counted({"hits": 0, "misses": 0}, {"hits": 40, "misses": 40}, 1000, COUNTED)

    def test_a_proxy_that_tells_nothing(self) -> None:
        with pytest.raises(BenchError, match="does not tell"):
            counted({}, {}, 10, 0.0)


class TestGaps:
    CELL = {"pannier": 50.0, "lru": 45.0, "sieve": 52.0, "s3fifo": 53.5, "wtinylfu": 49.0, "belady": 60.0}  # noqa: RUF012

    def test_of_a_cell(self) -> None:
        assert gaps(self.CELL) == {"gap_lru": 5.0, "gap_best": -3.5, "gap_optimum": -10.0}

    def test_without_the_library(self) -> None:
        assert gaps({"pannier": 50.0, "belady": 60.0}) == {"gap_optimum": -10.0}

    def test_said(self) -> None:
        rows = [Row("a/1", {"gap_lru": -1.0, "gap_optimum": -10.0}), Row("b/5", {"gap_lru": 4.0})]
        assert said(rows) == [
            "Pannier less LRU: +1.5 points in the mean, from -1.0 (a/1) to +4.0 (b/5).",
            "Pannier less the optimum: -10.0 points in the mean, from -10.0 (a/1) to -10.0 (a/1).",
        ]

    def test_nothing_to_say(self) -> None:
        assert said([]) == []


def bench_of(stable: Stable, deadline: float) -> Bench:
    return Bench(stable, [], BUILTIN, 1, 1.0, deadline, Progress(hitratio.STEPS))


class TestSection:
    """With streams that are short, and cells that are not measured, but in the last test."""

    @pytest.fixture
    def bench(self, monkeypatch: pytest.MonkeyPatch) -> Bench:
        monkeypatch.setattr(streams, "KEYS", 1_000)
        monkeypatch.setattr(streams, "READS", READS)
        monkeypatch.setattr(hitratio.Place, "open", lambda stable, keys: hitratio.Place(stable, None))  # type: ignore[arg-type]
        monkeypatch.setattr(hitratio.Place, "percent_hit", lambda *_: 50.0)
        stable = Stable(Binary("redis-server", (7, 0, 0)), ProxyCommand(("x",), None))
        return bench_of(stable, time.monotonic() + 60)

    def test_rows_columns_and_steps(self, bench: Bench, cachesim: ModuleType) -> None:
        section = hitratio.measure(bench)
        assert [row.name for row in section.rows] == [
            f"{name}/{percent}" for name in streams.NAMES for percent in hitratio.PERCENTS
        ]
        assert all(row.values.keys() == {column.key for column in COLUMNS} for row in section.rows)
        assert bench.progress.done == hitratio.STEPS and not bench.failures
        assert len(section.notes) == 4 and "not 50.0 %" in section.notes[-1]
        assert "6,000 reads" in section.about and "--l1-ttl 1h" in section.about and "\n" not in section.about

    def test_a_quick_run_has_shorter_streams(self, bench: Bench) -> None:
        bench.seconds = 0.2
        assert "have 1,200 reads" in hitratio.measure(bench).about

    def test_without_the_library(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hitratio, "PACKAGE", "no_such_package")
        section = hitratio.measure(bench)
        assert section.rows[0].values.keys() == {
            "stream", "percent", "entries", "pannier", "belady", "gap_optimum",
        }  # fmt: skip
        assert any("no_such_package is not installed" in note for note in section.notes)
        assert "| –" in section.markdown()

    def test_a_failure_ends_its_cell(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        cells = count(1)

        def percent_hit(*_: object) -> float:
            if next(cells) == 2:
                raise BenchError("the server closed a connection")
            return 50.0

        monkeypatch.setattr(hitratio.Place, "percent_hit", percent_hit)
        section = hitratio.measure(bench)
        assert bench.failures == ["hit-ratio: zipf-0.7/5: the server closed a connection"]
        assert len(section.rows) == len(streams.NAMES) * len(hitratio.PERCENTS) - 1

    def test_the_time_limit_ends_all(self, bench: Bench) -> None:
        bench.deadline = time.monotonic() - 1
        assert hitratio.measure(bench).rows == []
        assert bench.failures == ["hit-ratio: the time limit is reached"]


@pytest.fixture
def stable() -> Iterator[Stable]:
    try:
        binary = redis_binary()
    except BenchError as error:
        pytest.skip(str(error))
    with Stable(binary, ProxyCommand.pannier()) as found:
        yield found


def test_a_small_run(stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real servers: what is counted fits what is possible, and they end with the section."""
    monkeypatch.setattr(streams, "KEYS", 1_000)
    monkeypatch.setattr(streams, "READS", READS)
    monkeypatch.setattr(streams, "NAMES", ("zipf-0.9",))
    monkeypatch.setattr(hitratio, "PERCENTS", (5,))
    bench = bench_of(stable, time.monotonic() + 60)
    section = hitratio.measure(bench)
    assert not bench.failures and not stable.servers
    (row,) = section.rows
    pannier, best = row.values["pannier"], row.values["belady"]
    assert isinstance(pannier, float) and isinstance(best, float)
    assert 20 < pannier < best < 100
    assert row.values["gap_optimum"] == pytest.approx(pannier - best, abs=0.02)
    assert "In pipelines of 16" in section.notes[-1]
