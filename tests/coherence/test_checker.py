"""The checker itself: it is silent about what may happen, and tells each thing that must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.coherence.history import EPSILON, Counter, Group, History, Property, Session, Write
from tests.coherence.model import OF_TYPE, Hash, List, Read, Set, Stream, Value, ZSet, mget, one_key
from tests.coherence.stale import StaleProxy
from tests.coherence.workers import Run
from tests.harness import redis_server

A, B = b"a", b"b"


class Story:
    """A history written by hand: a write or read takes one second, `at` sets the time of the next."""

    def __init__(self) -> None:
        self.history = History(0.0)
        self.group = Group("g", [A, B])
        self.at = 0.0
        self.sessions: dict[str, Session] = {}

    def session(self, name: str) -> Session:
        """A session by its name, the part before the dash is the server's."""
        way = name.partition("-")[0]
        return self.sessions.setdefault(name, Session(name, way, way == "redis"))

    def write(self, name: str, changes: dict[bytes, Value], *, ttl: float | None = None, answered: bool = True) -> Write:
        places = {(0, key): value for key, value in changes.items()}
        write = self.group.begin(places, name, repr(changes), self.at, ttl)
        if answered:
            self.history.answered(self.group, write, self.session(name), places, self.at + 1)
        self.at += 1
        return write

    def read(self, name: str, read: Read, reply: Any, *, multi: bool = False, sent: float | None = None) -> list[Property]:
        """What is wrong with the reply to this read."""
        before = self.history.found.copy()
        question = self.history.ask(self.session(name), self.group, 0, [read], self.at if sent is None else sent, multi=multi)
        self.history.reply(question, [reply], self.at + 1)
        self.at += 1
        return list(self.history.found - before)


def get(key: bytes) -> Read:
    return one_key(OF_TYPE[bytes][0], bytes, key)


def row(kind: type, *verb: bytes) -> Read:
    return one_key(next(row for row in OF_TYPE[kind] if row[0] == verb), kind, A)


class TestOwnWrites:
    def test_an_older_value_through_the_same_sidecar_on_another_connection(self) -> None:
        story = Story()
        story.write("one-x", {A: b"1"})
        story.write("one-x", {A: b"2"})
        assert story.read("one-y", get(A), b"1") == [Property.OWN_WRITES]
        assert story.read("one-z", get(A), b"2") == []
        assert "the reply is of v1, but v2 was due" in story.history.violations[0]

    def test_an_older_value_may_be_seen_through_another_sidecar_or_before_the_answer(self) -> None:
        story = Story()
        story.write("one-x", {A: b"1"})
        story.write("one-x", {A: b"2"}, answered=False)
        story.write("two-x", {B: b"2"})
        assert story.read("one-y", get(A), b"1") == []
        assert story.read("one-z", get(A), b"2") == []
        assert story.read("two-y", get(A), None) == []
        assert story.read("two-y", get(B), None) == [Property.OWN_WRITES]

    def test_what_came_after_another_write_of_the_same_value(self) -> None:
        story = Story()
        for value in (b"1", b"2", b"1"):
            story.write("one-x", {A: value})
        assert story.read("one-y", get(A), b"1") == []
        assert story.read("one-z", get(A), b"2") == [Property.OWN_WRITES]


class TestMonotonicReads:
    def test_back_in_time_on_one_connection(self) -> None:
        story = Story()
        story.write("redis", {A: b"1"})
        story.write("redis", {A: b"22"})
        assert story.read("one", row(bytes, b"STRLEN"), 2) == []
        assert Property.MONOTONIC in story.read("one", get(A), b"1")
        assert story.read("another", get(A), b"1") == []

    def test_the_earliest_version_counts(self) -> None:
        story = Story()
        for value in (b"1", b"2", b"3"):
            story.write("redis", {A: value})
        assert story.read("one", row(bytes, b"STRLEN"), 1) == []
        assert story.read("one", get(A), b"1") == []

    def test_what_multi_showed_binds_its_keys_only(self) -> None:
        story = Story()
        story.write("redis", {A: b"1"})
        story.write("redis", {B: b"1"})
        assert story.read("one", get(B), b"1", multi=True) == []
        assert story.read("one", get(A), None) == []
        assert story.read("one", get(B), None) == [Property.MONOTONIC]


