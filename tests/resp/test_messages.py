"""Frames of a connection that subscribes or is told of changes, in whatever order they come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.errors import UpstreamDesync
from proxy.resp.messages import Translator
from proxy.resp.namespace import Namespace, Strip

TABLE = CommandTable.load()
NS, OPEN = Namespace("ns"), Namespace("ns", channels=True)
QUEUED = b"+QUEUED\r\n"
POPPED, OWN_POPPED = b"*2\r\n$4\r\nns:k\r\n*1\r\n$1\r\nv\r\n", b"*2\r\n$1\r\nk\r\n*1\r\n$1\r\nv\r\n"


def items(*values: bytes | int | list[bytes] | None, protocol: int = 2) -> bytes:
    """The elements of a frame."""
    parts = []
    for value in values:
        if isinstance(value, list):
            parts.append(encode.array(map(encode.bulk, value)))
        elif value is None:
            parts.append(encode.null(protocol))
        else:
            parts.append(encode.integer(value) if isinstance(value, int) else encode.bulk(value))
    return b"".join(parts)


def told(protocol: int, *values: bytes | int | list[bytes] | None) -> bytes:
    """What comes unasked: a push in RESP3, an array in RESP2."""
    return b"%b%d\r\n%b" % (b">" if protocol == 3 else b"*", len(values), items(*values, protocol=protocol))


def array(*values: bytes | int | list[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(values), items(*values))


class Talk:
    """A translator, and the namespace that its requests come from."""

    def __init__(self, protocol: int, namespace: Namespace | None = NS) -> None:
        self.protocol = protocol
        self.namespace = namespace
        self.translator = Translator(namespace, protocol)

    def send(self, *words: bytes | str) -> list[bytes]:
        """Send a request as the client writes it; what goes to Redis."""
        arguments = [word if isinstance(word, bytes) else word.encode() for word in words]
        strip: Strip | None = None
        if self.namespace is not None:
            command = TABLE.find(*arguments[:2])
            arguments, strip = self.namespace.translate(command, arguments)
        self.translator.sent(arguments, strip)
        return arguments

    def take(self, *frames: bytes) -> list[bytes]:
        return [self.translator.take(frame) for frame in frames]

    def told(self, *values: bytes | int | list[bytes] | None) -> bytes:
        """What the client gets of a frame that comes unasked."""
        return self.translator.take(told(self.protocol, *values))

    def subscribe(self, *names: str, kind: str = "subscribe") -> None:
        for count, name in enumerate(self.send(kind, *names)[1:], 1):
            assert self.told(kind.encode(), name, count) == told(self.protocol, kind.encode(), names[count - 1].encode(), count)


@pytest.fixture(params=[2, 3])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


class TestReplies:
    def test_are_stripped_in_the_order_of_their_requests(self, protocol: int) -> None:
        talk = Talk(protocol)
        talk.send("GET", "k")
        talk.send("LMPOP", "1", "k", "LEFT")
        talk.send("KEYS", "*")
        keys = b"*1\r\n$4\r\nns:k\r\n"
        assert talk.take(b"$4\r\nns:k\r\n", POPPED, keys) == [b"$4\r\nns:k\r\n", OWN_POPPED, b"*1\r\n$1\r\nk\r\n"]

    def test_that_look_like_messages(self, protocol: int) -> None:
        """While nothing is subscribed, an array is a reply."""
        talk = Talk(protocol, OPEN)
        for reply in (
            array(b"message", b"x", b"y"), array(b"message", b"ns:x", b"y"), array(b"pmessage", b"*", b"x", b"y"),
            array(b"smessage", b"x", b"y"), array(b"subscribe", b"x", 1), array(b"invalidate", [b"x"]), b"*0\r\n", b"*-1\r\n",
        ):  # fmt: skip
            talk.send("LRANGE", "k", "0", "-1")
            assert talk.take(reply) == [reply]
        talk.subscribe("a")
        if protocol == 3:
            talk.send("LRANGE", "k", "0", "-1")
            assert talk.take(array(b"message", b"ns:x", b"y")) == [array(b"message", b"ns:x", b"y")]

    def test_between_a_subscription_sent_and_its_confirmation(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.send("LRANGE", "k", "0", "-1")
        talk.send("SUBSCRIBE", "a")
        talk.send("UNSUBSCRIBE", "a")
        talk.send("LRANGE", "k", "0", "-1")
        lookalike = array(b"message", b"x", b"y")
        assert talk.take(lookalike) == [lookalike]
        assert talk.told(b"subscribe", b"ns:a", 1) == told(protocol, b"subscribe", b"a", 1)
        assert talk.told(b"unsubscribe", b"ns:a", 0) == told(protocol, b"unsubscribe", b"a", 0)
        assert talk.take(lookalike) == [lookalike]

    def test_nobody_asked_for_pass(self, protocol: int) -> None:
        assert Talk(protocol).take(b"+OK\r\n", b"-ERR x\r\n") == [b"+OK\r\n", b"-ERR x\r\n"]

    def test_to_a_ping_while_subscribed(self) -> None:
        talk = Talk(2)
        talk.subscribe("a")
        talk.send("PING")
        talk.send("PING", "x")
        assert talk.take(array(b"pong", b""), array(b"pong", b"x")) == [array(b"pong", b""), array(b"pong", b"x")]
        talk.send("UNSUBSCRIBE")
        assert talk.told(b"unsubscribe", b"a", 0)
        talk.send("LMPOP", "1", "k", "LEFT")
        assert talk.take(POPPED) == [OWN_POPPED]


class TestSubscriptions:
    @pytest.mark.parametrize("kind", ["subscribe", "psubscribe", "ssubscribe", "SUBSCRIBE"])
    def test_of_several_channels_are_confirmed_one_by_one(self, protocol: int, kind: str) -> None:
        talk = Talk(protocol, OPEN)
        assert talk.send(kind, "a", "b", "a") == [kind.encode(), b"ns:a", b"ns:b", b"ns:a"]
        talk.send("LMPOP", "1", "k", "LEFT") if protocol == 3 else talk.send("PING")
        word = kind.lower().encode()
        for name, count in ((b"a", 1), (b"b", 2), (b"a", 2)):
            assert talk.told(word, b"ns:" + name, count) == told(protocol, word, name, count)
        reply, expected = (POPPED, OWN_POPPED) if protocol == 3 else (array(b"pong", b""), array(b"pong", b""))
        assert talk.take(reply) == [expected]

    def test_are_ended_all_at_once(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.subscribe("a", "b", "c")
        talk.subscribe("a*", kind="psubscribe")
        talk.send("UNSUBSCRIBE")
        for left, name in ((3, b"b"), (2, b"a"), (1, b"c")):
            assert talk.told(b"unsubscribe", b"ns:" + name, left) == told(protocol, b"unsubscribe", name, left)
        talk.send("PUNSUBSCRIBE")
        assert talk.told(b"punsubscribe", b"ns:a*", 0) == told(protocol, b"punsubscribe", b"a*", 0)
        talk.send("LMPOP", "1", "k", "LEFT")
        assert talk.take(POPPED) == [OWN_POPPED]

    @pytest.mark.parametrize("kind", ["unsubscribe", "punsubscribe", "sunsubscribe"])
    def test_that_are_none_are_ended_by_one_null(self, protocol: int, kind: str) -> None:
        talk = Talk(protocol)
        talk.send(kind)
        talk.send("LMPOP", "1", "k", "LEFT")
        null = told(protocol, kind.encode(), None, 0)
        assert talk.take(null, POPPED) == [null, OWN_POPPED]

    def test_ended_that_never_were(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.send("UNSUBSCRIBE", "x", "y")
        talk.send("LMPOP", "1", "k", "LEFT")
        assert [talk.told(b"unsubscribe", b"ns:" + name, 0) for name in (b"x", b"y")] == [told(protocol, b"unsubscribe", name, 0) for name in (b"x", b"y")]
        assert talk.take(POPPED) == [OWN_POPPED]

    def test_end_of_all_sent_before_they_are_confirmed(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.send("SUBSCRIBE", "a", "b")
        talk.send("UNSUBSCRIBE")
        talk.send("LMPOP", "1", "k", "LEFT")
        for word, name, count in ((b"subscribe", b"a", 1), (b"subscribe", b"b", 2), (b"unsubscribe", b"b", 1), (b"unsubscribe", b"a", 0)):
            assert talk.told(word, b"ns:" + name, count) == told(protocol, word, name, count)
        assert talk.take(POPPED) == [OWN_POPPED]

    def test_end_of_all_with_another_behind(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.subscribe("a", "b")
        talk.send("UNSUBSCRIBE")
        talk.send("UNSUBSCRIBE", "x")
        talk.send("LMPOP", "1", "k", "LEFT")
        for name, count in ((b"a", 1), (b"b", 0), (b"x", 0)):
            assert talk.told(b"unsubscribe", b"ns:" + name, count) == told(protocol, b"unsubscribe", name, count)
        assert talk.take(POPPED) == [OWN_POPPED]

    @pytest.mark.parametrize("error", [b"-NOPERM No permissions to access a channel\r\n", b"-ERR wrong number of arguments for 'subscribe' command\r\n"])
    @pytest.mark.parametrize("names", [[], ["a"], ["a", "b"]])
    def test_refused_are_one_error(self, protocol: int, error: bytes, names: list[str]) -> None:
        talk = Talk(protocol)
        talk.send("SUBSCRIBE", *names)
        talk.send("LMPOP", "1", "k", "LEFT")
        assert talk.take(error, POPPED) == [error, OWN_POPPED]

    def test_of_keyspace_channels(self, protocol: int) -> None:
        talk = Talk(protocol)
        talk.subscribe("__keyspace@0__:k", "__keyevent@0__:set")
        talk.subscribe("__keyspace@*__:*", kind="psubscribe")

    def test_under_a_pattern_that_looks_prefixed(self, protocol: int) -> None:
        """Where channels do not bear the prefix, what looks so is the client's own word."""
        talk = Talk(protocol)
        talk.subscribe("ns:a")
        talk.subscribe("ns:*", kind="psubscribe")
        frame = told(protocol, b"pmessage", b"ns:*", b"ns:a", b"m")
        assert talk.take(frame) == [frame]


