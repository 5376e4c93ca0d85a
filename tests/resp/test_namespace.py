"""What a namespace makes of requests and of their replies: nothing passes bare, and no prefix comes back."""

from __future__ import annotations

import contextlib
import shlex
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.commands import Command, CommandTable
from proxy.resp.keys import key_positions, pattern_positions
from proxy.resp.namespace import Namespace, RefusedAsRedis, RefusedHere, spoken, text

TABLE = CommandTable.load()
NS = Namespace("ns")
OPEN = Namespace("ns", channels=True)
"""With channels."""
UNKNOWN = "is refused in a namespace: the command, or its sub-command, is not known"
SERVER = "is refused in a namespace: it concerns the whole server"
UNLOCATED = "is refused in a namespace: which arguments are keys is not known"
WHOLE = "takes several steps in a namespace: it cannot be part of a transaction"


def words(call: str) -> list[bytes]:
    return [word.replace("\\0", "\0").encode() for word in shlex.split(call)]


def find(arguments: list[bytes]) -> Command | None:
    return TABLE.find(arguments[0], arguments[1] if len(arguments) > 1 else None)


def translated(call: str, namespace: Namespace = NS) -> list[bytes]:
    arguments = words(call)
    return namespace.translate(find(arguments), arguments)[0]


def stripped(call: str, reply: bytes, namespace: Namespace = NS) -> bytes:
    """A reply to a request as the client sees it."""
    arguments = words(call)
    _, strip = namespace.translate(find(arguments), arguments)
    return reply if strip is None else strip(reply)


def refusal(call: str, namespace: Namespace = NS) -> str:
    arguments = words(call)
    with pytest.raises(RefusedHere) as caught:
        namespace.translate(find(arguments), arguments)
    whose = b"" if isinstance(caught.value, RefusedAsRedis) else b"pannier: "
    assert caught.value.reply == b"-ERR %b%b\r\n" % (whose, str(caught.value).encode())
    return str(caught.value)


class TestKeys:
    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            # fixed places
            ("GET k", "GET ns:k"),
            ("get k", "get ns:k"),
            ("SET k v EX 5 GET", "SET ns:k v EX 5 GET"),
            ("SET GET GET", "SET ns:GET GET"),
            ("GET ns:k", "GET ns:ns:k"),
            ('GET ""', "GET ns:"),
            ("RENAME a b", "RENAME ns:a ns:b"),
            ("COPY a b DB 1", "COPY ns:a ns:b DB 1"),
            ("OBJECT ENCODING k", "OBJECT ENCODING ns:k"),
            ("MEMORY USAGE k SAMPLES 5", "MEMORY USAGE ns:k SAMPLES 5"),
            ("DUMP k", "DUMP ns:k"),
            ("RESTORE k 0 v REPLACE", "RESTORE ns:k 0 v REPLACE"),
            ("XGROUP CREATE k g $", "XGROUP CREATE ns:k g $"),
            ("XINFO STREAM k", "XINFO STREAM ns:k"),
            ("LCS a b IDX", "LCS ns:a ns:b IDX"),
            ("GEOSEARCHSTORE d k FROMMEMBER m BYRADIUS 1 m", "GEOSEARCHSTORE ns:d ns:k FROMMEMBER m BYRADIUS 1 m"),
            # ranges and steps
            ("DEL a b c", "DEL ns:a ns:b ns:c"),
            ("MSET a 1 b 2", "MSET ns:a 1 ns:b 2"),
            ("MSETNX a a", "MSETNX ns:a a"),
            ("BITOP AND d a b", "BITOP AND ns:d ns:a ns:b"),
            ("BLPOP a b 0", "BLPOP ns:a ns:b 0"),
            ("WATCH a b", "WATCH ns:a ns:b"),
            ("PFMERGE d a", "PFMERGE ns:d ns:a"),
            # counted
            ("EVAL script 2 a b c", "EVAL script 2 ns:a ns:b c"),
            ("EVALSHA_RO sha 0 a", "EVALSHA_RO sha 0 a"),
            ("FCALL f 1 a b", "FCALL f 1 ns:a b"),
            ("ZUNION 2 a b WEIGHTS 1 2", "ZUNION 2 ns:a ns:b WEIGHTS 1 2"),
            ("ZUNIONSTORE d 2 a b", "ZUNIONSTORE ns:d 2 ns:a ns:b"),
            ("LMPOP 2 a b LEFT", "LMPOP 2 ns:a ns:b LEFT"),
            ("BLMPOP 0 2 a b LEFT", "BLMPOP 0 2 ns:a ns:b LEFT"),
            ("SINTERCARD 1 a LIMIT 2", "SINTERCARD 1 ns:a LIMIT 2"),
            # keywords
            ("XREAD COUNT 2 STREAMS a b 0 0", "XREAD COUNT 2 STREAMS ns:a ns:b 0 0"),
            ("XREAD STREAMS streams 0", "XREAD STREAMS ns:streams 0"),
            ("XREADGROUP GROUP STREAMS c STREAMS a >", "XREADGROUP GROUP STREAMS c STREAMS ns:a >"),
            ("GEORADIUS k 1 2 3 m STORE d", "GEORADIUS ns:k 1 2 3 m STORE ns:d"),
            ("GEORADIUSBYMEMBER k STORE 3 m STOREDIST d", "GEORADIUSBYMEMBER ns:k STORE 3 m STOREDIST ns:d"),
            ("MIGRATE h 1 k 0 9", "MIGRATE h 1 ns:k 0 9"),
            ('MIGRATE h 1 "" 0 9 AUTH KEYS KEYS a b', 'MIGRATE h 1 "" 0 9 AUTH KEYS KEYS ns:a ns:b'),
            ('MIGRATE h 1 "" 0 9 COPY', "MIGRATE h 1 ns: 0 9 COPY"),
            # key patterns
            ("SORT k", "SORT ns:k"),
            ("SORT k BY w_* GET # GET v_*->f GET plain STORE d", "SORT ns:k BY ns:w_* GET # GET ns:v_*->f GET plain STORE ns:d"),
            ("SORT_RO k BY other:* LIMIT 0 GET", "SORT_RO ns:k BY ns:other:* LIMIT 0 GET"),
            ('SORT k "by\\0x" a*', 'SORT ns:k "by\\0x" ns:a*'),
            ("SORT k BY nosort", "SORT ns:k BY nosort"),
        ],
    )
    def test_bear_the_prefix(self, call: str, expected: str) -> None:
        assert translated(call) == words(expected)

    @pytest.mark.parametrize(
        "call",
        [
            "GET", "MSET", "OBJECT ENCODING", "OBJECT", "EVAL s", "EVAL s 5 a", "EVAL s -1 a", "EVAL s x a", "EVAL s 01 a",
            "XREAD STREAMS a", "XREAD COUNT", "LMPOP 3 a LEFT", "MIGRATE h 1 k 0", "MIGRATE h 1 k 0 9 KEYS a", "SORT k BY", "CLIENT",
        ],
    )  # fmt: skip
    def test_of_what_redis_refuses_need_not(self, call: str) -> None:
        """It names none that it would touch; its error is Redis' own."""
        arguments = words(call)
        assert [word.removeprefix(b"ns:") for word in translated(call)] == arguments

    def test_of_requests_leave_the_callers_list_alone(self) -> None:
        arguments = [b"MGET", b"a", b"b"]
        assert NS.translate(find(arguments), arguments)[0] == [b"MGET", b"ns:a", b"ns:b"]
        assert arguments == [b"MGET", b"a", b"b"]

    @given(st.binary(max_size=300))
    def test_as_bulk_strings(self, key: bytes) -> None:
        bare, real = encode.bulk(key), encode.bulk(b"ns:" + key)
        assert NS.bulk(bare) == real
        assert NS.stripped(real) == bare
        assert NS.holds(real)
        assert NS.holds(bare) == key.startswith(b"ns:")
        assert text(real) == b"ns:" + key
        if not key.startswith(b"ns:"):
            assert NS.stripped(bare) == bare

    @pytest.mark.parametrize("frame", [b"$-1\r\n", b"_\r\n", b":5\r\n", b"+ns:k\r\n", b"$0\r\n\r\n", b"*0\r\n"])
    def test_that_are_none_stay(self, frame: bytes) -> None:
        assert NS.stripped(frame) == frame

    def test_of_a_name_beyond_ascii(self) -> None:
        namespace = Namespace("zürich*[1]")
        prefix = "zürich*[1]:".encode()
        assert namespace.bulk(b"$1\r\nk\r\n") == encode.bulk(prefix + b"k")
        assert namespace.pattern == "zürich\\*\\[1\\]:".encode()
        assert translated("GET k", namespace) == [b"GET", prefix + b"k"]


