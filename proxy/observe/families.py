"""Every metric: its name, type, labels, meaning, and where its figures come from.

All figures exist already, kept by whoever does what they are about; they are read when somebody asks, so that
a metric costs nothing while nobody does. docs/metrics.md says the same for users; a test keeps both equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

from proxy import __version__
from proxy.client import health
from proxy.client.spaces import Space
from proxy.histogram import Histogram
from proxy.observe.sources import Sources
from proxy.tier.classes import MOST, OTHER, UNNAMED, Share
from proxy.tier.tier import Account
from proxy.upstream.shared import SharedLink

Figure = float | Histogram
Sample = tuple[tuple[str, ...], Figure]
"""The labels' values, and the figure."""
Read = Callable[[Sources], Iterable[Sample]]

STATES = ("up", "connecting", "silent", "down", "refused", "closed")
"""What `client.health.status` says of a link."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, as it is called without the suffix that its type adds."""

    name: str
    kind: str
    """counter, gauge, histogram or info."""
    help: str
    labels: tuple[str, ...]
    read: Read
    group: str = ""
    """Under which heading it stands in docs/metrics.md."""

    @property
    def shown(self) -> str:
        """Its name as queries have it."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


# --- where figures come from


def _one(read: Callable[[Sources], Figure]) -> Read:
    """A single figure."""
    return lambda sources: [((), read(sources))]


def _maybe(read: Callable[[Sources], Figure | None]) -> Read:
    """A single figure, where there is one."""

    def found(sources: Sources) -> Iterator[Sample]:
        figure = read(sources)
        if figure is not None:
            yield (), figure

    return found


def _spaces(read: Callable[[Space], float | None]) -> Read:
    """A figure of each namespace."""

    def found(sources: Sources) -> Iterator[Sample]:
        for space in sources.clients.spaces:
            figure = read(space)
            if figure is not None:
                yield (space.name,), figure

    return found


def _accounts(read: Callable[[Account], float]) -> Read:
    """A figure of each namespace's part of memory."""
    return _spaces(lambda space: None if space.account is None else read(space.account))


def _of_account(name: str) -> Read:
    return _accounts(attrgetter(name))


def _of_bus(name: str) -> Read:
    return _maybe(lambda sources: None if sources.bus is None else float(getattr(sources.bus, name)))


_BY_SOURCE = {
    "push": "invalidated",
    "write": "overwritten",
    "bus": "told",
    "command": "commanded",
    "lost": "lost",
}


def _invalidations(sources: Sources) -> Iterator[Sample]:
    for space in sources.clients.spaces:
        if space.account is not None:
            for source, counter in _BY_SOURCE.items():
                yield (space.name, source), getattr(space.account, counter)


def _by_class(which: str) -> Read:
    """Hits or misses of each namespace by class."""

    def found(sources: Sources) -> Iterator[Sample]:
        for space in sources.clients.spaces:
            if space.account is not None:
                space.account.settle()
                share: Share = getattr(space.account.classes, which)
                yield from (((space.name, label), count) for label, count in share.by_class.items())

    return found


_BUS_KINDS = {
    "published": "published",
    "received": "received",
    "own": "own",
    "malformed": "malformed",
    "unknown_version": "unknown",
}


def _bus_messages(sources: Sources) -> Iterator[Sample]:
    if sources.bus is not None:
        for kind, counter in _BUS_KINDS.items():
            yield (kind,), getattr(sources.bus, counter)


def _states(sources: Sources) -> Iterator[Sample]:
    found = health.status(sources.main_link)
    for state in STATES:
        yield (state,), found == state


def _tracking(sources: Sources) -> Iterator[Sample]:
    link = sources.main_link
    mode = link.tracking.mode.label if link is not None and link.tracking is not None else "off"
    yield (mode,), 1


def _build(sources: Sources) -> Iterator[Sample]:
    link = sources.main_link
    yield (__version__, _redis_version(link)), 1


def _redis_version(link: SharedLink | None) -> str:
    version = link.hello.get(b"version", b"") if link is not None else b""
    return version.decode("ascii", "replace") if isinstance(version, bytes) else ""


def _links(sources: Sources) -> Iterator[Sample]:
    yield ("shared",), len(sources.links.shared)
    yield ("pinned",), len(sources.links.pinned)


