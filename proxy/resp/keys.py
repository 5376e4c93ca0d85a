"""Which arguments of a command are keys, and what the command does with each.

`key_positions` evaluates the key specifications of the command table. Where these leave something open, or
where Redis' own evaluation of them differs from what the command then does, a rule written by hand takes
their place; `_RULES` lists them. Arguments are counted as Redis does: the command's name is argument 0.

Two answers need care by the caller:

- `None`: the keys cannot be known. The command must be treated as touching anything: refuse it where a key
  has to be rewritten, drop everything where a write has to be noticed. This is the answer for unknown or
  incomplete specifications without a rule, for modules that declare nothing, and for options a rule has
  never heard of (a newer server may accept them, and their arguments must not be mistaken for others).
- `[]`: no argument is a key. Either the command has none, or Redis is certain to refuse it before it
  touches one: too few arguments for any key, a key count that is not a number, is negative or larger than
  the number of arguments, an option without its value, XREAD with an odd rest, MIGRATE with a key and KEYS.
  (A module may read its key count more leniently than Redis, so there such a count means `None`.)

The arity is not looked at: a command with too many or too few arguments is refused by Redis, and reporting
the keys it does have is harmless, while relying on an arity that another version changed would not be.

Some names are not keys and are not reported: channels (specifications marked not_key), the patterns of KEYS
and SCAN, and the key *patterns* of SORT's BY and GET. The latter read keys derived from the data, which no
argument names; `pattern_positions` tells where they stand.

Redis docs: "Command key specifications", "COMMAND GETKEYS".
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from proxy.resp.commands import BeginIndex, Command, FindKeynum, FindRange, KeySpec


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One argument that is a key.

    `index` is its place, the command's name being 0. `access` holds the flags of Redis' key specifications:
    one of RO (reads), RW (reads and writes), OW (overwrites), RM (removes), and any of access (returns or
    copies the value), update, insert, delete. It is empty if nobody said.
    """

    index: int
    access: frozenset[str]


BY_OPTIONS: Final = frozenset({
    "sort", "sort_ro", "migrate", "georadius", "georadiusbymember", "xread", "xreadgroup", "stralgo",
})  # fmt: skip
"""Commands whose keys cannot be known only if they have an option that no known server takes."""

READ: Final = frozenset({"RO", "access"})
OVERWRITE: Final = frozenset({"OW", "update"})
CHANGE: Final = frozenset({"RW", "access", "update"})
TAKE: Final = frozenset({"RW", "access", "delete"})

_REST: Final = -1
"""The width of an option that takes all arguments after it."""

_NUMBER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
"""What Redis accepts as an integer argument: no sign but "-", no leading zeros, no blanks."""

_MOST_CACHED_ARGUMENTS: Final = 16

_NOT_ACCESS: Final = frozenset({"incomplete", "variable_flags"})

_SET_PLAIN: Final = KeyUse(1, OVERWRITE)


class _RefusedError(Exception):
    """Redis is certain to refuse the command before it touches a key."""


class _UnknowableError(Exception):
    """The keys cannot be told from the arguments by anything we know."""


def key_positions(command: Command, args: Sequence[bytes]) -> list[KeyUse] | None:
    """Return the keys among `args`, each place once; None if they cannot be known. Never raises.

    `args` is the whole command, its name (and sub-command's name) included. `command` must be what the
    table finds for it, the sub-command for a container. The order is that of COMMAND GETKEYS.
    The module's docstring says what `[]` and None mean for malformed commands.
    """
    argc = len(args)
    if argc < 2:
        return []
    try:
        rule = _RULES.get(command.name)
        if rule is not None:
            return rule(command, args)
        if command.keys_by_count and argc <= _MOST_CACHED_ARGUMENTS:
            return list(_by_count(command, argc))
        return _by_specs(command, args)
    except _RefusedError:
        return []
    except _UnknowableError:
        return None


