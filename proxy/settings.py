"""Every option of Pannier, in one place.

`Settings` is the frozen result that the rest of the program is given. Each of its fields is declared with
`option(kind, default, group, help)`; the flag, the `PANNIER_*` variable, the TOML key, `--help`,
`pannier config` and `docs/settings.md` are all derived from that one line (see `OPTIONS`).

`load` reads the sources in their order of precedence — flag, environment, TOML file, default — and says for
each option where its value came from. Whatever is wrong raises `SettingsError` with one line that names the
option as its author wrote it, the value, and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from proxy.resp.errors import SettingsError
from proxy.upstream.address import Listen, Upstream, shown

T = TypeVar("T")
Number = TypeVar("Number", int, float)

PREFIX = "PANNIER_"
BUNDLED = "bundled"
"""The word for `upstream = None` wherever it is written or shown."""


# --- kinds of value: text in, value out, and back


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How values of one kind are read and shown. `parse(show(value)) == value`, but for masked passwords."""

    parse: Callable[[str], T]
    """Raises ValueError whose text quotes the value (masked) and says what would be right."""
    show: Callable[[T], str]
    metavar: str
    accepts: str
    """For the documentation: what may be given, with its range."""
    unit: str = ""
    """Of the parsed number; empty if it is none."""
    many: bool = False
    """Whether several may be given: a repeated flag, commas, a TOML list."""


DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS = {
    **{"b": 1, "k": 1000, "m": 1000**2, "g": 1000**3},
    **{"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30},
}
"""redis.conf's: `mb` is 1024 x 1024 bytes, `m` a million. `mib` says the former without a doubt."""


def count(low: int, high: int, unit: str) -> Kind[int]:
    """Whole numbers in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            example = min(high, 10_000)
            raise ValueError(f"{shown(text)} is not a whole number; give a number such as {example}")
        return _ranged(text, int(text), low, high, str)

    return Kind(parse, str, "N", f"a whole number from {low} to {high}", unit)


def duration(low: float, high: float, zero: str = "") -> Kind[float]:
    """Durations in seconds. `zero` says what 0 means where it is allowed below `low`."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d|)", text.lower())
        if not match:
            raise ValueError(f"{shown(text)} is not a duration; give one such as 500ms, 5s, 2m or seconds")
        # Division keeps 50ms the same float as 0.05.
        number, unit = float(match[1]), match[2] or "s"
        value = number / 1000 if unit == "ms" else number * DURATION_UNITS[unit]
        return value if zero and not value else _ranged(text, value, low, high, show_duration)

    accepts = f"a duration from {show_duration(low)} to {show_duration(high)}"
    return Kind(parse, show_duration, "TIME", accepts + (f", or 0: {zero}" if zero else ""), "s")


def size(low: int, high: int) -> Kind[int]:
    """Amounts of memory in bytes, written as in redis.conf."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(-?[0-9]{1,18})\s*([kmg]i?b|[bkmg]|)", text.lower())
        if not match:
            raise ValueError(f"{shown(text)} is not a size; give one such as 64mb, 1gb or plain bytes")
        return _ranged(text, int(match[1]) * SIZE_UNITS[match[2] or "b"], low, high, show_size)

    return Kind(parse, show_size, "SIZE", f"a size from {show_size(low)} to {show_size(high)}", "bytes")


def choice(*words: str) -> Kind[str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            near = difflib.get_close_matches(text.lower(), words, 1)
            hint = f"did you mean {near[0]}?" if near else "give one of these"
            raise ValueError(f"{shown(text)} is not one of {', '.join(words)}; {hint}")
        return text.lower()

    return Kind(parse, str, "WORD", " or ".join([", ".join(words[:-1]), words[-1]]))


def _ranged(text: str, value: Number, low: Number, high: Number, show: Callable[[Number], str]) -> Number:
    if not low <= value <= high:
        raise ValueError(f"{shown(text)} is out of range; give something from {show(low)} to {show(high)}")
    return value


def show_duration(seconds: float) -> str:
    """The shortest text that reads back as the same duration."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % DURATION_UNITS[unit] == 0:
            return f"{seconds / DURATION_UNITS[unit]:.0f}{unit}"
    milliseconds = round(seconds * 1000)
    if seconds < 1 and milliseconds / 1000 == seconds:
        return f"{milliseconds}ms" if seconds else "0"
    return f"{seconds:.9f}".rstrip("0") + "s"


