"""``python -m bench.reliability``: all parts one after the other, as a table and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

from bench.reliability import crowd, fuzz, soak, storm
from bench.reliability.figures import Part, markdown
from bench.report import machine
from bench.servers import ROOT, BenchError, ProxyCommand, Stable, redis_binary
from proxy import __version__

RESULTS = ROOT / "bench" / "results"
Run = Callable[[Stable, bool], Awaitable[Part]]
PARTS: dict[str, Run] = {"crowd": crowd.run, "storm": storm.run, "soak": soak.run, "fuzz": fuzz.run}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.reliability", description="What goes on in trouble."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds of each: whether it is right, not how fast"
    )
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this; may be repeated")
    parser.add_argument("--redis", metavar="PATH", help="the redis-server to use")
    parser.add_argument(
        "--to", metavar="DIRECTORY", type=Path, help="where to write (default: bench/results)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; exit status 0 if all that is asked holds, 1 if not."""
    options = parse(arguments)
    try:
        if options.to is not None:
            options.to.mkdir(parents=True, exist_ok=True)
        redis = redis_binary(options.redis)
        about = machine()
        parts: list[Part] = []
        for name in options.part or PARTS:
            print(f"{name} …", file=sys.stderr, flush=True)
            with Stable(redis, ProxyCommand.pannier()) as stable:
                parts.append(uvloop.run(PARTS[name](stable, options.quick)))
    except (BenchError, OSError) as error:
        print(f"reliability: {error}", file=sys.stderr)
        return 2
    settings = {"pannier": __version__, "redis-server": redis.label}
    if options.quick:
        settings["quick"] = "a few seconds of each"
    report = markdown(about, settings, parts)
    print(report)
    to = options.to or (None if options.quick or options.part else RESULTS)
    if to is not None:
        data = {"machine": about, "settings": settings, "parts": {part.key: part.to_json() for part in parts}}
        (to / "reliability.md").write_text(report)
        (to / "reliability.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(part.holds for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
