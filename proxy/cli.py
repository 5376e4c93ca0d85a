"""The `pannier` command: flags in, exit status out.

`pannier` runs the sidecar; `pannier config` shows the effective settings and where each came from; `pannier
check` (`proxy.checking`) and `preflight` (`proxy.preflight`) try them; `pannier invalidate`, `delete`,
`sweep`, `warm`, `top` and `advise` are those of `proxy.control`, `pannier health` that of `proxy.probe`. The
flags are derived from `proxy.settings.OPTIONS`. Nothing heavier than argparse is imported before the sidecar
is really to run, so that `config` and `--help` answer at once.

Exit status: 0 after a clean stop, 1 if Pannier cannot start here or a preflight fails, 2 for a wrong setting,
130 after Ctrl-C before the sidecar was up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from proxy import __version__, hangup
from proxy.cgroup import memory_limit
from proxy.kinds import did_you_mean, duration, toml_key
from proxy.places import Place
from proxy.resp.errors import SettingsError, StartupError
from proxy.rules_file import FIELDS, MATCH, show_rule
from proxy.settings import CONFIG_VARIABLE, OPTIONS, Option, Settings, load
from proxy.showing import as_json, items, tenant_fields
from proxy.tenants import KEYS, LIMITS, Tenant
from proxy.upstream.address import shown

COMMANDS = ("run", "config", "check", "preflight")
CONTROL = ("invalidate", "delete", "sweep", "warm", "top", "advise")
"""Commands of `proxy.control`, which talk to a running Pannier."""
HEALTH = "health"
"""The command of `proxy.probe`, which asks a running Pannier whether it is well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        if given and given[0] in CONTROL:
            hangup.forget()
            from proxy import control

            return control.main(given)
        if given and given[0] == HEALTH:
            hangup.forget()
            from proxy import probe

            return probe.main(given)
        arguments = _parse(given)
        if arguments.command != "run":
            hangup.forget()
        if arguments.markdown:
            print(markdown(), end="")
            return 0
        if arguments.command == "check":
            from proxy import checking

            return checking.main(_flags(arguments), os.environ, arguments.config, arguments.json)
        place = Place.taken() if arguments.command == "run" else None
        settings, origins = _load(arguments) if place is None else (place.given(), {})
        if arguments.command == "preflight":
            from proxy import preflight

            return preflight.main(settings, _wait(arguments.wait), arguments.json)
        if arguments.command == "config":
            print(as_json(settings, origins) if arguments.json else _as_toml(settings, origins))
            return 0
        path = arguments.config if arguments.config is not None else os.environ.get(CONFIG_VARIABLE)
        return _run(settings, lambda: _load(arguments)[0], path, given, place)
    except SettingsError as error:
        return _fail(error, 2)
    except StartupError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130


