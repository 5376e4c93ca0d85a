"""What SIDECAR and INFO tell one tenant, or one user of Redis, about the others: nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.harness import Process, pannier

TENANTS = """
verify = 1
max_memory = "16mb"

[[rules]]
match = "user:*"

[tenants.acme]
password = "a"

[tenants.globex]
password = "g"
"""


@pytest.fixture
def tenants(redis: Process, directory: Path) -> Iterator[tuple[Redis, Redis]]:
    path = directory / "pannier.toml"
    path.write_text(TENANTS)
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--config", str(path), "--admit-after", "1") as proxy:
        yield Redis(port=proxy.port, username="acme", password="a"), Redis(port=proxy.port, username="globex", password="g")


class TestTenants:
    def test_figures_are_ones_own(self, tenants: tuple[Redis, Redis]) -> None:
        acme, globex = tenants
        before = globex.info("sidecar"), globex.execute_command("SIDECAR", "RULES")
        acme.mset({f"user:{n}": n for n in range(1500)})
        for n in range(1500):
            acme.get(f"user:{n}")
        for _ in range(20):
            acme.get("user:1")
        acme.execute_command("SIDECAR", "FLUSH")
        for n in range(10):
            acme.get(f"user:{n}")
        theirs = acme.info("sidecar")
        assert theirs["pannier_refill_engaged"] == 1 and theirs["pannier_verify_checked"] > 0
        after = globex.info("sidecar"), globex.execute_command("SIDECAR", "RULES")
        counted = ("pannier_total_commands_processed", "pannier_connected_clients")
        assert {k: v for k, v in after[0].items() if k not in counted and "lag" not in k} == {k: v for k, v in before[0].items() if k not in counted and "lag" not in k}
        assert after[1] == before[1] and b"fills" not in after[1][0]

    def test_one_that_redis_refuses_is_not_healthy(self, redis: Process, directory: Path) -> None:
        with Redis(port=redis.port) as direct:
            direct.acl_setuser("beta", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"], channels=["*"])
            path = directory / "pannier.toml"
            path.write_text(TENANTS + '\n[tenants.beta]\npassword = "b"\nupstream_username = "beta"\nupstream_password = "pw"\n')
            with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--config", str(path), "--reconnect-max", "100ms") as proxy:
                beta = Redis(port=proxy.port, username="beta", password="b", protocol=3)
                acme = Redis(port=proxy.port, username="acme", password="a", protocol=3)
                assert beta.get("k") is None
                assert beta.execute_command("SIDECAR", "HEALTH")[b"ready"] == b"yes"
                direct.acl_deluser("beta")
                for _ in range(100):
                    if beta.execute_command("SIDECAR", "HEALTH")[b"upstream"] == b"refused":
                        break
                else:
                    raise AssertionError(beta.execute_command("SIDECAR", "HEALTH"))
                assert beta.execute_command("SIDECAR", "HEALTH")[b"ready"] == b"no"
                assert acme.execute_command("SIDECAR", "HEALTH")[b"ready"] == b"yes"


class TestUsersOfRedis:
    @pytest.fixture(params=["", "ns"], ids=["everything", "namespace"])
    def users(self, redis: Process, directory: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Redis, Redis, Redis]]:
        """Who sees all keys, who sees few, and the sidecar's own."""
        prefix = request.param + ":" if request.param else ""
        with Redis(port=redis.port) as direct:
            direct.acl_setuser("alice", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"], channels=["*"])
            direct.acl_setuser("bob", enabled=True, passwords=["+pw"], keys=[prefix + "b:*"], commands=["+@all"], channels=["*"])
            try:
                with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--auth", "passthrough", "--admit-after", "1", "--namespace", request.param) as proxy:
                    yield Redis(port=proxy.port, username="alice", password="pw"), Redis(port=proxy.port, username="bob", password="pw"), Redis(port=proxy.port)
            finally:
                direct.acl_deluser("alice", "bob")

    def test_who_may_not_read_a_key_does_not_learn_that_others_did(self, users: tuple[Redis, Redis, Redis]) -> None:
        alice, bob, _ = users
        for pattern in (("payroll:ceo",), ("MATCH", "p*")):
            alice.get("payroll:ceo")
            assert bob.execute_command("SIDECAR", "INVALIDATE", *pattern) == 0
            assert alice.execute_command("SIDECAR", "INVALIDATE", *pattern) == 0, "it was dropped all the same"
            alice.get("payroll:ceo")
            assert alice.execute_command("SIDECAR", "INVALIDATE", *pattern) > 0

    def test_flush_empties_ones_own_memory_and_the_sidecars_user_everybodys(self, users: tuple[Redis, Redis, Redis]) -> None:
        alice, bob, own = users
        alice.get("k")
        bob.get("b:k")
        bob.execute_command("SIDECAR", "FLUSH")
        assert bob.execute_command("SIDECAR", "INVALIDATE", "b:k") == 0
        assert alice.execute_command("SIDECAR", "INVALIDATE", "k") > 0
        alice.get("k")
        own.execute_command("SIDECAR", "FLUSH")
        assert alice.execute_command("SIDECAR", "INVALIDATE", "k") == 0


def test_a_clean_stop_says_nothing_of_an_outage(redis: Process, directory: Path) -> None:
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--on-upstream-down", "stale", "--admit-after", "1") as proxy:
        with Redis(port=proxy.port) as client:
            client.get("k")
        proxy.signal(signal.SIGINT)
        assert proxy.popen.wait(10) == 0
        assert "Redis is away" not in proxy.output and "stale" not in proxy.output
