"""The log: its formats, what is held back, and what it never shows."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy import logs
from proxy.events import fields, without_arguments
from proxy.logs import FEW, WINDOW, Json, Output, Text
from proxy.resp.errors import StartupError

ROOT = Path(__file__).resolve().parent.parent
NAMED = (
    r'fields\(\s*"(\w+)"',
    r'\b_?say\([^"]*logging\.\w+, "(\w+)"',
    r'abort\(why, level, "(\w+)"',
    r'event: str = "(\w+)"',
    r'event = "(\w+)" if',
    r'event = "\w+" if refused else "(\w+)"',
)
"""How code names events."""
MOMENT = 1_700_000_000.1239


class Terminal(io.StringIO):
    """A stream somebody looks at."""

    def isatty(self) -> bool:
        return True


class Desk:
    """A logger that writes into a text, and a clock."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.now = 100.0
        self.stream = io.StringIO()
        self.output = Output(self.stream, formatter, lambda: self.now)
        self.log = logging.Logger("pannier.test", logging.DEBUG)
        self.log.addHandler(self.output)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def complain(self, *names: str) -> None:
        """The same message from the same place."""
        for name in names:
            self.log.warning("%s is gone", name, extra=fields("gone", name=name))


@pytest.fixture
def text() -> Desk:
    return Desk(Text())


@pytest.fixture
def programs() -> Desk:
    return Desk(Json())


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    logger = logging.getLogger()
    level = logger.level
    yield
    logger.setLevel(level)
    for handler in [each for each in logger.handlers if isinstance(each, Output)]:
        logger.removeHandler(handler)