class TestMessages:
    def test_of_channels(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.subscribe("a")
        assert talk.told(b"message", b"ns:a", b"ns:m") == told(protocol, b"message", b"a", b"ns:m")
        assert talk.told(b"message", b"a", b"m") == b""
        assert talk.told(b"smessage", b"ns:a", b"m") == told(protocol, b"smessage", b"a", b"m")
        assert talk.told(b"pmessage", b"ns:*", b"ns:a", b"m") == told(protocol, b"pmessage", b"*", b"a", b"m")
        assert talk.told(b"pmessage", b"__key*", b"other:a", b"m") == b""

    def test_of_channels_that_bear_no_prefix(self, protocol: int) -> None:
        talk = Talk(protocol)
        talk.subscribe("a")
        for frame in (told(protocol, b"message", b"a", b"m"), told(protocol, b"message", b"ns:a", b"m"), told(protocol, b"pmessage", b"*", b"ns:a", b"m")):
            assert talk.take(frame) == [frame]

    @pytest.mark.parametrize("namespace", [NS, OPEN])
    def test_of_keyspaces(self, protocol: int, namespace: Namespace) -> None:
        talk = Talk(protocol, namespace)
        talk.subscribe("__keyspace@0__:*", kind="psubscribe")
        assert talk.told(b"message", b"__keyspace@0__:ns:k", b"set") == told(protocol, b"message", b"__keyspace@0__:k", b"set")
        assert talk.told(b"pmessage", b"__keyspace@0__:ns:*", b"__keyspace@0__:ns:k", b"set") == told(protocol, b"pmessage", b"__keyspace@0__:*", b"__keyspace@0__:k", b"set")
        assert talk.told(b"pmessage", b"*", b"__keyspace@0__:other:k", b"set") == b""
        assert talk.told(b"message", b"__keyspace@0__:k", b"set") == b""

    @pytest.mark.parametrize("namespace", [NS, OPEN])
    def test_of_events(self, protocol: int, namespace: Namespace) -> None:
        talk = Talk(protocol, namespace)
        talk.subscribe("__keyevent@0__:set")
        assert talk.told(b"message", b"__keyevent@0__:set", b"ns:k") == told(protocol, b"message", b"__keyevent@0__:set", b"k")
        assert talk.told(b"message", b"__keyevent@0__:set", b"other:k") == b""
        assert talk.told(b"message", b"__keyevent@0__:set", b"ns") == b""
        assert talk.told(b"pmessage", b"__keyevent@*", b"__keyevent@0__:set", b"ns:") == told(protocol, b"pmessage", b"__keyevent@*", b"__keyevent@0__:set", b"")

    def test_long_and_odd(self, protocol: int) -> None:
        talk = Talk(protocol, OPEN)
        talk.subscribe("a")
        for payload in (b"x" * 70_000, b"", b"*3\r\n$7\r\nmessage\r\n", b"\r\n"):
            assert talk.told(b"message", b"ns:a", payload) == told(protocol, b"message", b"a", payload)

    def test_without_a_namespace_pass_as_they_are(self, protocol: int) -> None:
        talk = Talk(protocol, None)
        talk.subscribe("ns:a")
        for frame in (
            told(protocol, b"message", b"ns:a", b"m"), told(protocol, b"message", b"__keyspace@0__:k", b"set"),
            told(protocol, b"message", b"__keyevent@0__:set", b"k"), told(protocol, b"pmessage", b"", b":a", b"m"),
        ):  # fmt: skip
            assert talk.take(frame) == [frame]


class TestInvalidations:
    def test_are_of_own_keys(self) -> None:
        talk = Talk(3)
        for keys, own in (([b"ns:a"], [b"a"]), ([b"ns:a", b"other:b", b"ns:"], [b"a", b""]), ([b"ns:" + b"x" * 300], [b"x" * 300])):
            assert talk.told(b"invalidate", keys) == told(3, b"invalidate", own)
        assert talk.told(b"invalidate", [b"other:a"]) == b""
        assert talk.told(b"invalidate", [b"ns", b"a"]) == b""
        assert talk.told(b"invalidate", None) == told(3, b"invalidate", None), "everything"

    def test_redirected_come_as_messages(self, protocol: int) -> None:
        talk = Talk(protocol)
        talk.subscribe("__redis__:invalidate")
        channel = b"__redis__:invalidate"
        assert talk.told(b"message", channel, [b"ns:a", b"other:b"]) == told(protocol, b"message", channel, [b"a"])
        assert talk.told(b"message", channel, [b"other:b"]) == b""
        for null in (b"*-1\r\n", b"$-1\r\n", b"_\r\n"):
            frame = b"%b3\r\n%b%b" % (b">" if protocol == 3 else b"*", items(b"message", channel), null)
            assert talk.take(frame) == [frame]

    def test_beside_a_name_with_channels(self) -> None:
        """The client asks for `__redis__:invalidate`; Redis sends on that channel whatever it is subscribed to."""
        talk = Talk(2, OPEN)
        talk.subscribe("__redis__:invalidate")
        assert talk.told(b"message", b"__redis__:invalidate", [b"ns:a"]) == told(2, b"message", b"__redis__:invalidate", [b"a"])

    def test_do_not_count_as_replies(self) -> None:
        talk = Talk(3)
        talk.send("LMPOP", "1", "k", "LEFT")
        assert talk.take(told(3, b"invalidate", [b"ns:k"]), told(3, b"other", b"x"), POPPED) == [told(3, b"invalidate", [b"k"]), told(3, b"other", b"x"), OWN_POPPED]


class TestHello:
    def test_changes_what_messages_look_like(self) -> None:
        talk = Talk(2)
        talk.send("HELLO", "3")
        assert talk.take(b"%1\r\n$5\r\nproto\r\n:3\r\n") == [b"%1\r\n$5\r\nproto\r\n:3\r\n"]
        talk.protocol = 3
        talk.subscribe("__keyspace@0__:k")
        talk.send("LRANGE", "k", "0", "-1")
        lookalike = array(b"message", b"__keyspace@0__:other:k", b"set")
        assert talk.take(lookalike) == [lookalike]
        assert talk.told(b"message", b"__keyspace@0__:other:k", b"set") == b""

    @pytest.mark.parametrize("words", [["HELLO"], ["HELLO", "4"], ["HELLO", "x"]])
    def test_refused_changes_nothing(self, words: list[str]) -> None:
        talk = Talk(2)
        talk.send(*words)
        error = b"-NOPROTO unsupported protocol version\r\n"
        assert talk.take(error) == [error]
        talk.subscribe("__keyspace@0__:k")
        assert talk.told(b"message", b"__keyspace@0__:other:k", b"set") == b""


class TestTransactions:
    def test_strip_what_was_queued_each_by_its_own(self, protocol: int) -> None:
        talk = Talk(protocol)
        for words in (["MULTI"], ["LMPOP", "1", "k", "LEFT"], ["GET", "k"], ["KEYS", "*"], ["LMPOP", "1", "k", "LEFT"], ["EXEC"], ["KEYS", "*"]):
            talk.send(*words)
        assert talk.take(encode.OK, *[QUEUED] * 4) == [encode.OK, *[QUEUED] * 4]
        keys, own = b"*1\r\n$4\r\nns:k\r\n", b"*1\r\n$1\r\nk\r\n"
        value = b"$4\r\nns:k\r\n"
        assert talk.take(b"*4\r\n" + POPPED + value + keys + b"*-1\r\n") == [b"*4\r\n" + OWN_POPPED + value + own + b"*-1\r\n"]
        assert talk.take(keys) == [own]

    @pytest.mark.parametrize("end", [b"*-1\r\n", b"_\r\n", b"-EXECABORT Transaction discarded because of previous errors.\r\n"])
    def test_aborted_leave_nothing_for_the_next(self, protocol: int, end: bytes) -> None:
        talk = Talk(protocol)
        keys = b"*1\r\n$4\r\nns:k\r\n"
        talk.send("MULTI")
        talk.send("KEYS", "*")
        talk.send("EXEC")
        assert talk.take(encode.OK, QUEUED, end) == [encode.OK, QUEUED, end]
        talk.send("MULTI")
        talk.send("GET", "k")
        talk.send("EXEC")
        assert talk.take(encode.OK, QUEUED, b"*1\r\n" + keys)[2] == b"*1\r\n" + keys

    def test_answered_otherwise_than_expected_end_the_connection(self, protocol: int) -> None:
        """Rather that than show a key as it is called in Redis."""
        talk = Talk(protocol)
        talk.send("MULTI")
        talk.send("KEYS", "*")
        talk.send("EXEC")
        with pytest.raises(UpstreamDesync):
            talk.take(encode.OK, QUEUED, b"*0\r\n")

    def test_discarded_leave_nothing_for_the_next(self, protocol: int) -> None:
        talk = Talk(protocol)
        for words in (["MULTI"], ["KEYS", "*"], ["DISCARD"], ["MULTI"], ["GET", "k"], ["KEYS", "*"], ["EXEC"]):
            talk.send(*words)
        assert talk.take(encode.OK, QUEUED, encode.OK, encode.OK, QUEUED, QUEUED) == [encode.OK, QUEUED, encode.OK, encode.OK, QUEUED, QUEUED]
        keys = b"*1\r\n$4\r\nns:k\r\n"
        assert talk.take(b"*2\r\n" + keys + keys) == [b"*2\r\n" + keys + b"*1\r\n$1\r\nk\r\n"]

    def test_commands_refused_in_between_have_no_reply_in_exec(self, protocol: int) -> None:
        talk = Talk(protocol)
        for words in (["MULTI"], ["KEYS", "*"], ["MULTI"], ["WATCH", "k"], ["GET", "k"], ["EXEC"]):
            talk.send(*words)
        nested, watch = b"-ERR MULTI calls can not be nested\r\n", b"-ERR WATCH inside MULTI is not allowed\r\n"
        assert talk.take(encode.OK, QUEUED, nested, watch, QUEUED) == [encode.OK, QUEUED, nested, watch, QUEUED]
        keys = b"*1\r\n$4\r\nns:k\r\n"
        assert talk.take(b"*2\r\n" + keys + keys) == [b"*2\r\n" + b"*1\r\n$1\r\nk\r\n" + keys]

    def test_exec_without_multi(self, protocol: int) -> None:
        talk = Talk(protocol)
        talk.send("EXEC")
        talk.send("KEYS", "*")
        error = b"-ERR EXEC without MULTI\r\n"
        assert talk.take(error, b"*1\r\n$4\r\nns:k\r\n") == [error, b"*1\r\n$1\r\nk\r\n"]

    def test_with_pushes_between(self) -> None:
        talk = Talk(3)
        for words in (["MULTI"], ["KEYS", "*"], ["EXEC"]):
            talk.send(*words)
        push, own = told(3, b"invalidate", [b"ns:k"]), told(3, b"invalidate", [b"k"])
        keys = b"*1\r\n*1\r\n$4\r\nns:k\r\n"
        assert talk.take(encode.OK, push, QUEUED, push, keys) == [encode.OK, own, QUEUED, own, b"*1\r\n*1\r\n$1\r\nk\r\n"]


# --- a model of Redis' side of a connection

NAMES = ["a", "b", "__keyspace@0__:k", "__keyevent@0__:set"]
OWN_BY_REAL: dict[bool, dict[bytes, bytes | None]] = {
    False: {b"a": b"a", b"b": b"b", b"other:a": b"other:a", b"__keyspace@0__:ns:k": b"__keyspace@0__:k", b"__keyspace@0__:other:k": None, b"__keyevent@0__:set": b"__keyevent@0__:set"},
    True: {b"ns:a": b"a", b"ns:b": b"b", b"other:a": None, b"a": None, b"__keyspace@0__:ns:k": b"__keyspace@0__:k", b"__keyspace@0__:other:k": None, b"__keyevent@0__:set": b"__keyevent@0__:set"},
}
ALLOWED = {b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe", b"ssubscribe", b"sunsubscribe", b"ping"}
KINDS = {b"subscribe": b"c", b"psubscribe": b"p", b"ssubscribe": b"s"}


class Redis:
    """Executes requests as the client wrote them: frames as Redis sends them, each with what the client is to see."""

    def __init__(self, protocol: int, channels: bool) -> None:
        self.protocol = protocol
        self.channels = channels
        self.subscribed: dict[bytes, list[bytes]] = {b"c": [], b"p": [], b"s": []}
        self.queue: list[list[bytes]] | None = None
        self.frames: list[tuple[bytes, bytes]] = []

    def real(self, name: bytes) -> bytes:
        if name.startswith(b"__keyspace@"):
            return name.replace(b"__:", b"__:ns:")
        return b"ns:" + name if self.channels and not name.startswith(b"__keyevent") else name

    def say(self, frame: bytes, seen: bytes | None = None) -> None:
        self.frames.append((frame, frame if seen is None else seen))

    def execute(self, words: list[bytes]) -> None:
        name = words[0].lower()
        if self.protocol == 2 and any(self.subscribed.values()) and name not in ALLOWED:
            self.say(b"-ERR Can't execute '%b': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING are allowed in this context\r\n" % name)
        elif name == b"multi":
            self.say(b"-ERR MULTI calls can not be nested\r\n" if self.queue is not None else encode.OK)
            self.queue = self.queue or []
        elif name in (b"exec", b"discard"):
            queue, self.queue = self.queue, None
            if queue is None:
                self.say(b"-ERR without MULTI\r\n")
            elif name == b"discard":
                self.say(encode.OK)
            else:
                replies = [self.reply(queued) for queued in queue]
                self.say(encode.array([real for real, _ in replies]), encode.array([own for _, own in replies]))
        elif self.queue is not None:
            self.queue.append(words)
            self.say(QUEUED)
        elif name in KINDS:
            self._subscribe(name, words[1:])
        elif b"unsubscribe" in name:
            self._unsubscribe(name, words[1:])
        else:
            self.say(*self.reply(words))

    def reply(self, words: list[bytes]) -> tuple[bytes, bytes]:
        match words[0].lower():
            case b"lmpop":
                return POPPED, OWN_POPPED
            case b"lrange":
                return words[1], words[1]  # the model's list is named by its reply
            case b"get":
                return b"-WRONGTYPE x\r\n", b"-WRONGTYPE x\r\n"
            case _:
                pong = b"+PONG\r\n"
                if self.protocol == 2 and any(self.subscribed.values()):
                    pong = array(b"pong", b"")
                return pong, pong

    def _subscribe(self, kind: bytes, names: list[bytes]) -> None:
        held = self.subscribed[KINDS[kind]]
        for name in names:
            if name not in held:
                held.append(name)
            self._confirm(kind, name)

    def _unsubscribe(self, kind: bytes, names: list[bytes]) -> None:
        held = self.subscribed[KINDS[kind.replace(b"un", b"", 1)]]
        if not names and not held:
            self.say(told(self.protocol, kind, None, self.count(kind)))
        for name in names or list(held):
            if name in held:
                held.remove(name)
            self._confirm(kind, name)

    def count(self, kind: bytes) -> int:
        counted = b"s" if kind in (b"ssubscribe", b"sunsubscribe") else b"cp"
        return sum(len(held) for what, held in self.subscribed.items() if what in counted)

    def _confirm(self, kind: bytes, name: bytes) -> None:
        self.say(told(self.protocol, kind, self.real(name), self.count(kind)), told(self.protocol, kind, name, self.count(kind)))

    def message(self, pick: int, payload: bytes) -> None:
        """Somebody publishes, or a key changes."""
        channels = list(OWN_BY_REAL[self.channels].items())
        channel, own = channels[pick % len(channels)]
        own_payload: bytes | None = payload
        if channel.startswith(b"__keyevent"):
            own_payload = payload[3:] if payload.startswith(b"ns:") else None
        whole = own is not None and own_payload is not None
        if self.subscribed[b"c"]:
            self.say(told(self.protocol, b"message", channel, payload), told(self.protocol, b"message", own, own_payload) if whole else b"")
        for pattern in self.subscribed[b"p"]:
            seen = told(self.protocol, b"pmessage", pattern, own, own_payload) if whole else b""
            self.say(told(self.protocol, b"pmessage", self.real(pattern), channel, payload), seen)
        if self.protocol == 3 and not pick % 3:
            keys = [b"ns:k", b"other:k"][: 1 + pick % 2]
            self.say(told(3, b"invalidate", keys), told(3, b"invalidate", [b"k"]))


LOOKALIKES = [array(b"message", b"other:a", b"y"), array(b"subscribe", b"ns:a", 1), array(b"invalidate", [b"x"]), b"*0\r\n", array(b"pmessage", b"x", b"y", b"z")]
names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
steps = st.one_of(
    st.tuples(st.sampled_from(["SUBSCRIBE", "psubscribe", "SSUBSCRIBE", "UNSUBSCRIBE", "punsubscribe", "SUNSUBSCRIBE"]), names),
    st.tuples(st.sampled_from(["UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "MULTI", "EXEC", "DISCARD", "PING", "GET"]), st.just([])),
    st.tuples(st.just("LMPOP"), st.just(["1", "k", "LEFT"])),
    st.tuples(st.just("LRANGE"), st.sampled_from(LOOKALIKES).map(lambda reply: [reply, "0", "-1"])),
    st.tuples(st.just("message"), st.integers(0, 20), st.sampled_from([b"m", b"ns:k", b"other:k", b""])),
    st.sampled_from(["execute", "deliver"]),
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([2, 3]), st.booleans(), st.lists(steps, max_size=60))
def test_any_order_that_redis_may_choose(protocol: int, channels: bool, script: list[Any]) -> None:
    """Requests are sent ahead, executed and delivered at any time; messages come whenever Redis has any."""
    redis, talk = Redis(protocol, channels), Talk(protocol, OPEN if channels else NS)
    sent: list[list[bytes]] = []
    inside = False

    def execute() -> None:
        if sent:
            redis.execute(sent.pop(0))

    def deliver() -> None:
        if redis.frames:
            frame, seen = redis.frames.pop(0)
            assert talk.translator.take(frame) == seen

    for step in script:
        if step == "execute":
            execute()
        elif step == "deliver":
            deliver()
        elif step[0] == "message":
            redis.message(*step[1:])
        else:
            words = [word if isinstance(word, bytes) else word.encode() for word in (step[0], *step[1])]
            name = words[0].lower()
            if inside and b"subscribe" in name:
                continue  # refused where transactions are translated
            inside = name == b"multi" or (inside and name not in (b"exec", b"discard"))
            talk.send(*words)
            sent.append(words)
    while sent or redis.frames:
        execute()
        deliver()
