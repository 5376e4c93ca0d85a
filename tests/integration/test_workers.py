"""Several workers at one address: real processes, their parent, and what they do together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis import Redis

from tests.certificates import Authority
from tests.harness import ROOT, TIED, Process, free_port, pannier, redis_server, wait_until
from tests.integration.test_draining import activated, served
from tests.integration.web import Web
from tests.integration.wire import Wire

KEEP = ["--admit-after", "1", "--canary-interval", "0"]
"""What is read once is kept, and nothing else is said to Redis."""


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


def offspring(pid: int) -> dict[int, str]:
    """The children of a process, and their command lines."""
    found = {}
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            with contextlib.suppress(OSError):
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def workers_of(pid: int) -> dict[int, int]:
    """The processes of workers that run their program already, and their numbers."""
    found = {}
    for child in offspring(pid):
        with contextlib.suppress(OSError):
            place = re.search(rb'_PANNIER_WORKER=.*?"number": (\d+)', Path(f"/proc/{child}/environ").read_bytes())
            if place is not None:
                found[child] = int(place[1])
    return found


@contextlib.contextmanager
def stopped_in_its_start(parent: int) -> Iterator[list[int]]:
    """Stop the next worker that a parent starts before it serves, until the end of the context."""
    before, found = set(workers_of(parent)), list[int]()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for pid in set(workers_of(parent)) - before:
                os.kill(pid, signal.SIGSTOP)
                found.append(pid)
                return
            time.sleep(0.001)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def private_directory(worker: int) -> Path:
    found = re.search(rb'"directory": "([^"]+)"', Path(f"/proc/{worker}/environ").read_bytes())
    assert found is not None
    return Path(found[1].decode())


def alive(pid: int) -> bool:
    try:
        return " Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


@dataclass
class Crew:
    """A pannier with several workers."""

    proxy: Process
    web: Web

    @property
    def port(self) -> int:
        return self.proxy.port

    def pid(self, number: int) -> int:
        """The process of a worker, which says it itself."""
        with self.wire(number) as wire:
            return int(field(wire, "pid"))

    @contextlib.contextmanager
    def wire(self, number: int, protocol: int = 2) -> Iterator[Wire]:
        """A connection to one of the workers."""
        for _ in range(200):
            with Wire(self.port, protocol) as wire:
                if field(wire, "worker") == str(number):
                    yield wire
                    return
        raise AssertionError(f"no connection of 200 came to worker {number}")

    def entries(self, number: int) -> int:
        return int(self.web.stats(f"/stats?worker={number}")["memory"]["entries"])


SLOW = (
    "local function now() local t = redis.call('time') return t[1] * 1e6 + t[2] end "
    "local till = now() + 80000 while now() < till do end"
)
"""A script that takes long."""


def named(reply: Any) -> dict[str, Any]:
    """A map, in RESP2 or RESP3."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def field(wire: Wire, name: str) -> str:
    found = re.search(rf"pannier_{name}:(.*?)\r\n", wire.ask("INFO", "sidecar").decode())
    assert found is not None
    return found[1]


def up(process: Process) -> bool:
    """Whether all workers serve: then comes the banner."""
    assert process.popen.poll() is None, process.output
    return "stop       Ctrl-C" in process.output


@contextlib.contextmanager
def crew(upstream: Process, directory: Path, *options: str, workers: int = 2, ends: bool = True) -> Iterator[Crew]:
    """So many workers, of which nothing is left in the end. `ends`: in good order."""
    admin = free_port()
    options = ("--workers", str(workers), "--admin-listen", f"127.0.0.1:{admin}", *options)
    with pannier(url(upstream), directory, *options) as proxy:
        wait_until(lambda: up(proxy), 30)
        children = set(offspring(proxy.pid))
        assert len(children) == workers
        private = private_directory(next(iter(children)))
        assert private.stat().st_mode & 0o777 == 0o700
        yield Crew(proxy, Web(admin))
        children |= set(offspring(proxy.pid))
        if ends:
            assert proxy.stop() == 0
        assert "Traceback" not in proxy.output and "internal error" not in proxy.output, proxy.output
    wait_until(lambda: not any(map(alive, children)))
    assert not private.exists()


