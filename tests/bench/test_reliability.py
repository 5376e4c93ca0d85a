"""The reliability runs, short: what must not happen does not, and what would be wrong is seen to be."""

from __future__ import annotations

import json
import random
from pathlib import Path

import hiredis
import pytest

from bench.reliability import fuzz
from bench.reliability.__main__ import main
from bench.reliability.soak import Book, Checker
from bench.servers import BenchError, redis_binary


@pytest.fixture(scope="module")
def redis_at_hand() -> None:
    try:
        redis_binary()
    except BenchError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("redis_at_hand")
@pytest.mark.parametrize("part", ["crowd", "storm", "soak", "fuzz"])
def test_a_short_run_of(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--part", part, "--to", str(tmp_path)]) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "reliability.json").read_text())
    figures = {each["what"]: each["value"] for each in report["parts"][part]["figures"]}
    assert figures["internal errors in the log"] == 0
    must_not = [each for each in report["parts"][part]["figures"] if each["asked"] == "0"]
    assert len(must_not) >= 3
    if part == "soak":
        assert figures["replies checked"] > 1000
        assert figures["errors while Redis was away"] > 0
    assert f"| {must_not[0]['what']}" in (tmp_path / "reliability.md").read_text()


class TestTheChecker:
    """Its judgements, each of which must be able to say no."""

    @pytest.fixture
    def book(self) -> Book:
        book = Book(names=[["soak:0:0:0"], ["soak:1:0:0"]])
        book.tried["soak:1:0:0"] = 9
        return book

    @pytest.fixture
    def checker(self, book: Book) -> Checker:
        return Checker(book, 0, 0, 1)

    @pytest.mark.parametrize(
        "replies",
        [
            [b"soak:1:0:1=3;x"],  # another key's
            [b"soak:1:0:0=10;x"],  # never written
            [b"soak:1:0:0=5;x", b"soak:1:0:0=4;x"],  # older than what was seen
            [b"soak:1:0:0=5;x", None],  # gone, though nobody was killed
            [b"other"],
            [7],
            [b"OK"],
            [hiredis.ReplyError("WRONGTYPE Operation against a key")],
        ],
    )
    def test_wrong_replies(self, book: Book, checker: Checker, replies: list[object]) -> None:
        for reply in replies[:-1]:
            checker._judge_get("soak:1:0:0", reply)
        assert book.wrong == 0
        checker._judge_get("soak:1:0:0", replies[-1])
        assert book.wrong == 1

    def test_one_reads_ones_own_writes(self, book: Book, checker: Checker) -> None:
        book.tried["soak:0:0:0"] = 2
        checker._judge_set(0, "soak:0:0:0", 2, b"OK")
        checker._judge_get("soak:0:0:0", b"soak:0:0:0=1;")
        assert book.wrong == 1

    def test_after_a_kill_it_may_be_gone(self, book: Book, checker: Checker) -> None:
        checker._judge_get("soak:1:0:0", b"soak:1:0:0=5;x")
        book.kills += 1
        checker._judge_get("soak:1:0:0", None)
        assert book.wrong == 0

    def test_an_unknown_outcome_gives_the_key_up(self, book: Book, checker: Checker) -> None:
        checker._judge_set(0, "soak:0:0:0", 1, hiredis.ReplyError("ERR pannier: upstream is away"))
        assert (book.names[0], book.wrong) == (["soak:0:0:1"], 0)


class TestTheFuzzer:
    def test_is_the_same_for_the_same_seed(self) -> None:
        assert [fuzz.mutant(random.Random(n)) for n in range(99)] == [fuzz.mutant(random.Random(n)) for n in range(99)]

    def test_reaches_errors_and_requests(self) -> None:
        chance = random.Random(1)
        found = [each for _ in range(2000) for each in fuzz.parse_all(fuzz.mutant(chance))]
        errors = {each for each in found if isinstance(each, str)}
        assert len(errors) >= 4
        assert sum(isinstance(each, list) for each in found) > 2000
