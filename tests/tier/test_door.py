"""The doorkeeper lets in what is read again, and takes a fixed amount of memory."""

from __future__ import annotations

from proxy.tier.door import Door

PARTS = [b"2\r\n$3\r\nGET\r\n$%d\r\n%d\r\n" % (len(str(n)), n) for n in range(20_000)]


def test_open_lets_in_everything() -> None:
    door = Door(1, 1 << 26)
    assert door.admits(b"x") and door.admitted(PARTS) == PARTS


def test_the_second_read_comes_in() -> None:
    door = Door(2, 1 << 26)
    assert not door.admits(b"x")
    assert door.admits(b"x") and door.admits(b"x")
    door.admitted([b"y", b"z"])
    assert list(door.admitted([b"z", b"w", b"y"])) == [b"z", b"y"]
    assert door.admits(b"w"), "one door, whichever way it is asked"


def test_two_that_share_a_slot_both_come_in() -> None:
    """Each makes the other forgotten now and then, but not for ever."""
    for spare in range(20):
        door = Door(2, 1)
        mask = len(door._slots) - 1
        one = b"one:%d" % spare
        slot = hash(one) & mask
        other = next(
            part for n in range(10_000_000) if hash(part := b"%d:%d" % (spare, n)) >> 22 & mask == slot
        )
        if spare & 1:
            door.admits(b"another")
        left = {one, other}
        for _ in range(100):
            left.difference_update(door.admitted([part for part in (one, other) if part in left]))
        assert not left


def test_hardly_anything_comes_in_unread() -> None:
    door = Door(2, 1 << 26)
    assert len(door.admitted(PARTS)) < len(PARTS) / 20


def test_most_of_what_was_read_comes_in() -> None:
    door = Door(2, 1 << 26)
    door.admitted(PARTS)
    assert len(door.admitted(PARTS)) > len(PARTS) * 0.85


def test_memory_is_fixed() -> None:
    door = Door(2, 1 << 26)
    size = len(door._slots)
    door.admitted(PARTS)
    assert len(door._slots) == size <= (1 << 26) / 256
    assert len(Door(2, 1)._slots) <= 1 << 16
    assert len(Door(2, 1 << 40)._slots) <= 1 << 22


def test_what_does_not_pay_comes_in_less_until_it_pays_again() -> None:
    door = Door(2, 1 << 26)
    door.admits(b"x")
    hits = 0

    def let_in() -> int:
        return sum(door.admits(b"x") for _ in range(320))

    assert let_in() == 320
    for fills in range(1, 10):
        door.paid(fills * 4096, lambda hits=hits: hits)  # type: ignore[misc]
    assert 0 < let_in() <= 20
    for fills in range(10, 30):
        hits += 100_000
        door.paid(fills * 4096, lambda hits=hits: hits)  # type: ignore[misc]
    assert let_in() == 320


class TestDebts:
    """Where keys change about as often as pipelines hit, pipelines fill less."""

    def churn(self, door: Door, times: int = 1) -> None:
        drops, hits = door._churned
        for n in range(1, times + 1):
            door.churned(drops + n * 1000, hits + n * 100)

    def known(self) -> Door:
        door = Door(2, 1 << 26)
        door.admits(b"x")
        return door

    def test_grow_while_hits_are_few_for_each_drop(self) -> None:
        door = self.known()
        assert door.price == 0
        prices = []
        for _ in range(8):
            self.churn(door)
            prices.append(door.price)
        assert prices == [1, 3, 7, 15, 15, 15, 15, 15]

    def test_shrink_when_hits_are_many(self) -> None:
        door = self.known()
        self.churn(door, 3)
        drops, hits = door._churned
        door.churned(drops + 1000, hits + 4000)
        assert door.price == 3

    def test_shrink_when_hardly_anything_is_dropped(self) -> None:
        door = self.known()
        self.churn(door, 3)
        drops, hits = door._churned
        door.churned(drops + 255, hits)
        assert door.price == 3

    def test_are_paid_by_reads_in_pipelines(self) -> None:
        door = self.known()
        self.churn(door, 2)
        door.charge(b"x")
        for _ in range(3):
            assert not door.admitted([b"x"], piped=True)
        assert list(door.admitted([b"x"], piped=True)) == [b"x"]

    def test_do_not_hold_up_who_reads_one_by_one(self) -> None:
        door = self.known()
        self.churn(door, 2)
        door.charge(b"x")
        assert door.admits(b"x")
        assert not door.admitted([b"x"], piped=True), "nor are they paid so"

    def test_are_of_what_was_dropped_only(self) -> None:
        door = self.known()
        door.admits(b"y")
        self.churn(door, 2)
        door.charge(b"x")
        assert list(door.admitted([b"x", b"y"], piped=True)) == [b"y"]
