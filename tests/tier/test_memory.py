"""The tier's count of its bytes is honest: never below what it takes, and not far above."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_MEASURE = """
import gc, os
from tests.tier.shelves import make, read

N, VALUE = 100_000, b"x" * 100
tier, shelf, clock = make(max_memory=1 << 30)
fills = [b"2\\r\\n$3\\r\\nGET\\r\\n$16\\r\\n%016d\\r\\n" % n for n in range(3)]
for part in fills:
    shelf.land(shelf.open(tier.rules.read(part)), b"$100\\r\\n" + VALUE + b"\\r\\n", float("inf"))
shelf.clear()
gc.collect()
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
before = rss()
for n in range(N):
    part = b"2\\r\\n$3\\r\\nGET\\r\\n$16\\r\\n%016d\\r\\n" % n
    shelf.land(shelf.open(tier.rules.read(part)), b"$100\\r\\n%b\\r\\n" % VALUE, 30.0 + n % 1000)
    clock.now += 0.0001
del part
gc.collect()
print(rss() - before, tier.used, tier.entries)
"""


def test_of_100_000_small_entries() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _MEASURE], cwd=root, capture_output=True, text=True, timeout=60, check=True)
    taken, counted, entries = map(int, done.stdout.split())
    assert entries == 100_000
    overhead = taken / entries - 16 - 100
    assert overhead <= 300, f"{overhead:.1f} bytes an entry"
    assert taken <= counted <= taken * 1.25, f"takes {taken / entries:.1f} bytes an entry, counts {counted / entries:.1f}"
