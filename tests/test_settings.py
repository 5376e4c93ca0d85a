"""Settings: sources, precedence, and what is said about a wrong value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.resp.errors import SettingsError
from proxy.settings import (
    BY_NAME,
    OPTIONS,
    Kind,
    Settings,
    count,
    duration,
    load,
    show_duration,
    show_size,
    size,
)
from proxy.upstream.address import Listen, Upstream


def toml(folder: Path, text: str) -> str:
    """Write a TOML file, return its path."""
    path = folder / "pannier.toml"
    path.write_text(text, "utf-8")
    return str(path)


def complaint(flags: dict[str, str], env: dict[str, str] | None = None, config: str | None = None) -> str:
    """The one line a wrong setting is answered with."""
    with pytest.raises(SettingsError) as caught:
        load(flags, env or {}, config)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestDefaults:
    def test_nothing_given(self) -> None:
        settings, origins = load({}, {})
        assert settings == Settings()
        assert set(origins.values()) == {"default"}

    def test_are_what_the_documentation_promises(self) -> None:
        assert dataclasses.asdict(Settings()) | {"listen": None} == {
            "upstream": None,
            "listen": None,
            "max_clients": 10_000,
            "client_timeout": 0.0,
            "tcp_keepalive": 300.0,
            "query_buffer_limit": 1 << 30,
            "output_buffer_limit": 1 << 30,
            "output_buffer_soft_limit": 64 << 20,
            "output_buffer_soft_seconds": 60.0,
            "proto_max_bulk_len": 512 << 20,
            "upstream_timeout": 30.0,
            "connect_timeout": 5.0,
            "reconnect_min": 0.05,
            "reconnect_max": 2.0,
            "tracking": "auto",
            "max_memory": 64 << 20,
            "max_entries": 1_000_000,
            "max_value_size": 1 << 20,
            "l1_ttl": 300.0,
            "coherence_timeout": 3.0,
            "admit_after": 2,
            "canary_interval": 5.0,
            "log_level": "info",
        }
        assert Settings().listen == (Listen("127.0.0.1", 6380),)

    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
    def test_pass_their_own_check(self, option: Any) -> None:
        assert option.kind.parse(option.kind.show(option.default)) == option.default
        assert option.help.endswith(".")

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Settings().max_clients = 1  # type: ignore[misc]


class TestPrecedence:
    def test_flag_over_environment_over_file_over_default(self, tmp_path: Path) -> None:
        path = toml(tmp_path, "max_clients = 3\nclient_timeout = 3\ntcp_keepalive = 3\n")
        env = {"PANNIER_MAX_CLIENTS": "2", "PANNIER_CLIENT_TIMEOUT": "2s", "HOME": "/"}
        settings, origins = load({"max_clients": "1"}, env, path)
        assert (settings.max_clients, settings.client_timeout, settings.tcp_keepalive) == (1, 2.0, 3.0)
        assert origins["max_clients"] == "flag --max-clients"
        assert origins["client_timeout"] == "environment PANNIER_CLIENT_TIMEOUT"
        assert origins["tcp_keepalive"] == f"file {path}:tcp_keepalive"
        assert origins["log_level"] == "default"

    def test_redis_url_stands_below_pannier_upstream_and_above_the_file(self, tmp_path: Path) -> None:
        path = toml(tmp_path, 'upstream = "redis://file"')
        env = {"REDIS_URL": "redis://general", "PANNIER_UPSTREAM": "redis://own"}
        assert load({}, env, path)[0].upstream == Upstream("own")
        settings, origins = load({}, {"REDIS_URL": "redis://general"}, path)
        assert settings.upstream == Upstream("general")
        assert origins["upstream"] == "environment REDIS_URL"

    def test_bundled_can_be_asked_for_again(self) -> None:
        settings, origins = load({"upstream": "bundled"}, {"REDIS_URL": "redis://general"})
        assert settings.upstream is None
        assert origins["upstream"] == "flag --upstream"

    def test_an_empty_variable_is_not_set(self) -> None:
        env = {"PANNIER_UPSTREAM": "", "REDIS_URL": "", "PANNIER_CONFIG": ""}
        assert load({}, env)[1]["upstream"] == "default"

    def test_the_file_of_the_flag_replaces_the_file_of_the_variable(self, tmp_path: Path) -> None:
        path = toml(tmp_path, "max_clients = 3")
        assert load({}, {"PANNIER_CONFIG": path})[0].max_clients == 3
        assert load({}, {"PANNIER_CONFIG": "/none"}, path)[0].max_clients == 3


class TestValues:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("500ms", 0.5),
            ("50ms", 0.05),
            ("5s", 5),
            ("2m", 120),
            ("1h", 3600),
            ("5", 5),
            ("1.5", 1.5),
            ("7 S", 7),
        ],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert duration(0, 1e9).parse(text) == seconds

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("65536", 65536),
            ("1k", 1000),
            ("1kb", 1024),
            ("2m", 2_000_000),
            ("64mb", 64 << 20),
            ("64MiB", 64 << 20),
            ("1g", 10**9),
            ("1GB", 1 << 30),
            ("10b", 10),
        ],
    )
    def test_sizes_mean_what_they_mean_in_redis_conf(self, text: str, number: int) -> None:
        assert size(0, 1 << 40).parse(text) == number

    @given(st.integers(0, 10**9))
    def test_durations_read_back(self, milliseconds: int) -> None:
        assert duration(0, 1e9).parse(show_duration(milliseconds / 1000)) == milliseconds / 1000

    @given(st.integers(0, 1 << 40))
    def test_sizes_read_back(self, number: int) -> None:
        assert size(0, 1 << 40).parse(show_size(number)) == number

    @given(st.text())
    def test_any_text_is_a_value_or_a_value_error(self, text: str) -> None:
        kinds: list[Kind[Any]] = [count(0, 5, ""), duration(0, 5), size(0, 5)]
        for kind in kinds + [option.kind for option in OPTIONS]:
            try:
                kind.parse(text)
            except ValueError as error:
                assert "; " in str(error)

    def test_several_addresses(self, tmp_path: Path) -> None:
        expected = (Listen("127.0.0.1", 1), Listen(None, 0, "/p.sock", 0o660))
        assert load({"listen": "127.0.0.1:1, unix:///p.sock?mode=660"}, {})[0].listen == expected
        path = toml(tmp_path, 'listen = ["127.0.0.1:1", "unix:///p.sock?mode=660"]')
        assert load({}, {}, path)[0].listen == expected
        assert load({"listen": "1:0,1:0"}, {})[0].listen == (Listen("1", 0),) * 2

    def test_a_file_may_say_numbers_or_texts(self, tmp_path: Path) -> None:
        path = toml(tmp_path, 'connect_timeout = 1.5\nreconnect_max = "3s"\nquery_buffer_limit = 2097152')
        settings = load({}, {}, path)[0]
        assert (settings.connect_timeout, settings.reconnect_max) == (1.5, 3.0)
        assert settings.query_buffer_limit == 2 << 20


class TestAWrongValueNamesItselfAndWhatWouldBeRight:
    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("max_clients", "many", "'many' is not a whole number; give a number such as 10000"),
            ("max_clients", "0", "'0' is out of range; give something from 1 to 1000000"),
            ("max_clients", "-5", "'-5' is out of range; give something from 1 to 1000000"),
            ("client_timeout", "soon", "'soon' is not a duration; give one such as 500ms, 5s, 2m or seconds"),
            ("client_timeout", "10ms", "'10ms' is out of range; give something from 1s to 365d"),
            ("query_buffer_limit", "1tb", "'1tb' is not a size; give one such as 64mb, 1gb or plain bytes"),
            ("query_buffer_limit", "1k", "'1k' is out of range; give something from 1mb to 1024gb"),
            ("log_level", "warn", "'warn' is not one of debug, info, warning, error; did you mean warning?"),
            ("log_level", "x", "'x' is not one of debug, info, warning, error; give one of these"),
            ("listen", "1:1,1:1", "'1:1' is given twice; give each address once"),
            ("listen", ",", "',' names no address; give one such as 127.0.0.1:6380"),
            (
                "upstream",
                "redis://u:pw@h:x",
                "'redis://u:***@h:x' has no valid port; give a number from 1 to 65535",
            ),
        ],
    )
    def test_in_each_source(self, name: str, text: str, said: str, tmp_path: Path) -> None:
        option = BY_NAME[name]
        path = toml(tmp_path, f'{name} = "{text}"')
        assert complaint({name: text}) == f"{option.flag}: {said}"
        assert complaint({}, {option.variable: text}) == f"{option.variable}: {said}"
        assert complaint({}, {}, path) == f"{path}:{name}: {said}"

    def test_redis_url(self) -> None:
        assert complaint({}, {"REDIS_URL": "http://:pw@h"}).startswith(
            "REDIS_URL: 'http://:***@h' is not a Redis URL"
        )

    @pytest.mark.parametrize("name", sorted(BY_NAME))
    def test_no_password_is_shown_wherever_it_strayed(self, name: str) -> None:
        assert "pw" not in complaint({name: "redis://u:pw@h:x"})

    def test_a_long_value_is_cut(self) -> None:
        assert len(complaint({"max_clients": "x" * 10_000})) < 250

    def test_limits_that_contradict_each_other(self) -> None:
        assert complaint({"reconnect_min": "5s"}) == (
            "--reconnect-min: '5s' is wrong beside the other limit; "
            "reconnect_min (5s) must not exceed reconnect_max (2s)"
        )
        assert complaint({}, {"PANNIER_RECONNECT_MAX": "10ms"}).startswith(
            "PANNIER_RECONNECT_MAX: '10ms' is wrong"
        )


class TestUnknownNames:
    def test_variable(self) -> None:
        assert complaint({}, {"PANNIER_MAX_CLIENT": "5"}) == (
            "PANNIER_MAX_CLIENT: no such variable; did you mean PANNIER_MAX_CLIENTS?"
        )
        assert complaint({}, {"PANNIER_PORT": "6380"}) == (
            "PANNIER_PORT: no such variable; see pannier --help for those there are"
        )

    def test_variables_of_kubernetes_are_passed_over(self) -> None:
        load(
            {},
            {
                "PANNIER_SERVICE_HOST": "10.0.0.1",
                "PANNIER_SERVICE_PORT": "6380",
                "PANNIER_SERVICE_PORT_REDIS": "6380",
                "PANNIER_PORT": "tcp://10.0.0.1:6380",
                "PANNIER_PORT_6380_TCP": "tcp://10.0.0.1:6380",
                "PANNIER_PORT_6380_TCP_PROTO": "tcp",
                "PANNIER_EU_SERVICE_HOST": "10.0.0.2",
                "PANNIER_EU_PORT": "tcp://10.0.0.2:6380",
            },
        )

    def test_key_of_the_file(self, tmp_path: Path) -> None:
        path = toml(tmp_path, "max-clients = 5")
        assert complaint({}, {}, path) == f"{path}:max-clients: no such option; did you mean max_clients?"


class TestAWrongFile:
    def test_missing(self) -> None:
        assert complaint({}, {}, "/none.toml") == (
            "--config: '/none.toml' cannot be read (No such file or directory); give a TOML file"
        )
        assert complaint({}, {"PANNIER_CONFIG": "/none.toml"}).startswith(
            "PANNIER_CONFIG: '/none.toml' cannot"
        )

    def test_not_toml(self, tmp_path: Path) -> None:
        assert "is not valid TOML (Expected" in complaint({}, {}, toml(tmp_path, "max_clients 5"))
        (tmp_path / "pannier.toml").write_bytes(b"\xff")
        assert "is not valid TOML ('utf-8' codec" in complaint({}, {}, str(tmp_path / "pannier.toml"))

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("max_clients = [1]", "a list cannot stand here; give one number or text"),
            ("max_clients = 1979-05-27", "a date cannot stand here; give one number or text"),
            ("max_clients = true", "'true' is not a whole number; give a number such as 10000"),
            ("listen = [1]", "a list cannot stand here; give a text or a list of texts"),
            ("[listen]", "a dict cannot stand here; give a text or a list of texts"),
        ],
    )
    def test_a_value_of_the_wrong_type(self, line: str, said: str, tmp_path: Path) -> None:
        path = toml(tmp_path, line)
        name = line.strip("[]").partition(" ")[0]
        assert complaint({}, {}, path) == f"{path}:{name}: {said}"
