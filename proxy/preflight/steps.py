"""What has been tried, and what came of it."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass

import hiredis

from proxy.events import without_arguments


class Verdict(enum.Enum):
    """What came of a step."""

    PASS = "pass"
    WARN = "warn"
    """Pannier serves, but not all of it works."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What would mend it; empty if it passed."""

    def as_text(self) -> str:
        """A line for people, and one more for the remedy."""
        line = f"{self.verdict.value}  {self.name:<{_WIDTH}}  {self.found}"
        return f"{line}\n      {'':<{_WIDTH}}  remedy: {self.remedy}" if self.remedy else line


class Stuck(Exception):
    """A step failed without which nothing more can be tried."""


class Steps:
    """All of them; `told` hears of each as it comes."""

    def __init__(self, told: Callable[[Step], object] = id) -> None:
        self.all: list[Step] = []
        self._told = told

    def passes(self, name: str, found: str) -> None:
        """Note what is as it should be."""
        self._add(Step(name, Verdict.PASS, found))

    def warns(self, name: str, found: str, remedy: str) -> None:
        """Note what is missing."""
        self._add(Step(name, Verdict.WARN, found, remedy))

    def fails(self, name: str, found: str, remedy: str) -> None:
        """Note what keeps Pannier from doing its work."""
        self._add(Step(name, Verdict.FAIL, found, remedy))

    def stuck(self, name: str, found: str, remedy: str) -> Stuck:
        """The same, as an exception to be raised."""
        self.fails(name, found, remedy)
        return Stuck(name)

    def _add(self, step: Step) -> None:
        self.all.append(step)
        self._told(step)

    @property
    def failed(self) -> list[Step]:
        """Those that failed."""
        return [step for step in self.all if step.verdict is Verdict.FAIL]

    def summary(self) -> str:
        """How many of each, in a line."""
        counted = [
            f"{sum(step.verdict is verdict for step in self.all)} {verdict.value}" for verdict in Verdict
        ]
        return f"{'failed' if self.failed else 'passed'}: {', '.join(counted)}"

    def as_json(self, attempts: int) -> str:
        """For programs."""
        steps = [
            {
                "step": each.name,
                "result": each.verdict.value,
                "found": each.found,
                "remedy": each.remedy or None,
            }
            for each in self.all
        ]
        report = {"passed": not self.failed, "attempts": attempts, "steps": steps}
        return json.dumps(report, indent=2, ensure_ascii=False)


_WIDTH = 12
"""Letters that names of steps have as a rule."""


def refusal(reply: object) -> str:
    """The text of an error reply; empty if it is none."""
    return without_arguments(str(reply)) if isinstance(reply, hiredis.ReplyError) else ""
