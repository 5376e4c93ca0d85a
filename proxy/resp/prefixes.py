"""Pipelines of common commands get a namespace's prefix without being parsed.

`Prefixer.run` replaces the heads of requests: argument count, command and the length of the first argument.
Where that does not do, `each` parses request by request.
"""

from __future__ import annotations

from typing import Final

from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.keys import key_positions
from proxy.resp.namespace import NAMING_ERRORS, Namespace
from proxy.resp.patterns import SHORT, find_heads, match_head
from proxy.resp.requests import RequestParser

_MOST_HEADS: Final = 4096


class Prefixer:
    """One namespace's, by one command table."""

    def __init__(self, namespace: Namespace, table: CommandTable) -> None:
        self._namespace = namespace
        self._table = table
        self._heads: dict[bytes, tuple[int, bytes, bytes]] = {}
        self._parser = RequestParser(2**31)

    def forget(self) -> None:
        """Judge anew: the table has changed."""
        self._heads.clear()

    def run(self, n: int, data: bytes) -> bytes | None:
        """A chunk of `n` canonical requests with the prefix; None: they have to be parsed.

        Each request begins with a star. If there is none besides, none is inside an argument, so nothing
        inside an argument looks like the head of a request, and heads can be replaced wherever they stand. A
        new head may be the old one of longer keys: these are replaced first.
        """
        found = match_head(data, 0)
        if found is None:
            return None
        head = found[0]
        longest, new, _ = self._heads.get(head) or self._learn(head)
        if n == 1:
            return new + data[len(head) :] if longest else None
        if data.count(b"*") != n:
            return None
        if longest:
            real = data.replace(head, new)
            if len(real) - len(data) == n * (len(new) - len(head)):
                return real  # all had the same head
        known = [self._heads.get(head) or self._learn(head) for head in set(find_heads(data))]
        known.sort(reverse=True)
        if not known[-1][0]:
            return None
        for _, new, head in known:
            data = data.replace(head, new)
        return data

    def _learn(self, head: bytes) -> tuple[int, bytes, bytes]:
        """What to do with a head: how long the keys behind it are, the head to put in its place, and the
        head.

        The length is one more than it is; 0 if such requests have to be parsed: their key is not the first
        argument, not the only one, or too long for `patterns` with the prefix.
        """
        at = head.rindex(b"$")
        length = int(head[at + 1 : -2])
        prefix = self._namespace.prefix
        new = b"%b$%d\r\n%b" % (head[:at], length + len(prefix), prefix)
        count, _, name, _, _ = head[1:].split(b"\r\n")
        fits = length + len(prefix) <= SHORT and self.fits(name.decode("latin-1"), int(count))
        known = length + 1 if fits else 0
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        found = self._heads[head] = (known, new, head)
        return found

    def fits(self, name: str, count: int) -> bool:
        """Whether requests of so many arguments, the name included, have their one key in the first.

        Whatever the arguments are; and whether their replies hold no keys.
        """
        command = self._table.find(name.encode())
        if command is None or command.container or command.name in NAMING_ERRORS or not command.keys_by_count:
            return False
        if "admin" in command.flags or not self._table.reports(command):
            return False
        uses = key_positions(command, [b""] * count)
        return uses is not None and [use.index for use in uses] == [1]

    def each(self, data: bytes) -> list[bytes]:
        """The requests of a chunk of canonical ones, each with the prefix. Raises RefusedHere."""
        translated, pos = [], 0
        while pos < len(data) and (request := self._parser.parse(data, pos)) is not None:
            arguments = request.arguments
            real, _ = self._namespace.translate(self._table.find(*arguments[:2]), arguments)
            translated.append(encode.request(*real))
            pos = request.end
        return translated


def first_names(table: CommandTable, plain: dict[int, list[str]]) -> dict[int, list[str]]:
    """What of `plain` (names by argument count) has its one key in the first argument and nothing to
    strip."""
    prefixer = Prefixer(Namespace("any"), table)
    return {count: [name for name in names if prefixer.fits(name, count)] for count, names in plain.items()}
