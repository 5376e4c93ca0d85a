"""The administration of a real Pannier: what it tells is so, and asking it disturbs nobody."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from proxy.tools.metrics_reference import markdown
from tests.harness import ROOT, Process, free_port, pannier, read_exactly, redis_server, wait_until
from tests.integration.test_lifecycle import fails, launched
from tests.integration.web import Found, Web, administered
from tests.integration.wire import Wire, until

RULES = '[[rules]]\nmatch = "v:*"\nclass = "views"\n'
both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def house(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Web]]:
    """One Pannier for most tests: with a rule, and a second listener's namespace."""
    directory = tmp_path_factory.mktemp("pannier")
    (directory / "rules.toml").write_text(RULES)
    options = ("--rules-file", str(directory / "rules.toml"), "--canary-interval", "100ms")
    url = f"redis://127.0.0.1:{upstream.port}"
    with administered(url, directory, *options, bus=True) as (proxy, web):
        until(lambda: web.metrics()("bus_up"), "the bus is heard")
        yield proxy, web


@pytest.fixture
def proxy(house: tuple[Process, Web]) -> Process:
    with Wire(house[0].port) as wire:
        wire.line("FLUSHALL")
    return house[0]


@pytest.fixture
def web(house: tuple[Process, Web]) -> Web:
    return house[1]


def kept(wire: Wire, *keys: str) -> None:
    """Have keys in memory, by reading them until they are."""
    for key in keys:
        wire.ask("SET", key, "x" * 100)
        wire.ask("GET", key)
        wire.ask("GET", key)


def health(proxy: Process) -> dict[str, str]:
    with Wire(proxy.port) as wire:
        words = re.findall(rb"[$]\d+\r\n(.*?)\r\n|:(\d+)\r\n", wire.line("SIDECAR HEALTH"), re.DOTALL)
    flat = [(text or number).decode() for text, number in words]
    return dict(zip(flat[::2], flat[1::2], strict=True))


