"""How many reads the tier answers, beside simulations of other policies and the best that is possible.

Hit ratios do not depend on the machine: Pannier is the real process in front of a real Redis, but nothing
here is timed. The simulations are libcachesim's, but for the optimum (see there).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from statistics import fmean
from typing import Any

from bench.builtin import drive
from bench.data import connect, set_many, tier_info
from bench.peers import streams
from bench.peers.sections import Column, Row, Section, prose
from bench.peers.setting import Bench
from bench.peers.streams import Stream
from bench.servers import BenchError, Server, Stable
from bench.traffic import bulk, frame, key

NAME = "hit-ratio"
PERCENTS = (1, 5, 10, 25)
"""Entries of the caches, in percent of the different keys of a stream."""
STEPS = len(streams.NAMES) * len(PERCENTS) + 1
CLIENTS = 32
"""Connections with one read under way each: quick, and within 0.3 points of what a single one gets."""
DEPTH = 16
"""Reads in a pipeline, in the cell that is measured with pipelines as well."""
PIPED = ("zipf-0.9", 5)
OPTIONS = ("--max-memory", "32mb", "--l1-ttl", "1h", "--refill-limit", "0")
"""So that nothing but --max-entries limits what is kept. 32mb: the smallest memory of keys that were read
once."""
QUICK = 5
"""By how much streams are shorter in a quick run."""
COUNTED = 0.99
"""Of the reads, the proxy must have counted as many."""
PACKAGE = "libcachesim"
POLICIES = ("lru", "sieve", "s3fifo", "wtinylfu")
"""What the library simulates, by column."""
HASH_POWER = 16
"""Of the library's tables. By default each takes 128 MB."""
GAPS = {
    "gap_lru": "LRU", "gap_best": "the best of SIEVE, S3-FIFO and W-TinyLFU", "gap_optimum": "the optimum",
}  # fmt: skip
COLUMNS = (
    Column("stream", "stream"),
    Column("percent", "size, % of keys", 0),
    Column("entries", "entries", 0),
    Column("pannier", "Pannier", 1),
    Column("lru", "LRU", 1),
    Column("sieve", "SIEVE", 1),
    Column("s3fifo", "S3-FIFO", 1),
    Column("wtinylfu", "W-TinyLFU", 1),
    Column("belady", "Belady", 1),
    Column("gap_lru", "gap to LRU", 1),
    Column("gap_best", "gap to the best of the three others", 1),
    Column("gap_optimum", "gap to Belady", 1),
)
ABOUT = """\
Reads answered by the cache, in percent of all after the first third of a stream, which warms; gaps in
percentage points, negative where Pannier answers less. Streams have {reads:,} reads: Zipf's law over
{keys:,} keys with three exponents; *scan-mixed*: 0.9, but after every {popular:,} of these, {scanned:,}
other keys are read this once, one after the other; *shifting*: 0.9, but after every {every:,} reads the
{turn:,} most popular keys become the least popular and the others move up. Sizes are in percent of the
different keys in the stream; all entries are equally large. Pannier is the real process (`--max-entries`
as shown, `{options}`, else default settings: a key is kept at its second read, and of these fewer are
let in while entries come and go without many hits) in front of a real Redis; {clients} connections send
one GET at a time, and every reply is compared. LRU, SIEVE, S3-FIFO and W-TinyLFU are simulated by
libcachesim with its default settings; they keep whatever they miss. Belady is the optimum for who knows
the future, and need not keep what it misses. What Pannier does not show here is how it forgets keys that
were read once: it remembers 65,536 at least, many times its entries here; with the entries that fit into
its default memory, about as many."""


# --- simulations


def library() -> Any:
    """The library of simulations; raises BenchError if it is not there."""
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise BenchError(f"the Python package {PACKAGE} is not installed") from error


def cache_of(library: Any, policy: str, entries: int) -> Any:
    """An empty cache of the library."""
    sizes = {"cache_size": entries, "hashpower": HASH_POWER}
    match policy:
        case "lru":
            return library.LRU(**sizes)
        case "sieve":
            return library.Sieve(**sizes)
        case "s3fifo":
            return library.S3FIFO(**sizes)
        case "wtinylfu":  # its window is 1 % of the entries; if that were none, nothing would ever be kept
            return library.WTinyLFU(**sizes, window_size=max(0.01, 1.5 / entries))
        case _:
            raise ValueError(f"no policy {policy}")


