"""Figures in the documents, kept equal to the results they are quoted from.

A figure in a text is a link to the report whose title names the figure in the JSON beside it, such as
``[1.07](bench/results/latest.md "commands/get-hits/1/pannier/total_ratio")``; as many digits are shown as the
text has. A table stands between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``, made anew from
the same files. ``python -m bench.quoting`` writes both; a test compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from bench.peers import summary
from bench.servers import ROOT, BenchError

RESULTS = ROOT / "bench" / "results"
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/compiled.md")
_QUOTE = re.compile(r'\[([^\]\n]*?)(-?[\d,]+(?:\.(\d+))?)([^\]\n\d]*)\]\(([\w./-]*?)(\w+)\.md "([^"\n]+)"\)')
"""Words, figure, its decimals, words; folder and name of the report; where in the JSON."""
_TABLE = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


@cache
def results(name: str) -> dict[str, Any]:
    """A report's figures. Raises BenchError if it is not there."""
    try:
        found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    except OSError as error:
        raise BenchError(f"no {error.filename}: run the benchmark that writes it") from error
    return found


def figure(name: str, place: str) -> float:
    """The figure at a place such as `commands/get-hits/1/pannier/total_ratio`: the median of several.

    Raises BenchError if there is none.
    """
    tree = results(name)
    section, _, rest = place.partition("/")
    row, _, key = rest.rpartition("/")
    try:
        if section in tree.get("sections", {}):
            value = tree["sections"][section]["rows"][row][key]
        else:
            value = _walk(tree, place)
        return float(value["median"] if isinstance(value, dict) else value)
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{name}.json has no figure at {place}") from error


def _walk(tree: Any, place: str) -> Any:
    for step in place.split("/"):
        if isinstance(tree, list):
            tree = {each["name"]: each for each in tree}
        tree = tree[step]
    return tree


def quoted(text: str) -> str:
    """The text with its figures and tables as the results have them."""

    def put(found: re.Match[str]) -> str:
        before, _, decimals, after, folder, name, place = found.groups()
        value = f"{figure(name, place):,.{len(decimals or '')}f}"
        return f'[{before}{value}{after}]({folder}{name}.md "{place}")'

    def fill(found: re.Match[str]) -> str:
        if (make := TABLES.get(found.group(2))) is None:
            raise BenchError(f"no table {found.group(2)}; known are {', '.join(TABLES)}")
        return f"{found.group(1)}\n{make()}\n\n{found.group(3)}"

    return _QUOTE.sub(put, _TABLE.sub(fill, text))


def count(text: str) -> int:
    """How many figures and tables a text quotes."""
    return len(_QUOTE.findall(text)) + len(_TABLE.findall(text))


def unquoted(text: str) -> str:
    """What a text says beside that."""
    return _QUOTE.sub("", _TABLE.sub("", text))


TABLES: dict[str, Callable[[], str]] = {
    "total": lambda: summary.total_table(results("latest"), results("latest")["sections"]["commands"]),
    "remote": lambda: summary.remote_table(results("latest")),
    "contenders": lambda: summary.contenders_table(results("latest")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the newest figures into the documents."""
    parser = argparse.ArgumentParser(prog="python -m bench.quoting", description=main.__doc__)
    parser.parse_args(arguments)
    try:
        for name in DOCUMENTS:
            file = ROOT / name
            if (new := quoted(text := file.read_text())) != text:
                file.write_text(new)
                print(f"bench: {name} quotes the newest figures", file=sys.stderr)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
