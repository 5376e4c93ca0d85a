"""Results of all parts: a line each, with what was asked of it and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.report import table


@dataclass(frozen=True)
class Line:
    """One figure."""

    what: str
    value: float | int | str
    unit: str = ""
    asked: str = ""
    """In words; empty: nothing is."""
    holds: bool | None = None

    @property
    def shown(self) -> str:
        """The value as people read it."""
        number = self.value
        if isinstance(number, float):
            number = f"{number:,.2f}" if abs(number) < 100 else f"{number:,.0f}"
        elif isinstance(number, int):
            number = f"{number:,}"
        return f"{number} {self.unit}".strip()


@dataclass
class Part:
    """One of the things that were tried."""

    key: str
    title: str
    about: str
    lines: list[Line] = field(default_factory=list)

    def note(self, what: str, value: float | int | str, unit: str = "") -> None:
        """A figure of which nothing is asked."""
        self.lines.append(Line(what, value, unit))

    def ask(self, what: str, value: float | int | str, unit: str, asked: str, holds: bool) -> None:
        """A figure, and what is asked of it."""
        self.lines.append(Line(what, value, unit, asked, holds))

    def none(self, what: str, value: int) -> None:
        """Something that must not happen."""
        self.ask(what, value, "", "0", value == 0)

    def sound(self, faults: Sequence[str]) -> None:
        """That the proxy's log tells of no fault of its own; the first, if it does."""
        self.none("internal errors in the log", len(faults))
        for fault in faults[:1]:
            self.note("the first of them", fault[-1500:].replace("|", "\\|"))

    @property
    def holds(self) -> bool:
        """Whether all that is asked is so."""
        return all(line.holds is not False for line in self.lines)

    def markdown(self) -> str:
        """A section of the report."""
        verdicts = {None: "–", True: "met", False: "**missed**"}
        rows = [
            (line.what, line.shown, f"{line.asked} {verdicts[line.holds]}".strip()) for line in self.lines
        ]
        return f"## {self.title}\n\n{self.about}\n\n{table(('figure', 'value', 'asked'), rows)}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        lines = [
            {
                "what": line.what,
                "value": line.value,
                "unit": line.unit,
                "asked": line.asked,
                "holds": line.holds,
            }
            for line in self.lines
        ]
        return {"title": self.title, "holds": self.holds, "figures": lines}


def markdown(machine: dict[str, str], settings: dict[str, str], parts: Sequence[Part]) -> str:
    """The whole report."""
    heads = [", ".join(f"{name} {value}" for name, value in each.items()) for each in (machine, settings)]
    return "\n\n".join(["# Reliability", *heads, *(part.markdown() for part in parts)]) + "\n"
