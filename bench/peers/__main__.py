"""Command line of the comparison: choose, measure, print, keep. See ``--help``."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cpu, idle
from bench.__main__ import interrupt
from bench.load import Generator, find_generator
from bench.peers import commands, hitratio, inprocess, latency, plots, remote, scaling, summary
from bench.peers.contenders import EVERY, Lineup, line_up
from bench.peers.sections import Section
from bench.peers.setting import Bench
from bench.progress import Progress
from bench.report import machine
from bench.servers import ROOT, BenchError, ProxyCommand, Stable, redis_binary

RESULTS = Path(__file__).resolve().parent.parent / "results"
MOST_CONNECTIONS = 11_500


@dataclass(frozen=True)
class Part:
    """A section, or what it is made of."""

    name: str
    measure: Callable[[Bench], Section]
    steps: Callable[[int, int], int]
    """How many steps it has for the progress bar, by contenders and rounds."""


def _rows(count: int) -> Callable[[int, int], int]:
    return lambda contenders, rounds: count * contenders * (rounds + 1)


PARTS = (
    Part("commands", commands.by_command, _rows(len(commands.KINDS) * len(commands.DEPTHS))),
    Part("values", commands.by_size, _rows(7)),
    Part("clients", commands.by_clients, _rows(3 * len(commands.DEPTHS))),
    Part("latency", latency.measure, lambda *_: latency.STEPS),
    Part("remote", remote.measure, lambda *_: remote.STEPS),
    Part("in-process", inprocess.measure, lambda *_: inprocess.STEPS),
    Part("scaling", scaling.measure, lambda _, rounds: scaling.ROWS * (rounds + 1)),
    Part("hit-ratio", hitratio.measure, lambda *_: hitratio.STEPS),
)
NAMES = tuple(part.name for part in PARTS)
ORDER = ("commands", "relief", *NAMES[1:])
"""Of the sections in the report."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description="Compare Pannier with Redis asked directly, other proxies and a cache inside the client; "
        "a whole run writes bench/results/latest.md, latest.json and plots.",
    )
    add = parser.add_argument
    add("--part", action="append", choices=NAMES, help="this part only; may be given several times")
    add("--contender", action="append", choices=list(EVERY), help="this one beside Redis; likewise")
    add("--rounds", type=int, default=3, metavar="N", help="rounds of each row (3)")
    add("--seconds", type=float, default=0.7, metavar="S", help="of one measurement (0.7)")
    add("--quick", action="store_true", help="1 round of 0.2 s: a glance, not a measurement")
    add("--out", type=Path, metavar="FOLDER", help="write the report there; what is not measured stays")
    add("--redis-server", metavar="FILE", help="this redis-server rather than the newest found")
    add("--time-limit", type=float, default=5400.0, metavar="S", help="begin nothing after S seconds (5400)")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not (0 < options.seconds < math.inf and 0 < options.time_limit < math.inf):
        parser.error("--rounds, --seconds and --time-limit must be greater than 0, and not without end")
    try:
        earlier(options.out or RESULTS)
    except (OSError, ValueError) as error:
        parser.error(f"{options.out or RESULTS}: no report can be written there: {error}")
    if options.quick:
        options.rounds, options.seconds = 1, 0.2
    return options


def collect(bench: Bench, parts: Sequence[Part]) -> list[Section]:
    """Measure every part; one that fails is told, and the rest goes on."""
    found: list[Section] = []
    for part in parts:
        try:
            found.append(part.measure(bench))
            found[-1].date = f"{machine()['date']}, {bench.rounds} × {bench.seconds:g} s{version()}"
            if part.name == "commands":
                found.append(commands.relief(found[-1]))
                found[-1].date = found[-2].date
        except (BenchError, OSError) as error:
            bench.failures.append(f"{part.name}: {error}")
    return found


