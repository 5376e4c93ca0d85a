"""`pannier preflight` against real servers, each lacking something."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import trustme

from proxy import cli
from tests.harness import ROOT, Process, free_port, give_back, redis_server, wait_until
from tests.integration.wire import Wire

SECRET = "s3cr3t"
ALL = ("~*", "&*", "+@all")


@dataclass
class Trial:
    """What a preflight has said."""

    status: int
    steps: dict[str, dict[str, str]]
    errors: str

    @property
    def amiss(self) -> dict[str, str]:
        """Steps that did not pass."""
        return {name: step["result"] for name, step in self.steps.items() if step["result"] != "pass"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "proxy", "preflight", *arguments]


def environment(**env: str) -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith(("PANNIER_", "REDIS_URL"))} | env


def preflight(upstream: str, *arguments: str, **env: str) -> Trial:
    """Run it in this process; nothing secret is in what it says."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, environment(**env), clear=True),
    ):  # fmt: skip
        status = cli.main(["preflight", "--upstream", upstream, "--json", *arguments])
    return judged(status, out.getvalue(), err.getvalue())


def judged(status: int, out: str, err: str) -> Trial:
    assert out, err
    assert SECRET not in out + err
    report = json.loads(out)
    assert report["passed"] is (status == 0)
    steps = {step["step"]: step for step in report["steps"]}
    assert all(bool(step["remedy"]) is (step["result"] != "pass") for step in steps.values())
    return Trial(status, steps, err)


@pytest.fixture(scope="module")
def server(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def wire(server: Process) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire
        wire.line("ACL DELUSER u")


def user(wire: Wire, *rights: str) -> None:
    assert wire.ask("ACL", "SETUSER", "u", "reset", "on", f">{SECRET}", *rights) == b"+OK\r\n"


def as_user(server: Process, database: int = 0) -> str:
    return f"redis://u:{SECRET}@127.0.0.1:{server.port}/{database}"


class TestAGoodServer:
    def test_passes_on_each_version(self, redis: Process) -> None:
        trial = preflight(f"redis://127.0.0.1:{redis.port}/3")
        assert (trial.status, trial.amiss, trial.errors) == (0, {}, "")
        assert list(trial.steps) == [
            "connection", "login", "database", "protocol", "server", "maxclients", "latency", "COMMAND", "rights",
            "tracking", "invalidation", "bus",
        ]  # fmt: skip
        assert trial.steps["tracking"]["found"] == "default: granted by the server"
        assert trial.steps["rights"]["found"] == "GET, PTTL, SCAN, UNLINK, WATCH, UNWATCH"

    def test_nothing_is_left_behind(self, server: Process, wire: Wire) -> None:
        before = wire.line("INFO keyspace")
        with Wire(server.port, 3) as witness:
            witness.line("CLIENT TRACKING ON BCAST")
            assert preflight(f"redis://127.0.0.1:{server.port}").status == 0
            wait_until(lambda: b"pannier" not in wire.line("CLIENT LIST"))
            # It was written indeed.
            assert b"pannier:canary:" in witness.read()
        assert wire.line("INFO keyspace") == before

    def test_is_a_line_for_each_step(self, server: Process) -> None:
        arguments = command("--upstream", f"redis://127.0.0.1:{server.port}", "--broadcast", "off")
        run = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True)
        lines = run.stdout.splitlines()
        assert (run.returncode, run.stderr) == (0, "")
        assert lines[0].startswith(f"pass  connection    127.0.0.1:{server.port} in ")
        assert lines[-1] == "passed: 11 pass, 0 warn, 0 fail"
        assert "pass  bus           switched off by the settings" in lines

    def test_other_panniers_forget_nothing(self, redis: Process, proxy: Process) -> None:
        """A message names nothing."""
        with proxy.connect() as sock:
            sock.sendall(b"SET k 1\r\n")
            assert sock.recv(99) == b"+OK\r\n"
            for _ in range(3):
                sock.sendall(b"GET k\r\n")
                assert sock.recv(99) == b"$1\r\n1\r\n"
            before = stats(sock)
            assert preflight(f"redis://127.0.0.1:{redis.port}").status == 0
            wait_until(lambda: stats(sock)[b"bus_received"] > before[b"bus_received"])
            after = stats(sock)
            names = (b"bus_malformed", b"tier_entries")
            assert [after[name] for name in names] == [before[name] for name in names]
            assert before[b"tier_entries"] != b"0"

    def test_bundled(self) -> None:
        run = subprocess.run(command("--json"), cwd=ROOT, env=environment(), capture_output=True, text=True)
        steps = {step["step"]: step["result"] for step in json.loads(run.stdout)["steps"]}
        assert (run.returncode, steps["upstream"], steps["bus"]) == (0, "warn", "pass")

    def test_a_unix_socket(self, any_redis_binary: str, directory: Path) -> None:
        path = directory / "r.sock"
        with redis_server(any_redis_binary, directory, "--unixsocket", str(path)):
            trial = preflight(f"unix://{path}")
        assert (trial.status, trial.amiss) == (0, {})
        assert trial.steps["connection"]["found"].startswith(f"unix socket {path} in ")


