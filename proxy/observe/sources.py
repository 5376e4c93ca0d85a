"""What the administration looks at: the parts of a running sidecar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.certificates import Certificates
from proxy.client.clients import Clients
from proxy.client.spaces import Space
from proxy.observe.looplag import LoopLag
from proxy.reload import Reloader
from proxy.settings import Settings
from proxy.upstream.canary import Canary
from proxy.upstream.link import LinkKey
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import SharedLink
from proxy.warming import Warming

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
    lag: LoopLag = field(default_factory=LoopLag)
    bus: Bus | None = None
    canary: Canary | None = None
    warming: Warming | None = None
    reloader: Reloader | None = None
    certificates: dict[str, Certificates] = field(default_factory=dict)
    """By the setting that names their file."""

    @property
    def main_link(self) -> SharedLink | None:
        """The link that serves who has said nothing yet."""
        return self.links.shared.get(self.main)

    def link(self, space: Space) -> SharedLink | None:
        """A shared link over which what concerns a space may be said; None: there is none."""
        for key, link in self.links.shared.items():
            if key.space == space.name and link.tracking is not None:
                return link
        return self.main_link
