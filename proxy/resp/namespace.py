"""A namespace: a prefix that every key bears in Redis and that no client ever sees.

`Namespace.translate` rewrites a request on its way up and says what has to be stripped from its reply. The
rule is that nothing passes bare: a command goes up only if it is known where its keys stand, or that it names
none and concerns nobody else.

Requests: keys by the key specifications (`proxy.resp.keys`), the key patterns of SORT, the patterns of KEYS
and SCAN, the prefixes of CLIENT TRACKING, and channels (`Namespace.channel`). Replies: what holds keys is
listed in `_STRIPS`; what subscribers get is the business of `proxy.resp.messages`. A script's reply is not
looked into: nobody can tell which of its strings are keys.

Redis docs: "Command key specifications", "Redis keyspace notifications", the pages of the commands.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Final

from proxy.resp import encode
from proxy.resp.commands import Command, CommandTable
from proxy.resp.errors import PannierError
from proxy.resp.globs import LONGEST_PATTERNS, compile_globs
from proxy.resp.keys import BY_OPTIONS, key_positions, pattern_positions, word
from proxy.resp.patterns import SHORT
from proxy.resp.replies import split_replies

Strip = Callable[[bytes], bytes]
"""Takes a whole reply, returns it without the namespace."""

# fmt: off
_HARMLESS: Final = frozenset({
    "asking", "auth", "client|caching", "client|capa", "client|getname", "client|getredir", "client|id",
    "client|info", "client|kill", "client|list", "client|no-evict", "client|no-touch", "client|reply",
    "client|setinfo", "client|setname", "client|tracking", "client|trackinginfo", "client|unblock", "command",
    "command|count", "command|docs", "command|getkeys", "command|getkeysandflags", "command|info",
    "command|list", "discard", "echo", "exec", "hello", "info", "lolwut", "multi", "ping", "psubscribe",
    "publish", "pubsub|channels", "pubsub|numpat", "pubsub|numsub", "pubsub|shardchannels",
    "pubsub|shardnumsub", "punsubscribe", "quit", "readonly", "readwrite", "reset", "script|exists",
    "script|load", "select", "spublish", "ssubscribe", "subscribe", "sunsubscribe", "time", "unsubscribe",
    "unwatch", "wait", "waitaof", "keys", "scan",
})
# fmt: on
"""Commands without keys that concern only the client itself, or whose arguments are translated."""
WHOLE = frozenset({"dbsize", "flushall", "flushdb", "randomkey"})
"""Commands on all keys, which stand for those of the namespace: they take several commands of Redis'."""
_OWN = frozenset({"acl|whoami", "sidecar"})
"""Answered by the sidecar itself."""
SCRIPTS = frozenset({"eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro", "script|load"})
NAMING_ERRORS = frozenset({
    "xack", "xautoclaim", "xclaim", "xgroup|create", "xgroup|createconsumer", "xgroup|delconsumer",
    "xgroup|destroy", "xgroup|setid", "xinfo|consumers", "xinfo|groups", "xinfo|stream", "xpending",
    "xread", "xreadgroup", "eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro", "migrate",
    "client|tracking",
})  # fmt: skip
"""Commands whose errors may name a key (NOGROUP does)."""
_PUBSUB: Final = {
    "subscribe": False, "unsubscribe": False, "ssubscribe": False, "sunsubscribe": False,
    "psubscribe": True, "punsubscribe": True,
}  # fmt: skip
"""Whether the arguments are patterns."""
_LISTS: Final = frozenset({"pubsub|channels", "pubsub|shardchannels"})
_MAY_BE_NOTIFICATIONS: Final = (b"", b"_", b"*", b"?", b"[", b"\\")
"""First bytes of patterns that may match channels of notifications."""
_SCAN_OPTIONS: Final = frozenset({b"MATCH", b"COUNT", b"TYPE"})
"""Each takes a value."""
_KEYSPACE: Final = re.compile(rb"__keyspace@[^:]*?__:", re.S).match
_KEYEVENT: Final = re.compile(rb"__keyevent@[^:]*?__:", re.S).match
_KEYSPACE_LINES: Final = re.compile(rb"(?m)^db\d+:keys=.*\r\n").sub
_MOST_QUOTED: Final = 128
"""Bytes of arguments in Redis' error about an unknown command, roughly."""
_UNKNOWN: Final = b"-ERR unknown command "
_SPECIAL: Final = re.compile(rb"([*?\[\]\\^-])")


