"""How many values are set and deleted by clients of a space: by SET and its like, by DEL and its like.

Counted are the keys that commands name, when they are sent on. Runs that are not parsed are recognised by how
their requests begin. Taking a pipeline apart would cost a good part of passing it on: up to `EXACT` of them a
second all are, beyond that one in `SOME` stands for its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

_SET, _DELETE = 0, 1

_KEYS: dict[str, tuple[int, Callable[[Sequence[bytes]], int]]] = {
    **dict.fromkeys(["set", "setex", "psetex", "setnx", "getset"], (_SET, lambda _: 1)),
    **dict.fromkeys(["mset", "msetnx"], (_SET, lambda arguments: len(arguments) // 2)),
    **dict.fromkeys(["del", "unlink"], (_DELETE, lambda arguments: len(arguments) - 1)),
    "getdel": (_DELETE, lambda _: 1),
}
"""What is counted, as what, and of how many keys."""
_HEADS = {
    b"$%d\r\n%b\r\n" % (len(name), name.encode()): kind
    for word, (kind, _) in _KEYS.items()
    for name in (word.upper(), word)
}
_HEADS = {head[:9]: kind for head, kind in _HEADS.items()}
EXACT = 256
"""Pipelines between two settlements of which each is taken apart."""
SOME = 16
_SIGNS = (b"SET", b"DEL", b"UNLINK", b"set", b"del", b"unlink")
"""One of these is in every run that has anything to be counted in it."""


class Writes:
    """Counts, since the start. `split` takes a run apart."""

    def __init__(self, split: Callable[[bytes], Iterable[bytes]]) -> None:
        self._counts = [0, 0]
        self._split = split
        self._left = EXACT
        self._turn = 0

    @property
    def sets(self) -> int:
        """Keys that were set."""
        return self._counts[_SET]

    @property
    def deletes(self) -> int:
        """Keys that were deleted."""
        return self._counts[_DELETE]

    def run(self, n: int, data: bytes) -> None:
        """Count a run of `n` canonical requests of one key each."""
        if n == 1:
            # Where its name stands with fewer than ten arguments, as far as it takes to tell these.
            kind = _HEADS.get(data[4:13])
            if kind is not None:
                self._counts[kind] += 1
            return
        if self._left:
            self._left -= 1
            self._take_apart(n, data, 1)
            return
        self._turn = (self._turn + 1) % SOME
        if not self._turn:
            self._take_apart(n, data, SOME)

    def settle(self) -> None:
        """Count exactly again for a while; called once a second."""
        self._left = EXACT

    def _take_apart(self, n: int, data: bytes, weight: int) -> None:
        if not any(sign in data for sign in _SIGNS):
            return
        requests = data.split(b"*")
        if len(requests) != n + 1:  # a star in an argument
            requests = [request[1:] for request in self._split(data)]
        for request in requests:
            kind = _HEADS.get(request[3:12])
            if kind is not None:
                self._counts[kind] += weight

    def command(self, name: str, arguments: Sequence[bytes]) -> None:
        """Count a parsed command."""
        found = _KEYS.get(name)
        if found is not None:
            kind, keys = found
            self._counts[kind] += keys(arguments)