class TestScans:
    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            ("SCAN 0", "SCAN 0 MATCH ns:*"),
            ("SCAN 0 MATCH a*", "SCAN 0 MATCH ns:a*"),
            ("scan 5 count 10 match a* type string", "scan 5 count 10 type string MATCH ns:a*"),
            ("SCAN 0 MATCH a MATCH b", "SCAN 0 MATCH ns:b"),
            ("SCAN 0 MATCH MATCH COUNT 5", "SCAN 0 COUNT 5 MATCH ns:MATCH"),
            ("SCAN 0 COUNT MATCH", "SCAN 0 COUNT MATCH MATCH ns:*"),
            ("SCAN 0 MATCH", "SCAN 0 MATCH"),  # Redis refuses it: the value is missing
            ("SCAN 0 COUNT 5 TYPE", "SCAN 0 COUNT 5 TYPE"),
            ("SCAN 0 NOVALUES MATCH b", "SCAN 0 NOVALUES MATCH b MATCH ns:*"),
            ("SCAN 0 MATCH a NEW", "SCAN 0 NEW MATCH ns:a"),
            ('SCAN 0 "MATCH\\0x" other:*', 'SCAN 0 "MATCH\\0x" other:* MATCH ns:*'),
            ("SCAN", "SCAN"),
            ("KEYS *", "KEYS ns:*"),
            ("KEYS [^n]*", "KEYS ns:[^n]*"),
            ("KEYS", "KEYS"),
            ("KEYS a b", "KEYS a b"),
        ],
    )
    def test_stay_in_the_namespace(self, call: str, expected: str) -> None:
        assert translated(call) == words(expected)

    @given(st.lists(st.sampled_from(words('MATCH match COUNT TYPE NEW a* * 5 string "MATCH\\0"')), max_size=6))
    def test_end_with_the_pattern_that_counts(self, options: list[bytes]) -> None:
        call = [b"SCAN", b"0", *options]
        real = NS.translate(find([b"SCAN"]), list(call))[0]
        assert real[:2] == [b"SCAN", b"0"]
        if real == call:
            assert len(options) % 2 and set(map(bytes.upper, options[::2])) <= {b"MATCH", b"COUNT", b"TYPE"}, "refused"
            return
        assert real[-2] == b"MATCH" and real[-1].startswith(b"ns:")


