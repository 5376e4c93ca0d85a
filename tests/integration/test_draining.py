"""Stopping in good order: not ready first, then no new clients, then who is here is seen off; and systemd's part."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.harness import ROOT, TIED, Process, free_port, pannier, read_exactly, redis_server, wait_until
from tests.integration.web import Web
from tests.integration.wire import Wire

LONG = "30s"
"""A drain_timeout that no test waits for."""


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


@contextlib.contextmanager
def draining(upstream: Process, directory: Path, *options: str) -> Iterator[Process]:
    """A pannier that takes its time to stop, and does so without a complaint."""
    if "--drain-timeout" not in options:
        options = (*options, "--drain-timeout", LONG)
    with pannier(url(upstream), directory, *options) as proxy:
        yield proxy
        assert "Traceback" not in proxy.output and "internal error" not in proxy.output, proxy.output


def ended(sock: socket.socket) -> bool:
    """Whether the other side has closed in good order; nothing else must have come."""
    return sock.recv(1) == b""


def stopping(proxy: Process) -> None:
    proxy.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in proxy.output)


class TestClients:
    def test_idle_ones_are_closed_at_once_and_it_ends(self, upstream: Process, directory: Path) -> None:
        with draining(upstream, directory) as proxy, contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(proxy.port, protocol)) for protocol in (2, 3) for _ in range(5)]
            for wire in wires:
                assert wire.line("EXISTS k") == b":0\r\n"
            wires[0].line("SELECT 1")
            wires[1].line("SUBSCRIBE c")
            wires[2].line("CLIENT NO-EVICT ON")
            began = time.monotonic()
            proxy.signal(signal.SIGTERM)
            assert all(ended(wire.sock) for wire in wires)
            assert proxy.popen.wait(10) == 0
            assert time.monotonic() - began < 5
            assert "cut off" not in proxy.output

    def test_who_keeps_the_connection_open_does_not_hold_it_up(self, upstream: Process, directory: Path) -> None:
        """As clients' pools do, which look at a connection only when they want it."""
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire:
            wire.line("PING")
            proxy.signal(signal.SIGTERM)
            assert proxy.popen.wait(10) == 0

    def test_a_command_under_way_is_answered_and_nothing_is_lost(self, upstream: Process, directory: Path) -> None:
        script = "local t = redis.call('time')[1] + 2 while redis.call('time')[1] + 0 < t do end return 'done'"
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire, Wire(proxy.port) as other:
            wire.send("EVAL", script, "0")
            wire.send("SET", "behind", "it")
            other.line("CLIENT SETNAME x")  # served after these have been passed on
            stopping(proxy)
            assert wire.read() == b"$4\r\ndone\r\n" and wire.read() == b"+OK\r\n"
            assert ended(wire.sock) and ended(other.sock)
            assert proxy.popen.wait(10) == 0

    @pytest.mark.parametrize("begin", ["MULTI", "WATCH"])
    def test_a_transaction_may_be_ended(self, upstream: Process, directory: Path, begin: str) -> None:
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire, Redis(port=upstream.port) as direct:
            assert wire.line(f"{begin} t" if begin == "WATCH" else begin) == b"+OK\r\n"
            stopping(proxy)
            if begin == "WATCH":
                assert wire.line("MULTI") == b"+OK\r\n"
            assert wire.line("INCR t") == b"+QUEUED\r\n"
            assert wire.line("EXEC").startswith(b"*1\r\n:")
            assert ended(wire.sock)
            assert proxy.popen.wait(10) == 0
            assert direct.delete("t") == 1

    def test_who_blocks_may_be_served(self, upstream: Process, directory: Path) -> None:
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire, Redis(port=upstream.port) as direct:
            wire.send("BLPOP", "list", "0")
            wait_until(lambda: direct.info("clients")["blocked_clients"] == 1)
            stopping(proxy)
            direct.rpush("list", "x")
            assert wire.read() == b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n"
            assert ended(wire.sock)
            assert proxy.popen.wait(10) == 0

    def test_half_a_command_may_be_completed(self, upstream: Process, directory: Path) -> None:
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire:
            wire.line("PING")
            wire.raw(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$5\r\nwh")
            time.sleep(0.1)
            stopping(proxy)
            wire.raw(b"ole\r\n")
            assert wire.read() == b"+OK\r\n" and ended(wire.sock)
            assert proxy.popen.wait(10) == 0

    def test_who_does_not_end_is_cut_off_and_that_is_told(self, upstream: Process, directory: Path) -> None:
        with draining(upstream, directory, "--drain-timeout", "500ms") as proxy, Wire(proxy.port) as one, Wire(proxy.port) as two:
            one.line("MULTI")
            two.send("BLPOP", "never", "0")
            with Redis(port=upstream.port) as direct:
                wait_until(lambda: direct.info("clients")["blocked_clients"] == 1)
            began = time.monotonic()
            proxy.signal(signal.SIGTERM)
            assert proxy.popen.wait(10) == 0
            assert 0.5 <= time.monotonic() - began < 5
            assert "WARNING 2 clients are cut off: they were not done within a drain_timeout of 500ms" in proxy.output

    def test_who_sends_without_pause_is_answered_for_what_was_taken(self, upstream: Process, directory: Path) -> None:
        """Each reply is whole and at its place, up to the end."""
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire:
            wire.line("SET n 0")
            got, sent = b"", 0
            with contextlib.suppress(ConnectionError):
                while True:
                    wire.raw(b"".join(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n" for _ in range(20)))
                    sent += 20
                    if sent == 2000:
                        proxy.signal(signal.SIGTERM)
                    piece = wire.sock.recv(1 << 16)
                    if not piece:
                        break
                    got += piece
            numbers = [int(line[1:]) for line in got.split(b"\r\n")[:-1]]
            assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 1900
            assert proxy.popen.wait(10) == 0
            with Redis(port=upstream.port) as direct:
                assert int(direct.get("n")) == len(numbers)  # type: ignore[arg-type]

    def test_a_second_signal_ends_it_now(self, upstream: Process, directory: Path) -> None:
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire:
            wire.line("MULTI")
            stopping(proxy)
            proxy.signal(signal.SIGTERM)
            assert proxy.popen.wait(5) == 128 + signal.SIGTERM


class TestReadiness:
    def test_it_is_gone_at_once_and_clients_are_served_during_the_delay(self, upstream: Process, directory: Path) -> None:
        admin = free_port()
        options = ["--drain-delay", "2s", "--admin-listen", f"127.0.0.1:{admin}"]
        with draining(upstream, directory, *options) as proxy, Wire(proxy.port) as wire:
            web = Web(admin)
            wire.line("PING")
            assert web.get("/readyz").status == 200
            began = time.monotonic()
            stopping(proxy)
            found = web.get("/readyz")
            assert found.status == 503 and found.json["draining"] is True
            assert web.get("/healthz").status == 200, "alive"
            with Wire(proxy.port) as late:
                assert late.line("SET late 1") == b"+OK\r\n"
                assert wire.line("GET late") == b"$1\r\n1\r\n"
                assert ended(late.sock) and time.monotonic() - began >= 1.9
            assert proxy.popen.wait(10) == 0
            assert "not ready any more; listening for 2s still" in proxy.output

    def test_then_nobody_is_accepted_and_the_address_is_free(self, upstream: Process, directory: Path) -> None:
        with draining(upstream, directory) as proxy, Wire(proxy.port) as wire:
            wire.line("MULTI")
            stopping(proxy)

            def refused() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", proxy.port), 5).close()
                except ConnectionRefusedError:
                    return True
                except ConnectionResetError:
                    return False  # it is being closed in this moment
                return False

            wait_until(refused)
            with socket.create_server(("127.0.0.1", proxy.port)):
                pass
            assert wire.line("EXEC") == b"*0\r\n"
            assert proxy.popen.wait(10) == 0

    def test_the_unix_socket_goes_first(self, upstream: Process, directory: Path) -> None:
        path = directory / "p.sock"
        with draining(upstream, directory, "--listen", f"unix://{path}") as proxy, Wire(proxy.port) as wire:
            wire.line("MULTI")
            stopping(proxy)
            wait_until(lambda: not path.exists())
            wire.line("DISCARD")
            assert proxy.popen.wait(10) == 0


# --- systemd


@contextlib.contextmanager
def activated(directory: Path, sockets: list[socket.socket], *options: str, **variables: str) -> Iterator[Process]:
    """A pannier started as systemd does, with sockets from file descriptor 3 on."""
    start = (
        "import fcntl, os, sys\n"
        f"given = {[sock.fileno() for sock in sockets]}\n"
        "kept = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in given]\n"
        "for place, number in enumerate(kept, 3): os.dup2(number, place, inheritable=True)\n"
        f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{len(sockets)}', LISTEN_FDNAMES='a')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'proxy', *sys.argv[1:]])\n"
    )
    log = directory / f"activated-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [*TIED, sys.executable, "-c", start, *options], stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, cwd=ROOT, pass_fds=[sock.fileno() for sock in sockets],
            env=os.environ | variables,
        )  # fmt: skip
    process = Process(popen, 0, log)
    try:
        wait_until(lambda: "Ctrl-C" in process.output or popen.poll() is not None, 20)
        yield process
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()


def served(process: Process) -> str:
    found = re.search(r"serves (.*)", process.output)
    assert found is not None, process.output
    return found[1]


class TestSocketActivation:
    def test_only_what_was_passed_is_served(self, upstream: Process, directory: Path) -> None:
        path = directory / "s.sock"
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(path))
            unix.listen()
            port = tcp.getsockname()[1]
            with activated(directory, [tcp, unix], "--upstream", url(upstream), "--admin-listen", "off") as process:
                assert served(process) == f"127.0.0.1:{port}, unix://{path}"
                with Wire(port) as wire:
                    assert wire.line("PING") == b"+PONG\r\n"
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(path))
                    sock.sendall(b"PING\r\n")
                    assert read_exactly(sock, 7) == b"+PONG\r\n"
                assert process.stop() == 0
                assert path.exists(), "it is systemd's"

    def test_one_at_an_address_of_the_settings_is_that_one(self, upstream: Process, directory: Path) -> None:
        """With what the settings say about it; others are served beside."""
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.create_server(("127.0.0.1", 0)) as admin:
            port, web = tcp.getsockname()[1], admin.getsockname()[1]
            options = ["--upstream", url(upstream), "--listen", f"127.0.0.1:{port}?namespace=ns", "--listen", "127.0.0.1:0"]
            with activated(directory, [tcp, admin], *options, "--admin-listen", f"127.0.0.1:{web}") as process:
                assert served(process).startswith(f"127.0.0.1:{port}, 127.0.0.1:")
                assert Web(web).get("/readyz").status == 200
                with Wire(port) as wire, Redis(port=upstream.port) as direct:
                    wire.line("SET activated 1")
                    assert direct.get("ns:activated") == b"1"
                assert process.stop() == 0

    @pytest.mark.parametrize("workers", [1, 2])
    def test_all_at_one_address_of_the_settings_are_served(self, upstream: Process, directory: Path, workers: int) -> None:
        """Two at one port, as the families of one are."""
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
            port = one.getsockname()[1]
            other = stack.enter_context(socket.create_server(("127.0.0.1", port), reuse_port=True))
            options = ["--upstream", url(upstream), "--listen", f"127.0.0.1:{port}", "--workers", str(workers)]
            with activated(directory, [one, other], *options, "--admin-listen", "off") as process:
                one.close()
                other.close()
                wires = [stack.enter_context(Wire(port)) for _ in range(40)]
                assert {wire.line("PING") for wire in wires} == {b"+PONG\r\n"}
                assert process.stop() == 0

    def test_what_is_meant_for_another_process_is_left_alone(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory) as proxy:
            assert "serves" in proxy.output
        environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2"}
        with activated(directory, [], "--upstream", url(upstream), "--listen", "0", "--admin-listen", "off", **environment) as process:
            assert served(process).startswith("127.0.0.1:")

    def test_what_is_no_listening_socket_is_an_error(self, upstream: Process, directory: Path) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong,
            activated(directory, [wrong], "--upstream", url(upstream)) as process,
        ):
            assert process.popen.wait(10) == 1
            assert process.output.splitlines()[-1] == (
                "pannier: LISTEN_FDS: file descriptor 3 is no listening stream socket; "
                "pass sockets such as those of ListenStream="
            )


class TestNotify:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_systemd_is_told_when_it_serves_and_when_it_stops(self, upstream: Process, directory: Path, abstract: bool) -> None:
        name = f"\0pannier-test-{os.getpid()}-{time.monotonic_ns()}" if abstract else str(directory / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(name)
            ear.settimeout(10)
            where = "@" + name[1:] if abstract else name
            options = ["--upstream", url(upstream), "--listen", "0", "--admin-listen", "off"]
            with activated(directory, [], *options, NOTIFY_SOCKET=where) as process:
                said = ear.recv(1000).decode().splitlines()
                assert said[0] == "READY=1" and said[1].startswith("STATUS=serving 127.0.0.1:")
                process.signal(signal.SIGTERM)
                assert ear.recv(1000) == b"STOPPING=1"
                assert process.popen.wait(10) == 0
