"""The comparison with other proxies: who takes part, what is made of what was measured, what the documents quote."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from bench import quoting
from bench.figures import Spread
from bench.load import BUILTIN
from bench.peers import commands, contenders, remote, running, scaling, summary
from bench.peers.__main__ import NAMES, PARTS, markdown, parse, write
from bench.peers.sections import Column, Section
from bench.peers.setting import Bench
from bench.progress import Progress
from bench.servers import BenchError, ProxyCommand, Stable, redis_binary
from bench.workloads import Workload


def measured(own: float, behind: float = 0.0, per_second: float = 1000.0, redis: float = 1000.0, hits: float | None = None) -> running.Measured:
    return running.Measured(own, behind, per_second, 0.5, False, redis, hits, None)


def spread(value: float) -> Spread:
    return Spread(value, value, value)


class TestSections:
    COLUMNS = (Column("who", "contender"), Column("us", "µs/op"), Column("n", "ops/s", 0))

    def test_a_row_has_no_other_figures_than_the_columns(self) -> None:
        section = Section("s", "S", "about", self.COLUMNS)
        section.add("a", who="A", us=Spread(2.0, 1.0, 3.0), n=12345)
        with pytest.raises(ValueError, match="s/b: no column ms"):
            section.add("b", ms=1.0)
        assert section.to_json()["rows"] == {"a": {"who": "A", "us": {"median": 2.0, "min": 1.0, "max": 3.0}, "n": 12345}}

    def test_a_range_is_shown_where_there_is_one(self) -> None:
        section = Section("s", "S", "about", self.COLUMNS, notes=["a note"])
        section.add("a", who="A", us=Spread(2.0, 1.0, 3.0), n=12345)
        section.add("b", who="B", us=spread(2.0))
        text = section.markdown()
        assert "2.00 (1.00–3.00)" in text and "| 12,345 |" in text and "| B         | 2.00" in text and "| –" in text
        assert text.endswith("- a note")


    def test_comes_back_from_json_as_it_was(self) -> None:
        section = Section("s", "S", "about", self.COLUMNS, notes=["a note"], date="today")
        section.add("a", who="A", us=Spread(2.0, 1.0, 3.0), n=12345)
        section.add("b", who="B", us=None)
        again = Section.from_json("s", json.loads(json.dumps(section.to_json())))
        assert again.markdown() == section.markdown() and "Measured today." in again.markdown()
        assert again.to_json() == section.to_json()


class TestContenders:
    def test_who_is_missing_is_told_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stable = Stable(redis_binary(), ProxyCommand.pannier())
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
        found = contenders.line_up(stable, ["redis", "twemproxy", "haproxy"])
        assert [each.name for each in found.present] == ["redis"]
        assert [reason.split(":")[0] for reason in found.missing] == ["twemproxy", "haproxy"]
        assert "apt install nutcracker" in found.missing[0]

    def test_a_version_is_what_the_program_says(self, tmp_path: Path) -> None:
        program = tmp_path / "proxy"
        program.write_text("#!/bin/sh\necho this is proxy version 1.2.3-x >&2\n")
        program.chmod(0o755)
        assert contenders.version_said([str(program)]) == "1.2.3-x"
        with pytest.raises(BenchError, match="does not run"):
            contenders.version_said([str(tmp_path / "none")])

    def test_configurations_name_both_ports(self) -> None:
        envoy = json.loads(contenders.envoy_config(1111, 2222))
        assert "1111" in json.dumps(envoy["static_resources"]["listeners"])
        assert "2222" in json.dumps(envoy["static_resources"]["clusters"])
        for text in (contenders.twemproxy_config(1111, 2222), contenders.haproxy_config(1111, 2222)):
            assert "127.0.0.1:1111" in text and "127.0.0.1:2222" in text


class TestFigures:
    def test_ratios_are_to_redis_in_the_same_round(self) -> None:
        rounds = {"redis": [measured(2.0), measured(4.0)], "x": [measured(1.0, 1.0, hits=0.5), measured(1.0, 1.0, hits=0.7)]}
        found = running.figures(rounds, "x")
        assert found["own_ratio"] == Spread(0.375, 0.25, 0.5) and found["total_ratio"] == Spread(0.75, 0.5, 1.0)
        hits = found["hit_percent"]
        assert isinstance(hits, Spread) and hits.median == pytest.approx(60.0)
        assert "own_ratio" not in running.figures({"x": rounds["x"]}, "x")

    def test_relief_is_what_redis_is_spared(self) -> None:
        section = Section("commands", "C", "about", commands.HEADS)
        kept = {"workload": "GET", "depth": 1}
        section.add("get/1/redis", contender="Redis", own_us=spread(8.0), behind_us=spread(0.0), redis_per_1000=1000, **kept)
        section.add("get/1/x", contender="X", own_us=spread(9.0), behind_us=spread(2.0), redis_per_1000=250, **kept)
        section.add("get/4/x", contender="X", own_us=spread(1.0), behind_us=spread(1.0), workload="GET", depth=4)
        rows = commands.relief(section).to_json()["rows"]
        assert set(rows) == {"get/redis", "get/x"}
        assert (rows["get/x"]["redis_us"], rows["get/x"]["saved_percent"], rows["get/x"]["redis_per_1000"]) == (2000, 75, 250)
        assert rows["get/redis"]["saved_percent"] == 0

    def test_every_workload_is_one_that_the_generator_knows(self) -> None:
        for kind in commands.KINDS:
            for depth in commands.DEPTHS:
                workload = commands.at(kind, depth)
                assert workload.warmup_requests % depth == 0 and workload.warmup_requests > 0
                assert BUILTIN.command(1, workload, 10)

    def test_tenants_and_rules_of_a_size(self) -> None:
        assert scaling.tenants_file(3).count("[tenants.") == 3
        assert scaling.rules_file(3).count("[[rules]]") == 3 and scaling.rules_file(1).count("key:*") == 1


class TestTakingTurns:
    def test_all_at_hand_answer_the_same(self) -> None:
        """Redis, Pannier and each other proxy that is installed, with every reply compared by the generator."""
        with Stable(redis_binary(), ProxyCommand.pannier()) as stable:
            lineup = contenders.line_up(stable, list(contenders.EVERY))
            bench = Bench(stable, lineup.present, BUILTIN, 1, 0.02, time.monotonic() + 60, Progress(100))
            before = list(stable.servers)
            with running.entered(bench, bench.contenders) as entrants:
                for test in ("get", "mget-10", "hgetall", "mix-95-5"):
                    workload = Workload(test, 4, clients=4, warmup_requests=400, least_hits=0.0)
                    rounds = running.take_turns(bench, entrants, workload, test)
                    assert bench.failures == [] and set(rounds) == {each.name for each in lineup.present}
                    if test != "mix-95-5":
                        assert rounds["redis"][0].redis_per_1000 >= 1000 and (rounds["pannier"][0].hit_rate or 0) > 0.9
                        assert rounds["pannier"][0].redis_per_1000 < 500
            assert stable.servers == before

    def test_who_answers_wrongly_is_left_out(self) -> None:
        def broken(stable: Stable, _redis: object) -> object:
            return stable.start_redis("without the keys")

        with Stable(redis_binary(), ProxyCommand.pannier()) as stable:
            wrong = contenders.Contender("wrong", "Wrong", "0", "", broken)  # type: ignore[arg-type]
            present = [contenders.redis_direct(stable), wrong]
            bench = Bench(stable, present, BUILTIN, 1, 0.02, time.monotonic() + 60, Progress(10))
            with running.entered(bench, present) as entrants:
                rounds = running.take_turns(bench, entrants, Workload("get", 1, clients=2, warmup_requests=100), "get")
            assert set(rounds) == {"redis"}
            (failure,) = bench.failures
            assert failure.startswith("get: wrong: GET answered ")

    def test_tenants_are_logged_in_by_the_generator(self) -> None:
        with Stable(redis_binary(), ProxyCommand.pannier()) as stable:
            bench = Bench(stable, [], BUILTIN, 1, 0.02, time.monotonic() + 60, Progress(10))
            with scaling._file(scaling.tenants_file(3)) as file:
                proxy = contenders.pannier(stable, ("--config", file))
                with running.entered(bench, [proxy]) as (entrant,):
                    entrant.prepare = lambda bench, workload: scaling._prepare_tenants(entrant, bench, workload)
                    workload = Workload("get", 4, clients=6, tenants=3, keyspace=20, warmup_requests=400)
                    (found,) = running.take_turns(bench, [entrant], workload, "tenants")["pannier"]
            assert bench.failures == [] and found.redis_per_1000 < 500


class TestTheReport:
    def results(self) -> tuple[dict[str, object], list[Section]]:
        section = Section("commands", "Commands", "about", commands.HEADS)
        for name, title, ratio in (("redis", "Redis direct", 1.0), ("pannier", "Pannier", 0.5), ("envoy", "Envoy", 2.0)):
            section.add(f"get-hits/1/{name}", workload="GET", depth=1, contender=title, total_ratio=spread(ratio), total_us=spread(ratio * 8))
        who = {name: {"title": name.title(), "version": "1", "flags": ""} for name in ("redis", "pannier", "envoy")}
        results: dict[str, object] = {
            "machine": {"cpu": "C"}, "settings": {"rounds": 1}, "contenders": who, "missing": ["haproxy: no program haproxy"],
            "sections": {"commands": section.to_json()}, "failures": ["x: y"],
        }  # fmt: skip
        return results, [section]

    def test_says_who_was_left_out_and_what_failed(self) -> None:
        results, sections = self.results()
        text = markdown(results, sections, [Path("cpu.svg")])
        assert "- left out: haproxy: no program haproxy" in text and "- x: y" in text and "![cpu](cpu.svg)" in text

    def test_a_part_measured_anew_leaves_the_others(self, tmp_path: Path) -> None:
        """With who took part in them, and what failed; a part without a result takes nobody's place."""
        results, _ = self.results()
        write(tmp_path, results | {"measured": ["commands"]})
        other = Section("remote", "Remote", "about", remote.COLUMNS, date="later")
        other.add("0.5ms/95-5/redis", delay=0.5, load="95/5", contender="Redis direct")
        empty = Section("commands", "Commands", "about", commands.HEADS, date="later still")
        few = {"contenders": {"redis": {"title": "Redis", "version": "2", "flags": ""}}, "missing": [], "failures": ["z: y"]}
        both = {"sections": {"remote": other.to_json(), "commands": empty.to_json()}, "measured": ["remote"]}
        write(tmp_path, results | both | few)
        kept = json.loads((tmp_path / "latest.json").read_text())
        assert list(kept["sections"]) == ["commands", "remote"] and kept["sections"]["remote"]["date"] == "later"
        assert kept["sections"]["commands"]["rows"] and "measured" not in kept
        assert set(kept["contenders"]) == {"redis", "pannier", "envoy"} and kept["missing"] == results["missing"]
        assert kept["failures"] == ["x: y", "z: y"]
        text = (tmp_path / "latest.md").read_text()
        assert text.index("## Commands") < text.index("## Remote")

    @pytest.mark.parametrize("there", [b"{", None])
    def test_where_no_report_can_be_is_said_before_all_is_measured(self, tmp_path: Path, there: bytes | None) -> None:
        folder = tmp_path / "out"
        if there is None:
            folder.write_text("a file")
        else:
            folder.mkdir()
            (folder / "latest.json").write_bytes(there)
        with pytest.raises(SystemExit):
            parse(["--out", str(folder)])

    def test_the_least_of_a_line_stands_out(self) -> None:
        results, _ = self.results()
        table = summary.total_table(results, results["sections"]["commands"])  # type: ignore[index]
        assert "| **0.50** (0.50–0.50) | 2.00 (2.00–2.00) |" in " ".join(table.split())

    def test_parts_and_options(self) -> None:
        assert [part.name for part in PARTS] == list(NAMES)
        quick = parse(["--quick", "--part", "remote"])
        assert (quick.rounds, quick.seconds, quick.part) == (1, 0.2, ["remote"])
        for wrong in (["--rounds", "0"], ["--seconds", "nan"], ["--seconds", "inf"], ["--time-limit", "-1"]):
            with pytest.raises(SystemExit):
                parse(wrong)


