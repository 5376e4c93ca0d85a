"""What goes over the wire: key names, requests, the replies they must get, and the blends made of them.

Every key of a kind holds the same value, so each request's reply is known beforehand and a generator compares
instead of parsing. Key names of strings are those of redis-benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

HOT_KEYS = 10_000
MANY_KEYS = 1_000_000
LISTS = 100
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


COMMANDS = {
    "get": Command(lambda n: b"*2\r\n$3\r\nGET\r\n$16\r\nkey:%012d\r\n" % n, bulk(VALUE)),
    "set": Command(lambda n: frame(b"SET", key(n), VALUE), b"+OK\r\n", reads=False),
    "hget": Command(lambda n: frame(b"HGET", hash_key(n), FIELD), bulk(VALUE)),
    "lrange-10": range_command(10),
    "lrange-1000": range_command(1000),
}


@dataclass(frozen=True)
class Part:
    """A share of a blend: one command on the keys from ``first`` up to ``end``, uniformly."""

    share: float
    command: str
    end: int = HOT_KEYS
    first: int = 0

    def draw(self, draws: random.Random, count: int) -> Iterator[bytes]:
        """That many requests."""
        request = COMMANDS[self.command].request
        numbers = range(self.first, self.end)
        if len(numbers) > ENCODE_AHEAD:
            return map(request, draws.choices(numbers, k=count))
        return iter(draws.choices(list(map(request, numbers)), k=count))


BLENDS = {
    "mixed": (Part(0.70, "get"), Part(0.25, "hget"), Part(0.05, "set")),
    "get-misses": (Part(0.90, "get"), Part(0.10, "get", end=MANY_KEYS, first=HOT_KEYS)),
    "lrange-10": (Part(1.0, "lrange-10", end=LISTS),),
    "lrange-1000": (Part(1.0, "lrange-1000", end=LISTS),),
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
