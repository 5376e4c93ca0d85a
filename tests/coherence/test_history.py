"""Whoever writes and by whatever way: nobody sees what the promises of coherence forbid.

Real servers, three sidecars, many readers and writers for five seconds; `LONG_TESTS=1` makes it two minutes, any
other number that many seconds, and `COHERENCE_SEED` another history. What counts as a violation, and what
is beyond the promise, stands in history.py.

SWAPDB is seen by no other sidecar (Redis tells nobody), so it has a run of its own with one sidecar, in which
every step that is not known to Redis' tracking goes through that sidecar. FLUSHDB and FLUSHALL are in that run
too, direct ones included, as they change every key there is; the other run flushes a database nobody looks at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from tests.coherence.history import History
from tests.coherence.workers import Run
from tests.coherence.writes import WHOLE_DATABASES
from tests.harness import Process, pannier, redis_server

pytestmark = pytest.mark.alone

LONG = float(os.environ.get("LONG_TESTS") or 0)
SECONDS = 120.0 if LONG == 1 else LONG or 5.0
SEED = int(os.environ.get("COHERENCE_SEED") or 1)
KINDS = {
    b"SET", b"SETEX", b"PSETEX", b"MSET", b"MSETNX", b"INCR", b"INCRBY", b"APPEND", b"SETRANGE", b"DEL", b"UNLINK", b"RENAME", b"COPY",
    b"MOVE", b"EXPIRE", b"PEXPIRE", b"PERSIST", b"GETDEL", b"GETEX", b"HSET", b"HINCRBY", b"HDEL", b"LPUSH", b"LTRIM", b"SADD", b"SREM",
    b"ZADD", b"ZINCRBY", b"XADD", b"XTRIM", b"EXEC", b"WATCH", b"EVAL", b"EVALSHA", b"RESTORE",
}  # fmt: skip
"""Writes, one by one or in MULTI, without which a run has not tried enough."""


@pytest.fixture
def upstream(redis_binary: str, tmp_path: Path) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path) as server:
        yield server


@contextlib.contextmanager
def sidecars(upstream: Process, count: int, directory: Path) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(pannier(f"redis://127.0.0.1:{upstream.port}", directory, bus=True)) for _ in range(count)]


def judge(run: Run, processes: list[Process], wrote: Callable[[History], object]) -> None:
    """Run it; fail with the first stories if there was anything to tell. `wrote`: whether enough has been written."""
    run.enough = lambda history: history.reads.total() > 500 * run.seconds and wrote(history)
    history = uvloop.run(run.run())
    reads, writes = history.reads.total(), history.writes.total()
    print(f"{reads} reads, {writes} writes, {run.hits:.0%} of cacheable reads spared Redis, longest lag {history.lag * 1000:.1f} ms")
    assert not history.violations, f"{dict(history.found)}\n" + "\n".join(history.violations[:20])
    assert reads > 500 * run.seconds
    assert wrote(history), dict(history.writes)
    for process in processes:
        assert "internal error" not in process.output


class TestNobodyReadsWhatIsNoMore:
    def test_three_sidecars_and_direct_writers(self, upstream: Process, tmp_path: Path) -> None:
        with sidecars(upstream, 3, tmp_path) as processes:
            run = Run(upstream.port, [process.port for process in processes], SECONDS, SEED)
            judge(run, processes, lambda history: set(history.writes) >= KINDS)

    def test_one_sidecar_and_whole_databases(self, upstream: Process, tmp_path: Path) -> None:
        with sidecars(upstream, 1, tmp_path) as processes:
            ports = [process.port for process in processes]
            run = Run(upstream.port, ports, SECONDS * 0.4, SEED, groups=1, ttl_groups=0, choosers=WHOLE_DATABASES, grace=0.5)
            judge(run, processes, lambda history: history.writes[b"SWAPDB"] and history.writes[b"FLUSHDB"] + history.writes[b"FLUSHALL"])

    def test_every_way_of_writing_is_seen_at_once(self, upstream: Process, tmp_path: Path) -> None:
        """One writer alone: what it is about to change is cached for sure, and asked for right after the answer."""
        with sidecars(upstream, 1, tmp_path) as processes:
            ports = [process.port for process in processes]
            run = Run(
                upstream.port, ports, SECONDS * 0.3, SEED, groups=1, ttl_groups=0, choosers=WHOLE_DATABASES,
                readers=0, grace=0.1, warm=True,
            )  # fmt: skip
            judge(run, processes, lambda history: True)