class RefusedHere(PannierError):
    """A command that cannot be used in a namespace; the text says why."""

    @property
    def reply(self) -> bytes:
        """The error frame for the client."""
        return encode.error(f"ERR pannier: {self}")


class RefusedAsRedis(RefusedHere):
    """A command that Redis would refuse as well; the text is Redis'."""

    @property
    def reply(self) -> bytes:
        """The error frame for the client."""
        return encode.error(f"ERR {self}")


class Namespace:
    """One prefix.

    `channels`: whether pub/sub channels bear it as well. `table`: what the server has. `bus`: what the
    channels of the eviction bus begin with, of which clients see their own namespace's.
    """

    def __init__(
        self, name: str, channels: bool = False, table: CommandTable | None = None, bus: str = ""
    ) -> None:
        self.name = name
        self._bus = bus.encode()
        self._own_bus = (bus + name).encode()
        self.table = table
        self.prefix = name.encode() + b":"
        self.pattern = _SPECIAL.sub(rb"\\\1", self.prefix)
        """What matches the prefix and nothing else in a glob pattern."""
        self.channels = channels
        self._size = len(self.prefix)

    # --- keys

    def bulk(self, frame: bytes) -> bytes:
        """A key, given as the bulk string it is, with the prefix."""
        end = frame.index(b"\r\n")
        return b"$%d\r\n%b%b" % (int(frame[1:end]) + self._size, self.prefix, frame[end + 2 :])

    def stripped(self, frame: bytes) -> bytes:
        """A bulk string without the prefix, if it bears it."""
        begin = frame.find(b"\r\n") + 2
        if frame[:1] != b"$" or not frame.startswith(self.prefix, begin):
            return frame
        return b"$%d\r\n%b" % (len(frame) - begin - 2 - self._size, frame[begin + self._size :])

    def holds(self, frame: bytes) -> bool:
        """Whether a bulk string bears the prefix."""
        return frame.startswith(self.prefix, frame.find(b"\r\n") + 2)

    # --- requests

    def translate(self, command: Command | None, arguments: list[bytes]) -> tuple[list[bytes], Strip | None]:
        """What to send instead of a request, and what makes its reply the client's; None: nothing.

        `command` is what the table finds for `arguments` (the name included). Raises RefusedHere.
        """
        command = self._known(command, arguments)
        name = command.name
        special = _ARGUMENTS.get(name)
        if special is not None:
            translated = special(self, arguments)
        elif name in _HARMLESS or name in _OWN or name.endswith("|help"):
            translated = arguments
        elif name in WHOLE and 0 < command.arity != len(arguments):
            translated = arguments  # Redis refuses it
        elif name in WHOLE:
            raise RefusedHere(
                f"{spoken(name)} takes several steps in a namespace: it cannot be part of a transaction"
            )
        elif command.container and len(arguments) == 1:
            translated = arguments  # Redis refuses it
        else:
            translated = self._prefixed(command, arguments)
        return translated, self._strip(name, arguments, translated)

    def _strip(self, name: str, arguments: list[bytes], translated: list[bytes]) -> Strip | None:
        """What makes the reply to a translated request the client's; None: nothing."""
        if name in _LISTS:
            return functools.partial(self.strip_channels, arguments[2] if len(arguments) == 3 else b"*")
        strip = _STRIPS.get(name)
        bound: Strip | None = None if strip is None else strip.__get__(self)
        unsure = self.table is not None and not self.table.server_reported
        if name not in NAMING_ERRORS and not unsure:  # if unsure, Redis may not know the command
            return bound
        keys = [real for real, given in zip(translated, arguments, strict=False) if real is not given]
        return functools.partial(self._strip_either, bound, arguments, keys)

    def _strip_either(
        self, strip: Strip | None, arguments: list[bytes], keys: list[bytes], reply: bytes
    ) -> bytes:
        if reply[:1] == b"-":
            overlaps = word(arguments[0]) == b"client"
            return (self.strip_overlap if overlaps else self.strip_error)(arguments, keys, reply)
        return reply if strip is None else strip(reply)

    def _prefixed(self, command: Command, arguments: list[bytes]) -> list[bytes]:
        if "admin" in command.flags or not _has_keys(command):
            raise RefusedHere(
                f"{spoken(command.name)} is refused in a namespace: it concerns the whole server"
            )
        uses = key_positions(command, arguments)
        patterns = pattern_positions(command, arguments)
        if (uses is None or patterns is None) and command.name in BY_OPTIONS:
            fits = len(arguments) == command.arity or len(arguments) >= -command.arity > 0
            wrong = f"wrong number of arguments for '{command.name}' command"
            raise RefusedAsRedis("syntax error" if fits else wrong)
        if uses is None or patterns is None:
            raise RefusedHere(
                f"{spoken(command.name)} is refused in a namespace: which arguments are keys is not known"
            )
        if patterns and b"*" in self.prefix:
            raise RefusedHere(
                f"{spoken(command.name)} cannot take BY or GET patterns in a namespace with a * in its name"
            )
        translated = list(arguments)
        for index in {use.index for use in uses}.union(patterns):
            translated[index] = self.prefix + arguments[index]
        return translated

    def leading(
        self, command: Command | None, arguments: list[bytes], count: int
    ) -> tuple[list[bytes], Strip | None] | None:
        """As `translate`, for the first of the `count` arguments of a request that is still arriving.

        None if it takes more of them to tell. Raises RefusedHere.
        """
        command = self._known(command, arguments)
        known, missing = len(arguments), count - len(arguments)
        if command.name in _ARGUMENTS or command.name in _WHOLE_ONLY or not _has_keys(command):
            return None
        if missing > SHORT and not command.keys_by_count:
            return None
        # Keys that follow from the count alone go on to the end, or stand in front of it.
        whole = arguments + [b""] * min(missing, SHORT)
        uses = key_positions(command, whole)
        if not uses or any(use.index >= known for use in uses):
            return None
        translated, strip = self.translate(command, whole)
        return translated[:known], strip

    def _known(self, command: Command | None, arguments: list[bytes]) -> Command:
        """The command, if the server has it. Raises RefusedHere, in Redis' words where it is sure to
        refuse."""
        table = self.table
        if command is not None and (table is None or table.reports(command)):
            return command
        container = table.find(arguments[0]) if table is not None else None
        if table is None or not table.server_reported or (container and table.reports(container)):
            if table is not None and container is not None and table.lists_all(container):
                raise RefusedAsRedis(_unknown_sub(arguments))
            name = b" ".join(arguments[:1]).decode("utf-8", "replace")[:128]
            raise RefusedHere(
                f"'{name}' is refused in a namespace: the command, or its sub-command, is not known"
            )
        raise RefusedAsRedis(_unknown(arguments, table.full_form))

    def _scan(self, arguments: list[bytes]) -> list[bytes]:
        kept, pattern, at = arguments[:2], b"*", 2
        while at + 1 < len(arguments) and arguments[at].upper() in _SCAN_OPTIONS:
            if arguments[at].upper() == b"MATCH":
                pattern = arguments[at + 1]
            else:
                kept += arguments[at : at + 2]
            at += 2
        rest = arguments[at:]
        if len(rest) == 1 and rest[0].upper() in _SCAN_OPTIONS:
            return arguments  # Redis refuses it: the value is missing
        # What is left Redis refuses, or a newer one knows; the last MATCH is the one that counts.
        return [*kept, *rest, b"MATCH", self.pattern + pattern] if len(arguments) > 1 else arguments

    def _keys(self, arguments: list[bytes]) -> list[bytes]:
        return [arguments[0], self.pattern + arguments[1]] if len(arguments) == 2 else arguments

    def _tracking(self, arguments: list[bytes]) -> list[bytes]:
        translated = arguments[:3]
        broadcast, prefixes, at = False, False, 3
        while at < len(arguments):
            option = word(arguments[at])
            if option == b"prefix" and at + 1 < len(arguments):
                prefixes = True
                translated += [arguments[at], self.prefix + arguments[at + 1]]
                at += 2
                continue
            width = 2 if option == b"redirect" else 1
            broadcast = broadcast or option == b"bcast"
            translated += arguments[at : at + width]
            at += width
        if broadcast and not prefixes:
            translated += [b"PREFIX", self.prefix]
        return translated

    # --- channels

    def channel(self, name: bytes) -> bytes:
        """What a channel is called in Redis. Raises RefusedHere."""
        if self._foreign(name):
            raise RefusedHere("this channel is another namespace's")
        if self._bus and name == self._own_bus:
            return name
        head = _KEYSPACE(name)
        if head is not None:
            return name[: head.end()] + self.prefix + name[head.end() :]
        return self.prefix + name if self.channels and _KEYEVENT(name) is None else name

    def _foreign(self, name: bytes) -> bool:
        """Whether a channel of Redis' is another namespace's of the eviction bus."""
        return bool(self._bus) and name.startswith(self._bus) and name != self._own_bus

    def channel_pattern(self, pattern: bytes) -> bytes:
        """What a pattern of channels is called in Redis. Raises RefusedHere."""
        head = _KEYSPACE(pattern)
        if head is not None:
            return pattern[: head.end()] + self.pattern + pattern[head.end() :]
        if pattern.startswith(b"__key"):
            if _KEYEVENT(pattern) is None and pattern.partition(b"__:")[2] not in (b"", b"*"):
                raise RefusedHere(
                    "a pattern of notifications must begin with __keyspace@ or __keyevent@ in a namespace, "
                    "or end behind its __:*"
                )
            return pattern
        return self.pattern + pattern if self.channels else pattern

    def own_channel(self, name: bytes) -> bytes | None:
        """What the client calls a channel of Redis'; None if it is not the client's to see."""
        if self._foreign(name):
            return None
        if self._bus and name == self._own_bus:
            return name
        head = _KEYSPACE(name)
        if head is not None:
            at = head.end()
            return name[:at] + name[at + self._size :] if name.startswith(self.prefix, at) else None
        if not self.channels or _KEYEVENT(name) is not None:
            return name
        return name[self._size :] if name.startswith(self.prefix) else None

    def own_pattern(self, pattern: bytes) -> bytes:
        """What the client calls a pattern."""
        head = _KEYSPACE(pattern)
        at = head.end() if head is not None else 0
        bears = head is not None or (self.channels and not pattern.startswith(b"__key"))
        if not bears or not pattern.startswith(self.pattern, at):
            return pattern
        return pattern[:at] + pattern[at + len(self.pattern) :]

    @staticmethod
    def tells_of_keys(channel: bytes) -> bool:
        """Whether the messages of a channel are keys."""
        return _KEYEVENT(channel) is not None

    def _subscribe(self, arguments: list[bytes]) -> list[bytes]:
        if _PUBSUB[arguments[0].lower().decode("ascii", "replace")]:
            return [arguments[0], *map(self.channel_pattern, arguments[1:])]
        return [arguments[0], *map(self.channel, arguments[1:])]

    def _publish(self, arguments: list[bytes]) -> list[bytes]:
        if len(arguments) != 3:
            return arguments
        name, channel, message = arguments
        if _KEYEVENT(channel) is not None:
            message = self.prefix + message  # it names a key
        return [name, self.channel(channel), message]

    def _list_channels(self, arguments: list[bytes]) -> list[bytes]:
        if len(arguments) != 3:
            return arguments
        pattern = arguments[2]
        if len(pattern) > LONGEST_PATTERNS:
            raise RefusedHere(f"a pattern of channels has at most {LONGEST_PATTERNS} bytes in a namespace")
        if pattern[:1] in _MAY_BE_NOTIFICATIONS:
            return arguments[:2]  # all of them: what is called otherwise in Redis is told apart in the reply
        return [*arguments[:2], self.pattern + pattern] if self.channels else arguments

    def _count_subscribers(self, arguments: list[bytes]) -> list[bytes]:
        return [*arguments[:2], *map(self.channel, arguments[2:])]

    # --- replies

    def strip_error(self, arguments: list[bytes], keys: list[bytes], reply: bytes) -> bytes:
        """An error to a request that the client gave as `arguments`, and in which Redis got `keys`.

        These alone are stripped, and only where Redis names keys, in the two forms of NOGROUP: an error may
        quote anything else as well, a group's name, or what a script has made up.
        """
        if reply.startswith(_UNKNOWN):
            return encode.error("ERR " + _unknown(arguments, reply[len(_UNKNOWN) :][:1] == b"'"))
        if not keys or b"'" + self.prefix not in reply:
            return reply
        shown = b"|".join(re.escape(_in_error(key)[self._size :]) for key in keys)
        place = rb"(No such key '|' for key name ')%b(%b)(?=')" % (re.escape(self.prefix), shown)
        return re.sub(place, rb"\1\2", reply)

    def strip_overlap(self, arguments: list[bytes], keys: list[bytes], reply: bytes) -> bytes:
        """CLIENT TRACKING's error about prefixes that overlap, which may have been given long before."""
        return reply.replace(b"refix '" + self.prefix, b"refix '")

    def strip_keys(self, reply: bytes) -> bytes:
        """An array of keys."""
        return _each(reply, self.stripped)

    def strip_first(self, reply: bytes) -> bytes:
        """An array whose first element is a key (BLPOP, LMPOP …), or a null."""
        items = elements(reply)
        return _array(reply, [self.stripped(items[0]), *items[1:]]) if items else reply

    def strip_scan(self, reply: bytes) -> bytes:
        """SCAN's cursor and keys."""
        items = elements(reply)
        return _array(reply, [items[0], self.strip_keys(items[1])]) if len(items) == 2 else reply

    def strip_streams(self, reply: bytes) -> bytes:
        """XREAD's: a map from keys in RESP3, an array of pairs in RESP2."""
        if reply[:1] == b"%":
            items = elements(reply)
            items[::2] = map(self.stripped, items[::2])
            return _array(reply, items)
        return _each(reply, self.strip_first)

    def strip_channels(self, pattern: bytes, reply: bytes) -> bytes:
        """An array of channels, of which those are left that are one's own and match a pattern.

        That of the eviction bus is Pannier's own affair.
        """
        if reply[:1] != b"*":
            return reply
        hidden = self._own_bus if self._bus else None
        names = [name for name in map(text, elements(reply)) if name != hidden]
        matches = compile_globs([pattern]).fullmatch
        own = [name for name in map(self.own_channel, names) if name is not None and matches(name)]
        return encode.array(map(encode.bulk, own))

    def strip_subscribers(self, reply: bytes) -> bytes:
        """Channels and numbers in turn."""
        items = elements(reply)
        for at in range(0, len(items), 2):
            own = self.own_channel(text(items[at]))
            items[at] = encode.bulk(own) if own is not None else items[at]
        return _array(reply, items) if items else reply

    def strip_info(self, reply: bytes) -> bytes:
        """INFO: how many keys others have is nobody's business."""
        kind = reply[:1]
        if kind not in (b"$", b"="):
            return reply
        kept = _KEYSPACE_LINES(b"", text(reply))
        return b"%b%d\r\n%b\r\n" % (kind, len(kept), kept)

    def strip_tracking(self, reply: bytes) -> bytes:
        """CLIENT TRACKINGINFO: the prefixes are the last value."""
        items = elements(reply)
        return _array(reply, [*items[:-1], self.strip_keys(items[-1])]) if items else reply


