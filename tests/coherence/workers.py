"""The workers that write and read, and the run that starts, ends and judges them. See history.py for the verdicts.

Every worker is a task of one loop, so what one of them has received is surely before what another sends later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.coherence.history import EPSILON, Counter, Group, History, Property, Question, Session, Write, show
from tests.coherence.model import OF_TYPE, Hash, Read, choose_read, every_read, mget, one_key, script_get
from tests.coherence.wire import Wire

from tests.coherence.writes import ANY, CALL_SCRIPT, LONG, OK, ORDINARY, Chooser, Command, Place, Step, View, pair  # isort: skip

GET = OF_TYPE[bytes][0]
HOT = 3
"""Keys of the group in focus that most reads and writes are about."""
now = time.monotonic


class Line:
    """A worker's connection through one way, and what the history knows of it."""

    def __init__(self, wire: Wire, session: Session, db: int, history: History) -> None:
        self.wire = wire
        self.session = session
        self.db = db
        self.history = history

    def question(self, group: Group, reads: list[Read], *, multi: bool = False) -> Question:
        return self.history.ask(self.session, group, self.db, reads, now(), multi=multi)

    async def read(self, questions: list[Question]) -> None:
        """Ask all of them in one pipeline."""
        replies = await self.wire.ask([command for question in questions for command in commands_of(question)])
        self.take(questions, replies, now())

    def take(self, questions: list[Question], replies: list[Any], received: float) -> None:
        start = 0
        for question in questions:
            end = start + len(commands_of(question))
            answers = replies[start:end]
            start = end
            if len(answers) > len(question.reads):
                if not isinstance(answers[-1], list):
                    self.history.report(Property.WRITE, f"{self.session.name}: {question.text}: {answers!r}")
                    continue
                answers = answers[-1]
            self.history.reply(question, answers, received)


def commands_of(question: Question) -> list[Command]:
    commands = [read.command for read in question.reads]
    multi = question.live and not question.session.direct
    return [(b"MULTI",), *commands, (b"EXEC",)] if multi else commands


_LONGER = 40.0
"""Seconds."""


