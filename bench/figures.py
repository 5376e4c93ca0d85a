"""Measurements and what follows from them: medians, spreads, ratios, verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.workloads import GROUP_OF, Group, Quantity, Side, Workload


@dataclass(frozen=True)
class Measurement:
    """One run of the load generator against one contender; CPU in µs per operation."""

    own_us: float
    behind_us: float
    per_second: float
    load_cpu: float
    saturated: bool = False
    p50_ms: float | None = None
    hit_rate: float | None = None
    """Share of cacheable reads the tier answered; None where nothing was counted."""

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
    """All rounds of one workload, by the name of the side; entry n of each list is from round n."""

    workload: Workload
    rounds: dict[str, list[Measurement]] = field(default_factory=dict)
    missing: str = ""
    """What a proxy lacks for the row to mean something, if so."""

    @property
    def group(self) -> Group:
        """Where the row belongs, which says what it compares."""
        return GROUP_OF[self.workload.group]

    def spread(self, side: Side, attribute: str) -> Spread:
        """Summarise one attribute of a side over the rounds."""
        return Spread.of(getattr(measured, attribute) for measured in self.rounds[side.name])

    def ratio(self, attribute: str) -> Spread:
        """The contender's CPU over that of the baseline in the same round; nothing is behind Redis direct."""
        base, mine = (self.rounds[side.name] for side in self.group.sides)
        pairs = zip(mine, base, strict=True)
        return Spread.of(
            getattr(one, attribute) / max(getattr(other, attribute), 1e-9) for one, other in pairs
        )

    @property
    def complete(self) -> bool:
        """Whether both sides have the same rounds, and any."""
        base, mine = (len(self.rounds.get(side.name, [])) for side in self.group.sides)
        return 0 < base == mine

    def hit_rate(self, side: Side) -> Spread | None:
        """What a side's tier answered; None where nothing was counted."""
        rates = [measured.hit_rate for measured in self.rounds.get(side.name, [])]
        return Spread.of(known) if (known := [rate for rate in rates if rate is not None]) else None

    def invalid(self) -> str:
        """Why the row does not measure what it says, if so; the judged side's reason goes first."""
        if self.missing:
            return self.missing
        if reason := self.wrong_hits(self.group.contender):
            return reason
        base = self.group.baseline
        reason = self.wrong_hits(base) if base.proxied else ""
        return f"{base.label}: {reason}" if reason else ""

    def wrong_hits(self, side: Side) -> str:
        """What is wrong with the hit rate of a side that has a proxy, if something is."""
        least, most, rate = self.workload.least_hits, self.workload.most_hits, self.hit_rate(side)
        if rate is None:
            return "" if least is None else "no reads were counted"
        if least is not None and rate.median < least:
            return f"hit rate {rate.median:.1%}, should be {least:.0%} or more"
        if most is not None and rate.median > most:
            return f"hit rate {rate.median:.1%}, should be none"
        return ""

    def limits(self) -> tuple[float | None, float | None]:
        """What own and total ratio should keep to."""
        target = self.workload.target
        return (target.own, target.total) if target else (None, None)

    def holds(self, attribute: str, limit: float | None) -> bool | None:
        """Whether the contender keeps to the limit; None without limit or when the row is invalid."""
        if limit is None or self.invalid():
            return None
        return self.ratio(attribute).median <= limit

    def load_cpu(self) -> float:
        """The generator's own share of a core, where it was busiest."""
        return max(measured.load_cpu for measurements in self.rounds.values() for measured in measurements)

    def saturated(self) -> list[str]:
        """Names of the sides whose pace the generator set in half of the rounds or more."""
        return [
            name
            for name, measurements in self.rounds.items()
            if 2 * sum(measured.saturated for measured in measurements) >= len(measurements)
        ]


@dataclass(frozen=True)
class Figure:
    """Measured values of one quantity beside the rows."""

    what: Quantity
    values: list[float]
    note: str = ""
    invalid: str = ""
    """Why the values say nothing, if so."""

    @property
    def holds(self) -> bool | None:
        """Whether the median is within the limit; None without limit or when the figure is invalid."""
        if self.what.limit is None or self.invalid:
            return None
        median = Spread.of(self.values).median
        return median < self.what.limit or (self.what.sign == "≤" and median == self.what.limit)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        judged = {"unit": self.what.unit, "target": self.what.limit, "holds": self.holds, "note": self.note}
        return Spread.of(self.values).to_json() | judged | {"invalid": self.invalid or None}


@dataclass
class Result:
    """Everything one run has found out."""

    machine: dict[str, str]
    settings: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    memory: list[Figure] = field(default_factory=list)
    idle: list[Figure] = field(default_factory=list)
    stalls: list[Any] = field(default_factory=list)
    """Of `bench.stalls`: what hits took while much was dropped."""
    workers: list[Any] = field(default_factory=list)
    """Of `bench.workers`: one worker beside two."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a reader must know of a group, by its name."""
    failures: list[str] = field(default_factory=list)