class TestTracking:
    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            ("CLIENT TRACKING ON", "CLIENT TRACKING ON"),
            ("CLIENT TRACKING OFF", "CLIENT TRACKING OFF"),
            ("CLIENT TRACKING ON OPTIN NOLOOP", "CLIENT TRACKING ON OPTIN NOLOOP"),
            ("CLIENT TRACKING ON BCAST", "CLIENT TRACKING ON BCAST PREFIX ns:"),
            ("CLIENT TRACKING ON bcast noloop", "CLIENT TRACKING ON bcast noloop PREFIX ns:"),
            ("CLIENT TRACKING ON BCAST PREFIX a PREFIX b", "CLIENT TRACKING ON BCAST PREFIX ns:a PREFIX ns:b"),
            ('CLIENT TRACKING ON PREFIX "" BCAST', "CLIENT TRACKING ON PREFIX ns: BCAST"),
            ("CLIENT TRACKING ON PREFIX PREFIX BCAST", "CLIENT TRACKING ON PREFIX ns:PREFIX BCAST"),
            ("CLIENT TRACKING ON REDIRECT 5 BCAST", "CLIENT TRACKING ON REDIRECT 5 BCAST PREFIX ns:"),
            ("CLIENT TRACKING ON BCAST PREFIX", "CLIENT TRACKING ON BCAST PREFIX PREFIX ns:"),
            ("CLIENT TRACKING ON BCAST REDIRECT", "CLIENT TRACKING ON BCAST REDIRECT PREFIX ns:"),
            ("CLIENT TRACKING", "CLIENT TRACKING"),
        ],
    )
    def test_is_of_the_namespace(self, call: str, expected: str) -> None:
        assert translated(call) == words(expected)

    def test_options_end_at_a_zero_byte_as_redis_reads_them(self) -> None:
        """Redis compares options as C strings: `PREFIX\\0` is PREFIX."""
        assert b"other" not in translated('CLIENT TRACKING ON BCAST "PREFIX\\0x" other')
        assert translated('CLIENT TRACKING ON "BCAST\\0"')[-2:] == words("PREFIX ns:")

    def test_info_shows_the_clients_own_prefixes(self) -> None:
        reply = b"*6\r\n$5\r\nflags\r\n*1\r\n$5\r\nbcast\r\n$8\r\nredirect\r\n:0\r\n$8\r\nprefixes\r\n*2\r\n$4\r\nns:a\r\n$3\r\nns:\r\n"
        assert stripped("CLIENT TRACKINGINFO", reply) == reply.replace(b"$4\r\nns:a", b"$1\r\na").replace(b"$3\r\nns:", b"$0\r\n")
        three = b"%3\r\n$5\r\nflags\r\n~1\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n"
        assert stripped("CLIENT TRACKINGINFO", three) == three
        assert stripped("CLIENT TRACKINGINFO", b"-ERR x\r\n") == b"-ERR x\r\n"


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "why"),
        [
            ("CONFIG GET *", f"CONFIG GET {SERVER}"),
            ("DEBUG SLEEP 0", f"DEBUG {SERVER}"),
            ("SHUTDOWN", f"SHUTDOWN {SERVER}"),
            ("REPLICAOF NO ONE", f"REPLICAOF {SERVER}"),
            ("CLUSTER KEYSLOT k", f"CLUSTER KEYSLOT {SERVER}"),
            ("MONITOR", f"MONITOR {SERVER}"),
            ("ACL LIST", f"ACL LIST {SERVER}"),
            ("SWAPDB 0 1", f"SWAPDB {SERVER}"),
            ("FUNCTION LOAD x", f"FUNCTION LOAD {SERVER}"),
            ("SCRIPT FLUSH", f"SCRIPT FLUSH {SERVER}"),
            ("CLIENT PAUSE 5", f"CLIENT PAUSE {SERVER}"),
            ("MEMORY STATS", f"MEMORY STATS {SERVER}"),
            ("PFDEBUG GETREG k", f"PFDEBUG {SERVER}"),
            ("SLOWLOG GET", f"SLOWLOG GET {SERVER}"),
            ("DBSIZE", f"DBSIZE {WHOLE}"),
            ("FLUSHDB", f"FLUSHDB {WHOLE}"),
            ("flushall async", f"FLUSHALL {WHOLE}"),
            ("RANDOMKEY", f"RANDOMKEY {WHOLE}"),
            ("NOSUCH k", f"'NOSUCH' {UNKNOWN}"),
            ("CLIENT NOSUCH", f"'CLIENT' {UNKNOWN}"),
            ("OBJECT NOSUCH k", f"'OBJECT' {UNKNOWN}"),
        ],
    )
    def test_say_why(self, call: str, why: str) -> None:
        assert refusal(call) == why

    @pytest.mark.parametrize(
        ("call", "why"),
        [
            ("SORT k NEW d", "syntax error"),
            ("sort k alpha foo", "syntax error"),
            ("SORT k STORE d foo", "syntax error"),
            ("SORT_RO k foo", "syntax error"),
            ("XREAD NEW 5 STREAMS k 0", "syntax error"),
            ("XREAD NEW", "wrong number of arguments for 'xread' command"),
            ("GEORADIUS k 1 2 3 m NEW STORE d", "syntax error"),
            ("GEORADIUSBYMEMBER k m 1 m NEW", "syntax error"),
            ("MIGRATE h 1 k 0 9 NEW KEYS a", "syntax error"),
        ],
    )
    def test_of_options_that_no_redis_knows_are_in_its_words(self, call: str, why: str) -> None:
        assert refusal(call) == why
        with pytest.raises(RefusedAsRedis):
            translated(call)

    @pytest.mark.parametrize("call", ["OBJECT nosuch", "object nosuch k", "XINFO Nosuch k", "CLIENT nosuch", "CONFIG nosuch x"])
    def test_of_sub_commands_that_redis_does_not_have_are_in_its_words(self, call: str) -> None:
        """If it has told which it has, as Redis does from 7 on."""
        table = CommandTable.load()
        namespace = Namespace("ns", table=table)
        assert refusal(call, namespace).endswith(UNKNOWN)
        names = ["object", "xinfo", "client", "config"]
        table.overlay([[name.encode(), -2, [], 0, 0, 0] for name in names])
        assert refusal(call, namespace).endswith(UNKNOWN), "one before 7 does not tell"
        table.overlay([[name.encode(), -2, [], 0, 0, 0, [], [], [], []] for name in names])
        command, sub = words(call)[:2]
        assert refusal(call, namespace) == f"unknown subcommand '{sub.decode()}'. Try {command.decode().upper()} HELP."

    def test_of_patterns_under_a_name_with_a_star(self) -> None:
        """SORT puts the element in place of the first star, which would be the prefix's."""
        starry = Namespace("a*b")
        why = "cannot take BY or GET patterns in a namespace with a * in its name"
        assert refusal("SORT k BY w_*", starry) == f"SORT {why}"
        assert refusal("SORT_RO k GET v_*", starry) == f"SORT_RO {why}"
        assert translated("SORT k GET # BY nosort", starry) == words("SORT a*b:k GET # BY nosort")

    def test_of_an_endless_or_ugly_name_fit_a_line(self) -> None:
        for name in (b"x" * 5000, b"a\r\nb", b"\xff\xfe"):
            with pytest.raises(RefusedHere) as caught:
                NS.translate(None, [name])
            assert caught.value.reply.count(b"\r\n") == 1 and len(caught.value.reply) < 600
            with pytest.raises(RefusedHere):
                NS.leading(None, [name], 5)

    def test_of_modules_whose_keys_nobody_names(self) -> None:
        table = CommandTable.load()
        table.overlay([[b"m.write", -1, [b"write", b"module"], 0, 0, 0, [], [], [], []]])
        with pytest.raises(RefusedHere) as caught:
            NS.translate(table.find(b"M.WRITE"), [b"M.WRITE", b"k"])
        assert str(caught.value) == f"M.WRITE {UNLOCATED}"


