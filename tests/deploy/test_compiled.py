"""deploy/compiled: the wheel with compiled modules is built, is complete, and keeps every promise of the plain one.

A copy of the project with the compiled modules beside their sources, which Python then prefers, is tried by tests of
the project itself: those that talk to processes, as they are what runs there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bench.compiled import unpacked
from bench.servers import BenchError
from tests.harness import ROOT

PROGRAM = ROOT / "deploy/compiled/build.py"
TRIED = [
    "tests/coherence/test_history.py",
    "tests/integration/test_apart.py",
    "tests/integration/test_refresh_ahead.py",
    "tests/integration/test_tier_coherence.py",
    "tests/integration/test_tier_faults.py",
    "tests/integration/test_tier_reads.py",
]
"""What is compiled in action: every read and write, coherence, RESP2 and RESP3, faults, renewal."""
IMPORT_ALL = """
import importlib, pkgutil, proxy
for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
    if not module.name.endswith("__main__"):
        print(module.name, importlib.import_module(module.name).__file__)
"""


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_compiled", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = program()
compiles = pytest.mark.skipif(bool(BUILD.absent()), reason=f"nothing to compile with: {BUILD.absent()}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, compiled without effort: the C compiler takes a third of the time then."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, PROGRAM, "--out", out, "--level", "0"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = out.iterdir()
    assert f"--no-deps {found}" in done.stdout
    return found


@pytest.fixture(scope="module")
def copy(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project with the compiled modules."""
    folder = tmp_path_factory.mktemp("compiled") / "project"
    folder.mkdir()
    for name in ("proxy", "tests", "bench", "docs", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".so")])
    yield folder
    shutil.rmtree(folder)


def test_what_is_compiled_exists() -> None:
    for part in BUILD.PARTS:
        assert list((ROOT / "proxy").glob(part.replace(".", "/") + ".py")), part


@pytest.mark.parametrize(("missing", "says"), [("cc", "no C compiler"), ("mypyc", "mypy or setuptools is not installed")])
def test_says_what_is_missing(missing: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if missing == "cc":
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        monkeypatch.setattr(BUILD.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(BUILD.sysconfig, "get_path", lambda name: "/include")
        monkeypatch.setattr(BUILD.Path, "exists", lambda self: True)
        monkeypatch.setattr(BUILD.importlib.util, "find_spec", lambda name: None)
    assert BUILD.main([]) == 2
    assert says in capsys.readouterr().err


@compiles
class TestTheWheel:
    def test_compiled_modules_are_taken_and_all_others_fit_them(self, copy: Path) -> None:
        """A class that is not compiled can be no base or subclass of one that is: importing it would fail."""
        done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=copy, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        files = dict(line.split(" ", 1) for line in done.stdout.splitlines())
        wanted = {file.removesuffix(".py").replace("/", ".") for file in BUILD.files()}
        assert {name for name, file in files.items() if file.endswith(".so")} == wanted
        assert all(file.startswith(str(copy)) for file in files.values())

    def test_the_project_s_own_tests(self, copy: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
        command = [sys.executable, "-m", "pytest", "-q", "--no-cov", "-p", "no:cacheprovider", *TRIED]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None and int(passed[1]) > 100


@compiles
class TestTheBench:
    def test_takes_it_if_it_is_of_this_source(self, wheel: Path) -> None:
        folder = unpacked(wheel.parent)
        assert list(folder.glob("proxy/client/session.*.so"))

    def test_says_that_it_is_of_another(self, wheel: Path, tmp_path: Path) -> None:
        shutil.copy(wheel, tmp_path)
        with zipfile.ZipFile(tmp_path / wheel.name, "a") as archive:
            archive.writestr("proxy/another.py", "")
        with pytest.raises(BenchError, match=r"another\.py differs \(make compiled\)"):
            unpacked(tmp_path)

    def test_says_that_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(BenchError, match="no compiled wheel for this Python"):
            unpacked(tmp_path)
