"""A sidecar with its tier, and a Redis in memory whose every step is the test's: what it executes, when, and
which bytes of what it says arrive.

`ModelRedis` keeps data, executes requests when told (`work`), and tracks as Redis does (tracking.c): the push
for a connection's own write follows that write's reply, others' pushes stand where the write was executed; a
key is pushed once for each time it was read; broadcasts come at the end of a turn. What it says waits in
`Connection.owed`, frame by frame, until the test delivers it. `Race` joins it with a `Sidecar` that listens
nowhere, on a clock that stands still.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.client import hits, mget, reading, session
from proxy.resp import encode
from proxy.resp.requests import RequestParser
from proxy.settings import Settings
from proxy.sidecar import Sidecar
from proxy.tier.shelf import Shelf
from proxy.upstream import shared, tracking, wire
from proxy.upstream.address import Upstream
from tests.client.linked import Client, Connection, Linked, ScriptedRedis, turn

PARSER = RequestParser(2**31)
WRONGTYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
FLUSHED = b">2\r\n$10\r\ninvalidate\r\n_\r\n"


def push(*keys: bytes) -> bytes:
    return b">2\r\n$10\r\ninvalidate\r\n" + encode.array(map(encode.bulk, keys))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Wrong(Exception):
    """An error reply."""


class ModelRedis(ScriptedRedis):
    """A few commands of Redis, executed one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        super().__init__(monkeypatch)
        self.clock = clock
        self.data: list[dict[bytes, Any]] = [{}, {}]
        self.expiry: list[dict[bytes, float]] = [{}, {}]
        self.refused: set[str] = set()
        """Modes of tracking that are refused: "optin", "default", "bcast"."""
        self.denied: set[bytes] = set()
        """Commands answered with NOPERM."""
        self._readers: dict[bytes, set[Connection]] = {}
        self._walks: dict[bytes, list[bytes]] = {}
        """What SCAN's cursors stand for."""
        self._changed: list[bytes | None] = []
        self._broadcast: list[bytes | None] = []

    # --- what the test does

    def greet(self, connection: Connection, arguments: list[bytes]) -> bytes:
        connection.state.setdefault("db", 0)
        connection.state.setdefault("at", 0)
        if arguments[0] == b"SELECT":
            connection.state["db"] = int(arguments[1])
        if arguments[0] == b"HELLO":
            connection.state["protocol"] = int(arguments[1])
        return super().greet(connection, arguments)

    def waiting(self, connection: Connection) -> int:
        """Bytes received and not executed."""
        return len(connection.sent) - connection.state["at"]

    def work(self, connection: Connection, n: int = -1, end: bool = True) -> int:
        """Execute `n` requests of a connection, or all; then, if `end`, end the loop's turn."""
        sent, done = connection.sent, 0
        while done != n and not connection.closing and connection.state["at"] < len(sent):
            request = PARSER.parse(sent, connection.state["at"])
            if request is None:
                break
            connection.state["at"] = request.end
            self._execute(connection, request.arguments)
            done += 1
        if end:
            self.end_turn()
        return done

    def work_all(self) -> int:
        return sum(self.work(connection) for connection in self.connections if not connection.closing)

    def end_turn(self) -> None:
        """Broadcast what has changed."""
        changed, self._broadcast = list(dict.fromkeys(self._broadcast)), []
        for connection in self.connections:
            if connection.state.get("tracks") == "bcast" and changed:
                if None in changed:
                    connection.owed.append(FLUSHED)
                if keys := [key for key in changed if key is not None]:
                    connection.owed.append(push(*keys))

    def direct(self, *arguments: bytes | str | int, db: int = 0, end: bool = True) -> Any:
        """Have a client that goes past the sidecar do something."""
        other = SimpleNamespace(state={"db": db, "protocol": 2}, owed=[])
        reply = self._execute(other, [a if isinstance(a, bytes) else str(a).encode() for a in arguments])
        if end:
            self.end_turn()
        return reply

    # --- executing

    def _execute(self, connection: Any, arguments: list[bytes]) -> bytes:
        state = connection.state
        name = arguments[0].upper()
        if "queue" in state and name not in (b"EXEC", b"DISCARD", b"MULTI", b"WATCH"):
            state["queue"].append(arguments)
            reply = b"+QUEUED\r\n"
        else:
            reply = self._reply(connection, name, arguments)
            if name != b"CLIENT":
                state["caching"] = False
        if reply:
            connection.owed.append(reply)
        changed, self._changed = self._changed, []
        self._broadcast += changed
        for key in changed:
            if key is None:
                for other in self.connections:
                    if other.state.get("tracks") in ("default", "optin"):
                        other.owed.append(FLUSHED)
                self._readers.clear()
            else:
                for reader in self.connections:
                    if reader in self._readers.get(key, ()):
                        reader.owed.append(push(key))
                self._readers.pop(key, None)
        return reply

    def _reply(self, connection: Any, name: bytes, arguments: list[bytes]) -> bytes:
        protocol = connection.state["protocol"]
        if name in self.denied:
            return b"-NOPERM this user has no permissions to run the '%b' command\r\n" % name.lower()
        method = getattr(self, "_do_" + name.decode().lower(), None)
        if method is None:
            return b"-ERR unknown command '%b'\r\n" % name
        try:
            answer = method(connection, *arguments[1:])
        except Wrong as error:
            return str(error).encode()
        return answer.raw if isinstance(answer, Raw) else _encode(answer, protocol)

    def _get(self, connection: Any, key: bytes, kind: type = bytes) -> Any:
        db = connection.state["db"]
        self._expire(db, key)
        mode = connection.state.get("tracks")  # tracking.c, trackingRememberKeys
        if mode == "default" or (mode == "optin" and connection.state.get("caching")):
            self._readers.setdefault(key, set()).add(connection)
        value = self.data[db].get(key)
        if value is not None and kind is not object and not isinstance(value, kind):
            raise Wrong(WRONGTYPE.decode())
        return value

    def _expire(self, db: int, key: bytes) -> None:
        if self.expiry[db].get(key, self.clock.now + 1) <= self.clock.now:
            del self.data[db][key], self.expiry[db][key]
            self._changed.append(key)

    def _put(self, connection: Any, key: bytes, value: Any) -> None:
        db = connection.state["db"]
        self.expiry[db].pop(key, None)
        if value is None:
            self.data[db].pop(key, None)
        else:
            self.data[db][key] = value
        self._changed.append(key)

    def _do_ping(self, c: Any) -> Any:
        return Raw(b"+PONG\r\n")

    def _do_select(self, c: Any, db: bytes) -> Any:
        c.state["db"] = int(db)
        return Raw(encode.OK)

    def _do_reset(self, c: Any) -> Any:
        c.state.pop("queue", None)
        return Raw(b"+RESET\r\n")

    def _do_client(self, c: Any, sub: bytes, *rest: bytes) -> Any:
        if sub.upper() == b"CACHING":
            if c.state.get("tracks") != "optin":
                return Raw(b"-ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.\r\n")
            c.state["caching"] = True
        if sub.upper() != b"TRACKING":
            return Raw(encode.OK)
        mode = "bcast" if b"BCAST" in rest else "optin" if b"OPTIN" in rest else "default"
        if rest[0] == b"OFF":
            c.state.pop("tracks", None)
        elif mode in self.refused:
            return Raw(b"-NOPERM no tracking here\r\n")
        else:
            c.state["tracks"] = mode
        return Raw(encode.OK)

    def _do_get(self, c: Any, key: bytes) -> Any:
        return self._get(c, key)

    def _do_strlen(self, c: Any, key: bytes) -> Any:
        return len(self._get(c, key) or b"")

    def _do_getrange(self, c: Any, key: bytes, start: bytes, end: bytes) -> Any:
        return (self._get(c, key) or b"")[int(start) : int(end) + 1]

    def _do_exists(self, c: Any, *keys: bytes) -> Any:
        return sum(self._get(c, key, object) is not None for key in keys)

    def _do_mget(self, c: Any, *keys: bytes) -> Any:
        values = [self._get(c, key, object) for key in keys]
        return [value if isinstance(value, bytes) else None for value in values]

    def _do_pttl(self, c: Any, key: bytes) -> Any:
        if self._get(c, key, object) is None:
            return -2
        end = self.expiry[c.state["db"]].get(key)
        return -1 if end is None else round((end - self.clock.now) * 1000)

    def _do_set(self, c: Any, key: bytes, value: bytes, *options: bytes) -> Any:
        self._put(c, key, value)
        if options:
            self.expiry[c.state["db"]][key] = self.clock.now + int(options[1]) / 1000
        return Raw(encode.OK)

    def _do_del(self, c: Any, *keys: bytes) -> Any:
        there = [key for key in keys if key in self.data[c.state["db"]]]
        for key in there:
            self._put(c, key, None)
        return len(there)

    _do_unlink = _do_del

    def _do_scan(self, c: Any, cursor: bytes, *options: bytes) -> Any:
        """Two keys a page, of those there were when the walk began; of patterns only `prefix*`."""
        keys = self._walks.pop(cursor, None)
        if keys is None:
            keys = sorted(self.data[c.state["db"]])
        prefix = options[options.index(b"MATCH") + 1].removesuffix(b"*").replace(b"\\", b"")
        page, rest = keys[:2], keys[2:]
        following = b"%d" % (len(self._walks) + 1) if rest else b"0"
        if rest:
            self._walks[following] = rest
        return [following, [key for key in page if key.startswith(prefix) and key in self.data[c.state["db"]]]]

    def _do_incr(self, c: Any, key: bytes) -> Any:
        value = int(self.data[c.state["db"]].get(key, b"0")) + 1
        self._put(c, key, b"%d" % value)
        return value

    def _do_hset(self, c: Any, key: bytes, *pairs: bytes) -> Any:
        old = self.data[c.state["db"]].get(key) or {}
        self._put(c, key, {**old, **dict(zip(pairs[::2], pairs[1::2], strict=True))})
        return len(pairs) // 2

    def _do_hget(self, c: Any, key: bytes, field: bytes) -> Any:
        return (self._get(c, key, dict) or {}).get(field)

    def _do_hmget(self, c: Any, key: bytes, *fields: bytes) -> Any:
        found = self._get(c, key, dict) or {}
        return [found.get(field) for field in fields]

    def _do_hgetall(self, c: Any, key: bytes) -> Any:
        return self._get(c, key, dict) or {}

    def _do_zadd(self, c: Any, key: bytes, *pairs: bytes) -> Any:
        self._put(c, key, [float(score) for score in pairs[::2]])
        return len(pairs) // 2

    def _do_zmscore(self, c: Any, key: bytes, *members: bytes) -> Any:
        found = self._get(c, key, list) or []
        return [found[int(member)] if int(member) < len(found) else None for member in members]

    def _do_zrank(self, c: Any, key: bytes, member: bytes, *option: bytes) -> Any:
        return [0, self._get(c, key, list)[0]]

    def _do_eval(self, c: Any, script: bytes, keys: bytes, *arguments: bytes) -> Any:
        """The script is a command; its keys are declared by nobody."""
        return Raw(self._reply(c, script.split()[0].upper(), script.split()))

    _do_fcall = _do_eval

    def _do_flushall(self, c: Any) -> Any:
        self.data, self.expiry = [{}, {}], [{}, {}]
        self._changed.append(None)
        return Raw(encode.OK)

    def _do_swapdb(self, c: Any, one: bytes, other: bytes) -> Any:
        for both in (self.data, self.expiry):
            both[int(one)], both[int(other)] = both[int(other)], both[int(one)]
        return Raw(encode.OK)

    def _do_rename(self, c: Any, old: bytes, new: bytes) -> Any:
        self._put(c, new, self.data[c.state["db"]].get(old))
        self._put(c, old, None)
        return Raw(encode.OK)

    def _do_subscribe(self, c: Any, channel: bytes) -> Any:
        kind = b">3" if c.state["protocol"] == 3 else b"*3"
        return Raw(kind + b"\r\n$9\r\nsubscribe\r\n" + encode.bulk(channel) + b":1\r\n")

    def _do_blpop(self, c: Any, key: bytes, timeout: bytes) -> Any:
        self._put(c, key, None)
        return [key, b"x"]

    def _do_watch(self, c: Any, *keys: bytes) -> Any:
        return Raw(encode.OK)

    _do_unwatch = _do_watch

    def _do_multi(self, c: Any) -> Any:
        c.state["queue"] = []
        return Raw(encode.OK)

    def _do_discard(self, c: Any) -> Any:
        c.state.pop("queue", None)
        return Raw(encode.OK)

    def _do_exec(self, c: Any) -> Any:
        if "queue" not in c.state:
            return Raw(b"-ERR EXEC without MULTI\r\n")
        queue = c.state.pop("queue")
        return Raw(encode.array([self._reply(c, arguments[0].upper(), arguments) for arguments in queue]))


