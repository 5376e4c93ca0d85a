"""The cache inside the application: that it caches, sees invalidations, and is measured beside the sidecar."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from redis.connection import CacheProxyConnection

from bench.data import connect as link_to
from bench.data import set_many
from bench.load import BUILTIN, run_accounted
from bench.peers import inprocess
from bench.peers.inprocess import CACHED, PLAIN, SIDECAR, Setup, Side, Work, application
from bench.peers.inprocess_client import VALUE, cached, connect, draw, measure, parse, warm_up
from bench.peers.setting import Bench
from bench.progress import Progress
from bench.servers import BenchError, Binary, ProxyCommand, Server, Stable, free_port, receive, version_of
from bench.traffic import bulk, frame, key

KEYS = 50
SECONDS = 0.05
MODULE = "bench.peers.inprocess_client"


@pytest.fixture(scope="module")
def stable(request: pytest.FixtureRequest) -> Iterator[Stable]:
    """Servers that end with the file."""
    path = request.getfixturevalue("any_redis_binary")
    with Stable(Binary(path, version_of(path)), ProxyCommand.pannier()) as servers:
        yield servers


@pytest.fixture(scope="module")
def loaded(stable: Stable) -> Server:
    """A Redis with all keys."""
    server = stable.start_redis("Redis")
    with link_to(server.port) as link:
        set_many(link, range(KEYS), key, lambda _: VALUE)
    return server


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's check of versions, which the client program changes, is as before in the end."""
    monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", CacheProxyConnection.MIN_ALLOWED_VERSION)


def words(mode: str, **more: object) -> list[str]:
    """Options of the client program."""
    options = {"mode": mode, "keys": KEYS, "seconds": SECONDS, **more}
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def gets(port: int) -> int:
    """How many GETs a Redis has run."""
    with link_to(port) as link:
        link.sendall(frame(b"INFO", b"commandstats"))
        head = b""
        while not head.endswith(b"\r\n"):
            head += link.recv(1)
        text = receive(link, int(head[1:]))
    found = re.search(rb"cmdstat_get:calls=(\d+)", text)
    return int(found[1]) if found else 0


