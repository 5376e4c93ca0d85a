"""What should be set otherwise, and the figures that say so: SIDECAR ADVISE, `pannier advise`, `/stats`.

All of it comes from the reads that were watched lately (`tier.reuse`): the hit rate by size of memory, what
expired too early, which classes of keys take room without being read again. `advise` returns what it found as
data; an advice is given only where enough reads were watched to say so.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from proxy.client import scope
from proxy.client.scope import Scope, Seen
from proxy.kinds import show_duration, show_size
from proxy.resp import encode
from proxy.resp.tracking import Mode
from proxy.tier.classes import UNNAMED
from proxy.tier.curve import Curve, Steps, Watched
from proxy.tier.curve import steps as curve_in_steps
from proxy.tier.reuse import Outcome, Sample

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.tier import Account, Budget

T = TypeVar("T")

ENOUGH = 1000
"""Reads, of equal weight, that must have been watched before anything is said: then rates are off by 0.011 on
average, and by no more than 0.03 in 95 % of all cases, as far as that goes."""
_VAGUE = 0.05
"""How far a curve may be off in 95 % of all cases, in the mean of its points, to be told: 0.02 on average."""
_TWO = 2.0
"""Times that, by which it may be off from what was measured before it counts as refuted."""
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
    plus_minus: float = 0.0
    """How far the rate may be off: no further in 95 % of all cases."""


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
    """The hit rate there was in the window of the reads that were watched (see `tier.reuse`)."""
    samples: int
    """Reads that were watched."""
    effective: int
    """So many of equal weight would tell as much."""
    shares: bool
    """Whether others use that memory, too: then the points are of what it would have for itself."""
    observed: bool
    """Whether the points are of what is only observed (`mode = observe`)."""
    points: list[Point] = field(default_factory=list)
    """The smallest size first; at the last one, more memory makes no difference."""
    advice: list[Advice] = field(default_factory=list)
    doubt: str = ""
    """Why there are no points although enough was watched."""
    beats: bool = False
    """Whether more was measured than a memory that evicts what was read least recently would answer: by what
    it does not let in where it is too small (see `tier.door`). No larger size is then said to give less."""

    @property
    def says(self) -> str:
        """The points in a sentence."""
        if self.doubt:
            return self.doubt
        if not self.points:
            return f"not enough was read yet to say anything: {self.effective} of {ENOUGH} samples"
        told = [f"{_size(point.size)} {self._verb(point)} {point.rate:.0%}" for point in self.points]
        whole = ", ".join(told) + f", beyond {_size(self.points[-1].size)} nothing more"
        if self.observed:
            return whole
        most = max(point.plus_minus for point in self.points)
        sure = f"each within {max(most, 0.01):.0%}, 95 % sure"
        return f"{whole} ({sure}); measured: {self.measured:.0%}"

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
_MANY = 8
"""Shelves of which all samples are taken to tell of a memory that they share; of more, fewer of each."""


async def advise(view: Scope) -> list[Report]:
    """A report for each namespace that may be seen, and one for all that share a memory; with pauses."""
    shared: dict[Budget, list[Seen]] = {}
    for seen in view.seen:
        shared.setdefault(seen.shelf.budget, []).append(seen)
    together = {
        budget: group for budget, group in shared.items() if len({seen.namespace for seen in group}) > 1
    }
    found: dict[Budget, Found] = {budget: [] for budget in together}
    reports = []
    for name, group in _by_name(view).items():
        samples: Found = []
        for seen in group:
            seen.shelf.digest()
            its = await _with_pauses(seen.shelf.reuse.steps())
            samples += its
            if (budget := seen.shelf.budget) in together:
                found[budget] += _some(its, -(-len(together[budget]) // _MANY))
        reports.append(await _report(view, name, group, samples))
    of_all = [await _report(view, "*", group, found[budget]) for budget, group in together.items()]
    return of_all + reports


def _some(found: Found, step: int) -> Found:
    """One in so many, for all."""
    if step == 1:
        return found
    return [(sample, watched._replace(weight=watched.weight * step)) for sample, watched in found[::step]]


async def _with_pauses(work: Steps[T]) -> T:
    """Do work that is cut into steps, and let others have their turn in between."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return cast(T, done.value)
        await asyncio.sleep(0)


def _by_name(view: Scope) -> dict[str, list[Seen]]:
    """What belongs to each namespace."""
    groups: dict[str, list[Seen]] = defaultdict(list)
    for seen in view.seen:
        groups["" if view.bare else seen.namespace].append(seen)
    return groups


async def _report(view: Scope, name: str, group: list[Seen], found: Found) -> Report:
    accounts = {seen.shelf.account for seen in group}
    budgets = {seen.shelf.budget for seen in group}
    known = await _with_pauses(curve_in_steps([watched for _, watched in found]))
    await asyncio.sleep(0)
    report = Report(
        namespace=name,
        max_memory=sum([budget.max_memory for budget in budgets]),
        used=sum([account.used for account in accounts]),
        measured=_measured(group),
        samples=len(found),
        effective=round(known.effective),
        shares=name != "*" and any(_users(budget) > 1 for budget in budgets),
        observed=any(seen.shelf.ghost is not None for seen in group),
    )
    if report.observed:
        report.points = _observed(group)
    elif known.effective >= ENOUGH:
        _tell_sizes(report, known, accounts, view.workers)
        classes = await _with_pauses(_by_class(found))
        report.advice += [*_about_lifetimes(group, accounts, found), *_about_classes(view, group, classes)]
    return report