@pytest.fixture(scope="module")
def both(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Two workers that no test does anything to."""
    with crew(upstream, tmp_path_factory.mktemp("crew"), *KEEP) as found:
        yield found


def fill(crew: Crew, *keys: str) -> None:
    """Have each worker keep what these keys hold."""
    for number in (1, 2):
        with crew.wire(number) as wire:
            for key in keys:
                wire.ask("SET", key, "v")
    for number in (1, 2):
        with crew.wire(number) as wire:

            def kept(wire: Wire = wire, number: int = number) -> bool:
                for key in keys:
                    wire.ask("GET", key)
                return crew.entries(number) >= len(keys)

            wait_until(kept)


class TestServing:
    def test_connections_are_spread_and_all_are_listed(self, both: Crew) -> None:
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(both.port)) for _ in range(40)]
            assert {field(wire, "worker") for wire in wires} == {"1", "2"}
            assert {field(wire, "workers") for wire in wires} == {"2"}
            ids = {wire.ask("CLIENT", "ID") for wire in wires}
            assert len(ids) == 40
            listed = wires[0].ask("CLIENT", "LIST").decode()
            assert {f":{number}\r\n".encode() for number in re.findall(r"\bid=(\d+)", listed)} >= ids

    def test_a_write_is_seen_by_the_other_worker(self, both: Crew) -> None:
        with both.wire(1) as one, both.wire(2) as two:
            assert one.line("SET seen 1") == b"+OK\r\n"
            assert two.line("GET seen") == two.line("GET seen") == b"$1\r\n1\r\n"
            one.line("SET seen 2")
            wait_until(lambda: two.line("GET seen") == b"$1\r\n2\r\n")

    def test_one_worker_is_no_other_process(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--workers", "1") as proxy, Wire(proxy.port) as wire:
            assert not offspring(proxy.pid)
            assert int(field(wire, "pid")) == proxy.pid
            assert field(wire, "workers") == "1"

    def test_a_port_of_the_systems_choice_and_a_bundled_redis(self, directory: Path) -> None:
        options = ["--workers", "2", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--upstream", "bundled"]
        with activated(directory, [], *options) as process:
            port = int(served(process).rpartition(":")[2])
            children = offspring(process.pid)
            assert sum("redis-server" in line for line in children.values()) == 1 and len(children) == 3
            with contextlib.ExitStack() as stack:
                wires = [stack.enter_context(Wire(port)) for _ in range(30)]
                assert {field(wire, "worker") for wire in wires} == {"1", "2"}
                wires[0].line("SET k v")
                assert {wire.line("GET k") for wire in wires} == {b"$1\r\nv\r\n"}
            assert process.stop() == 0
            wait_until(lambda: not any(map(alive, children)))

    def test_a_unix_socket_is_shared_and_removed(self, upstream: Process, directory: Path) -> None:
        path = directory / "p.sock"
        with crew(upstream, directory, "--listen", f"unix://{path}?mode=660"):
            assert path.stat().st_mode & 0o777 == 0o660
            seen = set()
            deadline = time.monotonic() + 20
            while seen != {"1", "2"}:
                assert time.monotonic() < deadline, seen
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(path))
                    sock.sendall(b"INFO sidecar\r\n")
                    found = re.search(rb"pannier_worker:(\d)", sock.recv(1 << 16))
                    assert found is not None
                    seen.add(found[1].decode())
        assert not path.exists()

    def test_the_unix_socket_of_a_successor_stays(self, upstream: Process, directory: Path) -> None:
        path = directory / "p.sock"
        options = ["--listen", f"unix://{path}"]
        with crew(upstream, directory, *options, "--drain-timeout", "30s", ends=False) as old, old.wire(1) as wire:
            assert wire.line("MULTI") == b"+OK\r\n"
            old.proxy.signal(signal.SIGTERM)
            wait_until(lambda: refused(old.port) and not answers(path))
            with pannier(url(upstream), directory, *options) as new:
                assert answers(path)
                assert wire.line("EXEC") == b"*0\r\n"
                assert old.proxy.popen.wait(10) == 0
                assert answers(path)
                assert new.stop() == 0 and not path.exists()

    def test_tls(self, upstream: Process, directory: Path) -> None:
        authority = Authority(directory)
        issued = authority.issue()
        port = free_port()
        options = ["--listen", f"127.0.0.1:{port}?tls=true", "--tls-cert", str(issued.cert), "--tls-key", str(issued.key)]
        with crew(upstream, directory, *options):
            seen = set()
            for _ in range(40):
                with socket.create_connection(("127.0.0.1", port), 10) as raw:
                    sock = authority.trusting(None).wrap_socket(raw, server_hostname="localhost")
                    sock.sendall(b"INFO sidecar\r\n")
                    found = re.search(rb"pannier_worker:(\d)", sock.recv(1 << 16))
                    assert found is not None
                    seen.add(found[1])
                    sock.close()
            assert seen == {b"1", b"2"}

    def test_sockets_of_systemd_are_shared(self, upstream: Process, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as tcp:
            port = tcp.getsockname()[1]
            options = ["--workers", "2", "--upstream", url(upstream), "--admin-listen", "off"]
            with activated(directory, [tcp], *options) as process:
                assert served(process) == f"127.0.0.1:{port}"
                with contextlib.ExitStack() as stack:
                    wires = [stack.enter_context(Wire(port)) for _ in range(60)]
                    assert {wire.line("PING") for wire in wires} == {b"+PONG\r\n"}
                assert process.stop() == 0

    def test_systemd_is_told_by_the_parent_alone(self, upstream: Process, directory: Path) -> None:
        name = str(directory / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(name)
            ear.settimeout(10)
            options = ["--workers", "2", "--upstream", url(upstream), "--listen", "0", "--admin-listen", "off"]
            with activated(directory, [], *options, NOTIFY_SOCKET=name) as process:
                said = ear.recv(1000).decode().splitlines()
                assert said[0] == "READY=1" and said[1].endswith("with 2 workers")
                process.signal(signal.SIGTERM)
                assert ear.recv(1000) == b"STOPPING=1"
                assert process.popen.wait(10) == 0
                ear.setblocking(False)
                with pytest.raises(BlockingIOError):
                    ear.recv(1000)


    def test_systemd_is_not_told_that_it_serves_once_it_stops(self, upstream: Process, directory: Path) -> None:
        name = str(directory / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(name)
            options = ["--workers", "2", "--upstream", url(upstream), "--listen", "0", "--admin-listen", "off"]
            log = directory / "p.log"
            with log.open("wb") as out:
                popen = subprocess.Popen(
                    [*TIED, sys.executable, "-m", "proxy", *options], cwd=ROOT, stdout=out, stderr=out,
                    env={**os.environ, "NOTIFY_SOCKET": name},
                )  # fmt: skip
            process = Process(popen, 0, log)
            try:
                wait_until(lambda: workers_of(process.pid))
                with stopped_in_its_start(process.pid) as second:
                    wait_until(lambda: second, 30)
                    process.signal(signal.SIGTERM)
                    ear.settimeout(10)
                    assert ear.recv(1000) == b"STOPPING=1"
                assert popen.wait(20) == 0
                ear.setblocking(False)
                with pytest.raises(BlockingIOError):
                    ear.recv(1000)
            finally:
                process.kill()


class TestEnds:
    def test_one_that_is_killed_is_started_again_and_who_connects_comes_to_the_others(
        self, upstream: Process, directory: Path
    ) -> None:
        with crew(upstream, directory) as found, found.wire(1) as wire:
            assert wire.line("MULTI") == b"+OK\r\n"
            killed = found.pid(2)
            with stopped_in_its_start(found.proxy.pid):
                os.kill(killed, signal.SIGKILL)
                wait_until(lambda: "worker 2 has ended" in found.proxy.output)
                with contextlib.ExitStack() as stack:
                    wires = [stack.enter_context(Wire(found.port)) for _ in range(30)]
                    assert {field(each, "worker") for each in wires} == {"1"}
            wait_until(lambda: found.web.get("/readyz").status == 200, 30)
            assert wire.line("EXEC") == b"*0\r\n", "the other one is not disturbed"
            assert "worker 2 has ended (SIGKILL); it is started again in 100ms" in found.proxy.output
            assert found.web.metrics()("worker_restarts_total", worker="2") == 1
            assert found.pid(2) != killed

    def test_it_is_waited_longer_each_time(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory) as found:
            for _ in range(3):
                killed = found.pid(2)
                os.kill(killed, signal.SIGKILL)
                wait_until(lambda: found.web.get("/readyz").status == 503)
                wait_until(lambda: found.web.get("/readyz").status == 200, 20)
            pauses = re.findall(r"it is started again in (\w+)", found.proxy.output)
            assert pauses == ["100ms", "200ms", "400ms"]

    @pytest.mark.parametrize("content", ['namespace = "elsewhere"\n', "[broken"], ids=["other settings", "a broken file"])
    def test_started_again_it_serves_what_the_others_serve(self, upstream: Process, directory: Path, content: str) -> None:
        """Whatever the file says by now: what takes effect at the next start does so for all of them."""
        file = directory / "p.toml"
        file.write_text("")
        with crew(upstream, directory, "--config", str(file)) as found, Redis(port=upstream.port) as direct:
            file.write_text(content)
            wait_until(lambda: "next start only: namespace" in found.proxy.output or "is not valid TOML" in found.proxy.output)
            killed = found.pid(2)
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: not alive(killed))
            wait_until(lambda: found.web.get("/readyz").status == 200, 30)
            with found.wire(2) as wire:
                assert wire.line("SET again 1") == b"+OK\r\n"
            assert direct.getdel("again") == b"1"

    def test_nobody_waits_for_one_that_cannot_be_started(self, upstream: Process, directory: Path) -> None:
        pem = directory / "p.pem"
        good = trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes()
        pem.write_bytes(good)
        options = ["--listen", "127.0.0.1:0?tls=true", "--tls-cert", str(pem)]
        with crew(upstream, directory, *options) as found:
            killed = found.pid(2)
            pem.write_text("no certificate")
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: "it is started again in 200ms" in found.proxy.output, 20)
            time.sleep(0.05)
            for _ in range(30):
                with Wire(found.port) as wire:
                    assert wire.line("PING") == b"+PONG\r\n" and field(wire, "worker") == "1"
            assert found.web.get("/readyz").status == 503
            pem.write_bytes(good)
            wait_until(lambda: found.web.get("/readyz").status == 200, 30)
            found.pid(2)

    def test_the_queue_of_the_last_one_is_kept(self, upstream: Process, directory: Path) -> None:
        """Nobody else could serve who waits there."""
        with crew(upstream, directory) as found:
            killed = [found.pid(1), found.pid(2)]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(alive, killed)))
            with Wire(found.port, timeout=30) as wire:
                assert wire.line("PING") == b"+PONG\r\n"
            wait_until(lambda: found.web.get("/readyz").status == 200, 30)

    def test_one_that_hangs_does_not_hold_up_the_end(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, "--drain-timeout", "100ms", ends=False) as found:
            hangs = found.pid(2)
            os.kill(hangs, signal.SIGSTOP)
            found.proxy.signal(signal.SIGTERM)
            assert found.proxy.popen.wait(30) == 0
            assert "workers that have not ended within 5.1s are killed: 2" in found.proxy.output
            assert not alive(hangs)

    def test_operators_who_leave_early_are_no_fault(self, both: Crew) -> None:
        for _ in range(50):
            with both.web.connect() as sock:
                sock.sendall(b"GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                sock.recv(10)
        both.web.get("/healthz")
        assert "Traceback" not in both.proxy.output and "internal error" not in both.proxy.output

    def test_a_wrong_setting_that_workers_find_ends_the_start_once(self, upstream: Process, directory: Path) -> None:
        (directory / "bad.pem").write_text("no certificate")
        options = ["--listen", "127.0.0.1:0?tls=true", "--tls-cert", str(directory / "bad.pem")]
        run = start("--workers", "2", "--upstream", url(upstream), *options, "--admin-listen", "off")
        assert run.returncode == 2
        assert run.stderr.count("pannier: ") == 1 and "bad.pem" in run.stderr

    def test_too_little_memory_is_said(self) -> None:
        run = start("--workers", "3", "--max-memory", "2mb")
        assert run.returncode == 2
        assert run.stderr == (
            "pannier: --workers: max_memory (2mb) is too little for 3 workers, each of which takes at least 1mb "
            "of it; give more memory, or fewer workers\n"
        )

    def test_an_address_that_another_pannier_has_is_in_use(self, both: Crew, upstream: Process) -> None:
        """Though both would share it out among their workers."""
        options = ["--listen", f"127.0.0.1:{both.port}", "--admin-listen", "off"]
        run = start("--workers", "2", "--upstream", url(upstream), *options)
        assert run.returncode == 1
        assert f"cannot listen on 127.0.0.1:{both.port}: it is in use already" in run.stderr


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A pannier that is to end by itself."""
    return subprocess.run(
        [*TIED, sys.executable, "-m", "proxy", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


class TestSignals:
    def test_clients_are_seen_off_by_all(self, upstream: Process, directory: Path) -> None:
        with (
            crew(upstream, directory, "--drain-timeout", "30s", ends=False) as found,
            found.wire(1) as one, found.wire(2) as two, Wire(found.port) as idle,
        ):  # fmt: skip
            assert one.line("MULTI") == two.line("MULTI") == b"+OK\r\n"
            idle.line("PING")
            found.proxy.signal(signal.SIGTERM)
            assert idle.rest() == b""
            wait_until(lambda: refused(found.port))
            assert one.line("EXEC") == two.line("EXEC") == b"*0\r\n"
            assert found.proxy.popen.wait(10) == 0

    def test_readiness_is_gone_at_once_and_clients_are_served_during_the_delay(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, "--drain-delay", "2s", ends=False) as found:
            assert found.web.get("/readyz").status == 200
            found.proxy.signal(signal.SIGTERM)
            wait_until(lambda: "stopping" in found.proxy.output)
            ready = found.web.get("/readyz")
            assert ready.status == 503 and ready.json["draining"] and "stopping" in ready.json["why"]
            with contextlib.ExitStack() as stack:
                wires = [stack.enter_context(Wire(found.port)) for _ in range(20)]
                assert {wire.line("PING") for wire in wires} == {b"+PONG\r\n"}
            assert found.proxy.popen.wait(10) == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_one_that_all_processes_get_is_no_second_one(self, upstream: Process, directory: Path, number: int) -> None:
        """Ctrl-C in a terminal reaches all; so does what a service manager sends to a service."""
        with (
            crew(upstream, directory, "--drain-timeout", "30s", ends=False) as found,
            found.wire(1) as one, found.wire(2) as two,
        ):  # fmt: skip
            assert one.line("MULTI") == two.line("MULTI") == b"+OK\r\n"
            os.killpg(found.proxy.pid, number)
            wait_until(lambda: refused(found.port))
            assert one.line("EXEC") == two.line("EXEC") == b"*0\r\n"
            assert found.proxy.popen.wait(10) == 0

    def test_a_second_one_ends_all_now(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, "--drain-timeout", "30s", ends=False) as found, found.wire(1) as wire:
            wire.line("MULTI")
            found.proxy.signal(signal.SIGTERM)
            wait_until(lambda: refused(found.port))
            found.proxy.signal(signal.SIGTERM)
            assert found.proxy.popen.wait(5) == 128 + signal.SIGTERM

    def test_workers_do_not_outlive_their_parent(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, "--drain-delay", "20s", ends=False) as found:
            children = list(offspring(found.proxy.pid))
            found.proxy.kill()
            wait_until(lambda: not any(map(alive, children)))


def answers(path: Path) -> bool:
    """Whether somebody serves a unix socket."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"PING\r\n")
        return sock.recv(7) == b"+PONG\r\n"
    return False


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it is being closed in this moment
    return False


class TestReload:
    def test_one_after_the_other_or_none(self, upstream: Process, directory: Path) -> None:
        file = directory / "p.toml"
        file.write_text("")
        with crew(upstream, directory, "--config", str(file)) as found:
            rule = '[[rules]]\nmatch = "a:*"\ncache = false\n'
            file.write_text(rule)
            found.proxy.signal(signal.SIGHUP)
            wait_until(lambda: "2 workers have read the settings again" in found.proxy.output)
            order = re.findall(r"\[(\d)\].* 1 rules in force", found.proxy.output)
            assert order == ["1", "2"]
            for number in (1, 2):
                with found.wire(number) as wire:
                    assert b"a:*" in wire.ask("SIDECAR", "RULES")

            file.write_text(rule + "[[rules]]\nwrong = 1\n")
            wait_until(lambda: "worker 1 does not take the settings; all others keep the old ones" in found.proxy.output)
            assert len(re.findall(r"\[(\d)\].* the old settings stay in force", found.proxy.output)) == 1
            assert found.web.metrics()("rules_broken") == 1
            assert found.web.stats()["rules"]["number"] == 1
            assert len(found.web.get("/config").json["rules"]) == 1

            file.write_text(rule + '[[rules]]\nmatch = "b:*"\nl1_ttl = 7\n')
            wait_until(lambda: found.proxy.output.count("2 workers have read the settings again") == 2)
            assert found.web.metrics()("rules_broken") == 0
            assert found.web.stats()["rules"]["number"] == 2
            assert len(found.web.get("/config").json["rules"]) == 2


TENANTS = '[tenants.stays]\npassword = "x"\n'
GONE = '[tenants.gone]\npassword = "x"\n'
RULE = '[[rules]]\nmatch = "a:*"\ncache = false\n'


class TestReloadWhileOneIsStarted:
    """Whatever the moment, all have the newest settings in the end."""

    @contextlib.contextmanager
    def one_is_started_again(self, found: Crew) -> Iterator[None]:
        """Worker 2, which is held up in its start until the end of the context."""
        killed = next(pid for pid, number in workers_of(found.proxy.pid).items() if number == 2)
        with stopped_in_its_start(found.proxy.pid) as held:
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: held)
            yield

    @pytest.mark.parametrize("how", ["SIGHUP", "a file has changed"])
    def test_rules_and_the_level_of_the_log(self, upstream: Process, directory: Path, how: str) -> None:
        file = directory / "p.toml"
        file.write_text("")
        with crew(upstream, directory, "--config", str(file)) as found:
            with self.one_is_started_again(found):
                file.write_text('log_level = "debug"\n' + RULE)
                if how == "SIGHUP":
                    found.proxy.signal(signal.SIGHUP)
                wait_until(lambda: re.search(r"\[1\].* 1 rules in force", found.proxy.output))
            wait_until(lambda: f"{how}: 2 workers have read the settings again" in found.proxy.output)
            for number in (1, 2):
                with found.wire(number) as wire:
                    assert b"a:*" in wire.ask("SIDECAR", "RULES")
                wait_until(lambda number=number: f"DEBUG   [{number}] client" in found.proxy.output)

    def test_a_tenant_that_is_gone_cannot_log_in(self, upstream: Process, directory: Path) -> None:
        file = directory / "p.toml"
        file.write_text(TENANTS + GONE)
        with crew(upstream, directory, "--config", str(file)) as found:
            with self.one_is_started_again(found):
                file.write_text(TENANTS)
                found.proxy.signal(signal.SIGHUP)
                wait_until(lambda: re.search(r"\[1\].* 1 tenants in force", found.proxy.output))
            wait_until(lambda: found.web.get("/readyz").status == 200)
            wait_until(lambda: "workers have read the settings again" in found.proxy.output)
            for name, reply in (("gone", b"-WRONGPASS"), ("stays", b"+OK")):
                with contextlib.ExitStack() as stack:
                    wires = [stack.enter_context(Wire(found.port)) for _ in range(40)]
                    assert {wire.ask("AUTH", name, "x").split()[0] for wire in wires} == {reply}

    def test_at_the_very_first_start(self, upstream: Process, directory: Path) -> None:
        file, port = directory / "p.toml", free_port()
        file.write_text("")
        options = ["--workers", "2", "--config", str(file), "--upstream", url(upstream), "--admin-listen", "off"]
        log = directory / "p.log"
        with log.open("wb") as out:
            command = [*TIED, sys.executable, "-m", "proxy", *options, "--listen", f"127.0.0.1:{port}"]
            popen = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        process = Process(popen, port, log)
        try:
            with stopped_in_its_start(process.pid) as held:
                wait_until(lambda: held)
                file.write_text(RULE)
                process.signal(signal.SIGHUP)
                wait_until(lambda: reached(process.pid))
            wait_until(lambda: up(process), 30)
            wait_until(lambda: "1 workers have read the settings again" in process.output or "2 workers" in process.output)
            wires = Crew(process, Web(0))
            for number in (1, 2):
                with wires.wire(number) as wire:
                    assert b"a:*" in wire.ask("SIDECAR", "RULES")
            assert process.stop() == 0
        finally:
            process.kill()


def reached(pid: int) -> bool:
    """Whether no SIGHUP is on its way to a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [int(word, 16) for word in re.findall(r"(?:Sig|Shd)Pnd:\s+(\w+)", status)]
    return not any(mask >> (signal.SIGHUP - 1) & 1 for mask in pending)


class TestAdministration:
    def test_sums_are_what_was_sent(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, *KEEP) as found:
            with contextlib.ExitStack() as stack:
                wires = [stack.enter_context(Wire(found.port)) for _ in range(30)]
                before = found.web.stats()["clients"]["commands"]  # the harness has asked whether it serves
                wires[0].line("SET sum 1")
                for wire in wires:
                    for _ in range(20):
                        assert wire.line("GET sum") == b"$1\r\n1\r\n"
                figures, stats = found.web.metrics(), found.web.stats()
                each = [found.web.stats(f"/stats?worker={number}") for number in (1, 2)]
                assert figures.total("commands_total") == stats["clients"]["commands"] == before + 601
                assert sum(one["clients"]["commands"] for one in each) == before + 601
                assert all(one["clients"]["commands"] > 0 for one in each)
                assert figures.total("hits_total") + figures.total("misses_total") == 600
                assert stats["hits"] + stats["misses"] == 600
                assert stats["hit_rate_percent"] == round(100 * stats["hits"] / 600, 2)
                assert figures.total("connected_clients") == stats["clients"]["connected"] == 30
                count = "latency_seconds_count"
                assert figures.total(count) == sum(
                    path["count"] for one in each for path in one["latency"].values()
                )
                assert figures("ready") == 1 and figures("workers") == 2
                assert figures("worker_up", worker="1") == figures("worker_up", worker="2") == 1
                assert stats["memory"]["max_bytes"] == 64 << 20 and each[0]["memory"]["max_bytes"] == 32 << 20
                hot = found.web.get("/hotkeys").json["by_reads"]
                assert [line["key"] for line in hot] == ["sum"]
                alone = [found.web.get(f"/hotkeys?worker={number}").json["by_reads"][0]["reads"] for number in (1, 2)]
                assert hot[0]["reads"] == sum(alone)
            assert found.web.get("/metrics?worker=1").body.count(b"pannier_commands_total{") == 1
            assert found.web.get("/stats?worker=3").status == 400
            assert found.web.get("/stats?nonsense=1").status == 400
            assert found.web.get("/").status == 200
            assert found.web.get("/config").json["max_memory"]["value"] == 64 << 20

    def test_one_that_does_not_answer_is_named_and_not_waited_for(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory) as found, found.wire(1) as wire:
            stuck = found.pid(2)
            os.kill(stuck, signal.SIGSTOP)
            try:
                began = time.monotonic()
                ready, health = found.web.get("/readyz"), found.web.get("/healthz")
                assert time.monotonic() - began < 3
                assert ready.status == 503 and ready.json["reasons"] == ["worker 2 does not answer"]
                assert health.status == 503 and health.json["alive"] is False
                said = wire.line("SIDECAR HEALTH")
                assert b"ready\r\n$2\r\nno" in said and b"worker 2: is being started, or does not answer" in said
            finally:
                os.kill(stuck, signal.SIGCONT)
            wait_until(lambda: found.web.get("/readyz").status == 200 and found.web.get("/healthz").status == 200)

    def test_changes_reach_all_and_a_new_one(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, *KEEP) as found:
            fill(found, "a:1", "a:2")
            assert found.web.post("/invalidate", {"keys": ["a:1"]}).json["invalidated"] == 2
            assert found.web.post("/invalidate", {"patterns": ["a:*"]}).json["invalidated"] == 2
            assert [found.entries(1), found.entries(2)] == [0, 0]
            assert found.web.post("/invalidate", {"nonsense": 1}).status == 400
            assert found.web.post("/drain").json["draining"] is True
            os.kill(found.pid(2), signal.SIGKILL)
            wait_until(lambda: found.web.metrics()("worker_restarts_total", worker="2") == 1)
            wait_until(lambda: found.web.get("/readyz").json["reasons"] == [
                f"worker {number}: draining: clients are to go elsewhere" for number in (1, 2)
            ])  # fmt: skip
            assert found.web.post("/drain", {"draining": False}).json["draining"] is False
            wait_until(lambda: found.web.get("/readyz").status == 200)

    def test_who_may_change_something_and_names_that_are_hidden(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, *KEEP, "--admin-token", "s3cr3t", "--key-privacy", "hashed") as found:
            assert found.web.post("/drain").status == 401
            assert found.web.post("/drain", Authorization="Bearer s3cr3t").status == 200
            fill(found, "hidden")
            for number in (1, 2):
                with found.wire(number) as wire:
                    for _ in range(20):
                        wire.line("GET hidden")
            lines = found.web.get("/hotkeys").json["by_reads"]
            assert len(lines) == 1 and re.fullmatch("[0-9a-f]{12}", lines[0]["key"]), "the same in both"


class TestSidecar:
    @pytest.mark.parametrize("how", [(), ("--tracking", "off", "--broadcast", "writes")])
    def test_memory_of_all_is_emptied(self, upstream: Process, directory: Path, how: tuple[str, ...]) -> None:
        """With Redis telling of changes and without."""
        with crew(upstream, directory, *KEEP, *how) as found, found.wire(1) as wire:
            if how:
                wait_until(lambda: found.web.stats()["bus"]["up"])
            fill(found, "x", "y:1", "y:2")
            assert wire.line("SIDECAR INVALIDATE x") == b":2\r\n"
            assert [found.entries(1), found.entries(2)] == [2, 2]
            assert wire.line("SIDECAR INVALIDATE MATCH y:1*") == b":2\r\n"
            assert [found.entries(1), found.entries(2)] == [1, 1]
            assert wire.line("SIDECAR FLUSH") == b"+OK\r\n"
            assert [found.entries(1), found.entries(2)] == [0, 0]

    def test_what_is_long_reaches_all(self, both: Crew) -> None:
        with both.wire(2) as wire:
            fill(both, "last")
            keys = [f"key:{n}:{'x' * 100}" for n in range(8000)]
            assert wire.ask("SIDECAR", "INVALIDATE", *keys, "last") == b":2\r\n"

    def test_a_namespace_is_left_alone_by_others(self, upstream: Process, directory: Path) -> None:
        port = free_port()
        with crew(upstream, directory, *KEEP, "--listen", f"127.0.0.1:{port}?namespace=ns") as found:
            fill(found, "outside")
            inner = Crew(Process(found.proxy.popen, port, found.proxy.log), found.web)
            for _ in range(30):
                with Wire(port) as wire:
                    wire.line("SET inside 1")
                    wire.line("GET inside")
                    wire.line("GET inside")
            assert found.web.stats()["namespaces"]["ns"]["entries"] >= 1
            with Wire(inner.port) as wire:
                assert wire.line("SIDECAR FLUSH") == b"+OK\r\n"
            assert found.web.stats()["namespaces"]["ns"]["entries"] == 0
            assert [found.entries(1), found.entries(2)] == [1, 1]

    def test_one_that_does_not_answer_is_an_error(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory) as found:
            stuck = found.pid(2)
            with found.wire(1) as wire:
                os.kill(stuck, signal.SIGSTOP)
                try:
                    assert wire.line("SIDECAR FLUSH").startswith(b"-ERR pannier: worker 2 has not answered in time")
                finally:
                    os.kill(stuck, signal.SIGCONT)
                wait_until(lambda: wire.line("SIDECAR FLUSH") == b"+OK\r\n")

    def test_figures_are_of_all(self, upstream: Process, directory: Path) -> None:
        with (
            crew(upstream, directory, *KEEP, "--slowlog-slower-than", "50ms") as found,
            found.wire(1) as one, found.wire(2) as two,
        ):  # fmt: skip
            fill(found, "big")
            for wire in (one, two):
                for _ in range(10):
                    wire.line("GET big")
            for protocol in (2, 3):
                for wire in (one, two):
                    assert wire.ask("EVAL", SLOW, 0) == b"$-1\r\n"
                with Redis(port=found.port, protocol=protocol) as client:
                    self.look(client, found)

    def look(self, client: Redis, found: Crew) -> None:
        def ask(*words: object) -> list[dict[str, Any]]:
            reply: Any = client.execute_command("SIDECAR", *words)
            return [named(line) for line in reply]

        stats = named(client.execute_command("SIDECAR", "STATS"))
        assert stats["tier_entries"] == 2 and stats["workers"] == b"1,2"
        assert stats["tier_hits"] == found.web.stats()["hits"] >= 20
        assert named(client.execute_command("SIDECAR", "HEALTH"))["ready"] == b"yes"
        (hot,) = ask("HOTKEYS")
        assert hot["key"] == b"big" and hot["reads"] >= 20
        (big,) = ask("BIGKEYS")
        assert big["hits"] >= 20
        assert ask("CHURN") == []
        assert {line["worker"] for line in ask("SLOWLOG", "GET") if line["command"] == b"EVAL"} == {1, 2}
        assert client.execute_command("SIDECAR", "SLOWLOG", "LEN") >= 2
        assert client.execute_command("SIDECAR", "SLOWLOG", "RESET") == b"OK"
        assert client.execute_command("SIDECAR", "SLOWLOG", "LEN") == 0
        assert named(client.execute_command("SIDECAR", "EXPLAIN", "big"))["worker"] in (1, 2)

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_all_are_warmed(self, both: Crew, upstream: Process, protocol: int) -> None:
        with Redis(port=upstream.port) as direct, Wire(both.port, protocol) as wire:
            direct.mset({f"warm:{protocol}:{n}": n for n in range(10)})
            before = [both.entries(1), both.entries(2)]
            reply = wire.ask("SIDECAR", "WARM", "MATCH", f"warm:{protocol}:*")
            assert reply.startswith(b"%6\r\n" if protocol == 3 else b"*12\r\n")
            assert b"warmed\r\n:10\r\n" in reply and b"of\r\n:10\r\n" in reply
            more = [both.entries(number) - before[number - 1] for number in (1, 2)]
            assert more[0] == more[1] >= 10, "once for each protocol that is spoken"

    def test_clients_of_others_can_be_killed_and_unblocked(self, both: Crew, upstream: Process) -> None:
        with both.wire(1) as one, both.wire(2) as two, both.wire(2) as blocked:
            number = two.ask("CLIENT", "ID")[1:-2]
            assert one.ask("CLIENT", "KILL", "ID", number) == b":1\r\n"
            assert one.ask("CLIENT", "KILL", "ID", number) == b":0\r\n"
            assert two.rest() == b""
            number = blocked.ask("CLIENT", "ID")[1:-2]
            blocked.send("BLPOP", "never", "0")
            with Redis(port=upstream.port) as direct:
                wait_until(lambda: direct.info("clients")["blocked_clients"] == 1)
            assert one.ask("CLIENT", "UNBLOCK", number) == b":1\r\n"
            assert blocked.read() == b"*-1\r\n"


class TestLog:
    def test_lines_say_which_worker_and_there_is_one_banner(self, upstream: Process, directory: Path) -> None:
        with crew(upstream, directory, "--log-level", "debug") as found:
            with found.wire(2):
                pass
            wait_until(lambda: re.search(r"DEBUG   \[2\] client ", found.proxy.output))
            assert found.proxy.output.count("stop       Ctrl-C") == 1
            assert "  workers    2\n" in found.proxy.output

    def test_as_json(self, upstream: Process, directory: Path) -> None:
        options = ["--workers", "2", "--upstream", url(upstream), "--listen", "127.0.0.1:0", "--admin-listen", "off"]
        log = directory / "json.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [*TIED, sys.executable, "-m", "proxy", *options, "--log-format", "json"], cwd=ROOT, stderr=out
            )
        try:
            process = Process(popen, 0, log)
            wait_until(lambda: process.output.count('"listening"') == 3, 30)
            assert process.stop() == 0
        finally:
            if popen.poll() is None:
                popen.kill()
            popen.wait()
        lines = [json.loads(line) for line in process.output.splitlines()]
        said = [line.get("worker") for line in lines if line["event"] == "listening"]
        assert said[0] == 1 and set(said) == {1, 2, None}
