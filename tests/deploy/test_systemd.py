"""deploy/systemd: as systemd reads it, hardened, and true in what it says of Pannier."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cgroup import MB, exceeds
from tests.deploy.named import VARIABLES, drain_seconds, settings_of
from tests.harness import ROOT, SYSTEM, redis_server, reserved, running

FOLDER = ROOT / "deploy/systemd"
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on the PATH")


def unit(name: str) -> dict[str, list[str]]:
    """What each directive is set to, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (FOLDER / name).read_text(), re.M):
        found.setdefault(key, []).append(value)
    return found


SERVICE, SOCKET = unit("pannier.service"), unit("pannier.socket")
ENV = dict(pair.split("=", 1) for line in SERVICE["Environment"] for pair in line.split())


class TestTheService:
    def test_settings_in_the_file_count(self) -> None:
        """A variable outranks the file, so only where that is stands here."""
        assert ENV.keys() == {"PANNIER_CONFIG"}

    def test_variables_are_settings(self) -> None:
        assert ENV.keys() <= VARIABLES
        settings_of({name: text for name, text in ENV.items() if name != "PANNIER_CONFIG"})

    def test_tells_when_it_is_ready_and_is_tried_again_unless_it_is_set_up_wrongly(self) -> None:
        assert SERVICE["Type"] == ["notify"]
        assert (SERVICE["Restart"], SERVICE["RestartPreventExitStatus"]) == (["on-failure"], ["2"])
        assert SERVICE["ExecReload"] == ["/bin/kill -HUP $MAINPID"]

    def test_there_is_time_to_stop(self) -> None:
        assert int(SERVICE["TimeoutStopSec"][0]) >= drain_seconds({}) + 5

    def test_limits_fit(self) -> None:
        settings = settings_of({})
        limit = int(SERVICE["MemoryMax"][0].removesuffix("M")) * MB
        assert not exceeds(settings.max_memory, limit)
        assert limit == settings.max_memory + 128 * MB
        assert int(SERVICE["LimitNOFILE"][0]) >= 2 * settings.max_clients + 128

    def test_user_and_folders(self) -> None:
        assert SERVICE["User"] == SERVICE["Group"] == SOCKET["SocketUser"] == SOCKET["SocketGroup"] == ["pannier"]
        assert re.search(r"^u pannier - ", (FOLDER / "pannier.sysusers").read_text(), re.M)
        path = next(address for address in SOCKET["ListenStream"] if address.startswith("/"))
        assert Path(path).parent == Path("/run", SERVICE["RuntimeDirectory"][0])
        assert SERVICE["RuntimeDirectoryPreserve"] == ["yes"]  # or a stop would take the socket away


class TestASocketForAnotherGroup:
    """listen = "unix:///run/pannier/…?mode=660&group=app", as docs/tls.md has it."""

    @analyze
    def test_it_may_be_given_away(self) -> None:
        allowed = filtered(SERVICE["SystemCallFilter"])
        assert {"chown", "fchown", "lchown", "fchownat"} <= allowed
        assert not allowed & (calls("@privileged") - calls("@chown"))
        assert {"openat", "epoll_wait", "accept4"} <= allowed

    def test_other_groups_are_there(self) -> None:
        assert "PrivateUsers" not in SERVICE
        assert re.search(r"^#SupplementaryGroups=app$", (FOLDER / "pannier.service").read_text(), re.M)

    def test_without_any_capability(self) -> None:
        assert SERVICE["CapabilityBoundingSet"] == SERVICE["AmbientCapabilities"] == [""]


def calls(name: str) -> set[str]:
    """The system calls of a group of systemd's, those of groups within it included."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    return set().union(*(calls(word) for word in re.findall(r"^    ([@\w-]+)$", done.stdout, re.M)))


def filtered(lines: list[str]) -> set[str]:
    """What SystemCallFilter= leaves: the first line is what is allowed, each further one adds, or takes away."""
    allowed: set[str] = set()
    for line in lines:
        named = set().union(*map(calls, line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def test_the_socket_is_where_clients_look() -> None:
    assert [str(listen) for listen in settings_of({}).listen] == SOCKET["ListenStream"][:1]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program in them that is there."""
    for name in ("pannier.service", "pannier.socket"):
        text = (FOLDER / name).read_text()
        (tmp_path / name).write_text(text.replace("ExecStart=/opt/pannier/bin/pannier", "ExecStart=/bin/true"))
    return tmp_path


@analyze
@pytest.mark.parametrize("name", ["pannier.service", "pannier.socket"])
def test_systemd_understands_it(units: Path, name: str) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", units / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@analyze
def test_systemd_finds_little_exposed(units: Path) -> None:
    """On its scale from 0 to 10, at most 1.5, which it calls OK."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", units / "pannier.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges no files")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
def test_pannier_needs_no_memory_that_is_written_and_executed(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute, for real: the kernel refuses such memory, and Pannier serves."""
    assert SERVICE["MemoryDenyWriteExecute"] == ["yes"]
    code = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"  # PR_SET_MDWE
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    if subprocess.run([sys.executable, "-c", code, "/bin/true"]).returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    with redis_server(str(SYSTEM), tmp_path) as redis, reserved(None) as port:
        command = [sys.executable, "-c", code, sys.executable, "-m", "proxy", "--admin-listen", "0"]
        command += ["--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", str(port)]
        with running(command, port, tmp_path) as process, process.connect() as sock:
            sock.sendall(b"SET k v\r\nGET k\r\nGET k\r\n")
            assert sock.recv(5) == b"+OK\r\n"


@pytest.mark.skipif(SYSTEM is None, reason="no redis-server on the PATH")
@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate on the PATH")
def test_the_sockets_are_served_and_readiness_is_told(tmp_path: Path) -> None:
    """As systemd does it: with the addresses of pannier.socket, but for port and folder, and the service's variables."""
    env = {name: text for name, text in ENV.items() if name != "PANNIER_CONFIG"}
    address, path = SOCKET["ListenStream"]
    path = f"{tmp_path}/{Path(path).name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, redis_server(str(SYSTEM), tmp_path) as redis:
        told.bind(f"{tmp_path}/notify")
        told.settimeout(20)
        env |= {"NOTIFY_SOCKET": f"{tmp_path}/notify", "PANNIER_UPSTREAM": f"redis://127.0.0.1:{redis.port}"}
        with reserved(None) as port:
            command = ["systemd-socket-activate", f"--listen={address.replace('6380', str(port))}", f"--listen={path}"]
            command += [f"--setenv={name}={text}" for name, text in env.items()]
            command += [sys.executable, "-m", "proxy", "--admin-listen", "0"]
            with running(command, port, tmp_path) as process:
                assert b"READY=1" in told.recv(4096).split(b"\n")
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(path)
                    sock.sendall(b"PING\r\n")
                    assert sock.recv(7) == b"+PONG\r\n"
                assert process.stop() == 0
