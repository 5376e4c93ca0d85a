"""What hits take at a steady rate of arrivals: a share of the greatest rate that each contender can do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench import cpu
from bench.data import check_reads, read_through
from bench.figures import Spread
from bench.peers import openloop
from bench.peers.openloop import Blend, Outcome
from bench.peers.running import Entrant, entered, load
from bench.peers.sections import Column, Section, Value, prose
from bench.peers.setting import Bench
from bench.runner import SETTLE
from bench.servers import BenchError
from bench.traffic import HOT_KEYS, parts
from bench.workloads import CLIENTS, Workload, warmup

NAME = "latency"
SHARES = (50, 20, 80)
"""Percent of the greatest rate. What is asked for is at 50 %, so that is first."""
JUDGED, TIMES = 50, 2.0
"""At that share, p99 of Pannier's hits should be less than so many times p50."""
LATE = 0.25
"""Of p99: if the generator is later than that, the machine is not idle enough to judge."""
STEPS = 1 + len(SHARES)
WORKLOAD = Workload("get", 1, clients=CLIENTS, keyspace=HOT_KEYS)
COLUMNS = (
    Column("contender", "contender"),
    Column("percent", "load, %", 0),
    Column("rate", "asked, 1/s", 0),
    Column("achieved", "achieved, 1/s", 0),
    Column("p50", "p50, µs", 0),
    Column("p99", "p99, µs", 0),
    Column("p999", "p99.9, µs", 0),
    Column("most", "max, µs", 0),
    Column("p99_ratio", "p99 ÷ p50", 1),
    Column("server_cpu", "server CPU (cores)"),
    Column("load_cpu", "generator CPU (cores)"),
    Column("late_p99", "sent late: p99, µs", 0),
)
ABOUT = prose(f"""
    GETs of {HOT_KEYS:,} hot keys over {CLIENTS} connections, all in the tier of those who have one. A
    closed loop at depth 1 finds the greatest rate each contender does here (the best of as many runs as
    there are rounds). Then requests come at a constant share of it, whether or not earlier ones have been
    answered, and latency is measured from the moment a request was due (HdrHistogram, 3 digits), so that a
    stall is charged to all that were due meanwhile. Contenders take turns; median (least–greatest) of the
    rounds. *Server* is the contender's own process, without the Redis behind it. *Sent late* is how late
    the generator itself sent requests, which is part of their latency: it tells whether the machine was
    idle enough.
""")


@dataclass(frozen=True)
class Round:
    """One measured run."""

    outcome: Outcome
    server_cpu: float
    """Of a core, the contender's own."""


@dataclass
class Able:
    """An entrant and what it can do."""

    entrant: Entrant
    greatest: float
    """Requests a second in a closed loop."""
    saturated: bool
    """Whether that is what the generator can do."""

    @property
    def name(self) -> str:
        """The contender's."""
        return self.entrant.name


@contextmanager
def telling(bench: Bench, what: str) -> Iterator[None]:
    """Note a failure, and go on after the block."""
    try:
        yield
    except (BenchError, OSError) as error:
        bench.failures.append(f"{NAME}: {what}: {error}")


def measure(bench: Bench) -> Section:
    """Every contender at every share."""
    openloop.histogram()  # or it would be missed only after all the closed loops
    section = Section(NAME, "Latency at a steady rate", ABOUT, COLUMNS)
    with entered(bench, bench.contenders) as entrants:
        able = greatest_rates(bench, entrants)
        bench.progress.step()
        for one in able:
            if one.saturated:
                section.notes.append(
                    f"{one.name}: the generator was at its limit in the closed loop: {one.greatest:,.0f}/s "
                    "is the least the contender can do, so the loads are lighter than they say"
                )
        for share in SHARES:
            rounds = take_turns(bench, able, share)
            bench.progress.step()
            for one in able:
                if found := rounds.get(one.name):
                    add_row(section, one, share, found)
    judge(section)
    return section


def greatest_rates(bench: Bench, entrants: Sequence[Entrant]) -> list[Able]:
    """What each can do; who fails is left out, and it is told."""
    found = []
    for entrant in entrants:
        bench.progress.begin(f"{NAME}: greatest rate", entrant.name)
        with telling(bench, entrant.name):
            found.append(greatest_rate(bench, entrant))
    return found


