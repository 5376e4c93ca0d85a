"""The eviction bus: sidecars of one Redis tell each other over pub/sub what to forget (`resp.eviction`).

There is a channel for each namespace; who keeps keys by their whole names hears all of them. With tracking,
Redis tells of writes; the bus carries what Redis cannot tell: invalidations by command or by an application,
patterns, SWAPDB. Where Redis does not track, it carries every write as well (`client.telling`).

Messages are collected for a few milliseconds and published over the link that carried what they are about,
behind it, so that Redis has carried it out when a peer hears of it. If the user of that link may not publish,
Pannier's own does, once Redis has got that far. A connection of its own listens (`upstream.subscriber`). What
may have been missed (a gap in a sender's numbers, something published between two subscriptions: `ledger`) is
dropped: everything in the namespace, since nobody knows what it named.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from proxy.events import fields, without_arguments
from proxy.histogram import Histogram
from proxy.ledger import Counting, Ledger
from proxy.resp import encode
from proxy.resp.errors import UpstreamError, UpstreamLost, UpstreamRefused
from proxy.resp.eviction import BadMessage, Eviction, UnknownVersion, all_channels
from proxy.resp.globs import LONGEST_PATTERNS, compile_globs
from proxy.resp.namespace import Namespace
from proxy.resp.tracking import Mode
from proxy.tier.matching import SLICE, drop_keys, drop_matching
from proxy.tier.shelf import Shelf
from proxy.tier.tier import Source, Tier
from proxy.upstream.caller import Hearing
from proxy.upstream.canary import quantile
from proxy.upstream.shared import SharedLink
from proxy.upstream.subscriber import Subscriber

log = logging.getLogger("pannier.bus")

_COLLECT = 0.002
"""Seconds for which what is to be told is collected."""
_MOST_KEYS = 500
_MOST_BYTES = 100_000
"""Names of one message: written in JSON they may take six times as much."""
_LARGE = 32_768
"""Bytes of a message from which it is read beside: it takes longer than clients should wait."""
_MOST_SENDERS = 10_000
_MOST_STRANGERS = 1000
"""Channels of namespaces that are not served here, of whose senders something is remembered."""
NOBODY = ":nobody:"
"""What the name of a channel has behind `evict_channel` on which nothing is said."""
_SAMPLES = 1000
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
"""Seconds before it is tried again to listen: twice as long after each failure in a row."""
_SILENT = 3
"""Heartbeats without an answer from which on INFO says so."""
_TRIES = 8
"""How often the counts of what was published and heard are compared before the worst is assumed."""
_LOOK = 0.01
_RECOUNT, _RECOUNT_SOON = 10, 3
"""Heartbeats between two counts, and if the last one did not come out even."""
_PING = encode.request("PING")
_COUNTED = "counted"
"""What the sign of life behind a count says."""


class Channel:
    """One namespace's channel, and what is known of its senders."""

    def __init__(self, name: str, namespace: Namespace | None, stranger: bool = False) -> None:
        self.name = name
        self.namespace = namespace
        self.prefix = namespace.prefix if namespace is not None else b""
        self.stranger = stranger
        """Whether the namespace is not served here: its keys may be kept by their whole names."""
        self.heard: dict[str, int] = {}
        """The number of the last message of each sender."""
        self.keys: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.everything = False
        self.why = ""
        self.link: SharedLink | None = None
        """Over which what is collected is to be published."""

    def pattern(self, pattern: bytes) -> bytes:
        """A pattern of keys as Redis knows them."""
        return pattern if self.namespace is None else self.namespace.pattern + pattern