def show_size(value: int) -> str:
    """The largest unit that divides the size, in redis.conf's spelling."""
    for unit in ("gb", "mb", "kb"):
        if value and value % SIZE_UNITS[unit] == 0:
            return f"{value // SIZE_UNITS[unit]}{unit}"
    return str(value)


def _parse_upstream(text: str) -> Upstream | None:
    return None if text.strip().lower() == BUNDLED else Upstream.parse(text)


def _parse_listen(text: str) -> tuple[Listen, ...]:
    found: list[Listen] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        address = Listen.parse(part)
        if address in found and (address.port or address.path):
            raise ValueError(f"{shown(part)} is given twice; give each address once")
        found.append(address)
    if not found:
        raise ValueError(f"{shown(text)} names no address; give one such as 127.0.0.1:6380")
    return tuple(found)


UPSTREAM: Kind[Upstream | None] = Kind(
    _parse_upstream,
    lambda value: value.redacted if value else BUNDLED,
    "URL",
    f"a redis://, rediss:// or unix:// URL, or `{BUNDLED}`",
)
LISTEN: Kind[tuple[Listen, ...]] = Kind(
    _parse_listen,
    lambda value: ",".join(map(str, value)),
    "ADDRESS",
    "host:port, [::1]:port, :port, port or unix:///path?mode=660",
    many=True,
)


# --- the options


@dataclass(frozen=True, slots=True)
class Option:
    """One field of `Settings`, as seen by the flags, the environment, the TOML file and the documentation."""

    name: str
    """Also its TOML key."""
    kind: Kind[Any]
    default: Any
    group: str
    help: str

    @property
    def flag(self) -> str:
        """Its flag, as in `--max-clients`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable, as in `PANNIER_MAX_CLIENTS`."""
        return PREFIX + self.name.upper()


def option(kind: Kind[T], default: T, group: str, help: str) -> T:
    """Declare a field of `Settings`; typed as its value so that the field's annotation is checked."""
    return dataclasses.field(default=default, metadata={"option": (kind, default, group, help)})


