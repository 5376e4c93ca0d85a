"""When a connection is lost: which of the commands under way are sent again, and which are given up."""

from __future__ import annotations

from typing import Protocol

from proxy.upstream.caller import Caller, Keys

Entry = tuple[Caller, int, bytes, Keys, float]
"""An entry of the FIFO: whose requests, how many, their bytes, the keys to settle at the reply, and when they
came (monotonic seconds)."""


class Run(bytes):
    """The requests of a run whose turn it was when the connection was lost, sent for the second time.

    They may be what Redis cannot bear: lost again in that place, they are given up.
    """


class Classifier(Protocol):
    """What the link must know about requests, once, when a connection is lost."""

    def repeatable(self, requests: bytes) -> list[tuple[bytes, bool]]:
        """Split a run into its requests, each with whether repeating it changes nothing."""


def doomed(entries: list[Entry], parts: list[list[tuple[bytes, bool]]]) -> set[object]:
    """Who must be answered at once, because something of theirs cannot be sent again.

    All that somebody waits for is then answered, or replies would change places; and so is, for the same
    reason, all that those wait for who share a flight with them.
    """
    found: set[object] = set()
    for place, (caller, _, requests, *_) in enumerate(entries):
        given_up = place == 0 and isinstance(requests, Run)
        if given_up or not all(read for _, read in parts[place]):
            found.update(caller.owners())
    groups = [set(owners) for caller, *_ in entries if len(owners := caller.owners()) > 1]
    grown = True
    while grown:
        before = len(found)
        for group in groups:
            if not found.isdisjoint(group):
                found |= group
        grown = len(found) > before
    return found
