"""Cache rules in TOML: what they may say, what is said of a wrong one, and that they can be written down again."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.cli import main
from proxy.resp.errors import SettingsError
from proxy.rules_file import FIELDS, read_rules, read_rules_file, rule_fields, show_rule
from proxy.settings import load
from proxy.tier.policy import CacheRule, Serve

WRITTEN = "pannier.toml:rules"


def read(**fields: Any) -> CacheRule:
    (rule,) = read_rules([{"match": "k", **fields}], WRITTEN)
    return rule


def complaint(tables: object) -> str:
    """The one line that wrong rules are answered with."""
    with pytest.raises(SettingsError) as caught:
        read_rules(tables, WRITTEN)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(WRITTEN) and "; " in text
    return text


class TestARule:
    def test_with_nothing_but_keys(self) -> None:
        assert read() == CacheRule((b"k",))

    def test_with_everything(self) -> None:
        rule = read(
            match=["a:*", "é[12]"], mode="observe", l1_ttl="30s", jitter="25%", max_value_size="64kb", negative=False, expire="1h",
            stale_while_revalidate=1.5, stale_if_error="5m", refresh_ahead="500ms", max_fetches=8,
        )  # fmt: skip
        assert rule == CacheRule(
            (b"a:*", "é[12]".encode()), Serve.OBSERVE, 30.0, 0.25, 65536, False, 3600.0, 1.5, 300.0, 0.5, 8
        )

    @pytest.mark.parametrize(("fields", "serve"), [({"cache": False}, Serve.OFF), ({"cache": "no"}, Serve.OFF), ({"cache": True}, Serve.CACHE), ({"mode": "OFF"}, Serve.OFF), ({"mode": "cache"}, Serve.CACHE)])
    def test_of_a_mode(self, fields: dict[str, Any], serve: Serve) -> None:
        assert read(**fields).serve is serve

    def test_of_no_staleness_at_all_differs_from_one_that_says_nothing(self) -> None:
        assert (read(stale_if_error=0).stale_if_error, read().stale_if_error) == (0.0, None)

    def test_come_in_their_order(self) -> None:
        assert [rule.patterns for rule in read_rules([{"match": "b"}, {"match": ["a", "c"]}], WRITTEN)] == [(b"b",), (b"a", b"c")]


class TestComplaints:
    """Each names the place and the value, and says what would be right."""

    @pytest.mark.parametrize(
        ("fields", "parts"),
        [
            ({"mode": "cahce"}, [".mode: ", "'cahce'", "did you mean cache?"]),
            ({"mode": "x"}, [".mode: ", "'x'", "cache, observe, off"]),
            ({"mode": 1}, [".mode: ", "'1'", "cache, observe, off"]),
            ({"cache": "maybe"}, [".cache: ", "'maybe'", "true"]),
            ({"l1_ttl": "soon"}, [".l1_ttl: ", "'soon'", "500ms"]),
            ({"l1_ttl": "0s"}, [".l1_ttl: ", "'0s'", "10ms to 365d"]),
            ({"l1_ttl": -1}, [".l1_ttl: ", "'-1'", "10ms to 365d"]),
            ({"l1_ttl": ["1s"]}, [".l1_ttl: ", "list", "one number or text"]),
            ({"l1_ttl": float("inf")}, [".l1_ttl: ", "'inf'", "500ms"]),
            ({"jitter": 1.5}, [".jitter: ", "'1.5'", "0 to 1"]),
            ({"jitter": "110%"}, [".jitter: ", "'110%'", "0 to 1"]),
            ({"jitter": -0.1}, [".jitter: ", "'-0.1'", "0 to 1"]),
            ({"max_value_size": "big"}, [".max_value_size: ", "'big'", "64mb"]),
            ({"max_value_size": 1}, [".max_value_size: ", "'1'", "16 to 512mb"]),
            ({"negative": 2}, [".negative: ", "'2'", "true"]),
            ({"expire": 0}, [".expire: ", "'0'", "1ms"]),
            ({"stale_while_revalidate": "366d"}, [".stale_while_revalidate: ", "'366d'", "365d"]),
            ({"stale_if_error": "x"}, [".stale_if_error: ", "'x'", "500ms"]),
            ({"refresh_ahead": {}}, [".refresh_ahead: ", "dict", "one number or text"]),
            ({"refresh_ahead": "10s", "l1_ttl": "10s"}, [".refresh_ahead: ", "'10s'", "l1_ttl, 10s", "give less"]),
            ({"max_fetches": 0}, [".max_fetches: ", "'0'", "1 to 1000000"]),
            ({"max_fetches": "1.5"}, [".max_fetches: ", "'1.5'", "whole number"]),
            ({"class": "two words"}, [".class: ", "'two words'", "1 to 64 letters"]),
            ({"class": ""}, [".class: ", "''", "1 to 64 letters"]),
            ({"class": "x" * 65}, [".class: ", "1 to 64 letters"]),
            ({"class": "a\n"}, [".class: ", "1 to 64 letters"]),
            ({"ttl": "1s"}, [".ttl: ", "no such key", "did you mean l1_ttl?"]),
            ({"zzz": 1}, [".zzz: ", "no such key", "known are match, mode"]),
            ({"mode": "off", "cache": False}, [": mode and cache are given", "give one of them"]),
            ({"match": ""}, [".match: ", "empty", '"user:*"']),
            ({"match": []}, [".match: ", "empty", '"user:*"']),
            ({"match": ["a", ""]}, [".match: ", "empty", '"user:*"']),
            ({"match": 5}, [".match: ", "int", "a text or a list of texts"]),
            ({"match": ["a", 5]}, [".match: ", "list", "a text or a list of texts"]),
        ],
    )  # fmt: skip
    def test_of_a_key(self, fields: dict[str, Any], parts: list[str]) -> None:
        text = complaint([{"match": "a"}, {"match": "k", **fields}])
        assert text.startswith(f"{WRITTEN} #2") and all(part in text for part in parts), text

    def test_of_a_rule_for_no_keys(self) -> None:
        assert "no match" in complaint([{"l1_ttl": 1}]) and '"user:*"' in complaint([{}])

    @pytest.mark.parametrize("tables", [{"match": "k"}, "k", 5, True, ["k"], [["k"]]])
    def test_of_what_are_no_tables(self, tables: object) -> None:
        assert "[[rules]]" in complaint(tables)

    def test_of_too_many_patterns(self) -> None:
        read_rules([{"match": "x" * 65536}], WRITTEN)
        assert "65536 bytes" in complaint([{"match": "x" * 65536}, {"match": "y"}])

    def test_of_a_value_too_long_to_show(self) -> None:
        assert len(complaint([{"match": "k", "l1_ttl": "9" * 10_000}])) < 400


class TestAFile:
    def toml(self, folder: Path, text: str | bytes) -> str:
        path = folder / "rules.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def complaint(self, path: str) -> str:
        with pytest.raises(SettingsError) as caught:
            read_rules_file(path, "--rules-file")
        text = str(caught.value)
        assert "\n" not in text and path in text
        return text

    def test_is_read(self, tmp_path: Path) -> None:
        path = self.toml(tmp_path, '[[rules]]\nmatch = "a"\n[[rules]]\nmatch = "b"\n')
        assert [rule.patterns for rule in read_rules_file(path, "--rules-file")] == [(b"a",), (b"b",)]
        assert read_rules_file(self.toml(tmp_path, ""), "--rules-file") == ()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[[rules]\n", "is not valid TOML"), (b"\xff", "is not valid TOML"), ("a = " + "[" * 100_000, "is not valid TOML"), ("mode = 'off'\n", "mode: no such key"),
            ("[tenants.a]\n", "tenants: no such key"), ("rules = 5\n", "rules: an int cannot stand here"), ("[rules]\nmatch = 'k'\n", "rules: a dict cannot stand here"),
            ("[[rules]]\nmatch = 'k'\n[[rules]]\nmatch = 'k'\nl1_ttl = 'x'\n", "rules #2.l1_ttl: 'x' is not a duration"),
        ],
    )  # fmt: skip
    def test_that_is_broken_says_where(self, tmp_path: Path, text: str | bytes, said: str) -> None:
        assert said in self.complaint(self.toml(tmp_path, text))

    def test_that_is_not_there(self, tmp_path: Path) -> None:
        assert "--rules-file: " in self.complaint(str(tmp_path / "nosuch")) and "give a TOML file of rules" in self.complaint(str(tmp_path))

    def test_comes_behind_the_rules_of_the_settings(self, tmp_path: Path) -> None:
        self.toml(tmp_path, '[[rules]]\nmatch = "second"\n')
        config = tmp_path / "pannier.toml"
        config.write_text(f'rules_file = "{tmp_path}/rules.toml"\n[[rules]]\nmatch = "first"\n')
        found, origins = load({}, {}, str(config))
        assert [rule.shown for rule in found.rules] == ["first", "second"]
        assert origins["rules"] == f"file {config}:rules"
        found, _ = load({"rules_file": ""}, {}, str(config))
        assert [rule.shown for rule in found.rules] == ["first"]
        with pytest.raises(SettingsError, match=r"^--rules-file: .*nosuch"):
            load({"rules_file": str(tmp_path / "nosuch")}, {})
        with pytest.raises(SettingsError, match=r"^PANNIER_RULES_FILE: .*nosuch"):
            load({}, {"PANNIER_RULES_FILE": str(tmp_path / "nosuch")})


class TestBesideTheSettings:
    """A rule without an l1_ttl has the setting's."""

    @pytest.mark.parametrize(
        ("ahead", "flags", "said"),
        [
            ("10m", {}, "'10m' is not before the end of the l1_ttl in force, 5m; give less, or the rule an l1_ttl"),
            ("5m", {}, "'5m' is not before the end"),
            ("30s", {"l1_ttl": "20s"}, "'30s' is not before the end of the l1_ttl in force, 20s"),
        ],
    )
    def test_refresh_ahead_comes_before_the_end(self, tmp_path: Path, ahead: str, flags: dict[str, str], said: str) -> None:
        config = tmp_path / "pannier.toml"
        config.write_text(f'[[rules]]\nmatch = "a"\n[[rules]]\nmatch = "b"\nrefresh_ahead = "{ahead}"\n')
        with pytest.raises(SettingsError, match=re.escape(f"{config}:rules #2.refresh_ahead: {said}")):
            load(flags, {}, str(config))
        load({"l1_ttl": "11m"}, {}, str(config))
        config.write_text(config.read_text() + 'l1_ttl = "11m"\n')
        load(flags, {}, str(config))


