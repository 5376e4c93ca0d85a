"""How a Pannier here would hear of changes: by Redis' tracking, by the eviction bus, or not."""

from __future__ import annotations

import asyncio

from proxy.preflight.rights import Seat, remedy
from proxy.preflight.steps import Steps, refusal
from proxy.preflight.talk import Talk
from proxy.resp.errors import UpstreamLost
from proxy.resp.eviction import Eviction, all_channels
from proxy.resp.tracking import Mode
from proxy.settings import Settings
from proxy.upstream.canary import Canary
from proxy.upstream.link import LinkKey
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import LinkState, SharedLink


async def try_tracking(
    steps: Steps, links: LinkPool, key: LinkKey, seat: Seat, settings: Settings, user: str
) -> Mode:
    """Have a shared link go down the ladder as `run` does, and see an invalidation come; the rung."""
    link = links.attach(key)
    try:
        async with asyncio.timeout(links.connector.timeout):
            await link.settled()
            if link.state is not LinkState.DOWN and link.tracking is not None:
                await link.tracking.settled.wait()
    except TimeoutError:
        pass
    tracking = link.tracking
    if tracking is None or link.state is not LinkState.READY or not tracking.settled.is_set():
        down = link.state is LinkState.DOWN
        why = str(link.error) if down else "Redis did not say in time whether it tracks"
        cure = "mend what it says; run Pannier with --log-level debug to see more"
        steps.fails(f"{seat.title}tracking", why, cure)
        return Mode.OFF
    _judge_rung(steps, seat, settings, tracking.mode, tracking.reason, user)
    if tracking.mode in (Mode.OPTIN, Mode.DEFAULT, Mode.BCAST):
        await _send_round(steps, links, link, seat, settings, user)
    return tracking.mode


def _judge_rung(steps: Steps, seat: Seat, settings: Settings, mode: Mode, reason: str, user: str) -> None:
    name = f"{seat.title}tracking"
    cure = f"ACL SETUSER {user} +client|tracking +client|caching (Redis 6: +client)"
    if "RESP3" in reason:
        cure = "see the step protocol: tracking needs RESP3"
    elif "unknown" in reason.lower():
        cure = "use a Redis that has CLIENT TRACKING: 6.0 and newer; managed ones vary"
    if mode is Mode.OFF:
        found = f"off, so nothing is served from memory: {reason}"
        steps.fails(name, found, f"{cure}; or say tracking = off")
    elif mode is Mode.BUS:
        found = (
            "bus: only Panniers tell of changes; what is written past them is not seen for l1_ttl_untracked"
        )
        steps.warns(name, f"{found}: {reason}", cure)
    elif mode is Mode.OPTIN or (mode is Mode.BCAST and settings.tracking == "bcast"):
        steps.passes(name, f"{mode.label}: {reason}")
    else:
        does = "tracks all that is read" if mode is Mode.DEFAULT else "tells of every change of any key"
        steps.warns(name, f"{mode.label}, which costs Redis more (it {does}): {reason}", cure)


async def _send_round(
    steps: Steps, links: LinkPool, link: SharedLink, seat: Seat, settings: Settings, user: str
) -> None:
    """Track a key, set and delete it on another connection, and wait for the invalidation."""
    canary = Canary(links, link, settings.canary_interval, settings.coherence_timeout, seat.prefix)
    await canary.measure()
    name = f"{seat.title}invalidation"
    if canary.lags:
        steps.passes(name, f"came {canary.lags[0] * 1000:.2f} ms after the write")
    elif canary.lost:
        steps.fails(
            name, f"none came within {settings.coherence_timeout:g} s of a write",
            "see whether something between here and Redis drops pushes; or say tracking = off",
        )  # fmt: skip
    else:
        cure = remedy(canary.trouble, user, "set +del +exists +multi +exec", seat.prefix)
        steps.warns(name, f"not tried, as the key for it cannot be written: {canary.trouble}", cure)


class Listener:
    """Who hears the eviction bus, as `run` does: as the user of upstream, in RESP2."""

    def __init__(self, talk: Talk, channel: str) -> None:
        self._talk = talk
        self._channel = channel
        self.user = talk.user
        self.refusal = ""
        """Why nothing is heard; empty if it is."""
        self.in_part = ""
        """Why only some namespaces' channels are; empty if all are, or no more are wanted."""

    async def subscribe(self, names: list[str], everything: bool) -> None:
        """Listen to the channels of some namespaces, or if possible to all. Raises UpstreamLost."""
        if everything:
            self.in_part = refusal(await self._talk.ask("PSUBSCRIBE", all_channels(self._channel)))
            if not self.in_part:
                return
        channels = [self._channel + name for name in names]
        reply = await self._talk.ask("SUBSCRIBE", *channels)
        self.refusal = refusal(reply)
        for _ in channels[1:] if not self.refusal else ():
            await self._talk.next("SUBSCRIBE")

    async def hears(self, data: bytes) -> bool:
        """Whether a message comes that has just been published."""
        try:
            while True:
                message = await self._talk.next("the subscription")
                if message[-1] == data:  # otherwise it is somebody else's
                    return True
        except UpstreamLost:
            return False


async def try_bus(
    steps: Steps, talk: Talk, listener: Listener, seat: Seat, settings: Settings, mode: Mode
) -> None:
    """Publish a message that names nothing, as clients of the seat do, and hear it."""
    name = f"{seat.title}bus"
    prefix = settings.evict_channel
    channel = prefix + seat.name
    say = steps.fails if mode is Mode.BUS else steps.warns
    if listener.refusal:
        say(
            name, f"{listener.refusal}; so nobody here hears what other Panniers say is to be forgotten",
            f"{remedy(listener.refusal, listener.user, 'subscribe', channel=prefix)}; or say broadcast = off",
        )  # fmt: skip
    elif listener.in_part:
        steps.warns(
            name, f"{listener.in_part}; so what is forgotten in namespaces is not heard by who has none, or "
            "in those of tenants that come later",
            remedy(listener.in_part, listener.user, "psubscribe", channel=prefix),
        )  # fmt: skip
    message = Eviction(why=f"preflight {seat.key().hex()}").encode()
    why = refusal(await talk.ask("PUBLISH", channel, message))
    if why and talk.user != listener.user:
        steps.passes(name, f"{why}; so Pannier's own user, {listener.user}, publishes in its stead")
    elif why:
        say(
            name, f"{why}; so nobody hears what is to be forgotten by SIDECAR INVALIDATE and the like",
            f"{remedy(why, talk.user, 'publish', channel=prefix)}; or say broadcast = off",
        )  # fmt: skip
    elif not listener.refusal:
        if await listener.hears(message):
            if not listener.in_part:
                steps.passes(name, f"a message on {channel} is published and heard")
        else:
            found = f"a message on {channel} is published, but not heard"
            say(
                name,
                found,
                "see whether upstream is one Redis: what is published at one is not heard at others",
            )
