"""Which rule holds for a read, and that the strictest word of several does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.globs import compile_globs
from proxy.resp.tracking import Mode
from proxy.tier.policy import NOTHING, CacheRule, Defaults, Policy, Serve
from tests.tier.shelves import consistent, fill, make, obey, part, read

LIMITS = Defaults(l1_ttl=300.0, max_value_size=1000)


def rule(*patterns: str, **fields: object) -> CacheRule:
    return CacheRule(tuple(pattern.encode() for pattern in patterns), **fields)  # type: ignore[arg-type]


def number(policy: Policy, key: str | bytes) -> int:
    return policy.ruling(key if isinstance(key, bytes) else key.encode()).number


class TestTheFirstThatMatches:
    def test_holds(self) -> None:
        policy = Policy([rule("user:*:permissions"), rule("user:*", "org:?"), rule("*")], LIMITS)
        found = {key: number(policy, key) for key in ("user:1:permissions", "user:1", "org:7", "org:77", "x", "")}
        assert found == {"user:1:permissions": 1, "user:1": 2, "org:7": 2, "org:77": 3, "x": 3, "": 3}

    def test_is_none_where_none_matches(self) -> None:
        policy = Policy([rule("a:*")], LIMITS)
        assert number(policy, "b:1") == 0 and number(Policy([], LIMITS), "a:1") == 0

    @pytest.mark.parametrize("key", [b"\xff\x00", b"a\nb", b"a\r\nb", b"x" * 100_000], ids=["binary", "line", "CRLF", "long"])
    def test_whatever_the_key_is(self, key: bytes) -> None:
        assert number(Policy([rule("nosuch"), rule("*")], LIMITS), key) == 2

    def test_has_groups_beyond_a_hundred(self) -> None:
        policy = Policy([rule(f"class{n}:*", f"other{n}:*") for n in range(500)], LIMITS)
        assert [number(policy, f"{word}{n}:x") for n in (0, 99, 100, 499) for word in ("class", "other")] == [1, 1, 100, 100, 101, 101, 500, 500]

    @given(st.lists(st.text("ab*?[]^-\\:", min_size=1, max_size=6), min_size=1, max_size=6), st.text("ab:", max_size=6))
    @settings(max_examples=300, deadline=None)
    def test_is_the_one_that_matches_by_itself(self, patterns: list[str], key: str) -> None:
        policy = Policy([rule(pattern) for pattern in patterns], LIMITS)
        alone = [n for n, pattern in enumerate(patterns, 1) if compile_globs([pattern.encode()]).fullmatch(key.encode())]
        assert number(policy, key) == (alone[0] if alone else 0)


class TestWhatHolds:
    def test_where_a_rule_is_silent(self) -> None:
        ruling = Policy([rule("*")], LIMITS).ruling(b"k")
        assert (ruling.l1_ttl, ruling.jitter, ruling.max_value_size, ruling.negative) == (300.0, 0.1, 1000, True)
        assert (ruling.serve, ruling.stale_while_revalidate, ruling.stale_if_error, ruling.refresh_ahead) == (Serve.CACHE, 0.0, 0.0, 0.0)
        assert not ruling.tended and not ruling.keeps

    def test_the_rule_goes_before_the_settings(self) -> None:
        ruling = Policy([rule("*", l1_ttl=1000.0, max_value_size=5000)], LIMITS).ruling(b"k")
        assert (ruling.l1_ttl, ruling.max_value_size) == (1000.0, 5000)

    @pytest.mark.parametrize("ceiling", Serve)
    @pytest.mark.parametrize("serve", Serve)
    def test_mode_is_a_ceiling(self, ceiling: Serve, serve: Serve) -> None:
        policy = Policy([rule("a", serve=serve)], Defaults(300.0, 1000, ceiling))
        assert policy.ruling(b"a").serve is max(ceiling, serve)
        assert policy.ruling(b"b").serve is ceiling

    def test_tending_is_needed_for_what_is_served_beyond_or_fetched_before(self) -> None:
        for fields in ({"stale_while_revalidate": 1.0}, {"stale_if_error": 1.0}, {"refresh_ahead": 1.0}):
            assert Policy([rule("*", **fields)], LIMITS).tends
        assert not Policy([rule("*", stale_if_error=0.0)], LIMITS).tends
        assert not Policy([rule("*", l1_ttl=1.0)], Defaults(300.0, 1000, stale=60.0)).tends

    def test_the_label(self) -> None:
        policy = Policy([rule("user:*", label="people"), rule("org:*")], LIMITS)
        assert [policy.label(key) for key in (b"user:1", b"org:1:x", b"plain", b"", b"\xff:1")] == ["people", "org", "plain", "", "\\xff"]


class TestSeveralKeys:
    def test_take_the_strictest_of_each(self) -> None:
        policy = Policy(
            [
                rule("a", l1_ttl=10.0, jitter=0.0, max_value_size=500, stale_while_revalidate=5.0, stale_if_error=60.0, refresh_ahead=2.0),
                rule("b", l1_ttl=20.0, jitter=0.5, negative=False, stale_while_revalidate=50.0, stale_if_error=6.0, refresh_ahead=1.0, max_fetches=3),
                rule("c", serve=Serve.OBSERVE),
                rule("d", serve=Serve.OFF),
            ],
            LIMITS,
        )  # fmt: skip
        both = policy.judge([b"a", b"b"])
        assert (both.l1_ttl, both.jitter, both.max_value_size, both.negative) == (10.0, 0.5, 500, False)
        assert (both.stale_while_revalidate, both.stale_if_error, both.refresh_ahead) == (5.0, 6.0, 1.0)
        assert both.rule.max_fetches == 3 and both.tended
        assert policy.judge([b"a", b"c"]).serve is Serve.OBSERVE
        assert policy.judge([b"c", b"d", b"a"]).serve is Serve.OFF
        beside = policy.judge([b"a", b"nobody's"])
        assert (beside.l1_ttl, beside.stale_while_revalidate, beside.stale_if_error, beside.tended) == (10.0, 0.0, 0.0, False)

    def test_of_one_rule_are_that_rule(self) -> None:
        policy = Policy([rule("a*")], LIMITS)
        assert policy.judge([b"a1", b"a2"]) is policy.ruling(b"a1")
        assert policy.judge([b"x", b"y"]) is policy.default

    def test_whatever_their_order(self) -> None:
        policy = Policy([rule("a", l1_ttl=1.0), rule("b", l1_ttl=2.0)], LIMITS)
        assert policy.judge([b"a", b"b"]) is policy.judge([b"b", b"a", b"b"])

    def test_are_remembered_up_to_a_bound(self) -> None:
        policy = Policy([rule(f"k{n}", l1_ttl=1.0 + n) for n in range(60)], LIMITS)
        for one in range(60):
            for other in range(one):
                assert policy.judge([b"k%d" % one, b"k%d" % other]).l1_ttl == 1.0 + other
        assert len(policy._several) <= 1024


class TestRefusing:
    def test_what_is_larger(self) -> None:
        ruling = Policy([rule("*", max_value_size=16)], LIMITS).ruling(b"k")
        assert not ruling.refuses(b"$10\r\n" + b"x" * 9 + b"\r\n", False)  # 16 bytes with its head
        assert ruling.refuses(b"$11\r\n" + b"x" * 10 + b"\r\n", False)
        assert ruling.refused == 1

    def test_what_is_not_there(self) -> None:
        never, kept = (Policy([rule("*", negative=negative)], LIMITS).ruling(b"k") for negative in (False, True))
        for reply, absent, refused in [(NOTHING, True, True), (NOTHING, False, True), (b":0\r\n", True, True), (b":0\r\n", False, False), (b"*1\r\n_\r\n", False, False), (b"$0\r\n\r\n", False, False)]:
            assert never.refuses(reply, absent) is refused, (reply, absent)
            assert not kept.refuses(reply, absent)

    def test_errors_always_and_uncounted(self) -> None:
        ruling = Policy([rule("*")], LIMITS).ruling(b"k")
        assert ruling.refuses(b"-ERR x\r\n", False) and ruling.refused == 0


class TestInAShelf:
    def test_what_is_off_is_not_fetched_to_be_kept(self) -> None:
        tier, shelf, _ = make()
        obey(tier, rule("secret:*", serve=Serve.OFF))
        assert shelf.open(read(tier, "GET", "secret:1")) is None
        assert shelf.open(read(tier, "EXISTS", "a", "secret:1")) is None
        assert not shelf.index and shelf.open(read(tier, "GET", "a")) is not None

    def test_off_for_all_serves_nothing(self) -> None:
        tier, shelf, clock = make()
        fill(shelf, "GET", "k")
        obey(tier, rule("*", serve=Serve.CACHE), ceiling=Serve.OFF)
        assert not shelf.vouch(clock.now) and tier.entries == 0
        assert shelf.open(read(tier, "GET", "k")) is None
        obey(tier)
        fill(shelf, "GET", "k")
        assert shelf.vouch(clock.now) and tier.entries == 1

    def test_the_lifetime_is_the_rules_or_the_keys_own_whichever_ends_first(self) -> None:
        for l1_ttl, lifetime, ends in [(10.0, 1e9, 10.0), (10.0, 4.0, 4.0), (1000.0, 1e9, 1000.0), (1000.0, float("inf"), 1000.0)]:
            tier, shelf, clock = make(l1_ttl=300.0)
            obey(tier, rule("*", l1_ttl=l1_ttl))
            began = clock.now
            fill(shelf, "GET", "k", lifetime=lifetime)
            until = shelf.ends(part("GET", "k"))
            assert until is not None and began + ends * 0.9 <= until <= began + ends

    def test_jitter_takes_its_part_away_at_most(self) -> None:
        for dice, least in ((1.0, 0.93), (0.0, 0.7)):  # a deadline is rounded down by a sixteenth at most
            tier, shelf, clock = make()
            tier._rng = lambda dice=dice: dice  # type: ignore[misc]
            obey(tier, rule("*", l1_ttl=100.0, jitter=0.25))
            fill(shelf, "GET", "k")
            until = shelf.ends(part("GET", "k"))
            assert until is not None and least * 100 <= until - clock.now <= (100 if dice else 75)

    def test_where_only_the_bus_tells_the_cap_for_it_holds_as_well(self) -> None:
        tier, shelf, clock = make(mode=Mode.BUS, l1_ttl_untracked=5.0)
        obey(tier, rule("long:*", l1_ttl=1000.0), rule("short:*", l1_ttl=1.0))
        for key, longest in (("long:1", 5.0), ("short:1", 1.0), ("other", 5.0)):
            fill(shelf, "GET", key)
            until = shelf.ends(part("GET", key))
            assert until is not None and clock.now < until <= clock.now + longest

    def test_too_large_a_value_is_no_longer_kept_though_the_setting_would(self) -> None:
        tier, shelf, _ = make(max_value_size=1 << 20)
        policy = obey(tier, rule("blob:*", max_value_size=16))
        reply = b"$20\r\n" + b"x" * 20 + b"\r\n"
        fill(shelf, "GET", "blob:1", reply=reply)
        fill(shelf, "GET", "other", reply=reply)
        assert list(shelf.table(2).replies) == [part("GET", "other")]
        assert (policy.rulings[0].refused, policy.rulings[0].fills, policy.default.fills) == (1, 0, 1)
        consistent(shelf)

    def test_other_rules_drop_what_is_kept_and_under_way(self) -> None:
        tier, shelf, _ = make()
        obey(tier, rule("*", stale_while_revalidate=60.0))
        fill(shelf, "GET", "a")
        flight = shelf.open(read(tier, "GET", "b"))
        assert flight is not None
        obey(tier, rule("*", serve=Serve.OFF))
        shelf.land(flight, b"$1\r\nv\r\n", 100.0)
        assert (tier.entries, tier.used, shelf.tending.known, shelf.index) == (0, 0, {}, {})
