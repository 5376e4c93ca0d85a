"""What sessions count: of a pipeline or MGET found in part, only what was found is a hit."""

from __future__ import annotations

import pytest

from proxy.resp.encode import request as R
from tests.tier.racing import Race

FOUND = [f"found:{n}" for n in range(6)]
GONE = [f"gone:{n}" for n in range(4)]


@pytest.mark.parametrize("how", ["a pipeline", "MGET"])
async def test_hits_are_of_the_classes_of_what_was_found(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    race = Race(monkeypatch)
    race.sidecar.tier.eager = True  # type: ignore[union-attr]
    for key in FOUND:
        race.redis.direct("SET", key, "v")
    client = await race.ready()
    for key in FOUND:
        await race.ask(client, "GET", key)
        assert race.hit(client, "GET", key)
    account = race.shelf(client).account
    account.settle()
    hits, misses = dict(account.classes.hits.by_class), dict(account.classes.misses.by_class)
    keys = [key for pair in zip(FOUND, GONE, strict=False) for key in pair] + FOUND[len(GONE) :]
    client.feed(b"".join([R("GET", key) for key in keys]) if how == "a pipeline" else R("MGET", *keys))
    await race.settle()
    assert client.take().count(b"$1\r\nv\r\n") == len(FOUND)
    account.settle()
    assert account.classes.hits.by_class["found"] == hits["found"] + len(FOUND)
    assert account.classes.hits.by_class["gone"] == 0
    assert account.classes.misses.by_class["gone"] == misses.get("gone", 0) + len(GONE)
    assert race.shelf(client).traffic.hits.count(R("GET", GONE[0])[1:]) == 0
