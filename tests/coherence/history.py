"""The history of a run and the verdicts on it. No I/O and no clock: every time is an argument.

Every key belongs to a *group*, and a group has one writer, who sends its next step only when the last one
has been answered. So a group has one sequence of states, numbered by *version*, and a reply is right if at
least one version could have given it: exactly what Redis would answer at that version, at or above all floors.

What raises a floor is only what surely happened before the read was sent:
- a write to one of its keys was answered through the same sidecar (read-your-writes, any connection);
- the same connection has read, or written, one of its keys at that version (monotonic reads);
- the same connection has read another key of the group, in the same database, that shows a version as late
  (causality: A = i, then B = i; who has read B = i reads A >= i);
- for reads that go to Redis in any case (direct ones, those in MULTI): anything answered before.
Of several versions that could have given a reply the earliest counts, so floors are never too high and
whatever is reported truly happened. A command on several keys, or a MULTI, must show one single version
(atomicity). Versions with a time to live drop out when that has passed since their write was answered.

Limits: causality is demanded of plain reads only. A read inside MULTI travels on a connection of its own,
which is not ordered against the pushes of the shared one; what it shows binds the keys it named, no others.
Neither is it demanded across databases, each of which has its own link, nor for writes by oneself to
*other* keys.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.coherence.model import Read, Value
from tests.coherence.writes import Place

EPSILON = 0.005
"""Seconds that clocks of two processes, one of them counting milliseconds, may be read apart."""


class Property(StrEnum):
    OWN_WRITES = "read-your-writes"
    MONOTONIC = "monotonic reads"
    CAUSALITY = "causality"
    ATOMICITY = "atomicity"
    PRESENT = "a read of the present"
    TTL = "time to live"
    NEVER_WRITTEN = "a reply nobody wrote"
    AT_REST = "equal at rest"
    WRITE = "reply to a write"
    LOST_UPDATE = "lost update"


@dataclass(slots=True, eq=False)
class Write:
    """One version of a group, for the story: who wrote what through which way, and when."""

    version: int
    way: str
    text: str
    sent: float
    answered: float | None = None
    ttl: float | None = None
    """Seconds after the answer at which its value must be gone; None: it stays."""
    earliest: float | None = None
    """When it may be seen first: for the absence that follows a time to live."""

    def tell(self, since: float) -> str:
        if not self.version:
            return "v0: before the run"
        answered = "not yet answered" if self.answered is None else f"answered {self.answered - since:.6f}"
        if self.earliest is not None:
            return f"v{self.version}: absent by expiry, from {self.earliest - since:.6f} at the earliest"
        return f"v{self.version}: {self.text}  by {self.way}, sent {self.sent - since:.6f}, {answered}"


class Timeline:
    """The values of one key, each with the write that made it."""

    __slots__ = ("values", "versions", "writes")

    def __init__(self) -> None:
        self.versions = [0]
        self.values: list[Value] = [None]
        self.writes = [Write(0, "nobody", "(absent)", 0.0, 0.0)]

    def add(self, write: Write, value: Value) -> None:
        self.versions.append(write.version)
        self.values.append(value)
        self.writes.append(write)

    def place(self, version: int) -> int:
        """Index of the entry that holds at `version`."""
        return bisect_right(self.versions, version) - 1


class Group:
    """Keys with one writer, in both databases."""

    def __init__(self, name: str, keys: Sequence[bytes]) -> None:
        self.name = name
        self.keys = list(keys)
        self.version = 0
        self.answered = 0
        """The last version known to have reached Redis."""
        self.timelines: dict[Place, Timeline] = {(db, key): Timeline() for db in (0, 1) for key in keys}

    def value(self, place: Place) -> Value:
        return self.timelines[place].values[-1]

    def begin(self, changes: dict[Place, Value], way: str, text: str, now: float, ttl: float | None = None) -> Write:
        """A write is about to be sent. With `ttl` its keys may be absent from then on, at the version after."""
        self.version += 1
        write = Write(self.version, way, text, now, ttl=ttl)
        for place, value in changes.items():
            self.timelines[place].add(write, value)
        if ttl is not None:
            self.version += 1
            gone = Write(self.version, "expiry", "", now, earliest=now + ttl - EPSILON)
            for place in changes:
                self.timelines[place].add(gone, None)
        return write

    def versions(self, places: Iterable[Place], low: int) -> list[int]:
        """The versions from `low` on at which one of the places changed, `low` among them."""
        found = {low}
        for place in places:
            timeline = self.timelines[place]
            found.update(timeline.versions[timeline.place(low) + 1 :])
        return sorted(found)

    def match(self, question: Question, replies: list[Any], low: int, received: float | None) -> int | None:
        """The first version from `low` on that gives these replies; in time too, unless `received` is None."""
        places = [(question.db, key) for key in question.keys]
        for version in self.versions(places, low):
            if received is not None and not self._timely(places, version, question.sent, received):
                continue
            if all(
                read.evaluate(*(self._at((question.db, key), version) for key in read.keys)) == reply
                for read, reply in zip(question.reads, replies, strict=True)
            ):
                return version
        return None

    def _at(self, place: Place, version: int) -> Value:
        timeline = self.timelines[place]
        return timeline.values[timeline.place(version)]

    def _timely(self, places: Iterable[Place], version: int, sent: float, received: float) -> bool:
        for place in places:
            timeline = self.timelines[place]
            write = timeline.writes[timeline.place(version)]
            if write.ttl is not None and write.answered is not None and sent > write.answered + write.ttl + EPSILON:
                return False
            if write.earliest is not None and received < write.earliest:
                return False
        return True


class Counter(Group):
    """One key that many writers count up; its value is its version. Every value is made once."""

    def __init__(self, name: str, key: bytes) -> None:
        super().__init__(name, [key])
        self.makers: dict[int, Write] = {}

    def match(self, question: Question, replies: list[Any], low: int, received: float | None) -> int | None:
        reply = replies[0][0] if isinstance(replies[0], list) else replies[0]
        number = int(reply or 0) if reply is None or (isinstance(reply, bytes) and reply.isdigit()) else -1
        return number if number >= low else None


@dataclass(slots=True)
class Seen:
    """What a connection saw or wrote: the floor of its later reads."""

    version: int
    text: str
    when: float


@dataclass(slots=True, eq=False)
class Session:
    """One connection of a worker."""

    name: str
    way: str
    """Through which server: "redis", or a sidecar."""
    direct: bool
    seen: dict[Place, Seen] = field(default_factory=dict)
    causal: dict[tuple[str, int], Seen] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Question:
    """One read about to be sent, or several inside one MULTI, with the floors of that moment."""

    session: Session
    group: Group
    db: int
    reads: list[Read]
    live: bool
    """It is Redis that answers, now: a direct read, or one inside MULTI."""
    sent: float
    present: int
    own: list[tuple[int, Write]] = field(default_factory=list)
    keys: set[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = {key for read in self.reads for key in read.keys}

    @property
    def text(self) -> str:
        text = "; ".join(show(read.command) for read in self.reads)
        return f"MULTI; {text}; EXEC" if self.live and not self.session.direct else text


class History:
    """What was written and seen; `violations` tells what must not have been."""

    def __init__(self, since: float, most: int = 20) -> None:
        self.since = since
        self.most = most
        """Violations told in full; further ones are counted."""
        self.violations: list[str] = []
        self.found: Tally[Property] = Tally()
        self.reads: Tally[bytes] = Tally()
        self.live: Tally[bytes] = Tally()
        """The part of `reads` that Redis must answer itself."""
        self.writes: Tally[bytes] = Tally()
        self.lag = 0.0
        """Longest time a value was still served after the next one was known to be in Redis; a fact, no fault."""
        self._own: dict[tuple[str, Place], Write] = {}

    # -- writes

    def answered(self, group: Group, write: Write, session: Session, places: Iterable[Place], now: float) -> None:
        """The reply of a write has arrived: from now on it binds its sidecar's readers and its own connection."""
        write.answered = now
        group.answered = max(group.answered, write.version)
        for place in places:
            before = self._own.get((session.way, place))
            if before is None or before.version < write.version:
                self._own[session.way, place] = write
            self._raise_floor(session.seen, place, write.version, f"wrote {write.text}", now)

    def counted(self, counter: Counter, write: Write, session: Session, place: Place, now: float) -> None:
        """A counter was counted up to `write.version`."""
        twin = counter.makers.setdefault(write.version, write)
        self.answered(counter, write, session, [place], now)
        if twin is not write:
            self.report(Property.LOST_UPDATE, "two writers made the same value", twin.tell(self.since), write.tell(self.since))

    # -- reads

    def ask(self, session: Session, group: Group, db: int, reads: list[Read], now: float, *, multi: bool = False) -> Question:
        """Reads of one group are about to be sent."""
        question = Question(session, group, db, reads, session.direct or multi, now, group.answered)
        for key in question.keys:
            if write := self._own.get((session.way, (db, key))):
                question.own.append((write.version, write))
        return question

    def reply(self, question: Question, replies: list[Any], now: float) -> None:
        """The replies, as hiredis gave them, have arrived. Call in the order of the connection."""
        forms = [read.parse(reply) for read, reply in zip(question.reads, replies, strict=True)]
        for read in question.reads:
            self.reads[read.command[0]] += 1
            self.live[read.command[0]] += question.live
        floors = list(self._floors(question))
        low = max((version for _, version, _ in floors), default=0)
        group = question.group
        version = group.match(question, forms, low, now)
        if version is None:
            self._explain(question, forms, floors, now)
            return
        self._note(question, forms, version, now)

    def _floors(self, question: Question) -> Iterator[tuple[Property, int, Write | Seen | None]]:
        for version, write in question.own:
            yield Property.OWN_WRITES, version, write
        session = question.session
        for key in question.keys:
            if seen := session.seen.get((question.db, key)):
                yield Property.MONOTONIC, seen.version, seen
        if seen := session.causal.get((question.group.name, question.db)):
            yield Property.CAUSALITY, seen.version, seen
        if question.live:
            yield Property.PRESENT, question.present, None

    def _note(self, question: Question, forms: list[Any], version: int, now: float) -> None:
        session, group, text = question.session, question.group, question.text
        for key in question.keys:
            self._raise_floor(session.seen, (question.db, key), version, text, now)
        if not question.live:
            self._raise_floor(session.causal, (group.name, question.db), version, text, now)
            if version < question.present and not isinstance(group, Counter):
                self._measure(question, forms, version, now)

    def _measure(self, question: Question, forms: list[Any], low: int, now: float) -> None:
        latest = self._latest(question, forms, low, now)
        if latest is None or latest >= question.present:
            return
        for key in question.keys:
            timeline = question.group.timelines[question.db, key]
            later = timeline.place(latest) + 1
            if later < len(timeline.writes) and (answered := timeline.writes[later].answered):
                self.lag = max(self.lag, question.sent - answered)

    @staticmethod
    def _raise_floor(floors: dict[Any, Seen], name: Any, version: int, text: str, now: float) -> None:
        before = floors.get(name)
        if before is None or before.version < version:
            floors[name] = Seen(version, text, now)

    # -- verdicts

    def _explain(self, question: Question, forms: list[Any], floors: list[tuple[Property, int, Write | Seen | None]], now: float) -> None:
        """No version fits: find the property whose floor is above the last version that would."""
        latest = self._latest(question, forms, 0, now)
        story = [self._tell_read(question, forms, now), *self._recent(question)]
        if latest is None:
            anyway = question.group.match(question, forms, 0, None)
            several = len(question.keys) > 1
            kind = Property.TTL if anyway is not None else Property.ATOMICITY if several else Property.NEVER_WRITTEN
            self.report(kind, *story, f"without regard to time v{anyway} would fit" if anyway is not None else "no version fits")
            return
        worst = {kind: (version, why) for kind, version, why in sorted(floors, key=lambda floor: floor[1]) if version > latest}
        for kind, (version, why) in worst.items():
            self.report(kind, *story, f"the reply is of v{latest}, but v{version} was due: {self._tell_floor(question, why)}")

    def _latest(self, question: Question, forms: list[Any], low: int, now: float) -> int | None:
        """The last version that fits: the end of its range, up to the next change."""
        found, version = None, question.group.match(question, forms, low, now)
        while version is not None and not isinstance(question.group, Counter):
            later = question.group.versions([(question.db, key) for key in question.keys], version)[1:]
            found = later[0] - 1 if later else question.group.version
            version = question.group.match(question, forms, later[0], now) if later else None
        return version if found is None else found

    def _tell_floor(self, question: Question, why: Write | Seen | None) -> str:
        if why is None:
            return "answered before"
        if isinstance(why, Write):
            return why.tell(self.since)
        return f"{question.session.name} showed it at {why.when - self.since:.6f}: {why.text}"

    def _tell_read(self, question: Question, forms: list[Any], now: float) -> str:
        told = "; ".join(_short(form) for form in forms)
        return (
            f"{question.session.name} in db {question.db} asked {question.text} at {question.sent - self.since:.6f}"
            f" and received at {now - self.since:.6f}: {told}"
        )

    def _recent(self, question: Question) -> Iterator[str]:
        for key in sorted(question.keys):
            timeline = question.group.timelines[question.db, key]
            for value, write in list(zip(timeline.values, timeline.writes, strict=True))[-4:]:
                yield f"  {key.decode()} = {_short(value)}  {write.tell(self.since)}"

    def report(self, kind: Property, *story: str) -> None:
        self.found[kind] += 1
        if len(self.violations) < self.most:
            self.violations.append(f"{kind}:\n  " + "\n  ".join(story))


def show(command: Sequence[bytes]) -> str:
    text = " ".join(part.decode("latin-1") for part in command)
    return text if len(text) < 160 else text[:157] + "..."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."
