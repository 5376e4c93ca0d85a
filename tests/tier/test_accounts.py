"""Accounts: each key space has its rules, its share of memory and its counters; writes are told to all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.keys import key_positions
from proxy.resp.namespace import Namespace
from proxy.resp.requests import RequestParser
from proxy.resp.tracking import CACHING, Mode
from proxy.tier.rules import Rules, key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Account, Tier
from tests.tier.shelves import TABLE, Clock, make, part

KB = b"$1000\r\n" + b"x" * 1000 + b"\r\n"
PARSER = RequestParser(2**31)


def push(*keys: bytes) -> bytes:
    return b">2\r\n$10\r\ninvalidate\r\n" + encode.array(map(encode.bulk, keys))


def rules(name: str = "ns") -> Rules:
    return Rules(TABLE, Namespace(name) if name else None)


def account(tier: Tier, name: str = "ns", max_memory: int | None = None) -> Account:
    return tier.account(rules(name), max_memory)


def shelf_of(tier: Tier, key: str, owner: Account, mode: Mode = Mode.OPTIN, protocols: tuple[int, ...] = (2,)) -> Shelf:
    shelf = tier.shelf(key, owner)
    for protocol in protocols:
        shelf.table(protocol)
    shelf.link_up(mode)
    shelf.heard = tier.clock()
    return shelf


def fill(shelf: Shelf, *arguments: bytes | str | int, reply: bytes = b"$1\r\nv\r\n", lifetime: float = float("inf")) -> None:
    """Keep a reply to a read as its client writes it."""
    read = shelf.rules.read(part(*arguments))
    assert read is not None
    flight = shelf.open(read)
    assert flight is not None
    shelf.land(flight, reply, lifetime)


def has(shelf: Shelf, *arguments: bytes | str | int) -> bool:
    return shelf.table(2).find(part(*arguments)) is not None


def adds_up(tier: Tier) -> None:
    """What must hold after every step."""
    for owner in tier.accounts:
        assert all(shelf.account is owner and shelf.budget is owner.budget for shelf in owner.shelves)
    for budget in {owner.budget for owner in tier.accounts}:
        assert budget.used == sum(owner.used for owner in budget.accounts)
        assert budget.entries == sum(owner.entries for owner in budget.accounts)
        assert all(owner.budget is budget for owner in budget.accounts)
    assert tier.used == sum(shelf.bytes for shelf in tier.shelves.values()) == sum(owner.used for owner in tier.accounts)
    assert tier.entries == sum(shelf.entries for shelf in tier.shelves.values())
    assert {shelf for owner in tier.accounts for shelf in owner.shelves} == set(tier.shelves.values())


@pytest.fixture
def tier() -> Tier:
    return make(max_memory=1_000_000)[0]


class TestMemoryOfItsOwn:
    def test_is_carved_out_of_the_whole(self, tier: Tier) -> None:
        one, two = account(tier, "a", 200_000), account(tier, "b", 300_000)
        assert (one.budget.max_memory, two.budget.max_memory, tier.common.max_memory) == (200_000, 300_000, 500_000)
        assert len({one.budget, two.budget, tier.common}) == 3
        assert account(tier, "c").budget is tier.common is tier.main.budget
        assert tier.common.max_memory == 500_000, "an account without has none taken out"

    def test_is_all_it_may_take(self, tier: Tier) -> None:
        small = account(tier, "a", 20_000)
        shelf = shelf_of(tier, "a", small)
        for n in range(100):
            fill(shelf, "GET", n, reply=KB)
            assert small.used <= 20_000
        assert small.evicted > 80 and small.fills == 100
        assert has(shelf, "GET", 99) and not has(shelf, "GET", 0)
        adds_up(tier)

    def test_evicts_none_but_its_own(self, tier: Tier) -> None:
        small = account(tier, "a", 20_000)
        theirs, shelf = tier.shelves["home"], shelf_of(tier, "a", small)
        for n in range(200):
            fill(theirs, "GET", n, reply=KB)
        for n in range(100):
            fill(shelf, "GET", n, reply=KB)
        assert (tier.main.evicted, theirs.entries) == (0, 200)
        adds_up(tier)

    def test_is_not_for_the_others_to_take(self, tier: Tier) -> None:
        large = account(tier, "a", 900_000)
        shelf, theirs = shelf_of(tier, "a", large), tier.shelves["home"]
        for n in range(50):
            fill(shelf, "GET", n, reply=KB)
        for n in range(300):
            fill(theirs, "GET", n, reply=KB)
        assert tier.common.used <= 100_000 and shelf.entries == 50
        assert large.evicted == 0 and tier.main.evicted > 200
        adds_up(tier)

    def test_of_one_value_worth_many_old_ones(self, tier: Tier) -> None:
        small = account(tier, "a", 20_000)
        shelf = shelf_of(tier, "a", small)
        for n in range(10):
            fill(shelf, "GET", n, reply=KB)
        fill(shelf, "GET", "big", reply=b"$15000\r\n" + b"x" * 15000 + b"\r\n")
        assert small.used <= 20_000 and has(shelf, "GET", "big")
        fill(shelf, "GET", "bigger", reply=b"$50000\r\n" + b"x" * 50000 + b"\r\n")
        assert small.used <= 20_000
        adds_up(tier)


class TestACommonBudget:
    def test_takes_from_the_largest_shelf(self, tier: Tier) -> None:
        tier.common.max_memory = 100_000
        one, two = account(tier, "a"), account(tier, "b")
        large, small = shelf_of(tier, "a", one), shelf_of(tier, "b", two)
        for n in range(60):
            fill(large, "GET", n, reply=KB)
        for n in range(20):
            fill(small, "GET", n, reply=KB)
        assert tier.common.used <= 100_000
        assert (two.evicted, small.entries) == (0, 20), "it is the smaller one, though it came last"
        assert one.evicted + large.entries == 60
        adds_up(tier)

    def test_keeps_to_its_number_of_entries(self) -> None:
        tier = make(max_entries=20)[0]
        one, two = account(tier, "a"), account(tier, "b")
        shelves = [tier.shelves["home"], shelf_of(tier, "a", one), shelf_of(tier, "b", two)]
        for n in range(90):
            fill(shelves[n % 3], "GET", n)
            assert tier.common.entries <= 20
        assert sum(owner.evicted for owner in tier.accounts) == 90 - tier.entries
        adds_up(tier)

    def test_too_small_for_anything(self, tier: Tier) -> None:
        one = account(tier, "a", 1)
        shelf = shelf_of(tier, "a", one)
        fill(shelf, "GET", "k")
        assert (one.used, one.entries) == (0, 0)
        adds_up(tier)


class TestCounters:
    def test_are_of_the_account(self, tier: Tier) -> None:
        one, two = account(tier, "a"), account(tier, "b", 100_000)
        shelf, other, bare = shelf_of(tier, "a", one), shelf_of(tier, "b", two), tier.shelves["home"]
        for each in (shelf, shelf, other):
            fill(each, "GET", f"k{each.entries}")
        assert [owner.fills for owner in tier.accounts] == [0, 2, 1]
        shelf.pushed(push(b"a:k0"))
        assert [owner.invalidated for owner in tier.accounts] == [0, 1, 0]
        assert [owner.pushes for owner in tier.accounts] == [0, 1, 0]
        tier.drop(marks([key_frame(b"b:k0")]))
        assert [owner.overwritten for owner in tier.accounts] == [0, 0, 1]
        assert [owner.entries for owner in tier.accounts] == [0, 1, 0]
        fill(bare, "GET", "k", lifetime=1.0)
        assert isinstance(tier.clock, Clock)
        tier.clock.now += 2.0
        bare.vouch(tier.clock())
        assert [owner.expired for owner in tier.accounts] == [1, 0, 0]
        adds_up(tier)

    def test_of_hits_are_added_up_by_who_answers(self, tier: Tier) -> None:
        one = account(tier)
        assert one.hits == 0
        one.count_hits = lambda: 7
        assert (one.hits, tier.main.hits) == (7, 0)

    def test_of_two_shelves_of_one_account(self, tier: Tier) -> None:
        one = account(tier)
        first, second = shelf_of(tier, "db0", one), shelf_of(tier, "db1", one)
        fill(first, "GET", "k", reply=KB)
        fill(second, "GET", "k")
        assert (one.entries, one.used, one.fills) == (2, first.bytes + second.bytes, 2)
        tier.drop(marks([key_frame(b"ns:k")]))
        assert (one.entries, one.used, one.overwritten) == (0, 0, 2)


class TestShelvesThatGo:
    def test_leave_nothing_behind(self, tier: Tier) -> None:
        one = account(tier, max_memory=100_000)
        shelf, stays = shelf_of(tier, "db0", one), shelf_of(tier, "db1", one)
        fill(shelf, "GET", "k", reply=KB)
        fill(stays, "GET", "k")
        assert tier.views(b"ns:") == [tier.shelves["home"], shelf, stays]
        tier.discard("db0")
        assert one.shelves == [stays] and shelf.bytes == 0
        assert tier.views(b"ns:") == [tier.shelves["home"], stays]
        assert one.used == one.budget.used == stays.bytes
        adds_up(tier)
        assert tier.drop(marks([key_frame(b"ns:k")])) == 1, "the one that is left"
        tier.discard("db0")
        adds_up(tier)

    def test_and_come_again_are_others(self, tier: Tier) -> None:
        one = account(tier)
        shelf = shelf_of(tier, "db0", one)
        fill(shelf, "GET", "k")
        tier.discard("db0")
        again = shelf_of(tier, "db0", one)
        assert again is not shelf and again.entries == 0 and one.shelves == [again]
        fill(again, "GET", "k")
        assert tier.drop(marks([key_frame(b"ns:k")])) == 1
        adds_up(tier)

    def test_cleared_by_their_account(self, tier: Tier) -> None:
        one = account(tier)
        shelf, bare = shelf_of(tier, "a", one), tier.shelves["home"]
        for each in (shelf, bare):
            fill(each, "GET", "k")
        assert one.clear() == 1
        assert (shelf.entries, bare.entries) == (0, 1)
        adds_up(tier)


class TestWrites:
    """A write is dropped by the key Redis knows, in every shelf that may show it."""

    def test_of_the_real_key_drop_everywhere(self, tier: Tier) -> None:
        shelf, bare = shelf_of(tier, "ns", account(tier)), tier.shelves["home"]
        fill(shelf, "GET", "k")
        fill(bare, "GET", "ns:k")
        fill(bare, "GET", "k")
        assert tier.drop(marks([key_frame(b"ns:k")])) == 2
        assert not has(shelf, "GET", "k") and has(bare, "GET", "k")
        adds_up(tier)

    def test_of_the_bare_key_drop_nothing_in_the_namespace(self, tier: Tier) -> None:
        shelf = shelf_of(tier, "ns", account(tier))
        fill(shelf, "GET", "k")
        assert tier.drop(marks([key_frame(b"k")])) == 0
        assert has(shelf, "GET", "k")

    @pytest.mark.parametrize("prefix", [b"", b"ns:"])
    def test_look_into_the_shelves_that_may_show_the_key(self, tier: Tier, prefix: bytes) -> None:
        """Those of the namespace, whoever's they are, and those without one."""
        twin, other = shelf_of(tier, "twin", account(tier)), shelf_of(tier, "other", account(tier, "other"))
        shelf, bare = shelf_of(tier, "ns", account(tier)), tier.shelves["home"]
        for each in (shelf, twin, other):
            fill(each, "GET", "k")
        fill(bare, "GET", "ns:k")
        assert tier.drop(marks([key_frame(b"ns:k")]), prefix) == 3
        assert has(other, "GET", "k")
        late = shelf_of(tier, "late", account(tier))
        fill(late, "GET", "k")
        assert tier.drop(marks([key_frame(b"ns:k")]), prefix) == 1, "of a shelf that came later"
        tier.discard("late")
        assert tier.drop(marks([key_frame(b"ns:k")]), prefix) == 0
        adds_up(tier)

    def test_everything_of_a_namespace(self, tier: Tier) -> None:
        other, shelf = shelf_of(tier, "other", account(tier, "other")), shelf_of(tier, "ns", account(tier))
        bare = tier.shelves["home"]
        for each in (shelf, other, bare):
            fill(each, "GET", "k")
        assert tier.clear(b"ns:") == 2
        assert has(other, "GET", "k") and not has(shelf, "GET", "k") and not has(bare, "GET", "k")
        assert tier.clear() == 1

    def test_matter_to_nobody_while_nothing_is_kept(self, tier: Tier) -> None:
        tier.discard("home")
        assert not tier.shows(b"ns:") and not tier.shows(b"")
        shelf = shelf_of(tier, "ns", account(tier))
        assert not tier.shows(b"ns:")
        fill(shelf, "GET", "k")
        assert tier.shows(b"ns:") and tier.shows(b"") and not tier.shows(b"other:")


