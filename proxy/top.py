"""`pannier top`: what a running Pannier does, live in the terminal.

It asks over the Redis protocol, like any client: SIDECAR STATS, HEALTH and HOTKEYS, every `--interval`. In a
namespace it shows that. `screen` makes a page of two answers, of any width and height, and knows no
terminal; `Terminal` shows pages and is put back as it was whatever happens. `--once`, or where the output is
no terminal, one page is printed and that is all.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO

from redis.exceptions import RedisError

Ask = Callable[..., Any]
"""Sends a command to a Pannier and returns its reply."""

_COUNTED = {
    "hits": "tier_hits",
    "misses": "tier_misses",
    "evicted": "tier_evictions",
    "changed": "tier_invalidations tier_overwritten",
}
"""What is shown as rates, and the fields of SIDECAR STATS that count it."""
MOST_KEYS, FEW_KEYS = 100, 20
"""Hot keys that are asked for, and that are printed with --once."""
_SOON = 0.5
"""Seconds until the first rates."""
_GLANCE = 0.1
"""Seconds after which a new size of the terminal is seen."""
_NEARLY_FULL = 0.95
_STOPS = (b"", b"q", b"Q", b"\x03", b"\x04")
"""What is read when somebody wants to stop; nothing: the terminal is gone."""
_NEXT_UNIT, _DIGITS = 999.5, 99.5
_BAR = 24
_LEAST_BAR = 50
"""Columns from which there is a bar."""
_LEAST_SIZES = 52
"""Columns from which the sizes of keys are shown."""
GREEN, YELLOW, RED, BOLD, DIM, PLAIN = "32", "33", "31", "1", "2", "0"


@dataclass(frozen=True, slots=True)
class Look:
    """What a Pannier said of itself at some moment (monotonic seconds)."""

    at: float
    stats: dict[str, Any]
    health: dict[str, Any]
    keys: list[dict[str, Any]] = field(default_factory=list)


def look(ask: Ask, keys: int, clock: Callable[[], float] = time.monotonic) -> Look:
    """Ask once."""
    stats = texts(ask("SIDECAR", "STATS"))
    health = texts(ask("SIDECAR", "HEALTH"))
    return Look(clock(), stats, health, [texts(each) for each in ask("SIDECAR", "HOTKEYS", keys)])


def texts(reply: Any) -> dict[str, Any]:
    """A map as RESP3 has it, or the flat list that it is in RESP2, its texts decoded."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) if isinstance(value, bytes | str) else value for name, value in pairs}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# --- the page


def screen(
    now: Look, before: Look | None, where: str, width: int, height: int, trouble: str = ""
) -> list[tuple[str, str]]:
    """The lines of a page that fits, each with its colour.

    `before`: an earlier answer, for the rates. `trouble`: why the last one is no newer.
    """
    lines = [
        (_sides(f"pannier top  {where}", time.strftime("%H:%M:%S"), width), BOLD),
        *([(trouble, RED)] if trouble else _health(now.health)),
        *_rates(now, before),
        *_memory(now.stats, width),
    ]
    if len(lines) + 3 <= height:
        lines += [("", PLAIN), *_keys(now.keys, width, height - len(lines) - 1)]
    return [(printable(text)[:width], colour) for text, colour in lines[:height]]


def printable(text: str) -> str:
    """A text that does nothing to a terminal: names of keys may hold anything."""
    return "".join([each if each.isprintable() else "·" for each in text])


def _sides(left: str, right: str, width: int) -> str:
    return f"{left:<{max(width - len(right) - 1, 0)}} {right}" if len(left) + len(right) < width else left


def _health(health: dict[str, Any]) -> Iterator[tuple[str, str]]:
    upstream, serving = health.get("upstream", "?"), health.get("serving", "?")
    good = upstream == "up" and serving == "fresh"
    text = f"redis    {upstream}, breaker {health.get('breaker', '?')}, memory serves {serving}"
    yield text, GREEN if good else RED if upstream != "up" else YELLOW
    if health.get("why"):
        yield f"         {health['why']}", YELLOW


