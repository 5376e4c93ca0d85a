"""deploy/compose.yaml and what it mounts: as Compose reads it, and true in what it says of Pannier."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from proxy.cgroup import MB, exceeds
from proxy.kinds import duration, size
from tests.deploy import dockerfile
from tests.deploy.named import VARIABLES, drain_seconds, settings_of
from tests.deploy.test_kubernetes import path_with_redis_cli, started
from tests.harness import ROOT, SYSTEM, pannier, redis_server

FOLDER = ROOT / "deploy"
TEXT = (FOLDER / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
PANNIER = SERVICES["pannier"]


def mounts(service: str) -> dict[str, str]:
    """Where each file or folder of deploy/ is in the container."""
    found = {}
    for volume in SERVICES[service].get("volumes", []):
        here, there, mode = volume.split(":")
        assert mode == "ro"
        found[there] = here
    return found


def test_compose_understands_all_of_it() -> None:
    compose = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    assert set(compose.PyCompose.from_yaml(TEXT).service_names()) == SERVICES.keys()


def test_has_the_example_with_its_sidecar_redis_prometheus_and_grafana() -> None:
    assert SERVICES.keys() == {"redis", "pannier", "app", "prometheus", "grafana"}


class TestPannier:
    def test_settings_are_real_ones(self) -> None:
        env = PANNIER["environment"]
        assert env.keys() <= VARIABLES
        settings = settings_of(env)
        assert settings.upstream is not None and settings.upstream.host in SERVICES
        assert settings.admin_listen is not None
        assert PANNIER["ports"] == [f"127.0.0.1:{settings.admin_listen.port}:{settings.admin_listen.port}"]

    def test_is_built_from_the_dockerfile_of_this_version(self) -> None:
        assert (FOLDER / PANNIER["build"]["context"] / "Dockerfile").is_file()
        assert PANNIER["image"] == f"pannier:{__version__}"

    def test_is_asked_for_its_health_as_the_image_says(self) -> None:
        _, image = dockerfile.parse((ROOT / "Dockerfile").read_text())
        asked = json.loads(image.one("HEALTHCHECK").partition("CMD ")[2])
        assert PANNIER["healthcheck"]["test"] == ["CMD", *asked]

    def test_memory_fits_the_limit(self) -> None:
        limit = size(0, 1 << 40).parse(PANNIER["deploy"]["resources"]["limits"]["memory"].replace("M", "mb"))
        max_memory = settings_of(PANNIER["environment"]).max_memory
        assert not exceeds(max_memory, limit)
        assert limit == max_memory + 128 * MB

    def test_there_is_time_to_stop(self) -> None:
        grace = duration(0, 86400).parse(PANNIER["stop_grace_period"])
        assert grace >= drain_seconds(PANNIER["environment"]) + 5


def test_the_example_is_that_of_kubernetes() -> None:
    deployment = yaml.safe_load((FOLDER / "kubernetes/base/deployment.yaml").read_text())
    (app,) = deployment["spec"]["template"]["spec"]["containers"]
    assert SERVICES["app"]["image"] == SERVICES["redis"]["image"] == app["image"]
    assert SERVICES["app"]["environment"]["REDIS_OPTIONS"] == app["env"][0]["value"]


def test_nothing_is_served_beyond_this_machine() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_what_waits_for_health_waits_for_who_can_tell_it() -> None:
    for service in SERVICES.values():
        for other in service.get("depends_on", []):
            condition = service["depends_on"][other]["condition"] if isinstance(service["depends_on"], dict) else ""
            assert condition in ("", "service_healthy")
            assert not condition or "healthcheck" in SERVICES[other]


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES:
        for here in mounts(service).values():
            assert (FOLDER / here).exists(), here


class TestPrometheus:
    CONFIG = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())

    def test_asks_pannier(self) -> None:
        (scrape,) = self.CONFIG["scrape_configs"]
        admin = settings_of(PANNIER["environment"]).admin_listen
        assert admin is not None
        assert scrape["static_configs"] == [{"targets": [f"pannier:{admin.port}"]}]

    def test_finds_its_files(self) -> None:
        there = mounts("prometheus")
        assert there["/etc/prometheus/prometheus.yml"] == "./prometheus/prometheus.yml"
        for name in self.CONFIG["rule_files"]:
            assert there[f"/etc/prometheus/{name}"] == f"./prometheus/{name}"

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on the PATH (Debian: prometheus)")
    def test_promtool_takes_it(self) -> None:
        done = subprocess.run(
            ["promtool", "check", "config", FOLDER / "prometheus/prometheus.yml"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


class TestGrafana:
    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((FOLDER / "grafana/provisioning" / name).read_text())
        return found

    def test_asks_prometheus(self) -> None:
        (source,) = self.read("datasources/prometheus.yaml")["datasources"]
        assert (source["type"], source["isDefault"]) == ("prometheus", True)
        port = int(SERVICES["prometheus"]["ports"][0].split(":")[-1])
        assert source["url"] == f"http://prometheus:{port}"

    def test_shows_the_dashboard(self) -> None:
        (provider,) = self.read("dashboards/pannier.yaml")["providers"]
        there = mounts("grafana")
        assert there["/etc/grafana/provisioning"] == "./grafana/provisioning"
        assert there[f"{provider['options']['path']}/pannier.json"] == "./grafana/pannier.json"


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
def test_the_example_application_works_and_ends_when_told(tmp_path: Path) -> None:
    app = SERVICES["app"]
    assert app["network_mode"] == "service:pannier"
    with (
        redis_server(str(SYSTEM), tmp_path) as redis,
        pannier(f"redis://127.0.0.1:{redis.port}", tmp_path) as process,
    ):
        options = app["environment"]["REDIS_OPTIONS"].replace("6380", str(process.port))
        command = [re.sub(r"\$\$", "$", word) for word in app["command"]]
        env = {"REDIS_OPTIONS": options, "PATH": path_with_redis_cli()}
        with started(command, env) as script:
            assert script.stdout is not None
            assert script.stdout.readline() == "1 visits\n"
            os.kill(script.pid, signal.SIGTERM)
            assert script.wait(10) == 0
