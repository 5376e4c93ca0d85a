"""What is read most, is largest, changes too often, and what more memory would do: for /hotkeys and /stats.

The figures are those of SIDECAR HOTKEYS, BIGKEYS, CHURN and ADVISE; names of keys are shown as `key_privacy`
says.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from proxy.client import advising, hotkeys, scope
from proxy.client.clients import Clients
from proxy.client.scope import Name, Scope
from proxy.client.spaces import Space
from proxy.events import fields

log = logging.getLogger("pannier.observe")


def view(clients: Clients, only: Space | None) -> Scope:
    """What the operator sees; with `only`, of that namespace or tenant."""
    everything = scope.of_operator(clients)
    if only is None:
        return everything
    seen = tuple(each for each in everything.seen if each.shelf.account is only.account)
    return dataclasses.replace(everything, seen=seen, bare=only.namespace is not None)


async def lists(view: Scope, n: int) -> dict[str, Any]:
    """The `n` first keys of each list."""
    return {
        "by_reads": [_hot(each) for each in hotkeys.hot_keys(view, n)],
        "by_bytes": [_hot(each) for each in hotkeys.hot_keys(view, n, by_bytes=True)],
        "largest": [
            {**_named(each.name), "command": each.command, "bytes": each.size, "reads": each.reads}
            for each in await hotkeys.big_keys(view, n)
        ],
        "churning": [
            {
                **_named(each.name),
                "changes": each.changes,
                "hits": each.hits,
                "changes_per_second": round(each.rate, 3),
            }
            for each in hotkeys.churning_keys(view, n)
        ],
    }


async def advice(view: Scope) -> dict[str, Any]:
    """`advice`: what to set, for each namespace; `curve`: the hit rate by size of all memory, if known.

    Should it fail, that is logged, and what else there is to tell is told.
    """
    try:
        return _advice(await advising.advise(view))
    except Exception:
        log.exception("advice failed: internal error", extra=fields("internal_error", what="advice"))
        return {"curve": [], "curve_says": "advice failed: internal error; see the log", "advice": []}


def _advice(reports: list[advising.Report]) -> dict[str, Any]:
    whole = next((each for each in reports if each.namespace == "*"), reports[0] if reports else None)
    points = whole.points if whole is not None else []
    return {
        "curve": [
            {
                "bytes": point.size,
                "hit_rate_percent": round(100 * point.rate, 2),
                "plus_minus_percent": round(100 * point.plus_minus, 2),
            }
            for point in points
        ],
        "curve_samples": whole.effective if whole is not None else 0,
        "curve_says": whole.says if whole is not None else "",
        "advice": [
            {"namespace": report.namespace, "says": report.says, **dataclasses.asdict(each)}
            for report in reports
            for each in report.advice
        ],
    }


def _hot(found: hotkeys.HotKey) -> dict[str, Any]:
    return {
        **_named(found.name),
        "command": found.command,
        "reads": found.reads,
        "hits": found.hits,
        "reads_per_second": round(found.rate, 3),
        "bytes": found.size,
        "bytes_per_second": round(found.byte_rate, 1),
    }


def _named(name: Name) -> dict[str, Any]:
    shown: dict[str, Any] = {"key": name.key or None, "class": name.label or None}
    return shown | {"namespace": name.namespace, "database": name.database}