HARMLESS = ["PING", "ECHO ns:k", "MULTI", "EXEC", "CLIENT SETNAME ns:x", "COMMAND GETKEYS GET k", "INFO", "SELECT 1", "OBJECT HELP", "ACL WHOAMI", "SCRIPT LOAD s", "WAIT 0 0", "TIME"]


@pytest.mark.parametrize("call", HARMLESS)
def test_what_names_no_key_passes_as_it_is(call: str) -> None:
    assert translated(call) == words(call)
    assert stripped(call, b"$4\r\nns:k\r\n") == b"$4\r\nns:k\r\n"


ANY = st.lists(st.sampled_from(words('k other:k * 0 1 2 BY GET STORE STREAMS KEYS GROUP COUNT MATCH PREFIX BCAST ns:k __keyspace@0__:k ""')) | st.binary(max_size=3), max_size=8)


@settings(deadline=None, max_examples=15)
@given(ANY)
def test_every_command_of_the_table_is_translated_or_refused(rest: list[bytes]) -> None:
    """Whatever it is given: each key it has bears the prefix, and nothing else has changed."""
    for command in TABLE:
        arguments = [part.encode() for part in command.name.split("|")] + rest
        found = find(arguments)
        if found is not command and not (command.container and found is None):
            continue
        try:
            real, _ = NS.translate(found, arguments)
        except RefusedHere as refused:
            assert refused.reply.startswith(b"-ERR pannier: ") or isinstance(refused, RefusedAsRedis)
            continue
        uses = key_positions(command, arguments)
        patterns = pattern_positions(command, arguments)
        assert uses is not None and patterns is not None
        places = {use.index for use in uses} | set(patterns)
        if places:
            assert real == [b"ns:" + word if at in places else word for at, word in enumerate(arguments)]


def test_every_command_without_keys_is_listed_by_name() -> None:
    """A command that names no key passes only because somebody has looked at it."""
    passing = set()
    for command in TABLE:
        if not command.key_specs:
            try:
                NS.translate(command, [part.encode() for part in command.name.split("|")] + [b"1"] * 3)
                passing.add(command.name)
            except RefusedHere:
                pass
    admin = {command.name for command in TABLE if "admin" in command.flags and not command.name.endswith("|help")}
    assert admin & passing == {"client|kill", "client|list", "client|no-evict", "client|unblock"}, "of the client's own space"
    for name in ("config|get", "debug", "monitor", "swapdb", "role", "lastsave", "client|pause", "function|list", "pfdebug"):
        assert name not in passing, spoken(name)


