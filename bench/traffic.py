"""What goes over the wire: key names, requests, the replies they must get, and the blends made of them.

Every key of a kind holds the same value, so each request's reply is known beforehand and a generator compares
instead of parsing. Key names of strings are those of redis-benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, repeat

HOT_KEYS = 10_000
MANY_KEYS = 1_000_000
ZIPF_KEYS = 100_000
ZIPF = 0.99
"""The exponent of YCSB: of 100,000 keys, the thousand most read have 61 % of the reads."""
LISTS = 100
FIELDS = 20
SIZES = {16: HOT_KEYS, 1024: HOT_KEYS, 16_384: 1000, 1_048_576: 16}
"""Bytes of a value, and how many keys have such a one: what the default memory of the tier holds."""
VALUE = b"VXK"  # what redis-benchmark writes when it is told nothing else
FIELD = b"f"
ENCODE_AHEAD = 20_000  # ranges of keys up to this size are encoded once, longer ones as they are drawn


def frame(*arguments: bytes) -> bytes:
    """A command as clients send it."""
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in arguments)


def bulk(value: bytes) -> bytes:
    """A reply of one string."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def key(number: int) -> bytes:
    """The name redis-benchmark gives a key of its key space."""
    return b"key:%012d" % number


def hash_key(number: int) -> bytes:
    """The name of a hash."""
    return b"hash:%011d" % number


def list_key(size: int, number: int) -> bytes:
    """The name of a list of ``size`` elements."""
    return b"list%04d:%07d" % (size, number)


def elements(size: int) -> list[bytes]:
    """What every list of that size holds."""
    return [b"element:%04d" % position for position in range(size)]


def sized_key(size: int, number: int) -> bytes:
    """The name of a string of ``size`` bytes."""
    return b"v%07d:%07d" % (size, number)


def user_key(number: int) -> bytes:
    """The name of a hash of ``FIELDS`` fields."""
    return b"user:%011d" % number


def user_fields() -> list[bytes]:
    """Names and values in turn, as HSET takes and HGETALL returns them."""
    return [word for place in range(FIELDS) for word in (b"field%02d" % place, b"value%02d" % place)]


def several(count: int, number: int) -> list[bytes]:
    """``count`` different hot keys, not next to each other."""
    return [key((number + place * 97) % HOT_KEYS) for place in range(count)]


@dataclass(frozen=True)
class Command:
    """A request for key number n, and its one right reply when the data is loaded."""

    request: Callable[[int], bytes]
    reply: bytes
    reads: bool = True


def range_command(size: int) -> Command:
    """Reads a whole list of ``size`` elements."""
    reply = b"*%d\r\n" % size + b"".join(map(bulk, elements(size)))
    return Command(lambda n: frame(b"LRANGE", list_key(size, n), b"0", b"-1"), reply)


def mget_command(count: int) -> Command:
    """Reads several strings at once."""
    reply = b"*%d\r\n" % count + bulk(VALUE) * count
    return Command(lambda n: frame(b"MGET", *several(count, n)), reply)


def sized_command(size: int) -> Command:
    """Reads a string of ``size`` bytes."""
    return Command(lambda n: frame(b"GET", sized_key(size, n)), bulk(b"x" * size))


COMMANDS = {
    "get": Command(lambda n: b"*2\r\n$3\r\nGET\r\n$16\r\nkey:%012d\r\n" % n, bulk(VALUE)),
    "set": Command(lambda n: frame(b"SET", key(n), VALUE), b"+OK\r\n", reads=False),
    "hget": Command(lambda n: frame(b"HGET", hash_key(n), FIELD), bulk(VALUE)),
    "lrange-10": range_command(10),
    "lrange-1000": range_command(1000),
    "mget-10": mget_command(10),
    "mget-100": mget_command(100),
    "hgetall": Command(
        lambda n: frame(b"HGETALL", user_key(n)),
        b"*%d\r\n" % (2 * FIELDS) + b"".join(map(bulk, user_fields())),
    ),
    **{f"value-{size}": sized_command(size) for size in SIZES},
}


