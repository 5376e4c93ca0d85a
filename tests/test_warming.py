"""What is hot, and the files of warming, without a Redis."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from proxy.settings import Settings
from proxy.warmfiles import remembered, replace_file
from proxy.warming import _touch, hottest
from tests.tier.shelves import fill, make, part


class TestTheHottest:
    def test_are_those_read_most_then_those_kept_last(self) -> None:
        _, shelf, _ = make()
        for key in range(5):
            fill(shelf, "GET", key)
        shelf.tables[2].log([part("GET", 1), part("GET", 0)])
        shelf.tables[2].log([part("GET", 0)])
        assert hottest(shelf, 3) == [part("GET", 0), part("GET", 1), part("GET", 4)]
        assert len(hottest(shelf, 100)) == 5 and hottest(shelf, 0) == []

    def test_of_both_protocols_each_once(self) -> None:
        _, shelf, _ = make(protocols=(2, 3))
        for key in range(3):
            fill(shelf, "GET", key)
        shelf.tables[3].log([part("GET", 0)])
        assert hottest(shelf, 9) == [part("GET", 0), part("GET", 2), part("GET", 1)]

    def test_of_nothing(self) -> None:
        _, shelf, _ = make(protocols=())
        assert hottest(shelf, 3) == []

    async def test_stay_the_hottest_when_they_are_fetched_in_that_order(self) -> None:
        _, shelf, _ = make()
        order = [part("GET", key) for key in range(3000)]
        for key in range(3000):
            fill(shelf, "GET", key)
        await _touch(shelf, order)
        assert hottest(shelf, 10) == order[:10]


class TestTheStateFile:
    def test_is_replaced_as_a_whole_and_nobody_else_reads_it(self, directory: Path) -> None:
        path = directory / "state"
        path.write_text("old")
        path.chmod(0o644)
        replace_file(str(path), b"new")
        assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600

    def test_that_cannot_be_replaced_stays(self, directory: Path) -> None:
        path = directory / "state"
        path.mkdir()
        with pytest.raises(OSError):
            replace_file(str(path), b"new")
        assert os.listdir(directory) == ["state"], "nothing is left behind"

    def test_a_link_in_the_place_of_the_new_file_is_not_followed(self, directory: Path) -> None:
        victim = directory / "victim"
        victim.write_text("precious")
        (directory / f"state.new-{os.getpid()}").symlink_to(victim)
        replace_file(str(directory / "state"), b"new")
        assert victim.read_text() == "precious" and (directory / "state").read_bytes() == b"new"

    def test_what_is_no_file_is_not_waited_for(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        os.mkfifo(directory / "state")
        with caplog.at_level(logging.WARNING):
            assert remembered(Settings(warm_state=str(directory / "state"))) == []
        assert "cannot be read (no plain file)" in caplog.text
