"""What an operator had better do, in one sentence that says why.

The first of `_ADVICE` that has something to say is heard: what is broken comes before what could be better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.kinds import show_size

_ENOUGH = 1000
"""Reads below which nothing can be said."""
_GOOD = 80.0
"""Percent of hits above which all is well."""
_MUCH = 0.2
"""Part of the fills from which what becomes of them is worth a word."""
_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Situation:
    """What a recommendation goes by."""

    connected: bool
    """Whether Redis is."""
    why_not: str
    keeps: bool
    """Whether anything is kept in memory."""
    why_nothing: str
    mode: str
    hits: int
    misses: int
    fills: int
    evicted: int
    expired: int
    changed: int
    """Entries dropped because their keys changed."""
    bytes: int
    max_bytes: int

    @property
    def rate(self) -> float:
        """Hits, in percent of the reads looked up."""
        return 100 * self.hits / max(self.hits + self.misses, 1)


def recommend(found: Situation) -> str:
    """The advice."""
    return next(text for advice in _ADVICE if (text := advice(found)))


def _redis(found: Situation) -> str:
    if found.connected:
        return ""
    return f"Look after Redis: it cannot be reached ({found.why_not})."


def _nothing_kept(found: Situation) -> str:
    if found.keeps:
        return ""
    return f"Have Redis tell of changes, as without that nothing is kept in memory ({found.why_nothing})."


def _mode(found: Situation) -> str:
    if found.mode == "cache":
        return ""
    told = "INFO shows what memory would have saved" if found.mode == "observe" else "nothing is kept"
    return f"Set mode to cache once you want reads answered from memory: with mode {found.mode}, {told}."


def _early(found: Situation) -> str:
    reads = found.hits + found.misses
    if reads >= _ENOUGH:
        return ""
    return f"Wait: only {reads} reads have been looked up, too few to say anything."


def _good(found: Situation) -> str:
    if found.rate < _GOOD:
        return ""
    return f"Change nothing: {found.rate:.1f} % of the reads are answered from memory."


def _small(found: Situation) -> str:
    if found.bytes < _FULL * found.max_bytes or found.evicted < _MUCH * found.fills:
        return ""
    return (
        f"Raise max_memory ({show_size(found.max_bytes)}): it is full, {found.evicted} of {found.fills} "
        f"entries were dropped to make room, and {found.rate:.1f} % of the reads are answered from it."
    )


def _changing(found: Situation) -> str:
    if found.changed < found.fills / 2 or not found.fills:
        return ""
    return (
        f"Exclude keys that change often (a rule with cache = false): {found.changed} of {found.fills} "
        f"entries were dropped because their keys changed, after {found.hits / found.fills:.1f} hits each."
    )


def _short(found: Situation) -> str:
    if found.expired < found.fills / 2 or not found.fills:
        return ""
    return (
        f"Raise l1_ttl, or the keys' own time to live: {found.expired} of {found.fills} entries ended by "
        f"age, after {found.hits / found.fills:.1f} hits each."
    )


def _once(found: Situation) -> str:
    reads = found.hits + found.misses
    return (
        f"Nothing to change here: of {reads} reads {found.rate:.1f} % were answered from memory, and "
        f"{found.misses - found.fills} of {found.misses} misses were of keys not read again soon, which "
        "memory cannot help."
    )


_ADVICE: tuple[Callable[[Situation], str], ...] = (
    _redis,
    _nothing_kept,
    _mode,
    _early,
    _good,
    _small,
    _changing,
    _short,
    _once,
)
