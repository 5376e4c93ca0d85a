"""Settings: sources, precedence, and what is said about a wrong value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.kinds import Kind, count, duration, show_duration, show_size, size, switch
from proxy.resp.errors import SettingsError
from proxy.settings import BY_NAME, OPTIONS, Settings, load
from proxy.tenants import Tenant
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
        assert dataclasses.asdict(Settings()) | {"listen": None, "admin_listen": None} == {
            "upstream": None,
            "listen": None,
            "workers": 1,
            "max_clients": 10_000,
            "client_timeout": 0.0,
            "tcp_keepalive": 300.0,
            "query_buffer_limit": 1 << 30,
            "output_buffer_limit": 1 << 30,
            "output_buffer_soft_limit": 64 << 20,
            "output_buffer_soft_seconds": 60.0,
            "drain_delay": 0.0,
            "drain_timeout": 10.0,
            "proto_max_bulk_len": 512 << 20,
            "upstream_timeout": 30.0,
            "connect_timeout": 5.0,
            "reconnect_min": 0.05,
            "reconnect_max": 2.0,
            "breaker_failures": 3,
            "on_upstream_down": "error",
            "stale_max": 300.0,
            "tracking": "auto",
            "max_memory": 64 << 20,
            "max_entries": 1_000_000,
            "max_value_size": 1 << 20,
            "l1_ttl": 300.0,
            "coherence_timeout": 3.0,
            "admit_after": 2,
            "canary_interval": 5.0,
            "l1_ttl_untracked": 5.0,
            "broadcast": "auto",
            "evict_channel": "pannier:evict:",
            "warm": (),
            "warm_file": "",
            "warm_limit": 100_000,
            "warm_state": "",
            "warm_state_size": 8 << 20,
            "warm_timeout": 30.0,
            "refresh_hottest": 0,
            "refresh_interval": 900.0,
            "namespace": "",
            "namespace_channels": False,
            "namespace_scripts": "warn",
            "auth": "auto",
            "admin_listen": None,
            "admin_token": "",
            "admin_token_file": "",
            "admin_token_env": "",
            "admin_changes": "auto",
            "admin_protect": "changes",
            "admin_tls_cert": "",
            "admin_tls_key": "",
            "tls_cert": "",
            "tls_key": "",
            "tls_client_ca": "",
            "tls_min_version": "1.2",
            "log_format": "auto",
            "log_level": "info",
            "key_privacy": "plain",
            "slowlog_slower_than": 0.01,
            "slowlog_max_len": 128,
            "trace_sample": 0.0,
            "mode": "cache",
            "rules_file": "",
            "refill_limit": 64,
            "verify": 0.0,
            "verify_demote": 0,
            "rules": (),
            "tenants": (),
            "token": "",
            "origins": {},
            "memory_limit": None,
        }
        assert Settings().listen == (Listen("127.0.0.1", 6380),)
        assert Settings().admin_listen == Listen("127.0.0.1", 9464)

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
        kinds: list[Kind[Any]] = [count(0, 5, ""), duration(0, 5), size(0, 5), switch()]
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
        assert load({"listen": "h:1?namespace=a,h:2?namespace="}, {})[0].listen == (
            Listen("h", 1, namespace="a"),
            Listen("h", 2, namespace=""),
        )

    @pytest.mark.parametrize("text", ["true", "yes", "on", "false", "no", "off", "TRUE", "Off"])
    def test_switches(self, text: str, tmp_path: Path) -> None:
        expected = text.lower() in ("true", "yes", "on")
        assert switch().parse(text) is expected
        assert switch().parse(switch().show(expected)) is expected
        assert load({"namespace_channels": text}, {})[0].namespace_channels is expected
        path = toml(tmp_path, f"namespace_channels = {str(expected).lower()}")
        assert load({}, {}, path)[0].namespace_channels is expected

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
            (
                "listen",
                "h:1?namespace=a,h:1?namespace=b",
                "'h:1?namespace=b' is given twice; give each address once",
            ),
            (
                "listen",
                "unix:///p,unix:///p?mode=660",
                "'unix:///p?mode=660' is given twice; give each address once",
            ),
            (
                "namespace",
                "a b",
                "'a b' has white space or a control character; give a prefix such as agent_service",
            ),
            (
                "namespace",
                "a:",
                "'a:' begins or ends with a colon; leave it out, Pannier puts one after the namespace",
            ),
            (
                "namespace_channels",
                "1",
                "'1' is neither true nor false; give one of true, false, yes, no, on, off",
            ),
            (
                "namespace_scripts",
                "deny",
                "'deny' is not one of allow, warn, refuse; give one of these",
            ),
            (
                "auth",
                "passthru",
                "'passthru' is not one of auto, none, tenants, passthrough; did you mean passthrough?",
            ),
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


ACME = '[tenants.acme]\npassword = "s3cr3t"\n'


class TestNamespacesInUseDoNotNest:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (
                {"namespace": "a:b", "listen": "h:1?namespace=a"},
                "--namespace: 'a:b' lies within 'a' (--listen), where its keys would be visible; "
                "give namespaces none of which begins with another and a colon",
            ),
            (
                {"namespace": "a", "listen": "h:1?namespace=a::b"},
                "--listen: 'a::b' lies within 'a' (--namespace), where its keys would be visible; "
                "give namespaces none of which begins with another and a colon",
            ),
            (
                {"listen": "h:1?namespace=a,h:2?namespace=a:b"},
                "--listen: 'a:b' lies within 'a' (--listen), where its keys would be visible; "
                "give namespaces none of which begins with another and a colon",
            ),
        ],
    )
    def test_said(self, flags: dict[str, str], said: str) -> None:
        assert complaint(flags) == said

    def test_of_tenants(self, tmp_path: Path) -> None:
        path = toml(tmp_path, ACME + '[tenants."b.c"]\npassword = "x"\nnamespace = "acme:c"')
        assert complaint({}, {}, path) == (
            f"{path}:tenants.\"b.c\".namespace: 'acme:c' lies within 'acme' ({path}:tenants.acme.namespace), "
            "where its keys would be visible; give namespaces none of which begins with another and a colon"
        )

    @pytest.mark.parametrize(
        "listen", ["h:1?namespace=a", "h:1?namespace=ab", "h:1?namespace=", "h:1", "h:1?namespace=b:a"]
    )
    def test_equal_different_and_none_are_fine(self, listen: str) -> None:
        assert load({"namespace": "a", "listen": listen}, {})[0].namespace == "a"

    def test_tenants_may_share_and_one_may_see_all(self, tmp_path: Path) -> None:
        more = '[tenants.b]\npassword = "x"\nnamespace = "acme"\n[tenants.c]\npassword = "y"\nnamespace = ""'
        tenants = load({}, {}, toml(tmp_path, ACME + more))[0].tenants
        assert [tenant.namespace for tenant in tenants] == ["acme", "acme", ""]


class TestTenants:
    def test_are_read_from_the_file(self, tmp_path: Path) -> None:
        path = toml(tmp_path, 'max_clients = 5\n[tenants.b]\npassword_env = "B"\n' + ACME)
        settings, origins = load({}, {"B": "pw"}, path)
        assert [tenant.name for tenant in settings.tenants] == ["b", "acme"]
        assert settings.tenants[0].accepts(b"pw")
        assert origins["tenants"] == f"file {path}:tenants"
        assert "s3cr3t" not in repr(settings)

    def test_no_table_no_tenant(self, tmp_path: Path) -> None:
        settings, origins = load({}, {}, toml(tmp_path, 'auth = "none"'))
        assert settings.tenants == ()
        assert "tenants" not in origins

    @pytest.mark.parametrize("auth", ["", 'auth = "none"\n', 'auth = "tenants"\n'])
    def test_an_empty_table_stops_the_start(self, tmp_path: Path, auth: str) -> None:
        """Whoever writes it wants passwords; as if it were not there, everybody would be in."""
        path = toml(tmp_path, auth + "[tenants]")
        assert complaint({}, {}, path) == (
            f"{path}:tenants: no tenant stands in it; add tables such as [tenants.acme], or take it out of the "
            "file: then Pannier asks for no passwords itself"
        )

    def test_a_wrong_one_stops_the_start(self, tmp_path: Path) -> None:
        path = toml(tmp_path, ACME + "max_clients = 0")
        assert complaint({}, {}, path) == (
            f"{path}:tenants.acme.max_clients: '0' is out of range; give something from 1 to 1000000"
        )
        path = toml(tmp_path, "tenants = 5")
        assert complaint({}, {}, path) == (
            f"{path}:tenants: an int cannot stand here; give a table per tenant, such as [tenants.acme]"
        )

    def test_their_variables_are_not_unknown(self, tmp_path: Path) -> None:
        path = toml(
            tmp_path,
            '[tenants.a]\npassword_env = "PANNIER_A"\nupstream_password_env = "PANNIER_UP"\n',
        )
        env = {"PANNIER_A": "pw", "PANNIER_UP": "up"}
        assert load({}, env, path)[0].tenants[0].upstream_password == "up"
        assert complaint({}, env | {"PANNIER_B": "pw"}, path).startswith("PANNIER_B: no such variable; ")
        assert complaint({}, env).startswith("PANNIER_A: no such variable; ")

    def test_an_unknown_variable_is_named_also_beside_a_wrong_table(self, tmp_path: Path) -> None:
        for text in ("tenants = 5", "[tenants]\na = 5", "[tenants.a]\npassword_env = 5"):
            path = toml(tmp_path, text)
            assert complaint({}, {"PANNIER_B": ""}, path).startswith("PANNIER_B: no such variable; ")

    def test_are_asked_for_passwords_unless_auth_says_otherwise(self, tmp_path: Path) -> None:
        path = toml(tmp_path, ACME)
        assert load({}, {}, path)[0].auth_mode == "tenants"
        assert load({"auth": "tenants"}, {}, path)[0].auth_mode == "tenants"
        assert load({}, {})[0].auth_mode == "passthrough"
        assert load({"auth": "none"}, {})[0].auth_mode == "none"
        assert load({"auth": "passthrough"}, {})[0].auth_mode == "passthrough"
        assert Settings(tenants=(Tenant("a", (), "a"),)).auth_mode == "tenants"

    def test_auth_tenants_needs_some(self) -> None:
        assert complaint({"auth": "tenants"}) == (
            "--auth: 'tenants' is wrong without any; "
            "add tables such as [tenants.acme] to the file of --config, or change auth"
        )

    @pytest.mark.parametrize("word", ["none", "passthrough"])
    def test_another_auth_beside_them(self, word: str, tmp_path: Path) -> None:
        path = toml(tmp_path, f'auth = "{word}"\n' + ACME)
        said = f"{word!r} is wrong beside {path}:tenants; change auth to tenants, or take the tables out of the file"
        assert complaint({}, {}, path) == f"{path}:auth: {said}"
        assert complaint({}, {"PANNIER_AUTH": word}, path) == f"PANNIER_AUTH: {said}"
        assert complaint({"auth": word}, {}, path) == f"--auth: {said}"

    def test_another_namespace_beside_them(self, tmp_path: Path) -> None:
        path = toml(tmp_path, ACME)
        assert complaint({}, {"PANNIER_NAMESPACE": "x"}, path) == (
            f"PANNIER_NAMESPACE: 'x' is wrong beside {path}:tenants; the tenants' namespaces hold; leave it out"
        )
        for query in ("?namespace=x", "?namespace="):
            assert complaint({"listen": f"h:1,h:2{query}"}, {}, path) == (
                f"--listen: 'h:2{query}' is wrong beside {path}:tenants; "
                "the tenants' namespaces hold; leave its ?namespace= out"
            )
        assert load({"namespace": "", "listen": "h:1"}, {}, path)[0].tenants

    def test_their_memory_must_leave_some_for_the_others(self, tmp_path: Path) -> None:
        path = toml(tmp_path, ACME + 'max_memory = "48mb"\n[tenants.b]\npassword = "x"\nmax_memory = "16mb"')
        assert complaint({}, {}, path) == (
            f"{path}:tenants: the tenants' max_memory comes to 64mb; lower it or raise the setting "
            "max_memory (64mb), of which 1mb must be left for the others"
        )
        assert load({"max_memory": "65mb"}, {}, path)[0].tenants[1].max_memory == 16 << 20


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
        path = toml(tmp_path, "[tenant.acme]")
        assert complaint({}, {}, path) == f"{path}:tenant: no such option; did you mean tenants?"


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
            (
                "namespace_channels = 1",
                "'1' is neither true nor false; give one of true, false, yes, no, on, off",
            ),
            ("listen = [1]", "a list cannot stand here; give a text or a list of texts"),
            ("[listen]", "a dict cannot stand here; give a text or a list of texts"),
        ],
    )
    def test_a_value_of_the_wrong_type(self, line: str, said: str, tmp_path: Path) -> None:
        path = toml(tmp_path, line)
        name = line.strip("[]").partition(" ")[0]
        assert complaint({}, {}, path) == f"{path}:{name}: {said}"


class TestTheTokenOfTheAdministration:
    def test_in_one_of_three_places(self, tmp_path: Path) -> None:
        secret = tmp_path / "token"
        secret.write_text("s3cr3t\nmore\n")
        for flags, env in (
            ({"admin_token": "s3cr3t"}, {}),
            ({"admin_token_file": str(secret)}, {}),
            ({"admin_token_env": "ADMIN"}, {"ADMIN": "s3cr3t"}),
            ({"admin_token_env": "PANNIER_OWN"}, {"PANNIER_OWN": "s3cr3t"}),
            ({}, {"PANNIER_ADMIN_TOKEN": "s3cr3t"}),
        ):
            settings, _ = load(flags, env)
            assert settings.token == "s3cr3t"
            assert "s3cr3t" not in repr(settings)
        assert load({}, {})[0].token == ""

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"admin_token": "a b"}, "--admin-token: it has white space or a character beyond ASCII; give one without"),
            ({"admin_token": "***"}, "--admin-token: *** stands for a secret not shown; give the secret itself"),
            (
                {"admin_token": "x", "admin_token_env": "Y"},
                "--admin-token: wrong beside --admin-token-env; give the token in one place only",
            ),
            ({"admin_token_env": "NONE"}, "--admin-token-env: the variable is not set; give the name of one that is"),
            ({"admin_token_env": "s3cr3t!"}, "--admin-token-env: it is no name of a variable; give one such as ADMIN_TOKEN"),
            (
                {"admin_token_file": "/nonexistent"},
                "--admin-token-file: the file cannot be read (No such file or directory); give one that can",
            ),
            ({"admin_tls_key": "k"}, "--admin-tls-key: a key is of no use without admin_tls_cert; give the latter, too"),
            ({"admin_listen": "1?namespace=x"}, "--admin-listen: '1?namespace=x' has a namespace; nobody reads or writes keys there, leave it out"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_told_without_it(self, flags: dict[str, str], said: str) -> None:
        assert complaint(flags) == said

    def test_a_file_with_more_than_a_token(self, tmp_path: Path) -> None:
        secret = tmp_path / "token"
        secret.write_text("s3 cr3t\n")
        assert complaint({"admin_token_file": str(secret)}) == (
            "--admin-token-file: the token is none: it has white space or a character beyond ASCII; give one without"
        )

    def test_its_address(self) -> None:
        for text, listen in (("off", None), ("OFF", None), ("", None), ("1", Listen(port=1)), (":1", Listen(None, 1))):
            assert load({"admin_listen": text}, {})[0].admin_listen == listen
        assert load({}, {"PANNIER_ADMIN_LISTEN": ""})[0].admin_listen == Listen(port=9464)


class TestTLSForClients:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"listen": "1,2?tls=true"}, "--listen: '127.0.0.1:2?tls=true' has tls, which needs tls_cert; give that, too"),
            (
                {"tls_cert": "c"},
                "--tls-cert: no listener speaks TLS; have one of --listen end in ?tls=true, or leave the certificate out",
            ),
            ({"tls_key": "k"}, "--tls-key: a key is of no use without tls_cert; give the latter, too"),
            ({"tls_client_ca": "k"}, "--tls-client-ca: an authority for clients is of no use without tls_cert; give the latter, too"),
            ({"tls_min_version": "1.1"}, "--tls-min-version: '1.1' is not one of 1.2, 1.3; did you mean 1.3?"),
            ({"admin_listen": "1?tls=true"}, "--admin-listen: '1?tls=true' has tls; leave it out, admin_tls_cert is what makes it HTTPS"),
        ],
    )  # fmt: skip
    def test_halves_are_errors(self, flags: dict[str, str], said: str) -> None:
        assert complaint(flags) == said

    def test_a_version_may_be_a_number_in_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "p.toml"
        file.write_text('listen = "1?tls=true"\ntls_cert = "c"\ntls_min_version = 1.3\n')
        settings = load({}, {}, str(file))[0]
        assert (settings.tls_min_version, settings.listen) == ("1.3", (Listen(port=1, tls=True),))


def test_where_values_came_from_is_kept_with_them() -> None:
    settings, origins = load({"max_clients": "7"}, {})
    assert settings.origins == origins
    assert settings == load({}, {"PANNIER_MAX_CLIENTS": "7"})[0], "and does not tell settings apart"
