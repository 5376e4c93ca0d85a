"""Kinds of value that options, tenants and rules have in common: text in, value out, and back.

Whatever is wrong with a value raises ValueError or SettingsError with one line that quotes it and says what
would be right.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from proxy.resp.errors import SettingsError
from proxy.upstream.address import LONGEST_NAMESPACE, check_namespace, shown

T = TypeVar("T")
Number = TypeVar("Number", int, float)

MASKED = "***"
"""What stands for a password wherever settings are shown."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How values of one kind are read and shown. `parse(show(value)) == value`, but for masked passwords."""

    parse: Callable[[str], T]
    """Raises ValueError whose text quotes the value (masked) and says what would be right."""
    show: Callable[[T], str]
    metavar: str
    accepts: str
    """For the documentation: what may be given, with its range."""
    unit: str = ""
    """Of the parsed number; empty if it is none."""
    many: bool = False
    """Whether several may be given: a repeated flag, commas, a TOML list."""


SIZE_UNITS = {
    **{"b": 1, "k": 1000, "m": 1000**2, "g": 1000**3},
    **{"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30},
}
"""redis.conf's: `mb` is 1024 x 1024 bytes, `m` a million. `mib` says the former without a doubt."""


def count(low: int, high: int, unit: str) -> Kind[int]:
    """Whole numbers in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            example = min(high, 10_000)
            raise ValueError(f"{shown(text)} is not a whole number; give a number such as {example}")
        return ranged(text, int(text), low, high, str)

    return Kind(parse, str, "N", f"a whole number from {low} to {high}", unit)


def size(low: int, high: int) -> Kind[int]:
    """Amounts of memory in bytes, written as in redis.conf."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(-?[0-9]{1,18})\s*([kmg]i?b|[bkmg]|)", text.lower())
        if not match:
            raise ValueError(f"{shown(text)} is not a size; give one such as 64mb, 1gb or plain bytes")
        return ranged(text, int(match[1]) * SIZE_UNITS[match[2] or "b"], low, high, show_size)

    return Kind(parse, show_size, "SIZE", f"a size from {show_size(low)} to {show_size(high)}", "bytes")


def ranged(text: str, value: Number, low: Number, high: Number, show: Callable[[Number], str]) -> Number:
    """`value` if it lies in the range; `text` is how it was written. Raises ValueError."""
    if not low <= value <= high:
        raise ValueError(f"{shown(text)} is out of range; give something from {show(low)} to {show(high)}")
    return value


def show_size(value: int) -> str:
    """The largest unit that divides the size, in redis.conf's spelling."""
    for unit in ("gb", "mb", "kb"):
        if value and value % SIZE_UNITS[unit] == 0:
            return f"{value // SIZE_UNITS[unit]}{unit}"
    return str(value)


SWITCH_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(low: float, high: float, zero: str = "") -> Kind[float]:
    """Durations in seconds. `zero` says what 0 means where it is allowed below `low`."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d|)", text.lower())
        if not match:
            raise ValueError(f"{shown(text)} is not a duration; give one such as 500ms, 5s, 2m or seconds")
        # Division keeps 50ms the same float as 0.05.
        number, unit = float(match[1]), match[2] or "s"
        value = number / 1000 if unit == "ms" else number * DURATION_UNITS[unit]
        return value if zero and not value else ranged(text, value, low, high, show_duration)

    accepts = f"a duration from {show_duration(low)} to {show_duration(high)}"
    return Kind(parse, show_duration, "TIME", accepts + (f", or 0: {zero}" if zero else ""), "s")


def share() -> Kind[float]:
    """Parts of a whole."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*(%?)", text)
        value = float(match[1]) / (100 if match[2] else 1) if match else 2.0
        if value > 1:
            raise ValueError(f"{shown(text)} is no part of a whole; give something from 0 to 1, or 10%")
        return value

    return Kind(parse, _plain, "PART", "a part from 0 to 1, or such as 10%")