class TestChannels:
    @pytest.mark.parametrize(
        ("call", "expected", "with_channels"),
        [
            ("SUBSCRIBE a b", "SUBSCRIBE a b", "SUBSCRIBE ns:a ns:b"),
            ("unsubscribe", "unsubscribe", "unsubscribe"),
            ("UNSUBSCRIBE a", "UNSUBSCRIBE a", "UNSUBSCRIBE ns:a"),
            ("SSUBSCRIBE a", "SSUBSCRIBE a", "SSUBSCRIBE ns:a"),
            ("PSUBSCRIBE a*", "PSUBSCRIBE a*", "PSUBSCRIBE ns:a*"),
            ("PUNSUBSCRIBE a*", "PUNSUBSCRIBE a*", "PUNSUBSCRIBE ns:a*"),
            ("PUBLISH a m", "PUBLISH a m", "PUBLISH ns:a m"),
            ("SPUBLISH a m", "SPUBLISH a m", "SPUBLISH ns:a m"),
            ("PUBLISH a", "PUBLISH a", "PUBLISH a"),
            ("PUBSUB NUMSUB a b", "PUBSUB NUMSUB a b", "PUBSUB NUMSUB ns:a ns:b"),
            ("PUBSUB SHARDNUMSUB a", "PUBSUB SHARDNUMSUB a", "PUBSUB SHARDNUMSUB ns:a"),
            ("PUBSUB CHANNELS", "PUBSUB CHANNELS", "PUBSUB CHANNELS"),
            ("PUBSUB CHANNELS *", "PUBSUB CHANNELS", "PUBSUB CHANNELS"),
            ("PUBSUB CHANNELS __key*", "PUBSUB CHANNELS", "PUBSUB CHANNELS"),
            ("PUBSUB CHANNELS a*", "PUBSUB CHANNELS a*", "PUBSUB CHANNELS ns:a*"),
            ("PUBSUB SHARDCHANNELS", "PUBSUB SHARDCHANNELS", "PUBSUB SHARDCHANNELS"),
            ("PUBSUB CHANNELS a b", "PUBSUB CHANNELS a b", "PUBSUB CHANNELS a b"),
            ("PUBSUB NUMPAT", "PUBSUB NUMPAT", "PUBSUB NUMPAT"),
            # notifications
            ("SUBSCRIBE __keyspace@0__:k", "SUBSCRIBE __keyspace@0__:ns:k", "SUBSCRIBE __keyspace@0__:ns:k"),
            ("SUBSCRIBE __keyevent@0__:set", "SUBSCRIBE __keyevent@0__:set", "SUBSCRIBE __keyevent@0__:set"),
            ("PUBLISH __keyspace@0__:k set", "PUBLISH __keyspace@0__:ns:k set", "PUBLISH __keyspace@0__:ns:k set"),
            ("PUBLISH __keyevent@0__:set k", "PUBLISH __keyevent@0__:set ns:k", "PUBLISH __keyevent@0__:set ns:k"),
            ("PUBSUB NUMSUB __keyspace@0__:k", "PUBSUB NUMSUB __keyspace@0__:ns:k", "PUBSUB NUMSUB __keyspace@0__:ns:k"),
            ("PSUBSCRIBE __keyspace@*__:k*", "PSUBSCRIBE __keyspace@*__:ns:k*", "PSUBSCRIBE __keyspace@*__:ns:k*"),
            ("PSUBSCRIBE __keyspace@0__:*", "PSUBSCRIBE __keyspace@0__:ns:*", "PSUBSCRIBE __keyspace@0__:ns:*"),
            ("PSUBSCRIBE __keyevent@*__:*", "PSUBSCRIBE __keyevent@*__:*", "PSUBSCRIBE __keyevent@*__:*"),
            ("PSUBSCRIBE __key*__:*", "PSUBSCRIBE __key*__:*", "PSUBSCRIBE __key*__:*"),
            ("PSUBSCRIBE __key*", "PSUBSCRIBE __key*", "PSUBSCRIBE __key*"),
        ],
    )
    def test_are_named(self, call: str, expected: str, with_channels: str) -> None:
        assert translated(call) == words(expected)
        assert translated(call, OPEN) == words(with_channels)

    @pytest.mark.parametrize("pattern", ["__key*__:k", "__keyspac[e]@0__:*x", "__key?pace@0__:ns:*"])
    def test_patterns_of_notifications_that_cannot_be_told_apart(self, pattern: str) -> None:
        why = "a pattern of notifications must begin with __keyspace@ or __keyevent@ in a namespace, or end behind its __:*"
        assert refusal(f"PSUBSCRIBE a {pattern}") == refusal(f"PUNSUBSCRIBE {pattern}", OPEN) == why

    def test_listed_by_a_pattern_of_endless_length(self) -> None:
        assert refusal("PUBSUB CHANNELS " + "a" * 5000) == "a pattern of channels has at most 4096 bytes in a namespace"

    @pytest.mark.parametrize("namespace", [NS, OPEN, Namespace("a*[b]?\\c"), Namespace("a-b^", True)])
    @pytest.mark.parametrize("name", [b"a", b"", b"ns:a", b"ns:*", b"__keyspace@0__:k", b"__keyspace@0__:", b"__keyspace@*__:ns:k", b"__keyevent@0__:set", b"__keyspace@0__", b"\xff\r\n", b"a*[b]?\\c:x"])
    def test_come_back_as_they_were(self, namespace: Namespace, name: bytes) -> None:
        """What the client called them: confirmations and messages say so."""
        assert namespace.own_channel(namespace.channel(name)) == name
        assert namespace.own_pattern(namespace.channel_pattern(name)) == name

    def test_of_others_are_not_seen(self) -> None:
        assert NS.own_channel(b"__keyspace@0__:other:k") is None
        assert NS.own_channel(b"__keyspace@0__:k") is None
        assert NS.own_channel(b"__keyspace@0__:other:evil__:ns:k") is None
        assert NS.own_channel(b"news") == b"news"
        assert OPEN.own_channel(b"news") is None
        assert OPEN.own_channel(b"ns") is None
        assert OPEN.own_channel(b"ns:") == b""
        assert NS.tells_of_keys(b"__keyevent@0__:del") and not NS.tells_of_keys(b"__keyspace@0__:k")

    def test_listed(self) -> None:
        reply = encode.array(map(encode.bulk, [b"ns:a", b"__keyspace@0__:ns:k", b"__keyspace@0__:other:k", b"news"]))
        seen = [b"ns:a", b"__keyspace@0__:k", b"news"]
        assert stripped("PUBSUB CHANNELS", reply) == encode.array(map(encode.bulk, seen))
        assert stripped("PUBSUB CHANNELS", reply, OPEN) == encode.array(map(encode.bulk, [b"a", b"__keyspace@0__:k"]))
        for namespace in (NS, OPEN):  # by what the client calls them
            for pattern in ("*:k", "*__:k", "__keyspace@0__:k", "?_key*", "[_]*", "\\\\_*"):
                assert stripped(f"PUBSUB CHANNELS {pattern}", reply, namespace) == encode.array([encode.bulk(b"__keyspace@0__:k")])
        assert stripped("PUBSUB CHANNELS *s:a", reply) == encode.array([encode.bulk(b"ns:a")])
        assert stripped("PUBSUB CHANNELS *ns*", reply, OPEN) == b"*0\r\n"
        assert stripped("PUBSUB SHARDCHANNELS", b"*0\r\n") == b"*0\r\n"
        assert stripped("PUBSUB CHANNELS", b"-ERR x\r\n") == b"-ERR x\r\n"

    def test_listed_without_the_eviction_buss(self) -> None:
        reply = encode.array(map(encode.bulk, [b"bus:ns", b"bus:other", b"news"]))
        assert stripped("PUBSUB CHANNELS", reply, Namespace("ns", bus="bus:")) == encode.array([encode.bulk(b"news")])

    def test_counted(self) -> None:
        reply = b"*4\r\n$4\r\nns:a\r\n:1\r\n$18\r\n__keyspace@0__:ns:\r\n:0\r\n"
        assert stripped("PUBSUB NUMSUB a b", reply, OPEN) == b"*4\r\n$1\r\na\r\n:1\r\n$15\r\n__keyspace@0__:\r\n:0\r\n"
        assert stripped("PUBSUB NUMSUB", b"*0\r\n", OPEN) == b"*0\r\n"


KEY, OTHER = b"$4\r\nns:k\r\n", b"$7\r\nother:k\r\n"
OWN = b"$1\r\nk\r\n"


