"""/stats: what there is to know in one JSON object, for programs and people without a Prometheus.

The first fields have the names that applications' own cache statistics use; then come the parts in detail.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from proxy import __version__
from proxy.client import health
from proxy.client.spaces import Space
from proxy.histogram import Histogram
from proxy.observe.recommending import Situation, recommend
from proxy.observe.sources import Sources
from proxy.tier.tier import Account


def stats(sources: Sources, only: Space | None = None) -> dict[str, Any]:
    """Everything; with `only`, what is counted by namespace about that one alone."""
    spaces = list(sources.clients.spaces) if only is None else [only]
    accounts = [space.account for space in spaces if space.account is not None]
    for account in accounts:
        account.settle()
    judged = health.judge(sources.clients, only)
    return {
        **_reads(spaces, accounts),
        "errors": sources.links.connector.tally.unserved,
        "redis_connected": judged.upstream == "up",
        "recommendation": recommend(_situation(sources, accounts, judged)),
        "version": __version__,
        "uptime_seconds": round(time.monotonic() - sources.started, 3),
        "ready": judged.ready,
        "reasons": list(judged.reasons),
        "serving": judged.serving,
        "draining": judged.draining,
        "memory": _memory(accounts),
        "invalidations": _invalidations(accounts),
        "clients": _clients(sources, spaces),
        "latency": {path: quantiles(times) for path, times in sources.clients.latency.by_path.items()},
        "upstream": _upstream(sources, judged),
        "invalidation_lag": _lag(sources),
        "bus": _bus(sources),
        "warming": _warming(sources),
        "rules": _rules(sources),
        "namespaces": {space.name: _space(space) for space in spaces},
    }


def _reads(spaces: Iterable[Space], accounts: list[Account]) -> dict[str, Any]:
    hits = _total(accounts, "hits")
    reads = hits + _total(accounts, "misses")
    spaces = list(spaces)
    return {
        "hits": hits,
        "misses": reads - hits,
        "total_reads": reads,
        "hit_rate_percent": percent(hits, reads),
        "sets": sum([space.writes.sets for space in spaces]),
        "deletes": sum([space.writes.deletes for space in spaces]),
    }


def _memory(accounts: list[Account]) -> dict[str, Any]:
    budgets = {account.budget for account in accounts}
    return {
        "entries": _total(accounts, "entries"),
        "bytes": _total(accounts, "used"),
        "max_bytes": sum([budget.max_memory for budget in budgets]),
        "stale_hits": _total(accounts, "stale_hits"),
        "coalesced": _total(accounts, "coalesced"),
        "passed": _total(accounts, "passed"),
        "fills": _total(accounts, "fills"),
        "evicted": _total(accounts, "evicted"),
        "expired": _total(accounts, "expired"),
    }


def _invalidations(accounts: list[Account]) -> dict[str, Any]:
    return {
        "push": _total(accounts, "invalidated"),
        "write": _total(accounts, "overwritten"),
        "bus": _total(accounts, "told"),
        "command": _total(accounts, "commanded"),
        "lost": _total(accounts, "lost"),
        "messages": _total(accounts, "pushes"),
    }


def _clients(sources: Sources, spaces: list[Space]) -> dict[str, Any]:
    clients = sources.clients
    return {
        "connected": sum([len(space.sessions) for space in spaces]),
        "max": sources.settings.max_clients,
        "commands": sum([space.commands for space in spaces]),
        "bypassed": sum([space.bypassed for space in spaces]),
        "refused_commands": sum([space.refused for space in spaces]),
        "received": clients.received,
        "rejected": clients.rejected,
        "killed": clients.killed,
        "bytes_received": clients.volume.received,
        "bytes_sent": clients.volume.sent,
    }


def _upstream(sources: Sources, judged: health.Health) -> dict[str, Any]:
    links, tally = sources.links, sources.links.connector.tally
    link = sources.main_link
    tracking = link.tracking if link is not None else None
    return {
        "address": links.connector.upstream.redacted,
        "status": judged.upstream,
        "breaker": judged.breaker,
        "tracking": tracking.mode.label if tracking is not None else "off",
        "tracking_reason": tracking.reason if tracking is not None else "switched off",
        "reconnects": tally.reconnects,
        "shared_links": len(links.shared),
        "pinned_links": len(links.pinned),
        "in_flight": sum([len(link.fifo) for link in links.shared.values()]),
        "round_trip_ms": quantiles(tally.round_trips),
    }


def _lag(sources: Sources) -> dict[str, Any] | None:
    canary = sources.canary
    return None if canary is None else {**quantiles(canary.all_lags), "lost": canary.lost}


def _bus(sources: Sources) -> dict[str, Any] | None:
    bus = sources.bus
    if bus is None:
        return None
    counted = ("published", "received", "own", "malformed", "unknown", "gaps", "subscriptions")
    return {"up": bus.up, "refusal": bus.refusal, **{name: getattr(bus, name) for name in counted}}


def _warming(sources: Sources) -> dict[str, Any] | None:
    warming = sources.warming
    if warming is None:
        return None
    return {"status": warming.status, "ready": warming.ready, "keys": warming.kept, "of": warming.of}


def _rules(sources: Sources) -> dict[str, Any]:
    policy, reloader = sources.clients.policy, sources.reloader
    return {
        "mode": policy.limits.ceiling.name.lower(),
        "number": len(policy.rulings),
        "reloads": reloader.reloads if reloader is not None else 0,
        "trouble": reloader.trouble if reloader is not None else "",
    }


def _space(space: Space) -> dict[str, Any]:
    """What is counted for one namespace, and by class in it."""
    account = space.account
    found: dict[str, Any] = {
        "clients": len(space.sessions),
        "commands": space.commands,
        "sets": space.writes.sets,
        "deletes": space.writes.deletes,
    }
    if account is None:
        return found
    reads = account.hits + account.misses
    return found | {
        "hits": account.hits,
        "misses": account.misses,
        "hit_rate_percent": percent(account.hits, reads),
        "entries": account.entries,
        "bytes": account.used,
        "evicted": account.evicted,
        "expired": account.expired,
        "invalidations": _invalidations([account]),
        "classes": _classes(account),
    }


def _classes(account: Account) -> dict[str, Any]:
    """Estimates, while there is much to do (see `tier.classes`)."""
    hits, misses = account.classes.hits.by_class, account.classes.misses.by_class
    return {
        label: {
            "hits": hits[label],
            "misses": misses[label],
            "hit_rate_percent": percent(hits[label], hits[label] + misses[label]),
        }
        for label in sorted({*hits, *misses})
    }


def situation(sources: Sources, only: Space | None = None) -> Situation:
    """What a recommendation goes by, about everything or one namespace."""
    spaces = list(sources.clients.spaces) if only is None else [only]
    accounts = [space.account for space in spaces if space.account is not None]
    return _situation(sources, accounts, health.judge(sources.clients, only))


def _situation(sources: Sources, accounts: list[Account], judged: health.Health) -> Situation:
    link, tier = sources.main_link, sources.clients.tier
    tracking = link.tracking if link is not None else None
    return Situation(
        connected=judged.upstream == "up",
        why_not=judged.why,
        keeps=tier is not None and tracking is not None and (tracking.mode.label != "off"),
        why_nothing=tracking.reason if tracking is not None else "tracking is off",
        mode=sources.clients.policy.limits.ceiling.name.lower(),
        hits=_total(accounts, "hits"),
        misses=_total(accounts, "misses"),
        fills=_total(accounts, "fills"),
        evicted=_total(accounts, "evicted"),
        expired=_total(accounts, "expired"),
        changed=_total(accounts, "invalidated") + _total(accounts, "overwritten"),
        bytes=_total(accounts, "used"),
        max_bytes=sum([budget.max_memory for budget in {account.budget for account in accounts}]),
    )


def _total(accounts: Iterable[Account], counter: str) -> int:
    return sum([getattr(account, counter) for account in accounts])


def percent(part: int, whole: int) -> float:
    """A part of a whole, in percent; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def quantiles(histogram: Histogram) -> dict[str, Any]:
    """What there is to say of how long something took, in milliseconds."""
    return {
        "count": histogram.count,
        "p50": round(histogram.quantile(0.5) * 1000, 3),
        "p99": round(histogram.quantile(0.99) * 1000, 3),
    }
