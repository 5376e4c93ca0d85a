"""What kind of Redis it is, and how much of it is free."""

from __future__ import annotations

import statistics
import time
from typing import Any

import hiredis

from proxy.preflight.steps import Steps, refusal
from proxy.preflight.talk import Talk
from proxy.settings import Settings

_PINGS = 20
_FAR = 0.005
"""Median seconds of a PING from which Redis is farther away than a sidecar's should be."""
_FEW = 32
"""Connections that Pannier should have free: a link for each user and database, and those of its clients."""
_SLOTS = 16384


async def look_at_server(steps: Steps, talk: Talk, settings: Settings) -> None:
    """Protocol, version, role, room for connections, distance. Raises UpstreamLost or Stuck."""
    _judge_protocol(steps, talk)
    reply = await talk.ask("INFO")
    info = read_info(reply)
    _judge_version(steps, talk, info)
    if why := refusal(reply):
        steps.warns(
            "INFO", f"{why}; then memory does not outlive a broken connection of the eviction bus",
            f"ACL SETUSER {talk.user} +info",
        )  # fmt: skip
    role = info.get("role") or _word(talk.hello.get(b"role"))
    if role in ("slave", "replica"):
        master = f"{info.get('master_host', 'its master')}:{info.get('master_port', '')}".rstrip(":")
        refuses = info.get("slave_read_only", "1") == "1"
        effect = "it refuses writes" if refuses else "what is written stays here"
        steps.warns(
            "replica", f"this is a replica of {master}; {effect}",
            "give the master's address in upstream, unless only reads are to go through this Pannier",
        )  # fmt: skip
    if info.get("cluster_enabled") == "1" or _word(talk.hello.get(b"mode")) == "cluster":
        await _judge_cluster(steps, talk)
    await _judge_room(steps, talk, info, settings)
    await _judge_memory(steps, talk, info, settings)
    await _measure(steps, talk)
    await _learn(steps, talk)