def _tell_sizes(report: Report, known: Curve, accounts: Iterable[Account], workers: int) -> None:
    """What other sizes would answer, unless that is too vague, or what was measured refutes it."""
    points = _points(known, report.max_memory)
    vague = sum([point.plus_minus for point in points]) / len(points)
    if vague > _VAGUE:
        report.doubt = f"not enough is known yet to say anything: hit rates might be off by {vague:.0%}"
        return
    now = known.estimate(report.max_memory)
    if not report.shares and report.measured > now.rate + max(_TWO * now.plus_minus, _VAGUE):
        if not any(account.evicted for account in accounts):
            report.doubt = (
                f"not enough is known to say anything: by the reads that were watched the hit rate would be "
                f"{now.rate:.0%}, measured: {report.measured:.0%}"
            )
            return
        report.beats = True
        least = report.measured
        points = [
            point if point.size < report.max_memory else replace(point, rate=max(point.rate, least))
            for point in points
        ]
    report.points = points
    if not report.shares:
        report.advice += _about_memory(known, report, accounts, workers)


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
    enough = _enough(known)
    around = [max_memory * 2**power // 8 for power in range(8)]
    sizes = sorted({size for size in around if size < enough or size == max_memory} | {enough})
    return [Point(size, *known.estimate(size)) for size in sizes if size <= max(enough, max_memory)]


def _enough(known: Curve) -> int:
    """A size from which more makes no difference, as far as can be known."""
    size = _round_up(known.enough(known.most - _NEXT_TO_NOTHING))
    while known.estimate(size).rate < known.most - _NEXT_TO_NOTHING:
        size = _round_up(size + 1)
    return size


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
    now, most = known.estimate(max_memory).rate, known.most
    if report.beats:
        now, most = report.measured, max(most, report.measured)
    evicted = sum([account.evicted for account in accounts])
    if most < _LARGE:
        why = f"of all reads, {most:.0%} are of what was read before and has not changed since"
        yield Advice("memory of any size helps little", why, "mode", "off")
        return
    sizes = [size for power in range(1, 12) if (size := _round_up(max_memory * 2 ** (power / 2)))]
    gain = most - now
    if gain >= _WORTH_IT and evicted:
        rates = {size: known.estimate(size).rate for size in sizes}
        wanted = next((size for size in sizes if rates[size] >= most - max(gain / 10, 0.01)), sizes[-1])
        why = f"{_size(max_memory)} gives {now:.0%}, {_size(wanted)} would give {rates[wanted]:.0%}{each}"
        if report.measured < now - _MUCH_LESS:
            why += f" (measured: {report.measured:.0%}; where it is too small, less is let in)"
        yield Advice(
            f"more memory would answer {rates[wanted] - now:.0%} more of the reads",
            f"{why}; {evicted} entries were evicted", "max_memory", show_size(wanted * workers),
        )  # fmt: skip
    enough = _enough(known)
    if 2 * enough <= max_memory:
        rate = known.estimate(enough).rate
        why = f"{_size(enough)} would give {rate:.0%}, {_size(max_memory)} gives {now:.0%}{each}"
        yield Advice("less memory would do", why, "max_memory", show_size(enough * workers))


# --- lifetimes


def _about_lifetimes(group: list[Seen], accounts: Iterable[Account], found: Found) -> Iterator[Advice]:
    """Whether entries end before anybody but us says so."""
    if any(seen.shelf.mode is Mode.BUS for seen in group):
        return  # there, l1_ttl_untracked is what bounds how old they may be
    counted = {name: sum([getattr(account, name) for account in accounts]) for name in _LIVES}
    reads = sum([watched.weight for _, watched in found])  # some, or there would not be enough
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


def _about_classes(view: Scope, group: list[Seen], classes: dict[str, _Class]) -> Iterator[Advice]:
    """Which classes take room for nothing."""
    volume = sum([each.volume for each in classes.values()])
    labelled = {ruling.rule.label for ruling in group[0].shelf.tier.policy.rulings if ruling.rule.label}
    for label, each in sorted(classes.items()):
        if each.samples < _OF_A_CLASS or not each.kept or not volume:
            continue  # or nobody has read anything since they were: nothing is known of how long they stay
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
_STEP = 1024
"""Samples gone through at a time."""


def _by_class(found: Found) -> Steps[dict[str, _Class]]:
    classes: dict[str, _Class] = defaultdict(_Class)
    for n, (sample, watched) in enumerate(found):
        if n % _STEP == 0:
            yield
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
        "effective_samples": report.effective,
        "says": report.says,
        "curve": [
            {
                "size": point.size,
                "hit_rate": f"{point.rate:.4f}",
                "plus_minus": f"{point.plus_minus:.4f}",
            }
            for point in report.points
        ],
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
