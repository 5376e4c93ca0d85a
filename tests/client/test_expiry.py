"""`expire`: which SETs get a time to live, and what becomes of those whose value is still arriving."""

from __future__ import annotations

import pytest

from proxy.client.dispatch import Dispatcher
from proxy.client.expiry import expiring, expiring_large
from proxy.tier.policy import CacheRule, Defaults, Policy
from tests.client.linked import TABLE

POLICY = Policy(
    [CacheRule((b"user:*",), expire=60.0), CacheRule((b"short:*",), expire=0.0004), CacheRule((b"free:*",)), CacheRule((b"*:odd",), expire=1.5)],
    Defaults(300.0, 1 << 20),
)  # fmt: skip


def split(line: str) -> list[bytes]:
    return [word.encode() for word in line.split()]


class TestASet:
    @pytest.mark.parametrize(
        ("line", "added"),
        [
            ("SET user:1 v", "PX 60000"), ("set user:1 v", "PX 60000"), ("SET user:1 v NX", "PX 60000"), ("SET user:1 v XX GET", "PX 60000"), ("SET user:1 v GET", "PX 60000"),
            ("SET a:odd v", "PX 1500"), ("SET short:1 v", "PX 1"), ("SET user:1 EX", "PX 60000"), ("SET user:1 keepttl", "PX 60000"), ("SET EX v", ""), ("SET user:EX PX", "PX 60000"),
            ("SET user:1 v EX 5", ""), ("SET user:1 v ex 5", ""), ("SET user:1 v PX 5", ""), ("SET user:1 v EXAT 5", ""), ("SET user:1 v PXAT 5", ""), ("SET user:1 v NX KEEPTTL", ""), ("SET user:1 v KeepTTL", ""),
            ("SET other v", ""), ("SET free:1 v", ""), ("SET free:odd v", ""), ("SET user:1", ""), ("SET", ""),
        ],
    )  # fmt: skip
    def test_gets_what_its_client_does_not_give(self, line: str, added: str) -> None:
        given = split(line)
        found = expiring(POLICY, given)
        assert found == given + split(added)
        assert found is given or added, "what stays as it is is not sent anew"

    @pytest.mark.parametrize(
        ("line", "count", "becomes"),
        [
            ("SET user:1", 3, "PSETEX user:1 60000"), ("set short:1", 3, "PSETEX short:1 1"),
            ("SET user:1", 4, None), ("SET user:1", 5, None), ("SET", 3, None), ("SET user:1 v", 5, None),
            ("SET other", 3, "SET other"), ("SET other", 5, "SET other"), ("SET free:1", 4, "SET free:1"),
        ],
    )  # fmt: skip
    def test_that_is_large_too(self, line: str, count: int, becomes: str | None) -> None:
        assert expiring_large(POLICY, split(line), count) == (None if becomes is None else split(becomes))


class TestTheDispatcher:
    def test_lets_no_set_travel_as_it_came_while_some_expire(self) -> None:
        dispatcher = Dispatcher(TABLE)
        sets = [b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", b"*5\r\n$3\r\nset\r\n$1\r\nk\r\n$1\r\nv\r\n$2\r\nEX\r\n$1\r\n5\r\n"]
        other = b"*3\r\n$5\r\nSETNX\r\n$1\r\nk\r\n$1\r\nv\r\n*3\r\n$6\r\nGETSET\r\n$1\r\nk\r\n$1\r\nv\r\n"
        for patterns in ("patterns", "first_keyed"):
            assert [getattr(dispatcher, patterns).count(one) for one in sets] == [1, 1]
        dispatcher.look_at_sets(True)
        dispatcher.learn()
        for patterns in ("patterns", "first_keyed"):
            assert [getattr(dispatcher, patterns).count(one) for one in sets] == [0, 0]
            assert getattr(dispatcher, patterns).count(other) == 2
        dispatcher.look_at_sets(False)
        for patterns in ("patterns", "first_keyed"):
            assert [getattr(dispatcher, patterns).count(one) for one in sets] == [1, 1]