def greatest_rate(bench: Bench, entrant: Entrant) -> Able:
    """Load the data, and see how fast it is all read again and again."""
    sent = parts(WORKLOAD.test, WORKLOAD.keyspace)
    entrant.store.provide(sent)
    if entrant.contender.caches:
        read_through(entrant.server.port, sent)
    check_reads(entrant.server.port, sent)
    warm = load(bench, entrant, WORKLOAD, warmup(WORKLOAD.depth))
    requests = WORKLOAD.requests_for(warm.per_second, bench.seconds)
    runs = [load(bench, entrant, WORKLOAD, requests) for _ in range(bench.rounds)]
    best = max(runs, key=lambda run: run.per_second)
    return Able(entrant, best.per_second, best.saturated)


def take_turns(bench: Bench, able: Sequence[Able], share: int) -> dict[str, list[Round]]:
    """All rounds at one share; who begins alternates, and who fails is left out, and told."""
    found: dict[str, list[Round]] = {one.name: [] for one in able}
    for number in range(bench.rounds):
        for one in able[:: -1 if number % 2 else 1]:
            if one.name not in found:
                continue
            bench.progress.begin(f"{NAME}: {share} %", f"round {number + 1} of {bench.rounds}, {one.name}")
            rounds = found.pop(one.name)
            with telling(bench, f"{one.name}/{share}"):
                found[one.name] = [*rounds, run(bench, one, share)]
    return found


def run(bench: Bench, one: Able, share: int) -> Round:
    """One measured run."""
    bench.require_time()
    server = one.entrant.server
    before = cpu.sample(server.pid)
    try:
        outcome = openloop.run(server.port, one.greatest * share / 100, bench.seconds, Blend(HOT_KEYS))
    finally:
        server.require_alive()
    time.sleep(SETTLE)
    busy = cpu.between(before, cpu.sample(server.pid)) / 1e9
    return Round(outcome, busy * outcome.achieved / outcome.sent)


def add_row(section: Section, one: Able, share: int, rounds: Sequence[Round]) -> None:
    """The medians, and a note when they are not at the rate they say."""
    name = f"{one.name}/{share}"
    outcomes = [each.outcome for each in rounds]
    names = ("rate", "achieved", "p50", "p99", "p999", "most", "late_p99")
    spreads = {key: Spread.of(getattr(outcome, key) for outcome in outcomes) for key in names}
    section.add(
        name,
        contender=one.entrant.contender.title,
        percent=share,
        p99_ratio=Spread.of(outcome.p99 / outcome.p50 for outcome in outcomes),
        server_cpu=Spread.of(each.server_cpu for each in rounds),
        load_cpu=Spread.of(outcome.cpu_share for outcome in outcomes),
        **spreads,
    )
    if behind := sum(outcome.behind for outcome in outcomes):
        section.notes.append(
            f"{name}: behind in {behind} of {len(rounds)} rounds: the rate was not reached, or the generator "
            "was at its limit"
        )


def judge(section: Section) -> None:
    """Say whether Pannier's hits are as even as they should be, beside those of Redis on this machine."""
    rows = {row.name: row.values for row in section.rows}
    mine, direct = rows.get(f"pannier/{JUDGED}"), rows.get(f"redis/{JUDGED}", {})
    if mine is None:
        return
    ratio, other = median(mine["p99_ratio"]), median(direct.get("p99_ratio"))
    verdict = "met" if ratio < TIMES else "missed"
    note = f"pannier/{JUDGED}: p99 is {ratio:.1f} times p50, should be less than {TIMES:g}: {verdict}"
    note += f"; that of Redis direct is {other:.1f} times" if other else ""
    if median(mine["late_p99"]) > LATE * median(mine["p99"]):
        note += "; much of p99 is how late the generator was: the machine had other things to do"
    section.notes.append(note)


def median(value: Value) -> float:
    """Of a figure; 0 where there is none."""
    return value.median if isinstance(value, Spread) else 0.0
