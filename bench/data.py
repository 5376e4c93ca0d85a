"""Loads the data of the rows, reads it through the proxy until the tier has it, asks the proxy about it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from bench.servers import HOST, BenchError, receive
from bench.traffic import (
    COMMANDS,
    FIELD,
    VALUE,
    Part,
    bulk,
    elements,
    frame,
    hash_key,
    key,
    list_key,
    sized_key,
    user_fields,
    user_key,
)

PASSES = 4  # the tier stores at the second read; the rest is for good measure
MSET_KEYS = 1_000
PIPELINE = 100
PIPELINE_BYTES = 100_000
INFO = frame(b"INFO", b"sidecar")
TIER_LINE = re.compile(rb"^pannier_tier_(\w+):(\d+)\r?$", re.MULTILINE)


def connect(port: int) -> socket.socket:
    """A connection for the bench's own requests."""
    return socket.create_connection((HOST, port), timeout=10.0)


def exchange(link: socket.socket, requests: bytes, expected: bytes, what: str) -> None:
    """Send requests and insist on the replies."""
    link.sendall(requests)
    if (got := receive(link, len(expected))) == expected:
        return
    pairs = enumerate(zip(got, expected, strict=False))
    wrong = next((place for place, (mine, right) in pairs if mine != right), len(got))
    raise BenchError(f"{what} answered {got[wrong:][:80]!r} instead of {expected[wrong:][:40]!r}")


def batched(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Lists of ``size`` items, the last one shorter."""
    group: list[bytes] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def send_all(link: socket.socket, requests: Iterable[bytes], reply: bytes, what: str) -> None:
    """Send requests that all get the same reply, in pipelines that fit into the sockets' buffers."""
    for group in batched(requests, max(1, min(PIPELINE, PIPELINE_BYTES // len(reply)))):
        exchange(link, b"".join(group), reply * len(group), what)


def set_many(
    link: socket.socket, numbers: range, name: Callable[[int], bytes], value: Callable[[int], bytes]
) -> None:
    """Write strings with MSET."""
    for start in range(numbers.start, numbers.stop, MSET_KEYS):
        chosen = range(start, min(start + MSET_KEYS, numbers.stop))
        words = (word for number in chosen for word in (name(number), value(number)))
        exchange(link, frame(b"MSET", *words), b"+OK\r\n", "loading keys: MSET")


def bulk_reads(
    link: socket.socket, count: int, name: Callable[[int], bytes], value: Callable[[int], bytes]
) -> None:
    """GET every key once, in pipelines, and compare the values."""
    for start in range(0, count, PIPELINE):
        numbers = range(start, min(start + PIPELINE, count))
        requests = b"".join(frame(b"GET", name(number)) for number in numbers)
        exchange(link, requests, b"".join(bulk(value(number)) for number in numbers), "GET")


@dataclass
class Store:
    """A Redis and what has been loaded into it; loading happens when a row first needs it."""

    port: int
    prefix: bytes = b""
    """What stands here before the key names of the load."""
    strings: int = 0
    loaded: set[str] = field(default_factory=set)

    def provide(self, parts: Iterable[Part]) -> None:
        """Load what those requests read."""
        with connect(self.port) as link:
            for part in parts:
                if part.command in ("get", "set") or part.command.startswith("mget-"):
                    if part.end > self.strings:
                        set_many(link, range(self.strings, part.end), self.named(key), lambda _: VALUE)
                        self.strings = part.end
                elif part.command not in self.loaded:
                    self.load_collections(link, part)
                    self.loaded.add(part.command)

    def named(self, name: Callable[[int], bytes]) -> Callable[[int], bytes]:
        """The names that keys have here, from those the load sends."""
        return lambda number: self.prefix + name(number)

    def load_collections(self, link: socket.socket, part: Part) -> None:
        """Hashes, lists, or strings that are longer."""
        numbers = range(part.first, part.end)
        if part.command == "hgetall":
            name, words = self.named(user_key), user_fields()
            commands = (frame(b"HSET", name(number), *words) for number in numbers)
            send_all(link, commands, b":%d\r\n" % (len(words) // 2), "loading hashes: HSET")
            return
        if part.command.startswith("value-"):
            size = int(part.command.rpartition("-")[2])
            name, value = self.named(partial(sized_key, size)), b"x" * size
            for number in numbers:
                exchange(link, frame(b"SET", name(number), value), b"+OK\r\n", "loading strings: SET")
            return
        if part.command == "hget":
            name = self.named(hash_key)
            commands = (frame(b"HSET", name(number), FIELD, VALUE) for number in numbers)
            send_all(link, commands, b":1\r\n", "loading hashes: HSET")
            return
        size = int(part.command.rpartition("-")[2])
        values = elements(size)
        name = self.named(partial(list_key, size))
        commands = (frame(b"RPUSH", name(number), *values) for number in numbers)
        send_all(link, commands, b":%d\r\n" % size, "loading lists: RPUSH")


def read_through(port: int, parts: Iterable[Part], passes: int = PASSES) -> None:
    """Read every hot key of the parts several times."""
    with connect(port) as link:
        for part in parts:
            command = COMMANDS[part.command]
            if command.reads and part.first == 0:
                for _ in range(passes):
                    requests = map(command.request, range(part.end))
                    send_all(link, requests, command.reply, f"{part.command.upper()} before the rounds")


def check_reads(port: int, parts: Iterable[Part]) -> None:
    """Read a few keys, so that a server answering errors quickly is not taken for a fast one."""
    with connect(port) as link:
        for part in parts:
            name = part.command if COMMANDS[part.command].reads else "get"
            command = COMMANDS[name]
            for number in (part.first, (part.first + part.end) // 2, part.end - 1):
                exchange(link, command.request(number), command.reply, name.upper())


def parse_tier(text: bytes) -> dict[str, int]:
    """The fields ``pannier_tier_*`` of INFO, without that prefix."""
    return {name.decode(): int(value) for name, value in TIER_LINE.findall(text)}


def tier_info(port: int) -> dict[str, int]:
    """What the proxy says about its tier; empty when it says nothing, or is no such proxy."""
    with suppress(OSError, ValueError), connect(port) as link:
        link.sendall(INFO)
        head = bytearray()
        while not head.endswith(b"\r\n") and (part := link.recv(1)):
            head += part
        if head.startswith(b"$"):
            return parse_tier(receive(link, int(head[1:])))
    return {}


def hit_rate(before: dict[str, int], after: dict[str, int]) -> float | None:
    """The share of cacheable reads the tier answered between two looks; None when nothing was counted."""
    names = ("hits", "misses")
    if not all(name in look for name in names for look in (before, after)):
        return None
    hits, misses = (after[name] - before[name] for name in names)
    return hits / (hits + misses) if hits + misses > 0 else None
