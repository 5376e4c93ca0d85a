"""Bring the vendored command table up to date from live servers.

    python -m proxy.tools.commands_table redis://127.0.0.1:6379 --output proxy/resp/commands.json

Asks each server named for COMMAND, merges the answers over the table, and says what that adds or changes.
Where two servers describe a command differently the newer Redis wins, and any Redis over a fork. Without
--output nothing is written. Modules' commands are left out: the proxy learns them from the server it serves.
Servers older than Redis 7.0 are refused, as they do not tell key specifications.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from proxy.resp.commands import describe

VENDORED = Path(__file__).parent.parent / "resp" / "commands.json"

FACTS = ("arity", "flags", "acl_categories", "tips", "first_key", "last_key", "step", "key_specs")
"""What an entry says, in the order of the file; "seen_in" follows."""

UNORDERED = {"flags", "acl_categories"}

Entry = dict[str, Any]


class ReportError(Exception):
    """A server whose answer is of no use. Its text is for the person at the terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0, or 1 if a server or a file was of no use."""
    options = _parser().parse_args(argv)
    try:
        table = json.loads(options.base.read_text("utf-8"))["commands"]
        for url in options.urls:
            label, entries = fetch(url)
            print(f"{url}: {label}, {len(entries)} commands")
            for line in merge(table, label, entries):
                print(f"  {line}")
        if options.output is not None:
            options.output.write_text(render(table), "utf-8")
    except (redis.RedisError, ReportError, OSError, ValueError, KeyError) as error:
        print(f"commands_table: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(url: str) -> tuple[str, dict[str, Entry]]:
    """Ask the server at `url`; return its label ("redis 7.0.15") and entries in the shape of the file.

    Raises ReportError, or redis-py's errors.
    """
    client: Any = redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=10)
    client.set_response_callback("COMMAND", lambda reply, **_: reply)  # as it came
    try:
        info = client.info("server")
        reply = client.execute_command("COMMAND")
    finally:
        client.close()
    name = info.get("server_name", "redis")
    label = f"{name} {info.get(f'{name}_version', info.get('redis_version', '?'))}"
    return label, dict(_core(reply, label, ""))


def _core(reply: list[object], label: str, parent: str) -> Iterator[tuple[str, Entry]]:
    """Read COMMAND's reply: entries of commands and sub-commands that are no module's."""
    for item in reply:
        try:
            name, facts = describe(item, parent)
        except ValueError as error:
            raise ReportError(f"{label} describes a command unreadably: {error}") from error
        if not facts["full"]:
            raise ReportError(f"{label} does not report key specifications; Redis 7.0 or newer does")
        if "module" in facts["flags"]:
            continue
        yield name, {fact: facts[fact] for fact in FACTS}
        yield from _core(facts["subcommands"], label, name)


def merge(table: dict[str, Entry], label: str, entries: dict[str, Entry]) -> Iterator[str]:
    """Merge one server's `entries` into `table`, in place; yield a line for each thing added or changed."""
    for name, entry in sorted(entries.items()):
        known = table.get(name)
        if known is None:
            table[name] = entry | {"seen_in": [label]}
            yield f"added {name}"
            continue
        seen = known["seen_in"]
        differing = [fact for fact in FACTS if _differ(fact, known, entry)]
        if differing and rank(label) >= max(map(rank, seen)):
            yield from (f"changed {name}: {fact} {_brief(known[fact], entry[fact])}" for fact in differing)
            known.update({fact: entry[fact] for fact in differing})
        if label not in seen:
            seen.append(label)


def rank(label: str) -> tuple[bool, tuple[int, ...]]:
    """Order servers by whose word counts more: Redis before others, newer before older, by number.

    A label of a development state carries the version it leads to: "redis unstable (8.0 development)".
    """
    version = re.search(r"\d+(?:\.\d+)+", label.rpartition("(")[2])
    numbers = tuple(int(part) for part in version[0].split(".")) if version else ()
    return label.startswith("redis "), numbers


def render(table: dict[str, Entry]) -> str:
    """Write the table as the file has it: one line for each command, so that changes read well."""
    labels = sorted({label for entry in table.values() for label in entry["seen_in"]}, key=_by_origin)
    origin = f"output of COMMAND on {', '.join(labels)}; the newest Redis wins where they differ"
    lines = (
        f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'), ensure_ascii=False)}"
        for name, entry in sorted(table.items())
    )
    body = ",\n".join(lines)
    return f'{{\n"origin": {json.dumps(origin)},\n"commands": {{\n{body}\n}}\n}}\n'


def _by_origin(label: str) -> tuple[bool, tuple[int, ...], str]:
    """Redis first, then others; older first."""
    original, version = rank(label)
    return not original, version, label


def _differ(fact: str, known: Entry, entry: Entry) -> bool:
    if fact in UNORDERED:
        return sorted(known[fact]) != sorted(entry[fact])
    return bool(known[fact] != entry[fact])


def _brief(before: object, after: object) -> str:
    return f"{json.dumps(before)} -> {json.dumps(after)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m proxy.tools.commands_table",
        description="Merge the COMMAND output of live servers (Redis 7.0 or newer) into the command table, "
        "and report what that adds or changes.",
    )
    parser.add_argument("urls", nargs="+", metavar="URL", help="a server, e.g. redis://127.0.0.1:6379")
    parser.add_argument(
        "--base", type=Path, default=VENDORED, metavar="FILE", help="the table to start from (the vendored)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write the result; without it, only report"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
