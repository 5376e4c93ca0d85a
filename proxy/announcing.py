"""What the log is told at the start: which Pannier this is, how it is set up, where it serves.

Beside a banner, which says it to people, this is for who debugs.
"""

from __future__ import annotations

import logging
import os
import platform

from proxy import __version__
from proxy.cgroup import broken_limit
from proxy.events import fields
from proxy.kinds import show_size
from proxy.logs import is_json
from proxy.settings import OPTIONS, Settings

log = logging.getLogger("pannier")

_NAMES_KEYS = ("warm",)
"""Options that may name keys."""


def starting(settings: Settings, config: str | None) -> None:
    """Say what starts, and with which settings that are no defaults."""
    chosen = choices(settings)
    about = fields(
        "starting", version=__version__, pid=os.getpid(), python=platform.python_version(), file=config or "",
        settings=chosen, rules=len(settings.rules), tenants=len(settings.tenants),
    )  # fmt: skip
    said = ", ".join([f"{name} = {value}" for name, value in chosen.items()]) or "defaults only"
    log.log(_level(settings), "pannier %s starts: %s", __version__, said, extra=about)
    _mind_limit(settings)


def _mind_limit(settings: Settings) -> None:
    """Say what a memory limit changes, or that it will be broken once memory is full."""
    about = {"memory_limit": settings.memory_limit, "max_memory": settings.max_memory}
    origin = settings.origins.get("max_memory", "")
    if trouble := broken_limit(settings.max_memory, settings.memory_limit, settings.workers):
        log.warning("%s", trouble, extra=fields("memory_limit_too_low", **about))
    elif origin.startswith("default,"):
        said = fields("memory_limited", **about)
        log.log(_level(settings), "max_memory is %s, %s", show_size(settings.max_memory), origin, extra=said)


def listening(settings: Settings, addresses: list[str], choices: dict[str, object]) -> None:
    """Say where clients are served, and what is behind it."""
    where = ", ".join(addresses)
    about = fields("listening", version=__version__, addresses=addresses, **choices)
    log.log(_level(settings), "serving %s", where, extra=about)


def choices(settings: Settings) -> dict[str, str]:
    """The options that are not as by default, as `pannier config` shows them: passwords are masked."""
    found = {}
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if value != option.default:
            hidden = option.name in _NAMES_KEYS and settings.key_privacy != "plain"
            found[option.name] = "(not shown)" if hidden else option.kind.show(value)
    return found


def _level(settings: Settings) -> int:
    """Where there is a banner, that says it."""
    return logging.DEBUG if not is_json(settings.log_format) else logging.INFO
