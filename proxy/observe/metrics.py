"""/metrics: the figures in Prometheus' formats.

`Collector` is what prometheus-client calls one; nothing is counted in its own objects. Whatever is exported
is read at one moment, and put into text a few families at a time, so that hits go on in between.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from proxy.histogram import Histogram
from proxy.observe.answers import Answer
from proxy.observe.exposing import exposed
from proxy.observe.families import FAMILIES, Family
from proxy.observe.http import Request
from proxy.observe.sources import Sources


class Collector:
    """Reads all figures of a sidecar; may be registered with a registry of prometheus-client's."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._process = _process()

    def collect(self) -> Iterator[Metric]:
        """Every family with its figures now."""
        for family in FAMILIES:
            yield metric(family, self._sources)
        yield from self._process.collect()

    async def answer(self, request: Request) -> Answer:
        """Answer GET /metrics, in OpenMetrics' format if that is wanted."""
        clients = self._sources.clients
        await clients.volume.look_at(clients.sessions.values())
        return await exposed(list(self.collect()), request)


@functools.cache
def _process() -> CollectorRegistry:
    """prometheus-client's own figures of this process."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


PROCESS = {
    "process_virtual_memory_bytes": "sum",
    "process_resident_memory_bytes": "sum",
    "process_start_time_seconds": "min",
    "process_cpu_seconds": "sum",
    "process_open_fds": "sum",
    "process_max_fds": "min",
    "python_info": "each",
    "python_gc_objects_collected": "sum",
    "python_gc_objects_uncollectable": "sum",
    "python_gc_collections": "sum",
}
"""How prometheus-client's own families of several workers become one (see `families.Family.merge`)."""


def as_data(sources: Sources) -> list[dict[str, Any]]:
    """Every family with its figures now, and how those of several workers become one; for another process."""
    found = []
    for family in FAMILIES:
        found.append(_data(metric(family, sources), family.merge))
    for made in _process().collect():
        found.append(_data(made, PROCESS[made.name]))
    return found


def _data(made: Metric, merge: str) -> dict[str, Any]:
    samples = [(sample.name, sample.labels, sample.value) for sample in made.samples]
    return {
        "name": made.name, "kind": made.type, "help": made.documentation, "merge": merge, "samples": samples,
    }  # fmt: skip


def metric(family: Family, sources: Sources) -> Metric:
    """A family as prometheus-client has it, with its figures now."""
    made: Metric
    if family.kind == "info":
        made = info = InfoMetricFamily(family.name, family.help)
        for values, _ in family.read(sources):
            info.add_metric((), dict(zip(family.labels, values, strict=True)))
        return made
    if family.kind == "histogram":
        made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for values, figure in family.read(sources):
            if isinstance(figure, Histogram):
                buckets = [(_bound(bound), float(count)) for bound, count in figure.cumulated()]
                made.add_metric(values, buckets, figure.sum)
        return made
    maker = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = single = maker(family.name, family.help, labels=family.labels)
    for values, figure in family.read(sources):
        if not isinstance(figure, Histogram):
            single.add_metric(values, float(figure))
    return made


def _bound(bound: float) -> str:
    """A histogram's bound as the format has it."""
    return "+Inf" if bound == float("inf") else repr(bound)
