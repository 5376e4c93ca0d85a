"""What commands cost: by kind and pipeline depth, by the size of values, by the number of clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.figures import Spread
from bench.peers.contenders import Contender, with_options
from bench.peers.running import Entrant, Measured, Rounds, entered, figures, fill, take_turns
from bench.peers.sections import Column, Section, Value, prose
from bench.peers.setting import Bench
from bench.servers import BenchError
from bench.traffic import FIELDS, HOT_KEYS, MANY_KEYS, SIZES, ZIPF, ZIPF_KEYS
from bench.workloads import CLIENTS, Workload, warmup

DEPTHS = (1, 4, 16, 64)
_LARGE = ("--max-value-size", "2mb")
FILL = 2_000_000
"""Uniform reads of a million keys, so that the tier and its doorkeeper are as full as they get."""

COLUMNS = (
    Column("contender", "contender"),
    Column("version", "version"),
    Column("total_ratio", "total ÷ Redis"),
    Column("own_ratio", "own ÷ Redis"),
    Column("total_us", "total µs/op"),
    Column("own_us", "own µs/op"),
    Column("behind_us", "Redis behind µs/op"),
    Column("per_second", "ops/s", 0),
    Column("hit_percent", "hits %", 1),
    Column("redis_per_1000", "commands at Redis per 1,000", 0),
    Column("load_cpu", "generator CPU (cores)"),
)
HEADS = (Column("workload", "what is sent"), Column("depth", "P", 0), *COLUMNS)


@dataclass(frozen=True)
class Kind:
    """A kind of traffic, to be sent at several depths."""

    name: str
    title: str
    workload: Workload
    weight: int = 1
    """How many GETs one request is worth, about: a warm-up has as many fewer."""
    filled: bool = False
    """Whether tiers have to be full of other keys before."""


def _kind(
    name: str, title: str, test: str, *, hot: bool = True, keys: int = HOT_KEYS, weight: int = 1
) -> Kind:
    workload = Workload(test, 1, title=title, group=name, keyspace=keys, least_hits=0.0 if hot else None)
    return Kind(name, title, workload, weight, filled=keys == MANY_KEYS)


KINDS = (
    _kind("get-hits", f"GET, {HOT_KEYS:,} hot keys", "get"),
    _kind("set", f"SET, {HOT_KEYS:,} keys", "set", hot=False),
    _kind("mix-95-5", f"95 % GET, 5 % SET, {ZIPF_KEYS:,} Zipf keys", "mix-95-5"),
    _kind("mix-80-20", f"80 % GET, 20 % SET, {ZIPF_KEYS:,} Zipf keys", "mix-80-20"),
    _kind("mget-10", f"MGET of 10 of {HOT_KEYS:,} hot keys", "mget-10", weight=4),
    _kind("mget-100", f"MGET of 100 of {HOT_KEYS:,} hot keys", "mget-100", weight=20),
    _kind("hgetall-20", f"HGETALL of {FIELDS} fields, {HOT_KEYS:,} hot hashes", "hgetall", weight=4),
    _kind("get-misses", f"GET, {MANY_KEYS:,} keys, uniform", "get", hot=False, keys=MANY_KEYS),
)
"""Misses come last: they fill the tiers."""


def at(kind: Kind, depth: int, clients: int = CLIENTS) -> Workload:
    """The kind's workload at a depth, with a warm-up of about as many bytes as others have."""
    requests = max(400, warmup(depth) // kind.weight)
    requests -= requests % depth
    return replace(kind.workload, depth=depth, clients=clients, warmup_requests=requests)


def add_rows(
    section: Section, prefix: str, rounds: Rounds, contenders: Iterable[Contender], **heads: Value
) -> None:
    """A row for each contender that was measured."""
    for contender in contenders:
        if contender.name in rounds:
            values = figures(rounds, contender.name)
            name = f"{prefix}/{contender.name}"
            section.add(name, contender=contender.title, version=contender.version, **heads, **values)
            note_saturation(section, name, rounds[contender.name])


def note_saturation(section: Section, name: str, measured: Sequence[Measured]) -> None:
    """Say of a row if the load generator set the pace in most rounds."""
    if sum(one.saturated for one in measured) * 2 > len(measured):
        section.notes.append(f"{name}: the load generator was saturated; ops/s is its limit")


def by_command(bench: Bench) -> Section:
    """The commands at every depth."""
    section = Section(
        "commands",
        "Commands by depth",
        prose(f"""
            {CLIENTS} connections on loopback. CPU is what the kernel charged each process tree for the
            same requests, in µs an operation: *own* is the contender, *behind* the Redis it asks, *total*
            both; ratios are to Redis asked directly, in the same round. Median (least–greatest) of the
            rounds. For hits every hot key was read four times before; before the misses (some of which
            are hits: see their column) {FILL:,} reads of all keys have filled the tier. Zipf exponent
            {ZIPF}. GET and SET are sent by redis-benchmark where it is at hand, all else by the built-in
            generator, which compares every reply.
        """),
        HEADS,
    )
    with entered(bench, bench.contenders) as entrants:
        for kind in KINDS:
            if kind.filled:
                _fill_all(bench, entrants, kind.workload)
            for depth in DEPTHS:
                rounds = take_turns(bench, entrants, at(kind, depth), f"{kind.name} at depth {depth}")
                heads: dict[str, Value] = {"workload": kind.title, "depth": depth}
                add_rows(section, f"{kind.name}/{depth}", rounds, bench.contenders, **heads)
    return section


def _fill_all(bench: Bench, entrants: Iterable[Entrant], workload: Workload) -> None:
    for entrant in entrants:
        bench.progress.begin("filling the tiers", entrant.name)
        try:
            fill(bench, entrant, workload, FILL)
        except (BenchError, OSError) as error:
            bench.failures.append(f"filling the tier of {entrant.name}: {error}")


def by_size(bench: Bench) -> Section:
    """Hits on values of several sizes."""
    section = Section(
        "values",
        "Hits by the size of the value",
        f"GET, {CLIENTS} connections; as many keys as fit into 64 MB at once, each read four times before: "
        + ", ".join(f"{count:,} of {size:,} bytes" for size, count in SIZES.items())
        + ". At depth 16 a reply of a megabyte would be 16 MB a client, so that it is left out. Unless told "
        f"otherwise, Pannier keeps up to a megabyte with its frame: `{' '.join(_LARGE)}`.",
        (Column("size", "bytes", 0), *HEADS[1:]),
    )
    contenders = [with_options(bench.stable, each, _LARGE) for each in bench.contenders]
    with entered(bench, contenders) as entrants:
        for size, keys in SIZES.items():
            for depth in (1, 16) if size <= 16_384 else (1,):
                warm = max(200, warmup(depth) // (1 + size // 256))
                workload = Workload(
                    f"value-{size}", depth, keyspace=keys, warmup_requests=warm, least_hits=0.0
                )
                rounds = take_turns(bench, entrants, workload, f"values of {size:,} bytes at depth {depth}")
                add_rows(section, f"{size}/{depth}", rounds, contenders, size=size, depth=depth)
    return section


def by_clients(bench: Bench) -> Section:
    """Hits for one, 50 and 500 connections."""
    section = Section(
        "clients",
        "Hits by the number of clients",
        f"GET, {HOT_KEYS:,} hot keys, as in the first table.",
        (Column("clients", "clients", 0), *HEADS[1:]),
    )
    with entered(bench, bench.contenders) as entrants:
        for clients in (1, 50, 500):
            for depth in DEPTHS:
                workload = at(KINDS[0], depth, clients)
                rounds = take_turns(bench, entrants, workload, f"{clients} clients at depth {depth}")
                heads: dict[str, Value] = {"clients": clients, "depth": depth}
                add_rows(section, f"{clients}/{depth}", rounds, bench.contenders, **heads)
    return section


def relief(commands: Section) -> Section:
    """What the same load of an application leaves for Redis to do; from the rows of the first table."""
    section = Section(
        "relief",
        "Redis relief",
        "Of the table above, at depth 1: what is left for Redis to do of 1,000 requests of the application, "
        "asked directly and through each contender.",
        (
            Column("workload", "what is sent"),
            Column("contender", "contender"),
            Column("redis_per_1000", "commands at Redis", 0),
            Column("redis_us", "CPU at Redis, µs", 0),
            Column("saved_percent", "CPU saved at Redis, %", 0),
        ),
    )
    kept = {row.name: row.values for row in commands.rows if row.values["depth"] == 1}
    for name, values in kept.items():
        kind, _, contender = name.split("/")
        direct = kept.get(f"{kind}/1/redis")
        part = "own_us" if contender == "redis" else "behind_us"
        if direct is None:
            continue
        used, whole = 1000 * median(values[part]), 1000 * median(direct["own_us"])
        section.add(
            f"{kind}/{contender}", workload=values["workload"], contender=values["contender"],
            redis_per_1000=values["redis_per_1000"], redis_us=used, saved_percent=100 * (1 - used / whole),
        )  # fmt: skip
    return section


def median(value: Value) -> float:
    """The one figure of a value that has one."""
    match value:
        case Spread():
            return value.median
        case int() | float():
            return value
        case _:
            raise ValueError(f"{value!r} is no figure")
