"""Entries beyond their time: back in the table while they are fetched anew, in place of an error, or the last."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.resp import encode
from proxy.resp.globs import compile_globs
from proxy.resp.tracking import Mode
from proxy.tier import matching
from proxy.tier.flights import Flight
from proxy.tier.matching import drop_matching
from proxy.tier.policy import CacheRule
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Tier
from tests.tier.shelves import Clock, consistent, fill, make, obey, part, read
from tests.tier.test_shelf import INVALIDATE, push

OLD, NEW = b"$3\r\nold\r\n", b"$3\r\nnew\r\n"
BUSY = b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n"
K = part("GET", "k")
every_mode = pytest.mark.parametrize("mode", [Mode.OPTIN, Mode.DEFAULT, Mode.BCAST, Mode.BUS])


def tended(mode: Mode = Mode.OPTIN, protocols: tuple[int, ...] = (2,), lifetime: float = float("inf"), reply: bytes = OLD, **fields: float) -> tuple[Tier, Shelf, Clock]:
    """A shelf with GET k, fresh for ten seconds unless told otherwise."""
    tier, shelf, clock = make(mode=mode, protocols=protocols, l1_ttl_untracked=1e9)
    obey(tier, CacheRule((b"*",), **{"l1_ttl": 10.0, "jitter": 0.0, **fields}))  # type: ignore[arg-type]
    fill(shelf, "GET", "k", reply=reply, lifetime=lifetime)
    return tier, shelf, clock


def later(shelf: Shelf, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    shelf.vouch(clock.now)
    consistent(shelf)


def served(shelf: Shelf, clock: Clock, found: bytes = K, protocol: int = 2) -> bytes | None:
    """What a client gets that asks now; what is aside comes back for it."""
    if not shelf.vouch(clock.now):
        return None
    reply = shelf.table(protocol).find(found)
    if reply is None and shelf.tending.aside:
        shelf.tending.revive([found], clock.now)
        reply = shelf.table(protocol).find(found)
    consistent(shelf)
    return reply


def refetch(shelf: Shelf) -> Flight:
    flight = shelf.open(read(shelf.tier, "GET", "k"))
    assert flight is not None
    return flight


class TestWhileItIsFetchedAnew:
    @every_mode
    def test_it_serves_for_as_long_as_its_rule_says(self, mode: Mode) -> None:
        _, shelf, clock = tended(mode, stale_while_revalidate=30.0)
        later(shelf, clock, 10.0)
        assert K in shelf.tending.aside and not shelf.table(2).replies
        assert served(shelf, clock) == OLD
        later(shelf, clock, 29.0)
        assert served(shelf, clock) == OLD
        later(shelf, clock, 1.0)
        assert served(shelf, clock) is None
        later(shelf, clock, 10.0)
        assert (shelf.tending.known, shelf.tending.aside, shelf.index, shelf.bytes) == ({}, {}, {}, 0)

    def test_never_beyond_the_keys_own_end(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=1000.0, lifetime=15.0)
        later(shelf, clock, 10.0)
        assert served(shelf, clock) == OLD
        later(shelf, clock, 4.9)
        assert served(shelf, clock) == OLD
        later(shelf, clock, 0.1)
        assert served(shelf, clock) is None

    def test_nothing_serves_beyond_its_time_without_a_rule(self) -> None:
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, refresh_ahead=5.0))
        fill(shelf, "GET", "k")
        later(shelf, clock, 10.0)
        assert served(shelf, clock) is None and not shelf.tending.known and not shelf.index

    def test_both_protocols_come_back(self) -> None:
        _, shelf, clock = tended(protocols=(2, 3), stale_while_revalidate=30.0, reply=b"_\r\n")
        later(shelf, clock, 10.0)
        assert served(shelf, clock) == b"$-1\r\n"
        assert served(shelf, clock, protocol=3) == b"_\r\n"

    def test_what_is_new_takes_its_place(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0)
        later(shelf, clock, 10.0)
        assert served(shelf, clock) == OLD
        before = shelf.drops
        shelf.land(refetch(shelf), NEW, 100.0)
        consistent(shelf)
        assert served(shelf, clock) == NEW and shelf.drops == before + 1
        later(shelf, clock, 9.0)
        assert K in shelf.table(2).replies, "it is fresh anew"

    def test_a_fetch_that_brings_an_error_is_tried_again_after_a_moment(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0)
        later(shelf, clock, 10.0)
        assert shelf.tending.revive([K], clock.now) == [K]
        shelf.land(refetch(shelf), BUSY, 0.0)
        assert served(shelf, clock) == OLD
        assert shelf.tending.revive([K], clock.now) == []
        later(shelf, clock, 1.0)
        assert shelf.tending.revive([K], clock.now) == [K] and served(shelf, clock) == OLD

    def test_only_what_is_aside_comes_back(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0)
        assert shelf.tending.revive([K, part("GET", "other"), b"3\r\nno part"], clock.now) == []
        later(shelf, clock, 10.0)
        assert shelf.tending.revive([K, K, b"3\r\nno part"], clock.now) == [K]

    def test_what_comes_back_stays_within_the_limits(self) -> None:
        tier, shelf, clock = make(max_entries=10)
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, jitter=0.0, stale_while_revalidate=30.0))
        for n in range(10):
            fill(shelf, "GET", n)
        later(shelf, clock, 10.0)
        for n in range(10, 15):
            fill(shelf, "GET", n)
        shelf.tending.revive([part("GET", n) for n in range(10)], clock.now)
        assert tier.entries <= 10
        consistent(shelf)


class TestWhatEndsIt:
    @every_mode
    @pytest.mark.parametrize("aside", [False, True], ids=["fresh", "aside"])
    @pytest.mark.parametrize("how", ["push", "own write", "flush", "clear", "link", "pattern", "null", "bystander"])
    def test_at_once(self, mode: Mode, aside: bool, how: str) -> None:
        tier, shelf, clock = tended(mode, stale_while_revalidate=30.0, stale_if_error=60.0)
        if aside:
            later(shelf, clock, 10.0)
        match how:
            case "push":
                shelf.pushed(push(b"k"))
            case "own write" | "bystander":
                tier.drop(marks([key_frame(b"k")]))
            case "flush":
                shelf.pushed(INVALIDATE + b"_\r\n")
            case "clear":
                tier.clear()
            case "link":
                shelf.link_lost()
                shelf.link_up(mode)
                shelf.heard = clock.now
            case "pattern":
                list(drop_matching(tier, compile_globs([b"k*"]), b""))
            case "null":
                shelf.land(refetch(shelf), b"_\r\n", float("inf"))
        consistent(shelf)
        gone = b"$-1\r\n" if how == "null" else None
        assert served(shelf, clock) == gone
        assert shelf.tending.instead(K, BUSY, 2) == gone and shelf.tending.last(K, 2) == gone

    @every_mode
    def test_when_it_had_been_brought_back_too(self, mode: Mode) -> None:
        _, shelf, clock = tended(mode, stale_while_revalidate=30.0)
        later(shelf, clock, 10.0)
        assert served(shelf, clock) == OLD
        flight = refetch(shelf)
        shelf.pushed(push(b"k"))
        assert flight.tainted and served(shelf, clock) is None
        shelf.land(flight, OLD, 100.0)
        assert served(shelf, clock) is None
        consistent(shelf)

    @pytest.mark.parametrize("before", [False, True], ids=["aside", "fresh"])
    @pytest.mark.parametrize("back", [False, True], ids=["stays", "comes back"])
    def test_a_pattern_though_it_moves_meanwhile(self, before: bool, back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Slices leave time in between for what is fresh to go aside, and for what is aside to come back."""
        monkeypatch.setattr(matching, "SLICE", 1)
        for turn in range(8):
            tier, shelf, clock = tended(protocols=(2, 3), stale_while_revalidate=30.0)
            for n in range(2):
                fill(shelf, "GET", n)
            if not before:
                later(shelf, clock, 10.0)
            for n, _ in enumerate(drop_matching(tier, compile_globs([b"*"]), b"")):
                if n == turn:
                    clock.now += 10.0 * before
                    shelf.vouch(clock.now)
                    shelf.tending.revive(list(shelf.tending.aside) if back else (), clock.now)
            consistent(shelf)
            assert (tier.entries, shelf.tending.known, shelf.index) == (0, {}, {})

    def test_a_pattern_counts_what_is_aside(self) -> None:
        tier, shelf, clock = tended(protocols=(2, 3), stale_while_revalidate=30.0)
        later(shelf, clock, 10.0)
        assert sum(drop_matching(tier, compile_globs([b"?"]), b"")) == 2

    @pytest.mark.parametrize("reply", [b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n", b"-NOPERM this user has no permissions\r\n", b"$5000000\r\n" + b"x" * 5_000_000 + b"\r\n"], ids=["WRONGTYPE", "NOPERM", "large"])
    def test_an_answer_that_is_about_the_key(self, reply: bytes) -> None:
        for back in (False, True):
            _, shelf, clock = tended(stale_while_revalidate=30.0, stale_if_error=30.0)
            later(shelf, clock, 10.0)
            if back:
                assert served(shelf, clock) == OLD
            shelf.land(refetch(shelf), reply, 100.0)
            assert served(shelf, clock) is None and not shelf.tending.known
            consistent(shelf)

    def test_too_late_an_answer(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0)
        later(shelf, clock, 10.0)
        flight = refetch(shelf)
        clock.now += 5.0
        shelf.land(flight, NEW, 2.0)
        assert served(shelf, clock) is None and shelf.last(K) is None
        consistent(shelf)

    def test_room_is_made_of_what_is_aside_first(self) -> None:
        tier, shelf, clock = tended(stale_while_revalidate=1000.0)
        later(shelf, clock, 10.0)
        for n in range(5):
            fill(shelf, "GET", n)
        assert shelf.evict(1) == 1 and not shelf.tending.aside
        consistent(shelf)
        assert tier.entries == 5 and len(shelf.tending.known) == 5

    def test_room_is_made_while_it_is_fetched_anew(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=1000.0)
        later(shelf, clock, 10.0)
        flight = refetch(shelf)
        shelf.evict(1)
        consistent(shelf)
        shelf.land(flight, NEW, 100.0)
        assert served(shelf, clock) == NEW


class TestRenewed:
    """What has been fetched anew in time: `refresh_ahead`."""

    def test_survives_its_old_deadline(self) -> None:
        tier, shelf, clock = tended(refresh_ahead=3.0)
        later(shelf, clock, 8.0)
        shelf.land(refetch(shelf), NEW, 100.0)
        later(shelf, clock, 4.0)
        assert served(shelf, clock) == NEW and tier.main.expired == 0
        later(shelf, clock, 6.0)
        assert served(shelf, clock) is None and tier.main.expired == 1

    @pytest.mark.parametrize("sweeps", ["before", "between", "both"])
    def test_has_its_end_although_deadlines_are_swept(self, sweeps: str) -> None:
        _, shelf, clock = tended(refresh_ahead=3.0)
        later(shelf, clock, 8.0)
        shelf.land(refetch(shelf), NEW, 100.0)
        if sweeps != "between":
            list(shelf.deadlines.sweep())
        consistent(shelf)
        later(shelf, clock, 4.0)
        if sweeps != "before":
            list(shelf.deadlines.sweep())
        later(shelf, clock, 6.0)
        assert served(shelf, clock) is None and not shelf.index and not shelf.bytes

    def test_after_an_invalidation_ends_when_it_should_although_deadlines_are_swept(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=5.0)
        shelf.pushed(push(b"k"))
        later(shelf, clock, 5.0)
        fill(shelf, "GET", "k", reply=NEW)
        list(shelf.deadlines.sweep())
        later(shelf, clock, 5.0)
        assert served(shelf, clock) == NEW
        later(shelf, clock, 5.0)
        assert served(shelf, clock) == NEW, "while it is fetched anew"
        later(shelf, clock, 5.0)
        assert served(shelf, clock) is None

    def test_with_less_time_ends_sooner(self) -> None:
        _, shelf, clock = tended(refresh_ahead=3.0)
        later(shelf, clock, 1.0)
        shelf.land(refetch(shelf), NEW, 2.0)
        consistent(shelf)
        later(shelf, clock, 2.0)
        assert served(shelf, clock) is None

    def test_is_due_once_and_not_before(self) -> None:
        _, shelf, clock = tended(refresh_ahead=3.0)
        assert list(shelf.tending.due(clock.now + 6.0, 10)) == []
        assert list(shelf.tending.due(clock.now + 7.5, 10)) == [K]
        assert list(shelf.tending.due(clock.now + 7.5, 10)) == []

    def test_is_not_due_once_it_is_gone_or_anew_or_ends_with_its_key(self) -> None:
        _, shelf, clock = tended(refresh_ahead=3.0)
        shelf.pushed(push(b"k"))
        assert list(shelf.tending.due(clock.now + 8.0, 10)) == []
        _, shelf, clock = tended(refresh_ahead=3.0)
        clock.now += 5.0
        shelf.land(refetch(shelf), NEW, 100.0)
        assert list(shelf.tending.due(clock.now + 3.0, 10)) == []
        _, shelf, clock = tended(refresh_ahead=3.0, lifetime=5.0)
        assert list(shelf.tending.due(clock.now + 4.0, 10)) == []

    @pytest.mark.parametrize("lifetime", [float("inf"), 11.0, 5.0, 2.0])
    def test_is_not_due_again_and_again(self, lifetime: float) -> None:
        """Neither if its key ends soon nor if its own time is shorter than it is to be fetched ahead."""
        for ahead in (1.0, 3.0, 20.0):
            _, shelf, clock = tended(refresh_ahead=ahead, lifetime=lifetime)
            ends, due = clock.now + lifetime, 0
            for _ in range(40):
                clock.now += 0.25
                shelf.vouch(clock.now)
                for _part in shelf.tending.due(clock.now, 10):
                    due += 1
                    shelf.land(refetch(shelf), NEW, ends - clock.now)
            assert due <= 2


class TestInPlaceOfAnError:
    @pytest.mark.parametrize("mode", [Mode.OPTIN, Mode.DEFAULT, Mode.BCAST, Mode.BUS])
    def test_it_stands_in_as_long_as_its_rule_says(self, mode: Mode) -> None:
        _, shelf, clock = tended(mode, stale_if_error=30.0)
        later(shelf, clock, 10.0)
        assert served(shelf, clock) is None, "no read is answered by it without Redis being asked"
        answers: list[bytes] = []
        flight = refetch(shelf)
        flight.waiters.append(Waiter(answers))
        flight.relay(b":-1\r\n" + BUSY if mode is not Mode.OPTIN else b"+OK\r\n:-1\r\n" + BUSY)
        flight.drained()
        assert answers == [OLD]
        consistent(shelf)
        later(shelf, clock, 29.0)
        assert shelf.tending.instead(K, BUSY, 2) == OLD
        later(shelf, clock, 1.0)
        assert shelf.tending.instead(K, BUSY, 2) is None

    @pytest.mark.parametrize("error", [b"-ERR x\r\n", b"-WRONGTYPE x\r\n", b"-NOPERM x\r\n", b"-NOAUTH x\r\n", b"-BUSYGROUP x\r\n", b"-MOVED 1 a:1\r\n", b"-OOM x\r\n"])
    def test_not_of_one_that_says_something_of_the_key_or_of_the_client(self, error: bytes) -> None:
        _, shelf, clock = tended(stale_if_error=30.0)
        later(shelf, clock, 10.0)
        assert shelf.tending.instead(K, error, 2) is None

    @pytest.mark.parametrize("error", [b"-LOADING x\r\n", BUSY, b"-MASTERDOWN x\r\n", b"-CLUSTERDOWN x\r\n", b"-TRYAGAIN x\r\n", b"-ERR pannier: x\r\n"])
    def test_of_one_that_says_that_redis_cannot(self, error: bytes) -> None:
        _, shelf, clock = tended(stale_if_error=30.0)
        later(shelf, clock, 10.0)
        assert shelf.tending.instead(K, error, 2) == OLD

    def test_never_beyond_the_keys_own_end(self) -> None:
        _, shelf, clock = tended(stale_if_error=30.0, lifetime=12.0)
        later(shelf, clock, 11.9)
        assert shelf.tending.instead(K, BUSY, 2) == OLD
        later(shelf, clock, 0.1)
        assert shelf.tending.instead(K, BUSY, 2) is None

    def test_all_who_wait_or_nobody(self) -> None:
        """A protocol whose table is newer than the entry has nothing to stand in."""
        _, shelf, clock = tended(stale_if_error=30.0)
        later(shelf, clock, 10.0)
        shelf.table(3)
        answers: list[bytes] = []
        flight = refetch(shelf)
        flight.waiters += [Waiter(answers), Waiter(answers, 3)]
        flight.relay(b"+OK\r\n:-1\r\n" + BUSY)
        flight.drained()
        assert answers == [BUSY, BUSY]


class TestTheLast:
    """What was there last although Redis has let it expire."""

    @pytest.mark.parametrize("aside", [False, True])
    @pytest.mark.parametrize("mode", [Mode.OPTIN, Mode.DEFAULT, Mode.BCAST, Mode.BUS])
    def test_is_known_for_as_long_as_its_rule_says_but_serves_no_read(self, aside: bool, mode: Mode) -> None:
        _, shelf, clock = tended(mode, stale_while_revalidate=30.0, lifetime=12.0 if aside else 9.0)
        later(shelf, clock, 12.0 if aside else 9.0)
        shelf.pushed(push(b"k"))
        consistent(shelf)
        assert shelf.tending.last(K, 2) == OLD
        assert served(shelf, clock) is None and shelf.tending.instead(K, BUSY, 2) is None
        later(shelf, clock, 29.0)
        assert shelf.tending.last(K, 2) == OLD and served(shelf, clock) is None
        later(shelf, clock, 1.0)
        assert shelf.tending.last(K, 2) is None
        later(shelf, clock, 5.0)
        assert not shelf.tending.known and not shelf.bytes

    def test_is_what_is_there_while_there_is_something(self) -> None:
        _, shelf, _ = tended(stale_while_revalidate=30.0)
        assert shelf.tending.last(K, 2) == OLD

    def test_is_forgotten_when_it_was_changed_before_its_end(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0, lifetime=12.0)
        later(shelf, clock, 11.9)
        shelf.pushed(push(b"k"))
        assert shelf.tending.last(K, 2) is None

    def test_of_a_rule_for_errors_only_is_not_kept(self) -> None:
        _, shelf, clock = tended(stale_if_error=30.0, lifetime=9.0)
        later(shelf, clock, 9.0)
        assert shelf.tending.last(K, 2) is None and not shelf.bytes

    def test_of_several_keys(self) -> None:
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, stale_while_revalidate=30.0))
        both = part("EXISTS", "a", "b")
        fill(shelf, "EXISTS", "a", "b", reply=b":2\r\n", lifetime=5.0)
        later(shelf, clock, 5.0)
        shelf.pushed(push(b"a"))
        consistent(shelf)
        assert shelf.tending.last(both, 2) == b":2\r\n" and served(shelf, clock, both) is None
        fill(shelf, "EXISTS", "a", "b", reply=b":1\r\n")
        shelf.pushed(push(b"b"))
        assert shelf.tending.last(both, 2) is None and not shelf.tending.known
        consistent(shelf)

    @pytest.mark.parametrize("negative", [True, False])
    def test_is_known_although_redis_has_said_that_there_is_nothing(self, negative: bool) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0, lifetime=9.0, negative=negative)
        later(shelf, clock, 9.0)
        for _ in range(2):
            fill(shelf, "GET", "k", reply=b"_\r\n")
            consistent(shelf)
            assert shelf.last(K) == OLD
            assert served(shelf, clock) == (b"$-1\r\n" if negative else None)
            shelf.pushed(push(b"k"))
        later(shelf, clock, 30.0)
        assert shelf.last(K) is None

    @pytest.mark.parametrize("protocols", [(2,), (2, 3)])
    def test_is_known_although_it_was_fetched_anew_a_moment_before_its_end(self, protocols: tuple[int, ...]) -> None:
        """Too late for the reply to be kept by itself."""
        _, shelf, clock = tended(protocols=protocols, stale_while_revalidate=30.0, lifetime=9.0)
        later(shelf, clock, 8.99)
        flight = refetch(shelf)
        later(shelf, clock, 0.02)
        shelf.land(flight, OLD, 0.01)
        consistent(shelf)
        assert shelf.last(K) == OLD and served(shelf, clock) is None
        shelf.pushed(push(b"k"))
        fill(shelf, "GET", "k", reply=b"_\r\n")
        consistent(shelf)
        assert shelf.last(K) == OLD
        later(shelf, clock, 30.0)
        assert shelf.last(K) == b"$-1\r\n"

    def test_is_forgotten_when_what_comes_in_its_place_is_not_to_be_kept(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0, lifetime=9.0, max_value_size=5)
        later(shelf, clock, 8.99)
        flight = refetch(shelf)
        shelf.land(flight, b"$9\r\nlong text\r\n", 60.0)
        consistent(shelf)
        assert shelf.last(K) is None

    def test_is_forgotten_when_there_is_something_again(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0, lifetime=9.0)
        later(shelf, clock, 9.0)
        fill(shelf, "GET", "k", reply=b"_\r\n")
        shelf.pushed(push(b"k"))
        fill(shelf, "GET", "k", reply=b"$1\r\nn\r\n")
        assert shelf.last(K) == b"$1\r\nn\r\n"
        shelf.pushed(push(b"k"))
        assert shelf.last(K) is None
        consistent(shelf)

    def test_of_what_is_there_no_more_is_bounded(self) -> None:
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, stale_while_revalidate=30.0))
        for n in range(1100):
            fill(shelf, "GET", n, lifetime=5.0)
        later(shelf, clock, 5.0)
        for n in range(1100):
            fill(shelf, "GET", n, reply=b"_\r\n")
        consistent(shelf)
        assert sum(shelf.last(part("GET", n)) != b"$-1\r\n" for n in range(1100)) == 1024

    def test_makes_room_before_anything_else(self) -> None:
        """Values may be large: what no read is served must not keep out what is read."""
        tier, shelf, clock = make(max_memory=1 << 20)
        obey(tier, CacheRule((b"old:*",), l1_ttl=10.0, stale_while_revalidate=30.0))
        fill(shelf, "GET", "hot")
        for n in range(8):
            fill(shelf, "GET", f"old:{n}", lifetime=5.0, reply=b"$100000\r\n" + b"x" * 100_000 + b"\r\n")
        later(shelf, clock, 5.0)
        for n in range(8):
            fill(shelf, "GET", f"old:{n}", reply=b"_\r\n")
        assert tier.used > 800_000
        for n in range(5):
            fill(shelf, "GET", f"new:{n}", reply=b"$100000\r\n" + b"x" * 100_000 + b"\r\n")
            consistent(shelf)
            assert tier.used <= 1 << 20
        assert served(shelf, clock, part("GET", "hot")) and all(served(shelf, clock, part("GET", f"new:{n}")) for n in range(5))

    def test_is_let_go_when_nobody_may_have_it_any_more(self) -> None:
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, stale_while_revalidate=30.0))
        for n in range(100):
            fill(shelf, "GET", n, lifetime=5.0)
            later(shelf, clock, 5.0)
            fill(shelf, "GET", n, reply=b"_\r\n")
            consistent(shelf)
        assert len(shelf.tending._lapsed) <= 8

    def test_when_all_is_dropped_goes_too(self) -> None:
        _, shelf, clock = tended(stale_while_revalidate=30.0, lifetime=9.0)
        later(shelf, clock, 9.0)
        shelf.clear()
        assert shelf.tending.last(K, 2) is None and shelf.bytes == 0


