"""`pannier check`: whether `run` would take these settings, found out without serving anything.

All is read that `run` reads at its start: flags, variables, the files of settings, rules and tenants, those
with secrets, certificates and what is to be warm. Nothing is connected to and no address taken, so it runs
where there is no Redis. What is wrong is told all at once, as far as one fault does not hide another.

What depends on the machine it runs on, and may be otherwise where Pannier will run, is a remark; directories
of sockets and interfaces are errors nevertheless, since a misspelt one looks no different.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

from proxy.cgroup import broken_limit, memory_limit
from proxy.kinds import Wrong, noting
from proxy.resp.errors import SettingsError, StartupError
from proxy.settings import BUNDLED, BY_NAME, Settings, load
from proxy.upstream.address import Listen

_MOST_NAMES = 10
"""Names listed in one line."""


class Report:
    """What has been read, what is remarkable, and what is wrong."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []
        """What it is and what was found, without secrets."""
        self.remarks: list[str] = []
        """What does not keep `run` from starting, or only on this machine."""
        self.wrong: list[SettingsError] = []

    def as_json(self) -> str:
        """For programs."""
        fields = {
            "ok": not self.wrong,
            "problems": [str(error) for error in self.wrong],
            "remarks": self.remarks,
            "read": [{"what": what, "found": found} for what, found in self.read],
        }
        return json.dumps(fields, indent=2, ensure_ascii=False)

    def as_text(self) -> str:
        """For people, if nothing is wrong."""
        lines = [f"  {what:<12} {found}" for what, found in self.read]
        return "\n".join(["ok", *lines, *(f"  {'remark':<12} {remark}" for remark in self.remarks)])


def main(flags: Mapping[str, str], env: Mapping[str, str], config: str | None, as_json: bool) -> int:
    """Check and print; the exit status: 0, or 2 if something is wrong."""
    report = check(flags, env, config)
    if as_json:
        print(report.as_json())
    elif not report.wrong:
        print(report.as_text())
    else:
        for error in report.wrong:
            print(f"pannier: {error}", file=sys.stderr)
    return 2 if report.wrong else 0


def check(flags: Mapping[str, str], env: Mapping[str, str], config: str | None) -> Report:
    """Read everything; see `proxy.settings.load` for the arguments."""
    report = Report()
    wrong = report.wrong
    settings, origins = load(flags, env, config, wrong, memory_limit())
    report.read += _sources(settings, origins)
    _check_addresses(settings, wrong)
    report.read += [("listen", str(listen)) for listen in settings.listen]
    report.remarks += _check_certificates(settings, wrong)
    report.read += _administration(settings)
    if settings.rules:
        beside = f", those of {settings.rules_file} among them" if settings.rules_file else ""
        report.read.append(("rules", f"{len(settings.rules)}{beside}"))
    if settings.tenants:
        report.read.append(("tenants", _listed([tenant.name for tenant in settings.tenants])))
    report.read += _warming(settings, wrong)
    report.remarks += _remarks(settings)
    if settings.trace_sample:
        with noting(wrong):
            _find_telemetry()
    return report