class StandingStill:
    """A relay to a server that passes nothing on any more, but stays connected, once a word has come."""

    def __init__(self, server: Process, word: bytes) -> None:
        self._server = server
        self._word = word
        self._still = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> StandingStill:
        self._threads[0].start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in self._socks:
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], self._server.connect()
                self._socks += [near, far]
                for pair in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._relay, args=pair))
                    self._threads[-1].start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._word in data:
                    self._still.set()
                if not self._still.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def stats(sock: socket.socket) -> dict[bytes, bytes]:
    sock.sendall(b"INFO sidecar\r\n")
    data = b""
    while not data.endswith(b"\r\n\r\n") and b"warm_seconds" not in data:
        data += sock.recv(65536)
    pairs = [line.partition(b":") for line in data.split(b"\r\n")]
    return {name.removeprefix(b"pannier_"): value for name, _, value in pairs}


class TestNoWayThere:
    def test_nobody_listens(self) -> None:
        port = free_port()
        trial = preflight(f"redis://127.0.0.1:{port}")
        give_back(port)
        assert (trial.status, trial.amiss) == (1, {"connection": "fail"})
        assert trial.steps["connection"]["found"] == f"127.0.0.1:{port}: Connection refused"

    def test_an_unknown_name(self) -> None:
        assert preflight("redis://no.such.name.invalid").amiss == {"name": "fail"}

    def test_no_socket(self, directory: Path) -> None:
        trial = preflight(f"unix://{directory}/none.sock")
        assert trial.amiss == {"connection": "fail"}
        assert "nobody has made it" in trial.steps["connection"]["remedy"]

    def test_a_hung_server_is_given_up_in_time(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis:
            redis.signal(signal.SIGSTOP)
            began = time.monotonic()
            trial = preflight(f"redis://127.0.0.1:{redis.port}", "--connect-timeout", "500ms")
            taken = time.monotonic() - began
        assert trial.amiss == {"login": "fail"}
        assert trial.steps["login"]["found"] == "did not answer within 0.5 s"
        assert taken < 25

    @pytest.mark.parametrize(
        "word, amiss",
        [
            (b"SELECT", {"connection"}),
            (b"INFO", {"connection"}),
            (b"COMMAND", {"connection"}),
            (b"PTTL", {"connection"}),
            (b"TRACKING", {"tracking", "connection"}),
            (b"EXEC", {"invalidation", "connection"}),
            (b"SUBSCRIBE", {"connection"}),
            (b"PUBLISH", {"connection"}),
        ],
    )
    def test_a_server_that_hangs_later(self, server: Process, word: bytes, amiss: set[str]) -> None:
        with StandingStill(server, word) as relay:
            began = time.monotonic()
            limits = ("--connect-timeout", "300ms", "--coherence-timeout", "500ms")
            run = subprocess.run(
                command("--upstream", f"redis://127.0.0.1:{relay.port}", "--json", *limits), cwd=ROOT,
                env=environment(), capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            trial = judged(run.returncode, run.stdout, run.stderr)
            assert time.monotonic() - began < 25
        assert (trial.status, set(trial.amiss)) == (1, amiss)

    def test_something_else_than_redis(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer() -> None:
                for _ in range(2):
                    sock, _ = listener.accept()
                    with sock:
                        if sock.recv(99):
                            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            trial = preflight(f"redis://127.0.0.1:{listener.getsockname()[1]}")
            thread.join()
        assert trial.amiss == {"login": "fail"}
        assert "does not speak RESP" in trial.steps["login"]["found"]

    def test_wait_until_it_is_there(self, any_redis_binary: str, directory: Path) -> None:
        port = free_port()
        arguments = command("--upstream", f"redis://127.0.0.1:{port}", "--json", "--wait", "60s")
        with subprocess.Popen(
            arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as popen:
            assert popen.stderr is not None and popen.stdout is not None
            assert "not yet, trying for" in popen.stderr.readline()
            with redis_server(any_redis_binary, directory, port=port):
                report = json.loads(popen.stdout.read())
                assert popen.wait(20) == 0
        give_back(port)
        assert report["passed"] and report["attempts"] > 1

    def test_wait_ends(self) -> None:
        port = free_port()
        began = time.monotonic()
        trial = preflight(f"redis://127.0.0.1:{port}", "--wait", "1500ms")
        give_back(port)
        assert trial.status == 1
        assert time.monotonic() - began < 25


@pytest.fixture(scope="module")
def locked(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis"), "--requirepass", SECRET) as redis:
        yield redis


class TestWhoItIs:
    def test_the_password(self, locked: Process) -> None:
        assert preflight(f"redis://:{SECRET}@127.0.0.1:{locked.port}").amiss == {}

    def test_a_wrong_password(self, locked: Process) -> None:
        trial = preflight(f"redis://:{SECRET}x@127.0.0.1:{locked.port}")
        assert (trial.status, trial.amiss) == (1, {"login": "fail"})
        assert trial.steps["login"]["found"].startswith("WRONGPASS")

    def test_none(self, locked: Process) -> None:
        trial = preflight(f"redis://127.0.0.1:{locked.port}")
        assert (trial.status, trial.amiss) == (1, {"login": "fail"})
        assert "redis://user:password@host" in trial.steps["login"]["remedy"]

    def test_none_where_clients_bring_theirs(self, locked: Process) -> None:
        trial = preflight(f"redis://127.0.0.1:{locked.port}", "--auth", "passthrough")
        assert (trial.status, trial.amiss) == (0, {"login": "warn"})

    def test_a_database_that_is_none(self, server: Process) -> None:
        trial = preflight(f"redis://127.0.0.1:{server.port}/99")
        assert (trial.status, trial.amiss) == (1, {"database": "fail"})

    def test_a_wrong_setting_is_status_2(self, server: Process) -> None:
        upstream = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs=/nope"
        run = subprocess.run(
            command("--upstream", upstream), cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert (run.returncode, run.stdout) == (2, "")
        assert "'/nope' cannot be read" in run.stderr


class TestRights:
    @pytest.mark.parametrize(
        "lacking, amiss, remedy",
        [
            ("-get", {"GET": "warn"}, "ACL SETUSER u +get"),
            ("-pttl", {"PTTL": "fail"}, "ACL SETUSER u +pttl"),
            ("-scan", {"SCAN": "warn"}, "ACL SETUSER u +scan"),
            ("-unlink", {"UNLINK": "warn"}, "ACL SETUSER u +unlink"),
            ("-watch", {"WATCH": "warn"}, "ACL SETUSER u +watch"),
            ("-unwatch", {"UNWATCH": "warn"}, "ACL SETUSER u +unwatch"),
            ("-ping", {"PING": "fail"}, "ACL SETUSER u +ping"),
            ("-command", {"COMMAND": "warn"}, "ACL SETUSER u +command"),
            ("-info", {"INFO": "warn"}, "ACL SETUSER u +info"),
            ("-select", {"database": "fail"}, "ACL SETUSER u +select"),
            ("-client|tracking", {"tracking": "warn"}, "ACL SETUSER u +client|tracking"),
            ("-client|caching", {"tracking": "warn"}, "ACL SETUSER u +client|tracking +client|caching"),
            ("-publish", {"bus": "warn"}, "ACL SETUSER u +publish"),
            ("-subscribe", {}, ""),
            ("-psubscribe", {"bus": "warn"}, "ACL SETUSER u +psubscribe"),
            ("-@pubsub", {"bus": "warn"}, "ACL SETUSER u +publish"),
            ("resetchannels", {"bus": "warn"}, "ACL SETUSER u '&pannier:evict:*'"),
            ("-set", {"invalidation": "warn"}, "ACL SETUSER u +set"),
            ("-multi", {"invalidation": "warn"}, "ACL SETUSER u +set +del +exists +multi"),
            ("-acl", {}, ""),
            ("-config", {}, ""),
        ],
    )
    def test_each_that_is_lacking(
        self, server: Process, wire: Wire, lacking: str, amiss: dict[str, str], remedy: str
    ) -> None:
        user(wire, *ALL, lacking)
        trial = preflight(as_user(server, database=1))
        assert trial.amiss == amiss
        assert trial.status == (1 if "fail" in amiss.values() else 0)
        for name in amiss:
            assert trial.steps[name]["remedy"].startswith(remedy)

    def test_the_remedies_help(self, server: Process, wire: Wire) -> None:
        """Saying what is advised, step by step, ends with a user for whom all passes."""
        user(wire, "~app:*", "resetchannels", "+@connection", "-client|tracking", "-client|caching", "+acl|whoami")
        said = 0
        while True:
            trial = preflight(as_user(server), "--namespace", "app")
            if not trial.amiss:
                break
            remedy = next(trial.steps[name]["remedy"] for name in trial.amiss)
            advice = remedy.partition(";")[0].partition(" (")[0].replace("'", "")
            assert wire.ask(*advice.split()) == b"+OK\r\n", remedy
            said += 1
            assert said < 20, trial.amiss
        assert said > 5

    def test_keys_of_a_namespace(self, server: Process, wire: Wire) -> None:
        user(wire, "~other:*", "&*", "+@all")
        trial = preflight(as_user(server), "--namespace", "app")
        assert trial.amiss == {"app: keys": "fail", "app: invalidation": "warn"}
        assert trial.steps["app: keys"]["remedy"] == "ACL SETUSER u '~app:*'"

    def test_keys_of_applications_alone(self, server: Process, wire: Wire) -> None:
        """What is not tried on a key is known nevertheless: Redis looks at the command first."""
        user(wire, "~app:*", "&*", "+@all", "-pttl")
        trial = preflight(as_user(server))
        assert trial.amiss == {"PTTL": "fail", "keys": "warn", "invalidation": "warn"}


class TestTheLadder:
    def test_resp2_only(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--rename-command", "HELLO", "") as redis:
            trial = preflight(f"redis://127.0.0.1:{redis.port}")
        assert (trial.status, trial.amiss) == (0, {"protocol": "warn", "tracking": "warn"})
        assert trial.steps["tracking"]["found"].startswith("bus: ")

    def test_nothing_left(self, server: Process, wire: Wire) -> None:
        user(wire, *ALL, "-client")
        trial = preflight(as_user(server), "--broadcast", "explicit")
        assert (trial.status, trial.amiss) == (1, {"tracking": "fail"})

    def test_a_bus_on_which_memory_depends(self, server: Process, wire: Wire) -> None:
        user(wire, *ALL, "-client", "-publish")
        trial = preflight(as_user(server))
        assert (trial.status, trial.amiss) == (1, {"tracking": "warn", "bus": "fail"})

    def test_broadcast_by_choice(self, server: Process) -> None:
        trial = preflight(f"redis://127.0.0.1:{server.port}", "--tracking", "bcast")
        assert trial.amiss == {}
        assert trial.steps["tracking"]["found"].startswith("bcast")

    def test_off_by_choice(self, server: Process) -> None:
        trial = preflight(f"redis://127.0.0.1:{server.port}", "--tracking", "off")
        assert trial.amiss == {}
        assert "invalidation" not in trial.steps


class TestKindsOfServers:
    def test_a_replica(self, any_redis_binary: str, directory: Path) -> None:
        with (
            redis_server(any_redis_binary, directory) as master,
            redis_server(any_redis_binary, directory, "--replicaof", f"127.0.0.1 {master.port}") as replica,
        ):
            trial = preflight(f"redis://127.0.0.1:{replica.port}")
        assert (trial.status, trial.amiss) == (0, {"replica": "warn", "invalidation": "warn"})
        assert f"127.0.0.1:{master.port}; it refuses writes" in trial.steps["replica"]["found"]

    def test_a_cluster(self, any_redis_binary: str, directory: Path) -> None:
        port = free_port(above=10_000)
        options = ("--cluster-enabled", "yes", "--cluster-config-file", str(directory / "nodes.conf"))
        with redis_server(any_redis_binary, directory, *options, port=port) as node, Wire(node.port) as wire:
            trial = preflight(f"redis://127.0.0.1:{node.port}")
            assert (trial.status, trial.amiss) == (1, {"cluster": "fail"})
            assert wire.ask("CLUSTER", "ADDSLOTS", *range(16384)) == b"+OK\r\n"
            wait_until(lambda: b"cluster_state:ok" in wire.line("CLUSTER INFO"))
            trial = preflight(f"redis://127.0.0.1:{node.port}")
            assert (trial.status, trial.amiss) == (0, {"cluster": "warn"})
        give_back(port)

    def test_little_room(self, any_redis_binary: str, directory: Path) -> None:
        options = ("--maxclients", "20", "--tracking-table-max-keys", "1000")
        with redis_server(any_redis_binary, directory, *options) as redis:
            trial = preflight(f"redis://127.0.0.1:{redis.port}")
        assert trial.amiss == {"maxclients": "warn", "table": "warn"}

    def test_one_that_is_full(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--maxmemory", "100kb") as redis:
            trial = preflight(f"redis://127.0.0.1:{redis.port}")
        assert trial.amiss == {"memory": "warn", "invalidation": "warn"}


class TestTenants:
    CONFIG = """
[tenants.acme]
password = "a"
upstream_username = "acme"
upstream_password = "{secret}"
[tenants.globex]
password = "b"
"""

    @pytest.fixture
    def config(self, directory: Path) -> str:
        path = directory / "p.toml"
        path.write_text(self.CONFIG.format(secret=SECRET))
        return str(path)

    def test_each_has_its_steps(self, server: Process, wire: Wire, config: str) -> None:
        rights = ("resetchannels", "&pannier:evict:acme", "+@all")
        wire.ask("ACL", "SETUSER", "acme", "reset", "on", f">{SECRET}", "~acme:*", *rights)
        trial = preflight(f"redis://127.0.0.1:{server.port}", "--config", config)
        assert (trial.status, trial.amiss) == (0, {})
        assert trial.steps["acme: login"]["found"] == "as user acme"
        assert trial.steps["acme: wall"]["result"] == "pass"
        assert "globex: login" not in trial.steps
        assert trial.steps["globex: bus"]["found"] == "a message on pannier:evict:globex is published and heard"

    def test_no_wall(self, server: Process, wire: Wire, config: str) -> None:
        wire.ask("ACL", "SETUSER", "acme", "reset", "on", f">{SECRET}", "~*", "&*", "+@all")
        trial = preflight(f"redis://127.0.0.1:{server.port}", "--config", config)
        assert (trial.status, trial.amiss) == (0, {"acme: wall": "warn"})
        assert trial.steps["acme: wall"]["remedy"] == "ACL SETUSER acme resetkeys '~acme:*'"

    def test_one_that_cannot_come_in_hides_no_other(self, server: Process, wire: Wire, config: str) -> None:
        wire.ask("ACL", "SETUSER", "acme", "reset", "on", ">other")
        trial = preflight(f"redis://127.0.0.1:{server.port}", "--config", config)
        assert (trial.status, trial.amiss) == (1, {"acme: login": "fail"})
        assert "tenants.acme.upstream_password" in trial.steps["acme: login"]["remedy"]
        assert trial.steps["globex: tracking"]["result"] == "pass"

    def test_listeners_with_namespaces(self, server: Process) -> None:
        listen = "127.0.0.1:1?namespace=a,127.0.0.1:2?namespace=b,127.0.0.1:3"
        trial = preflight(f"redis://127.0.0.1:{server.port}", "--listen", listen)
        assert (trial.status, trial.amiss) == (0, {})
        assert {"a: bus", "b: bus", "bus"} <= set(trial.steps)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; server.pem for localhost; client.pem; other.pem, an authority that has signed none of them."""
    path = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(path / "other.pem")
    for name, host in (("server", "localhost"), ("client", "client")):
        ca.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(path / f"{name}.pem")
    return path


@pytest.fixture(scope="module")
def secure(
    any_redis_binary: str, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a server that speaks TLS, and wants a certificate of its clients."""
    port = free_port()
    options = ("--tls-port", str(port), "--tls-ca-cert-file", str(files / "ca.pem"))
    for what in ("cert", "key"):
        options += (f"--tls-{what}-file", str(files / "server.pem"))
    if subprocess.run([any_redis_binary, *options, "--port", "0", "--test"], capture_output=True).returncode > 1:
        pytest.skip("this redis-server has no TLS")
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis"), *options):
        yield port
    give_back(port)


class TestTls:
    def test_with_all_certificates(self, secure: int, files: Path) -> None:
        query = f"ssl_ca_certs={files}/ca.pem&ssl_certfile={files}/client.pem"
        trial = preflight(f"rediss://localhost:{secure}?{query}")
        assert (trial.status, trial.amiss) == (0, {})
        found = trial.steps["TLS"]["found"]
        assert found.startswith("TLSv1.") and "certificate for localhost, until " in found

    def test_not_looked_at(self, secure: int, files: Path) -> None:
        query = f"ssl_cert_reqs=none&ssl_certfile={files}/client.pem"
        assert preflight(f"rediss://localhost:{secure}?{query}").amiss == {"TLS": "warn"}

    def test_without_the_clients_certificate(self, secure: int, files: Path) -> None:
        trial = preflight(f"rediss://localhost:{secure}?ssl_ca_certs={files}/ca.pem")
        assert trial.amiss == {"login": "fail"}
        assert "ssl_certfile" in trial.steps["login"]["remedy"]

    def test_another_authority(self, secure: int, files: Path) -> None:
        trial = preflight(f"rediss://localhost:{secure}?ssl_ca_certs={files}/other.pem")
        assert trial.amiss == {"TLS": "fail"}
        assert "the certificate is refused" in trial.steps["TLS"]["found"]
        assert f"trusted are {files}/other.pem's authorities" in trial.steps["TLS"]["remedy"]

    def test_another_name(self, secure: int, files: Path) -> None:
        trial = preflight(f"rediss://127.0.0.1:{secure}?ssl_ca_certs={files}/ca.pem")
        assert trial.amiss == {"TLS": "fail"}
        assert "as the certificate has it" in trial.steps["TLS"]["remedy"]

    def test_another_name_of_ones_own_choice(self, secure: int, files: Path) -> None:
        trial = preflight(f"rediss://localhost:{secure}?ssl_ca_certs={files}/ca.pem&ssl_sni=redis.example")
        assert trial.amiss == {"TLS": "fail"}
        assert trial.steps["TLS"]["remedy"].startswith("write ssl_sni (redis.example) as the certificate has it")

    def test_plain_to_tls(self, secure: int) -> None:
        trial = preflight(f"redis://localhost:{secure}")
        assert trial.amiss == {"login": "fail"}
        assert "write rediss://" in trial.steps["login"]["remedy"]

    def test_tls_to_plain(self, server: Process) -> None:
        trial = preflight(f"rediss://127.0.0.1:{server.port}", "--connect-timeout", "500ms")
        assert trial.amiss == {"TLS": "fail"}
        assert "redis://" in trial.steps["TLS"]["remedy"]