def _limits(sources: Sources) -> Iterator[Sample]:
    """Each budget once: the common one as that of who has no namespace."""
    tier = sources.clients.tier
    if tier is None:
        return
    yield ("",), tier.common.max_memory
    for space in sources.clients.spaces:
        if space.name and space.account is not None and space.account.budget is not tier.common:
            yield (space.name,), space.account.budget.max_memory


def _observed(sources: Sources) -> Iterator[Sample]:
    """Of all shelves, by size of the memory imagined."""
    tier = sources.clients.tier
    saved: dict[int, int] = {}
    for shelf in tier.shelves.values() if tier is not None else ():
        for size, _, calls in shelf.ghost.report() if shelf.ghost is not None else ():
            saved[size] = saved.get(size, 0) + calls
    yield from (((str(size),), calls) for size, calls in saved.items())


def _observed_reads(sources: Sources) -> float | None:
    tier = sources.clients.tier
    ghosts = [shelf.ghost for shelf in tier.shelves.values()] if tier is not None else []
    reads = [ghost.reads for ghost in ghosts if ghost is not None]
    return sum(reads) if reads else None


# --- all of them

_SPACE = ("namespace",)
_CLASSES = (
    "A class is what a rule calls it, else the first part of the key's name up to a colon; "
    f"{UNNAMED}: no colon; {OTHER}: all after the first {MOST}. The sum is exact; the shares are estimates "
    "from a sample while there are more than about 1000 hits, or 256 misses, a second."
)

