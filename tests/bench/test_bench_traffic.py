"""Requests, replies and blends: what the built-in generator sends and compares."""

from __future__ import annotations

import pytest

from bench.traffic import (
    BLENDS,
    COMMANDS,
    HOT_KEYS,
    LISTS,
    MANY_KEYS,
    TESTS,
    batches,
    key,
    parts,
    range_command,
)
from bench.workloads import GROUPS, WORKLOADS


def test_requests_are_as_redis_benchmark_sends_them() -> None:
    assert key(12) == b"key:000000000012"
    assert COMMANDS["get"].request(1) == b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000001\r\n"
    assert COMMANDS["set"].request(1).endswith(b"$16\r\nkey:000000000001\r\n$3\r\nVXK\r\n")
    assert (COMMANDS["get"].reply, COMMANDS["set"].reply) == (b"$3\r\nVXK\r\n", b"+OK\r\n")


def test_aggregates() -> None:
    small = range_command(2)
    assert small.request(3) == b"*4\r\n$6\r\nLRANGE\r\n$16\r\nlist0002:0000003\r\n$1\r\n0\r\n$2\r\n-1\r\n"
    assert small.reply == b"*2\r\n$12\r\nelement:0000\r\n$12\r\nelement:0001\r\n"


def test_unknown_tests_are_named() -> None:
    with pytest.raises(ValueError, match="zadd"):
        parts("zadd", 1)


@pytest.mark.parametrize("test", TESTS)
def test_every_batch_comes_with_its_replies(test: str) -> None:
    replies = {
        COMMANDS[part.command].request(number): COMMANDS[part.command].reply
        for part in parts(test, 3)
        for number in (part.first, part.end - 1)
    }
    for requests, answers in batches(test, 3, depth=4, count=5):
        assert requests.count(b"*") == 4
        least, most = (4 * bound(map(len, replies.values())) for bound in (min, max))
        assert least <= len(answers) <= most


def test_a_blend_keeps_its_shares_and_its_order() -> None:
    pool = batches("mixed", 0, depth=10, count=1_000)
    sets = sum(requests.count(b"$3\r\nSET\r\n") for requests, _ in pool)
    hashes = sum(requests.count(b"HGET") for requests, _ in pool)
    assert 300 < sets < 700
    assert 2_100 < hashes < 2_900
    for requests, answers in pool:
        frames = [b"*" + rest for rest in requests.split(b"*")[1:]]
        replies = [COMMANDS["set" if b"SET" in one else "get"].reply for one in frames]
        assert b"".join(replies) == answers


def test_misses_are_keys_that_nobody_warmed_up() -> None:
    pool = batches("get-misses", 0, depth=1, count=5_000)
    numbers = [int(requests[-14:-2]) for requests, _ in pool]
    cold = [number for number in numbers if number >= HOT_KEYS]
    assert 350 < len(cold) < 650
    assert max(cold) < MANY_KEYS
    assert len(set(cold)) > 0.95 * len(cold)


def test_draws_differ_between_runs() -> None:
    assert batches("get", MANY_KEYS, 4, 10) != batches("get", MANY_KEYS, 4, 10)


def test_shares_add_up() -> None:
    for blend in BLENDS.values():
        assert sum(part.share for part in blend) == pytest.approx(1.0)
    assert {part.end for part in BLENDS["lrange-1000"]} == {LISTS}


def test_rows_belong_to_groups_and_say_what_they_are() -> None:
    groups = {group.name for group in GROUPS}
    for workload in WORKLOADS:
        assert workload.group in groups
        assert workload.title
        assert parts(workload.test, workload.keyspace)
    named = [(workload.group, workload.name) for workload in WORKLOADS]
    assert len(set(named)) == len(named)


def test_targets_as_agreed() -> None:
    targets = {
        (workload.group, workload.name): (workload.target.own, workload.target.total)
        for workload in WORKLOADS
        if workload.target
    }
    assert [targets["hits", f"GET P={depth}"] for depth in (1, 16, 64)] == [
        (1.05, None),
        (0.70, None),
        (0.45, None),
    ]
    for depth in (1, 16, 64):
        assert targets["namespace", f"GET hits P={depth}"] == (1.03, None)
        assert targets["metrics", f"GET P={depth}"] == (1.03, None)
        for name in (f"GET P={depth}", f"SET P={depth}"):
            strict, eased = (targets[group, name] for group in ("pass-through", "misses"))
            assert eased == pytest.approx([1.2 * limit for limit in strict if limit])
            for group in ("namespace", "namespace-pass-through"):
                assert targets[group, name] == (1.15, 1.15)
    assert len(targets) == 33
