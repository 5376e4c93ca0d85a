"""What should be set otherwise, and the figures that say so: SIDECAR ADVISE, `pannier advise`, `/stats`.

All of it comes from the reads that were watched lately (`tier.reuse`): the hit rate by size of memory, what
expired too early, which classes of keys take room without being read again. `advise` returns what it found as
data; an advice is given only where enough reads were watched to say so.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.client import scope
from proxy.client.scope import Scope, Seen
from proxy.kinds import show_duration, show_size
from proxy.resp import encode
from proxy.resp.tracking import Mode
from proxy.tier.classes import UNNAMED
from proxy.tier.curve import Curve, Watched, curve
from proxy.tier.reuse import Outcome, Sample

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.tier import Account, Budget

ENOUGH = 200
"""Reads that must have been watched before anything is said: what is said then is off by 0.03 or so."""
_OF_A_CLASS = 30
"""The same for a class."""
_NEXT_TO_NOTHING = 0.005
"""Parts of all reads that make no difference."""
_WORTH_IT = 0.02
"""Parts of all reads from which a setting is worth changing."""
_MUCH_LESS = 0.05
_LARGE = 0.1
"""The part of memory from which a class counts as large."""
_SELDOM = 0.05
"""The part of what is kept below which it counts as never read again."""
_LONGEST = 86400.0
_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """A size of memory in bytes, and the hit rate that goes with it."""

    size: int
    rate: float


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that should be set otherwise."""

    what: str
    why: str
    """The figures that say so."""
    setting: str
    value: str
    """What to set it to; empty where that is for a person to find out."""


@dataclass(slots=True)
class Report:
    """What was found about a namespace, or about all that share a memory."""

    namespace: str
    """Empty: of keys without a namespace, or the only one that is to be known. `*`: of all together."""
    max_memory: int
    used: int
    measured: float
    """The hit rate there was while reads were watched, a quarter of an hour or less."""
    samples: int
    """Reads that were watched."""
    shares: bool
    """Whether others use that memory, too: then the points are of what it would have for itself."""
    observed: bool
    """Whether the points are of what is only observed (`mode = observe`)."""
    points: list[Point] = field(default_factory=list)
    """The smallest size first; at the last one, more memory makes no difference."""
    advice: list[Advice] = field(default_factory=list)

    @property
    def says(self) -> str:
        """The points in a sentence."""
        if not self.points:
            return f"not enough was read yet to say anything: {self.samples} of {ENOUGH} samples"
        told = [f"{_size(point.size)} {self._verb(point)} {point.rate:.0%}" for point in self.points]
        measured = "" if self.observed else f"; measured: {self.measured:.0%}"
        return ", ".join(told) + f", beyond {_size(self.points[-1].size)} nothing more{measured}"

    def _verb(self, point: Point) -> str:
        if self.observed:
            return "would have given"
        return "gives" if point.size == self.max_memory and not self.shares else "would give"


@dataclass(slots=True)
class _Class:
    """What became of the reads of a class whose replies were kept. Weights are parts of all reads."""

    samples: int = 0
    kept: float = 0.0
    again: float = 0.0
    changed: float = 0.0
    volume: float = 0.0
    """Bytes, by how long they were kept."""


Found = list[tuple[Sample, Watched]]


async def advise(view: Scope) -> list[Report]:
    """A report for each namespace that may be seen, and one for all that share a memory; with pauses."""
    found = {}
    for seen in view.seen:
        seen.shelf.digest()
        found[seen] = seen.shelf.reuse.watched()
        await asyncio.sleep(0)
    reports = []
    for name, group in _groups(view):
        samples = [each for seen in group for each in found[seen]]
        reports.append(_report(view, name, group, samples))
        await asyncio.sleep(0)
    return reports


def recommendation(reports: Sequence[Report]) -> str:
    """One sentence for who wants no more."""
    for report in reports:
        for advice in report.advice:
            where = f"{report.namespace}: " if report.namespace not in ("", "*") else ""
            return f"{where}{advice.what}: {advice.why}"
    return reports[0].says if reports else "nothing is read from memory"


def _groups(view: Scope) -> Iterator[tuple[str, list[Seen]]]:
    """What belongs together: all of a budget that several namespaces share, then each namespace."""
    by_budget: dict[Budget, list[Seen]] = defaultdict(list)
    by_name: dict[str, list[Seen]] = defaultdict(list)
    for seen in view.seen:
        by_budget[seen.shelf.budget].append(seen)
        by_name["" if view.bare else seen.namespace].append(seen)
    for group in by_budget.values():
        if len({seen.namespace for seen in group}) > 1:
            yield "*", group
    yield from by_name.items()


