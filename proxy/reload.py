"""Settings and certificates read again while Pannier runs: on SIGHUP, and when their files change.

Cache rules, tenants and the settings mode and log_level take effect at once; nobody is disconnected but who
belongs to a tenant that is gone. What is broken leaves the old ones in force and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable

from proxy.certificates import Certificates, Stamp, stamps
from proxy.events import fields
from proxy.logs import set_level
from proxy.resp.errors import SettingsError
from proxy.settings import Settings, check_rules

log = logging.getLogger("pannier.rules")

_EVERY = 1.0
"""Seconds between two looks at the files."""
_LIVE = ("rules", "rules_file", "mode", "log_level")
"""Settings that take effect without a restart; so do tenants, where there are some before and after."""

Load = Callable[[], Settings]


class Reloader:
    """Reads the settings again when it is time, and hands them on if they are good."""

    def __init__(
        self,
        settings: Settings,
        load: Load,
        config: str | None,
        apply: Callable[[Settings], None],
        watches: bool = True,
    ) -> None:
        """`watches`: whether a change of the settings' files is noticed; else whoever does asks."""
        self.trouble = ""
        """Why the files are not followed at present; empty if they are."""
        self.reloads = 0
        """How often new settings have come into force."""
        self.take_tenants: Callable[[Settings], object] = lambda settings: None
        """Serves the tenants of settings; called if there are others now."""
        self.certificates: list[Certificates] = []
        """Those that are read again as well."""
        self._settings = settings
        self._load = load
        self._config = config
        self._apply = apply
        self._watches = watches
        self._seen = self._look()
        self._asked = asyncio.Event()

    async def run(self) -> None:
        """Watch the files, and for who asks, for ever. Many rules take long to read: that is done beside."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._asked.wait()
            for certificates in self.certificates:
                certificates.tend(self._asked.is_set())
            why = "SIGHUP" if self._asked.is_set() else "a file has changed"
            if self._asked.is_set() or self._look() != self._seen:
                self._asked.clear()
                self._seen = self._look()
                self._take(why, await asyncio.to_thread(self._read))

    def ask(self) -> None:
        """Have everything read again: SIGHUP has come."""
        self._asked.set()

    def reload(self, why: str) -> None:
        """Read everything again."""
        self._seen = self._look()
        self._take(why, self._read())

    async def obey(self, why: str) -> str:
        """Read everything again, now; what is wrong with it, so that the old settings hold, or nothing."""
        for certificates in self.certificates:
            certificates.tend(why == "SIGHUP")
        self._take(why, await asyncio.to_thread(self._read))
        return self.trouble

    def _read(self) -> Settings | SettingsError:
        try:
            settings = self._load()
            # As they would be in force: another l1_ttl waits for the next start.
            check_rules(with_live(self._settings, settings))
            return settings
        except SettingsError as error:
            return error

    def _take(self, why: str, settings: Settings | SettingsError) -> None:
        """Put what was read in force, if it is good."""
        if isinstance(settings, SettingsError):
            self.trouble = str(settings)
            about = fields("rules_broken", why=why, reason=str(settings))
            log.error("%s, but the old settings stay in force: %s", why, settings, extra=about)
            return
        self.trouble = ""
        old, live = self._settings, _live(self._settings, settings)
        self._complain(name for name in _changed(settings, old) if name not in live)
        changed = set(_changed(settings, old)).intersection(live)
        self._settings = with_live(old, settings)
        if "rules_file" in changed:
            self._seen = self._look()  # of the other one; what changed while it was read is to be seen again
        if "log_level" in changed:
            set_level(settings.log_level)
            about = fields("log_level_changed", log_level=settings.log_level)
            log.info("%s: log_level is %s now", why, settings.log_level, extra=about)
        if "tenants" in changed:
            self.take_tenants(self._settings)
        if not changed - {"rules_file", "log_level", "tenants"}:
            log.info("%s: rules and mode are as they were", why, extra=fields("rules_unchanged", why=why))
            return
        self.reloads += 1
        self._apply(self._settings)
        log.info(
            "%s: %d rules in force, mode %s; memory is empty", why, len(settings.rules), settings.mode,
            extra=fields("rules_reloaded", why=why, rules=len(settings.rules), mode=settings.mode),
        )  # fmt: skip

    def _complain(self, names: Iterable[str]) -> None:
        if late := ", ".join(names):
            about = fields("settings_late", settings=late.split(", "))
            log.warning("changed settings that take effect at the next start only: %s", late, extra=about)

    def _look(self) -> list[Stamp]:
        """What tells whether a file is another than before."""
        if not self._watches:
            return []
        return stamps([self._config, self._settings.rules_file])


def _live(old: Settings, new: Settings) -> tuple[str, ...]:
    """The settings that take effect at once. How clients authenticate never does: taking all tenants out of a
    file must not open the door to everybody."""
    return (*_LIVE, "tenants") if old.auth_mode == new.auth_mode == "tenants" else _LIVE


def with_live(old: Settings, new: Settings) -> Settings:
    """The old settings with what of the new ones takes effect at once."""
    live = _live(old, new)
    origins = {name: origin for name, origin in old.origins.items() if name not in live}
    origins |= {name: origin for name, origin in new.origins.items() if name in live}
    values = {name: getattr(new, name) for name in live}
    return dataclasses.replace(old, **values, origins=origins)


def _changed(one: Settings, other: Settings) -> list[str]:
    names = [field.name for field in dataclasses.fields(Settings) if field.compare]
    return [name for name in names if getattr(one, name) != getattr(other, name)]
