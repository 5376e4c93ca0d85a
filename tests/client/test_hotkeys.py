"""What is read most, what is largest, what changes too often: found without a socket, on shelves filled by hand."""

from __future__ import annotations

import pytest

from proxy.client.hotkeys import ChurningKey, HotKey, big_keys, churning_keys, hot_keys
from proxy.client.scope import Name, Scope, Seen
from proxy.privacy import KeyPrivacy, Privacy
from proxy.resp.namespace import Namespace
from proxy.tier.policy import CacheRule
from proxy.tier.rules import Rules, key_frame
from proxy.tier.shelf import Shelf
from tests.tier.shelves import TABLE, fill, make, obey, part

SECONDS = 10


def bulk(size: int) -> bytes:
    """A reply of so many bytes."""
    return next(
        reply for body in range(size) if len(reply := b"$%d\r\n%b\r\n" % (body, b"x" * body)) == size
    )


class House:
    """A tier with a shelf of no namespace; ten seconds have passed."""

    def __init__(self, protocols: tuple[int, ...] = (2,)) -> None:
        self.tier, self.shelf, self.clock = make(protocols=protocols)
        self.clock.now += SECONDS
        self.shelves = [self.shelf]

    def namespace(self, name: str) -> Shelf:
        rules = Rules(TABLE, Namespace(name, False, TABLE, "pannier:evict:"))
        shelf = self.tier.shelf(name, self.tier.account(rules))
        shelf.table(2)
        shelf.link_up(self.shelf.mode)
        shelf.traffic._began -= SECONDS
        self.shelves.append(shelf)
        return shelf

    def view(self, *shelves: Shelf, bare: bool = False, how: KeyPrivacy = KeyPrivacy.PLAIN) -> Scope:
        names = {id(each): each.rules.namespace.name if each.rules.namespace else "" for each in self.shelves}
        return Scope(tuple(Seen(each, names[id(each)], 0) for each in shelves or self.shelves), bare, Privacy(how, b"s"))


@pytest.fixture
def house() -> House:
    return House()


