"""deploy/helm: rendered by Helm's own library. What it renders is judged in test_kubernetes.py, with all else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from tests.deploy import helm_schema
from tests.deploy.test_kubernetes import CHART, of_kind, pod, rendered, the_pannier

helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")


@pytest.fixture
def chart() -> Iterator[Any]:
    with helm.Chart.load(str(CHART)) as chart:
        yield chart


def manifest(chart: Any, name: str, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(chart.render(values, name="cache", namespace="shop")[f"pannier/templates/{name}.yaml"])
    return found


def test_lint_has_nothing_to_say_but_that_there_is_no_icon() -> None:
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]


def test_the_schema_is_up_to_date() -> None:
    assert (CHART / "values.schema.json").read_text() == helm_schema.as_text(), (
        "run: python -m tests.deploy.helm_schema > deploy/helm/pannier/values.schema.json"
    )


def test_version_is_that_of_pannier(chart: Any) -> None:
    assert chart.metadata["appVersion"] == __version__


class TestTheSchema:
    @pytest.mark.parametrize(
        "values",
        [
            {"settings": {"max_memori": "1gb"}},
            {"settings": {"max_memory": 1000000000}},
            {"settings": {"admin_token": "secret"}},
            {"settings": {"listen": ":1"}},
            {"kind": "StatefulSet"},
            {"image": {"digest": "sha256:abc"}},
            {"ports": {"redis": 80}},
            {"fileSecrets": ["config"]},
            {"networkPolicy": {"clientLabels": {"a": True}}},
            {"nosuch": 1},
        ],
    )
    def test_refuses(self, chart: Any, values: dict[str, Any]) -> None:
        with pytest.raises(helm.HelmError):
            chart.validate_schema(values)
        with pytest.raises(helm.HelmError):
            chart.render(values, name="cache", namespace="shop")

    def test_knows_every_value_that_there_is(self, chart: Any) -> None:
        def names(values: Any, prefix: str = "") -> set[str]:
            return {f"{prefix}{key}" for key in values}

        known = chart.schema if isinstance(chart.schema, dict) else yaml.safe_load(chart.schema)
        assert names(known["properties"]) == names(chart.values)
        for key, inner in known["properties"].items():
            if "properties" in inner and key != "settings":
                assert names(inner["properties"]) == names(chart.values[key]), key


class TestWhatIsRendered:
    def test_numbers_stay_as_they_are(self, chart: Any) -> None:
        settings = {"max_entries": "100000000", "verify": "0.001", "namespace_channels": "true"}
        data = manifest(chart, "configmap", settings=settings)["data"]
        assert data["PANNIER_MAX_ENTRIES"] == "100000000"
        assert (data["PANNIER_VERIFY"], data["PANNIER_NAMESPACE_CHANNELS"]) == ("0.001", "true")

    def test_other_settings_make_other_pods(self, chart: Any) -> None:
        def mark(**values: Any) -> str:
            return str(manifest(chart, "workload", **values)["spec"]["template"]["metadata"]["annotations"])

        assert mark() == mark() != mark(settings={"max_memory": "128mb"})

    def test_selectors_stay_as_they_are_from_version_to_version(self, chart: Any) -> None:
        wanted = {"app.kubernetes.io/name": "pannier", "app.kubernetes.io/instance": "cache"}
        assert manifest(chart, "workload")["spec"]["selector"]["matchLabels"] == wanted
        assert manifest(chart, "service")["spec"]["selector"] == wanted

    def test_a_digest_goes_before_the_tag(self, chart: Any) -> None:
        digest = "sha256:" + "0" * 64
        found = manifest(chart, "workload", image={"digest": digest, "tag": "x"})
        (container,) = found["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"registry.example/pannier@{digest}"

    def test_what_is_off_is_not_there(self, chart: Any) -> None:
        off = {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}
        found = chart.render(off, name="cache", namespace="shop")
        for name in ("networkpolicy", "poddisruptionbudget", "podmonitor"):
            assert found[f"pannier/templates/{name}.yaml"].strip() == ""

    def test_a_url_in_a_secret_is_in_no_config_map(self) -> None:
        (found,) = of_kind("helm/secrets", "ConfigMap")
        assert "PANNIER_UPSTREAM" not in found["data"]
        (entry,) = the_pannier("helm/secrets")["env"]
        assert entry["valueFrom"]["secretKeyRef"] == {"name": "redis-url", "key": "url"}
        given = [volume for volume in pod("helm/secrets")["spec"]["volumes"] if volume["name"] != "tmp"]
        volumes = {volume["name"]: volume["secret"]["secretName"] for volume in given}
        assert volumes == {"config": "pannier-config", "redis-tls": "redis-tls"}

    def test_several_workers_have_a_place_for_their_sockets(self) -> None:
        volumes = {volume["name"]: volume for volume in pod("helm/secrets")["spec"]["volumes"]}
        assert "emptyDir" in volumes["tmp"]
        assert {"name": "tmp", "mountPath": "/tmp"} in the_pannier("helm/secrets")["volumeMounts"]

    def test_a_pod_monitor_finds_its_pods(self) -> None:
        (monitor,) = [thing for thing in rendered("helm/daemonset") if thing["kind"] == "PodMonitor"]
        labels = pod("helm/daemonset")["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in [port["name"] for port in the_pannier("helm/daemonset")["ports"]]

    def test_it_can_be_packed(self, tmp_path: Path) -> None:
        copy = tmp_path / "pannier"
        shutil.copytree(CHART, copy)
        helm.package(str(copy), destination=str(tmp_path))
        assert (tmp_path / f"pannier-{__version__}.tgz").is_file()
