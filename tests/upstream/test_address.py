"""Addresses as people write them; no test here opens a socket but the one that fails to bind."""

from __future__ import annotations

import dataclasses
import errno
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.address import AddressError, Listen, Upstream, cannot_listen, check_namespace, mask

SECRET = "s3cr3t"


class TestUpstreamUrlsAreReadAsRedisPyReadsThem:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://h", Upstream("h")),
            ("redis://", Upstream("localhost")),
            ("REDIS://h:1234", Upstream("h", 1234)),
            ("redis://h/3", Upstream("h", db=3)),
            ("redis://h/", Upstream("h")),
            ("redis://h?db=4", Upstream("h", db=4)),
            ("redis://h/3?db=4", Upstream("h", db=4)),
            ("redis://u:p@h:1/2", Upstream("h", 1, db=2, username="u", password="p")),
            ("redis://:p@h", Upstream("h", password="p")),
            ("redis://u@h", Upstream("h", username="u", password="")),
            ("redis://:@h", Upstream("h")),
            ("redis://u%3A:p%40%2F%3F%23%25@h", Upstream("h", username="u:", password="p@/?#%")),
            ("redis://h?username=u&password=p%40", Upstream("h", username="u", password="p@")),
            ("redis://[::1]:7/1", Upstream("::1", 7, db=1)),
            ("redis://u:p@[fe80::1%25eth0]", Upstream("fe80::1%eth0", username="u", password="p")),
            ("rediss://h", Upstream("h", tls=True)),
            (
                "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
                Upstream(
                    "h",
                    tls=True,
                    ssl_cert_reqs="none",
                    ssl_ca_certs="/ca.pem",
                    ssl_certfile="/c.pem",
                    ssl_keyfile="/k.pem",
                ),
            ),
            ("rediss://h?ssl_sni=r.example.com", Upstream("h", tls=True, ssl_sni="r.example.com")),
            ("rediss://h?ssl_min_version=1.3", Upstream("h", tls=True, ssl_min_version="1.3")),
            ("rediss://h?ssl_min_version=772", Upstream("h", tls=True, ssl_min_version="1.3")),
            ("rediss://h?ssl_check_hostname=False", Upstream("h", tls=True, ssl_check_hostname=False)),
            ("unix:///run/r.sock", Upstream(path="/run/r.sock")),
            ("unix:///run/r.sock?db=2&password=p", Upstream(path="/run/r.sock", db=2, password="p")),
            ("unix://u:p@/r.sock", Upstream(path="/r.sock", username="u", password="p")),
            ("unix:///run/a%20b@c.sock", Upstream(path="/run/a b@c.sock")),
            ("redis://h/0?decode_responses=True&socket_timeout=5&protocol=3", Upstream("h")),
            ("  redis://h \n", Upstream("h")),
        ],
    )
    def test_good(self, url: str, expected: Upstream) -> None:
        assert Upstream.parse(url) == expected

    @pytest.mark.parametrize(
        ("url", "part"),
        [
            ("h:6379", "is not a Redis URL; give a URL such as redis://host:6379/0"),
            ("http://h", "is not a Redis URL"),
            ("redis://h:port", "a number from 1 to 65535"),
            ("redis://h:0", "a number from 1 to 65535"),
            ("redis://h:65536", "a number from 1 to 65535"),
            ("redis://::1:6379", "in brackets, as in [::1]:6380"),
            ("redis://[::1", "write it as in [::1]:6380"),
            ("redis://[::1]6379", "write it as in [::1]:6380"),
            ("redis://[h]:1", "no IPv6 address between its brackets"),
            ("redis://h h:1", "give a name or an IP address"),
            ("redis://h/a", "database that is no whole number"),
            ("redis://h/1/2", "database that is no whole number"),
            ("redis://h?db=-1", "database that is no whole number"),
            ("redis://h?dbb=1", "did you mean db?"),
            ("redis://h?zzz=1", "known are db, username"),
            ("redis://h?ssl_ca_certs=/ca", "write rediss://"),
            ("rediss://h?ssl_cert_reqs=maybe", "give none or required"),
            ("rediss://h?ssl_check_hostname=maybe", "give true or false"),
            ("rediss://h?ssl_sni=a%20b", "no name of a host; give one such as redis.example.com"),
            ("rediss://h?ssl_min_version=1.1", "give 1.2 or 1.3"),
            ("rediss://h?ssl_keyfile=/k", "of no use without ssl_certfile"),
            ("unix://relative.sock", "no absolute socket path"),
            ("unix://", "no absolute socket path"),
            ("unix:///" + "x" * 107, "at most 107 bytes"),
        ],
    )
    def test_bad(self, url: str, part: str) -> None:
        with pytest.raises(AddressError) as caught:
            Upstream.parse(url)
        assert part in str(caught.value)


