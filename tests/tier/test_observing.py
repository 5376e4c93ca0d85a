"""What is only observed: a ghost in the place of the tables, told of all that entries would be told of."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.resp import encode
from proxy.resp.globs import compile_globs
from proxy.resp.tracking import Mode
from proxy.tier.ghost import Ghost
from proxy.tier.matching import drop_matching
from proxy.tier.policy import CacheRule, Defaults, Policy, Serve
from proxy.tier.rules import key_frame, marks
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Tier
from tests.tier.shelves import Clock, make, part

VALUE = b"$1\r\nv\r\n"
DEFAULTS = Defaults(300.0, 1 << 20)
OBSERVED = Policy((), Defaults(300.0, 1 << 20, Serve.OBSERVE))
BESIDE = (CacheRule((b"o:*",), Serve.OBSERVE), CacheRule((b"off:*",), Serve.OFF))
FOREVER = float("inf")


def observing(policy: Policy | None = None, mode: Mode = Mode.OPTIN, protocols: tuple[int, ...] = (2,), admit_after: int = 1) -> tuple[Tier, Shelf, Clock, Ghost]:
    tier, shelf, clock = make(mode, protocols, admit_after=admit_after)
    tier.obey(policy or Policy((), Defaults(300.0, 1 << 20, Serve.OBSERVE)))
    assert shelf.ghost is not None
    return tier, shelf, clock, shelf.ghost


def ask(shelf: Shelf, request: bytes, reply: bytes = VALUE, lifetime: float = FOREVER) -> bool:
    """A read as a session does it; whether it is answered from memory."""
    if shelf.tier.clock() >= shelf.until:
        shelf.vouch(shelf.tier.clock())
    shelf.reuse.release([request])
    if shelf.table(2).find(request) is not None:
        return True
    if request not in shelf.flights and shelf.admits(request):
        wanted = shelf.rules.read(request)
        flight = shelf.open(wanted) if wanted is not None else None
        if flight is not None:
            shelf.land(flight, reply, lifetime)
    return False


def hits(ghost: Ghost) -> int:
    """Of the largest memory."""
    return ghost.report()[-1][2]


def push(*keys: bytes) -> bytes:
    return b">2\r\n$10\r\ninvalidate\r\n" + encode.array(map(encode.bulk, keys))


def agree(shelf: Shelf) -> None:
    """What must hold after every step."""
    tracked = set(shelf.ghost) if shelf.ghost is not None else set()
    kept = {found for table in shelf.tables.values() for found in (*table.replies, *table.held)} | set(shelf.tending.aside)
    wanted: dict[int, set[bytes]] = {}
    for found in kept | tracked | set(shelf.flights):
        for mark in shelf.rules.part_marks(found):
            wanted.setdefault(mark, set()).add(found)
    assert {key: {value} if isinstance(value, bytes) else set(value) for key, value in shelf.index.items()} == wanted
    listed = kept | tracked | set(shelf.flights)
    assert set(shelf._several) == {found for found in listed if len(shelf.rules.part_marks(found)) > 1}
    assert shelf.deadlines.notes >= len(kept | tracked)
    assert shelf.entries == sum(len(table) for table in shelf.tables.values())


GET = part("GET", "o:k")


class TestWhatIsObserved:
    def test_is_never_kept(self) -> None:
        tier, shelf, _, ghost = observing()
        assert [ask(shelf, GET) for _ in range(5)] == [False] * 5
        assert (tier.entries, tier.used, list(ghost)) == (0, 0, [GET])
        assert (ghost.reads, hits(ghost)) == (5, 4)

    def test_is_fetched_once_to_be_known(self) -> None:
        _, shelf, _, _ = observing()
        ask(shelf, GET)
        assert not shelf.admits(GET)

    def test_is_let_in_as_memory_would(self) -> None:
        _, shelf, _, ghost = observing(admit_after=2)
        for _ in range(2):
            assert not list(ghost)
            ask(shelf, GET)
        assert list(ghost) == [GET]

    def test_is_counted_but_not_fetched_outside_the_sample(self) -> None:
        _, shelf, _, _ = observing()
        ghost = shelf.ghost = Ghost(most=4)
        for n in range(100):
            ask(shelf, part("GET", n))
        outside = next(name for name in (part("GET", n) for n in range(100)) if not ghost.wants(name))
        assert not shelf.admits(outside)
        assert ghost.reads == 101
        agree(shelf)

    @pytest.mark.parametrize("reply", [b"-ERR no\r\n", b"$2000000\r\n" + b"x" * 2_000_000 + b"\r\n"])
    def test_what_would_not_be_kept_is_not_tracked(self, reply: bytes) -> None:
        _, shelf, _, ghost = observing()
        ask(shelf, GET, reply)
        assert not list(ghost)
        agree(shelf)

    def test_several_reads_at_once(self) -> None:
        _, shelf, _, ghost = observing()
        names = [part("GET", n) for n in range(3)]
        assert shelf.admitted(names) == names
        ask(shelf, names[0])
        assert shelf.admitted(names) == names[1:]
        assert (ghost.reads, hits(ghost)) == (7, 1)


class TestTheEndOf:
    """Whatever ends an entry ends what is imagined of it."""

    def test_its_lifetime(self) -> None:
        _, shelf, clock, ghost = observing()
        ask(shelf, GET)
        clock.now += 300.0
        ask(shelf, GET)
        assert hits(ghost) == 0

    def test_its_keys_time_to_live(self) -> None:
        _, shelf, clock, ghost = observing()
        ask(shelf, GET, lifetime=10.0)
        clock.now += 8.9
        ask(shelf, GET)
        clock.now += 1.1
        ask(shelf, GET)
        assert hits(ghost) == 1
        agree(shelf)

    def test_what_has_expired_already_is_not_tracked(self) -> None:
        _, shelf, clock, ghost = observing()
        read = shelf.rules.read(GET)
        assert read is not None
        flight = shelf.open(read)
        clock.now += 1.0
        assert flight is not None
        shelf.land(flight, VALUE, 0.5)
        assert not list(ghost)
        agree(shelf)

    @pytest.mark.parametrize("keys", [[b"a"], [b"b"], [b"x", b"a"]])
    def test_an_invalidation_of_any_of_its_keys(self, keys: list[bytes]) -> None:
        _, shelf, _, ghost = observing()
        read = part("SINTER", "a", "b")
        ask(shelf, read, b"~1\r\n$1\r\nx\r\n")
        shelf.pushed(push(*keys))
        assert not list(ghost) and not shelf.index
        ask(shelf, read, b"~1\r\n$1\r\nx\r\n")
        assert hits(ghost) == 0

    def test_a_flush(self) -> None:
        _, shelf, _, ghost = observing()
        ask(shelf, GET)
        shelf.pushed(b">2\r\n$10\r\ninvalidate\r\n_\r\n")
        ask(shelf, GET)
        assert hits(ghost) == 0
        agree(shelf)

    def test_its_link(self) -> None:
        _, shelf, clock, ghost = observing()
        ask(shelf, GET)
        shelf.link_lost()
        shelf.link_up(Mode.OPTIN)
        shelf.heard = clock()
        ask(shelf, GET)
        assert hits(ghost) == 0

    def test_a_pattern_that_matches(self) -> None:
        tier, shelf, _, ghost = observing()
        for n in range(300):
            ask(shelf, part("GET", f"o:{n}"))
        ask(shelf, part("GET", "p:1"))
        assert sum(drop_matching(tier, compile_globs([b"o:*"]), b"o:")) == 0  # of entries
        assert list(ghost) == [part("GET", "p:1")]
        agree(shelf)

    def test_a_fetch_that_was_tainted(self) -> None:
        _, shelf, _, ghost = observing()
        read = shelf.rules.read(GET)
        assert read is not None
        flight = shelf.open(read)
        shelf.drop(marks([key_frame(b"o:k")]))
        assert flight is not None
        shelf.land(flight, VALUE, FOREVER)
        assert not list(ghost)
        agree(shelf)

    @pytest.mark.parametrize("mode", [Mode.BCAST, Mode.BUS])
    def test_other_reads_of_its_key_where_replies_may_be_ahead_of_pushes(self, mode: Mode) -> None:
        _, shelf, _, ghost = observing(mode=mode)
        ask(shelf, GET)
        ask(shelf, part("STRLEN", "o:k"), b":1\r\n")
        assert list(ghost) == [part("STRLEN", "o:k")]
        agree(shelf)


class TestARule:
    def test_is_observed_beside_others_that_are_cached(self) -> None:
        tier, shelf, _, ghost = observing(Policy(BESIDE, DEFAULTS))
        for name in ("o:k", "c:k", "off:k"):
            read = part("GET", name)
            ask(shelf, read)
            assert ask(shelf, read) == (name == "c:k")
        assert (list(ghost), ghost.reads, hits(ghost)) == ([GET], 2, 1)
        assert tier.entries == 1
        agree(shelf)

    def test_of_a_read_of_several_keys_is_the_strictest(self) -> None:
        tier, shelf, _, ghost = observing(Policy(BESIDE, DEFAULTS))
        read = part("SINTER", "c:k", "o:k")
        ask(shelf, read, b"~0\r\n")
        assert list(ghost) == [read] and not tier.entries
        agree(shelf)

    def test_that_is_demoted_is_observed_from_then_on(self) -> None:
        tier, shelf, _ = make()
        rulings = Policy((CacheRule((b"o:*",)), CacheRule((b"c:*",))), DEFAULTS)
        tier.obey(rulings)
        assert shelf.ghost is None
        ask(shelf, GET)
        assert ask(shelf, GET)
        tier.demote(rulings.rulings[0])
        assert not tier.entries
        ask(shelf, GET)
        assert not ask(shelf, GET)
        assert shelf.ghost is not None and list(shelf.ghost) == [GET]
        ask(shelf, part("GET", "c:k"))
        assert ask(shelf, part("GET", "c:k"))
        assert tier.shelf("another").ghost is not None

    def test_reads_that_several_rules_judge_follow_it(self) -> None:
        tier, _, _ = make()
        policy = Policy((CacheRule((b"o:*",)), CacheRule((b"c:*",))), DEFAULTS)
        tier.obey(policy)
        both = [b"o:k", b"c:k"]
        ruling = policy.judge(both)
        assert ruling.serve is Serve.CACHE
        assert list(ruling.sources) == policy.rulings
        tier.demote(policy.rulings[1])
        assert policy.judge(both).serve is Serve.OBSERVE and policy.judge([b"o:k"]).serve is Serve.CACHE

    def test_that_only_one_rule_judges_is_its_own_source(self) -> None:
        policy = Policy((CacheRule((b"o:*",)),), DEFAULTS)
        assert list(policy.judge([b"o:k"]).sources) == policy.rulings
        assert list(policy.judge([b"k"]).sources) == [policy.default]

    def test_limits_of_several_the_least_counts(self) -> None:
        rules = (CacheRule((b"a",), max_fetches=7), CacheRule((b"b",), max_fetches=3), CacheRule((b"c",)), CacheRule((b"d",)))
        policy = Policy(rules, DEFAULTS)
        assert [policy.judge([bytes([x]) for x in keys]).rule.max_fetches for keys in (b"ab", b"ac", b"cd")] == [3, 7, None]

    def test_once_nothing_is_observed_nothing_is_imagined(self) -> None:
        tier, shelf, _, _ = observing()
        ask(shelf, GET)
        tier.obey(Policy((), DEFAULTS))
        assert shelf.ghost is None and not shelf.index
        ask(shelf, GET)
        assert ask(shelf, GET)


class TestMemory:
    def test_is_bounded_whatever_is_read(self) -> None:
        tier, shelf, clock, _ = observing()
        ghost = shelf.ghost = Ghost(most=100)
        shelf.deadlines._parts.clear()
        for n in range(60_000):
            clock.now += 0.01
            ask(shelf, part("GET", n % 20_000))
            if n % 3 == 0:
                shelf.drop(marks([key_frame(b"%d" % (n % 20_000))]))
        assert len(ghost) <= 100
        assert len(shelf.index) <= 100 and not shelf._several and not shelf.flights
        assert shelf.deadlines.notes <= 2 * 16384 + 2
        assert tier.used == 0

    def test_of_notes_of_deadlines_where_all_of_the_sample_changes_all_the_time(self) -> None:
        _, shelf, _, _ = observing(Policy((), Defaults(365 * 86400.0, 1 << 20, Serve.OBSERVE)))
        keys = [(part("GET", n), marks([key_frame(b"%d" % n)])) for n in range(50)]
        for _ in range(1200):
            for name, key in keys:
                ask(shelf, name)
                shelf.drop(key)
        assert shelf.deadlines.notes <= 2 * 16384 + 2


# --- its figures and a real cache's

SIZES = (16 << 20, 32 << 20, 64 << 20)
LONG = b"$800\r\n" + b"x" * 800 + b"\r\n"


def stream(skew: float, keys: int, reads: int, writes: float) -> list[tuple[bytes, bool]]:
    """Parts, and whether the key is written or read."""
    rng = random.Random(1)
    odds = list(accumulate(1 / (rank + 1) ** skew for rank in range(keys)))
    names = [part("GET", f"key:{rank}") for rank in range(keys)]
    return [(name, rng.random() < writes) for name in rng.choices(names, cum_weights=odds, k=reads)]


def play(shelf: Shelf, clock: Clock, steps: list[tuple[bytes, bool]], lifetime: float) -> float:
    """Read and write as sessions do; the share of reads answered from memory."""
    table, found, reads, log_at = shelf.table(2), 0, 0, 0
    shelf.account.count_hits = lambda: found
    for name, written in steps:
        clock.now += 0.001
        if written:
            shelf.drop(shelf.rules.part_marks(name))
            continue
        reads += 1
        if ask(shelf, name, LONG, lifetime):
            found += 1
            if found > log_at:
                log_at = found + table.log([name])
    return found / reads


@pytest.mark.parametrize(
    ("admit_after", "skew", "keys", "writes", "lifetime"),
    [
        (1, 1.0, 100_000, 0.0, FOREVER), (1, 0.8, 60_000, 0.05, FOREVER), (1, 0.9, 60_000, 0.02, 40.0),
        (2, 1.0, 100_000, 0.0, FOREVER), (2, 1.1, 100_000, 0.01, 60.0),
    ],
)  # fmt: skip
def test_the_hit_rate_is_what_a_real_cache_of_that_size_has(admit_after: int, skew: float, keys: int, writes: float, lifetime: float) -> None:
    """With admit_after 2 where memory pays: where it does not, the tier lets fewer in (`Door.paid`)."""
    steps = stream(skew, keys, 200_000, writes)
    _, shelf, clock, ghost = observing(admit_after=admit_after)
    assert play(shelf, clock, steps, lifetime) == 0.0
    rates = {size: rate for size, rate, _ in ghost.report()}
    for size in SIZES:
        _, real, clock = make(max_memory=size, admit_after=admit_after)
        assert abs(rates[size] - play(real, clock, steps, lifetime)) <= 0.02, size


# --- in any order


class Observed(RuleBasedStateMachine):
    """Reads, writes, time and losses in any order: the index names what is kept, imagined or under way."""

    names = st.sampled_from(["o:1", "o:2", "c:1", "c:2", "off:1"])

    @initialize(mode=st.sampled_from(list(Mode)), everything=st.booleans(), most=st.integers(1, 4))
    def begin(self, mode: Mode, everything: bool, most: int) -> None:
        self.tier, self.shelf, self.clock, _ = observing(OBSERVED if everything else Policy(BESIDE, DEFAULTS), mode, (2, 3))
        self.shelf.ghost = Ghost((600, 1500), most)
        self.open: list[tuple[object, bytes]] = []

    @rule(one=names, other=names, lifetime=st.sampled_from([1.0, 5.0, FOREVER]))
    def read(self, one: str, other: str, lifetime: float) -> None:
        ask(self.shelf, part("SINTER", one, other), b"~0\r\n", lifetime)
        ask(self.shelf, part("GET", one), VALUE, lifetime)

    @rule(name=names, reply=st.sampled_from([VALUE, b"_\r\n", b"-ERR no\r\n"]))
    def fetch(self, name: str, reply: bytes) -> None:
        wanted = self.shelf.rules.read(part("GET", name))
        if wanted is not None and self.shelf.table(2).find(wanted.part) is None and self.shelf.admits(wanted.part):
            flight = self.shelf.open(wanted)
            if flight is not None:
                self.open.append((flight, reply))

    @rule(at=st.integers(0, 9), lifetime=st.sampled_from([0.0, 1.0, FOREVER]))
    def land(self, at: int, lifetime: float) -> None:
        if self.open:
            flight, reply = self.open.pop(at % len(self.open))
            self.shelf.land(flight, reply, lifetime)  # type: ignore[arg-type]

    @rule(at=st.integers(0, 9))
    def too_long(self, at: int) -> None:
        if self.open:
            self.shelf.give_up(self.open.pop(at % len(self.open))[0])  # type: ignore[arg-type]

    @rule(name=names)
    def write(self, name: str) -> None:
        self.shelf.pushed(push(name.encode()))
        assert all(name not in each.decode() for each in self.shelf.ghost or ())

    @rule(pattern=st.sampled_from(["o:*", "*:1", "*"]))
    def match(self, pattern: str) -> None:
        list(drop_matching(self.tier, compile_globs([pattern.encode()]), b""))

    @rule(seconds=st.sampled_from([0.5, 3.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.shelf.vouch(self.clock.now)

    @rule()
    def flush(self) -> None:
        self.tier.clear()
        assert not list(self.shelf.ghost or ()) and not self.shelf.index

    @rule(lifetime=st.sampled_from([1, 256]))
    def evict(self, lifetime: int) -> None:
        self.shelf.evict(lifetime)

    @rule()
    def sweep(self) -> None:
        list(self.shelf.deadlines.sweep())

    @rule(everything=st.booleans())
    def obey(self, everything: bool) -> None:
        self.tier.obey(OBSERVED if everything else Policy(BESIDE, DEFAULTS))
        self.open = []

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "shelf"):
            agree(self.shelf)


TestInAnyOrder = Observed.TestCase
TestInAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
