"""Whether other sidecars are to be told of every write, with `broadcast = auto`.

They need not be where Redis tells them. Where it does not tell us, it does not tell them either: they are the
same users at the same Redis, so the bus is all that keeps anybody's memory true.
"""

from __future__ import annotations

from collections.abc import Collection

from proxy.resp.tracking import Mode
from proxy.upstream.shared import SharedLink


def needed(links: Collection[SharedLink]) -> bool:
    """Whether Redis refuses to track for some user of these links, or may be about to.

    Of a link that has never been connected it is taken for granted that the user gets what it got on others.
    """
    tracked = [(link.key.identity, link.tracking.latest) for link in links if link.tracking is not None]
    known = {identity for identity, latest in tracked if latest is not None}
    return any(latest is Mode.BUS or (latest is None and user not in known) for user, latest in tracked)
