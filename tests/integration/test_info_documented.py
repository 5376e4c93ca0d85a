"""INFO's section `# Sidecar` and what docs/ and deploy/ say of it: every field is described, and none that there is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.harness import ROOT, pannier, redis_server
from tests.integration.wire import Wire, text

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEPLOY = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()]
METRICS = re.findall(r"^(?:\| |- )`([a-z_]+)[`{]", (ROOT / "docs/metrics.md").read_text("utf-8"), re.M)
OF_SOMEBODY = r"space_\w*|long_command_\d*"
"""Fields whose names hold that of a namespace or tenant, or a client's id."""
TENANTS = '[tenants.acme]\npassword = "one"\nmax_ops_per_second = 1000\n[tenants.all]\npassword = "two"\nnamespace = ""\n'


@pytest.fixture(scope="module")
def fields(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all fields there are, without `pannier_`."""
    directory = tmp_path_factory.mktemp("info")
    config = directory / "tenants.toml"
    config.write_text(TENANTS)
    found: set[str] = set()
    shown = trustme.CA().issue_cert("127.0.0.1")
    pem = directory / "cert.pem"
    shown.private_key_and_cert_chain_pem.write_to_path(str(pem))
    with redis_server(any_redis_binary, directory) as redis:
        upstream = f"redis://127.0.0.1:{redis.port}"
        for options, login in (
            ([], ""),
            (["--listen", "127.0.0.1:0?tls=true", "--tls-cert", str(pem), "--tls-key", str(pem)], ""),
            (["--admin-listen", "127.0.0.1:0", "--admin-tls-cert", str(pem)], ""),
            (["--mode", "observe", "--on-upstream-down", "stale"], ""),
            (["--verify", "0.1"], ""),
            (["--namespace", "a"], ""),
            (["--config", str(config)], "AUTH acme one"),
            (["--config", str(config)], "AUTH all two"),
        ):
            with pannier(upstream, directory, *options, bus=True) as proxy, Wire(proxy.port) as wire:
                if login:
                    assert wire.line(login) == b"+OK\r\n"
                found |= set(re.findall(r"^pannier_(\w+):", text(wire.line("INFO sidecar")), re.M))
    return {name for name in found if not re.fullmatch(OF_SOMEBODY, name)}


def described(page: str, fields: set[str]) -> Iterator[str]:
    """The fields that a page names: as `pannier_x`, or as `x` in a table of fields, where `_y` behind it is short for another
    that begins as it does."""
    tables = re.findall(r"^\| field.*\n(?:\|.*\n)*", page, re.M)
    yield from re.findall(r"\bpannier_(\w+)", page)
    for place in [*re.split(r"\n\n", page), *tables]:
        last = ""
        for marked, name in re.findall(r"`(pannier_)?(\w+)[^`]*`", place):
            if name.startswith("_"):
                parts = last.split("_")
                yield from {"_".join(parts[:n]) + name for n in range(1, len(parts))} & fields
            elif name in fields and (marked or place in tables):
                last = name
                yield name


def test_every_field_is_described(fields: set[str]) -> None:
    told = {name for page in PAGES if page.name != "metrics.md" for name in described(page.read_text("utf-8"), fields)}
    assert fields - told == set()


@pytest.mark.parametrize("path", [*PAGES, *DEPLOY], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_field_that_is_named_is_there(fields: set[str], path: Path) -> None:
    page = path.read_text("utf-8")
    names = set(re.findall(r"\bpannier_(\w+)", page))
    unknown = {name for name in names - fields if not re.fullmatch(OF_SOMEBODY, name)}
    assert {name for name in unknown if not any(metric.startswith(f"pannier_{name}") or f"pannier_{name}".startswith(metric) for metric in METRICS)} == set()
    assert set(re.findall(r"INFO(?:'s|:) `?pannier_(\w+)", page)) <= fields


def test_the_table_of_info_names_what_there_is(fields: set[str]) -> None:
    page = (ROOT / "docs/memory.md").read_text("utf-8")
    (table,) = re.findall(r"^\| field \(`pannier_…`\).*\n\|.*\n((?:\|.*\n)*)", page, re.M)
    for row in table.splitlines():
        names = re.findall(r"`(\w+)`", row.split("|")[1])
        assert {name for name in names if not name.startswith("_")} <= fields, row
        assert len(set(described(f"| field |\n{row}\n", fields))) >= len(names), row
