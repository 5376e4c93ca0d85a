"""The command line, as a process and as a function."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import proxy
from proxy import __version__, cli
from proxy.resp.errors import StartupError
from proxy.settings import OPTIONS, Settings, load
from proxy.tenants import KEYS

ROOT = Path(__file__).parent.parent
SECRET = "s3cr3t"
TENANTS = f"""
[tenants.acme]
password = "{SECRET}"
[tenants.'b."c']
password = ["{SECRET}", "x"]
namespace = "é"
max_memory = "2mb"
max_clients = 7
max_ops_per_second = 8
upstream_username = "up"
upstream_password = "{SECRET}"
"""


def pannier(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m proxy` to its end, with no PANNIER_ variables but the given."""
    clean = {
        name: text for name, text in os.environ.items() if not name.startswith(("PANNIER_", "REDIS_URL"))
    }
    command = [sys.executable, "-m", "proxy", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | env, capture_output=True, text=True, timeout=30)


class TestConfig:
    def test_prints_toml_with_the_origins_as_comments(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text("reconnect_max = 3")
        run = pannier(
            *("config", "--max-clients", "5", "--listen", ":1", "--listen", "[::1]:2", "--config", str(path)),
            REDIS_URL="redis://u:pw@h",
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert tomllib.loads(run.stdout) == {
            **{option.name: option.kind.show(option.default) for option in OPTIONS},
            "upstream": "redis://u:***@h:6379/0",
            "listen": ["*:1", "[::1]:2"],
            "slowlog_max_len": 128,
            "max_clients": 5,
            "max_entries": 1_000_000,
            "breaker_failures": 3,
            "admit_after": 2,
            "refill_limit": 64,
            "verify_demote": 0,
            "reconnect_max": "3s",
            "namespace_channels": False,
            "warm": [],
            "workers": 1,
            "warm_limit": 100_000,
            "refresh_hottest": 0,
        }
        origins = {line.split()[0]: line.partition("  # ")[2].strip() for line in run.stdout.splitlines()}
        assert origins["upstream"] == "environment REDIS_URL"
        assert origins["listen"] == "flag --listen"
        assert origins["reconnect_max"] == f"file {path}:reconnect_max"
        assert origins["log_level"] == "default"

    def test_its_output_is_a_file_it_reads(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text(pannier("config").stdout)
        again = pannier("config", "--config", str(path), "--json")
        report = json.loads(again.stdout)
        assert (report.pop("rules"), report.pop("tenants")) == ([], {})
        assert {entry["origin"].partition(":")[0] for entry in report.values()} == {f"file {path}"}

    def test_tenants_are_tables_after_the_options(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text(TENANTS)
        run = pannier("config", "--config", str(path))
        assert (run.returncode, run.stderr) == (0, "")
        report = tomllib.loads(run.stdout)
        assert report["log_level"] == "info"
        assert report["tenants"] == {
            "acme": {"password": "***", "namespace": "acme"},
            'b."c': {
                "password": "***",
                "namespace": "é",
                "max_memory": "2mb",
                "max_clients": 7,
                "max_ops_per_second": 8,
                "upstream_username": "up",
                "upstream_password": "***",
            },
        }
        assert f"[tenants.acme]  # file {path}:tenants.acme" in run.stdout.splitlines()
        assert SECRET not in run.stdout

    def test_tenants_of_its_output_need_their_passwords_again(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text(TENANTS)
        path.write_text(pannier("config", "--config", str(path)).stdout)
        run = pannier("config", "--config", str(path))
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr == (
            f"pannier: {path}:tenants.acme.password: *** stands for a password not shown; "
            "give the password itself\n"
        )
        path.write_text(path.read_text().replace("***", "other"))
        assert pannier("config", "--config", str(path)).returncode == 0

    def test_tenants_as_json(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text(TENANTS)
        run = pannier("config", "--json", "--config", str(path))
        assert json.loads(run.stdout)["tenants"] == {
            "acme": {
                "password": "***",
                "namespace": "acme",
                "max_memory": None,
                "max_clients": None,
                "max_ops_per_second": None,
                "upstream_username": None,
                "upstream_password": None,
            },
            'b."c': {
                "password": "***",
                "namespace": "é",
                "max_memory": 2 << 20,
                "max_clients": 7,
                "max_ops_per_second": 8,
                "upstream_username": "up",
                "upstream_password": "***",
            },
        }
        assert SECRET not in run.stdout

    def test_json(self) -> None:
        run = pannier("config", "--json", "--upstream", "redis://:pw@h", PANNIER_CLIENT_TIMEOUT="2m")
        report = json.loads(run.stdout)
        assert list(report) == [*(option.name for option in OPTIONS), "rules", "tenants"]
        assert report["namespace_channels"] == {"value": False, "unit": None, "origin": "default"}
        assert report["upstream"] == {
            "value": "redis://:***@h:6379/0",
            "unit": None,
            "origin": "flag --upstream",
        }
        assert report["listen"] == {"value": ["127.0.0.1:6380"], "unit": None, "origin": "default"}
        assert report["client_timeout"] == {
            "value": 120.0,
            "unit": "s",
            "origin": "environment PANNIER_CLIENT_TIMEOUT",
        }
        assert report["query_buffer_limit"] == {"value": 1 << 30, "unit": "bytes", "origin": "default"}

    def test_imports_nothing_heavy(self) -> None:
        code = "import sys; from proxy.cli import main; main(['config']); print(*sys.modules)"
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert not {"asyncio", "uvloop", "redis", "hiredis", "ctypes"} & set(run.stdout.split())

    def test_the_reference_is_up_to_date(self) -> None:
        assert (ROOT / "docs" / "settings.md").read_text("utf-8") == cli.markdown(), (
            "run: python -m proxy config --markdown > docs/settings.md"
        )

    def test_the_reference_has_every_key_of_a_tenant_and_an_example_that_works(self, tmp_path: Path) -> None:
        text = cli.markdown()
        for key in KEYS:
            assert f"| `{key}` |" in text
        (tmp_path / "acme").write_text("pw\n")
        path = tmp_path / "p.toml"
        example = text.partition("```toml\n")[2].partition("```")[0]
        path.write_text(example.replace("/run/secrets", str(tmp_path)))
        settings, _ = load({}, {"PANNIER_OPERATOR_PASSWORD": "op"}, str(path))
        acme, globex, operator = settings.tenants
        assert acme.accepts(b"pw")
        assert globex.accepts(b"secret")
        assert (operator.accepts(b"op"), operator.namespace) == (True, "")

    def test_markdown(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["config", "--markdown"]) == 0
        assert capsys.readouterr().out == cli.markdown()


class TestHelp:
    def test_names_every_option(self) -> None:
        run = pannier("--help")
        assert run.returncode == 0
        for option in OPTIONS:
            assert option.flag in run.stdout

    def test_version(self) -> None:
        run = pannier("--version")
        assert (run.returncode, run.stdout) == (0, f"pannier {__version__}\n")


class TestAWrongCommandLineIsOneLineAndStatus2:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                "--max-clients many",
                "--max-clients: 'many' is not a whole number; give a number such as 10000",
            ),
            ("run --max-client 5", "--max-client: no such flag; did you mean --max-clients?"),
            ("--upstrem=redis://:pw@h", "--upstrem: no such flag; did you mean --upstream?"),
            ("--zzzzzz", "--zzzzzz: no such flag; see pannier --help for those there are"),
            ("--max-clients", "--max-clients: expected one argument"),
            ("--namespace-channels", "--namespace-channels: expected one argument"),
            ("--tenants x", "--tenants: no such flag; see pannier --help for those there are"),
            ("confg", "'confg': no such command; give run, config, check, preflight, health, invalidate, delete, sweep, warm, top or advise"),
            ("redis://:pw@h", "'redis://:***@h': no such command; give run, config, check, preflight, health, invalidate, delete, sweep, warm, top or advise"),
            ("run config", "'config': one command at most; give run, config, check or preflight"),
            ("--json", "--json belongs to config, check and preflight: pannier config --json"),
            (
                "--config /none",
                "--config: '/none' cannot be read (No such file or directory); give a TOML file",
            ),
        ],
    )
    def test_said(self, arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(arguments.split()) == 2
        assert capsys.readouterr() == ("", f"pannier: {said}\n")

    def test_as_a_process(self) -> None:
        run = pannier("--upstream", "redis://u:pw@h:x")
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr == (
            "pannier: --upstream: 'redis://u:***@h:x' has no valid port; give a number from 1 to 65535\n"
        )


class TestRun:
    @pytest.fixture
    def sidecar(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | int], list[Settings]]:
        """Put a sidecar in place that ends at once, as told; returns the settings it was given."""

        def install(outcome: BaseException | int) -> list[Settings]:
            seen: list[Settings] = []

            async def run(
                settings: Settings, again: Callable[[], Settings], config: str | None, place: object
            ) -> int:
                assert again() == settings and config is None and place is None
                seen.append(settings)
                assert type(asyncio.get_running_loop()).__module__ == "uvloop"
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome

            module = types.ModuleType("proxy.sidecar")
            module.run = run  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "proxy.sidecar", module)
            monkeypatch.setattr(proxy, "sidecar", module, raising=False)
            return seen

        return install

    def test_settings_in_status_out(self, sidecar: Callable[[BaseException | int], list[Settings]]) -> None:
        seen = sidecar(0)
        assert cli.main(["--max-clients", "7"]) == 0
        assert seen[0].max_clients == 7

    def test_a_failed_start_is_one_line_and_status_1(
        self, sidecar: Callable[[BaseException | int], list[Settings]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sidecar(StartupError("cannot listen"))
        assert cli.main(["run"]) == 1
        assert capsys.readouterr() == ("", "pannier: cannot listen\n")

    def test_ctrl_c_before_the_sidecar_is_up(
        self, sidecar: Callable[[BaseException | int], list[Settings]]
    ) -> None:
        sidecar(KeyboardInterrupt())
        assert cli.main([]) == 130
