"""``python -m bench``: the proxy beside Redis direct, in one run, as a table and JSON.

A bench informs, it is no test: a missed target leaves the exit status at 0. What fails to run makes it 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bench import cpu, idle
from bench.load import Generator, find_generator
from bench.report import Progress, Result, machine, markdown, to_json
from bench.runner import Runner
from bench.servers import BenchError, ProxyCommand, Stable, redis_binary
from bench.workloads import CLIENTS, KEYSPACE, READY_STARTS, TESTS, WORKLOADS, Workload

RESULTS = Path(__file__).resolve().parent / "results"
IDLE_STEPS = 3
BUILTIN_NOTICE = (
    "bench: using the built-in load generator (redis-benchmark is not on PATH, or not wanted); it is slower, "
    "so read CPU per operation rather than throughput"
)


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    rounds: int
    seconds: float
    tests: Sequence[str]
    depths: Sequence[int]
    idle: bool
    load: bool
    json: Path | None
    quick: bool
    builtin: bool
    redis_server: str | None
    proxy_command: str | None
    time_limit: float

    def workloads(self) -> list[Workload]:
        """The chosen rows."""
        return [w for w in WORKLOADS if self.load and w.test in self.tests and w.depth in self.depths]


def test_list(text: str) -> list[str]:
    """Names of tests, comma-separated."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(TESTS):
        raise argparse.ArgumentTypeError(f"{text!r}: known tests are {', '.join(TESTS)}")
    return names


def depth_list(text: str) -> list[int]:
    """Pipeline depths, comma-separated."""
    known = sorted({workload.depth for workload in WORKLOADS})
    depths = [int(word) for word in text.split(",") if word.strip().isdigit()]
    if not depths or set(depths) - set(known) or len(depths) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: known depths are {', '.join(map(str, known))}")
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
    add("--only", type=test_list, default=TESTS, metavar="TESTS", help="tests, such as get,set")
    add("--depth", type=depth_list, default=[1, 16, 64], metavar="DEPTHS", help="depths, such as 1,64")
    add("--quick", action="store_true", help="2 rounds of 0.4 s: a glance, not a measurement")
    add("--no-idle", dest="idle", action="store_false", help="leave out start-up time and idle memory")
    add("--idle-only", dest="load", action="store_false", help="start-up time and idle memory only")
    add("--json", type=Path, metavar="FILE", help="write the JSON here, too")
    add("--builtin-load", dest="builtin", action="store_true", help="use the built-in load generator")
    add("--redis-server", metavar="FILE", help="this redis-server rather than the newest found")
    add(
        "--proxy-command",
        metavar="COMMAND",
        help="run this in place of the proxy; {port}: where it listens, {upstream_port}: its Redis",
    )
    add("--time-limit", type=positive, default=900.0, metavar="S", help="give up after S seconds (900)")
    chosen = vars(parser.parse_args(arguments))
    chosen["rounds"] = int(chosen["rounds"] or (2 if chosen["quick"] else 5)) or 1
    chosen["seconds"] = chosen["seconds"] or (0.4 if chosen["quick"] else 1.2)
    chosen["tests"], chosen["depths"] = chosen.pop("only"), chosen.pop("depth")
    return Options(**chosen)


def settings(options: Options, redis: str, generator: Generator) -> dict[str, Any]:
    """What a reader must know to compare two reports."""
    known: dict[str, Any] = {
        "redis": redis,
        "load": f"{generator.name} {generator.version}",
        "clients": CLIENTS,
        "keys": KEYSPACE,
        "value bytes": 3,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "CPU from": cpu.source(),
    }
    if options.proxy_command:
        known["note"] = "another command ran in place of the proxy"
    return known


def collect(options: Options, result: Result, stable: Stable, generator: Generator) -> None:
    """Run everything that was asked for; ``result`` keeps what is finished when the rest is cut short."""
    workloads = options.workloads()
    progress = Progress(len(workloads) * 2 * (options.rounds + 1) + IDLE_STEPS * options.idle)
    deadline = time.monotonic() + options.time_limit
    runner = Runner(stable, generator, options.rounds, options.seconds, deadline, progress)
    try:
        if workloads:
            cells, failures = runner.run(workloads)
            result.cells += cells
            result.failures += failures
        if options.idle and time.monotonic() < deadline:
            progress.begin("idle figures")
            figures, failures = idle.measure(stable, 2 if options.quick else READY_STARTS)
            result.idle += figures
            result.failures += failures
    except (BenchError, OSError) as error:
        result.failures.append(str(error))
    finally:
        progress.finish()


def write(result: Result, extra: Path | None) -> None:
    """Keep the report as files."""
    data = json.dumps(to_json(result), indent=2, ensure_ascii=False) + "\n"
    RESULTS.mkdir(exist_ok=True)
    for path in (RESULTS / "latest.json", extra):
        if path:
            path.write_text(data)
    (RESULTS / "latest.md").write_text(markdown(result))


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM like Ctrl-C, so that servers end with the bench."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, interrupt)
    stand_in = options.proxy_command
    command = ProxyCommand.from_text(stand_in) if stand_in else ProxyCommand.pannier()
    idle.make_room()
    try:
        redis = redis_binary(options.redis_server)
        generator = find_generator(options.builtin)
        if generator.builtin:
            print(BUILTIN_NOTICE, file=sys.stderr)
        result = Result(machine(), settings(options, redis.label, generator))
        with Stable(redis, command) as stable:
            collect(options, result, stable, generator)
        write(result, options.json)
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
