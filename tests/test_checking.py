"""`pannier check`: what is wrong is found without serving, and all of it at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from json import loads
from pathlib import Path

import pytest
import trustme

from tests.certificates import HOUR, Authority

ROOT = Path(__file__).parent.parent
SECRET = "s3cr3t"


def check(*arguments: str, before: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m proxy check` to its end, with no PANNIER_ variables but the given."""
    # Whoever it runs as need not be able to write down what coverage has seen.
    left_out = ("PANNIER_", "REDIS_URL", *(["COVERAGE_"] if before else []))
    clean = {name: text for name, text in os.environ.items() if not name.startswith(left_out)}
    command = [*before, sys.executable, "-m", "proxy", "check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | env, capture_output=True, text=True, timeout=30)


def problems(*arguments: str, **env: str) -> list[str]:
    """What is said to be wrong."""
    run = check("--json", *arguments, **env)
    report = loads(run.stdout)
    assert (run.returncode, run.stderr) == (0 if report["ok"] else 2, "")
    assert report["ok"] is not bool(report["problems"])
    return list(report["problems"])


def remarks(*arguments: str, json: bool, before: Sequence[str] = ()) -> list[str]:
    """What is remarkable, for programs or for people, if nothing is wrong."""
    run = check(*(["--json"] if json else []), *arguments, before=before)
    assert (run.returncode, run.stderr) == (0, "")
    if json:
        return list(loads(run.stdout)["remarks"])
    return [line.removeprefix("  remark       ") for line in run.stdout.splitlines() if line.startswith("  remark ")]


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "p.toml"
    path.write_text(text)
    return str(path)


class TestWhatIsRight:
    def test_is_listed_without_secrets(self, tmp_path: Path) -> None:
        (tmp_path / "rules.toml").write_text('[[rules]]\nmatch = "a:*"\n[[rules]]\nmatch = "b:*"\n')
        (tmp_path / "pw").write_text(f"{SECRET}\n")
        path = config(
            tmp_path,
            f'rules_file = "{tmp_path}/rules.toml"\nmax_memory = "32mb"\n'
            f'[tenants.acme]\npassword_file = "{tmp_path}/pw"\n[tenants.globex]\npassword = "{SECRET}"\n',
        )
        run = check(
            *("--config", path, "--listen", "127.0.0.1:0", "--listen", f"unix://{tmp_path}/p.sock?mode=660"),
            PANNIER_UPSTREAM=f"redis://u:{SECRET}@h", PANNIER_ADMIN_TOKEN=SECRET,
        )  # fmt: skip
        assert (run.returncode, run.stderr) == (0, "")
        assert run.stdout.splitlines() == [
            "ok",
            f"  file         {path}: rules_file, max_memory, [tenants]",
            "  environment  PANNIER_UPSTREAM, PANNIER_ADMIN_TOKEN",
            "  flags        --listen",
            "  upstream     redis://u:***@h:6379/0",
            "  listen       127.0.0.1:0",
            f"  listen       unix://{tmp_path}/p.sock?mode=660",
            "  admin        127.0.0.1:9464, http, with a token",
            f"  rules        2, those of {tmp_path}/rules.toml among them",
            "  tenants      acme, globex",
        ]
        assert not (tmp_path / "p.sock").exists()

    def test_takes_no_address(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            assert problems("--upstream", "redis://h", "--listen", f"127.0.0.1:{sock.getsockname()[1]}") == []

    def test_nothing_heavy_is_imported(self) -> None:
        code = (
            "import sys; from proxy import cli; status = cli.main(['check', '--upstream', 'redis://h']);"
            "heavy = {'asyncio', 'redis', 'uvloop', 'hiredis', 'prometheus_client', 'ssl', 'h11'};"
            "sys.exit(f'{heavy & set(sys.modules)}' if heavy & set(sys.modules) else status)"
        )
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")

    def test_what_will_be_warm_is_counted(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("# nothing\nHGETALL user:*\nother\n")
        run = check("--upstream", "redis://h", "--warm", "a:*", "--warm-file", str(tmp_path / "keys"))
        assert f"  warm         3 keys, patterns or reads, those of {tmp_path}/keys among them" in run.stdout

    def test_no_upstream_is_remarked(self) -> None:
        run = check("--json")
        assert run.returncode == 0
        assert loads(run.stdout)["remarks"][0].startswith("upstream: none is given")


class TestWhatIsRemarkable:
    @pytest.mark.parametrize("json", [True, False])
    def test_certificates_that_are_not_valid_for_long(self, tmp_path: Path, json: bool) -> None:
        authority = Authority(tmp_path)
        old, soon = authority.issue(ends=-HOUR), authority.issue(ends=HOUR)
        late = authority.issue(begins=HOUR)
        found = remarks(
            *("--upstream", f"rediss://h?ssl_certfile={old.cert}&ssl_keyfile={old.key}"),
            *("--listen", "127.0.0.1:6390?tls=true", "--tls-cert", str(soon.cert), "--tls-key", str(soon.key)),
            *("--admin-tls-cert", str(late.cert), "--admin-tls-key", str(late.key)),
            json=json,
        )  # fmt: skip
        assert [text.partition(" on ")[0].partition(" before ")[0] for text in found] == [
            f"upstream's ssl_certfile: the certificate in {old.cert} has expired",
            f"tls_cert: the certificate in {soon.cert} expires",
            f"admin_tls_cert: the certificate in {late.cert} is not valid",
        ]

    def test_certificates_that_are_valid_are_not(self, tmp_path: Path) -> None:
        good = Authority(tmp_path).issue()
        assert remarks("--upstream", f"rediss://h?ssl_certfile={good.cert}&ssl_keyfile={good.key}", json=True) == []

    @pytest.mark.skipif(os.getuid() != 0, reason="only root may run it as somebody else")
    def test_a_group_that_this_user_is_no_member_of(self) -> None:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        options = ("--upstream", "redis://h", "--listen")
        (found,) = remarks(*options, "unix:///tmp/p.sock?group=54321", json=True, before=command)
        assert found.startswith("--listen: whoever runs this check is no member of group 54321")
        assert remarks(*options, "unix:///tmp/p.sock?group=65534", json=True, before=command) == []
        assert remarks(*options, "unix:///tmp/p.sock?group=54321", json=True) == [], "root may give it to any"


class TestWhatIsWrong:
    def test_all_of_it_is_told_at_once(self, tmp_path: Path) -> None:
        path = config(
            tmp_path,
            'max_clients = "many"\nreconect_min = 3\n[[rules]]\nmatch = ""\n[[rules]]\nmatch = "a"\n'
            '[[rules]]\nmatch = "b"\nl1_ttl = "soon"\n[tenants.a]\n[tenants.b]\npassword = "x"\nnonsense = 1\n',
        )
        run = check("--config", path, "--listen", "unix:///nope/p.sock", PANNIER_CLIENT_TIMEOUTS="1", PANNIER_L1_TTL="x")
        assert (run.returncode, run.stdout) == (2, "")
        found = [line.removeprefix("pannier: ").partition(": ")[0] for line in run.stderr.splitlines()]
        assert found == [
            f"{path}:reconect_min",
            f"{path}:max_clients",
            "PANNIER_L1_TTL",
            "PANNIER_CLIENT_TIMEOUTS",
            f"{path}:tenants.a",
            f"{path}:tenants.b.nonsense",
            f"{path}:rules #1.match",
            f"{path}:rules #3.l1_ttl",
            "--listen",
        ]

    def test_what_settings_say_together(self) -> None:
        (found,) = problems("--upstream", "redis://h", "--reconnect-min", "5s", "--reconnect-max", "1s")
        assert found.startswith("--reconnect-min: '5s' is wrong beside the other limit")

    def test_one_fault_makes_no_others(self) -> None:
        """The default that stands in for what is wrong is not held against the rest."""
        (found,) = problems("--upstream", "redis://h", "--reconnect-min", "much", "--reconnect-max", "2ms")
        assert found.startswith("--reconnect-min: 'much' is not a duration")

    @pytest.mark.parametrize(
        "flags, says",
        [
            (("--config", "/nope.toml"), "--config: '/nope.toml' cannot be read"),
            (("--rules-file", "/nope.toml"), "--rules-file: '/nope.toml' cannot be read"),
            (("--warm-file", "/nope"), "warm_file: '/nope' cannot be read"),
            (("--warm", "LPUSH x"), "warm: 'LPUSH x' asks for 'LPUSH'"),
            (("--admin-token-file", "/nope"), "--admin-token-file: the file cannot be read"),
            (("--admin-tls-cert", "/nope"), "admin_tls_cert: '/nope' cannot be read (No such file or directory); name a PEM file"),
            (("--upstream", "rediss://h?ssl_ca_certs=/nope"), "upstream rediss://h:6379/0?ssl_ca_certs=/nope: ssl_ca_certs: '/nope' cannot be read"),
            (("--listen", "192.0.2.1:6380"), "--listen: no interface of this machine has the address '192.0.2.1'"),
            (("--listen", "no.such.name.invalid:6380"), "--listen: 'no.such.name.invalid' is no address"),
            (("--listen", "unix:///nope/p.sock"), "--listen: '/nope/p.sock' cannot be made: there is no directory /nope"),
            (("--listen", "unix:///etc/passwd"), "--listen: '/etc/passwd' is there and is no socket"),
            (("--listen", "unix:///tmp/p.sock?mode=660&group=nobody-has-this"), "--listen: cannot listen on unix:///tmp/p.sock?mode=660&group=nobody-has-this: there is no group nobody-has-this"),
            (("--listen", "127.0.0.1:6380,:6380"), "--listen: 127.0.0.1:6380 is in the way of *:6380 (--listen)"),
            (("--listen", "0.0.0.0:6380,127.0.0.1:6380"), "--listen: 0.0.0.0:6380 is in the way of 127.0.0.1:6380"),
            (("--listen", ":9464"), "--listen: *:9464 is in the way of 127.0.0.1:9464 (admin_listen)"),
            (("--listen", ":1", "--admin-listen", "192.0.2.1:2"), "--admin-listen: no interface"),
        ],
    )  # fmt: skip
    def test_is_told_with_its_place(self, flags: tuple[str, ...], says: str) -> None:
        upstream = () if "--upstream" in flags else ("--upstream", "redis://h")
        (found,) = problems(*upstream, *flags)
        assert found.startswith(says)

    @pytest.mark.parametrize("listen", ["0.0.0.0:6380,[::1]:6380", "127.0.0.1:6380,127.0.0.2:6380", "127.0.0.1:0,:0"])
    def test_addresses_beside_each_other(self, listen: str) -> None:
        assert problems("--upstream", "redis://h", "--listen", listen) == []

    def test_one_socket_by_two_paths(self, tmp_path: Path) -> None:
        (tmp_path / "l").symlink_to(tmp_path)
        for other in (f"{tmp_path}/l/p.sock", f"{tmp_path}//p.sock"):
            paths = f"unix://{tmp_path}/p.sock,unix://{other}"
            (found,) = problems("--upstream", "redis://h", "--listen", paths)
            assert found.startswith(f"--listen: unix://{tmp_path}/p.sock is in the way of unix://{other}")

    def test_keys_of_another_certificate(self, tmp_path: Path) -> None:
        ca = trustme.CA()
        one, other = ca.issue_cert("a"), ca.issue_cert("b")
        one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        one.private_key_pem.write_to_path(tmp_path / "key.pem")
        other.private_key_pem.write_to_path(tmp_path / "other.pem")
        admin = ("--upstream", "redis://h", "--admin-tls-cert", f"{tmp_path}/cert.pem", "--admin-tls-key")
        assert problems(*admin, f"{tmp_path}/key.pem") == []
        (found,) = problems(*admin, f"{tmp_path}/other.pem")
        assert found.startswith(f"admin_tls_key: the key in '{tmp_path}/other.pem' is not")
        tls = ("--upstream", "redis://h", "--listen", "127.0.0.1:6390?tls=true", "--tls-cert", f"{tmp_path}/cert.pem")
        assert problems(*tls, "--tls-key", f"{tmp_path}/key.pem") == []
        (found,) = problems(*tls, "--tls-key", f"{tmp_path}/other.pem")
        assert found.startswith(f"tls_key: the key in '{tmp_path}/other.pem' is not")

    def test_warm_keys_beside_tenants(self, tmp_path: Path) -> None:
        path = config(tmp_path, 'warm = ["a"]\n[tenants.a]\npassword = "x"\n')
        assert problems("--upstream", "redis://h", "--config", path)[0].startswith("warm, warm_file: wrong beside tenants")

    def test_no_secret_is_shown(self, tmp_path: Path) -> None:
        path = config(tmp_path, f'[tenants.a]\npassword = ["{SECRET}", 5]\nupstream_password_file = "{SECRET}"\n')
        run = check("--config", path, PANNIER_UPSTREAM=f"redis://u:{SECRET}@h:x")
        assert run.returncode == 2
        assert SECRET not in run.stderr + run.stdout


class TestCommandLine:
    @pytest.mark.parametrize(
        "arguments, says",
        [
            (("check", "--markdown"), "--markdown belongs to the command config"),
            (("check", "--wait", "1s"), "--wait belongs to the command preflight"),
            (("run", "--json"), "--json belongs to config, check and preflight"),
            (("preflight", "--wait", "soon"), "--wait: 'soon' is not a duration"),
            (("chekc",), "'chekc': no such command; give run, config, check, preflight, health, invalidate"),
        ],
    )
    def test_wrong_ones(self, arguments: tuple[str, ...], says: str) -> None:
        command = [sys.executable, "-m", "proxy", *arguments]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.startswith(f"pannier: {says}")
