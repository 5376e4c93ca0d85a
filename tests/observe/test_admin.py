"""Who may ask the administration for what."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.kinds import Secret
from proxy.observe.admin import Admin, only_here
from proxy.observe.answers import Answer, Refused, report
from proxy.observe.http import Request
from proxy.resp.errors import SettingsError
from proxy.settings import Settings
from proxy.upstream.address import Listen

HERE, EVERYWHERE = Listen(port=9464), Listen(None, 9464)
TOKEN = Secret("s3cr3t")
SHOWN = {"authorization": "Bearer s3cr3t"}


def admin(**settings: Any) -> Admin:
    """With a page to read, two probes, and one that changes something."""
    made = Admin(Settings(**settings))
    for path in ("/page", "/healthz", "/readyz"):
        made.add("GET", path, lambda request: report("read"))

    async def change(request: Request) -> Answer:
        return report("changed")

    made.add("POST", "/change", change)
    return made


async def ask(made: Admin, method: str = "GET", path: str = "/page", **fields: str) -> int:
    """The status of the answer."""
    named = {"host": "127.0.0.1:9464", **{name.replace("_", "-"): value for name, value in fields.items()}}
    try:
        return (await made.answer(Request(method, path, (), named))).status
    except Refused as refused:
        return refused.answer.status


async def change(made: Admin, **fields: str) -> int:
    return await ask(made, "POST", "/change", **fields)


class TestRoutes:
    async def test_other_paths(self) -> None:
        assert await ask(admin(), path="/other") == 404
        assert await ask(admin(), path="/page/") == 404

    async def test_other_methods(self) -> None:
        with pytest.raises(Refused) as caught:
            await admin().answer(Request("PUT", "/page"))
        assert caught.value.answer.status == 405
        assert caught.value.answer.fields == (("Allow", "GET, HEAD"),)
        with pytest.raises(Refused) as caught:
            await admin().answer(Request("GET", "/change"))
        assert caught.value.answer.fields == (("Allow", "POST"),)

    async def test_head_is_get(self) -> None:
        assert await ask(admin(), "HEAD") == 200

    async def test_one_more_is_one_line(self) -> None:
        made = admin()
        made.add("GET", "/", lambda request: Answer(b"<html>", kind="text/html"))
        assert await ask(made, path="/") == 200


class TestChanges:
    @pytest.mark.parametrize(
        ("listen", "allowed", "token", "status"),
        [
            (HERE, "auto", False, 200),
            (HERE, "on", False, 200),
            (HERE, "off", False, 403),
            (EVERYWHERE, "auto", False, 403),
            (EVERYWHERE, "on", False, 200),
            (EVERYWHERE, "off", False, 403),
            (HERE, "auto", True, 200),
            (HERE, "off", True, 403),
            (EVERYWHERE, "auto", True, 200),
        ],
    )
    async def test_by_address_and_setting(self, listen: Listen, allowed: str, token: bool, status: int) -> None:
        made = admin(admin_listen=listen, admin_changes=allowed, token=TOKEN if token else Secret())
        assert await change(made, **(SHOWN if token else {})) == status

    @pytest.mark.parametrize("listen", [HERE, EVERYWHERE, Listen(None, 0, "/run/a.sock")])
    async def test_want_the_token_if_there_is_one(self, listen: Listen) -> None:
        made = admin(admin_listen=listen, token=TOKEN)
        assert await change(made) == 401
        for wrong in ("Bearer other", "Bearer", "Basic s3cr3t", "s3cr3t", "Bearer s3cr3t2", "Bearer \xe4"):
            assert await change(made, authorization=wrong) == 401
        assert await change(made, authorization="bearer  s3cr3t") == 200
        assert await ask(made) == 200, "reading does not"

    async def test_says_how_to_show_it(self) -> None:
        with pytest.raises(Refused) as caught:
            await admin(token=TOKEN).answer(Request("POST", "/change", (), {"host": "h"}))
        assert caught.value.answer.fields == (("WWW-Authenticate", "Bearer"),)
        assert b"s3cr3t" not in caught.value.answer.body

    async def test_never_for_a_page_of_another_site(self) -> None:
        assert await change(admin(), origin="http://evil.example") == 403
        assert await change(admin(), origin="null") == 403
        assert await change(admin(token=TOKEN), origin="http://evil.example", **SHOWN) == 403
        assert await change(admin(), origin="http://127.0.0.1:9464") == 200


class TestReading:
    async def test_everything_may_want_the_token_but_the_probes(self) -> None:
        made = admin(token=TOKEN, admin_protect="all")
        assert await ask(made) == 401
        assert await ask(made, **SHOWN) == 200
        assert await ask(made, path="/healthz") == await ask(made, path="/readyz") == 200

    async def test_not_under_a_name_that_has_come_to_mean_this_machine(self) -> None:
        for host in ("evil.example", "evil.example:9464"):
            assert await ask(admin(), host=host) == 403
            assert await ask(admin(admin_listen=EVERYWHERE), host=host) == 200
            assert await ask(admin(token=TOKEN), host=host) == 200
        for host in ("localhost:9464", "127.0.0.1", "[::1]:9464", "10.1.2.3:80", ""):
            assert await ask(admin(), host=host) == 200


class TestWhoIsHere:
    @pytest.mark.parametrize(
        ("text", "here"),
        [
            ("127.0.0.1:1", True),
            ("127.3.2.1:1", True),
            ("[::1]:1", True),
            ("localhost:1", True),
            ("unix:///run/x", True),
            (":1", False),
            ("0.0.0.0:1", False),
            ("10.0.0.1:1", False),
            ("example.org:1", False),
        ],
    )
    def test_reaches_an_address(self, text: str, here: bool) -> None:
        assert only_here(Listen.parse(text)) is here


class TestTLS:
    @pytest.mark.parametrize("text", [None, "", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
    def test_files_that_cannot_be_used_end_the_start(self, tmp_path: Any, text: str | None) -> None:
        path = tmp_path / "cert.pem"
        if text is not None:
            path.write_text(text)
        with pytest.raises(SettingsError, match=r"admin_tls_cert: .*cert\.pem"):
            Admin(Settings(admin_tls_cert=str(path)))