def spoken(name: str) -> str:
    """A command's name as people write it."""
    return name.replace("|", " ").upper()


def text(frame: bytes) -> bytes:
    """What a bulk string holds."""
    return frame[frame.find(b"\r\n") + 2 : -2]


def _unknown(arguments: Sequence[bytes], full_form: bool) -> str:
    """What Redis says of a command that it does not have; before Redis 7 in other quotes."""
    name, said = arguments[0][:128], b""
    for argument in arguments[1:]:
        if len(said) >= _MOST_QUOTED:
            break
        argument = argument[: _MOST_QUOTED - len(said)].partition(b"\0")[0]
        said += b"'%b' " % argument if full_form else b"`%b`, " % argument
    quoted = b"'%b'" % name if full_form else b"`%b`" % name
    text = b"unknown command %b, with args beginning with: %b" % (quoted, said)
    return text.decode("utf-8", "surrogateescape")


def _unknown_sub(arguments: Sequence[bytes]) -> str:
    """What Redis 7 says of a sub-command that it does not have."""
    given = arguments[1].partition(b"\0")[0][:128]
    text = b"unknown subcommand '%b'. Try %b HELP." % (given, arguments[0].upper())
    return text.translate(_ONE_LINE).decode("utf-8", "surrogateescape")


def _in_error(key: bytes) -> bytes:
    """How Redis shows a key in an error: as a C string, on one line."""
    return key.partition(b"\0")[0].translate(_ONE_LINE)