class TestPushes:
    def test_of_the_prefixed_key_drop_the_entry(self, tier: Tier) -> None:
        shelf = shelf_of(tier, "ns", account(tier))
        for call in (("GET", "k"), ("STRLEN", "k"), ("EXISTS", "a", "k"), ("GETRANGE", "k", "0", "5")):
            fill(shelf, *call)
        shelf.pushed(push(b"other", b"ns:k"))
        assert (shelf.entries, shelf.index, shelf.account.invalidated) == (0, {}, 4)
        adds_up(tier)

    @pytest.mark.parametrize("key", [b"k", b"ns:ns:k", b"ns:", b"other:k", b"ns:K"])
    def test_of_any_other_key_do_not(self, tier: Tier, key: bytes) -> None:
        shelf = shelf_of(tier, "ns", account(tier))
        fill(shelf, "GET", "k")
        shelf.pushed(push(key))
        assert has(shelf, "GET", "k")

    @pytest.mark.parametrize("key", [b"k", b"", b"\r\n", b"a\r\nb", b"$1\r\nx\r\n", b"\xff\x00*", b"x" * 300, b"x" * 252, b"x" * 253, b"ns:k"])
    def test_whatever_the_key_looks_like(self, tier: Tier, key: bytes) -> None:
        shelf = shelf_of(tier, "ns", account(tier))
        for keys in ((key,), (b"other", key), (key, b"other")):
            fill(shelf, "GET", key)
            fill(shelf, "GET", "stays")
            shelf.pushed(push(*[b"ns:" + each for each in keys]))
            assert not has(shelf, "GET", key) and has(shelf, "GET", "stays")
            shelf.clear()

    def test_taint_flights_by_the_real_key(self, tier: Tier) -> None:
        shelf = shelf_of(tier, "ns", account(tier))
        for key, tainted in ((b"k", False), (b"ns:k", True)):
            read = shelf.rules.read(part("GET", "k"))
            assert read is not None
            flight = shelf.open(read)
            assert flight is not None
            shelf.pushed(push(key))
            assert flight.tainted is tainted
            shelf.land(flight, b"$1\r\nv\r\n", 9.0)
            assert has(shelf, "GET", "k") is not tainted
            shelf.clear()

    def test_in_bcast_a_fetch_drops_what_else_shows_its_key(self, tier: Tier) -> None:
        shelf = shelf_of(tier, "ns", account(tier), Mode.BCAST)
        fill(shelf, "STRLEN", "k")
        fill(shelf, "GET", "k")
        assert not has(shelf, "STRLEN", "k") and has(shelf, "GET", "k")


