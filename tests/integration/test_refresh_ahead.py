"""Fetching ahead of time: what is read often never misses at the end of its time, what is not is left alone."""

from __future__ import annotations

from pathlib import Path

from tests.harness import Process, pannier
from tests.integration.test_tier_reads import Monitor, number
from tests.integration.wire import Wire, until

RULES = '[[rules]]\nmatch = ["hot:*", "cold:*"]\nl1_ttl = "{}"\nrefresh_ahead = "{}"\njitter = 0\n'


def begin(redis: Process, directory: Path, l1_ttl: str, refresh_ahead: str) -> list[str]:
    rules = directory / "rules.toml"
    rules.write_text(RULES.format(l1_ttl, refresh_ahead))
    with Wire(redis.port) as wire:
        for name in ("hot:1", "hot:2", "cold:1", "never:1"):
            wire.ask("SET", name, "value")
    return ["--rules-file", str(rules), "--admit-after", "1"]


def test_hot_keys_never_miss_and_cold_ones_are_not_fetched(redis: Process, directory: Path) -> None:
    options = begin(redis, directory, "2s", "1s")
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, *options) as proxy, Wire(proxy.port) as wire, Monitor(redis) as monitor:
        for name in ("hot:1", "hot:2", "cold:1"):
            assert wire.ask("GET", name) == b"$5\r\nvalue\r\n"
        before, fetched = number(proxy, "tier_misses"), []

        def again() -> bool:
            for name in ("hot:1", "hot:2"):
                assert wire.ask("GET", name) == b"$5\r\nvalue\r\n"
            fetched.extend(words[1] for words in monitor.seen() if words[0] == b"GET")
            return min(fetched.count(b"hot:1"), fetched.count(b"hot:2")) >= 4

        until(again, "the hot keys have been fetched anew thrice", 30.0)
        assert number(proxy, "tier_misses") == before
        assert fetched.count(b"cold:1") == 1


def test_an_invalidation_wins_over_what_is_fetched(redis: Process, directory: Path) -> None:
    """Writes all the while: what a client has been told of is never undone by what was fetched ahead."""
    options = begin(redis, directory, "600ms", "500ms")
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, *options) as proxy, Wire(proxy.port) as wire, Wire(redis.port) as other:
        other.line("SET hot:n 0")
        seen, fills = 0, number(proxy, "tier_fills")

        def again() -> bool:
            nonlocal seen
            for n in range(20):
                value = int(wire.line("GET hot:n").split(b"\r\n")[1])
                assert value >= seen
                seen = value
                if n == 0:
                    other.line("INCR hot:n")
            own = int(wire.line("INCR hot:n")[1:-2])
            seen = int(wire.line("GET hot:n").split(b"\r\n")[1])
            assert seen >= own
            return number(proxy, "tier_fills") > fills + 500

        until(again, "it has been fetched many times", 30.0)


def test_explain_shows_about_how_often_a_key_was_hit_lately(redis: Process, directory: Path) -> None:
    options = begin(redis, directory, "300s", "1s")
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, *options) as proxy, Wire(proxy.port, 3) as wire:
        for name, reads in (("cold:1", 1), ("hot:1", 401)):
            for _ in range(reads):
                wire.ask("GET", name)
        shown = {name: wire.line(f"SIDECAR EXPLAIN {name}") for name in ("cold:1", "hot:1", "never:1")}
        assert b"$11\r\nhits_lately\r\n:" not in shown["never:1"]
        counts = {name: int(shown[name].partition(b"hits_lately\r\n:")[2].partition(b"\r\n")[0]) for name in ("cold:1", "hot:1")}
        # One in 17 hits is logged and stands for the others.
        assert counts["cold:1"] == 0 and 400 - 17 <= counts["hot:1"] <= 400 + 17