class TestQuoting:
    @pytest.fixture(autouse=True)
    def results(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {"sections": {"commands": {"rows": {"get-hits/1/pannier": {"total_ratio": {"median": 1.0678}, "per_second": 98765}}}},
                 "groups": {"hits": {"rows": [{"name": "get@16", "ratio_own": {"median": 0.98}}]}}}  # fmt: skip
        monkeypatch.setattr(quoting, "results", lambda _name: found)

    @pytest.mark.parametrize(
        ("said", "right"),
        [('[1.05](bench/results/latest.md "commands/get-hits/1/pannier/total_ratio")', "[1.07]"),
         ('[about 1 times](x/latest.md "commands/get-hits/1/pannier/total_ratio")', "[about 1 times]"),
         ('[3 ops/s](latest.md "commands/get-hits/1/pannier/per_second")', "[98,765 ops/s]"),
         ('[0.5](sidecar.md "groups/hits/rows/get@16/ratio_own")', "[1.0]")],
    )  # fmt: skip
    def test_a_figure_has_the_digits_of_the_text(self, said: str, right: str) -> None:
        assert quoting.quoted(f"It is {said}.").startswith(f"It is {right}(")

    def test_a_figure_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(BenchError, match=r"latest\.json has no figure at commands/none/x"):
            quoting.quoted('[1](latest.md "commands/none/x")')
        with pytest.raises(BenchError, match="no table none"):
            quoting.quoted("<!-- figures: none -->\n<!-- end of figures -->")


@pytest.mark.parametrize("name", quoting.DOCUMENTS)
def test_documents_quote_what_was_measured(name: str) -> None:
    """Every figure in the text is that of the results (`python -m bench.quoting` puts them there)."""
    quoting.results.cache_clear()
    text = (quoting.ROOT / name).read_text()
    assert quoting.count(text) > 0
    assert quoting.quoted(text) == text


def test_the_cost_in_the_readme_has_no_figure_of_its_own() -> None:
    """Each stands in a table made from the results, or in a link that names the row."""
    text = (quoting.ROOT / "README.md").read_text()
    section = text[text.index("## What it costs") : text.index("## Documentation")]
    left = quoting.unquoted(section)
    assert re.findall(r"\d[\d.,]*\s*(?:times|%|µs|ms|s|bytes|ops)\b", left) == []
    assert re.findall(r"\d\.\d", left) == []
