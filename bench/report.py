"""Turns results into tables and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import workers
from bench.figures import Cell, Figure, Result, Spread
from bench.stalls import Stall
from bench.workloads import (
    DIRECT,
    GROUPS,
    STALL_ENTRIES,
    STALL_GROUP,
    STALL_HOT_KEYS,
    STALL_MORE,
    STALL_MOST,
    STALL_OPTIONS,
    STALL_RATE,
    STALL_TIMES,
    WORKERS_GROUP,
    Group,
    Side,
)

READING = (
    "CPU is per operation, median of the rounds; ratios are to Redis direct, or to what the head of the "
    "column names, in the same round, median (least–greatest): own is the proxy alone, total the proxy with "
    "the Redis behind it."
)
SATURATED = (
    "⚠ The load generator used more than 95 % of a core: this throughput is its limit, not the "
    "server's. A server that waits also batches less, so its CPU per operation is an upper bound."
)


STALLS = (
    f"Hits on {STALL_HOT_KEYS} hot keys, {STALL_RATE:,} a second over four connections, sent by the clock "
    f"and timed one by one, while a tier of {STALL_ENTRIES:,} other entries loses them, one of which is "
    "read again when they are gone. In milliseconds, median of the rounds (least–greatest). Done: from the "
    "command to its answer, or until INFO shows them gone where the answer does not tell. At rest is the "
    "second before it; during it goes on until it is done, for 0.2 s at least, and has in it every read "
    "that was on its way in that time (a hot key that was dropped as well is read from Redis once). Asked: "
    f"p99 {STALL_TIMES:g} times that at rest or {STALL_MORE:g} ms more, the slowest under {STALL_MOST:g} "
    f"ms. Options of the proxy: `{' '.join(STALL_OPTIONS)}`."
)
STALL_HEADS = (
    "what drops them",
    "done",
    "p50 at rest",
    "p50 during it",
    "p99 at rest",
    "p99 during it",
    "slowest at rest",
    "slowest during it",
    "asked",
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


def cost_columns(group: Group) -> list[tuple[str, Side, str]]:
    """Head, side and attribute of the columns with CPU per operation."""
    base, contender = group.sides
    if base.proxied:
        parts = [(side, part) for side in group.sides for part in ("own", "behind")]
        return [(f"{side.label} {part} µs/op", side, f"{part}_us") for side, part in parts]
    behind = [(f"{part} µs/op", contender, f"{part}_us") for part in ("own", "behind")]
    return [(f"{base.label} µs/op", base, "own_us"), *behind]


def hit_columns(group: Group) -> list[tuple[str, Side]]:
    """Head and side of the columns with hit rates."""
    if group.baseline.proxied:
        return [(f"{side.label} hits", side) for side in group.sides]
    return [("hits", group.contender)]


def columns(group: Group) -> list[str]:
    """The head of the group's table, which says what is compared."""
    heads = ["what is measured", "P"]
    for part in ("own", "total"):
        heads += [f"{part} ÷ {group.baseline.label}", "target"]
    heads += [head for head, _, _ in cost_columns(group)]
    heads += [f"{side.label} k/s" for side in group.sides]
    return [*heads, *(head for head, _ in hit_columns(group)), "generator CPU"]


def row(cell: Cell) -> list[str]:
    """One workload as a line of its group's table."""
    line = [cell.workload.title, str(cell.workload.depth)]
    for attribute, limit in zip(("own_us", "total_us"), cell.limits(), strict=True):
        line.append(cell.ratio(attribute).show(2))
        line.append(judged("≤", limit, cell.holds(attribute, limit)))
    if reason := cell.invalid():
        line[0] += f" (**invalid**: {reason})"
    line += [f"{cell.spread(side, cost).median:.2f}" for _, side, cost in cost_columns(cell.group)]
    for side in cell.group.sides:
        mark = " ⚠" if side.name in cell.saturated() else ""
        line.append(f"{cell.spread(side, 'per_second').median / 1000:.0f}{mark}")
    for _, side in hit_columns(cell.group):
        rate = cell.hit_rate(side)
        line.append(f"{rate.median:.1%}" if rate else "–")
    return [*line, f"{cell.load_cpu():.0%}"]