def simulated(library: Any, policy: str, reads: Sequence[int], entries: int) -> Iterator[bool]:
    """Which reads a policy of the library hits, all objects being of size 1."""
    get = cache_of(library, policy, entries).get
    request = library.Request(obj_size=1)
    for number in reads:
        request.obj_id = number
        yield get(request)


def next_reads(reads: Sequence[int]) -> list[int]:
    """For each read, the place of the next one of the same key; behind the end where there is none."""
    after: dict[int, int] = {}
    found = [len(reads)] * len(reads)
    for place in range(len(reads) - 1, -1, -1):
        found[place] = after.get(reads[place], len(reads))
        after[reads[place]] = place
    return found


def optimum(reads: Sequence[int], entries: int) -> Iterator[bool]:
    """Which reads Belady's optimum hits: what is read again last of all goes, or is not kept at all.

    The library's must keep what it misses, which Pannier need not: that would be no bound.
    """
    kept: dict[int, int] = {}  # the place of the next read, by key
    farthest: list[tuple[int, int]] = []  # a heap of these, negated; with some that hold no longer
    for number, following in zip(reads, next_reads(reads), strict=True):
        yield kept.pop(number, None) is not None
        if following == len(reads):
            continue
        kept[number] = following
        heappush(farthest, (-following, number))
        if len(kept) > entries:
            place, goes = heappop(farthest)
            while kept.get(goes) != -place:
                place, goes = heappop(farthest)
            del kept[goes]


def percent_hit(hits: Iterator[bool], stream: Stream) -> float:
    """The share of hits after the warm-up, in percent."""
    return 100 * sum(islice(hits, stream.warm, None)) / (len(stream.reads) - stream.warm)


# --- Pannier


def value(number: int) -> bytes:
    """Each key has a value of its own, so that replies that were mixed up are found."""
    return b"%016d" % number


def pipelines(reads: Sequence[int], depth: int = 1) -> list[tuple[bytes, bytes]]:
    """What is sent, `depth` reads at a time, each with what has to be answered."""
    groups = [reads[start : start + depth] for start in range(0, len(reads), depth)]
    return [
        (
            b"".join([frame(b"GET", key(number)) for number in group]),
            b"".join([bulk(value(number)) for number in group]),
        )
        for group in groups
    ]


@dataclass
class Place:
    """A Redis that has all keys, and what starts proxies in front of it."""

    stable: Stable
    redis: Server

    @classmethod
    def open(cls, stable: Stable, keys: int) -> Place:
        """Start the Redis and load it."""
        redis = stable.start_redis("Redis of the hit ratios")
        with connect(redis.port) as link:
            set_many(link, range(keys), key, value)
        return cls(stable, redis)

    def percent_hit(self, stream: Stream, entries: int, depth: int = 1, clients: int = CLIENTS) -> float:
        """What a fresh Pannier answers of a stream after the warm-up, in percent."""
        proxy = self.stable.start_proxy(self.redis, ["--max-entries", str(entries), *OPTIONS])
        try:
            self.send(proxy, stream.reads[: stream.warm], depth, clients)
            before = tier_info(proxy.port)
            self.send(proxy, stream.reads[stream.warm :], depth, clients)
            after = tier_info(proxy.port)
        finally:
            self.stable.stop([proxy])
        return counted(before, after, len(stream.reads) - stream.warm, COUNTED if depth == 1 else 0.0)

    @staticmethod
    def send(proxy: Server, reads: Sequence[int], depth: int, clients: int) -> None:
        """Have the reads answered, rightly."""
        sent = pipelines(reads, depth)
        try:
            drive(proxy.port, sent, len(sent), clients)
        except (BenchError, OSError):
            proxy.require_alive()
            raise


def counted(before: Mapping[str, int], after: Mapping[str, int], reads: int, least: float) -> float:
    """The share of hits between two looks, in percent of the reads sent.

    `least`: the share of the reads that must have been looked up; pipelines are not always.
    """
    if not all(name in look for name in ("hits", "misses") for look in (before, after)):
        raise BenchError("the proxy does not tell what its tier answered")
    hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
    if hits + misses < least * reads:
        raise BenchError(f"only {hits + misses:,} of {reads:,} reads were looked up")
    return 100 * hits / reads


# --- the section


