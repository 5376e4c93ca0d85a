"""Starting and stopping: what is printed, which addresses are served, how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from proxy import __version__
from tests.harness import (
    ROOT,
    TIED,
    Process,
    free_port,
    pannier,
    read_exactly,
    redis_server,
    running,
    wait_until,
)


@contextlib.contextmanager
def launched(directory: Path, *options: str, admin: bool = False) -> Iterator[Process]:
    """A pannier started with just these options, once it has printed its banner.

    `admin`: with the default address of the administration, of which a machine has only one.
    """
    log = directory / f"pannier-{time.monotonic_ns()}.log"
    if not admin and "--admin-listen" not in options:
        options = (*options, "--admin-listen", "off")
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [*TIED, sys.executable, "-m", "proxy", *options], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    process = Process(popen, 0, log)
    try:
        wait_until(lambda: "Ctrl-C" in process.output or popen.poll() is not None, 20)
        if port := re.search(r"serves 127\.0\.0\.1:(\d+)", process.output):
            process.port = int(port[1])
        yield process
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()


def fails(directory: Path, *options: str) -> str:
    """What is printed by a pannier that cannot start."""
    with launched(directory, *options) as process:
        assert process.popen.wait(10) == 1
        return process.output


def ask(sock: socket.socket, request: bytes, reply: bytes) -> None:
    sock.sendall(request)
    assert read_exactly(sock, len(reply)) == reply


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as redis:
        yield f"redis://127.0.0.1:{redis.port}/0"


class TestTheBannerSaysWhatListensAndWhatIsBehind:
    def test_upstream(self, upstream: str, directory: Path) -> None:
        with launched(directory, "--upstream", upstream, "--listen", "0") as process:
            assert re.fullmatch(
                rf"pannier {re.escape(__version__)} serves 127\.0\.0\.1:{process.port}\n"
                rf"  upstream   redis-server \d+\.\d+\.\d+ at {re.escape(upstream)}\n"
                r"  memory     reads are kept in up to 64mb; Redis tells of changes \(tracking default\)\n"
                r"  stop       Ctrl-C\n",
                process.output,
            )
            with process.connect() as sock:
                ask(sock, b"PING\r\n", b"+PONG\r\n")

    def test_bundled(self, directory: Path) -> None:
        with launched(directory, "--listen", "0", "--upstream", "bundled") as process:
            lines = [line for line in process.output.splitlines() if line.startswith("  ")]
            assert re.fullmatch(r"  upstream   bundled redis-server \d+\.\d+\.\d+ at unix:///\S+", lines[0].split("?")[0])
            assert lines[1].startswith("  memory     reads are kept in up to 64mb")
            assert "keeps nothing" in lines[2]

    def test_unreachable(self, directory: Path) -> None:
        upstream = f"redis://user:hidden@127.0.0.1:{free_port()}/0"
        with launched(directory, "--upstream", upstream, "--listen", "0") as process:
            assert f"{upstream.replace('hidden', '***')}: not reachable yet, trying again" in process.output
            assert "hidden" not in process.output

    def test_locked(self, any_redis_binary: str, directory: Path) -> None:
        with (
            redis_server(any_redis_binary, directory, "--requirepass", "hidden") as redis,
            launched(directory, "--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", "0") as process,
        ):
            assert "(clients have to authenticate)\n" in process.output


class TestItListensWhereItIsTold:
    def test_several_addresses(self, upstream: str, directory: Path) -> None:
        path = directory / "pannier.sock"
        options = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", f"unix://{path}?mode=660"]
        with launched(directory, "--upstream", upstream, *options) as process:
            ports = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", process.output.partition(" serves ")[2].splitlines()[0])}
            assert len(ports) == 2
            for port in ports:
                with socket.create_connection(("127.0.0.1", port), 10) as sock:
                    ask(sock, b"PING\r\n", b"+PONG\r\n")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                ask(sock, b"PING\r\n", b"+PONG\r\n")
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert process.stop() == 0
            assert not path.exists()

    def test_ipv6(self, upstream: str, directory: Path) -> None:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        with launched(directory, "--upstream", upstream, "--listen", "[::1]:0") as process:
            port = re.search(r"\[::1\]:(\d+)", process.output)
            assert port
            with socket.create_connection(("::1", int(port[1])), 10) as sock:
                ask(sock, b"PING\r\n", b"+PONG\r\n")

    def test_stale_socket_file(self, upstream: str, directory: Path) -> None:
        path = directory / "pannier.sock"
        with launched(directory, "--upstream", upstream, "--listen", f"unix://{path}") as process:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            process.kill()
        assert path.exists()
        with launched(directory, "--upstream", upstream, "--listen", f"unix://{path}"), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            ask(sock, b"PING\r\n", b"+PONG\r\n")

    def test_socket_file_in_use(self, upstream: str, directory: Path) -> None:
        path = directory / "pannier.sock"
        with launched(directory, "--upstream", upstream, "--listen", f"unix://{path}"):
            output = fails(directory, "--upstream", upstream, "--listen", f"unix://{path}")
            assert output == f"pannier: unix://{path}: another process serves this socket already\n"
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                ask(sock, b"PING\r\n", b"+PONG\r\n")

    def test_another_file_in_the_way(self, upstream: str, directory: Path) -> None:
        path = directory / "precious"
        path.write_text("text")
        output = fails(directory, "--upstream", upstream, "--listen", f"unix://{path}")
        assert output.startswith(f"pannier: cannot listen on unix://{path}: ")
        assert output.count("\n") == 1
        assert path.read_text() == "text"

    def test_port_in_use(self, upstream: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            output = fails(directory, "--upstream", upstream, "--listen", f"127.0.0.1:{port}")
        assert output == (
            f"pannier: cannot listen on 127.0.0.1:{port}: it is in use already; stop the program that has it or "
            "choose another with --listen\n"
        )

    def test_second_port_in_use_with_the_bundled_server(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            output = fails(directory, "--upstream", "bundled", "--listen", "0", "--listen", f"127.0.0.1:{port}")
        assert output.count("\n") == 1


class TestASignalStopsItCleanly:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_with_clients_connected(self, upstream: str, directory: Path, number: int) -> None:
        options = ["--upstream", upstream, "--listen", "0", "--drain-timeout", "500ms"]
        with launched(directory, *options) as process, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(process.connect()) for _ in range(8)]
            idle, blocked, subscriber, transaction, half, monitor, other_database, watching = socks
            ask(idle, b"PING\r\n", b"+PONG\r\n")
            blocked.sendall(b"BLPOP never 0\r\n")
            ask(subscriber, b"SUBSCRIBE c\r\n", b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
            ask(transaction, b"MULTI\r\nPING\r\n", b"+OK\r\n+QUEUED\r\n")
            half.sendall(b"*2\r\n$3\r\nGE")
            ask(monitor, b"MONITOR\r\n", b"+OK\r\n")
            ask(other_database, b"SELECT 3\r\n", b"+OK\r\n")
            ask(watching, b"WATCH k\r\n", b"+OK\r\n")
            began = time.monotonic()
            process.signal(number)
            assert process.popen.wait(10) == 0
            assert time.monotonic() - began < 3
            for sock in socks:
                with contextlib.suppress(ConnectionError):
                    while sock.recv(1 << 16):
                        pass
            before, last = process.output.splitlines()[-2:]
            assert before.endswith(" INFO    stopping")
            assert last.endswith(" WARNING 4 clients are cut off: they were not done within a drain_timeout of 500ms")
            assert not re.search("ERROR|Traceback|reconnecting", process.output)

    def test_replies_under_way_are_delivered(self, upstream: str, directory: Path) -> None:
        with launched(directory, "--upstream", upstream, "--listen", "0") as process, process.connect() as sock:
            ask(sock, b"PING\r\n", b"+PONG\r\n")
            script = b"local n = 0 for i = 1, 20000000 do n = n + 1 end return n"
            sock.sendall(b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(script), script))
            with process.connect() as other:  # served after the script has been passed on
                ask(other, b"CLIENT SETNAME x\r\n", b"+OK\r\n")
            process.signal(signal.SIGTERM)
            assert read_exactly(sock, 11) == b":20000000\r\n"
            assert sock.recv(1) == b""
            assert process.popen.wait(10) == 0

    def test_a_second_signal_ends_it_at_once(self, upstream: str, directory: Path) -> None:
        with launched(directory, "--upstream", upstream, "--listen", "0") as process, process.connect() as sock:
            script = b"local t = redis.call('time')[1] + 3 while redis.call('time')[1] + 0 < t do end"
            sock.sendall(b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(script), script))
            with process.connect() as other:
                ask(other, b"CLIENT SETNAME x\r\n", b"+OK\r\n")
            process.signal(signal.SIGINT)
            wait_until(lambda: "stopping" in process.output)
            began = time.monotonic()
            process.signal(signal.SIGINT)
            assert process.popen.wait(10) == 128 + signal.SIGINT
            assert time.monotonic() - began < 0.5

    def test_while_redis_cannot_be_reached(self, directory: Path) -> None:
        with launched(directory, "--upstream", f"redis://127.0.0.1:{free_port()}", "--listen", "0") as process, process.connect() as sock:
            sock.sendall(b"PING\r\n")
            assert sock.recv(100).startswith(b"-ERR pannier: upstream ")
            began = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - began < 2


SIGNALLED = """
import os, runpy, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            for _ in range({times:d}):
                os.kill(os.getpid(), {number:d})