def _rates(now: Look, before: Look | None) -> Iterator[tuple[str, str]]:
    rates = per_second(now, before)
    looked_up = rates["hits"] + rates["misses"]
    share = f"{rates['hits'] / looked_up:.1%}" if looked_up else "-"
    span = f"in the last {now.at - before.at:.1f} s" if before is not None else "not known yet"
    yield f"hit rate {share} {span}; {_share(now.stats)} since the start", BOLD
    yield "rates    " + "   ".join([f"{name} {number(rate)}/s" for name, rate in rates.items()]), PLAIN


def per_second(now: Look, before: Look | None) -> dict[str, float]:
    """What happened each second between two answers; nothing if there is one only."""
    counts = _counts(now.stats)
    earlier = _counts(before.stats) if before is not None else counts
    seconds = max(now.at - before.at, 0.001) if before is not None else 1.0
    return {name: max(0, count - earlier.get(name, 0)) / seconds for name, count in counts.items()}


def _counts(stats: dict[str, Any]) -> dict[str, int]:
    """What has been counted since the start, under the names that are shown."""
    counts = {
        name: sum([_int(stats.get(counter)) for counter in counters.split()])
        for name, counters in _COUNTED.items()
    }
    if "sets" in stats:
        counts["writes"] = _int(stats["sets"]) + _int(stats.get("deletes"))
    commands = _int(stats.get("total_commands_processed"))
    counts["other"] = max(0, commands - counts["hits"] - counts["misses"] - counts.get("writes", 0))
    return counts


def _share(stats: dict[str, Any]) -> str:
    hits, misses = _int(stats.get("tier_hits")), _int(stats.get("tier_misses"))
    return f"{hits / (hits + misses):.1%}" if hits + misses else "-"


def _memory(stats: dict[str, Any], width: int) -> Iterator[tuple[str, str]]:
    used, most = _int(stats.get("tier_bytes")), _int(stats.get("tier_max_memory"))
    load = used / most if most else 0.0
    filled = round(_BAR * min(load, 1.0))
    bar = f"[{'#' * filled:<{_BAR}}] " if width >= _LEAST_BAR else ""
    yield f"memory   {bar}{size(used)} of {size(most)} ({load:.0%})", YELLOW if load > _NEARLY_FULL else PLAIN
    entries, fills = number(_int(stats.get("tier_entries"))), number(_int(stats.get("tier_fills")))
    clients = f"   clients {stats['connected_clients']}" if "connected_clients" in stats else ""
    yield f"entries  {entries}   fills {fills}   tracking {stats.get('tracking', '?')}{clients}", PLAIN


def _keys(keys: list[dict[str, Any]], width: int, height: int) -> Iterator[tuple[str, str]]:
    """The table of hot keys, in so many lines; the name takes what the figures leave."""
    sizes = width >= _LEAST_SIZES
    room = max(width - (35 if sizes else 17), 8)
    yield f"{'HOT KEYS':<{room}} {'READS/S':>9} {'HITS':>5}" + f" {'SIZE':>8} {'PER S':>8}" * sizes, DIM
    if not keys:
        yield "nothing was read often enough yet", DIM
    for key in keys[: height - 1]:
        reads = _int(key.get("reads"))
        hits = f"{_int(key.get('hits')) / reads:.0%}" if reads else "-"
        rate, volume = number(float(key.get("reads_per_second", 0))), size(_int(key.get("bytes_per_second")))
        taken = size(_int(key.get("size")))
        yield f"{cut(_name(key), room)} {rate:>9} {hits:>5}" + f" {taken:>8} {volume:>8}" * sizes, PLAIN


def _name(key: dict[str, Any]) -> str:
    """What a key is called, where names are not shown by its class."""
    label = f" of class {key['class']}" if key.get("class") else ""
    return key.get("key") or f"(a key{label})"