class TestPasswordsAreNeverShown:
    @pytest.mark.parametrize(
        ("url", "redacted"),
        [
            (f"redis://u:{SECRET}@h", "redis://u:***@h:6379/0"),
            (f"redis://:{SECRET}@h:1/2", "redis://:***@h:1/2"),
            (f"redis://{SECRET}@h", "redis://***@h:6379/0"),
            (f"unix:///r.sock?db=1&password={SECRET}", "unix://:***@/r.sock?db=1"),
            (
                f"rediss://u:{SECRET}@[::1]?ssl_cert_reqs=none",
                "rediss://u:***@[::1]:6379/0?ssl_cert_reqs=none",
            ),
            (
                "rediss://h?ssl_check_hostname=no&ssl_ca_certs=/c&ssl_sni=n",
                "rediss://h:6379/0?ssl_ca_certs=/c&ssl_check_hostname=false&ssl_sni=n",
            ),
        ],
    )
    def test_of_a_good_url(self, url: str, redacted: str) -> None:
        upstream = Upstream.parse(url)
        assert upstream.redacted == str(upstream) == redacted
        assert SECRET not in repr(upstream)

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://u:{SECRET}@h:x",
            f"redis://u:{SECRET}/{SECRET}@h",
            f"redis://u:a?{SECRET}@h",
            f"redis://u:a@{SECRET}?{SECRET}@h",
            f"redis://u:a#{SECRET}@h",
            f"unix://u:{SECRET}/{SECRET}@/r.sock",
            f"redis://:{SECRET}",
            f"redis://u:{SECRET}",
            f"redis://h:1/x?password={SECRET}",
            f"redis://h:1/x?PASSWORD={SECRET}&b@{SECRET}",
            f"u:{SECRET}@h:1",
            f"http://{SECRET}@h",
        ],
    )
    def test_of_a_bad_url(self, url: str) -> None:
        with pytest.raises(AddressError) as caught:
            Upstream.parse(url)
        assert SECRET not in str(caught.value)
        assert "***" in str(caught.value)

    @given(st.text(), st.text(), st.text())
    def test_of_any_text(self, user: str, password: str, rest: str) -> None:
        # No < but the password's own: what is looked for must not stand elsewhere by chance.
        user, rest = re.sub("[:<]", "", user), re.sub("[@<]", "", rest)
        masked = mask(f"redis://{user}:<{password}>@{rest}")
        assert f"<{password}>" not in masked

    @given(st.text())
    def test_any_text_parses_or_is_an_address_error(self, text: str) -> None:
        for candidate in (text, "redis://" + text, "rediss://[" + text, "unix:///" + text):
            for parse in (Upstream.parse, Listen.parse):
                try:
                    parse(candidate)
                except AddressError as error:
                    assert ";" in str(error)  # what is wrong; what would be right


