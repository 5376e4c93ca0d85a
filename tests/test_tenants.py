"""Tenants: what their tables say, whom they let in, and that no password comes out again."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.kinds import toml_key
from proxy.resp.errors import SettingsError
from proxy.tenants import (
    KEYS,
    Tenant,
    check_nesting,
    check_shares,
    named_variables,
    read_tenants,
)

WRITTEN = "pannier.toml:tenants"
SECRET = "s3cr3t"
HASHED = "#" + hashlib.sha256(SECRET.encode()).hexdigest()
EXACTLY_ONE = "give exactly one of password, password_file, password_env"
EXACTLY_ONE_UPSTREAM = "give exactly one of upstream_password, upstream_password_file, upstream_password_env"


def read(env: dict[str, str] | None = None, /, **fields: Any) -> Tenant:
    """The tenant acme with these keys."""
    (tenant,) = read_tenants({"acme": fields}, WRITTEN, env or {})
    return tenant


def complaint(table: object, env: dict[str, str] | None = None) -> str:
    """The one line that wrong tables are answered with."""
    with pytest.raises(SettingsError) as caught:
        read_tenants(table, WRITTEN, env or {})
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text
    assert SECRET not in text
    return text


class TestATable:
    def test_with_a_password_only(self) -> None:
        tenant = read(password=SECRET)
        assert tenant == Tenant("acme", (hashlib.sha256(SECRET.encode()).digest(),), "acme")
        limits = (tenant.max_memory, tenant.max_clients, tenant.max_ops_per_second)
        assert limits == (None, None, None)
        assert (tenant.upstream_username, tenant.upstream_password) == (None, None)

    def test_with_everything(self) -> None:
        tenant = read(
            password=SECRET,
            namespace="customers:acme",
            max_memory="16mb",
            max_clients=100,
            max_ops_per_second="5000",
            upstream_username="up",
            upstream_password="pw",
        )
        assert tenant == Tenant("acme", tenant.passwords, "customers:acme", 16 << 20, 100, 5000, "up", "pw")

    def test_a_namespace_may_be_empty(self) -> None:
        assert read(password=SECRET, namespace="").namespace == ""

    def test_a_password_for_redis_needs_no_name(self) -> None:
        tenant = read(password=SECRET, upstream_password="pw")
        assert (tenant.upstream_username, tenant.upstream_password) == (None, "pw")

    def test_tables_keep_their_order(self) -> None:
        table = {name: {"password": name} for name in ("b", "a", "!~", "x" * 64)}
        assert [tenant.name for tenant in read_tenants(table, WRITTEN, {})] == list(table)

    def test_none(self) -> None:
        with pytest.raises(SettingsError, match=r"no tenant stands in it; add tables such as \[tenants.acme\], or take it out"):
            read_tenants({}, WRITTEN, {})


class TestPasswords:
    @pytest.mark.parametrize("password", [SECRET, HASHED, HASHED.upper(), ["other", SECRET], [HASHED]])
    def test_as_a_text_a_hash_or_a_list(self, password: object) -> None:
        tenant = read(password=password)
        assert tenant.accepts(SECRET.encode())
        assert not tenant.accepts(b"")
        assert not tenant.accepts(HASHED.encode())
        assert not tenant.accepts(SECRET.upper().encode())
        assert all(len(digest) == 32 for digest in tenant.passwords)

    def test_all_of_a_list_count(self) -> None:
        tenant = read(password=["new", HASHED])
        assert tenant.accepts(b"new")
        assert tenant.accepts(SECRET.encode())

    def test_none_is_accepted_without_any(self) -> None:
        assert not Tenant("a", (), "a").accepts(b"")

    @given(st.text(min_size=1).filter(lambda text: text != "***" and text[0] != "#"))
    def test_any_text_is_accepted_as_its_utf_8(self, password: str) -> None:
        assert read(password=password).accepts(password.encode())

    @pytest.mark.parametrize("text", [SECRET, SECRET + "\n", SECRET + "\r\n", SECRET + "\nmore\n", HASHED])
    def test_of_a_file_are_its_first_line(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_bytes(text.encode())
        tenant = read(password_file=str(path), upstream_password_file=str(path))
        assert tenant.accepts(SECRET.encode())
        assert tenant.upstream_password == text.split()[0]

    def test_of_a_variable(self) -> None:
        env = {"ACME": f" {SECRET}", "UP": "#up"}
        tenant = read(env, password_env="ACME", upstream_password_env="UP")
        assert tenant.accepts(f" {SECRET}".encode())
        assert tenant.upstream_password == "#up"

    def test_are_never_shown(self) -> None:
        tenant = read(password=SECRET, upstream_username="up", upstream_password=SECRET + "2")
        for text in (repr(tenant), str(tenant), f"{(tenant,)}"):
            assert SECRET not in text
            assert repr(tenant.passwords[0]) not in text
            assert tenant.passwords[0].hex() not in text


class TestAWrongTableNamesItselfAndWhatWouldBeRight:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({}, f": no password; {EXACTLY_ONE}"),
            ({"max_clients": 5}, f": no password; {EXACTLY_ONE}"),
            (
                {"password": SECRET, "password_env": "X"},
                f": password and password_env are given; {EXACTLY_ONE}",
            ),
            (
                {"password": SECRET, "password_file": "/x", "password_env": "X"},
                f": password and password_file and password_env are given; {EXACTLY_ONE}",
            ),
            ({"password": ""}, ".password: the password is empty; give one that is not"),
            ({"password": []}, ".password: the list is empty; give at least one password"),
            ({"password": [SECRET, ""]}, ".password[1]: the password is empty; give one that is not"),
            ({"password": [SECRET, 5]}, ".password[1]: an int cannot stand here; give a text"),
            ({"password": 5}, ".password: an int cannot stand here; give a text or a list of texts"),
            ({"password": True}, ".password: a bool cannot stand here; give a text or a list of texts"),
            (
                {"password": {"a": SECRET}},
                ".password: a dict cannot stand here; give a text or a list of texts",
            ),
            (
                {"password": "***"},
                ".password: *** stands for a password not shown; give the password itself",
            ),
            (
                {"password": "#" + SECRET},
                ".password: what begins with # is a SHA-256, but this has not 64 hexadecimal digits; "
                "give these, also for a password that begins with # itself",
            ),
            (
                {"password": ["ok", HASHED + "0"]},
                ".password[1]: what begins with # is a SHA-256, but this has not 64 hexadecimal digits; "
                "give these, also for a password that begins with # itself",
            ),
            (
                {"password_env": SECRET},
                ".password_env: the variable is not set; give the name of one that is",
            ),
            ({"password_env": "EMPTY"}, ".password_env: the password is empty; give one that is not"),
            ({"password_env": "LATIN"}, ".password_env: the password is not UTF-8; give one that is"),
            ({"password_env": ["A"]}, ".password_env: a list cannot stand here; give a text"),
            (
                {"password_file": f"/none/{SECRET}"},
                ".password_file: the file cannot be read (No such file or directory); give one that can",
            ),
            (
                {"password_file": f"{SECRET}\0"},
                ".password_file: the file holds no text; give one whose first line is it",
            ),
            ({"password_file": 5}, ".password_file: an int cannot stand here; give a text"),
            (
                {"password": SECRET, "upstream_password": SECRET, "upstream_password_env": "X"},
                f": upstream_password and upstream_password_env are given; {EXACTLY_ONE_UPSTREAM}",
            ),
            (
                {"password": SECRET, "upstream_username": "up"},
                f".upstream_username: 'up' has no password; {EXACTLY_ONE_UPSTREAM}",
            ),
            (
                {"password": SECRET, "upstream_username": "u p", "upstream_password": SECRET},
                ".upstream_username: 'u p' is no user's name; give one without white space",
            ),
            (
                {"password": SECRET, "upstream_username": "", "upstream_password": SECRET},
                ".upstream_username: '' is no user's name; give one without white space",
            ),
            (
                {"password": SECRET, "upstream_username": 5, "upstream_password": SECRET},
                ".upstream_username: an int cannot stand here; give a text",
            ),
            (
                {"password": SECRET, "upstream_password": [SECRET]},
                ".upstream_password: a list cannot stand here; give a text",
            ),
            (
                {"password": SECRET, "upstream_password": ""},
                ".upstream_password: the password is empty; give one that is not",
            ),
            (
                {"password": SECRET, "namespace": "acme:"},
                ".namespace: 'acme:' begins or ends with a colon; "
                "leave it out, Pannier puts one after the namespace",
            ),
            (
                {"password": SECRET, "namespace": ["a"]},
                ".namespace: a list cannot stand here; give one number or text",
            ),
            (
                {"password": SECRET, "max_memory": "1tb"},
                ".max_memory: '1tb' is not a size; give one such as 64mb, 1gb or plain bytes",
            ),
            (
                {"password": SECRET, "max_memory": 5},
                ".max_memory: '5' is out of range; give something from 64kb to 1024gb",
            ),
            (
                {"password": SECRET, "max_clients": True},
                ".max_clients: 'true' is not a whole number; give a number such as 10000",
            ),
            (
                {"password": SECRET, "max_ops_per_second": 0},
                ".max_ops_per_second: '0' is out of range; give something from 1 to 1000000000",
            ),
            ({"passwort": SECRET}, ".passwort: no such key; did you mean password?"),
            ({"zzz\n": SECRET}, f'."zzz\\n": no such key; known are {", ".join(KEYS)}'),
        ],
    )
    def test_said(self, fields: dict[str, object], said: str) -> None:
        env = {"EMPTY": "", "LATIN": "\udcff"}
        assert complaint({"acme": fields}, env) == f"{WRITTEN}.acme{said}"

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_bytes(b"\xff")
        assert complaint({"acme": {"password_file": str(path)}}) == (
            f"{WRITTEN}.acme.password_file: the file holds no text; give one whose first line is it"
        )

    @pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "x" * 65])
    def test_a_name(self, name: str) -> None:
        assert complaint({name: {"password": SECRET}}).endswith(
            " is no name for a tenant; give 1 to 64 printable ASCII characters without white space"
        )

    def test_a_name_that_is_no_namespace(self) -> None:
        assert complaint({"a:": {"password": SECRET}}).startswith(
            f"{WRITTEN}.\"a:\".namespace: 'a:' begins or"
        )
        assert read_tenants({"a:": {"password": SECRET, "namespace": "a"}}, WRITTEN, {})[0].name == "a:"

    def test_something_else_than_tables(self) -> None:
        assert complaint([]) == (
            f"{WRITTEN}: a list cannot stand here; give a table per tenant, such as [tenants.acme]"
        )
        assert complaint({"acme": SECRET}) == (
            f"{WRITTEN}.acme: a str cannot stand here; give a table, such as [tenants.acme]"
        )


class TestKeysOfTables:
    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
    def test_read_back(self, name: str) -> None:
        assert tomllib.loads(f"[tenants.{toml_key(name)}]") == {"tenants": {name: {}}}

    def test_are_quoted_only_if_they_must_be(self) -> None:
        assert [toml_key(name) for name in ("acme", "a-b_1", "a.b", 'a"')] == [
            "acme",
            "a-b_1",
            '"a.b"',
            '"a\\""',
        ]


class TestVariablesThatTablesName:
    def test_both_kinds(self) -> None:
        table = {"a": {"password_env": "A"}, "b": {"upstream_password_env": "B", "password_file": "C"}}
        assert named_variables(table) == {"A", "B"}

    @pytest.mark.parametrize("table", [None, 5, [], {"a": 5}, {"a": {"password_env": 5}}, {"a": {}}])
    def test_whatever_is_wrong_names_none(self, table: object) -> None:
        assert named_variables(table) == set()


class TestShares:
    def test_must_leave_the_least(self) -> None:
        tenants = [Tenant("a", (), "a", 60), Tenant("b", (), "b", 30), Tenant("c", (), "c")]
        check_shares(tenants, WRITTEN, 100, 10)
        with pytest.raises(SettingsError) as caught:
            check_shares(tenants, WRITTEN, 99, 10)
        assert str(caught.value) == (
            f"{WRITTEN}: the tenants' max_memory comes to 90; lower it or raise the setting "
            "max_memory (99), of which 10 must be left for the others"
        )


class TestNesting:
    @given(st.lists(st.sampled_from(["", "a", "a:b", "ab", "b", "b:a", "a:b:c", "a::c"]), max_size=4))
    def test_is_refused_exactly_if_a_key_lies_in_two_namespaces(self, spaces: list[str]) -> None:
        nested = any(x and x != y and f"{y}:key".startswith(f"{x}:") for x in spaces for y in spaces)
        try:
            check_nesting([(json.dumps(space), space) for space in spaces])
        except SettingsError:
            assert nested
        else:
            assert not nested