@dataclass
class Run:
    """One run: who takes part, for how long, and what came of it."""

    redis: int
    """Port of the redis-server."""
    sidecars: Sequence[int]
    """Ports of the sidecars in front of it."""
    seconds: float
    seed: int = 1
    groups: int = 4
    """Groups of eight keys, each with its writer."""
    ttl_groups: int = 3
    choosers: Sequence[Chooser] = tuple(ORDINARY)
    readers: int = 2
    """For each sidecar, protocol and database."""
    most: int = 200
    """Violations after which the run ends early."""
    grace: float = 1.0
    enough: Callable[[History], bool] = lambda history: True
    """Whether a run has tried enough; if not, as on a busy machine, it goes on after its time, for `_LONGER` at most."""
    warm: bool = False
    """Before each write its writer reads through the sidecar until a cache has it; every write counts then."""
    history: History = field(init=False)
    everything: list[Group] = field(init=False, default_factory=list)
    wires: list[Wire] = field(init=False, default_factory=list)
    hits: float = field(init=False, default=0.0)
    """Part of the cacheable reads through sidecars that Redis was spared, without GET; a cache that fills asks more."""

    def __post_init__(self) -> None:
        self.history = History(now())
        self.chance = random.Random(self.seed)
        self.ways = {"redis": self.redis} | {f"sidecar{n}": port for n, port in enumerate(self.sidecars)}
        self.until = 0.0
        self.plain = [Group(f"g{n}", [b"g%d:%c" % (n, letter) for letter in b"abcdefgh"]) for n in range(self.groups)]
        self.timed = [Group(f"t{n}", [b"t%d" % n]) for n in range(self.ttl_groups)]
        self.pairs: list[Group] = []
        self.counters: list[Counter] = []
        if self.choosers[0] in ORDINARY and len(self.choosers) == len(ORDINARY):
            self.pairs = [Group(f"p{n}", [b"p%d:a" % n, b"p%d:b" % n]) for n in range(2)]
            self.counters = [Counter(f"c{n}", b"c%d" % n) for n in range(2)]
        self.everything = [*self.plain, *self.timed, *self.pairs, *self.counters]
        self.focus = self.plain[0]
        self.palette: dict[int, list[Read]] = {}
        """By database: the few reads most readers ask for the time being, so that they are cached indeed."""
        self.loud = True
        """Writes that empty a whole cache are frequent; else they are rare, and caches fill."""
        self._look_elsewhere()

    @property
    def running(self) -> bool:
        if self.history.found.total() >= self.most:
            return False
        left = self.until - now()
        return left > 0 or (left > -_LONGER and not self.enough(self.history))

    async def run(self) -> History:
        """Write and read for the time given, rest, compare."""
        try:
            async with asyncio.timeout(self.seconds + 60):
                await self._run()
        finally:
            for wire in self.wires:
                wire.transport.abort()
            await asyncio.sleep(0)
        return self.history

    async def _run(self) -> None:
        redis = await self.wire("redis")
        await redis.ask([(b"SCRIPT", b"LOAD", CALL_SCRIPT), (b"CONFIG", b"RESETSTAT")])
        workers = await self._workers()
        self.until = now() + self.seconds
        async with asyncio.TaskGroup() as tasks:
            for worker in [*workers, self._turn_focus()]:
                tasks.create_task(worker)
        self.hits = self._hit_rate(*await redis.ask([(b"INFO", b"commandstats")]))
        await asyncio.sleep(self.grace)
        await self._compare_at_rest()

    async def wire(self, way: str, protocol: int = 2, db: int = 0) -> Wire:
        wire = await Wire.open(self.ways[way], protocol=protocol, db=db)
        self.wires.append(wire)
        return wire

    async def line(self, way: str, name: str, *, protocol: int = 2, db: int = 0) -> Line:
        wire = await self.wire(way, protocol, db)
        return Line(wire, Session(f"{name} ({way}, RESP{protocol})", way, way == "redis"), db, self.history)

    async def _workers(self) -> list[Any]:
        chance = self.chance
        workers: list[Any] = []
        for group in [*self.plain, *self.pairs]:
            choosers = [pair] if group in self.pairs else self.choosers
            ways = ["redis"] if group in self.pairs else [*["redis"] * len(self.sidecars), *list(self.ways)[1:]]
            workers.append(GroupWriter(self, group, choosers, ways, random.Random(chance.random())).run())
        workers += [TtlWriter(self, group, random.Random(chance.random())).run() for group in self.timed]
        workers += [
            count(self, counter, way, how, random.Random(chance.random()))
            for counter in self.counters for way in self.ways for how in (increment, watch_and_set)
        ]  # fmt: skip
        for way in self.ways:
            for number in range(self.readers if way != "redis" else 1):
                for protocol in (2, 3):
                    for db in (0, 1):
                        line = await self.line(way, f"reader{number}-{protocol}-{db}", protocol=protocol, db=db)
                        workers.append(Reader(self, line, random.Random(chance.random())).run())
        return workers

    async def _turn_focus(self) -> None:
        """All readers look at one group for a while: then it is cached when its writer writes."""
        elsewhere = await self.wire("redis", db=2)
        while self.running:
            self._look_elsewhere()
            if self.loud:
                await elsewhere.ask([(b"FLUSHDB",)])  # empties nothing of ours, yet tells every sidecar to drop all
            await asyncio.sleep(0.2)

    def _look_elsewhere(self) -> None:
        self.focus, self.loud = self.chance.choice(self.plain), self.chance.random() < (0.3 if self.pairs else 0.6)
        for db in (0, 1):
            reads = [choose_read(self.focus.keys[:HOT], lambda key, db=db: self.focus.value((db, key)), self.chance) for _ in range(6)]
            self.palette[db] = [read for read in reads if read.command[0] != b"EVAL"] or reads

    def _hit_rate(self, stats: bytes) -> float:
        seen = {}
        for line in stats.decode().splitlines():
            name, _, rest = line.removeprefix("cmdstat_").partition(":calls=")
            seen[name.upper().encode()] = int(rest.split(",")[0]) if rest else 0
        verbs = set(self.history.reads) - {b"GET", b"EVAL", b"EXISTS"}
        asked = sum(self.history.reads[verb] - self.history.live[verb] for verb in verbs)
        passed = sum(seen.get(verb, 0) - self.history.live[verb] for verb in verbs)
        return 1 - passed / asked if asked else 0.0

    async def _compare_at_rest(self) -> None:
        """Every read through every sidecar, twice, is what Redis says; and Redis says what the writers wrote."""
        for protocol in (2, 3):
            for db in (0, 1):
                lines = [await self.line(way, "final", protocol=protocol, db=db) for way in self.ways]
                for group in self.everything:
                    reads = every_read(group.keys)
                    commands = [read.command for read in reads] * 2
                    truth, *others = await asyncio.gather(*(line.wire.ask(commands) for line in lines))
                    self._compare_model(group, db, reads, truth)
                    for line, replies in zip(lines[1:], others, strict=True):
                        self._compare(line, reads * 2, truth, replies)

    def _compare_model(self, group: Group, db: int, reads: list[Read], truth: list[Any]) -> None:
        if group in self.timed or group in self.counters:
            return
        for read, reply in zip(reads, truth, strict=False):
            due = read.evaluate(*(group.value((db, key)) for key in read.keys))
            if read.parse(reply) != due:
                self.history.report(Property.WRITE, f"at rest Redis answers {show(read.command)} in db {db}: {reply!r}, the writer knows {due!r}")

    def _compare(self, line: Line, reads: list[Read], truth: list[Any], replies: list[Any]) -> None:
        for number, (read, due, reply) in enumerate(zip(reads, truth, replies, strict=True)):
            if read.parse(due) != read.parse(reply):
                time = "second" if number >= len(reads) // 2 else "first"
                self.history.report(
                    Property.AT_REST,
                    f"{line.session.name} in db {line.db} asked {show(read.command)} for the {time} time: {reply!r}; Redis says {due!r}",
                )


