"""What a part of the comparison finds: rows of named values under described columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.figures import Spread
from bench.report import table

Value = float | int | str | Spread | None


def prose(text: str) -> str:
    """A paragraph from lines as they stand in the source."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Column:
    """One figure of each row of a section."""

    key: str
    """Its name in JSON, and in the README's links."""
    head: str
    """What stands above it in the table, with its unit."""
    digits: int = 2

    def show(self, value: Value) -> str:
        """The value as a table cell; what is not known is a dash."""
        match value:
            case None:
                return "–"
            case str():
                return value
            case Spread():
                same = value.low == value.high
                return f"{value.median:,.{self.digits}f}" if same else shown_spread(value, self.digits)
            case _:
                return f"{value:,.{self.digits}f}"


def shown_spread(spread: Spread, digits: int) -> str:
    """Median and range."""
    median, low, high = (f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return f"{median} ({low}–{high})"


@dataclass
class Row:
    """One line of a section."""

    name: str
    """Unique in its section, such as `get-hits/16/pannier`: what JSON and the README's links call it."""
    values: dict[str, Value]
    """By the keys of the columns."""


@dataclass
class Section:
    """A part of the comparison."""

    name: str
    title: str
    about: str
    """How it was measured, for the reader of the table: a paragraph of Markdown."""
    columns: Sequence[Column]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What must be known of single rows: who was left out and why, what was saturated."""
    date: str = ""
    """When it was measured."""

    def add(self, name: str, **values: Value) -> None:
        """A row more; every key must be that of a column."""
        if unknown := values.keys() - {column.key for column in self.columns}:
            raise ValueError(f"{self.name}/{name}: no column {', '.join(sorted(unknown))}")
        self.rows.append(Row(name, values))

    def markdown(self) -> str:
        """Title, explanation, table and notes."""
        heads = [column.head for column in self.columns]
        lines = [[column.show(row.values.get(column.key)) for column in self.columns] for row in self.rows]
        about = f"{self.about} Measured {self.date}." if self.date else self.about
        parts = [f"## {self.title}", about, table(heads, lines)]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, the rows by their names."""
        rows = {
            row.name: {
                key: value.to_json() if isinstance(value, Spread) else value
                for key, value in row.values.items()
            }
            for row in self.rows
        }
        return {
            "title": self.title,
            "about": self.about,
            "date": self.date,
            "columns": {column.key: column.head for column in self.columns},
            "digits": {column.key: column.digits for column in self.columns},
            "rows": rows,
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> Section:
        """What `to_json` made."""
        columns = [Column(key, head, data["digits"][key]) for key, head in data["columns"].items()]
        found = cls(name, data["title"], data["about"], columns, notes=list(data["notes"]), date=data["date"])
        for row, values in data["rows"].items():
            found.add(row, **{key: _value(value) for key, value in values.items()})
        return found


def _value(value: Any) -> Value:
    if isinstance(value, dict):
        return Spread(value["median"], value["min"], value["max"])
    known: Value = value
    return known
