"""One sentence of advice, and why."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.observe.recommending import Situation, recommend

CALM: dict[str, Any] = {
    "connected": True, "why_not": "", "keeps": True, "why_nothing": "", "mode": "cache",
    "hits": 5000, "misses": 5000, "fills": 1000, "evicted": 0, "expired": 0, "changed": 0,
    "bytes": 1 << 20, "max_bytes": 64 << 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"connected": False, "why_not": "refused"}, "Look after Redis: it cannot be reached (refused)."),
        ({"keeps": False, "why_nothing": "no RESP3"}, "Have Redis tell of changes, as without that nothing is kept in memory (no RESP3)."),
        ({"mode": "observe"}, "Set mode to cache once you want reads answered from memory: with mode observe, INFO shows what memory would have saved."),
        ({"mode": "off"}, "Set mode to cache once you want reads answered from memory: with mode off, nothing is kept."),
        ({"hits": 500, "misses": 499}, "Wait: only 999 reads have been looked up, too few to say anything."),
        ({"hits": 9000, "misses": 1000}, "Change nothing: 90.0 % of the reads are answered from memory."),
        ({"bytes": 60 << 20, "evicted": 300}, "Raise max_memory (64mb): it is full, 300 of 1000 entries were dropped to make room, and 50.0 % of the reads are answered from it."),
        ({"changed": 600}, "Exclude keys that change often (a rule with cache = false): 600 of 1000 entries were dropped because their keys changed, after 5.0 hits each."),
        ({"expired": 600}, "Raise l1_ttl, or the keys' own time to live: 600 of 1000 entries ended by age, after 5.0 hits each."),
        ({}, "Nothing to change here: of 10000 reads 50.0 % were answered from memory, and 4000 of 5000 misses were of keys not read again soon, which memory cannot help."),
    ],
)  # fmt: skip
def test_advice(found: dict[str, Any], said: str) -> None:
    assert recommend(Situation(**{**CALM, **found})) == said


def test_what_is_broken_comes_first() -> None:
    broken = {"connected": False, "keeps": False, "mode": "off", "hits": 0, "misses": 0}
    assert recommend(Situation(**{**CALM, **broken})).startswith("Look after Redis")
