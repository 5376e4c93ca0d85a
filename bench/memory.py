"""What an entry of the tier costs in memory, beyond the bytes of its key and value."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench import cpu
from bench.data import PASSES, bulk_reads, connect, set_many, tier_info
from bench.figures import Figure
from bench.servers import BenchError, Server, Stable
from bench.workloads import (
    COUNTED,
    GROWTH,
    MEMORY_ENTRIES,
    MEMORY_OPTIONS,
    MEMORY_VALUE,
    OVERHEAD,
)

SETTLE = 1.0
ENOUGH = 0.99  # of the entries must be in


@dataclass(frozen=True)
class Growth:
    """Two looks at a proxy whose tier was filled in between."""

    rss_before: int
    rss_after: int
    entries: int | None
    tier_bytes: int | None


def name(number: int) -> bytes:
    """A key of 16 bytes."""
    return b"memory:%09d" % number


def value(number: int) -> bytes:
    """A value of its own for every key."""
    return b"%0*d" % (MEMORY_VALUE, number)


def fill(proxy: Server, count: int) -> Growth:
    """Read every key several times, in pipelines, and look at the process before and after."""
    time.sleep(SETTLE)
    before = cpu.rss_bytes(proxy.pid)
    with connect(proxy.port) as link:
        for _ in range(2 * PASSES):
            bulk_reads(link, count, name, value)
    time.sleep(SETTLE)
    after = cpu.rss_bytes(proxy.pid)
    proxy.require_alive()
    told = tier_info(proxy.port)
    return Growth(before, after, told.get("entries"), told.get("bytes"))


def figures(growth: Growth, count: int, note: str = "") -> list[Figure]:
    """The figures of the report; without the entries in, the overhead says nothing and is marked so."""
    payload = len(name(0)) + MEMORY_VALUE
    grown = (growth.rss_after - growth.rss_before) / count
    invalid = ""
    if growth.entries is None:
        invalid = "INFO sidecar has no pannier_tier_entries"
    elif growth.entries < ENOUGH * count:
        invalid = f"only {growth.entries:,} of {count:,} entries are in"
    about = f"{count:,} entries, {len(name(0))}-byte keys, {MEMORY_VALUE}-byte values"
    sizes = f"{growth.rss_before / 1e6:.1f} MB before, {growth.rss_after / 1e6:.1f} MB after"
    found = [
        Figure(OVERHEAD, [grown - payload], "; ".join(filter(None, (about, note))), invalid),
        Figure(GROWTH, [grown], sizes),
    ]
    if growth.entries and growth.tier_bytes is not None:
        told = f"pannier_tier_entries {growth.entries:,}, pannier_tier_bytes {growth.tier_bytes:,}"
        found.append(Figure(COUNTED, [growth.tier_bytes / growth.entries], told))
    return found


def measure(stable: Stable, count: int = MEMORY_ENTRIES) -> tuple[list[Figure], list[str]]:
    """Fill a fresh proxy's tier; the figures, and what failed."""
    try:
        options, note = stable.options_for(MEMORY_OPTIONS)
        upstream = stable.start_redis("Redis behind the proxy")
        with connect(upstream.port) as link:
            set_many(link, range(count), name, value)
        proxy = stable.start_proxy(upstream, options)
        found = figures(fill(proxy, count), count, note)
    except (BenchError, OSError) as error:
        return [], [f"memory of the tier: {error}"]
    finally:
        stable.stop(list(stable.servers))
    return found, [f"{figure.what.title}: {figure.invalid}" for figure in found if figure.invalid]
