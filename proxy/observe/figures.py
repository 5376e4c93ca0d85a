"""Where the figures of metrics come from: functions that read them off a running sidecar, with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from proxy import __version__
from proxy.certificates import Certificates
from proxy.client import health
from proxy.client.spaces import Space
from proxy.histogram import Histogram
from proxy.observe.sources import Sources
from proxy.tier.classes import Share
from proxy.tier.tier import Account
from proxy.upstream.shared import SharedLink

Figure = float | Histogram
Sample = tuple[tuple[str, ...], Figure]
"""The labels' values, and the figure."""
Read = Callable[[Sources], Iterable[Sample]]

STATES = ("up", "connecting", "silent", "down", "refused", "closed")
"""What `client.health.status` says of a link."""


def one(read: Callable[[Sources], Figure]) -> Read:
    """A single figure."""
    return lambda sources: [((), read(sources))]


def maybe(read: Callable[[Sources], Figure | None]) -> Read:
    """A single figure, where there is one."""

    def found(sources: Sources) -> Iterator[Sample]:
        figure = read(sources)
        if figure is not None:
            yield (), figure

    return found


def spaces(read: Callable[[Space], float | None]) -> Read:
    """A figure of each namespace."""

    def found(sources: Sources) -> Iterator[Sample]:
        for space in sources.clients.spaces:
            figure = read(space)
            if figure is not None:
                yield (space.name,), figure

    return found


def accounts(read: Callable[[Account], float]) -> Read:
    """A figure of each namespace's part of memory."""
    return spaces(lambda space: None if space.account is None else read(space.account))


def of_account(name: str) -> Read:
    """A counter of each namespace's part of memory, by its attribute."""
    return accounts(attrgetter(name))


def of_bus(name: str) -> Read:
    """A counter of the eviction bus, where there is one."""
    return maybe(lambda sources: None if sources.bus is None else float(getattr(sources.bus, name)))


_BY_SOURCE = {
    "push": "invalidated",
    "write": "overwritten",
    "bus": "told",
    "command": "commanded",
    "lost": "lost",
}


def invalidations(sources: Sources) -> Iterator[Sample]:
    """Entries dropped, by namespace and by who said so."""
    for space in sources.clients.spaces:
        if space.account is not None:
            for source, counter in _BY_SOURCE.items():
                yield (space.name, source), getattr(space.account, counter)


def by_class(which: str) -> Read:
    """Hits or misses of each namespace by class."""

    def found(sources: Sources) -> Iterator[Sample]:
        for space in sources.clients.spaces:
            if space.account is not None:
                space.account.settle()
                share: Share = getattr(space.account.classes, which)
                yield from (((space.name, label), count) for label, count in share.by_class.items())

    return found


def latency(which: str) -> Read:
    """The histograms of latencies, `by_path` or `by_family`."""

    def found(sources: Sources) -> Iterator[Sample]:
        histograms: dict[str, Histogram] = getattr(sources.clients.latency, which)
        yield from (((label,), histogram) for label, histogram in histograms.items())

    return found


_BUS_KINDS = {
    "published": "published",
    "received": "received",
    "own": "own",
    "malformed": "malformed",
    "unknown_version": "unknown",
}


def bus_messages(sources: Sources) -> Iterator[Sample]:
    """Messages of the eviction bus, by kind."""
    if sources.bus is not None:
        for kind, counter in _BUS_KINDS.items():
            yield (kind,), getattr(sources.bus, counter)


def states(sources: Sources) -> Iterator[Sample]:
    """For each state of the main link whether it is in it."""
    found = health.status(sources.main_link)
    for state in STATES:
        yield (state,), found == state


def tracking(sources: Sources) -> Iterator[Sample]:
    """How Redis tells of changes."""
    link = sources.main_link
    mode = link.tracking.mode.label if link is not None and link.tracking is not None else "off"
    yield (mode,), 1


def build(sources: Sources) -> Iterator[Sample]:
    """The versions of Pannier and of Redis."""
    link = sources.main_link
    yield (__version__, _redis_version(link)), 1


def _redis_version(link: SharedLink | None) -> str:
    version = link.hello.get(b"version", b"") if link is not None else b""
    return version.decode("ascii", "replace") if isinstance(version, bytes) else ""


def links(sources: Sources) -> Iterator[Sample]:
    """Connections to Redis, by kind."""
    yield ("shared",), len(sources.links.shared)
    yield ("pinned",), len(sources.links.pinned)


def limits(sources: Sources) -> Iterator[Sample]:
    """Each budget once: the common one as that of who has no namespace."""
    tier = sources.clients.tier
    if tier is None:
        return
    yield ("",), tier.common.max_memory
    for space in sources.clients.spaces:
        if space.name and space.account is not None and space.account.budget is not tier.common:
            yield (space.name,), space.account.budget.max_memory


def failed_handshakes(sources: Sources) -> Iterator[Sample]:
    """Of clients' handshakes, by why they failed."""
    for cause, count in sources.clients.handshakes.failed.items():
        yield (cause,), count


def certificates(read: Callable[[Certificates], float]) -> Read:
    """A figure of each certificate that is shown."""
    return lambda sources: [((name,), read(each)) for name, each in sources.certificates.items()]


def observed(sources: Sources) -> Iterator[Sample]:
    """Of all shelves, by size of the memory imagined."""
    tier = sources.clients.tier
    saved: dict[int, int] = {}
    for shelf in tier.shelves.values() if tier is not None else ():
        for size, _, calls in shelf.ghost.report() if shelf.ghost is not None else ():
            saved[size] = saved.get(size, 0) + calls
    yield from (((str(size),), calls) for size, calls in saved.items())


def observed_reads(sources: Sources) -> float | None:
    """Reads that were looked up in imagined memory; None: there is none."""
    tier = sources.clients.tier
    ghosts = [shelf.ghost for shelf in tier.shelves.values()] if tier is not None else []
    reads = [ghost.reads for ghost in ghosts if ghost is not None]
    return sum(reads) if reads else None
