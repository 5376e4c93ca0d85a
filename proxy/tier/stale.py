"""The state of a shelf whose link is broken or silent, where the operator has chosen to serve stale entries.

A shelf is *stale* from the moment nobody vouches for its entries any more. Two things begin it, and end
differently:

- The link is lost, or the bus, if that is what kept the shelf true: the promise is *broken*. Changes may have
  been told to nobody, so no entry ever becomes fresh again. The shelf is emptied before a new connection is
  used for anything.
- Redis owes the answer to a heartbeat and the coherence gate has closed: the link is *silent*. Should the
  same connection speak again, every change meanwhile stands in its stream before the answer to a heartbeat
  asked since, and has been taken when that answer is seen: the shelf is fresh again, less what has changed.

While a shelf is stale, nothing is fetched for it, what was being fetched is not kept, and whatever still
passes drops keys as ever. An entry ends at its own deadline all the same.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from proxy.events import fields

if TYPE_CHECKING:
    from proxy.tier.tier import Account

log = logging.getLogger("pannier.tier")


class Staleness:
    """Since when a shelf is stale, and whether for good."""

    __slots__ = ("_account", "broken", "since")

    def __init__(self, account: Account) -> None:
        self.since: float | None = None
        """When it began (monotonic seconds); None: the shelf is fresh, or serves nothing anyhow."""
        self.broken = False
        """Whether what is in the shelf can never be vouched for again; until it is emptied."""
        self._account = account

    def begin(self, since: float) -> None:
        """Be stale, unless it is so already."""
        if self.since is None:
            self.since = since
            log.warning(
                "Redis is away: what memory holds is served stale from now on", extra=fields("stale_began")
            )
            self._account.stale_begins()

    def end(self) -> None:
        """Be stale no longer."""
        if self.since is not None:
            self.since = None
            log.info("nothing is served stale any more", extra=fields("stale_ended"))
            self._account.stale_ends()
