"""Every metric: its name, type, labels, meaning, and where its figures come from.

All figures exist already, kept by whoever does what they are about; they are read when somebody asks, so that
a metric costs nothing while nobody does. docs/metrics.md says the same for users; a test keeps both equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter

from proxy.client import health
from proxy.observe.figures import (
    STATES,
    Read,
    build,
    bus_messages,
    by_class,
    certificates,
    failed_handshakes,
    invalidations,
    latency,
    limits,
    links,
    maybe,
    observed,
    observed_reads,
    of_account,
    of_bus,
    one,
    spaces,
    states,
    tracking,
)
from proxy.tier.classes import MOST, OTHER, UNNAMED


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
    merge: str = "sum"
    """What becomes of it where there are several workers: of samples with the same labels `sum`, `max` or
    `min`; `each`: those of all are there."""

    @property
    def shown(self) -> str:
        """Its name as queries have it."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


_SPACE = ("namespace",)
_SAMPLED = (
    "Sampled: all hits while they are few, a part of them later; the first 16 runs on each shared connection "
    "in each quarter of a second, a pipeline as one; pinned commands where nothing else was owed, without "
    "blocking ones."
)
_CLASSES = (
    "A class is what a rule calls it, else the first part of the key's name up to a colon; "
    f"{UNNAMED}: no colon; {OTHER}: all after the first {MOST}. The sum is exact; the shares are estimates "
    "from a sample while there are more than about 1000 hits, or 256 misses, a second."
)