class TestRulesInANamespace:
    RULES = rules()

    @pytest.mark.parametrize(
        ("call", "request_", "keys"),
        [
            (("GET", "k"), ("GET", "ns:k"), [b"ns:k"]),
            (("get", ""), ("get", "ns:"), [b"ns:"]),
            (("HGET", "h", "h"), ("HGET", "ns:h", "h"), [b"ns:h"]),
            (("GETRANGE", "k", "0", "1"), ("GETRANGE", "ns:k", "0", "1"), [b"ns:k"]),
            (("EXISTS", "a", "b", "a"), ("EXISTS", "ns:a", "ns:b", "ns:a"), [b"ns:a", b"ns:b"]),
            (("ZUNION", "2", "a", "b", "WITHSCORES"), ("ZUNION", "2", "ns:a", "ns:b", "WITHSCORES"), [b"ns:a", b"ns:b"]),
            (("ZRANGE", "z", "0", "-1", "REV"), ("ZRANGE", "ns:z", "0", "-1", "REV"), [b"ns:z"]),
            (("GEORADIUS_RO", "k", "1", "2", "3", "m"), ("GEORADIUS_RO", "ns:k", "1", "2", "3", "m"), [b"ns:k"]),
            (("GET", b"\r\n*"), ("GET", b"ns:\r\n*"), [b"ns:\r\n*"]),
            (("GET", "x" * 300), ("GET", "ns:" + "x" * 300), [b"ns:" + b"x" * 300]),
        ],
    )
    def test_reads(self, call: tuple[str, ...], request_: tuple[str, ...], keys: list[bytes]) -> None:
        """Looked up as the client writes them, fetched and indexed as Redis knows them."""
        for _ in range(2):  # judged, and remembered
            read = self.RULES.read(part(*call))
            assert read is not None
            assert read.part == part(*call)
            assert read.request == encode.request(*request_)
            assert read.keys == tuple(map(key_frame, keys))
            assert self.RULES.part_marks(part(*call)) == marks(map(key_frame, keys))

    def test_members_of_mget(self) -> None:
        read, bare = self.RULES.member(key_frame(b"k")), rules("").member(key_frame(b"k"))
        assert (read.part, read.request, read.keys) == (part("GET", "k"), encode.request("GET", "ns:k"), (key_frame(b"ns:k"),))
        assert (bare.part, bare.request, bare.keys) == (part("GET", "k"), encode.request("GET", "k"), (key_frame(b"k"),))

    @pytest.mark.parametrize("call", [("SET", "k", "v"), ("SRANDMEMBER", "k"), ("SORT_RO", "k"), ("SCAN", "0"), ("KEYS", "*"), ("ZUNION", "5", "a"), ("NOSUCH", "k")])
    def test_not_kept(self, call: tuple[str, ...]) -> None:
        assert self.RULES.read(part(*call)) is None
        assert self.RULES.part_marks(part(*call)) == []

    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from(["GET", "EXISTS", "HGET", "SINTER", "LRANGE", "ZSCORE", "ZDIFF", "strlen", "GeT"]), st.lists(st.binary(max_size=6) | st.sampled_from([b"1", b"2", b"ns:k"]), min_size=1, max_size=5))
    def test_marks_are_those_of_pushes_of_real_keys(self, name: str, rest: list[bytes]) -> None:
        """Whatever is kept is dropped by a push of each key that Redis was asked for."""
        found = self.RULES.read(part(name, *rest))
        if found is None:
            return
        request = PARSER.parse(found.request, 0)
        assert request is not None and request.canonical and request.end == len(found.request)
        command = TABLE.find(request.arguments[0])
        assert command is not None
        uses = key_positions(command, request.arguments)
        assert uses is not None
        real = [request.arguments[use.index] for use in uses]
        assert real and all(key.startswith(b"ns:") for key in real)
        assert set(self.RULES.part_marks(found.part)) == set(marks(map(key_frame, real)))


