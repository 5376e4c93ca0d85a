"""A storm of connections that come and go, and a client beside it."""

from __future__ import annotations

import asyncio
import json
import sys

from bench import cpu
from bench.reliability.figures import Part
from bench.reliability.talking import Witness, internal_errors
from bench.servers import ROOT, BenchError, Server, Stable

RATE = 5000.0
REACHED = 0.95


async def run(stable: Stable, quick: bool) -> Part:
    """Measure."""
    seconds, rate = (1.0, 500.0) if quick else (10.0, RATE)
    part = Part(
        "storm",
        "Connect and close",
        f"{rate:,.0f} connections a second for {seconds:g} s, by a process of its own: each says "
        "PING, waits for the answer, and closes or resets. Beside it, a client sends ECHO with "
        "words of its own every 5 ms.",
    )
    redis = stable.start_redis("redis behind")
    proxy = stable.start_proxy(redis, ("--admin-listen", "off"))
    try:
        async with Witness(proxy.port) as before:
            await asyncio.sleep(seconds / 5)
        await _storm(proxy.port, rate, seconds / 10)  # pools and arenas have the size that a storm needs
        rss = cpu.rss_bytes(proxy.pid)
        used = _cpu(proxy)
        async with Witness(proxy.port) as beside:
            found = await _storm(proxy.port, rate, seconds)
        used = _cpu(proxy) - used
        await asyncio.sleep(0.5)
        after = cpu.rss_bytes(proxy.pid)
        reached = found["done"] / found["seconds"]
        least = 0 if quick else rate * REACHED
        part.ask("connections a second", reached, "", f"≥ {least:,.0f}", reached >= least)
        part.none("connections refused or answered wrongly", int(found["errors"]))
        part.note("CPU of the proxy for each", used / 1000 / found["done"], "µs")
        part.note("CPU of the storm's process for each", found["cpu"] * 1e6 / found["done"], "µs")
        part.note("RSS before (after a tenth of the storm)", rss / 1e6, "MB")
        part.note("RSS after", after / 1e6, "MB")
        part.note("p50 of the client beside it, before", before.p50_ms, "ms")
        part.note("p50 of the client beside it", beside.p50_ms, "ms")
        part.note("p99 of the client beside it, before", before.p99_ms, "ms")
        part.note("p99 of the client beside it", beside.p99_ms, "ms")
        part.note("slowest of the client beside it", beside.most_ms, "ms")
        part.none("wrong or missing replies of the client beside it", beside.wrong)
        part.sound(internal_errors(proxy))
    finally:
        stable.stop([redis, proxy])
    return part


def _cpu(proxy: Server) -> int:
    """Nanoseconds it has used."""
    stat = cpu.read_stat(proxy.pid)
    return stat.cpu_ns if stat is not None else 0


async def _storm(port: int, rate: float, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.reliability.storming", str(port), str(rate), str(seconds)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(seconds + 60):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise BenchError("the storm did not end") from None
    found: dict[str, float] = json.loads(out)
    return found