class TestMetrics:
    @both_protocols
    def test_hits_misses_and_writes_are_exact(self, proxy: Process, web: Web, protocol: int) -> None:
        with Wire(proxy.port, protocol) as wire:
            kept(wire, "user:1", "v:2", "plain")
            before = web.metrics()
            for _ in range(70):
                wire.ask("GET", "user:1")
            for _ in range(20):
                wire.ask("GET", "v:2")
            wire.pipeline([b"*2\r\n$3\r\nGET\r\n$5\r\nplain\r\n"] * 16, 16)
            wire.ask("MGET", "user:1", "plain")
            for n in range(5):
                wire.ask("GET", f"org:{n}")
            wire.ask("SET", "other:1", "v")
            wire.ask("DEL", "other:1", "other:2")
            after = web.metrics()

        def more(name: str, **labels: str) -> float:
            return after(name, **labels) - before(name, **labels)

        assert more("hits_total", namespace="") == 70 + 20 + 16 + 2
        assert more("misses_total", namespace="") == 5
        assert more("sets_total", namespace="") == 1
        assert more("deletes_total", namespace="") == 2
        by_class = {name: more("class_hits_total", namespace="", class_=name) for name in ("user", "views", "*", "v")}
        assert by_class == {"user": 71, "views": 20, "*": 17, "v": 0}
        assert more("class_misses_total", namespace="", class_="org") == 5

    def test_who_bypasses(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            kept(wire, "user:1")
            before = web.metrics()
            wire.line("SIDECAR BYPASS ON")
            for _ in range(5):
                wire.ask("GET", "user:1")
            assert web.metrics()("bypassed_commands_total", namespace="") - before("bypassed_commands_total", namespace="") == 5
            wire.line("SIDECAR BYPASS OFF")
            wire.ask("GET", "user:1")
        after = web.metrics()
        assert after("bypassed_commands_total", namespace="") - before("bypassed_commands_total", namespace="") == 6, "OFF itself"
        assert after("hits_total", namespace="") - before("hits_total", namespace="") == 1

    def test_entries_dropped_by_who_said_so(self, upstream: Process, proxy: Process, web: Web) -> None:
        def dropped(source: str) -> float:
            return web.metrics()("invalidations_total", namespace="", source=source)

        with Wire(proxy.port) as wire, Wire(upstream.port) as other:
            for source, drop in (
                ("push", lambda: other.ask("SET", "user:1", "new")),
                ("write", lambda: wire.ask("SET", "user:1", "new")),
                ("command", lambda: wire.ask("SIDECAR", "INVALIDATE", "user:1")),
                ("command", lambda: wire.ask("SIDECAR", "FLUSH")),
                ("command", lambda: wire.ask("SIDECAR", "INVALIDATE", "MATCH", "user:*")),
                ("command", lambda: web.post("/invalidate", {"keys": ["user:1"]})),
                ("bus", lambda: other.ask("PUBLISH", "pannier:evict:", '{"v": 1, "keys": ["user:1"]}')),
                ("bus", lambda: other.ask("PUBLISH", "pannier:evict:", '{"v": 1, "match": ["user:*"]}')),
            ):
                kept(wire, "user:1")
                entries, before = web.metrics()("entries", namespace=""), dropped(source)
                assert entries > 0
                drop()
                until(lambda: web.metrics()("entries", namespace="") == 0, source)
                assert dropped(source) - before == entries, source

    def test_memory(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            kept(wire, "user:1")
            found = web.metrics()
            assert found("entries", namespace="") > 0
            assert found("memory_bytes", namespace="") > 300 * found("entries", namespace="")
            assert found("memory_limit_bytes", namespace="") == 64 << 20

    def test_bytes_of_clients(self, proxy: Process, web: Web) -> None:
        before = web.metrics()
        with Wire(proxy.port) as wire:
            sent = b"*2\r\n$4\r\nECHO\r\n$1000\r\n" + b"x" * 1000 + b"\r\n"
            wire.raw(sent)
            got = wire.read()
            until(lambda: web.metrics()("client_sent_bytes_total") - before("client_sent_bytes_total") == len(got), "acknowledged")
            assert web.metrics()("client_received_bytes_total") - before("client_received_bytes_total") == len(sent)
        until(lambda: web.metrics()("connected_clients", namespace="") == 0, "gone")
        assert web.metrics()("client_received_bytes_total") - before("client_received_bytes_total") <= len(sent) + 1, "the end counts as one"

    def test_histograms_fill(self, proxy: Process, web: Web) -> None:
        for name in ("upstream_round_trip_seconds", "invalidation_lag_seconds", "loop_lag_seconds"):
            until(lambda: web.metrics()(f"{name}_count"), name)  # noqa: B023
            found = web.metrics()
            assert found(f"{name}_bucket", le="+Inf") == found(f"{name}_count") > 0
            assert 0 < found(f"{name}_sum") < 10

    def test_are_those_of_the_documentation(self, web: Web) -> None:
        page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
        assert page == markdown(), "run: python -m proxy.tools.metrics_reference > docs/metrics.md"
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
        told = {name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in rows}
        suffix = {"counter": "_total", "info": "_info"}
        families = list(openmetrics(self.opened(web).body.decode()))
        found = {family.name + suffix.get(family.type, ""): family for family in families}
        # What prometheus-client calls a gauge although it is an info.
        assert set(told) == set(found)
        for name, family in found.items():
            kind, labels = told[name]
            assert kind == family.type, name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == labels, name

    @staticmethod
    def opened(web: Web) -> Found:
        return web.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")

    def test_in_both_formats(self, web: Web) -> None:
        plain, opened = web.get("/metrics"), self.opened(web)
        assert plain.fields["content-type"].startswith("text/plain; version=")
        assert opened.fields["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert opened.body.endswith(b"# EOF\n") and b"# EOF" not in plain.body
        assert opened.body.count(b"# EOF") == 1
        assert {family.name for family in prometheus(plain.body.decode())} >= {"pannier_hits", "process_cpu_seconds"}

    def test_no_key_is_ever_shown(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            kept(wire, "secret-key", "user:secret-name")
            for path in ("/metrics", "/stats", "/config", "/readyz"):
                assert b"secret" not in web.get(path).body


class TestReadiness:
    def test_is_sidecar_healths_judgement(self, any_redis_binary: str, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            port = free_port()
            redis = stack.enter_context(redis_server(any_redis_binary, directory, port=port))
            options = ("--reconnect-max", "100ms", "--coherence-timeout", "500ms", "--on-upstream-down", "stale")
            url = f"redis://127.0.0.1:{port}"
            proxy, web = stack.enter_context(administered(url, directory, *options, "--stale-max", "1s"))

            def agree() -> Found:
                """The answer of /readyz, once SIDECAR HEALTH, asked next, has said the same."""
                while True:
                    found, said = web.get("/readyz"), health(proxy)
                    shown = {name: value for name, value in found.json.items() if name not in ("reasons", "breaker_failures")}
                    told = {name: str({True: "yes", False: "no"}.get(value, value)) if isinstance(value, bool) else str(value) for name, value in shown.items()}
                    if told == {name: value for name, value in said.items() if name != "breaker_failures"}:
                        assert found.status == (200 if said["ready"] == "yes" else 503)
                        return found

            assert agree().json["reasons"] == []
            with Wire(proxy.port) as wire:
                kept(wire, "a")
            redis.signal(signal.SIGSTOP)
            until(lambda: agree().json["serving"] == "stale", "Redis is silent, stale entries are served")
            assert (agree().status, agree().json["upstream"]) == (200, "silent")
            until(lambda: agree().status == 503, "they are too old")
            redis.signal(signal.SIGCONT)
            until(lambda: agree().status == 200, "Redis is back")
            redis.kill()
            until(lambda: agree().status == 503, "Redis is gone")
            assert agree().json["reasons"] and web.metrics()("ready") == 0
            stack.enter_context(redis_server(any_redis_binary, directory, port=port))
            until(lambda: agree().status == 200 and web.metrics()("ready") == 1, "another Redis is there")
            assert web.get("/healthz").status == 200

    def test_waits_for_warming(self, upstream: Process, directory: Path) -> None:
        url = f"redis://127.0.0.1:{free_port()}"
        with administered(url, directory, "--warm", "a") as (_, web):
            assert web.get("/readyz").json["reasons"][-1].startswith("memory is still being warmed")

    def test_draining(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            assert web.post("/drain").json == {"draining": True, "connected_clients": 1}
            try:
                found = web.get("/readyz")
                assert found.status == 503 and found.json["reasons"] == ["draining: clients are to go elsewhere"]
                assert (health(proxy)["ready"], health(proxy)["draining"]) == ("no", "yes")
                assert (wire.line("PING"), web.metrics()("draining")) == (b"+PONG\r\n", 1), "and new clients are served"
            finally:
                assert web.post("/drain", {"draining": False}).json["draining"] is False
            assert web.get("/readyz").status == 200


class TestInvalidate:
    def test_keys_and_patterns(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            kept(wire, "a:1", "a:2", "b:1", "c:1")
            entries = web.metrics()("entries", namespace="") / 4
            answer = web.post("/invalidate", {"keys": ["b:1"], "patterns": ["a:*"]})
            assert answer.json == {"invalidated": 3, "keys": 1, "patterns": 1, "told_others": True}
            assert web.metrics()("entries", namespace="") == entries
            assert wire.ask("GET", "c:1").startswith(b"$100")

    def test_names_that_are_not_utf_8(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            wire.ask("SET", b"\xff\x00", "v")
            for _ in range(2):
                wire.ask("GET", b"\xff\x00")
            assert web.post("/invalidate", {"keys": [{"b64": "/wA="}]}).json["invalidated"] > 0

    def test_other_panniers_are_told(self, upstream: Process, proxy: Process, web: Web, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{upstream.port}", directory, bus=True) as other, Wire(other.port) as wire:

            def entries() -> int:
                found = re.search(rb"pannier_tier_entries:(\d+)", wire.ask("INFO", "sidecar"))
                return int(found[1]) if found else -1

            until(lambda: b"bus_status:up" in wire.ask("INFO", "sidecar"), "the bus is heard")
            kept(wire, "a:1", "b:1", "c:1")
            before = entries()
            web.post("/invalidate", {"keys": ["a:1"]})
            until(lambda: entries() == before * 2 / 3, "a key")
            web.post("/invalidate", {"patterns": ["b:*"]})
            until(lambda: entries() == before / 3, "a pattern")

    def test_in_a_namespace(self, upstream: Process, directory: Path) -> None:
        port = free_port()
        options = ("--listen", f"127.0.0.1:{port}?namespace=app")
        with administered(f"redis://127.0.0.1:{upstream.port}", directory, *options) as (proxy, web):
            with Wire(port) as inside, Wire(proxy.port) as outside:
                kept(inside, "k")
                kept(outside, "k")
                assert web.post("/invalidate", {"keys": ["k"], "namespace": "app"}).json["invalidated"] > 0
                found = web.metrics()
                assert (found("entries", namespace="app") == 0) and found("entries", namespace="") > 0
                assert list(web.stats("/stats?namespace=app")["namespaces"]) == ["app"]
                assert web.stats("/stats?namespace=app")["hits"] == web.stats()["namespaces"]["app"]["hits"]
            for path, body in (("/invalidate", {"keys": ["k"], "namespace": "other"}), ("/invalidate", {"keys": ["k"], "namespace": 7})):
                refused = web.post(path, body)
                assert refused.status == 400 and refused.json["reason"].endswith("there are: app")
            assert web.get("/stats?namespace=other").status == 400

    @pytest.mark.parametrize(
        ("body", "status", "reason"),
        [
            (b"", 400, "the body is no JSON"),
            (b"[1]", 400, "the body is no JSON object"),
            (b"\xff", 400, "the body is no JSON"),
            (b"[" * 100_000, 400, "the body is no JSON"),
            ({}, 400, "nothing to invalidate"),
            ({"keys": "a"}, 400, "the body has a 'keys' that is no list"),
            ({"keys": [1]}, 400, "the body has a name in 'keys' that is neither a text nor b64"),
            ({"patterns": ["*" * 5000]}, 400, "the patterns have more than 4096 bytes together"),
            ({"key": ["a"]}, 400, "unknown field 'key' in the body; known: keys, patterns, namespace"),
        ],
    )
    def test_what_is_wrong_is_told(self, web: Web, body: Any, status: int, reason: str) -> None:
        found = web.post("/invalidate", body, Content_Type="application/json")
        assert found.status == status and reason in found.json["reason"]

    def test_only_json(self, web: Web) -> None:
        """Which a page of another site cannot send without asking first."""
        assert web.post("/invalidate", b'{"keys": ["a"]}', Content_Type="text/plain").status == 415
        assert web.post("/drain", b'{"draining": true}', Content_Type="text/plain").status == 415
        assert web.post("/drain", {"draining": 1}).status == 400


class TestBadInput:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/nowhere", 404),
            ("GET", "/../etc/passwd", 404),
            ("GET", "//metrics", 404),
            ("POST", "/metrics", 405),
            ("DELETE", "/stats", 405),
            ("GET", "/drain", 405),
            ("GET", "/stats?nope=1", 400),
            ("GET", "/stats?namespace=a&namespace=b", 400),
            ("GET", "/config?x", 400),
        ],
    )
    def test_paths_methods_parameters(self, web: Web, method: str, path: str, status: int) -> None:
        found = web.ask(method, path)
        assert found.status == status and found.json["reason"]
        assert ("allow" in found.fields) == (status == 405)

    @pytest.mark.parametrize("fields", [{"Host": "[foo"}, {"Host": "localhost", "Origin": "http://[x"}])
    def test_fields_that_are_no_names_of_hosts(self, proxy: Process, web: Web, fields: dict[str, str]) -> None:
        found = web.ask("POST", "/drain", **fields)
        assert found.status == 400 and found.json["reason"] == "the field Host or Origin is none"
        assert "internal error" not in proxy.output

    def test_head(self, web: Web) -> None:
        found = web.ask("HEAD", "/readyz")
        assert (found.status, found.body) == (200, b"") and int(found.fields["content-length"]) > 0

    def test_huge_fields(self, web: Web) -> None:
        assert web.get("/metrics", X="x" * 20_000).status == 431
        assert web.get("/" + "x" * 20_000).status == 431

    def test_a_huge_body(self, web: Web) -> None:
        with web.connect() as sock:
            sock.sendall(b"POST /invalidate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"x" * 2_000_000)
            assert read_exactly(sock, 12) == b"HTTP/1.1 413"

    def test_many_slow_and_silent_clients_disturb_nobody(self, proxy: Process, web: Web) -> None:
        with contextlib.ExitStack() as stack, Wire(proxy.port) as wire:
            kept(wire, "user:1")
            for n in range(100):
                sock = stack.enter_context(web.connect())
                if n % 2:
                    with contextlib.suppress(ConnectionError):
                        sock.sendall(b"GET /metrics HTT" if n > 70 else b"")
            for _ in range(200):
                assert wire.ask("GET", "user:1").startswith(b"$100")
            assert proxy.output.count("Traceback") == 0
        until(lambda: web.get("/healthz").status == 200, "there is room again")

    def test_who_does_not_read_takes_bounded_memory(self, proxy: Process, web: Web) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                sock = stack.enter_context(web.connect())
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
            before = proxy.rss
            with Wire(proxy.port) as wire:
                for _ in range(100):
                    assert wire.line("PING") == b"+PONG\r\n"
            assert proxy.rss - before < 16 << 20

    def test_a_redis_client_is_told(self, web: Web) -> None:
        with web.connect() as sock:
            sock.sendall(b"*1\r\n$4\r\nPING\r\n\r\n")
            assert read_exactly(sock, 12) == b"HTTP/1.1 400"


class TestConfig:
    def test_shows_what_holds_and_where_from_and_no_secret(self, upstream: Process, directory: Path) -> None:
        config, rules = directory / "pannier.toml", directory / "rules.toml"
        config.write_text('admin_token_file = "token"\nl1_ttl = 60\n')
        (directory / "token").write_text("secret-token\n")
        rules.write_text(RULES)
        options = ("--config", str(config), "--admin-token-file", str(directory / "token"), "--rules-file", str(rules))
        url = f"redis://user:secret-pw@127.0.0.1:{upstream.port}"
        with administered(url, directory, *options) as (_, web):
            found = web.get("/config")
            assert b"secret" not in found.body and b"secret" not in web.get("/stats").body
            assert found.json["upstream"]["value"] == f"redis://user:***@127.0.0.1:{upstream.port}/0"
            assert found.json["l1_ttl"] == {"value": 60.0, "unit": "s", "origin": f"file {config}:l1_ttl"}
            assert found.json["rules"][0]["class"] == "views"
            rules.write_text("")
            until(lambda: web.get("/config").json["rules"] == [], "rules read again")

    def test_a_token_in_a_flag_is_masked(self, upstream: Process, directory: Path) -> None:
        url = f"redis://127.0.0.1:{upstream.port}"
        with administered(url, directory, "--admin-token", "secret") as (proxy, web):
            assert web.get("/config").json["admin_token"]["value"] == "***"
            assert web.post("/drain").status == 401 and web.get("/metrics").status == 200
            assert web.post("/drain", Authorization="Bearer secret").status == 200
            assert "secret" not in proxy.output


class TestListening:
    def test_https(self, upstream: Process, directory: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl on this machine")
        cert, key = directory / "cert.pem", directory / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
            check=True, capture_output=True,
        )  # fmt: skip
        options = ("--admin-tls-cert", str(cert), "--admin-tls-key", str(key))
        context = ssl.create_default_context(cafile=str(cert))
        with administered(f"redis://127.0.0.1:{upstream.port}", directory, *options, tls=context) as (proxy, web):
            assert web.get("/healthz").status == 200
            assert f"admin      https://127.0.0.1:{web.port}/" in proxy.output
            with web.connect() as sock:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert not sock.recv(100).startswith(b"HTTP")
            assert web.get("/healthz").status == 200

    def test_a_default_address_that_is_taken_is_done_without(self, upstream: Process, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # another program on this machine has it
                stack.enter_context(socket.create_server(("127.0.0.1", 9464)))
            command = ("--upstream", f"redis://127.0.0.1:{upstream.port}", "--listen", "0")
            process = stack.enter_context(launched(directory, *command, admin=True))
            assert "WARNING cannot listen on 127.0.0.1:9464: it is in use already, so metrics and health" in process.output
            assert "  admin      not served: its address is taken\n" in process.output
            with process.connect() as sock:
                sock.sendall(b"PING\r\n")
                assert read_exactly(sock, 7) == b"+PONG\r\n"

    @pytest.mark.parametrize("value", ["off", ""])
    def test_none_if_that_is_wanted(self, upstream: Process, directory: Path, value: str) -> None:
        command = ("--upstream", f"redis://127.0.0.1:{upstream.port}", "--listen", "0", "--admin-listen", value)
        with launched(directory, *command) as process:
            assert "admin" not in process.output

    def test_a_given_address_that_is_taken_ends_the_start(self, upstream: Process, directory: Path, web: Web) -> None:
        output = fails(directory, "--upstream", f"redis://127.0.0.1:{upstream.port}", "--listen", "0", "--admin-listen", str(web.port))
        assert output == (
            f"pannier: cannot listen on 127.0.0.1:{web.port}: it is in use already; stop the program that has it or "
            "choose another with --admin-listen\n"
        )

    def test_a_port_that_the_system_chooses(self, upstream: Process, directory: Path) -> None:
        url = f"redis://127.0.0.1:{upstream.port}"
        with launched(directory, "--upstream", url, "--listen", "0", "--admin-listen", "0") as process:
            found = re.search(r"admin      http://127\.0\.0\.1:(\d+)/\n", process.output)
            assert found and Web(int(found[1])).get("/readyz").status == 200
            assert process.stop() == 0

    def test_a_unix_socket(self, upstream: Process, directory: Path) -> None:
        path = directory / "admin.sock"
        url = f"redis://127.0.0.1:{upstream.port}"
        with launched(directory, "--upstream", url, "--listen", "0", "--admin-listen", f"unix://{path}") as process:
            assert f"admin      unix://{path}\n" in process.output
            assert path.exists()
            assert process.stop() == 0
            assert not path.exists()


def test_answers_are_json_for_people_too(web: Web) -> None:
    assert web.get("/healthz").body == json.dumps({"alive": True}, indent=2).encode() + b"\n"
    wait_until(lambda: web.get("/readyz").json["ready"] is True)


class TestHotKeys:
    def test_say_what_sidecar_says(self, proxy: Process, web: Web) -> None:
        with Wire(proxy.port) as wire:
            for n, size in ((1, 10), (2, 5000)):
                wire.ask("SET", f"popular:{n}", "x" * size)
                for _ in range(60 // n):
                    wire.ask("GET", f"popular:{n}")
            found = web.get("/hotkeys?n=100").json
        mine = {order: [each for each in found[order] if each["class"] == "popular"] for order in found}
        assert [each["key"] for each in mine["by_reads"]] == ["popular:1", "popular:2"]
        assert [each["key"] for each in mine["by_bytes"]] == ["popular:2", "popular:1"]
        first = mine["by_reads"][0]
        assert (first["class"], first["command"], first["namespace"], first["database"]) == ("popular", "GET", "", 0)
        assert 40 <= first["reads"] <= 80 and first["reads_per_second"] > 0
        assert mine["largest"][0]["key"] == "popular:2" and mine["largest"][0]["bytes"] > 5000

    @pytest.mark.parametrize("query", ["n=0", "n=x", "n=1001", "n=99999999", "n=000011234567", "n=1" + "9" * 5000, "m=1", "n=1&n=2", "namespace=nosuch"])
    def test_wrong_parameters_are_refused_with_the_reason(self, web: Web, query: str) -> None:
        answer = web.get(f"/hotkeys?{query}")
        assert answer.status == 400 and answer.json["reason"]

    def test_names_are_hidden_where_they_are_to_be(self, upstream: Process, tmp_path: Path) -> None:
        options = ("--key-privacy", "off")
        with administered(f"redis://127.0.0.1:{upstream.port}", tmp_path, *options) as (proxy, web):
            kept_often(proxy, "secret:name")
            shown = web.get("/hotkeys").body + web.get("/stats").body + web.get("/metrics").body
            assert web.get("/hotkeys").json["by_reads"][0]["key"] is None
        assert b"secret" not in shown


def kept_often(proxy: Process, key: str) -> None:
    with Wire(proxy.port) as wire:
        wire.ask("SET", key, "v")
        for _ in range(30):
            wire.ask("GET", key)