durations = st.integers(10, 10**9).map(lambda milliseconds: f"{milliseconds}ms")
TABLES = st.fixed_dictionaries(
    {"match": st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=10), min_size=1, max_size=3)},
    optional={
        "mode": st.sampled_from(["cache", "observe", "off"]), "l1_ttl": durations, "jitter": st.integers(0, 10**9).map(lambda n: f"{n / 10**9:.9f}"), "max_value_size": st.integers(16, 1 << 29),
        "negative": st.booleans(), "expire": durations, "stale_while_revalidate": durations, "stale_if_error": st.one_of(durations, st.just("0")), "max_fetches": st.integers(1, 10**6),
        "class": st.text("abcZé019_.:-", min_size=1, max_size=64),
    },
)  # fmt: skip


class TestWrittenDown:
    @given(st.lists(TABLES, max_size=3))
    @settings(deadline=None)
    def test_reads_back_as_the_same(self, tables: list[dict[str, Any]]) -> None:
        rules = read_rules(tables, WRITTEN)
        text = "\n".join(line for rule in rules for line in ("[[rules]]", *show_rule(rule)))
        assert read_rules(tomllib.loads(text).get("rules", []), WRITTEN) == rules

    @pytest.mark.parametrize("label", ["1.10", "007", "true", "1", "1e5", "inf"])
    def test_a_class_stays_a_text(self, label: str) -> None:
        (table,) = tomllib.loads("[[rules]]\n" + "\n".join(show_rule(read(**{"class": label}))))["rules"]
        assert read_rules([table], WRITTEN)[0].label == label

    def test_says_no_more_than_the_rule(self) -> None:
        assert show_rule(read(cache=False, negative=True, jitter=0.1)) == ['match = ["k"]', 'mode = "off"']
        assert rule_fields(read(l1_ttl=60)) == {"match": ["k"], "l1_ttl": "1m"}

    def test_pannier_config_is_a_file_that_means_the_same(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "rules.toml").write_text('[[rules]]\nmatch = "far:*"\nexpire = "1h"\n')
        config = tmp_path / "pannier.toml"
        config.write_text(f'rules_file = "{tmp_path}/rules.toml"\n[[rules]]\nmatch = ["near:*", "a\\"b"]\nl1_ttl = "10s"\nclass = "1.10"\n')
        assert main(["config", "--config", str(config)]) == 0
        shown = capsys.readouterr().out
        (tmp_path / "again.toml").write_text(shown)
        first, again = load({}, {}, str(config))[0], load({}, {}, str(tmp_path / "again.toml"))[0]
        assert again.rules == first.rules and len(first.rules) == 2
        assert 'match = ["far:*"]' in shown, "all that are in force are shown"
        assert f"file {config}:rules #1" in shown and f"file {tmp_path}/rules.toml:rules #1" in shown

    def test_every_field_is_documented(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text("utf-8")
        for key in FIELDS:
            assert f"`{key}`" in page, key