def version() -> str:
    """Of which commit this is, where git tells."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
        return f", at commit {done.stdout.strip()}" if done.returncode == 0 else ""
    return ""


def to_json(
    options: argparse.Namespace, lineup: Lineup, bench: Bench, sections: list[Section]
) -> dict[str, Any]:
    """Everything as plain data."""
    generator = bench.generator
    return {
        "machine": machine(),
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "load": "built-in" if generator.builtin else f"{generator.name} {generator.version}, built-in",
            "CPU from": cpu.source(),
        },
        "contenders": {
            each.name: {"title": each.title, "version": each.version, "flags": each.flags}
            for each in lineup.present
        },
        "missing": lineup.missing,
        "measured": [section.name for section in sections if section.rows],
        "sections": {section.name: section.to_json() for section in sections},
        "failures": bench.failures,
    }


def markdown(results: dict[str, Any], sections: list[Section], drawn: Sequence[Path]) -> str:
    """The report for a reader."""

    def told(what: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in what.items())

    who = [
        f"- **{each['title']}** {each['version']}" + (f": {each['flags']}" if each["flags"] else "")
        for each in results["contenders"].values()
    ]
    who += [f"- left out: {reason}" for reason in results["missing"]]
    parts = ["# Pannier beside others", told(results["machine"]), told(results["settings"]), "\n".join(who)]
    parts += summary.markdown(results)
    parts += [f"![{file.stem}]({file.name})" for file in drawn]
    parts += [section.markdown() for section in sections]
    if results["failures"]:
        parts.append("Failed to run:\n\n" + "\n".join(f"- {failure}" for failure in results["failures"]))
    return "\n\n".join(parts) + "\n"


def earlier(folder: Path) -> dict[str, Any]:
    """The report that is in a folder, which is made if it is not there; empty if there is none.

    Raises OSError or ValueError if there can be none, or it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "latest.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def beside(folder: Path, results: dict[str, Any]) -> list[Section]:
    """The sections, and in their places those that a report there has and this run did not measure, or not to
    any result; who took part in those is kept as well."""
    before = earlier(folder)
    kept: dict[str, Any] = before.get("sections", {})
    found = kept | {name: data for name, data in results["sections"].items() if data["rows"]}
    results["sections"] = {name: found[name] for name in ORDER if name in found}
    if any(name not in results["measured"] for name in found):
        results["contenders"] = before["contenders"] | results["contenders"]
        results["missing"] = list(dict.fromkeys([*before["missing"], *results["missing"]]))
        results["failures"] = list(dict.fromkeys([*before["failures"], *results["failures"]]))
        results["machine"], results["settings"] = before["machine"], before["settings"]
    return [Section.from_json(name, data) for name, data in results["sections"].items()]


def write(folder: Path, results: dict[str, Any]) -> None:
    """The report as files; what was measured there before and not now stays."""
    sections = beside(folder, results)
    del results["measured"]
    (folder / "latest.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    drawn: list[Path] = []
    try:
        drawn = plots.draw(results, folder)
    except BenchError as error:
        print(f"bench: no plots: {error}", file=sys.stderr)
    (folder / "latest.md").write_text(markdown(results, sections, drawn))


def run(options: argparse.Namespace, generator: Generator) -> int:
    """Measure and write; the exit status."""
    names = ["redis", *dict.fromkeys(name for name in options.contender or EVERY if name != "redis")]
    parts = [part for part in PARTS if part.name in (options.part or NAMES)]
    with Stable(redis_binary(options.redis_server), ProxyCommand.pannier()) as stable:
        lineup = line_up(stable, names)
        for reason in lineup.missing:
            print(f"bench: going on without {reason}", file=sys.stderr)
        present = len(lineup.present)
        progress = Progress(sum(part.steps(present, options.rounds) for part in parts))
        deadline = time.monotonic() + options.time_limit
        bench = Bench(stable, lineup.present, generator, options.rounds, options.seconds, deadline, progress)
        try:
            sections = collect(bench, parts)
        finally:
            progress.finish()
        results = to_json(options, lineup, bench, sections)
    whole = not (options.part or options.contender or options.quick)
    folder = options.out or (RESULTS if whole else None)
    print(markdown(results, sections, []), end="")
    if folder:
        write(folder, results)
    else:
        print("bench: not the whole of it, so the latest results stay as they were", file=sys.stderr)
    return 1 if bench.failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, interrupt)
    idle.make_room(MOST_CONNECTIONS)
    try:
        return run(options, find_generator())
    except KeyboardInterrupt:
        print("\nbench: interrupted; every server it started is stopped", file=sys.stderr)
        return 130
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
