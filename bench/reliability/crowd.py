"""Thousands of open connections, of which a hundred do something."""

from __future__ import annotations

import asyncio
import time

from bench import cpu
from bench.idle import make_room
from bench.reliability.figures import Part
from bench.reliability.talking import Talker, internal_errors, quantile, talk
from bench.servers import Stable

ACTIVE = 100
RATE = 2000.0
"""Commands a second of all active ones together."""
BATCH = 100
"""Connections opened at once."""


async def run(stable: Stable, quick: bool) -> Part:
    """Measure the active ones alone, then in the crowd."""
    room = make_room(300 if quick else 10_000)
    seconds = 1.0 if quick else 10.0
    part = Part(
        "crowd",
        "Open connections",
        f"{room.connections:,} connections are opened, say PING once, and stay; then {ACTIVE} of "
        f"them send GET for a hundred keys, {RATE:,.0f} a second together for {seconds:g} s, "
        "timed one by one by the client (its own delays among them); and before, the same with "
        "no others open." + f" {room.note}".rstrip(),
    )
    redis = stable.start_redis("redis behind")
    options = ("--max-clients", "20000", "--admin-listen", "off")
    proxy = stable.start_proxy(redis, options)
    try:
        active = [await talk(proxy.port) for _ in range(ACTIVE)]
        for number in range(100):
            await active[0].ask("SET", f"crowd:{number}", "x" * 100)
        await _work(active, 0.5)  # what is read has been read
        alone, wrong_alone = await _work(active, seconds)
        before = cpu.rss_bytes(proxy.pid)
        idle: list[Talker] = []
        while len(idle) < room.connections - ACTIVE:
            count = min(BATCH, room.connections - ACTIVE - len(idle))
            batch = await asyncio.gather(*[talk(proxy.port) for _ in range(count)])
            await asyncio.gather(*[each.ask("PING") for each in batch])
            idle += batch
        grown = cpu.rss_bytes(proxy.pid) - before
        crowded, wrong = await _work(active, seconds)
        part.note("connections open", len(idle) + len(active))
        part.note("RSS per connection", grown / max(1, len(idle)) / 1024, "KB")
        part.note("RSS with all of them", cpu.rss_bytes(proxy.pid) / 1e6, "MB")
        for name, fraction in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("slowest", 1.0)):
            part.note(f"{name} of the active ones alone", quantile(alone, fraction) * 1000, "ms")
            part.note(f"{name} of the active ones in the crowd", quantile(crowded, fraction) * 1000, "ms")
        part.none("wrong or missing replies", wrong + wrong_alone)
        part.none("connections closed by the proxy", sum(each.closed for each in (*idle, *active)))
        part.sound(internal_errors(proxy))
        for each in (*idle, *active):
            each.drop()
        await asyncio.sleep(0)
    finally:
        stable.stop([redis, proxy])
    return part


async def _work(active: list[Talker], seconds: float) -> tuple[list[float], int]:
    """What each command took, sorted, and how many were answered with anything else."""
    times: list[float] = []
    wrong = 0
    pause = len(active) / RATE
    end = time.perf_counter() + seconds

    async def one(number: int, talker: Talker) -> None:
        nonlocal wrong
        due = time.perf_counter() + pause * number / len(active)
        turn = number
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            reply = await talker.ask("GET", f"crowd:{turn % 100}")
            times.append(time.perf_counter() - began)
            wrong += reply != b"x" * 100
            turn += 1
            due += pause

    await asyncio.gather(*[one(number, talker) for number, talker in enumerate(active)])
    return sorted(times), wrong
