"""Which path a command takes: shared link, a link of the client's own, or an answer from here.

The table in docs/commands.md says the same for users; a test keeps both equal.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from proxy.resp import encode
from proxy.resp.commands import Command, CommandTable
from proxy.resp.downgrade import PLAIN, Shape
from proxy.resp.keys import key_positions
from proxy.resp.patterns import RequestPatterns, first_arguments
from proxy.resp.prefixes import first_names
from proxy.resp.requests import RequestParser
from proxy.tier.rules import CACHEABLE, OVERTURNS, REWRITES
from proxy.upstream.pinned import Expect


class Route(enum.Enum):
    """The path of a command."""

    SHARED = enum.auto()
    """Stateless: the shared link."""
    LOCAL = enum.auto()
    """Answered by the sidecar, or with its help."""
    ONCE = enum.auto()
    """May block or take its connection down: a link of its own until the reply."""
    TRANSACTION = enum.auto()
    """Opens a transaction: a link of its own until EXEC, DISCARD or UNWATCH."""
    STATE = enum.auto()
    """Leaves state in its connection: a link of its own until RESET or the end."""
    PROBE = enum.auto()
    """Unknown, may leave state: a link of its own until an error as the reply, otherwise as STATE."""
    TUNNEL = enum.auto()
    """Replication: a link of its own whose bytes are no longer read."""


LOCAL = {
    "auth": "checked by Redis on a fresh connection, or by the file of tenants; the session then uses links "
    "of that identity",
    "client|getname": "the session's name",
    "client|id": "the session's id, 2^40 and up, so that it is never taken for one of Redis' ids",
    "client|info": "the session, in Redis' format",
    "client|kill": "closes sessions of this sidecar; an id of Redis' own is passed on",
    "client|list": (
        "the sessions of this sidecar, in Redis' format; behind it `pid`, `uid` and `gid` of who came over a "
        "unix socket"
    ),
    "client|setinfo": "kept with the session",
    "client|setname": "kept with the session",
    "client|unblock": "passed on for the link on which the session blocks",
    "hello": "answered from Redis' own answer, with the session's id",
    "info": "passed on, with a section `# Sidecar` added",
    "quit": "answered after all earlier replies",
    "reset": "sets the session back",
    "sidecar": "Pannier's own commands, which `SIDECAR HELP` lists",
    "select": "checked by Redis; the session then uses links to that database",
}
"""Commands in which the sidecar has a hand, and what it does."""

LOCAL_IN_NAMESPACE = {
    "acl|whoami": "the tenant's name, or that of the user at Redis",
    "dbsize": "counts the namespace's keys with SCAN; approximate while Redis resizes its table",
    "flushall": "as FLUSHDB, in every database that has keys",
    "flushdb": "deletes the namespace's keys, found with SCAN, with UNLINK in batches (SYNC: DEL)",
    "randomkey": "asks a few times, then goes on from a random place with SCAN",
}
"""Commands in which the sidecar has a hand if the client lives in a namespace."""

_TRANSACTION = frozenset({"multi", "watch"})
# fmt: off
_STATE = frozenset({
    "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "monitor",
    "readonly", "readwrite", "asking", "client|tracking", "client|caching", "client|reply", "client|no-evict",
    "client|no-touch", "client|capa", "script|debug",
})
# fmt: on
_FENCED = frozenset({"wait", "waitaof"})
"""Redis 7.0 does not flag WAIT as blocking."""
_FREEING = frozenset({"script|kill", "function|kill", "client|unpause"})
"""They end what may be holding up the shared link itself: they must not wait in its queue."""
_ONCE = _FENCED | _FREEING | {"client|trackinginfo", "client|getredir", "shutdown", "debug", "failover"}
_TUNNEL = frozenset(["sync", "psync", "replconf"])
_BLOCK_OPTION = frozenset({"xread", "xreadgroup"})
_CHANGES_LINK = frozenset(["select", "auth", "hello", "client|setname", "client|setinfo"])
_EXPECT = {
    "multi": Expect.MULTI,
    "exec": Expect.END,
    "discard": Expect.DISCARD,
    "watch": Expect.WATCH,
    "unwatch": Expect.UNWATCH,
    "quit": Expect.QUIT,
    "reset": Expect.RESET,
}
# fmt: off
_COMMON = [
    "get", "set", "incr", "hget", "hset", "mget", "exists", "del", "expire", "setex", "lpush", "rpush",
    "lpop", "rpop", "sadd", "spop", "zadd", "ping",
]
# fmt: on
_COUNTS = (2, 3, 1, 4, 5, 6)
_KEYED_COUNTS = (2, 3, 4, 5, 6)
_READS = CACHEABLE | {"mget"}
_READ_SIZES = (16, 1)


class Dispatcher:
    """Knows the commands and their paths."""

    def __init__(self, table: CommandTable) -> None:
        self.table = table
        plain = {count: self._plain(count) for count in _COUNTS}
        self._every = plain
        self.patterns = RequestPatterns(plain)
        """What travels as it came, whatever its arguments: see `_plain`."""
        self.reads = RequestPatterns(_reads(plain, table), _READ_SIZES)
        """Of these, what the tier may answer."""
        self.written = first_arguments({count: self._writing(plain[count], count) for count in _KEYED_COUNTS})
        """The keys (key frames) that a chunk of such requests writes; there may be others among them."""
        self._keyed = {count: plain[count] for count in _KEYED_COUNTS}
        self._first = first_names(table, self._keyed)
        self.first_keyed = RequestPatterns(self._first)
        """What of `patterns` travels so in a namespace, once it has the prefix."""
        self._parser = RequestParser(2**31)

    def look_at_sets(self, wanted: bool) -> None:
        """Have SETs looked at one by one, or no longer: whether they travel as they came."""
        without = {"set"} if wanted else set()
        plain = {
            count: [name for name in names if name not in without] for count, names in self._every.items()
        }
        self.patterns = RequestPatterns(plain)
        self._keyed = {count: plain[count] for count in _KEYED_COUNTS}
        self._first = first_names(self.table, self._keyed)
        self.first_keyed = RequestPatterns(self._first)

    def learn(self) -> bool:
        """Take in that the table has changed; whether `first_keyed` and `reads` are others now.

        Only where there are namespaces: elsewhere Redis' own error about a command that it does not have will
        do.
        """
        first = first_names(self.table, self._keyed)
        if first == self._first:
            return False
        self._first, self.first_keyed = first, RequestPatterns(first)
        self.reads = RequestPatterns(_reads(self._keyed, self.table), _READ_SIZES)
        return True

    def _plain(self, count: int) -> list[str]:
        """Names of commands that may have `count` arguments, the name included, and travel as they came.

        They are stateless whatever their arguments, their replies suit clients of both protocols but for
        nulls, and what they write, if anything, is the key in their first argument.
        """
        names = [
            command.name
            for command in self.table
            if not command.container
            and command.name in PLAIN
            and command.name not in _BLOCK_OPTION
            and self._by_name(command) is Route.SHARED
            and (command.arity == count or 0 < -command.arity <= count)
            and self._writes_first(command, count) is not None
        ]
        rank = {name: place for place, name in enumerate(_COMMON)}
        return sorted(names, key=lambda name: (rank.get(name, len(_COMMON)), name))

    def _writing(self, names: list[str], count: int) -> list[str]:
        commands = ((name, self.table.find(name.encode())) for name in names)
        return [name for name, command in commands if command and self._writes_first(command, count)]

    def _writes_first(self, command: Command, count: int) -> bool | None:
        """Whether a command of `count` arguments writes its first one; None if it may write others."""
        if command.name in REWRITES | OVERTURNS:
            return None
        if "readonly" in command.flags or not ("write" in command.flags or command.key_specs):
            return False
        if "write" not in command.flags or not command.keys_by_count:
            return None
        uses = key_positions(command, [command.name.encode()] + [b""] * (count - 1))
        return True if uses is not None and [use.index for use in uses] == [1] else None

    def find(self, arguments: Sequence[bytes]) -> Command | None:
        """The command that `arguments` name, sub-command included."""
        return self.table.find(arguments[0], arguments[1] if len(arguments) > 1 else None)

    def route(self, arguments: Sequence[bytes]) -> Route:
        """The path of a request, given its first arguments or all."""
        command = self.find(arguments)
        if command is None:
            return Route.LOCAL if arguments[0].lower() == b"sidecar" else self._unknown(arguments)
        if command.name in _BLOCK_OPTION:
            blocks = any(argument.upper() == b"BLOCK" for argument in arguments[1:])
            return Route.ONCE if blocks else Route.SHARED
        route = self._by_name(command)
        if route is Route.LOCAL and not _fits(command.arity, len(arguments)):
            return Route.ONCE
        return route

    def _by_name(self, command: Command) -> Route:
        name = command.name
        for names, route in _BY_NAME:
            if name in names:
                return route
        if "blocking" in command.flags or not command.blocking_known:
            return Route.ONCE
        return Route.SHARED

    def _unknown(self, arguments: Sequence[bytes]) -> Route:
        """A command in no table: if Redis told us all it knows, it refuses this one; else expect anything."""
        container = self.table.find(arguments[0])
        if container is not None:
            return Route.PROBE if container.name == "client" and len(arguments) > 1 else Route.SHARED
        return Route.SHARED if self.table.server_reported else Route.PROBE

    def name(self, arguments: Sequence[bytes]) -> str:
        """The command's name in lower case, `container|sub` for sub-commands; as sent if unknown."""
        command = self.find(arguments)
        return command.name if command else arguments[0].decode("latin-1").lower()

    def disguised(self, arguments: Sequence[bytes]) -> bool:
        """Whether Redis may take what names no command for one: it compares names as C strings here and
        there, which end at a zero byte."""
        return any(b"\0" in word for word in arguments[:2]) and self.find(arguments) is None

    def local_in(self, arguments: Sequence[bytes], namespace: bool) -> bool:
        """Whether a command is the sidecar's own, or one that it answers for clients in a namespace."""
        command = self.find(arguments)
        if command is None:
            return arguments[0].lower() == b"sidecar"
        return namespace and command.name in LOCAL_IN_NAMESPACE and _fits(command.arity, len(arguments))

    def expect(self, arguments: Sequence[bytes]) -> Expect:
        """What a command means for the state of a counted link."""
        what = _EXPECT.get(self.name(arguments), Expect.NOTHING)
        refused = what is Expect.RESET and len(arguments) > 1
        return Expect.NOTHING if refused else what

    def fenced(self, name: str) -> bool:
        """Whether the command asks about writes that this connection must have seen (WAIT).

        Redis stamps a connection's replication offset at any command it runs, so a PING just before covers
        the writes that went over the shared link.
        """
        return name in _FENCED

    def changes_link(self, name: str) -> bool:
        """Whether a command that the sidecar handles otherwise changes the link when sent over it."""
        return name in _CHANGES_LINK

    def first_key(self, request: bytes) -> bytes | None:
        """The first argument of a canonical request."""
        parsed = self._parser.parse(request, 0)
        return parsed.arguments[1] if parsed is not None and len(parsed.arguments) > 1 else None

    def parse(self, requests: bytes) -> list[bytes] | None:
        """The arguments of the first of some requests; None: it is not complete."""
        request = self._parser.parse(requests, 0)
        return request.arguments if request is not None else None

    def repeatable(self, requests: bytes) -> list[tuple[bytes, bool]]:
        """Split a run into its requests, each with whether it only reads (and may be sent again)."""
        parts: list[tuple[bytes, bool]] = []
        pos = 0
        while pos < len(requests) and (request := self._parser.parse(requests, pos)) is not None:
            command = self.find(request.arguments) if request.arguments else None
            reads = command is not None and ("readonly" in command.flags or command.name == "client|caching")
            parts.append((requests[pos : request.end], reads))
            pos = request.end
        return parts