def options_told(group: Group) -> str:
    """A sentence about the options, where there are any."""
    whose = [("both proxies" if group.baseline.proxied else "the proxy", group.options)]
    whose += [(side.title, side.options) for side in group.sides]
    told = [f"of {who}: `{' '.join(options)}`" for who, options in whose if options]
    return f" Options {'; '.join(told)}." if told else ""


def group_part(group: Group, cells: Sequence[Cell], note: str) -> list[str]:
    """The part of the report about one group."""
    parts = [f"## {group.title}", group.about]
    if note:
        parts.append(f"Note: {note}.")
    else:
        parts[-1] += options_told(group)
    return [*parts, table(columns(group), map(row, cells))]


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


def stall_row(stall: Stall) -> list[str]:
    """One upheaval as a line of the table."""
    times = [
        stall.spread(when, what).show(2) for what in ("p50", "p99", "most") for when in ("rest", "during")
    ]
    return [stall.title, stall.took.show(0), *times, "met" if stall.holds else "**missed**"]


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
    if result.workers:
        parts += ["## Workers", workers.ABOUT, table(*workers.table_rows(result.workers))]
    if result.stalls:
        parts += ["## Invalidation", STALLS, table(STALL_HEADS, map(stall_row, result.stalls))]
    for title, figures in (("Memory of the tier", result.memory), ("Idle proxy", result.idle)):
        if figures:
            parts += [f"## {title}", figure_table("figure", figures)]
    if result.failures:
        parts.append("Failed to run:\n" + "\n".join(f"- {failure}" for failure in result.failures))
    return "\n\n".join(parts) + "\n"


def cell_json(cell: Cell) -> dict[str, Any]:
    """One workload as plain data."""
    attributes = ("own_us", "behind_us", "total_us", "per_second", "load_cpu")
    workload, rate = cell.workload, cell.hit_rate(cell.group.contender)
    data: dict[str, Any] = {
        "name": "@".join(filter(None, (workload.test, workload.kind, str(workload.depth)))),
        "group": workload.group,
        "title": workload.title,
        "test": workload.test,
        "depth": workload.depth,
        "invalid": cell.invalid() or None,
        "hit_rate": rate.to_json() if rate else None,
        "contenders": {},
    }
    for side in cell.group.sides:
        if not (measurements := cell.rounds.get(side.name)):
            continue
        summary: dict[str, Any] = {key: cell.spread(side, key).to_json() for key in attributes}
        summary["saturated"] = side.name in cell.saturated()
        if latencies := [m.p50_ms for m in measurements if m.p50_ms is not None]:
            summary["p50_ms"] = Spread.of(latencies).to_json()
        if cell.group.baseline.proxied and (answered := cell.hit_rate(side)):
            summary["hit_rate"] = answered.to_json()
        data["contenders"][side.name] = summary
    if cell.complete:
        for key, limit in zip(("own", "total"), cell.limits(), strict=True):
            verdict = {"target": limit, "holds": cell.holds(f"{key}_us", limit)}
            data[f"ratio_{key}"] = cell.ratio(f"{key}_us").to_json() | verdict
    return data


def group_json(group: Group, result: Result) -> dict[str, Any]:
    """What a group's rows have in common, and the rows; who is compared, unless that is Redis direct."""
    compared = {"baseline": group.baseline, "contender": group.contender}
    if group.baseline is DIRECT:
        compared = {}
    return {
        "title": group.title,
        "about": group.about,
        "options": list(group.options),
        **{role: {"name": side.name, "options": list(side.options)} for role, side in compared.items()},
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
        WORKERS_GROUP: [row.to_json() for row in result.workers],
        STALL_GROUP: [stall.to_json() for stall in result.stalls],
        "memory": {figure.what.key: figure.to_json() for figure in result.memory},
        "idle": {figure.what.key: figure.to_json() for figure in result.idle},
        "failures": result.failures,
    }
