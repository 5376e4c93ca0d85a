"""Requests as lines of text, and the file of them: what is written is read back, whatever is wrong is told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.resp.globs import compile_globs, literal
from proxy.resp.hotlist import HEADER, LONGEST, Section, dump, line_of, lines_of, load, quoted, words_of

WORDS = st.lists(st.binary(max_size=12) | st.sampled_from([b"GET", b"user:42", b"#a", b"[b", b"a b", b"\xff\r\n", b""]), min_size=1, max_size=4)
SECTIONS = st.lists(
    st.builds(Section, st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from([(2,), (3,), (2, 3)]), st.lists(WORDS, max_size=6)),
    max_size=4,
)


def anything(words: list[bytes]) -> bool:
    return True


class TestALine:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ([b"GET", b"user:42"], b"GET user:42"),
            ([b"HGETALL", b"user 43"], b'HGETALL "user 43"'),
            ([b"GET", b'\xff"\\\r\n'], rb'GET "\xff\x22\x5c\x0d\x0a"'),
            ([b"GET", b""], b'GET ""'),
            ([b"#GET", b"[a]", b"a[b]#"], b'"#GET" "[a]" a[b]#'),
        ],
    )
    def test_is_readable(self, arguments: list[bytes], line: bytes) -> None:
        assert line_of(arguments) == line
        assert words_of(line) == arguments

    @given(WORDS)
    def test_is_read_back(self, arguments: list[bytes]) -> None:
        line = line_of(arguments)
        assert words_of(line) == arguments
        assert list(lines_of(line + b"\r\n")) == [(1, line)], "one line, no comment, nothing stripped"

    @given(st.binary(max_size=8))
    def test_a_word_alone(self, word: bytes) -> None:
        assert words_of(quoted(word)) == [word]

    @pytest.mark.parametrize(("line", "said"), [(b'GET "a', "unbalanced quotes"), (b"a" * (LONGEST + 1), "is longer than 4096 bytes")])
    def test_that_is_wrong(self, line: bytes, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            words_of(line)


class TestAPattern:
    @pytest.mark.parametrize(
        ("pattern", "name"),
        [(b"a", b"a"), (b"a*", None), (b"a?", None), (b"[a]", None), (rb"a\*", b"a*"), (b"a]\\", b"a]\\"), (b"\\\n", b"\n"), (b"", b"")],
    )
    def test_of_one_name(self, pattern: bytes, name: bytes | None) -> None:
        assert literal(pattern) == name

    @given(st.binary(max_size=6) | st.text("ab\\*?[]", max_size=6).map(str.encode))
    def test_matches_that_name(self, pattern: bytes) -> None:
        name = literal(pattern)
        assert name is None or compile_globs([pattern]).fullmatch(name)


class TestTheFile:
    @given(SECTIONS)
    def test_is_read_back(self, sections: list[Section]) -> None:
        assert load(dump(sections, 1 << 20), anything) == (sections, [])

    @given(SECTIONS, st.integers(64, 400))
    def test_is_never_longer_than_allowed_and_keeps_the_first(self, sections: list[Section], limit: int) -> None:
        data = dump(sections, limit)
        assert len(data) <= limit
        found, wrong = load(data, anything)
        assert not wrong
        kept = {section.space: section.requests for section in found}
        for section in found:
            assert any(
                section.space == whole.space and kept[section.space] == whole.requests[: len(kept[section.space])]
                for whole in sections
            )  # fmt: skip

    def test_every_space_has_its_share(self) -> None:
        big = Section("big", (2,), [[b"GET", b"%d" % n] for n in range(1000)])
        found, _ = load(dump([big, Section("small", (3,), [[b"GET", b"x"]])], 400), anything)
        assert [section.space for section in found] == ["big", "small"]
        assert found[1].requests == [[b"GET", b"x"]] and 10 < len(found[0].requests) < 100

    def test_a_request_that_is_too_long_is_left_out(self) -> None:
        requests = [[b"GET", b"a" * LONGEST], [b"GET", b"b"]]
        assert load(dump([Section("", (2,), requests)], 1 << 20), anything)[0][0].requests == [[b"GET", b"b"]]

    def test_of_another_version_or_of_something_else_counts_for_nothing(self) -> None:
        for data in (b"", b"pannier warm_state 2\n[space \"\" protocols 2]\nGET a\n", b"\x7fELF\n\n", b"GET a\n"):
            sections, [(line, said)] = load(data, anything)
            assert (sections, line) == ([], 1) and "of another version" in said

    def test_what_is_wrong_in_it_is_told_with_its_line_and_the_rest_counts(self) -> None:
        lines = [HEADER, b"GET early", b'[space "" protocols 2]', b"GET a", b"SET a 1", b'GET "b', b"", b"# GET c", b"[space x]", b"GET d", b'[space "" protocols 4]']
        sections, wrong = load(b"\n".join(lines), lambda words: words[0] == b"GET")
        assert sections == [Section("", (2,), [[b"GET", b"a"], [b"GET", b"d"]])]
        assert [number for number, _ in wrong] == [2, 5, 6, 9, 11]
        assert [said for number, said in wrong if number == 5] == ["is no read that is kept"]

    @given(st.binary(max_size=200))
    def test_any_bytes_are_borne(self, data: bytes) -> None:
        for text in (data, HEADER + b'\n[space "" protocols 2 3]\n' + data):
            sections, wrong = load(text, lambda words: words[0] == b"GET")
            assert all(words[0] == b"GET" for section in sections for words in section.requests)
            assert all(re.fullmatch(r"[^\n]+", said) for _, said in wrong)
