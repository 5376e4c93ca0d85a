"""Which settings there are, for what deploy/ and its documents name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from proxy.settings import CONFIG_VARIABLE, OPTIONS, Settings, load

VARIABLES = {option.variable for option in OPTIONS} | {CONFIG_VARIABLE}
FLAGS = {option.flag for option in OPTIONS}


def settings_of(env: Mapping[str, str]) -> Settings:
    """What a Pannier with these variables would be set to. Raises SettingsError."""
    return load({}, env)[0]


def drain_seconds(env: Mapping[str, str]) -> float:
    """How long it may take to end; a file that its variables name has to be there."""
    settings = settings_of(env)
    return settings.drain_delay + settings.drain_timeout


def tool(name: str, package: str) -> str:
    """The path of a program that a wheel brings; the test is skipped where there is none."""
    found = shutil.which(name, path=str(Path(sys.prefix, "bin"))) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: pip install {package}")
    return found
