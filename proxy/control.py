"""Commands for people and scheduled jobs: `pannier invalidate`, `delete`, `sweep`.

They talk to a running Pannier like any Redis client (redis-py's), so they work from any machine, in the
namespace that the listener or the user has. Long work shows how far it is on a terminal; Ctrl-C ends it at
once, and what has been done is said.

Exit status: 0 if all went well, 1 if Pannier or Redis refused, 2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import redis
from redis.exceptions import RedisError, ResponseError

from proxy.resp.errors import SettingsError
from proxy.upstream.address import mask

COMMANDS = {
    "invalidate": "drop from the memory of all Panniers what is kept of keys that match",
    "delete": "delete keys that match from Redis, a page at a time, and from the memory of all Panniers",
    "sweep": "delete keys that match and have no time to live",
}
DEFAULT = "redis://127.0.0.1:6380/0"
_EVERY = 0.1
"""Seconds between two looks of the progress line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{self.prog.partition(' ')[2]}: {message.removeprefix('argument ')}")


def main(argv: Sequence[str]) -> int:
    """Run one of `COMMANDS`, `argv[0]`; the exit status. Raises SettingsError."""
    command = argv[0]
    arguments = _parser(command).parse_args(argv[1:])
    try:
        client = redis.Redis.from_url(arguments.to, socket_connect_timeout=5)
    except ValueError as error:
        raise SettingsError(f"--to: {mask(arguments.to)!r} is no address of a Pannier ({error})") from None
    work = _Work(client, arguments)
    try:
        work.greet()
        print(work.invalidate() if command == "invalidate" else work.remove())
    except (RedisError, OSError) as error:
        work.line.clear()
        print(f"pannier: {mask(arguments.to)}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        work.line.clear()
        print(f"pannier: stopped; {work.summary()}", file=sys.stderr)
        return 130
    finally:
        client.close()
    return 0


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"pannier {command}", description=f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}."
    )
    parser.add_argument(
        "patterns",
        metavar="PATTERN",
        nargs="+",
        help="glob pattern of keys, as for KEYS: 'user:42:*' (quote it)",
    )
    parser.add_argument(
        "--to", metavar="URL", default=DEFAULT, help=f"a running Pannier: redis://[user:password@]host:port, "
        f"rediss:// or unix:// (default: {DEFAULT})",
    )  # fmt: skip
    if command == "sweep":
        parser.add_argument(
            "--without-ttl", action="store_true", required=True,
            help="required, so that nobody is surprised: what has a time to live stays",
        )  # fmt: skip
    if command != "invalidate":
        parser.add_argument(
            "--dry-run", action="store_true", help="count what would be deleted, delete nothing"
        )
        parser.add_argument(
            "--page", type=_page, default=1000, metavar="N", help="keys looked at in one go (default: 1000)"
        )
    parser.set_defaults(without_ttl=False)
    return parser


def _page(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)


class _Line:
    """A line on a terminal that is written over; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._next = 0.0

    def show(self, text: str) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _EVERY
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class _Work:
    def __init__(self, client: redis.Redis, arguments: argparse.Namespace) -> None:
        self.line = _Line()
        self._client: Any = client
        self._arguments = arguments
        self._looked_at = self._found = 0
        self._began = time.monotonic()

    def greet(self) -> None:
        """Make sure that it is a Pannier, before anything is done. Raises RedisError."""
        try:
            self._client.execute_command("SIDECAR", "HELP")
        except ResponseError as error:
            if "unknown command" in str(error):
                raise RedisError("this is no Pannier: it does not know SIDECAR") from None
            raise

    def invalidate(self) -> str:
        """Drop from memory what matches."""
        dropped = self._client.execute_command("SIDECAR", "INVALIDATE", "MATCH", *self._arguments.patterns)
        return f"{dropped} entries dropped here, and what others keep of them"

    def remove(self) -> str:
        """Delete what matches."""
        total = self._client.dbsize()
        for pattern in self._arguments.patterns:
            for page in self._pages(pattern):
                keys = list(self._chosen(page))
                if keys and not self._arguments.dry_run:
                    self._client.unlink(*keys)
                self._found += len(keys)
                share = min(1.0, self._looked_at / max(1, total * len(self._arguments.patterns)))
                bar = "#" * round(30 * share)
                self.line.show(f"[{bar:<30}] {share:4.0%}  {self._found:,} {self._done()}")
            if not self._arguments.dry_run:
                self._client.execute_command("SIDECAR", "INVALIDATE", "MATCH", pattern)
        self.line.clear()
        return self.summary()

    def summary(self) -> str:
        """What has been done."""
        return f"{self._found} keys {self._done()} in {time.monotonic() - self._began:.1f} s"

    def _done(self) -> str:
        return "would be deleted" if self._arguments.dry_run else "deleted"

    def _pages(self, pattern: str) -> Iterator[list[bytes]]:
        cursor = 0
        while True:
            cursor, keys = self._client.scan(cursor, match=pattern, count=self._arguments.page)
            self._looked_at += self._arguments.page
            yield keys
            if not cursor:
                return

    def _chosen(self, keys: list[bytes]) -> Iterable[bytes]:
        """Those that are to go."""
        if not self._arguments.without_ttl or not keys:
            return keys
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.ttl(key)
        return [key for key, left in zip(keys, pipeline.execute(), strict=True) if left == -1]
