"""Groups that compare two proxies: what each is started with, what it finds in Redis, what the report says."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import pytest

from bench.__main__ import parse
from bench.data import Store
from bench.figures import Cell, Measurement, Result
from bench.load import BUILTIN
from bench.progress import Progress
from bench.report import columns, group_json, markdown, to_json
from bench.runner import Contender, Runner
from bench.servers import BenchError, Binary, ProxyCommand, Server, Stable
from bench.traffic import MANY_KEYS, Part
from bench.workloads import (
    DIRECT,
    GROUP_OF,
    NAMESPACED,
    PLAIN,
    PROXY,
    WORKLOADS,
    Group,
    Side,
    Workload,
)

NAMESPACE = GROUP_OF["namespace"]
ROWS = [workload for workload in WORKLOADS if workload.group == NAMESPACE.name]
KNOWS_IT = (sys.executable, "-c", "print('  --namespace NAME\\n  --max-memory N')")
KNOWS_NOTHING = (sys.executable, "-c", "print('  --tracking WORD')")


class Ledger(Stable):
    """Starts nothing and notes what it was to start."""

    def __init__(self, usage: Sequence[str] | None = KNOWS_IT) -> None:
        super().__init__(Binary("redis-server", (7, 0, 0)), ProxyCommand(("x",), None, usage))
        self.started: list[tuple[str, list[str]]] = []

    def server(self, title: str, options: Sequence[str]) -> Server:
        """A server in name only."""
        self.started.append((title, list(options)))
        nothing = cast(Any, None)
        return Server(title, len(self.started), nothing, nothing, nothing)

    def start_redis(self, title: str) -> Server:
        return self.server(title, ())

    def start_proxy(
        self, upstream: Server | None, options: Sequence[str] = (), title: str = "proxy"
    ) -> Server:
        assert upstream
        return self.server(f"{title} before {upstream.title}", options)

    def stop(self, servers: object) -> None:
        pass


class Walk(Runner):
    """Goes through a group without load; notes when it fills which tiers and which rows it comes to."""

    def __init__(self, stable: Stable) -> None:
        super().__init__(stable, BUILTIN, 1, 0.1, time.monotonic() + 60, Progress(1))
        self.seen: list[str] = []

    def fill(self, group: Group, contenders: Sequence[Contender]) -> None:
        self.seen.append("fill " + ", ".join(proxy.name for proxy in contenders if proxy.behind))

    def run_cell(self, workload: Workload, contenders: Sequence[Contender], cell: Cell) -> None:
        self.seen.append(workload.name)
        for contender in contenders:
            cell.rounds[contender.name] = [Measurement(1.0, 0.0, 1000.0, 0.5)]

    @staticmethod
    def tierless(contenders: Sequence[Contender]) -> str:
        return ""


def cell(workload: Workload, plain: float | None = None, namespaced: float | None = None) -> Cell:
    """Two rounds in which the namespace costs 2 % of the proxy and 10 % of the Redis, with these hit rates."""
    rounds = {
        PLAIN.name: [Measurement(pace, pace, 1000.0, 0.5, hit_rate=plain) for pace in (1.0, 2.0)],
        NAMESPACED.name: [
            Measurement(1.02 * pace, 1.10 * pace, 1000.0, 0.5, hit_rate=namespaced) for pace in (1.0, 2.0)
        ],
    }
    return Cell(workload, rounds)


class TestSides:
    """Two proxies, each before a Redis of its own."""

    def test_the_baseline_is_redis_direct_elsewhere(self) -> None:
        for name in ("pass-through", "hits", "misses"):
            assert GROUP_OF[name].sides == (DIRECT, PROXY)
        for name in ("namespace", "namespace-pass-through"):
            assert GROUP_OF[name].sides == (PLAIN, NAMESPACED)

    def test_the_prefix_in_redis_is_that_of_the_option(self) -> None:
        assert NAMESPACED.prefix == NAMESPACED.options[1].encode() + b":"
        assert PLAIN.prefix == b""

    def test_what_is_started(self) -> None:
        stable = Ledger()
        runner = Walk(stable)
        options = ["--max-memory", "64mb"]
        contenders = [runner.enter(side, options) for side in NAMESPACE.sides]
        assert stable.started == [
            ("Redis behind the plain proxy", []),
            ("plain proxy before Redis behind the plain proxy", options),
            ("Redis behind the namespaced proxy", []),
            (
                "namespaced proxy before Redis behind the namespaced proxy",
                [*options, "--namespace", "agent_service"],
            ),
        ]
        assert [contender.store.prefix for contender in contenders] == [b"", b"agent_service:"]

    def test_a_redis_and_its_data_serve_all_groups_of_a_side(self) -> None:
        stable = Ledger()
        runner = Walk(stable)
        first, second = (runner.enter(NAMESPACED, ()) for _ in range(2))
        assert first.store is second.store
        assert first.own is not second.own
        assert [title for title, _ in stable.started].count("Redis behind the namespaced proxy") == 1

    def test_redis_direct_has_no_proxy(self) -> None:
        stable = Ledger(None)
        contender = Walk(stable).enter(DIRECT, ("--tracking", "off"))
        assert stable.started == [("Redis direct", [])]
        assert (contender.own.title, contender.behind) == ("Redis direct", None)

    @pytest.mark.parametrize("usage", [KNOWS_NOTHING, None])
    def test_nothing_is_compared_when_both_would_be_the_same(self, usage: Sequence[str] | None) -> None:
        with pytest.raises(BenchError, match="the namespaced proxy needs --namespace"):
            Walk(Ledger(usage)).enter(NAMESPACED, ())

    @pytest.mark.parametrize(("side", "start"), [(PLAIN, b"key:"), (NAMESPACED, b"agent_service:key:")])
    def test_data_are_loaded_under_the_prefix(
        self, side: Side, start: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[bytes] = []

        def set_many(_link: object, numbers: range, name: Any, _value: object) -> None:
            loaded.extend(map(name, numbers))

        monkeypatch.setattr("bench.data.connect", lambda _port: nullcontext())
        monkeypatch.setattr("bench.data.set_many", set_many)
        Store(1, side.prefix).provide([Part(1.0, "get", end=2)])
        assert loaded == [start + b"000000000000", start + b"000000000001"]


class TestRows:
    """Hits, misses and writes in one group."""

    def test_rows(self) -> None:
        kinds = ("GET hits", "GET", "SET")
        assert [row.name for row in ROWS] == [f"{kind} P={depth}" for kind in kinds for depth in (1, 16, 64)]
        assert [row.keyspace == MANY_KEYS for row in ROWS] == [False] * 3 + [True] * 6
        assert [row.least_hits for row in ROWS] == [0.9] * 3 + [None] * 6

    def test_both_tiers_are_filled_once_and_after_the_hits(self) -> None:
        runner, result = Walk(Ledger()), Result({}, {})
        runner.run(ROWS, result)
        names = [row.name for row in ROWS]
        assert runner.seen == [*names[:3], "fill plain, namespaced", *names[3:]]
        assert result.failures == []
        assert all(one.complete for one in result.cells)

    def test_hits_alone_fill_nothing(self) -> None:
        runner = Walk(Ledger())
        runner.run(ROWS[:1], Result({}, {}))
        assert runner.seen == ["GET hits P=1"]

    def test_an_unknown_option_fails_the_group_and_no_other(self) -> None:
        runner, result = Walk(Ledger(KNOWS_NOTHING)), Result({}, {})
        runner.run([WORKLOADS[0], ROWS[0]], result)
        assert runner.seen == [WORKLOADS[0].name]
        (failure,) = result.failures
        assert failure.startswith("namespace: the namespaced proxy needs --namespace")

    def test_options_of_the_command_line(self) -> None:
        chosen = parse(["--group", "namespace", "--only", "get", "--depth", "16", "--rounds", "3"])
        assert [row.name for row in chosen.workloads()] == ["GET hits P=16", "GET P=16"]
        assert chosen.rounds == 3


class TestReport:
    """The heads say what is compared."""

    def test_ratios_are_to_the_plain_proxy(self) -> None:
        text = markdown(Result({}, {}, [cell(ROWS[3], 0.2, 0.2)]))
        assert "| 1.02 (1.02–1.02) | ≤ 1.15 met | 1.06 (1.06–1.06) | ≤ 1.15 met |" in text
        assert "÷ Redis" not in text

    def test_heads(self) -> None:
        assert columns(NAMESPACE) == [
            "what is measured",
            "P",
            "own ÷ plain",
            "target",
            "total ÷ plain",
            "target",
            "plain own µs/op",
            "plain behind µs/op",
            "namespaced own µs/op",
            "namespaced behind µs/op",
            "plain k/s",
            "namespaced k/s",
            "plain hits",
            "namespaced hits",
            "generator CPU",
        ]
        assert columns(GROUP_OF["hits"])[2:-1] == [
            "own ÷ Redis",
            "target",
            "total ÷ Redis",
            "target",
            "Redis µs/op",
            "own µs/op",
            "behind µs/op",
            "Redis k/s",
            "proxy k/s",
            "hits",
        ]

    def test_options_are_told_of_both(self) -> None:
        text = markdown(Result({}, {}, [cell(ROWS[0], 1.0, 1.0)]))
        assert (
            "Options of both proxies: `--max-memory 64mb`; of the namespaced proxy: "
            "`--namespace agent_service`." in text
        )

    @pytest.mark.parametrize(
        ("plain", "namespaced", "reason"),
        [
            (0.95, 0.99, ""),
            (0.95, 0.5, "hit rate 50.0%, should be 90% or more"),
            (0.5, 0.99, "plain: hit rate 50.0%, should be 90% or more"),
            (None, 0.99, "plain: no reads were counted"),
        ],
    )
    def test_hits_of_both_make_a_row_valid(
        self, plain: float | None, namespaced: float | None, reason: str
    ) -> None:
        assert cell(ROWS[0], plain, namespaced).invalid() == reason

    def test_json(self) -> None:
        data = json.loads(json.dumps(to_json(Result({}, {}, [cell(ROWS[0], 0.98, 0.99)]))))
        group = data["groups"]["namespace"]
        assert group["baseline"] == {"name": "plain", "options": []}
        assert group["contender"] == {"name": "namespaced", "options": ["--namespace", "agent_service"]}
        (row,) = group["rows"]
        assert row["ratio_own"]["holds"] is True
        assert row["ratio_total"]["target"] is None
        assert row["hit_rate"]["median"] == 0.99
        assert [(name, one["hit_rate"]["median"]) for name, one in row["contenders"].items()] == [
            ("plain", 0.98),
            ("namespaced", 0.99),
        ]

    def test_json_of_the_other_groups_is_as_it_was(self) -> None:
        rounds = {
            DIRECT.name: [Measurement(2.0, 0.0, 1000.0, 0.5)],
            PROXY.name: [Measurement(1.0, 0.0, 1000.0, 0.5, hit_rate=1.0)],
        }
        workload = next(row for row in WORKLOADS if row.group == "hits")
        group = group_json(GROUP_OF["hits"], Result({}, {}, [Cell(workload, rounds)]))
        assert list(group) == ["title", "about", "options", "note", "rows"]
        (row,) = group["rows"]
        assert list(row["contenders"]) == ["redis", "proxy"]
        for one in row["contenders"].values():
            assert list(one) == ["own_us", "behind_us", "total_us", "per_second", "load_cpu", "saturated"]
