"""What every part of the comparison is given: who takes part, how long, where to tell how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.load import Generator
from bench.peers.contenders import Contender
from bench.progress import Progress
from bench.servers import BenchError, Server, Stable


@dataclass
class Bench:
    """One run."""

    stable: Stable
    contenders: list[Contender]
    """Those at hand; the first is Redis direct, to which ratios are."""
    generator: Generator
    """For what redis-benchmark can send; the built-in one, if it is not at hand."""
    rounds: int
    seconds: float
    """Of one measurement."""
    deadline: float
    """Monotonic seconds at which nothing new is begun."""
    progress: Progress
    failures: list[str] = field(default_factory=list)

    def require_time(self) -> None:
        """Raise when the time limit of the whole is reached."""
        if time.monotonic() > self.deadline:
            raise BenchError("the time limit is reached")

    @contextmanager
    def servers(self) -> Iterator[Stable]:
        """A stable whose servers end with the block; those started before go on."""
        before = list(self.stable.servers)
        try:
            yield self.stable
        finally:
            self.stop_but(before)

    def stop_but(self, kept: list[Server]) -> None:
        """Stop the servers that are not among these."""
        self.stable.stop([server for server in self.stable.servers if server not in kept])
