"""Load generators. Both run as a process of their own, whose CPU is known exactly when it has ended.

``redis-benchmark`` is used for what it can do when it is on PATH, ``python -m bench.builtin`` for the rest;
each row has the same generator for both sides.
"""

from __future__ import annotations

import csv
import io
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import HOST, ROOT, BenchError
from bench.traffic import UNIFORM
from bench.workloads import Workload

SATURATED = 0.95


@dataclass(frozen=True)
class LoadResult:
    """What one run of a generator brought."""

    requests: int
    per_second: float
    cpu_share: float
    p50_ms: float | None = None

    @property
    def saturated(self) -> bool:
        """Whether the generator, not the server, set the pace."""
        return self.cpu_share > SATURATED


@dataclass(frozen=True)
class Generator:
    """A program that produces load."""

    name: str
    version: str
    program: tuple[str, ...]

    @property
    def builtin(self) -> bool:
        """Whether it is the stand-in of this package."""
        return self.name == "built-in"

    def command(self, port: int, workload: Workload, requests: int) -> list[str]:
        """The command line of one run; both programs take the same options."""
        options = {
            "-h": HOST,
            "-p": port,
            "-t": workload.test,
            "-n": requests,
            "-c": workload.clients,
            "-P": workload.depth,
            "-r": workload.keyspace,
        }
        if workload.tenants:
            options["--tenants"] = workload.tenants
        return [*self.program, "--csv", *(str(word) for pair in options.items() for word in pair)]

    def run(self, port: int, workload: Workload, requests: int, timeout: float) -> LoadResult:
        """Send ``requests`` requests; raises BenchError when that fails or takes longer than ``timeout``."""
        output, status, cpu_seconds = run_accounted(self.command(port, workload, requests), timeout)
        if status:
            raise BenchError(f"{self.name}: status {status}: {output.strip()[-300:]}")
        figures = parse_csv(output)
        per_second, p50 = figures["rps"], figures.get("p50_latency_ms")
        busy = figures.get("cpu_seconds", cpu_seconds)
        return LoadResult(requests, per_second, busy * per_second / requests, p50)


BUILTIN = Generator("built-in", "2", (sys.executable, "-m", "bench.builtin"))


def find_generator(force_builtin: bool = False) -> Generator:
    """redis-benchmark, or the stand-in."""
    path = None if force_builtin else shutil.which("redis-benchmark")
    if not path:
        return BUILTIN
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return Generator("redis-benchmark", found.group() if found else "?", (path,))


def generator_for(workload: Workload, generator: Generator) -> Generator:
    """The generator itself, or the built-in one for blends and for tenants."""
    return generator if workload.test in UNIFORM and not workload.tenants else BUILTIN


def run_accounted(command: Sequence[str], timeout: float) -> tuple[str, int, float]:
    """Run a command to its end: its output, its status and the CPU seconds it used."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        ended = os.pidfd_open(process.pid)
        try:
            in_time = bool(select.select([ended], [], [], timeout)[0])
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            os.close(ended)
        if not in_time:
            process.kill()
            process.wait()
            raise BenchError(f"{Path(command[0]).name} did not finish within {timeout:.0f} s")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return text, process.returncode, usage.ru_utime + usage.ru_stime


def parse_csv(output: str) -> dict[str, float]:
    """The figures of ``--csv`` output by name: ``rps`` always, more where there is a header line."""
    header = ["test", "rps"]
    for row in csv.reader(io.StringIO(output)):
        if row[:2] == ["test", "rps"]:
            header = row
        elif len(row) >= 2 and re.fullmatch(r"\d+(\.\d+)?", row[1]) and float(row[1]):
            return {name: float(value) for name, value in zip(header[1:], row[1:], strict=False)}
    raise BenchError(f"no figures in the load generator's output: {output.strip()[-300:]!r}")
