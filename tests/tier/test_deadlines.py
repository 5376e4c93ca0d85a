"""Every part goes at its deadline; the notes of what is gone before are swept out a slice at a time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.tier import deadlines as module
from proxy.tier.deadlines import Deadlines
from proxy.tier.waste import Waste


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE", 2)
    monkeypatch.setattr(module, "_SPARE", 4)


def made(kept: set[bytes]) -> Deadlines:
    return Deadlines(kept.__contains__, Waste())


def part(n: int) -> bytes:
    return b"part %d" % n


class TestSweeping:
    def test_looks_at_so_many_notes_with_each_that_comes(self) -> None:
        looked = [0]

        def kept(_: bytes) -> bool:
            looked[-1] += 1
            return False

        deadlines = Deadlines(kept, Waste())
        for n in range(200):
            deadlines.add(10.0 + n % 3, part(n), 0)
            looked.append(0)
        assert max(looked) == 2 and deadlines.notes < 20

    def test_keeps_the_earliest_note_of_what_is_kept(self) -> None:
        deadlines = made({part(1), part(2)})
        for deadline, n in ((20.0, 1), (10.0, 1), (30.0, 2), (30.0, 2), (30.0, 3)):
            deadlines.add(deadline, part(n), 9)
        list(deadlines.sweep())
        assert deadlines.notes == 2
        assert (deadlines.over(10.0), deadlines.over(29.0), deadlines.over(30.0)) == ([part(1)], [], [part(2)])
        assert deadlines.notes == 0 and deadlines.first(99.0) == 99.0

    def test_leaves_alone_what_is_noted_meanwhile(self) -> None:
        """Seen with an earlier note that goes with its deadline, kept anew: the new note is the only one."""
        deadlines = made({part(n) for n in range(9)})
        deadlines.add(10.0, part(1), 9)
        for n in range(9):
            deadlines.add(20.0, part(n), 9)
        sweep = deadlines.sweep()
        next(sweep)
        assert deadlines.over(10.0) == [part(1)]
        deadlines.add(20.0, part(1), 9)
        list(sweep)
        assert part(1) in deadlines.over(20.0)

    def test_of_what_is_cleared_midway_changes_nothing_after(self) -> None:
        kept: set[bytes] = set()
        deadlines = made(kept)
        for n in range(20):
            deadlines.add(10.0, part(n), 20)
        deadlines.add(10.0, part(20), 0)
        assert deadlines._sweep is not None
        deadlines.clear()
        assert deadlines.notes == 0
        deadlines.add(10.0, part(1), 1)
        assert deadlines.over(10.0) == [part(1)]


class AllGoInTime(RuleBasedStateMachine):
    """Parts are kept, dropped, kept anew, while sweeps go on: none is kept beyond its deadline."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, module._SPARE = module._SPARE, 2
        self.slice, module._SLICE = module._SLICE, 1

    def teardown(self) -> None:
        module._SPARE, module._SLICE = self.spare, self.slice

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.ends: dict[bytes, float] = {}
        self.deadlines = Deadlines(self.ends.__contains__, Waste())

    @rule(n=st.integers(0, 4), lifetime=st.integers(1, 5))
    def keep(self, n: int, lifetime: int) -> None:
        self.ends[part(n)] = self.now + lifetime
        self.deadlines.add(self.now + lifetime, part(n), len(self.ends))

    @rule(n=st.integers(0, 4))
    def drop(self, n: int) -> None:
        self.ends.pop(part(n), None)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        for each in self.deadlines.over(self.now):
            self.ends.pop(each, None)

    @invariant()
    def nothing_is_kept_too_long(self) -> None:
        if not hasattr(self, "ends"):
            return
        assert all(end > self.now for end in self.ends.values())
        noted = self.deadlines._parts
        assert self.deadlines.notes == sum(map(len, noted.values()))
        for each, end in self.ends.items():
            assert any(each in parts for deadline, parts in noted.items() if deadline <= end), each


TestAllGoInTime = AllGoInTime.TestCase
TestAllGoInTime.settings = settings(max_examples=300, stateful_step_count=60, deadline=None, derandomize=True)
