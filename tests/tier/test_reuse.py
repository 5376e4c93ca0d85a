"""Reads are watched until they are read again; what is held for that is kept like everything else."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.resp.globs import compile_globs
from proxy.resp.tracking import Mode
from proxy.tier import reuse, sampling
from proxy.tier.matching import drop_matching
from proxy.tier.policy import CacheRule
from proxy.tier.reuse import Outcome, Sample
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Tier
from tests.tier.shelves import consistent, fill, make, obey, part

VALUE = b"$1\r\nv\r\n"
FOREVER = float("inf")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is watched."""
    monkeypatch.setattr(sampling, "FIRST", 1)
    monkeypatch.setattr(sampling, "GAP", 1)
    monkeypatch.setattr(sampling, "RATE", 1e9)
    for module in (reuse, sampling):
        monkeypatch.setattr(module, "randrange", lambda stop: 0)


class Reader:
    """Reads a shelf as sessions do."""

    def __init__(self, mode: Mode = Mode.OPTIN, protocols: tuple[int, ...] = (2,), **limits: Any) -> None:
        self.tier, self.shelf, self.clock = make(mode, protocols, **limits)
        self.hits = 0
        self.shelf.account.count_hits = lambda: self.hits

    def read(self, key: object, lifetime: float = FOREVER) -> bool:
        """Whether it was answered from memory."""
        shelf, wanted = self.shelf, part("GET", str(key))
        table = shelf.table(2)
        self.clock.now += 0.02  # the clock of reads looks again
        if table.find(wanted) is None:
            shelf.reuse.release([wanted])
        if table.find(wanted) is not None and shelf.vouch(self.clock.now):
            self.hits += 1
            table.log([wanted])
            return True
        shelf.account.misses += 1
        if shelf.admits(wanted):
            fill(shelf, "GET", str(key), lifetime=lifetime)
        return False

    def samples(self) -> list[Sample]:
        return list(self.shelf.reuse.samples)


@pytest.fixture
def reader() -> Reader:
    return Reader()


class TestARead:
    def test_is_watched_until_it_is_read_again(self, reader: Reader) -> None:
        assert [reader.read(key) for key in ("a", "b", "c", "a")] == [False, False, False, True]
        first, second = reader.samples()[0], reader.samples()[1]
        assert (first.outcome, first.kept, first.hit) == (Outcome.AGAIN, True, False)
        assert first.ended is not None and first.ended - first.began == 2, "two came between"
        assert (second.outcome, second.ended) == (Outcome.OPEN, None)

    def test_that_was_a_hit_is_watched_as_well(self, reader: Reader) -> None:
        for _ in range(3):
            reader.read("a")
        assert [(each.hit, each.outcome) for each in reader.samples()] == [(False, Outcome.AGAIN), (True, Outcome.AGAIN), (True, Outcome.OPEN)]

    def test_until_its_key_changes(self, reader: Reader) -> None:
        for key in ("pushed", "written"):
            reader.read(key)
        reader.shelf.invalidate([key_frame(b"pushed")])
        reader.tier.drop(marks([key_frame(b"written")]))
        assert [each.outcome for each in reader.samples()] == [Outcome.CHANGED] * 2
        assert not reader.shelf.reuse.open

    def test_until_its_time_is_over(self, reader: Reader) -> None:
        reader.read("a", lifetime=5.0)
        reader.clock.now += 10
        reader.read("b")
        reader.shelf.vouch(reader.clock.now)
        [sample] = [each for each in reader.samples() if each.outcome is Outcome.EXPIRED]
        assert not sample.missed
        reader.read("a")
        assert sample.missed and sample.outcome is Outcome.EXPIRED

    def test_that_was_evicted_is_watched_on(self) -> None:
        reader = Reader(max_entries=10)
        for key in range(100):
            reader.read(key)
        sample = reader.samples()[0]
        assert part("GET", "0") not in reader.shelf.table(2) and sample.ended is None
        reader.read("0")
        assert sample.outcome is Outcome.AGAIN and sample.ended == 100

    def test_that_was_evicted_may_change_as_well(self) -> None:
        reader = Reader(max_entries=10)
        for key in range(100):
            reader.read(key)
        reader.shelf.invalidate([key_frame(b"0")])
        assert reader.samples()[0].outcome is Outcome.CHANGED

    def test_that_was_evicted_may_be_written_here(self) -> None:
        reader = Reader(max_entries=10)
        for key in range(100):
            reader.read(key)
        reader.tier.drop(marks([key_frame(b"0")]))
        assert reader.samples()[0].outcome is Outcome.CHANGED

    def test_that_is_not_let_in_is_no_hit_at_any_size(self) -> None:
        reader = Reader(admit_after=2)
        reader.read("a")
        reader.read("a")
        sample = reader.samples()[0]
        assert (sample.outcome, sample.kept) == (Outcome.AGAIN, False)
        assert reader.shelf.reuse.watched()[0][1].size == 0

    def test_that_is_not_let_in_for_want_of_room_is(self) -> None:
        reader = Reader(admit_after=2, l1_ttl=10.0)
        for key in ("known", "known"):
            reader.read(key)
        reader.shelf.budget.door._every = 2
        reader.read("a")
        reader.read("late")
        size = next(each.size for each in reader.samples() if each.size)
        assert [watched.size for sample, watched in reader.shelf.reuse.watched() if sample.part == part("GET", "a")] == [size]
        reader.clock.now += 20
        reader.read("late")
        assert [each.outcome for each in reader.samples()].count(Outcome.EXPIRED) == 1, "it would not have been kept for so long"

    def test_of_several_protocols_takes_room_for_all(self) -> None:
        reader = Reader(protocols=(2, 3))
        reader.read("a")
        [sample] = reader.samples()
        assert sample.size == reader.shelf.bytes

    def test_too_long_to_be_remembered_is_not_watched(self, reader: Reader) -> None:
        reader.read("x" * 2000)
        assert reader.samples() == []

    @pytest.mark.parametrize("mode", [Mode.BCAST, Mode.BUS])
    def test_where_replies_may_be_ahead_of_pushes_is_not_watched(self, mode: Mode) -> None:
        reader = Reader(mode)
        reader.read("a")
        assert reader.samples() == []


