"""A shelf whose link is broken or silent: what it may still serve, for how long, and when that is over."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.resp.tracking import Mode
from proxy.tier.policy import CacheRule, Defaults, Policy
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Tier
from tests.tier.shelves import Clock, consistent, fill, make, part, read
from tests.tier.test_shelf import push

MODES = [Mode.OPTIN, Mode.DEFAULT, Mode.BCAST, Mode.BUS]
MAX = 60.0
GATE = 3.0


def stale(mode: Mode = Mode.OPTIN, **limits: Any) -> tuple[Tier, Shelf, Clock]:
    return make(mode, **{"stale_max": MAX, "coherence_timeout": GATE, "l1_ttl": 300.0, "l1_ttl_untracked": 300.0, **limits})


def serves(shelf: Shelf, key: str = "k") -> bool:
    """Whether the hot path would answer."""
    now = shelf.tier.clock()
    return (now < shelf.until or shelf.vouch(now)) and shelf.table(2).find(part("GET", key)) is not None


def silence(shelf: Shelf, clock: Clock) -> None:
    """Redis owes the answer to a heartbeat, and the gate closes."""
    shelf.waiting = True
    clock.now += GATE


@pytest.mark.parametrize("mode", MODES)
class TestALostLink:
    def test_serves_what_was_kept_for_stale_max_and_no_longer(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        shelf.link_lost()
        assert shelf.stale.since == clock.now
        for _ in range(int(MAX) * 2 - 1):
            clock.now += 0.5
            assert serves(shelf)
        clock.now += 0.5
        assert not serves(shelf)
        assert not shelf.entries, "nothing can make it true again"
        assert shelf.stale.since is not None
        consistent(shelf)

    def test_serves_nothing_unless_asked_for(self, mode: Mode) -> None:
        _, shelf, _ = stale(mode, stale_max=0.0)
        fill(shelf, "GET", "k")
        shelf.link_lost()
        assert not serves(shelf) and not shelf.entries and shelf.stale.since is None

    def test_no_entry_outlives_its_own_time(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode, l1_ttl=40.0, l1_ttl_untracked=40.0)
        fill(shelf, "GET", "short", lifetime=10.0)
        fill(shelf, "GET", "k")
        shelf.link_lost()
        clock.now += 8.0
        assert serves(shelf, "short")
        clock.now += 2.0
        assert not serves(shelf, "short") and serves(shelf)
        clock.now += 30.0
        assert not serves(shelf), "nor l1_ttl"
        consistent(shelf)

    def test_keeps_nothing_new(self, mode: Mode) -> None:
        tier, shelf, _ = stale(mode)
        fill(shelf, "GET", "k")
        flight = shelf.open(read(tier, "GET", "under way"))
        assert flight is not None
        shelf.link_lost()
        assert flight.tainted and not shelf.flights
        shelf.land(flight, b"$1\r\nv\r\n", 9.0)
        assert shelf.open(read(tier, "GET", "late")) is None
        assert shelf.entries == 1
        consistent(shelf)

    def test_what_still_passes_drops_keys(self, mode: Mode) -> None:
        tier, shelf, _ = stale(mode)
        fill(shelf, "GET", "k")
        fill(shelf, "GET", "other")
        shelf.link_lost()
        assert tier.drop(marks([key_frame(b"k")])) == 1
        assert not serves(shelf) and serves(shelf, "other")
        tier.clear()
        assert not serves(shelf, "other")

    def test_is_emptied_before_the_next_epoch(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        shelf.link_lost()
        clock.now += 5.0
        assert serves(shelf)
        shelf.link_up(mode)
        assert not shelf.entries and shelf.until == 0.0 and shelf.stale.since is None
        shelf.heard = clock.now
        assert not serves(shelf)
        fill(shelf, "GET", "k")
        assert serves(shelf)

    def test_a_heartbeat_does_not_revive_it(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        shelf.link_lost()
        clock.now += MAX / 2
        shelf.heard = clock.now
        assert shelf.stale.since is not None
        clock.now += MAX / 2
        assert not serves(shelf)

    def test_a_second_loss_does_not_prolong_it(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        silence(shelf, clock)
        assert serves(shelf)
        since = shelf.stale.since
        clock.now += 5.0
        shelf.link_lost()
        assert shelf.stale.since == since and serves(shelf)

    @pytest.mark.parametrize("lost", [False, True])
    def test_given_up_with_its_link_leaves_nothing(self, mode: Mode, lost: bool) -> None:
        tier, shelf, _ = stale(mode)
        fill(shelf, "GET", "k")
        if lost:
            shelf.link_lost()
        tier.discard("home")
        assert not shelf.entries and not tier.used and shelf.stale.since is None


@pytest.mark.parametrize("mode", [Mode.OPTIN, Mode.DEFAULT, Mode.BCAST])
class TestASilentLink:
    def test_serves_from_the_closing_of_the_gate_on(self, mode: Mode) -> None:
        tier, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        since = clock.now + GATE
        flight = shelf.open(read(tier, "GET", "under way"))
        silence(shelf, clock)
        assert serves(shelf) and shelf.stale.since == since
        assert flight is not None and flight.tainted
        assert shelf.open(read(tier, "GET", "late")) is None
        clock.now = since + MAX
        assert not serves(shelf)

    def test_only_while_redis_owes_an_answer(self, mode: Mode) -> None:
        """A sidecar that stood still itself has not asked, and what Redis has told may wait to be read."""
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        clock.now += GATE
        assert not serves(shelf) and shelf.stale.since is None

    def test_not_unless_asked_for(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode, stale_max=0.0)
        fill(shelf, "GET", "k")
        silence(shelf, clock)
        assert not serves(shelf)

    def test_is_fresh_again_once_it_speaks_less_what_has_changed(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        fill(shelf, "GET", "changed")
        silence(shelf, clock)
        assert serves(shelf) and serves(shelf, "changed")
        clock.now += 5.0
        shelf.pushed(push(b"changed"))
        shelf.waiting, shelf.heard = False, clock.now
        assert shelf.stale.since is None
        assert serves(shelf) and not serves(shelf, "changed")
        fill(shelf, "GET", "late")
        assert serves(shelf, "late")
        clock.now += GATE
        assert not serves(shelf), "the gate holds as before"

    def test_an_answer_to_an_old_question_vouches_for_nothing(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        silence(shelf, clock)
        asked = clock.now
        assert serves(shelf)
        clock.now += 2 * GATE
        shelf.heard = asked
        assert shelf.stale.since is not None

    def test_then_lost_is_never_fresh_again(self, mode: Mode) -> None:
        _, shelf, clock = stale(mode)
        fill(shelf, "GET", "k")
        silence(shelf, clock)
        assert serves(shelf)
        shelf.link_lost()
        shelf.heard = clock.now
        assert shelf.stale.since is not None and serves(shelf)
        shelf.link_up(mode)
        assert not shelf.entries


class TestALostBus:
    def test_serves_nothing_while_redis_may_be_there(self) -> None:
        tier, shelf, clock = stale(Mode.BUS)
        fill(shelf, "GET", "k")
        flight = shelf.open(read(tier, "GET", "under way"))
        shelf.bus_lost()
        assert not serves(shelf) and shelf.entries == 1
        assert flight is not None and flight.tainted
        clock.now += 1.0
        shelf.heard = clock.now
        assert not serves(shelf), "not even if it is heard again: what was said meanwhile is lost"

    @pytest.mark.parametrize("silent", [False, True])
    def test_serves_stale_once_the_link_is_away_too(self, silent: bool) -> None:
        _, shelf, clock = stale(Mode.BUS)
        fill(shelf, "GET", "k")
        shelf.bus_lost()
        clock.now += 1.0
        if silent:
            shelf.waiting = True
        else:
            shelf.link_lost()
        assert serves(shelf)
        clock.now += MAX
        assert not serves(shelf)

    def test_is_emptied_when_heard_again(self) -> None:
        tier, shelf, clock = stale(Mode.BUS)
        fill(shelf, "GET", "k")
        shelf.bus_lost()
        tier.clear()  # as `Bus._begin` does
        shelf.heard = clock.now
        assert not serves(shelf)
        fill(shelf, "GET", "k")
        assert serves(shelf)

    def test_drops_at_once_unless_stale_is_asked_for(self) -> None:
        _, shelf, _ = stale(Mode.BUS, stale_max=0.0)
        fill(shelf, "GET", "k")
        shelf.bus_lost()
        assert not shelf.entries


class TestByRule:
    """`stale_if_error` says for each key how long it serves while Redis is away."""

    @staticmethod
    def made(mode: Mode = Mode.OPTIN, stale_max: float = 0.0) -> tuple[Tier, Shelf, Clock]:
        tier, shelf, clock = stale(mode, stale_max=stale_max)
        rules = [
            CacheRule((b"short:*",), stale_if_error=10.0),
            CacheRule((b"long:*",), stale_if_error=30.0),
            CacheRule((b"never:*",), stale_if_error=0.0),
            CacheRule((b"brief:*",), l1_ttl=5.0, stale_if_error=20.0, jitter=0.0),
        ]
        tier.obey(Policy(rules, Defaults(300.0, 1 << 20, stale=stale_max)))
        for key in ("short:1", "long:1", "never:1", "other", "brief:1"):
            fill(shelf, "GET", key)
        return tier, shelf, clock

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("stale_max", [0.0, 20.0])
    def test_as_long_as_its_rule_says(self, mode: Mode, stale_max: float) -> None:
        _, shelf, clock = self.made(mode, stale_max)
        shelf.link_lost()
        consistent(shelf)
        began, ends = clock.now, {"short:1": 10.0, "long:1": 30.0, "never:1": 0.0, "other": stale_max}
        for _ in range(70):
            for key, seconds in ends.items():
                assert serves(shelf, key) is (clock.now < began + seconds), (key, clock.now - began)
            consistent(shelf)
            clock.now += 0.5
        assert not shelf.entries

    def test_beyond_its_own_lifetime_by_as_much(self) -> None:
        _, shelf, clock = self.made()
        began, clock.now = clock.now, clock.now + 4.0
        shelf.link_lost()
        wanted = part("GET", "brief:1")
        for _ in range(41):  # fresh until a little before 5.0, and 20 more
            shelf.vouch(clock.now)
            shelf.tending.revive([wanted], clock.now)
            assert serves(shelf, "brief:1"), clock.now
            consistent(shelf)
            clock.now += 0.5
        clock.now = began + 25.0
        shelf.vouch(clock.now)
        shelf.tending.revive([wanted], clock.now)
        assert not serves(shelf, "brief:1")

    def test_a_redis_that_speaks_again_gives_back_no_time(self) -> None:
        _, shelf, clock = self.made()
        silence(shelf, clock)
        assert serves(shelf, "short:1") and not serves(shelf, "other")
        shelf.waiting = False
        shelf.heard = clock.now
        assert shelf.stale.since is None and serves(shelf, "short:1")
        for _ in range(30):
            clock.now += 1.0
            shelf.heard = clock.now
        assert not serves(shelf, "short:1")
        consistent(shelf)


class TestWhatIsCounted:
    def test_hits_between_the_beginning_and_the_end(self) -> None:
        tier, shelf, clock = stale()
        other = tier.shelf("other")
        other.link_up(Mode.OPTIN)
        hits = 5
        tier.main.count_hits = lambda: hits
        fill(shelf, "GET", "k")
        fill(other, "GET", "k")
        shelf.link_lost()
        hits = 7
        assert tier.main.stale_hits == 2
        clock.now += 1.0
        other.link_lost()
        hits = 10
        shelf.link_up(Mode.OPTIN)
        hits = 11
        other.link_up(Mode.OPTIN)
        hits = 20
        assert tier.main.stale_hits == 6
        shelf.link_lost()
        hits = 21
        assert tier.main.stale_hits == 7