sys.meta_path.insert(0, Sender())
runpy.run_module("proxy", run_name="__main__")
"""
"""Runs pannier and sends it a signal in the moment in which it begins to import a module."""


def signalled(
    module: str, number: int, *arguments: str, times: int = 1, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A pannier that gets a signal at such a moment, and is to end."""
    code = SIGNALLED.format(module=module, number=number, times=times)
    command = [*before, sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)


@pytest.mark.parametrize("module", ["proxy.cli", "proxy.settings", "uvloop", "proxy.sidecar"])
class TestASignalBeforeItIsUp:
    def test_sighup_is_heeded_later(self, upstream: str, directory: Path, module: str) -> None:
        code = SIGNALLED.format(module=module, number=signal.SIGHUP, times=1)
        port = free_port()
        options = ["--upstream", upstream, "--listen", f"127.0.0.1:{port}", "--admin-listen", "off", "--broadcast", "off"]
        with running([sys.executable, "-c", code, *options], port, directory) as process:
            wait_until(lambda: "SIGHUP: rules and mode are as they were" in process.output)
            assert process.stop() == 0

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_others_end_it(self, upstream: str, module: str, number: int, status: int) -> None:
        done = signalled(module, number, "--upstream", upstream, "--listen", "127.0.0.1:0", "--admin-listen", "off")
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")

    def test_the_first_process_of_a_container_is_ended_as_well(self, upstream: str, module: str) -> None:
        """To that the system gives no signal that it does not heed."""
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--"]
        if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
            pytest.skip("no processes of their own may be made here")
        options = ["--upstream", upstream, "--listen", "127.0.0.1:0", "--admin-listen", "off"]
        done = signalled(module, signal.SIGTERM, *options, before=apart)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["proxy.settings", "proxy.workers"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_parent_of_workers_is_ended_before_it_is_up_as_well(module: str, number: int, status: int) -> None:
    done = signalled(module, number, "--workers", "2", "--listen", "127.0.0.1:0", "--admin-listen", "off")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize("command", [["config"], ["delete", "x", "--to", "redis://127.0.0.1:1"]], ids=["config", "delete"])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGHUP, -signal.SIGHUP), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_command_that_serves_nobody(command: list[str], number: int, status: int) -> None:
    done = signalled("proxy.settings", number, *command)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_second_signal_before_it_is_up_ends_it_at_once() -> None:
    done = signalled("proxy.cli", signal.SIGTERM, "--listen", "127.0.0.1:0", "--admin-listen", "off", times=2)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")


