"""What is dropped all at once is out of sight at once, and freed a slice at a time."""

from __future__ import annotations

import asyncio

import pytest

from proxy.tier.waste import SLICE, Waste
from tests.tier.racing import Race
from tests.tier.shelves import consistent, fill, make, part


def heaps() -> list[list[int] | dict[int, int] | set[int]]:
    many = range(3 * SLICE + 1)
    return [list(many), dict.fromkeys(many, 0), set(many)]


def size(waste: Waste) -> int:
    return sum(map(len, waste._heaps))


@pytest.mark.parametrize("heap", heaps(), ids=["list", "dict", "set"])
def test_a_slice_is_freed_at_a_time(heap: list[int] | dict[int, int] | set[int]) -> None:
    waste = Waste()
    waste.on_more = int
    waste.take(heap)
    sizes = [size(waste)]
    while waste.give_back():
        sizes.append(size(waste))
    assert sizes == [3 * SLICE + 1, 2 * SLICE + 1, SLICE + 1, 1]
    assert not heap and size(waste) == 0


def test_who_frees_it_is_called_when_there_is_something_to_do() -> None:
    waste, calls = Waste(), []
    waste.on_more = lambda: calls.append(size(waste))
    waste.take(*heaps())
    waste.take(*heaps())
    assert calls == [3 * (3 * SLICE + 1)], "once: it goes on by itself"
    while waste.give_back():
        pass
    waste.take(heaps()[0])
    assert len(calls) == 2


def test_small_things_are_freed_at_once() -> None:
    waste = Waste()
    waste.on_more = lambda: pytest.fail("not worth it")
    waste.take([1], {1: 2}, {1}, list(range(SLICE)))
    assert size(waste) == 0


def test_without_anybody_to_do_it_all_is_freed_at_once() -> None:
    waste = Waste()
    waste.take(*heaps())
    assert size(waste) == 0


def test_a_shelf_is_empty_at_once_and_filled_again_before_the_old_is_freed() -> None:
    tier, shelf, clock = make(protocols=(2, 3))
    tier.waste.on_more = int
    find = shelf.table(2).find
    for n in range(2 * SLICE):
        fill(shelf, "EXISTS", n, f"other:{n}", reply=b":1\r\n")
    assert shelf.clear() == 4 * SLICE
    consistent(shelf)
    assert find(part("EXISTS", 1, "other:1")) is None
    assert (tier.used, tier.entries, shelf.index, shelf._several, shelf.deadlines.notes) == (0, 0, {}, {}, 0)
    fill(shelf, "EXISTS", 1, 2, reply=b":0\r\n", lifetime=10.0)
    assert size(tier.waste) > SLICE
    while tier.waste.give_back():
        consistent(shelf)
    assert find(part("EXISTS", 1, 2)) == b":0\r\n", "a session's look-up is bound once"
    assert list(shelf.table(2).replies.values()) == list(shelf.table(3).replies.values()) == [b":0\r\n"]
    clock.now += 10.0
    shelf.vouch(clock.now)
    assert tier.entries == 0


async def test_a_sidecar_frees_it_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(monkeypatch)
    waste, turns, freed = race.tier.waste, 0, []
    give_back = waste.give_back

    def noted() -> bool:
        more = give_back()
        freed.append((turns, len(heap)))
        return more

    monkeypatch.setattr(waste, "give_back", noted)
    for _ in range(2):  # it begins again by itself
        waste.take(heap := list(range(20 * SLICE)))
        while heap:
            await asyncio.sleep(0)
            turns += 1
        assert [left for _, left in freed] == list(range(19 * SLICE, -1, -SLICE))
        assert len({turn for turn, _ in freed}) == 20, "others have their turns in between"
        assert size(waste) == 0
        freed.clear()
    await race.close()
