"""The refill governor: never more of a class than may be, each place passed on or given back, nobody forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.globs import compile_globs
from proxy.resp.tracking import Mode
from proxy.tier.governor import AT_ONCE, MANY, Governor
from proxy.tier.matching import drop_matching
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Source, Tier
from tests.tier.shelves import fill, make


def engaged(limit: int = 2) -> Governor:
    governor = Governor(limit)
    governor.dropped(MANY, lambda: 100.0)
    return governor


class TestWhenItGoverns:
    def test_for_half_a_minute_after_many_were_dropped(self) -> None:
        governor = Governor(2)
        governor.dropped(MANY, lambda: 100.0)
        assert (governor.until, governor.engaged) == (130.0, 1)

    def test_many_may_come_bit_by_bit(self) -> None:
        governor = Governor(2)
        for _ in range(10):
            governor.dropped(MANY // 10, lambda: 100.9)
        assert governor.until == 130.9

    def test_but_within_a_second(self) -> None:
        governor = Governor(2)
        for n in range(100):
            governor.dropped(MANY // 4, lambda n=n: 100.0 + 0.5 * n)  # type: ignore[misc]
        assert (governor.until, governor.engaged) == (0.0, 0)

    def test_though_it_lies_across_two(self) -> None:
        governor = Governor(2)
        governor.dropped(16, lambda: 100.0)
        governor.dropped(MANY - 115, lambda: 100.95)
        governor.dropped(200, lambda: 101.05)
        assert governor.engaged == 1

    def test_not_after_a_few(self) -> None:
        governor = Governor(2)
        governor.dropped(MANY - 1, lambda: 100.0)
        assert governor.until == 0.0

    def test_again_counts_once_while_it_governs(self) -> None:
        governor = engaged()
        governor.dropped(MANY, lambda: 110.0)
        assert (governor.until, governor.engaged) == (140.0, 1)
        governor.dropped(MANY, lambda: 140.0)
        assert governor.engaged == 2

    def test_never_without_a_limit(self) -> None:
        governor = Governor(0)
        governor.dropped(10 * MANY, lambda: 100.0)
        assert governor.until == 0.0


def drop_in_steps(tier: Tier, size: int, source: Source) -> None:
    """A thousand keys, so many at a time."""
    for start in range(0, MANY, size):
        tier.drop(marks([key_frame(b"k:%d" % n) for n in range(start, start + size)]), source=source)


class TestAShelf:
    def test_that_is_emptied_tells_it(self) -> None:
        tier, shelf, clock = make(refill_limit=5)
        for n in range(MANY):
            fill(shelf, "GET", f"k:{n}")
        shelf.clear()
        assert tier.governor.until == clock.now + 30.0

    def test_that_loses_its_link_tells_it(self) -> None:
        tier, shelf, _ = make(refill_limit=5)
        for n in range(MANY):
            fill(shelf, "GET", f"k:{n}")
        shelf.link_lost()
        assert tier.governor.engaged == 1

    def test_that_held_little_does_not(self) -> None:
        tier, shelf, _ = make(refill_limit=5)
        fill(shelf, "GET", "k")
        shelf.clear()
        assert tier.governor.until == 0.0


    def test_whatever_the_cause(self) -> None:
        causes: dict[str, Callable[[Tier, Shelf], object]] = {
            "a pattern": lambda tier, shelf: list(drop_matching(tier, compile_globs([b"k:*"]), b"")),
            "keys": lambda tier, shelf: tier.drop(marks([key_frame(b"k:%d" % n) for n in range(MANY)])),
            "peers": lambda tier, shelf: drop_in_steps(tier, 1, Source.BUS),
            "a command": lambda tier, shelf: drop_in_steps(tier, 1, Source.COMMAND),
            "large writes": lambda tier, shelf: drop_in_steps(tier, AT_ONCE + 4, Source.WRITE),
            "pushes": lambda tier, shelf: [shelf.invalidate([key_frame(b"k:%d" % n)]) for n in range(MANY)],
            "flush": lambda tier, shelf: tier.clear(),
        }
        for name, cause in causes.items():
            tier, shelf, clock = make(refill_limit=5)
            for n in range(MANY):
                fill(shelf, "GET", f"k:{n}")
            cause(tier, shelf)
            assert (tier.governor.engaged, tier.governor.until) == (1, clock.now + 30.0), name

    @pytest.mark.parametrize("size", [1, AT_ONCE - 1])
    def test_but_what_clients_overwrite(self, size: int) -> None:
        """That goes on all day, and each client reads again what it has written: nothing stampedes."""
        tier, shelf, _ = make(refill_limit=5)
        for n in range(2 * MANY):
            fill(shelf, "GET", f"k:{n}")
        drop_in_steps(tier, size, Source.WRITE)
        assert tier.governor.engaged == 0 and shelf.entries <= MANY

    def test_but_age_and_want_of_room(self) -> None:
        tier, shelf, clock = make(refill_limit=5)
        for n in range(MANY):
            fill(shelf, "GET", f"k:{n}")
        assert shelf.evict(MANY // 2) == MANY // 2
        clock.now += 100_000
        shelf.vouch(clock.now)
        assert shelf.entries == 0
        assert tier.governor.engaged == 0

    def test_of_what_was_lost_with_the_link_when_there_is_another(self) -> None:
        """That is when all of it is asked for again, however long it took."""
        tier, shelf, clock = make(refill_limit=5)
        for n in range(MANY):
            fill(shelf, "GET", f"k:{n}")
        shelf.link_lost()
        clock.now += 100.0
        shelf.link_up(Mode.DEFAULT)
        assert tier.governor.until == clock.now + 30.0
        clock.now += 100.0
        shelf.link_lost()
        shelf.link_up(Mode.DEFAULT)
        assert tier.governor.engaged == 2, "there was nothing to lose"


class TestTheBeginning:
    def test_is_spread(self) -> None:
        governor = Governor(2, lambda: 0.5)
        assert governor.spread(100.0) == 0.0
        governor.dropped(MANY, lambda: 100.0)
        assert governor.spread(100.0) == governor.spread(100.9) == 0.05
        assert governor.spread(101.0) == 0.0

    def test_is_the_first_of_several(self) -> None:
        governor = Governor(2, lambda: 0.5)
        governor.dropped(MANY, lambda: 100.0)
        governor.dropped(MANY, lambda: 102.0)
        assert governor.spread(102.1) == 0.0


class TestPlaces:
    def test_of_a_class_are_as_many_as_the_limit(self) -> None:
        governor = engaged(2)
        assert [governor.enter("a") for _ in range(3)] == [True, True, False]
        assert governor.enter("b")

    def test_or_as_the_rule_says(self) -> None:
        governor = engaged(2)
        assert [governor.enter("a", 1) for _ in range(2)] == [True, False]

    def test_are_passed_on_in_the_order_of_arrival(self) -> None:
        governor, begun = engaged(1), []
        governor.enter("a")
        for n in range(3):
            governor.wait("a", lambda n=n: begun.append(n) or True)
        for expected in ([0], [0, 1], [0, 1, 2]):
            governor.leave("a")
            assert begun == expected
        assert not governor.enter("a")
        governor.leave("a")
        assert governor.enter("a")

    def test_pass_by_who_needs_none_any_more(self) -> None:
        governor, begun = engaged(1), []
        governor.enter("a")
        governor.wait("a", lambda: False)
        governor.wait("a", lambda: begun.append(1) or True)
        governor.leave("a")
        assert begun == [1]

    def test_are_given_back_if_nobody_needs_them(self) -> None:
        governor = engaged(1)
        governor.enter("a")
        governor.wait("a", lambda: False)
        governor.leave("a")
        assert governor.enter("a") and governor.delayed == 1

    def test_of_turns_that_end_at_once_are_passed_on_one_after_the_other(self) -> None:
        """As when the link is down: each is answered with an error while it begins."""
        governor, begun = engaged(1), 0

        def turn() -> bool:
            nonlocal begun
            begun += 1
            governor.leave("a")
            return True

        governor.enter("a")
        for _ in range(20_000):
            governor.wait("a", turn)
        governor.leave("a")
        assert begun == 20_000 and governor.enter("a")
        assert not governor._waiting

    def test_left_during_another_classes_turn_are_passed_on_too(self) -> None:
        governor, begun = engaged(1), []
        for label in "ab":
            governor.enter(label)
        governor.wait("a", lambda: governor.leave("b") or True)  # type: ignore[func-returns-value]
        governor.wait("b", lambda: begun.append("b") or True)
        governor.leave("a")
        assert begun == ["b"]


class Run:
    """Fetches that come, wait, end and give up in any order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.governor = engaged(limit)
        self.under_way: Counter[str] = Counter()
        self.served: set[int] = set()
        self.waiting: dict[int, str] = {}
        self.gone: set[int] = set()
        self.nested: dict[int, Callable[[], None]] = {}

    def arrive(self, number: int, label: str, kind: int) -> None:
        """`kind`: 0 a fetch; 1 ends at once; 2 finds its answer in memory if it had to wait; 3 leaves."""
        if self.governor.enter(label):
            self.begin(number, label, kind)
            return
        self.waiting[number] = label
        self.governor.wait(label, lambda: self.turn(number, label, kind))

    def turn(self, number: int, label: str, kind: int) -> bool:
        assert number in self.waiting, "called twice"
        del self.waiting[number]
        if kind >= 2:
            self.gone.add(number)
            return False
        # The place has been somebody else's till now.
        self.begin(number, label, kind)
        return True

    def begin(self, number: int, label: str, kind: int) -> None:
        self.under_way[label] += 1
        assert self.under_way[label] <= self.limit
        self.served.add(number)
        if kind == 1:
            self.end(label)

    def end(self, label: str) -> None:
        if self.under_way[label]:
            self.under_way[label] -= 1
            self.governor.leave(label)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.one_of(st.tuples(st.just("arrive"), st.sampled_from("ab"), st.integers(0, 3)), st.tuples(st.just("end"), st.sampled_from("ab"), st.just(0)))),
)
def test_places_never_leak_and_nobody_is_forgotten(limit: int, steps: list[tuple[str, str, int]]) -> None:
    run = Run(limit)
    for number, (what, label, kind) in enumerate(steps):
        if what == "arrive":
            run.arrive(number, label, kind)
        else:
            run.end(label)
        assert all(run.under_way[waits] == limit for waits in run.waiting.values()), "somebody waits for nothing"
        assert {name: n for name, n in run.under_way.items() if n} == run.governor._under_way
    for label in "ab":
        while run.under_way[label]:
            run.end(label)
    assert not run.waiting and not run.governor._waiting and not run.governor._under_way
    arrived = {number for number, step in enumerate(steps) if step[0] == "arrive"}
    assert run.served | run.gone == arrived