_READS = (
    Family(
        "pannier_hits", "counter", "Reads answered from memory. Exact.", _SPACE, of_account("hits"),
    ),
    Family(
        "pannier_stale_hits", "counter",
        "Of these, reads answered while Redis was away (on_upstream_down = stale).",
        _SPACE, of_account("stale_hits"),
    ),
    Family(
        "pannier_misses", "counter", "Reads looked up in memory and not found. Exact.",
        _SPACE, of_account("misses"),
    ),
    Family(
        "pannier_class_hits", "counter", f"The hits by class. {_CLASSES}", ("namespace", "class"),
        by_class("hits"),
    ),
    Family(
        "pannier_class_misses", "counter", f"The misses by class. {_CLASSES}", ("namespace", "class"),
        by_class("misses"),
    ),
    Family(
        "pannier_coalesced_reads", "counter",
        "Of the misses, reads that waited for a fetch already under way: so many calls fewer for Redis.",
        _SPACE, of_account("coalesced"),
    ),
    Family(
        "pannier_passed_reads", "counter",
        "Reads in pipelines that memory held, sent to Redis with their neighbours all the same.",
        _SPACE, of_account("passed"),
    ),
    Family(
        "pannier_bypassed_commands", "counter",
        "Commands of connections that said SIDECAR BYPASS ON.",
        _SPACE, spaces(attrgetter("bypassed")),
    ),
)  # fmt: skip
_MEMORY = (
    Family("pannier_entries", "gauge", "Replies kept in memory.", _SPACE, of_account("entries")),
    Family(
        "pannier_memory_bytes", "gauge",
        "What the entries take, the overhead of their containers included.", _SPACE, of_account("used"),
    ),
    Family(
        "pannier_memory_limit_bytes", "gauge",
        "What they may take (max_memory): of tenants with a share of their own, and of all others together, "
        "whose namespace is empty.", _SPACE, limits,
    ),
    Family("pannier_fills", "counter", "Replies fetched and kept.", _SPACE, of_account("fills")),
    Family(
        "pannier_evictions", "counter", "Entries dropped to make room.", _SPACE, of_account("evicted")
    ),
    Family(
        "pannier_expirations", "counter", "Entries dropped because their time was over.",
        _SPACE, of_account("expired"),
    ),
    Family(
        "pannier_invalidations", "counter",
        "Entries dropped because they might be out of date, by who said so: push (Redis), write (of a client "
        "here), bus (another Pannier or an application), command (SIDECAR INVALIDATE, FLUSH, or over HTTP), "
        "lost (the connection that kept them true was lost, or other rules came into force).",
        ("namespace", "source"), invalidations,
    ),
    Family(
        "pannier_invalidation_messages", "counter", "Invalidation messages from Redis, whatever they "
        "dropped.", _SPACE, of_account("pushes"),
    ),
    Family(
        "pannier_refills_engaged", "counter",
        "How often the refill governor began to govern, after much was dropped at once.",
        _SPACE, of_account("governor.engaged"),
    ),
    Family(
        "pannier_refill_delays", "counter", "Reads that waited for their turn under the refill governor.",
        _SPACE, of_account("governor.delayed"),
    ),
    Family(
        "pannier_verified_hits", "counter", "Hits compared with Redis (verify).",
        _SPACE, of_account("verified"),
    ),
    Family(
        "pannier_verify_mismatches", "counter", "Of these, what was stale.",
        _SPACE, of_account("mismatches"),
    ),
)  # fmt: skip
_CLIENTS = (
    Family(
        "pannier_commands", "counter", "Commands taken from clients, answered by whom ever.",
        _SPACE, spaces(attrgetter("commands")),
    ),
    Family(
        "pannier_refused_commands", "counter",
        "Commands refused because a tenant was over its max_ops_per_second.",
        _SPACE, spaces(attrgetter("refused")),
    ),
    Family(
        "pannier_connected_clients", "gauge", "Clients connected now.",
        _SPACE, spaces(lambda space: len(space.sessions)),
    ),
    Family(
        "pannier_max_clients", "gauge", "How many there may be.", (),
        one(lambda sources: sources.settings.max_clients),
    ),
    Family(
        "pannier_connections", "counter", "Connections admitted.", (),
        one(lambda sources: sources.clients.received),
    ),
    Family(
        "pannier_rejected_connections", "counter", "Connections refused because of max_clients.", (),
        one(lambda sources: sources.clients.rejected),
    ),
    Family(
        "pannier_tls_handshakes", "counter", "Clients that came in over TLS.", (),
        one(lambda sources: sources.clients.handshakes.done),
    ),
    Family(
        "pannier_tls_handshakes_failed", "counter",
        "Clients that did not, by cause. plain: no TLS. certificate: theirs is missing or not accepted, or "
        "they do not accept ours. version: none in common. timeout: not within 10 s. gone: they left, as who "
        "only looks for open ports does. full: max_clients.", ("cause",), failed_handshakes,
    ),
    Family(
        "pannier_certificate_expiry_timestamp_seconds", "gauge",
        "Until when the certificate in force is valid (Unix time), by the setting that names its file.",
        ("setting",), certificates(attrgetter("expires")),
        merge="min",
    ),
    Family(
        "pannier_certificate_broken", "gauge",
        "1: its files have changed and are wrong, so that the old certificate stays in force.",
        ("setting",), certificates(lambda each: bool(each.trouble)),
        merge="max",
    ),
    Family(
        "pannier_killed_connections", "counter",
        "Connections closed because of a limit (client_timeout, output_buffer_limit and the like).", (),
        one(lambda sources: sources.clients.killed),
    ),
    Family(
        "pannier_client_received_bytes", "counter",
        "Bytes received from clients over TCP, as the kernel counts them; not over unix sockets, and "
        "with TLS not what came after the last look (one each time this is read) before the client left.", (),
        one(lambda sources: sources.clients.volume.received),
    ),
    Family(
        "pannier_client_sent_bytes", "counter",
        "Bytes sent to clients over TCP and acknowledged, as the kernel counts them; same exceptions.",
        (), one(lambda sources: sources.clients.volume.sent),
    ),
    Family(
        "pannier_sets", "counter",
        "Keys named by SET, SETEX, PSETEX, SETNX, GETSET, MSET, MSETNX. Exact up to 256 pipelines a second; "
        "of what comes beyond, one pipeline in 16 stands for all.", _SPACE,
        spaces(attrgetter("writes.sets")),
    ),
    Family(
        "pannier_deletes", "counter",
        "Keys named by DEL, UNLINK, GETDEL. Exact as far as for sets.", _SPACE,
        spaces(attrgetter("writes.deletes")),
    ),
    Family(
        "pannier_leases_granted", "counter", "Leases granted (SIDECAR LEASE).", _SPACE,
        lambda sources: [
            ((space.name,), sources.clients.leases.granted[space.name]) for space in sources.clients.spaces
        ],
    ),
)  # fmt: skip
_LATENCY = (
    Family(
        "pannier_latency_seconds", "histogram",
        "How long commands took in Pannier, Redis' part included, by path: hit (answered from memory), miss "
        "(a read answered by Redis), write, other, pinned (over a connection of the client's own). "
        f"{_SAMPLED}",
        ("path",), latency("by_path"),
    ),
    Family(
        "pannier_command_latency_seconds", "histogram",
        "The same by what commands are about: Redis' ACL categories. See pannier_latency_seconds for what is "
        "sampled.", ("family",), latency("by_family"),
    ),
)  # fmt: skip
_REDIS = (
    Family(
        "pannier_upstream_state", "gauge",
        f"1 for what the connection to Redis is now: {', '.join(STATES)}; 0 for the others.",
        ("state",), states,
        merge="max",
    ),
    Family(
        "pannier_upstream_reconnects", "counter", "Shared connections to Redis that were lost.", (),
        one(lambda sources: sources.links.connector.tally.reconnects),
    ),
    Family(
        "pannier_upstream_links", "gauge",
        "Connections to Redis: shared ones, and pinned ones that serve one client at a time.",
        ("kind",), links,
    ),
    Family(
        "pannier_upstream_commands_in_flight", "gauge",
        "Runs of commands sent over shared connections and not answered yet.", (),
        one(lambda sources: sum([len(link.fifo) for link in sources.links.shared.values()])),
    ),
    Family(
        "pannier_upstream_unserved_commands", "counter",
        "Commands answered with an error because Redis could not be asked or did not answer.", (),
        one(lambda sources: sources.links.connector.tally.unserved),
    ),
    Family(
        "pannier_upstream_round_trip_seconds", "histogram",
        "How long Redis took to answer heartbeats, one or more a second on each tracked connection.", (),
        one(lambda sources: sources.links.connector.tally.round_trips),
    ),
    Family(
        "pannier_breaker_open", "gauge", "1 while the circuit breaker is not closed.", (),
        one(lambda sources: sources.links.breaker.open),
        merge="max",
    ),
    Family("pannier_tracking", "info", "How Redis tells of changes.", ("mode",), tracking, merge="each"),
    Family(
        "pannier_invalidation_lag_seconds", "histogram",
        "From sending a write to hearing of it, measured every canary_interval: how old what is served may "
        "be.", (), maybe(lambda sources: None if sources.canary is None else sources.canary.all_lags),
    ),
    Family(
        "pannier_invalidation_lag_lost", "counter", "Invalidations that did not come within "
        "coherence_timeout.", (),
        maybe(lambda sources: None if sources.canary is None else sources.canary.lost),
    ),
)  # fmt: skip
_BUS = (
    Family(
        "pannier_bus_up", "gauge", "1 if the eviction bus is heard and may be spoken on.", (),
        maybe(lambda sources: None if sources.bus is None else sources.bus.up),
        merge="min",
    ),
    Family(
        "pannier_bus_messages", "counter",
        "Messages of the eviction bus: published, received from others, own that came back, malformed, "
        "unknown_version.", ("kind",), bus_messages,
    ),
    Family(
        "pannier_bus_gaps", "counter", "Gaps in a sender's numbers: messages that were lost.", (),
        of_bus("gaps"),
    ),
    Family(
        "pannier_bus_subscriptions", "counter", "How often the bus began to be heard.", (),
        of_bus("subscriptions"),
    ),
    Family(
        "pannier_bus_lag_seconds", "histogram", "From publishing a message to hearing it.", (),
        maybe(lambda sources: None if sources.bus is None else sources.bus.all_lags),
    ),
)  # fmt: skip
_RULES = (
    Family(
        "pannier_rules", "gauge", "Cache rules in force.", (),
        one(lambda sources: len(sources.clients.policy.rulings)),
        merge="max",
    ),
    Family(
        "pannier_rules_reloads", "counter", "How often other rules have come into force.", (),
        maybe(lambda sources: None if sources.reloader is None else sources.reloader.reloads),
        merge="max",
    ),
    Family(
        "pannier_rules_broken", "gauge", "1 while files of settings are broken, so that old rules hold.", (),
        maybe(lambda sources: None if sources.reloader is None else bool(sources.reloader.trouble)),
        merge="max",
    ),
    Family(
        "pannier_observed_reads", "gauge",
        "Reads looked up in imagined memory (mode observe), of users and databases in use.", (),
        maybe(observed_reads),
    ),
    Family(
        "pannier_observed_saved_calls", "gauge",
        "Of these, about what memory of so many bytes would have answered.", ("size_bytes",), observed,
    ),
)  # fmt: skip
_WARMING = (
    Family(
        "pannier_warm_keys", "gauge", "Keys fetched at the start and kept.", (),
        maybe(lambda sources: None if sources.warming is None else sources.warming.kept),
    ),
    Family(
        "pannier_warm_wanted_keys", "gauge", "Keys found that were to be fetched at the start.", (),
        maybe(lambda sources: None if sources.warming is None else sources.warming.of),
    ),
)  # fmt: skip
_HEALTH = (
    Family(
        "pannier_build", "info", "Versions of Pannier and of Redis.", ("version", "redis"), build,
        merge="each",
    ),
    Family(
        "pannier_ready", "gauge", "1 if /readyz and SIDECAR HEALTH say so.", (),
        one(lambda sources: health.judge(sources.clients).ready),
        merge="min",
    ),
    Family(
        "pannier_draining", "gauge", "1 while clients are to go elsewhere.", (),
        one(lambda sources: sources.clients.draining),
        merge="max",
    ),
    Family(
        "pannier_serving_stale", "gauge", "1 while memory serves stale entries, as Redis is away.", (),
        one(lambda sources: health.judge(sources.clients).serving == "stale"),
        merge="max",
    ),
    Family(
        "pannier_loop_lag_seconds", "histogram",
        "How late the event loop was, asked five times a second: for so long everybody waited.", (),
        one(lambda sources: sources.lag.lags),
    ),
)  # fmt: skip

_GROUPS = {
    "Reads": _READS,
    "Memory": _MEMORY,
    "Clients": _CLIENTS,
    "Latency": _LATENCY,
    "Redis and coherence": _REDIS,
    "Eviction bus": _BUS,
    "Rules": _RULES,
    "Warming": _WARMING,
    "Health": _HEALTH,
}
FAMILIES: tuple[Family, ...] = tuple(
    replace(family, group=group) for group, families in _GROUPS.items() for family in families
)
