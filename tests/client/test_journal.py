"""What the log is told of clients and tenants."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.client.clients import _tell_refused
from proxy.resp import encode
from tests.tier.racing import Race

R = encode.request


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    race = Race(monkeypatch, query_buffer_limit=1 << 20)
    yield race
    await race.close()


def found(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The fields of all records of an event, with their level."""
    return [
        {**record.fields, "level": record.levelname}  # type: ignore[attr-defined]
        for record in caplog.records
        if getattr(record, "event", "") == event
    ]


class TestAClient:
    async def test_is_told_of_with_who_and_where_it_is(self, race: Race, caplog: pytest.LogCaptureFixture) -> None:
        client = await race.ready(user="joe", db=1, namespace="ns")
        with caplog.at_level(logging.DEBUG):
            client.session.abort("a reason")
        (told,) = found(caplog, "client_closed")
        assert told == {
            "address": client.session.address, "id": client.session.id, "user": "joe", "namespace": "ns", "database": 1,
            "reason": "a reason", "level": "INFO",
        }  # fmt: skip
        assert caplog.messages[0] == f"client {client.session.address} closed: a reason"

    async def test_that_comes_and_goes_is_for_who_debugs(self, race: Race, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            client = await race.ready()
            client.transport.close()
            await race.settle()
        assert not caplog.records
        with caplog.at_level(logging.DEBUG):
            client = await race.ready()
            client.transport.close()
            await race.settle()
        assert len(found(caplog, "client_connected")) == len(found(caplog, "client_gone")) == 1

    async def test_over_a_limit_is_killed_and_counted(self, race: Race, caplog: pytest.LogCaptureFixture) -> None:
        client = await race.ready()
        client.feed(b"*2\r\n$3\r\nSET\r\n$99999999\r\n", b"x" * 100)
        race.clients.kill(client.session, "too much")
        assert [(told["reason"], told["level"]) for told in found(caplog, "client_killed")] == [("too much", "WARNING")]
        assert race.clients.killed == 1

    async def test_that_cannot_authenticate_is_told_of_without_what_it_said(
        self, race: Race, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = await race.ready()
        greet = race.redis.greet
        refusal = b"-WRONGPASS invalid username-password pair, with args beginning with: 's3cr3t'\r\n"
        monkeypatch.setattr(
            race.redis, "greet", lambda connection, words: refusal if words[0] == b"AUTH" else greet(connection, words)
        )
        client.feed(R("AUTH", "s3cr3t", "s3cr3t"))
        await race.settle()
        (told,) = found(caplog, "auth_refused")
        assert told["level"] == "WARNING" and told["reason"] == "WRONGPASS invalid username-password pair"
        assert "s3cr3t" not in caplog.text


class TestATenantOverItsLimit:
    def test_is_told_of_once_a_minute(self, caplog: pytest.LogCaptureFixture) -> None:
        tenant = SimpleNamespace(name="acme", max_ops_per_second=10)
        space: Any = SimpleNamespace(refused=3, told=(0, float("-inf")), tenant=tenant)
        _tell_refused(space, 100.0)
        space.refused = 5
        _tell_refused(space, 159.0)
        space.refused = 6
        _tell_refused(space, 160.0)
        _tell_refused(space, 300.0)
        assert [told["refused"] for told in found(caplog, "tenant_limited")] == [3, 3]
        assert caplog.messages[0] == "tenant acme is over its max_ops_per_second of 10: 3 commands refused"
