"""TLS towards clients: real handshakes, good and bad, by redis-py and by the ssl module alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.certificates import HOUR, Authority, Issued
from tests.harness import ROOT, Process, free_port, give_back, pannier, redis_server, wait_until
from tests.integration.web import Web

MB = 1 << 20


@dataclass
class Served:
    """A pannier with a plain port and one with TLS."""

    proxy: Process
    tls: int
    authority: Authority
    issued: Issued
    web: Web

    def client(self, **options: Any) -> redis.Redis:
        """redis-py's, without second tries; `ssl_certfile` and the like as there."""
        chosen = {"ssl_ca_certs": str(self.authority.file), "port": self.tls, "retry": Retry(NoBackoff(), 0)} | options
        return redis.Redis(host="127.0.0.1", ssl=True, **chosen)

    def sock(self, own: Issued | None = None) -> ssl.SSLSocket:
        """A socket that has shaken hands."""
        raw = socket.create_connection(("127.0.0.1", self.tls), 10)
        return self.authority.trusting(own).wrap_socket(raw, server_hostname="localhost")

    def info(self, name: str) -> str:
        with redis.Redis(port=self.proxy.port) as client:
            return str(client.info("sidecar")[f"pannier_{name}"])

    def failed(self, cause: str) -> float:
        return self.web.metrics()("tls_handshakes_failed_total", cause=cause)