class Bus:
    """Publishes what this sidecar has to tell, and does what others say."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Subscriber]],
        tier: Tier | None,
        namespaces: Iterable[Namespace | None],
        prefix: str,
        counting: Counting,
        heartbeat: float = 1.0,
        patience: float = 30.0,
        whole_names: bool = False,
        own_link: Callable[[], SharedLink | None] = lambda: None,
    ) -> None:
        """`connect`: makes a connection to listen on.
        `whole_names`: there may be clients of no namespace, who call keys of any by their whole names.
        `own_link`: the shared link of Pannier's own user."""
        self.channels: dict[bytes, Channel] = {}
        for namespace in (None, *namespaces):
            name = namespace.name if namespace is not None else ""
            self.channels[name.encode()] = Channel(prefix + name, namespace)
        # What is counted.
        self.published = self.received = self.own = 0
        self.unknown = self.malformed = self.gaps = self.subscriptions = self.missed = 0
        self._unheard = self._unpublished = ""
        """Why Redis does not let us subscribe, and publish; empty if it does."""
        self.lags: deque[float] = deque(maxlen=_SAMPLES)
        """Seconds from publishing a message to hearing it: the latest."""
        self.all_lags = Histogram()
        """All of them."""
        self._by_name = {channel.name: channel for channel in self.channels.values()}
        self._strangers: dict[str, Channel] = {}
        """Channels of namespaces that are not served here."""
        self._prefix = prefix
        self._all = whole_names
        """Whether all channels are listened to."""
        self._own_link = own_link
        self._anew = False
        """Whether to subscribe anew: there is another channel."""
        self._id = os.urandom(8).hex()
        self._heartbeat = heartbeat
        self._patience = max(patience, _SILENT * heartbeat)
        """Seconds of silence after which the connection is given up."""
        self._answered = 0.0
        """When Redis was asked last what it has answered (monotonic seconds)."""
        self._unanswered = 0
        """Questions since then."""
        self._counting = counting
        self._ledger = Ledger(counting.count)
        self._counts = False
        """Whether Redis counts what is published."""
        self._recount_at = 0.0
        """When the next count is due (monotonic seconds)."""
        self._doubts = 0
        """How often it may still be tried to find out whether something was missed; 0: that is known."""
        self._proof: asyncio.Future[None] | None = None
        self._connect = connect
        self._tier = tier
        """What there is to forget; None: nothing is kept here, so nobody is listened to."""
        self._waiting: dict[Channel, None] = {}
        self._under_way: dict[tuple[str, str, int], float] = {}
        """When messages were published that have not come back yet."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def refusal(self) -> str:
        """Why Redis does not let us subscribe or publish; empty if it does."""
        return self._unheard or self._unpublished

    @property
    def up(self) -> bool:
        """Whether it is heard, and may be spoken on."""
        return self.subscriptions > 0 and not self.refusal

    def lag(self, fraction: float) -> float:
        """A quantile of the lags, in seconds; 0 if there is none."""
        return quantile(self.lags, fraction)

    @property
    def status(self) -> str:
        """`up`, or what is wrong."""
        if self.refusal:
            return self.refusal
        if self._tier is None:
            return "publishing"
        if not self.subscriptions:
            return "connecting"
        if self._doubts:
            return "finding out whether something was missed"
        silent = time.monotonic() - self._answered
        return "up" if silent < _SILENT * self._heartbeat else f"not heard for {silent:.0f} s"

    def fields(self) -> dict[str, object]:
        """What it does, for INFO and SIDECAR STATS."""
        return {
            "bus_status": self.status,
            "bus_published": self.published,
            "bus_received": self.received,
            "bus_own": self.own,
            "bus_unknown_version": self.unknown,
            "bus_malformed": self.malformed,
            "bus_gaps": self.gaps,
            "bus_subscriptions": self.subscriptions,
            "bus_missed": self.missed,
            "bus_accounted": int(self._counts and self._ledger.even),
            "bus_lag_samples": len(self.lags),
            "bus_lag_p50_us": round(self.lag(0.5) * 1e6),
            "bus_lag_p99_us": round(self.lag(0.99) * 1e6),
            "bus_lag_max_us": round(self.lag(1.0) * 1e6),
        }

    # --- telling

    def add(self, namespace: Namespace | None) -> None:
        """Speak and hear on a namespace's channel as well."""
        name = namespace.name if namespace is not None else ""
        if name.encode() not in self.channels:
            channel = self.channels[name.encode()] = Channel(self._prefix + name, namespace)
            self._by_name[channel.name] = channel
            self._strangers.pop(channel.name, None)
            self._anew = not self._all

    def tell(
        self,
        namespace: Namespace | None,
        link: SharedLink,
        why: str,
        keys: Iterable[bytes] = (),
        patterns: Iterable[bytes] = (),
        everything: bool = False,
    ) -> None:
        """Have the peers forget keys, named as Redis knows them, patterns as clients write them, or all."""
        channel = self.channels[namespace.name.encode() if namespace is not None else b""]
        if channel.link is not link:
            self._publish(channel)  # in the order of the link that carried it
        channel.link, channel.why = link, why
        size = len(channel.prefix)
        channel.keys.update(dict.fromkeys([key[size:] for key in keys]))
        channel.patterns.update(dict.fromkeys(patterns))
        channel.everything = channel.everything or everything
        self._waiting[channel] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COLLECT, self._publish_all)

    def _publish_all(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for channel in waiting:
            self._publish(channel)

    def _publish(self, channel: Channel) -> None:
        keys, patterns, everything = channel.keys, channel.patterns, channel.everything
        link, channel.link = channel.link, None
        channel.keys, channel.patterns, channel.everything = {}, {}, False
        if link is None or not (keys or patterns or everything):
            return
        messages = [Eviction(everything=True)]
        if not everything:
            messages = [Eviction(patterns=some) for some in _portions(patterns, LONGEST_PATTERNS)]
            messages += [Eviction(keys=some) for some in _portions(keys)]
        for message in messages:
            number = link.published[channel.name] = link.published.get(channel.name, 0) + 1
            sender = f"{self._id}-{id(link):x}"
            data = dataclasses.replace(message, why=channel.why, sender=sender, number=number).encode()
            request = encode.request("PUBLISH", channel.name, data)
            hearing = Hearing(partial(self.answered, link, request))
            link.submit(hearing, 1, request if link.may_publish else _PING)
            if len(self._under_way) < _SAMPLES:
                self._under_way[channel.name, sender, number] = time.monotonic()
            self.published += 1

    def answered(self, link: SharedLink, request: bytes, reply: bytes) -> None:
        """Hear whether a message could be published; if its link's user may not, Pannier's own does."""
        own = self._own_link()
        if link is not own and own is not None and (not link.may_publish or reply.startswith(b"-NOPERM")):
            link.may_publish = False
            own.submit(Hearing(partial(self.answered, own, request)), 1, request)
            return
        if not reply.startswith(b"-"):
            self._unpublished = ""
            return
        why = without_arguments(reply[1:-2].decode("utf-8", "replace"))
        if why != self._unpublished:
            about = fields("bus_unpublished", reason=why)
            log.warning("an eviction message could not be published: %s", why, extra=about)
        self._unpublished = why

    # --- hearing

    async def run(self) -> None:
        """Listen for ever, over reconnections."""
        pause = _SHORTEST_PAUSE
        while True:
            begun = self.subscriptions
            try:
                await self._listen()
            except Exception as error:
                if not isinstance(error, UpstreamError):
                    log.exception("internal error on the eviction bus", extra=fields("internal_error"))
                why = without_arguments(str(error).removeprefix("ERR pannier: "))
                if why != self._unheard:
                    about = fields("bus_lost", reason=why)
                    log.warning("the eviction bus is not heard: %s; trying again", why, extra=about)
                self._unheard = why
            if self.subscriptions > begun:
                pause = _SHORTEST_PAUSE  # it was heard: this is the first failure after that
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Subscribe, and follow what is said. Raises UpstreamError when that ends."""
        link = await self._connect()
        try:
            if self._all:
                link.say("PSUBSCRIBE", all_channels(self._prefix))
            else:
                link.say("SUBSCRIBE", *self._by_name)
            await self._follow(link)
        except UpstreamRefused as error:
            if not (self._all and str(error).startswith("NOPERM")):
                raise
            self._all = False
            log.warning(
                "only the eviction bus of the namespaces served here is heard: Redis does not let us "
                "PSUBSCRIBE %s*", self._prefix, extra=fields("bus_in_part", pattern=f"{self._prefix}*"),
            )  # fmt: skip
        finally:
            self._lose()
            link.close()

    async def _follow(self, link: Subscriber) -> None:
        """Take what comes over one connection until there is another channel to be heard.

        Raises UpstreamLost when Redis has been silent for too long. Silence alone loses nothing: what is
        published meanwhile comes when it ends, before its sign of life.
        """
        missing = self._subscriptions
        self._anew = False
        asked = self._answered = time.monotonic()
        self._unanswered = 0
        while not self._anew:
            # Both: a process that had no time asks late, and finds the answers behind that.
            if asked - self._answered >= self._patience and self._unanswered >= _SILENT:
                raise UpstreamLost(f"no answer for {self._patience:g} s")
            if self._ledger.due:
                link.say("PING", _COUNTED)
            wait = asked + self._heartbeat - time.monotonic()
            pause = min(wait, _LOOK) if self._ledger.waits else wait
            message = await link.hear(pause) if wait > 0 else None
            if message is None:
                if wait <= 0:
                    asked = time.monotonic()
                    self._unanswered += 1
                    link.say("PING", f"{asked:.6f}")
                    self._recount(asked)
            elif message[0] in (b"subscribe", b"psubscribe"):
                missing -= 1
                if not missing:
                    self._begin()
                    link.say("PING", f"{time.monotonic():.6f}")
            elif message[0] == b"pong":
                self._take_pong(_text(message[-1]))
            elif message[0] in (b"message", b"pmessage"):
                self._ledger.heard += 1
                await self._hear(_text(message[-2]).decode("utf-8", "replace"), _text(message[-1]))

    @property
    def _subscriptions(self) -> int:
        """How many there are on one connection."""
        return 1 if self._all else len(self._by_name)

    def _take_pong(self, data: bytes) -> None:
        """Take a sign of life: to a heartbeat, or behind Redis' count of what was published."""
        if data != _COUNTED.encode():
            self._answered, self._unanswered = float(data), 0
            self._vouch(self._answered)
            return
        complete = self._ledger.settled()
        if complete:
            self._recount_at = time.monotonic() + _RECOUNT * self._heartbeat
        if not self._doubts:
            return
        if complete is None:
            self._doubts -= 1  # somebody publishes just now, or Redis does not tell
            if self._doubts:
                self._ledger.ask()
                return
        self._doubts = 0
        if complete:
            about = fields("bus_heard", subscriptions=self.subscriptions, missed=False)
            log.info("the eviction bus is heard again, and nothing was missed: all stays", extra=about)
        else:
            self._missed()

    def _recount(self, now: float) -> None:
        """Find out now and then how much has been published and heard, for when the connection breaks."""
        if now > self._recount_at and not self._doubts and not self._ledger.waits:
            self._recount_at = now + _RECOUNT_SOON * self._heartbeat
            self._ledger.ask()

    def _alone(self) -> list[Shelf]:
        """The shelves that nothing but the bus keeps true."""
        shelves = self._tier.shelves.values() if self._tier is not None else ()
        return [shelf for shelf in shelves if shelf.mode is Mode.BUS]

    def _vouch(self, asked: float) -> None:
        """Everything published up to a moment has been heard."""
        for shelf in self._alone():
            shelf.heard = asked

    def _lose(self) -> None:
        """Nothing more is heard: what the bus alone keeps true is true no longer."""
        self._ledger.drop()
        for shelf in self._alone():
            shelf.bus_lost()

    def _begin(self) -> None:
        """A subscription begins: what was said before it has been missed, if anything was said."""
        self.subscriptions += 1
        self._unheard = self._unpublished = ""
        self._under_way.clear()
        if self.subscriptions == 1:
            about = fields("bus_heard", subscriptions=self.subscriptions)
            log.debug("the eviction bus is heard", extra=about)
            self._clear()
            self._proof = asyncio.ensure_future(self._prove())
        elif self._counts and not self._alone():
            self._doubts = _TRIES
            self._ledger.ask()
        else:
            self._missed()

    async def _prove(self) -> None:
        """Find out whether Redis' counts can be relied upon."""
        self._counts = await self._counting.works()

    def _missed(self) -> None:
        """Something was said, or may have been, while nobody listened."""
        about = fields("bus_heard", subscriptions=self.subscriptions, missed=True)
        log.info("the eviction bus is heard again: everything kept is dropped", extra=about)
        self.missed += 1
        for channel in self.channels.values():
            channel.heard.clear()
        self._clear()

    def _clear(self, prefix: bytes = b"") -> None:
        """Drop what shows keys with a prefix."""
        if self._tier is not None:
            self._tier.clear(prefix, Source.BUS)

    async def _hear(self, name: str, data: bytes) -> None:
        channel = self._by_name.get(name) or self._stranger(name)
        if channel is None:
            return
        try:
            if len(data) > _LARGE:
                message = await asyncio.to_thread(Eviction.decode, data)
            else:
                message = Eviction.decode(data)
        except UnknownVersion:
            self.unknown += 1
            return
        except BadMessage as error:
            self.malformed += 1
            log.debug("a message on %s %s", name, error, extra=fields("bus_malformed", channel=name))
            return
        if message.sender.startswith(self._id):
            self.own += 1
            published = self._under_way.pop((name, message.sender, message.number), None)
            if published is not None:
                lag = time.monotonic() - published
                self.lags.append(lag)
                self.all_lags.observe(lag)
            return
        self.received += 1
        if message.sender:
            last = channel.heard.pop(message.sender, None)
            channel.heard[message.sender] = message.number
            if len(channel.heard) > _MOST_SENDERS:
                del channel.heard[next(iter(channel.heard))]
            if last is not None and message.number != last + 1:
                if self._doubts:
                    self._doubts = 0
                    self._missed()
                    channel.heard[message.sender] = message.number
                    return
                self.gaps += 1
                log.warning(
                    "messages of the eviction bus were lost on %s: what is kept under it is dropped", name,
                    extra=fields("bus_gap", channel=name, missing=message.number - last - 1),
                )  # fmt: skip
                await self._forget(channel, Eviction(everything=True))
                return
        await self._forget(channel, message)

    def _stranger(self, name: str) -> Channel | None:
        """The channel of a namespace that is not served here."""
        if not name.startswith(self._prefix) or name.startswith(self._prefix + NOBODY):
            return None
        channel = self._strangers.pop(name, None)
        if channel is None:
            channel = Channel(name, Namespace(name.removeprefix(self._prefix)), stranger=True)
        self._strangers[name] = channel
        if len(self._strangers) > _MOST_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        return channel

    async def _forget(self, channel: Channel, message: Eviction) -> None:
        tier = self._tier
        if tier is None:
            return
        patterns = message.patterns
        if message.everything or sum(map(len, patterns)) > LONGEST_PATTERNS:
            if not channel.stranger:
                tier.clear(channel.prefix, Source.BUS)
                return
            patterns = (b"*",)
        for _ in drop_keys(tier, message.keys, channel.prefix, Source.BUS):
            if len(message.keys) > SLICE:
                await asyncio.sleep(0)
        if patterns:
            pattern = compile_globs([channel.pattern(pattern) for pattern in patterns])
            for _ in drop_matching(tier, pattern, channel.prefix, Source.BUS):
                await asyncio.sleep(0)


def _portions(names: Iterable[bytes], most: int = _MOST_BYTES) -> list[tuple[bytes, ...]]:
    """Names in as many messages as their number and size ask for."""
    portions: list[list[bytes]] = []
    size = most
    for name in names:
        if not portions or size + len(name) > most or len(portions[-1]) >= _MOST_KEYS:
            portions.append([])
            size = 0
        portions[-1].append(name)
        size += len(name)
    return [tuple(portion) for portion in portions]


def _text(data: bytes | int | None) -> bytes:
    """A part of a message that is a text."""
    return data if isinstance(data, bytes) else b""
