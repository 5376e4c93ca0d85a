"""How long hits take while a great deal of what is kept is dropped, beside how long they take at rest."""

from __future__ import annotations

import subprocess
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.data import Store, bulk_reads, connect, set_many, tier_info
from bench.figures import Spread
from bench.memory import ENOUGH, name, value
from bench.progress import Progress
from bench.servers import ROOT, BenchError, Server, Stable
from bench.traffic import Part, frame
from bench.workloads import (
    NAMESPACED,
    PLAIN,
    STALL_ENTRIES,
    STALL_HOT_KEYS,
    STALL_MORE,
    STALL_MOST,
    STALL_OPTIONS,
    STALL_RATE,
    STALL_TIMES,
    Side,
)

WARM, REST, LEAST = 0.3, 1.0, 0.2
"""Seconds before anything counts, at rest, and looked at from the beginning at least: something may be left
to do behind the answer."""
POLL = 0.01
GIVE_UP = 30.0
PATTERN = b"memory:*"


@dataclass(frozen=True)
class Upheaval:
    """Something that drops what is kept, or looks at all of it."""

    title: str
    words: tuple[bytes, ...]
    at: str = "proxy"
    """Whom the command is given to: the proxy, a peer of it or the Redis behind both."""
    empties: bool = True
    """Whether the entries are gone in the end: that is waited for."""
    deletes: bool = False
    """Whether the keys are gone from Redis as well."""


MATCH = Upheaval("SIDECAR INVALIDATE MATCH", (b"SIDECAR", b"INVALIDATE", b"MATCH", PATTERN))
NOTHING = Upheaval(
    "SIDECAR INVALIDATE MATCH of what is not there",
    (b"SIDECAR", b"INVALIDATE", b"MATCH", b"nothing:*"),
    empties=False,
)
DELETE = Upheaval("SIDECAR DELETE MATCH", (b"SIDECAR", b"DELETE", b"MATCH", PATTERN), deletes=True)
UPHEAVALS = {
    PLAIN: (
        MATCH,
        Upheaval("the same told by a peer, over the eviction bus", MATCH.words, at="peer"),
        NOTHING,
        Upheaval("SIDECAR FLUSH", (b"SIDECAR", b"FLUSH")),
        Upheaval("FLUSHALL ASYNC, past Pannier", (b"FLUSHALL", b"ASYNC"), at="redis", deletes=True),
        DELETE,
    ),
    NAMESPACED: (MATCH, NOTHING, DELETE),
}