WHERE, CLIENTS, REDIS, TIER, LOG = "Addresses", "Limits per client", "Redis behind", "Memory tier", "Logging"
KB, MB, GB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective options; durations in seconds, sizes in bytes. Made by `load`, or directly in tests."""

    # fmt: off
    upstream: Upstream | None = option(
        UPSTREAM, None, WHERE,
        "Redis to stand in front of. Without it a bundled redis-server is started, which keeps nothing: for "
        "trying out. REDIS_URL counts where PANNIER_UPSTREAM is not set.",
    )
    listen: tuple[Listen, ...] = option(
        LISTEN, (Listen(),), WHERE,
        "Address to serve clients on; may be repeated. :6380 means every interface: whoever reaches the "
        "machine then reaches Redis.",
    )
    max_clients: int = option(
        count(1, 1_000_000, "clients"), 10_000, CLIENTS,
        "Connections served at once; the next one gets Redis' own error. Each takes a file descriptor.",
    )
    client_timeout: float = option(
        duration(1, 365 * 86400, "never"), 0.0, CLIENTS,
        "Idle time after which a client is disconnected. Subscribers and blocked clients are never idle.",
    )
    tcp_keepalive: float = option(
        duration(1, 32_767, "off"), 300.0, CLIENTS,
        "Silence after which the kernel asks whether a peer is still there, so that dead ones go.",
    )
    query_buffer_limit: int = option(
        size(1 * MB, 1 << 40), 1 * GB, CLIENTS,
        "Unfinished request at which a client is disconnected: bounds the memory one client can take.",
    )
    output_buffer_limit: int = option(
        size(16 * KB, 1 << 40), 1 * GB, CLIENTS,
        "Unread replies at which a client is disconnected at once. It has been paused long before.",
    )
    output_buffer_soft_limit: int = option(
        size(16 * KB, 1 << 40), 64 * MB, CLIENTS,
        "Unread replies at which a client is disconnected if it stays there for output_buffer_soft_seconds.",
    )
    output_buffer_soft_seconds: float = option(
        duration(0, 86400), 60.0, CLIENTS,
        "How long output_buffer_soft_limit may be exceeded: long enough for a slow reader to catch up.",
    )
    proto_max_bulk_len: int = option(
        size(1 * MB, 1 << 40), 512 * MB, CLIENTS,
        "Longest single argument. Redis has the same option; the smaller of the two is what counts.",
    )
    upstream_timeout: float = option(
        duration(0.01, 86400), 30.0, REDIS,
        "How long a reply may be pending on the shared connection before the commands waiting get an error. "
        "It must exceed the slowest script. Blocking commands have connections of their own and may wait.",
    )
    connect_timeout: float = option(
        duration(0.01, 3600), 5.0, REDIS,
        "How long connecting to Redis may take, TLS, AUTH and SELECT included.",
    )
    reconnect_min: float = option(
        duration(0.001, 3600), 0.05, REDIS,
        "First pause before connecting again; it doubles, with jitter, up to reconnect_max.",
    )
    reconnect_max: float = option(
        duration(0.001, 3600), 2.0, REDIS,
        "Longest pause between attempts: how late a Redis that is back may be noticed.",
    )
    tracking: str = option(
        choice("auto", "default", "bcast", "off"), "auto", TIER,
        "How Redis tells of changes (CLIENT TRACKING). auto takes the best that the server grants: default, "
        "else bcast, else nothing is served from memory. off: everything goes to Redis.",
    )
    max_memory: int = option(
        size(1 * MB, 1 << 40), 64 * MB, TIER,
        "What the entries in memory may take, the overhead of their containers included.",
    )
    max_entries: int = option(
        count(1, 1_000_000_000, "entries"), 1_000_000, TIER,
        "Entries kept in memory at most.",
    )
    max_value_size: int = option(
        size(16, 512 * MB), 1 * MB, TIER,
        "Longest reply that is kept. Longer ones are passed on as they arrive.",
    )
    l1_ttl: float = option(
        duration(0.01, 365 * 86400), 300.0, TIER,
        "Longest time an entry is served, whatever Redis says; a key's own TTL always counts as well.",
    )
    coherence_timeout: float = option(
        duration(0.5, 3600), 3.0, TIER,
        "How late Redis' word of a change may be at most: nothing is served from memory while Redis has not "
        "answered a question asked since.",
    )
    admit_after: int = option(
        count(1, 2, "reads"), 2, TIER,
        "Which read of a key within a while is kept: the first, or the second, so that what is read only "
        "once takes no room.",
    )
    canary_interval: float = option(
        duration(0.1, 3600, "never"), 5.0, TIER,
        "How often the lag of invalidations is measured: a key of Pannier's own is set and deleted in one "
        "transaction, so nobody ever sees it.",
    )
    log_level: str = option(
        choice("debug", "info", "warning", "error"), "info", LOG,
        "Least serious message to print. debug prints every connection.",
    )
    # fmt: on


OPTIONS: tuple[Option, ...] = tuple(
    Option(field.name, *field.metadata["option"]) for field in dataclasses.fields(Settings)
)
BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}


# --- reading them

CONFIG_VARIABLE = PREFIX + "CONFIG"
KUBERNETES = re.compile(
    r"PANNIER_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|PORT=\w+://.*)"
)
"""What Kubernetes puts into every pod beside a Service whose name begins with `pannier`: not ours."""


def load(
    flags: Mapping[str, str], env: Mapping[str, str], config: str | None = None
) -> tuple[Settings, dict[str, str]]:
    """Read all sources; the second result says for each option where its value came from.

    `flags` maps names of options to their texts (several joined by commas), only those given. `config` is
    the value of `--config`; None: PANNIER_CONFIG in `env`, if set. Raises SettingsError.
    """
    _no_unknown_variables(env)
    flag, path = ("--config", config) if config is not None else (CONFIG_VARIABLE, env.get(CONFIG_VARIABLE))
    table = _read_toml(flag, path) if path else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        for written, text, origin in _sources(option, flags, env, table, path):
            try:
                values[option.name] = option.kind.parse(text)
            except ValueError as error:
                raise SettingsError(f"{written}: {error}") from None
            origins[option.name] = origin
            break
    settings = Settings(**values)
    origins = {option.name: origins.get(option.name, "default") for option in OPTIONS}
    _check_together(settings, origins)
    return settings, origins


def _sources(
    option: Option,
    flags: Mapping[str, str],
    env: Mapping[str, str],
    table: Mapping[str, Any],
    path: str | None,
) -> Iterable[tuple[str, str, str]]:
    """Where the option is set, best first: as its author wrote it, the text, the origin to report."""
    if option.name in flags:
        yield option.flag, flags[option.name], f"flag {option.flag}"
    for variable in (option.variable, "REDIS_URL") if option.name == "upstream" else (option.variable,):
        # Empty counts as not set: templates write PANNIER_X="" for what they leave open.
        if text := env.get(variable, "").strip():
            yield variable, text, f"environment {variable}"
    if option.name in table:
        written = f"{path}:{option.name}"
        yield written, _toml_text(written, option, table[option.name]), f"file {written}"


def _no_unknown_variables(env: Mapping[str, str]) -> None:
    known = [CONFIG_VARIABLE, *(option.variable for option in OPTIONS)]
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in known:
            continue
        if KUBERNETES.fullmatch(f"{variable}={env[variable]}"):
            continue
        raise SettingsError(f"{variable}: no such variable; {did_you_mean(variable, known, PREFIX)}")


def _read_toml(flag: str, path: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{flag}: {path!r} cannot be read ({error.strerror}); give a TOML file") from None
    except ValueError as error:
        raise SettingsError(f"{flag}: {path!r} is not valid TOML ({error}); mend the file") from None
    for key in table:
        if key not in BY_NAME:
            raise SettingsError(f"{path}:{key}: no such option; {did_you_mean(key, BY_NAME)}")
    return table


def _toml_text(written: str, option: Option, value: object) -> str:
    """A TOML value as the text a flag would have: a file may say 30, "30s" or a list of addresses."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and option.kind.many and all(isinstance(item, str) for item in value):
        return ",".join(value)
    wanted = "a text or a list of texts" if option.kind.many else "one number or text"
    raise SettingsError(f"{written}: a {type(value).__name__} cannot stand here; give {wanted}")


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    low, high = show_duration(settings.reconnect_min), show_duration(settings.reconnect_max)
    if settings.reconnect_min > settings.reconnect_max:
        name = "reconnect_min" if origins["reconnect_min"] != "default" else "reconnect_max"
        value = low if name == "reconnect_min" else high
        raise SettingsError(
            f"{origins[name].partition(' ')[2]}: {value!r} is wrong beside the other limit; "
            f"reconnect_min ({low}) must not exceed reconnect_max ({high})"
        )


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error about an unknown word; the `prefix` that all share does not count as likeness."""
    words = [name.removeprefix(prefix) for name in known]
    near = difflib.get_close_matches(word.removeprefix(prefix), words, 1)
    return f"did you mean {prefix}{near[0]}?" if near else "see pannier --help for those there are"
