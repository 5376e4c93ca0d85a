"""deploy/helm: rendered by Helm's own library. What it renders is judged in test_kubernetes.py, with all else."""

from __future__ import annotations

import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from proxy.cgroup import AT_REST, MB, PARENT
from proxy.kinds import DURATION_UNITS, SIZE_UNITS
from proxy.settings import Settings
from proxy.upstream.address import Upstream
from tests.certificates import Authority
from tests.deploy import helm_schema
from tests.deploy.test_kubernetes import CHART, env_of, mebibytes, of_kind, pod, rendered, the_pannier
from tests.harness import ROOT, SYSTEM, redis_server, reserved, running, wait_until

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
            {"fileSecrets": ["a", "a"]},
            {"fileSecrets": ["No_Name"]},
            {"podMonitor": {"interval": "0s"}},
            {"extraEnv": [{"value": "nameless"}]},
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
        assert volumes == {"config": "pannier-config", "files-0": "redis-tls", "files-1": "redis.tls"}

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


def variables(chart: Any, **values: Any) -> dict[str, str]:
    found: dict[str, str] = manifest(chart, "configmap", **values)["data"]
    return found


def spec(chart: Any, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = manifest(chart, "workload", **values)["spec"]["template"]["spec"]
    return found


def limit(chart: Any, **values: Any) -> int:
    resources = spec(chart, **values)["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    return mebibytes(resources["limits"]["memory"])


class TestTheChartsOwnSettings:
    def test_are_those_that_the_values_tell_of(self, chart: Any) -> None:
        told = dict(re.findall(r"^#   (\w+): (\S+)$", (CHART / "values.yaml").read_text(), re.M))
        told = {name: text for name, text in told.items() if name in Settings.__dataclass_fields__}
        assert told.keys() == {"upstream", "max_memory", "drain_delay", "drain_timeout"}
        assert {f"PANNIER_{name.upper()}": text for name, text in told.items()}.items() <= variables(chart).items()

    def test_do_not_outrank_a_file(self, chart: Any) -> None:
        given = {"configSecret": {"name": "pannier-config"}}
        assert variables(chart, **given).keys() == {"PANNIER_CONFIG", "PANNIER_LISTEN", "PANNIER_ADMIN_LISTEN"}
        assert variables(chart, **given, settings={"max_memory": "1gb"})["PANNIER_MAX_MEMORY"] == "1gb"
        assert spec(chart, **given)["terminationGracePeriodSeconds"] == 25

    def test_are_replaced_one_by_one(self, chart: Any) -> None:
        found = variables(chart, settings={"drain_timeout": "1m", "max_memory": ""})
        assert found["PANNIER_DRAIN_TIMEOUT"] == "1m"
        assert found["PANNIER_MAX_MEMORY"] == ""
        assert found["PANNIER_DRAIN_DELAY"] == "5s"


class TestWhatFollowsFromSettings:
    @pytest.mark.parametrize(("text", "size"), [("1gb", 1 << 30), ("512MB", 512 * MB), (" 300m ", 300_000_000), ("67108864", 64 * MB)])
    def test_the_limit_of_memory(self, chart: Any, text: str, size: int) -> None:
        assert limit(chart, settings={"max_memory": text}) == -(-size // MB) * MB + 128 * MB

    def test_a_limit_that_is_given_holds(self, chart: Any) -> None:
        assert limit(chart, resources={"limits": {"memory": "999Mi", "cpu": "2"}}) == 999 * MB

    def test_workers_have_memory(self, chart: Any) -> None:
        found = limit(chart, settings={"workers": "4", "max_memory": "256mb"})
        assert found == (256 + 128) * MB + 3 * AT_REST + PARENT

    @pytest.mark.parametrize(
        ("delay", "timeout", "seconds"),
        [("5s", "60s", 75), ("0", "0.5", 11), ("500ms", "1500ms", 13), ("", "2M", 135), ("1m", "1h", 3670)],
    )
    def test_the_time_to_stop(self, chart: Any, delay: str, timeout: str, seconds: int) -> None:
        settings = {"drain_delay": delay, "drain_timeout": timeout}
        assert spec(chart, settings=settings)["terminationGracePeriodSeconds"] == seconds

    def test_every_unit_is_known(self, chart: Any) -> None:
        for unit, size in SIZE_UNITS.items():
            assert limit(chart, settings={"max_memory": f"7{unit}"}) == -(-7 * size // MB) * MB + 128 * MB, unit
        for unit, seconds in DURATION_UNITS.items():
            found = spec(chart, settings={"drain_delay": "1s", "drain_timeout": f"2{unit}"})
            assert found["terminationGracePeriodSeconds"] == 11 + max(1, int(2 * seconds)), unit

    def test_the_place_for_warm_state(self, chart: Any) -> None:
        def room(**settings: str) -> int:
            (tmp,) = [each for each in spec(chart, settings=settings)["volumes"] if each["name"] == "tmp"]
            return mebibytes(tmp["emptyDir"]["sizeLimit"])

        assert room() == MB
        assert room(warm_state="/tmp/hot") == 2 * Settings().warm_state_size + MB
        assert room(warm_state="/tmp/hot", warm_state_size="32mb") == 65 * MB

    def test_how_prometheus_asks(self) -> None:
        (monitor,) = [thing for thing in rendered("helm/tls") if thing["kind"] == "PodMonitor"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["authorization"] == {"credentials": {"name": "pannier-admin", "key": "token"}}
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"] == {"ca": {"secret": {"name": "pannier-tls", "key": "ca.crt"}}, "serverName": "pannier.example"}

    @pytest.mark.parametrize(("interval", "timeout"), [("15s", "5s"), ("5s", "5s"), ("3s", "3s"), ("1m", "5s")])
    def test_prometheus_waits_no_longer_than_the_interval(self, chart: Any, interval: str, timeout: str) -> None:
        monitor = manifest(chart, "podmonitor", podMonitor={"enabled": True, "interval": interval})
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["interval"], endpoint["scrapeTimeout"]) == (interval, timeout)


class TestTheNetworkPolicy:
    def client(self, chart: Any, **policy: Any) -> Any:
        found = manifest(chart, "networkpolicy", networkPolicy=policy)
        return found["spec"]["ingress"][0]["from"]

    def redis(self, chart: Any, upstream: str, **policy: Any) -> Any:
        settings = {"upstream": upstream} if upstream else {}
        return manifest(chart, "networkpolicy", settings=settings, networkPolicy=policy)["spec"]["egress"][1]

    def test_redis_may_be_anywhere(self, chart: Any) -> None:
        for given in ({}, {"redisLabels": {}}, {"redisLabels": None}):
            assert self.redis(chart, "", **given) == {"ports": [{"port": 6379}]}

    def test_ones_own_labels_are_all_there_are(self, chart: Any) -> None:
        found = self.redis(chart, "", redisLabels={"app": "valkey"})
        assert found["to"] == [{"podSelector": {"matchLabels": {"app": "valkey"}}}]
        assert self.client(chart, clientLabels={"team": "shop"}) == [{"podSelector": {"matchLabels": {"team": "shop"}}}]

    def test_clients_are_never_all_pods(self, chart: Any) -> None:
        for given in ({}, {"clientLabels": {}}):
            assert self.client(chart, **given) == [{"podSelector": {"matchLabels": {"pannier-client": "true"}}}]

    @pytest.mark.parametrize(
        "url",
        [
            "redis://redis", "rediss://redis.example:6380", "redis://u:p%40@h:7000/3", "redis://[::1]/0",
            "REDIS://u:1234@h", "redis://[fd00::1]:7001?db=2", "redis://h/0?client_name=a:7", " redis://h:7002 ", "redis://:7003",
        ],
    )  # fmt: skip
    def test_the_port_is_that_of_the_url(self, chart: Any, url: str) -> None:
        assert self.redis(chart, url)["ports"] == [{"port": Upstream.parse(url).port}]
        assert self.redis(chart, url, redisPort=9999)["ports"] == [{"port": 9999}]

    def test_the_documented_command_gets_to_its_redis(self, chart: Any) -> None:
        text = (ROOT / "docs/kubernetes.md").read_text()
        (command,) = re.findall(r"\$ helm install ((?:.*\\\n)*.*)\n", text)
        given = dict(re.findall(r"--set settings\.(\w+)=(\S+)", command))
        assert command.count("--set") == len(given) == 2
        assert self.redis(chart, given["upstream"]) == {"ports": [{"port": 6379}]}
        assert limit(chart, settings=given) == 640 * MB


class TestRefused:
    """What would make objects that are invalid, or a Pannier that cannot do what it is set to."""

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ({"ports": {"redis": 9464}}, "ports.redis and ports.admin are both 9464"),
            ({"settings": {"drain_timeout": "60s"}, "terminationGracePeriodSeconds": 25}, "give at least 70, or 0"),
            ({"settings": {"drain_timeout": "long"}}, '\\"long\\" is not a duration'),
            ({"settings": {"max_memory": "1 tb"}}, '\\"1 tb\\" is not a size'),
            ({"settings": {"warm_state": "/var/lib/hot"}}, "give a file in /tmp"),
            ({"settings": {"admin_protect": "all"}, "podMonitor": {"enabled": True}}, "podMonitor.tokenSecret"),
        ],
    )
    def test_values(self, chart: Any, values: dict[str, Any], why: str) -> None:
        with pytest.raises(helm.HelmError) as caught:
            chart.render(values, name="cache", namespace="shop")
        assert why.replace("\\", "") in str(caught.value).replace("\\", "")

    @pytest.mark.parametrize("name", ["1cache", "a.b"])
    def test_names_that_no_service_may_have(self, chart: Any, name: str) -> None:
        with pytest.raises(helm.HelmError, match="choose another name"):
            chart.render({}, name=name, namespace="shop")

    def test_what_is_right_is_not(self, chart: Any) -> None:
        chart.render({"terminationGracePeriodSeconds": 20}, name="cache-2", namespace="shop")
        chart.render({"fileSecrets": ["tmp", "redis.tls"]}, name="c", namespace="shop")
        chart.render({"settings": {"admin_protect": "all"}}, name="c" * 53, namespace="shop")


def test_the_documented_values_serve_tls_behind_a_token(chart: Any) -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    (shown,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(settings:.*?)```", text, re.S)]
    assert variables(chart, **shown)["PANNIER_LISTEN"] == ":6380?tls=true"
    (container,) = spec(chart, **shown)["containers"]
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    files = [path for name, path in shown["settings"].items() if name.endswith(("_cert", "_key"))]
    assert {path.rpartition("/")[0] for path in files} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    (endpoint,) = manifest(chart, "podmonitor", **shown)["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == container["env"][0]["valueFrom"]["secretKeyRef"]


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
def test_a_pannier_with_its_variables_speaks_tls(tmp_path: Path) -> None:
    """To clients, who show a certificate, and to the kubelet. Files, ports and Redis are others."""
    where = "helm/tls"
    authority, container = Authority(tmp_path), the_pannier(where)
    issued, env = authority.issue(), env_of(where, container)
    for name, path in (("tls.crt", issued.cert), ("tls.key", issued.key), ("ca.crt", authority.file)):
        env = {key: text.replace(f"/etc/pannier/pannier-tls/{name}", str(path)) for key, text in env.items()}
    env |= {"PANNIER_WARM_STATE": str(tmp_path / "hot"), "PANNIER_LOG_FORMAT": "json"}
    probe = container["startupProbe"]["httpGet"]
    with (
        redis_server(str(SYSTEM), tmp_path) as redis,
        reserved(None) as port,
        reserved(None) as plain,
        reserved(None) as admin,
    ):
        env["PANNIER_UPSTREAM"] = f"redis://127.0.0.1:{redis.port}"
        # One beside it without TLS, for who waits until it is there.
        env["PANNIER_LISTEN"] = f"127.0.0.1:{plain},{env['PANNIER_LISTEN'].replace('6380', str(port))}"
        env["PANNIER_ADMIN_LISTEN"] = f":{admin}"
        with running([sys.executable, "-m", "proxy"], plain, tmp_path, env) as process:
            wait_until(lambda: '"event":"listening"' in process.output.replace(" ", ""))
            process.port = port
            with authority.trusting(issued).wrap_socket(process.connect(), server_hostname="localhost") as sock:
                sock.sendall(b"PING\r\n")
                assert sock.recv(7) == b"+PONG\r\n"
            url = f"{probe['scheme'].lower()}://localhost:{admin}{probe['path']}"
            with urllib.request.urlopen(url, timeout=10, context=authority.trusting()) as answer:
                assert answer.status == 200


def test_variables_may_come_from_secrets(chart: Any) -> None:
    token = {"name": "PANNIER_ADMIN_TOKEN", "valueFrom": {"secretKeyRef": {"name": "pannier-admin", "key": "token"}}}
    (container,) = spec(chart, extraEnv=[token], upstreamSecret={"name": "redis-url"})["containers"]
    assert [entry["name"] for entry in container["env"]] == ["PANNIER_UPSTREAM", "PANNIER_ADMIN_TOKEN"]
    assert container["env"][1] == token
    (container,) = spec(chart)["containers"]
    assert "env" not in container
