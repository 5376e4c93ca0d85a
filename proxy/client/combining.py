"""What the workers reply to SIDECAR, made one reply. Values are as hiredis reads them.

Counts are added up; what is a judgement is that of the worst; rates are computed anew from what they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

FEW = 10
"""What is listed unless told."""
_MOST = 1000

Map = dict[str, Any]


def as_map(reply: Any) -> Map:
    """A map as RESP3 has it, or the flat list that it is in RESP2, its names and values decoded as texts."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value  # a client's name may be anything


def total(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """Numbers, added up."""
    return sum([reply for reply in replies.values() if isinstance(reply, int)])


# --- SIDECAR STATS and HEALTH

_LARGEST = frozenset({
    "stale_for_seconds", "breaker_failures", "rules", "warm_seconds",
    "invalidation_lag_p50_us", "invalidation_lag_p99_us", "invalidation_lag_max_us",
    "bus_lag_p50_us", "bus_lag_p99_us", "bus_lag_max_us",
})  # fmt: skip
"""Figures of which the greatest is shown."""
_LEAST = frozenset({"warm_ready", "bus_accounted"})
SINCE = frozenset({"stale_since", "breaker_since"})
"""Moments of which the first is shown; 0: there was none."""
WORST: Mapping[str, Sequence[str]] = {
    "alive": ("no", "yes"),
    "ready": ("no", "yes"),
    "draining": ("yes", "no"),
    "serving": ("nothing", "stale", "fresh"),
    "breaker": ("open", "half-open", "closed"),
    "upstream": ("closed", "refused", "down", "silent", "connecting", "up"),
}
"""Words of which the first that some worker says is shown."""


def stats(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR STATS of all."""
    maps = {number: as_map(reply) for number, reply in replies.items()}
    found = merged(maps)
    if "tier_hit_rate" in found:
        hits, misses, fills = (found[f"tier_{name}"] for name in ("hits", "misses", "fills"))
        found["tier_hit_rate"] = f"{hits / (hits + misses) if hits + misses else 0:.4f}"
        found["tier_pushes_per_fill"] = f"{found['tier_pushes'] / fills if fills else 0:.3f}"
    for name in [name for name in found if name.startswith("observe_") and name.endswith("_hit_rate")]:
        saved, reads = found[name.removesuffix("hit_rate") + "saved_calls"], found["observe_reads"]
        found[name] = f"{saved / reads if reads else 0:.4f}"
    return found | {"workers": ",".join(map(str, sorted(maps)))}


def health(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR HEALTH of all: it is as well as the worst of them."""
    maps = {number: as_map(reply) for number, reply in replies.items()}
    found = merged(maps)
    said = [f"worker {number}: {each['why']}" for number, each in sorted(maps.items()) if each.get("why")]
    return found | {"why": "; ".join(said)}


def merged(maps: Mapping[int, Map]) -> Map:
    """Figures by name, of all workers."""
    found: Map = {}
    for name in dict.fromkeys(name for each in maps.values() for name in each):
        found[name] = _one(name, [each[name] for each in maps.values() if name in each])
    return found


def worst(name: str, words: Sequence[str]) -> str:
    """The worst of what workers say of this; a word nobody knows is worse than all."""
    known = WORST[name]
    return min(words, key=lambda word: known.index(word) if word in known else -1)


def earliest(moments: Iterable[int]) -> int:
    """The first moment of which some worker speaks; 0 if none does."""
    return min([moment for moment in moments if moment], default=0)


def _one(name: str, values: list[Any]) -> Any:
    if name in WORST:
        return worst(name, values)
    if name in SINCE:
        return earliest(values)
    if name in _LARGEST:
        return max(values, key=float)
    if name in _LEAST:
        return min(values)
    if all(isinstance(value, int) for value in values):
        return sum(values)
    return ", ".join(dict.fromkeys(map(str, values)))


# --- lists of keys


def more(arguments: Sequence[bytes]) -> list[bytes]:
    """The arguments with which a worker lists more than is asked for: what is first of all need not be among
    the first of each."""
    n = _number(arguments)
    if n is None:
        return list(arguments)  # which is refused
    by = [word for word in arguments[1:] if not word.isdigit()]
    return [arguments[0], b"%d" % min(_MOST, 4 * n + 50), *by]


def _number(arguments: Sequence[bytes]) -> int | None:
    given = [word for word in arguments[1:2] if word.isdigit()]
    n = int(given[0]) if given and len(given[0]) < 10 else FEW if not given else 0
    return n if 1 <= n <= _MOST and len(arguments) <= 3 else None


def hot(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR HOTKEYS of all."""
    by = "bytes_per_second" if arguments[-1].upper() == b"BYTES" else "reads_per_second"
    sums = ("reads", "hits", "reads_per_second", "bytes_per_second")
    return _keys(arguments, replies, sums, lambda each: float(each[by]))


def big(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR BIGKEYS of all."""
    return _keys(arguments, replies, ("hits",), lambda each: float(each["size"]))


def churning(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR CHURN of all."""
    sums = ("changes", "hits", "changes_per_second")
    return _keys(arguments, replies, sums, lambda each: each["changes"] - each["hits"])


def _keys(
    arguments: Sequence[bytes], replies: dict[int, Any], sums: Iterable[str], order: Callable[[Map], float]
) -> object:
    lines = [as_map(line) for reply in replies.values() for line in reply]
    found = sorted(by_key(lines, "db", sums, ("size",)), key=order, reverse=True)
    return found[: _number(arguments) or FEW]


def by_key(lines: Iterable[Map], database: str, sums: Iterable[str], largest: Iterable[str]) -> list[Map]:
    """What several workers say of keys, made one line for each key; lines whose key is not shown stay."""
    found: dict[object, Map] = {}
    sums, largest = list(sums), list(largest)
    for number, line in enumerate(lines):
        about: tuple[Any, ...] = tuple([line.get(name) for name in ("key", "class", "namespace", database)])
        # The largest replies are of reads, of which there may be several of one key.
        about = (*about, line.get("command")) if "reads_per_second" not in line else about
        about = about if line.get("key") else (number,)
        known = found.get(about)
        if known is None:
            found[about] = dict(line)
            continue
        for name in sums:
            known[name] = _added(known[name], line[name])
        for name in largest:
            if name in line:
                known[name] = max(known[name], line[name])
    return list(found.values())


def _added(one: Any, other: Any) -> Any:
    """A sum; of texts, one with as many digits."""
    if isinstance(one, str):
        digits = len(one.partition(".")[2])
        return f"{float(one) + float(other):.{digits}f}"
    return round(one + other, 3) if isinstance(one, float) else one + other


# --- the others


def slowlog(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR SLOWLOG of all: the latest first, each with the worker that saw it; or how many there are."""
    if arguments[1].upper() != b"GET":
        return total(arguments, replies)
    n = int(arguments[2]) if len(arguments) > 2 else FEW
    lines = [as_map(line) | {"worker": number} for number, reply in replies.items() for line in reply]
    lines.sort(key=lambda line: int(line["time"]), reverse=True)
    return lines if n < 0 else lines[:n]


def rules(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR RULES: the same everywhere, but for what was counted; while they are reloaded, one's own."""
    own, *others = [[as_map(line) for line in reply] for reply in replies.values()]
    alike = [each for each in others if [_which(line) for line in each] == [_which(line) for line in own]]
    for other in alike:
        for mine, line in zip(own, other, strict=True):
            for name in ("fills", "refused", "verified", "mismatches"):
                if name in mine and name in line:
                    mine[name] += line[name]
    return own


def _which(line: Map) -> object:
    return line.get("rule"), line.get("match")


def warmed(arguments: Sequence[bytes], replies: dict[int, Any]) -> object:
    """SIDECAR WARM of all: a key counts as warm where it is in the memory of each, as far as can be told."""
    maps = [as_map(reply) for reply in replies.values()]
    worst = {name: max([each[name] for each in maps]) for name in ("of", "not_kept", "failed")}
    reasons: Map = {}
    for each in maps:
        for why, n in as_map(each["reasons"]).items():
            reasons[why] = max(n, reasons.get(why, 0))
    return {
        "warmed": min([each["warmed"] for each in maps]),
        "of": worst["of"],
        "seconds": max([each["seconds"] for each in maps], key=float),
        "not_kept": worst["not_kept"],
        "failed": worst["failed"],
        "reasons": reasons,
    }