def _plain(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


def choice(*words: str) -> Kind[str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            near = difflib.get_close_matches(text.lower(), words, 1)
            hint = f"did you mean {near[0]}?" if near else "give one of these"
            raise ValueError(f"{shown(text)} is not one of {', '.join(words)}; {hint}")
        return text.lower()

    return Kind(parse, str, "WORD", " or ".join([", ".join(words[:-1]), words[-1]]))


def switch() -> Kind[bool]:
    """Yes or no. TOML's own true and false come here as these words."""

    def parse(text: str) -> bool:
        if text.lower() not in SWITCH_WORDS:
            words = ", ".join(SWITCH_WORDS)
            raise ValueError(f"{shown(text)} is neither true nor false; give one of {words}")
        return SWITCH_WORDS[text.lower()]

    return Kind(parse, lambda value: str(value).lower(), "true|false", "true or false (yes, no, on, off)")


def show_duration(seconds: float) -> str:
    """The shortest text that reads back as the same duration."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % DURATION_UNITS[unit] == 0:
            return f"{seconds / DURATION_UNITS[unit]:.0f}{unit}"
    milliseconds = round(seconds * 1000)
    if seconds < 1 and milliseconds / 1000 == seconds:
        return f"{milliseconds}ms" if seconds else "0"
    return f"{seconds:.9f}".rstrip("0") + "s"


class Secret(str):
    """A password or token: no `repr`, of it or of what holds it, shows it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASKED if self else "")


def _parse_secret(text: str) -> Secret:
    if text == MASKED:
        # What `pannier config` prints can be read back; without this everybody would then know the secret.
        raise ValueError(f"{MASKED} stands for a secret not shown; give the secret itself")
    if not re.fullmatch("[!-~]*", text):
        raise ValueError("it has white space or a character beyond ASCII; give one without")
    if "://" in text:
        raise ValueError("it is a URL; give a text that nobody guesses")
    return Secret(text)


SECRET: Kind[Secret] = Kind(
    _parse_secret,
    lambda value: MASKED if value else "",
    "TEXT",
    "printable ASCII without white space; empty: none",
)


def _parse_namespace(text: str) -> str:
    try:
        return check_namespace(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} {error}") from None


NAMESPACE: Kind[str] = Kind(
    _parse_namespace,
    str,
    "PREFIX",
    f"at most {LONGEST_NAMESPACE} bytes of text without white space, no colon first or last",
)


def toml_text(written: str, value: object, *, many: bool = False) -> str:
    """A TOML value as the text a flag would have: a file may say 30, "30s" or a list of addresses.

    `written` is where it stands, `many` whether a list may. Raises SettingsError.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and many and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise misfit(written, value, "a text or a list of texts" if many else "one number or text")


def toml_key(name: str) -> str:
    """A key as TOML has it: bare if it may be, else quoted, so that it always takes one line."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def misfit(written: str, value: object, wanted: str) -> SettingsError:
    """The error about a TOML value of the wrong type; the value itself may be a password and is not shown."""
    name = type(value).__name__
    article = "an" if name[0] in "ai" else "a"
    return SettingsError(f"{written}: {article} {name} cannot stand here; give {wanted}")


Wrong = list[SettingsError] | None
"""What takes errors, so that all are found at once; None: the first is raised."""


@contextlib.contextmanager
def noting(wrong: Wrong) -> Iterator[None]:
    """Have what is wrong here noted, or raised if nobody takes notes."""
    try:
        yield
    except SettingsError as error:
        if wrong is None:
            raise
        wrong.append(error)


def did_you_mean(
    word: str,
    known: Iterable[str],
    prefix: str = "",
    otherwise: str = "see pannier --help for those there are",
) -> str:
    """The end of an error about an unknown word; the `prefix` that all share does not count as likeness."""
    words = [name.removeprefix(prefix) for name in known]
    near = difflib.get_close_matches(word.removeprefix(prefix), words, 1)
    return f"did you mean {prefix}{near[0]}?" if near else otherwise
