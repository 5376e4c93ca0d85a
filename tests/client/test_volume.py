"""Clients' bytes: what the kernel counts, of those who are here and who have been."""

from __future__ import annotations

import socket
import struct
from typing import Any, cast

from proxy.client.session import Session
from proxy.client.volume import Volume


class Socket:
    """Tells what the test wants it to."""

    def __init__(self) -> None:
        self.sent = self.received = 0
        self.error: OSError | None = None

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        if self.error is not None:
            raise self.error
        return (bytes(120) + struct.pack("=QQ", self.sent, self.received))[:size]


class Client:
    """A session as far as this goes."""

    def __init__(self, sock: Socket | None) -> None:
        self.sock = sock
        self.transport = self
        self.gone = False

    def get_extra_info(self, name: str) -> Any:
        return self.sock

    @property
    def session(self) -> Session:
        return cast(Session, self)


def test_adds_up_what_is_new() -> None:
    volume, sock = Volume(), Socket()
    client = Client(sock).session
    sock.sent, sock.received = 10, 1
    volume.look(client)
    sock.sent, sock.received = 15, 3
    volume.look(client)
    assert (volume.sent, volume.received) == (15, 3)


async def test_who_leaves_is_counted_to_the_end() -> None:
    volume, one, other = Volume(), Socket(), Socket()
    clients = [Client(one).session, Client(other).session]
    one.sent, other.sent = 1, 2
    await volume.look_at(clients)
    one.sent = 5
    volume.leave(clients[0])
    one.sent = 99
    await volume.look_at(clients[1:])
    assert volume.sent == 5 + 2


async def test_who_cannot_be_asked_counts_for_nothing() -> None:
    volume, sock = Volume(), Socket()
    sock.error = OSError("no TCP")
    await volume.look_at([Client(sock).session, Client(None).session])
    volume.leave(Client(None).session)
    assert (volume.sent, volume.received) == (0, 0)