class TestListenAddresses:
    @pytest.mark.parametrize(
        ("text", "expected", "shown"),
        [
            ("127.0.0.1:6380", Listen(), "127.0.0.1:6380"),
            ("6381", Listen("127.0.0.1", 6381), "127.0.0.1:6381"),
            (":6380", Listen(None, 6380), "*:6380"),
            ("*:6380", Listen(None, 6380), "*:6380"),
            ("localhost:0", Listen("localhost", 0), "localhost:0"),
            ("[::1]:6380", Listen("::1", 6380), "[::1]:6380"),
            ("tcp://[::]:1", Listen("::", 1), "[::]:1"),
            ("TCP://h:1/", Listen("h", 1), "h:1"),
            ("unix:///run/p.sock", Listen(None, 0, "/run/p.sock", 0o600), "unix:///run/p.sock"),
            ("unix:///p.sock?mode=660", Listen(None, 0, "/p.sock", 0o660), "unix:///p.sock?mode=660"),
            ("unix:///p%2Cq?mode=0777", Listen(None, 0, "/p,q", 0o777), "unix:///p%2Cq?mode=777"),
            ("6381?namespace=a", Listen(port=6381, namespace="a"), "127.0.0.1:6381?namespace=a"),
            (":1?namespace=a:b", Listen(None, 1, namespace="a:b"), "*:1?namespace=a:b"),
            ("[::1]:1?namespace=", Listen("::1", 1, namespace=""), "[::1]:1?namespace="),
            ("tcp://h:1/?namespace=a%2Cb", Listen("h", 1, namespace="a,b"), "h:1?namespace=a%2Cb"),
            ("h:1?namespace=a+b?", Listen("h", 1, namespace="a+b?"), "h:1?namespace=a%2Bb%3F"),
            ("h:1?namespace=%C3%A9*", Listen("h", 1, namespace="é*"), "h:1?namespace=%C3%A9%2A"),
            (
                "unix:///p?namespace=a&mode=660",
                Listen(None, 0, "/p", 0o660, "a"),
                "unix:///p?mode=660&namespace=a",
            ),
            ("h:1?tls=true", Listen("h", 1, tls=True), "h:1?tls=true"),
            ("1?tls=yes&namespace=a", Listen(port=1, tls=True, namespace="a"), "127.0.0.1:1?tls=true&namespace=a"),
            ("h:1?tls=false", Listen("h", 1), "h:1"),
            ("unix:///p?group=app", Listen(None, 0, "/p", group="app"), "unix:///p?group=app"),
            (
                "unix:///p?group=1000&mode=660",
                Listen(None, 0, "/p", 0o660, group="1000"),
                "unix:///p?mode=660&group=1000",
            ),
            ("unix:///p?namespace=a", Listen(None, 0, "/p", 0o600, "a"), "unix:///p?namespace=a"),
        ],
    )
    def test_good(self, text: str, expected: Listen, shown: str) -> None:
        assert Listen.parse(text) == expected
        assert str(expected) == shown
        assert Listen.parse(shown) == expected

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("localhost", "has no port"),
            ("", "has no port"),
            ("[::1]", "has no port"),
            ("h:", "a number from 0 to 65535"),
            ("h:65536", "a number from 0 to 65535"),
            ("99999", "a number from 0 to 65535"),
            ("::1:6380", "in brackets, as in [::1]:6380"),
            ("http://h:1", "is no address to listen on"),
            ("unix://p.sock", "no absolute socket path"),
            ("unix:///p.sock?mode=999", "octal permission"),
            ("unix:///p.sock?perm=660", "known are mode, group and namespace, as in ?mode=660"),
            ("unix:///p.sock?mode=660&mode=600", "has two of mode; give it once"),
            ("h:1?mode=660", "known are tls and namespace, as in ?namespace=agent_service"),
            ("h:1?tls=maybe", "has an unknown tls; give true or false"),
            ("unix:///p.sock?tls=true", "never leaves the machine; leave it out"),
            ("unix:///p.sock?group=a%20b", "neither a name nor a number; give one such as ?group=app"),
            ("unix:///p.sock?group=", "neither a name nor a number"),
            ("h:1?group=app", "known are tls and namespace"),
            ("h:1?namespace=a&namespace=b", "has two of namespace; give it once"),
            ("h:1?namespace=a%20b", "has a namespace that has white space or a control character; give"),
            ("h:1?namespace=a:", "has a namespace that begins or ends with a colon; leave it out"),
            ("h:1?namespace=%FF", "has a namespace that is not UTF-8; percent-encode its UTF-8"),
            ("h:1?namespace=a://b", "has a namespace that is a URL; give a prefix"),
            ("?namespace=a", "has no port"),
            ("unix:///" + "x" * 107, "at most 107 bytes"),
        ],
    )
    def test_bad(self, text: str, part: str) -> None:
        with pytest.raises(AddressError) as caught:
            Listen.parse(text)
        assert part in str(caught.value)
        assert repr(text)[:20] in str(caught.value)

    @given(st.text(max_size=20), st.sampled_from([Listen("h", 1), Listen(None, 0, "/p"), Listen("::1", 0)]))
    def test_any_namespace_reads_back(self, text: str, listen: Listen) -> None:
        try:
            listen = dataclasses.replace(listen, namespace=check_namespace(text))
        except ValueError as error:
            assert "; " in str(error)
        else:
            assert Listen.parse(str(listen)) == listen
            assert "," not in str(listen)  # which separates addresses

    def test_the_place_is_what_is_bound(self) -> None:
        assert Listen.parse("h:1?namespace=a").place == Listen.parse("h:1").place != Listen.parse("h:2").place
        assert Listen.parse("unix:///p?mode=660").place == Listen.parse("unix:///p?namespace=a").place