def read_info(reply: Any) -> dict[str, str]:
    """INFO as a map; empty if it was refused."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply or "")
    if isinstance(reply, hiredis.ReplyError):
        return {}
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line and not line.startswith("#"))


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _judge_protocol(steps: Steps, talk: Talk) -> None:
    if talk.protocol == 3:
        steps.passes("protocol", "RESP3")
        return
    why = talk.no_resp3 or "HELLO 3 is refused"
    remedy = "use Redis 6.0 or newer, or a proxy in between that passes HELLO on"
    if why.startswith("NOPERM"):
        remedy = f"ACL SETUSER {talk.user} +hello"
        if talk.key.identity.password is not None:
            remedy = f"ACL SETUSER default +hello, and {remedy}"
    steps.warns("protocol", f"RESP2 only ({why}): Redis cannot tell of changes", remedy)


def _judge_version(steps: Steps, talk: Talk, info: dict[str, str]) -> None:
    valkey = info.get("valkey_version") or (info.get("server_name") == "valkey" and info.get("redis_version"))
    kind = "Valkey" if valkey or _word(talk.hello.get(b"server")) == "valkey" else "Redis"
    version = valkey or info.get("redis_version") or _word(talk.hello.get(b"version"))
    if not version:
        steps.passes("server", f"{kind} of unknown version")
    elif int(version.partition(".")[0] or 0) < 6:
        found = f"{kind} {version} is older than 6.0, and cannot tell of changes"
        steps.warns("server", found, "use a newer one")
    else:
        mode = info.get("redis_mode") or _word(talk.hello.get(b"mode"))
        steps.passes("server", f"{kind} {version}, {mode}" if mode else f"{kind} {version}")


async def _judge_cluster(steps: Steps, talk: Talk) -> None:
    remedy = "Pannier speaks to one node: give it a Redis that is no cluster, or a proxy that speaks for all"
    reply = await talk.ask("CLUSTER", "SLOTS")
    if why := refusal(reply):
        steps.warns("cluster", f"cluster mode, and which slots are whose is not told: {why}", remedy)
        return
    masters = {(bytes(each[2][0]), int(each[2][1])) for each in reply}
    served = sum(int(each[1]) - int(each[0]) + 1 for each in reply)
    if len(masters) > 1:
        found = f"a cluster of {len(masters)} nodes: this one answers MOVED for the keys of others"
        raise steps.stuck("cluster", found, remedy)
    elif served < _SLOTS:
        found = f"cluster mode, with {served} of {_SLOTS} slots served: keys of the others get CLUSTERDOWN"
        raise steps.stuck("cluster", found, f"redis-cli --cluster fix; {remedy}")
    else:
        steps.warns("cluster", "a cluster of one node; more would be out of reach", remedy)


async def _judge_room(steps: Steps, talk: Talk, info: dict[str, str], settings: Settings) -> None:
    most = info.get("maxclients") or await _config(talk, "maxclients")
    now = info.get("connected_clients", "")
    if not most.isdigit() or not now.isdigit():
        return  # it is not told, and few need it
    free = int(most) - int(now)
    found = f"{now} of {most} connections are in use"
    if free < _FEW:
        steps.warns("maxclients", found, f"raise maxclients at Redis: {_FEW} should be free at least")
    elif free < settings.max_clients:
        found += f"; {free} are left for clients that block, subscribe or hold a transaction"
        steps.passes("maxclients", found)
    else:
        steps.passes("maxclients", found)


async def _judge_memory(steps: Steps, talk: Talk, info: dict[str, str], settings: Settings) -> None:
    """What of Redis' memory bears upon Pannier's; nothing is said of what does not."""
    table = await _config(talk, "tracking-table-max-keys")
    if table.isdigit() and 0 < int(table) < settings.max_entries and settings.tracking != "bcast":
        steps.warns(
            "table", f"Redis remembers {table} keys to tell changes of (tracking-table-max-keys), fewer "
            f"than max_entries ({settings.max_entries}): beyond, it has Panniers drop what has not changed",
            f"CONFIG SET tracking-table-max-keys {settings.max_entries}, or lower max_entries",
        )  # fmt: skip
    most, used = info.get("maxmemory", ""), info.get("used_memory", "")
    full = most.isdigit() and used.isdigit() and 0 < int(most) <= int(used)
    if full and info.get("maxmemory_policy") == "noeviction":
        steps.warns(
            "memory", "Redis is full and evicts nothing: it refuses writes (OOM)",
            "raise maxmemory at Redis, or set maxmemory-policy to one that evicts",
        )  # fmt: skip


async def _config(talk: Talk, name: str) -> str:
    """A parameter of redis.conf; empty if it is not told."""
    reply = await talk.ask("CONFIG", "GET", name)
    if isinstance(reply, dict):
        reply = [word for pair in reply.items() for word in pair]
    return _word(reply[1]) if isinstance(reply, list) and len(reply) > 1 else ""


async def _measure(steps: Steps, talk: Talk) -> None:
    times = []
    for _ in range(_PINGS):
        began = time.monotonic()
        reply = await talk.ask("PING")
        times.append(time.monotonic() - began)
        if why := refusal(reply):
            found = f"{why}; Pannier asks it for signs of life"
            raise steps.stuck("PING", found, f"ACL SETUSER {talk.user} +ping")
    median = statistics.median(times)
    found = f"{median * 1000:.2f} ms for a PING (median of {_PINGS}; slowest {max(times) * 1000:.2f} ms)"
    if median > _FAR:
        remedy = "bring Pannier nearer to Redis, or see what slows that down (SLOWLOG, LATENCY DOCTOR)"
        steps.warns("latency", found, remedy)
    else:
        steps.passes("latency", found)


async def _learn(steps: Steps, talk: Talk) -> None:
    reply = await talk.ask("COMMAND")
    if why := refusal(reply):
        steps.warns(
            "COMMAND", f"{why}; so commands of modules are unknown, and refused in a namespace",
            f"ACL SETUSER {talk.user} +command",
        )  # fmt: skip
    else:
        steps.passes("COMMAND", f"tells of {len(reply)} commands")
