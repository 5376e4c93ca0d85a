"""How much memory the control group of this process may take (Linux), and what of it is for entries.

A container's memory limit is the limit of its control group; so is `MemoryMax=` of a systemd service. The
kernel kills who exceeds it, so what is kept in memory by default has to fit in there. Both versions of
control groups are read, and every group above one's own: the least limit is the one that counts.

https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from proxy.kinds import show_size

MB = 1 << 20
PARENT = 32 * MB
"""What the parent of several workers takes."""
AT_REST = 48 * MB
"""What a process takes before anything is kept: measured 47.7 MB, rounded up. Entries come on top, by what
they are counted as (8, 32 and 64 MB, full of values of 100 or of 4,000 bytes: 55, 79 and 111 MB in all)."""
FOR_CLIENTS = 24 * MB
"""What should be left for connections and what is under way on them: 4,000 idle ones take 7 MB, 4,000 that
have all just sent twenty commands, 20 to 40 MB for a moment."""
_LEAST = 1 * MB
"""The least that max_memory accepts."""
_UNLIMITED = 1 << 60
"""From here on a limit of version 1 means none: it is written as the greatest number there is."""


def memory_limit(root: Path = Path("/")) -> int | None:
    """The memory limit of this process in bytes, the least of all that hold for it; None if there is none.

    `root` is where /proc and /sys are. Never raises: what cannot be read, or is not there, is no limit.
    """
    limits = [limit for path in _files(root) if (limit := _read(path)) is not None]
    return min(limits, default=None)


def at_rest(workers: int) -> int:
    """Bytes that Pannier takes with nothing in memory, in so many processes and their parent's."""
    return AT_REST * workers + (PARENT if workers > 1 else 0)


def fitting_memory(usual: int, limit: int | None, workers: int = 1) -> int:
    """What entries may take by default: the usual amount, or what fits under a limit, in whole MB.

    That is half of what is left beside Pannier at rest; the other half is for clients.
    """
    if limit is None:
        return usual
    fitting = (limit - at_rest(workers)) // 2 // MB * MB
    return max(_LEAST * workers, min(usual, fitting))


def in_mb(limit: int) -> str:
    """A limit as it is shown, in the spelling of settings; what is below a MB is left out."""
    return f"{limit // MB}mb"


def needed(max_memory: int, workers: int = 1) -> int:
    """The least limit for a memory tier of that size: clients get FOR_CLIENTS, or as much as a smaller tier.

    The rule of docs/container.md, which manifests in deploy/ obey.
    """
    return at_rest(workers) + max_memory + min(max_memory, FOR_CLIENTS)


def exceeds(max_memory: int, limit: int | None, workers: int = 1) -> bool:
    """Whether a memory tier that is full would leave too little of the limit for clients."""
    return limit is not None and needed(max_memory, workers) > limit


def broken_limit(max_memory: int, limit: int | None, workers: int = 1) -> str:
    """What to do where the limit is too low for a memory tier that is full; empty where it is not."""
    if limit is None or not exceeds(max_memory, limit, workers):
        return ""
    rest, fits = at_rest(workers), fitting_memory(max_memory, limit, workers)
    lower = "" if exceeds(fits, limit, workers) else f", or lower max_memory to {show_size(fits)}"
    return (
        f"max_memory {show_size(max_memory)} does not fit under the memory limit of {in_mb(limit)}: Pannier "
        f"takes {in_mb(rest)} beside, clients some more, and it may be killed when memory is full; "
        f"raise the limit to {in_mb(needed(max_memory, workers))}{lower}"
    )


def _files(root: Path) -> Iterator[Path]:
    """Files that may hold a limit of one's own control group or of one above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be that on the host, which is not there, and what is mounted the
        # container's own group: so every directory above is looked at, there or not. `..` lies outside.
        own = PurePosixPath(*[part for part in path.split("/") if part not in ("", "..")])
        for group in (own, *own.parents):
            yield mount / group / name


def _read(path: Path) -> int | None:
    try:
        text = path.read_text("ascii", "replace").strip()
    except OSError:
        return None
    limit = int(text) if text.isdecimal() else _UNLIMITED
    return limit if limit < _UNLIMITED else None
