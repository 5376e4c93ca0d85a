"""The program that brings the vendored command table up to date; its merging, without a server."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.tools import commands_table
from proxy.tools.commands_table import VENDORED, ReportError, main, merge, rank, render

ENTRY: dict[str, Any] = {
    "arity": 2,
    "flags": ["readonly", "fast"],
    "acl_categories": ["@read"],
    "tips": [],
    "first_key": 1,
    "last_key": 1,
    "step": 1,
    "key_specs": [],
}


def test_rank_compares_versions_as_numbers() -> None:
    labels = [
        "valkey unstable 2024-10-24",
        "valkey 9.0.0",
        "redis 7.0.15",
        "redis 7.2.4",
        "redis unstable 2024-10-18 (8.0 development)",
        "redis 8.0.1",
        "redis 10.0.0",
    ]
    assert sorted(set(labels), key=rank) == labels


class TestMerge:
    def test_adds(self) -> None:
        table: dict[str, Any] = {}
        assert list(merge(table, "redis 8.0.0", {"new": ENTRY})) == ["added new"]
        assert table == {"new": ENTRY | {"seen_in": ["redis 8.0.0"]}}

    def test_newer_wins(self) -> None:
        table = {"get": ENTRY | {"seen_in": ["redis 9.0.0"]}}
        assert list(merge(table, "redis 10.0.0", {"get": ENTRY | {"arity": -2}})) == [
            "changed get: arity 2 -> -2"
        ]
        assert table == {"get": ENTRY | {"arity": -2, "seen_in": ["redis 9.0.0", "redis 10.0.0"]}}

    @pytest.mark.parametrize("label", ["redis 7.0.15", "valkey 99.0.0"])
    def test_older_and_forks_are_only_noted(self, label: str) -> None:
        table = {"get": ENTRY | {"seen_in": ["redis 8.0.0"]}}
        assert list(merge(table, label, {"get": ENTRY | {"arity": -2}})) == []
        assert table == {"get": ENTRY | {"seen_in": ["redis 8.0.0", label]}}

    def test_the_order_of_flags_means_nothing(self) -> None:
        table = {"get": ENTRY | {"seen_in": ["redis 7.0.0"]}}
        assert list(merge(table, "redis 8.0.0", {"get": ENTRY | {"flags": ["fast", "readonly"]}})) == []


def test_the_vendored_file_is_what_render_writes() -> None:
    text = VENDORED.read_text("utf-8")
    assert render(json.loads(text)["commands"]) == text


class FakeServer:
    """As much of redis-py's client as the program uses."""

    def __init__(self, info: dict[str, str], reply: list[object]) -> None:
        self.info = lambda _: info
        self.execute_command = lambda _: reply
        self.set_response_callback = lambda *_: None
        self.close = lambda: None


class TestFetch:
    @pytest.mark.parametrize(
        ("info", "label"),
        [
            ({"redis_version": "8.0.1"}, "redis 8.0.1"),
            ({"server_name": "valkey", "valkey_version": "8.1.0", "redis_version": "7.2.4"}, "valkey 8.1.0"),
        ],
    )
    def test_reads_commands_and_their_sub_commands(
        self, monkeypatch: pytest.MonkeyPatch, info: dict[str, str], label: str
    ) -> None:
        sub = [b"box|open", 2, [b"fast"], 0, 0, 0, [], [], [], []]
        box = [b"box", -2, [], 0, 0, 0, [], [], [], [sub]]
        other = [b"m.x", -2, [b"module"], 0, 0, 0, [], [], [], []]
        monkeypatch.setattr(redis.Redis, "from_url", lambda *_, **__: FakeServer(info, [box, other]))
        found, entries = commands_table.fetch("redis://server")
        assert found == label
        assert list(entries) == ["box", "box|open"]
        assert entries["box|open"] == ENTRY | {
            "flags": ["fast"], "acl_categories": [], "first_key": 0, "last_key": 0, "step": 0,
        }  # fmt: skip

    @pytest.mark.parametrize("entry", [[b"get", 2, [], 1, 1, 1, []], [b"get"], b"get"])
    def test_refuses_older_and_unreadable_answers(
        self, monkeypatch: pytest.MonkeyPatch, entry: object
    ) -> None:
        server = FakeServer({"redis_version": "6.2.14"}, [entry])
        monkeypatch.setattr(redis.Redis, "from_url", lambda *_, **__: server)
        with pytest.raises(ReportError, match=r"redis 6\.2\.14"):
            commands_table.fetch("redis://server")


class TestMain:
    @pytest.fixture(autouse=True)
    def server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands_table, "fetch", lambda _: ("redis 99.0.0", {"brandnew": ENTRY}))

    def test_only_reports_without_output(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = VENDORED.read_bytes()
        assert main(["redis://server"]) == 0
        assert capsys.readouterr().out == "redis://server: redis 99.0.0, 1 commands\n  added brandnew\n"
        assert VENDORED.read_bytes() == before

    def test_writes_the_output(self, tmp_path: Path) -> None:
        output = tmp_path / "commands.json"
        assert main(["redis://server", "--output", str(output)]) == 0
        written = json.loads(output.read_text("utf-8"))
        assert written["commands"]["brandnew"] == ENTRY | {"seen_in": ["redis 99.0.0"]}
        assert "redis 99.0.0" in written["origin"]

    def test_says_what_is_wrong(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        def refuse(url: str) -> object:
            raise ReportError(f"{url} is too old")

        assert main(["redis://server", "--base", str(tmp_path / "missing.json")]) == 1
        assert "missing.json" in capsys.readouterr().err
        monkeypatch.setattr(commands_table, "fetch", refuse)
        assert main(["redis://server"]) == 1
        assert capsys.readouterr().err == "commands_table: ReportError: redis://server is too old\n"
