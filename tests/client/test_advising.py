"""What is advised, and on what figures: on samples made by hand, and on shelves that were read."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from proxy.client.advising import Advice, Point, Report, advise, fields
from proxy.client.scope import Scope, Seen
from proxy.privacy import KeyPrivacy, Privacy
from proxy.resp.namespace import Namespace
from proxy.resp.tracking import Mode
from proxy.tier.classes import UNNAMED
from proxy.tier.policy import CacheRule, Serve
from proxy.tier.reuse import Outcome, Sample
from proxy.tier.rules import Rules
from proxy.tier.shelf import Shelf
from tests.tier.shelves import TABLE, make, obey, part

MB = 1 << 20
READS = 10_000
"""In the window, of which half were hits."""
TIMES = 5
"""Samples for each that a test asks for: so many that something is said."""


class House:
    """A tier, and shelves of which some samples are made up."""

    def __init__(self, mode: Mode = Mode.OPTIN, max_memory: int = 8 * MB) -> None:
        self.tier, self.shelf, self.clock = make(mode, max_memory=max_memory)
        self.seen = [Seen(self.shelf, "", 0)]
        self.read(self.shelf)

    def read(self, shelf: Shelf) -> None:
        shelf.account.count_hits = lambda: READS // 2
        shelf.account.misses = shelf.reuse._missed = READS // 2
        shelf.account.logged = shelf.reuse._logged = READS // 2
        self.clock.now += 1

    def hits(self, n: int) -> None:
        """Have so many of the reads been hits."""
        account, reuse = self.shelf.account, self.shelf.reuse
        account.count_hits = lambda: n
        account.misses = reuse._missed = READS - n
        account.logged = reuse._logged = n
        self.clock.now += 1

    def namespace(self, name: str, max_memory: int | None = None) -> Shelf:
        shelf = self.tier.shelf(name, self.tier.account(Rules(TABLE, Namespace(name, False, TABLE, "e:")), max_memory))
        shelf.table(2)
        shelf.link_up(Mode.OPTIN)
        self.seen.append(Seen(shelf, name, 0))
        self.read(shelf)
        return shelf

    def watched(self, n: int, outcome: Outcome, *, age: int = 100, size: int = 1000, label: str = "user", missed: bool = False, shelf: Shelf | None = None) -> None:
        """Add `n` samples of hits and as many of misses, and each of them five times."""
        reuse = (shelf or self.shelf).reuse
        began = reuse._marks[0].reads
        for hit in (True, False):
            for _ in range(n * TIMES):
                reuse.samples.append(Sample(b"", label, began, 1, hit, True, size, began + age, outcome, missed=missed))

    def view(self, bare: bool = False, how: KeyPrivacy = KeyPrivacy.PLAIN) -> Scope:
        return Scope(tuple(self.seen), bare, Privacy(how))

    async def report(self, how: KeyPrivacy = KeyPrivacy.PLAIN) -> Report:
        [report] = await advise(self.view(how=how))
        return report

    async def advice(self, setting: str) -> list[Advice]:
        return [each for each in (await self.report()).advice if each.setting == setting]


@pytest.fixture
def house() -> House:
    return House()


def whats(advice: Iterable[Advice]) -> list[str]:
    return [each.what for each in advice]


class TestWithoutEnoughReads:
    async def test_nothing_is_said(self, house: House) -> None:
        house.watched(99, Outcome.AGAIN)
        report = await house.report()
        assert report.says == "not enough was read yet to say anything: 990 of 1000 samples"
        assert (report.points, report.advice) == ([], [])

    async def test_few_that_stand_for_most_are_few(self, house: House) -> None:
        house.watched(300, Outcome.AGAIN)
        for _ in range(100):
            house.shelf.reuse.samples.append(Sample(b"", "user", 0, 1000, True, True, 1000, 100, Outcome.AGAIN))
        report = await house.report()
        assert report.samples == 3100 and 200 <= report.effective < 1000
        assert report.says.startswith("not enough was read yet")

    async def test_nothing_was_read_since_they_began(self, house: House) -> None:
        """All that is watched began and ended within one look at the counts, which had seen no read by then."""
        house.watched(300, Outcome.AGAIN, age=0)
        report = await house.report()
        assert report.samples == 3000 and whats(report.advice) == ["less memory would do"]
        house.shelf.account.count_hits = lambda: 0
        house.shelf.account.misses = house.shelf.reuse._missed = 0
        house.clock.now += 1
        assert (await house.report()).says == "not enough was read yet to say anything: 0 of 1000 samples"

    async def test_sizes_that_differ_too_much_tell_of_none(self, house: House) -> None:
        """Here and there one is read that takes as much as all others."""
        house.watched(190, Outcome.AGAIN, age=2000)
        house.watched(10, Outcome.AGAIN, age=5000, size=300_000)
        report = await house.report()
        assert report.effective == 2000 and report.points == []
        assert report.says.startswith("not enough is known yet to say anything: hit rates might be off by ")


    async def test_one_that_is_idle_while_another_is_read_is_known_as_before(self, house: House) -> None:
        """What it has in memory is not read again for all that while: one that is watched takes nearly all the room."""
        idle = house.namespace("idle")
        house.watched(100, Outcome.AGAIN, age=20, size=250, shelf=idle)
        began = idle.reuse._marks[0].reads
        idle.reuse.samples.append(Sample(b"", "user", began, 1, True, True, 250, began + 3_000_000, Outcome.OPEN))
        reports = {report.namespace: report for report in await advise(house.view())}
        assert reports["idle"].doubt == "" and reports["idle"].points[-1].rate == pytest.approx(1.0, abs=0.01)


class TestMemory:
    async def test_more_would_answer_more(self, house: House) -> None:
        house.watched(500, Outcome.AGAIN, age=1000)
        house.watched(300, Outcome.AGAIN, age=20_000)
        house.watched(200, Outcome.CHANGED, age=20_000, label="org")
        house.shelf.account.evicted = 1234
        report = await house.report()
        # Half of the reads come again within 1000 others: they take 1 MB by then. The others take 10 MB more.
        assert report.says == "1mb would give 50%, 2mb would give 50%, 4mb would give 50%, 8mb gives 50%, 12mb would give 80%, beyond 12mb nothing more (each within 1%, 95 % sure); measured: 50%"
        [advice] = await house.advice("max_memory")
        assert advice == Advice("more memory would answer 30% more of the reads", "8mb gives 50%, 12mb would give 80%; 1234 entries were evicted", "max_memory", "12mb")

    async def test_not_while_nothing_is_evicted(self, house: House) -> None:
        house.watched(500, Outcome.AGAIN, age=1000)
        house.watched(500, Outcome.AGAIN, age=50_000)
        assert await house.advice("max_memory") == []

    async def test_less_would_do(self, house: House) -> None:
        house.watched(500, Outcome.AGAIN, age=1000)
        house.watched(200, Outcome.CHANGED, age=1000, label="org")
        [advice] = await house.advice("max_memory")
        assert (advice.what, advice.value) == ("less memory would do", "1mb")

    async def test_none_helps(self, house: House) -> None:
        house.watched(500, Outcome.OPEN, age=READS)
        house.watched(20, Outcome.AGAIN)
        house.hits(400)
        assert whats(await house.advice("mode")) == ["memory of any size helps little"]

    async def test_it_answers_less_than_it_might(self, house: House) -> None:
        house.watched(700, Outcome.AGAIN, age=1000)
        house.watched(300, Outcome.AGAIN, age=40_000)
        house.shelf.account.evicted = 1
        [advice] = await house.advice("max_memory")
        assert "(measured: 50%; where it is too small, less is let in)" in advice.why


class TestWhatWasMeasured:
    """More hits were counted than the estimate for the present size allows."""

    def read(self, house: House) -> None:
        house.watched(400, Outcome.AGAIN, age=1000)
        house.watched(600, Outcome.AGAIN, age=40_000)
        house.hits(7000)

    async def test_refutes_it_where_nothing_was_evicted(self, house: House) -> None:
        self.read(house)
        report = await house.report()
        assert (report.points, report.advice) == ([], [])
        assert report.says == "not enough is known to say anything: by the reads that were watched the hit rate would be 40%, measured: 70%"

    async def test_is_what_the_size_gives_where_less_is_let_in(self, house: House) -> None:
        self.read(house)
        house.shelf.account.evicted = 1
        report = await house.report()
        assert report.beats and "4mb would give 40%, 8mb gives 70%, 16mb would give 70%" in report.says
        [advice] = await house.advice("max_memory")
        assert advice.what == "more memory would answer 30% more of the reads"

    async def test_may_be_off_by_chance(self, house: House) -> None:
        self.read(house)
        house.hits(4300)
        report = await house.report()
        assert not report.beats and "8mb gives 40%" in report.says


class TestLifetimes:
    def expire(self, house: House) -> None:
        house.watched(400, Outcome.AGAIN)
        house.watched(100, Outcome.EXPIRED, missed=True)
        account = house.shelf.account
        account.fills, account.capped, account.expired, account.invalidated, account.overwritten = 1000, 900, 700, 40, 2

    async def test_entries_end_before_anybody_says_so(self, house: House) -> None:
        self.expire(house)
        [advice] = await house.advice("l1_ttl")
        assert advice.why == "18% of the reads miss only because l1_ttl (5m) was over; 700 entries expired and 42 changed, of which Redis tells at once"
        assert advice.value == "30m"

    async def test_not_where_the_keys_end_themselves(self, house: House) -> None:
        self.expire(house)
        house.shelf.account.capped = 0
        assert await house.advice("l1_ttl") == []

    async def test_not_where_nobody_tells_of_changes(self) -> None:
        house = House(Mode.BUS)
        self.expire(house)
        assert await house.advice("l1_ttl") == []


class TestClasses:
    async def test_that_change_before_they_are_read_again(self, house: House) -> None:
        house.watched(300, Outcome.AGAIN)
        house.watched(80, Outcome.CHANGED, label="counter")
        house.watched(20, Outcome.AGAIN, label="counter")
        [advice] = await house.advice("rules")
        assert advice == Advice(
            "keys of class counter change before they are read again",
            "of 1000 replies that were kept, 20% were read again and 80% changed first; they take 25% of what memory holds",
            "rules", 'match = "counter:*", cache = false',
        )  # fmt: skip

    async def test_that_are_big_and_not_read_again(self, house: House) -> None:
        house.watched(300, Outcome.AGAIN)
        house.watched(60, Outcome.OPEN, age=5000, size=100_000, label="export")
        assert whats(await house.advice("rules")) == ["keys of class export take room and are not read again"]

    async def test_not_on_a_few_reads(self, house: House) -> None:
        house.watched(300, Outcome.AGAIN)
        house.watched(2, Outcome.CHANGED, label="counter")
        assert await house.advice("rules") == []

    async def test_of_a_rule_and_of_no_name(self, house: House) -> None:
        obey(house.tier, CacheRule((b"c:*",), label="counter"))
        house.watched(100, Outcome.CHANGED, label="counter")
        house.watched(100, Outcome.CHANGED, label=UNNAMED)
        assert [each.value for each in await house.advice("rules")] == ["cache = false", "cache = false, in the rule of class counter"]

    async def test_names_are_shown_as_the_setting_says(self, house: House) -> None:
        obey(house.tier, CacheRule((b"c:*",), label="counter"))
        house.watched(100, Outcome.CHANGED, label="counter")
        house.watched(100, Outcome.CHANGED, label="alice@example.com")
        report = await house.report(KeyPrivacy.HASHED)
        assert "alice" not in repr(report) and "class counter" in repr(report)


class TestNamespaces:
    async def test_that_share_a_memory_are_told_together_and_each(self, house: House) -> None:
        one = house.namespace("one")
        own = house.namespace("own", max_memory=2 * MB)
        for shelf in (house.shelf, one, own):
            house.watched(300, Outcome.AGAIN, age=40_000, shelf=shelf)
            shelf.account.evicted = 1
        reports = {report.namespace: report for report in await advise(house.view())}
        assert list(reports) == ["*", "", "one", "own"]
        assert reports["*"].samples == 6000 and reports["*"].max_memory == 6 * MB
        assert "gives" in reports["*"].says and "gives" in reports["own"].says
        assert "gives" not in reports["one"].says, "it is not its own"
        assert [name for name, report in reports.items() if report.advice] == ["*", "own"]

    async def test_a_tenant_knows_of_no_name(self, house: House) -> None:
        house.seen = []
        house.watched(300, Outcome.AGAIN, shelf=house.namespace("one"))
        [report] = await advise(house.view(bare=True))
        assert report.namespace == "" and "one" not in repr(fields(report)).replace("none", "")


class TestObserving:
    async def test_the_sizes_are_those_that_were_imagined(self, house: House) -> None:
        obey(house.tier, ceiling=Serve.OBSERVE)
        for _ in range(10):
            house.shelf.admits(part("GET", "a"))
        report = await house.report()
        assert report.observed and report.points == [Point(n * MB, 0.0) for n in (16, 32, 64, 128)]
        assert report.says.startswith("16mb would have given 0%")
