"""A ghost tells what real caches of its sizes would have saved, and tracks no more than it may."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.tier.ghost import Ghost

KIB = 1 << 10
SIZES = (64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB)
READS, KEYS = 200_000, 50_000

Step = tuple[str, int]


class Cache:
    """An exact cache: the least recently used go when it is over its budget."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sizes: OrderedDict[bytes, int] = OrderedDict()
        self.used = self.hits = 0

    def read(self, part: bytes, size: int) -> None:
        if part in self.sizes:
            self.hits += 1
            self.sizes.move_to_end(part)
        else:
            self.keep(part, size)

    def keep(self, part: bytes, size: int) -> None:
        self.forget(part)
        self.sizes[part] = size
        self.used += size
        while self.used > self.budget:
            self.used -= self.sizes.popitem(last=False)[1]

    def forget(self, part: bytes) -> None:
        self.used -= self.sizes.pop(part, 0)

    def clear(self) -> None:
        self.sizes.clear()
        self.used = 0


class Watched:
    """A ghost, the caches it imagines, and the parts its owner believes to be tracked."""

    def __init__(self, ghost: Ghost) -> None:
        self.ghost = ghost
        self.caches = [Cache(size) for size in ghost.sizes]
        self.tracked: set[bytes] = set()
        self.reads = 0

    def read(self, part: bytes, size: int) -> None:
        self.reads += 1
        for cache in self.caches:
            cache.read(part, size)
        if not self.ghost.wants(part):
            self.ghost.passed(1)
        elif self.ghost.read(part):
            assert part in self.tracked
        else:
            assert part not in self.tracked
            self.keep(part, size)

    def keep(self, part: bytes, size: int) -> None:
        self.tracked.add(part)
        gone = self.ghost.keep(part, size)
        assert len(set(gone)) == len(gone) and self.tracked.issuperset(gone)
        self.tracked.difference_update(gone)

    def forget(self, part: bytes) -> None:
        for cache in self.caches:
            cache.forget(part)
        assert self.ghost.forget(part) == (part in self.tracked)
        self.tracked.discard(part)

    def error(self) -> float:
        """The mean, over the sizes, of how far the hit rate is off."""
        rates = [rate for _, rate, _ in self.ghost.report()]
        return sum(abs(rate - cache.hits / self.reads) for rate, cache in zip(rates, self.caches, strict=True)) / len(rates)


def hasher(seed: int) -> Callable[[bytes], int]:
    return lambda part: crc32(part, seed) * 0x9E3779B97F4A7C15 >> 13


def name(key: int) -> bytes:
    return b"2\r\n$3\r\nGET\r\n$%d\r\n%d\r\n" % (len(str(key)), key)


def zipf(seed: int, exponent: float) -> list[int]:
    rng = random.Random(seed)
    keys = rng.sample(range(KEYS), KEYS)
    return rng.choices(keys, cum_weights=list(accumulate((n + 1) ** -exponent for n in range(KEYS))), k=READS)


def steady(seed: int, exponent: float) -> Iterator[Step]:
    yield from (("read", key) for key in zipf(seed, exponent))


def with_scans(seed: int, exponent: float) -> Iterator[Step]:
    """Now and then, keys that are read once only."""
    once = iter(range(KEYS, KEYS + READS))
    for n, key in enumerate(zipf(seed, exponent)):
        yield "read", key
        if n % 20_000 == 0:
            yield from (("read", next(once)) for _ in range(5000))


def with_writes(seed: int, exponent: float) -> Iterator[Step]:
    """What is read more is written more, too."""
    rng = random.Random(seed)
    keys = zipf(seed, exponent)
    for key in keys:
        yield "read", key
        if rng.random() < 0.1:
            yield "forget", rng.choice(keys)


def play(ghost: Ghost, steps: Iterator[Step]) -> Watched:
    watched, rng = Watched(ghost), random.Random(7)
    sizes = [int(50 * 100 ** rng.random()) for _ in range(KEYS)]
    for step, key in steps:
        if step == "read":
            watched.read(name(key), sizes[key % KEYS])
        else:
            watched.forget(name(key))
    return watched


