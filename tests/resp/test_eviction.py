"""Messages of the eviction bus: what one side writes the other reads, and nothing else is taken for one."""

from __future__ import annotations

import base64
import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.resp.eviction import LONGEST, BadMessage, Eviction, UnknownVersion

NAMES = st.lists(st.one_of(st.binary(max_size=60), st.text(max_size=30).map(str.encode)), max_size=6).map(
    tuple
)
MESSAGES = st.builds(
    Eviction, keys=NAMES, patterns=NAMES, everything=st.booleans(), why=st.text(max_size=20),
    sender=st.text(string.hexdigits, min_size=1, max_size=16), number=st.integers(0, 1 << 70),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


def decoded(message: object) -> Eviction:
    """What a message says that is written as Python's json does, which escapes all but ASCII."""
    return Eviction.decode(json.dumps(message).encode())


class TestThereAndBack:
    @given(MESSAGES)
    @example(Eviction((b"", b"\xff", b"\0\r\n", "grün".encode(), b"\xed\xa0\x80", b'"\\')))
    @example(Eviction(patterns=(b"\xff*", b"[\x80-\xff]?", b"\\*")))
    def test_what_is_written_is_read(self, message: Eviction) -> None:
        assert Eviction.decode(message.encode()) == message

    @given(NAMES, NAMES, st.booleans())
    def test_without_a_sender_too(
        self, keys: tuple[bytes, ...], patterns: tuple[bytes, ...], everything: bool
    ) -> None:
        message = Eviction(keys, patterns, everything)
        assert Eviction.decode(message.encode()) == message
        assert not {"from", "n"} & json.loads(message.encode()).keys()

    @given(MESSAGES)
    def test_it_is_json_in_utf8_of_one_line(self, message: Eviction) -> None:
        data = message.encode()
        assert json.loads(data.decode())["v"] == 1
        assert b"\n" not in data and b"\r" not in data

    def test_the_bytes(self) -> None:
        message = Eviction(("grün".encode(), b"\xff"), (b"user:*",), why="write", sender="ab12", number=7)
        assert message.encode() == (
            '{"v":1,"from":"ab12","n":7,"why":"write","keys":["grün",{"b64":"/w=="}],"match":["user:*"]}'.encode()
        )
        assert Eviction(everything=True).encode() == b'{"v":1,"all":true}'
        assert Eviction().encode() == b'{"v":1}'


class TestWhatAPersonWrites:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b'{"v":1,"keys":["user:42"]}', Eviction((b"user:42",))),
            (
                b'{"v": 1, "keys": ["user:42"], "match": ["api:users:*"]}',
                Eviction((b"user:42",), (b"api:users:*",)),
            ),
            (b' {"all": true, "v": 1}\n', Eviction(everything=True)),
            (b'{"v":1,"all":false,"why":"by hand"}', Eviction(why="by hand")),
            (b'{"v":1}', Eviction()),
            (b'{"v":1,"keys":[],"match":[]}', Eviction()),
            (b'{"v":1,"keys":[""]}', Eviction((b"",))),
            (b'{"v":1,"keys":["a",{"b64":"AP8="},{"b64":""}]}', Eviction((b"a", b"\0\xff", b""))),
            (b'{"v":1,"match":[{"b64":"/yo="}]}', Eviction(patterns=(b"\xff*",))),
            (b'{"v":1,"keys":["gr\\u00fcn","\\ud83d\\ude00"]}', Eviction(("grün".encode(), "😀".encode()))),
            ('{"v":1,"keys":["grün"]}'.encode(), Eviction(("grün".encode(),))),
        ],
    )
    def test_is_understood(self, data: bytes, expected: Eviction) -> None:
        assert Eviction.decode(data) == expected

    @given(st.dictionaries(st.text(max_size=6), JSON, max_size=5))
    @example({"ttl": 5, "source": {"host": "a"}, "b64": "x", "V": 2, "Keys": ["b"]})
    def test_unknown_fields_are_passed_over(self, others: dict[str, object]) -> None:
        known = {"v": 1, "keys": ["a"], "match": ["b*"], "all": False, "from": "me", "n": 3, "why": "x"}
        assert decoded(others | known) == Eviction((b"a",), (b"b*",), False, "x", "me", 3)

    def test_what_stands_beside_b64_is_passed_over(self) -> None:
        assert decoded({"v": 1, "keys": [{"b64": "/w==", "note": "binary"}]}) == Eviction((b"\xff",))

    @pytest.mark.parametrize("size", [1, 500, 50_000])
    def test_many_names(self, size: int) -> None:
        names = [f"key:{n}" for n in range(size)]
        assert decoded({"v": 1, "keys": names}).keys == tuple(name.encode() for name in names)

    def test_a_lone_surrogate_harms_nothing(self) -> None:
        """JSON can write half a character, UTF-8 cannot: no such key is UTF-8, but bytes it has all the same."""
        message = Eviction.decode(
            b'{"v":1,"keys":["\\ud800","a"],"match":["\\udfff*"],"why":"\\udc80","from":"\\ud800"}'
        )
        assert message.keys == (b"\xed\xa0\x80", b"a")
        assert message.patterns == (b"\xed\xbf\xbf*",)
        assert Eviction.decode(Eviction(message.keys, message.patterns).encode()).keys == message.keys


