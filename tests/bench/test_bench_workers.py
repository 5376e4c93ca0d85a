"""The group that compares one worker with two: what it makes of its measurements."""

from __future__ import annotations

from bench.figures import Result
from bench.report import markdown, to_json
from bench.workers import ROWS, Run, Scaling, table_rows


def scaling() -> Scaling:
    row = Scaling(ROWS[0])
    row.runs = {1: [Run(100_000, 8.0, 0.0, 0.5), Run(50_000, 9.0, 0.0, 0.6)],
                2: [Run(150_000, 8.5, 0.1, 0.7), Run(100_000, 9.5, 0.1, 0.8)]}  # fmt: skip
    row.memory = {1: 50_000_000, 2: 130_000_000}
    return row


def test_ratios_are_of_the_same_round() -> None:
    found = scaling().ratio()
    assert (found.low, found.median, found.high) == (1.5, 1.75, 2.0)


def test_the_table_has_both() -> None:
    heads, (line,) = table_rows([scaling()])
    told = dict(zip(heads, line, strict=True))
    assert told["k/s with 1"] == "75 (50–100)" and told["2 ÷ 1"] == "1.75 (1.50–2.00)"
    assert told["own µs/op with 2"] == "9.00" and told["MB with 2"] == "130"
    assert told["busiest generator's CPU"] == "80%"


def test_the_report_has_the_group() -> None:
    result = Result({}, {}, workers=[scaling()])
    assert "## Workers" in markdown(result) and "GET, all hits" in markdown(result)
    (row,) = to_json(result)["workers"]
    assert row["workers"]["2"]["rss_bytes"] == 130_000_000 and row["ratio"]["median"] == 1.75
