"""The curve tells what exact memories of its sizes would have answered, from what a shelf sees of its reads."""

from __future__ import annotations

import random
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import accumulate

import pytest

from proxy.tier import door, reuse, sampling
from proxy.tier.curve import Curve, Watched, curve, finish, steps
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import _size
from tests.tier.shelves import make, part, read

KIB = 1 << 10
KEYS, READS = 8000, 60_000
SIZES = (256 * KIB, 1024 * KIB, 4096 * KIB, 16384 * KIB)

Stream = Callable[[float], list[int]]


def zipf(exponent: float, n: int = READS) -> list[int]:
    rng = random.Random(1)
    keys = rng.sample(range(KEYS), KEYS)
    return rng.choices(keys, cum_weights=list(accumulate((n + 1) ** -exponent for n in range(KEYS))), k=n)


def with_scans(exponent: float) -> list[int]:
    """Now and then, keys that are read once only."""
    once, stream = iter(range(KEYS, KEYS + READS)), []
    for n, key in enumerate(zipf(exponent, READS * 4 // 5)):
        stream.append(key)
        if n % 1600 == 0:
            stream += [next(once) for _ in range(400)]
    return stream


def in_bursts(exponent: float) -> list[int]:
    """Each key is read four times in quick succession: what a sample of the hits would not show."""
    rng = random.Random(2)
    reads = [(n + rng.random() * 200, key) for n, key in enumerate(zipf(exponent, READS // 4)) for _ in range(4)]
    return [key for _, key in sorted(reads)]


def in_loops(exponent: float) -> list[int]:
    """One in ten reads is of a loop over twice as many keys as are read otherwise."""
    rng, loop = random.Random(3), 0
    stream = zipf(exponent)
    for n in range(READS):
        if rng.random() < 0.1:
            loop = (loop + 1) % (READS // 20)
            stream[n] = KEYS + loop
    return stream


def sizes() -> list[int]:
    rng = random.Random(7)
    return [int(100 * 30 ** rng.random()) for _ in range(KEYS)]


def exact(stream: list[int], size_of: Callable[[int], int], budget: int, written: Mapping[int, int] = {}) -> float:
    """The hit rate of a memory that evicts what was read least recently, once it is warm."""
    kept: OrderedDict[int, int] = OrderedDict()
    used = hits = 0
    cold = len(stream) // 2
    for n, key in enumerate(stream):
        if key in kept:
            hits += n >= cold
            kept.move_to_end(key)
        else:
            kept[key] = size_of(key)
            used += kept[key]
            while used > budget:
                used -= kept.popitem(last=False)[1]
        if n in written:
            used -= kept.pop(written[n], 0)
    return hits / (len(stream) - cold)


class Reader:
    """A shelf whose clients read one by one, as `client.reading` does."""

    def __init__(self, max_memory: int, admit_after: int = 1, per_second: int = 50) -> None:
        self.tier, self.shelf, self.clock = make(max_memory=max_memory, l1_ttl=1e9, admit_after=admit_after)
        self.shelf.vouch(self.clock.now)
        self.hits = self._log_at = self.reads = 0
        self._per_second = per_second
        self.shelf.account.count_hits = lambda: self.hits
        body = sizes()
        self.replies = [b"$%d\r\n%b\r\n" % (size, b"x" * size) for size in body]
        self._table = self.shelf.table(2)

    def size_of(self, key: int) -> int:
        return _size(part("GET", key), self.replies[key % KEYS])

    def read(self, key: int) -> None:
        shelf = self.shelf
        self.reads += 1
        self.clock.now += 1 / self._per_second
        if self.reads % self._per_second == 0:
            shelf.account.settle()
        wanted, table = part("GET", key), self._table
        if table.find(wanted) is None:
            shelf.reuse.release([wanted])
        if table.find(wanted) is not None:
            self.hits += 1
            if self.hits > self._log_at:
                self._log_at = self.hits + table.log([wanted])
            return
        shelf.account.misses += 1
        if shelf.admits(wanted):
            flight = shelf.open(read(self.tier, "GET", key))
            assert flight is not None
            shelf.land(flight, self.replies[key % KEYS], float("inf"))

    def curve(self) -> Curve:
        return curve([watched for _, watched in self.shelf.reuse.watched()])


@pytest.fixture(autouse=True)
def _dice(monkeypatch: pytest.MonkeyPatch) -> None:
    roll(monkeypatch, 1)


def roll(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Have chance be what this seed makes it: draws, and the places that hashes have, which differ from process to
    process."""

    def seeded(part: bytes) -> int:
        return zlib.crc32(part, seed) << 32 | zlib.crc32(part, ~seed & 0xFFFFFFFF)

    monkeypatch.setattr(door, "hash", seeded, raising=False)
    for module in (reuse, sampling):
        monkeypatch.setattr(module, "randrange", random.Random(seed).randrange)


def errors(found: Curve, true: list[float]) -> list[float]:
    return [abs(found.estimate(size).rate - rate) for size, rate in zip(SIZES, true, strict=True)]


@pytest.mark.parametrize(("exponent", "per_second"), [(0.7, 50), (0.9, 50), (1.1, 50), (0.9, 20_000)])
@pytest.mark.parametrize("stream", [zipf, with_scans, in_bursts, in_loops])
def test_it_is_near_that_of_exact_memories(stream: Stream, exponent: float, per_second: int) -> None:
    reads = stream(exponent)
    reader = Reader(SIZES[1], per_second=per_second)
    for key in reads[: READS // 2]:
        reader.read(key)
    cold = reader.hits
    for key in reads[READS // 2 :]:
        reader.read(key)
    found = reader.curve()
    off = errors(found, [exact(reads, reader.size_of, size) for size in SIZES])
    assert sum(off) / len(SIZES) <= 0.02
    # The last one holds everything, but has not seen all of it yet.
    assert all(error <= 1.5 * found.estimate(size).plus_minus for error, size in zip(off[:3], SIZES[:3], strict=True)), "and says how near"
    assert found.at(SIZES[1]) == pytest.approx((reader.hits - cold) / (len(reads) - READS // 2), abs=0.03), "and of this one"
    assert found.effective > 1000


@pytest.mark.parametrize("per_second", [50, 20_000])
def test_it_is_right_on_average_and_as_far_off_as_it_says(per_second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the dice: with loops, writes, sizes that differ, and evictions by the tier's own rules."""
    rng, reads = random.Random(4), in_loops(0.9)
    written = {n: key for n, key in enumerate(zipf(0.9)) if rng.random() < 0.01}
    true = exact(reads, Reader(SIZES[1]).size_of, SIZES[1], written)
    signed, within = [], 0
    for seed in range(1, 7):
        roll(monkeypatch, seed)
        reader = Reader(SIZES[1], admit_after=2, per_second=per_second)
        for n, key in enumerate(reads):
            reader.read(key)
            if n in written:
                reader.tier.drop(marks([key_frame(b"%d" % written[n])]))
        estimate = reader.curve().estimate(SIZES[1])
        signed.append(estimate.rate - true)
        within += abs(signed[-1]) <= estimate.plus_minus
    assert within >= 5
    assert abs(sum(signed) / len(signed)) <= 0.01


def watched(age: float, again: bool = True, ended: bool = True, weight: float = 1.0, size: float = 10.0) -> Watched:
    return Watched(age, ended, again, weight, size)


class TestByHand:
    def test_two_keys_in_turn(self) -> None:
        """Each is read again after one other: memory for two answers all of it, for one nothing."""
        found = curve([watched(2, weight=0.5), watched(2, weight=0.5)])
        assert (found.at(10), found.at(20), found.at(21), found.most) == (0.0, 0.0, 1.0, 1.0)
        assert found.enough(1.0) == 20

    def test_what_changes_takes_room_and_is_no_hit(self) -> None:
        found = curve([watched(1, weight=0.5), watched(3, again=False, weight=0.5)])
        assert found.most == 0.5
        assert found.enough(0.5) == 10, "both take room for one read"

    def test_what_is_not_kept_counts_among_the_reads(self) -> None:
        assert curve([watched(1), watched(5, size=0.0)]).most == 0.5

    def test_what_is_still_watched_counts_as_long_as_it_was(self) -> None:
        """Of four, one was read again at once, and two are known for no longer: of those who are, half were."""
        found = curve([watched(1), watched(2, again=False, ended=False), watched(2, again=False, ended=False), watched(3), watched(3, again=False)])
        assert found.most == pytest.approx(1 / 5 + 4 / 5 / 2)

    def test_how_long_it_stays(self) -> None:
        found = curve([watched(2), watched(8)])
        assert found.age(1) == 2 and found.age(1e9) is None

    def test_it_is_made_in_steps(self) -> None:
        found = [watched(n, n % 3 == 0) for n in range(5000)]
        assert len(list(steps(found))) >= 5 and finish(steps(found)) == curve(found)

    def test_few_that_weigh_most_are_few(self) -> None:
        assert curve([watched(1)] * 100).effective == pytest.approx(100)
        assert curve([watched(1, weight=1000.0)] * 10 + [watched(1)] * 990).effective == pytest.approx(12.1, abs=0.1)

    def test_it_says_how_far_off_it_may_be(self) -> None:
        """What 95 % of all samples of a coin say, and of samples that are all alike, about nothing."""
        found = curve([watched(1, n % 2 == 0) for n in range(1000)]).estimate(1e6)
        assert found.rate == pytest.approx(0.5) and found.plus_minus == pytest.approx(1.96 * (0.25 / 1000) ** 0.5, rel=0.02)
        assert 0 < curve([watched(1)] * 1000).estimate(1e6).plus_minus < 0.005

    def test_where_it_is_steep_it_says_so(self) -> None:
        """A loop: that much memory answers all of it, a little less nothing; and how much is not known exactly."""
        rng = random.Random(6)
        found = curve([watched(1000, size=rng.choice([10.0, 30.0])) for _ in range(1000)])
        edge = found.sizes[0]
        assert (found.estimate(edge * 0.9).rate, found.estimate(edge * 1.1).rate) == (0.0, pytest.approx(1.0))
        assert 0.3 < found.estimate(edge * 1.001).rate < 0.7 and found.estimate(edge * 1.001).plus_minus > 0.4

    def test_where_one_takes_nearly_all_the_room_no_size_is_less_than_nothing(self) -> None:
        """One of a thousand was not read again for ages, as nobody read here: the error is as large as the size."""
        found = curve([watched(20, weight=1e-3, size=250)] * 1000 + [watched(300_000, ended=False, weight=1e-3, size=250)])
        assert max(found.errors) > 0.9
        for size in (1e5, 1e6, 1e9):
            estimate = found.estimate(size)
            assert estimate.rate == pytest.approx(found.most) and estimate.plus_minus < 0.01

    def test_one_that_weighs_next_to_nothing_and_alone_is_kept_tells_nothing(self) -> None:
        found = curve([watched(20, weight=1.0, size=0)] * 1000 + [watched(300_000, weight=1e-9, size=250)])
        assert max(found.errors) > 1000
        assert 0 <= found.estimate(1e6).rate <= 1 and found.estimate(1e6).plus_minus < 0.01

    def test_nothing_has_been_read_meanwhile(self) -> None:
        found = curve([watched(0)] * 10)
        assert (found.most, found.estimate(1).rate) == (pytest.approx(1.0), pytest.approx(1.0))

    def test_nothing_weighs_anything(self) -> None:
        found = curve([watched(1, weight=0.0)] * 10)
        assert (found.most, found.effective, found.estimate(1)) == (0.0, 0.0, (0.0, 0.0))

    def test_nothing_is_known(self) -> None:
        for found in (curve([]), curve([watched(1, size=0.0)])):
            assert (found.at(1 << 30), found.most, found.enough(0.5), found.age(1)) == (0.0, 0.0, 0.0, None)

    def test_it_never_falls(self) -> None:
        rng = random.Random(3)
        found = curve([watched(rng.random(), rng.random() < 0.5, rng.random() < 0.8, rng.random(), rng.choice([0.0, 5.0, 50.0])) for _ in range(500)])
        assert list(found.rates) == sorted(found.rates) and list(found.sizes) == sorted(found.sizes)
        assert found.rates[0] >= 0 and found.most <= 1.0 + 1e-9


def test_what_changes_and_is_read_in_bursts_is_no_exception() -> None:
    """Keys that are read most are written most: an invalidation ends what is kept, in any memory."""
    rng, reader = random.Random(5), Reader(SIZES[1])
    kept: dict[int, None] = {}
    hits = 0
    reads = zipf(0.9)
    for n, key in enumerate(reads):
        reader.read(key)
        if key in kept and n >= READS // 2:
            hits += 1
        kept[key] = None
        if rng.random() < 0.2:
            reader.shelf.invalidate([key_frame(b"%d" % key)])
            kept.pop(key, None)
    assert reader.curve().most == pytest.approx(hits / (READS // 2), abs=0.03)