_READS = (
    Family(
        "pannier_hits", "counter", "Reads answered from memory. Exact.", _SPACE, _of_account("hits"),
    ),
    Family(
        "pannier_stale_hits", "counter",
        "Of these, reads answered while Redis was away (on_upstream_down = stale).",
        _SPACE, _of_account("stale_hits"),
    ),
    Family(
        "pannier_misses", "counter", "Reads looked up in memory and not found. Exact.",
        _SPACE, _of_account("misses"),
    ),
    Family(
        "pannier_class_hits", "counter", f"The hits by class. {_CLASSES}", ("namespace", "class"),
        _by_class("hits"),
    ),
    Family(
        "pannier_class_misses", "counter", f"The misses by class. {_CLASSES}", ("namespace", "class"),
        _by_class("misses"),
    ),
    Family(
        "pannier_coalesced_reads", "counter",
        "Of the misses, reads that waited for a fetch already under way: so many calls fewer for Redis.",
        _SPACE, _of_account("coalesced"),
    ),
    Family(
        "pannier_passed_reads", "counter",
        "Reads in pipelines that memory held, sent to Redis with their neighbours all the same.",
        _SPACE, _of_account("passed"),
    ),
    Family(
        "pannier_bypassed_commands", "counter",
        "Commands of connections that said SIDECAR BYPASS ON.",
        _SPACE, _spaces(attrgetter("bypassed")),
    ),
)  # fmt: skip
_MEMORY = (
    Family("pannier_entries", "gauge", "Replies kept in memory.", _SPACE, _of_account("entries")),
    Family(
        "pannier_memory_bytes", "gauge",
        "What the entries take, the overhead of their containers included.", _SPACE, _of_account("used"),
    ),
    Family(
        "pannier_memory_limit_bytes", "gauge",
        "What they may take (max_memory): of tenants with a share of their own, and of all others together, "
        "whose namespace is empty.", _SPACE, _limits,
    ),
    Family("pannier_fills", "counter", "Replies fetched and kept.", _SPACE, _of_account("fills")),
    Family(
        "pannier_evictions", "counter", "Entries dropped to make room.", _SPACE, _of_account("evicted")
    ),
    Family(
        "pannier_expirations", "counter", "Entries dropped because their time was over.",
        _SPACE, _of_account("expired"),
    ),
    Family(
        "pannier_invalidations", "counter",
        "Entries dropped because they might be out of date, by who said so: push (Redis), write (of a client "
        "here), bus (another Pannier or an application), command (SIDECAR INVALIDATE, FLUSH, or over HTTP), "
        "lost (the connection that kept them true was lost, or other rules came into force).",
        ("namespace", "source"), _invalidations,
    ),
    Family(
        "pannier_invalidation_messages", "counter", "Invalidation messages from Redis, whatever they "
        "dropped.", _SPACE, _of_account("pushes"),
    ),
    Family(
        "pannier_refills_engaged", "counter",
        "How often the refill governor began to govern, after much was dropped at once.",
        _SPACE, _of_account("governor.engaged"),
    ),
    Family(
        "pannier_refill_delays", "counter", "Reads that waited for their turn under the refill governor.",
        _SPACE, _of_account("governor.delayed"),
    ),
    Family(
        "pannier_verified_hits", "counter", "Hits compared with Redis (verify).",
        _SPACE, _of_account("verified"),
    ),
    Family(
        "pannier_verify_mismatches", "counter", "Of these, what was stale.",
        _SPACE, _of_account("mismatches"),
    ),
)  # fmt: skip
_CLIENTS = (
    Family(
        "pannier_commands", "counter", "Commands taken from clients, answered by whom ever.",
        _SPACE, _spaces(attrgetter("commands")),
    ),
    Family(
        "pannier_refused_commands", "counter",
        "Commands refused because a tenant was over its max_ops_per_second.",
        _SPACE, _spaces(attrgetter("refused")),
    ),
    Family(
        "pannier_connected_clients", "gauge", "Clients connected now.",
        _SPACE, _spaces(lambda space: len(space.sessions)),
    ),
    Family(
        "pannier_max_clients", "gauge", "How many there may be.", (),
        _one(lambda sources: sources.settings.max_clients),
    ),
    Family(
        "pannier_connections", "counter", "Connections admitted.", (),
        _one(lambda sources: sources.clients.received),
    ),
    Family(
        "pannier_rejected_connections", "counter", "Connections refused because of max_clients.", (),
        _one(lambda sources: sources.clients.rejected),
    ),
    Family(
        "pannier_killed_connections", "counter",
        "Connections closed because of a limit (client_timeout, output_buffer_limit and the like).", (),
        _one(lambda sources: sources.clients.killed),
    ),
    Family(
        "pannier_client_received_bytes", "counter",
        "Bytes received from clients over TCP, as the kernel counts them; not over unix sockets.", (),
        _one(lambda sources: sources.clients.volume.received),
    ),
    Family(
        "pannier_client_sent_bytes", "counter",
        "Bytes sent to clients over TCP and acknowledged, as the kernel counts them; not over unix sockets.",
        (), _one(lambda sources: sources.clients.volume.sent),
    ),
    Family(
        "pannier_sets", "counter",
        "Keys named by SET, SETEX, PSETEX, SETNX, GETSET, MSET, MSETNX. Exact up to 256 pipelines a second; "
        "of what comes beyond, one pipeline in 16 stands for all.", _SPACE,
        _spaces(attrgetter("writes.sets")),
    ),
    Family(
        "pannier_deletes", "counter",
        "Keys named by DEL, UNLINK, GETDEL. Exact as far as for sets.", _SPACE,
        _spaces(attrgetter("writes.deletes")),
    ),
    Family(
        "pannier_leases_granted", "counter", "Leases granted (SIDECAR LEASE).", _SPACE,
        lambda sources: [
            ((space.name,), sources.clients.leases.granted[space.name]) for space in sources.clients.spaces
        ],
    ),
)  # fmt: skip
_REDIS = (
    Family(
        "pannier_upstream_state", "gauge",
        f"1 for what the connection to Redis is now: {', '.join(STATES)}; 0 for the others.",
        ("state",), _states,
    ),
    Family(
        "pannier_upstream_reconnects", "counter", "Shared connections to Redis that were lost.", (),
        _one(lambda sources: sources.links.connector.tally.reconnects),
    ),
    Family(
        "pannier_upstream_links", "gauge",
        "Connections to Redis: shared ones, and pinned ones that serve one client at a time.",
        ("kind",), _links,
    ),
    Family(
        "pannier_upstream_commands_in_flight", "gauge",
        "Runs of commands sent over shared connections and not answered yet.", (),
        _one(lambda sources: sum([len(link.fifo) for link in sources.links.shared.values()])),
    ),
    Family(
        "pannier_upstream_unserved_commands", "counter",
        "Commands answered with an error because Redis could not be asked or did not answer.", (),
        _one(lambda sources: sources.links.connector.tally.unserved),
    ),
    Family(
        "pannier_upstream_round_trip_seconds", "histogram",
        "How long Redis took to answer heartbeats, one or more a second on each tracked connection.", (),
        _one(lambda sources: sources.links.connector.tally.round_trips),
    ),
    Family(
        "pannier_breaker_open", "gauge", "1 while the circuit breaker is not closed.", (),
        _one(lambda sources: sources.links.breaker.open),
    ),
    Family("pannier_tracking", "info", "How Redis tells of changes.", ("mode",), _tracking),
    Family(
        "pannier_invalidation_lag_seconds", "histogram",
        "From sending a write to hearing of it, measured every canary_interval: how old what is served may "
        "be.", (), _maybe(lambda sources: None if sources.canary is None else sources.canary.all_lags),
    ),
    Family(
        "pannier_invalidation_lag_lost", "counter", "Invalidations that did not come within "
        "coherence_timeout.", (),
        _maybe(lambda sources: None if sources.canary is None else sources.canary.lost),
    ),
)  # fmt: skip
_BUS = (
    Family(
        "pannier_bus_up", "gauge", "1 if the eviction bus is heard and may be spoken on.", (),
        _maybe(lambda sources: None if sources.bus is None else sources.bus.up),
    ),
    Family(
        "pannier_bus_messages", "counter",
        "Messages of the eviction bus: published, received from others, own that came back, malformed, "
        "unknown_version.", ("kind",), _bus_messages,
    ),
    Family(
        "pannier_bus_gaps", "counter", "Gaps in a sender's numbers: messages that were lost.", (),
        _of_bus("gaps"),
    ),
    Family(
        "pannier_bus_subscriptions", "counter", "How often the bus began to be heard.", (),
        _of_bus("subscriptions"),
    ),
    Family(
        "pannier_bus_lag_seconds", "histogram", "From publishing a message to hearing it.", (),
        _maybe(lambda sources: None if sources.bus is None else sources.bus.all_lags),
    ),
)  # fmt: skip
_RULES = (
    Family(
        "pannier_rules", "gauge", "Cache rules in force.", (),
        _one(lambda sources: len(sources.clients.policy.rulings)),
    ),
    Family(
        "pannier_rules_reloads", "counter", "How often other rules have come into force.", (),
        _maybe(lambda sources: None if sources.reloader is None else sources.reloader.reloads),
    ),
    Family(
        "pannier_rules_broken", "gauge", "1 while files of settings are broken, so that old rules hold.", (),
        _maybe(lambda sources: None if sources.reloader is None else bool(sources.reloader.trouble)),
    ),
    Family(
        "pannier_observed_reads", "gauge",
        "Reads looked up in imagined memory (mode observe), of users and databases in use.", (),
        _maybe(_observed_reads),
    ),
    Family(
        "pannier_observed_saved_calls", "gauge",
        "Of these, about what memory of so many bytes would have answered.", ("size_bytes",), _observed,
    ),
)  # fmt: skip
_WARMING = (
    Family(
        "pannier_warm_keys", "gauge", "Keys fetched at the start and kept.", (),
        _maybe(lambda sources: None if sources.warming is None else sources.warming.kept),
    ),
    Family(
        "pannier_warm_wanted_keys", "gauge", "Keys found that were to be fetched at the start.", (),
        _maybe(lambda sources: None if sources.warming is None else sources.warming.of),
    ),
)  # fmt: skip
_HEALTH = (
    Family("pannier_build", "info", "Versions of Pannier and of Redis.", ("version", "redis"), _build),
    Family(
        "pannier_ready", "gauge", "1 if /readyz and SIDECAR HEALTH say so.", (),
        _one(lambda sources: health.judge(sources.clients).ready),
    ),
    Family(
        "pannier_draining", "gauge", "1 while clients are to go elsewhere.", (),
        _one(lambda sources: sources.clients.draining),
    ),
    Family(
        "pannier_serving_stale", "gauge", "1 while memory serves stale entries, as Redis is away.", (),
        _one(lambda sources: health.judge(sources.clients).serving == "stale"),
    ),
    Family(
        "pannier_loop_lag_seconds", "histogram",
        "How late the event loop was, asked five times a second: for so long everybody waited.", (),
        _one(lambda sources: sources.lag.lags),
    ),
)  # fmt: skip

_GROUPS = {
    "Reads": _READS,
    "Memory": _MEMORY,
    "Clients": _CLIENTS,
    "Redis and coherence": _REDIS,
    "Eviction bus": _BUS,
    "Rules": _RULES,
    "Warming": _WARMING,
    "Health": _HEALTH,
}
FAMILIES: tuple[Family, ...] = tuple(
    replace(family, group=group) for group, families in _GROUPS.items() for family in families
)
