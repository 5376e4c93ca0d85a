"""A worker's place: which of how many it is, and what its parent gave it.

With `workers` above 1, `proxy.workers` starts that many processes of Pannier. Each is given the settings that
are in force, takes its share of what is to be had only once (`share`), and finds its place in an environment
variable: where it serves, with sockets that the parent has opened; where the workers' private directory is;
which Redis is behind, if that is one the parent has started.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from proxy.settings import Settings
from proxy.tenants import Tenant
from proxy.upstream.address import Listen

VARIABLE = "_PANNIER_WORKER"
"""The environment variable; it is for workers only, and none of the settings."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker is told at its start."""

    number: int
    """Which one it is, from 1."""
    of: int
    """How many there are."""
    directory: str
    """Where all of them have their private sockets; nobody else may enter it."""
    control: int
    """File descriptor of the connection to the parent."""
    settings: int
    """File descriptor of the settings. They are not read again: one that is started anew must not serve
    another Redis than the others do, nor fail because of a file that is wrong by now."""
    listen: tuple[tuple[str, tuple[int, ...]], ...]
    """Addresses to serve, and the file descriptors of the sockets that listen there."""
    secret: str
    """What hashes of keys' names are made with, the same in all workers, in hexadecimal digits."""
    upstream: str = ""
    """URL of the Redis that the parent has started; empty: the settings name one."""
    bundled: str = ""
    """Its version."""
    draining: bool = False
    """Whether clients are to go elsewhere."""

    @classmethod
    def taken(cls, environment: MutableMapping[str, str] = os.environ) -> Place | None:
        """The place of this process, once: it is not its children's. None: it is no worker."""
        text = environment.pop(VARIABLE, "")
        if not text:
            return None
        found = json.loads(text)
        found["listen"] = tuple([(address, tuple(numbers)) for address, numbers in found["listen"]])
        return cls(**found)

    def given(self) -> Settings:
        """The settings; called once."""
        with open(self.settings, "rb") as file:
            found = pickle.load(file)
        assert isinstance(found, Settings)
        return found

    def told(self) -> str:
        """It all, as the environment variable has it."""
        return json.dumps(dataclasses.asdict(self))

    def sockets(self) -> dict[Listen, list[socket.socket]]:
        """The sockets to listen with; called once."""
        found: dict[Listen, list[socket.socket]] = {}
        for address, numbers in self.listen:
            sockets = [socket.socket(fileno=number) for number in numbers]
            for sock in sockets:
                sock.set_inheritable(False)
                sock.setblocking(False)
            found.setdefault(Listen.parse(address), []).extend(sockets)
        return found

    @property
    def private(self) -> str:
        """Where this worker answers its parent and its siblings."""
        return private(self.directory, self.number)

    @property
    def siblings(self) -> dict[int, str]:
        """Where the others do, by their number."""
        others = [number for number in range(1, self.of + 1) if number != self.number]
        return {number: private(self.directory, number) for number in others}


def private(directory: str, number: int) -> str:
    """Path of the private socket of a worker."""
    return os.path.join(directory, f"worker-{number}.sock")


def share(settings: Settings, place: Place) -> Settings:
    """One worker's settings: memory is divided, and so are numbers of clients and commands, rounded up."""
    of = place.of
    listen = tuple(dict.fromkeys([Listen.parse(address) for address, _ in place.listen]))
    return dataclasses.replace(
        settings,
        listen=listen,
        max_memory=settings.max_memory // of,
        max_entries=max(1, settings.max_entries // of),
        max_clients=_part(settings.max_clients, of),
        tenants=tuple([_of_tenant(tenant, of) for tenant in settings.tenants]),
    )


def _of_tenant(tenant: Tenant, of: int) -> Tenant:
    def part(limit: int | None) -> int | None:
        return None if limit is None else _part(limit, of)

    return dataclasses.replace(
        tenant,
        max_memory=None if tenant.max_memory is None else tenant.max_memory // of,
        max_clients=part(tenant.max_clients),
        max_ops_per_second=part(tenant.max_ops_per_second),
    )


def _part(whole: int, of: int) -> int:
    return -(-whole // of)
