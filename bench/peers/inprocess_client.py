"""The application of the comparison with an in-process cache: one thread, redis-py, one command at a time.

    python -m bench.peers.inprocess_client PORT --mode cached --keys 10000 --seconds 1

It reads keys by how popular they are (Zipf; key 0 most), writes a share of them, and prints what that took
as a line of JSON. The keys must be there: `bench.peers.inprocess` loads them. With ``--on-cue`` it first
prints a line when it is warm, then measures once for each line it is sent, and ends with its input: so that
what it has cached lasts from round to round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle
from typing import Any

import redis
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from bench import cpu
from bench.servers import HOST
from bench.traffic import key

VALUE = b"v" * 100
DRAWN = 100_000
"""Requests that are drawn before anything is measured; then they come again in the same order."""
PLAIN_WARM_UP = 1_000
"""Reads before measuring where nothing is kept by the application."""
TRACKS_SINCE = "6.0.0"
"""The first Redis with CLIENT TRACKING. redis-py asks for 7.4, but does nothing that older ones cannot."""

Request = tuple[bytes, bool]
"""A key, and whether it is written."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.inprocess_client")
    parser.add_argument("port", type=int)
    parser.add_argument("--mode", choices=("plain", "cached"), required=True)
    parser.add_argument("--keys", type=int, required=True, help="how many there are")
    parser.add_argument("--seconds", type=float, required=True, help="of one measurement")
    parser.add_argument("--write-share", type=float, default=0.0, help="of the operations, 0 to 1")
    parser.add_argument("--zipf", type=float, default=0.99, help="exponent of how popular keys are")
    parser.add_argument("--entries", type=int, help="that the cache may hold; all keys, unless given")
    parser.add_argument("--warm-seconds", type=float, default=12.0, help="limit of reading ahead")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same requests")
    parser.add_argument("--on-cue", action="store_true", help="measure at each line of the input")
    return parser.parse_args(argv)


def connect(options: argparse.Namespace) -> redis.Redis:
    """A client as applications have it, with or without its own cache; both speak RESP3."""
    if options.mode == "plain":
        return redis.Redis(HOST, options.port, protocol=3)
    CacheProxyConnection.MIN_ALLOWED_VERSION = TRACKS_SINCE
    return redis.Redis(HOST, options.port, protocol=3, cache_config=CacheConfig(max_size=entries(options)))


def entries(options: argparse.Namespace) -> int:
    """How many values the cache may hold."""
    return int(options.entries or options.keys)


def draw(options: argparse.Namespace) -> list[Request]:
    """Requests as the options say."""
    draws = random.Random(options.seed)
    popularity = list(accumulate((rank + 1) ** -options.zipf for rank in range(options.keys)))
    numbers = draws.choices(range(options.keys), cum_weights=popularity, k=DRAWN)
    return [(key(number), draws.random() < options.write_share) for number in numbers]


def warm_up(client: redis.Redis, options: argparse.Namespace) -> None:
    """Read what the cache can hold, the most popular first; raises SystemExit when a key is missing."""
    end = time.monotonic() + options.warm_seconds
    count = min(options.keys, entries(options) if options.mode == "cached" else PLAIN_WARM_UP)
    for number in range(count):
        if client.get(key(number)) is None:
            raise SystemExit(f"{key(number)!r} is not there: load it first")
        if time.monotonic() > end:
            return


def measure(client: redis.Redis, requests: Iterator[Request], seconds: float) -> dict[str, float]:
    """Send one request after the other for so long; CPU and latencies are in µs."""
    get, put, clock = client.get, client.set, time.perf_counter_ns
    took = array("q")
    used = time.process_time_ns()
    began = now = clock()
    end = began + int(seconds * 1e9)
    for name, writes in requests:
        if writes:
            put(name, VALUE)
        else:
            get(name)
        before, now = now, clock()
        took.append(now - before)
        if now >= end:
            break
    used = time.process_time_ns() - used
    ordered = sorted(took)
    return {
        "operations": len(ordered),
        "seconds": (now - began) / 1e9,
        "cpu_us": used / len(ordered) / 1e3,
        "p50_us": ordered[len(ordered) // 2] / 1e3,
        "p99_us": ordered[len(ordered) * 99 // 100] / 1e3,
    }


def cached(client: redis.Redis) -> int:
    """How many values the client keeps now."""
    cache = client.get_cache()
    return cache.size if cache else 0


def tell(figures: dict[str, Any]) -> None:
    """Print them for whoever started this."""
    print(json.dumps(figures), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Warm up, measure, print.

    Requests are drawn after the cache is full: memory that drawing leaves behind would hide its growth.
    """
    options = parse(argv)
    with connect(options) as client:
        client.ping()
        empty = cpu.rss_bytes(os.getpid())
        warm_up(client, options)
        gc.collect()
        growth = {"rss_growth_bytes": cpu.rss_bytes(os.getpid()) - empty}
        requests = cycle(draw(options))
        if options.on_cue:
            tell(growth | {"entries": cached(client)})
        for _ in sys.stdin if options.on_cue else ("at once",):
            figures = measure(client, requests, options.seconds)
            tell(figures | growth | {"entries": cached(client)})


if __name__ == "__main__":
    main()