def test_a_start_that_waits_for_redis_is_ended_all_the_same(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = free_port()
        options = ["--upstream", f"redis://127.0.0.1:{silent.getsockname()[1]}", "--listen", f"127.0.0.1:{port}",
                   "--connect-timeout", "60s", "--upstream-timeout", "60s", "--admin-listen", "off", "--broadcast", "off"]  # fmt: skip
        log = directory / "pannier.log"
        with log.open("wb") as out:
            popen = subprocess.Popen([*TIED, sys.executable, "-m", "proxy", *options], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        process = Process(popen, port, log)

        def listens() -> bool:
            with contextlib.suppress(OSError), process.connect():
                return True
            return False

        try:
            wait_until(listens)
            assert process.stop() == 0
            assert "Traceback" not in process.output
        finally:
            process.kill()


class TestTheBundledServerEndsWithIt:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_no_redis_is_left_behind(self, directory: Path, number: int) -> None:
        with launched(directory, "--upstream", "bundled", "--listen", "0") as process:
            (redis,) = children(process.pid)
            with process.connect() as sock:
                ask(sock, b"SET k v\r\n", b"+OK\r\n")
            process.signal(number)
            assert process.popen.wait(10) == (0 if number == signal.SIGTERM else -number)
            wait_until(lambda: not alive(redis))


    def test_nor_by_a_second_signal(self, directory: Path) -> None:
        options = ["--upstream", "bundled", "--listen", "0", "--drain-timeout", "60s"]
        with launched(directory, *options) as process, process.connect() as sock:
            (redis,) = children(process.pid)
            home = re.search(r"unix://(\S+)/redis\.sock", process.output)
            assert home is not None and Path(home[1]).is_dir()
            ask(sock, b"MULTI\r\n", b"+OK\r\n")
            process.signal(signal.SIGTERM)
            wait_until(lambda: "stopping" in process.output)
            process.signal(signal.SIGTERM)
            assert process.popen.wait(10) == 128 + signal.SIGTERM
            assert not alive(redis) and not Path(home[1]).exists()


class TestNoSecretGetsIntoTheLog:
    def test_values_keys_and_passwords(self, any_redis_binary: str, directory: Path) -> None:
        with (
            redis_server(any_redis_binary, directory, "--requirepass", "secret-one") as redis,
            pannier(f"redis://:secret-one@127.0.0.1:{redis.port}", directory, "--log-level", "debug") as proxy,
        ):
            inputs = [
                b"SET secret-key secret-value\r\nGET secret-key\r\n",
                b"AUTH secret-two\r\nAUTH default secret-two\r\nHELLO 3 AUTH default secret-two\r\n",
                b"AUTH secret-one\r\nCONFIG SET masterauth secret-three\r\n",
                b"MULTI\r\nSET secret-key secret-value\r\n",
                b'ECHO "secret-value\r\n',
                b"*2\r\n$4\r\nECHO\r\n$secret-value\r\n",
                b"secret-value\r\n",
                b"POST /secret-value HTTP/1.1\r\n",
                b"SUBSCRIBE secret-channel\r\n",
                b"BLPOP secret-key2 0\r\n",
            ]  # fmt: skip
            with contextlib.ExitStack() as stack:
                for data in inputs:
                    sock = stack.enter_context(proxy.connect())
                    sock.sendall(data)
                with proxy.connect() as sock:
                    ask(sock, b"SET k secret-value\r\nECHO end\r\n", b"+OK\r\n$3\r\nend\r\n")
                redis.kill()
                wait_until(lambda: "reconnecting" in proxy.output)
            assert proxy.stop() == 0
            assert "protocol error" in proxy.output
            assert "secret" not in proxy.output
            assert os.fsencode("secret") not in Path(f"{proxy.log}").read_bytes()


class TestBundledServer:
    def test_pannier_ends_with_it_and_says_so(self, directory: Path) -> None:
        port = free_port()
        command = [sys.executable, "-m", "proxy", "run", "--listen", f"127.0.0.1:{port}", "--admin-listen", "off"]
        with running(command, port, directory) as process:
            with process.connect() as sock:
                sock.sendall(b"SHUTDOWN NOSAVE\r\n")
                assert process.popen.wait(10) == 1
            assert "pannier: the bundled redis-server has ended (status 0); its last words:" in process.output
