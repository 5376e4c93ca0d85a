"""Commands that concern all workers: whom they reach, and what is said if one does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.client import siblings
from proxy.client.session import Session
from proxy.resp import encode
from proxy.upstream.link import Identity


class Others:
    """The siblings of worker 2 of 3, who reply as told."""

    number, of = 2, 3

    def __init__(self, replies: dict[int, bytes | None]) -> None:
        self.replies = replies
        self.asked: list[tuple[Mapping[str, Any], bytes]] = []

    async def ask(self, about: Mapping[str, Any], request: bytes, patience: float) -> dict[int, bytes | None]:
        self.asked.append((about, request))
        return self.replies


def session(others: Others | None, protocol: int = 2) -> Session:
    space = SimpleNamespace(name="ns")
    clients = SimpleNamespace(crew=others)
    identity = Identity(b"joe", b"s3\xffcret")
    return cast(
        Session, SimpleNamespace(clients=clients, space=space, identity=identity, database=3, protocol=protocol)
    )


async def said(others: Others, own: bytes, *words: bytes, protocol: int = 2) -> bytes:
    """The reply to SIDECAR with some words, if one's own is that."""
    reply = siblings.spread(session(others, protocol), list(words), lambda session, words: own)
    return reply if isinstance(reply, bytes) else await reply


async def test_counts_are_added_up_and_the_client_is_described() -> None:
    others = Others({1: b":3\r\n", 3: b":4\r\n"})
    assert await said(others, b":2\r\n", b"INVALIDATE", b"k") == b":9\r\n"
    ((about, request),) = others.asked
    assert request == encode.request("SIDECAR", "INVALIDATE", "k")
    assert (about["space"], about["database"], about["protocol"]) == ("ns", 3, 2)
    assert siblings._identity(about) == Identity(b"joe", b"s3\xffcret")


@pytest.mark.parametrize("word", [b"FLUSH", b"INVALIDATE"])
async def test_what_has_to_be_done_everywhere_is_an_error_where_it_may_not_be(word: bytes) -> None:
    reply = await said(Others({1: b"+OK\r\n", 3: None}), b"+OK\r\n", word, b"k")
    assert reply.startswith(b"-ERR pannier: worker 3 has not answered in time")
    assert await said(Others({3: b"-ERR no\r\n"}), b"+OK\r\n", word) == b"-ERR pannier: worker 3: ERR no\r\n"
    assert await said(Others({}), b"+OK\r\n", b"FLUSH") == b"+OK\r\n", "who does not run keeps nothing"


async def test_ones_own_error_is_the_answer() -> None:
    assert await said(Others({1: b":1\r\n"}), b"-ERR syntax\r\n", b"HOTKEYS", b"0") == b"-ERR syntax\r\n"


async def test_figures_do_without_who_does_not_answer() -> None:
    others = Others({1: encode.value({"tier_fills": 2}, 2), 3: None})
    reply = await said(others, encode.value({"tier_fills": 1}, 3), b"STATS", protocol=3)
    assert reply == encode.value({"tier_fills": 3, "workers": "1,2"}, 3)


async def test_health_does_not() -> None:
    fields = {"ready": "yes", "why": ""}
    reply = await said(Others({1: encode.value(fields, 2)}), encode.value(fields, 2), b"HEALTH")
    found = siblings.read(reply)
    assert dict(zip(found[::2], found[1::2], strict=True)) == {
        b"ready": b"no", b"why": b"worker 3: is being started, or does not answer",
    }  # fmt: skip


async def test_what_lasts_is_begun_at_once() -> None:
    report = {"warmed": 1, "of": 1, "seconds": "0.1", "not_kept": 0, "failed": 0, "reasons": {}}

    async def own() -> bytes:
        return encode.value(report, 2)

    begun = siblings.spread(
        session(Others({1: encode.value(report | {"warmed": 0}, 2)})), [b"WARM", b"KEYS", b"k"], lambda *_: own()
    )
    assert not isinstance(begun, bytes)
    assert siblings.read(await begun)[:2] == [b"warmed", 0]


def test_others_subcommands_are_this_workers() -> None:
    assert siblings.spread(session(Others({})), [b"BYPASS", b"ON"], lambda *_: b"+OK\r\n") == b"+OK\r\n"


def test_alone() -> None:
    assert siblings.alone(session(None)) and not siblings.alone(session(Others({})))