class Reader:
    """Reads on one connection: single commands, mixed pipelines, MULTI; mostly of the group in focus."""

    def __init__(self, run: Run, line: Line, chance: random.Random) -> None:
        self.run_ = run
        self.line = line
        self.chance = chance

    async def run(self) -> None:
        while self.run_.running:
            dice = self.chance.random()
            if dice < 0.02:
                db = 1 - self.line.db
                assert await self.line.wire.ask([(b"SELECT", b"%d" % db)]) == [OK]
                self.line.db = db
            size = 1 if dice < 0.4 else self.chance.randint(2, 16)
            hot = self.chance.random() < 0.6
            questions = [question for _ in range(size) for question in (self._hot() if hot else self._questions())]
            await self.line.read(questions)
            if dice > 0.7 or self.line.session.direct:
                await asyncio.sleep(dice * 0.01)  # the others' turn: the loop is the bottleneck

    def _group(self) -> Group:
        run, dice = self.run_, self.chance.random()
        others = [*run.pairs, *run.timed, *(run.counters if self.line.db == 0 else [])]
        if dice < 0.5 or not others:
            return run.focus
        return self.chance.choice(others) if dice < 0.95 else self.chance.choice(run.plain)

    def _hot(self) -> list[Question]:
        return [self.line.question(self.run_.focus, [self.chance.choice(self.run_.palette[self.line.db])])]

    def _questions(self) -> list[Question]:
        group, chance, line = self._group(), self.chance, self.line
        if isinstance(group, Counter):
            key = group.keys[0]
            return [line.question(group, [chance.choice([one_key(GET, bytes, key), mget([key]), script_get(key)])])]
        if group in self.run_.pairs and chance.random() < 0.8:
            a, b = group.keys
            if chance.random() < 0.3:
                return [line.question(group, [mget([a, b])])]
            return [line.question(group, [one_key(GET, bytes, key)]) for key in chance.choice([(b, a), (b, a), (a,), (b,)])]
        if group is self.run_.focus and chance.random() < 0.5:
            return self._hot()
        # A script inside MULTI has a clock of its own: there a key may end between two commands of one EXEC.
        multi = chance.random() < 0.1 and group not in self.run_.timed
        reads = [choose_read(group.keys, lambda key: group.value((line.db, key)), chance) for _ in range(3 if multi else 1)]
        return [line.question(group, reads, multi=multi)]


