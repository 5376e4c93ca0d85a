"""Cache rules: which keys are kept, for how long, and what else holds for them.

Rules are looked at when a read is about to be fetched, never at a hit. They go by the names that clients use,
in order; the first that matches holds, and the defaults where none does. A read of several keys is bound by
the strictest word of each of their rules.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from proxy.resp.globs import FirstMatch

NOTHING = b"_\r\n"
"""RESP3's null: there is no such value."""
NULLS = frozenset([NOTHING, b"$-1\r\n", b"*-1\r\n"])
"""The same in either protocol."""
_MOST_MIXED = 1024
"""Sets of rules that are remembered together: clients choose which keys one read has."""


class Serve(enum.IntEnum):
    """How reads are served; of two, the greater one holds."""

    CACHE = 0
    OBSERVE = 1
    """From Redis; what memory would have done is worked out."""
    OFF = 2
    """From Redis."""


@dataclass(frozen=True, slots=True)
class CacheRule:
    """One rule as its author wrote it. Times in seconds; None: as without a rule."""

    patterns: tuple[bytes, ...]
    """Globs of key names; one of them must match."""
    serve: Serve = Serve.CACHE
    l1_ttl: float | None = None
    jitter: float = 0.1
    """The part of a lifetime that chance takes away at most."""
    max_value_size: int | None = None
    """Bytes."""
    negative: bool = True
    """Whether it is kept that there is nothing."""
    expire: float | None = None
    """The time to live of what SET gives none."""
    stale_while_revalidate: float = 0.0
    stale_if_error: float | None = None
    refresh_ahead: float = 0.0
    max_fetches: int | None = None
    """Fetches under way at once after much has been dropped."""
    label: str = ""
    """Its `class`."""
    written: str = field(default="", compare=False)
    """Where its author wrote it."""

    @property
    def shown(self) -> str:
        """Its patterns, for people."""
        return " ".join([pattern.decode("utf-8", "backslashreplace") for pattern in self.patterns])


