"""What the hand-written caching layers did when a service started, done by Pannier: C7, D3, E4.

Each test reads as the job is described there; REQUIREMENTS' row stands in its name.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from redis import Redis

from tests.harness import ROOT, Process, pannier
from tests.integration.test_warming import from_memory, settled, stats, url, warm
from tests.integration.wire import until


def organisation(n: int) -> str:
    return json.dumps({"id": n, "name": f"Organisation {n}", "plan": "pro"})


def listing(n: int) -> dict[str, str]:
    return {"page": str(n), "agents": json.dumps([f"agent-{n}-{k}" for k in range(20)])}


class TestC7PlatformCachingStrategy:
    """Warming at start (a thousand organisations, a hundred listings), a background refresh."""

    def test_the_first_request_after_a_start_finds_organisations_and_listings_in_memory(
        self, redis: Process, directory: Path
    ) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"organization:{n}:details": organisation(n) for n in range(1000)})
        for n in range(100):
            raw.hset(f"api:agents:list:{n}", mapping=listing(n))
        config = directory / "pannier.toml"
        config.write_text('warm = ["organization:*", "api:agents:list:*"]\nl1_ttl = "1h"\n')
        with pannier(url(redis), directory, "--config", str(config)) as proxy:
            warm(proxy)
            application = Redis(port=proxy.port, decode_responses=True, protocol=2)
            with from_memory(proxy):
                for n in range(1000):
                    assert application.get(f"organization:{n}:details") == organisation(n)
                for n in range(100):
                    assert application.hgetall(f"api:agents:list:{n}") == listing(n)

    def test_what_another_service_changes_afterwards_is_seen(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.set("organization:1:details", organisation(1))
        with pannier(url(redis), directory, "--warm", "organization:*") as proxy:
            warm(proxy)
            raw.set("organization:1:details", organisation(2))
            application = Redis(port=proxy.port, decode_responses=True)
            until(lambda: application.get("organization:1:details") == organisation(2), "the change is seen")

    def test_in_the_background_the_hottest_are_fetched_again_before_they_expire(
        self, redis: Process, directory: Path
    ) -> None:
        """Every 15 minutes with an l1_ttl of an hour; here every 200 ms, with one of a minute."""
        raw = Redis(port=redis.port)
        raw.mset({f"organization:{n}:details": organisation(n) for n in range(1000)})
        options = ["--warm", "organization:*", "--refresh-hottest", "1100", "--refresh-interval", "200ms", "--l1-ttl", "1m"]
        with pannier(url(redis), directory, *options) as proxy:
            before = warm(proxy)
            until(lambda: stats(proxy)["tier_fills"] >= before["tier_fills"] + 2000, "all were fetched twice more", 30)
            after = stats(proxy)
            assert (after["tier_entries"], after["tier_misses"]) == (before["tier_entries"], before["tier_misses"])


class TestD3DatabaseReliefCache:
    """Warm-up when the service starts; the log says what was warmed."""

    def test_the_log_says_what_was_warmed(self, redis: Process, directory: Path) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"reznet:agents:@{name}": json.dumps({"name": name}) for name in ("ada", "bob", "eve")})
        raw.sadd("reznet:channels:general", "ada", "bob")
        keys = directory / "keys.txt"
        keys.write_text("# what every page needs\nreznet:channels:general\nreznet:settings\n")
        options = ["--warm", "reznet:agents:*", "--warm-file", str(keys)]
        with pannier(url(redis), directory, *options) as proxy:
            warm(proxy)
            seconds = r"\d+\.\d seconds"
            assert re.search(rf"INFO    warmed reznet:agents:\*: 3 of 3 keys in {seconds}\n", proxy.output)
            assert re.search(
                rf"INFO    warmed warm_file {keys}: 1 of 2 keys in {seconds}; 1 not kept: no such key\n", proxy.output
            )
            assert re.search(rf"INFO    warmed 4 of 5 keys in {seconds}\n", proxy.output)
            assert "  warming    3 keys or patterns; ready within 30s\n" in proxy.output

    def test_what_the_service_read_most_it_finds_warm_after_the_next_deployment(
        self, redis: Process, directory: Path
    ) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"reznet:agents:@{n}": n for n in range(50)})
        state = ["--warm-state", str(directory / "hot")]
        with pannier(url(redis), directory, *state) as proxy:
            service = Redis(port=proxy.port, protocol=2)
            settled(proxy)
            for n in [*range(10)] * 3:
                service.get(f"reznet:agents:@{n}")
            proxy.signal(signal.SIGTERM)
            proxy.popen.wait(10)
        with pannier(url(redis), directory, *state) as proxy:
            warm(proxy)
            service = Redis(port=proxy.port, protocol=2)
            with from_memory(proxy):
                assert [service.get(f"reznet:agents:@{n}") for n in range(10)] == [b"%d" % n for n in range(10)]


class TestE4AnalyticsCaching:
    """Warming that reports how many of how many succeeded, in under 30 seconds."""

    def test_the_report(self, redis: Process, proxy: Process) -> None:
        raw = Redis(port=redis.port)
        raw.mset({f"workspace:{n}:metrics": "m" * 200 for n in range(2000)} | {"workspace:huge": "x" * (2 << 20)})
        command = [sys.executable, "-m", "proxy", "warm", "workspace:*", "--to", f"redis://127.0.0.1:{proxy.port}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
        first, why = done.stdout.splitlines()
        found = re.fullmatch(r"2,000 of 2,001 keys in (\d+\.\d) seconds", first)
        assert found is not None and float(found[1]) < 30
        assert why == "  1: too long"
        with from_memory(proxy):
            assert Redis(port=proxy.port, protocol=2).get("workspace:7:metrics") == b"m" * 200

    def test_a_hundred_thousand_keys_within_the_readiness_of_a_pod(self, redis: Process, directory: Path) -> None:
        Redis(port=redis.port).mset({f"workspace:{n}": "m" * 20 for n in range(100_000)})
        with pannier(url(redis), directory, "--warm", "workspace:*", "--warm-timeout", "30s") as proxy:
            found = warm(proxy)
            assert found["warm_keys"] == found["warm_of"] == found["tier_entries"] == 100_000
            assert "ready before memory is warm" not in proxy.output
