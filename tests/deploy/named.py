"""Which settings there are, for what deploy/ and its documents name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from proxy.kinds import duration
from proxy.settings import CONFIG_VARIABLE, OPTIONS, Settings, load

DRAIN = {"PANNIER_DRAIN_DELAY": "--drain-delay", "PANNIER_DRAIN_TIMEOUT": "--drain-timeout"}
"""Named already in deploy/, and taken for real until they are among OPTIONS."""
VARIABLES = {option.variable for option in OPTIONS} | {CONFIG_VARIABLE, *DRAIN}
FLAGS = {option.flag for option in OPTIONS} | set(DRAIN.values())


def settings_of(env: Mapping[str, str]) -> Settings:
    """What a Pannier with these variables would be set to. Raises SettingsError."""
    there = {option.variable for option in OPTIONS}
    return load({}, {name: text for name, text in env.items() if name not in DRAIN or name in there})[0]


def drain_seconds(env: Mapping[str, str]) -> float:
    """How long it may take to end, by its own settings."""
    defaults = {"PANNIER_DRAIN_DELAY": "0s", "PANNIER_DRAIN_TIMEOUT": "10s"}
    return sum(duration(0, 86400).parse(env.get(name, default)) for name, default in defaults.items())


def tool(name: str, package: str) -> str:
    """The path of a program that a wheel brings; the test is skipped where there is none."""
    found = shutil.which(name, path=str(Path(sys.prefix, "bin"))) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: pip install {package}")
    return found
