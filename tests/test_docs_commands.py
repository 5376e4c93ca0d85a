"""docs/commands.md says what proxy/client/dispatch.py does."""

import re
from pathlib import Path

from proxy.client import dispatch

PAGE = (Path(__file__).parent.parent / "docs" / "commands.md").read_text("utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def names(cell: str) -> set[str]:
    """The commands a table's cell names, as the command table writes them."""
    return {name.lower().replace(" ", "|") for name in re.findall(r"`([A-Z][A-Z -]+)`", cell)}


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


class TestThePageAndTheCodeAgree:
    def test_on_what_is_answered_here(self) -> None:
        assert {names(command).pop(): what for command, what in rows("Answered here")} == dispatch.LOCAL

    def test_on_what_is_answered_here_in_a_namespace(self) -> None:
        assert {names(command).pop(): what for command, what in rows("In a namespace")} == dispatch.LOCAL_IN_NAMESPACE

    def test_on_what_gets_a_link_of_its_own_and_for_how_long(self) -> None:
        table = rows("On a link of the client's own")
        own = {name for commands, until in table if "inside a transaction" not in commands for name in names(commands)}
        examples = {"blpop", "blmove", "bzpopmin", "xread", "xreadgroup"}
        routed = dispatch._TRANSACTION | dispatch._STATE | dispatch._ONCE | dispatch._TUNNEL
        assert own - examples == routed
        lasting = {name for commands, until in table if until.startswith("RESET") for name in names(commands)}
        assert lasting == dispatch._STATE | dispatch._CHANGES_LINK
        assert {name for commands, until in table if "no longer read" in until for name in names(commands)} == dispatch._TUNNEL