def _sources(settings: Settings, origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """From where options come, and the one that matters most."""
    places: dict[str, list[str]] = {"file": [], "environment": [], "flag": []}
    path = ""
    for name in BY_NAME:
        kind, _, place = origins[name].partition(" ")
        if kind in places:
            places[kind].append(name if kind == "file" else place)
            path = place.rpartition(":")[0] if kind == "file" else path
    for name in ("tenants", "rules"):
        if name in origins:
            places["file"].append(f"[{name}]")
            path = origins[name].partition(" ")[2].rpartition(":")[0]
    if places["file"]:
        yield "file", f"{path}: {_listed(places['file'])}"
    if places["environment"]:
        yield "environment", _listed(places["environment"])
    if places["flag"]:
        yield "flags", _listed(places["flag"])
    yield "upstream", settings.upstream.redacted if settings.upstream is not None else BUNDLED


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


# --- addresses to listen on


def _check_addresses(settings: Settings, wrong: Wrong) -> None:
    """Whether each address could be one of this machine, and none is in the way of another."""
    given = [(_written(settings, "listen"), listen) for listen in settings.listen]
    if settings.admin_listen is not None:
        given.append((_written(settings, "admin_listen"), settings.admin_listen))
    for written, listen in given:
        with noting(wrong):
            if listen.path is not None:
                _check_socket(written, listen, listen.path)
            elif listen.host is not None:
                _check_interface(written, listen.host)
    for (written, listen), (other_written, other) in combinations(given, 2):
        with noting(wrong):
            if _overlap(listen, other):
                raise SettingsError(
                    f"{written}: {listen} is in the way of {other} ({other_written}); give each its own port"
                )


def _written(settings: Settings, name: str) -> str:
    """How the author of an option has named it."""
    origin = settings.origins.get(name, "default")
    return name if origin == "default" else origin.partition(" ")[2]


def _check_socket(written: str, listen: Listen, path: str) -> None:
    directory = os.path.dirname(path) or "/"
    if not os.path.isdir(directory):
        raise SettingsError(
            f"{written}: {path!r} cannot be made: there is no directory {directory}; make it, or give another"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise SettingsError(
            f"{written}: {path!r} cannot be made: no right to write to {directory}; grant it, or give another"
        )
    if os.path.lexists(path) and not (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        raise SettingsError(f"{written}: {path!r} is there and is no socket; remove it, or give another path")
    if listen.group is not None:
        from proxy.listening import group_of

        try:
            group_of(listen, listen.group)
        except StartupError as error:
            raise SettingsError(f"{written}: {error}") from None


def _check_interface(written: str, host: str) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(
            f"{written}: {host!r} is no address, and no name that is known here ({error.strerror}); "
            "give an address of this machine"
        ) from None
    for family, kind, protocol, _, address in found:
        try:
            # Port 0, so that nothing is in the way, or taken from anybody.
            with socket.socket(family, kind, protocol) as sock:
                sock.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingsError(
                    f"{written}: no interface of this machine has the address {host!r}; "
                    "give one that has, or leave the host out, as in :6380, for all of them"
                ) from None


def _overlap(one: Listen, other: Listen) -> bool:
    """Whether only one of two addresses can be had."""
    if one.path is not None and other.path is not None:
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    if one.path is not None or other.path is not None:
        return False
    if not one.port or one.port != other.port:
        return False
    hosts = {one.host, other.host}
    if len(hosts) == 1 or None in hosts:
        return True
    everywhere = hosts & {"0.0.0.0", "::"}
    return bool(everywhere) and len({":" in str(host) for host in hosts}) == 1


# --- files that settings name


def _check_certificates(settings: Settings, wrong: Wrong) -> Iterator[str]:
    """Whether they can be used; what is remarkable is when they are valid."""
    upstream = settings.upstream
    if upstream is not None and upstream.tls:
        from proxy.upstream.tls import tls_context

        with noting(wrong):
            tls_context(upstream)
            if upstream.ssl_certfile:
                yield from _validity("upstream's ssl_certfile", upstream.ssl_certfile)
    if settings.tls_cert:
        others = settings.tls_key, settings.tls_client_ca, settings.tls_min_version
        yield from _check_shown(wrong, "tls", settings.tls_cert, *others)
    if settings.admin_tls_cert and settings.admin_listen is not None:
        yield from _check_shown(wrong, "admin_tls", settings.admin_tls_cert, settings.admin_tls_key)


def _check_shown(wrong: Wrong, prefix: str, cert: str, *others: str) -> Iterator[str]:
    """Those that Pannier shows to clients."""
    from proxy.certificates import Files, make_context

    with noting(wrong):
        make_context(Files(prefix, cert, *others))
        yield from _validity(f"{prefix}_cert", cert)


def _validity(name: str, path: str) -> Iterator[str]:
    from proxy.certificates import out_of_time, validity

    if trouble := out_of_time(name, path, validity(path), time.time()):
        yield trouble


def _administration(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.admin_listen is not None:
        scheme = "https" if settings.admin_tls_cert else "http"
        token = "with a token" if settings.token else "without a token"
        yield "admin", f"{settings.admin_listen}, {scheme}, {token}"


def _warming(settings: Settings, wrong: Wrong) -> Iterator[tuple[str, str]]:
    if not settings.warm and not settings.warm_file:
        return
    from proxy.resp.commands import CommandTable
    from proxy.tier.rules import Rules
    from proxy.warmfiles import wishes

    with noting(wrong):
        found = wishes(settings, Rules(CommandTable.load()))
        beside = f", those of {settings.warm_file} among them" if settings.warm_file else ""
        yield "warm", f"{len(found)} keys, patterns or reads{beside}"


def _find_telemetry() -> None:
    """Raise SettingsError if what `trace_sample` needs is not installed."""
    name = "opentelemetry.exporter.otlp.proto.http"
    try:
        there = importlib.util.find_spec(name) is not None
    except ImportError:
        there = False
    if not there:
        raise SettingsError(
            f"trace_sample: OpenTelemetry is not installed (no {name}); pip install 'pannier[otel]', "
            "or leave it out"
        )


def _strange_groups(settings: Settings) -> Iterator[str]:
    """Groups that sockets are to have, and whoever runs this may not give them."""
    if os.geteuid() == 0:
        return
    for listen in settings.listen:
        if listen.group is not None:
            from proxy.listening import group_of

            try:
                number = group_of(listen, listen.group)
            except StartupError:
                continue  # that has been said
            if number not in (os.getegid(), *os.getgroups()):
                yield (
                    f"{_written(settings, 'listen')}: whoever runs this check is no member of group "
                    f"{listen.group}; the user that Pannier runs as has to be, to give it to {listen.path!r}"
                )


def _remarks(settings: Settings) -> Iterable[str]:
    yield from _strange_groups(settings)
    if trouble := broken_limit(settings.max_memory, settings.memory_limit, settings.workers):
        yield trouble
    if settings.upstream is None:
        yield "upstream: none is given: run starts a redis-server of its own, which keeps nothing"
        from proxy.upstream.embedded import find_server

        try:
            find_server()
        except StartupError as error:
            yield f"upstream: {error}"
    if settings.workers > 1:
        import tempfile

        try:
            tempfile.gettempdir()
        except OSError as error:
            yield f"workers: no directory here for their private sockets ({error.strerror}); /tmp will do"
    directory = os.path.dirname(os.path.abspath(settings.warm_state))
    if settings.warm_state and not os.access(directory, os.W_OK | os.X_OK):
        why = f"{directory} is no directory, or none that may be written to"
        yield f"warm_state: {settings.warm_state!r} cannot be written here: {why}"