@dataclass(frozen=True)
class Hits:
    """What hits took in a stretch of time, in milliseconds."""

    count: int
    p50: float
    p99: float
    most: float

    @classmethod
    def between(cls, samples: Sequence[float], begin: float, end: float) -> Hits:
        """Of pairs of moments (sent, answered), those that were on their way at some time of the stretch."""
        pairs = zip(samples[::2], samples[1::2], strict=True)
        took = sorted(
            1000 * (answered - sent) for sent, answered in pairs if answered >= begin and sent <= end
        )
        if not took:
            raise BenchError("no hit was answered in the time that counts")
        return cls(len(took), took[len(took) // 2], took[(99 * len(took)) // 100], took[-1])


@dataclass(frozen=True)
class Round:
    """One upheaval."""

    milliseconds: float
    rest: Hits
    during: Hits


@dataclass
class Stall:
    """All rounds of one upheaval."""

    side: Side
    upheaval: Upheaval
    rounds: list[Round] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.upheaval.title + (", in a namespace" if self.side is NAMESPACED else "")

    @property
    def took(self) -> Spread:
        """Milliseconds until it was done."""
        return Spread.of(one.milliseconds for one in self.rounds)

    def spread(self, when: str, what: str) -> Spread:
        """Summarise `p50`, `p99` or `most` of the hits at `rest` or `during` it."""
        return Spread.of(getattr(getattr(one, when), what) for one in self.rounds)

    @property
    def holds(self) -> bool:
        """Whether hits kept to what is asked of them."""
        rest, during = (self.spread(when, "p99").median for when in ("rest", "during"))
        kept = during <= max(STALL_TIMES * rest, rest + STALL_MORE)
        return kept and self.spread("during", "most").median < STALL_MOST

    def to_json(self) -> dict[str, Any]:
        """As plain data; times in milliseconds."""
        hits = {
            when: {what: self.spread(when, what).to_json() for what in ("p50", "p99", "most")}
            for when in ("rest", "during")
        }
        return {"title": self.title, "took": self.took.to_json(), **hits, "holds": self.holds}


@dataclass(frozen=True)
class Place:
    """A side at work: its proxy, a peer of it and the Redis behind both."""

    proxy: Server
    peer: Server
    redis: Server
    store: Store

    @classmethod
    def open(cls, stable: Stable, side: Side) -> Place:
        """Start the servers."""
        redis = stable.start_redis(f"Redis behind {side.title}")
        options = [*STALL_OPTIONS, *side.options]
        proxy, peer = (stable.start_proxy(redis, options, title) for title in ("proxy", "peer"))
        return cls(proxy, peer, redis, Store(redis.port, side.prefix))

    @property
    def entries(self) -> int:
        """How many the tier has."""
        return tier_info(self.proxy.port).get("entries", 0)

    def fill(self, count: int, anew: bool) -> None:
        """Have all keys in the tier, and in Redis `anew` if they are gone from there."""
        if anew:
            self.store.strings = 0
            with connect(self.redis.port) as link:
                set_many(link, range(count), self.store.named(name), value)
        self.store.provide([Part(1.0, "get", end=STALL_HOT_KEYS)])
        with connect(self.proxy.port) as link:
            bulk_reads(link, count, name, value)
        if self.entries < ENOUGH * count:
            raise BenchError(f"only {self.entries:,} of {count:,} entries are in")

    def upheave(self, upheaval: Upheaval) -> float:
        """Give the command, and wait until it is done: when it was."""
        server = {"proxy": self.proxy, "peer": self.peer, "redis": self.redis}[upheaval.at]
        with connect(server.port) as link:
            link.settimeout(GIVE_UP)
            link.sendall(frame(*upheaval.words))
            answer = link.recv(1000)
        if answer[:1] not in (b":", b"+"):
            raise BenchError(f"{upheaval.title} answered {answer!r}")
        limit = time.monotonic() + GIVE_UP
        while upheaval.empties and self.entries > 2 * STALL_HOT_KEYS:
            if time.monotonic() > limit:
                raise BenchError(f"{upheaval.title}: {self.entries:,} entries are still there")
            time.sleep(POLL)
        done = time.monotonic()
        with connect(self.proxy.port) as link:  # what comes in next may meet what is left to tidy up
            link.sendall(frame(b"GET", name(0)))
            link.recv(1000)
        return done


@contextmanager
def pacing(port: int, samples: array[float]) -> Iterator[None]:
    """Hits all the while; what they took is in `samples` afterwards."""
    command = [sys.executable, "-m", "bench.pacer", str(port), str(STALL_RATE), str(STALL_HOT_KEYS)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield
        output, errors = process.communicate(timeout=GIVE_UP)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise BenchError(f"the load ended: {errors.decode(errors='replace').strip()[-300:]}")
    samples.frombytes(output)


def measure_round(place: Place, upheaval: Upheaval) -> Round:
    """Hits at rest, then during an upheaval."""
    samples = array("d")
    with pacing(place.proxy.port, samples):
        time.sleep(WARM + REST)
        begin = time.monotonic()
        done = place.upheave(upheaval)
        end = max(done, begin + LEAST)
        time.sleep(end + LEAST - time.monotonic())
    place.proxy.require_alive()
    rest = Hits.between(samples, begin - REST, begin - LEAST / 10)
    return Round(1000 * (done - begin), rest, Hits.between(samples, begin, end))


def run_side(place: Place, stalls: Iterable[Stall], count: int, rounds: int, deadline: float) -> None:
    """All rounds of a side's upheavals, which take turns."""
    anew = True
    for _ in range(rounds):
        for stall in stalls:
            if time.monotonic() > deadline:
                raise BenchError("the time limit is reached")
            place.fill(count, anew)
            stall.rounds.append(measure_round(place, stall.upheaval))
            anew = stall.upheaval.deletes


def measure(
    stable: Stable, rounds: int, deadline: float, progress: Progress, count: int = STALL_ENTRIES
) -> tuple[list[Stall], list[str]]:
    """All upheavals, each in a tier of `count` entries; what failed."""
    found: list[Stall] = []
    failures: list[str] = []
    for side, upheavals in UPHEAVALS.items():
        progress.begin(f"invalidation: {side.title}")
        mine = [Stall(side, upheaval) for upheaval in upheavals]
        try:
            if not stable.proxy.knows(STALL_OPTIONS[0]):
                raise BenchError(f"it needs {STALL_OPTIONS[0]}, which is no option that is known")
            run_side(Place.open(stable, side), mine, count, rounds, deadline)
        except (BenchError, OSError, subprocess.TimeoutExpired) as error:
            failures.append(f"invalidation: {side.title}: {error}")
        finally:
            stable.stop(list(stable.servers))
        found += [stall for stall in mine if stall.rounds]
        progress.step()
    return found, failures
