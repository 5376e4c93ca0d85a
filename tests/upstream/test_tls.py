"""TLS files that cannot be used end the start with a text that names them."""

from pathlib import Path

import pytest

from proxy.resp.errors import SettingsError
from proxy.upstream.address import Upstream
from proxy.upstream.tls import tls_context
from tests.certificates import Authority


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority(tmp_path_factory.mktemp("ca")).issue("localhost").cert


class TestWrongFilesAreNamed:
    @pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
    def test_absent(self, option: str, certificate: Path) -> None:
        url = f"rediss://h?{option}=/nope"
        if option == "ssl_keyfile":
            url += f"&ssl_certfile={certificate}"
        with pytest.raises(SettingsError, match=rf"{option}: '/nope' cannot be read \(No such file"):
            tls_context(Upstream.parse(url))

    def test_no_certificate(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("hello")
        with pytest.raises(SettingsError, match=r"ssl_ca_certs: .*ca\.pem' holds no certificate of an authority"):
            tls_context(Upstream.parse(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem"))

    def test_verification_is_on_unless_the_url_says_otherwise(self) -> None:
        assert tls_context(Upstream.parse("rediss://h")).check_hostname
        assert not tls_context(Upstream.parse("rediss://h?ssl_cert_reqs=none")).check_hostname
