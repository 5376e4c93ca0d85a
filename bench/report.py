"""Turns measurements into medians, spreads, tables and JSON."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.workloads import IdleFigure, Workload

DIRECT = "redis"
PROXY = "proxy"


@dataclass(frozen=True)
class Measurement:
    """One run of the load generator against one contender; CPU in µs per operation."""

    own_us: float
    behind_us: float
    per_second: float
    load_cpu: float
    saturated: bool = False
    p50_ms: float | None = None

    @property
    def total_us(self) -> float:
        """The contender with what stands behind it."""
        return self.own_us + self.behind_us


@dataclass(frozen=True)
class Spread:
    """A median between the least and the greatest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise the values; there must be one at least."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1])

    def show(self, digits: int, scale: float = 1.0) -> str:
        """Median and range, as a table cell."""
        median, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low}–{high})"

    def to_json(self) -> dict[str, float]:
        """As plain data."""
        return {"median": round(self.median, 4), "min": round(self.low, 4), "max": round(self.high, 4)}


@dataclass
class Cell:
    """All rounds of one workload, by contender; entry n of each list is from round n."""

    workload: Workload
    rounds: dict[str, list[Measurement]] = field(default_factory=dict)

    def spread(self, contender: str, attribute: str) -> Spread:
        """Summarise one attribute of a contender over the rounds."""
        return Spread.of(getattr(measured, attribute) for measured in self.rounds[contender])

    def ratio(self, contender: str, attribute: str) -> Spread:
        """A contender's CPU over that of Redis direct in the same round."""
        pairs = zip(self.rounds[contender], self.rounds[DIRECT], strict=True)
        return Spread.of(getattr(mine, attribute) / max(direct.own_us, 1e-9) for mine, direct in pairs)

    @property
    def complete(self) -> bool:
        """Whether both contenders have the same rounds, and any."""
        return 0 < len(self.rounds.get(DIRECT, [])) == len(self.rounds.get(PROXY, []))

    def load_cpu(self) -> float:
        """The generator's own share of a core, where it was busiest."""
        return max(measured.load_cpu for measurements in self.rounds.values() for measured in measurements)

    def saturated(self) -> list[str]:
        """Contenders whose pace the generator set in half of the rounds or more."""
        return [
            name
            for name, measurements in self.rounds.items()
            if 2 * sum(measured.saturated for measured in measurements) >= len(measurements)
        ]


@dataclass(frozen=True)
class Figure:
    """Measured values of one idle figure."""

    what: IdleFigure
    values: list[float]
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the median is within the limit."""
        return Spread.of(self.values).median < self.what.limit

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        judged = {"unit": self.what.unit, "target": self.what.limit, "holds": self.holds, "note": self.note}
        return Spread.of(self.values).to_json() | judged


@dataclass
class Result:
    """Everything one run has found out."""

    machine: dict[str, str]
    settings: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    idle: list[Figure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


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


def verdict(holds: bool) -> str:
    """A target's outcome in one word."""
    return "yes" if holds else "**no**"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table whose columns line up as text, too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def cost_table(cells: Sequence[Cell]) -> str:
    """CPU and throughput of each contender."""
    rows = []
    for cell in cells:
        marks = {name: " ⚠" if name in cell.saturated() else "" for name in (DIRECT, PROXY)}
        rows.append(
            (
                cell.workload.test.upper(),
                str(cell.workload.depth),
                cell.spread(DIRECT, "own_us").show(2),
                cell.spread(PROXY, "own_us").show(2),
                cell.spread(PROXY, "behind_us").show(2),
                cell.spread(DIRECT, "per_second").show(0, 1e-3) + marks[DIRECT],
                cell.spread(PROXY, "per_second").show(0, 1e-3) + marks[PROXY],
                f"{cell.load_cpu():.0%}",
            )
        )
    columns = ("Redis µs/op", "proxy µs/op", "Redis behind µs/op", "Redis k/s", "proxy k/s", "generator CPU")
    return table(("test", "P", *columns), rows)