def pattern_positions(command: Command, args: Sequence[bytes]) -> list[int] | None:
    """Return the places of SORT's and SORT_RO's key patterns (BY, GET); `[]` for every other command.

    A pattern stands for a family of keys: "*" in it is replaced by each element. It is not a key itself,
    but in a namespace it takes the same prefix. Patterns without "*" name no key (`BY nosort`, `GET #`) and
    are left out. None, like that of `key_positions`, if the command has an option we do not know.
    """
    if command.name not in _SORTS:
        return []
    try:
        options = list(_options(args, 2, _SORTS[command.name]))
    except _RefusedError:
        return []
    except _UnknowableError:
        return None
    return [at + 1 for option, at in options if option in (b"by", b"get") and b"*" in args[at + 1]]


# Key specifications


@lru_cache(maxsize=4096)
def _by_count(command: Command, argc: int) -> tuple[KeyUse, ...]:
    return tuple(_by_specs(command, (b"",) * argc))


def _by_specs(command: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """Evaluate all key specifications. A place that two of them find is reported once, with both accesses."""
    found: dict[int, frozenset[str]] = {}
    for spec in command.key_specs:
        if "not_key" in spec.flags:
            continue
        if "incomplete" in spec.flags:
            raise _UnknowableError
        access = spec.flags - _NOT_ACCESS
        for index in _places(command, spec, args):
            found[index] = found.get(index, access) | access
    return [KeyUse(index, access) for index, access in found.items()]


def _places(command: Command, spec: KeySpec, args: Sequence[bytes]) -> range:
    first = _begin(spec, args)
    match spec.find:
        case FindRange(last_key, step, limit):
            last = first + last_key if last_key >= 0 else len(args) + last_key
            if last_key < 0 and limit > 1:
                last = first + (len(args) - first) // limit + last_key
            return range(first, min(last + 1, len(args)), step)
        case FindKeynum(keynum_index, first_key, step):
            if first >= len(args):  # no keyword, or nothing after it
                return range(0)
            count = _key_count(command, args, first + keynum_index)
            start = first + first_key
            if count and start + (count - 1) * step >= len(args):
                raise _refusal(command)
            return range(start, start + count * step, step)
        case None:
            raise _UnknowableError


def _begin(spec: KeySpec, args: Sequence[bytes]) -> int:
    """Return where the keys of `spec` begin, or a place past the end if its keyword does not occur.

    Like Redis, never look for the keyword in the last argument (nothing could follow it), nor, when
    searching backwards, in the first.
    """
    match spec.begin:
        case None:
            raise _UnknowableError
        case BeginIndex(index):
            return index
        case keyword:
            start, end = keyword.start_from, len(args)
            candidates = range(end + start, 1, -1) if start < 0 else range(max(start, 1), end - 1)
            found = (at for at in candidates if word(args[at]) == keyword.keyword)
            return next(found, end - 1) + 1


def _key_count(command: Command, args: Sequence[bytes], at: int) -> int:
    """Read the number of keys in argument `at`, as strictly as Redis does."""
    if at < len(args) and _NUMBER.fullmatch(args[at]):
        count = int(args[at])
        if count >= 0:
            return count
    raise _refusal(command)


def _refusal(command: Command) -> Exception:
    """What a bad key count means: Redis refuses it, a module may have its own idea of numbers."""
    return _UnknowableError() if "module" in command.flags else _RefusedError()


# Rules by hand


def word(argument: bytes) -> bytes:
    """An argument as Redis compares it to option names: as a C string, which ends at a zero byte."""
    return argument.partition(b"\0")[0].lower()


def _options(args: Sequence[bytes], start: int, widths: Mapping[bytes, int]) -> Iterator[tuple[bytes, int]]:
    """Walk the options from argument `start` on; yield each with its place.

    `widths` gives the number of values of each, `_REST` for one that ends the walk. Values are stepped
    over, so one that looks like an option is not taken for it.
    """
    at = start
    while at < len(args):
        option = word(args[at])
        width = widths.get(option)
        if width is None:
            raise _UnknowableError
        if at + width >= len(args):
            raise _RefusedError
        yield option, at
        if width == _REST:
            return
        at += 1 + width


_SORT_RO: Final = {b"asc": 0, b"desc": 0, b"alpha": 0, b"limit": 2, b"by": 1, b"get": 1}
_SORTS: Final = {"sort": _SORT_RO | {b"store": 1}, "sort_ro": _SORT_RO}


def _sort(command: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """The specification is unknown beyond the first key: STORE may stand anywhere. The last one counts."""
    stores = [at + 1 for option, at in _options(args, 2, _SORTS[command.name]) if option == b"store"]
    return [KeyUse(1, READ), *(KeyUse(at, OVERWRITE) for at in stores[-1:])]


_MIGRATE: Final = {b"copy": 0, b"replace": 0, b"auth": 1, b"auth2": 2, b"keys": _REST}


def _migrate(_: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """Either one key in the third place, or "" there and KEYS; "KEYS" may also be a password or a key.

    Without KEYS an empty third argument is the key named "". Redis docs: "MIGRATE".
    """
    if len(args) < 6:
        raise _RefusedError
    keys = range(3, 4)
    for option, at in _options(args, 6, _MIGRATE):
        if option == b"keys":
            if args[3]:
                raise _RefusedError
            keys = range(at + 1, len(args))
    return [KeyUse(at, TAKE) for at in keys]


_GEORADIUS: Final = {
    b"withdist": 0, b"withcoord": 0, b"withhash": 0, b"asc": 0, b"desc": 0, b"any": 0,
    b"count": 1, b"store": 1, b"storedist": 1,
}  # fmt: skip


def _georadius(command: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """STORE and STOREDIST name one place between them, the last wins. The specifications report both."""
    start = 6 if command.name == "georadius" else 5
    options = _options(args, start, _GEORADIUS)
    stores = [at + 1 for option, at in options if option.startswith(b"store")]
    return [KeyUse(1, READ), *(KeyUse(at, OVERWRITE) for at in stores[-1:])]


_XREAD: Final = {b"block": 1, b"count": 1, b"claim": 1, b"noack": 0, b"group": 2, b"streams": _REST}


def _xread(_: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """Keys and then as many IDs follow STREAMS, which may also be the name of a group, consumer or key.

    XREADGROUP's specification looks for the keyword from argument 4 on and takes a group of that name for
    it when an option precedes GROUP.
    """
    for option, at in _options(args, 1, _XREAD):
        if option == b"streams":
            count, rest = divmod(len(args) - at - 1, 2)
            if count and not rest:
                return [KeyUse(index, READ) for index in range(at + 1, at + 1 + count)]
    raise _RefusedError


def _set(_: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """Reads the old value only with GET; the specification has to assume that it always does."""
    if len(args) > 3 and any(word(option) == b"get" for option in args[3:]):
        return [KeyUse(1, CHANGE)]
    return [_SET_PLAIN]


_BITFIELD: Final = {b"get": 2, b"overflow": 1, b"set": 3, b"incrby": 3}


def _bitfield(_: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """Only reads if all its operations are GET; what we cannot read counts as a write."""
    try:
        writes = any(option in (b"set", b"incrby") for option, _ in _options(args, 2, _BITFIELD))
    except (_RefusedError, _UnknowableError):
        writes = True
    return [KeyUse(1, CHANGE if writes else READ)]


_STRALGO: Final = {
    b"idx": 0, b"len": 0, b"withmatchlen": 0, b"minmatchlen": 1, b"keys": 2, b"strings": 2,
}  # fmt: skip


def _stralgo(_: Command, args: Sequence[bytes]) -> list[KeyUse]:
    """STRALGO LCS of Redis 6, which predates key specifications. Redis refuses KEYS beside STRINGS."""
    if word(args[1]) != b"lcs":
        raise _RefusedError
    keys = [at for option, at in _options(args, 2, _STRALGO) if option == b"keys"]
    return [KeyUse(at + side, READ) for at in keys[-1:] for side in (1, 2)]


_RULES: Final[Mapping[str, Callable[[Command, Sequence[bytes]], list[KeyUse]]]] = {
    "sort": _sort,
    "sort_ro": _sort,
    "migrate": _migrate,
    "georadius": _georadius,
    "georadiusbymember": _georadius,
    "xread": _xread,
    "xreadgroup": _xread,
    "set": _set,
    "bitfield": _bitfield,
    "stralgo": _stralgo,
}
