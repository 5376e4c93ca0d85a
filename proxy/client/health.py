"""One judgement of the sidecar's health, for whoever asks: SIDECAR HEALTH, INFO, an HTTP endpoint.

*Alive* means that the loop turns: who gets an answer at all knows it. *Ready* means that commands of clients
can be answered usefully: their listeners are open; Redis is there, or what was read from it may be served
stale; memory is warm, or has had its time for that; and nobody has asked clients to go elsewhere (draining).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.client.dispatch import link_protocol
from proxy.resp.downgrade import Shape
from proxy.resp.errors import UpstreamRefused
from proxy.tier.shelf import Shelf
from proxy.upstream.link import LinkKey
from proxy.upstream.shared import LinkState, SharedLink

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.spaces import Space


@dataclass(frozen=True, slots=True)
class Health:
    """What `judge` found; times in unix seconds, 0 where there is none."""

    alive: bool
    ready: bool
    upstream: str
    """up, connecting, silent, down, refused or closed."""
    breaker: str
    """closed, open or half-open."""
    breaker_failures: int
    breaker_since: int
    serving: str
    """What memory serves: fresh or stale entries, or nothing."""
    stale_since: int
    draining: bool
    """Whether new clients had better go elsewhere; those who are here are served, and so are new ones."""
    reasons: tuple[str, ...]
    """Why it is not ready, or serves stale entries; none if all is well."""

    @property
    def why(self) -> str:
        """The reasons, for a person."""
        return "; ".join(self.reasons)

    def fields(self) -> dict[str, object]:
        """By name, as SIDECAR HEALTH shows them: yes and no for truth."""
        shown = {name: getattr(self, name) for name in SHOWN}
        return {
            name: ("yes" if value else "no") if isinstance(value, bool) else value
            for name, value in shown.items()
        }


SHOWN = tuple(name for name in (*Health.__slots__, "why") if name != "reasons")
"""What there is to show of a judgement, in this order."""


def judge(clients: Clients, space: Space | None = None) -> Health:
    """Judge by the link and the shelves that serve a space, and by the breaker.

    None: by the link that serves clients who have said nothing yet, and by all shelves.
    """
    breaker = clients.links.breaker
    link = _link_of(clients, space) if space is not None else _main(clients)
    serving, since = _memory(clients, space or clients.spaces.start)
    upstream = status(link)
    warm = clients.warm()
    useful = upstream == "up" or serving == "stale"
    reasons = [] if clients.listening else ["clients are not listened to yet, or not any more"]
    if clients.draining:
        reasons.append("draining: clients are to go elsewhere")
    if upstream != "up":
        reasons.append(_why(link))
    elif breaker.open and breaker.error is not None:
        reasons.append(str(breaker.explain(breaker.error)).removeprefix("ERR pannier: "))
    if not warm:
        reasons.append("memory is still being warmed (INFO sidecar says how far it is)")
    return Health(
        alive=True,
        ready=useful and warm and clients.listening and not clients.draining,
        upstream=upstream,
        breaker=breaker.state.value,
        breaker_failures=breaker.failures,
        breaker_since=_unix(breaker.since) if breaker.open else 0,
        serving=serving,
        stale_since=since,
        draining=clients.draining,
        reasons=tuple(reasons),
    )


def _why(link: SharedLink | None) -> str:
    """What is wrong with a link, in a few words."""
    if link is None:
        return "closed"
    error = link.refusal
    if link.mute:
        error = link.breaker.explain(link.connector.lost(f"has not answered for {link.mute:.0f} s"))
    return str(error).removeprefix("ERR pannier: ")


def outage_fields(clients: Clients, space: Space) -> dict[str, object]:
    """What INFO and SIDECAR STATS say about an outage, as it concerns a space."""
    breaker = clients.links.breaker
    serving, since = _memory(clients, space)
    return {
        "serving": serving,
        "stale_since": since,
        "stale_for_seconds": max(0, int(time.time()) - since) if since else 0,
        "breaker": breaker.state.value,
        "breaker_failures": breaker.failures,
        "breaker_since": _unix(breaker.since) if breaker.open else 0,
    }


def status(link: SharedLink | None) -> str:
    """One word for what a shared link does."""
    if link is None:
        return "closed"
    if link.state is LinkState.DOWN and isinstance(link.error, UpstreamRefused):
        return "refused"
    if link.mute:
        return "silent"
    return {LinkState.READY: "up", LinkState.FULL: "up"}.get(link.state, link.state.name.lower())


def _main(clients: Clients) -> SharedLink | None:
    protocol = link_protocol(Shape.PLAIN, 2, clients.tier is not None)
    key = LinkKey(clients.identity, clients.database, protocol, clients.spaces.start.name)
    return clients.links.shared.get(key)


def _link_of(clients: Clients, space: Space) -> SharedLink | None:
    """A shared link that serves a space; the main one if nobody is there who would need one."""
    links = clients.links.shared.items()
    return next((link for key, link in links if key.space == space.name and link.tracking), _main(clients))


def _memory(clients: Clients, space: Space) -> tuple[str, int]:
    """What the shelves of a space serve (for the one without a namespace: all shelves), and since when the
    first of them has been stale (unix seconds)."""
    if clients.tier is None:
        return "nothing", 0
    found = list(clients.tier.shelves.values())
    if space is not clients.spaces.start:
        found = [shelf for shelf in found if shelf.account is space.account]
    words = {_serving(shelf) for shelf in found}
    since = [shelf.stale.since for shelf in found if shelf.stale.since is not None]
    word = next((word for word in ("stale", "fresh") if word in words), "nothing")
    return word, _unix(min(since)) if since else 0


def _serving(shelf: Shelf) -> str:
    if not shelf.vouch(time.monotonic()):
        return "nothing"
    if shelf.stale.since is None:
        return "fresh"
    return "stale" if shelf.entries else "nothing"


def _unix(moment: float) -> int:
    """A monotonic time in unix seconds."""
    return round(time.time() - (time.monotonic() - moment))
