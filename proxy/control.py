"""Commands for people and scheduled jobs: `pannier invalidate`, `delete`, `sweep`, `warm`, `top`,
`advise`.

They talk to a running Pannier like any Redis client (redis-py's), so they work from any machine, in the
namespace that the listener or the user has. Long work shows how far it is on a terminal; Ctrl-C ends it at
once, and what has been done is said, as it is where Pannier or Redis refuses to go on.

Exit status: 0 if all went well, 1 if Pannier or Redis refused, 2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import redis
from redis.exceptions import RedisError, ResponseError, WatchError

from proxy import top
from proxy.resp.errors import SettingsError
from proxy.resp.globs import compile_globs, literal
from proxy.resp.hotlist import lines_of, words_of
from proxy.terminal import Line, bar
from proxy.top import texts
from proxy.upstream.address import mask

COMMANDS = {
    "invalidate": "drop from the memory of all Panniers what is kept of keys that match",
    "delete": "delete keys that match from Redis, a page at a time, and from the memory of all Panniers",
    "sweep": "delete keys that match and have no time to live",
    "warm": "fetch keys that match into the memory of a Pannier",
    "advise": "show what a Pannier's settings should be, and the figures that say so",
    "top": "show what a Pannier does, live: rates, memory, the keys read most; q ends it",
}
DEFAULT = "redis://127.0.0.1:6380/0"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{self.prog.partition(' ')[2]}: {message.removeprefix('argument ')}")


def main(argv: Sequence[str]) -> int:
    """Run one of `COMMANDS`, `argv[0]`; the exit status. Raises SettingsError."""
    command = argv[0]
    arguments = _parser(command).parse_args(argv[1:])
    try:
        # RESP2: it needs nothing else, and replies need not be kept in both forms for its sake.
        client = redis.Redis.from_url(arguments.to, socket_connect_timeout=5, socket_timeout=60, protocol=2)
    except ValueError as error:
        raise SettingsError(f"--to: {mask(arguments.to)!r} is no address of a Pannier ({error})") from None
    work = _WORKS[command](client, arguments)
    try:
        work.greet()
        if said := work.do():
            print(said, flush=True)
    except BrokenPipeError:
        # Who reads the output has seen enough; nothing is to be written to it at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RedisError, OSError) as error:
        work.line.clear()
        print(f"pannier: {mask(arguments.to)}: {error}", file=sys.stderr)
        if done := work.midway():
            print(f"pannier: stopped before the end; {done}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        work.line.clear()
        if done := work.summary():
            print(f"pannier: stopped; {done}", file=sys.stderr)
        return 130 if done else 0
    finally:
        client.close()
    return work.status


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"pannier {command}", description=f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}."
    )
    if command not in _WITHOUT_PATTERNS:
        parser.add_argument(
            "patterns",
            metavar="PATTERN",
            nargs="*" if command == "warm" else "+",
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
    if command == "warm":
        parser.add_argument(
            "--file",
            metavar="FILE",
            help="more of them, one a line: keys, patterns, reads such as HGETALL user:*",
        )
        parser.add_argument(
            "--limit", type=_limit, default=100_000, metavar="N", help="keys at most (default: 100000)"
        )
    if command in ("delete", "sweep"):
        parser.add_argument(
            "--dry-run", action="store_true", help="count what would be deleted, delete nothing"
        )
        parser.add_argument(
            "--page", type=_page, default=1000, metavar="N", help="keys looked at in one go (default: 1000)"
        )
    if command == "top":
        parser.add_argument(
            "--interval", type=_interval, default=1.0, metavar="SECONDS", help="between looks (default: 1)"
        )
        parser.add_argument(
            "--once", action="store_true", help="print it once; so it is where the output is no terminal"
        )
    parser.set_defaults(without_ttl=False, page=1000)
    return parser


def _page(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)


def _interval(text: str) -> float:
    match = re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text)
    if not match or not _SHORTEST <= float(text) <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {_SHORTEST} to {_LONGEST}")
    return float(text)


def _limit(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text[:20]) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000000")
    return int(text)


class _Work:
    status = 0
    """The exit status."""

    def __init__(self, client: redis.Redis, arguments: argparse.Namespace) -> None:
        self.line = Line()
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

    def do(self) -> str:
        """Do it; what has been done."""
        raise NotImplementedError

    def summary(self) -> str:
        """What has been done so far."""
        raise NotImplementedError

    def midway(self) -> str:
        """The same, where Pannier or Redis refused to go on; empty: it had not begun."""
        return self.summary() if self._looked_at else ""

    @property
    def _patterns(self) -> list[bytes]:
        """Those of the command line, as the bytes they are, whatever the encoding."""
        return [text.encode("utf-8", "surrogateescape") for text in self._arguments.patterns]

    def _pages(self, pattern: str | bytes) -> Iterator[list[bytes]]:
        cursor = 0
        while True:
            cursor, keys = self._client.scan(cursor, match=pattern, count=self._arguments.page)
            self._looked_at += self._arguments.page
            yield keys
            if not cursor:
                return


class _Deletion(_Work):
    """What is counted is what Redis says it has deleted: somebody else may be deleting the same."""

    def do(self) -> str:
        """Delete what matches, pattern by pattern."""
        patterns = self._patterns
        total = max(1, self._client.dbsize())
        for number, pattern in enumerate(patterns):
            begun = self._looked_at
            for page in self._pages(pattern):
                for keys in _pieces(self._new(page, patterns[:number])):
                    self._take(keys)
                share = min(1.0, (self._looked_at - begun) / total)
                self._show((number + share) / len(patterns))
            if not self._arguments.dry_run:
                self._client.execute_command("SIDECAR", "INVALIDATE", "MATCH", pattern)
        self._show(1.0)
        self.line.clear()
        return self.summary()

    def summary(self) -> str:
        """How many keys."""
        return f"{self._found} keys {self._done()} in {time.monotonic() - self._began:.1f} s"

    def _done(self) -> str:
        return "would be deleted" if self._arguments.dry_run else "deleted"

    def _show(self, share: float) -> None:
        self.line.show(f"{bar(share)}  {self._found:,} {self._done()}", at_once=share >= 1.0)

    def _new(self, page: list[bytes], earlier: list[bytes]) -> list[bytes]:
        """The keys that no earlier pattern has named: where nothing is deleted, they are still there."""
        keys = list(dict.fromkeys(page))
        if not earlier or not self._arguments.dry_run:
            return keys
        seen = compile_globs(earlier)
        return [key for key in keys if not seen.fullmatch(key)]

    def _take(self, keys: list[bytes]) -> None:
        """Delete some keys, or find out how many would be, and count them."""
        if self._arguments.dry_run:
            self._found += len(keys)
            return
        with _undisturbed():
            self._found += self._client.unlink(*keys)


class _Sweeping(_Deletion):
    """Deletes what has no time to live, and has been given none when it goes.

    With WATCH rather than a script: scripts are often denied, and make Panniers without tracking forget all.
    """

    def _take(self, keys: list[bytes]) -> None:
        if self._arguments.dry_run:
            self._found += len(self._lasting(self._client, keys))
        elif not self._delete_unchanged(keys) and len(keys) > 1:
            half = len(keys) // 2  # one of them was written meanwhile; by itself, it is let be
            self._take(keys[:half])
            self._take(keys[half:])

    def _delete_unchanged(self, keys: list[bytes]) -> bool:
        """Delete those without a time to live, unless one of the keys is written meanwhile."""
        with _undisturbed(), self._client.pipeline() as pipeline:
            pipeline.watch(*keys)
            lasting = self._lasting(pipeline, keys)
            pipeline.multi()
            if lasting:
                pipeline.unlink(*lasting)
            try:
                self._found += sum(pipeline.execute())
            except WatchError:
                return False
        return True

    def _lasting(self, client: Any, keys: list[bytes]) -> list[bytes]:
        """Those without a time to live."""
        if client is self._client:
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.pttl(key)
                lives = pipeline.execute()
        else:
            lives = [client.pttl(key) for key in keys]
        return [key for key, left in zip(keys, lives, strict=True) if left == -1]


class _Invalidation(_Work):
    """Pannier does it by itself, whoever waits; how far it is, it says on another connection."""

    def __init__(self, client: redis.Redis, arguments: argparse.Namespace) -> None:
        super().__init__(client, arguments)
        self._dropped = 0
        self._failure: Exception | None = None

    def do(self) -> str:
        """Drop from memory what matches."""
        with self._client.client() as connection:
            mine = connection.client_id()
            work = threading.Thread(target=self._invalidate, args=(connection,), daemon=True)
            work.start()
            while work.is_alive():
                work.join(_LOOK)
                if self.line.shown and work.is_alive():
                    self._look(mine)
        if self._failure is not None:
            raise self._failure
        self.line.show(f"{bar(1.0)}  {self._dropped:,} entries dropped", at_once=True)
        self.line.clear()
        return f"{self._dropped} entries dropped here, and what others keep of them"

    def summary(self) -> str:
        """How many entries, as far as is known."""
        return f"{self._dropped} entries dropped here so far; Pannier goes on with the rest"

    def midway(self) -> str:
        """How many entries, if any are known to be."""
        return f"{self._dropped} entries dropped here, as far as is known" if self._dropped else ""

    def _invalidate(self, connection: Any) -> None:
        try:
            self._dropped = connection.execute_command("SIDECAR", "INVALIDATE", "MATCH", *self._patterns)
        except Exception as error:
            self._failure = error

    def _look(self, session: int) -> None:
        """Show how far it is."""
        fields = self._client.info("sidecar").get(f"pannier_long_command_{session}")
        if isinstance(fields, dict) and "of" in fields:
            self._dropped = fields["dropped"]
            share = fields["looked_at"] / max(1, fields["of"])
            self.line.show(f"{bar(share)}  {self._dropped:,} entries dropped")


class _Watching(_Work):
    """`pannier top`; see `proxy.top`."""

    def do(self) -> str:
        """Show what it does until somebody stops that."""
        arguments = self._arguments
        top.watch(self._client.execute_command, mask(arguments.to), arguments.interval, arguments.once)
        return ""

    def summary(self) -> str:
        """Nothing is left to say."""
        return ""


class _Advising(_Work):
    def do(self) -> str:
        """What SIDECAR ADVISE says, for people."""
        reports = [texts(each) for each in self._client.execute_command("SIDECAR", "ADVISE")]
        return "\n\n".join(map(_advice, reports)) or "nothing was read from memory yet"


def _advice(report: dict[str, Any]) -> str:
    """A report of SIDECAR ADVISE."""
    names = {"": "Memory", "*": "All namespaces together"}
    name = names.get(report["namespace"], f"Namespace {report['namespace']}")
    lines = [f"{name}: {report['says']}"]
    for each in map(texts, report["advice"]):
        lines += [f"* {each['what'][0].upper()}{each['what'][1:]}", f"  {each['why']}"]
        lines.append(f"  set {each['setting']}: {each['value']}")
    if not report["advice"] and report["curve"]:
        lines.append("* There is nothing to advise")
    return "\n".join(lines)


class _Warming(_Work):
    """Keys are found here, page by page, and given to Pannier in batches: so it is known how far it is."""

    def __init__(self, client: redis.Redis, arguments: argparse.Namespace) -> None:
        super().__init__(client, arguments)
        self._globs, self._lines = _wishes(arguments)
        self._kept = self._of = 0
        self._failed = 0
        self._reasons: Counter[str] = Counter()

    def do(self) -> str:
        """Fetch what matches, and what the file names."""
        total = max(1, self._client.dbsize()) * len(self._globs) + len(self._lines)
        for begin in range(0, len(self._lines), _BATCH):
            self._warm("LINES", self._lines[begin : begin + _BATCH])
            self._looked_at += _BATCH
            self._show(total)
        for pattern in self._globs:
            for page in self._pages(pattern):
                self._warm("KEYS", page)
                self._show(total)
                if self._of >= self._arguments.limit:
                    break
        self.line.clear()
        self.status = 1 if self._failed else 0
        return self.summary()

    def summary(self) -> str:
        """How many of how many, and why not all."""
        taken = time.monotonic() - self._began
        lines = [f"{self._kept:,} of {self._of:,} keys in {taken:.1f} seconds"]
        return "\n".join([*lines, *(f"  {n:,}: {why}" for why, n in self._reasons.most_common())])

    def _show(self, total: int) -> None:
        share = max(self._looked_at / total, self._of / self._arguments.limit)
        self.line.show(f"{bar(share)}  {self._kept:,} of {self._of:,} keys")

    def _warm(self, how: str, names: Sequence[bytes]) -> None:
        names = names[: self._arguments.limit - self._of]
        if not names:
            return
        limit = ["LIMIT", self._arguments.limit - self._of] if how == "LINES" else []
        report = _as_map(self._client.execute_command("SIDECAR", "WARM", how, *names, *limit))
        self._kept += report[b"warmed"]
        self._of += report[b"of"]
        self._failed += report[b"failed"]
        self._reasons.update({why.decode(): n for why, n in _as_map(report[b"reasons"]).items()})


def _pieces(keys: list[bytes]) -> Iterator[list[bytes]]:
    """Keys in such numbers as are deleted at once."""
    for start in range(0, len(keys), _PIECE):
        yield keys[start : start + _PIECE]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put the first Ctrl-C off, so that what is deleted is known; the second ends it at once."""
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _wishes(arguments: argparse.Namespace) -> tuple[list[bytes], list[bytes]]:
    """The patterns to look for, and the lines for the Pannier to make out. Raises SettingsError."""
    given = [(f"{text!r}", text.encode("utf-8", "surrogateescape")) for text in arguments.patterns]
    if arguments.file is not None:
        try:
            data = Path(arguments.file).read_bytes()
        except OSError as error:
            raise SettingsError(
                f"warm: --file: {arguments.file!r} cannot be read ({error.strerror})"
            ) from None
        given += [(f"--file: {arguments.file}:{number}", line) for number, line in lines_of(data)]
    patterns: list[bytes] = []
    lines: list[bytes] = []
    for place, line in given:
        try:
            words = words_of(line)
        except ValueError as error:
            raise SettingsError(f"warm: {place} {error}") from None
        alone = len(words) == 1 and literal(words[0]) is None
        (patterns if alone else lines).append(words[0] if alone else line)
    if not patterns and not lines:
        raise SettingsError("warm: nothing to fetch; give a PATTERN, or --file with some lines")
    return patterns, lines


def _as_map(reply: Any) -> dict[bytes, Any]:
    """A map as RESP3 has it, or the flat list that it is in RESP2."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


_BATCH = 500
"""Lines sent at once."""
_WITHOUT_PATTERNS = ("top", "advise")
_SHORTEST, _LONGEST = 0.1, 3600
_PIECE = 256
"""Keys deleted at once."""
_LOOK = 0.1
"""Seconds between two looks at how far it is."""
_WORKS: dict[str, type[_Work]] = {
    "invalidate": _Invalidation, "delete": _Deletion, "sweep": _Sweeping, "warm": _Warming,
    "top": _Watching, "advise": _Advising,
}  # fmt: skip
