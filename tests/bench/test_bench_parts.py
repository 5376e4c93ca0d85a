"""The parts of the bench that compute: accounting, statistics, parsing, encoding, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cpu
from bench.__main__ import depth_list, parse, write
from bench.figures import Cell, Figure, Measurement, Result, Spread
from bench.load import parse_csv
from bench.report import markdown, table, to_json
from bench.servers import BenchError, ProxyCommand, parse_version, substitute
from bench.workloads import DIRECT, GROUP_NAMES, PROXY, RSS_IDLE, WORKLOADS, Target, Workload

SPACES = ("namespace", "namespace-pass-through")
STAT = "12 (a) b (c) S 7 12 12 0 -1 4 1 2 3 4 30 20 5 5 20 0 1 0 999 1 1"


def measured(own: float, behind: float = 0.0, load: float = 0.5) -> Measurement:
    """A measurement with the figures that matter to a test."""
    return Measurement(own, behind, 1000.0, load, saturated=load > 0.95)


def cell() -> Cell:
    """Three rounds in which the machine slowed down for everybody in the second."""
    direct = [measured(1.0, load=0.99), measured(2.0, load=0.99), measured(1.0)]
    proxy = [measured(1.5, 0.5), measured(3.0, 1.0), measured(1.6, 0.5)]
    workload = Workload("get", 16, Target(own=1.5, total=1.9))
    return Cell(workload, {DIRECT.name: direct, PROXY.name: proxy})


def test_stat_line_with_parentheses_in_the_name() -> None:
    stat = cpu.parse_stat(STAT)
    assert (stat.parent, stat.started) == (7, 999)
    assert stat.cpu_ns == 50 * cpu.TICK_NS
    assert stat.reaped_children_ns == 10 * cpu.TICK_NS


def test_fine_source_unless_the_coarse_one_contradicts() -> None:
    tick = cpu.TICK_NS
    before = cpu.Sample(100, 0)
    assert cpu.between(before, cpu.Sample(100 + tick, tick)) == tick
    assert cpu.between(before, cpu.Sample(100 + tick, 50 * tick)) == 50 * tick
    assert cpu.between(cpu.Sample(0, 0), cpu.Sample(0, 2 * tick)) == 2 * tick


def test_a_busy_child_is_in_the_tree_and_in_the_account() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True); input()"
    before = cpu.sample(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == b"done\n"
        assert child.pid in cpu.tree(os.getpid())
        assert cpu.between(before, cpu.sample(os.getpid())) > 150_000_000
        assert cpu.rss_bytes(child.pid) > 1_000_000
        child.stdin.close()
    assert cpu.tree(child.pid) == []
    assert cpu.rss_bytes(child.pid) == 0


def test_ratios_pair_the_rounds() -> None:
    assert cell().ratio("own_us") == Spread(1.5, 1.5, 1.6)
    assert cell().ratio("total_us").median == 2.0


def test_saturation_needs_half_of_the_rounds() -> None:
    assert cell().saturated() == [DIRECT.name]
    assert cell().load_cpu() == 0.99


def test_incomplete_rows_are_left_out_of_the_tables_and_reported() -> None:
    broken = Cell(WORKLOADS[0], {DIRECT.name: [measured(1.0)]})
    result = Result({"cpu": "x"}, {"rounds": 1}, [broken, Cell(WORKLOADS[1])], failures=["GET P=1: gone"])
    text = markdown(result)
    assert "÷" not in text
    assert "- GET P=1: gone" in text
    assert len(to_json(result)["groups"]["pass-through"]["rows"]) == 1


def test_report_shows_targets_and_verdicts() -> None:
    result = Result({"cpu": "x"}, {"rounds": 3}, [cell()], idle=[Figure(RSS_IDLE, [46.0])])
    text = markdown(result)
    assert "| 1.50 (1.50–1.60) | ≤ 1.5 met | 2.00 (2.00–2.10) | ≤ 1.9 **missed** |" in text
    assert "| 46.0 MB | < 45 **missed** |" in text
    assert "⚠" in text
    data = json.loads(json.dumps(to_json(result)))
    (row,) = data["groups"]["pass-through"]["rows"]
    assert row["ratio_own"]["holds"] is True
    assert row["ratio_total"]["holds"] is False
    assert data["idle"]["rss_idle"]["holds"] is False


def test_a_row_without_target_is_judged_by_nobody() -> None:
    free = replace(cell(), workload=Workload("get", 16))
    assert "met" not in markdown(Result({}, {}, [free]))
    (row,) = to_json(Result({}, {}, [free]))["groups"]["pass-through"]["rows"]
    assert row["ratio_own"]["holds"] is None


def test_table_lines_up() -> None:
    assert len({len(line) for line in table(("a", "bb"), [("ccc", "d"), ("", "eeee")]).splitlines()}) == 1


@pytest.mark.parametrize(
    ("output", "figures"),
    [
        ('"GET","1234.50"\n', {"rps": 1234.5}),
        (
            'WARNING: x\n"test","rps","p50_latency_ms"\n"SET","10.00","0.25"\n',
            {"rps": 10.0, "p50_latency_ms": 0.25},
        ),
    ],
)
def test_csv_of_old_and_new_generators(output: str, figures: dict[str, float]) -> None:
    assert parse_csv(output) == figures


def test_csv_without_figures_says_so() -> None:
    with pytest.raises(BenchError, match="Connection refused"):
        parse_csv("Could not connect: Connection refused\n")


def test_request_counts_are_whole_pipelines() -> None:
    workload = Workload("get", 64)
    assert workload.requests_for(1_000_000, 1.2) % (64 * 50) == 0
    assert workload.requests_for(1, 0.1) == 64 * 50


def test_versions_and_placeholders() -> None:
    assert parse_version("Redis server v=7.0.15 sha=0:0 malloc=jemalloc-5.3.0") == (7, 0, 15)
    assert parse_version("nothing") == (0,)
    command = ProxyCommand.from_text("relay {port} '{upstream_port} {x}'")
    values = {"{port}": "1", "{upstream_port}": "2"}
    assert [substitute(word, values) for word in command.with_upstream] == ["relay", "1", "2 {x}"]


def test_options() -> None:
    quick = parse(["--quick", "--only", "GET", "--depth", "1,64", "--group", "pass-through"])
    assert (quick.rounds, quick.seconds) == (2, 0.4)
    assert [workload.name for workload in quick.workloads()] == ["GET P=1", "GET P=64"]
    assert parse(["--idle-only"]).workloads() == []
    assert depth_list("16") == [16]
    for wrong in (
        ["--depth", "3"],
        ["--only", "zadd"],
        ["--group", "tier"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
    ):
        with pytest.raises(SystemExit):
            parse(wrong)


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        ("", list(GROUP_NAMES)),
        ("--group all --only get", list(GROUP_NAMES)),
        ("--no-idle", ["floor", "pass-through", "hits", "misses", "metrics", *SPACES, "workers", "invalidation", "memory"]),
        ("--idle-only", ["idle"]),
        ("--group misses,hits", ["misses", "hits"]),
        ("--only get", ["floor", "pass-through", "hits", "misses", "metrics", *SPACES, "idle"]),
        ("--group namespace --depth 1", ["namespace"]),
        ("--depth 1 --group hits,memory", ["hits", "memory"]),
        ("--proxy-command x", ["pass-through", "idle"]),
        ("--proxy-command x --group hits", ["hits"]),
    ],
)
def test_groups_chosen(words: str, groups: list[str]) -> None:
    assert parse(words.split()).groups == groups


def test_what_is_measured_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--compiled", "--proxy-command", "true"])
    assert ended.value.code == 2 and "--compiled: not with --proxy-command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ([], True),
        (["--group", "all"], True),
        (["--rounds", "2"], True),
        (["--group", "invalidation"], False),
        (["--only", "get"], False),
        (["--depth", "1,16"], False),
        (["--no-idle"], False),
        (["--idle-only"], False),
        (["--quick"], False),
        (["--group", "all", "--proxy-command", "true"], False),
        (["--compiled"], False),
    ],
)
def test_only_a_whole_run_takes_the_place_of_the_latest(words: list[str], whole: bool, tmp_path: Path) -> None:
    latest, asked = tmp_path / "results", tmp_path / "asked.json"
    latest.mkdir()
    for name in ("sidecar.json", "sidecar.md"):
        (latest / name).write_text("before")
    result = Result({"cpu": "x"}, {}, [cell()])
    write(result, parse([*words, "--json", str(asked)]), latest)
    assert json.loads(asked.read_text()) == json.loads(json.dumps(to_json(result)))
    assert {path.read_text() == "before" for path in latest.iterdir()} == {not whole}
