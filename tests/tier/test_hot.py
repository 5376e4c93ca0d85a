"""The parts that are hit most are known, with a bounded error, in bounded memory, in a window that fades."""

from __future__ import annotations

import random
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tier.hot import Hot
from proxy.tier.rules import key_frame
from tests.tier.shelves import fill, make, part

KEYS, HITS = 50_000, 200_000


def zipf(seed: int, exponent: float) -> list[bytes]:
    cumulated = list(accumulate((n + 1) ** -exponent for n in range(KEYS)))
    parts = [b"%d" % n for n in range(KEYS)]
    return random.Random(seed).choices(parts, cum_weights=cumulated, k=HITS)


@pytest.mark.parametrize("exponent", [0.9, 1.1, 1.3])
@pytest.mark.parametrize("most", [1000, 10_000])
def test_finds_what_is_hit_most(most: int, exponent: float) -> None:
    hits, hot = zipf(1, exponent), Hot(most)
    for start in range(0, HITS, 2000):
        hot.add(hits[start : start + 2000], 17)
    true = Counter(hits)
    found = dict(hot.hottest(100))
    assert len(found) == 100
    assert len(found.keys() & dict(true.most_common(100))) >= 95
    assert all(count <= true[part] * 17 <= count + hot.error for part, count in found.items())


def test_the_hottest_come_in_order() -> None:
    hot = Hot()
    hot.add([b"a", b"b", b"c", b"b", b"c", b"c"], 16)
    assert hot.hottest(2) == [(b"c", 48), (b"b", 32)]
    assert hot.hottest(9) == [(b"c", 48), (b"b", 32), (b"a", 16)]
    assert (hot.count(b"a"), hot.count(b"d"), len(hot), hot.error) == (16, 0, 3, 0)


def test_a_prune_takes_the_next_largest_count_off_all() -> None:
    hot = Hot(2)
    hot.add([b"a"] * 5 + [b"b"] * 3 + [b"c"] * 2 + [b"d"], 1)
    assert len(hot) == 4 and hot.error == 0
    hot.add([b"e"], 1)
    assert hot.hottest(9) == [(b"a", 3), (b"b", 1)]
    assert hot.error == 2


def test_what_is_new_can_become_hot() -> None:
    hot = Hot(100)
    hot.add(zipf(1, 0.9), 1)
    for _ in range(10):
        hot.age()
        hot.add([b"new"] * 200, 1)
    assert hot.hottest(1)[0][0] == b"new"


def test_the_window_fades() -> None:
    hot = Hot()
    hot.add([b"a"] * 4 + [b"b"], 1)
    hot.age()
    assert hot.hottest(9) == [(b"a", 2)]
    hot.add([b"a"], 1)
    hot.age(0.9)
    assert hot.count(b"a") == 2, "2.7, and a count never says too much"
    for _ in range(2):
        hot.age()
    assert len(hot) == 0


def test_the_error_knows_of_what_faded_away() -> None:
    hot = Hot()
    for _ in range(10):
        hot.add([b"a"], 1)
        hot.age(0.75)
    true = sum(0.75**n for n in range(1, 11))
    assert len(hot) == 0 and true <= hot.error <= 4


def test_less_than_a_hit_is_not_told() -> None:
    hot = Hot(1)
    hot.add([b"a"] * 3, 1)
    hot.age()
    hot.add([b"b", b"c"], 1)
    assert len(hot) == 1, "half a hit is left"
    assert hot.hottest(9) == []


def test_forget_and_clear() -> None:
    hot = Hot(1)
    hot.add([b"a", b"a", b"b", b"c", b"a"], 1)
    hot.forget(b"a")
    hot.forget(b"unknown")
    assert hot.count(b"a") == 0 and hot.hottest(9) == []
    assert hot.error == 1
    hot.clear()
    assert len(hot) == 0 and hot.error == 0


class TestFedByATable:
    """By the log of what a table has answered, when that is replayed."""

    @pytest.mark.parametrize("depth", [1, 5, 64])
    def test_it_hears_of_about_as_many_hits_as_there_were(self, depth: int) -> None:
        _, shelf, _ = make()
        table, hot = shelf.table(2), Hot()
        table.hot = hot
        fill(shelf, "GET", "a")
        hits = due = 0
        while hits < 200_000:
            hits += depth
            if hits > due:  # as sessions do
                due = hits + table.log([part("GET", "a")] * depth)
        table.replay()
        assert hot.count(part("GET", "a")) == pytest.approx(hits, rel=0.01)

    def test_a_hit_stands_for_fewer_while_more_are_logged(self) -> None:
        _, shelf, _ = make()
        table, hot = shelf.table(2), Hot()
        table.hot = hot
        fill(shelf, "GET", "a")
        table.log([part("GET", "a")])
        table.replay(1)
        assert hot.count(part("GET", "a")) == 17
        for _ in range(2):
            table.log([part("GET", "a")])
            table.replay()
        assert hot.count(part("GET", "a")) == 17 + 2 + 2

    def test_hits_count_although_what_was_hit_is_gone(self) -> None:
        _, shelf, _ = make()
        table, hot = shelf.table(2), Hot()
        table.hot = hot
        fill(shelf, "GET", "a")
        table.log([part("GET", "a")])
        shelf.clear()
        table.log([part("GET", "b")])
        shelf.invalidate([key_frame(b"b")])
        table.replay()
        assert hot.count(part("GET", "b")) == 17

    def test_nobody_need_listen(self) -> None:
        _, shelf, _ = make()
        table = shelf.table(2)
        table.hot = None
        for n in range(3):
            fill(shelf, "GET", n)
        table.log([part("GET", 0)])
        table.replay()
        assert list(table.replies) == [part("GET", n) for n in (1, 2, 0)]


ADDED = st.tuples(st.lists(st.integers(0, 20).map(lambda n: b"%d" % n), max_size=30), st.integers(1, 20))
AGED = st.sampled_from([0.25, 0.5, 0.75])


@given(st.integers(1, 8), st.lists(st.one_of(ADDED, AGED), max_size=30))
def test_the_bound_holds(most: int, steps: list[tuple[list[bytes], int] | float]) -> None:
    hot, true, bound = Hot(most), Counter[bytes](), 0.0
    total: float = 0
    for step in steps:
        if isinstance(step, float):
            hot.age(step)
            true = Counter({hit: count * step for hit, count in true.items()})
            total *= step
            bound = bound * step + 1
        else:
            parts, weight = step
            hot.add(parts, weight)
            for added in parts:
                true[added] += weight
            total += len(parts) * weight
        assert len(hot) <= 2 * most
        assert hot.total == pytest.approx(total)
        assert hot.error <= total / (most + 1) + bound + 1e-6
        for hit, count in true.items():
            assert hot.count(hit) <= count + 1e-6
            assert count < hot.count(hit) + 1 + hot.error + 1e-6
        assert hot.hottest(5) == sorted(hot.hottest(99), key=lambda found: -found[1])[:5]
        assert all(count >= 1 for _, count in hot.hottest(99))


@given(st.lists(ADDED, max_size=10))
def test_with_few_parts_it_is_exact(steps: list[tuple[list[bytes], int]]) -> None:
    hot, true = Hot(11), Counter[bytes]()
    for parts, weight in steps:
        hot.add(parts, weight)
        for added in parts:
            true[added] += weight
    assert dict(hot.hottest(99)) == true