def hit(shelf: Shelf, times: int, *arguments: bytes | str | int, reply: bytes = b"$1\r\nv\r\n") -> None:
    """Have a read answered from memory so many times, a multiple of 17."""
    if not shelf.keeps(part(*arguments)):
        read = shelf.rules.read(part(*arguments))
        assert read is not None
        flight = shelf.open(read)
        assert flight is not None
        shelf.land(flight, reply, float("inf"))
    for _ in range(times // 17):
        shelf.table(2).log([part(*arguments)])


def change(shelf: Shelf, times: int, key: bytes) -> None:
    for _ in range(times):
        hit(shelf, 0, "GET", key)
        shelf.invalidate([key_frame(shelf.rules.prefix + key)])


class TestHotKeys:
    def test_the_most_read_come_first_with_their_rates(self, house: House) -> None:
        hit(house.shelf, 170, "GET", "user:1")
        hit(house.shelf, 340, "GET", "user:2", reply=bulk(1000))
        assert hot_keys(house.view(), 9) == [
            HotKey(Name("user:2", "user", "", 0), "GET", 340, 340, 34.0, 1000, 34_000.0),
            HotKey(Name("user:1", "user", "", 0), "GET", 170, 170, 17.0, 7, 119.0),
        ]
        assert len(hot_keys(house.view(), 1)) == 1

    def test_by_bytes(self, house: House) -> None:
        hit(house.shelf, 3400, "GET", "small")
        hit(house.shelf, 34, "GET", "big", reply=bulk(100_000))
        assert [each.name.key for each in hot_keys(house.view(), 9)] == ["small", "big"]
        assert [each.name.key for each in hot_keys(house.view(), 1, by_bytes=True)] == ["big"]

    def test_misses_count_as_well(self, house: House) -> None:
        for _ in range(1000):
            house.shelf.admits(part("GET", "never:kept"))
        [found] = hot_keys(house.view(), 9)
        assert found.name.key == "never:kept" and (found.hits, found.size) == (0, 0)
        assert found.rate == pytest.approx(100, rel=0.3)

    def test_reads_of_one_key_are_added_up(self, house: House) -> None:
        hit(house.shelf, 170, "HGET", "h", "one")
        hit(house.shelf, 34, "HGETALL", "h", reply=b"%0\r\n")
        [found] = hot_keys(house.view(), 9)
        assert (found.command, found.reads) == ("HGET", 204)

    def test_a_read_of_several_keys_is_one_of_each(self, house: House) -> None:
        hit(house.shelf, 17, "SINTER", "s:1", "s:2", reply=b"~0\r\n")
        assert {(each.name.key, each.reads) for each in hot_keys(house.view(), 9)} == {("s:1", 17), ("s:2", 17)}

    def test_both_protocols_are_one(self) -> None:
        house = House((2, 3))
        hit(house.shelf, 17, "GET", "a")
        house.shelf.table(3).log([part("GET", "a")])
        [found] = hot_keys(house.view(), 9)
        assert (found.reads, found.size) == (34, 14)

    def test_nothing_was_read(self, house: House) -> None:
        assert hot_keys(house.view(), 9) == []


class TestNamespaces:
    def test_a_namespace_knows_no_prefix(self, house: House) -> None:
        tenant = house.namespace("acme")
        hit(tenant, 17, "GET", "user:1")
        hit(house.shelf, 17, "GET", "other")
        assert [each.name for each in hot_keys(house.view(tenant, bare=True), 9)] == [Name("user:1", "user", "", 0)]
        assert {each.name for each in hot_keys(house.view(), 9)} == {Name("acme:user:1", "user", "acme", 0), Name("other", "other", "", 0)}

    async def test_nor_do_its_other_lists(self, house: House) -> None:
        tenant = house.namespace("acme")
        change(tenant, 9, b"user:1")
        hit(tenant, 17, "GET", "user:2")
        view = house.view(tenant, bare=True)
        assert [each.name.key for each in churning_keys(view, 9)] == ["user:1"]
        assert [each.name.key for each in await big_keys(view, 9)] == ["user:2"]
        assert [each.name.key for each in await big_keys(house.view(), 9)] == ["acme:user:2"]


class TestBigKeys:
    async def test_the_largest_first(self, house: House) -> None:
        for n in range(5):
            hit(house.shelf, 17 * n, "GET", n, reply=bulk(100 * (n + 1)))
        found = await big_keys(house.view(), 2)
        assert [(each.name.key, each.command, each.size, each.reads) for each in found] == [("4", "GET", 500, 68), ("3", "GET", 400, 51)]

    async def test_what_both_protocols_keep_is_one(self) -> None:
        house = House((2, 3))
        hit(house.shelf, 0, "GET", "a", reply=bulk(100))
        [found] = await big_keys(house.view(), 9)
        assert found.size == 200

    async def test_more_than_a_slice(self, house: House) -> None:
        for n in range(10_000):
            fill(house.shelf, "GET", n, reply=bulk(50) if n % 900 else bulk(999))
        assert [each.size for each in await big_keys(house.view(), 30)] == [999] * 12 + [50] * 18


class TestChurningKeys:
    def test_what_changes_more_often_than_it_is_hit(self, house: House) -> None:
        change(house.shelf, 20, b"counter")
        change(house.shelf, 20, b"useful")
        hit(house.shelf, 340, "GET", "useful")
        assert churning_keys(house.view(), 9) == [ChurningKey(Name("counter", "counter", "", 0), 20, 0, 2.0)]

    def test_its_hits_count_although_it_is_gone_when_they_are_looked_at(self, house: House) -> None:
        for _ in range(20):
            hit(house.shelf, 340, "GET", "useful")
            house.shelf.invalidate([key_frame(b"useful")])
        assert churning_keys(house.view(), 9) == []
        (found,) = hot_keys(house.view(), 9)
        assert found.hits == 20 * 340

    def test_a_few_changes_say_nothing(self, house: House) -> None:
        change(house.shelf, 3, b"counter")
        assert churning_keys(house.view(), 9) == []

    def test_the_worst_first(self, house: House) -> None:
        for n in range(5, 10):
            change(house.shelf, n, b"%d" % n)
        assert [each.name.key for each in churning_keys(house.view(), 3)] == ["9", "8", "7"]


class TestPrivacy:
    async def test_hashed(self, house: House) -> None:
        hit(house.shelf, 17, "GET", "alice@example.com")
        view = house.view(how=KeyPrivacy.HASHED)
        [hot], [big] = hot_keys(view, 9), await big_keys(view, 9)
        assert hot.name == big.name
        assert len(hot.name.key) == 12 and "alice" not in repr(hot), "the first part of a name is a part of it"

    def test_off(self, house: House) -> None:
        change(house.shelf, 9, b"alice@example.com")
        [found] = churning_keys(house.view(how=KeyPrivacy.OFF), 9)
        assert found.name == Name("", "", "", 0)

    def test_what_rules_call_a_class_is_no_secret(self, house: House) -> None:
        obey(house.tier, CacheRule((b"alice*",), label="people"))
        hit(house.shelf, 17, "GET", "alice@example.com")
        [found] = hot_keys(house.view(how=KeyPrivacy.OFF), 9)
        assert found.name == Name("", "people", "", 0)
