"""Many clients that check every reply, while what is behind the proxy is killed, paused and cut off.

Each value says of which key it is and the how many-th: ``soak:3:1:0=42;…``. Only one client writes a key,
with rising numbers. So a reply is known to be wrong if it is no answer to its request, names another key,
or shows a number lower than one that this client has seen or has had acknowledged. A key whose write
failed, so that nobody knows whether it was carried out, is given up for a new one. After Redis was killed,
which keeps nothing here, a key may be missing that was there before.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import hiredis

from bench import cpu
from bench.reliability.figures import Part
from bench.reliability.talking import Closed, Lost, Talker, Word, frame, internal_errors, talk
from bench.servers import HOST, Server, Stable

CLIENTS = 32
SLOTS = 8
EVERY = 2.0
PAUSE = 1.0
PATIENCE = 10.0
"""Seconds after which a reply counts as lost."""
SETTLED = 30.0
"""Seconds of load and faults after which memory has its size: each kind of fault has come several times."""
WINDOW = 5.0
DRIFT = 5.0
ALLOWED = ("ERR pannier:", "EXECABORT", "LOADING")
"""How errors begin that a client may get while Redis is away."""
NEVER = -1
"""In place of a number of kills: what is seen now may be gone at the next look."""
VALUE = re.compile(rb"(soak:[\d:]+)=(\d+);x*")
FAULTS = ("kill", "pause", "cut", "vanish")


@dataclass
class Book:
    """What all clients know of each other, and what is counted."""

    kills: int = 0
    down: bool = False
    """Whether Redis is killed at the moment; memory may not know that yet."""
    names: list[list[str]] = field(default_factory=list)
    """The keys in use, by client and slot."""
    tried: dict[str, int] = field(default_factory=dict)
    """The highest number that was sent, by key."""
    commands: int = 0
    lost: int = 0
    wrong: int = 0
    closed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    examples: list[str] = field(default_factory=list)
    """The first wrong replies, in words."""

    def blame(self, what: str) -> None:
        """Count a wrong reply."""
        self.wrong += 1
        if len(self.examples) < 5:
            self.examples.append(what)


Judge = Callable[[Any], None]


class Checker:
    """One client."""

    def __init__(self, book: Book, number: int, port: int, seed: int) -> None:
        self._book = book
        self._number = number
        self._port = port
        self._random = random.Random(f"{seed} {number}")
        self._seen: dict[str, tuple[int, int]] = {}
        """The highest number seen or acknowledged of a key, and how many kills there had been then."""
        self._kills = 0
        """How many there had been when the requests under way were sent."""
        self._nonce = 0

    async def run(self) -> None:
        """Go on for ever."""
        talker = await self._connect()
        while True:
            await asyncio.sleep(self._random.random() * 0.01)
            requests, judges = self._some()
            self._kills = NEVER if self._book.down else self._book.kills
            began = time.perf_counter()
            try:
                replies = await talker.all(requests, PATIENCE)
            except (Lost, Closed) as error:
                if isinstance(error, Lost):
                    self._book.lost += 1
                else:
                    self._book.closed += 1
                for slot in range(SLOTS):
                    self._renew(slot)
                talker.drop()
                talker = await self._connect()
                continue
            self._book.slowest = max(self._book.slowest, time.perf_counter() - began)
            self._book.commands += len(replies)
            for judge, reply in zip(judges, replies, strict=True):
                judge(reply)
            if talker.unasked:
                self._book.blame("a reply to nothing")
                talker.unasked = 0

    async def _connect(self) -> Talker:
        talker = await talk(self._port)
        if self._number % 2:
            await talker.ask("CLIENT", "SETNAME", f"soak{self._number}", timeout=PATIENCE)
        return talker

    # --- what is asked

    def _some(self) -> tuple[list[tuple[Word, ...]], list[Judge]]:
        requests: list[tuple[Word, ...]] = []
        judges: list[Judge] = []
        for _ in range(self._random.randint(1, 6)):
            kind = self._random.choices(
                (self._set, self._get, self._get_others, self._several, self._echo, self._transaction),
                (3, 3, 6, 2, 1, 1),
            )[0]
            for request, judge in kind():
                requests.append(request)
                judges.append(judge)
        return requests, judges

    def _own(self) -> tuple[int, str]:
        slot = self._random.randrange(SLOTS)
        return slot, self._book.names[self._number][slot]

    def _write(self) -> tuple[int, str, int, str]:
        slot, name = self._own()
        number = self._book.tried[name] = self._book.tried.get(name, 0) + 1
        return slot, name, number, f"{name}={number};" + "x" * self._random.randrange(200)

    def _set(self) -> list[tuple[tuple[Word, ...], Judge]]:
        slot, name, number, value = self._write()
        return [(("SET", name, value), lambda reply: self._judge_set(slot, name, number, reply))]

    def _get(self) -> list[tuple[tuple[Word, ...], Judge]]:
        _, name = self._own()
        return [(("GET", name), lambda reply: self._judge_get(name, reply))]

    def _other(self) -> str:
        return self._random.choice(self._random.choice(self._book.names))

    def _get_others(self) -> list[tuple[tuple[Word, ...], Judge]]:
        name = self._other()
        return [(("GET", name), lambda reply: self._judge_get(name, reply))]

    def _several(self) -> list[tuple[tuple[Word, ...], Judge]]:
        names = [self._other() for _ in range(3)]
        return [(("MGET", *names), lambda reply: self._judge_several(names, reply))]

    def _echo(self) -> list[tuple[tuple[Word, ...], Judge]]:
        self._nonce += 1
        word = b"echo %d %d" % (self._number, self._nonce)

        def judge(reply: Any) -> None:
            if not self._excused(reply) and reply != word:
                self._book.blame(f"ECHO {word!r}: {reply!r}")

        return [(("ECHO", word), judge)]

    def _transaction(self) -> list[tuple[tuple[Word, ...], Judge]]:
        slot, name, number, value = self._write()

        def begun(reply: Any) -> None:
            if not self._excused(reply) and reply not in (b"OK", b"QUEUED"):
                self._book.blame(f"in a transaction: {reply!r}")

        def done(reply: Any) -> None:
            if self._excused(reply):
                self._renew(slot)
            elif not isinstance(reply, list) or len(reply) != 2:
                self._book.blame(f"EXEC: {reply!r}")
            else:
                self._judge_set(slot, name, number, reply[0])
                self._judge_get(name, reply[1])

        return [(("MULTI",), begun), (("SET", name, value), begun), (("GET", name), begun), (("EXEC",), done)]

    # --- what is answered

    def _excused(self, reply: Any) -> bool:
        """Whether it is an error that may be."""
        if not isinstance(reply, hiredis.ReplyError):
            return False
        text = str(reply)
        if not text.startswith(ALLOWED):
            self._book.blame(text)
        self._book.errors[re.sub(r"\d+", "#", text)[:100]] += 1
        return True

    def _judge_set(self, slot: int, name: str, number: int, reply: Any) -> None:
        if self._excused(reply):
            self._renew(slot)
        elif reply != b"OK":
            self._book.blame(f"SET {name}: {reply!r}")
        else:
            self._saw(name, number)

    def _judge_several(self, names: list[str], reply: Any) -> None:
        if self._excused(reply):
            return
        if not isinstance(reply, list) or len(reply) != len(names):
            self._book.blame(f"MGET {names}: {reply!r}")
            return
        for name, each in zip(names, reply, strict=True):
            self._judge_get(name, each)

    def _judge_get(self, name: str, reply: Any) -> None:
        if self._excused(reply):
            return
        number, kills = self._seen.get(name, (0, 0))
        if reply is None:
            if number and kills == self._book.kills:
                self._book.blame(f"GET {name}: nothing, after {number}")
            return
        found = VALUE.fullmatch(reply) if isinstance(reply, bytes) else None
        if found is None or found[1] != name.encode():
            self._book.blame(f"GET {name}: {reply!r}")
        elif not number <= int(found[2]) <= self._book.tried.get(name, 0):
            self._book.blame(f"GET {name}: {int(found[2])}, after {number}")
        else:
            self._saw(name, int(found[2]))

    def _saw(self, name: str, number: int) -> None:
        self._seen[name] = max(self._seen.get(name, (0, 0))[0], number), self._kills

    def _renew(self, slot: int) -> None:
        """Give a key up for a new one."""
        names = self._book.names[self._number]
        stem, _, generation = names[slot].rpartition(":")
        self._seen.pop(names[slot], None)
        names[slot] = f"{stem}:{int(generation) + 1}"


class Behind:
    """The Redis that suffers, always at the same port."""

    def __init__(self, stable: Stable) -> None:
        self._stable = stable
        # Bound and not listening, so that nobody else gets the port while the server is down.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind((HOST, 0))
        self.port = int(self._holder.getsockname()[1])
        self.server = self._start()

    def _start(self) -> Server:
        options = ["--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        return self._stable.start("redis behind", [self._stable.redis.path, *options], self.port)

    async def suffer(self, fault: str, book: Book, proxy: Server) -> None:
        """Have one fault happen."""
        if fault == "kill":
            book.kills, book.down = book.kills + 1, True
            self.server.process.kill()
            await asyncio.to_thread(self._stable.stop, [self.server])
            await asyncio.sleep(0.2)
            self.server = await asyncio.to_thread(self._start)
            book.down = False
        elif fault == "pause":
            os.kill(self.server.pid, signal.SIGSTOP)
            await asyncio.sleep(PAUSE)
            os.kill(self.server.pid, signal.SIGCONT)
        elif fault == "cut":
            talker = await talk(self.port)
            await talker.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            talker.drop()
        else:
            await asyncio.gather(*[_vanish(proxy.port, number) for number in range(20)])

    def close(self) -> None:
        """Let the port go; the server belongs to the stable."""
        with suppress(ProcessLookupError):
            os.kill(self.server.pid, signal.SIGCONT)
        self._holder.close()


async def _vanish(port: int, number: int) -> None:
    """Come, ask for much, send half a command, and be gone: some with a reset, some politely."""
    talker = await talk(port)
    if talker.transport is None:
        return
    whole = frame(("SET", f"vanishing:{number}", "x" * (400_000 if number % 4 == 0 else 500)))
    talker.transport.write(frame(("GET", "soak:0:0:0")) * 50 + whole[: len(whole) // 2])
    await asyncio.sleep(0.001 * number)
    if number % 2:
        talker.drop()
    else:
        talker.transport.close()


async def run(stable: Stable, quick: bool, seed: int = 1, seconds: float = SETTLED + 60.0) -> Part:
    """Soak."""
    seconds = 9.0 if quick else seconds
    part = Part(
        "soak",
        "Soak with faults",
        f"{CLIENTS} clients for {seconds:g} s: SET, GET, MGET, ECHO, transactions, in pipelines "
        f"of 1 to 6, every reply checked. Every {EVERY:g} s, in turn: Redis is killed and started "
        f"again (it keeps nothing); paused for {PAUSE:g} s (SIGSTOP); all its connections are "
        f"killed; 20 other clients vanish in mid-frame. Lost: no reply within {PATIENCE:g} s on "
        "an open connection. Wrong: another request's, another key's, or older than what the "
        f"client has seen. Drift of RSS: the median of the last {WINDOW:g} s against that of the "
        f"{WINDOW:g} s from the {SETTLED:g}th on, sampled every 0.25 s under load.",
    )
    book = Book(names=[[f"soak:{n}:{slot}:0" for slot in range(SLOTS)] for n in range(CLIENTS)])
    behind = Behind(stable)
    proxy = stable.start_proxy(behind.server, ("--admit-after", "1", "--admin-listen", "off"))
    tasks = [asyncio.create_task(Checker(book, n, proxy.port, seed).run()) for n in range(CLIENTS)]
    samples: list[tuple[float, int]] = []
    faults: Counter[str] = Counter()
    try:
        began = time.perf_counter()
        tasks.append(asyncio.create_task(_sample(proxy, began, samples)))
        due = EVERY
        while due < seconds:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            fault = FAULTS[sum(faults.values()) % len(FAULTS)]
            faults[fault] += 1
            await behind.suffer(fault, book, proxy)
            due += EVERY
        await asyncio.sleep(max(0.0, began + seconds - time.perf_counter()))
        errors = sum(book.errors.values())
        await asyncio.sleep(1.0)
        late = sum(book.errors.values()) - errors
        broken = [task for task in tasks if task.done()]
        for task in broken:
            task.result()  # a fault of the check itself
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        behind.close()
        internal = internal_errors(proxy)
        stable.stop([behind.server, proxy])
    part.note("faults", ", ".join(f"{count} × {fault}" for fault, count in faults.items()))
    part.note("replies checked", book.commands)
    part.none("lost replies", book.lost)
    part.none("wrong replies", book.wrong)
    part.none("connections closed by the proxy", book.closed)
    part.note("errors while Redis was away", sum(book.errors.values()) - late)
    part.none("errors in the second after", late)
    part.note("longest wait for a pipeline", book.slowest, "s")
    first, early, last = [_rss(samples, at, at + WINDOW) for at in (10.0, SETTLED, seconds - WINDOW)]
    if quick:
        part.note("RSS at the end", samples[-1][1] / 1e6, "MB")
    else:
        part.note("RSS from the 10th second on", first / 1e6, "MB")
        part.note(f"RSS from the {SETTLED:g}th second on", early / 1e6, "MB")
        part.note("RSS at the end", last / 1e6, "MB")
        drift = 100 * (last - early) / early
        part.ask("drift of RSS", drift, "%", f"< {DRIFT:g} %", abs(drift) < DRIFT)
    part.sound(internal)
    for number, example in enumerate(book.examples, 1):
        part.note(f"example {number}", example)
    return part


async def _sample(proxy: Server, began: float, samples: list[tuple[float, int]]) -> None:
    while True:
        samples.append((time.perf_counter() - began, cpu.rss_bytes(proxy.pid)))
        await asyncio.sleep(0.25)


def _rss(samples: list[tuple[float, int]], begin: float, end: float) -> float:
    return statistics.median([rss for at, rss in samples if begin <= at <= end] or [0])
