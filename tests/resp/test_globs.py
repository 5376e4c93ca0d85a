"""Glob patterns, compared with Redis' own matching."""

from __future__ import annotations

import re
import time

import pytest
import redis as redis_py
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.resp import globs
from proxy.resp.globs import FirstMatch, compile_globs
from tests.harness import Process


def compile_one(pattern: bytes) -> re.Pattern[bytes]:
    return compile_globs([pattern])


ALPHABET = st.sampled_from([b"a", b"b", b"c", b"-", b"]", b"[", b"^", b"\\", b"*", b"?", b"\n", b"\xff"])
PATTERNS = st.lists(ALPHABET, max_size=9).map(b"".join)
KEYS = st.lists(st.sampled_from([b"a", b"b", b"c", b"-", b"]", b"^", b"\\", b"*", b"\n", b"\xff"]), max_size=6)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (b"h?llo", b"hello", True), (b"h*llo", b"heeeello", True), (b"h[ae]llo", b"hillo", False),
        (b"h[^e]llo", b"hallo", True), (b"h[a-b]llo", b"hbllo", True), (b"h[b-a]llo", b"hallo", True),
        (b"\\*", b"*", True), (b"\\*", b"a", False), (b"a\\", b"a\\", True), (b"[", b"[", False),
        (b"[^", b"x", True), (b"[ab", b"b", True), (b"", b"", True), (b"", b"a", False), (b"*", b"a\nb", True),
        (b"a**b", b"ab", True), (b"user:*:name", b"user:1:2:name", True), (b"x.y", b"xzy", False),
    ],
)  # fmt: skip
def test_examples(pattern: bytes, text: bytes, matches: bool) -> None:
    assert bool(compile_one(pattern).fullmatch(text)) is matches


@pytest.fixture
def store(redis: Process) -> redis_py.Redis:
    return redis_py.Redis(port=redis.port)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=PATTERNS, key=KEYS.map(b"".join))
@example(pattern=b"[a-]", key=b"a")
@example(pattern=b"[b-\xff", key=b"a")
@example(pattern=b"[\x80-b]", key=b"\x7f")
@example(pattern=b"[\x80-\xff]", key=b"\x90")
@example(pattern=b"*[^]", key=b"ab")
@example(pattern=b"a*b*c*", key=b"abcb")
def test_redis_agrees(store: redis_py.Redis, pattern: bytes, key: bytes) -> None:
    # Behind a prefix: to an empty key and the pattern * alone, KEYS has an answer of its own.
    name = b"k" + key
    store.flushall()
    store.set(name, 1)
    assert bool(compile_one(b"k" + pattern).fullmatch(name)) == (store.keys(b"k" + pattern) == [name])


@given(patterns=st.lists(PATTERNS | st.sampled_from([b"a*", b"a", b"ab*", b"b?", b"*"]), max_size=6), key=KEYS.map(b"".join))
@example(patterns=[b"ab*", b"a*"], key=b"abc")
@example(patterns=[b"*c", b"abc", b"ab*"], key=b"abc")
@example(patterns=[b"ab", b"a*"], key=b"abc")
@example(patterns=[b"a\\*", b"a*"], key=b"a*")
def test_the_first_of_several_as_if_they_were_tried_in_turn(patterns: list[bytes], key: bytes) -> None:
    matching = [number for number, pattern in enumerate(patterns) if compile_one(pattern).fullmatch(key)]
    assert FirstMatch(patterns).find(key) == min(matching, default=None)


def test_only_those_are_tried_that_begin_as_the_name_does(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[list[bytes]] = []
    monkeypatch.setattr(globs, "compile_globs", lambda patterns: compiled.append(patterns) or compile_globs(patterns))
    first = FirstMatch([*(b"other%d:*" % n for n in range(1000)), b"key:*"])
    assert first.find(b"key:1") == 1000 and first.find(b"other77:x") == 77 and first.find(b"none") is None
    assert compiled == [[b"key:*"], [b"other77:*"]]


def test_many_stars_take_no_time() -> None:
    pattern = compile_one(b"*a" * 200 + b"*b")
    began = time.process_time()
    assert not pattern.fullmatch(b"a" * 5000)
    assert time.process_time() - began < 5  # going back would take longer than the universe has


def test_the_first_of_several_that_matches() -> None:
    several = compile_globs([b"user:*", b"*:1", b"*"])
    found = [several.fullmatch(key) for key in (b"user:1", b"agent:1", b"x")]
    assert [match.lastindex for match in found if match] == [1, 2, 3]
