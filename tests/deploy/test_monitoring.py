"""What deploy/ shows and alerts on: every metric named there exists, and Prometheus understands all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/pannier.rules.yaml"
BOARD = json.loads((ROOT / "deploy/grafana/pannier.json").read_text())
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALL_RULES = [rule for group in GROUPS for rule in group["rules"]]
ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| (.*?) \|", re.M)
NAME = re.compile(r"\b(?:pannier|process|python)[_:][a-z0-9_:]+")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on the PATH (Debian: prometheus)")


def documented() -> dict[str, set[str]]:
    """The names of series and their labels, of docs/metrics.md, which a test compares with /metrics."""
    known: dict[str, set[str]] = {}
    for name, kind, labels in ROW.findall((ROOT / "docs/metrics.md").read_text()):
        found = set(re.findall(r"`(\w+)`", labels)) | {"job", "instance"}
        if kind == "histogram":
            known |= {name + "_bucket": found | {"le"}, name + "_count": found, name + "_sum": found}
        else:
            known[name] = found
    return known


def recorded() -> set[str]:
    return {rule["record"] for rule in ALL_RULES if "record" in rule}


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of everything that is drawn."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def filled_in(expression: str) -> str:
    """An expression as Grafana sends it."""
    return re.sub(r"\$(job|instance|namespace)\b", ".*", expression.replace("$__rate_interval", "5m"))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_name_what_there_is(rule: dict[str, str]) -> None:
    names = set(NAME.findall(rule["expr"]))
    assert names and names <= documented().keys() | recorded()


@pytest.mark.parametrize(("title", "expression"), [*panels()])
def test_panels_name_what_there_is(title: str, expression: str) -> None:
    names = set(NAME.findall(expression))
    assert names and names <= documented().keys()


@pytest.mark.parametrize(("where", "expression"), [*panels(), *((rule.get("alert") or rule["record"], rule["expr"]) for rule in ALL_RULES)])
def test_labels_are_those_of_the_metrics(where: str, expression: str) -> None:
    """A selector or a `by` with a label that no series has would match nothing, silently."""
    known = documented()
    names = [name for name in NAME.findall(expression) if name in known]
    labels = set().union(*(known[name] for name in names))
    used = {label for inner in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in re.split(r",\s*", inner)}
    used |= set(re.findall(r"(\w+)=~?\"", expression))
    assert not names or used <= labels


def test_variables_ask_for_what_there_is() -> None:
    for variable in BOARD["templating"]["list"]:
        names = NAME.findall(variable.get("definition", ""))
        assert variable["type"] == "datasource" or (names and set(names) <= documented().keys())


def test_alerts_say_what_to_do() -> None:
    for rule in ALL_RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
            assert rule["annotations"]["summary"] and rule["annotations"]["description"], rule["alert"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@promtool
def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_takes_what_the_panels_ask(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": filled_in(expression)} for n, (_, expression) in enumerate(panels())]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    cases = Path(__file__).with_name("alerts.yaml")
    done = subprocess.run(["promtool", "test", "rules", cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
