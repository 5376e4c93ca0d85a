"""What is held so that its next read is seen is answered from memory all the same, however it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.resp.encode import request as R
from proxy.tier import reuse, sampling
from proxy.tier.rules import GET, key_frame
from tests.client.linked import Client, turn
from tests.tier.racing import Race

KEYS = ("k:1", "k:2", "k*3")


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    """Every read is watched."""
    monkeypatch.setattr(sampling, "FIRST", 1)
    monkeypatch.setattr(sampling, "GAP", 1)
    monkeypatch.setattr(sampling, "RATE", 1e9)
    for module in (reuse, sampling):
        monkeypatch.setattr(module, "randrange", lambda stop: 0)
    race = Race(monkeypatch)
    for key in KEYS:
        race.redis.direct("SET", key, "v")
    yield race


async def warm(race: Race) -> Client:
    """A client whose reads are in memory, all of them held."""
    client = await race.ready(protocol=2)
    for key in KEYS:
        await race.ask(client, "GET", key)
    hold(race, client)
    return client


def hold(race: Race, client: Client) -> None:
    table = race.shelf(client).table(2)
    for key in KEYS:
        part = GET + key_frame(key.encode())
        if part not in table.held:
            race.shelf(client).reuse.missed([part])
        assert part in table.held, key


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (R("GET", "k:1"), b"$1\r\nv\r\n"),
        (R("GET", "k*3"), b"$1\r\nv\r\n"),
        (R("GET", "k:1") + R("GET", "k:2"), b"$1\r\nv\r\n" * 2),
        (R("GET", "k:1") * 16, b"$1\r\nv\r\n" * 16),
        (R("MGET", "k:1", "k:2"), b"*2\r\n$1\r\nv\r\n$1\r\nv\r\n"),
        (R("GET", "k:1") + R("MGET", "k:1", "k:2"), b"$1\r\nv\r\n*2\r\n$1\r\nv\r\n$1\r\nv\r\n"),
    ],
    ids=["one", "a star in its key", "a pipeline", "a pipeline of one key", "MGET", "MGET in a pipeline"],
)  # fmt: skip
async def test_is_answered_from_memory(race: Race, request_: bytes, reply: bytes) -> None:
    client = await warm(race)
    for _ in range(3):
        hold(race, client)
        misses = race.shelf(client).account.misses
        client.transport.written.clear()
        client.feed(request_)
        await turn()
        assert b"".join(client.transport.written) == reply
        assert race.shelf(client).account.misses == misses