@cache
def zipf_weights(count: int, exponent: float) -> list[float]:
    """Cumulated weights of the ranks from the first on."""
    return list(accumulate(1 / rank**exponent for rank in range(1, count + 1)))


@dataclass(frozen=True)
class Part:
    """A share of a blend: one command on the keys from ``first`` up to ``end``."""

    share: float
    command: str
    end: int = HOT_KEYS
    first: int = 0
    zipf: float = 0.0
    """The exponent of Zipf's law, by which the first key is the most frequent; 0: all keys are alike."""

    def draw(self, draws: random.Random, count: int) -> Iterator[bytes]:
        """That many requests."""
        request = COMMANDS[self.command].request
        numbers = range(self.first, self.end)
        if self.zipf:
            weights = zipf_weights(len(numbers), self.zipf)
            return map(request, draws.choices(numbers, cum_weights=weights, k=count))
        if len(numbers) > ENCODE_AHEAD:
            return map(request, draws.choices(numbers, k=count))
        return iter(draws.choices(list(map(request, numbers)), k=count))


def zipf_mix(reads: float) -> tuple[Part, Part]:
    """That share of reads, the rest writes, to keys of Zipf's law."""
    keys = partial(Part, end=ZIPF_KEYS, zipf=ZIPF)
    return keys(reads, "get"), keys(1 - reads, "set")


BLENDS = {
    "mixed": (Part(0.70, "get"), Part(0.25, "hget"), Part(0.05, "set")),
    "get-misses": (Part(0.90, "get"), Part(0.10, "get", end=MANY_KEYS, first=HOT_KEYS)),
    "mix-95-5": zipf_mix(0.95),
    "mix-80-20": zipf_mix(0.80),
    "lrange-10": (Part(1.0, "lrange-10", end=LISTS),),
    "lrange-1000": (Part(1.0, "lrange-1000", end=LISTS),),
    "mget-10": (Part(1.0, "mget-10"),),
    "mget-100": (Part(1.0, "mget-100"),),
    "hgetall": (Part(1.0, "hgetall"),),
    **{f"value-{size}": (Part(1.0, f"value-{size}", end=count),) for size, count in SIZES.items()},
}
UNIFORM = ("get", "set")
"""Tests that redis-benchmark can do, over any number of keys."""
TESTS = (*UNIFORM, *BLENDS)


def parts(test: str, keyspace: int) -> tuple[Part, ...]:
    """What a test sends; the blends bring their own key ranges."""
    if test in UNIFORM:
        return (Part(1.0, test, end=keyspace),)
    if test in BLENDS:
        return BLENDS[test]
    raise ValueError(f"no requests known for test {test!r}; known are {', '.join(TESTS)}")


def batches(test: str, keyspace: int, depth: int, count: int) -> list[tuple[bytes, bytes]]:
    """``count`` pipelines drawn at random, each with all its replies; no two runs draw the same."""
    draws = random.Random()
    blend = parts(test, keyspace)
    size = count * depth
    replies = [COMMANDS[part.command].reply for part in blend]
    if len(blend) == 1:
        requests = list(blend[0].draw(draws, size))
        kinds: list[int] = []
    else:
        kinds = draws.choices(range(len(blend)), [part.share for part in blend], k=size)
        sources = [part.draw(draws, kinds.count(kind)) for kind, part in enumerate(blend)]
        requests = [next(sources[kind]) for kind in kinds]
    starts = range(0, size, depth)
    chunks = [b"".join(requests[start : start + depth]) for start in starts]
    if len(set(replies)) == 1:
        return list(zip(chunks, repeat(replies[0] * depth), strict=False))
    answers = [b"".join([replies[kind] for kind in kinds[start : start + depth]]) for start in starts]
    return list(zip(chunks, answers, strict=True))
