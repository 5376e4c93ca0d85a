"""Replies of several workers, made one."""

from __future__ import annotations

from typing import Any

from proxy.client import combining


def flat(**fields: Any) -> list[Any]:
    """As RESP2 has a map."""
    return [part for name, value in fields.items() for part in (name.encode(), value)]


def encoded(**fields: Any) -> dict[bytes, Any]:
    """As RESP3 has it."""
    return {name.encode(): value for name, value in fields.items()}


class TestStats:
    def test_counts_are_added_and_rates_computed_anew(self) -> None:
        one = encoded(tier_hits=3, tier_misses=1, tier_fills=1, tier_pushes=1, tier_hit_rate=b"0.7500",
                      tier_pushes_per_fill=b"1.000")  # fmt: skip
        two = flat(tier_hits=0, tier_misses=4, tier_fills=3, tier_pushes=1, tier_hit_rate=b"0.0000",
                   tier_pushes_per_fill=b"0.333")  # fmt: skip
        found = combining.stats([b"STATS"], {2: two, 1: one})
        assert found == {
            "tier_hits": 3, "tier_misses": 5, "tier_fills": 4, "tier_pushes": 2, "tier_hit_rate": "0.3750",
            "tier_pushes_per_fill": "0.500", "workers": "1,2",
        }  # fmt: skip

    def test_judgements_are_the_worst(self) -> None:
        one = encoded(serving=b"fresh", breaker=b"closed", stale_since=0, warm_ready=1, tracking=b"default",
                      invalidation_lag_p99_us=5, warm_seconds=b"9.5")  # fmt: skip
        two = encoded(serving=b"stale", breaker=b"open", stale_since=7, warm_ready=0, tracking=b"bcast",
                      invalidation_lag_p99_us=9, warm_seconds=b"10.1")  # fmt: skip
        assert combining.stats([b"STATS"], {1: one, 2: two}) == {
            "serving": "stale", "breaker": "open", "stale_since": 7, "warm_ready": 0, "tracking": "default, bcast",
            "invalidation_lag_p99_us": 9, "warm_seconds": "10.1", "workers": "1,2",
        }  # fmt: skip


def test_health_is_that_of_the_worst_which_is_named() -> None:
    one = encoded(alive=b"yes", ready=b"yes", upstream=b"up", draining=b"no", why=b"")
    two = encoded(alive=b"yes", ready=b"no", upstream=b"down", draining=b"yes", why=b"away")
    assert combining.health([b"HEALTH"], {1: one, 2: two}) == {
        "alive": "yes", "ready": "no", "upstream": "down", "draining": "yes", "why": "worker 2: away",
    }  # fmt: skip


class TestKeys:
    def test_one_line_for_each_key(self) -> None:
        def line(key: bytes, rate: bytes, **more: Any) -> list[Any]:
            return flat(key=key, command=b"GET", reads=2, hits=1, reads_per_second=rate, size=5,
                        bytes_per_second=7, **more)  # fmt: skip

        found = combining.hot(
            [b"HOTKEYS", b"2"],
            {1: [line(b"a", b"1.0"), line(b"b", b"0.7")], 2: [line(b"b", b"0.6"), line(b"a", b"0.1", db=1)]},
        )
        assert [(each["key"], each["reads"], each["reads_per_second"]) for each in found] == [  # type: ignore[attr-defined]
            ("b", 4, "1.3"), ("a", 2, "1.0"),
        ]  # fmt: skip
        assert found[0]["size"] == 5 and found[0]["bytes_per_second"] == 14  # type: ignore[index]

    def test_hidden_ones_stay_apart(self) -> None:
        line = flat(command=b"GET", size=5, hits=1)
        assert len(combining.big([b"BIGKEYS"], {1: [line], 2: [line]})) == 2  # type: ignore[arg-type]

    def test_reads_of_one_key_stay_apart_where_replies_are_listed(self) -> None:
        lines = [flat(key=b"h", command=command, size=5, hits=1) for command in (b"HGETALL", b"HLEN")]
        found = combining.big([b"BIGKEYS"], {1: lines, 2: lines})
        assert [(each["command"], each["hits"]) for each in found] == [("HGETALL", 2), ("HLEN", 2)]  # type: ignore[attr-defined]

    def test_more_is_asked_for_than_is_shown(self) -> None:
        assert combining.more([b"HOTKEYS"]) == [b"HOTKEYS", b"90"]
        assert combining.more([b"HOTKEYS", b"100", b"BYTES"]) == [b"HOTKEYS", b"450", b"BYTES"]
        assert combining.more([b"HOTKEYS", b"BYTES"]) == [b"HOTKEYS", b"90", b"BYTES"]
        assert combining.more([b"CHURN", b"1000"]) == [b"CHURN", b"1000"]
        for wrong in ([b"CHURN", b"0"], [b"CHURN", b"1001"], [b"HOTKEYS", b"1", b"BYTES", b"x"]):
            assert combining.more(wrong) == wrong, "it is refused"


def test_slow_commands_come_by_time_and_say_who_saw_them() -> None:
    one = [flat(id=1, time=30, name=b"\xff"), flat(id=0, time=10, name=b"")]
    two = [flat(id=0, time=20, name=b"")]
    found: Any = combining.slowlog([b"SLOWLOG", b"GET", b"2"], {1: one, 2: two})
    assert [(line["time"], line["worker"]) for line in found] == [(30, 1), (20, 2)]
    assert found[0]["name"] == b"\xff"
    assert len(combining.slowlog([b"SLOWLOG", b"GET", b"-1"], {1: one, 2: two})) == 3  # type: ignore[arg-type]
    assert combining.slowlog([b"SLOWLOG", b"LEN"], {1: 4, 2: 5}) == 9


def test_rules_are_counted_where_they_are_the_same() -> None:
    one = [flat(rule=1, match=b"a", fills=2), flat(rule=b"default", match=b"*", fills=1)]
    other = [flat(rule=1, match=b"b", fills=9), flat(rule=b"default", match=b"*", fills=9)]
    found: Any = combining.rules([b"RULES"], {1: one, 2: one, 3: other})
    assert [line["fills"] for line in found] == [4, 2]


def test_a_key_is_warm_where_all_have_it() -> None:
    def reply(warmed: int, seconds: bytes, reasons: list[Any]) -> list[Any]:
        return flat(warmed=warmed, of=10, seconds=seconds, not_kept=10 - warmed, failed=0, reasons=reasons)

    found = combining.warmed(
        [b"WARM"], {1: reply(10, b"0.9", []), 2: reply(7, b"0.1", [b"memory is full", 3])}
    )
    assert found == {
        "warmed": 7, "of": 10, "seconds": "0.9", "not_kept": 3, "failed": 0, "reasons": {"memory is full": 3},
    }  # fmt: skip