class GroupWriter:
    """Writes one group, each step by a way of its own; asks the same sidecar at once what it shows now."""

    def __init__(self, run: Run, group: Group, choosers: Sequence[Chooser], ways: list[str], chance: random.Random) -> None:
        self.run_ = run
        self.group = group
        self.choosers = choosers
        self.ways = ways
        self.chance = chance
        self.lines: dict[tuple[str, int, int], Line] = {}
        """By way, database and protocol: RESP2 and RESP3 connections take turns in writing and asking."""

    async def run(self) -> None:
        for way in dict.fromkeys(self.ways):
            for db in (0, 1):
                for protocol in (2, 3):
                    self.lines[way, db, protocol] = await self.run_.line(way, f"writer of {self.group.name}", protocol=protocol, db=db)
        while self.run_.running:
            way, db, protocol = self.chance.choice(self.ways), self.chance.choice([0, 1]), self.chance.choice([2, 3])
            every = self.group.keys
            keys = every[:HOT] if self.group is self.run_.focus and self.chance.random() < 0.8 else every
            view = View(db, self.group.version + 1, keys, every, self.group.value, self.chance)
            step = self._choose(view)
            if step is None or (step.sweeping and not self._may_sweep()):
                continue
            if step.sidecar_only and way == "redis":
                way = "sidecar0"
            if self.run_.warm and way != "redis":
                await self._warm(way, protocol)
            await self._write(self.lines[way, db, protocol], step)
            if way != "redis" and (self.run_.warm or self.chance.random() < 0.7):
                await self._ask_at_once(way, 5 - protocol, step)
            if not self.run_.warm and self.chance.random() < 0.8:
                slowly = 1 if self.group is self.run_.focus else 3
                await asyncio.sleep(self.chance.random() * 0.012 * slowly)

    def _choose(self, view: View) -> Step | None:
        """Any step; now and then the one of several whose command has been rarest, so that every kind occurs."""
        steps = [self.chance.choice(self.choosers)(view) for _ in range(8 if self.chance.random() < 0.25 else 1)]
        written = self.run_.history.writes
        return min((step for step in steps if step), key=lambda step: min(written[c[0]] for c in step.commands), default=None)

    def _may_sweep(self) -> bool:
        return self.run_.warm or self.run_.loud or self.chance.random() < 0.03

    async def _warm(self, way: str, protocol: int) -> None:
        for _ in range(3):
            for db in (0, 1):
                line = self.lines[way, db, protocol]
                await line.read([line.question(self.group, [read]) for read in self.run_.palette[db]])

    async def _write(self, line: Line, step: Step) -> None:
        commands = list(step.commands)
        if step.dump:
            (payload,) = await line.wire.ask([step.dump])
            commands = [tuple(part or payload for part in command) for command in commands]
        early: list[Any] = []
        if commands[0][0] == b"WATCH" and self.chance.random() < 0.7:
            count = commands.index((b"MULTI",))
            early = await line.wire.ask(commands[:count])
            commands = commands[count:]
        beside = not early and commands[0][0] != b"WATCH" and self.chance.random() < 0.3
        before = [self._question(line)] if beside else []
        write = self.group.begin(step.changes, line.session.name, "; ".join(map(show, step.commands)), now())
        after = [self._question(line), self._question(line)] if beside else []
        asked = [*(c for q in before for c in commands_of(q)), *commands, *(c for q in after for c in commands_of(q))]
        replies = await line.wire.ask(asked)
        received = now()
        start, end = len(before), len(before) + len(commands)
        line.take(before, replies[:start], received)
        self._judge(line, step, [*early, *replies[start:end]], write.tell(line.history.since))
        line.history.answered(self.group, write, line.session, step.changes, received)
        line.take(after, replies[end:], received)

    def _judge(self, line: Line, step: Step, replies: list[Any], story: str) -> None:
        for command in step.commands:
            line.history.writes[command[0]] += 1
        if replies != step.replies:
            line.history.report(Property.WRITE, story, f"answered {replies!r}, not {step.replies!r}")

    def _question(self, line: Line, keys: list[bytes] | None = None) -> Question:
        read = choose_read(keys or self.group.keys, lambda key: self.group.value((line.db, key)), self.chance)
        return line.question(self.group, [read])

    async def _ask_at_once(self, way: str, protocol: int, step: Step) -> None:
        for db in {db for db, _ in step.changes}:
            line = self.lines[way, db, protocol]
            keys = {key for place, key in step.changes if place == db}
            cached = [read for read in self.run_.palette[db] if keys & set(read.keys)]
            if cached and self.group is self.run_.focus:
                await line.read([line.question(self.group, [read]) for read in self.chance.choices(cached, k=3)])
            else:
                await line.read([self._question(line, [key]) for key in self.chance.choices(sorted(keys), k=3)])


