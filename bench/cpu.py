"""CPU time and memory of process trees, as the Linux kernel accounts them.

The scheduler's own run time (``/proc/PID/task/TID/schedstat``, nanoseconds) is the main source. It forgets
threads that have ended and is absent from some kernels; the clock ticks of ``/proc/PID/stat`` cover both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
TICKS_OF_DOUBT = 3


@dataclass(frozen=True)
class Stat:
    """What ``/proc/PID/stat`` says that matters here; times in nanoseconds."""

    parent: int
    cpu_ns: int
    reaped_children_ns: int
    started: int


@dataclass(frozen=True)
class Sample:
    """CPU time used so far by a process tree, from both sources of the kernel."""

    scheduler_ns: int
    ticks_ns: int


def parse_stat(text: str) -> Stat:
    """Read the one line of ``/proc/PID/stat``; the command name may hold spaces and parentheses."""
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(
        parent=int(fields[1]),
        cpu_ns=(int(fields[11]) + int(fields[12])) * TICK_NS,
        reaped_children_ns=(int(fields[13]) + int(fields[14])) * TICK_NS,
        started=int(fields[19]),
    )


def read_stat(pid: int) -> Stat | None:
    """The process's figures, or None when it is gone."""
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text(errors="replace"))
    except (OSError, ValueError, IndexError):
        return None


def tree(root: int) -> list[int]:
    """The process and all its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (stat := read_stat(int(entry.name))):
            children.setdefault(stat.parent, []).append(int(entry.name))
    found = [root] if read_stat(root) else []
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def scheduler_ns(pid: int) -> int:
    """Run time of the process's living threads; 0 when the kernel does not tell."""
    total = 0
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue
    except OSError:
        return 0
    return total


def sample(root: int) -> Sample:
    """CPU time of the tree under ``root`` until now, reaped children included."""
    run_time = ticks = 0
    for pid in tree(root):
        run_time += scheduler_ns(pid)
        if stat := read_stat(pid):
            ticks += stat.cpu_ns + stat.reaped_children_ns
    return Sample(run_time, ticks)


def between(before: Sample, after: Sample) -> int:
    """Nanoseconds of CPU between two samples: the fine source, unless the coarse one contradicts it."""
    fine = after.scheduler_ns - before.scheduler_ns
    coarse = after.ticks_ns - before.ticks_ns
    if after.scheduler_ns == 0 or abs(fine - coarse) > TICKS_OF_DOUBT * TICK_NS:
        return coarse
    return fine


def source() -> str:
    """Which of the kernel's accounts this machine offers, for the report."""
    if scheduler_ns(os.getpid()):
        return "schedstat (ns)"
    return f"utime+stime ({TICK_NS // 1_000_000} ms ticks)"


def rss_bytes(pid: int) -> int:
    """Resident memory of one process; 0 when it is gone."""
    try:
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
