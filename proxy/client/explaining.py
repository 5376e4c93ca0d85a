"""SIDECAR RULES and SIDECAR EXPLAIN: which rule holds for a key, and what memory has of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from proxy.kinds import show_duration, show_size
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.resp.requests import RequestParser
from proxy.tier.policy import Ruling
from proxy.tier.rules import key_frame, marks
from proxy.upstream.caller import Question

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.shelf import Shelf
    from proxy.tier.tier import Account, Tier

_MOST_READS = 32
"""Reads of one key that are listed."""
_NAME_LIMIT = 80
_COUNTED = ("fills", "refused", "verified", "mismatches")


def rule_fields(tier: Tier, accounts: list[Account], verifying: bool) -> dict[str, object]:
    """What the cache rules have done, for INFO and SIDECAR STATS."""
    fields: dict[str, object] = {
        "mode": tier.policy.limits.ceiling.name.lower(),
        "rules": len(tier.policy.rulings),
        "refill_engaged": sum([account.governor.engaged for account in accounts]),
        "refill_delayed": sum([account.governor.delayed for account in accounts]),
    }
    if verifying:
        fields["verify_checked"] = sum([account.verified for account in accounts])
        fields["verify_mismatches"] = sum([account.mismatches for account in accounts])
    return fields | _imagined([shelf for account in accounts for shelf in account.shelves])


def _imagined(shelves: list[Shelf]) -> dict[str, object]:
    """What memory of several sizes would have done for what is only observed."""
    ghosts = [shelf.ghost for shelf in shelves if shelf.ghost is not None]
    if not ghosts:
        return {}
    reads = sum([ghost.reads for ghost in ghosts])
    fields: dict[str, object] = {"observe_reads": reads}
    for lines in zip(*[ghost.report() for ghost in ghosts], strict=True):
        name, saved = show_size(lines[0][0]), sum([calls for _, _, calls in lines])
        fields[f"observe_{name}_saved_calls"] = saved
        fields[f"observe_{name}_hit_rate"] = f"{saved / reads if reads else 0:.4f}"
    return fields


def rules(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR RULES: the rules in force in their order, the defaults last."""
    policy = session.clients.policy
    counted = _COUNTED if session.space.namespace is None else ()  # in a namespace, nothing about the others
    listed = [_listed(ruling, counted) for ruling in (*policy.rulings, policy.default)]
    return encode.array([encode.value(fields, session.protocol) for fields in listed])


def _listed(ruling: Ruling, counted: Iterable[str]) -> dict[str, Any]:
    rule = ruling.rule
    fields: dict[str, Any] = {
        "rule": ruling.number or "default",
        "match": rule.shown if ruling.number else "*",
        "class": rule.label or "(first part of the key)",
        "mode": ruling.serve.name.lower(),
        "l1_ttl": show_duration(ruling.l1_ttl),
        "jitter": f"{ruling.jitter:g}",
        "max_value_size": show_size(ruling.max_value_size),
        "negative": "yes" if ruling.negative else "no",
    }
    if rule.expire is not None:
        fields["expire"] = show_duration(rule.expire)
    for name in ("stale_while_revalidate", "stale_if_error", "refresh_ahead"):
        if getattr(ruling, name):
            fields[name] = show_duration(getattr(ruling, name))
    return fields | {name: getattr(ruling, name) for name in counted}


async def explain(session: Session, arguments: list[bytes]) -> bytes:
    """Answer SIDECAR EXPLAIN: the rule for a key, what is kept of it, and its time to live at Redis."""
    (key,) = arguments
    policy, namespace = session.clients.policy, session.space.namespace
    real = key if namespace is None else namespace.prefix + key
    ruling = policy.ruling(key)
    crew = session.clients.crew
    fields: dict[str, Any] = {} if crew is None else {"worker": crew.number}
    fields |= {
        "rule": ruling.number or "default",
        "match": ruling.rule.shown if ruling.number else "*",
        "class": policy.label(key),
        "mode": ruling.serve.name.lower(),
        **_kept(session, real),
    }
    try:
        milliseconds = await Question().ask(session.home, encode.request("PTTL", real))
    except UpstreamError as error:
        milliseconds = encode.error(str(error))
    fields["redis_ttl_ms"] = _time_to_live(milliseconds)
    return encode.value(fields, session.protocol)


def _kept(session: Session, key: bytes) -> dict[str, Any]:
    """What of a key is kept: by which reads, and for how long."""
    tier, tracking = session.clients.tier, session.home.tracking
    if tier is None or tracking is None:
        return {"cached": "no", "reads": []}
    shelf, now = cast("Shelf", tracking.keeper), tier.clock()
    (mark,) = marks([key_frame(key)])
    shelf.replay()
    found = shelf.index.get(mark, b"")
    parts = sorted(found) if isinstance(found, set) else [found]
    ends = [(part, shelf.ends(part)) for part in parts[:_MOST_READS]]
    reads = [
        {
            "read": _spoken(part),
            "l1_ttl_ms": max(0, round((end - now) * 1000)),
            "hits_lately": shelf.hits_lately(part),
        }
        for part, end in ends
        if end is not None
    ]
    return {"cached": "yes" if reads else "no", "reads": reads}


def _spoken(part: bytes) -> str:
    """A read as people write it."""
    request = RequestParser(2**31).parse(b"*" + part, 0)
    words = [word.decode("utf-8", "backslashreplace") for word in request.arguments] if request else []
    line = " ".join(words)
    return line if len(line) <= _NAME_LIMIT else line[: _NAME_LIMIT - 1] + "…"


def _time_to_live(reply: bytes) -> int | str:
    if not reply.startswith(b":"):
        return reply[1:-2].decode("utf-8", "replace")
    milliseconds = int(reply[1:])
    return {-1: "never expires", -2: "no such key"}.get(milliseconds, milliseconds)
