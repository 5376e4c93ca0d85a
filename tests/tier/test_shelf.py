"""A shelf keeps what may be kept, within its limits, and drops whatever has changed."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.resp import encode
from proxy.resp.tracking import Mode
from proxy.tier import shelf as shelf_module
from proxy.tier.rules import key_frame, marks
from tests.tier.shelves import consistent, fill, make, part, read

INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n"


def push(*keys: bytes) -> bytes:
    return INVALIDATE + encode.array(map(encode.bulk, keys))


class TestKeeping:
    def test_for_both_protocols_from_one_fetch(self) -> None:
        tier, shelf, _ = make(protocols=(2, 3))
        fill(shelf, "ZMSCORE", "z", "m", "n", reply=b"*2\r\n,1.5\r\n_\r\n")
        assert shelf.table(3).find(part("ZMSCORE", "z", "m", "n")) == b"*2\r\n,1.5\r\n_\r\n"
        assert shelf.table(2).find(part("ZMSCORE", "z", "m", "n")) == b"*2\r\n$3\r\n1.5\r\n$-1\r\n"
        assert (tier.entries, tier.main.fills) == (2, 1)

    def test_of_an_unknown_shape_for_resp3_only(self) -> None:
        _tier, shelf, _ = make(protocols=(2, 3))
        fill(shelf, "ZRANK", "z", "m", "WITHSCORE")
        assert (len(shelf.table(2).replies), len(shelf.table(3).replies)) == (0, 1)
        consistent(shelf)

    def test_of_an_unknown_shape_for_nobody_leaves_nothing(self) -> None:
        _, shelf, _ = make()
        fill(shelf, "ZRANK", "z", "m", "WITHSCORE")
        assert not shelf.index and not shelf.flights
        consistent(shelf)

    @pytest.mark.parametrize("reply", [b"$-1\r\n", b"_\r\n", b":0\r\n", b"$0\r\n\r\n", b"*0\r\n"])
    def test_of_what_is_empty(self, reply: bytes) -> None:
        _, shelf, _ = make(protocols=(3,))
        fill(shelf, "GET", "k", reply=reply)
        assert shelf.table(3).find(part("GET", "k")) == reply

    @pytest.mark.parametrize(("reply", "lifetime"), [(b"-ERR x\r\n", 9.0), (b"$1\r\nv\r\n", 0.0), (b"$1\r\nv\r\n", -1.0), (b"$40\r\n" + b"v" * 40 + b"\r\n", 9.0), (b"$1\r\nv\r\n", 0.0001)])
    def test_of_errors_of_the_dying_and_of_the_large_never(self, reply: bytes, lifetime: float) -> None:
        tier, shelf, clock = make(max_value_size=40)
        flight = shelf.open(read(tier, "GET", "k"))
        assert flight is not None
        clock.now += 0.01
        shelf.land(flight, reply, lifetime)
        assert (tier.entries, tier.used, shelf.index, shelf.flights) == (0, 0, {}, {})

    def test_a_second_fetch_of_what_is_being_fetched_is_none(self) -> None:
        tier, shelf, _ = make()
        assert shelf.open(read(tier, "GET", "k")) is not None
        assert shelf.open(read(tier, "GET", "k")) is None

    def test_too_many_parts_of_one_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shelf_module, "_MOST_PARTS", 3)
        tier, shelf, _ = make()
        for n in range(9):
            fill(shelf, "GETRANGE", "k", 0, n)
        assert tier.entries == 3
        assert shelf.open(read(tier, "EXISTS", "a", "k")) is None
        consistent(shelf)


class TestDropping:
    def test_finds_a_read_under_each_of_its_keys(self) -> None:
        for key in (b"a", b"b", b"c"):
            tier, shelf, _ = make()
            fill(shelf, "SINTER", "a", "b", "c", "a")
            fill(shelf, "EXISTS", "a", "b")
            fill(shelf, "GET", "z")
            shelf.pushed(push(key))
            assert tier.entries == (2 if key == b"c" else 1)
            consistent(shelf)

    def test_all_parts_of_a_key(self) -> None:
        tier, shelf, _ = make()
        for command in ("GET", "STRLEN", "TYPE"):
            fill(shelf, command, "k")
        flight = shelf.open(read(tier, "EXISTS", "k"))
        assert flight is not None
        assert tier.drop(marks([key_frame(b"k")])) == 3
        assert flight.tainted and not shelf.index and not tier.used
        assert (tier.main.overwritten, tier.main.invalidated) == (3, 0)

    @pytest.mark.parametrize("key", [b"k", b"", b"\r\n", b"a\r\nb", b"$1\r\nx\r\n", b"\xff\x00*", b"x" * 300, b"x" * 255, b"x" * 256])
    def test_whatever_the_key_looks_like(self, key: bytes) -> None:
        tier, shelf, _ = make()
        for keys in ((key,), (b"other", key), (key, b"other"), (b"a", key, b"b")):
            fill(shelf, "GET", key)
            fill(shelf, "GET", "stays")
            before = tier.main.invalidated
            shelf.pushed(push(*keys))
            assert part("GET", key) not in shelf.table(2).replies
            assert tier.entries == 1 and tier.main.invalidated == before + 1
            consistent(shelf)
        assert tier.main.pushes == 4

    def test_null_is_everything(self) -> None:
        tier, shelf, _ = make(protocols=(2, 3))
        fill(shelf, "GET", "k")
        flight = shelf.open(read(tier, "GET", "x"))
        shelf.pushed(INVALIDATE + b"_\r\n")
        assert flight is not None and flight.tainted
        assert (tier.entries, tier.used, shelf.index, shelf.flights, tier.main.invalidated) == (0, 0, {}, {}, 2)

    def test_other_pushes_are_none(self) -> None:
        tier, shelf, _ = make()
        fill(shelf, "GET", "k")
        shelf.pushed(b">3\r\n$7\r\nmessage\r\n$1\r\nk\r\n$1\r\nk\r\n")
        assert (tier.entries, tier.main.pushes) == (1, 0)

    def test_in_every_shelf(self) -> None:
        tier, shelf, _clock = make()
        other = tier.shelf("other")
        other.table(2)
        other.link_up(Mode.DEFAULT)
        for each in (shelf, other):
            fill(each, "GET", "k")
        assert tier.drop(marks([key_frame(b"k")])) == 2
        assert tier.entries == tier.used == 0
        fill(other, "GET", "k")
        tier.discard("other")
        assert tier.used == 0 and "other" not in tier.shelves

    def test_a_tainted_flight_is_not_kept(self) -> None:
        tier, shelf, _ = make()
        for taint in (lambda: shelf.pushed(push(b"k")), shelf.clear, shelf.link_lost, lambda: tier.drop(marks([key_frame(b"k")]))):
            flight = shelf.open(read(tier, "GET", "k"))
            assert flight is not None
            taint()
            assert part("GET", "k") not in shelf.flights
            again = shelf.open(read(tier, "GET", "k"))
            shelf.land(flight, b"$1\r\nv\r\n", 9.0)
            assert tier.entries == 0 and again is not None
            shelf.give_up(again)
            consistent(shelf)

    def test_a_flight_of_another_epoch_is_not_kept(self) -> None:
        tier, shelf, _ = make()
        flight = shelf.open(read(tier, "GET", "k"))
        assert flight is not None
        shelf.epoch += 1
        shelf.land(flight, b"$1\r\nv\r\n", 9.0)
        assert tier.entries == 0

    def test_in_bcast_a_fetch_drops_what_else_shows_its_key(self) -> None:
        tier, shelf, _ = make(mode=Mode.BCAST)
        assert tier.loose
        fill(shelf, "STRLEN", "k")
        fill(shelf, "EXISTS", "k", "a")
        fill(shelf, "GET", "k")
        assert list(shelf.table(2).replies) == [part("GET", "k")]
        consistent(shelf)


class TestTime:
    def test_never_past_the_lifetime_from_sending(self) -> None:
        for lifetime in (0.001, 0.01, 0.5, 1.0, 7.77, 299.0, 1e9, float("inf")):
            tier, shelf, clock = make()
            flight = shelf.open(read(tier, "GET", "k"))
            assert flight is not None
            sent, end = clock.now, min(lifetime, 300.0)
            clock.now += end / 4
            shelf.land(flight, b"$1\r\nv\r\n", lifetime)
            assert (shelf.vouch(clock.now) and tier.entries == 1) or lifetime <= 0.001
            if tier.entries:
                assert sent + end * 0.85 - 0.002 <= shelf.until <= sent + end
            clock.now = sent + end
            shelf.vouch(clock.now)
            assert (tier.entries, tier.used, shelf.index) == (0, 0, {})

    def test_until_is_the_next_deadline_or_the_gate(self) -> None:
        tier, shelf, clock = make(coherence_timeout=3.0)
        assert shelf.vouch(clock.now) and shelf.until == clock.now + 3.0
        fill(shelf, "GET", "k", lifetime=1.0)
        assert shelf.until <= clock.now + 1.0
        clock.now += 1.0
        assert shelf.vouch(clock.now) and tier.main.expired == 1
        clock.now += 2.0
        assert not shelf.vouch(clock.now)
        shelf.heard = clock.now
        assert shelf.vouch(clock.now)
        shelf.link_lost()
        assert not shelf.vouch(clock.now)

    def test_jitter_only_shortens(self) -> None:
        tier, _, _ = make()
        tier._rng = lambda: 0.0
        assert tier.shortened(300.0, 0.1) == pytest.approx(270.0)
        assert tier.shortened(300.0, 0.0) == 300.0
        tier._rng = lambda: 1.0
        assert tier.shortened(300.0, 0.1) <= 300.0

    def test_one_key_refilled_for_ever_takes_no_room(self) -> None:
        tier, shelf, clock = make()
        wanted = read(tier, "GET", "k")
        keys = marks(wanted.keys)
        for n in range(100_000):
            flight = shelf.open(wanted)
            assert flight is not None
            shelf.land(flight, b"$1\r\nv\r\n", 100.0 + n % 7)
            shelf.drop(keys)
            clock.now += 0.0001
        assert shelf.deadlines.notes <= 2 * 16384 + 2
        assert (tier.used, shelf.index, shelf._several) == (0, {}, {})

    def test_a_refilled_entry_outlives_no_deadline(self) -> None:
        tier, shelf, clock = make()
        fill(shelf, "GET", "k", lifetime=10.0)
        shelf.pushed(push(b"k"))
        fill(shelf, "GET", "k", lifetime=5.0)
        list(shelf.deadlines.sweep())
        clock.now += 5.0
        shelf.vouch(clock.now)
        assert tier.entries == 0


class TestLimits:
    def test_entries(self) -> None:
        tier, shelf, _ = make(max_entries=10)
        for n in range(100):
            fill(shelf, "GET", n)
            assert tier.entries <= 10
        assert tier.main.evicted == 90 and part("GET", 99) in shelf.table(2).replies
        consistent(shelf)

    def test_memory_of_one_value_worth_many_old_ones(self) -> None:
        tier, shelf, _ = make(max_memory=10_000)
        for n in range(100):
            fill(shelf, "GET", n, reply=b"$100\r\n" + b"x" * 100 + b"\r\n")
        assert tier.used <= 10_000
        fill(shelf, "GET", "big", reply=b"$5000\r\n" + b"x" * 5000 + b"\r\n")
        assert tier.used <= 10_000 and part("GET", "big") in shelf.table(2).replies
        fill(shelf, "GET", "bigger", reply=b"$50000\r\n" + b"x" * 50000 + b"\r\n")
        assert tier.used <= 10_000
        consistent(shelf)

    def test_of_all_shelves_together(self) -> None:
        tier, shelf, _ = make(max_entries=20)
        other = tier.shelf("other")
        other.table(2)
        other.link_up(Mode.OPTIN)
        for n in range(50):
            fill(shelf if n % 2 else other, "GET", n)
            assert tier.entries <= 20

    def test_the_least_recently_used_goes_first(self) -> None:
        """Hits are sampled: what is read all the time is certain to be seen."""
        _tier, shelf, _ = make(max_entries=100)
        table, hot = shelf.table(2), [part("GET", n) for n in range(10)]
        due = 0
        for n in range(10):
            fill(shelf, "GET", n)
        for n in range(10, 2000):
            fill(shelf, "GET", n)
            for hits, found in enumerate(hot):
                shelf.reuse.release([found])
                assert table.find(found) is not None, n
                if n * 10 + hits > due:
                    due = n * 10 + hits + table.log([found])
            if n > 90:
                table.log(hot)
        assert all(found in table for found in hot), "held or not: the last hits may have been picked to be watched"

    def test_the_log_is_bounded(self) -> None:
        _, shelf, _ = make()
        fill(shelf, "GET", "k")
        table = shelf.table(2)
        for _ in range(10_000):
            table.log([part("GET", "k"), part("GET", "gone")])
        assert sum(map(len, table._log)) <= 4098
        assert len(table) == 1 and part("GET", "k") in table

    def test_bytes_come_back_to_nothing(self) -> None:
        tier, shelf, clock = make(protocols=(2, 3), max_entries=500)
        for n in range(1000):
            fill(shelf, "SINTER", n % 50, n, reply=b"~1\r\n$3\r\nabc\r\n", lifetime=1 + n % 5)
            if n % 7 == 0:
                shelf.pushed(push(b"%d" % (n % 50)))
        assert tier.used > 0
        clock.now += 300
        shelf.vouch(clock.now)
        assert (tier.used, shelf.bytes, tier.entries, shelf.index, shelf._several) == (0, 0, 0, {}, {})


REQUESTS = [("GET", "a"), ("GET", "b"), ("STRLEN", "a"), ("EXISTS", "a", "b"), ("EXISTS", "b", "c", "a"), ("GET", "c"), ("SINTER", "c", "b")]


class AgainstAModel(RuleBasedStateMachine):
    """Redis is a dict from keys to versions, each reply tells the versions it was made of: whatever is served
    was read after the last drop of each of its keys."""

    @initialize(mode=st.sampled_from([Mode.OPTIN, Mode.BCAST]), protocols=st.sampled_from([(2,), (2, 3)]))
    def start(self, mode: Mode, protocols: tuple[int, ...]) -> None:
        self.tier, self.shelf, self.clock = make(mode=mode, protocols=protocols, max_entries=5)
        self.versions = dict.fromkeys("abc", 0)
        self.flights: list[tuple[object, tuple[str, ...], bytes, float]] = []
        self.ends: dict[bytes, float] = {}

    def reply(self, request: tuple[str, ...]) -> bytes:
        return encode.bulk(" ".join(f"{key}{self.versions[key]}" for key in request[1:]))

    @rule(request=st.sampled_from(REQUESTS), lifetime=st.sampled_from([0.0, 1.0, 5.0, 1e9]))
    def open(self, request: tuple[str, ...], lifetime: float) -> None:
        flight = self.shelf.open(read(self.tier, *request))
        if flight is not None:
            self.flights.append((flight, request, self.reply(request), lifetime))

    @rule(which=st.integers(0, 9))
    def land(self, which: int) -> None:
        if self.flights:
            flight, request, reply, lifetime = self.flights.pop(which % len(self.flights))
            self.shelf.land(flight, reply, lifetime)  # type: ignore[arg-type]
            if part(*request) in self.shelf.table(2).replies:
                self.ends[part(*request)] = flight.began + min(lifetime, 300.0)  # type: ignore[attr-defined]

    @rule(which=st.integers(0, 9))
    def give_up(self, which: int) -> None:
        if self.flights:
            self.shelf.give_up(self.flights.pop(which % len(self.flights))[0])  # type: ignore[arg-type]

    @rule(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=3), pushed=st.booleans())
    def write(self, keys: list[str], pushed: bool) -> None:
        for key in keys:
            self.versions[key] += 1
        if pushed:
            self.shelf.pushed(push(*[key.encode() for key in keys]))
        else:
            self.tier.drop(marks([key_frame(key.encode()) for key in keys]))

    @rule(null=st.booleans())
    def flush(self, null: bool) -> None:
        self.versions = {key: version + 1 for key, version in self.versions.items()}
        if null:
            self.shelf.pushed(INVALIDATE + b"_\r\n")
        else:
            self.tier.clear()

    @rule()
    def reconnect(self) -> None:
        mode = self.shelf.mode
        self.shelf.link_lost()
        self.versions = {key: version + 1 for key, version in self.versions.items()}
        self.shelf.link_up(mode)

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        self.shelf.evict(count)

    @rule(seconds=st.sampled_from([0.5, 3.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.shelf.vouch(self.clock.now)

    @rule()
    def sweep(self) -> None:
        list(self.shelf.deadlines.sweep())

    @rule(request=st.sampled_from(REQUESTS))
    def look(self, request: tuple[str, ...]) -> None:
        self.shelf.table(2).log([part(*request)])

    @invariant()
    def serves_the_truth(self) -> None:
        if not hasattr(self, "shelf"):
            return
        consistent(self.shelf)
        assert self.tier.entries <= 5
        for table in self.shelf.tables.values():
            for request in REQUESTS:
                reply = table.find(part(*request))
                assert reply in (None, self.reply(request))
                assert reply is None or self.clock.now < self.ends[part(*request)]


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


class TestChurn:
    """Entries that are dropped before they pay make pipelines fill less."""

    def test_what_is_dropped_owes_the_price(self) -> None:
        tier, shelf, _ = make(admit_after=2)
        shelf.admitted([part("GET", "k"), part("GET", "other")])
        tier.common.door.price = 3
        fill(shelf, "GET", "k")
        shelf.drop(marks([key_frame(b"k")]))
        asked = [list(shelf.admitted([part("GET", "k"), part("GET", "other")])) for _ in range(4)]
        assert asked == [[part("GET", "other")]] * 3 + [[part("GET", "k"), part("GET", "other")]]

    def test_is_judged_now_and_then(self) -> None:
        tier, shelf, _ = make(admit_after=2)
        for n in range(1024):
            fill(shelf, "GET", n)
            tier.drop(marks([key_frame(b"%d" % n)]))
        assert tier.common.door.price == 1, "no hit for a thousand entries that were written"
        tier.main.count_hits = lambda: 4 * 1024
        for n in range(1024):
            fill(shelf, "GET", n)
            tier.drop(marks([key_frame(b"%d" % n)]))
        assert tier.common.door.price == 0, "four hits for each"

    @pytest.mark.parametrize(("pieced", "price"), [(8 * 1023, 0), (8 * 1023 - 2, 1)])
    def test_hits_that_waited_for_redis_all_the_same_count_half(self, pieced: int, price: int) -> None:
        tier, shelf, _ = make(admit_after=2)
        tier.main.count_hits = lambda: pieced
        tier.main.pieced = pieced
        for n in range(1024):
            fill(shelf, "GET", n)
            tier.drop(marks([key_frame(b"%d" % n)]))
        assert tier.common.door.price == price
