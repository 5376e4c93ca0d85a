"""Unix sockets: never open to more than those asked for, not even for a moment; who is at the other end."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from proxy.listening import peer, serve
from proxy.resp.errors import StartupError
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