class TestVersions:
    @pytest.mark.parametrize(
        "version", [0, 2, -1, 1.5, "1", "", None, [1], {"v": 1}, 10**4000, "x" * 1000, False, "\ud800"]
    )
    def test_unknown_ones_are_told_apart(self, version: object) -> None:
        with pytest.raises(UnknownVersion) as error:
            decoded({"v": version, "keys": ["a"]})
        assert len(str(error.value)) < 100

    def test_no_number_is_none(self) -> None:
        with pytest.raises(BadMessage):
            Eviction.decode(b'{"v":true,"keys":["a"]}')

    @pytest.mark.parametrize("message", [{}, {"keys": ["a"]}, {"V": 1, "all": True}])
    def test_none_is_an_unknown_one(self, message: object) -> None:
        with pytest.raises(UnknownVersion):
            decoded(message)

    @given(st.integers().filter(lambda version: version != 1), JSON)
    def test_of_another_version_nothing_else_is_looked_at(self, version: int, whatever: object) -> None:
        with pytest.raises(UnknownVersion):
            decoded(
                {
                    "v": version,
                    "keys": whatever,
                    "match": whatever,
                    "all": whatever,
                    "from": whatever,
                    "n": whatever,
                }
            )


MALFORMED = {
    "empty": b"", "white": b" \r\n", "a word": b"user:42", "a bare key list": b'["user:42"]', "a number": b"1", "null": b"null", "true": b"true",
    "a text": b'"v"', "half": b'{"v":1,"keys":["a"', "more behind": b'{"v":1}{"v":1}', "a comma too much": b'{"v":1,}', "single quotes": b"{'v':1}",
    "binary": bytes(range(256)), "no UTF-8": b'{"v":1,"keys":["\xff"]}', "a raw control character": b'{"v":1,"keys":["a\nb"]}', "zero bytes": b"\0" * 64,
    "half of UTF-16": b"\xff\xfe{", "a bad escape": b'{"v":1,"keys":["\\x41"]}', "digits without end": b'{"v":1,"n":' + b"9" * 5000 + b"}",
    "keys no list": b'{"v":1,"keys":"a"}', "keys an object": b'{"v":1,"keys":{"a":1}}', "keys a number": b'{"v":1,"keys":7}', "keys null": b'{"v":1,"keys":null}',
    "match no list": b'{"v":1,"match":"*"}', "match null": b'{"v":1,"match":null}', "match true": b'{"v":1,"match":true}',
    "a number among keys": b'{"v":1,"keys":["a",1]}', "null among keys": b'{"v":1,"keys":[null]}', "true among keys": b'{"v":1,"keys":[true]}',
    "a list among keys": b'{"v":1,"keys":[["a"]]}', "a number among patterns": b'{"v":1,"match":[1.5]}', "an empty object": b'{"v":1,"keys":[{}]}',
    "b64 null": b'{"v":1,"keys":[{"b64":null}]}', "b64 a number": b'{"v":1,"keys":[{"b64":1}]}', "b64 a list": b'{"v":1,"keys":[{"b64":[65]}]}',
    "b64 an object": b'{"v":1,"keys":[{"b64":{}}]}', "b64 without padding": b'{"v":1,"keys":[{"b64":"/w"}]}', "b64 of one sign": b'{"v":1,"keys":[{"b64":"A"}]}',
    "b64 with blanks": b'{"v":1,"keys":[{"b64":"AP 8="}]}', "b64 with other signs": b'{"v":1,"match":[{"b64":"_-=="}]}', "b64 with more behind": b'{"v":1,"keys":[{"b64":"/w==/w=="}]}',
    "b64 not in ASCII": '{"v":1,"keys":[{"b64":"grün"}]}'.encode(), "b64 with a lone surrogate": b'{"v":1,"keys":[{"b64":"\\ud800AAA"}]}',
    "all a number": b'{"v":1,"all":1}', "all a text": b'{"v":1,"all":"true"}', "all null": b'{"v":1,"all":null}',
    "from a number": b'{"v":1,"from":1}', "from null": b'{"v":1,"from":null}', "from a list": b'{"v":1,"from":["a"],"n":1}',
    "n a text": b'{"v":1,"from":"a","n":"1"}', "n true": b'{"v":1,"from":"a","n":true}', "n no integer": b'{"v":1,"from":"a","n":1.0}', "n null": b'{"v":1,"n":null}',
    "n not a number": b'{"v":1,"n":NaN}', "n infinite": b'{"v":1,"n":1e999}', "why a number": b'{"v":1,"why":1}', "why an object": b'{"v":1,"why":{}}',
}  # fmt: skip


