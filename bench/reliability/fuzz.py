"""Bytes that are nearly requests: to the parser alone, and to a whole proxy with a client beside it.

A simple mutation fuzzer with a seed: valid streams are cut, spliced, repeated, their numbers changed, their
bytes flipped. CLIENT REPLY SKIP is left out: within MULTI it has Redis answer EXEC with fewer elements than
it announces, so that no end of the reply is ever known.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time

from bench import cpu
from bench.reliability.figures import Part
from bench.reliability.talking import Witness, frame, internal_errors
from bench.servers import HOST, Stable
from proxy.resp.errors import ProtocolError
from proxy.resp.requests import RequestParser

SEEDS = [
    frame(words)
    for words in (
        ("PING",), ("SET", "k", "v" * 30), ("GET", "k"), ("MGET", "k", "l", "m"), ("HELLO", "3"),
        ("HELLO", "2"), ("MULTI",), ("EXEC",), ("WATCH", "k"), ("SUBSCRIBE", "c"), ("UNSUBSCRIBE",),
        ("CLIENT", "TRACKING", "ON"),
        ("EVAL", "return KEYS[1]", "1", "k"), ("SELECT", "1"), ("RESET",), ("CLIENT", "REPLY", "ON"),
        ("XADD", "s", "*", "f", "v"), ("LPUSH", "l", "a", "b"), ("LRANGE", "l", "0", "-1"), ("SCAN", "0"),
        ("SIDECAR", "STATS"), ("SIDECAR", "INVALIDATE", "k"), ("INFO", "sidecar"), ("COMMAND", "COUNT"),
        ("SET", "big", "x" * 3000), ("AUTH", "a", "b"), ("HGETALL", "h"), ("SORT", "l", "BY", "w_*"),
    )
] + [b"PING\r\n", b"SET a 'b c'\r\n", b'GET "\\x61"\r\n', b"\r\n", b"*0\r\n", b"*-1\r\n"]  # fmt: skip
NUMBERS = (
    b"-1",
    b"0",
    b"1",
    b"2",
    b"99",
    b"1048577",
    b"536870912",
    b"536870913",
    b"99999999999999999999",
    b"+1",
    b"",
)
SLOW = 1.0
HUNG = 10.0
AT_ONCE = 16
GROWTH_MB = 128


def mutant(chance: random.Random) -> bytes:
    """A stream of a few commands with something wrong, as a rule."""
    data = b"".join(chance.choices(SEEDS, k=chance.randint(1, 8)))
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.choice((1, 2, 5, 50)))
        kind = chance.randrange(6)
        if kind == 0:
            data = data[:at] + data[to:]
        elif kind == 1:
            data = data[:at] + bytes(chance.randrange(256) for _ in range(to - at)) + data[to:]
        elif kind == 2:
            data = data[:at] + data[at:to] * chance.choice((2, 3, 40)) + data[to:]
        elif kind == 3 and (found := list(re.finditer(rb"\d+", data))):
            one = chance.choice(found)
            data = data[: one.start()] + chance.choice(NUMBERS) + data[one.end() :]
        elif kind == 4:
            data = data[:at] + chance.choice(SEEDS) + data[at:]
        else:
            data = data[:at]
    return data or b"*"


def parse_all(data: bytes) -> list[object]:
    """The requests of a stream, and how it ends."""
    parser = RequestParser(512 << 20)
    found: list[object] = []
    pos = 0
    try:
        while pos < len(data):
            request = parser.parse(data, pos)
            if request is None:
                parser.large(data, pos)
                return found
            if request.end <= pos:
                raise AssertionError("no progress")
            found.append(request.arguments)
            pos = request.end
    except ProtocolError as error:
        found.append(str(error))
    return found


def fuzz_parser(part: Part, seed: int, seconds: float) -> None:
    """Try the parser alone: what a stream begins with is read as it is without the rest."""
    chance = random.Random(seed)
    streams = crashes = slow = differing = 0
    before = cpu.rss_bytes(os.getpid())
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        data = mutant(chance)
        streams += 1
        try:
            whole = parse_all(data)
            start = parse_all(data[: chance.randrange(1, len(data) + 1)])
        except Exception as error:
            crashes += 1
            if crashes == 1:
                part.note("first crash", f"{error!r} with {data[:200]!r}")
            continue
        slow += time.perf_counter() - now > SLOW
        # An error may come earlier with less than all, never another request.
        known = [each for each in start if isinstance(each, list)]
        differing += known != whole[: len(known)]
    part.note("streams to the parser", streams)
    part.none("exceptions but ProtocolError", crashes)
    part.none("streams that took more than a second", slow)
    part.none("streams read otherwise in part than as a whole", differing)
    grown = (cpu.rss_bytes(os.getpid()) - before) / 1e6
    part.ask("memory taken by the parser's process", grown, "MB", f"< {GROWTH_MB}", grown < GROWTH_MB)


async def fuzz_session(part: Part, stable: Stable, seed: int, seconds: float) -> None:
    """Try a whole proxy."""
    redis = stable.start_redis("redis behind")
    proxy = stable.start_proxy(redis, ("--admin-listen", "off", "--admit-after", "1"))
    chance = random.Random(seed)
    streams = hung = 0
    first = b""
    try:
        before = most = cpu.rss_bytes(proxy.pid)
        end = time.perf_counter() + seconds

        async def work() -> None:
            nonlocal streams, hung, first, most
            while time.perf_counter() < end:
                data = mutant(chance)
                streams += 1
                if not await _send(proxy.port, data, chance):
                    hung += 1
                    first = first or data
                if not streams % 100:
                    most = max(most, cpu.rss_bytes(proxy.pid))

        async with Witness(proxy.port) as witness:
            await asyncio.gather(*[work() for _ in range(AT_ONCE)])
        crashed = int(proxy.process.poll() is not None)
        part.note("streams to a proxy, on a connection each", streams)
        part.none("crashes of the proxy", crashed)
        part.none(f"connections still open {HUNG:g} s after the client's end", hung)
        if first:
            part.note("first of them", repr(first[:300]))
        part.sound(internal_errors(proxy))
        grown = (most - before) / 1e6
        part.ask("memory taken by the proxy", grown, "MB", f"< {GROWTH_MB}", grown < GROWTH_MB)
        part.none("wrong or missing replies of the client beside it", witness.wrong)
        part.note("p99 of the client beside it", witness.p99_ms, "ms")
        part.note("slowest of the client beside it", witness.most_ms, "ms")
    finally:
        stable.stop([redis, proxy])


async def _send(port: int, data: bytes, chance: random.Random) -> bool:
    """Send a stream in pieces, end it, and read; whether the other side closes as well."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        async with asyncio.timeout(HUNG):
            while data:
                size = chance.choice((1, 7, 100, 10_000))
                writer.write(data[:size])
                data = data[size:]
                await asyncio.sleep(0)
            writer.write_eof()
            while await reader.read(1 << 16):
                pass
    except TimeoutError:
        return False
    except (OSError, RuntimeError):  # uvloop raises the latter
        pass  # closed by the proxy, as Redis would after a protocol error
    finally:
        writer.transport.abort()
    return True


async def run(stable: Stable, quick: bool, seed: int = 1) -> Part:
    """Fuzz both."""
    seconds = 2.0 if quick else 30.0
    part = Part(
        "fuzz",
        "Bytes that are nearly requests",
        "Streams of commands that are cut, spliced, repeated and altered at random (seed "
        f"{seed}), {seconds:g} s long for each: to the parser of requests, and to a proxy, "
        f"{AT_ONCE} connections at a time, in pieces of any size. Beside it a client sends ECHO "
        "with words of its own.",
    )
    fuzz_parser(part, seed, seconds)
    await fuzz_session(part, stable, seed, seconds)
    return part
