"""TLS files that cannot be used end the start with a text that names them."""

from pathlib import Path

import pytest

from proxy.resp.errors import SettingsError
from proxy.upstream.address import Upstream
from proxy.upstream.sockets import tls_context


class TestWrongFilesAreNamed:
    @pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
    def test_absent(self, option: str) -> None:
        with pytest.raises(SettingsError, match=f"{option}: '/nope' cannot be read"):
            tls_context(Upstream.parse(f"rediss://h?{option}=/nope"))

    def test_no_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("hello")
        with pytest.raises(SettingsError, match="is no usable PEM file"):
            tls_context(Upstream.parse(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem"))

    def test_verification_is_on_unless_the_url_says_otherwise(self) -> None:
        assert tls_context(Upstream.parse("rediss://h")).check_hostname
        assert not tls_context(Upstream.parse("rediss://h?ssl_cert_reqs=none")).check_hostname
