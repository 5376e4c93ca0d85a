"""A warmer with a link of the test's own: how much is under way at a time, and what becomes of each fetch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.client.wanted import Wish, as_pattern, wish
from proxy.client.warm import Tally, Warmer, Whole
from proxy.resp.errors import UpstreamError, UpstreamLost
from proxy.resp.globs import compile_globs, literal
from proxy.tier.flights import Flight
from proxy.tier.rules import Rules
from proxy.upstream.shared import LinkState
from tests.tier.shelves import TABLE, consistent, make, part

RULES = Rules(TABLE)
VALUE = b"+OK\r\n:-1\r\n$1\r\nv\r\n"


class Link:
    """Redis, as slow as the test wants: it answers when told to."""

    def __init__(self) -> None:
        self.state = LinkState.READY
        self.error: UpstreamError = UpstreamLost("ERR pannier: upstream is away")
        self.tracking: Any = None
        self.waiting: deque[Flight] = deque()
        self.asked = 0

    def submit(self, flight: Flight, n: int, request: bytes, keys: object = None) -> None:
        self.asked += 1
        self.waiting.append(flight)
        if self.state is LinkState.FULL:
            flight.hold_back(self)

    def skipped(self) -> int:
        return 0

    def reply(self, n: int = 1, reply: bytes = VALUE) -> None:
        for _ in range(n):
            flight = self.waiting.popleft()
            flight.relay(reply)
            flight.drained()


class Bench:
    def __init__(self, **limits: Any) -> None:
        self.tier, self.shelf, self.clock = make(**limits)
        self.clock.now = time.monotonic()
        self.link = Link()
        self.tally = Tally()

    def warmer(self, **options: bool) -> Warmer:
        return Warmer(cast(Any, self.link), self.shelf, self.tally, **options)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def gets(n: int) -> list[bytes]:
    return [part("GET", key) for key in range(n)]


async def finish(task: asyncio.Task[None], link: Link, answer: Callable[[], None]) -> None:
    while not task.done():
        await turn()
        if link.waiting:
            answer()
    await task


class TestHowMuchIsUnderWay:
    async def test_a_window_refilled_by_halves(self) -> None:
        bench = Bench()
        task = asyncio.create_task(bench.warmer().warm_parts(gets(1000)))
        await turn()
        assert len(bench.link.waiting) == 32
        bench.link.reply(15)
        await turn()
        assert len(bench.link.waiting) == 17, "not for each reply anew"
        bench.link.reply(1)
        await turn()
        assert len(bench.link.waiting) == 32
        await finish(task, bench.link, bench.link.reply)
        assert (bench.tally.kept, bench.tally.of, bench.shelf.entries) == (1000, 1000, 1000)
        consistent(bench.shelf)

    async def test_none_while_redis_does_not_keep_up(self) -> None:
        bench = Bench()
        bench.link.state = LinkState.FULL
        task = asyncio.create_task(bench.warmer().warm_parts(gets(100)))
        await turn()
        assert len(bench.link.waiting) == 1
        bench.link.reply()
        await turn()
        assert not bench.link.waiting, "held back, whatever has been answered"
        bench.link.state = LinkState.READY
        flight = bench.shelf.open(RULES.read(part("GET", "x")))  # whatever was paused is told
        assert flight is not None
        warmer = cast(Any, task.get_coro()).cr_frame.f_locals["self"]
        warmer.block(False)
        await finish(task, bench.link, bench.link.reply)
        assert bench.tally.kept == 100

    async def test_nothing_is_asked_while_nothing_could_be_kept(self) -> None:
        bench = Bench()
        bench.shelf.link_lost()
        task = asyncio.create_task(bench.warmer(patient=True).warm_parts(gets(1)))
        bench.link.state = LinkState.DOWN
        await turn()
        assert not task.done() and not bench.link.asked
        task.cancel()
        with pytest.raises(UpstreamError, match="is away"):
            await bench.warmer().warm_parts(gets(1))


class TestWhatBecomesOfAFetch:
    async def one(self, bench: Bench, *replies: bytes, **options: bool) -> Tally:
        task = asyncio.create_task(bench.warmer(**options).warm_parts(gets(1)))
        left = deque(replies)
        await finish(task, bench.link, lambda: bench.link.reply(1, left.popleft()))
        return bench.tally

    async def test_kept(self) -> None:
        bench = Bench()
        assert str(await self.one(bench, VALUE)).startswith("1 of 1 keys in 0.0 seconds")
        assert bench.shelf.tables[2].replies == {part("GET", 0): b"$1\r\nv\r\n"}

    async def test_what_is_in_memory_already_is_not_asked_for(self) -> None:
        bench = Bench()
        await self.one(bench, VALUE)
        assert (await self.one(bench)).kept == 2 and bench.link.asked == 1
        assert (await self.one(bench, VALUE, anew=True)).kept == 3 and bench.link.asked == 2

    async def test_an_error(self) -> None:
        tally = await self.one(Bench(), b"+OK\r\n:-1\r\n-WRONGTYPE no\r\n")
        assert (tally.kept, dict(tally.failed)) == (0, {"WRONGTYPE no": 1})

    async def test_too_long(self) -> None:
        bench = Bench(max_value_size=16)
        assert dict((await self.one(bench, b"+OK\r\n:-1\r\n$20\r\n" + b"v" * 20 + b"\r\n")).not_kept) == {"too long": 1}

    async def test_too_long_to_be_collected(self) -> None:
        bench = Bench(max_value_size=16)
        assert dict((await self.one(bench, b"+OK\r\n:-1\r\n$2000\r\n" + b"v" * 2000 + b"\r\n")).not_kept) == {"too long": 1}
        consistent(bench.shelf)

    async def test_about_to_expire(self) -> None:
        reply = b"+OK\r\n:0\r\n$1\r\nv\r\n"
        assert (await self.one(Bench(), reply, reply)).not_kept.total() == 1

    async def test_written_meanwhile_it_is_fetched_once_more(self) -> None:
        bench = Bench()
        task = asyncio.create_task(bench.warmer().warm_parts(gets(1)))
        await turn()
        bench.shelf.invalidate([b"$1\r\n0\r\n"])
        bench.link.reply()
        assert not bench.shelf.entries and len(bench.link.waiting) == 1
        bench.link.reply(1, b"+OK\r\n:-1\r\n$1\r\nw\r\n")
        await task
        assert bench.tally.kept == 1 and bench.shelf.tables[2].replies[part("GET", 0)] == b"$1\r\nw\r\n"

    async def test_written_again_and_again_it_is_left(self) -> None:
        bench = Bench()
        task = asyncio.create_task(bench.warmer().warm_parts(gets(1)))
        for _ in range(2):
            await turn()
            bench.shelf.invalidate([b"$1\r\n0\r\n"])
            bench.link.reply()
        await task
        assert not bench.link.waiting and (bench.tally.kept, bench.tally.not_kept.total()) == (0, 1)

    async def test_a_client_s_fetch_under_way_is_joined(self) -> None:
        bench = Bench()
        flight = bench.shelf.open(RULES.read(part("GET", 0)))
        task = asyncio.create_task(bench.warmer().warm_parts(gets(1)))
        await turn()
        assert not bench.link.asked and flight is not None
        flight.relay(VALUE)
        flight.drained()
        await task
        assert bench.tally.kept == 1

    async def test_nothing_is_put_out_for_it(self) -> None:
        bench = Bench(max_entries=100)
        task = asyncio.create_task(bench.warmer().warm_parts(gets(1000)))
        await finish(task, bench.link, lambda: bench.link.reply(1))
        tally = bench.tally
        assert tally.of == 1000 and tally.kept + tally.not_kept["memory is full"] == 1000
        assert not bench.tier.main.evicted and 95 <= bench.shelf.entries <= 100

    async def test_one_large_value_does_not_make_memory_full(self) -> None:
        bench = Bench(max_memory=1 << 20)
        task = asyncio.create_task(bench.warmer().warm_parts(gets(1000)))
        await turn()
        bench.link.reply(1, b"+OK\r\n:-1\r\n$300000\r\n" + b"v" * 300000 + b"\r\n")
        await finish(task, bench.link, bench.link.reply)
        assert bench.tally.kept == 1000

    async def test_writes_are_never_sent(self) -> None:
        bench = Bench()
        await bench.warmer().warm_parts([part("SET", "a", "b"), part("FLUSHALL"), part("GET"), part(""), part("EVAL", "x", 1, "a")])
        assert not bench.link.asked and bench.tally.not_kept.total() == 5

    async def test_the_reasons_are_bounded(self) -> None:
        tally = Tally()
        for n in range(100):
            tally.fail(f"ERR {n}" + "x" * 1000)
        assert len(tally.failed) <= 21 and tally.failed.total() == 100
        assert all(len(why) <= 120 for why in tally.failed)


class TestHowFarItIs:
    def test_follows_the_keys_looked_at_or_the_limit_whichever_ends_it_first(self) -> None:
        tally = Tally()
        tally.scope, tally.seen, tally.of = 30_000, 15_000, 14_000
        assert tally.share == 0.5
        tally.limit = 20_000
        assert tally.share == 0.7
        tally.seen, tally.of = 20_250, 20_000
        assert tally.share == 1.0

    async def test_is_so_for_a_warmer_with_a_limit(self) -> None:
        bench = Bench()
        task = asyncio.create_task(bench.warmer().warm([Wish(b"k:*")], 7))
        await turn()
        assert bench.tally.limit == 7
        task.cancel()

    async def test_together_with_others_each_request_counts_once(self) -> None:
        whole = Whole()
        bench = Bench()
        for parts, told in ((gets(3), (3, 3)), (gets(5), (5, 5))):
            bench.tally = Tally(whole=whole)
            await finish(asyncio.create_task(bench.warmer().warm_parts(parts)), bench.link, bench.link.reply)
            assert (bench.tally.kept, bench.tally.of) == told
        assert (whole.kept, whole.of) == (5, 5)
        whole.end()
        bench.tally.keep(b"late")
        assert (whole.kept, whole.of) == (5, 5), "it has been said"


class TestAWish:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (b"org:1", Wish(b"org:1")),
            (b"org:*", Wish(b"org:*")),
            (b"HGETALL user:*", Wish(b"user:*", (b"HGETALL", b"user:*"), 1)),
            (b'get "a b"', Wish(b"a b", (b"get", b"a b"), 1)),
            (b"ZRANGE board 0 9 WITHSCORES", Wish(b"board", (b"ZRANGE", b"board", b"0", b"9", b"WITHSCORES"), 1)),
            (b"SINTER a b", Wish(b"", (b"SINTER", b"a", b"b"), 0)),
        ],
    )
    def test_is_understood(self, line: bytes, expected: Wish) -> None:
        assert wish(line, RULES) == expected

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b"SET a b", "'SET', which is no read whose reply is kept"),
            (b"FLUSHALL now", "'FLUSHALL', which is no read"),
            (b"SRANDMEMBER a", "no read whose reply is kept"),
            (b"NOSUCH a", "no read whose reply is kept"),
            (b"GET a b c", "gives GET 3 arguments; it takes 1"),
            (b"lrange a 0", "gives lrange 2 arguments; it takes 3"),
            (b"HMGET a", "gives HMGET 1 arguments; it takes at least 2"),
            (b"SINTER a* b", "pattern among the several keys"),
            (b'GET "a', "unbalanced quotes"),
            (b"a" * 4097, "longer than 4096"),
        ],
    )
    def test_is_refused(self, line: bytes, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            wish(line, RULES)

    def test_becomes_requests(self) -> None:
        assert wish(b"HGET user:* name", RULES).part(b"user:1") == part("HGET", "user:1", "name")
        assert wish(b"SINTER a b", RULES).part(b"") == part("SINTER", "a", "b")

    @pytest.mark.parametrize("key", [b"a*b", b"[x]", b"\\", b"?\xff", b"plain"])
    def test_a_key_of_any_bytes_is_a_pattern_of_one(self, key: bytes) -> None:
        assert literal(as_pattern(key)) == key and compile_globs([as_pattern(key)]).fullmatch(key)