def gaps(cell: Mapping[str, float]) -> dict[str, float]:
    """What Pannier answers more than LRU, than the best of the three others, and than the optimum."""
    found = {"gap_optimum": cell["pannier"] - cell["belady"]}
    if cell.keys() >= set(POLICIES):
        found["gap_lru"] = cell["pannier"] - cell["lru"]
        found["gap_best"] = cell["pannier"] - max(cell[name] for name in POLICIES if name != "lru")
    return found


def said(rows: Sequence[Row]) -> list[str]:
    """What the gaps are, in a sentence each."""
    sentences = []
    for gap, other in GAPS.items():
        known = [(found, row.name) for row in rows if isinstance(found := row.values.get(gap), float)]
        if known:
            (low, worst), (high, best) = min(known), max(known)
            sentences.append(
                f"Pannier less {other}: {fmean(found for found, _ in known):+.1f} points in the mean, "
                f"from {low:+.1f} ({worst}) to {high:+.1f} ({best})."
            )
    return sentences


def measure_cell(place: Place, cachesim: Any, stream: Stream, percent: int) -> Row:
    """Pannier and all simulations; `cachesim` is None if there is no library for these."""
    entries = stream.entries(percent)
    cell = {"pannier": place.percent_hit(stream, entries)}
    if cachesim is not None:
        for policy in POLICIES:
            cell[policy] = percent_hit(simulated(cachesim, policy, stream.reads, entries), stream)
    cell["belady"] = percent_hit(optimum(stream.reads, entries), stream)
    shown = {name: round(found, 2) for name, found in (cell | gaps(cell)).items()}
    return Row(
        f"{stream.name}/{percent}", {"stream": stream.name, "percent": percent, "entries": entries, **shown}
    )


def piped(place: Place, stream: Stream, percent: int, rows: Sequence[Row]) -> str:
    """What pipelines change, in a sentence; empty if there is nothing to compare with."""
    name = f"{stream.name}/{percent}"
    alone = next((row.values["pannier"] for row in rows if row.name == name), None)
    if not isinstance(alone, float):
        return ""
    found = place.percent_hit(stream, stream.entries(percent), DEPTH, 1)
    return (
        f"In pipelines of {DEPTH} over one connection, Pannier answers {found:.1f} % of the reads of {name}, "
        f"not {alone:.1f} %: a pipeline of which less than half is kept goes to Redis whole, and where hits "
        "are few some are not even looked up."
    )


def measure_all(
    bench: Bench, stable: Stable, section: Section, cachesim: Any, every: Sequence[Stream]
) -> None:
    """Every cell; a failure ends the cell, the time limit all that is left."""
    place = Place.open(stable, 1 + max(max(stream.reads) for stream in every))
    for stream in every:
        for percent in PERCENTS:
            bench.require_time()
            bench.progress.begin(f"hit ratio: {stream.name}", f"{percent} %")
            try:
                section.rows.append(measure_cell(place, cachesim, stream, percent))
            except (BenchError, OSError) as error:
                bench.failures.append(f"{NAME}: {stream.name}/{percent}: {error}")
            bench.progress.step()
    bench.require_time()
    bench.progress.begin("hit ratio: pipelines")
    stream = next(stream for stream in every if stream.name == PIPED[0])
    section.notes += filter(None, [piped(place, stream, PIPED[1], section.rows)])
    bench.progress.step()


def blank(reads: int) -> Section:
    """The section without its rows."""
    about = ABOUT.format(
        reads=reads, keys=streams.KEYS, popular=streams.POPULAR, scanned=streams.SCANNED,
        every=reads // streams.TURNS, turn=streams.TURN, options=" ".join(OPTIONS), clients=CLIENTS,
    )  # fmt: skip
    return Section(NAME, "Hit ratio", prose(about), COLUMNS)


def measure(bench: Bench) -> Section:
    """The section; what has been found by then if the time limit is reached, or Redis does not start."""
    reads = streams.READS // (QUICK if bench.seconds < 0.5 else 1)
    section = blank(reads)
    try:
        cachesim = library()
    except BenchError as error:
        cachesim = None
        section.notes.append(f"No LRU, SIEVE, S3-FIFO and W-TinyLFU: {error}.")
    try:
        with bench.servers() as stable:
            every = [streams.stream(name, reads) for name in streams.NAMES]
            measure_all(bench, stable, section, cachesim, every)
    except (BenchError, OSError) as error:
        bench.failures.append(f"{NAME}: {error}")
    section.notes[:0] = said(section.rows)
    return section