class Ruling:
    """What holds for a read, and what has been counted under it. Number 0: no rule matched."""

    __slots__ = (
        "fills", "jitter", "keeps", "l1_ttl", "max_value_size", "mismatches", "negative", "number",
        "refresh_ahead", "refused", "rule", "serve", "sources", "stale_if_error", "stale_while_revalidate",
        "verified",
    )  # fmt: skip

    def __init__(self, number: int, rule: CacheRule, limits: Defaults) -> None:
        self.number = number
        self.rule = rule
        self.sources: Sequence[Ruling] = (self,)
        """What it was put together from, for a read of several keys."""
        self.serve = max(rule.serve, limits.ceiling)
        self.l1_ttl = limits.l1_ttl if rule.l1_ttl is None else rule.l1_ttl
        self.jitter = rule.jitter
        self.max_value_size = limits.max_value_size if rule.max_value_size is None else rule.max_value_size
        self.negative = rule.negative
        self.stale_while_revalidate = rule.stale_while_revalidate
        self.stale_if_error = limits.stale if rule.stale_if_error is None else rule.stale_if_error
        self.refresh_ahead = rule.refresh_ahead
        self.keeps = rule.stale_while_revalidate > 0 or (rule.stale_if_error or 0.0) > 0
        """Whether entries may serve once their time is over."""
        # What is counted.
        self.fills = 0
        self.refused = 0
        """Replies that were not kept because the rule says so."""
        self.verified = 0
        self.mismatches = 0

    @property
    def tended(self) -> bool:
        """Whether its entries need to be known one by one."""
        return self.keeps or self.refresh_ahead > 0

    def refuses(self, reply: bytes, absent: bool) -> bool:
        """Whether a RESP3 reply is not to be kept; `absent`: its keys are not there."""
        if reply.startswith(b"-"):
            return True
        refused = len(reply) > self.max_value_size or (not self.negative and (absent or reply in NULLS))
        self.refused += refused
        return refused


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where rules are silent, and what none may exceed. Seconds and bytes."""

    l1_ttl: float
    max_value_size: int
    ceiling: Serve = Serve.CACHE
    stale: float = 0.0
    """How long what is in memory serves while Redis cannot be reached."""


class Policy:
    """All rules, in force until others take their place. Made anew when they are read again."""

    def __init__(self, rules: Iterable[CacheRule], limits: Defaults) -> None:
        self.limits = limits
        self.default = Ruling(0, CacheRule(()), limits)
        self.rulings = [Ruling(number, rule, limits) for number, rule in enumerate(rules, 1)]
        self.tends = any(ruling.tended for ruling in self.rulings)
        """Whether some entries need to be known one by one."""
        self.expires = any(ruling.rule.expire is not None for ruling in self.rulings)
        """Whether some SETs are given a time to live."""
        times = {ruling.stale_if_error for ruling in (self.default, *self.rulings)}
        self.stale = max(times)
        """Seconds for which some entries may serve while Redis cannot be reached."""
        self.stale_differs = len(times) > 1
        """Whether others may not, or for less."""
        self.observes = any(ruling.serve is Serve.OBSERVE for ruling in (self.default, *self.rulings))
        self._by_pattern = [ruling for ruling in self.rulings for _ in ruling.rule.patterns]
        """The ruling of each pattern."""
        self._first: FirstMatch | None = None
        if self.rulings:
            self._first = FirstMatch([pattern for r in self.rulings for pattern in r.rule.patterns])
        self._several: dict[frozenset[int], Ruling] = {}

    def demote(self, ruling: Ruling) -> None:
        """Only observe from now on what a ruling is about."""
        ruling.serve = max(ruling.serve, Serve.OBSERVE)
        self.observes = True
        self._several.clear()

    def ruling(self, key: bytes) -> Ruling:
        """What holds for one key, named as clients do."""
        found = self._first.find(key) if self._first is not None else None
        return self._by_pattern[found] if found is not None else self.default

    def judge(self, keys: Sequence[bytes]) -> Ruling:
        """What holds for a read of some keys."""
        if self._first is None:
            return self.default
        if len(keys) == 1:
            return self.ruling(keys[0])
        rulings = {ruling.number: ruling for ruling in map(self.ruling, keys)}
        if len(rulings) == 1:
            return rulings.popitem()[1]
        numbers = frozenset(rulings)
        found = self._several.get(numbers)
        if found is None:
            if len(self._several) >= _MOST_MIXED:
                self._several.clear()
            found = self._several[numbers] = self._strictest(list(rulings.values()))
        return found

    def _strictest(self, rulings: list[Ruling]) -> Ruling:
        rule = CacheRule(
            tuple(pattern for ruling in rulings for pattern in ruling.rule.patterns),
            serve=max(ruling.serve for ruling in rulings),
            l1_ttl=min(ruling.l1_ttl for ruling in rulings),
            jitter=max(ruling.jitter for ruling in rulings),
            max_value_size=min(ruling.max_value_size for ruling in rulings),
            negative=all(ruling.negative for ruling in rulings),
            stale_while_revalidate=min(ruling.stale_while_revalidate for ruling in rulings),
            stale_if_error=min(ruling.stale_if_error for ruling in rulings),
            refresh_ahead=min(ruling.refresh_ahead for ruling in rulings),
            max_fetches=min(filter(None, [ruling.rule.max_fetches for ruling in rulings]), default=None),
            label=max(rulings, key=lambda ruling: ruling.number).rule.label,
        )
        strictest = Ruling(min(ruling.number for ruling in rulings), rule, self.limits)
        strictest.sources = rulings
        return strictest

    def label(self, key: bytes) -> str:
        """The class of a key: its rule's, or the first part of its name."""
        return self.ruling(key).rule.label or key.partition(b":")[0].decode("utf-8", "backslashreplace")

    def named(self, key: bytes) -> str:
        """The same; empty if that is the whole of its name."""
        return self.label(key) if b":" in key or self.ruling(key).rule.label else ""
