"""The log: one line an event on standard error, for people or for programs.

`configure` is called once, from the settings. Other modules know only `logging` and `proxy.events`.

- As text, a line has the time, the level and the message. As JSON it is one object: `time`, `level`,
  `logger`, `event`, `message` and the event's fields.
- A message that comes again and again from the same place is let through a few times in a minute; the others
  are counted, and one line says at the end of that minute how many there were. Debugging messages all go
  through, and so do `ANSWERS`.
- Of an error nobody expected, the log has the kind and the lines of the program, but no text: that could hold
  what a client sent. What asyncio would print of callbacks and their arguments is left out likewise. Other
  libraries are heard from warnings on.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from proxy.events import fields
from proxy.resp.errors import PannierError

OURS = "pannier"
"""What the names of all loggers of Pannier's begin with."""
FEW = 5
"""Messages of one place that are let through in a minute."""
WINDOW = 60.0
"""That minute, in seconds."""
ANSWERS = frozenset(
    (
        "rules_broken", "rules_unchanged", "rules_reloaded", "settings_late", "log_level_changed",
        "tenants_reloaded",
    )
)
"""Events that are never held back: they tell a person who has changed a file what has come of it."""
_LOOK = 1.0
"""Seconds between two looks whether a minute is over."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNTIL_DATA = re.compile(r"[^(<\[{'\"\n]*")
"""What a message of the event loop says before it shows an object."""

log = logging.getLogger("pannier")


# --- formats


class Text(logging.Formatter):
    """Lines for people. Whatever a message holds, it takes one line; only tracebacks take more.

    `worker`: which one of several processes writes; 0: there is one only.
    """

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = ""

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._mark = f"[{worker}] " if worker else ""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its end."""
        message = self._mark + _CONTROL.sub(_escaped, record.getMessage()) + _repeated(record)
        lines = [f"{self.formatTime(record)} {record.levelname:<7} {message}"]
        if found := _exception(record):
            lines.append("  " + (f"{found['type']}: {found['text']}" if "text" in found else found["type"]))
            lines += [f"    at {frame}" for frame in found["frames"]]
        return "\n".join(lines)


class Json(logging.Formatter):
    """One JSON object a line, in ASCII, whatever the encoding of the stream is. `worker`: as for `Text`."""

    def __init__(self, worker: int = 0) -> None:
        super().__init__()
        self._mark = {"worker": worker} if worker else {}

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its end."""
        line: dict[str, object] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._mark,
            "event": getattr(record, "event", "message"),
            "message": record.getMessage() + _repeated(record),
            **getattr(record, "fields", {}),
        }
        if repeated := getattr(record, "repeated", 0):
            line["repeated"] = repeated
        if found := _exception(record):
            line["exception"] = found
        return json.dumps(line, default=str)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _repeated(record: logging.LogRecord) -> str:
    repeated = getattr(record, "repeated", 0)
    return f" ... {repeated} more in the last minute" if repeated else ""


def _exception(record: logging.LogRecord) -> dict[str, Any]:
    """What may be shown of a record's exception: nothing if there is none."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)
    found: dict[str, Any] = {
        "type": type(error).__name__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, PannierError | OSError):  # written by us, or by the system
        found["text"] = str(error)
    return found


# --- repeats


class Repeats(logging.Filter):
    """Lets the first few records of each place through in a minute, and counts the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int, str], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written now."""
        if record.levelno <= logging.DEBUG or hasattr(record, "repeated"):
            return True
        event = getattr(record, "event", "")
        if event in ANSWERS:
            return True
        where = record.pathname, record.lineno, event
        place = self._places.setdefault(where, _Place(self._clock()))
        place.seen += 1
        if place.seen <= FEW:
            return True
        place.last = record
        return False

    def due(self, at_once: bool = False) -> Iterator[logging.LogRecord]:
        """The summaries of the minutes that are over, or of all; those places begin anew."""
        now = self._clock()
        for where, place in list(self._places.items()):
            if at_once or now - place.since >= WINDOW:
                del self._places[where]
                if place.last is not None:
                    yield _summary(place.last, place.seen - FEW)


class _Place:
    """What came from one place since some moment."""

    __slots__ = ("last", "seen", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.seen = 0
        self.last: logging.LogRecord | None = None
        """The last record that was held back."""


def _summary(record: logging.LogRecord, count: int) -> logging.LogRecord:
    summary = copy.copy(record)
    summary.created = time.time()
    summary.repeated = count
    return summary


# --- the output


class Output(logging.StreamHandler[TextIO]):
    """Where all records go. A stream that cannot be written to disturbs nobody."""

    def __init__(
        self, stream: TextIO, formatter: logging.Formatter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._repeats = Repeats(clock)
        self.addFilter(_worth_hearing)
        self.addFilter(self._repeats)

    def summarise(self, at_once: bool = False) -> None:
        """Say what was held back in the minutes that are over; `at_once`: in those under way as well."""
        for record in self._repeats.due(at_once):
            self.handle(record)

    async def run(self) -> None:
        """Do so for ever; what is left is said at the end."""
        try:
            while True:
                await asyncio.sleep(_LOOK)
                self.summarise()
        finally:
            self.summarise(at_once=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass over what cannot be written: logging's own complaint would show the message's arguments."""


def _worth_hearing(record: logging.LogRecord) -> bool:
    ours = record.name == OURS or record.name.startswith(OURS + ".")
    return ours or record.levelno >= logging.WARNING


def is_json(log_format: str, stream: TextIO | None = None) -> bool:
    """Whether `log_format` comes to JSON: auto does where standard error is no terminal."""
    return log_format == "json" or (log_format == "auto" and not (stream or sys.stderr).isatty())


def configure(
    log_format: str, log_level: str, stream: TextIO | None = None, worker: int = 0
) -> Output:
    """Have everything that is logged written to a stream, by default standard error; called at the start.

    `worker`: which of several processes this is; 0: there is one only.
    """
    stream = stream or sys.stderr
    output = Output(stream, Json(worker) if is_json(log_format, stream) else Text(worker))
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, Output)]:
        root.removeHandler(handler)
    root.addHandler(output)
    set_level(log_level)
    return output


def set_level(log_level: str) -> None:
    """Write messages from this level on."""
    logging.getLogger().setLevel(log_level.upper())


# --- what nobody expected


def mind_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Have errors that reach the event loop logged without the data that asyncio would show."""
    loop.set_exception_handler(_loop_failed)


def _loop_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    match = _UNTIL_DATA.match(str(context.get("message", "")))
    what = match[0].strip() if match else ""
    log.error(
        "internal error: %s", what or "in the event loop",
        exc_info=error if isinstance(error, BaseException) else None,
        extra=fields("internal_error"),
    )  # fmt: skip
