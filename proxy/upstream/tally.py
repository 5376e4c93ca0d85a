"""What is counted about one Redis, over all links to it."""

from __future__ import annotations

from proxy.histogram import Histogram


class Tally:
    """Counts since the start; whoever knows of something counts it here."""

    def __init__(self) -> None:
        self.round_trips = Histogram()
        """Seconds that Redis took to answer heartbeats."""
        self.unserved = 0
        """Commands answered with an error because Redis could not be asked or did not answer."""
        self.reconnects = 0
        """Connections of shared links that were lost."""
