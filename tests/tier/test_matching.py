"""Dropping by pattern goes in slices, hits go on meanwhile, and nothing that was there before outlives it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.resp.globs import compile_globs
from proxy.resp.namespace import Namespace
from proxy.tier import matching
from proxy.tier.matching import SLICE, drop_keys, drop_matching
from proxy.tier.rules import Rules, key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Source
from tests.tier.shelves import TABLE, consistent, fill, make, part, read

BULK = compile_globs([b"bulk:*"])


def bulk(shelf: Shelf, count: int) -> None:
    for n in range(count):
        fill(shelf, "GET", f"bulk:{n}")


def has(shelf: Shelf, *arguments: bytes | str | int) -> bool:
    return any(part(*arguments) in table.replies for table in shelf.tables.values())


class TestSlices:
    def test_drop_so_many_at_once_and_no_more(self) -> None:
        tier, shelf, _ = make()
        fill(shelf, "GET", "hot")
        bulk(shelf, 1000)
        counts = []
        for count in drop_matching(tier, BULK, b""):
            counts.append(count)
            assert tier.entries == 1001 - sum(counts)
            assert has(shelf, "GET", "hot")
        assert max(counts) <= SLICE and sum(counts) == 1000
        assert list(shelf.table(2).replies) == [part("GET", "hot")]
        consistent(shelf)

    def test_look_at_so_many_at_once_where_nothing_matches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tier, shelf, _ = make()
        bulk(shelf, 1000)
        looked, part_keys = [0], shelf.rules.part_keys

        def counted(wanted: bytes) -> tuple[bytes, ...]:
            looked[-1] += 1
            return part_keys(wanted)

        monkeypatch.setattr(shelf.rules, "part_keys", counted)
        for count in drop_matching(tier, compile_globs([b"nothing:*"]), b""):
            assert count == 0
            looked.append(0)
        assert max(looked) <= SLICE and sum(looked) == 1000
        assert tier.entries == 1000

    def test_of_several_tables_look_at_a_part_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tier, shelf, _ = make(protocols=(3,))
        fill(shelf, "GET", "early")
        fill(shelf, "GET", "bulk:early")
        shelf.table(2)
        bulk(shelf, 300)
        fill(shelf, "GET", "late")
        looked, part_keys = [], shelf.rules.part_keys
        monkeypatch.setattr(shelf.rules, "part_keys", lambda wanted: looked.append(wanted) or part_keys(wanted))
        assert sum(drop_matching(tier, BULK, b"")) == 601
        monkeypatch.undo()
        assert len(looked) == len(set(looked)) == 303
        assert [list(shelf.table(protocol).replies) for protocol in (2, 3)] == [
            [part("GET", "late")],
            [part("GET", "early"), part("GET", "late")],
        ]
        consistent(shelf)

    def test_of_a_table_that_alone_keeps_a_part(self) -> None:
        tier, shelf, _ = make(protocols=(2,))
        fill(shelf, "GET", "bulk:1")
        shelf.table(3)
        fill(shelf, "GET", "bulk:2")
        reply = shelf.table(2).replies.pop(part("GET", "bulk:2"))
        shelf.table(3).replies[part("GET", "bulk:2")] = reply
        list(drop_matching(tier, BULK, b""))
        assert not shelf.table(3).replies and not shelf.table(2).replies

    def test_name_the_keys_of_any_read(self) -> None:
        tier, shelf, _ = make()
        fill(shelf, "EXISTS", "a", "bulk:3", reply=b":2\r\n")
        fill(shelf, "EXISTS", "a", "b", reply=b":2\r\n")
        fill(shelf, "get", "bulk:1")
        fill(shelf, "HGET", "bulk:2", "a")
        fill(shelf, "HGET", "a", "bulk:2")
        assert sum(drop_matching(tier, BULK, b"")) == 3
        assert has(shelf, "EXISTS", "a", "b") and has(shelf, "HGET", "a", "bulk:2")
        consistent(shelf)

    def test_given_up_midway_leave_what_is_there_in_order(self) -> None:
        tier, shelf, _ = make()
        bulk(shelf, 1000)
        walk = drop_matching(tier, BULK, b"")
        next(walk)
        walk.close()  # type: ignore[attr-defined]
        assert 0 < tier.entries < 1000
        consistent(shelf)

    @pytest.mark.parametrize("meanwhile", ["clear", "evict", "expire", "lost"])
    def test_go_on_whatever_else_drops(self, meanwhile: str) -> None:
        tier, shelf, clock = make()
        fill(shelf, "GET", "hot")
        bulk(shelf, 1000)
        walk = drop_matching(tier, BULK, b"")
        next(walk)
        if meanwhile == "evict":
            shelf.evict(500)
        elif meanwhile == "expire":
            clock.now += 400.0
            shelf.vouch(clock.now)
        else:
            (shelf.clear if meanwhile == "clear" else shelf.link_lost)()
        list(walk)
        assert not [each for each in shelf.table(2).replies if b"bulk" in each]
        consistent(shelf)


class TestFlights:
    def test_under_way_when_it_begins_are_not_kept(self) -> None:
        tier, shelf, _ = make()
        bulk(shelf, 1000)
        mine = shelf.open(read(tier, "GET", "bulk:new"))
        other = shelf.open(read(tier, "GET", "other"))
        assert mine is not None and other is not None
        walk = drop_matching(tier, BULK, b"")
        next(walk)
        assert mine.tainted and not other.tainted
        assert part("GET", "bulk:new") not in shelf.flights, "nobody may join it"
        for flight in (mine, other):
            shelf.land(flight, b"$3\r\nold\r\n", 100.0)
        list(walk)
        assert not has(shelf, "GET", "bulk:new") and has(shelf, "GET", "other")
        consistent(shelf)

    def test_begun_since_are_kept(self) -> None:
        tier, shelf, _ = make()
        bulk(shelf, 1000)
        walk = drop_matching(tier, BULK, b"")
        next(walk)
        fill(shelf, "GET", "bulk:new")
        flight = shelf.open(read(tier, "GET", "bulk:newer"))
        list(walk)
        assert flight is not None and not flight.tainted
        shelf.land(flight, b"$1\r\nv\r\n", 100.0)
        assert has(shelf, "GET", "bulk:new") and has(shelf, "GET", "bulk:newer")
        consistent(shelf)

    def test_of_a_shelf_whose_turn_comes_later_are_not_kept(self) -> None:
        tier, shelf, clock = make()
        other = tier.shelf("other")
        other.table(2)
        other.link_up(shelf.mode)
        other.heard = clock()
        bulk(shelf, 1000)
        flights = [other.open(read(tier, "GET", f"bulk:{n}")) for n in range(2)]
        walk = drop_matching(tier, BULK, b"")
        next(walk)
        assert flights[0] is not None and flights[1] is not None
        other.land(flights[0], b"$3\r\nold\r\n", 100.0)
        list(walk)
        other.land(flights[1], b"$3\r\nold\r\n", 100.0)
        assert not other.table(2).replies
        consistent(other)


def test_a_namespace_drops_its_own_and_what_others_see_of_it() -> None:
    tier, plain, clock = make()
    shelves = {"": plain}
    for name in ("ns", "other"):
        shelf = shelves[name] = tier.shelf(name, tier.account(Rules(TABLE, Namespace(name))))
        shelf.table(2)
        shelf.link_up(plain.mode)
        shelf.heard = clock()
        wanted = shelf.rules.read(part("GET", "bulk:1"))
        assert wanted is not None and wanted.keys == shelf.rules.part_keys(wanted.part)
        flight = shelf.open(wanted)
        assert flight is not None
        shelf.land(flight, b"$1\r\nv\r\n", 100.0)
    for key in ("ns:bulk:1", "bulk:1", "other:bulk:1"):
        fill(plain, "GET", key)
    assert sum(drop_matching(tier, compile_globs([b"ns:bulk:*"]), b"ns:")) == 2
    assert [shelf.entries for shelf in shelves.values()] == [2, 0, 1]


@pytest.mark.parametrize("namespace", [None, Namespace("ns")])
@pytest.mark.parametrize(
    "words", [("GET", "k"), ("get", "k"), ("HGET", "h", "f"), ("EXISTS", "a", "b", "a"), ("ZRANGE", "z", 0, -1, "WITHSCORES"), ("SINTERCARD", 2, "a", "b"), ("LCS", "a", "b", "IDX")]
)
def test_keys_of_a_part_are_those_of_its_read(words: tuple[str | int, ...], namespace: Namespace | None) -> None:
    rules = Rules(TABLE, namespace)
    found = rules.read(part(*words))
    assert found is not None and rules.part_keys(part(*words)) == found.keys
    assert rules.part_marks(part(*words)) == marks(found.keys)


def test_keys_of_a_part_that_is_not_kept() -> None:
    assert Rules(TABLE).part_keys(part("SET", "k", "v")) == ()


REQUESTS = [("GET", "a1"), ("GET", "a2"), ("EXISTS", "b1", "a1"), ("GET", "b1"), ("STRLEN", "b2"), ("EXISTS", "b1", "b2")]


class Walks(RuleBasedStateMachine):
    """Everything else goes on while patterns are dropped one entry at a time: what was read before a walk
    began, and matches, is gone when it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.slice, matching.SLICE = matching.SLICE, 1

    def teardown(self) -> None:
        matching.SLICE = self.slice

    @initialize(protocols=st.sampled_from([(2,), (2, 3)]))
    def start(self, protocols: tuple[int, ...]) -> None:
        self.tier, self.shelf, self.clock = make(protocols=protocols)
        self.other = self.tier.shelf("other")
        for protocol in protocols:
            self.other.table(protocol)
        self.other.link_up(self.shelf.mode)
        self.moment = 0
        self.flights: list[tuple[Shelf, object, bytes]] = []
        self.walk: object = None

    @rule(request=st.sampled_from(REQUESTS), here=st.booleans())
    def open(self, request: tuple[str, ...], here: bool) -> None:
        shelf = self.shelf if here else self.other
        flight = shelf.open(read(self.tier, *request))
        if flight is not None:
            self.flights.append((shelf, flight, b":%d\r\n" % self.moment))

    @rule(which=st.integers(0, 9))
    def land(self, which: int) -> None:
        if self.flights:
            shelf, flight, reply = self.flights.pop(which % len(self.flights))
            shelf.land(flight, reply, 100.0)  # type: ignore[arg-type]

    @rule(key=st.sampled_from(["a1", "a2", "b1"]))
    def drop(self, key: str) -> None:
        self.tier.drop(marks([key_frame(key.encode())]))

    @rule(here=st.booleans())
    def clear(self, here: bool) -> None:
        (self.shelf if here else self.other).clear()

    @rule(pattern=st.sampled_from([b"a*", b"*1"]))
    def begin(self, pattern: bytes) -> None:
        if self.walk is None:
            self.moment += 1
            self.pattern = compile_globs([pattern])
            self.walk = drop_matching(self.tier, self.pattern, b"")

    @rule()
    def step(self) -> None:
        if self.walk is not None and next(self.walk, None) is None:  # type: ignore[call-overload]
            self.walk = None
            for shelf in (self.shelf, self.other):
                for table in shelf.tables.values():
                    for request in REQUESTS:
                        reply = table.find(part(*request))
                        if reply is not None and any(self.pattern.fullmatch(key.encode()) for key in request[1:]):
                            assert int(reply[1:-2]) >= self.moment, request

    @invariant()
    def in_order(self) -> None:
        if hasattr(self, "shelf"):
            consistent(self.shelf)
            consistent(self.other)


TestWalks = Walks.TestCase
TestWalks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)


def test_keys_go_a_slice_at_a_time() -> None:
    tier, shelf, _ = make()
    names = [b"k:%d" % n for n in range(2 * SLICE + 5)]
    for name in names:
        fill(shelf, "GET", name.decode())
    assert list(drop_keys(tier, [*names, b"nosuch"], b"", Source.BUS)) == [SLICE, SLICE, 5]
    assert not shelf.entries