@contextlib.contextmanager
def served(upstream: Process, directory: Path, *options: str, authority: Authority | None = None,
           issued: Issued | None = None) -> Iterator[Served]:  # fmt: skip
    authority = authority or Authority(directory)
    issued = issued or authority.issue()
    tls, admin = free_port(), free_port()
    command = ("--listen", f"127.0.0.1:{tls}?tls=true", "--tls-cert", str(issued.cert), "--tls-key", str(issued.key),
               "--admin-listen", f"127.0.0.1:{admin}", *options)  # fmt: skip
    with pannier(f"redis://127.0.0.1:{upstream.port}", directory, *command) as proxy:
        yield Served(proxy, tls, authority, issued, Web(admin))
    give_back(tls)
    give_back(admin)


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def plain_tls(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that wants no certificate of its clients."""
    with served(upstream, tmp_path_factory.mktemp("tls")) as found:
        yield found


@pytest.fixture(scope="module")
def mutual(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that does."""
    directory = tmp_path_factory.mktemp("mutual")
    authority = Authority(directory)
    with served(upstream, directory, "--tls-client-ca", str(authority.file), authority=authority) as found:
        yield found


@pytest.mark.parametrize("protocol", [2, 3])
class TestEverythingWorks:
    def test_hits(self, plain_tls: Served, protocol: int) -> None:
        with plain_tls.client(protocol=protocol) as client:
            client.set("hit", "v")
            for _ in range(5):
                assert client.get("hit") == b"v"
            before = int(client.info("sidecar")["pannier_tier_hits"])
            assert client.get("hit") == b"v"
            assert int(client.info("sidecar")["pannier_tier_hits"]) == before + 1
            client.set("hit", "w")
            assert client.get("hit") == b"w"

    def test_pipelines(self, plain_tls: Served, protocol: int) -> None:
        with plain_tls.client(protocol=protocol) as client:
            for _ in range(4):
                pipeline = client.pipeline(transaction=False)
                for number in range(2000):
                    pipeline.set(f"p{number}", number)
                    pipeline.get(f"p{number}")
                assert pipeline.execute()[1::2] == [b"%d" % number for number in range(2000)]
                pipeline.mget([f"p{number}" for number in range(500)]).get("p1").get("p2")
                assert pipeline.execute()[1:] == [b"1", b"2"]

    def test_large_values_both_ways(self, plain_tls: Served, protocol: int) -> None:
        with plain_tls.client(protocol=protocol) as client:
            value = os.urandom(MB) * 20
            client.set("large", value)
            assert client.get("large") == value
            assert client.strlen("large") == len(value)
            half = value[: MB // 2]
            client.set("half", half)
            for _ in range(4):
                assert client.get("half") == half

    def test_transactions(self, plain_tls: Served, protocol: int) -> None:
        with plain_tls.client(protocol=protocol) as client, client.pipeline() as pipeline:
            pipeline.watch("m")
            pipeline.multi()
            pipeline.set("m", 1).incr("m").get("m")
            assert pipeline.execute() == [True, 2, b"2"]

    def test_pub_sub(self, plain_tls: Served, protocol: int) -> None:
        with plain_tls.client(protocol=protocol) as client, client.pubsub() as pubsub:
            pubsub.subscribe("news")
            assert (pubsub.get_message(timeout=10) or {})["type"] == "subscribe"
            assert client.publish("news", "x" * MB) == 1
            assert (pubsub.get_message(timeout=10) or {})["data"] == b"x" * MB

    def test_blocking(self, plain_tls: Served, protocol: int) -> None:
        with plain_tls.client(protocol=protocol) as client, plain_tls.client(protocol=protocol) as other:
            got: list[Any] = []
            waiter = threading.Thread(target=lambda: got.append(client.blpop(["queue"], timeout=10)))
            waiter.start()
            wait_until(lambda: other.info("clients")["blocked_clients"])
            other.rpush("queue", "job")
            waiter.join(10)
            assert [tuple(found) for found in got] == [(b"queue", b"job")]

    def test_what_is_asked_with_the_last_message_of_the_handshake(self, plain_tls: Served, protocol: int) -> None:
        for _ in range(20):
            with plain_tls.sock() as sock:
                sock.sendall(b"HELLO %d\r\nPING\r\nQUIT\r\n" % protocol)
                found = b""
                while data := sock.recv(1 << 16):
                    found += data
                assert found.endswith(b"+PONG\r\n+OK\r\n")


class TestFigures:
    def test_handshakes_are_counted(self, plain_tls: Served) -> None:
        before = plain_tls.web.metrics()("tls_handshakes_total")
        plain_tls.sock().close()
        wait_until(lambda: plain_tls.web.metrics()("tls_handshakes_total") == before + 1)
        assert plain_tls.web.metrics()("certificate_expiry_timestamp_seconds", setting="tls_cert") > 1e9


class TestFlow:
    def test_a_client_that_does_not_read_is_held_up_and_then_closed(self, upstream: Process, directory: Path) -> None:
        """What it does not take is counted, also what one write has handed to the socket."""
        options = ("--output-buffer-limit", "8mb", "--output-buffer-soft-limit", "4mb", "--max-memory", "64mb",
                   "--log-format", "text")  # fmt: skip
        with served(upstream, directory, *options) as found, found.sock() as sock, found.client() as other:
            other.set("big", os.urandom(512 * 1024))
            for _ in range(4):
                other.get("big")
            sock.sendall(b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n" * 100)  # 50 MB at once, from memory
            wait_until(lambda: "bytes of replies not read" in found.proxy.output)
            assert found.info("killed_connections") == "1"
            assert other.ping()

    @pytest.fixture
    def exact(self, upstream: Process, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
        """One whose resident memory is what it holds: glibc gives back at once what has been freed (mallopt(3))."""
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
        with served(upstream, directory) as found:
            yield found

    async def test_a_slow_reader_stops_the_reading_of_its_commands(self, exact: Served) -> None:
        text, count = b"$100000\r\n" + os.urandom(50000).hex().encode() + b"\r\n", 800  # 80 MB
        before = exact.proxy.rss
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", exact.tls, ssl=exact.authority.trusting(), server_hostname="localhost"
        )
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(count):
                writer.write(b"*2\r\n$4\r\nECHO\r\n" + text)
                await writer.drain()
                sent += 1

        sender = asyncio.create_task(send())
        last = -1
        while sent != last or not sent:  # until it does not get on
            last = sent
            await asyncio.sleep(0.5)
        assert sent < count * 2 // 3
        with exact.client() as other:
            (unread,) = [int(line["obl"]) for line in other.client_list() if int(line["obl"])]
        assert MB < unread < 32 * MB
        assert exact.proxy.rss < before + 40 * MB
        for _ in range(count):
            assert await reader.readexactly(len(text)) == text
        await sender
        writer.close()
        await writer.wait_closed()

    def test_a_client_that_sends_without_reading_is_not_read_for_ever(self, plain_tls: Served) -> None:
        """pause_reading holds: what waits behind a blocking command is bounded."""
        with plain_tls.client() as other, plain_tls.sock() as sock:
            before = plain_tls.proxy.rss
            sock.sendall(b"BLPOP never 0\r\n")
            wait_until(lambda: other.info("clients")["blocked_clients"])
            sock.settimeout(1)
            data = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\n" + b"x" * 100000 + b"\r\n"
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 64 * MB:
                    sock.sendall(data)
                    sent += len(data)
            assert sent < 32 * MB
            assert plain_tls.proxy.rss < before + 16 * MB

    def test_the_end_of_one_side_is_the_end(self, plain_tls: Served) -> None:
        with plain_tls.sock() as sock:
            sock.sendall(b"PING\r\n")
            assert sock.recv(100) == b"+PONG\r\n"
            sock.sendall(b"DEBUG SLEEP 0\r\nPING\r\n")
            with contextlib.suppress(OSError):
                sock.unwrap()
        with plain_tls.client() as client:
            assert client.ping()
        assert "has no effect" not in plain_tls.proxy.output


class TestBadHandshakes:
    """They are counted by cause, said in plain words, and disturb nobody."""

    @pytest.fixture(autouse=True)
    def undisturbed(self, mutual: Served) -> Iterator[None]:
        own = mutual.authority.issue("client")
        with mutual.client(ssl_certfile=str(own.cert), ssl_keyfile=str(own.key)) as client:
            client.ping()
            yield
            assert client.ping()

    def fails(
        self, mutual: Served, cause: str, said: str, own: Issued | None = None, ca: Authority | None = None, heard: str | None = None
    ) -> None:
        before = mutual.failed(cause)
        files = {"ssl_certfile": str(own.cert), "ssl_keyfile": str(own.key)} if own else {}
        client = mutual.client(ssl_ca_certs=str((ca or mutual.authority).file), **files)
        with client, pytest.raises(redis.ConnectionError, match=heard):
            client.ping()
        wait_until(lambda: mutual.failed(cause) == before + 1)
        assert re.search(said, mutual.proxy.output), mutual.proxy.output

    def test_no_certificate(self, mutual: Served) -> None:
        self.fails(mutual, "certificate", "WARNING client .* refused: it shows no certificate, and this listener wants one",
                   heard="alert certificate required")  # fmt: skip

    def test_a_certificate_of_another_authority(self, mutual: Served, directory: Path) -> None:
        own = Authority(directory, "other").issue("client")
        self.fails(mutual, "certificate", r"its certificate is not accepted \(unable to get local issuer certificate\)", own,
                   heard="alert unknown ca")  # fmt: skip

    def test_an_expired_certificate(self, mutual: Served) -> None:
        own = mutual.authority.issue("client", begins=-2 * HOUR, ends=-HOUR)
        self.fails(mutual, "certificate", r"its certificate is not accepted \(certificate has expired\)", own,
                   heard="alert certificate expired")  # fmt: skip

    def test_a_client_that_does_not_trust_us(self, mutual: Served, directory: Path) -> None:
        other = Authority(directory, "other")
        self.fails(mutual, "certificate", r"it does not accept our certificate \(tlsv1 alert unknown ca\)", ca=other)

    def test_a_wrong_host_name(self, mutual: Served) -> None:
        context = mutual.authority.trusting()
        raw = socket.create_connection(("127.0.0.1", mutual.tls), 10)
        with raw, pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            context.wrap_socket(raw, server_hostname="example.com")

    @pytest.mark.parametrize("data", [b"PING\r\n", b"*1\r\n$4\r\nPING\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100])
    def test_a_client_without_tls(self, mutual: Served, data: bytes) -> None:
        before = mutual.failed("plain")
        with socket.create_connection(("127.0.0.1", mutual.tls), 5) as raw:
            raw.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(100):
                    pass
        wait_until(lambda: mutual.failed("plain") == before + 1)
        assert re.search("INFO    client .* did not come to speak TLS: it speaks without TLS", mutual.proxy.output)

    def test_old_versions(self, mutual: Served) -> None:
        before = mutual.failed("version")
        hello = bytes.fromhex("16030100 2d 010000 29 0301") + bytes(32) + bytes.fromhex("00 0002 002f 0100")
        hello = b"\x16\x03\x01" + (len(hello) - 5).to_bytes(2, "big") + b"\x01" + (len(hello) - 9).to_bytes(3, "big") + hello[9:]
        with socket.create_connection(("127.0.0.1", mutual.tls), 5) as raw:
            raw.sendall(hello)
            assert raw.recv(100)[:2] == b"\x15\x03"  # an alert
        wait_until(lambda: mutual.failed("version") == before + 1)

    def test_who_only_looks_is_not_worth_a_line(self, mutual: Served) -> None:
        before, length = mutual.failed("gone"), len(mutual.proxy.output)
        for _ in range(3):
            socket.create_connection(("127.0.0.1", mutual.tls), 5).close()
        wait_until(lambda: mutual.failed("gone") == before + 3)
        assert mutual.proxy.output[length:] == ""

    def test_a_scanner_does_not_flood_the_log(self, upstream: Process, directory: Path) -> None:
        with served(upstream, directory) as found:
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", found.tls), 5) as raw:
                    raw.sendall(b"scan\r\n\r\n")
            wait_until(lambda: found.failed("plain") == 50)
            assert found.proxy.output.count("did not come to speak TLS") == 5
            found.proxy.stop()
            assert "... 45 more in the last minute" in found.proxy.output


class TestTLSOnAPlainPort:
    def test_is_answered_at_once_and_named(self, plain_tls: Served) -> None:
        with plain_tls.client(port=plain_tls.proxy.port) as client, pytest.raises(redis.ConnectionError, match="WRONG_VERSION"):
            client.ping()
        wait_until(lambda: "closed: it speaks TLS on a listener without; connect without" in plain_tls.proxy.output)

    def test_the_bytes_elsewhere_mean_nothing(self, plain_tls: Served) -> None:
        with plain_tls.proxy.connect() as sock:
            sock.sendall(b"PING\r\n")
            assert sock.recv(100) == b"+PONG\r\n"
            sock.sendall(b"\x16\x03x\r\n")
            assert sock.recv(100).startswith(b"-ERR unknown command")


class TestPlaces:
    def test_a_handshake_takes_one(self, upstream: Process, directory: Path) -> None:
        with served(upstream, directory, "--max-clients", "3") as found, found.sock() as inside:
            inside.sendall(b"PING\r\n")
            assert inside.recv(100) == b"+PONG\r\n"
            waiting = [socket.create_connection(("127.0.0.1", found.tls), 10) for _ in range(2)]
            with socket.create_connection(("127.0.0.1", found.tls), 10) as one_more:
                assert one_more.recv(100) == b""
            with found.proxy.connect() as sock:
                assert sock.recv(100) == b"-ERR max number of clients reached\r\n"
            assert "rejected before TLS began: too many connections" in found.proxy.output
            for sock in waiting:
                sock.close()
            wait_until(lambda: found.failed("gone") == 2)
            assert found.failed("full") == 1
            with found.sock() as second, found.sock() as third:
                for sock in (second, third):
                    sock.sendall(b"PING\r\n")
                    assert sock.recv(100) == b"+PONG\r\n"

    def test_all_of_them_can_be_clients(self, upstream: Process, directory: Path) -> None:
        with served(upstream, directory, "--max-clients", "20") as found, contextlib.ExitStack() as stack:
            raws = [stack.enter_context(socket.create_connection(("127.0.0.1", found.tls), 10)) for _ in range(20)]
            context = found.authority.trusting()
            for raw in raws:
                sock = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
                sock.sendall(b"PING\r\n")
                assert sock.recv(100) == b"+PONG\r\n"


class TestRotation:
    def test_new_handshakes_get_the_new_certificate_and_nobody_is_disconnected(
        self, upstream: Process, directory: Path
    ) -> None:
        with served(upstream, directory) as found, found.sock() as old:
            before = old.getpeercert(binary_form=True)

            def shown() -> bytes | None:
                with found.sock() as sock:
                    return sock.getpeercert(binary_form=True)

            assert shown() == before
            found.authority.issue(to=found.issued)
            wait_until(lambda: shown() != before)
            found.authority.issue(to=found.issued)
            second = shown()
            found.proxy.signal(signal.SIGHUP)
            wait_until(lambda: shown() != second)
            old.sendall(b"PING\r\n")
            assert old.recv(100) == b"+PONG\r\n"
            assert found.info("tls_status") == "in force"
            assert found.web.metrics()("certificate_broken", setting="tls_cert") == 0

    def test_a_broken_file_leaves_the_old_one_in_force(self, upstream: Process, directory: Path) -> None:
        with served(upstream, directory) as found:
            found.issued.cert.write_text("hello")
            found.proxy.signal(signal.SIGHUP)
            wait_until(lambda: "SIGHUP, but the old certificate stays in force: tls_cert: " in found.proxy.output)
            assert found.info("tls_status").endswith("holds no certificate; name a PEM file")
            assert found.web.metrics()("certificate_broken", setting="tls_cert") == 1
            with found.client() as client:
                assert client.ping()
            found.authority.issue(to=found.issued)
            wait_until(lambda: found.info("tls_status") == "in force")

    def test_clients_of_an_authority_that_is_gone(self, upstream: Process, directory: Path) -> None:
        authority, other = Authority(directory), Authority(directory, "other")
        trusted = directory / "trusted.pem"
        trusted.write_bytes(authority.file.read_bytes() + other.file.read_bytes())
        own = other.issue("client")
        files = {"ssl_certfile": str(own.cert), "ssl_keyfile": str(own.key)}
        server = served(upstream, directory, "--tls-client-ca", str(trusted), authority=authority)
        with server as found, found.client(**files) as inside:
            assert inside.ping()
            trusted.write_bytes(authority.file.read_bytes())
            found.proxy.signal(signal.SIGHUP)
            wait_until(lambda: found.info("tls_reloads") != "0")
            assert inside.ping(), "who is inside stays"
            with found.client(**files) as again, pytest.raises(redis.ConnectionError):
                again.ping()

    def test_of_the_administration(self, upstream: Process, directory: Path) -> None:
        authority = Authority(directory)
        issued, admin = authority.issue(), free_port()
        options = ("--admin-listen", f"127.0.0.1:{admin}", "--admin-tls-cert", str(issued.cert), "--admin-tls-key",
                   str(issued.key))  # fmt: skip
        with pannier(f"redis://127.0.0.1:{upstream.port}", directory, *options) as proxy:

            def shown() -> bytes | None:
                raw = socket.create_connection(("127.0.0.1", admin), 10)
                with authority.trusting().wrap_socket(raw, server_hostname="localhost") as sock:
                    return sock.getpeercert(binary_form=True)

            before = shown()
            authority.issue(to=issued)
            proxy.signal(signal.SIGHUP)
            wait_until(lambda: shown() != before)
            assert Web(admin, authority.trusting()).get("/healthz").status == 200
        give_back(admin)


class TestTheStart:
    @pytest.mark.parametrize("which", ["--tls-cert", "--tls-key", "--tls-client-ca"])
    def test_ends_with_a_wrong_file(self, directory: Path, which: str) -> None:
        issued = Authority(directory).issue()
        files = {"--tls-cert": str(issued.cert), "--tls-key": str(issued.key)} | {which: "/nope"}
        options = [word for pair in files.items() for word in pair]
        command = [sys.executable, "-m", "proxy", "--upstream", "redis://127.0.0.1:1", "--listen", "0?tls=true",
                   "--admin-listen", "off", *options]  # fmt: skip
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
        name = which[2:].replace("-", "_")
        assert ended.stderr.endswith(f"pannier: {name}: '/nope' cannot be read (No such file or directory); name a PEM file\n")
        assert ended.returncode == 2

    def test_warns_of_a_certificate_that_has_expired(self, upstream: Process, directory: Path) -> None:
        authority = Authority(directory)
        issued = authority.issue(begins=-2 * HOUR, ends=-HOUR)
        with served(upstream, directory, authority=authority, issued=issued) as found:
            assert re.search(r"WARNING tls_cert: the certificate in .* has expired on", found.proxy.output)
            with found.client() as client, pytest.raises(redis.ConnectionError, match="certificate has expired"):
                client.ping()
            with redis.Redis(port=found.proxy.port) as client:
                assert client.ping()

    def test_who_connects_is_told_to_who_debugs(self, upstream: Process, directory: Path) -> None:
        authority = Authority(directory)
        own = authority.issue("client")
        options = ("--log-level", "debug", "--tls-client-ca", str(authority.file))
        with served(upstream, directory, *options, authority=authority) as found:
            with found.client(ssl_certfile=str(own.cert), ssl_keyfile=str(own.key)) as client:
                client.ping()
            wait_until(lambda: re.search(r"client 127\.0\.0\.1:\d+ disconnected", found.proxy.output))
            assert re.search(r"client 127\.0\.0\.1:\d+ connected with TLSv1\.3 as O=trustme", found.proxy.output)