class TestTheWindow:
    def test_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "MOST", 400)
        reader = Reader()
        for key in range(5000):
            reader.read(key)
        assert len(reader.samples()) == 400 and len(reader.shelf.reuse.open) <= 400
        consistent(reader.shelf)

    def test_forgets_what_is_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reuse, "_WINDOW", ((900.0, 800), (3600.0, 400)))
        reader = Reader()
        for _ in range(2):
            for key in range(1000):
                reader.clock.now += 0.8
                reader.read(key)
                reader.shelf.digest()
        oldest = reader.samples()[0].began
        assert 2000 - 900 / 0.82 - 20 <= oldest <= 2000 - 900 / 0.82 + 1
        assert sum(reader.shelf.reuse.rate()) == 2000 - reader.shelf.reuse._marks[0].reads
        consistent(reader.shelf)

    def test_goes_back_for_longer_where_reads_are_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reuse, "_WINDOW", ((900.0, 10_000), (3600.0, 100)))
        reader = Reader()
        for key in range(6000):
            reader.clock.now += 0.98
            reader.read(key)
            reader.shelf.digest()
        assert 6000 - 3600 - 40 <= reader.samples()[0].began <= 6000 - 3600 + 1

    def test_keeps_what_is_old_while_little_came_since(self) -> None:
        reader = Reader()
        for key in range(1000):
            reader.read(key)
        reader.shelf.digest()
        for key in range(100):
            reader.clock.now += 60
            reader.read(key)
            reader.shelf.digest()
        assert reader.samples()[0].began < 1000

    def test_forgets_when_memory_was_cold(self) -> None:
        reader = Reader()
        for key in range(4000):
            reader.read(key)
            reader.shelf.digest()
        assert 800 <= reader.samples()[0].began <= 1000, "a quarter"

    def test_begins_anew_when_reads_are_few(self) -> None:
        """After a busy day the gap between samples would be hours at night."""
        reader = Reader()
        reader.shelf.reuse._pace.gap = 1 << 16
        for key in range(12_000):
            reader.clock.now += 0.2
            reader.read(key % 100)
            reader.shelf.digest()
        assert reader.shelf.reuse._pace.gap < 8 and len(reader.samples()) > 2000

    def test_weights_add_up_to_all_reads(self, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "randrange", random.Random(1).randrange)
        rng = random.Random(2)
        for _ in range(5000):
            reader.read(int(rng.paretovariate(0.5)) % 500)
        weights = [watched.weight for _, watched in reader.shelf.reuse.watched()]
        assert sum(weights) == pytest.approx(1.0, abs=0.01)

    def test_nothing_was_read(self, reader: Reader) -> None:
        assert reader.shelf.reuse.watched() == [] and reader.shelf.reuse.rate() == (0, 0)

    def test_a_flush_gives_up_what_is_watched(self, reader: Reader) -> None:
        reader.read("a")
        reader.shelf.clear()
        [sample] = reader.samples()
        assert (sample.outcome, sample.ended is None) == (Outcome.OPEN, False)
        assert not reader.shelf.reuse.open and not len(reader.shelf.table(2))