class TestReplies:
    @pytest.mark.parametrize("call", ["BLPOP k 0", "BRPOP k 0", "BZPOPMIN k 0", "BZPOPMAX k 0", "LMPOP 1 k LEFT", "BLMPOP 0 1 k LEFT", "ZMPOP 1 k MIN", "BZMPOP 0 1 k MIN"])
    @pytest.mark.parametrize(
        ("reply", "expected"),
        [
            (b"*2\r\n" + KEY + b"$4\r\nns:v\r\n", b"*2\r\n" + OWN + b"$4\r\nns:v\r\n"),
            (b"*3\r\n" + KEY + b"$1\r\nm\r\n,1.5\r\n", b"*3\r\n" + OWN + b"$1\r\nm\r\n,1.5\r\n"),
            (b"*2\r\n" + KEY + b"*2\r\n*2\r\n" + KEY + b",1\r\n*0\r\n", b"*2\r\n" + OWN + b"*2\r\n*2\r\n" + KEY + b",1\r\n*0\r\n"),
            (b"*-1\r\n", b"*-1\r\n"),
            (b"$-1\r\n", b"$-1\r\n"),
            (b"_\r\n", b"_\r\n"),
            (b"*0\r\n", b"*0\r\n"),
            (b"-WRONGTYPE x\r\n", b"-WRONGTYPE x\r\n"),
        ],
    )
    def test_whose_first_is_a_key(self, call: str, reply: bytes, expected: bytes) -> None:
        assert stripped(call, reply) == expected

    def test_of_walks(self) -> None:
        reply = b"*2\r\n$2\r\n17\r\n*2\r\n" + KEY + b"$3\r\nns:\r\n"
        assert stripped("SCAN 0", reply) == b"*2\r\n$2\r\n17\r\n*2\r\n" + OWN + b"$0\r\n\r\n"
        for same in (b"*2\r\n$1\r\n0\r\n*0\r\n", b"-ERR invalid cursor\r\n"):
            assert stripped("SCAN 0", same) == same
        assert stripped("KEYS *", b"*2\r\n" + KEY + KEY) == b"*2\r\n" + OWN + OWN
        assert stripped("KEYS *", b"*0\r\n") == b"*0\r\n"
        long = b"*2\r\n" + encode.bulk(b"ns:" + b"x" * 500) + encode.bulk(b"ns:*2\r\n$4\r\nns:k\r\n")
        assert stripped("KEYS *", long) == b"*2\r\n" + encode.bulk(b"x" * 500) + encode.bulk(b"*2\r\n$4\r\nns:k\r\n")

    @pytest.mark.parametrize("call", ["XREAD STREAMS k 0", "XREADGROUP GROUP g c STREAMS k >"])
    def test_of_streams(self, call: str) -> None:
        entries = b"*1\r\n*2\r\n$3\r\n0-1\r\n*2\r\n" + KEY + KEY
        assert stripped(call, b"*1\r\n*2\r\n" + KEY + entries) == b"*1\r\n*2\r\n" + OWN + entries
        assert stripped(call, b"%2\r\n" + KEY + entries + KEY + b"*0\r\n") == b"%2\r\n" + OWN + entries + OWN + b"*0\r\n"
        for null in (b"*-1\r\n", b"_\r\n"):
            assert stripped(call, null) == null
        error = b"-NOGROUP No such key 'ns:k' or consumer group 'g'\r\n"
        assert stripped(call, error) == b"-NOGROUP No such key 'k' or consumer group 'g'\r\n"

    def test_errors_that_name_keys(self) -> None:
        error = b"-NOGROUP No such key 'ns:k' or consumer group 'g' in XPENDING\r\n"
        for call in ("XPENDING k g", "XACK k g 1", "XINFO CONSUMERS k g", "XGROUP DESTROY k g", "XAUTOCLAIM k g c 0 0", "XCLAIM k g c 0 1"):
            assert stripped(call, error) == error.replace(b"ns:", b"")
        error = b"-NOGROUP No such consumer group 'g' for key name 'ns:k'\r\n"
        assert stripped("XGROUP CREATECONSUMER k g c", error) == error.replace(b"ns:", b"")

    @pytest.mark.parametrize(
        ("call", "error", "expected"),
        [
            ("XPENDING k ns:g", "NOGROUP No such key 'ns:k' or consumer group 'ns:g'", "NOGROUP No such key 'k' or consumer group 'ns:g'"),
            ("XPENDING k ns:k", "NOGROUP No such key 'ns:k' or consumer group 'ns:k'", "NOGROUP No such key 'k' or consumer group 'ns:k'"),
            ("XGROUP DELCONSUMER k ns:k c", "NOGROUP No such consumer group 'ns:k' for key name 'ns:k'", "NOGROUP No such consumer group 'ns:k' for key name 'k'"),
            ("XPENDING ns:k g", "NOGROUP No such key 'ns:ns:k' or consumer group 'g'", "NOGROUP No such key 'ns:k' or consumer group 'g'"),
            ("XREADGROUP GROUP g c STREAMS ns:k k > >", "NOGROUP No such key 'ns:ns:k' or consumer group 'g'", "NOGROUP No such key 'ns:k' or consumer group 'g'"),
            ("XREADGROUP GROUP ns:g c STREAMS k k2 > >", "NOGROUP No such key 'ns:k2' or consumer group 'ns:g' in X", "NOGROUP No such key 'k2' or consumer group 'ns:g' in X"),
            ("EVAL s 1 k", "ERR bad 'ns:k'", "ERR bad 'ns:k'"),
            ("EVAL s 1 k", "NOGROUP No such key 'ns:k' or consumer group 'ns:k' script: 1", "NOGROUP No such key 'k' or consumer group 'ns:k' script: 1"),
            ("EVAL s 1 k", "NOGROUP No such key 'ns:other'", "NOGROUP No such key 'ns:other'"),
            ("XACK k.* g 1", "NOGROUP No such key 'ns:k.*'", "NOGROUP No such key 'k.*'"),
            ("XACK k.* g 1", "NOGROUP No such key 'ns:k12'", "NOGROUP No such key 'ns:k12'"),
            ("XACK k\0x g 1", "NOGROUP No such key 'ns:k'", "NOGROUP No such key 'k'"),
        ],
    )
    def test_errors_keep_what_is_no_key_of_the_command(self, call: str, error: str, expected: str) -> None:
        assert stripped(call, b"-%b\r\n" % error.encode()) == b"-%b\r\n" % expected.encode()

    def test_errors_show_a_key_on_one_line(self) -> None:
        arguments = [b"XACK", b"a\r\nb", b"g", b"1"]
        strip = NS.translate(find(arguments), arguments)[1]
        assert strip is not None
        assert strip(b"-NOGROUP No such key 'ns:a  b' or x\r\n") == b"-NOGROUP No such key 'a  b' or x\r\n"

    def test_errors_about_overlapping_prefixes(self) -> None:
        error = b"-ERR Prefix 'ns:a' overlaps with an existing prefix 'ns:ab'. Prefixes for a single client must not overlap.\r\n"
        assert stripped("CLIENT TRACKING ON BCAST PREFIX a", error) == error.replace(b"'ns:", b"'")

    @pytest.mark.parametrize("quote", "'`")
    def test_errors_of_a_redis_that_does_not_know_a_command_after_all(self, quote: str) -> None:
        """Its table not reported, Redis may name the arguments of any command."""
        namespace = Namespace("ns", table=CommandTable.load())
        arguments = [b"COPY", b"ns:k", b"l"]
        translated, strip = namespace.translate(find(arguments), arguments)
        assert strip is not None and translated == [b"COPY", b"ns:ns:k", b"ns:l"]
        ends = "%s " if quote == "'" else "%s, "
        said = f"-ERR unknown command {quote}COPY{quote}, with args beginning with: {ends % (quote + 'ns:ns:k' + quote)}{ends % (quote + 'ns:l' + quote)}\r\n"
        assert strip(said.encode()) == said.replace("ns:ns:k", "ns:k").replace("ns:l", "l").encode()
        assert stripped("XPENDING k g", b"$9\r\nit's 'ns:\r\n") == b"$9\r\nit's 'ns:\r\n"

    def test_of_scripts_stay_but_for_errors(self) -> None:
        assert stripped("EVAL s 1 k", b"*1\r\n" + KEY) == b"*1\r\n" + KEY
        error = b"-ERR Error running script: -NOGROUP No such key 'ns:k' or consumer group 'g'\r\n"
        assert stripped("EVAL s 1 k", error) == error.replace(b"ns:", b"")

    @pytest.mark.parametrize("call", ["GET k", "LRANGE k 0 -1", "HGETALL k", "SORT k GET v_*", "MGET a b", "OBJECT ENCODING k"])
    def test_of_values_are_not_looked_into(self, call: str) -> None:
        assert stripped(call, b"*2\r\n" + KEY + OTHER) == b"*2\r\n" + KEY + OTHER
        assert NS.translate(find(words(call)), words(call))[1] is None

    def test_as_one_key(self) -> None:
        assert NS.stripped(KEY) == OWN
        assert NS.stripped(b"$-1\r\n") == b"$-1\r\n"


