"""The plots of the comparison: drawn from what is there, the same bytes each time."""

from __future__ import annotations

import builtins
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.peers import plots
from bench.servers import BenchError

SVG = "{http://www.w3.org/2000/svg}"
CONTENDERS = ("redis", "pannier", "envoy", "twemproxy", "haproxy")


@pytest.fixture(scope="module")
def matplotlib() -> Any:
    return pytest.importorskip("matplotlib", reason="the Python package matplotlib is not installed")


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median * 0.9, "max": median * 1.1}


def section(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"title": "", "about": "", "columns": {}, "rows": rows, "notes": []}


def commands() -> dict[str, dict[str, Any]]:
    rows = {}
    for workload in plots.WORKLOADS:
        for depth in (1, 4, 16, 64):
            for place, name in enumerate(CONTENDERS):
                own, behind = 5.0 + 20.0 * place / depth, 3.0 if place else 0.0
                rows[f"{workload}/{depth}/{name}"] = {
                    "own_us": spread(own), "behind_us": spread(behind), "total_us": spread(own + behind)
                }  # fmt: skip
    return rows


def invented() -> dict[str, Any]:
    """Results of all sections that have a plot, and of one that has none."""
    loads = {f"{name}/{load}": {"p50": spread(50.0), "p99": spread(200.0 + load), "p999": spread(900.0)}
             for name in CONTENDERS for load in (10, 50, 90)}  # fmt: skip
    remote = {f"{delay}ms/{load}/{name}": {"per_second": spread(1000.0 / delay)}
              for delay in (0.1, 0.5, 2) for load in ("95-5", "80-20", "95-5-open", "cold") for name in CONTENDERS[:2]}  # fmt: skip
    remote["2ms/ping/redis"] = {"p50": 4060.0}
    ratios = {f"{stream}/{size}": dict.fromkeys(plots.POLICIES, 20.0 + size) for stream in ("zipf-0.9", "shifting") for size in (1, 5, 25)}
    growing = {f"{what}/{n}/{name}": {"own_us": spread(2.0)}
               for what in ("keys", "value", "rules-hits") for n in (1, 100, 10_000) for name in CONTENDERS[:2]}  # fmt: skip
    sizes = {f"{size}/{depth}/{name}": {"own_us": spread(1.0 + size / 1000)}
             for size in (3, 1024, 16_384) for depth in (1, 16) for name in CONTENDERS}  # fmt: skip
    return {
        "machine": {},
        "settings": {},
        "contenders": {name: {"title": f"{name} & <co>", "version": "1", "flags": ""} for name in CONTENDERS},
        "sections": {
            "commands": section(commands()), "latency": section(loads), "remote": section(remote),
            "hit-ratio": section(ratios), "scaling": section(growing), "values": section(sizes),
            "in-process": section({"hits/plain": {"total_us": 3.0}}),
        },
    }  # fmt: skip


def texts(path: Path) -> list[str]:
    """All that is written in a plot, which is well-formed."""
    root = ET.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    return ["".join(found.itertext()) for found in root.iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def drawn(matplotlib: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every plot, once for all tests that only look at them."""
    written = plots.draw(invented(), tmp_path_factory.mktemp("plots") / "new")
    return {path.name: path for path in written}


def only(results: dict[str, Any], file: str) -> dict[str, Any]:
    """The results with the section of one plot and no other."""
    name = plots.PLOTS[file][0]
    return results | {"sections": {name: results["sections"][name]}}


class TestWhatIsThereIsDrawn:
    def test_every_plot(self, drawn: dict[str, Path]) -> None:
        assert list(drawn) == list(plots.PLOTS)
        for path in drawn.values():
            assert path.parent.name == "new"
            assert path.stat().st_size < 200_000
            assert texts(path)

    def test_titles_of_contenders_are_those_given(self, drawn: dict[str, Path]) -> None:
        for name, path in drawn.items():
            assert ("pannier & <co>" in texts(path)) == (name != "hit-ratio.svg")

    def test_axes_have_units(self, drawn: dict[str, Path]) -> None:
        for name, path in drawn.items():
            said = " ".join(texts(path))
            assert any(unit in said for unit in ("µs", "operations/s", "% of reads")), name

    def test_a_load_with_a_given_pace_is_no_throughput(self, drawn: dict[str, Path]) -> None:
        said = texts(drawn["remote.svg"])
        assert "95/5" in said and not any("open" in each or "ping" in each for each in said)

    @pytest.mark.usefixtures("matplotlib")
    def test_a_contender_nobody_has_heard_of(self, tmp_path: Path) -> None:
        rows = {"3/1/new": {"own_us": 1.0}, "100/1/new": {"own_us": 2}}
        (path,) = plots.draw({"sections": {"values": section(rows)}}, tmp_path)
        assert "new" in texts(path)

    def test_the_same_results_make_the_same_bytes(self, drawn: dict[str, Path], tmp_path: Path) -> None:
        for path in plots.draw(invented(), tmp_path):
            assert path.read_bytes() == drawn[path.name].read_bytes()

    def test_settings_of_matplotlib_are_as_before(self, matplotlib: Any, tmp_path: Path) -> None:
        before = dict(matplotlib.rcParams)
        plots.draw(only(invented(), "scaling.svg"), tmp_path)
        assert dict(matplotlib.rcParams) == before


@pytest.mark.usefixtures("matplotlib")
class TestWhatIsNotThereIsLeftOut:
    @pytest.mark.parametrize("file", [name for name in plots.PLOTS if name != "cpu-by-depth.svg"])
    def test_other_sections(self, tmp_path: Path, file: str) -> None:
        assert plots.draw(only(invented(), file), tmp_path) == [tmp_path / file]
        assert [path.name for path in tmp_path.iterdir()] == [file]

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        assert plots.draw({}, tmp_path) == []

    def test_sections_without_rows(self, tmp_path: Path) -> None:
        results = {"sections": {name: section({}) for name, _ in plots.PLOTS.values()}}
        assert plots.draw(results, tmp_path) == []

    @pytest.mark.parametrize("file", plots.PLOTS)
    def test_a_row_and_figures(self, tmp_path: Path, file: str) -> None:
        """A dash in the table is null in JSON; some rows have fewer figures than others."""
        results = only(invented(), file)
        rows: dict[str, dict[str, Any]] = results["sections"][plots.PLOTS[file][0]]["rows"]
        first, second, *_, last = rows
        rows[first] = dict.fromkeys(rows[first])
        rows[second] = {}
        del rows[last]
        assert plots.draw(results, tmp_path) == [tmp_path / file]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def lacking(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return imports(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(BenchError, match="matplotlib"):
        plots.draw(invented(), tmp_path)


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "number"), [("64", 64.0), ("0.5ms", 0.5), ("10 %", 10.0), ("2ms", 2.0), ("many", None)]
    )
    def test_in_names(self, text: str, number: float | None) -> None:
        assert plots.amount(text) == number

    def test_order(self) -> None:
        assert plots.in_order(["16", "1", "64", "4", "1"]) == ["1", "4", "16", "64"]

    @pytest.mark.parametrize(
        ("value", "middle"), [(2, 2.0), (spread(3.0), 3.0), (None, None), ("–", None), ({}, None)]
    )
    def test_middle(self, value: Any, middle: float | None) -> None:
        assert plots.middle(value) == middle

    def test_lighter(self) -> None:
        assert plots.lighter("#000000", 0.5) == "#808080"
        assert plots.lighter("#ffffff") == "#ffffff"
