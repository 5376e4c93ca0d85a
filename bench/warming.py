"""How long it takes to warm the tier at the start, and what it costs."""

from __future__ import annotations

import re
import time

from bench import cpu
from bench.data import INFO, connect, set_many
from bench.figures import Figure
from bench.memory import name, value
from bench.servers import BenchError, Stable, receive
from bench.workloads import MEMORY_ENTRIES, MEMORY_OPTIONS, WARM_CPU, WARM_REDIS_CPU, WARM_SECONDS

LINE = re.compile(rb"^pannier_warm_(\w+):([\w.]+)\r?$", re.MULTILINE)
LOOK = 0.05
PATIENCE = 120.0


def warm_info(port: int) -> dict[str, str]:
    """The fields ``pannier_warm_*`` of INFO; empty when the proxy has none."""
    with connect(port) as link:
        link.sendall(INFO)
        head = b""
        while not head.endswith(b"\r\n") and (part := link.recv(1)):
            head += part
        text = receive(link, int(head[1:]))
    return {key.decode(): word.decode() for key, word in LINE.findall(text)}


def wait(port: int) -> dict[str, str]:
    """The fields once warming has ended."""
    deadline = time.monotonic() + PATIENCE
    while (found := warm_info(port)).get("status") != "done":
        if found.get("status") not in ("waiting", "running") or time.monotonic() > deadline:
            raise BenchError(f"warming: status {found.get('status', 'unknown')}")
        time.sleep(LOOK)
    return found


def measure(stable: Stable, count: int = MEMORY_ENTRIES) -> tuple[list[Figure], list[str]]:
    """Start a proxy that warms its tier; the figures, and what failed."""
    try:
        options, note = stable.options_for(("--warm", "memory:*", *MEMORY_OPTIONS))
        if note:
            return [], []
        upstream = stable.start_redis("Redis behind the proxy")
        with connect(upstream.port) as link:
            set_many(link, range(count), name, value)
        behind = cpu.sample(upstream.pid)
        proxy = stable.start_proxy(upstream, options)
        found = wait(proxy.port)
        if found["keys"] != str(count):
            raise BenchError(f"warming: {found['keys']} of {count} keys are in")
        own = cpu.between(cpu.Sample(0, 0), cpu.sample(proxy.pid))
        about = f"{count:,} entries, {len(name(0))}-byte keys; start-up included in the CPU"
        return [
            Figure(WARM_SECONDS, [float(found["seconds"])], about),
            Figure(WARM_CPU, [own / count / 1000]),
            Figure(WARM_REDIS_CPU, [cpu.between(behind, cpu.sample(upstream.pid)) / count / 1000]),
        ], []
    except (BenchError, OSError) as error:
        return [], [f"warming: {error}"]
    finally:
        stable.stop(list(stable.servers))
