"""Unix sockets: never open to more than those asked for, not even for a moment; who is at the other end."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from proxy import systemd
from proxy.listening import Passed, clear_away, peer, serve, with_passed
from proxy.resp.errors import StartupError
from proxy.settings import Settings
from proxy.upstream.address import Listen

OTHER_GROUP = 54321


def listen(path: Path, query: str = "") -> Listen:
    return Listen.parse(f"unix://{path}{query}")


class TestTheFile:
    @pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0o400])
    async def test_has_the_mode_asked_for_whatever_the_umask(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "s"
        for mask in (0, 0o077, 0o777):
            before = os.umask(mask)
            try:
                server = await serve(asyncio.Protocol, listen(path, f"?mode={mode:o}"))
                assert os.umask(mask) == mask, "it is left as it was"
            finally:
                os.umask(before)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            server.close()
            path.unlink(missing_ok=True)

    @pytest.mark.skipif(os.getuid() != 0, reason="only root may give files to any group")
    async def test_is_there_for_nobody_before_it_has_group_and_mode(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "s"
        seen: list[tuple[str, int, int]] = []
        chown, chmod = os.chown, os.chmod

        def look(what: str) -> None:
            found = path.stat()
            seen.append((what, stat.S_IMODE(found.st_mode), found.st_gid))
            with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
                sock.connect(str(path))  # root may, but nobody listens yet

        monkeypatch.setattr(os, "chown", lambda *given: (look("chown"), chown(*given)))
        monkeypatch.setattr(os, "chmod", lambda *given: (look("chmod"), chmod(*given)))
        before = os.umask(0)
        try:
            server = await serve(asyncio.Protocol, listen(path, f"?mode=660&group={OTHER_GROUP}"))
        finally:
            os.umask(before)
        assert seen == [("chown", 0, os.getgid()), ("chmod", 0, OTHER_GROUP)]
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, OTHER_GROUP)
        server.close()

    async def test_has_the_group_by_name(self, tmp_path: Path) -> None:
        name = grp.getgrgid(os.getgid()).gr_name
        server = await serve(asyncio.Protocol, listen(tmp_path / "s", f"?group={name}"))
        assert (tmp_path / "s").stat().st_gid == os.getgid()
        server.close()


class TestClearingAway:
    async def test_removes_what_was_made(self, tmp_path: Path) -> None:
        place = listen(tmp_path / "s")
        server = await serve(asyncio.Protocol, place)
        server.close()
        clear_away(place)
        assert not list(tmp_path.iterdir())

    async def test_leaves_what_another_process_has_made_meanwhile(self, tmp_path: Path) -> None:
        place = listen(tmp_path / "s")
        server = await serve(asyncio.Protocol, place)
        server.close()
        (tmp_path / "s").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "s"))
            clear_away(place)
            assert (tmp_path / "s").exists()


class TestPassed:
    def test_all_at_an_address_are_taken_once(self) -> None:
        """Bound only: nobody can reach these."""
        with socket.socket() as four, socket.socket(socket.AF_INET6) as six, socket.socket() as other:
            four.bind(("0.0.0.0", 0))
            port = four.getsockname()[1]
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                six.bind(("::", port))
            except OSError:
                pytest.skip("no IPv6 on this machine, or the port is taken there")
            other.bind(("127.0.0.1", 0))
            passed = Passed([four, other, six])
            everywhere = Listen.parse(f":{port}")
            assert passed.addresses([everywhere]) == [Listen("127.0.0.1", other.getsockname()[1])]
            assert list(passed.take(everywhere)) == [four, six]
            assert list(passed.take(everywhere)) == []

    @pytest.mark.parametrize("count", ["\u00b2", "abc", "-1", " 1", "+1"])
    def test_how_many_is_no_number(self, count: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", count)
        with pytest.raises(StartupError) as caught:
            with_passed(Settings())
        assert str(caught.value) == (
            f"LISTEN_FDS: {count!r} is no number of sockets; pass sockets such as those of ListenStream="
        )

    @pytest.mark.parametrize("given", [{"LISTEN_FDS": "abc"}, {"LISTEN_PID": "1", "LISTEN_FDS": "abc"}, {"LISTEN_PID": "me"}])
    def test_what_is_meant_for_another_process_is_not_looked_at(self, given: dict[str, str]) -> None:
        given = {name: str(os.getpid()) if text == "me" else text for name, text in given.items()}
        assert systemd.inherited(given) == []


class TestGroupsThatCannotBe:
    async def test_unknown(self, tmp_path: Path) -> None:
        place = listen(tmp_path / "s", "?group=nobody-has-this")
        with pytest.raises(StartupError) as caught:
            await serve(asyncio.Protocol, place)
        assert str(caught.value) == (
            f"cannot listen on {place}: there is no group nobody-has-this on this machine; give one there is, or its "
            "number, as in ?group=1000"
        )
        assert not list(tmp_path.iterdir())

    async def test_not_ours_to_give(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = listen(tmp_path / "s", f"?group={OTHER_GROUP}")
        if os.getuid() == 0:  # who may always: the system's answer to others

            def refuse(*given: object) -> None:
                raise PermissionError(1, "Operation not permitted")

            monkeypatch.setattr(os, "chown", refuse)
        with pytest.raises(StartupError, match=rf"may not give the socket to group {OTHER_GROUP}; make it a member of that"):
            await serve(asyncio.Protocol, place)
        assert not list(tmp_path.iterdir()), "no file is left"


def test_the_peer_of_a_unix_socket_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer(one) == (os.getpid(), os.getuid(), os.getgid())
    assert peer(one) is None, "it is closed"
    assert peer(None) is None
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert peer(sock) is None
