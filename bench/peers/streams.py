"""Streams of reads for the hit ratios: which key is read when, the same in every run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count

KEYS = 20_000
"""Of those that are popular; scans have others."""
READS = 100_000
SEED = 20_240_601
POPULAR, SCANNED = 2_000, 1_000
"""Popular keys read between two scans, and keys in a scan: a third of all reads is in scans."""
TURNS, TURN = 10, KEYS // 50
"""So many times in a stream, so many of the most popular keys become the least popular; others move up."""

LEAST = 20
"""Entries of a cache. Of fewer than ten, the simulation of S3-FIFO ends the process."""


@dataclass(frozen=True)
class Stream:
    """Reads, one after the other."""

    name: str
    """In row names."""
    reads: Sequence[int]
    """Numbers of keys."""

    @cached_property
    def distinct(self) -> int:
        """How many different keys are read."""
        return len(set(self.reads))

    def entries(self, percent: int) -> int:
        """So many percent of the keys, and `LEAST` at least."""
        return max(LEAST, self.distinct * percent // 100)

    @property
    def warm(self) -> int:
        """Reads at its beginning that fill the caches and are not counted: a third."""
        return len(self.reads) // 3


def zipf(exponent: float, reads: int) -> list[int]:
    """Ranks by Zipf's law; 0 is the most popular."""
    weights = list(accumulate(rank**-exponent for rank in range(1, KEYS + 1)))
    return random.Random(SEED).choices(range(KEYS), cum_weights=weights, k=reads)


def scan_mixed(reads: int) -> list[int]:
    """Zipf 0.9, and every now and then a scan of keys that are read this once, one after the other."""
    popular, cold = iter(zipf(0.9, reads)), count(KEYS)
    return [next(popular) if place % (POPULAR + SCANNED) < POPULAR else next(cold) for place in range(reads)]


def shifting(reads: int) -> list[int]:
    """Zipf 0.9, but who is popular changes."""
    ranks = zipf(0.9, reads)
    return [(rank + place * TURNS // reads * TURN) % KEYS for place, rank in enumerate(ranks)]


NAMES = ("zipf-0.7", "zipf-0.9", "zipf-1.1", "scan-mixed", "shifting")


def stream(name: str, reads: int = READS) -> Stream:
    """One of `NAMES`."""
    match name:
        case "scan-mixed":
            return Stream(name, scan_mixed(reads))
        case "shifting":
            return Stream(name, shifting(reads))
        case _:
            return Stream(name, zipf(float(name.removeprefix("zipf-")), reads))
