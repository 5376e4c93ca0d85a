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
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from proxy.cgroup import fitting_memory, in_mb
from proxy.kinds import (
    NAMESPACE,
    SECRET,
    Kind,
    Secret,
    Wrong,
    choice,
    count,
    did_you_mean,
    duration,
    noting,
    share,
    show_duration,
    show_size,
    size,
    switch,
    toml_key,
    toml_text,
)
from proxy.privacy import KeyPrivacy
from proxy.resp.errors import SettingsError
from proxy.rules_file import read_rules, read_rules_file
from proxy.tenants import Tenant, check_nesting, check_shares, named_variables, read_secret, read_tenants
from proxy.tier.policy import CacheRule
from proxy.upstream.address import Listen, Upstream, shown

T = TypeVar("T")

PREFIX = "PANNIER_"
BUNDLED = "bundled"
"""The word for `upstream = None` wherever it is written or shown."""


# --- kinds of value: text in, value out, and back (the others are in proxy.kinds)


def _parse_upstream(text: str) -> Upstream | None:
    return None if text.strip().lower() == BUNDLED else Upstream.parse(text)


def _parse_listen(text: str) -> tuple[Listen, ...]:
    found: list[Listen] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        address = Listen.parse(part)
        if (address.port or address.path) and address.place in [other.place for other in found]:
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


def _parse_channel(text: str) -> str:
    wrong = not text or not text.isprintable() or re.search(r"\s|://", text)
    if wrong or len(text.encode()) > _LONGEST_CHANNEL:
        raise ValueError(f"{shown(text)} is no name of a channel; give one such as pannier:evict:")
    return text


