"""How the cost of an operation grows with keys, values, clients, namespaces and rules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.data import PASSES, Store, connect, exchange, send_all
from bench.peers.commands import note_saturation
from bench.peers.contenders import Contender, pannier, redis_direct
from bench.peers.running import Entrant, Rounds, entered, figures, take_turns
from bench.peers.sections import Column, Section, prose
from bench.peers.setting import Bench
from bench.traffic import COMMANDS, HOT_KEYS, MANY_KEYS, frame, parts
from bench.workloads import CLIENTS as CLIENTS_OF_OTHERS
from bench.workloads import PASSWORD, Workload, tenant, warmup

NAME = "scaling"
KEYS = (1_000, 10_000, 100_000, MANY_KEYS)
CLIENTS = (1, 10, 100, 1_000, 10_000)
NAMESPACES = (1, 10, 100, 1_000)
RULES = (1, 10, 100, 1_000)
DEPTH = 16
ROWS = 2 * (len(KEYS) + len(CLIENTS) + len(NAMESPACES) + 2 * len(RULES))
"""Measured: of Redis and of Pannier."""
_ROOMY = ("--max-memory", "1gb", "--admit-after", "1", "--refill-limit", "0")
_CROWD = ("--max-clients", "11000")
_TOLD = {options: " ".join(options) for options in (_ROOMY, _CROWD)}
_LONG = 10_000
"""Warm-up requests at depth 1 for few clients."""


def measure(bench: Bench) -> Section:
    """One thing grows at a time."""
    section = Section(
        NAME,
        "Scaling",
        prose(f"""
            Hits (and misses where it says so) while one thing grows: the number of hot keys at depth
            {DEPTH} (`{_TOLD[_ROOMY]}`), of clients at depth 1 (`{_TOLD[_CROWD]}`), of namespaces in use
            at depth {DEPTH} (as many tenants, the clients theirs in turn, {HOT_KEYS:,} hot keys in
            all), of rules at depth {DEPTH} (the last of which is the one that matches). Redis has
            neither namespaces nor rules: its rows stand for comparison. What the size of a value does
            is in a table of its own. The misses are those of a tier that is not full yet: of what is
            read twice most is fetched and kept, which the misses of the first table, of a full tier,
            are spared.
        """),
        (
            Column("what", "what grows"),
            Column("n", "to", 0),
            Column("contender", "contender"),
            Column("own_us", "own µs/op", 3),
            Column("own_ratio", "own ÷ Redis"),
            Column("total_us", "total µs/op", 3),
            Column("per_second", "ops/s", 0),
            Column("redis_per_1000", "commands at Redis per 1,000", 0),
            Column("load_cpu", "generator CPU (cores)"),
        ),
    )
    redis = redis_direct(bench.stable)
    _keys(bench, section, [redis, pannier(bench.stable, _ROOMY)])
    _clients(bench, section, [redis, pannier(bench.stable, _CROWD)])
    _namespaces(bench, section, redis)
    _rules(bench, section, redis)
    return section


def _row(
    bench: Bench, section: Section, entrants: Sequence[Entrant], what: str, n: int, workload: Workload
) -> None:
    """Measure a row for each of those, who take turns."""
    _add(section, what, n, take_turns(bench, entrants, workload, f"{what}, {n:,}"), entrants)


def _add(section: Section, what: str, n: int, rounds: Rounds, entrants: Sequence[Entrant]) -> None:
    kept = {column.key for column in section.columns}
    for entrant in entrants:
        if entrant.name in rounds:
            values = {key: value for key, value in figures(rounds, entrant.name).items() if key in kept}
            name = f"{what.replace(', ', '-')}/{n}/{entrant.name}"
            section.add(name, what=what, n=n, contender=entrant.contender.title, **values)
            note_saturation(section, name, rounds[entrant.name])


def _keys(bench: Bench, section: Section, contenders: Sequence[Contender]) -> None:
    with entered(bench, contenders) as entrants:
        for count in KEYS:
            workload = Workload(
                "get", DEPTH, keyspace=count, warmup_requests=warmup(DEPTH), least_hits=0.0
            )
            _row(bench, section, entrants, "keys", count, workload)


def _clients(bench: Bench, section: Section, contenders: Sequence[Contender]) -> None:
    with entered(bench, contenders, ("--maxclients", "11000")) as entrants:
        for count in CLIENTS:
            requests = max(_LONG, 10 * count)
            workload = Workload("get", 1, clients=count, warmup_requests=requests, least_hits=0.0)
            _row(bench, section, entrants, "clients", count, workload)


# --- namespaces


@contextmanager
def _file(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pannier-bench-") as folder:
        file = Path(folder) / "settings.toml"
        file.write_text(text)
        yield str(file)


def tenants_file(count: int) -> str:
    """So many tenants, each with a namespace of its name."""
    return "".join(
        f'[tenants.{tenant(number)}]\npassword = "{PASSWORD}"\nnamespace = "{tenant(number)}"\n'
        for number in range(count)
    )


def _prepare_tenants(entrant: Entrant, bench: Bench, workload: Workload) -> None:
    """Load every tenant's keys, and read them as that tenant until they are hits."""
    command = COMMANDS["get"]
    for number in range(workload.tenants):
        bench.require_time()
        prefix = tenant(number).encode() + b":"
        Store(entrant.redis.port, prefix).provide(parts(workload.test, workload.keyspace))
        with connect(entrant.server.port) as link:
            words = (b"AUTH", tenant(number).encode(), PASSWORD.encode())
            exchange(link, frame(*words), b"+OK\r\n", "AUTH")
            for _ in range(PASSES):
                send_all(link, map(command.request, range(workload.keyspace)), command.reply, "GET")


def _namespaces(bench: Bench, section: Section, redis: Contender) -> None:
    for count in NAMESPACES:
        with _file(tenants_file(count)) as file:
            proxy = pannier(bench.stable, ("--config", file))
            with entered(bench, [redis, proxy]) as entrants:
                clients = max(CLIENTS_OF_OTHERS, count)
                plain = Workload("get", DEPTH, clients=clients, warmup_requests=warmup(DEPTH), least_hits=0.0)
                rounds = take_turns(bench, entrants[:1], plain, f"Redis for {clients:,} clients")
                for entrant in entrants[1:]:
                    entrant.prepare = partial(_prepare_tenants, entrant)
                keys = max(1, HOT_KEYS // count)
                theirs = replace(plain, tenants=count, keyspace=keys)
                rounds |= take_turns(bench, entrants[1:], theirs, f"namespaces, {count:,}")
                _add(section, "namespaces", count, rounds, entrants)


# --- rules


def rules_file(count: int) -> str:
    """So many rules, of which the last matches the load's keys."""
    patterns = [*(f"other{number}:*" for number in range(count - 1)), "key:*"]
    return "".join(f'[[rules]]\nmatch = "{pattern}"\nl1_ttl = "300s"\n' for pattern in patterns)


def _rules(bench: Bench, section: Section, redis: Contender) -> None:
    hits = Workload("get", DEPTH, warmup_requests=warmup(DEPTH), least_hits=0.0)
    misses = Workload("get", DEPTH, keyspace=MANY_KEYS, warmup_requests=warmup(DEPTH))
    for count in RULES:
        with _file(rules_file(count)) as file:
            proxy = pannier(bench.stable, ("--rules-file", file))
            with entered(bench, [redis, proxy]) as entrants:
                _row(bench, section, entrants, "rules", count, hits)
                _row(bench, section, entrants, "rules, misses", count, misses)
