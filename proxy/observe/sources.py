"""What the administration looks at: the parts of a running sidecar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.client.clients import Clients
from proxy.client.spaces import Space
from proxy.settings import Settings
from proxy.upstream.canary import Canary
from proxy.upstream.link import LinkKey
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import SharedLink

if TYPE_CHECKING:
    from proxy.bus import Bus


@dataclass(slots=True)
class Sources:
    """Made by the sidecar, which fills in what it makes later."""

    settings: Settings
    """Those in force."""
    clients: Clients
    links: LinkPool
    main: LinkKey
    """Which link serves who has said nothing yet."""
    started: float
    """When the sidecar began (monotonic seconds)."""
    stats: Callable[[Space], dict[str, object]]
    """What SIDECAR STATS says to who is in a space."""
    bus: Bus | None = None
    canary: Canary | None = None

    def link(self, space: Space) -> SharedLink | None:
        """A shared link over which what concerns a space may be said; None: there is none."""
        shared = self.links.shared
        for key, link in shared.items():
            if key.space == space.name and link.tracking is not None:
                return link
        return shared.get(self.main)
