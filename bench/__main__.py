"""``python -m bench``: the proxy beside Redis direct, in one run, as a table and JSON.

A bench informs, it is no test: a missed target leaves the exit status at 0. What fails to run makes it 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bench import cpu, idle, memory, stalls, warming, workers
from bench.compiled import unpacked
from bench.figures import Result
from bench.load import Generator, find_generator
from bench.progress import Progress
from bench.report import machine, markdown, to_json
from bench.runner import Runner
from bench.servers import BenchError, ProxyCommand, Stable, redis_binary
from bench.traffic import TESTS, VALUE
from bench.workloads import (
    CLIENTS,
    DEPTHS,
    GROUP_NAMES,
    IDLE_GROUP,
    MEMORY_GROUP,
    READY_STARTS,
    STALL_GROUP,
    WORKERS_GROUP,
    WORKLOADS,
    Workload,
)

RESULTS = Path(__file__).resolve().parent / "results"
ALL = "all"
IDLE_STEPS = 3
MEMORY_STEPS = 5
WORKERS_STEPS = len(workers.ROWS)
STALL_STEPS = len(stalls.UPHEAVALS)
BLENDS_NOTICE = " (built-in for blends and lists)"
BUILTIN_NOTICE = (
    "bench: using the built-in load generator (redis-benchmark is not on PATH, or not wanted); compare "
    "its throughput with its own only"
)


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    rounds: int
    seconds: float
    groups: Sequence[str]
    tests: Sequence[str]
    depths: Sequence[int]
    json: Path | None
    quick: bool
    builtin: bool
    redis_server: str | None
    proxy_command: str | None
    compiled: bool
    time_limit: float

    def workloads(self) -> list[Workload]:
        """The chosen rows."""
        return [
            workload
            for workload in WORKLOADS
            if workload.group in self.groups and workload.test in self.tests and workload.depth in self.depths
        ]

    @property
    def whole(self) -> bool:
        """Whether everything is measured, in earnest and of the proxy."""
        named = (GROUP_NAMES, self.groups), (TESTS, self.tests), (DEPTHS, self.depths)
        return all(set(known) <= set(chosen) for known, chosen in named) and not (
            self.quick or self.proxy_command or self.compiled
        )


def names_of(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """A reader of comma-separated names."""

    def read(text: str) -> list[str]:
        names = [name.strip().lower() for name in text.split(",") if name.strip()]
        if not names or set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: known {what} are {', '.join(known)}")
        return names

    return read


def depth_list(text: str) -> list[int]:
    """Pipeline depths, comma-separated."""
    depths = [int(word) for word in text.split(",") if word.strip().isdigit()]
    if not depths or set(depths) - set(DEPTHS) or len(depths) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: known depths are {', '.join(map(str, DEPTHS))}")
    return depths


def positive(text: str) -> float:
    """A number above zero."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="The proxy beside Redis direct.")
    add = parser.add_argument
    add("--rounds", type=positive, help="measured rounds per row (default 5)")
    add("--seconds", type=positive, help="length of one measurement (default 1.2)")
    add(
        "--group",
        type=names_of((*GROUP_NAMES, ALL), "groups"),
        metavar="GROUPS",
        help=f"of {', '.join(GROUP_NAMES)} or all (default; pass-through,idle with --proxy-command)",
    )
    add(
        "--only",
        type=names_of(TESTS, "tests"),
        metavar="TESTS",
        help=f"rows of these tests, of {', '.join(TESTS)}; leaves out what has no tests unless named",
    )
    add("--depth", type=depth_list, metavar="DEPTHS", help="rows of these depths, such as 1,64; likewise")
    add("--quick", action="store_true", help="2 rounds of 0.4 s: a glance, not a measurement")
    add("--no-idle", action="store_true", help="leave out start-up time and idle memory")
    add("--idle-only", action="store_true", help="start-up time and idle memory only: --group idle")
    add("--json", type=Path, metavar="FILE", help="write the JSON here (a whole run: too)")
    add("--builtin-load", dest="builtin", action="store_true", help="use the built-in load generator")
    add("--redis-server", metavar="FILE", help="this redis-server rather than the newest found")
    add(
        "--proxy-command",
        metavar="COMMAND",
        help="run this in place of the proxy; {port}: where it listens, {upstream_port}: its Redis",
    )
    add("--compiled", action="store_true", help="measure the wheel of `make compiled`")
    add("--time-limit", type=positive, default=1800.0, metavar="S", help="give up after S seconds (1800)")
    chosen = vars(parser.parse_args(arguments))
    if chosen["compiled"] and chosen["proxy_command"]:
        parser.error("argument --compiled: not with --proxy-command, which says itself what is measured")
    chosen["rounds"] = int(chosen["rounds"] or (2 if chosen["quick"] else 5)) or 1
    chosen["seconds"] = chosen["seconds"] or (0.4 if chosen["quick"] else 1.2)
    chosen["groups"] = chosen_groups(chosen)
    chosen["tests"], chosen["depths"] = chosen.pop("only") or TESTS, chosen.pop("depth") or DEPTHS
    return Options(**chosen)