class TestWhatIsHeld:
    """It is not in the dict of the hot path, and is kept like everything else."""

    def test_is_in_memory_for_whoever_asks(self, reader: Reader) -> None:
        reader.read("a")
        table, wanted = reader.shelf.table(2), part("GET", "a")
        assert table.find(wanted) is None and wanted in table and table.get(wanted) == VALUE
        assert len(table) == reader.shelf.entries == 1 and reader.shelf.keeps(wanted) and reader.shelf.ends(wanted) is not None
        assert reader.shelf.size_of(wanted) == len(VALUE)

    def test_is_dropped_by_a_pattern(self, reader: Reader) -> None:
        reader.read("user:1")
        assert sum(drop_matching(reader.tier, compile_globs([b"user:*"]), b"")) == 1
        assert reader.shelf.entries == 0 and not reader.read("user:1")

    def test_is_evicted_when_its_time_has_come(self) -> None:
        reader = Reader(max_entries=50)
        for key in range(500):
            reader.read(key)
        assert reader.shelf.entries <= 50
        assert len(reader.shelf.table(2).held) <= 50
        consistent(reader.shelf)

    def test_is_all_there_is(self) -> None:
        reader = Reader(max_entries=1)
        for key in range(10):
            reader.read(key)
            assert reader.shelf.entries <= 1
        consistent(reader.shelf)

    def test_is_served_stale_when_the_link_breaks(self) -> None:
        reader = Reader(stale_max=60.0)
        reader.read("a")
        reader.shelf.link_lost()
        assert reader.shelf.table(2).find(part("GET", "a")) == VALUE

    def test_fetched_anew_it_is_held_on(self, reader: Reader) -> None:
        reader.read("a")
        fill(reader.shelf, "GET", "a", reply=b"$3\r\nnew\r\n")
        table = reader.shelf.table(2)
        assert table.get(part("GET", "a")) == b"$3\r\nnew\r\n" and len(table) == 1 and len(table.held) == 1
        consistent(reader.shelf)


class Holding(RuleBasedStateMachine):
    """Reads, writes, time, flushes and evictions in any order, every read watched: what is kept is served."""

    keys = st.sampled_from(["a", "b", "c", "d", "e"])

    @initialize(protocols=st.sampled_from([(2,), (2, 3)]), entries=st.integers(2, 8), swr=st.booleans())
    def begin(self, protocols: tuple[int, ...], entries: int, swr: bool) -> None:
        self.before = sampling.FIRST, sampling.GAP
        sampling.FIRST = sampling.GAP = 1
        self.reader = Reader(protocols=protocols, max_entries=entries)
        if swr:
            obey(self.reader.tier, CacheRule((b"*",), stale_while_revalidate=5.0))
        self.shelf: Shelf = self.reader.shelf
        self.tier: Tier = self.reader.tier

    def teardown(self) -> None:
        sampling.FIRST, sampling.GAP = self.before

    @rule(key=keys, lifetime=st.sampled_from([1.0, FOREVER]))
    def read(self, key: str, lifetime: float) -> None:
        kept = part("GET", key) in self.shelf.table(2) and self.shelf.vouch(self.reader.clock.now + 0.02)
        kept = kept and part("GET", key) in self.shelf.table(2)
        assert self.reader.read(key, lifetime) == kept

    @rule(key=keys)
    def write(self, key: str) -> None:
        self.shelf.invalidate([key_frame(key.encode())])
        assert part("GET", key) not in self.shelf.table(2)

    @rule(seconds=st.sampled_from([0.5, 2.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.reader.clock.now += seconds
        self.shelf.vouch(self.reader.clock.now)

    @rule()
    def flush(self) -> None:
        self.shelf.clear()

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        self.shelf.evict(count)

    @rule()
    def replay(self) -> None:
        self.shelf.replay()

    @invariant()
    def all_is_accounted_for(self) -> None:
        if hasattr(self, "shelf"):
            consistent(self.shelf)


TestAnyOrder = Holding.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
