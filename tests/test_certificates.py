"""Certificates: what is wrong with files is said by name, and files that change are followed."""

from __future__ import annotations

import ssl
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest

from proxy import certificates
from proxy.certificates import Certificates, Files, of_settings, validity
from proxy.resp.errors import SettingsError
from tests.certificates import HOUR, Authority, Issued


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def issued(authority: Authority) -> Issued:
    return authority.issue()


def made(issued: Issued, client_ca: str = "") -> Certificates:
    return Certificates(Files("tls", str(issued.cert), str(issued.key), client_ca))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> ssl.SSLObject:
    """The client's side after both have shaken hands in memory. Raises what the client or the server does."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname=name)
    theirs = server.wrap_bio(up, down, server_side=True)
    waiting = [ours, theirs]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    return ours


class TestWhatIsWrongIsSaid:
    @pytest.mark.parametrize("which", ["cert", "key", "client_ca"])
    def test_absent(self, issued: Issued, which: str) -> None:
        files = {"cert": str(issued.cert), "key": str(issued.key), "client_ca": str(issued.cert)} | {which: "/nope"}
        with pytest.raises(SettingsError) as caught:
            Certificates(Files("tls", **files))
        assert str(caught.value) == f"tls_{which}: '/nope' cannot be read (No such file or directory); name a PEM file"

    def test_no_certificate(self, issued: Issued) -> None:
        with pytest.raises(SettingsError, match=r"tls_cert: .*\.key' holds no certificate; name a PEM file"):
            made(Issued(issued.key, issued.key))

    def test_no_key(self, issued: Issued) -> None:
        with pytest.raises(SettingsError, match=r"tls_key: .*\.crt' holds no key; name a PEM file"):
            made(Issued(issued.cert, issued.cert))
        with pytest.raises(SettingsError, match=r"tls_cert: .*\.crt' holds no key; name the file of the key with tls_key"):
            Certificates(Files("tls", str(issued.cert)))

    def test_the_key_of_another(self, authority: Authority, issued: Issued) -> None:
        with pytest.raises(SettingsError, match=r"tls_key: the key in .* is not that of the certificate in"):
            made(Issued(issued.cert, authority.issue().key))

    def test_an_encrypted_key(self, issued: Issued) -> None:
        locked = issued.key.with_name("locked")
        command = ["openssl", "pkey", "-in", str(issued.key), "-aes128", "-passout", "pass:x", "-out", str(locked)]
        subprocess.run(command, check=True)
        with pytest.raises(SettingsError, match=r"tls_key: .*locked' holds a key that is encrypted"):
            made(Issued(issued.cert, locked))

    def test_garbage(self, tmp_path: Path, issued: Issued) -> None:
        cert = tmp_path / "garbage"
        cert.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
        with pytest.raises(SettingsError, match=r"tls_cert: .*garbage' and its key are no usable PEM files"):
            made(Issued(cert, issued.key))
        with pytest.raises(SettingsError, match=r"tls_client_ca: .*garbage' holds no certificate of an authority"):
            made(issued, str(cert))

    def test_an_authority_that_is_none(self, issued: Issued) -> None:
        with pytest.raises(SettingsError, match=r"tls_client_ca: .*\.key' holds no certificate of an authority"):
            made(issued, str(issued.key))


class TestFiles:
    def test_one_may_hold_certificate_and_key(self, authority: Authority, issued: Issued, tmp_path: Path) -> None:
        both = tmp_path / "both.pem"
        both.write_bytes(issued.key.read_bytes() + issued.cert.read_bytes())
        handshake(Certificates(Files("tls", str(both))).context, authority.trusting())

    def test_the_least_version_is_kept(self, authority: Authority, issued: Issued) -> None:
        old = authority.trusting()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        files = str(issued.cert), str(issued.key)
        handshake(Certificates(Files("tls", *files)).context, old)
        with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_PROTOCOL|ALERT_PROTOCOL_VERSION"):
            handshake(Certificates(Files("tls", *files, min_version="1.3")).context, old)

    def test_validity_is_read(self, authority: Authority) -> None:
        begins, ends = validity(str(authority.issue(begins=-HOUR, ends=HOUR).cert))
        assert begins == pytest.approx(time.time() - 3600, abs=60)
        assert ends == pytest.approx(time.time() + 3600, abs=60)

    def test_validity_beyond_2049(self, authority: Authority) -> None:
        ends = validity(str(authority.issue(ends=timedelta(days=40 * 365)).cert))[1]
        assert ends == pytest.approx(time.time() + 40 * 365 * 86400, abs=60)


class TestWarnings:
    @pytest.mark.parametrize(
        ("begins", "ends", "said"),
        [
            (-2 * HOUR, -HOUR, "has expired on"),
            (HOUR, 2 * HOUR, "is not valid before"),
            (-90 * 24 * HOUR, 6 * 24 * HOUR, "expires on"),
            (-23 * HOUR, HOUR, "expires on"),
            (-90 * 24 * HOUR, 8 * 24 * HOUR, ""),
            (-HOUR, 23 * HOUR, ""),
        ],
    )
    def test_at_the_start(
        self, authority: Authority, caplog: pytest.LogCaptureFixture, begins: timedelta, ends: timedelta, said: str
    ) -> None:
        found = authority.issue(begins=begins, ends=ends)
        of_settings("tls", str(found.cert), str(found.key))
        if not said:
            assert not caplog.records
            return
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.message.startswith(f"tls_cert: the certificate in {found.cert} {said} ")
        assert record.message.endswith(" UTC; renew it")

    def test_once_a_day_while_it_runs(self, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
        found = made(authority.issue(begins=-HOUR, ends=48 * HOUR))
        now = time.time()
        for hours in (0, 1, 40, 41, 63, 65):
            found.look(now + hours * 3600)
        assert [record.message.split()[5] for record in caplog.records] == ["expires", "has"]


class TestRotation:
    """A context is made anew, so that what is gone from the files is gone, and handshakes under way go on."""

    def test_a_new_certificate_is_shown_once_its_files_rest(self, authority: Authority, issued: Issued) -> None:
        found, client = made(issued), authority.trusting()
        before = handshake(found.context, client).getpeercert(binary_form=True)
        authority.issue(to=issued)
        found.look(0)
        assert handshake(found.context, client).getpeercert(binary_form=True) == before, "its key may be yet to come"
        found.look(0)
        assert handshake(found.context, client).getpeercert(binary_form=True) != before
        assert (found.status, found.reloads) == ("in force", 1)
        found.look(0)
        assert found.reloads == 1

    def test_one_that_comes_while_the_first_is_read_is_seen(
        self, authority: Authority, issued: Issued, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = certificates.validity

        def overtaken(path: str) -> tuple[float, float]:
            found = read(path)
            authority.issue("other", to=issued)
            return found

        monkeypatch.setattr(certificates, "validity", overtaken)
        found = made(issued)
        monkeypatch.undo()
        found.look(0)
        found.look(0)
        assert found.reloads == 1

    def test_at_once_if_asked(self, authority: Authority, issued: Issued) -> None:
        found, client = made(issued), authority.trusting()
        before = handshake(found.context, client).getpeercert(binary_form=True)
        authority.issue(to=issued)
        found.renew("SIGHUP")
        assert handshake(found.context, client).getpeercert(binary_form=True) != before

    def test_a_broken_one_leaves_the_old_in_force(
        self, authority: Authority, issued: Issued, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = made(issued)
        context, whole = found.context, issued.key.read_bytes()
        issued.key.write_text("hello")
        found.look(0)
        found.look(0)
        found.look(0)
        assert found.context is context
        (record,) = caplog.records
        assert (record.levelname, record.event) == ("ERROR", "certificate_broken")  # type: ignore[attr-defined]
        problem = f"tls_key: {str(issued.key)!r} holds no key; name a PEM file"
        assert record.message == f"a file has changed, but the old certificate stays in force: {problem}"
        assert found.status == found.trouble == problem
        issued.key.write_bytes(whole)
        found.look(0)
        found.look(0)
        assert found.status == "in force"

    def test_a_file_that_is_gone_is_a_broken_one(self, issued: Issued) -> None:
        found = made(issued)
        issued.cert.unlink()
        found.look(0)
        found.look(0)
        assert "cannot be read" in found.trouble

    def test_an_authority_that_is_gone_is_trusted_no_more(self, tmp_path: Path, issued: Issued) -> None:
        first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
        trusted = tmp_path / "trusted.pem"
        trusted.write_bytes(first.file.read_bytes() + second.file.read_bytes())
        found = made(issued, str(trusted))
        clients = [Authority.trusting(_ca_of(tmp_path), who.issue("client")) for who in (first, second)]
        for client in clients:
            handshake(found.context, client)
        trusted.write_bytes(second.file.read_bytes())
        found.renew("SIGHUP")
        handshake(found.context, clients[1])
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(found.context, clients[0])


def _ca_of(directory: Path) -> Authority:
    """What only trusts the authority whose file is there already."""
    found = object.__new__(Authority)
    found.file = directory / "ca.pem"
    return found
