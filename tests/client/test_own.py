"""An error that nobody expected in one of SIDECAR's answers is told, and costs the client nothing else."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from proxy.client import advising, local, own
from proxy.observe import popular
from proxy.privacy import KeyPrivacy, Privacy
from proxy.resp.encode import request as R
from tests.client.linked import turn
from tests.tier.racing import Race

FAILED = b"-ERR pannier: internal error; its log says more\r\n"


def broken(*arguments: Any) -> Any:
    raise ZeroDivisionError("division by zero")


async def broken_later(*arguments: Any) -> Any:
    raise ZeroDivisionError("division by zero")


class TestSidecar:
    @pytest.mark.parametrize("answer", [broken, broken_later], ids=["at once", "later"])
    async def test_goes_on_after_an_error(self, answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        race = Race(monkeypatch)
        client = await race.ready(protocol=2)
        monkeypatch.setitem(own._SUBCOMMANDS, "advise", (0, 0, answer))
        client.transport.written.clear()
        client.feed(R("SIDECAR", "ADVISE") + R("SIDECAR", "HELP"))
        await turn(20)
        replies = b"".join(client.transport.written)
        assert replies.startswith(FAILED + b"*") and not client.transport.closing, "the next command is answered"
        [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert "internal error" in record.getMessage() and record.exc_info

    async def test_other_commands_end_the_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What they have done to it by then, nobody knows."""
        race = Race(monkeypatch)
        client = await race.ready(protocol=2)
        monkeypatch.setitem(local._ANSWERS, "hello", broken)
        client.feed(R("HELLO"))
        await turn()
        assert client.transport.closing


async def test_stats_are_told_without_advice(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(advising, "advise", broken_later)
    found = await popular.advice(advising.Scope((), False, Privacy(KeyPrivacy.PLAIN)))
    assert (found["curve"], found["advice"]) == ([], []) and "failed" in found["curve_says"]
    assert "advice failed" in caplog.text
