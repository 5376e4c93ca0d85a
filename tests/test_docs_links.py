"""Links within the documentation lead somewhere, and what docs/operations.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.observe.families import FAMILIES
from proxy.settings import BY_NAME
from tests.harness import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head).lower()).replace(" ", "-") for head in heads]
    return set(plain)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or found.suffix != ".md" or anchor in anchors(found), f"{page.name}: {target}"


def test_what_operators_are_told_of_exists() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    names = {family.name for family in FAMILIES}
    metrics = [each.removesuffix("_total") for each in re.findall(r"`(pannier_\w+)`", text)]
    fields = (ROOT / "docs/memory.md").read_text() + (ROOT / "docs/bus.md").read_text() + (ROOT / "docs/rules.md").read_text()
    missing = [each for each in metrics if each not in names and each.removeprefix("pannier_") not in fields]
    assert not missing
    settings = re.findall(r"`([a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?: = [^`]*)?`", text)
    known = {*BY_NAME, "password_file", "stale_while_revalidate", "stale_if_error", "refresh_ahead", "client_killed"}
    unknown = [each for each in settings if each not in known and not each.startswith(("pannier_", "process_"))]
    assert not unknown
