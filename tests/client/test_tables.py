"""Whose table is of use: sessions count as its users from when they come to when they leave, or speak otherwise."""

from __future__ import annotations

import pytest

from tests.tier.racing import Race


def users(race: Race) -> dict[int, int]:
    (shelf,) = race.tier.shelves.values()
    return {protocol: table.users for protocol, table in shelf.tables.items()}


async def test_by_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(monkeypatch)
    two, three = await race.ready(), await race.ready(protocol=3)
    assert users(race) == {2: 1, 3: 1}, "every connection begins in RESP2, and does not count as such later"
    await race.ask(two, "HELLO", 3)
    assert users(race) == {2: 0, 3: 2}
    await race.ask(three, "SIDECAR", "BYPASS", "ON")
    assert users(race) == {2: 0, 3: 1}
    await race.ask(three, "SIDECAR", "BYPASS", "OFF")
    await race.ask(two, "RESET")
    assert users(race) == {2: 1, 3: 1}
    for client in (two, three):
        client.leave()
    await race.settle()
    assert users(race) == {2: 0, 3: 0}
    await race.close()
