"""Orders nobody has thought of: bytes go through in a random order, and every client checks what it is told.

Keys are counters, so that a value tells how many writes it has seen. A reply must not be older than what the
same client has seen of the key, nor than any write that a client of the sidecar had been answered when the
read was sent; when all is quiet, memory and Redis agree.
"""

from __future__ import annotations

import asyncio
import random

import hiredis
import pytest

from proxy.client.states import State
from proxy.resp import encode
from proxy.resp.errors import UpstreamLost
from proxy.upstream.shared import SharedLink
from tests.client.linked import Client, Connection, turn
from tests.tier.racing import Race

R = encode.request
KEYS = (b"a", b"b", b"c")
SEEDS = range(150)


class Checked:
    """A client that notes what it is owed and judges what it gets."""

    def __init__(self, client: Client, protocol: int, acked: dict[bytes, int]) -> None:
        self.client = client
        self.reader = hiredis.Reader()
        self.acked = acked
        """By key: the greatest count that a client has been told."""
        self.seen = dict.fromkeys(KEYS, 0)
        self.owed: list[tuple[str, tuple[bytes, ...], dict[bytes, int]]] = []

    def ask(self, rng: random.Random) -> None:
        one, other = rng.choice(KEYS), rng.choice(KEYS)
        chunk, expected = rng.choices(
            [
                (R("GET", one), [("get", (one,))]),
                (b"".join(R("GET", key) for key in KEYS), [("get", (key,)) for key in KEYS]),
                (R("GET", one) + R("INCR", other) + R("GET", other), [("get", (one,)), ("incr", (other,)), ("get", (other,))]),
                (R("MGET", one, other), [("mget", (one, other))]),
                (R("INCR", one), [("incr", (one,))]),
                (R("EVAL", b"INCR " + one, 0), [("incr", (one,))]),
                (R("MULTI") + R("INCR", one) + R("GET", other) + R("EXEC"), [("skip", ()), ("skip", ()), ("skip", ()), ("mget", (one, other))]),
                (R("MULTI") + R("EVAL", b"INCR " + one, 0) + R("EXEC"), [("skip", ()), ("skip", ()), ("mget", (one,))]),
                (R("WATCH", one) + R("GET", one) + R("UNWATCH"), [("skip", ()), ("get", (one,)), ("skip", ())]),
            ],
            [8, 4, 3, 4, 4, 1, 1, 1, 1],
        )[0]
        floor = {key: max(self.acked[key], self.seen[key]) for key in KEYS}
        self.owed += [(kind, keys, floor) for kind, keys in expected]
        cut = rng.randrange(len(chunk) + 1) if rng.random() < 0.2 else len(chunk)
        self.client.feed(*[piece for piece in (chunk[:cut], chunk[cut:]) if piece])

    def judge(self) -> None:
        self.reader.feed(self.client.take())
        while (reply := self.reader.gets()) is not False:
            kind, keys, floor = self.owed.pop(0)
            if kind == "skip" or isinstance(reply, hiredis.ReplyError):
                continue
            for key, value in zip(keys, reply if isinstance(reply, list) else [reply], strict=True):
                count = int(value or 0)
                assert count >= floor[key], f"{kind} {key!r}: {count}, but {floor[key]} had been seen or acknowledged when it was sent"
                assert count >= self.seen[key], f"{kind} {key!r}: {count} after {self.seen[key]}"
                self.seen[key] = count
                if kind == "incr":
                    self.acked[key] = max(self.acked[key], count)


async def silence(race: Race, link: SharedLink) -> None:
    """Have Redis owe the answer to a heartbeat for longer than the gate is open."""
    race.clock.now += 1.1
    race.links.tick(race.clock())
    await turn()
    race.clock.now += 2.0
    if link.tracking is not None and link.tracking.keeper.waiting:
        link.fall_silent()


async def scenario(monkeypatch: pytest.MonkeyPatch, seed: int, refused: set[str], outages: bool = False) -> None:
    rng = random.Random(seed)
    options = {"on_upstream_down": "stale", "stale_max": rng.choice([300.0, 2.0]), "breaker_failures": rng.choice([0, 3])} if outages else {}
    race = Race(monkeypatch, admit_after=rng.choice([1, 1, 2]), l1_ttl=rng.choice([300.0, 1.0]), max_entries=rng.choice([2, 100]), **options)
    race.redis.refused = refused
    acked = dict.fromkeys(KEYS, 0)
    clients = [Checked(await race.ready(protocol=protocol), protocol, acked) for protocol in (2, 2, 3)]
    for _ in range(rng.choice([60, 120])):
        alive = [connection for connection in race.redis.connections if not connection.closing]
        often = 0.2 if outages else 0.0
        match rng.choices(
            ["ask", "work", "deliver", "direct", "turn", "wait", "lose", "die", "revive", "silence"],
            [6, 6, 6, 2, 1, 0.3, 0.1, often, 2 * often, often],
        )[0]:
            case "die":
                race.redis.failure = UpstreamLost("ERR pannier: gone")
                for connection in alive if rng.random() < 0.5 else alive[:1]:
                    connection.lose()
            case "revive":
                race.redis.failure = None
            case "silence":
                await silence(race, clients[0].client.session.home)
            case "ask":
                rng.choice(clients).ask(rng)
            case "work" if alive:
                await turn(2)
                race.redis.work(rng.choice(alive), rng.randrange(1, 4), end=rng.random() < 0.5)
            case "deliver" if alive:
                deliver(rng.choice(alive), rng)
            case "direct":
                race.redis.direct("INCR", rng.choice(KEYS), end=rng.random() < 0.5)
            case "turn":
                await turn()
            case "wait":
                race.clock.now += 0.4
            case "lose":
                race.home(clients[0].client).lose() if clients[0].client.session.home.wire else None
        for client in clients:
            client.judge()
    race.redis.failure = None
    await race.settle(piece=rng.choice([0, 1, 7]))
    for client in clients:
        client.judge()
        assert not client.owed or client.client.transport.closing
    for client in clients:
        if client.client.transport.closing:
            continue  # a reply to it broke off
        if client.client.session.state is State.BROKEN:
            await race.ask(client.client, "DISCARD")  # its transaction's link was lost
        for key in KEYS:
            got = await race.ask(client.client, "GET", key)
            value = race.redis.data[0].get(key)
            assert got == (encode.bulk(value) if value is not None else encode.null(client.client.session.protocol))
    used = sum(shelf.bytes for shelf in race.tier.shelves.values())
    assert race.tier.used == used
    await race.close()


def deliver(connection: Connection, rng: random.Random) -> None:
    data = b"".join(connection.owed)
    size = len(data) if rng.random() < 0.5 else rng.randrange(len(data) + 1)
    connection.owed = [data[size:]] if size < len(data) else []
    if size:
        connection.reply(data[:size])


BCAST = pytest.param({"optin", "default"}, id="bcast")


@pytest.mark.parametrize("outages", [False, True], ids=["", "outages"])
@pytest.mark.parametrize("refused", [pytest.param(set(), id="optin"), pytest.param({"optin"}, id="default"), BCAST])
def test_nobody_goes_back_in_time(monkeypatch: pytest.MonkeyPatch, refused: set[str], outages: bool) -> None:
    """With outages as well: what is served stale is no older than what a client has seen or been told."""
    with asyncio.Runner() as runner:
        for seed in SEEDS:
            try:
                runner.run(scenario(monkeypatch, seed, refused, outages))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