class TtlWriter:
    """Gives one key values that die soon, and asks every sidecar when they must be dead."""

    def __init__(self, run: Run, group: Group, chance: random.Random) -> None:
        self.run_ = run
        self.group = group
        self.key = group.keys[0]
        self.chance = chance

    async def run(self) -> None:
        lines = {(way, db): await self.run_.line(way, f"writer of {self.group.name}", db=db) for way in self.run_.ways for db in (0, 1)}
        while self.run_.running:
            way, db = self.chance.choice(list(self.run_.ways)), self.chance.choice([0, 1])
            ttl = self.chance.choice([0.015, 0.03, 0.06, 0.12])
            answered = await self._write(lines[way, db], ttl)
            if self.chance.random() < 0.3:
                await asyncio.sleep(self.chance.random() * ttl)
                await self._end_early(lines[self.chance.choice(list(self.run_.ways)), db])
                continue
            end = answered + ttl
            read = choose_read([self.key], lambda _: b"", self.chance)
            for moment in (end - 0.008, end - 0.004, end + EPSILON + 0.0002):  # in a cache, and then gone
                await asyncio.sleep(max(0.0, moment - now()))
                for other in self.run_.ways:
                    line = lines[other, db]
                    await line.read([line.question(self.group, [each]) for each in (one_key(GET, bytes, self.key), read)])

    async def _write(self, line: Line, ttl: float) -> float:
        key, ms, value = self.key, b"%d" % (ttl * 1000), b"%d.ttl" % (self.group.version + 1)
        hashed: list[Command] = [(b"MULTI",), (b"DEL", key), (b"HSET", key, b"f0", value), (b"PEXPIRE", key, ms), (b"EXEC",)]
        renamed: list[Command] = [(b"MULTI",), (b"SET", key + b"!", value, b"PX", ms), (b"RENAME", key + b"!", key), (b"EXEC",)]
        script = b"redis.call('set', KEYS[1], ARGV[1]); return redis.call('pexpire', KEYS[1], ARGV[2])"
        commands, held = self.chance.choice(
            [([(b"SET", key, value, b"PX", ms)], value), ([(b"PSETEX", key, ms, value)], value), (hashed, Hash({b"f0": value})),
             ([(b"EVAL", script, b"1", key, value, ms)], value), (renamed, value), ([(b"SET", key, value), (b"PEXPIRE", key, ms)], value),
             ([(b"SET", key, value), (b"GETEX", key, b"PX", ms)], value)]
        )  # fmt: skip
        if len(commands) == 2:  # the value first without an end
            await self._send(line, [commands.pop(0)], value)
            await asyncio.sleep(self.chance.random() * 0.02)
        return await self._send(line, commands, held, ttl)

    async def _send(self, line: Line, commands: list[Command], value: Any, ttl: float | None = None) -> float:
        place: Place = (line.db, self.key)
        write = self.group.begin({place: value}, line.session.name, "; ".join(map(show, commands)), now(), ttl)
        replies = await line.wire.ask(commands)
        received = now()
        for command in commands:
            line.history.writes[command[0]] += 1
        if any(reply != ANY for reply in replies):
            line.history.report(Property.WRITE, write.tell(line.history.since), repr(replies))
        line.history.answered(self.group, write, line.session, [place], received)
        return received

    async def _end_early(self, line: Line) -> None:
        value = b"%d" % (self.group.version + 1)
        commands, held = self.chance.choice(
            [([(b"DEL", self.key)], None), ([(b"SET", self.key, value)], value), ([(b"SET", self.key, value, b"EX", LONG)], value)]
        )
        await self._send(line, commands, held)


async def count(run: Run, counter: Counter, way: str, how: Any, chance: random.Random) -> None:
    """One of many that count the same key up."""
    line = await run.line(way, f"{how.__name__} of {counter.name}", protocol=chance.choice([2, 3]))
    while run.running:
        sent = now()
        if number := await how(line, counter):
            write = Write(number, line.session.name, f"{how.__name__} to {number}", sent)
            line.history.counted(counter, write, line.session, (0, counter.keys[0]), now())
        await asyncio.sleep(chance.random() * 0.04)


async def increment(line: Line, counter: Counter) -> int:
    (number,) = await line.wire.ask([(b"INCR", counter.keys[0])])
    return int(number)


async def watch_and_set(line: Line, counter: Counter) -> int | None:
    """The number it made, None if another was quicker."""
    key = counter.keys[0]
    await line.wire.ask([(b"WATCH", key)])
    (old,) = await line.wire.ask([(b"GET", key)])
    number = int(old or 0) + 1
    *_, done = await line.wire.ask([(b"MULTI",), (b"SET", key, b"%d" % number), (b"EXEC",)])
    return number if done == [OK] else None
