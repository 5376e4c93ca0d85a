"""A subscriber's messages: their order, their end, and how many may wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.resp import encode
from proxy.resp.errors import UpstreamLost, UpstreamRefused
from proxy.upstream.address import Upstream
from proxy.upstream.link import Connector, Identity
from proxy.upstream.subscriber import Subscriber
from tests.client.linked import FakeTransport


@pytest.fixture
async def link() -> Subscriber:
    link = Subscriber(Connector(Upstream.parse("redis://127.0.0.1:1"), 1.0, 0.0), Identity(), b"ear")
    link.connection_made(FakeTransport(link))
    link._reader = None  # the handshake is over
    return link


def said(number: int) -> bytes:
    return encode.array([encode.bulk(b"message"), encode.bulk(b"c"), encode.bulk(b"%d" % number)])


async def heard(link: Subscriber, seconds: float = 0.0) -> Any:
    return await link.hear(seconds)


async def test_messages_come_in_order_however_they_are_cut(link: Subscriber) -> None:
    data = b"".join(map(said, range(3)))
    for at in range(len(data)):
        link.data_received(data[at : at + 1])
    assert [(await heard(link))[2] for _ in range(3)] == [b"0", b"1", b"2"]
    assert await heard(link) is None


async def test_one_that_comes_later_is_waited_for(link: Subscriber) -> None:
    asyncio.get_running_loop().call_later(0.01, link.data_received, said(7))
    assert await heard(link, 30.0) == [b"message", b"c", b"7"]


async def test_an_error_is_raised_behind_what_came_before_it(link: Subscriber) -> None:
    link.data_received(said(1) + b"-NOPERM no channels\r\n")
    assert (await heard(link))[2] == b"1"
    with pytest.raises(UpstreamRefused, match="NOPERM no channels"):
        await heard(link)


async def test_so_is_the_loss_of_the_connection(link: Subscriber) -> None:
    link.data_received(said(1))
    link.connection_lost(None)
    assert (await heard(link))[2] == b"1"
    for _ in range(2):
        with pytest.raises(UpstreamLost, match="closed the connection"):
            await heard(link, 30.0)


async def test_what_is_no_resp_ends_it(link: Subscriber) -> None:
    link.data_received(said(1) + b"HTTP/1.1 400 Bad Request\r\n")
    assert (await heard(link))[2] == b"1"
    with pytest.raises(UpstreamLost, match="does not speak RESP"):
        await heard(link)


@pytest.mark.parametrize("frame", [b"*0\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n"])
async def test_so_does_what_is_no_message(link: Subscriber, frame: bytes) -> None:
    link.data_received(frame)
    with pytest.raises(UpstreamLost, match="what is no message"):
        await heard(link)


@pytest.mark.parametrize(("size", "most"), [(20, 5000), (100_000, 11)])
async def test_reading_stops_while_too_much_waits(link: Subscriber, size: int, most: int) -> None:
    transport = link.transport
    assert isinstance(transport, FakeTransport)
    message = encode.array([encode.bulk(b"message"), encode.bulk(b"c"), encode.bulk(b"x" * size)])
    taken = 0
    while transport.reading:
        link.data_received(message)
        taken += 1
    assert most * 0.9 < taken <= most
    for left in range(taken - 1, -1, -1):
        assert (await heard(link))[2] == b"x" * size
        assert transport.reading is (left < taken / 4), f"{left} of {taken} wait"


async def test_others_have_their_turn_between_two_messages(link: Subscriber) -> None:
    turns: list[int] = []

    async def others() -> None:
        while True:
            turns.append(0)
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    link.data_received(b"".join(map(said, range(100))))
    for _ in range(100):
        await heard(link)
    task.cancel()
    assert len(turns) >= 100