class TestMalformed:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_is_refused_with_a_short_reason(self, name: str) -> None:
        with pytest.raises(BadMessage) as error:
            Eviction.decode(MALFORMED[name])
        assert not isinstance(error.value, UnknownVersion)
        assert 0 < len(str(error.value)) < 100

    @pytest.mark.parametrize("opening", ["[", '{"a":', '{"v":1,"keys":[', '[{"b64":'])
    def test_deep_nesting_without_end(self, opening: str) -> None:
        for depth in (10, 1000, 50_000):
            with pytest.raises(BadMessage):
                Eviction.decode((opening * depth).encode())

    @pytest.mark.parametrize("field", ["v", "keys", "match", "from", "n", "all", "why"])
    def test_deep_nesting_in_any_field(self, field: str) -> None:
        """Around the depth at which Python's JSON gives up, too."""
        rest = "" if field == "v" else '"v":1,'
        shallow = 2 if field in ("keys", "match") else 1  # [] is a list of names, if of none
        for depth in [shallow, 3, 100, *range(850, 1010), 5000, 100_000]:
            with pytest.raises(BadMessage):
                Eviction.decode(f'{{{rest}"{field}":{"[" * depth}{"]" * depth}}}'.encode())

    def test_too_long(self) -> None:
        frame = len(b'{"v":1,"keys":[""]}')
        longest = b'{"v":1,"keys":["%b"]}' % (b"x" * (LONGEST - frame))
        assert len(longest) == LONGEST
        assert len(Eviction.decode(longest).keys[0]) == LONGEST - frame
        with pytest.raises(BadMessage):
            Eviction.decode(longest + b" ")

    @given(st.binary(max_size=200))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        try:
            Eviction.decode(data)
        except BadMessage as error:
            assert len(str(error)) < 100

    @given(st.dictionaries(st.sampled_from(["keys", "match", "all", "from", "n", "why"]), JSON))
    def test_arbitrary_json_is_refused_or_means_what_it_says(self, fields: dict[str, object]) -> None:
        try:
            found = decoded({"v": 1} | fields)
        except BadMessage as error:
            assert not isinstance(error, UnknownVersion)
            return
        assert (found.everything, found.sender, found.number) == (
            fields.get("all", False),
            fields.get("from", ""),
            fields.get("n", 0),
        )
        for names, field in ((found.keys, "keys"), (found.patterns, "match")):
            assert all(isinstance(name, bytes) for name in names)
            assert len(names) == len(fields.get(field, []))  # type: ignore[arg-type]

    @given(st.binary(max_size=30))
    def test_b64_is_that_of_the_bytes(self, name: bytes) -> None:
        assert decoded({"v": 1, "keys": [{"b64": base64.b64encode(name).decode()}]}).keys == (name,)