class TestTheProgram:
    @pytest.mark.parametrize("mode", ["plain", "cached"])
    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_prints_what_it_measured(self, loaded: Server, mode: str, share: float) -> None:
        command = [sys.executable, "-m", MODULE, str(loaded.port), *words(mode, write_share=share)]
        output, status, _ = run_accounted(command, 30.0)
        assert status == 0, output
        figures = json.loads(output)
        assert figures["operations"] > 0 and figures["cpu_us"] > 0
        assert figures["seconds"] >= SECONDS
        assert 0 < figures["p50_us"] <= figures["p99_us"]
        assert figures["rss_growth_bytes"] >= 0 or mode == "plain"
        if not share:
            assert figures["entries"] == (KEYS if mode == "cached" else 0)

    def test_wants_its_keys(self, loaded: Server) -> None:
        command = [sys.executable, "-m", MODULE, str(loaded.port), *words("plain", keys=KEYS + 1)]
        output, status, _ = run_accounted(command, 30.0)
        assert status == 1 and "is not there: load it first" in output

    def test_measures_on_cue(self, loaded: Server) -> None:
        with application([str(loaded.port), *words("cached")]) as running:
            assert running.told(30.0)["entries"] == KEYS
            for _ in range(2):
                running.cue()
                assert running.told(30.0)["operations"] > 0

    def test_its_end_is_told(self) -> None:
        with (
            application([str(free_port()), *words("plain")]) as running,
            pytest.raises(BenchError, match=r"the application ended: redis.exceptions.Conn"),
        ):
            running.told(30.0)

    def test_its_silence_is_told(self, loaded: Server) -> None:
        with application([str(loaded.port), *words("plain")]) as running:
            running.told(30.0)
            with pytest.raises(BenchError, match="said nothing"):
                running.told(0.0)

    def test_the_same_seed_draws_the_same(self) -> None:
        drawn = [draw(parse(["1", *words("plain", write_share=0.05, seed=seed)])) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        names = [name for name, _ in drawn[0]]
        assert names.count(key(0)) > names.count(key(KEYS - 1)) > 0
        assert 0.04 < sum(writes for _, writes in drawn[0]) / len(drawn[0]) < 0.06


@pytest.mark.usefixtures("_restored")
class TestItsCache:
    def test_answers_from_memory(self, loaded: Server) -> None:
        options = parse([str(loaded.port), *words("cached")])
        with connect(options) as client:
            warm_up(client, options)
            before = gets(loaded.port)
            assert measure(client, cycle(draw(options)), SECONDS)["operations"] > 0
            assert client.get(key(0)) == VALUE
            assert gets(loaded.port) == before
            assert cached(client) == KEYS

    def test_plain_asks_each_time(self, loaded: Server) -> None:
        options = parse([str(loaded.port), *words("plain")])
        with connect(options) as client:
            before = gets(loaded.port)
            operations = measure(client, cycle(draw(options)), SECONDS)["operations"]
            assert gets(loaded.port) - before == operations
            assert cached(client) == 0

    def test_holds_no_more_than_it_may(self, loaded: Server) -> None:
        options = parse([str(loaded.port), *words("cached", entries=10)])
        with connect(options) as client:
            measure(client, cycle(draw(options)), SECONDS)
            warm_up(client, options)
            assert cached(client) == 10

    def test_sees_an_invalidation(self, loaded: Server) -> None:
        options = parse([str(loaded.port), *words("cached")])
        with connect(options) as client, link_to(loaded.port) as other:
            assert client.get(key(1)) == client.get(key(1)) == VALUE
            before = gets(loaded.port)
            for value in (b"other", VALUE):
                other.sendall(frame(b"SET", key(1), value))
                assert receive(other, 5) == b"+OK\r\n"
                deadline = time.monotonic() + 10.0
                while client.get(key(1)) != value:
                    assert time.monotonic() < deadline, "the old value is answered on"
            assert gets(loaded.port) == before + 2


# --- The section


def bench(stable: Stable, rounds: int = 2, limit: float = 120.0) -> Bench:
    deadline = time.monotonic() + limit
    return Bench(stable, [], BUILTIN, rounds, SECONDS, deadline, Progress(inprocess.STEPS))


class TestTheSection:
    def test_hits(self, stable: Stable) -> None:
        run, before = bench(stable), list(stable.servers)
        section = inprocess.measure(run, [Work("hits", KEYS, 0.0, (PLAIN, CACHED, SIDECAR))])
        assert run.failures == []
        rows: dict[str, dict[str, Any]] = section.to_json()["rows"]
        assert list(rows) == ["hits/plain", "hits/cached", "hits/pannier"]
        assert rows["hits/cached"]["redis_commands"]["max"] == 0
        assert rows["hits/plain"]["redis_commands"]["min"] >= 1000
        for name, row in rows.items():
            assert row["application_us"]["median"] > 0 and row["per_second"]["median"] > 0
            assert row["total_us"]["median"] >= row["application_us"]["median"]
            assert (row["pannier_us"] is None) == (name != "hits/pannier")
            assert (row["cached_mb"] is None) == (name == "hits/plain")
        assert not any("began with" in note for note in section.notes)
        assert stable.servers == before, "what was started has ended, and nothing else"
        assert "| hits/cached " in section.markdown()

    def test_two_processes_with_writes(self, stable: Stable) -> None:
        run = bench(stable, rounds=1)
        section = inprocess.measure(run, [Work("two", KEYS, 0.5, (CACHED, SIDECAR), applications=2)])
        assert run.failures == [] and run.progress.done == 2
        rows = section.to_json()["rows"]
        assert list(rows) == ["two/cached", "two/pannier"]
        assert rows["two/cached"]["redis_commands"]["min"] > 0

    def test_a_failure_leaves_the_rest(self, stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stable, "proxy", ProxyCommand.from_text("false"))
        run = bench(stable, rounds=1)
        section = inprocess.measure(run, [Work("hits", KEYS, 0.0, (PLAIN, SIDECAR))])
        (told,) = run.failures
        assert told.startswith("in-process/hits/pannier: pannier ended with status 1")
        assert [row.name for row in section.rows] == ["hits/plain"]

    def test_the_time_limit(self, stable: Stable) -> None:
        run = bench(stable, limit=0.0)
        section = inprocess.measure(run, [Work("hits", KEYS, 0.0, (PLAIN,))])
        assert run.failures == ["in-process/hits/plain: the time limit is reached"]
        assert section.rows == [] and section.markdown()

    def test_an_old_redis_is_told(self, stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
        for version, told in (((7, 0, 15), True), ((7, 4, 0), False)):
            monkeypatch.setattr(stable, "redis", Binary("redis-server", version))
            assert any("7.4" in note for note in inprocess.notes(bench(stable))) == told

    def test_names_and_steps(self) -> None:
        names = [f"{work.name}/{side.name}" for work in inprocess.works() for side in work.sides]
        assert len(names) == len(set(names)) == inprocess.STEPS
        assert {"hits/plain", "hits/cached", "hits/pannier", "mix-95-5/cached-default"} <= set(names)
        assert not any(" " in name for name in names)

    def test_a_cache_that_was_not_filled_in_time(self, loaded: Server) -> None:
        setup = Setup(Work("mix", 100, 0.05, (), applications=2), Side("cached", "cached"), loaded, None)
        assert setup.shortfall() == ""
        setup.entries = 150
        assert setup.shortfall().startswith("mix/cached began with 150 of 200 values")
        setup.entries = 200
        assert setup.shortfall() == ""
        setup.side, setup.entries = SIDECAR, 100
        assert setup.shortfall() == "", "both have one copy"
        setup.entries = 99
        assert "99 of 100" in setup.shortfall()


def test_info_without_the_field(loaded: Server) -> None:
    with pytest.raises(BenchError, match="INFO stats has no nonsense"):
        inprocess.told(loaded.port, "stats", "nonsense")


def test_resp3_is_spoken(loaded: Server) -> None:
    with link_to(loaded.port) as link:
        inprocess.speak_resp3(link)
        link.sendall(frame(b"GET", key(0)))
        assert receive(link, len(bulk(VALUE))) == bulk(VALUE)