class Raw:
    """A reply encoded already."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


def _encode(value: Any, protocol: int) -> bytes:
    if isinstance(value, float):
        text = b"%g" % value
        return b"," + text + b"\r\n" if protocol == 3 else encode.bulk(text)
    if isinstance(value, list):
        return encode.array([_encode(item, protocol) for item in value])
    return encode.value(value, protocol)


class Race(Linked):
    """Sessions, tier and links of one sidecar over a `ModelRedis`. Made within a running loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.clock = clock = Clock()
        monkeypatch.setattr(session, "monotonic", clock)
        for module in (hits, mget, reading):
            monkeypatch.setattr(module, "monotonic", clock)
        for module in (wire, tracking, shared):
            if hasattr(module, "time"):
                monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
        self.redis: ModelRedis = ModelRedis(monkeypatch, clock)
        self.sidecar = Sidecar(Settings(**{"admit_after": 1, **options}), Upstream())
        self.clients, self.links = self.sidecar.clients, self.sidecar.links
        self.links._backoff = (0.0, 0.0)
        assert self.sidecar.tier is not None
        self.tier = self.sidecar.tier
        self.tier.clock, self.tier._rng = clock, lambda: 1.0
        self._port = 50000

    async def ready(
        self, name: object = None, protocol: int = 2, user: str = "", db: int = 0, namespace: str | None = None
    ) -> Client:
        """A client whose shared link is up and tracked."""
        client = self.client(name, namespace)
        await self.settle()
        if protocol == 3:
            client.feed(encode.request("HELLO", 3))
            await self.settle()
        if user:
            client.feed(encode.request("AUTH", user, "secret"))
            await self.settle()
        if db:
            client.feed(encode.request("SELECT", db))
            await self.settle()
        client.take()
        self.vouch(client)
        return client

    def vouch(self, client: Client) -> bool:
        """Have the shelf asked from the next chunk on, not the one after it."""
        return self.shelf(client).vouch(self.clock())

    async def ready_now(self, namespace: str | None = None) -> Client:
        """A client of a link that is up: nothing that is held back moves."""
        client = self.client(namespace=namespace)
        await turn()
        client.session.consume()
        self.vouch(client)
        return client

    def home(self, client: Client) -> Connection:
        """The tracked connection that serves a client."""
        wire = client.session.home.wire
        assert wire is not None
        return wire.transport  # type: ignore[return-value]

    def pinned(self, client: Client) -> Connection:
        """The connection that is a client's own."""
        assert client.session.pin is not None
        return client.session.pin.link.transport  # type: ignore[return-value]

    def side(self, client: Client) -> Connection:
        """The untracked connection that serves a client."""
        wire = client.session.link.wire
        assert wire is not None and client.session.link is not client.session.home
        return wire.transport  # type: ignore[return-value]

    def shelf(self, client: Client) -> Shelf:
        return client.session.home.tracking.keeper  # type: ignore[union-attr, return-value]

    async def run(self, connection: Connection, n: int = -1, end: bool = True) -> None:
        """Let requests reach Redis and be executed; nothing is delivered."""
        await turn()
        self.redis.work(connection, n, end)

    async def deliver(self, connection: Connection, frames: int = -1, piece: int = 0) -> None:
        """Deliver the next frames of a connection, or all."""
        if frames < 0:
            frames = len(connection.owed)
        assert frames <= len(connection.owed)
        data, connection.owed = b"".join(connection.owed[:frames]), connection.owed[frames:]
        connection.reply(data, piece)
        await turn()

    async def settle(self, piece: int = 0) -> None:
        """Execute and deliver until nobody has anything more to say."""
        idle = 0
        while idle < 2:
            await turn()
            moved = self.redis.work_all() + self.redis.deliver(piece)
            idle = 0 if moved else idle + 1

    async def ask(self, client: Client, *arguments: bytes | str | int) -> bytes:
        """What a client gets in the end."""
        client.feed(encode.request(*arguments))
        await self.settle()
        return client.take()

    def hit(self, client: Client, *arguments: bytes | str | int) -> bytes:
        """What a client gets at once: from memory. Empty: it was sent to Redis."""
        client.feed(encode.request(*arguments))
        return client.take()
