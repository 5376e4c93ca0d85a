"""The page's first tables: what a reader wants to know before the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.report import table

DEPTHS = (1, 4, 16, 64)


def median(row: dict[str, Any] | None, key: str) -> float | None:
    """A figure of a row of the JSON; None where there is none."""
    value = (row or {}).get(key)
    if isinstance(value, dict):
        return float(value["median"])
    return float(value) if isinstance(value, int | float) else None


def markdown(results: dict[str, Any]) -> list[str]:
    """Heads and tables, as far as the sections were measured."""
    parts: list[str] = []
    if section := results["sections"].get("commands"):
        text = "CPU of all that an operation takes, contender and Redis, as a ratio to Redis asked directly."
        parts += ["## In short", text, total_table(results, section)]
    return parts


def total_table(results: dict[str, Any], section: dict[str, Any]) -> str:
    """Total CPU over that of Redis direct: a line for each kind and depth, a column for each contender."""
    others = {name: each["title"] for name, each in results["contenders"].items() if name != "redis"}
    heads = ["what is sent", "P", "Redis direct, µs", *others.values()]
    return table(heads, _lines(section["rows"], list(others)))


def _lines(rows: dict[str, Any], others: list[str]) -> Iterator[list[str]]:
    for name, direct in rows.items():
        kind, depth, contender = name.split("/")
        if contender != "redis":
            continue
        found = [(rows.get(f"{kind}/{depth}/{other}") or {}).get("total_ratio") for other in others]
        least = min([ratio["median"] for ratio in found if ratio], default=0.0)
        cost = median(direct, "total_us") or 0.0
        yield [direct["workload"], depth, f"{cost:.2f}", *(_cell(ratio, least) for ratio in found)]


def _cell(ratio: dict[str, float] | None, least: float) -> str:
    """Median and range; the least of a line stands out."""
    if not ratio:
        return "–"
    shown = f"{ratio['median']:.2f}"
    shown = f"**{shown}**" if ratio["median"] == least else shown
    return f"{shown} ({ratio['min']:.2f}–{ratio['max']:.2f})"


def contenders_table(results: dict[str, Any]) -> str:
    """Who took part, in which version, started how; who did not, and why."""
    who = results["contenders"].values()
    lines = [[each["title"], each["version"], each["flags"] or "–"] for each in who]
    lines += [[*reason.split(": ", 1), "–"] for reason in results["missing"]]
    return table(("contender", "version", "how it was started"), lines)


def remote_table(results: dict[str, Any]) -> str:
    """What an application sees of a distant Redis, with and without Pannier."""
    section = results["sections"]["remote"]
    heads = ("contender", "delay", "load", "per_second", "times", "p50", "p99", "hit_percent")
    known = [key for key in section["columns"] if key in heads]
    return table([section["columns"][key] for key in known], _cells(section["rows"].values(), known))


def _cells(rows: Any, keys: list[str]) -> Iterator[list[str]]:
    for row in rows:
        yield [_shown(row.get(key)) for key in keys]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "–"
        case dict():
            return _shown(float(value["median"]))
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"
        case _:
            return str(value)