class TestFlights:
    @pytest.mark.parametrize(("mode", "head"), [(Mode.OPTIN, CACHING), (Mode.DEFAULT, b""), (Mode.BCAST, b"")])
    def test_ask_for_the_prefixed_keys(self, tier: Tier, mode: Mode, head: bytes) -> None:
        shelf = shelf_of(tier, "ns", account(tier), mode)
        read = shelf.rules.read(part("EXISTS", "a", "b"))
        assert read is not None
        flight = shelf.open(read)
        assert flight is not None
        questions = [head + encode.request("PTTL", key) for key in ("ns:a", "ns:b")]
        assert flight.request == b"".join(questions) + encode.request("EXISTS", "ns:a", "ns:b")

    def test_of_two_namespaces_are_two(self, tier: Tier) -> None:
        one, two = shelf_of(tier, "a", account(tier, "a")), shelf_of(tier, "b", account(tier, "b"))
        for shelf, value in ((one, b"$1\r\na\r\n"), (two, b"$1\r\nb\r\n")):
            fill(shelf, "GET", "k", reply=value)
        assert one.table(2).find(part("GET", "k")) == b"$1\r\na\r\n"
        assert two.table(2).find(part("GET", "k")) == b"$1\r\nb\r\n"
        tier.drop(marks([key_frame(b"a:k")]))
        assert (one.entries, two.entries) == (0, 1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["fill", "big", "push", "drop", "lost", "discard", "clear"]), st.integers(0, 5), st.integers(0, 12)), max_size=40))
def test_bytes_and_entries_add_up_whatever_happens(script: list[tuple[str, int, int]]) -> None:
    tier = make(max_memory=60_000, max_entries=25)[0]
    own, common = account(tier, "a", 20_000), account(tier, "b")
    owners = [tier.main, own, own, common, common, tier.main]
    for what, place, key in script:
        shelf = shelf_of(tier, f"link{place}", owners[place]) if f"link{place}" not in tier.shelves else tier.shelves[f"link{place}"]
        real = shelf.rules.prefix + b"%d" % key
        if what in ("fill", "big") and not has(shelf, "GET", key):
            fill(shelf, "GET", key, reply=KB * (12 if what == "big" else 1))
        elif what == "push":
            shelf.pushed(push(real))
        elif what == "drop":
            tier.drop(marks([key_frame(real)]), shelf.rules.prefix)
            assert not any(has(each, "GET", key) for each in shelf.account.shelves)
        elif what == "lost":
            shelf.link_lost()
        elif what == "discard":
            tier.discard(f"link{place}")
        elif what == "clear":
            shelf.account.clear()
        adds_up(tier)
        assert not any(owner.budget.full for owner in tier.accounts)