@pytest.mark.parametrize("exponent", [0.7, 0.9, 1.1])
@pytest.mark.parametrize("stream", [steady, with_scans, with_writes])
def test_the_hit_rate_of_a_sample_is_near_the_true_one(stream: Callable[[int, float], Iterator[Step]], exponent: float) -> None:
    watched = play(Ghost(SIZES, most=2048, hash=hasher(1)), stream(1, exponent))
    assert watched.ghost.rate < 0.6
    assert watched.error() <= 0.02


@pytest.mark.parametrize("sampled", [True, False])
def test_one_part_that_is_read_and_written_most_does_not_sway_it(sampled: bool) -> None:
    [(most_read, _)] = Counter(zipf(1, 1.1)).most_common(1)
    others, hashed = hasher(1), 0 if sampled else -1
    ghost = Ghost(SIZES, 1024, lambda part: hashed if part == name(most_read) else others(part))
    watched = play(ghost, with_writes(1, 1.1))
    assert ghost.rate < 0.3 and ghost.wants(name(most_read)) == sampled
    assert watched.error() <= 0.02


def test_it_is_exact_while_all_parts_are_in_the_sample() -> None:
    watched = play(Ghost(SIZES, most=KEYS + 1, hash=hasher(1)), islice(with_writes(1, 0.9), 50_000))
    assert watched.ghost.rate == 1
    assert [saved for _, _, saved in watched.ghost.report()] == [cache.hits for cache in watched.caches]
    assert watched.error() < 1e-9


def test_before_any_read_it_saves_nothing() -> None:
    ghost = Ghost()
    assert ghost.report() == [(n << 20, 0.0, 0) for n in (16, 32, 64, 128)]
    ghost.passed(3)
    assert ghost.report()[0] == (16 << 20, 0.0, 0)


def test_sizes_are_told_in_order_and_once() -> None:
    assert [size for size, _, _ in Ghost((300, 100, 300, 200)).report()] == [100, 200, 300]


def test_a_hit_counts_in_each_cache_that_holds_it() -> None:
    ghost = Ghost((100, 200))
    for part in (b"a", b"b"):
        assert not ghost.read(part)
        assert ghost.keep(part, 100) == []
    assert ghost.read(b"a")
    assert ghost.read(b"a")
    assert ghost.report() == [(100, 0.25, 1), (200, 0.5, 2)]


def test_what_is_gone_is_told() -> None:
    ghost = Ghost((100, 200))
    assert ghost.keep(b"a", 100) + ghost.keep(b"b", 100) == []
    assert ghost.keep(b"c", 50) == [b"a"]
    assert ghost.keep(b"huge", 201) == [b"b", b"c", b"huge"], "as it would empty a real one"
    assert len(ghost) == 0


def test_kept_again_it_has_its_new_size() -> None:
    ghost = Ghost((100, 200))
    ghost.keep(b"a", 100)
    assert ghost.keep(b"a", 200) == []
    assert ghost.keep(b"b", 1) == [b"a"]


def test_fetched_while_the_sample_shrank_it_is_not_tracked() -> None:
    ghost = Ghost(most=4, hash=int)
    assert not ghost.read(b"16000000")
    for part in (b"1", b"2", b"3", b"16500000"):
        ghost.keep(part, 1)
    assert ghost.keep(b"4", 1) == [b"16500000"]
    assert ghost.keep(b"16000000", 1) == [b"16000000"]
    assert len(ghost) == 4


def test_a_hash_that_sets_nothing_apart_ends_the_tracking() -> None:
    ghost = Ghost(most=4, hash=lambda part: 0)
    gone = [part for n in range(5) for part in ghost.keep(b"%d" % n, 1)]
    assert sorted(gone) == [b"0", b"1", b"2", b"3", b"4"]
    assert not ghost.wants(b"0") and len(ghost) == 0


def test_clear_drops_the_parts_and_not_what_was_counted() -> None:
    ghost = Ghost((100,))
    ghost.keep(b"a", 1)
    ghost.read(b"a")
    ghost.clear()
    assert len(ghost) == 0 and ghost._used == [0]
    assert not ghost.forget(b"a") and not ghost.read(b"a")
    assert ghost.report() == [(100, 0.5, 1)]