class TestAhead:
    def test_what_is_aside_by_then_is_fetched_by_the_next_read(self) -> None:
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, jitter=0.0, refresh_ahead=2.0, stale_while_revalidate=30.0))
        fill(shelf, "GET", "k", lifetime=100.0)
        later(shelf, clock, 10.0)
        assert K in shelf.tending.aside and list(shelf.tending.due(clock.now, 9)) == []


class TestDeadlines:
    def test_are_shared_by_what_is_aside(self) -> None:
        """Each key has a time to live of its own; looking at what is due takes a look at every deadline."""
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, stale_while_revalidate=300.0))
        for n in range(2000):
            fill(shelf, "GET", n, lifetime=100.0 + n * 0.1)
        later(shelf, clock, 10.0)
        assert len(shelf.tending.aside) == 2000 and len(shelf.deadlines._parts) < 100
        ends = sorted(shelf.deadlines._parts)
        assert all(other - one >= 1.0 for one, other in pairwise(ends))

    def test_of_what_comes_back_are_shared_as_well(self) -> None:
        tier, shelf, clock = make()
        obey(tier, CacheRule((b"*",), l1_ttl=10.0, stale_while_revalidate=300.0))
        for n in range(2000):
            fill(shelf, "GET", n, lifetime=100.0 + n * 0.1)
        later(shelf, clock, 10.0)
        shelf.tending.revive([part("GET", n) for n in range(2000)], clock.now)
        assert len(shelf.deadlines._parts) < 100
        consistent(shelf)


