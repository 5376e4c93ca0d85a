"""What of the tier somebody may look into: the shelves, and how their keys and classes are shown to him.

A session sees what its own user at Redis has read, in its namespace alone; there, keys have the names that it
knows. Who has no namespace sees all namespaces of his user, with the names that Redis knows. The HTTP side,
which is the operator's, sees everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from proxy.privacy import Privacy
from proxy.tier.rules import key_name
from proxy.upstream.link import LinkKey

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.session import Session
    from proxy.tier.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Seen:
    """One shelf that may be looked into."""

    shelf: Shelf
    namespace: str
    """Empty: none."""
    database: int


@dataclass(frozen=True, slots=True)
class Name:
    """A key as it is shown."""

    key: str
    """Empty where names are not shown."""
    label: str
    """Its class: its rule's, or, where names are shown, their first part."""
    namespace: str
    database: int


@dataclass(frozen=True, slots=True)
class Scope:
    """See the module's docstring."""

    seen: tuple[Seen, ...]
    bare: bool
    """Whether names have no prefix: it is known, or not to be."""
    privacy: Privacy
    workers: int = 1
    """How many processes share the memory of the settings; each has as much of it."""

    def keys(self, seen: Seen, part: bytes) -> list[bytes]:
        """The keys of a read, as Redis knows them."""
        return [key_name(frame) for frame in seen.shelf.rules.part_keys(part)]

    def name(self, seen: Seen, key: bytes) -> Name:
        """What is shown of a key, given as Redis knows it."""
        inner = key[len(seen.shelf.rules.prefix) :]
        return Name(
            key=self.privacy.shown(inner if self.bare else key),
            label=self.label(seen, inner),
            namespace="" if self.bare else seen.namespace,
            database=seen.database,
        )

    def label(self, seen: Seen, inner: bytes) -> str:
        """What is shown of a key's class, given the name that clients use."""
        policy = seen.shelf.tier.policy
        if self.privacy.plain:
            return policy.label(inner)[:_LONGEST]
        return policy.ruling(inner).rule.label


def of_session(session: Session) -> Scope:
    """What a session may see."""
    space = session.space
    bare = space.namespace is not None
    seen = [
        each
        for key, each in _all(session.clients)
        if key.identity == session.identity and (not bare or each.shelf.account is space.account)
    ]
    clients = session.clients
    return Scope(() if space.locked else tuple(seen), bare, clients.privacy, _workers(clients))


def of_operator(clients: Clients) -> Scope:
    """Everything."""
    seen = tuple([each for _, each in _all(clients)])
    return Scope(seen, False, clients.privacy, _workers(clients))


def _workers(clients: Clients) -> int:
    return clients.crew.of if clients.crew is not None else 1


def _all(clients: Clients) -> list[tuple[LinkKey, Seen]]:
    found = []
    for key, shelf in clients.tier.shelves.items() if clients.tier is not None else ():
        link = cast(LinkKey, key)
        namespace = shelf.rules.namespace
        found.append((link, Seen(shelf, namespace.name if namespace is not None else "", link.database)))
    return found


_LONGEST = 60
"""Characters of a class that are shown."""
