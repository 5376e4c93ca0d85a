"""The compiled Pannier, from the wheel that `make compiled` has left in dist/."""

from __future__ import annotations

import atexit
import shutil
import sysconfig
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from bench.servers import ROOT, BenchError


def _stale(wheel: zipfile.ZipFile) -> str:
    """A source file that the wheel has otherwise than the checkout, if there is one."""
    inside = {name for name in wheel.namelist() if name.startswith("proxy/") and name.endswith(".py")}
    here = {str(path.relative_to(ROOT)): path for path in ROOT.joinpath("proxy").rglob("*.py")}
    for name in sorted(inside ^ set(here)):
        return name
    return next((name for name in sorted(inside) if wheel.read(name) != here[name].read_bytes()), "")


@cache
def unpacked(dist: Path = ROOT / "dist") -> Path:
    """A folder with the compiled package, gone when this process ends.

    Raises BenchError if there is no wheel for this Python, or only one of another source.
    """
    tag = f"cp{sysconfig.get_config_var('py_version_nodot')}-"
    wheels = sorted(dist.glob(f"pannier-*-{tag}*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise BenchError(f"no compiled wheel for this Python in {dist.name}/ (make compiled)")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        if stale := _stale(wheel):
            raise BenchError(f"{wheels[-1].name} is of another source: {stale} differs (make compiled)")
        folder = Path(tempfile.mkdtemp(prefix="pannier-bench-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        wheel.extractall(folder)
    return folder
