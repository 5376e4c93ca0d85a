"""`pannier health`: what it asks, what it says, and with which exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import SYSTEM, Process, free_port, give_back, pannier, redis_server, wait_until

pytestmark = pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")


def health(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PANNIER_")}
    command = [sys.executable, "-m", "proxy", "health", *arguments]
    return subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=30)


@pytest.fixture
def port() -> Iterator[int]:
    port = free_port()
    yield port
    give_back(port)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Process]:
    with redis_server(str(SYSTEM), tmp_path) as process:
        yield process


class TestAServerThatIsWell:
    @pytest.mark.parametrize("written", ["127.0.0.1:{}", ":{}", "0.0.0.0:{}", "{}"])
    def test_is_found_by_what_the_server_was_given(self, written: str, port: int, redis: Process, tmp_path: Path) -> None:
        address = written.format(port)
        with pannier(f"redis://127.0.0.1:{redis.port}", tmp_path, "--admin-listen", address):
            by_variable = health(PANNIER_ADMIN_LISTEN=address)
            assert (by_variable.returncode, by_variable.stderr) == (0, "")
            assert by_variable.stdout.endswith(f":{port} /healthz: 200\n")
            ready = health("--ready", "--admin-listen", address)
            assert (ready.returncode, ready.stderr) == (0, "")
            assert ready.stdout.endswith(f":{port} /readyz: 200\n")

    def test_at_a_unix_socket_that_the_file_names(self, redis: Process, tmp_path: Path) -> None:
        config = tmp_path / "p.toml"
        config.write_text(f'admin_listen = "unix://{tmp_path}/admin.sock?mode=660"\n')
        address = f"unix://{tmp_path}/admin.sock?mode=660"
        with pannier(f"redis://127.0.0.1:{redis.port}", tmp_path, "--admin-listen", address):
            assert health("--config", str(config)).returncode == 0
            assert health(PANNIER_CONFIG=str(config)).returncode == 0

    def test_while_the_file_is_broken(self, port: int, redis: Process, tmp_path: Path) -> None:
        """What decides is the variable; the file may be half written."""
        config = tmp_path / "p.toml"
        config.write_text("[tenants")
        address = f"127.0.0.1:{port}"
        with pannier(f"redis://127.0.0.1:{redis.port}", tmp_path, "--admin-listen", address):
            done = health(PANNIER_ADMIN_LISTEN=address, PANNIER_CONFIG=str(config))
            assert (done.returncode, done.stderr) == (0, "")

    def test_over_tls(self, port: int, redis: Process, tmp_path: Path) -> None:
        pem = tmp_path / "both.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=elsewhere"]
        subprocess.run([*command, "-keyout", pem, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
        pem.write_text((tmp_path / "cert.pem").read_text() + pem.read_text())
        address = f"127.0.0.1:{port}"
        url = f"redis://127.0.0.1:{redis.port}"
        with pannier(url, tmp_path, "--admin-listen", address, "--admin-tls-cert", str(pem)):
            done = health(PANNIER_ADMIN_LISTEN=address, PANNIER_ADMIN_TLS_CERT=str(pem))
            assert (done.returncode, done.stderr) == (0, "")


class TestAServerThatIsNot:
    def test_ready_is_told_with_the_reason_but_alive(self, port: int, redis: Process, tmp_path: Path) -> None:
        address = f"127.0.0.1:{port}"
        with pannier(f"redis://127.0.0.1:{redis.port}", tmp_path, "--admin-listen", address):
            redis.kill()
            wait_until(lambda: health("--ready", "--admin-listen", address).returncode == 1)
            done = health("--ready", "--admin-listen", address)
            assert done.stdout == ""
            assert done.stderr.startswith(f"pannier: {address} /readyz: 503 ")
            assert "redis" in done.stderr.lower()
            assert health("--admin-listen", address).returncode == 0

    def test_there(self, port: int) -> None:
        done = health("--admin-listen", f"127.0.0.1:{port}")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"pannier: 127.0.0.1:{port} /healthz: Connection refused\n"

    def test_answering_in_time(self, redis: Process, port: int, tmp_path: Path) -> None:
        address = f"127.0.0.1:{port}"
        with pannier(f"redis://127.0.0.1:{redis.port}", tmp_path, "--admin-listen", address) as process:
            process.signal(19)
            done = health("--admin-listen", address, "--timeout", "200ms")
            assert (done.returncode, done.stderr) == (1, f"pannier: {address} /healthz: timed out\n")

    def test_one_that_speaks_http(self, redis: Process) -> None:
        done = health("--admin-listen", f"127.0.0.1:{redis.port}")
        assert done.returncode == 1
        assert "does not speak HTTP" in done.stderr or "reset" in done.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("off", "admin_listen is off, so there is nobody to ask; give it an address"),
        ("0", "admin_listen has port 0, which the system chose; give it a port"),
    ],
)
def test_where_nobody_can_be_asked(address: str, said: str) -> None:
    done = health(PANNIER_ADMIN_LISTEN=address)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"pannier: {said}\n")


def test_a_wrong_address_is_told_as_at_the_start() -> None:
    done = health(PANNIER_ADMIN_LISTEN="nonsense:x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pannier: PANNIER_ADMIN_LISTEN: 'nonsense:x' ")