_BY_NAME = (
    (_TRANSACTION, Route.TRANSACTION),
    (_STATE, Route.STATE),
    (_ONCE, Route.ONCE),
    (_TUNNEL, Route.TUNNEL),
    (frozenset(LOCAL), Route.LOCAL),
)


def path_of(command: Command | None, flight: bool) -> str:
    """The path of a command over a shared link; `flight`: fetched, to be kept."""
    if command is not None and "write" in command.flags:
        return "write"
    return "miss" if flight or (command is not None and "readonly" in command.flags) else "other"


def link_protocol(shape: Shape | None, protocol: int, tracked: bool) -> int:
    """The RESP version of the shared link that carries a command for a client speaking `protocol`.

    `shape` tells how the command's RESP3 reply becomes the RESP2 one. Where it is known, the one tracked link
    carries the commands of all clients, since only there do invalidations come in order with the replies.
    Otherwise, and without a tier, replies are relayed as Redis wrote them, on a link of the client's
    protocol.
    """
    return 3 if tracked and shape is not None else protocol


def _reads(plain: dict[int, list[str]], table: CommandTable) -> dict[int, list[str]]:
    """What the tier may answer of `plain` (names by argument count), as far as the server has it."""
    known = {command.name for command in table if table.reports(command)} & _READS
    return {count: [name for name in plain[count] if name in known] for count in _KEYED_COUNTS}


def _fits(arity: int, count: int) -> bool:
    return count == arity if arity > 0 else count >= -arity


PING = encode.request("PING")
"""What is sent before a fenced command."""
