"""What several workers say over HTTP, made one."""

from __future__ import annotations

from typing import Any

from proxy.observe import merging
from proxy.observe.families import FAMILIES


def family(name: str, merge: str, *samples: tuple[str, dict[str, str], float]) -> dict[str, Any]:
    return {"name": name, "kind": "gauge", "help": "h", "merge": merge, "samples": list(samples)}


class TestMetrics:
    def test_each_family_is_merged_as_it_says(self) -> None:
        def part(value: float) -> list[dict[str, Any]]:
            return [family(how, how, (how, {"x": "1"}, value), (how, {"x": str(value)}, 1)) for how in ("sum", "max", "min")]

        found = {each["name"]: each["samples"] for each in merging.families([part(2), part(5)])}
        assert found["sum"] == [("sum", {"x": "1"}, 7), ("sum", {"x": "2"}, 1), ("sum", {"x": "5"}, 1)]
        assert found["max"][0][2] == 5 and found["min"][0][2] == 2

    def test_what_each_says_stands_side_by_side(self) -> None:
        one = [family("v", "each", ("v_info", {"mode": "default"}, 1))]
        two = [family("v", "each", ("v_info", {"mode": "off"}, 1))]
        (found,) = merging.families([one, two, one])
        assert found["samples"] == [("v_info", {"mode": "default"}, 1), ("v_info", {"mode": "off"}, 1)]

    def test_no_state_is_added_up(self) -> None:
        """What is 1 or 0, or the same in all workers."""
        found = {each.name: each.merge for each in FAMILIES if each.kind in ("gauge", "info") and each.merge != "sum"}
        assert found == {
            "pannier_certificate_expiry_timestamp_seconds": "min", "pannier_certificate_broken": "max",
            "pannier_upstream_state": "max", "pannier_breaker_open": "max", "pannier_tracking": "each",
            "pannier_bus_up": "min", "pannier_rules": "max", "pannier_rules_broken": "max",
            "pannier_build": "each", "pannier_ready": "min", "pannier_draining": "max",
            "pannier_serving_stale": "max",
        }  # fmt: skip
        ones = [each for each in FAMILIES if each.help.startswith(("1 ", "1:"))]
        assert ones and all(each.merge in ("min", "max") for each in ones)


def part(hits: int, misses: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hits": hits, "misses": misses, "total_reads": hits + misses, "hit_rate_percent": -1.0,
        "redis_connected": True, "version": "1", "ready": True, "reasons": [], "serving": "fresh",
        "draining": False, "latency": {"hit": {"count": hits, "p50": 0.1, "p99": hits / 10}},
        "upstream": {"status": "up", "breaker": "closed"}, "bus": None, "curve": [], "advice": [],
        "namespaces": {"": {"hits": hits, "misses": misses, "hit_rate_percent": -1.0}},
    }  # fmt: skip
    return found | more


def situation(connected: bool = True) -> dict[str, Any]:
    return {
        "connected": connected, "why_not": "" if connected else "gone", "keeps": True, "why_nothing": "", "mode": "cache",
        "hits": 900, "misses": 10, "fills": 1, "evicted": 0, "expired": 0, "changed": 0, "bytes": 1, "max_bytes": 100,
    }  # fmt: skip


class TestStats:
    def test_counts_rates_and_quantiles(self) -> None:
        found = merging.stats({1: part(30, 10), 2: part(10, 0)}, {1: situation(), 2: situation()})
        assert (found["hits"], found["total_reads"], found["hit_rate_percent"]) == (40, 50, 80.0)
        assert found["namespaces"][""] == {"hits": 40, "misses": 10, "hit_rate_percent": 80.0}
        assert found["latency"]["hit"] == {"count": 40, "p50": 0.1, "p99": 3.0}
        assert found["ready"] is True and found["version"] == "1" and found["bus"] is None
        assert found["recommendation"].startswith("Change nothing: 98.9 %")

    def test_what_is_wrong_with_one_is_wrong_with_all(self) -> None:
        broken = part(1, 0, ready=False, reasons=["away"], redis_connected=False, serving="stale",
                      upstream={"status": "down", "breaker": "open"})  # fmt: skip
        found = merging.stats({1: part(1, 0), 2: broken}, {1: situation(), 2: situation(connected=False)})
        assert found["ready"] is found["redis_connected"] is False
        assert found["reasons"] == ["worker 2: away"]
        assert (found["serving"], found["upstream"]) == ("stale", {"status": "down", "breaker": "open"})
        assert found["recommendation"] == "Look after Redis: it cannot be reached (gone)."

    def test_sizes_of_the_curve_are_those_of_all_memory(self) -> None:
        busy = part(100, 0, curve=[{"bytes": 10, "hit_rate_percent": 50.0}], advice=[{"what": "w"}])
        found = merging.stats({1: part(1, 0, curve=[{"bytes": 1, "hit_rate_percent": 1.0}]), 2: busy}, {1: situation()})
        assert found["curve"] == [{"bytes": 20, "hit_rate_percent": 50.0}]
        assert found["advice"] == [{"worker": 2, "what": "w"}]


def test_hot_keys_are_added_up_and_sorted_anew() -> None:
    def line(key: str, reads: int, **more: Any) -> dict[str, Any]:
        found = {"key": key, "class": None, "namespace": "", "database": 0, "command": "GET", "reads": reads, "hits": 1}
        return found | {"reads_per_second": reads / 2, "bytes": 3, "bytes_per_second": 1.0} | more

    def lists(*lines: dict[str, Any]) -> dict[str, Any]:
        return {"by_reads": list(lines), "by_bytes": [], "largest": list(lines), "churning": []}

    found = merging.hotkeys({1: lists(line("a", 5), line("b", 4)), 2: lists(line("b", 3), line("c", 1))}, 2)
    assert [(each["key"], each["reads"], each["reads_per_second"]) for each in found["by_reads"]] == [
        ("b", 7, 3.5), ("a", 5, 2.5),
    ]  # fmt: skip
    assert found["churning"] == []


def test_ready_if_all_are() -> None:
    one = {"ready": True, "reasons": [], "draining": False, "upstream": "up", "alive": True, "why": ""}
    two = one | {"ready": False, "reasons": ["away"], "upstream": "down"}
    assert merging.readiness({1: one, 2: two}) == {
        "ready": False, "reasons": ["worker 2: away"], "draining": False, "upstream": "down", "alive": True,
        "why": "worker 2: away",
    }  # fmt: skip


def test_since_when_is_the_first_moment_of_any() -> None:
    """A worker of which nothing is to be told says 0, which is no moment."""
    one, two = {"stale_since": 1_790_000_000, "breaker_since": 0}, {"stale_since": 1_780_000_000, "breaker_since": 7}
    assert merging.stats({1: part(1, 0, **one), 2: part(1, 0, **two), 3: part(1, 0, stale_since=0, breaker_since=0)},
                         {1: situation()}).items() >= {"stale_since": 1_780_000_000, "breaker_since": 7}.items()  # fmt: skip


def test_changes_are_counted_together() -> None:
    one = {"invalidated": 2, "keys": 3, "patterns": 0, "told_others": True}
    assert merging.changed({1: one, 2: one | {"told_others": False}}) == {
        "invalidated": 4, "keys": 3, "patterns": 0, "told_others": False,
    }  # fmt: skip