def _report(view: Scope, name: str, group: list[Seen], found: Found) -> Report:
    accounts = {seen.shelf.account for seen in group}
    budgets = {seen.shelf.budget for seen in group}
    report = Report(
        namespace=name,
        max_memory=sum([budget.max_memory for budget in budgets]),
        used=sum([account.used for account in accounts]),
        measured=_measured(group),
        samples=len(found),
        shares=name != "*" and any(_users(budget) > 1 for budget in budgets),
        observed=any(seen.shelf.ghost is not None for seen in group),
    )
    if report.observed:
        report.points = _observed(group)
    elif len(found) >= ENOUGH:
        known = curve([watched for _, watched in found])
        report.points = _points(known, report.max_memory)
        report.advice = [
            *(() if report.shares else _about_memory(known, report, accounts, view.workers)),
            *_about_lifetimes(group, accounts, found),
            *_about_classes(view, group, found),
        ]
    return report


def _users(budget: Budget) -> int:
    """How many key spaces use a memory."""
    return sum([account.hits + account.misses > 0 for account in budget.accounts])


def _measured(group: list[Seen]) -> float:
    """The hit rate while reads were watched: that of each account is known to each of its shelves."""
    of = {seen.shelf.account: seen.shelf.reuse.rate() for seen in group}
    reads = sum([hits + misses for hits, misses in of.values()])
    return sum([hits for hits, _ in of.values()]) / reads if reads else 0.0


# --- memory


def _observed(group: list[Seen]) -> list[Point]:
    """What sizes would have saved of what is only observed."""
    ghosts = [seen.shelf.ghost for seen in group if seen.shelf.ghost is not None]
    reads = sum([ghost.reads for ghost in ghosts])
    lines = zip(*[ghost.report() for ghost in ghosts], strict=True)
    return (
        [Point(each[0][0], sum([saved for _, _, saved in each]) / reads) for each in lines] if reads else []
    )