def cut(name: str, room: int) -> str:
    """A name in so many columns: of a longer one its beginning and its end."""
    name = printable(name)
    wide = [each for each in name if unicodedata.east_asian_width(each) in "WF"]
    if len(name) + len(wide) > room:
        name = "".join([each if unicodedata.east_asian_width(each) not in "WF" else "?" for each in name])
        if len(name) > room:
            tail = room // 3
            name = f"{name[: room - tail - 1]}…{name[len(name) - tail :]}"
        wide = []
    return name + " " * (room - len(name) - len(wide))


def number(value: float) -> str:
    """A number for people: 12.3k."""
    for unit in ("", "k", "M"):
        if value < _NEXT_UNIT:
            return f"{value:.0f}{unit}" if not unit or value >= _DIGITS else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.0f}G"


def size(value: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB"):
        if value < _NEXT_UNIT:
            return f"{value:.0f}{unit}" if unit == "B" or value >= _DIGITS else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}GB"


def _int(value: Any) -> int:
    return value if isinstance(value, int) else int(value) if str(value).isdigit() else 0


# --- the terminal


class Terminal:
    """The terminal while pages are shown: no echo, no cursor, a screen of its own. Put back at the end."""

    def __init__(self, keys: TextIO, out: TextIO, coloured: bool) -> None:
        self._keys = keys
        self._out = out
        self._coloured = coloured
        self._resized = False

    @contextmanager
    def taken(self) -> Iterator[Terminal]:
        """Take it, for as long as the context lasts."""
        number = self._keys.fileno()
        before = termios.tcgetattr(number)
        old = signal.signal(signal.SIGWINCH, self._on_resize)
        ended = signal.signal(signal.SIGTERM, _interrupt)
        try:
            tty.setcbreak(number)
            self._write("\x1b[?1049h\x1b[?25l")
            yield self
        finally:
            self._write("\x1b[0m\x1b[?25h\x1b[?1049l")
            termios.tcsetattr(number, termios.TCSADRAIN, before)
            signal.signal(signal.SIGWINCH, old)
            signal.signal(signal.SIGTERM, ended)

    def show(self, page: Callable[[int, int], list[tuple[str, str]]]) -> None:
        """Show a page, made for the terminal's size."""
        self._resized = False
        # Not shutil's: it prefers COLUMNS and LINES, which do not follow the terminal.
        width, height = os.get_terminal_size(self._out.fileno())
        width, height = width or 80, height or 24
        lines = [self._coloured_line(text, colour) + "\x1b[K" for text, colour in page(width, height)]
        self._write("\x1b[H" + "\n".join(lines) + "\x1b[J")

    def wait(self, seconds: float, redraw: Callable[[], object]) -> bool:
        """Wait until it is time for the next page; whether somebody wants to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready = select.select([self._keys], [], [], min(left, _GLANCE))[0]
            if ready and os.read(self._keys.fileno(), 64) in _STOPS:
                return True
            if self._resized:
                redraw()
        return False

    def _coloured_line(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured and colour != PLAIN else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        self._resized = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def watch(ask: Ask, where: str, interval: float, once: bool) -> None:
    """Show what a Pannier does until somebody stops it; or print it once."""
    first = look(ask, MOST_KEYS)
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        time.sleep(min(interval, 1.0))
        page = screen(look(ask, FEW_KEYS), first, where, 100, 1000)
        print("\n".join([text.rstrip() for text, _ in page]), flush=True)
        return
    coloured = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    with Terminal(sys.stdin, sys.stdout, coloured).taken() as terminal:
        _follow(terminal, ask, where, interval, first)


def _follow(terminal: Terminal, ask: Ask, where: str, interval: float, first: Look) -> None:
    now, before, trouble = first, None, ""

    def draw() -> None:
        terminal.show(lambda width, height: screen(now, before, where, width, height, trouble))

    while True:
        draw()
        if terminal.wait(interval if before is not None else min(interval, _SOON), draw):
            return
        try:
            before, now, trouble = None if trouble else now, look(ask, MOST_KEYS), ""
        except (RedisError, OSError) as error:
            trouble = f"no answer since {int(time.monotonic() - now.at)} s: {error}"