def _parse_file(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{shown(text)} is no path of a file; give one without a zero byte")
    if _IS_ADDRESS(text.strip()):
        raise ValueError(f"{shown(text)} is the address of a server; give the path of a file")
    return text


FILE: Kind[str] = Kind(_parse_file, str, "FILE", "a path; empty: none")
_LONGEST_CHANNEL = 128
CHANNEL: Kind[str] = Kind(
    _parse_channel, str, "NAME", f"at most {_LONGEST_CHANNEL} bytes of text without white space"
)


def _parse_wishes(text: str) -> tuple[str, ...]:
    found = tuple(filter(None, (part.strip() for part in text.split(","))))
    if any(map(_IS_ADDRESS, found)):
        raise ValueError(f"{shown(text)} is the address of a server; give keys or patterns such as org:*")
    if any(not part.isprintable() for part in found):
        raise ValueError(f"{shown(text)} has bytes that cannot be printed; put such names into warm_file")
    return found


WISHES: Kind[tuple[str, ...]] = Kind(
    _parse_wishes, ",".join, "PATTERN", "keys, patterns such as org:*, or reads such as HGETALL user:*",
    many=True,
)  # fmt: skip
_IS_ADDRESS = re.compile("(rediss?|unix|tcp)://").match
OFF = "off"
"""The word for `admin_listen = None`."""


def _parse_admin(text: str) -> Listen | None:
    if text.strip().lower() in ("", OFF):
        return None
    found = Listen.parse(text)
    if found.namespace is not None:
        raise ValueError(f"{shown(text)} has a namespace; nobody reads or writes keys there, leave it out")
    if found.tls:
        raise ValueError(f"{shown(text)} has tls; leave it out, admin_tls_cert is what makes it HTTPS")
    return found


def _parse_variable(text: str) -> str:
    if not re.fullmatch("([A-Za-z_][A-Za-z0-9_]*)?", text):
        # It may be the secret itself, so it is not quoted.
        raise ValueError("it is no name of a variable; give one such as ADMIN_TOKEN")
    return text


ADMIN: Kind[Listen | None] = Kind(
    _parse_admin,
    lambda value: str(value) if value else OFF,
    "ADDRESS",
    f"host:port, [::1]:port, :port, port or unix:///path?mode=660&group=app; `{OFF}`: none",
)
VARIABLE: Kind[str] = Kind(_parse_variable, str, "NAME", "the name of a variable; empty: none")
LISTEN: Kind[tuple[Listen, ...]] = Kind(
    _parse_listen,
    lambda value: ",".join(map(str, value)),
    "ADDRESS",
    "host:port, [::1]:port, :port, port, each with ?tls=true, or unix:///path?mode=660&group=app; all with "
    "?namespace=x",
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


STOPPING = "Stopping"
WHERE, CLIENTS, REDIS, TIER = "Addresses", "Limits per client", "Redis behind", "Memory tier"
TLS = "TLS for clients"
WARMING, ADMINISTRATION = "Warming", "Administration"
SPACES, LOG = "Namespaces and tenants", "Logging"
MOST_WORKERS = 64
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
    workers: int = option(
        count(1, MOST_WORKERS, "processes"), 1, WHERE,
        "Processes that serve these addresses together, each on a core and with a memory of its own: "
        "max_memory, max_entries, max_clients and the tenants' shares are divided among them, numbers of "
        "clients and commands rounded up (docs/workers.md).",
    )
    tls_cert: str = option(
        FILE, "", TLS,
        "PEM file with the certificate that listeners with ?tls=true show, and those that vouch for it. Read "
        "again when it changes (docs/tls.md).",
    )
    tls_key: str = option(
        FILE, "", TLS,
        "PEM file with its key, not encrypted, if that is not in the same file.",
    )
    tls_client_ca: str = option(
        FILE, "", TLS,
        "PEM file with the authorities that sign the clients' certificates: who shows none of theirs is not "
        "served there. Empty: clients need no certificate.",
    )
    tls_min_version: str = option(
        choice("1.2", "1.3"), "1.2", TLS,
        "Oldest version of TLS that is spoken there.",
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
    drain_delay: float = option(
        duration(0.001, 3600, "none"), 0.0, STOPPING,
        "How long clients are still accepted after SIGTERM or Ctrl-C, while /readyz and SIDECAR HEALTH say "
        "that Pannier is not ready: as long as it takes until nobody sends new clients here.",
    )
    drain_timeout: float = option(
        duration(0.001, 3600, "none"), 10.0, STOPPING,
        "How long clients have after that to get their replies, end their transactions and be served while "
        "they block. Idle ones are closed at once. A second signal ends everything at once.",
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
    breaker_failures: int = option(
        count(0, 1_000_000, "failures"), 3, REDIS,
        "Failures in a row after which no command waits for Redis any more, until a probe is answered: "
        "attempts to connect, which are also made once Redis has been silent for coherence_timeout; replies "
        "not given within upstream_timeout. 0: never.",
    )
    on_upstream_down: str = option(
        choice("error", "stale"), "error", TIER,
        "What reads get while Redis is away. error: an error. stale: what memory holds of them, for "
        "stale_max, and an error if it holds nothing; all other commands get an error at once.",
    )
    stale_max: float = option(
        duration(0.1, 365 * 86400), 300.0, TIER,
        "How long after Redis went away its replies are served by on_upstream_down = stale. The entries' own "
        "TTL and l1_ttl count as well.",
    )
    tracking: str = option(
        choice("auto", "default", "bcast", "off"), "auto", TIER,
        "How Redis tells of changes (CLIENT TRACKING). auto takes the best that the server grants: default, "
        "else bcast. Where none is granted, other Panniers tell (broadcast auto or writes). off: none; "
        "nothing is served from memory, unless broadcast is writes.",
    )
    mode: str = option(
        choice("cache", "observe", "off"), "cache", TIER,
        "cache: reads are answered from memory. observe: all from Redis, and reported is what memory would "
        "have done. off: all from Redis. A ceiling for the rules' own modes.",
    )
    rules_file: str = option(
        FILE, "", TIER,
        "TOML file of cache rules: what is kept, for how long, by key (docs/rules.md). Rules in the file of "
        "--config come before these. Read again when it changes.",
    )
    max_memory: int = option(
        size(1 * MB, 1 << 40), 64 * MB, TIER,
        "What the entries in memory may take, all overhead included. By default less under a memory limit "
        "(of a container, a systemd service) below 176mb: docs/container.md.",
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
    l1_ttl_untracked: float = option(
        duration(0.01, 365 * 86400), 5.0, TIER,
        "The same where nothing but other Panniers tells of changes (tracking bus): what is written past "
        "them is not seen for as long.",
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
    refill_limit: int = option(
        count(0, 1_000_000, "fetches"), 64, TIER,
        "Fetches of one class under way at once in the half minute after a thousand entries and more were "
        "dropped within a second; what else misses waits for its turn. 0: any number.",
    )
    verify: float = option(
        share(), 0.0, TIER,
        "Share of the reads answered from memory that Redis is asked as well, to compare: 0.001 is one in a "
        "thousand.",
    )
    verify_demote: int = option(
        count(0, 1_000_000, "stale entries"), 0, TIER,
        "Stale entries found by verify after which their rule is only observed. 0: they are logged.",
    )
    canary_interval: float = option(
        duration(0.1, 3600, "never"), 5.0, TIER,
        "How often the lag of invalidations is measured: a key of Pannier's own is set and deleted in one "
        "transaction, so nobody ever sees it.",
    )
    warm: tuple[str, ...] = option(
        WISHES, (), WARMING,
        "What is fetched into memory at the start: of a key or pattern, what fits its type; of a read, that "
        "(HGETALL user:*). Commas and the like: in warm_file. See docs/warming.md.",
    )
    warm_file: str = option(
        FILE, "", WARMING,
        "File with more of these, one a line.",
    )
    warm_limit: int = option(
        count(1, 10_000_000, "keys"), 100_000, WARMING,
        "Keys fetched for one pattern, for warm_file and for warm_state, at most.",
    )
    warm_state: str = option(
        FILE, "", WARMING,
        "File in which the hottest reads are kept over a restart (names only): written when Pannier stops "
        "and now and then before, read at the start.",
    )
    warm_state_size: int = option(
        size(4 * KB, 1 * GB), 8 * MB, WARMING,
        "How long that file may be.",
    )
    warm_timeout: float = option(
        duration(0.01, 86400, "not at all"), 30.0, WARMING,
        "How long readiness waits for what is fetched at the start. Clients are served meanwhile.",
    )
    refresh_hottest: int = option(
        count(0, 10_000_000, "keys"), 0, WARMING,
        "How many of the hottest reads of each key space are fetched again every refresh_interval, so that "
        "nobody waits when they expire. 0: none.",
    )
    refresh_interval: float = option(
        duration(0.1, 86400), 900.0, WARMING,
        "How often that is. It helps where it is shorter than l1_ttl.",
    )
    namespace: str = option(
        NAMESPACE, "", SPACES,
        "Prefix, without its colon, under which every key lives in Redis: agent_service makes "
        "agent_service:key of key. Empty: none. A listener's ?namespace= goes before it.",
    )
    namespace_channels: bool = option(
        switch(), False, SPACES,
        "Whether pub/sub channels take the prefix as well. Keyspace notifications are always translated.",
    )
    namespace_scripts: str = option(
        choice("allow", "warn", "refuse"), "warn", SPACES,
        "Scripts in a namespace (EVAL, FCALL …): only the keys they declare take the prefix. warn: allowed, "
        "with a warning in the log if Redis would let the script reach other keys.",
    )
    auth: str = option(
        choice("auto", "none", "tenants", "passthrough"), "auto", SPACES,
        "Who checks AUTH. none: nobody, clients need none. tenants: Pannier, by the [tenants] of the file. "
        "passthrough: Redis. auto: tenants if there are any, else passthrough.",
    )
    broadcast: str = option(
        choice("auto", "explicit", "writes", "off"), "auto", TIER,
        "What is told to other Panniers of the same Redis over pub/sub. explicit: what Redis cannot tell "
        "(SIDECAR INVALIDATE, patterns, SWAPDB). writes: every write as well. auto: writes while Redis "
        "refuses to track, else explicit. off: nothing, nor is anything heard.",
    )
    evict_channel: str = option(
        CHANNEL, "pannier:evict:", TIER,
        "What the channels of the eviction bus begin with; the namespace follows.",
    )
    admin_listen: Listen | None = option(
        ADMIN, Listen(port=9464), ADMINISTRATION,
        "Where /metrics, /healthz, /readyz, /stats and the like are served over HTTP (docs/admin.md). If "
        "another program has the default address, Pannier goes on without.",
    )
    admin_token: Secret = option(
        SECRET, Secret(), ADMINISTRATION,
        "What whoever changes something there has to show (Authorization: Bearer). Others can read flags: "
        "better PANNIER_ADMIN_TOKEN or one of the next two.",
    )
    admin_token_file: str = option(
        FILE, "", ADMINISTRATION,
        "File whose first line is that token.",
    )
    admin_token_env: str = option(
        VARIABLE, "", ADMINISTRATION,
        "Environment variable that holds that token.",
    )
    admin_changes: str = option(
        choice("auto", "on", "off"), "auto", ADMINISTRATION,
        "Whether POST /invalidate and /drain are served. auto: where there is a token, or the address is one "
        "of this machine only.",
    )
    admin_protect: str = option(
        choice("changes", "all"), "changes", ADMINISTRATION,
        "What the token is needed for. all: for everything but /healthz and /readyz.",
    )
    admin_tls_cert: str = option(
        FILE, "", ADMINISTRATION,
        "PEM file with the certificate to serve HTTPS there with, and those that vouch for it.",
    )
    admin_tls_key: str = option(
        FILE, "", ADMINISTRATION,
        "PEM file with its key, if that is not in the same file.",
    )
    log_format: str = option(
        choice("auto", "text", "json"), "auto", LOG,
        "How the log is written to standard error: text for people, or JSON, one object a line. auto: text "
        "on a terminal, else JSON. With JSON there is no banner.",
    )
    log_level: str = option(
        choice("debug", "info", "warning", "error"), "info", LOG,
        "Least serious message to print. debug prints every connection. In the file, it may be changed while "
        "Pannier runs.",
    )
    key_privacy: str = option(
        choice(*[how.value for how in KeyPrivacy]), "plain", LOG,
        "How names of keys are shown by SIDECAR HOTKEYS and its like. hashed: twelve hexadecimal digits "
        "instead, other ones after each start. off: not at all.",
    )
    slowlog_slower_than: float = option(
        duration(0.00001, 3600, "none are listed"), 0.01, LOG,
        "Time from taking a command to its last reply from which SIDECAR SLOWLOG lists it.",
    )
    slowlog_max_len: int = option(
        count(1, 100_000, "commands"), 128, LOG,
        "Commands listed there; the oldest go.",
    )
    trace_sample: float = option(
        share(), 0.0, LOG,
        "Share of the commands of which OpenTelemetry traces are sent, as OTEL_* variables say. It needs "
        "pip install 'pannier[otel]'. 0: none, and nothing of it is loaded.",
    )
    # fmt: on
    rules: tuple[CacheRule, ...] = ()
    """From the files' [[rules]] tables, those of the file of the settings first."""
    tenants: tuple[Tenant, ...] = ()
    """From the file's [tenants.*] tables only. No option: a password in a flag can be read by others."""
    token: Secret = Secret()  # noqa: RUF009 - it is a text
    """The token that admin_token or one of its two other spellings gives; empty: none."""
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """For each option where its value came from, as `load` tells it; empty if that did not make it."""
    memory_limit: int | None = dataclasses.field(default=None, compare=False)
    """Bytes that the process may take, as its control group says; None: as much as there is."""

    @property
    def auth_mode(self) -> str:
        """`auth` with auto resolved: none, tenants or passthrough."""
        if self.auth == "auto":
            return "tenants" if self.tenants else "passthrough"
        return self.auth


OPTIONS: tuple[Option, ...] = tuple(
    Option(field.name, *field.metadata["option"])
    for field in dataclasses.fields(Settings)
    if "option" in field.metadata
)
BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}


# --- reading them

LEAST_SHARED = 1 * MB
"""Bytes of max_memory that the tenants' own shares must leave to all the rest."""
CONFIG_VARIABLE = PREFIX + "CONFIG"
KUBERNETES = re.compile(
    r"PANNIER_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|PORT=\w+://.*)"
)
"""What Kubernetes puts into every pod beside a Service whose name begins with `pannier`: not ours."""


def load(
    flags: Mapping[str, str],
    env: Mapping[str, str],
    config: str | None = None,
    wrong: Wrong = None,
    memory_limit: int | None = None,
) -> tuple[Settings, dict[str, str]]:
    """Read all sources; the second result says for each option where its value came from, and for `tenants`
    and `rules` of the file if there are any.

    `flags` maps names of options to their texts (several joined by commas), only those given. `config` is
    the value of `--config`; None: PANNIER_CONFIG in `env`, if set. `memory_limit` is what the process may
    take, in bytes: where max_memory is not given, it is made to fit. Raises SettingsError, unless `wrong` is
    given: that then takes all errors, and what is wrong has its default. What settings say together is judged
    only if each is right.
    """
    flag, path = _file(config, env)
    table: dict[str, Any] = {}
    with noting(wrong):
        table = _read_toml(flag, path) if path else {}
    for unknown in _unknown_keys(table, path):
        with noting(wrong):
            raise unknown
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        for written, text, origin in _sources(option, flags, env, table, path):
            with noting(wrong):
                values[option.name] = _parsed(option, written, text)
                origins[option.name] = origin
            break
    usual = BY_NAME["max_memory"].default
    if "max_memory" not in values and (
        fitting := fitting_memory(usual, memory_limit, values.get("workers", 1))
    ) < usual:
        values["max_memory"] = fitting
        origins["max_memory"] = f"default, under a memory limit of {in_mb(memory_limit or 0)}"
    named = named_variables(table.get("tenants")) | {values.get("admin_token_env", "")}
    for unknown in _unknown_variables(env, named):
        with noting(wrong):
            raise unknown
    tenants = read_tenants(table["tenants"], f"{path}:tenants", env, wrong) if "tenants" in table else ()
    rules = read_rules(table.get("rules", []), f"{path}:rules", wrong)
    settings = Settings(**values, rules=rules, tenants=tenants, memory_limit=memory_limit)
    origins = {option.name: origins.get(option.name, "default") for option in OPTIONS}
    if rules:
        origins["rules"] = f"file {path}:rules"
    if settings.rules_file:
        written = origins["rules_file"].partition(" ")[2]
        more = read_rules_file(settings.rules_file, written, wrong)
        settings = dataclasses.replace(settings, rules=rules + more)
    if tenants:
        origins["tenants"] = f"file {path}:tenants"
    token = Secret()
    with noting(wrong):
        token = _find_token(settings, origins, env)
    if not wrong:
        with noting(wrong):
            _check_together(settings, origins)
    return dataclasses.replace(settings, token=token, origins=origins), origins


def read_option(
    name: str, flags: Mapping[str, str], env: Mapping[str, str], config: str | None = None
) -> Any:
    """The value of one option as `load` would find it. All others may be wrong, and so may the file be, if
    that does not decide. Raises SettingsError.
    """
    option = BY_NAME[name]
    found = list(_sources(option, flags, env, {}, None))
    if not found:
        flag, path = _file(config, env)
        found = list(_sources(option, flags, env, _read_toml(flag, path) if path else {}, path))
    return _parsed(option, *found[0][:2]) if found else option.default


def _file(config: str | None, env: Mapping[str, str]) -> tuple[str, str | None]:
    """What names the file of the settings, and its path; None: there is none."""
    return ("--config", config) if config is not None else (CONFIG_VARIABLE, env.get(CONFIG_VARIABLE))


def _parsed(option: Option, written: str, text: str) -> Any:
    try:
        return option.kind.parse(text)
    except ValueError as error:
        raise SettingsError(f"{written}: {error}") from None


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
        yield written, toml_text(written, table[option.name], many=option.kind.many), f"file {written}"


def _find_token(settings: Settings, origins: Mapping[str, str], env: Mapping[str, str]) -> Secret:
    """The token of the administration; empty if none is given."""
    names = ("admin_token", "admin_token_file", "admin_token_env")
    given = [name for name in names if getattr(settings, name)]
    if not given:
        return Secret()
    written = [origins[name].partition(" ")[2] for name in given]
    if len(given) > 1:
        raise SettingsError(f"{written[0]}: wrong beside {written[1]}; give the token in one place only")
    text = read_secret(given[0], str(getattr(settings, given[0])), written[0], env)
    try:
        return SECRET.parse(text)
    except ValueError as error:
        raise SettingsError(f"{written[0]}: the token is none: {error}") from None


def _unknown_variables(env: Mapping[str, str], named: Iterable[str]) -> Iterable[SettingsError]:
    """An error for each; `named` are those that the file gives a meaning of its own."""
    known = [CONFIG_VARIABLE, *(option.variable for option in OPTIONS)]
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in known or variable in named:
            continue
        if KUBERNETES.fullmatch(f"{variable}={env[variable]}"):
            continue
        yield SettingsError(f"{variable}: no such variable; {did_you_mean(variable, known, PREFIX)}")


def _read_toml(flag: str, path: str) -> dict[str, Any]:
    import tomllib  # most of a MB that a sidecar without a file does without

    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{flag}: {path!r} cannot be read ({error.strerror}); give a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{flag}: {path!r} is not valid TOML ({error}); mend the file") from None
    return table


def _unknown_keys(table: Mapping[str, Any], path: str | None) -> Iterable[SettingsError]:
    """An error for each."""
    for key in table:
        if key not in BY_NAME and key not in ("rules", "tenants"):
            advice = did_you_mean(key, [*BY_NAME, "rules", "tenants"])
            yield SettingsError(f"{path}:{key}: no such option; {advice}")


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    written = {name: origin.partition(" ")[2] for name, origin in origins.items()}
    low, high = show_duration(settings.reconnect_min), show_duration(settings.reconnect_max)
    if settings.reconnect_min > settings.reconnect_max:
        name = "reconnect_min" if origins["reconnect_min"] != "default" else "reconnect_max"
        value = low if name == "reconnect_min" else high
        raise SettingsError(
            f"{written[name]}: {value!r} is wrong beside the other limit; "
            f"reconnect_min ({low}) must not exceed reconnect_max ({high})"
        )
    if settings.workers > 1 and settings.max_memory < settings.workers * LEAST_SHARED:
        name = "workers" if origins["workers"] != "default" else "max_memory"
        raise SettingsError(
            f"{written[name]}: max_memory ({show_size(settings.max_memory)}) is too little for "
            f"{settings.workers} workers, each of which takes at least {show_size(LEAST_SHARED)} of it; give "
            "more memory, or fewer workers"
        )
    _check_tls(settings, written)
    _check_auth(settings, written)
    if settings.auth_mode == "tenants":
        _check_no_other_namespace(settings, written)
        least = LEAST_SHARED * settings.workers
        origin = origins["max_memory"]
        why = f", {origin}" if origin.startswith("default,") else ""
        check_shares(settings.tenants, written["tenants"], settings.max_memory, least, why)
    check_nesting(list(_namespaces(settings, written)))
    check_rules(settings)


def check_rules(settings: Settings) -> None:
    """Hold the rules against the settings that count where they say nothing. Raises SettingsError."""
    for rule in settings.rules:
        if rule.l1_ttl is None and rule.refresh_ahead >= settings.l1_ttl:
            ahead, life = show_duration(rule.refresh_ahead), show_duration(settings.l1_ttl)
            raise SettingsError(
                f"{rule.written}.refresh_ahead: {ahead!r} is not before the end of the l1_ttl in force, "
                f"{life}; give less, or the rule an l1_ttl"
            )


def _check_tls(settings: Settings, written: Mapping[str, str]) -> None:
    """A certificate that no listener shows is an error, too: who gives one counts on it."""
    if settings.admin_tls_key and not settings.admin_tls_cert:
        raise SettingsError(
            f"{written['admin_tls_key']}: a key is of no use without admin_tls_cert; give the latter, too"
        )
    for name, what in (("tls_key", "a key is"), ("tls_client_ca", "an authority for clients is")):
        if getattr(settings, name) and not settings.tls_cert:
            raise SettingsError(f"{written[name]}: {what} of no use without tls_cert; give the latter, too")
    spoken = next((str(listen) for listen in settings.listen if listen.tls), "")
    if spoken and not settings.tls_cert:
        raise SettingsError(
            f"{written['listen']}: {shown(spoken)} has tls, which needs tls_cert; give that, too"
        )
    if settings.tls_cert and not spoken:
        raise SettingsError(
            f"{written['tls_cert']}: no listener speaks TLS; have one of --listen end in ?tls=true, or leave "
            "the certificate out"
        )


def _check_auth(settings: Settings, written: Mapping[str, str]) -> None:
    if settings.auth == "tenants" and not settings.tenants:
        raise SettingsError(
            f"{written['auth']}: 'tenants' is wrong without any; "
            "add tables such as [tenants.acme] to the file of --config, or change auth"
        )
    if settings.tenants and settings.auth_mode != "tenants":
        raise SettingsError(
            f"{written['auth']}: {settings.auth!r} is wrong beside {written['tenants']}; "
            "change auth to tenants, or take the tables out of the file"
        )


def _check_no_other_namespace(settings: Settings, written: Mapping[str, str]) -> None:
    given = [("listen", str(listen)) for listen in settings.listen if listen.namespace is not None]
    if settings.namespace:
        given.insert(0, ("namespace", settings.namespace))
    for name, value in given:
        advice = "leave it out" if name == "namespace" else "leave its ?namespace= out"
        raise SettingsError(
            f"{written[name]}: {shown(value)} is wrong beside {written['tenants']}; "
            f"the tenants' namespaces hold; {advice}"
        )


def _namespaces(settings: Settings, written: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Every namespace in use, after the place that gives it."""
    yield written["namespace"], settings.namespace
    for listen in settings.listen:
        yield written["listen"], listen.namespace or ""
    for tenant in settings.tenants:
        yield f"{written['tenants']}.{toml_key(tenant.name)}.namespace", tenant.namespace
