"""Tells on stderr how far a run is, away from the tables."""

from __future__ import annotations

import sys


class Progress:
    """A bar on a terminal, one plain line per stage elsewhere."""

    WIDTH = 30

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.stage = ""
        self.live = sys.stderr.isatty()

    def begin(self, stage: str, detail: str = "") -> None:
        """Say what runs now."""
        if self.live:
            filled = min(self.WIDTH, self.done * self.WIDTH // max(self.steps, 1))
            bar = "#" * filled + "." * (self.WIDTH - filled)
            line = f"[{bar}] {self.done}/{self.steps} {stage} {detail}"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif stage != self.stage:
            print(f"bench: {stage} ({self.done} of {self.steps} steps done)", file=sys.stderr, flush=True)
        self.stage = stage

    def step(self, count: int = 1) -> None:
        """One step more is done."""
        self.done += count

    def finish(self) -> None:
        """Clear the bar."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