class Waiter:
    """A client that notes what it is told."""

    def __init__(self, answers: list[bytes], protocol: int = 2) -> None:
        self.answers = answers
        self.protocol = protocol

    def take(self, reply: bytes) -> None:
        self.answers.append(reply)

    def take_piece(self, piece: bytes, skip: int) -> None:
        raise AssertionError

    def take_end(self) -> None:
        raise AssertionError

    def cut(self) -> None:
        raise AssertionError

    def hold_back(self, link: object) -> None:
        raise AssertionError

    def go_on(self) -> None:
        raise AssertionError


REQUESTS = [("GET", "a"), ("GET", "b"), ("STRLEN", "a"), ("EXISTS", "a", "b"), ("EXISTS", "b", "c", "a"), ("GET", "c")]
RULES = {
    "a": {"l1_ttl": 10.0, "stale_while_revalidate": 20.0},
    "b": {"l1_ttl": 5.0, "stale_if_error": 40.0, "refresh_ahead": 2.0},
    "c": {"l1_ttl": 8.0, "stale_while_revalidate": 3.0, "stale_if_error": 6.0, "negative": False},
}
FIELDS = ("l1_ttl", "stale_while_revalidate", "stale_if_error")


class AgainstAModel(RuleBasedStateMachine):
    """Redis is a dict from keys to versions, each reply tells the versions it was made of.

    What any read is served has been read after the last change of each of its keys, not longer ago than the
    rules allow, and before the end of the keys' time to live.
    """

    @initialize(mode=st.sampled_from([Mode.OPTIN, Mode.BCAST]), protocols=st.sampled_from([(2,), (2, 3)]))
    def start(self, mode: Mode, protocols: tuple[int, ...]) -> None:
        self.tier, self.shelf, self.clock = make(mode=mode, protocols=protocols, max_entries=6)
        obey(self.tier, *[CacheRule((key.encode(),), jitter=0.0, **fields) for key, fields in RULES.items()])  # type: ignore[arg-type]
        self.versions = dict.fromkeys("abc", 0)
        self.flights: list[tuple[Flight, tuple[str, ...], bytes, float]] = []
        self.read: dict[bytes, tuple[float, float]] = {}
        """By part: when what is kept was read, and when its keys end."""

    def reply(self, request: tuple[str, ...]) -> bytes:
        return encode.bulk(" ".join(f"{key}{self.versions[key]}" for key in request[1:]))

    @rule(request=st.sampled_from(REQUESTS), lifetime=st.sampled_from([0.0, 1.0, 6.0, 12.0, float("inf")]))
    def open(self, request: tuple[str, ...], lifetime: float) -> None:
        flight = self.shelf.open(read(self.tier, *request))
        if flight is not None:
            self.flights.append((flight, request, self.reply(request), lifetime))

    @rule(which=st.integers(0, 9))
    def land(self, which: int) -> None:
        if self.flights:
            flight, request, reply, lifetime = self.flights.pop(which % len(self.flights))
            tainted = flight.tainted
            self.shelf.land(flight, reply, lifetime)
            if not tainted:
                self.read[part(*request)] = (flight.began, flight.began + lifetime)

    @rule(which=st.integers(0, 9), reply=st.sampled_from([BUSY, b"_\r\n", b"-WRONGTYPE x\r\n"]))
    def bring_nothing(self, which: int, reply: bytes) -> None:
        """An error, or word that there is nothing: of that, only that it is not kept for `c`."""
        if self.flights:
            flight, request, _, _ = self.flights.pop(which % len(self.flights))
            if reply != b"_\r\n" or "c" in request[1:]:
                self.shelf.land(flight, reply, 100.0)
            else:
                self.shelf.give_up(flight)

    @rule(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=3), how=st.sampled_from(["push", "own", "pattern"]))
    def write(self, keys: list[str], how: str) -> None:
        for key in keys:
            self.versions[key] += 1
        if how == "push":
            self.shelf.pushed(push(*[key.encode() for key in keys]))
        elif how == "own":
            self.tier.drop(marks([key_frame(key.encode()) for key in keys]))
        else:
            list(drop_matching(self.tier, compile_globs([key.encode() for key in keys]), b""))

    @rule(key=st.sampled_from("abc"))
    def expire(self, key: str) -> None:
        """Redis says so, early or late: it cannot be told from a change."""
        self.versions[key] += 1
        self.shelf.pushed(push(key.encode()))

    @rule(null=st.booleans())
    def flush(self, null: bool) -> None:
        self.versions = {key: version + 1 for key, version in self.versions.items()}
        self.shelf.pushed(INVALIDATE + b"_\r\n") if null else self.tier.clear()

    @rule()
    def reconnect(self) -> None:
        mode = self.shelf.mode
        self.shelf.link_lost()
        self.versions = {key: version + 1 for key, version in self.versions.items()}
        self.shelf.link_up(mode)

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        self.shelf.evict(count)

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.shelf.vouch(self.clock.now)

    @rule(requests=st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3))
    def revive(self, requests: list[tuple[str, ...]]) -> None:
        self.shelf.vouch(self.clock.now)
        self.shelf.tending.revive([part(*request) for request in requests], self.clock.now)

    @rule()
    def sweep(self) -> None:
        list(self.shelf.deadlines.sweep())

    @rule()
    def look_for_what_is_due(self) -> None:
        for found in self.shelf.tending.due(self.clock.now, 10):
            assert any(found in table.replies for table in self.shelf.tables.values())

    @invariant()
    def serves_the_truth_and_no_longer_than_allowed(self) -> None:
        if not hasattr(self, "shelf"):
            return
        consistent(self.shelf)
        assert self.tier.entries <= 6
        now, vouched = self.clock.now, self.shelf.until > self.clock.now
        for request in REQUESTS:
            found = part(*request)
            l1_ttl, revalidate, if_error = (min(RULES[key].get(field, 0.0) for key in request[1:]) for field in FIELDS)
            for protocol, table in self.shelf.tables.items():
                reply = table.find(found)
                assert reply in (None, self.reply(request))
                if reply is not None and vouched:
                    began, ends = self.read[found]
                    assert now < min(ends, began + l1_ttl + revalidate)
                instead = self.shelf.tending.instead(found, BUSY, protocol)
                assert instead in (None, self.reply(request))
                if instead is not None:
                    began, ends = self.read[found]
                    assert now < min(ends, began + l1_ttl + max(if_error, revalidate))
                if self.shelf.tending.last(found, protocol) is not None:
                    began, ends = self.read[found]
                    assert now < max(min(ends, began + l1_ttl + max(if_error, revalidate)), ends + revalidate if ends < float("inf") else 0.0)


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
