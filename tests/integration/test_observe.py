"""Observe mode before a real Redis: everything is served by it, and INFO tells what memory would have saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Process, pannier
from tests.integration.test_tier_reads import ask_all, calls, info, set_up
from tests.integration.wire import Wire, until

ROUNDS, KEYS = 10, 20
AT_ONCE = ("--admit-after", "1")
"""Without the doorkeeper, which forgets a key now and then: these figures are exact."""
READS = [f"GET o:{n}" for n in range(KEYS)]
SIZES = ("16mb", "32mb", "64mb", "128mb")


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


def fill(proxy: Process) -> None:
    set_up(proxy, [f"SET {prefix}:{n} value{n}" for n in range(KEYS) for prefix in ("o", "c", "off")])  # type: ignore[arg-type]


def read(proxy: Process, *prefixes: str) -> None:
    """Read all keys, one by one, `ROUNDS` times."""
    with Wire(proxy.port) as wire:
        for _ in range(ROUNDS):
            for prefix in prefixes:
                for n in range(KEYS):
                    assert wire.line(f"GET {prefix}:{n}") == b"$%d\r\nvalue%d\r\n" % (5 + len(str(n)), n)


def reset(redis: Process) -> None:
    with Wire(redis.port) as wire:
        wire.line("CONFIG RESETSTAT")


def test_all_is_served_by_redis_and_the_saving_reported(redis: Process, directory: Path) -> None:
    with pannier(url(redis), directory, "--mode", "observe", *AT_ONCE) as proxy:
        fill(proxy)
        reset(redis)
        read(proxy, "o")
        assert calls(redis, "get") == ROUNDS * KEYS
        found = info(proxy)
        assert (found["pannier_mode"], found["pannier_tier_entries"], found["pannier_tier_hits"]) == ("observe", "0", "0")
        saved = (ROUNDS - 1) * KEYS
        assert found["pannier_observe_reads"] == str(ROUNDS * KEYS)
        for size in SIZES:
            assert found[f"pannier_observe_{size}_saved_calls"] == str(saved)
            assert found[f"pannier_observe_{size}_hit_rate"] == "0.9000"


def test_is_what_the_same_reads_save_when_they_are_kept(redis: Process, directory: Path) -> None:
    with pannier(url(redis), directory, *AT_ONCE) as proxy:
        fill(proxy)
        read(proxy, "o")
        assert info(proxy)["pannier_tier_hits"] == str((ROUNDS - 1) * KEYS)
        assert not any("observe" in name for name in info(proxy))


def test_writes_count(redis: Process, directory: Path) -> None:
    """Redis' word of a change ends what is imagined as it would end an entry."""
    with pannier(url(redis), directory, "--mode", "observe", "--admit-after", "1") as proxy, Wire(proxy.port) as wire, Wire(redis.port) as other:
        fill(proxy)
        for n in range(ROUNDS):
            wire.line("GET o:1")
            other.line(f"SET o:1 {n}")
            # The invalidation has come once a write through the proxy is answered.
            wire.line("INCR n")
        assert info(proxy)["pannier_observe_16mb_saved_calls"] == "0"


def test_a_rule_beside_others(redis: Process, directory: Path) -> None:
    rules = directory / "rules.toml"
    rules.write_text('[[rules]]\nmatch = "o:*"\nmode = "observe"\n[[rules]]\nmatch = "off:*"\nmode = "off"\n')
    with pannier(url(redis), directory, "--rules-file", str(rules), *AT_ONCE) as proxy:
        fill(proxy)
        reset(redis)
        read(proxy, "o", "c", "off")
        found = info(proxy)
        assert found["pannier_tier_hits"] == str((ROUNDS - 1) * KEYS)
        assert found["pannier_tier_entries"] == str(KEYS)
        assert found["pannier_observe_reads"] == str(ROUNDS * KEYS)
        assert found["pannier_observe_128mb_saved_calls"] == str((ROUNDS - 1) * KEYS)
        assert calls(redis, "get") == ROUNDS * KEYS * 2 + KEYS


@pytest.mark.parametrize("protocol", [2, 3])
def test_pipelines_and_mget(redis: Process, directory: Path, protocol: int) -> None:
    with pannier(url(redis), directory, "--mode", "observe", "--admit-after", "1") as proxy:
        fill(proxy)
        with Wire(proxy.port, protocol) as wire:
            first = ask_all(wire, [*READS])
            for _ in range(ROUNDS):
                assert ask_all(wire, [*READS]) == first
            keys = [f"o:{n}" for n in range(KEYS)]
            assert wire.ask("MGET", *keys) == b"*%d\r\n" % KEYS + b"".join(first)
        found = info(proxy)
        assert int(found["pannier_observe_16mb_saved_calls"]) >= ROUNDS * KEYS
        assert found["pannier_tier_entries"] == "0"


def test_rules_read_again_begin_and_end_it(redis: Process, directory: Path) -> None:
    rules = directory / "rules.toml"
    rules.write_text("")
    with pannier(url(redis), directory, "--rules-file", str(rules)) as proxy:
        fill(proxy)
        read(proxy, "o")
        assert "pannier_observe_reads" not in info(proxy)
        rules.write_text('[[rules]]\nmatch = "o:*"\nmode = "observe"\n')
        until(lambda: "pannier_observe_reads" in info(proxy), "the rules are read again")
        read(proxy, "o")
        assert info(proxy)["pannier_observe_reads"] == str(ROUNDS * KEYS)
        rules.write_text("")
        until(lambda: "pannier_observe_reads" not in info(proxy), "the rules are read again")
