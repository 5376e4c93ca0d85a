"""Turns results into tables and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.figures import DIRECT, PROXY, Cell, Figure, Result, Spread
from bench.workloads import GROUPS, Group

READING = (
    "CPU is per operation, median of the rounds; ratios are to Redis direct in the same round, median "
    "(least–greatest): own is the proxy alone, total the proxy with the Redis behind it."
)
SATURATED = (
    "⚠ The load generator used more than 95 % of a core: this throughput is its limit, not the "
    "server's. A server that waits also batches less, so its CPU per operation is an upper bound."
)
COLUMNS = (
    "what is measured",
    "P",
    "own ÷ Redis",
    "target",
    "total ÷ Redis",
    "target",
    "Redis µs/op",
    "own µs/op",
    "behind µs/op",
    "Redis k/s",
    "proxy k/s",
    "hits",
    "generator CPU",
)


def cpu_model() -> str:
    """The processor's name, as the kernel reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def package(name: str) -> str:
    """A package's version, or a dash."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "–"


def machine() -> dict[str, str]:
    """What the numbers depend on; nothing that names the machine."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": package("uvloop"),
        "hiredis": package("hiredis"),
    }


def judged(sign: str, limit: float | None, holds: bool | None) -> str:
    """A target and its outcome, as a table cell."""
    if limit is None:
        return "–"
    return f"{sign} {limit:g} " + {True: "met", False: "**missed**", None: "not judged"}[holds]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table whose columns line up as text, too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def row(cell: Cell) -> list[str]:
    """One workload as a line of its group's table."""
    line = [cell.workload.title, str(cell.workload.depth)]
    for attribute, limit in zip(("own_us", "total_us"), cell.limits(), strict=True):
        line.append(cell.ratio(PROXY, attribute).show(2))
        line.append(judged("≤", limit, cell.holds(attribute, limit)))
    if reason := cell.invalid():
        line[0] += f" (**invalid**: {reason})"
    costs = ((DIRECT, "own_us"), (PROXY, "own_us"), (PROXY, "behind_us"))
    line += [f"{cell.spread(*cost).median:.2f}" for cost in costs]
    for name in (DIRECT, PROXY):
        mark = " ⚠" if name in cell.saturated() else ""
        line.append(f"{cell.spread(name, 'per_second').median / 1000:.0f}{mark}")
    rate = cell.hit_rate()
    return [*line, f"{rate.median:.1%}" if rate else "–", f"{cell.load_cpu():.0%}"]


def group_part(group: Group, cells: Sequence[Cell], note: str) -> list[str]:
    """The part of the report about one group."""
    parts = [f"## {group.title}", group.about]
    if note:
        parts.append(f"Note: {note}.")
    elif group.options:
        parts[-1] += f" Options of the proxy: `{' '.join(group.options)}`."
    return [*parts, table(COLUMNS, map(row, cells))]


def figure_table(title: str, figures: Sequence[Figure]) -> str:
    """Figures beside their limits."""
    rows = []
    for figure in figures:
        what, digits = figure.what, 3 if figure.what.unit == "s" else 1
        spread = Spread.of(figure.values)
        value = spread.show(digits) if len(figure.values) > 1 else f"{spread.median:.{digits}f}"
        limit = judged(what.sign, what.limit, figure.holds)
        words = [f"**invalid**: {figure.invalid}"] if figure.invalid else []
        rows.append(
            (what.title, f"{value} {what.unit}", limit, "; ".join(filter(None, [*words, figure.note])))
        )
    return table((title, "value", "target", ""), rows)


def markdown(result: Result) -> str:
    """The whole report."""
    parts = ["# Benchmark"]
    parts.append(", ".join(f"{name} {value}" for name, value in result.machine.items()))
    parts.append(", ".join(f"{name} {value}" for name, value in result.settings.items()))
    cells = [cell for cell in result.cells if cell.complete]
    if cells:
        parts.append(READING)
        if any(cell.saturated() for cell in cells):
            parts.append(SATURATED)
    for group in GROUPS:
        if mine := [cell for cell in cells if cell.workload.group == group.name]:
            parts += group_part(group, mine, result.notes.get(group.name, ""))
    for title, figures in (("Memory of the tier", result.memory), ("Idle proxy", result.idle)):
        if figures:
            parts += [f"## {title}", figure_table("figure", figures)]
    if result.failures:
        parts.append("Failed to run:\n" + "\n".join(f"- {failure}" for failure in result.failures))
    return "\n\n".join(parts) + "\n"


def cell_json(cell: Cell) -> dict[str, Any]:
    """One workload as plain data."""
    attributes = ("own_us", "behind_us", "total_us", "per_second", "load_cpu")
    workload, rate = cell.workload, cell.hit_rate()
    data: dict[str, Any] = {
        "group": workload.group,
        "title": workload.title,
        "test": workload.test,
        "depth": workload.depth,
        "invalid": cell.invalid() or None,
        "hit_rate": rate.to_json() if rate else None,
        "contenders": {},
    }
    for name, measurements in cell.rounds.items():
        summary: dict[str, Any] = {key: cell.spread(name, key).to_json() for key in attributes}
        summary["saturated"] = name in cell.saturated()
        if latencies := [m.p50_ms for m in measurements if m.p50_ms is not None]:
            summary["p50_ms"] = Spread.of(latencies).to_json()
        data["contenders"][name] = summary
    if cell.complete:
        for key, limit in zip(("own", "total"), cell.limits(), strict=True):
            verdict = {"target": limit, "holds": cell.holds(f"{key}_us", limit)}
            data[f"ratio_{key}"] = cell.ratio(PROXY, f"{key}_us").to_json() | verdict
    return data


def group_json(group: Group, result: Result) -> dict[str, Any]:
    """What a group's rows have in common, and the rows."""
    return {
        "title": group.title,
        "about": group.about,
        "options": list(group.options),
        "note": result.notes.get(group.name),
        "rows": [
            cell_json(cell)
            for cell in result.cells
            if cell.workload.group == group.name and any(cell.rounds.values())
        ],
    }


def to_json(result: Result) -> dict[str, Any]:
    """The whole report as plain data."""
    groups = {group.name: group_json(group, result) for group in GROUPS}
    return {
        "machine": result.machine,
        "settings": result.settings,
        "groups": {name: data for name, data in groups.items() if data["rows"]},
        "memory": {figure.what.key: figure.to_json() for figure in result.memory},
        "idle": {figure.what.key: figure.to_json() for figure in result.idle},
        "failures": result.failures,
    }