def chosen_groups(chosen: dict[str, Any]) -> list[str]:
    """The groups to run; takes the options about them out of ``chosen``."""
    named, idle_only, no_idle = (chosen.pop(name) for name in ("group", "idle_only", "no_idle"))
    if idle_only:
        return [IDLE_GROUP]
    groups = list(named) if named and ALL not in named else list(GROUP_NAMES)
    if not named and chosen["proxy_command"]:
        groups = ["pass-through", IDLE_GROUP]
    if not named and (chosen["only"] or chosen["depth"]):
        groups = [group for group in groups if group not in (MEMORY_GROUP, STALL_GROUP, WORKERS_GROUP)]
    return [group for group in groups if not (no_idle and group == IDLE_GROUP)]


def settings(options: Options, redis: str, generator: Generator) -> dict[str, Any]:
    """What a reader must know to compare two reports."""
    known: dict[str, Any] = {
        "redis": redis,
        "load": f"{generator.name} {generator.version}" + ("" if generator.builtin else BLENDS_NOTICE),
        "clients": CLIENTS,
        "value bytes": len(VALUE),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "CPU from": cpu.source(),
    }
    if options.proxy_command:
        known["note"] = "another command ran in place of the proxy"
    elif options.compiled:
        known["note"] = "compiled"
    return known


def collect(options: Options, result: Result, stable: Stable, generator: Generator) -> None:
    """Run everything that was asked for; ``result`` keeps what is finished when the rest is cut short."""
    workloads = options.workloads()
    with_memory, with_idle = MEMORY_GROUP in options.groups, IDLE_GROUP in options.groups
    steps = len(workloads) * 2 * (options.rounds + 1)
    steps += WORKERS_STEPS * (WORKERS_GROUP in options.groups)
    steps += STALL_STEPS * (STALL_GROUP in options.groups)
    progress = Progress(steps + MEMORY_STEPS * with_memory + IDLE_STEPS * with_idle)
    deadline = time.monotonic() + options.time_limit
    runner = Runner(stable, generator, options.rounds, options.seconds, deadline, progress)
    try:
        if workloads:
            runner.run(workloads, result)
        if WORKERS_GROUP in options.groups and time.monotonic() < deadline:
            result.workers, failures = workers.measure(
                stable, generator, options.rounds, options.seconds, deadline, progress
            )
            result.failures += failures
        if STALL_GROUP in options.groups and time.monotonic() < deadline:
            result.stalls, failures = stalls.measure(stable, options.rounds, deadline, progress)
            result.failures += failures
        if with_memory and time.monotonic() < deadline:
            progress.begin("memory of the tier")
            for measure in (memory.measure, warming.measure):
                figures, failures = measure(stable)
                result.memory += figures
                result.failures += failures
            progress.step(MEMORY_STEPS)
        if with_idle and time.monotonic() < deadline:
            progress.begin("idle figures")
            result.idle, failures = idle.measure(stable, 2 if options.quick else READY_STARTS)
            result.failures += failures
    except (BenchError, OSError) as error:
        result.failures.append(str(error))
    finally:
        progress.finish()


def write(result: Result, options: Options, results: Path = RESULTS) -> None:
    """Keep the report as files: where it was asked for, and if it is a whole one as the latest, in place of
    the one before."""
    data = json.dumps(to_json(result), indent=2, ensure_ascii=False) + "\n"
    if options.json:
        options.json.write_text(data)
    if options.whole:
        results.mkdir(exist_ok=True)
        (results / "sidecar.json").write_text(data)
        (results / "sidecar.md").write_text(markdown(result))
    else:
        print("bench: not the whole of it, so the latest results stay as they were", file=sys.stderr)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM like Ctrl-C, so that servers end with the bench."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, interrupt)
    idle.make_room()
    try:
        if options.proxy_command:
            command = ProxyCommand.from_text(options.proxy_command)
        else:
            command = ProxyCommand.pannier(unpacked() if options.compiled else None)
        redis = redis_binary(options.redis_server)
        generator = find_generator(options.builtin)
        if generator.builtin:
            print(BUILTIN_NOTICE, file=sys.stderr)
        result = Result(machine(), settings(options, redis.label, generator))
        with Stable(redis, command) as stable:
            collect(options, result, stable, generator)
        write(result, options)
    except KeyboardInterrupt:
        print("\nbench: interrupted; every server it started is stopped", file=sys.stderr)
        return 130
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(markdown(result), end="")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
