"""The log of a running Pannier: its form, what it tells, and that no value, password or hidden key is in it.

Also SIDECAR SLOWLOG and traces, with what they are about really happening.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fake_upstream import FakeUpstream
from tests.harness import ROOT, Process, free_port, pannier, redis_server, running, wait_until
from tests.integration.wire import Wire, request

LISTED = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
VALUE, PASSWORD, KEY = "s3cr3t-value", "s3cr3t-password", "s3cr3t-key"
"""Every value, password and key of a session is one of these, or begins with it."""
FAST = ["--reconnect-min", "10ms", "--reconnect-max", "100ms"]


def lines(process: Process) -> list[dict[str, Any]]:
    """All there is on both outputs; every line must be an object."""
    return [json.loads(line) for line in process.output.splitlines()]


def events(process: Process) -> list[str]:
    return [line["event"] for line in lines(process)]


@contextlib.contextmanager
def house(directory: Path, redis: Process, *options: str, settings: str = "") -> Iterator[Process]:
    """A Pannier with tenants, in front of a Redis with a password, that logs everything as JSON."""
    file = directory / "pannier.toml"
    file.write_text(
        f'{settings}\n[[rules]]\nmatch = "{KEY}:rule:*"\nl1_ttl = "10s"\n'
        f'[tenants.acme]\npassword = "{PASSWORD}"\nmax_ops_per_second = 500\nmax_clients = 12\n'
        f'[tenants.boss]\npassword = "{PASSWORD}"\nnamespace = ""\n'
    )
    port = free_port()
    command = [
        sys.executable, "-m", "proxy", "run", "--config", str(file), "--upstream", f"redis://:{PASSWORD}@127.0.0.1:{redis.port}",
        "--listen", f"127.0.0.1:{port}", "--log-format", "json", "--admin-listen", "off", "--broadcast", "writes", *FAST, *options,
    ]  # fmt: skip
    with running(command, port, directory) as process:
        process.file = file  # type: ignore[attr-defined]
        yield process


def live(process: Process, user: str) -> None:
    """All that a client may do, well and badly."""
    with Wire(process.port) as wire:
        for words in (["AUTH", "acme", PASSWORD + "-wrong"], ["AUTH", PASSWORD], ["AUTH", PASSWORD, VALUE], ["GET", KEY]):
            assert wire.ask(*words).startswith(b"-")
        assert wire.ask("HELLO", 3, "AUTH", user, PASSWORD).startswith(b"%")
        wire.ask("CLIENT", "SETNAME", KEY)
        for number in range(3):
            key = f"{KEY}:{number}"
            wire.ask("SET", key, VALUE)
            for _ in range(3):
                assert wire.ask("GET", key) == b"$12\r\n" + VALUE.encode() + b"\r\n"
        for words in (
            ["HSET", KEY + ":h", VALUE, VALUE], ["INCR", KEY + ":h"], ["MGET", KEY, KEY + ":0"], ["NOSUCH" + VALUE, KEY, VALUE],
            ["EVAL", f"return redis.call('get', KEYS[1]) .. '{VALUE}' .. nothing", 1, KEY + ":0"], ["EVAL", f"error('{VALUE}')", 0],
            ["SIDECAR", "INVALIDATE", KEY], ["SIDECAR", "EXPLAIN", KEY], ["SIDECAR", "DELETE", "MATCH", KEY + "*", "COUNT", 5],
            ["SIDECAR", "WARM", "KEYS", KEY + ":h", KEY], ["SIDECAR", "LEASE", KEY, 10], [VALUE], ["SIDECAR", VALUE],
            ["PUBLISH", "pannier:evict:", VALUE], ["MULTI"], ["SET", KEY, VALUE], ["INCR", KEY + ":h"], ["EXEC"], ["BLPOP", KEY + ":l", 0.01],
            ["SET", KEY + ":large", VALUE * 40_000], ["GET", KEY + ":large"], ["OBJECT", "NO" + VALUE, KEY], ["SIDECAR", "SLOWLOG", "GET"],
        ):  # fmt: skip
            wire.ask(*words)
    for bad in (f"*1\r\n${VALUE}\r\n", f"*{VALUE}\r\n", f"POST /{VALUE} HTTP/1.1\r\nHost: {VALUE}\r\n\r\n", f'"{VALUE}\r\n'):
        with Wire(process.port) as wire:
            wire.raw(bad.encode())
            wire.rest()


def lets_in(process: Process, user: str) -> bool:
    with Wire(process.port) as wire:
        return wire.ask("HELLO", 3, "AUTH", user, PASSWORD).startswith(b"%")


def hidden(output: str, *words: str) -> None:
    """None of the words stands in the output, whole or in part."""
    for word in words:
        assert word not in output, [line for line in output.splitlines() if word in line]


class TestNothingSecret:
    @pytest.mark.parametrize("privacy", ["plain", "hashed", "off"])
    def test_is_in_it_at_any_level(self, any_redis_binary: str, directory: Path, privacy: str) -> None:
        with redis_server(any_redis_binary, directory, "--requirepass", PASSWORD) as redis:
            options = ["--log-level", "debug", "--key-privacy", privacy, "--verify", "1", "--admit-after", "1", "--slowlog-slower-than", "0.1ms"]
            with house(directory, redis, *options) as process:
                live(process, "acme")
                live(process, "boss")
                process.file.write_text(process.file.read_text().replace("10s", VALUE))  # type: ignore[attr-defined]
                process.signal(signal.SIGHUP)
                wait_until(lambda: "rules_broken" in events(process))
                redis.kill()
                wait_until(lambda: "breaker_opened" in events(process))
                with Wire(process.port) as wire:
                    wire.ask("HELLO", 3, "AUTH", "acme", PASSWORD)
                with redis_server(any_redis_binary, directory, "--requirepass", PASSWORD, port=redis.port):
                    wait_until(lambda: "upstream_back" in events(process))
                    wait_until(lambda: lets_in(process, "boss"))  # each user's link comes back by itself
                    live(process, "boss")
                    assert process.stop() == 0
                output = process.output
        told = set(events(process))
        assert {"starting", "listening", "client_connected", "auth_refused", "client_attack", "client_protocol_error"} <= told
        assert {"upstream_lost", "breaker_closed", "bus_malformed", "stopping"} <= told
        # A rule that is wrong is shown as its author wrote it.
        rest = "\n".join(line for line in output.splitlines() if '"rules_broken"' not in line)
        hidden(rest, VALUE, PASSWORD)
        rules = [line for line in rest.splitlines() if f"{KEY}:rule" in line]
        hidden("\n".join(line for line in rest.splitlines() if line not in rules), KEY)

    @pytest.mark.parametrize(
        "noise",
        [
            f"+{VALUE}\r\n+{VALUE}\r\n",
            f"{VALUE}\r\n",
            f"${VALUE}\r\n",
            f"$12\r\n{VALUE}{VALUE}",
            f">2\r\n+{VALUE}\r\n{VALUE}\r\n",
        ],
    )
    def test_of_an_upstream_that_speaks_nonsense(self, directory: Path, noise: str) -> None:
        def script(words: list[bytes]) -> bytes:
            return noise.encode() if words[0] == b"GET" else b"-ERR unknown command, with args beginning with: 's3cr3t-value'\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, "--log-format", "json", "--log-level", "debug", *FAST) as process:
            with process.connect() as sock:
                sock.sendall(request("GET", KEY) + request("GET", KEY))
                wait_until(lambda: "upstream_lost" in events(process))
            process.stop()
            hidden(process.output, VALUE, KEY)

    def test_of_a_server_that_does_not_know_hello(self, any_redis_binary: str, directory: Path) -> None:
        """It quotes the password in its error."""
        renamed = ["--rename-command", "HELLO", "", "--rename-command", "AUTH", "", "--rename-command", "PTTL", ""]
        with redis_server(any_redis_binary, directory, *renamed) as redis:
            url = f"redis://joe:{PASSWORD}@127.0.0.1:{redis.port}"
            with pannier(url, directory, "--log-format", "json", "--log-level", "debug", *FAST) as process, Wire(process.port) as wire:
                wait_until(lambda: "upstream_refuses" in events(process))
                wire.ask("AUTH", PASSWORD)
                wire.ask("AUTH", "joe", PASSWORD)
                wire.ask("GET", KEY)
                process.stop()
                hidden(process.output, PASSWORD, KEY)

    def test_in_warming_where_keys_are_hidden(self, redis: Process, directory: Path) -> None:
        (directory / "warm").write_text(f"{KEY}:f\n")
        options = ["--warm", f"{KEY},{KEY}:*", "--warm-file", str(directory / "warm"), "--log-format", "json", "--log-level", "debug"]
        for privacy in ("hashed", "off"):
            with pannier(f"redis://127.0.0.1:{redis.port}", directory, *options, "--key-privacy", privacy) as process:
                wait_until(lambda: "warm_done" in events(process))
                hidden(process.output, KEY)
                assert next(line["source"] for line in lines(process) if line["event"] == "warmed") == "no. 1 of warm"


class TestItsForm:
    def test_is_json_where_nobody_looks_on(self, redis: Process, directory: Path) -> None:
        port = free_port()
        command = [sys.executable, "-m", "proxy", "--upstream", f"redis://:{PASSWORD}@127.0.0.1:{redis.port}", "--listen", f"127.0.0.1:{port}",
                   "--admin-listen", "off"]  # fmt: skip
        with running(command, port, directory, env={"PANNIER_LOG_FORMAT": ""}) as process:
            wait_until(lambda: "listening" in events(process))
            process.stop()
            starting, *_, stopping = found = lines(process)
        assert all(LISTED.match(line["time"]) and line["level"] in ("debug", "info", "warning", "error") for line in found)
        assert all(line["logger"].startswith("pannier") and line["message"] for line in found)
        assert (starting["event"], starting["pid"], starting["settings"]["listen"]) == ("starting", process.pid, f"127.0.0.1:{port}")
        assert starting["settings"]["upstream"] == f"redis://:***@127.0.0.1:{redis.port}/0"
        listening = next(line for line in found if line["event"] == "listening")
        assert listening["addresses"] == [f"127.0.0.1:{port}"]
        assert (stopping["event"], stopping["signal"], stopping["level"]) == ("stopping", "SIGTERM", "info")

    def test_is_text_on_a_terminal(self, redis: Process, directory: Path) -> None:
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "proxy", "--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", "0", "--admin-listen", "off"]
        env = {**os.environ, "PANNIER_LOG_FORMAT": ""}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, cwd=ROOT, env=env) as popen:
            os.close(follower)
            said = b""
            with contextlib.suppress(OSError):  # the end of a terminal
                while data := os.read(leader, 4096):
                    said += data
                    if b"Ctrl-C" in data:
                        popen.terminate()
        os.close(leader)
        assert re.search(rb"pannier \S+ serves 127\.0\.0\.1:\d+\r\n", said)
        assert re.search(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    stopping\r\n", said) and b"{" not in said

    def test_level_may_be_changed_while_it_runs(self, redis: Process, directory: Path) -> None:
        file = directory / "pannier.toml"
        file.write_text('log_level = "info"\n')
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--config", str(file), "--log-format", "json", "--admit-after", "1") as process:
            with Wire(process.port) as wire:
                wire.ask("SET", "k", "v")
                wire.ask("GET", "k")
                entries = wire.ask("INFO", "sidecar")
                assert b"tier_entries:1\r\n" in entries
                file.write_text('log_level = "debug"\n')
                process.signal(signal.SIGHUP)
                wait_until(lambda: "log_level_changed" in events(process))
                assert b"tier_entries:1\r\n" in wire.ask("INFO", "sidecar"), "nothing else changes"
            assert "client_connected" not in events(process)
            Wire(process.port).close()
            wait_until(lambda: "client_connected" in events(process))

    def test_says_once_that_much_is_refused(self, redis: Process, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--max-clients", "1", "--log-format", "json") as process:
            with process.connect() as first:
                first.sendall(b"PING\r\n")
                assert first.recv(16) == b"+PONG\r\n"
                for _ in range(20):
                    with process.connect() as sock:
                        assert sock.recv(100).startswith(b"-ERR max number of clients")
            process.stop()
            rejected = [line for line in lines(process) if line["event"] == "client_rejected"]
            assert len(rejected) == 6 and rejected[-1]["repeated"] == 15
            assert all(line["level"] == "warning" and line["reason"] == "max_clients is 1" for line in rejected)
            assert all(re.fullmatch(r"127\.0\.0\.1:\d+", line["address"]) for line in rejected)


class TestSlowlog:
    def test_lists_what_redis_took_long_for(self, redis: Process, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{redis.port}", directory) as process, Wire(process.port) as wire, Wire(process.port) as other:
            wire.ask("PING")
            other.raw(request("DEBUG", "SLEEP", "0.05") + request("SET", "k", VALUE))
            other.reads(2)
            assert wire.ask("SIDECAR", "SLOWLOG", "LEN") != b":0\r\n"
            listed = wire.ask("SIDECAR", "SLOWLOG", "GET", -1)
            assert b"DEBUG" in listed and VALUE.encode() not in listed
            assert wire.ask("SIDECAR", "SLOWLOG", "RESET") == b"+OK\r\n"
            assert wire.ask("SIDECAR", "SLOWLOG", "LEN") == b":0\r\n"

    def test_shows_a_tenant_only_its_own(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--requirepass", PASSWORD) as redis, house(directory, redis) as process, contextlib.ExitStack() as stack:
            acme, boss = [stack.enter_context(Wire(process.port)) for _ in range(2)]
            acme.ask("AUTH", "acme", PASSWORD)
            boss.ask("AUTH", "boss", PASSWORD)
            acme.ask("SIDECAR", "SLOWLOG", "RESET")
            boss.ask("SIDECAR", "SLOWLOG", "RESET")
            boss.raw(request("DEBUG", "SLEEP", "0.3"))
            wait_until(lambda: acme.ask("SET", "mine", 1) and acme.ask("SIDECAR", "SLOWLOG", "LEN") != b":0\r\n")
            boss.read()
            seen = acme.ask("SIDECAR", "SLOWLOG", "GET")
            assert b"mine" in seen and b"DEBUG" not in seen and b"namespace" not in seen
            everything = boss.ask("SIDECAR", "SLOWLOG", "GET")
            assert b"mine" in everything and b"DEBUG" in everything and b"acme" in everything


class Collector:
    """Takes traces over OTLP/HTTP while the context lasts."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)

    def take(self, data: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.services |= {each.value.string_value for each in resource.resource.attributes if each.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class TestTraces:
    def test_are_sent_where_the_variables_say(self, redis: Process, directory: Path) -> None:
        port = free_port()
        command = [sys.executable, "-m", "proxy", "--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", f"127.0.0.1:{port}",
                   "--admin-listen", "off", "--trace-sample", "1", "--admit-after", "1", "--broadcast", "off"]  # fmt: skip
        with Collector() as collector:
            with running(command, port, directory, env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "cart"}) as process:
                with Wire(port) as wire:
                    wire.ask("SET", KEY, VALUE)
                    wire.ask("GET", KEY)
                    wire.ask("GET", KEY)
                    wire.raw(request("MULTI"))
                    wire.read()
                    wire.ask("EXEC")
                began = time.monotonic()
                assert process.stop() == 0 and time.monotonic() - began < 5
            found = [(span.name, {each.key: each.value.string_value or each.value.int_value for each in span.attributes}) for span in collector.spans]
        paths = [(name.partition(" ")[0], attributes["pannier.path"]) for name, attributes in found if not name.startswith("PING")]
        assert paths == [("SET", "write"), ("GET", "miss"), ("GET", "hit"), ("MULTI", "pinned"), ("EXEC", "pinned")]
        assert all(attributes["server.port"] == redis.port and attributes["db.system.name"] == "redis" for _, attributes in found)
        assert collector.services == {"cart"}
        hidden(str(collector.spans), VALUE, KEY)

    def test_whom_nobody_takes_hold_nothing_up(self, redis: Process, directory: Path) -> None:
        port = free_port()
        command = [sys.executable, "-m", "proxy", "--upstream", f"redis://127.0.0.1:{redis.port}", "--listen", f"127.0.0.1:{port}",
                   "--admin-listen", "off", "--trace-sample", "100%"]  # fmt: skip
        with running(command, port, directory, env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}) as process:
            with Wire(port) as wire:
                assert wire.ask("SET", "k", "v") == b"+OK\r\n"
            began = time.monotonic()
            assert process.stop() == 0 and time.monotonic() - began < 8