def record(message: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("pannier.x", logging.WARNING, "x.py", 1, message, (), None)
    made.created = MOMENT
    made.__dict__.update(fields("sung", **more))
    return made


class TestJson:
    def test_is_one_object_with_time_level_event_message_and_fields(self) -> None:
        line = Json().format(record("two\nlines ü", address="1.2.3.4:5", database=3))
        assert "\n" not in line and line.isascii()
        assert json.loads(line) == {
            "time": "2023-11-14T22:13:20.123Z", "level": "warning", "logger": "pannier.x", "event": "sung",
            "message": "two\nlines ü", "address": "1.2.3.4:5", "database": 3,
        }  # fmt: skip

    def test_has_the_time_in_utc_to_the_millisecond(self) -> None:
        time = json.loads(Json().format(record("x")))["time"]
        assert datetime.fromisoformat(time) == datetime.fromtimestamp(1_700_000_000.123, UTC)

    def test_writes_what_json_does_not_know_as_text(self) -> None:
        assert json.loads(Json().format(record("x", path=Path("/a"), odd="\udc80")))["path"] == "/a"

    def test_of_others_has_no_event(self) -> None:
        made = logging.LogRecord("asyncio", logging.ERROR, "x.py", 1, "m", (), None)
        assert json.loads(Json().format(made))["event"] == "message"


class TestText:
    def test_has_time_level_and_message(self) -> None:
        line = Text().format(record("all is lost"))
        assert re.fullmatch(r"2023-11-1\d \d\d:\d\d:20 WARNING all is lost", line)

    def test_takes_one_line_and_does_nothing_to_a_terminal(self) -> None:
        assert Text().format(record("a\r\nb\x1b[2J\u2028c")).endswith(r"a\r\nb\x1b[2J\u2028c")


class TestFormat:
    @pytest.mark.parametrize(
        ("chosen", "stream", "wanted"),
        [
            ("auto", io.StringIO(), True),
            ("auto", Terminal(), False),
            ("json", Terminal(), True),
            ("text", io.StringIO(), False),
        ],
    )
    def test_is_json_where_nobody_looks_on(self, chosen: str, stream: io.StringIO, wanted: bool) -> None:
        assert logs.is_json(chosen, stream) is wanted
        assert isinstance(logs.configure(chosen, "info", stream).formatter, Json if wanted else Text)

    def test_is_that_of_the_last_configuration(self) -> None:
        one, other = io.StringIO(), io.StringIO()
        logs.configure("text", "info", one)
        logs.configure("text", "warning", other)
        logging.getLogger("pannier.x").info("low")
        logging.getLogger("pannier.x").warning("high")
        assert not one.getvalue() and other.getvalue().endswith("WARNING high\n") and "low" not in other.getvalue()

    def test_level_may_be_changed(self) -> None:
        stream = io.StringIO()
        logs.configure("text", "error", stream)
        logs.set_level("debug")
        logging.getLogger("pannier.x").debug("now")
        assert "DEBUG   now" in stream.getvalue()

    def test_of_other_libraries_only_warnings_are_heard(self) -> None:
        stream = io.StringIO()
        logs.configure("text", "debug", stream)
        for name in ("redis", "pannierish"):
            logging.getLogger(name).info("chatter")
        logging.getLogger("redis").warning("trouble")
        assert "chatter" not in stream.getvalue() and "trouble" in stream.getvalue()


class TestRepeats:
    def test_the_first_few_are_written_and_the_others_summed_up(self, programs: Desk) -> None:
        programs.complain(*map(str, range(20)))
        assert len(programs.lines) == FEW
        programs.now += WINDOW - 1
        programs.output.summarise()
        assert len(programs.lines) == FEW
        programs.now += 1
        programs.output.summarise()
        last = json.loads(programs.lines[-1])
        assert len(programs.lines) == FEW + 1
        assert last["message"] == f"19 is gone ... {20 - FEW} more in the last minute"
        assert (last["event"], last["name"], last["repeated"]) == ("gone", "19", 20 - FEW)

    def test_are_counted_anew_from_then_on(self, text: Desk) -> None:
        for _ in range(2):
            text.complain(*"abcdefg")
            text.now += WINDOW
            text.output.summarise()
        assert len(text.lines) == 2 * (FEW + 1)
        assert text.lines[FEW].endswith("WARNING g is gone ... 2 more in the last minute")

    def test_a_few_are_not_summed_up(self, text: Desk) -> None:
        text.complain(*"abcde")
        text.now += WINDOW
        text.output.summarise()
        assert len(text.lines) == FEW == 5

    def test_do_not_hide_other_events(self, text: Desk) -> None:
        for event in ("one", "two"):
            for _ in range(9):
                text.log.info("x", extra=fields(event))
        assert len(text.lines) == 2 * FEW

    def test_of_debugging_are_all_written(self, text: Desk) -> None:
        for _ in range(9):
            text.log.debug("x")
        assert len(text.lines) == 9

    async def test_are_summed_up_at_the_end(self, text: Desk) -> None:
        text.complain(*"abcdefg")
        task = asyncio.get_running_loop().create_task(text.output.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert text.lines[-1].endswith("2 more in the last minute")


class TestWhatNobodyExpected:
    def fail(self, desk: Desk, error: Exception) -> str:
        try:
            raise error
        except Exception:
            desk.log.exception("internal error", extra=fields("internal_error"))
        return desk.stream.getvalue()

    def test_is_shown_by_kind_and_place_without_its_text(self, programs: Desk) -> None:
        found = json.loads(self.fail(programs, KeyError(b"s3cr3t")))["exception"]
        assert found["type"] == "KeyError" and "text" not in found
        assert re.fullmatch(r".*test_logs\.py:\d+ fail", found["frames"][-1])

    def test_takes_several_lines_as_text(self, text: Desk) -> None:
        said = self.fail(text, ValueError("s3cr3t"))
        assert re.search(r"ERROR   internal error\n  ValueError\n    at .*test_logs\.py:\d+ fail\n", said)
        assert "s3cr3t" not in said

    @pytest.mark.parametrize("error", [StartupError("no server"), OSError(2, "no server")])
    def test_is_told_if_it_is_ours_or_the_systems(self, text: Desk, error: Exception) -> None:
        assert "no server" in self.fail(text, error)

    @pytest.mark.parametrize(
        ("message", "said"),
        [
            ("Exception in callback Session.run(b's3cr3t')", "internal error: Exception in callback Session.run"),
            ("Task exception was never retrieved", "internal error: Task exception was never retrieved"),
            ("<Handle s3cr3t>", "internal error: in the event loop"),
        ],
    )
    async def test_in_the_event_loop_is_told_without_what_it_was_about(self, message: str, said: str) -> None:
        stream = io.StringIO()
        logs.configure("text", "info", stream)
        loop = asyncio.get_running_loop()
        logs.mind_loop(loop)
        loop.call_exception_handler({"message": message, "exception": KeyError("s3cr3t"), "handle": "s3cr3t"})
        loop.set_exception_handler(None)
        assert said in stream.getvalue() and "KeyError" in stream.getvalue()
        assert "s3cr3t" not in stream.getvalue()

    def test_a_message_that_cannot_be_made_is_left_out(self, text: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        text.log.info("%d", "s3cr3t")
        assert "s3cr3t" not in text.stream.getvalue() + capsys.readouterr().err


class TestQuotedArguments:
    @pytest.mark.parametrize(
        ("error", "shown"),
        [
            ("ERR unknown command 'AUTH', with args beginning with: 'joe' 's3cr3t' ", "ERR unknown command 'AUTH'"),
            ("NOPERM no", "NOPERM no"),
        ],
    )
    def test_are_left_out(self, error: str, shown: str) -> None:
        assert without_arguments(error) == shown


class TestDocumentation:
    def test_names_every_event_and_no_other(self) -> None:
        used = {
            name
            for path in (ROOT / "proxy").rglob("*.py")
            if path.name != "events.py"
            for pattern in NAMED
            for name in re.findall(pattern, path.read_text())
        }
        told = set(re.findall(r"^\| `(\w+)` \| \w+ \| ", (ROOT / "docs/logging.md").read_text().partition("## Events")[2], re.M))
        assert used == told

    def test_no_field_has_a_name_that_lines_have_already(self) -> None:
        text = (ROOT / "docs/logging.md").read_text().partition("## Events")[2]
        rows = re.findall(r"^\| `\w+` \| \w+ \| (.*?) \|", text, re.M)
        names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert rows and not names & {"time", "level", "logger", "event", "message", "repeated", "exception"}

    def test_every_message_has_an_event(self) -> None:
        calls = [
            call
            for path in (ROOT / "proxy").rglob("*.py")
            for call in re.findall(r"^ *log\.(?:debug|info|warning|error|exception|log)\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", path.read_text(), re.M)
        ]
        assert len(calls) > 30
        assert not [call for call in calls if "extra=" not in call]