class TestCausalityAndAtomicity:
    def test_b_and_then_an_older_a(self) -> None:
        story = Story()
        story.write("redis", {A: b"1"})
        story.write("redis", {B: b"1"})
        assert story.read("one", get(B), b"1") == []
        assert story.read("one", get(A), None) == [Property.CAUSALITY]
        assert story.read("one", get(A), b"1") == []

    def test_keys_of_two_versions(self) -> None:
        story = Story()
        for value in (b"1", b"2"):
            story.write("redis", {A: value, B: value})
        assert story.read("one", mget([A, B]), [b"1", b"1"]) == []
        assert story.read("one", mget([A, B]), [b"1", b"2"]) == [Property.ATOMICITY]

    def test_the_present_is_due_from_redis_itself(self) -> None:
        story = Story()
        story.write("two", {A: b"1"})
        assert story.read("redis", get(A), None) == [Property.PRESENT]
        assert story.read("one", get(A), None, multi=True) == [Property.PRESENT]
        assert story.read("one", get(A), None) == []


class TestTimeToLive:
    def test_a_value_after_its_time(self) -> None:
        story = Story()
        write = story.write("redis", {A: b"1"}, ttl=5)
        assert write.answered == 1
        assert story.read("one", get(A), b"1", sent=1 + 5 + EPSILON / 2) == []
        assert story.read("one", get(A), b"1", sent=1 + 5 + EPSILON * 2) == [Property.TTL]

    def test_absent_before_its_time(self) -> None:
        story = Story()
        story.write("one-x", {A: b"1"}, ttl=5)
        assert story.read("one", get(A), None) == [Property.OWN_WRITES]
        story.at = 4.5
        assert story.read("one", get(A), None) == []

    def test_a_new_value_ends_the_waiting(self) -> None:
        story = Story()
        story.write("redis", {A: b"1"}, ttl=5)
        story.write("redis", {A: b"1"})
        story.at = 100
        assert story.read("one", get(A), b"1") == []


class TestReplies:
    def test_what_nobody_wrote(self) -> None:
        story = Story()
        story.write("redis", {A: b"1"})
        assert story.read("one", get(A), b"7") == [Property.NEVER_WRITTEN]

    def test_a_counter_that_two_brought_to_the_same_value(self) -> None:
        history, counter, session = History(0.0), Counter("c", A), Session("one", "one", False)
        for moment in (1.0, 2.0):
            history.counted(counter, Write(1, "one", "SET a 1", moment), session, (0, A), moment)
        assert list(history.found) == [Property.LOST_UPDATE]

    @pytest.mark.parametrize(
        ("value", "read", "replies"),
        [
            (Hash({b"f0": b"1"}), row(Hash, b"HGETALL"), [[b"f0", b"1"], {b"f0": b"1"}]),
            (Set([b"1", b"2"]), row(Set, b"SMEMBERS"), [[b"2", b"1"], [b"1", b"2"]]),
            (ZSet({b"m0": 1.0, b"3": 0.5}), row(ZSet, b"ZRANGE", b"0", b"-1", b"WITHSCORES"), [[b"3", b"0.5", b"m0", b"1"], [[b"3", 0.5], [b"m0", 1.0]]]),
            (ZSet({b"m0": 1.0}), row(ZSet, b"ZSCORE", b"m0"), [b"1", 1.0]),
            (Stream([(b"1-1", b"x")]), row(Stream, b"XRANGE", b"-", b"+"), [[[b"1-1", [b"v", b"x"]]]]),
            (List([b"1", b"2"]), row(List, b"LINDEX", b"-1"), [b"2"]),
        ],
    )  # fmt: skip
    def test_both_protocols_are_read_alike(self, value: Value, read: Read, replies: list[Any]) -> None:
        for reply in replies:
            story = Story()
            story.write("one", {A: value})
            assert story.read("one", read, reply) == []


@pytest.mark.alone
class TestAgainstAStaleCache:
    """The whole machinery in front of a cache that is wrong: it must be found out, in about a second."""

    def violations(self, binary: str, directory: Path, lifetime: float, wanted: frozenset[Property] = frozenset()) -> History:
        async def run(port: int) -> History:
            proxy = StaleProxy(port, lifetime)
            async with proxy.serving():
                run = Run(port, [proxy.port], 2, groups=1, readers=1, most=10_000, grace=0.3)
                run.enough = lambda history: wanted <= set(history.found)
                return await run.run()

        with redis_server(binary, directory) as server:
            return uvloop.run(run(server.port))

    def test_it_finds_a_cache_without_invalidation(self, any_redis_binary: str, directory: Path) -> None:
        wanted = frozenset({
            Property.OWN_WRITES, Property.MONOTONIC, Property.CAUSALITY, Property.ATOMICITY, Property.TTL,
            Property.LOST_UPDATE,
        })  # fmt: skip
        history = self.violations(any_redis_binary, directory, 0.05, wanted)
        assert set(history.found) >= wanted, history.found
        assert Property.AT_REST not in history.found

    def test_it_finds_what_stays(self, any_redis_binary: str, directory: Path) -> None:
        assert Property.AT_REST in self.violations(any_redis_binary, directory, 60).found