class TestLargeRequests:
    """`leading`: the first arguments of a request that is still arriving."""

    @pytest.mark.parametrize(
        ("known", "count", "expected"),
        [
            ("SET k", 3, "SET ns:k"),
            ("SADD k", 10**6, "SADD ns:k"),
            ("SADD k a b", 2**31 - 1, "SADD ns:k a b"),
            ("HSET k", 3 + 2 * 10**5, "HSET ns:k"),
            ("RESTORE k 0", 4, "RESTORE ns:k 0"),
            ("EVAL s 1 k", 5, "EVAL s 1 ns:k"),
            ("EVAL s 1 k", 200, "EVAL s 1 ns:k"),
            ("ZUNION 1 k", 5, "ZUNION 1 ns:k"),
            ("XADD k *", 9, "XADD ns:k *"),
            ("MSET a", 3, "MSET ns:a"),
            ("MSET a 1 b", 5, "MSET ns:a 1 ns:b"),
            ("XREAD STREAMS a", 4, "XREAD STREAMS ns:a"),
            # more is needed
            ("SET", 3, None),
            ("SADD", 10**6, None),
            ("MSET a", 5, None),
            ("MSET a 1 b", 7, None),
            ("MSET", 10**6 + 1, None),
            ("DEL a b", 4, None),
            ("EVAL", 5, None),
            ("EVAL s", 5, None),
            ("EVAL s 2 a", 5, None),
            ("EVAL s 1 k", 10**6, None),
            ("LMPOP 2 a", 5, None),
            ("XREAD", 4, None),
            ("GEORADIUS k 1 2 3 m STORE", 8, None),
            ("SORT k STORE", 4, None),
            ("SORT k GET", 6, None),
            ('MIGRATE h 1 "" 0 9 KEYS', 8, None),
            ("MIGRATE h 1", 7, None),
            ("BITOP AND", 4, None),
            # answered or translated as a whole
            ("PUBLISH a", 3, None),
            ("SUBSCRIBE", 3, None),
            ("SCAN 0 MATCH", 4, None),
            ("KEYS", 2, None),
            ("ECHO", 2, None),
            ("CLIENT SETNAME", 3, None),
        ],
    )
    def test_are_translated_once_their_keys_are_known(self, known: str, count: int, expected: str | None) -> None:
        arguments = words(known)
        found = NS.leading(find(arguments), arguments, count)
        assert (None if found is None else found[0]) == (None if expected is None else words(expected))

    @pytest.mark.parametrize(("known", "count"), [("SORT k BY", 4), ("SORT_RO k GET", 4), ("SORT k BY nosort GET # GET", 8)])
    def test_a_pattern_that_is_still_arriving_does_not_pass_bare(self, known: str, count: int) -> None:
        """`SORT k BY other:*->xxxx…` would otherwise read keys of others."""
        arguments = words(known)
        with contextlib.suppress(RefusedHere):
            assert NS.leading(find(arguments), arguments, count) is None

    @pytest.mark.parametrize("known", ["NOSUCH k", "CLIENT NOSUCH"])
    def test_unknown_ones_are_refused(self, known: str) -> None:
        with pytest.raises(RefusedHere) as caught:
            NS.leading(find(words(known)), words(known), 9)
        assert UNKNOWN in str(caught.value)

    def test_need_their_strip(self) -> None:
        found = NS.leading(find([b"LMPOP"]), words("LMPOP 1 k"), 4)
        assert found is not None and found[1] is not None
        assert found[1](b"*2\r\n" + KEY + b"*0\r\n") == b"*2\r\n" + OWN + b"*0\r\n"

    def test_do_not_allocate_what_they_claim(self) -> None:
        tracemalloc.start()
        try:
            for call in ("SADD k", "MSET a", "EVAL s 1 k", "XREAD STREAMS a", "DEL a", "SORT k", "GEORADIUS k"):
                for count in (10**6, 2**31 - 1):
                    NS.leading(find(words(call)), words(call), count)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @settings(deadline=None, max_examples=25)
    @given(ANY, st.integers(0, 9))
    @example([b"k", b"GET", b"*"], 3)
    @example([b"s", b"2", b"k", b"other:k"], 4)
    def test_agree_with_the_whole_request(self, rest: list[bytes], split: int) -> None:
        """What is sent ahead is what the whole request would have been sent as."""
        for command in TABLE:
            whole = [part.encode() for part in command.name.split("|")] + rest
            known = whole[: max(len(whole) - len(rest), min(split, len(whole)))]
            if find(whole) is not command or command.container:
                continue
            try:
                ahead = NS.leading(command, known, len(whole))
            except RefusedHere:
                continue
            if ahead is None or known == whole:
                continue
            try:
                real, _ = NS.translate(command, whole)
            except RefusedHere:
                pytest.fail(f"{known} of {whole} passed although the whole is refused")
            assert ahead[0] + whole[len(known) :] == real, (known, whole)