def ratio_table(cells: Sequence[Cell]) -> str:
    """CPU ratios to Redis direct beside what they should be."""
    rows = []
    for cell in cells:
        own, total = cell.ratio(PROXY, "own_us"), cell.ratio(PROXY, "total_us")
        target = cell.workload.target
        row = [cell.workload.test.upper(), str(cell.workload.depth)]
        limits = (target.own, target.total) if target else (None, None)
        for value, limit in zip((own, total), limits, strict=True):
            held = verdict(value.median <= limit) if limit is not None else "–"
            row += [value.show(2), f"≤ {limit:g}" if limit is not None else "–", held]
        rows.append(row)
    columns = ("proxy ÷ Redis", "target", "holds", "(proxy + Redis behind) ÷ Redis", "target", "holds")
    return table(("test", "P", *columns), rows)


def idle_table(figures: Sequence[Figure]) -> str:
    """Idle figures beside their limits."""
    rows = []
    for figure in figures:
        unit, digits = figure.what.unit, 3 if figure.what.unit == "s" else 1
        spread = Spread.of(figure.values)
        value = spread.show(digits) if len(figure.values) > 1 else f"{spread.median:.{digits}f}"
        limit = f"< {figure.what.limit:g} {unit}"
        rows.append((figure.what.title, f"{value} {unit}", limit, verdict(figure.holds), figure.note))
    return table(("idle", "value", "target", "holds", ""), rows)


def markdown(result: Result) -> str:
    """The whole report."""
    parts = ["# Benchmark"]
    parts.append(", ".join(f"{name} {value}" for name, value in result.machine.items()))
    parts.append(", ".join(f"{name} {value}" for name, value in result.settings.items()))
    cells = [cell for cell in result.cells if cell.complete]
    if cells:
        parts += ["CPU and throughput: median (least–greatest) of the rounds.", cost_table(cells)]
        if any(cell.saturated() for cell in cells):
            parts.append(
                "⚠ The load generator used more than 95 % of a core: this throughput is its limit, not the "
                "server's. A server that waits also batches less, so its CPU per operation is an upper bound."
            )
        parts += ["CPU relative to Redis direct in the same round.", ratio_table(cells)]
    if result.idle:
        parts += ["Idle proxy.", idle_table(result.idle)]
    if result.failures:
        parts.append("Failed to run:\n" + "\n".join(f"- {failure}" for failure in result.failures))
    return "\n\n".join(parts) + "\n"


def cell_json(cell: Cell) -> dict[str, Any]:
    """One workload as plain data."""
    attributes = ("own_us", "behind_us", "total_us", "per_second", "load_cpu")
    data: dict[str, Any] = {"test": cell.workload.test, "depth": cell.workload.depth, "contenders": {}}
    for name, measurements in cell.rounds.items():
        summary: dict[str, Any] = {key: cell.spread(name, key).to_json() for key in attributes}
        summary["saturated"] = name in cell.saturated()
        if latencies := [m.p50_ms for m in measurements if m.p50_ms is not None]:
            summary["p50_ms"] = Spread.of(latencies).to_json()
        data["contenders"][name] = summary
    target = cell.workload.target
    if cell.complete:
        for key in ("own", "total"):
            ratio = cell.ratio(PROXY, f"{key}_us")
            limit = getattr(target, key) if target else None
            holds = ratio.median <= limit if limit is not None else None
            data[f"ratio_{key}"] = ratio.to_json() | {"target": limit, "holds": holds}
    return data


def to_json(result: Result) -> dict[str, Any]:
    """The whole report as plain data."""
    return {
        "machine": result.machine,
        "settings": result.settings,
        "workloads": [cell_json(cell) for cell in result.cells if any(cell.rounds.values())],
        "idle": {figure.what.key: figure.to_json() for figure in result.idle},
        "failures": result.failures,
    }


class Progress:
    """A bar on a terminal, one plain line per stage elsewhere; on stderr, away from the table."""

    WIDTH = 30

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.stage = ""
        self.live = sys.stderr.isatty()

    def begin(self, stage: str, detail: str = "") -> None:
        """Say what runs now."""
        if self.live:
            filled = min(self.WIDTH, self.done * self.WIDTH // max(self.steps, 1))
            bar = "#" * filled + "." * (self.WIDTH - filled)
            line = f"[{bar}] {self.done}/{self.steps} {stage} {detail}"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif stage != self.stage:
            print(f"bench: {stage} ({self.done} of {self.steps} steps done)", file=sys.stderr, flush=True)
        self.stage = stage

    def step(self, count: int = 1) -> None:
        """One step more is done."""
        self.done += count

    def finish(self) -> None:
        """Clear the bar."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