def _load(arguments: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """The settings of this command line, in this environment, under this memory limit."""
    return load(_flags(arguments), os.environ, arguments.config, memory_limit=memory_limit())


def _run(
    settings: Settings,
    again: Callable[[], Settings],
    config: str | None,
    given: Sequence[str],
    place: Place | None,
) -> int:
    if place is None and settings.workers > 1:
        import asyncio

        from proxy import workers

        return asyncio.run(workers.run(settings, again, config, given))
    import uvloop

    from proxy import sidecar

    return uvloop.run(sidecar.run(settings, again, config, place))


def _fail(error: Exception, status: int) -> int:
    print(f"pannier: {error}", file=sys.stderr)
    return status


# --- the command line


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is a SettingsError: one line, no usage text before it."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message.removeprefix("argument "))


def _parse(argv: list[str]) -> argparse.Namespace:
    arguments, extras = _parser().parse_known_intermixed_args(argv)
    if extras:
        flag = extras[0].partition("=")[0]
        if not flag.startswith("-"):
            raise SettingsError(f"{shown(flag)}: one command at most; give {_either(COMMANDS)}")
        general = ["--config", "--json", "--markdown", "--wait", "--version"]
        known = [*general, *(option.flag for option in OPTIONS)]
        raise SettingsError(f"{flag}: no such flag; {did_you_mean(flag, known, '--')}")
    if arguments.command not in COMMANDS:
        commands = _either((*COMMANDS, HEALTH, *CONTROL))
        raise SettingsError(f"{shown(arguments.command)}: no such command; give {commands}")
    if arguments.command == "run" and arguments.json:
        raise SettingsError("--json belongs to config, check and preflight: pannier config --json")
    if arguments.command != "config" and arguments.markdown:
        raise SettingsError("--markdown belongs to the command config: pannier config --markdown")
    if arguments.command != "preflight" and arguments.wait is not None:
        raise SettingsError("--wait belongs to the command preflight: pannier preflight --wait 60s")
    return arguments


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _wait(text: str | None) -> float:
    """Seconds that a preflight may be tried again; 0 if it is not to be."""
    try:
        return duration(0, 86400).parse(text or "0")
    except ValueError as error:
        raise SettingsError(f"--wait: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pannier",
        usage="pannier [run | config | check | preflight] [options]",
        description="A sidecar cache proxy in front of Redis. Without any option it serves 127.0.0.1:6380 "
        "from a bundled redis-server.",
        epilog="Beside these: pannier health, invalidate, delete, sweep, warm, top and advise talk to a "
        "running Pannier; see pannier delete --help. Every option can also be set by a variable "
        f"(--max-clients: PANNIER_MAX_CLIENTS) or in the TOML file of --config or {CONFIG_VARIABLE} "
        "(max_clients). A flag outranks a variable, a variable the file.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
        allow_abbrev=False,
        add_help=False,
    )
    general = parser.add_argument_group("Commands and general options")
    general.add_argument(
        "command", nargs="?", default="run", metavar="COMMAND",
        help="run: serve (what happens without a command). config: print the effective settings, each with "
        "its origin. check: find out whether run would take them, without Redis; exit status 2 if not. "
        "preflight: try them on the live Redis, step by step; exit status 1 if something fails.",
    )  # fmt: skip
    general.add_argument("--config", metavar="FILE", help="TOML file with settings")
    general.add_argument("--json", action="store_true", help="config, check, preflight: as JSON")
    general.add_argument("--wait", metavar="TIME", help="preflight: try again for so long until it passes")
    general.add_argument("--markdown", action="store_true", help="config: the reference of all options")
    general.add_argument("--version", action="version", version=f"pannier {__version__}")
    general.add_argument("-h", "--help", action="help", help="show this text")
    groups: dict[str, Any] = {}
    for option in OPTIONS:
        group = groups.get(option.group) or parser.add_argument_group(option.group)
        groups[option.group] = group
        group.add_argument(
            option.flag,
            metavar=option.kind.metavar,
            action="append" if option.kind.many else "store",
            help=f"{option.help} (default: {_default(option)})".replace("%", "%%"),
        )
    return parser


def _flags(arguments: argparse.Namespace) -> dict[str, str]:
    """The options given as flags; what a repeated flag gave is joined by commas."""
    flags: dict[str, str] = {}
    for option in OPTIONS:
        text = getattr(arguments, option.name)
        if text is not None:
            flags[option.name] = ",".join(text) if option.kind.many else text
    return flags


# --- showing settings


def _as_toml(settings: Settings, origins: Mapping[str, str]) -> str:
    """The effective settings as a TOML file, but for masked passwords; the origins are its comments."""
    lines = [f"{option.name} = {_toml_value(option, getattr(settings, option.name))}" for option in OPTIONS]
    width = max(map(len, lines))
    lines = [
        f"{line:<{width}}  # {origins[option.name]}" for line, option in zip(lines, OPTIONS, strict=True)
    ]
    # Last: every key after a table's head belongs to the table.
    for rule in settings.rules:
        # What another file says is shown, but not said twice if this is read as a file.
        mark = "# " if rule.written.startswith(f"{settings.rules_file}:rules #") else ""
        shown_rule = [f"[[rules]]  # file {rule.written}", *show_rule(rule)]
        lines += ["", *[mark + line for line in shown_rule]]
    for tenant in settings.tenants:
        key = toml_key(tenant.name)
        lines += ["", f"[tenants.{key}]  # {origins['tenants']}.{key}", *_tenant_lines(tenant)]
    return "\n".join(lines)


def _tenant_lines(tenant: Tenant) -> Iterable[str]:
    for name, value in tenant_fields(tenant).items():
        if name in LIMITS and value is not None:
            value = LIMITS[name].show(value)
            yield f"{name} = {value if value.isdigit() else json.dumps(value)}"
        elif value is not None:
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"


def _toml_value(option: Option, value: Any) -> str:
    text = option.kind.show(value)
    if option.kind.many:
        return json.dumps(items(text), ensure_ascii=False)
    bare = isinstance(value, bool) or (isinstance(value, int) and text.isdigit())
    return text if bare else json.dumps(text, ensure_ascii=False)


def _default(option: Option) -> str:
    return option.kind.show(option.default) or '""'


def markdown() -> str:
    """The reference of all options, docs/settings.md; a test keeps that file equal to this."""
    parts = [textwrap.dedent(_PREFACE).strip()]
    for group in dict.fromkeys(option.group for option in OPTIONS):
        rows = [_row(option) for option in OPTIONS if option.group == group]
        head = "| Flag | Default | Accepts | What it is for |\n|---|---|---|---|"
        parts.append(f"## {group}\n\n{head}\n" + "\n".join(rows))
    keys = "\n".join(f"| `{key}` | {accepts} | {help} |" for key, (accepts, help) in KEYS.items())
    head, tail = textwrap.dedent(_TENANTS).strip().split("TABLE")
    parts.append(f"{head}| Key | Accepts | What it is for |\n|---|---|---|\n{keys}{tail}")
    rows = [f"| `match` | {MATCH[0]} | {MATCH[1]} |"]
    rows += [f"| `{key}` | {kind.accepts} | {help} |" for key, (kind, _, help) in FIELDS.items()]
    head, tail = textwrap.dedent(_RULES).strip().split("TABLE")
    parts.append(f"{head}| Key | Accepts | What it is for |\n|---|---|---|\n" + "\n".join(rows) + tail)
    parts.append(textwrap.dedent(_ADDRESSES).strip())
    return "\n\n".join(parts) + "\n"


def _row(option: Option) -> str:
    return f"| `{option.flag}` | `{_default(option)}` | {option.kind.accepts} | {option.help} |"


_PREFACE = f"""
    # Settings

    <!-- Written by `pannier config --markdown`; a test compares. Edit settings.py, cli.py and their like. -->

    Every option has three spellings: a flag (`--max-clients 500`), an environment variable
    (`PANNIER_MAX_CLIENTS=500`) and a key in a TOML file (`max_clients = 500`), which `--config FILE` or
    `{CONFIG_VARIABLE}=FILE` names. A flag outranks a variable, a variable the file, the file the default.
    `pannier config` prints what holds and where each value came from; `pannier config --json` does so for
    programs. A variable that is set but empty counts as not set.

    - A duration is `500ms`, `5s`, `2m`, `1h`, `1d` or a plain number of seconds.
    - A size is `64mb`, `1gb` or a plain number of bytes. As in redis.conf, `1mb` is 1024 × 1024 bytes and
      `1m` a million; `1mib` is the same as `1mb`.
    - A wrong value, an unknown key of the file or an unknown `PANNIER_` variable ends the start with exit
      status 2 and a line that names it. (Variables such as `PANNIER_SERVICE_HOST`, which Kubernetes sets
      beside a Service called `pannier`, are passed over.)
"""

_TENANTS = """
    ## Tenants

    A tenant is a table `[tenants.<name>]` in the file; there is no flag or variable for it. Where there are
    tenants, a client logs in with `AUTH <name> <password>`, and Pannier checks it (`auth = "tenants"`, which
    `auto` comes to). A name is 1 to 64 printable ASCII characters without white space.

    TABLE

    Exactly one of `password`, `password_file` and `password_env` is required, at most one of the three of
    `upstream_password` may be given, and `upstream_username` needs one of them.

    ```toml
    max_memory = "256mb"
    auth = "tenants"

    [tenants.acme]
    password_file = "/run/secrets/acme"
    max_memory = "16mb"
    max_clients = 100
    max_ops_per_second = 5000

    [tenants.globex]
    password = [
        "#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
        "#da925a30e31f7fdaa7044e3e5ba4ae17670de82d677b0e7adf5700428a137a36",
    ]
    namespace = "customers:globex"

    [tenants.operator]
    password_env = "PANNIER_OPERATOR_PASSWORD"
    namespace = ""
    ```

    `#` and 64 hexadecimal digits is the SHA-256 of a password, as in Redis' ACL files. To make one:

    ```console
    $ printf %s secret | sha256sum
    2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b  -
    ```

    - Pannier keeps only hashes of the tenants' passwords. `pannier config` shows `***` for each; a file that
      still has `***` for a password is refused.
    - Whatever the source, a password is not empty, and one that itself begins with `#` is given as its hash.
    - Beside tenants there is neither the option `namespace` nor a `?namespace=` on an address, and `auth` is
      `auto` or `tenants`.
    - The tenants' `max_memory` is taken out of the option `max_memory`, of which at least 1mb must be left.
    - Tenants may share a namespace. But no namespace, of tenants, addresses or the option, may lie within
      another (`a:b` within `a`), as its keys could be seen from there. The empty one sees every key.
"""

_RULES = """
    ## Cache rules

    A rule is a table `[[rules]]` in the file of the settings, or in the file that `rules_file` names, which
    holds nothing else. They are looked at in their order, those of the file of the settings first; the first
    that matches a key holds. What they do, and when they are read again: [rules.md](rules.md).

    TABLE

    ```toml
    [[rules]]
    match = ["user:*:permissions", "permissions:*"]
    l1_ttl = "30s"
    negative = false

    [[rules]]
    match = "session:*"
    cache = false
    ```
"""

_ADDRESSES = """
    ## How addresses are written

    `upstream`:

    - `redis://[user[:password]@]host[:port][/db]`, port 6379 and database 0 by default; `?db=2`
      works as well.
    - `rediss://…` for TLS. `?ssl_ca_certs=FILE` names the authorities to trust (default: the system's),
      `ssl_certfile` and `ssl_keyfile` the client's certificate; `ssl_check_hostname=false` and
      `ssl_cert_reqs=none` lower the checks; `ssl_min_version` is 1.2 or 1.3. These are redis-py's names.
      `ssl_sni` is the name to ask for, and to find in the certificate, where that is not the host's
      (docs/tls.md).
    - `unix:///path/redis.sock[?db=2&password=…]` or `unix://user:password@/path/redis.sock`.
    - An IPv6 address stands in brackets: `redis://[::1]:6379`. In a user name, a password or a socket's path,
      `? # @ %`, and in the former two `/` and `:`, are percent-encoded. Options of redis-py's own in the URL,
      such as `decode_responses`, are passed over.
    - `bundled` starts the bundled redis-server also where a variable or the file says otherwise.

    Passwords are shown as `***`, in `pannier config`, the log and error messages alike.

    `listen`:

    - `127.0.0.1:6380`, `[::1]:6380`, or a bare port for 127.0.0.1; `:6380` or `*:6380` for every interface,
      IPv4 and IPv6. Port 0 lets the system choose; Pannier prints its choice. `tcp://` may stand before
      each of these. With `?tls=true` after it clients have to speak TLS there (`tls_cert`, docs/tls.md).
    - `unix:///run/pannier.sock`. The socket is open to the user Pannier runs as and to nobody else (mode
      600); `?mode=660` admits its group, which is what two containers of a pod with a common `fsGroup` need;
      `?mode=660&group=app` another one, by name or number.
    - `?namespace=agent_service` after any of these puts the keys of the clients that come in there under
      `agent_service:`, whatever the option `namespace` says; `?namespace=` under none. What a URL reserves is
      percent-encoded, and so is a comma (`%2C`). For a socket with both: `?mode=660&namespace=agent_service`.
      An address is listened on once: one namespace each.
    - Several: repeat the flag, separate them by commas, or give a list in the file:
      `listen = ["127.0.0.1:6380", "unix:///run/pannier.sock"]`.
"""
