"""Builds a wheel of Pannier in which what runs for each command is compiled to C, by mypyc.

    python deploy/compiled/build.py [--out dist]

It is the same program from the same source. The wheel fits the Python and the machine it was built with.
docs/compiled.md says what it gains and what it takes.
"""  # fmt: skip

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = (
    "client.combining",
    "client.flow",
    "client.hits",
    "client.latency",
    "client.mget",
    "client.reading",
    "client.refilling",
    "client.scripts",
    "client.session",
    "client.tracing",
    "client.verifying",
    "client.whole",
    "client.writes",
    "preflight.talk",
    "resp.downgrade",
    "resp.patterns",
    "resp.replies",
    "tier.*",
    "upstream.caller",
    "upstream.link",
    "upstream.pinned",
    "upstream.shared",
    "upstream.subscriber",
    "upstream.tracking",
    "upstream.wire",
)
"""What is compiled: what runs for each command, and where a class in it has subclasses or bases."""
SETUP = """\
from mypyc.build import mypycify
from setuptools import setup

setup(ext_modules=mypycify({files!r}, opt_level={level!r}, debug_level="0"))
"""


def files() -> list[str]:
    """The source files of `PARTS`, relative to the root."""
    found = []
    for part in PARTS:
        paths = ROOT.joinpath("proxy").glob(part.replace(".", "/") + ".py")
        found += [str(path.relative_to(ROOT)) for path in paths if path.stem != "__init__"]
    return sorted(found)


def absent() -> str:
    """What is not there that compiling takes, and where to get it; empty if all is there."""
    if shutil.which("cc") is None:
        return "there is no C compiler (cc) on the PATH; Debian has one in gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"{sys.executable} is there without its headers (Python.h); for Debian's, python3-dev"
    if importlib.util.find_spec("mypyc") is None or importlib.util.find_spec("setuptools") is None:
        return f"mypy or setuptools is not installed for {sys.executable}: pip install '.[compiled]'"
    return ""


def build(out: Path, level: str = "3") -> Path:
    """Build the wheel, in a copy of the source; its path. Raises CalledProcessError if that fails."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        shutil.copytree(ROOT / "proxy", copy / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "setup.py").write_text(SETUP.format(files=files(), level=level))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(copy / "wheel")]
        subprocess.run([*pip, "wheel", *options, str(copy)], check=True)
        (wheel,) = (copy / "wheel").glob("*.whl")
        return Path(shutil.copy(wheel, out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a wheel of Pannier in which what runs for each command is compiled to C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER", help="(dist)")
    parser.add_argument("--level", choices="0123", default="3", help="how hard the C compiler tries (3)")
    given = parser.parse_args(arguments)
    if missing := absent():
        print(f"build.py: {missing}", file=sys.stderr)
        return 2
    print(f"build.py: compiling {len(files())} modules, which takes a minute or two", flush=True)
    try:
        wheel = build(given.out, given.level)
    except subprocess.CalledProcessError:
        print("build.py: that failed, for the reason above", file=sys.stderr)
        return 1
    print(f"build.py: {wheel} is ready; install it with\n  pip install --force-reinstall --no-deps {wheel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