def test_no_estimate_is_below_nothing() -> None:
    ghost = Ghost((100,), most=1, hash=int)
    ghost.keep(b"1", 1)
    assert ghost.keep(b"4000000", 1) == [b"4000000"]
    assert ghost.read(b"1")
    for _ in range(10):
        assert not ghost.read(b"2")
    assert ghost.report() == [(100, 0.0, 0)], "the sample is too small to tell"


def test_no_memory_helps_what_has_changed_until_it_is_kept_again() -> None:
    ghost = Ghost((100, 200))
    ghost.keep(b"a", 100)
    ghost.forget(b"a")
    assert not ghost.read(b"a") and not ghost.read(b"a")
    assert ghost._changed == 2
    ghost.keep(b"a", 100)
    ghost.keep(b"b", 100)
    ghost.forget(b"a")
    assert not ghost.read(b"a"), "a larger memory would have helped that"
    ghost.forget(b"b")
    ghost.clear()
    assert not ghost.read(b"b"), "what was cleared at once is not what is read most"
    assert ghost._changed == 2


PARTS = st.integers(0, 12).map(lambda n: b"%d" % n)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), PARTS, st.integers(1, 60)),
        st.tuples(st.just("keep"), PARTS, st.integers(1, 60)),
        st.tuples(st.just("forget"), PARTS, st.just(0)),
        st.tuples(st.just("clear"), st.just(b""), st.just(0)),
    ),
    max_size=80,
)


def follow(watched: Watched, steps: list[tuple[str, bytes, int]]) -> Iterator[None]:
    """Take the steps, one at a time. What is read has the size it had, unless it was forgotten."""
    sizes: dict[bytes, int] = {}
    for step, part, size in steps:
        if step == "clear":
            sizes.clear()
            watched.ghost.clear()
            watched.tracked.clear()
            for cache in watched.caches:
                cache.clear()
        elif step == "forget":
            sizes.pop(part, None)
            watched.forget(part)
        elif step == "read":
            watched.read(part, sizes.setdefault(part, size))
        else:
            sizes[part] = size
            watched.keep(part, size)
            for cache in watched.caches:
                cache.keep(part, size)
        yield


@given(STEPS)
def test_without_sampling_it_is_each_of_the_caches(steps: list[tuple[str, bytes, int]]) -> None:
    watched = Watched(Ghost((50, 100, 200)))
    for _ in follow(watched, steps):
        held: list[bytes] = []
        for row, used, cache in zip(watched.ghost._rows, watched.ghost._used, watched.caches, strict=True):
            held = [*row, *held]
            assert held == list(cache.sizes)
            assert used == cache.used
        assert set(held) == watched.tracked
        assert [saved for _, _, saved in watched.ghost.report()] == [cache.hits for cache in watched.caches]


@given(STEPS, st.integers(0, 9), st.integers(0, 99))
@settings(max_examples=200)
def test_whatever_comes(steps: list[tuple[str, bytes, int]], most: int, seed: int) -> None:
    watched = Watched(Ghost((50, 100, 200), most, hasher(seed)))
    ghost = watched.ghost
    for _ in follow(watched, steps):
        held = [part for row in ghost._rows for part in row]
        assert len(held) == len(set(held)) == len(ghost) <= most
        assert set(held) == watched.tracked
        assert all(ghost.wants(part) for part in held)
        assert ghost._used == list(accumulate(sum(row.values()) for row in ghost._rows))
        assert all(used <= size * ghost.rate for used, size in zip(ghost._used, ghost.sizes, strict=True))
        rates = [rate for _, rate, _ in ghost.report()]
        assert rates == sorted(rates) and rates[0] >= 0 and rates[-1] <= 1
        assert [saved for _, _, saved in ghost.report()] == [round(rate * watched.reads) for rate in rates]


def test_what_it_remembers_of_the_forgotten_is_bounded() -> None:
    ghost = Ghost()
    for n in range(5000):
        ghost.keep(b"%d" % n, 1)
        assert ghost.forget(b"%d" % n)
    assert len(ghost) == 0 and not any(ghost._used)
    assert len(ghost._stale) == 1024