def _points(known: Curve, max_memory: int) -> list[Point]:
    """The curve at some sizes around the one there is, up to where more makes no difference."""
    enough = _round_up(known.enough(known.most - _NEXT_TO_NOTHING))
    around = [max_memory * 2**power // 8 for power in range(8)]
    sizes = sorted({size for size in around if size < enough or size == max_memory} | {enough})
    return [Point(size, known.at(size)) for size in sizes if size <= max(enough, max_memory)]


def _round_up(size: float) -> int:
    """A size that people would choose: a power of two of megabytes, or one and a half of it."""
    chosen = _MB
    while chosen < size:
        chosen = chosen * 3 // 2 if chosen & (chosen - 1) == 0 else chosen // 3 * 4
    return chosen


def _about_memory(
    known: Curve, report: Report, accounts: Iterable[Account], workers: int
) -> Iterator[Advice]:
    """Sizes are of one worker's memory; what is to be set is that of all."""
    each = f" in each of {workers} workers" if workers > 1 else ""
    max_memory = report.max_memory
    now, most = known.at(max_memory), known.most
    evicted = sum([account.evicted for account in accounts])
    if most < _LARGE:
        why = f"of all reads, {most:.0%} are of what was read before and has not changed since"
        yield Advice("memory of any size helps little", why, "mode", "off")
        return
    sizes = [size for power in range(1, 12) if (size := _round_up(max_memory * 2 ** (power / 2)))]
    gain = most - now
    if gain >= _WORTH_IT and evicted:
        wanted = next((size for size in sizes if known.at(size) >= most - max(gain / 10, 0.01)), sizes[-1])
        why = f"{_size(max_memory)} gives {now:.0%}, {_size(wanted)} would give {known.at(wanted):.0%}{each}"
        if report.measured < now - _MUCH_LESS:
            why += f" (measured: {report.measured:.0%}; where it is too small, less is let in)"
        yield Advice(
            f"more memory would answer {known.at(wanted) - now:.0%} more of the reads",
            f"{why}; {evicted} entries were evicted",
            "max_memory",
            show_size(wanted * workers),
        )
    enough = _round_up(known.enough(most - _NEXT_TO_NOTHING))
    if 2 * enough <= max_memory:
        why = f"{_size(enough)} would give {known.at(enough):.0%}, {_size(max_memory)} gives {now:.0%}{each}"
        yield Advice("less memory would do", why, "max_memory", show_size(enough * workers))


# --- lifetimes


def _about_lifetimes(group: list[Seen], accounts: Iterable[Account], found: Found) -> Iterator[Advice]:
    """Whether entries end before anybody but us says so."""
    if any(seen.shelf.mode is Mode.BUS for seen in group):
        return  # there, l1_ttl_untracked is what bounds how old they may be
    counted = {name: sum([getattr(account, name) for account in accounts]) for name in _LIVES}
    reads = sum([watched.weight for _, watched in found])
    missed = sum([watched.weight for sample, watched in found if sample.missed]) / reads
    ours = missed * counted["capped"] / max(counted["fills"], 1)
    l1_ttl = group[0].shelf.tier.policy.limits.l1_ttl
    if ours < _WORTH_IT or l1_ttl >= _LONGEST:
        return
    changed = counted["invalidated"] + counted["overwritten"]
    why = (
        f"{ours:.0%} of the reads miss only because l1_ttl ({show_duration(l1_ttl)}) was over; "
        f"{counted['expired']} entries expired and {changed} changed, of which Redis tells at once"
    )
    value = show_duration(min(max(60.0, round(l1_ttl) * 6.0), _LONGEST))
    yield Advice("entries could be kept for longer", why, "l1_ttl", value)


_LIVES = ("fills", "capped", "expired", "invalidated", "overwritten")


# --- classes


def _about_classes(view: Scope, group: list[Seen], found: Found) -> Iterator[Advice]:
    """Which classes take room for nothing."""
    classes = _by_class(found)
    volume = sum([each.volume for each in classes.values()])
    labelled = {ruling.rule.label for ruling in group[0].shelf.tier.policy.rulings if ruling.rule.label}
    for label, each in sorted(classes.items()):
        if each.samples < _OF_A_CLASS:
            continue
        share, again, changed = each.volume / volume, each.again / each.kept, each.changed / each.kept
        name = _class_name(label, view.privacy.plain or label in labelled)
        if changed > again and again < _HALF:
            what = f"{name} change before they are read again"
        elif share >= _LARGE and again < _SELDOM:
            what = f"{name} take room and are not read again"
        else:
            continue
        why = (
            f"of {each.samples} replies that were kept, {again:.0%} were read again and {changed:.0%} "
            f"changed first; they take {share:.0%} of what memory holds"
        )
        yield Advice(what, why, "rules", _exclusion(label, view.privacy.plain, labelled))


_HALF = 0.5


def _by_class(found: Found) -> dict[str, _Class]:
    classes: dict[str, _Class] = defaultdict(_Class)
    for sample, watched in found:
        if watched.size:
            each = classes[sample.label]
            each.samples += 1
            each.kept += watched.weight
            each.again += watched.weight * watched.again
            each.changed += watched.weight * (sample.outcome is Outcome.CHANGED)
            each.volume += watched.weight * watched.size * watched.age
    return classes


def _class_name(label: str, shown: bool) -> str:
    if label == UNNAMED:
        return "keys without a colon in their names"
    return f"keys of class {label}" if shown else "keys of a class whose name is not shown"


def _exclusion(label: str, plain: bool, labelled: set[str]) -> str:
    """The rule to write."""
    if label in labelled:
        return f"cache = false, in the rule of class {label}"
    if label == UNNAMED or not plain:
        return "cache = false"
    return f'match = "{label}:*", cache = false'


# --- the command


async def answer(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR ADVISE."""
    reports = await advise(scope.of_session(session))
    crew = session.clients.crew
    whose: dict[str, Any] = {} if crew is None else {"worker": crew.number}
    return encode.array([encode.value(whose | fields(report), session.protocol) for report in reports])


def fields(report: Report) -> dict[str, Any]:
    """A report by name, as texts, whole numbers, lists and maps."""
    return {
        "namespace": report.namespace,
        "max_memory": report.max_memory,
        "used": report.used,
        "hit_rate": f"{report.measured:.4f}",
        "samples": report.samples,
        "says": report.says,
        "curve": [{"size": point.size, "hit_rate": f"{point.rate:.4f}"} for point in report.points],
        "advice": [
            {"what": each.what, "why": each.why, "setting": each.setting, "value": each.value}
            for each in report.advice
        ],
    }


def _size(size: int) -> str:
    """A size in the largest unit that tells it nearly."""
    for unit, name in ((1 << 30, "gb"), (_MB, "mb"), (1 << 10, "kb")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + name
    return str(size)
