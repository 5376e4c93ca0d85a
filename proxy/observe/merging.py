"""What several workers say of themselves, made one: /stats, /hotkeys, /readyz, /metrics.

Counts are added up, rates are computed anew from what they are of, and what is a judgement is that of the
worst worker; of quantiles, which cannot be added up, the greatest is shown. Replies are given by the worker's
number, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from proxy.client.combining import SINCE, WORST, by_key, earliest, worst
from proxy.observe.recommending import Situation, recommend
from proxy.observe.stats import percent

Parts = Mapping[int, dict[str, Any]]

_LARGEST = frozenset({"p50", "p99", "uptime_seconds", "number", "reloads", "breaker_failures"})
"""Figures of which the greatest is shown."""
_ALL = frozenset({"ready", "redis_connected", "up", "alive", "told_others"})
"""What is true if it is true of all."""


def stats(parts: Parts, situations: Parts) -> dict[str, Any]:
    """/stats of all. `situations`: what each goes by for its recommendation."""
    found: dict[str, Any] = _merged(list(parts.values()))
    _recompute(found)
    found["upstream"]["status"] = worst("upstream", [each["upstream"]["status"] for each in parts.values()])
    found["reasons"] = reasons({number: each["reasons"] for number, each in parts.items()})
    found["recommendation"] = recommend(_situation(list(situations.values())))
    busiest = max(parts.values(), key=lambda each: each["total_reads"])
    n = len(parts)
    found["curve"] = [point | {"bytes": point["bytes"] * n} for point in busiest["curve"]]
    found["advice"] = [
        {"worker": number, **advice} for number, each in parts.items() for advice in each["advice"]
    ]
    return found


def _situation(found: list[dict[str, Any]]) -> Situation:
    names = dict.fromkeys(name for each in found for name in each)
    whole = {name: _value(name, [each[name] for each in found]) for name in names}
    for name in ("connected", "keeps"):
        whole[name] = all(each[name] for each in found)
    for name, of in (("why_not", "connected"), ("why_nothing", "keeps")):
        whole[name] = next((each[name] for each in found if not each[of]), "")
    return Situation(**whole)


def _merged(parts: list[Any]) -> Any:
    """Tables with the same fields, made one."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        tables = [value for value in values if isinstance(value, dict)]
        found[name] = _merged(tables) if tables else _value(name, values)
    return found


def _value(name: str, values: list[Any]) -> Any:
    values = [value for value in values if value is not None]
    if not values:
        return None
    first = values[0]
    if isinstance(first, bool):
        return all(values) if name in _ALL else any(values)
    if name in SINCE:
        return earliest(values)
    if isinstance(first, int | float):
        return max(values) if name in _LARGEST else round(sum(values), 3)
    if isinstance(first, str):
        return worst(name, values) if name in WORST else ", ".join(dict.fromkeys(values))
    return first


def _recompute(found: dict[str, Any]) -> None:
    """Put right what is a part of something, there and further down."""
    if "hit_rate_percent" in found:
        found["hit_rate_percent"] = percent(found["hits"], found["hits"] + found["misses"])
    for value in found.values():
        if isinstance(value, dict):
            _recompute(value)


def reasons(by_worker: Mapping[int, Iterable[str]]) -> list[str]:
    """Why something is so, with the worker of which that is said."""
    return [f"worker {number}: {reason}" for number, each in by_worker.items() for reason in each]


def readiness(parts: Parts) -> dict[str, Any]:
    """/readyz of all: ready if each is."""
    found: dict[str, Any] = _merged(list(parts.values()))
    found["reasons"] = reasons({number: each["reasons"] for number, each in parts.items()})
    found["why"] = "; ".join(found["reasons"])
    return found


def changed(parts: Parts) -> dict[str, Any]:
    """What POST /invalidate and /drain have done; what was asked for is the same for all."""
    found: dict[str, Any] = _merged(list(parts.values()))
    first = next(iter(parts.values()))
    return found | {name: first[name] for name in ("keys", "patterns", "draining") if name in first}


_ORDER: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[dict[str, Any]], float]]] = {
    "by_reads": (
        ("reads", "hits", "reads_per_second", "bytes_per_second"), ("bytes",),
        lambda line: float(line["reads_per_second"]),
    ),
    "by_bytes": (
        ("reads", "hits", "reads_per_second", "bytes_per_second"), ("bytes",),
        lambda line: float(line["bytes_per_second"]),
    ),
    "largest": (("reads",), ("bytes",), lambda line: float(line["bytes"])),
    "churning": (
        ("changes", "hits", "changes_per_second"), (), lambda line: float(line["changes"] - line["hits"])
    ),
}  # fmt: skip
"""For each list: what is added up for a key, of what the greatest is shown, and what comes first."""


def hotkeys(parts: Parts, n: int) -> dict[str, Any]:
    """/hotkeys of all, the `n` first of each list."""
    found = {}
    for name, (sums, largest, order) in _ORDER.items():
        lines = by_key([line for each in parts.values() for line in each[name]], "database", sums, largest)
        found[name] = sorted(lines, key=order, reverse=True)[:n]
    return found


# --- metrics

Sample = tuple[str, dict[str, str], float]

_COMBINE: Mapping[str, Callable[[float, float], float]] = {
    "sum": lambda one, other: one + other,
    "max": max,
    "min": min,
    "each": lambda one, other: one,
}


def families(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Metrics as data (see `metrics.as_data`) of all, each family merged as it says itself."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for family in part:
            known = found.setdefault(family["name"], {**family, "samples": {}})
            samples, combine = known["samples"], _COMBINE[family["merge"]]
            for name, labels, value in family["samples"]:
                about = (name, *sorted(labels.items()))
                before = samples.get(about)
                whole = value if before is None else combine(before[2], value)
                samples[about] = (name, labels, whole)
    return [{**family, "samples": list(family["samples"].values())} for family in found.values()]
