"""Every variable, flag and setting that deploy/ and its documents name is a real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.settings import BY_NAME
from tests.deploy.named import FLAGS, VARIABLES
from tests.harness import ROOT

DOCUMENTS = ["docs/container.md", "docs/kubernetes.md"]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "Dockerfile", *(ROOT / "deploy").rglob("*"), *(ROOT / name for name in DOCUMENTS)]
    if path.is_file() and path.suffix not in (".json",)
)
# fmt: off
OTHERS = {
    "--appendonly", "--build", "--build-arg", "--cap-drop", "--disable-pip-version-check", "--file", "--force-reinstall", "--format",
    "--from", "--interval", "--invalidation-mode", "--level", "--network", "--no-auth-warning",
    "--no-build-isolation", "--no-cache-dir", "--no-compile", "--no-deps", "--no-healthcheck", "--no-install-recommends", "--only-binary", "--out", "--pass", "--python",
    "--quiet", "--read-only", "--requirement", "--retries", "--rm", "--save", "--set", "--start-period", "--strip-unneeded",
    "--tag", "--timeout", "--user", "--wheel-dir", "--without-pip", "--without-ttl", "--yes",
}
# fmt: on
"""Flags of other programs, and of pannier's commands."""
NO_SETTINGS = {"memory_limited", "memory_limit_too_low"}
"""Events of the log."""


@pytest.mark.parametrize("name", FILES)
def test_variables(name: str) -> None:
    found = set(re.findall(r"\bPANNIER_[A-Z_]*[A-Z]\b", (ROOT / name).read_text()))
    assert found <= VARIABLES


@pytest.mark.parametrize("name", FILES)
def test_flags(name: str) -> None:
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", (ROOT / name).read_text()))
    assert found <= FLAGS | OTHERS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings(name: str) -> None:
    text = (ROOT / name).read_text()
    found = {match for span in re.findall(r"`([^`\n]+)`", text) for match in re.findall(r"^([a-z]+(?:_[a-z0-9]+)+)\b", span)}
    assert found <= BY_NAME.keys() | NO_SETTINGS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files(name: str) -> None:
    """What a document names by its path, or links to, is there."""
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:deploy|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for link, anchor in re.findall(r"\]\(([\w./-]+\.\w+)#?([\w-]*)\)", text):
        target = Path(ROOT / name).parent / link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if target.suffix == ".md" else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
