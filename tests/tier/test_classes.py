"""Hits and misses by class: the sum is exact, whatever is seen of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.tier.classes import MOST, OTHER, UNNAMED, Classes, Share
from proxy.tier.table import STRIDE, Table
from tests.tier.shelves import fill, make, part


class Counted:
    """Classes whose exact numbers are set by the test."""

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.asked = 0
        self.classes = Classes(self._label, lambda: self.hits, lambda: self.misses)

    def _label(self, part: bytes) -> str:
        self.asked += 1
        return part.partition(b":")[0].decode() if b":" in part else ""


def test_what_is_all_seen_is_exact() -> None:
    counted = Counted()
    counted.hits, counted.misses = 5, 2
    counted.classes.hit([b"user:1", b"user:2", b"user:1", b"org:1", b"plain"], 1)
    counted.classes.missed([b"user:3"])
    counted.classes.missed([b"org:4"])
    counted.classes.settle()
    assert counted.classes.hits.by_class == {"user": 3, "org": 1, UNNAMED: 1}
    assert counted.classes.misses.by_class == {"user": 1, "org": 1}


def test_what_is_seen_in_part_is_shared_out() -> None:
    counted = Counted()
    counted.hits = 1000
    counted.classes.hit([b"user:1", b"user:2", b"user:1", b"org:1"], 17)
    counted.classes.settle()
    assert counted.classes.hits.by_class == {"user": 750, "org": 250}


def test_what_nobody_saw_waits_for_the_next_time() -> None:
    counted = Counted()
    counted.hits = 10
    counted.classes.settle()
    assert counted.classes.hits.by_class == {}
    counted.hits = 12
    counted.classes.hit([b"user:1"], 1)
    counted.classes.settle()
    assert counted.classes.hits.by_class == {"user": 12}


def test_no_more_classes_than_are_told_apart() -> None:
    counted = Counted()
    names = [b"c%d:1" % n for n in range(2 * MOST)]
    counted.hits = len(names)
    counted.classes.hit(names, 1)
    counted.classes.settle()
    assert counted.classes.hits.by_class[OTHER] == 2 * MOST - MOST // 2
    assert len(counted.classes.hits.by_class) == MOST // 2 + 1
    counted.hits += 1
    counted.classes.hit([b"c0:9"], 1)
    counted.classes.settle()
    assert counted.classes.hits.by_class["c0"] == 2, "who was first stays"


def test_who_comes_late_and_often_is_told_apart_as_well() -> None:
    """Keys whose first part is what tells them apart do not take all the places."""
    counted = Counted()

    def hit(names: list[bytes]) -> None:
        counted.hits += len(names)
        counted.classes.hit(names, 1)
        counted.classes.settle()

    for start in range(0, 5000, 500):
        hit([b"%d:profile" % n for n in range(start, start + 500)])
    assert len(counted.classes.hits.by_class) == MOST // 2 + 1
    hit([b"late:%d" % n for n in range(7)])
    assert counted.classes.hits.by_class["late"] == 0, "hardly ever seen"
    for _ in range(2):
        hit([b"late:%d" % n for n in range(100)] + [b"rare:%d" % n for n in range(5)])
    assert counted.classes.hits.by_class["late"] == 100 and counted.classes.hits.by_class["rare"] == 0
    for n in range(MOST):
        hit([b"more%d:1" % n] * 50)
        hit([b"more%d:1" % n])
    assert len(counted.classes.hits.by_class) == MOST + 1, "but no more than so many"
    assert counted.classes.hits.by_class.total() == counted.hits


def test_a_long_first_part_names_no_class() -> None:
    counted = Counted()
    counted.hits = 1
    counted.classes.hit([b"x" * 65 + b":1"], 1)
    counted.classes.settle()
    assert counted.classes.hits.by_class == {OTHER: 1}


def test_so_many_are_looked_at_and_no_more() -> None:
    counted = Counted()
    counted.hits = 10_000
    for _ in range(10):
        counted.classes.hit([b"%d:1" % n for n in range(1000)], 1)
    for n in range(1000):
        counted.classes.missed([b"%d:1" % n, b"%d:2" % n])
    counted.misses = 2000
    counted.classes.settle()
    assert counted.asked <= 1024 + 256
    assert counted.classes.hits.by_class.total() == 10_000
    assert counted.classes.misses.by_class.total() == 2000


def test_other_rules_give_other_classes() -> None:
    counted = Counted()
    counted.classes.of(b"user:1")
    counted.classes.of(b"user:1")
    assert counted.asked == 1
    counted.classes.forget()
    counted.classes.of(b"user:1")
    assert counted.asked == 2


@given(st.lists(st.tuples(st.integers(0, 1000), st.dictionaries(st.sampled_from("abc"), st.integers(1, 50)))))
def test_the_parts_add_up_to_the_whole(steps: list[tuple[int, dict[str, int]]]) -> None:
    total = 0
    share = Share(lambda: total)
    waiting = 0
    sampled = False
    for more, seen in steps:
        total += more
        waiting += more
        sampled = sampled or bool(seen)
        share.seen.update(seen)
        before = dict(share.by_class)
        share.settle()
        if sampled and waiting:  # what was seen while nothing had come yet counts for what comes next
            waiting, sampled = 0, False
        assert share.by_class.total() == total - waiting
        assert all(share.by_class[label] >= count for label, count in before.items()), "counters never fall"


class TestOfATier:
    hits: list[int]
    due = 0

    def answered(self, table: Table, *parts: bytes) -> None:
        """As sessions do."""
        self.hits[0] += len(parts)
        if self.hits[0] > self.due:
            self.due = self.hits[0] + table.log(list(parts))

    def test_few_hits_are_all_logged(self) -> None:
        tier, shelf, _ = make(protocols=())
        tier.eager = True
        self.hits = [0]
        tier.main.count_hits = lambda: self.hits[0]
        table = shelf.table(2)
        for n in range(30):
            fill(shelf, "GET", f"user:{n}")
        for n in range(30):
            self.answered(table, part("GET", f"user:{n}"))
        self.answered(table, part("GET", "plain"))
        tier.main.settle()
        assert tier.main.classes.hits.by_class == {"user": 30, UNNAMED: 1}

    def test_many_are_logged_in_part_until_they_are_few_again(self) -> None:
        table = Table(eager=True)
        assert table.stands_for == 1
        table.log([b"a"] * 4096)
        assert table.stands_for == 1 + STRIDE
        table.settle()
        assert table.stands_for == 1 + STRIDE
        table.log([b"a"] * 30)
        table.settle()
        assert table.stands_for == 1

    def test_misses_are_heard_of_where_they_are_judged(self) -> None:
        tier, shelf, _ = make()
        shelf.admits(part("GET", "user:1"))
        shelf.admitted([part("GET", "org:1"), part("HGET", "org:2", "f")])
        tier.main.misses += 3
        tier.main.settle()
        assert tier.main.classes.misses.by_class == {"user": 1, "org": 2}

    def test_a_piece_of_a_chunk_is_of_no_class(self) -> None:
        tier, _, _ = make()
        assert tier.main.classes.of(b"piece") == UNNAMED