# --- glob patterns


def matches(pattern: bytes, string: bytes) -> bool:
    """Redis' stringmatchlen (util.c), case-sensitive."""
    p = s = 0
    while p < len(pattern) and s < len(string):
        byte = pattern[p : p + 1]
        if byte == b"*":
            while pattern[p + 1 : p + 2] == b"*":
                p += 1
            if p + 1 == len(pattern):
                return True
            return any(matches(pattern[p + 1 :], string[at:]) for at in range(s, len(string) + 1))
        if byte == b"?":
            s += 1
        elif byte == b"[":
            p, found = _class(pattern, p + 1, string[s])
            if not found:
                return False
            s += 1
        else:
            if byte == b"\\" and p + 1 < len(pattern):
                p += 1
            if pattern[p] != string[s]:
                return False
            s += 1
        p += 1
        if s == len(string):
            while pattern[p : p + 1] == b"*":
                p += 1
            break
    return p == len(pattern) and s == len(string)


def _class(pattern: bytes, p: int, byte: int) -> tuple[int, bool]:
    """A class in brackets: (the place of its end, whether `byte` is in it)."""
    negated = pattern[p : p + 1] == b"^"
    p += negated
    found = False
    while True:
        if pattern[p : p + 1] == b"\\" and len(pattern) - p >= 2:
            p += 1
            found = found or pattern[p] == byte
        elif pattern[p : p + 1] == b"]":
            break
        elif p >= len(pattern):
            p -= 1
            break
        elif len(pattern) - p >= 3 and pattern[p + 1 : p + 2] == b"-":
            low, high = sorted((pattern[p], pattern[p + 2]))
            p += 2
            found = found or low <= byte <= high
        else:
            found = found or pattern[p] == byte
        p += 1
    return p, found != negated


@pytest.mark.parametrize(
    ("pattern", "string", "expected"),
    [
        (b"h?llo", b"hello", True), (b"h*llo", b"heeello", True), (b"h[ae]llo", b"hillo", False), (b"h[^e]llo", b"hallo", True),
        (b"h[a-b]llo", b"hbllo", True), (b"h\\*llo", b"h*llo", True), (b"h\\*llo", b"hello", False), (b"*", b"", False),
        (b"a*", b"a", True), (b"[b-a]", b"a", True), (b"\\", b"\\", True), (b"[a", b"a", True), (b"", b"", True), (b"a", b"", False),
    ],
)  # fmt: skip
def test_the_model_of_matching(pattern: bytes, string: bytes, expected: bool) -> None:
    assert matches(pattern, string) == expected or (pattern, string) == (b"*", b"")


GLOB = st.lists(st.sampled_from([bytes([byte]) for byte in b"*?[]^-\\ab:"]), max_size=6).map(b"".join)
NAMES = st.text(st.sampled_from("*?[]^-\\ab"), min_size=1, max_size=5)


class TestGlobs:
    @settings(max_examples=600, deadline=None)
    @given(NAMES, GLOB, GLOB)
    @example("a*b", b"*", b"x")
    @example("[^a]", b"?", b"]")
    @example("a\\", b"\\", b"\\")
    @example("a-z", b"[a-", b"a")
    def test_match_in_the_namespace_what_they_match_without(self, name: str, pattern: bytes, key: bytes) -> None:
        namespace = Namespace(name)
        real = namespace.translate(find([b"KEYS"]), [b"KEYS", pattern])[0][1]
        if key:  # Redis matches an empty string in a loop that is never entered
            assert matches(real, namespace.prefix + key) == matches(pattern, key)

    @settings(max_examples=600, deadline=None)
    @given(NAMES, GLOB, GLOB)
    def test_never_match_anything_outside(self, name: str, pattern: bytes, key: bytes) -> None:
        namespace = Namespace(name)
        for call in (b"KEYS", b"SCAN"):
            arguments = [b"KEYS", pattern] if call == b"KEYS" else [b"SCAN", b"0", b"MATCH", pattern]
            real = namespace.translate(find([call]), arguments)[0][-1]
            if not key.startswith(namespace.prefix):
                assert not matches(real, key)

    @settings(max_examples=300, deadline=None)
    @given(NAMES, GLOB, GLOB)
    def test_of_channels_and_keyspace_channels(self, name: str, pattern: bytes, key: bytes) -> None:
        namespace = Namespace(name, channels=True)
        head = b"__keyspace@0__:"
        for front, bare in ((b"", b""), (head, head)):
            real = namespace.channel_pattern(front + pattern)
            if key:
                assert matches(real, namespace.channel(bare + key)) == matches(pattern, key)