_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


def _has_keys(command: Command) -> bool:
    return any("not_key" not in spec.flags for spec in command.key_specs)


def elements(reply: bytes) -> list[bytes]:
    """The elements of an aggregate, keys and values of a map in turn; none of anything else."""
    if reply[:1] not in (b"*", b"%", b"~", b">"):
        return []
    at = reply.index(b"\r\n")
    count = int(reply[1:at]) * (2 if reply[:1] == b"%" else 1)
    return split_replies(reply, at + 2, count) if count > 0 else []


def _array(reply: bytes, items: Sequence[bytes]) -> bytes:
    """An aggregate with other elements."""
    return reply[: reply.index(b"\r\n") + 2] + b"".join(items)


def _each(reply: bytes, change: Strip) -> bytes:
    items = elements(reply)
    return _array(reply, list(map(change, items))) if items else reply


_WHOLE_ONLY: Final = frozenset({"sort", "sort_ro"})
"""Commands whose patterns may stand anywhere."""

_ARGUMENTS: Final[dict[str, Callable[[Namespace, list[bytes]], list[bytes]]]] = {
    "client|tracking": Namespace._tracking,
    "keys": Namespace._keys,
    "publish": Namespace._publish,
    "pubsub|channels": Namespace._list_channels,
    "pubsub|numsub": Namespace._count_subscribers,
    "pubsub|shardchannels": Namespace._list_channels,
    "pubsub|shardnumsub": Namespace._count_subscribers,
    "scan": Namespace._scan,
    "spublish": Namespace._publish,
    **dict.fromkeys(_PUBSUB, Namespace._subscribe),
}
"""Commands whose arguments are translated otherwise than by prefixing keys."""

_STRIPS: Final[dict[str, Callable[[Namespace, bytes], bytes]]] = {
    **dict.fromkeys(
        ("blpop", "brpop", "bzpopmin", "bzpopmax", "blmpop", "bzmpop", "lmpop", "zmpop"),
        Namespace.strip_first,
    ),
    "client|trackinginfo": Namespace.strip_tracking,
    "info": Namespace.strip_info,
    "keys": Namespace.strip_keys,
    "pubsub|numsub": Namespace.strip_subscribers,
    "pubsub|shardnumsub": Namespace.strip_subscribers,
    "scan": Namespace.strip_scan,
    "xread": Namespace.strip_streams,
    "xreadgroup": Namespace.strip_streams,
}
"""What the replies of commands need whose replies may hold keys."""
