"""SETs and DELs are counted, parsed or not: exactly, but for pipelines in great number."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.client.writes import EXACT, SOME, Writes
from proxy.resp import encode
from tests.client.linked import DISPATCHER

SET, DEL = encode.request("SET", "k", "v"), encode.request("DEL", "k")


def writes() -> Writes:
    return Writes(lambda run: [request for request, _ in DISPATCHER.repeatable(run)])


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        (("SET", "k", "v"), (1, 0)),
        (("set", "k", "v"), (1, 0)),
        (("SETEX", "k", "9", "v"), (1, 0)),
        (("PSETEX", "k", "9", "v"), (1, 0)),
        (("SETNX", "k", "v"), (1, 0)),
        (("GETSET", "k", "v"), (1, 0)),
        (("DEL", "k"), (0, 1)),
        (("UNLINK", "k"), (0, 1)),
        (("unlink", "k"), (0, 1)),
        (("GETDEL", "k"), (0, 1)),
        (("GET", "SET"), (0, 0)),
        (("SETBIT", "k", "1", "1"), (0, 0)),
        (("SETRANGE", "k", "1", "v"), (0, 0)),
        (("HSET", "SET", "f", "v"), (0, 0)),
    ],
)
class TestEachCommand:
    def test_alone(self, request_: Sequence[str], found: tuple[int, int]) -> None:
        counted = writes()
        counted.run(1, encode.request(*request_))
        assert (counted.sets, counted.deletes) == found

    def test_among_others(self, request_: Sequence[str], found: tuple[int, int]) -> None:
        counted = writes()
        counted.run(3, encode.request("GET", "a") + encode.request(*request_) + encode.request("INCR", "n"))
        assert (counted.sets, counted.deletes) == found

    def test_parsed(self, request_: Sequence[str], found: tuple[int, int]) -> None:
        counted = writes()
        counted.command(request_[0].lower(), [word.encode() for word in request_])
        assert (counted.sets, counted.deletes) == found


def test_commands_of_several_keys() -> None:
    counted = writes()
    counted.command("mset", [b"MSET", b"a", b"1", b"b", b"2"])
    counted.command("msetnx", [b"MSETNX", b"a", b"1"])
    counted.command("del", [b"DEL", b"a", b"b", b"c"])
    assert (counted.sets, counted.deletes) == (3, 3)


def test_a_value_that_looks_like_a_command_is_none() -> None:
    counted = writes()
    run = encode.request("SET", "k*", SET + DEL) + encode.request("GET", DEL) + DEL
    counted.run(3, run)
    assert (counted.sets, counted.deletes) == (1, 1)


def test_of_pipelines_in_great_number_some_stand_for_all() -> None:
    counted = writes()
    for _ in range(EXACT):
        counted.run(2, SET + DEL)
    assert (counted.sets, counted.deletes) == (EXACT, EXACT)
    for _ in range(SOME - 1):
        counted.run(2, SET + DEL)
    assert counted.sets == EXACT
    counted.run(2, SET + DEL)
    assert (counted.sets, counted.deletes) == (EXACT + SOME, EXACT + SOME)
    counted.run(1, SET)
    assert counted.sets == EXACT + SOME + 1, "single ones always"
    counted.settle()
    counted.run(2, SET + DEL)
    assert counted.deletes == EXACT + SOME + 1