class TestNamespaces:
    @pytest.mark.parametrize("text", ["", "a", "agent_service", "a:b", "a::b", "[a]*?", "é" * 32, "x" * 64])
    def test_good(self, text: str) -> None:
        assert check_namespace(text) == text

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a b", "has white space or a control character; give a prefix such as agent_service"),
            ("a\n", "has white space or a control character; give a prefix such as agent_service"),
            ("a\0", "has white space or a control character; give a prefix such as agent_service"),
            ("a\xa0", "has white space or a control character; give a prefix such as agent_service"),
            ("\udcff", "has white space or a control character; give a prefix such as agent_service"),
            ("é" * 33, "is too long; a namespace has at most 64 bytes"),
            (":", "begins or ends with a colon; leave it out, Pannier puts one after the namespace"),
            (":a", "begins or ends with a colon; leave it out, Pannier puts one after the namespace"),
            ("a:", "begins or ends with a colon; leave it out, Pannier puts one after the namespace"),
            ("redis://h", "is a URL; give a prefix such as agent_service"),
        ],
    )
    def test_bad(self, text: str, said: str) -> None:
        with pytest.raises(ValueError) as caught:
            check_namespace(text)
        assert str(caught.value) == said


class TestWhyAnAddressCannotBeBound:
    def test_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = Listen("127.0.0.1", taken.getsockname()[1])
            with pytest.raises(OSError) as caught, socket.socket() as second:
                second.bind((listen.host, listen.port))
        assert str(cannot_listen(listen, caught.value)) == (
            f"cannot listen on {listen}: it is in use already; "
            "stop the program that has it or choose another with --listen"
        )

    @pytest.mark.parametrize(
        ("text", "number", "part"),
        [
            ("h:80", errno.EACCES, "ports below 1024 need privileges"),
            ("unix:///r/p.sock", errno.EACCES, "Permission denied"),
            ("10.9.8.7:1", errno.EADDRNOTAVAIL, "no interface of this machine has that address"),
            ("unix:///r/p.sock", errno.ENOENT, "there is no directory /r"),
            ("h:1", socket.EAI_NONAME, "Name or service not known"),
        ],
    )
    def test_others(self, text: str, number: int, part: str) -> None:
        words = "Name or service not known" if number < 0 else "Permission denied"
        assert part in str(cannot_listen(Listen.parse(text), OSError(number, words)))
